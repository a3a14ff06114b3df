"""Check that the concept pages are whole in every language, or bring the catalogs up to date with `--update`.

A message is *missing* where it has no translation, or only one guessed from a similar text (marked fuzzy), *stale*
where the pages do not hold it any more, and *altered* where its translation does not hold the same code, math, roles
and link targets. Each is an error. Nothing is executed, so that this takes half a minute.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po
from sphinx.cmd.build import main as sphinx_build

DOCS = Path(__file__).parent
WHOLE = "concepts"  # what must be there in every language; other pages may be English

_MARKUP = re.compile(r"\{[\w:]+\}`[^`]+`|`[^`]+`|(?<!\\)\$[^$]+\$|\]\([^)]+\)", re.DOTALL)


def extract(folder: Path) -> Path:
    """Write what is to be translated to a folder, and return where it is."""
    quiet = ("-Q", "-b", "gettext", "-D", "nb_execution_mode=off", "-d", str(folder / "doctrees"))
    if sphinx_build([*quiet, str(DOCS), str(folder / "all")]):
        sys.exit("the messages cannot be extracted: does the documentation build?")
    messages = folder / "messages"
    messages.mkdir()
    return (folder / "all" / WHOLE).rename(messages / WHOLE).parent


def read(path: Path) -> Catalog:
    """Return a catalog, an empty one where there is no file."""
    if not path.is_file():
        return Catalog()
    with path.open("rb") as file:
        return read_po(file)


def markup(text: str) -> Counter[str]:
    """Return what a translation must hold as often as the text does."""
    return Counter(" ".join(found.split()) for found in _MARKUP.findall(text))


def faults(template: Catalog, catalog: Catalog) -> Iterator[str]:
    """Yield what is missing, stale and altered in one catalog."""
    wanted = {message.id for message in template if message.id}
    for message in catalog:
        if not message.id:
            continue
        if message.id not in wanted:
            yield f"stale: {message.id!r}"
        elif message.string and not message.fuzzy and markup(message.id) != markup(message.string):
            yield f"altered: {message.id!r} as {message.string!r}"
    done = {message.id for message in catalog if message.string and not message.fuzzy}
    yield from (f"missing: {text!r}" for text in wanted - done)
    yield from (f"stale: {text!r}" for text in catalog.obsolete)


def check(messages: Path, language: Path) -> int:
    """Print the faults of a language and how much of it there is; return the number of faults."""
    count, found = 0, []
    templates = sorted(messages.rglob("*.pot"))
    for path in templates:
        template = read(path)
        name = path.relative_to(messages).with_suffix(".po")
        found += [f"{name}: {fault}" for fault in faults(template, read(language / "LC_MESSAGES" / name))]
        count += len(template)
    for path in language.rglob("*.po"):
        name = path.relative_to(language / "LC_MESSAGES")
        if not (messages / name.with_suffix(".pot")).is_file():
            found.append(f"{name}: stale: there is no such page")
    missing = sum(": missing: " in fault for fault in found)
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{language.name}: {count - missing} of {count} messages on {len(templates)} pages, {len(found)} faults")
    return len(found)


def main() -> int:
    """Check or update every language there is."""
    languages = [path for path in sorted((DOCS / "locale").iterdir()) if path.is_dir()]
    with tempfile.TemporaryDirectory() as folder:
        messages = extract(Path(folder))
        if "--update" in sys.argv[1:]:
            options = [option for language in languages for option in ("-l", language.name)]
            subprocess.run(
                [
                    "sphinx-intl",
                    "update",
                    "--line-width",
                    "0",
                    "-p",
                    str(messages),
                    "-d",
                    str(DOCS / "locale"),
                    *options,
                ],
                check=True,
            )
        return min(1, sum(check(messages, language) for language in languages))


if __name__ == "__main__":
    sys.exit(main())
