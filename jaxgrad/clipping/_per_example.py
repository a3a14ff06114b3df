"""Clipping of every example's gradient by itself, with noise for differential privacy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray

from jaxgrad._checks import message
from jaxgrad._norms import accumulator, is_inexact, leaf_norms, product_dtype, total_norm, unit_norms, widest
from jaxgrad.clipping._nonfinite import OnNonfinite, check_policy
from jaxgrad.clipping._state import PerExampleClipState, init_record
from jaxgrad.clipping._step import Measured, check_structure, effect_of_entries, record, scale_to
from jaxgrad.clipping._thresholds import Threshold, check_threshold, threshold_at


def per_example_clip(
    max_norm: Threshold,
    *,
    noise_multiplier: Threshold = 0.0,
    key: PRNGKeyArray | None = None,
    on_nonfinite: OnNonfinite = "skip",
) -> optax.GradientTransformation:
    r"""Clip the gradient of each example, take the mean over the batch, and add noise (DP-SGD).

    .. math:: g \leftarrow \frac{1}{B} \left( \sum_{b=1}^{B} g_b \min(1, max\_norm / \|g_b\|)
       + noise\_multiplier\ max\_norm\ \varepsilon \right), \quad \varepsilon \sim N(0, I)

    The norm is that of one example over all leaves. What comes in has a leading axis of B examples on every leaf, as
    from ``jax.vmap(jax.grad(loss), in_axes=(None, 0))``; what goes out has it no more. So this is the first link of a
    chain, and stands inside of ``optax.MultiSteps`` only if the mean of the parts is what you want.

    Args:
      max_norm: Largest norm of one example: a number of at least 0, a scalar array, or a schedule of the step count.
      noise_multiplier: Standard deviation of the noise in the sum, over ``max_norm``: likewise. 0 adds none.
      key: Random key of the noise, which lives in the state and is split at every step. Needed for any noise.
      on_nonfinite: What becomes of a step with inf or NaN in it, in any example. ``"skip"``: the mean is zero, and not
        noised. ``"zero"``: such entries become 0. ``"propagate"``: the plain mean of what came in. Static. What a step
        with noise does must not hang on one example: take ``"zero"`` for a privacy guarantee.

    Returns:
      An optax transformation with the state :class:`jaxgrad.clipping.PerExampleClipState`.

    Raises:
      ValueError: A number is negative or NaN, noise is asked for without a ``key``, ``on_nonfinite`` is unknown, or, at
        update, the leaves have no common leading axis of at least one example, or, where ``params`` are given,
        another shape than these behind it.
      TypeError: A threshold is no scalar.

    Numerics:
      ``max_norm`` 0 gives zeros, inf the plain mean, which no noise can make private: with both, the noise is inf. Sums
      in float32 for float16 and bfloat16. Integer leaves come back as they are, and None passes. Gradients through the
      update are finite at examples whose gradient is zero.

    Example:
      >>> import jax.numpy as jnp
      >>> clipper = per_example_clip(1.0)
      >>> updates, state = clipper.update(jnp.array([[3.0, 4.0], [0.2, 0.0]]), clipper.init(jnp.zeros(2)))
      >>> [round(x, 3) for x in updates.tolist()], float(state.example_fraction)
      ([0.4, 0.4], 0.5)

    References:
      :cite:p:`abadi2016deep`, Algorithm 1.

    See also:
      ``optax.contrib.differentially_private_aggregate``, which is the same with other random numbers, and
      ``optax.per_example_global_norm_clip``, the sum. Neither computes a privacy budget.
    """
    check_threshold("per_example_clip", "max_norm", max_norm)
    check_threshold("per_example_clip", "noise_multiplier", noise_multiplier)
    check_policy("per_example_clip", on_nonfinite)
    noisy = key is not None
    if not noisy and not (isinstance(noise_multiplier, int | float) and noise_multiplier == 0):
        raise ValueError(
            message("per_example_clip", "a key for the noise", "key=None", "pass key=jax.random.key(0), say")
        )

    def init(params) -> Any:
        # A copy, so that a donated state does not take the caller's key with it.
        return PerExampleClipState(
            **init_record(params),
            example_fraction=jnp.zeros((), jnp.float32),
            key=None if key is None else jnp.copy(key),
        )

    def update(updates, state, params=None):
        leaves, treedef = jax.tree.flatten(updates)
        _check_examples(updates, state, params)
        counted = [index for index, leaf in enumerate(leaves) if is_inexact(leaf)]
        stacks = [leaves[index] for index in counted]
        raw = _example_norms(stacks)
        finite = jnp.all(jnp.isfinite(raw))
        if on_nonfinite == "zero":
            stacks = [jnp.where(jnp.isfinite(stack), stack, 0) for stack in stacks]
            raw = jax.lax.cond(finite, lambda raw, _: raw, lambda _, stacks: _example_norms(stacks), raw, stacks)
            usable = jnp.ones_like(finite)
        else:
            usable = finite
        norms = jnp.where(usable, raw, 0)
        limit = threshold_at(max_norm, state.count, norms.dtype)
        scales = scale_to(norms, limit)
        outside = norms > limit

        safe = stacks if on_nonfinite == "zero" else [jnp.where(usable, stack, 0) for stack in stacks]
        plain = [_mean(stack, jnp.ones_like(scales)) for stack in safe]
        means = [_mean(stack, scales) for stack in safe]
        for index, mean in zip(counted, plain, strict=True):
            leaves[index] = mean
        seen_norms = leaf_norms(leaves)
        bad = jnp.where(usable, 0.0, jnp.nan).astype(seen_norms.dtype)
        seen = Measured(
            leaves=leaves,
            treedef=treedef,
            norms=seen_norms,
            norm=total_norm(seen_norms),
            seen_norms=seen_norms + bad,
            seen_norm=total_norm(seen_norms) + bad,
            usable=usable,
            nonfinite=~finite,
            policy=on_nonfinite,
        )
        after = list(leaves)
        for index, mean in zip(counted, means, strict=True):
            after[index] = mean
        clipped = jnp.any(outside)
        scale, angle = effect_of_entries(seen, lambda _: after, clipped)

        history: dict[str, Any] = {"example_fraction": jnp.mean(outside, dtype=jnp.float32)}
        if noisy:
            history["key"], *keys = jax.random.split(state.key, len(means) + 1)
            multiplier = threshold_at(noise_multiplier, state.count, jnp.float32)
            means = [
                _with_noise(one, mean, jnp.where(usable, multiplier * limit.astype(jnp.float32), 0.0) / norms.size)
                for one, mean in zip(keys, means, strict=True)
            ]
        if on_nonfinite == "propagate":
            means = [jnp.where(usable, mean, _mean(stack, None)) for mean, stack in zip(means, stacks, strict=True)]
        for index, mean in zip(counted, means, strict=True):
            after[index] = mean
        return jax.tree.unflatten(treedef, after), record(
            state, seen, scale=scale, clipped=clipped, angle=angle, **history
        )

    return optax.GradientTransformation(init, update)


def _check_examples(updates: Any, state: Any, params: Any) -> None:
    leaves = jax.tree.leaves(updates)
    check_structure("per_example_clip", updates, state)
    shapes = [jnp.shape(leaf) for leaf in leaves if is_inexact(leaf)]
    sizes = {shape[:1] for shape in shapes}
    fits = params is None or shapes == [
        shape[:1] + jnp.shape(leaf)
        for shape, leaf in zip(shapes, [leaf for leaf in jax.tree.leaves(params) if is_inexact(leaf)], strict=True)
    ]
    if len(sizes) > 1 or () in sizes or (0,) in sizes or not fits:
        raise ValueError(
            message(
                "per_example_clip",
                "a leading axis of examples on every leaf, the same on all",
                f"shapes {shapes}",
                "compute the gradients with jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))",
            )
        )


def _example_norms(stacks: list[Any]) -> Array:
    if not stacks:
        return jnp.zeros(1, jnp.float32)
    norms = unit_norms(stacks, tuple(tuple(range(1, stack.ndim)) for stack in stacks))
    return jax.vmap(total_norm)(jnp.stack([norm.reshape(-1).astype(widest(norms)) for norm in norms], axis=1))


def _mean(stack: Any, scales: Array | None) -> Array:
    dtype = product_dtype(stack)
    if scales is None:
        return jnp.mean(stack.astype(dtype), axis=0).astype(stack.dtype)
    total = jnp.tensordot(scales.astype(dtype), stack.astype(dtype), axes=1, precision="highest")
    return (total / stack.shape[0]).astype(stack.dtype)


def _with_noise(key: Any, mean: Array, deviation: Array) -> Array:
    dtype = accumulator(mean)
    draws = jax.random.normal(key, mean.shape, product_dtype(mean))
    # jax gives a complex normal the variance 1 in all; each part is a coordinate of its own here.
    unit = 2**0.5 if jnp.iscomplexobj(mean) else 1.0
    noise = draws * (deviation.astype(dtype) * unit).astype(draws.dtype)
    return (mean.astype(draws.dtype) + noise).astype(mean.dtype)
