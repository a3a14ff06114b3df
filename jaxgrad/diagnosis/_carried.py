"""States that loops without layers carry, such as linear recurrences: whether they last, fade or grow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.diagnosis._facts import CarriedFacts
from jaxgrad.diagnosis._measure import norm
from jaxgrad.tracing import Network
from jaxgrad.tracing._interpret import Constant, Equation, evaluate, scan_parts
from jaxgrad.tracing._layers import user_source

_LEAST_STEPS = 8


def carrying_loops(network: Network) -> list[Equation]:
    """Return the loops without layers, outside of other loops, whose carried state reaches the loss."""
    program = network.program
    return [
        equation
        for equation in program.equations
        if equation.operation == "scan"
        and equation.loop is None
        and equation.params["length"] >= _LEAST_STEPS
        and any((output,) in network.path for output in equation.outputs)
        and _floating(program, equation)
    ]


def _floating(program: Any, equation: Equation) -> list[int]:
    """Return which of a loop's carried values are real arrays, by position among its results."""
    _, carry = scan_parts(equation.params, len(equation.inputs))
    carried = equation.outputs[:carry]
    return [i for i, output in enumerate(carried) if jnp.issubdtype(program.avals[output].dtype, jnp.floating)]


def carried_gains(network: Network) -> Callable[[list[Any]], list[Any]]:
    """Return the compiled function that gives, for each loop, by how much a small change of its state is multiplied.

    The change is random, and is followed from before the first step to behind the last.
    """
    program, loops = network.program, carrying_loops(network)
    wanted = {(atom,) for equation in loops for atom in equation.operands}

    @jax.jit
    def measure(inputs: list[Any]) -> list[Any]:
        kept = evaluate(program, inputs, captures=wanted)[1]
        gains = []
        for equation in loops:
            operands = [atom.value if isinstance(atom, Constant) else kept[(atom,)] for atom in equation.inputs]
            first, _ = scan_parts(equation.params, len(equation.inputs))
            moving = _floating(program, equation)

            def run(*states: Any, equation=equation, operands=operands, first=first, moving=moving) -> list[Any]:
                full = list(operands)
                for place, state in zip(moving, states, strict=True):
                    full[first + place] = state
                return [equation.apply(*full)[place] for place in moving]

            states = [jnp.asarray(operands[first + place]) for place in moving]
            keys = jax.random.split(jax.random.key(0), len(states))
            pushed = tuple(
                jax.random.normal(key, state.shape, state.dtype) for key, state in zip(keys, states, strict=True)
            )
            moved = jax.jvp(run, tuple(states), pushed)[1]
            before, after = (norm(jnp.concatenate([jnp.ravel(part) for part in parts])) for parts in (pushed, moved))
            gains.append(after / before)
        return gains

    return measure


def carried_facts(network: Network, run: Callable[[list[Any]], Any], inputs: list[Any]) -> tuple[CarriedFacts, ...]:
    """Return the facts as plain numbers; a change that leaves the range of the type has an infinite logarithm."""
    facts = []
    for equation, gain in zip(carrying_loops(network), jax.device_get(run(inputs)), strict=True):
        size = float(np.float64(gain))
        log = -math.inf if size == 0 else math.inf if not math.isfinite(size) else math.log10(size)
        facts.append(CarriedFacts(user_source(equation.source), equation.params["length"], log))
    return tuple(facts)
