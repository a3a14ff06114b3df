"""Networks of pairs, variational autoencoders, post-norm encoders, residual images and leaky states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from conv import image_task
from flax import nnx
from networks import HE, LECUN, Initializer
from pictures import sigmoid_relative_error
from programs import Case, Network, assemble
from samples import logistic, series, unit_interval
from sequence import sequences, sizes
from tasks import Transform, cross_entropy, relative_squared_error, rescaled, sampler, standardized, table

# ------------------------------------------------------------------ initializers


def inverse_fan(key, shape, dtype=jnp.float32):
    """Take 1/fan-in for the standard deviation."""
    return jax.random.normal(key, shape, dtype) / shape[0]


def without_window(key, shape, dtype=jnp.float32):
    """Count the channels alone as the fan-in of a convolution."""
    return jax.random.normal(key, shape, dtype) * jnp.asarray((2 / shape[-2]) ** 0.5, dtype)


# ------------------------------------------------------------------ transforms of tables and of batches


def imagenet_statistics(x: np.ndarray) -> np.ndarray:
    """Apply the statistics of pixels from 0 to 1 to pixels from 0 to 255."""
    return (x * (255 / 16) - 0.45) / 0.225


def over_largest(x: np.ndarray) -> np.ndarray:
    """Divide the table by its largest value."""
    return x / x.max()


def counts(x: np.ndarray) -> np.ndarray:
    """Draw rare events at rates that are logarithmic in the targets."""
    return np.random.default_rng(0).poisson(np.exp(0.7 * standardized(x) - 1.2)).astype(float)


def one_pass(x: jax.Array) -> jax.Array:
    """Standardize each example in short precision by the mean of squares less the square of the mean."""
    x = x.astype(jnp.bfloat16)
    mean = x.mean(-1, keepdims=True)
    return ((x - mean) / jnp.sqrt((x * x).mean(-1, keepdims=True) - mean * mean)).astype(jnp.float32)


def layer_normalized(x: jax.Array) -> jax.Array:
    """Standardize each example over its features."""
    return jax.nn.standardize(x, epsilon=1e-5)


# ------------------------------------------------------------------ losses


def negative_probability(logits, labels):
    """Take the negative log-likelihood of probabilities as if they were logarithms."""
    return -jnp.take_along_axis(jax.nn.softmax(logits.astype(jnp.float32)), labels[:, None], 1).mean()


def logistic_of_signs(logits, labels):
    """Take labels of -1 and 1 where 0 and 1 are meant."""
    return logistic(logits, 2 * labels - 1)


def labels_from_one(logits, labels):
    """Count the classes from 1."""
    return cross_entropy(logits, labels + 1)


def gaussian(deviation: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """Average the negative log-likelihood of a mean and of a deviation that is made of the second output."""

    def loss(outputs, targets):
        mean, raw = jnp.split(outputs.astype(jnp.float32), 2, -1)
        sigma = deviation(raw)
        return jnp.mean(jnp.log(sigma) + 0.5 * ((targets - mean) / sigma) ** 2)

    return loss


def sum_of_squares(outputs, targets):
    """Sum the squared errors of a batch."""
    return jnp.sum((outputs.astype(jnp.float32) - targets) ** 2)


def error_of_mean(outputs, targets):
    """Return 1 - R² of the first output."""
    return relative_squared_error(outputs[:, :1], targets)


# ------------------------------------------------------------------ pairs


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Measure the distance of each pair."""
    return jnp.sqrt(jnp.sum((a - b) ** 2, -1))


def guarded_distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Measure the distance of each pair, a step away from 0."""
    return jnp.sqrt(jnp.sum((a - b) ** 2, -1) + 1e-6)


def siamese(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    measure: Callable[[jax.Array, jax.Array], jax.Array] = guarded_distance,
    width: int = 48,
    code: int = 6,
) -> Case:
    """Embed pairs in plain JAX so that those of one class lie close; some pairs are an example and itself."""
    x, y = table(data)
    draw = sampler(standardized(x), y, 48)
    keys = jax.random.split(jax.random.key(seed))
    params = {"in": HE(keys[0], (x.shape[1], width)), "out": LECUN(keys[1], (width, code)), "bias": jnp.zeros(width)}

    def batches(key):
        (left, a), (right, b) = (draw(k) for k in jax.random.split(key))
        own = (jnp.arange(len(left)) % 12 == 0)[:, None]
        return left, jnp.where(own, left, right), jnp.where(own[:, 0], 1, a == b).astype(jnp.float32)

    def distances(params, *pair):
        return measure(*(jax.nn.relu(x @ params["in"] + params["bias"]) @ params["out"] for x in pair))

    def loss_fn(params, left, right, same):
        d = distances(params, left, right)
        return jnp.mean(same * d**2 + (1 - same) * jnp.maximum(2 - d, 0) ** 2)

    def score(params, left, right, same):
        return jnp.mean((distances(params, left, right) < 1) != (same > 0))

    return Case(loss_fn, params, batches(jax.random.key(0)), optimizer, batches, score)


# ------------------------------------------------------------------ variational autoencoders


class Vae(nn.Module):
    """An encoder to means and log-variances, noise, and a decoder to the logits of pixels."""

    width: int
    code: int

    @nn.compact
    def __call__(self, x, key):
        x = nn.relu(nn.Dense(self.width, kernel_init=HE)(x))
        mean, log_variance = nn.Dense(self.code)(x), nn.Dense(self.code)(x)
        z = mean if key is None else mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        z = nn.relu(nn.Dense(self.width, kernel_init=HE)(z))
        return nn.Dense(64)(z), mean, log_variance


def vae(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    inputs: Transform = unit_interval,
    width: int = 48,
    code: int = 8,
) -> Case:
    """Build a variational autoencoder of digits, whose batches bring the key of its noise."""
    model = Vae(width, code)
    x, _ = table(data)
    draw = sampler(inputs(x), unit_interval(x), 48)
    params = model.init(jax.random.key(seed), jnp.zeros((1, 64)), None)["params"]

    def batches(key):
        return *draw(key), key

    def loss_fn(params, x, pixels, key):
        logits, mean, log_variance = model.apply({"params": params}, x, key)
        kept = optax.sigmoid_binary_cross_entropy(logits, pixels).sum(-1)
        return jnp.mean(kept + 0.5 * (jnp.exp(log_variance) + mean**2 - 1 - log_variance).sum(-1))

    def score(params, x, pixels, _):
        return sigmoid_relative_error(model.apply({"params": params}, x, None)[0], pixels)

    return Case(loss_fn, params, batches(jax.random.key(0)), optimizer, batches, score)


# ------------------------------------------------------------------ encoders of padded texts


def by_where(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Give masked positions a large negative score."""
    return jnp.where(mask, scores, -1e9)


def by_product(scores: jax.Array, mask: jax.Array) -> jax.Array:
    """Add infinity times a mask."""
    return scores - jnp.inf * (1 - mask.astype(scores.dtype))


class EncoderLayer(nnx.Module):
    """Attention with one head and a dense layer, each normalized behind its skip, if it has one."""

    def __init__(self, width, skip, masking, dtype, *, rngs):
        self.project = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, dtype=dtype, rngs=rngs)
        self.norms = nnx.List(nnx.LayerNorm(width, dtype=dtype, rngs=rngs) for _ in range(2))
        self.skip, self.masking = skip, masking

    def __call__(self, x, mask):
        query, key, value = jnp.split(self.project(x), 3, -1)
        scores = query @ key.swapaxes(1, 2) / x.shape[-1] ** 0.5
        y = self.out(jax.nn.softmax(self.masking(scores, mask), -1) @ value)
        x = self.norms[0](x + y if self.skip else y)
        y = self.down(nnx.relu(self.up(x)))
        return self.norms[1](x + y if self.skip else y)


class Encoder(nnx.Module):
    """Word vectors with positions, layers, and the mean over the words."""

    def __init__(self, vocabulary, outputs, layers, width, steps, *settings, rngs):
        self.embed = nnx.Embed(vocabulary, width, dtype=settings[-1], rngs=rngs)
        self.position = nnx.Param(0.1 * jax.random.normal(rngs.params(), (steps, width)))
        self.layers = nnx.List(EncoderLayer(width, *settings, rngs=rngs) for _ in range(layers))
        self.head = nnx.Linear(width, outputs, dtype=settings[-1], rngs=rngs)

    def __call__(self, words):
        mask = words > 0
        x = self.embed(words)
        x = x + self.position[...].astype(x.dtype)
        for layer in self.layers:
            x = layer(x, mask[:, None])
        weights = (mask / mask.sum(-1, keepdims=True)).astype(x.dtype)
        return self.head((weights[..., None] * x).sum(1))


def encoder(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    problem: dict[str, Any],
    layers: int = 2,
    width: int = 32,
    skip: bool = True,
    masking: Callable[[jax.Array, jax.Array], jax.Array] = by_where,
    dtype: str = "float32",
) -> Case:
    """Build a post-norm transformer of padded texts."""
    task, vocabulary, outputs = series(data, **problem)
    steps = task.batches(jax.random.key(0))[0].shape[1]
    rngs = nnx.Rngs(jax.random.key(seed))
    model = Encoder(vocabulary, outputs, layers, width, steps, skip, masking, jnp.dtype(dtype), rngs=rngs)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return assemble(Network(params, lambda params, x: nnx.merge(graph, params, rest)(x)), task, optimizer)


class Bags(eqx.Module):
    """Two layers over the counts of a text's words, of which most are 0."""

    layers: list[eqx.nn.Linear]

    def __init__(self, vocabulary, outputs, width, *, key):
        keys = jax.random.split(key)
        self.layers = [eqx.nn.Linear(vocabulary, width, key=keys[0]), eqx.nn.Linear(width, outputs, key=keys[1])]

    def __call__(self, words):
        counts = jnp.zeros(self.layers[0].in_features).at[words].add(1).at[0].set(0)
        return self.layers[1](jax.nn.relu(self.layers[0](counts)))


def bags(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    problem: dict[str, Any],
    width: int = 32,
) -> Case:
    """Build a classifier of texts that reads how often each word occurs."""
    task, vocabulary, outputs = series(data, **problem)
    model = Bags(vocabulary, outputs, width, key=jax.random.key(seed))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return assemble(Network(params, lambda params, x: jax.vmap(eqx.combine(params, static))(x)), task, optimizer)


# ------------------------------------------------------------------ residual images


JOINS = {"once": lambda x, y: x + y, "never": lambda x, y: y, "twice": lambda x, y: x + (x + y)}


class ResidualNet(eqx.Module):
    """A convolution of stride 2, branches of two convolutions, and a linear layer, for one image."""

    stem: eqx.nn.Conv2d
    branches: list[tuple[eqx.nn.Conv2d, eqx.nn.Conv2d]]
    norms: list[eqx.nn.GroupNorm]
    head: eqx.nn.Linear
    settings: tuple[Any, ...] = eqx.field(static=True)

    def __init__(self, blocks, width, kernel, norm, dtype, settings, *, key):
        stem_key, head_key, *keys = jax.random.split(key, 2 + 2 * blocks)
        convs = [eqx.nn.Conv2d(width, width, 3, padding=1, use_bias=False, dtype=dtype, key=k) for k in keys]
        kernels = [kernel(k, (3, 3, width, width), dtype).transpose(3, 2, 0, 1) for k in keys]
        convs = eqx.tree_at(lambda convs: [conv.weight for conv in convs], convs, kernels)
        self.stem = eqx.nn.Conv2d(1, width, 3, 2, padding=1, dtype=dtype, key=stem_key)
        self.branches = list(zip(convs[::2], convs[1::2], strict=True))
        self.norms = [eqx.nn.GroupNorm(4, width, dtype=dtype) for _ in range(blocks if norm else 0)]
        self.head = eqx.nn.Linear(width, 10, dtype=dtype, key=head_key)
        self.settings = settings

    def __call__(self, image):
        join, scale = self.settings
        x = self.stem(image.transpose(2, 0, 1))
        for i, (first, second) in enumerate(self.branches):
            y = jax.nn.relu(self.norms[i](x) if self.norms else x)
            x = JOINS[join](x, scale * second(jax.nn.relu(first(y))))
        return self.head(x.mean((1, 2)))


def residual_images(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    blocks: int = 4,
    width: int = 16,
    kernel: Initializer = HE,
    norm: bool = True,
    join: str = "once",
    scale: float = 1.0,
    dtype: str = "float32",
    inputs: Transform = rescaled,
    loss: Callable[..., jax.Array] = cross_entropy,
) -> Case:
    """Build a residual network of convolutions on digits."""
    model = ResidualNet(blocks, width, kernel, norm, jnp.dtype(dtype), (join, scale), key=jax.random.key(seed))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    network = Network(params, lambda params, x: jax.vmap(eqx.combine(params, static))(x.astype(dtype)))
    return assemble(network, image_task(inputs, loss), optimizer)


# ------------------------------------------------------------------ leaky states


class Leaky(eqx.Module):
    """States of which a share is kept at each step, over one sequence."""

    read: eqx.nn.Linear
    turn: eqx.nn.Linear
    head: eqx.nn.Linear
    keep: float = eqx.field(static=True)

    def __init__(self, features, outputs, width, keep, dtype, *, key):
        keys = jax.random.split(key, 3)
        self.read = eqx.nn.Linear(features, width, dtype=dtype, key=keys[0])
        self.turn = eqx.nn.Linear(width, width, dtype=dtype, key=keys[1])
        self.head = eqx.nn.Linear(width, outputs, dtype=dtype, key=keys[2])
        self.keep = keep

    def __call__(self, x):
        def step(h, x):
            return self.keep * h + (1 - self.keep) * jnp.tanh(self.read(x) + self.turn(h)), None

        h, _ = jax.lax.scan(step, jnp.zeros(self.turn.out_features, x.dtype), x)
        return self.head(h)


def leaky(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    task: dict[str, Any],
    keep: float,
    width: int = 48,
    dtype: str = "float32",
) -> Case:
    """Build a leaky recurrent network in equinox that answers from its last state."""
    sequence = sequences(data, task)
    model = Leaky(*sizes(sequence), width, keep, jnp.dtype(dtype), key=jax.random.key(seed))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    network = Network(params, lambda params, x: jax.vmap(eqx.combine(params, static))(x.astype(dtype)))
    return assemble(network, sequence, optimizer)
