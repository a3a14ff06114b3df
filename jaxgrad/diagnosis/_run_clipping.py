"""What a clipper does to a run: nothing, cut off spikes, shorten a part of the steps, or set their length."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np

from jaxgrad.monitoring import Clip, History, Reading

Role = Literal["inactive", "fixing-spikes", "limiting", "masking"]

# On more of the steps than this, and by more than this factor, the threshold sets the length of a step.
_MOST = 0.5
_LARGE = 2.0
_RARE = 0.25
# Relative accuracy to which two norms of one step agree.
_EQUAL = 1e-3


class Clipping(NamedTuple):
    """What one clipper does.

    Attributes:
      place: Its path in the optimizer's state, or the names of the monitors before and after it.
      role: ``"inactive"``; ``"fixing-spikes"``: active on a quarter of the steps at most, so that the gradient returns
        to its level by itself; ``"masking"``: active on more than half of the latest steps, and shortens them by more
        than a factor of 2, so that the threshold acts as the learning rate and hides how large the gradient is;
        ``"limiting"``: between the two.
      active_fraction: Share of all steps it shortened; between two monitors a low estimate, as if it shortened each of
        the steps of a record like the longest.
      recent_fraction: Share of the latest quarter of the records in which it is active on the typical step; equal to
        ``active_fraction`` where no history of the norms before it tells.
      factor: By how much it shortens the typical step of that quarter; at least 1.
      growth: By how much the norm before it has grown since it was lowest, quarter by quarter of the records; ``None``
        where no history tells.
      evidence: The numbers in a sentence.
    """

    place: str
    role: Role
    active_fraction: float
    recent_fraction: float
    factor: float
    growth: float | None
    evidence: str


def clip_roles(readings: Mapping[str, Reading]) -> tuple[Clipping, ...]:
    """Judge every clipper: those with a state by it, others by two monitors around them."""
    clips = next(iter(readings.values())).clips
    roles = [_of_state(place, clip, readings) for place, clip in clips.items() if isinstance(clip.norm, float)]
    return tuple(roles) if clips else tuple(_of_monitors(readings))


def _of_state(place: str, clip: Clip, readings: Mapping[str, Reading]) -> Clipping:
    fraction = float(clip.clip_fraction)
    last = 1 / clip.scale if clip.clipped and clip.scale > 0 else 1.0
    history = next((reading.history for reading in readings.values() if _is_before(reading, clip)), None)
    if history is None:
        return _clipping(place, fraction, fraction, last, None)
    norms = np.array(history.global_norms)
    threshold = clip.norm * clip.scale if clip.clipped else math.inf
    recent = _latest(norms)
    active = float(np.mean(recent > threshold)) if clip.clipped else min(fraction, _MOST)
    return _clipping(place, fraction, active, float(np.median(recent)) / threshold, _growth(norms))


def _is_before(reading: Reading, clip: Clip) -> bool:
    """Tell whether a monitor sees what a clipper is given."""
    norm = reading.global_norm
    return (
        reading.history is not None
        and norm is not None
        and reading.step == clip.count
        and math.isclose(norm, clip.norm, rel_tol=_EQUAL)
    )


def _of_monitors(readings: Mapping[str, Reading]) -> Iterator[Clipping]:
    names = [name for name, reading in readings.items() if reading.history is not None]
    pairs = [("before", "after")] if {"before", "after"} <= set(names) else list(itertools.pairwise(names))
    for first, second in pairs:
        before, after = readings[first].history, readings[second].history
        if before is None or after is None or before.starts != after.starts or list(before.norms) != list(after.norms):
            continue
        log_factor = _logs(before.global_norms) - _logs(after.global_norms)
        if not _is_clip(log_factor, after, named=first == "before" and second == "after"):
            continue
        # Of the steps of a record, as many as give its mean if each were shortened like the longest one.
        longest = _logs(before.max_global_norms) - _logs(after.max_global_norms)
        shares = np.clip(log_factor / np.where(longest > _EQUAL, longest, np.inf), 0, 1)
        shares = np.where(np.isfinite(shares), shares, 0)
        steps = np.array(before.num_steps)
        yield _clipping(
            f"{first} -> {second}",
            float(np.sum(shares * steps) / np.sum(steps)),
            float(np.mean(_latest(shares))),
            float(np.exp(np.median(_latest(log_factor)))),
            _growth(np.array(before.global_norms)),
        )


def _is_clip(log_factor: np.ndarray, after: History, *, named: bool) -> bool:
    """Tell a clipper from other links between two monitors: it lengthens nothing, and cuts at one height."""
    known = np.isfinite(log_factor)
    if not known.any() or np.any(log_factor[known] < -_EQUAL):
        return False
    heights = np.array(after.max_global_norms)[known & (log_factor > _EQUAL)]
    return named or (len(heights) > 0 and bool(np.ptp(heights) <= _EQUAL * heights.max()))


def _clipping(place: str, fraction: float, recent: float, factor: float, growth: float | None) -> Clipping:
    factor = factor if factor > 1 else 1.0
    numbers = f"active on {fraction:.1%} of the steps, {recent:.0%} of the latest"
    if recent > _MOST and factor > _LARGE:
        text = f"{numbers}. It divides the typical gradient by {factor:.3g}: its threshold acts as the learning rate."
        role: Role = "masking"
    elif fraction == 0:
        text, role = "active on no step.", "inactive"
    elif fraction <= _RARE and recent <= _MOST:
        text, role = f"{numbers}. It cuts off spikes, and the gradient returns to its level.", "fixing-spikes"
    else:
        text, role = f"{numbers}. It divides the typical gradient by {factor:.3g}.", "limiting"
    return Clipping(place, role, fraction, recent, factor, growth, text)


def _latest(values: np.ndarray) -> np.ndarray:
    return values[-max(len(values) // 4, 1) :]


def _growth(norms: np.ndarray) -> float | None:
    logs = _logs(norms)
    quarters = [part[np.isfinite(part)] for part in np.array_split(logs, min(len(logs), 4))] if len(logs) else []
    levels = [float(np.median(part)) for part in quarters if len(part)]
    return math.exp(levels[-1] - min(levels)) if levels else None


def _logs(norms: list[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(norms, np.float64)
    return np.log(np.where(values > 0, values, np.nan))
