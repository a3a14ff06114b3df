"""The mean: weights, masks, axes, empty masks, what does not count, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import losses

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(3, 4, 2))
WEIGHTS = RNG.uniform(0, 2, size=(3, 4, 2))
MASK = RNG.uniform(size=(3, 4, 2)) < 0.6
MASK[1] = False


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (1, 2), ()])
@pytest.mark.parametrize("where", [None, MASK, MASK[:, :1, :1], True], ids=["all", "mask", "some", "scalar"])
@pytest.mark.parametrize("weights", [None, WEIGHTS, WEIGHTS[:1], 3], ids=["ones", "weights", "shared", "scalar"])
def test_equals_numpy(axis, where, weights, x64):
    full = np.broadcast_to(True if where is None else where, VALUES.shape)
    factors = full * np.broadcast_to(1.0 if weights is None else weights, VALUES.shape)
    axes = tuple(range(3)) if axis is None else axis
    total = factors.sum(axis=axes)
    want = np.where(total > 0, (factors * VALUES).sum(axis=axes) / np.where(total > 0, total, 1), 0)
    np.testing.assert_allclose(losses.reduce(VALUES, where=where, weights=weights, axis=axis), want, rtol=1e-12)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_gradient_is_the_weights_over_their_sum(weights, x64):
    slopes = jax.grad(lambda v: losses.reduce(v, where=MASK, weights=weights))(jnp.asarray(VALUES))
    factors = MASK * (1.0 if weights is None else weights)
    np.testing.assert_allclose(slopes, factors / factors.sum(), rtol=1e-12)


def test_gradient_for_the_weights(x64):
    weights = np.array([0.0, 1.0, 3.0])
    values = np.array([5.0, 1.0, 2.0])
    slopes = jax.grad(lambda w: losses.reduce(values, weights=w))(jnp.asarray(weights))
    np.testing.assert_allclose(slopes, (values - 1.75) / 4, rtol=1e-12)


@pytest.mark.parametrize("hidden", [np.nan, np.inf])
@pytest.mark.parametrize("how", ["where", "weights"])
def test_what_does_not_count_does_not_leak(hidden, how):
    values, counts = jnp.array([1.0, hidden, 5.0]), np.array([True, False, True])
    option = {"where": counts} if how == "where" else {"weights": counts.astype(np.float32)}
    value, slopes = jax.value_and_grad(lambda v: losses.reduce(v, **option))(values)
    assert value == 3
    assert slopes.tolist() == [0.5, 0.0, 0.5]
    assert not np.isfinite(jnp.sum(values * jnp.where(counts, 1.0, 0.0)))


def test_a_mask_hides_a_nan_of_the_loss_too():
    p, t, mask = jnp.array([1.0, jnp.nan]), jnp.zeros(2), np.array([True, False])
    total = lambda p: losses.reduce(losses.squared_error(p, t, where=mask), where=mask)  # noqa: E731
    assert jax.grad(total)(p).tolist() == [2.0, 0.0]


@pytest.mark.parametrize("option", [{"where": False}, {"where": np.zeros(2, bool)}, {"weights": 0.0}])
def test_where_nothing_counts_the_mean_is_zero(option):
    values = jnp.array([1.0, 2.0])
    assert np.isnan(jnp.sum(jnp.zeros(2)) / jnp.sum(jnp.zeros(2)))
    for run in (jax.value_and_grad, lambda f: jax.jit(jax.value_and_grad(f))):
        value, slopes = run(lambda v: losses.reduce(v, **option))(values)
        assert value == 0
        assert slopes.tolist() == [0.0, 0.0]


def test_an_empty_array_has_the_mean_zero():
    assert losses.reduce(jnp.zeros((0, 3))) == 0
    assert losses.reduce(jnp.zeros((0, 3)), axis=0).tolist() == [0.0] * 3
    assert losses.reduce(jnp.zeros((0, 3)), where=jnp.zeros((0, 3), bool)) == 0


def test_low_precision_is_summed_in_float32():
    values = jnp.full(2**12, 1.0, jnp.bfloat16).at[0].set(3.0)
    running = jnp.bfloat16(0)
    for _ in range(300):
        running = running + jnp.bfloat16(1)
    assert running == 256
    got = losses.reduce(values, where=jnp.ones(2**12, bool))
    assert got == 1
    assert got.dtype == jnp.bfloat16
    assert losses.reduce(values.astype(jnp.float32)) > 1


def test_float32_stays_float32_when_double_precision_is_on(x64):
    values = jnp.ones(3, jnp.float32)
    for got in (losses.reduce(values), losses.reduce(values, weights=2.0), losses.reduce(values, weights=np.ones(3))):
        assert got.dtype == jnp.float32


def test_a_mean_over_a_batch_equals_vmap():
    values = jnp.asarray(VALUES, jnp.float32)
    reduce = lambda v, m: losses.reduce(v, where=m)  # noqa: E731
    want = losses.reduce(values, where=MASK, axis=(1, 2))
    np.testing.assert_allclose(jax.jit(jax.vmap(reduce))(values, MASK), want, rtol=1e-6)


def test_the_mean_over_labels_that_are_not_ignored():
    logits, labels = jnp.asarray(VALUES[0], jnp.float32), np.array([0, -1, 1, -1])
    loss = losses.softmax_cross_entropy_with_integer_labels(logits, labels, ignore_index=-1)
    want = losses.softmax_cross_entropy_with_integer_labels(logits[::2], labels[::2]).mean()
    np.testing.assert_allclose(losses.reduce(loss, where=labels != -1), want, rtol=1e-6)
    assert abs(loss.mean() / want - 1) > 0.4


@pytest.mark.parametrize("name", ["where", "weights"])
@pytest.mark.parametrize(
    ("values", "shape"),
    [((3,), (3, 1)), ((3, 1), (3,)), ((3, 1), (3, 3)), ((3, 4), (4,)), ((3, 4), (2, 4)), ((), (3,))],
)
def test_shapes_that_would_broadcast_are_refused(name, values, shape, unchecked):
    option = {name: jnp.ones(shape, bool if name == "where" else jnp.float32)}
    with pytest.raises(ValueError, match=f"reduce: expected {name} as a scalar or of rank {len(values)}"):
        losses.reduce(jnp.ones(values), **option)


def test_refuses_bad_input(unchecked):
    values = jnp.ones((2, 3))
    with pytest.raises(TypeError, match="reduce: expected real floating values; got int32"):
        losses.reduce(values.astype(jnp.int32))
    with pytest.raises(TypeError, match="reduce: expected a boolean mask where; got float32"):
        losses.reduce(values, where=jnp.ones((2, 3), jnp.float32))
    with pytest.raises(TypeError, match="reduce: expected real weights; got complex64"):
        losses.reduce(values, weights=jnp.ones((2, 3), jnp.complex64))
    for axis in (2, -3, (0, 0), (0, -2)):
        with pytest.raises(ValueError, match="reduce: expected different axes of values"):
            losses.reduce(values, axis=axis)
    with pytest.raises(TypeError, match="reduce: expected axis as an integer"):
        losses.reduce(values, axis=0.5)
    with pytest.raises(ValueError, match=r"reduce: expected weights of 0 or more; got -1\.0"):
        losses.reduce(values, weights=jnp.array([[1.0], [-1.0]]))


def test_a_negative_weight_that_is_masked_does_not_count():
    values, weights = jnp.array([1.0, 2.0]), np.array([1.0, -1.0], np.float32)
    assert losses.reduce(values, weights=weights, where=np.array([True, False])) == 1
