"""The band of finite networks: the exact law without a nonlinearity, and a few hundred sampled networks with one."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import polygamma, psi

from jaxgrad.activations import get
from jaxgrad.meanfield import finite_width_band, fixed_point


@functools.lru_cache(maxsize=8)
def sampled(activation, depth, width, weight_variance, bias_variance, num=400):
    """ln ‖J v‖² of networks whose first preactivations are normal, at the fixed point's variance."""
    q = fixed_point(activation, weight_variance=weight_variance, bias_variance=bias_variance)
    function = get(activation).function

    def one(key):
        first, *keys = jax.random.split(key, depth + 1)
        h, v = jax.random.normal(first, (2, width))
        h, v = math.sqrt(q) * h, v / jnp.linalg.norm(v)
        for own in keys:
            h, v = jax.jvp(function, (h,), (v,))
            w_key, b_key = jax.random.split(own)
            weight = math.sqrt(weight_variance / width) * jax.random.normal(w_key, (width, width))
            h, v = weight @ h + math.sqrt(bias_variance) * jax.random.normal(b_key, (width,)), weight @ v
        return jnp.log(jnp.sum(v**2))

    results = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=20))(jax.random.split(jax.random.key(1), num))
    return np.asarray(results, np.float64)


@pytest.mark.parametrize("depth", [1, 10, 200])
@pytest.mark.parametrize("width", [3, 100])
def test_without_a_nonlinearity_the_law_is_exact(depth, width):
    found = finite_width_band("identity", depth, width, weight_variance=1.0)
    mean = depth * (psi(width / 2) + math.log(2 / width))
    np.testing.assert_allclose([found.mean, found.variance], [mean, depth * polygamma(1, width / 2)], rtol=1e-8)
    assert math.isnan(found.p_value)
    scaled = finite_width_band("identity", depth, width, weight_variance=1.3)
    np.testing.assert_allclose(scaled.mean, mean + depth * math.log(1.3), rtol=1e-8)
    np.testing.assert_allclose(scaled.variance, found.variance, rtol=1e-8)


@pytest.mark.parametrize("width", [2, 7, 100])
def test_a_single_linear_layer_is_a_chi_squared(width):
    from scipy.stats import chi2

    found = finite_width_band("identity", 1, width, weight_variance=1.0, measured=0.3, coverage=0.9)
    law = chi2(width)
    np.testing.assert_allclose(np.exp([found.lower, found.upper]) * width, law.ppf([0.05, 0.95]), rtol=1e-5)
    tail = law.sf(width * math.exp(0.3))
    np.testing.assert_allclose(found.p_value, 2 * min(tail, 1 - tail), rtol=1e-5)


def test_relu_has_the_shape_of_a_fifth_of_the_width():
    """3 E φ'⁴ / (E φ'²)² - 1 = 5, and a ReLU's variance carries nothing over: the gain does not depend on it."""
    found = finite_width_band("relu", 8, 100, weight_variance=2.0)
    assert found.variance >= 8 * polygamma(1, 20) * (1 - 1e-9)
    np.testing.assert_allclose(found.variance, 8 * polygamma(1, 20), rtol=1e-6)


def test_widths_add_up_layer_by_layer():
    widths = [50, 100, 200]
    found = finite_width_band("identity", 3, widths, weight_variance=1.0)
    alone = [finite_width_band("identity", 1, width, weight_variance=1.0) for width in widths]
    np.testing.assert_allclose(found.mean, sum(band.mean for band in alone), rtol=1e-9)
    np.testing.assert_allclose(found.variance, sum(band.variance for band in alone), rtol=1e-9)
    same = finite_width_band("tanh", 3, [80] * 3, weight_variance=1.5, bias_variance=0.1)
    np.testing.assert_array_equal(same, finite_width_band("tanh", 3, 80, weight_variance=1.5, bias_variance=0.1))


NETWORKS = [
    ("relu", 10, 2.0, 0.0),
    *(
        pytest.param(*network, marks=pytest.mark.heavy)
        for network in [
            ("tanh", 10, 2.0, 0.1),
            ("tanh", 20, 1.76095, 0.05),
            ("tanh", 15, 1.3, 0.05),
            ("hard_tanh", 15, 2.0, 0.1),
        ]
    ),
]


@pytest.mark.heavy
@pytest.mark.parametrize(("activation", "depth", "weight_variance", "bias_variance"), NETWORKS)
def test_sampled_networks_have_its_mean_and_variance(activation, depth, weight_variance, bias_variance):
    values = sampled(activation, depth, 100, weight_variance, bias_variance)
    found = finite_width_band(
        activation, depth, 100, weight_variance=weight_variance, bias_variance=bias_variance, coverage=0.95
    )
    assert abs(np.mean(values) - found.mean) < 4 * math.sqrt(found.variance / values.size)
    np.testing.assert_allclose(np.var(values), found.variance, rtol=0.2)
    assert 0.91 < np.mean((found.lower < values) & (values < found.upper)) < 0.985


def test_a_gradient_pushed_back_has_the_same_law():
    """A linear network backwards: the same Gamma variables in the other order."""
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((400, 6, 40, 40)) / math.sqrt(40)
    u = np.eye(40)[0]
    logs = []
    for network in weights:
        v = u
        for weight in network[::-1]:
            v = weight.T @ v
        logs.append(math.log(v @ v))
    found = finite_width_band("identity", 6, 40, weight_variance=1.0)
    assert abs(np.mean(logs) - found.mean) < 4 * math.sqrt(found.variance / 400)
    np.testing.assert_allclose(np.var(logs), found.variance, rtol=0.2)
    # The fourth moment: (1 + 2/n)^L.
    np.testing.assert_allclose(np.mean(np.exp(2 * np.array(logs))), (1 + 2 / 40) ** 6, rtol=0.3)


@pytest.mark.heavy
def test_p_values_of_healthy_networks_are_uniform():
    from scipy.stats import kstest

    rng = np.random.default_rng(6)
    logs = np.log(rng.chisquare(30, size=(50, 5)) / 30).sum(axis=1)
    found = [finite_width_band("identity", 5, 30, weight_variance=1.0, measured=float(log)).p_value for log in logs]
    assert kstest(found, "uniform").pvalue > 0.01


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh"])
def test_p_values_are_one_in_the_middle_and_zero_far_out(activation):
    band = functools.partial(finite_width_band, activation, 10, 100, weight_variance=1.5, bias_variance=0.1)
    middle = band()
    assert middle.lower < middle.mean < middle.upper
    assert band(measured=middle.mean).p_value > 0.9
    np.testing.assert_allclose(band(measured=middle.lower).p_value, 0.05, rtol=1e-6)
    np.testing.assert_allclose(band(measured=middle.upper).p_value, 0.05, rtol=1e-6)
    for far in (-30.0, 30.0):
        assert band(measured=middle.mean + far).p_value < 1e-12


def test_a_wider_band_holds_more():
    ends = [finite_width_band("relu", 5, 64, weight_variance=2.0, coverage=share) for share in (0.5, 0.9, 0.999)]
    assert ends[2].lower < ends[1].lower < ends[0].lower < ends[0].upper < ends[1].upper < ends[2].upper


def test_wide_networks_hardly_stray():
    found = finite_width_band("tanh", 5, 10**6, weight_variance=1.76095, bias_variance=0.05)
    assert found.variance < 1e-4
    np.testing.assert_allclose(found.mean, 0, atol=1e-3)


def test_networks_that_fade_or_grow_without_bound_have_a_band():
    for weight_variance in (0.5, 4.0):
        found = finite_width_band("relu", 400, 100, weight_variance=weight_variance)
        np.testing.assert_allclose(found.mean, 400 * math.log(weight_variance / 2), rtol=0.05)
        assert math.isfinite(found.lower + found.upper + found.variance)
    assert math.isfinite(finite_width_band("gelu", 100, 100, weight_variance=2.0).mean)


def test_bad_input_is_refused(unchecked):
    band = functools.partial(finite_width_band, weight_variance=2.0)
    with pytest.raises(ValueError, match="finite_width_band: expected depth of at least 1"):
        band("relu", 0, 10)
    with pytest.raises(TypeError, match="expected depth as a whole number"):
        band("relu", 1.5, 10)
    with pytest.raises(ValueError, match="expected width of at least 1; got width=0"):
        band("relu", 2, [10, 0])
    with pytest.raises(ValueError, match="expected 3 widths, one a layer; got 2"):
        band("relu", 3, [10, 10])
    with pytest.raises(ValueError, match="expected a finite coverage"):
        band("relu", 3, 10, coverage=1.0)
    with pytest.raises(ValueError, match="expected a finite measured"):
        band("relu", 3, 10, measured=math.nan)
    with pytest.raises(ValueError, match="expected a finite q"):
        band("relu", 3, 10, q=-1.0)
    with pytest.raises(ValueError, match="expected a layer that passes gradients"):
        finite_width_band("relu", 3, 10, weight_variance=0.0)
    with pytest.raises(ValueError, match="expected a layer that passes gradients"):
        band(jnp.sign, 3, 10)
    with pytest.raises(TypeError, match="measured as a number; got a traced value"):
        jax.jit(lambda m: band("relu", 3, 10, measured=m))(1.0)
