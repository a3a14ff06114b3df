"""The backward signal's way from the loss to the input: which part of which block makes it smaller or larger."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxgrad.diagnosis._format import signed
from jaxgrad.diagnosis._series import chains

if TYPE_CHECKING:
    from jaxgrad.diagnosis._report import BlockStatistics, Report

# A source below this part of the largest one shares the lane of the others.
_SMALL_PART = 0.03
_MOST_LANES = 4


class Stretch(NamedTuple):
    """Neighbouring blocks, shown as one row.

    Attributes:
      first: Index of the first block, in order of evaluation.
      last: Index of the last block.
      gains: log10 of what each source does to the signal between the end of the last block and the start of the first.
    """

    first: int
    last: int
    gains: tuple[float, ...]


class Waterfall(NamedTuple):
    """How the signal comes from the loss to the input of one chain.

    Attributes:
      sources: Names of the sources, the one that moves the signal most first.
      totals: log10 of what each source does over the whole chain.
      stretches: The chain in rows, from the loss back.
      end: Which row the signal does not leave with a finite size, or ``None``. The row after it, if any, is the rest.
      total: log10 of the gain of the whole chain.
      largest: Single contributions that stand out, the largest first: block index, source and log10 gain.
      num_chains: How many chains have blame; this is the one with the most extreme total.
    """

    sources: tuple[str, ...]
    totals: tuple[float, ...]
    stretches: tuple[Stretch, ...]
    end: int | None
    total: float
    largest: tuple[tuple[int, str, float], ...]
    num_chains: int


class Bar(NamedTuple):
    """One step of the waterfall.

    Attributes:
      lane: Position of its source in ``Waterfall.sources``.
      start: log10 of the signal, over that at the loss, before.
      stop: The same after; infinite where the signal ends.
    """

    lane: int
    start: float
    stop: float


def waterfall(report: Report, most_bars: int = 24) -> Waterfall | None:
    """Take the chain with the most extreme gain apart, folded so that it can be seen at once.

    Args:
      report: What to show.
      most_bars: Bars to show at most. Neighbouring blocks that are alike share a row.

    Returns:
      The waterfall, or ``None`` where there is no blame or only NaN.
    """
    parts: dict[int, dict[str, float]] = {}
    for block, source, gain in report.blame:
        gains = parts.setdefault(block, {})
        gains[source] = gains.get(source, 0.0) + gain
    totals = [(_total(chain, parts), chain) for chain in chains(report) if any(b.index in parts for b in chain)]
    known = [(total, chain) for total, chain in totals if not math.isnan(total)]
    if not known:
        return None
    total, chain = max(known, key=lambda pair: abs(pair[0]))
    backwards = [(block.index, parts.get(block.index, {})) for block in reversed(chain)]
    lanes = _lanes([gains for _, gains in backwards])
    table = np.array([[sum(gains.get(s, 0.0) for s in members) for _, members in lanes] for _, gains in backwards])
    stretches, end = _stretches(table, max(most_bars // len(lanes), 4))
    rows = tuple(
        Stretch(backwards[stop - 1][0], backwards[start][0], tuple(map(float, table[start:stop].sum(0))))
        for start, stop in stretches
    )
    return Waterfall(
        sources=tuple(name for name, _ in lanes),
        totals=tuple(map(float, table.sum(0))),
        stretches=rows,
        end=end,
        total=total,
        largest=_standing_out(backwards, total),
        num_chains=len(totals),
    )


def bars(fall: Waterfall) -> list[list[Bar]]:
    """The steps of each row, each one starting where the one before stops; none after the signal's end."""
    rows: list[list[Bar]] = []
    level = 0.0
    for stretch in fall.stretches:
        row: list[Bar] = []
        # What is finite first, so that a row in which the signal ends still shows the rest.
        for lane in sorted(range(len(fall.sources)), key=lambda k: math.isinf(stretch.gains[k])):
            if math.isfinite(level):
                row.append(Bar(lane, level, level + stretch.gains[lane]))
                level = row[-1].stop
        rows.append(row)
    return rows


def stretch_name(blocks: Sequence[BlockStatistics], stretch: Stretch, head: str = "", tail: str = "") -> str:
    """The name of a row: ``Dense_11``, or ``Dense_4 … 9 (6)`` for six blocks.

    Args:
      blocks: All blocks of the report.
      stretch: The row.
      head: Start of the names to leave out.
      tail: End of the names to leave out.

    Returns:
      The name.
    """
    names = [blocks[i].name for i in (stretch.first, stretch.last)]
    first, last = (name[len(head) : len(name) - len(tail)] for name in names)
    if stretch.first == stretch.last:
        return first
    numbered = [re.fullmatch(r"(.*?)(\d+)", name, re.DOTALL) for name in (first, last)]
    start, stop = (match.groups() if match else (None, None) for match in numbered)
    if stop[1] is not None and start[0] == stop[0]:
        last = stop[1]
    return f"{first} … {last} ({stretch.last - stretch.first + 1})"


def sum_by_source(fall: Waterfall) -> str:
    """The sum in one line: ``activation −12.5 · weights +0.31 · total −12.2``."""
    parts = (*zip(fall.sources, fall.totals, strict=True), ("total", fall.total))
    return " · ".join(f"{name} {signed(gain)}" for name, gain in parts)


def words_at_end(fall: Waterfall) -> str:
    """What becomes of the signal in the row at which it ends."""
    return (
        "signal ends here"
        if fall.end is None or -math.inf in fall.stretches[fall.end].gains
        else "signal overflows here"
    )


def _total(chain: Sequence[BlockStatistics], parts: dict[int, dict[str, float]]) -> float:
    return sum(gain for block in chain for gain in parts.get(block.index, {}).values())


def _standing_out(blocks: Sequence[tuple[int, dict[str, float]]], total: float) -> tuple[tuple[int, str, float], ...]:
    """Up to three contributions in the direction of the total, well above what the source does in other blocks."""
    usual = {source: float(np.median([abs(g.get(source, 0.0)) for _, g in blocks])) for _, g in blocks for source in g}
    least = 0.05 * abs(total) if math.isfinite(total) else math.inf
    found = [
        (index, source, gain)
        for index, gains in blocks
        for source, gain in gains.items()
        if gain * total > 0 and abs(gain) >= max(1.5 * usual[source], least, 0.3)
    ]
    return tuple(sorted(found, key=lambda part: -abs(part[2]))[:3])


def _lanes(blocks: Sequence[dict[str, float]]) -> list[tuple[str, tuple[str, ...]]]:
    """The sources in the order of what they move, the small ones as one: pairs of a name and what it stands for."""
    moved: dict[str, float] = {}
    for gains in blocks:
        for source, gain in gains.items():
            moved[source] = moved.get(source, 0.0) + abs(gain)
    least = _SMALL_PART * max((size for size in moved.values() if math.isfinite(size)), default=0.0)
    # By name where sizes tie, so that a picture does not depend on the order of the blocks.
    ordered = sorted((s for s in moved if s != "other"), key=lambda source: (-moved[source], source))
    large = [source for source in ordered if moved[source] >= least]
    rest = [source for source in moved if source not in large]
    room = _MOST_LANES - bool(rest)
    if len(large) > room:
        room = _MOST_LANES - 1
        rest += large[room:]
    lanes = [(source, (source,)) for source in large[:room]]
    return [*lanes, (rest[0] if len(rest) == 1 else "other", tuple(rest))] if rest else lanes


def _stretches(table: np.ndarray, most: int) -> tuple[list[tuple[int, int]], int | None]:
    """Fold the rows of a table; the first that is not finite stays alone, and all behind it are one."""
    lost = np.flatnonzero(~np.isfinite(table).all(1))
    if not len(lost):
        return _fold_alike(table, most), None
    end = int(lost[0])
    before = _fold_alike(table[:end], max(most - 2, 2))
    rest = [(end + 1, len(table))] if end + 1 < len(table) else []
    return [*before, (end, end + 1), *rest], len(before)


def _fold_alike(table: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Fold neighbouring rows into at most so many stretches: alike ones first, and of those the shortest.

    Ward's criterion, the growth of the sum of squares within the stretches, over a noise floor: without the floor,
    rows that differ by nothing but noise would be folded into stretches of any length.
    """
    edges = list(range(len(table) + 1))
    sizes, sums = np.ones(len(table)), np.array(table, dtype=float)
    floor = 10 * float(np.median(np.square(np.diff(table, axis=0)).sum(1))) + 1e-12 if len(table) > 1 else 0.0
    while len(sizes) > most:
        distance = np.square(np.diff(sums / sizes[:, None], axis=0)).sum(1)
        k = int(np.argmin(sizes[1:] * sizes[:-1] / (sizes[1:] + sizes[:-1]) * (distance + floor)))
        sums[k] += sums[k + 1]
        sizes[k] += sizes[k + 1]
        sums, sizes = np.delete(sums, k + 1, 0), np.delete(sizes, k + 1)
        del edges[k + 1]
    return list(itertools.pairwise(edges))
