"""Citations: BibTeX, CSL-JSON and text, and what a function of the library implements."""

from __future__ import annotations

import json
import re

import jax
import optax
import pytest

import jaxgrad
from jaxgrad import clipping, initializers, losses, optimizers, papers

KEYS = [paper.key for paper in papers.search()]
PAPER = papers.Paper(
    key="doe2000some",
    type="article",
    title="Some title",
    authors=("Doe, Jane",),
    year=2000,
    venue="Journal",
    edition=None,
    arxiv=None,
    doi=None,
    category="losses",
    tags=(),
    implements=(),
    relations=(),
    claims=(),
    errata=(),
    summary={"en": "", "zh": ""},
    provenance={},
)


@pytest.fixture
def written(monkeypatch):
    """Write one paper that differs in some fields from one without anything odd."""

    def write(form, **fields):
        paper = PAPER._replace(**fields)
        monkeypatch.setattr("jaxgrad.papers._cite.get", {paper.key: paper}.__getitem__)
        return form(paper.key)

    return write


def entries(text):
    """Read BibTeX as written here: a field a line, braces that match."""
    found = {}
    for block in re.split(r"(?m)^(?=@)", text)[1:]:
        head, *lines, end = block.strip().split("\n")
        assert end == "}"
        kind, key = re.fullmatch(r"@(\w+)\{(\w+),", head).groups()
        assert key not in found
        fields = {}
        for line in lines:
            name, value = re.fullmatch(r"  (\w+) = \{(.*)\},?", line).groups()
            assert line.endswith(",") == (line is not lines[-1])
            bare = re.sub(r"\\[{}]", "", value)
            assert bare.count("{") == bare.count("}")
            fields[name] = value
        found[key] = {"kind": kind, **fields}
    return found


class TestBibtex:
    def test_every_paper(self):
        found = entries(papers.bibtex())
        assert list(found) == KEYS
        for key, fields in found.items():
            paper = papers.get(key)
            assert fields["title"].startswith("{")
            assert fields["title"].endswith("}")
            assert fields["year"] == str(paper.year)
            assert fields["author"].count(" and ") == len(paper.authors) - 1
            assert fields.get("doi") == paper.doi
            assert (fields.get("eprint"), fields.get("archiveprefix")) == (
                paper.arxiv,
                "arXiv" if paper.arxiv else None,
            )

    def test_order_is_that_of_the_keys(self):
        assert list(entries(papers.bibtex("lloyd1982least", "he2015delving"))) == ["lloyd1982least", "he2015delving"]

    def test_written_once(self):
        assert papers.bibtex("lloyd1982least", "lloyd1982least") == papers.bibtex("lloyd1982least")

    @pytest.mark.parametrize(
        ("kind", "entry", "home"),
        [
            ("article", "article", "journal"),
            ("book", "book", "publisher"),
            ("chapter", "incollection", "booktitle"),
            ("conference", "inproceedings", "booktitle"),
            ("lecture", "misc", "howpublished"),
            ("preprint", "misc", "howpublished"),
            ("report", "techreport", "institution"),
            ("thesis", "misc", "howpublished"),
        ],
    )
    def test_types(self, written, kind, entry, home):
        (fields,) = entries(written(papers.bibtex, type=kind)).values()
        assert fields["kind"] == entry
        assert fields[home] == "Journal"

    def test_masked(self, written):
        text = written(papers.bibtex, title=r"50% of R&D_x costs $1 #1 ~k^2 {A} \b", venue="A & B", doi="10.1/a_b%c")
        (fields,) = entries(text).values()
        assert fields["title"] == (r"{50\% of R\&D\_x costs \$1 \#1 \textasciitilde{}k\^{}2 \{A\} \textbackslash{}b}")
        assert fields["journal"] == r"A \& B"
        assert fields["doi"] == "10.1/a_b%c"

    def test_authors(self, written):
        text = written(papers.bibtex, authors=("Doe, Jane", "R&D and Sons", "van der Maaten, Laurens", "Çelik, Ağa"))
        assert r"  author = {Doe, Jane and {R\&D and Sons} and van der Maaten, Laurens and Çelik, Ağa}," in text

    @pytest.mark.parametrize(
        ("edition", "ordinal"),
        [
            ("1", "1st"),
            ("2", "2nd"),
            ("3", "3rd"),
            ("4", "4th"),
            ("11", "11th"),
            ("22", "22nd"),
            ("Revised", "Revised"),
        ],
    )
    def test_edition(self, written, edition, ordinal):
        assert f"  edition = {{{ordinal}}}" in written(papers.bibtex, edition=edition)

    @pytest.mark.parametrize("form", [papers.bibtex, papers.csl_json, papers.plain_text])
    def test_unknown_key(self, form):
        with pytest.raises(ValueError, match=r"got 'he2015delvin'.\nTo fix it: take 'he2015delving'"):
            form("lloyd1982least", "he2015delvin")


class TestCSL:
    def test_every_paper(self):
        found = json.loads(papers.csl_json())
        assert [fields["id"] for fields in found] == KEYS
        for fields in found:
            assert all(isinstance(fields[name], str) for name in ("id", "type", "title"))
            (parts,) = fields["issued"]["date-parts"]
            assert [type(part) for part in parts] == [int]
            for name in fields["author"]:
                assert set(name) in ({"family", "given"}, {"literal"})
            (home,) = {"container-title", "publisher", "event-title"} & set(fields)
            assert isinstance(fields[home], str)

    @pytest.mark.parametrize(
        ("kind", "type_of_csl", "home"),
        [
            ("article", "article-journal", "container-title"),
            ("book", "book", "publisher"),
            ("chapter", "chapter", "container-title"),
            ("conference", "paper-conference", "container-title"),
            ("lecture", "speech", "event-title"),
            ("preprint", "article", "publisher"),
            ("report", "report", "publisher"),
            ("thesis", "thesis", "publisher"),
        ],
    )
    def test_types(self, written, kind, type_of_csl, home):
        (fields,) = json.loads(written(papers.csl_json, type=kind))
        assert fields["type"] == type_of_csl
        assert fields[home] == "Journal"

    def test_fields(self, written):
        fields = {"authors": ("Doe, Jane", "A Team"), "edition": "2", "doi": "10.1/x", "arxiv": "1312.6120"}
        (found,) = json.loads(written(papers.csl_json, **fields))
        assert found == {
            "id": "doe2000some",
            "type": "article-journal",
            "title": "Some title",
            "author": [{"family": "Doe", "given": "Jane"}, {"literal": "A Team"}],
            "issued": {"date-parts": [[2000]]},
            "container-title": "Journal",
            "edition": "2",
            "DOI": "10.1/x",
            "URL": "https://arxiv.org/abs/1312.6120",
        }

    def test_number_of_a_preprint(self, written):
        (found,) = json.loads(written(papers.csl_json, type="preprint", venue="arXiv", arxiv="1312.6120"))
        assert (found["publisher"], found["number"]) == ("arXiv", "arXiv:1312.6120")

    def test_not_escaped(self):
        assert "Martín" in papers.csl_json("abadi2016deep")


class TestText:
    def test_line_for_each_paper(self):
        lines = papers.plain_text().split("\n")
        assert len(lines) == len(KEYS)
        for key, line in zip(KEYS, lines, strict=True):
            paper = papers.get(key)
            assert paper.title in line
            assert f", {paper.year}." in line
            assert not re.search(r"\.\.|  |\?\.|!\.", line)

    @pytest.mark.parametrize(
        ("authors", "start"),
        [
            (["Doe, Jane"], "J. Doe. Some"),
            (["Doe, Jane", "Roe, Al"], "J. Doe and A. Roe. Some"),
            (["Doe, Jane", "Roe, Al", "Poe, Ed"], "J. Doe, A. Roe and E. Poe. Some"),
            (["Doe, Jane", "Roe, Al", "Poe, Ed", "Coe, Bo", "Moe, Jo"], "J. Doe et al. Some"),
            (["A Team"], "A Team. Some"),
            (["Yann, Jean-Luc"], "J.-L. Yann. Some"),
            (["Yann, J.-L."], "J.-L. Yann. Some"),
            (["Hinton, G.E."], "G. E. Hinton. Some"),
            (["Hinton, Geoffrey E."], "G. E. Hinton. Some"),
        ],
    )
    def test_authors(self, written, authors, start):
        assert written(papers.plain_text, authors=tuple(authors)).startswith(start)

    @pytest.mark.parametrize("title", ["What?", "Stop!", "Done."])
    def test_title_ends_once(self, written, title):
        assert written(papers.plain_text, title=title) == f"J. Doe. {title} Journal, 2000."

    def test_numbers_and_edition(self, written):
        line = written(papers.plain_text, edition="2", arxiv="1312.6120", doi="10.1/x")
        assert line == "J. Doe. Some title. Journal, 2nd edition, 2000. arXiv:1312.6120. doi:10.1/x."


def keys(symbol):
    return [paper.key for paper in papers.implementing(symbol)]


class TestImplementing:
    @pytest.mark.parametrize(
        "symbol",
        [
            "jaxgrad.losses.huber_loss",
            losses.huber_loss,
            jax.jit(losses.huber_loss),
        ],
        ids=["name", "function", "jit"],
    )
    def test_function(self, symbol):
        assert keys(symbol) == ["girshick2015fast", "huber1964robust", "mnih2015human"]

    @pytest.mark.parametrize(
        "name",
        ["glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "lecun_normal", "lecun_uniform", "orthogonal",
         "delta_orthogonal", "identity"],
    )  # fmt: skip
    def test_initializer(self, name):
        build = getattr(initializers, name)
        expected = keys(f"jaxgrad.initializers.{name}")
        assert expected
        assert keys(build) == keys(build()) == expected

    def test_initializers_are_told_apart(self):
        assert keys(initializers.he_normal()) != keys(initializers.lecun_normal()) != keys(initializers.glorot_normal())

    @pytest.mark.parametrize(
        ("build", "name"),
        [
            (clipping.clip_by_global_norm, "clipping.clip_by_global_norm"),
            (clipping.adaptive_clip, "clipping.adaptive_clip"),
            (optimizers.adam, "optimizers.adam"),
            (optimizers.scale_by_bfgs, "optimizers.scale_by_bfgs"),
            (jaxgrad.monitor, "monitor"),
        ],
    )
    def test_transformations(self, build, name):
        assert keys(build) == keys(f"jaxgrad.{name}")
        assert keys(build)

    @pytest.mark.parametrize("kind", [clipping.ClipState, optimizers.BFGSState, jaxgrad.diagnosis.Report])
    def test_types(self, kind):
        assert keys(kind) == []

    def test_type_that_implements(self, monkeypatch):
        entry = papers.Implementation("jaxgrad.clipping.ClipState", "Equation 1", None)
        index = {"doe2000some": PAPER._replace(implements=(entry,))}
        monkeypatch.setattr("jaxgrad.papers._cite.records", lambda: index)
        assert keys(clipping.ClipState) == keys("jaxgrad.clipping.ClipState") == ["doe2000some"]

    @pytest.mark.parametrize("recorded", ["jaxgrad.explain", "jaxgrad.diagnosis.explain"])
    def test_alias_at_the_top(self, monkeypatch, recorded):
        index = {"doe2000some": PAPER._replace(implements=(papers.Implementation(recorded, "All", None),))}
        monkeypatch.setattr("jaxgrad.papers._cite.records", lambda: index)
        for symbol in (jaxgrad.explain, "jaxgrad.explain", "jaxgrad.diagnosis.explain"):
            assert keys(symbol) == ["doe2000some"]
        assert keys(jaxgrad.monitor) == []

    def test_every_function_and_type_is_known_by_itself(self):
        families = [getattr(jaxgrad, name) for name in jaxgrad.__all__ if hasattr(getattr(jaxgrad, name), "__path__")]
        assert len(families) > 10
        for family in families:
            for name in family.__all__:
                value = getattr(family, name)
                if callable(value):
                    assert keys(value) == keys(f"{family.__name__}.{name}"), f"{family.__name__}.{name}"

    def test_by_key(self):
        found = keys("jaxgrad.optimizers.scale_by_bfgs")
        assert len(found) > 3
        assert found == sorted(found)

    @pytest.mark.parametrize(
        "symbol",
        [
            "huber_loss",
            "losses.huber_loss",
            "jaxgrad.huber_loss",
            "jaxgradlosses.huber_loss",
            "jaxgrad.losses",
            "jaxgrad.losses.",
            "jaxgrad.losses.zebra",
            "jaxgrad.losses._binary.huber_loss",
            "jaxgrad.explain.zebra",
            "jaxgrad.__version__.zebra",
            "jaxgrad.cli.main",
            "",
            jaxgrad.losses,
            jax.nn.relu,
            optax.adam,
            optimizers.adam(0.1),
            print,
            3.0,
            None,
            lambda: None,
            jaxgrad.activations.TABLE,
        ],
        ids=lambda symbol: symbol if isinstance(symbol, str) else getattr(symbol, "__name__", type(symbol).__name__),
    )
    def test_refused(self, symbol):
        for function, caller in ((papers.implementing, "papers.implementing"), (papers.cite, "cite")):
            with pytest.raises(ValueError, match=f"^{caller}: expected a public name of jaxgrad; got ") as caught:
                function(symbol)
            assert "To fix it: pass a public function such as jaxgrad.losses.huber_loss" in str(caught.value)
            assert len(str(caught.value)) < 300


class TestCite:
    def test_is_the_bibtex(self):
        assert jaxgrad.cite(losses.kl_divergence) == papers.bibtex("kullback1951information")
        assert list(entries(jaxgrad.cite(optimizers.adam))) == keys(optimizers.adam)

    def test_empty_where_no_paper_is_followed(self):
        assert jaxgrad.cite(papers.search) == ""
        assert jaxgrad.cite("jaxgrad.papers.search") == ""
