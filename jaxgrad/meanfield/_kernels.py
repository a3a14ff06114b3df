"""One layer in the limit of infinite width: what it does to the variance of its inputs, and to gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
from jax.core import Tracer

from jaxgrad._checks import message
from jaxgrad.activations._quadrature import (
    Integrand,
    expectation,
    pair_expectation,
    resolution,
    values,
    values_and_slopes,
)
from jaxgrad.activations._table import resolve

# Beyond these, the slopes of two inputs are those at 0 and at infinity.
_SMALLEST = 1e-150
_LARGEST = 1e8
# Beyond these, where powers of values would soon leave floating point, moments go on as the powers of the scale that
# they have become.
_NEAR = 1e-60
_FAR = 1e10


class Moments(NamedTuple):
    """Gaussian moments of an activation and its slope.

    Attributes:
      mean: ``E[φ]``.
      square: ``E[φ²]``.
      slope_square: ``E[φ'²]``.
      fourth: ``E[φ⁴]``.
      slope_fourth: ``E[φ'⁴]``.
      mixed: ``E[φ² φ'²]``.
      product: ``E[φ φ' z]`` with z the input over its standard deviation.
      slope_bend: ``E[φ'² z²]``.
    """

    mean: float
    square: float
    slope_square: float
    fourth: float
    slope_fourth: float
    mixed: float
    product: float
    slope_bend: float


class Kernel:
    """Gaussian moments of an activation whose inputs have variance q."""

    def __init__(self, caller: str, activation: str | Callable[..., Any]) -> None:
        self._caller = caller
        self._function = resolve(caller, activation)

    def variance(self, q: float) -> tuple[float, float]:
        """Return ``E[φ(√q z)²]`` and, where q is positive, its derivative by q (else NaN)."""
        scale = math.sqrt(q)

        def integrand(z: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore", invalid="ignore"):
                squares = self._values(scale * z)[0] ** 2
                # By parts, so that jumps count too.
                return np.stack([squares, squares * (z**2 - 1)])

        second, bend = expectation(self._caller, integrand, self.goal)
        return float(second), float(bend) / (2 * q) if q > 0 else math.nan

    def squared_slope(self, q: float) -> float:
        """Return ``E[φ'(√q z)²]``; at q = 0 and q = inf, its limit."""

        def at(scale: float) -> np.ndarray:
            def integrand(z: np.ndarray) -> np.ndarray:
                with np.errstate(over="ignore"):
                    return self._values_and_slopes(scale * z)[1:] ** 2

            return expectation(self._caller, integrand, self.goal)

        scale = max(math.sqrt(q), _SMALLEST)
        if scale <= _FAR:
            return float(at(scale)[0])
        return float(_continued(at(_FAR), at(_FAR / 2), scale / _FAR)[0])

    def moments(self, q: float) -> Moments:
        """Return the moments of the activation and its slope that one layer's fluctuations depend on.

        At q = 0, those of its tangent there.
        """

        def at(scale: float) -> np.ndarray:
            def integrand(z: np.ndarray) -> np.ndarray:
                with np.errstate(over="ignore"):
                    value, slope = self._values_and_slopes(scale * z)
                    both = value * slope
                    powers = [value, value**2, slope**2, value**4, slope**4, both**2, both * z, (slope * z) ** 2]
                    return np.stack(powers)

            return expectation(self._caller, integrand, self.goal)

        scale = math.sqrt(q)
        if not scale:
            return Moments(*map(float, at(_SMALLEST)))
        inner = min(max(scale, _NEAR), _FAR)
        found = at(inner)
        if inner != scale:
            odd = abs(found[0]) < 1e-9 * math.sqrt(found[1])  # the mean is rounding, which follows no power
            found = _continued(found, at(2 * inner if scale < inner else inner / 2), scale / inner)
            found[0] = 0.0 if odd else found[0]
        return Moments(*map(float, found))

    def covariance(self, q: float, c: float) -> float:
        """Return ``E[φ(u) φ(u')]`` of two inputs of variance q and correlation c."""
        scale = math.sqrt(q)
        inner = min(max(scale, _NEAR), _FAR) if scale else 0.0
        found = float(pair_expectation(self._caller, lambda z: self._values(inner * z), c, self.goal)[0])
        if inner == scale:
            return found
        # Far out and close to 0 the correlation no longer depends on the scale.
        own = self.moments(inner**2).square
        return found / own * self.moments(q).square if own else found

    def slope_correlation(self, q: float, c: float) -> float:
        """Return ``E[φ'(u) φ'(u')] / E[φ'(u)²]`` of two inputs of variance q and correlation c; 0 without slopes."""
        q = min(q, _LARGEST**2)
        square = self.squared_slope(q)
        return min(max(self.slope_covariance(q, c) / square, -1.0), 1.0) if square else 0.0

    def slope_covariance(self, q: float, c: float) -> float:
        """Return ``E[φ'(u) φ'(u')]`` of two inputs of variance q and correlation c; at q = 0 and inf, its limit."""
        scale = min(max(math.sqrt(q), _SMALLEST), _LARGEST)
        slopes = lambda z: self._values_and_slopes(scale * z)[1:]  # noqa: E731
        return float(pair_expectation(self._caller, slopes, c, self.goal)[0])

    def slopes(self, x: np.ndarray) -> np.ndarray:
        """Return the slope at each point of an array of shape (n,)."""
        return self._values_and_slopes(x)[1]

    @functools.cached_property
    def goal(self) -> float:
        """The precision that the activation's values allow."""
        return resolution(self._values)

    @functools.cached_property
    def _values(self) -> Integrand:
        return _compiled(values, self._caller, self._function)

    @functools.cached_property
    def _values_and_slopes(self) -> Integrand:
        return _compiled(values_and_slopes, self._caller, self._function)


def _continued(found: np.ndarray, inward: np.ndarray, factor: float) -> np.ndarray:
    """Return the moments at a scale that lies outside by a factor, from those at the end and at half or double it."""
    with np.errstate(all="ignore"):
        power = np.log(inward / found) / math.log(0.5 if factor > 1 else 2.0)
        halves = np.round(2 * power) / 2
        power = np.where(np.abs(power - halves) < 1e-6, halves, power)
        return np.where(np.isfinite(power), found * factor**power, found)


def variance_map(
    activation: str | Callable[..., Any], q: float, *, weight_variance: float, bias_variance: float
) -> float:
    r"""Compute the variance of a layer's preactivations from that of the layer before.

    .. math::
      q' = \sigma_w^2 \operatorname{E}\left[ \phi(\sqrt{q}\, z)^2 \right] + \sigma_b^2, \qquad z \sim N(0, 1),

    for weights of variance :math:`\sigma_w^2 / \text{fan-in}`, in the limit of infinite width.

    Args:
      activation: A name of the activation table, or an elementwise function of one real array. Static.
      q: Variance of the preactivations of the layer before, at least 0.
      weight_variance: :math:`\sigma_w^2`, the variance of a weight times the fan-in, at least 0.
      bias_variance: :math:`\sigma_b^2`, at least 0.

    Returns:
      The variance of the layer's preactivations, a Python float.

    Raises:
      TypeError: A number is traced, or ``activation`` is no elementwise function.
      ValueError: A number is negative or not finite, the name is unknown, or the mean square diverges.

    Numerics:
      Computed on the host in float64, to a relative error below 1e-8, with kinks and jumps anywhere.

    Example:
      >>> variance_map("relu", 1.0, weight_variance=2.0, bias_variance=0.0)
      1.0

    References:
      :cite:p:`poole2016exponential`, equation 3.

    See also:
      :func:`jaxgrad.meanfield.fixed_point`, where repeating it leads.
    """
    q = finite("variance_map", "q", q)
    weight_variance, bias_variance = variances("variance_map", weight_variance, bias_variance)
    return weight_variance * Kernel("variance_map", activation).variance(q)[0] + bias_variance


def variances(caller: str, weight_variance: float, bias_variance: float) -> tuple[float, float]:
    """Return the two variances as Python floats, or refuse them."""
    return finite(caller, "weight_variance", weight_variance), finite(caller, "bias_variance", bias_variance)


def finite(caller: str, name: str, value: Any) -> float:
    """Return a variance that is finite and not negative as a Python float, or refuse it."""
    return number(caller, name, value, 0, math.inf, "it is a variance: pass σ², not σ")


def number(caller: str, name: str, value: Any, low: float, high: float, remedy: str | None = None) -> float:
    """Return a finite number of at least ``low`` and at most ``high`` as a Python float, or refuse it."""
    if isinstance(value, Tracer):
        raise TypeError(
            message(
                caller,
                f"{name} as a number",
                "a traced value",
                "call this outside jit, grad and vmap: it computes on the host",
            )
        )
    result = float(value)
    if not (low <= result <= high and math.isfinite(result)):
        bounds = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
        remedy = f"pass {name} in that range" if remedy is None else remedy
        raise ValueError(message(caller, f"a finite {name} {bounds}", f"{name}={result}", remedy))
    return result


def count(caller: str, name: str, value: Any, low: int = 1) -> int:
    """Return a whole number of at least ``low``, or refuse it."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(message(caller, f"{name} as a whole number", repr(value), f"pass an int as {name}"))
    if value < low:
        raise ValueError(message(caller, f"{name} of at least {low}", f"{name}={value}", f"pass a larger {name}"))
    return int(value)


def _compiled(make: Callable[..., Integrand], caller: str, function: Callable[..., Any]) -> Integrand:
    # Compiling takes longer than all the rest.
    return (_cached if isinstance(function, Hashable) else _uncached)(make, caller, function)


def _uncached(make: Callable[..., Integrand], caller: str, function: Callable[..., Any]) -> Integrand:
    return make(caller, function)


_cached = functools.lru_cache(maxsize=64)(_uncached)
