"""The norm of a whole gradient."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float

from jaxgrad._norms import leaf_norms, total_norm


def global_norm(tree: Any) -> Float[Array, ""]:
    r"""Compute the Euclidean norm of all entries of a tree.

    .. math:: \|g\| = \sqrt{\textstyle\sum_{leaf} \sum_i |g_{leaf,i}|^2}

    A sum, no mean: it grows with the number of entries.

    Args:
      tree: Any pytree. Leaves that are not floating or complex do not count.

    Returns:
      A scalar, float32; float64 where a leaf is. 0 for a tree without leaves.

    Numerics:
      float16 and bfloat16 leaves are summed in float32, float64 ones in float64. Right over the whole range of the
      dtype: entries of 3e38 or 1e-30 neither overflow nor vanish, and a norm beyond the largest number of the dtype is
      that number. inf or NaN only where an entry is. Gradient ``tree / norm``; 0 at a zero tree.
      Of sharded arrays under ``jit`` it is the norm of the whole; inside ``shard_map`` it sees the local part only.

    Example:
      >>> import jax.numpy as jnp
      >>> round(global_norm({"w": jnp.array([3e30, 0.0]), "b": jnp.array(4e30)}).item() / 1e30, 3)
      5.0

    See also:
      ``optax.global_norm``, which overflows at entries of 2e19, has the gradient NaN at zero and sums in the dtype of
      the leaves.
    """
    return total_norm(leaf_norms(jax.tree.leaves(tree)))
