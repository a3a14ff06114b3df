"""The command line: ``jaxgrad explain`` diagnoses a network from a shell, and ``jaxgrad papers`` looks papers up.

Only click is imported at the top, so that ``--help`` answers at once: jax and the user's module come when needed.
"""

from __future__ import annotations

import sys

import click

from jaxgrad.cli._explain import explain
from jaxgrad.cli._papers import papers

__all__ = ["main"]


def print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the versions that a bug report needs."""
    if wanted and not context.resilient_parsing:
        from importlib.metadata import version

        import jaxgrad

        click.echo(f"jaxgrad {jaxgrad.__version__} (jax {version('jax')}, Python {sys.version.split()[0]})")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=print_version, help="Print versions."
)
def main() -> None:
    """Find out why gradients vanish or explode, which layer is to blame, and which fix works.

    \b
    Examples:
      jaxgrad explain --demo deep-sigmoid
      jaxgrad explain train:make_case --html report.html
      jaxgrad papers search orthogonal initialization
      jaxgrad explain --help
    """  # noqa: D301  (click's mark for a paragraph that is not wrapped)


main.add_command(explain)
main.add_command(papers)
