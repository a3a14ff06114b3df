"""Norms of groups of leaves from one read of memory, right over the whole float range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxgrad._norms import is_inexact, leaf_norms, unit_norms
from jaxgrad._paths import path_names


class Group(NamedTuple):
    """The leaves that count as one layer.

    Attributes:
      name: The path they have in common, cut to ``depth`` components.
      leaves: Their arrays, in the order of the tree.
    """

    name: str
    leaves: list[Any]


def group_leaves(tree: Any, depth: int | None) -> list[Group]:
    """Gather the measured leaves of a tree by the first ``depth`` components of their paths, in the order of the tree.

    Args:
      tree: Any pytree. ``None`` and ``optax.MaskedNode`` hold no leaves.
      depth: Number of components; ``None``: each leaf is a group.

    Returns:
      One group a name.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    groups: dict[str, list[Any]] = {}
    for (path, leaf), name in zip(flat, path_names([path for path, _ in flat]), strict=True):
        if depth is not None and depth < len(path):
            # A component may itself hold a slash, so the name is not split.
            name = jax.tree_util.keystr(path[:depth], simple=True, separator="/")
        if is_inexact(leaf):
            groups.setdefault(name, []).append(leaf)
    return [Group(name, leaves) for name, leaves in groups.items()]


def group_norms(groups: Sequence[Group]) -> tuple[Float[Array, " groups"], Bool[Array, " groups"]]:
    """Compute the norm of each group and whether all its entries are finite.

    ``norm = sqrt(sum |x|²)``, as in :func:`jaxgrad.clipping.global_norm`.

    Args:
      groups: At least one group.

    Returns:
      Norms and flags, of shape (groups,) each. A norm is inf or NaN where an entry is.
    """
    # A measurement has no derivative.
    leaves = [jax.lax.stop_gradient(jnp.asarray(leaf)) for group in groups for leaf in group.leaves]
    # Without the barrier XLA shares the squares with those that an optimizer takes: it writes them all to memory.
    norms = leaf_norms(jax.lax.optimization_barrier(leaves))
    if len(groups) < len(leaves):
        sizes = np.array([len(group.leaves) for group in groups])
        # Each row holds the leaves of one group; what is beyond its end reads a zero.
        places = np.full((len(groups), sizes.max()), len(leaves))
        places[np.arange(sizes.max()) < sizes[:, None]] = np.arange(len(leaves))
        padded = jnp.append(norms, jnp.zeros(1, norms.dtype))[places]
        norms = unit_norms([padded], ((1,),))[0][:, 0]
    return norms, jnp.isfinite(norms)
