"""From measured numbers to a verdict: each rule looks at one thing, and the first that holds names the fault."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxgrad.diagnosis._causes import count, factor, running_gain, trend
from jaxgrad.diagnosis._facts import BlockFacts, EntryFacts, Facts
from jaxgrad.diagnosis._report import Finding, LayerStatistics, NonFinite, Source, Verdict

EFFECT = 2.0
"""log10 of the total gain at which the first block learns a hundred times more slowly, or faster, than the last."""
EFFECT_IN_TIME = 5.0
"""The same over the steps of a recurrence, whose later steps have inputs of their own."""
SIGNIFICANT = 1e-3
"""Probability that a network at criticality strays as far, below which it is not one."""
DEAD = 0.8
"""Share of a layer's units that never react above which the layer is dead."""
ILL_CONDITIONED = 3.3
"""log10 of the largest singular value of the whole chain over the upper quartile."""
FEATURE_SPREAD = 2.0
"""log10 of the ratio of the largest to the median feature scale at the network's input."""
FEATURE_OFFSET = 1.0
"""log10 of the features' means over their standard deviations."""
INPUT_SCALE = 1.5
"""log10 of the root mean square at the network's input, to either side."""
TARGET_SCALE = 1.5
"""log10 of the targets' over the outputs' root mean square, to either side."""
TARGETS = 1.0
"""log10 of the targets' own root mean square, to the same side: layers are drawn for 1."""
SATURATED = 0.75
"""Share of entries on the flat ends of their nonlinearity, at the median layer."""
OUT_OF_REACH = 0.1
"""Share of the targets that the network's output cannot come near."""
OVERFLOW = 6.0
"""log10 by which activations grow over several blocks before they leave the range, for growth to be to blame."""
UPDATE_RATIO = 0.3
"""Norm of the first update over the parameter's, at the median layer."""
OUTPUT_SCALE = 1.0
"""log10 of the loss over that of undecided outputs, or of a growth of the activations that throws outputs off."""
MIXING = 1e-3
"""Change that one example's output makes in the gradients of the others, over their own."""
UNMOVED = 1e-6
"""Relative change of the loss where every example gets its neighbour's target."""
CONFIDENT = 0.5
"""Gradient that a confident mistake sends back, over that of an undecided output: at least 1 where a loss is convex."""
STUCK = 0.05
"""The same at the outputs a network has, where it is stuck."""

_UNBOUNDED = 1e3  # how far apart the ends of an output lie that only one side bounds
_LARGE_VARIANCE = 4.0  # times 1/fan-in: nothing that saturates asks for as much


class Decision(NamedTuple):
    """A verdict and what it rests on.

    Attributes:
      verdict: The verdict.
      summary: The same in one plain sentence.
      findings: What is wrong, the cause to begin with first.
      log10_total_gain: log10 of the total gain of the most extreme chain.
      log10_body_gain: The same without the last layer, which scales the signal of all others alike.
    """

    verdict: Verdict
    summary: str
    findings: tuple[Finding, ...]
    log10_total_gain: float
    log10_body_gain: float


class Ruling(NamedTuple):
    """What one rule found.

    Attributes:
      verdict: The verdict it would give.
      summary: The same in one plain sentence.
      findings: What shows it.
    """

    verdict: Verdict
    summary: str
    findings: tuple[Finding, ...]


def decide(facts: Facts, *others: Ruling | None) -> Decision:
    """Decide by ratios alone, so that the unit of the loss does not matter.

    Args:
      facts: What was measured.
      *others: Rulings on what was tried beyond that, such as a few steps of training.

    Returns:
      The verdict of the first rule that holds; what later rules found follows among the findings.
    """
    _, total = _extreme(facts.chains)
    chain, inner = _extreme([body(chain) for chain in facts.chains])
    if facts.nonfinite is not None:
        return Decision(*_nonfinite(facts, facts.nonfinite), total, inner)
    scales = [_target_scale, _input_scale] if facts.log10_target_scale > 0 else [_input_scale, _target_scale]
    rules: list[Callable[[Facts], Ruling | None]] = [
        _carried,
        *scales,
        _reach,
        _flat,
        _alike,
        _dead,
        _trends,
        _outputs,
        _saturated,
    ]
    rulings = [*(rule(facts) for rule in rules), *others, _loss(facts), _spread(facts)]
    found = [ruling for ruling in rulings if ruling is not None]
    if not found:
        return Decision("healthy", _healthy_summary(facts, chain, inner), (), total, inner)
    findings: list[Finding] = []
    for ruling in found:
        known = {finding.cause for finding in findings}
        findings += [finding for finding in ruling.findings if finding.cause not in known]
    return Decision(found[0].verdict, found[0].summary, tuple(findings), total, inner)


def body(chain: Sequence[BlockFacts]) -> Sequence[BlockFacts]:
    """Return a chain without what no layer's learning depends on.

    That is the last layer, where no nonlinearity follows it: it scales the signal of all others alike; and the first
    layer's weights, behind which only the data lie (the first block, where its gain was not taken apart).
    """
    linear = chain and all(layer.activation is None for layer in chain[-1].layers)
    inner = chain[:-1] if len(chain) > 2 and chain[-1].statistics.kind == "depth" and linear else chain
    if len(inner) < 2 or inner[0].statistics.kind != "depth":
        return inner
    if not inner[0].sources:
        return inner[1:] if len(inner) > 2 else inner
    first, weights = inner[0], inner[0].sources.get("weights", 0.0)
    gain = first.statistics.log10_gain
    if not (math.isfinite(weights) and math.isfinite(gain)):
        return inner
    others: dict[Source, float] = {source: part for source, part in first.sources.items() if source != "weights"}
    return (first._replace(statistics=first.statistics._replace(log10_gain=gain - weights), sources=others), *inner[1:])


def _extreme(chains: Sequence[Sequence[BlockFacts]]) -> tuple[Sequence[BlockFacts], float]:
    """Return the chain whose signal strays furthest from its size at the end, and log10 of how far."""
    gains = [(chain, running_gain(chain)) for chain in chains]
    return max(gains, key=lambda pair: abs(pair[1]), default=((), 0.0))


def _healthy_summary(facts: Facts, chain: Sequence[BlockFacts], total: float) -> str:
    if not facts.has_signal:
        return "The loss has no gradient left at the output; a signal sent back from there would arrive well."
    if not chain:
        return "Every value is finite and no nonlinearity is dead; the network has no two cuts to compare."
    return f"Over {count(chain)} the backward signal keeps its size: it changes by a factor of {10**total:.2g} in all."


def _nonfinite(facts: Facts, origin: NonFinite) -> Ruling:
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
    operation = Finding("nonfinite", origin.layer, "nonfinite-op", evidence, 0.99)
    grown = _overflow(facts) if origin.phase == "forward" else None
    if grown is None:
        return Ruling("nonfinite", summary, (operation,))
    return Ruling("nonfinite", f"{summary[:-1]}, to which the activations grew block by block.", (grown, operation))


def _overflow(facts: Facts) -> Finding | None:
    """Look for activations that grow from block to block until they leave the range: no single operation's fault."""
    chain = max(facts.chains, key=len, default=())
    if not chain:
        return None
    sizes = [block.statistics.output_rms for block in chain]
    finite = next((place for place, size in enumerate(sizes) if not math.isfinite(size)), len(sizes))
    if finite in {0, len(sizes)} or not chain[0].statistics.input_rms > 0 < sizes[finite - 1]:
        return None
    growth = [
        math.log10(block.statistics.output_rms / block.statistics.input_rms)
        for block in chain[:finite]
        if block.statistics.input_rms > 0 < block.statistics.output_rms
    ]
    if sum(growth) < OVERFLOW or sum(step > 0.5 for step in growth) < 2:
        return None
    last = chain[finite - 1]
    kind = last.statistics.kind
    cause = "recurrence" if kind == "time" else "residual-scale" if last.skip else "initialization"
    evidence = (
        f"Over {count(chain[:finite])} activations grow {factor(sum(growth))}, to a root mean square of "
        f"{sizes[finite - 1]:.3g} behind {last.statistics.name}, and the next {'step' if kind == 'time' else 'block'} "
        f"leaves the range of the type."
    )
    layer = last.statistics.layers[0] if last.statistics.layers else None
    return Finding("exploding", layer, cause, evidence, 0.9)


def _reach(facts: Facts) -> Ruling | None:
    """Look for targets that the network cannot put out."""
    loss = facts.loss
    if loss is None or not loss.out_of_reach > OUT_OF_REACH:
        return None
    low, high = loss.reach
    if not high > low:
        return None  # an output that never changes is flat, and ruled on as such
    one_sided = high - low > _UNBOUNDED
    bounds = f"between {low:.3g} and {high:.3g}"
    if one_sided:
        bounds = f"above {low:.3g}" if low > -_UNBOUNDED else f"below {high:.3g}"
    evidence = (
        f"Whatever the last layer gives, the network's output lies {bounds}, and {loss.out_of_reach:.0%} of the "
        f"targets lie outside: to come near them it has to go where what follows the last layer is flat."
    )
    summary = f"{loss.out_of_reach:.0%} of the targets are out of reach of the network's output, which lies {bounds}."
    verdict, cause = ("dead", "dead-relu") if one_sided else ("vanishing", "target-scale")
    layer = facts.layers[-1].name if facts.layers else None
    return Ruling(verdict, summary, (Finding(verdict, layer, cause, evidence, 0.85),))


def _dead(facts: Facts) -> Ruling | None:
    dead = [layer for layer in facts.layers if layer.dead_fraction is not None and layer.dead_fraction >= DEAD]
    if not dead:
        return None
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
    summary = (
        f"Dead units: behind {findings[0].layer} almost no unit reacts to any example"
        + (f", and behind {len(dead) - 1} other layers" if len(dead) > 1 else "")
        + ", so what lies before cannot learn."
    )
    return Ruling("dead", summary, findings)


def _carried(facts: Facts) -> Ruling | None:
    """Look for a state that a loop without layers forgets, or blows up; the same bounds hold as for a recurrence."""
    worst = max(facts.carried, key=lambda loop: abs(loop.log10_gain), default=None)
    if worst is None or not (worst.log10_gain <= -EFFECT_IN_TIME or worst.log10_gain >= EFFECT + 1):
        return None
    verdict, verb = ("vanishing", "shrinks") if worst.log10_gain < 0 else ("exploding", "grows")
    size = factor(abs(worst.log10_gain))
    evidence = (
        f"A small change of the state that the loop at {worst.source} carries {verb} {size} over its "
        f"{worst.num_steps} steps, {factor(abs(worst.log10_gain) / worst.num_steps)} a step."
    )
    told = "what came early is gone in the end" if worst.log10_gain < 0 else "what came first drowns the rest"
    summary = f"The state carried at {worst.source} {verb} {size} over {worst.num_steps} steps: {told}."
    return Ruling(verdict, summary, (Finding(verdict, None, "recurrence", evidence, 0.8),))


def _saturated(facts: Facts) -> Ruling | None:
    """Look for weights so large that most entries lie where their nonlinearity is flat, though a few carry a lot."""
    known = {layer.name: layer for chain in facts.chains for block in chain for layer in block.layers}
    inside = {
        name for chain in facts.chains for b in chain if b.statistics.kind == "depth" for name in b.statistics.layers
    }
    found = sorted(
        (layer.saturated_fraction, layer.name)
        for layer in facts.layers
        if layer.saturated_fraction is not None and layer.name in inside
    )
    if not found or found[len(found) // 2][0] < SATURATED:
        return None
    (share, name), (median, _) = found[-1], found[len(found) // 2]
    layer = known[name]
    cause = "initialization" if layer.weight_variance > _LARGE_VARIANCE else "saturating-activation"
    evidence = (
        f"Behind {name}, {share:.0%} of the entries lie on the flat ends of {layer.activation}, and at least "
        f"{median:.0%} behind half of such layers: few units learn from any one example. Its weights "
        f"have variance {layer.weight_variance:.3g}/fan-in."
    )
    summary = (
        f"Saturated: {share:.0%} of what follows {name} lies where {layer.activation} is flat, and does not learn."
    )
    return Ruling("ill-conditioned", summary, (Finding("ill-conditioned", name, cause, evidence, 0.8),))


def _trends(facts: Facts) -> Ruling | None:
    """Look for a signal that grows or shrinks, both more than chance would have it and so far that it hurts."""
    found = []
    for chain in map(body, facts.chains):
        total = running_gain(chain)
        in_time = any(block.statistics.kind == "time" for block in chain)
        # A state that forgets is no fault of a short memory's; one that explodes is.
        effect = (EFFECT_IN_TIME if total < 0 else EFFECT + 1) if in_time else EFFECT
        if abs(total) < effect or p_value(chain, total) > SIGNIFICANT:
            continue
        found.append((abs(total), chain, total))
    if not found:
        return None
    _, chain, total = max(found, key=lambda entry: entry[0])
    symptom = "vanishing" if total < 0 else "exploding"
    return Ruling(symptom, *trend(symptom, facts, chain, total, p_value(chain, total)))


def p_value(chain: Sequence[BlockFacts], total: float) -> float:
    """Return how likely a network of these widths that keeps the signal on average strays as far by chance."""
    variance = sum(block.error**2 for block in chain if math.isfinite(block.error))
    if not math.isfinite(total):
        return 0.0
    return math.erfc(abs(total) / math.sqrt(2 * variance)) if variance > 0 else 0.0


def _target_scale(facts: Facts) -> Ruling | None:
    if not abs(facts.log10_target_scale) >= TARGET_SCALE:
        return None
    if not facts.log10_targets * math.copysign(1, facts.log10_target_scale) >= TARGETS:
        return None  # the outputs are off, not the targets
    large = facts.log10_target_scale > 0
    ratio = factor(abs(facts.log10_target_scale))
    relation = f"{ratio} as large as" if large else f"{ratio} smaller than"
    then = "the error is all target" if large else "the error is all output"
    evidence = f"By their root mean square the targets are {relation} the network's outputs, so {then}."
    finding = Finding("exploding", None, "target-scale", evidence, 0.9)
    summary = f"The loss is out of scale: the targets are {relation} the outputs; standardize them."
    return Ruling("exploding", summary, (finding,))


def _forward_growth(facts: Facts) -> float:
    """Return log10 of how far activations grow from the network's input to its output."""
    chain = max(facts.chains, key=len, default=())
    if not chain or not chain[0].statistics.input_rms > 0 or not chain[-1].statistics.output_rms > 0:
        return 0.0
    return math.log10(chain[-1].statistics.output_rms / chain[0].statistics.input_rms)


def _input_scale(facts: Facts) -> Ruling | None:
    for entry in facts.entries:
        told = _entry_fault(entry)
        if told is not None:
            evidence, summary = told
            finding = Finding("ill-conditioned", entry.layer, "input-scale", evidence, 0.85)
            return Ruling("ill-conditioned", f"Ill-conditioned: {summary}", (finding,))
    return None


def _outputs(facts: Facts) -> Ruling | None:
    """Look for activations that grow on the way forward until the outputs are far off any target."""
    chain = max(facts.chains, key=len, default=())
    if not chain or facts.loss is None or not facts.loss.relative > 10**OUTPUT_SCALE:
        return None
    worst = max(chain, key=lambda block: block.statistics.output_rms / max(block.statistics.input_rms, 1e-30))
    layer = worst.statistics.layers[0] if worst.statistics.layers else None
    evidence = (
        f"The loss is {facts.loss.relative:.3g} times that of undecided outputs: activations grow "
        f"{factor(_forward_growth(facts))} from input to output, most at {worst.statistics.name} "
        f"({worst.statistics.input_rms:.3g} to {worst.statistics.output_rms:.3g})."
    )
    cause = "residual-scale" if worst.skip else "initialization"
    finding = Finding("exploding", layer, cause, evidence, 0.8)
    summary = (
        f"Activations explode: outputs are so large that the loss is {facts.loss.relative:.3g} times that of a guess."
    )
    return Ruling("exploding", summary, (finding,))


def _entry_fault(entry: EntryFacts) -> tuple[str, str] | None:
    """Return what is wrong with the numbers that come to a first layer, as evidence and in short."""
    if entry.log10_spread >= FEATURE_SPREAD:
        ratio = factor(entry.log10_spread)
        return (
            f"The largest feature that enters {entry.layer} has a root mean square {ratio} that of the median feature.",
            f"input features differ in scale by {ratio}, so no learning rate suits all of them.",
        )
    if entry.log10_offset >= FEATURE_OFFSET:
        ratio = factor(entry.log10_offset)
        return (
            f"The means of the features that enter {entry.layer} are {ratio} their standard deviations.",
            f"the inputs lie {ratio} their spread away from zero, so their mean drowns what tells examples apart.",
        )
    if abs(entry.log10_scale) >= INPUT_SCALE and math.isfinite(entry.log10_scale):
        size = f"{10**entry.log10_scale:.3g}"
        return (
            f"The inputs that enter {entry.layer} have a root mean square of {size}; layers are drawn for 1.",
            f"the inputs have a root mean square of {size}, and layers are drawn for 1.",
        )
    return None


def _alike(facts: Facts) -> Ruling | None:
    plain = [fact for chain in facts.chains for block in chain if not block.skip for fact in block.layers]
    zero = [fact.name for fact in plain if fact.weight_variance == 0]
    if zero:
        evidence = (
            f"All weights of {zero[0]} are exactly 0, and so is their gradient: nothing passes, and nothing will learn."
        )
        summary = f"The weights of {zero[0]} are all zero, and so is their gradient: draw them."
        return Ruling("dead", summary, (Finding("dead", zero[0], "initialization", evidence, 0.95),))
    layers = dict.fromkeys(fact.name for chain in facts.chains for b in chain for fact in b.layers if fact.alike)
    if not layers:
        return None
    first = next(iter(layers))
    more = f", and in {len(layers) - 1} other layers" if len(layers) > 1 else ""
    evidence = (
        f"All units of {first} have exactly the same weights{more}: they compute the same and receive the same "
        f"gradient, so they stay one unit however long they train."
    )
    summary = f"All units of {first} are alike{more}: the layer works as a single unit until its weights are drawn."
    return Ruling("ill-conditioned", summary, (Finding("ill-conditioned", first, "initialization", evidence, 0.95),))


def _flat(facts: Facts) -> Ruling | None:
    """Look for a loss that is not at its minimum and sends nothing back."""
    if facts.loss is None or facts.loss.flat == "none":
        return None
    cause, where = {
        "here": (
            "dead-relu",
            "at the outputs it has, on the whole batch, and one elsewhere: what follows them is flat",
        ),
        "everywhere": (
            "loss",
            "at its outputs, and none at others either: something between them and the loss is flat",
        ),
        "normalization": ("normalization", "at its outputs: what is normalized after the last layer is constant"),
    }[facts.loss.flat]
    evidence = (
        f"The loss is not 0, and the gradient that the last layer receives is exactly 0. The loss has none {where}."
    )
    layer = facts.layers[-1].name if facts.layers else None
    summary = "The loss sends nothing back: the gradient at the last layer's output is exactly 0."
    return Ruling("dead", summary, (Finding("dead", layer, cause, evidence, 0.9),))


def _loss(facts: Facts) -> Ruling | None:
    loss = facts.loss
    if loss is None:
        return None
    if loss.swapped < UNMOVED:
        evidence = (
            f"With every example's target given to its neighbour the loss changes by {loss.swapped:.1g} of itself: it "
            f"compares each output with all targets, as where shapes (n,) and (n, 1) broadcast to (n, n)."
        )
        summary = "The loss does not care which target belongs to which example: give both the same shape."
        return Ruling("ill-conditioned", summary, (Finding("ill-conditioned", None, "loss", evidence, 0.9),))
    if loss.mixing > MIXING and math.isfinite(loss.confident):
        evidence = (
            f"The labels are classes, and what the loss sends back to other examples changes by {loss.mixing:.2g} of "
            f"itself with one example's output: it normalizes over the batch where it should over the classes."
        )
        summary = "The loss mixes the examples of a batch: normalize over the classes, the last axis of the logits."
        return Ruling("ill-conditioned", summary, (Finding("ill-conditioned", None, "loss", evidence, 0.8),))
    if loss.bottomless:
        evidence = (
            "The labels are whole numbers, the loss computes with them rather than looks up what they name, and as "
            "outputs grow it falls without bound: a cross-entropy of one output takes 0 and 1 alone."
        )
        summary = "The loss has no minimum for these labels: give each class a 0 or a 1, or an output of its own."
        return Ruling("exploding", summary, (Finding("exploding", None, "loss", evidence, 0.85),))
    if not loss.confident < CONFIDENT:
        return None
    stuck = loss.here < STUCK and loss.relative >= 0.9
    now = f" At the outputs it has now it sends {loss.here:.2g} of that." if stuck else ""
    evidence = (
        f"The labels are classes, and an output that is wrong with confidence sends back {loss.confident:.2g} of the "
        f"gradient that an undecided one does; under a cross-entropy of logits it would send more.{now}"
    )
    summary = "The loss goes flat where the network is wrong: take a cross-entropy of the logits themselves."
    return Ruling("vanishing", summary, (Finding("vanishing", None, "loss", evidence, 0.85),))


def _spread(facts: Facts) -> Ruling | None:
    if not facts.log10_spread >= ILL_CONDITIONED:
        return None
    longest = max(facts.chains, key=len)
    total = running_gain(longest)
    ratio = factor(facts.log10_spread)
    evidence = (
        f"Over {len(longest)} blocks the largest singular value of the network's Jacobian is {ratio} the upper "
        f"quartile, though the mean gain is {factor(total)}."
    )
    plain = not any(block.skip for block in longest)
    batchwise = facts.mixes_examples and 2 * sum(block.normalization for block in longest) > len(longest)
    cause = "normalization" if batchwise and plain else "missing-residual" if plain else "initialization"
    finding = Finding("ill-conditioned", longest[0].statistics.layers[0], cause, evidence, 0.7)
    summary = (
        f"Ill-conditioned: the mean gradient is fine, but one direction passes {ratio} better than three in four do."
    )
    return Ruling("ill-conditioned", summary, (finding,))


def large_update(layers: Sequence[LayerStatistics]) -> Ruling | None:
    """Look for an optimizer whose first update is as large as the parameters themselves."""
    known = [(layer.update_ratio, layer.name) for layer in layers if layer.update_ratio is not None]
    ratios = sorted((ratio, name) for ratio, name in known if math.isfinite(ratio))
    if not ratios or ratios[len(ratios) // 2][0] < UPDATE_RATIO:
        return None
    worst, name = ratios[-1]
    median = ratios[len(ratios) // 2][0]
    evidence = (
        f"The first update is {median:.3g} times as large as the parameter at the median layer "
        f"and {worst:.3g} times at {name}; between 0.0001 and 0.1 is usual."
    )
    summary = f"The learning rate is too high: the first update is {median:.3g} times as large as the parameters."
    return Ruling("exploding", summary, (Finding("exploding", name, "learning-rate", evidence, 0.8),))
