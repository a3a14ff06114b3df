"""Singular values of a Jacobian and the single numbers made of them.

The norms take the Jacobian as an array of shape (..., out, in), from :func:`jaxgrad.spectra.layer_jacobian`. The two
functions that take ``f`` and ``x``, :func:`singular_values` and :func:`frobenius_norm_estimate`, can do without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad._checks import message
from jaxgrad.spectra._dense import layer_jacobian
from jaxgrad.spectra._golub_kahan import golub_kahan
from jaxgrad.spectra._operators import jacobian_operator

_DENSE_SIZE = 256
_NUM_STEPS = 24


class SingularValues(NamedTuple):
    """Singular values, and how far to trust them.

    Attributes:
      values: Singular values in descending order, of shape (k,).
      accuracy: Estimated error of each value over the largest value, of shape (k,). Small values carry a large error of
        their own where it is not far below ``values / values[0]``.
    """

    values: Float[Array, " k"]
    accuracy: Float[Array, " k"]


class NormEstimate(NamedTuple):
    """A norm estimated from random probes.

    Attributes:
      value: The estimate, a scalar.
      standard_error: Its standard error, a scalar; 0 where the value is exact.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]


def singular_values(
    f: Callable[[Any], Any],
    x: Any,
    *,
    k: int | None = None,
    method: Literal["auto", "svd", "golub-kahan"] = "auto",
    num_steps: int = _NUM_STEPS,
    key: PRNGKeyArray | None = None,
    chunk_size: int | None = None,
) -> SingularValues:
    """Compute the singular values of the Jacobian of ``f`` at ``x``, the largest first.

    ``s_i = sqrt(eigenvalue_i(J^T J))`` with ``J[i, j] = d f(x)[i] / d x[j]``: how much ``f`` stretches, to first order,
    each of ``min(out_size, in_size)`` orthogonal directions.

    Args:
      f: Function of one array or pytree of real floating arrays, to the same. Static under ``jit``.
      x: Where to differentiate. For a batch, ``vmap`` this function.
      k: How many values, 1 to ``min(out_size, in_size)``; ``None``: all. Static.
      method: ``"svd"`` forms the Jacobian. ``"golub-kahan"`` only multiplies with it, ``2 num_steps + 1`` products
        with blocks of k vectors (a product costs about one evaluation of ``f``), and needs ``key``. ``"auto"`` takes
        it where it does less work: the smaller side exceeds 256 and ``k * num_steps``. Static.
      num_steps: Krylov steps of ``"golub-kahan"``. Static.
      key: Random key of the Krylov space's start.
      chunk_size: As in ``layer_jacobian``, for ``"svd"``. Static.

    Returns:
      ``SingularValues(values, accuracy)``, each of shape (k,), float32 (float64 for float64 inputs).

    Raises:
      TypeError: A leaf of ``x`` or of ``f(x)`` is integer, boolean or complex.
      ValueError: ``method`` is unknown, ``k`` or ``num_steps`` out of range, or ``key`` missing for ``"golub-kahan"``.

    Numerics:
      Within ``accuracy`` on a zero, an identity and a rank-one Jacobian and at repeated values. With 24 steps and
      k = 1, deep networks of width 2304 reach 1e-6 of the largest value; the top of a single random matrix, whose
      values lie dense, 1e-3 to 1e-4. Gradients are ``u^T dJ v``: finite everywhere, and at a repeated or a zero value
      one of several subgradients. NaN in, NaN out.

    Example:
      >>> import jax.numpy as jnp
      >>> [round(float(v), 3) for v in singular_values(lambda x: jnp.array([3.0, 2.0]) * x, jnp.ones(2)).values]
      [3.0, 2.0]

    References:
      Golub and Kahan, Calculating the singular values and pseudo-inverse of a matrix, 1965. Musco and Musco, Randomized
      block Krylov methods for stronger and faster approximate singular value decomposition, 2015, for the block form.

    See also:
      ``scipy.sparse.linalg.svds``; ``torch.linalg.svdvals``, of a matrix where this is of a function's Jacobian.
    """
    if method not in ("auto", "svd", "golub-kahan"):
        raise ValueError(
            message("singular_values", "method 'auto', 'svd' or 'golub-kahan'", repr(method), "leave method out")
        )
    operator = jacobian_operator(f, x)
    size = min(operator.in_size, operator.out_size)
    if k is not None and not 1 <= k <= size:
        raise ValueError(
            message(
                "singular_values", f"k from 1 to {size}, the Jacobian's smaller side", f"k={k}", "leave k out for all"
            )
        )
    if num_steps < 1:
        raise ValueError(message("singular_values", "num_steps of at least 1", repr(num_steps), "leave it out"))
    if method == "auto":
        krylov = k is not None and size > _DENSE_SIZE and k * num_steps < size
    else:
        krylov = method == "golub-kahan"
    if not krylov:
        jacobian = layer_jacobian(f, x, chunk_size=chunk_size).astype(operator.dtype)
        values = _svd(jacobian)[:k]
        return SingularValues(values, jnp.full_like(values, _svd_accuracy(operator.eps, jacobian.shape)))
    if key is None:
        raise ValueError(
            message(
                "singular_values",
                "a random key for method 'golub-kahan'",
                "key=None",
                "pass key=jax.random.key(0), or method='svd' to form the Jacobian",
            )
        )
    k = size if k is None else k
    triplets = golub_kahan(key, _frozen_operator(f, x), num_values=k, num_steps=num_steps)
    # u^T J v with u and v held fixed has, to first order, the derivative of the singular value.
    images = jax.vmap(operator.matvec)(triplets.right)
    products = jnp.sum(triplets.left * images, axis=1)
    return SingularValues(triplets.values + (products - jax.lax.stop_gradient(products)), triplets.accuracy)


def frobenius_norm_estimate(
    key: PRNGKeyArray, f: Callable[[Any], Any], x: Any, *, num_probes: int = 32
) -> NormEstimate:
    """Estimate the Frobenius norm of the Jacobian of ``f`` at ``x`` without forming it.

    ``|J|_F = sqrt(mean_p |J z_p|²)`` over random sign vectors ``z_p``: ``E |J z|² = |J|_F²``.

    Args:
      key: Random key of the probes.
      f: Function of one array or pytree of real floating arrays, to the same. Static under ``jit``.
      x: Where to differentiate.
      num_probes: How many probes, at least 2; one product with the Jacobian each. Where the Jacobian's smaller side has
        no more than that, every direction is pushed instead and the value is exact. Static.

    Returns:
      ``NormEstimate(value, standard_error)``, two scalars.

    Raises:
      TypeError: A leaf of ``x`` or of ``f(x)`` is integer, boolean or complex.
      ValueError: ``num_probes`` is below 2.

    Numerics:
      0 with gradient 0 for a zero Jacobian. The square is unbiased; the root is low by about
      ``standard_error² / (2 value)``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> round(float(frobenius_norm_estimate(jax.random.key(0), lambda x: 3.0 * x, jnp.ones(100)).value), 3)
      30.0

    References:
      Hutchinson, A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines, 1989.

    See also:
      ``frobenius_norm`` of the dense Jacobian.
    """
    if num_probes < 2:
        raise ValueError(
            message("frobenius_norm_estimate", "num_probes of at least 2", repr(num_probes), "leave it out for 32")
        )
    operator = jacobian_operator(f, x)
    swap = operator.out_size < operator.in_size
    push = operator.rmatvec if swap else operator.matvec
    size = min(operator.in_size, operator.out_size)
    exact = size <= num_probes
    shape = (num_probes, size)
    probes = jnp.eye(size, dtype=operator.dtype) if exact else jax.random.rademacher(key, shape, operator.dtype)
    images = jax.vmap(push)(probes)
    total = frobenius_norm(images) if images.size else jnp.zeros((), operator.dtype)
    if exact:
        return NormEstimate(total, jnp.zeros_like(total))
    value = total / num_probes**0.5
    safe = jnp.where(value > 0, value, 1)
    squares = jnp.sum(jnp.square(images / safe), axis=1)
    return NormEstimate(value, jnp.std(squares, ddof=1) / num_probes**0.5 * value / 2)


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
    jacobian = _check_jacobian("frobenius_norm", jacobian)
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
    return _svd(_check_jacobian("spectral_norm", jacobian))[..., 0]


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
      The effective rank, the exponential of the entropy of the spectrum, is another quantity.
    """
    values = _svd(_check_jacobian("stable_rank", jacobian))
    return jnp.sum(jnp.square(values / _positive(values[..., :1])), axis=-1)


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
    jacobian = _check_jacobian("condition_number", jacobian)
    values = _svd(jacobian)
    largest, smallest = values[..., 0], values[..., -1]
    singular = smallest <= _svd_accuracy(float(jnp.finfo(values.dtype).eps), jacobian.shape) * largest
    ratio = jnp.where(singular, 1, largest) / jnp.where(singular, 1, smallest)
    return jnp.where(singular, jnp.inf, ratio)


def _svd(jacobian: Array) -> Array:
    """Singular values only: their derivative ``u^T dJ v`` stays finite where two are equal."""
    scale = _positive(jax.lax.stop_gradient(jnp.max(jnp.abs(jacobian), axis=(-2, -1), keepdims=True)))
    return jnp.linalg.svd(jacobian / scale, compute_uv=False) * scale[..., 0]


def _positive(x: Array) -> Array:
    return jnp.where(x == 0, 1, x)


def _svd_accuracy(eps: float, shape: tuple[int, ...]) -> float:
    return max(shape[-2:]) * eps


def _frozen_operator(f: Callable, x: Any):
    """The operator of ``f`` at ``x`` with no derivative with respect to ``x`` or to what ``f`` closes over."""
    x = jax.tree.map(jnp.asarray, x)
    converted, constants = jax.closure_convert(f, x)
    constants, x = jax.lax.stop_gradient((constants, x))
    return jacobian_operator(lambda x: converted(x, *constants), x)


def _check_jacobian(function: str, jacobian: Any) -> Array:
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
