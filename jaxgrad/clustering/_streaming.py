"""Mini-batch k-means: data that come in batches, each seen once and let go.

::

    state = k_means_init(key, first_batch, num_clusters)
    for batch in batches:
        state = k_means_update(state, batch)
    labels = assign(state.centroids, rows)

Counts and centroids are sums of two floats, so that many batches do not wear float32 down.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from jaxgrad._checks import check_number
from jaxgrad._inputs import check_key, check_rows, check_weights, refuse_rows, rows_taken
from jaxgrad._moments import two_sum
from jaxgrad._rows import Shards, gather, over_shards, psum, shards
from jaxgrad.clustering._batches import BatchTotals, batch_totals
from jaxgrad.clustering._coordinates import Coordinates, backward, coordinates, forward, inertia, place
from jaxgrad.clustering._inputs import block_size, check_count, check_metric
from jaxgrad.clustering._k_means import Metric, Seeding, check_init
from jaxgrad.clustering._seeding import seed
from jaxgrad.clustering._state import KMeansMemory, KMeansSettings, KMeansState

# The cost, and how many rows a centroid gets, are averages over about so many batches, ...
_MEMORY = 10
# ... and over at least so many rows a cluster: fewer say little about a small cluster.
_ROWS_EACH = 10
# Of the quantiles that new places are drawn at, from one batch to the next: those of any few batches lie far apart.
_GOLDEN = (math.sqrt(5) - 1) / 2


def k_means_init(
    key: PRNGKeyArray | Shaped[Array, " 2"] | None,
    batch: Shaped[Array | np.ndarray, "n d"],
    num_clusters: int,
    *,
    metric: Metric = "euclidean",
    init: Seeding | Shaped[Array | np.ndarray, "k d"] = "greedy-k-means++",
    weights: Shaped[Array | np.ndarray, " n"] | None = None,
    covariance: Shaped[Array | np.ndarray, "d d"] | None = None,
    reassignment_ratio: float = 0.01,
) -> KMeansState:
    """Choose the first centroids of a stream.

    ``centroids = seed(batch)``, ``counts = 0``.

    Args:
      key: Decides the start. May be ``None`` where ``init`` is an array.
      batch: Shape (n, d); rows like those to come, such as the first batch, at least k of them. They are looked at and
        not counted: pass them to :func:`jaxgrad.clustering.k_means_update`, too. They may be sharded.
      num_clusters: k. Static.
      metric: As in :func:`jaxgrad.clustering.k_means`; updates take it from the state. Static.
      init: As there: how to choose rows of the batch, or centroids of shape (k, d), which the batch need not contain.
      weights: Shape (n,), how much each row counts, at least 0; ``None`` for all alike.
      covariance: Shape (d, d), Σ for ``"mahalanobis"``; ``None`` for that of this batch. It does not change later.
      reassignment_ratio: A centroid that gets less than this share of what the busiest one gets is given another place.
        0: never. Static.

    Returns:
      The state of no rows, in the dtype of the batch; float32 for half precision and integers.

    Raises:
      TypeError: Not real numbers, or no key.
      ValueError: A shape or an option does not fit; there are fewer rows than clusters; or, for concrete arrays, a row
        is not finite, a weight negative, or ``covariance`` not positive definite.

    Numerics:
      As in ``k_means``: the batch's mean and range decide how all rows are centred and scaled.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxgrad.clustering import k_means_init
      >>> state = k_means_init(jax.random.key(0), jnp.array([[0.0], [1.0], [9.0]]), 2)
      >>> state.centroids.shape, float(state.num_rows)
      ((2, 1), 0.0)

    References:
      :cite:p:`arthur2007kmeans` for k-means++, section 2.2; :cite:p:`bahmani2012scalable` for k-means||, algorithm 2.

    See also:
      :func:`jaxgrad.clustering.k_means_stream` for an exact fit of such data, in many passes.
    """
    name = "k_means_init"
    batch = check_rows(name, batch)
    num_rows, num_features = batch.shape
    check_count(name, "num_clusters", num_clusters, 1)
    covariance = check_metric(name, metric, covariance, num_features, batch.dtype)
    starts, seeding = check_init(name, init, 1, (num_clusters, num_features), batch.dtype)
    if seeding is not None:
        check_key(name, key)
        check_count(name, "num_clusters", num_clusters, 1, num_rows, ", the number of rows in the first batch")
    check_number(name, "reassignment_ratio", reassignment_ratio, low=0, high=1)
    weights = check_weights(name, weights, batch)
    refuse_rows(name, batch, weights)
    settings = KMeansSettings(metric, float(reassignment_ratio))
    return _init(
        None if seeding is None else key,
        batch,
        weights,
        None if starts is None else starts[0],
        covariance,
        num_clusters=num_clusters,
        seeding=seeding,
        settings=settings,
        layout=shards(batch),
    )


def k_means_update(
    state: KMeansState,
    batch: Shaped[Array | np.ndarray, "n d"],
    *,
    weights: Shaped[Array | np.ndarray, " n"] | None = None,
) -> KMeansState:
    r"""Move the centroids towards the rows of a batch, the less the more rows they are made of.

    .. math::
        c_j \leftarrow c_j + \frac{1}{N_j + n_j} \sum_{i : \ell_i = j} w_i (x_i - c_j), \qquad
        N_j \leftarrow N_j + n_j, \quad n_j = \sum_{i : \ell_i = j} w_i,

    where :math:`\ell_i` is the centroid nearest to row i before the batch: each centroid is the mean of all rows it has
    ever got. Under ``"cosine"`` it is the direction of that mean. Under ``"manhattan"``, where it should be their
    median and a stream has none, it takes the step of Robbins and Monro for one:
    :math:`\frac{\pi}{2} s_j \, (N_j + n_j)^{-1} \sum_i w_i \operatorname{sign}(x_i - c_j)`, a feature at a time, with
    :math:`s_j` the mean distance of its rows so far. The best step is ½ over the density at the median: for the normal
    distribution that is this one; for the uniform and the Laplace distribution this is 0.79 and 1.57 times the best.

    Args:
      state: The state so far, from :func:`jaxgrad.clustering.k_means_init` or an earlier update.
      batch: Shape (n, d); any number of rows from 1, also fewer than k. Another n is another compilation. They may be
        sharded; k × d numbers travel.
      weights: Shape (n,), how much each row counts, at least 0; ``None`` for all alike. A weight of 2 is the row twice.

    Returns:
      The state, of the same structure, shapes and types, so that it can be the carry of a ``scan``.

    Raises:
      TypeError: Not real numbers.
      ValueError: The batch is no matrix, is empty, has other features, or, where it is concrete, has a row that is not
        finite; ``weights`` are not one a row, or are negative or not finite.

    Numerics:
      Counts are exact to ``2**48`` rows in float32, of up to ``2**24`` a batch. In a traced batch rows that are not
      finite, and rows whose weight is not positive, take no part; a batch of only such rows changes nothing. A centroid
      that gets less than ``reassignment_ratio`` of the rows of the busiest, over the last ten batches and ten rows a
      cluster at least, goes to a row of the batch and starts again with count 0. No key is needed: with m such
      centroids it is the rows at which the running sum of what rows pay reaches the m quantiles (i + u) / m, where u is
      the fractional part of ``num_steps`` times 0.618. The median of a cluster with a gap in its middle is found
      slowly. The result has no useful gradient: labels are steps.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.clustering import k_means_init, k_means_update
      >>> state = k_means_init(None, jnp.array([[0.0], [8.0]]), 2, init=jnp.array([[0.0], [8.0]]))
      >>> for batch in (jnp.array([[1.0], [10.0]]), jnp.array([[2.0], [12.0]])):
      ...     state = k_means_update(state, batch)
      >>> state.centroids.tolist(), state.counts.tolist()
      ([[1.5], [11.0]], [2.0, 2.0])

    References:
      :cite:p:`macqueen1967some`, a row at a time; :cite:p:`sculley2010web`, algorithm 1;
      :cite:p:`robbins1951stochastic` for the median. New places are ours.

    See also:
      ``sklearn.cluster.MiniBatchKMeans.partial_fit``, which draws new places at random.
    """
    name = "k_means_update"
    batch = check_rows(name, batch, state.centroids.shape[-1]).astype(state.centroids.dtype)
    weights = check_weights(name, weights, batch)
    after, bad = _update(state, batch, weights, layout=shards(batch))
    if not isinstance(bad, Tracer) and int(bad):
        refuse_rows(name, batch, weights)
    return after


@partial(jax.jit, static_argnames=("num_clusters", "seeding", "settings", "layout"))
def _init(
    key: Array | None,
    batch: Array,
    weights: Array | None,
    start: Array | None,
    covariance: Array | None,
    *,
    num_clusters: int,
    seeding: str | None,
    settings: KMeansSettings,
    layout: Shards | None,
) -> KMeansState:
    """Survey the batch and choose among its rows, together with the other shards."""
    metric, axes = settings.metric, layout.axes if layout else ()

    def run(key: Any, batch: Array, weights: Any, start: Any, covariance: Any) -> tuple[Coordinates, Array]:
        mass, _ = rows_taken(batch, weights)
        where = coordinates(batch, mass, covariance, metric, axes)
        plain = where._replace(whiten=None, colour=None)
        if start is not None:
            return where, forward(start, plain, metric)
        block = block_size(None, batch.shape[0], batch.shape[1], num_clusters)
        kind = "manhattan" if metric == "manhattan" else "euclidean"
        options = {"method": seeding, "metric": kind, "block": block, "axes": axes}
        chosen = seed(key, place(batch, mass, where, metric), num_clusters, **options)
        return where, chosen if where.colour is None else jnp.matmul(chosen, where.colour, precision="highest")

    if layout is not None:
        whole, rows = PartitionSpec(), PartitionSpec(layout.axes)
        run = over_shards(run, layout, (whole, rows, rows, whole, whole), whole)
    where, points = run(key, batch, weights, start, covariance)
    none, zero = jnp.zeros_like(points[:, 0]), jnp.zeros_like(where.scale)
    memory = KMeansMemory(
        where=where,
        points=points,
        points_left=jnp.zeros_like(points),
        counts_left=none,
        rows_left=zero,
        spread=jnp.zeros_like(points) if metric == "manhattan" else None,
        # As if each had got its share: a centroid must be idle for a while before it counts as such.
        recent=jnp.full_like(none, _ROWS_EACH),
    )
    return KMeansState(
        centroids=_centroids(points, where, metric, points),
        counts=none,
        cost=jnp.full_like(zero, jnp.inf),
        num_rows=zero,
        num_steps=jnp.zeros((), jnp.int32),
        memory=memory,
        settings=settings,
    )


@partial(jax.jit, static_argnames="layout")
def _update(
    state: KMeansState, batch: Array, weights: Array | None, *, layout: Shards | None
) -> tuple[KMeansState, Int[Array, ""]]:
    """Return the state after a batch, and how many of its rows had to be left out."""
    axes = layout.axes if layout else ()

    def run(state: KMeansState, batch: Array, weights: Array | None) -> tuple[KMeansState, Array]:
        mass, bad = rows_taken(batch, weights)
        after = _step(state, batch, mass, axes)
        return after, psum(jnp.sum(bad, dtype=jnp.int32), axes)

    if layout is not None:
        whole, rows = PartitionSpec(), PartitionSpec(layout.axes)
        run = over_shards(run, layout, (whole, rows, rows), whole)
    return run(state, batch, weights)


def _step(state: KMeansState, batch: Array, mass: Array, axes: tuple[str, ...]) -> KMeansState:
    """Take one step with the rows of this shard and the others."""
    metric, memory = state.settings.metric, state.memory
    where = memory.where
    if metric == "cosine":
        points = state.centroids
    else:
        # Around the centroids of today: a stream may have drifted far from its first batch.
        middle = jnp.mean(memory.points, axis=0) / where.scale + where.shift
        points = (memory.points - ((middle - where.shift) * where.scale)[None]) + memory.points_left
        where = where._replace(shift=middle)
    total, _, paid = batch_totals(batch, mass, points, where, metric, axes)

    counts, counts_left = _add(state.counts, memory.counts_left, total.counts)
    num_rows, rows_left = _add(state.num_rows, memory.rows_left, total.num_rows)
    made_of = jnp.where(counts > 0, counts, 1)[:, None]
    moved, spread = total.moved, memory.spread
    if metric == "cosine":
        moved = moved + total.counts[:, None] * ((points - memory.points) - memory.points_left)
    if spread is not None and total.spread is not None:
        spread = spread + (total.spread - total.counts[:, None] * spread) / made_of
        moved = 0.5 * math.pi * spread * moved
    means, means_left = _add(memory.points, memory.points_left, moved / made_of)

    mean_cost = inertia(total.cost, where, metric, total.zeros) / jnp.where(
        total.num_rows > 0, jnp.sum(total.counts), 1
    )
    num_steps = state.num_steps + 1
    share = jnp.maximum(1 / num_steps.astype(batch.dtype), 1 / _MEMORY)
    before = jnp.where(state.num_steps > 0, state.cost, 0)
    after = KMeansState(
        centroids=_centroids(means, memory.where, metric, state.centroids),
        counts=counts,
        cost=before + share * (mean_cost - before),
        num_rows=num_rows,
        num_steps=num_steps,
        memory=KMeansMemory(
            memory.where, means, means_left, counts_left, rows_left, spread, _fade(memory.recent, total)
        ),
        settings=state.settings,
    )
    if state.settings.reassignment_ratio > 0:
        after = _reassign(after, batch, mass, paid, total.num_rows, axes)
    return jax.tree.map(lambda new, old: jnp.where(total.num_rows > 0, new, old), after, state)


def _fade(recent: Float[Array, " k"], total: BatchTotals) -> Float[Array, " k"]:
    """Let old rows count less, and add those of a batch, whose weights are 1 on average."""
    window = total.num_rows / (_ROWS_EACH * recent.shape[0])
    added = total.counts * (total.num_rows / jnp.maximum(jnp.sum(total.counts), jnp.finfo(recent.dtype).tiny))
    return recent * jnp.exp(-jnp.minimum(window, 1 / _MEMORY)) + added


def _reassign(
    state: KMeansState, batch: Array, mass: Array, paid: Array, num_rows: Array, axes: tuple[str, ...]
) -> KMeansState:
    """Give centroids that hardly get any rows the places of rows that pay much, evenly along their running sum."""
    memory, metric = state.memory, state.settings.metric
    idle = memory.recent < state.settings.reassignment_ratio * jnp.max(memory.recent)
    rank = jnp.cumsum(idle.astype(jnp.int32), dtype=jnp.int32) - 1
    # New places take rows from the centroids that had them: half the batch stays as it is.
    idle = idle & (2 * (rank + 1).astype(num_rows.dtype) <= num_rows)

    def places() -> tuple[Array, Array]:
        owed = jnp.cumsum(mass * paid)
        ends = jnp.cumsum(gather(owed[-1], axes))
        start = (
            jnp.where(lax.axis_index(axes) > 0, ends[lax.axis_index(axes) - 1], 0) if axes else jnp.zeros_like(ends[0])
        )
        phase = jnp.modf(state.num_steps.astype(owed.dtype) * _GOLDEN)[0]
        at = (rank.astype(owed.dtype) + phase) / jnp.maximum(jnp.sum(idle), 1).astype(owed.dtype) * ends[-1] - start
        here = (at >= 0) & (at < owed[-1])
        index = jnp.minimum(jnp.searchsorted(owed, at, side="right"), owed.size - 1).astype(jnp.int32)
        rows = place(batch, mass, memory.where._replace(whiten=None, colour=None), metric)
        # Two quantiles in one row: the second centroid would have its place to no avail.
        again = jnp.any((index[:, None] == index[None]) & (rank[:, None] > rank[None]) & idle[None], axis=1)
        found = idle & here & ~again
        chosen = jnp.where(found[:, None], rows.take(index)[0], 0)
        return psum(found.astype(jnp.int32), axes) > 0, psum(chosen, axes)

    found, chosen = lax.cond(jnp.any(idle), places, lambda: (jnp.zeros_like(idle), jnp.zeros_like(memory.points)))

    def put(old: Array, new: Array | int) -> Array:
        return jnp.where(found.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    memory = memory._replace(
        points=put(memory.points, chosen),
        points_left=put(memory.points_left, 0),
        counts_left=put(memory.counts_left, 0),
        spread=None if memory.spread is None else put(memory.spread, 0),
        recent=put(memory.recent, jnp.mean(memory.recent)),
    )
    centroids = _centroids(memory.points, memory.where, metric, state.centroids)
    return state._replace(centroids=put(state.centroids, centroids), counts=put(state.counts, 0), memory=memory)


def _centroids(points: Array, where: Coordinates, metric: str, before: Array) -> Float[Array, "k d"]:
    """Bring means to the space of the rows; a mean without a direction leaves its centroid where it was."""
    if metric != "cosine":
        return backward(points, where._replace(colour=None))
    length = jnp.sqrt(jnp.sum(points**2, axis=1, keepdims=True))
    return jnp.where(length > 0, points / jnp.where(length > 0, length, 1), before)


def _add(high: Array, low: Array, more: Array) -> tuple[Array, Array]:
    """Add to a number in two parts."""
    total, error = two_sum(high, more)
    return two_sum(total, error + low)
