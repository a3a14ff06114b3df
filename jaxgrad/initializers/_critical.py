"""Weights and biases at the critical point of an activation, where gradients keep their size at any depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from jaxgrad._checks import message
from jaxgrad.initializers._fans import BATCH_AXIS, IN_AXIS, OUT_AXIS, kernel_axes
from jaxgrad.initializers._orthogonal import orthogonal
from jaxgrad.initializers._variance_scaling import Initializer, draw_dtypes, variance_scaling
from jaxgrad.meanfield import CriticalPoint, critical_point


class CriticalInitializer(NamedTuple):
    """The initializers of a layer at a critical point; called itself, it draws the weights.

    Attributes:
      weights: Of the kernel.
      biases: Of the bias.
      point: The critical point: ``weight_variance``, ``bias_variance`` and ``q``, the variance of the preactivations.
    """

    weights: Initializer
    biases: Initializer
    point: CriticalPoint

    def __call__(self, key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike | None = None) -> Array:
        """Draw a kernel.

        Args:
          key: Random key.
          shape: Shape of the kernel. Static.
          dtype: Its type; ``None`` for the initializer's own, by default JAX's default float. Static.

        Returns:
          An array of that shape and type.
        """
        return self.weights(key, shape, dtype)


def critical(
    activation: str | Callable[..., Any],
    *,
    bias_variance: float | None = None,
    distribution: Literal["truncated_normal", "normal", "uniform", "orthogonal"] = "truncated_normal",
    in_axis: int | Sequence[int] = IN_AXIS,
    out_axis: int | Sequence[int] = OUT_AXIS,
    batch_axis: int | Sequence[int] = BATCH_AXIS,
    einsum: str | None = None,
    feature_group_count: int = 1,
    dtype: DTypeLike | None = None,
) -> CriticalInitializer:
    r"""Build the initializers with which layers of this activation keep the size of gradients at any depth.

    .. math::
      \operatorname{Var}[w] = \frac{\sigma_w^2}{\text{fan}_\text{in}}, \qquad \operatorname{Var}[b] = \sigma_b^2,

    with :math:`(\sigma_w^2, \sigma_b^2)` from ``jaxgrad.meanfield.critical_point``. For ReLU that is He's
    initialization; a smooth activation needs another weight variance, and some need random biases. Where the biases are
    zero and the variance decays (tanh, ELU, SELU), a small ``bias_variance`` such as 0.05 holds it up.

    Args:
      activation: A name of the activation table, or an elementwise function of one real array that JAX can
        differentiate. It is the activation *before* the layer, the one its kernel multiplies. Static.
      bias_variance: As in ``jaxgrad.meanfield.critical_point``; ``None``: as found.
      distribution: Of the weights, as in :func:`jaxgrad.initializers.variance_scaling`, or ``"orthogonal"``, which
        keeps the singular values of the kernel equal. Biases are normal.
      in_axis: As in :func:`jaxgrad.initializers.fans`, like the four after it.
      out_axis: Axis or axes of the output.
      batch_axis: Axis or axes of stacked kernels.
      einsum: Instead of the axes, the layer's einsum.
      feature_group_count: Number of groups of a grouped convolution.
      dtype: Type to draw where the call gives none; ``None``: JAX's default float.

    Returns:
      ``CriticalInitializer(weights, biases, point)``, itself an initializer of the kernel ``init(key, shape, dtype)``.

    Raises:
      TypeError: ``activation`` is no such function, or ``bias_variance`` is traced. When called: ``dtype`` is not
        floating (for weights, or complex).
      ValueError: There is no critical point, as ``jaxgrad.meanfield.critical_point`` says, or ``distribution`` is
        unknown. When called: what ``fans`` raises.

    Numerics:
      Orthogonal kernels with fewer inputs than outputs are scaled up by ``sqrt(outputs / inputs)``, so that the weights
      have the variance above. The point is computed when the initializer is built, never when it is called.

    Example:
      >>> import jax
      >>> init = critical("gelu")
      >>> kernel, bias = init(jax.random.key(0), (512, 512)), init.biases(jax.random.key(1), (512,))
      >>> round(init.point.weight_variance, 3), round(init.point.bias_variance, 3)
      (1.983, 0.173)

    References:
      :cite:p:`schoenholz2017deep`, section 3; :cite:p:`roberts2022principles`, section 5.4, for GELU and SiLU.

    See also:
      :func:`jaxgrad.initializers.he_normal`, the same for ReLU. PyTorch's gains
      (``torch.nn.init.calculate_gain``) and :func:`jaxgrad.activations.gain` keep activations at size 1, which for a
      smooth activation is not where gradients keep theirs.
    """
    point = critical_point(activation, bias_variance=bias_variance)
    axes: dict[str, Any] = {
        "in_axis": in_axis,
        "out_axis": out_axis,
        "batch_axis": batch_axis,
        "einsum": einsum,
        "feature_group_count": feature_group_count,
        "dtype": dtype,
    }
    if distribution == "orthogonal":
        weights = _widened(orthogonal(math.sqrt(point.weight_variance), **axes), axes)
    elif distribution in ("truncated_normal", "normal", "uniform"):
        weights = variance_scaling(point.weight_variance, "fan_in", distribution, **axes)
    else:
        raise ValueError(
            message(
                "critical",
                "distribution 'truncated_normal', 'normal', 'uniform' or 'orthogonal'",
                repr(distribution),
                "leave it out",
            )
        )
    return CriticalInitializer(weights, _normal(math.sqrt(point.bias_variance), dtype), point)


def _widened(base: Initializer, axes: dict[str, Any]) -> Initializer:
    """Return orthogonal kernels whose weights have the variance 1/fan-in also where outputs outnumber inputs."""

    def init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike | None = None) -> Array:
        sorted_axes = kernel_axes(shape, axes["in_axis"], axes["out_axis"], axes["batch_axis"], axes["einsum"])
        inputs = math.prod(shape[axis] for axis in (*sorted_axes.field, *sorted_axes.inputs))
        outputs = math.prod(shape[axis] for axis in sorted_axes.outputs) // axes["feature_group_count"]
        return base(key, shape, dtype) * max(1.0, math.sqrt(outputs / inputs))

    return init


def _normal(stddev: float, dtype: DTypeLike | None) -> Initializer:
    default = dtype

    def init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike | None = None) -> Array:
        bias_dtype, wide = draw_dtypes("critical", default if dtype is None else dtype, real=True)
        return (stddev * jax.random.normal(key, tuple(shape), wide)).astype(bias_dtype)

    return init
