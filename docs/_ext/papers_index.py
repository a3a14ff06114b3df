"""The papers index as pages: written before a build, cited everywhere by key, and searchable in the browser."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import papers_pages
import yaml
from docutils import nodes
from pybtex.database import Entry
from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style as PlainStyle
from pybtex.style.labels import BaseLabelStyle
from pybtex.style.names.plain import NameStyle
from pybtex.style.sorting.author_year_title import SortingStyle
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

from jaxgrad import papers

_INDEX = "papers/index"


class _KeyLabels(BaseLabelStyle):
    """Label each entry by its key: numbers would start at 1 on every page, and labels must differ."""

    def format_labels(self, entries: Iterable[Entry]) -> Iterable[str]:
        return (entry.key for entry in entries)


class _Style(PlainStyle):
    # Classes, since looking each up by name for every page takes seconds.
    default_label_style = _KeyLabels
    default_name_style = NameStyle
    default_sorting_style = SortingStyle


class _Tag(SphinxRole):
    """Link a tag to the index, with its filter set."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        uri = f"{self.env.app.builder.get_relative_uri(self.env.docname, _INDEX)}?tag={quote(self.text)}"
        return [nodes.reference("", self.text, refuri=uri, internal=True, classes=["paper-tag"])], []


def _write(app: Sphinx) -> None:
    """Write the pages that changed, and remove those of papers that are gone."""
    folder = Path(app.srcdir, "papers")
    paragraphs = yaml.safe_load(Path(app.srcdir, "papers-categories.yaml").read_text("utf-8"))
    texts = {folder / name: text for name, text in papers_pages.pages(papers.search(), paragraphs).items()}
    for path in set(folder.rglob("*.md")) - texts.keys():
        path.unlink()
    for path, text in texts.items():
        if not path.is_file() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")


def _add_script(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    if pagename == _INDEX:
        app.add_js_file("papers.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the pages, the role of tags and the style of references."""
    register_plugin("pybtex.style.formatting", "keyed", _Style)
    app.add_role("papers-tag", _Tag())
    app.connect("builder-inited", _write, priority=400)
    app.connect("html-page-context", _add_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
