"""One wording for every error: the function, what it expected, what it got, and what to do."""

from __future__ import annotations

import math
from typing import Any


def message(function: str, expected: str, got: str, remedy: str) -> str:
    """Compose the text of an error.

    Args:
      function: The public name the user called.
      expected: What the argument should have been.
      got: What came instead.
      remedy: What the user can do about it.

    Returns:
      One sentence a line.
    """
    return f"{function}: expected {expected}; got {got}.\nTo fix it: {remedy}"


def check_number(
    function: str,
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    or_schedule: bool = False,
) -> None:
    """Refuse a setting out of its range; an array, which may be traced, passes unseen.

    Args:
      function: The public name the user called.
      name: The argument's name.
      value: What the user passed.
      low: The smallest value allowed.
      high: The largest value allowed; infinity itself is, where this is infinite.
      open_low: Whether ``low`` itself is refused.
      open_high: Whether ``high`` itself is refused.
      or_schedule: Whether a function of the step count will do, too.

    Raises:
      TypeError: ``value`` is neither a number nor an array nor, where allowed, a function.
      ValueError: It is out of range, or NaN.
    """
    brackets = "(" if open_low or low == -math.inf else "[", ")" if open_high else "]"
    expected = f"{name} in {brackets[0]}{low:g}, {high:g}{brackets[1]}"
    if or_schedule:
        expected += ", or a schedule: a function of the step count"
        if callable(value):
            return
    if isinstance(value, bool) or not (isinstance(value, (int, float)) or hasattr(value, "dtype")):
        raise TypeError(message(function, expected, f"{name}={value!r}", "pass a number"))
    if not isinstance(value, (int, float)):
        return
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (above and below):
        raise ValueError(message(function, expected, f"{name}={value!r}", f"pass {name} in that range"))
