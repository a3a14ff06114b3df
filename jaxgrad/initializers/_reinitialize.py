"""Drawing the parameters of a finished model again, chosen by path."""

from __future__ import annotations

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
from jaxgrad._paths import Pattern, match_rules, named_leaves
from jaxgrad.initializers._variance_scaling import Initializer

Rules = Mapping[Pattern, Initializer | None] | Sequence[tuple[Pattern, Initializer | None]]


def reinitialize(params: Any, rules: Rules, key: PRNGKeyArray) -> Any:
    """Draw parameters again, those whose path a rule matches.

    ``new[path] = init(fold_in(key, path), shape, dtype)`` for the first rule ``(pattern, init)`` that matches the path.

    Args:
      params: A pytree of parameters, a ``flax.nnx`` module or state, or an equinox module. Paths are spelled as
        :func:`jaxgrad.trace` spells them: ``params/Dense_3/kernel``, ``layers/3/weight``.
      rules: Regular expressions and initializers, as a mapping or as pairs; the first that is found in a path wins:
        ``"kernel"`` is in every kernel's, ``"layers/[0-3]/weight"`` in four. ``None`` for an initializer leaves what
        matches alone.
      key: Random key. Each parameter's own is made from it and the path: another layer changes no other's draw.

    Returns:
      The same structure with the same shapes, types and shardings; a new module for a module. Leaves that no rule
      matches, and those that are no floating-point arrays, are the same objects.

    Raises:
      TypeError: ``rules`` is neither, or an initializer is not callable.
      ValueError: A pattern is no regular expression or matches no floating-point parameter, or an initializer refuses
        a shape or returns another one.

    Numerics:
      A bias is 1-D, which kernel initializers refuse: ``"kernel"`` is a safer rule than ``""``. Kernels of equinox are
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
    tree, rebuild = module_as_tree(params)
    names, leaves, treedef = named_leaves(tree)
    arrays = [name for name, leaf in zip(names, leaves, strict=True) if _is_parameter(leaf)]
    chosen = dict(zip(arrays, match_rules("reinitialize", rules, arrays, None), strict=True))
    for init in chosen.values():
        if not (init is None or callable(init)):
            remedy = 'write {"kernel": he_normal()}, with the parentheses that build the initializer'
            raise TypeError(message("reinitialize", "rules with initializers, or None", repr(init), remedy))
    new = []
    for name, leaf in zip(names, leaves, strict=True):
        init = chosen.get(name)
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


def _is_parameter(leaf: Any) -> bool:
    array = isinstance(leaf, (jax.Array, np.ndarray, jax.ShapeDtypeStruct))
    return array and jnp.issubdtype(leaf.dtype, jnp.inexact)


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
