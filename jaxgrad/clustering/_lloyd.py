"""Lloyd's iteration on several starts at once, each in a lane that takes the next start when it has converged."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxgrad._rows import fold_blocks, psum
from jaxgrad.clustering._distances import Rows, nearest, own_costs
from jaxgrad.clustering._updates import Totals, means, medians, relocate, sum_by_label


class Plan(NamedTuple):
    """What is fixed before a fit is compiled.

    Attributes:
      metric: What is minimized: ``"euclidean"``, ``"manhattan"`` or ``"cosine"``; a Mahalanobis fit is a Euclidean one.
      block: How many rows are worked on at a time.
      axes: The mesh axes that the rows lie over; none on one device.
      max_steps: The most steps a start may take.
      weighted: Whether a weight may be anything but 1.
    """

    metric: str
    block: int
    axes: tuple[str, ...]
    max_steps: int
    weighted: bool


class Fit(NamedTuple):
    """The best start so far.

    Attributes:
      cost: Shape (); what all rows pay, infinite before the first start is done.
      centroids: Shape (k, d).
      labels: Shape (n,); which of these very centroids is nearest.
      num_steps: Shape ().
      converged: Shape ().
    """

    cost: Float[Array, ""]
    centroids: Float[Array, "k d"]
    labels: Int[Array, " n"]
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]


class Lanes(NamedTuple):
    """Starts under way.

    Attributes:
      start: Shape (lanes,); which one, or the number of starts where a lane has nothing left to do.
      centroids: Shape (lanes, k, d).
      labels: Shape (lanes, n); of the step before.
      num_steps: Shape (lanes,); steps taken.
      settled: Shape (lanes,); whether the last step moved the centroids by less than the tolerance.
    """

    start: Int[Array, " lanes"]
    centroids: Float[Array, "lanes k d"]
    labels: Int[Array, "lanes n"]
    num_steps: Int[Array, " lanes"]
    settled: Bool[Array, " lanes"]


def lloyd(
    rows: Rows, starts: Float[Array, "starts k d"], limit: Float[Array, ""], plan: Plan, num_lanes: int = 1
) -> Fit:
    """Run Lloyd's iteration from every start, and keep the best fit.

    Args:
      rows: The data.
      starts: First centroids.
      limit: The squared movement of all centroids together at which a start has converged.
      plan: What is fixed. Static.
      num_lanes: How many starts go side by side. Static.

    Returns:
      The fit that costs least; of those that differ by rounding, the first to be done.
    """
    num_starts = starts.shape[0]
    lanes = Lanes(
        start=jnp.arange(num_lanes, dtype=jnp.int32),
        centroids=starts[:num_lanes],
        labels=jnp.zeros((num_lanes, rows.values.shape[0]), jnp.int32),
        num_steps=jnp.zeros((num_lanes,), jnp.int32),
        settled=jnp.zeros((num_lanes,), bool),
    )

    def step(carry: tuple[Lanes, Fit]) -> tuple[Lanes, Fit]:
        lanes, best = carry
        labels, own = assign_all(rows, lanes.centroids, lanes.labels, plan)
        total = psum(own, plan.axes)
        # A start ends with the labels of the centroids it holds: one more assignment follows the last step.
        last = lanes.settled | (lanes.num_steps >= plan.max_steps)
        same = ~last & (total.changed == 0) & (lanes.num_steps > 0)
        done = (last | same) & (lanes.start < num_starts)
        num_steps = jnp.where(last, lanes.num_steps, lanes.num_steps + 1)
        ended = Fit(total.cost, lanes.centroids, labels, num_steps, lanes.settled | same)
        for lane in range(num_lanes):
            best = better(best, Fit(*(field[lane] for field in ended)), done[lane])

        moved = move(rows, lanes.centroids, labels, total, plan)
        settled = jnp.sum((moved - lanes.centroids) ** 2, axis=(1, 2)) <= limit
        waiting = jnp.max(lanes.start) + jnp.cumsum(done.astype(jnp.int32), dtype=jnp.int32)
        start = jnp.where(done, jnp.minimum(waiting, num_starts), lanes.start)
        fresh = starts.at[start].get(mode="clip")
        centroids = jnp.where(done[:, None, None], fresh, moved)
        return Lanes(start, centroids, labels, jnp.where(done, 0, num_steps), ~done & settled), best

    return lax.while_loop(lambda carry: jnp.any(carry[0].start < num_starts), step, (lanes, no_fit(rows, starts[0])))[1]


def no_fit(rows: Rows, centroids: Float[Array, "k d"]) -> Fit:
    """Compose the fit that any other is better than."""
    zero = jnp.zeros((), jnp.int32)
    labels = jnp.zeros((rows.values.shape[0],), jnp.int32)
    return Fit(jnp.full((), jnp.inf, centroids.dtype), centroids, labels, zero, zero > 0)


def better(best: Fit, fit: Fit, done: Bool[Array, ""] | bool = True) -> Fit:
    """Keep a fit that is done, if it costs less than the best by more than rounding."""
    wins = done & (fit.cost < best.cost * (1 - 1e-6))
    return Fit(*(jnp.where(wins, new, old) for new, old in zip(fit, best, strict=True)))


def assign_all(
    rows: Rows, centroids: Float[Array, "lanes k d"], before: Int[Array, "lanes n"], plan: Plan
) -> tuple[Int[Array, "lanes n"], Totals]:
    """Label every row, in each lane, and add up what the next centroids are made of.

    Args:
      rows: The data.
      centroids: Of each lane.
      before: Labels of the step before.
      plan: What is fixed. Static.

    Returns:
      The labels, and the totals of this device's rows alone.
    """
    k = centroids.shape[1]

    def step(carry: tuple[Array, Totals], start: Array | int, size: int) -> tuple[Array, Totals]:
        labels, total = carry
        points, weights = rows.block(start, size)
        found = nearest(points, centroids, plan.metric)
        # From an array that is not written to: XLA would copy the whole of it for every block.
        old = lax.dynamic_slice_in_dim(before, start, size, axis=1)
        part = block_totals(points, weights, found.labels, found.first, old, k, plan)
        return lax.dynamic_update_slice_in_dim(labels, found.labels, start, axis=1), jax.tree.map(jnp.add, total, part)

    start = jnp.zeros_like(before), no_totals(centroids)
    return fold_blocks(step, start, rows.values.shape[0], plan.block)


def no_totals(centroids: Float[Array, "lanes k d"]) -> Totals:
    """Compose the totals of no rows."""
    lanes, k, _ = centroids.shape
    dtype = centroids.dtype
    return Totals(
        jnp.zeros_like(centroids),
        jnp.zeros((lanes, k), dtype),
        jnp.zeros((lanes,), dtype),
        jnp.zeros((lanes,), jnp.int32),
    )


def block_totals(
    points: Array, weights: Array, labels: Array, cost: Array, before: Array, k: int, plan: Plan
) -> Totals:
    """Add up one block of rows, so that the totals of many are sums of sums and keep their digits."""
    return Totals(
        sum_by_label(weights[:, None] * points if plan.weighted else points, labels, k),
        sum_by_label(weights[:, None], labels, k)[..., 0],
        cost @ weights,
        jnp.sum((labels != before) & (weights > 0)[None], axis=1, dtype=jnp.int32),
    )


def move(
    rows: Rows, centroids: Float[Array, "lanes k d"], labels: Int[Array, "lanes n"], total: Totals, plan: Plan
) -> Float[Array, "lanes k d"]:
    """Compute the next centroids, those without rows among them."""
    relocated = relocate(rows, centroids, labels, total, plan.metric, plan.block, plan.axes)
    moved = means(relocated.sums, relocated.counts, centroids, plan.metric, rows.shift)
    if plan.metric == "manhattan":
        # A cluster that has just been given a row consists of it.
        of_rows = medians(rows, labels, total.counts, centroids, plan.block, plan.axes)
        return jnp.where(total.counts[..., None] > 0, of_rows, moved)
    return moved


def total_cost(rows: Rows, centroids: Float[Array, "k d"], labels: Int[Array, " n"], plan: Plan) -> Float[Array, ""]:
    """Sum what all rows pay for the centroid of their label, from differences: no digits cancel."""

    def step(cost: Array, start: Array | int, size: int) -> Array:
        points, weights = rows.block(start, size)
        mine = lax.dynamic_slice_in_dim(labels, start, size)
        if plan.metric == "manhattan":
            return cost + own_costs(points, centroids[None], mine[None], plan.metric)[0] @ weights
        away = points - centroids.at[mine].get(mode="promise_in_bounds")
        # Of a row, of a block, of all: a single sum of so many numbers loses digits.
        return cost + jnp.dot(jnp.sum(away**2, axis=1), weights, precision=lax.Precision.HIGHEST)

    return psum(fold_blocks(step, jnp.zeros((), centroids.dtype), labels.size, plan.block), plan.axes)
