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
import jax.numpy as jnp
from jax.extend import core as jex

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


def replay(
    equations: Iterable[Equation], replaced: Mapping[int, Any], values: Mapping[int, Any]
) -> dict[int, Any]:
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


# --- from a jaxpr to a program ---------------------------------------------------------------------------------------

_CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"})
_ANY_STEP = -1  # in an owner's index: a slice, of a step not told apart
_COMPILED_CALLS = frozenset({"jit", "pjit"})
_PRODUCTS = frozenset({"dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"})


class _Builder:
    """The program under construction; inlining that turns out to hold no layer is undone by :meth:`reset`."""

    def __init__(self, constant_kind: Kind, debug_info: Any) -> None:
        self.debug_info = debug_info
        self.constant_kind = constant_kind
        self.equations: list[Equation] = []
        self.avals: list[Any] = []
        self.kinds: list[Kind] = []
        self.layers: list[int] = []
        self.hoisted: list[tuple[int, Any]] = []
        self.scopes = itertools.count()

    def new(self, aval: Any, kind: Kind) -> int:
        self.avals.append(aval)
        self.kinds.append(kind)
        return len(self.avals) - 1

    def hoist(self, var: Any, value: Any) -> int:
        """Make an input of a value that is closed over."""
        number = self.new(var.aval, self.constant_kind if var.aval.shape else Kind())
        self.hoisted.append((number, value))
        return number

    def mark(self) -> tuple[int, int, int]:
        return len(self.equations), len(self.avals), len(self.layers)

    def reset(self, mark: tuple[int, int, int]) -> None:
        del self.equations[mark[0] :], self.avals[mark[1] :], self.kinds[mark[1] :], self.layers[mark[2] :]
        self.hoisted = [(number, value) for number, value in self.hoisted if number < mark[1]]

    def finish(self, inputs: Sequence[int], outputs: Sequence[int | Constant]) -> Program:
        return Program(
            inputs=(*inputs, *(number for number, _ in self.hoisted)),
            outputs=tuple(outputs),
            hoisted=tuple(value for _, value in self.hoisted),
            equations=tuple(_group_inlined(self.equations)),
            avals=tuple(self.avals),
            kinds=tuple(self.kinds),
            layers=tuple(self.layers),
        )


def flatten(closed: jex.ClosedJaxpr, kinds: Sequence[Kind], constant_kind: Kind = Kind()) -> Program:
    """Flatten a jaxpr whose inputs are of the given kinds.

    Args:
      closed: The jaxpr.
      kinds: What each input is made from.
      constant_kind: What arrays that depend on no input count as.

    Returns:
      The program. Its inputs are those of the jaxpr, the values that the jaxpr closes over, and those hoisted.
    """
    jaxpr = closed.jaxpr
    builder = _Builder(constant_kind, jaxpr.debug_info)
    inputs = [builder.new(var.aval, kind) for var, kind in zip(jaxpr.invars, kinds, strict=True)]
    constants = [builder.new(var.aval, constant_kind if var.aval.shape else Kind()) for var in jaxpr.constvars]
    outputs = _inline(builder, jaxpr, [*inputs, *constants], None)
    return builder.finish([*inputs, *constants], outputs)


def _inline(
    builder: _Builder,
    jaxpr: jex.Jaxpr,
    inputs: Sequence[int | Constant],
    scope: int | None,
) -> list[int | Constant]:
    """Append a jaxpr's equations and return its outputs; inputs are its arguments, then what it closes over."""
    atoms: dict[Any, int | Constant] = dict(zip([*jaxpr.invars, *jaxpr.constvars], inputs, strict=True))

    def atom(var: Any) -> int | Constant:
        return Constant(var.val) if isinstance(var, jex.Literal) else atoms[var]

    for eqn in jaxpr.eqns:
        operands = [atom(var) for var in eqn.invars]
        outputs = _append(builder, eqn, operands, scope)
        atoms.update(zip(eqn.outvars, outputs, strict=True))
    return [atom(var) for var in jaxpr.outvars]


def _append(
    builder: _Builder, eqn: jex.JaxprEqn, operands: list[int | Constant], scope: int | None
) -> Sequence[int | Constant]:
    """Append one equation of a jaxpr: inlined where it holds layers, else as it is."""
    name = eqn.primitive.name
    kinds = [Kind() if isinstance(atom, Constant) else builder.kinds[atom] for atom in operands]
    data = any(kind.data for kind in kinds) or builder.constant_kind.data
    if not (data and any(kind.owners for kind in kinds)):
        # Neither weights alone nor data alone make a layer.
        return _append_unit(builder, eqn, operands, kinds, scope, layer=False)
    if name in _CALLS:
        mark = builder.mark()
        inner = scope if scope is not None or name not in _COMPILED_CALLS else next(builder.scopes)
        body = bodies(eqn.params)[0]
        hoisted = [builder.hoist(var, value) for var, value in zip(body.jaxpr.constvars, body.consts, strict=True)]
        outputs = _inline(builder, body.jaxpr, [*operands, *hoisted], inner)
        if len(builder.layers) > mark[2]:
            return outputs
        builder.reset(mark)
        return _append_unit(builder, eqn, operands, kinds, scope, layer=False)
    if name == "scan":
        return _append_scan(builder, eqn, operands, kinds, scope)
    if name in _PRODUCTS:
        data, weight = kinds[0], kinds[1]
        layer = (data.data and bool(weight.owners)) or (weight.data and bool(data.owners))
        return _append_unit(builder, eqn, operands, kinds, scope, layer=layer)
    if name == "gather":
        return _append_unit(builder, eqn, operands, kinds, scope, layer=bool(kinds[0].owners) and kinds[1].data)
    layer = any(
        flatten(sub, [Kind(data=True) if kind.data else kind for kind in sub_kinds]).layers
        for sub, sub_kinds in _opaque_bodies(eqn, kinds)
    )
    return _append_unit(builder, eqn, operands, kinds, scope, layer=layer)


def bodies(params: Mapping[str, Any]) -> list[jex.ClosedJaxpr]:
    """Return the jaxprs among a primitive's parameters."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, jex.ClosedJaxpr):
                found.append(item)
            elif isinstance(item, jex.Jaxpr):
                found.append(jex.ClosedJaxpr(item, ()))
    return found


def _opaque_bodies(eqn: jex.JaxprEqn, kinds: Sequence[Kind]) -> Iterable[tuple[jex.ClosedJaxpr, Sequence[Kind]]]:
    """Yield the bodies of an equation that is not inlined, with what their inputs are made from."""
    name = eqn.primitive.name
    if name == "cond":
        for branch in eqn.params["branches"]:
            yield branch, kinds[1:]
    elif name == "while":
        num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        consts, carry = list(kinds[num_cond : num_cond + num_body]), list(kinds[num_cond + num_body :])
        body = eqn.params["body_jaxpr"]
        for _ in range(len(carry) + 1):
            outputs = [_kind_of(flat, atom) for flat in [flatten(body, consts + carry)] for atom in flat.outputs]
            carry = [join(pair) for pair in zip(carry, outputs, strict=True)]
        yield body, consts + carry
    else:
        for body in bodies(eqn.params):
            if len(body.jaxpr.invars) == len(kinds):
                yield body, kinds


def _kind_of(program: Program, atom: int | Constant) -> Kind:
    return Kind() if isinstance(atom, Constant) else program.kinds[atom]


def _binder(eqn: jex.JaxprEqn, debug_info: Any) -> Callable[..., Sequence[Any]]:
    """Return what evaluates an equation as JAX would, without giving the user's buffers away."""
    if any(eqn.params.get("donated_invars", ())):
        eqn = eqn.replace(params={**eqn.params, "donated_invars": (False,) * len(eqn.invars)})
    kept = [position for position, var in enumerate(eqn.outvars) if type(var).__name__ != "DropVar"]
    unique = list(dict.fromkeys(var for var in eqn.invars if not isinstance(var, jex.Literal)))
    first = [next(i for i, other in enumerate(eqn.invars) if other is var) for var in unique]
    unnamed = getattr(debug_info, "with_unknown_names", lambda: debug_info)()
    outvars = [eqn.outvars[position] for position in kept]
    jaxpr = jex.Jaxpr((), unique, outvars, [eqn], eqn.effects, debug_info=unnamed)
    call = jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, ()))

    def apply(*operands: Any) -> Sequence[Any]:
        results: list[Any] = [None] * len(eqn.outvars)
        for position, value in zip(kept, call(*(operands[i] for i in first)), strict=True):
            results[position] = value
        return results

    return apply


def _group_inlined(equations: Sequence[Equation]) -> list[Equation]:
    """Mark runs of equations that a function compiled with ``inline=True`` left (they share one traceback).

    Called eagerly, JAX compiles such a function as one, so it rounds as one.
    """
    grouped: list[Equation] = []
    for _, run in itertools.groupby(enumerate(equations), key=lambda pair: _Origin(pair[1])):
        members = tuple(run)
        scope = -1 - members[0][0] if len(members) > 1 else None
        grouped += [e._replace(scope=scope) if e.scope is None and e.loop is None else e for _, e in members]
    return grouped


class _Origin:
    """Equations compare equal where they were asked for by the same call."""

    def __init__(self, equation: Equation) -> None:
        self.equation = equation

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Origin) or self.equation.scope is not None or self.equation.loop is not None:
            return False
        one, two = (getattr(e.source, "traceback", None) for e in (self.equation, other.equation))
        return one is not None and other.equation.scope is None and other.equation.loop is None and one == two


def _append_unit(
    builder: _Builder,
    eqn: jex.JaxprEqn,
    operands: Sequence[int | Constant],
    kinds: Sequence[Kind],
    scope: int | None,
    *,
    layer: bool,
    loop: Loop | None = None,
) -> list[int]:
    kind = join(kinds)
    if not operands and any(var.aval.shape for var in eqn.outvars):
        kind = builder.constant_kind
    outputs = [builder.new(var.aval, kind) for var in eqn.outvars]
    if layer:
        builder.layers.append(len(builder.equations))
    builder.equations.append(
        Equation(
            operation=eqn.primitive.name,
            inputs=tuple(operands),
            outputs=tuple(outputs),
            apply=_binder(eqn, builder.debug_info),
            params=eqn.params,
            source=eqn.source_info,
            scope=scope,
            loop=loop,
        )
    )
    return outputs


def _append_scan(
    builder: _Builder, eqn: jex.JaxprEqn, operands: list[int | Constant], kinds: list[Kind], scope: int | None
) -> Sequence[int | Constant]:
    """Append a scan: unrolled where each step has weights of its own, a loop where the steps share them."""
    params = eqn.params
    num_consts, num_carry = _scan_parts(eqn)
    body, length = params["jaxpr"], params["length"]
    consts, carry, slices = (
        kinds[:num_consts],
        kinds[num_consts : num_consts + num_carry],
        kinds[num_consts + num_carry :],
    )
    stacked = [_slice_kind(kind) for kind in slices]
    program = flatten(body, [*consts, *carry, *stacked], builder.constant_kind)
    for _ in range(num_carry):
        after = [join((kind, _kind_of(program, atom))) for kind, atom in zip(carry, program.outputs, strict=False)]
        if after == carry:
            break
        carry = after
        program = flatten(body, [*consts, *carry, *stacked], builder.constant_kind)
    if not program.layers:
        return _append_unit(builder, eqn, operands, kinds, scope, layer=False)
    own_weights = any(
        _ANY_STEP in owner.index
        for position in program.layers
        for atom in program.equations[position].operands
        for owner in program.kinds[atom].owners
    )
    if own_weights:
        return _unroll(builder, eqn, operands, scope if scope is not None else next(builder.scopes))
    loop = Loop(
        body=program,
        closed_over=(*body.consts, *program.hoisted),
        num_consts=num_consts,
        num_carry=num_carry,
        length=length,
        reverse=bool(params["reverse"]),
    )
    return _append_unit(builder, eqn, operands, kinds, scope, layer=True, loop=loop)


def _scan_parts(eqn: jex.JaxprEqn) -> tuple[int, int]:
    """Return how many operands of a scan are loop-invariant, and how many are carried."""
    if "ft_in" in eqn.params:  # since jax 0.12
        consts, carry, _ = eqn.params["ft_in"].update(range(len(eqn.invars))).unpack()
        return len(list(consts)), len(list(carry))
    return eqn.params["num_consts"], eqn.params["num_carry"]


def _slice_kind(kind: Kind) -> Kind:
    """Return the kind of one slice of a stacked value."""
    return Kind(
        data=kind.data,
        owners=tuple(Owner(owner.leaf, (*owner.index, _ANY_STEP), owner.name) for owner in kind.owners),
    )


def _step_owner(owner: Owner, prefix: str, index: int) -> Owner:
    """Name the slice ``index`` of a stacked leaf: the index follows the path that all leaves of the stack share."""
    return Owner(owner.leaf, (*owner.index, index), f"{prefix}[{index}]{owner.name[len(prefix) :]}")


def _common_prefix(names: Sequence[str]) -> str:
    """Return the longest path that starts all names and is the whole of none (unless there is nothing else)."""
    parts = [name.split("/") for name in names]
    shared = []
    for column in zip(*(path[:-1] for path in parts), strict=False):
        if len(set(column)) > 1:
            break
        shared.append(column[0])
    return "/".join(shared)


def _unroll(
    builder: _Builder, eqn: jex.JaxprEqn, operands: list[int | Constant], scope: int
) -> Sequence[int | Constant]:
    """Append a scan over stacked layers step by step."""
    params = eqn.params
    num_consts, num_carry = _scan_parts(eqn)
    body, length = params["jaxpr"], params["length"]
    consts = operands[:num_consts]
    carry: list[int | Constant] = operands[num_consts : num_consts + num_carry]
    stacked = operands[num_consts + num_carry :]
    kinds = [Kind() if isinstance(atom, Constant) else builder.kinds[atom] for atom in stacked]
    prefix = _common_prefix([owner.name for kind in kinds for owner in kind.owners])
    hoisted = [builder.hoist(var, value) for var, value in zip(body.jaxpr.constvars, body.consts, strict=True)]
    collected: list[list[int | Constant]] = [[] for _ in eqn.outvars[num_carry:]]
    steps = reversed(range(length)) if params["reverse"] else range(length)
    for step in steps:
        slices = []
        for atom, kind, var in zip(stacked, kinds, body.jaxpr.invars[num_consts + num_carry :], strict=True):
            owners = tuple(
                _step_owner(owner, prefix or owner.name, step) if "/" in owner.name or not prefix else owner
                for owner in kind.owners
            )
            slices.append(builder.new(var.aval, Kind(kind.data, owners)))
            builder.equations.append(
                Equation("slice", (atom,), (slices[-1],), _take(step), {}, eqn.source_info, scope, None)
            )
        outputs = _inline(builder, body.jaxpr, [*consts, *carry, *slices, *hoisted], scope)
        carry = outputs[:num_carry]
        for rows, atom in zip(collected, outputs[num_carry:], strict=True):
            rows.append(atom)
    results: list[int | Constant] = list(carry)
    for rows, var in zip(collected, eqn.outvars[num_carry:], strict=True):
        ordered = rows[::-1] if params["reverse"] else rows
        kind = join(Kind() if isinstance(atom, Constant) else builder.kinds[atom] for atom in ordered)
        results.append(builder.new(var.aval, kind))
        builder.equations.append(
            Equation("concatenate", tuple(ordered), (results[-1],), _stack, {}, eqn.source_info, scope, None)
        )
    return results


def _take(step: int) -> Callable[[Any], Sequence[Any]]:
    return lambda stacked: [jax.lax.index_in_dim(stacked, step, keepdims=False)]


def _stack(*rows: Any) -> Sequence[Any]:
    return [jnp.stack(rows)]
