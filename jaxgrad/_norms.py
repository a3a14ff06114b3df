"""Norms of leaves that neither overflow nor underflow, have a gradient at zero, and take one read of memory.

Only a leaf whose sum of squares left the safe range, above or below, is read a second time, in units of a power of two
that bring it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

Axes = tuple[int, ...] | None


def is_inexact(leaf: Any) -> bool:
    """Return whether a leaf has a norm: floating and complex ones have; integers, booleans and random keys do not."""
    return jnp.issubdtype(leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf), jnp.inexact)


def accumulator(leaf: Any) -> jnp.dtype:
    """Return the dtype in which squares of a leaf are summed: float32, or float64 for double precision."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return jnp.dtype("float64" if dtype in (jnp.float64, jnp.complex128) else "float32")


def product_dtype(leaf: Any) -> jnp.dtype:
    """Return the dtype in which a leaf is multiplied: at least float32, or complex as it is."""
    return leaf.dtype if jnp.iscomplexobj(leaf) else accumulator(leaf)


def widest(leaves: Sequence[Any]) -> jnp.dtype:
    """Return the dtype that holds the norms of all of these."""
    return jnp.dtype("float64" if any(accumulator(leaf) == jnp.float64 for leaf in leaves) else "float32")


def real_parts(leaf: Any) -> list[Array]:
    """Return a leaf in its accumulator's dtype, a complex one as two."""
    parts = (jnp.real(leaf), jnp.imag(leaf)) if jnp.iscomplexobj(leaf) else (jnp.asarray(leaf),)
    return [part.astype(accumulator(leaf)) for part in parts]


def leaf_norms(leaves: Sequence[Any]) -> list[Array]:
    """Compute the norm of each leaf, in its accumulator's dtype; 0 for a leaf that has none."""
    counted = [leaf for leaf in leaves if is_inexact(leaf)]
    norms = iter(unit_norms(counted, (None,) * len(counted)))
    return [next(norms) if is_inexact(leaf) else jnp.zeros((), jnp.float32) for leaf in leaves]


def total_norm(norms: Sequence[Array]) -> Array:
    """Compute the norm of a vector given as scalars; 0 without any."""
    dtype = widest(norms)
    if not norms:
        return jnp.zeros((), dtype)
    return unit_norms([jnp.stack([norm.astype(dtype) for norm in norms])], (None,))[0]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def unit_norms(leaves: Sequence[Any], axes: tuple[Axes, ...]) -> list[Array]:
    """Compute the norms of each leaf over its axes, kept with size 1; over all of them, as a scalar, for None.

    Args:
      leaves: Floating or complex arrays.
      axes: One entry a leaf. Static.

    Returns:
      Norms in the accumulators' dtypes. One beyond the largest number is that number; inf or NaN only where an entry
      is.
    """
    if not leaves:
        return []
    sums = [_sum_of_squares(leaf, axis) for leaf, axis in zip(leaves, axes, strict=True)]
    units = [_unit_of_sum(leaf, total) for leaf, total in zip(leaves, sums, strict=True)]
    safe = [jnp.all(unit == 1) for unit in units]

    def plain(_, sums):
        return [jnp.sqrt(total) for total in sums]

    def again(leaves, sums):
        return [
            jax.lax.cond(okay, lambda _leaf, total, _unit: jnp.sqrt(total), partial(_rescaled_norm, axis), *leaf)
            for okay, axis, *leaf in zip(safe, axes, leaves, sums, units, strict=True)
        ]

    return jax.lax.cond(jnp.all(jnp.stack(safe)), plain, again, list(leaves), sums)


@unit_norms.defjvp
def _(axes, primals, tangents):
    (leaves,), (rates,) = primals, tangents
    norms = unit_norms(leaves, axes)
    changes = []
    for leaf, rate, norm, axis in zip(leaves, rates, norms, axes, strict=True):
        usable = (norm > 0) & jnp.isfinite(norm)
        wide = product_dtype(leaf)
        # XLA divides by a number by multiplying with its inverse, which for the largest ones is subnormal, so 0.
        shift = _shift(norm.dtype)
        unit = jnp.where(norm > shift, 1 / shift, 1).astype(norm.dtype)
        inverse = jnp.where(usable, 1 / jnp.where(usable, norm * unit, 1), 0)
        direction = jnp.where(usable, leaf, 0).astype(wide) * unit.astype(wide) * inverse.astype(wide)
        product = jnp.real(jnp.conj(direction) * rate.astype(wide)).astype(norm.dtype)
        changes.append(jnp.sum(product, axis=axis, keepdims=axis is not None))
    return norms, changes


def _sum_of_squares(leaf: Any, axis: Axes, unit: Array | None = None) -> Array:
    parts = real_parts(leaf) if unit is None else [part * unit for part in real_parts(leaf)]
    # Nothing but the square inside the sum: XLA makes a dot product of it on a CPU, twice as fast.
    totals = [jnp.sum(jnp.square(part), axis=axis, keepdims=axis is not None) for part in parts]
    return totals[0] if len(totals) == 1 else totals[0] + totals[1]


def _shift(dtype: Any) -> float:
    """Return a power of two by which entries whose squares leave the dtype are brought back into it."""
    return 2.0 ** (5 * int(jnp.finfo(dtype).maxexp) // 8)


def _unit_of_sum(leaf: Any, total: Array) -> Array:
    """Return what to multiply the entries with: 1, unless a square overflowed, or underflowed so that it is missed."""
    limits = jnp.finfo(total.dtype)
    num_summed = max(jnp.size(leaf) // max(total.size, 1), 1)
    too_small = total < num_summed * float(limits.tiny) / float(limits.eps)
    shift = _shift(total.dtype)
    return jnp.where(too_small, shift, jnp.where(total < jnp.inf, 1, 1 / shift)).astype(total.dtype)


def _rescaled_norm(axis: Axes, leaf: Any, total: Array, unit: Array) -> Array:
    del total
    sums = _sum_of_squares(leaf, axis, unit)
    norm = jnp.sqrt(sums) / unit
    return jnp.where(jnp.isfinite(sums), jnp.minimum(norm, jnp.finfo(norm.dtype).max), norm)
