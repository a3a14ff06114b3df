"""Gaussian expectations on the host, in float64, of functions with kinks and jumps wherever they like.

Gauss-Hermite rules converge slowly at a kink. Here the axis is cut into panels with a Gauss-Legendre rule on each, and
a panel is halved until its halves agree with it: a kink costs some twenty halvings, a jump some forty.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxgrad._checks import message

# Beyond 13 standard deviations lie 1e-38 of the mass; a function that grows fast enough to matter there gets 38.
_LIMITS = (13.0, 38.0)
_NUM_NODES = 16
_BLOCK = 4096
_MAX_HALVINGS = 48
_MAX_PANELS = 8192
_GOAL = 1e-12
_COARSE_GOAL = 1e-6  # of a function that is rounded to float32
# A normal is cut off at so many of its standard deviations; below the next, it is as good as a point.
_REACH = 9.0
_NARROW = 1.5e-4
_WINDOW = 2**20
_ACCEPTABLE = 1e-6

Integrand = Callable[[np.ndarray], np.ndarray]


def expectation(caller: str, integrand: Integrand, goal: float = _GOAL) -> np.ndarray:
    """Compute ``E[integrand(z)]`` over a standard normal z, to the goal times ``E|integrand(z)|``.

    Args:
      caller: The public name the user called, for errors.
      integrand: Maps points of shape (n,) to values of shape (m, n).
      goal: The precision; finer than what the values are rounded to, it is sought in vain.

    Returns:
      Expectations of shape (m,).

    Raises:
      ValueError: An expectation diverges, or a value is NaN.
    """
    for limit in _LIMITS:
        total, magnitude, edge, error = _integrate(caller, integrand, limit, goal)
        if np.all(edge <= goal * magnitude):
            if np.all(error <= max(goal, _ACCEPTABLE) * magnitude):
                return total
            break
    raise ValueError(
        message(
            caller,
            "an activation whose moments under a standard normal are finite",
            "one that grows too fast, or is too rough, to integrate",
            "give a function that grows slower than exp(x²/4) and has no pole",
        )
    )


def _integrate(
    caller: str, integrand: Integrand, limit: float, goal: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the integrals, those of the absolute values, what the outermost panels hold, and the errors."""
    edges = _edges(limit)
    left, right = edges[:-1], edges[1:]
    coarse = _panels(caller, integrand, left, right)
    edge = np.abs(coarse[:, 0]) + np.abs(coarse[:, -1])
    total, magnitude, error = np.zeros(len(coarse)), np.zeros(len(coarse)), np.zeros(len(coarse))
    for halving in range(_MAX_HALVINGS):
        middle = (left + right) / 2
        fine = _panels(caller, integrand, np.concatenate([left, middle]), np.concatenate([middle, right]))
        first, second = np.split(fine, 2, axis=1)
        errors = np.abs(first + second - coarse)
        scale = magnitude + np.sum(np.abs(fine), axis=1)
        finished = np.all(error + np.sum(errors, axis=1) <= goal * scale)
        last = halving == _MAX_HALVINGS - 1 or 2 * left.size > _MAX_PANELS
        # Where most of the error sits in few panels, the others are left alone.
        keep = np.any(errors > 0.25 * goal * scale[:, None] / left.size, axis=0) & (not (finished or last))
        total += np.sum((first + second)[:, ~keep], axis=1)
        magnitude += np.sum((np.abs(first) + np.abs(second))[:, ~keep], axis=1)
        error += np.sum(errors[:, ~keep], axis=1)
        if not np.any(keep):
            break
        left, right = np.concatenate([left[keep], middle[keep]]), np.concatenate([middle[keep], right[keep]])
        coarse = np.concatenate([first[:, keep], second[:, keep]], axis=1)
    return total, magnitude, edge, error


def _panels(caller: str, integrand: Integrand, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the integral over each panel, of shape (m, number of panels)."""
    nodes, weights = _rule()
    half = (right - left) / 2
    z = ((left + right) / 2)[:, None] + half[:, None] * nodes
    values = integrand(z.ravel())
    if np.any(np.isnan(values)):
        raise ValueError(
            message(
                caller,
                "an activation that is a number everywhere",
                f"NaN near z = {z.ravel()[np.argmax(np.any(np.isnan(values), axis=0))]:.4g}",
                "mask the input before the formula as well as its result",
            )
        )
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    with np.errstate(over="ignore", invalid="ignore"):
        integrals = half * ((values.reshape(-1, *z.shape) * density) @ weights)
    if not np.all(np.isfinite(integrals)):
        raise ValueError(
            message(caller, "an activation with finite moments", "inf", "give a function that is finite everywhere")
        )
    return integrals


def pair_expectation(caller: str, integrand: Integrand, correlation: float, goal: float = _GOAL) -> np.ndarray:
    """Compute ``E[f(z) f(z')]`` over standard normals z and z' of a given correlation, for each function f.

    Given z, the other is normal about ``correlation * z``: f is smoothed by that normal on a mesh fitted to its kinks,
    and what is left is an expectation over z.

    Args:
      caller: The public name the user called, for errors.
      integrand: Maps points of shape (n,) to values of the functions, of shape (m, n).
      correlation: Between -1 and 1. Within 1e-8 of either, it counts as that.
      goal: The precision, as in :func:`expectation`.

    Returns:
      Expectations of shape (m,).

    Raises:
      ValueError: An expectation diverges, or a value is NaN.
    """
    spread = np.sqrt((1 - correlation) * (1 + correlation))
    if spread < _NARROW:
        sign = np.copysign(1.0, correlation)
        return expectation(caller, lambda z: integrand(z) * integrand(sign * z), goal)
    meshes: dict[float, tuple[np.ndarray, np.ndarray]] = {}

    def product(z: np.ndarray) -> np.ndarray:
        limit = next(limit for limit in _LIMITS if np.abs(z).max() <= limit)
        if limit not in meshes:
            meshes[limit] = _mesh(integrand, limit + _REACH * spread, spread, goal)
        with np.errstate(over="ignore", invalid="ignore"):
            return integrand(z) * _smoothed(*meshes[limit], correlation * z, spread)

    return expectation(caller, product, goal)


def _mesh(integrand: Integrand, limit: float, spread: float, goal: float) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes in order, and weights times values there, that resolve the functions and a normal of that spread."""
    nodes, weights = _rule()
    edges = np.linspace(-limit, limit, max(2, int(np.ceil(limit / min(spread, 0.5)))) + 1)
    left, right = edges[:-1], edges[1:]
    points, weighted = [], []

    def fitted(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        half = (right - left) / 2
        t = ((left + right) / 2)[:, None] + half[:, None] * nodes
        return t, integrand(t.ravel()).reshape(-1, *t.shape) * (half[:, None] * weights)

    t, values = fitted(left, right)
    size = np.abs(values).max(axis=(1, 2))
    for halving in range(_MAX_HALVINGS):
        middle = (left + right) / 2
        fine_t, fine = fitted(np.concatenate([left, middle]), np.concatenate([middle, right]))
        first, second = np.split(fine, 2, axis=1)
        lever = (t - middle[:, None]) / (right - left)[:, None]
        levers = np.split((fine_t - np.tile(middle, 2)[:, None]) / np.tile(right - left, 2)[:, None], 2)
        # The functions and their first moments in a panel: one alone may agree by symmetry.
        plain = np.abs(np.sum(first + second - values, axis=2))
        tilted = np.abs(np.sum(first * levers[0] + second * levers[1] - values * lever, axis=2))
        rough = np.any(plain + tilted > goal * (size[:, None] + np.sum(np.abs(values), axis=2)), axis=0)
        if halving == _MAX_HALVINGS - 1 or (halving > 0 and np.count_nonzero(rough) > _MAX_PANELS):
            rough[:] = False
        points.append(t[~rough].ravel())
        weighted.append(values[:, ~rough].reshape(len(values), -1))
        if not np.any(rough):
            break
        left, right = np.concatenate([left[rough], middle[rough]]), np.concatenate([middle[rough], right[rough]])
        t = np.concatenate([part[rough] for part in np.split(fine_t, 2)])
        values = np.concatenate([first[:, rough], second[:, rough]], axis=1)
    t, values = np.concatenate(points), np.concatenate(weighted, axis=1)
    order = np.argsort(t)
    return t[order], values[:, order]


def _smoothed(t: np.ndarray, weighted: np.ndarray, centres: np.ndarray, spread: float) -> np.ndarray:
    """Return the functions averaged over normals of one spread about each centre, of shape (m, number of centres)."""
    begin = np.searchsorted(t, centres - _REACH * spread)
    end = np.searchsorted(t, centres + _REACH * spread)
    results = np.empty((len(weighted), centres.size))
    # As many centres at a time as keep the window of nodes within some megabytes.
    length = max(1, int((end - begin).max()))
    for start in range(0, centres.size, max(1, _WINDOW // length)):
        part = slice(start, start + max(1, _WINDOW // length))
        index = begin[part, None] + np.arange(length)
        inside = index < end[part, None]
        index = np.minimum(index, t.size - 1)
        density = np.exp(-(((t[index] - centres[part, None]) / spread) ** 2) / 2) / (spread * np.sqrt(2 * np.pi))
        results[:, part] = np.einsum("mij,ij->mi", weighted[:, index], np.where(inside, density, 0.0))
    return results


@functools.cache
def _rule() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(_NUM_NODES)


@functools.cache
def _edges(limit: float) -> np.ndarray:
    # Panels shrink towards zero: at a large variance everything that bends does so there.
    positive = np.concatenate([[0.0], 2.0 ** np.arange(-30, -1), np.arange(0.5, limit + 0.25, 0.5)])
    return np.concatenate([-positive[:0:-1], positive])


def resolution(integrand: Integrand) -> float:
    """Return the goal to integrate a function to: a coarse one where it is rounded to float32."""
    points = np.linspace(-3.0, 3.0, 256) * np.pi
    found = integrand(points)[0]
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.unique(found).size > points.size // 4 and np.array_equal(found, np.float32(found))
    return _COARSE_GOAL if rounded else _GOAL


def values(caller: str, function: Callable[..., Any]) -> Integrand:
    """Return the function from float64 points of shape (n,) to float64 values of shape (1, n).

    It is evaluated at once, also while an outer function is being traced, whatever the precision in use there.
    """
    program = jax.jit(lambda x: (_checked(caller, x, function(x)),))
    try:
        _check_elementwise(caller, program)
    except jax.errors.TracerArrayConversionError:
        # A NumPy function cannot be traced, but can be called.
        program = lambda x: (_checked(caller, x, function(np.asarray(x))),)  # noqa: E731
        _check_elementwise(caller, program)
    return lambda x: _in_blocks(caller, program, x)


def values_and_slopes(caller: str, function: Callable[..., Any]) -> Integrand:
    """Return the function from float64 points of shape (n,) to values and derivatives, of shape (2, n)."""
    program = jax.jit(lambda x: jax.jvp(lambda x: _checked(caller, x, function(x)), (x,), (jnp.ones_like(x),)))
    try:
        _check_elementwise(caller, program)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(
            message(caller, "an activation that JAX can differentiate", "one made of NumPy functions", "use jax.numpy")
        ) from error
    return lambda x: _in_blocks(caller, program, x)


def _checked(caller: str, x: Any, result: Any) -> Any:
    shape, dtype = np.shape(result), getattr(result, "dtype", None)
    if shape != x.shape or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            message(
                caller,
                "an elementwise activation, real array in and real array of the same shape out",
                f"shape {shape} and dtype {dtype} for an input of shape {x.shape}",
                "give a function such as jnp.tanh",
            )
        )
    return result


def _check_elementwise(caller: str, program: Callable[[jax.Array], Any]) -> None:
    x = np.linspace(-1.0, 1.0, _BLOCK)
    half = _BLOCK // 2
    other = np.where(np.arange(_BLOCK) < half, 0.0, x)
    if not np.array_equal(
        _in_blocks(caller, program, x)[:, half:], _in_blocks(caller, program, other)[:, half:], equal_nan=True
    ):
        raise ValueError(
            message(
                caller,
                "an elementwise activation",
                "one whose output at a point depends on the other points",
                "leave out softmax, glu and normalisation, which have no moments of their own",
            )
        )


def _in_blocks(caller: str, program: Callable[[jax.Array], Any], x: np.ndarray) -> np.ndarray:
    # Blocks of one size, so that XLA compiles once.
    blocks = []
    with _host_float64():
        for start in range(0, x.size, _BLOCK):
            part = x[start : start + _BLOCK]
            padded = np.zeros(_BLOCK)
            padded[: part.size] = part
            results = program(jnp.asarray(padded))
            if any(isinstance(result, Tracer) for result in results):
                raise TypeError(
                    message(
                        caller,
                        "an activation that is static, which this needs to integrate on the host",
                        "one that closes over a traced value",
                        "fix its parameters outside jit, grad and vmap",
                    )
                )
            blocks.append(np.stack([np.asarray(result, np.float64) for result in results])[:, : part.size])
    return np.concatenate(blocks, axis=1)


@contextlib.contextmanager
def _host_float64() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.ensure_compile_time_eval())
        if hasattr(jax, "enable_x64"):
            stack.enter_context(jax.enable_x64(True))
        else:  # before jax 0.8
            from jax.experimental import enable_x64  # pyright: ignore[reportAttributeAccessIssue]

            stack.enter_context(enable_x64(True))
        # A function written for float32 may carry float32 constants.
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        with contextlib.suppress(RuntimeError):  # no CPU backend: then on the accelerator
            stack.enter_context(jax.default_device(jax.local_devices(backend="cpu")[0]))
        yield
