"""The tables of the HTML page: one row a block, one row a layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxgrad.diagnosis._charts import class_, escape
from jaxgrad.diagnosis._format import interval, log10_number, number, percent, shape, shared_affixes, times
from jaxgrad.diagnosis._series import blamed_blocks, blamed_layers, log_axis

if TYPE_CHECKING:
    from jaxgrad.diagnosis._report import BlockStatistics, LayerStatistics, Report


class _Column(NamedTuple):
    """A column of a table: its heading, its cell as HTML, whether text (left) or a number, what the heading means."""

    heading: str
    cell: Callable[..., str]
    text: bool = False
    meaning: str = ""


def block_table(report: Report) -> str:
    """The section with a row for each block, or nothing."""
    axis = log_axis([block.log10_input_signal for block in report.blocks])
    columns = [
        _Column("signal", lambda b: _bar(axis.fraction(b.log10_input_signal), b.log10_input_signal), True),
        _Column("log10", lambda b: log10_number(b.log10_input_signal), meaning="log10 of the signal at the input"),
        _Column("gain", lambda b: times(b.log10_gain), meaning="Signal at the input over signal at the output"),
        _Column("rms in", lambda b: number(b.input_rms)),
        _Column("rms out", lambda b: number(b.output_rms)),
    ]
    if any(block.log10_band is not None for block in report.blocks):
        meaning = "Where 95 % of the gains of random blocks of this width lie that keep the signal on average"
        columns.insert(
            3, _Column("healthy", lambda b: "–" if b.log10_band is None else interval(*b.log10_band), meaning=meaning)
        )
    if any(block.predicted_log10_gain is not None for block in report.blocks):
        meaning = "What mean-field theory predicts for the gain from the sizes of the weights"
        columns.insert(
            3,
            _Column(
                "theory",
                lambda b: "–" if b.predicted_log10_gain is None else times(b.predicted_log10_gain),
                meaning=meaning,
            ),
        )
    if any(block.spectrum is not None for block in report.blocks):
        columns += [
            _Column("σ max", lambda b: number(b.spectrum and b.spectrum.sigma_max), meaning="Largest singular value"),
            _Column("σ min", lambda b: number(b.spectrum and b.spectrum.sigma_min), meaning="Smallest"),
            _Column("mean σ²", lambda b: number(b.spectrum and b.spectrum.mean_square)),
            _Column("stable rank", lambda b: number(b.spectrum and b.spectrum.stable_rank)),
        ]
    columns.append(_Column("shape", lambda b: f"{shape(b.input_shape)} → {shape(b.output_shape)}", True))
    names = [block.name for block in report.blocks]
    table = _table("Blocks", names, report.blocks, columns, blamed_blocks(report))
    return f"<section><h2>Blocks</h2>{table}</section>" if table else ""


def layer_table(report: Report, *, heading: bool = True) -> str:
    """The table with a row for each layer, as a section or alone, or nothing."""
    columns = [
        _Column("activation", lambda a: escape(a.activation or "–"), True),
        _Column("mean", lambda a: number(a.activation_mean)),
        _Column("std", lambda a: number(a.activation_std)),
        _Column("saturated", lambda a: percent(a.saturated_fraction), meaning="Entries where the slope is small"),
        _Column("dead", lambda a: percent(a.dead_fraction), meaning="Units whose slope is 0 on every example"),
        _Column("‖w‖", lambda a: number(a.parameter_norm), meaning="Norm of the parameter"),
        _Column("‖∇w‖", lambda a: number(a.gradient_norm), meaning="Norm of the gradient"),
    ]
    if any(layer.update_ratio is not None for layer in report.layers):
        columns.append(_Column("‖Δw‖ / ‖w‖", lambda a: number(a.update_ratio), meaning="First update over parameter"))
    columns += [
        _Column("operation", lambda a: escape(a.operation), True),
        _Column("weight", lambda a: shape(a.weight_shape), True),
    ]
    names = [layer.name for layer in report.layers]
    blamed = {i for i, name in enumerate(names) if name in blamed_layers(report)}
    table = _table("Layers", names, report.layers, columns, blamed)
    return f"<section><h2>Layers</h2>{table}</section>" if table and heading else table


def _table(
    title: str,
    names: Sequence[str],
    rows: Sequence[LayerStatistics] | Sequence[BlockStatistics],
    columns: Sequence[_Column],
    blamed: set[int],
) -> str:
    if not rows:
        return ""
    head, tail = shared_affixes(names)
    headings = "".join(
        f'<th scope="col"{class_("text", when=column.text)} title="{column.meaning}">{column.heading}</th>'
        for column in columns
    )
    lines = []
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        own = escape(name[len(head) : len(name) - len(tail)])
        whole = f'<span class="soft">{escape(head)}</span>{own}<span class="soft">{escape(tail)}</span>'
        cells = "".join(f"<td{class_('text', when=column.text)}>{column.cell(row)}</td>" for column in columns)
        lines.append(f'<tr{class_("blamed", when=i in blamed)}><th scope="row"><code>{whole}</code></th>{cells}</tr>')
    return (
        f'<div class="scroll" role="region" aria-label="{title}" tabindex="0"><table><thead><tr>'
        f'<th scope="col" class="text">{title.lower()[:-1]}</th>{headings}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _bar(fraction: float, value: float) -> str:
    share = 0.0 if math.isnan(value) or value == -math.inf else 100 * fraction
    return f'<span class="bar"><i style="width:{share:.0f}%"></i></span>'
