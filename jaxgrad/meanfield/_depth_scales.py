"""How far signals, angles and gradients reach into a deep network, and in which phase it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from jaxgrad.meanfield._fixed_points import settle
from jaxgrad.meanfield._kernels import Kernel, finite, number, variances

# Where the variance tends to 0 or grows for ever, angles move as they do this near the limit.
_NEAR_ZERO = 1e-20
_NEAR_INFINITY = 1e15
_NEAREST = 2.0**-27


class DepthScales(NamedTuple):
    r"""Over how many layers what a network was given fades, each an e-folding depth in layers.

    Attributes:
      xi_q: Depth scale :math:`\xi_q` of the variance.
      xi_c: Depth scale :math:`\xi_c` of the angle between two inputs: how deep a network can be trained at all.
      xi_gradient: Depth scale :math:`\xi_\nabla` of the mean square of gradients, vanishing or exploding.
      chi: The factor :math:`\chi_1` by which a layer multiplies the mean square of gradients.
      q: Variance :math:`q^*` at which the preactivations settle.
      c: Correlation :math:`c^*` at which two different inputs settle.
    """

    xi_q: float
    xi_c: float
    xi_gradient: float
    chi: float
    q: float
    c: float


def correlation_map(
    activation: str | Callable[..., Any],
    c: float,
    *,
    weight_variance: float,
    bias_variance: float,
    q: float | None = None,
) -> float:
    r"""Compute the correlation of two inputs after a layer from that before it.

    .. math::
      c' = \frac{\sigma_w^2 \operatorname{E}[\phi(u)\, \phi(u')] + \sigma_b^2}
      {\sigma_w^2 \operatorname{E}[\phi(u)^2] + \sigma_b^2}, \qquad
      (u, u') \sim N\!\left(0, q \begin{pmatrix} 1 & c \\ c & 1 \end{pmatrix}\right),

    for two inputs whose preactivations have the same variance q.

    Args:
      activation: A name of the activation table, or an elementwise function of one real array. Static.
      c: Correlation of the preactivations of the layer before, between -1 and 1.
      weight_variance: :math:`\sigma_w^2`, the variance of a weight times the fan-in, at least 0.
      bias_variance: :math:`\sigma_b^2`, at least 0.
      q: Their variance, at least 0; ``None``: :func:`jaxgrad.meanfield.fixed_point`, which is 1 where every variance is
        kept.

    Returns:
      The correlation, a Python float between -1 and 1. A layer that gives 0 for every input keeps the correlation 1.

    Raises:
      TypeError: A number is traced, or ``activation`` is no elementwise function.
      ValueError: A number is out of range or not finite, the name is unknown, or the mean square diverges.

    Numerics:
      To 1e-8, with kinks and jumps anywhere: the plane is integrated along its two axes in turn, each cut where the
      function bends. At q = 0 and q = inf, the limit.

    Example:
      >>> round(correlation_map("relu", 0.0, weight_variance=2.0, bias_variance=0.0), 6)
      0.31831

    References:
      :cite:p:`poole2016exponential`, equation 5; :cite:p:`schoenholz2017deep`, equation 4.

    See also:
      ``depth_scales``, for where repeating it leads.
    """
    weight_variance, bias_variance = variances("correlation_map", weight_variance, bias_variance)
    c = number("correlation_map", "c", c, -1, 1)
    kernel = Kernel("correlation_map", activation)
    q = settle(kernel, weight_variance, bias_variance) if q is None else finite("correlation_map", "q", q)
    return _correlate(kernel, c, q, weight_variance, bias_variance)


def depth_scales(activation: str | Callable[..., Any], *, weight_variance: float, bias_variance: float) -> DepthScales:
    r"""Compute how far a signal, an angle and a gradient reach into a deep network.

    .. math::
      \xi_q = \frac{1}{|\ln \chi_q|}, \quad \xi_c = \frac{1}{|\ln \chi_{c^*}|}, \quad
      \xi_\nabla = \frac{1}{|\ln \chi_1|}, \qquad
      \chi_q = \frac{d q'}{d q}, \quad \chi_c = \sigma_w^2 \operatorname{E}[\phi'(u)\, \phi'(u')],

    at the fixed points :math:`q^*` of the variance and :math:`c^*` of the correlation, with :math:`\chi_1` that of
    equal inputs. Distances from a fixed point shrink as :math:`e^{-\ell / \xi}`. Networks train to a depth of some
    :math:`6 \xi_c`.

    Args:
      activation: A name of the activation table, or an elementwise function of one real array that JAX can
        differentiate. Static.
      weight_variance: :math:`\sigma_w^2`, the variance of a weight times the fan-in, at least 0.
      bias_variance: :math:`\sigma_b^2`, at least 0.

    Returns:
      ``DepthScales(xi_q, xi_c, xi_gradient, chi, q, c)``, of Python floats; a scale is ``inf`` where the factor is 1,
      and 0 where it is 0.

    Raises:
      TypeError: A number is traced, or ``activation`` is no elementwise function that JAX can differentiate.
      ValueError: A number is negative or not finite, the name is unknown, or the mean square diverges.

    Numerics:
      Factors to 1e-8, so a scale of 10,000 layers has four digits. A factor within 1e-7 of 1 counts as 1. A correlation
      within 1e-8 of 1 counts as 1. Where the variance tends to 0 or grows without bound, the factors are those there:
      ``xi_q`` is the scale of that decay or growth, and the factor of the angle is that of a ratio to the variance.

    Example:
      >>> scales = depth_scales("tanh", weight_variance=2.5, bias_variance=0.05)
      >>> round(scales.xi_c, 2), round(scales.xi_gradient, 2), round(scales.c, 3)
      (11.8, 7.98, 0.447)

    References:
      :cite:p:`schoenholz2017deep`, equations 8, 9 and 14.

    See also:
      :func:`jaxgrad.meanfield.phase`; :func:`jaxgrad.meanfield.critical_point`, where gradients reach any depth.
    """
    weight_variance, bias_variance = variances("depth_scales", weight_variance, bias_variance)
    kernel = Kernel("depth_scales", activation)
    q = settle(kernel, weight_variance, bias_variance)
    chi = weight_variance * kernel.squared_slope(q)
    near = min(max(q, _NEAR_ZERO), _NEAR_INFINITY)
    second, slope = kernel.variance(near)
    # A correlation is a ratio to the variance, which moves where it tends to 0 or grows for ever.
    shrinkage = 1.0 if near == q else near / (weight_variance * second + (bias_variance if q else 0.0) or near)
    c = _settle_correlation(kernel, q, chi * shrinkage, weight_variance, bias_variance)
    spread = chi if c == 1.0 else weight_variance * kernel.slope_covariance(q, c)
    return DepthScales(_depth(weight_variance * slope), _depth(spread * shrinkage), _depth(chi), chi, q, c)


def phase(
    activation: str | Callable[..., Any], *, weight_variance: float, bias_variance: float, tol: float = 1e-4
) -> Literal["ordered", "critical", "chaotic"]:
    r"""Name the phase of a deep network at initialization.

    ``"ordered"`` where :math:`\chi_1 < 1`: gradients vanish and different inputs become alike. ``"chaotic"`` where
    :math:`\chi_1 > 1`: gradients explode and inputs close to one another part. ``"critical"`` on the line between.

    Args:
      activation: A name of the activation table, or an elementwise function of one real array that JAX can
        differentiate. Static.
      weight_variance: :math:`\sigma_w^2`, the variance of a weight times the fan-in, at least 0.
      bias_variance: :math:`\sigma_b^2`, at least 0.
      tol: How near to 1 :math:`\chi_1` counts as critical: at the default gradients keep their size to a factor e over
        10,000 layers.

    Returns:
      The phase.

    Raises:
      TypeError: A number is traced, or ``activation`` is no elementwise function that JAX can differentiate.
      ValueError: A number is negative or not finite, the name is unknown, or the mean square diverges.

    Example:
      >>> phase("relu", weight_variance=1.0, bias_variance=0.0)
      'ordered'
      >>> phase("tanh", weight_variance=1.76095, bias_variance=0.05)
      'critical'

    References:
      :cite:p:`poole2016exponential`, section 2.2; :cite:p:`schoenholz2017deep`, section 3.
    """
    weight_variance, bias_variance = variances("phase", weight_variance, bias_variance)
    tol = number("phase", "tol", tol, 0, math.inf)
    kernel = Kernel("phase", activation)
    excess = weight_variance * kernel.squared_slope(settle(kernel, weight_variance, bias_variance)) - 1
    if abs(excess) <= tol:
        return "critical"
    return "ordered" if excess < 0 else "chaotic"


def _correlate(kernel: Kernel, c: float, q: float, weight_variance: float, bias_variance: float) -> float:
    """Return the correlation after a layer."""
    if q < _NEAR_ZERO and bias_variance == 0 and kernel.variance(0.0)[0] == 0:
        q = _NEAR_ZERO
    q = min(q, _NEAR_INFINITY)
    total = weight_variance * kernel.variance(q)[0] + bias_variance
    if total == 0:
        return 1.0
    correlation = (weight_variance * kernel.covariance(q, c) + bias_variance) / total
    return min(max(correlation, -1.0), 1.0)


def _settle_correlation(kernel: Kernel, q: float, slope: float, weight_variance: float, bias_variance: float) -> float:
    """Return the stable fixed point of the correlation between 0 and 1.

    The map is a power series with no negative coefficient, hence convex there: below 1 there is at most one other fixed
    point, and there is one, and it attracts, just where the slope at 1 exceeds 1.
    """
    if slope <= 1 + _NEAREST:
        return 1.0

    def excess(c: float) -> float:
        return _correlate(kernel, c, q, weight_variance, bias_variance) - c

    if excess(0.0) <= _NEAREST:
        return 0.0
    distance = 0.5
    while excess(1.0 - distance) >= 0:
        distance /= 2
        if distance < _NEAREST:
            return 1.0
    from scipy.optimize import root_scalar  # slow to import

    return float(root_scalar(excess, bracket=(0.0, 1.0 - distance), xtol=1e-14).root)


def _depth(factor: float) -> float:
    """Return the number of layers over which a factor a layer makes a factor e."""
    if factor <= 0:
        return 0.0
    return math.inf if abs(factor - 1) <= 1e-7 else 1 / abs(math.log(factor))
