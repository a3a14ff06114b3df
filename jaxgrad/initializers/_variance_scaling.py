"""Random kernels whose variance is set by the fans of the layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from jaxgrad._checks import message
from jaxgrad.initializers._fans import BATCH_AXIS, IN_AXIS, OUT_AXIS, fans

Distribution = Literal["truncated_normal", "normal", "uniform"]
Mode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo_avg"]


@runtime_checkable
class Initializer(Protocol):
    """What draws a parameter: a function of key, shape and dtype, as flax and ``jax.nn.initializers`` have it."""

    def __call__(self, key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike | None = None) -> Array:
        """Draw the parameter.

        Args:
          key: Random key.
          shape: Shape of the parameter. Static.
          dtype: Its type; ``None`` for the initializer's own, by default JAX's default float. Static.

        Returns:
          An array of that shape and type.
        """
        ...


def variance_scaling(
    scale: float | Float[Array, ""],
    mode: Mode,
    distribution: Distribution,
    *,
    in_axis: int | Sequence[int] = IN_AXIS,
    out_axis: int | Sequence[int] = OUT_AXIS,
    batch_axis: int | Sequence[int] = BATCH_AXIS,
    einsum: str | None = None,
    feature_group_count: int = 1,
    dtype: DTypeLike | None = None,
) -> Initializer:
    r"""Build an initializer whose variance is ``scale`` over a fan of the kernel.

    .. math::
      \operatorname{Var}[w] = \frac{\text{scale}}{n}, \qquad \operatorname{E}[w] = 0,

    with :math:`n` the fan-in, the fan-out, their arithmetic or their geometric mean.

    Args:
      scale: Positive. It multiplies the variance, where PyTorch's ``gain`` multiplies the standard deviation.
      mode: ``"fan_in"`` keeps the variance of activations, ``"fan_out"`` that of gradients, ``"fan_avg"`` (arithmetic)
        and ``"fan_geo_avg"`` (geometric) are between.
      distribution: ``"truncated_normal"``, a normal cut at two of its standard deviations and widened by 1/0.8796, so
        that the variance is the one above; ``"normal"``; or ``"uniform"`` on :math:`\pm\sqrt{3\,\text{scale}/n}`.
      in_axis: As in :func:`jaxgrad.initializers.fans`, like the three after it.
      out_axis: Axis or axes of the output.
      batch_axis: Axis or axes of stacked kernels.
      einsum: Instead of the axes, the layer's einsum.
      feature_group_count: Number of groups of a grouped convolution.
      dtype: Type to draw where the call gives none; ``None``: JAX's default float.

    Returns:
      An initializer ``init(key, shape, dtype)``.

    Raises:
      TypeError: When called: ``dtype`` is not floating or complex.
      ValueError: ``scale`` is not positive, ``mode`` or ``distribution`` is unknown. When called: what ``fans`` raises.

    Numerics:
      Types under 32 bits are drawn in float32 and rounded, so a bfloat16 kernel is the float32 kernel rounded. With
      the same key the numbers are those of ``jax.nn.initializers.variance_scaling`` in float32 and float64.

    Example:
      >>> import jax
      >>> init = variance_scaling(2.0, "fan_in", "normal", einsum="de,ehk->dhk")
      >>> round(float(init(jax.random.key(0), (512, 8, 64)).std() * 512**0.5), 2)  # the square root of scale
      1.41

    References:
      :cite:p:`he2015delving`, equations 10 and 14, for the fans; :cite:p:`glorot2010understanding`, equation 12, for
      their mean.

    See also:
      ``jax.nn.initializers.variance_scaling``, ``keras.initializers.VarianceScaling``; in PyTorch ``xavier_normal_``
      and ``kaiming_normal_``, which do not truncate.
    """
    if mode not in ("fan_in", "fan_out", "fan_avg", "fan_geo_avg"):
        raise ValueError(
            message(
                "variance_scaling", "mode 'fan_in', 'fan_out', 'fan_avg' or 'fan_geo_avg'", repr(mode), "take 'fan_in'"
            )
        )
    if distribution not in ("truncated_normal", "normal", "uniform"):
        raise ValueError(
            message(
                "variance_scaling",
                "distribution 'truncated_normal', 'normal' or 'uniform'",
                repr(distribution),
                "take 'truncated_normal', as he_normal does",
            )
        )
    check_positive("variance_scaling", "scale", scale)
    default = dtype

    def init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike | None = None) -> Array:
        kernel_dtype, wide = draw_dtypes("variance_scaling", default if dtype is None else dtype)
        fan_in, fan_out = fans(
            shape,
            in_axis=in_axis,
            out_axis=out_axis,
            batch_axis=batch_axis,
            einsum=einsum,
            feature_group_count=feature_group_count,
        )
        means = {"fan_avg": (fan_in + fan_out) / 2, "fan_geo_avg": math.sqrt(fan_in * fan_out)}
        size = {"fan_in": fan_in, "fan_out": fan_out, **means}[mode]
        # JAX's own fans are 1 where every axis is a batch axis; it asks for two axes.
        padded = (*shape, *(1,) * (2 - len(shape)))
        draw = jax.nn.initializers.variance_scaling(
            scale / size, "fan_in", distribution, (), (), tuple(range(len(padded))), wide
        )
        return draw(key, padded).reshape(tuple(shape)).astype(kernel_dtype)

    return init


def truncated_normal(
    stddev: float | Float[Array, ""] = 0.02, *, bound: float = 2.0, dtype: DTypeLike | None = None
) -> Initializer:
    r"""Build an initializer of truncated normal values with the standard deviation asked for.

    .. math::
      w = \frac{\text{stddev}}{c} z, \quad z \sim N(0, 1) \text{ given } |z| \le \text{bound}, \quad
      c^2 = 1 - \frac{2\, b\, \varphi(b)}{2 \Phi(b) - 1}, \quad b = \text{bound}.

    Args:
      stddev: Standard deviation of the values drawn, after truncation. Positive.
      bound: Where the normal is cut, in its own standard deviations. Positive; a small bound is nearly uniform.
      dtype: Type to draw where the call gives none; ``None``: JAX's default float.

    Returns:
      An initializer ``init(key, shape, dtype)`` for any shape.

    Raises:
      TypeError: When called: ``dtype`` is not real floating.
      ValueError: ``stddev`` or ``bound`` is not positive.

    Example:
      >>> import jax
      >>> values = truncated_normal(0.02)(jax.random.key(0), (1000, 100))
      >>> round(float(values.std()), 4)
      0.02

    See also:
      ``jax.nn.initializers.truncated_normal(s)``, ``keras.initializers.TruncatedNormal(stddev=s)`` and
      ``torch.nn.init.trunc_normal_`` take the standard deviation before truncation: cut at two, the values of the first
      two have 0.88 s. PyTorch's bounds are absolute, at -2 and 2 whatever the standard deviation.
    """
    check_positive("truncated_normal", "stddev", stddev)
    check_positive("truncated_normal", "bound", bound)
    mass = math.erf(bound / math.sqrt(2))
    density = math.exp(-(bound**2) / 2) / math.sqrt(2 * math.pi)
    shrinkage = math.sqrt(1 - 2 * bound * density / mass)
    default = dtype

    def init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike | None = None) -> Array:
        kernel_dtype, wide = draw_dtypes("truncated_normal", default if dtype is None else dtype, real=True)
        draw = jax.nn.initializers.truncated_normal(stddev / shrinkage, dtype=wide, lower=-bound, upper=bound)
        return draw(key, tuple(shape)).astype(kernel_dtype)

    return init


def draw_dtypes(function: str, dtype: DTypeLike | None, *, real: bool = False) -> tuple[Any, Any]:
    """Return the type asked for, and the one to draw in: at least 32 bits."""
    dtype = jnp.dtype(jax.dtypes.canonicalize_dtype(jnp.result_type(float) if dtype is None else dtype))
    kinds, words = (jnp.floating, "a real floating dtype") if real else (jnp.inexact, "a floating or complex dtype")
    if not jnp.issubdtype(dtype, kinds):
        raise TypeError(message(function, words, str(dtype), "pass jnp.float32, or leave dtype out"))
    return dtype, dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def check_positive(function: str, name: str, value: Any) -> None:
    """Refuse a number that is not positive, where it is known while tracing."""
    if not isinstance(value, Tracer) and not (0 < float(value) < math.inf):
        raise ValueError(message(function, f"a positive, finite {name}", f"{name}={value}", f"pass a positive {name}"))
