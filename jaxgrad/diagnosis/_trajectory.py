"""The path of training along the directions in which it moved most."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Shaped

from jaxgrad._checks import message
from jaxgrad._inputs import check_weights
from jaxgrad._norms import is_inexact, product_dtype, widest
from jaxgrad._paths import named_leaves


class Trajectory(NamedTuple):
    """The path that t snapshots of parameters take along k directions.

    Attributes:
      coordinates: Shape (t, k); where each snapshot lies along the directions, seen from the origin.
      explained_variance_ratio: Shape (k,); share of the path's variance along each direction.
      random_walk_ratio: Shape (k,); the share that a random walk of as many steps explains there in many dimensions.
      walk_correlation: Shape (k,); how closely each coordinate follows in time that of a random walk, a cosine: 0 to 1.
      distances: Shape (t,); how far each snapshot lies from the plane, or what the directions span through the origin.
      origin: The last snapshot that is finite; its coordinates are 0.
      directions: A tree like a snapshot, whose leaves have a leading axis of k: orthonormal over all leaves together.
        ``None`` in place of leaves that are no floating-point arrays.
    """

    coordinates: Float[Array, "t k"]
    explained_variance_ratio: Float[Array, " k"]
    random_walk_ratio: Float[Array, " k"]
    walk_correlation: Float[Array, " k"]
    distances: Float[Array, " t"]
    origin: Any
    directions: Any


def trajectory_pca(
    snapshots: Any,
    num_components: int = 2,
    *,
    stacked: bool = False,
    weights: Shaped[Array | np.ndarray, " t"] | None = None,
) -> Trajectory:
    r"""Compute the directions in which parameters moved most during training, and the path along them.

    .. math::
      K_{ij} = \langle \theta_i - \bar\theta,\; \theta_j - \bar\theta \rangle, \qquad
      K u_c = \lambda_c u_c, \qquad v_c = \lambda_c^{-1/2} \sum_i u_{ic}\, (\theta_i - \bar\theta), \qquad
      z_{ic} = \langle \theta_i - \theta_t,\; v_c \rangle

    K is t × t, summed leaf by leaf: nothing of the square of the number of parameters is made, and no leaf is flattened
    together with another, so that sharded parameters stay where they are.

    **A random walk looks like this, too.** In many dimensions its first two components explain 61 % and 15 % of its
    variance, and draw a parabola; further ones draw Lissajous curves. With equal weights component c explains

    .. math:: \frac{\sigma_c}{\sum_j \sigma_j}, \quad \sigma_c = \frac{1}{4 \sin^2(\pi c / 2t)}, \qquad
      \text{in the limit } \frac{6}{\pi^2 c^2}.

    ``random_walk_ratio`` holds these, and ``walk_correlation`` says how far each coordinate follows the walk's cosine.
    A share far above that of the walk, or a correlation far below 1, is what training did, and not this artefact.

    Args:
      snapshots: The parameters at t ≥ 2 times, in order: a sequence of trees of one structure, or one tree whose leaves
        have a leading axis of t where ``stacked``.
      num_components: k, from 1 to t - 1. Static.
      stacked: Whether ``snapshots`` is one tree. Static.
      weights: Shape (t,), at least 0: how much each snapshot counts, such as the number of steps since the last;
        ``None`` for all alike. One of weight 0 gets coordinates and has no say in the directions.

    Returns:
      The trajectory, in float32, or float64 where a leaf is.

    Raises:
      TypeError: ``snapshots`` is no sequence where it is not stacked, or ``num_components`` no integer.
      ValueError: Snapshots differ in structure or shape; there are fewer than two, or none has a floating-point leaf;
        ``num_components`` is out of range; or, for concrete arrays, a snapshot is not finite or a weight is negative.

    Numerics:
      Squares of differences are summed about the mean and in units of the largest, so neither large parameters nor
      small steps cost digits. A component whose variance is under t rounding units of the largest is noise: its
      direction, coordinates and share are 0. ``distances`` are right to about 1e-3 of the length of the path in
      float32. Under ``jit`` a snapshot with a NaN or an infinity takes no part, and its own coordinates and distance
      are NaN. The sign of a direction is such that the snapshot farthest from the mean along it, the first of equals,
      lies on the positive side. No gradient flows.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.diagnosis import trajectory_pca
      >>> snapshots = [{"w": jnp.array([3.0, 4.0]) * t, "b": jnp.zeros(2)} for t in (2.0, 1.0, 0.0)]
      >>> trajectory = trajectory_pca(snapshots, 1)
      >>> trajectory.coordinates.round(3).tolist(), trajectory.directions["w"].round(3).tolist()
      ([[10.0], [5.0], [0.0]], [[0.6..., 0.8...]])

    References:
      :cite:p:`li2018visualizing`, section 7.2, for the directions, seen from the last parameters as there;
      :cite:p:`antognini2018pca` for what a random walk looks like.

    See also:
      :func:`jaxgrad.diagnosis.trajectory_surface` for the loss over the plane, and
      :func:`jaxgrad.diagnosis.plot_trajectory`; :func:`jaxgrad.decomposition.pca` for data in one array.
    """
    name = "trajectory_pca"
    leaves, treedef, num_snapshots = _stack(name, snapshots, stacked)
    _check_components(name, num_components, num_snapshots)
    moving = [jnp.asarray(leaf) for leaf in leaves if _moves(leaf)]
    if not moving:
        raise ValueError(
            message(name, "floating-point parameters", f"{len(leaves)} leaves without any", "pass the parameters")
        )
    dtype = widest(moving)
    weights = check_weights(name, weights, jnp.zeros((num_snapshots, 1), dtype))
    finite = _finite(moving)
    if not isinstance(finite, Tracer) and not bool(finite.all()):
        bad, first = int(jnp.sum(~finite)), int(jnp.argmin(finite))
        raise ValueError(
            message(
                name,
                "finite parameters",
                f"{bad} of {num_snapshots} snapshots with a NaN or an infinity, the first number {first}",
                "leave them out: up to where training diverged the path can be drawn",
            )
        )
    mass = jnp.ones(num_snapshots, dtype) if weights is None else weights
    fit = _decompose(moving, jnp.where(finite & (mass > 0) & jnp.isfinite(mass), mass, 0), finite, num_components)
    coordinates, ratio, walk_ratio, correlation, distances, anchor, directions = fit
    directions = iter(directions)
    constant = [leaf[anchor] if hasattr(leaf, "dtype") else leaf for leaf in leaves]
    return Trajectory(
        coordinates=coordinates,
        explained_variance_ratio=ratio,
        random_walk_ratio=walk_ratio,
        walk_correlation=correlation,
        distances=distances,
        origin=jax.tree.unflatten(treedef, constant),
        directions=jax.tree.unflatten(treedef, [next(directions) if _moves(leaf) else None for leaf in leaves]),
    )


def trajectory_point(trajectory: Trajectory, coordinates: Float[Array, " k"] | Sequence[float]) -> Any:
    r"""Compute the parameters at a point of the plane of a trajectory.

    .. math:: \theta = \theta_t + \sum_c z_c v_c

    Args:
      trajectory: From :func:`jaxgrad.diagnosis.trajectory_pca`.
      coordinates: One number a direction.

    Returns:
      A tree like a snapshot, in its dtypes; leaves that are no floating-point arrays are those of the origin.

    Raises:
      ValueError: There are more or fewer coordinates than directions.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.diagnosis import trajectory_pca, trajectory_point
      >>> trajectory = trajectory_pca([jnp.array([3.0, 4.0]), jnp.array([0.0, 0.0])], 1)
      >>> trajectory_point(trajectory, [10.0]).round(3).tolist()
      [6.0..., 8.0]

    References:
      :cite:p:`li2018visualizing`, section 7.2.
    """
    point = jnp.asarray(coordinates, trajectory.coordinates.dtype)
    expected = trajectory.coordinates.shape[-1:]
    if point.shape != expected:
        remedy = "pass one number a direction; 0 is where training ended"
        raise ValueError(message("trajectory_point", f"coordinates of shape {expected}", f"{point.shape}", remedy))
    origins, treedef = jax.tree.flatten(trajectory.origin)
    directions = treedef.flatten_up_to(trajectory.directions)
    return treedef.unflatten(map(partial(_moved, point), origins, directions))


def check_count(function: str, name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(message(function, f"an integer {name}", repr(value), "pass an int"))
    if value < low:
        raise ValueError(message(function, f"{name} of at least {low}", repr(value), "pass more"))


def _check_components(function: str, num_components: Any, num_snapshots: int) -> None:
    check_count(function, "num_components", num_components, 1)
    if num_components >= num_snapshots:
        expected = f"num_components under {num_snapshots}, the number of snapshots"
        raise ValueError(message(function, expected, repr(num_components), "take more snapshots, or fewer components"))


def _stack(function: str, snapshots: Any, stacked: bool) -> tuple[list[Any], Any, int]:
    """Return leaves with a leading axis of time, the structure of one snapshot, and how many there are."""
    if stacked:
        names, leaves, treedef = named_leaves(snapshots)
        lengths = {name: leaf.shape[:1] for name, leaf in zip(names, leaves, strict=True) if hasattr(leaf, "dtype")}
        if len(set(lengths.values())) != 1 or () in lengths.values():
            expected = "leaves with a leading axis of one length"
            got = ", ".join(f"{name!r}: {length}" for name, length in list(lengths.items())[:6]) or "no arrays"
            raise ValueError(message(function, expected, got, "stack the snapshots, or pass them as a list"))
        (count,) = next(iter(lengths.values()))
    else:
        if isinstance(snapshots, str) or not isinstance(snapshots, Sequence) or hasattr(snapshots, "_fields"):
            remedy = "pass a list of the parameters at each time, or stacked=True where leaves have an axis of time"
            raise TypeError(message(function, "a sequence of snapshots", type(snapshots).__name__, remedy))
        count = len(snapshots)
        if not count:
            raise ValueError(message(function, "at least two snapshots", "none", "keep the parameters while training"))
        names, first, treedef = named_leaves(snapshots[0])
        rows = [first]
        for number, snapshot in enumerate(snapshots[1:], 1):
            _, others, other_def = named_leaves(snapshot)
            remedy = "pass parameters of one model; stacked=True is for one tree whose leaves have an axis of time"
            if other_def != treedef:
                raise ValueError(
                    message(function, f"snapshots like {treedef}", f"number {number}: {other_def}", remedy)
                )
            for name, mine, other in zip(names, first, others, strict=True):
                if _kind(mine) != _kind(other):
                    got = f"number {number}, leaf {name!r}: {_kind(other)}"
                    raise ValueError(message(function, f"snapshots like the first, {_kind(mine)}", got, remedy))
            rows.append(others)
        columns = zip(*rows, strict=True)
        leaves = [jnp.stack(column) if hasattr(column[0], "dtype") else column[-1] for column in columns]
    if count < 2:
        raise ValueError(message(function, "at least two snapshots", f"{count}", "keep the parameters while training"))
    return leaves, treedef, count


def _kind(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else type(leaf)


def _moves(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and is_inexact(leaf)


@jax.jit
def _finite(leaves: list[Array]) -> Array:
    """Tell which snapshots are finite."""
    each = [jnp.all(jnp.isfinite(leaf).reshape(leaf.shape[0], -1), axis=1) for leaf in leaves]
    return jnp.all(jnp.stack(each), axis=0)


@partial(jax.jit, static_argnames="num_components")
def _decompose(leaves: list[Array], mass: Array, finite: Array, num_components: int) -> tuple[Any, ...]:
    """Diagonalize the products of the deviations from the mean."""
    count, dtype = mass.shape[0], mass.dtype
    anchor = count - 1 - jnp.argmax(finite[::-1])
    share = mass / jnp.where(jnp.any(mass > 0), jnp.sum(mass), 1)
    rows = []
    for leaf in leaves:
        wide = lax.stop_gradient(leaf).astype(product_dtype(leaf)).reshape(count, -1)
        away = jnp.where(finite[:, None], wide - wide[anchor][None], 0)
        mean = jnp.tensordot(share.astype(away.dtype), away, axes=1, precision=lax.Precision.HIGHEST)
        rows.append(jnp.where(finite[:, None], away - mean[None], 0))
    peak = jnp.max(jnp.stack([jnp.max(jnp.abs(row), initial=0).astype(dtype) for row in rows]))
    unit = jnp.where((peak > 0) & jnp.isfinite(peak), peak, 1)
    rows = [row / unit.astype(row.dtype) for row in rows]
    products = jnp.zeros((count, count), dtype)
    for row in rows:
        product = jnp.matmul(row, row.conj().T, precision=lax.Precision.HIGHEST)
        products += product.real.astype(dtype)

    root = jnp.sqrt(share)
    place = jnp.arange(count)
    walk = jnp.minimum(place[:, None], place[None]).astype(dtype) / count
    walk = walk - (walk @ share)[:, None]
    walk = walk - (share @ walk)[None]
    both = jnp.stack([products, walk]) * (root[:, None] * root[None])[None]
    # One call for both: two that do not wait for each other may wait for one another's threads.
    values, vectors = jnp.linalg.eigh(both)
    values, vectors = values[:, ::-1], vectors[:, :, ::-1]
    values = jnp.where(values > count * jnp.finfo(dtype).eps * values[:, :1], values, 0)
    totals = jnp.trace(both, axis1=1, axis2=2)[:, None]
    ratios = jnp.where(values > 0, values / jnp.where(totals > 0, totals, 1), 0)[:, :num_components]
    overlap = jnp.abs(jnp.sum(vectors[0] * vectors[1], axis=0))[:num_components]

    top, kept = values[0, :num_components], values[0, :num_components] > 0
    lengths = jnp.sqrt(jnp.where(kept, top, 1))
    weights = jnp.where(kept[None], root[:, None] * vectors[0, :, :num_components] / lengths[None], 0)
    scores = jnp.matmul(products, weights, precision=lax.Precision.HIGHEST)
    farthest = jnp.argmax(jnp.abs(scores), axis=0)
    sign = jnp.where(jnp.take_along_axis(scores, farthest[None], axis=0)[0] < 0, -1, 1).astype(dtype)
    scores, weights = scores * sign[None], weights * sign[None]
    coordinates = scores - scores[anchor][None]
    squares = jnp.diag(products)
    squares = squares - 2 * products[anchor] + squares[anchor] - jnp.sum(coordinates**2, axis=1)
    distances = jnp.sqrt(jnp.maximum(squares, 0)).at[anchor].set(0)
    directions = [
        jnp.matmul(weights.T.astype(row.dtype), row, precision=lax.Precision.HIGHEST).reshape(-1, *leaf.shape[1:])
        for leaf, row in zip(leaves, rows, strict=True)
    ]
    coordinates = jnp.where(finite[:, None], coordinates * unit, jnp.nan)
    distances = jnp.where(finite, distances * unit, jnp.nan)
    return coordinates, ratios[0], ratios[1], jnp.where(kept, overlap, 0), distances, anchor, directions


def _moved(point: Array, origin: Any, direction: Any) -> Any:
    if direction is None:
        return origin
    wide = product_dtype(direction)
    step = jnp.tensordot(point.astype(wide), direction.astype(wide), axes=1, precision=lax.Precision.HIGHEST)
    return (origin.astype(wide) + step).astype(origin.dtype)
