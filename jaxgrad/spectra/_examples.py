"""Which part of an activation belongs to which example of a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxgrad.spectra._operators import linear_maps
from jaxgrad.tracing import Cut, Network
from jaxgrad.tracing._interpret import Site, evaluate
from jaxgrad.tracing._trunk import inexact


class Layout(NamedTuple):
    """Where the examples lie in the activations.

    Attributes:
      num_examples: Size of the batch; 1 where the batch is one state.
      axes: For each site, the axis of the examples, and how many rows of it belong to one example. Empty where
        the batch is one state.
      mixes: Whether the network has a batch whose examples depend on one another.
    """

    num_examples: int
    axes: dict[Site, tuple[int, int]]
    mixes: bool

    def split(self, values: Sequence[jax.Array], sites: Sequence[Site]) -> jax.Array:
        """Return a state as one row an example: ``(num_examples, size)``."""
        dtype = jnp.result_type(*(value.dtype for value in values))
        rows = []
        for value, site in zip(values, sites, strict=True):
            if not self.axes:
                rows.append(value.reshape(1, -1).astype(dtype))
                continue
            axis, group = self.axes[site]
            moved = jnp.moveaxis(value, axis, 0)
            rows.append(moved.reshape(self.num_examples, group * math.prod(moved.shape[1:])).astype(dtype))
        return jnp.concatenate(rows, axis=1)

    def merge(self, rows: jax.Array, avals: Sequence[Any], sites: Sequence[Site]) -> tuple[jax.Array, ...]:
        """Undo :meth:`split`."""
        values, begin = [], 0
        for aval, site in zip(avals, sites, strict=True):
            size = math.prod(aval.shape) // self.num_examples
            part = rows[:, begin : begin + size].astype(aval.dtype)
            begin += size
            if not self.axes:
                values.append(part.reshape(aval.shape))
                continue
            axis, _ = self.axes[site]
            shape = (aval.shape[axis], *aval.shape[:axis], *aval.shape[axis + 1 :])
            values.append(jnp.moveaxis(part.reshape(shape), 0, axis))
        return tuple(values)


def example_layout(network: Network, params: Any, *args: Any) -> Layout:
    """Find the examples in a network's activations.

    The state at the beginning of each chain is pushed along a random direction in the first example alone. Where all
    that moves at the later cuts lies in one slice, that slice is the example; where more moves, examples depend on
    one another (BatchNorm in training) and the batch is one state.

    Args:
      network: The network.
      params: Its parameters.
      *args: Its other arguments.

    Returns:
      The layout. Traced arguments (under ``jit``) are replaced by positive random values.
    """
    inputs = network.inputs(params, args)
    if any(isinstance(value, Tracer) for value in inputs):
        with jax.ensure_compile_time_eval():
            return _search(network, _stand_ins(network))
    return _search(network, inputs)


def _stand_ins(network: Network) -> list[Any]:
    """Return positive values of the shapes traced, small enough not to overflow."""
    rng = np.random.default_rng(0)
    values: list[Any] = []
    for aval in network.signature.avals:
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            values.append(jax.random.key(0))
        elif inexact(aval):
            values.append(
                jnp.asarray(rng.uniform(0.1, 1.0, aval.shape) / math.sqrt(math.prod(aval.shape[:1]) or 1), aval.dtype)
            )
        else:
            values.append(jnp.zeros(aval.shape, aval.dtype))
    return values


def _search(network: Network, inputs: list[Any]) -> Layout:
    ends = {span.end for span in network.spans}
    beginnings = [cut for cut in network.cuts if cut not in ends]
    if not beginnings:
        return Layout(1, {}, False)
    candidates = _sizes(network, beginnings[0])
    for size in candidates:
        layout = _try(network, inputs, beginnings, size)
        if layout is not None:
            return layout
    return Layout(1, {}, bool(candidates))


def _sizes(network: Network, beginning: Cut) -> list[int]:
    """Return the sizes a batch may have: those of an axis that every array argument shares."""
    first = network.num_parameters
    shapes = [
        aval.shape
        for aval in network.signature.avals[first:]
        if aval.shape and not jnp.issubdtype(aval.dtype, jax.dtypes.prng_key)
    ]
    shapes.append(network.aval(beginning.sites[0]).shape)
    shared = set.intersection(*(set(shape) for shape in shapes))
    return sorted(shared, key=shapes[0].index)


def _try(network: Network, inputs: list[Any], beginnings: list[Cut], size: int) -> Layout | None:
    """Return the layout for a batch of this size, or ``None`` where examples depend on one another."""
    axes: dict[Site, tuple[int, int]] = {}
    pending = list(beginnings)
    for beginning in pending:
        begun = {site: _axes(network.aval(site).shape, size) for site in beginning.sites}
        if not all(begun.values()):
            return None
        for site, found in begun.items():
            axes.setdefault(site, found[0])
        pushed = _push(network, inputs, beginning, axes, size)
        still = [cut for cut in _following(network, beginning) if all(not pushed[site].any() for site in cut.sites)]
        pending += [cut for cut in still[:1] if cut not in pending]  # dead units hide what comes after them
        for site, moved in pushed.items():
            fits = [axis for axis in _axes(moved.shape, size) if not _outside(moved, axis, size).any()]
            if not fits:
                return None
            axes.setdefault(site, fits[0])
            if axes[site] not in fits:
                return None
    return Layout(size, axes, False)


def _axes(shape: tuple[int, ...], size: int) -> list[tuple[int, int]]:
    """Return which axes may hold the examples, and how many rows of it an example takes."""
    exact = [(axis, 1) for axis, length in enumerate(shape) if length == size]
    if shape and shape[0] % size == 0 and shape[0] > size:
        exact.append((0, shape[0] // size))
    return exact


def _outside(moved: np.ndarray, axis: tuple[int, int], size: int) -> np.ndarray:
    """Return the entries that do not belong to the first example, where they are not zero."""
    rows = np.moveaxis(moved, axis[0], 0)
    return rows.reshape(size, axis[1], *rows.shape[1:])[1:] != 0


def _push(
    network: Network, inputs: list[Any], beginning: Cut, axes: dict[Site, tuple[int, int]], size: int
) -> dict[Site, np.ndarray]:
    """Return how the states after a cut move when the first example moves there; the largest move over the steps."""
    sites = {site for cut in _following(network, beginning) for site in cut.sites}
    length = {cut.sites: 0 for cut in network.cuts}
    for cut in network.cuts:
        length[cut.sites] += 1
    rng = np.random.default_rng(1)
    pushes: dict[Site, Any] = {}
    for site in beginning.sites:
        aval = network.aval(site)
        push = np.zeros(aval.shape)
        axis, group = axes[site]
        moved = np.moveaxis(push, axis, 0)
        moved[:group] = rng.uniform(0.5, 1.5, moved[:group].shape)
        if beginning.step is not None:
            stacked = np.zeros((length[beginning.sites], *aval.shape))
            stacked[beginning.step] = push
            push = stacked
        pushes[site] = jnp.asarray(push, aval.dtype)

    def compute(inputs: list[Any], pushes: dict[Site, Any]) -> dict[Site, Any]:
        def states(taps: dict[Site, Any]) -> dict[Site, Any]:
            _, kept = evaluate(network.program, inputs, taps=taps, captures=sites)
            return kept

        zeros = jax.tree.map(jnp.zeros_like, pushes)
        return linear_maps(states, zeros, jax.eval_shape(states, zeros))[0](pushes)

    # The sites follow from the beginning, so one program serves every size that is tried, and every later call.
    compiled = network.program._compiled.setdefault(("moved", beginning), jax.jit(compute))
    moved = compiled(inputs, pushes)
    return {
        site: np.abs(np.asarray(value, np.float64)).max(axis=0) if len(site) > 1 else np.asarray(value, np.float64)
        for site, value in moved.items()
    }


def _following(network: Network, beginning: Cut) -> Iterable[Cut]:
    """Yield the cuts of the chain that begins with a cut."""
    chains = {span.chain for span in network.spans if span.start == beginning}
    for span in network.spans:
        if span.chain in chains:
            yield span.start
            yield span.end
