"""What is wrongly said of the papers, against what the library computes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxgrad import (
    activations,
    clipping,
    clustering,
    decomposition,
    initializers,
    losses,
    meanfield,
    normalization,
    optimizers,
    papers,
    spectra,
)
from jaxgrad.meanfield import Activation, Dense, Dropout, Residual

KEY = jax.random.key(0)


def first_step(optimizer, gradient, params=None):
    params = gradient if params is None else params
    return jax.jit(lambda gradient: optimizer.update(gradient, optimizer.init(params), params)[0])(gradient)


def test_mean_absolute_error_is_not_mean_squared_error():
    errors = jnp.array([1.0, -3.0])
    assert losses.reduce(losses.absolute_error(errors, 0.0)) == 2
    assert losses.reduce(losses.squared_error(errors, 0.0)) == 5


def test_outer_branch_of_huber():
    """With δ (y - ŷ) - ½ δ the loss of an error of -3 is negative, and jumps at ±δ."""
    delta = 2.0
    loss = losses.huber_loss(jnp.array([-3.0, 3.0, 2.0, 2.0001]), 0.0, delta=delta)
    np.testing.assert_allclose(loss[:2], delta * 3 - delta**2 / 2)
    np.testing.assert_allclose(loss[3], loss[2], rtol=1e-3)
    assert delta * -3 - delta / 2 < 0
    assert abs((delta * 2 - delta / 2) - 2**2 / 2) == 1


def test_adagrad_has_its_own_title():
    assert [paper.key for paper in papers.implementing("jaxgrad.optimizers.adagrad")] == ["duchi2011adaptive"]
    assert papers.get("duchi2011adaptive").title.startswith("Adaptive Subgradient Methods")
    assert papers.get("kingma2015adam").title == "Adam: A Method for Stochastic Optimization"


def test_momentum_is_not_averaged():
    gradients = jnp.ones(200)
    ends = {}
    for averaged in (False, True):
        optimizer = optimizers.momentum(1.0, 0.9, averaged=averaged)
        step = lambda state, g, o=optimizer: o.update(g, state)[::-1]  # noqa: E731
        ends[averaged] = -jax.lax.scan(step, optimizer.init(jnp.zeros(())), gradients)[1][-1]
    np.testing.assert_allclose([ends[False], ends[True]], [10.0, 1.0], rtol=1e-5)


@pytest.mark.parametrize("step", [0.1, 1.0, 3.0])
def test_rippling_momentum_shrinks_by_the_root_of_its_decay(step):
    optimizer, decay = optimizers.momentum(step, 0.81), 0.81
    start, unravel = ravel_pytree((jnp.zeros(()), optimizer.init(jnp.zeros(()))))

    def move(flat):
        x, state = unravel(flat)
        updates, state = optimizer.update(x, state)
        return ravel_pytree((x + updates, state))[0]

    factors = np.linalg.eigvals(np.asarray(jax.jacobian(move)(start), np.float64))
    assert np.abs(factors) == pytest.approx(decay**0.5, rel=1e-5)


def test_norm_of_each_variable_is_not_the_global_norm():
    gradient = {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([0.5])}
    each = first_step(clipping.clip_by_norm(1.0), gradient)
    together = first_step(clipping.clip_by_global_norm(1.0), gradient)
    np.testing.assert_allclose(each["bias"], 0.5)
    np.testing.assert_allclose(clipping.global_norm(each), math.sqrt(1.25), rtol=1e-6)
    np.testing.assert_allclose(clipping.global_norm(together), 1.0, rtol=1e-6)
    np.testing.assert_allclose(together["kernel"] / together["bias"], gradient["kernel"] / gradient["bias"], rtol=1e-6)


def test_manhattan_distance_needs_medians():
    x = jnp.array([[0.0], [1.0], [8.0]])
    result = clustering.k_means(None, x, 1, metric="manhattan", init=x[:1])
    np.testing.assert_allclose([result.centroids[0, 0], result.inertia], [1.0, 8.0])
    labels = jnp.zeros(3, jnp.int32)
    assert clustering.cluster_inertia(x, jnp.array([[3.0]]), labels, metric="manhattan")[0] == 10


def test_batches_are_normalized_with_the_biased_variance():
    x = jnp.array([[0.0], [1.0], [2.0], [5.0]])
    stats = jax.jit(normalization.standardize_fit)(x)
    np.testing.assert_allclose(stats.variance[0], np.var(np.asarray(x)), rtol=1e-6)
    assert abs(stats.variance[0] / np.var(np.asarray(x), ddof=1) - 3 / 4) < 1e-6


def test_saturation_makes_gradients_vanish():
    for name in ("tanh", "sigmoid"):
        slope = jax.jit(jax.grad(activations.get(name).function))
        assert slope(5.0) < 0.03 * slope(0.0)
        assert meanfield.chi(name, weight_variance=1.0, bias_variance=0.0, q=25.0) < 0.2


def test_relu_halves_squared_gradients():
    factor = meanfield.chi("relu", weight_variance=1.0, bias_variance=0.0)
    np.testing.assert_allclose([factor, factor ** (50 / 2)], [0.5, 2.98e-8], rtol=1e-3)


def test_covariance_is_divided_by_the_number_of_rows():
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    centred = x - x.mean(axis=0)
    values = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    np.testing.assert_allclose(decomposition.pca(jnp.asarray(x)).explained_variance, values / 49, rtol=1e-4)


def test_truncated_normal_has_the_standard_deviation_asked_for():
    ours = initializers.truncated_normal(0.02)(KEY, (100_000,))
    bare = 0.02 * jax.random.truncated_normal(KEY, -2.0, 2.0, (100_000,))
    np.testing.assert_allclose([jnp.std(ours) / 0.02, jnp.std(bare) / 0.02], [1.0, 0.8796], rtol=0.01)


def test_he_weights_make_smooth_activations_fade():
    for name in ("gelu", "silu"):
        scales = meanfield.depth_scales(name, weight_variance=2.0, bias_variance=0.0)
        np.testing.assert_allclose([scales.q, scales.chi], [0.0, 0.5], atol=1e-6)


def test_mean_one_is_not_isometry():
    spectrum = meanfield.predict_spectrum("identity", 20, weights="gaussian", weight_variance=1.0)
    np.testing.assert_allclose(spectrum, (1.0, 20.0, 21**21 / 20**20))


def test_orthogonal_weights_do_not_make_relu_an_isometry():
    weights = initializers.orthogonal(math.sqrt(2))(KEY, (16, 16))
    x = jnp.linspace(-1.0, 1.0, 16)
    values = np.asarray(spectra.singular_values(lambda x: jax.nn.relu(x @ weights), x, method="svd").values)
    np.testing.assert_allclose(values[:3], math.sqrt(2), rtol=1e-5)
    np.testing.assert_allclose(values[-3:], 0, atol=1e-5)


def test_selu_needs_lecun_weights():
    kept = meanfield.variance_map("selu", 1.0, weight_variance=1.0, bias_variance=0.0)
    np.testing.assert_allclose(kept, 1.0)
    assert meanfield.fixed_point("selu", weight_variance=2.0, bias_variance=0.0) > 3


def test_selu_does_not_keep_gradients():
    chi = meanfield.chi("selu", weight_variance=1.0, bias_variance=0.0)
    np.testing.assert_allclose([chi, chi ** (50 / 2)], [1.0715750, 5.631], rtol=1e-3)


def test_glorot_takes_both_fans():
    kernel = initializers.glorot_normal()(KEY, (100, 900))
    np.testing.assert_allclose(jnp.var(kernel), 2 / 1000, rtol=0.02)
    assert jnp.var(kernel) < 0.25 / 100


def test_gain_of_tanh_is_not_five_thirds():
    """With 5/3 a variance of 1 grows."""
    np.testing.assert_allclose(activations.gain("tanh"), 1.5925, rtol=1e-4)
    settled = meanfield.fixed_point("tanh", weight_variance=(5 / 3) ** 2, bias_variance=0.0)
    assert settled > 1.1


def test_forget_bias_of_one_forgets():
    signal = meanfield.recurrent_signal("lstm", weight_variance=0.0, forget_bias=1.0)
    np.testing.assert_allclose(signal.carry_gain ** (100 / 2), 2.484379e-14, rtol=1e-6)


def test_shortcuts_alone_explode():
    signal = meanfield.propagate(50 * (Residual((Activation("relu"), Dense(2.0))),))
    np.testing.assert_allclose([signal.q[-1], math.exp(signal.log_growth)], 2.0**50, rtol=1e-6)


@pytest.mark.usefixtures("third_party_model")
def test_weight_decay_is_not_a_penalty_for_adam():
    params, gradient = jnp.array([1.0, 100.0]), jnp.array([1.0, 1.0])
    for optimizer, same in ((optimizers.sgd(0.1), True), (optimizers.adam(0.1), False)):
        penalty = first_step(optimizer, gradient + 0.01 * params, params)
        decay = first_step(optimizer, gradient, params) - 0.1 * 0.01 * params
        assert bool(jnp.allclose(penalty, decay, rtol=1e-4)) is same


def test_dropout_rate_is_what_is_kept():
    signal = meanfield.propagate((Dropout(0.8),))
    np.testing.assert_allclose([signal.q[-1], signal.gain[0]], 1 / 0.8)


def test_divergence_is_directed():
    p, q = jnp.array([0.5, 0.5]), jnp.array([0.9, 0.1])
    one, other = losses.kl_divergence(jnp.log(q), p), losses.kl_divergence(jnp.log(p), q)
    np.testing.assert_allclose([one, other], [0.5108, 0.3681], rtol=1e-3)
    np.testing.assert_allclose(one + other, np.sum((p - q) * np.log(np.asarray(p / q))), rtol=1e-5)


def test_signs_make_orthogonal_matrices_uniform():
    """The trace of a uniform orthogonal matrix has mean 0 and variance 1."""
    ours = initializers.orthogonal(batch_axis=0)(KEY, (2000, 4, 4))
    bare = np.linalg.qr(np.random.default_rng(0).standard_normal((2000, 4, 4)))[0]
    np.testing.assert_allclose(jnp.trace(ours, axis1=1, axis2=2).mean(), 0.0, atol=0.1)
    assert np.trace(bare, axis1=1, axis2=2).mean() < -0.5


def test_slopes_of_rrelu():
    x = -jnp.ones(())
    np.testing.assert_allclose(-activations.rrelu(None, x), 11 / 48, rtol=1e-6)
    np.testing.assert_allclose(-activations.rrelu(None, x, lower=1 / 5.5, upper=1 / 5.5), 0.1818, rtol=1e-3)


def test_k_means_stops_at_local_minima():
    """Four corners of a long rectangle."""
    x = jnp.array([[0.0, 0.0], [0.0, 1.0], [4.0, 0.0], [4.0, 1.0]])
    starts = jnp.array([[[0.0, 0.5], [4.0, 0.5]], [[2.0, 0.0], [2.0, 1.0]]])
    costs = [float(clustering.k_means(None, x, 2, init=start).inertia) for start in starts]
    np.testing.assert_allclose(costs, [1.0, 16.0], rtol=1e-6)


def test_defaults_of_adadelta():
    """The paper has ρ = 0.95 and no learning rate."""
    gradient = jnp.array(1.0)
    ours, paper = (first_step(optimizers.adadelta(**options), gradient) for options in ({}, {"rho": 0.95}))
    np.testing.assert_allclose([-ours, -paper], [0.0031623, 0.0044721], rtol=1e-4)


def test_mean_of_squares_cancels():
    x = np.float32(1e4) + np.array([[0.0], [0.25], [0.5], [0.75]], np.float32)
    variance = jax.jit(normalization.standardize_fit)(jnp.asarray(x)).variance[0]
    np.testing.assert_allclose(variance, 0.078125, rtol=1e-6)
    assert abs(np.mean(x * x) - np.mean(x) ** 2 - 0.078125) > 0.05
