"""Fixes, each one tried on the user's own network and batch and measured again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.diagnosis import _findings
from jaxgrad.diagnosis._findings import Decision, Facts, LayerFacts
from jaxgrad.diagnosis._report import Remedy
from jaxgrad.diagnosis._statistics import facts_of, layer_statistics, leaves_range
from jaxgrad.diagnosis._structure import has_skip, is_product
from jaxgrad.diagnosis._study import Study
from jaxgrad.spectra._examples import Layout
from jaxgrad.tracing import Network
from jaxgrad.tracing._interpret import evaluate

_LARGEST_VARIANCE = 25.0  # times 1/fan-in; more than that saturates any nonlinearity
_MARGIN = 2.0  # a remedy must leave the gain well inside the healthy range
_LEARNING_RATE = 1e-3  # for a confirmation without the user's own optimizer


class Trial(NamedTuple):
    """A change to be tried.

    Attributes:
      kind: What is changed.
      change: The change in words.
      network: The network with it.
      inputs: The program's inputs with it.
    """

    kind: str
    change: str
    network: Network
    inputs: list[Any]


def try_remedies(
    study: Study,
    inputs: list[Any],
    facts: Facts,
    decision: Decision,
    key: jax.Array,
    optimizer: Any,
    confirm_steps: int,
) -> tuple[Remedy, ...]:
    """Try each change that fits the verdict, and rank them by what they restore.

    Args:
      study: The network and what was compiled for it.
      inputs: The program's inputs.
      facts: What was measured.
      decision: The verdict.
      key: For fresh weights.
      optimizer: The user's optimizer, for the confirmation.
      confirm_steps: How many steps to confirm the best remedy with.

    Returns:
      The remedies: those that make the network healthy first, then those that come closest.
    """
    tried: list[tuple[Remedy, Trial]] = []
    for trial in _trials(study, inputs, facts, decision, key):
        after = _reassess(study, trial, key)
        gain = after.log10_total_gain
        verified = after.verdict == "healthy" and abs(gain) <= _MARGIN
        tried.append((Remedy(trial.kind, trial.change, decision.log10_total_gain, gain, verified), trial))
    order = sorted(range(len(tried)), key=lambda i: (not tried[i][0].verified, _distance(tried[i][0]), i))
    remedies = [tried[i][0] for i in order]
    if confirm_steps and remedies and remedies[0].verified:
        best = tried[order[0]][1]
        before = _train(study.network, inputs, optimizer, confirm_steps)
        after_loss = _train(best.network, best.inputs, optimizer, confirm_steps)
        better = math.isfinite(after_loss) and not after_loss >= before
        remedies[0] = remedies[0]._replace(confirmed=better)
    return tuple(remedies)


def _distance(remedy: Remedy) -> float:
    """Return how far from a gain of 1 a remedy leaves the network, in whole powers of ten."""
    return float(round(abs(remedy.after))) if math.isfinite(remedy.after) else math.inf


def _reassess(study: Study, trial: Trial, key: jax.Array) -> Decision:
    """Measure a changed network and decide again."""
    changed = study
    if trial.network is not study.network:
        changed = study.once(("trial", trial.change), lambda: Study(trial.network))
        changed.network = trial.network
        changed.compiled.setdefault("layout", study.compiled.get("layout", Layout(1, {}, False)))
    measured, scale = changed.measure(trial.inputs)
    network = changed.network
    gains = changed.log_gains(trial.inputs, key) if leaves_range(network, measured, scale) else None
    numbers = [measured.loss, *measured.gradient_norms, *measured.signal.values()]
    finite = all(np.all(np.isfinite(number)) for number in numbers)
    layers = layer_statistics(network, measured)
    layout = changed.compiled["layout"]
    spectra = [None] * len(network.blocks)
    facts = facts_of(network, layout, measured, scale, gains, None, layers, trial.inputs, spectra, math.nan)
    decision = _findings.decide(facts)
    return decision if finite else decision._replace(verdict="nonfinite")


def _trials(study: Study, inputs: list[Any], facts: Facts, decision: Decision, key: jax.Array) -> Iterator[Trial]:
    """Yield the changes that fit, the smallest change first."""
    network = study.network
    causes = {finding.cause for finding in decision.findings}
    known = {layer.name: layer for chain in facts.chains for block in chain for layer in block.layers}
    if "target-scale" in causes:
        yield Trial(
            "standardize-targets", "standardize the targets", network, _standardized(network, inputs, targets=True)
        )
    if "input-scale" in causes:
        yield Trial("standardize-inputs", "standardize the inputs", network, _standardized(network, inputs))
    if decision.verdict == "nonfinite" or (decision.findings and "target-scale" in causes):
        return
    count = sum(has_skip(network, span) for span in network.spans)
    if count and decision.verdict in {"exploding", "ill-conditioned"}:
        scale = 1 / math.sqrt(count)
        change = f"multiply each residual branch by 1/√{count} = {scale:.3g}"
        yield Trial("scale-branch", change, network.substitute(branch_scale=scale), inputs)
    if "recurrence" in causes:
        yield Trial(
            "orthogonal-recurrence",
            "draw the recurrent weights as orthogonal matrices, scaled for their nonlinearity",
            network,
            _orthogonal_recurrence(network, inputs, known, key),
        )
    yield Trial("reinitialize", _reinitialize_words(known), network, _reinitialized(network, inputs, known, key))
    names = {layer.activation for layer in facts.layers if layer.saturated_fraction is not None and layer.activation}
    names -= {None}
    if decision.verdict == "dead":
        relu = {layer.activation for layer in facts.layers if layer.dead_fraction and layer.activation}
        leaky = network.substitute(activation=jax.nn.leaky_relu, names=relu)
        yield Trial("swap-activation", f"replace {_listed(relu)} by leaky_relu", leaky, inputs)
        return
    recurrent = any(chain and chain[0].statistics.kind == "time" for chain in facts.chains)
    if names and decision.verdict == "vanishing" and not recurrent:
        swapped = network.substitute(activation=jax.nn.relu, names=names)
        change = f"replace {_listed(names)} by relu"
        yield Trial("swap-activation", change, swapped, inputs)
        he = {name: layer._replace(slope=math.sqrt(0.5)) if layer.saturates else layer for name, layer in known.items()}
        both = _reinitialized(network, inputs, he, key)
        yield Trial("swap-activation", f"{change}, with weights of variance 2/fan-in", swapped, both)
    if not count and len(network.spans) > 2 and not recurrent:
        skipped = network.substitute(skip=True)
        if skipped.program.equations != network.program.equations:
            change = "add each block's input to its output (a residual connection)"
            yield Trial("add-residual", change, skipped, inputs)


def _listed(names: Any) -> str:
    return " and ".join(sorted(str(name) for name in names))


def _standardized(network: Network, inputs: list[Any], *, targets: bool = False) -> list[Any]:
    """Return the inputs with the network's float inputs (or the targets) at mean 0 and standard deviation 1."""
    changed = list(inputs)
    for position in range(network.num_parameters, len(network.signature.avals)):
        aval = network.signature.avals[position]
        if not jnp.issubdtype(aval.dtype, jnp.floating) or not aval.shape:
            continue
        reaches = any((*site.loops, site.data) == (position,) for site in network.sites)
        if reaches == targets:
            continue
        mean, std = jnp.mean(inputs[position], axis=0, keepdims=True), jnp.std(inputs[position], axis=0, keepdims=True)
        changed[position] = (inputs[position] - mean) / jnp.where(std > 0, std, jnp.ones_like(std))
    return changed


def _reinitialize_words(known: dict[str, LayerFacts]) -> str:
    variances = sorted({round(_fitting_variance(layer), 2) for layer in known.values() if layer.fan_in > 1})
    shown = (
        " or ".join(f"{value:g}/fan-in" for value in variances[:2])
        if len(variances) < 3
        else (f"{variances[0]:g}/fan-in to {variances[-1]:g}/fan-in, by nonlinearity")
    )
    return f"draw the weights again with variance {shown}, biases at 0"


def _fitting_variance(layer: LayerFacts) -> float:
    """Return the variance times fan-in that makes up for the nonlinearity's slope."""
    if math.isnan(layer.slope) or layer.slope <= 0:
        return 1.0 if math.isnan(layer.slope) else 2.0
    return min(1 / layer.slope**2, _LARGEST_VARIANCE)


def _reinitialized(network: Network, inputs: list[Any], known: dict[str, LayerFacts], key: jax.Array) -> list[Any]:
    """Return the inputs with fresh weights of a variance that fits each layer's nonlinearity, and biases at 0."""
    changed = list(inputs)
    weights = set()
    for number, (layer, site) in enumerate(zip(network.layers, network.sites, strict=True)):
        if not is_product(site) or layer.name not in known:
            continue
        facts = known[layer.name]
        owner = _main_owner(network, site)
        leaf = changed[owner.leaf]
        std = math.sqrt(_fitting_variance(facts) / facts.fan_in)
        fresh = jax.random.normal(jax.random.fold_in(key, number), leaf[owner.index].shape, jnp.float32) * std
        changed[owner.leaf] = (
            leaf.at[owner.index].set(fresh.astype(leaf.dtype)) if owner.index else fresh.astype(leaf.dtype)
        )
        weights.add(owner.leaf)
    for owner in network.parameters:
        if owner.leaf not in weights and owner.name.rsplit("/", 1)[-1].strip("_").lower() in {"b", "bias"}:
            changed[owner.leaf] = jnp.zeros_like(changed[owner.leaf])
    return changed


def _orthogonal_recurrence(
    network: Network, inputs: list[Any], known: dict[str, LayerFacts], key: jax.Array
) -> list[Any]:
    """Return the inputs with the square weights inside loops drawn as scaled orthogonal matrices."""
    changed = list(inputs)
    for number, (layer, site) in enumerate(zip(network.layers, network.sites, strict=True)):
        shape = layer.weight_shape
        if not site.loops or not is_product(site) or len(shape) != 2 or shape[0] != shape[1]:
            continue
        owner = _main_owner(network, site)
        leaf = changed[owner.leaf]
        if leaf[owner.index].shape != shape:
            continue
        draw = jax.nn.initializers.orthogonal(math.sqrt(_fitting_variance(known[layer.name])))
        fresh = draw(jax.random.fold_in(key, number), shape, jnp.float32).astype(leaf.dtype)
        changed[owner.leaf] = leaf.at[owner.index].set(fresh) if owner.index else fresh
    return changed


def _main_owner(network: Network, site: Any) -> Any:
    return max(site.owners, key=lambda owner: math.prod(network.signature.avals[owner.leaf].shape))


def _train(network: Network, inputs: Sequence[Any], optimizer: Any, steps: int) -> float:
    """Return the mean loss over the last tenth of a short training run on the batch given."""
    import optax

    optimizer = optax.adam(_LEARNING_RATE) if optimizer is None else optimizer
    leaves = [owner.leaf for owner in network.parameters]

    def loss(parameters: list[Any]) -> Any:
        full = list(inputs)
        for leaf, value in zip(leaves, parameters, strict=True):
            full[leaf] = value
        return evaluate(network.program, full)[0][0]

    def step(carry: Any, _: None) -> Any:
        parameters, state = carry
        value, gradients = jax.value_and_grad(loss)(parameters)
        updates, state = optimizer.update(gradients, state, parameters)
        return (optax.apply_updates(parameters, updates), state), value

    parameters = [inputs[leaf] for leaf in leaves]
    run = jax.jit(
        lambda parameters: jax.lax.scan(step, (parameters, optimizer.init(parameters)), None, length=steps)[1]
    )
    losses = np.asarray(run(parameters), np.float64)
    return float(losses[-max(1, steps // 10) :].mean())
