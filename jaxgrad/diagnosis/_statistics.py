"""From the numbers of a measurement to what the report and the rules work with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgrad.diagnosis import _measure
from jaxgrad.diagnosis._findings import BlockFacts, Facts, LayerFacts
from jaxgrad.diagnosis._measure import Measurement
from jaxgrad.diagnosis._report import BlockStatistics, Histogram, LayerStatistics, NonFinite, Spectrum
from jaxgrad.diagnosis._structure import fan_in, has_normalization, has_skip, is_product
from jaxgrad.spectra._examples import Layout
from jaxgrad.tracing import Cut, Network
from jaxgrad.tracing._interpret import Site

_BINS = 32
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
    gains: Sequence[float] | None,
    nonfinite: NonFinite | None,
    layers: tuple[LayerStatistics, ...],
    inputs: Sequence[Any],
    spectra: Sequence[Spectrum | None],
    spread: float,
) -> Facts:
    """Collect what the rules decide by."""
    signals = {cut: _at(measured.signal, cut) for cut in network.cuts}
    blocks = _block_statistics(network, measured, scale, signals, gains, spectra)
    known = [
        LayerFacts(
            name=layer.name,
            weight_variance=_weight_variance(network, site, float(measured.parameter_norms[index])),
            slope=float(measured.activations[index].slope),
            saturates=bool(measured.activations[index].saturates == 1),
            fan_in=fan_in(site),
        )
        for index, (layer, site) in enumerate(zip(network.layers, network.sites, strict=True))
    ]
    chains: dict[int, list[BlockFacts]] = {}
    for block, span, statistics in zip(network.blocks, network.spans, blocks, strict=True):
        inside = [fact for fact, layer in zip(known, network.layers, strict=True) if layer in block.layers]
        facts = BlockFacts(statistics, tuple(inside), has_skip(network, span), has_normalization(network, span))
        chains.setdefault(block.chain, []).append(facts)
    first = blocks[0] if blocks else None
    return Facts(
        chains=tuple(tuple(chain) for chain in chains.values()),
        layers=layers,
        mixes_examples=layout.mixes,
        has_signal=scale > 0,
        log10_input_scale=_log10(first.input_rms) if first is not None else math.nan,
        log10_feature_scale=_feature_scale(network, inputs),
        log10_target_scale=_target_scale(network, inputs, blocks),
        log10_spread=spread,
        nonfinite=nonfinite,
    )


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
    owner = max(site.owners, key=lambda owner: math.prod(network.signature.avals[owner.leaf].shape))
    size = math.prod(network.signature.avals[owner.leaf].shape[len(owner.index) :])
    return fan_in(site) * norm**2 / size if size else math.nan


def _feature_scale(network: Network, inputs: Sequence[Any]) -> float:
    """Return log10 of the largest over the median feature scale of the network's float inputs."""
    scales = []
    for position in range(network.num_parameters, len(network.signature.avals)):
        aval = network.signature.avals[position]
        reaches = any((*site.loops, site.data) == (position,) for site in network.sites)
        if reaches and len(aval.shape) == 2 and jnp.issubdtype(aval.dtype, jnp.floating):
            columns = np.sqrt(np.mean(np.square(np.asarray(inputs[position], np.float64)), axis=0))
            columns = columns[np.isfinite(columns) & (columns > 0)]
            if columns.size > 1:
                scales.append(_log10(float(columns.max() / np.median(columns))))
    return max(scales, default=math.nan)


def _target_scale(network: Network, inputs: Sequence[Any], blocks: Sequence[BlockStatistics]) -> float:
    """Return log10 of the root mean square of float targets of the output's shape over that of the output."""
    cut = last_cut(network)
    if cut is None or len(cut.sites) != 1 or cut.step is not None:
        return math.nan
    output = network.aval(cut.sites[0])
    reached = {site for span in network.spans for site in span.start.sites}
    scales = []
    for position in range(network.num_parameters, len(network.signature.avals)):
        aval = network.signature.avals[position]
        same = math.prod(aval.shape) == math.prod(output.shape)
        used = any((*site.loops, site.data) == (position,) for site in network.sites)
        if same and not used and (position,) not in reached and jnp.issubdtype(aval.dtype, jnp.floating):
            values = np.asarray(inputs[position], np.float64)
            scales.append(_log10(float(np.sqrt(np.mean(np.square(values))))))
    outputs = [block.output_rms for block in blocks if network.spans[block.index].end == cut]
    return max(scales, default=math.nan) - _log10(outputs[-1]) if outputs and outputs[-1] > 0 else math.nan
