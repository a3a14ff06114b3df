"""Plain numbers from the states of monitors and clippers, wherever they lie in an optimizer's state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from jaxgrad._checks import message
from jaxgrad._paths import label_names, named_leaves
from jaxgrad.monitoring._history import History, read_history
from jaxgrad.monitoring._monitor import MonitorState, NoiseState

_CLIP_FIELDS = ("count", "norm", "scale", "clipped", "clip_fraction", "angle", "num_nonfinite")


class Clip(NamedTuple):
    """What one clipper did at its last update, in plain Python numbers.

    Each field is a number; a mapping from paths to numbers where the clipper works leaf by leaf; or ``None`` where it
    does not measure it.

    Attributes:
      count: Number of updates it has seen.
      norm: Norm before clipping.
      scale: What the gradient was multiplied by.
      clipped: Whether it was changed.
      clip_fraction: Share of the updates that were changed.
      angle: Angle between the gradient before and after.
      num_nonfinite: Number of updates with a NaN or an infinity.
      leaf_norms: Norm of each leaf before clipping, by path.
    """

    count: Any
    norm: Any
    scale: Any
    clipped: Any
    clip_fraction: Any
    angle: Any
    num_nonfinite: Any
    leaf_norms: Any


class Reading(NamedTuple):
    """What a monitor has recorded, in plain Python numbers.

    Mappings have the layer's path as key, and are empty where the monitor was not asked for the record.

    Attributes:
      step: Number of updates seen; ``None`` where the state holds clippers and no monitor.
      norms: Norm of the last update, by layer.
      global_norm: Norm of the last update over all layers; ``None`` without a monitor.
      param_norms: Norm of the parameters at the last update, by layer.
      update_ratios: Ratio of the two, by layer.
      noise_scale: Gradient-noise scale in examples; inf where the estimated squared norm of the gradient without
        noise is not positive, so that noise hides the gradient. ``None`` before the second finite step, or where not
        asked for.
      quantiles: By layer, quantiles of its finite norms in the window, by probability.
      first_nonfinite: Path of the first layer that had a NaN or an infinity, or ``None``.
      first_nonfinite_step: The update at which it had, counted from 0, or ``None``.
      num_nonfinite: Number of updates with a NaN or an infinity.
      clips: By place in the state, what each clipper did. The same in the reading of every monitor of a state.
      history: The whole run in records, or ``None`` where not asked for.
    """

    step: int | None
    norms: dict[str, float]
    global_norm: float | None
    param_norms: dict[str, float]
    update_ratios: dict[str, float]
    noise_scale: float | None
    quantiles: dict[str, dict[float, float]]
    first_nonfinite: str | None
    first_nonfinite_step: int | None
    num_nonfinite: int
    clips: dict[str, Clip]
    history: History | None = None


def read(opt_state: Any, name: str | None = None) -> Reading:
    """Give what the monitor and the clippers in an optimizer's state have recorded, as plain numbers.

    ``norms[layer] = sqrt(sum |u|²)`` of the last update, and what else :func:`jaxgrad.monitoring.monitor` was asked
    for.

    Args:
      opt_state: The state of any optax optimizer, or a tree that holds one, such as a training state. Chains,
        ``MultiSteps``, ``partition``, ``masked``, ``inject_hyperparams`` and other wrappers are searched. A clipper is
        any NamedTuple with the fields of :class:`jaxgrad.monitoring.Clip`; ``leaf_norms`` may be missing, a tree, or an
        array beside ``leaf_names``.
      name: The monitor to read, where there are several: the name given to it or, without one, its path in
        ``opt_state``. ``None``: the only one.

    Returns:
      A :class:`jaxgrad.monitoring.Reading`. It waits for the step that made the state, and moves some scalars to the
      host.

    Raises:
      ValueError: There is neither a monitor nor a clipper; ``name`` is missing where there are several monitors, or
        unknown; or the state is a batch from ``vmap``: take one member first, with
        ``jax.tree.map(lambda leaf: leaf[i], opt_state)``.
      TypeError: The state is traced: read it outside ``jit``.

    Numerics:
      Numbers that are not finite are given as they are. ``global_norm`` is put together in double precision.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxgrad.monitoring import monitor, read
      >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), monitor(), optax.sgd(0.1))
      >>> _, state = optimizer.update({"w": jnp.array([6.0, 8.0])}, optimizer.init({"w": jnp.zeros(2)}))
      >>> round(read(state).norms["w"], 6)
      1.0

    See also:
      :func:`jaxgrad.monitoring.log` to send it to TensorBoard or Weights & Biases; ``optax.tree.get`` finds one field
      by name.
    """
    readings = readings_by_name(opt_state)
    if name is None:
        if len(readings) == 1:
            return next(iter(readings.values()))
        raise ValueError(
            message("read", "one monitor", f"{len(readings)}: {_listed(readings)}", "pass the name of one, as name=")
        )
    if name not in readings:
        raise ValueError(message("read", "the name of a monitor", repr(name), f"pass one of {_listed(readings)}"))
    return readings[name]


def readings_by_name(opt_state: Any) -> dict[str, Reading]:
    """Read every monitor in a state, by name; one reading with the empty name where there are clippers only."""
    monitors: dict[str, MonitorState] = {}
    clips: dict[str, Clip] = {}
    clip_names: dict[str, list[str]] = {}
    for path, state in _states(opt_state, ()):
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        if not isinstance(state, MonitorState):
            clips[place] = Clip(*(getattr(state, field, None) for field in Clip._fields))
            clip_names[place] = label_names(getattr(state, "leaf_names", ()))
            continue
        name = next(iter(state.label), place)
        if name in monitors:
            raise ValueError(
                message("read", "monitors of different names", f"two named {name!r}", "pass another name= to one")
            )
        if state.noise is not None:
            # The gradients stay where they are.
            state = state._replace(noise=state.noise._replace(previous=None))
        monitors[name] = state
    if not monitors and not clips:
        raise ValueError(
            message(
                "read",
                "the state of an optimizer with a monitor or a clipper",
                f"{type(opt_state).__name__} without one",
                "put jaxgrad.monitoring.monitor() into the chain; give a checkpoint its types back on restoring",
            )
        )
    # Values in lists: a dict would come back with its keys sorted.
    states, values = _fetch((list(monitors.values()), list(clips.values())))
    plain = {place: _plain_clip(clip, clip_names[place]) for place, clip in zip(clips, values, strict=True)}
    if not monitors:
        return {"": Reading(None, {}, None, {}, {}, None, {}, None, None, 0, plain)}
    return {name: _reading(state, plain) for name, state in zip(monitors, states, strict=True)}


def _states(tree: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Find the states of monitors and clippers, with their paths."""
    flat, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: isinstance(node, MonitorState) or _is_clip(node)
    )
    for inner, node in flat:
        if isinstance(node, MonitorState):
            yield (*path, *inner), node
        elif _is_clip(node):
            yield (*path, *inner), node
            # A clipper may wrap an optimizer.
            for field in node._fields:
                if field not in Clip._fields:
                    yield from _states(getattr(node, field), (*path, *inner, jax.tree_util.GetAttrKey(field)))


def _is_clip(node: Any) -> bool:
    return isinstance(node, tuple) and set(_CLIP_FIELDS) <= set(getattr(node, "_fields", ()))


def _fetch(tree: Any) -> Any:
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, Tracer):
            raise TypeError(
                message("read", "a concrete state", "a traced one", "read the state that the jitted step returns")
            )
    return jax.tree.map(np.asarray, jax.device_get(tree))


def _reading(state: MonitorState, clips: dict[str, Clip]) -> Reading:
    _check_single(state.step)
    names = label_names(state.layers)
    first = int(state.first_nonfinite)
    norms = _by_name(names, state.norms)
    return Reading(
        step=int(state.step),
        norms=norms,
        global_norm=math.hypot(*norms.values()),
        param_norms=_by_name(names, state.param_norms),
        update_ratios=_by_name(names, state.update_ratios),
        noise_scale=None if state.noise is None else _noise_scale(state.noise),
        quantiles=_quantiles(state, names),
        first_nonfinite=None if first < 0 else names[first],
        first_nonfinite_step=None if first < 0 else int(state.first_nonfinite_step),
        num_nonfinite=int(state.num_nonfinite),
        clips=clips,
        history=None if state.history is None else read_history(state.history, int(state.step), names),
    )


def _noise_scale(noise: NoiseState) -> float | None:
    if noise.num_steps < 2:
        return None
    return float(noise.trace) / float(noise.square) if noise.square > 0 else math.inf


def _quantiles(state: MonitorState, names: list[str]) -> dict[str, dict[float, float]]:
    if state.window is None:
        return {}
    result = {}
    for name, column in zip(names, np.asarray(state.window, np.float64).T, strict=True):
        finite = column[np.isfinite(column)]
        result[name] = {
            float(key): float(np.quantile(finite, float(key))) if finite.size else math.nan
            for key in state.probabilities
        }
    return result


def _by_name(names: list[str], values: Any) -> dict[str, float]:
    return {} if values is None else dict(zip(names, values.tolist(), strict=True))


def _check_single(count: Any) -> None:
    if np.ndim(count) > 0:
        raise ValueError(
            message(
                "read",
                "the state of one optimizer",
                f"a batch of shape {np.shape(count)}",
                "take one member: jax.tree.map(lambda leaf: leaf[i], opt_state)",
            )
        )


def _plain_clip(clip: Clip, names: list[str]) -> Clip:
    _check_single(clip.count)
    leaf_norms = _by_name(names, clip.leaf_norms) if names else _plain(clip.leaf_norms)
    return Clip(*map(_plain, clip))._replace(leaf_norms=leaf_norms)


def _plain(values: Any) -> Any:
    """Turn scalars into Python numbers, and a tree of them into a mapping by path."""
    if values is None:
        return None
    if isinstance(values, np.ndarray):
        return values.item() if values.ndim == 0 else values.tolist()
    names, leaves, _ = named_leaves(values)
    return {name: _plain(leaf) for name, leaf in zip(names, leaves, strict=True)}


def _listed(readings: Mapping[str, Reading]) -> str:
    return ", ".join(map(repr, readings))
