"""Whether the suite's programs earn their place: faulty ones train worse than their repaired twins, healthy ones train.

A faulty program and its twin have the same budget. In every seed the faulty one has to end with parameters or a loss
that are not finite, or with a score over ``1.25 × twin + 0.01``, while the twin has to stay finite. A healthy one has
to bring its loss under its share of the initial loss.

Run: python benchmarks/faults/truth.py --half first
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from programs import HALVES, Case, Program, load, train, training_step

NUM_SCORED = 8  # batches


class Outcome(NamedTuple):
    """What training came to in one seed."""

    start: float
    loss: float
    score: float
    finite: bool


def outcomes(make: Callable[[int], Case], steps: int, seeds: int) -> list[Outcome]:
    """Train once a seed; everything is compiled once, since the loss does not depend on the seed."""
    cases = [make(seed) for seed in range(seeds)]
    case = cases[0]
    step = training_step(case)

    @jax.jit
    def measure(before, after, key):
        batch = case.batches(key)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after)]).all()
        return jnp.stack([case.loss_fn(before, *batch), case.loss_fn(after, *batch), case.score(after, *batch), finite])

    found = []
    for seed, drawn in enumerate(cases):
        train_key, score_key = jax.random.split(jax.random.fold_in(jax.random.key(2), seed))
        after = train(case, drawn.params, train_key, steps, step)
        rows = [measure(drawn.params, after, key) for key in jax.random.split(score_key, NUM_SCORED)]
        start, loss, score, finite = np.mean(rows, axis=0).tolist()
        found.append(Outcome(start, loss, score, finite == 1 and np.isfinite(loss)))
    return found


def verdict(program: Program, seeds: int) -> tuple[bool, str]:
    """Return whether a program earns its place, with the figures."""
    found = outcomes(program.make, program.steps, seeds)
    if program.twin is None:
        shares = [outcome.loss / outcome.start for outcome in found]
        earned = all(outcome.finite for outcome in found) and max(shares) <= program.reach
        figures = f"loss share {_row(shares)} <= {program.reach:g}; score {_row([o.score for o in found])}"
        return earned, figures
    repaired = outcomes(program.twin, program.steps, seeds)
    worse = [
        good.finite and (not bad.finite or bad.score > 1.25 * good.score + 0.01)
        for bad, good in zip(found, repaired, strict=True)
    ]
    shown = [outcome.score if outcome.finite else np.nan for outcome in found]
    return all(worse), f"score {_row(shown)} against {_row([o.score for o in repaired])}"


def _row(values) -> str:
    return " ".join(f"{value:8.3g}" for value in values)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--half", choices=HALVES)
    parser.add_argument("--only", help="programs whose name holds this")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    failed = []
    for program in load(arguments.half):
        if (arguments.only or "") not in program.name:
            continue
        begin = time.perf_counter()
        earned, figures = verdict(program, arguments.seeds)
        if not earned:
            failed.append(program.name)
        cause = ", ".join(sorted(program.causes)) or "healthy"
        seconds = time.perf_counter() - begin
        print(f"{'ok  ' if earned else 'FAIL'} {program.name:32} {cause:40} {figures}  {seconds:.1f} s", flush=True)
    if failed:
        raise SystemExit(f"{len(failed)} do not earn their place: {', '.join(failed)}")


if __name__ == "__main__":
    main()
