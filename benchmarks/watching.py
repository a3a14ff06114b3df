"""What a monitor with a history says of four training runs on handwritten digits, and what it costs a step.

The network is a ReLU MLP of four layers, trained by adam at 1e-3 behind ``clip_by_global_norm``, 64 examples a step,
for 1000 steps. Its state is read at steps 200, 600 and 1000. The runs:

* ``healthy``;
* ``learning rate``: it rises a hundredfold at step 600;
* ``spikes``: every 97th batch is thirty times too large;
* ``masking``: from step 500 on the labels belong to other images, and a low threshold hides how large the gradient is.

The cost is the median ratio of a jitted step with the monitor to one without, interleaved in one process.

Run: python benchmarks/watching.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgrad import clipping, initializers
from jaxgrad.data import digits
from jaxgrad.diagnosis import diagnose_run
from jaxgrad.monitoring import monitor

CHUNK, STEPS = 200, 1000
READ_AT = (200, 600, 1000)
BATCH = 64
TIMED = 400


Batch = tuple[jax.Array, jax.Array]


def as_it_is(step: jax.Array, x: jax.Array, y: jax.Array) -> Batch:
    """Return the batch."""
    del step
    return x, y


def every_97th_too_large(step: jax.Array, x: jax.Array, y: jax.Array) -> Batch:
    """Multiply each 97th batch by thirty."""
    return x * jnp.where(step % 97 == 96, 30.0, 1.0), y


def wrong_labels_from_500(step: jax.Array, x: jax.Array, y: jax.Array) -> Batch:
    """Give each image the label of its neighbour, from step 500 on."""
    return x, jnp.where(step >= 500, jnp.roll(y, 1), y)


# Threshold of the clipper, factor on the learning rate at step 600, and what becomes of a batch.
RUNS: dict[str, tuple[float, float, Callable[..., Batch]]] = {
    "healthy": (5.0, 1.0, as_it_is),
    "learning rate": (5.0, 100.0, as_it_is),
    "spikes": (5.0, 1.0, every_97th_too_large),
    "masking": (0.1, 1.0, wrong_labels_from_500),
}


def network(key: jax.Array, widths: tuple[int, ...]) -> dict[str, Any]:
    """Return dense layers of He's initialization."""
    init = initializers.he_normal()
    keys = jax.random.split(key, len(widths) - 1)
    pairs = zip(keys, widths, widths[1:], strict=False)
    return {
        f"Dense_{i}": {"kernel": init(key, (fan_in, fan_out)), "bias": jnp.zeros(fan_out)}
        for i, (key, fan_in, fan_out) in enumerate(pairs)
    }


def loss_fn(params: dict[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the cross entropy."""
    *hidden, last = params.values()
    for layer in hidden:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    logits = x @ last["kernel"] + last["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def data() -> tuple[jax.Array, jax.Array]:
    """Load the digits with mean 0 and standard deviation 1."""
    images, labels = digits()
    x = jnp.asarray(images.reshape(len(images), 64), jnp.float32)
    return (x - x.mean()) / x.std(), jnp.asarray(labels, jnp.int32)


def train(name: str) -> dict[int, Any]:
    """Return the optimizer's state at the steps it is read."""
    threshold, rise, change = RUNS[name]
    optimizer = optax.chain(
        monitor(history=64),
        clipping.clip_by_global_norm(threshold),
        optax.adam(optax.piecewise_constant_schedule(1e-3, {600: rise})),
        monitor(history=64, update_ratio=True, name="updates"),
    )
    x, y = data()

    def step(carry: Any, number: jax.Array) -> tuple[Any, None]:
        params, state = carry
        rows = jax.random.choice(jax.random.fold_in(jax.random.key(1), number), len(x), (BATCH,))
        loss, grads = jax.value_and_grad(loss_fn)(params, *change(number, x[rows], y[rows]))
        updates, state = optimizer.update(grads, state, params, value=loss)
        return (optax.apply_updates(params, updates), state), None

    chunk = jax.jit(lambda carry, numbers: jax.lax.scan(step, carry, numbers)[0])
    params = network(jax.random.key(0), (64, 64, 64, 64, 10))
    carry, states = (params, optimizer.init(params)), {}
    for begin in range(0, STEPS, CHUNK):
        carry = chunk(carry, jnp.arange(begin, begin + CHUNK))
        states[begin + CHUNK] = carry[1]
    return {step: states[step] for step in READ_AT}


def stepper(links: list[Any], widths: tuple[int, ...], batch: int) -> Callable[[], float]:
    """Return a function that takes one step and returns its time."""
    optimizer = optax.chain(*links, optax.adam(1e-3))
    optimizer = optax.with_extra_args_support(optimizer)
    x, y = (values[:batch] for values in data())

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
        updates, state = optimizer.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))
    params = network(jax.random.key(0), widths)
    carry = [(params, optimizer.init(params))]

    def run() -> float:
        begin = time.perf_counter()
        carry[0] = jax.block_until_ready(compiled(*carry[0]))
        return time.perf_counter() - begin

    run()
    return run


def cost() -> None:
    """Measure and print what a step takes."""
    for widths, batch in (((64, 64, 64, 64, 10), 64), ((64, 512, 512, 512, 512, 10), 256)):
        links = {"adam": [], "monitor()": [monitor()], "monitor(history=64)": [monitor(history=64)]}
        runs = {name: stepper(each, widths, batch) for name, each in links.items()}
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(TIMED):
            for name, run in runs.items():
                times[name].append(run())
        alone = statistics.median(times["adam"])
        print(f"\nwidths {widths}, {batch} examples: {1e6 * alone:.0f} µs a step with adam alone")
        for name in links:
            ratio = statistics.median(one / two for one, two in zip(times[name], times["adam"], strict=True))
            more = statistics.median(times[name]) - alone
            print(f"  {name:22} {ratio:5.2f} x, {1e6 * more:+.0f} µs")


def main() -> None:
    """Train, diagnose, measure and print."""
    print(f"{jax.default_backend()}, jax {jax.__version__}, optax {optax.__version__}")
    for name in RUNS:
        print(f"\n== {name}")
        for step, state in train(name).items():
            begin = time.perf_counter()
            diagnosis = diagnose_run(state)
            seconds = time.perf_counter() - begin
            print(f"-- step {step} ({1e3 * seconds:.1f} ms)\n{diagnosis}")
    cost()


if __name__ == "__main__":
    main()
