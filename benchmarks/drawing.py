"""How the figures of the papers are drawn, and what is printed beside them."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"  # of Okabe and Ito, told apart by anyone
COLOURS = (BLUE, ORANGE, GREEN)
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 1.6,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
}
DOTS = {"linestyle": "none", "marker": "o", "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.5}
KEY = jax.random.key(0)


def compare(name: str, x: Sequence[float], theory: Sequence[float], measured: Sequence[float]) -> None:
    """Print what a curve's dots show."""
    theory, measured = np.asarray(theory, np.float64), np.asarray(measured, np.float64)
    gap = np.abs(measured - theory)
    print(f"  {name}: largest deviation {np.max(gap):.2g}, relative {np.max(gap / np.abs(theory)):.1%}")
    for label, values in (("at", x), ("theory", theory), ("measured", measured)):
        print(f"    {label:9}" + "".join(f"{value:11.4g}" for value in values))


def label(axes: Any, title: str, x: str, y: str, **legend: Any) -> None:
    """Name a panel and its axes."""
    axes.set(title=title, xlabel=x, ylabel=y)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**legend)


def iterate(step: Callable[[float], float], value: float, count: int) -> list[float]:
    """Return a value and what repeating a step makes of it."""
    values = [value]
    for _ in range(count):
        values.append(step(values[-1]))
    return values


def draw(figures: Mapping[str, Callable[[bool], Any]], description: str) -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", nargs="?", help="where to write (default: a temporary folder)")
    parser.add_argument("--quick", action="store_true", help="fewer networks, narrower and less deep")
    parser.add_argument("--only", choices=figures, help="draw one of the figures")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="figures-"))
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    with plt.rc_context(STYLE):
        for name, make in figures.items():
            if arguments.only in (None, name):
                print(f"{name}")
                figure = make(arguments.quick)
                figure.savefig(folder / f"{name}.png")
                plt.close(figure)
                print(f"  {folder / name}.png, {time.perf_counter() - begin:.0f} s", flush=True)
