"""The script that verifies identifiers: what it reads out of the answers, and which titles it takes for one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from jaxgrad import papers

FEED = """<?xml version="1.0" encoding="UTF-8"?>
<feed xmlns="http://www.w3.org/2005/Atom" xmlns:arxiv="http://arxiv.org/schemas/atom">
  <title type="html">ArXiv Query: id_list=1312.6120,math-ph/0609050,0000.00000</title>
  <id>http://arxiv.org/api/cHxbiOdZaP56ODnBPIenZhzg5f8</id>
  <entry>
    <id>http://arxiv.org/abs/1312.6120v3</id>
    <title>Exact solutions to the nonlinear dynamics of learning in deep linear
  neural networks</title>
    <author><name>Andrew M. Saxe</name></author>
  </entry>
  <entry>
    <id>http://arxiv.org/abs/math-ph/0609050v2</id>
    <title>How to generate random matrices from the classical compact groups</title>
    <arxiv:comment>Published version</arxiv:comment>
  </entry>
  <entry>
    <id>http://arxiv.org/api/errors#incorrect_id_format_for_0000.00000</id>
    <title>Error</title>
  </entry>
</feed>
"""


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "papers" / "verify_ids.py"
    spec = importlib.util.spec_from_file_location("verify_ids", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_feed_of_arxiv(script):
    assert script.arxiv_titles(FEED) == {
        "1312.6120": "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
        "math-ph/0609050": "How to generate random matrices from the classical compact groups",
    }


@pytest.mark.parametrize(
    ("work", "titles"),
    [
        ({"title": "Least squares\n quantization in PCM"}, ["Least squares quantization in PCM"]),
        ({"title": ["Dropout"], "subtitle": ["A simple way"]}, ["Dropout", "Dropout: A simple way"]),
        ({"title": "Dropout", "subtitle": []}, ["Dropout"]),
        ({"title": [], "DOI": "10.1/x"}, []),
        ({"DOI": "10.1/x"}, []),
    ],
)
def test_answer_of_doi(script, work, titles):
    assert script.doi_titles(json.dumps(work)) == titles


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Deep Residual Learning", "Deep residual  learning."),
        ("K-means++: The Advantages", "k-means++ the advantages"),
        ("Schrödinger's Équation", "SCHRODINGERS EQUATION"),
        ("convergence rate O(1/k^2)", "convergence rate $O(1/k^2)$"),
        ("rate O(1/k²)", r"rate \(\mathcal O(1/k^2)\)"),
        ("Nets &amp; Trees", "Nets <scp>&</scp> Trees"),
        ("Straße", "strasse"),
    ],
)
def test_same_title(script, one, other):
    assert script.is_same(one, other)
    assert script.is_same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ShuffleNet", "ShuffleNet V2"),
        ("Show and Tell", "Show, Attend and Tell"),
        ("p < q and q > r", "p  r"),
    ],
)
def test_other_title(script, one, other):
    assert not script.is_same(one, other)


def test_differences(script):
    saxe, lloyd, glorot = map(papers.get, ("saxe2014exact", "lloyd1982least", "glorot2010understanding"))
    index = [saxe, lloyd._replace(arxiv="0000.00000"), glorot._replace(arxiv=None)]
    titles = script.arxiv_titles(FEED)
    assert [*script.differences(index, "arxiv", {name: [title] for name, title in titles.items()})] == [
        f"lloyd1982least: arxiv 0000.00000\n  there: no title\n  here:  {lloyd.title}"
    ]
    other = saxe._replace(title="Exact solutions")
    (line,) = script.differences([other], "arxiv", {"1312.6120": [titles["1312.6120"]]})
    assert line.startswith("saxe2014exact: arxiv 1312.6120\n  there: Exact solutions to the")


def test_one_question_for_many_identifiers(script, monkeypatch):
    asked = []
    monkeypatch.setattr(script, "fetch", lambda address, accept: asked.append(address) or FEED)
    monkeypatch.setattr(script, "PAUSE", 0.0)
    found = script.ask_arxiv([f"1312.{number:04}" for number in range(script.BATCH + 1)])
    assert len(asked) == 2
    assert all(address.count("1312.") == size for address, size in zip(asked, (script.BATCH, 1), strict=True))
    assert set(found) == {"1312.6120", "math-ph/0609050"}
