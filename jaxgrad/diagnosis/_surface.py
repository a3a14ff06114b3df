"""The loss over the plane in which training moved most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxgrad._checks import check_number, message
from jaxgrad.diagnosis._trajectory import Trajectory, check_count, trajectory_point


class LossSurface(NamedTuple):
    """A loss over a plane in the space of parameters.

    Attributes:
      x: Shape (n,); coordinates along the first direction.
      y: Shape (n,); along the second.
      losses: Shape (n, n); a row for each of ``y``, a column for each of ``x``.
      components: Which two directions of the trajectory these are.
    """

    x: Float[Array, " n"]
    y: Float[Array, " n"]
    losses: Float[Array, "n n"]
    components: tuple[int, int]


def trajectory_surface(
    loss_fn: Callable[..., Any],
    trajectory: Trajectory,
    *args: Any,
    num_points: int = 25,
    margin: float = 0.25,
    components: tuple[int, int] = (0, 1),
    has_aux: bool = False,
    chunk_size: int = 1,
) -> LossSurface:
    r"""Evaluate a loss on a grid in the plane of a trajectory.

    .. math:: S_{ij} = L(\theta_t + x_j v_a + y_i v_b)

    The plane goes through the last snapshot, so the loss where the path ends is exact. Elsewhere the path runs beside
    the plane, at ``trajectory.distances``: the surface below it is not the loss it had.

    Args:
      loss_fn: The function that was trained, of ``(params, *args)``.
      trajectory: From :func:`jaxgrad.diagnosis.trajectory_pca`.
      *args: Its other arguments, such as a batch. Leaves that are no arrays are constants.
      num_points: n, how many points a side has. Static.
      margin: How far the grid reaches beyond the path on each side, as a share of the path's extent.
      components: Which directions span the plane. Static.
      has_aux: Whether ``loss_fn`` returns ``(loss, aux)``. Static.
      chunk_size: How many points are evaluated side by side; the memory for as many copies of the parameters. Static.

    Returns:
      The losses and where they were taken.

    Raises:
      TypeError: ``loss_fn`` is not callable, or a number has the wrong type.
      ValueError: The loss is not scalar, ``num_points`` is under 2, or the trajectory has no such components.

    Numerics:
      Losses that are not finite are kept as they are. Along a component without extent the grid goes from -1 to 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.diagnosis import trajectory_pca, trajectory_surface
      >>> path = [jnp.array([2.0, 1.0]), jnp.array([1.0, -1.0]), jnp.array([0.0, 0.0])]
      >>> surface = trajectory_surface(lambda w: jnp.sum(w**2), trajectory_pca(path), num_points=3, margin=0.0)
      >>> [round(float(loss), 1) for loss in surface.losses[0]]
      [2.0, 3.1, 6.5]

    References:
      :cite:p:`li2018visualizing`, section 7.2.

    See also:
      :func:`jaxgrad.diagnosis.plot_trajectory`.
    """
    name = "trajectory_surface"
    if not callable(loss_fn):
        raise TypeError(message(name, "a loss of (params, *args)", type(loss_fn).__name__, "pass the loss first"))
    check_count(name, "num_points", num_points, 2)
    check_count(name, "chunk_size", chunk_size, 1)
    check_number(name, "margin", margin, low=0)
    check_plane(name, components, trajectory.coordinates.shape[1])
    x, y = (_side(trajectory.coordinates[:, c], num_points, margin) for c in components)
    grid = jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(-1, 2)
    leaves, treedef = jax.tree.flatten((trajectory.origin, trajectory.directions, args))
    arrays = [leaf if hasattr(leaf, "dtype") else None for leaf in leaves]

    @jax.jit
    def evaluate(arrays: list[Any], grid: Array) -> Array:
        parts = [leaf if array is None else array for leaf, array in zip(leaves, arrays, strict=True)]
        origin, directions, args = treedef.unflatten(parts)
        plane = trajectory._replace(origin=origin, directions=directions)

        def loss(place: Array) -> Array:
            point = jnp.zeros(plane.coordinates.shape[1], plane.coordinates.dtype)
            value = loss_fn(trajectory_point(plane, point.at[jnp.asarray(components)].set(place)), *args)
            value = jnp.asarray(value[0] if has_aux else value)
            if value.shape:
                remedy = "reduce it, or pass has_aux=True where the loss comes first of a pair"
                raise ValueError(message(name, "a scalar loss", f"shape {value.shape}", remedy))
            return value

        return lax.map(loss, grid, batch_size=None if chunk_size == 1 else chunk_size)

    return LossSurface(x, y, evaluate(arrays, grid).reshape(num_points, num_points), (components[0], components[1]))


def check_plane(function: str, components: Any, num_components: int) -> None:
    """Refuse what are not two of a trajectory's components."""
    given = tuple(components) if isinstance(components, Sequence) else ()
    if len(set(given)) != 2 or not all(isinstance(c, int) and 0 <= c < num_components for c in given):
        expected = f"two different components from 0 to {num_components - 1}"
        remedy = (
            "pass such a pair" if num_components > 1 else "fit at least 2 with trajectory_pca(..., num_components=2)"
        )
        raise ValueError(message(function, expected, f"components={components!r}", remedy))


def _side(coordinates: Array, num_points: int, margin: float) -> Array:
    low, high = jnp.nanmin(coordinates), jnp.nanmax(coordinates)
    extent = high - low
    low = jnp.where(extent > 0, low - margin * extent, -1)
    high = jnp.where(extent > 0, high + margin * extent, 1)
    return jnp.linspace(low, high, num_points, dtype=coordinates.dtype)
