"""Single numbers of a dense Jacobian: its norms, its ranks and its condition number.

Each takes an array of shape (..., out, in), from :func:`jaxgrad.spectra.layer_jacobian`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad._checks import message


def frobenius_norm(jacobian: Float[Array, "*batch out in"]) -> Float[Array, "*batch"]:
    """Compute the Frobenius norm of Jacobians.

    ``|J|_F = sqrt(sum_ij J_ij²)``, the root of the sum of squared singular values; no mean over the entries.

    Args:
      jacobian: Dense Jacobians of shape (..., out, in), real floating.

    Returns:
      Norms of shape (...,), in the dtype of ``jacobian``, at least float32.

    Raises:
      TypeError: ``jacobian`` is not a real floating array.
      ValueError: It has fewer than two axes, or an empty matrix.

    Numerics:
      Entries are scaled before they are squared, so nothing overflows that has a finite norm. Gradient ``J / |J|_F``; 0
      at a zero matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> frobenius_norm(jnp.array([[3.0, 0.0], [0.0, 4.0]])).item()
      5.0

    See also:
      ``jnp.linalg.norm(ord="fro")``, which overflows at entries of 1e20 and has a NaN gradient at zero.
    """
    jacobian = check_jacobian("frobenius_norm", jacobian)
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(jacobian), axis=(-2, -1), keepdims=True))
    usable = (scale > 0) & jnp.isfinite(scale)
    # The scale would go subnormal under division for the tiniest entries; there 1 does no worse.
    squares = jnp.sum(jnp.square(jacobian / jnp.where(usable, scale, 1)), axis=(-2, -1))
    positive = squares > 0
    root = jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0 * squares)
    return root * jnp.where(usable, scale, 1)[..., 0, 0]


def spectral_norm(jacobian: Float[Array, "*batch out in"]) -> Float[Array, "*batch"]:
    """Compute the spectral norm of Jacobians: the largest factor by which one stretches a vector.

    ``|J|_2 = max_v |J v| / |v|``, the largest singular value.

    Args:
      jacobian: Dense Jacobians of shape (..., out, in), real floating.

    Returns:
      Norms of shape (...,), in the dtype of ``jacobian``, at least float32.

    Raises:
      TypeError: ``jacobian`` is not a real floating array.
      ValueError: It has fewer than two axes, or an empty matrix.

    Numerics:
      Relative error of a few machine epsilons. Gradient ``u v^T``; where the largest value is repeated or zero, one of
      several subgradients, finite.

    Example:
      >>> import jax.numpy as jnp
      >>> spectral_norm(jnp.array([[3.0, 0.0], [0.0, 4.0]])).item()
      4.0

    See also:
      ``singular_values(f, x, k=1, key=key)``, without the matrix; ``jnp.linalg.norm(ord=2)``.
    """
    return svd_values(check_jacobian("spectral_norm", jacobian))[..., 0]


def stable_rank(jacobian: Float[Array, "*batch out in"]) -> Float[Array, "*batch"]:
    """Compute the stable rank of Jacobians: how many directions carry the signal.

    ``|J|_F² / |J|_2² = sum_i (s_i / s_1)²``, between 1 and the rank; unlike the rank, continuous.

    Args:
      jacobian: Dense Jacobians of shape (..., out, in), real floating.

    Returns:
      Stable ranks of shape (...,), in the dtype of ``jacobian``, at least float32.

    Raises:
      TypeError: ``jacobian`` is not a real floating array.
      ValueError: It has fewer than two axes, or an empty matrix.

    Numerics:
      0 for a zero matrix, with gradient 0. Does not depend on the unit of the Jacobian.

    Example:
      >>> import jax.numpy as jnp
      >>> stable_rank(jnp.array([[1.0, 0.0], [0.0, 0.5]])).item()
      1.25

    References:
      Rudelson and Vershynin, Sampling from large matrices: an approach through geometric functional analysis, 2007.

    See also:
      ``effective_rank``, the exponential of the entropy of the spectrum: another quantity.
    """
    values = svd_values(check_jacobian("stable_rank", jacobian))
    return jnp.sum(jnp.square(values / positive(values[..., :1])), axis=-1)


def effective_rank(jacobian: Float[Array, "*batch out in"]) -> Float[Array, "*batch"]:
    """Compute the effective rank of Jacobians: into how many directions the stretch spreads.

    ``exp(-sum_i p_i log(p_i))`` with ``p_i = s_i / sum_j s_j``, between 1 and the rank: the rank itself where all
    nonzero singular values are equal.

    Args:
      jacobian: Dense Jacobians of shape (..., out, in), real floating.

    Returns:
      Effective ranks of shape (...,), in the dtype of ``jacobian``, at least float32.

    Raises:
      TypeError: ``jacobian`` is not a real floating array.
      ValueError: It has fewer than two axes, or an empty matrix.

    Numerics:
      0 for a zero matrix, with gradient 0. The true slope at a singular value of 0 is infinite; values that are not
      resolved, at most ``max(out, in) * eps`` of the largest, count as zeros with slope 0. Does not depend on the unit
      of the Jacobian.

    Example:
      >>> import jax.numpy as jnp
      >>> [round(float(r), 3) for r in effective_rank(jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]]]))]
      [2.0, 1.0]

    References:
      :cite:p:`roy2007effective`.

    See also:
      ``stable_rank``, of the squared values and less sensitive to small ones; ``jnp.linalg.matrix_rank``, which counts.
    """
    jacobian = check_jacobian("effective_rank", jacobian)
    values = svd_values(jacobian)
    largest = values[..., :1]
    resolved = values > svd_accuracy(float(jnp.finfo(values.dtype).eps), jacobian.shape) * largest
    # NaN is not resolved, and must not go lost.
    values = jnp.where(resolved | jnp.isnan(values), values / positive(largest), 0)
    shares = values / positive(jnp.sum(values, axis=-1, keepdims=True))
    entropy = -jnp.sum(shares * jnp.log(jnp.where(shares == 0, 1, shares)), axis=-1)
    return jnp.where(largest[..., 0] == 0, 0, jnp.exp(entropy))


def condition_number(jacobian: Float[Array, "*batch out in"]) -> Float[Array, "*batch"]:
    """Compute the condition number of Jacobians: the ratio of the largest to the smallest stretch.

    ``s_1 / s_r`` with ``r = min(out, in)``; 1 for an isometry.

    Args:
      jacobian: Dense Jacobians of shape (..., out, in), real floating.

    Returns:
      Condition numbers of shape (...,), at least 1, in the dtype of ``jacobian``, at least float32.

    Raises:
      TypeError: ``jacobian`` is not a real floating array.
      ValueError: It has fewer than two axes, or an empty matrix.

    Numerics:
      inf, with gradient 0, where the smallest value is not resolved: at most ``max(out, in) * eps`` of the largest (the
      cut-off of ``matrix_rank``), a zero matrix included. Below that the relative error is up to ``eps`` times the
      result.

    Example:
      >>> import jax.numpy as jnp
      >>> condition_number(jnp.array([[[4.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]])).tolist()
      [2.0, inf]

    See also:
      ``jnp.linalg.cond``, which returns rounding noise such as 1e8 for a singular matrix.
    """
    jacobian = check_jacobian("condition_number", jacobian)
    values = svd_values(jacobian)
    largest, smallest = values[..., 0], values[..., -1]
    singular = smallest <= svd_accuracy(float(jnp.finfo(values.dtype).eps), jacobian.shape) * largest
    ratio = jnp.where(singular, 1, largest) / jnp.where(singular, 1, smallest)
    return jnp.where(singular, jnp.inf, ratio)


def svd_values(jacobian: Array) -> Array:
    """Singular values only: their derivative ``u^T dJ v`` stays finite where two are equal."""
    scale = positive(jax.lax.stop_gradient(jnp.max(jnp.abs(jacobian), axis=(-2, -1), keepdims=True)))
    return jnp.linalg.svd(jacobian / scale, compute_uv=False) * scale[..., 0]


def positive(x: Array) -> Array:
    """What to divide by: 1 for 0."""
    return jnp.where(x == 0, 1, x)


def svd_accuracy(eps: float, shape: tuple[int, ...]) -> float:
    """Error of the singular values over the largest: below it they are not told from zero."""
    return max(shape[-2:]) * eps


def check_jacobian(function: str, jacobian: Any) -> Array:
    """Refuse what is no dense real Jacobian; return it in at least float32."""
    if callable(jacobian) or isinstance(jacobian, (list, tuple)):
        raise TypeError(
            message(
                function,
                "one dense Jacobian array of shape (..., out, in)",
                f"a {type(jacobian).__name__}",
                "pass layer_jacobian(f, x), or an array stacked along a leading axis",
            )
        )
    jacobian = jnp.asarray(jacobian)
    if not jnp.issubdtype(jacobian.dtype, jnp.floating):
        raise TypeError(
            message(function, "a real floating Jacobian", f"{jacobian.dtype}", "cast it: jacobian.astype(float)")
        )
    if jacobian.ndim < 2 or 0 in jacobian.shape[-2:]:
        raise ValueError(
            message(
                function,
                "a non-empty Jacobian of shape (..., out, in)",
                f"shape {jacobian.shape}",
                "pass layer_jacobian(f, x), or add the missing axis: jacobian[None, :]",
            )
        )
    return jacobian if jacobian.dtype == jnp.float64 else jacobian.astype(jnp.float32)
