"""The terminal page of a report: what is wrong and what helps first, the tables that show it after."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jaxgrad.diagnosis._format import (
    advise,
    count,
    elide,
    has_gains,
    likelihood,
    number,
    outcome,
    percent,
    place_of_nonfinite,
    printable,
    shared_affixes,
    signed,
    times,
    words_and_code,
)
from jaxgrad.diagnosis._series import log_axis, signal_curves, training
from jaxgrad.diagnosis._text_bars import sparkline, two_sided_bar
from jaxgrad.diagnosis._text_tables import block_table, layer_table
from jaxgrad.diagnosis._waterfall import sum_by_source, waterfall, words_at_end

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from jaxgrad.diagnosis._report import Finding, Remedy, Report

_CODE = "cyan"
_STYLES = {
    "healthy": "green",
    "vanishing": "cyan",
    "exploding": "red",
    "nonfinite": "magenta",
    "dead": "yellow",
    "ill-conditioned": "yellow",
}


def to_text(report: Report, width: int | None = None) -> str:
    """Write the terminal page without colour.

    Args:
      report: What to show.
      width: Columns to fill; by default those of the terminal, between 60 and 120, or 80 where there is none.

    Returns:
      Lines without trailing spaces.
    """
    from rich.console import Console

    if width is None:
        width = min(max(shutil.get_terminal_size((80, 24)).columns, 60), 120)
    buffer = io.StringIO()
    console = Console(file=buffer, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    for part in page(report, width):
        console.print(part, highlight=False, emoji=False, markup=False)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())


def page(report: Report, width: int) -> Iterator[RenderableType]:
    """Compose the terminal page for rich.

    Args:
      report: What to show.
      width: Columns to fill.

    Yields:
      The parts, from the verdict to the versions.
    """
    from rich.text import Text

    style = _STYLES[report.verdict]
    yield Text.assemble(
        (f" {report.verdict.upper()} ", f"bold reverse {style}"), " ", (printable(report.summary), "bold")
    )
    if report.nonfinite is not None:
        yield Text.assemble(("First NaN or infinity: ", "bold"), printable(place_of_nonfinite(report.nonfinite)))
    # What is wrong and what to do come first, so that they are on the screen whatever follows.
    yield from _findings("Cause", report, report.findings[:1], style)
    advice = advise(report.remedies)
    if advice.best is not None:
        explanation = "measured on this network and batch"
        yield from _heading("What to do" if advice.best.verified else "What helps most", explanation)
        yield from _remedy(advice.best, width)
    yield from _findings("Also found", report, report.findings[1:], style)
    if advice.others:
        yield from _heading("Other remedies")
        for remedy in advice.others:
            yield from _remedy(remedy, width)
    for title, remedies, mark in (
        ("Helped, but not enough", advice.partial, "~"),
        ("Tried, not helpful", advice.useless, "✗"),
    ):
        if remedies:
            yield from _heading(title)
            yield from (_short_remedy(remedy, mark) for remedy in remedies)
    if report.findings or report.remedies:
        yield Text()
    yield from _facts(report, width, style)
    yield from _blame(report, width, style)
    if report.blocks:
        yield from _heading("Backward signal", "at the input of each block; the loss is below the last")
        yield block_table(report, width, style)
    if report.layers:
        yield from _heading("Layers", "sat: entries where the slope is small; dead: units with slope 0")
        yield layer_table(report, width, style)
    if report.notes:
        yield from _heading("Notes")
        for note in report.notes:
            yield _indented(Text(printable(note)), 2, "•")
    yield Text()
    yield Text(" · ".join(printable(f"{name} {version}") for name, version in report.versions), "dim")


def _heading(title: str, explanation: str = "") -> Iterator[Text]:
    from rich.text import Text

    yield Text()
    yield Text.assemble((title, "bold underline"), "  " if explanation else "", (explanation, "dim"))


def _indented(text: Text, columns: int, bullet: str = "") -> RenderableType:
    from rich.table import Table

    # A grid gives the hanging indent that wrapped lines need.
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=columns + len(bullet) - 1)
    grid.add_column(overflow="fold")
    grid.add_row(bullet.rjust(columns + len(bullet) - 1), text)
    return grid


def _facts(report: Report, width: int, style: str) -> Iterator[RenderableType]:
    from rich.text import Text

    curves = signal_curves(report)
    values = [value for curve in curves for value in curve.values]
    finite = [value for value in values if math.isfinite(value)]
    if finite and len(values) > 4:
        line = sparkline(values, log_axis(values), min(width - 40, 60))
        yield Text.assemble("backward signal, input → output  ", (line, style), no_wrap=True, overflow="ellipsis")
    facts = [
        f"total gain {times(report.log10_total_gain)}" if report.blocks else "",
        f"loss {number(report.loss, 4)}",
        f"{count(len(report.layers), 'layer')} in {count(len(report.blocks), 'block')}",
        count(report.num_parameters, "parameter"),
        count(report.num_examples, "example"),
        "examples mix" if report.mixes_examples else "",
        f"level {report.level}",
    ]
    yield Text(_joined([fact for fact in facts if fact], width), "dim")


def _joined(words: Sequence[str], width: int) -> str:
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} · {word}" if lines[-1] else word
        if len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _findings(title: str, report: Report, findings: Sequence[Finding], style: str) -> Iterator[RenderableType]:
    from rich.text import Text

    if findings:
        yield from _heading(title)
    for finding in findings:
        place = "the whole network" if finding.layer is None else printable(finding.layer)
        share = f"{percent(finding.share)} of it, " if finding.share is not None else ""
        symptom = f"{printable(finding.symptom)}: " if finding.symptom != report.verdict else ""
        line = Text.assemble(
            (symptom, style),
            (printable(finding.cause), f"bold {style}"),
            " in ",
            (place, "bold"),
            (f"  ({share}{likelihood(finding.confidence)})", "dim"),
        )
        yield _indented(line, 2, "•")
        yield _indented(Text(printable(finding.evidence)), 3)


def _remedy(remedy: Remedy, width: int) -> Iterator[RenderableType]:
    from rich.text import Text

    good = remedy.verified and remedy.confirmed is not False
    mark, style = ("✓", "green") if good else ("~", "dim")
    change = words_and_code(remedy.change)
    words = Text.assemble(*((printable(piece), _CODE if code else "bold") for piece, code in change.words))
    yield _indented(words, 2, mark)
    for line in change.lines:
        yield _indented(Text(printable(line), _CODE), 5)
    gains = f"total gain {times(remedy.before)} → {times(remedy.after)}   " if has_gains(remedy) else ""
    yield _indented(Text.assemble(gains, (outcome(remedy), style)), 3)
    yield from _losses(remedy, width)


def _losses(remedy: Remedy, width: int) -> Iterator[RenderableType]:
    from rich.text import Text

    runs = training(remedy)
    if runs is None:
        return
    room = max(min(width - 44, 40), 8)
    for name, losses, heights in (
        ("loss as it is", remedy.losses_before, runs.before),
        ("loss with the change", remedy.losses_after, runs.after),
    ):
        if not losses:
            continue
        lost = len(heights) < len(losses)
        # Both runs on one scale of steps, so that one that ends early looks like it.
        columns = max(round(room * len(heights) / runs.num_steps), 1) if runs.num_steps > room else len(heights)
        line = sparkline(heights, runs.axis, min(columns, len(heights))) if heights else ""
        end = f"{number(losses[len(heights)])} at step {len(heights)}" if lost else number(losses[-1])
        words = f"{line}{'✗' if lost else ''}  {number(losses[0])} → {end}"
        yield _indented(Text.assemble((name.ljust(22), "dim"), words, no_wrap=True, overflow="ellipsis"), 5)


def _short_remedy(remedy: Remedy, mark: str) -> RenderableType:
    from rich.text import Text

    gain = f"  {times(remedy.after)}" if has_gains(remedy) else ""
    words = printable(words_and_code(remedy.change).sentence())
    return Text.assemble(f" {mark} ", words, (gain, "dim"), no_wrap=True, overflow="ellipsis")


def _blame(report: Report, width: int, style: str) -> Iterator[RenderableType]:
    from rich.text import Text

    fall = waterfall(report)
    if fall is None:
        return
    chains = f"; the most extreme of {fall.num_chains} chains" if fall.num_chains > 1 else ""
    yield from _heading("What moves the signal", f"powers of ten, from the loss to the input{chains}")
    shown = list(zip(fall.sources, fall.totals, strict=True))
    if max(abs(gain) for _, gain in (*shown, ("", fall.total))) < 1:
        yield Text(f"  {sum_by_source(fall)}")
        return
    head, tail = shared_affixes([block.name for block in report.blocks])
    single = []
    for block, source, gain in fall.largest:
        name = report.blocks[block].name
        single.append((f"{printable(name[len(head) : len(name) - len(tail)])}: {source}", gain))
    finite = [gain for _, gain in (*shown, *single, ("", fall.total)) if math.isfinite(gain)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    # Less than a power of ten must not look like much; what has no end needs room for its arrow.
    low, high = min(low, 0.0 if high > 1 else -1.0), max(high, 0.0 if low < -1 else 1.0)
    low = min(low, -1.0) if any(gain == -math.inf for _, gain in (*shown, *single)) else low
    room = max(min(width - 40, 48), 16)
    names = min(max(len(name) for name, _ in (*shown, *single, ("total", 0.0))), width - room - 12)

    def row(name: str, gain: float, kind: str) -> Text:
        bar = two_sided_bar(gain, low, high, room)
        words = f"  {elide(name, names).ljust(names)} {signed(gain).rjust(6)}  "
        return Text.assemble((words, kind), (bar.rstrip(), style if kind != "dim" else "dim"), no_wrap=True)

    for name, gain in shown:
        yield row(name, gain, "")
    yield row("total", fall.total, "bold")
    for name, gain in single:
        yield row(name, gain, "dim")
    if fall.end is not None:
        yield Text(f"  {words_at_end(fall)} in {printable(report.blocks[fall.stretches[fall.end].first].name)}", style)
