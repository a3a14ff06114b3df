"""llms.txt and llms-full.txt: the documentation for readers that are programs."""

from __future__ import annotations

import functools
import inspect
import pydoc
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import backlinks
import papers_pages
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

import jaxgrad
from jaxgrad import papers

_REFERENCE = "api/generated/"


def _sections(env: BuildEnvironment) -> dict[str, list[str]]:
    """Return the pages by section: a page at the top with others below it makes one."""
    sections: dict[str, list[str]] = {"Documentation": []}
    for docname in env.toctree_includes[env.config.root_doc]:
        below = list(dict.fromkeys(_below(env, docname)))
        if len(below) == 1:
            sections["Documentation"] += below
        else:
            sections[env.titles[docname].astext()] = below
    return sections


def _below(env: BuildEnvironment, docname: str) -> Iterator[str]:
    yield docname
    for child in env.toctree_includes.get(docname, ()):
        yield from _below(env, child)


def _line(app: Sphinx, docname: str) -> str:
    name = docname.rpartition("/")[2]
    found = _papers().get(docname)
    if found:
        title, lead = f"{found.title} ({papers_pages.label(found)})", found.summary["en"]
    else:
        title = name if docname.startswith(_REFERENCE) else app.env.titles[docname].astext()
        lead = backlinks.pages(app.env)[docname].lead
    lead = re.sub(r"\b[a-z]+\d{4}[a-z0-9]+\b", _cited, lead)  # citations are keys before they are resolved
    uri = urljoin(app.config.html_baseurl, app.builder.get_target_uri(docname))
    return f"- [{title}]({uri}): {papers_pages.first_sentence(lead)}"


def _cited(match: re.Match[str]) -> str:
    found = _papers().get(f"papers/{match[0]}")
    return papers_pages.label(found) if found else match[0]


@functools.cache
def _papers() -> dict[str, papers.Paper]:
    return {f"papers/{paper.key}": paper for paper in papers.search()}


def _text(env: BuildEnvironment, docname: str) -> str:
    """Return all of a page: a paper's record, a name's signature and docstring, or the source."""
    name = docname.rpartition("/")[2]
    if docname in _papers():
        return f"# {name}\n\n{papers.dump(_papers()[docname])}"
    if docname.startswith(_REFERENCE):
        return f"# {name}\n\n{_signature(name)}{inspect.getdoc(pydoc.locate(name)) or ''}\n"
    return env.doc2path(docname).read_text("utf-8")


def _signature(name: str) -> str:
    found = pydoc.locate(name)
    return f"{name.rpartition('.')[2]}{inspect.signature(found)}\n\n" if inspect.isfunction(found) else ""


def _write(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    sections = _sections(app.env)
    lines = [f"# {app.config.project}", "", f"> {jaxgrad.__doc__.splitlines()[0]}"]
    for title, docnames in sections.items():
        lines += ["", f"## {title}", "", *(_line(app, docname) for docname in docnames)]
    texts = [_text(app.env, docname) for docnames in sections.values() for docname in docnames]
    Path(app.outdir, "llms.txt").write_text("\n".join(lines) + "\n", "utf-8")
    Path(app.outdir, "llms-full.txt").write_text("\n\n".join(texts), "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Write both after a build."""
    app.connect("build-finished", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
