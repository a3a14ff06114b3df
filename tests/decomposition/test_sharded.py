"""Rows over eight devices against one."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxgrad.decomposition import log_likelihood, pca, pca_from_state, pca_init, pca_transform, pca_update

mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
rng = np.random.default_rng(0)

def same(a, b):
    for mine, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(mine), np.asarray(other), rtol=2e-4, atol=2e-4)

for shape, solvers in (((160, 12), ("covariance", "svd", "krylov")), ((16, 40), ("gram",))):
    x = (100 + rng.normal(size=shape) * np.arange(shape[1], 0, -1)).astype(np.float32)
    counts = rng.integers(1, 3, shape[0]).astype(np.float32)
    sharded = jax.device_put(x, NamedSharding(mesh, P(("a", "b"))))
    for solver in solvers:
        for weights in (None, counts) if solver != "svd" else (None,):
            options = {"solver": solver, "weights": weights, "tol": 1e-6}
            whole, parts = pca(x, 2, **options), pca(sharded, 2, **options)
            same(whole, parts)
            assert parts.components.sharding.is_fully_replicated
    scores = pca_transform(parts, sharded)
    same(scores, pca_transform(whole, x))
    assert not scores.sharding.is_fully_replicated

x = (100 + rng.normal(size=(160, 12)) * np.arange(12, 0, -1)).astype(np.float32)
half = jax.device_put(x, NamedSharding(mesh, P("b")))
state = pca_update(pca_update(pca_init(12), half), half, np.ones(160, np.float32))
same(pca_from_state(state, 2), pca_from_state(pca_update(pca_init(12), np.concatenate([x, x])), 2))

from jaxgrad.decomposition import _pca
from jaxgrad._rows import shards
seen = _pca._survey(half, None, layout=shards(half))
for solver in ("covariance", "krylov"):
    plan = _pca.Plan(solver, 2, 1e-4)
    run = _pca._decompose.lower(half, None, seen, jnp.uint32(0), plan=plan, layout=shards(half)).compile().as_text()
    moved = [line for line in run.splitlines() if "all-gather" in line or "all-to-all" in line]
    assert not any("80," in line or "160," in line for line in moved), moved
holes = np.where(np.arange(160)[:, None] == 7, np.nan, x)
try:
    pca(jax.device_put(holes, NamedSharding(mesh, P("a"))), 2)
except ValueError as error:
    assert "1 of 160" in str(error)
else:
    raise AssertionError
print("done")
"""


@pytest.mark.heavy
def test_eight_devices_give_what_one_gives() -> None:
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0"}
    run = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["done"]
