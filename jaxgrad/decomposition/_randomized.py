"""Leading components from block Krylov spaces, for data whose scatter matrix is too large to form.

The centred rows are made a block at a time and used twice, as in ``rows.T @ (rows @ v)``: nothing of their size is
kept, and no product of uncentred data is corrected afterwards, which an offset would ruin in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt32

from jaxgrad._moments import CentredRows
from jaxgrad._rows import fold_blocks, psum

STEPS = 5  # passes over the rows from one look at the error to the next
MAX_CYCLES = 10


class Krylov(NamedTuple):
    """What the iteration found.

    Attributes:
      values: Shape (k,); eigenvalues of the scatter matrix, descending.
      vectors: Shape (k, d); their eigenvectors, in rows.
      total: Shape (); the trace of the scatter matrix.
      error: Shape (); the largest residual of the k pairs divided by the largest eigenvalue, or if that is more the
        square of a residual divided by its own eigenvalue, where that is no rounding error.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "k d"]
    total: Float[Array, ""]
    error: Float[Array, ""]


class Ritz(NamedTuple):
    """Where the iteration stands.

    Attributes:
      vectors: Shape (p, d); approximate eigenvectors in rows, best first. Rows not found yet are zero.
      images: Shape (p, d); the scatter matrix times each.
      values: Shape (p,); approximate eigenvalues.
      residuals: Shape (p,); norms of ``images - values * vectors``.
      block: Shape (b, d); the next rows of the basis, orthonormal to the vectors.
    """

    vectors: Float[Array, "p d"]
    images: Float[Array, "p d"]
    values: Float[Array, " p"]
    residuals: Float[Array, " p"]
    block: Float[Array, "b d"]


def block_krylov(
    rows: CentredRows, num_components: int, seed: UInt32[Array, ""], tol: float, axes: tuple[str, ...] = ()
) -> Krylov:
    """Iterate until the leading eigenpairs of the scatter matrix are as right as wanted.

    A cycle lays ``STEPS`` blocks beside the best vectors so far, all of it orthogonalised twice, and finds the best in
    the span of the whole. That the residuals of those lie in the span of the next block is what makes this Lanczos'
    method, restarted, rather than a power iteration.

    Args:
      rows: The rows of this shard.
      num_components: How many pairs are wanted.
      seed: Where the signs of the first block come from.
      tol: The error to reach, as in ``Krylov``.
      axes: The axes of the mesh the rows are sharded over.

    Returns:
      The pairs reached when the error was small enough, or after ``MAX_CYCLES`` cycles.
    """
    num_features = rows.values.shape[1]
    width, kept, steps = shape_of_basis(num_components, num_features)
    start, total = _sketch(rows, width, seed, axes)
    nothing = jnp.zeros((kept, num_features), start.dtype)
    unknown = jnp.full((kept,), jnp.inf, start.dtype)
    ritz = Ritz(nothing, nothing, jnp.zeros_like(unknown), unknown, orthonormal_rows(start, None))

    def error(ritz: Ritz) -> Array:
        values, residuals = ritz.values[:num_components], ritz.residuals[:num_components]
        largest = jnp.where(values[0] > 0, values[0], 1)
        own = jnp.where(values > 0, values, largest)
        rounding = residuals <= 16 * jnp.finfo(values.dtype).eps * largest
        return jnp.max(jnp.maximum(residuals / largest, jnp.where(rounding, 0, (residuals / own) ** 2)))

    def unfinished(carry: tuple[Array, Ritz]) -> Array:
        return (carry[0] < MAX_CYCLES) & ~(error(carry[1]) <= tol)

    def cycle(carry: tuple[Array, Ritz]) -> tuple[Array, Ritz]:
        step, ritz = carry
        room = ((0, steps * width), (0, 0))

        def extend(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            basis, images, block = carry
            image = _apply(rows, block, axes)
            basis = lax.dynamic_update_slice_in_dim(basis, block, kept + i * width, 0)
            images = lax.dynamic_update_slice_in_dim(images, image, kept + i * width, 0)
            return basis, images, orthonormal_rows(image, basis) if width < num_features else block

        basis = (jnp.pad(ritz.vectors, room), jnp.pad(ritz.images, room), ritz.block)
        basis, images, block = lax.fori_loop(0, steps, extend, basis)
        return step + 1, _rayleigh_ritz(basis, images, block, kept)

    _, ritz = lax.while_loop(unfinished, cycle, (jnp.zeros((), jnp.int32), ritz))
    values = jnp.maximum(ritz.values[:num_components], 0)
    return Krylov(values, ritz.vectors[:num_components], total, error(ritz))


def shape_of_basis(num_components: int, num_features: int) -> tuple[int, int, int]:
    """Return the width of a block, how many vectors a cycle starts from, and how many blocks it adds."""
    width = -(-(num_components + 4) // 8) * 8
    blocks = num_features // width - 1  # one is left for the next
    if blocks < 2:
        return num_features, num_features, 1  # the whole space: one cycle is exact
    steps = min(STEPS, blocks - 1)
    return width, width * min(max(160 // width, 2), blocks - steps), steps


def orthonormal_rows(y: Float[Array, "b d"], basis: Float[Array, "m d"] | None) -> Float[Array, "b d"]:
    """Make rows orthonormal, to each other and to a basis that is.

    Cholesky factors of Gram matrices, the first of them shifted, do it in matrix products. Where rows are dependent
    that fails; then Householder reflections give rows that are orthonormal whatever they had to be made of.

    Args:
      y: Any rows; may be zero.
      basis: Orthonormal rows, some of which may be zero; or ``None``.
    """
    eps = jnp.finfo(y.dtype).eps
    largest = jnp.max(jnp.abs(y), axis=1, keepdims=True)
    y = y / jnp.where(largest > 0, largest, 1)
    fast = _leave(y, basis)
    norms = jnp.sqrt(jnp.sum(fast**2, axis=1, keepdims=True))
    fast = fast / jnp.where(norms > 0, norms, 1)
    identity = jnp.eye(y.shape[0], dtype=y.dtype)
    for shift in (8 * y.shape[0] * eps, 0.0, 0.0):
        factor = jnp.linalg.cholesky(_gram(fast, fast) + shift * identity)
        fast = lax.linalg.triangular_solve(factor, fast, left_side=True, lower=True)
        fast = _leave(fast, basis) if shift else fast
    defect = jnp.max(jnp.abs(_gram(fast, fast) - identity))
    if basis is not None:
        defect = jnp.maximum(defect, jnp.max(jnp.abs(_gram(fast, basis))))

    def slow() -> Array:
        if basis is None:
            return jnp.linalg.qr(y.T)[0].T
        # Reflections make something of zero rows, too: these come last, where they take nothing from the others.
        place = jnp.concatenate([jnp.where(jnp.any(basis != 0, axis=1), 0, 2), jnp.ones(y.shape[0], jnp.int32)])
        order = jnp.argsort(place, stable=True)
        found = jnp.linalg.qr(jnp.concatenate([basis, y])[order].T)[0].T
        return found[jnp.argsort(order)[-y.shape[0] :]]

    return lax.cond(defect < 32 * eps, lambda: fast, slow)


def signs(rows: Array, columns: Array, seed: Array, dtype: jnp.dtype) -> Float[Array, "b size"]:
    """Hash row and column numbers to signs, the same wherever the row lies.

    Args:
      rows: Shape (size,); uint32.
      columns: Shape (b,); uint32.
      seed: Shape (); uint32.
      dtype: Of the signs.
    """
    mixed = rows[None] * jnp.uint32(0x9E3779B1) ^ columns[:, None] * jnp.uint32(0x85EBCA77) ^ seed
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
    return 1 - 2 * (mixed >> 31).astype(dtype)


def _sketch(rows: CentredRows, width: int, seed: Array, axes: tuple[str, ...]) -> tuple[Array, Array]:
    """Add the rows up with random signs, which is half a step ahead of random vectors; and their squares."""
    num_rows, num_features = rows.values.shape
    dtype = rows.values.dtype
    first = lax.axis_index(axes).astype(jnp.uint32) * num_rows if axes else jnp.uint32(0)

    def step(carry: tuple[Array, Array], begin: Array | int, size: int) -> tuple[Array, Array]:
        sums, total = carry
        centred, weights = rows.block(begin, size)
        if weights is not None:
            centred = centred * jnp.sqrt(weights)[:, None]
        numbers = first + jnp.asarray(begin).astype(jnp.uint32) + jnp.arange(size, dtype=jnp.uint32)
        mixed = signs(numbers, jnp.arange(width, dtype=jnp.uint32), seed, dtype)
        return sums + jnp.dot(mixed, centred, precision=lax.Precision.HIGHEST), total + jnp.sum(centred**2)

    carry = (jnp.zeros((width, num_features), dtype), jnp.zeros((), dtype))
    return psum(fold_blocks(step, carry, num_rows, rows.block_size), axes)


def _apply(rows: CentredRows, vectors: Float[Array, "b d"], axes: tuple[str, ...]) -> Float[Array, "b d"]:
    """Multiply the scatter matrix, which is not formed, by vectors in rows."""
    columns = vectors.T

    def step(images: Array, start: Array | int, size: int) -> Array:
        centred, weights = rows.block(start, size)
        projected = jnp.dot(centred, columns, precision=lax.Precision.HIGHEST)
        if weights is not None:
            projected = projected * weights[:, None]
        return images + lax.dot_general(projected, centred, (((0,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)

    return psum(fold_blocks(step, jnp.zeros_like(vectors), rows.values.shape[0], rows.block_size), axes)


def _rayleigh_ritz(basis: Array, images: Array, block: Array, kept: int) -> Ritz:
    """Find the best eigenpairs in the span of a basis, whose images are known, and whose rows may be zero."""
    projected = _gram(basis, images)
    missing = 1 - jnp.sum(basis**2, axis=1) > 0.5
    last = jnp.where(missing, -1 - jnp.max(jnp.diagonal(projected)), 0)
    values, turn = jnp.linalg.eigh((projected + projected.T) / 2 + jnp.diag(last))
    values, turn = values[::-1][:kept], turn[:, ::-1][:, :kept].T
    vectors = jnp.dot(turn, basis, precision=lax.Precision.HIGHEST)
    images = jnp.dot(turn, images, precision=lax.Precision.HIGHEST)
    residuals = jnp.sqrt(jnp.sum((images - values[:, None] * vectors) ** 2, axis=1))
    return Ritz(vectors, images, values, residuals, block)


def _gram(a: Array, b: Array) -> Array:
    return jnp.dot(a, b.T, precision=lax.Precision.HIGHEST)


def _leave(y: Array, basis: Array | None) -> Array:
    """Take the part in the span of a basis away."""
    return y if basis is None else y - jnp.dot(_gram(y, basis), basis, precision=lax.Precision.HIGHEST)
