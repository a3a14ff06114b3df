"""A traced network is an ordinary JAX function: every transformation passes through it and through `capture`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxgrad
from tests import models

pytestmark = pytest.mark.usefixtures("x64", "third_party_model")

SMALL = ["same_plain", "linen_gru", "linen_scanned", "jit_static_donated"]
NAMES = [*SMALL, pytest.param("linen_transformer_pre", marks=pytest.mark.heavy)]


@functools.cache
def traced(name: str) -> tuple[models.Model, Any]:
    model = models.in_float64(models.MODELS[name]())
    return model, jaxgrad.trace(model.loss_fn, model.params, *_copy(model.args), has_aux=model.has_aux)


def _copy(args: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, args)


def loss_of(model: models.Model, function: Callable[..., Any]) -> Callable[..., Any]:
    """The loss alone, as a function of parameters and arguments; each call on copies."""

    def loss(params: Any, *args: Any) -> jax.Array:
        outputs = function(params, *_copy(args))
        return outputs[0] if model.has_aux else outputs

    return loss


def through(network: Any, kind: str) -> Callable[..., Any]:
    return network if kind == "call" else lambda params, *args: network.capture(params, *args).outputs


def close(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for leaf, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        scale = max(float(np.abs(expected).max()), 1e-12)
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=1e-11 * scale)


@pytest.fixture(params=["call", "capture"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> models.Model:
    return traced(request.param)[0]


@pytest.fixture
def alike(request: pytest.FixtureRequest, model: models.Model) -> Callable[..., None]:
    """Check that a transformation of the network, and of its capture, is that of the user's loss."""
    _, network = traced(request.node.callspec.params["model"])
    losses = [
        loss_of(model, function) for function in (through(network, "call"), through(network, "capture"), model.loss_fn)
    ]

    def check(transform: Callable[..., Any], *args: Any) -> None:
        # In one compilation, which costs less than three.
        called, captured, users = jax.jit(lambda *args: [transform(loss)(*args) for loss in losses])(*args)
        close(called, users)
        close(captured, users)

    return check


def test_jit(model: Any, alike: Any) -> None:
    alike(jax.jit, model.params, *model.args)


def test_grad(model: Any, alike: Any) -> None:
    alike(jax.grad, model.params, *model.args)


def test_jacfwd_along_a_line(model: Any, alike: Any) -> None:
    """Forward mode: the derivative as the parameters are scaled."""

    def along(loss: Any) -> Any:
        return jax.jacfwd(lambda t: loss(jax.tree.map(lambda leaf: leaf * t, model.params), *model.args))

    alike(along, 1.0)


def test_linearize(model: Any, alike: Any) -> None:
    def tangent(loss: Any) -> Any:
        def along(params: Any) -> Any:
            value, push = jax.linearize(lambda params: loss(params, *model.args), params)
            return value, push(params)

        return along

    alike(tangent, model.params)


def test_vmap_over_parameters(model: Any, alike: Any) -> None:
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 0.5 * leaf, -leaf]), model.params)
    axes = (0, *(None for _ in model.args))
    alike(lambda loss: jax.vmap(loss, in_axes=axes), several, *model.args)


def test_hessian_vector_product(model: Any, alike: Any) -> None:
    """Forward over reverse."""

    def product(loss: Any) -> Any:
        gradient = jax.grad(lambda params: loss(params, *model.args))
        return lambda params: jax.jvp(gradient, (params,), (params,))[1]

    alike(product, model.params)


def test_vmap_over_data(kind: str) -> None:
    model, network = traced("same_plain")
    x, y = model.args
    xs = jnp.stack([x, 2 * x])
    close(
        jax.vmap(loss_of(model, through(network, kind)), in_axes=(None, 0, None))(model.params, xs, y),
        jax.vmap(loss_of(model, model.loss_fn), in_axes=(None, 0, None))(model.params, xs, y),
    )


def test_checkpoint_and_scan(kind: str) -> None:
    """Training steps in a `lax.scan`, each gradient rematerialised."""
    model, network = traced("same_plain")

    def train(loss: Any) -> Any:
        def step(params: Any, _: None) -> tuple[Any, jax.Array]:
            value, gradients = jax.value_and_grad(jax.checkpoint(loss))(params, *model.args)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), value

        return jax.jit(lambda params: jax.lax.scan(step, params, length=3))(model.params)

    close(train(loss_of(model, through(network, kind))), train(loss_of(model, model.loss_fn)))


@pytest.mark.parametrize("name", NAMES)
def test_taps_give_the_backward_signals_under_vmap(name: str) -> None:
    """Signals of several perturbations at once: a batch of taps."""
    model, network = traced(name)
    taps = network.taps()

    def signals(taps: Any) -> Any:
        outputs = lambda t: network.capture(model.params, *model.args, taps=t).outputs  # noqa: E731
        return jax.grad(lambda t: outputs(t)[0] if model.has_aux else outputs(t))(taps)

    one = jax.jit(signals)(taps)
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 0.01]), taps)
    mapped = jax.jit(jax.vmap(signals))(several)
    close(jax.tree.map(lambda leaf: leaf[0], mapped), one)
    moved = jax.jit(signals)(jax.tree.map(lambda leaf: leaf + 0.01, taps))
    close(jax.tree.map(lambda leaf: leaf[1], mapped), moved)


def test_a_tap_moves_what_comes_after_and_nothing_before() -> None:
    model, network = traced("same_plain")
    taps = list(network.taps())
    before = network.capture(model.params, *model.args)
    middle = len(taps) // 2
    taps[middle] = tuple(jnp.ones_like(leaf) for leaf in taps[middle])
    after = network.capture(model.params, *model.args, taps=taps)
    for index, (old, new) in enumerate(zip(before.cuts, after.cuts, strict=True)):
        same = all(bool(jnp.array_equal(a, b)) for a, b in zip(old, new, strict=True))
        assert same == (index < middle)
    close(after.cuts[middle], tuple(leaf + 1 for leaf in before.cuts[middle]))


@pytest.mark.parametrize("name", ["same_plain", "linen_gru"])
def test_sharded_batch(name: str, kind: str) -> None:
    """As many devices as there are and divide the batch; the result is the unsharded one."""
    model, network = traced(name)
    size = len(model.args[0])
    count = max(n for n in range(1, size + 1) if size % n == 0 and n <= len(jax.devices()))
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",))
    args = jax.device_put(model.args, NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))
    own, users = loss_of(model, through(network, kind)), loss_of(model, model.loss_fn)
    sharded = jax.jit(jax.grad(own))(params, *args)
    close(sharded, jax.jit(jax.grad(users))(model.params, *model.args))
    close(jax.jit(own)(params, *args), jax.jit(users)(model.params, *model.args))


def test_sharding_of_the_activations_is_the_batchs() -> None:
    """The capture of a sharded batch is sharded as the batch is."""
    model, network = traced("same_plain")
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    args = jax.device_put(model.args, sharding)
    params = jax.device_put(model.params, NamedSharding(mesh, PartitionSpec()))
    captured = jax.jit(network.capture)(params, *args)
    assert all(leaf.sharding.is_equivalent_to(sharding, leaf.ndim) for leaf in jax.tree.leaves(captured.cuts))


def test_other_arguments_of_the_shapes_traced() -> None:
    model, network = traced("same_plain")
    other = jax.tree.map(lambda leaf: leaf * 0.7 + 0.1, (model.params, *model.args))
    close(network(*other), model.loss_fn(*other))
