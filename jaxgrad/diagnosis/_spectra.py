"""Singular values of the blocks, measured on a few examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad._norms import accumulator
from jaxgrad.diagnosis._report import Level, Spectrum
from jaxgrad.spectra._blocks import block_values, depth_function, span_jacobians, time_function
from jaxgrad.spectra._examples import Layout, example_layout
from jaxgrad.spectra._golub_kahan import golub_kahan
from jaxgrad.spectra._operators import jacobian_operator
from jaxgrad.tracing import Network
from jaxgrad.tracing._cuts import Span
from jaxgrad.tracing._network import read
from jaxgrad.tracing._signature import trace_for

_DENSE = 1024  # the largest side of a Jacobian that is formed
_EXAMPLES = {"standard": 4, "full": 16}
_WIDE = 128  # with a side above this, "standard" measures two examples
_STEPS = {"standard": 8, "full": 64}  # time steps of a loop whose Jacobian is measured
_NULL = 1e-5  # of the largest singular value of a factor: below it, a direction counts as lost
_HELD_ENTRIES = 2**27  # of all Jacobians held at once: 512 MiB in float32
_LARGE_EXAMPLES = 2  # examples of a Jacobian too large to form
_KRYLOV_STEPS = 12
_PROBES = 16


def measure_spectra(
    study: Any,
    loss_fn: Callable[..., Any],
    params: Any,
    args: tuple[Any, ...],
    has_aux: bool,
    level: Level,
    key: jax.Array,
) -> tuple[list[Spectrum | None], float, tuple[str, ...]]:
    """Measure the singular values of each block's Jacobian.

    Args:
      study: What is kept of the network between calls.
      loss_fn: The loss, to be traced again on a few examples.
      params: Its parameters.
      args: Its other arguments.
      has_aux: Whether it returns a pair.
      level: How many examples and time steps to measure.
      key: For random starting vectors.

    Returns:
      A spectrum for each block or ``None``; log10 of the largest singular value over the upper quartile of the most
      spread chain (``nan`` where unknown); and notes.
    """
    network, layout = study.network, study.layout(params, args)
    few, few_args = _few_examples(study, loss_fn, params, args, has_aux, _EXAMPLES[level])
    if few is not network:
        layout = study.once(("layout", level), lambda: example_layout(few, params, *few_args))
    chosen = _chosen_spans(few, _STEPS[level])
    run = study.once(("spectra", level), lambda: _compiled(few, layout, chosen, _EXAMPLES[level]))
    dense, large = jax.device_get(run(few.inputs(params, few_args), key))
    spectra: list[Spectrum | None] = [None] * len(network.spans)
    ranks = {}
    for index, jacobians in dense.items():
        values = _singular_values(np.asarray(jacobians))
        spectra[index] = _dense_spectrum(values, jacobians)
        ranks[index] = int(np.sum(values[0] > _NULL * values[0, 0]))
    for index, numbers in large.items():
        spectra[index] = _large_spectrum(*map(np.asarray, numbers))
    bodies = [_without_narrow_ends(chain, dense) for chain in _whole_chains(few, set(dense))]
    spreads = [
        _spread([np.asarray(dense[index])[0] for index in chain], min(ranks[index] for index in chain))
        for chain in bodies
        if len(chain) > 1
    ]
    notes = []
    if any(spectrum is not None and spectrum.method == "matrix-free" for spectrum in spectra):
        notes.append(
            f"Jacobians with a side above {_DENSE} were not formed: their largest singular value comes from products, "
            "with the accuracy given."
        )
    if few is network and layout.num_examples > _EXAMPLES[level]:
        notes.append("The loss could not be traced on fewer examples, so Jacobians were computed for the whole batch.")
    return spectra, max(spreads, default=math.nan), tuple(notes)


def _few_examples(
    study: Any, loss_fn: Callable[..., Any], params: Any, args: tuple[Any, ...], has_aux: bool, count: int
) -> tuple[Network, tuple[Any, ...]]:
    """Return the network traced on the first examples, or as it is where that is not possible."""
    network, layout = study.network, study.compiled["layout"]
    if layout.num_examples <= count or not layout.axes:
        return network, args

    def first(leaf: Any) -> Any:
        shape = np.shape(leaf)
        if layout.num_examples not in shape or not hasattr(leaf, "dtype"):
            return leaf
        return jax.lax.slice_in_dim(jnp.asarray(leaf), 0, count, axis=shape.index(layout.num_examples))

    few_args = jax.tree.map(first, args)

    def retrace() -> Network | None:
        try:
            few = read("explain", trace_for("explain", loss_fn, params, few_args, has_aux=has_aux, scalar=True))
        except Exception:  # the loss may insist on the size of its batch
            return None
        same = [block.name for block in few.blocks] == [block.name for block in network.blocks]
        return few if same else None

    few = study.once(("few", count), retrace)
    return (network, args) if few is None else (few, few_args)


def _chosen_spans(network: Network, steps: int) -> list[int]:
    """Return the blocks to measure: all in depth, and some of the steps of each loop."""
    chosen: list[int] = []
    loops: dict[Any, list[int]] = {}
    for index, span in enumerate(network.spans):
        if span.kind == "depth":
            chosen.append(index)
        else:
            loops.setdefault(span.equations, []).append(index)
    for members in loops.values():
        places = np.unique(np.linspace(0, len(members) - 1, min(steps, len(members))).round().astype(int))
        chosen += [members[place] for place in places]
    return sorted(chosen)


def _compiled(network: Network, layout: Layout, chosen: Sequence[int], count: int) -> Callable[..., Any]:
    """Return the compiled function that gives the Jacobians of the chosen blocks, or what stands for the large ones.

    Singular values are left to LAPACK on the host: two batched decompositions in one XLA program can wait for each
    other forever on a machine with two cores.
    """
    sides = {index: _sides(network, layout, network.spans[index]) for index in chosen}
    small = [index for index in chosen if max(sides[index]) <= _DENSE]
    entries = sum(math.prod(sides[index]) for index in small)
    if count == _EXAMPLES["standard"] and any(max(sides[index]) > _WIDE for index in small):
        count = 2
    count = max(1, min(count, _HELD_ENTRIES // max(entries, 1)))

    @jax.jit
    def run(inputs: list[Any], key: jax.Array) -> tuple[dict[int, Any], dict[int, Any]]:
        values = block_values(network, inputs, [network.spans[index] for index in chosen])
        pairs = span_jacobians(network, layout, values, [network.spans[index] for index in small])
        dense = {index: _float32(jacobian[:count]) for index, (_, jacobian) in zip(small, pairs, strict=True)}
        large = {
            index: _large_numbers(network, layout, values, network.spans[index], jax.random.fold_in(key, index))
            for index in chosen
            if index not in dense
        }
        return dense, large

    return run


def _float32(value: jax.Array) -> jax.Array:
    return value.astype(accumulator(value))


def _sides(network: Network, layout: Layout, span: Span) -> tuple[int, int]:
    """Return input and output size of one example's state."""
    sizes = [sum(math.prod(network.aval(site).shape) for site in cut.sites) for cut in (span.start, span.end)]
    return sizes[0] // layout.num_examples, sizes[1] // layout.num_examples


def _large_numbers(
    network: Network, layout: Layout, values: dict[Any, Any], span: Span, key: jax.Array
) -> tuple[Any, ...]:
    """Return largest singular value and squared Frobenius norm of a few examples, from products alone."""
    if span.kind == "time":
        function, rows = time_function(network, layout, values, span, span.start.step)
    else:
        function, rows = depth_function(network, layout, values, span)

    def one(example: Any, key: jax.Array) -> tuple[Any, Any, Any]:
        def alone(row: jax.Array) -> jax.Array:
            return function(rows.at[example].set(row))[example]

        operator = jacobian_operator(alone, rows[example])
        top = golub_kahan(key, operator, num_values=1, num_steps=_KRYLOV_STEPS, block_size=2)
        probes = jax.random.rademacher(key, (_PROBES, operator.in_size), operator.dtype)
        pushed = jax.vmap(operator.matvec)(probes)
        return top.values[0], jnp.mean(jnp.sum(pushed**2, axis=1)), top.accuracy[0]

    count = min(_LARGE_EXAMPLES, rows.shape[0])
    results = [one(example, jax.random.fold_in(key, example)) for example in range(count)]
    largest, squares, accuracy = (jnp.stack(column) for column in zip(*results, strict=True))
    side = min(rows.shape[1], jax.eval_shape(function, rows).shape[1])
    return largest, squares, jnp.asarray(side), jnp.max(accuracy)


def _singular_values(jacobians: np.ndarray) -> np.ndarray:
    """Return the singular values of each matrix, descending.

    The eigenvalues of the Gram matrix in float64 are right to 1e-8 of the largest singular value: what a float32
    Jacobian holds, in less than half the time of its SVD.
    """
    wide = jacobians.astype(np.float64)
    turned = np.swapaxes(wide, 1, 2)
    gram = turned @ wide if wide.shape[1] > wide.shape[2] else wide @ turned
    return np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))[:, ::-1]


def _dense_spectrum(values: np.ndarray, jacobians: np.ndarray) -> Spectrum:
    """Return the spectrum of one block from the singular values of all its Jacobians."""
    largest, squares = values[:, 0], np.square(values).sum(axis=1)
    rank = np.divide(squares, np.square(largest), out=np.zeros_like(squares), where=largest > 0)
    return Spectrum(
        num_examples=len(values),
        values=tuple(float(value) for value in np.sort(values, axis=None)[::-1]),
        sigma_max=float(largest.mean()),
        sigma_min=float(values[:, -1].mean()),
        mean_square=float(np.mean(np.square(values))),
        stable_rank=float(rank.mean()),
        accuracy=float(np.finfo(jacobians.dtype).eps * math.sqrt(max(jacobians.shape[1:]))),
        method="dense",
    )


def _large_spectrum(largest: np.ndarray, squares: np.ndarray, side: np.ndarray, accuracy: np.ndarray) -> Spectrum:
    """Return what products alone show of one block's Jacobians."""
    squares = squares.astype(np.float64)
    rank = np.divide(squares, np.square(largest), out=np.zeros_like(squares), where=largest > 0)
    return Spectrum(
        num_examples=len(largest),
        values=(),
        sigma_max=float(largest.mean()),
        sigma_min=None,
        mean_square=float(squares.mean() / side),
        stable_rank=float(rank.mean()),
        accuracy=float(accuracy),
        method="matrix-free",
    )


def _whole_chains(network: Network, dense: set[int]) -> list[list[int]]:
    """Return the chains of blocks in depth of which every Jacobian was formed."""
    chains: dict[int, list[int]] = {}
    for index, span in enumerate(network.spans):
        chains.setdefault(span.chain, []).append(index)
    return [
        chain
        for chain in chains.values()
        if len(chain) > 1 and all(network.spans[index].kind == "depth" and index in dense for index in chain)
    ]


def _without_narrow_ends(chain: list[int], dense: dict[int, Any]) -> list[int]:
    """Return a chain without what is much narrower at its ends, as a head of ten classes is.

    Such an end leaves only as many directions as it is wide, and these are the ones that pass best.
    """
    narrow = [min(dense[index].shape[1:]) for index in chain]
    bound = np.median(narrow) / 2
    wide = [place for place, size in enumerate(narrow) if size >= bound]
    return chain[wide[0] : wide[-1] + 1]


def _spread(jacobians: list[np.ndarray], rank: int) -> float:
    """Return log10 of the largest singular value of a product over the upper quartile, multiplied in float64.

    Only the first ``rank`` values count, the smallest rank of a factor: a bottleneck and the null space of a
    normalization make zeros by construction.
    """
    product = np.eye(jacobians[0].shape[1])
    for jacobian in jacobians:
        product = jacobian.astype(np.float64) @ product
        norm = np.linalg.norm(product)
        if not norm > 0:
            return math.nan
        product /= norm
    values = np.linalg.svd(product, compute_uv=False)[: max(rank, 1)]
    return float(np.log10(values[0] / max(values[len(values) // 4], np.finfo(np.float32).eps * values[0])))
