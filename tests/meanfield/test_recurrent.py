"""Recurrent cells: known gates and horizons, and cells with weights drawn anew at each step."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from jaxgrad.meanfield import chi, fixed_point, recurrent_signal


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("bias", [-2.0, 0.0, 1.0, 4.0])
def test_gates_without_weights_are_their_bias(bias):
    lstm = recurrent_signal("lstm", weight_variance=0.0, forget_bias=bias)
    np.testing.assert_allclose(lstm.forget, sigmoid(bias), rtol=1e-9)
    np.testing.assert_allclose(lstm.carry_gain, sigmoid(bias) ** 2, rtol=1e-9)
    gru = recurrent_signal("gru", weight_variance=0.0, forget_bias=bias)
    np.testing.assert_allclose([gru.forget, gru.carry_gain], [sigmoid(bias), sigmoid(bias) ** 2], rtol=1e-9)
    np.testing.assert_allclose([lstm.gain, gru.gain], 2 * [sigmoid(bias) ** 2], rtol=1e-9)


def test_a_forget_bias_of_one_forgets_over_a_hundred_steps():
    signal = recurrent_signal("lstm", weight_variance=0.0, forget_bias=1.0)
    assert f"{signal.carry_gain**50:.2e}" == "2.48e-14"
    np.testing.assert_allclose(signal.carry_gain**50, sigmoid(1.0) ** 100, rtol=1e-9)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_chrono_keeps_a_share_e_over_its_horizon(cell):
    signal = recurrent_signal(cell, weight_variance=0.0, forget_bias=math.log(99))
    np.testing.assert_allclose(math.sqrt(signal.carry_gain) ** 100, 0.99**100, rtol=1e-8)
    np.testing.assert_allclose(0.99**100, 0.3660, atol=1e-4)


@pytest.mark.parametrize("activation", ["tanh", "hard_tanh", "sigmoid"])
def test_a_plain_cell_is_a_layer_with_its_input_as_bias(activation):
    found = recurrent_signal("rnn", weight_variance=1.4, bias_variance=0.05, input_variance=0.1, activation=activation)
    np.testing.assert_allclose(found.gain, chi(activation, weight_variance=1.4, bias_variance=0.15), rtol=1e-8)
    assert (found.carry_gain, found.forget) == (0, 0)
    q = fixed_point(activation, weight_variance=1.4, bias_variance=0.15)
    np.testing.assert_allclose(1.4 * found.q + 0.15, q, rtol=1e-8)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_biases_and_inputs_count_alike(cell):
    one = recurrent_signal(cell, weight_variance=0.8, bias_variance=0.3)
    assert one == recurrent_signal(cell, weight_variance=0.8, input_variance=0.3)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_without_input_a_weak_cell_falls_silent(cell):
    signal = recurrent_signal(cell, weight_variance=0.5)
    assert signal.q == pytest.approx(0, abs=1e-10)
    if cell == "gru":
        # E z² + σ_w² (E(1 - z)² E r²) at z = r = 1/2.
        np.testing.assert_allclose(signal.gain, 0.25 + 0.5 / 16, rtol=1e-5)
    else:
        # f² and the way through i g and o tanh c, both of gates 1/2.
        np.testing.assert_allclose(signal.gain, 0.25 + 0.5 / 16, rtol=1e-5)


def measured_gain(cell, weight_variance, input_variance, forget_bias, *, width=400, steps=40, settle=30, seed=0):
    """How much a step multiplies the squared gradient of the state, with weights and inputs drawn anew at each step.

    A tangent grows as a gradient does, as far as the mean square goes.
    """
    rng = np.random.default_rng(seed)
    scale = math.sqrt(weight_variance / width)
    c = h = dc = dh = np.zeros(width)
    logs = []
    for step in range(settle + steps):
        if step == settle:
            dc, dh = rng.normal(size=(2, width)) * (1.0 if cell == "lstm" else [[0.0], [1.0]])
        before = np.sum(dc**2) + np.sum(dh**2)
        weights = scale * rng.normal(size=(4, width, width))
        x = math.sqrt(input_variance) * rng.normal(size=(4, width))
        pre, dpre = weights @ h + x, weights @ dh
        if cell == "lstm":
            pre[1] += forget_bias
            (i, f, o), g = sigmoid(pre[:3]), np.tanh(pre[3])
            di, df, do = (gate * (1 - gate) * d for gate, d in zip((i, f, o), dpre[:3], strict=True))
            dc = f * dc + df * c + di * g + i * (1 - g**2) * dpre[3]
            c = f * c + i * g
            out = np.tanh(c)
            h, dh = o * out, do * out + o * (1 - out**2) * dc
        else:
            r, z = sigmoid(pre[0]), sigmoid(pre[1] + forget_bias)
            dr, dz = r * (1 - r) * dpre[0], z * (1 - z) * dpre[1]
            n = np.tanh(weights[2] @ (r * h) + x[2])
            dn = (1 - n**2) * (weights[2] @ (dr * h + r * dh))
            h, dh = (1 - z) * n + z * h, (1 - z) * dn - dz * n + dz * h + z * dh
        if step >= settle + 5:  # the first steps turn the state's two halves to the direction that lasts
            logs.append(math.log((np.sum(dc**2) + np.sum(dh**2)) / before))
    return math.exp(np.mean(logs)), np.mean(h**2)


@pytest.mark.parametrize(
    ("cell", "weight_variance", "input_variance", "forget_bias"),
    [
        ("lstm", 1.0, 0.5, 1.0),
        ("lstm", 4.0, 0.5, 0.0),
        ("lstm", 0.5, 2.0, 2.0),
        ("gru", 1.0, 0.5, 0.0),
        ("gru", 4.0, 0.5, 1.0),
    ],
)
def test_cells_with_fresh_weights_agree(cell, weight_variance, input_variance, forget_bias):
    signal = recurrent_signal(
        cell, weight_variance=weight_variance, input_variance=input_variance, forget_bias=forget_bias
    )
    gain, q = measured_gain(cell, weight_variance, input_variance, forget_bias, width=300)
    np.testing.assert_allclose(gain, signal.gain, rtol=0.1)
    np.testing.assert_allclose(q, signal.q, rtol=0.2)


def test_bad_input_is_refused(unchecked):
    with pytest.raises(ValueError, match="recurrent_signal: expected cell 'rnn', 'lstm' or 'gru'; got 'mgu'"):
        recurrent_signal("mgu", weight_variance=1.0)
    for name in ("weight_variance", "bias_variance", "input_variance"):
        with pytest.raises(ValueError, match=f"expected a finite {name} of at least 0"):
            recurrent_signal("lstm", **({"weight_variance": 1.0} | {name: -1.0}))
    with pytest.raises(ValueError, match="expected a finite forget_bias"):
        recurrent_signal("gru", weight_variance=1.0, forget_bias=math.nan)
    with pytest.raises(ValueError, match="expected a state that settles"):
        recurrent_signal("rnn", weight_variance=3.0, activation="relu")
    with pytest.raises(TypeError, match="weight_variance as a number; got a traced value"):
        jax.jit(lambda w: recurrent_signal("lstm", weight_variance=w))(1.0)
