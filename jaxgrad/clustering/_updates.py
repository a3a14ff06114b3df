"""From labels to the next centroids: means, directions or medians, and a new place for a centroid that has no rows."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxgrad._rows import fold_blocks, gather, psum
from jaxgrad.clustering._distances import Rows, own_costs


class Totals(NamedTuple):
    """What a pass over the rows adds up, in each lane.

    Attributes:
      sums: Shape (lanes, k, d); the weighted rows of each cluster.
      counts: Shape (lanes, k); their weights.
      cost: Shape (lanes,); what all rows pay.
      changed: Shape (lanes,); how many rows have another label than before.
    """

    sums: Float[Array, "lanes k d"]
    counts: Float[Array, "lanes k"]
    cost: Float[Array, " lanes"]
    changed: Int[Array, " lanes"]


def sum_by_label(values: Float[Array, "m d"], labels: Int[Array, "lanes m"], k: int) -> Float[Array, "lanes k d"]:
    """Sum rows by their label, in each lane.

    Args:
      values: Rows, already weighted.
      labels: Labels below ``k``.
      k: How many sums there are. Static.

    Returns:
      The sums.
    """
    lanes = labels.shape[0]

    def scatter() -> Array:
        return jax.ops.segment_sum(values, labels[0], k, mode="promise_in_bounds")[None]

    def multiply() -> Array:
        of_cluster = (labels[:, None] == jnp.arange(k, dtype=labels.dtype)[None, :, None]).astype(values.dtype)
        products = (((2,), (0,)), ((), ()))
        return lax.dot_general(of_cluster, values, products, precision=lax.Precision.HIGHEST)

    # A scatter is a plain loop on CPU, and a queue for few places on a GPU; lanes share one product anywhere.
    return multiply() if lanes > 1 else lax.platform_dependent(cpu=scatter, default=multiply)


def means(
    sums: Float[Array, "lanes k d"],
    counts: Float[Array, "lanes k"],
    centroids: Float[Array, "lanes k d"],
    metric: str,
    shift: Float[Array, " d"],
) -> Float[Array, "lanes k d"]:
    """Compute the next centroids: weighted means, and for ``"cosine"`` their directions.

    Args:
      sums: Of the centred rows, times their weights.
      counts: Of the weights.
      centroids: The ones before: without rows, or with rows that cancel, a centroid stays where it is.
      metric: The metric. Static.
      shift: What centring took away; a direction is that of the whole.

    Returns:
      The centroids, in the coordinates of the sums.
    """
    present = counts > 0
    mean = sums / jnp.where(present, counts, 1)[..., None]
    if metric == "cosine":
        whole = mean + shift[None, None]
        length = jnp.sqrt(jnp.sum(whole**2, axis=-1))
        present = present & (length > 0)
        mean = whole / jnp.where(present, length, 1)[..., None] - shift[None, None]
    return jnp.where(present[..., None], mean, centroids)


def medians(
    rows: Rows, labels: Int[Array, "lanes n"], counts: Array, centroids: Array, block: int, axes: tuple[str, ...]
) -> Float[Array, "lanes k d"]:
    """Compute the weighted median of each feature in each cluster, by bisection over all floats.

    Neither a sort nor a copy of the data: a pass over the rows a bit of the dtype, and what travels between shards is
    k × d. Between two middle rows the median is halfway, as in ``numpy.median``.
    """
    lanes, k, _ = centroids.shape
    n = rows.values.shape[0]
    half = 0.5 * counts[:, :, None]

    def fold(of_block, total: Array, combine) -> Array:
        def step(total: Array, start: Array | int, size: int) -> Array:
            points, weights = rows.block(start, size)
            mine = lax.dynamic_slice_in_dim(labels, start, size, axis=1)
            return combine(total, jnp.stack([of_block(points, weights, mine[lane], lane) for lane in range(lanes)]))

        return fold_blocks(step, total, n, block)

    def weight_up_to(bound: Array) -> Array:
        def of_block(points: Array, weights: Array, mine: Array, lane: int) -> Array:
            below = points <= bound[lane].at[mine].get(mode="promise_in_bounds")
            return sum_by_label(jnp.where(below, weights[:, None], 0), mine[None], k)[0]

        return psum(fold(of_block, jnp.zeros_like(centroids), jnp.add), axes)

    def halve(_: Array | int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low & high) + ((low ^ high) >> 1)  # their mean, without overflow
        enough = weight_up_to(_float(middle)) >= half
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    largest = jnp.full_like(centroids, jnp.finfo(centroids.dtype).max)
    bits = 8 * centroids.dtype.itemsize
    lower = _float(lax.fori_loop(0, bits, halve, (_ordered(-largest), _ordered(largest)))[1])

    def next_above(points: Array, weights: Array, mine: Array, lane: int) -> Array:
        above = (points > lower[lane].at[mine].get(mode="promise_in_bounds")) & (weights > 0)[:, None]
        return jax.ops.segment_min(jnp.where(above, points, jnp.inf), mine, k, mode="promise_in_bounds")

    upper = fold(next_above, jnp.full_like(centroids, jnp.inf), jnp.minimum)
    upper = lax.pmin(upper, axes) if axes else upper
    between = (weight_up_to(lower) == half) & jnp.isfinite(upper)
    return jnp.where(counts[:, :, None] > 0, jnp.where(between, 0.5 * (lower + upper), lower), centroids)


def _ordered(x: Array) -> Array:
    """Map floats to integers of the same order, by their bits."""
    bits = lax.bitcast_convert_type(x, jnp.int32 if x.dtype == jnp.float32 else jnp.int64)
    return bits ^ (bits >> (8 * x.dtype.itemsize - 1) & jnp.iinfo(bits.dtype).max)


def _float(ordered: Array) -> Array:
    """Map the integers of ``_ordered`` back."""
    bits = ordered ^ (ordered >> (8 * ordered.dtype.itemsize - 1) & jnp.iinfo(ordered.dtype).max)
    return lax.bitcast_convert_type(bits, jnp.float32 if bits.dtype == jnp.int32 else jnp.float64)


def relocate(
    rows: Rows,
    centroids: Float[Array, "lanes k d"],
    labels: Int[Array, "lanes n"],
    total: Totals,
    metric: str,
    block: int,
    axes: tuple[str, ...],
) -> Totals:
    """Give each cluster without rows the row that pays most, taken from the sums of the cluster it was in.

    What all rows pay falls with every such move, so none can be repeated for ever; a row that lies on its centroid,
    up to rounding, and the last row of a cluster stay where they are.
    """
    lanes, k, d = centroids.shape

    def farthest(so_far: tuple[Array, Array], start: Array | int, size: int) -> tuple[Array, Array]:
        points, weights = rows.block(start, size)
        mine = lax.dynamic_slice_in_dim(labels, start, size, axis=1)
        paid = jnp.where(weights[None] > 0, own_costs(points, centroids, mine, metric), -1)
        indices = jnp.broadcast_to(
            (jnp.arange(size, dtype=jnp.int32) + jnp.asarray(start, jnp.int32))[None], paid.shape
        )
        paid, at = lax.top_k(jnp.concatenate([so_far[0], paid], axis=1), k)
        return paid, jnp.take_along_axis(jnp.concatenate([so_far[1], indices], axis=1), at, axis=1)

    def moved() -> tuple[Array, Array]:
        nothing = jnp.full((lanes, k), -1, centroids.dtype), jnp.zeros((lanes, k), jnp.int32)
        paid, indices = fold_blocks(farthest, nothing, rows.values.shape[0], block)
        points, weights = rows.take(indices.reshape(-1))
        donors = jnp.take_along_axis(labels, indices, axis=1)
        found = paid, donors, weights.reshape(lanes, k), points.reshape(lanes, k, d)
        # Of every shard's candidates, shard after shard, the k best.
        everywhere = jax.tree.map(lambda leaf: _side_by_side(gather(leaf, axes)), found)
        _, best = lax.top_k(everywhere[0], k)
        return jax.vmap(_move)(total.sums, total.counts, *(_pick(leaf, best) for leaf in everywhere))

    sums, counts = lax.cond(jnp.any(total.counts == 0), moved, lambda: (total.sums, total.counts))
    return total._replace(sums=sums, counts=counts)


def _side_by_side(gathered: Array) -> Array:
    """Reshape (shards, lanes, k, ...) to (lanes, shards * k, ...)."""
    swapped = jnp.swapaxes(gathered, 0, 1)
    return swapped.reshape(swapped.shape[0], -1, *swapped.shape[3:])


def _pick(leaf: Array, best: Array) -> Array:
    """Take each lane's best candidates."""
    return jax.vmap(lambda values, at: values[at])(leaf, best)


def _move(sums: Array, counts: Array, paid: Array, donors: Array, weights: Array, points: Array) -> tuple[Array, Array]:
    """Go through the clusters of one lane, and through its farthest rows as far as clusters are empty."""
    noise = (8 * jnp.finfo(points.dtype).eps) ** 2 * (1 + jnp.sum(points**2, axis=-1))

    def step(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        sums, counts, used = carry
        donor, weight, point = donors[used], weights[used], weights[used] * points[used]
        empty = counts[j] == 0
        yes = empty & (paid[used] > noise[used]) & (counts[donor] > weight * (1 + 1e-6))
        amount = jnp.where(yes, weight, 0)
        rows = jnp.where(yes, point, 0)
        counts = counts.at[donor].add(-amount).at[j].add(amount)
        return sums.at[donor].add(-rows).at[j].add(rows), counts, used + empty.astype(jnp.int32)

    sums, counts, _ = lax.fori_loop(0, counts.shape[0], step, (sums, counts, jnp.zeros((), jnp.int32)))
    return sums, counts
