"""Made-up reports of networks whose backward signal shrinks, grows or ends."""

from __future__ import annotations

import math
import random

from jaxgrad.diagnosis._report import Contribution, Finding, Histogram, Remedy, Report, Spectrum
from tests.diagnosis.report_parts import block, contributions, histogram, layer, losses, report, spectrum, stack


def vanishing(depth: int = 30) -> Report:
    """A deep sigmoid network."""
    names = [f"params/Dense_{i}/kernel" for i in range(depth)]
    generator = random.Random(1)
    gains = [generator.gauss(-0.72, 0.05) for _ in range(depth)]
    gains[11] = -1.9
    blocks = stack(gains, names, log10_band=(-0.06, 0.05), predicted_log10_gain=-0.7)
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
                0.92,
            ),
            Finding(
                "vanishing",
                names[11],
                "initialization",
                "This block alone multiplies the signal by 0.013, against ×0.19 around it; 78 % of its entries are "
                "saturated. Its weights have standard deviation 1.9, against 0.25 for glorot_normal.",
                0.74,
                0.08,
            ),
        ),
        remedies=(
            Remedy(
                "swap-activation + reinitialize",
                "replace sigmoid by relu, with kernels of variance 2/fan-in: "
                "`nn.relu(nn.Dense(features, kernel_init=nn.initializers.he_normal())(x))`",
                total,
                -0.21,
                True,
                True,
                losses(2.303, 2.29, noise=0.0005),
                losses(2.31, 0.004),
            ),
            Remedy(
                "add-residual",
                "add a skip connection around every block: `x = x + block(x)`",
                total,
                -1.9,
                True,
                False,
                losses(2.303, 2.29, noise=0.0005),
                (2.4, 3.1, 8.0, 21.5, math.inf, math.nan, math.nan),
            ),
            Remedy("reinitialize", "reinitialize every kernel with `glorot_normal`", total, -18.2, False, None),
            Remedy("normalize", "put LayerNorm before each sigmoid: `nn.LayerNorm()(x)`", total, total + 0.3, False),
            Remedy("scale-branch", "multiply each residual branch by 0.2", total, total, False, False),
        ),
        layers=layers,
        blocks=blocks,
        log10_total_gain=total,
        blame=contributions(blocks, activation=1.06, normalization=-0.004),
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
                1.0,
            ),
        ),
        remedies=(
            Remedy(
                "scale-branch",
                "multiply each residual branch by 1/√12 = 0.289: `x = x + 0.289 * branch(x)`",
                sum(gains),
                0.4,
                True,
                True,
                (2.4, 55.0, math.nan, math.nan),
                losses(2.4, 1.1, 4),
            ),
        ),
        layers=tuple(layers),
        blocks=tuple(blocks),
        log10_total_gain=sum(gains),
        blame=contributions(tuple(blocks), residual=1.3, activation=-0.5, normalization=-0.2, attention=0.01),
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
        blame=contributions((*blocks, head), activation=0.7, other=0.05),
        num_parameters=20_010,
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
        blame=(
            *(Contribution(i, "weights", gain) for i, gain in enumerate((-0.1, -0.3, 0.2, -0.2, -0.05))),
            *(Contribution(i, "activation", gain) for i, gain in enumerate((-0.2, -0.1, -math.inf, 0.1, 0.05))),
        ),
        num_parameters=17_000,
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
        blocks=(blocks := stack(gains, names, spectrum=only_largest, log10_band=(-0.02, 0.02))),
        log10_total_gain=sum(gains),
        blame=contributions(blocks, activation=0.8),
        num_parameters=1_600_000,
    )


def hopeless() -> Report:
    """A single culprit, for which nothing that was tried helps."""
    gains = [0.02, -0.03, -9.0, 0.01, -0.02]
    names = [f"layers/{i}/weight" for i in range(5)]
    blocks = stack(gains, names, spectrum=None)
    return report(
        verdict="vanishing",
        summary="The gradient shrinks to 10^-9 of its size in layers/2/weight.",
        findings=(Finding("vanishing", names[2], "initialization", "Its weights have std 1e-10.", 0.4, 0.999),),
        remedies=(
            Remedy("add-residual", "add each block's input to its output", -9.02, -8.9, False),
            Remedy(
                "swap-activation", "replace tanh by relu: `jax.nn.relu(x)`", -9.02, math.nan, False, None, (), (1.0,)
            ),
        ),
        layers=tuple(layer(name, i) for i, name in enumerate(names)),
        blocks=blocks,
        blame=contributions(blocks, activation=-0.01),
        log10_total_gain=sum(gains),
        num_parameters=21_000,
    )
