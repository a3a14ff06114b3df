"""Probabilistic PCA: the Gaussian whose covariance is that of the components plus equal noise everywhere else."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Shaped

from jaxgrad._inputs import check_rows
from jaxgrad.decomposition._result import PCAResult


def log_likelihood(result: PCAResult, x: Shaped[Array | np.ndarray, "m d"]) -> Float[Array, " m"]:
    r"""Compute the log density of rows under probabilistic PCA.

    .. math::
      \log p(x) = -\tfrac12 \left(d \log 2\pi + \log |C| + (x - \mu)^\top C^{-1} (x - \mu)\right), \qquad
      C = V^\top (\Lambda - \sigma^2) V + \sigma^2 I.

    Args:
      result: From :func:`jaxgrad.decomposition.pca` or :func:`jaxgrad.decomposition.pca_from_state`, whitened or not.
      x: Rows with the features of the fit.

    Returns:
      One number a row, in nats. Their mean is the score to choose a number of components by.

    Raises:
      TypeError: ``x`` is complex or no numbers.
      ValueError: ``x`` is no matrix, is empty, or has other features.

    Numerics:
      Never forms C: what a row has outside of the components is divided by the noise variance. A variance under the
      rounding unit times the largest counts as that, so that the density is finite where data fill no more than a
      plane. NaN stays in its row.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.decomposition import pca
      >>> x = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
      >>> round(log_likelihood(pca(x, 1), x).mean().item(), 3)
      -2.182

    References:
      :cite:p:`tipping1999probabilistic`, equations 4, 7 and 8; with n - 1 where the maximum likelihood has n, as
      scikit-learn.

    See also:
      ``sklearn.decomposition.PCA.score_samples``.
    """
    x = check_rows("log_likelihood", x, result.mean.shape[-1])
    wide = jnp.promote_types(result.mean.dtype, x.dtype)
    mean, low, components = (part.astype(wide) for part in (result.mean, result.mean_remainder, result.components))
    variances, noise = (part.astype(wide) for part in _variances(result))
    num_components, num_features = components.shape
    centred = (x.astype(wide) - mean[None]) - low[None]
    scores = jnp.dot(centred, components.T, precision=lax.Precision.HIGHEST)
    squares = jnp.sum(scores**2 / variances[None], axis=1)
    log_volume = jnp.sum(jnp.log(variances))
    if num_components < num_features:
        outside = centred - jnp.dot(scores, components, precision=lax.Precision.HIGHEST)
        squares = squares + jnp.sum(outside**2, axis=1) / noise
        log_volume = log_volume + (num_features - num_components) * jnp.log(noise)
    return -0.5 * (num_features * math.log(2 * math.pi) + log_volume + squares)


def pca_covariance(result: PCAResult) -> Float[Array, "d d"]:
    r"""Compute the covariance of the model: that of the data, with every direction left out given equal variance.

    .. math::
      C = V^\top (\Lambda - \sigma^2) V + \sigma^2 I.

    Args:
      result: From :func:`jaxgrad.decomposition.pca` or :func:`jaxgrad.decomposition.pca_from_state`, whitened or not.

    Returns:
      A matrix of one row and one column a feature; with all components the covariance of the data.

    Numerics:
      A variance under the rounding unit times the largest counts as that: the matrix always has an inverse.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.decomposition import pca
      >>> result = pca(jnp.array([[1.0, 3.0], [-1.0, 3.0], [0.0, 6.0], [0.0, 0.0]]), 2)
      >>> [round(entry, 2) for entry in jnp.diagonal(pca_covariance(result)).tolist()]
      [0.67, 6.0]

    References:
      :cite:p:`tipping1999probabilistic`, equations 4, 7 and 8.

    See also:
      ``sklearn.decomposition.PCA.get_covariance``; :func:`jaxgrad.decomposition.pca_precision`, its inverse.
    """
    variances, noise = _variances(result)
    return _combine(result.components, variances, noise)


def pca_precision(result: PCAResult) -> Float[Array, "d d"]:
    r"""Compute the inverse of the model's covariance.

    .. math::
      C^{-1} = V^\top (\Lambda^{-1} - \sigma^{-2}) V + \sigma^{-2} I.

    Args:
      result: From :func:`jaxgrad.decomposition.pca` or :func:`jaxgrad.decomposition.pca_from_state`, whitened or not.

    Returns:
      A matrix of one row and one column a feature.

    Numerics:
      As :func:`jaxgrad.decomposition.pca_covariance`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.decomposition import pca
      >>> result = pca(jnp.array([[1.0, 3.0], [-1.0, 3.0], [0.0, 6.0], [0.0, 0.0]]), 2)
      >>> [round(entry, 2) for entry in jnp.diagonal(pca_precision(result)).tolist()]
      [1.5, 0.17]

    References:
      :cite:p:`tipping1999probabilistic`, equations 4, 7 and 8.

    See also:
      ``sklearn.decomposition.PCA.get_precision``.
    """
    variances, noise = _variances(result)
    return _combine(result.components, 1 / variances, 1 / noise)


def _variances(result: PCAResult) -> tuple[Float[Array, " k"], Float[Array, ""]]:
    """Return the variance along each component and along all other directions, none of them zero."""
    info = jnp.finfo(result.mean.dtype)
    least = jnp.maximum(info.eps * result.explained_variance[0], info.tiny)
    noise = jnp.maximum(result.noise_variance, least)
    floor = noise if result.components.shape[0] < result.mean.shape[0] else least
    return jnp.maximum(result.explained_variance, floor), noise


def _combine(components: Array, inside: Array, outside: Array) -> Array:
    """Build the matrix with one factor along each component and another along all other directions."""
    num_components, num_features = components.shape
    if num_components == num_features:
        outside = jnp.zeros_like(outside)
    along = jnp.dot((components * (inside - outside)[:, None]).T, components, precision=lax.Precision.HIGHEST)
    return along + outside * jnp.eye(num_features, dtype=components.dtype)
