"""Normalization of data: features of mean zero and variance one, from one array or from a stream."""

from jaxgrad.normalization._fit import standardize_fit as standardize_fit
from jaxgrad.normalization._fit import standardize_update as standardize_update
from jaxgrad.normalization._standardize import standardize as standardize
from jaxgrad.normalization._standardize import unstandardize as unstandardize
from jaxgrad.normalization._statistics import StandardizeRemainders as StandardizeRemainders
from jaxgrad.normalization._statistics import StandardizeStats as StandardizeStats
from jaxgrad.normalization._statistics import standardize_init as standardize_init
from jaxgrad.normalization._statistics import standardize_merge as standardize_merge
from jaxgrad.normalization._statistics import standardize_pmerge as standardize_pmerge

__all__ = [
    "StandardizeRemainders",
    "StandardizeStats",
    "standardize",
    "standardize_fit",
    "standardize_init",
    "standardize_merge",
    "standardize_pmerge",
    "standardize_update",
    "unstandardize",
]
