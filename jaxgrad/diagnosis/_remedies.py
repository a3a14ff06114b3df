"""Fixes, each one tried on the user's own network and batch, measured again, and the best confirmed by training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad.diagnosis import _changes, _findings, _probe, _wording
from jaxgrad.diagnosis._changes import Setup, Trial, critical_variances, together
from jaxgrad.diagnosis._facts import Facts, LayerFacts
from jaxgrad.diagnosis._findings import Decision
from jaxgrad.diagnosis._nonfinite import find_nonfinite
from jaxgrad.diagnosis._report import Remedy
from jaxgrad.diagnosis._statistics import constant_loss, facts_of, layer_statistics, leaves_range
from jaxgrad.diagnosis._structure import has_skip
from jaxgrad.diagnosis._study import Study
from jaxgrad.diagnosis._wording import Framework, listed
from jaxgrad.spectra._examples import Layout
from jaxgrad.tracing import _substitute
from jaxgrad.tracing._interpret import Site
from jaxgrad.tracing._layers import user_source

_MARGIN = 1.0  # log10 by which a remedy must leave the gain inside the healthy range
_MOST_PAIRS = 3
_MOST_CONFIRMED = 3
_MOST_GUARDS = 3
_LEARNING_RATE = 1e-3  # for a confirmation without the user's own optimizer
_SETTINGS = frozenset({"learning-rate", "target-scale", "input-scale", "loss"})


class Case(NamedTuple):
    """What remedies are tried on.

    Attributes:
      study: The network and what was compiled for it.
      inputs: The program's inputs.
      facts: What was measured.
      decision: The verdict.
      ruling: What a few steps of training showed, if anything.
      optimizer: The user's optimizer, or ``None``.
      framework: The framework the model is of.
      singular: Where the first value that is not finite is made, or ``None``.
      key: For fresh weights.
    """

    study: Study
    inputs: list[Any]
    facts: Facts
    decision: Decision
    ruling: _probe.Probe | None
    optimizer: Any
    framework: Framework
    singular: Site | None
    key: jax.Array


class _Tried(NamedTuple):
    change: Trial
    setup: Setup
    remedy: Remedy


def try_remedies(case: Case, confirm_steps: int) -> tuple[Remedy, ...]:
    """Try each change that fits the verdict, in pairs where none suffices alone, and rank them.

    Args:
      case: What to try them on.
      confirm_steps: How many steps of training to confirm the best with; 0 for none.

    Returns:
      The remedies: those that make the network healthy first, of these the ones that change least; then those that
      come closest.
    """
    tried: list[_Tried] = []
    for change in _fitting(case):
        tried.append(_try(case, change))
        if change.kind == "guard-operation" and tried[-1].remedy.verified:
            break  # the one operation was to blame
    if not any(entry.remedy.verified for entry in tried):
        tried += [_try(case, change) for change in _pairs(tried)]
    tried.sort(key=lambda entry: _rank(entry.remedy, entry.change))
    if confirm_steps:
        tried = _confirm(case, tried, confirm_steps)
    return tuple(entry.remedy for entry in tried)


def _rank(remedy: Remedy, change: Trial) -> tuple[bool, float, float]:
    distance = float(round(abs(remedy.after))) if math.isfinite(remedy.after) else math.inf
    return (False, change.cost, distance) if remedy.verified else (True, distance, change.cost)


def _pairs(tried: Sequence[_Tried]) -> Iterator[Trial]:
    """Yield the most promising combinations of two changes of different kinds."""
    best = sorted(tried, key=lambda entry: _rank(entry.remedy, entry.change))
    pairs = (
        together(*sorted((first.change, second.change), key=lambda change: -change.cost))
        for first, second in itertools.combinations(best, 2)
        if first.change.family != second.change.family
    )
    yield from itertools.islice(pairs, _MOST_PAIRS)


# --- measuring again -------------------------------------------------------------------------------------------------


def _try(case: Case, change: Trial) -> _Tried:
    setup = change.apply(Setup(case.study.network, case.inputs))
    after = _reassess(case, change, setup)
    gain, before = after.log10_total_gain, case.decision.log10_total_gain
    verified = after.verdict == "healthy" and (
        abs(after.log10_body_gain) <= _bound(case) - _MARGIN or _is_setting(case)
    )
    return _Tried(change, setup, Remedy(change.kind, change.words, before, gain, verified))


def _bound(case: Case) -> float:
    in_time = any(block.statistics.kind == "time" for chain in case.facts.chains for block in chain)
    return _findings.EFFECT_IN_TIME if in_time else _findings.EFFECT


def _is_setting(case: Case) -> bool:
    """Return whether the fault is one of data, loss or optimizer, which says nothing of the gain over the depth."""
    return bool(case.decision.findings) and case.decision.findings[0].cause in _SETTINGS


def _study_of(case: Case, change: Trial, setup: Setup) -> Study:
    """Return the study of a changed network; what was compiled for the same change before serves again."""
    if setup.network is case.study.network:
        return case.study
    changed = case.study.once(("changed", change.network), lambda: Study(setup.network))
    changed.network = setup.network
    changed.compiled.setdefault("layout", case.study.compiled.get("layout", Layout(1, {}, False)))
    return changed


def _reassess(case: Case, change: Trial, setup: Setup) -> Decision:
    """Measure a changed setup and decide again."""
    study = _study_of(case, change, setup)
    network, inputs = study.network, setup.inputs
    # The user's own network was measured whole: what was compiled for that serves again.
    known = study is case.study
    optimizer = case.optimizer if known else None
    measured, scale, seed = study.measure(inputs, optimizer, light=case.singular is None and not known)
    numbers = [measured.loss, *measured.gradient_norms, *measured.signal.values()]
    sources = study.blame(inputs, seed, case.key) if leaves_range(network, measured, scale) else None
    facts = facts_of(
        network,
        study.compiled["layout"],
        measured,
        scale,
        inputs,
        layer_statistics(network, measured),
        sources=sources,
        loss=None if case.facts.loss is None else study.loss_facts(inputs),
        carried=study.carried(inputs) if case.facts.carried else (),
    )
    probed = None
    if case.ruling is not None and case.optimizer is not None:
        losses = study.train(inputs, case.optimizer, _probe.NUM_STEPS, setup.rate, setup.clip)
        probed = _probe.still_wrong(losses, case.ruling)
    decision = _findings.decide(facts, probed)
    finite = all(np.all(np.isfinite(number)) for number in numbers)
    return decision if finite or case.ruling is not None else decision._replace(verdict="nonfinite")


def _confirm(case: Case, tried: list[_Tried], num_steps: int) -> list[_Tried]:
    """Train with the best remedies until one is better than none, and put it first."""
    import optax

    optimizer = optax.adam(_LEARNING_RATE) if case.optimizer is None else case.optimizer
    before: tuple[float, ...] | None = None
    verified = [entry for entry in tried if entry.remedy.verified]
    for entry in verified[:_MOST_CONFIRMED]:
        if before is None:
            before = tuple(case.study.train(case.inputs, optimizer, num_steps))
        study = _study_of(case, entry.change, entry.setup)
        setup = entry.setup
        after = tuple(study.train(setup.inputs, optimizer, num_steps, setup.rate, setup.clip))
        units = (1.0, 1.0)
        if setup.rescaled:
            units = constant_loss(case.study.network, case.inputs), constant_loss(study.network, setup.inputs)
        confirmed = _is_better(before, after, units)
        remedy = entry.remedy._replace(confirmed=confirmed, losses_before=before, losses_after=after)
        tried[tried.index(entry)] = entry._replace(remedy=remedy)
        if confirmed:
            break
    return sorted(tried, key=lambda entry: not entry.remedy.confirmed)


def _is_better(before: Sequence[float], after: Sequence[float], units: tuple[float, float]) -> bool:
    """Return whether training ends lower, each loss in its own unit: its value where every output is the same.

    A loss that is negative there has no unit; what takes its place has to beat such outputs by itself.
    """
    last = max(1, len(after) // 10)
    ends = [float(np.mean(losses[-last:])) / unit for losses, unit in zip((before, after), units, strict=True)]
    if not math.isfinite(ends[1]):
        return False
    if (units[0] <= 0 or ends[0] < 0) and units[1] > 0 and units != (1.0, 1.0):
        return ends[1] < 1
    return not math.isfinite(ends[0]) or ends[1] < ends[0]


# --- which changes fit -----------------------------------------------------------------------------------------------


def _fitting(case: Case) -> Iterator[Trial]:
    """Yield the changes that fit what was found, the smallest first."""
    causes = [finding.cause for finding in case.decision.findings]
    network, verdict = case.study.network, case.decision.verdict
    yield from _outputs(case)
    if "target-scale" in causes:
        words = "standardize the targets: `y = (y - y.mean(0)) / y.std(0)`"
        yield Trial("standardize-targets", words, 0, _changes.standardize_targets)
    if "input-scale" in causes:
        line = "x = jaxgrad.normalization.standardize(jaxgrad.normalization.standardize_fit(x), x)"
        yield Trial("standardize-inputs", f"standardize the inputs: `{line}`", 0, _changes.standardize_inputs)
    if case.ruling is not None:
        yield from _rates(case)
    if "loss" in causes:
        yield from _losses(case)
    if causes[:1] and causes[0] in _SETTINGS:
        return
    if verdict == "nonfinite":
        yield from _guards(case)
    known = {layer.name: layer for chain in case.facts.chains for block in chain for layer in block.layers}
    recurrent = any(chain and chain[0].statistics.kind == "time" for chain in case.facts.chains)
    if case.facts.carried and all(math.isfinite(loop.log10_gain) for loop in case.facts.carried):
        gains = [loop.log10_gain for loop in case.facts.carried]
        steps = [10 ** (-loop.log10_gain / loop.num_steps) for loop in case.facts.carried]
        words = (
            f"multiply the state by {' or '.join(f'{step:.3g}' for step in steps)} before each step, or begin with "
            f"rates of decay nearer to 1: `state = {steps[0]:.3g} * state`"
        )
        yield Trial(
            "hold-state",
            words,
            1,
            lambda s: s._replace(network=_changes.hold_states(s.network, gains)),
            "hold",
        )
    if "recurrence" in causes:
        yield from _recurrences(case, known)
    count = sum(has_skip(network, span) for span in network.spans)
    if count and verdict in {"exploding", "ill-conditioned", "nonfinite"}:
        scale = 1 / math.sqrt(count)
        words = f"multiply each residual branch by 1/√{count}: `x = x + {scale:.3g} * branch(x)`"
        yield Trial(
            "scale-branch",
            words,
            1,
            lambda s: s._replace(network=s.network.substitute(branch_scale=scale)),
            "scale-branch",
        )
    if "normalization" in causes and _changes.reset_scales(Setup(network, case.inputs)) is not None:
        words = "begin with the scales of the normalizations at 1: `scale_init=nn.initializers.ones`"
        yield Trial("reset-scale", words, 1, lambda s: _changes.reset_scales(s) or s)
    yield from _weights(case, known)
    yield from _activations(case, known, recurrent=recurrent)
    if recurrent:
        return
    yield from _architectures(case, count)


def _outputs(case: Case) -> Iterator[Trial]:
    """Yield the network without what follows its last layer, where that keeps it from its targets or from learning."""
    loss = case.facts.loss
    if loss is None or not (loss.out_of_reach > _findings.OUT_OF_REACH or loss.flat == "normalization"):
        return
    if _changes.open_output(case.study.network, case.inputs) is None:
        return

    def apply(setup: Setup) -> Setup:
        return setup._replace(network=_changes.open_output(setup.network, setup.inputs) or setup.network)

    words = "let the last layer's output be the network's: `return x`, without what follows it"
    yield Trial("open-output", words, 2, apply, "open output")


def _rates(case: Case) -> Iterator[Trial]:
    """Yield other learning rates."""
    too_high = case.ruling is not None and case.ruling.too_high
    if case.ruling is not None and case.ruling.fading and min(case.ruling.fading) > 0:
        rates = tuple(1 / size for size in case.ruling.fading)
        words = "let the schedule last as long as the training: `optax.cosine_decay_schedule(rate, num_training_steps)`"
        yield Trial("lengthen-schedule", words, 0, lambda s: s._replace(rate=rates))
    for factor in (0.1, 0.01, 0.001) if too_high else (10.0, 100.0, 1000.0, 10_000.0):
        words = (
            f"divide the learning rate by {1 / factor:.0f}"
            if too_high
            else f"multiply the learning rate by {factor:.0f}"
        )
        line = f"optax.chain(optimizer, optax.scale({factor:g}))"
        kind = "lower-learning-rate" if too_high else "raise-learning-rate"
        yield Trial(kind, f"{words}: `{line}`", 0, lambda s, factor=factor: s._replace(rate=factor))
    if too_high:
        words = "clip the gradient by its global norm: `optax.chain(optax.clip_by_global_norm(1.0), optimizer)`"
        yield Trial("clip", words, 0, lambda s: s._replace(clip=1.0))


def _losses(case: Case) -> Iterator[Trial]:
    """Yield the loss of each output and its own target, or the cross-entropy of logits that fits the labels."""
    loss = case.facts.loss
    if loss is not None and loss.swapped < _findings.UNMOVED:
        paired = _changes.paired_error(case.study.network, case.inputs)
        if paired is not None:
            words = (
                "compare each output with its own target: `jnp.mean((outputs.reshape(targets.shape) - targets) ** 2)`"
            )

            def pair(setup: Setup) -> Setup:
                network = _changes.paired_error(setup.network, setup.inputs) or setup.network
                return setup._replace(network=network, rescaled=True)

            yield Trial("swap-loss", words, 1, pair, "paired error")
        return
    found = _changes.logits_and_labels(case.study.network, case.inputs)
    if found is None:
        return
    output, labels, form = found
    names = {
        "softmax-integers": "optax.softmax_cross_entropy_with_integer_labels",
        "softmax": "optax.softmax_cross_entropy",
        "sigmoid": "optax.sigmoid_binary_cross_entropy",
        "signs": "optax.sigmoid_binary_cross_entropy",
    }
    given = "(labels + 1) / 2" if form == "signs" else "labels"
    words = f"take the cross-entropy of the last layer's output itself: `{names[form]}(logits, {given}).mean()`"

    def apply(setup: Setup) -> Setup:
        return setup._replace(network=_changes.cross_entropy(setup.network, output, labels, form), rescaled=True)

    yield Trial("swap-loss", words, 1, apply, form)


def _guards(case: Case) -> Iterator[Trial]:
    """Yield the operation that makes the first NaN or infinity, kept away from where it is singular."""
    if case.singular is None or case.facts.nonfinite is None or case.facts.nonfinite.phase == "input":
        return
    network, singular, guards = case.study.network, case.singular, []
    places = [f"{case.facts.nonfinite.operation} at {case.facts.nonfinite.source}"]
    while len(guards) < _MOST_GUARDS:
        found = _changes.guarded(network, singular)
        if found is None:
            break
        network, line = found
        guards.append((singular, f"keep {places[-1]} off its singularity: `{line}`"))
        origin = find_nonfinite(network, case.inputs)  # what was infinite before may have hidden another one
        if origin is None or origin.phase == "input" or any(origin.site == site for site, _ in guards):
            break
        singular = origin.site
        places.append(f"{origin.operation} at {user_source(origin.source)}")
    if guards:

        def apply(setup: Setup) -> Setup:
            for site, _ in guards:
                again = _changes.guarded(setup.network, site)
                setup = setup if again is None else setup._replace(network=again[0])
            return setup

        name = " ".join(f"guard {site}" for site, _ in guards)
        yield Trial("guard-operation", "; and ".join(words for _, words in guards), 0, apply, name)
    standardize = "x = jaxgrad.normalization.standardize(jaxgrad.normalization.standardize_fit(x), x)"
    yield Trial("standardize-inputs", f"standardize the inputs: `{standardize}`", 0, _changes.standardize_inputs)


def _recurrences(case: Case, known: dict[str, LayerFacts]) -> Iterator[Trial]:
    """Yield what makes a recurrence remember, or calms it."""
    network, framework = case.study.network, case.framework
    steps = max(sum(block.statistics.kind == "time" for block in chain) for chain in case.facts.chains)
    if _substitute.forget_gates(network) and steps > 2:
        shift = math.log(steps - 1)
        words = f"begin with open forget gates, a bias of ln(T - 1): `{_wording.gate_line(framework, shift)}`"
        yield Trial(
            "forget-bias", words, 1, lambda s: s._replace(network=_substitute.shift_gates(s.network, shift)), "gates"
        )
    line = _wording.orthogonal_line(framework, 1.0, recurrent=True)
    words = f"draw the recurrent weights as orthogonal matrices: `{line}`"
    yield Trial(
        "orthogonal-recurrence",
        words,
        1,
        lambda s: _changes.draw_weights(s, known, case.key, orthogonal=True, loops=True),
    )


def _weights(case: Case, known: dict[str, LayerFacts]) -> Iterator[Trial]:
    """Yield fresh weights: at criticality, orthogonal, and scaled to the batch."""
    summing = [layer for layer in known.values() if layer.fan_in > 1 and not math.isnan(layer.weight_variance)]
    if not summing:
        return
    variances = sorted({round(critical_variances(layer)[0], 2) for layer in summing})
    common = max(variances, key=[round(critical_variances(layer)[0], 2) for layer in summing].count)
    example = next(layer for layer in summing if round(critical_variances(layer)[0], 2) == common)
    shown = " or ".join(f"{value:g}/fan-in" for value in variances[:2]) if len(variances) < 3 else "by nonlinearity"
    framework, bias_variance = case.framework, critical_variances(example)[1]
    line = _wording.draw_line(framework, common)
    biases = f"biases with variance {bias_variance:.2g}" if bias_variance else "biases at 0"
    yield Trial(
        "reinitialize",
        f"draw the weights again with variance {shown}, {biases}: `{line}`",
        1,
        lambda s: _changes.draw_weights(s, known, case.key),
    )
    line = _wording.orthogonal_line(framework, math.sqrt(common))
    yield Trial(
        "reinitialize-orthogonal",
        f"draw the weights as orthogonal matrices: `{line}`",
        1,
        lambda s: _changes.draw_weights(s, known, case.key, orthogonal=True),
    )
    if case.decision.verdict != "nonfinite":
        words = f"scale each layer to the batch (LSUV): `{_wording.lsuv_line(framework)}`"
        yield Trial("reinitialize-lsuv", words, 1, lambda s: _changes.scale_to_data(s, case.key))


def _activations(case: Case, known: dict[str, LayerFacts], *, recurrent: bool) -> Iterator[Trial]:
    """Yield another nonlinearity in the place of one that is flat or dead, with weights that suit it."""
    verdict, layers = case.decision.verdict, case.facts.layers
    if verdict == "dead":
        names = {layer.activation for layer in layers if layer.dead_fraction and layer.activation}
        function, name = jax.nn.leaky_relu, "leaky_relu"
    elif verdict == "vanishing" and not recurrent:
        names = {layer.activation for layer in layers if layer.saturated_fraction is not None and layer.activation}
        function, name = jax.nn.relu, "relu"
    else:
        return
    if not names:
        return

    def swap(setup: Setup) -> Setup:
        return setup._replace(network=setup.network.substitute(activation=function, names=names))

    words = f"replace {listed(names)} by {name}: `{_wording.activation_line(case.framework, name)}`"
    yield Trial("swap-activation", words, 2, swap, f"{name} for {listed(names)}")
    if verdict == "dead":
        return
    suited = {
        key: layer._replace(activation="relu") if layer.activation in names else layer for key, layer in known.items()
    }
    line = _wording.draw_line(case.framework, 2.0)
    yield Trial(
        "swap-activation",
        f"{words}, with weights of variance 2/fan-in: `{line}`",
        2,
        lambda s: _changes.draw_weights(swap(s), suited, case.key),
        f"{name} for {listed(names)}",
    )


def _architectures(case: Case, skips: int) -> Iterator[Trial]:
    """Yield what changes the architecture: skips, normalization, fewer blocks."""
    network = case.study.network
    if not skips and len(network.spans) > 2:
        skipped = network.substitute(skip=True)
        if skipped.program.equations != network.program.equations:
            words = "add each block's input to its output (a residual connection): `x = x + block(x)`"
            yield Trial("add-residual", words, 3, lambda s: s._replace(network=s.network.substitute(skip=True)), "skip")
    if len(network.spans) > 2 and case.decision.verdict != "dead":
        words = f"normalize what enters each layer: `{_wording.normalization_line(case.framework)}`"
        yield Trial(
            "normalize", words, 3, lambda s: s._replace(network=_substitute.normalize_cuts(s.network)), "normalize"
        )
    same = _substitute.droppable_blocks(network)
    if len(same) >= 4:
        words = (
            f"leave out every second of the {len(same)} blocks of equal shape: `depth = {len(same) - len(same) // 2}`"
        )
        yield Trial("drop-depth", words, 3, lambda s: s._replace(network=_changes.drop_every_second(s.network)), "drop")
