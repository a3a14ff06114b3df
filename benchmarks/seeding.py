"""What seeding k-means costs beside `sklearn.cluster.kmeans_plusplus`, and how good the seeds are.

Both draw the same number of candidates a step. Each time is the median of interleaved runs in one process; the
potential is what all rows pay for the seeds, the mean over the runs. scikit-learn computes float32 data in float64
here, chunk by chunk. Compiling, once for each shape, is not counted.

Run: python benchmarks/seeding.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import kmeans_plusplus

from jaxgrad.clustering._distances import Rows
from jaxgrad.clustering._seeding import seed

BLOCK = 16384
# Rows, features, clusters.
SIZES = [(100_000, 64, 64), (50_000, 32, 128), (1_000_000, 16, 32), (20_000, 784, 256)]
METHODS = ["greedy-k-means++", "k-means++", "k-means||"]


def mixture(num_rows: int, dim: int, num_blobs: int) -> Any:
    """Draw rows around as many centres as there will be clusters, 3 standard deviations apart a feature."""
    random = np.random.default_rng(0)
    centres = 3 * random.standard_normal((num_blobs, dim))
    return (centres[random.integers(num_blobs, size=num_rows)] + random.standard_normal((num_rows, dim))).astype("f4")


def potential(x: Any, centroids: Any) -> float:
    """Sum what the rows pay, in double precision."""
    total = 0.0
    for points in np.array_split(np.asarray(x, np.float64), max(len(x) // 8192, 1)):
        squares = np.sum(points**2, axis=1)[:, None] + np.sum(centroids**2, axis=1) - 2 * points @ centroids.T
        total += float(np.sum(np.maximum(np.min(squares, axis=1), 0)))
    return total


def interleaved(runs: dict[str, Callable[[int], Any]], times: int) -> dict[str, tuple[float, list[Any]]]:
    """Return the median time of each in seconds, and its results."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, list[Any]] = {name: [] for name in runs}
    for i in range(times + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            result = jax.block_until_ready(run(i))
            if i:  # the first run compiles
                seconds[name].append(time.perf_counter() - begin)
                results[name].append(np.asarray(result, np.float64))
    return {name: (statistics.median(seconds[name]), results[name]) for name in runs}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller data, fewer runs")
    quick = parser.parse_args().quick
    print(f"{jax.default_backend()}, jax {jax.__version__}")
    for num_rows, dim, k in SIZES:
        num_rows, k = (num_rows // 10, k // 4) if quick else (num_rows, k)
        x = mixture(num_rows, dim, k)
        shift = x.mean(axis=0)
        rows = Rows(jnp.asarray(x), jnp.asarray(shift), jnp.asarray(0.25), jnp.ones(num_rows))

        def ours(method: str, rows: Rows = rows, k: int = k, shift: Any = shift) -> Callable[[int], Any]:
            """Return a run that gives centroids where the data is."""
            return lambda i: (
                seed(jax.random.key(i), rows, k, method=method, metric="euclidean", block=BLOCK) * 4 + shift
            )

        peer = lambda i, x=x, k=k: kmeans_plusplus(x, k, random_state=i)[0]  # noqa: E731
        runs = {"sklearn, greedy": peer} | {method: ours(method) for method in METHODS}
        found = interleaved(runs, 3 if quick else 5)
        print(f"\n{num_rows} x {dim}, {k} clusters")
        print(f"{'':18} {'ms':>8} {'sklearn ÷':>10} {'potential':>11}")
        for name, (seconds, centroids) in found.items():
            paid = statistics.fmean(potential(x, each) for each in centroids)
            print(f"{name:18} {1e3 * seconds:8.1f} {found['sklearn, greedy'][0] / seconds:10.1f} {paid:11.4g}")


if __name__ == "__main__":
    main()
