"""Norms of leaves that neither overflow nor underflow, have a gradient at zero, and take one read of memory.

Only where a sum of squares left the safe range, above or below, are they read a second time, in units of a power of two
that bring it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

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


@jax.custom_jvp
def leaf_norms(leaves: Sequence[Any]) -> Float[Array, " leaves"]:
    """Compute the norm of each leaf, in the widest accumulator's dtype; 0 for a leaf that has none.

    A leaf of zeros costs the second read of all: its sum could have underflowed.
    """
    counted = [leaf for leaf in leaves if is_inexact(leaf)]
    dtype = widest(counted)
    if not counted:
        return jnp.zeros(len(leaves), dtype)
    # One vector: hundreds of scalars, each worked on by itself, would take as long as the sums.
    sums = jnp.stack([_sum_of_squares(leaf, None).astype(dtype) for leaf in counted])
    units = units_of_sums(sums, np.array([jnp.size(leaf) for leaf in counted]))

    def again(leaves, units):
        each = [_sum_of_squares(leaf, None, unit) for leaf, unit in zip(leaves, units, strict=True)]
        return _rescaled_norms(jnp.stack([total.astype(dtype) for total in each]), units)

    norms = jax.lax.cond(jnp.all(units == 1), lambda *_: jnp.sqrt(sums), again, counted, units)
    positions = np.array([position for position, leaf in enumerate(leaves) if is_inexact(leaf)])
    return norms if len(counted) == len(leaves) else jnp.zeros(len(leaves), dtype).at[positions].set(norms)


@leaf_norms.defjvp
def _(primals, tangents):
    (leaves,), (rates,) = primals, tangents
    norms = leaf_norms(leaves)
    changes = [
        _change_of_norm(leaf, rate, norm, None) if is_inexact(leaf) else jnp.zeros_like(norm)
        for leaf, rate, norm in zip(leaves, rates, norms, strict=True)
    ]
    return norms, jnp.stack(changes) if changes else jnp.zeros_like(norms)


def total_norm(norms: Float[Array, " leaves"]) -> Float[Array, ""]:
    """Compute the norm of all leaves from that of each."""
    return unit_norms([norms], (None,))[0]


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
    units = [
        units_of_sums(total, max(jnp.size(leaf) // max(total.size, 1), 1))
        for leaf, total in zip(leaves, sums, strict=True)
    ]

    def again(leaves, units):
        return [
            _rescaled_norms(_sum_of_squares(leaf, axis, unit), unit)
            for leaf, axis, unit in zip(leaves, axes, units, strict=True)
        ]

    safe = jnp.all(jnp.stack([jnp.all(unit == 1) for unit in units]))
    return jax.lax.cond(safe, lambda *_: [jnp.sqrt(total) for total in sums], again, list(leaves), units)


@unit_norms.defjvp
def _(axes, primals, tangents):
    (leaves,), (rates,) = primals, tangents
    norms = unit_norms(leaves, axes)
    return norms, [_change_of_norm(*each) for each in zip(leaves, rates, norms, axes, strict=True)]


def _change_of_norm(leaf: Any, rate: Any, norm: Array, axis: Axes) -> Array:
    """Differentiate the norm: the part of the rate along the leaf; 0 at zeros."""
    direction = quotient(jnp.where(jnp.isfinite(norm), leaf, 0), norm)
    product = jnp.real(jnp.conj(direction) * rate.astype(direction.dtype)).astype(norm.dtype)
    return jnp.sum(product, axis=axis, keepdims=axis is not None)


def quotient(leaf: Any, norm: Array) -> Array:
    """Divide a leaf by a norm that is no smaller than any entry, in the wider dtype; 0 where the norm is 0."""
    # XLA divides by a number by multiplying with its inverse, which for the largest ones is subnormal, so 0.
    shift = _shift(norm.dtype)
    unit = jnp.where(norm > shift, 1 / shift, 1).astype(norm.dtype)
    inverse = jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm * unit, 1), 0)
    wide = product_dtype(leaf)
    return leaf.astype(wide) * unit.astype(wide) * inverse.astype(wide)


def _sum_of_squares(leaf: Any, axis: Axes, unit: Array | None = None) -> Array:
    parts = real_parts(leaf)
    if unit is not None:
        parts = [part * unit.astype(part.dtype) for part in parts]
    # Nothing but the square inside the sum: XLA makes a dot product of it on a CPU, twice as fast.
    totals = [jnp.sum(jnp.square(part), axis=axis, keepdims=axis is not None) for part in parts]
    return totals[0] if len(totals) == 1 else totals[0] + totals[1]


def _shift(dtype: Any) -> float:
    """Return a power of two by which entries whose squares leave the dtype are brought back into it."""
    return 2.0 ** (5 * int(jnp.finfo(dtype).maxexp) // 8)


def units_of_sums(sums: Array, num_summed: Any) -> Array:
    """Return what to multiply the entries with: 1, unless squares overflow, or underflow so that they are missed."""
    limits = jnp.finfo(sums.dtype)
    shift = _shift(sums.dtype)
    too_small = sums < np.asarray(num_summed * float(limits.tiny) / float(limits.eps), sums.dtype)
    return jnp.where(too_small, shift, jnp.where(sums <= float(limits.max) / 4, 1, 1 / shift)).astype(sums.dtype)


def _rescaled_norms(sums: Array, units: Array) -> Array:
    norms = jnp.sqrt(sums) / units
    return jnp.where(jnp.isfinite(sums), jnp.minimum(norms, float(jnp.finfo(norms.dtype).max)), norms)
