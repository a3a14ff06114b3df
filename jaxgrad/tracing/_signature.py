"""What a function is traced with and what it returns: arrays, and constants that are no arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxgrad._checks import message
from jaxgrad._paths import path_names
from jaxgrad.tracing._interpret import Owner


class Signature(NamedTuple):
    """What a network was traced with: the tree of its inputs, which leaves are arrays, and the values of the rest."""

    treedef: Any
    avals: tuple[Any, ...]
    static: tuple[tuple[int, Any], ...]


class Traced(NamedTuple):
    """A function's jaxpr, before it is read.

    Attributes:
      closed: The jaxpr.
      signature: What it was traced with.
      owners: The parameters, by position among the arrays.
      out_tree: The tree of what the function returns, and which of its leaves are arrays.
      differentiated: How many of the flat outputs are differentiated.
    """

    closed: Any
    signature: Signature
    owners: dict[int, Owner]
    out_tree: Signature
    differentiated: int


def trace_for(
    function: str,
    fn: Callable[..., Any],
    params: Any,
    args: tuple[Any, ...],
    *,
    has_aux: bool = False,
    scalar: bool = False,
) -> Traced:
    """Trace on behalf of a public function, whose name its errors carry.

    Args:
      function: The public function's name.
      fn: What to trace.
      params: Its parameters.
      args: Its other arguments.
      has_aux: Whether it returns a pair.
      scalar: Whether what it returns must be a scalar loss.
    """
    if not callable(fn):
        raise TypeError(
            message(function, "a function of (params, *args)", f"{type(fn).__name__}", "pass the loss first")
        )
    signature, arrays, owners = sign(function, params, args)

    if scalar and any(isinstance(array, Tracer) for array in arrays):
        remedy = "call it outside of jit, vmap and grad, on the arrays themselves"
        raise TypeError(message(function, "concrete arrays", "arrays that are being traced", remedy))
    outputs: list[Signature] = []

    def flat(arrays: list[Any]) -> list[Any]:
        params, args = merge(signature, arrays)
        leaves, treedef = jax.tree_util.tree_flatten(fn(params, *args), is_leaf=is_none)
        static = tuple((position, leaf) for position, leaf in enumerate(leaves) if not _is_output(leaf))
        outputs.append(Signature(treedef, (), static))
        return [leaf for leaf in leaves if _is_output(leaf)]

    closed, avals = jax.make_jaxpr(flat, return_shape=True)(arrays)
    out_tree = outputs[-1]._replace(avals=tuple(avals))
    shapes = merge(out_tree, avals)
    if scalar or has_aux:
        _check_output(function, shapes, has_aux, scalar)
    differentiated = sum(_is_output(leaf) for leaf in jax.tree_util.tree_leaves(shapes[0] if has_aux else shapes))
    return Traced(closed, signature, owners, out_tree, differentiated)


def sign(function: str, params: Any, args: tuple[Any, ...]) -> tuple[Signature, list[Any], dict[int, Owner]]:
    """Tell arrays from constants among the arguments.

    Returns:
      The signature, the arrays, and the parameters among them by position.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path((params, args), is_leaf=is_none)
    names = path_names([path[1:] for path, _ in flat])
    static: list[tuple[int, Any]] = []
    arrays: list[Any] = []
    owners: dict[int, Owner] = {}
    for position, (path, leaf) in enumerate(flat):
        is_parameter = path[0].idx == 0
        if not _is_array(leaf, is_parameter):
            static.append((position, leaf))
            continue
        name = names[position]
        array = jnp.asarray(leaf)
        if math.prod(array.shape) == 0 and (not is_parameter or array.ndim == 0):
            raise ValueError(
                message(
                    function,
                    "a batch of at least one example",
                    f"an empty array of shape {array.shape} as argument {name!r}",
                    "pass a batch with examples in it",
                )
            )
        if is_parameter:
            if jnp.issubdtype(array.dtype, jnp.inexact):
                owners[len(arrays)] = Owner(len(arrays), (), name or "params")
            elif (array.ndim and jnp.issubdtype(array.dtype, jnp.signedinteger)) or array.dtype in (
                jnp.uint8,
                jnp.bool_,
            ):
                raise TypeError(
                    message(
                        function,
                        "parameters of a floating-point type",
                        f"{array.dtype} with shape {array.shape} at {name!r}",
                        "cast it with .astype(jnp.float32), or pass it as an argument after params",
                    )
                )
        arrays.append(array)
    if not owners:
        raise ValueError(
            message(
                function,
                "parameters: a pytree with floating-point arrays",
                f"{_summary(params)}",
                "pass the model's parameters (or the model itself) right after the loss",
            )
        )
    avals = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays)
    return Signature(treedef, avals, tuple(static)), arrays, owners


def merge(signature: Signature, arrays: Iterable[Any]) -> Any:
    """Return a signature's tree from its arrays and its constants."""
    static, remaining = dict(signature.static), iter(arrays)
    leaves = [
        static[position] if position in static else next(remaining) for position in range(signature.treedef.num_leaves)
    ]
    return jax.tree_util.tree_unflatten(signature.treedef, leaves)


def is_none(leaf: Any) -> bool:
    return leaf is None


def _is_array(leaf: Any, is_parameter: bool) -> bool:
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        return not (isinstance(leaf, np.ndarray) and leaf.dtype.kind in "OUSV")
    return is_parameter and isinstance(leaf, float)


def same(value: Any, traced: Any) -> bool:
    if value is traced:
        return True
    try:
        return type(value) is type(traced) and bool(value == traced)
    except Exception:
        return False


def _summary(params: Any) -> str:
    leaves = jax.tree_util.tree_leaves(params)
    if not leaves:
        return f"{type(params).__name__} with no leaves"
    return f"leaves of type {', '.join(sorted({str(getattr(leaf, 'dtype', type(leaf).__name__)) for leaf in leaves}))}"


def _is_output(leaf: Any) -> bool:
    """Return whether a leaf that a function returns is an array or a number."""
    return isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic, float, int, complex))


def _summary_of_output(shapes: Any) -> str:
    if shapes is None or isinstance(shapes, str):
        return repr(shapes)
    if isinstance(shapes, jax.ShapeDtypeStruct):
        return f"an array of shape {shapes.shape} and type {shapes.dtype}"
    if isinstance(shapes, (tuple, list, dict)):
        return f"a {type(shapes).__name__} of {len(shapes)}"
    return f"a {type(shapes).__name__}"


def _check_output(function: str, shapes: Any, has_aux: bool, scalar: bool) -> None:
    """Refuse what is no pair where one is announced, and what is no scalar real loss where one is needed."""
    if has_aux and not (isinstance(shapes, tuple) and len(shapes) == 2):
        expected = "a function that returns (loss, aux), as has_aux=True says"
        raise TypeError(message(function, expected, _summary_of_output(shapes), "return a pair, or leave has_aux out"))
    if not scalar:
        return
    loss: Any = shapes[0] if has_aux else shapes
    expected = "a scalar floating-point loss"
    if not hasattr(loss, "dtype"):
        remedy = "return the loss alone, or (loss, aux) with has_aux=True"
        raise TypeError(message(function, expected, _summary_of_output(loss), remedy))
    if loss.shape:
        remedy = "reduce it over the batch, for example with jnp.mean(loss)"
        raise ValueError(message(function, expected, _summary_of_output(loss), remedy))
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        remedy = "return a real number, for example with jnp.real or .astype(jnp.float32)"
        raise TypeError(message(function, expected, _summary_of_output(loss), remedy))


def first_argument(signature: Signature) -> int:
    """Return the position of the first array that is an argument rather than a parameter."""
    params, _ = jax.tree_util.tree_unflatten(signature.treedef, range(signature.treedef.num_leaves))
    count = len(jax.tree_util.tree_leaves(params))
    return count - sum(position < count for position, _ in signature.static)
