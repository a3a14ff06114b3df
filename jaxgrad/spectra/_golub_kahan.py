"""The largest singular values of a Jacobian that is never formed: a block Golub-Kahan method.

matfree's ``decomp.bidiag`` divides by the norm of the next Krylov vector inside its loop, so it returns NaN on a zero
operator and amplifies rounding noise into wrong values on an identity or a rank-one operator; neither can be guarded
from outside. The loop here keeps the images of an orthonormal basis instead of a recurrence between two bases. In exact
arithmetic that is the same method, but any orthonormal basis is a valid one, so where the Krylov space ends the basis
goes on with a random direction.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.spectra._operators import JacobianOperator


class SingularTriplets(NamedTuple):
    """The leading singular triplets of an operator, largest value first.

    Attributes:
      left: Left singular vectors as rows, of shape (k, out_size).
      values: Singular values, of shape (k,).
      right: Right singular vectors as rows, of shape (k, in_size).
      accuracy: Estimated error of each value over the largest one, of shape (k,).
    """

    left: Float[Array, "k out"]
    values: Float[Array, " k"]
    right: Float[Array, "k in"]
    accuracy: Float[Array, " k"]


def golub_kahan(
    key: PRNGKeyArray, operator: JacobianOperator, *, num_values: int, num_steps: int, block_size: int | None = None
) -> SingularTriplets:
    """Approximate the largest singular triplets of an operator from products with it.

    With ``V`` an orthonormal basis of the Krylov space of ``J^T J`` on ``block_size`` random vectors, the values are
    those of ``J V``: at most the true ones, and short of them by the square of the angle between the spaces. The basis
    lives on the smaller side of ``J``; where it would fill that side, every direction is pushed and nothing is random.

    Args:
      key: Random key of the starting block and of the directions that replace exhausted ones.
      operator: The products.
      num_values: How many values, k; between 1 and the smaller side. Static.
      num_steps: Krylov steps, each one ``matvec`` and one ``rmatvec`` of a block. Static.
      block_size: Vectors a step, pushed together by ``vmap``; the largest multiplicity that is seen for sure. ``None``:
        ``num_values``. Static.

    Returns:
      The triplets.

    Numerics:
      Values are right, and finite, on a zero, an identity and a rank-one operator. ``accuracy`` comes from the
      residual ``|J^T u - s v|`` by the quadratic bound ``residual² / (4 gap)``, with the gap to the next computed
      value, or by the residual itself where that is smaller; it is an estimate, since a value that the Krylov space
      has not met yet leaves no residual. Not differentiable in itself.
    """
    swap = operator.out_size < operator.in_size
    push, pull = (operator.rmatvec, operator.matvec) if swap else (operator.matvec, operator.rmatvec)
    push, pull = jax.vmap(push), jax.vmap(pull)
    size = min(operator.in_size, operator.out_size)
    block_size = num_values if block_size is None else block_size
    if num_steps * block_size >= size:
        basis = jnp.eye(size, dtype=operator.dtype)
        images = push(basis)
    else:
        basis, images = _krylov(key, push, pull, size, num_steps, block_size, operator)

    near, values, far = _ritz(basis, images, num_values + 1)
    residuals = pull(far[:num_values]) - values[:num_values, None] * near[:num_values]
    accuracy = _accuracy(values, jnp.linalg.norm(residuals, axis=1), operator.eps)
    left, right = (near, far) if swap else (far, near)
    return SingularTriplets(left[:num_values], values[:num_values], right[:num_values], accuracy)


def _krylov(key, push, pull, size: int, num_steps: int, block_size: int, operator: JacobianOperator):
    """An orthonormal basis of the Krylov space, and its images; both as rows."""
    dtype = operator.dtype
    image_size = max(operator.in_size, operator.out_size)
    basis = jnp.zeros((num_steps * block_size, size), dtype)
    images = jnp.zeros((num_steps * block_size, image_size), dtype)
    keys = jax.random.split(key, num_steps)

    def grow(basis, images, block, step):
        noise = jax.random.normal(keys[step], (block_size, size), dtype)
        block = _orthonormalize(block, basis, noise, operator.eps)
        image = push(block)
        start = (step * block_size, 0)
        basis = lax.dynamic_update_slice(basis, block, start)
        return basis, lax.dynamic_update_slice(images, image, start), image

    def body(step, state):
        basis, images, image = state
        scale = jnp.max(jnp.abs(image))
        return grow(basis, images, pull(image / jnp.where(scale > 0, scale, 1)), step)

    # A zero block is exhausted by definition, so the first basis vectors are random.
    state = grow(basis, images, jnp.zeros((block_size, size), dtype), 0)
    basis, images, _ = lax.fori_loop(1, num_steps, body, state)
    return basis, images


def _orthonormalize(block: Array, basis: Array, noise: Array, eps: float) -> Array:
    """Rows orthonormal among themselves and to the basis; a row that is dependent gives way to noise."""
    scale = jnp.max(jnp.linalg.norm(block, axis=1))
    for replacement in (noise, None):
        for _ in range(2):
            block = block - _product(_product(block, basis.T), basis)
        q, r = jnp.linalg.qr(block.T)
        block = q.T
        if replacement is not None:
            exhausted = jnp.abs(jnp.diagonal(r)) <= 64 * eps * scale
            block = jnp.where(exhausted[:, None], replacement, block)
    return block


def _ritz(basis: Array, images: Array, count: int):
    """Leading singular triplets of the operator restricted to the basis: near side, values, far side."""
    q, r = jnp.linalg.qr(images.T)
    u, values, vt = jnp.linalg.svd(r, full_matrices=False)
    return _product(vt[:count], basis), values[:count], _product(u[:, :count].T, q.T)


def _accuracy(values: Array, residuals: Array, eps: float) -> Array:
    count = residuals.shape[0]
    others = jnp.abs(values[None, :] - values[:count, None])
    others = jnp.where(jnp.arange(values.shape[0])[None, :] == jnp.arange(count)[:, None], jnp.inf, others)
    gap = jnp.maximum(jnp.min(others, axis=1, initial=jnp.inf) - residuals, 0)
    quadratic = residuals * (residuals / jnp.where(gap > 0, 4 * gap, 1))
    error = jnp.where(gap > 0, jnp.minimum(residuals, quadratic), residuals)
    return error / jnp.where(values[0] > 0, values[0], 1) + 4 * eps


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
