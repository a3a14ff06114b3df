"""The Gaussian of probabilistic PCA against scikit-learn's and SciPy's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn import datasets
from sklearn.decomposition import PCA

from jaxgrad.decomposition import log_likelihood, pca, pca_covariance, pca_precision


@pytest.mark.parametrize("num_components", [1, 5, 13])
def test_density_covariance_and_precision_are_sklearns(num_components: int, x64: None) -> None:
    x = datasets.load_wine().data
    peer = PCA(num_components, svd_solver="full").fit(x)
    # The unit of the coordinates is no matter of the density; scikit-learn, asked to whiten, scales it twice.
    result = pca(jnp.asarray(x), num_components, whiten=True)
    np.testing.assert_allclose(log_likelihood(result, x), peer.score_samples(x), rtol=1e-8)
    np.testing.assert_allclose(pca_covariance(result), peer.get_covariance(), rtol=1e-8, atol=1e-6)
    np.testing.assert_allclose(pca_precision(result), peer.get_precision(), rtol=1e-6, atol=1e-8)


def test_it_is_the_density_of_the_models_covariance(x64: None) -> None:
    x = 1e6 + datasets.load_iris().data
    result = pca(jnp.asarray(x), 2)
    exact = multivariate_normal(np.asarray(result.mean), np.asarray(pca_covariance(result)))
    np.testing.assert_allclose(log_likelihood(result, x), exact.logpdf(x), rtol=1e-6)
    np.testing.assert_allclose(pca_covariance(result) @ pca_precision(result), np.eye(4), atol=1e-9)


def test_single_precision_is_right_far_from_zero() -> None:
    x = (1e6 + np.random.default_rng(0).normal(size=(200, 6)) * np.arange(1, 7)).astype(np.float32)
    peer = PCA(3, svd_solver="full").fit(x.astype(np.float64))
    np.testing.assert_allclose(log_likelihood(pca(x, 3), x), peer.score_samples(x.astype(np.float64)), rtol=1e-4)


@pytest.mark.parametrize("data", ["plane", "constant"])
def test_density_and_slope_are_finite_where_data_fill_no_space(data: str) -> None:
    plane = jnp.outer(jnp.arange(6.0), jnp.array([3.0, 4.0, 0.0]))
    x = plane if data == "plane" else jnp.ones_like(plane)
    result = pca(x, 1)
    values, slopes = log_likelihood(result, x), jax.grad(lambda x: log_likelihood(result, x).sum())(x)
    assert bool(jnp.all(jnp.isfinite(values)))
    assert bool(jnp.all(jnp.isfinite(slopes)))


@pytest.mark.parametrize("compiled", [False, True])
def test_other_features_are_refused(unchecked: None, compiled: bool) -> None:
    result = pca(jnp.eye(4), 2)
    apply = jax.jit(log_likelihood) if compiled else log_likelihood
    for bad, error in ((np.ones((2, 3)), ValueError), (np.ones(4), ValueError), (np.ones((2, 4), complex), TypeError)):
        with pytest.raises(error, match="log_likelihood: expected"):
            apply(result, bad)
