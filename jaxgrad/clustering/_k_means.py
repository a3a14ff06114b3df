"""k-means: from rows to centroids, in the metric asked for."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from jaxgrad._checks import check_number, message
from jaxgrad._inputs import check_key, check_rows, check_weights, refuse_rows, rows_taken, usable
from jaxgrad._rows import Shards, fold_blocks, over_shards, psum, shards
from jaxgrad.clustering._bounds import bounded_lloyd
from jaxgrad.clustering._coordinates import backward, coordinates, forward, inertia, mean_variance, place
from jaxgrad.clustering._distances import Rows, nearest
from jaxgrad.clustering._inputs import block_size, check_count, check_metric, check_some_weight
from jaxgrad.clustering._lloyd import Fit, Plan, better, lloyd, no_fit, total_cost
from jaxgrad.clustering._seeding import seed

Metric = Literal["euclidean", "manhattan", "cosine", "mahalanobis"]
Seeding = Literal["random", "k-means++", "greedy-k-means++", "k-means||"]
SEEDINGS = ("random", "k-means++", "greedy-k-means++", "k-means||")

# n × k × d of one pass up to which starts go side by side, and searching every row costs less than bounds do.
_SMALL = 1 << 22
# In so few steps bounds cannot gain what it takes to find them.
_FEW_STEPS = 3
_LANES = 10


class KMeansResult(NamedTuple):
    """A clustering.

    Attributes:
      centroids: Shape (k, d); means, medians for ``"manhattan"``, unit vectors for ``"cosine"``.
      labels: Shape (n,); int32, the nearest centroid of each row, the first of equals; -1 for a row that took no part
        because it is not finite.
      inertia: Shape (); what all rows pay, each times its weight: the squared distance to its centroid, the distance
        for ``"manhattan"``, one minus the cosine for ``"cosine"``.
      num_steps: Shape (); int32, how often the centroids were moved.
      converged: Shape (); whether the labels, or within ``tol`` the centroids, stopped changing before ``max_steps``.
      num_distinct: Shape (); int32, how many centroids have rows: fewer than k where rows have fewer distinct values.
    """

    centroids: Float[Array, "k d"]
    labels: Int[Array, " n"]
    inertia: Float[Array, ""]
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]
    num_distinct: Int[Array, ""]


class Settings(NamedTuple):
    """What a fit is compiled for.

    Attributes:
      num_clusters: k.
      metric: The metric.
      seeding: How to begin, or ``None`` where first centroids are given.
      num_restarts: How many starts.
      num_lanes: How many of them go side by side.
      bounded: Whether bounds save the search of some rows.
      plan: What Lloyd's iteration needs to know.
    """

    num_clusters: int
    metric: str
    seeding: str | None
    num_restarts: int
    num_lanes: int
    bounded: bool
    plan: Plan


def k_means(
    key: PRNGKeyArray | Shaped[Array, " 2"] | None,
    x: Shaped[Array | np.ndarray, "n d"],
    num_clusters: int,
    *,
    metric: Metric = "euclidean",
    init: Seeding | Shaped[Array | np.ndarray, "*starts k d"] = "greedy-k-means++",
    num_restarts: int = 1,
    max_steps: int = 300,
    tol: float | Float[Array, ""] = 1e-4,
    weights: Shaped[Array | np.ndarray, " n"] | None = None,
    covariance: Shaped[Array | np.ndarray, "d d"] | None = None,
    chunk_size: int | None = None,
) -> KMeansResult:
    r"""Find ``num_clusters`` points near which the rows lie.

    .. math::
        \min_{c_1, \dots, c_k} \sum_i w_i \min_j D(x_i, c_j), \qquad
        D(x, c) = \begin{cases}
            \lVert x - c \rVert^2 & \text{euclidean} \\
            \sum_f \lvert x_f - c_f \rvert & \text{manhattan} \\
            1 - \cos(x, c) & \text{cosine} \\
            (x - c)^\top \Sigma^{-1} (x - c) & \text{mahalanobis}
        \end{cases}

    by Lloyd's iteration: label each row with its nearest centroid, move each centroid to the minimum of its rows' cost
    (mean, median or mean direction), and again. Inertia never rises, up to rounding; the minimum is a local one, so
    the start matters, and ``num_restarts`` helps.

    Args:
      key: Decides the start. May be ``None`` where ``init`` is an array.
      x: Shape (n, d). An array whose rows are sharded is clustered where it lies: k × d numbers travel a step.
      num_clusters: k, from 1 to n. Static.
      metric: What rows pay. Static.
      init: How to begin: ``"random"`` rows; ``"k-means++"``; ``"greedy-k-means++"``, the best of 2 + ⌊log k⌋ candidates
        a step, the default here and what scikit-learn calls ``"k-means++"``; ``"k-means||"``, five rounds of 2k rows
        each, for large k; or centroids of shape (k, d), or (num_restarts, k, d). A name is static.
      num_restarts: How many starts; the result is the best of them. Static.
      max_steps: The most steps a start takes. Static.
      tol: A start has converged when the squared movement of all centroids together is at most ``tol`` times the mean
        variance of the features. 0 goes on until no label changes.
      weights: Shape (n,), how much each row counts, at least 0; ``None`` for all alike.
      covariance: Shape (d, d), Σ for ``"mahalanobis"``; ``None`` for that of the rows.
      chunk_size: How many rows are worked on at a time; ``None`` chooses. Static.

    Returns:
      The clustering, computed and returned in the dtype of ``x``; in float32 for half precision and integers.

    Raises:
      TypeError: ``x`` is no array of real numbers, a number has the wrong type, or there is no key.
      ValueError: A shape or an option does not fit, k is larger than n, or, for concrete arrays, a row of positive
        weight is not finite, a weight is negative or not finite, no weight is positive, or ``covariance`` is not
        symmetric and positive definite.

    Numerics:
      Data are centred and scaled first, so neither an offset of 1e6 nor a unit of 1e-30 costs digits. The labels are
      those of a search of every row, whether or not bounds save it. A centroid left without rows moves to the row that
      pays most; where rows have fewer than k distinct values some stay without, and ``num_distinct`` says so. A row
      equally near to two centroids goes to the first. Under ``jit``, where data cannot be refused, a row that is not
      finite, or whose weight is not positive, takes no part, and the label of one that is not finite is -1. Under
      ``"cosine"`` a row of zeros pays 1 whatever its label. There is no gradient to speak of: labels are steps.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxgrad.clustering import k_means
      >>> x = jnp.array([[0.0], [1.0], [10.0], [12.0]])
      >>> result = k_means(jax.random.key(0), x, 2)
      >>> print(result.inertia, bool(result.converged))
      2.5 True

    References:
      :cite:p:`lloyd1982least`; :cite:p:`arthur2007kmeans` for k-means++, section 2.2; :cite:p:`bahmani2012scalable` for
      k-means||, algorithm 2; :cite:p:`hamerly2010making` for the bounds, with lemma 1 of :cite:p:`elkan2003using`.

    See also:
      :func:`~jaxgrad.clustering.assign` for new rows, :func:`~jaxgrad.clustering.k_means_update` for data in batches;
      ``sklearn.cluster.KMeans``, whose ``n_init`` is ``num_restarts`` and whose ``max_iter`` is ``max_steps``.
    """
    name = "k_means"
    x = check_rows(name, x)
    num_rows, num_features = x.shape
    check_count(name, "num_clusters", num_clusters, 1, num_rows, ", the number of rows")
    check_count(name, "num_restarts", num_restarts, 1)
    check_count(name, "max_steps", max_steps, 1)
    check_number(name, "tol", tol, low=0)
    if chunk_size is not None:
        check_count(name, "chunk_size", chunk_size, 1)
    covariance = check_metric(name, metric, covariance, num_features, x.dtype)
    starts, seeding = check_init(name, init, num_restarts, (num_clusters, num_features), x.dtype)
    if seeding is not None:
        check_key(name, key)
    weights = check_weights(name, weights, x)
    check_some_weight(name, weights)
    refuse_rows(name, x, weights)

    layout = shards(x)
    local = num_rows // (1 if layout is None else layout.size)
    plan = Plan(
        metric="euclidean" if metric == "mahalanobis" else metric,
        block=block_size(chunk_size, local, num_features, num_clusters),
        axes=() if layout is None else layout.axes,
        max_steps=max_steps,
        weighted=weights is not None or isinstance(x, Tracer),
    )
    small = local * num_clusters * num_features <= _SMALL
    settings = Settings(
        num_clusters=num_clusters,
        metric=metric,
        seeding=seeding,
        num_restarts=num_restarts,
        num_lanes=min(num_restarts, _LANES) if small else 1,
        bounded=not small and metric != "manhattan" and num_clusters > 1 and max_steps > _FEW_STEPS,
        plan=plan,
    )
    tol = jnp.asarray(tol, x.dtype)
    return _fit(None if seeding is None else key, x, weights, starts, covariance, tol, settings=settings, layout=layout)


def assign(
    centroids: KMeansResult | Shaped[Array | np.ndarray, "k d"],
    x: Shaped[Array | np.ndarray, "n d"],
    *,
    metric: Metric = "euclidean",
    covariance: Shaped[Array | np.ndarray, "d d"] | None = None,
    chunk_size: int | None = None,
) -> Int[Array, " n"]:
    r"""Label each row with its nearest centroid.

    .. math:: \ell_i = \arg\min_j D(x_i, c_j)

    Args:
      centroids: Shape (k, d), or the result of a fit.
      x: Shape (n, d); may be sharded by rows.
      metric: As in :func:`~jaxgrad.clustering.k_means`. Static.
      covariance: Shape (d, d); for ``"mahalanobis"``, where it is needed, and for no other metric.
      chunk_size: How many rows are worked on at a time; ``None`` chooses. Static.

    Returns:
      Shape (n,); int32, the first of equally near centroids; -1 for a row that is not finite, under ``jit``.

    Raises:
      TypeError: Not real numbers.
      ValueError: A shape or an option does not fit, or a concrete row or centroid is not finite.

    Numerics:
      Distances are taken around the mean of the centroids and scaled by their spread, so an offset costs no digits.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.clustering import assign
      >>> print(assign(jnp.array([[0.0], [10.0]]), jnp.array([[1.0], [7.0]])))
      [0 1]

    See also:
      ``sklearn.cluster.KMeans.predict``, ``scipy.cluster.vq.vq``.
    """
    name = "assign"
    x = check_rows(name, x)
    given = getattr(centroids, "centroids", centroids)
    given = check_rows(f"{name}, of the centroids", given, x.shape[1]).astype(x.dtype)
    covariance = check_metric(name, metric, covariance, x.shape[1], x.dtype, needed=True)
    if chunk_size is not None:
        check_count(name, "chunk_size", chunk_size, 1)
    refuse_rows(name, x, None)
    refuse_rows(f"{name}, of the centroids", given, None)
    layout = shards(x)
    local = x.shape[0] // (1 if layout is None else layout.size)
    block = block_size(chunk_size, local, x.shape[1], given.shape[0])
    return _assign(given, x, covariance, metric=metric, block=block, layout=layout)


def check_init(
    function: str, init: Any, num_restarts: int, shape: tuple[int, int], dtype: Any
) -> tuple[Array | None, str | None]:
    """Return the first centroids, one set a start, or how to choose them."""
    if isinstance(init, str):
        if init not in SEEDINGS:
            got = f"init={init!r}"
            raise ValueError(message(function, f"init in {SEEDINGS}, or centroids", got, "pass one of these"))
        return None, init
    starts = jnp.asarray(init)
    if starts.shape not in ((num_restarts, *shape), shape) or (starts.ndim == 2 and num_restarts > 1):
        expected = f"init of shape {shape if num_restarts == 1 else (num_restarts, *shape)}"
        remedy = "pass one row a cluster, and one such set a restart"
        raise ValueError(message(function, expected, f"shape {starts.shape}", remedy))
    starts = check_rows(f"{function}, of init", starts.reshape(-1, shape[1])).astype(dtype)
    refuse_rows(f"{function}, of init", starts, None)
    return starts.reshape(num_restarts, *shape), None


@partial(jax.jit, static_argnames=("settings", "layout"))
def _fit(
    key: Array | None,
    x: Array,
    weights: Array | None,
    starts: Array | None,
    covariance: Array | None,
    tol: Array,
    *,
    settings: Settings,
    layout: Shards | None,
) -> KMeansResult:
    """Fit on one device, or on each with its own rows."""
    fit = partial(_fit_rows, settings=settings)
    if layout is None:
        return fit(key, x, weights, starts, covariance, tol)
    whole: Any = PartitionSpec()
    rows: Any = PartitionSpec(layout.axes)
    out = KMeansResult(whole, rows, whole, whole, whole, whole)
    return over_shards(fit, layout, (whole, rows, rows, whole, whole, whole), out)(
        key, x, weights, starts, covariance, tol
    )


def _fit_rows(
    key: Array | None,
    x: Array,
    weights: Array | None,
    starts: Array | None,
    covariance: Array | None,
    tol: Array,
    *,
    settings: Settings,
) -> KMeansResult:
    """Fit the rows of this device, together with those of the others."""
    metric, plan = settings.metric, settings.plan
    mass, _ = rows_taken(x, weights)
    where = coordinates(x, mass, covariance, metric, plan.axes)
    rows = place(x, mass, where, metric)
    if starts is not None:
        starts = forward(starts.reshape(-1, x.shape[1]), where, metric).reshape(starts.shape)
    if metric == "cosine":
        # Directions close to one another differ in their last digits, which centring keeps.
        middle, total = psum((jnp.dot(mass, rows.values, precision="highest"), jnp.sum(mass)), plan.axes)
        middle = middle / jnp.where(total > 0, total, 1)
        rows = rows._replace(shift=middle)
        starts = None if starts is None else starts - middle[None, None]
        where = where._replace(shift=middle)
    limit = tol * mean_variance(rows, plan.block, plan.axes)

    fit = _run(key, rows, starts, limit, settings)
    # With bounds the cost is that of differences already.
    cost = fit.cost if settings.bounded else total_cost(rows, fit.centroids, fit.labels, plan)
    counts = psum(
        jnp.zeros((settings.num_clusters,), jnp.int32).at[fit.labels].add((mass > 0).astype(jnp.int32)), plan.axes
    )
    zeros = psum(jnp.sum(jnp.where(jnp.any(x != 0, axis=1), 0, mass)), plan.axes) if metric == "cosine" else cost
    return KMeansResult(
        centroids=backward(fit.centroids, where),
        labels=jnp.where(usable(x), fit.labels, -1),
        inertia=inertia(cost, where, metric, zeros),
        num_steps=fit.num_steps,
        converged=fit.converged,
        num_distinct=jnp.sum(counts > 0, dtype=jnp.int32),
    )


def _run(key: Any, rows: Rows, starts: Array | None, limit: Array, settings: Settings) -> Fit:
    """Run every start: side by side where a pass is short, one after another where it is long."""
    plan, k = settings.plan, settings.num_clusters

    def begin(index: Array) -> Array:
        if starts is not None:
            return starts[index]
        own = jax.random.fold_in(key, index) if settings.num_restarts > 1 else key
        return seed(own, rows, k, method=settings.seeding, metric=plan.metric, block=plan.block, axes=plan.axes)

    def run(index: Array) -> Fit:
        start = begin(index)
        if settings.bounded:
            return bounded_lloyd(rows, start, limit, plan)
        return lloyd(rows, start[None], limit, plan)

    if settings.num_restarts == 1:
        return run(jnp.zeros((), jnp.int32))
    if settings.num_lanes > 1:
        indices = jnp.arange(settings.num_restarts, dtype=jnp.int32)
        return lloyd(rows, jax.vmap(begin)(indices), limit, plan, settings.num_lanes)
    nothing = no_fit(rows, jnp.zeros((k, rows.values.shape[1]), limit.dtype))
    count = jnp.int32(settings.num_restarts)
    return lax.fori_loop(jnp.int32(0), count, lambda index, best: better(best, run(index)), nothing)


@partial(jax.jit, static_argnames=("metric", "block", "layout"))
def _assign(
    centroids: Array, x: Array, covariance: Array | None, *, metric: str, block: int, layout: Shards | None
) -> Array:
    """Label rows where they lie."""

    def local(centroids: Array, x: Array, covariance: Array | None) -> Array:
        where = coordinates(centroids, jnp.ones_like(centroids[:, 0]), covariance, metric)
        finite = usable(x)
        rows = place(x, finite.astype(x.dtype), where, metric)
        points = forward(centroids, where, metric)[None]

        def step(labels: Array, start: Array | int, size: int) -> Array:
            found = nearest(rows.block(start, size)[0], points, metric).labels[0]
            return lax.dynamic_update_slice_in_dim(labels, found, start, 0)

        labels = fold_blocks(step, jnp.zeros((x.shape[0],), jnp.int32), x.shape[0], block)
        return jnp.where(finite, labels, -1)

    if layout is None:
        return local(centroids, x, covariance)
    whole, rows = PartitionSpec(), PartitionSpec(layout.axes)
    return over_shards(local, layout, (whole, rows, whole), rows)(centroids, x, covariance)
