"""Dynamical isometry: figures of two papers from jaxgrad. Lines are theory, bars and dots are sampled networks.

pennington2017.png: the distribution of a Jacobian's squared singular values (Pennington et al. 2017).
xiao2018.png: convolutions that keep every direction (Xiao et al. 2018).

Beside each it prints theory and sample, and how far they are apart.

Run: python benchmarks/isometry.py [--quick] [--only FIGURE] [FOLDER]
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
from drawing import BLUE, COLOURS, DOTS, GREEN, GREY, KEY, ORANGE, compare, draw, iterate, label
from sampling import circular_conv, conv_values, end_to_end, walk

from jaxgrad import initializers
from jaxgrad.meanfield import (
    correlation_map,
    critical_point,
    depth_scales,
    fixed_point,
    predict_density,
    predict_spectrum,
)


def gaussian(scale: float) -> Callable[..., jax.Array]:
    """Return an initializer of Gaussian weights of variance ``scale² / fan-in``."""
    return initializers.variance_scaling(scale**2, "fan_in", "normal")


def pennington(quick: bool) -> Any:
    """Draw the distribution of squared singular values, and the largest one over depth."""
    figure = plt.figure(figsize=(14.5, 8))
    grid = figure.add_gridspec(6, 4, width_ratios=(1, 1, 1, 1.25))
    hard = critical_point("hard_tanh", bias_variance=0.01)
    settings = {
        "linear, Gaussian": ("identity", "gaussian", 1.0, 0.0),
        "ReLU, orthogonal": ("relu", "orthogonal", 2.0, 0.0),
        "hard tanh, orthogonal": ("hard_tanh", "orthogonal", hard.weight_variance, hard.bias_variance),
    }
    width, networks = (100, 1) if quick else (400, 2)
    for row, (name, setting) in enumerate(settings.items()):
        for column, depth in enumerate((2, 8, 32)):
            axes = figure.add_subplot(grid[2 * row : 2 * row + 2, column])
            distribution(axes, name, setting, depth, COLOURS[row], width=width, networks=networks)
            label(
                axes,
                f"{name}, L = {depth}",
                "$\\log_{10} \\lambda$ of $J J^\\mathsf{T}$" if row == 2 else "",
                "probability per decade" if column == 0 else "",
                loc="upper left",
            )
    tops = figure.add_subplot(grid[:3, 3]), figure.add_subplot(grid[3:, 3])
    largest_values(*tops, depths=(1, 16) if quick else (1, 8, 64), width=width)
    return figure


def sample_values(
    setting: tuple[str, str, float, float], depth: int, *, width: int, networks: int, tol: float | None = None
) -> np.ndarray:
    """Return the singular values of random networks of these variances, of shape (networks, width)."""
    activation, kind, weight_variance, bias_variance = setting
    function = {"identity": lambda x: x}.get(activation) or getattr(jax.nn, activation)
    make = gaussian if kind == "gaussian" else initializers.orthogonal
    q = fixed_point(activation, weight_variance=weight_variance, bias_variance=bias_variance)
    sizes = {"depth": depth, "width": width, "q": q, "bias_variance": bias_variance, "tol": tol}
    run = jax.jit(lambda key: end_to_end(key, function, make(math.sqrt(weight_variance)), **sizes))
    return np.array([run(key) for key in jax.random.split(KEY, networks)])


def distribution(
    axes: Any, name: str, setting: tuple[str, str, float, float], depth: int, colour: str, *, width: int, networks: int
) -> None:
    """Draw one density of log10 λ, and write what lies in its atoms."""
    activation, kind, weight_variance, bias_variance = setting
    with np.errstate(divide="ignore"):
        logs = 2 * np.log10(sample_values(setting, depth, width=width, networks=networks)).ravel()
    theory = {"weights": kind, "weight_variance": weight_variance, "bias_variance": bias_variance}
    edge = math.log10(predict_spectrum(activation, depth, **theory).edge)
    atoms = predict_density(activation, depth, np.ones(1), **theory).atoms
    shares, free = [], np.ones(logs.shape, bool)
    for value, share in atoms:
        # A zero comes out as what rounding makes of the largest.
        at = np.abs(logs - math.log10(value)) < 1e-6 if value > 0 else logs < -28
        shares.append((f"{value:.3g}", share, float(np.mean(at))))
        free &= ~at
    low = max(float(np.quantile(logs[free], 0.02)), edge - 20)
    fine = np.linspace(low - 0.03 * (edge - low), edge + 0.06 * (edge - low), 400)
    density = predict_density(activation, depth, 10.0**fine, **theory).density * 10**fine * math.log(10)
    edges = np.linspace(low, edge, 31)
    counts = np.histogram(logs[free], edges)[0]
    axes.bar(
        edges[:-1],
        counts / logs.size / np.diff(edges),
        np.diff(edges),
        align="edge",
        color=colour,
        alpha=0.3,
        label="networks",
    )
    axes.plot(fine, density, color=colour, label="theory")
    top = max(float(np.max(counts / logs.size / np.diff(edges))), float(np.quantile(density, 0.99)))
    axes.set_ylim(0, 1.75 * top)
    for value, expected, found in shares:
        axes.plot([], [], " ", label=f"at $\\lambda$ = {value}: {expected:.0%} ({found:.0%})")
    share = float(np.mean(free & (logs > edges[0])))
    inside = float(np.trapezoid(np.where(fine > low, density, 0), fine))
    largest = 10 ** logs.max()
    print(
        f"  {name}, L = {depth}: {len(logs)} values; share above {10**low:.2g} apart from atoms: theory {inside:.3f}, "
        f"measured {share:.3f}; λ_max {10**edge:.4g}, {largest:.4g} ({largest / 10**edge - 1:+.1%})"
        + "".join(f"; at {value}: {theory:.3f}, {found:.3f}" for value, theory, found in shares)
    )


def largest_values(axes: Any, spread: Any, *, depths: Sequence[int], width: int) -> None:
    """Draw the largest singular value and the variance of λ over depth, for networks whose mean λ is 1."""
    near = critical_point("tanh", bias_variance=1e-6)
    settings = {
        "ReLU, orthogonal": ("relu", "orthogonal", 2.0, 0.0),
        "tanh, Gaussian": ("tanh", "gaussian", near.weight_variance, near.bias_variance),
        "tanh, orthogonal": ("tanh", "orthogonal", near.weight_variance, near.bias_variance),
    }
    for colour, (name, setting) in zip((ORANGE, BLUE, GREEN), settings.items(), strict=True):
        activation, kind, weight_variance, bias_variance = setting
        theory = [
            predict_spectrum(
                activation, depth, weights=kind, weight_variance=weight_variance, bias_variance=bias_variance
            )
            for depth in depths
        ]
        values = [sample_values(setting, depth, width=width, networks=1, tol=2e-3) for depth in depths]
        for panel, what, expected, found in (
            (axes, "s_max", [each.edge**0.5 for each in theory], [each[:, 0].mean() for each in values]),
            (
                spread,
                "variance of λ",
                [each.variance for each in theory],
                [np.mean(np.var(each**2, 1) / np.mean(each**2, 1) ** 2) for each in values],
            ),
        ):
            # Two of the curves nearly coincide.
            panel.plot(depths, expected, color=colour, label=name, linestyle=(0, (4, 4)) if colour == BLUE else "-")
            panel.plot(depths, found, color=colour, **DOTS)
            panel.set(xscale="log", yscale="log", xticks=depths, xticklabels=depths)
            panel.minorticks_off()
            compare(f"{what}, {name}", depths, expected, found)
    axes.set(yticks=(1, 2, 4, 8, 16), yticklabels=(1, 2, 4, 8, 16))
    spread.set_ylim(1e-4, None)
    label(axes, "Largest singular value at criticality", "", "$s_\\mathrm{max}$ of $J$")
    label(spread, "Spread at criticality", "depth $L$ (layers)", "variance of $\\lambda$ over mean²")


def xiao(quick: bool) -> Any:
    """Draw the singular values of convolutional networks over depth, and how correlations decay in them."""
    figure, panels = plt.subplots(1, 3, figsize=(12.5, 4))
    depths = (1, 4, 16) if quick else (1, 2, 4, 8, 16, 32)
    near = critical_point("tanh", bias_variance=1e-6)
    cases = (
        ("Linear convolutions", lambda x: x, 1.0, 0.0, 1.0),
        ("tanh convolutions at criticality", jnp.tanh, near.weight_variance, near.bias_variance, near.q),
    )
    for axes, (title, function, weight_variance, bias_variance, q) in zip(panels, cases, strict=False):
        scale = math.sqrt(weight_variance)
        for colour, name, initializer in (
            (BLUE, "Gaussian", gaussian(scale)),
            (GREEN, "delta-orthogonal", initializers.delta_orthogonal(scale)),
        ):
            sizes = {"q": q, "bias_variance": bias_variance, "size": 4 if quick else 6}
            values = np.array([conv_values(KEY, initializer, function, depth=depth, **sizes) for depth in depths])
            low, middle, high = values[:, -1], np.median(values, 1), values[:, 0]
            axes.fill_between(depths, np.maximum(low, 1e-12), high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(depths, middle, color=colour, marker="o", markersize=4, label=f"{name}: median, range")
            print(f"  {title}, {name}")
            for what, row in (("depth", depths), ("smallest", low), ("median", middle), ("largest", high)):
                print(f"    {what:9}" + "".join(f"{value:11.4g}" for value in row))
        axes.set(xscale="log", yscale="log", ylim=(1e-6, 1e3), xticks=depths, xticklabels=depths)
        axes.minorticks_off()
        label(axes, title, "depth $L$ (layers)", "singular values of $J$", loc="lower left")
    decay_in_convolutions(panels[2], quick)
    return figure


def decay_in_convolutions(axes: Any, quick: bool) -> None:
    """Draw the distance of a correlation from where it settles: convolutional, fully connected and theory."""
    depth = 12
    for colour, weight_variance, first in zip(COLOURS, (1.3, 2.5, 4.0), (0.3, 0.0, 0.8), strict=True):
        setting = {"weight_variance": weight_variance, "bias_variance": 0.05}
        scales = depth_scales("tanh", **setting)
        step = functools.partial(lambda q, setting, c: correlation_map("tanh", c, q=q, **setting), scales.q, setting)
        theory = np.abs(np.array(iterate(step, first, depth)) - scales.c)
        networks = 4 if quick else 30
        dense = walk(KEY, jnp.tanh, networks=networks, width=300, depth=depth, q=scales.q, c=first, **setting).c
        conv = conv_correlations(KEY, scales.q, first, networks=networks, depth=depth, **setting)
        axes.plot(theory, color=colour, label=f"$\\sigma_w^2$ = {weight_variance}, $\\xi_c$ = {scales.xi_c:.1f}")
        axes.plot(np.abs(dense - scales.c), color=colour, **DOTS)
        axes.plot(
            np.abs(conv - scales.c),
            color=colour,
            **{**DOTS, "marker": "s", "markerfacecolor": "white", "markeredgecolor": colour, "markeredgewidth": 1.0},
        )
        for name, values in (("fully connected", dense), ("convolutional", conv)):
            compare(f"|c - c*|, σ_w² = {weight_variance}, {name}", range(depth + 1), theory, np.abs(values - scales.c))
    axes.plot([], [], color=GREY, label="fully connected", **DOTS)
    axes.plot(
        [], [], color=GREY, label="convolutional", linestyle="none", marker="s", markerfacecolor="white", markersize=4.5
    )
    axes.set(yscale="log", ylim=(0.02, 3))
    label(
        axes, "The depth scale is that of a dense net", "layer $\\ell$", "$|c^\\ell - c^*|$", loc="upper right", ncols=2
    )


@functools.partial(jax.jit, static_argnames=("networks", "depth", "size", "channels"))
def conv_correlations(
    key: jax.Array,
    q: float,
    c: float,
    *,
    networks: int,
    depth: int,
    weight_variance: float,
    bias_variance: float,
    size: int = 6,
    channels: int = 48,
) -> jax.Array:
    """Return the mean correlation of two images, layer by layer, in tanh convolutional networks."""
    normal = functools.partial(jax.random.normal, dtype=jnp.float32)

    def cosine(pair: jax.Array) -> jax.Array:
        return jnp.sum(pair[0] * pair[1]) / jnp.sqrt(jnp.sum(pair[0] ** 2) * jnp.sum(pair[1] ** 2))

    def layer(pair: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel_key, bias_key = jax.random.split(key)
        kernel = normal(kernel_key, (3, 3, channels, channels)) * jnp.sqrt(jnp.float32(weight_variance) / channels) / 3
        bias = normal(bias_key, (channels,)) * jnp.sqrt(jnp.float32(bias_variance))
        pair = jnp.stack([circular_conv(jnp.tanh(image), kernel) + bias for image in pair])
        return pair, cosine(pair)

    def network(key: jax.Array) -> jax.Array:
        input_key, *keys = jax.random.split(key, depth + 1)
        common, own = normal(input_key, (2, size, size, channels))
        first, second = common, jnp.float32(c) * common + jnp.sqrt(1 - jnp.float32(c) ** 2) * own
        pair = jnp.sqrt(jnp.float32(q)) * jnp.stack([first, second])
        return jnp.concatenate([cosine(pair)[None], jax.lax.scan(layer, pair, jnp.stack(keys))[1]])

    return jax.lax.map(network, jax.random.split(key, networks)).mean(0)


if __name__ == "__main__":
    draw({"pennington2017": pennington, "xiao2018": xiao}, __doc__.splitlines()[0])
