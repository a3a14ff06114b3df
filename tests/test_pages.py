"""The code shown in README, and in the documentation where its build does not run it, works as it stands there."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgrad
from jaxgrad import clustering
from jaxgrad.data import digits

ROOT = Path(__file__).parents[1]
WRITTEN = ("README.md", "docs/*.md", "docs/guides/*.md", "docs/concepts/*.md", "docs/gallery/*.md", "docs/api/*.md")
SHOWN = {
    path.relative_to(ROOT).as_posix(): blocks
    for pattern in WRITTEN
    for path in sorted(ROOT.glob(pattern))
    if (blocks := re.findall(r"^```python\n(.*?)^```$", path.read_text("utf-8"), re.M | re.S))
}
WIDTH, DEPTH = 16, 6


class Names(dict[str, Any]):
    """A namespace that makes what a page takes for granted at the moment it is used, out of what stands there then."""

    def __missing__(self, name: str) -> Any:
        if name not in GIVEN:
            raise KeyError(name)
        self[name] = GIVEN[name](self)
        return self[name]


def params(names: Names) -> Any:
    """Weights of a network too deep for sigmoids, under the names that flax would give them."""
    sizes = [64, *[WIDTH] * (DEPTH - 1), 10]
    glorot = jax.nn.initializers.glorot_normal()
    layers = {}
    for i, shape in enumerate(itertools.pairwise(sizes)):
        kernel = glorot(jax.random.fold_in(names["key"], i), shape)
        layers[f"Dense_{i}"] = {"kernel": kernel, "bias": jnp.zeros(shape[1])}
    return {"params": layers}


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    *hidden, last = params["params"].values()
    for layer in hidden:
        x = jax.nn.sigmoid(x @ layer["kernel"] + layer["bias"])
    return optax.softmax_cross_entropy(x @ last["kernel"] + last["bias"], y).mean()


def images(names: Names) -> jax.Array:
    return jnp.asarray(digits()[0][:96].reshape(96, 64), jnp.float32) / 16


def opt_state(names: Names) -> Any:
    """The state of the page's optimizer after two steps."""
    optimizer, state = names["optimizer"], names["optimizer"].init(names["params"])
    for _ in range(2):
        grads = jax.grad(loss_fn)(names["params"], names["x"], names["y"])
        _, state = optimizer.update(grads, state, names["params"])
    return state


def stored(names: Names) -> str:
    np.asarray(names["x"]).tofile("rows")
    return "rows"


# What pages take for granted, by its name there.
GIVEN: dict[str, Callable[[Names], Any]] = {
    "jax": lambda names: jax,
    "jaxgrad": lambda names: jaxgrad,
    "np": lambda names: np,
    "optax": lambda names: optax,
    "clustering": lambda names: clustering,
    "mine": lambda names: np.asarray(names["x"]),
    "key": lambda names: jax.random.key(0),
    "loss_fn": lambda names: loss_fn,
    "params": params,
    "x": images,
    "y": lambda names: jax.nn.one_hot(digits()[1][:96], 10),
    "report": lambda names: jaxgrad.explain(loss_fn, names["params"], names["x"], names["y"], level="quick"),
    "opt_state": opt_state,
    "fun": lambda names: lambda z: jnp.sum((z - 1) ** 4 + z**2),
    "x0": lambda names: jnp.zeros(3),
    "rows": lambda names: names["x"][:5],
    "spread_over_devices": images,
    "path": stored,
    "shape": lambda names: names["x"].shape,
    "snapshots": lambda names: list(np.random.default_rng(0).normal(size=(12, 30)).cumsum(0).astype(np.float32)),
    "f": lambda names: jnp.tanh,
    "step": lambda names: lambda carry, x: jnp.tanh(jnp.roll(carry, 1) + x),
    "carry": lambda names: jnp.full(4, 0.1),
    "xs": lambda names: jnp.zeros((20, 4)),
}


@pytest.mark.parametrize("page", SHOWN)
@pytest.mark.usefixtures("third_party_model")  # readers have JAX's usual promotion
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax.distributed, "initialize", lambda: None)  # one process is what a test has
    names = Names()
    for number, block in enumerate(SHOWN[page]):
        names.pop("opt_state", None)  # of this block's optimizer
        exec(compile(block, f"{page}, block {number}", "exec"), names)
