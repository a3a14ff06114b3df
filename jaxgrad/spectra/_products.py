"""The spectrum of a long product of Jacobians, whose entries leave floating point after a few dozen factors.

The product is kept as ``Q 2^e T``: orthonormal columns, integer exponents, and rows ``T`` of norm near 1. A factor
``J`` turns it into ``(J Q) 2^e T``, and a QR decomposition of ``J Q`` with its columns ordered by their size after
scaling restores the form. The error of a step is that of a relative perturbation of ``J`` alone, whatever the size of
the product, so one pass is enough: a Jacobi iteration on ``2^e T`` gives the values, close ones and repeated ones
included. (Repeated QR sweeps over all factors, the usual way, converge only as fast as neighbouring values separate.)
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxgrad._checks import message
from jaxgrad.spectra._jacobi import (
    ZERO,
    exponent_of,
    normalize_rows,
    orthogonalize_rows,
    power_of_two,
    safe_norm,
)

# A diagonal entry of R counts as zero when its estimated rounding error reaches this part of it. Roundings are a few
# machine epsilons, so at 1 a good part of the true zeros passes for values.
_UNRESOLVED = 0.25
# The same in float64, for factors that were rounded to float32 before: nothing is added to what they bring.
_UNRESOLVED_EXACT = 1.0
# Columns are balanced by at most this power of two.
_MAX_BALANCE = 60


def product_spectrum(
    jacobians: Float[Array, "depth out in"] | Sequence[Float[Array, "_ _"]],
) -> Float[Array, " rank"]:
    """Compute the log10 singular values of a product of Jacobians, of any depth.

    ``log10 s_i(J_L ... J_2 J_1)``, the first element applied first; base 10, so -3 is a thousandfold shrinkage of the
    signal along that direction over the whole product.

    Args:
      jacobians: A stacked array of shape (depth, n, n), or a sequence of matrices of shape (out, in) in which each
        ``in`` is the ``out`` before it. Runs of equal square shapes compile to one ``scan``, whatever their length. For
        a batch of networks, ``vmap`` over a leading axis.

    Returns:
      Array of shape (min(last out, first in),), descending, float32 (float64 if a factor is).

    Raises:
      TypeError: A factor is not a real floating array.
      ValueError: There is no factor, a factor is not a matrix or is empty, or neighbouring shapes do not chain.

    Numerics:
      -inf for an exact zero and for a direction that a factor shrinks into its own rounding (a few 1e-7 of what it does
      to others; rows and columns of very different size are not taken for that); NaN throughout if a factor is not
      finite. Called with arrays, float32 factors are multiplied in float64, and the result is right to its own
      rounding: Gaussian matrices of width 8 and 64 to 5e-5 at depth 1000, width 8 to 2e-4 at depth 10,000. Under
      ``jit``, ``vmap`` and ``grad`` the arithmetic is float32 unless double precision is enabled: the result is that
      of factors each perturbed by a few machine epsilons, and each adds an error of about ``eps * condition number``,
      like a step of a random walk. With condition number 10, 3e-5 at depth 1000 and 5e-4 at 10,000; with Gaussian
      matrices, a few of which are all but singular, 1e-3 at width 8 and depth 1000, and up to 0.2 at width 64.
      Gradients are finite; where values are equal they are one of several, and they are 0 for a value of -inf.

    Example:
      >>> import jax.numpy as jnp
      >>> product_spectrum(jnp.tile(jnp.diag(jnp.array([1.0, 0.1])), (1000, 1, 1))).round(1).tolist()
      [0.0, -1000.0]

    References:
      Bai, Lee, Li and Xu, Stable solutions of linear systems involving long chain of matrix multiplications, 2011, for
      the decomposition; Cox and Higham, Stability of Householder QR factorization for weighted least squares problems,
      1998, for the order of the rows; Demmel and Veselic, Jacobi's method is more accurate than QR, 1992.

    See also:
      ``lyapunov_exponents``, the limit of these over depth for a recurrence.
    """
    groups = _groups(jacobians)
    dtype = jnp.float64 if any(group.dtype == jnp.float64 for group in groups) else jnp.float32
    groups = [group.astype(dtype) for group in groups]
    if dtype == jnp.float64 or any(isinstance(group, Tracer) for group in groups):
        return _spectrum(groups)
    with double_precision():
        wide = [group.astype(jnp.float64) for group in groups]
        if any(group.dtype != jnp.float64 for group in wide):
            return _spectrum(groups)
        return _spectrum(wide, float(jnp.finfo(dtype).eps)).astype(dtype)


def double_precision() -> contextlib.AbstractContextManager[Any]:
    """Float64 for what is computed inside, from concrete arrays."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # before jax 0.8  # pyright: ignore[reportAttributeAccessIssue]

    return enable_x64(True)


@functools.partial(jax.jit, static_argnames="eps")
def _spectrum(groups: list[Array], eps: float | None = None) -> Array:
    """Return the log10 singular values; ``eps`` is that of factors which were rounded to fewer digits before."""
    dtype = groups[0].dtype
    finite = jnp.stack([jnp.all(jnp.isfinite(group)) for group in groups]).all()
    groups = [jnp.where(finite, group, 0) for group in groups]

    out_size, in_size = groups[-1].shape[1], groups[0].shape[2]
    columns = [lax.stop_gradient(_column_exponents(group)) for group in groups]
    push = functools.partial(_push, eps=eps)
    identity = jnp.eye(in_size, dtype=dtype)
    state = (identity, columns[0][0], identity)
    for index, group in enumerate(groups):
        own = columns[index]
        after = columns[index + 1][:1] if index + 1 < len(groups) else jnp.zeros((1, out_size), own.dtype)
        following = jnp.concatenate([own[1:], after], axis=0) if len(group) > 1 else after
        if len(group) > 1:
            state, _ = lax.scan(lambda state, factor: (push(state, *factor), None), state, (group, own, following))
        else:
            state = push(state, group[0], own[0], following[0])
    _, exponents, rows = state
    values = _log_values(exponents, rows)
    values = jnp.concatenate([values, jnp.full((min(out_size, in_size) - values.shape[0],), -jnp.inf, dtype)])
    return jnp.where(finite, values, jnp.nan)


def _groups(jacobians: Array | Sequence[Array]) -> list[Array]:
    """The factors as stacks of equal square matrices, and single ones."""
    name = "product_spectrum"
    if isinstance(jacobians, (list, tuple)):
        factors = [jnp.asarray(factor) for factor in jacobians]
    else:
        stacked = jnp.asarray(jacobians)
        if stacked.ndim != 3:
            raise ValueError(
                message(
                    name,
                    "a stacked array of shape (depth, n, n) or a list of matrices",
                    f"an array of shape {stacked.shape}",
                    "stack the factors along a leading axis; vmap over a batch axis",
                )
            )
        factors = [stacked]
    if not factors or any(0 in factor.shape for factor in factors):
        raise ValueError(message(name, "at least one factor, none of them empty", "none", "leave empty factors out"))
    for index, factor in enumerate(factors):
        if not jnp.issubdtype(factor.dtype, jnp.floating):
            raise TypeError(
                message(name, "real floating factors", f"factor {index} of {factor.dtype}", "cast it: astype(float)")
            )
    if factors[0].ndim == 3 and len(factors) == 1:
        (stacked,) = factors
        if len(stacked) > 1 and stacked.shape[1] != stacked.shape[2]:
            raise ValueError(
                message(
                    name,
                    "square matrices in a stacked array",
                    f"shape {stacked.shape}",
                    "pass factors of different shapes as a list of matrices that chain",
                )
            )
        return [stacked]
    for index, factor in enumerate(factors):
        if factor.ndim != 2:
            raise ValueError(
                message(
                    name,
                    "matrices in the list",
                    f"factor {index} of shape {factor.shape}",
                    "for a batch, vmap over a list of arrays with a leading axis",
                )
            )
    for index, (before, factor) in enumerate(itertools.pairwise(factors), start=1):
        if factor.shape[1] != before.shape[0]:
            raise ValueError(
                message(
                    name,
                    f"factor {index} with {before.shape[0]} columns, the rows of the factor before it",
                    f"shape {factor.shape}",
                    "order the factors as they are applied, the first one first, each of shape (out, in)",
                )
            )
    runs: list[list[Array]] = []
    for factor in factors:
        if runs and runs[-1][0].shape == factor.shape and runs[-1][0].dtype == factor.dtype:
            runs[-1].append(factor)
        else:
            runs.append([factor])
    return [jnp.stack(run) for run in runs]


def _column_exponents(factors: Array) -> Array:
    """Powers of two that balance each factor's columns, relative to its largest entry; 0 for a zero column."""
    sizes = exponent_of(jnp.max(jnp.abs(factors), axis=1))
    relative = sizes - jnp.max(sizes, axis=1, keepdims=True)
    return jnp.where(sizes == ZERO, 0, jnp.maximum(relative, -_MAX_BALANCE))


def _push(
    state: tuple[Array, Array, Array], factor: Array, own: Array, following: Array, eps: float | None = None
) -> tuple[Array, Array, Array]:
    """The product ``Q 2^e T`` with one more factor.

    ``own`` balances the factor's columns, which the step before has taken into its rows; ``following`` takes up those
    of the next one. A factor with columns of very different size then loses nothing: QR loses nothing in rows.
    """
    basis, exponents, rows = state
    dtype = factor.dtype
    scale = lax.stop_gradient(exponent_of(jnp.max(jnp.abs(factor))))
    scale = jnp.where(scale == ZERO, 0, scale)
    factor = factor * power_of_two(-scale, dtype)
    factor = factor * power_of_two(-own, dtype)[None, :] * power_of_two(following, dtype)[:, None]

    image = _product(factor, basis)
    heights = safe_norm(lax.stop_gradient(factor), axis=1)
    widths = safe_norm(lax.stop_gradient(image), axis=0)
    noise = jnp.maximum(widths, jnp.sqrt(_product(jnp.square(factor), jnp.square(basis)).sum(axis=0)))
    noise = lax.stop_gradient(noise)
    # Large rows first keeps small rows exact, and zero rows zero; large columns first keeps T well-conditioned.
    row_order = jnp.argsort(-heights)
    heights, image = heights[row_order], image[row_order]
    column_order = jnp.argsort(-(exponents + exponent_of(widths)))
    wide = image.shape[0] < image.shape[1]
    if wide:
        column_order = _pivot(image, exponents, noise, column_order, jnp.array(True), eps)
    q, r = _qr(image[:, column_order])
    count = r.shape[0]
    dependent = _dependent(r, noise[column_order], heights, eps)
    if not wide:
        suspect = jnp.any(dependent & (exponents[column_order] != ZERO))
        column_order = _pivot(image, exponents, noise, column_order, suspect, eps)
        q, r = lax.cond(suspect, lambda: _qr(image[:, column_order]), lambda: (q, r))
        dependent = _dependent(r, noise[column_order], heights, eps)
    dependent = dependent | (exponents[column_order][:count] == ZERO)
    # Independent columns stand first, so what R has below the last of them is rounding.
    rank = jnp.max(jnp.where(dependent, 0, jnp.arange(1, count + 1)))
    r = jnp.where((jnp.arange(count) < rank)[:, None], r, 0)
    # The columns of q are not quite of norm 1; uncorrected, that adds up with one sign over thousands of factors.
    defect = lax.stop_gradient(jnp.triu(_product(q.T, q) - jnp.eye(q.shape[1], dtype=dtype)))
    r = r - _product(defect - jnp.diag(jnp.diagonal(defect) / 2), r)
    exponents, rows = exponents[column_order], rows[column_order]

    sizes = exponent_of(jnp.abs(lax.stop_gradient(r)))
    sizes = jnp.where(sizes == ZERO, ZERO, exponents[None, :] + sizes)
    new_exponents = jnp.max(sizes, axis=1)
    mix = r * power_of_two(exponents[None, :] - new_exponents[:, None], dtype)
    mix = jnp.where((new_exponents < ZERO // 2)[:, None], 0, mix)
    new_rows = _product(mix, rows)
    shift = lax.stop_gradient(exponent_of(safe_norm(new_rows, axis=1)))
    new_rows = new_rows * power_of_two(-shift, dtype)[:, None]
    zero = (shift == ZERO) | (new_exponents < ZERO // 2)
    return q[_inverse(row_order)], jnp.where(zero, ZERO, new_exponents + shift + scale), new_rows


def _dependent(r: Array, noise: Array, heights: Array, eps: float | None) -> Array:
    """Which leading columns depend on the ones before them, as far as rounding lets one tell."""
    size = r.shape[0]
    r = lax.stop_gradient(r[:, :size])
    diagonal = jnp.diagonal(r)
    safe = r + jnp.diag(jnp.where(diagonal == 0, 1, 0).astype(r.dtype))
    inverse = lax.linalg.triangular_solve(safe, jnp.eye(size, dtype=r.dtype), left_side=True, lower=False)
    # Relative error of the diagonal: rounding of every column before it, as the inverse mixes them.
    rounding = jnp.minimum(noise[:size, None], heights[None, :size]) * jnp.abs(inverse)
    amplified = safe_norm(jnp.triu(rounding), axis=0)
    if eps is None:
        return (diagonal == 0) | ~(float(jnp.finfo(r.dtype).eps) * amplified < _UNRESOLVED)
    # What rounding leaves of m dependent columns is a block of noise, the first of them m entries long.
    length = jnp.sqrt(jnp.arange(size, 0, -1, dtype=r.dtype))
    return (diagonal == 0) | ~(eps * length * amplified < _UNRESOLVED_EXACT)


def _pivot(image: Array, exponents: Array, noise: Array, order: Array, wanted: Array, eps: float | None) -> Array:
    """An order of the columns in which none depends on those before it, until all do; ``order`` if not ``wanted``."""
    image = lax.stop_gradient(image)
    size = image.shape[1]
    floor = (8 * float(jnp.finfo(image.dtype).eps) if eps is None else eps / 8) * noise
    alive = exponents != ZERO
    exponents = exponents.astype(image.dtype)

    def body(step, state):
        residual, ranks = state
        norms = safe_norm(residual, axis=0)
        usable = (ranks >= size) & (norms > floor) & alive
        score = jnp.where(usable, jnp.log2(jnp.where(usable, norms, 1)) + exponents, -jnp.inf)
        best = jnp.argmax(score)
        direction = residual[:, best] / jnp.where(norms[best] > 0, norms[best], 1)
        reduced = residual - jnp.outer(direction, _product(direction, residual))
        residual = jnp.where(usable[best], reduced, residual)
        return residual, jnp.where(usable[best], ranks.at[best].set(step), ranks)

    steps = jnp.where(wanted, min(image.shape), 0)
    # What is never picked keeps its place behind the rest.
    _, ranks = lax.fori_loop(0, steps, body, (image, size + _inverse(order)))
    return jnp.argsort(ranks)


@jax.custom_jvp
def _qr(x: Array) -> tuple[Array, Array]:
    """QR whose derivative exists for wide matrices too, and is finite where columns are dependent."""
    q, r = jnp.linalg.qr(x)
    return q, r


@_qr.defjvp
def _qr_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    q, r = _qr(x)
    size = r.shape[0]
    head, diagonal = r[:, :size], jnp.diagonal(r)
    alive = jnp.abs(diagonal) > 2 * jnp.finfo(r.dtype).eps * safe_norm(head, axis=0)
    safe = head + jnp.diag(jnp.where(alive, 0, 1 - diagonal))
    right = lax.linalg.triangular_solve(safe, dx[:, :size], left_side=False, lower=False)
    right = jnp.where(alive[None, :], right, 0)
    inner = _product(q.T, right)
    lower = jnp.tril(inner, -1)
    dq = _product(q, lower - lower.T - inner) + right
    dr = _product(q.T, dx - _product(dq, r))
    return (q, r), (dq, jnp.triu(dr))


@jax.custom_jvp
def _log_values(exponents: Array, rows: Array) -> Array:
    """log10 of the singular values of ``diag(2^exponents) rows``, descending."""
    # Where no value is far below the largest, LAPACK resolves them all, and is faster.
    top = jnp.max(exponents)
    scaled = rows * power_of_two(exponents - top, rows.dtype)[:, None]
    scaled = jnp.where((exponents == ZERO)[:, None], 0, scaled)
    dense = jnp.linalg.svd(scaled, compute_uv=False)
    alive = jnp.sum(exponents != ZERO)
    live = jnp.arange(dense.shape[0]) < alive
    threshold = float(jnp.finfo(rows.dtype).eps) ** (1 / 3)
    shallow = (alive > 0) & (jnp.min(jnp.where(live, dense, jnp.inf)) > threshold * dense[0])

    def from_dense():
        return jnp.where(live, _log10(jnp.where(live, dense, 1), jnp.broadcast_to(top, live.shape)), -jnp.inf)

    return lax.cond(shallow, from_dense, lambda: _jacobi_values(exponents, rows)[0])


@_log_values.defjvp
def _log_values_jvp(primals, tangents):
    (exponents, rows), (_, drows) = primals, tangents
    values, left, right = _jacobi_values(exponents, rows)
    return values, jnp.sum(_product(left, drows) * right, axis=1) / math.log(10)


def _jacobi_values(exponents: Array, rows: Array) -> tuple[Array, Array, Array]:
    """log10 values; the right singular vectors V as rows; and A with V = A rows, the scaled left ones."""
    order = jnp.argsort(-exponents)
    exponents, rows = exponents[order], rows[order]
    outer, triangle = jnp.linalg.qr(rows.T)
    # Two triangular decompositions, from the right and from the left, bring the rows close to orthogonal.
    flipped_exponents, flipped = _by_columns(exponents, triangle.T)
    flip = jnp.argsort(-flipped_exponents)
    _, second = jnp.linalg.qr(flipped[flip].T)
    inner_exponents, inner = _by_columns(flipped_exponents[flip], second.T)
    # ``inner`` holds the columns of the second triangle as rows; they live in the coordinates of ``triangle``'s rows.
    inner = inner[:, _inverse(flip)]
    start = jnp.argsort(-inner_exponents)
    final, final_exponents = orthogonalize_rows(inner[start], inner_exponents[start])
    norms = safe_norm(final, axis=1)
    alive = (final_exponents > ZERO // 2) & (norms > 0)
    values = jnp.where(alive, _log10(jnp.where(alive, norms, 1), jnp.where(alive, final_exponents, 0)), -jnp.inf)
    rank = jnp.argsort(-values)

    unit = jnp.where(alive[:, None], final / jnp.where(norms > 0, norms, 1)[:, None], 0)[rank]
    right = _product(unit, outer.T)
    dead = exponents == ZERO
    diagonal = jnp.diagonal(triangle)
    safe = triangle + jnp.diag(jnp.where(dead | (diagonal == 0), 1 - diagonal, 0))
    left = lax.linalg.triangular_solve(safe, unit.T, left_side=True, lower=False).T
    left = jnp.where(dead[None, :], 0, left)
    return values[rank], left[:, _inverse(order)], right


def _by_columns(exponents: Array, lower: Array) -> tuple[Array, Array]:
    """The columns of ``diag(2^exponents) lower`` as rows with exponents of their own."""
    sizes = exponent_of(jnp.abs(lower))
    sizes = jnp.where(sizes == ZERO, ZERO, exponents[:, None] + sizes)
    columns = jnp.max(sizes, axis=0)
    mantissas = lower * power_of_two(exponents[:, None] - columns[None, :], lower.dtype)
    mantissas = jnp.where((columns < ZERO // 2)[None, :], 0, mantissas)
    mantissas, columns = normalize_rows(mantissas.T, columns)
    return columns, mantissas


def _log10(mantissas: Array, exponents: Array) -> Array:
    """``log10(mantissas * 2^exponents)`` with the integer part exact before the last addition."""
    head = 0.301025390625  # log10(2) in 11 bits: its product with an exponent below 8192 is exact in float32
    tail = math.log10(2) - head
    exponents = exponents.astype(mantissas.dtype)
    return exponents * head + (exponents * tail + jnp.log10(mantissas))


def _inverse(permutation: Array) -> Array:
    return jnp.zeros_like(permutation).at[permutation].set(jnp.arange(permutation.shape[0], dtype=permutation.dtype))


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
