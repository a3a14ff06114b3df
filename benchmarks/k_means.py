"""k-means against scikit-learn and faiss: Lloyd's iteration from the same centroids, and the default fit.

    python benchmarks/k_means.py [--quick] [--only NAME]

Each library has a process of its own, since thread pools in one process disturb each other, and the libraries take
turns. Times are medians; a ratio above 1 says that jaxgrad is that much faster. faiss needs `pip install faiss-cpu` and
is left out without it.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """Data and a task.

    Attributes:
      name: What it is called in the table.
      make: From a generator to rows, float32.
      num_clusters: k.
      max_steps: The most steps; reached where the case is about the cost of a step.
    """

    name: str
    make: Callable[[np.random.Generator], np.ndarray]
    num_clusters: int
    max_steps: int = 300


class Fitted(NamedTuple):
    """What a library reports.

    Attributes:
      seconds: Of the fit alone.
      inertia: Summed in float64, from the centroids.
      num_steps: As it counts them; 0 where it does not say.
    """

    seconds: float
    inertia: float
    num_steps: int


def mixture(n: int, d: int, k: int, spread: float) -> Callable[[np.random.Generator], np.ndarray]:
    """Spherical clusters of unit variance around normal centres."""

    def make(rng: np.random.Generator) -> np.ndarray:
        centres = spread * rng.standard_normal((k, d), np.float32)
        return centres[rng.integers(k, size=n)] + rng.standard_normal((n, d), np.float32)

    return make


def anisotropic(n: int, d: int, k: int) -> Callable[[np.random.Generator], np.ndarray]:
    """Clusters of unequal size, each stretched its own way, far from zero."""

    def make(rng: np.random.Generator) -> np.ndarray:
        which = rng.choice(k, size=n, p=rng.dirichlet(np.full(k, 2.0)))
        x = rng.standard_normal((n, d), np.float32)
        for j in range(k):
            shape = rng.standard_normal((d, d), np.float32) / np.sqrt(d)
            x[which == j] = x[which == j] @ shape + 3 * rng.standard_normal(d, np.float32) + 50
        return x

    return make


def curved(n: int, d: int) -> Callable[[np.random.Generator], np.ndarray]:
    """A surface of three dimensions folded into many, with noise: structure, but no clusters."""

    def make(rng: np.random.Generator) -> np.ndarray:
        inside = rng.uniform(-2, 2, (n, 3)).astype(np.float32)
        folded = np.sin(inside @ rng.standard_normal((3, d), np.float32))
        return folded + 0.1 * rng.standard_normal((n, d), np.float32)

    return make


def uniform(n: int, d: int) -> Callable[[np.random.Generator], np.ndarray]:
    """No structure at all."""
    return lambda rng: rng.random((n, d), np.float32)


CASES = [
    Case("mixture 100k x 64, k 64", mixture(100_000, 64, 64, 2.0), 64),
    Case("mixture 20k x 784, k 256", mixture(20_000, 784, 256, 0.25), 256),
    Case("uniform 50k x 32, k 128, 20 steps", uniform(50_000, 32), 128, 20),
    Case("mixture 1M x 16, k 32, 2 steps", mixture(1_000_000, 16, 32, 2.0), 32, 2),
    # Settings were chosen on those above; these were only ever measured.
    Case("mixture 200k x 32, k 100", mixture(200_000, 32, 100, 1.0), 100),
    Case("anisotropic 150k x 24, k 40", anisotropic(150_000, 24, 40), 40),
    Case("surface 60k x 128, k 200", curved(60_000, 128), 200),
    Case("uniform 100k x 8, k 50, 30 steps", uniform(100_000, 8), 50, 30),
    Case("mixture 400k x 48, k 20, 2 steps", mixture(400_000, 48, 20, 1.0), 20, 2),
]


def fit_jaxgrad(
    x: np.ndarray, k: int, start: np.ndarray | None, max_steps: int, seed: int
) -> tuple[float, np.ndarray, int]:
    """Fit with jaxgrad, compiled before the clock starts."""
    import jax

    from jaxgrad.clustering import k_means

    data = jax.device_put(x)
    options = {"max_steps": max_steps} | ({} if start is None else {"init": start})
    began = time.perf_counter()
    result = jax.block_until_ready(k_means(jax.random.key(seed), data, k, **options))
    return time.perf_counter() - began, np.asarray(result.centroids), int(result.num_steps)


def fit_sklearn(algorithm: str):
    """Fit with scikit-learn."""

    def fit(
        x: np.ndarray, k: int, start: np.ndarray | None, max_steps: int, seed: int
    ) -> tuple[float, np.ndarray, int]:
        from sklearn.cluster import KMeans

        init = "k-means++" if start is None else start
        model = KMeans(k, init=init, n_init=1, max_iter=max_steps, algorithm=algorithm, random_state=seed)
        began = time.perf_counter()
        model.fit(x)
        return time.perf_counter() - began, model.cluster_centers_, model.n_iter_

    return fit


def fit_faiss(
    x: np.ndarray, k: int, start: np.ndarray | None, max_steps: int, seed: int
) -> tuple[float, np.ndarray, int]:
    """Fit with faiss, which has no tolerance: it is given the number of steps that the others took."""
    import faiss

    model = faiss.Kmeans(x.shape[1], k, niter=max_steps, max_points_per_centroid=len(x), seed=seed)
    began = time.perf_counter()
    model.train(x, init_centroids=start)
    return time.perf_counter() - began, model.centroids, max_steps


FITS = {
    "jaxgrad": fit_jaxgrad,
    "sklearn lloyd": fit_sklearn("lloyd"),
    "sklearn elkan": fit_sklearn("elkan"),
    "faiss": fit_faiss,
}


def serve(library: str, link: Connection) -> None:
    """Fit what is asked for, until nothing is."""
    x, case = np.empty((0, 0)), CASES[0]
    while (job := link.recv()) is not None:
        if job[0] == "load":
            case = CASES[job[1]]
            x = case.make(np.random.default_rng(job[2]))
            link.send(True)
            continue
        start, max_steps, seed = job[1:]
        seconds, centroids, num_steps = FITS[library](x, case.num_clusters, start, max_steps, seed)
        link.send(Fitted(seconds, inertia(x, centroids), num_steps))


def inertia(x: np.ndarray, centroids: np.ndarray) -> float:
    """Sum the squared distances to the nearest centroid in float64, a block of rows at a time."""
    middle = centroids.mean(axis=0, dtype=np.float64)
    c = centroids - middle
    total = 0.0
    for block in np.array_split(x, max(len(x) // 20_000, 1)):
        p = block - middle
        total += (((p**2).sum(1)[:, None] - 2 * p @ c.T + (c**2).sum(1)).min(axis=1)).sum()
    return total


def ask(link: Connection, *job) -> Fitted:
    """Send a job and wait."""
    link.send(job)
    return link.recv()


def compare(links: dict[str, Connection], jobs: list[tuple]) -> dict[str, list[Fitted]]:
    """Let the libraries take turns; the first turn, which compiles and fills caches, does not count."""
    fits: dict[str, list[Fitted]] = {library: [] for library in links}
    for turn, job in enumerate(jobs):
        for library, link in links.items():
            fitted = ask(link, "fit", *job)
            if turn:
                fits[library].append(fitted)
    return fits


def report(task: str, fits: dict[str, list[Fitted]]) -> None:
    """Print a line a library."""
    ours = statistics.median(fit.seconds for fit in fits["jaxgrad"])
    for library, each in fits.items():
        seconds = statistics.median(fit.seconds for fit in each)
        cost = statistics.median(fit.inertia for fit in each)
        relative = cost / statistics.median(fit.inertia for fit in fits["jaxgrad"])
        steps = int(statistics.median(fit.num_steps for fit in each))
        timing = f"{1e3 * seconds:9.1f} ms  ratio {seconds / ours:5.2f}"
        print(f"  {task:8} {library:14} {timing}  {steps:4} steps  inertia {relative:.6f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the two smallest cases, three turns")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()

    libraries = [name for name in FITS if name != "faiss" or importlib.util.find_spec("faiss")]
    context = multiprocessing.get_context("spawn")
    links, workers = {}, []
    for library in libraries:
        links[library], theirs = context.Pipe()
        workers.append(context.Process(target=serve, args=(library, theirs), daemon=True))
        workers[-1].start()

    chosen = [i for i, case in enumerate(CASES) if arguments.only in case.name]
    chosen = chosen[2:3] + chosen[5:6] if arguments.quick else chosen
    repeats = 3 if arguments.quick else arguments.repeats
    for index in chosen:
        case = CASES[index]
        print(case.name, flush=True)
        for link in links.values():
            ask(link, "load", index, 7)
        rng = np.random.default_rng(11)
        x = case.make(np.random.default_rng(7))
        start = x[rng.choice(len(x), case.num_clusters, replace=False)]
        del x
        steps = ask(links["jaxgrad"], "fit", start, case.max_steps, 0).num_steps
        faiss = {"faiss": links["faiss"]} if "faiss" in links else {}
        same = {name: link for name, link in links.items() if name != "faiss"}
        fits = compare(same, [(start, case.max_steps, 0)] * (repeats + 1))
        fits |= compare(faiss, [(start, steps, 0)] * (repeats + 1))
        report("lloyd", fits)
        if case.max_steps == 300:
            same.pop("sklearn elkan")
            report("default", compare(same, [(None, case.max_steps, seed) for seed in range(repeats + 1)]))
    for link in links.values():
        link.send(None)
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
