"""Clipping relative to the parameters, unit by unit, and the rules that say what a unit is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxgrad._checks import message
from jaxgrad._norms import is_inexact, unit_norms, widest
from jaxgrad._paths import Pattern, match_rules, named_leaves
from jaxgrad.clipping._nonfinite import OnNonfinite, check_policy
from jaxgrad.clipping._state import ClipState, init_record
from jaxgrad.clipping._step import effect_of_scales, measure, record, scale_to, scaled
from jaxgrad.clipping._thresholds import Threshold, check_threshold, threshold_at

Axes = int | tuple[int, ...]
Rules = Mapping[Pattern, Axes | None] | Sequence[tuple[Pattern, Axes | None]]


def unitwise_norm(tree: Any, axes: Axes | Rules | None = None) -> Any:
    r"""Compute the norm of each unit of each leaf: of the weights that make one output.

    .. math:: \|w\|_{unit} = \sqrt{\textstyle\sum_{axes} |w|^2}

    Args:
      tree: An array or any pytree of arrays.
      axes: The axes that are summed over. An int or a tuple of ints: for every leaf, ``()`` for the absolute values.
        Rules: as in :func:`jaxgrad.clipping.adaptive_clip`. None: the rules given there as the default. Static.

    Returns:
      A tree like ``tree``, the summed axes kept with size 1; for a leaf with a rule of None, of shape () over all.
      Leaves that are not floating come back as they are.

    Raises:
      ValueError: An axis is out of range, or a rule matches no leaf.

    Numerics:
      As in :func:`jaxgrad.clipping.global_norm`: neither overflows nor underflows; gradient 0 for a unit of zeros.

    Example:
      >>> import jax.numpy as jnp
      >>> unitwise_norm(jnp.array([[3.0, 0.0], [4.0, 2.0]]), axes=0).tolist()
      [[5.0, 2.0]]

    References:
      :cite:p:`brock2021high`.

    See also:
      ``optax.transforms.unitwise_norm``, which guesses the axes from the rank and broadcasts the result.
    """
    names, leaves, treedef = named_leaves(tree)
    every = isinstance(axes, int) or (isinstance(axes, tuple) and all(isinstance(axis, int) for axis in axes))
    rules: Any = [("", axes)] if every and leaves else axes
    chosen = unit_axes("unitwise_norm", names, leaves, rules)
    counted = [index for index, leaf in enumerate(leaves) if is_inexact(leaf)]
    norms = unit_norms([leaves[index] for index in counted], tuple(chosen[index] for index in counted))
    for index, norm in zip(counted, norms, strict=True):
        leaves[index] = norm
    return jax.tree.unflatten(treedef, leaves)


def adaptive_clip(
    max_ratio: Threshold = 0.01,
    *,
    floor: Threshold = 1e-3,
    axes: Rules | None = None,
    on_nonfinite: OnNonfinite = "skip",
) -> optax.GradientTransformation:
    r"""Clip the gradient of each unit to a multiple of the norm of its weights (AGC).

    .. math:: g_{unit} \leftarrow g_{unit} \min\left(1,
       \frac{max\_ratio \max(\|w_{unit}\|, floor)}{\|g_{unit}\|}\right)

    A unit is what makes one output, and which axes of a leaf are summed over for it is decided by the leaf's path.

    Args:
      max_ratio: Largest norm of a unit's gradient over that of its weights: a number of at least 0, a scalar array,
        or a schedule of the step count. The paper takes 0.01 to 0.16, the less the larger the batch.
      floor: Smallest norm a unit is taken to have. Without it a unit that starts at zero, as biases do, would never
        move; with it, its gradient has the norm ``max_ratio * floor`` at most until it has grown.
      axes: Rules, first match first: pairs (or a mapping) of a regular expression, searched for in the leaf's path such
        as ``params/Dense_0/kernel``, and the axes that are summed over: an int or a tuple, ``()`` to clip each entry by
        itself, or None to leave the leaf alone, as the paper does with the last layer. What no rule matches follows the
        default:

        - rank 0 and 1, and every ``bias``: the whole leaf is one unit;
        - ``weight``, as in torch and equinox, with the outputs first: all axes but the first;
        - ``embedding``: all axes but the first, a unit is a token;
        - ``query``, ``key`` and ``value`` kernels of flax, (features, heads, size): axis 0;
        - anything else, such as flax kernels of dense layers (in, out), of convolutions (height, width, in, out) and
          of the output of attention (heads, size, features): all axes but the last.

        Static.
      on_nonfinite: What becomes of a step with inf or NaN in it: ``"skip"`` it, ``"zero"`` such entries, or
        ``"propagate"`` it unchanged. Static.

    Returns:
      An optax transformation with the state :class:`jaxgrad.clipping.ClipState`; its ``update`` needs ``params``.

    Raises:
      ValueError: A number is negative or NaN, a rule matches no leaf or names an axis that the leaf has not, ``params``
        are missing at update, or ``on_nonfinite`` unknown.
      TypeError: A threshold is no scalar.

    Numerics:
      As in :func:`jaxgrad.clipping.clip_by_global_norm`. The norms of the parameters are read at every step too.

    Example:
      >>> import jax.numpy as jnp
      >>> clipper = adaptive_clip(0.5, axes={"head": None})
      >>> params = {"body": jnp.array([[2.0, 4.0]]), "head": jnp.array([[1.0]])}
      >>> updates, state = clipper.update({"body": jnp.ones((1, 2)) * 9, "head": params["head"]},
      ...                                 clipper.init(params), params)
      >>> updates["body"].tolist()
      [[1.0, 2.0]]

    References:
      :cite:p:`brock2021high`, Equation 3, and as in its code a bias is one unit.

    See also:
      ``optax.adaptive_grad_clip``, which chooses the axes by rank: that takes ``embedding`` and ``weight`` the wrong
      way round, and convolutions in one dimension for attention.
    """
    check_threshold("adaptive_clip", "max_ratio", max_ratio)
    check_threshold("adaptive_clip", "floor", floor)
    check_policy("adaptive_clip", on_nonfinite)

    def init(params) -> Any:
        names, leaves, _ = named_leaves(params)
        unit_axes("adaptive_clip", names, leaves, axes)
        return ClipState(**init_record(params))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(
                message("adaptive_clip", "the parameters", "params=None", "call update(gradients, state, params)")
            )
        seen = measure("adaptive_clip", updates, state, on_nonfinite)
        names, weights, _ = named_leaves(params)
        chosen = unit_axes("adaptive_clip", names, weights, axes)
        counted = [index for index, axis in enumerate(chosen) if axis is not None and is_inexact(seen.leaves[index])]
        counted_axes = tuple(chosen[index] for index in counted)
        of_gradient = unit_norms([seen.leaves[index] for index in counted], counted_axes)
        of_weights = unit_norms([weights[index] for index in counted], counted_axes)
        # A leaf that is left alone is one unit, with the factor 1.
        norms, scales = list(seen.norms), [jnp.ones((), norm.dtype) for norm in seen.norms]
        clipped = jnp.zeros((), jnp.bool_)
        for index, norm, size in zip(counted, of_gradient, of_weights, strict=True):
            ratio = threshold_at(max_ratio, state.count, norm.dtype)
            least = threshold_at(floor, state.count, norm.dtype)
            limit = ratio * jnp.maximum(size.astype(norm.dtype), least)
            norms[index] = jnp.where(seen.usable, norm, 0)
            scales[index] = scale_to(norms[index], limit)
            clipped |= jnp.any(norms[index] > limit)
        scale, angle = effect_of_scales(_raveled(norms), seen.norm, _raveled(scales))
        return scaled(seen, scales), record(state, seen, scale=scale, clipped=clipped, angle=angle)

    return optax.GradientTransformation(init, update)


def _raveled(arrays: Sequence[jax.Array]) -> jax.Array:
    dtype = widest(arrays)
    return jnp.concatenate([jnp.zeros(0, dtype), *(array.ravel().astype(dtype) for array in arrays)])


def unit_axes(
    function: str, names: Sequence[str], leaves: Sequence[Any], axes: Rules | None
) -> list[tuple[int, ...] | None]:
    """Find the axes that each leaf is summed over; None for a leaf that is left alone."""
    rules: Any = () if axes is None else axes
    chosen: list[tuple[int, ...] | None] = []
    for name, leaf, rule in zip(names, leaves, match_rules(function, rules, names, "default"), strict=True):
        if rule == "default":
            chosen.append(_default_axes(name, jnp.ndim(leaf)))
        else:
            chosen.append(None if rule is None else _in_range(function, name, leaf, rule))
    return chosen


def _default_axes(name: str, rank: int) -> tuple[int, ...]:
    whole = tuple(range(rank))
    if rank <= 1 or re.search(r"(^|/)bias$", name):
        return whole
    if re.search(r"(^|/)(weight|embedding)$", name):
        return whole[1:]
    if re.search(r"(^|/)(query|key|value)/kernel$", name):
        return whole[:1]
    return whole[:-1]


def _in_range(function: str, name: str, leaf: Any, axes: Any) -> tuple[int, ...]:
    rank = jnp.ndim(leaf)
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    if any(not -rank <= axis < rank for axis in axes):
        raise ValueError(
            message(
                function,
                f"axes within the {rank} of leaf {name!r}",
                f"{axes} for shape {jnp.shape(leaf)}",
                "give the axes that are summed over, or None to leave the leaf alone",
            )
        )
    return tuple(sorted({axis % rank for axis in axes}))
