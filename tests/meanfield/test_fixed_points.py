"""Fixed points and the factor of gradients: the numbers that theory fixes, and measured networks."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.meanfield import chi, fixed_point, variance_map


@pytest.mark.parametrize(
    ("activation", "weight_variance", "bias_variance", "q", "factor"),
    [
        ("tanh", 1.42421, 0.01, 0.27330, 1.0),
        ("tanh", 1.76095, 0.05, 0.57005, 1.0),
        ("tanh", 1.98607, 0.1, 0.80580, 1.0),
        ("tanh", 1.3, 0.05, None, 0.88016),
        ("tanh", 2.5, 0.05, None, 1.13352),
        ("tanh", 0.9, 0.0, 0.0, 0.9),
        ("sigmoid", 1.0, 0.0, 0.264687, 0.0557207),
        ("selu", 1.0, 0.0, 1.0, 1.0715750),
        ("gelu", 2.0, 0.0, 0.0, 0.5),  # He's initialization: a smooth activation is not a ReLU
        ("silu", 2.0, 0.0, 0.0, 0.5),
        ("gelu", 4.0, 0.0, math.inf, 2.0),
        ("relu", 1.0, 0.0, 0.0, 0.5),
        ("relu", 2.0, 0.0, 1.0, 1.0),
        ("relu", 3.0, 0.0, math.inf, 1.5),
        ("relu", 2.0, 0.1, math.inf, 1.0),
        ("relu", 1.9, 0.1, 2.0, 0.95),
        ("identity", 0.5, 1.0, 2.0, 0.5),
        ("relu", 0.0, 0.3, 0.3, 0.0),
        ("relu", 0.0, 0.0, 0.0, 0.0),
        (jnp.sign, 2.0, 0.5, 2.5, 0.0),
    ],
)
def test_known_fixed_points(activation, weight_variance, bias_variance, q, factor):
    variances = {"weight_variance": weight_variance, "bias_variance": bias_variance}
    found = fixed_point(activation, **variances)
    if q is not None:
        np.testing.assert_allclose(found, q, rtol=2e-5, atol=1e-12)
    np.testing.assert_allclose(chi(activation, **variances), factor, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("activation", "weight_variance", "bias_variance"),
    [("tanh", 2.5, 0.05), ("tanh", 1.001, 0.0), ("softplus", 0.5, 0.1), ("hard_silu", 1.5, 20.0), ("elu", 1.6, 1.0)],
)
def test_a_fixed_point_is_kept_and_attracts(activation, weight_variance, bias_variance):
    variances = {"weight_variance": weight_variance, "bias_variance": bias_variance}
    q = fixed_point(activation, **variances)
    np.testing.assert_allclose(variance_map(activation, q, **variances), q, rtol=1e-10)
    for start in (0.9 * q, 1.1 * q):
        assert abs(variance_map(activation, start, **variances) - q) < abs(start - q)


def test_the_first_of_several_fixed_points_is_taken():
    # 0.3 sinh²: from 1 the variance dies; the other fixed point repels.
    variances = {"weight_variance": 0.3, "bias_variance": 0.0}
    assert fixed_point(jnp.sinh, **variances) == 0
    # Half-stable, between two fixed points that a coarse search would step over.
    q = fixed_point("hard_silu", weight_variance=1.9732895836, bias_variance=0.5071458488)
    np.testing.assert_allclose(q, 4.80386, rtol=1e-3)


def test_tanh_at_its_critical_point_decays_as_one_over_twice_the_depth():
    q = 1.0
    for _ in range(300):
        q = variance_map("tanh", q, weight_variance=1.0, bias_variance=0.0)
    np.testing.assert_allclose(q, 0.0016768, rtol=0.02)


def test_lecun_with_relu_shrinks_as_measured():
    """Theory: a factor 1/2 a layer in the square, for values and for gradients."""
    assert variance_map("relu", 1.0, weight_variance=1.0, bias_variance=0.0) == pytest.approx(0.5, rel=1e-10)
    np.testing.assert_allclose(chi("relu", weight_variance=1.0, bias_variance=0.0) ** 25, 2.98e-8, rtol=1e-3)


@pytest.mark.parametrize("activation", ["gelu_exact", "sigmoid", "selu", "mish"])
@pytest.mark.parametrize("q", [0.5, 3.0])
def test_chi_is_the_mean_squared_slope(activation, q):
    """An oracle without panels: Gauss and Hermite's rule, right for what is smooth; near, with a kink at 0."""
    from jaxgrad.activations import get

    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    slopes = np.asarray(jax.vmap(jax.grad(get(activation).function))(jnp.asarray(np.sqrt(q) * nodes, jnp.float32)))
    want = 1.7 * np.sum(weights * slopes.astype(np.float64) ** 2) / np.sqrt(2 * np.pi)
    tolerance = 3e-2 if activation == "selu" else 1e-5
    np.testing.assert_allclose(chi(activation, weight_variance=1.7, bias_variance=0.0, q=q), want, rtol=tolerance)


def test_chi_at_a_kink_and_at_the_ends():
    assert chi("selu", weight_variance=1.0, bias_variance=0.0, q=0.0) == pytest.approx(
        1.0507009873554805**2 * (1 + 1.6732632423543772**2) / 2, rel=1e-10
    )
    np.testing.assert_allclose(chi("gelu", weight_variance=1.0, bias_variance=0.0, q=1e12), 0.5, rtol=1e-5)
    np.testing.assert_allclose(chi("elu", weight_variance=2.5, bias_variance=0.0), 1.25, rtol=1e-7)


def test_chi_refuses_what_jax_cannot_differentiate(unchecked):
    with pytest.raises(
        TypeError, match="chi: expected an activation that JAX can differentiate; got one made of NumPy"
    ):
        chi(np.tanh, weight_variance=1.0, bias_variance=0.0)
    with pytest.raises(ValueError, match=r"chi: expected a finite q of at least 0; got q=-2\.0"):
        chi("tanh", weight_variance=1.0, bias_variance=0.0, q=-2.0)
    assert fixed_point(np.tanh, weight_variance=0.5, bias_variance=0.0) == 0


@pytest.mark.parametrize("function", [chi, fixed_point])
def test_bad_variances_are_refused(function, unchecked):
    with pytest.raises(ValueError, match=f"{function.__name__}: expected a finite weight_variance"):
        function("relu", weight_variance=-1.0, bias_variance=0.0)
    with pytest.raises(TypeError, match="bias_variance as a number; got a traced value"):
        jax.grad(lambda b: function("relu", weight_variance=1.0, bias_variance=b))(1.0)
