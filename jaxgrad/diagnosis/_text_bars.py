"""Bars and lines made of characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxgrad.diagnosis._series import Axis

_EIGHTHS = " ▏▎▍▌▋▊▉"
_LEVELS = "▁▂▃▄▅▆▇█"


def bar_of(value: float, axis: Axis, width: int) -> str:
    """A bar for a log10; nothing for exactly 0 and for NaN, the least visible for the smallest."""
    if math.isnan(value) or value == -math.inf:
        return ""
    eighths = max(round(axis.fraction(value) * width * 8), 1)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def two_sided_bar(value: float, low: float, high: float, width: int) -> str:
    """A bar that leaves a line at 0 to the left or to the right, an arrow where it has no end.

    Args:
      value: Its end; infinite ones are welcome, NaN draws the line alone.
      low: Value at the left edge, at most 0.
      high: Value at the right edge, at least 0.
      width: Columns to fill.

    Returns:
      As many characters, in steps of half of one.
    """
    span = (high - low) or 1.0
    left = min(max(round(-low / span * (width - 1)), 0), width - 1)
    right = width - 1 - left
    room = right if value > 0 else left
    if math.isnan(value):
        halves = 0
    elif math.isinf(value):
        halves = 2 * room
    else:
        halves = min(round(2 * abs(value) / span * (width - 1)), 2 * room)
    body = "█" * (halves // 2)
    if value > 0:
        body += "▌" * (halves % 2)
        body = f"{body[:-1]}▶" if math.isinf(value) and body else body
        return " " * left + "│" + body.ljust(right)
    body = "▐" * (halves % 2) + body
    body = f"◀{body[1:]}" if math.isinf(value) and body else body
    return body.rjust(left) + "│" + " " * right


def sparkline(values: Sequence[float], axis: Axis, width: int) -> str:
    """One character a value, or a sample of them where there are more than ``width``; a dot for 0 and for NaN."""
    if len(values) > max(width, 2):
        width = max(width, 2)
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    return "".join(
        "·"
        if math.isnan(value) or value == -math.inf
        else _LEVELS[min(int(axis.fraction(value) * len(_LEVELS)), len(_LEVELS) - 1)]
        for value in values
    )
