"""The layers of a program: the equations that multiply an activation by a parameter, and the nonlinearities between."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend import core as jex

from jaxgrad.tracing._flatten import bodies
from jaxgrad.tracing._interpret import Equation, Owner, Program, Site


class Layer(NamedTuple):
    """An equation that multiplies an activation by a parameter.

    Attributes:
      name: Path of the parameter in the user's tree, such as ``params/Dense_3/kernel``; ``layers[3]/kernel`` for
        the fourth of the layers stacked in one leaf.
      operation: ``"dot_general"``, ``"conv_general_dilated"``, ``"gather"`` (an embedding), or the name of a call that
        is kept whole (``"custom_vjp_call"``, ``"cond"``, ``"while"``).
      parameters: Paths of all parameters the weight is made from.
      weight_shape: Shape of the weight as it enters the operation.
      input_shape: Shape of the activation that enters, for one step inside a loop.
      output_shape: Shape of the result, for one step inside a loop.
      dtype: Type of the result.
      repeats: How often the layer is applied: the number of steps inside a loop over time, else 1.
      use: 0 where the parameter is used first, 1 where it is used a second time, and so on.
      opaque: Whether the layer is a call that is kept whole, and may hold several products.
      block: Index of the block the layer belongs to (the first of them inside a loop), or ``None`` off the trunk.
      source: File, line and function in the user's code.
    """

    name: str
    operation: str
    parameters: tuple[str, ...]
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtype: str
    repeats: int
    use: int
    opaque: bool
    block: int | None
    source: str


class LayerSite(NamedTuple):
    """Where a layer stands in the program.

    Attributes:
      loops: The loops it stands in, outermost first, by number.
      equation: The equation.
      data: The operand that carries the activation.
      weight: The operand that carries the parameter.
      owners: The parameter leaves the weight is made from, the largest first.
      program: The program that holds the equation.
    """

    loops: Site
    equation: Equation
    data: int
    weight: int
    owners: tuple[Owner, ...]
    program: Program


_PRODUCTS = frozenset({"dot_general", "conv_general_dilated", "gather", "ragged_dot", "ragged_dot_general"})


def layer_sites(program: Program, path: frozenset[Site], loops: Site = ()) -> Iterator[LayerSite]:
    """Yield the layers on the path to the loss, in order of evaluation."""
    for position in program.layers:
        equation = program.equations[position]
        if not any((*loops, output) in path for output in equation.outputs):
            continue
        if equation.loop is not None:
            yield from layer_sites(equation.loop.body, path, (*loops, equation.outputs[0]))
            continue
        weights = [atom for atom in equation.operands if program.kinds[atom].owners]
        activations = [atom for atom in equation.operands if program.kinds[atom].data]
        weight = max(weights, key=lambda atom: (program.avals[atom].ndim, program.avals[atom].size))
        data = max(
            activations,
            key=lambda atom: (jnp.issubdtype(program.avals[atom].dtype, jnp.inexact), program.avals[atom].size),
        )
        owners = dict.fromkeys(program.kinds[weight].owners)
        if equation.operation not in _PRODUCTS:
            owners = dict.fromkeys(owner for atom in weights for owner in program.kinds[atom].owners)
        yield LayerSite(loops, equation, data, weight, tuple(owners), program)


def describe(site: LayerSite, main: Owner, repeats: int, use: int, block: int | None) -> Layer:
    """Return what the user sees of a layer."""
    equation, avals = site.equation, site.program.avals
    output = max(equation.outputs, key=lambda number: avals[number].size)
    return Layer(
        name=main.name,
        operation=equation.operation,
        parameters=tuple(owner.name for owner in site.owners),
        weight_shape=tuple(avals[site.weight].shape),
        input_shape=tuple(avals[site.data].shape),
        output_shape=tuple(avals[output].shape),
        dtype=str(avals[output].dtype),
        repeats=repeats,
        use=use,
        opaque=equation.operation not in _PRODUCTS,
        block=block,
        source=user_source(equation.source),
    )


def user_frame(source: Any) -> Any:
    """Return the innermost frame of the user's own code, or ``None``."""
    traceback = getattr(source, "traceback", None)
    if traceback is None:
        return None
    frames = list(traceback.frames)
    libraries = ("/jax/", "/jaxlib/", "/flax/", "/equinox/", "/optax/", "/jaxgrad/", "/jaxtyping/", "/beartype/")
    for frame in frames:
        name = frame.file_name.replace("\\", "/")
        if "/site-packages/" not in name and not any(part in name for part in libraries) and "<" not in name[:1]:
            return frame
    for frame in frames:
        if "/jax/" not in frame.file_name and "/jaxgrad/" not in frame.file_name:
            return frame
    return frames[0] if frames else None


def user_source(source: Any) -> str:
    """Return file, line and function of the user's code that asked for an operation."""
    frame = user_frame(source)
    if frame is None:
        return "unknown"
    return f"{frame.file_name}:{frame.line_num} ({frame.function_name.rsplit('.', 1)[-1]})"


# --- nonlinearities --------------------------------------------------------------------------------------------------


class Activation(NamedTuple):
    """A stretch of elementwise operations with a nonlinearity among them.

    Attributes:
      name: Name of the nonlinearity, as jax calls it.
      loops: The loops it stands in.
      start: Number of the value that enters (the preactivation).
      end: Number of the value that leaves.
      equations: The operations between.
    """

    name: str
    loops: Site
    start: int
    end: int
    equations: tuple[Equation, ...]


_LINEAR = frozenset({"add", "sub", "mul", "div", "neg", "convert_element_type", "copy", "add_any", "reduce_precision"})
_SMOOTH = frozenset(
    {"exp", "exp2", "log", "log1p", "expm1", "integer_pow", "square", "sqrt", "rsqrt", "pow", "abs", "cbrt"}
)
_BENDS = frozenset(
    {
        "tanh",
        "logistic",
        "erf",
        "erfc",
        "erf_inv",
        "max",
        "min",
        "clamp",
        "select_n",
        "sin",
        "cos",
        "tan",
        "atan",
        "asinh",
    }
)
_PREDICATES = frozenset({"gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not", "is_finite", "sign", "stop_gradient"})
_ELEMENTWISE = _LINEAR | _SMOOTH | _BENDS | _PREDICATES


def is_elementwise(equation: Equation) -> bool:
    """Return whether every entry of the result depends on the same entry of the operands alone."""
    return equation.operation in _ELEMENTWISE or _elementwise_call(equation.operation, equation.params)


def bends(equation: Equation) -> bool:
    """Return whether the operation is one of those that make a function an activation function."""
    if equation.operation in _BENDS:
        return True
    return _elementwise_call(equation.operation, equation.params) and any(
        inner.primitive.name in _BENDS for inner in _inner_equations(equation.params)
    )


def _elementwise_call(operation: str, params: Any) -> bool:
    calls = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
    if operation not in calls:
        return False
    inner = list(_inner_equations(params))
    free = {"broadcast_in_dim", *calls}
    return bool(inner) and all(eqn.primitive.name in _ELEMENTWISE | free for eqn in inner)


def _inner_equations(params: Any) -> Iterator[jex.JaxprEqn]:
    for body in bodies(params):
        for eqn in body.jaxpr.eqns:
            yield eqn
            yield from _inner_equations(eqn.params)


def activations(program: Program, path: frozenset[Site], loops: Site = ()) -> Iterator[Activation]:
    """Yield the nonlinearities on the path to the loss.

    Values are grouped by the value they are an elementwise function of (their root), with parameters and constants
    as the only other operands. A group that bends is an activation function, however it is written.
    """
    roots: dict[int, int] = {}
    steps: dict[int, list[Equation]] = {}
    for equation in program.equations:
        for output in equation.outputs:
            roots[output] = output
        if equation.loop is not None:
            yield from activations(equation.loop.body, path, (*loops, equation.outputs[0]))
        data = [atom for atom in equation.operands if program.kinds[atom].data]
        shared = {roots.get(atom, atom) for atom in data}
        if len(equation.outputs) != 1 or len(shared) != 1 or not is_elementwise(equation):
            continue
        (root,), (output,) = shared, equation.outputs
        if program.avals[root].shape == program.avals[output].shape:
            roots[output] = root
            steps.setdefault(root, []).append(equation)
    inside = {output: root for output, root in roots.items() if output != root}
    readers: dict[int, list[Equation]] = {}
    for equation in program.equations:
        for atom in equation.operands:
            readers.setdefault(atom, []).append(equation)
    for root, equations in steps.items():
        made = {equation.outputs[0] for equation in equations}
        if not _has_units(program, root) or not any(_shapes(equation, made) for equation in equations):
            continue
        for equation in equations:
            end = equation.outputs[0]
            escapes = any(reader.outputs[0] not in made for reader in readers.get(end, ()) if reader.outputs)
            escapes = escapes or end in program.outputs
            if not escapes or inside.get(end) != root or (*loops, end) not in path:
                continue
            needed = _ancestors(equations, end)
            if any(_shapes(step, made) for step in needed):
                start, end, needed = _trim(root, end, needed)
                yield Activation(_activation_name(needed), loops, start, end, tuple(needed))


def _shapes(equation: Equation, made: set[int]) -> bool:
    """Return whether an operation bends its operand, rather than masks it: a mask does not depend on what it masks."""
    predicate = equation.inputs[0]
    return bends(equation) and (not is_selection(equation) or (isinstance(predicate, int) and predicate in made))


def is_selection(equation: Equation) -> bool:
    """Return whether an operation takes each entry from one of its operands, by a predicate."""
    return equation.operation == "select_n" or equation.params.get("name") == "_where"


def _has_units(program: Program, number: int) -> bool:
    """Return whether a value has an axis of units, as layers' outputs have, and is no statistic over them."""
    shape = program.avals[number].shape
    layers = [program.avals[output].shape for place in program.layers for output in program.equations[place].outputs]
    alike = [made for made in layers if len(made) == len(shape)]
    reduced = 1 in shape[1:] and not any(1 in made[1:] for made in alike)
    return not reduced and any(size in made for size in shape[1:] or shape for made in alike)


def _trim(start: int, end: int, equations: list[Equation]) -> tuple[int, int, list[Equation]]:
    """Drop the shifts and scales before and after the nonlinearity itself."""
    made = {equation.outputs[0] for equation in equations}
    while equations:
        readers = [equation for equation in equations if start in equation.operands]
        if len(readers) != 1 or readers[0].operation not in _LINEAR or not made.isdisjoint(readers[0].operands):
            break
        start = readers[0].outputs[0]
        equations = [equation for equation in equations if equation is not readers[0]]
    while equations and equations[-1].operation in _LINEAR:
        inner = [atom for atom in equations[-1].operands if atom in made or atom == start]
        if len(set(inner)) != 1:
            break
        end = inner[0]
        equations = equations[:-1]
    return start, end, equations


def _ancestors(equations: list[Equation], end: int) -> list[Equation]:
    """Return those of the equations that ``end`` is computed by, in order."""
    wanted, kept = {end}, []
    for equation in reversed(equations):
        if wanted & set(equation.outputs):
            kept.append(equation)
            wanted.update(equation.operands)
    return kept[::-1]


def _activation_name(equations: list[Equation]) -> str:
    """Return the name of the function of ``jax.nn`` the equations were traced from, or of the operation that bends."""
    for equation in equations:
        inner = [eqn.params.get("name") for eqn in _inner_equations(equation.params)]
        names = [name for name in (equation.params.get("name"), *inner) if name and not name.startswith("_")]
        if names and bends(equation):
            return str(names[0])
    for equation in equations:
        traceback = getattr(equation.source, "traceback", None)
        for frame in traceback.frames if traceback is not None else ():
            if frame.file_name.replace("\\", "/").endswith("jax/_src/nn/functions.py"):
                return frame.function_name.rsplit(".", 1)[-1]
    names = [equation.operation for equation in equations if equation.operation in _BENDS]
    common = {"logistic": "sigmoid", "max": "relu", "select_n": "where"}
    return common.get(names[0], names[0]) if names else "elementwise"


def downstream(program: Program, start: int, ends: frozenset[int], stops: frozenset[int]) -> int | None:
    """Return the first value of ``ends`` computed from ``start`` before any value of ``stops``."""
    reached = {start}
    for equation in program.equations:
        if reached.isdisjoint(equation.operands):
            continue
        for output in equation.outputs:
            if output in ends:
                return output
            if output not in stops:
                reached.add(output)
    return None
