"""Sphinx configuration. The pages load nothing off the host, and the build needs no network."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any, NamedTuple

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "jaxgrad"
author = "The jaxgrad developers"
copyright = author
release = version = importlib.metadata.version("jaxgrad")

extensions = [
    "mathml",
    "public_names",
    "papers_index",
    "backlinks",
    "llms",
    "accessible",
    "languages",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
    "sphinx_copybutton",
    "sphinx_design",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "jupyter_execute"]

# Languages: English, and the concepts in Chinese too. Catalogs name no lines, so that moving a text changes none.
language = "en"
locale_dirs = ["locale"]
gettext_compact = False
gettext_location = False
gettext_last_translator = gettext_language_team = ""

# Pages
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parent / "_build/executed")  # for every builder and language
nb_execution_timeout = 120
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]
html_math_renderer = "mathml"
copybutton_exclude = ".linenos, .gp, .go"

# The reference
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {
    "LearningRate": "float | Array | Schedule",
    "Threshold": "float | Array | Schedule",
}
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = [("Numerics", "notes_style"), ("See also", "notes_style")]
# There is no intersphinx (the build has no network), so a role for a name from elsewhere has no page to point at.
nitpick_ignore_regex = [(r"py:.*", r"(jax|numpy|optax|equinox|flax|matplotlib)\..*")]

# References: docstrings cite by key, each paper has a page that holds its reference, and one page lists all of them.
bibtex_bibfiles = ["../papers/exports/papers.bib"]
bibtex_reference_style = "author_year"
bibtex_default_style = "keyed"
bibtex_cite_id = "cite-{key}"

# HTML
html_theme = "pydata_sphinx_theme"
html_title = f"jaxgrad {version}"
html_static_path = ["_static"]
html_css_files = ["jaxgrad.css", "papers.css"]
html_show_sourcelink = False
html_sidebars = {"papers/index": []}  # it lists the same categories, and its table needs the room
html_theme_options = {
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "navbar_align": "left",
    "navbar_end": ["languages", "theme-switcher", "navbar-icon-links"],
    "footer_start": ["copyright"],
    "footer_end": [],
}

_TUPLE_FIELD = type(NamedTuple("Example", [("field", int)]).field)


def _skip_fields(app: Sphinx, kind: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave the fields of a NamedTuple to its docstring: autodoc knows only "Alias for field number 0"."""
    return True if isinstance(member, _TUPLE_FIELD) else None


def setup(app: Sphinx) -> None:
    """Connect what this file defines."""
    app.connect("autodoc-skip-member", _skip_fields)
