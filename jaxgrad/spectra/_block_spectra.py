"""Singular values of a network's blocks and of their products, of every example, by LAPACK on the host."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxgrad._checks import message
from jaxgrad.spectra._blocks import Evaluated, check_chunk_size
from jaxgrad.spectra._chains import LOG10_2, multiplied, ordered, wide
from jaxgrad.spectra._products import _log_values, _push, double_precision
from jaxgrad.tracing import Network
from jaxgrad.tracing._cuts import Span


class BlockSpectra(NamedTuple):
    """log10 singular values of a network's blocks and of their products.

    Attributes:
      blocks: For each block, those of its Jacobian: float64, of shape (num_examples, min(out, in)), descending.
      prefixes: For each block, those of the product from its chain's first block to it; empty if not asked for.
      suffixes: For each block, those of the product from it to its chain's last block; empty if not asked for.
      block_accuracy: For each block, the error of a value relative to the largest: what is below is rounding.
      prefix_accuracy: The same of the prefixes; 0 where every value is resolved.
      suffix_accuracy: The same of the suffixes.
    """

    blocks: tuple[Float[np.ndarray, "num_examples _"], ...]
    prefixes: tuple[Float[np.ndarray, "num_examples _"], ...]
    suffixes: tuple[Float[np.ndarray, "num_examples _"], ...]
    block_accuracy: tuple[float, ...]
    prefix_accuracy: tuple[float, ...]
    suffix_accuracy: tuple[float, ...]


def block_spectra(
    network: Network,
    params: Any,
    *args: Any,
    products: Literal["none", "prefix", "suffix", "both"] = "none",
    resolve: Literal["largest", "all"] = "largest",
    chunk_size: int | None = None,
) -> BlockSpectra:
    r"""Compute the log10 singular values of every block's Jacobian, and of their products.

    .. math:: \log_{10} s_i(J_b), \quad \log_{10} s_i(J_b \cdots J_1), \quad \log_{10} s_i(J_n \cdots J_b)

    for every example. The decompositions are LAPACK's, on the host: this can't run under ``jit``, ``vmap`` or ``grad``.

    Args:
      network: A traced network.
      params: Parameters of the shapes traced.
      *args: Other arguments of the shapes traced.
      products: Which products to decompose beside the blocks.
      resolve: ``"largest"`` multiplies Jacobians out, which resolves the values within about 1e-6 (float32) of the
        largest of each product. ``"all"`` keeps every product as in :func:`product_spectrum`, which resolves all of
        them at any depth, in many times the time.
      chunk_size: As in :func:`block_jacobians`.

    Returns:
      :class:`BlockSpectra`: for each block an array of shape (num_examples, min(out, in)).

    Raises:
      TypeError: The arguments are traced by ``jit``, ``vmap`` or ``grad``.
      ValueError: ``products``, ``resolve`` or ``chunk_size`` is none of the above, or arguments differ from those
        traced.

    Numerics:
      -inf for a zero Jacobian and for a value that its decomposition can't tell from zero, ``eps * sqrt(size)`` of the
      largest (``eps * size`` in float64). Values between that and the accuracy given are returned as they come, and
      are rounding. With ``resolve="all"`` the errors are those of :func:`product_spectrum`. NaN for a Jacobian that is
      not finite.

    Example:
      >>> import jax.numpy as jnp, jaxgrad
      >>> loss_fn = lambda params, x: jnp.sum(x @ params["a"] @ params["b"])
      >>> params, x = {"a": 10 * jnp.eye(2), "b": jnp.diag(jnp.array([1.0, 0.1]))}, jnp.ones((5, 2))
      >>> network = jaxgrad.trace(loss_fn, params, x)
      >>> spectra = jaxgrad.spectra.block_spectra(network, params, x, products="prefix")
      >>> [abs(values[0].round(3)).tolist() for values in spectra.prefixes]
      [[1.0, 1.0], [1.0, 0.0]]

    See also:
      :func:`product_spectrum` for factors at hand; ``torch.linalg.svdvals``.
    """
    _check_choices(products, resolve)
    check_chunk_size("block_spectra", chunk_size)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, args))):
        raise TypeError(
            message(
                "block_spectra",
                "concrete arrays: singular values are computed on the host",
                "traced ones",
                "call it outside of jit, vmap and grad; prefix_jacobians and block_jacobians run inside",
            )
        )
    evaluated = Evaluated.at(network, params, *args)
    blocks, eps = [], []
    for span in network.spans:
        jacobian = evaluated.jacobian(span, chunk_size)
        eps.append((float(jnp.finfo(jacobian.dtype).eps), math.sqrt(max(jacobian.shape[1:]))))
        blocks.append(_log10_values(np.asarray(jacobian.astype(wide(jacobian.dtype)))))
    block_accuracy = tuple(unit * root for unit, root in eps)

    results: dict[bool, tuple[tuple[np.ndarray, ...], tuple[float, ...]]] = {True: ((), ()), False: ((), ())}
    for prefix in (True, False):
        if products not in ("both", "prefix" if prefix else "suffix"):
            continue
        spectra = _resolved if resolve == "all" else _multiplied
        values = dict(spectra(evaluated, prefix, chunk_size))
        accuracy = _accumulated(network, block_accuracy, prefix)
        results[prefix] = (
            tuple(values[span] for span in network.spans),
            tuple(0.0 if resolve == "all" else error for error in accuracy),
        )
    return BlockSpectra(
        tuple(blocks), results[True][0], results[False][0], block_accuracy, results[True][1], results[False][1]
    )


def _check_choices(products: Any, resolve: Any) -> None:
    for name, value, choices in (
        ("products", products, ("none", "prefix", "suffix", "both")),
        ("resolve", resolve, ("largest", "all")),
    ):
        if value not in choices:
            expected = f"{name} one of {', '.join(map(repr, choices))}"
            raise ValueError(message("block_spectra", expected, repr(value), f"leave {name} out for {choices[0]!r}"))


def _multiplied(evaluated: Evaluated, prefix: bool, chunk_size: int | None) -> Iterator[tuple[Span, np.ndarray]]:
    """Yield the log10 singular values of each product multiplied out."""
    for span, product, exponents in multiplied(evaluated, prefix, chunk_size):
        values = _log10_values(np.swapaxes(np.asarray(product), 0, 1))
        yield span, values + np.asarray(exponents, np.float64)[:, None] * LOG10_2


def _log10_values(matrices: np.ndarray) -> np.ndarray:
    """Return log10 of the singular values of each matrix, descending.

    For float32, from the eigenvalues of the Gram matrix in float64: right to 1e-8 of the largest, in half the time of
    numpy's SVD, which takes float64, too.
    """
    finite = np.asarray(np.isfinite(matrices).all(axis=(1, 2)))
    wide = np.where(finite[:, None, None], matrices, 0).astype(np.float64)
    largest = np.abs(wide).max(axis=(1, 2), keepdims=True, initial=0)
    largest = np.where(largest > 0, largest, 1)
    wide /= largest
    unit = float(np.finfo(np.float64).eps) * max(matrices.shape[1:])
    if matrices.dtype == np.float64:
        values = np.linalg.svd(wide, compute_uv=False)
    else:
        turned = np.swapaxes(wide, 1, 2)
        gram = turned @ wide if wide.shape[1] > wide.shape[2] else wide @ turned
        values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))[:, ::-1]
        unit = math.sqrt(unit)
    found = values > unit * values[:, :1]
    logs = np.log10(np.where(found, values, 1.0)) + np.log10(largest[:, 0])
    return np.where(finite[:, None], np.where(found, logs, -np.inf), np.nan)


def _accumulated(network: Network, accuracy: tuple[float, ...], prefix: bool) -> list[float]:
    """Return the error of each product relative to its largest value: the errors of its factors, as independent."""
    errors = dict(zip(network.spans, accuracy, strict=True))
    squares: dict[Span, float] = {}
    total = 0.0
    for span, begins in ordered(network, prefix):
        total = errors[span] ** 2 + (0.0 if begins else total)
        squares[span] = total
    return [math.sqrt(squares[span]) for span in network.spans]


def _resolved(evaluated: Evaluated, prefix: bool, chunk_size: int | None) -> Iterator[tuple[Span, np.ndarray]]:
    """Yield the log10 singular values of each product kept as ``Q 2^e T``; suffixes by their transposes."""
    state, finite = None, np.ones((), bool)
    for span, begins in ordered(evaluated.network, prefix):
        jacobians = evaluated.jacobian(span, chunk_size)
        eps = None if jacobians.dtype == jnp.float64 else float(jnp.finfo(jnp.float32).eps)
        factors = np.asarray(jacobians.astype(wide(jacobians.dtype)), np.float64)
        factors = factors if prefix else np.swapaxes(factors, 1, 2)
        count, out_size, in_size = factors.shape
        if begins or state is None:
            identity = np.broadcast_to(np.eye(in_size), (count, in_size, in_size))
            state = (identity, np.zeros((count, in_size), np.int32), identity)
            finite = np.ones((count,), bool)
        finite = np.logical_and(finite, np.isfinite(factors).all(axis=(1, 2)))
        with double_precision():
            state = _pushed(state, np.where(finite[:, None, None], factors, 0), eps)
            values = np.asarray(_values(state[1], state[2]))
        size = min(out_size, state[2].shape[2])
        padded = np.full((count, size), -np.inf)
        padded[:, : values.shape[1]] = values
        yield span, np.where(finite[:, None], padded, np.nan)


# One example at a time: batched decompositions that do not wait for one another can wait forever on few cores.
@functools.partial(jax.jit, static_argnames="eps")
def _pushed(state: tuple[Any, Any, Any], factors: Any, eps: float | None) -> tuple[Array, Array, Array]:
    def one(given: Any) -> Any:
        state, factor = given
        own, following = (jnp.zeros((side,), jnp.int32) for side in factor.shape[::-1])
        return _push(state, factor, own, following, eps)

    return lax.map(one, (state, factors))


@jax.jit
def _values(exponents: Array, rows: Array) -> Array:
    return lax.map(lambda given: _log_values(*given), (exponents, rows))
