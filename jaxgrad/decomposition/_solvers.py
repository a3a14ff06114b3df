"""Leading eigenpairs of a scatter matrix, by every solver, and how they change with the rows."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt32

from jaxgrad._moments import CentredRows, scatter
from jaxgrad._rows import gather
from jaxgrad.decomposition._randomized import block_krylov, orthonormal_rows, shape_of_basis


class Plan(NamedTuple):
    """What is static of a decomposition.

    Attributes:
      solver: ``"covariance"``, ``"gram"``, ``"svd"`` or ``"krylov"``.
      num_components: How many eigenpairs are wanted.
      tol: The error to reach, for ``"krylov"``.
      budget: How many passes ``"krylov"`` may take where a dense solver can follow; ``None`` where none can.
      axes: The axes of the mesh that the rows are sharded over.
    """

    solver: str
    num_components: int
    tol: float
    budget: int | None = None
    axes: tuple[str, ...] = ()


class Spectrum(NamedTuple):
    """Leading eigenpairs of the scatter matrix.

    Attributes:
      values: Shape (k,); eigenvalues, descending, not negative.
      vectors: Shape (k, d); their eigenvectors, in rows, of either sign.
      total: Shape (); the sum of all eigenvalues.
      rest: Shape (); the sum of those that were not kept.
      error: Shape (); the largest residual, or the order of the rounding error, divided by the largest eigenvalue.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "k d"]
    total: Float[Array, ""]
    rest: Float[Array, ""]
    error: Float[Array, ""]


def choose(num_rows: int, num_features: int, num_components: int, tol: float, eps: float) -> str:
    """Return the fastest solver that reaches an error.

    Args:
      num_rows: Rows.
      num_features: Columns.
      num_components: How many components are wanted.
      tol: The error, relative to the largest eigenvalue.
      eps: The rounding of the data's type.
    """
    if tol < 16 * eps:
        return "svd"
    smaller = min(num_rows, num_features)
    if smaller >= 1024 and 16 * shape_of_basis(num_components, smaller)[0] <= smaller:
        return "krylov"
    return "gram" if num_rows < num_features else "covariance"


def passes_worth(num_rows: int, num_features: int, num_components: int) -> int:
    """Return how many passes of ``"krylov"`` take as long as a dense solver, from counts of what each multiplies."""
    smaller, larger = sorted((num_rows, num_features))
    dense = 1.4 * larger * smaller**2 + 9 * smaller**3
    return int(dense / (6.4 * larger * smaller * shape_of_basis(num_components, smaller)[0]))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def spectrum(plan: Plan, rows: CentredRows, seed: UInt32[Array, ""]) -> Spectrum:
    """Decompose the scatter matrix of rows.

    Args:
      plan: Solver and number of components. Static.
      rows: The rows of this shard.
      seed: Where the first signs of ``"krylov"`` come from.

    Returns:
      The same on every shard. Its derivative is that of exact eigenpairs, where those of equal eigenvalues do not turn
      into each other: finite everywhere.
    """
    if plan.solver == "krylov":
        found = block_krylov(rows, plan.num_components, seed, plan.tol, plan.budget, plan.axes)
        rest = jnp.maximum(found.total - jnp.sum(found.values), 0)
        return Spectrum(found.values, found.vectors, found.total, rest, found.error)
    solve = {"covariance": _by_covariance, "gram": _by_gram, "svd": _by_svd}[plan.solver]
    values, vectors = solve(rows, plan)
    return leading(values, vectors, plan.num_components)


def leading(values: Float[Array, " r"], vectors: Float[Array, "m d"], num_components: int) -> Spectrum:
    """Keep the first pairs of a dense decomposition."""
    values = jnp.maximum(values, 0)
    kept, left = values[:num_components], values[num_components:]
    rest = jnp.sum(left)
    error = jnp.asarray(math.sqrt(values.shape[0]) * jnp.finfo(values.dtype).eps, values.dtype)
    return Spectrum(kept, vectors[:num_components], jnp.sum(kept) + rest, rest, error)


@jax.custom_jvp
def descending(matrix: Float[Array, "m m"]) -> tuple[Float[Array, " m"], Float[Array, "m m"]]:
    """Return the eigenvalues of a symmetric matrix, largest first, and the eigenvectors in rows.

    Its derivative is finite: eigenvectors of equal eigenvalues do not turn into each other.
    """
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    return values[::-1], vectors[:, ::-1].T


@descending.defjvp
def _descending_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    values, vectors = descending(*primals)
    dot = partial(jnp.dot, precision=lax.Precision.HIGHEST)
    change = dot(dot(vectors, tangents[0]), vectors.T)
    turn = (change + change.T) / 2 * _inverse(values[:, None] - values[None], values)
    return (values, vectors), (jnp.diagonal(change), dot(turn, vectors))


def _inverse(gap: Array, values: Array) -> Array:
    """Return one over a difference of eigenvalues, 0 where it is no more than rounding."""
    smallest = 16 * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    seen = jnp.abs(gap) > smallest
    return jnp.where(seen, 1 / jnp.where(seen, gap, 1), 0)


def _by_covariance(rows: CentredRows, plan: Plan) -> tuple[Array, Array]:
    return descending(scatter(rows, plan.axes))


def _by_gram(rows: CentredRows, plan: Plan) -> tuple[Array, Array]:
    """Decompose the products of the rows with each other, of which there are fewer than of the features."""
    whole = gather(rows.whole(), plan.axes).reshape(-1, rows.values.shape[1])
    gram = jnp.dot(whole, whole.T, precision=lax.Precision.HIGHEST)
    values, turn = descending((gram + gram.T) / 2)
    vectors = jnp.dot(turn[: plan.num_components], whole, precision=lax.Precision.HIGHEST)
    return values, orthonormal_rows(vectors, None)


def _by_svd(rows: CentredRows, plan: Plan) -> tuple[Array, Array]:
    """Decompose the rows themselves: the squares of small singular values keep their digits."""
    whole = rows.whole()
    if plan.axes:
        whole = gather(jnp.linalg.qr(whole, mode="r"), plan.axes).reshape(-1, whole.shape[1])
    if whole.shape[0] >= whole.shape[1]:
        if whole.shape[0] > whole.shape[1]:
            whole = jnp.linalg.qr(whole, mode="r")
        _, roots, vectors = jnp.linalg.svd(whole)
        return roots**2, vectors
    columns, triangle = jnp.linalg.qr(whole.T)
    _, roots, turn = jnp.linalg.svd(triangle.T)
    return roots**2, jnp.dot(turn, columns.T, precision=lax.Precision.HIGHEST)


@spectrum.defjvp
def _spectrum_jvp(plan: Plan, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Spectrum, Spectrum]:
    """Differentiate eigenpairs: centring adds nothing, as the centred rows sum to zero."""
    rows, seed = primals
    found = spectrum(plan, rows, seed)
    centred, weights = rows.block(0, rows.values.shape[0])
    change = tangents[0].values * rows.scale
    weighted = centred
    if weights is not None:
        change = jnp.where(weights[:, None] > 0, change, 0)
        weighted = centred * weights[:, None]
    dot = partial(jnp.dot, precision=lax.Precision.HIGHEST)
    scores, d_scores = dot(centred, found.vectors.T), dot(change, found.vectors.T)
    heavy = dot(weighted, found.vectors.T)
    d_heavy = d_scores if weights is None else d_scores * weights[:, None]
    d_values = 2 * jnp.sum(heavy * d_scores, axis=0)
    d_total = 2 * jnp.sum(weighted * change)
    if weights is not None:
        d_weights = tangents[0].weights[:, None]
        d_values = d_values + jnp.sum(d_weights * scores**2, axis=0)
        d_total = d_total + jnp.sum(d_weights * centred**2)
        d_heavy = d_heavy + d_weights * scores
    d_images = dot(heavy.T, change) + dot(d_heavy.T, centred)
    d_vectors = _turn(rows, found, d_images)
    d_rest = d_total - jnp.sum(d_values)
    return found, Spectrum(d_values, d_vectors, d_total, d_rest, jnp.zeros_like(found.error))


def _turn(rows: CentredRows, found: Spectrum, d_images: Float[Array, "k d"]) -> Float[Array, "k d"]:
    """Return how eigenvectors turn, given the change of the matrix times each: into all others, by one over the gap."""
    num_rows, num_features = rows.values.shape
    if num_rows < num_features:
        values, basis = _by_gram(rows, Plan("gram", num_rows, 0.0))
    else:
        values, basis = _by_covariance(rows, Plan("covariance", num_features, 0.0))
    values, basis, own = lax.stop_gradient((values, basis, found.values))
    dot = partial(jnp.dot, precision=lax.Precision.HIGHEST)
    along = dot(d_images, basis.T)
    turned = dot(along * _inverse(own[:, None] - values[None], values), basis)
    if num_rows >= num_features:
        return turned
    return turned + _inverse(own, values)[:, None] * (d_images - dot(along, basis))
