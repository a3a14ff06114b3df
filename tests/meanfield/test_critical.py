"""Critical points and lines: the numbers that theory fixes, for every activation of the table, and where none is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.activations import TABLE
from jaxgrad.meanfield import CriticalPoint, chi, critical_point, fixed_point, variance_map

NAMES = sorted({entry.name for entry in TABLE.values()})
SCALE_INVARIANT = ["identity", "leaky_relu", "relu", "rrelu"]
SOFTPLUS_LIKE = ["log_sigmoid", "softplus", "sparse_plus", "squareplus"]
SIGMOIDS = ["hard_sigmoid", "sigmoid", "sparse_sigmoid"]
HALF_STABLE = ["gelu", "gelu_exact", "hard_silu", "mish", "silu"]
ON_LINE = sorted(set(NAMES) - set(SCALE_INVARIANT) - set(SOFTPLUS_LIKE) - set(HALF_STABLE))


@pytest.mark.parametrize("name", NAMES)
def test_the_table_has_the_critical_points(name):
    want = TABLE[name].critical
    if want is None:
        with pytest.raises(ValueError, match="critical_point: expected an activation with a critical point of its own"):
            critical_point(name)
    else:
        np.testing.assert_allclose(critical_point(name), want, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("gelu_exact", (1.98305826, 0.17292239, (3 + 17**0.5) / 2)),
        ("silu", (1.98800468, 0.55514317, 14.32017362)),
        ("relu", (2.0, 0.0, 1.0)),
        ("tanh", (1.0, 0.0, 0.0)),
        ("scaled_tanh", ((3 / 2 / 1.7159) ** 2, 0.0, 0.0)),
        ("leaky_relu", (2 / (1 + 1e-4), 0.0, 1.0)),
    ],
)
def test_published_points(name, want):
    np.testing.assert_allclose(critical_point(name), want, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("bias_variance", "weight_variance", "q"),
    [(0.01, 1.42421, 0.27330), (0.05, 1.76095, 0.57005), (0.1, 1.98607, 0.80580)],
)
def test_published_line_of_tanh(bias_variance, weight_variance, q):
    got = critical_point("tanh", bias_variance=bias_variance)
    np.testing.assert_allclose(got, (weight_variance, bias_variance, q), rtol=1e-5)


@pytest.mark.parametrize("name", [*ON_LINE, *HALF_STABLE])
def test_gradients_keep_their_size_on_the_line(name):
    point = critical_point(name, bias_variance=1.0)
    variances = {"weight_variance": point.weight_variance, "bias_variance": point.bias_variance}
    assert point.bias_variance == 1.0
    np.testing.assert_allclose(fixed_point(name, **variances), point.q, rtol=1e-6)
    np.testing.assert_allclose(chi(name, **variances), 1.0, rtol=1e-8)


@pytest.mark.parametrize("name", HALF_STABLE)
def test_half_stable_points_keep_the_variance_and_its_changes(name):
    weight_variance, bias_variance, q = critical_point(name)
    variances = {"weight_variance": weight_variance, "bias_variance": bias_variance}
    np.testing.assert_allclose(variance_map(name, q, **variances), q, rtol=1e-10)
    step = 1e-3 * q
    up, down = (variance_map(name, q + sign * step, **variances) for sign in (1, -1))
    np.testing.assert_allclose((up - down) / (2 * step), 1.0, atol=1e-4)
    np.testing.assert_allclose(chi(name, **variances, q=q), 1.0, rtol=1e-10)


def test_gelu_settles_just_below_its_half_stable_point():
    """From 1 the variance meets another fixed point first, where gradients shrink by 0.6 % a layer."""
    weight_variance, bias_variance, q = critical_point("gelu_exact")
    variances = {"weight_variance": weight_variance, "bias_variance": bias_variance}
    assert 0.8 * q < fixed_point("gelu_exact", **variances) < 0.9 * q
    np.testing.assert_allclose(chi("gelu_exact", **variances), 0.99398, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(TABLE["tanh"].critical and [n for n in NAMES if TABLE[n].critical]))
def test_zero_bias_gives_the_point_without_bias_where_there_is_one(name):
    if name in HALF_STABLE:
        with pytest.raises(ValueError, match=r"stable critical point at bias variance 0"):
            critical_point(name, bias_variance=0.0)
    else:
        assert critical_point(name, bias_variance=0.0) == critical_point(name)


@pytest.mark.parametrize("name", SIGMOIDS)
def test_sigmoids_are_critical_with_large_weights(name):
    point = critical_point(name, bias_variance=0.0)
    assert point.weight_variance > 10
    np.testing.assert_allclose(chi(name, weight_variance=point.weight_variance, bias_variance=0.0), 1.0, rtol=1e-8)


@pytest.mark.parametrize("name", SOFTPLUS_LIKE)
def test_softplus_and_its_like_have_no_critical_point(name):
    with pytest.raises(ValueError, match=f"got '{name}', which has none"):
        critical_point(name, bias_variance=0.05)


@pytest.mark.parametrize("name", ["identity", "relu"])
def test_scale_invariant_activations_take_no_bias(name):
    with pytest.raises(ValueError, match="leave bias_variance out"):
        critical_point(name, bias_variance=0.05)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_a_scaled_activation_needs_weights_scaled_back(factor):
    want = critical_point("gelu_exact")
    got = critical_point(lambda x: factor * jax.nn.gelu(x, approximate=False))
    np.testing.assert_allclose(got.weight_variance * factor**2, want.weight_variance, rtol=1e-7)
    np.testing.assert_allclose(got[1:], want[1:], rtol=1e-6)


def test_closed_forms():
    # erf: E[φ²] and E[φ'²] are known, and so is the line.
    q = 0.7
    slope = 4 / np.pi / np.sqrt(1 + 4 * q)
    bias_variance = q - 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q)) / slope
    got = critical_point(jax.scipy.special.erf, bias_variance=bias_variance)
    np.testing.assert_allclose(got, (1 / slope, bias_variance, q), rtol=1e-8)
    np.testing.assert_allclose(critical_point(jax.scipy.special.erf), (np.pi / 4, 0.0, 0.0), rtol=1e-8)
    assert isinstance(got, CriticalPoint)
    assert all(isinstance(number, float) for number in got)


@pytest.mark.parametrize("function", [lambda x: x**3, jnp.cos, jnp.sign, lambda x: 0 * x])
def test_functions_without_a_slope_at_zero_have_no_point_of_their_own(function):
    with pytest.raises(ValueError, match="which has none"):
        critical_point(function)


def test_bad_bias_variances_are_refused(unchecked):
    with pytest.raises(ValueError, match="critical_point: expected a finite bias_variance of at least 0"):
        critical_point("tanh", bias_variance=-0.1)
    with pytest.raises(TypeError, match="critical_point: expected an activation that JAX can differentiate"):
        critical_point(np.tanh)
