"""The waterfall of the signal and the losses of a short training run, as HTML with inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxgrad.diagnosis._charts import class_, escape
from jaxgrad.diagnosis._format import number, shared_affixes, signed, times
from jaxgrad.diagnosis._report import BlockStatistics, Remedy
from jaxgrad.diagnosis._series import Axis, log_axis, training
from jaxgrad.diagnosis._waterfall import Waterfall, bars, stretch_name, sum_by_source, words_at_end

_SIZE = 1000.0
_LANE = 9  # pixels
_ROW_GAP = 10
# Names at the ends of two lines need this part of the height between them.
_APART = 0.42


def waterfall_chart(fall: Waterfall, blocks: Sequence[BlockStatistics]) -> str:
    """Draw a row for each stretch of blocks, with a bar for each source that starts where the last one stops.

    Args:
      fall: What to draw.
      blocks: All blocks of the report, for their names.

    Returns:
      HTML.
    """
    rows = bars(fall)
    levels = [level for row in rows for bar in row for level in (bar.start, bar.stop)]
    axis = log_axis([0.0, fall.total, *levels])
    total_row = len(rows)
    height = _SIZE / (total_row + 1)
    lane = height * _LANE / (_LANE * len(fall.sources) + _ROW_GAP)
    one = _across(0.0, axis)
    drawing = [f'<path class="grid" d="M{_across(value, axis)} 0V1000"/>' for value, _ in axis.ticks]
    drawing.append(f'<path class="unit" d="M{one} 0V1000"/>')
    previous = None
    for i, row in enumerate(rows):
        for bar in row:
            top = i * height + (height - lane * len(fall.sources)) / 2 + lane * bar.lane
            if previous is not None:
                drawing.append(f'<path class="way" d="M{_across(bar.start, axis)} {previous:.1f}V{top + lane:.1f}"/>')
            drawing.append(_bar(f"s-{fall.sources[bar.lane]}", bar.start, bar.stop, top + 0.1 * lane, 0.8 * lane, axis))
            previous = top
        drawing.append(_hit(fall, blocks, i, height))
    size = min(1.6 * lane, 0.7 * height)
    drawing.append(_bar("total", 0.0, fall.total, (total_row + 0.5) * height - size / 2, size, axis))
    affixes = shared_affixes([block.name for block in blocks])
    names = [stretch_name(blocks, stretch, *affixes) for stretch in fall.stretches]
    labels = []
    for i, (stretch, name) in enumerate(zip(fall.stretches, names, strict=True), 1):
        gain = "–" if fall.end is not None and i - 1 > fall.end else signed(sum(stretch.gains))
        stands_out = any(stretch.first <= block <= stretch.last for block, _, _ in fall.largest)
        labels.append(
            f'<span class="who{" most" * stands_out}" style="grid-row:{i}" title="{escape(name)}">{escape(name)}</span>'
            f'<span class="amount" style="grid-row:{i}">{gain}</span>'
        )
    labels.append(
        f'<b class="who" style="grid-row:{total_row + 1}">total {times(fall.total)}</b>'
        f'<b class="amount" style="grid-row:{total_row + 1}">{signed(fall.total)}</b>'
    )
    end = ""
    if fall.end is not None:
        end = f'<span class="end" style="top:{100 * (fall.end + 1) / (total_row + 1):.1f}%">{words_at_end(fall)}</span>'
    ticks = "".join(
        f'<span style="left:{100 * axis.fraction(value):.1f}%">{label}</span>' for value, label in axis.ticks
    )
    description = f"{sum_by_source(fall)}. " + "; ".join(
        f"{name}: {signed(sum(stretch.gains))}" for name, stretch in zip(names, fall.stretches, strict=True)
    )
    pixels = _LANE * len(fall.sources) + _ROW_GAP
    return (
        f'{_legend(fall)}<div class="fall" style="grid-template-rows:repeat({total_row + 1},{pixels}px) 20px">'
        f'{"".join(labels)}<div class="area" style="grid-row:1/{total_row + 2}">'
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img">'
        "<title>What each part of the network does to the backward signal, in powers of ten</title>"
        f"<desc>{escape(description)}</desc>{''.join(drawing)}</svg>{end}</div>"
        f'<div class="x" style="grid-row:{total_row + 2}">{ticks}</div></div>'
    )


def _across(value: float, axis: Axis) -> str:
    return f"{_SIZE * axis.fraction(value):.1f}"


def _bar(kind: str, start: float, stop: float, top: float, height: float, axis: Axis) -> str:
    left, right = sorted(_SIZE * axis.fraction(value) for value in (start, stop))
    # What is thinner than a line would vanish.
    return (
        f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{max(right - left, 1.5):.1f}" '
        f'height="{height:.1f}"/>'
    )


def _hit(fall: Waterfall, blocks: Sequence[BlockStatistics], row: int, height: float) -> str:
    stretch = fall.stretches[row]
    words = [
        stretch_name(blocks, stretch),
        *(f"{source} {signed(gain)}" for source, gain in zip(fall.sources, stretch.gains, strict=True)),
    ]
    title = "&#10;".join(map(escape, words))
    box = f'x="0" y="{row * height:.1f}" width="1000" height="{height:.1f}"'
    return f'<rect class="hit" {box}><title>{title}</title></rect>'


def _legend(fall: Waterfall) -> str:
    largest = max(range(len(fall.totals)), key=lambda k: abs(fall.totals[k]))
    items = "".join(
        f'<li{class_("most", when=k == largest)}><i class="s-{source}"></i>{source} <b>{signed(total)}</b></li>'
        for k, (source, total) in enumerate(zip(fall.sources, fall.totals, strict=True))
    )
    return f'<ul class="legend">{items}<li><i class="total"></i>total <b>{signed(fall.total)}</b></li></ul>'


class _Run(NamedTuple):
    """One of the two lines of a training chart: its class, its name, its losses, and their heights while finite."""

    kind: str
    name: str
    losses: tuple[float, ...]
    heights: tuple[float, ...]


def training_chart(remedy: Remedy) -> str:
    """Draw the losses of a short training run without and with a remedy, a name at the end of each line.

    Args:
      remedy: What was tried.

    Returns:
      HTML; nothing without a run.
    """
    found = training(remedy)
    if found is None:
        return ""
    axis, steps = found.axis, max(found.num_steps - 1, 1)
    runs = [
        _Run("before", "as it is", remedy.losses_before, found.before),
        _Run("after", "with the change", remedy.losses_after, found.after),
    ]
    runs = [run for run in runs if run.losses]
    drawing = [f'<path class="grid" d="M0 {_up(value, axis)}H1000"/>' for value, _ in axis.ticks]
    crosses = []
    for run in runs:
        points = [f"{_SIZE * i / steps:.1f} {_up(height, axis)}" for i, height in enumerate(run.heights)]
        if points:
            # A single point is a line without length, which only a round cap shows.
            drawing.append(f'<path class="loss {run.kind}" d="M{"L".join(points)}{"h0" * (len(points) == 1)}"/>')
        if len(run.heights) < len(run.losses):
            across, up = 100 * max(len(run.heights) - 1, 0) / steps, 100 * _end(run, axis)
            crosses.append(f'<span class="lost {run.kind}" style="left:{across:.1f}%;bottom:{up:.1f}%">×</span>')
    words = [_result(run) for run in runs]
    ends = "".join(
        f'<span class="{run.kind}" style="bottom:{100 * up:.1f}%">{run.name}<br><b>{result}</b></span>'
        for run, up, result in zip(runs, _apart([_end(run, axis) for run in runs]), words, strict=True)
    )
    title = "; ".join(
        f"{run.name}: {number(run.losses[0])} to {result}" for run, result in zip(runs, words, strict=True)
    )
    heights = "".join(
        f'<span style="bottom:{100 * axis.fraction(value):.1f}%">{label}</span>' for value, label in axis.ticks
    )
    return (
        f'<div class="training"><div class="y">{heights}</div><div class="area">'
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img">'
        f"<title>Loss of a short training run, {escape(title)}</title>{''.join(drawing)}</svg>{''.join(crosses)}</div>"
        f'<div class="ends">{ends}</div><div class="label">loss, step 0 to {found.num_steps - 1}</div></div>'
    )


def _result(run: _Run) -> str:
    """The last loss, or where the first came that is not finite."""
    step = len(run.heights)
    return number(run.losses[-1]) if step == len(run.losses) else f"{number(run.losses[step])} at step {step}"


def _end(run: _Run, axis: Axis) -> float:
    return axis.fraction(run.heights[-1]) if run.heights else 0.5


def _apart(heights: list[float]) -> list[float]:
    """Move the names at the ends of two lines apart, where they would lie on each other."""
    if len(heights) == 2 and abs(heights[0] - heights[1]) < _APART:
        middle = min(max(sum(heights) / 2, _APART / 2), 1 - _APART / 2)
        up = _APART / 2 if heights[0] >= heights[1] else -_APART / 2
        return [middle + up, middle - up]
    return heights


def _up(value: float, axis: Axis) -> float:
    return round(_SIZE * (1 - axis.fraction(value)), 1)
