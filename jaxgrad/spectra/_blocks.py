"""The Jacobian of every block of a traced network."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core as jex

from jaxgrad._checks import message
from jaxgrad.spectra._examples import Layout, example_layout
from jaxgrad.spectra._operators import linear_maps
from jaxgrad.tracing import Network
from jaxgrad.tracing._cuts import Span
from jaxgrad.tracing._interpret import Loop, Site, evaluate, replay

_CHUNK_BYTES = 64 * 2**20


def block_jacobians(network: Network, params: Any, *args: Any, chunk_size: int | None = None) -> list[jax.Array]:
    r"""Return the Jacobian of every block, in order, one an example.

    .. math:: J_b = \partial h_{b+1} / \partial h_b

    where :math:`h_b` is the state at the cut before block :math:`b`, flattened. Within a chain the product
    :math:`J_n \cdots J_1` is the Jacobian of the whole.

    Args:
      network: A traced network.
      params: Parameters of the shapes traced.
      *args: Other arguments of the shapes traced.
      chunk_size: How many columns (or rows, where there are fewer) to compute at once; by default as many as keep a
        block's tangents within 64 MiB.

    Returns:
      One array of shape ``(num_examples, output_size, input_size)`` a block. Where examples depend on one another
      (BatchNorm in training), and where there is no batch, the batch is one state and ``num_examples`` is 1.

    Example:
      >>> import jax.numpy as jnp, jaxgrad
      >>> params = {"a": 2 * jnp.eye(3), "b": 3 * jnp.eye(3)}
      >>> def loss_fn(params, x):
      ...     return jnp.sum(x @ params["a"] @ params["b"])
      >>> x = jnp.ones((4, 3))
      >>> network = jaxgrad.trace(loss_fn, params, x)
      >>> first, second = jaxgrad.spectra.block_jacobians(network, params, x)
      >>> first.shape, float(second[0, 0, 0])
      ((4, 3, 3), 3.0)
    """
    check_chunk_size("block_jacobians", chunk_size)
    evaluated = Evaluated.at(network, params, *args)
    return [jacobian for _, jacobian in evaluated.jacobians(network.spans, chunk_size)]


class Evaluated(NamedTuple):
    """A network, and every value its blocks are computed from.

    Attributes:
      network: The network.
      layout: Where its examples are.
      values: The values, by site.
    """

    network: Network
    layout: Layout
    values: dict[Site, Any]

    @classmethod
    def at(cls, network: Network, params: Any, *args: Any) -> Evaluated:
        """Evaluate a network."""
        inputs = network.inputs(params, args)
        layout = example_layout(network, params, *args)
        cache = network.program._compiled
        if "values" not in cache:
            cache["values"] = jax.jit(lambda inputs: block_values(network, inputs, network.spans))
        return cls(network, layout, cache["values"](inputs))

    def jacobians(self, spans: Sequence[Span], chunk_size: int | None = None) -> Iterator[tuple[Span, jax.Array]]:
        """Yield the Jacobian of each span; the steps of one loop come out of one compiled loop."""
        for _, group in itertools.groupby(spans, key=lambda span: span.equations if span.kind == "time" else span):
            members = list(group)
            steps = np.asarray([span.start.step or 0 for span in members], np.int32)
            compute = functools.partial(_formed, single=members[0].kind == "depth", chunk_size=chunk_size)
            found = self.run(("jacobians", len(members), chunk_size), members[0], compute, steps)
            yield from zip(members, found, strict=True)

    def jacobian(self, span: Span, chunk_size: int | None = None) -> jax.Array:
        """Return the Jacobian of one span; the steps of one loop share one compiled body."""
        compute = functools.partial(_formed, single=True, chunk_size=chunk_size)
        return self.run(("jacobian", chunk_size), span, compute, np.asarray([span.start.step or 0], np.int32))[0]

    def run(self, key: tuple[Any, ...], span: Span, compute: Callable[..., Any], steps: np.ndarray, *more: Any) -> Any:
        """Return ``compute(at, steps, *more)`` compiled; ``at(step)`` gives the span as :func:`depth_function` does.

        Spans that come to the same jaxpr share one program. It is kept with the network, under ``key``.
        """
        network, layout = self.network, self.layout
        cache = network.program._compiled.setdefault("blocks", {})
        sites = operand_sites(network, span)
        operands = [self.values[site] for site in sites]

        def at(operands: list[Any], step: Any) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
            values = dict(zip(sites, operands, strict=True))
            if span.kind == "time":
                return time_function(network, layout, values, span, step)
            return depth_function(network, layout, values, span)

        def forward(operands: list[Any], steps: jax.Array) -> tuple[jax.Array, jax.Array]:
            function, rows = at(operands, steps[0])
            return function(rows), rows

        def whole(operands: list[Any], steps: jax.Array, more: tuple[Any, ...]) -> Any:
            return compute(functools.partial(at, operands), steps, *more)

        shapes = tuple((value.shape, value.dtype) for value in jax.tree.leaves((steps, more)))
        axes = tuple(layout.axes.get(site) for cut in (span.start, span.end) for site in cut.sites)
        key = (*key, layout.num_examples, axes, shapes)
        place = (key, span.equations if span.kind == "time" else span)
        if place not in cache:
            # The second fingerprint is slower, but sees through a custom_jvp, which is another one at each call.
            program = (key, fingerprint(jax.make_jaxpr(forward)(operands, steps)))
            if program not in cache:
                derived = (key, "derived", fingerprint(jax.make_jaxpr(whole)(operands, steps, more)))
                cache[program] = cache.setdefault(derived, jax.jit(whole))
            cache[place] = cache[program]
        return cache[place](operands, steps, more)


def _formed(
    at: Callable[..., Any], steps: jax.Array, *, single: bool, chunk_size: int | None = None
) -> list[jax.Array]:
    """Return the Jacobian at each step."""
    if single:
        return [dense_jacobians(*at(steps[0]), chunk_size=chunk_size)]
    return list(jax.lax.map(lambda step: dense_jacobians(*at(step), chunk_size=chunk_size), steps))


def check_chunk_size(function: str, chunk_size: Any) -> None:
    """Refuse a chunk size that is no positive number."""
    if chunk_size is not None and (isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(
            message(function, "chunk_size of at least 1, or None", f"chunk_size={chunk_size!r}", "leave chunk_size out")
        )


def operand_sites(network: Network, span: Span) -> list[Site]:
    """Return where the values are that a span is computed from, in an order that equal spans share."""
    equations = [network.program.equations[position] for position in span.equations]
    made = {output for equation in equations for output in equation.outputs}
    sites: list[Site] = []
    if span.kind == "time":
        number, loop = _loop_of(network, span)
        sites += [(number, entry) for entry in _entering(loop)]
    else:
        sites += span.start.sites
    sites += [(atom,) for equation in equations for atom in equation.operands if atom not in made]
    if span.kind == "depth":
        sites += [site for site in span.end.sites if site[0] not in made]
    return list(dict.fromkeys(sites))


def fingerprint(closed: Any, *, differentiated: bool = True) -> Hashable:
    """Return what two jaxprs share only where they compute the same; and where it matters, their derivatives."""
    jaxpr = getattr(closed, "jaxpr", closed)
    numbers: dict[Any, int] = {}

    def atom(variable: Any) -> Hashable:
        if isinstance(variable, jex.Literal):
            return str(variable.aval), np.asarray(variable.val).tobytes()
        return numbers.setdefault(variable, len(numbers)), str(variable.aval)

    return (
        tuple(_frozen(const) for const in getattr(closed, "consts", ())),
        tuple(atom(variable) for variable in (*jaxpr.constvars, *jaxpr.invars)),
        tuple(
            (
                equation.primitive,
                tuple(atom(variable) for variable in equation.invars),
                tuple(atom(variable) for variable in equation.outvars),
                tuple(
                    (name, _frozen(value, differentiated))
                    for name, value in sorted(equation.params.items())
                    if differentiated or not _is_rule(equation, value)
                ),
            )
            for equation in jaxpr.eqns
        ),
        tuple(atom(variable) for variable in jaxpr.outvars),
    )


def _is_rule(equation: Any, value: Any) -> bool:
    """Return whether a parameter is the rule by which a function is differentiated."""
    custom = equation.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call"))
    return custom and not isinstance(value, (int, tuple)) and not hasattr(value, "jaxpr")


def _frozen(value: Any, differentiated: bool = True) -> Hashable:
    """Return something hashable that is equal for equal values only; where in doubt, for this value alone."""
    if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
        return fingerprint(value, differentiated=differentiated)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_frozen(inner, differentiated) for inner in value)
    if isinstance(value, dict):
        return dict, tuple((name, _frozen(inner, differentiated)) for name, inner in sorted(value.items()))
    if isinstance(value, (np.ndarray, jax.Array)):
        known = not isinstance(value, Tracer) and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        return (value.shape, str(value.dtype), np.asarray(value).tobytes()) if known else object()
    try:
        hash(value)
    except TypeError:
        return object()
    return type(value), value


def span_jacobians(
    network: Network, layout: Layout, values: dict[Site, Any], spans: Sequence[Span], chunk_size: int | None = None
) -> Iterator[tuple[Span, jax.Array]]:
    """Yield the Jacobian of each span; the steps of one loop are computed by one compiled body."""
    for _, group in itertools.groupby(spans, key=lambda span: span.equations if span.kind == "time" else span):
        members = tuple(group)
        if members[0].kind == "depth":
            yield (
                members[0],
                dense_jacobians(*depth_function(network, layout, values, members[0]), chunk_size=chunk_size),
            )
            continue
        at_step = functools.partial(time_function, network, layout, values, members[0])

        def jacobians(step: jax.Array, at_step: Callable[..., Any] = at_step) -> jax.Array:
            return dense_jacobians(*at_step(step), chunk_size=chunk_size)

        yield from zip(members, jax.lax.map(jacobians, jnp.asarray([m.start.step for m in members])), strict=True)


def block_values(network: Network, inputs: Sequence[Any], spans: Sequence[Span]) -> dict[Site, Any]:
    """Return every value that the given spans start from, end with or read on the way, from one evaluation."""
    program = network.program
    wanted: set[Site] = {site for span in spans for cut in (span.start, span.end) for site in cut.sites}
    known = {output for equation in program.equations for output in equation.outputs}
    known |= set(program.inputs)
    for position in {position for span in spans for position in span.equations}:
        equation = program.equations[position]
        wanted |= {(atom,) for atom in equation.operands if atom in known}
    for span in spans:
        if span.kind == "time":
            number, loop = _loop_of(network, span)
            wanted |= {(number, entry) for entry in _entering(loop)}
    _, kept = evaluate(program, inputs, captures=wanted)
    return kept


def depth_function(
    network: Network, layout: Layout, values: dict[Site, Any], span: Span
) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
    """Return a span as a function of rows, one an example, and the rows it is evaluated at.

    No example's row depends on another's.
    """
    equations = [network.program.equations[position] for position in span.equations]
    avals = [network.aval(site) for site in span.start.sites]
    flat = {site[0]: value for site, value in values.items() if len(site) == 1}

    def function(rows: jax.Array) -> jax.Array:
        state = layout.merge(rows, avals, span.start.sites)
        known = replay(equations, {site[0]: value for site, value in zip(span.start.sites, state, strict=True)}, flat)
        return layout.split([(known if site[0] in known else flat)[site[0]] for site in span.end.sites], span.end.sites)

    return function, layout.split([values[site] for site in span.start.sites], span.start.sites)


def time_function(
    network: Network, layout: Layout, values: dict[Site, Any], span: Span, step: Any
) -> tuple[Callable[[jax.Array], jax.Array], jax.Array]:
    """Return one step of a loop as :func:`depth_function` does; ``step`` may be traced."""
    number, loop = _loop_of(network, span)
    equation = network.program.equations[span.equations[0]]
    operands = [values[(atom,)] if isinstance(atom, int) else atom.value for atom in equation.inputs]
    consts, slices = operands[: loop.num_consts], operands[loop.num_consts + loop.num_carry :]
    every: list[Site] = [(number, entry) for entry in _entering(loop)]
    sites = span.start.sites
    avals = [network.aval(site) for site in sites]
    carried = [values[site][step] for site in every]
    leaves = [every.index(site) for site in sites]

    def function(rows: jax.Array) -> jax.Array:
        state = list(carried)
        for leaf, value in zip(leaves, layout.merge(rows, avals, sites), strict=True):
            state[leaf] = value
        outputs, _ = evaluate(loop.body, [*consts, *state, *(value[step] for value in slices), *loop.closed_over])
        return layout.split([outputs[leaf] for leaf in leaves], sites)

    return function, layout.split([carried[leaf] for leaf in leaves], sites)


def _loop_of(network: Network, span: Span) -> tuple[int, Loop]:
    """Return the loop that a time span is a step of, and its number."""
    equation = network.program.equations[span.equations[0]]
    if equation.loop is None:
        raise ValueError(f"{equation.operation} is no loop")
    return equation.outputs[0], equation.loop


def _entering(loop: Loop) -> tuple[int, ...]:
    """Return the numbers of a loop's carry inside its body."""
    return loop.body.inputs[loop.num_consts : loop.num_consts + loop.num_carry]


def dense_jacobians(
    function: Callable[[jax.Array], jax.Array], rows: jax.Array, *, chunk_size: int | None = None
) -> jax.Array:
    """Return the Jacobian of every row of a function in which rows do not depend on one another.

    A tangent along one coordinate in all rows at once gives that column of every row's Jacobian; a cotangent, that row.

    Args:
      function: From ``(num_rows, input_size)`` to ``(num_rows, output_size)``.
      rows: Where.
      chunk_size: How many coordinates to push at once.

    Returns:
      An array of shape ``(num_rows, output_size, input_size)``.
    """
    out = jax.eval_shape(function, rows)
    num_rows, input_size = rows.shape
    output_size = out.shape[1]
    if not input_size or not output_size:
        return jnp.zeros((num_rows, output_size, input_size), out.dtype)
    forward = input_size <= output_size
    size = input_size if forward else output_size
    if chunk_size is None:
        cost = num_rows * (input_size + output_size) * out.dtype.itemsize
        chunk_size = max(1, _CHUNK_BYTES // cost)
    push, pull = linear_maps(function, rows, out)
    apply, like = (push, rows) if forward else (pull, out)

    def along(coordinate: jax.Array) -> jax.Array:
        direction = (jnp.arange(size) == coordinate).astype(like.dtype)
        return apply(jnp.broadcast_to(direction[None, :], like.shape))

    coordinates = jnp.arange(size)
    columns = (
        jax.vmap(along)(coordinates) if chunk_size >= size else jax.lax.map(along, coordinates, batch_size=chunk_size)
    )
    return jnp.transpose(columns, (1, 2, 0) if forward else (1, 0, 2))
