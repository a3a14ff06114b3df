"""What a program of the fault suite is: a training setup whose fault, or health, is known."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import optax

Framework = Literal["linen", "nnx", "equinox", "jax"]
Architecture = Literal["dense", "conv", "residual", "transformer", "rnn", "lstm"]
Dtype = Literal["float32", "bfloat16"]

HALVES = ("first", "second", "heldout")

CAUSES = frozenset(
    {
        "initialization",
        "saturating-activation",
        "depth",
        "dead-relu",
        "learning-rate",
        "target-scale",
        "input-scale",
        "loss",
        "recurrence",
        "missing-residual",
        "residual-scale",
        "normalization",
        "nonfinite-op",
        "masked-by-clipping",
    }
)


class Case(NamedTuple):
    """One training setup, drawn from a seed.

    Attributes:
      loss_fn: ``loss_fn(params, *args)``, a scalar. It does not depend on the seed.
      params: What the loss is differentiated by.
      args: One batch, as passed to the loss after the parameters.
      optimizer: The user's optimizer.
      batches: Draws the arguments of another batch, of the same shapes, from a key.
      score: ``score(params, *args)``, lower is better. It has the same unit in a program and in its twin.
    """

    loss_fn: Callable[..., jax.Array]
    params: Any
    args: tuple[Any, ...]
    optimizer: optax.GradientTransformation
    batches: Callable[[jax.Array], tuple[Any, ...]]
    score: Callable[..., jax.Array]


class Program(NamedTuple):
    """A program with its known fault.

    Attributes:
      name: A short name, unique in the suite.
      framework: What the network is written in.
      architecture: Its family.
      dtype: What it computes in.
      data: The data set's name, or "synthetic".
      fault: The fault in words; None when healthy.
      causes: The causes that a careful practitioner would accept as the first answer; empty when healthy.
      make: Draws the case from a seed.
      twin: Draws the repaired case; None when healthy.
      reach: The share of the initial loss that a healthy program trains down to; None when faulty.
      steps: The training budget.
    """

    name: str
    framework: Framework
    architecture: Architecture
    dtype: Dtype
    data: str
    fault: str | None
    causes: frozenset[str]
    make: Callable[[int], Case]
    twin: Callable[[int], Case] | None
    reach: float | None
    steps: int


class Network(NamedTuple):
    """Parameters, and the function that applies them to a batch of inputs."""

    params: Any
    apply: Callable[..., jax.Array]


class Task(NamedTuple):
    """Batches of inputs and targets, and what is made of a network's outputs.

    Attributes:
      batches: Draws ``(inputs, targets)`` from a key.
      loss: ``loss(outputs, targets)``.
      score: ``score(outputs, targets)``.
    """

    batches: Callable[[jax.Array], tuple[Any, ...]]
    loss: Callable[..., jax.Array]
    score: Callable[..., jax.Array]


def assemble(network: Network, task: Task, optimizer: optax.GradientTransformation) -> Case:
    """Join a network, a task and an optimizer."""

    def loss_fn(params, inputs, targets):
        return task.loss(network.apply(params, inputs), targets)

    def score(params, inputs, targets):
        return task.score(network.apply(params, inputs), targets)

    return Case(loss_fn, network.params, task.batches(jax.random.key(0)), optimizer, task.batches, score)


def faulty(
    name: str,
    fault: str,
    causes: set[str],
    build: Callable[..., Case],
    repair: Mapping[str, Any],
    /,
    *,
    architecture: Architecture = "dense",
    steps: int = 200,
    **settings: Any,
) -> Program:
    """Describe a program whose settings have a fault, which ``repair`` replaces in its twin."""
    if not causes <= CAUSES:
        raise ValueError(f"{name}: unknown causes {sorted(causes - CAUSES)}")
    make, twin = partial(build, **settings), partial(build, **{**settings, **repair})
    labels = _labels(name, architecture, settings)
    return Program(*labels, fault, frozenset(causes), make, twin, None, steps)


def healthy(
    name: str,
    build: Callable[..., Case],
    /,
    *,
    reach: float,
    architecture: Architecture = "dense",
    steps: int = 200,
    **settings: Any,
) -> Program:
    """Describe a healthy program."""
    labels = _labels(name, architecture, settings)
    return Program(*labels, None, frozenset(), partial(build, **settings), None, reach, steps)


def _labels(name: str, architecture: Architecture, settings: Mapping[str, Any]) -> tuple[Any, ...]:
    return name, settings["framework"], architecture, settings.get("dtype", "float32"), settings["data"]


def training_step(case: Case) -> Callable[..., tuple[Any, Any, jax.Array]]:
    """Compile ``(params, state, key)`` to the parameters and state after a step on a new batch, and its loss."""

    @jax.jit
    def step(params, state, key):
        loss, gradient = jax.value_and_grad(case.loss_fn)(params, *case.batches(key))
        updates, state = case.optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    return step


def train(case: Case, params: Any, key: jax.Array, steps: int, step: Callable[..., Any] | None = None) -> Any:
    """Train, by a step that was compiled before if one is given.

    The loop is Python's: on CPUs, convolutions inside a compiled loop are slower by an order of magnitude.
    """
    step = step or training_step(case)
    state = case.optimizer.init(params)
    for step_key in jax.random.split(key, steps):
        params, state, _ = step(params, state, step_key)
    return params


def trained(seed: int, *, build: Callable[..., Case], training_steps: int, training_optimizer=None, **settings) -> Case:
    """Draw a case whose network has been trained before, with its own optimizer unless another is given."""
    case = build(seed, **settings)
    teacher = case if training_optimizer is None else case._replace(optimizer=training_optimizer)
    params = train(teacher, case.params, jax.random.fold_in(jax.random.key(1), seed), training_steps)
    return case._replace(params=params)


def load(half: str | None = None) -> tuple[Program, ...]:
    """Collect the programs of one of ``HALVES``, ``"heldout"`` being kept from the tool's making, or of all."""
    halves = (half,) if half else HALVES
    files = [file for name in halves for file in sorted(Path(__file__).parent.glob(f"{name}_*.py"))]
    programs = [program for file in files for program in importlib.import_module(file.stem).PROGRAMS]
    names = [program.name for program in programs]
    if len(set(names)) < len(names):
        raise ValueError(f"names stand twice: {sorted({name for name in names if names.count(name) > 1})}")
    return tuple(programs)
