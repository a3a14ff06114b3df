"""One-sided Jacobi for a matrix whose rows differ in size by more than floating point can hold.

A row is a vector of norm near 1 times a power of two, kept as an integer; no product of the two is ever formed. Plane
rotations make the rows orthogonal, and their norms are then the singular values, each to high *relative* accuracy.
LAPACK's SVD is accurate relative to the largest value only.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

# The exponent of a zero row. Sums of a few of them stay inside int32.
ZERO = -(2**28)
_MAX_SWEEPS = 40


def orthogonalize_rows(
    rows: Float[Array, "n m"], exponents: Int[Array, " n"]
) -> tuple[Float[Array, "n m"], Int[Array, " n"]]:
    """Rotate the rows of ``diag(2^exponents) rows`` until they are orthogonal.

    A rotation of two rows is left-multiplication by an orthogonal matrix, so singular values and right singular vectors
    stay what they were. Rows far apart in size need no special case: the rotation tends to a projection of the small
    row off the large one.

    Args:
      rows: Mantissas, of norm near 1, or zero rows; the closer to descending exponents the fewer sweeps.
      exponents: Their powers of two; ``ZERO`` for a zero row.

    Returns:
      The rotated mantissas and exponents, in no order.

    Numerics:
      A row that is parallel to a larger one up to rounding becomes a zero row. NaN in, NaN out.

    References:
      Demmel and Veselic, Jacobi's method is more accurate than QR, 1992, for the relative accuracy. Brent and Luk, The
      solution of singular-value and symmetric eigenvalue problems on multiprocessor arrays, 1985, for the ordering.
    """
    size, width = rows.shape
    if size < 2:
        return rows, exponents
    if size % 2:
        rows = jnp.concatenate([rows, jnp.zeros((1, width), rows.dtype)])
        exponents = jnp.concatenate([exponents, jnp.full((1,), ZERO, exponents.dtype)])
    num_pairs = rows.shape[0] // 2
    tol = 8 * float(jnp.finfo(rows.dtype).eps) * size**0.5

    def round_(_, state):
        rows, exponents, worst = state
        rows, exponents, cosine = _rotate_pairs(rows, exponents)
        order = _next_pairs(num_pairs)
        return rows[order], exponents[order], jnp.maximum(worst, cosine)

    def sweep(state):
        rows, exponents, _, count = state
        start = (rows, exponents, jnp.zeros((), rows.dtype))
        return (*lax.fori_loop(0, 2 * num_pairs - 1, round_, start), count + 1)

    state = (rows, exponents, jnp.ones((), rows.dtype), 0)
    rows, exponents, _, _ = lax.while_loop(lambda s: (s[2] > tol) & (s[3] < _MAX_SWEEPS), sweep, state)
    # Odd counts end with the padding row somewhere among the zero rows; it has to leave again.
    last = jnp.argsort(exponents, descending=True)[:size]
    return rows[last], exponents[last]


def _next_pairs(num_pairs: int) -> Array:
    """Where each row of the next round comes from: a tournament in which row 0 stays and the others move on."""
    if num_pairs == 1:
        return jnp.arange(2)
    top = [0, num_pairs, *range(1, num_pairs - 1)]
    bottom = [*range(num_pairs + 1, 2 * num_pairs), num_pairs - 1]
    return jnp.array(top + bottom)


def _rotate_pairs(rows: Array, exponents: Array) -> tuple[Array, Array, Array]:
    """Make row i orthogonal to row i + n/2, for every i at once; also return the largest cosine met."""
    num_pairs = rows.shape[0] // 2
    dtype = rows.dtype
    swap = exponents[:num_pairs] < exponents[num_pairs:]
    large, small, large_exponent, small_exponent = _exchange(swap, rows, exponents)

    ratio = power_of_two(small_exponent - large_exponent, dtype)
    alpha, beta = jnp.sum(large * large, axis=1), jnp.sum(small * small, axis=1)
    gamma = jnp.sum(large * small, axis=1)
    # The tangent of the angle is ratio * slope; slope itself stays of order one however small the ratio.
    split = ratio * ratio * beta - alpha
    reach = jnp.abs(split) + jnp.sqrt(split * split + 4 * ratio * ratio * gamma * gamma)
    slope = 2 * gamma * jnp.where(split >= 0, 1, -1).astype(dtype) / jnp.where(reach > 0, reach, 1)
    cosine = lax.rsqrt(1 + jnp.square(ratio * slope))
    new_large = cosine[:, None] * (large - (ratio * ratio * slope)[:, None] * small)
    new_small = cosine[:, None] * (small + slope[:, None] * large)
    noise = 4 * jnp.finfo(dtype).eps
    parallel = jnp.sum(new_small * new_small, axis=1) <= noise**2 * beta
    new_small = jnp.where(parallel[:, None], 0, new_small)

    rows = jnp.concatenate([new_large, new_small])
    rows, exponents = normalize_rows(rows, jnp.concatenate([large_exponent, small_exponent]))
    first, second, first_exponent, second_exponent = _exchange(swap, rows, exponents)
    rows, exponents = jnp.concatenate([first, second]), jnp.concatenate([first_exponent, second_exponent])
    product = alpha * beta
    return rows, exponents, jnp.max(jnp.abs(gamma) * lax.rsqrt(jnp.where(product > 0, product, 1)))


def _exchange(swap: Array, rows: Array, exponents: Array) -> tuple[Array, Array, Array, Array]:
    """Both halves of the rows, with the pairs under ``swap`` exchanged."""
    half = swap.shape[0]
    a, b, a_exponent, b_exponent = rows[:half], rows[half:], exponents[:half], exponents[half:]
    return (
        jnp.where(swap[:, None], b, a),
        jnp.where(swap[:, None], a, b),
        jnp.where(swap, b_exponent, a_exponent),
        jnp.where(swap, a_exponent, b_exponent),
    )


def normalize_rows(rows: Array, exponents: Array) -> tuple[Array, Array]:
    """Move powers of two from the rows to the exponents until every row has a norm near 1."""
    shift = exponent_of(safe_norm(rows, axis=1))
    rows = rows * power_of_two(-shift, rows.dtype)[:, None]
    zero = (shift == ZERO) | (exponents < ZERO // 2)
    return rows, jnp.where(zero, ZERO, exponents + shift)


def exponent_of(x: Array) -> Array:
    """The integer nearest to ``log2`` of a size; ``ZERO`` for 0 and for NaN."""
    positive = x > 0
    return jnp.where(positive, jnp.round(jnp.log2(jnp.where(positive, x, 1))).astype(jnp.int32), ZERO)


def power_of_two(exponent: Array, dtype: jnp.dtype) -> Array:
    """``2^exponent`` exactly, clipped to what ``dtype`` holds: 0 below, the largest power above."""
    # exp2 of an integer is off by an ulp on some backends, which would add up over ten thousand factors.
    bits, bias, integer = (52, 1023, jnp.int64) if dtype == jnp.float64 else (23, 127, jnp.int32)
    return lax.bitcast_convert_type((jnp.clip(exponent, -bias, bias).astype(integer) + bias) << bits, dtype)


def safe_norm(x: Array, axis: int) -> Array:
    """Euclidean norms by a scale that keeps the squares in range."""
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    scaled = x / jnp.where(largest > 0, largest, 1)
    return jnp.squeeze(largest, axis) * jnp.sqrt(jnp.sum(scaled * scaled, axis=axis))
