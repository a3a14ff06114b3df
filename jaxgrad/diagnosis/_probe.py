"""A few steps of the user's own optimizer on the batch given: does the loss fall, stand still, or run away?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxgrad.diagnosis._findings import Ruling, large_update
from jaxgrad.diagnosis._report import Finding, LayerStatistics

NUM_STEPS = 16
NUM_FADING = 64
_FADES = 0.01  # of the largest update, to which a schedule falls
_RISES = 2.0  # factor by which the loss may rise above where it began
_STANDS = 0.1  # share of the loss by which it falls at most while it stands nearly still
_FALLS = 0.02  # share by which it falls at another rate for the rate to be to blame
_SMALL_UPDATE = 2e-4  # of the parameter, at the median layer
_HIGHER = (100.0, 10_000.0)
_LOWER = (0.1, 0.01)


class Probe(NamedTuple):
    """What a few steps showed.

    Attributes:
      too_high: Whether the learning rate is too high, rather than too low.
      ruling: The ruling.
      fading: Where the rate decays too soon, the sizes of updates for the same gradient, as shares of the largest.
    """

    too_high: bool
    ruling: Ruling
    fading: tuple[float, ...] = ()


def probe(
    train: Callable[[float], Sequence[float]],
    layers: Sequence[LayerStatistics],
    rounding: float = 0.0,
    fade: Callable[[], Sequence[float]] = tuple,
) -> Probe | None:
    """Look at the loss over a few steps, and at other rates where it does not fall.

    Args:
      train: Gives the losses at the user's learning rate times a factor.
      layers: The layers, with the sizes of their first updates.
      rounding: Relative precision of the parameters: smaller updates are lost.
      fade: Gives the sizes of updates for the same gradient over some steps, as shares of the largest.

    Returns:
      What is wrong with the learning rate, or ``None``.
    """
    losses = train(1.0)
    if _runs_away(losses):
        for rate in _LOWER:
            other = train(rate)
            if not _runs_away(other) and other[-1] < other[0]:
                return Probe(True, _too_high(losses, rate, other, layers))
    ratio = _median_update(layers)
    if ratio is not None and ratio < max(_SMALL_UPDATE, rounding / 4) and _share(losses) < _STANDS:
        for rate in _HIGHER:
            other = train(rate)
            if not _runs_away(other) and _share(other) > max(_FALLS, 10 * abs(_share(losses))):
                return Probe(False, _too_low(losses, rate, other, ratio))
    if _ends(losses):
        return Probe(False, _ended(losses), tuple(fade()))
    large = large_update(layers)
    if large is not None:
        return Probe(True, large)
    sizes = tuple(fade())
    return Probe(False, _faded(sizes[-1]), sizes) if sizes and sizes[-1] < _FADES else None


def still_wrong(losses: Sequence[float], before: Probe) -> Ruling | None:
    """Return the old ruling where a changed setup does no better in the same number of steps."""
    wrong = _runs_away(losses) or not losses[-1] < losses[0] if before.too_high else _share(losses) < _FALLS
    return before.ruling if wrong else None


def _runs_away(losses: Sequence[float]) -> bool:
    """Return whether the loss ends far above where it began, or is no number any more."""
    if not math.isfinite(losses[0]):
        return False
    if not all(map(math.isfinite, losses)):
        return True
    ends = sorted(losses[-4:])
    return ends[len(ends) // 2 - 1] > _RISES * losses[0] if losses[0] > 0 else False


def _ends(losses: Sequence[float]) -> bool:
    """Return whether the loss fell and then stopped for good, with most of it left."""
    last = [abs(loss - losses[-1]) for loss in losses[-4:]]
    return max(last) <= 1e-6 * abs(losses[-1]) and 1e-3 < _share(losses) < 0.9


def _ended(losses: Sequence[float]) -> Ruling:
    evidence = (
        f"In {NUM_STEPS} steps on this batch the loss goes from {losses[0]:.4g} to {losses[-1]:.4g}, and does not move "
        f"in the last of them: the schedule of the learning rate has come to its end."
    )
    summary = "The learning rate is down to nothing after a few steps: lengthen its schedule."
    return Ruling("vanishing", summary, (Finding("vanishing", None, "learning-rate", evidence, 0.8),))


def _faded(left: float) -> Ruling:
    evidence = (
        f"Given the same gradient again and again, the optimizer's update falls to {left:.1g} of its largest within "
        f"{NUM_FADING} steps: the learning rate decays by the step where by the epoch may have been meant."
    )
    summary = f"The learning rate decays to {left:.1g} of itself within {NUM_FADING} steps: lengthen its schedule."
    return Ruling("vanishing", summary, (Finding("vanishing", None, "learning-rate", evidence, 0.75),))


def _share(losses: Sequence[float]) -> float:
    """Return the share of the first loss that is gone in the end."""
    return (losses[0] - losses[-1]) / abs(losses[0]) if losses[0] and math.isfinite(losses[-1]) else -math.inf


def _median_update(layers: Sequence[LayerStatistics]) -> float | None:
    ratios = sorted(layer.update_ratio for layer in layers if layer.update_ratio is not None)
    return ratios[len(ratios) // 2] if ratios else None


def _too_high(
    losses: Sequence[float], rate: float, other: Sequence[float], layers: Sequence[LayerStatistics]
) -> Ruling:
    ends = f"to {losses[-1]:.3g}" if math.isfinite(losses[-1]) else "out of the range of numbers"
    ratio = _median_update(layers)
    sizes = f" The first update is {ratio:.2g} times the parameter at the median layer." if ratio is not None else ""
    evidence = (
        f"In {NUM_STEPS} steps on this batch the loss goes from {losses[0]:.3g} {ends}; at {rate:g} times the learning "
        f"rate it goes to {other[-1]:.3g}.{sizes}"
    )
    summary = f"The learning rate is too high: the loss runs away, and at {rate:g} times the rate it falls."
    return Ruling("exploding", summary, (Finding("exploding", None, "learning-rate", evidence, 0.9),))


def _too_low(losses: Sequence[float], rate: float, other: Sequence[float], ratio: float) -> Ruling:
    evidence = (
        f"Updates are {ratio:.1g} of the parameter at the median layer. In {NUM_STEPS} steps on this batch the loss "
        f"goes from {losses[0]:.4g} to {losses[-1]:.4g}; at {rate:g} times the learning rate to {other[-1]:.4g}."
    )
    summary = f"The learning rate is too low: the loss stands still, and at {rate:g} times the rate it falls."
    return Ruling("vanishing", summary, (Finding("vanishing", None, "learning-rate", evidence, 0.85),))
