"""Ask arXiv and doi.org for the title behind every identifier of the index, and print those that are not the record's.

Run: python papers/verify_ids.py            (needs the network, and some minutes)
     python papers/verify_ids.py KEY...     (these papers only)

A title that differs is not yet a wrong identifier: a paper may have been renamed between arXiv and its venue.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as ET

from jaxgrad import papers

ARXIV = "https://export.arxiv.org/api/query"
BATCH = 50
PAUSE = 3.0  # seconds between two questions, as arXiv asks for
ATOM = "{http://www.w3.org/2005/Atom}"
AGENT = {"User-Agent": "jaxgrad-papers-index (papers/verify_ids.py)"}


def arxiv_titles(feed: str) -> dict[str, str]:
    """Read the titles of an Atom feed of arXiv, by identifier without version; its error entries hold no title."""
    titles = {}
    for entry in ET.fromstring(feed).iter(f"{ATOM}entry"):
        address, title = (entry.findtext(f"{ATOM}{name}", "").strip() for name in ("id", "title"))
        identifier = re.search(r"/abs/(.+?)(v\d+)?$", address)
        if identifier is not None and title:
            titles[identifier[1]] = " ".join(title.split())
    return titles


def doi_titles(answer: str) -> list[str]:
    """Read the titles that CSL-JSON gives a work: without its subtitle, which Crossref keeps apart, and with it."""
    work = json.loads(answer)
    title, subtitle = (as_text(work.get(name)) for name in ("title", "subtitle"))
    return [name for name in (title, f"{title}: {subtitle}" if title and subtitle else "") if name]


def as_text(value: object) -> str:
    """Return a field that is a text, or a list of them, as one text."""
    parts = value if isinstance(value, list) else [value]
    return " ".join(" ".join(str(part).split()) for part in parts if part)


def is_same(one: str, other: str) -> bool:
    """Tell whether two titles are one, whatever their case, accents, punctuation and markup."""
    return normalized(one) == normalized(other)


def normalized(title: str) -> str:
    """Return the letters and digits of a title, in lower case and without accents, tags and commands of TeX."""
    text = re.sub(r"</?[A-Za-z][^<>]*>|\\[A-Za-z]+", "", html.unescape(title))
    return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if c.isalnum())


def fetch(address: str, accept: str) -> str:
    """Fetch a page as text."""
    request = urllib.request.Request(address, headers={**AGENT, "Accept": accept})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def ask_arxiv(identifiers: Sequence[str]) -> dict[str, list[str]]:
    """Return the title behind each identifier that arXiv knows."""
    found: dict[str, list[str]] = {}
    for start in range(0, len(identifiers), BATCH):
        batch = identifiers[start : start + BATCH]
        query = urllib.parse.urlencode({"id_list": ",".join(batch), "max_results": len(batch)})
        found |= {name: [title] for name, title in arxiv_titles(fetch(f"{ARXIV}?{query}", "*/*")).items()}
        time.sleep(PAUSE)
    return found


def ask_doi(identifiers: Sequence[str]) -> dict[str, list[str]]:
    """Return the titles behind each identifier that doi.org knows and has a description of."""
    found = {}
    for identifier in identifiers:
        try:
            address = f"https://doi.org/{urllib.parse.quote(identifier)}"
            found[identifier] = doi_titles(fetch(address, "application/vnd.citationstyles.csl+json"))
        except urllib.error.HTTPError as error:
            if error.code not in {404, 406}:
                raise
        time.sleep(PAUSE / 10)
    return found


def differences(index: Sequence[papers.Paper], field: str, titles: dict[str, list[str]]) -> Iterator[str]:
    """Yield a line for each paper whose title is not the one behind its identifier."""
    for paper in index:
        identifier = getattr(paper, field)
        found = titles.get(identifier, []) if identifier else [paper.title]
        if not any(is_same(title, paper.title) for title in found):
            theirs = found[-1] if found else "no title"
            yield f"{paper.key}: {field} {identifier}\n  there: {theirs}\n  here:  {paper.title}"


def main() -> None:
    """Ask for the titles of the papers named, or of all, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("keys", nargs="*", metavar="KEY", help="papers to verify; all where none is given")
    keys = parser.parse_args().keys
    index = [papers.get(key) for key in keys] or papers.search()
    count = 0
    for field, ask in (("arxiv", ask_arxiv), ("doi", ask_doi)):
        identifiers = [getattr(paper, field) for paper in index if getattr(paper, field)]
        try:
            titles = ask(identifiers)
        except urllib.error.URLError as error:
            raise SystemExit(f"{field}: {error}; this needs the network") from None
        for line in differences(index, field, titles):
            count += 1
            print(line)
        print(f"{field}: {len(identifiers)} asked for", flush=True)
    if count:
        raise SystemExit(f"{count} titles differ")


if __name__ == "__main__":
    main()
