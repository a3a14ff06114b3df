"""How papers bear on one another: methods that are another one's special case, and what extends or corrects one."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import clipping, clustering, decomposition, initializers, losses, meanfield, normalization, optimizers
from jaxgrad.meanfield import Dense, Residual

KEY = jax.random.key(0)
GRADIENTS = np.random.default_rng(0).standard_normal((20, 3))


def path(optimizer, gradients=GRADIENTS):
    """Where the parameters go, from 0, along given gradients."""
    gradients = jnp.asarray(gradients)

    def step(carry, gradient):
        x, state = carry
        updates, state = optimizer.update(gradient, state, x)
        return (x + updates, state), x + updates

    start = jnp.zeros_like(gradients[0])
    return np.asarray(jax.jit(lambda: jax.lax.scan(step, (start, optimizer.init(start)), gradients)[1])())


def update(link, gradient):
    return jax.jit(lambda gradient: link.update(gradient, link.init(gradient))[0])(gradient)


def test_clipping_by_value_is_the_gradient_of_huber_loss():
    residuals = jnp.array([-30.0, -1.0, 0.0, 0.5, 4.0])
    slopes = jax.jit(jax.grad(lambda r: jnp.sum(losses.huber_loss(r, 0.0, delta=2.0))))(residuals)
    squares = jax.jit(jax.grad(lambda r: jnp.sum(losses.squared_error(r, 0.0)) / 2))(residuals)
    np.testing.assert_allclose(update(clipping.clip(2.0), squares), slopes)


def test_smooth_l1_is_huber_loss_at_one():
    errors = np.array([-3.0, -1.0, -0.5, 0.0, 0.9, 2.0], np.float32)
    want = np.where(np.abs(errors) < 1, errors**2 / 2, np.abs(errors) - 0.5)
    np.testing.assert_allclose(losses.huber_loss(jnp.asarray(errors), 0.0), want, rtol=1e-6)


def test_clipping_one_entry_by_value_or_by_norm():
    for gradient in (jnp.array([-7.0]), jnp.array([0.3])):
        by_value, by_norm = (update(link(2.0), gradient) for link in (clipping.clip, clipping.clip_by_global_norm))
        np.testing.assert_allclose(by_value, by_norm, rtol=1e-6)


def test_momentum_zero_is_gradient_descent():
    np.testing.assert_allclose(path(optimizers.momentum(0.1, 0.0)), path(optimizers.sgd(0.1)))


def test_nesterov_in_the_form_of_sutskever(x64):
    """The velocity is added before the gradient is taken; ours keeps the point ahead, and meets theirs there."""
    curvatures = np.array([1.0, 10.0])
    optimizer = optimizers.nesterov(0.05, 0.9)
    theirs, velocity, ours = np.ones(2), np.zeros(2), jnp.ones(2)
    state = optimizer.init(ours)
    for _ in range(20):
        np.testing.assert_allclose(ours, theirs + 0.9 * velocity, rtol=1e-9)
        velocity = 0.9 * velocity - 0.05 * curvatures * (theirs + 0.9 * velocity)
        theirs = theirs + velocity
        steps, state = optimizer.update(jnp.asarray(curvatures) * ours, state)
        ours = ours + steps


@pytest.mark.usefixtures("third_party_model")
def test_rmsprop_is_adam_without_mean_and_correction(x64):
    """The correction divides the mean square by 1 - β₂^t; with the learning rate times its root it is undone."""
    corrected = optimizers.adam(lambda count: 0.1 / jnp.sqrt(1 - 0.9 ** (count + 1.0)), 0.0, 0.9, 1e-12)
    np.testing.assert_allclose(path(corrected), path(optimizers.rmsprop(0.1, 0.9, 1e-24)), rtol=1e-6)


@pytest.mark.usefixtures("third_party_model")
def test_adagrad_is_adam_that_forgets_nothing(x64):
    slowing = optimizers.adam(lambda count: 0.1 / jnp.sqrt(count + 1.0), 0.0, 1 - 1e-8, 1e-12)
    np.testing.assert_allclose(path(slowing), path(optimizers.adagrad(0.1, 0.0, 1e-24)), rtol=1e-5)


@pytest.mark.usefixtures("third_party_model")
def test_nadam_without_mean_is_adam():
    plain, ahead = (optimizers.adam(0.1, b1=0.0, nesterov=nesterov) for nesterov in (False, True))
    np.testing.assert_allclose(path(ahead), path(plain), rtol=1e-5)


def test_centering_changes_nothing_but_where_gradients_have_a_mean():
    for gradients, longer in ((np.tile([1.0, -1.0], 200), 1.0), (np.ones(400), 100.0)):
        centered, plain = (path(optimizers.rmsprop(0.1, 0.9, 1e-4, centered=c), gradients) for c in (True, False))
        np.testing.assert_allclose(np.diff(centered)[-1] / np.diff(plain)[-1], longer, rtol=0.01)


def test_sharp_smooth_clipping_is_norm_clipping():
    for gradient in (jnp.array([0.3, 0.4]), jnp.array([30.0, 40.0])):
        soft = update(clipping.smooth_clip(1.0, power=40.0), gradient)
        np.testing.assert_allclose(soft, update(clipping.clip_by_global_norm(1.0), gradient), rtol=1e-5)


def test_one_example_without_noise_is_norm_clipping():
    gradient = jnp.array([3.0, 4.0])
    private = update(clipping.per_example_clip(1.0), gradient[None])
    np.testing.assert_allclose(private, update(clipping.clip_by_global_norm(1.0), gradient), rtol=1e-6)


def test_lecun_weights_are_he_weights_of_a_linear_layer():
    shape = (20, 30)
    linear = initializers.he_normal(negative_slope=1.0)(KEY, shape)
    np.testing.assert_allclose(linear, initializers.lecun_normal()(KEY, shape), rtol=1e-6)


def test_he_weights_are_glorot_weights_with_twice_the_variance():
    """Where the fans are the same, the half of its inputs that ReLU drops is all that differs."""
    ours, theirs = initializers.he_normal()(KEY, (20, 20)), initializers.glorot_normal()(KEY, (20, 20))
    np.testing.assert_allclose(ours, math.sqrt(2) * theirs, rtol=1e-6)


def test_delta_orthogonal_of_one_pixel_is_orthogonal():
    kernel = initializers.delta_orthogonal()(KEY, (1, 1, 6, 6))
    np.testing.assert_allclose(kernel[0, 0], initializers.orthogonal()(KEY, (6, 6)), atol=1e-6)


def test_the_identity_is_orthogonal():
    kernel = initializers.identity()(KEY, (6, 6))
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(6))


def test_rezero_is_skip_init_of_zero():
    assert initializers.skip_init()(KEY, ()) == 0
    signal = meanfield.propagate(20 * (Residual((Dense(2.0),), scale=0.0),))
    assert signal.q[-1] == 1
    assert signal.log_growth == 0


def test_one_narrow_layer_more_widens_the_spread():
    """The sum of the reciprocal widths decides."""
    spread = functools.partial(meanfield.finite_width_band, "relu", weight_variance=2.0)
    np.testing.assert_allclose(spread(5, 500).variance, spread(10, 1000).variance, rtol=0.01)
    np.testing.assert_allclose(spread(2, [400, 1200]).variance, spread(2, 600).variance, rtol=0.01)


def test_welford_is_a_merge_of_single_rows():
    x = jnp.asarray(GRADIENTS[:8], jnp.float32)
    one = functools.reduce(jax.jit(normalization.standardize_update), x, normalization.standardize_init((3,)))
    merged = jax.jit(normalization.standardize_merge)(*map(jax.jit(normalization.standardize_fit), (x[:4], x[4:])))
    np.testing.assert_allclose(one.mean, merged.mean, rtol=1e-5)
    np.testing.assert_allclose(one.variance, merged.variance, rtol=1e-5)


def test_hinge_loss_is_that_of_two_classes():
    scores = jnp.array([[0.3, 1.0], [2.0, -1.0], [0.5, 0.4]])
    labels = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    of_many = losses.categorical_hinge_loss(scores, labels, form="crammer-singer")
    of_two = losses.hinge_loss(scores[:, 0] - scores[:, 1], jnp.array([1.0, 1.0, -1.0]))
    np.testing.assert_allclose(of_many, of_two, rtol=1e-6)


def test_noise_free_likelihood_has_the_principal_subspace():
    """Their covariance is that of PCA, with what is left spread evenly."""
    x = jnp.asarray(GRADIENTS @ np.diag([3.0, 2.0, 0.1]), jnp.float32)
    result = decomposition.pca(x, 2)
    values = np.linalg.eigvalsh(decomposition.pca_covariance(result))[::-1]
    np.testing.assert_allclose(values[:2], result.explained_variance, rtol=1e-4)
    np.testing.assert_allclose(values[2], result.noise_variance, rtol=1e-3)


def test_one_row_at_a_time_gives_running_means():
    rows = jnp.array([[0.0], [2.0], [10.0], [4.0], [12.0]])
    state = clustering.k_means_init(None, rows[:3], 2, init=jnp.array([[0.0], [10.0]]), reassignment_ratio=0.0)
    for row in rows:
        state = clustering.k_means_update(state, row[None])
    np.testing.assert_allclose(state.centroids[:, 0], [2.0, 11.0], rtol=1e-5)
