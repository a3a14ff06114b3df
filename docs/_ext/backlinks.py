"""Links back: from a name to its papers and the pages that use it, from a paper to the pages that cite it."""

from __future__ import annotations

import ast
import types
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import papers_pages
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

import jaxgrad
from jaxgrad import papers

_LEADING = nodes.section | addnodes.desc_content
_GENERATED = ("api/generated/", "papers/")
_FAMILIES = [name for name in jaxgrad.__all__ if isinstance(getattr(jaxgrad, name), types.ModuleType)]
# Some names can be had from the top too, where they have a second page.
_HOMES = {
    f"jaxgrad.{name}": f"jaxgrad.{family}.{name}"
    for name in set(jaxgrad.__all__) - {*_FAMILIES, "__version__"}
    for family in _FAMILIES
    if name in getattr(jaxgrad, family).__all__
}


class Page(NamedTuple):
    """What is kept of a page.

    Attributes:
      lead: Its first paragraph.
      uses: The names of the library in its roles and its code.
    """

    lead: str
    uses: frozenset[str]


class _Backlinks(NamedTuple):
    used: Mapping[str, set[str]]  # pages by name of the library
    cited: Mapping[str, set[str]]  # pages by key of a paper
    followed: Mapping[str, set[str]]  # keys of papers by name of the library


class _CitedBy(SphinxDirective):
    """Hold the place of the pages that cite the paper of this page."""

    def run(self) -> list[nodes.Node]:
        return [_cited_by()]


class _cited_by(nodes.General, nodes.Element):
    pass


def pages(env: BuildEnvironment) -> dict[str, Page]:
    """Return what is kept of each page."""
    if not hasattr(env, "jaxgrad_pages"):
        env.jaxgrad_pages = {}
    return env.jaxgrad_pages


def names_in(code: str, bound: dict[str, str]) -> Iterator[str]:
    """Yield the dotted names of the library in Python code.

    Args:
      code: The code. What is no Python has no names.
      bound: What the names of earlier code stand for; imports are added.
    """
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound.update(_imported(node))
    for node in ast.walk(tree):
        name = _dotted(node, bound)
        if name.startswith("jaxgrad."):
            yield name


def _imported(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, str]]:
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            yield alias.asname or alias.name, f"{node.module}.{alias.name}"
        elif alias.asname:
            yield alias.asname, alias.name
        else:
            top = alias.name.partition(".")[0]
            yield top, top


def _dotted(node: ast.AST, bound: Mapping[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, bound)}.{node.attr}"
    return bound.get(node.id, "") if isinstance(node, ast.Name) else ""


def _read(app: Sphinx, doctree: nodes.document) -> None:
    docname = app.env.docname
    texts = (node for node in doctree.findall(nodes.paragraph) if isinstance(node.parent, _LEADING))
    lead = next((node.astext() for node in texts), "")
    uses: set[str] = set()
    if not docname.startswith(_GENERATED):
        # Examples may leave their imports out.
        bound = {"jaxgrad": "jaxgrad", **{name: f"jaxgrad.{name}" for name in _FAMILIES}}
        for block in doctree.findall(nodes.literal_block):
            if block.get("language", "default").lower() in {"default", "ipython3", "python"}:
                uses.update(names_in(block.astext(), bound))
        for link in doctree.findall(addnodes.pending_xref):
            if link.get("refdomain") == "py":
                uses |= {link["reftarget"], f"{link.get('py:module')}.{link['reftarget']}"}
    pages(app.env)[docname] = Page(" ".join(lead.split()), frozenset(uses))


def _purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    pages(env).pop(docname, None)


def _merge(app: Sphinx, env: BuildEnvironment, docnames: Iterable[str], other: BuildEnvironment) -> None:
    pages(env).update({docname: pages(other)[docname] for docname in docnames if docname in pages(other)})


def _collect(app: Sphinx, env: BuildEnvironment) -> set[str]:
    """Turn links around; return the pages whose links back changed, which are written again."""
    used: defaultdict[str, set[str]] = defaultdict(set)
    for docname, page in pages(env).items():
        for name in page.uses:
            parts = name.split(".")
            # A method counts as its class.
            for end in range(2, len(parts) + 1):
                used[_home(".".join(parts[:end]))].add(docname)
    cited: defaultdict[str, set[str]] = defaultdict(set)
    for reference in env.get_domain("cite").citation_refs:
        if not reference.docname.startswith("papers/"):
            for target in reference.targets:
                cited[target.key].add(reference.docname)
    followed: defaultdict[str, set[str]] = defaultdict(set)
    for paper in papers.search():
        for entry in paper.implements:
            followed[_home(entry.symbol)].add(paper.key)
    old = getattr(env, "jaxgrad_backlinks", _Backlinks({}, {}, {}))
    env.jaxgrad_backlinks = now = _Backlinks(dict(used), dict(cited), dict(followed))
    changed = {f"papers/{key}" for key in _differ(old.cited, now.cited)}
    names = _differ(old.used, now.used) | _differ(old.followed, now.followed)
    objects = env.domains.python_domain.objects.items()
    return changed | {entry.docname for name, entry in objects if _home(name) in names}


def _home(name: str) -> str:
    return _HOMES.get(name, name)


def _differ(old: Mapping[str, set[str]], now: Mapping[str, set[str]]) -> set[str]:
    return {key for key in old.keys() | now.keys() if old.get(key) != now.get(key)}


def _resolve(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for place in list(doctree.findall(_cited_by)):
        citing = app.env.jaxgrad_backlinks.cited.get(docname.rpartition("/")[2], ())
        links = _links(app, docname, _titles(app.env, citing))
        place.replace_self([nodes.rubric("", "Cited by"), nodes.paragraph("", "", *links)] if links else [])
    for item in doctree.findall(nodes.list_item):
        for key in (name.removeprefix("cite-") for name in item["ids"] if name.startswith("cite-")):
            item[0].extend([nodes.Text(" "), *_links(app, docname, {f"papers/{key}": "Its page"})])
    for description in list(doctree.findall(addnodes.desc)):
        if description["domain"] == "py" and not isinstance(description.parent, addnodes.desc_content):
            _describe(app, docname, description)


def _describe(app: Sphinx, docname: str, description: addnodes.desc) -> None:
    """Add papers and uses at the end of the text of a name, before its methods."""
    signature, content = description[0], description[-1]
    name = _home(f"{signature['module']}.{signature['fullname']}")
    links = app.env.jaxgrad_backlinks
    lines = {
        "Papers": {
            f"papers/{key}": papers_pages.label(papers.get(key)) for key in sorted(links.followed.get(name, ()))
        },
        "Used in": _titles(app.env, links.used.get(name, ())),
    }
    fields = [
        nodes.field("", nodes.field_name("", title), nodes.field_body("", nodes.paragraph("", "", *found)))
        for title, targets in lines.items()
        if (found := _links(app, docname, targets))
    ]
    if fields:
        methods = (place for place, child in enumerate(content) if isinstance(child, addnodes.desc))
        content.insert(next(methods, len(content)), nodes.field_list("", *fields))


def _titles(env: BuildEnvironment, docnames: Iterable[str]) -> dict[str, str]:
    """Name pages: those of the reference by what they describe, others by their title."""
    return {
        docname: docname.rpartition("/")[2] if docname.startswith(_GENERATED) else env.titles[docname].astext()
        for docname in sorted(docnames)
    }


def _links(app: Sphinx, docname: str, targets: Mapping[str, str]) -> list[nodes.Node]:
    links: list[nodes.Node] = []
    for target, text in targets.items():
        uri = app.builder.get_relative_uri(docname, target)
        links += [nodes.Text(", "), nodes.reference("", text, refuri=uri, internal=True)]
    return links[1:]


def setup(app: Sphinx) -> dict[str, Any]:
    """Collect links while pages are read, and write them turned around."""
    app.add_directive("papers-cited-by", _CitedBy)
    app.add_node(_cited_by)
    app.connect("doctree-read", _read)
    app.connect("env-purge-doc", _purge)
    app.connect("env-merge-info", _merge)
    app.connect("env-updated", _collect)
    app.connect("doctree-resolved", _resolve)
    return {"env_version": 2, "parallel_read_safe": True, "parallel_write_safe": True}
