"""``jaxgrad papers``: search and cite the papers behind the library, without loading jax where it is not asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from jaxgrad._checks import message
from jaxgrad.cli._terminal import InputError, console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from jaxgrad.papers import Paper

_FORWARDS = {"extends": "extends", "corrects": "corrects", "special-case-of": "is a special case of"}
_BACKWARDS = {"extends": "is extended by", "corrects": "is corrected by", "special-case-of": "has the special case"}


@click.group(short_help="Search and cite the papers behind the library.")
def papers() -> None:
    """Search the papers behind the library, and cite what a function implements.

    \b
    Examples:
      jaxgrad papers search orthogonal --author Saxe
      jaxgrad papers show he2015delving
      jaxgrad papers cite jaxgrad.losses.huber_loss
      jaxgrad papers bibtex > references.bib
    """  # noqa: D301


@papers.command(short_help="Find papers by words, author, year, tag or category.")
@click.argument("words", nargs=-1, metavar="[WORDS]...")
@click.option("--author", metavar="NAME", help="A name of one of the authors.")
@click.option("--year", "years", metavar="YEAR|FIRST-LAST", help="Year of publication, or the first and the last one.")
@click.option("--tag", metavar="TAG", help="What the paper is about, by the index.")
@click.option("--category", metavar="CATEGORY", help="One of the categories below.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["list", "bibtex", "csl-json", "text"]),
    default="list",
    show_default=True,
    help="How to write what was found.",
)
def search(
    words: tuple[str, ...], author: str | None, years: str | None, tag: str | None, category: str | None, form: str
) -> None:
    """Find the papers that have all WORDS, each at the beginning of a word, those first that have them in the title.

    Neither case nor accents count. Without WORDS, all papers are listed that fit the options.

    \b
    Examples:
      jaxgrad papers search orthogonal initialization
      jaxgrad papers search --author Hinton --year 2010-2015
      jaxgrad papers search --category normalization --format bibtex

    \b
    Categories:
      image-classification, modules, compact-networks,
      neural-architecture-search, efficient-computation, optimization,
      object-detection-and-segmentation, generative-models,
      reinforcement-learning, gradient-flow, initialization, normalization,
      losses, clustering, decomposition

    \b
    Exit status:
      0  papers were found
      1  none was found
      2  bad usage
    """  # noqa: D301
    from jaxgrad import papers as index

    with refusals():
        found = index.search(" ".join(words), author=author, year=read_years(years), tag=tag, category=category)
    if not found:
        end_empty("jaxgrad papers search: no paper fits. Fewer words, or the beginning of one, find more.")
    keys = [paper.key for paper in found]
    if form == "bibtex":
        write(index.bibtex(*keys))
    elif form == "csl-json":
        write(index.csl_json(*keys))
    elif form == "text":
        write(index.plain_text(*keys) + "\n")
    else:
        list_papers(found)


@papers.command(short_help="Show what the index says of a paper.")
@click.argument("key")
@click.option(
    "--language",
    type=click.Choice(["en", "zh"]),
    default="en",
    show_default=True,
    help="Language of the summary.",
)
def show(key: str, language: str) -> None:
    """Show a paper: its summary, what implements it here, numbers checked, errata and related papers.

    \b
    Examples:
      jaxgrad papers show he2015delving
      jaxgrad papers show he2015delving --language zh
    """  # noqa: D301
    from jaxgrad import papers as index

    with refusals():
        paper = index.get(key)
    terminal = console()
    for part in page(paper, language):
        terminal.print(part)


@papers.command(short_help="Write papers as BibTeX.")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
def bibtex(keys: tuple[str, ...]) -> None:
    """Write the papers KEY as BibTeX, or the whole index where none is given.

    \b
    Examples:
      jaxgrad papers bibtex he2015delving glorot2010understanding
      jaxgrad papers bibtex > references.bib
    """  # noqa: D301
    from jaxgrad import papers as index

    with refusals():
        write(index.bibtex(*keys))


@papers.command(short_help="Cite what a function of the library implements.")
@click.argument("symbol")
def cite(symbol: str) -> None:
    """Write as BibTeX the papers that SYMBOL, a public name of the library, implements something of.

    \b
    Examples:
      jaxgrad papers cite jaxgrad.initializers.he_normal
      jaxgrad papers cite jaxgrad.losses.huber_loss >> references.bib

    \b
    Exit status:
      0  the papers were written
      1  the library follows no paper there
      2  SYMBOL is no public name of the library
    """  # noqa: D301
    from jaxgrad import papers as index

    with refusals():
        entries = index.cite(symbol)
    if not entries:
        end_empty(f"jaxgrad papers cite: {symbol} follows no paper.")
    write(entries)


# What comes in.


@contextmanager
def refusals() -> Iterator[None]:
    """Show the library's message where it refuses."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from None


def read_years(text: str | None) -> int | tuple[int, int] | None:
    """Read ``2015`` or ``2010-2015``."""
    if text is None:
        return None
    matched = re.fullmatch(r"(\d{4})(?:-(\d{4}))?", text)
    if matched is None:
        command, remedy = "jaxgrad papers search", "write `--year 2015` or `--year 2010-2015`."
        raise InputError(message(command, "--year YEAR or FIRST-LAST", repr(text), remedy))
    first, last = matched.groups()
    return int(first) if last is None else (int(first), int(last))


# What goes out.


def end_empty(line: str) -> None:
    """End with status 1 where there is nothing to write."""
    click.echo(line, err=True)
    raise click.exceptions.Exit(1)


def write(text: str) -> None:
    """Write in UTF-8 whatever the terminal's encoding is: a file of references will be read so."""
    click.echo(text.encode(), nl=False)


def list_papers(found: tuple[Paper, ...]) -> None:
    """List papers by key: in columns on a terminal, and otherwise in lines with a tab, for other programs."""
    from jaxgrad import papers as index

    terminal = console()
    lines = [(paper.key, index.plain_text(paper.key)) for paper in found]
    if not terminal.is_terminal:
        write("".join(f"{key}\t{line}\n" for key, line in lines))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, line in lines:
        table.add_row(Text(key, "bold"), Text(line))
    terminal.print(table)


def page(paper: Paper, language: str) -> Iterator[RenderableType]:
    """Compose the page of a paper for rich."""
    from rich.text import Text

    from jaxgrad.papers import CATEGORIES, search

    def section(title: str, *, needed: bool = True) -> Iterator[Text]:
        if needed:
            yield Text()
            yield Text(title, "bold underline")

    yield Text(paper.title, "bold")
    yield Text(", ".join(" ".join(reversed(name.split(", ", 1))) for name in paper.authors))
    edition = f", edition {paper.edition}" if paper.edition else ""
    line = Text(f"{paper.venue}{edition}, {paper.year}")
    if paper.arxiv:
        line.append("  ").append(f"arXiv:{paper.arxiv}", f"link https://arxiv.org/abs/{paper.arxiv}")
    if paper.doi:
        line.append("  ").append(f"doi:{paper.doi}", f"link https://doi.org/{paper.doi}")
    yield line
    yield Text(" · ".join([CATEGORIES[paper.category], *paper.tags]), "dim")
    yield Text()
    yield Text(paper.summary[language])

    yield from section("Implemented here", needed=bool(paper.implements))
    for entry in paper.implements:
        yield from item((entry.symbol, "bold"), f": {entry.equation}", entry.convention, None)
    yield from section("Numbers checked", needed=bool(paper.claims))
    for claim in paper.claims:
        text = f"{claim.quantity} ({claim.where}): {claim.value:g} in the paper, {claim.ours:g} here"
        yield from item((text, ""), f", to within {claim.tolerance:g}", None, claim.test)
    yield from section("Errors in circulation", needed=bool(paper.errata))
    for erratum in paper.errata:
        yield from item(("Said: ", "bold"), erratum.circulating, f"Right: {erratum.correction}", erratum.test)
    related = [(f"{_FORWARDS[relation.kind]} {relation.key}", relation) for relation in paper.relations]
    for other in search():
        pointing = (relation for relation in other.relations if relation.key == paper.key)
        related += [(f"{_BACKWARDS[relation.kind]} {other.key}", relation) for relation in pointing]
    yield from section("Related papers", needed=bool(related))
    for head, relation in related:
        yield from item((head, "bold"), f": {relation.note}", None, relation.test)


def item(head: tuple[str, str], text: str, second: str | None, test: str | None) -> Iterator[RenderableType]:
    """Compose an entry of a section: its first paragraph, and below it, set in, a second one and its test."""
    from rich.padding import Padding
    from rich.text import Text

    yield Padding(Text.assemble(head, text), (0, 0, 0, 2))
    if second is not None:
        yield Padding(Text(second), (0, 0, 0, 4))
    if test is not None:
        yield Padding(Text(test, "dim"), (0, 0, 0, 4))
