"""Mean and variance of each feature, of an array or of one more batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Num, Shaped

from jaxgrad._checks import message
from jaxgrad.normalization._axes import check_axes, check_data, feature_axes
from jaxgrad.normalization._statistics import StandardizeRemainders, StandardizeStats, standardize_merge, two_sum

OnNonfinite = Literal["propagate", "omit", "raise"]


def standardize_fit(
    x: Shaped[Array | np.ndarray, " *shape"],
    *,
    axis: int | Sequence[int] | None = 0,
    where: Bool[Array | np.ndarray, " *masked"] | None = None,
    weights: Num[Array | np.ndarray, " *weighted"] | None = None,
    on_nonfinite: OnNonfinite = "propagate",
) -> StandardizeStats:
    r"""Compute mean and variance of each feature.

    .. math::
      \mu = \frac{\sum_i w_i x_i}{\sum_i w_i}, \qquad \sigma^2 = \frac{\sum_i w_i (x_i - \mu)^2}{\sum_i w_i}.

    Args:
      x: Data of any real type and shape; integers, booleans and types under 32 bits are converted to float32.
      axis: Axis or axes to take the statistics over, the others are features: 0 for (examples, features), ``(0, 1, 2)``
        for images with channels last, ``None`` for all. Static.
      where: Which values count; ``None`` for all. Its axes are the first axes of ``x``, each of the same size or 1: a
        mask of shape (examples,) masks examples, one of the shape of ``x`` single values.
      weights: Weight of each value, not negative; shaped as ``where``. ``None`` for 1.
      on_nonfinite: What to do with NaN and infinities: ``"propagate"`` them to the statistics of their feature,
        ``"omit"`` them, or ``"raise"``. Traced values cannot be looked at, and ``"raise"`` propagates. Static.

    Returns:
      ``StandardizeStats(count, mean, variance, remainders)``, each of the shape of a feature, float32 (float64 for
      float64 data).

    Raises:
      TypeError: ``x`` is complex, or ``where`` not boolean.
      ValueError: ``axis`` is out of range, ``where`` or ``weights`` do not fit ``x``, a weight is negative, or, with
        ``on_nonfinite="raise"``, a value that counts is not finite.

    Numerics:
      Two passes about a first estimate of the mean: the variance is right to float32 rounding for data of any offset.
      A constant feature has variance 0 exactly, and its own value for mean. With no values the count is 0, and so are
      the others. Deviations under 1e-19 or over 1e19 have squares that leave float32. 32-bit integers over ``2**24``
      are rounded. Masked values, and those of weight 0, negative or NaN, may be anything, and have gradient 0.

    Example:
      >>> import jax.numpy as jnp
      >>> stats = standardize_fit(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
      >>> stats.mean.tolist(), stats.variance.tolist()
      ([2.0, 5.0], [1.0, 0.0])

    References:
      :cite:p:`chan1983algorithms`, equation 1.7, the corrected two-pass algorithm. :cite:p:`lecun1998efficient`,
      section 4.3, for why.

    See also:
      ``sklearn.preprocessing.StandardScaler.fit``, ``keras.layers.Normalization.adapt``.
    """
    x = check_data("standardize_fit", x)
    axes = check_axes("standardize_fit", axis, x.ndim)
    valid = _check_mask("standardize_fit", where, x)
    mass = _check_weights("standardize_fit", weights, x)
    valid = _check_finite("standardize_fit", x, valid & (mass > 0), on_nonfinite)
    return _fit(x, jnp.where(valid, mass, 0), valid, axes)


def standardize_update(
    stats: StandardizeStats,
    batch: Shaped[Array | np.ndarray, " *shape"],
    *,
    axis: int | Sequence[int] | None = None,
    where: Bool[Array | np.ndarray, " *masked"] | None = None,
    weights: Num[Array | np.ndarray, " *weighted"] | None = None,
    on_nonfinite: OnNonfinite = "propagate",
) -> StandardizeStats:
    r"""Take a batch into the statistics of a stream.

    ``standardize_merge(stats, standardize_fit(batch))``, in one pass over the stream and constant memory.

    Args:
      stats: Statistics so far, from :func:`jaxgrad.normalization.standardize_init` or ``standardize_fit``.
      batch: More data, of any number of examples, none included.
      axis: Axis or axes of the batch that are no features; ``None`` for the leading ones. Static.
      where: As in :func:`jaxgrad.normalization.standardize_fit`.
      weights: As in ``standardize_fit``.
      on_nonfinite: As in ``standardize_fit``. With ``"propagate"`` one NaN stays in its feature for good.

    Returns:
      ``StandardizeStats`` of the shapes and types of ``stats``, so that it can be the carry of a ``scan``.

    Raises:
      TypeError: As in ``standardize_fit``.
      ValueError: As in ``standardize_fit``, or the features of the batch are not those of ``stats``.

    Numerics:
      The same as of all data at once to float32 rounding, however many and small the batches: the count is exact to
      ``2**48``, where a float32 alone would stop at ``2**24`` examples.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.normalization import standardize_init
      >>> stats = standardize_init((1,))
      >>> for batch in jnp.arange(6.0).reshape(3, 2, 1):
      ...     stats = standardize_update(stats, batch)
      >>> stats.count.item(), stats.mean.item()
      (6.0, 2.5)

    References:
      :cite:p:`welford1962note` for one value at a time; :cite:p:`chan1983algorithms`, equation 2.1, for batches.

    See also:
      ``sklearn.preprocessing.StandardScaler.partial_fit``.
    """
    x = check_data("standardize_update", batch)
    axes = feature_axes("standardize_update", stats.mean.shape, x, axis)
    valid = _check_mask("standardize_update", where, x)
    mass = _check_weights("standardize_update", weights, x)
    valid = _check_finite("standardize_update", x, valid & (mass > 0), on_nonfinite)
    return standardize_merge(stats, _fit(x, jnp.where(valid, mass, 0), valid, axes))


def _fit(x: Array, mass: Array, valid: Array, axes: tuple[int, ...]) -> StandardizeStats:
    """The corrected two-pass algorithm; the mass is zero where not valid."""
    x = jnp.where(valid, x, 0)
    count = jnp.sum(mass, axes, keepdims=True)
    share = mass / jnp.where(count > 0, count, 1)
    frozen, frozen_share = jax.lax.stop_gradient((x, share))
    # A rounded mean of equal values would make a constant feature vary.
    reference = jnp.clip(
        jnp.sum(frozen_share * frozen, axes, keepdims=True),
        jnp.min(frozen, axes, keepdims=True, initial=jnp.inf, where=valid),
        jnp.max(frozen, axes, keepdims=True, initial=-jnp.inf, where=valid),
    )
    reference = jnp.where(count > 0, reference, 0)
    deviation = jnp.where(valid, x - reference, 0)
    shift = jnp.sum(share * deviation, axes, keepdims=True)
    variance = jnp.sum(share * jnp.square(jnp.where(valid, deviation - shift, 0)), axes)
    mean, mean_low = two_sum(jnp.squeeze(reference, axes), jnp.squeeze(shift, axes))
    zeros = jnp.zeros_like(variance)
    return StandardizeStats(jnp.squeeze(count, axes), mean, variance, StandardizeRemainders(zeros, mean_low, zeros))


def _check_mask(function: str, where: Any, x: Array) -> Array:
    if where is None:
        return jnp.ones(x.shape, jnp.bool_)
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_:
        raise TypeError(
            message(function, "a boolean where", f"{where.dtype}", "compare: where != 0; or pass it as weights")
        )
    return _spread(function, "where", where, x)


def _check_weights(function: str, weights: Any, x: Array) -> Array:
    if weights is None:
        return jnp.ones(x.shape, x.dtype)
    weights = jnp.asarray(weights).astype(x.dtype)
    if not isinstance(weights, Tracer) and bool(jnp.any(weights < 0)):
        raise ValueError(
            message(function, "weights of at least 0", f"{float(weights.min())}", "leave values out with weight 0")
        )
    return _spread(function, "weights", weights, x)


def _spread(function: str, name: str, values: Array, x: Array) -> Array:
    """Give an array over the first axes of ``x`` the shape of ``x``."""
    leading = x.shape[: values.ndim]
    if values.ndim > x.ndim or any(own not in (1, size) for own, size in zip(values.shape, leading, strict=True)):
        raise ValueError(
            message(
                function,
                f"{name} over the first axes of data of shape {x.shape}",
                f"shape {values.shape}",
                "give one value an example, or one for each value of the data",
            )
        )
    return jnp.broadcast_to(values.reshape((*values.shape, *(1,) * (x.ndim - values.ndim))), x.shape)


def _check_finite(function: str, x: Array, valid: Array, on_nonfinite: str) -> Array:
    """Return which values count after the policy."""
    if on_nonfinite not in ("propagate", "omit", "raise"):
        raise ValueError(
            message(function, "on_nonfinite 'propagate', 'omit' or 'raise'", repr(on_nonfinite), "take 'omit'")
        )
    if on_nonfinite == "propagate":
        return valid
    finite = jnp.isfinite(x)
    if on_nonfinite == "omit":
        return valid & finite
    bad = valid & ~finite
    if not isinstance(bad, Tracer) and bool(bad.any()):
        count = int(bad.sum())
        raise ValueError(
            message(
                function,
                "finite values",
                f"{count} of {math.prod(x.shape)} that are not",
                "mend them, or pass on_nonfinite='omit'",
            )
        )
    return valid
