"""Order and chaos: figures of two papers from jaxgrad. Lines are theory, dots are sampled networks.

poole2016.png: lengths, correlations and the phase diagram of tanh networks (Poole et al. 2016).
schoenholz2017.png: how deep a signal reaches, and which depths train on digits (Schoenholz et al. 2017).

Beside each it prints theory and sample for the dots, and how far they are apart.

Run: python benchmarks/phases.py [--quick] [--only FIGURE] [FOLDER]
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from drawing import COLOURS, DOTS, GREY, KEY, compare, draw, iterate, label
from sampling import sample_scales, walk

from jaxgrad import data
from jaxgrad.meanfield import (
    chi,
    correlation_map,
    critical_point,
    depth_scales,
    fixed_point,
    variance_map,
)


def poole(quick: bool) -> Any:
    """Draw how lengths and correlations propagate, with σ_b = 0.3 where nothing else is said."""
    figure, panels = plt.subplots(2, 3, figsize=(12, 7))
    sample = functools.partial(walk, KEY, jnp.tanh, networks=2 if quick else 20, width=300, depth=8)
    lengths(panels[0, 0], sample)
    settled_lengths(panels[0, 1], sample)
    phase_diagram(panels[0, 2], sample, num=7 if quick else 17)
    correlation_steps(panels[1, 0], networks=20 if quick else 200)
    correlation_paths(panels[1, 1], sample)
    settled_correlations(panels[1, 2], quick)
    return figure


def weights(scale: float, bias_scale: float = 0.3) -> dict[str, float]:
    """Return the variances of standard deviations σ_w and σ_b."""
    return {"weight_variance": scale**2, "bias_variance": bias_scale**2}


SCALES = (1.3, 2.5, 4.0)


def lengths(axes: Any, sample: Callable[..., Any]) -> None:
    """Draw the squared length from layer to layer."""
    for colour, scale in zip(COLOURS, SCALES, strict=True):
        for start in (0.5, 14.0):
            theory = iterate(lambda q, scale=scale: variance_map("tanh", q, **weights(scale)), start, 8)
            measured = sample(q=start, **weights(scale)).q
            axes.plot(theory, color=colour, label=f"$\\sigma_w$ = {scale}" if start < 1 else None)
            axes.plot(measured, color=colour, **DOTS)
            compare(f"length, σ_w = {scale}, q⁰ = {start}", range(9), theory, measured)
    label(axes, "Length, layer by layer", "layer $\\ell$", "mean square $q^\\ell$")


def settled_lengths(axes: Any, sample: Callable[..., Any]) -> None:
    """Draw the length where it settles."""
    fine, few = np.linspace(0.3, 4, 20), np.array([0.6, 1.3, 2.0, 3.0, 4.0])
    for colour, bias_scale in zip(COLOURS, (0.0, 0.3, 1.0), strict=True):
        theory = [fixed_point("tanh", **weights(scale, bias_scale)) for scale in few]
        measured = [
            sample(q=max(q, 1e-6), **weights(scale, bias_scale)).q[-1] for scale, q in zip(few, theory, strict=True)
        ]
        curve = [fixed_point("tanh", **weights(scale, bias_scale)) for scale in fine]
        axes.plot(fine, curve, color=colour, label=f"$\\sigma_b$ = {bias_scale:g}")
        axes.plot(few, measured, color=colour, **DOTS)
        shown = [index for index, q in enumerate(theory) if q > 0]
        compare(f"q*, σ_b = {bias_scale}", few[shown], np.array(theory)[shown], np.array(measured)[shown])
    label(axes, "Length at the fixed point", "weight scale $\\sigma_w$", "fixed point $q^*$")


def phase_diagram(axes: Any, sample: Callable[..., Any], num: int) -> None:
    """Draw the growth of gradients over both variances, and the line where they keep their size."""
    scales, bias_scales = np.linspace(0.5, 4, num), np.linspace(0.02, 2, num)
    growth = [[chi("tanh", **weights(scale, bias_scale)) for scale in scales] for bias_scale in bias_scales]
    fill = axes.contourf(
        scales, bias_scales, np.log10(growth), np.linspace(-0.6, 0.6, 25), cmap="RdBu_r", extend="both"
    )
    plt.colorbar(fill, ax=axes, label="$\\log_{10} \\chi_1$", ticks=[-0.6, -0.3, 0, 0.3, 0.6])
    line = [critical_point("tanh", bias_variance=b**2).weight_variance ** 0.5 for b in bias_scales]
    axes.plot(line, bias_scales, color="black", label="$\\chi_1 = 1$, theory")
    few = np.array([0.1, 0.5, 1.0, 1.5, 1.9])
    theory = [critical_point("tanh", bias_variance=b**2).weight_variance ** 0.5 for b in few]
    measured = [crossing(sample, scale, b) for scale, b in zip(theory, few, strict=True)]
    axes.plot(measured, few, color="black", label="networks", **DOTS)
    axes.text(0.65, 1.75, "ordered", color="white", weight="bold")
    axes.text(3.0, 1.75, "chaotic", weight="bold")
    axes.set_xlim(0.5, 4)
    compare("critical σ_w", few, theory, measured)
    label(axes, "Phases", "weight scale $\\sigma_w$", "bias scale $\\sigma_b$", loc="lower right", frameon=True)


def crossing(sample: Callable[..., Any], scale: float, bias_scale: float) -> float:
    """Return where the growth measured in networks crosses 1, between two weight scales around one."""
    around = np.array([0.9, 1.1]) * scale
    settings = [weights(each, bias_scale) for each in around]
    logs = [math.log(sample(q=fixed_point("tanh", **each), **each).growth) for each in settings]
    return float(np.interp(0.0, logs, around))


def correlation_steps(axes: Any, networks: int) -> None:
    """Draw the correlation after a layer over that before."""
    fine, few = np.linspace(0, 1, 21), np.array([0.05, 0.3, 0.5, 0.7, 0.95])
    sample = functools.partial(walk, KEY, jnp.tanh, networks=networks, width=300, depth=1)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    for colour, scale in zip(COLOURS, SCALES, strict=True):
        step = functools.partial(correlation_step, scale)
        measured = [sample(q=fixed_point("tanh", **weights(scale)), c=c, **weights(scale)).c[1] for c in few]
        axes.plot(fine, [step(c) for c in fine], color=colour, label=f"$\\sigma_w$ = {scale}")
        axes.plot(few, measured, color=colour, **DOTS)
        compare(f"correlation map, σ_w = {scale}", few, [step(c) for c in few], measured)
    label(axes, "Correlation map", "correlation before, $c$", "correlation after a layer, $c'$")


def correlation_step(scale: float, c: float) -> float:
    """Return the correlation after a layer."""
    return correlation_map("tanh", c, **weights(scale))


def correlation_paths(axes: Any, sample: Callable[..., Any]) -> None:
    """Draw the correlation from layer to layer."""
    for colour, scale in zip(COLOURS, SCALES, strict=True):
        for start in (0.2, 0.95):
            theory = iterate(functools.partial(correlation_step, scale), start, 8)
            measured = sample(q=fixed_point("tanh", **weights(scale)), c=start, **weights(scale)).c
            axes.plot(theory, color=colour, label=f"$\\sigma_w$ = {scale}" if start < 0.5 else None)
            axes.plot(measured, color=colour, **DOTS)
            compare(f"correlation, σ_w = {scale}, c⁰ = {start}", range(9), theory, measured)
    axes.set_ylim(0, 1.03)
    label(
        axes,
        "Correlation, layer by layer",
        "layer $\\ell$",
        "correlation $c^\\ell$",
        loc="center left",
        bbox_to_anchor=(0, 0.6),
    )


def settled_correlations(axes: Any, quick: bool) -> None:
    """Draw the correlation where it settles."""
    fine, few = np.linspace(0.5, 4, 8 if quick else 36), np.array([1.0, 2.0, 3.0, 4.0])
    sample = functools.partial(walk, KEY, jnp.tanh, networks=4 if quick else 32, width=300, depth=10)
    for colour, bias_scale in zip(COLOURS, (0.1, 0.3, 1.0), strict=True):
        points = [depth_scales("tanh", **weights(scale, bias_scale)) for scale in few]
        theory = [point.c for point in points]
        measured = [
            sample(q=point.q, c=min(point.c, 0.9999), **weights(scale, bias_scale)).c[-1]
            for scale, point in zip(few, points, strict=True)
        ]
        curve = [depth_scales("tanh", **weights(scale, bias_scale)).c for scale in fine]
        axes.plot(fine, curve, color=colour, label=f"$\\sigma_b$ = {bias_scale:g}")
        axes.plot(few, measured, color=colour, **DOTS)
        compare(f"c*, σ_b = {bias_scale}", few, theory, measured)
    label(axes, "Correlation at the fixed point", "weight scale $\\sigma_w$", "fixed point $c^*$")


def schoenholz(quick: bool) -> Any:
    """Draw the depth scales, and which depths train."""
    figure, panels = plt.subplots(1, 3, figsize=(12.5, 4))
    fine = np.linspace(1.0, 4.0, 16 if quick else 91)
    for colour, bias_variance in zip(COLOURS, (0.01, 0.05, 0.1), strict=True):
        curves = [depth_scales("tanh", weight_variance=each, bias_variance=bias_variance) for each in fine]
        critical = critical_point("tanh", bias_variance=bias_variance).weight_variance
        few = [0.75 * critical, 1.3 * critical, 1.75 * critical]
        sizes = {"networks": 10 if quick else 200, "width": 200, "depth": 12}
        scales = [depth_scales("tanh", weight_variance=each, bias_variance=bias_variance) for each in few]
        measured = [sample_scales(KEY, weight_variance=each, bias_variance=bias_variance, **sizes) for each in few]
        for axes, name in zip(panels, ("xi_c", "xi_gradient"), strict=False):
            axes.plot(
                fine,
                gaps(fine, [getattr(each, name) for each in curves], critical),
                color=colour,
                label=f"$\\sigma_b^2$ = {bias_variance}",
            )
            axes.axvline(critical, color=colour, linewidth=0.7, linestyle=":")
            dots = [each[name] for each in measured]
            axes.plot(few, dots, color=colour, **DOTS)
            compare(f"{name}, σ_b² = {bias_variance}", few, [getattr(each, name) for each in scales], dots)
    for axes, title, name in zip(panels, ("Reach of an angle", "Reach of a gradient"), ("c", "\\nabla"), strict=False):
        axes.set(yscale="log", ylim=(1, 300))
        label(axes, title, "weight variance $\\sigma_w^2$", f"depth scale $\\xi_{{{name}}}$ (layers)")
    trainable(panels[2], quick)
    return figure


def gaps(x: np.ndarray, y: Sequence[float], pole: float) -> np.ndarray:
    """Return a curve that is cut at a pole, where no grid is fine enough."""
    return np.where(np.abs(x - pole) < 0.6 * (x[1] - x[0]), np.nan, y)


def trainable(axes: Any, quick: bool) -> None:
    """Draw the accuracy that tanh networks of many depths reach on digits, over the depth scale."""
    variances = np.linspace(1.0, 4.0, 4 if quick else 13)
    depths = (5, 20) if quick else (5, 10, 20, 35, 60)
    accuracy = np.array([train(depth, variances, num_steps=60 if quick else 200) for depth in depths])
    mesh = axes.pcolormesh(variances, depths, accuracy, shading="nearest", cmap="cividis", vmin=0.1, vmax=1)
    plt.colorbar(mesh, ax=axes, label="accuracy on the training digits")
    fine = np.linspace(*axes.get_xlim(), 16 if quick else 61)
    reach = [6 * depth_scales("tanh", weight_variance=each, bias_variance=0.05).xi_c for each in fine]
    axes.plot(fine, np.minimum(reach, 1000), color="white", linestyle="--", label="$6\\,\\xi_c$")
    axes.set_ylim(axes.get_ylim()[0], max(depths) + (depths[-1] - depths[-2]) / 2)
    label(
        axes,
        "Which depth trains ($\\sigma_b^2$ = 0.05)",
        "weight variance $\\sigma_w^2$",
        "depth (layers)",
        loc="upper right",
        labelcolor="white",
    )
    print("  accuracy on digits; columns are σ_w²")
    print(f"    {'depth':>9}" + "".join(f"{each:8.2f}" for each in variances))
    for depth, row in zip(depths, accuracy, strict=True):
        print(f"    {depth:9}" + "".join(f"{each:8.2f}" for each in row))


@functools.partial(jax.jit, static_argnames=("depth", "num_steps", "width", "batch"))
def train(
    depth: int, variances: jax.Array, *, num_steps: int, width: int = 64, batch: int = 64, rate: float = 0.02
) -> jax.Array:
    """Return the accuracy of tanh networks after a few steps of gradient descent, one for each weight variance."""
    images, labels = data.digits()
    pixels = images.reshape(len(images), -1).astype(np.float32)
    pixels = (pixels - pixels.mean()) / pixels.std()

    def logits(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        h, _ = jax.lax.scan(lambda h, layer: (jnp.tanh(h @ layer[0] + layer[1]), None), x, (params["w"], params["b"]))
        return h @ params["out"]

    def loss(params: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
        log_probabilities = jax.nn.log_softmax(logits(params, jnp.asarray(pixels)[rows]))
        return -jnp.mean(jnp.take_along_axis(log_probabilities, jnp.asarray(labels, np.int32)[rows, None], 1))

    def one(variance: jax.Array) -> jax.Array:
        keys = jax.random.split(KEY, 4)
        params = {
            "w": jax.random.normal(keys[0], (depth, width, width), np.float32) * jnp.sqrt(variance / width),
            "b": jax.random.normal(keys[1], (depth, width), np.float32) * math.sqrt(0.05),
            "out": jax.random.normal(keys[2], (width, 10), np.float32) / math.sqrt(width),
        }

        def step(params: dict[str, jax.Array], rows: jax.Array) -> tuple[dict[str, jax.Array], None]:
            gradients = jax.grad(loss)(params, rows)
            return jax.tree.map(lambda p, g: p - rate * g, params, gradients), None

        rows = jax.random.randint(keys[3], (num_steps, batch), 0, len(pixels))
        params, _ = jax.lax.scan(step, params, rows)
        return jnp.mean(jnp.argmax(logits(params, jnp.asarray(pixels)), 1) == jnp.asarray(labels))

    return jax.vmap(one)(jnp.asarray(variances, jnp.float32))


if __name__ == "__main__":
    draw({"poole2016": poole, "schoenholz2017": schoenholz}, __doc__.splitlines()[0])
