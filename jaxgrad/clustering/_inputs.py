"""What data, metrics and weights clustering takes, and what it says of the rest."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from jaxgrad._checks import message

METRICS = ("euclidean", "manhattan", "cosine", "mahalanobis")


def check_metric(
    function: str, metric: str, covariance: Any, num_features: int, dtype: Any, *, needed: bool = False
) -> Array | None:
    """Return the covariance in the type of the data, or ``None``.

    Args:
      function: The public name the user called.
      metric: What the user asked for.
      covariance: What came with it.
      num_features: d.
      dtype: Of the data.
      needed: Whether ``"mahalanobis"`` cannot do without a covariance here.

    Raises:
      ValueError: No such metric; a covariance that is missing, or for another metric than ``"mahalanobis"``, of a wrong
        shape, or, where it is concrete, not symmetric and positive definite.
    """
    if metric not in METRICS:
        raise ValueError(message(function, f"metric in {METRICS}", f"metric={metric!r}", "pass one of these"))
    if covariance is None:
        if needed and metric == "mahalanobis":
            raise ValueError(message(function, "a covariance", "none", "pass that of the fit, such as jnp.cov(x.T)"))
        return None
    if metric != "mahalanobis":
        remedy = 'leave it out, or pass metric="mahalanobis"'
        raise ValueError(message(function, "no covariance", f"one with metric={metric!r}", remedy))
    with jax.ensure_compile_time_eval():
        covariance = jnp.asarray(covariance)
    if covariance.shape != (num_features, num_features):
        expected = f"a covariance of shape {(num_features, num_features)}"
        raise ValueError(message(function, expected, f"shape {covariance.shape}", "pass one row and column a feature"))
    if isinstance(covariance, Tracer):
        return covariance.astype(dtype)
    with jax.ensure_compile_time_eval():
        covariance = covariance.astype(dtype)
        definite = bool(_positive_definite(covariance))
    if not definite:
        remedy = "add a small multiple of the identity, or let it be estimated"
        raise ValueError(message(function, "a symmetric, positive definite covariance", "one that is not", remedy))
    return covariance


def check_count(function: str, name: str, value: Any, low: int, high: int | None = None, why: str = "") -> None:
    """Refuse what is not an integer, or out of range."""
    expected = f"{name} to be an integer of at least {low}" + ("" if high is None else f" and at most {high}{why}")
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(message(function, expected, f"{name}={value!r}", "pass an int; it is static under jit"))
    if value < low or (high is not None and value > high):
        raise ValueError(message(function, expected, f"{name}={value!r}", f"pass {name} in that range"))


def check_some_weight(function: str, weights: Array | None) -> None:
    """Refuse concrete weights none of which is positive."""
    if weights is None or isinstance(weights, Tracer):
        return
    with jax.ensure_compile_time_eval():
        some = bool(jnp.any(weights > 0))
    if not some:
        raise ValueError(message(function, "some positive weight", "none", "give the rows that count a weight above 0"))


def block_size(chunk_size: int | None, num_rows: int, num_features: int, per_row: int) -> int:
    """Choose how many rows are worked on at a time, unless the user did.

    Args:
      chunk_size: What the user wants, or ``None``.
      num_rows: How many rows a device has.
      num_features: d.
      per_row: How many distances of a row are computed at a time.
    """
    if chunk_size is None:
        # What a block makes should stay in a CPU's cache; elsewhere it should fill the device.
        on_cpu = jax.default_backend() == "cpu"
        room, least, most = (1 << 20, 2048, 8192) if on_cpu else (1 << 26, 1 << 14, 1 << 20)
        chunk_size = min(max(room // max(per_row, num_features), least), most)
    return min(chunk_size, num_rows)


@jax.jit
def _positive_definite(covariance: Array) -> Array:
    """Tell whether a matrix is symmetric, up to rounding, and has a Cholesky factor."""
    near = jnp.abs(covariance - covariance.T) <= 1e-5 * jnp.max(jnp.abs(covariance))
    return jnp.all(near) & jnp.all(jnp.isfinite(jnp.linalg.cholesky(covariance)))
