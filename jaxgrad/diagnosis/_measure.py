"""What one forward and one backward pass through a traced network show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad._norms import accumulator
from jaxgrad.spectra._blocks import block_values, depth_function, time_function
from jaxgrad.spectra._examples import Layout
from jaxgrad.tracing import Network
from jaxgrad.tracing._interpret import Site, evaluate, replay
from jaxgrad.tracing._layers import Activation, LayerSite, downstream

_SAMPLE = 16384  # values kept of an activation, for its histogram
_GRID = 201  # points at which a nonlinearity's slope is looked at
_SATURATED = 0.05  # of the largest slope


class ActivationMoments(NamedTuple):
    """Statistics of a nonlinearity's output over the batch.

    Attributes:
      mean: Mean.
      std: Standard deviation.
      slope: Root mean square of the slope over the batch.
      max_slope: Largest slope the function has.
      saturates: Whether the slope dies out on both sides.
      saturated: Share of entries with a slope below 5 % of the largest.
      dead: Share of units with slope 0 on every example.
      sample: Some of the values.
    """

    mean: Any
    std: Any
    slope: Any
    max_slope: Any
    saturates: Any
    saturated: Any
    dead: Any
    sample: Any


class Measurement(NamedTuple):
    """What one evaluation shows; sites inside loops have one value a step.

    Attributes:
      loss: The loss.
      rms: Root mean square of the activation at each cut's site.
      signal: Euclidean norm of dL/d(activation) there, the loss multiplied by the seed.
      signal_rms: Root mean square of the same.
      parameter_norms: Norm of each layer's parameter.
      gradient_norms: Norm of the gradient with respect to it, the loss multiplied by the seed.
      update_norms: Norm of the optimizer's first update of it; empty without an optimizer.
      activations: Statistics after each layer.
    """

    loss: Any
    rms: dict[Site, Any]
    signal: dict[Site, Any]
    signal_rms: dict[Site, Any]
    parameter_norms: list[Any]
    gradient_norms: list[Any]
    update_norms: list[Any]
    activations: list[ActivationMoments]


def measurement(network: Network, optimizer: Any = None) -> Callable[[list[Any], Any], Measurement]:
    """Return the compiled function that measures a network.

    Args:
      network: A traced network whose first output is the loss.
      optimizer: An optax transformation whose first update to measure, or ``None``.

    Returns:
      A function of the program's inputs and of a seed that the loss is multiplied by.
    """
    program = network.program
    leaves = [owner.leaf for owner in network.parameters]
    after = [activation_after(network, site) for site in network.sites]
    cut_sites = list(dict.fromkeys(site for cut in network.cuts for site in cut.sites))
    wanted = set(cut_sites)
    for site, activation in zip(network.sites, after, strict=True):
        wanted |= _needed(site, activation)

    @jax.jit
    def measure(inputs: list[Any], seed: Any) -> Measurement:
        taps = {site: jnp.zeros(network.stacked_shape(site), network.aval(site).dtype) for site in cut_sites}

        def run(parameters: list[Any], taps: Mapping[Site, Any]) -> tuple[Any, dict[Site, Any]]:
            full = list(inputs)
            for leaf, value in zip(leaves, parameters, strict=True):
                full[leaf] = value
            outputs, kept = evaluate(program, full, taps=taps, captures=wanted)
            return outputs[0], kept

        parameters = [inputs[leaf] for leaf in leaves]
        loss, pull, kept = jax.vjp(run, parameters, taps, has_aux=True)
        gradients, signals = pull(jnp.asarray(seed, loss.dtype))
        by_leaf = dict(zip(leaves, gradients, strict=True))
        updates = {} if optimizer is None else _updates(network, inputs, by_leaf, optimizer)
        weights = [_main_owner(network, site) for site in network.sites]
        return Measurement(
            loss=loss,
            rms={site: _rms(kept[site], stacked=len(site) > 1) for site in cut_sites},
            signal={site: _norm(signals[site], stacked=len(site) > 1) for site in cut_sites},
            signal_rms={site: _rms(signals[site], stacked=len(site) > 1) for site in cut_sites},
            parameter_norms=[_norm(inputs[owner.leaf][owner.index]) for owner in weights],
            gradient_norms=[_norm(by_leaf[owner.leaf][owner.index]) for owner in weights],
            update_norms=[_norm(updates[owner.leaf][owner.index]) for owner in weights] if updates else [],
            activations=[
                _moments(network, site, activation, kept, seed)
                for site, activation in zip(network.sites, after, strict=True)
            ],
        )

    return measure


def _main_owner(network: Network, site: LayerSite) -> Any:
    sizes = [math.prod(aval.shape) for aval in network.signature.avals]
    return max(site.owners, key=lambda owner: sizes[owner.leaf])


def activation_after(network: Network, site: LayerSite) -> Activation | None:
    """Return the nonlinearity that a layer's output runs into before another layer, or ``None``."""
    ends = {a.end: a for a in network.activations if a.loops == site.loops}
    others = {o for other in network.sites if other.loops == site.loops for o in other.equation.outputs}
    found = downstream(
        site.program, site.equation.outputs[0], frozenset(ends), frozenset(others - set(site.equation.outputs))
    )
    return None if found is None else ends[found]


def _needed(site: LayerSite, activation: Activation | None) -> set[Site]:
    """Return the values that a layer's statistics are computed from."""
    if activation is None:
        return {(*site.loops, site.equation.outputs[0])}
    numbers = {activation.start, activation.end, *_outer_operands(activation)}
    return {(*activation.loops, number) for number in numbers}


def _outer_operands(activation: Activation) -> set[int]:
    made = {output for equation in activation.equations for output in equation.outputs}
    return {
        atom
        for equation in activation.equations
        for atom in equation.operands
        if atom not in made and atom != activation.start
    }


def _wide(value: Any) -> Any:
    """Return the magnitude of a value in float32 or wider."""
    return jnp.abs(value).astype(accumulator(value))


def _norm(value: Any, *, stacked: bool = False) -> Any:
    """Return the Euclidean norm, of each step where stacked; right over the whole range of the type."""
    axes = tuple(range(1 if stacked else 0, jnp.ndim(value)))
    wide = _wide(value)
    if not wide.size:
        return jnp.zeros(wide.shape[: 1 if stacked else 0], wide.dtype)
    scale = jnp.max(wide, axis=axes, keepdims=True)
    safe = jnp.where((scale > 0) & jnp.isfinite(scale), scale, jnp.ones_like(scale))
    root = jnp.sqrt(jnp.sum((wide / safe) ** 2, axis=axes))
    return root * jnp.squeeze(safe, axis=axes)


def _rms(value: Any, *, stacked: bool = False) -> Any:
    size = math.prod(jnp.shape(value)[1 if stacked else 0 :])
    return _norm(value, stacked=stacked) / math.sqrt(max(size, 1))


def _updates(network: Network, inputs: Sequence[Any], gradients: Mapping[int, Any], optimizer: Any) -> dict[int, Any]:
    """Return the optimizer's first update of each parameter leaf."""
    signature = network.signature
    static = {position for position, _ in signature.static}
    numbers = iter(range(len(signature.avals)))
    leaves = [None if position in static else next(numbers) for position in range(signature.treedef.num_leaves)]

    def tree(values: Mapping[int, Any]) -> Any:
        chosen = [None if number is None else values.get(number) for number in leaves]
        return jax.tree_util.tree_unflatten(signature.treedef, chosen)[0]

    parameters = tree({number: inputs[number] for number in gradients})
    updates, _ = optimizer.update(tree(gradients), optimizer.init(parameters), parameters)
    numbered = jax.tree_util.tree_leaves(tree({number: np.asarray(number) for number in gradients}))
    flat = jax.tree_util.tree_leaves(updates)
    return {int(number): update for number, update in zip(numbered, flat, strict=True)}


def _moments(
    network: Network, site: LayerSite, activation: Activation | None, kept: Mapping[Site, Any], seed: Any
) -> ActivationMoments:
    """Return the statistics of what follows a layer."""
    none = jnp.asarray(jnp.nan, jnp.float32)
    if activation is None:
        value = kept[(*site.loops, site.equation.outputs[0])]
        mean, std, sample = _spread(value)
        return ActivationMoments(mean, std, none, none, none, none, none, sample)
    loops = activation.loops
    mean, std, sample = _spread(kept[(*loops, activation.end)])
    operands = sorted(_outer_operands(activation))
    aval = network.aval((*loops, activation.start))

    def apply(start: Any, outer: Sequence[Any]) -> Any:
        values = dict(zip(operands, outer, strict=True))
        return replay(activation.equations, {activation.start: start}, values)[activation.end]

    def slope(start: Any, outer: Sequence[Any]) -> Any:
        return jax.jvp(lambda z: apply(z, outer), (start,), (jnp.ones_like(start),))[1]

    stacked = slope
    for _ in loops:
        stacked = jax.vmap(stacked)
    outer = [kept[(*loops, number)] for number in operands]
    slopes = _wide(stacked(kept[(*loops, activation.start)], outer))
    # The seed is no constant, which keeps the compiler from evaluating the grid ahead of time.
    size = math.prod(aval.shape)
    rows = math.ceil(_GRID / size)
    still = 0.0 * jnp.asarray(seed)
    points = jnp.linspace(-10.0, 10.0, max(_GRID, size), dtype=still.dtype)
    points = jnp.resize(points, (rows, *aval.shape)) + still
    first = [value[(0,) * len(loops)] for value in outer]
    grid = _wide(jax.vmap(lambda z: slope(z.astype(aval.dtype), first))(points)).ravel()
    largest = jnp.nanmax(grid)
    saturates = (grid[0] < _SATURATED * largest) & (grid[-1] < _SATURATED * largest)
    units = {len(loops) + axis for axis in unit_axes(site, aval.shape)}
    examples = tuple(axis for axis in range(slopes.ndim) if axis not in units)
    return ActivationMoments(
        mean=mean,
        std=std,
        slope=_rms(slopes),
        max_slope=largest,
        saturates=saturates.astype(jnp.float32),
        saturated=jnp.mean((slopes < _SATURATED * largest).astype(jnp.float32)),
        dead=jnp.mean(jnp.all(slopes == 0, axis=examples).astype(jnp.float32)),
        sample=sample,
    )


def unit_axes(site: LayerSite, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes of a layer's activation, of this shape, that count its units; none where it is one number."""
    made = site.program.avals[site.equation.outputs[0]].shape
    units = _weight_axes(site, len(made))
    if shape == made:
        return units
    # Moved or reshaped between the layer and its nonlinearity.
    size = math.prod(made[axis] for axis in units)
    fitting = [axis for axis, length in enumerate(shape) if length == size]
    return (fitting[-1],) if fitting else tuple(range(len(shape)))[-1:]


def _weight_axes(site: LayerSite, rank: int) -> tuple[int, ...]:
    """Return the axes of a layer's output that come from its weight."""
    params = site.equation.params
    if site.equation.operation == "conv_general_dilated":
        return (int(params["dimension_numbers"].out_spec[1]),)
    if site.equation.operation == "dot_general":
        contracted, batch = params["dimension_numbers"]
        first = site.equation.operands[0] == site.weight
        free = site.program.avals[site.weight].ndim - len(contracted[0]) - len(batch[0])
        begin = len(batch[0]) if first else rank - free
        if free:
            return tuple(range(begin, begin + free))
    return tuple(range(rank))[-1:]


def _spread(value: Any) -> tuple[Any, Any, Any]:
    """Return mean, standard deviation and some of the values."""
    flat = jnp.ravel(value).astype(accumulator(value))
    stride = -(-flat.size // _SAMPLE) | 1  # odd, so that it does not fall in step with the units
    return jnp.mean(flat), jnp.std(flat), flat[::stride][:_SAMPLE]


# --- the signal in log space -----------------------------------------------------------------------------------------


def log_signals(network: Network, layout: Layout) -> Callable[[list[Any], Any], list[Any]]:
    """Return the compiled function that pushes a signal back through every chain in log space.

    The signal is scaled to norm 1 before each block, so that it neither underflows nor overflows at any depth. It
    begins as the loss's gradient at the chain's end where that is usable, else along a random direction.

    Args:
      network: A traced network.
      layout: Where the examples lie.

    Returns:
      A function of the program's inputs and a key, that gives log10 of the norm ratio of each block.
    """

    @jax.jit
    def gains(inputs: list[Any], key: Any) -> list[Any]:
        values = block_values(network, inputs, network.spans)
        results: list[Any] = [None] * len(network.spans)
        chain, cotangent = None, None
        for index in reversed(range(len(network.spans))):
            span = network.spans[index]
            if span.kind == "time":
                function, rows = time_function(network, layout, values, span, span.start.step)
            else:
                function, rows = depth_function(network, layout, values, span)
            out, pull = jax.vjp(function, rows)
            if chain != span.chain or cotangent is None:
                cotangent = jax.random.normal(jax.random.fold_in(key, index), out.shape, out.dtype)
            chain = span.chain
            norm = _norm(cotangent)
            usable = (norm > 0) & jnp.isfinite(norm)
            unit = cotangent / jnp.where(usable, norm, jnp.ones_like(norm)).astype(cotangent.dtype)
            (cotangent,) = pull(unit)
            results[index] = jnp.where(usable, jnp.log10(_norm(cotangent)), -jnp.inf)
        return results

    return gains
