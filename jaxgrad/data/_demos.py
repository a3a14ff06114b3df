"""Small networks on real digits, one healthy and three with a classic fault, written as a user would write them.

Each function returns what ``jaxgrad.explain`` takes, ``(loss_fn, params, *args)``. The defaults of its keyword
arguments have the fault, and the values named in its docstring repair it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgrad.data import digits

Case = tuple[Any, ...]
NUM_CLASSES = 10


def standardized_digits() -> tuple[jax.Array, jax.Array]:
    """Load every digit with mean 0 and standard deviation 1 over all pixels: (1797, 64) float32 and (1797,) int32."""
    images, labels = digits()
    x = jnp.asarray(images.reshape(len(images), -1), jnp.float32)
    return (x - x.mean()) / x.std(), jnp.asarray(labels, jnp.int32)


def first_digits(num_examples: int = 128) -> tuple[jax.Array, jax.Array]:
    """Take the batch that every demo is diagnosed on."""
    x, labels = standardized_digits()
    return x[:num_examples], labels[:num_examples]


def dense(key: jax.Array, fan_in: int, fan_out: int, weight_variance: float) -> dict[str, jax.Array]:
    """Draw a dense layer with weights of variance ``weight_variance / fan_in`` and no bias."""
    weight = jax.random.normal(key, (fan_in, fan_out)) * math.sqrt(weight_variance / fan_in)
    return {"weight": weight, "bias": jnp.zeros(fan_out)}


def apply(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Apply a dense layer to a batch."""
    return x @ layer["weight"] + layer["bias"]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Average the cross entropy over the batch, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def healthy(*, depth: int = 6, width: int = 64) -> Case:
    """Build a ReLU network with He initialization, which keeps the size of activations and gradients at every depth."""
    keys = jax.random.split(jax.random.key(4), depth)
    hidden = [dense(key, 64 if i == 0 else width, width, 2.0) for i, key in enumerate(keys[:-1])]
    params = {"layers": [*hidden, dense(keys[-1], width, NUM_CLASSES, 1.0)]}

    def loss_fn(params, x, labels):
        for layer in params["layers"][:-1]:
            x = jax.nn.relu(apply(layer, x))
        return cross_entropy(apply(params["layers"][-1], x), labels)

    return loss_fn, params, *first_digits()


def deep_sigmoid(
    *,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.sigmoid,
    weight_variance: float = 1.0,
    depth: int = 20,
    width: int = 64,
) -> Case:
    """Build a deep network of sigmoids with Glorot initialization, whose slope is 1/4 at most.

    The gradient shrinks at each layer. Repaired by ``activation=jax.nn.relu, weight_variance=2.0``.
    """
    keys = jax.random.split(jax.random.key(1), depth)
    hidden = [dense(key, 64 if i == 0 else width, width, weight_variance) for i, key in enumerate(keys[:-1])]
    params = {"layers": [*hidden, dense(keys[-1], width, NUM_CLASSES, 1.0)]}

    def loss_fn(params, x, labels):
        for layer in params["layers"][:-1]:
            x = activation(apply(layer, x))
        return cross_entropy(apply(params["layers"][-1], x), labels)

    return loss_fn, params, *first_digits()


def exploding_residual(*, branch_scale: float = 1.0, num_blocks: int = 32, width: int = 64) -> Case:
    """Build a deep residual network without normalization, whose unscaled branches double the variance at each block.

    Repaired by ``branch_scale=1 / math.sqrt(num_blocks)``.
    """
    stem_key, head_key, *keys = jax.random.split(jax.random.key(2), 2 + 2 * num_blocks)
    blocks = [
        {"up": dense(up_key, width, width, 2.0), "down": dense(down_key, width, width, 2.0)}
        for up_key, down_key in zip(keys[::2], keys[1::2], strict=True)
    ]
    params = {
        "stem": dense(stem_key, 64, width, 1.0),
        "blocks": blocks,
        "head": dense(head_key, width, NUM_CLASSES, 1.0),
    }

    def loss_fn(params, x, labels):
        x = apply(params["stem"], x)
        for block in params["blocks"]:
            hidden = jax.nn.relu(apply(block["up"], jax.nn.relu(x)))
            x = x + branch_scale * apply(block["down"], hidden)
        return cross_entropy(apply(params["head"], x), labels)

    return loss_fn, params, *first_digits()


def rnn(*, orthogonal: bool = False, width: int = 64) -> Case:
    """Build a recurrent network that reads each digit pixel by pixel and has forgotten the first ones by the last.

    The recurrent weights are uniform within ±1/√width, PyTorch's default: their variance is 1/3 over the fan-in, so
    each of the 64 steps leaves about √(1/3) of the gradient or less. Repaired by ``orthogonal=True``.
    """
    input_key, recurrent_key, head_key = jax.random.split(jax.random.key(3), 3)
    if orthogonal:
        recurrent = jax.random.orthogonal(recurrent_key, width)
    else:
        bound = 1 / math.sqrt(width)
        recurrent = jax.random.uniform(recurrent_key, (width, width), minval=-bound, maxval=bound)
    params = {
        "input": dense(input_key, 1, width, 1 / 64),
        "recurrent": recurrent,
        "head": dense(head_key, width, NUM_CLASSES, 1.0),
    }

    def loss_fn(params, pixels, labels):
        def step(state, pixel):
            return jnp.tanh(apply(params["input"], pixel[:, None]) + state @ params["recurrent"]), None

        state, _ = jax.lax.scan(step, jnp.zeros((len(labels), width)), pixels.T)
        return cross_entropy(apply(params["head"], state), labels)

    return loss_fn, params, *first_digits()


DEMOS: MappingProxyType[str, Callable[[], Case]] = MappingProxyType(
    {
        "healthy": healthy,
        "deep-sigmoid": deep_sigmoid,
        "exploding-residual": exploding_residual,
        "rnn": rnn,
    }
)
