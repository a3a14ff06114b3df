"""Rows over several devices, and over several processes: the same result as on one, and little to send."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits
from jaxgrad.clustering import assign, k_means
from jaxgrad.decomposition import pca
from jaxgrad.clustering import _k_means as implementation

x = load_digits().data.astype(np.float32)[:1792]
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "more"))
spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec(("rows", "more"))))
key = jax.random.key(0)
whole = sys.argv[1] == "whole"
for small in (1 << 62, 0) if whole else (0,):
    implementation._SMALL = small
    for metric in ("euclidean", "manhattan", "cosine", "mahalanobis") if whole else ("euclidean",):
        if small == 0 and metric == "manhattan":
            continue  # has no bounds
        one, many = (k_means(key, data, 10, metric=metric, max_steps=20) for data in (x, spread))
        np.testing.assert_allclose(many.inertia, one.inertia, rtol=1e-5)
        assert np.mean(np.asarray(one.labels) != np.asarray(many.labels)) < 1e-2, metric
        assert not many.labels.sharding.is_fully_replicated
        assert many.centroids.sharding.is_fully_replicated
for init in ("random", "k-means++", "k-means||") if whole else ():
    one, many = (k_means(key, data, 10, init=init, max_steps=3, weights=np.arange(1792) % 3) for data in (x, spread))
    np.testing.assert_allclose(many.inertia, one.inertia, rtol=1e-5)
labels = assign(one, spread)
np.testing.assert_array_equal(labels, assign(one, x))

empty = x[:10].copy()
empty[5:] -= 1e4  # five centroids without rows
one, many = (k_means(None, data, 10, init=empty) for data in (x, spread))
np.testing.assert_allclose(many.inertia, one.inertia, rtol=1e-5)
assert one.num_distinct == many.num_distinct == 10

for solver in ("covariance", "krylov") if whole else ("covariance",):
    one, many = (pca(data, 8, solver=solver, key=key) for data in (x, spread))
    np.testing.assert_allclose(many.explained_variance, one.explained_variance, rtol=1e-4)
    np.testing.assert_allclose(many.components, one.components, atol=2e-3)

fit = implementation._fit


def show(*arguments, **options):
    print(fit.lower(*arguments, **options).compile().as_text())
    return fit(*arguments, **options)


implementation._fit = show
k_means(key, spread, 10)
"""

PROCESSES = """
import sys
import jax, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
rank, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits
from jaxgrad.clustering import k_means
from jaxgrad.decomposition import pca

x = load_digits().data.astype(np.float32)[:1796]
mine = slice(898 * rank, 898 * (rank + 1))
rows = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
everywhere = jax.make_array_from_process_local_data(rows, x[mine], x.shape)
one, many = (k_means(jax.random.key(0), data, 10) for data in (x, everywhere))
np.testing.assert_allclose(many.inertia, one.inertia, rtol=1e-5)
labels = np.concatenate([shard.data for shard in many.labels.addressable_shards])
assert np.mean(labels != np.asarray(one.labels)[mine]) < 1e-2
one, many = (pca(data, 8, solver="covariance") for data in (x, everywhere))
np.testing.assert_allclose(many.explained_variance, one.explained_variance, rtol=1e-4)
broken = jax.make_array_from_process_local_data(rows, np.where(x[mine] == 16, np.nan, x[mine]), x.shape)
try:
    k_means(jax.random.key(0), broken, 10)
except ValueError as error:
    print(error)
"""


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path} | more


@pytest.mark.parametrize("part", ["some", pytest.param("whole", marks=pytest.mark.heavy)])
def test_eight_devices_give_the_result_of_one_and_send_little(part: str) -> None:
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, part],
        env=environment(XLA_FLAGS=flags),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    sent = re.findall(r"= (.*) (?:all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(", done.stdout)
    sizes = [shape for shapes in sent for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)]
    numbers = [math.prod(int(side) for side in shape.split(",") if side) for shape in sizes]
    assert numbers
    # Centroids and candidates for an empty cluster, from each of eight devices; the data are 1792 x 64.
    assert max(numbers) <= 8 * 10 * 64


def test_two_processes_give_the_result_of_one() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", PROCESSES]
    both = [
        subprocess.Popen(
            [*command, str(rank), port],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ends = [process.communicate(timeout=300) for process in both]
    for process, (out, err) in zip(both, ends, strict=True):
        assert process.returncode == 0, err[-4000:]
        assert "of 1796 with a NaN" in out
