"""Clipping of entries that are spikes beside the optimizer's own second moment, with resets of its moments."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgrad._checks import message
from jaxgrad._norms import accumulator, is_inexact
from jaxgrad.clipping._nonfinite import OnNonfinite, check_policy, check_transformation, keep_if, update_if
from jaxgrad.clipping._state import SpikeClipState, init_record
from jaxgrad.clipping._step import effect_of_entries, finish, measure, record, usable_leaves
from jaxgrad.clipping._thresholds import Threshold, check_count, check_threshold, threshold_at

_MOMENTS = {"mu", "nu", "trace"}


def spike_aware_clip(
    inner: optax.GradientTransformation,
    *,
    threshold: Threshold = 5000.0,
    reset_every: int = 500,
    warmup_steps: int = 150,
    min_history: int = 20,
    on_nonfinite: OnNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    r"""Wrap an Adam-like optimizer: clip the entries that are spikes, and reset its moments now and then (SPAM).

    .. math:: g_i \leftarrow \mathrm{sign}(g_i) \sqrt{threshold\, \nu_i} \ \text{ where }\ g_i^2 > threshold\, \nu_i

    with :math:`\nu` the optimizer's running mean of :math:`g^2` before this step, not corrected for its start at zero.
    Every ``reset_every`` steps the moments go back to zero, and for ``warmup_steps`` steps from there the updates are
    multiplied by :math:`1 - 0.99 (1 + \cos(\pi k / warmup\_steps)) / 2`, with k the steps since the reset.

    Args:
      inner: An optax optimizer with a second moment in its state under the name ``nu``, once: ``optax.adam``,
        ``adamw``, ``lamb``, ``rmsprop`` and chains with one of them.
      threshold: Ratio of a squared entry to its second moment from which it is a spike: a number of at least 0, a
        scalar array, or a schedule of the step count.
      reset_every: Steps from one reset to the next, at least 0; 0 for no reset. A step that is skipped does not count.
      warmup_steps: Steps of warm-up after a reset, at least 0. There is none at the start of the training.
      min_history: Steps after a reset, and at the start, in which nothing is clipped, at least 1: the second moment is
        not there yet.
      on_nonfinite: What becomes of a step with inf or NaN in it. ``"skip"``: the update is zero and the optimizer's
        state stays. ``"zero"``: such entries become 0. ``"propagate"``: the optimizer's NaN comes out, and its state
        stays. Static.

    Returns:
      An optax transformation with the state :class:`jaxgrad.clipping.SpikeClipState`; extra arguments of ``update`` are
      handed on. ``norm``, ``scale`` and ``angle`` are those of the gradient, not of the update.

    Raises:
      ValueError: A number is negative or NaN, or ``on_nonfinite`` unknown; or, at ``init``, ``inner`` has no ``nu`` in
        its state, more than one, or one with another structure than the parameters.
      TypeError: ``inner`` is no optax transformation, a threshold no scalar, a count no integer, or a leaf complex.

    Numerics:
      An entry whose second moment is still 0 has no history and passes: an embedding of a token not seen since the
      reset would otherwise never move. A reset sets back what holds a ``mu``, ``nu`` or ``trace``, with the count of
      the bias correction beside it; schedules go on counting.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> optimizer = spike_aware_clip(optax.adam(0.1), min_history=1)
      >>> state = optimizer.init(jnp.zeros(1))
      >>> for size in (1.0, 1000.0):
      ...     updates, state = optimizer.update(jnp.array([size]), state)
      >>> round(float(state.norm * state.scale), 3)
      2.236

    References:
      :cite:p:`huang2025spam`, with the defaults given there. Its moments are reset while the count of the bias
      correction goes on; ours starts again with them.

    See also:
      :func:`jaxgrad.clipping.clip_by_zscore`, which looks at the whole gradient.
    """
    name = "spike_aware_clip"
    check_transformation(name, inner)
    check_threshold(name, "threshold", threshold)
    check_count(name, "reset_every", reset_every)
    check_count(name, "warmup_steps", warmup_steps)
    check_count(name, "min_history", min_history, least=1)
    check_policy(name, on_nonfinite)
    inner = optax.with_extra_args_support(inner)

    def init(params) -> Any:
        inner_state = inner.init(params)
        _second_moment(inner_state, jax.tree.structure(params))
        return SpikeClipState(
            **init_record(params),
            spike_fraction=jnp.zeros((), jnp.float32),
            since_reset=jnp.zeros((), jnp.int32),
            num_resets=jnp.zeros((), jnp.int32),
            inner_state=inner_state,
        )

    def update(updates, state, params=None, **extra_args):
        for leaf in jax.tree.leaves(updates):
            if jnp.iscomplexobj(leaf):
                raise TypeError(message(name, "real gradients", f"a leaf of dtype {leaf.dtype}", "clip by norm"))
        seen = measure(name, updates, state, on_nonfinite)
        due = (state.since_reset >= reset_every) & (jnp.asarray(reset_every) > 0)
        since_reset = jnp.where(due, 0, state.since_reset)
        num_resets = state.num_resets + due.astype(jnp.int32)
        template = jax.tree.unflatten(seen.treedef, seen.leaves) if params is None else params
        inner_state = _reset_if(due, state.inner_state, inner.init(template))

        ready = since_reset >= min_history
        root = jnp.sqrt(threshold_at(threshold, state.count, jnp.float32))
        moments = _second_moment(inner_state, seen.treedef)

        def limit(leaf, moment):
            return root.astype(accumulator(leaf)) * jnp.sqrt(moment.astype(accumulator(leaf)))

        def spikes(leaf, moment):
            return ready & (moment > 0) & (jnp.abs(leaf).astype(accumulator(leaf)) > limit(leaf, moment))

        def clip_spikes(leaves):
            return [
                jnp.where(spikes(leaf, moment), jnp.sign(leaf) * limit(leaf, moment).astype(leaf.dtype), leaf)
                if is_inexact(leaf)
                else leaf
                for leaf, moment in zip(leaves, moments, strict=True)
            ]

        before = usable_leaves(seen)
        counted = [(leaf, moment) for leaf, moment in zip(before, moments, strict=True) if is_inexact(leaf)]
        num_spikes = sum((jnp.sum(spikes(*pair), dtype=jnp.float32) for pair in counted), jnp.zeros((), jnp.float32))
        num_entries = sum(leaf.size for leaf, _ in counted)
        clipped = num_spikes > 0
        scale, angle = effect_of_entries(seen, clip_spikes, clipped)
        leaves = clip_spikes(before)
        updates = finish(seen, leaves)
        if on_nonfinite == "skip":
            updates, new_inner_state = update_if(seen.usable, inner, updates, inner_state, params, extra_args)
        else:
            updates, new_inner_state = inner.update(updates, inner_state, params, **extra_args)
            new_inner_state = keep_if(seen.usable, new_inner_state, inner_state)
        progress = jnp.minimum(since_reset / jnp.maximum(jnp.asarray(warmup_steps), 1), 1).astype(jnp.float32)
        warming = (num_resets > 0) & (since_reset < warmup_steps)
        factor = jnp.where(warming, 1 - 0.99 * (1 + jnp.cos(math.pi * progress)) / 2, 1.0)
        written = record(
            state,
            seen,
            scale=scale,
            clipped=clipped,
            angle=angle,
            spike_fraction=num_spikes / max(num_entries, 1),
            since_reset=since_reset + 1,
            num_resets=num_resets,
        )
        return _times(updates, factor), written._replace(inner_state=new_inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _times(updates: Any, factor: jax.Array) -> Any:
    return jax.tree.map(
        lambda leaf: (
            (leaf.astype(accumulator(leaf)) * factor.astype(accumulator(leaf))).astype(leaf.dtype)
            if is_inexact(leaf)
            else leaf
        ),
        updates,
    )


def _holds_moments(node: Any) -> bool:
    return bool(_MOMENTS.intersection(getattr(node, "_fields", ())))


def _reset_if(due: jax.Array, state: Any, fresh: Any) -> Any:
    """Set what holds moments back to its start, and leave schedules and the rest as they are."""
    return jax.tree.map(
        lambda node, start: keep_if(due, start, node) if _holds_moments(node) else node,
        state,
        fresh,
        is_leaf=_holds_moments,
    )


def _second_moment(inner_state: Any, treedef: Any) -> list[Any]:
    nodes = jax.tree.leaves(inner_state, is_leaf=_holds_moments)
    found = [node.nu for node in nodes if "nu" in getattr(node, "_fields", ())]
    if len(found) != 1 or jax.tree.structure(found[0]) != treedef:
        raise ValueError(
            message(
                "spike_aware_clip",
                "an inner optimizer with one second moment, nu, like the parameters",
                f"{len(found)} of them",
                "wrap optax.adam or another optimizer that has one, and wrap it inside of optax.partition or masked",
            )
        )
    return jax.tree.leaves(found[0])
