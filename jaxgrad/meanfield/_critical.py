"""Where gradients keep their size at any depth: the critical point and the critical line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxgrad._checks import message
from jaxgrad.meanfield._fixed_points import root
from jaxgrad.meanfield._kernels import Kernel, finite

_TOL = 1e-9
_STEP = 2.0
# Variances among which a half-stable point is sought, and the critical line.
_NUM_DOUBLINGS = 24
_LARGEST = 1e12


class CriticalPoint(NamedTuple):
    r"""Variances at which gradients neither vanish nor explode.

    Attributes:
      weight_variance: :math:`\sigma_w^2`, the variance of a weight times the fan-in.
      bias_variance: :math:`\sigma_b^2`.
      q: Variance at which the preactivations settle; 1 where every variance is kept.
    """

    weight_variance: float
    bias_variance: float
    q: float


def critical_point(activation: str | Callable[..., Any], *, bias_variance: float | None = None) -> CriticalPoint:
    r"""Compute the weight and bias variances at which gradients keep their size at any depth.

    .. math::
      \chi = \sigma_w^2 \operatorname{E}\left[ \phi'(\sqrt{q^*}\, z)^2 \right] = 1, \qquad
      q^* = \sigma_w^2 \operatorname{E}\left[ \phi(\sqrt{q^*}\, z)^2 \right] + \sigma_b^2.

    With a bias variance that is the point of the critical line there. Without, it is the point at which small changes
    of the variance are kept too, :math:`d q_{\ell+1} / d q_\ell = 1`, and there are three classes:

    - scale-invariant (ReLU, leaky ReLU, identity): any variance is kept, without bias; ``q`` is 1;
    - :math:`q^* = 0` (tanh, ELU, SELU: :math:`\phi(0) = 0` and a slope there): without bias, the variance tends to 0
      and gradients lose a power of the depth: their mean square falls as 1/depth for tanh, as 1/depth² for ELU, SELU
      and soft sign, which bend sharply at 0. With a small bias variance they lose nothing;
    - half-stable (GELU, SiLU, Mish): one weight and one bias variance; the variance is approached from one side. GELU
      has a second fixed point a little below, at 3.03, where inputs of variance 1 settle and χ is 0.994.

    Args:
      activation: A name of the activation table, or an elementwise function of one real array that JAX can
        differentiate. Static.
      bias_variance: :math:`\sigma_b^2`, at least 0; ``None``: as found.

    Returns:
      ``CriticalPoint(weight_variance, bias_variance, q)``, of Python floats.

    Raises:
      TypeError: ``bias_variance`` is traced, or ``activation`` is no elementwise function that JAX can differentiate.
      ValueError: There is none: for sigmoids without ``bias_variance``, for softplus and its like with any, for ReLUs
        with a positive one, and for GELU and its like below that of the half-stable point, where the line's fixed
        points repel. Or ``bias_variance`` is negative or not finite, or the name is unknown.

    Numerics:
      To 1e-8; the half-stable point to 1e-7. A slope that differs on the two sides of 0 enters by its mean square.

    Example:
      >>> [round(number, 5) for number in critical_point("tanh", bias_variance=0.05)]
      [1.76095, 0.05, 0.57005]
      >>> [round(number, 4) for number in critical_point("gelu_exact")]
      [1.9831, 0.1729, 3.5616]

    References:
      :cite:p:`schoenholz2017deep`, section 3, and :cite:p:`hayou2019impact`, section 3, for the line;
      :cite:p:`roberts2022principles`, chapter 5, for the classes. The name ``"gelu"`` is JAX's tanh approximation, with
      numbers that differ from theirs in the fourth digit.

    See also:
      :func:`jaxgrad.initializers.critical`, which draws such parameters; :func:`jaxgrad.meanfield.chi`.
    """
    kernel = Kernel("critical_point", activation)
    if bias_variance is None:
        point = _without_bias(kernel) or _half_stable(kernel)
        remedy = "pass a bias_variance for a point of the critical line; 0.0 does for sigmoids"
        wanted = "an activation with a critical point of its own (scale-invariant, q = 0 or half-stable)"
    else:
        bias_variance = finite("critical_point", "bias_variance", bias_variance)
        point = (None if bias_variance else _without_bias(kernel)) or _on_line(kernel, bias_variance)
        remedy = "leave bias_variance out; where that fails too, take another activation or normalise"
        wanted = f"an activation with a stable critical point at bias variance {bias_variance:g}"
    if point is None:
        raise ValueError(message("critical_point", wanted, f"{activation!r}, which has none", remedy))
    return point


def _without_bias(kernel: Kernel) -> CriticalPoint | None:
    """Return the critical point of an activation that is zero at zero and shrinks there no slower than linearly."""
    slope = kernel.squared_slope(0.0)
    if kernel.variance(0.0)[0] > 1e-24 * slope or slope == 0:
        return None
    # Small variances first: what counts is how the variance moves near zero.
    for q in (1e-6, 1e-4, 1e-2, 1.0):
        excess = kernel.variance(q)[0] / (slope * q) - 1
        if excess > _TOL:
            return None
        if excess < -_TOL * (1 + 99 * (q == 1)):
            return CriticalPoint(1 / slope, 0.0, 0.0)
    return CriticalPoint(1 / slope, 0.0, 1.0)


def _half_stable(kernel: Kernel) -> CriticalPoint | None:
    """Return the first point at which changes of the variance and of the angle are both kept."""

    def difference(q: float) -> float:
        growth, slope = kernel.variance(q)[1], kernel.squared_slope(q)
        return (growth - slope) / (abs(growth) + slope) if slope else 0.0

    q = 1e-3
    before = difference(q)
    for _ in range(_NUM_DOUBLINGS):
        after = difference(q * _STEP)
        if before * after < 0 and min(abs(before), abs(after)) > _TOL:
            point = _point(kernel, root(difference, q, q * _STEP))
            if point.bias_variance >= 0:
                return point
        q, before = q * _STEP, after
    return None


def _on_line(kernel: Kernel, bias_variance: float) -> CriticalPoint | None:
    """Return the first point of the critical line with that bias whose fixed point attracts."""

    def excess(q: float) -> float:
        return _point(kernel, q).bias_variance - bias_variance

    # The variance is at least the biases', and there the excess is negative.
    q = max(bias_variance, 1e-6)
    before = excess(q)
    while q < _LARGEST:
        after = excess(q * _STEP)
        if before < -_TOL * q and after > _TOL * q:
            point = _point(kernel, root(excess, q, q * _STEP))
            if point.weight_variance * kernel.variance(point.q)[1] <= 1 + 1e-6:
                return point._replace(bias_variance=bias_variance)
        q, before = q * _STEP, after
    return None


def _point(kernel: Kernel, q: float) -> CriticalPoint:
    """Return the variances that make q a fixed point with factor 1, be the bias's negative."""
    slope = kernel.squared_slope(q)
    if slope == 0:
        return CriticalPoint(math.inf, -math.inf, q)
    return CriticalPoint(1 / slope, q - kernel.variance(q)[0] / slope, q)
