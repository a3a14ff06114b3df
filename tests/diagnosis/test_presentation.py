"""A report as text, as a page, as JSON and as figures, on made-up reports of every situation."""

from __future__ import annotations

import html
import itertools
import json
import math
import sys
from html.parser import HTMLParser

import hypothesis
import hypothesis.strategies as st
import pytest
from rich.cells import cell_len

from jaxgrad.diagnosis._format import advise, has_gains, words_and_code
from jaxgrad.diagnosis._report import Contribution, Remedy, Report
from jaxgrad.diagnosis._series import chains, cones, training
from jaxgrad.diagnosis._text import to_text
from jaxgrad.diagnosis._waterfall import bars, waterfall
from tests.diagnosis import report_parts, reports

EVERY = pytest.mark.parametrize("name", reports.ALL)
VOID = {"meta", "br", "hr", "img", "input", "link", "col", "wbr"}


BLAMED = pytest.mark.parametrize("name", [name for name in reports.ALL if name not in {"nonfinite", "empty", "quick"}])


def of(name: str) -> Report:
    return reports.ALL[name]()


def section(text: str, heading: str) -> str:
    """The lines under a heading, up to the next empty one."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(heading)), None)
    if start is None:
        return ""
    stop = next((i for i in range(start, len(lines)) if not lines[i]), len(lines))
    return "\n".join(lines[start + 1 : stop])


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
@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_text_fits_the_window(name, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    assert max(map(cell_len, str(of(name)).splitlines())) <= width


@EVERY
def test_the_first_screen_says_what_is_wrong_and_what_to_do(name):
    report = of(name)
    screen = squeezed("\n".join(to_text(report, 80).splitlines()[:24]))
    page = squeezed("".join(parsed(report._repr_html_()).seen))
    if report.findings:
        assert squeezed(report.findings[0].evidence)[:30] in screen
    best = advise(report.remedies).best
    if best is not None:
        code = squeezed("".join(words_and_code(best.change).lines))
        assert code in screen
        if report.blocks:
            assert page.index(code) < page.index("Whatmovesthesignal")


def test_code_between_backquotes_is_shown_as_code():
    report = of("vanishing")
    line = "nn.relu(nn.Dense(features, kernel_init=nn.initializers.he_normal())(x))"
    assert f'<code class="line">{html.escape(line)}</code>' in report._repr_html_()
    assert "`" not in report._repr_html_()
    assert line in [text.strip() for text in to_text(report, 80).splitlines()]


@pytest.mark.parametrize(
    ("change", "words", "lines"),
    [
        ("use relu: `nn.relu(x)`", [("use relu:", False)], ["nn.relu(x)"]),
        ("a: `f(x)`, with b: `g(x)`", [("a", False), (", with b:", False)], ["f(x)", "g(x)"]),
        ("with `glorot_normal`", [("with ", False), ("glorot_normal", True)], []),
        ("in `x` and `y` too", [("in ", False), ("x", True), (" and ", False), ("y", True), (" too", False)], []),
        ("with `" + 25 * "x" + "`", [("with", False)], [25 * "x"]),
        ("`nn.relu(x)`", [("nn.relu(x)", True)], []),
        ("a single ` means nothing", [("a single ` means nothing", False)], []),
        ("", [], []),
    ],
)
def test_code_is_taken_out_of_words(change, words, lines):
    assert words_and_code(change) == (tuple(words), tuple(lines))


def test_remedies_are_sorted_by_use():
    text = to_text(of("vanishing"), 80)
    assert "swap" not in section(text, "Tried")
    assert "LayerNorm" in section(text, "Tried")
    assert "skip connection" in section(text, "Other remedies")
    assert "glorot_normal" in section(text, "Helped, but not enough")
    assert "What to do" not in to_text(of("hopeless"), 80)
    assert len(section(to_text(of("hopeless"), 60), "Tried").splitlines()) == len(of("hopeless").remedies)


@pytest.mark.parametrize("name", ["target-scale", "learning-rate"])
def test_gains_that_say_nothing_are_not_shown(name):
    report = of(name)
    assert not any(map(has_gains, report.remedies))
    assert "→" not in "".join(line for line in section(str(report), "What to do").splitlines() if "loss" not in line)
    assert 'class="gains"' not in report._repr_html_()


def test_the_share_of_a_cause_is_the_only_percentage_beside_it():
    line = section(to_text(of("vanishing"), 80), "Cause").splitlines()[0]
    assert "92% of it" in line
    assert line.count("%") == 1


@BLAMED
@pytest.mark.parametrize("most", [1, 6, 24, 10_000])
def test_folding_keeps_the_sum(name, most):
    report = of(name)
    fall = waterfall(report, most)
    total = max((sum(b.log10_gain for b in chain if b.log10_gain == b.log10_gain) for chain in chains(report)), key=abs)
    assert fall.total == pytest.approx(total)
    assert sum(fall.totals) == pytest.approx(total)
    assert sum(sum(stretch.gains) for stretch in fall.stretches) == pytest.approx(total)
    covered = [i for stretch in reversed(fall.stretches) for i in range(stretch.first, stretch.last + 1)]
    assert covered in [[block.index for block in chain] for chain in chains(report)]


GAIN = st.floats(-30, 30)
SOURCES = ["weights", "activation", "normalization", "residual", "attention", "other"]


@hypothesis.given(st.lists(st.fixed_dictionaries(dict.fromkeys(SOURCES, GAIN)), min_size=1, max_size=40))
def test_a_waterfall_ends_at_the_total_and_has_few_bars(gains):
    names = [f"layer_{i}" for i in range(len(gains))]
    report = report_parts.report(
        blocks=report_parts.stack([sum(block.values()) for block in gains], names),
        blame=tuple(Contribution(i, source, gain) for i, block in enumerate(gains) for source, gain in block.items()),
    )
    fall = waterfall(report)
    drawn = [bar for row in bars(fall) for bar in row]
    assert len(drawn) <= 24
    assert drawn[0].start == 0
    assert drawn[-1].stop == pytest.approx(sum(sum(block.values()) for block in gains), abs=1e-9)
    assert all(later.start == earlier.stop for earlier, later in itertools.pairwise(drawn))


def test_an_odd_block_keeps_its_own_row():
    fall = waterfall(of("vanishing"))
    assert any(stretch.first == stretch.last == 11 for stretch in fall.stretches)
    assert fall.largest[0][:2] == (11, "activation")
    assert waterfall(of("hopeless")).largest == ((2, "weights", pytest.approx(-9.09)),)


def test_a_dead_end_ends_the_waterfall():
    report = of("dead")
    fall = waterfall(report)
    assert fall.total == -math.inf
    assert (fall.stretches[fall.end].first, fall.stretches[fall.end].last) == (2, 2)
    assert bars(fall)[fall.end + 1 :] == [[]]
    assert "signal ends here" in to_text(report, 80)
    assert "signal ends here" in report._repr_html_()


@pytest.mark.parametrize(
    ("before", "after", "logarithmic"),
    [
        ((2.0, 1.0, 0.001), (2.0,), True),
        ((2.0, 1.0, 0.5), (2.0, 0.0), False),
        ((2.0, -1e4), (2.0, 3.0), False),
        ((math.nan,), (math.inf, 1.0), False),
        ((1.0, 1.0), (1.0, 1.0), False),
        ((0.0,), (), False),
    ],
)
def test_losses_have_an_axis_that_holds_them(before, after, logarithmic):
    runs = training(Remedy("x", "x", 0.0, 0.0, True, True, before, after))
    heights = runs.before + runs.after
    assert all(runs.axis.low <= height <= runs.axis.high for height in heights)
    assert runs.axis.ticks
    assert (max(heights, default=0.0) == pytest.approx(math.log10(2.0))) is logarithmic
    finite = [loss for losses in (before, after) for loss in itertools.takewhile(math.isfinite, losses)]
    assert len(heights) == len(finite)


def test_a_run_that_diverges_says_where():
    report = of("vanishing")
    assert "inf at step 4" in to_text(report, 80)
    assert "inf at step 4" in report._repr_html_()
    assert training(Remedy("x", "x", 0.0, 0.0, True)) is None


def test_a_run_that_diverges_at_once_is_shown():
    runs = (2.0, 1e4, 1e9, *(math.nan,) * 997), tuple(2.0 - 1e-3 * i for i in range(1000))
    report = report_parts.report(remedies=(Remedy("x", "do x", 0.0, 0.0, True, True, *runs),))
    assert "nan at step 3" in to_text(report, 60)
    assert "nan at step 3" in report._repr_html_()


def test_the_cone_of_a_critical_network_opens_towards_the_input():
    (cone,) = cones(of("vanishing"))
    widths = [high - low for low, high in zip(cone.lows, cone.highs, strict=True)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == 0
    assert widths[0] == pytest.approx(0.11 * math.sqrt(30))
    assert cones(of("hopeless")) == cones(of("nonfinite")) == []


@EVERY
def test_tables_leave_columns_out_rather_than_cut_numbers(name):
    for width in (40, 60, 80):
        lines = to_text(of(name), width).splitlines()
        starts = [i for i, line in enumerate(lines) if line.startswith("───")]
        for line in (line for start in starts for line in itertools.takewhile(bool, lines[start + 1 :])):
            assert "…" not in line[30:] or "more" in line, line


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
        change = words_and_code(remedy.change)
        assert squeezed(change.sentence()) in seen
        assert all(squeezed(line) in seen for line in change.lines)


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
    assert (figures.blame is None) == (waterfall(of(name)) is None)
    assert (figures.training is None) == (not any(map(training, of(name).remedies)))
    for figure in drawn:
        labelled = [axes for axes in figure.axes if axes.get_xlabel() or axes.get_ylabel() or axes.get_title()]
        assert labelled or not figure.axes


@pytest.mark.parametrize("name", ["nasty", "dead", "empty"])
def test_figures_can_be_drawn_with_any_name(name):
    pytest.importorskip("matplotlib")
    for figure in of(name).plot():
        if figure is not None:
            figure.draw_without_rendering()  # a character that no font has would warn


def test_figures_without_matplotlib_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"jaxgrad\[plots\]"):
        of("healthy").plot()
