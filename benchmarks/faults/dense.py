"""How dense networks on tables are built, and the optimizers most people run them with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from networks import LECUN, mlp
from programs import Case, Network, assemble
from tasks import cross_entropy, smoothed_cross_entropy, standardized, tabular

FEATURES = {"digits": 64, "wine": 13, "breast_cancer": 30, "diabetes": 10, "friedman": 10, "blobs": 20, "rare": 20}
CLASSES = {"digits": 10, "wine": 3, "blobs": 4}


def dense(
    seed: int,
    *,
    framework: str,
    data: str,
    optimizer: optax.GradientTransformation,
    hidden: Sequence[int] = (64, 64, 64),
    loss: Callable[..., jax.Array] = cross_entropy,
    inputs: Callable = standardized,
    targets: Callable | None = None,
    score: Callable[..., jax.Array] | None = None,
    batch: int = 64,
    output_scale: float = 1.0,
    **network,
) -> Case:
    """Build a dense network on a table; further settings are those of :func:`networks.mlp`."""
    sizes = (FEATURES[data], *hidden, CLASSES.get(data, 1))
    model = mlp(framework, seed, sizes=sizes, **network)
    scaled = Network(model.params, lambda params, x: output_scale * model.apply(params, x))
    task = tabular(data, loss=loss, inputs=inputs, targets=targets, score=score, batch=batch)
    return assemble(scaled, task, optimizer)


def scanned(
    seed: int,
    *,
    framework: str,
    data: str,
    depth: int,
    optimizer: optax.GradientTransformation,
    kernel: Callable[..., jax.Array],
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
    skip: bool = False,
    normalize: bool = False,
    width: int = 64,
) -> Case:
    """Build a deep network in plain JAX whose hidden layers stand stacked in one array."""
    stem_key, head_key, *keys = jax.random.split(jax.random.key(seed), depth + 2)
    params = {
        "stem": LECUN(stem_key, (FEATURES[data], width)),
        "hidden": {"w": jnp.stack([kernel(key, (width, width)) for key in keys]), "b": jnp.zeros((depth, width))},
        "head": LECUN(head_key, (width, CLASSES[data])),
    }

    def layer(x, layer):
        y = x @ layer["w"] + layer["b"]
        if normalize:  # over the batch
            y = (y - y.mean(0)) / jnp.sqrt(y.var(0) + 1e-5)
        y = activation(y)
        return (x + y / depth**0.5 if skip else y), None

    def apply(params, x):
        x, _ = jax.lax.scan(layer, x @ params["stem"], params["hidden"])
        return x @ params["head"]

    return assemble(Network(params, apply), tabular(data, loss=cross_entropy), optimizer)


class DropoutMlp(nn.Module):
    """A classifier with dropout."""

    @nn.compact
    def __call__(self, x, *, deterministic=False):
        for _ in range(2):
            x = nn.Dropout(0.3, deterministic=deterministic)(nn.relu(nn.Dense(96)(x)))
        return nn.Dense(10)(x)


def dropout(seed: int, *, framework: str, data: str, optimizer: optax.GradientTransformation) -> Case:
    """Build a classifier with dropout and label smoothing, whose batches bring the key of their masks."""
    task = tabular(data, loss=smoothed_cross_entropy)
    model = DropoutMlp()
    params = model.init({"params": jax.random.key(seed)}, jnp.zeros((1, FEATURES[data])), deterministic=True)

    def loss_fn(params, x, labels, key):
        return task.loss(model.apply(params, x, rngs={"dropout": key}), labels)

    def batches(key):
        return *task.batches(key), key

    def score(params, x, labels, _):
        return task.score(model.apply(params, x, deterministic=True), labels)

    return Case(loss_fn, params, batches(jax.random.key(0)), optimizer, batches, score)


def momentum(learning_rate: float) -> optax.GradientTransformation:
    """Gradient descent as most people run it."""
    return optax.sgd(learning_rate, momentum=0.9)


def clipped(norm: float, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Clip the gradient's norm before the step."""
    return optax.chain(optax.clip_by_global_norm(norm), optimizer)


ADAM = optax.adam(1e-3)
