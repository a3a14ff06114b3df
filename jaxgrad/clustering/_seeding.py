"""Where k-means begins: rows drawn at random, one after another far from those before, or many at once and thinned."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxgrad._rows import fold_blocks, gather, psum
from jaxgrad.clustering._distances import Rows, costs

Seeding = Literal["random", "k-means++", "greedy-k-means++", "k-means||"]

# Of k-means||, as its authors recommend.
ROUNDS = 5
OVERSAMPLING = 2

# From how many entries on a pool of candidates is drawn, and for how many steps it is at most.
POOLED = 2**20
POOL_STEPS = 6


@partial(jax.jit, static_argnames=("num_clusters", "method", "metric", "block", "axes"))
def seed(
    key: PRNGKeyArray,
    rows: Rows,
    num_clusters: int,
    *,
    method: Seeding,
    metric: str,
    block: int,
    axes: tuple[str, ...] = (),
) -> Float[Array, "k d"]:
    """Choose rows as first centroids.

    A row's mass is what it pays for the nearest centroid so far times its weight, and a row is drawn with probability
    proportional to its mass. No row of weight 0 is chosen while there is another, nor a row that equals one chosen
    before: its mass is exactly 0 (with ``"k-means||"``, but for near ties between candidates). Once no mass is left,
    rows of positive weight are drawn uniformly.

    Args:
      key: Decides the draws, the same whatever ``block`` is and however many shards there are, up to rounding.
      rows: One shard's rows, at least one.
      num_clusters: k. Static.
      method: ``"random"``, k rows by weight without replacement; ``"k-means++"``, each by mass;
        ``"greedy-k-means++"``, the best of 2 + ⌊log k⌋ by mass each time; ``"k-means||"``, 5 rounds of 2k draws by mass
        with replacement, thinned by the greedy method with the weights of the rows nearest to each.
      metric: As in ``costs``.
      block: How many rows to work on at a time.
      axes: The names of the axes that the rows are split over, inside a ``shard_map``.

    Returns:
      The centroids, in the coordinates of ``rows``.
    """
    draws = _draws(rows, axes)
    if method == "random":
        return _random(key, rows, draws, num_clusters, axes)
    if method == "k-means||":
        return _parallel(key, rows, draws, num_clusters, metric, block, axes)
    trials = 2 + int(math.log(num_clusters)) if method == "greedy-k-means++" else 1
    return _plus_plus(key, rows, draws, num_clusters, trials, metric, block, axes)


class _Draws(NamedTuple):
    """What drawing rows needs that does not change; rows lie in strips, about √n of √n, the last one padded.

    Attributes:
      weights: Shape (strips, width); 0 in the padding.
      spare: The same shape; the mass that is used where there is no other: 1 for a row of positive weight, or for
        every row if there is none such.
      spare_sums: Shape (all shards' strips,).
    """

    weights: Float[Array, "strips width"]
    spare: Float[Array, "strips width"]
    spare_sums: Float[Array, " all_strips"]


def _draws(rows: Rows, axes: tuple[str, ...]) -> _Draws:
    """Lay the rows in strips."""
    num_rows = rows.values.shape[0]
    width = 2 ** math.ceil(math.log2(num_rows) / 2)
    strips = -(-num_rows // width)
    padding = strips * width - num_rows
    weights = jnp.pad(rows.weights, (0, padding)).reshape(strips, width)
    valid = (weights > 0).astype(weights.dtype)
    present = jnp.pad(jnp.ones_like(rows.weights), (0, padding)).reshape(strips, width)
    spare = jnp.where(psum(jnp.sum(valid), axes) > 0, valid, present)
    return _Draws(weights, spare, gather(jnp.sum(spare, axis=1), axes).reshape(-1))


def _draw(
    key: PRNGKeyArray, mass: Float[Array, "strips width"], draws: _Draws, num: int, axes: tuple[str, ...]
) -> tuple[Int[Array, " num"], Bool[Array, " num"]]:
    """Draw rows with replacement: the strip that a uniform number falls in, then the row within the strip.

    Returns:
      The indices among this shard's rows, and whether the row is this shard's.
    """
    strips = mass.shape[0]
    sums = gather(jnp.sum(mass, axis=1), axes).reshape(-1)
    left = jnp.any(sums > 0)
    sums = jnp.where(left, sums, draws.spare_sums)
    ends = _running_sum(sums)
    total = ends[-1]
    coarse, fine = jax.random.uniform(key, (2, num), mass.dtype)
    strip, below = _locate(ends, coarse * total)
    # A float's grain is that of a whole row once there are ten million; a second number fills it in.
    share = (coarse * total - below + fine * jnp.finfo(mass.dtype).eps * total) / sums[strip]
    local = strip - strips * lax.axis_index(axes) if axes else strip
    here = (local >= 0) & (local < strips)
    local = jnp.clip(local, 0, strips - 1)
    ends = _running_sum(jnp.where(left, mass[local], draws.spare[local]))
    row, _ = jax.vmap(_locate)(ends, (jnp.clip(share, 0, 1) * ends[:, -1])[:, None])
    return local * mass.shape[1] + row[:, 0], here


def _running_sum(mass: Float[Array, "*batch m"]) -> Float[Array, "*batch m"]:
    """Sum from the first on; rises only where there is mass, whatever rounding does."""
    axis = mass.ndim - 1
    return lax.cummax(jnp.where(mass > 0, lax.cumsum(mass, axis=axis), 0), axis=axis)


def _locate(ends: Float[Array, " m"], positions: Float[Array, " num"]) -> tuple[Int[Array, " num"], Array]:
    """Find the entries of a running sum that positions fall in, and where those begin."""
    positions = jnp.minimum(positions, jnp.nextafter(ends[-1], jnp.zeros_like(ends[-1])))
    index = jnp.sum(ends[None] <= positions[:, None], axis=1, dtype=jnp.int32)
    index = jnp.minimum(index, ends.shape[0] - 1)
    return index, jnp.where(index > 0, ends[index - 1], 0)


def _fetch(rows: Rows, indices: Array, here: Array, axes: tuple[str, ...]) -> Float[Array, "m d"]:
    """Send the rows drawn to all shards."""
    return psum(jnp.where(here[:, None], rows.take(indices)[0], 0), axes)


def _random(
    key: PRNGKeyArray, rows: Rows, draws: _Draws, num_clusters: int, axes: tuple[str, ...]
) -> Float[Array, "k d"]:
    """Draw rows by weight, each at most once."""

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mass, indices, here = carry
        index, mine = _draw(jax.random.fold_in(key, i), mass, draws, 1, axes)
        flat = mass.reshape(-1)
        kept = jnp.where(mine, 0, flat[index])
        mass = flat.at[index].set(kept).reshape(mass.shape)
        return mass, indices.at[i].set(index[0]), here.at[i].set(mine[0])

    start = (draws.weights, jnp.zeros(num_clusters, jnp.int32), jnp.zeros(num_clusters, bool))
    _, indices, here = lax.fori_loop(0, num_clusters, step, start)
    return _fetch(rows, indices, here, axes)


def _plus_plus(
    key: PRNGKeyArray,
    rows: Rows,
    draws: _Draws,
    num_clusters: int,
    trials: int,
    metric: str,
    block: int,
    axes: tuple[str, ...],
) -> Float[Array, "k d"]:
    """Choose one row after another: of a few drawn by mass, the one that leaves the least.

    Multiplying all rows by a few candidates takes about as long as by many, so where data is large a pool of candidates
    is drawn at once. Those drawn too early, by a mass that has shrunk since, are kept with the probability
    that it has shrunk by: what is kept is distributed as if drawn by the mass of now.
    """
    shape, weights = draws.weights.shape, draws.weights.reshape(-1)
    size = trials * _pool_steps(rows, trials)
    first = _fetch(rows, *_draw(key, draws.weights, draws, 1, axes), axes)[0]
    norms, cost = _first_costs(rows, first, weights.shape[0], metric, block)

    def refill(state: _State) -> _State:
        drawing, keeping = jax.random.split(jax.random.fold_in(key, state.count))
        mass = weights * state.cost
        indices, here = _draw(drawing, mass.reshape(shape), draws, size, axes)
        candidates = _fetch(rows, indices, here, axes)

        def step(paid: Array, start: Array | int, size: int) -> Array:
            points, _ = rows.block(start, size)
            costs = _costs(points, lax.dynamic_slice_in_dim(norms, start, size), candidates, metric)
            return lax.dynamic_update_slice(paid, costs, (0, start))

        paid = fold_blocks(step, state.paid, rows.values.shape[0], block)
        bars = psum(jnp.where(here, mass[indices], 0), axes) * jax.random.uniform(keeping, (size,), mass.dtype)
        left = jnp.ones(size, bool)
        return state._replace(candidates=candidates, indices=indices, here=here, bars=bars, left=left, paid=paid)

    def kept(state: _State) -> Bool[Array, " pool"]:
        mass = jnp.where(state.here, weights[state.indices] * state.cost[state.indices], 0)
        return state.left & (psum(mass, axes) > state.bars)

    def choose(state: _State, tried: Int[Array, " trials"]) -> _State:
        paid = state.paid if size == trials else state.paid[tried]
        left = jnp.minimum(state.cost[None], paid)
        potentials = lax.dot_general(left, weights, (((1,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)
        best = tried[jnp.argmin(psum(potentials, axes))]
        chosen, paid = state.candidates[best], state.paid[best]
        cost = jnp.minimum(state.cost, paid)
        if metric != "manhattan":
            cost = _mend(rows, shape, norms, chosen, paid, state.cost, cost)
        return state._replace(
            count=state.count + 1,
            centroids=state.centroids.at[state.count].set(chosen),
            cost=cost,
            left=state.left & (jnp.arange(size, dtype=jnp.int32) > tried[-1]),
        )

    def refill_and_choose(state: _State) -> _State:
        state = choose(refill(state), jnp.arange(trials, dtype=jnp.int32))
        if size == trials:
            return state
        return lax.while_loop(
            lambda state: (state.count < num_clusters) & (jnp.sum(kept(state)) >= trials),
            lambda state: choose(state, jnp.nonzero(kept(state), size=trials)[0].astype(jnp.int32)),
            state,
        )

    state = _State(
        count=jnp.asarray(1, jnp.int32),
        centroids=jnp.zeros((num_clusters, first.shape[0]), first.dtype).at[0].set(first),
        cost=cost,
        candidates=jnp.zeros((size, first.shape[0]), first.dtype),
        indices=jnp.zeros(size, jnp.int32),
        here=jnp.zeros(size, bool),
        bars=jnp.zeros(size, first.dtype),
        left=jnp.zeros(size, bool),
        paid=jnp.zeros((size, weights.shape[0]), first.dtype),
    )
    if size == trials:
        return lax.fori_loop(1, num_clusters, lambda _, state: refill_and_choose(state), state).centroids
    return lax.while_loop(lambda state: state.count < num_clusters, refill_and_choose, state).centroids


class _State(NamedTuple):
    """Centroids chosen one after another, and candidates for the next.

    Attributes:
      count: Shape (); how many are chosen.
      centroids: Shape (k, d).
      cost: Shape (padded rows,); what a row pays for the nearest of them.
      candidates: Shape (pool, d).
      indices: Shape (pool,); which of this shard's rows they are.
      here: Shape (pool,); whether they are this shard's.
      bars: Shape (pool,); the mass below which they are dropped.
      left: Shape (pool,); whether they are still to be tried.
      paid: Shape (pool, padded rows); what a row pays for each.
    """

    count: Int[Array, ""]
    centroids: Float[Array, "k d"]
    cost: Float[Array, " rows"]
    candidates: Float[Array, "pool d"]
    indices: Int[Array, " pool"]
    here: Bool[Array, " pool"]
    bars: Float[Array, " pool"]
    left: Bool[Array, " pool"]
    paid: Float[Array, "pool rows"]


def _pool_steps(rows: Rows, trials: int) -> int:
    """Choose for how many steps to draw candidates at once: their costs take at most two thirds of the data's space."""
    num_rows, dim = rows.values.shape
    if num_rows * dim < POOLED:  # It pays for little data too, but many restarts side by side go in lockstep.
        return 1
    return max(1, min(POOL_STEPS, 2 * dim // (3 * trials)))


def _first_costs(
    rows: Rows, first: Float[Array, " d"], length: int, metric: str, block: int
) -> tuple[Float[Array, " length"], Float[Array, " length"]]:
    """Compute the squares of each row, once for all steps, and what it pays for the first centroid."""

    def step(carry: tuple[Array, Array], start: Array | int, size: int) -> tuple[Array, Array]:
        points, _ = rows.block(start, size)
        norms, cost = carry
        norms = lax.dynamic_update_slice_in_dim(norms, jnp.sum(points**2, axis=1), start, 0)
        return norms, lax.dynamic_update_slice_in_dim(cost, _away(points, first[None], metric), start, 0)

    zeros = jnp.zeros(length, first.dtype)
    return fold_blocks(step, (zeros, zeros), rows.values.shape[0], block)


def _away(points: Array, centroids: Array, metric: str) -> Float[Array, " m"]:
    """Compute from differences what each point pays for the centroid beside it: 0 where they are equal."""
    away = points - centroids
    return jnp.sum(jnp.abs(away) if metric == "manhattan" else away**2, axis=1)


def _costs(points: Array, norms: Array, centroids: Array, metric: str) -> Float[Array, "k m"]:
    """Compute ``costs`` with the points' squares already summed."""
    if metric == "manhattan":
        return costs(points, centroids, metric)
    products = lax.dot_general(centroids, points, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)
    return jnp.maximum(norms[None] - 2 * products + jnp.sum(centroids**2, axis=1)[:, None], 0)


def _mend(
    rows: Rows, shape: tuple[int, ...], norms: Array, chosen: Array, paid: Array, before: Array, after: Array
) -> Float[Array, " length"]:
    """Compute anew, from differences, what rows pay that are so near that expanding the square loses digits.

    The chosen row and those that equal it come out with exactly 0.
    """
    num_rows = rows.values.shape[0]
    width = min(shape[1], num_rows)
    floor = 256 * jnp.finfo(paid.dtype).eps * (norms + jnp.sum(chosen**2))
    near = jnp.any(((paid < floor) & (before > 0)).reshape(shape), axis=1)

    def step(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        near, after = carry
        strip = jnp.argmax(near)
        start = jnp.minimum(strip * width, num_rows - width)
        exact = _away(rows.block(start, width)[0], chosen[None], "euclidean")
        exact = jnp.minimum(lax.dynamic_slice_in_dim(before, start, width), exact)
        return near.at[strip].set(False), lax.dynamic_update_slice_in_dim(after, exact, start, 0)

    return lax.while_loop(lambda carry: jnp.any(carry[0]), step, (near, after))[1]


def _parallel(
    key: PRNGKeyArray,
    rows: Rows,
    draws: _Draws,
    num_clusters: int,
    metric: str,
    block: int,
    axes: tuple[str, ...],
) -> Float[Array, "k d"]:
    """Draw many rows a round by mass, and choose among them by the weight of the rows nearest to each."""
    shape, length = draws.weights.shape, draws.weights.size
    num = OVERSAMPLING * num_clusters

    def update(candidates: Array, offset: Array, mass: Array, nearest: Array) -> tuple[Array, Array]:
        def step(carry: tuple[Array, Array], start: Array | int, size: int) -> tuple[Array, Array]:
            masses, labels = carry
            points, weight = rows.block(start, size)
            costs = _costs(points, lax.dynamic_slice_in_dim(norms, start, size), candidates, metric)
            # Of candidates nearer to each other than the expanded squares resolve, it may be the wrong one.
            label = jnp.argmin(costs, axis=0).astype(jnp.int32)
            cost = weight * _away(points, candidates[label], metric)
            # From arrays that are not written to: XLA would copy the whole of them for every block.
            before, label_before = (lax.dynamic_slice_in_dim(each, start, size) for each in (mass, nearest))
            after = jnp.minimum(before, cost)
            label = jnp.where(cost < before, offset + label, label_before)
            return (
                lax.dynamic_update_slice_in_dim(masses, after, start, 0),
                lax.dynamic_update_slice_in_dim(labels, label, start, 0),
            )

        start = jnp.zeros_like(mass), jnp.zeros_like(nearest)
        return fold_blocks(step, start, rows.values.shape[0], block)

    def round_(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        candidates, mass, nearest = carry
        new = _fetch(rows, *_draw(jax.random.fold_in(key, i), mass.reshape(shape), draws, num, axes), axes)
        offset = 1 + (i - 1) * num
        mass, nearest = update(new, offset, mass, nearest)
        return lax.dynamic_update_slice_in_dim(candidates, new, offset, 0), mass, nearest

    first = _fetch(rows, *_draw(key, draws.weights, draws, 1, axes), axes)[0]
    norms, cost = _first_costs(rows, first, length, metric, block)
    candidates = jnp.zeros((1 + ROUNDS * num, first.shape[0]), first.dtype).at[0].set(first)
    start = candidates, draws.weights.reshape(-1) * cost, jnp.zeros(length, jnp.int32)
    candidates, _, nearest = lax.fori_loop(1, ROUNDS + 1, round_, start)
    weights = jax.ops.segment_sum(draws.weights.reshape(-1), nearest, candidates.shape[0])
    thinned = Rows(candidates, jnp.zeros_like(rows.shift), jnp.ones_like(rows.scale), psum(weights, axes))
    trials = 2 + int(math.log(num_clusters))
    last = jax.random.fold_in(key, ROUNDS + 1)
    return _plus_plus(last, thinned, _draws(thinned, ()), num_clusters, trials, metric, block, ())
