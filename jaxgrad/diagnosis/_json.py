"""Named tuples as strict JSON and back, exactly: infinities and NaN travel as strings, types come from annotations."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode(value: Any) -> Any:
    """Turn a record into what ``json.dumps(..., allow_nan=False)`` accepts.

    Args:
      value: A dataclass, a named tuple, or the tuples, numbers and strings inside one.

    Returns:
      Dictionaries, lists, strings and finite numbers. A number that is not finite becomes ``"nan"``, ``"inf"`` or
      ``"-inf"``; :func:`decode` reads it back only where the annotation says ``float``, so a layer that is called
      ``"nan"`` stays a string.

    Raises:
      TypeError: If something else is inside, such as an array.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isfinite(number):
            return number
        return "nan" if math.isnan(number) else "inf" if number > 0 else "-inf"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: encode(getattr(value, name)) for name in value._fields}  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    raise TypeError(f"cannot write a {type(value).__name__} as JSON: convert it to a Python number, string or tuple")


def decode(hint: Any, value: Any, where: str) -> Any:
    """Rebuild what :func:`encode` wrote.

    Args:
      hint: The annotation that the value must satisfy: a dataclass, a named tuple, or what their fields use.
      value: What the JSON parser returned.
      where: Path of the value inside the document, for the error.

    Returns:
      An instance of ``hint``.

    Raises:
      ValueError: If the value does not fit the annotation; the text names the place.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return decode(next(argument for argument in arguments if argument is not type(None)), value, where)
    if origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, list) and len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        if isinstance(value, list) and len(value) == len(arguments):
            pairs = zip(arguments, value, strict=True)
            return tuple(decode(argument, item, f"{where}[{i}]") for i, (argument, item) in enumerate(pairs))
    elif hint is float:
        if isinstance(value, str) and value in _NON_FINITE:
            return _NON_FINITE[value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint in (bool, int, str):
        if type(value) is hint:
            return value
    elif isinstance(value, Mapping):
        hints = typing.get_type_hints(hint)
        if value.keys() == hints.keys():
            return hint(**{name: decode(hints[name], value[name], f"{where}.{name}") for name in hints})
        changed = sorted(value.keys() ^ hints.keys())
        raise ValueError(f"{where}: missing or unknown fields {', '.join(changed)}")
    raise ValueError(f"{where}: expected {getattr(hint, '__name__', hint)}, got {value!r:.60}")


def same(left: Any, right: Any) -> bool:
    """Whether two records hold the same values, where NaN equals NaN.

    Args:
      left: A dataclass, a named tuple, or the tuples, numbers and strings inside one.
      right: Another.

    Returns:
      True where every field agrees.
    """
    if dataclasses.is_dataclass(left) and type(left) is type(right):
        return all(same(getattr(left, field.name), getattr(right, field.name)) for field in dataclasses.fields(left))
    if isinstance(left, tuple | list) and isinstance(right, tuple | list):
        return len(left) == len(right) and all(map(same, left, right))
    # Only NaN differs from itself.
    return bool(left == right or (left != left and right != right))
