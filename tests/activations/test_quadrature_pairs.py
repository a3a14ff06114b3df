"""Expectations over correlated pairs of normals against closed forms, with kinks and jumps, up to correlation ±1."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxgrad.activations._quadrature import expectation, pair_expectation

CORRELATIONS = [-1.0, -1 + 1e-7, -0.7, 0.0, 1e-3, 0.5, 0.999, 1 - 1e-7, 1.0]


def arc_cosine(c: float) -> float:
    return (math.sqrt((1 - c) * (1 + c)) + (math.pi - math.acos(c)) * c) / (2 * math.pi)


CLOSED_FORMS = {
    "relu": (lambda z: np.maximum(z, 0), arc_cosine),
    "sign": (np.sign, lambda c: 2 / math.pi * math.asin(c)),
    "step": (lambda z: np.where(z > 0, 1.0, 0.0), lambda c: 0.25 + math.asin(c) / (2 * math.pi)),
    "exp(z/2)": (lambda z: np.exp(z / 2), lambda c: math.exp((1 + c) / 4)),
    "exp(2z)": (lambda z: np.exp(2 * z), lambda c: math.exp(4 * (1 + c))),
    "cos(3z)": (lambda z: np.cos(3 * z), lambda c: math.exp(-9.0) * math.cosh(9 * c)),
    "constant": (lambda z: 3.0 + 0 * z, lambda c: 9.0),
    "z": (lambda z: z, lambda c: c),
    "z²": (lambda z: z**2, lambda c: 1 + 2 * c**2),
    "z³": (lambda z: z**3, lambda c: 9 * c + 6 * c**3),
    "1 + z + z²": (lambda z: 1 + z + z**2, lambda c: 4 + c + 2 * c**2),
}


@pytest.mark.parametrize("c", CORRELATIONS)
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_pairs_equal_closed_forms(name, c):
    function, expected = CLOSED_FORMS[name]
    (found,) = pair_expectation("test", lambda z: function(z)[None], c)
    magnitude = expectation("test", lambda z: function(z)[None] ** 2)[0]
    np.testing.assert_allclose(found, expected(c), rtol=1e-10, atol=1e-10 * magnitude)


def test_a_kink_may_lie_anywhere():
    """Shifted by 0.3 on either side, the ReLU's expectation is that of a Gauss-Hermite sum, smoothed by hand."""
    c, shift = 0.6, 0.3
    spread = math.sqrt(1 - c**2)
    z = np.linspace(shift, 13, 200_001)

    def inner(z: np.ndarray) -> np.ndarray:
        from scipy.stats import norm

        u = (c * z - shift) / spread
        return spread * (norm.pdf(u) + u * norm.cdf(u))

    expected = np.trapezoid((z - shift) * inner(z) * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), z)
    (found,) = pair_expectation("test", lambda z: np.maximum(z - shift, 0)[None], c)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_several_functions_are_integrated_at_once():
    functions = [np.tanh, np.sign, lambda z: np.maximum(z, 0)]
    together = pair_expectation("test", lambda z: np.stack([f(z) for f in functions]), 0.4)
    alone = [pair_expectation("test", lambda z, f=f: f(z)[None], 0.4)[0] for f in functions]
    assert together.shape == (3,)
    np.testing.assert_allclose(together, alone, rtol=1e-10)


@pytest.mark.parametrize("function", [np.tanh, lambda z: np.clip(z, -1, 0.5), lambda z: z * (z > 0.1)])
def test_the_ends_are_plain_expectations(function):
    def pair(c: float) -> float:
        return pair_expectation("test", lambda z: function(z)[None], c)[0]

    def plain(integrand) -> float:
        return expectation("test", lambda z: integrand(z)[None])[0]

    np.testing.assert_allclose(pair(1.0), plain(lambda z: function(z) ** 2), rtol=1e-12)
    np.testing.assert_allclose(pair(-1.0), plain(lambda z: function(z) * function(-z)), rtol=1e-12)
    np.testing.assert_allclose(pair(0.0), plain(function) ** 2, rtol=1e-10, atol=1e-14)


def test_a_function_that_grows_too_fast_is_refused():
    with pytest.raises(ValueError, match="test: expected an activation"):
        pair_expectation("test", lambda z: np.exp(np.minimum(z**2, 700.0))[None], 0.5)
    with pytest.raises(ValueError, match="a number everywhere; got NaN"), np.errstate(invalid="ignore"):
        pair_expectation("test", lambda z: np.sqrt(z)[None], 0.5)
