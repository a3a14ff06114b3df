"""PCA of data that come in batches, or from several places: count, mean and scatter matrix, merged exactly.

How they are used::

    state = pca_init(num_features)
    for batch in batches:
        state = pca_update(state, batch)
    result = pca_from_state(state, num_components)

Each statistic is a sum of two floats, so that neither many small batches nor data far from zero wear float32 down.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jaxtyping import Array, DTypeLike, Float, Num, Shaped

from jaxgrad._checks import check_number, message
from jaxgrad._inputs import check_rows, check_weights, mask_rows, refuse_rows
from jaxgrad._moments import CentredRows, scatter, survey, two_sum
from jaxgrad._rows import Shards, over_shards, shards
from jaxgrad.decomposition._rank import check_num_components, settle
from jaxgrad.decomposition._result import PCAResult, assemble
from jaxgrad.decomposition._solvers import descending, leading


class PCARemainders(NamedTuple):
    """What rounding left out of each field of :class:`jaxgrad.decomposition.PCAState`, of the same shapes."""

    count: Float[Array, ""]
    mean: Float[Array, " d"]
    scatter: Float[Array, "d d"]


class PCAState(NamedTuple):
    """What PCA needs to know of the data so far; as large as their covariance, however many they are.

    Attributes:
      count: Number of rows, or the sum of their weights; 0 before the first.
      mean: Mean of each feature; 0 before the first row.
      scatter: Sum of the outer products of the rows less their mean.
      remainders: What is to be added to the three, each under half a unit in the last place of its field.
    """

    count: Float[Array, ""]
    mean: Float[Array, " d"]
    scatter: Float[Array, "d d"]
    remainders: PCARemainders


def pca_init(num_features: int, dtype: DTypeLike | None = None) -> PCAState:
    """Make the state of no data, to start a stream from.

    ``count = mean = scatter = 0``.

    Args:
      num_features: Number of features, at least 1. Static.
      dtype: Type of the state, float32 or float64; ``None``: JAX's default float.

    Returns:
      ``PCAState`` of zeros.

    Raises:
      TypeError: ``dtype`` is not float32 or float64, or ``num_features`` no int.
      ValueError: ``num_features`` is less than 1.

    Example:
      >>> pca_init(3).scatter.shape
      (3, 3)

    See also:
      :func:`jaxgrad.decomposition.pca_update`.
    """
    if isinstance(num_features, bool) or not isinstance(num_features, (int, np.integer)):
        got = f"{type(num_features).__name__} {num_features!r}"
        raise TypeError(message("pca_init", "an int num_features", got, "pass x.shape[1]"))
    if num_features < 1:
        raise ValueError(message("pca_init", "num_features of at least 1", f"{num_features}", "pass x.shape[1]"))
    kind = jax.dtypes.canonicalize_dtype(jnp.result_type(float) if dtype is None else dtype)
    if kind not in (jnp.float32, jnp.float64):
        remedy = "leave dtype out; the data may be narrower"
        raise TypeError(message("pca_init", "float32 or float64", f"{kind}", remedy))
    count, mean = jnp.zeros((), kind), jnp.zeros((num_features,), kind)
    square = jnp.zeros((num_features, num_features), kind)
    return PCAState(count, mean, square, PCARemainders(count, mean, square))


def pca_update(
    state: PCAState,
    batch: Shaped[Array | np.ndarray, "n d"],
    weights: Num[Array | np.ndarray, " n"] | None = None,
) -> PCAState:
    r"""Take a batch into the state of a stream.

    ``pca_merge(state, ...)`` with the state of the batch alone, in one pass over the stream and constant memory.

    Args:
      state: The state so far, from :func:`jaxgrad.decomposition.pca_init` or an earlier update.
      batch: More rows, of any number from 1. They may be sharded (``NamedSharding``).
      weights: How often each row counts, not negative; ``None``: once.

    Returns:
      ``PCAState`` of the shapes and types of ``state``, so that it can be the carry of a ``scan``.

    Raises:
      TypeError: The batch is complex or no numbers.
      ValueError: The batch is no matrix, is empty, has other features, or (where it is concrete) holds a NaN or an
        infinity; ``weights`` are not one a row, or are negative or not finite.

    Numerics:
      The same as of all data at once to the rounding of the state's type, however many and small the batches, in any
      order. Deviations over 1e19, or under 1e-19, have squares that leave float32. In a traced batch rows with a NaN
      or an infinity, and rows of weight NaN, infinite or not positive, take no part.

    Example:
      >>> import jax.numpy as jnp
      >>> state = pca_init(2)
      >>> for batch in jnp.arange(12.0).reshape(3, 2, 2):
      ...     state = pca_update(state, batch)
      >>> state.count.item(), state.mean.tolist()
      (6.0, [5.0, 6.0])

    References:
      :cite:p:`chan1983algorithms`, equation 2.1, for vectors; :cite:p:`dekker1971floating` for the sums of two floats.

    See also:
      ``sklearn.decomposition.IncrementalPCA.partial_fit``, which keeps k components and so forgets the rest; this keeps
      the whole covariance.
    """
    batch = check_rows("pca_update", batch, state.mean.shape[-1]).astype(state.mean.dtype)
    weights = check_weights("pca_update", weights, batch)
    concrete = not isinstance(batch, Tracer) and not isinstance(weights, Tracer)
    if not concrete:
        weights = mask_rows(batch, weights)
    state, peak = _update(state, batch, weights, layout=shards(batch))
    if concrete and not isinstance(peak, Tracer) and not bool(jnp.isfinite(peak)):
        refuse_rows("pca_update", batch, weights)
        raise ValueError(
            message(
                "pca_update", f"deviations that {batch.dtype} can hold", "an infinite one", "divide by a constant first"
            )
        )
    return state


def pca_merge(a: PCAState, b: PCAState) -> PCAState:
    r"""Compute the state of two sets of data from those of each.

    .. math::
      \mu = \mu_a + \frac{n_b}{n} \delta, \qquad
      S = S_a + S_b + \frac{n_a n_b}{n} \delta \delta^\top, \qquad n = n_a + n_b, \quad \delta = \mu_b - \mu_a.

    Args:
      a: State of some data.
      b: State of other data, with the same features.

    Returns:
      ``PCAState`` of the type of ``a``. Merging is associative and commutative up to rounding.

    Raises:
      ValueError: The features differ.

    Numerics:
      Exact where one side is empty. Counts are exact to ``2**48`` in float32.

    Example:
      >>> import jax.numpy as jnp
      >>> a, b = (pca_update(pca_init(1), jnp.array(rows)) for rows in ([[0.0], [2.0]], [[4.0]]))
      >>> merged = pca_merge(a, b)
      >>> merged.mean.tolist(), merged.scatter.tolist()
      ([2.0], [[8.0]])

    References:
      :cite:p:`chan1983algorithms`, equation 2.1, for vectors; :cite:p:`ross2008incremental`, lemma 1, where the
      components are then updated in place of the scatter.

    See also:
      :func:`jaxgrad.decomposition.pca_update`.
    """
    if a.mean.shape != b.mean.shape:
        expected, got = f"states of {a.mean.shape[0]} features", f"one of {b.mean.shape[0]}"
        raise ValueError(message("pca_merge", expected, got, "use the same features for both"))
    return _merge(a, jax.tree.map(lambda leaf: leaf.astype(a.mean.dtype), b))


def pca_from_state(
    state: PCAState, num_components: int | float | str | None = None, *, whiten: bool = False, eps: float | None = None
) -> PCAResult:
    r"""Compute the principal components of the data that a state has seen.

    .. math::
      \frac{S}{n - 1} = V^\top \Lambda V.

    Args:
      state: From :func:`jaxgrad.decomposition.pca_update` or :func:`jaxgrad.decomposition.pca_merge`.
      num_components: As in :func:`jaxgrad.decomposition.pca`, at most the number of features. Static.
      whiten: As in ``pca``. Static.
      eps: As in ``pca``. Static.

    Returns:
      :class:`jaxgrad.decomposition.PCAResult`, of the type of the state.

    Raises:
      TypeError: ``num_components`` is no number.
      ValueError: ``num_components`` is out of range, or a share or ``"mle"`` of a traced state; or the state is
        concrete and has seen one row or none.

    Numerics:
      As ``pca`` with ``solver="covariance"``. A traced state of one row or none has variances 0. Of fewer rows than
      components the last have variance 0.

    Example:
      >>> import jax.numpy as jnp
      >>> state = pca_update(pca_init(2), jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]))
      >>> [round(entry, 4) for entry in pca_from_state(state, 1).components[0].tolist()]
      [0.6, 0.8]

    References:
      :cite:p:`pearson1901lines` and :cite:p:`hotelling1933analysis`; :cite:p:`minka2000automatic`, equation 30, for
      ``"mle"``; :cite:p:`tipping1999probabilistic`, equation 8, for the noise variance.

    See also:
      :func:`jaxgrad.decomposition.pca_transform` for the coordinates of each batch, in a second pass.
    """
    if eps is not None:
        check_number("pca_from_state", "eps", eps, low=0, high=1)
    num_features = state.mean.shape[-1]
    wanted = check_num_components("pca_from_state", num_components, num_features)
    concrete = not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(state))
    if not (concrete or isinstance(wanted, int)):
        remedy = "pass an int, or call pca_from_state outside of jit, vmap and grad"
        raise ValueError(message("pca_from_state", "an int num_components for a traced state", repr(wanted), remedy))
    if concrete and not float(state.count) > 1:
        remedy = "update the state with more rows"
        raise ValueError(message("pca_from_state", "more than one row", f"{float(state.count):g}", remedy))
    values, vectors = _decompose(state)
    found = leading(values, vectors, wanted if isinstance(wanted, int) else num_features)
    if not isinstance(wanted, int):
        found = settle(found, wanted, float(state.count))
    low, unit = state.remainders.mean, jnp.ones((), state.mean.dtype)
    return assemble(found, state.mean, low, unit, state.count, num_rows=None, whiten=whiten, eps=eps)


@jax.jit
def _decompose(state: PCAState) -> tuple[Array, Array]:
    return descending(state.scatter + state.remainders.scatter)


@partial(jax.jit, static_argnames="layout")
def _update(
    state: PCAState, batch: Array, weights: Array | None, *, layout: Shards | None
) -> tuple[PCAState, Float[Array, ""]]:
    """Return the state with the batch in it, and how far that spreads."""

    def run(batch: Array, weights: Array | None) -> tuple[PCAState, Array]:
        axes = layout.axes if layout else ()
        seen = survey(batch, weights, axes)
        square = scatter(CentredRows(batch, weights, seen.mean, seen.low, jnp.ones_like(seen.scale)), axes)
        left = PCARemainders(jnp.zeros_like(seen.count), seen.low, jnp.zeros_like(square))
        return PCAState(seen.count, seen.mean, square, left), seen.peak

    if layout is not None:
        rows = PartitionSpec(layout.axes)
        run = over_shards(run, layout, (rows, rows), PartitionSpec())
    alone, peak = run(batch, weights)
    return _merge(state, alone), peak


@jax.jit
def _merge(a: PCAState, b: PCAState) -> PCAState:
    low_a, low_b = a.remainders, b.remainders
    count, count_low = _add(a.count, low_a.count, b.count, low_b.count)
    share = b.count / jnp.where(count > 0, count, 1)
    difference = (b.mean - a.mean) + (low_b.mean - low_a.mean)
    mean, mean_low = _add(a.mean, low_a.mean, share * difference, jnp.zeros_like(a.mean))
    between = (a.count * share) * (difference[:, None] * difference[None])
    square, square_low = _add(a.scatter, low_a.scatter, b.scatter, low_b.scatter + between)
    merged = PCAState(count, mean, square, PCARemainders(count_low, mean_low, square_low))
    # Beside no data at all the difference to its mean, 0, would round.
    merged = jax.tree.map(lambda other, both: jnp.where(a.count == 0, other, both), b, merged)
    return jax.tree.map(lambda other, both: jnp.where(b.count == 0, other, both), a, merged)


def _add(high: Array, low: Array, more: Array, more_low: Array) -> tuple[Array, Array]:
    """Add two numbers, each in two parts."""
    total, error = two_sum(high, more)
    return two_sum(total, error + (low + more_low))
