"""The dense Jacobian of a function of one array, a chunk of columns or rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad._checks import message
from jaxgrad.spectra._operators import check_function, flatten, push_forward, tree_size, unflatten


def layer_jacobian(
    f: Callable[[Any], Any],
    x: Any,
    *,
    mode: Literal["forward", "reverse"] | None = None,
    chunk_size: int | None = None,
) -> Float[Array, "out in"]:
    """Compute the Jacobian of ``f`` at ``x`` as one matrix.

    ``J[i, j] = d f(x)[i] / d x[j]``, with ``f(x)`` and ``x`` flattened in row-major order; of a pytree, leaf after
    leaf in the order of ``jax.tree.leaves``.

    Args:
      f: Function of one array or pytree of real floating arrays, to the same. Static under ``jit``.
      x: Where to differentiate; any shapes, scalars and empty arrays included. For a batch, ``vmap`` this function.
      mode: ``"forward"`` pushes one tangent a column, ``"reverse"`` pulls one cotangent a row; ``None`` takes the side
        with fewer of them, and the other one where ``f`` has only that. Static.
      chunk_size: How many tangents or cotangents go through ``f`` at once; the memory for intermediate values grows
        with it, the result does not depend on it. ``None``: all at once. Static.

    Returns:
      Array of shape (out_size, in_size), in the dtype of ``f(x)`` (the widest of its leaves).

    Raises:
      TypeError: A leaf of ``x`` or of ``f(x)`` is integer, boolean or complex.
      ValueError: ``mode`` is unknown, or ``chunk_size`` is not positive.

    Numerics:
      Entries are what ``f``'s derivative rules give, in the precision of ``f``: with float16 or bfloat16 inside, they
      carry two to three digits. At a kink JAX's convention holds (the derivative of ``relu`` at 0 is 0). Differentiable
      again, in any mode.

    Example:
      >>> import jax.numpy as jnp
      >>> layer_jacobian(lambda x: jnp.stack([x[0] * x[1], x[0]]), jnp.array([2.0, 3.0])).tolist()
      [[3.0, 2.0], [1.0, 0.0]]

    See also:
      ``jax.jacfwd`` and ``jax.jacrev`` keep the shapes of ``f(x)`` and ``x``, choose no side and know no chunks.
    """
    if mode not in (None, "forward", "reverse"):
        raise ValueError(
            message(
                "layer_jacobian", "mode 'forward', 'reverse' or None", repr(mode), "leave mode out to let it choose"
            )
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(
            message("layer_jacobian", "a positive chunk_size or None", repr(chunk_size), "pass None for one chunk")
        )
    x, out = check_function("layer_jacobian", f, x)
    forward = tree_size(x) <= tree_size(out) if mode is None else mode == "forward"
    try:
        return _jacobian(f, x, out, forward, chunk_size)
    except (TypeError, ValueError) as error:
        # A custom_vjp has no forward rule, a while_loop no reverse rule.
        missing = "custom_vjp" if forward else "Reverse-mode differentiation does not work"
        if mode is not None or missing not in str(error):
            raise
        return _jacobian(f, x, out, not forward, chunk_size)


def _jacobian(f: Callable, x: Any, out: Any, forward: bool, chunk_size: int | None) -> Array:
    in_size, out_size = tree_size(x), tree_size(out)
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*jax.tree.leaves(out)) if jax.tree.leaves(out) else jnp.result_type(float)
    if in_size == 0 or out_size == 0:
        return jnp.zeros((out_size, in_size), dtype)
    if forward:
        push = push_forward(f, x)
        columns = _map(lambda i: flatten(push(_unit(i, x, in_size)), dtype), in_size, chunk_size)
        return columns.T
    _, pull = jax.vjp(f, x)
    return _map(lambda i: flatten(pull(_unit(i, out, out_size))[0], dtype), out_size, chunk_size)


def _unit(index: Array, like: Any, size: int) -> Any:
    return unflatten(jnp.arange(size) == index, like)


def _map(function: Callable, size: int, chunk_size: int | None) -> Array:
    indices = jnp.arange(size)
    if chunk_size is None or chunk_size >= size:
        return jax.vmap(function)(indices)
    return jax.lax.map(function, indices, batch_size=chunk_size)
