"""Check every record of the papers index, or bring it into its only form.

Run: python papers/check.py           (says what is wrong)
     python papers/check.py --write   (rewrites records in their form, and the exports)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import yaml

from jaxgrad import papers

HERE = Path(__file__).parent
SCHEMA = jsonschema.Draft202012Validator(json.loads((HERE / "schema.json").read_text("utf-8")))
EXPORTS = {
    "papers.bib": papers.bibtex,
    "papers.json": papers.csl_json,
    "papers.txt": lambda: papers.plain_text() + "\n",
}


def faults(path: Path, write: bool = False) -> Iterator[str]:
    """Yield what is wrong with one record, after bringing it into its form where asked to."""
    try:
        text = path.read_bytes().decode()
        record = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        yield " ".join(f"not YAML in UTF-8: {error}".split())
        return
    misfits = [f"{error.json_path}: {error.message[:200]}" for error in SCHEMA.iter_errors(record)]
    yield from misfits
    if misfits:
        return
    if path.stem != record["key"]:
        yield f"key {record['key']} in a file of another name"
    if path.parent.name != record["category"]:
        yield f"category {record['category']} in another folder"
    form = papers.dump(papers.load(path))
    if write:
        path.write_bytes(form.encode())
    elif form != text:
        yield "not in its form: run `python papers/check.py --write`"


def main() -> None:
    """Check or write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="rewrite the records in their form, and the exports")
    write = parser.parse_args().write
    failed = 0
    for path in sorted(HERE.glob("*/*.yaml")):
        for fault in faults(path, write):
            failed += 1
            print(f"{path.relative_to(HERE)}: {fault}")
    if failed:
        raise SystemExit(f"{failed} faults in the records; the exports come after them")
    for name, export in EXPORTS.items():
        path, text = HERE / "exports" / name, export().encode()
        if write:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(text)
        elif not path.is_file() or path.read_bytes() != text:
            failed += 1
            print(f"exports/{name}: stale; run `python papers/check.py --write`")
    if failed:
        raise SystemExit(f"{failed} faults")


if __name__ == "__main__":
    main()
