"""Signals through stacks of elements: known gains, identities between stacks, and sampled units and networks."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.meanfield import (
    Activation,
    Affine,
    BatchNorm,
    Dense,
    Dropout,
    LayerNorm,
    Residual,
    Signal,
    chi,
    correlation_map,
    depth_scales,
    propagate,
    variance_map,
)

RELU = Activation("relu")
HE = (Dense(2.0), RELU)


def test_dense_and_activation_repeat_the_maps():
    signal = propagate(3 * (Activation("tanh"), Dense(1.7, 0.1)), q=0.8, c=0.3)
    q, c = 0.8, 0.3
    for layer in range(3):
        variances = {"weight_variance": 1.7, "bias_variance": 0.1}
        gain = signal.gain[2 * layer] * signal.gain[2 * layer + 1]
        np.testing.assert_allclose(gain, chi("tanh", q=q, **variances), rtol=1e-8)
        q, c = variance_map("tanh", q, **variances), correlation_map("tanh", c, q=q, **variances)
        np.testing.assert_allclose([signal.q[2 * layer + 2], signal.c[2 * layer + 2]], [q, c], rtol=1e-7)
    np.testing.assert_allclose(signal.log_growth, np.sum(np.log(signal.gain)), rtol=1e-12)


@pytest.mark.parametrize("num_elements", [0, 1, 4])
def test_shapes(num_elements):
    signal = propagate(num_elements * (Dense(1.0),), q=2.0, mean=0.5)
    assert [len(field) for field in (signal.q, signal.mean, signal.c)] == 3 * [num_elements + 1]
    assert [len(field) for field in (signal.gain, signal.log_variance)] == 2 * [num_elements]
    assert isinstance(signal, Signal)
    assert np.all(np.isnan(signal.c))
    assert (signal.q[0], signal.mean[0]) == (2.0, 0.5)
    assert signal.log_growth == 0


# Any size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [1e-300, 1e-119, 1e-40, 1.0, 2e16, 1e20, 1.1e20, 1e200, 1e300])
@pytest.mark.parametrize(("activation", "negative"), [("relu", 0.0), (lambda x: jnp.where(x > 0, x, -0.5 * x), -0.5)])
def test_a_homogeneous_activation_is_followed_at_any_size(activation, negative, q):
    signal = propagate((Activation(activation),), q=q, c=0.3)
    share = (1 + negative**2) / 2
    angle = math.acos(0.3)
    product = (math.sin(angle) + (math.pi - angle) * 0.3) / (2 * math.pi)
    crossed = (math.sin(angle) - angle * 0.3) / (2 * math.pi)  # of two inputs of opposite signs
    np.testing.assert_allclose(signal.q[1] / q, share, rtol=1e-11)
    np.testing.assert_allclose(signal.mean[1] / math.sqrt(q), (1 - negative) / math.sqrt(2 * math.pi), rtol=1e-11)
    np.testing.assert_allclose(signal.gain, share, rtol=1e-11)
    product = product * (1 + negative**2) - 2 * negative * crossed
    np.testing.assert_allclose(signal.c[1], product / share, rtol=1e-9)


@pytest.mark.parametrize("q", [1e16, 1e20, 1e24, 1e300])
def test_a_bounded_activation_is_followed_at_any_size(q):
    """Only inputs near 0 have a slope: the gain is the integral of its square times the density there."""
    signal = propagate((Activation("tanh"),), q=q, c=0.5)
    np.testing.assert_allclose([signal.q[1], signal.c[1]], [1, 1 / 3], rtol=2e-8)
    np.testing.assert_allclose(signal.mean[1], 0, atol=1e-12)
    np.testing.assert_allclose(signal.gain[0] * math.sqrt(q), 4 / 3 / math.sqrt(2 * math.pi), rtol=1e-7)
    steps = propagate((Activation("sigmoid"), Activation("relu6")), q=q)
    np.testing.assert_allclose(steps.q[1], 1 / 2, rtol=2e-8)


def test_what_no_float_holds_is_infinite_and_keeps_its_gain():
    signal = propagate(12 * (Dense(1e30), RELU), c=0.2)
    np.testing.assert_allclose(signal.log_growth, 12 * math.log(0.5e30), rtol=1e-9)
    assert np.flatnonzero(np.isinf(signal.q)).tolist() == [21, 23]
    assert not np.any(np.isnan(signal.c))
    after = propagate((*(2 * (Dense(1e300),)), LayerNorm(), Activation("tanh")), c=0.2)
    np.testing.assert_allclose([after.q[3], after.c[3]], [1, 0.2], rtol=1e-9)
    square = propagate((Dense(1.0, 0.0, 50), Activation(jnp.square)), q=1e200)
    assert square.q[-1] == math.inf
    np.testing.assert_allclose([square.gain[-1], square.log_variance[-1]], [4e200, 2 / 50 + 3 * 2 / 50], rtol=1e-9)


# Normalization -------------------------------------------------------------------------------------------------------


def relu_rate(size):
    """The squared gradient's growth a layer with ReLU: E tr (P - yyᵀ/B) D P D / s² over that of the signal, exactly.

    y is uniform on a sphere without a mean, so that functions of degree 0, 1 and 2 have the moments of normals of
    correlation -1/(B - 1). P takes the mean away, D holds the slopes, s is the spread.
    """
    c = -1 / (size - 1)
    product = (math.sqrt(1 - c**2) + c * (math.pi - math.acos(c))) / (2 * math.pi)
    both = 1 / 4 + math.asin(c) / (2 * math.pi)
    slopes, values = ((1 / 2 + (size - 1) * pair) / size for pair in (both, product))  # squares of means over the batch
    passed = (size - 2) / 2 + slopes - 1 / 2 + values
    return size / (size - 3) * passed / ((size - 1) * (1 / 2 - product))


@pytest.mark.parametrize(
    ("batch_size", "block_gain", "tolerance"),
    [
        (None, math.pi / (math.pi - 1), 1e-7),
        (8, relu_rate(8), 0.05),
        (16, relu_rate(16), 0.025),
        (128, relu_rate(128), 0.003),
        (10**6, math.pi / (math.pi - 1), 3e-6),
    ],
)
def test_batch_norm_with_relu_explodes_at_its_rate(batch_size, block_gain, tolerance):
    block = (Dense(2.0), BatchNorm(batch_size), RELU)
    gain = propagate(4 * block, c=0.0).gain
    np.testing.assert_allclose(np.prod(gain[4:7]), block_gain, rtol=tolerance)


@pytest.mark.parametrize("size", [4, 5, 8, 128])
@pytest.mark.parametrize("between", [(), (LayerNorm(),), (Affine(3.0, 0.5), Activation("identity"))])
def test_without_a_nonlinearity_batch_norm_grows_so_exactly(size, between):
    """The last normalization takes a mean away from the gradient, those before it get gradients without one."""
    count = 2 + len(between)
    gain = propagate(5 * (Dense(0.7), BatchNorm(size), *between), c=0.0).gain.reshape(5, count).prod(axis=1)
    rate = (size - 2) / (size - 3)
    np.testing.assert_allclose(gain[1:], [rate, rate, rate, rate * (size - 1) / size], rtol=1e-8)


def test_examples_are_no_further_apart_than_a_batch_without_its_mean():
    """As after a change of resolution, where a convolution's batch is of another size."""
    for outer, least in ((64, 64 / 63), (None, 1.0)):
        gain = propagate((Dense(1.0), BatchNorm(outer), Dense(1.0), BatchNorm(8)), c=0.0).gain[1]
        alone = propagate((Dense(1.0), BatchNorm(outer)), c=0.0).gain[1]
        np.testing.assert_allclose(gain / alone, least, rtol=1e-9)
    smaller = propagate((Dense(1.0), BatchNorm(8), Dense(1.0), BatchNorm(64)), c=0.0).gain[1]
    np.testing.assert_allclose(smaller / propagate((Dense(1.0), BatchNorm(8)), c=0.0).gain[1], 64 / 63, rtol=1e-9)


def test_the_way_back_through_branches_and_dropout():
    """Of two uncorrelated parts the gradient's correlation is the mean by their squares; a mask of its own thins it."""
    size = 8
    behind = (Dense(1.0), BatchNorm(size))
    bare = propagate((Dense(1.0), BatchNorm(size)), c=0.0).gain[1]
    half = -1 / (size - 1) / (1 + 0.25)  # the shortcut's share, the branch is without correlation

    def before(*elements):
        """Return the correlation of the gradients that come out of some elements behind a normalization."""
        return 1 - propagate((Dense(1.0), BatchNorm(size), *elements, *behind), c=0.0).gain[1] / bare

    np.testing.assert_allclose(before(), -1 / (size - 1), rtol=1e-9)
    np.testing.assert_allclose(before(Dropout(0.6)), -0.6 / (size - 1), rtol=1e-9)
    np.testing.assert_allclose(before(Residual((Dense(1.0),), 0.25)), -1 / (size - 1), rtol=1e-9)
    branch = (Dense(1.0), Activation(jnp.sign), Dense(1.0))
    np.testing.assert_allclose(before(Residual(branch)), -1 / (size - 1), rtol=1e-9)  # no gradient passes the branch
    thin = (Dense(1e-9), Dropout(1e-9))  # gain 1, and next to no correlation left
    np.testing.assert_allclose(before(Residual(thin, 0.25)), half, rtol=1e-6)
    own = -1 / (size - 1)
    pair = 1 / 4 + math.asin(own) / (2 * math.pi)
    np.testing.assert_allclose(before(RELU), own * pair / (1 / 2), rtol=1e-7)


def test_batch_norm_does_not_know_the_weights_size():
    gains = [np.prod(propagate(5 * (Dense(w), BatchNorm(), RELU), c=0.1).gain[-3:]) for w in (0.5, 2.0)]
    np.testing.assert_allclose(gains[0], gains[1], rtol=1e-9)


SAMPLED = {
    "identity": (lambda y: y, np.ones_like),
    "relu": (lambda y: np.maximum(y, 0), lambda y: np.float32(1) * (y > 0)),
    "tanh": (np.tanh, lambda y: 1 / np.cosh(y) ** 2),
}


@pytest.mark.parametrize(
    ("activation", "batch_size", "tolerance"),
    [("identity", 8, 0.02), ("relu", 8, 0.06), ("tanh", 8, 0.04), ("relu", 128, 0.015), ("tanh", 128, 0.01)],
)
def test_a_sampled_network_with_batch_norm_grows_so(activation, batch_size, tolerance):
    """The mean over many gradients and networks, by NumPy alone."""
    phi, slope = SAMPLED[activation]
    width, depth, num_networks = 512, 5, 6 if batch_size == 128 else 24
    rng = np.random.default_rng(0)
    logs = []
    for _ in range(num_networks):
        weights = rng.standard_normal((depth, width, width), np.float32) * np.float32(math.sqrt(2 / width))
        x, tape = rng.standard_normal((batch_size, width), np.float32), []
        for w in weights:
            h = x @ w
            h = h - h.mean(axis=0, keepdims=True)
            root = np.sqrt(np.mean(h**2, axis=0, keepdims=True))
            tape.append((w, h / root, root))
            x = phi(h / root)
        signal, norms = rng.standard_normal(x.shape, np.float32), []
        for w, normalized, root in tape[::-1]:
            inner = signal * slope(normalized)
            inner = inner - inner.mean(axis=0) - normalized * np.mean(inner * normalized, axis=0)
            signal = (inner / root) @ w.T
            norms.append(np.sum(signal**2))
        logs.append(np.log(np.divide(norms[1:], norms[:-1])))
    gain = propagate(depth * (Dense(2.0), BatchNorm(batch_size), Activation(activation)), c=0.0).gain
    predicted = np.prod(gain[:-3]) ** (1 / (depth - 1))  # without the last layer's, which gets another gradient
    np.testing.assert_allclose(math.exp(np.mean(logs)), predicted, rtol=tolerance)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_layer_norm_is_that_of_sampled_units(centered, activation):
    """One example of very many units: the mean square of its Jacobian is that of its factor."""
    q, eps = 1.3, 1e-2
    signal = propagate((Dense(1.0), Activation(activation), LayerNorm(centered, eps)), q=q)
    z = jax.random.normal(jax.random.key(2), (200_000,))
    x = getattr(jax.nn, activation)(math.sqrt(q) * z) if activation != "gelu" else jax.nn.gelu(math.sqrt(q) * z)
    x = np.asarray(x, np.float64)
    shift = np.mean(x) if centered else 0.0
    factor = 1 / np.sqrt(np.mean((x - shift) ** 2) + eps)
    y = factor * (x - shift)
    np.testing.assert_allclose(signal.gain[-1], factor**2, rtol=0.02)
    np.testing.assert_allclose(signal.q[-1], np.mean(y**2), rtol=0.01)
    np.testing.assert_allclose(signal.mean[-1], np.mean(y), atol=0.01)


def test_layer_norm_makes_the_mean_square_one():
    signal = propagate((Dense(3.0), LayerNorm(), Affine(4.0, 0.5)), q=2.0)
    np.testing.assert_allclose(signal.q, [2, 6, 1, 4.5])
    np.testing.assert_allclose(signal.gain, [3, 1 / 6, 4])


@pytest.mark.parametrize("element", [LayerNorm(), BatchNorm()])
def test_a_normalization_of_nothing_has_an_endless_gain_and_eps_ends_it(element):
    assert propagate((element,), q=0.0, c=1.0).gain[0] == math.inf
    assert propagate((element._replace(eps=1e-3),), q=0.0, c=1.0).gain[0] == pytest.approx(1000)


# Residual branches ---------------------------------------------------------------------------------------------------


def test_critical_branches_double_the_stream():
    signal = propagate(6 * (Residual((RELU, Dense(2.0))),))
    np.testing.assert_allclose(signal.q, 2.0 ** np.arange(7), rtol=1e-8)
    np.testing.assert_allclose(signal.gain, 2, rtol=1e-8)


@pytest.mark.parametrize("depth", [1, 10, 100])
def test_branches_scaled_by_depth_grow_by_e_at_most(depth):
    signal = propagate(depth * (Residual(HE[::-1], 1 / depth),))
    np.testing.assert_allclose([signal.q[-1], math.exp(signal.log_growth)], (1 + 1 / depth) ** depth, rtol=1e-7)


def test_pre_ln_grows_as_a_power():
    """The stream gains 1 a block, so block l has the gain 1 + g / q_l, and the product is a polynomial in depth."""
    depth = 50
    branch = (LayerNorm(), Dense(2.0), RELU, Dense(1.0))
    signal = propagate(depth * (Residual(branch),))
    np.testing.assert_allclose(signal.q, np.arange(1, depth + 2), rtol=1e-7)
    np.testing.assert_allclose(signal.gain, 1 + 1 / np.arange(1, depth + 1), rtol=1e-7)
    np.testing.assert_allclose(math.exp(signal.log_growth), depth + 1, rtol=1e-6)


def test_post_ln_keeps_the_mean_square_at_one():
    signal = propagate(7 * (Residual((*HE, Dense(1.0))), LayerNorm()))
    np.testing.assert_allclose(signal.q[2::2], 1, rtol=1e-8)
    np.testing.assert_allclose(signal.gain[0::2] * signal.gain[1::2], 1, rtol=1e-7)  # (1 + 1) / 2
    smaller = propagate(7 * (Residual((*HE, Dense(3.0)), 0.5), LayerNorm()))
    np.testing.assert_allclose(smaller.q[2::2], 1, rtol=1e-8)


def test_the_shortcut_counts_as_the_stream():
    plain = propagate((Residual(HE),), q=1.5, c=0.2)
    shortcut = propagate((Residual(HE, 1.0, (Dense(1.0),)),), q=1.5, c=0.2)
    np.testing.assert_allclose(plain.q, shortcut.q, rtol=1e-9)
    np.testing.assert_allclose(plain.gain, shortcut.gain, rtol=1e-9)
    np.testing.assert_allclose(plain.c, shortcut.c, rtol=1e-9)
    scaled = propagate((Residual(HE, 0.5, (Affine(3.0),)),))
    np.testing.assert_allclose(scaled.gain, 3 + 0.5)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_means_add_up(scale):
    """After a ReLU a unit has a mean, which two ReLU parts share."""
    signal = propagate((Dense(1.0), RELU, Residual((Dense(2.0), RELU), scale)))
    x, h = np.maximum(np.random.default_rng(0).normal(size=(2, 400_000)), 0)
    total = x + math.sqrt(scale) * h  # the branch's input has the second moment 1/2, its preactivation 1
    np.testing.assert_allclose(signal.mean[-1], np.mean(total), rtol=0.01)
    np.testing.assert_allclose(signal.q[-1], np.mean(total**2), rtol=0.01)


# Dropout, weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_rate", [0.5, 0.9, 1.0])
def test_dropout_parts_equal_inputs(keep_rate):
    """Even where gradients would keep their size, the correlation settles below 1."""
    block = (Dense(2.0 * keep_rate), RELU, Dropout(keep_rate))
    signal = propagate(60 * block, c=1.0)
    np.testing.assert_allclose(signal.gain[2::3], 1 / keep_rate, rtol=1e-9)
    np.testing.assert_allclose(signal.q[-1], 1, rtol=1e-6)
    assert (signal.c[-1] < 0.999) == (keep_rate < 1)


def test_dropout_keeps_the_mean_square_of_masked_units():
    x = np.random.default_rng(1).normal(size=300_000)
    masked = np.where(np.random.default_rng(2).random(x.size) < 0.7, x / 0.7, 0.0)
    np.testing.assert_allclose(propagate((Dropout(0.7),)).q[-1], np.mean(masked**2), rtol=0.02)


@pytest.mark.heavy
def test_without_dropout_correlations_settle_where_depth_scales_says():
    settled = propagate(120 * (Activation("tanh"), Dense(2.5, 0.05)), c=0.9, q=1.0)
    scales = depth_scales("tanh", weight_variance=2.5, bias_variance=0.05)
    np.testing.assert_allclose([settled.q[-1], settled.c[-1]], [scales.q, scales.c], rtol=3e-3)


def test_orthogonal_weights_have_the_same_gain():
    """The mean square of a gradient knows the scale alone."""
    rng = np.random.default_rng(3)
    orthogonal = np.linalg.qr(rng.normal(size=(300, 300)))[0] * math.sqrt(1.7)
    v = rng.normal(size=300)
    measured = np.sum((orthogonal @ v) ** 2) / np.sum(v**2)
    np.testing.assert_allclose(measured, propagate((Dense(1.7),)).gain[0], rtol=1e-9)


# Fluctuations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 4])
def test_linear_layers_vary_by_two_over_the_width(depth):
    signal = propagate(depth * (Dense(1.5, 0.0, 50),))
    np.testing.assert_allclose(signal.log_variance, 2 / 50 * np.arange(1, depth + 1), rtol=1e-12)
    assert not np.any(propagate(depth * (Dense(1.5), RELU)).log_variance)


def test_relu_layers_vary_by_five_over_the_width():
    signal = propagate(3 * (Dense(2.0, 0.0, 100), RELU))
    np.testing.assert_allclose(signal.log_variance[1::2], 5 / 100 * np.arange(1, 4), rtol=1e-9)


@pytest.mark.parametrize("scale", [0.2, 1.0])
def test_sampled_residual_blocks_vary_so(scale):
    """ln ‖Jᵀ u‖² of x + s W₂ relu(W₁ x) over 4000 draws."""
    width, num = 40, 3000
    rng = np.random.default_rng(4)
    u = np.eye(width)[0]
    logs = []
    for _ in range(num):
        first, second = rng.standard_normal((2, width, width), np.float32) / math.sqrt(width)
        slopes = rng.random(width) < 0.5
        back = u + math.sqrt(scale) * (math.sqrt(2) * first).T @ (slopes * (second.T @ u))
        logs.append(math.log(back @ back))
    branch = (Dense(2.0, 0.0, width), RELU, Dense(1.0, 0.0, width))
    (variance,) = propagate((Residual(branch, scale),)).log_variance
    np.testing.assert_allclose(np.var(logs), variance, rtol=0.3)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "kind", "text"),
    [
        ((BatchNorm(),), ValueError, "expected the correlation of a batch's examples"),
        ((Residual((RELU,)),), ValueError, "expected a residual branch with a Dense element"),
        ((Residual(()),), ValueError, "expected a residual branch with a Dense element"),
        (("relu",), TypeError, "expected elements Dense, Activation"),
        ((Dense(-1.0),), ValueError, "expected a finite weight_variance of at least 0"),
        ((Dense(1.0, math.inf),), ValueError, "expected a finite bias_variance"),
        ((Dense(1.0, 0.0, 0),), ValueError, "expected a finite width of at least 1"),
        ((Activation("no-such"),), ValueError, "no-such"),
        ((Affine(-2.0),), ValueError, "expected a finite scale"),
        ((Affine(1.0, -2.0),), ValueError, "expected a finite shift"),
        ((LayerNorm(True, -1e-5),), ValueError, "expected a finite eps"),
        ((BatchNorm(None, -1e-5),), ValueError, "expected a finite eps"),
        ((Dropout(0.0),), ValueError, "expected a finite keep_rate"),
        ((Dropout(1.5),), ValueError, "expected a finite keep_rate"),
        ((Residual((Dense(1.0),), -1.0),), ValueError, "expected a finite scale"),
        ((Residual((Dense(-1.0),)),), ValueError, "expected a finite weight_variance"),
        ((Activation(lambda x: jnp.exp(x**2)),), ValueError, "an activation"),
    ],
)
def test_bad_elements_are_refused(elements, kind, text, unchecked):
    with pytest.raises(kind, match=text):
        propagate(elements)


def test_bad_signals_are_refused(unchecked):
    with pytest.raises(ValueError, match="propagate: expected a finite q of at least 0"):
        propagate((), q=-1.0)
    with pytest.raises(ValueError, match="expected a finite c from -1 to 1"):
        propagate((), c=1.1)
    with pytest.raises(ValueError, match="expected a finite mean from -1 to 1"):
        propagate((), mean=2.0)
    with pytest.raises(ValueError, match="with fewer examples the mean gain is infinite"):
        propagate((BatchNorm(3),), c=0.0)
    with pytest.raises(TypeError, match="got a traced value"):
        jax.jit(lambda w: propagate((Dense(w),)).log_growth)(1.0)
