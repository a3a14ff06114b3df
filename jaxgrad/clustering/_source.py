"""Batches that do not fit in memory together: gone through again and again, checked, padded, sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgrad._checks import message
from jaxgrad._inputs import check_rows, check_weights
from jaxgrad._rows import shards
from jaxgrad.clustering._batches import take

# Entries of a batch cut from an array: large enough that what a batch costs apart from its rows is not seen.
_ENTRIES = 1 << 22


class Source:
    """Batches that can be gone through again and again, each checked and padded on its way.

    Attributes:
      dtype: What is computed in, known once there was a batch.
      total_rows: Rows in a pass, padding left out; ``None`` until known.
    """

    def __init__(self, function: str, batches: Any, batch_size: int | None):
        self.function = function
        self.dtype: Any = None
        self.total_rows: int | None = None
        self._num_features: int | None = None
        self._most = 0
        self._open: Callable[[], Any]
        if hasattr(batches, "shape") and hasattr(batches, "dtype"):
            if len(batches.shape) != 2:
                check_rows(function, batches)
            self.total_rows = batches.shape[0]
            size = batch_size or max(_ENTRIES // max(batches.shape[1], 1), 1024)
            self._open = lambda: (batches[at : at + size] for at in range(0, batches.shape[0], size))
            return
        if batch_size is not None:
            remedy = "leave it out: the batches have their sizes"
            raise ValueError(message(function, "batch_size only for an array", f"batch_size={batch_size}", remedy))
        if isinstance(batches, Iterator):
            remedy = (
                "pass a function that returns a fresh iterator, such as lambda: load(path), or go through it once with "
                "k_means_update"
            )
            got = f"a {type(batches).__name__}, which ends after one pass"
            raise TypeError(message(function, "batches that can be gone through many times", got, remedy))
        if not callable(batches) and not isinstance(batches, Iterable):
            remedy = "pass a list, a data loader, an array, or a function that returns an iterator"
            raise TypeError(message(function, "batches", f"a {type(batches).__name__}", remedy))
        self._open = batches if callable(batches) and not hasattr(batches, "__iter__") else lambda: batches

    def __iter__(self) -> Iterator[tuple[Array, Array | None, int]]:
        """Yield rows, their weights or ``None``, and how many of the rows are no padding."""
        done, index = 0, -1
        for index, item in enumerate(self._open()):
            x, weights, count = self._load(item, index)
            done += count
            yield x, weights, count
        if index < 0 and self.dtype is None:
            raise ValueError(message(self.function, "at least one batch", "none", "check what gives the batches"))
        if self.total_rows is not None and done != self.total_rows:
            got = f"{done} rows, after a pass of {self.total_rows}"
            remedy = "return a fresh iterator over all of them each time"
            raise ValueError(message(self.function, "the same batches in every pass", got, remedy))
        self.total_rows = done

    def _load(self, item: Any, index: int) -> tuple[Array, Array | None, int]:
        """Check a batch, and bring it to the device in the shape of those before."""
        name = f"{self.function}, of batch {index}"
        x, weights = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        x = check_rows(name, x, self._num_features)
        if self.dtype is None:
            self.dtype, self._num_features = x.dtype, x.shape[1]
        x = x.astype(self.dtype)
        weights = check_weights(name, weights, x)
        count = x.shape[0]
        if shards(x) is None:
            short = max(self._most - count, 0)
            self._most = max(self._most, count)
            if short:
                x = jnp.pad(x, ((0, short), (0, 0)))
                weights = None if weights is None else jnp.pad(weights, (0, short))
        return x, weights, count


class Sample:
    """A uniform sample of rows: those whose random numbers are largest, whatever batches they come in."""

    def __init__(self, key: Any, size: int):
        self._random = np.random.default_rng(np.asarray(jax.random.bits(key, (4,), jnp.uint32)))
        self._size = size
        self._ranks = np.empty((0,))
        self._rows: list[np.ndarray] = []

    def add(self, x: Array, weights: Array | None, count: int) -> None:
        """Take part of a batch into the sample."""
        ranks = self._random.random(count)
        full = self._ranks.size == self._size
        which = np.flatnonzero(ranks > self._ranks.min()) if full else np.arange(count)
        if which.size > self._size:
            which = np.sort(which[np.argpartition(ranks[which], -self._size)[-self._size :]])
        if not which.size:
            return
        # One program for few rows and for many, not one for every number of them.
        padded = np.zeros(1 << max(which.size - 1, 1).bit_length(), np.int32)
        padded[: which.size] = which
        mass = jnp.ones_like(x[:, 0]) if weights is None else weights
        new = [np.asarray(leaf)[: which.size] for leaf in take(x, mass, padded, layout=shards(x))]
        both = [np.concatenate(pair) for pair in zip(self._rows, new, strict=True)] if self._rows else new
        merged = np.concatenate([self._ranks, ranks[which]])
        kept = np.sort(np.argpartition(merged, -self._size)[-self._size :]) if merged.size > self._size else slice(None)
        self._ranks, self._rows = merged[kept], [leaf[kept] for leaf in both]

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows and their weights, in the order of the data."""
        return self._rows[0], self._rows[1]


def results(source: Source, dispatch: Callable[..., Any]) -> Iterator[tuple[int, Any]]:
    """Yield what each batch gives, on the host, having read and begun the batch after it."""
    waiting = None
    for x, weights, count in source:
        begun = count, dispatch(x, weights, count)
        if waiting is not None:
            yield waiting[0], jax.device_get(waiting[1])
        waiting = begun
    if waiting is not None:
        yield waiting[0], jax.device_get(waiting[1])
