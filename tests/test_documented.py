"""The reference lists what is public, and nothing else; the build is not needed to see it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import types
from pathlib import Path

import pytest
import yaml

import jaxgrad
from jaxgrad import papers

DOCS = Path(__file__).parents[1] / "docs"
LISTED = re.findall(r"^   (jaxgrad(?:\.\w+)*)$", (DOCS / "api/index.md").read_text("utf-8"), re.M)
FAMILIES = [f"jaxgrad.{name}" for name in jaxgrad.__all__ if isinstance(getattr(jaxgrad, name), types.ModuleType)]
DOCUMENTED = {f"{family}.{name}" for family in LISTED for name in importlib.import_module(family).__all__}


def exported(module: types.ModuleType) -> set[str]:
    """Return what a package hands on (`import name as name`) or defines, under names that are public."""
    tree = ast.parse(inspect.getsource(module))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names if alias.name == alias.asname}
    names |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return {name for name in names if not name.startswith("_")}


def test_every_family_is_in_the_reference():
    assert sorted(LISTED) == sorted(["jaxgrad", "jaxgrad.data", *FAMILIES])  # the data are for demos, not at the top


@pytest.mark.parametrize("family", LISTED)
def test_what_a_family_exports_is_documented(family):
    module = importlib.import_module(family)
    public = exported(module)
    assert {f"{family}.{name}" for name in public} <= DOCUMENTED
    assert public == set(module.__all__) - {"__version__"}


@pytest.mark.parametrize("family", LISTED)
def test_every_documented_function_and_type_has_a_text(family):
    values = {name: getattr(importlib.import_module(family), name) for name in importlib.import_module(family).__all__}
    silent = [name for name, value in values.items() if callable(value) and not value.__doc__]
    assert silent == []


@pytest.mark.parametrize("family", LISTED)
def test_every_documented_function_has_an_example(family):
    values = {name: getattr(importlib.import_module(family), name) for name in importlib.import_module(family).__all__}
    without = [name for name, value in values.items() if inspect.isfunction(value) and ">>> " not in value.__doc__]
    assert without == []


def test_names_that_follow_a_paper_have_a_page_to_link_to():
    followed = {entry.symbol for paper in papers.search() for entry in paper.implements}
    assert followed - DOCUMENTED == set()


def test_every_category_of_papers_has_a_paragraph_that_cites_papers_there_are():
    paragraphs = yaml.safe_load((DOCS / "papers-categories.yaml").read_text("utf-8"))
    cited = {key for text in paragraphs.values() for keys in re.findall(r"`([^`]+)`", text) for key in keys.split(",")}
    assert paragraphs.keys() == papers.CATEGORIES.keys()
    assert cited <= {paper.key for paper in papers.search()}
