"""The pictures of a report as matplotlib figures, which belong to no window and change no global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxgrad._checks import message
from jaxgrad.diagnosis._format import number, percent, shared_affixes, times
from jaxgrad.diagnosis._plot_text import shown as _shown
from jaxgrad.diagnosis._row_plots import blame_figure, training_figure
from jaxgrad.diagnosis._series import (
    Axis,
    Curve,
    blamed_layers,
    cones,
    forward_curves,
    histogram_layers,
    log_axis,
    marks,
    pieces,
    signal_curves,
    spectrum_bands,
    tick_step,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxgrad.diagnosis._report import Report

# Okabe and Ito's colours, which the colour-blind tell apart; legible on white and on the dark styles of matplotlib.
_DEPTH, _TIME, _BLAME, _NEUTRAL = "#0072B2", "#009E73", "#D55E00", "#808080"
_WIDE = (8.0, 4.0)
_MOST_DOTS = 80
_MOST_HISTOGRAMS = 24
_MOST_COLUMNS = 4
_LONGEST_NAME = 40


class ReportFigures(NamedTuple):
    """The pictures of one report.

    Attributes:
      signal: The backward signal against depth.
      forward: The size of the activations against depth.
      spectra: Singular values of each block's Jacobian, or ``None`` where none were measured.
      histograms: Histograms of the layers' activations, or ``None`` where none were measured.
      blame: What each part of the network does to the backward signal, from the loss to the input, or ``None`` where
        the signal was not taken apart.
      training: Losses of short training runs without and with each remedy that was confirmed or refuted by one, or
        ``None`` where there was none.
    """

    signal: Figure
    forward: Figure
    spectra: Figure | None
    histograms: Figure | None
    blame: Figure | None
    training: Figure | None


def figures(report: Report) -> ReportFigures:
    """Draw the pictures of a report.

    Args:
      report: What to show.

    Returns:
      The figures, made without pyplot: nothing holds them but the result.

    Raises:
      ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            message(
                "Report.plot",
                "matplotlib to be installed",
                f"no usable matplotlib ({error})",
                'run pip install "jaxgrad[plots]", or call Report.to_html, which needs nothing more.',
            )
        ) from error
    signal, axes = _wide(Figure)
    axes.set_title(f"Backward signal: total gain {times(report.log10_total_gain)}" if report.blocks else "No block")
    axes.set_ylabel("rms of dL/d(activation)")
    curves = signal_curves(report)
    _draw_curves(axes, report, curves)
    axis = log_axis([value for curve in curves for value in curve.values])
    for cone in cones(report):
        low, high = ([axis.place(value) for value in ends] for ends in (cone.lows, cone.highs))
        axes.fill_between(cone.positions, low, high, color=_NEUTRAL, alpha=0.2, linewidth=0, zorder=0.6)
    forward, axes = _wide(Figure)
    axes.set_title("Forward activations" if report.blocks else "No block")
    axes.set_ylabel("rms of the activation")
    _draw_curves(axes, report, forward_curves(report))
    return ReportFigures(
        signal,
        forward,
        _spectra(Figure, report),
        _histograms(Figure, report),
        blame_figure(Figure, report),
        training_figure(Figure, report),
    )


def _wide(figure_class: type[Figure]) -> tuple[Figure, Axes]:
    figure = figure_class(figsize=_WIDE, layout="constrained")
    return figure, figure.add_subplot()


def _draw_curves(axes: Axes, report: Report, curves: Sequence[Curve]) -> None:
    axis = log_axis([value for curve in curves for value in curve.values])
    _frame(axes, report, axis, boundaries=True)
    named: set[str] = set()
    both = len({curve.kind for curve in curves}) > 1
    for curve in curves:
        colour, word = (_TIME, "time steps") if curve.kind == "time" else (_DEPTH, "blocks in depth")
        few = len(curve.positions) <= _MOST_DOTS
        for piece in pieces(curve):
            label = None if word in named or not both else word
            named.add(word)
            places = [position for position, _ in piece]
            heights = [axis.place(value) for _, value in piece]
            axes.plot(
                places,
                heights,
                color=colour,
                linewidth=1.8,
                linestyle="--" if curve.kind == "time" and both else "-",
                marker="o" if few or len(piece) == 1 else "",
                markersize=4,
                label=label,
            )
            # Hollow, so that an exact 0 or an infinity does not pass for a number.
            lost = [(x, y) for (x, value), y in zip(piece, heights, strict=True) if math.isinf(value)]
            axes.plot(
                [x for x, _ in lost],
                [y for _, y in lost],
                color=colour,
                linestyle="",
                marker="o",
                markersize=6,
                markerfacecolor=axes.get_facecolor(),
                zorder=3,
            )
    if both:
        axes.legend(frameon=False, loc="best")


def _spectra(figure_class: type[Figure], report: Report) -> Figure | None:
    bands = spectrum_bands(report)
    if not bands:
        return None
    figure, axes = _wide(figure_class)
    axes.set_title("Singular values of each block's Jacobian")
    axes.set_ylabel("singular value")
    axis = log_axis([x for band in bands for x in (*(band.quantiles or ()), band.sigma_max)])
    _frame(axes, report, axis, boundaries=False)
    full = [(band.block + 0.5, [axis.place(x) for x in band.quantiles]) for band in bands if band.quantiles is not None]
    only = [(band.block + 0.5, axis.place(band.sigma_max)) for band in bands if band.quantiles is None]
    if full:
        centres = [x for x, _ in full]
        lowest, lower, median, upper, highest = ([heights[k] for _, heights in full] for k in range(5))
        body = 0.6
        thin = 0.008 * (axis.high - axis.low)
        reach = [max(b - a, thin) for a, b in zip(lowest, highest, strict=True)]
        half = [max(b - a, thin) for a, b in zip(lower, upper, strict=True)]
        axes.bar(centres, reach, body, lowest, color=_DEPTH, alpha=0.25, linewidth=0, label="all")
        axes.bar(centres, half, body, lower, color=_DEPTH, alpha=0.6, linewidth=0, label="middle half")
        ends = ([x - body / 2 for x in centres], [x + body / 2 for x in centres])
        axes.hlines(median, *ends, colors=axes.xaxis.label.get_color(), linewidth=1.5, label="median")
    if only:
        points = [x for x, _ in only], [y for _, y in only]
        axes.plot(*points, color=_DEPTH, linestyle="", marker="o", markersize=3, label="largest")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def _histograms(figure_class: type[Figure], report: Report) -> Figure | None:
    drawn = histogram_layers(report, _MOST_HISTOGRAMS)
    if not drawn:
        return None
    columns = min(len(drawn), _MOST_COLUMNS)
    rows = math.ceil(len(drawn) / columns)
    figure = figure_class(figsize=(max(2.3 * columns, 4.0), 1.7 * rows + 0.9), layout="constrained")
    total = sum(layer.histogram is not None for layer in report.layers)
    some = f" of {len(drawn)} of {total} layers" if total > len(drawn) else " of each layer"
    figure.suptitle(f"Activations{some}", fontsize="large")
    head, tail = shared_affixes([layer.name for layer, _ in drawn])
    blamed = blamed_layers(report)
    for i, (layer, histogram) in enumerate(drawn):
        axes = figure.add_subplot(rows, columns, i + 1)
        colour = _BLAME if layer.name in blamed else _DEPTH
        low, high, size = histogram.low, histogram.high, len(histogram.counts)
        # A layer that gives one value only has an interval without width, and one of infinite width cannot be drawn.
        if not (math.isfinite(low) and math.isfinite(high) and high > low):
            middle = low if math.isfinite(low) else 0.0
            low, high = middle - 0.5, middle + 0.5
        width = high / size - low / size
        most = sum(histogram.counts)
        edges = [low + k * width for k in range(size)]
        axes.bar(edges, [c / most for c in histogram.counts], width, align="edge", color=colour, linewidth=0)
        name = layer.name[len(head) : len(layer.name) - len(tail)]
        shares = [
            f"{percent(share)} {word}"
            for share, word in ((layer.saturated_fraction, "saturated"), (layer.dead_fraction, "dead"))
            if share is not None and share > 0
        ]
        title = f"{_shown(name, 24)}\n{_shown(', '.join(shares) or (layer.activation or 'output'), 28)}"
        axes.set_title(title, fontsize="small", parse_math=False)
        axes.set_xticks([low, high], [number(low, 2), number(high, 2)])
        axes.set_yticks([])
        for label, side in zip(axes.get_xticklabels(), ("left", "right"), strict=True):
            label.set(horizontalalignment=side, fontsize="small")
        axes.spines[["top", "right", "left"]].set_visible(False)
        if i + columns >= len(drawn):
            axes.set_xlabel("activation", fontsize="small")
        if i % columns == 0:
            axes.set_ylabel("share of entries", fontsize="small")
    return figure


def _frame(axes: Axes, report: Report, axis: Axis, *, boundaries: bool) -> None:
    """Set up what every picture against depth has in common: both axes, the grid, the blocks to blame."""
    size = max(len(report.blocks), 1)
    axes.set_xlim(-0.02 * size if boundaries else 0.0, 1.02 * size if boundaries else size)
    axes.set_ylim(axis.low, axis.high)
    axes.set_yticks([value for value, _ in axis.ticks], [label for _, label in axis.ticks])
    places = range(0, size, tick_step(size, 12))
    axes.set_xticks([i + 0.5 for i in places], [str(i) for i in places])
    axes.tick_params(length=0)
    in_time = bool(report.blocks) and all(block.kind == "time" for block in report.blocks)
    axes.set_xlabel("time step" if in_time else "block, from input to output")
    axes.grid(visible=True, axis="y", color=_NEUTRAL, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    for row in (axis.zero, axis.infinity):
        if row is not None:
            axes.axhline(row, color=_NEUTRAL, alpha=0.6, linewidth=1, linestyle=":")
    to_blame = marks(report)
    for mark in to_blame:
        axes.axvspan(mark.first, mark.last + 1, color=_BLAME, alpha=0.15, linewidth=0, zorder=0.5)
    # The names of more than three would hide the curve.
    for row, mark in enumerate(to_blame[:3]):
        left = mark.first + mark.last + 1 <= size
        options: dict[str, Any] = {
            "xycoords": axes.get_xaxis_transform(),
            "textcoords": "offset points",
            "horizontalalignment": "left" if left else "right",
            "verticalalignment": "top",
            "color": _BLAME,
            "fontsize": "small",
            "parse_math": False,
        }
        place = float(mark.first if left else mark.last + 1), 1.0
        offset = (3.0 if left else -3.0), -3.0 - 13.0 * row
        axes.annotate(_shown(mark.label, _LONGEST_NAME), place, offset, **options)
