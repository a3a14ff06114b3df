"""Lloyd's iteration that multiplies only the rows whose label may have changed, as Hamerly's bounds say."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxgrad._rows import fold_blocks, psum
from jaxgrad.clustering._distances import Rows, costs, nearest
from jaxgrad.clustering._lloyd import Fit, Plan, assign_all, block_totals, move, no_totals, total_cost
from jaxgrad.clustering._updates import Totals, sum_by_label

# Rows in doubt are gathered and searched on their own, so many at a time.
_GATHERED = 2048
# The share of the centroids, the fastest ones, that may be looked at on their own: one in so many.
_PART = 8
# Where bounds did not help they are left alone for a while, twice as long each time, up to so many steps.
_LONGEST_PAUSE = 8


class Bounds(NamedTuple):
    """What is known of every row without looking at it.

    Attributes:
      labels: Shape (n,); its centroid.
      upper: Shape (n,); at least its distance to that centroid.
      lower: Shape (n,); at most its distance to any other.
    """

    labels: Int[Array, " n"]
    upper: Float[Array, " n"]
    lower: Float[Array, " n"]


class State(NamedTuple):
    """A start under way.

    Attributes:
      centroids: Shape (k, d).
      bounds: For the centroids before these.
      known: Shape (); whether they hold; if not, only the labels do.
      wait: Shape (); for how many steps rows will be searched without asking for bounds.
      pause: Shape (); for how many that was so when bounds last did not help, 0 if they did.
      moved: Shape (k,); how far these have come from there.
      half_way: Shape (k,); half the distance from each to the nearest other one: a row nearer than that is its own.
      total: The totals of this device's rows alone, by the labels in ``bounds``, each with one lane.
      num_steps: Shape (); steps taken.
      settled: Shape (); whether the last step moved the centroids by less than the tolerance.
      done: Shape ().
    """

    centroids: Float[Array, "k d"]
    bounds: Bounds
    known: Bool[Array, ""]
    wait: Int[Array, ""]
    pause: Int[Array, ""]
    moved: Float[Array, " k"]
    half_way: Float[Array, " k"]
    total: Totals
    num_steps: Int[Array, ""]
    settled: Bool[Array, ""]
    done: Bool[Array, ""]


def bounded_lloyd(rows: Rows, start: Float[Array, "k d"], limit: Float[Array, ""], plan: Plan) -> Fit:
    """Run Lloyd's iteration from one start, with the labels that a search of every row would give.

    Args:
      rows: The data.
      start: First centroids, at least two.
      limit: The squared movement of all centroids together at which the start has converged.
      plan: What is fixed; its metric is ``"euclidean"`` or ``"cosine"``. Static.

    Returns:
      The fit.
    """
    n = rows.values.shape[0]
    unknown = Bounds(jnp.zeros((n,), jnp.int32), jnp.full((n,), jnp.inf, start.dtype), jnp.zeros((n,), start.dtype))
    zero = jnp.zeros((), jnp.int32)
    still = jnp.zeros_like(start[:, 0])
    # The first step moves the centroids so far that bounds from before it would help nothing.
    first = State(
        start, unknown, zero > 0, zero + 1, zero, still, still, no_totals(start[None]), zero, zero > 0, zero > 0
    )

    def step(state: State) -> State:
        found = search(rows, state, plan)
        total = psum(found.total, plan.axes)
        last = state.settled | (state.num_steps >= plan.max_steps)
        same = ~last & (total.changed[0] == 0) & (state.num_steps > 0)
        done = last | same
        centroids = move(rows, state.centroids[None], found.bounds.labels[None], total, plan)[0]
        centroids = jnp.where(done, state.centroids, centroids)
        squares = jnp.sum((centroids - state.centroids) ** 2, axis=1)
        num_steps = jnp.where(last, state.num_steps, state.num_steps + 1)
        settled = jnp.where(done, state.settled | same, jnp.sum(squares) <= limit)
        moved = jnp.sqrt(squares) * (1 + 1e-6)
        # Here and not where it is used: there XLA would compute it anew for every row.
        half_way = spacing(centroids, plan)
        return found._replace(
            centroids=centroids, moved=moved, half_way=half_way, num_steps=num_steps, settled=settled, done=done
        )

    state = lax.while_loop(lambda state: ~state.done, step, first)
    cost = total_cost(rows, state.centroids, state.bounds.labels, plan)
    return Fit(cost, state.centroids, state.bounds.labels, state.num_steps, state.settled)


def follow(bounds: Bounds, moved: Float[Array, " k"]) -> Bounds:
    """Loosen the bounds by as much as the centroids have moved."""
    (most, second), (fastest, _) = lax.top_k(moved, 2)
    others = jnp.where(bounds.labels == fastest.astype(jnp.int32), second, most)
    upper = bounds.upper + moved.at[bounds.labels].get(mode="promise_in_bounds")
    return Bounds(bounds.labels, upper, bounds.lower - others)


def spacing(centroids: Float[Array, "k d"], plan: Plan) -> Float[Array, " k"]:
    """Compute half the distance from each centroid to the nearest other one, less what rounding may have added."""
    apart = costs(centroids, centroids, plan.metric)
    apart = jnp.where(jnp.eye(centroids.shape[0], dtype=bool), jnp.inf, apart)
    noise = 2 * _noise(centroids) * jnp.max(jnp.sum(centroids**2, axis=1))
    return 0.5 * jnp.sqrt(jnp.maximum(jnp.min(apart, axis=1) - noise, 0))


def search(rows: Rows, state: State, plan: Plan) -> State:
    """Label the rows anew: all of them in one pass, or, where few are in doubt, only those.

    Args:
      rows: The data.
      state: The centroids, and what is known from before they moved.
      plan: What is fixed. Static.

    Returns:
      The state with the new labels, their totals, what is now known, and for how long to go without bounds.
    """
    n = state.bounds.labels.size
    largest = jnp.max(jnp.sum(state.centroids**2, axis=1))
    unknown = state.bounds, jnp.zeros((n,), bool), jnp.full((), n, jnp.int32)
    bounds, doubtful, num_doubtful = lax.cond(state.known, lambda: _doubts(rows, state, largest, plan), lambda: unknown)
    few = state.known & (_passes(num_doubtful, n, state.centroids) <= 1)
    failed = state.known & ~few
    pause = jnp.where(failed, jnp.clip(2 * state.pause, 1, _LONGEST_PAUSE), jnp.where(few, 0, state.pause))
    wait = jnp.where(failed, pause, state.wait)
    without = wait > 0

    def plain() -> tuple[Bounds, Totals]:
        labels, total = assign_all(rows, state.centroids[None], bounds.labels[None], plan)
        return bounds._replace(labels=labels[0]), total

    bounds, total = lax.switch(
        jnp.where(few, 0, jnp.where(without, 1, 2)),
        (
            lambda: _search_some(rows, state.centroids, bounds, state.total, largest, doubtful, num_doubtful, plan),
            plain,
            lambda: _search_all(rows, state.centroids, bounds, largest, plan),
        ),
    )
    return state._replace(bounds=bounds, known=~without, wait=jnp.maximum(wait - 1, 0), pause=pause, total=total)


def _passes(num_gathered: Array, n: int, centroids: Array) -> Array:
    """Say how many passes over all rows, in their order and without bounds, cost as much as these in doubt."""
    price = min(1.7 + 3000 / centroids.size, 3.0)  # measured; a gathered row costs more where its search costs little
    return num_gathered.astype(jnp.float32) * (price / n)


def _doubts(rows: Rows, state: State, largest: Array, plan: Plan) -> tuple[Bounds, Bool[Array, " n"], Int[Array, ""]]:
    """Tell which rows may have another label now, and how many.

    Where it is only the fastest centroids that leave rows in doubt, the distances to these are computed first.
    """
    n, k = state.bounds.labels.size, state.moved.size
    half_way = state.half_way.at[state.bounds.labels].get(mode="promise_in_bounds")

    def doubts(bounds: Bounds) -> Bool[Array, " n"]:
        return (bounds.upper >= jnp.maximum(bounds.lower, half_way)) & (rows.weights > 0)

    def count(bounds: Bounds) -> Int[Array, ""]:
        return jnp.sum(doubts(bounds), dtype=jnp.int32)

    bounds = follow(state.bounds, state.moved)
    if k >= 2 * _PART:
        speeds, fast = lax.top_k(state.moved, k // _PART + 1)
        hopeful = bounds._replace(lower=state.bounds.lower - speeds[-1])
        # Of what is in doubt even if no fast centroid is near, their distances will settle some.
        left = 0.6 * _passes(count(hopeful), n, state.centroids)
        bounds = lax.cond(
            left + 1.5 / _PART < jnp.minimum(_passes(count(bounds), n, state.centroids), 1),
            lambda: _look_at(rows, state.centroids, fast[:-1].astype(jnp.int32), hopeful, largest, plan),
            lambda: bounds,
        )
    return bounds, doubts(bounds), count(bounds)


def _look_at(
    rows: Rows, centroids: Array, fast: Int[Array, " q"], bounds: Bounds, largest: Array, plan: Plan
) -> Bounds:
    """Tighten the bounds by the distances to a few centroids.

    Args:
      rows: The data.
      centroids: All of them.
      fast: Which ones to look at.
      bounds: Valid but for these: the lower one is for the others.
      largest: The largest squared norm of a centroid.
      plan: What is fixed. Static.

    Returns:
      Bounds for all centroids, the labels as they were: a row that has a better one is left in doubt.
    """
    few = centroids[fast]

    def step(known: Bounds, start: Array | int, size: int) -> Bounds:
        points, _ = rows.block(start, size)
        labels, upper, rest = (lax.dynamic_slice_in_dim(field, start, size) for field in bounds)
        found, _ = _bound(points, few, largest, plan)
        own = fast.at[found.labels].get(mode="promise_in_bounds") == labels
        # A squared upper bound is at most twice the rounding above the lower one. A row whose own centroid is a fast
        # one, and not the nearest of these, stays in doubt: its upper bound is above that lower one.
        noise = 2 * _noise(points) * (jnp.sum(points**2, axis=1) + largest)
        nearest_other = jnp.where(own, found.lower, jnp.sqrt(jnp.maximum(found.upper**2 - noise, 0)))
        new = jnp.where(own, found.upper, upper), jnp.minimum(rest, nearest_other)
        upper, lower = (
            lax.dynamic_update_slice_in_dim(old, x, start, 0) for old, x in zip(known[1:], new, strict=True)
        )
        return Bounds(known.labels, upper, lower)

    blank = Bounds(bounds.labels, jnp.zeros_like(bounds.upper), jnp.zeros_like(bounds.lower))
    return fold_blocks(step, blank, bounds.labels.size, plan.block)


def _search_all(rows: Rows, centroids: Array, bounds: Bounds, largest: Array, plan: Plan) -> tuple[Bounds, Totals]:
    """Go through every block of rows."""

    def step(carry: tuple[Bounds, Totals], start: Array | int, size: int) -> tuple[Bounds, Totals]:
        known, total = carry
        points, weights = rows.block(start, size)
        before = lax.dynamic_slice_in_dim(bounds.labels, start, size)
        new, cost = _bound(points, centroids, largest, plan)
        known = Bounds(*(lax.dynamic_update_slice_in_dim(old, x, start, 0) for old, x in zip(known, new, strict=True)))
        part = block_totals(points, weights, new.labels[None], cost[None], before[None], centroids.shape[0], plan)
        return known, jax.tree.map(jnp.add, total, part)

    # Labels are read from one array and written to another: XLA would copy the whole of a single one for every block.
    known = bounds._replace(labels=jnp.zeros_like(bounds.labels))
    return fold_blocks(step, (known, no_totals(centroids[None])), rows.values.shape[0], plan.block)


def _search_some(
    rows: Rows,
    centroids: Array,
    bounds: Bounds,
    total: Totals,
    largest: Array,
    doubtful: Array,
    num_doubtful: Array,
    plan: Plan,
) -> tuple[Bounds, Totals]:
    """Gather the rows in doubt, a block at a time, and mend the sums of the clusters they leave and enter."""
    n, k = doubtful.size, centroids.shape[0]
    size = min(plan.block, _GATHERED, n)
    which = _indices(doubtful, size)

    def step(carry: tuple[Array, Bounds, Totals]) -> tuple[Array, Bounds, Totals]:
        i, known, total = carry
        at = lax.dynamic_slice_in_dim(which, i * size, size)  # past the last of them: n
        points, weights = rows.take(at)
        before = bounds.labels.at[at].get(mode="clip")
        new, _ = _bound(points, centroids, largest, plan)
        changed = (new.labels != before) & (at < n)
        weights = jnp.where(changed, weights, 0)[:, None]
        entering = sum_by_label(weights * points, new.labels[None], k), sum_by_label(weights, new.labels[None], k)
        leaving = sum_by_label(weights * points, before[None], k), sum_by_label(weights, before[None], k)
        total = total._replace(
            sums=total.sums + (entering[0] - leaving[0]),
            counts=total.counts + (entering[1] - leaving[1])[..., 0],
            changed=total.changed + jnp.sum(changed, dtype=jnp.int32),
        )
        known = Bounds(*(old.at[at].set(x, mode="drop") for old, x in zip(known, new, strict=True)))
        return i + 1, known, total

    carry = jnp.zeros((), jnp.int32), bounds, total._replace(changed=jnp.zeros_like(total.changed))
    return lax.while_loop(lambda carry: carry[0] * size < num_doubtful, step, carry)[1:]


def _bound(points: Array, centroids: Array, largest: Array, plan: Plan) -> tuple[Bounds, Array]:
    """Search some rows; the bounds allow for the rounding of the squared distances."""
    found = nearest(points, centroids[None], plan.metric)
    noise = _noise(points) * (jnp.sum(points**2, axis=1) + largest)
    upper = jnp.sqrt(found.first[0] + noise)
    lower = jnp.sqrt(jnp.maximum(found.second[0] - noise, 0))
    return Bounds(found.labels[0], upper, lower), found.first[0]


def _noise(points: Array) -> float:
    """Bound the rounding of a squared distance, in units of the squared norms it is made of."""
    return float(jnp.finfo(points.dtype).eps) * (4 + points.shape[1] ** 0.5)


def _indices(mask: Bool[Array, " n"], block: int) -> Int[Array, " padded"]:
    """List the true entries' indices in order, then n, up to a multiple of the block."""
    n, width = mask.size, 128
    table = jnp.pad(mask, (0, -n % width)).reshape(-1, width).astype(jnp.float32)
    # The count of true entries up to each, a row of the table at a time: as a product it is quicker than a cumsum of n.
    inside = (table @ jnp.triu(jnp.ones((width, width), jnp.float32))).astype(jnp.int32)
    before = jnp.cumsum(inside[:, -1], dtype=jnp.int32) - inside[:, -1]
    place = (inside + before[:, None]).reshape(-1)[:n] - 1
    room = n + -n % block
    numbers = jnp.arange(n, dtype=jnp.int32)
    return jnp.full((room,), n, jnp.int32).at[jnp.where(mask, place, room)].set(numbers, mode="drop")
