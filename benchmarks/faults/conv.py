"""How convolutional and residual networks are built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.nn import initializers
from networks import HE, LECUN, Activation, Initializer
from programs import Case, Network, Task, assemble
from tasks import Transform, cross_entropy, images, rescaled, sampler, table, tabular


def image_task(inputs: Transform, loss: Callable[..., jax.Array]) -> Task:
    """Classify digits as images."""
    task = tabular("digits", loss=loss)
    x, labels = table("digits")
    return task._replace(batches=sampler(images(inputs(x)), labels, 32))


class LinenConvNet(nn.Module):
    """A convolution of stride 2, more of one width, and a linear layer over the mean of the image."""

    depth: int
    width: int
    activation: Activation
    kernel: Initializer
    bias: Initializer
    norm: str | None
    skip: str | None
    dtype: Any

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3), (2, 2), dtype=self.dtype)(x)
        for _ in range(self.depth):
            y = self.activation(x) if self.skip == "zero" else x
            y = nn.Conv(self.width, (3, 3), kernel_init=self.kernel, bias_init=self.bias, dtype=self.dtype)(y)
            if self.norm == "batch":
                scale = initializers.zeros if self.skip in ("zero", "zero-before-activation") else initializers.ones
                y = nn.BatchNorm(use_running_average=False, scale_init=scale, dtype=self.dtype)(y)
            x = self.join(x, y)
        return nn.Dense(10, dtype=self.dtype)(x.mean((1, 2)))

    def join(self, x, y):
        """Add the skip, if there is one."""
        match self.skip:
            case None:
                return self.activation(y)
            case "post-activation":
                return self.activation(x + y)
            case "zero":  # the activation comes before the convolution
                return x + y
            case "scaled":
                return x + self.activation(y) / self.depth**0.5
        return x + self.activation(y)


def linen_conv_net(
    key: jax.Array,
    depth: int,
    width: int,
    activation: Activation,
    kernel: Initializer,
    bias: Initializer,
    norm: str | None,
    skip: str | None,
    dtype: str,
) -> Network:
    """Compute in a dtype, with parameters in float32, and normalize by the statistics of the batch."""
    model = LinenConvNet(depth, width, activation, kernel, bias, norm, skip, jnp.dtype(dtype))
    params = model.init(key, jnp.zeros((1, 8, 8, 1)))["params"]

    def apply(params, x):
        return model.apply({"params": params}, x, mutable=["batch_stats"])[0]

    return Network(params, apply)


class NnxConvNet(nnx.Module):
    """A convolution of stride 2, more of one width, and a linear layer over the mean of the image."""

    def __init__(self, depth, width, activation, kernel, bias, norm, dtype, *, rngs):
        self.stem = nnx.Conv(1, width, (3, 3), 2, dtype=dtype, rngs=rngs)
        self.convs = nnx.List(
            nnx.Conv(width, width, (3, 3), kernel_init=kernel, bias_init=bias, dtype=dtype, rngs=rngs)
            for _ in range(depth)
        )
        self.norms = nnx.List(nnx.LayerNorm(width, dtype=dtype, rngs=rngs) for _ in range(depth if norm else 0))
        self.head = nnx.Linear(width, 10, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x):
        x = self.stem(x)
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = self.activation(self.norms[i](x) if self.norms else x)
        return self.head(x.mean((1, 2)))


def nnx_conv_net(
    key: jax.Array,
    depth: int,
    width: int,
    activation: Activation,
    kernel: Initializer,
    bias: Initializer,
    norm: str | None,
    skip: str | None,
    dtype: str,
) -> Network:
    """Compute in a dtype, with parameters in float32; it has no skip."""
    model = NnxConvNet(depth, width, activation, kernel, bias, norm, jnp.dtype(dtype), rngs=nnx.Rngs(key))
    graph, params = nnx.split(model)
    return Network(params, lambda params, x: nnx.merge(graph, params)(x))


class EquinoxConvNet(eqx.Module):
    """A convolution of stride 2, more of one width, and a linear layer over the mean of the image."""

    stem: eqx.nn.Conv2d
    convs: list[eqx.nn.Conv2d]
    norms: list[eqx.nn.GroupNorm]
    head: eqx.nn.Linear
    activation: Activation = eqx.field(static=True)
    norm: str | None = eqx.field(static=True)

    def __init__(self, depth, width, activation, kernel, bias, norm, dtype, *, key):
        stem_key, head_key, *keys = jax.random.split(key, depth + 2)
        self.stem = eqx.nn.Conv2d(1, width, 3, 2, padding=1, dtype=dtype, key=stem_key)
        self.convs = [eqx.nn.Conv2d(width, width, 3, padding=1, dtype=dtype, key=key) for key in keys]
        if kernel is not None:  # otherwise the library's default
            shapes = [(3, 3, width, width)] * depth
            kernels = [kernel(key, shape, dtype).transpose(3, 2, 0, 1) for key, shape in zip(keys, shapes, strict=True)]
            self.convs = eqx.tree_at(lambda convs: [conv.weight for conv in convs], self.convs, kernels)
            biases = [bias(key, (width, 1, 1), dtype) for key in keys]
            self.convs = eqx.tree_at(lambda convs: [conv.bias for conv in convs], self.convs, biases)
        groups = {"group": 4, "instance-after-pooling": width}.get(norm)
        count = {"group": depth, "instance-after-pooling": 1}.get(norm, 0)
        self.norms = [eqx.nn.GroupNorm(groups, width, dtype=dtype) for _ in range(count)]
        self.head = eqx.nn.Linear(width, 10, dtype=dtype, key=head_key)
        self.activation, self.norm = activation, norm

    def __call__(self, image):
        x = self.stem(image.transpose(2, 0, 1))
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = self.activation(self.norms[i](x) if self.norm == "group" else x)
        x = x.mean((1, 2), keepdims=True)
        if self.norm == "instance-after-pooling":
            x = self.norms[0](x)
        return self.head(x[:, 0, 0])


def equinox_conv_net(
    key: jax.Array,
    depth: int,
    width: int,
    activation: Activation,
    kernel: Initializer | None,
    bias: Initializer,
    norm: str | None,
    skip: str | None,
    dtype: str,
) -> Network:
    """Keep everything in one dtype; it has no skip."""
    model = EquinoxConvNet(depth, width, activation, kernel, bias, norm, jnp.dtype(dtype), key=key)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return Network(params, lambda params, x: jax.vmap(eqx.combine(params, static))(x.astype(dtype)))


CONV_NETS = {"linen": linen_conv_net, "nnx": nnx_conv_net, "equinox": equinox_conv_net}


def conv(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    depth: int = 6,
    width: int = 16,
    activation: Activation = jax.nn.relu,
    kernel: Initializer | None = HE,
    bias: Initializer = initializers.zeros,
    norm: str | None = None,
    skip: str | None = None,
    dtype: str = "float32",
    inputs: Transform = rescaled,
    loss: Callable[..., jax.Array] = cross_entropy,
) -> Case:
    """Build a convolutional network on digits."""
    key = jax.random.key(seed)
    network = CONV_NETS[framework](key, depth, width, activation, kernel, bias, norm, skip, dtype)
    return assemble(network, image_task(inputs, loss), optimizer)


def residual(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    num_blocks: int = 48,
    branch_scale: float = 1.0,
    down: Initializer = HE,
    normalize: Callable[[jax.Array], jax.Array] = lambda x: x,
    dtype: str = "float32",
    width: int = 64,
) -> Case:
    """Build a deep residual network of dense blocks in plain JAX."""
    stem_key, head_key, *keys = jax.random.split(jax.random.key(seed), 2 + 2 * num_blocks)
    shape = (width, width)
    params = {
        "stem": LECUN(stem_key, (64, width), dtype),
        "blocks": {
            "up": jnp.stack([HE(key, shape, dtype) for key in keys[::2]]),
            "down": jnp.stack([down(key, shape, dtype) for key in keys[1::2]]),
        },
        "head": LECUN(head_key, (width, 10), dtype),
    }

    def block(x, block):
        hidden = jax.nn.relu(jax.nn.relu(normalize(x)) @ block["up"])
        return x + jnp.asarray(branch_scale, dtype) * (hidden @ block["down"]), None

    def apply(params, x):
        x, _ = jax.lax.scan(block, x.astype(dtype) @ params["stem"], params["blocks"])
        return normalize(x) @ params["head"]

    return assemble(Network(params, apply), tabular(data, loss=cross_entropy), optimizer)


def layer_norm(x: jax.Array) -> jax.Array:
    """Give each example mean 0 and variance 1."""
    return jax.nn.standardize(x, epsilon=1e-5)


def pixel_norm(eps: float) -> Callable[[jax.Array], jax.Array]:
    """Divide each pixel by its standard deviation in the batch."""
    return lambda x: (x - x.mean(0)) / (x.std(0) + eps)


def normalized_inputs(
    seed: int, *, framework: str, data: str, optimizer: optax.GradientTransformation, eps: float, **settings
) -> Case:
    """Build a convolutional network that standardizes its own inputs by the batch."""
    case = conv(seed, framework=framework, data=data, optimizer=optimizer, **settings)
    normalize = pixel_norm(eps)

    def loss_fn(params, x, labels):
        return case.loss_fn(params, normalize(x), labels)

    def score(params, x, labels):
        return case.score(params, normalize(x), labels)

    return case._replace(loss_fn=loss_fn, score=score)
