"""How long a loss and its gradient take, against optax's loss of the same name.

Each figure is the time of ``value_and_grad`` of the mean, jitted, over a million predictions: medians of interleaved
runs in one process, and the median over several rounds of their ratio. The targets are arguments, not constants.

Run: python benchmarks/losses.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxgrad import losses

ROWS, CLASSES, ROUNDS, RUNS = 1024, 1024, 5, 21
SHAPE = (ROWS, CLASSES)


def cases() -> dict[str, tuple[Callable, Callable, jax.Array, jax.Array]]:
    """Return our loss, optax's, predictions and targets, by name."""
    keys = jax.random.split(jax.random.key(0), 4)
    x, y = jax.random.normal(keys[0], SHAPE), jax.random.normal(keys[1], SHAPE)
    labels = jax.random.randint(keys[2], (ROWS,), 0, CLASSES)
    signs = jnp.where(jax.random.bernoulli(keys[3], shape=SHAPE), 1.0, -1.0)
    one_hot, bits = jax.nn.one_hot(labels, CLASSES), (signs + 1) / 2
    distributions = jax.nn.softmax(y)
    cosine = lambda p, t: optax.cosine_distance(p, t) - 1  # noqa: E731
    return {
        "squared_error": (losses.squared_error, optax.squared_error, x, y),
        "huber_loss": (losses.huber_loss, optax.huber_loss, x, y),
        "log_cosh": (losses.log_cosh, optax.log_cosh, x, y),
        "hinge_loss": (losses.hinge_loss, optax.hinge_loss, x, signs),
        "sigmoid_binary_cross_entropy": (
            losses.sigmoid_binary_cross_entropy,
            optax.sigmoid_binary_cross_entropy,
            x,
            bits,
        ),
        "softmax_cross_entropy": (losses.softmax_cross_entropy, optax.softmax_cross_entropy, x, one_hot),
        "softmax_cross_entropy_with_integer_labels": (
            losses.softmax_cross_entropy_with_integer_labels,
            optax.softmax_cross_entropy_with_integer_labels,
            x,
            labels,
        ),
        "kl_divergence": (losses.kl_divergence, optax.kl_divergence, jax.nn.log_softmax(x), distributions),
        "cosine_proximity": (losses.cosine_proximity, cosine, x, y),
    }


def seconds(run: Callable, *args: jax.Array) -> float:
    """Return the time of one run."""
    begin = time.perf_counter()
    jax.block_until_ready(run(*args))
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    print(f"{jax.default_backend()}, jax {jax.__version__}, optax {optax.__version__}, {ROWS} × {CLASSES} predictions")
    print(f"{'value_and_grad of the mean':43} {'jaxgrad':>9} {'optax':>9} {'ratio':>6}   (goal: at most 1.00)")
    for name, (ours, theirs, predictions, targets) in cases().items():
        ours = jax.jit(jax.value_and_grad(lambda p, t, ours=ours: losses.reduce(ours(p, t))))
        theirs = jax.jit(jax.value_and_grad(lambda p, t, theirs=theirs: jnp.mean(theirs(p, t))))
        pair = (ours, theirs)
        for run in pair:
            seconds(run, predictions, targets)
        rounds = []
        for _ in range(ROUNDS):
            times: tuple[list[float], list[float]] = ([], [])
            for step in range(RUNS):
                for which in (0, 1) if step % 2 else (1, 0):
                    times[which].append(seconds(pair[which], predictions, targets))
            rounds.append(tuple(statistics.median(one) for one in times))
        own, other = (statistics.median(one) for one in zip(*rounds, strict=True))
        ratio = statistics.median(one / two for one, two in rounds)
        print(f"{name:43} {1e3 * own:6.2f} ms {1e3 * other:6.2f} ms {ratio:6.2f}")


if __name__ == "__main__":
    main()
