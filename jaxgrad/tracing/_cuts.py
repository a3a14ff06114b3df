"""Cuts: the activations that every path from the network's input to its output passes through.

Seen from one input of the network, walk the equations of the trunk in order and keep the set of live activations.
Where exactly one is live, it is a cut: all that came before are its ancestors, and all that come after its
descendants, whatever order the equations were written in.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxgrad.tracing._interpret import Constant, Equation, Loop, Program, Site
from jaxgrad.tracing._trunk import differentiable, inexact, trunk_equations


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


def gradient_path(program: Program, outputs: Sequence[int | Constant], loops: Site = ()) -> frozenset[Site]:
    """Return the activations whose derivative can reach the given outputs, those inside loops included."""
    reached = {atom for atom in outputs if isinstance(atom, int) and inexact(program.avals[atom])}
    inside: set[Site] = set()
    for equation in reversed(program.equations):
        hit = [output for output in equation.outputs if output in reached and inexact(program.avals[output])]
        if not hit:
            continue
        operands = differentiable(equation, program)
        if equation.loop is not None:
            inside |= _loop_path(equation.loop, [o in reached for o in equation.outputs], (*loops, equation.outputs[0]))
        reached.update(operands)
    moving = _moving(program)
    return frozenset(inside | {(*loops, number) for number in reached if number in moving})


def _moving(program: Program) -> set[int]:
    """Return the values computed from data with a derivative: those behind a ``stop_gradient`` are constants.

    What is computed from integers alone (an embedding, a cast image) moves too, as an input of its own.
    """
    moving = {number for number in program.inputs if program.kinds[number].data and inexact(program.avals[number])}
    for equation in program.equations:
        operands = differentiable(equation, program)
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
            atom for atom, is_used in zip(loop.body.outputs, carried + used[loop.num_carry :], strict=True) if is_used
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
        if not any((atom,) in path for atom in differentiable(equation, program)):
            sources += [output for output in equation.outputs if (output,) in path]
    return sources


def _reach(program: Program, path: frozenset[Site], source: int) -> set[int]:
    """Return the activations on the path that depend on the source, itself included."""
    reach = {source}
    for equation in program.equations:
        if not reach.isdisjoint(differentiable(equation, program)):
            reach.update(output for output in equation.outputs if (output,) in path)
    return reach


def _trunk(
    program: Program, path: frozenset[Site], source: int, reach: set[int], covered: set[int]
) -> list[tuple[int, tuple[int, ...]]]:
    """Return the cuts kept on the way from a source: position of the equation that makes it, and its values."""
    trunk = trunk_equations(program, path, source, reach, covered)
    layers = [position for position in program.layers if position in set(trunk)]
    if not layers:
        return []
    uses: dict[int, int] = {}
    for position in trunk:
        for atom in set(differentiable(program.equations[position], program)) & reach:
            uses[atom] = uses.get(atom, 0) + 1
    finals: list[int] = []
    live = {source}
    alone: list[tuple[int, tuple[int, ...]]] = [(-1, (source,))]
    for position in trunk:
        equation = program.equations[position]
        for atom in set(differentiable(equation, program)) & reach:
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
    trunk = trunk_equations(program, path, source, reach, covered)
    layers = set(program.layers)
    begin = Cut(tuple((number,) for number in cuts[0][1]))
    for (before, _), (after, numbers) in itertools.pairwise(cuts):
        inside = tuple(position for position in trunk if before < position <= after)
        end = Cut(tuple((number,) for number in numbers))
        loops = [program.equations[position] for position in inside if position in layers]
        states = [_carry_state(program, path, equation) for equation in loops]
        if not states or not all(states):
            yield Span(begin, end, "depth", inside, chain)
            begin = end
            continue
        for equation, state in zip(loops, states, strict=True):
            first = equation.loop.num_consts if equation.loop is not None else 0
            entering = tuple((equation.inputs[first + leaf],) for leaf in state)
            if entering != begin.sites:
                chain += 1
            position = program.equations.index(equation)
            steps = list(_steps(equation, state))
            yield from (Span(start, stop, "time", (position,), chain) for start, stop in itertools.pairwise(steps))
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
    if loop is None:
        return
    sites = tuple((equation.outputs[0], loop.body.inputs[loop.num_consts + leaf]) for leaf in state)
    for step in range(loop.length):
        yield Cut(sites, loop.length - 1 - step if loop.reverse else step)
    yield Cut(tuple((equation.outputs[leaf],) for leaf in state))
