"""A jaxpr as a flat list of equations, and the interpreter that evaluates it with taps.

Calls that hold a layer (``jit``, ``remat``, a ``scan`` over stacked layers) are inlined, so that every layer stands in
one list; calls that hold none are kept whole and evaluated as JAX would. A ``scan`` over time keeps its body as a
program of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

Site = tuple[int, ...]
"""Address of a value: its number in the program, after the numbers of the loops it stands in."""


class Constant(NamedTuple):
    """A literal operand."""

    value: Any


class Owner(NamedTuple):
    """The parameter leaf a weight is made from.

    Attributes:
      leaf: Position of the leaf among the flattened parameters.
      index: Index into the leaf's leading axes, for layers stacked in one leaf.
      name: The leaf's path, with the index.
    """

    leaf: int
    index: tuple[int, ...]
    name: str


class Kind(NamedTuple):
    """What a value is made from.

    Attributes:
      data: Whether it depends on data (a batch, rather than parameters and constants alone).
      owners: The parameters it is made from; kept for weights only, so empty where ``data``.
    """

    data: bool = False
    owners: tuple[Owner, ...] = ()


def join(kinds: Iterable[Kind]) -> Kind:
    """Return the kind of a value computed from values of these kinds."""
    kinds = tuple(kinds)
    if any(kind.data for kind in kinds):
        return Kind(data=True)
    return Kind(owners=tuple(dict.fromkeys(owner for kind in kinds for owner in kind.owners)))


class Loop(NamedTuple):
    """A ``scan`` whose body holds layers that every step shares.

    Attributes:
      body: The program of one step: inputs are constants, carry, slices, values closed over; outputs are carry and
        stacked outputs.
      closed_over: The values closed over.
      num_consts: Number of loop-invariant inputs.
      num_carry: Number of carried values.
      length: Number of steps.
      reverse: Whether the steps run from the last slice to the first.
    """

    body: Program
    closed_over: tuple[Any, ...]
    num_consts: int
    num_carry: int
    length: int
    reverse: bool


class Equation(NamedTuple):
    """One operation of a program.

    Attributes:
      operation: Name of the primitive.
      inputs: Numbers of the operands, or constants.
      outputs: Numbers of the results.
      apply: Computes the results from the operands.
      params: The primitive's own parameters.
      source: Where the user's code asked for it.
      scope: Number of the compiled call the equation was inlined from; ``None`` outside of any.
      loop: The loop, where the equation is one that holds layers.
    """

    operation: str
    inputs: tuple[int | Constant, ...]
    outputs: tuple[int, ...]
    apply: Callable[..., Sequence[Any]]
    params: Mapping[str, Any]
    source: Any
    scope: int | None
    loop: Loop | None

    @property
    def operands(self) -> tuple[int, ...]:
        """Numbers of the operands that are not constants."""
        return tuple(atom for atom in self.inputs if isinstance(atom, int))


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A flat list of equations in order of evaluation.

    Attributes:
      inputs: Numbers of the inputs.
      outputs: Numbers of the outputs, or constants.
      hoisted: Values of the last inputs: what compiled functions inside the traced one close over.
      equations: The equations.
      avals: Shape and type of every value, by number.
      kinds: What every value is made from, by number.
      layers: Positions in ``equations`` of those that multiply data by parameters.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int | Constant, ...]
    hoisted: tuple[Any, ...]
    equations: tuple[Equation, ...]
    avals: tuple[Any, ...]
    kinds: tuple[Kind, ...]
    layers: tuple[int, ...]
    _compiled: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)


def evaluate(
    program: Program,
    inputs: Sequence[Any],
    *,
    taps: Mapping[Site, Any] | None = None,
    captures: Iterable[Site] = (),
) -> tuple[list[Any], dict[Site, Any]]:
    """Evaluate a program, with values added at the taps.

    Args:
      program: The program.
      inputs: Its inputs, in order.
      taps: What to add to a value right after it is computed, by site; stacked over the steps inside loops.
      captures: Sites whose values to return, stacked over the steps inside loops.

    Returns:
      The outputs, and the captured values by site. Without taps, the operations are those of the traced function.
    """
    taps = dict(taps or {})
    wanted = set(captures)
    kept: dict[Site, Any] = {}
    values: dict[int, Any] = {}

    def define(number: int, value: Any) -> None:
        values[number] = value + taps[(number,)] if (number,) in taps else value

    for number, value in zip(program.inputs, inputs, strict=True):
        define(number, value)
    for scope, group in itertools.groupby(program.equations, key=lambda equation: equation.scope):
        equations = tuple(group)
        if scope is None:
            _run(equations, values, define, taps, wanted, kept)
        else:
            _run_compiled(program, equations, values, taps, wanted, kept)
    for site in wanted:
        if len(site) == 1:
            kept[site] = values[site[0]]
    return [read(atom, values) for atom in program.outputs], kept


def read(atom: int | Constant, values: Mapping[int, Any]) -> Any:
    """Return the value of an operand."""
    return atom.value if isinstance(atom, Constant) else values[atom]


def _run(
    equations: Sequence[Equation],
    values: dict[int, Any],
    define: Callable[[int, Any], None],
    taps: Mapping[Site, Any],
    wanted: set[Site],
    kept: dict[Site, Any],
) -> None:
    """Evaluate equations one after another."""
    for equation in equations:
        operands = [read(atom, values) for atom in equation.inputs]
        number = equation.outputs[0] if equation.outputs else -1
        inner_taps = {site[1:]: value for site, value in taps.items() if len(site) > 1 and site[0] == number}
        inner_wanted = [site[1:] for site in wanted if len(site) > 1 and site[0] == number]
        if equation.loop is not None and (inner_taps or inner_wanted):
            results, inner = run_loop(equation.loop, operands, inner_taps, inner_wanted)
            kept.update({(number, *site): value for site, value in inner.items()})
        else:
            results = equation.apply(*operands)
        for output, value in zip(equation.outputs, results, strict=True):
            define(output, value)


def scan_parts(params: Mapping[str, Any], operands: int) -> tuple[int, int]:
    """Return how many of a scan's operands are loop-invariant, and how many are carried."""
    if "ft_in" in params:  # since jax 0.12
        consts, carry, _ = params["ft_in"].update(range(operands)).unpack()
        return len(list(consts)), len(list(carry))
    return params["num_consts"], params["num_carry"]


def run_loop(
    loop: Loop, operands: Sequence[Any], taps: Mapping[Site, Any], captures: Sequence[Site]
) -> tuple[list[Any], dict[Site, Any]]:
    """Evaluate a loop with taps and captures inside its body."""
    consts = operands[: loop.num_consts]
    carry = operands[loop.num_consts : loop.num_consts + loop.num_carry]
    slices = operands[loop.num_consts + loop.num_carry :]

    def step(carry: Any, stacked: Any) -> Any:
        slices, taps = stacked
        outputs, kept = evaluate(loop.body, [*consts, *carry, *slices, *loop.closed_over], taps=taps, captures=captures)
        return outputs[: loop.num_carry], (outputs[loop.num_carry :], kept)

    carry, (stacked, kept) = jax.lax.scan(
        step, list(carry), (list(slices), dict(taps)), length=loop.length, reverse=loop.reverse
    )
    return [*carry, *stacked], kept


def _run_compiled(
    program: Program,
    equations: tuple[Equation, ...],
    values: dict[int, Any],
    taps: Mapping[Site, Any],
    wanted: set[Site],
    kept: dict[Site, Any],
) -> None:
    """Evaluate equations inlined from one compiled call as one compiled call, so that they round the same way."""
    made = {output for equation in equations for output in equation.outputs}
    taps = {site: value for site, value in taps.items() if site[0] in made}
    captures = frozenset(site for site in wanted if site[0] in made)
    cached = (equations[0].scope, equations[0].outputs, frozenset(taps), captures)
    if cached not in program._compiled:
        used = {atom for equation in equations for atom in equation.operands}
        needed = tuple(sorted(used - made))
        later = {atom for other in program.equations if other.scope != equations[0].scope for atom in other.operands}
        later |= {atom for atom in program.outputs if isinstance(atom, int)}
        later |= {site[0] for site in captures if len(site) == 1}
        results = tuple(sorted(made & later))

        def call(given: list[Any], taps: dict[Site, Any]) -> tuple[list[Any], dict[Site, Any]]:
            inner: dict[int, Any] = dict(zip(needed, given, strict=True))
            inner_kept: dict[Site, Any] = {}

            def define(number: int, value: Any) -> None:
                inner[number] = value + taps[(number,)] if (number,) in taps else value

            _run(equations, inner, define, taps, set(captures), inner_kept)
            return [inner[number] for number in results], inner_kept

        program._compiled[cached] = (needed, results, jax.jit(call))
    needed, results, call = program._compiled[cached]
    outputs, inner_kept = call([values[number] for number in needed], taps)
    values.update(zip(results, outputs, strict=True))
    kept.update(inner_kept)


def replay(equations: Iterable[Equation], replaced: Mapping[int, Any], values: Mapping[int, Any]) -> dict[int, Any]:
    """Evaluate some equations again with some values replaced; operands they do not make come from ``values``."""
    known = dict(replaced)
    for equation in equations:
        operands = [
            atom.value if isinstance(atom, Constant) else known[atom] if atom in known else values[atom]
            for atom in equation.inputs
        ]
        for output, value in zip(equation.outputs, equation.apply(*operands), strict=True):
            if output not in replaced:
                known[output] = value
    return known
