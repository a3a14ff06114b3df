"""What changed in a run, when, and in which layer: each a test of the records against the run's own past."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxgrad.monitoring import History, Reading
from jaxgrad.monitoring._shifts import Shift, level_shifts, noise_of

Kind = Literal[
    "jump",
    "collapse",
    "stopped",
    "nonfinite",
    "large-updates",
    "small-updates",
    "updates-jump",
    "updates-collapse",
    "loss-divergence",
    "loss-plateau",
]

# A layer has stopped whose norm fell this much more than that of the layer that kept its norm best.
_STOPPED = math.log(1e3)
# Others keep their norm that fell less than this.
_KEPT = math.log(1e2)
# Between these relative changes a step, a layer learns.
_SMALL_RATIO, _LARGE_RATIO = 1e-6, 0.1
# How many of the latest records must agree on what lasts.
LATEST = 3


class Change(NamedTuple):
    """One thing that changed in a run.

    Attributes:
      step: When, counted from 0: the first step of the record in which it did, or the very step of a NaN.
      layer: The layer's path, or ``None`` where it concerns the whole run.
      kind: ``"jump"`` and ``"collapse"``: the layer's norm went to another level. ``"stopped"``: its norm is 0 or has
        fallen a thousand times as much as another layer's. ``"nonfinite"``: the first NaN or infinity.
        ``"large-updates"`` and ``"small-updates"``: its update ratio went above 0.1 or below 1e-6, and stayed.
        ``"updates-jump"`` and ``"updates-collapse"``: its update ratio went to another level.
        ``"loss-divergence"``; ``"loss-plateau"``: the loss has not fallen since the first step.
      before: The norm, update ratio or loss before.
      after: The same since.
      evidence: The numbers in a sentence.
    """

    step: int
    layer: str | None
    kind: Kind
    before: float
    after: float
    evidence: str


def full_records(history: History) -> History:
    """Leave out a last record of less than half the steps, whose mean is noisier than the others."""
    if len(history.starts) < 2 or 2 * history.num_steps[-1] >= history.num_steps[0]:
        return history

    def cut(values: Any) -> Any:
        return {layer: each[:-1] for layer, each in values.items()} if isinstance(values, dict) else values[:-1]

    return History(*map(cut, history))


def level_changes(history: History, shifts: Mapping[str, list[Shift]], stopped: list[Change]) -> Iterator[Change]:
    """Date the level shifts of the norms, but for those by which a layer stopped."""
    ends = {change.layer: change.step for change in stopped}
    for layer, found in shifts.items():
        for shift in found:
            step = history.starts[shift.place]
            if not (layer in ends and step >= ends[layer] - 2 * history.num_steps[0]):
                yield _level_change(step, layer, shift, "jump", "collapse", "Norm")


def _level_change(step: int, layer: str, shift: Shift, up: Kind, down: Kind, quantity: str) -> Change:
    before, after = math.exp(shift.before), math.exp(shift.after)
    noise = f"{shift.score:.0f} times the noise of its past" if math.isfinite(shift.score) else "without noise"
    evidence = f"{quantity} {before:.2g}, then {after:.2g}: {noise}."
    return Change(step, layer, up if after > before else down, before, after, evidence)


def stops(history: History) -> Iterator[Change]:
    """Find the layers that had a gradient, and have none or next to none in the latest records."""
    if len(history.starts) <= LATEST:
        return
    logs = {layer: log_norms(values, zero=-math.inf) for layer, values in history.norms.items()}
    alive = {layer: values for layer, values in logs.items() if np.isfinite(values).any()}
    past = {layer: float(np.quantile(values[np.isfinite(values)], 0.9)) for layer, values in alive.items()}
    falls = {layer: float(np.max(values[-LATEST:])) - past[layer] for layer, values in alive.items()}
    for layer, values in alive.items():
        kept = max((fall for other, fall in falls.items() if other != layer), default=-math.inf)
        known = values[np.isfinite(values)].tolist()
        noise = noise_of(known) if len(known) > LATEST else 0.0
        limit = past[layer] - _STOPPED - 5 * noise if kept > -_KEPT else -math.inf
        # NaN where steps were not finite, which is another fault: it compares as False.
        if not values[-LATEST:].max() <= limit:
            continue
        first = int(np.flatnonzero(~(values <= limit))[-1]) + 1
        before, after = math.exp(past[layer]), math.exp(float(np.median(values[first:])))
        since = "0 since" if after == 0 else f"{after:.2g}, and the others keep theirs"
        yield Change(history.starts[first], layer, "stopped", before, after, f"Norm {before:.2g}, then {since}.")


def ratio_changes(history: History) -> Iterator[Change]:
    """Find where the update ratios went to another level, and where they left the range in which a layer learns."""
    for layer, values in history.update_ratios.items():
        ratios = np.array(values)
        for shift in level_shifts(log_norms(ratios)):
            step = history.starts[shift.place]
            yield _level_change(step, layer, shift, "updates-jump", "updates-collapse", "Update ratio")
        sides = np.where(ratios > _LARGE_RATIO, 1, np.where((ratios > 0) & (ratios < _SMALL_RATIO), -1, 0))
        if len(sides) <= LATEST or sides[-1] == 0 or np.any(sides[-LATEST:] != sides[-1]):
            continue
        inside = np.flatnonzero(sides != sides[-1])
        first = int(inside[-1]) + 1 if len(inside) else 0
        # Weights that begin at 0 have a large ratio at first.
        if first == 0 and len(sides) < 16:
            continue
        kind: Kind = "large-updates" if sides[-1] > 0 else "small-updates"
        before = float(np.median(ratios[max(first - 8, 0) : first])) if first else float(ratios[0])
        after = float(np.median(ratios[first:]))
        evidence = f"Update ratio {before:.2g}, then {after:.2g}."
        yield Change(history.starts[first], layer, kind, before, after, evidence)


def has_losses(history: History) -> bool:
    """Tell whether the optimizer was told any loss."""
    return bool(np.isfinite(history.losses).any() or any(history.num_nonfinite_losses))


def loss_changes(history: History) -> Iterator[Change]:
    """Find where the loss went up for good or is not finite, or that it never came down."""
    bad = np.flatnonzero(history.num_nonfinite_losses)
    places = np.flatnonzero(np.isfinite(history.losses))
    losses = np.array(history.losses)[places]
    starts = [history.starts[place] for place in places]
    if len(bad):
        before = float(losses[places <= bad[0]][-1]) if np.any(places <= bad[0]) else math.nan
        yield Change(history.starts[bad[0]], None, "loss-divergence", before, math.inf, "The loss is not finite.")
        return
    if len(losses) < 8:
        return
    latest = float(np.median(losses[-LATEST:]))
    if np.all(losses > 0):
        risen = [shift for shift in level_shifts(np.log(losses)) if shift.after > shift.before]
        lasting = [shift for shift in risen if math.log(latest) > (shift.before + shift.after) / 2]
        if lasting:
            yield _divergence(starts[lasting[0].place], math.exp(lasting[0].before), latest)
            return
    # As much as was gained is lost again. A loss below 0 has no logarithm, and a slow rise no shift.
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(losses, LATEST), axis=1)
    best = int(np.argmin(smooth))
    noise = noise_of(losses.tolist())
    gained, lost = float(smooth[0] - smooth[best]), latest - float(smooth[best])
    if lost > max(gained, 10 * noise, 1e-3 * abs(latest)):
        above = losses > smooth[best] + lost / 2
        first = int(np.flatnonzero(~above)[-1]) + 1
        yield _divergence(starts[min(first, len(starts) - 1)], float(smooth[best]), latest)
        return
    quarter = len(losses) // 4
    fall = float(np.median(losses[:quarter]) - np.median(losses[-quarter:]))
    if quarter >= 4 and fall < max(3 * noise * math.sqrt(math.pi / quarter), 1e-3 * abs(latest)):
        evidence = f"The loss was {losses[:quarter].mean():.4g} and is {losses[-quarter:].mean():.4g}."
        yield Change(starts[0], None, "loss-plateau", float(smooth[0]), latest, evidence)


def _divergence(step: int, before: float, after: float) -> Change:
    return Change(step, None, "loss-divergence", before, after, f"The loss was {before:.3g}, and is {after:.3g}.")


def nonfinite_changes(reading: Reading) -> Iterator[Change]:
    """Pass on the first NaN or infinity, which the monitor dates to the step."""
    if reading.first_nonfinite_step is not None:
        evidence = f"Not finite in {reading.num_nonfinite} of {reading.step} steps."
        yield Change(reading.first_nonfinite_step, reading.first_nonfinite, "nonfinite", math.nan, math.nan, evidence)


def log_norms(values: Any, zero: float = math.nan) -> np.ndarray:
    """Take logarithms, NaN where there is none, and ``zero`` of 0."""
    values = np.asarray(values, np.float64)
    return np.where(values == 0, zero, np.log(np.where(values > 0, values, np.nan)))
