"""First-order chains, step by step against Keras (float32), PyTorch and the papers' own recursions (float64)."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import optimizers

STEPS = 12
START = np.array([1.0, -2.0, 0.5, 3.0])
GRADIENTS = np.random.default_rng(0).standard_normal((STEPS, 4)) * np.array([1e-6, 1e-2, 1.0, 1e3])
GRADIENTS[3:5] = 0.0  # decays alone
RATES = np.linspace(0.1, 0.02, STEPS)


def schedule(step):
    return jnp.asarray(RATES)[step]


def trajectory(optimizer, gradients=GRADIENTS):
    params, points = jnp.asarray(START), []
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        points.append(np.asarray(params))
    return np.stack(points)


@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    import keras

    return keras


# optax's Adam raises a Python float to an integer array.
pytestmark = pytest.mark.usefixtures("third_party_model")

KERAS = {
    "sgd": (lambda: optimizers.sgd(schedule), "SGD", {}),
    "momentum": (lambda: optimizers.momentum(schedule, 0.9, scaled_velocity=True), "SGD", {"momentum": 0.9}),
    "nesterov": (
        lambda: optimizers.nesterov(schedule, 0.9, scaled_velocity=True),
        "SGD",
        {"momentum": 0.9, "nesterov": True},
    ),
    "adagrad": (lambda: optimizers.adagrad(schedule), "Adagrad", {}),
    "adadelta": (lambda: optimizers.adadelta(schedule, 0.95, 1e-7), "Adadelta", {}),
    "rmsprop": (lambda: optimizers.rmsprop(schedule, 0.9, 1e-7), "RMSprop", {}),
    "rmsprop with momentum": (
        lambda: optimizers.rmsprop(schedule, 0.9, 1e-7, momentum=0.8),
        "RMSprop",
        {"momentum": 0.8},
    ),
    "rmsprop centered": (
        lambda: optimizers.rmsprop(schedule, 0.9, 1e-7, centered=True),
        "RMSprop",
        {"centered": True},
    ),
}


@pytest.mark.parametrize(("ours", "name", "options"), KERAS.values(), ids=KERAS)
def test_equals_keras_step_by_step(ours, name, options, keras, x64):
    variable = keras.Variable(START)
    peer = getattr(keras.optimizers, name)(learning_rate=0.1, **options)
    peer.build([variable])
    want = []
    for gradient, rate in zip(GRADIENTS, RATES, strict=True):
        peer.update_step(np.asarray(gradient), variable, np.asarray(rate))
        want.append(variable.value.copy())
    np.testing.assert_allclose(trajectory(ours()), want, rtol=1e-4, atol=1e-5)


TORCH = {
    "sgd": (lambda: optimizers.sgd(schedule), "SGD", {}),
    "momentum": (lambda: optimizers.momentum(schedule, 0.9), "SGD", {"momentum": 0.9}),
    "nesterov": (lambda: optimizers.nesterov(schedule, 0.9), "SGD", {"momentum": 0.9, "nesterov": True}),
    "adagrad": (lambda: optimizers.adagrad(schedule, 0.0, 1e-10, eps_in_sqrt=False), "Adagrad", {}),
    "adadelta": (lambda: optimizers.adadelta(schedule), "Adadelta", {}),
    "rmsprop": (lambda: optimizers.rmsprop(schedule, 0.99, eps_in_sqrt=False), "RMSprop", {}),
    "rmsprop centered": (
        lambda: optimizers.rmsprop(schedule, 0.99, eps_in_sqrt=False, centered=True),
        "RMSprop",
        {"centered": True},
    ),
    "adam": (lambda: optimizers.adam(schedule), "Adam", {}),
}


@pytest.mark.parametrize(("ours", "name", "options"), TORCH.values(), ids=TORCH)
def test_equals_torch_step_by_step(ours, name, options, x64):
    torch = pytest.importorskip("torch")
    param = torch.tensor(START, requires_grad=True)
    peer = getattr(torch.optim, name)([param], lr=0.1, **options)
    want = []
    for gradient, rate in zip(GRADIENTS, RATES, strict=True):
        peer.param_groups[0]["lr"] = float(rate)
        param.grad = torch.tensor(gradient)
        peer.step()
        want.append(param.detach().numpy().copy())
    np.testing.assert_allclose(trajectory(ours()), want, rtol=1e-12, atol=1e-14)


def test_averaged_momentum_is_torch_with_dampening_after_its_first_step(x64):
    velocity, point, want = np.zeros(4), START, []
    for gradient, rate in zip(GRADIENTS, RATES, strict=True):
        velocity = 0.9 * velocity + 0.1 * gradient
        point = point - rate * velocity
        want.append(point)
    got = trajectory(optimizers.momentum(schedule, 0.9, averaged=True))
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_adagrad_in_the_papers_form(x64):
    squares = np.cumsum(GRADIENTS**2, axis=0)
    want = START - np.cumsum(RATES[:, None] * GRADIENTS / (np.sqrt(squares) + 1e-3), axis=0)
    got = trajectory(optimizers.adagrad(schedule, 0.0, 1e-3, eps_in_sqrt=False))
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert not np.allclose(trajectory(optimizers.adagrad(schedule, 0.0, 1e-3)), want, rtol=1e-3)


def test_adam_in_the_papers_form(x64):
    mean, square, point, want = np.zeros(4), np.zeros(4), START, []
    for step, (gradient, rate) in enumerate(zip(GRADIENTS, RATES, strict=True), 1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        point = point - rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        want.append(point)
    np.testing.assert_allclose(trajectory(optimizers.adam(schedule)), want, rtol=1e-12)


def test_keras_adam_is_a_scaled_eps_here(keras, x64):
    """The difference that the docstring states, on the first step."""
    variable = keras.Variable(START)
    peer = keras.optimizers.Adam(learning_rate=0.1, epsilon=1e-3)
    peer.build([variable])
    peer.update_step(np.asarray(GRADIENTS[0]), variable, np.asarray(0.1))
    got = trajectory(optimizers.adam(0.1, eps=1e-3 / np.sqrt(1 - 0.999)), GRADIENTS[:1])[0]
    np.testing.assert_allclose(got, variable.value, rtol=1e-5)


SAME_AS_OPTAX = {
    "sgd": (optimizers.sgd(0.1), optax.sgd(0.1)),
    "momentum": (optimizers.momentum(0.1, 0.9), optax.sgd(0.1, 0.9)),
    "nesterov": (optimizers.nesterov(0.1, 0.9), optax.sgd(0.1, 0.9, nesterov=True)),
    "adagrad": (optimizers.adagrad(1.0), optax.adagrad(1.0)),
    "adadelta": (optimizers.adadelta(10.0), optax.adadelta(10.0)),
    "rmsprop": (optimizers.rmsprop(0.003), optax.rmsprop(0.003)),
    "adam": (optimizers.adam(0.003), optax.adam(0.003)),
    "nadam": (optimizers.adam(0.003, nesterov=True), optax.nadam(0.003)),
}


@pytest.mark.parametrize(("ours", "theirs"), SAME_AS_OPTAX.values(), ids=SAME_AS_OPTAX)
def test_equals_optax_where_the_name_is_the_same(ours, theirs):
    """On optax's documented example: five steps down sum(x²) from (1, 2, 3)."""

    def descend(optimizer):
        params = jnp.array([1.0, 2.0, 3.0])
        state, losses = optimizer.init(params), []
        for _ in range(5):
            updates, state = optimizer.update(2 * params, state, params)
            params = optax.apply_updates(params, updates)
            losses.append(jnp.sum(params**2).item())
        return losses

    assert descend(ours) == descend(theirs)


def test_scaled_velocity_differs_only_where_the_learning_rate_changes(x64):
    constant = [trajectory(optimizers.momentum(0.1, 0.9, scaled_velocity=scaled)) for scaled in (False, True)]
    np.testing.assert_allclose(*constant, rtol=1e-12)
    falling = [trajectory(optimizers.momentum(schedule, 0.9, scaled_velocity=scaled)) for scaled in (False, True)]
    assert not np.allclose(*falling, rtol=1e-3)


def test_links_are_found_by_name():
    params = {"w": jnp.zeros(3)}
    assert list(optimizers.momentum(0.1).init(params)) == ["momentum", "learning_rate"]
    assert list(optimizers.momentum(0.1, scaled_velocity=True).init(params)) == ["learning_rate", "momentum"]
    state = optimizers.adam(0.1).init(params)
    assert optax.tree_utils.tree_get(state, "nu")["w"].shape == (3,)


def test_settings_may_be_hyperparameters_in_the_state():
    params = jnp.ones(2)
    optimizer = optax.inject_hyperparams(optimizers.rmsprop)(learning_rate=0.1, decay=0.5, eps=1e-4)
    state = optimizer.init(params)
    state.hyperparams["learning_rate"] = jnp.float32(0.2)
    updates, _ = jax.jit(optimizer.update)(params, state)
    want, _ = optimizers.rmsprop(0.2, 0.5, 1e-4).update(params, optimizers.rmsprop(0.2).init(params))
    np.testing.assert_allclose(updates, want, rtol=1e-5)


@pytest.mark.parametrize("eps_in_sqrt", [True, False])
def test_adagrad_leaves_an_entry_without_gradient_alone(eps_in_sqrt):
    optimizer = optimizers.adagrad(1.0, 0.0, 0.0, eps_in_sqrt=eps_in_sqrt)
    updates, state = optimizer.update(jnp.array([0.0, 2.0]), optimizer.init(jnp.zeros(2)))
    assert updates.tolist() == [0.0, -1.0]
    again, _ = optimizer.update(jnp.array([1e-30, 2.0]), state)
    assert np.isfinite(again).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("eps_in_sqrt", [True, False])
def test_adagrad_keeps_the_type_of_the_gradient(dtype, eps_in_sqrt):
    optimizer = optimizers.adagrad(1.0, eps_in_sqrt=eps_in_sqrt)
    params = jnp.ones(2, dtype)
    updates, _ = optimizer.update(params, optimizer.init(params))
    assert updates.dtype == dtype


BAD = {
    "a negative rate": (lambda: optimizers.sgd(-0.1), ValueError, "learning_rate in .0, inf."),
    "a rate that is no number": (lambda: optimizers.adam(float("nan")), ValueError, "learning_rate=nan"),
    "a rate of another type": (lambda: optimizers.adam("0.1"), TypeError, "or a schedule"),
    "a decay of 1": (lambda: optimizers.momentum(0.1, 1.0), ValueError, r"decay in \[0, 1\)"),
    "an eps of 0": (lambda: optimizers.adadelta(eps=0.0), ValueError, r"eps in \(0"),
    "nesterov without momentum": (lambda: optimizers.rmsprop(0.1, nesterov=True), ValueError, "momentum=0.9"),
    "a negative accumulator": (lambda: optimizers.adagrad(0.1, -1.0), ValueError, "initial_accumulator_value"),
    "an argument for a percentage": (lambda: optimizers.adam(0.1, b2=99.9), ValueError, "b2=99.9"),
}


@pytest.mark.parametrize(("call", "error", "says"), BAD.values(), ids=BAD)
def test_refuses(call, error, says, unchecked):
    with pytest.raises(error, match=says):
        call()
