"""Models as users write them: names, cuts, the oracle, and nothing of what they compute changed."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad
from jaxgrad.spectra import block_jacobians
from tests import models, networks

pytestmark = pytest.mark.usefixtures("third_party_model")

EXACT = [name for name in models.MODELS if name not in ("float16", "bfloat16", "mixed_precision")]
LONG = ("linen_transformer_post", "linen_u_net")
EVERY = [pytest.param(name, marks=pytest.mark.heavy) if name in LONG else name for name in models.MODELS]
# Those whose gradients or Jacobians take long to compile, beside others like them.
COSTLY = {
    *LONG,
    "linen_transformer_pre",
    "linen_resnet_train",
    "linen_lstm",
    "linen_optimized_lstm",
    "equinox_transformer",
}
CHEAP = [pytest.param(name, marks=pytest.mark.heavy) if name in COSTLY else name for name in models.MODELS]
EAGER = ["linen_resnet_train", "linen_transformer_pre", "linen_lstm", "same_nnx_module", "same_equinox_module"]


@pytest.fixture
def double(request: pytest.FixtureRequest) -> None:
    """Double precision, except where the model says its own."""
    name = request.node.callspec.params["name"]
    if name in EXACT:
        request.getfixturevalue("x64")


@functools.lru_cache(maxsize=4)
def traced(name: str) -> tuple[models.Model, Any]:
    model = models.MODELS[name]()
    assert model.exact == (name in EXACT)
    if model.exact:
        model = models.in_float64(model)
    return model, jaxgrad.trace(model.loss_fn, model.params, *fresh(model.args), has_aux=model.has_aux)


def fresh(args: Any) -> Any:
    """Copies, for a loss that donates."""
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, args)


def identical(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for leaf, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert jnp.result_type(leaf) == jnp.result_type(expected)
        np.testing.assert_array_equal(leaf, expected)


def partitioned(params: Any) -> tuple[list[Any], Any]:
    """The arrays among the parameters, and how to put them back beside what is no array."""
    leaves, structure = jax.tree.flatten(params)
    dynamic = [isinstance(leaf, jax.Array) for leaf in leaves]

    def merge(arrays: list[Any]) -> Any:
        remaining = iter(arrays)
        both = [next(remaining) if on else leaf for leaf, on in zip(leaves, dynamic, strict=True)]
        return jax.tree.unflatten(structure, both)

    return [leaf for leaf, on in zip(leaves, dynamic, strict=True) if on], merge


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.usefixtures("double")
def test_names(name: str) -> None:
    model, network = traced(name)
    if model.layers is not None:
        named = {networks.canonical(path) for layer in network.layers for path in layer.parameters}
        indexed = {networks.canonical(layer.name) for layer in network.layers}
        assert indexed == model.layers
        assert {path.split("[")[0] for path in indexed} <= {path.split("[")[0] for path in named}
    for layer in network.layers:
        assert layer.source.split(":")[0].endswith((".py", "unknown"))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.usefixtures("double")
def test_cuts(name: str) -> None:
    model, network = traced(name)
    assert [block.index for block in network.blocks] == list(range(len(network.blocks)))
    if model.blocks is None:
        return
    without_embeddings = [
        frozenset(networks.canonical(layer.name) for layer in block.layers if layer.operation != "gather")
        for block in network.blocks
    ]
    assert tuple(names for names in without_embeddings if names) == model.blocks
    for before, after in zip(network.blocks, network.blocks[1:], strict=False):
        if before.chain == after.chain:
            assert before.output_shapes == after.input_shapes


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.usefixtures("double")
def test_blocks_multiply_up_to_the_trunk(name: str) -> None:
    model, network = traced(name)
    jacobians = block_jacobians(network, model.params, *model.args)
    assert all(np.isfinite(np.asarray(jacobian, np.float64)).all() for jacobian in jacobians)
    tolerance = {"float16": 0.02, "bfloat16": 0.1}.get(name, 1e-10)
    networks.check_chains(network, jacobians, model, tolerance)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.usefixtures("double")
def test_outputs_are_reproduced_bit_for_bit_under_jit(name: str) -> None:
    model, network = traced(name)
    arrays, merge = partitioned(model.params)
    reproduced = jax.jit(lambda arrays, *args: network(merge(arrays), *args))(arrays, *fresh(model.args))
    identical(
        reproduced, jax.jit(lambda arrays, *args: model.loss_fn(merge(arrays), *args))(arrays, *fresh(model.args))
    )


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.usefixtures("double")
def test_outputs_are_reproduced_bit_for_bit_eagerly(name: str) -> None:
    model, network = traced(name)
    identical(network(model.params, *model.args), model.loss_fn(model.params, *model.args))


@pytest.mark.parametrize("name", CHEAP)
@pytest.mark.usefixtures("double")
def test_gradients_are_the_users(name: str) -> None:
    model, network = traced(name)
    arrays, merge = partitioned(model.params)

    def first(outputs: Any) -> jax.Array:
        return (outputs[0] if model.has_aux else outputs).astype(float)

    def captured(arrays: list[Any], taps: Any) -> jax.Array:
        return first(network.capture(merge(arrays), *model.args, taps=taps).outputs)

    def differentiate(arrays: list[Any], taps: Any, *args: Any) -> Any:
        users = jax.grad(lambda a: first(model.loss_fn(merge(a), *args)), allow_int=True)(arrays)
        return jax.grad(captured, argnums=(0, 1), allow_int=True)(arrays, taps), users

    (gradients, signals), expected = networks.quick_jit(differentiate)(arrays, network.taps(), *fresh(model.args))
    tolerance = {"float16": 1e-2, "bfloat16": 5e-2, "mixed_precision": 5e-2}.get(name, 1e-10)
    for leaf, own in zip(gradients, expected, strict=True):
        if leaf.dtype == jax.dtypes.float0:
            continue
        leaf, own = np.asarray(leaf, np.float64), np.asarray(own, np.float64)
        np.testing.assert_allclose(leaf, own, rtol=0, atol=tolerance * max(np.abs(own).max(), 1e-12))
    assert all(bool(jnp.isfinite(signal).all()) for signal in jax.tree.leaves(signals))


def test_pre_norm_transformer_is_cut_at_the_residual_stream(x64: None) -> None:
    _, network = traced("linen_transformer_pre")
    kernels = [sorted(layer.name.split("/")[-2] for layer in block.layers) for block in network.blocks]
    attention, dense = ["key", "out", "query", "value"], ["Dense_0", "Dense_1"]
    assert [names for names in kernels if names not in (["token"], [])] == [
        attention,
        dense,
        attention,
        dense,
        ["head"],
    ]
    streams = {block.input_shapes for block in network.blocks if len(block.layers) > 1}
    assert streams == {((2, 3, 4),)}


def test_one_network_written_in_six_ways_is_read_alike(x64: None) -> None:
    read = []
    for name in models.SAME:
        model, network = traced(name)
        product = networks.chain_products(network.blocks, block_jacobians(network, model.params, *model.args))
        shapes = [(b.kind, b.chain, b.input_shapes, b.output_shapes, len(b.layers)) for b in network.blocks]
        read.append((shapes, product, float(network(model.params, *model.args))))
    first = read[0]
    for shapes, product, loss in read[1:]:
        assert shapes == first[0]
        np.testing.assert_allclose(loss, first[2], rtol=1e-12)
        np.testing.assert_allclose(product[0][2], first[1][0][2], rtol=0, atol=1e-12)


def test_donated_arguments_survive(x64: None) -> None:
    model, network = traced("jit_static_donated")
    network(model.params, *model.args)
    network.capture(model.params, *model.args)
    block_jacobians(network, model.params, *model.args)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((model.params, model.args)))


def test_a_layer_in_a_recurrence_is_named_once(x64: None) -> None:
    for name in ("linen_optimized_lstm", "linen_lstm", "linen_gru"):
        model, network = traced(name)
        leaves = jax.tree_util.tree_leaves_with_path(model.params)
        kernels = {jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves if leaf.ndim == 2}
        assert {path for layer in network.layers for path in layer.parameters if path.endswith("kernel")} == kernels
        steps = [block for block in network.blocks if block.kind == "time"]
        assert len(steps) == model.num_steps
        captured = network.capture(model.params, *model.args)
        inside = [
            x for x, layer in zip(captured.layer_inputs, network.layers, strict=True) if x.ndim > len(layer.input_shape)
        ]
        assert {len(x) for x in inside} == {model.num_steps}


def test_variance_clamped_in_a_normalization_is_no_activation():
    def loss_fn(params, x):
        for weight in params:
            centred = x - x.mean(-1, keepdims=True)
            variance = jnp.maximum(jnp.mean(jnp.square(centred), -1, keepdims=True), 0.0)
            x = jnp.tanh((centred * jax.lax.rsqrt(variance + 1e-5)) @ weight)
        return jnp.mean(jnp.square(x))

    keys = jax.random.split(jax.random.key(0), 3)
    params = [jax.random.normal(key, (8, 8)) for key in keys]
    network = jaxgrad.trace(loss_fn, params, jnp.ones((4, 5, 8)) * jnp.arange(8.0))
    assert {activation.name for activation in network.activations} == {"tanh"}
