"""How good a clustering is: silhouettes, and the inertia of each cluster."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Real

from jaxgrad._checks import message
from jaxgrad._inputs import check_rows, check_weights, refuse_rows, usable
from jaxgrad._rows import fold_blocks
from jaxgrad.clustering._coordinates import directions
from jaxgrad.clustering._distances import costs
from jaxgrad.clustering._inputs import check_count, check_metric

Metric = Literal["euclidean", "manhattan", "cosine", "mahalanobis"]


def silhouette(
    x: Real[Array, "n d"],
    labels: Int[Array, " n"],
    num_clusters: int,
    *,
    metric: Metric = "euclidean",
    covariance: Real[Array, "d d"] | None = None,
    chunk_size: int | None = None,
) -> Float[Array, " n"]:
    r"""Compute how much nearer each row is to its own cluster than to the next one.

    .. math::
        s_i = \frac{b_i - a_i}{\max(a_i, b_i)}

    with :math:`a_i` the mean distance from row i to the other rows of its cluster, and :math:`b_i` the mean distance to
    the rows of that other cluster for which it is least. In [-1, 1]; the mean over the rows is the score of the
    clustering.

    Every pair of rows is visited, n²d operations, in blocks: no array of n × n is made. For more rows than that allows
    take a sample of them, or :func:`~jaxgrad.clustering.simplified_silhouette`.

    Args:
      x: Shape (n, d); integers are computed in floating point, half precision in float32.
      labels: Shape (n,); the cluster of each row, from 0 to k - 1. A row with any other label, say -1 for noise, takes
        no part.
      num_clusters: k, at least 2. Static.
      metric: The distance: ``"euclidean"`` (not squared), ``"manhattan"``, ``"cosine"``, which is 1 minus the cosine,
        or ``"mahalanobis"``. Static.
      covariance: Shape (d, d), positive definite; for ``"mahalanobis"`` only, and needed there.
      chunk_size: How many rows a block has, so that 3 blocks of chunk_size × (d + chunk_size) are in memory at a time
        beside a copy of ``x``. ``None`` chooses from n and k. Static.

    Returns:
      Shape (n,), in the dtype of ``x``, or float32 for half precision.

    Raises:
      ValueError: A metric that does not exist, fewer than 2 clusters, shapes that do not fit, a covariance with another
        metric or missing, rows that are not finite.
      TypeError: Labels that are not integers.

    Numerics:
      0 for a row alone in its cluster, for a row that takes no part, where only one cluster has rows, and where
      both means are 0. Distances are computed around the middle of each block of a cluster, so clusters far from zero
      and from each other keep their digits. A row of zeros is at cosine distance 1 from every other one. Under ``jit``
      a row that is not finite takes no part, and a covariance that is not positive definite makes all results NaN. The
      gradient is finite, equal rows included.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad import clustering
      >>> x = jnp.array([[0.0], [2.0], [9.0], [11.0]])
      >>> print(f"{clustering.silhouette(x, jnp.array([0, 0, 1, 1]), 2).mean():.3f}")
      0.775

    References:
      :cite:p:`rousseeuw1987silhouettes`, section 2.

    See also:
      ``sklearn.metrics.silhouette_samples``, which refuses a single cluster.
    """
    name = "silhouette"
    x, labels, covariance = _check(name, x, labels, metric, covariance)
    check_count(name, "num_clusters", num_clusters, 2)
    if chunk_size is None:
        chunk_size = min(max(x.shape[0] // (4 * num_clusters), 64), 1024)
    check_count(name, "chunk_size", chunk_size, 1)
    return _silhouette(x, labels, covariance, num_clusters, metric, chunk_size)


def simplified_silhouette(
    x: Real[Array, "n d"],
    centroids: Real[Array, "k d"],
    labels: Int[Array, " n"],
    *,
    metric: Metric = "euclidean",
    covariance: Real[Array, "d d"] | None = None,
    chunk_size: int = 4096,
) -> Float[Array, " n"]:
    r"""Compute how much nearer each row is to its own centroid than to the next one.

    .. math::
        s_i = \frac{b_i - a_i}{\max(a_i, b_i)}

    with :math:`a_i` the distance from row i to the centroid of its cluster, and :math:`b_i` the least distance to
    another centroid. For nkd operations instead of n²d it ranks clusterings much as :func:`silhouette` does.

    Args:
      x: Shape (n, d).
      centroids: Shape (k, d), k at least 2.
      labels: Shape (n,); the cluster of each row, from 0 to k - 1. A row with any other label gets 0.
      metric: As in :func:`silhouette`. Static.
      covariance: As in :func:`silhouette`.
      chunk_size: How many rows to work on at a time. Static.

    Returns:
      Shape (n,), in the dtype of ``x``, or float32 for half precision.

    Raises:
      ValueError: As :func:`silhouette`; or rows and centroids of different dimension.
      TypeError: Labels that are not integers.

    Numerics:
      1 for a row on its centroid, 0 where two centroids lie on the row or where it is not finite under ``jit``. With
      labels that are not the nearest centroid's it is negative.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad import clustering
      >>> x, centroids = jnp.array([[0.0], [1.0], [10.0]]), jnp.array([[0.0], [10.0]])
      >>> print(clustering.simplified_silhouette(x, centroids, jnp.array([0, 0, 1])).round(2))
      [1.   0.89 1.  ]

    References:
      :cite:p:`hruschka2004evolutionary`, the simplified silhouette.
    """
    name = "simplified_silhouette"
    x, labels, covariance = _check(name, x, labels, metric, covariance)
    centroids = _check_centroids(name, x, centroids)
    check_count(name, "the number of centroids", centroids.shape[0], 2)
    check_count(name, "chunk_size", chunk_size, 1)
    return _simplified(x, centroids, labels, covariance, metric, chunk_size)


def cluster_inertia(
    x: Real[Array, "n d"],
    centroids: Real[Array, "k d"],
    labels: Int[Array, " n"],
    *,
    metric: Metric = "euclidean",
    covariance: Real[Array, "d d"] | None = None,
    weights: Real[Array, " n"] | None = None,
    chunk_size: int = 4096,
) -> Float[Array, " k"]:
    r"""Compute what each cluster adds to the inertia.

    .. math::
        I_c = \sum_{i: l_i = c} w_i \, \delta(x_i, m_c)

    with δ the squared distance for ``"euclidean"`` and ``"mahalanobis"``, the distance for ``"manhattan"``, and
    1 minus the cosine for ``"cosine"``. The sum over the clusters is the inertia; a cluster with much more than the
    others may want splitting.

    Args:
      x: Shape (n, d).
      centroids: Shape (k, d), such as the field of that name of a result.
      labels: Shape (n,); the cluster of each row, from 0 to k - 1. A row with any other label takes no part.
      metric: Static.
      covariance: Shape (d, d), positive definite; for ``"mahalanobis"`` only, and needed there.
      weights: Shape (n,), not negative. ``None`` is 1 for every row.
      chunk_size: How many rows to work on at a time. Static.

    Returns:
      Shape (k,), in the dtype of ``x``, or float32 for half precision.

    Raises:
      ValueError: As :func:`simplified_silhouette`; or weights of another length, negative or NaN.
      TypeError: Labels that are not integers.

    Numerics:
      From differences, not from expanded squares, so it is right far from zero too. 0 for a cluster without rows. Under
      ``jit`` rows that are not finite, and those with a weight that is negative or NaN, take no part.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad import clustering
      >>> x, centroids = jnp.array([[0.0], [1.0], [10.0]]), jnp.array([[0.0], [9.0]])
      >>> print(clustering.cluster_inertia(x, centroids, jnp.array([0, 0, 1])))
      [1. 1.]
    """
    name = "cluster_inertia"
    x, labels, covariance = _check(name, x, labels, metric, covariance)
    centroids = _check_centroids(name, x, centroids)
    check_count(name, "chunk_size", chunk_size, 1)
    weights = check_weights(name, weights, x)
    return _cluster_inertia(x, centroids, labels, covariance, weights, metric, chunk_size)


def _check(name: str, x: Any, labels: Any, metric: str, covariance: Any) -> tuple[Array, Array, Array | None]:
    """Return rows, labels and covariance in the types computed with, or say what is wrong with them."""
    x = check_rows(name, x)
    labels = jnp.asarray(labels)
    if labels.shape != x.shape[:1]:
        raise ValueError(message(name, f"labels of shape {x.shape[:1]}", f"{labels.shape}", "pass one label a row"))
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(message(name, "integer labels", f"{labels.dtype}", "cast them with labels.astype(int)"))
    covariance = check_metric(name, metric, covariance, x.shape[1], x.dtype, needed=True)
    refuse_rows(name, x, None)
    return x, labels, covariance


def _check_centroids(name: str, x: Array, centroids: Any) -> Array:
    """Return centroids in the type of the rows."""
    return check_rows(f"{name}, of the centroids", centroids, x.shape[1]).astype(x.dtype)


@partial(jax.jit, static_argnames=("num_clusters", "metric", "size"))
def _silhouette(x: Array, labels: Array, covariance: Array | None, num_clusters: int, metric: str, size: int) -> Array:
    """Sum the distances from each block of rows to each; a block holds rows of one cluster, the last one padded."""
    num_rows = x.shape[0]
    x, valid = _placed(x, metric, covariance)
    labels = jnp.where(valid & (labels >= 0) & (labels < num_clusters), labels, num_clusters).astype(jnp.int32)
    counts = jnp.zeros(num_clusters, jnp.int32).at[labels].add(1, mode="drop")

    num_blocks = num_rows // size + num_clusters
    blocks_each = -(-counts // size)
    first_block = jnp.cumsum(blocks_each) - blocks_each
    order = jnp.argsort(labels)
    label = labels[order]
    rank = jnp.arange(num_rows, dtype=jnp.int32) - (jnp.cumsum(counts) - counts).at[label].get(mode="clip")
    slot = first_block.at[label].get(mode="clip") * size + rank
    slot = jnp.where(label < num_clusters, slot, num_blocks * size)
    source = jnp.full(num_blocks * size, num_rows, jnp.int32).at[slot].set(order.astype(jnp.int32), mode="drop")
    taken = (source < num_rows).reshape(num_blocks, size)
    laid = x.at[source].get(mode="clip").reshape(num_blocks, size, -1)
    owner = jnp.repeat(jnp.arange(num_clusters), blocks_each, total_repeat_length=num_blocks)

    def one_block(index: Array) -> Array:
        mine = laid[index]
        some = jnp.maximum(jnp.sum(taken[index]), 1).astype(x.dtype)
        middle = jnp.sum(jnp.where(taken[index][:, None], mine, 0), axis=0) / some

        def step(sums: Array, other: Array) -> tuple[Array, None]:
            apart = _apart(laid[other], mine, middle, metric)
            same = (index == other) & jnp.eye(size, dtype=bool)
            total = jnp.sum(jnp.where(taken[other][None] & ~same, apart, 0), axis=1)
            return sums.at[owner[other]].add(total), None

        sums, _ = lax.scan(step, jnp.zeros((num_clusters, size), x.dtype), jnp.arange(num_blocks))
        own = jnp.arange(num_clusters)[:, None] == owner[index]
        others = jnp.where(
            own | (counts == 0)[:, None], jnp.inf, sums / jnp.maximum(counts, 1).astype(x.dtype)[:, None]
        )
        inside = sums[owner[index]] / jnp.maximum(counts[owner[index]] - 1, 1).astype(x.dtype)
        return jnp.where(counts[owner[index]] > 1, _compare(inside, jnp.min(others, axis=0)), 0)

    values = lax.map(one_block, jnp.arange(num_blocks)).reshape(-1)
    return jnp.zeros(num_rows, x.dtype).at[source].set(values, mode="drop")


def _apart(points: Array, others: Array, middle: Array, metric: str) -> Array:
    """Compute distances around a point, so that near ones keep their digits; the others along the leading axis."""
    apart = costs(points - middle[None], others - middle[None], metric)
    if metric == "manhattan":
        return apart
    if metric == "cosine":
        # 1 - u·v, for rows of length 1 and of length 0.
        missing = [1 - jnp.any(rows != 0, axis=1).astype(apart.dtype) for rows in (points, others)]
        return (apart + missing[0][None] + missing[1][:, None]) / 2
    return _root(apart)


def _root(squares: Array) -> Array:
    """Take the square root, with gradient 0 at 0."""
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def _compare(inside: Array, outside: Array) -> Array:
    """Compute the silhouette from the two means; 0 where there is no other cluster."""
    compared = jnp.isfinite(outside) & (jnp.maximum(inside, outside) > 0)
    outside = jnp.where(compared, outside, 1)
    return jnp.where(compared, (outside - inside) / jnp.maximum(inside, outside), 0)


@partial(jax.jit, static_argnames=("metric", "size"))
def _simplified(x: Array, centroids: Array, labels: Array, covariance: Array | None, metric: str, size: int) -> Array:
    """Compare the distances to centroids, a block of rows at a time."""
    num_clusters = centroids.shape[0]
    x, valid = _placed(x, metric, covariance)
    centroids = _placed(centroids.astype(x.dtype), metric, covariance)[0]
    labels = labels.astype(jnp.int32)
    valid = valid & (labels >= 0) & (labels < num_clusters)
    middle = jnp.mean(centroids, axis=0)

    def step(values: Array, start: Array | int, count: int) -> Array:
        points, label, counted = (lax.dynamic_slice_in_dim(each, start, count) for each in (x, labels, valid))
        apart = _apart(points, centroids, middle, metric)
        mine = jnp.arange(num_clusters, dtype=jnp.int32)[:, None] == label[None]
        inside = _cost(points, centroids.at[label].get(mode="clip"), metric)
        inside = _root(inside) if metric in ("euclidean", "mahalanobis") else inside
        value = _compare(inside, jnp.min(jnp.where(mine, jnp.inf, apart), axis=0))
        return lax.dynamic_update_slice_in_dim(values, jnp.where(counted, value, 0), start, 0)

    return fold_blocks(step, jnp.zeros(x.shape[0], x.dtype), x.shape[0], size)


@partial(jax.jit, static_argnames=("metric", "size"))
def _cluster_inertia(
    x: Array, centroids: Array, labels: Array, covariance: Array | None, weights: Array | None, metric: str, size: int
) -> Array:
    """Sum what rows pay for their own centroid, a block of rows at a time."""
    num_clusters = centroids.shape[0]
    x, valid = _placed(x, metric, covariance)
    centroids = _placed(centroids.astype(x.dtype), metric, covariance)[0]
    weight = jnp.ones_like(x[:, 0]) if weights is None else weights.astype(x.dtype)
    weight = jnp.where(valid & (weight > 0), weight, 0)
    labels = jnp.where((labels >= 0) & (labels < num_clusters), labels, num_clusters)

    def step(totals: Array, start: Array | int, count: int) -> Array:
        points, label, each = (lax.dynamic_slice_in_dim(array, start, count) for array in (x, labels, weight))
        cost = _cost(points, centroids.at[label].get(mode="clip"), metric)
        return totals.at[label].add(each * cost, mode="drop")

    return fold_blocks(step, jnp.zeros(num_clusters, x.dtype), x.shape[0], size)


def _cost(points: Array, centroids: Array, metric: str) -> Array:
    """Compute what each row pays for the centroid beside it, from differences."""
    if metric == "manhattan":
        return jnp.sum(jnp.abs(points - centroids), axis=1)
    squares = jnp.sum((points - centroids) ** 2, axis=1)
    if metric == "cosine":
        missing = [1 - jnp.any(rows != 0, axis=1).astype(squares.dtype) for rows in (points, centroids)]
        return (squares + missing[0] + missing[1]) / 2
    return squares


def _placed(x: Array, metric: str, covariance: Array | None) -> tuple[Array, Array]:
    """Bring rows to where the metric is Euclidean; rows that are not finite become zeros.

    Returns:
      The rows, and whether each is finite.
    """
    finite = usable(x)
    x = jnp.where(finite[:, None], x, 0)
    if metric == "cosine":
        return directions(x), finite
    if covariance is not None:
        factor = jnp.linalg.cholesky(covariance.astype(x.dtype))
        x = lax.linalg.triangular_solve(factor, x, left_side=False, lower=True, transpose_a=True)
    return x, finite
