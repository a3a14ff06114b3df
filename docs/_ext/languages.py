"""One site in two languages: English, and Chinese in a folder of it, each page linked to the other's."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.search.zh import SearchChinese

# Where the Chinese site lies within the English one.
_FOLDER = "zh-cn"


class _Chinese(SearchChinese):
    """Chinese search that also splits what is typed: Sphinx itself splits only the pages, so few queries match."""

    js_splitter_code = """
function splitQuery(query) {
  const words = [...new Intl.Segmenter("zh", { granularity: "word" }).segment(query)];
  return words.filter((word) => word.isWordLike).map((word) => word.segment);
}
"""


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
