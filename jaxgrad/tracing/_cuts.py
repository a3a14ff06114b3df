"""Cuts: the activations that every path from the network's input to its output passes through.

Seen from one input of the network, walk the equations of the trunk in order and keep the set of live activations.
Where exactly one is live, it is a cut: all that came before are its ancestors, and all that come after its
descendants, whatever order the equations were written in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgrad.tracing._interpret import Constant, Equation, Loop, Program, Site
from jaxgrad.tracing._layers import bends, is_elementwise


class Cut(NamedTuple):
    """A state that every path passes through.

    Attributes:
      sites: Addresses of the values that make the state: one activation, or the leaves of a loop's carry.
      step: Position along a loop's stacked values; ``None`` outside of a loop.
    """

    sites: tuple[Site, ...]
    step: int | None = None


class Span(NamedTuple):
    """What lies between two neighbouring cuts.

    Attributes:
      start: The cut at its beginning.
      end: The cut at its end.
      kind: ``"depth"``, or ``"time"`` for a step of a loop.
      equations: Positions in the program of the equations that lead from one to the other (of the loop, for a step).
      chain: Number of the chain of spans it belongs to.
    """

    start: Cut
    end: Cut
    kind: str
    equations: tuple[int, ...]
    chain: int


_FLAT = frozenset({"stop_gradient", "sign", "floor", "ceil", "round", "argmax", "argmin", "nextafter", "is_finite"})
_KEEPS_UNITS = frozenset({"squeeze", "transpose", "convert_element_type", "copy", "expand_dims", "reduce_precision"})
_JOINS = frozenset({"add", "add_any", "concatenate"})


def inexact(aval: Any) -> bool:
    """Return whether values of this type have derivatives."""
    return bool(jnp.issubdtype(aval.dtype, jnp.inexact))


def _operands(equation: Equation, program: Program) -> tuple[int, ...]:
    """Return the operands whose derivative can reach the results."""
    if equation.operation in _FLAT:
        return ()
    return tuple(atom for atom in equation.operands if inexact(program.avals[atom]))


def gradient_path(program: Program, outputs: Sequence[int | Constant], loops: Site = ()) -> frozenset[Site]:
    """Return the activations whose derivative can reach the given outputs, those inside loops included."""
    reached = {atom for atom in outputs if isinstance(atom, int) and inexact(program.avals[atom])}
    inside: set[Site] = set()
    for equation in reversed(program.equations):
        hit = [output for output in equation.outputs if output in reached and inexact(program.avals[output])]
        if not hit:
            continue
        operands = _operands(equation, program)
        if equation.loop is not None:
            inside |= _loop_path(equation.loop, [o in reached for o in equation.outputs], (*loops, equation.outputs[0]))
        reached.update(operands)
    moving = _moving(program)
    return frozenset(inside | {(*loops, number) for number in reached if number in moving})


def _moving(program: Program) -> set[int]:
    """Return the values computed from data with a derivative: those behind a ``stop_gradient`` are constants.

    What is computed from integers alone (an embedding, a cast image) moves too, as an input of its own.
    """
    moving = {
        number
        for number in program.inputs
        if program.kinds[number].data and inexact(program.avals[number])
    }
    for equation in program.equations:
        operands = _operands(equation, program)
        data = [atom for atom in equation.operands if program.kinds[atom].data]
        entry = bool(data) and not any(inexact(program.avals[atom]) for atom in data)
        if entry or not moving.isdisjoint(operands):
            moving.update(output for output in equation.outputs if inexact(program.avals[output]))
    return moving


def _loop_path(loop: Loop, used: list[bool], loops: Site) -> frozenset[Site]:
    """Return the path through a loop's body, given which of its results are on the path."""
    carried, path = used[: loop.num_carry], frozenset()
    for _ in range(loop.num_carry + 1):
        wanted = [
            atom
            for atom, is_used in zip(loop.body.outputs, carried + used[loop.num_carry :], strict=True)
            if is_used
        ]
        path = gradient_path(loop.body, wanted, loops)
        entering = loop.body.inputs[loop.num_consts : loop.num_consts + loop.num_carry]
        after = [was or (*loops, number) in path for was, number in zip(carried, entering, strict=True)]
        if after == carried:
            break
        carried = after
    return path


def spans(program: Program, path: frozenset[Site], *, by_reach: bool = False) -> list[Span]:
    """Return the spans between neighbouring cuts, chain after chain.

    The input that gives most blocks comes first and is followed to the network's output; any other input is followed
    until it joins, as a constant to those before it.

    Args:
      program: The program.
      path: The activations on the path to the loss.
      by_reach: Whether the input that reaches most layers comes first instead: where the data are among the values
        closed over, they are told from mere constants so.
    """
    covered: set[int] = set()
    pending = [(source, _reach(program, path, source)) for source in _sources(program, path)]
    result: list[Span] = []
    chain = 0
    while pending:
        trunks = [(source, reach, _trunk(program, path, source, reach, covered)) for source, reach in pending]
        source, reach, cuts = max(trunks, key=lambda trunk: (by_reach * _layers_in(program, trunk[1]), len(trunk[2])))
        if len(cuts) < 2:
            break
        found = list(_emit(program, path, source, reach, covered, cuts, chain))
        result += found
        chain = found[-1].chain + 1
        covered |= reach
        pending = [(other, others) for other, others, _ in trunks if other != source]
    return result


def _layers_in(program: Program, reach: set[int]) -> int:
    """Return how many layers act on the given activations."""
    return sum(not reach.isdisjoint(program.equations[position].operands) for position in program.layers)


def _sources(program: Program, path: frozenset[Site]) -> list[int]:
    """Return the activations on the path that come from no other: float inputs, looked-up embeddings, casts."""
    sources = [number for number in program.inputs if (number,) in path]
    for equation in program.equations:
        if not any((atom,) in path for atom in _operands(equation, program)):
            sources += [output for output in equation.outputs if (output,) in path]
    return sources


def _reach(program: Program, path: frozenset[Site], source: int) -> set[int]:
    """Return the activations on the path that depend on the source, itself included."""
    reach = {source}
    for equation in program.equations:
        if not reach.isdisjoint(_operands(equation, program)):
            reach.update(output for output in equation.outputs if (output,) in path)
    return reach


def _trunk_equations(
    program: Program, path: frozenset[Site], source: int, reach: set[int], covered: set[int]
) -> list[int]:
    """Return the positions of the equations between a source and the network's output, in order.

    These are the ancestors of the layers, and what follows the last ones and keeps their units: biases, scales,
    residual sums and elementwise activations, but not a loss.
    """
    own = [
        position
        for position, equation in enumerate(program.equations)
        if not reach.isdisjoint(_operands(equation, program))
        and any((output,) in path and output not in covered for output in equation.outputs)
    ]
    layers = set(program.layers)
    wanted: set[int] = set()
    trunk: set[int] = set()
    for position in reversed(own):
        equation = program.equations[position]
        if position in layers or not wanted.isdisjoint(equation.outputs):
            trunk.add(position)
            wanted.update(atom for atom in _operands(equation, program) if atom in reach)
    if trunk:
        trunk.update(_until_joined(program, reach, own, trunk, wanted))
        wanted.update(atom for position in trunk for atom in _operands(program.equations[position], program))
        trunk.update(_output_activation(program, reach, own, trunk))
        wanted.update(atom for position in trunk for atom in _operands(program.equations[position], program))
    made = {output for position in trunk for output in program.equations[position].outputs}
    readers: dict[int, int] = {}
    for position in own:
        for atom in {*_operands(program.equations[position], program)}:
            readers[atom] = readers.get(atom, 0) + 1
    tails = {output for output in made if output in reach and output not in wanted}
    for position in own:
        equation = program.equations[position]
        operands = {atom for atom in _operands(equation, program) if atom in reach}
        if position in trunk or tails.isdisjoint(operands) or not operands <= made | {source}:
            continue
        if all(readers[atom] == 1 for atom in operands & tails) and _keeps_units(program, equation, operands):
            trunk.add(position)
            made.update(equation.outputs)
            tails = (tails - operands) | set(equation.outputs)
    return sorted(trunk)


def _until_joined(
    program: Program, reach: set[int], own: list[int], trunk: set[int], wanted: set[int]
) -> set[int]:
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
        moving = [atom for atom in _operands(equation, program) if atom in reach]
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
        for atom in set(_operands(program.equations[position], program)) & reach:
            uses[atom] = uses.get(atom, 0) + 1
    live: set[int] = set(uses) - {output for p in positions for output in program.equations[p].outputs}
    found = []
    for position in positions:
        equation = program.equations[position]
        for atom in set(_operands(equation, program)) & reach:
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
    return is_elementwise(equation) and bends(equation) and equation.operation != "select_n"


def _parameter_or_scalar(program: Program, atom: int | Constant) -> bool:
    if isinstance(atom, Constant):
        return np.ndim(atom.value) == 0
    kind = program.kinds[atom]
    return not kind.data and (bool(kind.owners) or program.avals[atom].ndim == 0)


def _trunk(
    program: Program, path: frozenset[Site], source: int, reach: set[int], covered: set[int]
) -> list[tuple[int, tuple[int, ...]]]:
    """Return the cuts kept on the way from a source: position of the equation that makes it, and its values."""
    trunk = _trunk_equations(program, path, source, reach, covered)
    layers = [position for position in program.layers if position in set(trunk)]
    if not layers:
        return []
    uses: dict[int, int] = {}
    for position in trunk:
        for atom in set(_operands(program.equations[position], program)) & reach:
            uses[atom] = uses.get(atom, 0) + 1
    finals: list[int] = []
    live = {source}
    alone: list[tuple[int, tuple[int, ...]]] = [(-1, (source,))]
    for position in trunk:
        equation = program.equations[position]
        for atom in set(_operands(equation, program)) & reach:
            uses[atom] -= 1
            if uses[atom] == 0:
                live.discard(atom)
        for output in equation.outputs:
            if output not in reach:
                continue
            if uses.get(output):
                live.add(output)
            elif position >= layers[-1] or position in layers or not _feeds(program, equation, uses):
                finals.append(output)
        if len(live) == 1 and not finals:
            alone.append((position, tuple(live)))
    looked_up = any(source in program.equations[position].outputs for position in program.layers)
    kept = alone[:1] if looked_up else []  # an embedding's cut is what it looks up
    for layer in layers:
        latest = [cut for cut in alone if cut[0] < layer][-1]
        if latest not in kept and not (looked_up and latest[0] < layers[0]):
            kept.append(latest)
    return [*kept, (trunk[-1], tuple(finals))]


def _feeds(program: Program, equation: Equation, uses: dict[int, int]) -> bool:
    """Return whether another result of the equation is used further on in the trunk."""
    return any(uses.get(output) for output in equation.outputs)


def _emit(
    program: Program,
    path: frozenset[Site],
    source: int,
    reach: set[int],
    covered: set[int],
    cuts: list[tuple[int, tuple[int, ...]]],
    chain: int,
) -> Iterator[Span]:
    """Yield the spans between the cuts of one source; a loop over time becomes one span a step."""
    trunk = _trunk_equations(program, path, source, reach, covered)
    layers = set(program.layers)
    begin = Cut(tuple((number,) for number in cuts[0][1]))
    for (before, _), (after, numbers) in zip(cuts, cuts[1:], strict=False):
        inside = tuple(position for position in trunk if before < position <= after)
        end = Cut(tuple((number,) for number in numbers))
        loops = [program.equations[position] for position in inside if position in layers]
        states = [_carry_state(program, path, equation) for equation in loops]
        if not states or not all(states):
            yield Span(begin, end, "depth", inside, chain)
            begin = end
            continue
        for equation, state in zip(loops, states, strict=True):
            assert equation.loop is not None
            entering = tuple((equation.inputs[equation.loop.num_consts + leaf],) for leaf in state)
            if entering != begin.sites:
                chain += 1
            position = program.equations.index(equation)
            steps = list(_steps(equation, state))
            yield from (Span(start, stop, "time", (position,), chain) for start, stop in zip(steps, steps[1:], strict=False))
            begin = steps[-1]
        if not set(end.sites) <= set(begin.sites):
            begin = end
            chain += 1


def _carry_state(program: Program, path: frozenset[Site], equation: Equation) -> tuple[int, ...]:
    """Return which leaves of a loop's carry make a state that a layer acts on; empty where none does."""
    loop = equation.loop
    if loop is None:
        return ()
    number = equation.outputs[0]
    entering = loop.body.inputs[loop.num_consts : loop.num_consts + loop.num_carry]
    state = tuple(leaf for leaf, entry in enumerate(entering) if (number, entry) in path)
    inner = frozenset(site[1:] for site in path if len(site) > 1 and site[0] == number)
    for leaf in state:
        reach = _reach(loop.body, inner, entering[leaf])
        if any(not reach.isdisjoint(loop.body.equations[position].operands) for position in loop.body.layers):
            return state
    return ()


def _steps(equation: Equation, state: tuple[int, ...]) -> Iterator[Cut]:
    """Yield the state of a loop before each step, in order of evaluation, and after the last."""
    loop = equation.loop
    assert loop is not None
    sites = tuple((equation.outputs[0], loop.body.inputs[loop.num_consts + leaf]) for leaf in state)
    for step in range(loop.length):
        yield Cut(sites, loop.length - 1 - step if loop.reverse else step)
    yield Cut(tuple((equation.outputs[leaf],) for leaf in state))
