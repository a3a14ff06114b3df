"""Where distances are taken: centred and scaled, whitened, or on the unit sphere; there a fit is one of three kinds."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad._moments import CentredRows, scatter, survey
from jaxgrad._rows import fold_blocks, psum
from jaxgrad.clustering._distances import Rows


class Coordinates(NamedTuple):
    """A map ``((x - shift) * scale) @ whiten``, and back; for the cosine, the direction of ``x``.

    Attributes:
      shift: Shape (d,).
      scale: Shape (); a power of two.
      whiten: Shape (d, d), for ``"mahalanobis"``; ``None`` otherwise. A direction without variance is mapped to 0.
      colour: Shape (d, d); its inverse where it has one.
    """

    shift: Float[Array, " d"]
    scale: Float[Array, ""]
    whiten: Float[Array, "d d"] | None = None
    colour: Float[Array, "d d"] | None = None


def coordinates(
    x: Float[Array, "n d"],
    weights: Float[Array, " n"],
    covariance: Float[Array, "d d"] | None,
    metric: str,
    axes: tuple[str, ...] = (),
) -> Coordinates:
    """Choose where the distances of a metric are squared Euclidean, or Manhattan, ones of numbers near one.

    Args:
      x: This shard's rows.
      weights: Their weights, 0 where a row takes no part.
      covariance: For ``"mahalanobis"``; estimated from the rows if ``None``.
      metric: One of ``METRICS``. Static.
      axes: The mesh axes that the rows lie over. Static.

    Returns:
      The same on every shard.
    """
    if metric == "cosine":
        return Coordinates(jnp.zeros_like(x[0]), jnp.ones((), x.dtype))
    seen = survey(x, weights, axes)
    if metric != "mahalanobis":
        return Coordinates(seen.mean, seen.scale)
    if covariance is None:
        rows = CentredRows(x, weights, seen.mean, seen.low, seen.scale)
        total = scatter(rows, axes) / jnp.maximum(seen.count, 1)
        # Of the correlations: which directions have no variance must not depend on the features' units.
        unit = jnp.sqrt(jnp.diagonal(total))
        unit = jnp.where(unit > 0, unit, 1)
        variances, directions = jnp.linalg.eigh(total / unit[:, None] / unit[None])
        present = variances > jnp.max(variances) * jnp.finfo(x.dtype).eps * max(x.shape[1], 10)
        spread = jnp.sqrt(jnp.where(present, variances, 1))[None]
        directions = jnp.where(present[None], directions, 0)
        return Coordinates(
            seen.mean, seen.scale, directions / spread / unit[:, None], (directions * spread).T * unit[None]
        )
    # Of (scale² C): the factor of C itself could overflow once it is squared.
    lower = jnp.linalg.cholesky(covariance.astype(x.dtype)) * seen.scale
    whiten = jnp.linalg.inv(lower).T
    return Coordinates(seen.mean, seen.scale, whiten, lower.T)


def place(x: Float[Array, "n d"], weights: Float[Array, " n"], where: Coordinates, metric: str) -> Rows:
    """Bring rows to their coordinates: block by block as they are used, or here if that takes a product or a root."""
    if metric != "cosine" and where.whiten is None:
        return Rows(x, where.shift, where.scale, weights)
    taken = jnp.where(weights[:, None] > 0, x, 0)
    return Rows(forward(taken, where, metric), jnp.zeros_like(where.shift), jnp.ones_like(where.scale), weights)


def forward(x: Float[Array, "n d"], where: Coordinates, metric: str) -> Float[Array, "n d"]:
    """Map rows to their coordinates; the direction of a row of zeros is zero."""
    if metric == "cosine":
        return directions(x)
    x = (x - where.shift[None]) * where.scale
    return x if where.whiten is None else jnp.matmul(x, where.whiten, precision="highest")


def directions(x: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """Divide rows by their lengths; zero stays zero, with gradient zero, and nothing over- or underflows."""
    top = jnp.max(jnp.abs(x), axis=1, keepdims=True)
    x = x / jnp.where(top > 0, top, 1)
    squares = jnp.sum(x**2, axis=1, keepdims=True)
    return jnp.where(top > 0, x / jnp.sqrt(jnp.where(top > 0, squares, 1)), 0)


def backward(points: Float[Array, "k d"], where: Coordinates) -> Float[Array, "k d"]:
    """Map points back to the rows' own space."""
    if where.colour is not None:
        points = jnp.matmul(points, where.colour, precision="highest")
    return points / where.scale + where.shift[None]


def inertia(cost: Float[Array, "*any"], where: Coordinates, metric: str, zeros: Float[Array, "*any"]) -> Array:
    """Bring what rows pay in coordinates to the unit of the metric.

    Args:
      cost: Sums of squared distances, or of distances for ``"manhattan"``.
      where: Their coordinates.
      metric: The metric. Static.
      zeros: For ``"cosine"``, the weight of rows that have no direction, whose distance is 1; they paid 1 of 2.
    """
    if metric == "cosine":
        return 0.5 * (cost + zeros)
    if metric == "mahalanobis":
        return cost
    return cost / where.scale if metric == "manhattan" else cost / where.scale / where.scale


def mean_variance(rows: Rows, block: int, axes: tuple[str, ...]) -> Float[Array, ""]:
    """Average the features' variances over the rows that take part, each counted once, in coordinates."""
    start = jnp.zeros_like(rows.shift), jnp.zeros_like(rows.scale), jnp.zeros_like(rows.scale)

    def step(carry: tuple[Array, Array, Array], start: Array | int, size: int) -> tuple[Array, Array, Array]:
        points, weights = rows.block(start, size)
        total, squares, count = carry
        taken = (weights > 0).astype(points.dtype)
        squares = squares + jnp.vdot(points, points, precision="highest")
        return total + jnp.dot(taken, points, precision="highest"), squares, count + jnp.sum(taken)

    total, squares, count = psum(fold_blocks(step, start, rows.weights.shape[0], block), axes)
    count = jnp.maximum(count, 1)
    return jnp.maximum(squares - jnp.sum(total**2) / count, 0) / count / total.shape[0]
