"""The activations that ``jax.nn`` lacks: against PyTorch and their definitions, their gradients, and bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.activations import rrelu, scaled_tanh

KEY = jax.random.key(0)
X = jnp.array([-100.0, -1.5, -0.1, 0.0, 0.1, 1.5, 100.0], jnp.float32)


def test_rrelu_evaluates_as_in_torch():
    torch = pytest.importorskip("torch")
    want = torch.nn.functional.rrelu(torch.tensor(np.asarray(X)), training=False).numpy()
    np.testing.assert_allclose(rrelu(None, X), want, rtol=1e-6)
    want = torch.nn.functional.rrelu(torch.tensor(np.asarray(X)), 0.1, 0.4, training=False).numpy()
    np.testing.assert_allclose(rrelu(None, X, lower=0.1, upper=0.4), want, rtol=1e-6)


def test_rrelu_draws_its_slopes_uniformly_and_anew():
    x = jnp.full((100, 200), -2.0, jnp.float32)
    slopes = np.sort((rrelu(KEY, x) / x).ravel())
    expected = np.linspace(1 / 8, 1 / 3, slopes.size)
    # Kolmogorov and Smirnov's distance between the slopes and a uniform sample.
    assert np.max(np.abs(slopes - expected)) / (1 / 3 - 1 / 8) < 1.6 / slopes.size**0.5
    assert slopes.min() >= 1 / 8 - 1e-7
    assert slopes.max() <= 1 / 3 + 1e-7
    assert not np.array_equal(rrelu(KEY, x), rrelu(jax.random.key(1), x))
    np.testing.assert_array_equal(rrelu(KEY, x), jax.jit(rrelu)(KEY, x))


def test_rrelu_leaves_positive_values_alone_and_its_gradient_is_the_slope():
    x = jnp.array([-3.0, -0.5, 0.0, 0.5], jnp.float32)
    for key in (None, KEY):
        value, gradient = rrelu(key, x), jax.grad(lambda x, key=key: rrelu(key, x).sum())(x)
        np.testing.assert_allclose(value[:2], x[:2] * gradient[:2], rtol=1e-6)
        np.testing.assert_array_equal(value[2:], x[2:])
        np.testing.assert_array_equal(gradient[2:], jnp.ones(2))


def test_equal_bounds_make_a_leaky_relu():
    np.testing.assert_allclose(rrelu(KEY, X, lower=0.2, upper=0.2), jax.nn.leaky_relu(X, jnp.float32(0.2)), rtol=1e-6)
    np.testing.assert_allclose(rrelu(None, X, lower=0.2, upper=0.2), jax.nn.leaky_relu(X, jnp.float32(0.2)), rtol=1e-6)


def test_scaled_tanh_maps_one_to_one():
    np.testing.assert_allclose(scaled_tanh(X), 1.7159 * np.tanh(2 / 3 * np.asarray(X, np.float64)), rtol=1e-6)
    np.testing.assert_allclose(scaled_tanh(jnp.array([-1.0, 1.0])), [-1.0, 1.0], atol=1e-4)
    infinite = jnp.array([-jnp.inf, jnp.inf])
    np.testing.assert_allclose(scaled_tanh(infinite), [-1.7159, 1.7159], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda x: scaled_tanh(x).sum())(infinite), jnp.zeros(2))


def test_scaled_tanh_bends_most_where_it_is_one(x64):
    x = jnp.linspace(0.5, 1.5, 1001)
    bend = jax.vmap(jax.grad(jax.grad(scaled_tanh)))(x)
    assert abs(x[jnp.argmin(bend)] - 1) < 0.02
    step = 1e-6
    want = (scaled_tanh(x + step) - scaled_tanh(x - step)) / (2 * step)
    np.testing.assert_allclose(jax.vmap(jax.grad(scaled_tanh))(x), want, rtol=1e-8)


@pytest.mark.parametrize("function", [scaled_tanh, lambda x: rrelu(None, x), lambda x: rrelu(KEY, x)])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_dtypes_are_kept(function, dtype):
    assert function(X.astype(dtype)).dtype == dtype


def test_bad_input_is_refused(unchecked):
    with pytest.raises(TypeError, match="scaled_tanh: expected a real floating array; got int32"):
        scaled_tanh(jnp.ones(3, jnp.int32))
    with pytest.raises(TypeError, match="rrelu: expected a real floating array; got float"):
        rrelu(None, 1.0)
    with pytest.raises(ValueError, match=r"lower <= upper; got lower=0.5, upper=0.3333"):
        rrelu(KEY, X, lower=0.5)
