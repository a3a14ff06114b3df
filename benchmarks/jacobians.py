"""All block Jacobians and all prefix products of an MLP: composed, and recomputed from the input for each prefix.

tanh layers of width 256, 16 examples, float32. Each figure is the median of interleaved runs in one process; the first
call, which includes tracing and compilation, stands beside it. "jax.jacobian" is a jitted ``vmap(jacfwd)`` of each
prefix, as one writes it by hand; "torch composed" multiplies ``D W`` in order with ``bmm``; "torch naive" is
``vmap(jacrev)`` of each prefix. Spectra are those of every block and every prefix, for all examples.

Run: python benchmarks/jacobians.py [DEPTH ...]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxgrad
from jaxgrad import spectra

WIDTH, BATCH = 256, 16
RUNS = 5
SLOW = ("spectra", "each prefix", "naive")  # measured once, after the first call
NAIVE_DEPTH = 32  # beyond it, torch's naive way is left out


def forward(params: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    """Return the last layer's output."""
    for layer in params:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x


def parameters(depth: int) -> list[dict[str, np.ndarray]]:
    """Return random layers."""
    rng = np.random.default_rng(0)
    shape = (WIDTH, WIDTH)
    return [
        {"w": (1.5 / WIDTH**0.5 * rng.standard_normal(shape)).astype(np.float32), "b": np.zeros(WIDTH, np.float32)}
        for _ in range(depth)
    ]


def of_jaxgrad(weights: list[Any], x: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return what is measured of this package."""
    params, x = jax.tree.map(jnp.asarray, weights), jnp.asarray(x)
    network = jaxgrad.trace(lambda params, x: jnp.sum(forward(params, x)), params, x)

    def products() -> None:
        for product in spectra.prefix_jacobians(network, params, x):
            jax.block_until_ready(product)

    return {
        "block_jacobians": lambda: jax.block_until_ready(spectra.block_jacobians(network, params, x)),
        "prefix_jacobians": products,
        "block_spectra, blocks and prefixes": lambda: spectra.block_spectra(network, params, x, products="prefix"),
    }


def of_jax(weights: list[Any], x: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return separate calls of ``jax.jacobian``."""
    params, x = jax.tree.map(jnp.asarray, weights), jnp.asarray(x)

    def prefix(count: int) -> Callable[..., jax.Array]:
        def function(params: Any, row: jax.Array) -> jax.Array:
            return forward(params[:count], row)

        return jax.jit(jax.vmap(jax.jacfwd(function, argnums=1), (None, 0)))

    functions = [prefix(count) for count in range(1, len(params) + 1)]

    def products() -> None:
        for function in functions:
            jax.block_until_ready(function(params, x))

    return {"jax.jacobian of each prefix": products}


def of_torch(weights: list[Any], x: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return the same in torch, composed by hand and naive."""
    try:
        import torch
    except ImportError:
        return {}
    layers = [{name: torch.from_numpy(value) for name, value in layer.items()} for layer in weights]
    x = torch.from_numpy(x)

    def walk(decompose: bool) -> None:
        with torch.no_grad():
            h, product = x, None
            for layer in layers:
                h = torch.tanh(h @ layer["w"] + layer["b"])
                block = (1 - h**2)[:, :, None] * layer["w"].T
                product = block if product is None else torch.bmm(block, product)
                if decompose:
                    torch.linalg.svdvals(block)
                    torch.linalg.svdvals(product)

    def naive() -> None:
        for count in range(1, len(layers) + 1):

            def function(row: Any, count: int = count) -> Any:
                for layer in layers[:count]:
                    row = torch.tanh(row @ layer["w"] + layer["b"])
                return row

            torch.func.vmap(torch.func.jacrev(function))(x)

    return {
        "torch composed: blocks and prefixes": lambda: walk(False),
        "torch composed: their spectra": lambda: walk(True),
        "torch naive": naive,
    }


def main() -> None:
    """Measure and print."""
    depths = [int(depth) for depth in sys.argv[1:]] or [8, 32, 64]
    print(f"{jax.default_backend()}, jax {jax.__version__}, width {WIDTH}, {BATCH} examples")
    x = np.random.default_rng(1).standard_normal((BATCH, WIDTH)).astype(np.float32)
    for depth in depths:
        weights = parameters(depth)
        runs = {**of_jaxgrad(weights, x), **of_jax(weights, x), **of_torch(weights, x)}
        if depth > NAIVE_DEPTH:
            runs.pop("torch naive", None)
        first = {name: seconds(run) for name, run in runs.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for count in range(RUNS):
            for name, run in runs.items():
                if count == 0 or not any(word in name for word in SLOW):
                    times[name].append(seconds(run))
        print(f"\ndepth {depth:34} {'median':>10} {'first call':>11}")
        for name in runs:
            print(f"{name:40} {statistics.median(times[name]):8.3f} s {first[name]:9.3f} s")


def seconds(run: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
