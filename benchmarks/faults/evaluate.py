"""How often ``jaxgrad.explain`` is right on the fault suite, beside the rules that other tools have published.

Each program is explained once, with its own optimizer and a confirmation by training. Recall is the share of faulty
programs with a verdict other than healthy, a false positive a healthy one with such a verdict. A cause is right where
the first finding names one of those that the program's author accepts.

Run: python benchmarks/faults/evaluate.py --half second
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from programs import HALVES, Case, Program, load, training_step

import jaxgrad


class Row(NamedTuple):
    """What was said of one program.

    Attributes:
      name: The program's name.
      causes: The causes accepted; empty where it is healthy.
      verdict: The verdict given.
      found: The causes given, the first one first.
      summary: The verdict in a sentence.
      remedies: Kind, whether verified and whether confirmed of each remedy, the best first.
      blame_error: Largest difference between a block's gain, in log10, and the sum of its parts.
      seconds: How long the explanation took, compilation included.
    """

    name: str
    causes: tuple[str, ...]
    verdict: str
    found: tuple[str, ...]
    summary: str
    remedies: tuple[tuple[str, bool, bool | None], ...]
    blame_error: float
    seconds: float


def explain(case: Case, **options: Any) -> jaxgrad.diagnosis.Report:
    """Explain a case with its own optimizer."""
    options = {"optimizer": case.optimizer, "verbose": False} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jaxgrad.explain(case.loss_fn, case.params, *case.args, **options)


def evaluate(program: Program, seed: int, confirm_steps: int) -> Row:
    """Explain one program."""
    case = program.make(seed)
    begin = time.perf_counter()
    report = explain(case, confirm_steps=confirm_steps)
    return Row(
        program.name,
        tuple(sorted(program.causes)),
        report.verdict,
        tuple(finding.cause for finding in report.findings),
        report.summary,
        tuple((remedy.kind, remedy.verified, remedy.confirmed) for remedy in report.remedies),
        blame_error(report),
        time.perf_counter() - begin,
    )


def blame_error(report: jaxgrad.diagnosis.Report) -> float:
    """Return by how much a block's parts miss its gain at most, as measured apart from them at its two ends."""
    sums: dict[int, float] = defaultdict(float)
    for part in report.blame:
        sums[part.block] += part.log10_gain
    errors = []
    for before, block in zip((None, *report.blocks), report.blocks, strict=False):
        if before is not None and before.kind != block.kind:
            continue  # a loop's state may have several arrays, of which the shape names one
        sizes = [math.prod(shape) for shape in (block.input_shape, block.output_shape)]
        ends = block.log10_input_signal - block.log10_output_signal + 0.5 * math.log10(sizes[0] / sizes[1])
        if report.blame and math.isfinite(ends) and math.isfinite(sums[block.index]):
            errors.append(abs(sums[block.index] - ends))
    return max(errors, default=0.0)


def line(row: Row) -> str:
    """Write one program's row."""
    right = row.verdict == "healthy" if not row.causes else bool(row.found) and row.found[0] in row.causes
    mark = " " if right else "~" if row.causes and row.verdict != "healthy" else "!"
    best = f"{row.remedies[0][0]} {row.remedies[0][1:]}" if row.remedies else ""
    truth, said = "/".join(row.causes) or "healthy", ", ".join(row.found[:3]) or "healthy"
    return f"{mark} {row.name:44.44} {truth:34.34} {row.verdict:15} {said:44.44} {best:48} {row.seconds:5.1f} s"


def summary(rows: Sequence[Row]) -> str:
    """Write the shares over all programs."""
    faulty, healthy = [row for row in rows if row.causes], [row for row in rows if not row.causes]
    shares = {
        "recall": [row.verdict != "healthy" for row in faulty],
        "false positives": [row.verdict != "healthy" for row in healthy],
        "right cause first": [row.found[:1] != () and row.found[0] in row.causes for row in faulty],
        "first remedy confirmed": [bool(row.remedies) and row.remedies[0][2] is True for row in faulty],
    }
    lines = [
        f"{name:24} {sum(hits)}/{len(hits)} = {sum(hits) / max(len(hits), 1):.0%}" for name, hits in shares.items()
    ]
    error = max((row.blame_error for row in rows), default=0.0)
    return "\n".join([*lines, f"largest error of the blame's sum, log10: {error:.1e}"])


def cost(programs: Iterable[Program], seed: int) -> str:
    """Write how many training steps a warm explanation costs, without the confirmation."""
    ratios = []
    for program in programs:
        case = program.make(seed)
        step = training_step(case)
        state = case.optimizer.init(case.params)

        def train(case: Case = case, step: Any = step, state: Any = state) -> None:
            jax.block_until_ready(step(case.params, state, jax.random.key(0)))

        explain(case)
        times: dict[str, list[float]] = {"explain": [], "step": []}
        for _ in range(3):
            times["explain"].append(seconds(lambda case=case: explain(case)))
            times["step"] += [seconds(train) for _ in range(10)]
        ratios.append(statistics.median(times["explain"]) / statistics.median(times["step"]))
        print(
            f"{program.name:44.44} {1e3 * statistics.median(times['step']):8.2f} ms {ratios[-1]:8.0f} steps", flush=True
        )
    return f"explain with remedies, in training steps: median {statistics.median(ratios):.0f}, most {max(ratios):.0f}"


def seconds(run: Callable[[], object]) -> float:
    """Return how long one run takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def baselines(programs: Iterable[Program], seed: int) -> str:
    """Write what the published rules make of the same programs."""
    from baselines import RULES, gradients

    hits: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for program in programs:
        found = gradients(program.make(seed))
        for name, rule in RULES.items():
            hits[name].append((bool(program.causes), rule(found) != "healthy"))
    lines = []
    for name, pairs in hits.items():
        faulty = [said for is_faulty, said in pairs if is_faulty]
        healthy = [said for is_faulty, said in pairs if not is_faulty]
        share = f"{sum(faulty) / max(len(faulty), 1):.0%}, false positives {sum(healthy) / max(len(healthy), 1):.0%}"
        lines.append(f"{name:24} recall {share}")
    return "\n".join(lines)


def main() -> None:
    """Evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--half", choices=HALVES, help="which part of the suite; all by default")
    parser.add_argument("--only", default="", help="programs whose name holds this text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--confirm", type=int, default=60, help="steps of the confirmation")
    parser.add_argument("--cost", action="store_true", help="what a warm explanation costs, in training steps, instead")
    parser.add_argument("--baselines", action="store_true", help="the published rules instead")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th program, beginning with the i-th")
    parser.add_argument("--json", type=Path, help="file that the rows are appended to")
    options = parser.parse_args()
    index, count = map(int, options.part.split("/"))
    programs = [program for program in load(options.half) if options.only in program.name][index::count]
    if options.baselines:
        print(baselines(programs, options.seed))
        return
    if options.cost:
        print(cost(programs, options.seed))
        return
    rows = []
    for program in programs:
        rows.append(evaluate(program, options.seed, options.confirm))
        print(line(rows[-1]), flush=True)
        if options.json:
            with options.json.open("a") as file:
                file.write(json.dumps(rows[-1]._asdict()) + "\n")
    times = [row.seconds for row in rows]
    print(summary(rows), f"seconds: median {statistics.median(times):.1f}, most {max(times):.1f}", sep="\n")


if __name__ == "__main__":
    main()
