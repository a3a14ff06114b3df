"""Kernels in which every output unit reads few inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from jaxgrad._checks import message
from jaxgrad.initializers._fans import BATCH_AXIS, IN_AXIS, OUT_AXIS, kernel_axes
from jaxgrad.initializers._variance_scaling import Initializer, check_positive, draw_dtypes


def sparse(
    num_connections: int = 15,
    *,
    stddev: float = 1.0,
    in_axis: int | Sequence[int] = IN_AXIS,
    out_axis: int | Sequence[int] = OUT_AXIS,
    batch_axis: int | Sequence[int] = BATCH_AXIS,
    einsum: str | None = None,
    dtype: DTypeLike | None = None,
) -> Initializer:
    r"""Build an initializer that gives every output unit the same small number of inputs.

    .. math::
      w_{io} = \text{stddev} \cdot z_{io}\, m_{io}, \qquad z_{io} \sim N(0, 1), \qquad
      \sum_i m_{io} = \min(\text{num\_connections}, \text{fan}_\text{in}),

    with :math:`m_{\cdot o}` a set of inputs drawn for each output. A unit's scale does not depend on the width.

    Args:
      num_connections: Inputs of a unit that are not zero, at least 1; all of them where there are fewer.
      stddev: Standard deviation of these. The default is the paper's; ``num_connections**-0.5`` keeps the mean square
        through a linear layer, ``(2 / num_connections)**0.5`` through a ReLU.
      in_axis: As in :func:`jaxgrad.initializers.fans`, like the three after it.
      out_axis: Axis or axes of the output.
      batch_axis: Axis or axes of stacked kernels.
      einsum: Instead of the axes, the layer's einsum.
      dtype: Type to draw where the call gives none; ``None``: JAX's default float.

    Returns:
      An initializer ``init(key, shape, dtype)``.

    Raises:
      TypeError: When called: ``dtype`` is not floating or complex.
      ValueError: ``num_connections`` is under 1, ``stddev`` is not positive. When called: the shape and the axes do not
        fit, as in ``fans``.

    Example:
      >>> import jax
      >>> w = sparse(3)(jax.random.key(0), (100, 4))
      >>> (w != 0).sum(axis=0).tolist()
      [3, 3, 3, 3]

    References:
      :cite:p:`martens2010deep`, who names 15 connections and a normal of variance one.

    See also:
      ``torch.nn.init.sparse_(sparsity, std=0.01)``, which takes the fraction of zeros.
    """
    if num_connections < 1:
        raise ValueError(
            message("sparse", "num_connections of at least 1", f"{num_connections}", "leave it out for 15")
        )
    check_positive("sparse", "stddev", stddev)
    default = dtype

    def init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike | None = None) -> Array:
        kernel_dtype, wide = draw_dtypes("sparse", default if dtype is None else dtype)
        axes = kernel_axes(shape, in_axis, out_axis, batch_axis, einsum)
        summed = (*axes.field, *axes.inputs)
        others = (*axes.batch, *axes.outputs)
        fan_in = math.prod(shape[axis] for axis in summed)
        mask_key, value_key = jax.random.split(key)
        noise = jax.random.uniform(mask_key, (*(shape[axis] for axis in others), fan_in), jnp.float32)
        chosen = jnp.argsort(noise, axis=-1) < num_connections  # a random permutation of the inputs
        mask = chosen.reshape([shape[axis] for axis in (*others, *summed)])
        mask = jnp.moveaxis(mask, range(len(shape)), (*others, *summed))
        values = jax.random.normal(value_key, tuple(shape), wide) * stddev
        return jnp.where(mask, values, jnp.zeros_like(values)).astype(kernel_dtype)

    return init
