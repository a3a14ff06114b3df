"""References in the reference: names as users import them, and nothing made up."""

from __future__ import annotations

import sys
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement) -> nodes.Node | None:
    if node.get("refdomain") != "py":
        return None
    # A type is exported by a family and defined in one of its private modules, which has no page.
    target = node["reftarget"]
    public = ".".join(part for part in target.split(".") if not part.startswith("_"))
    if public != target:
        domain = env.domains.python_domain
        found = domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], public, node, contnode)
        if found is not None:
            return found
    # What Sphinx links in a signature may have no page here: jax's types, or a shape such as "batch features". Only
    # what somebody wrote as a role, which carries this attribute, counts as a broken reference.
    return None if "refexplicit" in node else contnode


def _document_constant(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Take the text of a constant from the private module that defines it; autodoc would describe its type."""
    if what == "data":
        family, _, last = name.rpartition(".")
        homes = [module for module in sys.modules if module.startswith(f"{family}._")]
        found = (ModuleAnalyzer.for_module(home).find_attr_docs().get(("", last)) for home in homes)
        lines[:] = next((text for text in found if text), [])


def setup(app: Sphinx) -> dict[str, bool]:
    """Ask here before a reference counts as missing, and for what constants are."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _document_constant)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
