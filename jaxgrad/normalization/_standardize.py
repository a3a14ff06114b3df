"""Features of mean zero and variance one: fitted to an array, or to a stream of batches.

Every statistic is kept as a sum of two floats, so that a million small updates, and data far from zero, stay right in
float32::

    stats = standardize_init((num_features,))
    for batch in batches:
        stats = standardize_update(stats, batch)
    z = standardize(stats, x)
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxgrad._checks import message
from jaxgrad.normalization._axes import check_data, feature_axes
from jaxgrad.normalization._statistics import StandardizeStats


def standardize(
    stats: StandardizeStats,
    x: Shaped[Array | np.ndarray, " *shape"],
    *,
    axis: int | Sequence[int] | None = None,
    eps: float = 0.0,
) -> Float[Array, " *shape"]:
    r"""Shift and scale each feature to mean zero and variance one.

    .. math::
      z = \frac{x - \mu}{\sigma}, \qquad \sigma = 1 \text{ where } \sigma \le \text{eps}.

    Args:
      stats: Statistics, from :func:`jaxgrad.normalization.standardize_fit` or ``standardize_update``.
      x: Data with the same features.
      axis: Axis or axes of ``x`` that are no features; ``None`` for the leading ones, any number or none. Static.
      eps: Largest standard deviation, in the data's unit, that counts as a constant. At least 0. Static.

    Returns:
      An array of the shape of ``x``, in its type if that is floating, else in that of ``stats``.

    Raises:
      TypeError: ``x`` is complex.
      ValueError: The features of ``x`` are not those of ``stats``, or ``eps`` is negative.

    Numerics:
      A constant feature becomes 0 where it has its value, and ``x - mean`` elsewhere, with a finite gradient. Computed
      in float32 or wider, with both parts of the mean: at an offset of 1e8, right to the rounding of the data. NaN
      stays NaN, an infinity infinite.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.normalization import standardize_fit
      >>> stats = standardize_fit(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
      >>> standardize(stats, jnp.array([[3.0, 5.0]])).tolist()
      [[1.0, 0.0]]

    References:
      :cite:p:`lecun1998efficient`, section 4.3, which decorrelates the features too.

    See also:
      :func:`jaxgrad.normalization.unstandardize`; ``jax.nn.standardize``, with the statistics of the array itself;
      ``sklearn.preprocessing.StandardScaler.transform``.
    """
    x = check_data("standardize", x, keep=True)
    mean, low, scale = _parameters("standardize", stats, x, axis, eps)
    return _typed(((x.astype(mean.dtype) - mean) - low) / scale, x)


def unstandardize(
    stats: StandardizeStats,
    z: Shaped[Array | np.ndarray, " *shape"],
    *,
    axis: int | Sequence[int] | None = None,
    eps: float = 0.0,
) -> Float[Array, " *shape"]:
    r"""Give standardized features their mean and variance back: the inverse of ``standardize``.

    .. math::
      x = \sigma z + \mu, \qquad \sigma = 1 \text{ where } \sigma \le \text{eps}.

    Args:
      stats: Statistics, as they were given to :func:`jaxgrad.normalization.standardize`.
      z: Standardized data, or a prediction of them.
      axis: As in :func:`jaxgrad.normalization.standardize`. Static.
      eps: As in :func:`jaxgrad.normalization.standardize`. Static.

    Returns:
      An array of the shape of ``z``, in its type if that is floating, else in that of ``stats``.

    Raises:
      TypeError: ``z`` is complex.
      ValueError: The features of ``z`` are not those of ``stats``, or ``eps`` is negative.

    Numerics:
      Gives a constant feature back exactly, and others to the rounding of ``x``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.normalization import standardize_fit
      >>> stats = standardize_fit(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
      >>> unstandardize(stats, jnp.array([[1.0, 0.0]])).tolist()
      [[3.0, 5.0]]

    See also:
      ``sklearn.preprocessing.StandardScaler.inverse_transform``; ``keras.layers.Normalization(invert=True)``.
    """
    z = check_data("unstandardize", z, keep=True)
    mean, low, scale = _parameters("unstandardize", stats, z, axis, eps)
    return _typed((z.astype(mean.dtype) * scale + low) + mean, z)


def _parameters(
    function: str, stats: StandardizeStats, x: Array, axis: int | Sequence[int] | None, eps: float
) -> tuple[Array, Array, Array]:
    """Return both parts of the mean, and the scale, in the axes of ``x`` and the wider of the two types."""
    if not eps >= 0:
        raise ValueError(message(function, "eps of at least 0", f"eps={eps}", "leave it out for 0"))
    axes = feature_axes(function, stats.mean.shape, x, axis)
    variance = stats.variance + stats.remainders.variance
    constant = variance <= eps**2
    scale = jnp.where(constant, 1, jnp.sqrt(jnp.where(constant, 1, variance)))
    wide = jnp.float64 if x.dtype == jnp.float64 else stats.mean.dtype
    mean, low, scale = (
        jnp.expand_dims(value, axes).astype(wide) for value in (stats.mean, stats.remainders.mean, scale)
    )
    return mean, low, scale


def _typed(result: Array, like: Array) -> Array:
    return result.astype(like.dtype) if jnp.issubdtype(like.dtype, jnp.floating) else result
