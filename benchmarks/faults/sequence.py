"""How recurrent networks and transformers are built, and the sequences they read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.nn import initializers
from networks import LECUN, Activation, Initializer
from programs import Case, Network, Task, assemble
from tasks import cross_entropy, error_rate, relative_squared_error, rescaled, sampler, squared_error, table


def orthogonal(scale: float = 1.0) -> Initializer:
    """Draw in float32, since the decomposition behind it knows no other short dtype."""
    draw = initializers.orthogonal(scale)
    return lambda key, shape, dtype: draw(key, shape).astype(dtype)


ORTHOGONAL = orthogonal()

# ------------------------------------------------------------------ sequences, (batch, steps, features)


def digit_rows(
    *,
    steps: int = 8,
    scale: float = 1.0,
    offset: float = 0.0,
    loss=cross_entropy,
    batch: int = 32,
    padding: tuple[int, int] = (0, 0),
) -> Task:
    """Read a digit's rows, or its pixels when there are 64 steps, with steps of zeros before and behind."""
    x, labels = table("digits")
    x = rescaled(x).reshape(len(x), steps, -1) * scale + offset
    x = np.pad(x, ((0, 0), padding, (0, 0)))
    return Task(sampler(x, labels, batch), loss, error_rate)


def recall(*, steps: int, batch: int = 64, classes: int = 4) -> Task:
    """Tell which of the first inputs was 1; noise follows."""

    def batches(key):
        label_key, noise_key = jax.random.split(key)
        labels = jax.random.randint(label_key, (batch,), 0, classes)
        x = 0.1 * jax.random.normal(noise_key, (batch, steps, classes))
        return x.at[:, 0].add(jax.nn.one_hot(labels, classes)), labels

    return Task(batches, cross_entropy, error_rate)


def waves(*, steps: int = 12, scale: float = 1.0, offset: float = 0.0, batch: int = 64, inputs: float = 1.0) -> Task:
    """Tell the next value of a sine from noisy ones; ``scale`` and ``offset`` give the targets' unit."""

    def batches(key):
        phase_key, rate_key, noise_key = jax.random.split(key, 3)
        phase = jax.random.uniform(phase_key, (batch, 1), maxval=6.3)
        rate = jax.random.uniform(rate_key, (batch, 1), minval=0.3, maxval=1.0)
        values = 1.4 * jnp.sin(phase + rate * jnp.arange(steps + 1))
        x = values[:, :-1] + 0.05 * jax.random.normal(noise_key, (batch, steps))
        return inputs * x[..., None], scale * values[:, -1:] + offset

    return Task(batches, squared_error, relative_squared_error)


def majority(*, steps: int = 16, vocabulary: int = 16, batch: int = 64, loss=cross_entropy) -> Task:
    """Tell which of four kinds of tokens is the most frequent."""

    def batches(key):
        tokens = jax.random.randint(key, (batch, steps), 0, vocabulary)
        return tokens, jnp.argmax(jax.nn.one_hot(tokens % 4, 4).sum(1), -1)

    return Task(batches, loss, error_rate)


SEQUENCES = {"digits": digit_rows, "recall": recall, "waves": waves, "majority": majority}


def sequences(data: str, settings: dict[str, Any]) -> Task:
    """Make the task from its name."""
    name, _, kind = data.partition("/")
    return SEQUENCES[kind or name](**settings)


def sizes(task: Task, classes: int | None = None) -> tuple[int, int]:
    """Return the numbers of input features and of outputs."""
    x, y = task.batches(jax.random.key(0))
    return x.shape[-1], 1 if y.ndim == 2 else (classes or (10 if x.shape[-1] in (1, 8) else 4))


# ------------------------------------------------------------------ recurrent networks


def jax_rnn(key, features, outputs, width, recurrent, activation, forget_bias, dtype) -> Network:
    """Scan over the steps in plain JAX."""
    input_key, recurrent_key, head_key = jax.random.split(key, 3)
    params = {
        "input": LECUN(input_key, (features, width), dtype),
        "recurrent": recurrent(recurrent_key, (width, width), dtype),
        "bias": jnp.zeros(width, dtype),
        "head": LECUN(head_key, (width, outputs), dtype),
    }

    def apply(params, x):
        def step(state, x):
            return activation(x @ params["input"] + state @ params["recurrent"] + params["bias"]), None

        x = x.astype(dtype)
        state, _ = jax.lax.scan(step, jnp.zeros((len(x), width), dtype), x.swapaxes(0, 1))
        return state @ params["head"]

    return Network(params, apply)


def linen_rnn(key, features, outputs, width, recurrent, activation, forget_bias, dtype) -> Network:
    """Use the library's simple cell."""
    kernels = {"recurrent_kernel_init": recurrent, "param_dtype": dtype}  # the state has the parameters' dtype
    cell = nn.SimpleCell(width, activation_fn=activation, dtype=dtype, **kernels)
    model = nn.Sequential([nn.RNN(cell), lambda states: states[:, -1], nn.Dense(outputs, dtype=dtype)])
    params = model.init(key, jnp.zeros((1, 2, features)))["params"]
    return Network(params, lambda params, x: model.apply({"params": params}, x))


def linen_lstm(key, features, outputs, width, recurrent, activation, forget_bias, dtype) -> Network:
    """Use the library's long short-term memory."""
    cell = nn.OptimizedLSTMCell(width, dtype=dtype)
    model = nn.Sequential([nn.RNN(cell), lambda states: states[:, -1], nn.Dense(outputs, dtype=dtype)])
    params = model.init(key, jnp.zeros((1, 2, features)))["params"]
    return Network(params, lambda params, x: model.apply({"params": params}, x))


class NnxGru(nnx.Module):
    """Gated recurrent units, and a linear layer on the last state."""

    def __init__(self, features, outputs, width, dtype, *, rngs):
        self.rnn = nnx.RNN(nnx.GRUCell(features, width, dtype=dtype, rngs=rngs))
        self.head = nnx.Linear(width, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.head(self.rnn(x, initial_carry=jnp.zeros((len(x), self.rnn.cell.hidden_features)))[:, -1])


def nnx_gru(key, features, outputs, width, recurrent, activation, forget_bias, dtype) -> Network:
    """Differentiate the parameters, and close over the generators' state."""
    graph, params, rest = nnx.split(NnxGru(features, outputs, width, dtype, rngs=nnx.Rngs(key)), nnx.Param, ...)
    return Network(params, lambda params, x: nnx.merge(graph, params, rest)(x))


class EquinoxLstm(eqx.Module):
    """Long short-term memory over one sequence, and a linear layer on the last state."""

    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self, features, outputs, width, forget_bias, *, key):
        cell_key, head_key = jax.random.split(key)
        cell = eqx.nn.LSTMCell(features, width, key=cell_key)
        bias = jnp.zeros(4 * width).at[width : 2 * width].set(forget_bias)
        self.cell = eqx.tree_at(lambda cell: cell.bias, cell, bias)
        self.head = eqx.nn.Linear(width, outputs, key=head_key)

    def __call__(self, x):
        state = (jnp.zeros(self.cell.hidden_size), jnp.zeros(self.cell.hidden_size))
        (hidden, _), _ = jax.lax.scan(lambda state, x: (self.cell(x, state), None), state, x)
        return self.head(hidden)


def equinox_lstm(key, features, outputs, width, recurrent, activation, forget_bias, dtype) -> Network:
    """Set the forget gate's bias, the second quarter of the cell's."""
    model = EquinoxLstm(features, outputs, width, forget_bias, key=key)
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return Network(params, lambda params, x: jax.vmap(eqx.combine(params, static))(x))


RECURRENT = {
    ("jax", "rnn"): jax_rnn,
    ("linen", "rnn"): linen_rnn,
    ("linen", "lstm"): linen_lstm,
    ("nnx", "gru"): nnx_gru,
    ("equinox", "lstm"): equinox_lstm,
}


def recurrent(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    task: dict[str, Any],
    cell: str = "rnn",
    width: int = 48,
    kernel: Initializer = ORTHOGONAL,
    activation: Activation = jnp.tanh,
    forget_bias: float = 1.0,
    dtype: str = "float32",
) -> Case:
    """Build a recurrent network that answers from its last state."""
    sequence = sequences(data, task)
    build = RECURRENT[framework, cell]
    network = build(jax.random.key(seed), *sizes(sequence), width, kernel, activation, forget_bias, jnp.dtype(dtype))
    return assemble(network, sequence, optimizer)


# ------------------------------------------------------------------ transformers


def softmax(scores):
    """Normalize without overflow."""
    return jax.nn.softmax(scores, axis=-1)


def bare_softmax(scores):
    """Normalize exponentials as they come."""
    weights = jnp.exp(scores)
    return weights / weights.sum(-1, keepdims=True)


class LinenTransformer(nn.Module):
    """Blocks of attention and of a dense layer, and the mean over positions."""

    layers: int
    width: int
    outputs: int
    norm: bool
    skip: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, dtype=self.dtype)(x)
        x = x + self.param("position", initializers.normal(0.3), (x.shape[1], self.width)).astype(self.dtype)
        for _ in range(self.layers):
            x = self.branch(x, nn.MultiHeadDotProductAttention(4, dtype=self.dtype))
            dense = [nn.Dense(2 * self.width, dtype=self.dtype), nn.gelu, nn.Dense(self.width, dtype=self.dtype)]
            x = self.branch(x, nn.Sequential(dense))
        x = nn.LayerNorm(dtype=self.dtype)(x) if self.norm else x
        return nn.Dense(self.outputs, dtype=self.dtype)(x.mean(1))

    def branch(self, x, layer):
        """Apply a layer after normalization, beside the skip."""
        y = layer(nn.LayerNorm(dtype=self.dtype)(x) if self.norm else x)
        return x + y if self.skip else y


def linen_transformer(
    key, task, features, outputs, layers, width, norm, skip, query_scale, normalize, dtype
) -> Network:
    """Read vectors, with parameters in float32."""
    model = LinenTransformer(layers, width, outputs, norm, skip, dtype)
    x, _ = task.batches(key)
    params = model.init(key, x)["params"]
    return Network(params, lambda params, x: model.apply({"params": params}, x))


class NnxBlock(nnx.Module):
    """Attention and a dense layer, normalized before."""

    def __init__(self, width, dtype, *, rngs):
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, dtype=dtype, rngs=rngs)
        self.norms = nnx.List(nnx.LayerNorm(width, dtype=dtype, rngs=rngs) for _ in range(2))

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class NnxTransformer(nnx.Module):
    """An embedding of tokens, blocks, and the mean over positions."""

    def __init__(self, vocabulary, outputs, layers, width, dtype, *, rngs):
        self.embed = nnx.Embed(vocabulary, width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(NnxBlock(width, dtype, rngs=rngs) for _ in range(layers))
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(width, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def nnx_transformer(key, task, features, outputs, layers, width, norm, skip, query_scale, normalize, dtype) -> Network:
    """Read tokens; differentiate the parameters, and close over the rest."""
    model = NnxTransformer(16, outputs, layers, width, dtype, rngs=nnx.Rngs(key))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return Network(params, lambda params, x: nnx.merge(graph, params, rest)(x))


def jax_transformer(key, task, features, outputs, layers, width, norm, skip, query_scale, normalize, dtype) -> Network:
    """Scan over stacked blocks in plain JAX, with one head, all through in one dtype."""
    keys = iter(jax.random.split(key, 8))
    shapes = {"query": (width, width), "key": (width, width), "value": (width, width), "out": (width, width)}
    shapes |= {"up": (width, 2 * width), "down": (2 * width, width)}
    stacked = initializers.variance_scaling(1.0, "fan_in", "normal", batch_axis=0)
    blocks = {name: stacked(next(keys), (layers, *shape), dtype) for name, shape in shapes.items()}
    blocks["query"] = blocks["query"] * jnp.asarray(query_scale, dtype)
    stem, head = LECUN(next(keys), (features, width), dtype), LECUN(next(keys), (width, outputs), dtype)
    params = {"stem": stem, "blocks": blocks, "head": head}

    def standardize(x):
        return jax.nn.standardize(x, epsilon=1e-5) if norm else x

    def block(x, block):
        h = standardize(x)
        scores = (h @ block["query"]) @ (h @ block["key"]).swapaxes(1, 2)
        x = x + normalize(scores / width**0.5) @ (h @ block["value"]) @ block["out"]
        return x + jax.nn.gelu(standardize(x) @ block["up"]) @ block["down"], None

    def apply(params, x):
        x, _ = jax.lax.scan(block, x.astype(dtype) @ params["stem"], params["blocks"])
        return standardize(x).mean(1) @ params["head"]

    return Network(params, apply)


TRANSFORMERS = {"linen": linen_transformer, "nnx": nnx_transformer, "jax": jax_transformer}


def transformer(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    task: dict[str, Any],
    layers: int = 2,
    width: int = 32,
    norm: bool = True,
    skip: bool = True,
    query_scale: float = 1.0,
    normalize: Callable[[jax.Array], jax.Array] = softmax,
    dtype: str = "float32",
) -> Case:
    """Build a transformer that answers from the mean of its positions."""
    sequence = sequences(data, task)
    features, outputs = sizes(sequence, 4 if data == "synthetic/majority" else None)
    build = TRANSFORMERS[framework]
    network = build(
        jax.random.key(seed),
        sequence, features, outputs, layers, width, norm, skip, query_scale, normalize, jnp.dtype(dtype),
    )  # fmt: skip
    return assemble(network, sequence, optimizer)
