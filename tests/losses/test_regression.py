"""Losses for real targets at the edges: tiny and huge errors, floors, ties and infinities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import losses

SCALES = np.concatenate([np.logspace(-18, 38, 300), [1.0, 0.999999, 1.000001, 3.4e38]]).astype(np.float32)


def gradient(loss, predictions, targets):
    return jax.grad(lambda p: jnp.sum(loss(p, targets)))(jnp.asarray(predictions, jnp.float32))


def exact_log_cosh(error):
    """In float64, without the cancellation of small errors."""
    size = np.abs(np.asarray(error, np.float64))
    small = np.log1p(2 * np.sinh(np.minimum(size, 1) / 2) ** 2)
    return np.where(size < 1, small, size + np.log1p(np.exp(-2 * size)) - np.log(2))


@pytest.mark.parametrize("sign", [1, -1])
def test_log_cosh_is_right_at_every_scale(sign):
    got = np.asarray(losses.log_cosh(sign * SCALES, 0.0), np.float64)
    np.testing.assert_allclose(got, exact_log_cosh(SCALES), rtol=2.2 * 2.0**-23)
    naive = np.asarray(optax.log_cosh(jnp.asarray(sign * SCALES), jnp.zeros_like(SCALES)), np.float64)
    assert np.max(np.abs(naive / exact_log_cosh(SCALES) - 1)) > 0.9


@pytest.mark.parametrize(("error", "loss"), [(1e-4, 5e-9), (1e-3, 5e-7)])
def test_log_cosh_keeps_small_errors(error, loss):
    np.testing.assert_allclose(losses.log_cosh(error, 0), loss, rtol=1e-6)
    naive = optax.log_cosh(jnp.float32(error), jnp.float32(0))
    assert abs(float(naive) / loss - 1) > 0.05


def test_log_cosh_below_the_range_of_its_square_is_zero():
    assert losses.log_cosh(jnp.float32(1e-23), jnp.float32(0)) == 0
    np.testing.assert_allclose(gradient(losses.log_cosh, [1e-20], 0.0), [1e-20], rtol=1e-6)


def test_log_cosh_has_the_gradient_tanh():
    errors = np.concatenate([-SCALES, SCALES, [0.0, np.inf, -np.inf]]).astype(np.float32)
    got = gradient(losses.log_cosh, errors, 0.0)
    np.testing.assert_allclose(got, np.tanh(errors.astype(np.float64)), rtol=3e-7)
    assert losses.log_cosh(jnp.inf, 0.0) == jnp.inf


@pytest.mark.parametrize("error", [0.0, 1e-3, 0.7, 1.0, 5.0, 80.0])
def test_log_cosh_has_the_second_derivative_of_its_formula(error, x64):
    second = jax.grad(jax.grad(lambda p: losses.log_cosh(p, 0.0)))(error)
    np.testing.assert_allclose(second, 1 / np.cosh(error) ** 2, rtol=1e-10, atol=1e-15)


def test_losses_and_gradients_at_a_tie_are_zero():
    x = jnp.array([0.0, 2.0, -3.5])
    for loss in (losses.squared_error, losses.absolute_error, losses.huber_loss, losses.log_cosh):
        assert loss(x, x).tolist() == [0.0] * 3
        assert gradient(loss, x, x).tolist() == [0.0] * 3
    for loss in (losses.absolute_percentage_error, losses.squared_log_error):
        assert loss(x[:2], x[:2]).tolist() == [0.0] * 2
        assert gradient(loss, x[:2], x[:2]).tolist() == [0.0] * 2


@pytest.mark.parametrize(
    ("loss", "bound"),
    [(losses.absolute_error, 1.0), (losses.log_cosh, 1.0), (lambda p, t: losses.huber_loss(p, t, delta=0.25), 0.25)],
)
def test_robust_losses_have_bounded_gradients(loss, bound):
    errors = jnp.array([-jnp.inf, -3e38, -2.0, 1e-3, 0.5, 1e20, jnp.inf])
    got = gradient(loss, errors, 0.0)
    assert np.max(np.abs(got)) == bound
    np.testing.assert_array_equal(np.sign(got), np.sign(errors))
    assert loss(errors, 0.0)[-1] == jnp.inf


def test_huber_gradient_is_the_clipped_error():
    errors = jnp.linspace(-3.0, 3.0, 25)
    got = gradient(lambda p, t: losses.huber_loss(p, t, delta=1.5), errors, 0.0)
    np.testing.assert_allclose(got, jnp.clip(errors, -1.5, 1.5), rtol=1e-6)


def test_huber_meets_its_neighbours():
    errors = jnp.linspace(-3.0, 3.0, 25)
    np.testing.assert_allclose(losses.huber_loss(errors, 0.0, delta=4.0), losses.squared_error(errors, 0.0) / 2)
    narrow = losses.huber_loss(errors, 0.0, delta=1e-4) / 1e-4
    np.testing.assert_allclose(narrow, losses.absolute_error(errors, 0.0), atol=1e-4)


def test_huber_takes_a_traced_delta():
    got = jax.jit(lambda delta: losses.huber_loss(jnp.array([3.0]), 0.0, delta=delta))(2.0)
    assert got.tolist() == [4.0]


@pytest.mark.parametrize("delta", [0.0, -1.0, np.inf, np.nan, jnp.zeros(())])
def test_huber_refuses_delta(delta, unchecked):
    # Without the check, a delta of 0 or less is a loss without a minimum at the target.
    if delta <= 0:
        assert np.all(optax.huber_loss(jnp.array([1.0, 5.0]), jnp.zeros(2), delta=delta) <= 0)
    with pytest.raises(ValueError, match="huber_loss: expected delta positive and finite"):
        losses.huber_loss(jnp.ones(2), 0.0, delta=delta)


def test_percentage_error_at_zero_targets():
    p, t = jnp.array([0.0, 1e-3, 2.0]), jnp.array([0.0, 0.0, -4.0])
    assert not np.all(np.isfinite(100 * jnp.abs(p - t) / jnp.abs(t)))
    np.testing.assert_allclose(losses.absolute_percentage_error(p, t), [0.0, 1e6, 150.0], rtol=1e-6)
    np.testing.assert_allclose(gradient(losses.absolute_percentage_error, p, t), [0.0, 1e9, 25.0], rtol=1e-6)
    np.testing.assert_allclose(losses.absolute_percentage_error(p, t, eps=0.1), [0.0, 1.0, 150.0], rtol=1e-6)


def test_squared_log_error_below_minus_one():
    p, t = jnp.array([-1.0, -5.0, -0.5, -jnp.inf]), jnp.array([1.0, -1.0, -2.0, -1.0])
    assert not np.any(np.isfinite(jnp.square(jnp.log1p(p) - jnp.log1p(t))))
    got = losses.squared_log_error(p, t, eps=1e-3)
    np.testing.assert_allclose(got, [np.log(2e3) ** 2, 0, np.log(500) ** 2, 0], rtol=1e-4)
    slopes = gradient(lambda p, t: losses.squared_log_error(p, t, eps=1e-3), p, t)
    np.testing.assert_allclose(slopes, [0, 0, 2 * np.log(500) / 0.5, 0], rtol=1e-4)
    assert np.all(np.isfinite(losses.squared_log_error(p, t)))


@pytest.mark.parametrize(("p", "t"), [(1e-6, 3e-6), (1000.0, 1000.1), (1e6, -0.99), (0.3, 0.3000001)])
def test_squared_log_error_keeps_its_digits(p, t):
    p, t = np.float32(p), np.float32(t)
    want = (np.log1p(np.float64(p)) - np.log1p(np.float64(t))) ** 2
    np.testing.assert_allclose(losses.squared_log_error(p, t), want, rtol=1e-6)


def test_logarithms_of_close_values_would_cancel():
    p, t = np.float32(1000.0), np.float32(1000.1)
    want = (np.log1p(np.float64(p)) - np.log1p(np.float64(t))) ** 2
    naive = np.square(np.log(p + np.float32(1)) - np.log(t + np.float32(1)))
    assert abs(naive / want - 1) > 1e-3


@pytest.mark.parametrize(
    ("loss", "eps"),
    [
        (losses.absolute_percentage_error, 0.0),
        (losses.absolute_percentage_error, np.inf),
        (losses.squared_log_error, -1e-7),
        (losses.squared_log_error, 1.0),
    ],
)
def test_floors_are_checked(loss, eps, unchecked):
    with pytest.raises(ValueError, match=f"{loss.__name__}: expected eps"):
        loss(jnp.ones(2), jnp.ones(2), eps=eps)
