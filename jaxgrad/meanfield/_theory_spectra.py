"""The spectrum of a deep network's Jacobian in the limit of infinite width, by free probability.

The Jacobian is a product of diagonal matrices D of slopes and random weights W, all free of one another, so the
S-transforms of their squared singular values multiply. With M the moment generating function of ``J Jᵀ`` and
``x = E[d / (w - d)]`` that of ``D²``, this reads ``z = (1 + x) / x · (σ_w² x w (1 + x)^(g - 1))^depth`` where
``M(z) = x``, and g is 1 for Gaussian, 0 for orthogonal weights: everything below is read from this one equation in w.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxgrad._checks import message
from jaxgrad.activations._quadrature import expectation
from jaxgrad.meanfield._critical import critical_point
from jaxgrad.meanfield._fixed_points import settle
from jaxgrad.meanfield._kernels import Kernel, count, finite, variances

Weights = Literal["gaussian", "orthogonal"]

_REACH = 9.0
_NUM_SAMPLES = 2001
_PLATEAU = 0.005  # of the samples with one and the same slope
_NUM_STEPS = 48
_NUM_NEWTON = 3
_HEIGHT = 1e-9


class TheorySpectrum(NamedTuple):
    """The squared singular values of a deep network's Jacobian J, in theory.

    Attributes:
      mean: Their mean: the factor by which the mean square of gradients changes over the whole depth.
      variance: Their variance.
      edge: The largest one.
    """

    mean: float
    variance: float
    edge: float


class TheoryDensity(NamedTuple):
    """How the squared singular values of a deep network's Jacobian are distributed, in theory.

    Attributes:
      density: Probability density at each point asked for, without the atoms.
      atoms: Pairs of a value and the share of all values that are equal to it.
    """

    density: Float[np.ndarray, " n"]
    atoms: tuple[tuple[float, float], ...]


def predict_spectrum(
    activation: str | Callable[..., Any],
    depth: int,
    *,
    weights: Weights = "gaussian",
    weight_variance: float | None = None,
    bias_variance: float | None = None,
    q: float | None = None,
) -> TheorySpectrum:
    r"""Predict mean, variance and edge of the squared singular values of a deep network's Jacobian.

    For :math:`J = D_L W_L \cdots D_1 W_1` with slopes D, of moments :math:`\mu_k = \operatorname{E}[\phi'^{2k}]`,

    .. math::
      m = (\sigma_w^2 \mu_1)^L, \qquad
      v = m^2 L \left( \frac{\mu_2}{\mu_1^2} - 1 + g \right), \qquad
      \lambda_\text{max} = \min_{w > \max \phi'^2} \frac{1 + x}{x}
      \left( \sigma_w^2\, x\, w\, (1 + x)^{g - 1} \right)^L, \quad
      x = \operatorname{E}\left[ \frac{\phi'^2}{w - \phi'^2} \right],

    with g = 1 for Gaussian and 0 for orthogonal weights. Dynamical isometry needs v to stay small at any depth, which a
    mean of 1 alone does not give.

    Args:
      activation: A name of the activation table, or an elementwise function of one real array that JAX can
        differentiate. Static.
      depth: Number of layers L, at least 1.
      weights: ``"gaussian"`` for independent entries, ``"orthogonal"`` for scaled orthogonal matrices.
      weight_variance: :math:`\sigma_w^2`, the variance of a weight times the fan-in (an orthogonal matrix times
        :math:`\sigma_w`), at least 0; ``None``: that of :func:`jaxgrad.meanfield.critical_point`.
      bias_variance: :math:`\sigma_b^2`, at least 0; ``None``: that of the critical point, or 0 where a weight variance
        is given.
      q: Variance of the preactivations, at least 0; ``None``: :func:`jaxgrad.meanfield.fixed_point`.

    Returns:
      ``TheorySpectrum(mean, variance, edge)``, of Python floats. The edge is ``inf`` for an unbounded slope.

    Raises:
      TypeError: A number is traced, or ``activation`` is no elementwise function that JAX can differentiate.
      ValueError: A number or ``weights`` is out of range, the activation is unknown or has no critical point, or a
        moment diverges.

    Numerics:
      Moments to 1e-8, the edge to 1e-6. A finite network's largest value lies below the edge by a share of
      :math:`n^{-2/3}`, more for deep networks. All square layers, of one width.

    Example:
      >>> [round(number, 2) for number in predict_spectrum("identity", 10, weight_variance=1.0)]
      [1.0, 10.0, 28.53]
      >>> [round(number, 2) for number in predict_spectrum("relu", 5, weights="orthogonal", weight_variance=2.0)]
      [1.0, 5.0, 12.21]

    References:
      :cite:p:`pennington2017resurrecting`, equations 15 and 18; :cite:p:`pennington2018emergence`, for the edge.

    See also:
      ``predict_density``, for the whole distribution; :func:`jaxgrad.spectra.block_jacobians`, to measure it.
    """
    kernel, factor, q, exponent = _setting(
        "predict_spectrum", activation, depth, weights, weight_variance, bias_variance, q
    )
    moments = kernel.moments(q)
    if moments.slope_square == 0 or factor == 0:
        return TheorySpectrum(0.0, 0.0, 0.0)
    log_mean = depth * math.log(factor * moments.slope_square)
    relative = depth * (moments.slope_fourth / moments.slope_square**2 - 1 + exponent)
    return TheorySpectrum(
        _exp(log_mean), _exp(2 * log_mean) * max(relative, 0.0), _edge(kernel, q, depth, factor, exponent)
    )


def predict_density(
    activation: str | Callable[..., Any],
    depth: int,
    points: Float[np.ndarray, " n"],
    *,
    weights: Weights = "gaussian",
    weight_variance: float | None = None,
    bias_variance: float | None = None,
    q: float | None = None,
) -> TheoryDensity:
    r"""Predict how the squared singular values of a deep network's Jacobian are distributed.

    .. math::
      \rho(\lambda) = -\frac{1}{\pi} \operatorname{Im} \frac{1 + M(\lambda + i0)}{\lambda},

    with M from the equation of :func:`jaxgrad.meanfield.predict_spectrum`, followed from far above the real axis down
    to it.

    Args:
      activation: As in :func:`jaxgrad.meanfield.predict_spectrum`.
      depth: Number of layers, at least 1.
      points: Where to evaluate the density, positive, of shape (n,).
      weights: ``"gaussian"`` or ``"orthogonal"``.
      weight_variance: :math:`\sigma_w^2`; ``None``: critical.
      bias_variance: :math:`\sigma_b^2`; ``None``: critical, or 0 where a weight variance is given.
      q: Variance of the preactivations; ``None``: :func:`jaxgrad.meanfield.fixed_point`.

    Returns:
      ``TheoryDensity(density, atoms)``: an array of shape (n,), and values that a share of the spectrum is equal to: 0
      where slopes are 0, and for orthogonal weights :math:`(\sigma_w^2 \phi'^2)^L` where more than
      :math:`1 - 1/L` of the slopes are the same. The density integrates to what the atoms leave.

    Raises:
      TypeError: As ``predict_spectrum``.
      ValueError: As there, or a point is not positive.

    Numerics:
      To about 1e-6 of the density between the edges where the slope takes few values (identity, ReLU, hard tanh, leaky
      ReLU), to 1e-3 otherwise; within 1e-6 of an edge it is rounded off. 0 outside the support and everywhere for an
      isometry, which is one atom.

    Example:
      >>> import numpy as np
      >>> density, atoms = predict_density("relu", 2, np.array([1.0]), weights="orthogonal", weight_variance=2.0)
      >>> [round(float(value), 4) for value in density], [(value, round(mass, 4)) for value, mass in atoms]
      ([0.0919], [(0.0, 0.5)])

    References:
      :cite:p:`pennington2017resurrecting`, section 2.3; :cite:p:`pennington2018emergence`, section 3.
    """
    kernel, factor, q, exponent = _setting(
        "predict_density", activation, depth, weights, weight_variance, bias_variance, q
    )
    points = np.asarray(points, np.float64)
    if points.ndim != 1 or not np.all((points > 0) & np.isfinite(points)):
        raise ValueError(
            message(
                "predict_density",
                "a vector of positive finite points",
                f"shape {points.shape}, values from {np.min(points, initial=np.inf):g}",
                "what lies at 0 is among the atoms",
            )
        )
    values, masses, num_plateaus = _slopes(kernel, q)
    atoms = [(0.0, float(np.sum(masses[values == 0])))]
    if exponent == 0:
        plateaus = [*zip(values[:num_plateaus], masses[:num_plateaus], strict=True)]
        atoms += [((factor * d) ** depth, 1 - depth * (1 - mass)) for d, mass in plateaus if d > 0]
    atoms = [(float(value), float(mass)) for value, mass in atoms if mass > 1e-12]
    if factor == 0:
        atoms = [(0.0, 1.0)]
    if sum(mass for _, mass in atoms) > 1 - 1e-9:
        return TheoryDensity(np.zeros(points.shape), tuple(atoms))
    density = _density(values, masses, points, depth, factor, exponent)
    return TheoryDensity(np.where(points < _edge(kernel, q, depth, factor, exponent), density, 0.0), tuple(atoms))


def _setting(
    caller: str,
    activation: str | Callable[..., Any],
    depth: int,
    weights: str,
    weight_variance: float | None,
    bias_variance: float | None,
    q: float | None,
) -> tuple[Kernel, float, float, int]:
    """Return the kernel, the weight variance, the variance of the preactivations and the exponent g."""
    kernel = Kernel(caller, activation)
    count(caller, "depth", depth)
    if weights not in ("gaussian", "orthogonal"):
        raise ValueError(message(caller, "weights 'gaussian' or 'orthogonal'", repr(weights), "take one of the two"))
    if weight_variance is None:
        point = critical_point(activation, bias_variance=bias_variance)
        weight_variance, bias_variance, q = point.weight_variance, point.bias_variance, point.q if q is None else q
    bias_variance = 0.0 if bias_variance is None else bias_variance
    weight_variance, bias_variance = variances(caller, weight_variance, bias_variance)
    q = settle(kernel, weight_variance, bias_variance) if q is None else finite(caller, "q", q)
    return kernel, weight_variance, q, int(weights == "gaussian")


def _edge(kernel: Kernel, q: float, depth: int, factor: float, exponent: int) -> float:
    """Return the largest value that the equation's inverse takes on the real axis above the support."""
    from scipy.optimize import minimize_scalar  # slow to import

    scale, largest = _scale(q), _largest_slope(kernel, q)
    if not math.isfinite(largest):
        return math.inf

    def log_z(log_distance: float) -> float:
        distance = math.exp(log_distance)

        def integrand(z: np.ndarray) -> np.ndarray:
            d = np.minimum(kernel.slopes(scale * z) ** 2 / largest, 1.0)
            return (d / (distance + (1 - d)))[None]

        x = float(expectation("predict_spectrum", integrand, kernel.goal)[0])
        base = math.log(factor * largest * (1 + distance) * x) + (exponent - 1) * math.log1p(x)
        return math.log1p(x) - math.log(x) + depth * base

    grid = np.arange(-18.0, 10.0, 1.0)  # nearer to the largest slope, rounding shows
    found = [log_z(t) for t in grid]
    best = int(np.argmin(found))
    if best == 0:
        return _exp(found[0])
    around = (grid[best - 1], grid[min(best + 1, len(grid) - 1)])
    lowest: Any = minimize_scalar(log_z, bounds=around, method="bounded", options={"xatol": 1e-6})
    return _exp(float(lowest.fun))


def _largest_slope(kernel: Kernel, q: float) -> float:
    """Return the largest squared slope that a normal input meets."""
    z, largest = np.linspace(-38.0, 38.0, _NUM_SAMPLES), 0.0
    for _ in range(4):
        with np.errstate(over="ignore"):
            squares = kernel.slopes(_scale(q) * z) ** 2
        top = int(np.argmax(squares))
        largest = max(largest, float(squares[top]))
        z = np.linspace(z[max(top - 1, 0)], z[min(top + 1, z.size - 1)], 1001)
    return largest


def _slopes(kernel: Kernel, q: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Return values of the squared slope with their probabilities, those taken on a whole interval first."""
    scale = _scale(q)
    z = np.linspace(-_REACH, _REACH, _NUM_SAMPLES)
    squares = kernel.slopes(scale * z) ** 2
    found, counts = np.unique(squares, return_counts=True)
    plateaus = found[counts > _PLATEAU * _NUM_SAMPLES]

    def indicators(z: np.ndarray) -> np.ndarray:
        return (kernel.slopes(scale * z)[None] ** 2 == plateaus[:, None]).astype(np.float64)

    masses = expectation("predict_density", indicators, kernel.goal) if plateaus.size else np.zeros(0)
    rest = squares[~np.isin(squares, plateaus)]
    density = np.exp(-(z[~np.isin(squares, plateaus)] ** 2) / 2)
    left = max(1 - masses.sum(), 0.0)
    if rest.size == 0 or left < 1e-9:
        return plateaus, masses / masses.sum(), plateaus.size
    return np.concatenate([plateaus, rest]), np.concatenate([masses, left * density / density.sum()]), plateaus.size


def _density(
    values: np.ndarray, masses: np.ndarray, points: np.ndarray, depth: int, factor: float, exponent: int
) -> np.ndarray:
    """Return the density at points, by Newton's method along vertical lines in the upper half-plane."""
    values, masses = values[values > 0], masses[values > 0]
    log_mean = depth * math.log(factor * float(values @ masses))
    # In units of a typical value, so that depth neither under- nor overflows.
    with np.errstate(over="ignore", under="ignore"):
        unit = np.exp(np.log(points) - log_mean)
    log_factor = math.log(factor) - log_mean / depth
    mean = float(values @ masses)
    heights = np.geomspace(1e3, _HEIGHT, _NUM_STEPS)
    w = mean * (unit * (1 + 1j * heights[0]) + 1j * heights[0])
    for height in heights:
        log_target = np.log(unit + 1j * height * unit)
        for _ in range(_NUM_NEWTON):
            x, slope = _generating(values, masses, w)
            log_z = np.log1p(x) - np.log(x) + depth * (log_factor + np.log(x) + np.log(w))
            log_z = log_z + depth * (exponent - 1) * np.log1p(x)
            change = slope * ((1 + depth * (exponent - 1)) / (1 + x) + (depth - 1) / x) + depth / w
            step = (log_z - log_target) / change
            step *= np.minimum(1, 0.5 * w.imag / np.maximum(np.abs(step), 1e-300))
            w = w - step
    x, _ = _generating(values, masses, w)
    result = -np.imag((1 + x) / (unit * (1 + 1j * heights[-1]))) / math.pi
    return np.where(result > 1e-7 / unit, result, 0.0) * math.exp(-log_mean)


def _generating(values: np.ndarray, masses: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ``E[d / (w - d)]`` and its derivative by w."""
    ratio = 1 / (w[:, None] - values)
    return ratio @ (masses * values), -(ratio**2) @ (masses * values)


def _scale(q: float) -> float:
    return min(max(math.sqrt(q), 1e-150), 1e8)


def _exp(logarithm: float) -> float:
    return math.exp(logarithm) if logarithm < 709 else math.inf
