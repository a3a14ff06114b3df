"""Networks with one thing changed, against the same network written by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgrad
from jaxgrad.tracing import _substitute

KEYS = jax.random.split(jax.random.key(3), 8)
BATCH, WIDTH = 4, 6
WEIGHTS = [jax.random.normal(key, (WIDTH, WIDTH)) for key in KEYS[:4]]
X = jax.random.normal(KEYS[5], (BATCH, WIDTH))


def forward(weights, x, between=lambda h: h):
    for weight in weights[:-1]:
        x = between(jnp.tanh(x @ weight))
    return jnp.mean(jnp.square(x @ weights[-1]))


@pytest.fixture(scope="module")
def network():
    return jaxgrad.trace(forward, WEIGHTS, X)


def test_normalized_cuts_are_a_standardization_between_the_blocks(network):
    changed = _substitute.normalize_cuts(network)

    def normalize(h):
        return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)

    np.testing.assert_allclose(changed(WEIGHTS, X), forward(WEIGHTS, X, normalize), rtol=1e-5)


def test_dropped_block_is_the_identity(network):
    alike = _substitute.droppable_blocks(network)
    assert alike == [0, 1, 2, 3]
    changed = _substitute.drop_blocks(network, [1])
    np.testing.assert_allclose(changed(WEIGHTS, X), forward([WEIGHTS[0], *WEIGHTS[2:]], X), rtol=1e-6)
    assert changed.layers == network.layers


def test_replaced_loss_is_computed_from_the_logits():
    labels = jnp.array([0, 2, 1, 5])

    def loss_fn(weights, x, labels, on=jax.nn.softmax):
        logits = jnp.tanh(x @ weights[0]) @ weights[1]
        return optax.softmax_cross_entropy_with_integer_labels(on(logits), labels).mean()

    network = jaxgrad.trace(loss_fn, WEIGHTS[:2], X, labels)
    output = network.sites[-1].equation.outputs[0]
    position = len(network.signature.avals) - 1

    def loss(logits, labels):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    changed = _substitute.replace_loss(network, (output, position), loss)
    expected = loss_fn(WEIGHTS[:2], X, labels, on=lambda logits: logits)
    np.testing.assert_allclose(changed(WEIGHTS[:2], X, labels), expected, rtol=1e-6)
    assert float(expected) != pytest.approx(float(network(WEIGHTS[:2], X, labels)))


def test_guarded_operation_gets_another_operand():
    def loss_fn(weight, x):
        return jnp.mean(jnp.log(jax.nn.relu(x @ weight)))

    network = jaxgrad.trace(loss_fn, WEIGHTS[0], X)
    (log,) = [equation for equation in network.program.equations if equation.operation == "log"]
    changed = _substitute.guard_operation(network, (log.outputs[0],), lambda h: h + 1.0, 0)
    expected = jnp.mean(jnp.log(jax.nn.relu(X @ WEIGHTS[0]) + 1.0))
    np.testing.assert_allclose(changed(WEIGHTS[0], X), expected, rtol=1e-6)


def lstm(params, xs, forget=0.0):
    def step(carry, x):
        cell, hidden = carry
        gates = x @ params["input"] + hidden @ params["recurrent"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(f + forget) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (cell, jax.nn.sigmoid(o) * jnp.tanh(cell)), None

    zero = jnp.zeros((BATCH, WIDTH))
    (_, hidden), _ = jax.lax.scan(step, (zero, zero), xs)
    return jnp.mean(jnp.square(hidden - 1))


def test_shifted_gate_is_a_bias_of_the_forget_gate():
    params = {
        name: jax.random.normal(key, (WIDTH, 4 * WIDTH))
        for name, key in zip(("input", "recurrent"), KEYS, strict=False)
    }
    xs = jax.random.normal(KEYS[6], (5, BATCH, WIDTH))
    network = jaxgrad.trace(lstm, params, xs)
    assert len(_substitute.forget_gates(network)) == 1
    changed = _substitute.shift_gates(network, 1.5)
    np.testing.assert_allclose(changed(params, xs), lstm(params, xs, forget=1.5), rtol=1e-5)
    assert float(changed(params, xs)) != pytest.approx(float(network(params, xs)))


def test_gradients_pass_through_a_counterfactual(network):
    changed = _substitute.drop_blocks(network, [1])
    gradient = jax.grad(lambda weights: changed(weights, X))(WEIGHTS)
    expected = jax.grad(lambda weights: forward([weights[0], *weights[2:]], X))(WEIGHTS)
    for one, other in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_state_scaled_before_each_step_is_that_of_a_loop_written_so():
    def loss_fn(params, x, factor=1.0):
        def step(state, now):
            state = factor * state
            return params["keep"] * state + now, state

        state, states = jax.lax.scan(step, jnp.zeros(WIDTH), x, reverse=True)
        return jnp.mean(jnp.square(state @ params["weight"])) + jnp.mean(states)

    params, x = {"keep": jnp.linspace(0.2, 0.9, WIDTH), "weight": WEIGHTS[0]}, jnp.tile(X, (5, 1))
    network = jaxgrad.trace(loss_fn, params, x)
    (loop,) = [equation for equation in network.program.equations if equation.operation == "scan"]
    changed = _substitute.scale_state(network, loop.outputs[0], 1.3)
    np.testing.assert_allclose(changed(params, x), loss_fn(params, x, 1.3), rtol=1e-5)


def test_value_passed_on_takes_the_place_of_another_of_its_size():
    network = jaxgrad.trace(lambda weight, x: jnp.sum(jnp.tanh(x @ weight).reshape(-1) ** 2), WEIGHTS[0], X)
    product, bent = (
        next(e.outputs[0] for e in network.program.equations if e.operation == name)
        for name in ("dot_general", "reshape")
    )
    changed = _substitute.pass_on(network, product, bent)
    np.testing.assert_allclose(changed(WEIGHTS[0], X), jnp.sum((X @ WEIGHTS[0]) ** 2), rtol=1e-5)
