"""The first two moments of rows, in blocks and over shards: data are centred first, and scaled by a power of two."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxgrad._rows import fold_blocks, gather, psum


class Survey(NamedTuple):
    """What one pass tells of the rows before anything is multiplied.

    Attributes:
      mean: Shape (d,); the weighted mean.
      low: Shape (d,); what rounding left out of it.
      scale: Shape (); a power of two that brings the largest deviation near one.
      count: Shape (); the number of rows, or the sum of their weights.
      peak: Shape (); the largest deviation from a point near the mean; not finite where an entry is not.
    """

    mean: Float[Array, " d"]
    low: Float[Array, " d"]
    scale: Float[Array, ""]
    count: Float[Array, ""]
    peak: Float[Array, ""]


class CentredRows(NamedTuple):
    """Centred rows, ``((values - mean) - low) * scale``, made a block at a time.

    Attributes:
      values: Shape (n, d); the rows of this shard.
      weights: Shape (n,); 0 for a row that takes no part. ``None`` for rows that all count once.
      mean: As in ``Survey``.
      low: As in ``Survey``.
      scale: As in ``Survey``.
    """

    values: Float[Array, "n d"]
    weights: Float[Array, " n"] | None
    mean: Float[Array, " d"]
    low: Float[Array, " d"]
    scale: Float[Array, ""]

    @property
    def block_size(self) -> int:
        """How many rows fit the cache beside what is made of them; more where there is a faster memory."""
        return block_size(*self.values.shape)

    def block(self, start: Array | int, size: int) -> tuple[Float[Array, "size d"], Float[Array, " size"] | None]:
        """Centre ``size`` rows from row ``start`` on, and return their weights with them."""
        values = lax.dynamic_slice_in_dim(self.values, start, size)
        centred = ((values - self.mean[None]) - self.low[None]) * self.scale
        if self.weights is None:
            return centred, None
        weights = lax.dynamic_slice_in_dim(self.weights, start, size)
        return jnp.where(weights[:, None] > 0, centred, 0), weights  # a row that takes no part may hold NaN

    def columns(self, start: Array | int, size: int) -> Float[Array, "n size"]:
        """Centre ``size`` columns from column ``start`` on, each row times the root of its weight."""
        narrow = self._replace(
            values=lax.dynamic_slice_in_dim(self.values, start, size, 1),
            mean=lax.dynamic_slice_in_dim(self.mean, start, size),
            low=lax.dynamic_slice_in_dim(self.low, start, size),
        )
        return narrow.whole()

    def whole(self) -> Float[Array, "n d"]:
        """Centre all rows of this shard, each times the root of its weight."""
        return self.rooted(0, self.values.shape[0])

    def rooted(self, start: Array | int, size: int) -> Float[Array, "size d"]:
        """Centre ``size`` rows from row ``start`` on, each times the root of its weight."""
        centred, weights = self.block(start, size)
        return centred if weights is None else centred * jnp.sqrt(weights)[:, None]


def survey(x: Float[Array, "n d"], weights: Float[Array, " n"] | None, axes: tuple[str, ...] = ()) -> Survey:
    """Pass over the rows once for their mean, in two floats, and their range.

    Args:
      x: The rows of this shard.
      weights: Their weights, or ``None``.
      axes: The axes of the mesh they are sharded over.

    Returns:
      The same on every shard.
    """
    num_rows, num_features = x.shape
    near = _near(x, weights, axes)
    zero, one = jnp.zeros((), x.dtype), jnp.ones((), x.dtype)
    rows = CentredRows(x, weights, near, jnp.zeros_like(near), one)

    def step(carry: tuple[Array, Array, Array], start: Array | int, size: int) -> tuple[Array, Array, Array]:
        total, count, peak = carry
        centred, mass = rows.block(start, size)
        peak = jnp.maximum(peak, jnp.max(jnp.abs(lax.stop_gradient(centred))))
        if mass is None:
            return total + jnp.sum(centred, axis=0), count + size, peak
        return total + jnp.sum(centred * mass[:, None], axis=0), count + jnp.sum(mass), peak

    carry = (jnp.zeros((num_features,), x.dtype), zero, zero)
    total, count, peak = fold_blocks(step, carry, num_rows, rows.block_size)
    total, count = psum((total, count), axes)
    peak = jnp.max(gather(peak, axes))
    mean, low = two_sum(near, total / jnp.where(count > 0, count, 1))
    return Survey(mean, low, _power_of_two(peak), count, peak)


def scatter(rows: CentredRows, axes: tuple[str, ...] = ()) -> Float[Array, "d d"]:
    """Sum the outer products of centred rows with themselves, each times its weight.

    XLA has no product that knows it is symmetric: of its blocks those under the diagonal are left out.

    Args:
      rows: The rows of this shard.
      axes: The axes of the mesh they are sharded over.

    Returns:
      The scatter matrix, exactly symmetric, and the same on every shard.
    """
    num_rows, num_features = rows.values.shape
    parts = 4 if num_features >= 64 else 1
    edges = [num_features * part // parts for part in range(parts + 1)]

    def step(strips: list[Array], start: Array | int, size: int) -> list[Array]:
        centred, weights = rows.block(start, size)
        weighted = centred if weights is None else centred * weights[:, None]
        return [
            strip + _across(weighted[:, edges[i] : edges[i + 1]], centred[:, edges[i] :])
            for i, strip in enumerate(strips)
        ]

    strips = [jnp.zeros((edges[i + 1] - edges[i], num_features - edges[i]), rows.values.dtype) for i in range(parts)]
    strips = psum(fold_blocks(step, strips, num_rows, rows.block_size), axes)
    above = jnp.concatenate([jnp.pad(strip, ((0, 0), (edges[i], 0))) for i, strip in enumerate(strips)])
    return jnp.triu(above) + jnp.triu(above, 1).T


def block_size(length: int, width: int) -> int:
    """Return into blocks of how many to cut ``length`` rows of this width."""
    size = max((1 << 19) // width, 256)
    return min(length, size if jax.default_backend() == "cpu" else 64 * size)


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum, and what rounding left out of it."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _across(a: Array, b: Array) -> Array:
    """Multiply ``a.T @ b`` in full precision, without the transpose."""
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)


def _near(x: Array, weights: Array | None, axes: tuple[str, ...]) -> Float[Array, " d"]:
    """Average some rows: deviations from a point among the data keep their digits, whatever its offset."""
    x, weights = lax.stop_gradient((x, weights))
    size = min(x.shape[0], 256)
    if weights is None:
        sample, counts = x[:size], jnp.ones((size,), jnp.bool_)
    else:
        first = jnp.argmax(weights > 0)
        sample = lax.dynamic_slice_in_dim(x, first, size)
        counts = lax.dynamic_slice_in_dim(weights, first, size) > 0
    inside = {"axis": 0, "where": counts[:, None]}
    # Of entries all near the top of the range the sum is infinite, but no average.
    mean = jnp.sum(sample / size, **inside) * (size / jnp.maximum(jnp.sum(counts), 1).astype(x.dtype))
    # A rounded mean of equal values would make a constant feature vary.
    mean = jnp.clip(mean, jnp.min(sample, initial=jnp.inf, **inside), jnp.max(sample, initial=-jnp.inf, **inside))
    means, any_counts = gather((mean, jnp.any(counts)), axes)
    return jnp.where(jnp.any(any_counts), means[jnp.argmax(any_counts)], 0)


def _power_of_two(peak: Array) -> Array:
    """Return a power of two near the inverse of a positive number, 1 for zero and what is not finite."""
    peak = lax.stop_gradient(peak)
    exponent = jnp.frexp(jnp.where((peak > 0) & jnp.isfinite(peak), peak, 1))[1]
    limit = -jnp.finfo(peak.dtype).minexp - 2
    return jnp.ldexp(jnp.ones((), peak.dtype), -jnp.clip(exponent, -limit, limit))
