"""Run the command line as ``python -m jaxgrad``."""

from __future__ import annotations

from jaxgrad.cli import main

if __name__ == "__main__":
    main(prog_name="jaxgrad")
