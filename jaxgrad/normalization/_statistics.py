"""The statistics of a stream, each the sum of two floats, and how two of them make one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from jaxgrad._checks import message


class StandardizeRemainders(NamedTuple):
    """What rounding left out of each field of :class:`jaxgrad.normalization.StandardizeStats`, of the same shapes."""

    count: Float[Array, "*features"]
    mean: Float[Array, "*features"]
    variance: Float[Array, "*features"]


class StandardizeStats(NamedTuple):
    """Mean and variance of each feature, and how much data they come from.

    Attributes:
      count: Number of values seen, or the sum of their weights; 0 before the first.
      mean: Mean of each feature; 0 before the first value.
      variance: Mean squared deviation from the mean (divided by the count, with no correction); 0 for a constant.
      remainders: What is to be added to the three, each under half a unit in the last place of its field.
    """

    count: Float[Array, "*features"]
    mean: Float[Array, "*features"]
    variance: Float[Array, "*features"]
    remainders: StandardizeRemainders


def standardize_init(shape: Sequence[int], dtype: DTypeLike | None = None) -> StandardizeStats:
    """Make the statistics of no data, to start a stream from.

    ``count = mean = variance = 0``.

    Args:
      shape: Shape of a feature; ``()`` for one number. Static.
      dtype: Type of the statistics, float32 or float64; ``None``: JAX's default float.

    Returns:
      ``StandardizeStats`` of zeros. :func:`jaxgrad.normalization.standardize` with it changes nothing.

    Raises:
      TypeError: ``dtype`` is not float32 or float64.

    Example:
      >>> stats = standardize_init((2,))
      >>> stats.count.tolist()
      [0.0, 0.0]

    See also:
      :func:`jaxgrad.normalization.standardize_update`.
    """
    dtype = jax.dtypes.canonicalize_dtype(jnp.result_type(float) if dtype is None else dtype)
    if dtype not in (jnp.float32, jnp.float64):
        raise TypeError(
            message("standardize_init", "float32 or float64", f"{dtype}", "leave dtype out; the data may be narrower")
        )
    zeros = jnp.zeros(tuple(shape), dtype)
    return StandardizeStats(zeros, zeros, zeros, StandardizeRemainders(zeros, zeros, zeros))


def standardize_merge(a: StandardizeStats, b: StandardizeStats) -> StandardizeStats:
    r"""Compute the statistics of two sets of data from those of each.

    .. math::
      \mu = \mu_a + \frac{n_b}{n} \delta, \qquad
      \sigma^2 = \sigma_a^2 + \frac{n_b}{n}\left(\sigma_b^2 - \sigma_a^2 + \frac{n_a}{n} \delta^2\right), \qquad
      n = n_a + n_b, \quad \delta = \mu_b - \mu_a.

    Args:
      a: Statistics of some data.
      b: Statistics of other data, with the same features.

    Returns:
      ``StandardizeStats`` of the shapes and types of ``a``. Merging is associative and commutative up to rounding.

    Raises:
      ValueError: The shapes differ.

    Numerics:
      Exact where one side is empty, and where both are the same constant.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.normalization import standardize_fit
      >>> stats = standardize_merge(standardize_fit(jnp.array([0.0, 2.0])), standardize_fit(jnp.array([4.0])))
      >>> stats.count.item(), stats.mean.item(), round(stats.variance.item(), 4)
      (3.0, 2.0, 2.6667)

    References:
      :cite:p:`chan1983algorithms`, equation 2.1; :cite:p:`dekker1971floating` for the sums of two floats.

    See also:
      :func:`jaxgrad.normalization.standardize_pmerge`, over the devices of a mesh.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            message(
                "standardize_merge",
                f"statistics of the same features, of shape {a.mean.shape}",
                f"shape {b.mean.shape}",
                "fit both over the axes of the examples",
            )
        )
    b = jax.tree.map(lambda leaf: leaf.astype(a.mean.dtype), b)
    low_a, low_b = a.remainders, b.remainders
    count, count_low = _add(a.count, low_a.count, b.count, low_b.count)
    safe = jnp.where(count > 0, count, 1)
    share_a, share_b = a.count / safe, b.count / safe
    difference = (b.mean - a.mean) + (low_b.mean - low_a.mean)
    spread = (b.variance - a.variance) + (low_b.variance - low_a.variance)
    mean, mean_low = _add(a.mean, low_a.mean, share_b * difference)
    variance, variance_low = _add(a.variance, low_a.variance, share_b * (spread + share_a * difference * difference))
    merged = StandardizeStats(count, mean, variance, StandardizeRemainders(count_low, mean_low, variance_low))
    # Beside no data at all the difference to its mean, 0, would round.
    merged = jax.tree.map(lambda other, both: jnp.where(a.count == 0, other, both), b, merged)
    return jax.tree.map(lambda other, both: jnp.where(b.count == 0, other, both), a, merged)


def standardize_pmerge(stats: StandardizeStats, axis_name: str | Sequence[str]) -> StandardizeStats:
    r"""Compute the statistics of the data of all devices from those of each.

    .. math::
      \mu = \sum_i \frac{n_i}{n} \mu_i, \qquad
      \sigma^2 = \sum_i \frac{n_i}{n} \left(\sigma_i^2 + (\mu_i - \mu)^2\right).

    Args:
      stats: Statistics of the shard of this device, inside ``shard_map`` or ``vmap``.
      axis_name: Name of the mesh axis or axes, or of the mapped axis. Static.

    Returns:
      ``StandardizeStats`` of the same shapes, equal on all devices. Arrays sharded under ``jit`` alone have no need of
      it: :func:`jaxgrad.normalization.standardize_fit` is right for them.

    Raises:
      NameError: ``axis_name`` is not bound.

    Numerics:
      As :func:`jaxgrad.normalization.standardize_merge`. Merge the batches of one step, and the result into the stream;
      merging what is already merged counts the same data again.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxgrad.normalization import standardize_fit
      >>> fit = lambda shard: standardize_pmerge(standardize_fit(shard), "devices")
      >>> jax.vmap(fit, axis_name="devices")(jnp.arange(6.0).reshape(3, 2)).mean.tolist()
      [2.5, 2.5, 2.5]

    References:
      :cite:p:`chan1983algorithms`, section 2.

    See also:
      ``axis_name`` of ``flax.linen.BatchNorm``.
    """
    low = stats.remainders
    count, count_low = two_sum(jax.lax.psum(stats.count, axis_name), jax.lax.psum(low.count, axis_name))
    share = stats.count / jnp.where(count > 0, count, 1)
    seen = stats.count > 0
    mean = jax.lax.stop_gradient(stats.mean)
    # A rounded mean of equal means would make a constant feature vary.
    reference = jnp.clip(
        jax.lax.psum(jax.lax.stop_gradient(share) * mean, axis_name),
        jax.lax.pmin(jnp.where(seen, mean, jnp.inf), axis_name),
        jax.lax.pmax(jnp.where(seen, mean, -jnp.inf), axis_name),
    )
    reference = jnp.where(count > 0, reference, 0)
    difference = jnp.where(seen, (stats.mean - reference) + low.mean, 0)
    shift = jax.lax.psum(share * difference, axis_name)
    variance = jax.lax.psum(share * (stats.variance + low.variance + jnp.square(difference - shift)), axis_name)
    mean, mean_low = two_sum(reference, shift)
    return StandardizeStats(count, mean, variance, StandardizeRemainders(count_low, mean_low, jnp.zeros_like(variance)))


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum, and what rounding left out of it."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _add(high: Array, low: Array, more: Array, more_low: Array | None = None) -> tuple[Array, Array]:
    """Add to a number in two parts."""
    total, error = two_sum(high, more)
    error = error + low if more_low is None else error + (low + more_low)
    return two_sum(total, error)
