"""How many numbers enter and leave one unit of a layer, from the shape of its kernel."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

from jaxgrad._checks import message

IN_AXIS, OUT_AXIS, BATCH_AXIS = -2, -1, ()


class Fans(NamedTuple):
    """The fans of a kernel.

    Attributes:
      fan_in: How many products are summed in one output unit.
      fan_out: How many output units one input unit reaches, and so how many products are summed in its gradient.
    """

    fan_in: int
    fan_out: int


def fans(
    shape: Sequence[int],
    *,
    in_axis: int | Sequence[int] = IN_AXIS,
    out_axis: int | Sequence[int] = OUT_AXIS,
    batch_axis: int | Sequence[int] = BATCH_AXIS,
    einsum: str | None = None,
    feature_group_count: int = 1,
) -> Fans:
    r"""Count the inputs and the outputs of one unit of a layer.

    .. math::
      \text{fan}_\text{in} = r \prod_{a \in \text{in}} n_a, \qquad
      \text{fan}_\text{out} = \frac{r}{g} \prod_{a \in \text{out}} n_a,

    with :math:`n` the shape, :math:`g` the number of groups, and :math:`r` the product over the axes in none of the
    three lists: the receptive field of a convolution. With ``einsum``, the fan-in is the product over the kernel's
    letters that the output lacks, the fan-out over those that the input lacks.

    Args:
      shape: Shape of the kernel, every size at least 1.
      in_axis: Axis or axes that are summed over; ``()`` where there is none. The default is right for the kernels
        (in, out) of a dense layer and (height, width, in, out) of a convolution. A kernel in the layout of PyTorch or
        equinox, (out, in, height, width), has ``in_axis=1, out_axis=0``; one of a transposed convolution with
        ``transpose_kernel=True`` has ``in_axis=-1, out_axis=-2``.
      out_axis: Axis or axes of the output.
      batch_axis: Axis or axes along which kernels of separate layers, experts or groups are stacked. For the table
        (entries, features) of an embedding, which reads one row, give ``in_axis=(), batch_axis=0``: the fan-in is 1.
      einsum: Instead of the axes, the einsum the kernel is the second operand of, such as ``"bse,ehk->bshk"`` for the
        projection to the heads of an attention layer and ``"bshk,hke->bse"`` for the one back. ``...`` may stand in
        the input and the output.
      feature_group_count: Number of groups of a grouped convolution, as in ``jax.lax.conv_general_dilated``; the
        kernel's output axes hold all groups, its input axes one.

    Returns:
      ``Fans(fan_in, fan_out)``, two integers.

    Raises:
      TypeError: ``shape`` is no sequence of integers.
      ValueError: An axis is out of range or given twice; the shape has a zero; a 1-D shape comes without axes of its
        own; ``einsum`` does not parse, does not fit the shape, or comes together with axes; the groups do not divide
        the output axes.

    Numerics:
      Strides are not counted. A transposed convolution with stride ``s`` along ``d`` axes has a fan-in smaller by
      ``s**d``, on average: multiply an initializer's ``scale`` by it. The stride of a convolution does the same to its
      fan-out.

    Example:
      >>> fans((3, 3, 16, 32))
      Fans(fan_in=144, fan_out=288)
      >>> fans((512, 8, 64), einsum="de,ehk->dhk")
      Fans(fan_in=512, fan_out=512)

    References:
      :cite:p:`he2015delving`, section 2.2, for a convolution's fan-in and fan-out.

    See also:
      ``torch.nn.init._calculate_fan_in_and_fan_out``, for kernels (out, in, ...), and without ``feature_group_count``;
      ``jax.nn.initializers.variance_scaling`` computes the same from the axes, without ``einsum``.
    """
    axes = kernel_axes(shape, in_axis, out_axis, batch_axis, einsum)
    shape = tuple(shape)
    field, fan_in, fan_out = (
        math.prod(shape[axis] for axis in axes) for axes in (axes.field, axes.inputs, axes.outputs)
    )
    check_groups("fans", feature_group_count, fan_out)
    return Fans(field * fan_in, field * fan_out // feature_group_count)


class KernelAxes(NamedTuple):
    """What the axes of a kernel are for, each axis in one place.

    Attributes:
      inputs: Summed over.
      outputs: Kept in the output alone.
      batch: Kernels of separate layers.
      field: Neither: the window of a convolution.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    batch: tuple[int, ...]
    field: tuple[int, ...]


def kernel_axes(
    shape: Sequence[int],
    in_axis: int | Sequence[int],
    out_axis: int | Sequence[int],
    batch_axis: int | Sequence[int],
    einsum: str | None,
) -> KernelAxes:
    """Sort the axes of a kernel from what the user says of them."""
    shape = _check_shape(shape)
    if einsum is None:
        return _named_axes(shape, in_axis, out_axis, batch_axis)
    if (in_axis, out_axis, batch_axis) != (IN_AXIS, OUT_AXIS, BATCH_AXIS):
        raise ValueError(
            message("fans", "either axes or einsum", f"{einsum!r} and axes", "leave the axes out beside einsum")
        )
    return _einsum_axes(shape, einsum)


def check_groups(function: str, feature_group_count: int, outputs: int) -> None:
    """Refuse groups that do not divide the outputs."""
    if feature_group_count < 1 or outputs % feature_group_count:
        raise ValueError(
            message(
                function,
                f"groups that divide the {outputs} outputs of the kernel",
                f"feature_group_count={feature_group_count}",
                "pass the feature_group_count of the convolution",
            )
        )


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    try:
        shape = tuple(operator.index(size) for size in shape)
    except TypeError:
        raise TypeError(
            message("fans", "a shape: a sequence of integers", repr(shape), "pass kernel.shape, or (in, out)")
        ) from None
    if any(size < 1 for size in shape):
        raise ValueError(
            message(
                "fans",
                "a shape with sizes of at least 1",
                f"{shape}",
                "drop the layer, or give it units: an empty kernel has no fan to scale by",
            )
        )
    return shape


def _named_axes(
    shape: tuple[int, ...],
    in_axis: int | Sequence[int],
    out_axis: int | Sequence[int],
    batch_axis: int | Sequence[int],
) -> KernelAxes:
    named = {"in_axis": in_axis, "out_axis": out_axis, "batch_axis": batch_axis}
    normalized: dict[str, tuple[int, ...]] = {}
    for name, axes in named.items():
        axes = (axes,) if isinstance(axes, int) else tuple(axes)
        if any(not -len(shape) <= axis < len(shape) for axis in axes):
            raise ValueError(
                message(
                    "fans",
                    f"an {name} within a kernel of at least 2 axes" if len(shape) < 2 else f"{name} within {shape}",
                    f"{name}={named[name]} for shape {shape}",
                    "a bias or a scale has no fan: initialize it with zeros or ones; else name the axes, as in "
                    "in_axis=(), out_axis=0"
                    if len(shape) < 2
                    else f"give axes from {-len(shape)} to {len(shape) - 1}",
                )
            )
        normalized[name] = tuple(axis % len(shape) for axis in axes)
    used = [axis for axes in normalized.values() for axis in axes]
    if len(set(used)) < len(used):
        raise ValueError(
            message(
                "fans",
                "every axis in one place",
                ", ".join(f"{name}={axes}" for name, axes in named.items()) + f" for shape {shape}",
                "give an axis either to in_axis, out_axis or batch_axis; leave the axes of the window out",
            )
        )
    field = tuple(axis for axis in range(len(shape)) if axis not in used)
    return KernelAxes(normalized["in_axis"], normalized["out_axis"], normalized["batch_axis"], field)


def _einsum_axes(shape: tuple[int, ...], einsum: str) -> KernelAxes:
    operands, arrow, output = einsum.replace(" ", "").partition("->")
    layer_input, comma, kernel = operands.partition(",")
    letters = {term: term.replace("...", "") for term in (layer_input, kernel, output)}
    proper = all(not letters[term] or letters[term].isalpha() for term in letters) and "..." not in kernel
    if not (arrow and comma and kernel and proper) or len(set(kernel)) < len(kernel):
        raise ValueError(
            message(
                "fans",
                "an einsum of input, kernel and output, with different letters in the kernel",
                repr(einsum),
                'write it as "de,ehk->dhk", the kernel second',
            )
        )
    if len(kernel) != len(shape):
        raise ValueError(
            message(
                "fans",
                f"a kernel with the {len(kernel)} axes of {kernel!r} in {einsum!r}",
                f"shape {shape}",
                "give the kernel's shape, and a letter for each of its axes",
            )
        )
    unknown = set(letters[output]) - set(letters[layer_input]) - set(kernel)
    if unknown:
        raise ValueError(
            message(
                "fans",
                "an output made of letters of the input and the kernel",
                f"{einsum!r}, in which {', '.join(sorted(unknown))} comes from nowhere",
                "give that letter to the input or the kernel",
            )
        )
    groups: dict[tuple[bool, bool], list[int]] = {}
    for axis, letter in enumerate(kernel):
        groups.setdefault((letter in letters[layer_input], letter in letters[output]), []).append(axis)
    inputs, outputs, batch, field = (
        tuple(groups.get(place, ())) for place in ((True, False), (False, True), (True, True), (False, False))
    )
    return KernelAxes(inputs, outputs, batch, field)
