"""How many training steps an explanation costs, warm, and what the first one costs in a cold process.

The network is a 12-layer multilayer perceptron of width 256 at batch 64, trained with Adam. Each figure is a ratio of
medians over interleaved runs in one process; the cold figures are whole processes.

Run: python benchmarks/explain.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import jaxgrad

DEPTH, WIDTH, BATCH, RUNS = 12, 256, 64, 15

COLD = {
    "jax, one jit": "import jax, jax.numpy as jnp; jax.jit(lambda x: x @ x)(jnp.ones((8, 8))).block_until_ready()",
    "explain, quick": "import explain, jaxgrad; jaxgrad.explain(*explain.case(), level='quick', verbose=False)",
    "explain, standard": "import explain, jaxgrad; jaxgrad.explain(*explain.case(), verbose=False)",
}


def case():
    """Return loss, parameters and batch."""
    keys = jax.random.split(jax.random.key(0), DEPTH + 1)
    params = [{"w": jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH**0.5, "b": jnp.zeros(WIDTH)} for key in keys[:-1]]
    x = jax.random.normal(keys[-1], (BATCH, WIDTH))
    return loss_fn, params, x, x


def loss_fn(params, x, y):
    """Mean squared error of the network."""
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return jnp.mean(jnp.square(x @ params[-1]["w"] + params[-1]["b"] - y))


def seconds(run: Callable[[], object]) -> float:
    """Return the time of one run."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    loss, params, x, y = case()
    optimizer = optax.adam(1e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    runs = {
        "step": lambda: jax.block_until_ready(step(params, state)),
        "quick": lambda: jaxgrad.explain(loss, params, x, y, level="quick", verbose=False),
        "standard": lambda: jaxgrad.explain(loss, params, x, y, verbose=False),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(RUNS):
        for name, run in runs.items():
            times[name].append(seconds(run))
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"one training step: {1e3 * median['step']:.1f} ms")
    for name, goal in (("quick", 10), ("standard", 100)):
        ratio = median[name] / median["step"]
        print(f"explain, {name}: {1e3 * median[name]:.1f} ms = {ratio:.1f} steps (goal: at most {goal})")
    here = Path(__file__).parent
    cold: dict[str, list[float]] = {name: [] for name in COLD}
    for _ in range(3):
        for name, code in COLD.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, cwd=here)
            cold[name].append(time.perf_counter() - begin)
    bare = statistics.median(cold["jax, one jit"])
    for name, values in cold.items():
        whole = statistics.median(values)
        print(f"cold process, {name}: {whole:.2f} s = {whole / bare:.1f} × bare jax")


if __name__ == "__main__":
    main()
