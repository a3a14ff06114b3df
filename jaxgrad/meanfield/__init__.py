"""Mean-field theory of wide networks: what an activation and an initialization do to signals and gradients."""

from jaxgrad.meanfield._architectures import Activation as Activation
from jaxgrad.meanfield._architectures import Affine as Affine
from jaxgrad.meanfield._architectures import BatchNorm as BatchNorm
from jaxgrad.meanfield._architectures import Dense as Dense
from jaxgrad.meanfield._architectures import Dropout as Dropout
from jaxgrad.meanfield._architectures import LayerNorm as LayerNorm
from jaxgrad.meanfield._architectures import Residual as Residual
from jaxgrad.meanfield._architectures import Signal as Signal
from jaxgrad.meanfield._architectures import propagate as propagate
from jaxgrad.meanfield._critical import CriticalPoint as CriticalPoint
from jaxgrad.meanfield._critical import critical_point as critical_point
from jaxgrad.meanfield._depth_scales import DepthScales as DepthScales
from jaxgrad.meanfield._depth_scales import correlation_map as correlation_map
from jaxgrad.meanfield._depth_scales import depth_scales as depth_scales
from jaxgrad.meanfield._depth_scales import phase as phase
from jaxgrad.meanfield._finite_width import FiniteWidthBand as FiniteWidthBand
from jaxgrad.meanfield._finite_width import finite_width_band as finite_width_band
from jaxgrad.meanfield._fixed_points import chi as chi
from jaxgrad.meanfield._fixed_points import fixed_point as fixed_point
from jaxgrad.meanfield._kernels import variance_map as variance_map
from jaxgrad.meanfield._predict import BlockPrediction as BlockPrediction
from jaxgrad.meanfield._predict import predict as predict
from jaxgrad.meanfield._recurrent import RecurrentSignal as RecurrentSignal
from jaxgrad.meanfield._recurrent import recurrent_signal as recurrent_signal
from jaxgrad.meanfield._theory_spectra import TheoryDensity as TheoryDensity
from jaxgrad.meanfield._theory_spectra import TheorySpectrum as TheorySpectrum
from jaxgrad.meanfield._theory_spectra import predict_density as predict_density
from jaxgrad.meanfield._theory_spectra import predict_spectrum as predict_spectrum

__all__ = [
    "Activation",
    "Affine",
    "BatchNorm",
    "BlockPrediction",
    "CriticalPoint",
    "Dense",
    "DepthScales",
    "Dropout",
    "FiniteWidthBand",
    "LayerNorm",
    "RecurrentSignal",
    "Residual",
    "Signal",
    "TheoryDensity",
    "TheorySpectrum",
    "chi",
    "correlation_map",
    "critical_point",
    "depth_scales",
    "finite_width_band",
    "fixed_point",
    "phase",
    "predict",
    "predict_density",
    "predict_spectrum",
    "propagate",
    "recurrent_signal",
    "variance_map",
]
