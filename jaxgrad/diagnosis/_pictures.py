"""Trajectories, activations and groups as matplotlib figures, which belong to no window and change no global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Int, Shaped

from jaxgrad._checks import message
from jaxgrad.diagnosis._activations import ActivationPCA
from jaxgrad.diagnosis._format import percent
from jaxgrad.diagnosis._groups import GradientGroups
from jaxgrad.diagnosis._plot_text import shown
from jaxgrad.diagnosis._surface import LossSurface, check_plane
from jaxgrad.diagnosis._trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind tell apart; after the last they begin again with another marker.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080")
_MARKERS = "os^Dv*P"
_PATH, _NEUTRAL = "#D55E00", "#808080"
_MOST_COLUMNS = 4
_MOST_LABELS = 20


def plot_trajectory(
    trajectory: Trajectory, surface: LossSurface | None = None, *, components: tuple[int, int] = (0, 1)
) -> Figure:
    """Draw the path of training in the plane of two of its components, over the loss if that is given.

    The path begins at the circle and ends at the star. Each axis says what share of the variance it explains, and what
    a random walk of as many steps would: where the two agree, the curve may be that of a random walk.

    Args:
      trajectory: From :func:`jaxgrad.diagnosis.trajectory_pca`.
      surface: From :func:`jaxgrad.diagnosis.trajectory_surface`. Its components are the ones that are drawn.
      components: Which two to draw without a surface.

    Returns:
      A :class:`matplotlib.figure.Figure`.

    Raises:
      ImportError: If matplotlib is not installed.
      ValueError: The trajectory has no such components.

    Numerics:
      Losses that are not finite are left blank. Their colours are on a logarithmic scale where all are positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.diagnosis import plot_trajectory, trajectory_pca
      >>> figure = plot_trajectory(trajectory_pca([jnp.array([2.0, 1.0]), jnp.array([1.0, -1.0]), jnp.zeros(2)]))
      >>> figure.axes[0].get_xlabel()
      'component 1: 75% of the variance (random walk: 75%)'

    References:
      :cite:p:`li2018visualizing`, section 7.2, for the picture; :cite:p:`antognini2018pca` for the random walk.
    """
    name = "plot_trajectory"
    drawn = components if surface is None else surface.components
    check_plane(name, drawn, trajectory.coordinates.shape[1])
    figure = _figure(name, (6.4, 5.0))
    axes = figure.add_subplot()
    x, y = (np.asarray(trajectory.coordinates[:, c], float) for c in drawn)
    if surface is not None:
        _draw_surface(figure, axes, surface)
    # A pale line under it keeps the path apart from any colour of the surface.
    axes.plot(x, y, color="white", linewidth=3.5, alpha=0.8 if surface is not None else 0.0)
    axes.plot(x, y, color=_PATH, linewidth=1.5, marker="o", markersize=2.5)
    whole = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    for place, marker, size in ((whole[0], "o", 8), (whole[-1], "*", 15)):
        axes.plot(x[place], y[place], marker, color=_PATH, markersize=size, markeredgecolor="white", zorder=3)
    for axis, component in zip((axes.xaxis, axes.yaxis), drawn, strict=True):
        share, walk = (
            percent(float(ratios[component]))
            for ratios in (trajectory.explained_variance_ratio, trajectory.random_walk_ratio)
        )
        axis.set_label_text(f"component {component + 1}: {share} of the variance (random walk: {walk})")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_activations(results: Sequence[ActivationPCA], labels: Int[Array | np.ndarray, " n"] | None = None) -> Figure:
    r"""Draw each layer's activations along their first two components, a panel a layer.

    Args:
      results: From :func:`jaxgrad.diagnosis.activation_pca`.
      labels: Shape (n,); the class of each example, which colours its points, all positions of it alike. Up to 20
        classes are drawn as their numbers.

    Returns:
      A :class:`matplotlib.figure.Figure`. A layer with one component is drawn along a line.

    Raises:
      ImportError: If matplotlib is not installed.
      ValueError: There is no result, or the labels are not one an example.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.diagnosis import activation_pca, plot_activations
      >>> results = activation_pca(lambda w, x: jnp.tanh(x @ w) @ w, jnp.eye(3), jnp.eye(3))
      >>> [axes.get_title() for axes in plot_activations(results, jnp.arange(3)).axes]
      ['params, tanh\n2.0 of 3 dimensions', 'params\n2.0 of 3 dimensions']
    """
    name = "plot_activations"
    if not results:
        raise ValueError(message(name, "results of at least one layer", "none", "call activation_pca first"))
    columns = min(len(results), _MOST_COLUMNS)
    rows = math.ceil(len(results) / columns)
    figure = _figure(name, (2.9 * columns + 0.3, 3.0 * rows + 0.3))
    for number, result in enumerate(results):
        axes = figure.add_subplot(rows, columns, number + 1)
        points = np.asarray(result.coordinates, float)
        classes = None if labels is None else _classes(name, result, np.asarray(labels))
        points = points.reshape(-1, points.shape[-1])
        if points.shape[1] < 2:
            points = np.concatenate([points, np.zeros_like(points)], axis=1)
        _draw_points(axes, points, classes)
        kind = "" if result.activation is None else f", {result.activation}"
        dimension = f"{float(result.effective_dimension):.1f} of {result.num_units} dimensions"
        axes.set_title(f"{shown(result.name, 26)}{kind}\n{dimension}", fontsize="small", parse_math=False)
        axes.set_xlabel(percent(float(result.explained_variance_ratio[0])), fontsize="small")
        if result.explained_variance_ratio.shape[0] > 1:
            axes.set_ylabel(percent(float(result.explained_variance_ratio[1])), fontsize="small")
        axes.set_xticks([])
        axes.set_yticks([])
        # One scale both ways: a direction along which little varies must look thin.
        axes.set_aspect("equal", adjustable="datalim")
    return figure


def plot_groups(groups: GradientGroups, x: str | None = None, y: str | None = None) -> Figure:
    """Draw layers or units by two features of their gradients, coloured by group.

    Args:
      groups: From :func:`jaxgrad.diagnosis.group_by_gradient`.
      x: The feature along the horizontal axis; ``None``: the first.
      y: The one along the vertical axis; ``None``: the second, or the first that is not ``x``.

    Returns:
      A :class:`matplotlib.figure.Figure`. The cross of a group is its centroid.

    Raises:
      ImportError: If matplotlib is not installed.
      ValueError: There is no feature of that name.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxgrad.diagnosis import Signatures, group_by_gradient, plot_groups
      >>> values = jnp.array([[-3.0, 0.0], [0.1, 1.0], [-3.1, 0.0], [0.0, 1.0]])
      >>> signatures = Signatures(tuple("abcd"), ("size", "share"), values, jnp.array([0.1, 0.1]))
      >>> plot_groups(group_by_gradient(jax.random.key(0), signatures, 2)).axes[0].get_ylabel()
      'share'
    """
    name = "plot_groups"
    features = groups.signatures.features
    first = _feature(name, features, x, features[0])
    second = _feature(name, features, y, next((feature for feature in features if feature != first), first))
    figure = _figure(name, (6.4, 4.2))
    axes = figure.add_subplot()
    across, up = (features.index(feature) for feature in (first, second))
    values, centroids = (np.asarray(array, float) for array in (groups.signatures.values, groups.centroids))
    for group, members in enumerate(groups.members):
        mine = values[np.asarray(groups.labels) == group]
        colour, marker = _COLOURS[group % len(_COLOURS)], _MARKERS[group % len(_MARKERS)]
        silhouette = float(groups.silhouettes[group])
        one = shown(members[0], 30) if len(members) == 1 else f"{len(members)} alike"
        label = f"group {group}: {one}, silhouette {silhouette:.2f}"
        axes.plot(mine[:, across], mine[:, up], marker, color=colour, alpha=0.6, markersize=6, label=label)
        place = centroids[group, across], centroids[group, up]
        axes.plot(*place, "+", color=colour, markersize=14, markeredgewidth=2, zorder=3)
    axes.set_xlabel(first, parse_math=False)
    axes.set_ylabel(second, parse_math=False)
    axes.margins(0.08)
    axes.grid(visible=True, color=_NEUTRAL, alpha=0.25, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure


def _figure(function: str, size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        got = f"no usable matplotlib ({error})"
        remedy = 'run pip install "jaxgrad[plots]"; the numbers are there without it'
        raise ImportError(message(function, "matplotlib to be installed", got, remedy)) from error
    return Figure(figsize=size, layout="constrained")


def _draw_surface(figure: Figure, axes: Axes, surface: LossSurface) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, MaxNLocator

    losses = np.ma.masked_invalid(np.asarray(surface.losses, float))
    finite = losses.compressed()
    if not finite.size or finite.min() == finite.max():
        return
    low, high = finite.min(), finite.max()
    if low > 0:
        norm: Any = LogNorm(low, high)
        levels, ticks = np.geomspace(low, high, 21), LogLocator(subs=(1.0, 2.0, 5.0))
    else:
        norm, levels, ticks = None, np.linspace(low, high, 21), MaxNLocator(6)
    levels[[0, -1]] = low, high  # rounding must not leave the extremes blank
    x, y = np.asarray(surface.x, float), np.asarray(surface.y, float)
    filled = axes.contourf(x, y, losses, levels=levels, norm=norm, cmap="viridis")
    axes.contour(x, y, losses, levels=levels[1::2], colors="white", linewidths=0.5, alpha=0.5)
    figure.colorbar(filled, ax=axes, label="loss in the plane", ticks=ticks, format="{x:.3g}")


def _draw_points(axes: Axes, points: np.ndarray, classes: np.ndarray | None) -> None:
    if classes is None:
        axes.plot(points[:, 0], points[:, 1], "o", color=_COLOURS[0], markersize=3, alpha=0.6)
        return
    kinds = np.unique(classes)
    for number, kind in enumerate(kinds):
        mine = points[classes == kind]
        colour = _COLOURS[number % len(_COLOURS)]
        marker = f"${kind}$" if len(kinds) <= _MOST_LABELS else "o"
        axes.plot(mine[:, 0], mine[:, 1], color=colour, linestyle="", marker=marker, markersize=5, markeredgewidth=0.4)


def _classes(function: str, result: ActivationPCA, labels: Shaped[np.ndarray, " n"]) -> np.ndarray:
    """Return the class of each row: that of its example, at every position and step."""
    shape = result.coordinates.shape[:-1]
    fitting = [axis for axis, length in enumerate(shape) if labels.shape == (length,)]
    if not fitting:
        got = f"shape {labels.shape} for {result.name!r}, whose rows are {shape}"
        raise ValueError(message(function, "one label an example", got, "pass the labels of the batch"))
    # Steps of a loop come before the examples, and are rarely as many.
    axis = fitting[0]
    spread = labels.reshape([-1 if place == axis else 1 for place in range(len(shape))])
    return np.broadcast_to(spread, shape).ravel()


def _feature(function: str, features: Sequence[str], wanted: str | None, otherwise: str) -> str:
    if wanted is None:
        return otherwise
    if wanted not in features:
        raise ValueError(
            message(function, f"a feature, one of {', '.join(features)}", repr(wanted), "pass one of these")
        )
    return wanted
