"""What is read from networks as users write them, and its prediction against the signal that is measured there."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad
from jaxgrad.meanfield import (
    Activation,
    BatchNorm,
    Dense,
    Dropout,
    LayerNorm,
    Residual,
    fixed_point,
    predict,
    propagate,
)
from tests import models

WIDTH = 64


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def layers(depth, width=WIDTH, weight_variance=2.0, bias=0.1):
    scale = math.sqrt(weight_variance / width)
    return [(scale * normal(i, width, width), bias * normal(i + 50, width)) for i in range(depth)]


def readout(y):
    """A loss whose gradient does not depend on the network."""
    return jnp.sum(y * np.random.default_rng(0).normal(size=y.shape).astype(y.dtype))


def mlp(activation):
    """A loss of hidden layers and a linear one."""

    def loss_fn(params, x):
        *hidden, (last, shift) = params
        for w, b in hidden:
            x = activation(x @ w + b[None])
        return readout(x @ last + shift[None])

    return loss_fn


def compare(loss_fn, params, *args, has_aux=False, atol=0.05):
    """Return the predictions, after they have met the signal measured."""
    network = jaxgrad.trace(loss_fn, params, *args, has_aux=has_aux)
    predictions = predict(network, params, *args)
    report = jaxgrad.explain(loss_fn, params, *args, has_aux=has_aux, level="quick", verbose=False)
    assert [block.name for block in predictions] == [block.name for block in report.blocks]
    for block, predicted in zip(report.blocks, predictions, strict=True):
        assert abs(block.log10_gain - predicted.log10_gain) < 3 * predicted.error + atol, predicted
    return predictions


def kinds(prediction):
    return [type(element) for element in prediction.elements]


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_a_network_of_layers_is_read_layer_by_layer(activation):
    params, x = layers(3), normal(100, 16, WIDTH)
    predictions = compare(mlp(getattr(jax.nn, activation)), params, x)
    for (w, b), prediction in zip(params, predictions, strict=True):
        assert prediction.method == "theory"
        assert prediction.reason == ""
        dense, *rest = prediction.elements
        np.testing.assert_allclose(dense.weight_variance, WIDTH * np.mean(np.square(w)), rtol=1e-5)
        np.testing.assert_allclose(dense.bias_variance, np.mean(np.square(b)), rtol=1e-5)
        assert dense.width == WIDTH
        assert rest == ([] if w is params[-1][0] else [Activation(activation)])


def test_elements_through_propagate_are_the_prediction():
    """The prediction is that of the elements by hand, block after block from the data's mean square."""
    params, x = layers(3), 1.7 * normal(101, 16, WIDTH)
    network = jaxgrad.trace(mlp(jnp.tanh), params, x)
    q, mean = float(jnp.mean(x**2)), float(jnp.mean(x))
    for prediction in predict(network, params, x):
        signal = propagate(prediction.elements, q=q, mean=mean)
        np.testing.assert_allclose(prediction.log10_gain, signal.log_growth / math.log(100), rtol=1e-6)
        np.testing.assert_allclose(prediction.error, math.sqrt(signal.log_variance[-1]) / math.log(100), rtol=1e-6)
        np.testing.assert_allclose(prediction.q, signal.q[-1], rtol=1e-6)
        q, mean = signal.q[-1], signal.mean[-1]


def test_elements_built_by_hand_give_the_same():
    params, x = layers(3, bias=0.0), normal(102, 8, WIDTH)
    network = jaxgrad.trace(mlp(jax.nn.relu), params, x)
    stack = [Dense(WIDTH * float(jnp.mean(w**2))) for w, _ in params]
    stack = [stack[0], Activation("relu"), stack[1], Activation("relu"), stack[2]]
    whole = propagate(stack, q=float(jnp.mean(x**2)))
    found = sum(prediction.log10_gain for prediction in predict(network, params, x))
    np.testing.assert_allclose(found, whole.log_growth / math.log(100), atol=1e-6)


def test_without_arguments_the_signal_starts_at_one():
    params, x = layers(2), 5.0 * normal(103, 8, WIDTH)
    network = jaxgrad.trace(mlp(jnp.tanh), params, x)
    alone = predict(network, params)
    by_hand = propagate(alone[0].elements, q=1.0)
    np.testing.assert_allclose(alone[0].log10_gain, by_hand.log_growth / math.log(100), rtol=1e-6)
    assert alone[0].elements == predict(network, params, x)[0].elements
    assert alone[0].log10_gain > predict(network, params, x)[0].log10_gain + 0.1  # 5 times as large, tanh saturates


def test_a_healthy_network_keeps_its_signal():
    """At tanh's critical point the sum over many layers stays near 0, and q at its fixed point."""
    params, x = layers(6, 128, 1.76095, math.sqrt(0.05)), math.sqrt(0.57) * normal(104, 4, 128)
    predictions = predict(jaxgrad.trace(mlp(jnp.tanh), params, x), params, x)
    assert abs(sum(prediction.log10_gain for prediction in predictions[1:-1])) < 0.1
    q = fixed_point("tanh", weight_variance=1.76095, bias_variance=0.05)
    preactivation = propagate(predictions[4].elements[:1], q=predictions[3].q).q[-1]
    np.testing.assert_allclose(preactivation, q, rtol=0.1)


def batch_normalized(activation):
    """A loss of layers with batch normalization, and a linear one."""

    def loss_fn(params, x):
        *hidden, (last, _) = params
        for w, _ in hidden:
            h = x @ w
            centred = h - jnp.mean(h, axis=0, keepdims=True)
            x = activation(centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=0, keepdims=True) + 1e-9))
        return readout(x @ last)

    return loss_fn


def test_what_gradients_share_is_followed_from_block_to_block():
    """Block by block a small batch's prediction is that of the whole stack."""
    params, x = layers(4), normal(120, 8, WIDTH)
    predictions = predict(jaxgrad.trace(batch_normalized(jnp.tanh), params, x), params, x)
    assert [kinds(block) for block in predictions] == 3 * [[Dense, BatchNorm, Activation]] + [[Dense]]
    elements = [element for block in predictions for element in block.elements]
    q, values = float(jnp.mean(x**2)), np.asarray(x, np.float64)
    pairs = (np.mean(values.sum(axis=0) ** 2) / 8 - np.mean(values**2)) / 7
    gain = propagate(elements, q=q, c=pairs / q, mean=float(jnp.mean(x))).gain
    growth = [np.log10(part.prod()) / 2 for part in np.split(gain, [3, 6, 9])]
    np.testing.assert_allclose([block.log10_gain for block in predictions], growth, atol=1e-6)
    assert gain[4] > 1.05 * propagate(elements[:6], q=q, c=pairs / q).gain[4]


@pytest.mark.heavy
def test_a_sampled_block_is_the_end_of_what_gradients_share():
    def normalized(h):
        centred = h - jnp.mean(h, axis=0, keepdims=True)
        return jnp.tanh(centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=0, keepdims=True) + 1e-9))

    def loss_fn(params, x):
        h = normalized(x @ params["first"])
        scores = (h @ params["q"]) @ (h @ params["k"]).T / math.sqrt(WIDTH)
        h = normalized((h + jax.nn.softmax(scores) @ h) @ params["second"])
        return readout(h @ params["out"])

    params = {name: normal(i, WIDTH, WIDTH) / 8 for i, name in enumerate(("first", "q", "k", "second", "out"))}
    x = normal(121, 8, WIDTH)
    predictions = predict(jaxgrad.trace(loss_fn, params, x), params, x, num_samples=2)
    assert [block.method for block in predictions] == ["theory", "sampled", "theory", "theory"]
    first, _, second, _ = predictions
    assert BatchNorm in kinds(first)
    assert BatchNorm in kinds(second)
    q, values = float(jnp.mean(x**2)), np.asarray(x, np.float64)
    pairs = (np.mean(values.sum(axis=0) ** 2) / 8 - np.mean(values**2)) / 7
    alone = propagate(first.elements, q=q, c=pairs / q).log_growth / math.log(100)
    np.testing.assert_allclose(first.log10_gain, alone, atol=1e-6)


def test_a_custom_activation_is_read_as_a_function():
    def custom(x):
        return x * jax.nn.sigmoid(1.3 * x)

    params, x = layers(2), normal(105, 16, WIDTH)
    first, last = predict(jaxgrad.trace(mlp(custom), params, x), params, x)
    assert kinds(first) == [Dense, Activation]
    assert kinds(last) == [Dense]
    by_hand = propagate((first.elements[0], Activation(custom)), q=float(jnp.mean(x**2)))
    np.testing.assert_allclose(first.log10_gain, by_hand.log_growth / math.log(100), atol=1e-3)
    points = jnp.linspace(-3.0, 3.0, 7)
    np.testing.assert_allclose(first.elements[1].function(points), custom(points), atol=1e-5)


def test_an_activation_of_a_coarse_type_is_known_by_name():
    params, x = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (layers(2), normal(106, 16, WIDTH)))
    for function, name in ((jax.nn.silu, "silu"), (jax.nn.gelu, "gelu"), (jax.nn.relu6, "relu6")):
        (first, _) = predict(jaxgrad.trace(mlp(function), params, x), params, x)
        assert first.elements[1].function == name


def test_equal_activations_are_one_function():
    params, x = layers(4), normal(107, 16, WIDTH)
    blocks = predict(jaxgrad.trace(mlp(lambda x: x * jax.nn.sigmoid(1.3 * x)), params, x), params, x)
    assert len({id(block.elements[1].function) for block in blocks[:-1]}) == 1


# flax and equinox ----------------------------------------------------------------------------------------------------


def linen(module, x):
    params = module.init(jax.random.key(0), x)
    return lambda params, x: readout(module.apply(params, x)), params, x


@pytest.mark.heavy
@pytest.mark.usefixtures("third_party_model")
def test_layer_norm():
    nn = pytest.importorskip("flax.linen")

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = nn.relu(nn.LayerNorm()(nn.Dense(WIDTH)(x)))
            return nn.Dense(WIDTH)(x)

    first, second, last = compare(*linen(Network(), normal(1, 16, WIDTH)))
    assert kinds(first) == kinds(second) == [Dense, LayerNorm, Activation]
    assert first.elements[1].centered
    assert first.elements[1].eps == pytest.approx(1e-6, rel=1e-3)
    assert kinds(last) == [Dense]
    np.testing.assert_allclose([first.q, second.q], 0.5, rtol=1e-3)


@pytest.mark.usefixtures("third_party_model")
@pytest.mark.parametrize("post", [False, True])
def test_residual_blocks_before_and_after_normalization(post):
    nn = pytest.importorskip("flax.linen")

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(WIDTH)(x)
            for _ in range(2):
                h = x if post else nn.LayerNorm()(x)
                h = nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(h)))
                x = nn.LayerNorm()(x + 0.5 * h) if post else x + h
            return nn.Dense(WIDTH)(x)

    _, *blocks, _ = compare(*linen(Network(), normal(2, 16, WIDTH)))
    for block in blocks:
        residual, *after = block.elements
        assert type(residual) is Residual
        assert residual.shortcut == ()
        assert [type(element) for element in after] == post * [LayerNorm]
        inner = [type(element) for element in residual.branch]
        assert inner == [LayerNorm, Dense, Activation, Dense][int(post) :]
        assert residual.branch[-2] == Activation("gelu")
        assert [element.width for element in residual.branch if isinstance(element, Dense)] == [2 * WIDTH, WIDTH]
        assert residual.scale == pytest.approx(0.25 if post else 1.0, rel=1e-6)
    if post:
        np.testing.assert_allclose([block.q for block in blocks], 1, rtol=1e-3)


@pytest.mark.heavy
@pytest.mark.usefixtures("third_party_model")
def test_batch_norm_in_training():
    nn = pytest.importorskip("flax.linen")

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(3):
                x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Dense(WIDTH, use_bias=False)(x)))
            return nn.Dense(WIDTH)(x)

    module, x = Network(), normal(3, 64, WIDTH)
    variables = module.init(jax.random.key(0), x)

    def loss_fn(params, x):
        both = {"params": params, "batch_stats": variables["batch_stats"]}
        return readout(module.apply(both, x, mutable=["batch_stats"])[0])

    *blocks, _ = compare(loss_fn, variables["params"], x)
    for block in blocks:
        assert kinds(block) == [Dense, BatchNorm, Activation]
    want = math.log10(math.pi / (math.pi - 1)) / 2
    np.testing.assert_allclose([block.log10_gain for block in blocks[1:]], want, atol=0.01)


@pytest.mark.heavy
@pytest.mark.usefixtures("third_party_model")
def test_a_convolution_counts_the_window_that_lies_on_data():
    nn = pytest.importorskip("flax.linen")

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(16, (3, 3))(x))
            x = nn.relu(nn.Conv(16, (3, 3), strides=2, padding="VALID")(x))
            return nn.Dense(8)(x.reshape(len(x), -1))

    loss_fn, params, x = linen(Network(), normal(4, 4, 9, 9, 3))
    first, second, last = compare(loss_fn, params, x)
    assert kinds(first) == kinds(second) == [Dense, Activation]
    kernels = [np.asarray(params["params"][f"Conv_{i}"]["kernel"]) for i in range(2)]
    inside = (25 / 27) ** 2  # of 9 places along an axis, two miss one tap of three
    for block, kernel, coverage in zip((first, second), kernels, (inside, 1.0), strict=True):
        want = np.mean(kernel**2) * math.prod(kernel.shape[:3]) * coverage
        np.testing.assert_allclose(block.elements[0].weight_variance, want, rtol=1e-5)
        assert block.elements[0].width == 16
    assert kinds(last) == [Dense]


@pytest.mark.heavy
@pytest.mark.usefixtures("third_party_model")
def test_an_equinox_network_is_read_as_a_plain_one():
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.MLP(WIDTH, WIDTH, WIDTH, 2, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(module, eqx.is_array)
    x = normal(6, 8, WIDTH)
    apply = lambda params, x: readout(jax.vmap(eqx.combine(params, static))(x))  # noqa: E731
    found = predict(jaxgrad.trace(apply, params, x), params, x)
    plain = [(layer.weight.T, layer.bias) for layer in module.layers]
    expected = predict(jaxgrad.trace(mlp(jnp.tanh), plain, x), plain, x)
    for one, other in zip(found, expected, strict=True):
        assert kinds(one) == kinds(other)
        np.testing.assert_allclose(
            [one.log10_gain, one.error, one.q], [other.log10_gain, other.error, other.q], rtol=1e-4
        )


# Beyond layers -------------------------------------------------------------------------------------------------------


@pytest.mark.heavy
def test_dropout_with_a_key():
    def loss_fn(params, x, key):
        *hidden, (last, _) = params
        for (w, _), own in zip(hidden, jax.random.split(key, len(hidden)), strict=True):
            x = jax.nn.relu(x @ w)
            x = jnp.where(jax.random.bernoulli(own, 0.8, x.shape), x / 0.8, 0.0)
        return readout(x @ last)

    *blocks, _ = compare(loss_fn, layers(3), normal(7, 16, WIDTH), jax.random.key(3))
    for block in blocks:
        (dropout,) = (element for element in block.elements if isinstance(element, Dropout))
        assert dropout.keep_rate == pytest.approx(0.8, abs=0.05)
        gain = propagate(block.elements).gain
        np.testing.assert_allclose(math.prod(gain) / (gain[0] * 0.5), dropout.keep_rate / 0.8**2, rtol=1e-4)


def attention(params, x):
    for q, k, v in params:
        scores = (x @ q) @ jnp.swapaxes(x @ k, -1, -2) / math.sqrt(WIDTH)
        x = x + jax.nn.softmax(scores) @ (x @ v)
    return readout(x)


@pytest.mark.heavy
def test_attention_is_sampled_with_data_and_left_out_without():
    params = [tuple(normal(3 * i + j, WIDTH, WIDTH) / math.sqrt(WIDTH) for j in range(3)) for i in range(2)]
    x = normal(8, 4, 6, WIDTH)
    for block in compare(attention, params, x, atol=0.1):
        assert (block.method, block.elements) == ("sampled", ())
        assert block.error > 0
        assert block.reason
    for block in predict(jaxgrad.trace(attention, params, x), params):
        assert (block.method, block.elements) == ("none", ())
        assert math.isnan(block.log10_gain)
        assert math.isnan(block.error)


@pytest.mark.heavy
def test_samples_depend_on_the_key_alone():
    params = [tuple(normal(j, 8, 8) / 3 for j in range(3))]
    x = normal(9, 2, 3, 8)

    def loss_fn(params, x):
        ((q, k, v),) = params
        return jnp.sum((jax.nn.softmax((x @ q) @ jnp.swapaxes(x @ k, -1, -2)) @ (x @ v)) ** 2)

    network = jaxgrad.trace(loss_fn, params, x)
    at = functools.partial(predict, network, params, x, num_samples=2)
    assert at() == at(key=jax.random.key(0))
    assert at() != at(key=jax.random.key(1))


@pytest.mark.heavy
def test_a_recurrence_is_sampled_step_by_step():
    def loss_fn(params, xs):
        def step(h, x):
            return jnp.tanh(h @ params["recurrent"] + x @ params["input"]), None

        h, _ = jax.lax.scan(step, jnp.zeros((8, WIDTH), xs.dtype), xs)
        return readout(h @ params["out"])

    params = {name: normal(i, WIDTH, WIDTH) / 8 for i, name in enumerate(("recurrent", "input", "out"))}
    *steps, last = compare(loss_fn, params, normal(10, 6, 8, WIDTH), atol=0.15)
    assert {step.method for step in steps} == {"sampled"}
    assert len(steps) == 6
    assert last.method == "theory"


def test_each_of_several_chains_starts_from_its_own_input():
    def loss_fn(params, a, b):
        for w in params["a"]:
            a = jax.nn.relu(a @ w)
        for w in params["b"]:
            b = jnp.tanh(b @ w)
        return jnp.sum((a @ params["out"]) * b)

    params = {"a": [w for w, _ in layers(2)], "b": [w for w, _ in layers(2)], "out": normal(20, WIDTH, WIDTH) / 8}
    a, b = normal(11, 16, WIDTH), 3.0 * normal(12, 16, WIDTH)
    network = jaxgrad.trace(loss_fn, params, a, b)
    found = {block.name: block for block in predict(network, params, a, b)}
    for name, x in (("a/0", a), ("b/0", b)):
        expected = propagate(found[name].elements, q=float(jnp.mean(x**2)), mean=float(jnp.mean(x)))
        np.testing.assert_allclose(found[name].q, expected.q[-1], rtol=1e-6)


def test_no_signal_is_no_error():
    params = layers(3, bias=0.0)
    x = normal(13, 4, WIDTH)
    network = jaxgrad.trace(mlp(jax.nn.relu), params, x)
    dead = [(jnp.zeros_like(w), b) for w, b in params]
    with np.errstate(divide="ignore"):
        assert all(prediction.log10_gain == -math.inf for prediction in predict(network, dead, x))
    silent = predict(network, params, jnp.zeros_like(x))
    assert [prediction.q for prediction in silent] == [0, 0, 0]


def test_bad_input_is_refused(unchecked):
    params, x = layers(2), normal(14, 4, WIDTH)
    network = jaxgrad.trace(mlp(jnp.tanh), params, x)
    with pytest.raises(ValueError, match="shape"):
        predict(network, layers(2, width=8), x)
    with pytest.raises(ValueError, match="predict: expected parameters of the shapes traced"):
        predict(network, layers(2, width=8))
    with pytest.raises(ValueError, match="expected num_samples of at least 2; got num_samples=1"):
        predict(network, params, x, num_samples=1)
    with pytest.raises(TypeError, match="expected num_samples as a whole number"):
        predict(network, params, x, num_samples=2.5)


# Four units to a LayerNorm: it takes away two of their dimensions, and the mean of an example's gain is far from the
# gain at the mean. Measured 0.72, predicted -0.21.
TOO_NARROW = {"linen_transformer_pre": 1.0}


@pytest.mark.heavy
@pytest.mark.usefixtures("third_party_model")
@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_has_a_prediction_for_each_block(name):
    model = models.MODELS[name]()

    def fresh():
        return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, model.args)

    network = jaxgrad.trace(model.loss_fn, model.params, *fresh(), has_aux=model.has_aux)
    predictions = predict(network, model.params, *fresh())
    assert [prediction.name for prediction in predictions] == [block.name for block in network.blocks]
    report = jaxgrad.explain(model.loss_fn, model.params, *fresh(), has_aux=model.has_aux, level="quick", verbose=False)
    for block, prediction in zip(report.blocks, predictions, strict=True):
        if prediction.method == "theory":
            strayed = abs(block.log10_gain - prediction.log10_gain)
            assert strayed < TOO_NARROW.get(name, 5 * prediction.error + 0.1), prediction
