"""What one forward and one backward pass through a traced network show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgrad._norms import accumulator, is_inexact
from jaxgrad.tracing import Network
from jaxgrad.tracing._interpret import Program, Site, evaluate, replay
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
      parameter_norms: Norm of each layer's parameter.
      gradient_norms: Norm of the gradient with respect to it, the loss multiplied by the seed.
      update_norms: Norm of the optimizer's first update of it; empty without an optimizer.
      activations: Statistics after each layer.
      alike: Whether the units of each layer all have the same weights, other than zero.
      entries: For layers that no other comes before, mean and standard deviation of each feature that enters.
    """

    loss: Any
    rms: dict[Site, Any]
    signal: dict[Site, Any]
    parameter_norms: list[Any]
    gradient_norms: list[Any]
    update_norms: list[Any]
    activations: list[ActivationMoments]
    alike: list[Any]
    entries: dict[int, tuple[Any, Any]]


def measurement(
    network: Network,
    updates: Callable[[Sequence[Any], Mapping[int, Any]], Mapping[int, Any]] | None = None,
    *,
    light: bool = False,
) -> Callable[[list[Any], Any], Measurement]:
    """Return the compiled function that measures a network.

    Args:
      network: A traced network whose first output is the loss.
      updates: Returns the first updates to measure from inputs and gradients by leaf, or ``None``.
      light: Whether to leave out what no verdict rests on: gradients by parameters stand as 0, and of the activations
        only the dead units are counted.

    Returns:
      A function of the program's inputs and of a seed that the loss is multiplied by.
    """
    program = network.program
    leaves = [] if light else [owner.leaf for owner in network.parameters]
    after = [activation_after(network, site) for site in network.sites]
    cut_sites = list(dict.fromkeys(site for cut in network.cuts for site in cut.sites))
    wanted = set(cut_sites)
    for site, activation in zip(network.sites, after, strict=True):
        wanted |= _needed(site, activation)
    entries = entering_layers(network)
    wanted |= {(*network.sites[index].loops, network.sites[index].data) for index in entries}

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
        first = {} if updates is None else updates(inputs, by_leaf)
        weights = [main_owner(network, site) for site in network.sites]
        return Measurement(
            loss=loss,
            rms={site: _rms(kept[site], stacked=len(site) > 1) for site in cut_sites},
            signal={site: norm(signals[site], stacked=len(site) > 1) for site in cut_sites},
            parameter_norms=[norm(inputs[owner.leaf][owner.index]) for owner in weights],
            gradient_norms=[
                norm(by_leaf[owner.leaf][owner.index]) if owner.leaf in by_leaf else jnp.zeros(()) for owner in weights
            ],
            update_norms=[norm(first[owner.leaf][owner.index]) for owner in weights] if first else [],
            alike=[
                _alike(site, inputs[owner.leaf][owner.index])
                for site, owner in zip(network.sites, weights, strict=True)
            ],
            entries={index: _features(network.sites[index], kept) for index in entries},
            activations=[
                _moments(network, site, activation, kept, None if light else seed)
                for site, activation in zip(network.sites, after, strict=True)
            ],
        )

    return measure


def main_owner(network: Network, site: LayerSite) -> Any:
    sizes = [math.prod(aval.shape) for aval in network.signature.avals]
    return max(site.owners, key=lambda owner: sizes[owner.leaf])


def entering_layers(network: Network) -> list[int]:
    """Return the layers that take numbers in which no other layer had a part, by position in ``Network.layers``."""
    passed: dict[Site, set[int]] = {(): _passed(network.program, set())}
    found = []
    for index, site in enumerate(network.sites):
        if site.loops not in passed:
            outer = passed.get(site.loops[:-1], set())
            (equation,) = [
                e for e in network.holder(site.loops).equations if e.outputs and e.outputs[0] == site.loops[-1]
            ]
            first = equation.loop.num_consts if equation.loop is not None else 0
            last = first + (equation.loop.num_carry if equation.loop is not None else 0)
            inside = zip(equation.inputs, site.program.inputs, strict=False)
            late = {atom for place, (given, atom) in enumerate(inside) if first <= place < last or given in outer}
            passed[site.loops] = _passed(site.program, late)
        aval = site.program.avals[site.data]
        fits = is_inexact(aval) and len(aval.shape) > 1 and _feature_axis(site) is not None
        if fits and site.data not in passed[site.loops]:
            found.append(index)
    return found


def _passed(program: Program, late: set[int]) -> set[int]:
    """Return what a layer of the program, or what came in late, had a part in."""
    passed = late | {output for position in program.layers for output in program.equations[position].outputs}
    for equation in program.equations:
        if not passed.isdisjoint(equation.operands):
            passed.update(equation.outputs)
    return passed


def _feature_axis(site: LayerSite) -> int | None:
    """Return the axis of a layer's input that holds the features it sums over, counted from the end."""
    params, rank = site.equation.params, site.program.avals[site.data].ndim
    if site.equation.operation == "conv_general_dilated":
        return int(params["dimension_numbers"].lhs_spec[1]) - rank
    if site.equation.operation == "dot_general":
        contracted, _ = params["dimension_numbers"]
        axes = contracted[0 if site.equation.inputs[0] == site.data else 1]
        return int(axes[0]) - rank if len(axes) == 1 else None
    return None


def _features(site: LayerSite, kept: Mapping[Site, Any]) -> tuple[Any, Any]:
    """Return mean and standard deviation of each feature."""
    value = kept[(*site.loops, site.data)]
    axis = _feature_axis(site) or -1
    columns = jnp.moveaxis(value, axis, -1).reshape(-1, value.shape[axis]).astype(accumulator(value))
    return jnp.mean(columns, axis=0), jnp.std(columns, axis=0)


def _alike(site: LayerSite, weight: Any) -> Any:
    """Return whether all units of a layer have the same weights, other than zero."""
    shape = site.program.avals[site.weight].shape
    if site.equation.operation != "dot_general" or weight.shape != shape:
        return jnp.asarray(False)
    contracted, _ = site.equation.params["dimension_numbers"]
    axes = contracted[0 if site.equation.inputs[0] == site.weight else 1]
    if len(axes) != 1 or weight.ndim != 2 or weight.shape[1 - axes[0]] < 2:
        return jnp.asarray(False)
    columns = jnp.moveaxis(weight, axes[0], 0)
    return jnp.all(columns == columns[:, :1]) & jnp.any(columns != 0)


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


def norm(value: Any, *, stacked: bool = False) -> Any:
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
    return norm(value, stacked=stacked) / math.sqrt(max(size, 1))


def _moments(
    network: Network, site: LayerSite, activation: Activation | None, kept: Mapping[Site, Any], seed: Any
) -> ActivationMoments:
    """Return the statistics of what follows a layer; without a seed, the share of dead units alone."""
    none = jnp.asarray(jnp.nan, jnp.float32)
    if activation is None and seed is None:
        return ActivationMoments(none, none, none, none, none, none, none, jnp.zeros(0))
    if activation is None:
        value = kept[(*site.loops, site.equation.outputs[0])]
        mean, std, sample = _spread(value)
        return ActivationMoments(mean, std, none, none, none, none, none, sample)
    loops = activation.loops
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
    units = {len(loops) + axis for axis in unit_axes(site, aval.shape)}
    examples = tuple(axis for axis in range(slopes.ndim) if axis not in units)
    dead = jnp.mean(jnp.all(slopes == 0, axis=examples).astype(jnp.float32))
    if seed is None:
        zero = jnp.zeros((), jnp.float32)
        return ActivationMoments(none, none, none, none, zero, none, dead, jnp.zeros(0))
    mean, std, sample = _spread(kept[(*loops, activation.end)])
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
    return ActivationMoments(
        mean=mean,
        std=std,
        slope=_rms(slopes),
        max_slope=largest,
        saturates=saturates.astype(jnp.float32),
        saturated=jnp.mean((slopes < _SATURATED * largest).astype(jnp.float32)),
        dead=dead,
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
