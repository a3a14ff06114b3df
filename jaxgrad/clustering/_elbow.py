"""How many clusters: the elbow of the inertias."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Real

from jaxgrad._checks import message


class Elbow(NamedTuple):
    """Where a curve of inertias bends.

    Attributes:
      num_clusters: Shape (); the number of clusters at the bend.
      depth: Shape (), in [0, 1); how far the curve lies below its chord there, both axes scaled to [0, 1]. Near 1 the
        first clusters do all the work; near 0 there is no elbow, and ``num_clusters`` says little.
    """

    num_clusters: Array
    depth: Float[Array, ""]


def elbow(inertias: Real[Array, " m"], num_clusters: Real[Array, " m"] | None = None) -> Elbow:
    r"""Find the number of clusters after which more of them gain little.

    .. math::
        j^* = \arg\max_j \left(1 - u_j - v_j\right), \quad
        u_j = \frac{k_j - k_1}{k_m - k_1}, \quad v_j = \frac{I_j - I_m}{I_1 - I_m}

    the point that lies farthest below the chord from the first to the last, with both axes scaled to [0, 1].

    Args:
      inertias: Shape (m,), at least 3; the inertia for each number of clusters. A single fit may miss its optimum, so
        an inertia above one for fewer clusters is lowered to that one.
      num_clusters: Shape (m,), rising. ``None`` is 1, 2, … m.

    Returns:
      The number of clusters, and how deep the elbow is.

    Raises:
      ValueError: Fewer than 3 inertias, lengths that differ, or numbers of clusters that do not rise.

    Numerics:
      The first of several equally deep points. Where the inertia never falls, and where the curve bends the other
      way, the first number of clusters with depth 0. The result depends on the range of k looked at: the last k should
      be a few times the one expected. Entries that are not finite take no part.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad import clustering
      >>> print(clustering.elbow(jnp.array([100.0, 40.0, 12.0, 10.0, 9.0, 8.0])).num_clusters)
      3

    References:
      :cite:p:`satopaa2011finding`, section 3, for a falling convex curve with no smoothing and every point at once.
    """
    name = "elbow"
    if inertias.ndim != 1 or inertias.shape[0] < 3:
        raise ValueError(
            message(
                name, "at least 3 inertias along one axis", f"shape {inertias.shape}", "fit more numbers of clusters"
            )
        )
    if num_clusters is None:
        num_clusters = jnp.arange(1, inertias.shape[0] + 1)
    if num_clusters.shape != inertias.shape:
        raise ValueError(
            message(name, f"num_clusters of shape {inertias.shape}", f"{num_clusters.shape}", "give one an inertia")
        )
    if not isinstance(num_clusters, Tracer) and not bool(jnp.all(jnp.diff(num_clusters) > 0)):
        raise ValueError(
            message(name, "num_clusters that rise", f"{num_clusters}", "sort them, and the inertias with them")
        )
    wide = jnp.issubdtype(inertias.dtype, jnp.floating) and inertias.dtype.itemsize >= 4
    heights = inertias if wide else inertias.astype(jnp.float32)
    finite = jnp.isfinite(heights)
    heights = lax.cummin(jnp.where(finite, heights, jnp.inf))
    first = jnp.argmax(finite)
    top, low = heights[first], heights[-1]
    counts = num_clusters.astype(heights.dtype)
    across = (counts - counts[first]) / (counts[-1] - counts[first])
    fall = jnp.where(top > low, top - low, 1)
    depth = jnp.where(finite, 1 - across - (heights - low) / fall, 0)
    depth = jnp.where(top > low, jnp.maximum(depth, 0), jnp.zeros_like(depth))
    best = jnp.argmax(depth)
    return Elbow(num_clusters[best], depth[best])
