"""Why the gradients of a network vanish or explode, which layer is to blame, and which fix works."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxgrad import activations as activations
    from jaxgrad import clipping as clipping
    from jaxgrad import clustering as clustering
    from jaxgrad import decomposition as decomposition
    from jaxgrad import diagnosis as diagnosis
    from jaxgrad import initializers as initializers
    from jaxgrad import losses as losses
    from jaxgrad import meanfield as meanfield
    from jaxgrad import monitoring as monitoring
    from jaxgrad import normalization as normalization
    from jaxgrad import optimizers as optimizers
    from jaxgrad import papers as papers
    from jaxgrad import spectra as spectra
    from jaxgrad import tracing as tracing
    from jaxgrad.diagnosis import explain as explain
    from jaxgrad.monitoring import monitor as monitor
    from jaxgrad.papers import cite as cite
    from jaxgrad.tracing import trace as trace

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "activations",
    "cite",
    "clipping",
    "clustering",
    "decomposition",
    "diagnosis",
    "explain",
    "initializers",
    "losses",
    "meanfield",
    "monitor",
    "monitoring",
    "normalization",
    "optimizers",
    "papers",
    "spectra",
    "trace",
    "tracing",
]

_HOMES = {
    "cite": "jaxgrad.papers",
    "explain": "jaxgrad.diagnosis",
    "monitor": "jaxgrad.monitoring",
    "trace": "jaxgrad.tracing",
}


def __getattr__(name: str) -> Any:
    # On first use, so that the command line answers --help without loading jax.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"jaxgrad.{name}")
    raise AttributeError(f"module 'jaxgrad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
