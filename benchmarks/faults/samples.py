"""More data to learn: small tables, pixels as sequences, and sequences whose label stands far back."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from programs import Task
from sklearn import datasets
from tasks import Transform, cross_entropy, error_rate, relative_squared_error, rescaled, sampler, standardized, table


class Problem(NamedTuple):
    """A task with the numbers of features and of outputs that a network for it has."""

    task: Task
    features: int
    outputs: int


@cache
def dataset(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Load inputs and targets: labels as integers, regression targets as an array of two axes."""
    match name:
        case "moons":
            x, y = datasets.make_moons(1000, noise=0.1, random_state=0)
            return x, y.astype(np.int32)
        case "circles":
            x, y = datasets.make_circles(1000, noise=0.05, factor=0.5, random_state=0)
            return x, y.astype(np.int32)
        case "regression":
            x, y = datasets.make_regression(1000, 16, n_informative=8, noise=5.0, random_state=0)
            return x, y[:, None]
        case "linnerud":
            return datasets.load_linnerud(return_X_y=True)
        case "proline":
            x, _ = datasets.load_wine(return_X_y=True)
            return x[:, :-1], x[:, -1:]
        case "diabetes-units":
            x, y = datasets.load_diabetes(return_X_y=True, scaled=False)
            return x, y[:, None]
    return table(name)


def learn(
    data: str,
    *,
    loss: Callable[..., jax.Array],
    inputs: Transform = standardized,
    targets: Transform = standardized,
    score: Callable[..., jax.Array] | None = None,
    batch: int = 48,
    outputs: int | None = None,
) -> Problem:
    """Learn a table; two classes are told apart by one logit unless ``outputs`` says otherwise."""
    x, y = dataset(data)
    if y.ndim == 2:
        task = Task(sampler(inputs(x), targets(y), batch), loss, score or relative_squared_error)
        return Problem(task, x.shape[1], outputs or y.shape[1])
    classes = int(y.max()) + 1
    task = Task(sampler(inputs(x), y, batch), loss, score or error_rate)
    return Problem(task, x.shape[1], outputs or (1 if classes == 2 else classes))


# ------------------------------------------------------------------ transforms of tables


def unit_interval(x: np.ndarray) -> np.ndarray:
    """Map pixels to 0 to 1."""
    return x / x.max()


def divided_twice(x: np.ndarray) -> np.ndarray:
    """Divide pixels from 0 to 255 by 255, in the loader and once more in the script."""
    return x * (255 / 16) / 255 / 255


def with_timestamp(unit: float, origin: float) -> Transform:
    """Put seconds since 1970 into the first column, over four months, measured in a unit from an origin."""

    def transform(x):
        x = standardized(x)
        seconds = 1.7e9 + 1e7 * (np.argsort(np.argsort(x[:, 0])) / len(x))
        x[:, 0] = (seconds - origin) / unit
        return x

    return transform


def with_zero_rows(share: float) -> Transform:
    """Fill a share of the examples with zeros, as for missing records."""

    def transform(x):
        x = standardized(x)
        x[np.random.default_rng(0).random(len(x)) < share] = 0
        return x

    return transform


def moved(offset: float, scale: float) -> Transform:
    """Give targets another mean and standard deviation."""
    return lambda x: offset + scale * standardized(x)


# ------------------------------------------------------------------ losses


def mean_squared(outputs, targets):
    """Average the squared error."""
    return jnp.mean((outputs.astype(jnp.float32) - targets) ** 2)


def mean_squared_of_all_pairs(outputs, targets):
    """Subtract targets of shape (batch,) from outputs of shape (batch, 1)."""
    return jnp.mean((outputs.astype(jnp.float32) - targets[:, 0]) ** 2)


def squared_log_error(outputs, targets):
    """Average the squared error of logarithms, for positive targets."""
    return mean_squared(jnp.log(outputs), jnp.log(targets))


def log_relative_squared_error(outputs, targets):
    """Return 1 - R² of the logarithms."""
    return relative_squared_error(jnp.log(outputs), jnp.log(targets))


def huber(outputs, targets):
    """Average the Huber loss."""
    return optax.huber_loss(outputs, targets).mean()


def logistic(logits, labels):
    """Average the cross entropy of one logit an example."""
    return optax.sigmoid_binary_cross_entropy(logits[:, 0].astype(jnp.float32), labels).mean()


def softmax_of_one(logits, labels):
    """Apply a softmax to the only output of a binary classifier."""
    probability = jax.nn.softmax(logits.astype(jnp.float32), -1)[:, 0]
    probability = jnp.clip(probability, 1e-7, 1 - 1e-7)
    return -jnp.mean(labels * jnp.log(probability) + (1 - labels) * jnp.log(1 - probability))


def thresholded(logits, labels):
    """Average the squared error of rounded probabilities."""
    return jnp.mean((jnp.round(jax.nn.sigmoid(logits[:, 0].astype(jnp.float32))) - labels) ** 2)


def sigmoid_as_logits(logits, labels):
    """Pass the outputs of a sigmoid to a loss that takes logits."""
    return cross_entropy(jax.nn.sigmoid(logits.astype(jnp.float32)), labels)


def log_softmax_as_logits(logits, labels):
    """Pass log-probabilities to a loss that takes logits, which changes nothing."""
    return cross_entropy(jax.nn.log_softmax(logits.astype(jnp.float32)), labels)


def log_of_softmax(logits, labels):
    """Take the logarithm of probabilities that may underflow."""
    probabilities = jnp.exp(logits) / jnp.exp(logits).sum(-1, keepdims=True)
    return -jnp.log(jnp.take_along_axis(probabilities, labels[:, None], 1)).astype(jnp.float32).mean()


def weighed(loss: Callable[..., jax.Array], factor: float) -> Callable[..., jax.Array]:
    """Multiply a loss."""
    return lambda outputs, targets: factor * loss(outputs, targets)


# ------------------------------------------------------------------ sequences, (batch, steps, features)


def pixels(*, steps: int = 64, batch: int = 32, inputs: Transform = rescaled) -> Problem:
    """Read a digit from the left to the right, in ``steps`` pieces."""
    x, labels = table("digits")
    x = inputs(x).reshape(-1, 8, 8).swapaxes(1, 2).reshape(len(x), steps, -1)
    return Problem(Task(sampler(x, labels, batch), cross_entropy, error_rate), 64 // steps, 10)


def marked(*, steps: int, position: int = 0, size: float = 1.0, classes: int = 3, batch: int = 48) -> Problem:
    """Tell the kind of the one marked vector among random ones of another size; features are a kind and the mark."""

    def batches(key):
        tokens = jax.random.randint(key, (batch, steps), 0, classes)
        marks = jnp.zeros((batch, steps, 1)).at[:, position].set(1)
        kinds = jax.nn.one_hot(tokens, classes) * jnp.where(marks, 1, size)
        return jnp.concatenate([kinds, marks], -1), tokens[:, position]

    return Problem(Task(batches, cross_entropy, error_rate), classes + 1, classes)


def adding(*, steps: int, batch: int = 48, unit: float = 1.0) -> Problem:
    """Add the two marked numbers of a sequence; ``unit`` is the standard deviation of the sum."""

    def batches(key):
        value_key, first_key, second_key = jax.random.split(key, 3)
        values = jax.random.uniform(value_key, (batch, steps), minval=-1.0)
        first = jax.random.randint(first_key, (batch,), 0, steps // 2)
        second = jax.random.randint(second_key, (batch,), steps // 2, steps)
        marks = jax.nn.one_hot(first, steps) + jax.nn.one_hot(second, steps)
        return jnp.stack([values, marks], -1), unit * (values * marks).sum(-1, keepdims=True) / (2 / 3) ** 0.5

    return Problem(Task(batches, mean_squared, relative_squared_error), 2, 1)


def documents(*, steps: int = 20, vocabulary: int = 400, shortest: int = 4, batch: int = 48) -> Problem:
    """Tell the topic that most words of a padded text belong to; words are counted from 1, and 0 is padding."""

    def batches(key):
        topic_key, word_key, mix_key, length_key = jax.random.split(key, 4)
        topics = jax.random.randint(topic_key, (batch,), 0, 4)
        words = jax.random.randint(word_key, (batch, steps), 0, vocabulary // 4)
        kinds = jnp.where(jax.random.bernoulli(mix_key, 0.5, (batch, steps)), topics[:, None], words % 4)
        lengths = jax.random.randint(length_key, (batch,), shortest, steps + 1)
        texts = jnp.where(jnp.arange(steps) < lengths[:, None], 1 + words * 4 + kinds, 0)
        return texts, topics

    return Problem(Task(batches, cross_entropy, error_rate), 1 + vocabulary, 4)


SEQUENCES = {"digits": pixels, "marked": marked, "adding": adding, "documents": documents}


def series(data: str, **settings) -> Problem:
    """Make the problem of a sequence from its name, such as "synthetic/adding"."""
    return SEQUENCES[data.rpartition("/")[2]](**settings)
