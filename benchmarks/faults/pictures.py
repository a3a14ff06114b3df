"""Images of digits once more: depthwise convolutions, mixers, patches and autoencoders."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from conv import image_task
from flax import nnx
from networks import GLOROT, HE, Initializer
from programs import Case, Network, Task, assemble
from readers import attend
from tasks import Transform, as_is, cross_entropy, relative_squared_error, rescaled, sampler, table

# ------------------------------------------------------------------ depthwise convolutions


class DepthwiseNet(nn.Module):
    """Convolutions of each channel alone and of each pixel alone, with group normalization between."""

    depth: int
    width: int
    groups: int | None
    dtype: Any

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3), strides=2, dtype=self.dtype)(x)
        for _ in range(self.depth):
            y = nn.Conv(self.width, (3, 3), feature_group_count=self.width, kernel_init=HE, dtype=self.dtype)(x)
            y = nn.GroupNorm(self.groups, dtype=self.dtype)(y) if self.groups else y
            y = nn.Conv(2 * self.width, (1, 1), kernel_init=HE, dtype=self.dtype)(y)
            x = x + nn.Conv(self.width, (1, 1), dtype=self.dtype)(nn.relu(y))
        return nn.Dense(10, dtype=self.dtype)(x.mean((1, 2)))


def depthwise(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    depth: int = 2,
    width: int = 16,
    groups: int | None = 4,
    dtype: str = "float32",
    inputs: Transform = rescaled,
    loss: Callable[..., jax.Array] = cross_entropy,
) -> Case:
    """Build a residual network of depthwise convolutions."""
    model = DepthwiseNet(depth, width, groups, jnp.dtype(dtype))
    params = model.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 1)))["params"]
    network = Network(params, lambda params, x: model.apply({"params": params}, x))
    return assemble(network, image_task(inputs, loss), optimizer)


# ------------------------------------------------------------------ patches of 2 by 2 pixels


def patches(x: jax.Array) -> jax.Array:
    """Cut (batch, 8, 8, 1) into (batch, 16, 4)."""
    return x.reshape(-1, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 16, 4)


def contrast(x: jax.Array) -> jax.Array:
    """Divide each patch by its standard deviation."""
    return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)


def contrast_with_eps(x: jax.Array) -> jax.Array:
    """Divide each patch by its standard deviation, and leave constant ones at 0."""
    return jax.nn.standardize(x, epsilon=1e-3)


class MixerBlock(nnx.Module):
    """A layer over the patches and one over the channels."""

    def __init__(self, width, norm, skip, *, rngs):
        self.norms = nnx.List(nnx.LayerNorm(width, rngs=rngs) for _ in range(2 if norm else 0))
        self.up = nnx.List(nnx.Linear(m, 2 * m, rngs=rngs) for m in (16, width))
        self.down = nnx.List(nnx.Linear(2 * m, m, rngs=rngs) for m in (16, width))
        self.skip = skip

    def __call__(self, x):
        for i, axes in enumerate(((0, 2, 1), (0, 1, 2))):
            y = (self.norms[i](x) if self.norms else x).transpose(axes)
            y = self.down[i](nnx.gelu(self.up[i](y))).transpose(axes)
            x = x + y if self.skip else y
        return x


class Mixer(nnx.Module):
    """Patches, blocks, and the mean over patches."""

    def __init__(self, layers, width, norm, skip, *, rngs):
        self.stem = nnx.Linear(4, width, rngs=rngs)
        self.blocks = nnx.List(MixerBlock(width, norm, skip, rngs=rngs) for _ in range(layers))
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        x = self.stem(patches(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class PatchTransformer(eqx.Module):
    """Patches with positions and a class token, and normalized blocks of attention, for one image."""

    stem: eqx.nn.Linear
    token: jax.Array
    position: jax.Array
    attention: list[eqx.nn.MultiheadAttention]
    dense: list[eqx.nn.MLP]
    norms: list[eqx.nn.LayerNorm]
    scales: list[jax.Array]
    head: eqx.nn.Linear

    def __init__(self, layers, width, layer_scale, *, key):
        keys = jax.random.split(key, 3 + 2 * layers)
        self.stem = eqx.nn.Linear(4, width, key=keys[0])
        self.token = jnp.zeros((1, width))
        self.position = 0.3 * jax.random.normal(keys[1], (17, width))
        self.attention = [eqx.nn.MultiheadAttention(2, width, key=k) for k in keys[3 : 3 + layers]]
        self.dense = [eqx.nn.MLP(width, width, 2 * width, 1, jax.nn.gelu, key=k) for k in keys[3 + layers :]]
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(2 * layers + 1)]
        self.scales = [jnp.full(width, layer_scale, jnp.float32) for _ in range(2 * layers)]
        self.head = eqx.nn.Linear(width, 10, key=keys[2])

    def __call__(self, x):
        x = jnp.concatenate([self.token, jax.vmap(self.stem)(x)]) + self.position
        for i, (attention, dense) in enumerate(zip(self.attention, self.dense, strict=True)):
            h = jax.vmap(self.norms[2 * i])(x)
            x = x + self.scales[2 * i] * attend(attention, h)
            x = x + self.scales[2 * i + 1] * jax.vmap(dense)(jax.vmap(self.norms[2 * i + 1])(x))
        return self.head(self.norms[-1](x[0]))


def patchwise(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    layers: int = 2,
    width: int = 24,
    norm: bool = True,
    skip: bool = True,
    layer_scale: float = 1.0,
    prepare: Callable[[jax.Array], jax.Array] = lambda x: x,
    inputs: Transform = rescaled,
    loss: Callable[..., jax.Array] = cross_entropy,
) -> Case:
    """Build a mixer in nnx, or a transformer of patches in equinox."""
    key = jax.random.key(seed)
    if framework == "nnx":
        graph, params, rest = nnx.split(Mixer(layers, width, norm, skip, rngs=nnx.Rngs(key)), nnx.Param, ...)
        network = Network(params, lambda params, x: nnx.merge(graph, params, rest)(x))
    else:
        params, static = eqx.partition(PatchTransformer(layers, width, layer_scale, key=key), eqx.is_inexact_array)

        def apply(params, x):
            return jax.vmap(eqx.combine(params, static))(prepare(patches(x)))

        network = Network(params, apply)
    return assemble(network, image_task(inputs, loss), optimizer)


# ------------------------------------------------------------------ autoencoders


def sigmoid_cross_entropy(outputs, pixels):
    """Average the cross entropy of pixels from 0 to 1."""
    return optax.sigmoid_binary_cross_entropy(outputs, pixels).mean()


def sigmoid_error(outputs, pixels):
    """Average the squared error of a sigmoid."""
    return jnp.square(jax.nn.sigmoid(outputs) - pixels).mean()


def sigmoid_relative_error(outputs, pixels):
    """Return 1 - R² of a sigmoid."""
    return relative_squared_error(jax.nn.sigmoid(outputs), pixels)


def autoencoder(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    code: int = 12,
    width: int = 48,
    inputs: Transform = as_is,
    targets: Transform = as_is,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.silu,
    kernel: Initializer = GLOROT,
    loss: Callable[..., jax.Array] = sigmoid_cross_entropy,
    score: Callable[..., jax.Array] = sigmoid_relative_error,
) -> Case:
    """Build an autoencoder of digits in plain JAX, from nested dicts."""
    sizes = {"encoder": (64, width, code), "decoder": (code, width, 64)}
    keys = iter(jax.random.split(jax.random.key(seed), 4))
    params = {
        name: {
            f"layer{i}": {"kernel": kernel(next(keys), (m, n)), "bias": jnp.zeros(n)}
            for i, (m, n) in enumerate(itertools.pairwise(widths))
        }
        for name, widths in sizes.items()
    }

    def apply(params, x):
        for name in ("encoder", "decoder"):
            x = activation(x @ params[name]["layer0"]["kernel"] + params[name]["layer0"]["bias"])
            x = x @ params[name]["layer1"]["kernel"] + params[name]["layer1"]["bias"]
        return x

    x, _ = table("digits")
    task = Task(sampler(inputs(x), targets(x), 48), loss, score)
    return assemble(Network(params, apply), task, optimizer)
