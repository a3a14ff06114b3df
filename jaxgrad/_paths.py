"""One spelling for the path of a leaf in a pytree, wherever a name is shown, kept in a state or matched by a rule."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax

from jaxgrad._checks import message

Pattern = str | re.Pattern[str]
T = TypeVar("T")

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


def match_rules(
    function: str, rules: Mapping[Pattern, T] | Sequence[tuple[Pattern, T]], names: Sequence[str], default: T
) -> list[T]:
    """Give each name what the first rule says whose regular expression is found in it.

    Args:
      function: The public name the user called.
      rules: Regular expressions, which ``re.search`` looks for, and what they stand for; as a mapping or as pairs.
      names: Paths.
      default: For a name that no rule matches.

    Returns:
      One entry a name.

    Raises:
      TypeError: ``rules`` is neither a mapping nor pairs of a pattern and something.
      ValueError: A pattern is no regular expression, or is found in none of the names.
    """
    pairs = []
    entries: Any = list(rules.items()) if isinstance(rules, Mapping) else rules
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        entries = [rules]
    for pair in entries:
        if not isinstance(pair, Sequence) or len(pair) != 2 or not isinstance(pair[0], str | re.Pattern):
            expected = "rules: a mapping, or pairs, from regular expressions for paths"
            raise TypeError(message(function, expected, repr(pair), 'write {"kernel": ...} or [("kernel", ...)]'))
        pairs.append((_compiled(function, pair[0]), pair[1]))
    for pattern, _ in pairs:
        if not any(map(pattern.search, names)):
            raise ValueError(_no_match(function, pattern.pattern, names))
    return [next((value for pattern, value in pairs if pattern.search(name)), default) for name in names]


def _compiled(function: str, pattern: Pattern) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        remedy = "write .* for anything, and a backslash before a character that means itself"
        raise ValueError(message(function, "regular expressions for paths", f"{pattern!r}: {error}", remedy)) from None


def _no_match(function: str, pattern: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(pattern, names, n=5, cutoff=0.4) or list(names[:5])
    return message(
        function,
        "rules that each match a floating-point leaf",
        f"{pattern!r}, which matches none of the {len(names)}",
        f"take the rule out, or write it for paths such as {', '.join(close)}" if names else "pass a tree with leaves",
    )
