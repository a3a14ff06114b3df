"""What clipping and recording the norm of every leaf cost in a training step, beside Adam alone.

One whole step is timed (update and apply, with the parameters and the state donated) on 9.2 million parameters in 24
leaves and in 432. Each figure is the median ratio of interleaved runs in one process; "read once more" sums the
squares of the gradients and no more, which is the least that recording can cost. The first step includes compilation.

Run: python benchmarks/training_step.py [LINK ...]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgrad import clipping
from jaxgrad.monitoring import monitor

RUNS = 60
CASES = {"9.2M parameters, 24 leaves": (12, 875), "9.2M parameters, 432 leaves": (216, 206)}


def read_once_more() -> optax.GradientTransformation:
    """Return a link that sums the squares of each leaf and keeps them."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del state, params
        return updates, jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf)), updates)

    return optax.GradientTransformation(lambda params: jax.tree.map(lambda _: jnp.zeros(()), params), update)


LINKS = {
    "adam": [],
    "read once more": [read_once_more()],
    "optax.clip_by_global_norm": [optax.clip_by_global_norm(1.0)],
    "clip_by_global_norm": [clipping.clip_by_global_norm(1.0)],
    "clip_by_norm": [clipping.clip_by_norm(1.0)],
    "smooth_clip": [clipping.smooth_clip(1.0)],
    "clip_by_quantile": [clipping.clip_by_quantile()],
    "clip_by_zscore": [clipping.clip_by_zscore()],
    "adaptive_clip_by_history": [clipping.adaptive_clip_by_history()],
    "adaptive_clip": [clipping.adaptive_clip()],
    "clip": [clipping.clip(1e-2)],
    "monitor()": [monitor()],
    "monitor(depth=1)": [monitor(depth=1)],
    "monitor(quantiles=(0.5, 0.9))": [monitor(quantiles=(0.5, 0.9))],
    "monitor(update_ratio=True), last": [monitor(update_ratio=True)],
    "monitor(noise_scale=True)": [monitor(noise_scale=True, batch_size=32)],
}


def tree(depth: int, width: int, seed: int) -> dict[str, Any]:
    """Return dense layers of random numbers."""
    keys = jax.random.split(jax.random.key(seed), depth)
    return {
        f"Dense_{i}": {"kernel": jax.random.normal(key, (width, width)), "bias": jnp.ones(width)}
        for i, key in enumerate(keys)
    }


def stepper(name: str, depth: int, width: int) -> Callable[[], float]:
    """Return a function that takes one step and returns its time."""
    adam = optax.adam(1e-3)
    optimizer = optax.chain(adam, *LINKS[name]) if name.endswith("last") else optax.chain(*LINKS[name], adam)

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    params = tree(depth, width, 0)
    carry = [(params, optimizer.init(params))]
    grads = tree(depth, width, 1)

    def run() -> float:
        begin = time.perf_counter()
        carry[0] = jax.block_until_ready(compiled(*carry[0], grads))
        return time.perf_counter() - begin

    return run


def main() -> None:
    """Measure and print."""
    links = ["adam", *(sys.argv[1:] or list(LINKS)[1:])]
    print(f"{jax.default_backend()}, jax {jax.__version__}, optax {optax.__version__}")
    for case, shape in CASES.items():
        runs = {name: stepper(name, *shape) for name in links}
        first = {}
        for name, run in runs.items():
            first[name] = run()
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(RUNS):
            for name, run in runs.items():
                times[name].append(run())
        alone = statistics.median(times["adam"])
        print(f"\n{case}: adam alone {1e3 * alone:.2f} ms a step, first step {first['adam']:.2f} s")
        print(f"{'':34} {'÷ adam':>7} {'first step':>11}")
        for name in links[1:]:
            ratio = statistics.median(one / two for one, two in zip(times[name], times["adam"], strict=True))
            print(f"{name:34} {ratio:7.2f} {first[name]:9.2f} s")


if __name__ == "__main__":
    main()
