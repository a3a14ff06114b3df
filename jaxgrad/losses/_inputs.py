"""What every loss does around its formula: checks, the computing precision, masks, and the axis of a row."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxgrad._checks import message


def elementwise(
    function: str,
    formula: Callable[[Array, Array], Array],
    predictions: Any,
    targets: Any,
    where: Any,
    dtype: DTypeLike | None,
) -> Array:
    """Apply the formula of an elementwise loss to checked inputs, in at least float32.

    Args:
      function: The public name the user called, for errors.
      formula: From predictions and targets of one shape and dtype to losses of that shape; finite at (0, 0).
      predictions: What the user gave.
      targets: What the user gave.
      where: What the user gave.
      dtype: What the user gave.

    Returns:
      The losses, of the inputs' shape.
    """
    predictions, targets, result = _floating_pair(function, predictions, targets, dtype)
    if predictions.shape and targets.shape:
        _check_shapes(function, predictions, targets)
    shape = predictions.shape or targets.shape
    predictions, targets = jnp.broadcast_to(predictions, shape), jnp.broadcast_to(targets, shape)
    if where is None:
        return formula(predictions, targets).astype(result)
    where = check_mask(function, where, shape)
    # Replaced before as well: a where after the formula alone gives NaN gradients, as 0 times NaN.
    losses = formula(jnp.where(where, predictions, 0), jnp.where(where, targets, 0))
    return jnp.where(where, losses, 0).astype(result)


def rowwise(
    function: str,
    formula: Callable[[Array, Array], Array],
    predictions: Any,
    targets: Any,
    where: Any,
    dtype: DTypeLike | None,
    axis: int,
    *,
    left_out: float = 0.0,
) -> Array:
    """Apply the formula of a loss over rows to checked inputs, in at least float32.

    Args:
      function: The public name the user called, for errors.
      formula: From predictions and targets of one shape and dtype to losses without the last axis.
      predictions: What the user gave.
      targets: What the user gave.
      where: What the user gave: a mask of rows or of their entries.
      dtype: What the user gave.
      axis: What the user gave.
      left_out: The prediction with which, beside a target of 0, an entry takes no part in its row.

    Returns:
      The losses, of the inputs' shape without ``axis``.
    """
    predictions, targets, result = _floating_pair(function, predictions, targets, dtype)
    _check_shapes(function, predictions, targets)
    axis = check_axis(function, predictions, axis)
    entries = (
        None if where is None else jnp.moveaxis(check_row_mask(function, where, predictions.shape, axis), axis, -1)
    )
    predictions, targets = jnp.moveaxis(predictions, axis, -1), jnp.moveaxis(targets, axis, -1)
    if entries is None:
        return formula(predictions, targets).astype(result)
    losses = formula(jnp.where(entries, predictions, left_out), jnp.where(entries, targets, 0))
    return jnp.where(jnp.any(entries, axis=-1), losses, 0).astype(result)


@jax.custom_jvp
def times(factor: Array, values: Array) -> Array:
    """Multiply, with 0 · ±inf = 0: what cannot happen costs nothing. The derivative for ``factor`` is 0 there."""
    return jnp.where(factor == 0, 0, factor * values)


# By a rule of its own, the derivative for the values costs one product; symbolic zeros, since 0 · inf is not 0.
def _times_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Any]:
    factor, values = primals
    by_factor, by_values = (None if isinstance(tangent, SymbolicZero) else tangent for tangent in tangents)
    tangent = jnp.zeros_like(factor)
    if by_factor is not None:
        tangent = by_factor * jnp.where((factor == 0) & jnp.isinf(values), 0, values)
    if by_values is not None:
        tangent = factor * by_values if by_factor is None else tangent + factor * by_values
    return times(factor, values), tangent


times.defjvp(_times_jvp, symbolic_zeros=True)


def floating(function: str, name: str, values: Any) -> Array:
    """Return the values as a real floating array; a Python number stays weakly typed."""
    values = _array(function, name, values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(
            message(function, f"real floating {name}", f"{values.dtype}", f"cast them: {name}.astype(float)")
        )
    return values


def integers(function: str, name: str, values: Any) -> Array:
    """Return the values as an array of signed integers, wide enough to be compared with any class."""
    values = _array(function, name, values)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(message(function, f"integer {name}", f"{values.dtype}", f"cast them: {name}.astype(int)"))
    return values if values.dtype == jnp.int64 else values.astype(jnp.int32)


def real(function: str, name: str, values: Any) -> Array:
    """Return the values as an array of real numbers or booleans."""
    values = _array(function, name, values)
    if not any(jnp.issubdtype(values.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(message(function, f"real {name}", f"{values.dtype}", f"take {name}.real"))
    return values


def computing_dtype(*dtypes: Any) -> jnp.dtype:
    """Return the dtype to compute in: float32, or float64 where one of the dtypes is that."""
    return jnp.dtype(jnp.float64 if any(dtype == jnp.float64 for dtype in dtypes) else jnp.float32)


def check_dtype(function: str, dtype: DTypeLike) -> jnp.dtype:
    """Return a floating dtype that the user asked for."""
    dtype = jnp.dtype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(message(function, "a real floating dtype", f"{dtype}", "leave dtype out for the inputs' own"))
    return dtype


def check_mask(function: str, where: Any, shape: tuple[int, ...]) -> Array:
    """Return a boolean mask that combines with ``shape`` without a new axis and without enlarging it."""
    where = _array(function, "where", where)
    if where.dtype != jnp.bool_:
        raise TypeError(
            message(
                function,
                "a boolean mask where",
                f"{where.dtype}",
                "compare: where != 0; for weights use reduce(losses, weights=...)",
            )
        )
    return check_aligned(function, "where", where, shape)


def check_aligned(function: str, name: str, array: Array, shape: tuple[int, ...]) -> Array:
    """Return an array that is a scalar or has the rank of ``shape``, with each axis of the same length or 1."""
    aligned = array.ndim == len(shape) and all(own in (1, full) for own, full in zip(array.shape, shape, strict=True))
    if array.ndim and not aligned:
        raise ValueError(
            message(
                function,
                f"{name} as a scalar or of rank {len(shape)}, each axis 1 or that of {shape}",
                f"shape {array.shape}",
                f"say which axes it belongs to, as in {name}[:, None] for one value a row",
            )
        )
    return array


def check_row_mask(function: str, where: Any, shape: tuple[int, ...], axis: int) -> Array:
    """Return a mask of the rank of ``shape``, from one of that rank or of the rows alone."""
    where = _array(function, "where", where)
    if where.ndim == len(shape) and where.ndim:
        return check_mask(function, where, shape)
    rows = check_mask(function, where, shape[:axis] + shape[axis + 1 :])
    return jnp.reshape(rows, (1,) * len(shape)) if rows.ndim == 0 else jnp.expand_dims(rows, axis)


def check_axis(function: str, array: Array, axis: Any) -> int:
    """Return the axis of the rows' entries, counted from the front."""
    try:
        axis = operator.index(axis)
    except TypeError:
        raise TypeError(
            message(function, "axis as one integer", repr(axis), "flatten several axes into one: x.reshape(n, -1)")
        ) from None
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(
            message(
                function,
                f"predictions with an axis {axis}",
                f"shape {array.shape}",
                "pass at least one row of shape (n,)" if not array.ndim else f"pass axis below {array.ndim}",
            )
        )
    if array.shape[axis] == 0:
        raise ValueError(
            message(function, f"at least one entry along axis {axis}", f"shape {array.shape}", "drop the empty rows")
        )
    return axis % array.ndim


def check_positive(function: str, name: str, value: Any, *, below: float = math.inf) -> float:
    """Return a static number above 0 and below a limit."""
    value = float(value)
    if not 0 < value < below:
        expected = "positive and finite" if below == math.inf else f"between 0 and {below:g}"
        raise ValueError(message(function, f"{name} {expected}", repr(value), f"leave {name} out for the default"))
    return value


def concrete(values: Any) -> np.ndarray | None:
    """Return what the user gave on the host, or ``None`` where it is traced or not all on this host.

    What is made of known values inside ``jit`` is traced, so ask before any computation.
    """
    if isinstance(values, Tracer) or (isinstance(values, jax.Array) and not values.is_fully_addressable):
        return None
    return np.asarray(values)


def _floating_pair(
    function: str, predictions: Any, targets: Any, dtype: DTypeLike | None
) -> tuple[Array, Array, jnp.dtype]:
    """Return predictions and targets in the computing dtype, and the dtype of the result."""
    predictions = floating(function, "predictions", _as_float(predictions))
    targets = real(function, "targets", _as_float(targets))
    known = [x.dtype for x in (predictions, targets) if jnp.issubdtype(x.dtype, jnp.floating) and not x.weak_type]
    if dtype is not None:
        result = check_dtype(function, dtype)
    elif predictions.weak_type and known:
        result = known[0]
    else:
        result = predictions.dtype
    computing = computing_dtype(result, *known)
    return predictions.astype(computing), targets.astype(computing), result


def _as_float(values: Any) -> Any:
    return float(values) if type(values) is int else values


def _array(function: str, name: str, values: Any) -> Array:
    if not (hasattr(values, "dtype") or hasattr(values, "__jax_array__") or isinstance(values, (bool, int, float))):
        raise TypeError(
            message(function, f"{name} as an array or a number", f"a {type(values).__name__}", "use jnp.asarray(...)")
        )
    return jnp.asarray(values)


def _check_shapes(function: str, predictions: Array, targets: Array) -> None:
    if predictions.shape == targets.shape:
        return
    if predictions.size == targets.size:
        remedy = f"reshape one of them: targets.reshape({predictions.shape})"
    elif predictions.ndim == targets.ndim + 1:
        remedy = "for class labels use jax.nn.one_hot(targets, num_classes), or add the missing axis"
    else:
        remedy = "nothing is broadcast here: where that is meant, jnp.broadcast_to(targets, predictions.shape)"
    raise ValueError(
        message(
            function,
            "predictions and targets of the same shape",
            f"{predictions.shape} and {targets.shape}",
            remedy,
        )
    )
