"""Leading components from block Krylov spaces, for data whose scatter matrix is too large to form.

The iteration runs on the smaller side: vectors have an entry a feature, or where rows are fewer, an entry a row. The
centred data are made a block at a time and used twice, as in ``(v @ block.T) @ block``: nothing of their size is kept,
and no product of uncentred data is corrected afterwards, which an offset would ruin in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt32

from jaxgrad._moments import CentredRows, block_size
from jaxgrad._rows import fold_blocks, psum

FIRST, STEPS = 6, 3  # passes over the data before the first look at the error, and from one to the next
MAX_PASSES = 50
Carry = TypeVar("Carry")


class Krylov(NamedTuple):
    """What the iteration found.

    Attributes:
      values: Shape (k,); eigenvalues of the scatter matrix, descending.
      vectors: Shape (k, d); their eigenvectors, in rows.
      total: Shape (); the trace of the scatter matrix.
      error: Shape (); the largest residual of the k pairs divided by the largest eigenvalue, or if that is more the
        square of a residual divided by its own eigenvalue, where that is no rounding error. Residuals are those on the
        side the iteration runs on; an eigenvector of the other side has one at most as large, up to directions missed.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "k d"]
    total: Float[Array, ""]
    error: Float[Array, ""]


class Ritz(NamedTuple):
    """Where the iteration stands.

    Attributes:
      vectors: Shape (p, m); approximate eigenvectors in rows, best first. Rows not found yet are zero.
      images: Shape (p, m); the matrix times each.
      values: Shape (p,); approximate eigenvalues.
      residuals: Shape (p,); norms of ``images - values * vectors``.
      block: Shape (b, m); the next rows of the basis, orthonormal to the vectors.
    """

    vectors: Float[Array, "p m"]
    images: Float[Array, "p m"]
    values: Float[Array, " p"]
    residuals: Float[Array, " p"]
    block: Float[Array, "b m"]


def block_krylov(
    rows: CentredRows,
    num_components: int,
    seed: UInt32[Array, ""],
    tol: float,
    budget: int | None = None,
    axes: tuple[str, ...] = (),
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
      budget: After how many passes another solver would have been faster: it is given up where the error falls too
        slowly for them to suffice. ``None``: never before ``MAX_PASSES``.
      axes: The axes of the mesh the rows are sharded over.

    Returns:
      The pairs reached when the error was small enough, or when it was given up.
    """
    by_row = on_rows(rows.values.shape, axes)
    size = rows.values.shape[0 if by_row else 1]
    width, kept, first = shape_of_basis(num_components, size)
    start, total = _sketch(rows, by_row, width, seed, axes)
    unknown = jnp.full((kept,), jnp.inf, start.dtype)
    nothing = jnp.zeros((kept, size), start.dtype)
    ritz = Ritz(nothing, nothing, jnp.zeros_like(unknown), unknown, orthonormal_rows(start, None))

    def error(values: Array, residuals: Array) -> Array:
        values, residuals = values[:num_components], residuals[:num_components]
        largest = jnp.where(values[0] > 0, values[0], 1)
        own = jnp.where(values > 0, values, largest)
        rounding = residuals <= 16 * jnp.finfo(values.dtype).eps * largest
        return jnp.max(jnp.maximum(residuals / largest, jnp.where(rounding, 0, (residuals / own) ** 2)))

    def unfinished(carry: tuple[Array, Array, Array, Ritz]) -> Array:
        passes, rate, now, _ = carry
        if budget is None:
            worth = passes < MAX_PASSES
        else:
            left = jnp.maximum(budget - passes, 0).astype(now.dtype)
            worth = (passes == 0) | (now * rate**left <= tol / 10)  # it falls fastest in the beginning
        return worth & ~(now <= tol)

    def cycle(carry: tuple[Array, Array, Array, Ritz]) -> tuple[Array, Array, Array, Ritz]:
        passes, _, before, ritz = carry
        room = ((0, first * width), (0, 0))

        def extend(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            basis, images, block = carry
            image = _apply(rows, by_row, block, axes)
            basis = lax.dynamic_update_slice_in_dim(basis, block, kept + i * width, 0)
            images = lax.dynamic_update_slice_in_dim(images, image, kept + i * width, 0)
            return basis, images, orthonormal_rows(image, basis) if width < size else block

        basis = (jnp.pad(ritz.vectors, room), jnp.pad(ritz.images, room), ritz.block)
        steps = jnp.where(passes > 0, min(first, STEPS), first)
        basis, images, block = lax.fori_loop(0, steps, extend, basis)
        ritz = _rayleigh_ritz(basis, images, block, kept)
        now = error(ritz.values, ritz.residuals)
        return passes + steps, (now / before) ** (1 / steps.astype(now.dtype)), now, ritz

    one = jnp.ones((), start.dtype)
    *_, reached, ritz = lax.while_loop(unfinished, cycle, (jnp.zeros((), jnp.int32), one, one, ritz))
    values, vectors = jnp.maximum(ritz.values[:num_components], 0), ritz.vectors[:num_components]
    if by_row:
        vectors = _onto_features(rows, vectors)
    return Krylov(values, vectors, total, reached)


def on_rows(shape: tuple[int, ...], axes: tuple[str, ...]) -> bool:
    """Return whether vectors have an entry a row: where rows are fewer, and all here."""
    return shape[0] < shape[1] and not axes


def shape_of_basis(num_components: int, size: int) -> tuple[int, int, int]:
    """Return the width of a block, how many vectors a cycle starts from, and how many blocks the first one adds."""
    width = -(-(num_components + 4) // 8) * 8
    blocks = size // width - 1  # one is left for the next
    if blocks < 2:
        return size, size, 1  # the whole space: one cycle is exact
    first = min(FIRST, blocks - 1)
    return width, width * min(max(160 // width, 3), blocks - first), first


def orthonormal_rows(y: Float[Array, "b m"], basis: Float[Array, "p m"] | None) -> Float[Array, "b m"]:
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
    fast = y
    identity = jnp.eye(y.shape[0], dtype=y.dtype)
    for turn, shift in enumerate((8 * y.shape[0] * eps, 0.0, 0.0)):
        if basis is not None and turn < 2:
            fast = fast - _dot(_gram(fast, basis), basis)
        norms = jnp.sqrt(jnp.sum(fast**2, axis=1, keepdims=True))
        fast = fast / jnp.where(norms > 0, norms, 1)
        fast = _dot(_inverse(jnp.linalg.cholesky(_gram(fast, fast) + shift * identity)), fast)
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


def _fold(rows: CentredRows, by_row: bool, step: Callable[[Carry, Array, Array], Carry], carry: Carry) -> Carry:
    """Pass over the data, ``carry = step(carry, block, start)``, in blocks of columns or of rows."""
    length, width = rows.values.shape[::-1] if by_row else rows.values.shape

    def visit(carry: Carry, start: Array | int, size: int) -> Carry:
        block = rows.columns(start, size) if by_row else rows.rooted(start, size)
        return step(carry, block, jnp.asarray(start))

    return fold_blocks(visit, carry, length, block_size(length, width))


def _sketch(
    rows: CentredRows, by_row: bool, width: int, seed: Array, axes: tuple[str, ...]
) -> tuple[Float[Array, "b m"], Float[Array, ""]]:
    """Add the data up with random signs, which is half a step ahead of random vectors; and their squares."""
    dtype = rows.values.dtype
    first = lax.axis_index(axes).astype(jnp.uint32) * rows.values.shape[0] if axes else jnp.uint32(0)

    def step(carry: tuple[Array, Array], block: Array, start: Array) -> tuple[Array, Array]:
        sums, total = carry
        numbers = first + start.astype(jnp.uint32) + jnp.arange(block.shape[1 if by_row else 0], dtype=jnp.uint32)
        mixed = signs(numbers, jnp.arange(width, dtype=jnp.uint32), seed, dtype)
        return sums + _along(mixed, block, 1 if by_row else 0), total + jnp.sum(block**2)

    carry = (jnp.zeros((width, rows.values.shape[0 if by_row else 1]), dtype), jnp.zeros((), dtype))
    return psum(_fold(rows, by_row, step, carry), axes)


def _apply(rows: CentredRows, by_row: bool, vectors: Float[Array, "b m"], axes: tuple[str, ...]) -> Float[Array, "b m"]:
    """Multiply the matrix, which is not formed, by vectors in rows."""
    own, other = (0, 1) if by_row else (1, 0)

    def step(images: Array, block: Array, start: Array) -> Array:
        return images + _along(_along(vectors, block, own), block, other)

    return psum(_fold(rows, by_row, step, jnp.zeros_like(vectors)), axes)


def _onto_features(rows: CentredRows, vectors: Float[Array, "k n"]) -> Float[Array, "k d"]:
    """Turn eigenvectors with an entry a row into those with an entry a feature."""

    def step(found: Array, block: Array, start: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(found, _along(vectors, block, 0), start, 1)

    found = _fold(rows, True, step, jnp.zeros((vectors.shape[0], rows.values.shape[1]), vectors.dtype))
    return orthonormal_rows(found, None)


def _rayleigh_ritz(basis: Array, images: Array, block: Array, kept: int) -> Ritz:
    """Find the best eigenpairs in the span of a basis, whose images are known, and whose rows may be zero."""
    projected = _gram(basis, images)
    missing = 1 - jnp.sum(basis**2, axis=1) > 0.5
    last = jnp.where(missing, -1 - jnp.max(jnp.diagonal(projected)), 0)
    values, turn = jnp.linalg.eigh((projected + projected.T) / 2 + jnp.diag(last))
    values, turn = values[::-1][:kept], turn[:, ::-1][:, :kept].T
    vectors = _dot(turn, basis)
    images = _dot(turn, images)
    residuals = jnp.sqrt(jnp.sum((images - values[:, None] * vectors) ** 2, axis=1))
    return Ritz(vectors, images, values, residuals, block)


def _along(vectors: Array, block: Array, axis: int) -> Array:
    """Multiply vectors in rows by a block along one of its axes."""
    return lax.dot_general(vectors, block, (((1,), (axis,)), ((), ())), precision=lax.Precision.HIGHEST)


def _dot(a: Array, b: Array) -> Array:
    return _along(a, b, 0)


def _gram(a: Float[Array, "a m"], b: Float[Array, "b m"]) -> Float[Array, "a b"]:
    return _along(a, b, 1)


def _inverse(lower: Float[Array, "b b"]) -> Float[Array, "b b"]:
    """Invert a triangular matrix by its halves."""
    size = lower.shape[0]
    if size <= 32:  # larger ones OpenBLAS would share among threads, which then spin on and take cores from XLA's
        return lax.linalg.triangular_solve(lower, jnp.eye(size, dtype=lower.dtype), left_side=True, lower=True)
    half = size // 2
    first, last = _inverse(lower[:half, :half]), _inverse(lower[half:, half:])
    below = -_dot(_dot(last, lower[half:, :half]), first)
    return jnp.block([[first, jnp.zeros_like(below.T)], [below, last]])
