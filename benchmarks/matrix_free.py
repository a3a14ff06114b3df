"""What the largest singular value and the Frobenius norm of a Jacobian cost without the matrix, in evaluations of `f`.

On a convolutional network of dimension 16384 and a dense one of dimension 2304. Errors of the largest value are against
the same method with 96 steps in double precision, which agree to ten digits with LAPACK where the matrix fits. Each
time is the median of interleaved runs in one process, divided by that of the compiled network. Power iteration with
`torch.func` stands beside it where torch is installed: the same network, the same number of products, its own forward.

Run: python benchmarks/matrix_free.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgrad import spectra

RUNS = 7
STEPS = 24
Case = tuple[list[Any], Any]


def convolutional(depth: int = 8, side: int = 32, channels: int = 16) -> Case:
    """Return the kernels (height, width, in, out) of a network that keeps the shape of its input, and an input."""
    keys = jax.random.split(jax.random.key(0), depth + 1)
    kernels = [jax.random.normal(key, (3, 3, channels, channels)) * (1.5 / (9 * channels)) ** 0.5 for key in keys[1:]]
    return kernels, jax.random.normal(keys[0], (side, side, channels))


def dense(depth: int = 20, width: int = 2304) -> Case:
    """Return the weights (out, in) of a network, and an input."""
    keys = jax.random.split(jax.random.key(1), depth + 1)
    weights = [jax.random.normal(key, (width, width)) * (1.5 / width) ** 0.5 for key in keys[1:]]
    return weights, jax.random.normal(keys[0], (width,))


def apply(weights: list[Any], x: Any) -> Any:
    """Apply a network of either kind."""
    for weight in weights:
        if weight.ndim == 2:
            x = jnp.tanh(weight @ x)
        else:
            y = jax.lax.conv_general_dilated(
                x[None], weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jnp.tanh(y[0])
    return x


def torch_power_iteration(weights: list[Any], x: Any) -> dict[str, Callable[[], Any]]:
    """Return the evaluation and the power iteration of `torch.func`, or nothing without torch."""
    try:
        import numpy as np
        import torch
    except ImportError:
        return {}
    tensors = [torch.from_numpy(np.array(weight)) for weight in weights]
    point = torch.from_numpy(np.array(x))
    if point.ndim == 3:
        tensors = [kernel.permute(3, 2, 0, 1).contiguous() for kernel in tensors]
        point = point.permute(2, 0, 1).contiguous()

    def f(x: Any) -> Any:
        for weight in tensors:
            y = weight @ x if weight.ndim == 2 else torch.nn.functional.conv2d(x[None], weight, padding=1)[0]
            x = torch.tanh(y)
        return x

    def power() -> float:
        vector = torch.randn(point.shape, generator=torch.Generator().manual_seed(0))
        _, pull = torch.func.vjp(f, point)
        value = 0.0
        for _ in range(STEPS):
            _, image = torch.func.jvp(f, (point,), (vector / vector.norm(),))
            value = float(image.norm())
            vector = pull(image)[0]
        return value

    def evaluate() -> Any:
        with torch.no_grad():
            return f(point)

    return {"torch forward": evaluate, f"torch.func power, {STEPS} steps": power}


def interleaved(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return the median time of each in seconds."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        jax.block_until_ready(run())
    for _ in range(RUNS):
        for name, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(each) for name, each in times.items()}


def reference(weights: list[Any], x: Any) -> float:
    """Return the largest singular value in double precision."""
    with jax.enable_x64(True):
        doubles = [jnp.asarray(weight, jnp.float64) for weight in weights]
        run = jax.jit(
            lambda key: spectra.singular_values(
                lambda x: apply(doubles, x),
                jnp.asarray(x, jnp.float64),
                k=1,
                method="golub-kahan",
                num_steps=96,
                key=key,
            )
        )
        return float(run(jax.random.key(9)).values[0])


def main() -> None:
    """Measure and print."""
    print(f"{jax.default_backend()}, jax {jax.__version__}")
    key = jax.random.key(2)
    for case, (weights, x) in {"conv, 16384": convolutional(), "dense, 2304": dense()}.items():
        f = lambda x, weights=weights: apply(weights, x)  # noqa: E731
        top = jax.jit(lambda x, f=f: spectra.singular_values(f, x, k=1, method="golub-kahan", num_steps=STEPS, key=key))
        frobenius = jax.jit(lambda x, f=f: spectra.frobenius_norm_estimate(key, f, x, num_probes=32))
        forward = jax.jit(f)
        golub = f"golub-kahan, {STEPS} steps"
        jaxes = {
            "forward": lambda forward=forward, x=x: forward(x),
            golub: lambda top=top, x=x: top(x),
            "Frobenius, 32 probes": lambda frobenius=frobenius, x=x: frobenius(x),
        }
        torches = torch_power_iteration(weights, x)
        times = interleaved({**jaxes, **torches})
        want = reference(weights, x)
        estimate = frobenius(x)
        errors = {
            golub: abs(float(top(x).values[0]) / want - 1),
            "Frobenius, 32 probes": float(estimate.standard_error / estimate.value),
        }
        errors |= {name: abs(run() / want - 1) for name, run in torches.items() if "power" in name}
        print(f"\n{case}: sigma_1 = {want:.6f}, error claimed {float(top(x).accuracy[0]):.1e}")
        print(f"{'':30} {'ms':>8} {'÷ forward':>10} {'error or s.e.':>14}")
        for name, seconds in times.items():
            forward = times["torch forward" if "torch" in name else "forward"]
            error = f"{errors[name]:.1e}" if name in errors else ""
            print(f"{name:30} {1e3 * seconds:8.2f} {seconds / forward:10.1f} {error:>14}")


if __name__ == "__main__":
    main()
