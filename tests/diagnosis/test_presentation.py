"""A report as text, as a page, as JSON and as figures, on made-up reports of every situation."""

from __future__ import annotations

import html
import json
import math
import sys
from html.parser import HTMLParser

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxgrad.diagnosis import Report
from tests.diagnosis import reports

EVERY = pytest.mark.parametrize("name", reports.ALL)
VOID = {"meta", "br", "hr", "img", "input", "link", "col", "wbr"}


def of(name: str) -> Report:
    made = reports.ALL[name]
    return made() if callable(made) else made


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps the text that is seen and every attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open[-1:] == [tag]
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open and "script" not in self.open:
            self.seen.append(data)


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


def squeezed(text: str) -> str:
    return "".join(text.split())


@EVERY
def test_json_round_trip_is_exact_and_strict(name, tmp_path):
    report = of(name)
    text = report.to_json(tmp_path / "report.json")

    def refuse(constant):
        raise AssertionError(constant)

    json.loads(text, parse_constant=refuse)
    assert Report.from_json(text) == report
    assert Report.from_json(tmp_path / "report.json") == report


@hypothesis.given(st.floats(), st.text(max_size=20))
def test_any_number_and_name_survive_json(value, name):
    report = of("healthy")
    layer = report.layers[0]._replace(activation_mean=value, name=name)
    changed = Report(**{**vars(report), "layers": (layer,), "loss": value})
    again = Report.from_json(changed.to_json())
    assert again == changed
    assert math.isnan(again.loss) if math.isnan(value) else again.loss == value


@pytest.mark.parametrize("text", ["{}", "[1]", '{"format": "jaxgrad.report", "schema": 99}', "{not json"])
def test_foreign_and_newer_documents_are_refused(text):
    with pytest.raises(ValueError, match=r"Report\.from_json: expected a report"):
        Report.from_json(text)


@EVERY
def test_text_leads_with_the_verdict_and_tells_every_finding(name):
    report = of(name)
    text = str(report)
    assert report.verdict.upper() in text.splitlines()[0].upper()
    assert squeezed(report.summary)[:40] in squeezed(text)
    for finding in report.findings:
        assert finding.cause in squeezed(text)
        assert squeezed(finding.evidence)[:30] in squeezed(text)


@EVERY
def test_text_fits_eighty_columns(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(len(line) for line in str(of(name)).splitlines()) <= 80


def test_long_recurrences_are_folded():
    text = str(reports.recurrent(500))
    assert "more" in text
    assert len(text.splitlines()) < 120


@EVERY
def test_page_is_whole_and_loads_nothing(name, tmp_path):
    report = of(name)
    report.to_html(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = parsed(text)
    assert "prefers-color-scheme" in text
    links = [value or "" for key, value in page.attributes if key in {"src", "href"}]
    assert all(link.startswith(("#", "data:")) for link in links)
    for word in ("@import", "url(", "<script src"):
        assert word not in text
    seen = squeezed("".join(page.seen))
    assert squeezed(report.summary) in seen
    for finding in report.findings:
        assert squeezed(finding.evidence) in seen
    for remedy in report.remedies:
        assert squeezed(remedy.change) in seen


@EVERY
def test_notebook_fragment_is_whole(name):
    report = of(name)
    page = parsed(report._repr_html_())
    assert squeezed(report.summary) in squeezed("".join(page.seen))


def test_names_of_the_user_are_escaped():
    report = reports.nasty()
    text = report._repr_html_()
    for name in reports.NASTY:
        if html.escape(name) != name:
            assert name not in text


@EVERY
def test_figures_have_named_axes(name):
    pytest.importorskip("matplotlib")
    figures = of(name).plot()
    drawn = [figure for figure in figures if figure is not None]
    assert figures.signal is not None
    for figure in drawn:
        figure.canvas.draw()
        labelled = [axes for axes in figure.axes if axes.get_xlabel() or axes.get_ylabel() or axes.get_title()]
        assert labelled or not figure.axes


def test_figures_without_matplotlib_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"jaxgrad\[plots\]"):
        of("healthy").plot()
