"""Which part of a network an operation belongs to: layers, nonlinearities, normalization, attention, residual sums."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jaxgrad.diagnosis._report import Source
from jaxgrad.tracing import Network
from jaxgrad.tracing._flatten import bodies
from jaxgrad.tracing._interpret import Equation, Program, Site
from jaxgrad.tracing._layers import is_elementwise
from jaxgrad.tracing._trunk import differentiable, inexact

_ROOTS = frozenset({"rsqrt", "sqrt"})
_REDUCTIONS = frozenset({"reduce_sum", "reduce_max", "reduce_min", "reduce_window_sum", "reduce_prod"})
_SOFTMAX = frozenset({"exp", "div", "reduce_sum", "reduce_max"})
SUMS = frozenset({"add", "add_any", "sub", "concatenate"})
_SHAPES = frozenset(
    {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "convert_element_type", "copy"}
)


def moving_values(program: Program, equations: Sequence[Equation], starts: Sequence[int]) -> set[int]:
    """Return the values whose derivative by the starting values can be other than zero, these included."""
    moving = set(starts)
    for equation in equations:
        if not moving.isdisjoint(differentiable(equation, program)):
            moving.update(output for output in equation.outputs if inexact(program.avals[output]))
    return moving


def values_around(program: Program, equations: Sequence[Equation], starts: Sequence[int], moving: set[int]) -> set[int]:
    """Return the values that an activation reaches from the start without passing a layer or attention."""
    products = _layer_outputs(program)
    around = set(starts)
    for equation in equations:
        passes = products.isdisjoint(equation.outputs) and not _multiplies_data(equation, program)
        if passes and not around.isdisjoint(equation.operands):
            around.update(output for output in equation.outputs if output in moving)
    return around


def _layer_outputs(program: Program) -> set[int]:
    return {output for position in program.layers for output in program.equations[position].outputs}


def equation_sources(
    network: Network, program: Program, loops: Site, equations: Sequence[Equation], moving: set[int]
) -> list[Source]:
    """Return the source that each of some equations belongs to.

    Args:
      network: The network.
      program: The program that holds them.
      loops: The loops it stands in.
      equations: The equations of one block or step, in order of evaluation.
      moving: The values on the way.
    """
    layers = _layer_outputs(program)
    bent = {
        equation.outputs[0]
        for activation in network.activations
        if activation.loops == loops
        for equation in activation.equations
    }
    attention = _attention(equations, program, layers, moving)
    normalization = _normalization(equations, program, layers | bent | attention, moving)
    # Outside of attention, a softmax between layers is a nonlinearity that no table has.
    softmax = not attention and not normalization and any("exp" in _operations(equation) for equation in equations)
    sources: list[Source] = []
    for equation in equations:
        outputs = set(equation.outputs)
        arriving = [atom for atom in set(equation.operands) if atom in moving]
        if not layers.isdisjoint(outputs):
            sources.append("weights")
        elif not bent.isdisjoint(outputs):
            sources.append("activation")
        elif not attention.isdisjoint(outputs):
            sources.append("attention")
        elif not normalization.isdisjoint(outputs):
            sources.append("normalization")
        elif softmax and arriving and not _SOFTMAX.isdisjoint(_operations(equation)):
            sources.append("activation")
        elif len(arriving) > 1 and equation.operation in SUMS:
            sources.append("residual")
        elif any(program.kinds[atom].owners for atom in equation.operands):
            sources.append("weights")
        else:
            sources.append("other")
    return sources


def _operations(equation: Equation) -> Iterator[str]:
    """Yield the primitives of an equation: its own, and those of a call that is kept whole."""
    yield equation.operation
    yield from _inner(equation.params)


def _inner(params: Any) -> Iterator[str]:
    for body in bodies(params):
        for eqn in body.jaxpr.eqns:
            yield eqn.primitive.name
            yield from _inner(eqn.params)


def _multiplies_data(equation: Equation, program: Program) -> bool:
    """Return whether activations are multiplied with activations, as queries are with keys."""
    data = [atom for atom in equation.operands if program.kinds[atom].data and inexact(program.avals[atom])]
    return len(set(data)) > 1 and "dot_general" in _operations(equation) and equation.loop is None


def _attention(equations: Sequence[Equation], program: Program, layers: set[int], moving: set[int]) -> set[int]:
    """Return the results of the products of activations, and of what stands between two of them."""
    products = {
        output
        for equation in equations
        if _multiplies_data(equation, program) and layers.isdisjoint(equation.outputs)
        for output in equation.outputs
    }
    after = set(products)
    for equation in equations:
        if layers.isdisjoint(equation.outputs) and not after.isdisjoint(equation.operands):
            after.update(equation.outputs)
    before = set(products)
    for equation in reversed(equations):
        if not before.isdisjoint(equation.outputs):
            before.update(atom for atom in equation.operands if atom in after)
    return products | (after & before)


def _normalization(equations: Sequence[Equation], program: Program, others: set[int], moving: set[int]) -> set[int]:
    """Return the results of what divides by a root of a statistic: the statistic, its root, and where they apply."""
    statistics: set[int] = set()
    rooted = False
    made: set[int] = set()
    for equation in equations:
        arriving = [atom for atom in equation.operands if atom in moving]
        if not arriving or not others.isdisjoint(equation.outputs):
            continue
        operations = set(_operations(equation))
        largest = max(program.avals[atom].size for atom in arriving)
        smaller = max(program.avals[output].size for output in equation.outputs) < largest
        reduces = equation.operation in _REDUCTIONS or (smaller and not operations.isdisjoint(_REDUCTIONS))
        plain = is_elementwise(equation) or equation.operation in _SHAPES or equation.operation == "stop_gradient"
        if reduces or (plain and all(atom in statistics for atom in arriving)):
            statistics.update(equation.outputs)
            made.update(equation.outputs)
            rooted = rooted or not operations.isdisjoint(_ROOTS)
        elif plain and any(atom in statistics for atom in arriving):
            made.update(equation.outputs)  # where a statistic is applied
    if not rooted:
        return set()
    # What is squared before it is summed belongs to the statistic.
    for equation in reversed(equations):
        readers = [other for other in equations if not set(equation.outputs).isdisjoint(other.operands)]
        if (
            readers
            and is_elementwise(equation)
            and others.isdisjoint(equation.outputs)
            and any(atom in moving for atom in equation.operands)
            and all(
                not made.isdisjoint(reader.outputs) and not statistics.isdisjoint(reader.outputs) for reader in readers
            )
        ):
            made.update(equation.outputs)
            statistics.update(equation.outputs)
    return made
