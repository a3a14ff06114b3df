"""Records of what passes through an optax chain: norms by layer, update ratios, noise, and the first NaN."""

from jaxgrad.monitoring._history import History as History
from jaxgrad.monitoring._history import HistoryState as HistoryState
from jaxgrad.monitoring._history import MeanState as MeanState
from jaxgrad.monitoring._log import log as log
from jaxgrad.monitoring._monitor import MonitorState as MonitorState
from jaxgrad.monitoring._monitor import NoiseState as NoiseState
from jaxgrad.monitoring._monitor import monitor as monitor
from jaxgrad.monitoring._nonfinite import first_nonfinite as first_nonfinite
from jaxgrad.monitoring._read import Clip as Clip
from jaxgrad.monitoring._read import Reading as Reading
from jaxgrad.monitoring._read import read as read

__all__ = [
    "Clip",
    "History",
    "HistoryState",
    "MeanState",
    "MonitorState",
    "NoiseState",
    "Reading",
    "first_nonfinite",
    "log",
    "monitor",
    "read",
]
