"""Deep networks of dense blocks, scanned over stacked parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.nn import initializers
from networks import HE, LECUN, Activation, Initializer
from programs import Case, Network, assemble
from samples import learn
from tasks import cross_entropy


def normalized(x: jax.Array, norm: str | None) -> jax.Array:
    """Normalize an example over its features, without parameters, if told so."""
    match norm:
        case "layer":
            return jax.nn.standardize(x, epsilon=1e-5)
        case "rms":
            return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    return x


def per_layer(kernel: Initializer) -> Initializer:
    """Draw the kernels of a stack one by one, each with its own fans."""
    return lambda key, shape, dtype: jnp.stack([kernel(k, shape[1:], dtype) for k in jax.random.split(key, shape[0])])


# Each block: its kernels' (rows, columns) in multiples of the width, and what it does with them.
BLOCKS: dict[str, tuple[dict[str, tuple[int, int]], Callable[..., jax.Array]]] = {
    "layer": ({"w": (1, 1)}, lambda p, x, activation: activation(x @ p["w"] + p["b"])),
    "pair": ({"up": (1, 2), "w": (2, 1)}, lambda p, x, activation: activation(x @ p["up"]) @ p["w"] + p["b"]),
    "gated": (
        {"value": (1, 1), "gate": (1, 1), "w": (1, 1)},
        lambda p, x, activation: ((x @ p["value"]) * activation(x @ p["gate"])) @ p["w"] + p["b"],
    ),
}


def jax_stack(key, features, outputs, depth, width, block, activation, kernel, skip, scale, norm, dtype) -> Network:
    """Recompute the blocks' values in the backward pass; all through in one dtype.

    With ``scale="learned"`` each branch has a factor that starts at 0.
    """
    shapes, forward = BLOCKS[block]
    stem_key, head_key, *keys = jax.random.split(key, 2 + len(shapes))
    blocks = {
        name: kernel(k, (depth, m * width, n * width), dtype)
        for k, (name, (m, n)) in zip(keys, shapes.items(), strict=True)
    }
    blocks["b"] = jnp.zeros((depth, width), dtype)
    if scale == "learned":
        blocks["scale"] = jnp.zeros(depth, dtype)
    stem, head = LECUN(stem_key, (features, width), dtype), LECUN(head_key, (width, outputs), dtype)
    params = {"stem": stem, "trunk": blocks, "head": head}

    @jax.checkpoint
    def step(x, p):
        y = forward(p, normalized(x, norm), activation)
        factor = p["scale"] if scale == "learned" else jnp.asarray(scale, dtype)
        return (x + factor * y if skip else y), None

    def apply(params, x):
        x, _ = jax.lax.scan(step, x.astype(dtype) @ params["stem"], params["trunk"])
        return normalized(x, norm) @ params["head"]

    return Network(params, apply)


class Block(eqx.Module):
    """One or two layers for one example."""

    up: eqx.nn.Linear | None
    down: eqx.nn.Linear
    norm: eqx.nn.LayerNorm | None
    activation: Activation = eqx.field(static=True)
    skip: bool = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(self, width, block, activation, kernel, skip, scale, norm, dtype, *, key):
        up_key, down_key = jax.random.split(key)
        m = {"layer": width, "pair": 2 * width}[block]
        self.down = self.linear(m, width, kernel, dtype, down_key)
        self.up = self.linear(width, m, kernel, dtype, up_key) if block == "pair" else None
        self.norm = eqx.nn.LayerNorm(width, dtype=dtype) if norm else None
        self.activation, self.skip, self.scale = activation, skip, scale

    @staticmethod
    def linear(m, n, kernel, dtype, key):
        """Draw a layer with another kernel and without bias at the start."""
        layer = eqx.nn.Linear(m, n, dtype=dtype, key=key)
        start = (kernel(key, (m, n), dtype).T, jnp.zeros(n, dtype))
        return eqx.tree_at(lambda tree: (tree.weight, tree.bias), layer, start)

    def __call__(self, x):
        y = self.norm(x) if self.norm else x
        y = self.down(self.activation(self.up(y))) if self.up else self.activation(self.down(y))
        return x + self.scale * y if self.skip else y


class Stack(eqx.Module):
    """A stem, blocks made by ``filter_vmap``, and a head."""

    stem: eqx.nn.Linear
    blocks: Block
    head: eqx.nn.Linear

    def __init__(self, features, outputs, depth, width, *settings, key):
        stem_key, blocks_key, head_key = jax.random.split(key, 3)
        dtype = settings[-1]
        self.stem = eqx.nn.Linear(features, width, dtype=dtype, key=stem_key)
        self.blocks = eqx.filter_vmap(lambda key: Block(width, *settings, key=key))(jax.random.split(blocks_key, depth))
        self.head = eqx.nn.Linear(width, outputs, dtype=dtype, key=head_key)

    def __call__(self, x):
        arrays, static = eqx.partition(self.blocks, eqx.is_array)
        x, _ = jax.lax.scan(lambda x, arrays: (eqx.combine(arrays, static)(x), None), self.stem(x), arrays)
        return self.head(x)


def equinox_stack(key, features, outputs, depth, *settings) -> Network:
    """Differentiate the arrays, over a batch by ``vmap``."""
    dtype = settings[-1]
    params, static = eqx.partition(Stack(features, outputs, depth, *settings, key=key), eqx.is_inexact_array)
    return Network(params, lambda params, x: jax.vmap(eqx.combine(params, static))(x.astype(dtype)))


class LinenBlock(nn.Module):
    """A block as the library's scan wants it."""

    width: int
    block: str
    activation: Activation
    kernel: Initializer
    skip: bool
    scale: Any
    norm: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x, _):
        dense = {"kernel_init": self.kernel, "dtype": self.dtype}
        y = nn.LayerNorm(dtype=self.dtype)(x) if self.norm == "layer" else x
        match self.block:
            case "layer":
                y = nn.Dense(self.width, **dense)(y)
                if self.norm == "batch":
                    y = nn.BatchNorm(use_running_average=False, dtype=self.dtype)(y)
                y = self.activation(y)
            case "pair":
                y = self.activation(nn.Dense(2 * self.width, **dense)(y))
                y = nn.Dense(self.width, **dense)(y)
            case "highway":
                gate = nn.sigmoid(nn.Dense(self.width, bias_init=initializers.constant(-2.0), dtype=self.dtype)(y))
                return x + gate * (self.activation(nn.Dense(self.width, **dense)(y)) - x), None
        return (x + self.scale * y if self.skip else y), None


class LinenStack(nn.Module):
    """A stem, scanned blocks, and a head."""

    outputs: int
    depth: int
    settings: tuple[Any, ...]

    @nn.compact
    def __call__(self, x):
        width, norm, dtype = self.settings[0], *self.settings[-2:]
        axes = {"params": 0, "batch_stats": 0}
        scan = nn.scan(LinenBlock, variable_axes=axes, split_rngs={"params": True}, length=self.depth)
        x, _ = scan(*self.settings)(nn.Dense(width, dtype=dtype)(x), None)
        x = nn.LayerNorm(dtype=dtype)(x) if norm == "layer" else x
        return nn.Dense(self.outputs, dtype=dtype)(x)


def linen_stack(key, features, outputs, depth, *settings) -> Network:
    """Compute in a dtype, with parameters in float32, and normalize by the statistics of the batch."""
    model = LinenStack(outputs, depth, settings)
    params = model.init(key, jnp.zeros((2, features)))["params"]
    return Network(params, lambda params, x: model.apply({"params": params}, x, mutable=["batch_stats"])[0])


STACKS = {"jax": jax_stack, "equinox": equinox_stack, "linen": linen_stack}


def stack(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    depth: int,
    width: int = 40,
    block: str = "pair",
    activation: Activation = jax.nn.gelu,
    kernel: Initializer | None = None,
    skip: bool = True,
    scale: float | str = 1.0,
    norm: str | None = None,
    dtype: str = "float32",
    loss: Callable[..., jax.Array] = cross_entropy,
    **problem,
) -> Case:
    """Build a deep network of blocks on a table."""
    task, features, outputs = learn(data, loss=loss, **problem)
    if kernel is None:
        kernel = per_layer(HE) if framework == "jax" else HE
    network = STACKS[framework](
        jax.random.key(seed), features, outputs,
        depth, width, block, activation, kernel, skip, scale, norm, jnp.dtype(dtype),
    )  # fmt: skip
    return assemble(network, task, optimizer)
