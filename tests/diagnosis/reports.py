"""Made-up reports, one a situation that the pages must show well."""

from __future__ import annotations

import math
import random

from jaxgrad.diagnosis._report import (
    BlockStatistics,
    Finding,
    Histogram,
    LayerStatistics,
    NonFinite,
    Remedy,
    Report,
    Spectrum,
)

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
    stable = square / largest**2 if largest else 0.0
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


def healthy() -> Report:
    """A small MLP with He initialization."""
    names = [f"params/Dense_{i}/kernel" for i in range(4)]
    gains = [-0.04, 0.03, -0.06, 0.02]
    layers = [layer(name, i, update_ratio=1.1e-3 + 2e-4 * i) for i, name in enumerate(names)]
    layers[-1] = layers[-1]._replace(
        activation=None,
        activation_mean=-0.03,
        saturated_fraction=None,
        dead_fraction=None,
        histogram=histogram(0.0, 1.0, -3.1, 2.9),
    )
    return report(
        summary="Gradients reach every layer at a healthy size: over 4 layers the backward signal changes by ×0.89.",
        layers=tuple(layers),
        blocks=stack(gains, names),
        log10_total_gain=sum(gains),
        num_parameters=13_002,
        notes=("Spectra are pooled over 8 of the 64 examples.",),
    )


def vanishing(depth: int = 30) -> Report:
    """A deep sigmoid network."""
    names = [f"params/Dense_{i}/kernel" for i in range(depth)]
    generator = random.Random(1)
    gains = [generator.gauss(-0.72, 0.05) for _ in range(depth)]
    gains[11] = -1.9
    blocks = stack(gains, names)
    layers = tuple(
        layer(
            name,
            i,
            activation="sigmoid",
            activation_mean=0.5 + 0.01 * i,
            activation_std=0.11,
            saturated_fraction=0.78 if i == 11 else 0.21,
            histogram=histogram(0.5, 0.13 if i != 11 else 0.9, 0.0, 1.0),
            gradient_norm=10 ** (blocks[i].log10_output_signal - 0.5),
            update_ratio=1e-3 * 10 ** (blocks[i].log10_output_signal + 0.9),
        )
        for i, name in enumerate(names)
    )
    total = sum(gains)
    return report(
        verdict="vanishing",
        summary=f"The gradient shrinks to 10^{total:.0f} of its size between the loss and the first layer: "
        "the sigmoid in all 30 layers passes on less than a quarter of it each time.",
        findings=(
            Finding(
                "vanishing",
                None,
                "saturating-activation",
                "The slope of sigmoid is at most 0.25. Measured gain per block: ×0.19 (median of 30); theory for this "
                "initialization predicts ×0.20. At that rate the signal falls by a decade every 1.4 layers.",
                0.97,
            ),
            Finding(
                "vanishing",
                names[11],
                "initialization",
                "This block alone multiplies the signal by 0.013, against ×0.19 around it; 78 % of its entries are "
                "saturated. Its weights have standard deviation 1.9, against 0.25 for glorot_normal.",
                0.74,
            ),
        ),
        remedies=(
            Remedy("swap-activation", "replace sigmoid by relu with he_normal kernels", total, -0.21, True, True),
            Remedy("add-residual", "add a skip connection around every block", total, -1.9, True, None),
            Remedy("reinitialize", "reinitialize every kernel with glorot_normal", total, -18.2, False, None),
            Remedy("normalize", "put LayerNorm before each sigmoid", total, total + 0.3, False, False),
        ),
        layers=layers,
        blocks=blocks,
        log10_total_gain=total,
        num_parameters=124_810,
        notes=(
            "Spectra are pooled over 8 of the 64 examples.",
            "The total gain is below what float32 can hold; it was followed in log space.",
        ),
    )


def exploding(depth: int = 12) -> Report:
    """A residual network whose branches are too large; every block holds two layers."""
    gains = [0.42 + 0.05 * (i % 3) for i in range(depth)]
    names = [f"ResidualBlock_{i}" for i in range(depth)]
    blocks, layers = [], []
    for b in stack(gains, names):
        inside = tuple(f"params/{b.name}/Conv_{j}/kernel" for j in range(2))
        scale = 10 ** (0.45 * b.index)
        blocks.append(b._replace(layers=inside, input_rms=scale, output_rms=scale * 2.8, input_shape=(8, 8, 64)))
        for j, name in enumerate(inside):
            layers.append(
                layer(
                    name,
                    b.index,
                    operation="conv_general_dilated",
                    weight_shape=(3, 3, 64, 64),
                    activation="gelu" if j == 0 else None,
                    activation_mean=0.3 * scale,
                    activation_std=1.1 * scale,
                    histogram=histogram(0.0, scale, -3 * scale, 3 * scale),
                    saturated_fraction=None if j else 0.31,
                    dead_fraction=None if j else 0.0,
                    gradient_norm=10 ** (b.log10_output_signal + 0.3),
                )
            )
    layers.append(layer("params/Shortcut_0/kernel", None, activation=None))
    return report(
        verdict="exploding",
        summary="The gradient grows 350 000-fold between the loss and the first block, because each residual branch "
        "adds more than it should.",
        findings=(
            Finding(
                "exploding",
                "ResidualBlock_5",
                "residual-scale",
                "Every block multiplies the signal by 2.6 to 3.3; a residual block with branches scaled by 1/√12 "
                "would give ×1.04.",
                0.9,
            ),
        ),
        remedies=(Remedy("scale-branch", "scale each residual branch by 1/√12 = 0.289", sum(gains), 0.4, True),),
        layers=tuple(layers),
        blocks=tuple(blocks),
        log10_total_gain=sum(gains),
        num_parameters=887_000,
        mixes_examples=True,
        notes=("One example's activations depend on another's (BatchNorm in training).",),
    )


def recurrent(steps: int = 64) -> Report:
    """A recurrence over time after an embedding, and a head: three chains' worth of blocks."""
    cell = ("params/cell/recurrent_kernel",)
    blocks = list(stack([-0.55 + 0.1 * math.sin(t) for t in range(steps)], [f"t={t}" for t in range(steps)], end=-1.2))
    blocks = [b._replace(kind="time", layers=cell, chain=0) for b in blocks]
    head = block(steps, "params/head/kernel", ("params/head/kernel",), -0.5, -0.7, chain=1)
    return report(
        verdict="vanishing",
        summary=f"Through {steps} time steps the gradient shrinks to 10^-35 of its size: what the network reads early "
        "cannot teach it anything.",
        findings=(
            Finding(
                "vanishing",
                cell[0],
                "recurrence",
                "Every time step multiplies the signal by 0.28. The largest Lyapunov exponent is -1.27.",
                0.93,
            ),
        ),
        remedies=(
            Remedy("reinitialize", "make the recurrent kernel orthogonal", -35.2, -9.4, False),
            Remedy("gate", "use a GRU with its update gate biased to 0.9", -35.2, -1.4, True, True),
        ),
        layers=(
            layer("params/cell/input_kernel", None, activation=None),
            layer(cell[0], 0, activation="tanh", saturated_fraction=0.55, histogram=histogram(0.6, 0.5, -1.0, 1.0)),
            layer("params/head/kernel", steps, activation=None),
        ),
        blocks=(*blocks, head),
        log10_total_gain=-35.2,
        num_parameters=20_010,
    )


def nonfinite() -> Report:
    """A log of 0, after which nothing can be measured."""
    names = ["layers/0/weight", "layers/1/weight", "layers/2/weight"]
    blocks = tuple(
        block(i, name, (name,), math.nan, math.nan, output_rms=math.inf if i == 2 else 1.0)
        for i, name in enumerate(names)
    )
    return report(
        verdict="nonfinite",
        summary="The loss is NaN: log of 0 in loss_fn, after layers/2/weight.",
        findings=(
            Finding("nonfinite", names[2], "nonfinite-op", "log receives 0 in 3 of 64 examples; its slope is ∞.", 1.0),
        ),
        layers=tuple(
            layer(
                name,
                i,
                activation="softmax" if i == 2 else "tanh",
                activation_mean=math.nan if i == 2 else 0.1,
                activation_std=math.nan if i == 2 else 0.4,
                gradient_norm=math.nan,
                update_ratio=math.nan,
                saturated_fraction=math.nan,
                histogram=None if i == 2 else histogram(0.1, 0.4, -1, 1),
            )
            for i, name in enumerate(names)
        ),
        blocks=blocks,
        loss=math.nan,
        log10_total_gain=math.nan,
        nonfinite=NonFinite("forward", "log", "train.py:41 (loss_fn)", names[2], None),
    )


def dead() -> Report:
    """A layer of relu whose units are all off: the signal below it is exactly 0."""
    names = [f"params/fc{i}/kernel" for i in range(5)]
    gains = [-0.1, -0.2, -math.inf, -0.1, 0.0]
    signals = [-math.inf, -math.inf, -math.inf, -1.1, -1.0]
    blocks = tuple(
        block(i, name, (name,), signals[i] if i < 2 else -1.1 if i == 2 else -1.0, gains[i] if i >= 2 else math.nan)
        ._replace(log10_input_signal=signals[i])
        ._replace(spectrum=spectrum(-0.1, seed=i, zeros=64 if i == 2 else 20))
        for i, name in enumerate(names)
    )
    return report(
        verdict="dead",
        summary="Nothing below params/fc2/kernel learns: all of its 64 relu units are off on every example.",
        findings=(
            Finding("dead", names[2], "dead-relu", "64 of 64 units have slope 0 on all 64 examples; bias −4.0.", 0.99),
        ),
        remedies=(Remedy("reinitialize", "set the bias of params/fc2 to 0", -math.inf, -0.3, True),),
        layers=tuple(
            layer(
                name,
                i,
                dead_fraction=1.0 if i == 2 else 0.05,
                activation_mean=0.0 if i == 2 else 0.4,
                activation_std=0.0 if i == 2 else 0.5,
                histogram=Histogram(0.0, 0.0, (4096,)) if i == 2 else histogram(0.2, 0.6, 0, 2),
                gradient_norm=0.0 if i <= 2 else 0.03,
            )
            for i, name in enumerate(names)
        ),
        blocks=blocks,
        log10_total_gain=-math.inf,
        num_parameters=17_000,
    )


def empty() -> Report:
    """A loss without any layer."""
    return report()


NASTY = (
    "<script>alert('x')</script>",
    'a"b&c/<b>kernel</b>',
    "params/" + "very_long_module_name/" * 9 + "kernel",
    "[bold red]markup[/]/kernel",
    "params/\x1b[31mred\x1b[0m/kernel",
    "层/三/权重",
)


def nasty() -> Report:
    """Names that no page may trust."""
    gains = [-0.3] * len(NASTY)
    return report(
        verdict="ill-conditioned",
        summary="<b>Some directions</b> shrink & others grow: the condition number of J is 1e9.",
        findings=tuple(Finding("ill-conditioned", name, "<cause>", "<img src=x onerror=f(1)>", 0.5) for name in NASTY),
        remedies=(Remedy("<kind>", "<i>orthogonal</i> & [bold]so on[/bold]", -1.8, -0.1, True),),
        layers=tuple(layer(name, i, activation="<custom>") for i, name in enumerate(NASTY)),
        blocks=stack(gains, list(NASTY)),
        log10_total_gain=sum(gains),
        nonfinite=NonFinite("backward", "<op>", "<source>", NASTY[0], 3),
        notes=("<u>note</u>",),
        versions=(("<jaxgrad>", "<0.1>"),),
    )


def quick() -> Report:
    """A quick look: no spectra, no histograms, no optimizer."""
    full = healthy()
    return report(
        summary=full.summary,
        level="quick",
        layers=tuple(entry._replace(histogram=None, update_ratio=None) for entry in full.layers),
        blocks=tuple(entry._replace(spectrum=None) for entry in full.blocks),
        num_parameters=full.num_parameters,
    )


def deep(depth: int = 400) -> Report:
    """Hundreds of layers, with the signal far outside the range of a float; matrix-free spectra."""
    names = [f"layers/{i}/weight" for i in range(depth)]
    gains = [-0.9 - 0.2 * math.sin(i / 9) for i in range(depth)]
    only_largest = Spectrum(1, (), 0.15, None, 0.01, 12.0, 1e-3, "matrix-free")
    return report(
        verdict="vanishing",
        summary="The gradient shrinks to 10^-362 of its size over 400 layers.",
        findings=(Finding("vanishing", names[200], "depth", "400 layers without a residual connection.", 0.8),),
        layers=tuple(layer(name, i, activation="tanh") for i, name in enumerate(names)),
        blocks=stack(gains, names, spectrum=only_largest),
        log10_total_gain=sum(gains),
        num_parameters=1_600_000,
    )


ALL = {
    "healthy": healthy,
    "vanishing": vanishing,
    "exploding": exploding,
    "recurrent": recurrent,
    "nonfinite": nonfinite,
    "dead": dead,
    "empty": empty,
    "nasty": nasty,
    "quick": quick,
    "deep": deep,
}
