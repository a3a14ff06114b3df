"""What every command does with a terminal: a message in place of a traceback, and pages that any terminal can show."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


class InputError(click.ClickException):
    """Something the user gave is wrong: shown on stderr as it is, with exit status 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Write the message alone, without click's prefix."""
        click.echo(self.format_message(), err=True, file=file)


def console() -> Console:
    """Return the terminal, with colours where it is one, and plain otherwise."""
    from rich.console import Console

    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
    return Console(file=sys.stdout)
