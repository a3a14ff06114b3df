"""Every record of the papers index: its form, and all that it points at in the library, the tests and the index.

A test lists all faults that it finds, in place of one test a record.
"""

from __future__ import annotations

import ast
import datetime as dt
import importlib
import json
import re
import tomllib
import unicodedata
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
import yaml

from jaxgrad import papers

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "papers"
FILES = sorted(FOLDER.glob("*/*.yaml"))
SCHEMA = json.loads((FOLDER / "schema.json").read_text("utf-8"))

# Published at the venue in the year before its first version on arXiv.
POSTED_LATER = {
    "reddi2018convergence": "given at ICLR in 2018, and put on arXiv in April 2019",
}


@pytest.fixture(scope="module")
def index():
    return papers.search()


def none(faults):
    """Hold that there are no faults, and list them where there are."""
    found = list(faults)
    assert not found, f"{len(found)} faults\n" + "\n".join(map(str, found))


def twice(names):
    return [name for name, count in Counter(names).items() if count > 1]


class TestForm:
    def test_found(self, index):
        assert {paper.key for paper in index} == {path.stem for path in FILES}

    def test_schema_is_one(self):
        jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def test_fits_schema(self):
        validator = jsonschema.Draft202012Validator(SCHEMA)
        none(
            f"{path.name}: {error.json_path}: {error.message[:200]}"
            for path in FILES
            for error in validator.iter_errors(yaml.safe_load(path.read_text("utf-8")))
        )

    def test_file_named_after_key_in_folder_of_category(self):
        read = [(path, papers.load(path)) for path in FILES]
        none(path for path, paper in read if (path.stem, path.parent.name) != (paper.key, paper.category))

    def test_written_back_byte_for_byte(self):
        none(path.name for path in FILES if papers.dump(papers.load(path)).encode() != path.read_bytes())

    @pytest.mark.parametrize(
        ("name", "export"),
        [
            ("papers.bib", papers.bibtex),
            ("papers.json", papers.csl_json),
            ("papers.txt", lambda: papers.plain_text() + "\n"),
        ],
    )
    def test_export_is_fresh(self, name, export):
        fresh = (FOLDER / "exports" / name).read_bytes() == export().encode()
        assert fresh, "run `python papers/check.py --write`"

    def test_categories_agree(self):
        assert set(SCHEMA["properties"]["category"]["enum"]) == set(papers.CATEGORIES)
        assert {path.parent.name for path in FILES} == set(papers.CATEGORIES)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
        shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
        names = ["schema.json", *papers.CATEGORIES]
        assert shipped == {f"papers/{name}": f"jaxgrad/papers/records/{name}" for name in names}


class TestFields:
    def test_unique(self, index):
        none(twice(path.stem for path in FILES))
        none(twice(paper.arxiv for paper in index if paper.arxiv))
        none(twice(paper.doi.lower() for paper in index if paper.doi))
        none(twice(paper.title.casefold() for paper in index))

    def test_key_is_surname_year_and_word_of_title(self, index):
        none(
            f"{paper.key}: {paper.authors[0]}, {paper.year}, {paper.title}"
            for paper in index
            if not is_key(paper.key, letters(paper.authors[0].partition(",")[0]), paper.year, words(paper.title))
        )

    def test_year(self, index):
        this = dt.datetime.now(dt.UTC).year
        none(f"{paper.key}: {paper.year}" for paper in index if not 1800 <= paper.year <= this)

    def test_not_published_before_its_preprint(self, index):
        early = {paper.key for paper in index if paper.arxiv and paper.year < year_on_arxiv(paper.arxiv)}
        assert early == set(POSTED_LATER)

    def test_every_author_named(self, index):
        none(
            f"{paper.key}: {name}"
            for paper in index
            for name in paper.authors
            if re.search(r"\bet al|\betc|^others$|\band others|;| and ", name, re.IGNORECASE)
        )

    def test_texts(self):
        """A text is one line without doubled spaces; a pattern in Python lets a line break pass at the very end."""
        none(
            f"{path.name}: {text[:60]!r}"
            for path in FILES
            for text in texts(yaml.safe_load(path.read_text("utf-8")))
            if text != " ".join(text.split())
        )

    def test_nothing_left_to_do(self):
        none(path.name for path in FILES if re.search(r"\bTODO\b|\bFIXME\b", path.read_text("utf-8")))

    def test_summaries(self, index):
        none(f"{paper.key}: {paper.summary['en']}" for paper in index if len(paper.summary["en"]) < 80)
        none(
            f"{paper.key}: {paper.summary['zh']}"
            for paper in index
            if len(re.findall("[\u4e00-\u9fff]", paper.summary["zh"])) < 20
        )


class TestPointers:
    def test_relations(self, index):
        keys = {paper.key for paper in index}
        none(
            f"{paper.key} {relation.kind} {relation.key}"
            for paper in index
            for relation in paper.relations
            if relation.key not in keys or relation.key == paper.key
        )
        none(twice((paper.key, relation.kind, relation.key) for paper in index for relation in paper.relations))

    def test_what_implements_it_exists_and_cites_it(self, index):
        none(
            f"{paper.key}: {entry.symbol} {fault}"
            for paper in index
            for entry in paper.implements
            for fault in symbol_faults(entry.symbol, paper.key)
        )
        none(twice((paper.key, entry.symbol) for paper in index for entry in paper.implements))

    def test_what_is_cited_is_in_the_index(self, index):
        keys = {paper.key for paper in index}
        cited = citations()
        assert len(cited) > 100, "the pattern finds them no more"
        none(f"{path}: {key}" for path, key in cited if key not in keys)

    def test_tests_exist(self, index):
        known = {
            path: written_tests(ROOT / path) for path in {test.partition("::")[0] for _, test in named_tests(index)}
        }
        none(
            f"{key}: {test}"
            for key, test in named_tests(index)
            if test.partition("[")[0].partition("::")[2] not in known[test.partition("::")[0]]
        )

    def test_claims_hold(self, index):
        none(
            f"{paper.key}: {claim.quantity}: {claim.value} in the paper, {claim.ours} here"
            for paper in index
            for claim in paper.claims
            if not abs(claim.value - claim.ours) <= claim.tolerance
        )


def letters(text):
    """Return a text in the small Latin letters and digits of a key."""
    plain = unicodedata.normalize("NFKD", text.lower().replace("ı", "i"))
    return re.sub("[^a-z0-9]", "", plain)


def words(title):
    """Return the words of a title, those with a hyphen whole and by their parts."""
    return {letters(word) for word in [*title.split(), *re.split(r"[\W_]+", title)]}


def is_key(key, surname, year, names):
    return key.startswith(f"{surname}{year}") and key.removeprefix(f"{surname}{year}") in names


def year_on_arxiv(identifier):
    year = int(identifier.rpartition("/")[2][:2])
    return year + (1900 if year > 90 else 2000)


def texts(value):
    """Yield every text in a record."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts(part)


def symbol_faults(symbol, key):
    home, _, name = symbol.rpartition(".")
    try:
        module = importlib.import_module(home)
    except ImportError:
        yield "is in no module"
        return
    if name not in module.__all__:
        yield "is not public"
    elif key not in (getattr(module, name).__doc__ or ""):
        yield "does not cite it"


def citations():
    """Return what docstrings and pages cite, with where."""
    pages = [path for path in (ROOT / "docs").rglob("*.md") if not {"_build", "generated"} & set(path.parts)]
    return [
        (path.relative_to(ROOT), key.strip())
        for path in sorted([*(ROOT / "jaxgrad").rglob("*.py"), *pages])
        for keys in re.findall(r"(?::cite:?\w*:|\{cite:?\w*\})`([^`]+)`", path.read_text("utf-8"))
        for key in keys.split(",")
    ]


def named_tests(index):
    return [
        (paper.key, entry.test)
        for paper in index
        for entry in (*paper.claims, *paper.errata, *paper.relations)
        if entry.test is not None
    ]


def written_tests(path):
    """Return the tests in a file, with the classes that hold them."""
    if not path.is_file():
        return set()

    def below(node, prefix):
        for child in node.body:
            if isinstance(child, ast.ClassDef):
                yield from below(child, f"{prefix}{child.name}::")
            elif isinstance(child, ast.FunctionDef):
                yield f"{prefix}{child.name}"

    return set(below(ast.parse(path.read_text("utf-8")), ""))


def test_readme_counts_them_right():
    readme = Path(__file__).parents[2].joinpath("README.md").read_text("utf-8")
    found = papers.search()
    claims = sum(len(paper.claims) for paper in found)
    assert f"An index of {len(found)} papers ships" in readme
    assert f"{claims} of their numbers beside" in readme
