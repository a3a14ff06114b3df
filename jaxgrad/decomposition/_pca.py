"""Principal component analysis: the directions of the largest variance."""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jaxtyping import Array, Num, PRNGKeyArray, Shaped, UInt32

from jaxgrad._checks import check_number, message
from jaxgrad._inputs import check_key, check_rows, check_weights, mask_rows, refuse_rows
from jaxgrad._moments import CentredRows, Survey, survey
from jaxgrad._rows import Shards, over_shards, shards
from jaxgrad.decomposition._rank import check_num_components, settle
from jaxgrad.decomposition._result import PCAResult, assemble
from jaxgrad.decomposition._solvers import Plan, Spectrum, choose, passes_worth, spectrum

Solver = Literal["auto", "covariance", "gram", "svd", "krylov"]


def pca(
    x: Shaped[Array | np.ndarray, "n d"],
    num_components: int | float | str | None = None,
    *,
    solver: Solver = "auto",
    whiten: bool = False,
    weights: Num[Array | np.ndarray, " n"] | None = None,
    key: PRNGKeyArray | UInt32[Array, " words"] | None = None,
    tol: float = 1e-4,
    eps: float | None = None,
) -> PCAResult:
    r"""Compute the orthonormal directions along which data vary most, and how much.

    .. math::
      C = \frac{1}{\sum_i w_i - 1} \sum_i w_i (x_i - \mu)(x_i - \mu)^\top = V^\top \Lambda V,
      \qquad \mu = \frac{\sum_i w_i x_i}{\sum_i w_i},

    with :math:`w_i = 1`, so :math:`n - 1`, without weights. The components are the first rows of :math:`V`.

    Args:
      x: Data, a row an example, at least two. Under 32 bits, and integers, are converted to float32 (integers to
        float64 in double precision mode). Rows may be sharded over a mesh (``NamedSharding``): then each device passes
        over its own, and no more than matrices of d × d travel.
      num_components: Number of components, at most the smaller of n and d; a float between 0 and 1: the fewest that
        explain more than this share of the variance; ``"mle"``: the most probable number, for n ≥ d; ``None``: all.
        The last three need all eigenvalues; a share and ``"mle"`` need concrete data. Static.
      solver: Static, one of

        - ``"covariance"``: eigenvectors of the d × d covariance, summed over blocks of rows;
        - ``"gram"``: of the n × n products of the rows, for n < d;
        - ``"svd"``: of the data themselves, for small variances that the squares of the other two would round away;
        - ``"krylov"``: block Krylov iteration for few components of data large both ways;
        - ``"auto"``: the fastest of these that reaches ``tol``. Where ``"krylov"`` would not reach it sooner, a
          dense solver follows, unless the data are traced: see ``error`` of the result.
      whiten: Whether :func:`jaxgrad.decomposition.pca_transform` gives each coordinate variance 1. Static.
      weights: How often each row counts, not negative, of any sum over 1: a row of weight 2 is the row twice.
      key: Where the first block of ``"krylov"`` comes from. ``None``: from a fixed hash of the row's number, so that
        the same data give the same result; a key gives another start, should one be unlucky. No other solver needs it.
      tol: Error to reach, as ``error`` in the result: the largest residual relative to the largest variance.
        Variances are much closer, with the square of it. Static.
      eps: Smallest variance that is whitened, relative to the largest; ``None``: eight times the rounding unit times
        the root of d, the order of the rounding error. Static.

    Returns:
      :class:`jaxgrad.decomposition.PCAResult`, in the type the data were converted to.

    Raises:
      TypeError: ``x`` is complex or no numbers, ``num_components`` no number, or ``tol`` or ``eps`` is no number.
      ValueError: ``x`` is no matrix, is empty, has one row, or (where it is concrete) holds a NaN or an infinity;
        ``weights`` are not one a row, or are negative, not finite, or sum to 1 or less; ``num_components`` is out of
        range, or a share or ``"mle"`` of traced data; ``solver`` is unknown or does not fit; ``tol`` or ``eps`` is
        out of range.

    Numerics:
      Data are centred first, about a mean in two floats, and scaled by a power of two: an offset of 1e6 costs float32
      no more than the rounding of the data, and neither values of 1e-30 nor of 1e25 leave its range before the last
      multiplication (a variance of 1e50 is infinite; components, ratios and singular values are right). Constant data
      have variances and ratios 0 and arbitrary components. ``"covariance"`` and ``"gram"`` are right to the rounding
      unit times the *largest* variance: in float32 one under 1e-6 of it is noise, and ``solver="svd"``, or any ``tol``
      under 16 rounding units, finds those down to 1e-12 or so. ``"krylov"`` is right about values, but may miss a
      direction that its start was orthogonal to.

      Where ``x`` is traced its bad rows cannot be refused: rows with a NaN or an infinity, and rows of weight NaN,
      infinite or not positive, take no part. With weights that sum to 1 or less all variances are 0.

      Derivatives are those of exact eigenpairs, and finite everywhere. Where variances are equal their components do
      not turn into each other. The derivative of components takes a dense decomposition, whatever the solver.

    Example:
      >>> import jax.numpy as jnp
      >>> result = pca(jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]), 1)
      >>> [round(entry, 4) for entry in result.components[0].tolist()], round(result.explained_variance.item(), 3)
      ([0.6, 0.8], 25.0)

    References:
      :cite:p:`pearson1901lines` and :cite:p:`hotelling1933analysis` for PCA; :cite:p:`musco2015randomized`, algorithm
      2, for the block Krylov space, started from signed sums of rows and restarted from its best vectors, and
      :cite:p:`halko2011finding`, algorithm 4.1, for such a start; :cite:p:`minka2000automatic`, equation 30, for
      ``"mle"``; :cite:p:`tipping1999probabilistic`, equation 8, for the noise variance.

    See also:
      ``sklearn.decomposition.PCA``, whose transform, signs and noise variance are these;
      ``sklearn.decomposition.TruncatedSVD``, which does not centre; ``torch.pca_lowrank``, which takes one's word for
      the rank. :func:`jaxgrad.decomposition.pca_update` for data in batches.
    """
    x = check_rows("pca", x)
    if x.shape[0] < 2:
        raise ValueError(message("pca", "at least two rows", f"shape {x.shape}", "one row has no variance: pass more"))
    if solver not in get_args(Solver):
        options = ", ".join(map(repr, get_args(Solver)))
        raise ValueError(message("pca", f"solver one of {options}", repr(solver), "leave it out for 'auto'"))
    check_number("pca", "tol", tol, low=0, open_low=True, high=1)
    if eps is not None:
        check_number("pca", "eps", eps, low=0, high=1)
    weights = check_weights("pca", weights, x)
    if key is not None:
        check_key("pca", key)
    wanted = check_num_components("pca", num_components, min(x.shape))
    concrete = not isinstance(x, Tracer) and not isinstance(weights, Tracer)
    if not isinstance(wanted, int):
        _check_dense(wanted, solver, x.shape, concrete)
    if not concrete:
        weights = mask_rows(x, weights)
    num_rows, num_features = x.shape
    layout = shards(x)
    seen = _survey(x, weights, layout=layout)
    if concrete and isinstance(seen.peak, Tracer):  # constants of a function that is being traced
        refuse_rows("pca", x, weights)
        concrete = False
    if concrete:
        _check_survey(x, weights, seen)
    seed = jnp.zeros((), jnp.uint32) if key is None else jax.random.bits(key, (), jnp.uint32)
    most = wanted if isinstance(wanted, int) else min(x.shape)
    chosen = solver
    if solver == "auto":
        chosen = choose(num_rows, num_features, most, tol, float(jnp.finfo(x.dtype).eps))
    decompose = partial(_decompose, x, weights, seen, seed, layout=layout)
    second = solver == "auto" and chosen == "krylov" and concrete
    budget = passes_worth(num_rows, num_features, most) if second else None
    found = decompose(plan=Plan(chosen, most, tol, budget))
    if second and not float(found.error) <= tol:
        found = decompose(plan=Plan("gram" if num_rows < num_features else "covariance", most, tol))
    if not isinstance(wanted, int):
        found = settle(found, wanted, float(seen.count))
    return assemble(
        found,
        seen.mean,
        seen.low,
        seen.scale,
        seen.count,
        num_rows=num_rows if weights is None else None,
        whiten=whiten,
        eps=eps,
    )


@partial(jax.jit, static_argnames="layout")
def _survey(x: Array, weights: Array | None, *, layout: Shards | None) -> Survey:
    if layout is None:
        return survey(x, weights)
    rows = PartitionSpec(layout.axes)
    run = partial(survey, axes=layout.axes)
    return over_shards(run, layout, (rows, rows), PartitionSpec())(x, weights)


@partial(jax.jit, static_argnames=("plan", "layout"))
def _decompose(
    x: Array, weights: Array | None, seen: Survey, seed: Array, *, plan: Plan, layout: Shards | None
) -> Spectrum:
    def run(x: Array, weights: Array | None, seen: Survey, seed: Array) -> Spectrum:
        mean, low, scale = jax.lax.stop_gradient((seen.mean, seen.low, seen.scale))
        axes = layout.axes if layout else ()
        return spectrum(plan._replace(axes=axes), CentredRows(x, weights, mean, low, scale), seed)

    if layout is None:
        return run(x, weights, seen, seed)
    rows, whole = PartitionSpec(layout.axes), PartitionSpec()
    return over_shards(run, layout, (rows, rows, whole, whole), whole)(x, weights, seen, seed)


def _check_dense(wanted: float | str, solver: str, shape: tuple[int, ...], concrete: bool) -> None:
    """Refuse a number to be found where not all eigenvalues are known, or where it would be a shape of traced data."""
    if not concrete:
        remedy = "pass an int, or call pca outside of jit, vmap and grad"
        raise ValueError(message("pca", "an int num_components for traced data", repr(wanted), remedy))
    if solver == "krylov":
        remedy = "pass an int, or solver='auto'"
        raise ValueError(message("pca", "an int num_components for solver='krylov'", repr(wanted), remedy))
    if wanted == "mle" and shape[0] < shape[1]:
        remedy = "pass a share of the variance, such as 0.95"
        raise ValueError(message("pca", "at least as many rows as features for 'mle'", f"shape {shape}", remedy))


def _check_survey(x: Array, weights: Array | None, seen: Survey) -> None:
    """Refuse data that hold NaN, or spread too far, and weights of too small a sum."""
    if not bool(jnp.isfinite(seen.peak)):
        refuse_rows("pca", x, weights)
        remedy = "divide the data by a constant first"
        raise ValueError(message("pca", f"deviations that {x.dtype} can hold", "an infinite one", remedy))
    if weights is not None and not float(seen.count) > 1:
        remedy = "let them count rows: multiply them, so that they sum to the number of rows"
        raise ValueError(message("pca", "weights that sum to more than 1", f"{float(seen.count):g}", remedy))
