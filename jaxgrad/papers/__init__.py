"""The papers behind the library: a curated index with what implements them, checked claims and errata."""

from jaxgrad.papers._cite import bibtex as bibtex
from jaxgrad.papers._cite import cite as cite
from jaxgrad.papers._cite import csl_json as csl_json
from jaxgrad.papers._cite import implementing as implementing
from jaxgrad.papers._cite import plain_text as plain_text
from jaxgrad.papers._records import CATEGORIES as CATEGORIES
from jaxgrad.papers._records import Claim as Claim
from jaxgrad.papers._records import Erratum as Erratum
from jaxgrad.papers._records import Implementation as Implementation
from jaxgrad.papers._records import Paper as Paper
from jaxgrad.papers._records import Relation as Relation
from jaxgrad.papers._records import dump as dump
from jaxgrad.papers._records import get as get
from jaxgrad.papers._records import load as load
from jaxgrad.papers._search import search as search

__all__ = [
    "CATEGORIES",
    "Claim",
    "Erratum",
    "Implementation",
    "Paper",
    "Relation",
    "bibtex",
    "cite",
    "csl_json",
    "dump",
    "get",
    "implementing",
    "load",
    "plain_text",
    "search",
]
