"""What becomes of a step with inf or NaN in it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from jaxgrad._checks import message
from jaxgrad._norms import is_inexact
from jaxgrad.clipping._norms import global_norm

OnNonfinite = Literal["skip", "zero", "propagate"]


class SkipNonfiniteState(NamedTuple):
    """State of :func:`jaxgrad.clipping.skip_nonfinite`.

    Attributes:
      count: Steps seen, int32.
      num_nonfinite: Steps so far that had a non-finite entry and were skipped, int32.
      num_consecutive: How many of the last steps were skipped in a row, int32; 0 after a finite one.
      skipped: Whether the last step was skipped, a boolean.
      inner_state: State of the wrapped optimizer.
    """

    count: Int[Array, ""]
    num_nonfinite: Int[Array, ""]
    num_consecutive: Int[Array, ""]
    skipped: Bool[Array, ""]
    inner_state: Any


def skip_nonfinite(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Skip the steps of a whole optimizer whose gradients hold inf or NaN.

    ``update, state = inner(gradient, state)`` where every entry is finite, else ``0, state``: neither the parameters
    nor the optimizer's moments, counts and schedules move.

    Args:
      inner: Any optax transformation; extra arguments of ``update`` are handed on to it.

    Returns:
      An optax transformation with the state :class:`jaxgrad.clipping.SkipNonfiniteState`.

    Raises:
      TypeError: ``inner`` is no optax transformation.

    Numerics:
      Skips for as long as it takes; a run that only skips shows in ``num_consecutive``. Looks at the gradients that
      come in, not at what ``inner`` makes of them. Works inside ``lax.scan`` and ``vmap``. A branch, so the updates are
      written to memory in between, which the ``on_nonfinite`` of a clipper spares.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> optimizer = skip_nonfinite(optax.sgd(1.0))
      >>> state = optimizer.init(jnp.ones(2))
      >>> updates, state = optimizer.update(jnp.array([1.0, jnp.nan]), state)
      >>> updates.tolist(), int(state.num_consecutive)
      ([0.0, 0.0], 1)

    See also:
      ``optax.apply_if_finite``, which lets the NaN through after ``max_consecutive_errors``; the ``on_nonfinite`` of
      every clipper, which keeps the NaN from what follows in the chain, but lets adam's moments decay at that step.
    """
    check_transformation("skip_nonfinite", inner)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        return SkipNonfiniteState(
            count=jnp.zeros((), jnp.int32),
            num_nonfinite=jnp.zeros((), jnp.int32),
            num_consecutive=jnp.zeros((), jnp.int32),
            skipped=jnp.zeros((), jnp.bool_),
            inner_state=inner.init(params),
        )

    def update(updates, state, params=None, **extra_args):
        finite = jnp.isfinite(global_norm(updates))
        updates, inner_state = update_if(finite, inner, updates, state.inner_state, params, extra_args)
        skipped = jnp.logical_not(finite)
        return updates, SkipNonfiniteState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            num_nonfinite=state.num_nonfinite + skipped.astype(jnp.int32),
            num_consecutive=jnp.where(finite, 0, optax.safe_increment(state.num_consecutive)),
            skipped=skipped,
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def update_if(
    usable: Array, inner: Any, updates: Any, inner_state: Any, params: Any, extra_args: dict[str, Any]
) -> tuple[Any, Any]:
    """Run an optimizer at a usable step, and else leave its state and return zeros."""

    def run(updates, inner_state, params):
        return inner.update(updates, inner_state, params, **extra_args)

    def skip(updates, inner_state, params):
        shapes, _ = jax.eval_shape(run, updates, inner_state, params)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), inner_state

    # Not a choice between old and new state: XLA would copy both, where a branch writes in place.
    return jax.lax.cond(usable, run, skip, updates, inner_state, params)


def keep_if(usable: Array, new: Any, old: Any) -> Any:
    """Take the new tree at a usable step, and else the old one."""
    return jax.tree.map(lambda new, old: jnp.where(usable, new, old), new, old)


def zero_unless(usable: Array, tree: Any) -> Any:
    """Replace the floating leaves by 0 at a step that is not usable."""
    return jax.tree.map(lambda leaf: jnp.where(usable, leaf, 0) if is_inexact(leaf) else leaf, tree)


def check_policy(function: str, on_nonfinite: Any) -> None:
    """Refuse an unknown policy."""
    if on_nonfinite not in ("skip", "zero", "propagate"):
        raise ValueError(
            message(
                function,
                "on_nonfinite 'skip', 'zero' or 'propagate'",
                repr(on_nonfinite),
                "leave on_nonfinite out to skip such steps",
            )
        )


def check_transformation(function: str, inner: Any) -> None:
    """Refuse what is no optax transformation."""
    if not (callable(getattr(inner, "init", None)) and callable(getattr(inner, "update", None))):
        raise TypeError(
            message(function, "an optax transformation", repr(inner), f"call {function}(optax.adam(1e-3)), say")
        )
