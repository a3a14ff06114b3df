"""What theory predicts for a network that a user has: its blocks read as elements, its signal followed through them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad._checks import message
from jaxgrad.meanfield._architectures import (
    Activation,
    Back,
    BatchNorm,
    Element,
    Residual,
    State,
    follow,
    propagate,
    retrace,
)
from jaxgrad.meanfield._kernels import count
from jaxgrad.meanfield._reading import Functions, Unreadable, read_block
from jaxgrad.tracing import Network
from jaxgrad.tracing._cuts import Span
from jaxgrad.tracing._interpret import Constant, evaluate

_MAX_STEPS = 4  # of a loop over time, to stand for all


class BlockPrediction(NamedTuple):
    """What a random network with a block's architecture does there.

    Attributes:
      name: The block's name.
      log10_gain: log10 of the factor by which the norm of a gradient changes on its way back through the block.
      error: Standard deviation of that from network to network.
      q: Mean square of a unit at the block's end.
      elements: The block as theory reads it; empty where it cannot.
      method: ``"theory"``; ``"sampled"`` where the block was evaluated with weights drawn anew instead; ``"none"``
        where neither was possible.
      reason: Why theory cannot read the block; empty where it can.
    """

    name: str
    log10_gain: float
    error: float
    q: float
    elements: tuple[Element, ...]
    method: str
    reason: str


def predict(
    network: Network, params: Any, *args: Any, key: jax.Array | None = None, num_samples: int = 8
) -> tuple[BlockPrediction, ...]:
    r"""Predict the backward signal of every block of a traced network from its own parameters.

    Each block is read as the elements of :func:`jaxgrad.meanfield.propagate`: weights by their mean square times the
    fan-in, biases and scales by their mean squares, activations, normalizations, dropout and residual branches by their
    equations. The prediction is

    .. math::
      \log_{10} \frac{\|\delta_b\|}{\|\delta_{b+1}\|} \approx \tfrac12 \log_{10} \prod_{e \in b} g_e

    with the gains g of the elements at the signal's variance there, and for the gradient that comes back to them.
    Whatever structure training has put into the weights beyond their size is left out: where the measured signal
    differs from this, that structure is why.

    Args:
      network: A traced network.
      params: Parameters of the shapes traced.
      *args: Its other arguments. With them the signal starts with the data's mean square and correlation, and blocks
        that theory has no element for (attention, gates, pooling, recurrences) are sampled. Without, it starts with
        mean square 1 and correlation 0.
      key: Random key of the samples; ``None``: one that is always the same.
      num_samples: How many times to draw the weights of such a block, at least 2; 0: not at all, and its method is
        ``"none"``. They are normal, with the mean square of the ones they stand for.

    Returns:
      One :class:`BlockPrediction` for each of ``network.blocks``, in order.

    Raises:
      ValueError: Parameters or arguments differ in shape or structure from those traced, or ``num_samples`` is 1 or
        negative.
      TypeError: A parameter is traced: this computes on the host.

    Numerics:
      To a few percent of the gain at widths of a hundred and more. ``error`` is for a single direction; a gradient
      that is spread over a batch strays less. The gradients of two examples count as uncorrelated at the end of a
      function and behind a sampled block; from there on back their correlation is followed, for ``BatchNorm``. Sampled
      blocks are given the gradient of the function's first output, which must be its loss; where that has left floating
      point, a random one, and of a loop's steps four.

    Example:
      >>> import jax, jax.numpy as jnp, jaxgrad
      >>> keys = jax.random.split(jax.random.key(0), 8)
      >>> params = [0.125 * jax.random.normal(key, (128, 128)) for key in keys]
      >>> def loss_fn(params, x):
      ...     for w in params:
      ...         x = jax.nn.relu(x @ w)
      ...     return jnp.sum(x)
      >>> network = jaxgrad.trace(loss_fn, params, jnp.ones((4, 128)))
      >>> [round(block.log10_gain, 2) for block in jaxgrad.meanfield.predict(network, params)][:3]
      [0.0, 0.0, 0.0]

    References:
      :cite:p:`schoenholz2017deep`; :cite:p:`yang2017mean`.

    See also:
      :func:`jaxgrad.explain`, which measures the signal; ``jaxgrad.meanfield.finite_width_band``.
    """
    count("predict", "num_samples", num_samples, 2 if num_samples else 0)
    key = jax.random.key(0) if key is None else key
    alone = len(network.signature.avals) > network.num_parameters and not args
    inputs = None if alone else network.inputs(params, args)
    known = _made_of_parameters(network, params) if inputs is None else _all_values(network, inputs)
    functions: Functions = {}
    checked: set[Any] = set()
    read = [_read(network, span, known, functions, checked) for span in network.spans]
    predictions, ways, signal = [], [], _Signal(1.0, 0.0, 0.0)
    with_pairs = any(_holds(elements, BatchNorm) for elements in read if not isinstance(elements, str))
    unreadable = [index for index, elements in enumerate(read) if isinstance(elements, str)]
    samples = {} if inputs is None else _sample(network, inputs, key, num_samples, unreadable if num_samples else [])
    for index, (block, span, elements) in enumerate(zip(network.blocks, network.spans, read, strict=True)):
        begins = index == 0 or network.spans[index - 1].chain != span.chain
        if begins or predictions[-1].method == "none":
            signal = _measured([known.get(site[0]) for site in span.start.sites if len(site) == 1])
        if isinstance(elements, str):
            prediction, signal = _from_samples(block.name, elements, samples.get(index), signal)
            ways.append(None)
        else:
            prediction, signal, way = _from_theory(block.name, elements, signal, with_pairs)
            ways.append(way)
        predictions.append(prediction)
    return _with_gains(network, predictions, ways)


class _Signal(NamedTuple):
    """Mean square and mean of a unit, and the correlation of two examples."""

    q: float
    mean: float
    c: float


class _Samples(NamedTuple):
    """log10 of a block's gain in each sample, and the signal at its end."""

    log10_gains: np.ndarray
    end: _Signal


def _read(
    network: Network, span: Span, known: Mapping[int, Any], functions: Functions, checked: set[Any]
) -> tuple[Element, ...] | str:
    """Return a block's elements, or why there are none; functions that moments were taken of count as checked."""
    try:
        elements = read_block(network, span, known, functions)
        kinds = _kinds(elements)
        if kinds not in checked:
            propagate(elements, c=0.0 if _holds(elements, BatchNorm) else None)
            checked.add(kinds)
    except Unreadable as reason:
        return str(reason)
    except Exception as error:  # an operation nobody has met in a network yet: what cannot be read is not predicted
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return elements


def _kinds(elements: Sequence[Element]) -> tuple[Any, ...]:
    """Return what a block is made of, without its numbers."""
    return tuple(
        element.function
        if isinstance(element, Activation)
        else (Residual, _kinds(element.branch), _kinds(element.shortcut))
        if isinstance(element, Residual)
        else type(element)
        for element in elements
    )


def _holds(elements: Sequence[Element], kind: type) -> bool:
    return any(
        isinstance(element, kind)
        or (isinstance(element, Residual) and (_holds(element.branch, kind) or _holds(element.shortcut, kind)))
        for element in elements
    )


def _from_theory(
    name: str, elements: tuple[Element, ...], signal: _Signal, with_pairs: bool
) -> tuple[BlockPrediction, _Signal, list[Back]]:
    """Return the prediction of a block but for its gain, the signal at its end, and the ways back."""
    # What two examples share matters to BatchNorm alone, and costs more than all the rest.
    product = signal.c * signal.q if with_pairs else math.nan
    (*_, end), ways = follow(elements, State(signal.q, signal.mean, product))
    q = end.square
    c = signal.c if not with_pairs else end.product / q if q > 0 else 1.0
    after = _Signal(q, min(max(end.mean, -math.sqrt(q)), math.sqrt(q)), min(max(c, -1.0), 1.0))
    error = math.sqrt(end.spread) / math.log(100)
    return BlockPrediction(name, math.nan, error, end.q, elements, "theory", ""), after, ways


def _with_gains(
    network: Network, predictions: Sequence[BlockPrediction], ways: Sequence[list[Back] | None]
) -> tuple[BlockPrediction, ...]:
    """Return the predictions with the gains of theory, which depend on how the gradient comes in."""
    done, correlation = list(predictions), 0.0
    for index in reversed(range(len(done))):
        way = ways[index]
        if way is None or (index + 1 < len(done) and network.spans[index + 1].chain != network.spans[index].chain):
            correlation = 0.0
        if way is not None:
            gains, correlation = retrace(way, correlation)
            with np.errstate(divide="ignore", invalid="ignore"):
                growth = float(np.sum(np.log(gains)))
            done[index] = done[index]._replace(log10_gain=growth / math.log(100))
    return tuple(done)


def _from_samples(name: str, reason: str, samples: _Samples | None, signal: _Signal) -> tuple[BlockPrediction, _Signal]:
    """Return the prediction of a block from networks with other weights."""
    if samples is None:
        return BlockPrediction(name, math.nan, math.nan, math.nan, (), "none", reason), signal
    gain, error = float(np.mean(samples.log10_gains)), float(np.std(samples.log10_gains, ddof=1))
    return BlockPrediction(name, gain, error, samples.end.q, (), "sampled", reason), samples.end


def _measured(values: Sequence[Any]) -> _Signal:
    """Return what is known of a state: of normal inputs, where it is not known."""
    if not values or any(value is None for value in values):
        return _Signal(1.0, 0.0, 0.0)
    flat = [np.asarray(value, np.float64) for value in values]
    size = sum(value.size for value in flat)
    q = sum(float(np.sum(value**2)) for value in flat) / size
    mean = sum(float(np.sum(value)) for value in flat) / size
    return _Signal(q, min(max(mean, -math.sqrt(q)), math.sqrt(q)), min(max(_correlation(flat[0], q), -1.0), 1.0))


def _correlation(value: np.ndarray, q: float) -> float:
    """Return the mean product of two examples of a batch over the mean square."""
    if value.ndim < 2 or value.shape[0] < 2 or q == 0:
        return 0.0
    size = value.shape[0]
    # The square of a sum over examples holds every pair, and each example with itself.
    pairs = np.mean(np.square(value.sum(axis=0))) / size - np.mean(value**2)
    return float(pairs / (size - 1) / q)


def _made_of_parameters(network: Network, params: Any) -> dict[int, Any]:
    """Return the values that are made of parameters and constants alone."""
    program, signature = network.program, network.signature
    static = {position for position, _ in signature.static}
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: leaf is None)
    arrays = [jnp.asarray(leaf) for position, leaf in enumerate(leaves) if position not in static]
    expected = [aval.shape for aval in signature.avals[: network.num_parameters]]
    if [array.shape for array in arrays] != expected:
        raise ValueError(
            message(
                "predict",
                "parameters of the shapes traced",
                f"{len(arrays)} arrays of other shapes",
                "pass the parameters that the network was traced with, or trace again",
            )
        )
    constants = dict(zip(program.inputs[len(signature.avals) :], network.constants, strict=True))
    known: dict[int, Any] = dict(zip(program.inputs, arrays, strict=False)) | constants
    for equation in program.equations:
        if equation.loop is None and all(atom in known for atom in equation.operands):
            operands = [atom.value if isinstance(atom, Constant) else known[atom] for atom in equation.inputs]
            known |= dict(zip(equation.outputs, equation.apply(*operands), strict=True))
    return known


def _all_values(network: Network, inputs: Sequence[Any]) -> dict[int, Any]:
    """Return the values that no block's state reaches, and the states that chains begin with."""
    program = network.program
    made = {output for equation in program.equations for output in equation.outputs} | set(program.inputs)
    wanted = {(number,) for number in made} - set(network.path)
    wanted |= {site for span in network.spans for site in span.start.sites if len(site) == 1}
    compiled = program._compiled.setdefault("off the path", jax.jit(lambda i: evaluate(program, i, captures=wanted)[1]))
    kept = compiled(list(inputs))
    return {site[0]: value for site, value in kept.items()}


def _sample(
    network: Network, inputs: Sequence[Any], key: jax.Array, num_samples: int, wanted: Sequence[int]
) -> dict[int, _Samples]:
    """Return the gains of blocks in networks with weights drawn anew, and the signals at their ends."""
    if not wanted:
        return {}
    stands_for = _stand_ins(network, wanted)
    probed = sorted(set(stands_for.values()))
    run = jax.jit(lambda inputs, key: _sampled_gains(network, wanted, probed, inputs, key))
    results = [run(_redrawn(network, inputs, one), one) for one in jax.random.split(key, num_samples)]
    found = {}
    for index in wanted:
        gains = np.array([result[index][0] for result in results], np.float64)
        if not np.all(np.isfinite(gains)):  # the loss's gradient has left floating point before it comes here
            gains = np.array([result[stands_for[index]][1] for result in results], np.float64)
        ends = [_measured(result[index][2]) for result in results]
        found[index] = _Samples(gains, _Signal(*(float(np.mean(column)) for column in zip(*ends, strict=True))))
    return found


def _stand_ins(network: Network, wanted: Sequence[int]) -> dict[int, int]:
    """Return the block that stands for each one: some of a loop's steps for all of them."""
    steps: dict[Any, list[int]] = {}
    for index in wanted:
        span = network.spans[index]
        steps.setdefault(span.equations if span.kind == "time" else index, []).append(index)
    chosen = {}
    for members in steps.values():
        places = np.unique(np.linspace(0, len(members) - 1, min(len(members), _MAX_STEPS)).round().astype(int))
        for position, index in enumerate(members):
            chosen[index] = members[places[np.argmin(np.abs(places - position))]]
    return chosen


def _redrawn(network: Network, inputs: Sequence[Any], key: jax.Array) -> list[Any]:
    """Return the inputs with every weight drawn anew from a normal of its own mean square."""
    redrawn = list(inputs)
    depths = {owner.leaf: len(owner.index) for site in network.sites for owner in site.owners}
    for leaf, depth in depths.items():
        weight = jnp.asarray(inputs[leaf])
        if weight.ndim - depth < 2:
            continue
        axes = tuple(range(depth, weight.ndim))
        rms = jnp.sqrt(jnp.mean(jnp.square(weight), axis=axes, keepdims=True))
        redrawn[leaf] = rms * jax.random.normal(jax.random.fold_in(key, leaf), weight.shape, weight.dtype)
    return redrawn


def _sampled_gains(
    network: Network, wanted: Sequence[int], probed: Sequence[int], inputs: list[Any], key: jax.Array
) -> dict[int, tuple[Any, Any, list[Any]]]:
    """Return log10 of blocks' gains, for the loss's gradient and for a random one, and the values at their ends.

    The random one is pushed through some of the blocks only, and NaN for the others.
    """
    spans = {index: network.spans[index] for index in wanted}
    sites = {site for span in spans.values() for cut in (span.start, span.end) for site in cut.sites}
    taps = {site: jnp.zeros(network.stacked_shape(site), network.aval(site).dtype) for site in sites}

    def run(taps: dict[Any, Any]) -> tuple[Any, dict[Any, Any]]:
        outputs, kept = evaluate(network.program, inputs, taps=taps, captures=sites)
        return outputs[0], {site: kept[site] for site in sites}

    (loss, kept), pull = jax.vjp(run, taps)
    nothing = {site: jnp.zeros_like(value) for site, value in kept.items()}
    (signals,) = pull((jnp.ones_like(loss), nothing))
    found = {}
    for index, span in spans.items():
        begin, end = ([_at(signals[site], cut.step) for site in cut.sites] for cut in (span.start, span.end))
        followed = jnp.log10(_norm(begin) / _norm(end))
        probe = jnp.full_like(followed, jnp.nan)
        if index in probed:
            seeds, noise = dict(nothing), []
            for place, site in enumerate(span.end.sites):
                own = jax.random.fold_in(key, 64 * index + place)
                noise.append(jax.random.normal(own, network.aval(site).shape, network.aval(site).dtype))
                seeds[site] = noise[-1] if span.end.step is None else seeds[site].at[span.end.step].set(noise[-1])
            (back,) = pull((jnp.zeros_like(loss), seeds))
            probe = jnp.log10(_norm([_at(back[site], span.start.step) for site in span.start.sites]) / _norm(noise))
        found[index] = (followed, probe, [_at(kept[site], span.end.step) for site in span.end.sites])
    return found


def _at(value: Any, step: int | None) -> Any:
    return value if step is None else value[step]


def _norm(values: Sequence[Any]) -> Any:
    return jnp.sqrt(sum(jnp.sum(jnp.square(value.astype(jnp.float32))) for value in values))
