"""Search in the papers index."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from jaxgrad._checks import message
from jaxgrad.papers._records import CATEGORIES, Paper, records

_WEIGHTS = {
    "key": 4.0,
    "title": 4.0,
    "authors": 3.0,
    "year": 3.0,
    "numbers": 3.0,
    "tags": 3.0,
    "category": 2.0,
    "symbols": 2.0,
    "summary": 1.0,
}
_LETTERS = str.maketrans({"ı": "i", "ł": "l", "ø": "o", "đ": "d", "æ": "ae", "œ": "oe", "ß": "ss"})  # not composed


def search(
    words: str = "",
    *,
    author: str | None = None,
    year: int | tuple[int, int] | None = None,
    tag: str | None = None,
    category: str | None = None,
) -> tuple[Paper, ...]:
    """Search the index.

    Args:
      words: Words that all have to occur, at the beginning of a word, in key, title, authors, year, arXiv identifier,
        DOI, tags, category, summary or the names that implement the paper. Neither case nor accents count.
      author: Words that have to occur so in the name of one author.
      year: The year of publication, or the first and the last one.
      tag: A tag.
      category: A category, one of ``CATEGORIES``.

    Returns:
      The papers that fit, those first that have the words in more telling places; without words, by key.

    Raises:
      ValueError: If the category or the tag is unknown, or the year is no year, or the years stand in the wrong order.

    Example:
      >>> from jaxgrad import papers
      >>> [paper.key for paper in papers.search("orthogonal", author="Saxe")]
      ['saxe2014exact']
    """
    if category is not None and category not in CATEGORIES:
        raise ValueError(message("papers.search", "a category", repr(category), _remedy(category, CATEGORIES)))
    tags = {name for paper in records().values() for name in paper.tags}
    if tag is not None and tag not in tags:
        raise ValueError(message("papers.search", "a tag of the index", repr(tag), _remedy(tag, sorted(tags))))
    first, last = _years(year)
    wanted, names = _terms(words), _terms(author or "")
    found: list[tuple[float, Paper]] = []
    for paper in records().values():
        if category is not None and paper.category != category:
            continue
        if tag is not None and tag not in paper.tags:
            continue
        if not first <= paper.year <= last:
            continue
        if not any(all(_occurs(term, _words(name)) for term in names) for name in paper.authors):
            continue
        scores = _scores(wanted, paper)
        if all(scores):
            found.append((sum(scores), paper))
    return tuple(paper for _, paper in sorted(found, key=lambda pair: -pair[0]))


def _remedy(name: str, names: Iterable[str]) -> str:
    """Point at the name that is closest, and list them all."""
    names = list(names)
    close = get_close_matches(str(name), names, n=1)
    return (f"take {close[0]!r}, or another " if close else "take one ") + f"of {', '.join(names)}"


def _years(year: Any) -> tuple[float, float]:
    """Return the first and the last year."""
    if year is None:
        return -math.inf, math.inf
    years: tuple[Any, ...] = year if isinstance(year, tuple) else (year, year)
    if len(years) != 2 or not all(type(end) is int for end in years):
        raise ValueError(message("papers.search", "year, or (first, last)", repr(year), "pass 2015, or (2010, 2015)"))
    if years[0] > years[1]:
        raise ValueError(message("papers.search", "year as (first, last)", repr(year), "swap the two"))
    return years[0], years[1]


def _scores(wanted: Iterable[str], paper: Paper) -> list[float]:
    """Return for each term the weight of the most telling place that holds it; 0 where none does."""
    places = {
        "key": paper.key,
        "title": paper.title,
        "authors": " ".join(paper.authors),
        "year": str(paper.year),
        "numbers": f"{paper.arxiv or ''} {paper.doi or ''}",
        "tags": " ".join(paper.tags),
        "category": CATEGORIES[paper.category],
        "symbols": " ".join(entry.symbol for entry in paper.implements),
        "summary": " ".join(paper.summary.values()),
    }
    texts = {name: _words(text) for name, text in places.items()}
    return [
        max((_WEIGHTS[name] for name, text in texts.items() if _occurs(term, text)), default=0.0) for term in wanted
    ]


def _occurs(term: str, text: str) -> bool:
    """Tell whether a term stands at the beginning of a word; anywhere for Chinese, which has no space between words."""
    return f" {term}" in f" {text}" or (not term.isascii() and term in text)


def _terms(words: str) -> list[str]:
    """Return what is searched for; ``"k-means"`` is one term, of two words that stand side by side."""
    terms = [_words(word) for word in re.split(r"[\s,;，、；。]+", words)]
    return [term for term in terms if term]


def _words(text: str) -> str:
    """Return the words of a text, apart, in lower case and without accents."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+", letters.lower().translate(_LETTERS)))
