"""From a loss to a diagnosis: what is wrong, which layer is to blame, and which fix works."""

from jaxgrad.diagnosis._explain import explain as explain
from jaxgrad.diagnosis._report import BlockStatistics as BlockStatistics
from jaxgrad.diagnosis._report import Finding as Finding
from jaxgrad.diagnosis._report import Histogram as Histogram
from jaxgrad.diagnosis._report import LayerStatistics as LayerStatistics
from jaxgrad.diagnosis._report import NonFinite as NonFinite
from jaxgrad.diagnosis._report import Remedy as Remedy
from jaxgrad.diagnosis._report import Report as Report
from jaxgrad.diagnosis._report import Spectrum as Spectrum

__all__ = [
    "BlockStatistics",
    "Finding",
    "Histogram",
    "LayerStatistics",
    "NonFinite",
    "Remedy",
    "Report",
    "Spectrum",
    "explain",
]
