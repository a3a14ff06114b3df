"""What one batch of rows gives: its moments, the totals that the next centroids are made of, the rows that pay most."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxgrad._inputs import rows_taken
from jaxgrad._moments import CentredRows, scatter, survey
from jaxgrad._rows import Shards, fold_blocks, gather, over_shards, psum
from jaxgrad.clustering._coordinates import Coordinates, forward, place
from jaxgrad.clustering._distances import Rows, nearest
from jaxgrad.clustering._inputs import block_size
from jaxgrad.clustering._updates import sum_by_label


class BatchTotals(NamedTuple):
    """What one batch adds up, over all its shards.

    Attributes:
      moved: Shape (k, d); the sum of the weighted differences of rows from their centroid, for ``"manhattan"`` of their
        signs. Unlike sums of rows they stay small where clusters are far from zero.
      spread: Shape (k, d); for ``"manhattan"`` that of their absolute values, else ``None``.
      counts: Shape (k,); the weights of the rows.
      cost: Shape (); what the rows pay, in coordinates.
      zeros: Shape (); the weight of rows without a direction.
      num_rows: Shape (); the number of rows that take part.
    """

    moved: Float[Array, "k d"]
    spread: Float[Array, "k d"] | None
    counts: Float[Array, " k"]
    cost: Float[Array, ""]
    zeros: Float[Array, ""]
    num_rows: Float[Array, ""]


class Moments(NamedTuple):
    """Of one batch, over all its shards; of directions for ``"cosine"``."""

    mean: Array
    low: Array
    square: Array
    scale: Array
    weight: Array
    num_rows: Array
    peak: Array
    bad: Array


def batch_totals(
    x: Float[Array, "n d"],
    mass: Float[Array, " n"],
    points: Float[Array, "k d"],
    where: Coordinates,
    metric: str,
    axes: tuple[str, ...] = (),
) -> tuple[BatchTotals, Int[Array, " n"], Float[Array, " n"]]:
    """Label the rows of a batch, and add up what the next centroids are made of.

    Args:
      x: This shard's rows.
      mass: Their weights, 0 where a row takes no part.
      points: The centroids, centred and scaled but not whitened; unit vectors for ``"cosine"``.
      where: The coordinates.
      metric: The metric. Static.
      axes: The mesh axes that the rows lie over. Static.

    Returns:
      The totals of all shards; and of this shard's rows the labels and what they pay.
    """
    k, d = points.shape
    plain = where._replace(whiten=None, colour=None)
    rows = place(x, mass, plain, metric)
    if metric == "cosine":
        # Centred, distances of rows that all point the same way keep their digits.
        rows = Rows(rows.values, jnp.mean(points, axis=0), rows.scale, rows.weights)
        points = points - rows.shift[None]
    block = block_size(None, x.shape[0], d, k)

    def whiten(values: Array) -> Array:
        return values if where.whiten is None else jnp.matmul(values, where.whiten, precision="highest")

    sought = whiten(points)[None]

    def step(
        carry: tuple[BatchTotals, Array, Array], start: Array | int, size: int
    ) -> tuple[BatchTotals, Array, Array]:
        total, labels, paid = carry
        values, weights = rows.block(start, size)
        mine = nearest(whiten(values), sought, metric).labels
        away = values - points.at[mine[0]].get(mode="promise_in_bounds")
        cost = jnp.sum(jnp.abs(away) if metric == "manhattan" else whiten(away) ** 2, axis=1)
        pull = jnp.sign(away) if metric == "manhattan" else away
        part = BatchTotals(
            moved=sum_by_label(weights[:, None] * pull, mine, k)[0],
            spread=sum_by_label(weights[:, None] * jnp.abs(away), mine, k)[0] if metric == "manhattan" else None,
            counts=sum_by_label(weights[:, None], mine, k)[0, :, 0],
            cost=cost @ weights,
            zeros=jnp.zeros_like(total.zeros),
            num_rows=jnp.sum(weights > 0, dtype=weights.dtype),
        )
        return (
            jax.tree.map(jnp.add, total, part),
            lax.dynamic_update_slice_in_dim(labels, mine[0], start, 0),
            lax.dynamic_update_slice_in_dim(paid, cost, start, 0),
        )

    zero, nothing = jnp.zeros((), points.dtype), jnp.zeros_like(points)
    spread = nothing if metric == "manhattan" else None
    empty = BatchTotals(nothing, spread, nothing[:, 0], zero, zero, zero)
    carry = empty, jnp.zeros(mass.shape, jnp.int32), jnp.zeros_like(mass)
    total, labels, paid = fold_blocks(step, carry, x.shape[0], block)
    if metric == "cosine":
        total = total._replace(zeros=jnp.sum(jnp.where(jnp.any(x != 0, axis=1), 0, mass)))
    return psum(total, axes), labels, paid


@partial(jax.jit, static_argnames=("metric", "layout"))
def batch_moments(x: Array, weights: Array | None, count: Array, *, metric: str, layout: Shards | None) -> Moments:
    """Survey one batch."""

    def run(axes: tuple[str, ...], x: Array, mass: Array, bad: Array) -> Moments:
        if metric == "cosine":
            x = forward(jnp.where(mass[:, None] > 0, x, 0), Coordinates(x[0], mass[0]), metric)
        found = survey(x, mass, axes)
        rows = CentredRows(x, mass, found.mean, found.low, found.scale)
        if metric == "mahalanobis":
            square = scatter(rows, axes)
        else:
            square = psum(jnp.sum(rows.whole() ** 2, axis=0), axes)
        num_rows = psum(jnp.sum(mass > 0, dtype=jnp.int32), axes)
        bad = psum(jnp.sum(bad, dtype=jnp.int32), axes)
        return Moments(found.mean, found.low, square, found.scale, found.count, num_rows, found.peak, bad)

    return _with_mass(run, x, weights, count, layout)


@partial(jax.jit, static_argnames=("metric", "layout"))
def totals(
    x: Array,
    weights: Array | None,
    count: Array,
    points: Array,
    where: Coordinates,
    *,
    metric: str,
    layout: Shards | None,
) -> BatchTotals:
    """Add up one batch."""

    def run(axes: tuple[str, ...], x: Array, mass: Array, _: Array, points: Array, where: Coordinates) -> BatchTotals:
        return batch_totals(x, mass, points, where, metric, axes)[0]

    return _with_mass(run, x, weights, count, layout, points, where)


@partial(jax.jit, static_argnames=("metric", "layout"))
def farthest(
    x: Array,
    weights: Array | None,
    count: Array,
    points: Array,
    where: Coordinates,
    *,
    metric: str,
    layout: Shards | None,
) -> tuple[Array, Array, Array, Array]:
    """Find the rows of a batch that pay most: what each pays, its label, its weight, and the row."""

    def run(axes: tuple[str, ...], x: Array, mass: Array, _: Array, points: Array, where: Coordinates) -> Any:
        labels, paid = batch_totals(x, mass, points, where, metric, axes)[1:]
        paid, index = lax.top_k(jnp.where(mass > 0, paid, -1), min(points.shape[0], mass.size))
        rows, _ = place(x, mass, where._replace(whiten=None), metric).take(index)
        found = gather((paid, labels[index], mass[index], rows), axes)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)

    return _with_mass(run, x, weights, count, layout, points, where)


@partial(jax.jit, static_argnames="layout")
def take(x: Array, mass: Array, index: Array, *, layout: Shards | None) -> tuple[Array, Array]:
    """Copy some rows and their weights to every device."""
    found = x.at[index].get(mode="clip"), mass.at[index].get(mode="clip")
    if layout is None:
        return found
    return lax.with_sharding_constraint(found, NamedSharding(layout.mesh, PartitionSpec()))


def _with_mass(run: Any, x: Array, weights: Array | None, count: Array, layout: Shards | None, *others: Any) -> Any:
    """Leave padding out, and let each device run a function on its own rows."""
    real = jnp.arange(x.shape[0], dtype=jnp.int32) < count
    mass, bad = rows_taken(x, weights)
    mass, bad = jnp.where(real, mass, 0), bad & real
    if layout is None:
        return run((), x, mass, bad, *others)
    whole, rows = PartitionSpec(), PartitionSpec(layout.axes)
    local = partial(run, layout.axes)
    return over_shards(local, layout, (rows, rows, rows, *(whole for _ in others)), whole)(x, mass, bad, *others)
