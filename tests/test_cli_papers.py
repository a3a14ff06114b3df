"""`jaxgrad papers`: what it prints, how it ends, and what it leaves unloaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

import jaxgrad
from jaxgrad import papers
from jaxgrad.cli import main


def invoke(*arguments: str, **options):
    return CliRunner().invoke(main, ["papers", *arguments], **options)


def words(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def written(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    assert not result.stderr
    return result.stdout


def refused(result, *parts: str) -> None:
    """The command ended with status 2 and a message, not a traceback, that holds the parts."""
    assert result.exit_code == 2, result.output
    assert not result.stdout
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in words(result.stderr)


@pytest.fixture
def paper(monkeypatch):
    """A paper that has everything, and one that points at it."""
    first = papers.get("lloyd1982least")._replace(
        key="doe2000some",
        title="Some [bold]title[/bold]",
        authors=("Doe, Jane", "A Team", "van der Maaten, Laurens"),
        year=2000,
        venue="Journal",
        edition="2",
        arxiv="1312.6120",
        doi="10.1/x",
        category="losses",
        tags=("depth", "width"),
        implements=(
            papers.Implementation("jaxgrad.losses.huber_loss", "Equation 1", "We halve it."),
            papers.Implementation("jaxgrad.losses.hinge_loss", "Equation 2", None),
        ),
        relations=(papers.Relation("extends", "roe1990other", "Adds depth.", "tests/test_a.py::test_b"),),
        claims=(papers.Claim("gain", "table 1", 1.5, 1.25, 0.3, "tests/test_a.py::test_c[x]"),),
        errata=(papers.Erratum("It is odd.", "It is even.", None),),
        summary={"en": "It says so.", "zh": "它如是说。"},
    )
    back = papers.Relation("corrects", first.key, "A sign.", None)
    second = first._replace(key="roe1990other", implements=(), relations=(back,), claims=(), errata=())
    index = {paper.key: paper for paper in (first, second)}
    for module in ("_records", "_search", "_cite"):
        monkeypatch.setattr(f"jaxgrad.papers.{module}.records", lambda: index)
    return first


class TestSearch:
    def test_lines_for_other_programs(self):
        lines = written("search", "orthogonal").splitlines()
        found = papers.search("orthogonal")
        assert lines == [f"{paper.key}\t{papers.plain_text(paper.key)}" for paper in found]

    def test_columns_on_a_terminal(self, monkeypatch):
        options = {"force_terminal": True, "width": 60, "color_system": None}
        monkeypatch.setattr("jaxgrad.cli._papers.console", lambda: Console(file=sys.stdout, **options))
        text = written("search", "huber1964robust")
        assert "\t" not in text
        assert text.startswith("huber1964robust  P. J. Huber. Robust")
        assert max(map(len, text.splitlines())) <= 60
        assert papers.plain_text("huber1964robust") in words(text)

    def test_words_and_options(self):
        arguments = ["initialization", "--author", "Glorot", "--year", "2005-2012", "--category", "initialization"]
        assert written("search", *arguments).startswith("glorot2010understanding\t")
        assert written("search", "--year", "2010", "--author", "glorot").count("\n") == 1

    def test_tag(self, paper):
        assert written("search", "--tag", "depth").count("\n") == 2

    def test_chinese(self):
        assert "pascanu2013difficulty\t" in written("search", "梯度")

    def test_without_words(self):
        assert written("search").count("\n") == len(papers.search())

    @pytest.mark.parametrize(
        ("form", "write"),
        [
            ("bibtex", papers.bibtex),
            ("csl-json", papers.csl_json),
            ("text", lambda *keys: papers.plain_text(*keys) + "\n"),
        ],
    )
    def test_formats(self, form, write):
        keys = [paper.key for paper in papers.search("orthogonal")]
        assert written("search", "orthogonal", "--format", form) == write(*keys)

    def test_json_can_be_read(self):
        assert json.loads(written("search", "huber", "--format", "csl-json"))[0]["id"] == "huber1964robust"

    @pytest.mark.parametrize("form", ["list", "bibtex", "csl-json", "text"])
    def test_nothing_found(self, form):
        result = invoke("search", "zebra", "--format", form)
        assert result.exit_code == 1
        assert not result.stdout
        assert result.stderr.startswith("jaxgrad papers search: no paper fits.")
        assert result.stderr.count("\n") == 1

    @pytest.mark.parametrize("year", ["20", "2010-", "2010-12", "2010:2012", "-2010", "a", ""])
    def test_year(self, year):
        refused(
            invoke("search", f"--year={year}"), "expected --year YEAR or FIRST-LAST", repr(year), "--year 2010-2015"
        )

    def test_message_of_the_library(self):
        refused(invoke("search", "--year", "2015-2010"), "papers.search: expected", "(2015, 2010)", "To fix it: swap")
        refused(invoke("search", "--category", "losse"), "papers.search: expected", "take 'losses', or another of")
        refused(invoke("search", "--tag", "no-such-tag"), "papers.search: expected a tag of the index")

    def test_format(self):
        refused(invoke("search", "--format", "xml"), "'xml' is not one of")

    def test_help_lists_the_categories(self):
        listed = words(written("search", "--help")).partition("Categories: ")[2].partition(" Exit status")[0]
        assert listed.split(", ") == list(papers.CATEGORIES)


class TestShow:
    def test_everything(self, paper):
        text = written("show", paper.key)
        assert [line.rstrip() for line in text.splitlines()] == [
            "Some [bold]title[/bold]",
            "Jane Doe, A Team, Laurens van der Maaten",
            "Journal, edition 2, 2000  arXiv:1312.6120  doi:10.1/x",
            "Losses · depth · width",
            "",
            "It says so.",
            "",
            "Implemented here",
            "  jaxgrad.losses.huber_loss: Equation 1",
            "    We halve it.",
            "  jaxgrad.losses.hinge_loss: Equation 2",
            "",
            "Numbers checked",
            "  gain (table 1): 1.5 in the paper, 1.25 here, to within 0.3",
            "    tests/test_a.py::test_c[x]",
            "",
            "Errors in circulation",
            "  Said: It is odd.",
            "    Right: It is even.",
            "",
            "Related papers",
            "  extends roe1990other: Adds depth.",
            "    tests/test_a.py::test_b",
            "  is corrected by roe1990other: A sign.",
        ]

    def test_other_end_of_a_relation(self, paper):
        text = written("show", "roe1990other")
        assert "corrects doe2000some: A sign." in text
        assert "is extended by doe2000some: Adds depth." in text
        assert "Implemented here" not in text
        assert "Numbers checked" not in text

    def test_chinese(self, paper):
        text = written("show", paper.key, "--language", "zh")
        assert "它如是说。" in text
        assert "It says so." not in text

    @pytest.mark.parametrize("key", [paper.key for paper in papers.search()][::20])
    def test_papers_of_the_index(self, key):
        text = words(written("show", key))
        for part in (papers.get(key).title, papers.get(key).summary["en"]):
            assert words(part) in text

    def test_unknown(self):
        refused(invoke("show", "he2015delvin"), "papers.get: expected the key", "To fix it: take 'he2015delving'")

    def test_without_a_key(self):
        refused(invoke("show"), "Missing argument 'KEY'")


class TestBibtex:
    def test_keys(self):
        keys = ["lloyd1982least", "he2015delving"]
        assert written("bibtex", *keys) == papers.bibtex(*keys)

    def test_all(self):
        assert written("bibtex") == papers.bibtex()

    def test_unknown(self):
        refused(invoke("bibtex", "lloyd1982least", "he2015delvin"), "take 'he2015delving'")

    def test_utf_8_whatever_the_terminal_has(self):
        result = CliRunner(charset="ascii").invoke(main, ["papers", "bibtex", "abadi2016deep"])
        assert result.exit_code == 0, result.output
        assert "Abadi, Martín".encode() in result.stdout_bytes


class TestCite:
    def test_symbol(self):
        assert written("cite", "jaxgrad.losses.kl_divergence") == papers.bibtex("kullback1951information")

    def test_no_paper(self):
        result = invoke("cite", "jaxgrad.papers.search")
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == "jaxgrad papers cite: jaxgrad.papers.search follows no paper.\n"

    def test_no_public_name(self):
        refused(invoke("cite", "huber_loss"), "cite: expected a public name of jaxgrad; got 'huber_loss'", "To fix it")


class TestGroup:
    def test_help(self):
        text = written("--help")
        for command in ("search", "show", "bibtex", "cite"):
            assert f"\n  {command} " in text

    def test_named_in_the_help_of_jaxgrad(self):
        assert "\n  papers " in CliRunner().invoke(main, ["--help"]).stdout

    @pytest.mark.parametrize("command", [[], ["search"], ["show"], ["bibtex"], ["cite"]])
    def test_help_in_any_encoding(self, command):
        assert written(*command, "--help").isascii()

    @pytest.mark.parametrize(
        "arguments",
        [
            ["search", "orthogonal"],
            ["show", "he2015delving"],
            ["bibtex", "he2015delving"],
            ["cite", "jaxgrad.losses.huber_loss"],
        ],
        ids=lambda arguments: arguments[0],
    )
    def test_imports_no_jax(self, tmp_path, arguments):
        program = (
            f"import sys; from jaxgrad.cli import main; main(['papers', *{arguments}], standalone_mode=False);"
            "print([name for name in ('jax', 'numpy') if name in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(jaxgrad.__file__).parents[1])},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout
        assert done.stderr.split() == [b"[]"]
