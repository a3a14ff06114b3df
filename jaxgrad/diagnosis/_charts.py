"""Small pictures as HTML with inline SVG, which take the width they get and keep their text readable."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from jaxgrad.diagnosis._format import elide, log10_number, number, percent, printable, times
from jaxgrad.diagnosis._report import BlockStatistics, Histogram, LayerStatistics, Remedy
from jaxgrad.diagnosis._series import Axis, Band, Cone, Curve, Mark, log_axis, pieces, tick_step

# The drawing is stretched to the room it gets, in both directions, so lengths inside it are per mille of the room and
# only lines (which keep their thickness) and rectangles are drawn. Text stands beside it as HTML, at its own size.
_SIZE = 1000.0
_MOST_DOTS = 80


def escape(text: str) -> str:
    """Text that is safe inside an element and inside a quoted attribute."""
    return html.escape(printable(text), quote=True)


def class_(name: str, *, when: bool) -> str:
    """The attribute that gives an element a class, or nothing."""
    return f' class="{name}"' if when else ""


def depth_chart(
    curves: Sequence[Curve],
    axis: Axis,
    blocks: Sequence[BlockStatistics],
    marks: Sequence[Mark],
    title: str,
    cones: Sequence[Cone] = (),
) -> str:
    """Draw curves against depth, with stretches of blocks to blame.

    Args:
      curves: One curve a chain.
      axis: The vertical axis.
      blocks: All blocks; hovering over one tells its name and numbers.
      marks: Stretches to tint and to name.
      title: What a screen reader says.
      cones: Where critical networks would lie.

    Returns:
      HTML.
    """
    parts = [_grid(axis), *(_mark(mark, len(blocks)) for mark in marks)]
    for cone in cones:
        edge = [
            (_x(position, len(blocks)), _y(value, axis))
            for position, value in zip(cone.positions, cone.lows, strict=True)
        ]
        back = [
            (_x(position, len(blocks)), _y(value, axis))
            for position, value in zip(cone.positions, cone.highs, strict=True)
        ]
        parts.append(f'<path class="cone" d="{_polyline([*edge, *reversed(back)])}z"/>')
    for curve in curves:
        for piece in pieces(curve):
            points = [(_x(position, len(blocks)), _y(value, axis), value) for position, value in piece]
            parts.append(f'<path class="curve" d="{_polyline([(x, y) for x, y, _ in points])}"/>')
            # A lone point has no line, and an exact 0 must not pass for a small number.
            few = len(curve.positions) <= _MOST_DOTS or len(points) == 1
            parts += [_dot(x, y) for x, y, value in points if few or math.isinf(value)]
            parts += [f'<path class="hole" d="M{x} {y}h0"/>' for x, y, value in points if math.isinf(value)]
    parts += [_hit(block, len(blocks)) for block in blocks]
    return _frame("".join(parts), axis, blocks, marks, title)


def spectrum_chart(
    bands: Sequence[Band], axis: Axis, blocks: Sequence[BlockStatistics], marks: Sequence[Mark], title: str
) -> str:
    """Draw the spread of each block's singular values.

    Args:
      bands: What to draw; blocks without one stay empty.
      axis: The vertical axis.
      blocks: All blocks.
      marks: Stretches to tint and to name.
      title: What a screen reader says.

    Returns:
      HTML.
    """
    width = _SIZE / max(len(blocks), 1)
    body = min(0.56 * width, 44.0)
    parts = [_grid(axis), *(_mark(mark, len(blocks)) for mark in marks)]
    for band in bands:
        x = (band.block + 0.5) * width
        if band.quantiles is not None:
            lowest, lower, median, upper, highest = (_y(value, axis) for value in band.quantiles)
            parts.append(_rectangle("reach", x - body / 2, highest, body, lowest - highest))
            parts.append(_rectangle("half", x - body / 2, upper, body, lower - upper))
            parts.append(f'<path class="median" d="M{x - body / 2:.1f} {median}h{body:.1f}"/>')
        elif not math.isnan(band.sigma_max):
            parts.append(_dot(f"{x:.1f}", _y(band.sigma_max, axis)))
    parts += [_hit(block, len(blocks)) for block in blocks]
    return _frame("".join(parts), axis, blocks, marks, title)


def histogram_chart(layer: LayerStatistics, histogram: Histogram, head: str, tail: str) -> str:
    """Draw the histogram of one layer's activations.

    Args:
      layer: The layer.
      histogram: Its histogram, with at least one value.
      head: Start of its name that it shares with the others.
      tail: End of its name that it shares with the others.

    Returns:
      An HTML figure.
    """
    name = layer.name[len(head) : len(layer.name) - len(tail)]
    most = max(histogram.counts)
    bars = "".join(
        f"M{i + 0.06:.2f} 100v-{max(100 * share / most, 1.5):.1f}h.88V100z"
        for i, share in enumerate(histogram.counts)
        if share > 0
    )
    spread = f"{number(layer.activation_mean, 2)} ± {number(layer.activation_std, 2)}"
    shares = [
        f"{percent(share)} {word}"
        for share, word in ((layer.saturated_fraction, "saturated"), (layer.dead_fraction, "dead"))
        if share is not None and share > 0
    ]
    low, high = number(histogram.low, 2), number(histogram.high, 2)
    title = f"{layer.name}: {layer.activation or 'output'}, {spread}, from {low} to {high}"
    return (
        f'<figure><figcaption><code title="{escape(layer.name)}">{escape(name)}</code>'
        f'<span class="soft">{escape(", ".join(shares) or (layer.activation or "output"))}</span></figcaption>'
        f'<svg viewBox="0 0 {len(histogram.counts)} 100" preserveAspectRatio="none" role="img">'
        f'<title>{escape(title)}</title><path class="bars" d="{bars}"/></svg>'
        f'<div class="ends"><span>{low}</span><span>{high}</span></div></figure>'
    )


def remedy_chart(remedy: Remedy, axis: Axis) -> str:
    """Draw the way from the total gain before to the one after, on an axis that every remedy shares.

    Args:
      remedy: What was tried.
      axis: From :func:`remedy_axis`.

    Returns:
      An SVG.
    """
    title = f"Total gain before: {times(remedy.before)}; after: {times(remedy.after)}"
    one = f"{_SIZE * axis.fraction(0.0):.1f}"
    parts = [f'<path class="unit" d="M{one} 0V1000"/>']
    before, after = (
        None if math.isnan(value) else f"{_SIZE * axis.fraction(value):.1f}" for value in (remedy.before, remedy.after)
    )
    if before is not None and after is not None:
        parts.append(f'<path class="way" d="M{before} 500H{after}"/>')
    if before is not None:
        parts.append(f'<path class="from" d="M{before} 500h0"/><path class="hole" d="M{before} 500h0"/>')
    if after is not None:
        parts.append(f'<path class="to" d="M{after} 500h0"/>')
    return (
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img"><title>{escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )


def remedy_axis(remedies: Sequence[Remedy]) -> Axis:
    """The axis that holds every remedy's gains, and a gain of 1."""
    return log_axis([0.0, *(value for remedy in remedies for value in (remedy.before, remedy.after))])


def _x(position: float, size: int) -> str:
    return f"{_SIZE * position / max(size, 1):.1f}"


def _y(value: float, axis: Axis) -> float:
    return round(_SIZE * (1 - axis.fraction(value)), 1)


def _polyline(points: Sequence[tuple[str, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points)


def _dot(x: str, y: float) -> str:
    return f'<path class="dot" d="M{x} {y}h0"/>'


def _rectangle(kind: str, x: float, y: float, width: float, height: float, inside: str = "") -> str:
    # What is thinner than a line would vanish.
    box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(height, 4.0):.1f}"'
    return f'<rect class="{kind}" {box}>{inside}</rect>'


def _grid(axis: Axis) -> str:
    lines = []
    for value, _ in axis.ticks:
        kind = "zero" if value in (axis.zero, axis.infinity) else "grid"
        lines.append(f'<path class="{kind}" d="M0 {_y(value, axis)}H1000"/>')
    return "".join(lines)


def _mark(mark: Mark, size: int) -> str:
    left, right = (_SIZE * position / max(size, 1) for position in (mark.first, mark.last + 1))
    return _rectangle("mark", left, 0, max(right - left, 4.0), _SIZE)


def _hit(block: BlockStatistics, size: int) -> str:
    width = _SIZE / max(size, 1)
    words = [
        block.name,
        f"log10 signal {log10_number(block.log10_output_signal)} → {log10_number(block.log10_input_signal)}",
        f"gain {times(block.log10_gain)}",
        f"activation rms {number(block.input_rms)} → {number(block.output_rms)}",
    ]
    if block.spectrum is not None:
        words.append(f"σ max {number(block.spectrum.sigma_max)}")
    title = "&#10;".join(map(escape, words))
    return _rectangle("hit", block.index * width, 0, width, _SIZE, f"<title>{title}</title>")


def _frame(drawing: str, axis: Axis, blocks: Sequence[BlockStatistics], marks: Sequence[Mark], title: str) -> str:
    heights = "".join(
        f'<span style="bottom:{100 * axis.fraction(value):.1f}%">{label}</span>' for value, label in axis.ticks
    )
    size = max(len(blocks), 1)
    step = tick_step(size, 8)
    places = "".join(f'<span style="left:{100 * (i + 0.5) / size:.1f}%">{i}</span>' for i in range(0, size, step))
    label = "time step" if all(block.kind == "time" for block in blocks) else "block, from input to output"
    return (
        f'<div class="plot"><div class="y">{heights}</div><div class="area">'
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img"><title>{escape(title)}</title>'
        f"{drawing}</svg>{_names(marks, size)}</div>"
        f'<div class="x">{places}</div><div class="label">{label}</div></div>'
    )


def _names(marks: Sequence[Mark], size: int) -> str:
    # Names of more than three would hide the curve; the table marks the others.
    spans = []
    for row, mark in enumerate(marks[:3]):
        middle = (mark.first + mark.last + 1) / 2 / size
        left, right = mark.first / size, 1 - (mark.last + 1) / size
        side = f"left:{100 * left:.1f}%" if middle <= 0.5 else f"right:{100 * right:.1f}%"
        spans.append(f'<span class="name" style="{side};top:{4 + 20 * row}px">{escape(elide(mark.label, 40))}</span>')
    return "".join(spans)
