"""Products of a network's block Jacobians, from the first block on and from the last block back.

Each product comes out of the one before it: a prefix by pushing its columns through the next block, a suffix by pulling
its rows. Only the current product is held. Every block is compiled alone, and blocks that come to the same jaxpr share
one program: 64 equal layers compile one (two, with the first), where one function of all of them would take the time
for 64. A step of a loop takes its number as an argument, so that all steps share one program, too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxgrad.spectra._blocks import _CHUNK_BYTES, Evaluated, check_chunk_size, dense_jacobians
from jaxgrad.spectra._jacobi import ZERO, exponent_of, power_of_two
from jaxgrad.spectra._operators import linear_maps
from jaxgrad.tracing import Network
from jaxgrad.tracing._cuts import Span

LOG10_2 = math.log10(2)


class ScaledJacobian(NamedTuple):
    """A product of Jacobians that floating point alone would not hold: ``matrix * 10**log10_scale``.

    Attributes:
      matrix: The product, one an example, scaled by a power of two to a largest entry near 1.
      log10_scale: log10 of that power, one an example, rounded once: ``round(log10_scale / log10(2))`` is the exact
        exponent.
    """

    matrix: Float[Array, "num_examples out in"]
    log10_scale: Float[Array, " num_examples"]


def prefix_jacobians(
    network: Network, params: Any, *args: Any, chunk_size: int | None = None
) -> Iterator[ScaledJacobian]:
    r"""Yield, block after block, the Jacobian of the state after it with respect to its chain's first state.

    .. math:: J_b \cdots J_2 J_1

    Args:
      network: A traced network.
      params: Parameters of the shapes traced.
      *args: Other arguments of the shapes traced.
      chunk_size: How many columns to push at once; by default as many as keep a block's tangents within 64 MiB.

    Returns:
      An iterator over one :class:`ScaledJacobian` a block, in the order of ``network.blocks``; the matrix of shape
      (num_examples, out, in), float32 (float64 for float64 states). ``num_examples`` as in :func:`block_jacobians`.

    Raises:
      ValueError: ``chunk_size`` is below 1, or arguments differ from those traced.

    Numerics:
      Nothing overflows or underflows that is not small beside its own matrix, whatever the depth: the scale is an
      exact power of two, renewed after each block. Rounding is relative to the largest entry, so directions more than
      about 1e-6 below it are lost in float32; ``block_spectra(..., resolve="all")`` keeps them. A zero product keeps
      the scale it had; inf and NaN stay what they are. States in float16 and bfloat16 are multiplied in float32.

    Example:
      >>> import jax.numpy as jnp, jaxgrad
      >>> loss_fn = lambda params, x: jnp.sum(x @ params["a"] @ params["b"])
      >>> params, x = {"a": 2 * jnp.eye(3), "b": 4 * jnp.eye(3)}, jnp.ones((5, 3))
      >>> network = jaxgrad.trace(loss_fn, params, x)
      >>> [round(float(scale[0]), 3) for _, scale in jaxgrad.spectra.prefix_jacobians(network, params, x)]
      [0.301, 0.903]

    See also:
      ``jax.jacobian`` of each part of the network, which computes every prefix from the input again.
    """
    check_chunk_size("prefix_jacobians", chunk_size)
    evaluated = Evaluated.at(network, params, *args)
    return (_scaled(*product, prefix=True) for _, *product in multiplied(evaluated, True, chunk_size))


def suffix_jacobians(
    network: Network, params: Any, *args: Any, chunk_size: int | None = None
) -> Iterator[ScaledJacobian]:
    r"""Yield, from the last block back, the Jacobian of its chain's last state with respect to the state before it.

    .. math:: J_n \cdots J_{b+1} J_b

    Args:
      network: A traced network.
      params: Parameters of the shapes traced.
      *args: Other arguments of the shapes traced.
      chunk_size: How many rows to pull at once; by default as many as keep a block's cotangents within 64 MiB.

    Returns:
      An iterator over one :class:`ScaledJacobian` a block, in the reverse order of ``network.blocks``; otherwise as
      in :func:`prefix_jacobians`.

    Raises:
      ValueError: ``chunk_size`` is below 1, or arguments differ from those traced.

    Numerics:
      As in :func:`prefix_jacobians`.

    Example:
      >>> import jax.numpy as jnp, jaxgrad
      >>> loss_fn = lambda params, x: jnp.sum(x @ params["a"] @ params["b"])
      >>> params, x = {"a": 2 * jnp.eye(3), "b": 4 * jnp.eye(3)}, jnp.ones((5, 3))
      >>> network = jaxgrad.trace(loss_fn, params, x)
      >>> [round(float(scale[0]), 3) for _, scale in jaxgrad.spectra.suffix_jacobians(network, params, x)]
      [0.602, 0.903]

    See also:
      :func:`prefix_jacobians`, whose last product of a chain is the last of this.
    """
    check_chunk_size("suffix_jacobians", chunk_size)
    evaluated = Evaluated.at(network, params, *args)
    return (_scaled(*product, prefix=False) for _, *product in multiplied(evaluated, False, chunk_size))


def ordered(network: Network, prefix: bool) -> Iterator[tuple[Span, bool]]:
    """Yield the blocks in the order in which products take them up, and whether a product begins there."""
    chain = None
    for span in network.spans if prefix else reversed(network.spans):
        yield span, span.chain != chain
        chain = span.chain


def multiplied(
    evaluated: Evaluated, prefix: bool, chunk_size: int | None
) -> Iterator[tuple[Span, jax.Array, jax.Array]]:
    """Yield each block with the product it ends: columns (or rows) first, then examples; and its power of two."""
    product = exponents = None
    compute = functools.partial(_advanced, prefix=prefix, chunk_size=chunk_size)
    for span, begins in ordered(evaluated.network, prefix):
        before = () if begins else (product, exponents)
        steps = np.asarray([span.start.step or 0], np.int32)
        product, exponents = evaluated.run(("product", prefix, chunk_size), span, compute, steps, *before)
        yield span, product, exponents


def _advanced(
    at: Callable[..., Any],
    steps: jax.Array,
    product: jax.Array | None = None,
    exponents: jax.Array | None = None,
    *,
    prefix: bool,
    chunk_size: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Return the product with one more block, and its power of two."""
    function, rows = at(steps[0])
    out = jax.eval_shape(function, rows)
    dtype = max(wide(rows.dtype), wide(out.dtype), key=lambda dtype: dtype.itemsize)
    if product is None or exponents is None:
        jacobian = dense_jacobians(function, rows, chunk_size=chunk_size).astype(dtype)
        moved = jnp.transpose(jacobian, (2, 0, 1) if prefix else (1, 0, 2))
        exponents = jnp.zeros((len(rows),), jnp.int32)
    elif _formed_is_cheaper(function, rows, out, len(product)):
        jacobian = dense_jacobians(function, rows, chunk_size=chunk_size).astype(dtype)
        indices = "noi,kni->kno" if prefix else "noi,kno->kni"
        moved = jnp.einsum(indices, jacobian, product.astype(dtype), precision=lax.Precision.HIGHEST)
    else:
        push, pull = linear_maps(function, rows, out)
        apply, like = (push, rows) if prefix else (pull, out)
        moved = _through(apply, product.astype(like.dtype), rows.size + out.size, chunk_size).astype(dtype)
    size = jnp.max(jnp.abs(moved), axis=(0, 2), initial=0)
    shift = exponent_of(size)
    shift = jnp.where((shift == ZERO) | ~jnp.isfinite(size), 0, shift)
    return moved * power_of_two(-shift, dtype)[None, :, None], exponents + shift


def _through(apply: Callable[..., Any], product: jax.Array, width: int, chunk_size: int | None) -> jax.Array:
    """Return a linear map of every column."""
    if chunk_size is None:
        chunk_size = max(1, _CHUNK_BYTES // max(width * product.dtype.itemsize, 1))
    return jax.vmap(apply)(product) if chunk_size >= len(product) else lax.map(apply, product, batch_size=chunk_size)


def _formed_is_cheaper(function: Callable[..., Any], rows: jax.Array, out: Any, num_columns: int) -> bool:
    """Return whether forming a block's Jacobian and multiplying takes fewer operations than pushing each column."""
    if min(rows.dtype.itemsize, out.dtype.itemsize) < 4:
        return True  # pushed columns would be rounded to half precision
    side = min(rows.shape[1], out.shape[1])
    if num_columns <= side:
        return False
    cost = _operations(jax.make_jaxpr(function)(rows).jaxpr)
    return cost * side + rows.size * out.shape[1] * num_columns < cost * num_columns


def _operations(jaxpr: Any) -> int:
    """Return about how many multiplications a jaxpr takes."""
    total = 0
    for equation in jaxpr.eqns:
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        inner = [value for value in inner if hasattr(value, "eqns")]
        size = sum(math.prod(getattr(variable.aval, "shape", ())) for variable in equation.outvars)
        if inner:
            total += equation.params.get("length", 1) * sum(map(_operations, inner))
        elif equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += size * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += size * math.prod(kernel) // max(features, 1)
        else:
            total += size
    return total


@functools.partial(jax.jit, static_argnames="prefix")
def _scaled(product: jax.Array, exponents: jax.Array, *, prefix: bool) -> ScaledJacobian:
    scale = exponents.astype(product.dtype) * jnp.asarray(LOG10_2, product.dtype)
    return ScaledJacobian(jnp.transpose(product, (1, 2, 0) if prefix else (1, 0, 2)), scale)


def wide(dtype: Any) -> Any:
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
