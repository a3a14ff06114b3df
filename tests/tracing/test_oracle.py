"""Networks drawn at random: blocks multiply up to the trunk's Jacobian, and nothing the user computes changes.

`PYTHONPATH=. python -c "from tests.networks import from_seed; print(from_seed(7).words)"` says what a seed is.
"""

from __future__ import annotations

import functools
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad
from jaxgrad.spectra import block_jacobians
from tests import networks

pytestmark = pytest.mark.usefixtures("x64", "third_party_model")

SEEDS = [*range(12), *(pytest.param(seed, marks=pytest.mark.heavy) for seed in range(1000, 1212))]
EAGER = [*range(0, 12, 3), *(pytest.param(seed, marks=pytest.mark.heavy) for seed in range(1000, 1200, 2))]


@functools.lru_cache(maxsize=4)
def traced(seed: int) -> tuple[networks.Case, Any]:
    case = networks.from_seed(seed)
    return case, jaxgrad.trace(case.loss_fn, case.params, *case.args, has_aux=case.has_aux)


def loss_of(outputs: Any, has_aux: bool) -> jax.Array:
    return outputs[0] if has_aux else outputs


def close(one: Any, other: Any, tolerance: float = 1e-10) -> None:
    """Leaf by leaf, relative to the scale of the whole tree."""
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    assert [np.shape(leaf) for leaf in leaves] == [np.shape(leaf) for leaf in others]
    scale = max([float(jnp.abs(leaf).max()) for leaf in others if np.size(leaf)], default=0.0)
    for leaf, expected in zip(leaves, others, strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=tolerance * max(scale, 1e-12))


def identical(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for leaf, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert leaf.dtype == expected.dtype
        np.testing.assert_array_equal(leaf, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_multiply_up_to_the_trunk(seed: int) -> None:
    case, network = traced(seed)
    jacobians = block_jacobians(network, case.params, *case.args)
    assert [block.index for block in network.blocks] == list(range(len(jacobians)))
    for block, jacobian in zip(network.blocks, jacobians, strict=True):
        total = [sum(int(np.prod(shape)) for shape in shapes) for shapes in (block.output_shapes, block.input_shapes)]
        assert [len(jacobian) * size for size in jacobian.shape[1:]] == total
    networks.check_chains(network, jacobians, case)


@pytest.mark.parametrize("seed", SEEDS)
def test_layers_are_named_by_parameter_path(seed: int) -> None:
    case, network = traced(seed)
    networks.check_names(network, case.layers)
    inside = {layer.name for block in network.blocks for layer in block.layers}
    assert inside <= {layer.name for layer in network.layers}


@pytest.mark.parametrize("seed", SEEDS)
def test_outputs_are_reproduced_bit_for_bit_under_jit(seed: int) -> None:
    case, network = traced(seed)
    identical(jax.jit(network)(case.params, *case.args), jax.jit(case.loss_fn)(case.params, *case.args))


@pytest.mark.parametrize("seed", EAGER)
def test_outputs_are_reproduced_bit_for_bit_eagerly(seed: int) -> None:
    case, network = traced(seed)
    identical(network(case.params, *case.args), case.loss_fn(case.params, *case.args))


@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_through_capture_are_the_users(seed: int) -> None:
    case, network = traced(seed)

    trunks = [trunk for trunk in case.trunks if trunk.readout is not None]

    def captured(params: Any, taps: Any) -> tuple[jax.Array, Any]:
        seen = network.capture(params, *case.args, taps=taps)
        return loss_of(seen.outputs, case.has_aux), (seen.cuts, seen.layer_inputs)

    def below(state: Any, params: Any, trunk: networks.Trunk) -> jax.Array:
        return trunk.readout(params, trunk.run(params, state, *case.args), *case.args)

    def differentiate(params: Any, taps: Any) -> Any:
        own = jax.grad(captured, argnums=(0, 1), has_aux=True)(params, taps)
        expected = jax.grad(lambda params: loss_of(case.loss_fn(params, *case.args), case.has_aux))(params)
        states = [trunk.start(params, *case.args) for trunk in trunks]
        return own, expected, states, [jax.grad(below)(s, params, t) for s, t in zip(states, trunks, strict=True)]

    compiled = networks.quick_jit(differentiate)
    ((gradients, signals), (cuts, layer_inputs)), expected, states, backward = compiled(case.params, network.taps())
    close(gradients, expected)

    assert len(layer_inputs) == len(network.layers)
    for layer, entering in zip(network.layers, layer_inputs, strict=True):
        assert entering.shape[entering.ndim - len(layer.input_shape) :] == layer.input_shape

    assert len(cuts) == len(signals)
    for state, expected_signal in zip(states, backward, strict=True):
        matching = [i for i, cut in enumerate(cuts) if _flat(cut).shape == (state.size,) and _same(_flat(cut), state)]
        assert matching, f"no cut holds the trunk's input of shape {state.shape}: {[c[0].shape for c in cuts]}"
        close(_flat(signals[matching[0]]), expected_signal.reshape(-1))


def _flat(cut: Any) -> jax.Array:
    return jnp.concatenate([leaf.reshape(-1) for leaf in cut])


def _same(flat: jax.Array, state: jax.Array) -> bool:
    return bool(jnp.allclose(flat, state.reshape(-1), rtol=1e-12, atol=1e-12))


@pytest.mark.heavy
@hypothesis.settings(
    max_examples=60, suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]
)
@hypothesis.given(case=networks.cases())
def test_shrinkable(case: networks.Case) -> None:
    """Every property at once, on networks that hypothesis can make smaller."""
    network = jaxgrad.trace(case.loss_fn, case.params, *case.args, has_aux=case.has_aux)
    networks.check_names(network, case.layers)
    identical(jax.jit(network)(case.params, *case.args), jax.jit(case.loss_fn)(case.params, *case.args))
    networks.check_chains(network, block_jacobians(network, case.params, *case.args), case)


def test_grammar_draws_different_networks() -> None:
    drawn = {networks.from_seed(seed).words for seed in range(100)}
    assert len(drawn) > 95
    for word in (
        "recurrent",
        "tokens",
        "attention",
        "u_net",
        "stack",
        "shared",
        "dead",
        "film",
        "closed over",
        "uint8",
    ):
        assert any(word in words for words in drawn), f"{word} is never drawn"
