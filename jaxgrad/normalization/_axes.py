"""Which data can be standardized, and which of its axes are features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jaxgrad._checks import message


def check_data(function: str, x: Any, *, keep: bool = False) -> Array:
    """Return the data as an array to compute with, or in its own type."""
    x = jnp.asarray(x)
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == jnp.bool_):
        raise TypeError(
            message(function, "real data", f"{x.dtype}", "standardize real and imaginary part on their own")
        )
    return x if keep or x.dtype == jnp.float64 else x.astype(jnp.float32)


def check_axes(function: str, axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    axes = tuple(range(ndim)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    normal = tuple(sorted({axis % ndim for axis in axes})) if ndim else ()
    if any(not -ndim <= axis < ndim for axis in axes) or len(normal) < len(axes):
        raise ValueError(
            message(
                function,
                f"different axes of data with {ndim} axes",
                f"axis={axis}",
                "give the axes of the examples; a single example has none" if not ndim else "give each axis once",
            )
        )
    return normal


def feature_axes(function: str, shape: tuple[int, ...], x: Array, axis: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the axes of ``x`` that are no features."""
    axes = tuple(range(x.ndim - len(shape))) if axis is None else check_axes(function, axis, x.ndim)
    features = tuple(size for position, size in enumerate(x.shape) if position not in axes)
    if features != shape:
        raise ValueError(
            message(
                function,
                f"data with features of shape {shape}, as in the statistics",
                f"shape {x.shape}" + ("" if axis is None else f" with axis={axis}"),
                "put the features last, or say with axis which axes are none",
            )
        )
    return axes
