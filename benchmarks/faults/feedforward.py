"""Dense networks once more, in the other ways of writing them, and with normalization."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.nn import initializers
from networks import HE, LECUN, ZEROS, Activation, Initializer
from programs import Case, Network, assemble
from samples import learn
from tasks import cross_entropy

ONES = initializers.ones


def identity(x: jax.Array) -> jax.Array:
    """Leave the values as they are."""
    return x


def unit_length(x: jax.Array) -> jax.Array:
    """Divide each example by its length."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def unit_length_with_eps(x: jax.Array) -> jax.Array:
    """Divide each example by its length, and leave zeros as they are."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-6)


def rescaling(mean: float, deviation: float) -> Callable[[jax.Array], jax.Array]:
    """Put outputs into the unit of the targets."""
    return lambda outputs: mean + deviation * outputs


def tuples(key, widths, activation, kernel, bias, head, head_bias, norm, gain, dtype) -> Network:
    """Keep (kernel, bias) tuples in a dict of a body and a head, all through in one dtype; it has no normalization."""
    *body_keys, head_key = jax.random.split(key, len(widths) - 1)
    shapes = list(itertools.pairwise(widths))
    body = [(kernel(k, s, dtype), bias(k, s[1:], dtype)) for k, s in zip(body_keys, shapes, strict=False)]
    params = {"body": body, "head": (head(head_key, shapes[-1], dtype), head_bias(head_key, shapes[-1][1:], dtype))}

    def apply(params, x):
        x = x.astype(dtype)
        for w, b in params["body"]:
            x = activation(x @ w + b)
        w, b = params["head"]
        return x @ w + b

    return Network(params, apply)


class SetupMlp(nn.Module):
    """Layers made in ``setup``."""

    widths: Sequence[int]
    activation: Activation
    kernel: Initializer
    bias: Initializer
    head: Initializer
    head_bias: Initializer
    norm: str | None
    gain: Initializer
    dtype: Any

    def setup(self):
        shared = {"kernel_init": self.kernel, "bias_init": self.bias, "dtype": self.dtype}
        self.body = [nn.Dense(width, **shared) for width in self.widths[1:-1]]
        self.norms = [self.make_norm() for _ in self.body]
        self.first = nn.BatchNorm(use_running_average=False, dtype=self.dtype)
        shared = {"kernel_init": self.head, "bias_init": self.head_bias, "dtype": self.dtype}
        self.out = nn.Dense(self.widths[-1], **shared)
        self.last = self.make_norm()

    def make_norm(self):
        """Make the normalization that follows a layer."""
        match self.norm:
            case "layer" | "layer-everywhere":
                return nn.LayerNorm(scale_init=self.gain, dtype=self.dtype)
            case "batch":
                return nn.BatchNorm(use_running_average=False, scale_init=self.gain, dtype=self.dtype)
        return identity

    def __call__(self, x):
        if self.norm == "inputs":
            x = self.first(x)
        for layer, norm in zip(self.body, self.norms, strict=True):
            x = self.activation(norm(layer(x)))
        x = self.out(x)
        return self.last(x) if self.norm == "layer-everywhere" else x


def setup_mlp(key, widths, activation, kernel, bias, head, head_bias, norm, gain, dtype) -> Network:
    """Compute in a dtype, with parameters in float32, and normalize by the statistics of the batch."""
    model = SetupMlp(widths, activation, kernel, bias, head, head_bias, norm, gain, dtype)
    params = model.init(key, jnp.zeros((2, widths[0])))["params"]
    return Network(params, lambda params, x: model.apply({"params": params}, x, mutable=["batch_stats"])[0])


def sequential(key, widths, activation, kernel, bias, head, head_bias, norm, gain, dtype) -> Network:
    """Chain the library's layers; it has layer normalization alone."""
    rngs, layers = nnx.Rngs(key), []
    for m, n in itertools.pairwise(widths[:-1]):
        layers.append(nnx.Linear(m, n, kernel_init=kernel, bias_init=bias, dtype=dtype, rngs=rngs))
        layers += [nnx.LayerNorm(n, scale_init=gain, dtype=dtype, rngs=rngs)] if norm else []
        layers.append(activation)
    layers.append(nnx.Linear(*widths[-2:], kernel_init=head, bias_init=head_bias, dtype=dtype, rngs=rngs))
    graph, params, rest = nnx.split(nnx.Sequential(*layers), nnx.Param, ...)
    return Network(params, lambda params, x: nnx.merge(graph, params, rest)(x))


class Classifier(eqx.Module):
    """Layers for one example, with the library's initialization where none is given."""

    layers: list[eqx.nn.Linear]
    norms: list[eqx.nn.LayerNorm]
    activation: Activation = eqx.field(static=True)

    def __init__(self, widths, activation, norm, dtype, *, key):
        keys = jax.random.split(key, len(widths) - 1)
        pairs = itertools.pairwise(widths)
        self.layers = [eqx.nn.Linear(m, n, dtype=dtype, key=k) for (m, n), k in zip(pairs, keys, strict=True)]
        self.norms = [eqx.nn.LayerNorm(width, dtype=dtype) for width in widths[1:-1] if norm]
        self.activation = activation

    def __call__(self, x):
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            x = self.activation(self.norms[i](x) if self.norms else x)
        return self.layers[-1](x)


def classifier(key, widths, activation, kernel, bias, head, head_bias, norm, gain, dtype) -> Network:
    """Replace kernels and biases by ``tree_at``; ``None`` leaves the library's."""
    model = Classifier(widths, activation, norm, dtype, key=key)
    keys = jax.random.split(key, len(model.layers))
    kernels, biases = [*[kernel] * (len(keys) - 1), head], [*[bias] * (len(keys) - 1), head_bias]
    for i, (k, make_w, make_b) in enumerate(zip(keys, kernels, biases, strict=True)):
        m, n = widths[i : i + 2]
        if make_w is not None:
            model = eqx.tree_at(lambda tree, i=i: tree.layers[i].weight, model, make_w(k, (m, n), dtype).T)
        if make_b is not None:
            model = eqx.tree_at(lambda tree, i=i: tree.layers[i].bias, model, make_b(k, (n,), dtype))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return Network(params, lambda params, x: jax.vmap(eqx.combine(params, static))(x.astype(dtype)))


STYLES = {"jax": tuples, "linen": setup_mlp, "nnx": sequential, "equinox": classifier}


def feedforward(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    hidden: Sequence[int] = (48, 48),
    activation: Activation = jax.nn.gelu,
    kernel: Initializer | None = HE,
    bias: Initializer | None = ZEROS,
    head: Initializer | None = LECUN,
    head_bias: Initializer | None = ZEROS,
    norm: str | None = None,
    gain: Initializer = ONES,
    dtype: str = "float32",
    entry: Callable[[jax.Array], jax.Array] = identity,
    last: Callable[[jax.Array], jax.Array] = identity,
    loss: Callable[..., jax.Array] = cross_entropy,
    **problem,
) -> Case:
    """Build a dense network on a table; ``entry`` is applied to its inputs, ``last`` to its outputs."""
    task, features, outputs = learn(data, loss=loss, **problem)
    widths = (features, *hidden, outputs)
    build = STYLES[framework]
    network = build(
        jax.random.key(seed), widths, activation, kernel, bias, head, head_bias, norm, gain, jnp.dtype(dtype)
    )
    return assemble(Network(network.params, lambda params, x: last(network.apply(params, entry(x)))), task, optimizer)


def frozen(seed: int, **settings) -> Case:
    """Train the head alone, on the features that the layers before draw at random."""
    case = feedforward(seed, **settings)

    def with_frozen_body(function):
        return lambda params, *args: function({**params, "body": jax.lax.stop_gradient(params["body"])}, *args)

    return case._replace(loss_fn=with_frozen_body(case.loss_fn), score=with_frozen_body(case.score))
