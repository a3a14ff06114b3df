"""Losses of distributions, counts and directions at the edges: zero probabilities, zero rates, zero vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from jaxgrad import losses

INF = np.inf
TARGETS = jnp.array([[0.0, 0.25, 0.75], [0.0, 1.0, 0.0]])
PREDICTIONS = jnp.array([[0.0, 0.5, 0.5], [0.25, 0.25, 0.5]])


def gradients(loss, predictions, targets):
    """For both arguments, of the sum."""
    return jax.grad(lambda p, t: jnp.sum(loss(p, t)), (0, 1))(predictions, targets)


def test_zero_targets_take_no_part_in_the_divergence():
    logs = jnp.log(PREDICTIONS)
    want = special.rel_entr(np.asarray(TARGETS), np.asarray(PREDICTIONS)).sum(axis=-1)
    np.testing.assert_allclose(losses.kl_divergence(logs, TARGETS), want, rtol=1e-6)
    for_logs, for_targets = gradients(losses.kl_divergence, logs, TARGETS)
    np.testing.assert_array_equal(for_logs, -TARGETS)
    present = np.asarray(TARGETS) > 0
    slope = np.log(np.where(present, TARGETS, 1)) + 1 - np.where(present, logs, 0)
    np.testing.assert_allclose(for_targets, np.where(present, slope, 0), rtol=1e-6)

    assert np.isnan(optax.kl_divergence(logs, TARGETS)[0])
    assert np.all(np.isnan(gradients(optax.kl_divergence, logs, TARGETS)[1][~present]))


def test_an_impossible_target_has_an_infinite_divergence_and_a_finite_gradient():
    logs, targets = jnp.array([-INF, 0.0]), jnp.array([0.5, 0.5])
    assert losses.kl_divergence(logs, targets) == INF
    assert gradients(losses.kl_divergence, logs, targets)[0].tolist() == [-0.5, -0.5]
    _, tangent = jax.jvp(lambda logs: losses.kl_divergence(logs, targets), (logs,), (jnp.ones(2),))
    assert tangent == -1


def test_divergence_is_zero_on_itself_and_is_what_cross_entropy_adds_to_entropy():
    p, q = jax.nn.softmax(jnp.array([0.3, -1.0, 2.0])), jax.nn.softmax(jnp.array([1.0, 0.5, 0.0]))
    np.testing.assert_allclose(losses.kl_divergence(jnp.log(p), p), 0, atol=1e-7)
    difference = losses.categorical_cross_entropy(p, q) - losses.categorical_cross_entropy(q, q)
    np.testing.assert_allclose(losses.kl_divergence(jnp.log(p), q), difference, rtol=1e-5)


def test_categorical_cross_entropy_at_zero_probabilities():
    naive = lambda p, t: -jnp.sum(t * jnp.log(p), axis=-1)  # noqa: E731
    assert np.isnan(naive(PREDICTIONS, TARGETS)[0])
    want = [np.log(2), np.log(4)]
    np.testing.assert_allclose(losses.categorical_cross_entropy(PREDICTIONS, TARGETS), want, rtol=1e-6)
    for_predictions, for_targets = gradients(losses.categorical_cross_entropy, PREDICTIONS, TARGETS)
    np.testing.assert_allclose(for_predictions, [[0, -0.5, -1.5], [0, -4, 0]], rtol=1e-6)
    np.testing.assert_allclose(for_targets, -np.log([[1, 0.5, 0.5], [0.25, 0.25, 0.5]]), rtol=1e-6, atol=1e-9)
    assert losses.categorical_cross_entropy(jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])) == INF
    assert losses.categorical_cross_entropy(jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0])) == 0


@pytest.mark.parametrize(
    ("probability", "target", "loss", "slope"),
    [
        (0.0, 0.0, 0.0, 1.0),
        (1.0, 1.0, 0.0, -1.0),
        (0.0, 1.0, INF, -INF),
        (1.0, 0.0, INF, INF),
        (0.5, 0.25, np.log(2), 1.0),
        (1e-30, 1.0, 30 * np.log(10), -1e30),
        (1e-30, 0.0, 1e-30, 1.0),
    ],
)
def test_binary_cross_entropy_at_the_edges(probability, target, loss, slope):
    p, t = jnp.array([probability]), jnp.array([target])
    if probability == target:
        assert np.isnan(-(t * jnp.log(p) + (1 - t) * jnp.log(1 - p))[0])
    np.testing.assert_allclose(losses.binary_cross_entropy(p, t), [loss], rtol=1e-6)
    for_probability, for_target = gradients(losses.binary_cross_entropy, p, t)
    np.testing.assert_allclose(for_probability, [slope], rtol=1e-6)
    assert not np.isnan(for_target[0])


def test_cross_entropies_of_probabilities_and_of_logits_agree():
    logits, t = jnp.array([0.3, -1.0, 2.0]), jnp.array([0.2, 0.5, 0.3])
    want = losses.softmax_cross_entropy(logits, t)
    np.testing.assert_allclose(losses.categorical_cross_entropy(jax.nn.softmax(logits), t), want, rtol=1e-6)
    want = losses.sigmoid_binary_cross_entropy(logits, t)
    np.testing.assert_allclose(losses.binary_cross_entropy(jax.nn.sigmoid(logits), t), want, rtol=1e-6)


def test_zero_losses_carry_no_sign():
    one = jnp.array([1.0, 0.0])
    for zero in (losses.categorical_cross_entropy(one, one), losses.binary_cross_entropy(one, one)):
        assert not np.any(np.signbit(zero))
    assert not np.signbit(losses.cosine_proximity(one, jnp.zeros(2)))


@pytest.mark.parametrize(
    ("log_rate", "count", "loss", "slope"),
    [
        (-INF, 0.0, 0.0, 0.0),
        (-INF, 2.0, INF, -2.0),
        (INF, 2.0, INF, INF),
        (0.0, 3.0, 1.0, -2.0),
        (-1e30, 0.0, 0.0, 0.0),
    ],
)
def test_poisson_at_infinite_logarithms(log_rate, count, loss, slope):
    p, t = jnp.array([log_rate]), jnp.array([count])
    if np.isinf(log_rate) and not (log_rate < 0 < count):
        assert np.isnan((jnp.exp(p) - t * p)[0])
    np.testing.assert_allclose(losses.poisson_loss(p, t), [loss])
    np.testing.assert_allclose(gradients(losses.poisson_loss, p, t)[0], [slope])


def test_poisson_takes_logarithms_by_default():
    rates, counts = jnp.array([0.5, 2.0, 7.0]), jnp.array([0, 2, 9])
    want = losses.poisson_loss(rates, counts, log_input=False)
    np.testing.assert_allclose(losses.poisson_loss(jnp.log(rates), counts), want, rtol=1e-6)


def test_poisson_rates_have_a_floor():
    rates, counts = jnp.array([0.0, 0.0, -1.0, 1e-9, INF]), jnp.array([0.0, 2.0, 2.0, 1.0, 3.0])
    assert np.sum(~np.isfinite(rates - counts * jnp.log(rates))) == 4
    loss = lambda p, t: losses.poisson_loss(p, t, log_input=False, eps=1e-3)  # noqa: E731
    floor = np.log(1e-3)
    np.testing.assert_allclose(loss(rates, counts), [0, -2 * floor, -2 * floor, 1e-9 - floor, INF], rtol=1e-6)
    np.testing.assert_allclose(gradients(loss, rates, counts)[0], [0.5, 0.5, 0, 1, 1])


@pytest.mark.parametrize("eps", [0.0, -1.0, np.nan])
def test_poisson_refuses_a_floor(eps, unchecked):
    with pytest.raises(ValueError, match="poisson_loss: expected eps positive and finite"):
        losses.poisson_loss(jnp.ones(2), jnp.ones(2), log_input=False, eps=eps)


@pytest.mark.parametrize("zero", ["predictions", "targets", "both"])
def test_cosine_of_a_zero_vector(zero):
    p = jnp.zeros((1, 3)) if zero != "targets" else jnp.array([[1.0, 2.0, 3.0]])
    t = jnp.zeros((1, 3)) if zero != "predictions" else jnp.array([[1.0, 2.0, 3.0]])
    assert losses.cosine_proximity(p, t).tolist() == [0.0]
    for gradient in gradients(losses.cosine_proximity, p, t):
        assert gradient.tolist() == [[0.0] * 3]
    assert np.isnan(optax.cosine_distance(p, t)[0])
    if zero == "predictions":
        floored = lambda p, t: optax.cosine_distance(p, t, epsilon=1e-8)  # noqa: E731
        assert np.max(np.abs(gradients(floored, p, t)[0])) > 1000


@pytest.mark.parametrize("scale", [1e-37, 1e-25, 1.0, 1e25, 1e34])
def test_cosine_at_every_scale(scale):
    p, t = jnp.array([[1.0, 2.0, -0.5]], jnp.float32), jnp.array([[0.5, -1.0, 2.0]], jnp.float32)
    want = losses.cosine_proximity(p, t)
    slope, _ = gradients(losses.cosine_proximity, p, t)
    np.testing.assert_allclose(losses.cosine_proximity(scale * p, t), want, rtol=1e-6)
    np.testing.assert_allclose(losses.cosine_proximity(scale * p, scale * t), want, rtol=1e-6)
    scaled, _ = gradients(losses.cosine_proximity, scale * p, t)
    np.testing.assert_allclose(np.asarray(scaled, np.float64) * scale, slope, rtol=1e-5)
    if scale in (1e-25, 1e25):
        assert np.isnan(optax.cosine_distance(scale * p, t)[0]) or optax.cosine_distance(scale * p, t)[0] == 1


def test_cosine_stays_within_its_bounds():
    rng = np.random.default_rng(0)
    p = rng.normal(size=(20_000, 3)).astype(np.float32)
    naive = np.sum(p * (2 * p), axis=-1) / (np.linalg.norm(p, axis=-1) * np.linalg.norm(2 * p, axis=-1))
    assert np.max(naive) > 1
    got = losses.cosine_proximity(p, 2 * p)
    assert np.min(got) == -1
    np.testing.assert_allclose(got, -1, rtol=3e-7)
    np.testing.assert_allclose(losses.cosine_proximity(p, -p), 1, rtol=3e-7)


def test_cosine_of_infinite_vectors():
    p, t = jnp.array([[INF, -INF, 5.0], [INF, 0.0, 0.0]]), jnp.array([[1.0, -1.0, 0.0], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(losses.cosine_proximity(p, t), [-1, 0], atol=1e-6)
    assert not np.any(gradients(losses.cosine_proximity, p, t)[0])


def test_cosine_gradient_has_the_norm_of_the_sine_over_the_length():
    p, t = jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0])
    np.testing.assert_allclose(np.linalg.norm(gradients(losses.cosine_proximity, p, t)[0]), 0.8 / 5, rtol=1e-6)
    np.testing.assert_allclose(losses.cosine_proximity(p, t), optax.cosine_distance(p, t) - 1, rtol=1e-6)
