"""One wording for every error: the function, what it expected, what it got, and what to do."""

from __future__ import annotations


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
