"""One step of any clipper: measure, settle what is not finite, scale, and write it down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxgrad._checks import message
from jaxgrad._norms import is_inexact, leaf_norms, product_dtype, quotient, total_norm
from jaxgrad._paths import label_names, named_leaves
from jaxgrad.clipping._nonfinite import keep_if, zero_unless


class Measured(NamedTuple):
    """The gradients of one step, and what every clipper needs to know of them.

    Attributes:
      leaves: The leaves; under ``on_nonfinite="zero"`` with the non-finite entries already 0.
      treedef: Their tree.
      norms: Norms of the leaves, of shape (leaves,); 0 at a step that is not ``usable``.
      norm: Global norm; 0 at a step that is not ``usable``.
      seen_norms: Norms of the leaves as they came, for the record.
      seen_norm: Global norm as it came.
      usable: Whether there is something to clip: False at a non-finite step that is skipped or propagated.
      nonfinite: Whether any entry was not finite.
      policy: What becomes of a step that is not ``usable``.
    """

    leaves: list[Any]
    treedef: Any
    norms: Array
    norm: Array
    seen_norms: Array
    seen_norm: Array
    usable: Array
    nonfinite: Array
    policy: str


def check_structure(function: str, updates: Any, state: Any) -> None:
    """Refuse gradients that are another tree than the parameters were: the state would change its structure."""
    names, _, _ = named_leaves(updates)
    expected = label_names(state.leaf_names)
    if names != expected:
        differing = [name for name in names if name not in expected] or [name for name in expected if name not in names]
        raise ValueError(
            message(
                function,
                f"gradients like the parameters given to init, with {len(expected)} leaves",
                f"{len(names)} leaves; not in both is {differing[:3]}",
                "call init with a tree of the same structure as the gradients",
            )
        )


def measure(function: str, updates: Any, state: Any, policy: str) -> Measured:
    """Take the norms of one step's gradients, and settle what is usable of them."""
    check_structure(function, updates, state)
    leaves, treedef = jax.tree.flatten(updates)
    norms = leaf_norms(leaves)
    finite = jnp.all(jnp.isfinite(norms))
    if policy == "zero":
        leaves = [jnp.where(jnp.isfinite(leaf), leaf, 0) if is_inexact(leaf) else leaf for leaf in leaves]
        counted = [leaf if is_inexact(leaf) else 0 for leaf in leaves]
        norms = jax.lax.cond(finite, lambda norms, _: norms, lambda _, leaves: leaf_norms(leaves), norms, counted)
    norm = total_norm(norms)
    usable = jnp.ones_like(finite) if policy == "zero" else finite
    return Measured(
        leaves=leaves,
        treedef=treedef,
        norms=jnp.where(usable, norms, 0),
        norm=jnp.where(usable, norm, 0),
        seen_norms=norms,
        seen_norm=norm,
        usable=usable,
        nonfinite=~finite,
        policy=policy,
    )


def finish(seen: Measured, leaves: Sequence[Any]) -> Any:
    """Put the clipped leaves together, or what the policy says of a non-finite step."""
    if seen.policy == "propagate":
        leaves = [
            jnp.where(seen.usable, leaf, before) if is_inexact(before) else before
            for leaf, before in zip(leaves, seen.leaves, strict=True)
        ]
    return jax.tree.unflatten(seen.treedef, leaves)


def usable_leaves(seen: Measured) -> list[Any]:
    """Return the leaves, all 0 at a step that is skipped: in the arithmetic a NaN would survive any factor."""
    if seen.policy == "zero":
        return seen.leaves
    return zero_unless(seen.usable, seen.leaves)


def scaled(seen: Measured, scales: Array | Sequence[Array]) -> Any:
    """Multiply each leaf by its scale, or all by one, and keep its dtype. A scale may be an array that broadcasts."""
    leaves = usable_leaves(seen)
    each = [scales] * len(leaves) if isinstance(scales, Array) and scales.ndim == 0 else list(scales)
    return finish(
        seen,
        [_multiply(leaf, scale) if is_inexact(leaf) else leaf for leaf, scale in zip(leaves, each, strict=True)],
    )


def _multiply(leaf: Any, scale: Array) -> Array:
    leaf = jnp.asarray(leaf)
    wide = product_dtype(leaf)
    # A small scale would be 0 in float16, so the product is made in float32. A product by 1 would flush subnormal
    # numbers, so there is none.
    product = (leaf.astype(wide) * scale.astype(wide)).astype(leaf.dtype)
    return jnp.where(scale == 1, leaf, product)


def scale_to(norm: Array, limit: Array) -> Array:
    """Return the factor that brings a norm down to a limit; 1 if it is below."""
    above = norm > limit
    return jnp.where(above, limit / jnp.where(above, norm, 1), 1)


def effect_of_scales(norms: Array, total: Array, scales: Array) -> tuple[Array, Array]:
    """Return norm after over norm before, and the angle, when parts with these norms are multiplied by these scales.

    The angle comes from the part of the result across the gradient and the part along it: unlike an arccosine that is
    right for small angles too.
    """
    weights = jnp.square(quotient(norms, total))
    largest = jnp.max(scales, initial=0)
    ratios = scales / jnp.where(largest > 0, largest, 1)
    along = jnp.sum(ratios * weights)
    across = jnp.sum(jnp.square(ratios - along) * weights)
    after = jnp.sum(jnp.square(ratios) * weights)
    return jnp.where(total > 0, largest * jnp.sqrt(after), 1), jnp.arctan2(jnp.sqrt(across), along)


def effect_of_entries(seen: Measured, change: Callable[[list[Any]], list[Any]], changed: Array) -> tuple[Array, Array]:
    """Return norm after over norm before, and the angle, when entries were changed one by one.

    Costs two more reads, and only where something was changed.
    """

    def compare(leaves, norm):
        pairs = [(old, new) for old, new in zip(leaves, change(leaves), strict=True) if is_inexact(old)]
        norm_after = total_norm(leaf_norms([new for _, new in pairs])).astype(norm.dtype)
        positive = (norm > 0) & (norm_after > 0)
        apart, together = jnp.zeros_like(norm), jnp.zeros_like(norm)
        for old, new in pairs:
            old, new = quotient(old, norm), quotient(new, norm_after)
            apart += jnp.sum(jnp.square(jnp.abs(new - old))).astype(norm.dtype)
            together += jnp.sum(jnp.square(jnp.abs(new + old))).astype(norm.dtype)
        angle = 2 * jnp.arctan2(jnp.sqrt(apart), jnp.sqrt(together))
        return norm_after / jnp.where(norm > 0, norm, 1), jnp.where(positive, angle, 0)

    def same(leaves, norm):
        del leaves
        return jnp.ones_like(norm), jnp.zeros_like(norm)

    # The change is made inside of the branch: what is handed into one is written to memory.
    return jax.lax.cond(changed, compare, same, usable_leaves(seen), seen.norm)


def record(
    state: Any, seen: Measured, *, scale: Array, clipped: Array, angle: Array | float = 0.0, **history: Any
) -> Any:
    """Write one step into a state. No gradient flows through it."""
    count = jnp.asarray(optax.safe_increment(state.count))
    clipped = clipped & seen.usable
    part = clipped.astype(jnp.float32) - state.clip_fraction
    record = {
        "count": count,
        "norm": as_float32(seen.seen_norm),
        "scale": jnp.where(seen.usable, scale, 0.0 if seen.policy == "skip" else 1.0).astype(jnp.float32),
        "clipped": clipped,
        "clip_fraction": state.clip_fraction + part / count.astype(jnp.float32),
        "angle": jnp.where(seen.usable, angle, 0.0).astype(jnp.float32),
        "num_nonfinite": state.num_nonfinite + seen.nonfinite.astype(jnp.int32),
        "leaf_norms": as_float32(seen.seen_norms),
    }
    for name, new in history.items():
        record[name] = keep_if(seen.usable, new, getattr(state, name))
    return state._replace(**jax.lax.stop_gradient(record))


def as_float32(norm: Array) -> Array:
    """Convert a norm for the state; a finite one stays finite."""
    # A float64 norm may be finite and too large.
    limit = jnp.where(jnp.isfinite(norm), float(jnp.finfo(jnp.float32).max), jnp.inf).astype(norm.dtype)
    return jnp.minimum(norm, limit).astype(jnp.float32)
