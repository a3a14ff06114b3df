"""What a network of finite width is expected to do, and how far a healthy one strays from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxgrad._checks import message
from jaxgrad.meanfield._fixed_points import settle
from jaxgrad.meanfield._kernels import Kernel, count, finite, number, variances

_STEP = 1e-3  # relative, for derivatives by the variance
_SMALLEST = 1e-20
_LARGEST = 1e15


class FiniteWidthBand(NamedTuple):
    r"""Where :math:`\ln \|J v\|^2` of a random network lies, for a direction v of norm 1.

    Attributes:
      mean: Its mean over networks.
      variance: Its variance.
      lower: Lower end of the band that holds the share asked for.
      upper: Upper end.
      p_value: Probability that a random network strays at least as far to either side as the one measured; NaN without
        a measurement.
    """

    mean: float
    variance: float
    lower: float
    upper: float
    p_value: float


class _Layer(NamedTuple):
    """One layer's expected logarithm of the gain, and how it and the variance after it fluctuate."""

    mean: float
    shape: float
    tilt: float
    curve: float
    growth: float
    growth_bend: float
    noise: float
    shared: float
    alignment: float
    keeps: float
    aligns: float
    q: float


def finite_width_band(
    activation: str | Callable[..., Any],
    depth: int,
    width: int | Sequence[int],
    *,
    weight_variance: float,
    bias_variance: float = 0.0,
    q: float | None = None,
    measured: float | None = None,
    coverage: float = 0.95,
) -> FiniteWidthBand:
    r"""Compute mean and variance of the logarithm of the gain of a random network, and a band around it.

    A layer of n units multiplies the square of a tangent by

    .. math::
      \frac{\sigma_w^2}{n} \sum_{i=1}^n \phi'(h_i)^2 z_i^2, \qquad h_i \sim N(0, q),\ z_i \sim N(0, 1),

    which has the mean :math:`\chi` and the relative variance :math:`1/k` with
    :math:`k = n / (3 \operatorname{E}\phi'^4 / (\operatorname{E}\phi'^2)^2 - 1)`. Its logarithm is taken as that of a
    Gamma variable of shape k, which is exact without a nonlinearity, where k = n/2:

    .. math::
      \operatorname{E} \ln \|J v\|^2 = L\left(\psi(n/2) + \ln(2/n)\right), \qquad
      \operatorname{Var} \ln \|J v\|^2 = L\, \psi_1(n/2).

    Added to that, to order 1/n, is what the layers have in common: the variance of the preactivations strays, too, and
    carries over from layer to layer, and so does the chance alignment of v with the signal.

    Args:
      activation: A name of the activation table, or an elementwise function of one real array that JAX can
        differentiate. Static.
      depth: Number of layers, at least 1.
      width: Units of a layer, or of each one; at least 1.
      weight_variance: :math:`\sigma_w^2` of independent Gaussian weights, the variance of a weight times the fan-in,
        positive.
      bias_variance: :math:`\sigma_b^2`, at least 0.
      q: Variance of the first layer's preactivations, at least 0; ``None``: :func:`jaxgrad.meanfield.fixed_point`.
      measured: A measured :math:`\ln \|J v\|^2`, to be given a p-value.
      coverage: Share of networks within the band, strictly between 0 and 1.

    Returns:
      ``FiniteWidthBand(mean, variance, lower, upper, p_value)``, of Python floats. Natural logarithms.

    Raises:
      TypeError: A number is traced, or ``activation`` is no elementwise function that JAX can differentiate.
      ValueError: A number is out of range, there are not as many widths as layers, or no gradient passes.

    Numerics:
      Exact without a nonlinearity, with one to leading order in depth/width: good to a few percent of the standard
      deviation up to a depth of a fifth of the width. v is a direction that does not depend on the weights. The same
      band holds for a gradient pushed back, :math:`\ln \|J^T u\|^2`.

    Example:
      >>> band = finite_width_band("identity", 10, 100, weight_variance=1.0, measured=-1.2)
      >>> round(band.mean, 3), round(band.variance, 3), round(band.p_value, 3)
      (-0.1, 0.202, 0.016)

    References:
      :cite:p:`hanin2020products`, theorem 1, for ReLU; :cite:p:`hanin2018which`; :cite:p:`sussillo2014random`, who take
      the drift of the logarithm away.

    See also:
      :func:`jaxgrad.meanfield.predict_spectrum`, for how directions of one network differ.
    """
    name = "finite_width_band"
    count(name, "depth", depth)
    widths = [width] * depth if isinstance(width, int) else list(width)
    if len(widths) != depth:
        raise ValueError(message(name, f"{depth} widths, one a layer", f"{len(widths)}", "pass one width for all"))
    for entry in widths:
        count(name, "width", entry)
    weight_variance, bias_variance = variances(name, weight_variance, bias_variance)
    coverage = number(name, "coverage", coverage, 1e-12, 1 - 1e-12)
    measured = math.nan if measured is None else number(name, "measured", measured, -math.inf, math.inf)
    kernel = Kernel(name, activation)
    q = settle(kernel, weight_variance, bias_variance) if q is None else finite(name, "q", q)

    layers: dict[tuple[float, int], _Layer] = {}
    shift = drift = spread = shared = alignment = variance = skew = 0.0
    for units in widths:
        q = min(max(q, _SMALLEST), _LARGEST)
        if (q, units) not in layers:
            layers[q, units] = _layer(kernel, q, units, weight_variance, bias_variance)
        layer = layers[q, units]
        # drift and spread are mean and variance of what the variance strays by, shared is its covariance with the gain
        # so far, and alignment the squared cosine between the tangent and the signal.
        own = _polygamma(1, layer.shape)
        shift += layer.mean + layer.tilt * drift + layer.curve * spread / 2 + layer.alignment * alignment
        variance += own + layer.tilt**2 * spread + 2 * layer.tilt * shared
        skew += _polygamma(2, layer.shape)
        shared = layer.growth * (shared + layer.tilt * spread) + layer.shared
        drift = layer.growth * drift + layer.growth_bend * spread / 2
        spread = layer.growth**2 * spread + layer.noise
        alignment = layer.keeps * alignment + layer.aligns
        q = layer.q
    return _band(shift, variance, skew, measured, coverage)


def _layer(kernel: Kernel, q: float, width: int, weight_variance: float, bias_variance: float) -> _Layer:
    """Return what one layer of a width does to a tangent, to first order in what the variance strays by."""
    moments = kernel.moments(q)
    chi = weight_variance * moments.slope_square
    if not 0 < chi < math.inf:
        raise ValueError(
            message(
                "finite_width_band",
                "a layer that passes gradients",
                f"one with a mean squared gain of {chi:g}",
                "raise the weight variance, or take an activation with a slope",
            )
        )
    second, growth = kernel.variance(q)
    after = weight_variance * second + bias_variance
    below, above = q * (1 - _STEP), q * (1 + _STEP)
    slopes = [math.log(kernel.squared_slope(at)) for at in (below, q, above)]
    bend = weight_variance * (kernel.variance(above)[1] - kernel.variance(below)[1]) / (2 * _STEP * q)
    shape = width / (3 * moments.slope_fourth / moments.slope_square**2 - 1)
    return _Layer(
        mean=math.log(chi) + _polygamma(0, shape) - math.log(shape),
        shape=shape,
        tilt=(slopes[2] - slopes[0]) / (2 * _STEP * q),
        curve=(slopes[2] - 2 * slopes[1] + slopes[0]) / (_STEP * q) ** 2,
        growth=weight_variance * growth,
        growth_bend=bend,
        noise=weight_variance**2 * max(moments.fourth - moments.square**2, 0.0) / width,
        shared=weight_variance * (moments.mixed / moments.slope_square - moments.square) / width,
        alignment=moments.slope_bend / moments.slope_square - 1,
        keeps=weight_variance * moments.product**2 / (moments.slope_square * after) if after else 0.0,
        aligns=weight_variance * moments.mixed / (width * moments.slope_square * after) if after else 0.0,
        q=after,
    )


def _band(mean: float, variance: float, skew: float, measured: float, coverage: float) -> FiniteWidthBand:
    """Return the band of a logarithm of a Gamma variable, stretched to the variance and the third moment given."""
    from scipy.optimize import root_scalar  # slow to import
    from scipy.stats import loggamma

    third = skew / variance**1.5

    def excess(log_shape: float) -> float:
        shape = math.exp(log_shape)
        return _polygamma(2, shape) / _polygamma(1, shape) ** 1.5 - third

    shape = math.exp(root_scalar(excess, bracket=(-10.0, 25.0)).root) if -1.99 < third < -1e-5 else 1e10
    scale = math.sqrt(variance / _polygamma(1, shape))
    distribution = loggamma(shape, loc=mean - scale * _polygamma(0, shape), scale=scale)
    lower, upper = distribution.ppf((1 - coverage) / 2), distribution.isf((1 - coverage) / 2)
    p_value = 2 * min(distribution.cdf(measured), distribution.sf(measured))
    return FiniteWidthBand(mean, variance, float(lower), float(upper), min(float(p_value), 1.0))


def _polygamma(order: int, x: float) -> float:
    from scipy.special import polygamma  # slow to import

    return float(polygamma(order, x))
