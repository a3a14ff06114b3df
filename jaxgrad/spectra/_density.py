"""How the singular values of a Jacobian that is never formed are distributed: stochastic Lanczos quadrature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad._checks import check_number
from jaxgrad.spectra._golub_kahan import frozen_operator, krylov_basis, sides


class SpectralDensity(NamedTuple):
    """A distribution of singular values as weighted points, one row a random probe.

    Attributes:
      nodes: Singular values in descending order, of shape (num_probes, num_nodes).
      weights: The share of each, of shape (num_probes, num_nodes); each row sums to 1.
    """

    nodes: Float[Array, "probes nodes"]
    weights: Float[Array, "probes nodes"]


def spectral_density(
    key: PRNGKeyArray, f: Callable[[Any], Any], x: Any, *, num_probes: int = 8, num_steps: int = 32
) -> SpectralDensity:
    """Estimate the distribution of the singular values of the Jacobian of ``f`` at ``x`` without forming it.

    ``mean_i g(s_i) ≈ mean_p sum_j weights[p, j] g(nodes[p, j])`` over all ``min(out_size, in_size)`` singular values
    ``s_i``, zeros included: Gauss quadrature of the measure that a random sign vector ``z_p`` has on the spectrum. For
    an even polynomial ``g`` of degree below ``4 num_steps`` the right-hand side is unbiased.

    Args:
      key: Random key of the probes.
      f: Function of one array or pytree of real floating arrays, to the same. Static under ``jit``.
      x: Where to differentiate. For a batch, ``vmap`` this function.
      num_probes: How many probes, worked on one after another; each is an independent estimate, so their spread is the
        standard error. Static.
      num_steps: Krylov steps a probe, each one product with the Jacobian and one with its transpose. Where the
        Jacobian's smaller side has no more than that, every direction is pushed instead and each row holds all the
        singular values with equal weights: exact. Memory holds ``num_steps`` vectors of either side. Static.

    Returns:
      ``SpectralDensity(nodes, weights)``, each of shape (num_probes, min(num_steps, size)).

    Raises:
      TypeError: A leaf of ``x`` or of ``f(x)`` is integer, boolean or complex.
      ValueError: ``num_probes`` or ``num_steps`` is below 1.

    Numerics:
      Where a Krylov space ends early, on a zero, an identity or a rank-one Jacobian, it goes on with random directions
      whose weights are 0. Singular values are not formed by way of their squares: small ones are as exact as large
      ones. A node is not a singular value, except at the ends of the spectrum. Held fixed under
      differentiation: the gradient is 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> density = spectral_density(jax.random.key(0), lambda x: 3.0 * x, jnp.ones(100))
      >>> round(float(jnp.mean(jnp.sum(density.weights * density.nodes**2, axis=1))), 3)
      9.0

    References:
      :cite:p:`ubaru2017fast`, the quadrature and how many steps it takes; :cite:p:`ghorbani2019investigation`, the
      same for Hessians of networks.

    See also:
      ``singular_values``, the largest ones one by one; ``matfree.funm`` and ``matfree.stochtrace``.
    """
    check_number("spectral_density", "num_probes", num_probes, low=1)
    check_number("spectral_density", "num_steps", num_steps, low=1)
    operator = frozen_operator(f, x)
    push, pull, size = sides(operator)
    num_nodes = min(num_steps, size)
    if not size:
        empty = jnp.zeros((num_probes, 0), operator.dtype)
        return SpectralDensity(empty, empty)
    if num_nodes == size:
        images = push(jnp.eye(size, dtype=operator.dtype))
        nodes = jnp.linalg.svd(_triangle(images), compute_uv=False)
        nodes = jnp.broadcast_to(nodes[None], (num_probes, size))
        return SpectralDensity(nodes, jnp.full_like(nodes, 1 / size))

    def quadrature(key):
        start_key, restart_key = jax.random.split(key)
        start = jax.random.rademacher(start_key, (1, size), operator.dtype) / size**0.5
        _, images = krylov_basis(restart_key, start, push, pull, num_steps, operator)
        _, nodes, vt = jnp.linalg.svd(_triangle(images))
        return nodes, jnp.square(vt[:, 0])

    # One after another: the memory is that of one, and a product fills the machine as it is.
    nodes, weights = jax.lax.map(quadrature, jax.random.split(key, num_probes))
    return SpectralDensity(nodes, weights)


def smoothed_density(
    density: SpectralDensity, grid: Float[Array, " points"], width: float | Float[Array, ""]
) -> Float[Array, " points"]:
    """Evaluate a spectral density, each of its points widened to a Gaussian.

    ``mean_p sum_j weights[p, j] exp(-(grid - nodes[p, j])² / (2 width²)) / (sqrt(2 pi) width)``: it integrates to 1.

    Args:
      density: From :func:`jaxgrad.spectra.spectral_density`.
      grid: Where to evaluate it, of shape (points,).
      width: Standard deviation of each Gaussian, in units of the singular values; positive. Below the distance of the
        nodes, about their range over ``num_steps``, the curve is bumpy.

    Returns:
      The density at each point of ``grid``, of shape (points,).

    Numerics:
      Mass spills over below 0, where the Gaussians of small singular values reach. Differentiable in ``grid`` and
      ``width``.

    Example:
      >>> import jax.numpy as jnp
      >>> one = SpectralDensity(jnp.ones((1, 1)), jnp.ones((1, 1)))
      >>> [round(float(d), 3) for d in smoothed_density(one, jnp.array([1.0, 1.5]), 0.5)]
      [0.798, 0.484]

    References:
      :cite:p:`ghorbani2019investigation`, for eigenvalues of Hessians.

    See also:
      ``scipy.stats.gaussian_kde`` with ``weights``, which chooses the width itself.
    """
    distances = (grid[:, None, None] - density.nodes[None]) / width
    bumps = jnp.exp(-0.5 * jnp.square(distances)) / ((2 * jnp.pi) ** 0.5 * width)
    return jnp.mean(jnp.sum(density.weights[None] * bumps, axis=2), axis=1)


def _triangle(images: Array) -> Array:
    """The upper triangle that has the singular values, and the right vectors, of the images as columns."""
    return jnp.linalg.qr(images.T, mode="r")
