"""A report as one HTML page, and as a fragment for a notebook."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxgrad.diagnosis._charts import (
    depth_chart,
    escape,
    histogram_chart,
    remedy_axis,
    remedy_chart,
    spectrum_chart,
)
from jaxgrad.diagnosis._format import (
    log10_number,
    number,
    outcome,
    percent,
    place_of_nonfinite,
    shape,
    shared_affixes,
    times,
)
from jaxgrad.diagnosis._series import (
    blamed_blocks,
    blamed_layers,
    forward_curves,
    histogram_layers,
    log_axis,
    marks,
    signal_curves,
    spectrum_bands,
)
from jaxgrad.diagnosis._style import style_sheet

if TYPE_CHECKING:
    from jaxgrad.diagnosis._report import BlockStatistics, LayerStatistics, Report

_MOST_HISTOGRAMS = 36


class _Column(NamedTuple):
    """A column of a table: its heading, its cell as HTML, whether text (left) or a number, what the heading means."""

    heading: str
    cell: Callable[..., str]
    text: bool = False
    meaning: str = ""


def document(report: Report) -> str:
    """Write the whole page.

    Args:
      report: What to show.

    Returns:
      An HTML document that needs nothing but itself; its own policy forbids it to load or run anything.
    """
    parts = (
        _header(report),
        _findings(report),
        _remedies(report),
        _pictures(report),
        _histograms(report),
        _block_table(report),
        _layer_table(report),
        _notes(report),
        _footer(report),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(report.verdict)} · jaxgrad report</title>\n"
        f"<style>\nhtml, body {{ margin: 0; }}\n{style_sheet(report.verdict)}</style>\n</head>\n"
        f'<body class="jaxgrad v-{escape(report.verdict)}">\n<main>\n'
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def fragment(report: Report) -> str:
    """Write what a notebook shows: the verdict, what to do, the signal, and the layers folded away.

    Args:
      report: What to show.

    Returns:
      One ``<div>`` with its own style sheet, which touches nothing outside it.
    """
    pictures = f'<div class="pictures">{_signal_figure(report)}</div>' if report.blocks else ""
    table = _layer_table(report, heading=False)
    layers = f"<details><summary>Layers ({len(report.layers)})</summary>{table}</details>" if table else ""
    return (
        f'<div class="jaxgrad note v-{escape(report.verdict)}"><style>{style_sheet(report.verdict)}</style>'
        + _header(report, facts=False)
        + _findings(report)
        + _remedies(report)
        + ("<h2>Backward signal</h2>" + pictures if pictures else "")
        + layers
        + "</div>"
    )


def _header(report: Report, *, facts: bool = True) -> str:
    values = [
        ("Total gain", times(report.log10_total_gain)) if report.blocks else ("Blocks", "0"),
        ("Loss", number(report.loss, 4)),
        ("Layers", f"{len(report.layers):,}"),
        ("Blocks", f"{len(report.blocks):,}"),
        ("Parameters", f"{report.num_parameters:,}"),
        ("Examples", f"{report.num_examples:,}" + (" (mixed)" if report.mixes_examples else "")),
        ("Level", report.level),
    ]
    items = "".join(
        f"<div{_class('main', when=i == 0)}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for i, (name, value) in enumerate(dict(values).items())
    )
    made = report.nonfinite
    return (
        f'<header><div class="top"><span class="badge">{escape(report.verdict)}</span>'
        '<span class="soft small">jaxgrad report</span></div>'
        f"<h1>{escape(report.summary)}</h1>"
        + (f'<p class="soft">First NaN or infinity: {escape(place_of_nonfinite(made))}.</p>' if made else "")
        + (f'<dl class="facts">{items}</dl>' if facts else "")
        + "</header>"
    )


def _findings(report: Report) -> str:
    cards = []
    for finding in report.findings:
        place = "the whole network" if finding.layer is None else f"<code>{escape(finding.layer)}</code>"
        share = min(max(finding.confidence, 0.0), 1.0) if math.isfinite(finding.confidence) else 0.0
        cards.append(
            f'<li class="card finding"><h3><em>{escape(finding.symptom)}</em> <span>{place}</span></h3>'
            f"<p>{escape(finding.evidence)}</p>"
            f'<div class="foot"><span>cause: <code>{escape(finding.cause)}</code></span>'
            f'<span><span class="meter"><i style="width:{100 * share:.0f}%"></i></span>'
            f"{percent(finding.confidence)} confident</span></div></li>"
        )
    return f'<section><h2>Findings</h2><ol class="cards">{"".join(cards)}</ol></section>' if cards else ""


def _remedies(report: Report) -> str:
    axis = remedy_axis(report.remedies)
    rows = [
        f"<li{_class('yes', when=remedy.verified)}>"
        f'<span class="mark" aria-hidden="true">{"✓" if remedy.verified else "✗"}</span>'
        f'<div class="change"><b>{escape(remedy.change)}</b> <code class="soft">{escape(remedy.kind)}</code>'
        f'<div class="outcome">{outcome(remedy)}</div></div>'
        f'<div class="gains">{times(remedy.before)} → <b>{times(remedy.after)}</b>'
        f"{remedy_chart(remedy, axis)}</div></li>"
        for remedy in report.remedies
    ]
    if not rows:
        return ""
    return (
        '<section><h2>Remedies tried <span class="soft small">total gain before → after, measured on this network '
        f'and batch; the dashed line is ×1</span></h2><ol class="card remedies">{"".join(rows)}</ol></section>'
    )


def _signal_figure(report: Report) -> str:
    curves = signal_curves(report)
    axis = log_axis([value for curve in curves for value in curve.values])
    title = f"Backward signal against depth; total gain {times(report.log10_total_gain)}"
    return (
        '<figure class="card chart wide"><figcaption><h3>Backward signal</h3>'
        "<p>Root mean square of the loss's gradient at each block boundary, scaled to norm 1 at the output. "
        "Backpropagation runs from right to left; flat is healthy.</p></figcaption>"
        f"{depth_chart(curves, axis, report.blocks, marks(report), title)}</figure>"
    )


def _pictures(report: Report) -> str:
    if not report.blocks:
        return ""
    curves = forward_curves(report)
    axis = log_axis([value for curve in curves for value in curve.values])
    forward = (
        '<figure class="card chart"><figcaption><h3>Forward activations</h3>'
        "<p>Root mean square of the activation at each block boundary.</p></figcaption>"
        f"{depth_chart(curves, axis, report.blocks, marks(report), 'Activation size against depth')}</figure>"
    )
    bands = spectrum_bands(report)
    if bands:
        seen = [x for band in bands for x in (*(band.quantiles or ()), band.sigma_max)]
        explanation = (
            "Singular values of each block's Jacobian: all of them, the middle half, the median. Near 1 is healthy."
            if any(band.quantiles for band in bands)
            else "Largest singular value of each block's Jacobian. Near 1 is healthy."
        )
        picture = spectrum_chart(bands, log_axis(seen), report.blocks, marks(report), "Singular values of each block")
    else:
        explanation = f"Singular values were not measured at level “{escape(report.level)}”."
        picture = ""
    spectra = (
        f'<figure class="card chart"><figcaption><h3>Jacobian spectra</h3><p>{explanation}</p></figcaption>'
        f"{picture}</figure>"
    )
    figures = f"{_signal_figure(report)}{forward}{spectra}"
    return f'<section><h2>Across the network</h2><div class="pictures">{figures}</div></section>'


def _histograms(report: Report) -> str:
    drawn = histogram_layers(report, _MOST_HISTOGRAMS)
    if not drawn:
        return ""
    head, tail = shared_affixes([layer.name for layer, _ in drawn])
    total = sum(layer.histogram is not None for layer in report.layers)
    some = f' <span class="soft small">{len(drawn)} of {total} layers</span>' if total > len(drawn) else ""
    figures = "".join(histogram_chart(layer, histogram, head, tail) for layer, histogram in drawn)
    return f'<section><h2>Activations{some}</h2><div class="card histograms">{figures}</div></section>'


def _block_table(report: Report) -> str:
    axis = log_axis([block.log10_input_signal for block in report.blocks])
    columns = [
        _Column("signal", lambda b: _bar(axis.fraction(b.log10_input_signal), b.log10_input_signal), True),
        _Column("log10", lambda b: log10_number(b.log10_input_signal), meaning="log10 of the signal at the input"),
        _Column("gain", lambda b: times(b.log10_gain), meaning="Signal at the input over signal at the output"),
        _Column("rms in", lambda b: number(b.input_rms)),
        _Column("rms out", lambda b: number(b.output_rms)),
    ]
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


def _layer_table(report: Report, *, heading: bool = True) -> str:
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
        f'<th scope="col"{_class("text", when=column.text)} title="{column.meaning}">{column.heading}</th>'
        for column in columns
    )
    lines = []
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        own = escape(name[len(head) : len(name) - len(tail)])
        whole = f'<span class="soft">{escape(head)}</span>{own}<span class="soft">{escape(tail)}</span>'
        cells = "".join(f"<td{_class('text', when=column.text)}>{column.cell(row)}</td>" for column in columns)
        lines.append(f'<tr{_class("blamed", when=i in blamed)}><th scope="row"><code>{whole}</code></th>{cells}</tr>')
    return (
        f'<div class="scroll" role="region" aria-label="{title}" tabindex="0"><table><thead><tr>'
        f'<th scope="col" class="text">{title.lower()[:-1]}</th>{headings}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _class(name: str, *, when: bool) -> str:
    return f' class="{name}"' if when else ""


def _bar(fraction: float, value: float) -> str:
    share = 0.0 if math.isnan(value) or value == -math.inf else 100 * fraction
    return f'<span class="bar"><i style="width:{share:.0f}%"></i></span>'


def _notes(report: Report) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return f'<section><h2>Notes</h2><ul class="notes small">{notes}</ul></section>' if notes else ""


def _footer(report: Report) -> str:
    return f"<footer>{' · '.join(escape(f'{name} {version}') for name, version in report.versions)}</footer>"
