"""The run-time type checker of the tests: an int will do where a float is announced, as PEP 484 has it."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
