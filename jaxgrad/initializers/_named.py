"""The named initializers of feed-forward layers, each a case of variance scaling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import DTypeLike

from jaxgrad.initializers._fans import BATCH_AXIS, IN_AXIS, OUT_AXIS
from jaxgrad.initializers._variance_scaling import Initializer, variance_scaling


def glorot_normal(
    *,
    in_axis: int | Sequence[int] = IN_AXIS,
    out_axis: int | Sequence[int] = OUT_AXIS,
    batch_axis: int | Sequence[int] = BATCH_AXIS,
    einsum: str | None = None,
    feature_group_count: int = 1,
    truncated: bool = True,
    dtype: DTypeLike | None = None,
) -> Initializer:
    r"""Build an initializer for linear and tanh layers: variance 1 over the mean of the fans, normal.

    .. math::
      \operatorname{Var}[w] = \frac{2}{\text{fan}_\text{in} + \text{fan}_\text{out}}.

    A compromise between keeping the variance of activations and that of gradients. Both are kept where the fans agree.

    Args:
      in_axis: As in :func:`jaxgrad.initializers.fans`, like the four after it.
      out_axis: Axis or axes of the output.
      batch_axis: Axis or axes of stacked kernels.
      einsum: Instead of the axes, the layer's einsum.
      feature_group_count: Number of groups of a grouped convolution.
      truncated: Whether the normal is cut at two of its standard deviations, and widened to keep the variance.
      dtype: Type to draw where the call gives none; ``None``: JAX's default float.

    Returns:
      An initializer ``init(key, shape, dtype)``.

    Raises:
      TypeError: When called: ``dtype`` is not floating or complex.
      ValueError: When called: the shape and the axes do not fit, as in :func:`jaxgrad.initializers.fans`.

    Example:
      >>> import jax
      >>> values = glorot_normal()(jax.random.key(0), (300, 200))
      >>> round(float(values.std()), 3)
      0.063

    References:
      :cite:p:`glorot2010understanding`, equation 12, which fixes the variance; the paper draws uniform values.

    See also:
      ``glorot_normal`` in JAX and ``GlorotNormal`` in Keras truncate too; PyTorch's ``xavier_normal_`` does not.
    """
    init = variance_scaling(
        1.0,
        "fan_avg",
        "truncated_normal" if truncated else "normal",
        in_axis=in_axis,
        out_axis=out_axis,
        batch_axis=batch_axis,
        einsum=einsum,
        feature_group_count=feature_group_count,
        dtype=dtype,
    )
    return _built_by(glorot_normal, init)


def glorot_uniform(
    *,
    in_axis: int | Sequence[int] = IN_AXIS,
    out_axis: int | Sequence[int] = OUT_AXIS,
    batch_axis: int | Sequence[int] = BATCH_AXIS,
    einsum: str | None = None,
    feature_group_count: int = 1,
    dtype: DTypeLike | None = None,
) -> Initializer:
    r"""Build an initializer for linear and tanh layers: variance 1 over the mean of the fans, uniform.

    .. math::
      w \sim U(-\ell, \ell), \qquad \ell = \sqrt{\frac{6}{\text{fan}_\text{in} + \text{fan}_\text{out}}}.

    A compromise between keeping the variance of activations and that of gradients. Both are kept where the fans agree.

    Args:
      in_axis: As in :func:`jaxgrad.initializers.fans`, like the four after it.
      out_axis: Axis or axes of the output.
      batch_axis: Axis or axes of stacked kernels.
      einsum: Instead of the axes, the layer's einsum.
      feature_group_count: Number of groups of a grouped convolution.
      dtype: Type to draw where the call gives none; ``None``: JAX's default float.

    Returns:
      An initializer ``init(key, shape, dtype)``.

    Raises:
      TypeError: When called: ``dtype`` is not floating or complex.
      ValueError: When called: the shape and the axes do not fit, as in :func:`jaxgrad.initializers.fans`.

    Example:
      >>> import jax
      >>> values = glorot_uniform()(jax.random.key(0), (300, 200))
      >>> round(float(abs(values).max()), 3)
      0.11

    References:
      :cite:p:`glorot2010understanding`, equation 16.

    See also:
      ``glorot_uniform`` in JAX, ``GlorotUniform`` in Keras, ``xavier_uniform_`` in PyTorch.
    """
    init = variance_scaling(
        1.0,
        "fan_avg",
        "uniform",
        in_axis=in_axis,
        out_axis=out_axis,
        batch_axis=batch_axis,
        einsum=einsum,
        feature_group_count=feature_group_count,
        dtype=dtype,
    )
    return _built_by(glorot_uniform, init)


def he_normal(
    *,
    in_axis: int | Sequence[int] = IN_AXIS,
    out_axis: int | Sequence[int] = OUT_AXIS,
    batch_axis: int | Sequence[int] = BATCH_AXIS,
    einsum: str | None = None,
    feature_group_count: int = 1,
    negative_slope: float = 0.0,
    truncated: bool = True,
    dtype: DTypeLike | None = None,
) -> Initializer:
    r"""Build an initializer for ReLU layers: variance 2 over the fan-in, normal.

    .. math::
      \operatorname{Var}[w] = \frac{2}{(1 + a^2)\,\text{fan}_\text{in}}.

    With :math:`a` the negative slope. It keeps the mean square of preactivations from layer to layer for ReLU and leaky
    ReLU alone: with GELU or SiLU they shrink.

    Args:
      in_axis: As in :func:`jaxgrad.initializers.fans`, like the four after it.
      out_axis: Axis or axes of the output.
      batch_axis: Axis or axes of stacked kernels.
      einsum: Instead of the axes, the layer's einsum.
      feature_group_count: Number of groups of a grouped convolution.
      negative_slope: Slope of a leaky ReLU below zero; 0 for a ReLU.
      truncated: Whether the normal is cut at two of its standard deviations, and widened to keep the variance.
      dtype: Type to draw where the call gives none; ``None``: JAX's default float.

    Returns:
      An initializer ``init(key, shape, dtype)``.

    Raises:
      TypeError: When called: ``dtype`` is not floating or complex.
      ValueError: When called: the shape and the axes do not fit, as in :func:`jaxgrad.initializers.fans`.

    Example:
      >>> import jax
      >>> values = he_normal()(jax.random.key(0), (300, 200))
      >>> round(float(values.std()), 3)
      0.082

    References:
      :cite:p:`he2015delving`, equations 10 and 15.

    See also:
      ``he_normal`` in JAX and ``HeNormal`` in Keras truncate too, and know no slope; ``kaiming_normal_(a)`` in PyTorch
      does not truncate.
    """
    init = variance_scaling(
        2.0 / (1.0 + negative_slope**2),
        "fan_in",
        "truncated_normal" if truncated else "normal",
        in_axis=in_axis,
        out_axis=out_axis,
        batch_axis=batch_axis,
        einsum=einsum,
        feature_group_count=feature_group_count,
        dtype=dtype,
    )
    return _built_by(he_normal, init)


def he_uniform(
    *,
    in_axis: int | Sequence[int] = IN_AXIS,
    out_axis: int | Sequence[int] = OUT_AXIS,
    batch_axis: int | Sequence[int] = BATCH_AXIS,
    einsum: str | None = None,
    feature_group_count: int = 1,
    negative_slope: float = 0.0,
    dtype: DTypeLike | None = None,
) -> Initializer:
    r"""Build an initializer for ReLU layers: variance 2 over the fan-in, uniform.

    .. math::
      w \sim U(-\ell, \ell), \qquad \ell = \sqrt{\frac{6}{(1 + a^2)\,\text{fan}_\text{in}}}.

    With :math:`a` the negative slope. It keeps the mean square of preactivations from layer to layer for ReLU and leaky
    ReLU alone: with GELU or SiLU they shrink.

    Args:
      in_axis: As in :func:`jaxgrad.initializers.fans`, like the four after it.
      out_axis: Axis or axes of the output.
      batch_axis: Axis or axes of stacked kernels.
      einsum: Instead of the axes, the layer's einsum.
      feature_group_count: Number of groups of a grouped convolution.
      negative_slope: Slope of a leaky ReLU below zero; 0 for a ReLU.
      dtype: Type to draw where the call gives none; ``None``: JAX's default float.

    Returns:
      An initializer ``init(key, shape, dtype)``.

    Raises:
      TypeError: When called: ``dtype`` is not floating or complex.
      ValueError: When called: the shape and the axes do not fit, as in :func:`jaxgrad.initializers.fans`.

    Example:
      >>> import jax
      >>> values = he_uniform()(jax.random.key(0), (300, 200))
      >>> round(float(abs(values).max()), 3)
      0.141

    References:
      :cite:p:`he2015delving`, equations 10 and 15, which fix the variance; the paper draws normal values.

    See also:
      ``he_uniform`` in JAX and ``HeUniform`` in Keras know no slope; ``kaiming_uniform_(a)`` in PyTorch.
    """
    init = variance_scaling(
        2.0 / (1.0 + negative_slope**2),
        "fan_in",
        "uniform",
        in_axis=in_axis,
        out_axis=out_axis,
        batch_axis=batch_axis,
        einsum=einsum,
        feature_group_count=feature_group_count,
        dtype=dtype,
    )
    return _built_by(he_uniform, init)


def lecun_normal(
    *,
    in_axis: int | Sequence[int] = IN_AXIS,
    out_axis: int | Sequence[int] = OUT_AXIS,
    batch_axis: int | Sequence[int] = BATCH_AXIS,
    einsum: str | None = None,
    feature_group_count: int = 1,
    truncated: bool = True,
    dtype: DTypeLike | None = None,
) -> Initializer:
    r"""Build an initializer for linear and SELU layers: variance 1 over the fan-in, normal.

    .. math::
      \operatorname{Var}[w] = \frac{1}{\text{fan}_\text{in}}.

    The default of flax. With ReLU the mean square halves at each layer: take ``he_normal`` there.

    Args:
      in_axis: As in :func:`jaxgrad.initializers.fans`, like the four after it.
      out_axis: Axis or axes of the output.
      batch_axis: Axis or axes of stacked kernels.
      einsum: Instead of the axes, the layer's einsum.
      feature_group_count: Number of groups of a grouped convolution.
      truncated: Whether the normal is cut at two of its standard deviations, and widened to keep the variance.
      dtype: Type to draw where the call gives none; ``None``: JAX's default float.

    Returns:
      An initializer ``init(key, shape, dtype)``.

    Raises:
      TypeError: When called: ``dtype`` is not floating or complex.
      ValueError: When called: the shape and the axes do not fit, as in :func:`jaxgrad.initializers.fans`.

    Example:
      >>> import jax
      >>> values = lecun_normal()(jax.random.key(0), (300, 200))
      >>> round(float(values.std()), 3)
      0.058

    References:
      :cite:p:`lecun1998efficient`, equation 16; :cite:p:`klambauer2017self` for SELU.

    See also:
      ``lecun_normal`` in JAX and ``LecunNormal`` in Keras truncate too; PyTorch has none.
    """
    init = variance_scaling(
        1.0,
        "fan_in",
        "truncated_normal" if truncated else "normal",
        in_axis=in_axis,
        out_axis=out_axis,
        batch_axis=batch_axis,
        einsum=einsum,
        feature_group_count=feature_group_count,
        dtype=dtype,
    )
    return _built_by(lecun_normal, init)


def lecun_uniform(
    *,
    in_axis: int | Sequence[int] = IN_AXIS,
    out_axis: int | Sequence[int] = OUT_AXIS,
    batch_axis: int | Sequence[int] = BATCH_AXIS,
    einsum: str | None = None,
    feature_group_count: int = 1,
    dtype: DTypeLike | None = None,
) -> Initializer:
    r"""Build an initializer for linear and SELU layers: variance 1 over the fan-in, uniform.

    .. math::
      w \sim U(-\ell, \ell), \qquad \ell = \sqrt{\frac{3}{\text{fan}_\text{in}}}.

    The default of flax. With ReLU the mean square halves at each layer: take ``he_uniform`` there.

    Args:
      in_axis: As in :func:`jaxgrad.initializers.fans`, like the four after it.
      out_axis: Axis or axes of the output.
      batch_axis: Axis or axes of stacked kernels.
      einsum: Instead of the axes, the layer's einsum.
      feature_group_count: Number of groups of a grouped convolution.
      dtype: Type to draw where the call gives none; ``None``: JAX's default float.

    Returns:
      An initializer ``init(key, shape, dtype)``.

    Raises:
      TypeError: When called: ``dtype`` is not floating or complex.
      ValueError: When called: the shape and the axes do not fit, as in :func:`jaxgrad.initializers.fans`.

    Example:
      >>> import jax
      >>> values = lecun_uniform()(jax.random.key(0), (300, 200))
      >>> round(float(abs(values).max()), 3)
      0.1

    References:
      :cite:p:`lecun1998efficient`, equation 16.

    See also:
      ``lecun_uniform`` in JAX, ``LecunUniform`` in Keras; ``kaiming_uniform_(nonlinearity="linear")`` in PyTorch.
    """
    init = variance_scaling(
        1.0,
        "fan_in",
        "uniform",
        in_axis=in_axis,
        out_axis=out_axis,
        batch_axis=batch_axis,
        einsum=einsum,
        feature_group_count=feature_group_count,
        dtype=dtype,
    )
    return _built_by(lecun_uniform, init)


def _built_by(function: Callable[..., Initializer], init: Any) -> Initializer:
    """Name an initializer after the function that built it, for its repr and for ``jaxgrad.cite``."""
    init.__module__, init.__qualname__ = function.__module__, f"{function.__qualname__}.<locals>.init"
    return init
