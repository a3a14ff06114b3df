"""The pages of the papers index, written in MyST from the records."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from jaxgrad import papers
from jaxgrad.papers import Claim, Paper

_FORWARD = {"extends": "Extends", "corrects": "Corrects", "special-case-of": "Is a special case of"}
_BACKWARD = {"extends": "Extended by", "corrects": "Corrected by", "special-case-of": "Has as a special case"}
_VERIFIED = {
    "title-match": "found beside the title in a public bibliography, by a script",
    "bib-match": "stands so in a public bibliography",
    "index-search": "searched for, and read by eye",
    "memory": "not looked up",
}
_CITATIONS = (
    ("BibTeX", "bibtex", papers.bibtex),
    ("CSL-JSON", "json", papers.csl_json),
    ("Text", "text", papers.plain_text),
)
_ABBREVIATED = ("al.", "cf.", "e.g.", "eq.", "fig.", "i.e.", "resp.", "sec.", "vs.")
_HEAD = ("Paper", "Authors", "Year", "Venue", "Category", "Tags", "Implemented", "Claims")


def pages(found: Sequence[Paper], paragraphs: Mapping[str, str]) -> dict[str, str]:
    """Return the text of every page by its path within ``docs/papers``."""
    found = sorted(found, key=lambda paper: (paper.year, paper.key))
    by_key = {paper.key: paper for paper in found}
    backward = [(relation.key, relation.kind, paper, relation.note) for paper in found for relation in paper.relations]
    texts = {"index.md": _index(found)}
    for name, title in papers.CATEGORIES.items():
        members = [paper for paper in found if paper.category == name]
        texts[f"category/{name}.md"] = _category(title, paragraphs[name], members)
    for paper in found:
        related = [(_FORWARD[item.kind], by_key[item.key], item.note, item.test) for item in paper.relations]
        related += [(_BACKWARD[kind], other, note, None) for key, kind, other, note in backward if key == paper.key]
        texts[f"{paper.key}.md"] = _paper(paper, related)
    return texts


def label(paper: Paper) -> str:
    """Return surnames and year, as one says them."""
    surnames = [name.partition(",")[0] for name in paper.authors]
    who = " and ".join(surnames) if len(surnames) < 3 else f"{surnames[0]} et al."
    return f"{who} {paper.year}"


def first_sentence(text: str) -> str:
    """Return a text up to the end of its first sentence."""
    for end in re.finditer(r"[.?!](?=\s)", text):
        head = text[: end.end()]
        if not head.lower().endswith(_ABBREVIATED):
            return head
    return text


def _paper(paper: Paper, related: Sequence[tuple[str, Paper, str, str | None]]) -> str:
    category = f"[{papers.CATEGORIES[paper.category]}](category/{paper.category}.md)"
    tags = " ".join(f"{{papers-tag}}`{tag}`" for tag in paper.tags)
    blocks = [
        f"# {_plain(paper.title)}",
        f'```{{bibliography}}\n:filter: key == "{paper.key}"\n```',
        f":::{{container}} paper-place\n{category} {tags}\n:::",
        f"## Summary\n\n{_plain(paper.summary['en'])}",
        f":::{{container}} language-zh-cn\n{_plain(paper.summary['zh'])}\n:::",
    ]
    if paper.implements:
        blocks += ["## Implemented by", "\n".join(_implementations(paper))]
    if paper.claims:
        blocks += ["## Claims", "\n".join(_claims(paper.claims))]
    if paper.errata:
        blocks += ["## Errors in circulation", "\n".join(_errata(paper))]
    if related:
        blocks += ["## Relations", "\n".join(_relations(related))]
    blocks += ["```{papers-cited-by}\n```"]
    blocks += ["## How far verified", "\n".join(_provenance(paper.provenance))]
    blocks += ["## Cite", _citations(paper.key)]
    return "\n\n".join(blocks) + "\n"


def _implementations(paper: Paper) -> Iterator[str]:
    for entry in paper.implements:
        convention = f" {_plain(entry.convention)}" if entry.convention else ""
        yield f"- {{py:obj}}`{entry.symbol}`: {_stop(_plain(entry.equation))}{convention}"


def _claims(claims: Sequence[Claim]) -> Iterator[str]:
    yield "| Quantity | Where | Paper | Ours | Tolerance | Status | Test |"
    yield "|---|---|--:|--:|--:|---|---|"
    for claim in claims:
        numbers = " | ".join(f"{number:.6g}" for number in (claim.value, claim.ours, claim.tolerance))
        yield f"| {_plain(claim.quantity)} | {_plain(claim.where)} | {numbers} | checked | `{claim.test}` |"


def _errata(paper: Paper) -> Iterator[str]:
    for erratum in paper.errata:
        yield f"- **Said:** {_stop(_plain(erratum.circulating))}\\"
        yield f"  **Right:** {_stop(_plain(erratum.correction))}{_test(erratum.test)}"


def _relations(related: Sequence[tuple[str, Paper, str, str | None]]) -> Iterator[str]:
    for verb, other, note, test in related:
        title = _plain(f"{label(other)}, {other.title}")
        yield f"- {verb} [{title}]({other.key}.md): {_stop(_plain(note))}{_test(test)}"


def _provenance(provenance: Mapping[str, str]) -> Iterator[str]:
    for level, how in _VERIFIED.items():
        fields = [field for field, found in provenance.items() if found == level]
        if fields:
            yield f"- {', '.join(fields)}: {how}"


def _citations(key: str) -> str:
    items = [
        f"::::{{tab-item}} {title}\n:sync: {language}\n\n```{language}\n{write(key).strip()}\n```\n::::"
        for title, language, write in _CITATIONS
    ]
    return ":::::{tab-set}\n:sync-group: citation\n:class: paper-cite\n\n" + "\n\n".join(items) + "\n:::::"


def _category(title: str, paragraph: str, members: Sequence[Paper]) -> str:
    lines = [
        f"- [{_plain(paper.title)}](../{paper.key}.md), {_plain(label(paper))}. "
        f"{_plain(first_sentence(paper.summary['en']))}"
        for paper in members
    ]
    return "\n\n".join(
        [
            f"# {title}",
            paragraph.strip(),
            "## Papers",
            "\n".join(lines),
            _toctree(f"../{paper.key}" for paper in members),
        ]
    )


def _index(found: Sequence[Paper]) -> str:
    def count(part: Callable[[Paper], Sequence[object]], things: str) -> str:
        numbers = [len(part(paper)) for paper in found if part(paper)]
        return f"{sum(numbers)} {things} in {len(numbers)} papers"

    symbols = {entry.symbol for paper in found for entry in paper.implements}
    followed = sum(bool(paper.implements) for paper in found)
    totals = (
        f"{len(found)} papers. {len(symbols)} names of the library follow {followed} of them; "
        f"{count(lambda paper: paper.claims, 'claims')} are checked by tests; "
        f"{count(lambda paper: paper.errata, 'errors in circulation')} are corrected."
    )
    sizes = {name: sum(paper.category == name for paper in found) for name in papers.CATEGORIES}
    counts = [f"- [{title}](category/{name}.md) {sizes[name]}" for name, title in papers.CATEGORIES.items()]
    table = [_HEAD, ("---",) * len(_HEAD), *(_cells(paper) for paper in found)]
    rows = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    blocks = [
        "# Papers",
        totals,
        ":::{container} papers-counts\n" + "\n".join(counts) + "\n:::",
        f":::{{table}}\n:class: papers-table\n\n{rows}\n:::",
        _toctree(f"category/{name}" for name in papers.CATEGORIES),
    ]
    return "\n\n".join(blocks)


def _cells(paper: Paper) -> tuple[str, ...]:
    # What is hidden can be searched for.
    everyone = " ".join([*(name.partition(",")[0] for name in paper.authors[1:]), paper.key])
    return (
        f"[{_plain(paper.title)}]({paper.key}.md)",
        f"{_plain(label(paper).removesuffix(f' {paper.year}'))}<span hidden> {_plain(everyone)}</span>",
        str(paper.year),
        _plain(paper.venue),
        papers.CATEGORIES[paper.category],
        ", ".join(paper.tags),
        str(len(paper.implements) or ""),
        str(len(paper.claims) or ""),
    )


def _toctree(names: Iterator[str] | Sequence[str]) -> str:
    return "\n".join(itertools.chain(["```{toctree}", ":hidden:", ""], names, ["```", ""]))


def _test(name: str | None) -> str:
    return f" Shown by `{name}`." if name else ""


def _stop(text: str) -> str:
    return text if text.endswith((".", "?", "!", "。")) else f"{text}."


def _plain(text: str) -> str:
    """Mask what MyST would read as markup, except for code between backticks."""
    parts = re.split(r"(`[^`]+`)", " ".join(text.split()))
    parts[::2] = [re.sub(r"([\\`*_{}\[\]<>#|~$^=+-])", r"\\\1", part) for part in parts[::2]]
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", "".join(parts))
