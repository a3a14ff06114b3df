"""From the numbers of a measurement to what the report and the rules work with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.diagnosis import _measure
from jaxgrad.diagnosis._facts import BlockFacts, CarriedFacts, EntryFacts, Facts, LayerFacts, LossFacts
from jaxgrad.diagnosis._loss import output_site
from jaxgrad.diagnosis._measure import Measurement
from jaxgrad.diagnosis._report import BlockStatistics, Histogram, LayerStatistics, NonFinite, Source, Spectrum
from jaxgrad.diagnosis._structure import fan_in, has_normalization, has_skip, is_product
from jaxgrad.meanfield import BlockPrediction
from jaxgrad.spectra._examples import Layout
from jaxgrad.tracing import Cut, Layer, Network
from jaxgrad.tracing._interpret import Site, evaluate

_BINS = 32
_NORMAL_95 = 1.96
_ROUNDING = 1e-2  # log10 by which two ways of measuring one gain may differ
TINY = 1e-30
"""Below this a float32 signal is about to underflow."""


def last_cut(network: Network) -> Cut | None:
    """Return the cut at the end of the first chain, the network's output."""
    ends = [span.end for span in network.spans if span.chain == network.spans[0].chain]
    deepest = [span.end for span in network.spans if all(other.start != span.end for other in network.spans)]
    return (deepest or ends or [None])[-1] if network.spans else None


def output_signal(network: Network, measured: Measurement) -> float:
    cut = last_cut(network)
    return 1.0 if cut is None else _at(measured.signal, cut)


def _at(values: dict[Site, Any], cut: Cut) -> float:
    """Return the norm of a state from the norms of its leaves."""
    leaves = [float(values[site] if cut.step is None else values[site][cut.step]) for site in cut.sites]
    return math.hypot(*leaves)


def _rms_at(values: dict[Site, Any], network: Network, cut: Cut) -> float:
    """Return the root mean square of a state from those of its leaves."""
    sizes = [math.prod(network.aval(site).shape) for site in cut.sites]
    leaves = [float(values[site] if cut.step is None else values[site][cut.step]) for site in cut.sites]
    return math.sqrt(sum(size * leaf**2 for size, leaf in zip(sizes, leaves, strict=True)) / max(sum(sizes), 1))


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else -math.inf if value == 0 else math.nan


def leaves_range(network: Network, measured: Measurement, scale: float) -> bool:
    """Return whether a signal under- or overflowed on the way, or none came from the loss."""
    if not network.spans:
        return False
    signals = [_at(measured.signal, cut) for cut in network.cuts]
    return not math.isfinite(scale) or any(not math.isfinite(signal) or signal < TINY for signal in signals)


def closed_layers(network: Network, measured: Measurement) -> list[int]:
    """Return the layers that are zero and learn, by position: they pass no signal yet, and will after one step.

    Layers with a path around them are left out: they were meant to begin as the identity.
    """
    skipped = {
        layer.name
        for block, span in zip(network.blocks, network.spans, strict=True)
        if has_skip(network, span)
        for layer in block.layers
    }
    return [
        index
        for index, layer in enumerate(network.layers)
        if is_product(network.sites[index])
        and float(measured.parameter_norms[index]) == 0
        and float(measured.gradient_norms[index]) > 0
        and layer.name not in skipped
    ]


def open_layers(network: Network, inputs: Sequence[Any], closed: Sequence[int], key: jax.Array) -> list[Any]:
    """Return the inputs with weights of variance 1/fan-in drawn for the layers that are zero."""
    opened = list(inputs)
    for index in closed:
        owner = _measure.main_owner(network, network.sites[index])
        leaf = opened[owner.leaf]
        drawn = jax.random.normal(jax.random.fold_in(key, index), leaf[owner.index].shape, jnp.float32)
        drawn = (drawn / math.sqrt(fan_in(network.sites[index]))).astype(leaf.dtype)
        opened[owner.leaf] = leaf.at[owner.index].set(drawn) if owner.index else drawn
    return opened


def layer_statistics(network: Network, measured: Measurement) -> tuple[LayerStatistics, ...]:
    statistics = []
    for index, (layer, site) in enumerate(zip(network.layers, network.sites, strict=True)):
        moments = measured.activations[index]
        activation = _measure.activation_after(network, site)
        norm = float(measured.parameter_norms[index])
        ratio = float(measured.update_norms[index]) / norm if measured.update_norms and norm > 0 else None
        saturates = activation is not None and bool(moments.saturates)
        statistics.append(
            LayerStatistics(
                name=layer.name,
                operation=layer.operation,
                weight_shape=layer.weight_shape,
                block=layer.block,
                activation=None if activation is None else activation.name,
                activation_mean=float(moments.mean),
                activation_std=float(moments.std),
                saturated_fraction=float(moments.saturated) if saturates else None,
                dead_fraction=None if activation is None else float(moments.dead),
                histogram=_histogram(np.asarray(moments.sample, np.float64)),
                parameter_norm=norm,
                gradient_norm=float(measured.gradient_norms[index]),
                update_ratio=ratio,
            )
        )
    return tuple(statistics)


def _histogram(sample: np.ndarray) -> Histogram | None:
    finite = sample[np.isfinite(sample)]
    if not finite.size:
        return None
    low, high = float(finite.min()), float(finite.max())
    if not high > low:
        return Histogram(low, high, (int(finite.size),))
    counts = np.bincount(np.minimum(((finite - low) * (_BINS / (high - low))).astype(int), _BINS - 1), minlength=_BINS)
    return Histogram(low, high, tuple(int(count) for count in counts))


def facts_of(
    network: Network,
    layout: Layout,
    measured: Measurement,
    scale: float,
    inputs: Sequence[Any],
    layers: tuple[LayerStatistics, ...],
    *,
    sources: Sequence[Mapping[Source, float]] | None = None,
    nonfinite: NonFinite | None = None,
    spectra: Sequence[Spectrum | None] = (),
    spread: float = math.nan,
    predictions: Sequence[BlockPrediction] = (),
    loss: LossFacts | None = None,
    clip: float = 1.0,
    carried: tuple[CarriedFacts, ...] = (),
) -> Facts:
    """Collect what the rules decide by."""
    signals = {cut: _at(measured.signal, cut) for cut in network.cuts}
    gains = None if sources is None else [sum(parts.values()) for parts in sources]
    blocks = _block_statistics(network, measured, scale, signals, gains, spectra or [None] * len(network.spans))
    known = [
        LayerFacts(
            name=layer.name,
            weight_variance=_weight_variance(network, site, float(measured.parameter_norms[index])),
            slope=float(measured.activations[index].slope),
            saturates=bool(measured.activations[index].saturates == 1),
            activation=layers[index].activation,
            fan_in=fan_in(site),
            alike=bool(measured.alike[index]),
        )
        for index, (layer, site) in enumerate(zip(network.layers, network.sites, strict=True))
    ]
    chains: dict[int, list[BlockFacts]] = {}
    for index, (block, span, statistics) in enumerate(zip(network.blocks, network.spans, blocks, strict=True)):
        inside = tuple(fact for fact, layer in zip(known, network.layers, strict=True) if layer in block.layers)
        error = _width_error(block.layers)
        if predictions and predictions[index].method == "theory":
            statistics = statistics._replace(predicted_log10_gain=predictions[index].log10_gain)
            error = predictions[index].error or error
        if math.isfinite(error):
            statistics = statistics._replace(log10_band=(-_NORMAL_95 * error, _NORMAL_95 * error))
        facts = BlockFacts(
            statistics,
            inside,
            has_skip(network, span),
            has_normalization(network, span),
            error,
            {} if sources is None else dict(sources[index]),
        )
        chains.setdefault(block.chain, []).append(facts)
    targets = _targets(network, inputs)
    return Facts(
        chains=tuple(tuple(chain) for chain in chains.values()),
        layers=layers,
        mixes_examples=layout.mixes,
        has_signal=scale > 0,
        entries=tuple(_entry(network.layers[index].name, *features) for index, features in measured.entries.items()),
        log10_targets=targets,
        log10_target_scale=targets - _output_scale(network, blocks),
        log10_spread=spread,
        loss=loss,
        clip=clip,
        nonfinite=nonfinite,
        carried=carried,
    )


def _width_error(layers: Sequence[Layer]) -> float:
    """Return the standard deviation of log10 of a random block's gain, from the widths of its layers alone.

    The squared gain of a layer of n ReLU units has a logarithm of variance 5/n, the largest of the common ones.
    """
    widths = [
        min(max(layer.weight_shape[-2:] or (1,)), layer.weight_shape[-1]) for layer in layers if layer.weight_shape
    ]
    variance = sum(5 / max(width, 1) for width in widths)
    return math.sqrt(variance) / math.log(100) if widths else math.nan


def _entry(layer: str, mean: np.ndarray, std: np.ndarray) -> EntryFacts:
    mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    columns = np.hypot(mean, std)
    columns = columns[np.isfinite(columns) & (columns > 0)]
    spread = float(columns.max() / np.median(columns)) if columns.size > 1 else 1.0
    size, deviation = float(np.sqrt(np.mean(mean**2 + std**2))), float(np.sqrt(np.mean(std**2)))
    # A batch of one example, many times, says nothing of how far examples lie apart.
    offset = _log10(float(np.sqrt(np.mean(mean**2))) / deviation) if deviation > 1e-6 * size else math.nan
    return EntryFacts(layer, _log10(size), _log10(spread), offset)


def _block_statistics(
    network: Network,
    measured: Measurement,
    scale: float,
    signals: dict[Cut, float],
    gains: Sequence[float] | None,
    spectra: Sequence[Spectrum | None],
) -> list[BlockStatistics]:
    """Return the statistics of the blocks; where a signal left the range, from the gains followed in log space."""
    logs = {cut: _log10(signal / scale) if scale > 0 else math.nan for cut, signal in signals.items()}
    usable = {cut for cut, signal in signals.items() if math.isfinite(signal) and signal > TINY and scale > 0}
    for index in reversed(range(len(network.spans))):
        span = network.spans[index]
        if gains is None:
            break
        logs.setdefault(span.end, 0.0)
        if span.end not in usable and not math.isfinite(logs[span.end]) and not scale > 0:
            logs[span.end] = 0.0
        if span.start not in usable:
            logs[span.start] = logs[span.end] + gains[index]
    statistics = []
    for block, span, spectrum in zip(network.blocks, network.spans, spectra, strict=True):
        sizes = [sum(math.prod(network.aval(site).shape) for site in cut.sites) for cut in (span.start, span.end)]
        start, end = logs[span.start], logs[span.end]
        gain = start - end
        if not math.isfinite(gain) and gains is not None and (math.isnan(gain) or end == -math.inf):
            gain = gains[block.index]  # no signal comes in at the end, as at the last state of a loop read step by step
        elif gains is not None and abs(gain - gains[block.index]) < _ROUNDING:
            gain = gains[block.index]  # the same vector, of which the parts are known: bfloat16 rounds it on both ways
        statistics.append(
            BlockStatistics(
                index=block.index,
                name=block.name,
                kind=block.kind,
                chain=block.chain,
                layers=tuple(layer.name for layer in block.layers),
                input_shape=block.input_shapes[0],
                output_shape=block.output_shapes[0],
                input_rms=_rms_at(measured.rms, network, span.start),
                output_rms=_rms_at(measured.rms, network, span.end),
                log10_input_signal=start - 0.5 * math.log10(max(sizes[0], 1)),
                log10_output_signal=end - 0.5 * math.log10(max(sizes[1], 1)),
                log10_gain=gain,
                predicted_log10_gain=None,
                spectrum=spectrum,
            )
        )
    return statistics


def _weight_variance(network: Network, site: Any, norm: float) -> float:
    """Return fan-in times the mean squared weight."""
    if not is_product(site):
        return math.nan
    owner = _measure.main_owner(network, site)
    size = math.prod(network.signature.avals[owner.leaf].shape[len(owner.index) :])
    return fan_in(site) * norm**2 / size if size else math.nan


def _targets(network: Network, inputs: Sequence[Any]) -> float:
    """Return log10 of the root mean square of float targets of the output's size."""
    scales = [
        _log10(float(np.sqrt(np.mean(np.square(np.asarray(inputs[position], np.float64))))))
        for position in target_positions(network)
    ]
    return max(scales, default=math.nan)


def _output_scale(network: Network, blocks: Sequence[BlockStatistics]) -> float:
    """Return log10 of the root mean square of the network's output."""
    cut = last_cut(network)
    outputs = [block.output_rms for block in blocks if network.spans[block.index].end == cut]
    return _log10(outputs[-1]) if outputs and outputs[-1] > 0 else math.nan


def target_positions(network: Network) -> list[int]:
    """Return the arguments that are targets: floats of the output's size that no layer reads."""
    cut = last_cut(network)
    if cut is None or len(cut.sites) != 1 or cut.step is not None:
        return []
    output = network.aval(cut.sites[0])
    reached = {site for span in network.spans for site in span.start.sites}
    found = []
    for position in range(network.num_parameters, len(network.signature.avals)):
        aval = network.signature.avals[position]
        same = math.prod(aval.shape) == math.prod(output.shape)
        used = any((*site.loops, site.data) == (position,) for site in network.sites)
        if same and not used and (position,) not in reached and jnp.issubdtype(aval.dtype, jnp.floating):
            found.append(position)
    return found


def constant_loss(network: Network, inputs: Sequence[Any]) -> float:
    """Return the loss of an output that does not look at its input: the targets' mean, or undecided logits.

    Losses of different units compare as shares of it.
    """
    cut, positions, site = last_cut(network), target_positions(network), output_site(network)
    if positions and cut is not None:
        (site,) = cut.sites
    if site is None:
        return 1.0
    output = evaluate(network.program, inputs, captures=[site])[1][site]
    constant = jnp.zeros_like(output)
    if positions:
        targets = inputs[positions[0]].reshape(output.shape).astype(output.dtype)
        constant = jnp.broadcast_to(jnp.mean(targets, axis=0, keepdims=True), output.shape)
    loss = float(evaluate(network.program, inputs, taps={site: constant - output})[0][0])
    return loss if math.isfinite(loss) and loss != 0 else 1.0
