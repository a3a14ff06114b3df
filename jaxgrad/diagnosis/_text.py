"""The terminal page of a report: what is wrong and what helps first, the tables that show it after."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxgrad.diagnosis._format import (
    count,
    elide,
    log10_number,
    number,
    outcome,
    percent,
    place_of_nonfinite,
    printable,
    shared_affixes,
    times,
)
from jaxgrad.diagnosis._series import Axis, blamed_blocks, blamed_layers, fold, log_axis, signal_curves

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from jaxgrad.diagnosis._report import BlockStatistics, LayerStatistics, Report

_STYLES = {
    "healthy": "green",
    "vanishing": "cyan",
    "exploding": "red",
    "nonfinite": "magenta",
    "dead": "yellow",
    "ill-conditioned": "yellow",
}
_EIGHTHS = " ▏▎▍▌▋▊▉"
_LEVELS = "▁▂▃▄▅▆▇█"
_MOST_ROWS = 20


class _Column(NamedTuple):
    """A column of a table: its heading, what it shows of a row, and whether text (left) or a number (right)."""

    heading: str
    cell: Callable[..., str]
    left: bool = False
    style: str = ""


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
    yield Text()
    yield from _facts(report, width, style)
    yield from _findings(report, style)
    yield from _remedies(report)
    yield from _blocks(report, width, style)
    yield from _layers(report, width, style)
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
    if report.nonfinite is not None:
        yield Text()
        yield Text.assemble(("First NaN or infinity: ", "bold"), printable(place_of_nonfinite(report.nonfinite)))


def _joined(words: Sequence[str], width: int) -> str:
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} · {word}" if lines[-1] else word
        if len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _findings(report: Report, style: str) -> Iterator[RenderableType]:
    from rich.text import Text

    if not report.findings:
        return
    yield from _heading("Findings")
    for i, finding in enumerate(report.findings, 1):
        place = "the whole network" if finding.layer is None else printable(finding.layer)
        line = Text.assemble(
            (printable(finding.symptom), f"bold {style}"),
            " in ",
            (place, "bold"),
            ", cause ",
            (printable(finding.cause), "bold"),
            (f"  ({percent(finding.confidence)} confident)", "dim"),
        )
        yield _indented(line, 2, f"{i}.")
        yield _indented(Text(printable(finding.evidence)), 4)


def _remedies(report: Report) -> Iterator[RenderableType]:
    from rich.text import Text

    if not report.remedies:
        return
    yield from _heading("Remedies tried", "total gain before → after, measured on this network and batch")
    for remedy in report.remedies:
        mark, style = ("✓", "green") if remedy.verified else ("✗", "dim")
        yield _indented(
            Text.assemble((printable(remedy.change), "bold"), (f"  [{printable(remedy.kind)}]", "dim")), 2, mark
        )
        gains = f"{times(remedy.before)} → {times(remedy.after)}"
        yield _indented(Text.assemble(gains, "   ", (outcome(remedy), style)), 3)


def _blocks(report: Report, width: int, style: str) -> Iterator[RenderableType]:
    if not report.blocks:
        return
    curves = signal_curves(report)
    axis = log_axis([value for curve in curves for value in curve.values])
    yield from _heading("Backward signal", "at the input of each block; the loss is below the last")
    names = [printable(block.name) for block in report.blocks]
    columns = [
        _Column("log10", lambda block: log10_number(block.log10_input_signal)),
        _Column("gain", lambda block: times(block.log10_gain)),
        _Column("rms out", lambda block: number(block.output_rms)),
    ]
    if any(block.predicted_log10_gain is not None for block in report.blocks):
        columns.insert(
            2,
            _Column(
                "theory", lambda block: "–" if block.predicted_log10_gain is None else times(block.predicted_log10_gain)
            ),
        )
    if any(block.spectrum is not None for block in report.blocks):
        columns.append(_Column("σ max", lambda block: number(block.spectrum and block.spectrum.sigma_max)))
    bar = 12 if width < 100 else 24
    columns.insert(0, _Column("signal".ljust(bar), lambda b: bar_of(b.log10_input_signal, axis, bar), True, style))
    yield _table("block", names, report.blocks, columns, width, blamed_blocks(report), style)


def _layers(report: Report, width: int, style: str) -> Iterator[RenderableType]:
    if not report.layers:
        return
    yield from _heading("Layers", "sat: entries where the slope is small; dead: units with slope 0")
    columns = [
        _Column("activation", lambda layer: elide(printable(layer.activation or "–"), 12), True),
        _Column("mean", lambda layer: number(layer.activation_mean, 2)),
        _Column("std", lambda layer: number(layer.activation_std, 2)),
        _Column("sat", lambda layer: percent(layer.saturated_fraction)),
        _Column("dead", lambda layer: percent(layer.dead_fraction)),
        _Column("‖grad‖", lambda layer: number(layer.gradient_norm, 2)),
    ]
    if any(layer.update_ratio is not None for layer in report.layers):
        columns.append(_Column("update", lambda layer: number(layer.update_ratio, 2)))
    names = [printable(layer.name) for layer in report.layers]
    blamed = {i for i, layer in enumerate(report.layers) if layer.name in blamed_layers(report)}
    yield _table("layer", names, report.layers, columns, width, blamed, style)


def _table(
    title: str,
    names: Sequence[str],
    rows: Sequence[LayerStatistics] | Sequence[BlockStatistics],
    columns: Sequence[_Column],
    width: int,
    blamed: set[int],
    style: str,
) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = fold(len(rows), _MOST_ROWS, blamed)
    head, tail = shared_affixes(names)
    cells = [[column.cell(row) for column in columns] for row in rows]
    visible = [cells[i] for i in shown if isinstance(i, int)]
    widths = [max(len(c.heading), *(len(row[k]) for row in visible)) for k, c in enumerate(columns)]
    # Two columns between any two, two for the marker in front.
    room = max(width - 2 - sum(widths) - 2 * len(columns) - 1, 12)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.header_style = "dim"
    table.border_style = "dim"
    heading = f"{head}…{tail}" if head or tail else title
    table.add_column(Text("  " + elide(heading, room)), max_width=room + 2, no_wrap=True)
    for column, size in zip(columns, widths, strict=True):
        table.add_column(
            column.heading, width=size, justify="left" if column.left else "right", no_wrap=True, style=column.style
        )
    for i in shown:
        if isinstance(i, range):
            table.add_row(Text(f"  … {len(i)} more", "dim"))
            continue
        name = elide(names[i][len(head) : len(names[i]) - len(tail)], room)
        marker = "▸ " if i in blamed else "  "
        table.add_row(Text(marker + name, f"bold {style}" if i in blamed else ""), *map(Text, cells[i]))
    return table


def bar_of(value: float, axis: Axis, width: int) -> str:
    """A bar for a log10; nothing for exactly 0 and for NaN, the least visible for the smallest."""
    if math.isnan(value) or value == -math.inf:
        return ""
    eighths = max(round(axis.fraction(value) * width * 8), 1)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def sparkline(values: Sequence[float], axis: Axis, width: int) -> str:
    """One character a value, or a sample of them where there are more than ``width``; a dot for 0 and for NaN."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    return "".join(
        "·"
        if math.isnan(value) or value == -math.inf
        else _LEVELS[min(int(axis.fraction(value) * len(_LEVELS)), len(_LEVELS) - 1)]
        for value in values
    )
