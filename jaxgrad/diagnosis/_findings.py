"""From measured numbers to a verdict, and from the verdict to causes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxgrad.diagnosis._report import BlockStatistics, Finding, LayerStatistics, NonFinite, Verdict

VANISHING = -3.0
"""log10 of the total gain below which the first block learns a thousand times more slowly than the last."""
EXPLODING = 3.0
DEAD = 0.8
"""Share of a layer's units that never react above which the layer is dead."""
ILL_CONDITIONED = 5.0
"""log10 of the largest over the median singular value of the whole chain."""
FEATURE_SCALE = 3.0
"""log10 of the ratio of the largest to the median feature scale at the network's input."""
TARGET_SCALE = 2.5
"""log10 of the targets' over the outputs' root mean square."""
UPDATE_RATIO = 1.0
"""Norm of the first update over the parameter's, at the median layer."""


class LayerFacts(NamedTuple):
    """What the rules know of a layer beyond its statistics.

    Attributes:
      name: The layer's name.
      weight_variance: Fan-in times the mean squared weight; ``nan`` where the layer does not sum.
      slope: Root mean square of the slope of the nonlinearity behind it; ``nan`` where there is none.
      saturates: Whether that nonlinearity is flat on both sides.
      fan_in: How many inputs a unit sums over.
    """

    name: str
    weight_variance: float
    slope: float
    saturates: bool
    fan_in: int


class BlockFacts(NamedTuple):
    """What the rules know of a block beyond its statistics.

    Attributes:
      statistics: What was measured.
      layers: The layers inside.
      skip: Whether an activation can pass around the layers.
      normalization: Whether it divides by a root of what passes through.
    """

    statistics: BlockStatistics
    layers: tuple[LayerFacts, ...]
    skip: bool
    normalization: bool


class Facts(NamedTuple):
    """All that the rules decide by.

    Attributes:
      chains: The blocks, chain by chain.
      layers: Statistics of all layers.
      mixes_examples: Whether examples depend on one another.
      has_signal: Whether the loss has a gradient at the network's output.
      log10_input_scale: log10 of the root mean square at the network's input.
      log10_feature_scale: log10 of the largest over the median feature scale there.
      log10_target_scale: log10 of the targets' over the outputs' root mean square; ``nan`` without float targets.
      log10_spread: log10 of the largest over the median singular value of the most spread chain; ``nan`` if unknown.
      nonfinite: Where the first value that is not finite is made.
    """

    chains: tuple[tuple[BlockFacts, ...], ...]
    layers: tuple[LayerStatistics, ...]
    mixes_examples: bool
    has_signal: bool
    log10_input_scale: float
    log10_feature_scale: float
    log10_target_scale: float
    log10_spread: float
    nonfinite: NonFinite | None


class Decision(NamedTuple):
    """A verdict and what it rests on.

    Attributes:
      verdict: The verdict.
      summary: The same in one plain sentence.
      findings: What is wrong, most confident first.
      log10_total_gain: log10 of the total gain of the most extreme chain.
    """

    verdict: Verdict
    summary: str
    findings: tuple[Finding, ...]
    log10_total_gain: float


def decide(facts: Facts) -> Decision:
    """Decide by the measured gains alone, so that the unit of the loss does not matter."""
    gains = [(_total(chain), chain) for chain in facts.chains]
    total, chain = max(gains, key=lambda pair: abs(pair[0]), default=(0.0, ()))
    if facts.nonfinite is not None:
        return _nonfinite(facts.nonfinite, total)
    dead = [layer for layer in facts.layers if layer.dead_fraction is not None and layer.dead_fraction >= DEAD]
    if dead:
        return _dead(dead, total)
    if total <= VANISHING:
        return _trend("vanishing", facts, chain, total)
    if total >= EXPLODING:
        return _trend("exploding", facts, chain, total)
    if facts.log10_target_scale >= TARGET_SCALE:
        return _target_scale(facts, total)
    if facts.log10_feature_scale >= FEATURE_SCALE:
        return _feature_scale(facts, total)
    if facts.log10_spread >= ILL_CONDITIONED:
        return _spread(facts, total)
    return Decision("healthy", _healthy_summary(facts, chain, total), (), total)


def _total(chain: Sequence[BlockFacts]) -> float:
    """Return log10 of the most extreme gain from the end of a chain back to any cut before it."""
    running, extreme = 0.0, 0.0
    for block in reversed(chain):
        running += block.statistics.log10_gain
        if abs(running) > abs(extreme):
            extreme = running
    return extreme


def factor(log10: float) -> str:
    """Write 10 to a power as a factor: ``4.2×``, or ``8.4·10¹¹×`` where it is large or small."""
    if not math.isfinite(log10):
        return "infinitely much"
    if abs(log10) < 4:
        return f"{10**log10:.3g}×"
    exponent = math.floor(log10)
    return f"{10 ** (log10 - exponent):.1f}·10{str(exponent).translate(_RAISED)}×"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _healthy_summary(facts: Facts, chain: Sequence[BlockFacts], total: float) -> str:
    if not facts.has_signal:
        return "The loss has no gradient left at the output; a signal sent back from there would arrive well."
    if not chain:
        return "Every value is finite and no nonlinearity is dead; the network has no two cuts to compare."
    return f"Over {_count(chain)} the backward signal keeps its size: it changes by a factor of {10**total:.2g} in all."


def _nonfinite(origin: NonFinite, total: float) -> Decision:
    when = "the loss" if origin.phase == "forward" else "the gradient"
    step = f" at step {origin.step}" if origin.step is not None else ""
    if origin.phase == "input":
        summary = f"Not finite from the start: {origin.source} holds a NaN or an infinity."
        evidence = f"{origin.source} has entries that are NaN or infinite before anything is computed."
    else:
        summary = f"Not finite: {origin.operation} at {origin.source} makes the first NaN or infinity in {when}{step}."
        evidence = (
            f"Every value before {origin.operation} is finite, and its "
            f"{'result' if origin.phase == 'forward' else 'derivative'} is not{step}. It stands at {origin.source}"
            f"{f', in or after layer {origin.layer}' if origin.layer else ''}."
        )
    finding = Finding("nonfinite", origin.layer, "nonfinite-op", evidence, 0.99)
    return Decision("nonfinite", summary, (finding,), total)


def _dead(dead: Sequence[LayerStatistics], total: float) -> Decision:
    findings = tuple(
        Finding(
            "dead",
            layer.name,
            "dead-relu",
            f"{layer.dead_fraction:.0%} of the units behind {layer.name} ({layer.activation}) have slope 0 on every "
            f"example of the batch, so no gradient reaches their weights.",
            min(0.99, float(layer.dead_fraction or 0.0)),
        )
        for layer in sorted(dead, key=lambda layer: -(layer.dead_fraction or 0.0))
    )
    worst = findings[0]
    summary = (
        f"Dead units: behind {worst.layer} almost no unit reacts to any example"
        + (f", and behind {len(dead) - 1} other layers" if len(dead) > 1 else "")
        + ", so what lies before cannot learn."
    )
    return Decision("dead", summary, findings, total)


def _count(chain: Sequence[BlockFacts]) -> str:
    """Say how many blocks or steps a chain has."""
    steps = sum(block.statistics.kind == "time" for block in chain)
    number, noun = (steps, "step") if steps else (len(chain), "block")
    return f"{number} {noun}{'' if number == 1 else 's'}"


class _Share(NamedTuple):
    cause: str
    layer: str | None
    gain: float
    worst: float
    detail: str


def _trend(symptom: Verdict, facts: Facts, chain: Sequence[BlockFacts], total: float) -> Decision:
    """Blame the blocks that shrink (or grow) the signal, and name why each does."""
    sign = -1.0 if symptom == "vanishing" else 1.0
    shares: dict[str, _Share] = {}
    for position, block in enumerate(chain):
        gain = _finite(block.statistics.log10_gain)
        if gain * sign <= 0:
            continue
        cause, layer, detail = _cause(symptom, facts, block, position)
        known = shares.get(cause)
        if known is None or gain * sign > known.worst * sign:
            shares[cause] = _Share(cause, layer, (known.gain if known else 0.0) + gain, gain, detail)
        else:
            shares[cause] = known._replace(gain=known.gain + gain)
    whole = sum(share.gain for share in shares.values()) or sign
    ranked = sorted(shares.values(), key=lambda share: -share.gain * sign)
    kind = "step" if chain[0].statistics.kind == "time" else "block"
    steps = sum(block.statistics.kind == "time" for block in chain)
    mean = _finite(total) / (steps or len(chain))
    certainty = min(0.99, 0.6 + 0.4 * min(1.0, (abs(_finite(total)) - 3) / 3))
    verb = "shrinks" if symptom == "vanishing" else "grows"
    findings = []
    for share in ranked:
        part = share.gain / whole
        if findings and part < 0.15:
            continue
        alike = len(chain) > 2 and abs(share.worst) < 3 * abs(mean)
        whose = f"all {kind}s much alike" if alike else f"{abs(share.worst / whole):.0%} of it at one {kind}"
        evidence = (
            f"From the output back to the first {kind} the signal {verb} {factor(abs(total))} over {_count(chain)}, "
            f"{factor(abs(mean))} a {kind}; this cause accounts for {part:.0%}, {whose}. {share.detail}"
        )
        findings.append(Finding(symptom, share.layer, share.cause, evidence, round(certainty * part, 3)))
    noun = "vanish" if symptom == "vanishing" else "explode"
    extent = "to exactly zero" if not math.isfinite(total) else factor(abs(total))
    plain = _PLAIN[ranked[0].cause] if ranked else "no single cause stands out"
    summary = (
        f"Gradients {noun}: on the way back through {_count(chain)} the signal {verb} {extent}, "
        f"about {factor(abs(mean))} a {kind}: {plain}."
    )
    return Decision(symptom, summary, tuple(findings), total)


_PLAIN = {
    "saturating-activation": "the nonlinearity is too flat where it is used",
    "initialization": "the weights have the wrong size for their nonlinearity",
    "recurrence": "the same recurrent step is applied again and again",
    "residual-scale": "each residual branch adds more than the stream can carry",
    "normalization": "normalizing over the batch amplifies the gradient at each layer",
    "depth": "small losses add up over the depth",
    "missing-residual": "nothing carries the signal past the layers",
    "input-scale": "the inputs are on too large a scale",
}


def _finite(value: float) -> float:
    """Return the value, or the largest exponent of a double where it is infinite."""
    return value if math.isfinite(value) else math.copysign(308.0, value)


def _cause(symptom: str, facts: Facts, block: BlockFacts, position: int) -> tuple[str, str | None, str]:
    """Return why one block shrinks or grows the signal: cause, layer, and the numbers that show it."""
    statistics = block.statistics
    name = statistics.layers[0] if statistics.layers else statistics.name
    gain = f"{statistics.name} changes it by {factor(statistics.log10_gain)}"
    summing = [layer for layer in block.layers if not math.isnan(layer.weight_variance)]
    if statistics.kind == "time":
        recurrent = max(summing, key=lambda layer: layer.fan_in, default=None)
        slope = ""
        if recurrent is not None and not math.isnan(recurrent.slope):
            slope = f", and its nonlinearity has a typical slope of {recurrent.slope:.3g}"
        return "recurrence", recurrent.name if recurrent else name, f"{gain}{slope}: every step multiplies it again."
    if block.skip:
        growth = math.log10(statistics.output_rms / statistics.input_rms) if statistics.input_rms > 0 else 0.0
        return "residual-scale", name, f"{gain} while the stream itself grows by {factor(growth)}."
    if facts.mixes_examples and block.normalization and symptom == "exploding":
        return "normalization", name, f"{gain}; it normalizes over the batch and has no path around it."
    first = position == 0 and facts.log10_input_scale > 1.0 and not block.normalization
    flat = [layer for layer in summing if layer.saturates]
    if symptom == "vanishing" and flat:
        worst = min(flat, key=lambda layer: layer.slope)
        numbers = (
            (
                f"{gain}. Behind {worst.name} the typical slope is {worst.slope:.3g}; weights of variance "
                f"{1 / worst.slope**2:.3g}/fan-in would make up for it, they have {worst.weight_variance:.3g}/fan-in."
            )
            if worst.slope > 0
            else f"{gain}. Behind {worst.name} the nonlinearity is flat on the whole batch."
        )
        if first:
            return (
                "input-scale",
                worst.name,
                f"{numbers} The inputs have a root mean square of {10**facts.log10_input_scale:.3g}.",
            )
        cause = "initialization" if _blame_weights(worst) else "saturating-activation"
        return cause, worst.name, numbers
    for layer in sorted(summing, key=lambda layer: -abs(_excess(layer))):
        excess = _excess(layer)
        if abs(excess) > 0.05 and (excess < 0) == (symptom == "vanishing"):
            slope = 1.0 if math.isnan(layer.slope) else layer.slope
            return (
                "initialization",
                layer.name,
                f"{gain}. {layer.name} has weights of variance {layer.weight_variance:.3g}/fan-in where "
                f"{1 / slope**2:.3g}/fan-in would keep the signal, at a typical slope of {slope:.3g} behind it.",
            )
    return "depth", name, f"{gain}."


def _excess(layer: LayerFacts) -> float:
    """Return log10 of the gain that weights and slope give together; 0 keeps the signal."""
    slope = 1.0 if math.isnan(layer.slope) else layer.slope
    variance = layer.weight_variance
    return 0.5 * math.log10(variance) + math.log10(slope) if variance > 0 and slope > 0 else -math.inf


def _blame_weights(layer: LayerFacts) -> bool:
    """Return whether weights far from 1/fan-in, rather than the nonlinearity's shape, are to blame."""
    return layer.weight_variance > 4.0 or layer.weight_variance < 0.25


def _target_scale(facts: Facts, total: float) -> Decision:
    ratio = factor(facts.log10_target_scale)
    evidence = f"The targets' root mean square is {ratio} that of the network's outputs, so the error is all target."
    finding = Finding("exploding", None, "target-scale", evidence, 0.9)
    summary = f"Gradients explode at the loss: the targets are {ratio} as large as the outputs; standardize them."
    return Decision("exploding", summary, (finding,), total)


def _feature_scale(facts: Facts, total: float) -> Decision:
    ratio = factor(facts.log10_feature_scale)
    evidence = f"The largest input feature has a root mean square {ratio} that of the median feature."
    finding = Finding("ill-conditioned", None, "input-scale", evidence, 0.85)
    summary = f"Ill-conditioned: input features differ in scale by {ratio}, so no learning rate suits all of them."
    return Decision("ill-conditioned", summary, (finding,), total)


def _spread(facts: Facts, total: float) -> Decision:
    longest = max(facts.chains, key=len)
    ratio = factor(facts.log10_spread)
    plain = not any(block.skip for block in longest)
    evidence = (
        f"Over {len(longest)} blocks the largest singular value of the network's Jacobian is {ratio} the median one, "
        f"though the mean gain is {factor(total)}."
    )
    cause = "missing-residual" if plain else "initialization"
    finding = Finding("ill-conditioned", longest[0].statistics.layers[0], cause, evidence, 0.7)
    summary = f"Ill-conditioned: the mean gradient is fine, but some directions pass {ratio} better than most."
    return Decision("ill-conditioned", summary, (finding,), total)


def learning_rate(layers: Sequence[LayerStatistics]) -> Finding | None:
    """Return a finding where the optimizer's first update is as large as the parameters themselves."""
    known = [(layer.update_ratio, layer.name) for layer in layers if layer.update_ratio is not None]
    ratios = sorted((ratio, name) for ratio, name in known if math.isfinite(ratio))
    if not ratios or ratios[len(ratios) // 2][0] < UPDATE_RATIO:
        return None
    worst, name = ratios[-1]
    evidence = (
        f"The first update is {ratios[len(ratios) // 2][0]:.3g} times as large as the parameter at the median layer "
        f"and {worst:.3g} times at {name}; between 0.0001 and 0.1 is usual."
    )
    return Finding("exploding", name, "learning-rate", evidence, 0.8)
