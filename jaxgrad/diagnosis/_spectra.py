"""Singular values of the blocks, measured on a few examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.diagnosis._report import Level, Spectrum
from jaxgrad.spectra._blocks import block_values, depth_function, span_jacobians, time_function
from jaxgrad.spectra._examples import Layout, example_layout
from jaxgrad.spectra._golub_kahan import golub_kahan
from jaxgrad.spectra._operators import jacobian_operator
from jaxgrad.spectra._products import product_spectrum
from jaxgrad.tracing import Network
from jaxgrad.tracing._cuts import Span
from jaxgrad.tracing._network import read, trace_for

_DENSE = 1024  # the largest side of a Jacobian that is formed
_EXAMPLES = {"standard": 4, "full": 16}
_STEPS = {"standard": 8, "full": 64}  # time steps of a loop whose Jacobian is measured
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
      A spectrum for each block or ``None``; log10 of the largest over the median singular value of the most spread
      chain (``nan`` where unknown); and notes.
    """
    network, layout = study.network, study.layout(params, args)
    few, few_args = _few_examples(study, loss_fn, params, args, has_aux, _EXAMPLES[level])
    if few is not network:
        layout = study.once(("layout", level), lambda: example_layout(few, params, *few_args))
    chosen = _chosen_spans(few, _STEPS[level])
    run = study.once(("spectra", level), lambda: _compiled(few, layout, chosen, _EXAMPLES[level]))
    measured = jax.device_get(run(few.inputs(params, few_args), key))
    spectra: list[Spectrum | None] = [None] * len(network.spans)
    for index, numbers in zip(chosen, measured[0], strict=True):
        spectra[index] = _spectrum(*numbers)
    spreads = [float(np.max(values)) for values in measured[1]]
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
    """Return the compiled function that measures the chosen blocks."""
    spans = [network.spans[index] for index in chosen]

    @jax.jit
    def run(inputs: list[Any], key: jax.Array) -> tuple[list[Any], list[Any]]:
        values = block_values(network, inputs, spans)
        small = [span for span in spans if max(_sides(network, layout, span)) <= _DENSE]
        dense = dict(_with_examples(span_jacobians(network, layout, values, small), count))
        numbers = []
        for index, span in enumerate(spans):
            if span in dense:
                numbers.append(_dense_numbers(dense[span]))
            else:
                numbers.append(_large_numbers(network, layout, values, span, jax.random.fold_in(key, index)))
        return numbers, [_spread(chain) for chain in _whole_chains(network, dense)]

    return run


def _with_examples(pairs: Any, count: int) -> Any:
    for span, jacobian in pairs:
        yield span, jacobian[:count].astype(jnp.promote_types(jacobian.dtype, jnp.float32))


def _sides(network: Network, layout: Layout, span: Span) -> tuple[int, int]:
    """Return input and output size of one example's state."""
    sizes = [sum(math.prod(network.aval(site).shape) for site in cut.sites) for cut in (span.start, span.end)]
    return sizes[0] // layout.num_examples, sizes[1] // layout.num_examples


def _dense_numbers(jacobians: jax.Array) -> tuple[Any, ...]:
    values = jnp.linalg.svd(jacobians, compute_uv=False)
    accuracy = jnp.finfo(values.dtype).eps * math.sqrt(max(jacobians.shape[1:]))
    return values, None, jnp.asarray(accuracy)


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
    return largest[:, None], squares / min(rows.shape[1], jax.eval_shape(function, rows).shape[1]), jnp.max(accuracy)


def _spectrum(values: np.ndarray, mean_square: np.ndarray | None, accuracy: np.ndarray) -> Spectrum:
    """Pool the examples of one block."""
    values = np.asarray(values, np.float64)
    largest = values[:, 0]
    if mean_square is None:
        squares = np.square(values).sum(axis=1)
        mean = float(np.mean(np.square(values)))
        rank = np.divide(squares, np.square(largest), out=np.zeros_like(squares), where=largest > 0)
        pooled = tuple(float(value) for value in np.sort(values, axis=None)[::-1])
        return Spectrum(
            num_examples=len(values),
            values=pooled,
            sigma_max=float(largest.mean()),
            sigma_min=float(values[:, -1].mean()),
            mean_square=mean,
            stable_rank=float(rank.mean()),
            accuracy=float(accuracy),
            method="dense",
        )
    squares = np.asarray(mean_square, np.float64)
    return Spectrum(
        num_examples=len(values),
        values=(),
        sigma_max=float(largest.mean()),
        sigma_min=None,
        mean_square=float(squares.mean()),
        stable_rank=math.nan,
        accuracy=float(accuracy),
        method="matrix-free",
    )


def _whole_chains(network: Network, dense: dict[Span, jax.Array]) -> list[list[jax.Array]]:
    """Return the Jacobians of the chains of which every block was formed."""
    chains: dict[int, list[Span]] = {}
    for span in network.spans:
        chains.setdefault(span.chain, []).append(span)
    return [
        [dense[span] for span in chain]
        for chain in chains.values()
        if len(chain) > 1 and all(span.kind == "depth" and span in dense for span in chain)
    ]


def _spread(jacobians: list[jax.Array]) -> jax.Array:
    """Return log10 of the largest over the median singular value of a chain's product, for each example."""
    logs = jax.vmap(product_spectrum)(jacobians)
    return logs[:, 0] - logs[:, logs.shape[1] // 2]
