"""Lyapunov exponents of a recurrence: the rates at which its Jacobians stretch, per step, over a long trajectory.

A frame of orthonormal vectors is pushed through the linearised step and orthonormalised again by QR; the logarithms of
the diagonal of R add up to the growth along each direction. No product of Jacobians and no Jacobian is ever formed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxgrad._checks import message
from jaxgrad.spectra._operators import flatten, linear_maps, tree_size, unflatten
from jaxgrad.spectra._products import _qr

# A diagonal entry of R counts as zero at this many roundings of the largest entry in its column, times the root of the
# frame's height: what QR leaves of a column that depends on the others.
_UNRESOLVED = 4.0


class LyapunovExponents(NamedTuple):
    """Lyapunov exponents, and how far to trust them.

    Attributes:
      exponents: Exponents in nats per step, descending, of shape (k,).
      standard_error: Standard error of each from the scatter of about ``sqrt(T)`` consecutive blocks of the
        trajectory, of shape (k,). Long blocks are all but independent of one another, where neighbouring steps are
        not. inf where there are fewer than four QR decompositions to divide into blocks; 0 for an exponent of -inf.
      drift: The estimate from the second half of the blocks less that from all, of shape (k,). Well beyond the
        standard error, the trajectory or the frame had not settled: raise ``num_warmup``. 0 for an exponent of -inf.
    """

    exponents: Float[Array, " k"]
    standard_error: Float[Array, " k"]
    drift: Float[Array, " k"]


class Recurrence(NamedTuple):
    """A checked recurrence.

    Attributes:
      advance: Maps a carry and one step's input to the next carry.
      carry: Where it starts, as arrays.
      xs: Its inputs, as arrays.
      length: How many steps it takes.
    """

    advance: Callable[[Any, Any], Any]
    carry: Any
    xs: Any
    length: int


def lyapunov_exponents(
    step: Callable[[Any, Any], Any],
    carry: Any,
    xs: Any = None,
    *,
    num_exponents: int | None = None,
    num_steps: int | None = None,
    num_warmup: int = 0,
    steps_per_qr: int = 1,
) -> LyapunovExponents:
    r"""Estimate the Lyapunov exponents of a recurrence along one trajectory.

    .. math:: \lambda_i = \lim_{T \to \infty} \frac{1}{T} \sum_{t=1}^{T} \log (R_t)_{ii},
              \qquad J_t Q_{t-1} = Q_t R_t

    with :math:`J_t` the Jacobian of the carry after step t with respect to the carry before. Natural logarithm, per
    step: a perturbation along direction i grows like ``exp(lambda_i t)``, and so does a gradient on its way back.

    Args:
      step: The body of a ``jax.lax.scan``, ``step(carry, x) -> (carry, y)``, or a function that returns the carry
        alone. A flax cell is ``lambda carry, x: cell.apply(params, carry, x)``. Static under ``jit``.
      carry: Where the trajectory starts: array or pytree of real floating arrays, n numbers in all. It is one
        trajectory; for a batch, ``vmap`` this function.
      xs: Inputs stacked along time, array or pytree of arrays of shape (steps, ...). ``None``: a recurrence without
        input, ``step`` gets ``None``.
      num_exponents: How many of the leading exponents, k, 1 to n; ``None``: all. Each costs a tangent a step. Static.
      num_steps: How many steps, the first ``num_warmup`` included. Needed without ``xs``, and otherwise equal to
        its length. Static.
      num_warmup: How many steps at the beginning do not count. The frame starts in fixed pseudo-random directions,
        and turns into those of the exponents like ``exp(-(lambda_i - lambda_j) t)``; an error of order
        ``1 / num_steps`` stays without. Static.
      steps_per_qr: How many steps the frame is pushed between two QR decompositions, the last of which may have fewer.
        Costs precision: within so many steps, growth along the first direction must not exceed that along the last by
        more than about 1e5. Static.

    Returns:
      ``LyapunovExponents(exponents, standard_error, drift)``, each of shape (k,), float32 (float64 if a leaf of
      ``carry`` is).

    Raises:
      TypeError: A leaf of ``carry`` is not real floating, or ``step`` changes its dtype or does not return a carry.
      ValueError: ``step`` changes a shape; the inputs have no common length, or another one than ``num_steps``, or both
        are missing; ``num_exponents``, ``num_warmup`` or ``steps_per_qr`` is out of range.

    Numerics:
      -inf for a direction that a step after the warm-up maps to zero or, as far as rounding lets one tell (about
      5e-7 sqrt(n) of its image in float32), into the span of those before it; an arbitrary direction takes its place
      and touches no other exponent. All NaN if the trajectory or its Jacobian is not finite. The frame overflows only
      where it does within ``steps_per_qr`` steps. Differentiable in whatever ``step`` closes over, in ``carry`` and in
      ``xs``; the gradient of -inf is 0. That of a chaotic trajectory grows like ``exp(lambda_1 T)``: keep it short.

    Example:
      >>> import jax.numpy as jnp
      >>> result = lyapunov_exponents(lambda x, _: jnp.array([2.0, 0.5]) * x, jnp.zeros(2), num_steps=90, num_warmup=30)
      >>> [round(float(exponent), 3) for exponent in result.exponents]
      [0.693, -0.693]

    References:
      :cite:p:`benettin1980lyapunov`, part 2; :cite:p:`engelken2023lyapunov`, for recurrent networks.

    See also:
      ``product_spectrum``, the exact singular values of a finite product, in log10: divided by T and multiplied by
      ``log(10)`` they converge to the same limits, with an error of order ``1 / T`` that a warm-up does not remove.
    """
    return exponents_of("lyapunov_exponents", step, carry, xs, num_exponents, num_steps, num_warmup, steps_per_qr)


def exponents_of(
    function: str,
    step: Callable,
    carry: Any,
    xs: Any,
    num_exponents: int | None,
    num_steps: int | None,
    num_warmup: int,
    steps_per_qr: int,
) -> LyapunovExponents:
    """Compute what :func:`lyapunov_exponents` does for a function of another name, which its errors give."""
    advance, carry, xs, length = check_recurrence(function, step, carry, xs, num_steps)
    size = tree_size(carry)
    count = size if num_exponents is None else num_exponents
    _check_integer(function, "num_exponents", count, 1, size, "leave it out for all")
    _check_integer(function, "num_warmup", num_warmup, 0, length - 1, "leave steps to average over, or add some")
    _check_integer(function, "steps_per_qr", steps_per_qr, 1, None, "leave it out for 1")

    dtype = jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(carry)) else jnp.float32
    # Without a warm-up the first is -1, which as an index is the last step: there is a QR decomposition as well.
    ends = np.asarray([*range(num_warmup - 1, length - 1, steps_per_qr), length - 1])
    is_end = np.zeros(length, bool)
    is_end[steps_per_qr - 1 : num_warmup : steps_per_qr] = True
    is_end[ends] = True
    is_start = np.arange(length) == num_warmup

    def body(state: tuple, inputs: tuple) -> tuple[tuple, Array]:
        carry, frame, columns, dead, broken = state
        x, is_start, is_end = inputs
        following = advance(carry, x)
        push, _ = linear_maps(lambda carry: advance(carry, x), carry, carry)
        push_flat = lambda vector: flatten(push(unflatten(vector, carry)), dtype)  # noqa: E731
        image = jax.vmap(push_flat, in_axes=1, out_axes=1)(frame)
        # A direction that died in the warm-up has been replaced by one that may live.
        dead = dead & ~is_start
        if steps_per_qr == 1:
            (frame, columns, dead), growth = _orthonormalize(image, columns, dead)
        else:
            (frame, columns, dead), growth = lax.cond(
                is_end,
                _orthonormalize,
                lambda image, columns, dead: ((image, columns, dead), jnp.zeros(count, dtype)),
                *(image, columns, dead),
            )
        broken = broken | ~jnp.all(jnp.isfinite(flatten(following, dtype)))
        return (following, frame, columns, dead, broken), growth

    frame = _start(size, count, dtype)
    state = (carry, frame, jnp.arange(count), jnp.zeros(count, bool), jnp.zeros((), bool))
    (_, _, columns, dead, broken), growth = lax.scan(body, state, (xs, is_start, is_end))
    dead = jnp.zeros(count, bool).at[columns].set(dead)
    exponents, standard_error, drift = _rates(growth[ends[1:]], np.diff(ends))
    exponents = jnp.where(dead, -jnp.inf, exponents)
    order = jnp.argsort(-exponents)
    broken = broken | ~jnp.all(exponents < jnp.inf)
    parts = (exponents, jnp.where(dead, 0, standard_error), jnp.where(dead, 0, drift))
    return LyapunovExponents(*(jnp.where(broken, jnp.nan, part[order]) for part in parts))


def _start(size: int, count: int, dtype: Any) -> Array:
    """Fixed directions that no map of interest maps to zero, or into one another, as it might those of the axes."""
    # The generator is named: the frame must not change with the user's default.
    gaussian = jax.random.normal(jax.random.key(0, impl="threefry2x32"), (size, count), dtype)
    return jnp.linalg.qr(gaussian)[0]


def _orthonormalize(image: Array, columns: Array, dead: Array) -> tuple[tuple[Array, Array, Array], Array]:
    """QR of a pushed frame, and the logarithm of the growth of each direction, in the order of the first frame.

    ``columns`` says which direction of the first frame stands in which column: dead ones move to the back, where what
    QR puts in their place takes nothing from the living.
    """
    dead = dead | ~jnp.any(image != 0, axis=0)
    order = jnp.argsort(dead, stable=True)
    image, columns, dead = image[:, order], columns[order], dead[order]
    frame, r = _qr(image)
    diagonal = jnp.abs(jnp.diagonal(r))
    rounding = _UNRESOLVED * math.sqrt(len(image)) * float(jnp.finfo(r.dtype).eps)
    largest = jnp.max(jnp.abs(r), axis=0)
    dead = dead | ((diagonal <= rounding * largest) & (largest < jnp.inf))
    growth = jnp.where(dead, 0, jnp.log(jnp.where(dead, 1, diagonal)))
    frame = jnp.where(dead, lax.stop_gradient(frame), frame)
    return (frame, columns, dead), jnp.zeros_like(growth).at[columns].set(growth)


def _rates(growth: Array, spans: np.ndarray) -> tuple[Array, Array, Array]:
    """Mean growth a step, its standard error by batch means, and what the second half has more."""
    num_blocks = math.isqrt(len(spans))
    rest = len(spans) % num_blocks
    # Sums of sums: thousands of terms added one by one would cost digits.
    sums = growth[rest:].reshape(num_blocks, -1, growth.shape[1]).sum(axis=1)
    lengths = spans[rest:].reshape(num_blocks, -1).sum(axis=1)
    exponents = (growth[:rest].sum(axis=0) + sums.sum(axis=0)) / float(spans.sum())
    half = num_blocks // 2
    drift = sums[half:].sum(axis=0) / float(lengths[half:].sum()) - exponents
    if num_blocks < 2:
        return exponents, jnp.full_like(exponents, jnp.inf), drift
    rates = sums / jnp.asarray(lengths, growth.dtype)[:, None]
    squares = jnp.sum(jnp.square(rates - rates.mean(axis=0, keepdims=True)), axis=0) / (num_blocks * (num_blocks - 1))
    positive = squares > 0
    return exponents, jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0), drift


def check_recurrence(function: str, step: Callable, carry: Any, xs: Any, num_steps: int | None) -> Recurrence:
    """Refuse what is no recurrence of real numbers; make every step return the carry alone."""
    if not callable(step):
        raise TypeError(
            message(function, "step, a function of (carry, x)", f"{type(step).__name__}", "pass the function first")
        )
    carry = jax.tree.map(_strong, carry)
    for path, leaf in jax.tree_util.tree_leaves_with_path(carry):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                message(
                    function,
                    "real floating leaves in carry",
                    f"carry{jax.tree_util.keystr(path)} of {leaf.dtype}",
                    "pass counters and random keys through xs, and complex numbers as two real ones",
                )
            )
    if tree_size(carry) == 0:
        raise ValueError(message(function, "a carry with numbers in it", "an empty one", "pass the initial state"))
    xs = jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf), xs)
    length = _length(function, xs, num_steps)
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    returned = jax.eval_shape(step, carry, first)
    if _shapes(returned) == _shapes(carry):
        advance, after = step, returned
    elif isinstance(returned, tuple) and len(returned) == 2 and _shapes(returned[0]) == _shapes(carry):
        advance, after = (lambda carry, x: step(carry, x)[0]), returned[0]
    elif isinstance(returned, tuple) and len(returned) == 2:
        raise ValueError(
            message(
                function,
                f"step to return (carry, y) with the carry it got, {_describe(carry)}",
                f"{_describe(returned[0])} as the carry",
                "return the new state first, in the tree structure and shapes of the old",
            )
        )
    else:
        raise TypeError(
            message(
                function,
                f"step to return (carry, y), or the carry alone, {_describe(carry)}",
                _describe(returned),
                "return the new state in the tree structure and shapes of the old",
            )
        )
    for before, leaf in zip(jax.tree.leaves(carry), jax.tree.leaves(after), strict=True):
        if before.dtype != leaf.dtype:
            raise TypeError(
                message(
                    function,
                    f"step to keep the dtype of the carry, {before.dtype}",
                    str(leaf.dtype),
                    "cast the carry you start from, or the one step returns",
                )
            )
    return Recurrence(advance, carry, xs, length)


def _length(function: str, xs: Any, num_steps: int | None) -> int:
    if num_steps is not None:
        _check_integer(function, "num_steps", num_steps, 1, None, "pass how many steps to take")
    leaves = jax.tree.leaves(xs)
    if not leaves:
        if num_steps is None:
            raise ValueError(
                message(function, "inputs xs, or num_steps without them", "neither", "pass num_steps=1000")
            )
        return num_steps
    lengths = {leaf.shape[0] if leaf.shape else None for leaf in leaves}
    if len(lengths) > 1 or None in lengths or 0 in lengths:
        shapes = ", ".join(str(leaf.shape) for leaf in leaves)
        raise ValueError(
            message(function, "leaves of xs with one common length along axis 0", shapes, "stack the inputs over time")
        )
    length = leaves[0].shape[0]
    if num_steps not in (None, length):
        raise ValueError(
            message(function, "num_steps equal to the length of xs", f"{num_steps} and {length}", "leave num_steps out")
        )
    return length


def _check_integer(function: str, name: str, value: Any, low: int, high: int | None, remedy: str) -> None:
    limits = f"of at least {low}" if high is None else f"from {low} to {high}"
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(message(function, f"an integer {name} {limits}", repr(value), remedy)) from None
    if number < low or (high is not None and number > high):
        raise ValueError(message(function, f"{name} {limits}", f"{name}={number}", remedy))


def _strong(leaf: Any) -> Array:
    """An array of the dtype a leaf has, which a step's result will not have to widen."""
    return jnp.asarray(leaf, jnp.asarray(leaf).dtype)


def _shapes(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [jnp.shape(leaf) for leaf in leaves]


def _describe(tree: Any) -> str:
    return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)).replace("'", "")
