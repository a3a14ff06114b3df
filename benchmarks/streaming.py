"""How k-means and PCA grow: rows a second and peak memory, in memory and a batch at a time.

    python benchmarks/streaming.py [--quick] [--only NAME] [--rows N]

Each line is a process of its own, since the peak of a process never falls. The first line is one that has only
imported and made a batch: what a line takes beyond it is its own. Streams make a batch at a time, 16 columns of normal
clusters, and the time of that is part of theirs; the line "batches alone" is nothing else. `--rows` sets the length of
the streams, 1e8 without it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

BATCH = 250_000
STEPS = 4


class Case(NamedTuple):
    """One line.

    Attributes:
      task: A key of ``TASKS``.
      num_rows: n.
      num_features: d.
      num_clusters: k.
    """

    task: str
    num_rows: int
    num_features: int = 16
    num_clusters: int = 32


class Measured(NamedTuple):
    """What a process reports.

    Attributes:
      seconds: Of the task, compiled before the clock starts.
      passes: How often every row was looked at.
      megabytes: The most memory the process ever had.
      note: What else is worth saying.
    """

    seconds: float
    passes: int
    megabytes: float
    note: str


def batches(case: Case) -> Iterator[np.ndarray]:
    """Rows around normal centres; the noise of a batch is a stretch of a table, which costs less than to draw it."""
    random = np.random.default_rng(7)
    centres = 3 * random.standard_normal((case.num_clusters, case.num_features), np.float32)
    table = random.standard_normal((2 * BATCH, case.num_features), np.float32)
    for start in range(0, case.num_rows, BATCH):
        random = np.random.default_rng((7, start))
        size = min(BATCH, case.num_rows - start)
        at = random.integers(BATCH)
        yield table[at : at + size] + centres[random.integers(case.num_clusters, size=size, dtype=np.int32)]


def first_rows(case: Case) -> np.ndarray:
    """The rows that every fit begins at."""
    return next(batches(case))[: case.num_clusters]


def nothing(case: Case) -> tuple[float, int, str]:
    """Import, and make a batch."""
    import jax

    import jaxgrad.clustering  # noqa: F401

    jax.block_until_ready(jax.device_put(next(batches(case))))
    return 0.0, 0, ""


def batches_alone(case: Case) -> tuple[float, int, str]:
    """Make the batches."""
    began = time.perf_counter()
    for _ in batches(case):
        pass
    return time.perf_counter() - began, 1, ""


def in_memory(case: Case) -> tuple[float, int, str]:
    """Fit rows that are all in memory, for a fixed number of steps and the last labelling."""
    import jax

    from jaxgrad.clustering import k_means

    rows = np.empty((case.num_rows, case.num_features), np.float32)
    for i, batch in enumerate(batches(case)):
        rows[i * BATCH : i * BATCH + len(batch)] = batch
    x = jax.device_put(rows)
    options = {"init": first_rows(case), "tol": 0}
    jax.block_until_ready(k_means(None, x, case.num_clusters, max_steps=STEPS, **options))
    began = time.perf_counter()
    result = jax.block_until_ready(k_means(None, x, case.num_clusters, max_steps=STEPS, **options))
    return (
        time.perf_counter() - began,
        int(result.num_steps) + 1,
        f"cost a row {float(result.inertia) / case.num_rows:.4f}",
    )


def passes(case: Case) -> tuple[float, int, str]:
    """Fit in passes, for a fixed number of steps; the first pass looks at the data and the last labels."""
    from jaxgrad.clustering import k_means_stream

    def fit(case: Case):
        options = {"init": first_rows(case), "tol": 0, "max_steps": STEPS}
        return k_means_stream(None, lambda: batches(case), case.num_clusters, **options)

    fit(case._replace(num_rows=2 * BATCH))
    began = time.perf_counter()
    result = fit(case)
    seconds = time.perf_counter() - began
    return seconds, int(result.num_steps) + 2, f"cost a row {float(result.inertia) / result.num_rows:.4f}"


def updates(case: Case) -> tuple[float, int, str]:
    """See every batch once."""
    import jax

    from jaxgrad.clustering import k_means_init, k_means_update

    start = k_means_init(None, next(batches(case)), case.num_clusters, init=first_rows(case))
    jax.block_until_ready(k_means_update(start, next(batches(case))))
    state = start
    began = time.perf_counter()
    for batch in batches(case):
        state = k_means_update(state, batch)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - began
    counted = np.sum(np.asarray(state.counts, np.float64) + np.asarray(state.memory.counts_left, np.float64))
    return seconds, 1, f"cost a row {float(state.cost):.4f}, rows counted {counted:.0f}"


def pca(case: Case) -> tuple[float, int, str]:
    """Take every batch into the state of a PCA, and decompose it."""
    import jax

    from jaxgrad.decomposition import pca_from_state, pca_init, pca_update

    first = pca_update(pca_init(case.num_features), next(batches(case)))
    jax.block_until_ready(pca_from_state(first, 4))
    state = pca_init(case.num_features)
    began = time.perf_counter()
    for batch in batches(case):
        state = pca_update(state, batch)
    result = jax.block_until_ready(pca_from_state(state, 4))
    seconds = time.perf_counter() - began
    counted = float(state.count) + float(state.remainders.count)
    return seconds, 1, f"largest variance {float(result.explained_variance[0]):.4f}, rows counted {counted:.0f}"


TASKS: dict[str, Callable[[Case], tuple[float, int, str]]] = {
    "nothing": nothing,
    "batches alone": batches_alone,
    "k_means": in_memory,
    "k_means_stream": passes,
    "k_means_update": updates,
    "pca_update": pca,
}


def measure(case: Case) -> Measured:
    """Run a case in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--case", json.dumps(case)], stdout=subprocess.PIPE, check=True)
    return Measured(*json.loads(done.stdout.splitlines()[-1]))


def cases(quick: bool, num_rows: int) -> list[Case]:
    """Growth in rows, clusters and columns, and the streams."""
    middle = 100_000 if quick else 1_000_000
    sizes = [10_000, 100_000] if quick else [10_000, 100_000, 1_000_000, 10_000_000]
    growth = [Case("k_means", n) for n in sizes]
    growth += [Case("k_means", middle, 16, k) for k in (64, 128)] + [Case("k_means", middle, d, 32) for d in (32, 64)]
    streams = ["batches alone", "k_means_stream", "k_means_update", "pca_update"]
    tenth = [Case(task, num_rows // 10) for task in streams[1:]]
    return [Case("nothing", BATCH), *growth, *tenth, *(Case(task, num_rows) for task in streams)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, streams of a million rows")
    parser.add_argument("--only", default="", help="tasks whose name contains this")
    parser.add_argument("--rows", type=lambda text: int(float(text)), help="how long the streams are")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case = Case(*json.loads(arguments.case))
        seconds, num_passes, note = TASKS[case.task](case)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(Measured(seconds, num_passes, peak, note)))
        return
    num_rows = arguments.rows or (1_000_000 if arguments.quick else 100_000_000)
    print(
        f"{'task':15} {'rows':>11} {'d':>4} {'k':>4} {'seconds':>9} {'passes':>6} {'rows/s a pass':>14} {'peak MB':>8}"
    )
    for case in cases(arguments.quick, num_rows):
        if arguments.only not in case.task:
            continue
        got = measure(case)
        rate = f"{case.num_rows * got.passes / got.seconds:14,.0f}" if got.seconds else " " * 14
        print(
            f"{case.task:15} {case.num_rows:11,} {case.num_features:4} {case.num_clusters:4} {got.seconds:9.3f} "
            f"{got.passes:6} {rate} {got.megabytes:8.0f}  {got.note}",
            flush=True,
        )


if __name__ == "__main__":
    main()
