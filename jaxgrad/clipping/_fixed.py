"""Clipping at a threshold that is given: by value, by leaf, by the global norm, and smoothly."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgrad._checks import message
from jaxgrad._norms import accumulator, is_inexact
from jaxgrad.clipping._nonfinite import OnNonfinite, check_policy
from jaxgrad.clipping._state import ClipState, init_record
from jaxgrad.clipping._step import (
    effect_of_entries,
    effect_of_scales,
    finish,
    measure,
    record,
    scale_to,
    scaled,
    usable_leaves,
)
from jaxgrad.clipping._thresholds import Threshold, check_threshold, threshold_at


def clip(max_value: Threshold, *, on_nonfinite: OnNonfinite = "skip") -> optax.GradientTransformation:
    r"""Clip every entry of the gradient to an interval around zero.

    .. math:: g_i \leftarrow \min(\max(g_i, -max\_value), max\_value)

    Changes the direction, which ``angle`` in the state measures.

    Args:
      max_value: Largest absolute value of an entry: a number of at least 0, a scalar array, or a schedule of the step
        count. A traced one may change without a new compilation.
      on_nonfinite: What becomes of a step with inf or NaN in it. ``"skip"``: the update is all zero. ``"zero"``: such
        entries become 0 and the rest is clipped. ``"propagate"``: it passes unchanged. Static.

    Returns:
      An optax transformation with the state :class:`jaxgrad.clipping.ClipState`.

    Raises:
      ValueError: ``max_value`` is negative or NaN, or ``on_nonfinite`` unknown.
      TypeError: ``max_value`` is no scalar, or a leaf is complex, which has no order: take ``clip_by_norm``.

    Numerics:
      0 gives zeros, inf the gradient bit for bit. A traced negative ``max_value`` counts as 0. Leaves keep their dtype;
      integer leaves and None pass.

    Example:
      >>> import jax.numpy as jnp
      >>> clipper = clip(1.0)
      >>> updates, state = clipper.update(jnp.array([3.0, -0.5]), clipper.init(jnp.zeros(2)))
      >>> updates.tolist(), round(float(state.angle), 3)
      ([1.0, -0.5], 0.298)

    References:
      :cite:p:`mikolov2012statistical`, for recurrent networks.

    See also:
      ``optax.clip``; Keras ``clipvalue``; ``torch.nn.utils.clip_grad_value_``. They pass NaN on and clip inf.
    """
    check_threshold("clip", "max_value", max_value)
    check_policy("clip", on_nonfinite)

    def init(params) -> Any:
        return ClipState(**init_record(params))

    def update(updates, state, params=None):
        del params
        for leaf in jax.tree.leaves(updates):
            if jnp.iscomplexobj(leaf):
                raise TypeError(message("clip", "real gradients", f"a leaf of dtype {leaf.dtype}", "use clip_by_norm"))
        seen = measure("clip", updates, state, on_nonfinite)

        def limit(leaf):
            return threshold_at(max_value, state.count, accumulator(leaf)).astype(leaf.dtype)

        def clip_entries(leaves):
            clipped = []
            for leaf in leaves:
                if is_inexact(leaf):
                    # Not jnp.clip: a subnormal number is below any limit but zero, and else passes as it is.
                    outside = (jnp.abs(leaf) > limit(leaf)) | (limit(leaf) == 0)
                    leaf = jnp.where(outside, jnp.sign(leaf) * limit(leaf), leaf)
                clipped.append(leaf)
            return clipped

        before = usable_leaves(seen)
        changed = jnp.zeros((), jnp.bool_)
        for leaf in before:
            if is_inexact(leaf):
                changed |= jnp.any(jnp.abs(leaf) > limit(leaf))
        scale, angle = effect_of_entries(seen, clip_entries, changed)
        leaves = clip_entries(before)
        return finish(seen, leaves), record(state, seen, scale=scale, clipped=changed, angle=angle)

    return optax.GradientTransformation(init, update)


def clip_by_norm(max_norm: Threshold, *, on_nonfinite: OnNonfinite = "skip") -> optax.GradientTransformation:
    r"""Clip the norm of every leaf by itself.

    .. math:: g_{leaf} \leftarrow g_{leaf} \min(1, max\_norm / \|g_{leaf}\|)

    Keeps the direction within a leaf, not that of the whole gradient.

    Args:
      max_norm: Largest Euclidean norm of a leaf: a number of at least 0, a scalar array, or a schedule of the step
        count.
      on_nonfinite: What becomes of a step with inf or NaN in it, in any leaf: ``"skip"`` it, ``"zero"`` such entries,
        or ``"propagate"`` it unchanged. Static.

    Returns:
      An optax transformation with the state :class:`jaxgrad.clipping.ClipState`; ``clipped`` says whether any leaf was.

    Raises:
      ValueError: ``max_norm`` is negative or NaN, or ``on_nonfinite`` unknown.
      TypeError: ``max_norm`` is no scalar.

    Numerics:
      As in :func:`jaxgrad.clipping.clip_by_global_norm`.

    Example:
      >>> import jax.numpy as jnp
      >>> clipper = clip_by_norm(1.0)
      >>> gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}
      >>> updates, state = clipper.update(gradients, clipper.init(gradients))
      >>> [round(float(value), 3) for value in (*updates["a"], *updates["b"])]
      [0.6, 0.8, 0.5]

    See also:
      Keras ``clipnorm``; ``tf.clip_by_norm``. ``optax.clip_by_block_rms`` divides by the root of the size.
    """
    check_threshold("clip_by_norm", "max_norm", max_norm)
    check_policy("clip_by_norm", on_nonfinite)

    def init(params) -> Any:
        return ClipState(**init_record(params))

    def update(updates, state, params=None):
        del params
        seen = measure("clip_by_norm", updates, state, on_nonfinite)
        limit = threshold_at(max_norm, state.count, seen.norms.dtype)
        scales = scale_to(seen.norms, limit)
        clipped = jnp.any(seen.norms > limit)
        scale, angle = effect_of_scales(seen.norms, seen.norm, scales)
        return scaled(seen, scales), record(state, seen, scale=scale, clipped=clipped, angle=angle)

    return optax.GradientTransformation(init, update)


def clip_by_global_norm(max_norm: Threshold, *, on_nonfinite: OnNonfinite = "skip") -> optax.GradientTransformation:
    r"""Clip the norm of the whole gradient.

    .. math:: g \leftarrow g \min(1, max\_norm / \|g\|)

    with the Euclidean norm over all leaves. Keeps the direction.

    Args:
      max_norm: Largest norm: a number of at least 0, a scalar array, or a schedule of the step count, which starts at
        0. A traced one, such as ``optax.inject_hyperparams`` makes, may change without a new compilation.
      on_nonfinite: What becomes of a step with inf or NaN in it. ``"skip"``: the update is all zero. ``"zero"``: such
        entries become 0 and the rest is clipped. ``"propagate"``: it passes unchanged. Static. Each is counted in the
        state; to hold the optimizer's own state too, wrap it in :func:`jaxgrad.clipping.skip_nonfinite`.

    Returns:
      An optax transformation with the state :class:`jaxgrad.clipping.ClipState`, the norm of every leaf in it.

    Raises:
      ValueError: ``max_norm`` is negative or NaN, or ``on_nonfinite`` unknown; or, at update, the gradients are not a
        tree like the one given to ``init``.
      TypeError: ``max_norm`` is no scalar.

    Numerics:
      0 gives zeros, inf the gradient bit for bit. A traced negative ``max_norm`` counts as 0. The norm is right over
      the whole range of the dtype, see :func:`jaxgrad.clipping.global_norm`; it is only the factor that underflows,
      at a norm of 8e37 ``max_norm`` in float32. One read of the gradients, and one multiplication by a scalar that
      XLA fuses into the optimizer's. Gradients through the update are finite: the identity at zero. None flow through
      the state. Leaves keep their dtype; integer leaves and None pass; complex ones count with :math:`|z|^2` and are
      scaled.

    Example:
      >>> import jax.numpy as jnp
      >>> clipper = clip_by_global_norm(1.0)
      >>> gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
      >>> updates, state = clipper.update(gradients, clipper.init(gradients))
      >>> [round(float(x), 3) for x in (updates["a"][0], updates["b"][0], state.norm, state.scale)]
      [0.6, 0.8, 5.0, 0.2]

    References:
      :cite:p:`pascanu2013difficulty`, Algorithm 1.

    See also:
      ``optax.clip_by_global_norm``; Keras ``global_clipnorm``; ``torch.nn.utils.clip_grad_norm_``, which adds 1e-6 to
      the norm and returns it. ``tf.clip_by_global_norm`` turns everything to NaN at a non-finite entry.
    """
    check_threshold("clip_by_global_norm", "max_norm", max_norm)
    check_policy("clip_by_global_norm", on_nonfinite)

    def init(params) -> Any:
        return ClipState(**init_record(params))

    def update(updates, state, params=None):
        del params
        seen = measure("clip_by_global_norm", updates, state, on_nonfinite)
        limit = threshold_at(max_norm, state.count, seen.norm.dtype)
        scale = scale_to(seen.norm, limit)
        updates = scaled(seen, scale)
        return updates, record(state, seen, scale=scale, clipped=seen.norm > limit)

    return optax.GradientTransformation(init, update)


def smooth_clip(
    max_norm: Threshold, *, power: float = 2.0, on_nonfinite: OnNonfinite = "skip"
) -> optax.GradientTransformation:
    r"""Shrink the whole gradient smoothly, so that its norm stays below a limit.

    .. math:: g \leftarrow g \left(1 + (\|g\| / max\_norm)^{power}\right)^{-1/power}

    A small gradient passes nearly unchanged, a large one gets the norm ``max_norm``, and nothing has a kink in between.
    With ``power`` 1 it is :math:`g\,max\_norm / (\|g\| + max\_norm)`; with ``power`` to infinity,
    :func:`jaxgrad.clipping.clip_by_global_norm`.

    Args:
      max_norm: The limit: a number of at least 0, a scalar array, or a schedule of the step count.
      power: How sharply it turns, a number above 0 that is finite. Static. 2 makes the gradient of the pseudo-Huber
        loss out of that of the squared one.
      on_nonfinite: What becomes of a step with inf or NaN in it: ``"skip"`` it, ``"zero"`` such entries, or
        ``"propagate"`` it unchanged. Static.

    Returns:
      An optax transformation with the state :class:`jaxgrad.clipping.ClipState`; ``clipped`` says whether the norm was
      above ``max_norm``, although every step is scaled.

    Raises:
      ValueError: ``max_norm`` is negative or NaN, ``power`` not positive and finite, or ``on_nonfinite`` unknown.
      TypeError: ``max_norm`` is no scalar.

    Numerics:
      As in :func:`jaxgrad.clipping.clip_by_global_norm`: 0 gives zeros, inf the gradient bit for bit; the derivative at
      a zero gradient is the identity. The norm is at most ``max_norm`` up to rounding.

    Example:
      >>> import jax.numpy as jnp
      >>> clipper = smooth_clip(1.0, power=1.0)
      >>> updates, state = clipper.update(jnp.array([3.0]), clipper.init(jnp.zeros(1)))
      >>> updates.tolist()
      [0.75]

    References:
      :cite:p:`zhang2020why` show that the step with ``power`` 1 and the hard one are within a factor of two of each
      other, and why both are faster than plain gradient descent.

    See also:
      :func:`jaxgrad.clipping.clip_by_global_norm`. Normalized gradient descent has another numerator.
    """
    check_threshold("smooth_clip", "max_norm", max_norm)
    check_policy("smooth_clip", on_nonfinite)
    if not 0 < power < float("inf"):
        raise ValueError(
            message("smooth_clip", "a power above 0, finite", repr(power), "use clip_by_global_norm for a hard limit")
        )

    def init(params) -> Any:
        return ClipState(**init_record(params))

    def update(updates, state, params=None):
        del params
        seen = measure("smooth_clip", updates, state, on_nonfinite)
        limit = threshold_at(max_norm, state.count, seen.norm.dtype)
        above = seen.norm > limit
        # The ratio of the smaller to the larger, so that its power cannot overflow.
        smaller, larger = jnp.minimum(seen.norm, limit), jnp.maximum(seen.norm, limit)
        usable = (smaller > 0) & jnp.isfinite(larger)
        ratio = jnp.where(usable, smaller, 0) / jnp.where(usable, larger, 1)
        factor = (1 + jnp.where(usable, ratio, 1) ** power) ** (-1 / power)
        scale = jnp.where(usable, factor * jnp.where(above, ratio, 1), jnp.where(above, 0, 1))
        updates = scaled(seen, scale)
        return updates, record(state, seen, scale=scale, clipped=above)

    return optax.GradientTransformation(init, update)
