"""Counterfactuals: a network with one thing changed, without touching the code it was traced from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from jaxgrad.tracing._interpret import Equation, Loop, Program, Site, run_loop, scan_parts
from jaxgrad.tracing._layers import Activation

if TYPE_CHECKING:
    from jaxgrad.tracing._cuts import Span
    from jaxgrad.tracing._network import Network


def swap_activations(network: Network, function: Callable[[Any], Any], names: Collection[str] | None = None) -> Network:
    """Return the network with its nonlinearities replaced.

    Args:
      network: A traced network.
      function: The elementwise function to put in their place.
      names: Names of the nonlinearities to replace; all by default.
    """
    name = getattr(function, "__name__", "substituted")
    swapped: dict[Site, Equation] = {}
    activations = []
    for activation in network.activations:
        if names is not None and activation.name not in names:
            activations.append(activation)
            continue
        last = activation.equations[-1]
        equation = last._replace(
            operation="substituted",
            inputs=(activation.start,),
            outputs=(activation.end,),
            apply=_elementwise(function),
            params={"name": name},
        )
        swapped[(*activation.loops, activation.end)] = equation
        activations.append(Activation(name, activation.loops, activation.start, activation.end, (equation,)))
    return _rebuilt(network, _replace(network.program, swapped), tuple(activations))


def _elementwise(function: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda value: [function(value).astype(value.dtype)]


def scale_branches(network: Network, scale: float) -> Network:
    """Return the network with what each residual branch adds to the stream multiplied by ``scale``."""
    program = network.program
    changed: dict[Site, Equation] = {}
    for span in network.spans:
        around = _around(network, span)
        for position in span.equations:
            equation = program.equations[position]
            if equation.operation not in {"add", "add_any"} or (equation.outputs[0],) not in network.path:
                continue
            beside = [isinstance(atom, int) and atom in around for atom in equation.inputs]
            moving = [isinstance(atom, int) and (atom,) in network.path for atom in equation.inputs]
            if sum(beside) == 1 and all(moving):
                changed[(equation.outputs[0],)] = equation._replace(apply=_scaled_sum(beside.index(True), scale))
    return _rebuilt(network, _replace(program, changed), network.activations)


def _around(network: Network, span: Span) -> set[int]:
    """Return the values that an activation reaches from the beginning of a block without passing a layer."""
    program, layers = network.program, set(network.program.layers)
    reached = {site[0] for site in span.start.sites}
    for position in span.equations:
        equation = program.equations[position]
        moving = [atom for atom in equation.operands if (atom,) in network.path]
        if position not in layers and moving and all(atom in reached for atom in moving):
            reached.update(equation.outputs)
    return reached


def _scaled_sum(stream: int, scale: float) -> Callable[..., Any]:
    def apply(*operands: Any) -> list[Any]:
        branch = operands[1 - stream]
        return [operands[stream] + branch * branch.dtype.type(scale)]

    return apply


def add_skips(network: Network) -> Network:
    """Return the network with each block's input added to its output, if it fits and has no skip."""
    program = network.program
    changed: dict[Site, Equation] = {}
    for span in network.spans:
        if span.kind != "depth" or len(span.start.sites) != 1 or len(span.end.sites) != 1:
            continue
        ((start,),), ((end,),) = span.start.sites, span.end.sites
        same = program.avals[start].shape == program.avals[end].shape
        if not same or program.avals[start].dtype != program.avals[end].dtype or end in _around(network, span):
            continue
        (equation,) = [program.equations[p] for p in span.equations if end in program.equations[p].outputs]
        if len(equation.outputs) == 1:
            inputs = (*equation.inputs, start)
            changed[(end,)] = equation._replace(inputs=inputs, apply=_with_skip(equation.apply))
    return _rebuilt(network, _replace(program, changed), network.activations)


def _with_skip(apply: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *operands: [apply(*operands[:-1])[0] + operands[-1]]


def normalize_cuts(network: Network, eps: float = 1e-5) -> Network:
    """Return the network with each state between two blocks in depth at mean 0 and variance 1 over its last axis."""
    program = network.program
    inner = {span.end for span in network.spans} & {span.start for span in network.spans if span.kind == "depth"}
    ends = {site[0] for cut in inner for site in cut.sites if len(cut.sites) == 1 and len(site) == 1}
    changed: dict[Site, Equation] = {}
    for equation in program.equations:
        fits = len(equation.outputs) == 1 and equation.loop is None and equation.outputs[0] in ends
        if fits and program.avals[equation.outputs[0]].ndim > 1:
            changed[(equation.outputs[0],)] = equation._replace(apply=_followed_by(equation.apply, _normalized(eps)))
    return _rebuilt(network, _replace(program, changed), network.activations)


def _followed_by(apply: Callable[..., Any], function: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda *operands: [function(result) for result in apply(*operands)]


def _normalized(eps: float) -> Callable[[Any], Any]:
    def normalize(value: Any) -> Any:
        wide = value.astype(jnp.promote_types(value.dtype, jnp.float32))
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + eps)).astype(value.dtype)

    return normalize


def drop_blocks(network: Network, dropped: Collection[int]) -> Network:
    """Return the network with some blocks in depth, by index, replaced by the identity."""
    program = network.program
    changed: dict[Site, Equation] = {}
    for index in dropped:
        ((start,),), ((end,),) = network.spans[index].start.sites, network.spans[index].end.sites
        (equation,) = [
            program.equations[p] for p in network.spans[index].equations if end in program.equations[p].outputs
        ]
        changed[(end,)] = equation._replace(operation="copy", inputs=(start,), params={}, apply=lambda value: [value])
    return _rebuilt(network, _replace(program, changed), network.activations)


def droppable_blocks(network: Network) -> list[int]:
    """Return the blocks in depth that end with a state like the one they begin with."""
    program, found = network.program, []
    for index, span in enumerate(network.spans):
        if span.kind != "depth" or len(span.start.sites) != 1 or len(span.end.sites) != 1:
            continue
        start, end = (network.aval(cut.sites[0]) for cut in (span.start, span.end))
        single = all(len(program.equations[p].outputs) == 1 for p in span.equations)
        if start.shape == end.shape and start.dtype == end.dtype and single and len(span.end.sites[0]) == 1:
            found.append(index)
    return found


def shift_gates(network: Network, shift: float) -> Network:
    """Return the network with ``shift`` added before every gate that a loop's carried state is multiplied by."""
    changed: dict[Site, Equation] = {}
    for site, equation in forget_gates(network).items():
        changed[site] = equation._replace(apply=_shifted(equation.apply, equation.inputs, shift))
    return _rebuilt(network, _replace(network.program, changed), network.activations)


def forget_gates(network: Network) -> dict[Site, Equation]:
    """Return the equations of the sigmoids that multiply what a loop carries, by the site they make."""
    found: dict[Site, Equation] = {}
    for number, loop in ((e.outputs[0], e.loop) for e in network.program.equations if e.loop is not None):
        carried = set(loop.body.inputs[loop.num_consts : loop.num_consts + loop.num_carry])
        made = {output: equation for equation in loop.body.equations for output in equation.outputs}
        for equation in loop.body.equations:
            if equation.operation != "mul" or len(carried & set(equation.operands)) != 1:
                continue
            (gate,) = set(equation.operands) - carried or {-1}
            source = made.get(gate)
            if source is not None and _is_sigmoid(source) and len(source.operands) == 1:
                found[(number, gate)] = source
    return found


def _is_sigmoid(equation: Equation) -> bool:
    return equation.operation == "logistic" or equation.params.get("name") in {"sigmoid", "_sigmoid"}


def _shifted(apply: Callable[..., Any], inputs: tuple[Any, ...], shift: float) -> Callable[..., Any]:
    places = [place for place, atom in enumerate(inputs) if isinstance(atom, int)]

    def shifted(*operands: Any) -> Any:
        moved = [o + jnp.asarray(shift, o.dtype) if place in places else o for place, o in enumerate(operands)]
        return apply(*moved)

    return shifted


def scale_state(network: Network, number: int, factor: float) -> Network:
    """Return the network with what a loop without layers carries multiplied by ``factor`` before each step.

    Args:
      network: The network.
      number: The loop's first result.
      factor: What real states are multiplied by.
    """
    (equation,) = [e for e in network.program.equations if number in e.outputs[:1]]
    params = equation.params
    step, (first, carried) = jex.jaxpr_as_fun(params["jaxpr"]), scan_parts(params, len(equation.inputs))

    def scaled(value: Any) -> Any:
        return value * jnp.asarray(factor, value.dtype) if jnp.issubdtype(value.dtype, jnp.floating) else value

    def apply(*operands: Any) -> list[Any]:
        consts, state, slices = operands[:first], operands[first : first + carried], operands[first + carried :]

        def body(state: Any, now: Any) -> Any:
            results = step(*consts, *map(scaled, state), *now)
            return list(results[:carried]), list(results[carried:])

        state, stacked = jax.lax.scan(
            body, list(state), list(slices), length=params["length"], reverse=params["reverse"]
        )
        return [*state, *stacked]

    return _rebuilt(
        network, _replace(network.program, {(number,): equation._replace(apply=apply)}), network.activations
    )


def replace_loss(network: Network, inputs: Sequence[int], function: Callable[..., Any]) -> Network:
    """Return the network with its loss computed from some of its values by another function."""
    program = network.program
    loss = program.outputs[0]
    if not isinstance(loss, int):
        return network
    (equation,) = [e for e in program.equations if loss in e.outputs]
    dtype = program.avals[loss].dtype
    new = equation._replace(
        operation="substituted",
        inputs=tuple(inputs),
        outputs=(loss,),
        apply=lambda *values: [function(*values).astype(dtype)],
        params={"name": "loss"},
        scope=None,
        loop=None,
    )
    return _rebuilt(network, _replace(program, {(loss,): new}), network.activations)


def pass_on(network: Network, source: int, target: int) -> Network:
    """Return the network with one of its values standing in the place of another of the same size and type."""
    shape = network.program.avals[target].shape
    (equation,) = [e for e in network.program.equations if target in e.outputs]
    new = equation._replace(
        operation="substituted",
        inputs=(source,),
        outputs=(target,),
        apply=lambda value: [value.reshape(shape)],
        params={"name": "identity"},
        scope=None,
        loop=None,
    )
    return _rebuilt(network, _replace(network.program, {(target,): new}), network.activations)


def guard_operation(network: Network, site: Site, guard: Callable[[Any], Any], place: int | None) -> Network:
    """Return the network with one operand of one operation, or all of them, passed through ``guard`` first."""
    holder = network.holder(site)
    (equation,) = [e for e in holder.equations if site[-1] in e.outputs]

    def apply(*operands: Any) -> Any:
        return equation.apply(*(guard(o) if place in {None, i} else o for i, o in enumerate(operands)))

    return _rebuilt(network, _replace(network.program, {site: equation._replace(apply=apply)}), network.activations)


def _replace(program: Program, changed: Mapping[Site, Equation]) -> Program:
    """Return a program with the equations that make the given sites replaced, inside loops too."""
    equations = []
    for equation in program.equations:
        inner = {site[1:]: new for site, new in changed.items() if len(site) > 1 and site[0] == equation.outputs[0]}
        if equation.loop is not None and inner:
            loop = equation.loop._replace(body=_replace(equation.loop.body, inner))
            equations.append(equation._replace(loop=loop, apply=_loop_apply(loop)))
            continue
        outputs = [output for output in equation.outputs if (output,) in changed]
        equations.append(changed[(outputs[0],)] if outputs else equation)
    return dataclasses.replace(program, equations=tuple(equations), _compiled={})


def _loop_apply(loop: Loop) -> Callable[..., Any]:
    return lambda *operands: run_loop(loop, operands, {}, ())[0]


def _rebuilt(network: Network, program: Program, activations: tuple[Activation, ...]) -> Network:
    """Return the network over a changed program; layers, cuts and blocks stand where they stood."""
    sites = []
    for site in network.sites:
        holder = program
        for number in site.loops:
            (loop,) = [e.loop for e in holder.equations if e.outputs and e.outputs[0] == number and e.loop is not None]
            holder = loop.body
        (equation,) = [e for e in holder.equations if site.equation.outputs[0] in e.outputs]
        sites.append(site._replace(program=holder, equation=equation))
    return dataclasses.replace(network, program=program, activations=activations, sites=tuple(sites))
