"""How the loss answers to the network's output: whether a mistake still sends a gradient back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.diagnosis._facts import LossFacts
from jaxgrad.diagnosis._measure import norm
from jaxgrad.tracing import Network
from jaxgrad.tracing._interpret import Equation, Site, evaluate, replay

_CONFIDENT = 10.0  # how far a logit is moved: odds of e^10


def example_axis(network: Network, inputs: Sequence[Any]) -> int | None:
    """Return the axis of the last layer's output along which labels that are classes lie; ``None`` without such labels.

    Labels are classes where some argument that no layer reads is made of integers, or of zeros and ones.
    """
    site = output_site(network)
    if site is None:
        return None
    shape = network.aval(site).shape
    read = {(*site.loops, site.data) for site in network.sites}
    for position in range(network.num_parameters, len(network.signature.avals)):
        aval = network.signature.avals[position]
        if not aval.shape or (position,) in read or (position,) in network.path:
            continue
        if jnp.issubdtype(aval.dtype, jnp.integer) or aval.dtype == jnp.bool_:
            classes = not jnp.issubdtype(aval.dtype, jax.dtypes.prng_key)
        elif jnp.issubdtype(aval.dtype, jnp.floating):
            values = np.asarray(inputs[position], np.float32)
            classes = bool(np.all((values == 0) | (values == 1)) and values.max() > values.min())
        else:
            continue
        if classes and aval.shape[0] > 1 and aval.shape[0] in shape:
            return shape.index(aval.shape[0])
    return None


def output_site(network: Network) -> Site | None:
    """Return what the last layer gives, before anything that follows; ``None`` where it stands in a loop."""
    site = network.sites[-1]
    if site.loops or site.equation.operation not in {"dot_general", "conv_general_dilated"}:
        return None
    return (site.equation.outputs[0],)


def _tail(network: Network, number: int) -> list[Equation]:
    """Return the equations that depend on a value, in order."""
    reached, found = {number}, []
    for equation in network.program.equations:
        if not reached.isdisjoint(equation.operands):
            reached.update(equation.outputs)
            found.append(equation)
    return found


def loss_slopes(network: Network, example_axis: int) -> Callable[[list[Any]], tuple[Any, Any, Any, Any]]:
    r"""Return the compiled function behind :class:`LossFacts`.

    With L as a function of the last layer's output z, it compares :math:`\lVert \nabla L(z) \rVert` at the outputs
    given, and at :math:`z = 10 \nabla L(0) / \max \lvert \nabla L(0) \rvert` for each example, which is wrong with
    confidence, with :math:`\lVert \nabla L(0) \rVert`. A cross-entropy of logits keeps its gradient; a squared error
    of probabilities loses it.

    Args:
      network: The network.
      example_axis: The axis of z along which the examples lie.
    """
    site = output_site(network)
    if site is None or not isinstance(network.program.outputs[0], int):
        raise ValueError("the network does not end with a layer outside of loops")

    tail = _tail(network, site[0])
    made = {output for equation in tail for output in equation.outputs}
    read = {(atom,) for equation in tail for atom in equation.operands if atom not in made}
    result = network.program.outputs[0]

    @jax.jit
    def slopes(inputs: list[Any]) -> tuple[Any, Any, Any, Any]:
        kept = evaluate(network.program, inputs, captures=read | {site})[1]
        values = {number: value for (number,), value in kept.items()}
        given = values[site[0]]

        def loss(output: Any) -> Any:
            return replay(tail, {site[0]: output}, values)[result]

        undecided, slope = jax.value_and_grad(loss)(jnp.zeros_like(given))
        largest = jnp.max(jnp.abs(slope))
        wrong = slope * (_CONFIDENT / jnp.where(largest > 0, largest, 1)).astype(slope.dtype)
        value, here = jax.value_and_grad(loss)(given)
        base = norm(slope)
        safe = jnp.where(base > 0, base, 1)
        positive = (base > 0) & (undecided > 0)
        ratios = norm(jax.grad(loss)(wrong)) / safe, norm(here) / safe, value / jnp.where(undecided > 0, undecided, 1)
        wrong_slope, here_slope, relative = (jnp.where(positive, r.astype(jnp.float32), jnp.nan) for r in ratios)
        # Move one example's output, and see whether that moves the gradients of others.
        first = [slice(None)] * given.ndim
        first[example_axis] = slice(0, 1)
        moved = jax.grad(loss)(jnp.zeros_like(given).at[tuple(first)].set(wrong[tuple(first)]))
        others = jnp.delete(moved - slope, 0, axis=example_axis)
        return wrong_slope, here_slope, relative, (norm(others) / safe).astype(jnp.float32)

    return slopes


def loss_facts(run: Callable[[list[Any]], Any], inputs: list[Any]) -> LossFacts:
    """Return the facts as plain numbers."""
    return LossFacts(*(float(value) for value in jax.device_get(run(inputs))))
