"""Gradient clipping as optax transformations whose state says what they did."""

from jaxgrad.clipping._adaptive import adaptive_clip_by_history as adaptive_clip_by_history
from jaxgrad.clipping._adaptive import clip_by_quantile as clip_by_quantile
from jaxgrad.clipping._adaptive import clip_by_zscore as clip_by_zscore
from jaxgrad.clipping._fixed import clip as clip
from jaxgrad.clipping._fixed import clip_by_global_norm as clip_by_global_norm
from jaxgrad.clipping._fixed import clip_by_norm as clip_by_norm
from jaxgrad.clipping._fixed import smooth_clip as smooth_clip
from jaxgrad.clipping._nonfinite import SkipNonfiniteState as SkipNonfiniteState
from jaxgrad.clipping._nonfinite import skip_nonfinite as skip_nonfinite
from jaxgrad.clipping._norms import global_norm as global_norm
from jaxgrad.clipping._per_example import per_example_clip as per_example_clip
from jaxgrad.clipping._spikes import spike_aware_clip as spike_aware_clip
from jaxgrad.clipping._state import ClipState as ClipState
from jaxgrad.clipping._state import HistoryClipState as HistoryClipState
from jaxgrad.clipping._state import PerExampleClipState as PerExampleClipState
from jaxgrad.clipping._state import QuantileClipState as QuantileClipState
from jaxgrad.clipping._state import SpikeClipState as SpikeClipState
from jaxgrad.clipping._state import ZScoreClipState as ZScoreClipState
from jaxgrad.clipping._unitwise import adaptive_clip as adaptive_clip
from jaxgrad.clipping._unitwise import unitwise_norm as unitwise_norm

__all__ = [
    "ClipState",
    "HistoryClipState",
    "PerExampleClipState",
    "QuantileClipState",
    "SkipNonfiniteState",
    "SpikeClipState",
    "ZScoreClipState",
    "adaptive_clip",
    "adaptive_clip_by_history",
    "clip",
    "clip_by_global_norm",
    "clip_by_norm",
    "clip_by_quantile",
    "clip_by_zscore",
    "global_norm",
    "per_example_clip",
    "skip_nonfinite",
    "smooth_clip",
    "spike_aware_clip",
    "unitwise_norm",
]
