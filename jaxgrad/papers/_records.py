"""The records of the papers index: one YAML file a paper, read as it is and written back byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from jaxgrad._checks import message

_PACKAGED = Path(__file__).parent / "records"
_CHECKOUT = Path(__file__).parents[2] / "papers"
_LONG = 88  # characters from which a text is folded

CATEGORIES: Mapping[str, str] = {
    "image-classification": "Image classification",
    "modules": "Modules",
    "compact-networks": "Compact networks",
    "neural-architecture-search": "Neural architecture search",
    "efficient-computation": "Efficient computation",
    "optimization": "Optimization",
    "object-detection-and-segmentation": "Object detection and segmentation",
    "generative-models": "Generative models",
    "reinforcement-learning": "Reinforcement learning",
    "gradient-flow": "Gradient flow",
    "initialization": "Initialization",
    "normalization": "Normalization",
    "losses": "Losses",
    "clustering": "Clustering",
    "decomposition": "Decomposition",
}
"""The categories by name, with their titles."""


class Implementation(NamedTuple):
    """What of a paper a public name implements.

    Attributes:
      symbol: The name, such as ``"jaxgrad.losses.huber_loss"``.
      equation: What it implements, and where in the paper that stands.
      convention: Where the library departs from the paper; ``None`` where it does not.
    """

    symbol: str
    equation: str
    convention: str | None


class Relation(NamedTuple):
    """How a paper bears on another one.

    Attributes:
      kind: ``"extends"``, ``"corrects"`` or ``"special-case-of"``.
      key: The other paper.
      note: In what way.
      test: The test that shows it; ``None`` where no test can.
    """

    kind: str
    key: str
    note: str
    test: str | None


class Claim(NamedTuple):
    """A number in a paper beside the one that the library computes.

    Attributes:
      quantity: What it is a number of.
      where: Where in the paper.
      value: The paper's number.
      ours: The library's.
      tolerance: The largest difference allowed between the two.
      test: The test that computes it.
    """

    quantity: str
    where: str
    value: float
    ours: float
    tolerance: float
    test: str


class Erratum(NamedTuple):
    """An error in circulation.

    Attributes:
      circulating: What is said.
      correction: What is right.
      test: The test that shows it; ``None`` where it is one of words.
    """

    circulating: str
    correction: str
    test: str | None


class Paper(NamedTuple):
    """A paper.

    Attributes:
      key: Its name in citations, which never changes.
      type: ``"article"``, ``"book"``, ``"chapter"``, ``"conference"``, ``"lecture"``, ``"preprint"``, ``"report"`` or
        ``"thesis"``.
      title: Its title.
      authors: Every author, as ``"Surname, Given Names"``.
      year: Year of publication at the venue.
      venue: Journal, conference, publisher or school.
      edition: Of a book; otherwise ``None``.
      arxiv: arXiv identifier, or ``None``.
      doi: Digital object identifier, or ``None``.
      category: One of ``CATEGORIES``.
      tags: What it is about.
      implements: The public names that implement something of it.
      relations: How it bears on other papers.
      claims: Numbers in it that a test checks.
      errata: Errors in circulation about it.
      summary: What it says, by language: ``"en"`` and ``"zh"``.
      provenance: How far each bibliographic field was verified.
    """

    key: str
    type: str
    title: str
    authors: tuple[str, ...]
    year: int
    venue: str
    edition: str | None
    arxiv: str | None
    doi: str | None
    category: str
    tags: tuple[str, ...]
    implements: tuple[Implementation, ...]
    relations: tuple[Relation, ...]
    claims: tuple[Claim, ...]
    errata: tuple[Erratum, ...]
    summary: Mapping[str, str]
    provenance: Mapping[str, str]


def folder() -> Path:
    """Return the folder that holds the records: in the package where it is installed, in the checkout otherwise."""
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def load(path: Path) -> Paper:
    """Read one record.

    Args:
      path: A YAML file that fits ``papers/schema.json``.

    Returns:
      The paper.

    Example:
      >>> import pathlib, tempfile
      >>> from jaxgrad import papers
      >>> path = pathlib.Path(tempfile.mkdtemp(), "saxe2014exact.yaml")
      >>> _ = path.write_text(papers.dump(papers.get("saxe2014exact")), encoding="utf-8")
      >>> papers.load(path).year
      2014
    """
    # The parser in C is several times faster, where PyYAML was built with it.
    # From the open file, an error of syntax names it.
    with path.open("rb") as file:
        fields: dict[str, Any] = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return Paper(
        **{name: fields[name] for name in ("key", "type", "title", "year", "venue", "arxiv", "doi", "category")},
        edition=fields.get("edition"),
        authors=tuple(fields["authors"]),
        tags=tuple(fields["tags"]),
        implements=tuple(Implementation(**entry) for entry in fields["implements"]),
        relations=tuple(Relation(**entry) for entry in fields["relations"]),
        claims=tuple(Claim(**entry) for entry in fields["claims"]),
        errata=tuple(Erratum(**entry) for entry in fields["errata"]),
        summary=fields["summary"],
        provenance=fields["provenance"],
    )


class _Dumper(yaml.SafeDumper):
    """Writes long texts folded."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=">" if len(text) > _LONG else None)


_Dumper.add_representer(str, _represent_text)


def dump(paper: Paper) -> str:
    """Write one record in the only form in which it is kept.

    Args:
      paper: A paper.

    Returns:
      The text of its file, in UTF-8 with Unix line ends: ``dump(load(path))`` is what ``path`` holds.

    Example:
      >>> from jaxgrad import papers
      >>> print(papers.dump(papers.get("saxe2014exact")).splitlines()[0])
      key: saxe2014exact
    """
    fields: dict[str, Any] = paper._asdict()
    if paper.edition is None:
        del fields["edition"]
    for name in ("authors", "tags"):
        fields[name] = list(fields[name])
    for name in ("implements", "relations", "claims", "errata"):
        fields[name] = [entry._asdict() for entry in fields[name]]
    for name, order in (("summary", ("en", "zh")), ("provenance", Paper._fields)):
        fields[name] = {part: fields[name][part] for part in order if part in fields[name]}
    return yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=116)


@cache
def records() -> Mapping[str, Paper]:
    """Return all papers by key, in the order of their keys."""
    found = [load(path) for path in folder().glob("*/*.yaml")]
    return {paper.key: paper for paper in sorted(found, key=lambda paper: paper.key)}


def get(key: str) -> Paper:
    """Look up a paper.

    Args:
      key: Its key, such as ``"he2015delving"``.

    Returns:
      The paper.

    Raises:
      ValueError: If there is no such paper; the message names the nearest key.

    Example:
      >>> from jaxgrad import papers
      >>> papers.get("glorot2010understanding").year
      2010
    """
    if key not in records():
        import difflib

        close = difflib.get_close_matches(str(key), records(), n=1, cutoff=0.5)
        remedy = f"take {close[0]!r}, or " if close else ""
        raise ValueError(
            message("papers.get", "the key of a paper in the index", repr(key), f"{remedy}look with papers.search")
        )
    return records()[key]
