"""Losses of scores and logits at the edges: infinite logits, labels that are no class, and ties."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import losses

INF = np.inf
OF_LABELS = losses.softmax_cross_entropy_with_integer_labels
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5)), jnp.float32)
LABELS = np.array([0, 4, 2, 2])


def gradients(loss, predictions, targets):
    """For both arguments, of the sum."""
    return jax.grad(lambda p, t: jnp.sum(loss(p, t)), (0, 1))(predictions, targets)


@pytest.mark.parametrize(
    ("logit", "target", "loss", "slope"),
    [
        (INF, 1.0, 0.0, 0.0),
        (-INF, 0.0, 0.0, 0.0),
        (INF, 0.0, INF, 1.0),
        (-INF, 1.0, INF, -1.0),
        (INF, 0.7, INF, 0.3),
        (-INF, 0.7, INF, -0.7),
        (0.0, 0.3, np.log(2), 0.2),
        (-0.0, 0.3, np.log(2), 0.2),
    ],
)
def test_binary_cross_entropy_of_logits_at_the_edges(logit, target, loss, slope):
    p, t = jnp.array([logit]), jnp.array([target])
    np.testing.assert_allclose(losses.sigmoid_binary_cross_entropy(p, t), [loss], rtol=1e-6)
    for_logit, for_target = gradients(losses.sigmoid_binary_cross_entropy, p, t)
    np.testing.assert_allclose(for_logit, [slope], rtol=1e-6)
    assert not np.isnan(for_target[0])
    if loss == 0:
        assert np.isnan(optax.sigmoid_binary_cross_entropy(p, t)[0])


@pytest.mark.parametrize("size", [1e-30, 20.0, 80.0, 3e38])
def test_binary_cross_entropy_of_logits_loses_no_digits(size):
    p = jnp.array([size, -size], jnp.float32)
    want = np.log1p(np.exp(-np.float64(p[0]))) + np.array([0, size])
    np.testing.assert_allclose(losses.sigmoid_binary_cross_entropy(p, True), want, rtol=3e-7)
    np.testing.assert_allclose(losses.sigmoid_binary_cross_entropy(-p, False), want, rtol=3e-7)


def test_binary_cross_entropy_is_softmax_cross_entropy_of_two_classes():
    x, t = LOGITS[0], jax.nn.sigmoid(LOGITS[1])
    pairs, targets = jnp.stack([jnp.zeros_like(x), x], axis=-1), jnp.stack([1 - t, t], axis=-1)
    want = losses.softmax_cross_entropy(pairs, targets)
    np.testing.assert_allclose(losses.sigmoid_binary_cross_entropy(x, t), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("logits", "target", "loss", "slope"),
    [
        ([1.0, 1.0, -INF], [1.0, 0.0, 0.0], np.log(2), [-0.5, 0.5, 0.0]),
        ([1.0, -INF, -INF], [1.0, 0.0, 0.0], 0.0, [0.0, 0.0, 0.0]),
        ([1.0, 1.0, -INF], [0.0, 0.0, 1.0], INF, [0.5, 0.5, -1.0]),
        ([1.0, INF, 0.0], [0.0, 1.0, 0.0], 0.0, [0.0, 0.0, 0.0]),
        ([1.0, INF, 0.0], [1.0, 0.0, 0.0], INF, [-1.0, 1.0, 0.0]),
        ([INF, INF, 0.0], [1.0, 0.0, 0.0], np.log(2), [-0.5, 0.5, 0.0]),
        ([-INF, -INF, -INF], [1.0, 0.0, 0.0], np.log(3), [-2 / 3, 1 / 3, 1 / 3]),
        ([3e38, -3e38, 0.0], [1.0, 0.0, 0.0], 0.0, [0.0, 0.0, 0.0]),
    ],
)
def test_softmax_cross_entropy_at_infinite_logits(logits, target, loss, slope):
    p, t = jnp.array([logits]), jnp.array([target])
    if np.any(np.isinf(logits)) and np.isfinite(loss):
        assert np.isnan(optax.softmax_cross_entropy(p, t)[0])
    np.testing.assert_allclose(losses.softmax_cross_entropy(p, t), [loss], rtol=1e-6)
    for_logits, for_targets = gradients(losses.softmax_cross_entropy, p, t)
    np.testing.assert_allclose(for_logits, [slope], rtol=1e-6)
    assert not np.any(np.isnan(for_targets))
    _, tangent = jax.jvp(lambda p: losses.softmax_cross_entropy(p, t), (p,), (jnp.ones_like(p),))
    np.testing.assert_allclose(tangent, [0.0], atol=1e-6)

    label = np.argmax(target, keepdims=True)
    np.testing.assert_allclose(OF_LABELS(p, label), [loss], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda p: jnp.sum(OF_LABELS(p, label)))(p), [slope], rtol=1e-6)


def test_softmax_cross_entropy_does_not_notice_a_shift():
    t = jax.nn.one_hot(LABELS, 5)
    want = losses.softmax_cross_entropy(LOGITS, t)
    np.testing.assert_allclose(losses.softmax_cross_entropy(LOGITS + 64, t), want, rtol=1e-4)
    np.testing.assert_allclose(OF_LABELS(LOGITS, LABELS), want, rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradients_of_cross_entropy_are_bounded(scale):
    t = jax.nn.one_hot(LABELS, 5, dtype=LOGITS.dtype)
    for_logits, _ = gradients(losses.softmax_cross_entropy, scale * LOGITS, t)
    want = jax.nn.softmax(scale * LOGITS) - t
    np.testing.assert_allclose(for_logits, want, atol=1e-6)
    assert np.max(np.linalg.norm(for_logits, axis=-1)) <= np.sqrt(2) * (1 + 1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32])
def test_labels_of_any_integer_dtype(dtype):
    logits = jnp.zeros((2, 300)).at[0, 44].set(9.0)
    labels = np.array([44, 7], dtype)
    want = optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(np.int32))
    np.testing.assert_allclose(OF_LABELS(logits, labels), want, atol=1e-6)


@pytest.mark.parametrize("bad", [-1, 5, 2**31 - 1])
def test_labels_that_are_no_class_are_refused(bad, unchecked):
    labels = np.array([0, bad, 2, 2])
    naive = optax.softmax_cross_entropy_with_integer_labels(LOGITS, jnp.asarray(labels))[1]
    last = optax.softmax_cross_entropy_with_integer_labels(LOGITS, jnp.array([0, 4, 2, 2]))[1]
    assert naive == last if bad == -1 else np.isnan(naive)
    for known in (labels, jnp.asarray(labels)):
        with pytest.raises(ValueError, match=rf"labels from 0 to 4; got \[{bad}\]") as error:
            OF_LABELS(LOGITS, known)
        assert f"ignore_index={bad}" in str(error.value)
    with pytest.raises(ValueError, match="labels from 0 to 4"):
        jax.jit(lambda logits: OF_LABELS(logits, labels))(LOGITS)


@pytest.mark.parametrize("bad", [-1, 5])
def test_traced_labels_that_are_no_class_give_nan(bad):
    labels = jnp.array([0, bad, 2, 2])
    value, gradient = jax.jit(lambda x, y: (OF_LABELS(x, y), jax.grad(lambda x: jnp.sum(OF_LABELS(x, y)))(x)))(
        LOGITS, labels
    )
    for rows in (value, gradient.sum(axis=-1)):
        np.testing.assert_array_equal(np.isnan(rows), [False, True, False, False])


@pytest.mark.parametrize("ignored", [-1, -100, 255])
@pytest.mark.parametrize("traced", [False, True])
def test_ignored_labels(ignored, traced):
    labels = jnp.array([0, ignored, 2, ignored])
    logits = LOGITS.at[1].set(jnp.nan)

    def run(logits, labels):
        total = lambda x: jnp.sum(OF_LABELS(x, labels, ignore_index=ignored))  # noqa: E731
        return OF_LABELS(logits, labels, ignore_index=ignored), jax.grad(total)(logits)

    value, gradient = (jax.jit(run) if traced else run)(logits, labels)
    kept = np.array([0, 2])
    np.testing.assert_allclose(value[kept], OF_LABELS(LOGITS[kept], np.array([0, 2])), rtol=1e-6)
    assert value[1] == value[3] == 0
    np.testing.assert_array_equal(gradient[jnp.array([1, 3])], np.zeros((2, 5)))
    assert np.all(np.isfinite(gradient))


def test_masked_rows_may_have_any_label():
    labels = np.array([0, -1, 2, 99])
    rows = labels == np.clip(labels, 0, 4)
    for run in (OF_LABELS, jax.jit(OF_LABELS)):
        value = run(LOGITS, labels, where=rows)
        np.testing.assert_allclose(value[::2], OF_LABELS(LOGITS[::2], labels[::2]), rtol=1e-6)
        assert value[1] == value[3] == 0


def test_masked_classes_equal_slicing_and_a_masked_label_is_impossible():
    classes = np.arange(5) != 1
    logits = LOGITS.at[:, 1].set(jnp.nan)
    want = OF_LABELS(jnp.delete(LOGITS, 1, axis=1), np.array([0, 3, 1, 1]))
    np.testing.assert_allclose(OF_LABELS(logits, LABELS, where=classes[None, :]), want, rtol=1e-6)
    total = lambda x: jnp.sum(OF_LABELS(x, LABELS, where=classes[None, :]))  # noqa: E731
    assert not np.any(jax.grad(total)(logits)[:, 1])
    assert OF_LABELS(logits, np.array([1, 0, 0, 0]), where=classes[None, :])[0] == INF


def test_integer_labels_along_another_axis():
    want = OF_LABELS(LOGITS, LABELS)
    np.testing.assert_allclose(OF_LABELS(LOGITS.T, LABELS, axis=0), want, rtol=1e-6)
    assert OF_LABELS(LOGITS[0], 0).shape == ()
    low = OF_LABELS(LOGITS.astype(jnp.bfloat16), LABELS)
    assert low.dtype == jnp.bfloat16
    assert OF_LABELS(LOGITS.astype(jnp.bfloat16), LABELS, dtype=jnp.float32).dtype == jnp.float32


def test_integer_labels_refuse(unchecked):
    with pytest.raises(ValueError, match=r"labels of shape \(4,\), .* got shape \(4, 1\)"):
        OF_LABELS(LOGITS, LABELS[:, None])
    with pytest.raises(TypeError, match="integer labels; got float32"):
        OF_LABELS(LOGITS, jnp.ones(4, jnp.float32))
    with pytest.raises(TypeError, match="real floating predictions; got int32"):
        OF_LABELS(LOGITS.astype(jnp.int32), LABELS)
    with pytest.raises(ValueError, match="where as a scalar or of rank 2"):
        OF_LABELS(LOGITS, LABELS, where=np.ones((4, 3), bool))
    with pytest.raises(ValueError, match="axis"):
        OF_LABELS(LOGITS, LABELS, axis=2)


def test_hinge_losses_on_the_edge_and_at_infinity():
    p, t = jnp.array([1.0, INF, -INF, -2.0]), jnp.ones(4)
    assert losses.hinge_loss(p, t).tolist() == [0.0, 0.0, INF, 3.0]
    assert losses.squared_hinge_loss(p, t).tolist() == [0.0, 0.0, INF, 9.0]
    assert gradients(losses.hinge_loss, p, t)[0].tolist() == [-0.5, 0.0, -1.0, -1.0]
    assert gradients(losses.squared_hinge_loss, p, t)[0].tolist() == [0.0, 0.0, -INF, -6.0]


@pytest.mark.parametrize("loss", [losses.hinge_loss, losses.squared_hinge_loss])
def test_hinge_losses_refuse_booleans(loss, unchecked):
    for targets in (np.array([True, False]), True):
        with pytest.raises(TypeError, match=f"{loss.__name__}: expected targets -1 and 1"):
            loss(jnp.ones(2), targets)


def test_the_two_categorical_hinges_differ_where_the_others_are_negative():
    keras, crammer_singer = (
        lambda p, t, form=form: losses.categorical_hinge_loss(p, t, form=form) for form in ("keras", "crammer-singer")
    )
    p, t = jnp.array([[0.5, -1.0, -3.0], [0.5, 2.0, -1.0]]), jnp.array([[1, 0, 0], [1, 0, 0]])
    assert keras(p, t).tolist() == [0.5, 2.5]
    assert crammer_singer(p, t).tolist() == [0.0, 2.5]
    np.testing.assert_allclose(crammer_singer(p, t), optax.losses.multiclass_hinge_loss(p, jnp.array([0, 0])))
    slopes = jax.grad(lambda p: jnp.sum(keras(p, t)))(p)
    assert slopes.tolist() == [[-1.0, 0.0, 0.0], [-1.0, 1.0, 0.0]]


@pytest.mark.parametrize("form", ["keras", "crammer-singer"])
def test_categorical_hinge_leaves_out_scores_of_minus_infinity(form):
    p, t = jnp.array([[0.5, 1.0, -INF], [-INF, 1.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert np.isnan((t * p).sum(axis=-1)[0])
    assert losses.categorical_hinge_loss(p, t, form=form).tolist() == [1.5, INF]
    assert np.all(np.isfinite(gradients(lambda p, t: losses.categorical_hinge_loss(p, t, form=form), p, t)[0]))


def test_categorical_hinge_refuses_a_form(unchecked):
    with pytest.raises(ValueError, match="form 'keras' or 'crammer-singer'; got 'hinge'"):
        losses.categorical_hinge_loss(LOGITS, LOGITS, form="hinge")
