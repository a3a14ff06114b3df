"""Orthogonal kernels and identities: every singular value of the layer is one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from jaxgrad._checks import message
from jaxgrad.initializers._fans import BATCH_AXIS, IN_AXIS, OUT_AXIS, KernelAxes, check_groups, kernel_axes
from jaxgrad.initializers._variance_scaling import Initializer, check_positive, draw_dtypes


def orthogonal(
    scale: float = 1.0,
    *,
    in_axis: int | Sequence[int] = IN_AXIS,
    out_axis: int | Sequence[int] = OUT_AXIS,
    batch_axis: int | Sequence[int] = BATCH_AXIS,
    einsum: str | None = None,
    feature_group_count: int = 1,
    dtype: DTypeLike | None = None,
) -> Initializer:
    r"""Build an initializer of kernels drawn uniformly from the orthogonal matrices.

    .. math::
      W = \text{scale} \cdot Q\, \operatorname{sign}(\operatorname{diag} R), \quad QR = G, \quad G_{ij} \sim N(0, 1),

    with :math:`W` the kernel as a matrix of inputs (the window of a convolution among them) by outputs. Its columns are
    orthonormal where there are fewer outputs than inputs, else its rows. Without the signs the matrices are orthogonal
    too, but not uniform (Haar).

    Args:
      scale: Every singular value of the matrix. Positive. ``2**0.5`` keeps the mean square through a ReLU.
      in_axis: As in :func:`jaxgrad.initializers.fans`, like the four after it.
      out_axis: Axis or axes of the output.
      batch_axis: Axis or axes of stacked kernels; each is a matrix of its own.
      einsum: Instead of the axes, the layer's einsum.
      feature_group_count: Number of groups of a grouped convolution; each is a matrix of its own.
      dtype: Type to draw where the call gives none; ``None``: JAX's default float.

    Returns:
      An initializer ``init(key, shape, dtype)``.

    Raises:
      TypeError: When called: ``dtype`` is not floating or complex.
      ValueError: ``scale`` is not positive. When called: the shape and the axes do not fit, as in ``fans``.

    Numerics:
      Types under 32 bits are drawn and decomposed in float32, then rounded: orthogonal to 1e-6 in float32, 1e-2 in
      bfloat16. With fewer inputs than outputs the norm is kept but the mean square of one unit is
      ``inputs / outputs`` times its input's; with fewer outputs than inputs it is the mean square that is kept. A
      convolution with an orthogonal kernel is no isometry, see :func:`jaxgrad.initializers.delta_orthogonal`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w = orthogonal()(jax.random.key(0), (4, 2))
      >>> bool(jnp.allclose(w.T @ w, jnp.eye(2), atol=1e-5))
      True

    References:
      :cite:p:`saxe2014exact`; :cite:p:`mezzadri2007generate`, section 5, for the signs.

    See also:
      ``jax.nn.initializers.orthogonal``, which takes stacked kernels for one tall matrix and refuses bfloat16;
      ``keras.initializers.Orthogonal(gain)``; ``torch.nn.init.orthogonal_(gain)``.
    """
    check_positive("orthogonal", "scale", scale)
    default = dtype

    def init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike | None = None) -> Array:
        kernel_dtype, wide = draw_dtypes("orthogonal", default if dtype is None else dtype)
        axes = kernel_axes(shape, in_axis, out_axis, batch_axis, einsum)
        batch, rows, columns = _matrix_shape("orthogonal", shape, axes, feature_group_count)
        matrices = jax.random.orthogonal(key, rows, (batch, feature_group_count), wide, columns)
        return (_place(matrices, shape, axes) * scale).astype(kernel_dtype)

    return init


def delta_orthogonal(
    scale: float = 1.0,
    *,
    in_axis: int = IN_AXIS,
    out_axis: int = OUT_AXIS,
    feature_group_count: int = 1,
    dtype: DTypeLike | None = None,
) -> Initializer:
    r"""Build an initializer of convolutions that keep the norm: an orthogonal matrix at the centre, zeros around.

    .. math::
      W_{x} = \text{scale} \cdot H\, \delta_{x, \lfloor (k - 1) / 2 \rfloor}, \qquad H H^\top = I.

    Args:
      scale: Every singular value of the convolution. Positive.
      in_axis: Axis of the input channels. The default is right for kernels (..., in, out), 1 for (out, in, ...).
      out_axis: Axis of the output channels: -1, or 0.
      feature_group_count: Number of groups of a grouped convolution; each has a matrix of its own.
      dtype: Type to draw where the call gives none; ``None``: JAX's default float.

    Returns:
      An initializer ``init(key, shape, dtype)`` for kernels with one to three axes of the window.

    Raises:
      TypeError: When called: ``dtype`` is not floating or complex.
      ValueError: ``scale`` is not positive. When called: the shape has no window or one of more than three axes, or a
        group has more inputs than outputs: no convolution with such a centre keeps the norm.

    Numerics:
      An isometry to 1e-6 in float32 with stride 1 and any padding that keeps the size, for JAX's ``"SAME"`` too.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w = delta_orthogonal()(jax.random.key(0), (3, 3, 4, 8))
      >>> bool(jnp.allclose(w[1, 1] @ w[1, 1].T, jnp.eye(4), atol=1e-5)), float(abs(w[0]).max())
      (True, 0.0)

    References:
      :cite:p:`xiao2018dynamical`, who name it.

    See also:
      ``jax.nn.initializers.delta_orthogonal``, for kernels (..., in, out); Keras and PyTorch have none.
    """
    check_positive("delta_orthogonal", "scale", scale)
    draw = orthogonal(scale, in_axis=in_axis, out_axis=out_axis, feature_group_count=feature_group_count, dtype=dtype)

    def init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike | None = None) -> Array:
        if not 3 <= len(shape) <= 5:
            raise ValueError(
                message(
                    "delta_orthogonal",
                    "the kernel of a convolution: a window of one to three axes, and channels in and out",
                    f"shape {tuple(shape)}",
                    "take orthogonal() for a dense kernel",
                )
            )
        axes = kernel_axes(shape, in_axis, out_axis, (), None)
        inputs, outputs = shape[axes.inputs[0]], shape[axes.outputs[0]]
        check_groups("delta_orthogonal", feature_group_count, outputs)
        if inputs > outputs // feature_group_count:
            raise ValueError(
                message(
                    "delta_orthogonal",
                    "at least as many output as input channels",
                    f"{inputs} in and {outputs // feature_group_count} out, in shape {tuple(shape)}",
                    "take orthogonal() where channels are dropped, or say which axes are which with in_axis, out_axis",
                )
            )
        return _pad_window(draw(key, _centre(shape, axes), dtype), shape, axes)

    return init


def identity(
    scale: float = 1.0,
    *,
    in_axis: int | Sequence[int] = IN_AXIS,
    out_axis: int | Sequence[int] = OUT_AXIS,
    batch_axis: int | Sequence[int] = BATCH_AXIS,
    einsum: str | None = None,
    feature_group_count: int = 1,
    dtype: DTypeLike | None = None,
) -> Initializer:
    r"""Build an initializer of layers that hand their input on.

    .. math::
      W_{x i o} = \text{scale} \cdot \delta_{i o}\, \delta_{x, \lfloor (k - 1) / 2 \rfloor}

    in each group, with :math:`x` the position in the window of a convolution (the Dirac kernel). Where there are more
    outputs than inputs the rest is zero; where there are fewer, the last inputs are dropped.

    Args:
      scale: What the input is multiplied by. Positive.
      in_axis: As in :func:`jaxgrad.initializers.fans`, like the four after it.
      out_axis: Axis or axes of the output.
      batch_axis: Axis or axes of stacked kernels.
      einsum: Instead of the axes, the layer's einsum.
      feature_group_count: Number of groups of a grouped convolution.
      dtype: Type to make where the call gives none; ``None``: JAX's default float.

    Returns:
      An initializer ``init(key, shape, dtype)``, which makes no use of its key.

    Raises:
      TypeError: When called: ``dtype`` is not floating or complex.
      ValueError: ``scale`` is not positive. When called: the shape and the axes do not fit, as in ``fans``.

    Example:
      >>> import jax
      >>> identity()(jax.random.key(0), (2, 3)).tolist()
      [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]

    References:
      :cite:p:`le2015simple`, for recurrent layers of ReLUs; :cite:p:`chen2016net2net`, for layers put into a trained
      network (Net2DeeperNet).

    See also:
      ``torch.nn.init.eye_`` and ``dirac_``; ``keras.initializers.Identity`` is for square matrices.
    """
    check_positive("identity", "scale", scale)
    default = dtype

    def init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike | None = None) -> Array:
        kernel_dtype, _ = draw_dtypes("identity", default if dtype is None else dtype)
        axes = kernel_axes(shape, in_axis, out_axis, batch_axis, einsum)
        centre = _centre(shape, axes)
        batch, rows, columns = _matrix_shape("identity", centre, axes, feature_group_count)
        matrices = jnp.broadcast_to(
            jnp.eye(rows, columns, dtype=kernel_dtype), (batch, feature_group_count, rows, columns)
        )
        return _pad_window(_place(matrices, centre, axes) * jnp.asarray(scale, kernel_dtype), shape, axes)

    return init


def _matrix_shape(function: str, shape: Sequence[int], axes: KernelAxes, groups: int) -> tuple[int, int, int]:
    """Return how many matrices a group of the kernel is made of, and their rows and columns."""
    outputs = _size(shape, axes.outputs)
    check_groups(function, groups, outputs)
    return _size(shape, axes.batch), _size(shape, (*axes.field, *axes.inputs)), outputs // groups


def _size(shape: Sequence[int], axes: Sequence[int]) -> int:
    return math.prod(shape[axis] for axis in axes)


def _place(matrices: Array, shape: Sequence[int], axes: KernelAxes) -> Array:
    """Return the kernel of a shape from its matrices, of shape (batch, groups, rows, columns)."""
    order = (*axes.batch, *axes.field, *axes.inputs, *axes.outputs)
    # The outputs of one group follow one another.
    kernel = jnp.moveaxis(matrices, 1, 2).reshape([shape[axis] for axis in order])
    return jnp.moveaxis(kernel, range(len(order)), order)


def _centre(shape: Sequence[int], axes: KernelAxes) -> tuple[int, ...]:
    return tuple(1 if axis in axes.field else size for axis, size in enumerate(shape))


def _pad_window(centre: Array, shape: Sequence[int], axes: KernelAxes) -> Array:
    """Put zeros around the centre, where JAX's convolution with padding ``"SAME"`` has it."""
    before = [(size - 1) // 2 if axis in axes.field else 0 for axis, size in enumerate(shape)]
    after = [size - own - low for size, own, low in zip(shape, centre.shape, before, strict=True)]
    return jnp.pad(centre, list(zip(before, after, strict=True)))
