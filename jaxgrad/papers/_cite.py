"""Citations of papers, and of what functions implement."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable
from typing import Any

from jaxgrad._checks import message
from jaxgrad.papers._records import Paper, get, records

_ENTRIES = {
    "article": ("article", "journal"),
    "book": ("book", "publisher"),
    "chapter": ("incollection", "booktitle"),
    "conference": ("inproceedings", "booktitle"),
    "lecture": ("misc", "howpublished"),
    "preprint": ("misc", "howpublished"),
    "report": ("techreport", "institution"),
    "thesis": ("misc", "howpublished"),  # the venue says of which degree
}
_CSL = {
    "article": ("article-journal", "container-title"),
    "book": ("book", "publisher"),
    "chapter": ("chapter", "container-title"),
    "conference": ("paper-conference", "container-title"),
    "lecture": ("speech", "event-title"),
    "preprint": ("article", "publisher"),
    "report": ("report", "publisher"),
    "thesis": ("thesis", "publisher"),
}
# In TeX; what stands in neither is itself.
_MASKED = str.maketrans(
    {c: f"\\{c}" for c in "&%#$_{}"} | {"^": r"\^{}", "~": r"\textasciitilde{}", "\\": r"\textbackslash{}"}
)


def bibtex(*keys: str) -> str:
    """Write papers as BibTeX.

    Args:
      *keys: Their keys; all papers where none is given.

    Returns:
      The entries, in UTF-8.

    Raises:
      ValueError: If a key is unknown.

    Example:
      >>> from jaxgrad import papers
      >>> print(papers.bibtex("lloyd1982least").splitlines()[0])
      @article{lloyd1982least,
    """
    return "\n".join(_entry(paper) for paper in _papers(keys))


def csl_json(*keys: str) -> str:
    """Write papers as CSL-JSON, which Zotero, Pandoc and most editors read.

    Args:
      *keys: Their keys; all papers where none is given.

    Returns:
      A JSON array.

    Raises:
      ValueError: If a key is unknown.

    Example:
      >>> import json
      >>> from jaxgrad import papers
      >>> json.loads(papers.csl_json("saxe2014exact"))[0]["container-title"]
      'ICLR'
    """
    return json.dumps([_csl(paper) for paper in _papers(keys)], ensure_ascii=False, indent=1) + "\n"


def plain_text(*keys: str) -> str:
    """Write papers as text, a line each.

    Args:
      *keys: Their keys; all papers where none is given.

    Returns:
      The lines.

    Raises:
      ValueError: If a key is unknown.

    Example:
      >>> from jaxgrad import papers
      >>> print(papers.plain_text("nair2010rectified"))
      V. Nair and G. E. Hinton. Rectified Linear Units Improve Restricted Boltzmann Machines. ICML, 2010.
    """
    return "\n".join(_line(paper) for paper in _papers(keys))


def implementing(symbol: Any) -> tuple[Paper, ...]:
    """Return the papers that a public name implements something of.

    Args:
      symbol: A public name such as ``"jaxgrad.losses.huber_loss"``, or the function or type itself. An initializer
        counts as the function that built it.

    Returns:
      The papers, by key; none where the library follows no paper there.

    Raises:
      ValueError: If it is no public name of the library.

    Example:
      >>> from jaxgrad import losses, papers
      >>> [paper.key for paper in papers.implementing(losses.huber_loss)]
      ['girshick2015fast', 'huber1964robust', 'mnih2015human']
    """
    names = _public_names("papers.implementing", symbol)
    return _following(names)


def _following(names: set[str]) -> tuple[Paper, ...]:
    """Return the papers that one of these names implements something of."""
    return tuple(paper for paper in records().values() if any(entry.symbol in names for entry in paper.implements))


def cite(function: Any) -> str:
    """Return the BibTeX of the papers that a function of the library implements.

    Args:
      function: The function or type, or its public name.

    Returns:
      The entries; an empty text where the library follows no paper there.

    Raises:
      ValueError: If it is no public name of the library.

    Example:
      >>> import jaxgrad
      >>> print(jaxgrad.cite(jaxgrad.losses.kl_divergence).splitlines()[0])
      @article{kullback1951information,
    """
    found = _following(_public_names("cite", function))
    return bibtex(*(paper.key for paper in found)) if found else ""


def _papers(keys: Iterable[str]) -> list[Paper]:
    return [get(key) for key in dict.fromkeys(keys)] or list(records().values())


def _public_names(caller: str, symbol: Any) -> set[str]:
    """Return the public name of something of the library, in a set with its short name at the top."""
    import jaxgrad

    if isinstance(symbol, str):
        name = symbol
    else:
        home, inner = getattr(symbol, "__module__", None) or "", getattr(symbol, "__qualname__", "")
        parts = [part for part in home.split(".") if not part.startswith("_")]
        name = ".".join([*parts, inner.split(".")[0]])
    home, _, last = name.rpartition(".")
    if home == "jaxgrad" and last in jaxgrad._HOMES:
        home = jaxgrad._HOMES[last]
    names = {f"{home}.{last}", f"jaxgrad.{last}"} if jaxgrad._HOMES.get(last) == home else {name}
    # What a record names is public, as a test holds; asking the family itself would import jax.
    if any(entry.symbol in names for paper in records().values() for entry in paper.implements):
        return names
    root, _, family = home.partition(".")
    if root == "jaxgrad" and family in jaxgrad.__all__ and last in getattr(getattr(jaxgrad, family), "__all__", ()):
        return names
    remedy = "pass a public function such as jaxgrad.losses.huber_loss, or its name as text"
    raise ValueError(message(caller, "a public name of jaxgrad", textwrap.shorten(repr(symbol), 80), remedy))


def _entry(paper: Paper) -> str:
    kind, home = _ENTRIES[paper.type]
    fields = {
        "author": " and ".join(_author(name) for name in paper.authors),
        "title": f"{{{_masked(paper.title)}}}",
        "year": str(paper.year),
        home: _masked(paper.venue),
        "edition": _ordinal(paper.edition),
        "doi": paper.doi,
        "eprint": paper.arxiv,
        "archiveprefix": "arXiv" if paper.arxiv else None,
    }
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if value is not None]
    return f"@{kind}{{{paper.key},\n" + ",\n".join(lines) + "\n}\n"


def _masked(text: str) -> str:
    """Mask what TeX would read as markup."""
    return text.translate(_MASKED)


def _author(name: str) -> str:
    """Return an author; one without given names, such as a team, is kept whole."""
    return _masked(name) if "," in name else f"{{{_masked(name)}}}"


def _ordinal(edition: str | None) -> str | None:
    """Return ``"2nd"`` for ``"2"``."""
    if edition is None or not edition.isdecimal():
        return edition
    return edition + ("th" if edition[-2:-1] == "1" else {"1": "st", "2": "nd", "3": "rd"}.get(edition[-1], "th"))


def _csl(paper: Paper) -> dict[str, Any]:
    kind, home = _CSL[paper.type]
    fields: dict[str, Any] = {"id": paper.key, "type": kind, "title": paper.title}
    names = [name.partition(", ") for name in paper.authors]
    fields["author"] = [
        {"family": family, "given": given} if given else {"literal": family} for family, _, given in names
    ]
    fields["issued"] = {"date-parts": [[paper.year]]}
    fields[home] = paper.venue
    if paper.edition:
        fields["edition"] = paper.edition
    if paper.doi:
        fields["DOI"] = paper.doi
    if paper.arxiv:
        if paper.type == "preprint":  # elsewhere a number is one of the journal's or the series'
            fields["number"] = f"arXiv:{paper.arxiv}"
        fields["URL"] = f"https://arxiv.org/abs/{paper.arxiv}"
    return fields


def _line(paper: Paper) -> str:
    """Write a paper as a sentence a part; more than four authors are cut after the first."""
    names = [_initials(name) for name in paper.authors]
    if len(names) > 4:
        authors = f"{names[0]} et al"
    else:
        authors = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    title = paper.title if paper.title[-1] in "?!." else f"{paper.title}."
    numbers = [f"arXiv:{paper.arxiv}" if paper.arxiv else "", f"doi:{paper.doi}" if paper.doi else ""]
    ends = "".join(f" {number}." for number in numbers if number)
    authors = authors if authors.endswith(".") else f"{authors}."
    edition = f", {_ordinal(paper.edition)} edition" if paper.edition else ""
    return f"{authors} {title} {paper.venue}{edition}, {paper.year}.{ends}"


def _initials(name: str) -> str:
    family, _, given = name.partition(", ")
    words = given.replace(".-", "-").replace(".", ". ").split()
    letters = ["-".join(f"{part[0]}." for part in word.split("-") if part) for word in words]
    return " ".join([*letters, family])
