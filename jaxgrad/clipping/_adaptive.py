"""Clipping at a threshold that follows the history of the norms."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgrad.clipping._nonfinite import OnNonfinite, check_policy
from jaxgrad.clipping._state import HistoryClipState, QuantileClipState, ZScoreClipState, init_record
from jaxgrad.clipping._step import as_float32, effect_of_scales, measure, record, scale_to, scaled
from jaxgrad.clipping._thresholds import Threshold, check_count, check_threshold, threshold_at


def clip_by_quantile(
    quantile: Threshold = 0.1,
    *,
    window: int = 1000,
    max_norm: Threshold = math.inf,
    on_nonfinite: OnNonfinite = "skip",
) -> optax.GradientTransformation:
    r"""Clip the global norm to a quantile of the norms seen so far (AutoClip).

    .. math:: g \leftarrow g \min(1, \eta / \|g\|), \quad
       \eta = \min(\mathrm{quantile}(\|g_{t-window+1}\|, \ldots, \|g_t\|), max\_norm)

    with linear interpolation between neighbouring norms. The history holds the norms before clipping, the present one
    included, so the first step is never clipped unless by ``max_norm``.

    Args:
      quantile: From 0 to 1: a number, a scalar array, or a schedule of the step count. The default is the 10th
        percentile of the paper: nine steps in ten are clipped, and all have much the same norm.
      window: How many of the last norms count, at least 1. Static, and sets the size of the state.
      max_norm: Largest norm in any case: a number of at least 0, a scalar array, or a schedule.
      on_nonfinite: What becomes of a step with inf or NaN in it: ``"skip"`` it, ``"zero"`` such entries, or
        ``"propagate"`` it unchanged. The history takes no part of it, or under ``"zero"`` the norm of the rest. Static.

    Returns:
      An optax transformation with the state :class:`jaxgrad.clipping.QuantileClipState`.

    Raises:
      ValueError: ``quantile`` is outside 0 to 1, ``window`` below 1, ``max_norm`` negative or NaN, or ``on_nonfinite``
        unknown.
      TypeError: A threshold is no scalar, or ``window`` no integer. Under ``optax.inject_hyperparams`` name it in
        ``static_args``.

    Numerics:
      As in :func:`jaxgrad.clipping.clip_by_global_norm`. The history is float32.

    Example:
      >>> import jax.numpy as jnp
      >>> clipper = clip_by_quantile(0.5)
      >>> state = clipper.init(jnp.zeros(1))
      >>> for size in (1.0, 2.0, 9.0):
      ...     updates, state = clipper.update(jnp.array([size]), state)
      >>> round(updates.item(), 3)
      2.0

    References:
      :cite:p:`seetharaman2020autoclip`, whose history is that of the whole run; a window keeps the state small and
      forgets the beginning.

    See also:
      :func:`jaxgrad.clipping.clip_by_zscore`, which clips the outliers only.
    """
    check_threshold("clip_by_quantile", "quantile", quantile, above=1)
    check_threshold("clip_by_quantile", "max_norm", max_norm)
    check_count("clip_by_quantile", "window", window, least=1, static=True)
    check_policy("clip_by_quantile", on_nonfinite)

    def init(params) -> Any:
        return QuantileClipState(
            **init_record(params),
            history=jnp.zeros(window, jnp.float32),
            num_recorded=jnp.zeros((), jnp.int32),
        )

    def update(updates, state, params=None):
        del params
        seen = measure("clip_by_quantile", updates, state, on_nonfinite)
        history = state.history.at[state.num_recorded % window].set(as_float32(seen.norm))
        num_recorded = optax.safe_increment(state.num_recorded)
        level = jnp.minimum(threshold_at(quantile, state.count, jnp.float32), 1)
        limit = _masked_quantile(history, jnp.minimum(num_recorded, window), level)
        # The history is float32: a norm of double precision is not above itself, rounded.
        limit = jnp.where(as_float32(seen.norm) > limit, limit, jnp.inf).astype(seen.norm.dtype)
        limit = jnp.minimum(limit, threshold_at(max_norm, state.count, seen.norm.dtype))
        limit = jax.lax.stop_gradient(limit)
        scale = scale_to(seen.norm, limit)
        updates = scaled(seen, scale)
        return updates, record(
            state, seen, scale=scale, clipped=seen.norm > limit, history=history, num_recorded=num_recorded
        )

    return optax.GradientTransformation(init, update)


def _masked_quantile(values: jax.Array, num_valid: jax.Array, level: jax.Array) -> jax.Array:
    """Return the quantile of the first ``num_valid`` values, interpolated linearly."""
    valid = jnp.arange(values.size, dtype=jnp.int32) < num_valid
    ordered = jnp.sort(jnp.where(valid, values, jnp.inf))
    position = level * (num_valid - 1).astype(jnp.float32)
    below = jnp.floor(position).astype(jnp.int32)
    low, high = ordered[below], ordered[jnp.minimum(below + 1, num_valid - 1)]
    return low + (high - low) * (position - below.astype(jnp.float32))


def clip_by_zscore(
    z_threshold: Threshold = 2.5,
    *,
    decay: Threshold = 0.97,
    warmup_steps: int = 25,
    max_norm: Threshold = math.inf,
    eps: Threshold = 1e-6,
    on_nonfinite: OnNonfinite = "skip",
) -> optax.GradientTransformation:
    r"""Clip the global norm where it is an outlier among the last ones (ZClip).

    .. math:: z = (\|g\| - \mu) / \sigma, \quad
       \|g\| \leftarrow \mu + \sigma\, z\_threshold^2 / z \ \text{ where }\ z > z\_threshold

    The larger the outlier, the closer to the mean it is clipped. Then, with the norm after clipping,

    .. math:: \mu \leftarrow decay\, \mu + (1 - decay) \|g\|, \quad
       \sigma^2 \leftarrow decay\, \sigma^2 + (1 - decay) (\|g\| - \mu)^2

    Args:
      z_threshold: Standard deviations above the mean from which a norm is an outlier: a number of at least 0, a scalar
        array, or a schedule of the step count.
      decay: Weight of the past in the running mean and variance, 0 to 1, or a scalar array, or a schedule.
      warmup_steps: Steps, at least 1, that are only clipped to ``max_norm``; their plain mean and variance start the
        running ones. A step that is skipped does not count.
      max_norm: Largest norm in any case: a number of at least 0, a scalar array, or a schedule.
      eps: Smallest deviation over the mean: smaller changes than that are rounding, and no outliers.
      on_nonfinite: What becomes of a step with inf or NaN in it: ``"skip"`` it, ``"zero"`` such entries, or
        ``"propagate"`` it unchanged. The mean and variance take no part of it, or under ``"zero"`` the norm of the
        rest. Static.

    Returns:
      An optax transformation with the state :class:`jaxgrad.clipping.ZScoreClipState`.

    Raises:
      ValueError: A number is negative or NaN, ``decay`` above 1, ``warmup_steps`` below 1, or ``on_nonfinite`` unknown.
      TypeError: A threshold is no scalar, or ``warmup_steps`` no integer.

    Numerics:
      As in :func:`jaxgrad.clipping.clip_by_global_norm`. The deviation is kept, not the variance, so that neither large
      nor small norms leave float32. The floor is ``eps`` times the mean: the unit of the gradient does not matter.

    Example:
      >>> import jax.numpy as jnp
      >>> clipper = clip_by_zscore(2.0, warmup_steps=4)
      >>> state = clipper.init(jnp.zeros(1))
      >>> for size in (1.0, 3.0, 1.0, 3.0, 6.0):
      ...     updates, state = clipper.update(jnp.array([size]), state)
      >>> round(updates.item(), 3)
      3.0

    References:
      :cite:p:`kumar2025zclip`, the reciprocal form, with the defaults given there. It has an absolute ``eps`` in the
      denominator.

    See also:
      :func:`jaxgrad.clipping.clip_by_quantile`; :func:`jaxgrad.clipping.adaptive_clip_by_history`, leaf by leaf.
    """
    name = "clip_by_zscore"
    check_threshold(name, "z_threshold", z_threshold)
    check_threshold(name, "decay", decay, above=1)
    check_threshold(name, "max_norm", max_norm)
    check_threshold(name, "eps", eps)
    check_count(name, "warmup_steps", warmup_steps, least=1)
    check_policy(name, on_nonfinite)

    def init(params) -> Any:
        return ZScoreClipState(
            **init_record(params),
            mean=jnp.zeros((), jnp.float32),
            deviation=jnp.zeros((), jnp.float32),
            num_recorded=jnp.zeros((), jnp.int32),
        )

    def update(updates, state, params=None):
        del params
        seen = measure(name, updates, state, on_nonfinite)
        norm = as_float32(seen.norm)
        warm = state.num_recorded < warmup_steps
        threshold = threshold_at(z_threshold, state.count, jnp.float32)
        spread = jnp.maximum(state.deviation, threshold_at(eps, state.count, jnp.float32) * state.mean)
        excess = norm - state.mean
        outlier = ~warm & (excess > threshold * spread)
        # spread² threshold² / excess, without squaring what may be large.
        reach = threshold * spread * (threshold * spread / jnp.where(outlier, excess, 1))
        limit = jnp.where(outlier, state.mean + reach, jnp.inf).astype(seen.norm.dtype)
        limit = jnp.minimum(limit, threshold_at(max_norm, state.count, seen.norm.dtype))
        limit = jax.lax.stop_gradient(limit)
        scale = scale_to(seen.norm, limit)
        kept = jnp.minimum(norm, as_float32(limit))
        mean, deviation = _running_moments(state, kept, warm, threshold_at(decay, state.count, jnp.float32))
        updates = scaled(seen, scale)
        return updates, record(
            state,
            seen,
            scale=scale,
            clipped=seen.norm > limit,
            mean=mean,
            deviation=deviation,
            num_recorded=optax.safe_increment(state.num_recorded),
        )

    return optax.GradientTransformation(init, update)


def _running_moments(state, norm, warm, decay):
    """Update mean and deviation: with equal weights while warming up, and exponential ones after that."""
    num = (state.num_recorded + 1).astype(jnp.float32)
    keep = jnp.where(warm, 1 - 1 / num, jnp.minimum(decay, 1))
    step = norm - state.mean
    mean = state.mean + (1 - keep) * step
    # With equal weights the variance grows by the product of both distances, before and after.
    distance = jnp.where(warm, jnp.sqrt(keep) * jnp.abs(step), jnp.abs(norm - mean))
    return mean, jnp.hypot(jnp.sqrt(keep) * state.deviation, jnp.sqrt(1 - keep) * distance)


def adaptive_clip_by_history(
    relative_norm: Threshold = 1.05,
    *,
    decay: Threshold = 0.98,
    warmup_steps: int = 100,
    max_norm: Threshold = 1.0,
    on_nonfinite: OnNonfinite = "skip",
) -> optax.GradientTransformation:
    r"""Clip the norm of each leaf to a multiple of its own running average (AdaGC).

    .. math:: g_{leaf} \leftarrow g_{leaf} \min(1, relative\_norm\, \gamma_{leaf} / \|g_{leaf}\|), \quad
       \gamma_{leaf} \leftarrow decay\, \gamma_{leaf} + (1 - decay) \|g_{leaf}\|

    with the norm after clipping in the average. In the first ``warmup_steps`` steps the global norm is clipped to
    ``max_norm`` instead, and :math:`\gamma_{leaf}` is the smallest norm of the leaf so far, after clipping.

    Args:
      relative_norm: Largest norm over the running average: a number of at least 0, a scalar array, or a schedule of the
        step count. A norm grows by the factor ``1 + (1 - decay) (relative_norm - 1)`` a step at most.
      decay: Weight of the past in the average, 0 to 1, or a scalar array, or a schedule.
      warmup_steps: Steps of global clipping, at least 0. A step that is skipped does not count.
      max_norm: Largest global norm in these: a number of at least 0, a scalar array, or a schedule. Not used later.
      on_nonfinite: What becomes of a step with inf or NaN in it: ``"skip"`` it, ``"zero"`` such entries, or
        ``"propagate"`` it unchanged. The averages take no part of it, or under ``"zero"`` the norms of the rest.
        Static.

    Returns:
      An optax transformation with the state :class:`jaxgrad.clipping.HistoryClipState`.

    Raises:
      ValueError: A number is negative or NaN, ``decay`` above 1, ``warmup_steps`` below 0, or ``on_nonfinite`` unknown.
      TypeError: A threshold is no scalar, or ``warmup_steps`` no integer.

    Numerics:
      As in :func:`jaxgrad.clipping.clip_by_global_norm`. A norm of 0 is no history: a leaf behind a layer that starts
      at zero would never move again. It is clipped from its second gradient on.

    Example:
      >>> import jax.numpy as jnp
      >>> clipper = adaptive_clip_by_history(2.0, warmup_steps=1)
      >>> state = clipper.init(jnp.zeros(1))
      >>> for size in (1.0, 9.0):
      ...     updates, state = clipper.update(jnp.array([size]), state)
      >>> round(updates.item(), 3)
      2.0

    References:
      :cite:p:`wang2025adagc`, with the defaults given there.

    See also:
      :func:`jaxgrad.clipping.adaptive_clip`, relative to the parameters instead of the history.
    """
    name = "adaptive_clip_by_history"
    check_threshold(name, "relative_norm", relative_norm)
    check_threshold(name, "decay", decay, above=1)
    check_threshold(name, "max_norm", max_norm)
    check_count(name, "warmup_steps", warmup_steps)
    check_policy(name, on_nonfinite)

    def init(params) -> Any:
        record = init_record(params)
        return HistoryClipState(
            **record,
            leaf_averages=jnp.zeros_like(record["leaf_norms"]),
            num_recorded=jnp.zeros((), jnp.int32),
        )

    def update(updates, state, params=None):
        del params
        seen = measure(name, updates, state, on_nonfinite)
        warm = state.num_recorded < warmup_steps
        relative = threshold_at(relative_norm, state.count, jnp.float32)
        keep = jnp.minimum(threshold_at(decay, state.count, jnp.float32), 1)
        global_limit = threshold_at(max_norm, state.count, seen.norm.dtype)
        global_scale = scale_to(seen.norm, global_limit)
        average = state.leaf_averages
        known = average > 0
        limit = jax.lax.stop_gradient(jnp.where(known, relative * average, jnp.inf).astype(seen.norms.dtype))
        clipped = jnp.where(warm, seen.norm > global_limit, jnp.any(seen.norms > limit))
        scales = jnp.where(warm, global_scale, scale_to(seen.norms, limit))
        kept = as_float32(seen.norms * scales)
        later = jnp.where(warm, jnp.minimum(average, kept), keep * average + (1 - keep) * kept)
        idle = jnp.where(warm, average, keep * average)
        averages = jnp.where(kept > 0, jnp.where(known, later, kept), idle)
        scale, angle = effect_of_scales(seen.norms, seen.norm, scales)
        return scaled(seen, scales), record(
            state,
            seen,
            scale=scale,
            clipped=clipped,
            angle=angle,
            leaf_averages=averages,
            num_recorded=optax.safe_increment(state.num_recorded),
        )

    return optax.GradientTransformation(init, update)
