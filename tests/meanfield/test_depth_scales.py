"""Correlation maps, depth scales and phases: closed forms, what repeating the maps does, and sampled networks."""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.meanfield import chi, correlation_map, critical_point, depth_scales, fixed_point, phase, variance_map

he = functools.partial(correlation_map, "relu", weight_variance=2.0, bias_variance=0.0)


def hermite_pairs(function, q, c):
    """An oracle for what is smooth: Gauss and Hermite's rule in the plane."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / np.sqrt(2 * np.pi)
    u, v = nodes[:, None], c * nodes[:, None] + np.sqrt(1 - c**2) * nodes[None]
    return weights @ (function(np.sqrt(q) * u) * function(np.sqrt(q) * v)) @ weights


def test_relu_repeats_the_arc_cosine_map():
    c, found = 0.0, []
    for _ in range(3):
        c = he(c)
        found.append(c)
    np.testing.assert_allclose(found, [1 / math.pi, 0.493731, 0.604826], atol=1e-6)


@pytest.mark.parametrize("c", [-1.0, -0.4, 0.0, 0.3, 1.0])
def test_closed_forms_of_the_correlation_map(c):
    arc_cosine = (math.sqrt(1 - c**2) + (math.pi - math.acos(c)) * c) / math.pi
    np.testing.assert_allclose(he(c), arc_cosine, atol=1e-8)
    np.testing.assert_allclose(he(c, q=7.0), arc_cosine, atol=1e-8)
    biased = correlation_map("relu", c, weight_variance=2.0, bias_variance=0.5, q=3.0)
    np.testing.assert_allclose(biased, (3 * arc_cosine + 0.5) / 3.5, atol=1e-8)
    linear = correlation_map("identity", c, weight_variance=0.7, bias_variance=0.0, q=2.0)
    np.testing.assert_allclose(linear, c, atol=1e-8)
    signs = correlation_map(jnp.sign, c, weight_variance=1.0, bias_variance=0.0, q=2.0)
    np.testing.assert_allclose(signs, 2 / math.pi * math.asin(c), atol=1e-8)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "hard_tanh", "sigmoid"])
def test_equal_inputs_stay_equal(activation):
    assert correlation_map(activation, 1.0, weight_variance=1.7, bias_variance=0.2) == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("q", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("c", [-0.8, 0.1, 0.9])
def test_tanh_agrees_with_another_rule(q, c):
    want = (1.5 * hermite_pairs(np.tanh, q, c) + 0.1) / variance_map("tanh", q, weight_variance=1.5, bias_variance=0.1)
    found = correlation_map("tanh", c, weight_variance=1.5, bias_variance=0.1, q=q)
    np.testing.assert_allclose(found, want, atol=1e-6)


@pytest.mark.heavy
def test_finite_relu_networks_map_correlations_so():
    """Each layer from the correlation measured before it, averaged over networks."""
    width, num_networks, depth = 200, 40, 3
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, num_networks, width), np.float32)
    h = np.stack([one, 0.2 * one + math.sqrt(1 - 0.2**2) * other], axis=1)
    cosines = []
    for _ in range(depth + 1):
        norms = np.linalg.norm(h, axis=2)
        cosines.append(np.sum(h[:, 0] * h[:, 1], axis=1) / norms[:, 0] / norms[:, 1])
        h = np.maximum(h, 0) @ rng.standard_normal((num_networks, width, width), np.float32)
    for before, after in itertools.pairwise(cosines):
        np.testing.assert_allclose(np.mean(after), np.mean([he(float(c)) for c in before]), atol=0.02)


def test_a_mean_over_very_many_units_is_within_a_percent():
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, 400_000))
    for c in (-0.5, 0.3, 0.8):
        pair = np.maximum(one, 0), np.maximum(c * one + math.sqrt(1 - c**2) * other, 0)
        measured = np.mean(pair[0] * pair[1]) / math.sqrt(np.mean(pair[0] ** 2) * np.mean(pair[1] ** 2))
        np.testing.assert_allclose(he(c), measured, atol=0.005)


@pytest.mark.parametrize(("activation", "c"), [("tanh", 0.3), ("relu", -0.2), ("gelu", 0.5)])
def test_the_limits_at_no_and_at_endless_variance(activation, c):
    at = functools.partial(correlation_map, activation, c, weight_variance=1.5, bias_variance=0.0)
    np.testing.assert_allclose(at(q=0.0), at(q=1e-8), atol=1e-3)
    np.testing.assert_allclose(at(q=1e15), at(q=1e12), atol=1e-4)
    if activation == "tanh":
        np.testing.assert_allclose(at(q=0.0), c, atol=1e-8)
        np.testing.assert_allclose(at(q=1e15), 2 / math.pi * math.asin(c), atol=1e-6)


def test_a_variance_that_settles_at_infinity_is_its_limit():
    settled = correlation_map("relu", 0.3, weight_variance=3.0, bias_variance=0.5)
    np.testing.assert_allclose(settled, he(0.3), atol=1e-8)


def test_a_layer_that_gives_nothing_keeps_inputs_equal():
    assert correlation_map("relu", 0.3, weight_variance=0.0, bias_variance=0.0) == 1.0
    assert correlation_map("relu", 0.3, weight_variance=0.0, bias_variance=0.5) == 1.0


@pytest.mark.parametrize(
    ("weight_variance", "expected"),
    [
        (1.3, {"chi": 0.88016, "c": 1.0, "xi_c": 7.834, "xi_q": 1.785, "xi_gradient": 7.834}),
        (2.5, {"chi": 1.13352, "c": 0.44680, "xi_c": 11.796, "xi_gradient": 7.979}),
    ],
)
def test_tanh_has_known_scales_in_both_phases(weight_variance, expected):
    scales = depth_scales("tanh", weight_variance=weight_variance, bias_variance=0.05)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(scales, name), value, rtol=1e-4 if name in ("chi", "c") else 1e-3)
    np.testing.assert_allclose(scales.q, fixed_point("tanh", weight_variance=weight_variance, bias_variance=0.05))
    np.testing.assert_allclose(scales.chi, chi("tanh", weight_variance=weight_variance, bias_variance=0.05))


@pytest.mark.parametrize(
    ("activation", "weight_variance", "bias_variance"),
    [("tanh", 1.3, 0.05), ("tanh", 2.5, 0.05), ("hard_tanh", 2.0, 0.1), ("sigmoid", 4.0, 0.1), ("elu", 1.1, 0.2)],
)
def test_distances_from_the_fixed_points_shrink_at_the_scales(activation, weight_variance, bias_variance):
    variances = {"weight_variance": weight_variance, "bias_variance": bias_variance}
    scales = depth_scales(activation, **variances)
    q, c, strayed = scales.q + 1e-4, scales.c - 1e-3, []
    for _ in range(4):
        strayed.append((q - scales.q, scales.c - c))
        q, c = variance_map(activation, q, **variances), correlation_map(activation, c, q=scales.q, **variances)
    (q_before, c_before), (q_after, c_after) = strayed[-2:]
    np.testing.assert_allclose(q_after / q_before, math.exp(-1 / scales.xi_q), rtol=1e-3)
    # At a kink the map's slope has a square root: near, not at the fixed point.
    np.testing.assert_allclose(c_after / c_before, math.exp(-1 / scales.xi_c), rtol=0.01)


@pytest.mark.parametrize("weight_variance", [1.0, 2.0, 3.0])
def test_relu_without_bias_keeps_angles_at_any_variance(weight_variance):
    scales = depth_scales("relu", weight_variance=weight_variance, bias_variance=0.0)
    rate = abs(math.log(weight_variance / 2))
    assert [scales.xi_q, scales.xi_gradient] == pytest.approx(2 * [1 / rate if rate else math.inf], rel=1e-6)
    assert scales.xi_c == math.inf
    assert scales.c == 1.0


def test_a_smooth_activation_with_hes_variance_fades_as_half():
    scales = depth_scales("gelu", weight_variance=2.0, bias_variance=0.0)
    assert scales.q == 0.0
    np.testing.assert_allclose(scales.chi, 0.5, rtol=1e-6)
    np.testing.assert_allclose([scales.xi_q, scales.xi_gradient], 1 / math.log(2), rtol=1e-6)
    assert scales.c == 1.0


def test_no_weights_have_no_reach():
    scales = depth_scales("tanh", weight_variance=0.0, bias_variance=0.1)
    assert (scales.xi_q, scales.xi_c, scales.xi_gradient, scales.chi, scales.c) == (0, 0, 0, 0, 1)


@pytest.mark.parametrize("activation", ["tanh", "hard_tanh", "identity"])
def test_odd_activations_without_bias_make_inputs_orthogonal(activation):
    weight_variance = 1.0 if activation == "identity" else 2.0
    scales = depth_scales(activation, weight_variance=weight_variance, bias_variance=0.0)
    assert scales.c == pytest.approx(1.0 if activation == "identity" else 0.0, abs=1e-7)


@pytest.mark.parametrize("excess", [1e-2, 1e-3, 1e-4])
def test_just_above_criticality_the_correlation_settles_just_below_one(excess):
    variances = {"weight_variance": 1.76095 * (1 + excess), "bias_variance": 0.05}
    scales = depth_scales("tanh", **variances)
    assert scales.chi > 1
    assert 0.9 < scales.c < 1
    np.testing.assert_allclose(correlation_map("tanh", scales.c, **variances), scales.c, atol=1e-9)
    # Around a fixed point of a map that is nearly quadratic, both slopes are as far from 1.
    np.testing.assert_allclose(scales.xi_c, scales.xi_gradient, rtol=20 * excess + 0.02)


def test_at_the_critical_point_gradients_reach_any_depth():
    point = critical_point("tanh", bias_variance=0.05)
    scales = depth_scales("tanh", weight_variance=point.weight_variance, bias_variance=0.05)
    assert scales.xi_gradient > 1e6
    assert scales.c == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(
    ("activation", "weight_variance", "bias_variance", "name"),
    [
        ("tanh", 1.3, 0.05, "ordered"),
        ("tanh", 1.76095, 0.05, "critical"),
        ("tanh", 2.5, 0.05, "chaotic"),
        ("relu", 1.0, 0.0, "ordered"),
        ("relu", 2.0, 0.0, "critical"),
        ("relu", 2.0, 0.7, "critical"),
        ("relu", 2.1, 0.0, "chaotic"),
        ("gelu", 2.0, 0.0, "ordered"),
        ("identity", 1.0, 0.0, "critical"),
        (jnp.sign, 5.0, 0.0, "ordered"),
    ],
)
def test_phases_have_their_names(activation, weight_variance, bias_variance, name):
    assert phase(activation, weight_variance=weight_variance, bias_variance=bias_variance) == name


def test_a_phase_is_as_critical_as_asked():
    near = functools.partial(phase, "relu", weight_variance=2.02, bias_variance=0.0)
    assert near() == "chaotic"
    assert near(tol=0.02) == "critical"


@pytest.mark.parametrize(("weight_variance", "width"), [(1.3, 400), pytest.param(2.5, 1200, marks=pytest.mark.heavy)])
def test_sampled_networks_lose_angles_at_the_scale(weight_variance, width):
    """Two inputs on either side of the fixed point share the weights: how far they are apart has little noise."""
    bias_variance, depth, num_networks = 0.05, 8, 40
    scales = depth_scales("tanh", weight_variance=weight_variance, bias_variance=bias_variance)
    starts = np.array([scales.c - 0.02, scales.c if scales.c == 1 else scales.c + 0.02], np.float32)
    rng = np.random.default_rng(3)
    apart = np.zeros(depth)
    for _ in range(num_networks):
        one, other = rng.standard_normal((2, width), np.float32)
        pairs = starts[:, None] * one + np.sqrt(1 - starts**2)[:, None] * other
        h = np.float32(math.sqrt(scales.q)) * np.stack([one, *pairs])
        for layer in range(depth):
            cosines = h[1:] @ h[0] / np.linalg.norm(h[1:], axis=1) / np.linalg.norm(h[0])
            apart[layer] += cosines[1] - cosines[0]
            weight = rng.standard_normal((width, width), np.float32) * np.float32(math.sqrt(weight_variance / width))
            h = np.tanh(h) @ weight
            h += np.float32(math.sqrt(bias_variance)) * rng.standard_normal((1, width), np.float32)
    rate = -np.polyfit(np.arange(depth), np.log(apart), 1)[0]
    np.testing.assert_allclose(1 / rate, scales.xi_c, rtol=0.05)


@pytest.mark.parametrize("function", [depth_scales, phase, functools.partial(correlation_map, c=0.5)])
def test_bad_variances_and_activations_are_refused(function, unchecked):
    with pytest.raises(ValueError, match="expected a finite weight_variance of at least 0"):
        function("relu", weight_variance=-1.0, bias_variance=0.0)
    with pytest.raises(ValueError, match="expected a finite bias_variance"):
        function("relu", weight_variance=1.0, bias_variance=math.nan)
    with pytest.raises(ValueError, match="no-such"):
        function("no-such", weight_variance=1.0, bias_variance=0.0)
    with pytest.raises(TypeError, match="weight_variance as a number; got a traced value"):
        jax.jit(lambda w: function("relu", weight_variance=w, bias_variance=0.0))(1.0)


def test_bad_correlations_and_tolerances_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"correlation_map: expected a finite c from -1 to 1; got c=1\.5"):
        correlation_map("relu", 1.5, weight_variance=1.0, bias_variance=0.0)
    with pytest.raises(ValueError, match="expected a finite q of at least 0"):
        correlation_map("relu", 0.5, weight_variance=1.0, bias_variance=0.0, q=-1.0)
    with pytest.raises(ValueError, match="phase: expected a finite tol"):
        phase("relu", weight_variance=1.0, bias_variance=0.0, tol=-1.0)
    with pytest.raises(TypeError, match="expected an activation that JAX can differentiate"):
        depth_scales(np.tanh, weight_variance=1.0, bias_variance=0.0)


def test_a_function_rounded_to_float32_is_integrated_to_what_it_holds():
    """Halving panels until they agree would go on for ever."""

    def rounded(x):
        return jnp.tanh(x.astype(jnp.float32)).astype(x.dtype)

    arguments = {"weight_variance": 1.5, "bias_variance": 0.05}
    got = correlation_map(rounded, 0.3, **arguments)
    assert got == pytest.approx(correlation_map("tanh", 0.3, **arguments), abs=1e-6)
