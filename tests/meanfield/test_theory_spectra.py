"""Spectra of deep Jacobians in theory: closed forms, identities between moments and density, and sampled products."""

from __future__ import annotations

import functools
import itertools
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.activations import get
from jaxgrad.meanfield import critical_point, predict_density, predict_spectrum


def products(activation, depth, *, weights, width=256, num=1, seed=0, **settings):
    """Squared singular values of sampled products D W ... D W, with the slopes at a normal's quantiles in D."""
    if "weight_variance" in settings:
        weight_variance, q = settings["weight_variance"], settings.get("q", 1.0)
    else:
        weight_variance, _, q, *_ = critical_point(activation, **settings)
    normal = statistics.NormalDist(0, math.sqrt(q))
    z = jnp.asarray([normal.inv_cdf((i + 0.5) / width) for i in range(width)], jnp.float32)
    slopes = np.asarray(jax.vmap(jax.grad(get(activation).function))(z), np.float64)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num):
        product = np.eye(width)
        for _ in range(depth):
            weight = rng.standard_normal((width, width)) / math.sqrt(width)
            if weights == "orthogonal":
                weight, triangle = np.linalg.qr(weight)
                weight = weight * np.sign(np.diag(triangle))
            product = rng.permutation(slopes)[:, None] * (math.sqrt(weight_variance) * weight @ product)
        found.append(np.linalg.svd(product, compute_uv=False) ** 2)
    return np.concatenate(found)


@pytest.mark.parametrize("depth", [1, 2, 3, 10, 100])
def test_gaussian_products_have_fuss_and_catalans_edge(depth):
    found = predict_spectrum("identity", depth, weight_variance=1.0)
    edge = math.exp((depth + 1) * math.log(depth + 1) - depth * math.log(depth))
    np.testing.assert_allclose(found, (1, depth, edge), rtol=1e-5)


@pytest.mark.parametrize("depth", [2, 5, 40])
def test_relu_between_orthogonal_weights(depth):
    found = predict_spectrum("relu", depth, weights="orthogonal", weight_variance=2.0)
    edge = math.exp(depth * math.log(depth) - (depth - 1) * math.log(depth - 1))
    np.testing.assert_allclose(found, (1, depth, edge), rtol=1e-5)


def test_one_orthogonal_relu_layer_has_two_values():
    found = predict_spectrum("relu", 1, weights="orthogonal", weight_variance=2.0)
    np.testing.assert_allclose(found, (1, 1, 2), rtol=1e-5)


@pytest.mark.parametrize("depth", [1, 7, 300])
def test_orthogonal_matrices_alone_are_isometries(depth):
    found = predict_spectrum("identity", depth, weights="orthogonal", weight_variance=1.0)
    np.testing.assert_allclose(found, (1, 0, 1), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("activation", ["relu", "hard_tanh"])
def test_the_weight_variance_is_a_unit(activation, weights):
    """c times the variance makes every value c^L times as large."""
    one, other = (
        predict_spectrum(activation, 4, weights=weights, weight_variance=variance, q=1.0) for variance in (1.0, 1.7)
    )
    np.testing.assert_allclose(other, np.array(one) * 1.7 ** np.array([4, 8, 4]), rtol=1e-6)


def test_moments_follow_from_those_of_the_slope():
    """Leaky ReLU of slope a: the squared slopes are 1 and a², half of each."""
    second = (1 + 0.01**2) / 2
    fourth = (1 + 0.01**4) / 2
    for weights, extra in (("gaussian", 1), ("orthogonal", 0)):
        found = predict_spectrum("leaky_relu", 6, weights=weights, weight_variance=1.5)
        mean = (1.5 * second) ** 6
        np.testing.assert_allclose(found[:2], (mean, mean**2 * 6 * (fourth / second**2 - 1 + extra)), rtol=1e-7)


@pytest.mark.parametrize(
    ("activation", "weights", "depth", "bias_variance"),
    [
        ("identity", "gaussian", 1, None),
        ("identity", "gaussian", 4, None),
        ("relu", "orthogonal", 5, None),
        ("relu", "gaussian", 3, None),
        pytest.param("hard_tanh", "orthogonal", 6, 0.05, marks=pytest.mark.heavy),
        pytest.param("hard_tanh", "gaussian", 4, 0.05, marks=pytest.mark.heavy),
        ("tanh", "orthogonal", 6, 0.05),
        ("tanh", "gaussian", 3, 0.05),
    ],
)
def test_sampled_products_agree(activation, weights, depth, bias_variance):
    settings = {"bias_variance": bias_variance} if bias_variance else {}
    if activation == "identity":
        settings["weight_variance"] = 1.0
    found = predict_spectrum(activation, depth, weights=weights, **settings)
    values = products(activation, depth, weights=weights, **settings)
    np.testing.assert_allclose(np.mean(values), found.mean, rtol=0.05)
    np.testing.assert_allclose(np.var(values), found.variance, rtol=0.2)
    assert 0.8 * found.edge < np.max(values) < 1.05 * found.edge


def test_what_no_gradient_passes_has_no_spectrum():
    assert predict_spectrum(jnp.sign, 3, weight_variance=2.0) == (0, 0, 0)
    assert predict_spectrum("relu", 3, weight_variance=0.0) == (0, 0, 0)


def test_an_unbounded_slope_has_no_edge():
    found = predict_spectrum(lambda x: x + 0.1 * x**3, 2, weight_variance=0.5, q=1.0)
    assert math.isfinite(found.mean)
    assert found.edge > 1e3


@pytest.mark.parametrize("activation", ["relu", "tanh", "hard_tanh"])
def test_without_a_variance_it_is_the_critical_one(activation):
    settings = {} if activation == "relu" else {"bias_variance": 0.05}
    point = critical_point(activation, **settings)
    variances = {"weight_variance": point.weight_variance, "bias_variance": point.bias_variance}
    found = predict_spectrum(activation, 3, **settings)
    np.testing.assert_allclose(found, predict_spectrum(activation, 3, q=point.q, **variances), rtol=1e-9)
    assert found.mean == pytest.approx(1, rel=1e-6)


def test_depth_does_not_overflow():
    found = predict_spectrum("relu", 5000, weight_variance=4.0)
    assert found == (math.inf, math.inf, math.inf)
    assert predict_spectrum("relu", 5000, weight_variance=1.0)[0] == 0


# The density ---------------------------------------------------------------------------------------------------------


def moments(activation, depth, edge, low=-40.0, num=2000, **settings):
    """Mass, mean and mean square, integrated over the logarithm, which tames the singularity at 0."""
    logs = np.linspace(low, math.log(edge), num, endpoint=False)
    points = np.exp(logs)
    density, atoms = predict_density(activation, depth, points, **settings)
    step = logs[1] - logs[0]
    return [
        float(np.sum(density * points ** (k + 1)) * step) + sum(mass * value**k for value, mass in atoms)
        for k in range(3)
    ]


def test_one_gaussian_matrix_is_marchenko_and_pasturs():
    points = np.array([1e-6, 0.01, 0.5, 1.0, 2.0, 3.9, 3.999])
    density, atoms = predict_density("identity", 1, points, weight_variance=1.0)
    np.testing.assert_allclose(density, np.sqrt(points * (4 - points)) / (2 * np.pi * points), rtol=1e-5)
    assert atoms == ()


def test_two_gaussian_matrices_have_pensons_density():
    """The Fuss-Catalan density of order 2, a closed form in cube roots."""
    x = np.array([0.01, 0.3, 1.0, 3.0, 6.5])
    root = (27 + 3 * np.sqrt(81 - 12 * x)) ** (1 / 3)
    want = (
        2 ** (1 / 3) * np.sqrt(3) / (12 * np.pi) * (2 ** (1 / 3) * root**2 - 6 * x ** (1 / 3)) / (x ** (2 / 3) * root)
    )
    np.testing.assert_allclose(predict_density("identity", 2, x, weight_variance=1.0).density, want, rtol=1e-5)


def test_three_gaussian_matrices_have_fuss_and_catalans_moments():
    found = moments("identity", 3, 256 / 27, low=-70.0, num=9000, weight_variance=1.0)
    np.testing.assert_allclose(found, (1, 1, 4), rtol=3e-3)


@pytest.mark.parametrize(
    ("activation", "depth", "settings", "atom"),
    [
        ("relu", 5, {"weights": "orthogonal", "weight_variance": 2.0}, 0.5),
        ("relu", 3, {"weights": "gaussian", "weight_variance": 2.0}, 0.5),
        ("hard_tanh", 4, {"weights": "orthogonal", "bias_variance": 0.05}, None),
        ("leaky_relu", 3, {"weights": "orthogonal", "weight_variance": 2.0}, None),
        ("tanh", 3, {"weights": "orthogonal", "bias_variance": 0.05}, None),
    ],
)
def test_mass_and_moments_are_those_of_the_spectrum(activation, depth, settings, atom):
    spectrum = predict_spectrum(activation, depth, **settings)
    num = {"num": 300, "low": -12.0} if activation == "tanh" else {}  # whose slopes take many values, which is slow
    mass, mean, square = moments(activation, depth, spectrum.edge, **num, **settings)
    np.testing.assert_allclose(mass, 1, rtol=1e-2)
    np.testing.assert_allclose(mean, spectrum.mean, rtol=1e-2)
    np.testing.assert_allclose(square - mean**2, spectrum.variance, rtol=3e-2)
    if atom is not None:
        (at_zero,) = predict_density(activation, depth, np.ones(1), **settings).atoms
        assert at_zero == pytest.approx((0, atom), abs=1e-9)


@pytest.mark.parametrize("depth", [1, 4])
def test_orthogonal_matrices_are_one_atom(depth):
    density, atoms = predict_density(
        "identity", depth, np.array([0.5, 1.0, 2.0]), weights="orthogonal", weight_variance=1.0
    )
    assert not np.any(density)
    np.testing.assert_allclose(atoms, [(1, 1)])


def test_slopes_that_are_mostly_equal_leave_an_atom():
    """Hard tanh at a small variance: nearly every slope is 1, and a share 1 - L (1 - p) of the values is σ_w^(2L)."""
    settings = {"weights": "orthogonal", "weight_variance": 1.1, "q": 0.2}
    p = math.erf(1 / math.sqrt(2 * 0.2))
    atoms = dict(predict_density("hard_tanh", 3, np.ones(1), **settings).atoms)
    np.testing.assert_allclose(sorted(atoms.items()), [(0, 1 - p), (1.1**3, 1 - 3 * (1 - p))], rtol=1e-8)
    sampled = products("hard_tanh", 3, width=200, **settings)
    for value, mass in atoms.items():
        np.testing.assert_allclose(np.mean(np.abs(sampled - value) < 1e-9), mass, atol=0.02)


@pytest.mark.parametrize(
    ("activation", "depth", "weights"),
    [("identity", 3, "gaussian"), ("relu", 4, "orthogonal"), ("hard_tanh", 3, "orthogonal"), ("tanh", 2, "gaussian")],
)
def test_a_histogram_of_sampled_products_agrees(activation, depth, weights):
    settings = {"weight_variance": 1.0} if activation == "identity" else {}
    if "tanh" in activation:
        settings = {"bias_variance": 0.05}
    values = products(activation, depth, weights=weights, width=200, num=4, seed=4, **settings)
    edges = np.quantile(values[values > 1e-6], [0.1, 0.3, 0.5, 0.7, 0.9]) - 1e-6  # no value at an edge
    share = np.histogram(values, edges)[0] / values.size
    logs = np.linspace(np.log(edges[:-1]), np.log(edges[1:]), 41)
    points = np.exp((logs[1:] + logs[:-1]) / 2)
    density, atoms = predict_density(activation, depth, points.ravel(), weights=weights, **settings)
    predicted = np.sum(density.reshape(points.shape) * points * np.diff(logs, axis=0), axis=0)
    predicted += [sum(mass for value, mass in atoms if low <= value < high) for low, high in itertools.pairwise(edges)]
    np.testing.assert_allclose(share, predicted, atol=0.02)


def test_nothing_lies_above_the_edge():
    edge = predict_spectrum("relu", 6, weights="orthogonal", weight_variance=2.0).edge
    points = edge * np.array([0.99, 1.001, 1.5, 100.0])
    density = predict_density("relu", 6, points, weights="orthogonal", weight_variance=2.0).density
    assert density[0] > 0
    np.testing.assert_array_equal(density[1:], 0)


def test_no_points_and_no_gradient():
    assert predict_density("relu", 2, np.zeros(0), weight_variance=2.0).density.shape == (0,)
    density, atoms = predict_density("relu", 2, np.ones(2), weight_variance=0.0)
    assert not np.any(density)
    np.testing.assert_allclose(sum(mass for _, mass in atoms), 1)
    assert predict_density(jnp.sign, 2, np.ones(2), weight_variance=1.0).atoms == ((0.0, 1.0),)


@pytest.mark.parametrize("function", [predict_spectrum, functools.partial(predict_density, points=np.ones(1))])
def test_bad_settings_are_refused(function, unchecked):
    with pytest.raises(ValueError, match="expected depth of at least 1; got depth=0"):
        function("relu", 0)
    with pytest.raises(TypeError, match="expected depth as a whole number"):
        function("relu", 2.5)
    with pytest.raises(ValueError, match="expected weights 'gaussian' or 'orthogonal'; got 'uniform'"):
        function("relu", 2, weights="uniform")
    with pytest.raises(ValueError, match="expected a finite weight_variance"):
        function("relu", 2, weight_variance=-1.0)
    with pytest.raises(ValueError, match="expected a finite q"):
        function("relu", 2, q=math.inf)
    with pytest.raises(TypeError, match="differentiate"):
        function(np.tanh, 2, weight_variance=1.0)


@pytest.mark.parametrize("points", [np.array([0.0, 1.0]), np.array([-1.0]), np.array([np.nan]), np.ones((2, 2))])
def test_bad_points_are_refused(points, unchecked):
    with pytest.raises(ValueError, match="predict_density: expected a vector of positive finite points"):
        predict_density("relu", 2, points)
