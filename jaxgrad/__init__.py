"""Why the gradients of a network vanish or explode, which layer is to blame, and which fix works."""

from jaxgrad import diagnosis as diagnosis
from jaxgrad import spectra as spectra
from jaxgrad import tracing as tracing
from jaxgrad.diagnosis import explain as explain
from jaxgrad.tracing import trace as trace

__version__ = "0.1.0"

__all__ = ["__version__", "diagnosis", "explain", "spectra", "trace", "tracing"]
