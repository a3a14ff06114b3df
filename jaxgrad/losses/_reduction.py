"""The one place where a mean is taken."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Real

from jaxgrad._checks import message
from jaxgrad.losses._inputs import check_aligned, check_mask, computing_dtype, concrete, floating, real


def reduce(
    values: Float[ArrayLike, "*shape"],
    *,
    where: Bool[ArrayLike, "*mask"] | None = None,
    weights: Real[ArrayLike, "*weights"] | None = None,
    axis: int | Sequence[int] | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the weighted mean of the values that count.

    .. math:: \frac{\sum_i weights_i \, values_i}{\sum_i weights_i}

    Both sums are over the entries where ``where`` is true: the mean over what counts, not over the length of the axis.

    Args:
      values: Losses of any shape, floating.
      where: True for the entries that count; a scalar, or of the rank of ``values`` with each axis of the same length
        or 1, so a mask of rows is ``mask[:, None]``. ``None``: all.
      weights: Weights, 0 or more, with the shapes of ``where``. ``None``: 1 each. Only their ratios matter.
      axis: Axis or axes to reduce. ``None``: all. Static.

    Returns:
      Means of the shape of ``values`` without ``axis``, in the dtype of ``values``. Summed in float32 for bfloat16 and
      float16.

    Raises:
      TypeError: ``values`` is not floating, ``weights`` not real, ``where`` not boolean, or ``axis`` not of integers.
      ValueError: The shape of ``where`` or ``weights`` does not fit, ``axis`` is out of range or repeated, or a
        weight is negative (unless traced, where it cannot be seen).

    Numerics:
      Where nothing counts, or the weights sum to 0, the mean is 0 with gradient 0. A value that is masked or has
      weight 0 has no say in value or gradient, even if it is NaN or inf. The gradient for ``values`` is
      ``weights / sum(weights)``: its entries sum to 1.

    Example:
      >>> import jax.numpy as jnp
      >>> losses = jnp.array([1.0, 3.0, jnp.nan])
      >>> reduce(losses, where=jnp.array([True, True, False]), weights=jnp.array([3.0, 1.0, 1.0])).item()
      1.5

    See also:
      ``jnp.mean(values, where=where)``, NaN where nothing counts. Keras divides by the number of entries, not by the
      weights, with ``sum_over_batch_size``; PyTorch's class weights divide as here.
    """
    values = floating("reduce", "values", values)
    axes, shape, result = _check_axes(values, axis), values.shape, values.dtype
    computing = computing_dtype(result)
    values = values.astype(computing)
    if where is None and weights is None:
        count = math.prod(shape[one] for one in axes)
        return (jnp.sum(values, axis=axes) / max(count, 1)).astype(result)

    mask = check_mask("reduce", True if where is None else where, shape)
    values = jnp.where(mask, values, 0)
    if weights is None:
        # In float32 a count would stop at 2^24.
        total = jnp.sum(jnp.broadcast_to(mask, shape), axis=axes, dtype=jnp.int32).astype(computing)
    else:
        factors = check_aligned("reduce", "weights", real("reduce", "weights", weights), shape).astype(computing)
        _check_weights(weights, where)
        factors = jnp.where(mask, factors, 0)
        values = factors * jnp.where((factors == 0) & ~jnp.isfinite(values), 0, values)
        total = jnp.sum(jnp.broadcast_to(factors, shape), axis=axes)
    counts = total > 0
    mean = jnp.sum(values, axis=axes) / jnp.where(counts, total, 1)
    return jnp.where(counts, mean, 0).astype(result)


def _check_axes(values: Array, axis: Any) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(values.ndim))
    try:
        axes = tuple(operator.index(one) for one in (axis if isinstance(axis, Sequence) else (axis,)))
    except TypeError:
        raise TypeError(
            message("reduce", "axis as an integer or a tuple of integers", repr(axis), "leave axis out for all axes")
        ) from None
    inside = all(-values.ndim <= one < values.ndim for one in axes)
    if not inside or len({one % values.ndim for one in axes}) < len(axes):
        raise ValueError(
            message(
                "reduce", f"different axes of values of shape {values.shape}", f"axis={axis}", "leave it out for all"
            )
        )
    return axes


def _check_weights(weights: Any, where: Any) -> None:
    """Refuse negative weights, where they and the entries that count are known."""
    known, mask = concrete(weights), concrete(True if where is None else where)
    if known is not None and mask is not None and np.any((known < 0) & mask):
        raise ValueError(message("reduce", "weights of 0 or more", f"{known.min()}", "clip or shift the weights"))
