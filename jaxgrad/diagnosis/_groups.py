"""Groups of layers, or of units, whose gradients look alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from jaxgrad._checks import check_number, message
from jaxgrad.clustering import k_means, silhouette
from jaxgrad.diagnosis._signatures import Signatures


class GradientGroups(NamedTuple):
    """Groups of layers or units, the one with the smallest first feature first.

    Attributes:
      labels: Shape (n,); int32, the group of each.
      members: The names in each group.
      centroids: Shape (groups, features); the mean of each group, in the units of the signatures.
      silhouettes: Shape (groups,); the mean silhouette of each group, in [-1, 1]: near 1 it lies apart from the others;
        0 where it has one member, or is the only group.
      scores: The mean silhouette over all, by number of groups, of those that were tried.
      signatures: What was grouped.
    """

    labels: Int[Array, " n"]
    members: tuple[tuple[str, ...], ...]
    centroids: Float[Array, "groups features"]
    silhouettes: Float[Array, " groups"]
    scores: dict[int, float]
    signatures: Signatures


def group_by_gradient(
    key: PRNGKeyArray | UInt32[Array, " 2"],
    signatures: Signatures,
    num_groups: int | None = None,
    *,
    max_groups: int = 6,
    min_silhouette: float = 0.25,
    num_restarts: int = 10,
) -> GradientGroups:
    r"""Group layers, or units, by what their gradients look like.

    k-means on

    .. math:: x_{if} = \frac{s_{if} - \bar s_f}{\max(\sigma_f, r_f)}

    each column in units of its standard deviation, but of no less than its resolution r: a column in which all are
    alike is not blown up until its noise makes groups.

    Args:
      key: Where k-means begins.
      signatures: From :func:`jaxgrad.diagnosis.layer_signatures` or :func:`jaxgrad.diagnosis.unit_signatures`, or made
        by hand.
      num_groups: How many groups, from 1 to n; ``None``: as many, up to ``max_groups``, as give the largest mean
        silhouette.
      max_groups: The most that are tried.
      min_silhouette: The least mean silhouette that is taken for more than one group. Kaufman and Rousseeuw see no
        substantial structure up to 0.25.
      num_restarts: How many starts k-means has.

    Returns:
      The groups.

    Raises:
      TypeError: ``signatures`` are none, a number is none, or there is no key.
      ValueError: A number is out of range, a signature is not finite, or is traced.

    Numerics:
      Where fewer signatures differ than groups are asked for there are fewer groups. A silhouette compares groups that
      are there: it is positive for data without groups, too, above all in one or two dimensions, so look at the
      centroids before believing in a division.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxgrad.diagnosis import Signatures, group_by_gradient
      >>> values = jnp.array([[-3.0], [0.1], [-3.1], [0.0], [-0.1]])
      >>> groups = group_by_gradient(jax.random.key(0), Signatures(tuple("abcde"), ("size",), values, jnp.array([0.1])))
      >>> groups.members, groups.centroids.round(2).tolist()
      ((('a', 'c'), ('b', 'd', 'e')), [[-3.04...], [0.0]])

    References:
      :cite:p:`rousseeuw1987silhouettes` for silhouettes, and choosing the number of groups by them;
      :cite:p:`kaufman1990finding`, chapter 2, table 4, for what a value means.

    See also:
      :func:`jaxgrad.diagnosis.plot_groups`; :func:`jaxgrad.clustering.k_means`, :func:`jaxgrad.clustering.silhouette`.
    """
    name = "group_by_gradient"
    if not isinstance(signatures, Signatures):
        remedy = "make some with layer_signatures or unit_signatures"
        raise TypeError(message(name, "signatures", type(signatures).__name__, remedy))
    if isinstance(signatures.values, Tracer):
        raise ValueError(message(name, "concrete signatures", "traced ones", "call it outside of jit"))
    values = np.asarray(signatures.values, float)
    count = len(values)
    if count == 0 or not np.all(np.isfinite(values)):
        wrong = int(np.sum(~np.all(np.isfinite(values), axis=1)))
        got = f"{wrong} of {count} with a NaN or an infinity" if count else "none"
        raise ValueError(message(name, "at least one signature, all finite", got, "drop those rows"))
    if num_groups is not None:
        _check_count(name, "num_groups", num_groups, count)
    _check_count(name, "max_groups", max_groups, None)
    _check_count(name, "num_restarts", num_restarts, None)
    check_number(name, "min_silhouette", min_silhouette, low=-1, high=1)

    scale = np.maximum(values.std(axis=0), np.asarray(signatures.resolution, float))
    rows = (values - values.mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    x = jnp.asarray(rows, signatures.values.dtype)
    distinct = len(np.unique(np.asarray(x), axis=0))
    labels, scores = np.zeros(count, np.int32), {}
    if num_groups is None:
        sizes, best = range(2, min(max_groups, count - 1, distinct) + 1), min_silhouette
    else:
        fewer = min(num_groups, distinct)
        sizes, best = range(fewer, fewer + 1) if fewer > 1 else range(0), -np.inf
    for size in sizes:
        found = k_means(jax.random.fold_in(key, size), x, size, init="k-means++", num_restarts=num_restarts).labels
        scores[size] = float(jnp.mean(silhouette(x, found, size)))
        if scores[size] > best:
            labels, best = np.asarray(found), scores[size]
    return _describe(signatures, values, x, labels, scores)


def _describe(
    signatures: Signatures, values: np.ndarray, x: Array, labels: np.ndarray, scores: dict[int, float]
) -> GradientGroups:
    """Sort the groups, and say what is in them."""
    used = np.unique(labels)
    means = np.stack([values[labels == group].mean(axis=0) for group in used])
    order = np.lexsort(means.T[::-1])
    rank = np.empty(labels.max() + 1, np.int32)
    rank[used[order]] = np.arange(len(used))
    labels = rank[labels]
    each = np.zeros(len(labels))
    if len(used) > 1:
        each = np.asarray(silhouette(x, jnp.asarray(labels), len(used)), float)
    dtype = signatures.values.dtype
    return GradientGroups(
        labels=jnp.asarray(labels),
        members=tuple(
            tuple(name for name, label in zip(signatures.names, labels, strict=True) if label == group)
            for group in range(len(used))
        ),
        centroids=jnp.asarray(means[order], dtype),
        silhouettes=jnp.asarray([each[labels == group].mean() for group in range(len(used))], dtype),
        scores=scores,
        signatures=signatures,
    )


def _check_count(function: str, name: str, value: Any, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(message(function, f"an integer {name}", repr(value), "pass an int"))
    if value < 1 or (high is not None and value > high):
        upper = "" if high is None else f" to {high}, the number of signatures"
        raise ValueError(message(function, f"{name} from 1{upper}", repr(value), "pass one in that range"))
