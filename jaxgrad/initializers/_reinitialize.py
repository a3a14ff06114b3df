"""Drawing the parameters of a finished model again, chosen by path."""

from __future__ import annotations

import difflib
import fnmatch
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PRNGKeyArray

from jaxgrad._checks import message
from jaxgrad._paths import named_leaves
from jaxgrad.initializers._variance_scaling import Initializer

Pattern = str | re.Pattern[str]
Rules = Mapping[Pattern, Initializer | None] | Sequence[tuple[Pattern, Initializer | None]]


def reinitialize(params: Any, rules: Rules, key: PRNGKeyArray) -> Any:
    """Draw parameters again, those whose path a rule matches.

    ``new[path] = init(fold_in(key, path), shape, dtype)`` for the first rule ``(pattern, init)`` that matches the path.

    Args:
      params: A pytree of parameters, a ``flax.nnx`` module or state, or an equinox module. Paths are spelled as
        :func:`jaxgrad.trace` spells them: ``params/Dense_3/kernel``, ``layers/3/weight``.
      rules: Patterns and initializers, as a mapping or as pairs; the first that matches wins. A string is a glob in
        which ``*`` stands for anything, slashes too, and which matches a whole path or its last parts: ``"kernel"`` is
        every kernel. A compiled regular expression matches where ``search`` finds it. ``None`` for an initializer
        leaves what matches alone.
      key: Random key. Each parameter's own is made from it and the path: another layer changes no other's draw.

    Returns:
      The same structure with the same shapes, types and shardings; a new module for a module. Leaves that no rule
      matches, and those that are no floating-point arrays, are the same objects.

    Raises:
      TypeError: ``rules`` is neither, or an initializer is not callable.
      ValueError: A rule matches no floating-point parameter, or an initializer refuses a shape or returns another one.

    Numerics:
      A bias is 1-D, which kernel initializers refuse: ``"kernel"`` is a safer rule than ``"*"``. Kernels of equinox are
      (out, in): give their initializers ``in_axis=1, out_axis=0``. A variable an nnx module shares is drawn once, by
      its first path.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = {"first": {"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3)}}
      >>> new = reinitialize(params, {"kernel": jax.nn.initializers.ones}, jax.random.key(0))
      >>> float(new["first"]["kernel"].sum()), float(new["first"]["bias"].sum())
      (9.0, 0.0)

    See also:
      ``torch.nn.Module.apply`` with a function that asks for the type of each layer.
    """
    pairs = _check_rules(rules)
    tree, rebuild = module_as_tree(params)
    names, leaves, treedef = named_leaves(tree)
    arrays = {name: leaf for name, leaf in zip(names, leaves, strict=True) if _is_parameter(leaf)}
    for pattern, _ in pairs:
        if not any(_matches(pattern, name) for name in arrays):
            raise ValueError(_no_match(pattern, list(arrays)))
    new = []
    for name, leaf in zip(names, leaves, strict=True):
        init = next((init for pattern, init in pairs if name in arrays and _matches(pattern, name)), None)
        new.append(leaf if init is None else _draw(name, leaf, init, fold_name(key, name)))
    return rebuild(jax.tree_util.tree_unflatten(treedef, new))


def module_as_tree(params: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Return parameters as a pytree that has each once, and what makes of it what they came in.

    A module of ``flax.nnx`` may hold one variable in two places, and in older versions is no pytree.
    """
    nnx = sys.modules.get("flax.nnx")  # whoever has such a module has imported it
    if nnx is None or not isinstance(params, nnx.Module):
        return params, lambda tree: tree
    graph, state = nnx.split(params)
    return state, lambda state: nnx.merge(graph, state)


def fold_name(key: PRNGKeyArray, name: str) -> PRNGKeyArray:
    """Return the key of one parameter. The sum is the same in every process, where Python's ``hash`` is not."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _check_rules(rules: Any) -> list[tuple[Pattern, Initializer | None]]:
    pairs = list(rules.items()) if isinstance(rules, Mapping) else rules
    if isinstance(pairs, str) or not isinstance(pairs, Sequence):
        pairs = [rules]
    for pair in pairs:
        proper = isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[0], (str, re.Pattern))
        if not proper or not (pair[1] is None or callable(pair[1])):
            raise TypeError(
                message(
                    "reinitialize",
                    "rules: a mapping, or pairs, of a path pattern and an initializer",
                    f"{pair!r}",
                    'write {"kernel": he_normal()}, with the parentheses that build the initializer',
                )
            )
    return [(pattern, init) for pattern, init in pairs]


def _is_parameter(leaf: Any) -> bool:
    array = isinstance(leaf, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))
    return array and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _matches(pattern: Pattern, name: str) -> bool:
    if isinstance(pattern, re.Pattern):
        return pattern.search(name) is not None
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"*/{pattern}")


def _no_match(pattern: Pattern, names: Sequence[str]) -> str:
    text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    close = difflib.get_close_matches(text, names, n=5, cutoff=0.4) or names[:5]
    return message(
        "reinitialize",
        "rules that each match a floating-point parameter",
        f"{text!r}, which matches none of the {len(names)}",
        f"take the rule out, or write it for paths such as {', '.join(close)}" if names else "pass parameters",
    )


def _draw(name: str, leaf: Any, init: Initializer, key: PRNGKeyArray) -> Array:
    shape, dtype = tuple(leaf.shape), leaf.dtype

    def draw(key: PRNGKeyArray) -> Array:
        return jnp.asarray(init(key, shape, dtype)).astype(dtype)

    concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
    try:
        if concrete and len(leaf.sharding.device_set) > 1:
            new = jax.jit(draw, out_shardings=leaf.sharding)(key)  # never whole on one device
        else:
            new = draw(key)
    except (TypeError, ValueError) as error:
        error.add_note(f"reinitialize: at {name}, of shape {shape} and type {dtype}")
        raise
    if new.shape != shape:
        raise ValueError(
            message(
                "reinitialize",
                f"an initializer that returns the shape {shape} of {name}",
                f"shape {new.shape}",
                "return an array of the shape asked for",
            )
        )
    committed = concrete and getattr(leaf, "committed", False) and len(leaf.sharding.device_set) == 1
    return jax.device_put(new, leaf.sharding) if committed else new
