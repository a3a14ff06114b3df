"""Coordinates along principal components, and back."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from jaxgrad._checks import message
from jaxgrad._inputs import check_rows
from jaxgrad.decomposition._result import PCAResult


def pca_transform(result: PCAResult, x: Shaped[Array | np.ndarray, "m d"]) -> Float[Array, "m k"]:
    r"""Compute the coordinates of rows along the components.

    .. math::
      z = \frac{V (x - \mu)}{s}, \qquad s = 1, \text{ or with whitening } \sqrt{\lambda}.

    Args:
      result: From :func:`jaxgrad.decomposition.pca` or :func:`jaxgrad.decomposition.pca_from_state`.
      x: Rows with the features of the fit, new ones or the same.

    Returns:
      Coordinates, of the type of the result; float64 for float64 rows.

    Raises:
      TypeError: ``x`` is complex or no numbers.
      ValueError: ``x`` is no matrix, is empty, or has other features.

    Numerics:
      The mean is subtracted first, both parts of it. With whitening a component without variance gives 0. NaN stays
      in its row.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.decomposition import pca
      >>> x = jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
      >>> pca_transform(pca(x, 1), x).round(4).tolist()
      [[-5.0], [0.0], [5.0]]

    References:
      :cite:p:`hotelling1933analysis`, whose components have variance 1, as with whitening.

    See also:
      ``sklearn.decomposition.PCA.transform``.
    """
    x = check_rows("pca_transform", x, result.mean.shape[-1])
    mean, low, components, scale = _wide(result, x)
    scores = jnp.dot((x.astype(mean.dtype) - mean[None]) - low[None], components.T, precision=lax.Precision.HIGHEST)
    kept = scale > 0
    return jnp.where(kept, scores / jnp.where(kept, scale, 1), 0)


def pca_inverse_transform(result: PCAResult, z: Shaped[Array | np.ndarray, "m k"]) -> Float[Array, "m d"]:
    r"""Compute the rows that have given coordinates along the components, and the mean's along all others.

    .. math::
      x = V^\top (s z) + \mu.

    Args:
      result: As it was given to :func:`jaxgrad.decomposition.pca_transform`.
      z: Coordinates, one a component.

    Returns:
      Rows, of the type of the result; float64 for float64 coordinates.

    Raises:
      TypeError: ``z`` is complex or no numbers.
      ValueError: ``z`` is no matrix, is empty, or has not one column a component.

    Numerics:
      With all components the transform and this give rows back to rounding; with fewer the nearest point of the plane
      that they span through the mean.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.decomposition import pca
      >>> result = pca(jnp.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]), 1)
      >>> pca_inverse_transform(result, jnp.array([[-5.0]])).round(4).tolist()
      [[0.0, 0.0]]

    References:
      :cite:p:`pearson1901lines` for the plane; :cite:p:`eckart1936approximation`: of the data of the fit the rows are
      the best approximation of their rank.

    See also:
      ``sklearn.decomposition.PCA.inverse_transform``.
    """
    num_components = result.components.shape[-2]
    z = check_rows("pca_inverse_transform", z)
    if z.shape[1] != num_components:
        raise ValueError(
            message(
                "pca_inverse_transform",
                f"{num_components} coordinates, one a component",
                f"shape {z.shape}",
                "pass what pca_transform gave with the same result",
            )
        )
    mean, low, components, scale = _wide(result, z)
    return (jnp.dot(z.astype(mean.dtype) * scale, components, precision=lax.Precision.HIGHEST) + low[None]) + mean[None]


def _wide(result: PCAResult, like: Array) -> tuple[Array, Array, Array, Array]:
    """Return what a transform needs, in the wider type."""
    wide = jnp.promote_types(result.mean.dtype, like.dtype)
    parts = (result.mean, result.mean_remainder, result.components, result.scale)
    mean, low, components, scale = (part.astype(wide) for part in parts)
    return mean, low, components, scale[None]
