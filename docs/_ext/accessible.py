"""What the theme, Sphinx and docutils write that a screen reader cannot make sense of, put right."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

# A list of definitions without terms: Sphinx's form for a signature too long for one line.
_PARAMETERS = re.compile(r"<dl>\n(<dd>.*?)</dl>", re.DOTALL)
# The theme's button that opens a part of the sidebar shows an arrow and says nothing.
_SUMMARY = re.compile(r"(<a [^>]*>((?:(?!</a>).)*)</a>\s*<details[^>]*>\s*<summary)>", re.DOTALL)


def _list(match: re.Match[str]) -> str:
    items = match[1].replace("<dd>", "<li>").replace("</dd>", "</li>")
    return f'<ul class="sig-params">\n{items}</ul>'


def _named(generate: Callable[..., Any]) -> Callable[..., str]:
    def generate_and_name(*arguments: Any, **options: Any) -> str:
        return _SUMMARY.sub(_name, str(generate(*arguments, **options)))

    return generate_and_name


def _name(match: re.Match[str]) -> str:
    title = re.sub(r"<.*?>", "", match[2]).strip()
    return f'{match[1]} aria-label="Pages below {title}">'


def _mend(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    if "body" in context:
        body = _PARAMETERS.sub(_list, context["body"])
        # docutils lists citations, and gives each the role of an entry that no list may hold.
        context["body"] = body.replace('role="doc-biblioentry"', 'role="listitem"')
    if "generate_toctree_html" in context:
        context["generate_toctree_html"] = _named(context["generate_toctree_html"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Have the last word on each page."""
    app.connect("html-page-context", _mend, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
