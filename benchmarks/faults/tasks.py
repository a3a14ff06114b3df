"""The data that the programs learn, their losses and their scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
from programs import Task
from sklearn import datasets

Transform = Callable[[np.ndarray], np.ndarray]

# ------------------------------------------------------------------ data


@cache
def table(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Load inputs and targets: labels as integers, regression targets as an (n, 1) array."""
    match name:
        case "friedman":
            x, y = datasets.make_friedman1(n_samples=1000, n_features=10, noise=0.5, random_state=0)
        case "blobs":
            x, y = datasets.make_classification(1000, 20, n_informative=10, n_classes=4, class_sep=1.5, random_state=0)
        case "rare":
            x, y = datasets.make_classification(2000, 20, n_informative=10, weights=[0.95], flip_y=0, random_state=0)
        case _:
            x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return x, y.astype(np.int32) if len(np.unique(y)) <= 10 else y[:, None]


def as_is(x: np.ndarray) -> np.ndarray:
    """Leave the values in the units they came in."""
    return x


def standardized(x: np.ndarray) -> np.ndarray:
    """Give each column mean 0 and standard deviation 1; a constant column becomes 0."""
    return (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)


def rescaled(x: np.ndarray) -> np.ndarray:
    """Give all values together mean 0 and standard deviation 1, as for pixels."""
    return (x - x.mean()) / x.std()


def as_bytes(x: np.ndarray) -> np.ndarray:
    """Map the digits' pixels from 0 to 16 to 0 to 255."""
    return x * (255 / 16)


def affine(scale: float = 1.0, offset: float = 0.0) -> Transform:
    """Give each column a standard deviation and a mean."""
    return lambda x: standardized(x) * scale + offset


def scaled(factor: float) -> Transform:
    """Change the unit."""
    return lambda x: x * factor


def images(x: np.ndarray) -> np.ndarray:
    """Shape digits as images with one channel."""
    return x.reshape(-1, 8, 8, 1)


def sampler(x: np.ndarray, y: np.ndarray, batch: int) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Draw batches with replacement."""
    inputs, targets = (jnp.asarray(a, jnp.int32 if a.dtype.kind == "i" else jnp.float32) for a in (x, y))

    def batches(key):
        rows = jax.random.randint(key, (batch,), 0, len(inputs))
        return inputs[rows], targets[rows]

    return batches


# ------------------------------------------------------------------ losses, of outputs (batch, classes) or (batch, 1)


def cross_entropy(logits, labels):
    """Average the cross entropy, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()


def softmax_twice(logits, labels):
    """Pass probabilities to a loss that takes logits."""
    return cross_entropy(jax.nn.softmax(logits.astype(jnp.float32)), labels)


def softmax_over_batch(logits, labels):
    """Normalize over the examples instead of the classes."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=0)
    return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1).mean()


def smoothed_cross_entropy(logits, labels):
    """Average the cross entropy against labels smoothed by 0.1."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.1)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets).mean()


def summed_cross_entropy(logits, labels):
    """Sum the cross entropy over the batch."""
    return len(labels) * cross_entropy(logits, labels)


def scaled_cross_entropy(logits, labels):
    """Weigh the cross entropy down, as one term of several."""
    return 1e-3 * cross_entropy(logits, labels)


def binary_cross_entropy(logits, labels):
    """Average the cross entropy of one logit an example."""
    return optax.sigmoid_binary_cross_entropy(logits[:, 0].astype(jnp.float32), labels).mean()


def sigmoid_twice(logits, labels):
    """Pass probabilities to a binary loss that takes logits."""
    return binary_cross_entropy(jax.nn.sigmoid(logits), labels)


def sigmoid_squared_error(logits, labels):
    """Average the squared error of probabilities."""
    return jnp.square(jax.nn.sigmoid(logits[:, 0].astype(jnp.float32)) - labels).mean()


def squared_error(outputs, targets):
    """Average the squared error."""
    return jnp.square(outputs.astype(jnp.float32) - targets).mean()


def poisson(outputs, targets):
    """Average the negative log-likelihood of counts whose log-rate the network puts out."""
    return (jnp.exp(outputs.astype(jnp.float32)) - targets * outputs).mean()


# ------------------------------------------------------------------ scores


def error_rate(logits, labels):
    """Return the share of wrong labels, of one logit or of several."""
    predictions = logits[:, 0] > 0 if logits.shape[-1] == 1 else jnp.argmax(logits, -1)
    return (predictions != labels).mean()


def relative_squared_error(outputs, targets):
    """Return 1 - R²: the squared error over the targets' variance."""
    return squared_error(outputs, targets) / jnp.var(targets)


def exp_relative_squared_error(outputs, targets):
    """Return 1 - R² of a network that puts out logarithms."""
    return relative_squared_error(jnp.exp(outputs), targets)


def tabular(
    data: str,
    *,
    loss: Callable[..., jax.Array],
    inputs: Transform = standardized,
    targets: Transform | None = None,
    score: Callable[..., jax.Array] | None = None,
    batch: int = 64,
) -> Task:
    """Learn a table; regression targets are standardized unless told otherwise."""
    x, y = table(data)
    if y.ndim == 2:
        return Task(sampler(inputs(x), (targets or standardized)(y), batch), loss, score or relative_squared_error)
    return Task(sampler(inputs(x), y, batch), loss, score or error_rate)
