"""A whole run in a bounded number of records: when they are full, neighbours merge and each covers twice the steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxgrad._checks import message
from jaxgrad._norms import total_norm


class MeanState(NamedTuple):
    """Means of what was counted, one an entry.

    Attributes:
      mean: The mean; 0 where nothing was counted.
      count: How many steps were, int32.
    """

    mean: Float[Array, "*records"]
    count: Int[Array, "*records"]


class HistoryState(NamedTuple):
    """The records of a run, the steps ``[i span, (i + 1) span)`` in record ``i``.

    The last of the ``columns`` is the norm over all layers, the others are the layers.

    Attributes:
      span: How many steps a record covers, int32.
      log_norms: Mean log of the norms that are finite and not 0, of shape (records, columns).
      max_norms: The largest finite norm, of shape (records, columns).
      num_nonfinite: Number of steps whose norm was not finite, int32 of shape (records, columns).
      log_ratios: Mean log of the update ratios, of shape (records, layers), or ``None``.
      losses: Mean of the finite losses, of shape (records,).
      num_nonfinite_losses: Number of losses that were not, int32 of shape (records,).
    """

    span: Int[Array, ""]
    log_norms: MeanState
    max_norms: Float[Array, "records columns"]
    num_nonfinite: Int[Array, "records columns"]
    log_ratios: MeanState | None
    losses: MeanState
    num_nonfinite_losses: Int[Array, " records"]


class History(NamedTuple):
    """A run in records of equal length, in plain Python numbers, oldest first.

    Mappings have the layer's path as key. A geometric mean is over the steps whose norm is finite and not 0: where
    there is none it is 0 if a step's norm was 0, else NaN.

    Attributes:
      starts: First step of each record, counted from 0.
      num_steps: Number of steps in each: all alike but the last, which may not be full.
      norms: Geometric mean of the norms, by layer.
      max_norms: Largest finite norm, by layer.
      num_zero: Number of steps whose norm was 0, by layer.
      num_nonfinite: Number of steps whose norm was not finite, by layer.
      global_norms: Geometric mean of the norm over all layers.
      max_global_norms: The largest of it that is finite.
      update_ratios: Geometric mean of the update ratios, by layer; empty where not asked for.
      losses: Mean of the finite losses; NaN where there was none.
      num_nonfinite_losses: Number of losses that were not finite.
    """

    starts: list[int]
    num_steps: list[int]
    norms: dict[str, list[float]]
    max_norms: dict[str, list[float]]
    num_zero: dict[str, list[int]]
    num_nonfinite: dict[str, list[int]]
    global_norms: list[float]
    max_global_norms: list[float]
    update_ratios: dict[str, list[float]]
    losses: list[float]
    num_nonfinite_losses: list[int]


def init_history(num_records: int, num_layers: int, ratios: bool, dtype: Any) -> HistoryState:
    """Make empty records, each field an array of its own, so that the state can be donated."""

    def integers(*shape: int) -> Array:
        return jnp.zeros(shape, jnp.int32)

    def means(*shape: int) -> MeanState:
        return MeanState(jnp.zeros(shape, dtype), integers(*shape))

    columns = num_layers + 1
    return HistoryState(
        span=jnp.ones((), jnp.int32),
        log_norms=means(num_records, columns),
        max_norms=jnp.zeros((num_records, columns), dtype),
        num_nonfinite=integers(num_records, columns),
        log_ratios=means(num_records, num_layers) if ratios else None,
        losses=means(num_records),
        num_nonfinite_losses=integers(num_records),
    )


def record_step(
    history: HistoryState,
    step: Int[Array, ""],
    norms: Float[Array, " layers"],
    ratios: Float[Array, " layers"] | None,
    loss: Any,
) -> HistoryState:
    """Add one step, in the record it falls into.

    Args:
      history: The records so far.
      step: Number of the step, from 0.
      norms: Norms of the step by layer, NaN or inf where an entry is.
      ratios: Its update ratios by layer, where ``init_history`` has made room.
      loss: Its loss, a scalar, or ``None``.

    Returns:
      The records with it, of the same structure.

    Raises:
      ValueError: The loss is no scalar.
    """
    # Not `step == span * records`: the product overflows before the step does.
    full = step // history.span >= history.max_norms.shape[0]
    history = jax.lax.cond(full, _merge_pairs, lambda history: history, history)
    place = step // history.span
    columns = jnp.append(norms, total_norm(norms)[None])
    finite = jnp.isfinite(columns)
    if ratios is not None and history.log_ratios is not None:
        history = history._replace(log_ratios=_count_logs(history.log_ratios, place, ratios))
    if loss is not None:
        value = _checked_loss(loss).astype(norms.dtype)
        history = history._replace(
            losses=_count(history.losses, place, value, jnp.isfinite(value)),
            num_nonfinite_losses=history.num_nonfinite_losses.at[place].add(_as_count(~jnp.isfinite(value))),
        )
    return history._replace(
        log_norms=_count_logs(history.log_norms, place, columns),
        max_norms=history.max_norms.at[place].max(jnp.where(finite, columns, 0)),
        num_nonfinite=history.num_nonfinite.at[place].add(_as_count(~finite)),
    )


def read_history(history: HistoryState, step: int, layers: list[str]) -> History:
    """Make plain numbers of the records of ``step`` steps, the state's arrays being NumPy's."""
    span = int(history.span)
    starts = list(range(0, step, span))[: len(history.max_norms)]
    num_steps = np.diff([*starts, step])
    used = slice(len(starts))
    counted = history.log_norms.count[used]
    nonfinite = history.num_nonfinite[used]
    zeros = num_steps[:, None] - counted - nonfinite
    norms = _geometric_means(history.log_norms, used, zeros)
    losses = np.where(history.losses.count[used] > 0, history.losses.mean[used], np.nan)

    def by_layer(values: Any) -> dict[str, list[Any]]:
        return {layer: values[:, number].tolist() for number, layer in enumerate(layers)}

    ratios = {}
    if history.log_ratios is not None:
        # Not counted was a ratio of 0: of norms, or of parameters that are all 0; and what is not finite.
        none = num_steps[:, None] - history.log_ratios.count[used] - nonfinite[:, :-1]
        ratios = by_layer(_geometric_means(history.log_ratios, used, none))
    return History(
        starts=starts,
        num_steps=num_steps.tolist(),
        norms=by_layer(norms),
        max_norms=by_layer(history.max_norms[used]),
        num_zero=by_layer(zeros),
        num_nonfinite=by_layer(nonfinite),
        global_norms=norms[:, -1].tolist(),
        max_global_norms=history.max_norms[used, -1].tolist(),
        update_ratios=ratios,
        losses=losses.tolist(),
        num_nonfinite_losses=history.num_nonfinite_losses[used].tolist(),
    )


def _as_count(flags: Bool[Array, "*n"]) -> Int[Array, "*n"]:
    return flags.astype(jnp.int32)


def _count_logs(means: MeanState, place: Int[Array, ""], values: Float[Array, " columns"]) -> MeanState:
    # The log of a subnormal number is that of 0 where XLA flushes them.
    counts = jnp.isfinite(values) & (values >= jnp.finfo(values.dtype).tiny)
    return _count(means, place, jnp.log(jnp.where(counts, values, 1)), counts)


def _count(means: MeanState, place: Int[Array, ""], value: Array, counts: Array) -> MeanState:
    """Move one record's means by a value, where it counts. A sum would lose digits over a long record."""
    count = means.count[place] + _as_count(counts)
    mean = means.mean[place]
    moved = mean + (jnp.where(counts, value, 0) - mean) / jnp.maximum(count, 1).astype(mean.dtype)
    return MeanState(
        mean=means.mean.at[place].set(jnp.where(counts, moved, mean)), count=means.count.at[place].set(count)
    )


def _merge_pairs(history: HistoryState) -> HistoryState:
    """Halve the number of records, and leave the second half empty."""

    def pairs(values: Array) -> tuple[Array, Array]:
        return values[0::2], values[1::2]

    def emptied(values: Array) -> Array:
        return jnp.concatenate([values, jnp.zeros_like(values)])

    def added(values: Array) -> Array:
        return emptied(sum(pairs(values), jnp.zeros_like(values[0::2])))

    def averaged(means: MeanState) -> MeanState:
        (first, second), (few, more) = pairs(means.mean), pairs(means.count)
        share = more.astype(first.dtype) / jnp.maximum(few + more, 1).astype(first.dtype)
        return MeanState(mean=emptied(first + share * (second - first)), count=emptied(few + more))

    return HistoryState(
        span=2 * history.span,
        log_norms=averaged(history.log_norms),
        max_norms=emptied(jnp.maximum(*pairs(history.max_norms))),
        num_nonfinite=added(history.num_nonfinite),
        log_ratios=None if history.log_ratios is None else averaged(history.log_ratios),
        losses=averaged(history.losses),
        num_nonfinite_losses=added(history.num_nonfinite_losses),
    )


def _checked_loss(loss: Any) -> Array:
    loss = jax.lax.stop_gradient(jnp.asarray(loss))
    if loss.ndim != 0 or not jnp.isrealobj(loss):
        raise ValueError(
            message("monitor", "value as a real scalar", f"shape {loss.shape}, {loss.dtype}", "pass value=loss.mean()")
        )
    return loss


def _geometric_means(means: MeanState, used: slice, zeros: np.ndarray) -> np.ndarray:
    values = np.exp(np.asarray(means.mean[used], np.float64))
    return np.where(np.asarray(means.count[used]) > 0, values, np.where(zeros > 0, 0.0, np.nan))
