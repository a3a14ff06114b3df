"""What made-up reports are made of: layers and blocks in good health, to be changed as a situation asks."""

from __future__ import annotations

import math
import random

from jaxgrad.diagnosis._report import BlockStatistics, Contribution, Histogram, LayerStatistics, Report, Spectrum

VERSIONS = (("jaxgrad", "0.1.0"), ("jax", "0.10.0"), ("platform", "cpu"))


def histogram(mean: float, std: float, low: float, high: float, bins: int = 32) -> Histogram:
    """The bell between two edges; what falls outside is left out."""
    width = (high - low) / bins
    centres = [low + (i + 0.5) * width for i in range(bins)]
    counts = tuple(round(4000 * math.exp(-0.5 * ((c - mean) / max(std, 1e-6)) ** 2)) for c in centres)
    return Histogram(low, high, counts if any(counts) else (4000, *(0,) * (bins - 1)))


def spectrum(log10_scale: float, *, seed: int, spread: float = 0.35, size: int = 64, zeros: int = 0) -> Spectrum:
    """Log-normal singular values around ``10 ** log10_scale``, the last ``zeros`` of them exactly 0."""
    generator = random.Random(seed)
    values = sorted((10 ** generator.gauss(log10_scale, spread) for _ in range(size)), reverse=True)
    values[size - zeros :] = [0.0] * zeros
    square = sum(v * v for v in values)
    largest = values[0]
    stable = square / largest**2 if largest**2 else 0.0
    return Spectrum(8, tuple(values), largest, values[-1], square / size, stable, 1e-6, "dense")


def layer(name: str, block: int | None, **changes: object) -> LayerStatistics:
    """A layer in good health, changed as asked."""
    return LayerStatistics(
        name=name,
        operation="dot_general",
        weight_shape=(64, 64),
        block=block,
        activation="relu",
        activation_mean=0.41,
        activation_std=0.58,
        saturated_fraction=0.02,
        dead_fraction=0.0,
        histogram=histogram(0.2, 0.6, 0.0, 2.5),
        parameter_norm=8.1,
        gradient_norm=0.032,
        update_ratio=None,
    )._replace(**changes)


def block(index: int, name: str, layers: tuple[str, ...], signal: float, gain: float, **changes: object):
    """A block that multiplies the signal at its output by ``10 ** gain``."""
    return BlockStatistics(
        index=index,
        name=name,
        kind="depth",
        chain=0,
        layers=layers,
        input_shape=(64,),
        output_shape=(64,),
        input_rms=1.0,
        output_rms=1.0,
        log10_input_signal=signal + gain,
        log10_output_signal=signal,
        log10_gain=gain,
        predicted_log10_gain=None,
        spectrum=None,
    )._replace(**changes)


def report(**changes: object) -> Report:
    """A report about nothing: no layer, no block, no finding."""
    fields: dict = {
        "verdict": "healthy",
        "summary": "Gradients reach every layer at a healthy size.",
        "findings": (),
        "remedies": (),
        "layers": (),
        "blocks": (),
        "loss": 2.302,
        "log10_total_gain": 0.0,
        "nonfinite": None,
        "level": "standard",
        "num_parameters": 0,
        "num_examples": 64,
        "mixes_examples": False,
        "notes": (),
        "versions": VERSIONS,
    }
    return Report(**(fields | changes))


def stack(gains: list[float], names: list[str], *, end: float = -0.9, seed: int = 0, **shared: object) -> tuple:
    """Blocks of one chain from the gain of each, in order of evaluation."""
    blocks, signal = [], end
    for index in reversed(range(len(gains))):
        changes = {"spectrum": spectrum(gains[index] - 0.1, seed=seed + index)} | shared
        blocks.append(block(index, names[index], (names[index],), signal, gains[index], **changes))
        signal += gains[index]
    return tuple(reversed(blocks))


def contributions(blocks: tuple, **shares: float) -> tuple[Contribution, ...]:
    """Each block's gain between its sources: what the shares leave of it is the weights'."""
    return tuple(
        Contribution(b.index, source, gain)
        for b in blocks
        for source, gain in (
            *((s, share * b.log10_gain) for s, share in shares.items()),
            ("weights", b.log10_gain * (1 - sum(shares.values()))),
        )
    )


def losses(start: float, end: float, steps: int = 40, *, noise: float = 0.03) -> tuple[float, ...]:
    """A loss that falls (or grows) geometrically."""
    generator = random.Random(steps)
    return tuple(start * (end / start) ** (i / (steps - 1)) * 10 ** generator.gauss(0, noise) for i in range(steps))
