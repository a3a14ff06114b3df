"""Made-up reports, one a situation that the pages must show well."""

from __future__ import annotations

import math

from jaxgrad.diagnosis._report import Finding, NonFinite, Remedy, Report
from tests.diagnosis.report_gains import dead, deep, exploding, hopeless, recurrent, vanishing
from tests.diagnosis.report_parts import block, contributions, histogram, layer, losses, report, stack


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
        blocks=(blocks := stack(gains, names, log10_band=(-0.09, 0.08), predicted_log10_gain=0.01)),
        log10_total_gain=sum(gains),
        blame=contributions(blocks, activation=-4.0),
        num_parameters=13_002,
        notes=("Spectra are pooled over 8 of the 64 examples.",),
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


def target_scale() -> Report:
    """Nothing is wrong with the network, only with what it shall learn."""
    sound = healthy()
    return report(
        verdict="exploding",
        summary="The loss is 41 000 000 before training: the targets have standard deviation 6 400, the network's "
        "output 0.9.",
        findings=(
            Finding("exploding", None, "target-scale", "The targets reach from 1 200 to 38 000; std 6 400.", 0.9),
        ),
        remedies=(
            Remedy(
                "standardize-targets",
                "standardize the targets: `y = (y - y.mean(0)) / y.std(0)`",
                -0.05,
                -0.05,
                True,
                True,
                losses(4.1e7, 3.9e7, noise=0.001),
                losses(1.1, 0.12),
            ),
        ),
        layers=sound.layers,
        blocks=sound.blocks,
        blame=sound.blame,
        loss=4.1e7,
        log10_total_gain=-0.05,
        num_parameters=13_002,
    )


def learning_rate() -> Report:
    """The optimizer's first step is larger than the weights."""
    sound = healthy()
    names = [entry.name for entry in sound.layers]
    return report(
        verdict="exploding",
        summary="The first update is 3.2 times as large as the weights it changes.",
        findings=(Finding("exploding", names[1], "learning-rate", "‖Δw‖ / ‖w‖ = 3.2 at the median layer.", 0.8),),
        remedies=(
            Remedy(
                "learning-rate",
                "divide the learning rate by 300: `optax.adam(3.3e-3)`",
                math.nan,
                math.nan,
                True,
                True,
                (2.3, 90.0, 4100.0, math.nan),
                losses(2.3, 1.4, 4),
            ),
            Remedy("clip", "clip the gradient to norm 1: `optax.clip_by_global_norm(1.0)`", math.nan, math.nan, False),
        ),
        layers=tuple(entry._replace(update_ratio=3.2) for entry in sound.layers),
        blocks=sound.blocks,
        blame=sound.blame,
        log10_total_gain=-0.05,
        num_parameters=13_002,
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
        remedies=(
            Remedy("<kind>", "<i>orthogonal</i> & [bold]so on[/bold]: `a<b>c</b>[red]` `", -1.8, -0.1, True),
            Remedy(
                "<kind>", "in `x<y` & `[red]" + "very_long_name" * 9 + "`", -1.8, -0.3, True, True, (2.0, 1e300), (0.0,)
            ),
            Remedy("<kind>", "<u>nothing</u> `<s>`", -1.8, -1.7, False),
        ),
        layers=tuple(layer(name, i, activation="<custom>") for i, name in enumerate(NASTY)),
        blocks=(blocks := stack(gains, list(NASTY))),
        blame=contributions(blocks, activation=0.5),
        log10_total_gain=sum(gains),
        nonfinite=NonFinite("backward", "<op>", "<source>", NASTY[0], 3),
        notes=("<u>note</u>",),
        versions=(("<jaxgrad>", "<0.1>"),),
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
    "target-scale": target_scale,
    "learning-rate": learning_rate,
    "hopeless": hopeless,
}
