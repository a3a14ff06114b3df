"""What holds for every loss: oracles, derivatives, masks, axes, dtypes, transformations, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

from jaxgrad import losses

ROWS, CLASSES = 3, 4
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, ROWS, CLASSES))
SIGNS = np.where(Y > 0, 1.0, -1.0)
LABELS = np.array([2, 0, 3])
ONE_HOT = np.eye(CLASSES)[LABELS]
P, Q = special.softmax(X, axis=-1), special.softmax(Y, axis=-1)
COUNTS = np.array([[0.0, 1.0, 2.0, 5.0], [3.0, 0.0, 1.0, 1.0], [7.0, 2.0, 0.0, 4.0]])


class Case(NamedTuple):
    """A loss at a point where it is smooth, and what it should give there, computed another way in float64."""

    loss: Callable[..., jax.Array]
    predictions: np.ndarray
    targets: np.ndarray
    want: np.ndarray


def crammer_singer(scores, labels):
    others = [np.delete(row, label).max() for row, label in zip(scores, labels, strict=True)]
    return np.maximum(0, 1 + np.array(others) - scores[np.arange(len(labels)), labels])


def cross_entropy(p, t):
    return -(special.xlogy(t, p) + special.xlog1py(1 - t, -p))


ELEMENTWISE = {
    "squared_error": Case(losses.squared_error, X, Y, (X - Y) ** 2),
    "absolute_error": Case(losses.absolute_error, X, Y, np.abs(X - Y)),
    "absolute_percentage_error": Case(losses.absolute_percentage_error, X, Y, 100 * np.abs(X / Y - 1)),
    "squared_log_error": Case(losses.squared_log_error, P, COUNTS, np.log((1 + P) / (1 + COUNTS)) ** 2),
    "huber_loss": Case(losses.huber_loss, X, Y, special.huber(1.0, X - Y)),
    "huber_loss, delta 0.3": Case(partial(losses.huber_loss, delta=0.3), X, Y, special.huber(0.3, X - Y)),
    "log_cosh": Case(losses.log_cosh, X, Y, np.log(np.cosh(X - Y))),
    "hinge_loss": Case(losses.hinge_loss, X, SIGNS, np.where(X * SIGNS < 1, 1 - X * SIGNS, 0)),
    "squared_hinge_loss": Case(losses.squared_hinge_loss, X, SIGNS, np.where(X * SIGNS < 1, 1 - X * SIGNS, 0) ** 2),
    "sigmoid_binary_cross_entropy": Case(losses.sigmoid_binary_cross_entropy, X, Q, cross_entropy(special.expit(X), Q)),
    "binary_cross_entropy": Case(losses.binary_cross_entropy, P, Q, cross_entropy(P, Q)),
    "poisson_loss": Case(losses.poisson_loss, X, COUNTS, np.exp(X) - COUNTS * X),
    "poisson_loss, rates": Case(partial(losses.poisson_loss, log_input=False), P, COUNTS, P - COUNTS * np.log(P)),
}
ROWWISE = {
    "categorical_hinge_loss": Case(
        losses.categorical_hinge_loss, X, ONE_HOT, crammer_singer(np.where(ONE_HOT, X, np.maximum(X, 0)), LABELS)
    ),
    "categorical_hinge_loss, crammer-singer": Case(
        partial(losses.categorical_hinge_loss, form="crammer-singer"), X, ONE_HOT, crammer_singer(X, LABELS)
    ),
    "softmax_cross_entropy": Case(losses.softmax_cross_entropy, X, Q, -np.sum(Q * special.log_softmax(X, -1), -1)),
    "categorical_cross_entropy": Case(losses.categorical_cross_entropy, P, Q, -np.sum(special.xlogy(Q, P), -1)),
    "kl_divergence": Case(losses.kl_divergence, np.log(P), Q, np.sum(special.rel_entr(Q, P), -1)),
    "cosine_proximity": Case(
        losses.cosine_proximity, X, Y, -np.sum(X * Y, -1) / np.sqrt(np.sum(X * X, -1) * np.sum(Y * Y, -1))
    ),
}
EVERY = ELEMENTWISE | ROWWISE
LABELLED = Case(
    losses.softmax_cross_entropy_with_integer_labels, X, LABELS, -special.log_softmax(X, -1)[np.arange(ROWS), LABELS]
)
HIDDEN = np.array([[0.0, np.nan, np.inf, 0.0], [np.nan, -np.inf, np.inf, np.nan], [0.0, -np.inf, np.nan, 0.0]])

each = pytest.mark.parametrize("case", EVERY.values(), ids=EVERY)
each_elementwise = pytest.mark.parametrize("case", ELEMENTWISE.values(), ids=ELEMENTWISE)
each_rowwise = pytest.mark.parametrize("case", ROWWISE.values(), ids=ROWWISE)


def single(*arrays: Any) -> list[jax.Array]:
    return [jnp.asarray(array, jnp.float32) for array in arrays]


@each
def test_equals_the_oracle(case, x64):
    got = case.loss(case.predictions, case.targets)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, case.want, rtol=1e-12, atol=1e-15)


@each
def test_equals_the_oracle_in_single_precision(case):
    got = case.loss(*single(case.predictions, case.targets))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, case.want, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("case", [*EVERY.values(), LABELLED], ids=[*EVERY, "integer labels"])
def test_derivatives_equal_central_differences(case, x64):
    direction, weights = RNG.normal(size=(2, *X.shape)), RNG.normal(size=case.want.shape)

    def value(step):
        targets = case.targets if case is LABELLED else case.targets + step * direction[1]
        return jnp.sum(weights * case.loss(case.predictions + step * direction[0], targets))

    slope = jax.grad(value)
    first = jax.jit(lambda step: (value(step), slope(step), jax.jvp(value, (step,), (1.0,))[1], jax.grad(slope)(step)))
    (low, low_slope, *_), (_, backward, forward, second), (high, high_slope, *_) = map(first, (-1e-5, 0.0, 1e-5))
    np.testing.assert_allclose(backward, (high - low) / 2e-5, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(forward, backward, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(second, (high_slope - low_slope) / 2e-5, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("mean_squared_error", "squared_error"),
        ("mean_absolute_error", "absolute_error"),
        ("mean_absolute_percentage_error", "absolute_percentage_error"),
        ("mean_squared_logarithmic_error", "squared_log_error"),
        ("huber", "huber_loss"),
        ("log_cosh", "log_cosh"),
        ("hinge", "hinge_loss"),
        ("squared_hinge", "squared_hinge_loss"),
        ("categorical_hinge", "categorical_hinge_loss"),
        ("categorical_crossentropy", "categorical_cross_entropy"),
        ("binary_crossentropy", "binary_cross_entropy"),
        ("poisson", "poisson_loss, rates"),
        ("cosine_similarity", "cosine_proximity"),
    ],
)
def test_equals_keras(name, case):
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    keras = pytest.importorskip("keras")
    loss, predictions, targets, _ = EVERY[case]
    got = np.asarray(loss(*single(predictions, targets)))
    want = getattr(keras.losses, name)(targets.astype("float32"), predictions.astype("float32"))
    np.testing.assert_allclose(got.mean(axis=-1) if got.ndim == 2 else got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "case", "options"),
    [
        ("mse_loss", "squared_error", {}),
        ("l1_loss", "absolute_error", {}),
        ("huber_loss", "huber_loss, delta 0.3", {"delta": 0.3}),
        ("binary_cross_entropy_with_logits", "sigmoid_binary_cross_entropy", {}),
        ("binary_cross_entropy", "binary_cross_entropy", {}),
        ("cross_entropy", "softmax_cross_entropy", {}),
        ("poisson_nll_loss", "poisson_loss", {}),
        ("poisson_nll_loss", "poisson_loss, rates", {"log_input": False, "eps": 0.0}),
    ],
)
def test_equals_torch(name, case, options, x64):
    functional = pytest.importorskip("torch").nn.functional
    tensor = pytest.importorskip("torch").from_numpy
    loss, predictions, targets, _ = EVERY[case]
    want = getattr(functional, name)(tensor(predictions), tensor(targets), reduction="none", **options)
    np.testing.assert_allclose(loss(predictions, targets), want.numpy(), rtol=1e-10)


@pytest.mark.parametrize(
    "name",
    [
        "squared_error",
        "huber_loss",
        "log_cosh",
        "hinge_loss",
        "sigmoid_binary_cross_entropy",
        "softmax_cross_entropy",
        "kl_divergence",
    ],
)
def test_equals_optax(name):
    case = EVERY[name]
    arguments = single(case.predictions, case.targets)
    np.testing.assert_allclose(case.loss(*arguments), getattr(optax, name)(*arguments), rtol=1e-4, atol=1e-6)


@each_elementwise
def test_masked_entries_have_value_and_gradients_zero(case):
    mask = HIDDEN == 0
    p, t = single(*(np.where(mask, array, HIDDEN) for array in (case.predictions, case.targets)))
    value, gradients = masked_value_and_gradients(case.loss, mask)(p, t)
    np.testing.assert_allclose(value, np.where(mask, case.want, 0), rtol=2e-6, atol=2e-7)
    for gradient in gradients:
        assert np.all(np.isfinite(gradient))
        assert np.all(np.asarray(gradient)[~mask] == 0)


@each_rowwise
def test_masked_entries_of_rows_equal_slicing(case):
    mask = HIDDEN == 0
    p, t = single(*(np.where(mask, array, HIDDEN) for array in (case.predictions, case.targets)))
    value, gradients = masked_value_and_gradients(case.loss, mask)(p, t)
    kept = single(case.predictions[::2, ::3], case.targets[::2, ::3])
    want, want_gradients = masked_value_and_gradients(case.loss, True)(*kept)
    np.testing.assert_allclose(value, [want[0], 0, want[1]], rtol=1e-6, atol=1e-7)
    for gradient, want in zip(gradients, want_gradients, strict=True):
        np.testing.assert_allclose(gradient[::2, ::3], want, rtol=1e-5, atol=1e-6)
        assert np.all(np.asarray(gradient)[~mask] == 0)


def masked_value_and_gradients(loss, mask):
    def total(p, t):
        value = loss(p, t, where=mask)
        return jnp.sum(value), value

    def run(p, t):
        (_, value), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(p, t)
        return value, gradients

    return run


def test_a_mask_after_the_formula_would_leak():
    p, t, mask = jnp.array([1.0, jnp.nan]), jnp.array([0.0, 0.0]), jnp.array([True, False])
    naive = jax.grad(lambda p: jnp.sum(jnp.where(mask, jnp.square(p - t), 0)))(p)
    assert np.isnan(naive[1])
    assert jax.grad(lambda p: jnp.sum(losses.squared_error(p, t, where=mask)))(p).tolist() == [2.0, 0.0]


@each_rowwise
@pytest.mark.parametrize("mask", [np.array([True, False, True]), False, np.array([[True], [False], [True]])], ids=str)
def test_a_mask_of_rows(case, mask):
    got = case.loss(*single(case.predictions, case.targets), where=mask)
    np.testing.assert_allclose(got, np.where(np.ravel(mask), case.want, 0), rtol=2e-6, atol=2e-7)


@each_rowwise
def test_axis_equals_moveaxis(case):
    p, t = single(case.predictions, case.targets)
    mask = jnp.arange(CLASSES) != 1
    want = case.loss(p, t, where=mask[None, :])
    np.testing.assert_allclose(case.loss(p.T, t.T, axis=0, where=mask[:, None]), want, rtol=1e-6)
    np.testing.assert_allclose(
        case.loss(p.T[..., None], t.T[..., None], axis=-3, where=mask[:, None, None])[:, 0], want
    )


@each
def test_jit_and_vmap_change_nothing(case):
    p, t = single(case.predictions, case.targets)
    np.testing.assert_allclose(jax.jit(jax.vmap(case.loss))(p, t), case.loss(p, t), rtol=1e-6, atol=1e-7)


@each
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_computed_in_float32(case, dtype):
    p, t = (jnp.asarray(array, dtype) for array in (case.predictions, case.targets))
    want = case.loss(p.astype(jnp.float32), t.astype(jnp.float32))
    np.testing.assert_array_equal(case.loss(p, t), want.astype(dtype))
    np.testing.assert_array_equal(case.loss(p, t, dtype=jnp.float32), want)
    assert jax.eval_shape(jax.grad(lambda p: jnp.sum(case.loss(p, t))), p).dtype == dtype


def test_formulas_in_bfloat16_would_lose_digits():
    p, t = jnp.asarray(X, jnp.bfloat16), jnp.asarray(Y, jnp.bfloat16)
    want = np.asarray(losses.log_cosh(p.astype(jnp.float32), t.astype(jnp.float32)), np.float64)
    error = lambda got: np.max(np.abs(np.asarray(got, np.float64) / want - 1))  # noqa: E731
    assert error(losses.log_cosh(p, t)) <= 2.0**-8
    assert error(optax.log_cosh(p, t)) > 4 * 2.0**-8


@each
def test_float32_stays_float32_when_double_precision_is_on(case, x64):
    p, t = single(case.predictions, case.targets)
    assert case.loss(p, t).dtype == jnp.float32
    assert case.loss(p, t, dtype=jnp.float64).dtype == jnp.float64


@each_elementwise
def test_scalars_stand_for_every_entry(case):
    p, t = single(case.predictions, case.targets)
    for scalar in (t[0, 0], float(t[0, 0])):
        np.testing.assert_allclose(case.loss(p, scalar), case.loss(p, jnp.full_like(p, t[0, 0])), rtol=1e-6)
    for scalar in (p[0, 0], float(p[0, 0])):
        got = case.loss(scalar, t)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, case.loss(jnp.full_like(t, p[0, 0]), t), rtol=1e-6)
    assert case.loss(0.5, 1).shape == ()


def test_a_traced_python_scalar_does_not_widen(x64):
    assert jax.jit(losses.squared_error)(0.5, jnp.ones(2, jnp.float32)).dtype == jnp.float32


@each_elementwise
def test_a_column_against_a_vector_is_refused(case, unchecked):
    vector, column = single(np.ones(3), np.ones((3, 1)))
    assert np.subtract(vector, column).shape == (3, 3)
    for p, t in ((vector, column), (column, vector)):
        with pytest.raises(ValueError, match=r"\(3(, 1|,)\) and \(3(, 1|,)\)") as error:
            case.loss(p, t)
        assert f"To fix it: reshape one of them: targets.reshape({p.shape})" in str(error.value)


@each
def test_bad_input_is_refused(case, unchecked):
    p, t = single(case.predictions, case.targets)
    name = getattr(case.loss, "func", case.loss).__name__
    with pytest.raises(ValueError, match=rf"{name}: expected .* same shape; got \(3, 4\) and \(3, 3\)"):
        case.loss(p, t[:, :3])
    with pytest.raises(TypeError, match=f"{name}: expected real floating predictions; got int32"):
        case.loss(jnp.ones((3, 4), jnp.int32), t)
    with pytest.raises(TypeError, match=f"{name}: expected real targets; got complex64"):
        case.loss(p, t.astype(jnp.complex64))
    with pytest.raises(TypeError, match=f"{name}: expected predictions as an array or a number; got a list"):
        case.loss([1.0], t)
    with pytest.raises(TypeError, match=f"{name}: expected a boolean mask where; got float32"):
        case.loss(p, t, where=jnp.ones((3, 4), jnp.float32))
    for shape in ((4,), (3, 2), (2, 4), (1, 3, 4)):
        with pytest.raises(ValueError, match=f"{name}: expected where as a scalar or of rank"):
            case.loss(p, t, where=jnp.ones(shape, bool))
    with pytest.raises(TypeError, match=f"{name}: expected a real floating dtype; got int32"):
        case.loss(p, t, dtype=jnp.int32)
    with pytest.raises(TypeError, match="positional"):
        case.loss(p, t, None)


@each_rowwise
def test_bad_rows_are_refused(case, unchecked):
    p, t = single(case.predictions, case.targets)
    with pytest.raises(ValueError, match="axis"):
        case.loss(p, t, axis=2)
    with pytest.raises(TypeError, match="axis as one integer"):
        case.loss(p, t, axis=(0, 1))
    with pytest.raises(ValueError, match="at least one entry"):
        case.loss(p[:, :0], t[:, :0])
    with pytest.raises(ValueError, match="at least one row"):
        case.loss(p[0, 0], t[0, 0])
    with pytest.raises(ValueError, match="one_hot"):
        case.loss(p, t[:, 0])
