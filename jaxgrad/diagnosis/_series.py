"""What the pictures show, whoever draws them: curves against depth, axes in powers of ten, the blocks to blame."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxgrad.diagnosis._format import power

if TYPE_CHECKING:
    from jaxgrad.diagnosis._report import BlockStatistics, Histogram, LayerStatistics, Remedy, Report

# Singular values this many decades below the largest of their block are rounding noise of float32, drawn as 0.
_NOISE_DECADES = 8.0


class Curve(NamedTuple):
    """A quantity at the boundaries of one chain's blocks.

    Attributes:
      kind: Kind of the blocks: ``"depth"`` or ``"time"``.
      positions: Where on the depth axis: block ``i`` reaches from ``i`` to ``i + 1``.
      values: log10 of the quantity there; infinite where it is 0 or infinite, NaN where it is.
    """

    kind: str
    positions: tuple[int, ...]
    values: tuple[float, ...]


class Mark(NamedTuple):
    """A stretch of blocks to blame.

    Attributes:
      first: Index of the first block.
      last: Index of the last block.
      label: Name of the layer or block that the finding blames.
    """

    first: int
    last: int
    label: str


class Axis(NamedTuple):
    """An axis, most often in powers of ten, with a row of its own for exactly 0 and one for infinity where they occur.

    Attributes:
      low: Value (log10 on an axis in powers of ten) at the lower end.
      high: The same at the upper end.
      zero: Where values of exactly 0 are drawn, or ``None`` where there are none.
      infinity: Where infinite values are drawn, or ``None`` where there are none.
      ticks: Pairs of position and label.
    """

    low: float
    high: float
    zero: float | None
    infinity: float | None
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: float) -> float:
        """Position of a value, the infinite ones in their own rows, NaN as it is."""
        if math.isnan(value):
            return value
        if math.isinf(value):
            # A caller may draw something that the axis was not made from; the ends are then the honest place.
            row = self.infinity if value > 0 else self.zero
            return (self.high if value > 0 else self.low) if row is None else row
        return min(max(value, self.low), self.high)

    def fraction(self, value: float) -> float:
        """Height of a value as a share of the axis, 0 at the lower end."""
        return (self.place(value) - self.low) / (self.high - self.low)


class Band(NamedTuple):
    """The spread of one block's singular values, as log10; the quantiles are ``None`` where only the largest is known.

    Attributes:
      block: Index of the block.
      quantiles: The smallest, the 25 %, 50 % and 75 % quantiles and the largest.
      sigma_max: The largest, mean over the examples.
    """

    block: int
    quantiles: tuple[float, float, float, float, float] | None
    sigma_max: float


class Cone(NamedTuple):
    """Where the signal of a network would lie that is like this one and critical, at the boundaries of its blocks.

    Attributes:
      positions: Where on the depth axis.
      lows: log10 at the lower end of the band of 95 %.
      highs: The same at the upper end.
    """

    positions: tuple[int, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]


class Training(NamedTuple):
    """Losses of a short training run without a remedy and with it.

    Attributes:
      axis: The axis both share, of the losses or, where they span more than two decades, of their log10.
      before: Heights without the remedy, up to the first loss that is not finite.
      after: The same with it.
      num_steps: How many losses the longer run has, the first one before any step.
    """

    axis: Axis
    before: tuple[float, ...]
    after: tuple[float, ...]
    num_steps: int


def log10(value: float) -> float:
    """log10 with the log of 0 as ``-inf`` and of anything negative or NaN as NaN."""
    if value > 0:
        return math.log10(value)
    return -math.inf if value == 0 else math.nan


def chains(report: Report) -> list[list[BlockStatistics]]:
    """The blocks, one list a chain, in order."""
    groups: dict[int, list[BlockStatistics]] = {}
    for block in report.blocks:
        groups.setdefault(block.chain, []).append(block)
    return list(groups.values())


def signal_curves(report: Report) -> list[Curve]:
    """The backward signal at every boundary, one curve a chain."""
    return [
        _curve(chain, [block.log10_input_signal for block in chain], chain[-1].log10_output_signal)
        for chain in chains(report)
    ]


def forward_curves(report: Report) -> list[Curve]:
    """log10 of the activations' root mean square at every boundary, one curve a chain."""
    return [
        _curve(chain, [log10(block.input_rms) for block in chain], log10(chain[-1].output_rms))
        for chain in chains(report)
    ]


def _curve(chain: Sequence[BlockStatistics], inputs: Sequence[float], output: float) -> Curve:
    positions = (*(block.index for block in chain), chain[-1].index + 1)
    return Curve(chain[0].kind, positions, (*inputs, output))


def cones(report: Report) -> list[Cone]:
    """The band of a critical network from the end of each chain back, where the blocks' bands are known."""
    found = []
    for chain in chains(report):
        position, signal = chain[-1].index + 1, chain[-1].log10_output_signal
        points = [(position, signal, signal)]
        spread = 0.0
        for block in reversed(chain):
            low, high = block.log10_band or (0.0, 0.0)
            # The signal is a root mean square: it also changes with the number of entries. Deviations of independent
            # blocks add up as squares do.
            entries = math.prod(block.output_shape) / max(math.prod(block.input_shape), 1)
            signal += 0.5 * log10(entries) + (low + high) / 2
            spread = math.hypot(spread, (high - low) / 2)
            points.append((block.index, signal - spread, signal + spread))
        if any(block.log10_band for block in chain) and all(math.isfinite(x) for point in points for x in point):
            positions, lows, highs = zip(*reversed(points), strict=True)
            found.append(Cone(positions, lows, highs))
    return found


def training(remedy: Remedy) -> Training | None:
    """The losses of a remedy's training runs on one axis, or ``None`` without a run."""
    if not remedy.losses_before and not remedy.losses_after:
        return None
    runs = [_finite_start(losses) for losses in (remedy.losses_before, remedy.losses_after)]
    losses = [loss for run in runs for loss in run]
    if losses and min(losses) > 0 and max(losses) > 100 * min(losses):
        runs = [tuple(map(math.log10, run)) for run in runs]
        axis = log_axis([loss for run in runs for loss in run], min_span=2.0)
    else:
        axis = linear_axis(losses)
    return Training(axis, *runs, num_steps=max(len(remedy.losses_before), len(remedy.losses_after)))


def _finite_start(losses: Sequence[float]) -> tuple[float, ...]:
    end = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    return tuple(losses[:end])


def pieces(curve: Curve) -> list[list[tuple[int, float]]]:
    """The points of a curve in unbroken stretches: NaN breaks it."""
    found: list[list[tuple[int, float]]] = [[]]
    for position, value in zip(curve.positions, curve.values, strict=True):
        if math.isnan(value):
            found.append([])
        else:
            found[-1].append((position, value))
    return [piece for piece in found if piece]


def spectrum_bands(report: Report) -> list[Band]:
    """The spread of the singular values of every block where they were measured."""
    return [
        Band(block.index, _quantiles(block.spectrum.values), log10(block.spectrum.sigma_max))
        for block in report.blocks
        if block.spectrum is not None
    ]


def _quantiles(values: Sequence[float]) -> tuple[float, float, float, float, float] | None:
    logs = sorted(x for x in map(log10, values) if not math.isnan(x))
    if not logs:
        return None
    floor = logs[-1] - _NOISE_DECADES
    logs = [x if x >= floor else -math.inf for x in logs]
    low, lower, median, upper, high = (logs[round(q * (len(logs) - 1))] for q in (0, 0.25, 0.5, 0.75, 1))
    return low, lower, median, upper, high


def log_axis(values: Iterable[float], min_span: float = 3.0) -> Axis:
    """An axis that holds the values given as log10, whatever they are.

    Args:
      values: log10 values; infinite and NaN ones are welcome.
      min_span: Decades to show at least, so that a healthy network looks as flat as it is.

    Returns:
      The axis, with some six ticks at whole powers of ten.
    """
    everything = [value for value in values if not math.isnan(value)]
    finite = [value for value in everything if math.isfinite(value)] or [0.0]
    lowest, highest = min(finite), max(finite)
    missing = max(min_span - (highest - lowest), 0.0) / 2
    low, high = math.floor(lowest - missing), math.ceil(highest + missing)
    step = tick_step(high - low, 6)
    ticks = [(float(t), power(t)) for t in range(math.ceil(low / step) * step, high + 1, step)]
    zero = infinity = None
    row = max((high - low) * 0.12, 0.5)
    if -math.inf in everything:
        zero = low - row
        ticks.insert(0, (zero, "0"))
    if math.inf in everything:
        infinity = high + row
        ticks.append((infinity, "∞"))
    margin = (high - low) * 0.03
    return Axis(
        (low if zero is None else zero) - margin,
        (high if infinity is None else infinity) + margin,
        zero,
        infinity,
        tuple(ticks),
    )


def linear_axis(values: Sequence[float]) -> Axis:
    """An axis that holds finite values, from 0 where that is near, with three to five ticks."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if 0 < low < 0.25 * high:
        low = 0.0
    if high - low <= 1e-3 * abs(high):
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    magnitude = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = magnitude * tick_step((high - low) / magnitude, 4)
    ticks = [i * step for i in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]
    margin = 0.05 * (high - low)
    labels = tuple((tick, f"{tick:.4g}".replace("e+", "e")) for tick in ticks)
    return Axis(low - margin, high + margin, None, None, labels)


def tick_step(span: float, most: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that leaves at most ``most`` steps in the span."""
    scale = 1
    while True:
        for step in (scale, 2 * scale, 5 * scale):
            if span / step <= most:
                return step
        scale *= 10


def marks(report: Report) -> list[Mark]:
    """The stretches of blocks that the findings blame, most confident first, none twice.

    A layer inside a recurrence belongs to every time step, so the whole recurrence is marked.
    """
    found: dict[tuple[int, int], Mark] = {}
    for finding in report.findings:
        if finding.layer is None:
            continue
        named = [block.index for block in report.blocks if block.name == finding.layer]
        inside = [block.index for block in report.blocks if finding.layer in block.layers]
        holding = [layer.block for layer in report.layers if layer.name == finding.layer and layer.block is not None]
        indices = named or inside or holding
        if indices:
            span = min(indices), max(indices)
            found.setdefault(span, Mark(*span, finding.layer))
    return list(found.values())


def blamed_blocks(report: Report) -> set[int]:
    """Indices of single blocks to point at: where a finding blames a longer stretch, no one of it stands out."""
    return {mark.first for mark in marks(report) if mark.first == mark.last}


def fold(size: int, most: int, keep: Iterable[int] = ()) -> list[int | range]:
    """Choose which rows of a long table to show.

    Args:
      size: Number of rows.
      most: Show everything up to this many.
      keep: Rows that must stay.

    Returns:
      Indices of rows to show, and between them ranges of those left out.
    """
    if size <= most:
        return list(range(size))
    edge, between = 3, 3
    shown = {*range(edge), *range(size - edge, size), *(k for k in keep if 0 <= k < size)}
    shown |= {round(i * (size - 1) / (between + 1)) for i in range(1, between + 1)}
    # A line that says "1 more" takes the room of the row itself.
    shown |= {i for i in range(1, size - 1) if i - 1 in shown and i + 1 in shown}
    rows: list[int | range] = []
    for i in sorted(shown):
        previous = rows[-1] if rows else -1
        if isinstance(previous, int) and i > previous + 1:
            rows.append(range(previous + 1, i))
        rows.append(i)
    return rows


def blamed_layers(report: Report) -> set[str]:
    """Names that the findings blame, of layers and of blocks."""
    return {finding.layer for finding in report.findings if finding.layer is not None}


def histogram_layers(report: Report, most: int) -> list[tuple[LayerStatistics, Histogram]]:
    """The layers whose histograms to draw: all, or evenly chosen ones with the blamed among them."""
    drawn = [
        (layer, layer.histogram)
        for layer in report.layers
        if layer.histogram is not None and sum(layer.histogram.counts) > 0
    ]
    if len(drawn) <= most:
        return drawn
    blamed = blamed_layers(report)
    wanted = {i for i, (layer, _) in enumerate(drawn) if layer.name in blamed}
    wanted = {0, len(drawn) - 1, *sorted(wanted)[: most // 2]}
    rest = [i for i in range(len(drawn)) if i not in wanted]
    free = most - len(wanted)
    return [drawn[i] for i in sorted(wanted | {rest[(2 * i + 1) * len(rest) // (2 * free)] for i in range(free)})]
