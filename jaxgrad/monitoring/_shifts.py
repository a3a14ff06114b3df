"""Where a series of records leaves its level, measured in the noise of the series itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# Records before, and those after: of the longer stretch where the new level lasts, of the shorter one where it is young
# or does not.
_BEFORE = 8
_AFTER = (8, 3)
# Where a shift is to be told from a drift, this many of each side.
_NEAREST = 3
# In stationary noise no series of 64 in some hundreds exceeds it, unless neighbours are alike.
_THRESHOLD = 5.5
# A factor of 2: what is smaller is no event in a run, however quiet.
_SMALLEST = math.log(2)
# The standard deviation of a normal variable over its median absolute deviation, and of its median over its mean's.
_PER_MAD = 1.4826
_MEDIAN = math.sqrt(math.pi / 2)


class Shift(NamedTuple):
    """A place where a series goes from one level to another.

    Attributes:
      place: Index of the first value at the new level.
      before: Median of the values before.
      after: Median of the values from there on.
      score: Their difference over its standard deviation in noise like that of the series.
    """

    place: int
    before: float
    after: float
    score: float


class _Test(NamedTuple):
    """One length of the stretch after, and the difference of medians that is usual in the series, with its spread."""

    length: int
    drift: float
    spread: float


def level_shifts(series: Float[np.ndarray, " records"]) -> list[Shift]:
    r"""Find the level shifts of a series of logarithms.

    A shift at :math:`t` is where the medians :math:`m` of 8 values before, and of 8 or 3 from there on, differ by more
    than a factor of 2, and from the :math:`d` that is usual in the series by more than 5.5 standard deviations,

    .. math:: z_t = |m_{\ge t} - m_{<t} - d| \,/\, \max(\sigma \sqrt{\tfrac{\pi}{2} (1/n_{<t} + 1/n_{\ge t})}, s)

    with :math:`\sigma` from the median absolute difference of neighbours, :math:`d` the median of all the differences
    of medians, and :math:`s` from their median absolute deviation, which is the larger in correlated noise and where a
    drift changes. Most of the difference must also arise at once, which it does not in a drift. A single outlier moves
    no median.

    Args:
      series: Logarithms; NaN where there is none.

    Returns:
      The shifts in the order of the series.

    Numerics:
      A factor on what the logarithms are of cancels. A series without noise has only the factor of 2 to exceed.
    """
    places = np.flatnonzero(np.isfinite(series))
    values = [float(value) for value in series[places]]
    if len(values) < _BEFORE + min(_AFTER):
        return []
    noise = noise_of(values)
    tests = [_test(values, length, noise) for length in _AFTER if len(values) >= _BEFORE + length]
    return [shift._replace(place=int(places[shift.place])) for shift in _search(values, 0, len(values), tests)]


def noise_of(values: list[float]) -> float:
    """Estimate the standard deviation of independent noise on a smooth series, robustly, from its differences."""
    steps = [after - before for before, after in itertools.pairwise(values)]
    middle = median(steps)
    return _PER_MAD * median([abs(step - middle) for step in steps]) / math.sqrt(2)


def _test(values: list[float], length: int, noise: float) -> _Test:
    differences = [
        median(values[place : place + length]) - median(values[place - _BEFORE : place])
        for place in range(_BEFORE, len(values) - length + 1)
    ]
    drift = median(differences)
    deviation = _PER_MAD * median([abs(difference - drift) for difference in differences])
    return _Test(length, drift, max(noise * _MEDIAN * math.sqrt(1 / _BEFORE + 1 / length), deviation))


def _search(values: list[float], begin: int, end: int, tests: list[_Test]) -> Iterator[Shift]:
    """Split at the clearest shift, and search both parts."""
    places = range(begin + _BEFORE, end - min(_AFTER) + 1)
    shifts = [
        shift
        for place in places
        for test in tests
        if place + test.length <= end and (shift := _shift(values, place, test)) is not None
    ]
    if not shifts:
        return
    best = max(shifts, key=lambda shift: (shift.score, abs(shift.after - shift.before)))
    yield from _search(values, begin, best.place, tests)
    yield best
    yield from _search(values, best.place, end, tests)


def _shift(values: list[float], place: int, test: _Test) -> Shift | None:
    left, right = values[place - _BEFORE : place], values[place : place + test.length]
    before, after = median(left), median(right)
    size = abs(after - before)
    unusual = abs(after - before - test.drift)
    if size < _SMALLEST or unusual <= _THRESHOLD * test.spread:
        return None
    # The record in which it happens may lie between the levels, so three of each side are compared, not one. A steady
    # drift puts as much between them as their distance is of that of the whole sides; half the rest must be more.
    at_once = abs(median(right[:_NEAREST]) - median(left[-_NEAREST:]))
    of_drift = 2 * _NEAREST / (len(left) + len(right))
    if at_once < (1 + of_drift) / 2 * size:
        return None
    score = unusual / test.spread if test.spread > 0 else math.inf
    return Shift(_nearest_split(values, place, before, after), before, after, score)


def _nearest_split(values: list[float], place: int, before: float, after: float) -> int:
    """Move the place to where the values around it go from one level to the other: the medians hardly tell."""
    around = range(place - _NEAREST, place + _NEAREST)

    def distance(split: int) -> float:
        return sum(abs(values[i] - (before if i < split else after)) for i in around)

    return min(around, key=distance)
