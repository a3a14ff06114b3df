"""One site in two languages: English, and Chinese in a folder of it, each page linked to the other's."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.search.en import SearchEnglish

# Where the Chinese site lies within the English one.
_FOLDER = "zh-cn"


class _Chinese(SearchEnglish):
    """Chinese search by pairs of neighbouring characters, in pages and in what is typed alike.

    Sphinx's own splits pages into words and leaves what is typed whole, so few queries match; and two splitters of
    words, one in Python and one in the browser, would not agree. Latin words are stemmed as in English.
    """

    lang = "zh"
    js_splitter_code = """
function splitQuery(query) {
  const pairs = (run) => Array.from({ length: Math.max(1, run.length - 1) }, (_, i) => run.slice(i, i + 2));
  const runs = [...query.matchAll(/[\\u4e00-\\u9fff]+|\\w+/g)].map(([run]) => run);
  return runs.flatMap((run) => (/[\\u4e00-\\u9fff]/.test(run) ? pairs(run) : [run]));
}
"""

    def split(self, input: str) -> list[str]:  # noqa: A002  its name in Sphinx
        """Split a text into pairs of characters and Latin words."""
        runs = re.findall(r"[\u4e00-\u9fff]+|[A-Za-z0-9_]+", input)
        return [part for run in runs for part in (_pairs(run) if run[0] >= "\u4e00" else [run])]


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(max(1, len(run) - 1))]


def _link(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Tell the template where the same page is in the other language."""
    here = f"{pagename}.html"
    if app.config.language == "en":
        context["translation"] = (context["pathto"](f"{_FOLDER}/{here}", 1), "zh-CN", "中文")
    else:
        context["translation"] = (context["pathto"](f"../{here}", 1), "en", "English")


def _keep_anchors(app: Sphinx, doctree: nodes.document) -> None:
    """Leave the headings' anchors English: MyST takes those of the last translated title for the page's."""
    slugs = getattr(doctree, "myst_slugs", None)
    if slugs:
        app.env.metadata[app.env.docname]["myst_slugs"] = slugs


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the search, give every page its link, and keep anchors."""
    app.add_search_language(_Chinese)
    app.connect("doctree-read", _keep_anchors)
    app.connect("html-page-context", _link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
