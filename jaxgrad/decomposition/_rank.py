"""How many components: a number, a share of the variance, or the most probable number."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgrad._checks import message
from jaxgrad.decomposition._solvers import Spectrum


def check_num_components(function: str, wanted: Any, limit: int) -> int | float | str:
    """Return what was asked for if there can be such components.

    Args:
      function: The public name the user called.
      wanted: A number, a share, ``"mle"``, or ``None`` for all.
      limit: The smaller side of the data.

    Raises:
      TypeError: It is none of these.
      ValueError: It is out of range.
    """
    expected = f"num_components in 1 to {limit}, a share of the variance between 0 and 1, or 'mle'"
    if wanted is None:
        return limit
    if isinstance(wanted, str):
        if wanted != "mle":
            raise ValueError(message(function, expected, repr(wanted), "pass a number, or 'mle'"))
        return wanted
    if isinstance(wanted, (bool, np.bool_)) or not isinstance(wanted, (int, float, np.integer, np.floating)):
        raise TypeError(message(function, expected, f"{type(wanted).__name__} {wanted!r}", "pass a Python number"))
    if isinstance(wanted, (float, np.floating)):
        if not 0 < wanted < 1:
            raise ValueError(message(function, expected, f"{wanted!r}", f"pass int({wanted!r}) for a number of them"))
        return float(wanted)
    if not 1 <= wanted <= limit:
        remedy = "the smaller of the numbers of rows and features is the most there are"
        raise ValueError(message(function, expected, f"{wanted}", remedy))
    return int(wanted)


def settle(found: Spectrum, wanted: float | str, num_samples: float) -> Spectrum:
    """Keep as many pairs of a whole concrete spectrum as the share, or ``"mle"``, asks for."""
    values = np.asarray(found.values)
    kept = most_probable_number(values, num_samples) if wanted == "mle" else number_for_share(values, float(wanted))
    rest = found.rest + jnp.sum(found.values[kept:])
    return found._replace(values=found.values[:kept], vectors=found.vectors[:kept], rest=rest)


def number_for_share(values: np.ndarray, share: float) -> int:
    """Return the smallest number of leading eigenvalues whose sum is more than a share of all."""
    values = np.asarray(values, np.float64)
    total = values.sum()
    if not total > 0:
        return 1
    return min(int(np.searchsorted(np.cumsum(values) / total, share, side="right")) + 1, values.size)


def most_probable_number(values: np.ndarray, num_samples: float) -> int:
    """Return the number of components with the largest evidence.

    Args:
      values: All d eigenvalues of the covariance, descending, or of a multiple of it.
      num_samples: How many rows they come from.

    Returns:
      1 to d - 1; 1 for one feature, and for constant data.
    """
    eps = 4 * np.finfo(values.dtype).eps
    values = np.asarray(values, np.float64)
    if values.size < 2 or not values[0] > 0:
        return 1
    values = np.maximum(values / values[0], eps)  # what is under the rounding error has no logarithm to speak of
    candidates = [k for k in range(1, values.size) if values[k - 1] > eps]
    return max(candidates, key=lambda k: _log_evidence(values, k, num_samples))


def _log_evidence(values: np.ndarray, k: int, num_samples: float) -> float:
    """Approximate the log probability of the data under k components: Minka's equation 30, and those it refers to."""
    d = values.size
    noise = values[k:].mean()
    dimensions = (d - np.arange(k)) / 2
    log_uniform = -k * math.log(2) + sum(map(math.lgamma, dimensions)) - dimensions.sum() * math.log(math.pi)
    log_fit = -num_samples / 2 * (np.log(values[:k]).sum() + (d - k) * math.log(noise))
    freedom = d * k - k * (k + 1) / 2
    modelled = np.where(np.arange(d) < k, values, noise)
    i, j = np.triu_indices(d, 1)
    i, j = i[i < k], j[i < k]
    gaps = (1 / modelled[j] - 1 / modelled[i]) * (values[i] - values[j])
    log_curvature = np.sum(np.log(np.maximum(gaps, np.finfo(np.float64).tiny)) + math.log(num_samples))
    constant = (freedom + k) / 2 * math.log(2 * math.pi) - k / 2 * math.log(num_samples)
    return log_uniform + log_fit + constant - log_curvature / 2
