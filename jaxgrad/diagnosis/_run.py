"""What happened in a training run, from the records that a monitor kept in the optimizer's state."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxgrad._checks import message
from jaxgrad.diagnosis._report import Finding, Verdict
from jaxgrad.diagnosis._run_changes import (
    LATEST,
    Change,
    full_records,
    has_losses,
    level_changes,
    log_norms,
    loss_changes,
    nonfinite_changes,
    ratio_changes,
    stops,
)
from jaxgrad.diagnosis._run_clipping import Clipping, clip_roles
from jaxgrad.monitoring import History, Reading
from jaxgrad.monitoring._read import readings_by_name
from jaxgrad.monitoring._shifts import Shift, level_shifts

# A shift of this factor is a fault where the loss did not fall with it; of its square where no loss was recorded.
_FAULT = math.log(10)
# From the first of a stack of equal layers to the last.
_THROUGH_DEPTH = math.log(1e4)
# With fewer records a change must be very large to be seen.
_FEWEST = 16
# What is less sure does not move the verdict.
_SURE = 0.5


class RunDiagnosis(NamedTuple):
    """What :func:`jaxgrad.diagnosis.diagnose_run` says. ``str`` makes a few lines of it.

    Attributes:
      verdict: ``"healthy"``, ``"vanishing"``, ``"exploding"``, ``"nonfinite"`` or ``"dead"``.
      summary: The verdict in a sentence or two.
      findings: What is wrong, most confident first. One of a confidence below 0.5 does not move the verdict.
      changes: What changed, by step.
      clipping: What each clipper does; empty where there is none.
      num_steps: Steps of the run so far.
      resolution: Steps a record covers: no change but a NaN is dated more exactly.
    """

    verdict: Verdict
    summary: str
    findings: tuple[Finding, ...]
    changes: tuple[Change, ...]
    clipping: tuple[Clipping, ...]
    num_steps: int
    resolution: int

    def __str__(self) -> str:
        lines = [f"{self.verdict} after {self.num_steps} steps: {self.summary}"]
        for (step, kind), group in _grouped(self.changes).items():
            lines.append(f"  step {step}: {kind}{_places(group)}. {group[0].evidence}")
        for finding in self.findings:
            place = "" if finding.layer is None else f" in {finding.layer}"
            lines.append(
                f"  {finding.symptom} by {finding.cause}{place} ({finding.confidence:.2f}): {finding.evidence}"
            )
        lines += [f"  clipper {clip.place}: {clip.role}, {clip.evidence}" for clip in self.clipping]
        return "\n".join(lines)


def diagnose_run(opt_state: Any, *, name: str | None = None) -> RunDiagnosis:
    r"""Say what went wrong in a training run, when, and in which layer, from the optimizer's state.

    Let :math:`y_r` be a layer's mean log norm over the steps of record :math:`r`. Its norm changed at :math:`t` where
    the medians :math:`m` of 8 records before, and of 8 or 3 from there on, differ by more than a factor of 2, all at
    once, and by

    .. math:: |m_{\ge t} - m_{<t} - d| > 5.5 s

    with :math:`d` and :math:`s` the middle and the spread of such differences over the run. All else compares a layer
    with its own past, with the other layers, or its update with its parameters, so that no verdict depends on the unit
    of the loss.

    Args:
      opt_state: The state of an optax optimizer with a :func:`jaxgrad.monitoring.monitor` that has a ``history``, or
        a tree that holds one. Place the monitor first in the chain. With ``value=loss`` in ``update`` the loss is
        judged too; with ``update_ratio=True`` in a monitor, which may be a second one at the chain's end, the size of
        the steps is. Clippers of :mod:`jaxgrad.clipping` tell what they do in their own state; around another,
        ``optax.clip_by_global_norm`` for one, place two monitors named ``"before"`` and ``"after"``.
      name: The monitor whose norms to judge, where there are several. ``None``: ``"before"``, or the first in the
        state that has a history.

    Returns:
      A :class:`jaxgrad.diagnosis.RunDiagnosis`. A change is seen three records after it happened. Takes about a
      millisecond a layer, twice that with update ratios, and waits for the step that made the state.

    Raises:
      ValueError: No monitor in the state has a history, or not the one named; or as in :func:`jaxgrad.monitoring.read`.
      TypeError: The state is traced: call it outside ``jit``.

    Numerics:
      Computed in double precision from the records. Steps that are not finite are in no mean, and counted. On
      stationary log-normal noise, white or correlated by 0.5 from record to record, one series in 200 shows
      a change.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxgrad.diagnosis import diagnose_run
      >>> from jaxgrad.monitoring import monitor
      >>> optimizer = optax.chain(monitor(history=64), optax.adam(1e-3))
      >>> diagnose_run(optimizer.init({"w": jnp.zeros(2)})).verdict
      'healthy'

    See also:
      :func:`jaxgrad.explain`, which takes the network itself apart; :func:`jaxgrad.monitoring.read` for the records.
    """
    readings = readings_by_name(opt_state)
    reading, history = _chosen(readings, name)
    ratios = next((each.history for each in readings.values() if each.history and each.history.update_ratios), None)
    losses = next((each.history for each in readings.values() if each.history and has_losses(each.history)), None)
    full = full_records(history)
    shifts = {layer: level_shifts(log_norms(values)) for layer, values in full.norms.items()}
    stopped = list(stops(full))
    of_ratios = [] if ratios is None else list(ratio_changes(full_records(ratios)))
    of_losses = [] if losses is None else list(loss_changes(full_records(losses)))
    changes = [*level_changes(full, shifts, stopped), *stopped, *of_ratios, *of_losses, *nonfinite_changes(reading)]
    changes.sort(key=lambda change: change.step)
    clipping = clip_roles(readings)
    findings = [
        *_nonfinite_findings(reading, full),
        *_dead_findings(full, stopped, losses),
        *_shift_findings(full, shifts, of_losses, of_ratios, losses),
        *([] if losses is not None and _keeps_its_gain(losses) else _small_update_findings(of_ratios, ratios)),
        *_depth_findings(full),
        *_clipping_findings(clipping),
    ]
    findings.sort(key=lambda finding: -finding.confidence)
    verdict: Any = findings[0].symptom if findings and findings[0].confidence >= _SURE else "healthy"
    resolution = history.num_steps[0] if history.num_steps else 1
    summary = _summary(findings, changes, clipping, len(full.starts))
    return RunDiagnosis(verdict, summary, tuple(findings), tuple(changes), clipping, reading.step or 0, resolution)


def _chosen(readings: Mapping[str, Reading], name: str | None) -> tuple[Reading, History]:
    with_history = [each for each, reading in readings.items() if reading.history is not None]
    if name is None and with_history:
        name = "before" if "before" in with_history else with_history[0]
    reading = readings.get(name or "")
    if reading is None or reading.history is None:
        known = ", ".join(map(repr, with_history)) or "none"
        got = f"name={name!r}, and with a history: {known}"
        remedy = "put monitor(history=64) first into the chain" if not with_history else f"pass one of {known}"
        raise ValueError(message("diagnose_run", "a monitor with a history", got, remedy))
    return reading, reading.history


def _nonfinite_findings(reading: Reading, history: History) -> Iterator[Finding]:
    steps = max(reading.step or 0, 1)
    for place, clip in reading.clips.items():
        if reading.first_nonfinite is None and clip.num_nonfinite:
            seen = f"The clipper {place} met {clip.num_nonfinite} steps of {steps} that are not finite."
            confidence = 0.9 if clip.num_nonfinite > 0.01 * steps else 0.4
            yield Finding("nonfinite", None, "nonfinite-op", seen, confidence)
            return
    if reading.first_nonfinite is None:
        return
    layer, quarter = reading.first_nonfinite, max(len(history.starts) // 4, 1)
    lasting = any(values[-1] for values in reading.history.num_nonfinite.values()) if reading.history else True
    lasting |= any(sum(values[-quarter:]) for values in history.num_nonfinite.values())
    place = int(np.searchsorted(history.starts, reading.first_nonfinite_step or 0, side="right")) - 1
    logs = log_norms(history.max_norms[layer][: place + 1])
    peak = logs[-1] - np.nanmedian(logs) if np.isfinite(logs[:-1]).any() and np.isfinite(logs[-1]) else 0.0
    cause = "instability" if peak > 2 * _FAULT else "nonfinite-op"
    grew = f" Just before, its norm was {math.exp(peak):.2g} times its usual one." if peak > _FAULT else ""
    evidence = f"Step {reading.first_nonfinite_step} is the first of {reading.num_nonfinite} not finite.{grew}"
    # A single one that the optimizer skipped, as loss scaling does in half precision, is no fault of the run.
    yield Finding("nonfinite", layer, cause, evidence, 1.0 if lasting else 0.4)


def _dead_findings(history: History, stopped: list[Change], losses: History | None) -> Iterator[Finding]:
    # All of them, at the lowest loss there was: there is no more to learn.
    if losses is None or len(stopped) < len(history.norms) or not _keeps_its_gain(losses):
        for change in stopped:
            cause = "dead-relu" if change.after == 0 else "stopped"
            evidence = f"No gradient reaches it since step {change.step}. {change.evidence}"
            yield Finding("dead", change.layer, cause, evidence, 0.95 if change.after == 0 else 0.7)
    if len(history.starts) <= LATEST:
        return
    never = [layer for layer, values in history.norms.items() if max(values) == 0]
    for layer in never:
        sure = 0.9 if len(never) == len(history.norms) else 0.3
        yield Finding("dead", layer, "no-gradient", "Norm 0 since the first step: frozen, or cut from the loss.", sure)


def _shift_findings(
    history: History,
    shifts: Mapping[str, list[Shift]],
    of_losses: list[Change],
    of_ratios: list[Change],
    losses: History | None,
) -> Iterator[Finding]:
    """Blame the level shifts that last, or were followed by a divergence, unless the loss says that all is well."""
    found = sorted(
        (history.starts[shift.place], -abs(shift.after - shift.before), layer, shift)
        for layer, each in shifts.items()
        for shift in each
    )
    diverged = next((change for change in of_losses if change.kind == "loss-divergence"), None)
    near = 2 * history.num_steps[0] if history.num_steps else 0
    risen = {layer: shift.after - shift.before for _, _, layer, shift in found if shift.after > shift.before}
    cause, because = _cause([risen.get(layer, 0.0) for layer in history.norms], of_ratios)
    if diverged is not None:
        first = next(
            (layer for step, _, layer, shift in found if layer in risen and step <= diverged.step + near), None
        )
        yield Finding("exploding", first, cause, f"Step {diverged.step}: {diverged.evidence}{because}", 0.9)
    if losses is not None and _keeps_its_gain(losses):
        return
    least = _FAULT if losses is not None else 2 * _FAULT
    for symptom, sign in (("exploding", 1.0), ("vanishing", -1.0)):
        faults = []
        for step, _, layer, shift in found:
            size = sign * (shift.after - shift.before)
            latest = float(np.median(log_norms(history.norms[layer])[-LATEST:]))
            if size > least and sign * (latest - shift.before) > size / 2:
                faults.append((step, layer, shift))
        if faults and not (symptom == "exploding" and diverged is not None):
            step, layer, shift = faults[0]
            factor = math.exp(shift.after - shift.before)
            many = f", like that of {len(faults) - 1} more" if len(faults) > 1 else ""
            evidence = f"At step {step} its norm changed by a factor of {factor:.2g}{many}.{because}"
            yield Finding(symptom, layer, cause, evidence, 0.7)


def _cause(risen: list[float], of_ratios: list[Change]) -> tuple[str, str]:
    """Blame the learning rate where updates are large, or grew by more than the gradients did in the typical layer."""
    grown = {change.layer: change for change in of_ratios if change.kind == "updates-jump"}
    typical = float(np.median(risen)) if risen else 0.0
    if len(grown) > len(risen) / 2:
        factors = sorted(grown.values(), key=lambda change: change.after / change.before)
        middle = factors[len(factors) // 2]
        if math.log(middle.after / middle.before) > typical:
            return "learning-rate", f" {middle.layer}, step {middle.step}: {middle.evidence}"
    large = [change for change in of_ratios if change.kind == "large-updates"]
    return ("learning-rate", f" {large[0].layer}: {large[0].evidence}") if large else ("instability", "")


def _keeps_its_gain(history: History) -> bool:
    """Tell whether the loss has come down, and is at most a twentieth of the way up again."""
    losses = np.array(full_records(history).losses)
    losses = losses[np.isfinite(losses)]
    if len(losses) <= LATEST or any(history.num_nonfinite_losses[-LATEST:]):
        return False
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(losses, LATEST), axis=1)
    gained = float(smooth[0] - smooth.min())
    return gained > 0 and float(smooth[-1] - smooth.min()) < 0.05 * gained


def _small_update_findings(changes: list[Change], history: History | None) -> Iterator[Finding]:
    small = [change for change in changes if change.kind == "small-updates"]
    # All at once is a learning rate that its schedule brings to 0.
    if history is None or len(small) == len(history.update_ratios):
        return
    for change in small:
        yield Finding("vanishing", change.layer, "learning-rate", f"From step {change.step}: {change.evidence}", 0.6)


def _depth_findings(history: History) -> Iterator[Finding]:
    """Follow the norm through each stack of layers whose paths differ in a number only."""
    stacks: dict[str, list[tuple[tuple[int, ...], str]]] = defaultdict(list)
    for layer in history.norms:
        stacks[re.sub(r"\d+", "*", layer)].append((tuple(map(int, re.findall(r"\d+", layer))), layer))
    quarter = max(len(history.starts) // 4, LATEST)
    for template, stack in stacks.items():
        layers = [layer for _, layer in sorted(stack)]
        logs = [log_norms(history.norms[layer])[-quarter:] for layer in layers]
        if len(layers) < 5 or len(history.starts) < quarter or not all(np.isfinite(each).any() for each in logs):
            continue
        levels = np.array([np.nanmedian(each) for each in logs])
        depth = np.arange(len(levels))
        rise = float(np.polyfit(depth, levels, 1)[0]) * (len(levels) - 1)
        fit = float(np.corrcoef(depth, levels)[0, 1]) ** 2 if np.ptp(levels) > 0 else 0.0
        if abs(rise) > _THROUGH_DEPTH and fit > 0.7:
            symptom = "vanishing" if rise > 0 else "exploding"
            evidence = (
                f"Over the {len(layers)} layers {template} the norm {'falls' if rise > 0 else 'grows'} by a factor of "
                f"{math.exp(abs(rise)):.2g} from the last to the first, evenly."
            )
            yield Finding(symptom, layers[0], "depth", evidence, round(min(0.9, fit), 2))


def _clipping_findings(clipping: Iterable[Clipping]) -> Iterator[Finding]:
    for clip in clipping:
        if clip.role == "masking":
            # Without growth the threshold is only a small one, whose unit is that of the loss.
            sure = 0.8 if clip.growth is not None and clip.growth > 10 else 0.4
            grown = "" if (clip.growth or 0) < 2 else f", which is {clip.growth:.2g} times as large as it once was"
            evidence = f"Clipper {clip.place} divides the typical gradient by {clip.factor:.3g}{grown}."
            yield Finding("exploding", None, "masked-by-clipping", evidence, sure)


def _summary(findings: list[Finding], changes: list[Change], clipping: tuple[Clipping, ...], records: int) -> str:
    if findings and findings[0].confidence >= _SURE:
        first = findings[0]
        place = "" if first.layer is None else f", first in {first.layer}"
        text = f"{first.cause}{place}."
    elif records < _FEWEST and not changes:
        return f"no change in the first {records} records, too few to know the run's own noise."
    else:
        text = "what changed is no fault." if changes else "no change beyond its own noise."
    masking = [clip.place for clip in clipping if clip.role == "masking"]
    return f"{text} Clipping hides the size of the gradient." if masking else text


def _grouped(changes: Iterable[Change]) -> dict[tuple[int, str], list[Change]]:
    groups: dict[tuple[int, str], list[Change]] = defaultdict(list)
    for change in changes:
        groups[change.step, change.kind].append(change)
    return groups


def _places(group: list[Change]) -> str:
    names = [change.layer for change in group if change.layer is not None]
    if not names:
        return ""
    return f" in {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
