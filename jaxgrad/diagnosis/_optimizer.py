"""What the user's optimizer does with gradients: its first update, how far it clips, a few steps of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad._norms import is_inexact
from jaxgrad.tracing import Network
from jaxgrad.tracing._interpret import evaluate

_SMALL = 1e-8  # by which a gradient is scaled so that no threshold is met


class ParameterTree:
    """The user's tree of parameters from a network's flat inputs, and back.

    Attributes:
      leaves: Positions of the parameters among the inputs.
    """

    def __init__(self, network: Network) -> None:
        self.leaves = [owner.leaf for owner in network.parameters]
        self._signature = network.signature
        static = {position for position, _ in network.signature.static}
        numbers = iter(range(len(network.signature.avals)))
        count = network.signature.treedef.num_leaves
        self._numbers = [None if position in static else next(numbers) for position in range(count)]
        numbered = self.build({leaf: np.asarray(leaf) for leaf in self.leaves})
        self._order = [int(number) for number in jax.tree_util.tree_leaves(numbered)]

    def build(self, values: Mapping[int, Any]) -> Any:
        """Return the user's tree; what is no parameter stands as ``None``."""
        chosen = [None if number is None else values.get(number) for number in self._numbers]
        return jax.tree_util.tree_unflatten(self._signature.treedef, chosen)[0]

    def flatten(self, tree: Any) -> dict[int, Any]:
        """Return the leaves of such a tree by their position."""
        return dict(zip(self._order, jax.tree_util.tree_leaves(tree), strict=True))


def _loss(network: Network, inputs: Sequence[Any], parameters: Mapping[int, Any]) -> Any:
    full = list(inputs)
    for leaf, value in parameters.items():
        full[leaf] = value
    return evaluate(network.program, full)[0][0]


def first_updates(
    network: Network, inputs: Sequence[Any], gradients: Mapping[int, Any], optimizer: Any
) -> dict[int, Any]:
    """Return the optimizer's first update of each parameter leaf."""
    tree = ParameterTree(network)
    parameters = tree.build({leaf: inputs[leaf] for leaf in gradients})
    updates, _ = optimizer.update(tree.build(gradients), optimizer.init(parameters), parameters)
    return tree.flatten(updates)


def clipping(network: Network, optimizer: Any) -> Callable[[list[Any]], Any]:
    r"""Return the compiled function that measures how far an optimizer cuts the first gradient down.

    An optimizer that clips answers to :math:`s g` as to g until s is small enough for the threshold not to be met,
    and in proportion to s below. Where its updates do not depend on the scale at all (Adam), its state does.
    """
    tree = ParameterTree(network)

    @jax.jit
    def measure(inputs: list[Any]) -> Any:
        parameters = {leaf: inputs[leaf] for leaf in tree.leaves}
        gradients = jax.grad(lambda given: _loss(network, inputs, given))(parameters)
        held = tree.build(parameters)
        start = optimizer.init(held)

        def answer(scale: Any) -> list[Any]:
            scaled = {leaf: gradient * scale.astype(gradient.dtype) for leaf, gradient in gradients.items()}
            updates, state = optimizer.update(tree.build(scaled), start, held)
            return [_square(one) for one in (updates, *_like(state, jax.tree.structure(held)))]

        scales = jnp.asarray([1.0, 0.5, _SMALL, 2 * _SMALL], jnp.float32)
        factors = [jnp.ones((), jnp.float32)]
        for square in jax.vmap(answer)(scales):
            whole, half, small, double = jnp.sqrt(square)
            flat = (half > 0.99 * whole) & (whole > 0)
            linear = (double > 1.98 * small) & (double < 2.02 * small) & (small > 0)
            factors.append(jnp.where(flat & linear, small / _SMALL / jnp.where(whole > 0, whole, 1), 1))
        return jnp.max(jnp.stack(factors))

    return measure


def _square(tree: Any) -> Any:
    wide = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]
    return sum((jnp.sum(jnp.square(leaf)) for leaf in wide), jnp.zeros((), jnp.float32))


def _like(state: Any, structure: Any) -> list[Any]:
    """Return the parts of an optimizer's state that have a number for each parameter."""

    def fits(node: Any) -> bool:
        return jax.tree.structure(node) == structure

    return [node for node in jax.tree.leaves(state, is_leaf=fits) if fits(node)]


def fading(network: Network, optimizer: Any, num_steps: int) -> Callable[[list[Any]], Any]:
    """Return the compiled function that gives the sizes of updates for the same gradient, as shares of the largest."""
    tree = ParameterTree(network)

    @jax.jit
    def measure(inputs: list[Any]) -> Any:
        held = tree.build({leaf: inputs[leaf] for leaf in tree.leaves})
        gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-3) if is_inexact(leaf) else leaf, held)

        def step(state: Any, _: None) -> tuple[Any, Any]:
            updates, state = optimizer.update(gradients, state, held)
            return state, jnp.sqrt(_square(updates))

        _, sizes = jax.lax.scan(step, optimizer.init(held), None, length=num_steps)
        largest = jnp.max(sizes)
        return jnp.where(largest > 0, sizes / jnp.where(largest > 0, largest, 1), 1)

    return measure


def training(network: Network, optimizer: Any, num_steps: int, clip: float | None = None) -> Callable[..., Any]:
    """Return what trains for some steps on the batch given, each step one call of one compiled function.

    A compiled loop over the steps would run convolutions many times more slowly on CPU.

    Args:
      network: The network.
      optimizer: An optax transformation.
      num_steps: How many steps.
      clip: A global norm that the gradient is clipped to first, or ``None``.

    Returns:
      A function of the program's inputs and of what every update is multiplied by, one number or one a step (of which
      the last holds on), that gives the loss before each step and after the last one.
    """
    import optax

    if clip is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(clip), optimizer)
    tree = ParameterTree(network)

    @jax.jit
    def step(parameters: Any, state: Any, inputs: list[Any], rate: Any) -> tuple[Any, Any, Any]:
        value, gradients = jax.value_and_grad(lambda given: _loss(network, inputs, given))(parameters)
        updates, state = optimizer.update(tree.build(gradients), state, tree.build(parameters))
        scaled = {leaf: update * rate.astype(update.dtype) for leaf, update in tree.flatten(updates).items()}
        return optax.apply_updates(parameters, scaled), state, value

    begin = jax.jit(lambda parameters: optimizer.init(tree.build(parameters)))

    def run(inputs: list[Any], rate: Any) -> list[Any]:
        parameters = {leaf: inputs[leaf] for leaf in tree.leaves}
        state, losses = begin(parameters), []
        rates = np.asarray(rate, np.float32).ravel()
        for number in range(num_steps + 1):
            now = rates[min(number, len(rates) - 1)]
            parameters, state, value = step(parameters, state, inputs, now)
            losses.append(value)
        return jax.device_get(losses)

    return run
