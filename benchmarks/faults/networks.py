"""Dense networks, written as one does in each framework."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from programs import Network

Initializer = Callable[..., jax.Array]
Activation = Callable[[jax.Array], jax.Array]

LECUN, HE, GLOROT = initializers.lecun_normal(), initializers.he_normal(), initializers.glorot_uniform()
ZEROS = initializers.zeros
TORCH_DEFAULT = initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # uniform within ±1/√fan_in


def jax_mlp(
    key: jax.Array,
    sizes: Sequence[int],
    activation: Activation,
    kernel: Initializer,
    head: Initializer,
    bias: Initializer,
    dtype: jnp.dtype,
) -> Network:
    """Keep the layers in a list, all through in one dtype."""
    keys = jax.random.split(key, len(sizes) - 1)
    kernels = [*[kernel] * (len(sizes) - 2), head]
    biases = [*[bias] * (len(sizes) - 2), ZEROS]
    params = [
        {"w": make_w(k, (m, n), dtype), "b": make_b(k, (n,), dtype)}
        for k, make_w, make_b, m, n in zip(keys, kernels, biases, sizes[:-1], sizes[1:], strict=True)
    ]

    def apply(params, x):
        x = x.astype(dtype)
        for layer in params[:-1]:
            x = activation(x @ layer["w"] + layer["b"])
        return x @ params[-1]["w"] + params[-1]["b"]

    return Network(params, apply)


class LinenMlp(nn.Module):
    """Hidden layers, all alike, and a linear one."""

    sizes: Sequence[int]
    activation: Activation
    kernel: Initializer
    head: Initializer
    bias: Initializer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        for width in self.sizes[1:-1]:
            x = nn.Dense(width, kernel_init=self.kernel, bias_init=self.bias, dtype=self.dtype)(x)
            x = self.activation(x)
        return nn.Dense(self.sizes[-1], kernel_init=self.head, dtype=self.dtype)(x)


def linen_mlp(
    key: jax.Array,
    sizes: Sequence[int],
    activation: Activation,
    kernel: Initializer,
    head: Initializer,
    bias: Initializer,
    dtype: jnp.dtype,
) -> Network:
    """Compute in a dtype, with parameters in float32."""
    model = LinenMlp(sizes, activation, kernel, head, bias, dtype)
    params = model.init(key, jnp.zeros((1, sizes[0])))["params"]
    return Network(params, lambda params, x: model.apply({"params": params}, x))


class NnxMlp(nnx.Module):
    """Hidden layers, all alike, and a linear one."""

    def __init__(self, sizes, activation, kernel, head, bias, dtype, *, rngs):
        self.hidden = nnx.List(
            nnx.Linear(m, n, kernel_init=kernel, bias_init=bias, dtype=dtype, rngs=rngs)
            for m, n in itertools.pairwise(sizes[:-1])
        )
        self.head = nnx.Linear(sizes[-2], sizes[-1], kernel_init=head, dtype=dtype, rngs=rngs)
        self.activation = activation

    def __call__(self, x):
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.head(x)


def nnx_mlp(
    key: jax.Array,
    sizes: Sequence[int],
    activation: Activation,
    kernel: Initializer,
    head: Initializer,
    bias: Initializer,
    dtype: jnp.dtype,
) -> Network:
    """Compute in a dtype, with parameters in float32."""
    model = NnxMlp(sizes, activation, kernel, head, bias, dtype, rngs=nnx.Rngs(key))
    graph, params = nnx.split(model)
    return Network(params, lambda params, x: nnx.merge(graph, params)(x))


def equinox_mlp(
    key: jax.Array,
    sizes: Sequence[int],
    activation: Activation,
    kernel: Initializer,
    head: Initializer,
    bias: Initializer,
    dtype: jnp.dtype,
) -> Network:
    """Draw the library's network anew, all through in one dtype; its kernels are (out, in)."""
    model = eqx.nn.MLP(sizes[0], sizes[-1], sizes[1], len(sizes) - 2, activation, dtype=dtype, key=key)
    kernels = [*[kernel] * (len(sizes) - 2), head]
    biases = [*[bias] * (len(sizes) - 2), ZEROS]
    keys = jax.random.split(key, len(sizes) - 1)

    def leaves(model):
        return [layer.weight for layer in model.layers] + [layer.bias for layer in model.layers]

    drawn = [make(k, w.shape[::-1], dtype).T for make, k, w in zip(kernels, keys, leaves(model), strict=False)]
    drawn += [make(k, (len(w),), dtype) for make, k, w in zip(biases, keys, drawn, strict=True)]
    params, static = eqx.partition(eqx.tree_at(leaves, model, drawn), eqx.is_inexact_array)
    return Network(params, lambda params, x: jax.vmap(eqx.combine(params, static))(x.astype(dtype)))


MLPS = {"jax": jax_mlp, "linen": linen_mlp, "nnx": nnx_mlp, "equinox": equinox_mlp}


def mlp(
    framework: str,
    seed: int,
    *,
    sizes: Sequence[int],
    activation: Activation = jax.nn.relu,
    kernel: Initializer = HE,
    head: Initializer = LECUN,
    bias: Initializer = ZEROS,
    dtype: str = "float32",
) -> Network:
    """Build a dense network of the given sizes, from inputs to outputs."""
    return MLPS[framework](jax.random.key(seed), sizes, activation, kernel, head, bias, jnp.dtype(dtype))
