"""Exact k-means of data larger than memory: Lloyd's iteration in passes over batches, with totals in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from jaxgrad._checks import check_number, message
from jaxgrad._inputs import check_key
from jaxgrad._rows import shards
from jaxgrad.clustering._batches import BatchTotals, Moments, batch_moments, farthest, totals
from jaxgrad.clustering._coordinates import Coordinates
from jaxgrad.clustering._inputs import check_count, check_metric
from jaxgrad.clustering._k_means import Metric, Seeding, check_init, k_means
from jaxgrad.clustering._source import Sample, Source, results


class KMeansProgress(NamedTuple):
    """How far a fit in passes has come.

    Attributes:
      num_steps: Which pass this is: 0 for the first, which looks at the data; each one after it but the last moves the
        centroids.
      num_rows: Rows of this pass that are done.
      total_rows: Rows of a whole pass; ``None`` during the first, except of an array.
      inertia: What the rows done pay for the centroids of this pass; ``None`` during the first.
    """

    num_steps: int
    num_rows: int
    total_rows: int | None
    inertia: float | None


class KMeansStreamResult(NamedTuple):
    """A clustering of data that are not in memory; their labels would be as many as they.

    Attributes:
      centroids: Shape (k, d); means, unit vectors for ``"cosine"``.
      counts: Shape (k,); the weight of the rows nearest to each.
      inertia: Shape (); what all rows pay, each times its weight, in the unit of the metric.
      num_steps: Shape (); int32, how often the centroids were moved.
      converged: Shape (); whether they stopped within ``tol`` before ``max_steps``.
      num_distinct: Shape (); int32, how many centroids have rows.
      num_rows: How many rows took part; a Python int, which does not overflow.
      covariance: Shape (d, d); for ``"mahalanobis"`` the Σ that was used, else ``None``.
    """

    centroids: Float[Array, "k d"]
    counts: Float[Array, " k"]
    inertia: Float[Array, ""]
    num_steps: Int[Array, ""]
    converged: Bool[Array, ""]
    num_distinct: Int[Array, ""]
    num_rows: int
    covariance: Float[Array, "d d"] | None


def k_means_stream(
    key: PRNGKeyArray | Shaped[Array, " 2"] | None,
    batches: Callable[[], Iterable[Any]] | Iterable[Any],
    num_clusters: int,
    *,
    metric: Metric = "euclidean",
    init: Seeding | Shaped[Array | np.ndarray, "k d"] = "greedy-k-means++",
    max_steps: int = 300,
    tol: float = 1e-4,
    covariance: Shaped[Array | np.ndarray, "d d"] | None = None,
    batch_size: int | None = None,
    sample_size: int | None = None,
    progress: Callable[[KMeansProgress], object] | None = None,
) -> KMeansStreamResult:
    r"""Find the centroids that ``k_means`` finds, of data seen only a batch at a time.

    .. math::
        c_j \leftarrow \frac{\sum_b \sum_{i \in b : \ell_i = j} w_i x_i}{\sum_b \sum_{i \in b : \ell_i = j} w_i},
        \qquad \ell_i = \arg\min_j D(x_i, c_j),

    the sum over batches b in one pass over all of them: Lloyd's iteration itself, not an approximation. Memory holds
    a few batches and the centroids. A fit takes ``num_steps + 2`` passes: the first looks at the data, and the last
    finds the inertia and counts of the centroids that are returned.

    Args:
      key: Decides the sample, and the start within it. May be ``None`` where ``init`` is an array.
      batches: Rows, some at a time: a function that returns a fresh iterator, or an object that can be iterated over
        more than once, such as a list or a data loader; each item an array of shape (m, d), or a pair of that and
        weights of shape (m,). Every pass must give the same rows. Or one array of shape (n, d), such as a
        ``numpy.memmap``, of which ``batch_size`` rows are read at a time. A batch with fewer rows than those before is
        padded, so that one program is compiled; one with more compiles another. Rows of a ``jax.Array`` may be sharded.
      num_clusters: k, at most the number of rows.
      metric: As in :func:`jaxgrad.clustering.k_means`, without ``"manhattan"``: medians cannot be added up.
      init: How to begin: a uniform sample of the rows is taken in the first pass, and ``k_means`` of it from ``init``
        gives the first centroids, so that few passes are left to do. Or centroids of shape (k, d).
      max_steps: The most steps.
      tol: The fit has converged when the squared movement of all centroids together is at most ``tol`` times the mean
        variance of the features. 0 goes on until they move no further than rounding does.
      covariance: Shape (d, d), Σ for ``"mahalanobis"``; ``None`` for that of all rows.
      batch_size: How many rows of an array are read at a time; ``None`` chooses.
      sample_size: How many rows are sampled; ``None`` for 100 a cluster, and at least 10,000.
      progress: Called with a :class:`jaxgrad.clustering.KMeansProgress` after each batch; what it raises ends the fit.

    Returns:
      The clustering, in the dtype of the first batch; in float32 for half precision and integers. Labels come a batch
      at a time from ``assign(result.centroids, batch, metric=metric, covariance=result.covariance)``.

    Raises:
      TypeError: ``batches`` can be gone through only once, as a generator can, or does not give arrays of real numbers.
      ValueError: There are no rows, fewer than k, or other rows in a later pass; features differ from batch to batch; a
        row is not finite; a weight is negative or not finite; no weight is positive; or an option does not fit.

    Numerics:
      A batch's totals are in the dtype of the data, of differences from the centroids; the sum of many batches is in
      float64, and so are centroids until they are compared with rows. From the same centroids this gives those of
      ``k_means`` up to rounding, also of data far from zero. A centroid left without rows moves to the row that pays
      most, at the price of one more pass. While a batch is computed with the next is read; a batch is copied first, so
      its buffer may be used again.

    Example:
      >>> import numpy as np
      >>> from jaxgrad.clustering import k_means_stream
      >>> batches = [np.array([[0.0], [10.0]]), np.array([[1.0], [12.0], [11.0]])]
      >>> result = k_means_stream(None, batches, 2, init=np.array([[0.0], [1.0]]))
      >>> result.centroids.tolist(), result.counts.tolist()
      ([[0.5], [11.0]], [2.0, 3.0])

    References:
      :cite:p:`lloyd1982least`.

    See also:
      :func:`jaxgrad.clustering.k_means_update` for data that can be seen only once.
    """
    name = "k_means_stream"
    if metric == "manhattan":
        remedy = "use k_means_update, which approaches them, or k_means of a sample"
        raise ValueError(message(name, "a metric whose centroids are sums", "manhattan: medians are none", remedy))
    check_metric(name, metric, None, 1, None)
    check_count(name, "num_clusters", num_clusters, 1)
    check_count(name, "max_steps", max_steps, 1)
    check_number(name, "tol", tol, low=0)
    for setting, value in (("batch_size", batch_size), ("sample_size", sample_size)):
        if value is not None:
            check_count(name, setting, value, 1)
    if isinstance(init, str):
        check_key(name, key)
    source = Source(name, batches, batch_size)
    size = sample_size or max(100 * num_clusters, 10_000)

    seen = _look(source, metric, Sample(key, max(size, num_clusters)) if isinstance(init, str) else None, progress)
    num_features = seen.mean.size
    if seen.num_rows < num_clusters:
        got = f"{seen.num_rows} rows of positive weight"
        raise ValueError(message(name, f"at least num_clusters={num_clusters} rows", got, "ask for fewer clusters"))
    covariance = check_metric(name, metric, covariance, num_features, source.dtype)
    starts, _ = check_init(name, init, 1, (num_clusters, num_features), source.dtype)
    if starts is None:
        rows, weights = seen.sample
        starts = k_means(key, rows, num_clusters, metric=metric, init=init, weights=weights, covariance=covariance)[0][
            None
        ]
    where = _coordinates(seen, metric, covariance, source.dtype)
    fit = _lloyd(source, np.asarray(starts[0], np.float64), where, seen, metric, max_steps, float(tol), progress)

    scale, shift = float(where.scale), np.asarray(where.shift, np.float64)
    if metric == "mahalanobis" and covariance is None:
        covariance = jnp.asarray(seen.square / seen.weight, source.dtype)
    return KMeansStreamResult(
        centroids=jnp.asarray(fit.points / scale + shift, source.dtype),
        counts=jnp.asarray(fit.counts, source.dtype),
        inertia=jnp.asarray(fit.inertia, source.dtype),
        num_steps=jnp.asarray(fit.num_steps, jnp.int32),
        converged=jnp.asarray(fit.converged),
        num_distinct=jnp.asarray(np.sum(fit.counts > 0), jnp.int32),
        num_rows=seen.num_rows,
        covariance=covariance,
    )


class _Seen(NamedTuple):
    """What the first pass tells, in float64.

    Attributes:
      mean: Shape (d,).
      square: Shape (d,), the sum of squared deviations of each feature; (d, d), with products, for ``"mahalanobis"``.
      weight: The sum of the weights.
      num_rows: Rows of positive weight.
      reach: The largest deviation from the mean, at most.
      sample: Rows and weights, if any were asked for.
    """

    mean: np.ndarray
    square: np.ndarray
    weight: float
    num_rows: int
    reach: float
    sample: Any


def _look(source: Source, metric: str, sample: Sample | None, progress: Any) -> _Seen:
    """Go through the data once before anything is multiplied."""
    seen = None

    def dispatch(x: Array, weights: Array | None, count: int) -> Moments:
        if sample is not None:
            sample.add(x, weights, count)
        return batch_moments(x, weights, np.int32(count), metric=metric, layout=shards(x))

    done = 0
    for index, (count, part) in enumerate(results(source, dispatch)):
        if part.bad:
            expected, got = "finite rows", f"{int(part.bad)} with a NaN or an infinity in batch {index}"
            raise ValueError(message(source.function, expected, got, "fill them in, drop them, or give them weight 0"))
        done += count
        seen = _merge(seen, part)
        if progress is not None:
            progress(KMeansProgress(0, done, source.total_rows, None))
    if seen is None or not seen.weight > 0:
        remedy = "give some row a positive weight"
        raise ValueError(message(source.function, "rows of positive weight", "none", remedy))
    return seen._replace(sample=None if sample is None else sample.rows)


def _merge(seen: _Seen | None, part: Any) -> _Seen:
    """Add a batch's moments to those before, in float64."""
    mean = part.mean.astype(np.float64) + part.low
    square = part.square.astype(np.float64) / float(part.scale) ** 2
    new = _Seen(mean, square, float(part.weight), int(part.num_rows), float(part.peak), None)
    if seen is None or not seen.weight:
        return new
    if not new.weight:
        return seen
    weight = seen.weight + new.weight
    away = new.mean - seen.mean
    between = np.outer(away, away) if square.ndim == 2 else away**2
    return _Seen(
        mean=seen.mean + new.weight / weight * away,
        square=seen.square + new.square + seen.weight * new.weight / weight * between,
        weight=weight,
        num_rows=seen.num_rows + new.num_rows,
        reach=max(seen.reach, new.reach) + np.abs(away).max(),
        sample=None,
    )


def _coordinates(seen: _Seen, metric: str, covariance: Array | None, dtype: Any) -> Coordinates:
    """Choose coordinates as ``coordinates`` does, from moments."""
    if metric == "cosine":
        return Coordinates(jnp.zeros(seen.mean.shape, dtype), jnp.ones((), dtype))
    limit = -np.finfo(dtype).minexp - 2
    scale = math.ldexp(1.0, -max(min(math.frexp(seen.reach)[1], limit), -limit)) if seen.reach else 1.0
    whiten = None
    if metric == "mahalanobis" and covariance is None:
        variances, directions = np.linalg.eigh(seen.square / seen.weight * scale**2)
        present = variances > variances.max() * np.finfo(dtype).eps * max(seen.mean.size, 10)
        whiten = np.where(present, directions, 0) / np.sqrt(np.where(present, variances, 1))
    elif metric == "mahalanobis":
        whiten = np.linalg.inv(np.linalg.cholesky(np.asarray(covariance, np.float64)) * scale).T
    whiten = None if whiten is None else jnp.asarray(whiten, dtype)
    return Coordinates(jnp.asarray(seen.mean, dtype), jnp.asarray(scale, dtype), whiten)


def _mean_variance(seen: _Seen, where: Coordinates, metric: str) -> float:
    """Average the features' variances, in coordinates."""
    spread = seen.square / seen.weight * float(where.scale) ** 2
    if metric == "mahalanobis":
        whiten = np.asarray(where.whiten, np.float64)
        return float(np.sum(whiten * (spread @ whiten))) / seen.mean.size
    return float(np.mean(spread))


class _Fit(NamedTuple):
    """Centroids, in coordinates, and what a pass found of them; float64."""

    points: np.ndarray
    counts: np.ndarray
    inertia: float
    num_steps: int
    converged: bool


def _lloyd(
    source: Source,
    start: np.ndarray,
    where: Coordinates,
    seen: _Seen,
    metric: str,
    max_steps: int,
    tol: float,
    progress: Any,
) -> _Fit:
    """Pass over the data until the centroids stay."""
    dtype = where.shift.dtype
    limit = tol * _mean_variance(seen, where, metric)
    points = (
        _directions(start, start)
        if metric == "cosine"
        else (start - np.asarray(where.shift, np.float64)) * float(where.scale)
    )
    num_steps, settled = 0, False
    while True:
        points = points.astype(dtype).astype(np.float64)  # as the rows will see them
        report = None if progress is None else partial(_report, progress, source, num_steps + 1)
        total, cost = _pass(source, points.astype(dtype), where, metric, report)
        if settled or num_steps == max_steps:
            return _Fit(points, total.counts, cost, num_steps, settled)
        sums, counts = total.moved, total.counts
        if not counts.all():
            sums, counts = _relocate(source, points, where, metric, sums, counts)
        made_of = np.where(counts > 0, counts, 1)[:, None]
        moved = points + sums / made_of
        if metric == "cosine":
            moved = _directions(moved, points)
        movement = _movement(moved - points, where)
        # Sums of float32 round: a centroid that has arrived still trembles in its last places.
        rounding = (4 * float(np.finfo(dtype).eps)) ** 2 * _movement(points, where)
        settled = movement <= max(limit, rounding)
        num_steps += 1
        if movement <= rounding:
            return _Fit(points, total.counts, cost, num_steps, True)
        points = moved


def _directions(points: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Scale rows to length one; one of zeros stays as before."""
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return np.where(lengths > 0, points / np.where(lengths > 0, lengths, 1), before)


def _movement(away: np.ndarray, where: Coordinates) -> float:
    """Sum squares, as the metric has them."""
    return float(np.sum((away if where.whiten is None else away @ np.asarray(where.whiten, np.float64)) ** 2))


def _report(progress: Any, source: Source, num_steps: int, num_rows: int, cost: float) -> None:
    progress(KMeansProgress(num_steps, num_rows, source.total_rows, cost))


def _pass(source: Source, points: np.ndarray, where: Coordinates, metric: str, report: Any) -> tuple[Any, float]:
    """Add up the totals of all batches in float64; and what all rows pay, in the unit of the metric."""

    def dispatch(x: Array, weights: Array | None, count: int) -> BatchTotals:
        return totals(x, weights, np.int32(count), points, where, metric=metric, layout=shards(x))

    total: Any = None
    done = 0
    for count, part in results(source, dispatch):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), part)
        total = wide if total is None else jax.tree.map(np.add, total, wide)
        done += count
        if report is not None:
            report(done, _inertia(total, where, metric))
    return total, _inertia(total, where, metric)


def _inertia(total: Any, where: Coordinates, metric: str) -> float:
    """Bring what rows pay to the unit of the metric, as ``inertia`` does, in float64."""
    if metric == "cosine":
        return float(0.5 * (total.cost + total.zeros))
    return float(total.cost) / (1 if metric == "mahalanobis" else float(where.scale) ** 2)


def _relocate(
    source: Source, points: np.ndarray, where: Coordinates, metric: str, sums: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Give clusters without rows the rows that pay most, as ``relocate`` does."""
    k = points.shape[0]

    def dispatch(x: Array, weights: Array | None, count: int) -> Any:
        return farthest(
            x, weights, np.int32(count), points.astype(where.shift.dtype), where, metric=metric, layout=shards(x)
        )

    best: list[np.ndarray] = []
    for _, part in results(source, dispatch):
        both = [np.concatenate(pair) for pair in zip(best, part, strict=True)] if best else list(part)
        order = np.argsort(-both[0], kind="stable")[:k]
        best = [leaf[order] for leaf in both]
    paid, donors, weights, rows = best
    sums, counts = sums.copy(), counts.copy()
    seen = rows if where.whiten is None else rows @ np.asarray(where.whiten)
    noise = (8 * np.finfo(rows.dtype).eps) ** 2 * (1 + np.sum(seen.astype(np.float64) ** 2, axis=1))
    for used, j in enumerate(np.flatnonzero(counts == 0)[: paid.size]):
        donor, weight = donors[used], float(weights[used])
        if paid[used] > noise[used] and counts[donor] > weight * (1 + 1e-6):
            sums[donor] -= weight * (rows[used] - points[donor])
            sums[j] = weight * (rows[used] - points[j])
            counts[donor] -= weight
            counts[j] = weight
    return sums, counts
