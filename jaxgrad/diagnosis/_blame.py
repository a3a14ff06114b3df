"""The backward signal's gain taken apart: what each part of each block does to the vector that really passes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.diagnosis._measure import norm
from jaxgrad.diagnosis._report import Source
from jaxgrad.diagnosis._sources import SUMS, equation_sources, moving_values, values_around
from jaxgrad.spectra._blocks import block_values, fingerprint, operand_sites
from jaxgrad.tracing import Cut, Network
from jaxgrad.tracing._cuts import Span
from jaxgrad.tracing._interpret import Constant, Equation, Program, Site, evaluate, replay

Gains = dict[Source, Any]

_SMALLEST = 1e-25  # a norm below this, or above its inverse, is followed from the block behind, scaled to 1


def blame(network: Network) -> Callable[[list[Any], Any, jax.Array], list[dict[Source, float]]]:
    r"""Return the function that takes the gain of every block apart, compiled on its first call.

    The gradient v of the loss at a block's end is pushed back through the block equation by equation. After each one
    stands a vector :math:`v_k` of everything on its way to the block's beginning, and

    .. math::
      \log \frac{\lVert J^T v \rVert}{\lVert v \rVert}
      = \sum_k \log \frac{\lVert v_k \rVert}{\lVert v_{k-1} \rVert}

    of which each term belongs to the source of its equation. Where a path leads around the layers, what comes back
    through them is counted where it joins that path again, as the residual branch's (or attention's) share.

    Args:
      network: A traced network whose first output is the loss.

    Returns:
      A function of the program's inputs, a seed that the loss is multiplied by, and a key. For each block it gives
      log10 of the factor that each source multiplies the signal's norm by. Where the loss's gradient is of no use (it
      is zero or has left the range of the type), the vector of the block behind is followed, scaled to norm 1; without
      one, a random one.
    """
    spans = network.spans
    groups = [
        tuple(group)
        for _, group in itertools.groupby(
            range(len(spans)), key=lambda i: (spans[i].equations, spans[i].kind == "depth" and i)
        )
    ]
    prepare = jax.jit(lambda inputs, seed: _values_and_signals(network, inputs, seed))
    pushes: dict[Any, Callable[..., Any]] = {}  # by block, and by what it comes to: equal blocks share one program

    def run(inputs: list[Any], seed: Any, key: jax.Array) -> list[dict[Source, float]]:
        values, signals, sizes = prepare(inputs, seed)
        sizes = jax.device_get(sizes)
        results: list[Any] = [None] * len(spans)
        behind: tuple[Cut, tuple[Any, ...], Any] | None = None
        for group in reversed(groups):
            members = [spans[index] for index in group]
            last = members[-1].end
            operands = _operands(network, members, values, signals)
            state = tuple(operands.end)
            if not _is_usable(float(sizes[group[-1]])):
                follows = behind is not None and behind[0] == last and 0 < float(behind[2]) < np.inf
                state = behind[1] if behind is not None and follows else _random(network, last, key)
                state = _unit(state)
            if group not in pushes:
                push = functools.partial(_push_steps if members[0].kind == "time" else _push_block, network, members)
                program = fingerprint(jax.make_jaxpr(push)(operands, state), differentiated=False)
                pushes[group] = pushes.setdefault(program, jax.jit(push))
            gains, begin, size = pushes[group](operands, state)
            for place, index in enumerate(group):
                results[index] = gains if members[0].kind == "depth" else (gains, place)
            behind = members[0].start, begin, size
        return [_plain(found) for found in jax.device_get(results)]

    return run


def _plain(found: Any) -> dict[Source, float]:
    gains, step = found if isinstance(found, tuple) else (found, None)
    return {source: float(gain if step is None else gain[step]) for source, gain in gains.items()}


class _Operands(NamedTuple):
    """What a block is pushed back with: the values it reads, in order, and the loss's gradient at both ends."""

    values: list[Any]
    begin: list[Any]
    end: list[Any]


def _operands(
    network: Network, members: Sequence[Span], values: Mapping[Site, Any], signals: Mapping[Site, Any]
) -> _Operands:
    first, last = members[0], members[-1]
    return _Operands(
        [values[site] for site in operand_sites(network, first)],
        [signals[site] for site in first.start.sites],
        [signals[site] if last.end.step is None else signals[site][last.end.step] for site in last.end.sites],
    )


def _values_and_signals(
    network: Network, inputs: list[Any], seed: Any
) -> tuple[dict[Site, Any], dict[Site, Any], list[Any]]:
    """Return what the blocks read, the loss's gradient at every cut, and its norm at the end of every block."""
    sites = list(dict.fromkeys(site for cut in network.cuts for site in cut.sites))
    taps = {site: jnp.zeros(network.stacked_shape(site), network.aval(site).dtype) for site in sites}
    loss, pull = jax.vjp(lambda taps: evaluate(network.program, inputs, taps=taps)[0][0], taps)
    (signals,) = pull(jnp.asarray(seed, loss.dtype))
    ends = [span.end for span in network.spans]
    steps = {site: norm(signals[site], stacked=True) for site in sites if len(site) > 1}
    sizes = [
        _whole(
            [
                steps[site][cut.step] if len(site) > 1 and cut.step is not None else norm(signals[site])
                for site in cut.sites
            ]
        )
        for cut in ends
    ]
    return block_values(network, inputs, network.spans), signals, sizes


def _random(network: Network, cut: Cut, key: jax.Array) -> tuple[Any, ...]:
    avals = [network.aval(site) for site in cut.sites]
    keys = jax.random.split(key, len(avals))
    return tuple(jax.random.normal(one, aval.shape, aval.dtype) for one, aval in zip(keys, avals, strict=True))


def _followed(signal: Sequence[Any], behind: Sequence[Any]) -> tuple[Any, ...]:
    """Return the loss's gradient where it can be followed, else the vector of the step behind at norm 1."""
    return jax.lax.cond(_is_usable(_norm(signal)), lambda: tuple(signal), lambda: _unit(behind))


def _unit(state: Sequence[Any]) -> tuple[Any, ...]:
    size = _norm(state)
    safe = jnp.where(size > 0, size, jnp.ones_like(size))
    return tuple((leaf.astype(size.dtype) / safe).astype(leaf.dtype) for leaf in state)


def _norm(state: Sequence[Any]) -> Any:
    return _whole([norm(leaf) for leaf in state])


def _whole(sizes: Sequence[Any]) -> Any:
    """Return the norm of a state from those of its leaves."""
    wide = jnp.result_type(*sizes)
    return sizes[0] if len(sizes) == 1 else norm(jnp.stack([size.astype(wide) for size in sizes]))


def _is_usable(size: Any) -> Any:
    return (size > _SMALLEST) & (size < 1 / _SMALLEST)


def _push_block(
    network: Network, members: Sequence[Span], operands: _Operands, cotangents: Sequence[Any]
) -> tuple[Gains, tuple[Any, ...], Any]:
    """Push the signal through one block in depth; return the gains, what arrives, and its norm."""
    (span,) = members
    equations = [network.program.equations[position] for position in span.equations]
    values = dict(zip(operand_sites(network, span), operands.values, strict=True))
    flat = {site[0]: value for site, value in values.items() if len(site) == 1}
    starts, ends = ([site[0] for site in cut.sites] for cut in (span.start, span.end))
    known = flat | replay(equations, {start: flat[start] for start in starts}, flat)
    gains, begin = push_back(network, network.program, (), equations, known, starts, ends, cotangents)
    if _leaks(network, span):
        usable = _is_usable(_norm(operands.end))
        gains["other"] = gains.get("other", jnp.zeros(())) + _joining(operands.begin, begin, usable)
    return gains, begin, _norm(begin)


def _leaks(network: Network, span: Span) -> bool:
    """Return whether something of a block reaches the loss past its end, as the divergence of a code does."""
    equations, inside = network.program.equations, set(span.equations)
    made = {site[0] for site in span.start.sites} | {o for place in inside for o in equations[place].outputs}
    made -= {site[0] for site in span.end.sites}
    path = {site[0] for site in network.path if len(site) == 1}
    return any(
        not (made.isdisjoint(equation.operands) or path.isdisjoint(equation.outputs))
        for place, equation in enumerate(equations)
        if place not in inside
    )


def _joining(signal: Sequence[Any], begin: Sequence[Any], usable: Any) -> Any:
    """Return log10 of what the loss sends in past the end of a block adds to what came back through it."""
    followed, arrived = _norm(signal), _norm(begin)
    joined = usable & _is_usable(followed) & (arrived > 0)
    return jnp.log10(jnp.where(joined, followed / jnp.where(joined, arrived, 1), 1))


def _push_steps(
    network: Network, members: Sequence[Span], operands: _Operands, cotangents: Sequence[Any]
) -> tuple[Gains, tuple[Any, ...], Any]:
    """Push the signal back through the steps of a loop, from the last evaluated to the first."""
    equation = network.program.equations[members[0].equations[0]]
    loop, number = equation.loop, equation.outputs[0]
    if loop is None:
        raise ValueError(f"{equation.operation} is no loop")
    body = loop.body
    values = dict(zip(operand_sites(network, members[0]), operands.values, strict=True))
    given = [atom.value if isinstance(atom, Constant) else values[(atom,)] for atom in equation.inputs]
    consts, slices = given[: loop.num_consts], given[loop.num_consts + loop.num_carry :]
    entering = body.inputs[loop.num_consts : loop.num_consts + loop.num_carry]
    starts = [site[-1] for site in members[0].start.sites]
    leaves = [entering.index(start) for start in starts]
    ends = [_number(body.outputs[leaf]) for leaf in leaves]
    steps = jnp.asarray([span.start.step for span in members])
    at_start = [signal[steps] for signal in operands.begin]
    at_end = [jnp.concatenate([signal[1:], last[None]]) for signal, last in zip(at_start, operands.end, strict=True)]

    def step(behind: tuple[Any, ...], now: tuple[Any, Any, Any]) -> tuple[Any, Gains]:
        index, begin_signal, end_signal = now
        carried = [values[(number, entry)][index] for entry in entering]
        inputs = [*consts, *carried, *(value[index] for value in slices), *loop.closed_over]
        known = replay(body.equations, dict(zip(body.inputs, inputs, strict=True)), {})
        cotangents = _followed(end_signal, behind)
        gains, begin = push_back(network, body, (number,), body.equations, known, starts, ends, cotangents)
        # What the loss sends in at this very step joins what came back through it.
        joining = _joining(begin_signal, begin, _is_usable(_norm(end_signal)))
        gains["other"] = gains.get("other", jnp.zeros_like(joining)) + joining
        return begin, gains

    begin, stacked = jax.lax.scan(step, tuple(cotangents), (steps, at_start, at_end), reverse=True)
    return stacked, begin, _norm(begin)


def _number(atom: int | Constant) -> int:
    return -1 if isinstance(atom, Constant) else atom


def push_back(
    network: Network,
    program: Program,
    loops: Site,
    equations: Sequence[Equation],
    values: Mapping[int, Any],
    starts: Sequence[int],
    ends: Sequence[int],
    cotangents: Sequence[Any],
) -> tuple[Gains, tuple[Any, ...]]:
    """Push cotangents back through some equations, and share the change of their norm out among the sources.

    Args:
      network: The network.
      program: The program that holds the equations: the network's, or a loop's body.
      loops: The loops it stands in.
      equations: The equations, in order of evaluation.
      values: What they read, by number.
      starts: The values they begin with.
      ends: The values they end with.
      cotangents: The cotangents of these.

    Returns:
      log10 of the factor of each source, which add up to that of the whole; and the cotangents at the beginning.
    """
    moving = moving_values(program, equations, starts)
    around = values_around(program, equations, starts, moving)
    sources = equation_sources(network, program, loops, equations, moving)
    joined: Source = "attention" if "attention" in sources else "residual"
    signal = _Signal(cotangents)
    for end, cotangent in zip(ends, cotangents, strict=True):
        if end in moving:
            signal.add(end, cotangent, branch=False)
    for equation, source in reversed(list(zip(equations, sources, strict=True))):
        results = [output for output in equation.outputs if output in signal.pending]
        if not results:
            continue
        for result in results:
            signal.join(result, joined)
        branch = all(signal.on_branch(result) for result in results)
        if not branch:
            signal.begin(source)
        received = [signal.take(result) for result in results]
        operands = list(dict.fromkeys(atom for atom in equation.operands if atom in moving))
        forks = (
            equation.operation in SUMS and any(a in around for a in operands) and any(a not in around for a in operands)
        )
        for atom, cotangent in zip(operands, _pulled(equation, operands, results, values, received), strict=True):
            signal.add(atom, cotangent, branch=branch or (forks and atom not in around))
        signal.merge(operands, joined if source == "weights" else source)
    for start in starts:
        signal.join(start, joined)
    signal.begin(None)
    avals = program.avals
    zeros = [jnp.zeros(avals[start].shape, avals[start].dtype) for start in starts]
    return signal.gains, tuple(signal.whole(start, zero) for start, zero in zip(starts, zeros, strict=True))


class _Signal:
    """What is on its way back: cotangents by value, apart by whether they came through a residual branch.

    Attributes:
      pending: Cotangents of each value, those of the main path and those of a branch, not yet added up.
      gains: log10 of the factors so far, by source.
    """

    def __init__(self, cotangents: Sequence[Any]) -> None:
        self.pending: dict[int, tuple[list[Any], list[Any]]] = {}
        self.gains: Gains = {}
        self._source: Source | None = None
        self._log = jnp.log10(_norm(cotangents))

    def begin(self, source: Source | None) -> None:
        """Give what happened since the last call to the source it was begun with, and begin with another."""
        if source == self._source:
            return
        if self._source is not None:
            parts = [cotangent for main, _ in self.pending.values() for cotangent in main]
            log = jnp.log10(_norm(parts)) if parts else jnp.full_like(self._log, -jnp.inf)
            change = jnp.where(jnp.isfinite(self._log), log - self._log, 0)
            self.gains[self._source] = self.gains.get(self._source, jnp.zeros_like(change)) + change
            self._log = log
        self._source = source

    def add(self, number: int, cotangent: Any, *, branch: bool) -> None:
        self.pending.setdefault(number, ([], []))[branch].append(cotangent)

    def on_branch(self, number: int) -> bool:
        return not self.pending[number][0]

    def take(self, number: int) -> Any:
        main, branch = self.pending.pop(number)
        return _sum(main or branch)

    def whole(self, number: int, zero: Any) -> Any:
        return self.take(number) if number in self.pending else zero

    def merge(self, numbers: Sequence[int], source: Source) -> None:
        """Add up what came to a value along different ways of the same kind."""
        for number in numbers:
            main, branch = self.pending[number]
            if len(main) > 1:
                self.begin(source)
                main = [_sum(main)]
            self.pending[number] = main, [_sum(branch)] if branch else branch

    def join(self, number: int, source: Source) -> None:
        """Add what came back through a branch to the main path."""
        main, branch = self.pending.get(number, ([], []))
        if main and branch:
            self.begin(source)
            self.pending[number] = [_sum(main + branch)], []


def _sum(cotangents: Sequence[Any]) -> Any:
    total = cotangents[0]
    for cotangent in cotangents[1:]:
        total = total + cotangent
    return total


def _pulled(
    equation: Equation,
    operands: Sequence[int],
    results: Sequence[int],
    values: Mapping[int, Any],
    cotangents: Sequence[Any],
) -> Sequence[Any]:
    """Return the cotangents of some operands of an equation from those of some of its results."""

    def apply(*chosen: Any) -> list[Any]:
        known = dict(zip(operands, chosen, strict=True))
        full = [
            atom.value if isinstance(atom, Constant) else known[atom] if atom in known else values[atom]
            for atom in equation.inputs
        ]
        made = dict(zip(equation.outputs, equation.apply(*full), strict=True))
        return [made[result] for result in results]

    _, pull = jax.vjp(apply, *(values[atom] for atom in operands))
    return pull(list(cotangents))
