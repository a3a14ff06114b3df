"""Convolutions in the one layout in which XLA's CPU compiler is fast inside a loop.

Outside of loops it brings every convolution into that layout itself. Inside one, a convolution in any other, such as
each transposed one, takes a path that was seen to be ten times slower than the same product outside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex
from jaxtyping import Array

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr"}
_ARGUMENTS = (
    "window_strides",
    "padding",
    "lhs_dilation",
    "rhs_dilation",
    "feature_group_count",
    "batch_group_count",
    "precision",
    "preferred_element_type",
)


def in_loops(function: Callable[[Array], Array], shape: tuple[int, ...], dtype: Any) -> Callable[[Array], Array]:
    """Return the function with its convolutions in the layout that is fast inside a loop.

    Args:
      function: Function of one array to another. Convolutions inside its own loops and branches stay as they are.
      shape: The array's shape.
      dtype: Its dtype.

    Returns:
      The same function.
    """
    closed = jax.make_jaxpr(function)(jnp.zeros(shape, dtype))
    return lambda x: _evaluate(closed, x)[0]


def _evaluate(closed: Any, *args: Any) -> list[Any]:
    jaxpr = closed.jaxpr
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))

    def read(atom):
        return atom.val if isinstance(atom, jex.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        name, operands = eqn.primitive.name, [read(atom) for atom in eqn.invars]
        if name == "conv_general_dilated":
            results = [_convolve(*operands, **eqn.params)]
        elif name in _CALLS:
            results = _evaluate(eqn.params[_CALLS[name]], *operands)
        else:
            bound = eqn.primitive.get_bind_params(eqn.params)
            functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair before jax 0.10
            results = eqn.primitive.bind(*functions, *operands, **params)
            results = results if eqn.primitive.multiple_results else [results]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _convolve(x: Array, kernel: Array, *, dimension_numbers: Any, **params: Any) -> Array:
    """Convolve with the features last, and the kernel's inputs before its outputs."""
    (batch, feature, *space), (out, into, *window), (out_batch, out_feature, *out_space) = dimension_numbers
    last = len(space) + 1
    inner = tuple(range(1, last))
    layout = lax.ConvDimensionNumbers((0, last, *inner), (last, last - 1, *range(last - 1)), (0, last, *inner))
    x = jnp.transpose(x, (batch, *space, feature))
    kernel = jnp.transpose(kernel, (*window, into, out))
    order = dict(zip((out_batch, *out_space, out_feature), range(last + 1), strict=True))
    params = {key: value for key, value in params.items() if key in _ARGUMENTS}
    y = lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **params)
    return jnp.transpose(y, [order[axis] for axis in range(last + 1)])
