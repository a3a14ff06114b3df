"""The trunk: the equations between an input and the network's output, without the loss that follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgrad.tracing._interpret import Constant, Equation, Program, Site
from jaxgrad.tracing._layers import bends, is_elementwise

_FLAT = frozenset({"stop_gradient", "sign", "floor", "ceil", "round", "argmax", "argmin", "nextafter", "is_finite"})
_KEEPS_UNITS = frozenset({"squeeze", "transpose", "convert_element_type", "copy", "expand_dims", "reduce_precision"})
_JOINS = frozenset({"add", "add_any", "concatenate"})


def inexact(aval: Any) -> bool:
    """Return whether values of this type have derivatives."""
    return bool(jnp.issubdtype(aval.dtype, jnp.inexact))


def differentiable(equation: Equation, program: Program) -> tuple[int, ...]:
    """Return the operands whose derivative can reach the results."""
    if equation.operation in _FLAT:
        return ()
    return tuple(atom for atom in equation.operands if inexact(program.avals[atom]))


def trunk_equations(
    program: Program, path: frozenset[Site], source: int, reach: set[int], covered: set[int]
) -> list[int]:
    """Return the positions of the equations between a source and the network's output, in order.

    These are the ancestors of the layers, and what follows the last ones and keeps their units: biases, scales,
    residual sums and elementwise activations, but not a loss.
    """
    own = [
        position
        for position, equation in enumerate(program.equations)
        if not reach.isdisjoint(differentiable(equation, program))
        and any((output,) in path and output not in covered for output in equation.outputs)
    ]
    layers = set(program.layers)
    wanted: set[int] = set()
    trunk: set[int] = set()
    for position in reversed(own):
        equation = program.equations[position]
        if position in layers or not wanted.isdisjoint(equation.outputs):
            trunk.add(position)
            wanted.update(atom for atom in differentiable(equation, program) if atom in reach)
    if trunk:
        trunk.update(_until_joined(program, reach, own, trunk, wanted))
        wanted.update(atom for position in trunk for atom in differentiable(program.equations[position], program))
        trunk.update(_output_activation(program, reach, own, trunk))
        wanted.update(atom for position in trunk for atom in differentiable(program.equations[position], program))
    made = {output for position in trunk for output in program.equations[position].outputs}
    readers: dict[int, int] = {}
    for position in own:
        for atom in {*differentiable(program.equations[position], program)}:
            readers[atom] = readers.get(atom, 0) + 1
    tails = {output for output in made if output in reach and output not in wanted}
    for position in own:
        equation = program.equations[position]
        operands = {atom for atom in differentiable(equation, program) if atom in reach}
        if position in trunk or tails.isdisjoint(operands) or not operands <= made | {source}:
            continue
        if all(readers[atom] == 1 for atom in operands & tails) and _keeps_units(program, equation, operands):
            trunk.add(position)
            made.update(equation.outputs)
            tails = (tails - operands) | set(equation.outputs)
    return sorted(trunk)


def _until_joined(program: Program, reach: set[int], own: list[int], trunk: set[int], wanted: set[int]) -> set[int]:
    """Return what follows the last layer until what goes around it has joined: a residual sum, and a norm before it.

    Where labels, or an input that is its own target, come in first, that is the loss, and nothing follows.
    """
    last = max(position for position in trunk if position in set(program.layers))
    alone = [position for position, _ in _alone(program, reach, own) if position >= last]
    extra = {position for position in own if position not in trunk and alone and position <= alone[0]}
    fresh = {output for position in trunk for output in program.equations[position].outputs} - wanted
    for position in sorted(extra):
        equation = program.equations[position]
        if any(program.kinds[atom].data and atom not in reach for atom in equation.operands):
            return set()
        if not any(program.avals[output].shape for output in equation.outputs):
            return set()
        moving = [atom for atom in differentiable(equation, program) if atom in reach]
        late = [atom in fresh for atom in moving]
        if any(late):
            if not all(late) and equation.operation not in _JOINS:
                return set()
            fresh.update(equation.outputs)
    return extra


def _output_activation(program: Program, reach: set[int], own: list[int], trunk: set[int]) -> set[int]:
    """Return the elementwise function that the network ends with, where it is written in several operations."""
    last = max(trunk)
    derived = set(reach)  # with what is computed from these without a derivative, such as the sign in a leaky ReLU
    for equation in program.equations:
        data = [atom for atom in equation.operands if program.kinds[atom].data]
        if data and all(atom in derived for atom in data):
            derived.update(equation.outputs)
    ends = [position for position, _ in _alone(program, reach, own) if position > last]
    for end in ends[:3]:  # a bias and a scale may come before
        extra = [position for position in own if last < position <= end]
        equations = [program.equations[position] for position in extra]
        plain = all(
            is_elementwise(equation)
            and all(atom in derived or not program.kinds[atom].data for atom in equation.operands)
            and len(program.avals[equation.outputs[0]].shape) > 0
            for equation in equations
        )
        if not plain:
            return set()
        if any(bends(equation) for equation in equations):
            return set(extra)
    return set()


def _alone(program: Program, reach: set[int], positions: Sequence[int]) -> list[tuple[int, int]]:
    """Return after which equations exactly one activation is live, and which."""
    uses: dict[int, int] = {}
    for position in positions:
        for atom in set(differentiable(program.equations[position], program)) & reach:
            uses[atom] = uses.get(atom, 0) + 1
    live: set[int] = set(uses) - {output for p in positions for output in program.equations[p].outputs}
    found = []
    for position in positions:
        equation = program.equations[position]
        for atom in set(differentiable(equation, program)) & reach:
            uses[atom] -= 1
            if uses[atom] == 0:
                live.discard(atom)
        live.update(output for output in equation.outputs if output in reach)
        if len(live) == 1:
            found.append((position, *live))
    return found


def _keeps_units(program: Program, equation: Equation, operands: set[int]) -> bool:
    """Return whether the equation still belongs to the network, rather than to the loss that follows it."""
    others = [atom for atom in equation.inputs if isinstance(atom, Constant) or atom not in operands]
    if equation.operation in _KEEPS_UNITS:
        return True
    if len(operands) > 1:
        return equation.operation in _JOINS
    if equation.operation in {"add", "sub", "mul", "div"}:
        return all(_parameter_or_scalar(program, atom) for atom in others)
    if equation.operation in {"max", "min", "clamp"}:
        return all(_parameter_or_scalar(program, atom) for atom in others)
    if equation.operation.startswith(("custom_jvp_call", "custom_vjp_call")):
        shapes = {program.avals[number].shape for number in (*operands, *equation.outputs)}
        return len(shapes) == 1 and not others
    return is_elementwise(equation) and bends(equation) and equation.operation != "select_n"


def _parameter_or_scalar(program: Program, atom: int | Constant) -> bool:
    if isinstance(atom, Constant):
        return np.ndim(atom.value) == 0
    kind = program.kinds[atom]
    return not kind.data and (bool(kind.owners) or program.avals[atom].ndim == 0)
