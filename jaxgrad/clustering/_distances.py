"""What a row pays for a centroid, in blocks of rows, so that no array of n × k or of n × k × d is made."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


class Rows(NamedTuple):
    """The data as k-means computes with it: ``(values - shift) * scale``, made a block at a time.

    Attributes:
      values: Shape (n, d); as the user gave it, whatever its dtype.
      shift: Shape (d,); the weighted mean, so that data far from zero keeps its digits.
      scale: Shape (); a power of two that brings the data near one, so that no square over- or underflows.
      weights: Shape (n,); 0 for a row that takes no part.
    """

    values: Array
    shift: Float[Array, " d"]
    scale: Float[Array, ""]
    weights: Float[Array, " n"]

    def block(self, start: Array | int, size: int) -> tuple[Float[Array, "size d"], Float[Array, " size"]]:
        """Compute ``size`` rows from row ``start`` on, and their weights; rows of weight 0 are zeros."""
        values = lax.dynamic_slice_in_dim(self.values, start, size)
        weights = lax.dynamic_slice_in_dim(self.weights, start, size)
        return self._placed(values, weights), weights

    def take(self, indices: Array) -> tuple[Float[Array, "m d"], Float[Array, " m"]]:
        """Compute the rows at some indices, and their weights; the last row where an index is out of range."""
        values = self.values.at[indices].get(mode="clip")
        weights = self.weights.at[indices].get(mode="clip")
        return self._placed(values, weights), weights

    def _placed(self, values: Array, weights: Array) -> Array:
        """Shift and scale rows; one that takes no part may hold NaN, which must not spread."""
        return jnp.where(weights[:, None] > 0, (values.astype(self.shift.dtype) - self.shift[None]) * self.scale, 0)


class Nearest(NamedTuple):
    """Of each point, in each lane, the nearest centroid and what it costs.

    Attributes:
      labels: Shape (lanes, m); the first of equals.
      first: Shape (lanes, m); what the nearest centroid costs: the squared distance, or the Manhattan distance.
      second: Shape (lanes, m); what the next one costs, infinite where there is none.
    """

    labels: Int[Array, "lanes m"]
    first: Float[Array, "lanes m"]
    second: Float[Array, "lanes m"]


def nearest(points: Float[Array, "m d"], centroids: Float[Array, "lanes k d"], metric: str) -> Nearest:
    """Find the two centroids nearest to each point.

    Args:
      points: Centred rows.
      centroids: In the same coordinates; each lane's are searched on their own.
      metric: ``"manhattan"``, or anything else for squared Euclidean distances. Static.

    Returns:
      Labels and costs.
    """
    lanes, k, d = centroids.shape
    ordered = jnp.swapaxes(centroids, 0, 1)
    if metric == "manhattan":
        return _fold(lambda j: jnp.sum(jnp.abs(points[None] - ordered[j][:, None]), axis=-1), lanes, k, points)
    squares = jnp.sum(ordered**2, axis=-1)
    products = _products(ordered.reshape(k * lanes, d), points)

    def fold() -> Nearest:
        def cost(j: Array) -> Array:
            return squares[j][:, None] - 2 * lax.dynamic_slice_in_dim(products, j * lanes, lanes)

        return _fold(cost, lanes, k, points)

    def reduce() -> Nearest:
        scores = squares[:, :, None] - 2 * products.reshape(k, lanes, -1)
        labels = jnp.argmin(scores, axis=0).astype(jnp.int32)
        others = jnp.where(jnp.arange(k, dtype=jnp.int32)[:, None, None] == labels[None], jnp.inf, scores)
        return Nearest(labels, jnp.min(scores, axis=0), jnp.min(others, axis=0))

    # XLA's argmin on CPU takes as long as the product; one vector of points at a time, it is nearly free.
    found = lax.platform_dependent(cpu=fold, default=reduce)
    norms = jnp.sum(points**2, axis=1)[None]
    return found._replace(first=jnp.maximum(found.first + norms, 0), second=jnp.maximum(found.second + norms, 0))


def costs(points: Float[Array, "m d"], centroids: Float[Array, "k d"], metric: str) -> Float[Array, "k m"]:
    """Compute what each point pays for each centroid: the squared distance, or for ``"manhattan"`` the distance.

    Args:
      points: Centred rows.
      centroids: In the same coordinates.
      metric: ``"manhattan"``, or anything else for squared Euclidean distances. Static.

    Returns:
      Centroids along the leading axis, so that a search over them runs along whole vectors of points.
    """
    if metric == "manhattan":
        return lax.map(lambda centroid: jnp.sum(jnp.abs(points - centroid[None]), axis=1), centroids)
    squares = jnp.sum(points**2, axis=1)[None] + jnp.sum(centroids**2, axis=1)[:, None]
    return jnp.maximum(squares - 2 * _products(centroids, points), 0)


def own_costs(
    points: Float[Array, "m d"], centroids: Float[Array, "lanes k d"], labels: Int[Array, "lanes m"], metric: str
) -> Float[Array, "lanes m"]:
    """Compute what each point pays for its own centroid, from their difference: no digits cancel."""
    own = jnp.take_along_axis(centroids, labels[:, :, None], axis=1, mode="clip")
    difference = points[None] - own
    return jnp.sum(jnp.abs(difference) if metric == "manhattan" else difference**2, axis=-1)


def _products(centroids: Float[Array, "k d"], points: Float[Array, "m d"]) -> Float[Array, "k m"]:
    """Multiply in full precision: the shortened products of a GPU would mislabel."""
    return lax.dot_general(centroids, points, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


def _fold(cost, lanes: int, k: int, points: Array) -> Nearest:
    """Go through the centroids with the best two of all points in hand."""

    def step(j: Array, so_far: Nearest) -> Nearest:
        value = cost(j)
        better = value < so_far.first
        second = jnp.minimum(so_far.second, jnp.maximum(so_far.first, value))
        return Nearest(jnp.where(better, j.astype(jnp.int32), so_far.labels), jnp.minimum(so_far.first, value), second)

    far = jnp.full((lanes, points.shape[0]), jnp.inf, points.dtype)
    start = Nearest(jnp.zeros(far.shape, jnp.int32), far, far)
    # One loop of XLA costs as much as the arithmetic of a block: four centroids an iteration.
    return lax.fori_loop(0, k, step, start, unroll=4)
