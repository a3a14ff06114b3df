"""The states of the clippers. A NamedTuple cannot inherit, so the shared fields stand in each."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxgrad._paths import Labels, as_labels, named_leaves


class ClipState(NamedTuple):
    """What a clipper saw and did; every clipper's state has these fields.

    Attributes:
      count: Steps seen, int32.
      norm: Global norm of what came in at the last step, float32, before any clipping. Of a step with a non-finite
        entry inf or NaN; under ``on_nonfinite="zero"`` the norm of the finite entries.
      scale: Norm after over norm before, float32: the factor, where all was scaled by one. 1 for a zero gradient, 0 for
        a skipped step.
      clipped: Whether the last step was clipped, a boolean. A skipped step was not.
      clip_fraction: Fraction of all steps so far that were clipped, float32.
      angle: Angle between the gradient before and after, float32, in radians; 0 where it only became shorter.
      num_nonfinite: Steps so far that had a non-finite entry, int32.
      leaf_norms: Norm of each leaf of what came in, float32 of shape (leaves,); 0 for a leaf that is not floating.
      leaf_names: Path of each leaf, the only key of a mapping each, so that it is part of the structure.
    """

    count: Int[Array, ""]
    norm: Float[Array, ""]
    scale: Float[Array, ""]
    clipped: Bool[Array, ""]
    clip_fraction: Float[Array, ""]
    angle: Float[Array, ""]
    num_nonfinite: Int[Array, ""]
    leaf_norms: Float[Array, " leaves"]
    leaf_names: Labels


class QuantileClipState(NamedTuple):
    """State of :func:`jaxgrad.clipping.clip_by_quantile`: the fields of ``ClipState``, and its history.

    Attributes:
      count: As in ``ClipState``, like all fields up to ``leaf_names``.
      norm: See above.
      scale: See above.
      clipped: See above.
      clip_fraction: See above.
      angle: See above.
      num_nonfinite: See above.
      leaf_norms: See above.
      leaf_names: See above.
      history: The last norms, a ring of shape (window,), float32.
      num_recorded: Norms recorded so far, int32; the next one goes to ``num_recorded % window``.
    """

    count: Int[Array, ""]
    norm: Float[Array, ""]
    scale: Float[Array, ""]
    clipped: Bool[Array, ""]
    clip_fraction: Float[Array, ""]
    angle: Float[Array, ""]
    num_nonfinite: Int[Array, ""]
    leaf_norms: Float[Array, " leaves"]
    leaf_names: Labels
    history: Float[Array, " window"]
    num_recorded: Int[Array, ""]


class ZScoreClipState(NamedTuple):
    """State of :func:`jaxgrad.clipping.clip_by_zscore`: the fields of ``ClipState``, and its history.

    Attributes:
      count: As in ``ClipState``, like all fields up to ``leaf_names``.
      norm: See above.
      scale: See above.
      clipped: See above.
      clip_fraction: See above.
      angle: See above.
      num_nonfinite: See above.
      leaf_norms: See above.
      leaf_names: See above.
      mean: Running mean of the clipped norms, float32.
      deviation: Their running standard deviation, float32.
      num_recorded: Norms recorded so far, int32.
    """

    count: Int[Array, ""]
    norm: Float[Array, ""]
    scale: Float[Array, ""]
    clipped: Bool[Array, ""]
    clip_fraction: Float[Array, ""]
    angle: Float[Array, ""]
    num_nonfinite: Int[Array, ""]
    leaf_norms: Float[Array, " leaves"]
    leaf_names: Labels
    mean: Float[Array, ""]
    deviation: Float[Array, ""]
    num_recorded: Int[Array, ""]


class HistoryClipState(NamedTuple):
    """State of :func:`jaxgrad.clipping.adaptive_clip_by_history`: the fields of ``ClipState``, and its history.

    Attributes:
      count: As in ``ClipState``, like all fields up to ``leaf_names``.
      norm: See above.
      scale: See above.
      clipped: See above.
      clip_fraction: See above.
      angle: See above.
      num_nonfinite: See above.
      leaf_norms: See above.
      leaf_names: See above.
      leaf_averages: Running average of each leaf's clipped norm, float32 of shape (leaves,); 0 for a leaf that had no
        gradient yet.
      num_recorded: Steps recorded so far, int32.
    """

    count: Int[Array, ""]
    norm: Float[Array, ""]
    scale: Float[Array, ""]
    clipped: Bool[Array, ""]
    clip_fraction: Float[Array, ""]
    angle: Float[Array, ""]
    num_nonfinite: Int[Array, ""]
    leaf_norms: Float[Array, " leaves"]
    leaf_names: Labels
    leaf_averages: Float[Array, " leaves"]
    num_recorded: Int[Array, ""]


class SpikeClipState(NamedTuple):
    """State of :func:`jaxgrad.clipping.spike_aware_clip`: the fields of ``ClipState``, and the wrapped optimizer's.

    Attributes:
      count: As in ``ClipState``, like all fields up to ``leaf_names``.
      norm: See above.
      scale: See above.
      clipped: See above.
      clip_fraction: See above.
      angle: See above.
      num_nonfinite: See above.
      leaf_norms: See above.
      leaf_names: See above.
      spike_fraction: Fraction of the entries that were spikes at the last step, float32.
      since_reset: Steps taken since the moments were last at zero, int32.
      num_resets: Resets so far, int32.
      inner_state: State of the wrapped optimizer.
    """

    count: Int[Array, ""]
    norm: Float[Array, ""]
    scale: Float[Array, ""]
    clipped: Bool[Array, ""]
    clip_fraction: Float[Array, ""]
    angle: Float[Array, ""]
    num_nonfinite: Int[Array, ""]
    leaf_norms: Float[Array, " leaves"]
    leaf_names: Labels
    spike_fraction: Float[Array, ""]
    since_reset: Int[Array, ""]
    num_resets: Int[Array, ""]
    inner_state: Any


class PerExampleClipState(NamedTuple):
    """State of :func:`jaxgrad.clipping.per_example_clip`: the fields of ``ClipState``, of the mean over the batch.

    Attributes:
      count: As in ``ClipState``, like all fields up to ``leaf_names``.
      norm: Global norm of the mean of the gradients that came in.
      scale: Norm of the mean of the clipped gradients over ``norm``, without the noise.
      clipped: Whether any example was clipped.
      clip_fraction: Fraction of the steps so far in which any was.
      angle: Angle between the mean gradient before and after, without the noise.
      num_nonfinite: Steps so far that had a non-finite entry.
      leaf_norms: Norm of each leaf of the mean gradient.
      leaf_names: As in ``ClipState``.
      example_fraction: Fraction of the examples of the last step that were clipped, float32.
      key: Random key of the next step's noise; None without noise.
    """

    count: Int[Array, ""]
    norm: Float[Array, ""]
    scale: Float[Array, ""]
    clipped: Bool[Array, ""]
    clip_fraction: Float[Array, ""]
    angle: Float[Array, ""]
    num_nonfinite: Int[Array, ""]
    leaf_norms: Float[Array, " leaves"]
    leaf_names: Labels
    example_fraction: Float[Array, ""]
    key: PRNGKeyArray | None


def init_record(params: Any) -> dict[str, Any]:
    """Make the shared fields for a first step, each an array of its own, so that a state can be donated."""
    names, leaves, _ = named_leaves(params)
    return {
        "count": jnp.zeros((), jnp.int32),
        "norm": jnp.zeros((), jnp.float32),
        "scale": jnp.ones((), jnp.float32),
        "clipped": jnp.zeros((), jnp.bool_),
        "clip_fraction": jnp.zeros((), jnp.float32),
        "angle": jnp.zeros((), jnp.float32),
        "num_nonfinite": jnp.zeros((), jnp.int32),
        "leaf_norms": jnp.zeros(len(leaves), jnp.float32),
        "leaf_names": as_labels(names),
    }
