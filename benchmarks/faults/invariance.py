"""How often a verdict stays what it is when something changes that has nothing to do with the fault.

Each program is explained at level "quick", without its optimizer (whose step does depend on the unit of the loss), and
again with the loss in another unit, its parameters in reverse order, a batch of 8 and of 256 examples, other seeds, and
in bfloat16. The share of programs with the same verdict is printed for each change.

Run: python benchmarks/faults/invariance.py --part 0/4
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from evaluate import explain
from programs import HALVES, Case, Program, load


def variants(program: Program) -> Iterator[tuple[str, Case]]:
    """Yield the same program with something else changed."""
    case = program.make(0)
    for scale in (1e-6, 1e6):
        yield f"loss × {scale:.0e}", case._replace(loss_fn=scaled(case.loss_fn, scale))
    yield "parameters reversed", reversed_parameters(case)
    size = case.args[-1].shape[0]
    if all(array.shape[0] == size for array in case.args) and size > 8:
        yield "batch of 8", case._replace(args=tuple(array[:8] for array in case.args))
        batches = [case.batches(jax.random.key(i)) for i in range(-(-256 // size))]
        joined = (jnp.concatenate(arrays)[:256] for arrays in zip(*batches, strict=True))
        yield "batch of 256", case._replace(args=tuple(joined))
    for seed in (1, 2):
        yield f"seed {seed}", program.make(seed)
    if program.dtype == "float32":
        yield "bfloat16", case._replace(params=in_bfloat16(case.params), args=in_bfloat16(case.args))


def scaled(loss_fn: Any, scale: float) -> Any:
    """Return the loss in another unit."""

    def other(params, *args):
        loss = loss_fn(params, *args)
        return loss * jnp.asarray(scale, loss.dtype)

    return other


def reversed_parameters(case: Case) -> Case:
    """Return the case with its parameters as a tuple of leaves, the last one first."""
    leaves, treedef = jax.tree.flatten(case.params)

    def loss_fn(params, *args):
        return case.loss_fn(jax.tree.unflatten(treedef, params[::-1]), *args)

    return case._replace(loss_fn=loss_fn, params=tuple(leaves[::-1]))


def in_bfloat16(tree: Any) -> Any:
    """Return a tree with its float32 arrays rounded to bfloat16."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16) if getattr(leaf, "dtype", None) == jnp.float32 else leaf, tree
    )


def verdict(case: Case) -> str:
    """Return the verdict on a case."""
    return explain(case, level="quick", optimizer=None).verdict


def main() -> None:
    """Explain, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--half", choices=HALVES, help="which part of the suite; all by default")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th program, beginning with the i-th")
    options = parser.parse_args()
    index, count = map(int, options.part.split("/"))
    same: dict[str, list[bool]] = defaultdict(list)
    for program in load(options.half)[index::count]:
        before = verdict(program.make(0))
        for name, case in variants(program):
            try:
                after = verdict(case)
            except (TypeError, ValueError) as error:  # a model may insist on its dtype or on the size of its batch
                print(f"{program.name}: {name}: left out, {type(error).__name__}", flush=True)
                continue
            same[name].append(after == before)
            if after != before:
                print(f"{program.name}: {before}, with {name}: {after}", flush=True)
    for name, hits in same.items():
        print(f"{name:24} {sum(hits)}/{len(hits)} = {sum(hits) / len(hits):.0%}")


if __name__ == "__main__":
    main()
