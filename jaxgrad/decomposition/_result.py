"""What a fit of PCA gives back, and what follows from its eigenpairs."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxgrad.decomposition._solvers import Spectrum


class PCAResult(NamedTuple):
    """Principal components of data of n rows and d features.

    Attributes:
      mean: Mean of each feature.
      components: Directions of the largest variance, orthonormal, in rows, largest variance first. In each the entry of
        the largest magnitude, the first of equals, is positive.
      explained_variance: Variance along each component: divided by n - 1, or the sum of weights less 1.
      explained_variance_ratio: The same divided by the variance of all features together; 0 for constant data.
      singular_values: Norm of the data's coordinate along each component.
      noise_variance: Mean variance along the directions that were left out, of which data of n < d rows have n - k.
        0 where none is left.
      scale: What :func:`jaxgrad.decomposition.pca_transform` divides each coordinate by: 1, or with ``whiten`` the
        standard deviation. 0 marks a component without variance, whose whitened coordinate is 0.
      mean_remainder: What rounding left out of the mean, under half a unit in its last place.
      num_samples: Number of rows, or the sum of their weights.
      error: Bound on the largest residual ``|C v - variance * v|`` of a component v, divided by the largest variance:
        measured for ``"krylov"``, else the order of the rounding error. Some eigenvalue of the covariance C lies within
        this of each variance.
    """

    mean: Float[Array, " d"]
    components: Float[Array, "k d"]
    explained_variance: Float[Array, " k"]
    explained_variance_ratio: Float[Array, " k"]
    singular_values: Float[Array, " k"]
    noise_variance: Float[Array, ""]
    scale: Float[Array, " k"]
    mean_remainder: Float[Array, " d"]
    num_samples: Float[Array, ""]
    error: Float[Array, ""]


@partial(jax.jit, static_argnames=("num_rows", "whiten", "eps"))
def assemble(
    found: Spectrum,
    mean: Float[Array, " d"],
    low: Float[Array, " d"],
    unit: Float[Array, ""],
    count: Float[Array, ""],
    *,
    num_rows: int | None,
    whiten: bool,
    eps: float | None,
) -> PCAResult:
    """Give eigenpairs of a scatter matrix their statistical meaning.

    Args:
      found: Eigenpairs of the scatter matrix of the rows times ``unit``.
      mean: Mean of the rows.
      low: What rounding left out of it.
      unit: A power of two.
      count: The number of rows, or the sum of their weights.
      num_rows: The number of rows where all count once; ``None`` where ``count`` tells. Static.
      whiten: Whether to divide by standard deviations. Static.
      eps: Smallest variance that is whitened, relative to the largest; ``None`` for the rounding error. Static.
    """
    num_components, num_features = found.vectors.shape
    freedom = jnp.where(count > 1, count - 1, jnp.inf)
    unit = lax.stop_gradient(unit)
    if num_rows is None:
        left = jnp.minimum(count, num_features) - num_components
        shared = jnp.where(left > 0, found.rest / jnp.where(left > 0, left, 1), 0)
    else:
        left = min(num_rows, num_features) - num_components
        shared = found.rest / left if left else jnp.zeros_like(found.rest)
    constant = found.total <= 0
    if eps is None:
        eps = 8 * math.sqrt(num_features) * float(jnp.finfo(mean.dtype).eps)
    scale = jnp.ones_like(found.values)
    if whiten:
        kept = found.values > eps * found.values[0]
        scale = jnp.where(kept, _root(found.values / freedom) / unit, 0)
    return PCAResult(
        mean=mean,
        components=_with_signs(found.vectors),
        explained_variance=found.values / freedom / unit / unit,
        explained_variance_ratio=jnp.where(constant, 0, found.values / jnp.where(constant, 1, found.total)),
        singular_values=_root(found.values) / unit,
        noise_variance=shared / freedom / unit / unit,
        scale=scale,
        mean_remainder=low,
        num_samples=count,
        error=found.error,
    )


def _with_signs(vectors: Float[Array, "k d"]) -> Float[Array, "k d"]:
    largest = jnp.argmax(jnp.abs(vectors), axis=1, keepdims=True)
    return jnp.where(jnp.take_along_axis(vectors, largest, axis=1) < 0, -vectors, vectors)


def _root(values: Array) -> Array:
    """Take the square root, whose derivative at 0 is taken for 0."""
    positive = values > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, values, 1)), 0)
