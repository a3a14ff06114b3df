"""Why a signal shrinks or grows: the measured gain against theory, and its log shared out among causes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxgrad.diagnosis._facts import BlockFacts, Facts, LayerFacts
from jaxgrad.diagnosis._report import Finding, Verdict

_LEAST_SHARE = 0.15  # of the total, for a cause beside the first to be named
_EXCESS = 0.05  # log10 by which weights and slope may miss 1 before the weights are to blame
_CLIPPED = 10.0  # factor by which clipping cuts the gradient down to count as hiding something


class Part(NamedTuple):
    """A part of one block's gain with its cause.

    Attributes:
      cause: The cause.
      layer: The layer to blame.
      gain: log10 of the gain.
      detail: The numbers that show it.
    """

    cause: str
    layer: str | None
    gain: float
    detail: str


def running_gain(chain: Sequence[BlockFacts]) -> float:
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
    exponent = math.floor(log10 + 0.0022)  # 9.95 is written 1.0·10
    return f"{10 ** (log10 - exponent):.1f}·10{str(exponent).translate(_RAISED)}×"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(chain: Sequence[BlockFacts]) -> str:
    """Say how many blocks or steps a chain has."""
    steps = sum(block.statistics.kind == "time" for block in chain)
    number, noun = (steps, "step") if steps else (len(chain), "block")
    return f"{number} {noun}{'' if number == 1 else 's'}"


def trend(
    symptom: Verdict, facts: Facts, chain: Sequence[BlockFacts], total: float, p_value: float
) -> tuple[str, tuple[Finding, ...]]:
    """Name the causes of a signal that shrinks or grows, with the share of each.

    Args:
      symptom: ``"vanishing"`` or ``"exploding"``.
      facts: What was measured.
      chain: The blocks it happens in.
      total: log10 of its total gain.
      p_value: How likely a network at criticality strays as far.

    Returns:
      The verdict in one sentence, and a finding for each cause, the largest first.
    """
    sign = -1.0 if symptom == "vanishing" else 1.0
    by_cause: dict[str, list[Part]] = {}
    for position, block in enumerate(chain):
        for part in _parts(symptom, facts, block, position):
            by_cause.setdefault(part.cause, []).append(part)
    weight = {cause: abs(sum(part.gain for part in parts)) for cause, parts in by_cause.items()}
    whole = sum(weight.values()) or 1.0
    ranked = sorted(by_cause, key=lambda cause: -weight[cause])
    against = _against_theory(symptom, chain, total, p_value)
    certainty = min(0.99, 0.6 + 0.4 * min(1.0, (abs(_finite(total)) - 3) / 3))
    findings = []
    for cause in ranked:
        share = weight[cause] / whole
        if findings and share < _LEAST_SHARE:
            continue
        worst = max(by_cause[cause], key=lambda part: part.gain * sign)
        evidence = f"{against} {worst.detail}"
        findings.append(Finding(symptom, worst.layer, cause, evidence, round(certainty * share, 3), round(share, 4)))
    if symptom == "exploding" and facts.clip >= _CLIPPED and ranked:
        findings.insert(0, _masked(facts, findings[0]))
    noun = "vanish" if symptom == "vanishing" else "explode"
    verb = "shrinks" if symptom == "vanishing" else "grows"
    mean, kind = _mean(chain, total)
    extent = "to exactly zero"
    if math.isfinite(total):
        extent = f"{factor(abs(total))}, about {factor(abs(mean))} a {kind}"
    plain = _PLAIN[ranked[0]] if ranked else "no single cause stands out"
    hidden = ", and clipping hides it" if findings and findings[0].cause == "masked-by-clipping" else ""
    summary = f"Gradients {noun}: on the way back through {count(chain)} the signal {verb} {extent}: {plain}{hidden}."
    return summary, tuple(findings)


_PLAIN = {
    "saturating-activation": "the nonlinearity is too flat where it is used",
    "initialization": "the weights have the wrong size for their nonlinearity",
    "recurrence": "the same recurrent step is applied again and again",
    "residual-scale": "each residual branch adds more than the stream can carry",
    "normalization": "what is divided by in normalizing is too small on the way",
    "depth": "small changes add up over the depth",
    "missing-residual": "nothing carries the signal past the layers",
    "input-scale": "the inputs are on too large a scale",
}


def _mean(chain: Sequence[BlockFacts], total: float) -> tuple[float, str]:
    """Return log10 of the gain a block, or a step, and what to call one."""
    steps = sum(block.statistics.kind == "time" for block in chain)
    return _finite(total) / (steps or len(chain)), "step" if steps else "block"


def _against_theory(symptom: str, chain: Sequence[BlockFacts], total: float, p_value: float) -> str:
    """Say how the signal changes, what theory predicts for it, and what a network at criticality would do."""
    mean, kind = _mean(chain, total)
    verb = "shrinks" if symptom == "vanishing" else "grows"
    if not math.isfinite(total):
        return f"From the output back to the first {kind} the signal {verb} to exactly zero."
    measured = (
        f"From the output back to the first {kind} the signal {verb} {factor(abs(mean))} a {kind}, "
        f"{factor(abs(total))} over {count(chain)}."
    )
    read = [block for block in chain if block.statistics.predicted_log10_gain is not None]
    parts = []
    if 2 * len(read) > len(chain):
        predicted = sum(block.statistics.predicted_log10_gain or 0.0 for block in read) / len(read)
        names = {layer.activation for block in read for layer in block.layers if layer.activation}
        whose = f" for {' and '.join(sorted(names))}" if names and len(names) < 3 else ""
        direction = factor(abs(predicted)) if predicted * mean >= 0 else f"1/{factor(abs(predicted))}"
        parts.append(f"theory{whose} at this initialization: {direction}")
    variance = sum(block.error**2 for block in chain if math.isfinite(block.error))
    if variance > 0:
        edge = 1.96 * math.sqrt(variance) / len(chain)
        chance = f"p < 1e-{_CERTAIN}" if p_value < 10.0**-_CERTAIN else f"p = {p_value:.1g}"
        parts.append(
            f"a network of this width at criticality would stay within {10**-edge:.3g}-{10**edge:.3g}, {chance}"
        )
    return f"{measured} A {kind}: {'; '.join(parts)}." if parts else measured


_CERTAIN = 12


def _finite(value: float) -> float:
    """Return the value, or the largest exponent of a double where it is infinite."""
    return value if math.isfinite(value) else math.copysign(308.0, value)


def _masked(facts: Facts, behind: Finding) -> Finding:
    evidence = (
        f"The optimizer cuts the gradient down {facts.clip:.3g}× at the first step, so the loss stays finite while the "
        f"signal grows: what is clipped is almost all the first layers' gradient. Behind it: {behind.cause}. "
        f"{behind.evidence}"
    )
    return Finding("exploding", behind.layer, "masked-by-clipping", evidence, behind.confidence, behind.share)


def _parts(symptom: str, facts: Facts, block: BlockFacts, position: int) -> Iterator[Part]:
    """Yield the causes of one block's gain, each with its part; nothing where the block does the opposite."""
    gain = _finite(block.statistics.log10_gain)
    sign = -1.0 if symptom == "vanishing" else 1.0
    if gain * sign <= 0:
        return
    # Weights are chosen for the nonlinearity behind them: what one takes and the other gives is no one's fault.
    layer = {source: _finite(block.sources.get(source, 0.0)) for source in ("weights", "activation")}
    net = {max(layer, key=lambda source: layer[source] * sign): sum(layer.values())}
    others = {source: _finite(value) for source, value in block.sources.items() if source not in layer}
    adverse = {source: value for source, value in (net | others).items() if value * sign > 0}
    whole = sum(adverse.values())
    if block.statistics.kind == "time" or not adverse:
        yield _without_sources(symptom, facts, block, position)._replace(gain=gain)
        return
    for source, value in adverse.items():
        part = value / whole
        if part < 0.02:
            continue
        yield _of_source(source, symptom, facts, block, position)._replace(gain=gain * part)


def _name(block: BlockFacts) -> str:
    return block.statistics.layers[0] if block.statistics.layers else block.statistics.name


def _of_source(source: str, symptom: str, facts: Facts, block: BlockFacts, position: int) -> Part:
    """Return the cause behind one source of a block's gain."""
    name, gain = _name(block), _changes(block)
    own = f"its {source} by {factor(block.sources[source])}" if source in block.sources else ""
    if source == "normalization":
        over = "it normalizes over the batch" if facts.mixes_examples else "it divides by its statistics"
        return Part("normalization", name, 0.0, f"{gain}, {own}; {over}.")
    if source in {"residual", "attention"} and block.skip:
        return _residual(block, gain)
    if source == "activation" and symptom == "vanishing" and not any(layer.activation for layer in block.layers):
        return Part("saturating-activation", name, 0.0, f"{gain}, {own}: what follows the layer is too flat.")
    if source in {"weights", "activation"}:
        return _of_weights(symptom, facts, block, position, f"{gain}, {own}")
    return Part("depth", name, 0.0, f"{gain}, {own}.")


def _changes(block: BlockFacts) -> str:
    return f"{block.statistics.name} changes it by {factor(block.statistics.log10_gain)}"


def _residual(block: BlockFacts, gain: str) -> Part:
    statistics = block.statistics
    growth = (
        math.log10(statistics.output_rms / statistics.input_rms)
        if statistics.input_rms > 0 < statistics.output_rms
        else 0.0
    )
    return Part("residual-scale", _name(block), 0.0, f"{gain} while the stream itself grows by {factor(growth)}.")


def _without_sources(symptom: str, facts: Facts, block: BlockFacts, position: int) -> Part:
    """Return the cause of a block whose gain was not taken apart, or of a step of a recurrence."""
    gain = _changes(block)
    if block.statistics.kind == "time":
        summing = _summing(block)
        recurrent = max(summing, key=lambda layer: layer.fan_in, default=None)
        slope = ""
        if recurrent is not None and not math.isnan(recurrent.slope):
            slope = f", and its nonlinearity has a typical slope of {recurrent.slope:.3g}"
        layer = recurrent.name if recurrent else _name(block)
        return Part("recurrence", layer, 0.0, f"{gain}{slope}: every step multiplies it again.")
    if block.skip:
        return _residual(block, gain)
    if facts.mixes_examples and block.normalization and symptom == "exploding":
        return Part("normalization", _name(block), 0.0, f"{gain}; it normalizes over the batch, with no path around.")
    return _of_weights(symptom, facts, block, position, gain)


def _summing(block: BlockFacts) -> list[LayerFacts]:
    return [layer for layer in block.layers if not math.isnan(layer.weight_variance)]


def _of_weights(symptom: str, facts: Facts, block: BlockFacts, position: int, gain: str) -> Part:
    """Blame a block's weights or its nonlinearity: they answer for their product, and one was chosen for the other."""
    summing = _summing(block)
    flat = [layer for layer in summing if layer.saturates]
    if symptom == "vanishing" and flat:
        worst = min(flat, key=lambda layer: layer.slope)
        if worst.slope > 0:
            numbers = (
                f"{gain}. Behind {worst.name} the typical slope is {worst.slope:.3g}; weights of variance "
                f"{1 / worst.slope**2:.3g}/fan-in would make up for it, they have {worst.weight_variance:.3g}/fan-in."
            )
        else:
            numbers = f"{gain}. Behind {worst.name} the nonlinearity is flat on the whole batch."
        large = any(entry.log10_scale > 1.0 for entry in facts.entries)
        if position == 0 and large and not block.normalization:
            return Part("input-scale", worst.name, 0.0, f"{numbers} The inputs are large.")
        cause = "initialization" if _far_from_usual(worst) else "saturating-activation"
        return Part(cause, worst.name, 0.0, numbers)
    for layer in sorted(summing, key=lambda layer: -abs(_excess(layer))):
        excess = _excess(layer)
        if abs(excess) > _EXCESS and (excess < 0) == (symptom == "vanishing"):
            slope = 1.0 if math.isnan(layer.slope) else layer.slope
            numbers = f"{gain}. {layer.name} has weights of variance {layer.weight_variance:.3g}/fan-in"
            if slope > 0:
                wanted = f"{1 / slope**2:.3g}/fan-in would keep the signal"
                numbers += f" where {wanted}, at a typical slope of {slope:.3g} behind it"
            return Part("initialization", layer.name, 0.0, f"{numbers}.")
    return Part("depth", _name(block), 0.0, f"{gain}.")


def _excess(layer: LayerFacts) -> float:
    """Return log10 of the gain that weights and slope give together; 0 keeps the signal."""
    slope = 1.0 if math.isnan(layer.slope) else layer.slope
    variance = layer.weight_variance
    return 0.5 * math.log10(variance) + math.log10(slope) if variance > 0 and slope > 0 else -math.inf


def _far_from_usual(layer: LayerFacts) -> bool:
    """Return whether weights far from 1/fan-in, rather than the nonlinearity's shape, are to blame."""
    return layer.weight_variance > 4.0 or layer.weight_variance < 0.25
