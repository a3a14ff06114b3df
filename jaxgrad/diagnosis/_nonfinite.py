"""The first value that is not finite, forward or on the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.tracing import Network
from jaxgrad.tracing._interpret import Constant, Equation, Site, evaluate
from jaxgrad.tracing._layers import is_selection


class Origin(NamedTuple):
    """Where the first value that is not finite is made.

    Attributes:
      phase: ``"input"``, ``"forward"`` or ``"backward"``.
      site: Number of the value made, after the loops it stands in; the position among the inputs for an input.
      operation: The primitive.
      source: The primitive's source information.
      step: Step of the outermost loop.
    """

    phase: str
    site: Site
    operation: str
    source: Any
    step: int | None


def find_nonfinite(network: Network, inputs: Sequence[Any]) -> Origin | None:
    """Find the first operation that makes a value that is not finite from values that are.

    Args:
      network: A traced network.
      inputs: The program's inputs.

    Returns:
      Its origin, or ``None`` where all values and gradients are finite.
    """
    for position, value in enumerate(inputs):
        if _inexact(value) and not bool(jnp.all(jnp.isfinite(value))):
            return Origin("input", (position,), "input", None, None)
    program = network.program
    forward = _flagged(program)

    @jax.jit
    def flags(inputs: Sequence[Any]) -> dict[Site, Any]:
        _, kept = evaluate(program, inputs, captures=forward)
        return {site: _worst(value, len(site) - 1) for site, value in kept.items()}

    found = _first_forward(program, jax.device_get(flags(inputs)))
    return found if found is not None else _first_backward(network, inputs, forward)


def _inexact(value: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(value), jnp.inexact))


def _flagged(program: Any, loops: Site = ()) -> set[Site]:
    """Return the sites of all values that may be other than finite."""
    sites = set()
    for equation in program.equations:
        sites |= {
            (*loops, output) for output in equation.outputs if jnp.issubdtype(program.avals[output].dtype, jnp.inexact)
        }
        if equation.loop is not None:
            sites |= _flagged(equation.loop.body, (*loops, equation.outputs[0]))
    return sites


def _worst(value: Any, loops: int) -> Any:
    """Return 2 where a value holds a NaN, 1 where it holds an infinity, else 0, for each step of the outermost loop."""
    axes = tuple(range(min(loops, 1), jnp.ndim(value)))
    return jnp.max(jnp.where(jnp.isnan(value), 2, jnp.where(jnp.isfinite(value), 0, 1)), axis=axes, initial=0)


def _first_forward(program: Any, flags: Mapping[Site, Any]) -> Origin | None:
    masks: set[int] = set()
    for equation in program.equations:
        if equation.loop is not None:
            number = equation.outputs[0]
            inside = {site: flag for site, flag in flags.items() if len(site) > 1 and site[0] == number}
            bad = np.any([np.asarray(flag) for flag in inside.values()], axis=0) if inside else np.zeros(1, bool)
            for step in np.flatnonzero(bad)[:: -1 if equation.loop.reverse else 1]:
                at_step = {site[1:]: np.asarray(flag)[step] for site, flag in inside.items()}
                origin = _first_flat(equation.loop.body, at_step)
                if origin is not None:
                    return origin._replace(site=(number, *origin.site), step=int(step))
        if _begins(equation, flags, masks):
            return Origin("forward", (equation.outputs[0],), equation.operation, equation.source, None)
    return None


def _first_flat(program: Any, flags: Mapping[Site, Any]) -> Origin | None:
    """Return the first equation of a loop's body flagged at a step; what stands in inner loops counts as theirs."""
    masks: set[int] = set()
    for equation in program.equations:
        inside = any(site[0] == equation.outputs[0] and np.any(flag) for site, flag in flags.items() if len(site) > 1)
        if inside or _begins(equation, flags, masks):
            return Origin("forward", (equation.outputs[0],), equation.operation, equation.source, None)
    return None


def _begins(equation: Equation, flags: Mapping[Site, Any], masks: set[int]) -> bool:
    """Return whether an equation makes the first value that is not finite.

    An infinity that was chosen, as for a mask of attention, is none; what comes of it is, once it is a NaN.
    """
    worst = max((int(np.max(flags.get((output,), 0))) for output in equation.outputs), default=0)
    if worst == 1 and (is_selection(equation) or not masks.isdisjoint(equation.operands)):
        masks.update(equation.outputs)
        return False
    return worst > 0


def _first_backward(network: Network, inputs: Sequence[Any], sites: set[Site]) -> Origin | None:
    """Find the operation whose derivative makes the first value that is not finite, walking back from the loss."""
    program = network.program
    outer = sorted(
        {site for site in sites if len(site) == 1}
        | {(number,) for number in program.inputs if _inexact(_zero(program, number))}
    )

    @jax.jit
    def pulled(inputs: Sequence[Any]) -> tuple[dict[Site, Any], dict[Site, Any]]:
        taps = {site: _zero(program, site[0]) for site in outer}

        def run(taps: Mapping[Site, Any]) -> tuple[Any, dict[Site, Any]]:
            outputs, kept = evaluate(program, inputs, taps=taps, captures=outer)
            return outputs[0], kept

        loss, pull, kept = jax.vjp(run, taps, has_aux=True)
        return pull(jnp.ones_like(loss))[0], kept

    cotangents, values = pulled(inputs)
    bad = {site[0] for site, value in cotangents.items() if not bool(jnp.all(jnp.isfinite(value)))}
    if not bad:
        return None
    for equation in reversed(program.equations):
        if bad.isdisjoint(equation.operands) or any(output in bad for output in equation.outputs):
            continue
        if not any((output,) in cotangents for output in equation.outputs):
            continue
        if _makes_nonfinite(program, equation, inputs, values, cotangents):
            return Origin("backward", (equation.outputs[0],), equation.operation, equation.source, None)
    return None


def _zero(program: Any, number: int) -> Any:
    aval = program.avals[number]
    return jnp.zeros(aval.shape, aval.dtype) if jnp.issubdtype(aval.dtype, jnp.inexact) else np.zeros((), np.int32)


def _makes_nonfinite(
    program: Any, equation: Any, inputs: Sequence[Any], values: Mapping[Site, Any], cotangents: Mapping[Site, Any]
) -> bool:
    """Return whether an equation's derivative turns finite cotangents into others."""
    known = dict(zip(program.inputs, inputs, strict=True))
    known.update({site[0]: value for site, value in values.items()})
    if any(not isinstance(atom, Constant) and atom not in known for atom in equation.inputs):
        return True  # an operand without derivative was not kept: the cotangents speak for themselves
    operands = [atom.value if isinstance(atom, Constant) else known[atom] for atom in equation.inputs]
    moving = [i for i, atom in enumerate(equation.inputs) if (atom,) in cotangents]

    def apply(*chosen: Any) -> list[Any]:
        full = list(operands)
        for position, value in zip(moving, chosen, strict=True):
            full[position] = value
        results = equation.apply(*full)
        return [r for output, r in zip(equation.outputs, results, strict=True) if (output,) in cotangents]

    _, pull = jax.vjp(apply, *(operands[position] for position in moving))
    pulled = pull([cotangents[(output,)] for output in equation.outputs if (output,) in cotangents])
    return any(not bool(jnp.all(jnp.isfinite(value))) for value in pulled)
