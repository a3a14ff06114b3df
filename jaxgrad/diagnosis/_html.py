"""A report as one HTML page, and as a fragment for a notebook."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxgrad.diagnosis._charts import (
    class_,
    depth_chart,
    escape,
    histogram_chart,
    remedy_axis,
    remedy_chart,
    spectrum_chart,
)
from jaxgrad.diagnosis._format import (
    Change,
    advise,
    has_gains,
    likelihood,
    number,
    outcome,
    percent,
    place_of_nonfinite,
    shared_affixes,
    times,
    words_and_code,
)
from jaxgrad.diagnosis._html_tables import block_table, layer_table
from jaxgrad.diagnosis._row_charts import training_chart, waterfall_chart
from jaxgrad.diagnosis._series import (
    Axis,
    cones,
    forward_curves,
    histogram_layers,
    log_axis,
    marks,
    signal_curves,
    spectrum_bands,
)
from jaxgrad.diagnosis._style import style_sheet
from jaxgrad.diagnosis._waterfall import waterfall

if TYPE_CHECKING:
    from jaxgrad.diagnosis._report import Finding, Remedy, Report

_MOST_HISTOGRAMS = 36


def document(report: Report) -> str:
    """Write the whole page.

    Args:
      report: What to show.

    Returns:
      An HTML document that needs nothing but itself; its own policy forbids it to load or run anything.
    """
    parts = (
        _header(report),
        _findings("Cause", report, report.findings[:1]),
        _first_remedy(report),
        _findings("Also found", report, report.findings[1:]),
        _more_remedies(report),
        _facts(report),
        _pictures(report),
        _histograms(report),
        block_table(report),
        layer_table(report),
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
    figures = _blame_figure(report) + (_signal_figure(report) if report.blocks else "")
    table = layer_table(report, heading=False)
    layers = f"<details><summary>Layers ({len(report.layers)})</summary>{table}</details>" if table else ""
    return (
        f'<div class="jaxgrad note v-{escape(report.verdict)}"><style>{style_sheet(report.verdict)}</style>'
        + _header(report)
        + _findings("Cause", report, report.findings[:1])
        + _first_remedy(report)
        + _findings("Also found", report, report.findings[1:])
        + _more_remedies(report)
        + (f'<h2>Backward signal</h2><div class="pictures">{figures}</div>' if figures else "")
        + layers
        + "</div>"
    )


def _header(report: Report) -> str:
    made = report.nonfinite
    return (
        f'<header><div class="top"><span class="badge">{escape(report.verdict)}</span>'
        '<span class="soft small">jaxgrad report</span></div>'
        f"<h1>{escape(report.summary)}</h1>"
        + (f'<p class="soft">First NaN or infinity: {escape(place_of_nonfinite(made))}.</p>' if made else "")
        + "</header>"
    )


def _facts(report: Report) -> str:
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
        f"<div{class_('main', when=i == 0)}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for i, (name, value) in enumerate(dict(values).items())
    )
    return f'<dl class="facts">{items}</dl>'


def _findings(title: str, report: Report, findings: Sequence[Finding]) -> str:
    cards = []
    for finding in findings:
        place = "the whole network" if finding.layer is None else f"<code>{escape(finding.layer)}</code>"
        symptom = f'<span class="soft">{escape(finding.symptom)}:</span> ' if finding.symptom != report.verdict else ""
        share = ""
        if finding.share is not None and math.isfinite(finding.share):
            filled = 100 * min(max(finding.share, 0.0), 1.0)
            share = (
                f'<span><span class="meter"><i style="width:{filled:.0f}%"></i></span>'
                f"{percent(finding.share)} of it</span>"
            )
        cards.append(
            f'<li class="card finding"><h3>{symptom}<em>{escape(finding.cause)}</em> <span>in {place}</span></h3>'
            f"<p>{escape(finding.evidence)}</p>"
            f'<div class="foot">{share}<span>{likelihood(finding.confidence)}</span></div></li>'
        )
    return f'<section><h2>{title}</h2><ol class="cards">{"".join(cards)}</ol></section>' if cards else ""


def _first_remedy(report: Report) -> str:
    best = advise(report.remedies).best
    if best is None:
        return ""
    title = "What to do" if best.verified else "What helps most"
    return (
        f'<section><h2>{title} <span class="soft small">measured on this network and batch</span></h2>'
        f'<ol class="card remedies">{_remedy(best, remedy_axis(report.remedies))}</ol></section>'
    )


def _more_remedies(report: Report) -> str:
    advice = advise(report.remedies)
    axis = remedy_axis(report.remedies)
    parts = []
    if advice.others:
        rows = "".join(_remedy(remedy, axis) for remedy in advice.others)
        parts.append(f'<section><h2>Other remedies</h2><ol class="card remedies">{rows}</ol></section>')
    for title, remedies, kind in (
        ("Helped, but not enough", advice.partial, "partial"),
        ("Tried, not helpful", advice.useless, "useless"),
    ):
        if remedies:
            rows = "".join(_short_remedy(remedy) for remedy in remedies)
            parts.append(f'<section><h2>{title}</h2><ul class="tried {kind} small">{rows}</ul></section>')
    return "".join(parts)


def _remedy(remedy: Remedy, axis: Axis) -> str:
    gains = ""
    if has_gains(remedy):
        gains = (
            f'<div class="gains"><span class="soft">total gain</span> {times(remedy.before)} → '
            f"<b>{times(remedy.after)}</b>{remedy_chart(remedy, axis)}</div>"
        )
    good = remedy.verified and remedy.confirmed is not False
    mark = "✓" if good else "~"
    return (
        f'<li{class_("yes", when=good)}><span class="mark" aria-hidden="true">{mark}</span>'
        f'<div class="change">{_change(remedy)}<div class="outcome">{outcome(remedy)}</div></div>'
        f"{gains}{training_chart(remedy)}</li>"
    )


def _short_remedy(remedy: Remedy) -> str:
    change = words_and_code(remedy.change)
    lines = " ".join(f"<code>{escape(line)}</code>" for line in change.lines)
    gain = f' <span class="gains">{times(remedy.after)}</span>' if has_gains(remedy) else ""
    return f"<li>{_sentence(change)} {lines}{gain}</li>"


def _change(remedy: Remedy) -> str:
    change = words_and_code(remedy.change)
    lines = "\n".join(map(escape, change.lines))
    return f"<b>{_sentence(change)}</b>" + (f'<code class="line">{lines}</code>' if lines else "")


def _sentence(change: Change) -> str:
    return "".join(f"<code>{escape(piece)}</code>" if code else escape(piece) for piece, code in change.words)


def _blame_figure(report: Report) -> str:
    fall = waterfall(report)
    if fall is None:
        return ""
    chains = (
        f" Of {fall.num_chains} chains of blocks, the one with the most extreme gain." if fall.num_chains > 1 else ""
    )
    return (
        '<figure class="card chart wide"><figcaption><h3>What moves the signal</h3>'
        "<p>Powers of ten by which each part of the network changes the gradient on its way from the loss back to the "
        f"input; to the left it shrinks.{chains}</p></figcaption>{waterfall_chart(fall, report.blocks)}</figure>"
    )


def _signal_figure(report: Report) -> str:
    curves = signal_curves(report)
    axis = log_axis([value for curve in curves for value in curve.values])
    title = f"Backward signal against depth; total gain {times(report.log10_total_gain)}"
    found = cones(report)
    shaded = " Shaded: where 95 % of networks of these widths would lie that keep the signal." if found else ""
    return (
        '<figure class="card chart wide"><figcaption><h3>Backward signal</h3>'
        "<p>Root mean square of the loss's gradient at each block boundary, scaled to norm 1 at the output. "
        "Backpropagation runs from right to left; flat is healthy."
        f"{shaded}</p></figcaption>{depth_chart(curves, axis, report.blocks, marks(report), title, found)}</figure>"
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
    signals = [_signal_figure(report), _blame_figure(report)]
    # Where the signal goes wrong, what does it is the first question.
    if report.verdict in {"vanishing", "exploding", "dead"} and not abs(report.log10_total_gain) < 1:
        signals.reverse()
    figures = f"{''.join(signals)}{forward}{spectra}"
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


def _notes(report: Report) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return f'<section><h2>Notes</h2><ul class="notes small">{notes}</ul></section>' if notes else ""


def _footer(report: Report) -> str:
    return f"<footer>{' · '.join(escape(f'{name} {version}') for name, version in report.versions)}</footer>"
