"""What mini-batch k-means carries from one batch to the next."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int

from jaxgrad.clustering._coordinates import Coordinates


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["metric", "reassignment_ratio"])
@dataclass(frozen=True)
class KMeansSettings:
    """What :func:`jaxgrad.clustering.k_means_update` is compiled for; no leaf of the state.

    Attributes:
      metric: What rows pay.
      reassignment_ratio: Below this share of the rows of the busiest centroid, one is given another place.
    """

    metric: str
    reassignment_ratio: float


class KMeansMemory(NamedTuple):
    """What the next update needs beside what a user wants to know.

    Attributes:
      where: The coordinates of the first batch, in which ``points`` are; unwhitened.
      points: Shape (k, d); the mean of the rows of each centroid, for ``"manhattan"`` an estimate of their median.
      points_left: Shape (k, d); what rounding left out of them.
      counts_left: Shape (k,); what rounding left out of the counts.
      rows_left: Shape (); what rounding left out of the number of rows.
      spread: Shape (k, d); for ``"manhattan"`` the mean distance of a centroid's rows from it, else ``None``.
      recent: Shape (k,); the weight each centroid got, old weight fading.
    """

    where: Coordinates
    points: Float[Array, "k d"]
    points_left: Float[Array, "k d"]
    counts_left: Float[Array, " k"]
    rows_left: Float[Array, ""]
    spread: Float[Array, "k d"] | None
    recent: Float[Array, " k"]


class KMeansState(NamedTuple):
    """A clustering under way.

    Attributes:
      centroids: Shape (k, d). To be read: an update goes on from ``memory``.
      counts: Shape (k,); the weight of the rows each centroid is made of, 0 where it has just got its place.
      cost: Shape (); what a row pays on average over about the last ten batches, each by the centroids before it:
        rows not seen yet. In the unit of the metric; infinite before the first batch.
      num_rows: Shape (); rows that took part.
      num_steps: Shape (); int32, batches that had such rows.
      memory: What the next update needs.
      settings: What it is compiled for.
    """

    centroids: Float[Array, "k d"]
    counts: Float[Array, " k"]
    cost: Float[Array, ""]
    num_rows: Float[Array, ""]
    num_steps: Int[Array, ""]
    memory: KMeansMemory
    settings: KMeansSettings
