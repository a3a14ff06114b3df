"""The rules that detectors of training faults have published, on the gradients of the layers in order of depth.

A rule answers at the first step at which it holds. It sees gradients alone, so its answer names no cause:

- :func:`first_to_last`: the ratio of the first layer's gradient norm to the last one's, as in DeepLocalize, UMLAUT and
  AUTOTRAINER;
- :func:`extreme_norms`: a layer whose gradient norm leaves a range;
- :func:`extreme_windows`: a layer whose mean absolute gradient leaves a range for several windows of steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from programs import Case

Verdict = Literal["vanishing", "exploding", "nonfinite", "healthy"]
FIRST, LAST = ("stem", "embed", "input"), ("head",)
STACKS = ("hidden", "blocks")


class Gradients(NamedTuple):
    """The gradients of the weights over a training run; layers stand in order of depth.

    Attributes:
      layers: The weights' paths.
      norms: The norm of each layer's gradient, (steps, layers).
      mean_absolute: The mean of its absolute values, (steps, layers).
      losses: The loss at each step, (steps,).
    """

    layers: tuple[str, ...]
    norms: np.ndarray
    mean_absolute: np.ndarray
    losses: np.ndarray


# ------------------------------------------------------------------ what the rules need


def gradients(case: Case, steps: int = 25, seed: int = 0) -> Gradients:
    """Train for some steps, the first on the case's own batch, and keep what the rules need."""
    order = list(weights(case.params))

    @jax.jit
    def step(params, state, args):
        loss, gradient = jax.value_and_grad(case.loss_fn)(params, *args)
        leaves = {jax.tree_util.keystr(path): g for path, g in jax.tree_util.tree_flatten_with_path(gradient)[0]}
        layers = [leaves[path] if index is None else leaves[path][index] for path, index in order]
        layers = [layer.astype(jnp.float32) for layer in layers]
        norms = jnp.stack([jnp.linalg.norm(layer.ravel()) for layer in layers])
        mean_absolute = jnp.stack([jnp.abs(layer).mean() for layer in layers])
        updates, state = case.optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, (norms, mean_absolute, loss)

    params, state, args, rows = case.params, case.optimizer.init(case.params), case.args, []
    for key in jax.random.split(jax.random.key(seed), steps):
        params, state, row = step(params, state, args)
        rows.append(jax.device_get(row))
        args = case.batches(key)
    norms, mean_absolute, losses = (np.stack(values) for values in zip(*rows, strict=True))
    layers = tuple(path if index is None else f"{path}[{index}]" for path, index in order)
    return Gradients(layers, norms, mean_absolute, losses)


def weights(params: Any) -> list[tuple[str, int | None]]:
    """List the arrays of two axes or more in order of depth, as a path and, in a stack of layers, an index.

    Mappings keep the order in which a network made them, which is the order of depth but for what the names say.
    """
    found = []
    for position, (path, leaf) in enumerate(_leaves(params)):
        name = jax.tree_util.keystr(path)
        if leaf.ndim < 2:
            continue
        rank = 0 if any(word in name for word in FIRST) else 2 if any(word in name for word in LAST) else 1
        stacked = leaf.ndim == 3 and len(path) == 2 and any(word in name for word in STACKS)
        found += [(rank, index or 0, position, name, index) for index in (range(len(leaf)) if stacked else (None,))]
    return [(name, index) for *_, name, index in sorted(found, key=lambda entry: entry[:3])]


def _leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, (*path, jax.tree_util.DictKey(key)))
    else:
        for rest, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            yield (*path, *rest), leaf


# ------------------------------------------------------------------ the rules


def first_to_last(
    found: Gradients, *, low_ratio: float = 1e-3, low_norm: float = 1e-4, high_ratio: float = 70.0
) -> Verdict:
    """Compare the first layer's gradient norm with the last one's."""
    first, last = found.norms[:, 0], found.norms[:, -1]
    vanishing = (first < low_ratio * last) & (first < low_norm)
    return _earliest(found, vanishing, first > high_ratio * last)


def extreme_norms(found: Gradients, *, low: float = 1e-7, high: float = 1e4) -> Verdict:
    """Look for a layer whose gradient norm is out of range."""
    return _earliest(found, (found.norms < low).any(1), (found.norms > high).any(1))


def extreme_windows(
    found: Gradients, *, low: float = 1e-6, high: float = 1e6, window: int = 5, in_a_row: int = 5
) -> Verdict:
    """Look for a layer whose mean absolute gradient is out of range in several windows of steps in a row."""
    count = len(found.losses) // window
    windows = found.mean_absolute[: count * window].reshape(count, window, -1).mean(1)

    def lasting(outside: np.ndarray) -> np.ndarray:
        runs = np.lib.stride_tricks.sliding_window_view(outside, in_a_row, axis=0).all(-1).any(1)
        steps = np.zeros(len(found.losses), bool)
        steps[(np.flatnonzero(runs) + in_a_row) * window - 1] = True
        return steps

    return _earliest(found, lasting(windows < low), lasting(windows > high))


def _earliest(found: Gradients, vanishing: np.ndarray, exploding: np.ndarray) -> Verdict:
    """Return the verdict that holds at the earliest step; what is not finite comes first."""
    nonfinite = ~(np.isfinite(found.losses) & np.isfinite(found.norms).all(1))
    signs: dict[Verdict, np.ndarray] = {"nonfinite": nonfinite, "exploding": exploding, "vanishing": vanishing}
    steps = {verdict: int(np.argmax(sign)) for verdict, sign in signs.items() if sign.any()}
    return min(steps, key=lambda verdict: steps[verdict], default="healthy")


RULES: Mapping[str, Any] = {
    "first-to-last": first_to_last,
    "extreme norms": extreme_norms,
    "extreme windows": extreme_windows,
}
