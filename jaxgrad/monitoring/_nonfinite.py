"""The first NaN or infinity in a tree, by name."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxgrad._checks import message
from jaxgrad._norms import is_inexact
from jaxgrad._paths import named_leaves


def first_nonfinite(tree: Any) -> str | None:
    """Name the first leaf of a tree that holds a NaN or an infinity.

    ``min {i : any(not isfinite(leaf_i))}``, over the leaves in the order of ``jax.tree.leaves``.

    Args:
      tree: Any pytree of concrete arrays: parameters, gradients, a batch, an optimizer's state. Integer, boolean and
        ``None`` leaves are finite.

    Returns:
      The path of the leaf, such as ``"params/Dense_0/kernel"``, or ``None`` where all is finite. A tree that is a
      single array has the empty path, so compare with ``None``.

    Raises:
      TypeError: A leaf is traced: inside ``jit`` there is no name to return.

    Numerics:
      Exact: entries are tested and nothing is summed, so large finite entries stay finite.

    Example:
      >>> import jax.numpy as jnp
      >>> first_nonfinite({"dense": {"bias": jnp.zeros(2), "kernel": jnp.array([1.0, jnp.inf])}})
      'dense/kernel'

    See also:
      :func:`jaxgrad.monitoring.monitor`, which keeps the first path and its step inside ``jit``; ``optax.tree_utils``
      counts entries without a name; ``jax_debug_nans`` stops at the operation.
    """
    names, leaves, _ = named_leaves(tree)
    for name, leaf in zip(names, leaves, strict=True):
        if isinstance(leaf, Tracer):
            raise TypeError(
                message(
                    "first_nonfinite",
                    "concrete arrays",
                    f"a traced value at {name!r}",
                    "call it outside jit, or put jaxgrad.monitoring.monitor() into the optax chain",
                )
            )
    measured = [(name, leaf) for name, leaf in zip(names, leaves, strict=True) if is_inexact(leaf)]
    # All are started before one is waited for. NumPy's own stay with NumPy, where float64 is not cut to float32.
    flags = [(jnp if isinstance(leaf, jax.Array) else np).isfinite(leaf).all() for _, leaf in measured]
    finite = jax.device_get(flags)
    return next((name for (name, _), flag in zip(measured, finite, strict=True) if not flag), None)
