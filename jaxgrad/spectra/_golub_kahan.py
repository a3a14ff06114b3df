"""The largest singular values of a Jacobian that is never formed: a block Golub-Kahan method.

matfree's ``decomp.bidiag`` divides by the norm of the next Krylov vector inside its loop, so it returns NaN on a zero
operator and amplifies rounding noise into wrong values on an identity or a rank-one operator; neither can be guarded
from outside. The loop here keeps the images of an orthonormal basis instead of a recurrence between two bases. In exact
arithmetic that is the same method, but any orthonormal basis is a valid one, so where the Krylov space ends the basis
goes on with a random direction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad.spectra._layouts import in_loops
from jaxgrad.spectra._operators import JacobianOperator, jacobian_operator


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
    push, pull, size = sides(operator)
    block_size = num_values if block_size is None else block_size
    if num_steps * block_size >= size:
        basis = jnp.eye(size, dtype=operator.dtype)
        images = push(basis)
    else:
        start_key, restart_key = jax.random.split(key)
        start = jax.random.normal(start_key, (block_size, size), operator.dtype)
        basis, images = krylov_basis(restart_key, start, push, pull, num_steps, operator)

    near, values, far = _ritz(basis, images, num_values + 1)
    residuals = pull(far[:num_values]) - values[:num_values, None] * near[:num_values]
    accuracy = _accuracy(values, jnp.linalg.norm(residuals, axis=1), operator.eps)
    left, right = (near, far) if operator.out_size < operator.in_size else (far, near)
    return SingularTriplets(left[:num_values], values[:num_values], right[:num_values], accuracy)


def frozen_operator(f: Callable, x: Any) -> JacobianOperator:
    """Return the operator of ``f`` at ``x`` with no derivative with respect to ``x`` or to what ``f`` closes over."""
    x = jax.tree.map(jnp.asarray, x)
    converted, constants = jax.closure_convert(f, x)
    constants, x = jax.lax.stop_gradient((constants, x))
    return jacobian_operator(lambda x: converted(x, *constants), x)


def sides(operator: JacobianOperator) -> tuple[Callable, Callable, int]:
    """Return the products of blocks of rows, away from the smaller side and back, and the size of that side."""
    push, pull = operator.matvec, operator.rmatvec
    if operator.out_size < operator.in_size:
        push, pull = pull, push
    return jax.vmap(push), jax.vmap(pull), min(operator.in_size, operator.out_size)


def krylov_basis(
    key: PRNGKeyArray, start: Array, push: Callable, pull: Callable, num_steps: int, operator: JacobianOperator
) -> tuple[Array, Array]:
    """Build an orthonormal basis of a Krylov space, and its images.

    Args:
      key: Random key of the directions that replace exhausted ones.
      start: The first block, rows of the smaller side.
      push: The product of a block with the operator, away from the smaller side.
      pull: The product with its transpose.
      num_steps: Blocks in the basis. Static.
      operator: The operator, for its sizes and precision.

    Returns:
      The basis, its first rows those of ``start`` made orthonormal, and its images, both as rows.
    """
    dtype = operator.dtype
    eps = float(jnp.finfo(dtype).eps)
    block_size, size = start.shape
    image_size = max(operator.in_size, operator.out_size)
    basis = jnp.zeros((num_steps * block_size, size), dtype)
    images = jnp.zeros((num_steps * block_size, image_size), dtype)
    push, pull = in_loops(push, start.shape, dtype), in_loops(pull, (block_size, image_size), dtype)

    def grow(basis, images, block, step):
        block = _orthonormalize(block, basis, jax.random.fold_in(key, step), eps)
        image = push(block)
        begin = (step * block_size, 0)
        basis = lax.dynamic_update_slice(basis, block, begin)
        return basis, lax.dynamic_update_slice(images, image, begin), image

    def body(step, state):
        basis, images, image = state
        return grow(basis, images, pull(_unit(image)), step)

    basis, images, _ = lax.fori_loop(1, num_steps, body, grow(basis, images, start, 0))
    return basis, images


def _orthonormalize(block: Array, basis: Array, key: PRNGKeyArray, eps: float) -> Array:
    """Rows orthonormal among themselves and to the basis; a row that is dependent gives way to a random one."""
    block = _unit(block)
    scale = jnp.max(jnp.linalg.norm(block, axis=1))
    rows, lengths = _orthogonal(block, basis)
    exhausted = lengths <= 64 * eps * scale

    def replace(rows):
        noise = jax.random.normal(key, rows.shape, rows.dtype)
        return _orthogonal(jnp.where(exhausted[:, None], noise, rows), basis)[0]

    return lax.cond(jnp.any(exhausted), replace, lambda rows: rows, rows)


def _unit(block: Array) -> Array:
    """The block in units of its largest entry, whose squares neither overflow nor underflow."""
    scale = jnp.max(jnp.abs(block))
    return block / jnp.where(scale > 0, scale, 1)


def _orthogonal(block: Array, basis: Array) -> tuple[Array, Array]:
    """Rows made orthonormal to the basis and to those before them, and how long they were then."""
    # Once leaves rounding errors of the size of what was subtracted; twice is enough.
    for _ in range(2):
        block = block - _product(_product(block, basis.T), basis)
    q, r = jnp.linalg.qr(block.T)
    return q.T, jnp.abs(jnp.diagonal(r))


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
