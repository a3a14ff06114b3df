"""Rows in blocks and in shards: how k-means and PCA pass over data larger than a cache, or than a device."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding

Carry = TypeVar("Carry")


class Shards(NamedTuple):
    """Where the rows of an array lie.

    Attributes:
      mesh: The devices.
      axes: The axes of the mesh that the rows are split over, outermost first.
    """

    mesh: Mesh
    axes: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many shards there are."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)


def shards(x: Any) -> Shards | None:
    """Read where the rows of an array lie.

    Args:
      x: An array, its rows along the leading axis.

    Returns:
      The mesh and its axes; ``None`` for rows that all lie on one device, and for a traced array, which does not say.
    """
    if isinstance(x, Tracer) or not isinstance(getattr(x, "sharding", None), NamedSharding):
        return None
    spec = tuple(x.sharding.spec)
    rows = spec[0] if spec else None
    axes = (rows,) if isinstance(rows, str) else tuple(rows or ())
    mesh = x.sharding.mesh
    if all(mesh.shape[axis] == 1 for axis in axes):
        return None
    return Shards(mesh, axes)


def over_shards(function: Callable[..., Any], layout: Shards, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Let each device run a function on its own rows.

    Args:
      function: Takes and returns arrays as one device sees them; inside, ``layout.axes`` name the shards.
      layout: Where the rows lie, from ``shards``.
      in_specs: A ``PartitionSpec`` an argument, or a tree of them.
      out_specs: The same for what comes back; the function must have made equal what these call replicated.

    Returns:
      A function of whole arrays.
    """
    specs = {"mesh": layout.mesh, "in_specs": in_specs, "out_specs": out_specs}
    if hasattr(jax, "shard_map"):
        return jax.shard_map(function, **specs, check_vma=False)
    from jax.experimental.shard_map import shard_map  # before jax 0.6.1

    return shard_map(function, **specs, check_rep=False)


def psum(tree: Carry, axes: tuple[str, ...]) -> Carry:
    """Sum over the shards; the tree itself where there is one."""
    return lax.psum(tree, axes) if axes else tree


def gather(tree: Carry, axes: tuple[str, ...]) -> Carry:
    """Lay the shards' leaves side by side along a new leading axis, of length one where there is one shard."""
    if not axes:
        return jax.tree.map(lambda leaf: leaf[None], tree)
    return lax.all_gather(tree, axes)


def fold_blocks(step: Callable[[Carry, Any, int], Carry], carry: Carry, num_rows: int, block: int) -> Carry:
    """Pass over rows in blocks: ``carry = step(carry, start, size)``, in order.

    Args:
      step: Takes the carry, the first row of the block, which is traced, and the number of its rows, which is not.
      carry: The first carry.
      num_rows: How many rows there are.
      block: How many of them a block has; the last one has what is left.

    Returns:
      The last carry.
    """
    whole, left = divmod(num_rows, block)
    if whole:
        carry = lax.fori_loop(0, whole, lambda i, carry: step(carry, i * block, block), carry)
    return step(carry, whole * block, left) if left else carry
