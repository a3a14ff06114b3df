"""Norms and ranks of a Jacobian that is never formed, from random probes, each with its standard error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad._checks import check_number, message
from jaxgrad.spectra._density import spectral_density
from jaxgrad.spectra._norms import frobenius_norm, positive
from jaxgrad.spectra._operators import check_function, jacobian_operator, tree_size
from jaxgrad.spectra._singular_values import singular_values


class NormEstimate(NamedTuple):
    """A norm estimated from random probes.

    Attributes:
      value: The estimate, a scalar.
      standard_error: Its standard error, a scalar; 0 where the value is exact.
    """

    value: Float[Array, ""]
    standard_error: Float[Array, ""]


def frobenius_norm_estimate(
    key: PRNGKeyArray, f: Callable[[Any], Any], x: Any, *, num_probes: int = 32
) -> NormEstimate:
    """Estimate the Frobenius norm of the Jacobian of ``f`` at ``x`` without forming it.

    ``|J|_F = sqrt(mean_p |J z_p|²)`` over random sign vectors ``z_p``: ``E |J z|² = |J|_F²``.

    Args:
      key: Random key of the probes.
      f: Function of one array or pytree of real floating arrays, to the same. Static under ``jit``.
      x: Where to differentiate.
      num_probes: How many probes, at least 2; one product with the Jacobian each. Where the Jacobian's smaller side has
        no more than that, every direction is pushed instead and the value is exact. Static.

    Returns:
      ``NormEstimate(value, standard_error)``, two scalars.

    Raises:
      TypeError: A leaf of ``x`` or of ``f(x)`` is integer, boolean or complex.
      ValueError: ``num_probes`` is below 2.

    Numerics:
      0 with gradient 0 for a zero Jacobian. The square is unbiased; the root is low by about
      ``standard_error² / (2 value)``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> round(float(frobenius_norm_estimate(jax.random.key(0), lambda x: 3.0 * x, jnp.ones(100)).value), 3)
      30.0

    References:
      Hutchinson, A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines, 1989.

    See also:
      ``frobenius_norm`` of the dense Jacobian.
    """
    if num_probes < 2:
        raise ValueError(
            message("frobenius_norm_estimate", "num_probes of at least 2", repr(num_probes), "leave it out for 32")
        )
    operator = jacobian_operator(f, x)
    swap = operator.out_size < operator.in_size
    push = operator.rmatvec if swap else operator.matvec
    size = min(operator.in_size, operator.out_size)
    exact = size <= num_probes
    shape = (num_probes, size)
    probes = jnp.eye(size, dtype=operator.dtype) if exact else jax.random.rademacher(key, shape, operator.dtype)
    images = jax.vmap(push)(probes)
    total = frobenius_norm(images) if images.size else jnp.zeros((), operator.dtype)
    if exact:
        return NormEstimate(total, jnp.zeros_like(total))
    value = total / num_probes**0.5
    safe = jnp.where(value > 0, value, 1)
    squares = jnp.sum(jnp.square(images / safe), axis=1)
    return NormEstimate(value, jnp.std(squares, ddof=1) / num_probes**0.5 * value / 2)


def stable_rank_estimate(
    key: PRNGKeyArray, f: Callable[[Any], Any], x: Any, *, num_probes: int = 32, num_steps: int = 24
) -> NormEstimate:
    """Estimate the stable rank of the Jacobian of ``f`` at ``x`` without forming it.

    ``|J|_F² / |J|_2²``, the numerator as in ``frobenius_norm_estimate``, the denominator as in ``singular_values``.

    Args:
      key: Random key of the probes and of the Krylov space's start.
      f: Function of one array or pytree of real floating arrays, to the same. Static under ``jit``.
      x: Where to differentiate.
      num_probes: How many probes for the numerator, at least 2; exact where the Jacobian's smaller side has no more
        than that. Static.
      num_steps: Krylov steps for the denominator. Static.

    Returns:
      ``NormEstimate(value, standard_error)``, two scalars; the error is that of the numerator alone.

    Raises:
      TypeError: A leaf of ``x`` or of ``f(x)`` is integer, boolean or complex.
      ValueError: ``num_probes`` is below 2, or ``num_steps`` below 1.

    Numerics:
      0 with gradient 0 for a zero Jacobian. Too few steps leave the denominator low, and the value high, by twice the
      ``accuracy`` that ``singular_values`` reports.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> round(float(stable_rank_estimate(jax.random.key(0), lambda x: 3.0 * x, jnp.ones(100)).value), 2)
      100.0

    See also:
      ``stable_rank`` of the dense Jacobian.
    """
    _check_probes("stable_rank_estimate", num_probes, num_steps)
    probe_key, krylov_key = jax.random.split(key)
    norm = frobenius_norm_estimate(probe_key, f, x, num_probes=num_probes)
    if not _size(f, x):
        return NormEstimate(norm.value, norm.standard_error)
    top = singular_values(f, x, k=1, method="golub-kahan", num_steps=num_steps, key=krylov_key).values[0]
    ratio = norm.value / positive(top)
    return NormEstimate(jnp.square(ratio), 2 * ratio * (norm.standard_error / positive(top)))


def effective_rank_estimate(
    key: PRNGKeyArray, f: Callable[[Any], Any], x: Any, *, num_probes: int = 16, num_steps: int = 32
) -> NormEstimate:
    """Estimate the effective rank of the Jacobian of ``f`` at ``x`` without forming it.

    ``exp(-sum_i p_i log(p_i)) = n m exp(-mean(s log(s)) / m)`` with ``p_i = s_i / sum_j s_j``, ``n`` the smaller side
    and ``m = mean(s)``; the two means are taken over :func:`jaxgrad.spectra.spectral_density`.

    Args:
      key: Random key of the probes.
      f: Function of one array or pytree of real floating arrays, to the same. Static under ``jit``.
      x: Where to differentiate.
      num_probes: How many probes, at least 2. Static.
      num_steps: Krylov steps a probe; the value is exact where the Jacobian's smaller side has no more than that.
        Static.

    Returns:
      ``NormEstimate(value, standard_error)``, two scalars; 0 for the error where the value is exact.

    Raises:
      TypeError: A leaf of ``x`` or of ``f(x)`` is integer, boolean or complex.
      ValueError: ``num_probes`` is below 2, or ``num_steps`` below 1.

    Numerics:
      0 for a zero Jacobian. Right on an identity and a rank-one Jacobian. The error of the quadrature, which
      the standard error does not hold, falls with ``num_steps``. Held fixed under differentiation: the gradient is 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> round(float(effective_rank_estimate(jax.random.key(0), lambda x: 3.0 * x, jnp.ones(100)).value), 2)
      100.0

    References:
      :cite:p:`roy2007effective`, the effective rank; :cite:p:`ubaru2017fast`, the quadrature.

    See also:
      ``effective_rank`` of the dense Jacobian.
    """
    _check_probes("effective_rank_estimate", num_probes, num_steps)
    nodes, weights = spectral_density(key, f, x, num_probes=num_probes, num_steps=num_steps)
    size = _size(f, x)
    if not size:
        return NormEstimate(jnp.zeros((), nodes.dtype), jnp.zeros((), nodes.dtype))
    nodes = nodes / positive(jnp.max(nodes))
    logs = jnp.log(jnp.where(nodes == 0, 1, nodes))
    firsts, seconds = jnp.sum(weights * nodes, axis=1), jnp.sum(weights * nodes * logs, axis=1)
    first, second = jnp.mean(firsts), jnp.mean(seconds)
    ratio = second / positive(first)
    value = size * first * jnp.exp(-ratio)
    if size <= num_steps:
        return NormEstimate(value, jnp.zeros_like(value))
    # To first order in the two means.
    changes = ((firsts - first) * (1 + ratio) - (seconds - second)) / positive(first)
    return NormEstimate(value, value * jnp.std(changes, ddof=1) / num_probes**0.5)


def _check_probes(function: str, num_probes: int, num_steps: int) -> None:
    check_number(function, "num_probes", num_probes, low=2)
    check_number(function, "num_steps", num_steps, low=1)


def _size(f: Callable, x: Any) -> int:
    """The Jacobian's smaller side."""
    return min(tree_size(tree) for tree in check_function("spectral_density", f, x))
