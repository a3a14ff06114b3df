"""The variance map against closed forms, its derivative against differences, and bad input."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.meanfield import variance_map
from jaxgrad.meanfield._kernels import Kernel

plain = functools.partial(variance_map, weight_variance=1.0, bias_variance=0.0)


def gelu(q):
    root = np.sqrt(1 + 2 * q)
    return q / 4 + q / (2 * np.pi) * (np.arcsin(q / (1 + q)) + 2 * q / ((1 + q) * root))


CLOSED_FORMS = [
    ("relu", lambda q: q / 2),
    ("leaky_relu", lambda q: q * (1 + 1e-4) / 2),
    ("identity", lambda q: q),
    ("gelu_exact", gelu),
    (jax.scipy.special.erf, lambda q: 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q))),
    (jnp.sin, lambda q: (1 - np.exp(-2 * q)) / 2),
    (np.cos, lambda q: (1 + np.exp(-2 * q)) / 2),
    (jnp.sign, lambda q: 1.0),
    (lambda x: x**3, lambda q: 15 * q**3),
]


@pytest.mark.parametrize(("activation", "second_moment"), CLOSED_FORMS)
@pytest.mark.parametrize("q", [1e-6, 0.3, 1.0, 40.0, 1e6])
def test_variance_equals_closed_forms(activation, second_moment, q):
    if activation is np.cos or activation is jnp.sin:
        q = min(q, 40.0)  # beyond, it turns faster than the panels are wide
    np.testing.assert_allclose(plain(activation, q), second_moment(q), rtol=1e-8)
    got = variance_map(activation, q, weight_variance=3.0, bias_variance=0.5)
    np.testing.assert_allclose(got, 3 * second_moment(q) + 0.5, rtol=1e-8)


def test_variance_zero_gives_the_value_at_zero():
    assert plain("tanh", 0.0) == 0
    np.testing.assert_allclose(plain("sigmoid", 0.0), 0.25, rtol=1e-12)
    assert variance_map("relu", 1.0, weight_variance=0.0, bias_variance=0.3) == 0.3


@pytest.mark.parametrize("activation", ["tanh", "gelu", "selu", "hard_tanh", jnp.sign])
@pytest.mark.parametrize("q", [0.1, 1.0, 9.0])
def test_derivative_of_the_variance_equals_differences(activation, q):
    derivative = Kernel("test", activation).variance(q)[1]
    step = 1e-4 * q
    differences = (plain(activation, q + step) - plain(activation, q - step)) / (2 * step)
    np.testing.assert_allclose(derivative, differences, rtol=1e-6, atol=1e-9)


def test_scaling_the_input_scales_the_variance():
    np.testing.assert_allclose(plain(lambda x: jnp.tanh(2 * x), 1.0), plain("tanh", 4.0), rtol=1e-10)


def test_it_is_computed_on_the_host_while_tracing(unchecked):
    @jax.jit
    def scaled(x):
        return x * jnp.float32(plain("relu", 4.0))

    assert scaled(jnp.float32(1)) == 2
    assert isinstance(plain("relu", np.float32(4.0)), float)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("relu", -1.0, 1.0, 0.0), ValueError, "q of at least 0; got q=-1.0"),
        (("relu", np.nan, 1.0, 0.0), ValueError, "q=nan"),
        (("relu", 1.0, np.inf, 0.0), ValueError, "weight_variance=inf"),
        (("relu", 1.0, 1.0, -0.1), ValueError, "bias_variance=-0.1"),
        (("reul", 1.0, 1.0, 0.0), ValueError, "take 'relu'"),
        ((jax.nn.softmax, 1.0, 1.0, 0.0), ValueError, "elementwise"),
        ((lambda x: jnp.exp(x**2), 1.0, 1.0, 0.0), ValueError, "finite"),
    ],
)
def test_bad_input_is_refused(arguments, error, text, unchecked):
    activation, q, weight_variance, bias_variance = arguments
    with pytest.raises(error, match="^variance_map: expected(?s:.*)" + text):
        variance_map(activation, q, weight_variance=weight_variance, bias_variance=bias_variance)


def test_traced_numbers_are_refused(unchecked):
    with pytest.raises(TypeError, match="q as a number; got a traced value"):
        jax.jit(lambda q: plain("relu", q))(1.0)
