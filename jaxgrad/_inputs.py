"""What data k-means and PCA take, and what they say of the rest."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxgrad._checks import message


def check_rows(function: str, x: Any, num_features: int | None = None) -> Array:
    """Return data as a matrix of float32, or float64.

    Args:
      function: The public name the user called.
      x: What came.
      num_features: How many columns it must have; any number if ``None``.

    Raises:
      TypeError: It is complex, or no numbers.
      ValueError: It is no matrix, is empty, or has another number of columns.
    """
    if not isinstance(x, jax.Array):
        x = np.asarray(x)
        if x.dtype.kind not in "biufV":  # V: bfloat16 and its like
            raise TypeError(message(function, "real numbers", f"dtype {x.dtype}", "take the real part, or encode them"))
    columns = "num_features" if num_features is None else num_features
    if x.ndim != 2:
        raise ValueError(
            message(function, f"data of shape (num_rows, {columns})", f"shape {x.shape}", "reshape, a row an example")
        )
    if num_features is not None and x.shape[1] != num_features:
        raise ValueError(
            message(function, f"{num_features} features", f"shape {x.shape}", "use the features of the fit, in order")
        )
    if 0 in x.shape:
        raise ValueError(message(function, "at least one row and one feature", f"shape {x.shape}", "pass some data"))
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(message(function, "real data", f"dtype {dtype}", "stack real and imaginary part as features"))
    if jnp.issubdtype(dtype, jnp.floating):
        wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    else:
        wide = jnp.result_type(float)
    if isinstance(x, Tracer):
        return x.astype(wide)
    with jax.ensure_compile_time_eval():  # what is concrete stays so within a function that is being traced
        return _owned(x).astype(wide)


def check_weights(function: str, weights: Any, x: Array) -> Array | None:
    """Return the weights of the rows, in the type of the data; ``None`` for none.

    Raises:
      TypeError: They are complex.
      ValueError: They are not one number a row; or, where they are concrete, one is negative or not finite.
    """
    if weights is None:
        return None
    with jax.ensure_compile_time_eval():
        weights = _owned(weights)
    if jnp.issubdtype(weights.dtype, jnp.complexfloating):
        raise TypeError(message(function, "real weights", f"dtype {weights.dtype}", "pass how often each row counts"))
    if weights.shape != x.shape[:1]:
        raise ValueError(
            message(function, f"weights of shape {x.shape[:1]}", f"shape {weights.shape}", "pass one number a row")
        )
    if isinstance(weights, Tracer):
        return weights.astype(x.dtype)
    with jax.ensure_compile_time_eval():
        weights = weights.astype(x.dtype)
        wrong = int(jnp.sum(~((weights >= 0) & jnp.isfinite(weights))))
        if wrong:
            raise ValueError(
                message(
                    function,
                    "finite weights of at least 0",
                    f"{wrong} of {weights.size} that are not",
                    "leave a row out with weight 0",
                )
            )
    return weights


def _owned(x: Any) -> Array:
    """Return an array that nobody can write to: its owner may read the next batch into the buffer of this one."""
    return x if isinstance(x, jax.Array) else jnp.array(x)


def check_key(function: str, key: Any) -> None:
    """Refuse what is no key of a random number generator."""
    if not isinstance(key, jax.Array) or not (
        (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ())
        or (key.dtype == jnp.uint32 and key.ndim == 1)
    ):
        got = f"{type(key).__name__}" + (f" of shape {key.shape}" if isinstance(key, jax.Array) else "")
        raise TypeError(message(function, "one random key first", got, "pass jax.random.key(0), or map over many"))


def rows_taken(
    x: Float[Array, "n d"], weights: Float[Array, " n"] | None
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    """Return weights that are 0 for rows that take no part, and which rows of positive weight are not finite."""
    finite = usable(x)
    if weights is None:
        return finite.astype(x.dtype), ~finite
    counts = (weights > 0) & jnp.isfinite(weights)
    return jnp.where(finite & counts, weights, 0), ~finite & counts


def mask_rows(x: Array, weights: Array | None) -> Array | None:
    """Return weights that are 0 for rows that cannot take part; ``None`` stays where the caller refuses such rows."""
    if weights is None and not isinstance(x, Tracer):
        return None
    return rows_taken(x, weights)[0]


def refuse_rows(function: str, x: Array, weights: Array | None) -> None:
    """Say how many of the rows that count are not finite, if any are; traced rows pass unseen."""
    if isinstance(x, Tracer) or isinstance(weights, Tracer):
        return
    with jax.ensure_compile_time_eval():  # within a function that is being traced, too
        bad = ~usable(x) if weights is None else ~usable(x) & (weights > 0)
        count = int(jnp.sum(bad))
    if count:
        raise ValueError(
            message(
                function,
                "finite rows",
                f"{count} of {x.shape[0]} with a NaN or an infinity",
                "fill them in, drop them, or give them weight 0",
            )
        )


@jax.jit
def usable(x: Float[Array, "n d"]) -> Bool[Array, " n"]:
    """Tell which rows are finite."""
    return jnp.all(jnp.isfinite(x), axis=1)
