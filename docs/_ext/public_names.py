"""Resolve a type by the name users import it under, not by the private module that defines it."""

from __future__ import annotations

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def _resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.reference | None:
    parts = node.get("reftarget", "").split(".")
    if node.get("refdomain") != "py" or parts[0] != "jaxgrad":
        return None
    public = ".".join(part for part in parts if not part.startswith("_"))
    if public == node["reftarget"]:
        return None
    domain = env.domains.python_domain
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], public, node, contnode)


def setup(app: Sphinx) -> dict[str, bool]:
    """Ask here before a reference counts as missing."""
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
