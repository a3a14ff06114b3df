"""From a jaxpr to a flat program: calls that hold a layer are inlined, the others kept as they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from jaxgrad.tracing._interpret import Constant, Equation, Kind, Loop, Owner, Program, join, scan_parts

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


CONSTANT = Kind()


def flatten(closed: jex.ClosedJaxpr, kinds: Sequence[Kind], constant_kind: Kind = CONSTANT) -> Program:
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
    if not operands and any(getattr(var.aval, "shape", ()) for var in eqn.outvars):
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
    num_consts, num_carry = scan_parts(eqn.params, len(eqn.invars))
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
    num_consts, num_carry = scan_parts(eqn.params, len(eqn.invars))
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
        stacked_rows = builder.new(var.aval, kind)
        results.append(stacked_rows)
        builder.equations.append(
            Equation("concatenate", tuple(ordered), (stacked_rows,), _stack, {}, eqn.source_info, scope, None)
        )
    return results


def _take(step: int) -> Callable[[Any], Sequence[Any]]:
    return lambda stacked: [jax.lax.index_in_dim(stacked, step, keepdims=False)]


def _stack(*rows: Any) -> Sequence[Any]:
    return [jnp.stack(rows)]
