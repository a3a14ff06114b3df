"""Variances after LSUV, measured by running the model itself: every framework, stacked and shared kernels, loops."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.initializers import lsuv

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (64, 6), jnp.float32)


def chain(kernels, x):
    """The outputs of the products of a plain network, and what it returns."""
    outputs = []
    for kernel in kernels:
        outputs.append(x @ kernel)
        x = jnp.tanh(outputs[-1])
    return outputs, x


def plain_kernels(*sizes):
    keys = jax.random.split(KEY, len(sizes) - 1)
    shapes = itertools.pairwise(sizes)
    return [jax.random.normal(key, shape, jnp.float32) for key, shape in zip(keys, shapes, strict=True)]


def loss_of_chain(kernels, x):
    return jnp.mean(jnp.square(chain(kernels, x)[1]))


def test_every_layer_of_a_plain_network_has_variance_one():
    kernels = plain_kernels(6, 8, 8, 3)
    new = lsuv(loss_of_chain, kernels, X)
    np.testing.assert_allclose([output.var() for output in chain(new, X)[0]], 1, atol=1e-4)
    assert max(abs(float(output.var()) - 1) for output in chain(kernels, X)[0]) > 1
    for before, after in zip(kernels, new, strict=True):
        ratio = after / before
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)


def test_a_key_draws_orthogonal_kernels_first():
    kernels = [jnp.zeros_like(kernel) for kernel in plain_kernels(6, 8, 8, 3)]
    new = lsuv(loss_of_chain, kernels, X, key=KEY)
    np.testing.assert_allclose([output.var() for output in chain(new, X)[0]], 1, atol=1e-4)
    for kernel in new:
        gram = kernel @ kernel.T if kernel.shape[0] <= kernel.shape[1] else kernel.T @ kernel
        np.testing.assert_allclose(gram / gram[0, 0], np.eye(len(gram)), atol=1e-5)


def linen():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (2,))(x[..., None]))
            x = nn.relu(nn.DenseGeneral((2, 3))(x.reshape(len(x), -1)))
            return nn.DenseGeneral(2, axis=(-2, -1))(x)

    module = Net()
    params = module.init(KEY, X)

    def outputs(params):
        _, state = module.apply(params, X, capture_intermediates=True)
        return [
            value
            for name, values in state["intermediates"].items()
            if name != "__call__"
            for value in values["__call__"]
        ]

    return params, lambda params, x: jnp.mean(jnp.square(module.apply(params, x))), outputs


def nnx_model():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(6, 8, rngs=rngs)
            self.second = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    def outputs(model):
        return [model.first(X), model(X)]

    return Net(nnx.Rngs(0)), lambda model, x: jnp.mean(jnp.square(model(x))), outputs


def nnx_state():
    from flax import nnx

    model, loss_fn, outputs = nnx_model()
    graph, state = nnx.split(model)
    return (
        state,
        lambda state, x: loss_fn(nnx.merge(graph, state), x),
        lambda state: outputs(nnx.merge(graph, state)),
    )


def equinox_model():
    import equinox as eqx

    model = eqx.nn.MLP(6, 3, 8, 1, key=KEY)
    model = eqx.tree_at(lambda m: [layer.bias for layer in m.layers], model, replace_fn=jnp.zeros_like)

    def outputs(model):
        return [jax.vmap(model.layers[0])(X), jax.vmap(model)(X)]

    return model, lambda model, x: jnp.mean(jnp.square(jax.vmap(model)(x))), outputs


@pytest.mark.parametrize("build", [linen, nnx_model, nnx_state, equinox_model])
@pytest.mark.parametrize("key", [None, KEY])
def test_every_layer_of_a_framework_model_has_variance_one(build, key, third_party_model):
    pytest.importorskip("equinox" if build is equinox_model else "flax")
    params, loss_fn, outputs = build()
    new = lsuv(loss_fn, params, X, key=key)
    assert type(new) is type(params)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    np.testing.assert_allclose([output.var() for output in outputs(new)], 1, atol=1e-3)


def test_convolution_kernels_are_drawn_orthogonal_in_the_layout_of_the_layer(third_party_model):
    eqx = pytest.importorskip("equinox")
    layer = eqx.nn.Conv1d(3, 4, 5, dtype=jnp.float32, key=KEY)  # out, in, window
    x = jax.random.normal(KEY, (16, 3, 12), jnp.float32)
    new = lsuv(lambda layer, x: jnp.mean(jnp.square(jax.vmap(layer)(x))), layer, x, key=KEY)
    matrix = np.asarray(new.weight).reshape(4, 15)
    np.testing.assert_allclose(matrix @ matrix.T / np.sum(matrix[0] ** 2), np.eye(4), atol=1e-5)


@pytest.mark.parametrize("key", [None, KEY])
def test_stacked_layers_are_scaled_slice_by_slice(key):
    stack = {"kernel": jnp.stack(plain_kernels(6, 6, 6, 6)), "bias": jnp.ones((3, 6), jnp.float32)}

    def layer(x, own):
        output = x @ own["kernel"]
        return jnp.tanh(output + own["bias"][None]), output

    forward = lambda stack, x: jax.lax.scan(layer, x, stack)  # noqa: E731
    new = lsuv(lambda stack, x: jnp.mean(forward(stack, x)[0]), stack, X, key=key)
    np.testing.assert_allclose(forward(new, X)[1].var(axis=(1, 2)), 1, atol=1e-4)
    assert new["bias"] is stack["bias"]
    if key is not None:
        grams = jnp.einsum("lio,ljo->lij", new["kernel"], new["kernel"])
        np.testing.assert_allclose(grams / grams[:, :1, :1], np.broadcast_to(np.eye(6), (3, 6, 6)), atol=1e-5)


def test_a_tied_kernel_is_scaled_for_its_first_layer_and_a_tied_table_for_the_head():
    (kernel,) = plain_kernels(6, 6)
    forward = lambda w, x: (x @ w, jnp.tanh(x @ w) @ w)  # noqa: E731
    new = lsuv(lambda w, x: jnp.mean(forward(w, x)[1]), kernel, X)
    np.testing.assert_allclose(forward(new, X)[0].var(), 1, atol=1e-4)

    tokens = jnp.arange(8)
    params = {"table": jax.random.normal(KEY, (8, 6), jnp.float32), "inner": 3 * kernel}
    inner = lambda p, tokens: p["table"][tokens] @ p["inner"]  # noqa: E731
    logits = lambda p, tokens: jnp.tanh(inner(p, tokens)) @ p["table"].T  # noqa: E731
    new = lsuv(lambda p, tokens: jnp.mean(logits(p, tokens)), params, tokens)
    np.testing.assert_allclose([inner(new, tokens).var(), logits(new, tokens).var()], 1, atol=0.01)


def test_a_recurrence_is_scaled_over_all_steps():
    w, u = plain_kernels(6, 5, 5)
    xs = jax.random.normal(KEY, (7, 16, 6), jnp.float32)

    def forward(params, xs):
        def step(h, x):
            outputs = (x @ params["w"], h @ params["u"])
            return jnp.tanh(sum(outputs)), outputs

        return jax.lax.scan(step, jnp.zeros((16, 5), jnp.float32), xs)

    new = lsuv(lambda params, xs: jnp.mean(forward(params, xs)[0]), {"w": w, "u": u}, xs)
    np.testing.assert_allclose([output.var() for output in forward(new, xs)[1]], 1, atol=0.01)


def test_other_leaves_are_the_same_objects_and_types_stay():
    kernel = plain_kernels(6, 4)[0].astype(jnp.bfloat16)
    params = {"kernel": kernel, "bias": np.ones(4, np.float32), "name": "net", "rate": 0.5, "none": None}

    def loss_fn(params, x):
        y = (x.astype(jnp.bfloat16) @ params["kernel"]).astype(jnp.float32)
        return jnp.mean(params["rate"] * y + params["bias"][None]), "aux"

    new = lsuv(loss_fn, params, X, has_aux=True)
    assert new["kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose((X.astype(jnp.bfloat16) @ new["kernel"]).astype(jnp.float32).var(), 1, atol=0.02)
    for name in ("bias", "name", "rate", "none"):
        assert new[name] is params[name]


def test_layers_that_cannot_have_variance_one_are_named_in_a_warning():
    kernels = [*plain_kernels(6, 5), jnp.zeros((5, 2), jnp.float32)]
    with pytest.warns(UserWarning, match=r"1 whose variance does not, in max_steps=2 passes: 1 \(0\)"):
        new = lsuv(loss_of_chain, kernels, X, max_steps=2)
    np.testing.assert_allclose(chain(new, X)[0][0].var(), 1, atol=1e-4)
    np.testing.assert_array_equal(new[1], 0)
    normalized = lambda w, x: jnp.mean(x @ (5 * w / jnp.linalg.norm(w)))  # noqa: E731
    with pytest.warns(UserWarning, match="1 whose variance does not"):
        lsuv(normalized, plain_kernels(6, 5)[0], X, max_steps=2)


def test_lsuv_refuses(unchecked):
    kernels = plain_kernels(6, 3)
    with pytest.raises(ValueError, match="positive, finite tol"):
        lsuv(loss_of_chain, kernels, X, tol=0.0)
    with pytest.raises(ValueError, match="max_steps of at least 1"):
        lsuv(loss_of_chain, kernels, X, max_steps=0)
    with pytest.raises(TypeError, match="lsuv: expected concrete arrays"):
        jax.jit(lambda kernels: lsuv(loss_of_chain, kernels, X))(kernels)
    with pytest.raises(ValueError, match="parameters multiply activations"):
        lsuv(lambda table, tokens: jnp.mean(jnp.tanh(table[tokens])), kernels[0], jnp.arange(3))
