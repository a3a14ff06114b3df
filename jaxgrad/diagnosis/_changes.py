"""What can be changed about a network without touching the code it was traced from."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgrad.activations._table import TABLE
from jaxgrad.diagnosis._carried import carrying_loops
from jaxgrad.diagnosis._facts import LayerFacts
from jaxgrad.diagnosis._loss import arguments_read_by_layers, labels_of, prediction
from jaxgrad.diagnosis._measure import entering_layers, main_owner
from jaxgrad.diagnosis._structure import is_product
from jaxgrad.initializers._data_dependent import scale_layers
from jaxgrad.tracing import Network, _substitute
from jaxgrad.tracing._interpret import Constant, Site
from jaxgrad.tracing._layers import LayerSite, user_source

_LARGEST_VARIANCE = 25.0  # times 1/fan-in; more than that saturates any nonlinearity
_USUAL_SCALE = 10.0  # the scales of a normalization lie within this factor of 1
_BIASES = frozenset({"b", "bias", "biases", "offset"})


class Setup(NamedTuple):
    """A network as it would be trained.

    Attributes:
      network: The network.
      inputs: The program's inputs.
      rate: What every update is multiplied by, one number or one a step.
      clip: A global norm that gradients are clipped to first; ``None``: none.
      rescaled: Whether its loss has another unit than the user's.
    """

    network: Network
    inputs: list[Any]
    rate: float | tuple[float, ...] = 1.0
    clip: float | None = None
    rescaled: bool = False


class Trial(NamedTuple):
    """Something to change.

    Attributes:
      kind: What is changed.
      words: The change in words, with the line to write.
      cost: How much of the model it changes: 0 the data or a setting, 1 weights, 2 operations, 3 the architecture.
      apply: Changes a setup.
      network: Names what becomes of the network itself; empty where only its inputs or its training change.
    """

    kind: str
    words: str
    cost: int
    apply: Callable[[Setup], Setup]
    network: str = ""

    @property
    def family(self) -> str:
        """What it is an alternative to: two of one family do not go together."""
        return "weights" if "reinitialize" in self.kind or "recurrence" in self.kind else self.kind


def together(first: Trial, second: Trial) -> Trial:
    """Return two changes as one."""
    return Trial(
        f"{first.kind} + {second.kind}",
        f"{first.words}; and {second.words}",
        first.cost + second.cost + 1,
        lambda setup: second.apply(first.apply(setup)),
        " + ".join(sorted(name for name in (first.network, second.network) if name)),
    )


# --- data ------------------------------------------------------------------------------------------------------------


def standardize_inputs(setup: Setup) -> Setup:
    """Return the setup with what enters the network at mean 0 and standard deviation 1, feature by feature."""
    network, changed = setup.network, list(setup.inputs)
    first = {(*network.sites[i].loops, network.sites[i].data) for i in entering_layers(network)}
    for position in range(network.num_parameters, len(network.signature.avals)):
        if _is_float(network, position) and _feeds(network, position, first):
            changed[position] = _standardized(changed[position])
    return setup._replace(inputs=changed)


def standardize_targets(setup: Setup) -> Setup:
    """Return the setup with the targets of the network's output's size at mean 0 and standard deviation 1."""
    network, changed = setup.network, list(setup.inputs)
    first = {(*network.sites[i].loops, network.sites[i].data) for i in entering_layers(network)}
    for position in range(network.num_parameters, len(network.signature.avals)):
        if _is_float(network, position) and not _feeds(network, position, first):
            changed[position] = _standardized(changed[position])
    return setup._replace(inputs=changed, rescaled=True)


def _is_float(network: Network, position: int) -> bool:
    aval = network.signature.avals[position]
    return bool(jnp.issubdtype(aval.dtype, jnp.floating)) and len(aval.shape) > 0


def _feeds(network: Network, position: int, first: Collection[Site]) -> bool:
    """Return whether an argument reaches one of the first layers before any layer."""
    reached = {position}
    layers = set(network.program.layers)
    ends = {site[0] for site in first if len(site) == 1}
    for place, equation in enumerate(network.program.equations):
        if reached.isdisjoint(equation.operands):
            continue
        if place in layers:
            if equation.loop is not None or not ends.isdisjoint(reached):
                return True
            continue
        reached.update(equation.outputs)
    return not ends.isdisjoint(reached)


def _standardized(value: Any) -> Any:
    """Return an array with each feature, along the last axis, at mean 0 and standard deviation 1."""
    axes = (0,) if value.ndim == 1 else tuple(range(value.ndim - 1))
    wide = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    mean, std = jnp.mean(wide, axis=axes, keepdims=True), jnp.std(wide, axis=axes, keepdims=True)
    small = 1e-6 * jnp.max(jnp.abs(wide))
    return ((wide - mean) / jnp.where(std > small, std, jnp.ones_like(std))).astype(value.dtype)


# --- weights ---------------------------------------------------------------------------------------------------------


def critical_variances(layer: LayerFacts) -> tuple[float, float]:
    """Return the variances of weights (times the fan-in) and biases that suit the nonlinearity behind a layer."""
    known = TABLE.get(layer.activation or "identity")
    if known is not None and known.critical is not None:
        return known.critical[0], known.critical[1]
    if math.isnan(layer.slope):
        return 1.0, 0.0
    return (min(1 / layer.slope**2, _LARGEST_VARIANCE), 0.0) if layer.slope > 0 else (2.0, 0.0)


def draw_weights(
    setup: Setup, known: dict[str, LayerFacts], key: jax.Array, *, orthogonal: bool = False, loops: bool | None = None
) -> Setup:
    """Return the setup with fresh weights that suit each layer's nonlinearity.

    Args:
      setup: What to change.
      known: What is known of each layer.
      key: Random key.
      orthogonal: Whether weights are drawn orthogonal rather than normal.
      loops: Whether to draw the square weights inside loops alone (True), those outside (False), or all.
    """
    network, changed = setup.network, list(setup.inputs)
    biases: dict[str, float] = {}
    for number, (layer, site) in enumerate(zip(network.layers, network.sites, strict=True)):
        shape = layer.weight_shape
        if not is_product(site) or layer.name not in known or (loops is not None and bool(site.loops) != loops):
            continue
        if loops and (len(shape) != 2 or shape[0] != shape[1]):
            continue
        owner = main_owner(network, site)
        leaf = changed[owner.leaf]
        own = leaf[owner.index].shape
        variance, bias_variance = critical_variances(known[layer.name])
        one = jax.random.fold_in(key, number)
        if orthogonal and own == shape and len(shape) == 2:
            fresh = jax.nn.initializers.orthogonal(math.sqrt(variance * _shape_factor(site, shape)))(
                one, own, jnp.float32
            )
        else:
            fresh = jax.random.normal(one, own, jnp.float32) * math.sqrt(variance / known[layer.name].fan_in)
        fresh = fresh.astype(leaf.dtype)
        changed[owner.leaf] = leaf.at[owner.index].set(fresh) if owner.index else fresh
        biases[layer.name.rsplit("/", 1)[0]] = bias_variance
    if loops is not True:
        _draw_biases(network, changed, biases, key)
    return setup._replace(inputs=changed)


def _shape_factor(site: LayerSite, shape: tuple[int, ...]) -> float:
    """Return by what an orthogonal matrix's square is to be multiplied so that its entries have variance 1/fan-in."""
    contracted, _ = (
        site.equation.params["dimension_numbers"] if site.equation.operation == "dot_general" else (((1,), (1,)), ())
    )
    axis = contracted[0 if site.equation.inputs[0] == site.weight else 1][0]
    return max(1.0, shape[1 - axis] / shape[axis])


def _draw_biases(network: Network, changed: list[Any], variances: dict[str, float], key: jax.Array) -> None:
    for owner in network.parameters:
        parent, _, last = owner.name.rpartition("/")
        if last.strip("_").lower() not in _BIASES:
            continue
        leaf, std = changed[owner.leaf], math.sqrt(variances.get(parent, 0.0))
        noise = jax.random.normal(jax.random.fold_in(key, 1_000_000 + owner.leaf), leaf.shape, jnp.float32)
        changed[owner.leaf] = (noise * std).astype(leaf.dtype)


def scale_to_data(setup: Setup, key: jax.Array) -> Setup:
    """Return the setup with orthogonal weights scaled so that each layer's output has variance 1 on the batch."""
    arrays, _ = scale_layers(setup.network, setup.inputs, key, max_steps=3)
    return setup._replace(inputs=arrays)


def reset_scales(setup: Setup) -> Setup | None:
    """Return the setup with the scales of normalizations at 1; ``None`` where none is far from it."""
    network, changed = setup.network, list(setup.inputs)
    weights = {owner.leaf for site in network.sites for owner in site.owners}
    for owner in network.parameters:
        leaf = changed[owner.leaf]
        last = owner.name.rpartition("/")[2].strip("_").lower()
        if owner.leaf in weights or last in _BIASES or leaf.ndim != 1 + len(owner.index):
            continue
        size = float(jnp.sqrt(jnp.mean(jnp.square(leaf.astype(jnp.float32)))))
        if not 1 / _USUAL_SCALE < size < _USUAL_SCALE:
            changed[owner.leaf] = jnp.ones_like(leaf)
    same = all(before is after for before, after in zip(setup.inputs, changed, strict=True))
    return None if same else setup._replace(inputs=changed)


# --- operations ------------------------------------------------------------------------------------------------------


def drop_every_second(network: Network) -> Network:
    """Return the network without every second of the blocks that can be left out."""
    return _substitute.drop_blocks(network, _substitute.droppable_blocks(network)[1::2])


def hold_states(network: Network, gains: Sequence[float]) -> Network:
    """Return the network with the states of loops without layers scaled so that a change of them lasts.

    Args:
      network: The network.
      gains: log10 of what each loop multiplies such a change by.
    """
    for equation, gain in zip(carrying_loops(network), gains, strict=True):
        network = _substitute.scale_state(network, equation.outputs[0], 10 ** (-gain / equation.params["length"]))
    return network


def logits_and_labels(network: Network, inputs: Sequence[Any]) -> tuple[int, int, str] | None:
    """Return the last layer's output with its bias, the labels, and the cross-entropy that fits them.

    ``None`` where the labels' shape says nothing.
    """
    output = _biased_output(network)
    if output is None:
        return None
    shape = network.program.avals[output].shape
    reading = arguments_read_by_layers(network)
    for position in range(network.num_parameters, len(network.signature.avals)):
        aval = network.signature.avals[position]
        if position in reading or not aval.shape or jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            continue
        integers = jnp.issubdtype(aval.dtype, jnp.integer)
        if integers and aval.shape in (shape[:-1], shape[1:]) and math.prod(shape) > math.prod(aval.shape):
            return output, position, "softmax-integers"
        values = inputs[position]
        if math.prod(aval.shape) == math.prod(shape) and bool(jnp.all(jnp.abs(values) == 1)):
            return output, position, "signs"
        if not bool(jnp.all((values == 0) | (values == 1))):
            continue
        if aval.shape == shape and shape[-1] > 1 and bool(jnp.all(jnp.sum(values, axis=-1) == 1)):
            return output, position, "softmax"
        if math.prod(aval.shape) == math.prod(shape):
            return output, position, "sigmoid"
    return None


def _biased_output(network: Network) -> int | None:
    """Return the last layer's output with its bias; ``None`` where it stands in a loop."""
    site = network.sites[-1]
    if site.loops:
        return None
    program = network.program
    output = site.equation.outputs[0]
    for equation in program.equations:
        biased = equation.operation == "add" and any(program.kinds[atom].owners for atom in equation.operands)
        if output in equation.operands and (biased or equation.operation == "transpose"):
            output = equation.outputs[0]
    return output


def open_output(network: Network, inputs: Sequence[Any]) -> Network | None:
    """Return the network with what its last layer gives for an output; ``None`` where that has another shape."""
    labels, output = labels_of(network, inputs), _biased_output(network)
    compared = None if labels is None else prediction(network, labels[0])
    if output is None or compared is None or compared == output:
        return None
    given, taken = network.program.avals[output], network.program.avals[compared]
    same = [n for n in given.shape if n > 1] == [n for n in taken.shape if n > 1] and given.dtype == taken.dtype
    return _substitute.pass_on(network, output, compared) if same else None


def paired_error(network: Network, inputs: Sequence[Any]) -> Network | None:
    """Return the network with the mean squared error of each output and its own target; ``None`` where none fits."""
    labels, output = labels_of(network, inputs), _biased_output(network)
    if labels is None or output is None:
        return None
    targets = network.signature.avals[labels[0]]
    if network.program.avals[output].size != targets.size:
        return None

    def loss(outputs: Any, targets: Any) -> Any:
        return jnp.mean(jnp.square(outputs.reshape(targets.shape) - targets.astype(outputs.dtype)))

    return _substitute.replace_loss(network, (output, labels[0]), loss)


def cross_entropy(network: Network, output: int, labels: int, form: str) -> Network:
    """Return the network with the mean cross-entropy of its logits for a loss."""
    import optax

    def loss(logits: Any, targets: Any) -> Any:
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        if form == "softmax-integers" and targets.shape != wide.shape[:-1]:
            wide = jnp.moveaxis(wide, 0, -1)  # equinox has the classes first
        if form == "softmax-integers":
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(wide, targets))
        if form == "softmax":
            return jnp.mean(optax.softmax_cross_entropy(wide, targets.astype(wide.dtype)))
        if form == "signs":
            targets = (targets + 1) / 2
        return jnp.mean(optax.sigmoid_binary_cross_entropy(wide, targets.reshape(wide.shape).astype(wide.dtype)))

    return _substitute.replace_loss(network, (output, labels), loss)


def _finite(x: Any) -> Any:
    """Return the operand with infinities as large numbers, of which a difference is 0 and a softmax uniform."""
    if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
        return x
    largest = min(1e30, float(jnp.finfo(x.dtype).max) / 4)
    return jnp.clip(x, jnp.asarray(-largest, x.dtype), jnp.asarray(largest, x.dtype))


_FLOOR = 1e-6
_CEILING = 40.0  # its square, in a derivative, is finite too
_GUARDS: dict[str, tuple[Callable[[Any], Any], int | None, str]] = {
    "log": (lambda x: jnp.maximum(x, jnp.asarray(_FLOOR, x.dtype)), 0, "jnp.log(jnp.maximum(x, 1e-6))"),
    "log1p": (lambda x: jnp.maximum(x, jnp.asarray(_FLOOR - 1, x.dtype)), 0, "jnp.log1p(jnp.maximum(x, 1e-6 - 1))"),
    "sqrt": (lambda x: jnp.maximum(x, jnp.asarray(_FLOOR, x.dtype)), 0, "jnp.sqrt(jnp.maximum(x, 1e-6))"),
    "rsqrt": (lambda x: jnp.maximum(x, 0) + jnp.asarray(_FLOOR, x.dtype), 0, "jax.lax.rsqrt(x + 1e-6)"),
    "exp": (lambda x: jnp.minimum(x, jnp.asarray(_CEILING, x.dtype)), 0, "jnp.exp(x - x.max(axis=-1, keepdims=True))"),
    "div": (lambda x: jnp.where(jnp.abs(x) < _FLOOR, jnp.asarray(_FLOOR, x.dtype), x), 1, "x / jnp.maximum(y, 1e-6)"),
    "pow": (lambda x: jnp.maximum(x, jnp.asarray(_FLOOR, x.dtype)), 0, "jnp.maximum(x, 1e-6) ** y"),
}


def guarded(network: Network, site: Site) -> tuple[Network, str] | None:
    """Return the network with the operand of one operation kept away from where it is singular, and the line for it."""
    equations = network.holder(site).equations
    (equation,) = [e for e in equations if site[-1] in e.outputs] or [None]
    if equation is None:
        return None
    guard, place, line = _GUARDS.get(equation.operation, (_finite, None, "jnp.where(mask, x, -1e30), not -jnp.inf"))
    source = user_source(equation.source)
    # One line of the user's may stand in every layer.
    alike = [e for e in equations if e.operation == equation.operation and user_source(e.source) == source]
    for other in alike:
        if place is None or not isinstance(other.inputs[place], Constant):
            network = _substitute.guard_operation(network, (*site[:-1], other.outputs[0]), guard, place)
    return network, line
