"""Prefixes and suffixes of a network against `jax.jacfwd`, their scales at depth, and their spectra."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad
from jaxgrad import spectra
from tests import models, networks

LOG10_2 = np.log10(2.0)


def normal(seed, *shape, dtype=None):
    values = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(values, jnp.result_type(float) if dtype is None else dtype)


def dense(layer, h):
    return jnp.tanh(h @ layer["w"])


def residual(layer, h):
    return h + jnp.tanh(h @ layer["v"]) @ layer["w"]


def convolution(layer, h):
    shaped = h.reshape(len(h), 4, 4, -1)
    out = jax.lax.conv_general_dilated(shaped, layer["k"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(out).reshape(len(h), -1)


def linear(layer, h):
    return h @ layer["w"]


def network_of(name):
    """The blocks' functions, their parameters and the input."""
    if name == "mlp of unequal widths":
        sizes = (4, 7, 3, 5, 5, 2)
        params = [{"w": normal(i, *pair)} for i, pair in enumerate(itertools.pairwise(sizes))]
        return [dense] * 4 + [linear], params, normal(9, 3, 4)
    if name == "residual":
        params = [{"v": normal(i, 4, 16), "w": normal(i + 9, 16, 4)} for i in range(3)]
        return [residual] * 3, params, normal(9, 3, 4)
    if name == "wide input, wide branches":  # where the Jacobian of a block is formed and multiplied
        params = [{"w": normal(0, 20, 3)}, {"v": normal(1, 3, 64), "w": normal(2, 64, 3)}, {"w": normal(3, 3, 20)}]
        return [dense, residual, linear], params, normal(9, 2, 20)
    params = [{"k": normal(0, 3, 3, 1, 2)}, {"k": normal(1, 3, 3, 2, 2)}, {"w": normal(2, 32, 3)}]
    return [convolution, convolution, linear], params, normal(9, 2, 16)


NETWORKS = ["mlp of unequal widths", "residual", "wide input, wide branches", "cnn"]


def traced(name):
    functions, params, x = network_of(name)

    def loss_fn(params, x):
        for function, layer in zip(functions, params, strict=True):
            x = function(layer, x)
        return jnp.sum(x**2)

    return jaxgrad.trace(loss_fn, params, x), functions, params, x


def chain(matrices, count=2):
    """A network of linear layers with the given matrices as Jacobians."""
    params = [jnp.asarray(matrix).T for matrix in matrices]
    x = jnp.ones((count, params[0].shape[0]), params[0].dtype)
    network = jaxgrad.trace(lambda params, x: jnp.sum(functools.reduce(jnp.matmul, params, x)), params, x)
    return network, params, x


def unscaled(product):
    matrix, scale = np.asarray(product.matrix, np.float64), np.asarray(product.log10_scale, np.float64)
    return matrix * 2.0 ** np.round(scale / LOG10_2)[:, None, None]


def multiplied(jacobians):
    """Every prefix and every suffix of a list of Jacobians, in order of the blocks."""
    matrices = [np.asarray(jacobian, np.float64) for jacobian in jacobians]
    after = lambda product, matrix: matrix @ product  # noqa: E731
    before = lambda product, matrix: product @ matrix  # noqa: E731
    prefixes = [functools.reduce(after, matrices[: i + 1]) for i in range(len(matrices))]
    suffixes = [functools.reduce(before, matrices[i:][::-1]) for i in range(len(matrices))]
    return prefixes, suffixes


@pytest.mark.parametrize(("name", "chunk_size"), [*((name, None) for name in NETWORKS), ("residual", 2)])
def test_prefixes_and_suffixes_equal_jacfwd_of_the_parts(name, chunk_size, x64):
    network, functions, params, x = traced(name)
    prefixes = list(spectra.prefix_jacobians(network, params, x, chunk_size=chunk_size))
    suffixes = list(spectra.suffix_jacobians(network, params, x, chunk_size=chunk_size))[::-1]
    assert len(prefixes) == len(suffixes) == len(functions)

    def part(start, stop, h):
        for function, layer in zip(functions[start:stop], params[start:stop], strict=True):
            h = function(layer, h[None])[0]
        return h

    @networks.quick_jit
    def expected(x):
        states = [jax.vmap(functools.partial(part, 0, index))(x) for index in range(len(functions))]
        return [
            (
                jax.vmap(jax.jacfwd(functools.partial(part, 0, index + 1)))(x),
                jax.vmap(jax.jacfwd(functools.partial(part, index, len(functions))))(state),
            )
            for index, state in enumerate(states)
        ]

    for prefix, suffix, (first, last) in zip(prefixes, suffixes, expected(x), strict=True):
        np.testing.assert_allclose(unscaled(prefix), first, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(unscaled(suffix), last, rtol=1e-10, atol=1e-12)


HEAVY = ["linen_cnn", "linen_resnet_train"]


@pytest.mark.parametrize(
    "name", ["linen_gru", "bfloat16", *(pytest.param(name, marks=pytest.mark.heavy) for name in HEAVY)]
)
def test_products_are_those_of_the_block_jacobians(name, third_party_model):
    model = models.MODELS[name]()
    network = jaxgrad.trace(model.loss_fn, model.params, *model.args, has_aux=model.has_aux)
    arguments = (network, model.params, *model.args)
    jacobians = spectra.block_jacobians(*arguments)
    prefixes = list(spectra.prefix_jacobians(*arguments))
    suffixes = list(spectra.suffix_jacobians(*arguments))[::-1]
    for number in {block.chain for block in network.blocks}:
        members = [block.index for block in network.blocks if block.chain == number]
        for found, expected in zip((prefixes, suffixes), multiplied([jacobians[i] for i in members]), strict=True):
            for index, matrix in zip(members, expected, strict=True):
                got = unscaled(found[index])
                assert got.shape == matrix.shape
                np.testing.assert_allclose(got, matrix, rtol=1e-4, atol=1e-5 * np.abs(matrix).max())
        np.testing.assert_allclose(
            unscaled(prefixes[members[-1]]), unscaled(suffixes[members[0]]), rtol=1e-4, atol=1e-5 * np.abs(matrix).max()
        )
    if model.mixes:
        assert all(len(product.matrix) == 1 for product in prefixes)


@pytest.mark.heavy
def test_steps_of_a_loop(x64):
    inputs, weights = normal(0, 6, 2, 3), {"a": normal(1, 3, 3), "r": normal(2, 3, 3)}

    def step(params, h, x):
        return jnp.tanh(h @ params["r"] + x @ params["a"])

    def loss_fn(params, inputs):
        carry, _ = jax.lax.scan(lambda h, x: (step(params, h, x), None), jnp.zeros((2, 3), inputs.dtype), inputs)
        return jnp.sum(carry)

    network = jaxgrad.trace(loss_fn, weights, inputs)
    prefixes = list(spectra.prefix_jacobians(network, weights, inputs))
    found = spectra.block_spectra(network, weights, inputs, products="both")
    assert [block.kind for block in network.blocks] == ["time"] * 6

    def first_steps(count, h, inputs):
        return functools.reduce(lambda h, x: step(weights, h[None], x[None])[0], inputs[:count], h)

    for count, product in enumerate(prefixes, start=1):
        run = functools.partial(first_steps, count)
        expected = jax.vmap(jax.jacfwd(run), (0, 1))(jnp.zeros((2, 3), inputs.dtype), inputs)
        np.testing.assert_allclose(unscaled(product), expected, rtol=1e-10, atol=1e-12)
        values = np.log10(np.linalg.svd(expected, compute_uv=False))
        np.testing.assert_allclose(found.prefixes[count - 1], values, atol=1e-8)
    np.testing.assert_allclose(found.suffixes[0], found.prefixes[-1], atol=1e-8)


def test_scales_are_exact_far_outside_of_floating_point():
    scales = jnp.asarray(np.resize([3.0, 2.0**-90], (400, 1, 1)), jnp.float32)
    params = {"w": jnp.eye(3, dtype=jnp.float32)}

    def loss_fn(params, scales):
        carry, _ = jax.lax.scan(
            lambda h, scale: ((h @ params["w"]) * scale, None), jnp.ones((1, 3), scales.dtype), scales
        )
        return jnp.sum(carry)

    network = jaxgrad.trace(loss_fn, params, scales)
    *_, last = spectra.prefix_jacobians(network, params, scales)
    exponent = np.round(float(last.log10_scale[0]) / LOG10_2)
    assert last.matrix.shape == (1, 3, 3)
    np.testing.assert_allclose(np.log2(last.matrix[0, 0, 0]) + exponent, 200 * (np.log2(3.0) - 90), rtol=1e-8)


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_units_far_from_one_neither_overflow_nor_underflow(unit):
    matrices = [normal(i, 3, 3, dtype=jnp.float32) * unit for i in range(6)]
    network, params, x = chain(matrices)
    found = spectra.block_spectra(network, params, x, products="both")
    plain = functools.reduce(
        lambda product, matrix: np.asarray(matrix / unit, np.float64) @ product, matrices, np.eye(3)
    )
    expected = np.log10(np.linalg.svd(plain, compute_uv=False)) + 6 * np.log10(unit)
    np.testing.assert_allclose(found.prefixes[-1][0], expected, atol=1e-2)
    np.testing.assert_allclose(found.suffixes[0], found.prefixes[-1], atol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("shape", [(4, 4), (3, 6), (6, 3), (1, 4)])
def test_spectra_of_blocks_equal_numpy(dtype, shape, x64):
    matrix = normal(0, *shape, dtype=dtype)
    network, params, x = chain([matrix])
    found = spectra.block_spectra(network, params, x)
    expected = np.log10(np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False))
    np.testing.assert_allclose(found.blocks[0], np.stack([expected] * 2), atol=1e-5 if dtype == jnp.float32 else 1e-12)
    assert found.prefixes == found.suffixes == ()
    assert found.block_accuracy[0] == pytest.approx(np.finfo(dtype).eps * max(shape) ** 0.5)


@pytest.mark.parametrize("resolve", ["largest", "all"])
def test_products_chosen_are_those_returned(resolve):
    network, params, x = chain([normal(i, 3, 3) for i in range(2)])
    for products, counts in (("none", (0, 0)), ("prefix", (2, 0)), ("suffix", (0, 2)), ("both", (2, 2))):
        found = spectra.block_spectra(network, params, x, products=products, resolve=resolve)
        assert (len(found.prefixes), len(found.suffixes)) == counts
        assert (len(found.prefix_accuracy), len(found.suffix_accuracy)) == counts


def test_values_far_below_the_largest_need_resolving():
    """Each factor shrinks its last direction a hundredfold."""
    rng = np.random.default_rng(0)
    turns = [np.linalg.qr(rng.standard_normal((3, 3)))[0] for _ in range(11)]
    sizes = np.diag([1.0, 0.1, 0.01])
    matrices = [after @ sizes @ before.T for before, after in itertools.pairwise(turns)]
    network, params, x = chain([jnp.asarray(matrix, jnp.float32) for matrix in matrices])
    found = spectra.block_spectra(network, params, x, products="both", resolve="all")
    for count in range(1, 11):
        expected = count * np.array([0.0, -1.0, -2.0])
        np.testing.assert_allclose(found.prefixes[count - 1][0], expected, atol=1e-3)
        np.testing.assert_allclose(found.suffixes[10 - count][0], expected, atol=1e-3)
    assert found.prefix_accuracy == (0.0,) * 10
    plain = spectra.block_spectra(network, params, x, products="prefix")
    for count, (values, accuracy) in enumerate(zip(plain.prefixes, plain.prefix_accuracy, strict=True), start=1):
        expected = count * np.array([0.0, -1.0, -2.0])
        errors = np.abs(10.0 ** values[0] - 10.0**expected)
        assert np.all(errors < accuracy)


@pytest.mark.parametrize("resolve", ["largest", "all"])
def test_a_zero_block_and_one_that_is_not_finite(resolve):
    first, last = normal(0, 3, 3), normal(1, 3, 3)
    network, params, x = chain([first, jnp.zeros((3, 3)), last])
    found = spectra.block_spectra(network, params, x, products="both", resolve=resolve)
    assert np.isfinite(found.blocks[0]).all()
    assert np.isneginf(found.blocks[1]).all()
    assert np.isneginf(found.prefixes[1:]).all()
    assert np.isneginf(found.suffixes[:2]).all()
    assert np.isfinite(found.prefixes[0]).all()
    assert np.isfinite(found.suffixes[2]).all()
    params[1] = jnp.full((3, 3), jnp.nan)
    found = spectra.block_spectra(network, params, x, products="both", resolve=resolve)
    assert np.isnan(found.prefixes[1:]).all()
    assert np.isnan(found.suffixes[:2]).all()
    assert np.isfinite(found.prefixes[0]).all()
    assert np.isfinite(found.suffixes[2]).all()


def test_a_bottleneck_makes_zeros():
    network, params, x = chain([normal(0, 2, 5), normal(1, 5, 2)])
    found = spectra.block_spectra(network, params, x, products="prefix")
    assert [values.shape for values in found.prefixes] == [(2, 2), (2, 5)]
    assert np.isfinite(found.prefixes[1][:, :2]).all()
    assert np.all(found.prefixes[1][:, 2:] < found.prefixes[1][:, :1] + np.log10(found.prefix_accuracy[1]))


def test_equal_blocks_share_a_program_and_others_do_not():
    network, params, x = chain([jnp.eye(3)] * 6)
    assert len(list(spectra.prefix_jacobians(network, params, x))) == 6
    assert len(set(map(id, network.program._compiled["blocks"].values()))) == 2  # the first block, and the others

    def loss_fn(params, x):
        return jnp.sum(jnp.tanh(x @ params["a"]) @ params["b"])

    scaled = {"a": jnp.eye(3), "b": 2 * jnp.eye(3)}
    network = jaxgrad.trace(loss_fn, scaled, x)
    tanh, identity = spectra.block_jacobians(network, scaled, x)
    np.testing.assert_allclose(tanh[0], np.eye(3) * (1 - np.tanh(1.0) ** 2), rtol=1e-5)
    np.testing.assert_allclose(identity[0], 2 * np.eye(3))


def test_other_values_of_the_parameters_are_measured_afresh():
    network, params, x = chain([jnp.eye(3)] * 2)
    for factor in (1.0, 4.0):
        scaled = [factor * weight for weight in params]
        *_, last = spectra.prefix_jacobians(network, scaled, x)
        np.testing.assert_allclose(unscaled(last)[0], factor**2 * np.eye(3))


def test_products_run_under_jit():
    network, params, x = chain([normal(i, 3, 3) for i in range(3)])
    products = jax.jit(lambda params: list(spectra.prefix_jacobians(network, params, x)))(params)
    for got, expected in zip(products, spectra.prefix_jacobians(network, params, x), strict=True):
        np.testing.assert_allclose(unscaled(got), unscaled(expected), rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="outside of jit"):
        jax.jit(lambda params: spectra.block_spectra(network, params, x))(params)


@pytest.mark.parametrize(
    "function", [spectra.block_jacobians, spectra.prefix_jacobians, spectra.suffix_jacobians, spectra.block_spectra]
)
@pytest.mark.parametrize("chunk_size", [0, -1, 1.5])
def test_a_chunk_size_that_is_no_positive_number(function, chunk_size, unchecked):
    network, params, x = chain([jnp.eye(3)])
    with pytest.raises(ValueError, match=f"{function.__name__}: expected chunk_size of at least 1"):
        function(network, params, x, chunk_size=chunk_size)


@pytest.mark.parametrize(("name", "value"), [("products", "prefixes"), ("resolve", "small")])
def test_an_unknown_choice(name, value, unchecked):
    network, params, x = chain([jnp.eye(3)])
    with pytest.raises(ValueError, match=f"block_spectra: expected {name} one of"):
        spectra.block_spectra(network, params, x, **{name: value})


def test_arguments_of_other_shapes_are_refused_at_the_call():
    network, params, x = chain([jnp.eye(3)])
    with pytest.raises(ValueError, match="as traced"):
        spectra.prefix_jacobians(network, params, x[:1])
