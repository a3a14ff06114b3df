"""The waterfall of the signal and the losses of short training runs as matplotlib figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jaxgrad.diagnosis._format import number, shared_affixes, times, words_and_code
from jaxgrad.diagnosis._plot_text import shown
from jaxgrad.diagnosis._series import log_axis, training
from jaxgrad.diagnosis._waterfall import bars, stretch_name, sum_by_source, waterfall, words_at_end

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxgrad.diagnosis._report import Remedy, Report

# Okabe and Ito's colours, which the colour-blind tell apart.
_SOURCES = {
    "weights": "#0072B2",
    "activation": "#E69F00",
    "normalization": "#009E73",
    "residual": "#CC79A7",
    "attention": "#56B4E9",
    "other": "#999999",
}
_BEFORE, _AFTER, _END = "#808080", "#009E73", "#D55E00"
_MOST_RUNS = 6
_LONGEST_NAME = 32
_LONGEST_TITLE = 44


def blame_figure(figure_class: type[Figure], report: Report) -> Figure | None:
    """Draw what each part of the network does to the backward signal.

    Args:
      figure_class: ``matplotlib.figure.Figure``.
      report: What to show.

    Returns:
      The figure, or ``None`` where the signal was not taken apart.
    """
    fall = waterfall(report)
    if fall is None:
        return None
    rows = bars(fall)
    axis = log_axis([0.0, fall.total, *(level for row in rows for bar in row for level in (bar.start, bar.stop))])
    lane = 0.8 / len(fall.sources)
    size = len(rows) + 1
    figure = figure_class(figsize=(8.0, max(1.6 + 0.1 * size * (len(fall.sources) + 1), 2.8)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"What moves the signal (powers of ten)\n{sum_by_source(fall)}", fontsize="medium")
    axes.axvline(axis.place(0.0), color=_BEFORE, linewidth=1, linestyle=":")
    named: set[int] = set()
    for i, row in enumerate(rows):
        for bar in row:
            start, stop = axis.place(bar.start), axis.place(bar.stop)
            source = fall.sources[bar.lane]
            label = None if bar.lane in named else source
            named.add(bar.lane)
            height = i - 0.4 + lane * (bar.lane + 0.5)
            axes.barh(height, stop - start, 0.85 * lane, left=start, color=_SOURCES[source], linewidth=0, label=label)
    start, stop = axis.place(0.0), axis.place(fall.total)
    axes.barh(size - 1, stop - start, 0.5, left=start, color=axes.xaxis.label.get_color(), linewidth=0)
    if fall.end is not None:
        axes.annotate(words_at_end(fall), (axis.low, fall.end + 0.5), color=_END, va="center")
    affixes = shared_affixes([block.name for block in report.blocks])
    names = [shown(stretch_name(report.blocks, stretch, *affixes), _LONGEST_NAME) for stretch in fall.stretches]
    axes.set_yticks(range(size), [*names, f"total {times(fall.total)}"], fontsize="small", parse_math=False)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_xlim(axis.low, axis.high)
    axes.set_xticks([value for value, _ in axis.ticks], [label for _, label in axis.ticks])
    axes.set_xlabel("signal, over the signal at the loss")
    axes.set_ylabel("from loss to input")
    axes.grid(visible=True, axis="x", color=_BEFORE, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(fall.sources), frameon=False, fontsize="small")
    return figure


def training_figure(figure_class: type[Figure], report: Report) -> Figure | None:
    """Draw the losses of the short training runs, a picture for each remedy.

    Args:
      figure_class: ``matplotlib.figure.Figure``.
      report: What to show.

    Returns:
      The figure, or ``None`` where no remedy was trained with.
    """
    tried = [remedy for remedy in report.remedies if remedy.losses_before or remedy.losses_after][:_MOST_RUNS]
    if not tried:
        return None
    columns = min(len(tried), 3)
    lines = math.ceil(len(tried) / columns)
    figure = figure_class(figsize=(max(3.6 * columns, 5.0), 2.8 * lines + 0.4), layout="constrained")
    for i, remedy in enumerate(tried):
        _draw_runs(figure.add_subplot(lines, columns, i + 1), remedy)
    return figure


def _draw_runs(axes: Axes, remedy: Remedy) -> None:
    runs = training(remedy)
    if runs is None:
        return
    for name, colour, losses, heights in (
        ("as it is", _BEFORE, remedy.losses_before, runs.before),
        ("with the change", _AFTER, remedy.losses_after, runs.after),
    ):
        if not losses:
            continue
        lost = len(heights) < len(losses)
        end = f"{number(losses[len(heights)])} at step {len(heights)}" if lost else number(losses[-1])
        single = "o" if len(heights) == 1 else ""
        axes.plot(range(len(heights)), heights, color=colour, linewidth=1.8, marker=single, label=f"{name}: {end}")
        if lost and heights:
            axes.plot([len(heights) - 1], [heights[-1]], color=colour, marker="x", markersize=9, linestyle="")
    words = words_and_code(remedy.change).sentence()
    words = words if len(words) <= _LONGEST_TITLE else f"{words[: _LONGEST_TITLE - 1]}…"
    axes.set_title(shown(words, _LONGEST_TITLE), fontsize="small", parse_math=False)
    axes.set_ylim(runs.axis.low, runs.axis.high)
    axes.set_yticks([value for value, _ in runs.axis.ticks], [label for _, label in runs.axis.ticks])
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(frameon=False, fontsize="small", loc="best")
    axes.grid(visible=True, axis="y", color=_BEFORE, alpha=0.25, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
