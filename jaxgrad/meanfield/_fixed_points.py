"""Where the variance settles in a deep network, and what happens to gradients there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from jaxgrad.meanfield._kernels import Kernel, finite, variances

# Variances given in float32 still meet the fixed point that they were made for.
_TOUCH = 1e-7
_ROUNDING = 1e-13
_SMALLEST = 1e-15
_LARGEST = 1e15


def fixed_point(activation: str | Callable[..., Any], *, weight_variance: float, bias_variance: float) -> float:
    r"""Compute the variance at which the preactivations of a deep network settle.

    .. math::
      q^* = \sigma_w^2 \operatorname{E}\left[ \phi(\sqrt{q^*}\, z)^2 \right] + \sigma_b^2.

    Of several solutions it is the first one met from q = 1, the variance of standardised inputs, in the direction in
    which the variance moves there.

    Args:
      activation: A name of the activation table, or an elementwise function of one real array. Static.
      weight_variance: :math:`\sigma_w^2`, the variance of a weight times the fan-in, at least 0.
      bias_variance: :math:`\sigma_b^2`, at least 0.

    Returns:
      The variance, a Python float: 0 where signals die, ``inf`` where the variance grows without bound, and 1 where
      every variance is kept (ReLU with ``weight_variance=2``).

    Raises:
      TypeError: A number is traced, or ``activation`` is no elementwise function.
      ValueError: A number is negative or not finite, the name is unknown, or the mean square diverges.

    Numerics:
      To a relative error below 1e-8 away from the critical point, where it is badly conditioned. A half-stable fixed
      point that the variances given miss by less than 1e-7 counts as met.

    Example:
      >>> round(fixed_point("sigmoid", weight_variance=1.0, bias_variance=0.0), 6)
      0.264687
      >>> fixed_point("relu", weight_variance=3.0, bias_variance=0.0)
      inf

    References:
      :cite:p:`poole2016exponential`, section 2.1.

    See also:
      :func:`jaxgrad.meanfield.variance_map`, one step of the way.
    """
    weight_variance, bias_variance = variances("fixed_point", weight_variance, bias_variance)
    return settle(Kernel("fixed_point", activation), weight_variance, bias_variance)


def chi(
    activation: str | Callable[..., Any], *, weight_variance: float, bias_variance: float, q: float | None = None
) -> float:
    r"""Compute the factor by which a layer multiplies the mean square of gradients.

    .. math::
      \chi = \sigma_w^2 \operatorname{E}\left[ \phi'(\sqrt{q}\, z)^2 \right], \qquad z \sim N(0, 1),

    also the mean squared singular value of the layer's Jacobian. Below 1 gradients vanish with depth, above 1 they
    explode.

    Args:
      activation: A name of the activation table, or an elementwise function of one real array that JAX can
        differentiate. Static.
      weight_variance: :math:`\sigma_w^2`, the variance of a weight times the fan-in, at least 0.
      bias_variance: :math:`\sigma_b^2`, at least 0. It acts through the fixed point only.
      q: Variance of the preactivations, at least 0; ``None``: :func:`jaxgrad.meanfield.fixed_point`, where deep layers
        are.

    Returns:
      The factor, a Python float.

    Raises:
      TypeError: A number is traced, or ``activation`` is no elementwise function that JAX can differentiate.
      ValueError: A number is negative or not finite, the name is unknown, or the mean square diverges.

    Numerics:
      To a relative error below 1e-8, with kinks anywhere. The slope is JAX's, so a jump counts as flat. At q = 0, and
      where the fixed point is ``inf``, it is the limit.

    Example:
      >>> round(chi("relu", weight_variance=1.0, bias_variance=0.0), 6)
      0.5
      >>> round(chi("tanh", weight_variance=1.76095, bias_variance=0.05), 4)
      1.0

    References:
      :cite:p:`schoenholz2017deep`, equation 5 (there :math:`\chi_1`); :cite:p:`poole2016exponential`, equation 8.

    See also:
      ``jaxgrad.meanfield.critical_point``, where it is 1.
    """
    weight_variance, bias_variance = variances("chi", weight_variance, bias_variance)
    kernel = Kernel("chi", activation)
    q = settle(kernel, weight_variance, bias_variance) if q is None else finite("chi", "q", q)
    return weight_variance * kernel.squared_slope(q)


def settle(kernel: Kernel, weight_variance: float, bias_variance: float) -> float:
    """Return the first fixed point of the variance from 1, in the direction in which it moves there."""

    def growth(q: float) -> tuple[float, float]:
        second, slope = kernel.variance(q)
        return weight_variance * second + bias_variance - q, weight_variance * slope - 1

    value, slope = growth(1.0)
    if abs(value) <= _TOUCH:
        return 1.0
    sign = math.copysign(1.0, value)
    dies = growth(0.0)[0] == 0
    near = 1.0
    while near < _LARGEST if sign > 0 else near > (_SMALLEST if dies else 0):
        # An activation bends at inputs of order one: that is where two fixed points may be close.
        step = 2**0.5 if 1e-2 < near < 1e3 else 4.0
        far = max(near * step**sign, bias_variance)
        far_value, far_slope = growth(far)
        if slope < 0 < far_slope or far_slope < 0 < slope:
            # Between the two the gap has an extreme value: it may touch zero there, or cross it and return.
            turn = root(lambda q: growth(q)[1], near, far)
            turn_value = growth(turn)[0]
            if abs(turn_value) <= _TOUCH * turn:
                return turn
            if sign * turn_value < 0:
                return root(lambda q: growth(q)[0], near, turn)
        if sign * far_value < -_ROUNDING * far:
            return root(lambda q: growth(q)[0], near, far) if sign * value > 0 else near
        if far_value == 0 and far == bias_variance > 0:
            return far
        near, value, slope = far, far_value, far_slope
    return math.inf if sign > 0 else 0.0


def root(function: Callable[[float], float], first: float, second: float) -> float:
    """Return a root between two points of opposite sign, to rounding."""
    from scipy.optimize import root_scalar  # slow to import

    bracket = (math.log(first), math.log(second))
    return math.exp(root_scalar(lambda log_q: function(math.exp(log_q)), bracket=bracket, xtol=1e-15).root)
