"""How the loss answers to the network's output: whether a mistake still sends a gradient back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.diagnosis._facts import LossFacts
from jaxgrad.diagnosis._measure import norm
from jaxgrad.diagnosis._sources import equation_sources, moving_values
from jaxgrad.tracing import Network
from jaxgrad.tracing._interpret import Equation, Site, evaluate, replay

_CONFIDENT = 10.0  # how far a logit is moved: odds of e^10
_FAR = 1e4  # how far the last layer's output is thrown to see where the network's ends
_DEEP = 100.0  # times its own size, to which a loss falls below zero where nothing holds it
_DIFFERENT = 0.02  # of their size, by which outputs differ from example to example
_NEAR = 0.1  # of the targets' standard deviation, by which they may lie outside


def labels_of(network: Network, inputs: Sequence[Any]) -> tuple[int, int, bool] | None:
    """Return where labels or targets are.

    Returns:
      The argument that holds them, the axis of the last layer's output along which they lie, and whether they are
      classes: integers, or zeros and ones. ``None`` where no argument that reaches no layer is as long as an axis of
      the output.
    """
    site = output_site(network)
    if site is None:
        return None
    shape, reading = network.aval(site).shape, arguments_read_by_layers(network)
    for position in range(network.num_parameters, len(network.signature.avals)):
        aval = network.signature.avals[position]
        if position in reading or not aval.shape or aval.shape[0] < 2 or aval.shape[0] not in shape:
            continue
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            continue
        classes = not jnp.issubdtype(aval.dtype, jnp.floating)
        if not classes:
            values = np.asarray(inputs[position], np.float32)
            classes = bool(np.all((values == 0) | (values == 1)) and values.max() > values.min())
        return position, shape.index(aval.shape[0]), classes
    return None


def arguments_read_by_layers(network: Network) -> set[int]:
    """Return the arguments that reach a layer, by position: the network's inputs, rather than labels."""
    program = network.program
    wanted = {atom for place in program.layers for atom in program.equations[place].operands}
    for equation in reversed(program.equations):
        if not wanted.isdisjoint(equation.outputs):
            wanted.update(equation.operands)
    return wanted & set(program.inputs[: len(network.signature.avals)])


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


def prediction(network: Network, labels: int) -> int | None:
    """Return the value that the loss compares with the targets; ``None`` where it takes several."""
    site = output_site(network)
    if site is None:
        return None
    tail = _tail(network, site[0])
    made = {site[0]} | {output for equation in tail for output in equation.outputs}
    told = {labels}
    for equation in network.program.equations:
        if not told.isdisjoint(equation.operands):
            told.update(equation.outputs)
    met = [equation.operands for equation in tail if not told.isdisjoint(equation.operands)]
    given = {atom for operands in met for atom in operands if atom in made and atom not in told}
    return given.pop() if len(given) == 1 else None


def loss_slopes(network: Network, labels: int, example_axis: int) -> Callable[[list[Any]], tuple[Any, ...]]:
    r"""Return the compiled function behind :class:`LossFacts`.

    With L as a function of the last layer's output z, it compares :math:`\lVert \nabla L(z) \rVert` at the outputs
    given, and at :math:`z = 10 \nabla L(0) / \max \lvert \nabla L(0) \rvert`, which is wrong with confidence, with
    :math:`\lVert \nabla L(0) \rVert`. A cross-entropy of logits keeps its gradient; a squared error of probabilities
    loses it.

    Args:
      network: The network.
      labels: Position of the labels or targets among the program's inputs.
      example_axis: The axis of z along which the examples lie.
    """
    site = output_site(network)
    if site is None or not isinstance(network.program.outputs[0], int):
        raise ValueError("the network does not end with a layer outside of loops")
    tail = _tail(network, site[0])
    made = {output for equation in tail for output in equation.outputs}
    read = {(atom,) for equation in tail for atom in equation.operands if atom not in made}
    result = network.program.outputs[0]
    compared = prediction(network, labels)

    @jax.jit
    def slopes(inputs: list[Any]) -> tuple[Any, ...]:
        kept = evaluate(network.program, inputs, captures=read | {site})[1]
        values = {number: value for (number,), value in kept.items()}
        given = values[site[0]]

        def loss(output: Any) -> Any:
            return replay(tail, {site[0]: output}, values)[result]

        undecided, slope = jax.value_and_grad(loss)(jnp.zeros_like(given))
        largest = jnp.max(jnp.abs(slope))
        wrong = slope * (_CONFIDENT / jnp.where(largest > 0, largest, 1)).astype(slope.dtype)
        value, here = jax.value_and_grad(loss)(given)
        noise = jax.random.normal(jax.random.key(0), given.shape, given.dtype)
        elsewhere = norm(jax.grad(loss)(given + noise * (1 + jnp.max(jnp.abs(given)))))
        base = norm(slope)
        safe = jnp.where(base > 0, base, 1)
        slopes = [norm(jax.grad(loss)(wrong)) / safe, norm(here) / safe]
        relative = value / jnp.where(undecided > 0, undecided, 1)
        known = [jnp.where(base > 0, ratio.astype(jnp.float32), jnp.nan) for ratio in slopes]
        known.append(jnp.where((base > 0) & (undecided > 0), relative.astype(jnp.float32), jnp.nan))
        # Move one example's output, and see whether that moves the gradients of others.
        first = [slice(None)] * given.ndim
        first[example_axis] = slice(0, 1)
        moved = jax.grad(loss)(jnp.zeros_like(given).at[tuple(first)].set(wrong[tuple(first)]))
        others = jnp.delete(moved - slope, 0, axis=example_axis)
        mixing = (norm(others) / safe).astype(jnp.float32)
        # Give every example its neighbour's target.
        rolled = list(inputs)
        rolled[labels] = jnp.roll(inputs[labels], 1, axis=0)
        swapped = evaluate(network.program, rolled)[0][0]
        change = jnp.abs(swapped - value) / jnp.where(value != 0, jnp.abs(value), 1)
        wide = given.astype(jnp.float32)
        differ = jnp.mean(jnp.std(wide, axis=example_axis)) > _DIFFERENT * jnp.mean(jnp.abs(wide))
        if compared is not None:
            shown = replay(tail, {site[0]: given}, values).get(compared, given).astype(jnp.float32)
            differ &= jnp.std(shown) > _DIFFERENT * jnp.mean(jnp.abs(shown))
        differ &= jnp.mean((rolled[labels] != inputs[labels]).astype(jnp.float32)) > 0.05
        change = jnp.where(differ, change.astype(jnp.float32), jnp.nan)
        reach = jnp.asarray([-jnp.inf, jnp.inf], jnp.float32)
        if compared is not None and compared != site[0]:
            ends = [replay(tail, {site[0]: given + far * noise}, values)[compared] for far in (_FAR, -_FAR)]
            reach = jnp.stack([jnp.min(jnp.stack(ends)), jnp.max(jnp.stack(ends))]).astype(jnp.float32)
        targets = inputs[labels].astype(jnp.float32)
        near = _NEAR * jnp.std(targets)
        outside = jnp.mean(((targets < reach[0] - near) | (targets > reach[1] + near)).astype(jnp.float32))
        lowest = loss(-(_FAR / _CONFIDENT) * wrong).astype(jnp.float32) / (1 + jnp.abs(value.astype(jnp.float32)))
        felt = norm(here).astype(jnp.float32), elsewhere.astype(jnp.float32)
        return *known, mixing, *felt, value, change, outside, *reach, lowest

    return slopes


def loss_facts(
    network: Network, labels: int, classes: bool, run: Callable[[list[Any]], Any], inputs: list[Any]
) -> LossFacts:
    """Return the facts as plain numbers."""
    numbers = map(float, jax.device_get(run(inputs)))
    confident, here, relative, mixing, slope, elsewhere, value, change, outside, low, high, lowest = numbers
    site = output_site(network)
    tail = [] if site is None else _tail(network, site[0])
    moving = moving_values(network.program, tail, [] if site is None else [site[0]])
    kinds = equation_sources(network, network.program, (), tail, moving)
    flat = "none"
    if slope == 0 and value > 0:
        flat = "normalization" if "normalization" in kinds else "here" if elsewhere > 0 else "everywhere"
    if not classes:
        confident = here = relative = math.nan
    bottomless = lowest < -_DEEP and enters_arithmetic(network, labels) and _alone_and_whole(network, inputs, labels)
    outside = 0.0 if classes else outside
    return LossFacts(confident, here, relative, mixing, flat, change, outside, (low, high), bottomless)


def _alone_and_whole(network: Network, inputs: Sequence[Any], labels: int) -> bool:
    """Return whether labels are whole numbers, and the loss takes no weights (such as advantages) beside them."""
    values = np.asarray(inputs[labels], np.float32)
    others = set(range(network.num_parameters, len(network.signature.avals))) - arguments_read_by_layers(network)
    avals = [network.signature.avals[position] for position in others - {labels}]
    weighted = any(aval.shape and jnp.issubdtype(aval.dtype, jnp.floating) for aval in avals)
    return bool(np.all(values == np.round(values))) and not weighted


_ARITHMETIC = frozenset({"add", "sub", "mul", "div", "neg", "max", "min"})
_SHAPING = frozenset({"convert_element_type", "reshape", "broadcast_in_dim", "squeeze", "transpose", "copy"})


def enters_arithmetic(network: Network, labels: int) -> bool:
    """Return whether the loss computes with the labels themselves, rather than looks up or compares what they name."""
    site = output_site(network)
    if site is None:
        return False
    told, given = {labels}, {site[0]}
    for equation in network.program.equations:
        of_labels, of_output = (not known.isdisjoint(equation.operands) for known in (told, given))
        if of_labels and of_output and equation.operation in _ARITHMETIC:
            return True
        if of_output:
            given.update(equation.outputs)
        elif of_labels and equation.operation in _ARITHMETIC | _SHAPING:
            told.update(equation.outputs)
    return False
