"""Recurrent networks and transformers once more: gates, two directions, state spaces, words and padding."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from networks import LECUN, Initializer
from programs import Case, Network, assemble
from samples import series


def identity_kernel(key, shape, dtype=jnp.float32):
    """Start from the identity."""
    return jnp.eye(*shape, dtype=dtype)


# ------------------------------------------------------------------ recurrent networks, read from the last state


def relu_rnn(key, features, outputs, width, kernel, gate_bias, decay, dtype) -> Network:
    """A recurrent network of ReLUs in plain JAX, all through in one dtype."""
    kernel = kernel or identity_kernel
    keys = jax.random.split(key, 3)
    params = {
        "cell": {"wx": LECUN(keys[0], (features, width), dtype), "wh": kernel(keys[1], (width, width), dtype)},
        "readout": {"w": LECUN(keys[2], (width, outputs), dtype), "b": jnp.zeros(outputs, dtype)},
    }

    def apply(params, x):
        cell, readout = params["cell"], params["readout"]

        def step(h, x):
            return jax.nn.relu(x @ cell["wx"] + h @ cell["wh"]), None

        h, _ = jax.lax.scan(step, jnp.zeros((len(x), width), dtype), x.astype(dtype).swapaxes(0, 1))
        return h @ readout["w"] + readout["b"]

    return Network(params, apply)


class EquinoxGru(eqx.Module):
    """Gated recurrent units over one sequence."""

    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, features, outputs, width, gate_bias, *, key):
        cell_key, head_key = jax.random.split(key)
        cell = eqx.nn.GRUCell(features, width, key=cell_key)
        # Reset, keep and new: the second third says how much of the state is kept.
        bias = jnp.zeros(3 * width).at[width : 2 * width].set(gate_bias)
        self.cell = eqx.tree_at(lambda cell: cell.bias, cell, bias)
        self.head = eqx.nn.Linear(width, outputs, key=head_key)

    def __call__(self, x):
        h, _ = jax.lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(self.cell.hidden_size), x)
        return self.head(h)


def gru(key, features, outputs, width, kernel, gate_bias, decay, dtype) -> Network:
    """Draw the library's cell with another bias of the gate that keeps."""
    params, static = eqx.partition(EquinoxGru(features, outputs, width, gate_bias, key=key), eqx.is_inexact_array)
    return Network(params, lambda params, x: jax.vmap(eqx.combine(params, static))(x))


class TwoDirections(nn.Module):
    """Simple cells or gated units from both ends, and a linear layer on each one's last state."""

    outputs: int
    width: int
    kernel: Initializer | None

    @nn.compact
    def __call__(self, x):
        def rnn():
            if self.kernel is None:
                return nn.RNN(nn.GRUCell(self.width))
            return nn.RNN(nn.SimpleCell(self.width, recurrent_kernel_init=self.kernel))

        states = nn.Bidirectional(rnn(), rnn())(x)
        last = jnp.concatenate([states[:, -1, : self.width], states[:, 0, self.width :]], -1)  # of each direction
        return nn.Dense(self.outputs)(last)


def two_directions(key, features, outputs, width, kernel, gate_bias, decay, dtype) -> Network:
    """Gated units unless a recurrent kernel for simple cells is given."""
    model = TwoDirections(outputs, width, kernel)
    params = model.init(key, jnp.zeros((1, 2, features)))["params"]
    return Network(params, lambda params, x: model.apply({"params": params}, x))


class NnxLstm(nnx.Module):
    """The library's long short-term memory, read as the mean of its states."""

    def __init__(self, features, outputs, width, dtype, *, rngs):
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(features, width, dtype=dtype, rngs=rngs))
        self.head = nnx.Linear(width, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        zeros = jnp.zeros((len(x), self.rnn.cell.hidden_features))
        return self.head(self.rnn(x, initial_carry=(zeros, zeros)).mean(1))


def lstm(key, features, outputs, width, kernel, gate_bias, decay, dtype) -> Network:
    """Compute in a dtype, with parameters in float32."""
    graph, params, rest = nnx.split(NnxLstm(features, outputs, width, dtype, rngs=nnx.Rngs(key)), nnx.Param, ...)
    return Network(params, lambda params, x: nnx.merge(graph, params, rest)(x))


def state_space(key, features, outputs, width, kernel, gate_bias, decay, dtype) -> Network:
    """Linear states that decay each on its own, from ``decay[0]`` to ``decay[1]`` a step, and a dense layer."""
    input_key, hidden_key, head_key = jax.random.split(key, 3)
    rates = -jnp.log(jnp.linspace(*decay, width))
    params = {
        "rate": rates,
        "in": LECUN(input_key, (features, width)),
        "hidden": LECUN(hidden_key, (width, width)),
        "head": LECUN(head_key, (width, outputs)),
    }

    def apply(params, x):
        keep = jnp.exp(-params["rate"])

        def step(state, u):
            return keep * state + jnp.sqrt(jnp.abs(1 - keep**2)) * u, None

        state, _ = jax.lax.scan(step, jnp.zeros((len(x), width)), (x @ params["in"]).swapaxes(0, 1))
        return jax.nn.gelu(state @ params["hidden"]) @ params["head"]

    return Network(params, apply)


CELLS = {
    ("jax", "relu"): relu_rnn,
    ("equinox", "gru"): gru,
    ("linen", "two-directions"): two_directions,
    ("nnx", "lstm"): lstm,
    ("jax", "state-space"): state_space,
}


def reader(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    cell: str,
    problem: dict[str, Any],
    width: int = 40,
    kernel: Initializer | None = None,
    gate_bias: float = 0.0,
    decay: tuple[float, float] = (0.9, 0.999),
    dtype: str = "float32",
) -> Case:
    """Build a recurrent network that answers from its last state; each cell has some of the settings alone."""
    task, features, outputs = series(data, **problem)
    build = CELLS[framework, cell]
    network = build(jax.random.key(seed), features, outputs, width, kernel, gate_bias, decay, jnp.dtype(dtype))
    return assemble(network, task, optimizer)


# ------------------------------------------------------------------ words, 0 being padding


class WordAverage(nn.Module):
    """The mean of a text's word vectors, and a layer."""

    vocabulary: int
    outputs: int
    width: int
    smallest: float

    @nn.compact
    def __call__(self, words):
        mask = (words > 0)[..., None]
        vectors = nn.Embed(self.vocabulary, self.width)(words) * mask
        x = vectors.sum(1) / jnp.maximum(mask.sum(1), self.smallest)
        return nn.Dense(self.outputs)(nn.relu(nn.Dense(self.width)(x)))


def attend(attention: eqx.nn.MultiheadAttention, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Attend within one sequence by the library's projections; masked positions have a score of minus infinity."""
    projections = (attention.query_proj, attention.key_proj, attention.value_proj)
    query, key, value = (jax.vmap(project)(x).reshape(len(x), attention.num_heads, -1) for project in projections)
    scores = jnp.einsum("qhd,khd->hqk", query, key) / query.shape[-1] ** 0.5
    weights = jax.nn.softmax(scores if mask is None else jnp.where(mask, scores, -jnp.inf), axis=-1)
    return jax.vmap(attention.output_proj)(jnp.einsum("hqk,khd->qhd", weights, value).reshape(len(x), -1))


class Attending(eqx.Module):
    """Word vectors, blocks of attention and of a dense layer, and the first position's vector."""

    embedding: eqx.nn.Embedding
    position: jax.Array
    attention: list[eqx.nn.MultiheadAttention]
    dense: list[eqx.nn.MLP]
    norms: list[eqx.nn.LayerNorm]
    head: eqx.nn.Linear
    keep_first: bool = eqx.field(static=True)

    def __init__(self, vocabulary, outputs, width, layers, steps, keep_first, *, key):
        keys = jax.random.split(key, 3 + 2 * layers)
        self.embedding = eqx.nn.Embedding(vocabulary, width, key=keys[0])
        self.position = 0.1 * jax.random.normal(keys[1], (steps, width))
        self.attention = [eqx.nn.MultiheadAttention(4, width, key=k) for k in keys[3 : 3 + layers]]
        self.dense = [eqx.nn.MLP(width, width, 2 * width, 1, jax.nn.gelu, key=k) for k in keys[3 + layers :]]
        self.norms = [eqx.nn.LayerNorm(width) for _ in range(2 * layers + 1)]
        self.head = eqx.nn.Linear(width, outputs, key=keys[2])
        self.keep_first = keep_first

    def __call__(self, words):
        x = jax.vmap(self.embedding)(words) + self.position
        mask = words > 0
        mask = mask.at[0].set(True) if self.keep_first else mask
        pairs = jnp.broadcast_to(mask, (len(words), len(words)))
        for i, (attention, dense) in enumerate(zip(self.attention, self.dense, strict=True)):
            h = jax.vmap(self.norms[2 * i])(x)
            x = x + attend(attention, h, pairs)
            x = x + jax.vmap(dense)(jax.vmap(self.norms[2 * i + 1])(x))
        x = jax.vmap(self.norms[-1])(x)
        weights = mask / jnp.maximum(mask.sum(), 1)
        return self.head(weights @ x)


def words(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    problem: dict[str, Any],
    width: int = 32,
    layers: int = 2,
    safe: bool = True,
) -> Case:
    """Build a classifier of padded texts; unless ``safe``, an empty one divides by zero."""
    task, vocabulary, outputs = series(data, **problem)
    texts, _ = task.batches(jax.random.key(0))
    key = jax.random.key(seed)
    if framework == "linen":
        model = WordAverage(vocabulary, outputs, width, 1 if safe else 0)
        params = model.init(key, texts)["params"]
        return assemble(Network(params, lambda params, x: model.apply({"params": params}, x)), task, optimizer)
    model = Attending(vocabulary, outputs, width, layers, texts.shape[1], safe, key=key)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return assemble(Network(params, lambda params, x: jax.vmap(eqx.combine(params, static))(x)), task, optimizer)
