"""The singular values of a function's Jacobian, by three routes that differ in work and in accuracy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad._checks import check_number, message
from jaxgrad.spectra._dense import layer_jacobian
from jaxgrad.spectra._golub_kahan import frozen_operator, golub_kahan
from jaxgrad.spectra._norms import positive, svd_accuracy, svd_values
from jaxgrad.spectra._operators import JacobianOperator, jacobian_operator

_DENSE_SIZE = 256
_NUM_STEPS = 24
_METHODS = ("auto", "svd", "tridiagonal", "golub-kahan")


class SingularValues(NamedTuple):
    """Singular values, and how far to trust them.

    Attributes:
      values: Singular values in descending order, of shape (k,).
      accuracy: Estimated error of each value over the largest value, of shape (k,). Small values carry a large error of
        their own where it is not far below ``values / values[0]``.
    """

    values: Float[Array, " k"]
    accuracy: Float[Array, " k"]


def singular_values(
    f: Callable[[Any], Any],
    x: Any,
    *,
    k: int | None = None,
    method: Literal["auto", "svd", "tridiagonal", "golub-kahan"] = "auto",
    tol: float | None = None,
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
      method: ``"svd"`` forms the Jacobian. ``"tridiagonal"`` forms it too and takes the eigenvalues of its Gram matrix:
        half the time at size 1024, and accurate for large values only. ``"golub-kahan"`` only multiplies with the
        Jacobian, ``2 num_steps + 1`` products with blocks of k vectors (a product costs about one evaluation of
        ``f``), and needs ``key``. ``"auto"`` takes it where it does less work: the smaller side exceeds 256 and
        ``k * num_steps``. Static.
      tol: The error over the largest value that will do: ``"auto"`` then takes ``"tridiagonal"`` in place of
        ``"svd"`` where the smaller side exceeds 256 and every value will be that good (about 2e-3 in float32). How good
        ``"golub-kahan"`` was is known only afterwards, from ``accuracy``. Static.
      num_steps: Krylov steps of ``"golub-kahan"``. Static.
      key: Random key of the Krylov space's start.
      chunk_size: As in ``layer_jacobian``, for the methods that form the Jacobian. Static.

    Returns:
      ``SingularValues(values, accuracy)``, each of shape (k,), float32 (float64 for float64 inputs).

    Raises:
      TypeError: A leaf of ``x`` or of ``f(x)`` is integer, boolean or complex.
      ValueError: ``method`` is unknown, ``k``, ``tol`` or ``num_steps`` out of range, or ``key`` missing for
        ``"golub-kahan"``.

    Numerics:
      Within ``accuracy`` on a zero, an identity and a rank-one Jacobian and at repeated values. ``"tridiagonal"`` errs
      by ``d = (8 + sqrt(max(out_size, in_size))) * eps`` in the squares: about ``d / 2`` of the largest value at the
      top, and ``sqrt(d)`` at a zero. ``"golub-kahan"``: with 24 steps and k = 1, deep networks of width 2304 reach
      1e-6 of the largest value; the top of a single random matrix, whose values lie dense, 1e-3 to 1e-4. Gradients are
      ``u^T dJ v``: finite everywhere, and at a repeated or a zero value one of several subgradients. NaN in, NaN out.

    Example:
      >>> import jax.numpy as jnp
      >>> [round(float(v), 3) for v in singular_values(lambda x: jnp.array([3.0, 2.0]) * x, jnp.ones(2)).values]
      [3.0, 2.0]

    References:
      Golub and Kahan, Calculating the singular values and pseudo-inverse of a matrix, 1965;
      :cite:p:`musco2015randomized`, algorithm 2, for the block form.

    See also:
      ``scipy.sparse.linalg.svds``; ``torch.linalg.svdvals``, of a matrix where this is of a function's Jacobian.
    """
    if method not in _METHODS:
        names = " or ".join(repr(each) for each in _METHODS)
        raise ValueError(message("singular_values", f"method {names}", repr(method), "leave method out"))
    if tol is not None:
        check_number("singular_values", "tol", tol, low=0)
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
    shape = (operator.out_size, operator.in_size)
    if method == "auto":
        krylov = k is not None and size > _DENSE_SIZE and k * num_steps < size
        coarse = tol is not None and size > _DENSE_SIZE and _gram_accuracy(operator, shape) ** 0.5 <= tol
        method = "golub-kahan" if krylov else "tridiagonal" if coarse else "svd"
    if method != "golub-kahan":
        jacobian = layer_jacobian(f, x, chunk_size=chunk_size).astype(operator.dtype)
        if method == "svd" or size == 0:
            values = svd_values(jacobian)[:k]
            return SingularValues(values, jnp.full_like(values, svd_accuracy(operator.eps, shape)))
        values = _tridiagonal_values(size if k is None else k, jacobian)
        error = _gram_accuracy(operator, shape)
        shares = jax.lax.stop_gradient(values / positive(values[0]))
        # The largest |s - t| that |s^2 - t^2| <= error leaves.
        above = shares + jnp.sqrt(jnp.maximum(jnp.square(shares) - error, 0))
        return SingularValues(values, error / jnp.maximum(above, error**0.5))
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
    triplets = golub_kahan(key, frozen_operator(f, x), num_values=k, num_steps=num_steps)
    # u^T J v with u and v held fixed has, to first order, the derivative of the singular value.
    images = jax.vmap(operator.matvec)(triplets.right)
    products = jnp.sum(triplets.left * images, axis=1)
    return SingularValues(triplets.values + (products - jax.lax.stop_gradient(products)), triplets.accuracy)


def _gram_accuracy(operator: JacobianOperator, shape: tuple[int, int]) -> float:
    """Error of the eigenvalues of the Gram matrix over the largest one."""
    return (8 + max(shape) ** 0.5) * operator.eps


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _tridiagonal_values(count: int, jacobian: Float[Array, "out in"]) -> Float[Array, " count"]:
    """The largest singular values, from the tridiagonal form of the Gram matrix of the smaller side."""
    scale = positive(jnp.max(jnp.abs(jacobian)))
    scaled = (jacobian if jacobian.shape[0] <= jacobian.shape[1] else jacobian.T) / scale
    gram = jnp.matmul(scaled, scaled.T, precision=jax.lax.Precision.HIGHEST)
    _, diagonal, beside, _ = jax.lax.linalg.tridiagonal(gram, lower=True)
    squares = jax.scipy.linalg.eigh_tridiagonal(diagonal, beside, eigvals_only=True)
    return jnp.sqrt(jnp.maximum(squares[::-1][:count], 0)) * scale


@_tridiagonal_values.defjvp
def _(count, primals, tangents):
    (jacobian,), (rate,) = primals, tangents
    scale = positive(jnp.max(jnp.abs(jacobian)))
    u, _, vt = jnp.linalg.svd(jax.lax.stop_gradient(jacobian / scale), full_matrices=False)
    product = jnp.matmul(rate, vt[:count].T, precision=jax.lax.Precision.HIGHEST)
    return _tridiagonal_values(count, jacobian), jnp.sum(u[:, :count] * product, axis=0)
