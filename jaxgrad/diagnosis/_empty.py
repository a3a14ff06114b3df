"""What becomes of an example that holds nothing: a text without words, an image without ink, a row of padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.diagnosis._loss import arguments_read_by_layers, labels_of
from jaxgrad.tracing import Network

_LEAST = 0.02  # share of zeros among the numbers of a batch for an example of zeros to be likely one day


def with_empty_example(network: Network, inputs: Sequence[Any]) -> list[Any] | None:
    """Return the inputs with the first example of what the network reads at zero.

    ``None`` where the batch gives no reason to expect one: few of its numbers are zero, or an example is already.

    Args:
      network: The network.
      inputs: The program's inputs.
    """
    found = labels_of(network, inputs)
    if found is None:
        return None
    count = network.signature.avals[found[0]].shape[0]
    changed, zeros, size = list(inputs), 0, 0
    for position in sorted(arguments_read_by_layers(network)):
        aval = network.signature.avals[position]
        if position < network.num_parameters or aval.shape[:1] != (count,):
            continue
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            continue
        flat = np.asarray(inputs[position]).reshape(count, -1)
        if not np.all(np.any(flat != 0, axis=1)):
            return None
        zeros, size = zeros + int(np.sum(flat == 0)), size + flat.size
        changed[position] = jnp.asarray(inputs[position]).at[0].set(jnp.zeros((), aval.dtype))
    return changed if size and zeros >= _LEAST * size else None
