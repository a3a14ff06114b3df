"""A pytree of real arrays as one vector: products and sums in float32 or wider, results in each leaf's own dtype."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxgrad._checks import message


def dtype_of(tree: Any) -> Any:
    """Return the dtype of the scalars of a method run on ``tree``: float32, or float64 where a leaf has it."""
    wide = any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(tree))
    return jnp.dtype(jnp.float64 if wide else jnp.float32)


def check_real(function: str, argument: str, tree: Any) -> None:
    """Raise unless ``tree`` has leaves, and each is a real floating array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise ValueError(
            message(function, f"{argument} with at least one array", "an empty pytree", "pass what is to be optimized")
        )
    for path, leaf in leaves:
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            name = f"{argument}{jax.tree_util.keystr(path)}"
            is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
            remedy = "split real and imaginary parts" if is_complex else "cast it to float"
            raise TypeError(
                message(function, f"real floating arrays in {argument}", f"{name} of dtype {dtype}", remedy)
            )


def dot(a: Any, b: Any) -> Float[Array, ""]:
    """Return the inner product of two trees."""
    dtype = dtype_of((a, b))
    # Not vdot: accelerators may round a matrix product's factors.
    products = jax.tree.map(lambda x, y: jnp.sum(x.astype(dtype) * y.astype(dtype)), a, b)
    return functools.reduce(jnp.add, jax.tree.leaves(products))


def add_scaled(x: Any, scale: Float[Array, ""], direction: Any) -> Any:
    """Return ``x + scale * direction``, each leaf in the dtype of its ``x``."""
    return jax.tree.map(
        lambda p, d: (p.astype(scale.dtype) + scale * d.astype(scale.dtype)).astype(p.dtype), x, direction
    )


def scaled(scale: Float[Array, ""], tree: Any) -> Any:
    """Return ``scale * tree``, each leaf in its own dtype."""
    return jax.tree.map(lambda leaf: (scale * leaf.astype(scale.dtype)).astype(leaf.dtype), tree)


def difference(a: Any, b: Any) -> Any:
    """Return ``a - b``."""
    return jax.tree.map(jnp.subtract, a, b)


def where(condition: Bool[Array, ""], a: Any, b: Any) -> Any:
    """Return ``a`` or ``b``, whole."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def quotient(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, ""]:
    """Return ``a / b``, and 0 where b is 0."""
    return jnp.where(b == 0, 0, a / jnp.where(b == 0, 1, b))


def max_norm(tree: Any) -> Float[Array, ""]:
    """Return the largest absolute entry; NaN where there is one."""
    dtype = dtype_of(tree)
    sizes = [jnp.max(jnp.abs(leaf.astype(dtype)), initial=0) for leaf in jax.tree.leaves(tree)]
    return functools.reduce(jnp.maximum, sizes)


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Say whether every entry is finite."""
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)])


def flatten(tree: Any) -> tuple[Float[Array, " n"], Callable[[Float[Array, " n"]], Any]]:
    """Return the entries of ``tree`` in one array, and the function that puts such an array back into the tree."""
    leaves, structure = jax.tree.flatten(tree)
    dtype = dtype_of(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def unflatten(vector: Float[Array, " n"]) -> Any:
        parts = jnp.split(vector, ends)
        return structure.unflatten(
            [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
        )

    return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in leaves]), unflatten
