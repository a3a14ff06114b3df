"""A block of a traced network read back as elements of theory: weights, activations, normalizations, branches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.activations._table import TABLE
from jaxgrad.meanfield._architectures import Activation, Affine, BatchNorm, Dense, Dropout, Element, LayerNorm, Residual
from jaxgrad.tracing import Network
from jaxgrad.tracing._cuts import Span
from jaxgrad.tracing._flatten import bodies
from jaxgrad.tracing._interpret import Constant, Equation, replay
from jaxgrad.tracing._layers import Activation as TracedActivation

_MOVES = frozenset(
    {
        "reshape",
        "transpose",
        "broadcast_in_dim",
        "squeeze",
        "expand_dims",
        "convert_element_type",
        "copy",
        "slice",
        "rev",
        "reduce_precision",
        "optimization_barrier",
        "sharding_constraint",
    }
)
_CALLS = frozenset({"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})


class Way(NamedTuple):
    """What lies between the beginning of a block and a value.

    Attributes:
      elements: The elements passed.
      role: ``"unit"`` for activations, ``"power"`` for their squares, ``"statistic"`` for what is summed over axes.
      axes: Of a statistic, the axes summed over.
      size: Of a statistic, the number of entries summed.
      centered: Whether a mean was subtracted that no normalization has used yet.
      eps: Of a statistic, what was added to it.
      inverse: Of a statistic, whether it is an inverse root.
      root: Of a statistic, whether it is a root.
      scale: Of a statistic, the mean square of parameters multiplied into it.
    """

    elements: tuple[Element, ...]
    role: str = "unit"
    axes: frozenset[int] = frozenset()
    size: int = 1
    centered: bool = False
    eps: float = 0.0
    inverse: bool = False
    root: bool = False
    scale: float = 1.0


class Unreadable(Exception):
    """A block does something that theory has no element for."""


Functions = dict[bytes, Callable[[Any], Any]]
"""Activations that no table holds, by their values: what is computed of one serves its equals."""


def read_block(network: Network, span: Span, known: Mapping[int, Any], functions: Functions) -> tuple[Element, ...]:
    """Return the elements of a block.

    Args:
      network: The network.
      span: The block.
      known: Values that do not depend on the block's input, by number: the parameters and what is made of them.
      functions: The activations met before, to which those of this block are added.

    Raises:
      Unreadable: The block holds an operation that theory has no element for.
    """
    if span.kind != "depth" or len(span.start.sites) != 1 or len(span.end.sites) != 1:
        raise Unreadable("a recurrence, or a state of several activations")
    program = network.program
    layers = {id(program.equations[position]) for position in program.layers}
    ends = {activation.end: activation for activation in network.activations if not activation.loops}
    ways: dict[int, Way | Unreadable] = {span.start.sites[0][0]: Way(())}
    for equation in (program.equations[position] for position in span.equations):
        if all(output in ways for output in equation.outputs):
            continue
        made = _outputs(equation, ways, known, ends, layers, program.avals, functions)
        for output, way in zip(equation.outputs, made, strict=True):
            if way is not None:
                ways[output] = way
    way = ways.get(span.end.sites[0][0], Unreadable("no way to the block's end"))
    if isinstance(way, Unreadable):
        raise way
    if way.role != "unit":
        raise Unreadable("a statistic at the block's end")
    return way.elements


def _outputs(
    equation: Equation,
    ways: Mapping[int, Way | Unreadable],
    known: Mapping[int, Any],
    ends: Mapping[int, TracedActivation],
    layers: set[int],
    avals: Sequence[Any],
    functions: Functions,
) -> Sequence[Way | Unreadable | None]:
    """Return the way to each output of an equation; ``None`` where it does not depend on the block's input."""
    activation = next((ends[output] for output in equation.outputs if output in ends), None)
    try:
        if activation is not None and activation.start in ways:
            start = _readable(ways[activation.start])
            if start.role == "unit":
                function = _function(activation, known, avals[activation.start], functions)
                return [Way((*start.elements, Activation(function)))]
        if not any(atom in ways for atom in equation.operands):
            return [None] * len(equation.outputs)
        operands = [_operand(atom, ways, known) for atom in equation.inputs]
        if id(equation) in layers:
            return [_dense(equation, operands, avals)]
        shapes = [avals[atom].shape for atom in equation.operands if atom in ways]
        return _step(equation.operation, operands, equation.params, max(shapes, key=len))
    except Unreadable as reason:
        return [reason] * len(equation.outputs)


def _readable(way: Way | Unreadable) -> Way:
    if isinstance(way, Unreadable):
        raise way
    return way


def _operand(atom: int | Constant, ways: Mapping[int, Way | Unreadable], known: Mapping[int, Any]) -> Any:
    """Return a way, or a value, or ``None`` for a value that is not known."""
    if isinstance(atom, Constant):
        return np.asarray(atom.value)
    return _readable(ways[atom]) if atom in ways else known.get(atom)


def _function(
    activation: TracedActivation, known: Mapping[int, Any], aval: Any, functions: Functions
) -> str | Callable[[Any], Any]:
    """Return the activation's name in the table where it is that function, else the function itself."""
    made = {output for equation in activation.equations for output in equation.outputs}
    outer = {
        atom: known.get(atom)
        for equation in activation.equations
        for atom in equation.operands
        if atom not in made and atom != activation.start
    }
    if any(value is None for value in outer.values()):
        raise Unreadable("an activation with an operand that depends on data")

    @jax.vmap
    def at_traced_shape(x: jax.Array) -> jax.Array:
        # Compiled functions inside are bound to the shape and type they were traced with.
        return replay(activation.equations, {activation.start: x}, outer)[activation.end]

    def function(x: jax.Array) -> jax.Array:
        rows = -(-x.size // aval.size)
        padded = jnp.resize(x, (rows, *aval.shape)).astype(aval.dtype)
        return at_traced_shape(padded).ravel()[: x.size].astype(x.dtype)

    points = jnp.linspace(-8.0, 8.0, 81)
    got = np.asarray(function(points))
    rounding = float(jnp.finfo(aval.dtype).eps)
    misses = {name: np.abs(got - np.asarray(entry.function(points))) for name, entry in TABLE.items()}
    bound = max(1e-5, 2 * rounding) + max(1e-4, 4 * rounding) * np.abs(got)
    name = min(misses, key=lambda name: float(np.max(misses[name] - bound)))  # in low precision several may fit
    if np.all(misses[name] <= bound):
        return name
    return functions.setdefault(got.tobytes(), function)


def _dense(equation: Equation, operands: Sequence[Any], avals: Sequence[Any]) -> Way:
    """Return the way through a layer."""
    ways = [operand for operand in operands if isinstance(operand, Way)]
    weights = [operand for operand in operands if not isinstance(operand, Way)]
    if len(ways) != 1 or ways[0].role != "unit" or len(weights) != 1 or weights[0] is None:
        raise Unreadable(f"a {equation.operation} of two activations")
    weight, way = np.asarray(weights[0], np.float64), ways[0]
    position = next(index for index, operand in enumerate(operands) if operand is weights[0])
    if equation.operation == "dot_general":
        (contracted, batched) = equation.params["dimension_numbers"]
        if batched[position]:
            raise Unreadable("a product with a batch of weights")
        fan_in = math.prod(weight.shape[axis] for axis in contracted[position])
        width = weight.size // max(fan_in, 1)
    elif equation.operation == "conv_general_dilated":
        numbers = equation.params["dimension_numbers"]
        width = weight.shape[numbers.rhs_spec[0]]
        fan_in = weight.size / width * _coverage(equation.params, avals[equation.operands[0]].shape, weight.shape)
    else:
        raise Unreadable(f"a {equation.operation} with parameters")
    return Way((*way.elements, Dense(float(np.mean(weight**2)) * fan_in, 0.0, width)))


def _coverage(params: Mapping[str, Any], data: tuple[int, ...], window: tuple[int, ...]) -> float:
    """Return the share of a convolution's window that lies on data rather than on padding, over all outputs."""
    numbers = params["dimension_numbers"]
    share = 1.0
    for axis, (stride, (low, high)) in enumerate(zip(params["window_strides"], params["padding"], strict=True)):
        size, taps = data[numbers.lhs_spec[2 + axis]], window[numbers.rhs_spec[2 + axis]]
        spread, apart = params["lhs_dilation"][axis], params["rhs_dilation"][axis]
        length = (size - 1) * spread + 1
        starts = np.arange(-low, length + high - (taps - 1) * apart, stride)
        places = starts[:, None] + apart * np.arange(taps)
        share *= float(np.mean((places >= 0) & (places < length) & (places % spread == 0)))
    return share


def _step(operation: str, operands: Sequence[Any], params: Mapping[str, Any], shape: tuple[int, ...]) -> list[Way]:
    """Return the way through an operation without parameters of its own, on an operand of some shape."""
    ways = [operand for operand in operands if isinstance(operand, Way)]
    if operation in _MOVES and len(ways) == 1:
        way = ways[0]
        return [way]
    if operation in _CALLS:
        return _call(operands, params)
    if operation in ("reduce_sum", "reduce_mean") and ways[0].role in ("unit", "power"):
        axes = frozenset(params["axes"]) if len(shape) > 1 else frozenset()
        size = math.prod(shape[axis] for axis in params["axes"])
        return [ways[0]._replace(role="statistic", axes=axes, size=size, centered=False)]
    if operation in ("square", "integer_pow", "abs") or (operation == "mul" and len(ways) == 2 and ways[0] == ways[1]):
        if ways[0].role == "unit" and params.get("y", 2) == 2:
            return [ways[0]._replace(role="power")]
        if ways[0].role == "statistic":
            return [ways[0]]
    if operation in ("rsqrt", "sqrt") and ways[0].role == "statistic":
        return [ways[0]._replace(inverse=operation == "rsqrt", root=operation == "sqrt")]
    if len(ways) == 2:
        return [_join(operation, ways[0], ways[1], operands)]
    if len(ways) == 1 and len(operands) in (1, 2, 3):
        return [_alone(operation, ways[0], operands)]
    raise Unreadable(f"the operation {operation}")


def _call(operands: Sequence[Any], params: Mapping[str, Any]) -> list[Way]:
    """Return the ways through a function that was kept whole."""
    closed = next(iter(bodies(params)), None)
    if closed is None:
        raise Unreadable("a call without a body")
    values: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(closed.jaxpr.invars, operands, strict=True))

    def read(atom: Any) -> Any:
        return np.asarray(atom.val) if hasattr(atom, "val") else values[atom]

    for eqn in closed.jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if any(isinstance(value, Way) for value in inputs):
            shapes = [atom.aval.shape for atom, way in zip(eqn.invars, inputs, strict=True) if isinstance(way, Way)]
            outputs: Sequence[Any] = _step(eqn.primitive.name, inputs, eqn.params, max(shapes, key=len))
        elif any(value is None for value in inputs):
            outputs = [None] * len(eqn.outvars)
        else:
            made = eqn.primitive.bind(*map(jnp.asarray, inputs), **eqn.params)
            outputs = made if eqn.primitive.multiple_results else [made]
        values |= dict(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def _alone(operation: str, way: Way, operands: Sequence[Any]) -> Way:
    """Return the way through an operation of one activation with parameters and constants."""
    others = [operand for operand in operands if not isinstance(operand, Way)]
    if operation == "neg":
        return way
    if operation in ("max", "min") and way.role == "statistic":
        return way
    if operation == "select_n" and way.role == "unit":
        return _drop(way, operands)
    if len(others) != 1 or others[0] is None:
        raise Unreadable(f"the operation {operation} with data of its own")
    square = float(np.mean(np.square(np.asarray(others[0], np.float64))))
    if operation in ("add", "sub", "add_any"):
        if way.role == "statistic":
            return way._replace(eps=way.eps + abs(float(np.mean(others[0]))))
        return way._replace(elements=_shifted(way.elements, square))
    if operation == "mul" or (operation == "div" and isinstance(operands[0], Way)):
        square = square if operation == "mul" else 1 / square
        if way.role == "statistic":
            return way._replace(scale=way.scale * square if way.inverse else way.scale)
        if way.role == "unit":
            return way._replace(elements=_scaled(way.elements, square))
        return way
    if operation == "div" and way.role == "statistic" and way.root:
        return way._replace(inverse=True, root=False, scale=way.scale * square)
    if operation == "pow" and way.role == "statistic" and np.all(others[0] == -0.5):
        return way._replace(inverse=True)
    raise Unreadable(f"the operation {operation}")


def _drop(way: Way, operands: Sequence[Any]) -> Way:
    """Return the way through a mask that sets units to zero; what is kept is scaled up elsewhere."""
    mask, *cases = operands
    kept = [index for index, case in enumerate(cases) if isinstance(case, Way)]
    zero = all(np.all(np.asarray(case) == 0) for case in cases if not isinstance(case, Way) and case is not None)
    if mask is None or isinstance(mask, Way) or len(kept) != 1 or not zero:
        raise Unreadable("a choice between activations")
    rate = float(np.mean(np.asarray(mask) == kept[0]))
    if rate == 0:
        raise Unreadable("a mask that keeps nothing")
    # Dropout scales by 1 / rate; the mask alone does not.
    return way._replace(elements=(*way.elements, Dropout(rate), Affine(rate**2)))


def _join(operation: str, first: Way, second: Way, operands: Sequence[Any]) -> Way:
    """Return the way to what is made of two values that both depend on the block's input."""
    if first.role == second.role == "unit" and operation in ("add", "sub", "add_any"):
        return Way(_summed(first.elements, second.elements))
    if first.role == second.role == "statistic":
        return first._replace(axes=first.axes | second.axes, eps=first.eps + second.eps)
    if {first.role, second.role} == {"unit", "statistic"}:
        unit, statistic = (first, second) if first.role == "unit" else (second, first)
        if operation == "sub" and first is unit:
            return unit._replace(centered=True)
        inverse = statistic.inverse if operation == "mul" else statistic.root and first is unit
        if operation in ("mul", "div") and inverse and unit.elements == statistic.elements:
            return Way(_scaled((*unit.elements, _normalization(unit, statistic)), statistic.scale))
    raise Unreadable(f"the operation {operation} of two activations")


def _normalization(unit: Way, statistic: Way) -> Element:
    if 0 in statistic.axes:
        return BatchNorm(max(statistic.size, 4), statistic.eps)
    return LayerNorm(unit.centered, statistic.eps)


def _summed(first: tuple[Element, ...], second: tuple[Element, ...]) -> tuple[Element, ...]:
    """Return the elements of a sum: what both share, and then the longer way as a branch beside the shorter."""
    shared = 0
    while shared < min(len(first), len(second)) and first[shared] is second[shared]:
        shared += 1
    shortcut, branch = sorted((first[shared:], second[shared:]), key=len)
    if not branch:
        return _scaled(first, 4.0)
    match branch:
        case (*inner, Affine(scale, shift)) if inner and shift == 0:
            return (*first[:shared], Residual(tuple(inner), scale, shortcut))
        case _:
            return (*first[:shared], Residual(branch, 1.0, shortcut))


def _scaled(elements: tuple[Element, ...], square: float) -> tuple[Element, ...]:
    """Return the elements followed by a scale; a scale of 1 is none, and two are one."""
    if abs(square - 1) < 1e-6:
        return elements
    if elements and isinstance(elements[-1], Affine):
        last = elements[-1]
        return (*elements[:-1], Affine(last.scale * square, last.shift * square))
    return (*elements, Affine(square))


def _shifted(elements: tuple[Element, ...], square: float) -> tuple[Element, ...]:
    """Return the elements followed by a bias, which is a layer's where it follows one."""
    if square == 0:
        return elements
    match elements:
        case (*before, Dense() as last):
            return (*before, last._replace(bias_variance=last.bias_variance + square))
        case (*before, Affine() as last):
            return (*before, last._replace(shift=last.shift + square))
        case _:
            return (*elements, Affine(1.0, square))
