"""Thresholds: numbers, schedules of the step, or values that live in the state."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgrad._checks import message

Threshold = jax.typing.ArrayLike | Callable[[Any], jax.typing.ArrayLike]


def check_threshold(function: str, name: str, value: Any, *, above: float = math.inf) -> None:
    """Refuse a number that is negative, NaN or above ``above``, and an array that is not a scalar."""
    if callable(value):
        return
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        # Written so that NaN is refused too.
        if not 0 <= value <= above:
            limit = "" if above == math.inf else f" and at most {above}"
            raise ValueError(
                message(
                    function,
                    f"{name} of at least 0{limit}",
                    repr(value),
                    f"pass such a {name}, a schedule or a traced scalar",
                )
            )
        return
    dtype = getattr(value, "dtype", None)
    if dtype is None or jnp.shape(value) != () or not jnp.issubdtype(dtype, jnp.number):
        got = type(value).__name__ if dtype is None else f"an array of shape {jnp.shape(value)} and dtype {dtype}"
        raise TypeError(
            message(function, f"{name} as a number, a scalar array or a schedule", got, f"pass a float as {name}")
        )


def check_count(function: str, name: str, value: Any, *, least: int = 0, static: bool = False) -> None:
    """Refuse a count that is no integer or is too small; a traced one passes unless it must be static."""
    if isinstance(value, jax.Array) and not static:
        return
    try:
        number = None if isinstance(value, jax.Array) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        remedy = f"pass an int; under optax.inject_hyperparams, name {name} in static_args"
        raise TypeError(message(function, f"an integer {name}", repr(value), remedy))
    if number < least:
        raise ValueError(message(function, f"{name} of at least {least}", repr(value), f"pass a larger {name}"))


def threshold_at(value: Threshold, count: Array, dtype: Any) -> Array:
    """Evaluate a threshold at a step; a traced negative number counts as 0."""
    value = value(count) if callable(value) else value
    return jnp.maximum(jnp.asarray(value).astype(dtype), 0)
