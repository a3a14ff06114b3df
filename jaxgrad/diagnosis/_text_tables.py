"""The tables of the terminal page: one row a block, one row a layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxgrad.diagnosis._format import elide, interval, log10_number, number, percent, printable, shared_affixes, times
from jaxgrad.diagnosis._series import blamed_blocks, blamed_layers, fold, log_axis, signal_curves
from jaxgrad.diagnosis._text_bars import bar_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from jaxgrad.diagnosis._report import BlockStatistics, LayerStatistics, Report

_MOST_ROWS = 20
# A window that leaves less than this for the names shows fewer columns.
_LEAST_NAME, _SHORT_NAME = 12, 16


class _Column(NamedTuple):
    """A column of a table: its heading, what it shows of a row, and whether text (left) or a number (right).

    Where the window is too narrow for all of them, those of the least rank are left out.
    """

    heading: str
    cell: Callable[..., str]
    left: bool = False
    style: str = ""
    rank: int = 1


def block_table(report: Report, width: int, style: str) -> RenderableType:
    """The blocks with the backward signal at their inputs.

    Args:
      report: A report with at least one block.
      width: Columns to fill.
      style: Style of the bars and of the rows to blame.

    Returns:
      A table for rich, folded where it is long.
    """
    curves = signal_curves(report)
    axis = log_axis([value for curve in curves for value in curve.values])
    names = [printable(block.name) for block in report.blocks]
    bar = 12 if width < 110 else 20
    columns = [
        _Column("signal".ljust(bar), lambda b: bar_of(b.log10_input_signal, axis, bar), True, style, rank=4),
        _Column("log10", lambda b: log10_number(b.log10_input_signal), rank=3),
        _Column("gain", lambda b: times(b.log10_gain), rank=5),
        _Column("healthy", lambda b: "–" if b.log10_band is None else interval(*b.log10_band), rank=0),
        _Column("theory", lambda b: "–" if b.predicted_log10_gain is None else times(b.predicted_log10_gain), rank=2),
        _Column("rms out", lambda b: number(b.output_rms)),
        _Column("σ max", lambda b: number(b.spectrum and b.spectrum.sigma_max)),
    ]
    # What was measured for no block has no column.
    measured = {
        "healthy": any(block.log10_band is not None for block in report.blocks),
        "theory": any(block.predicted_log10_gain is not None for block in report.blocks),
        "σ max": any(block.spectrum is not None for block in report.blocks),
    }
    columns = [column for column in columns if measured.get(column.heading, True)]
    return _table("block", names, report.blocks, columns, width, blamed_blocks(report), style)


def layer_table(report: Report, width: int, style: str) -> RenderableType:
    """The layers with their activations and gradients.

    Args:
      report: A report with at least one layer.
      width: Columns to fill.
      style: Style of the rows to blame.

    Returns:
      A table for rich, folded where it is long.
    """
    columns = [
        _Column("activation", lambda layer: elide(printable(layer.activation or "–"), 12), True, rank=3),
        _Column("mean", lambda layer: number(layer.activation_mean, 2)),
        _Column("std", lambda layer: number(layer.activation_std, 2)),
        _Column("sat", lambda layer: percent(layer.saturated_fraction), rank=4),
        _Column("dead", lambda layer: percent(layer.dead_fraction), rank=4),
        _Column("‖grad‖", lambda layer: number(layer.gradient_norm, 2), rank=5),
    ]
    if any(layer.update_ratio is not None for layer in report.layers):
        columns.append(_Column("update", lambda layer: number(layer.update_ratio, 2), rank=2))
    names = [printable(layer.name) for layer in report.layers]
    blamed = {i for i, layer in enumerate(report.layers) if layer.name in blamed_layers(report)}
    return _table("layer", names, report.layers, columns, width, blamed, style)


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
    visible = [rows[i] for i in shown if isinstance(i, int)]
    longest = max(len(names[i]) - len(head) - len(tail) for i in shown if isinstance(i, int))
    sizes = {c.heading: max(len(c.heading), *(len(c.cell(row)) for row in visible)) for c in columns}
    columns = list(columns)

    def room() -> int:
        # Two columns between any two, two for the marker in front.
        return width - 3 - sum(sizes[column.heading] + 2 for column in columns)

    while len(columns) > 1 and room() < min(max(longest, _LEAST_NAME), _SHORT_NAME):
        columns.remove(min(reversed(columns), key=lambda column: column.rank))
    space = max(room(), _LEAST_NAME)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.header_style = "dim"
    table.border_style = "dim"
    heading = f"{head}…{tail}" if (head or tail) and len(head) + len(tail) < space else title
    table.add_column(Text("  " + heading), max_width=space + 2, no_wrap=True)
    for column in columns:
        justify = "left" if column.left else "right"
        table.add_column(column.heading, width=sizes[column.heading], justify=justify, no_wrap=True, style=column.style)
    for i in shown:
        if isinstance(i, range):
            table.add_row(Text(f"  … {len(i)} more", "dim"))
            continue
        name = elide(names[i][len(head) : len(names[i]) - len(tail)], space)
        cells = [Text(column.cell(rows[i])) for column in columns]
        marker = "▸ " if i in blamed else "  "
        table.add_row(Text(marker + name, f"bold {style}" if i in blamed else ""), *cells)
    return table
