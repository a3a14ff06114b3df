"""One spelling for the path of a leaf in a pytree, wherever a name is shown, kept in a state or matched by a rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

# Names inside a pytree, where a string would be a leaf: each the only key of a mapping, so part of the structure.
Labels = tuple[dict[str, None], ...]


def path_names(paths: Sequence[Sequence[Any]]) -> list[str]:
    """Name the leaves of one tree as their user would write them, such as ``layers/3/weight``.

    Args:
      paths: The key paths of all leaves, from ``jax.tree_util.tree_flatten_with_path``.

    Returns:
      One name a path. The root of a tree that is a single leaf has the empty name.
    """
    parents = Counter(tuple(path[:-1]) for path in paths if path)
    inner = Counter(tuple(path[:length]) for path in paths for length in range(len(path) - 1))
    names = []
    for path in paths:
        path = tuple(path)
        # flax.nnx keeps the array of a variable in a field `value`, with nothing beside it.
        if path and getattr(path[-1], "name", None) == "value" and parents[path[:-1]] + inner[path[:-1]] == 1:
            path = path[:-1]
        names.append(jax.tree_util.keystr(path, simple=True, separator="/"))
    return names


def named_leaves(tree: Any) -> tuple[list[str], list[Any], Any]:
    """Flatten a tree and name its leaves.

    Args:
      tree: Any pytree; ``None`` is no leaf.

    Returns:
      The names, the leaves and the tree's structure, in the order of ``jax.tree.leaves``.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
    return path_names([path for path, _ in flat]), [leaf for _, leaf in flat], treedef


def as_labels(names: Sequence[str]) -> Labels:
    """Make names part of a pytree's structure, in their order."""
    return tuple({name: None} for name in names)


def label_names(labels: Labels) -> list[str]:
    """Return the names again."""
    return [name for label in labels for name in label]
