"""Jacobians, their singular values, and the spectra of long products of them."""

from jaxgrad.spectra._block_spectra import BlockSpectra as BlockSpectra
from jaxgrad.spectra._block_spectra import block_spectra as block_spectra
from jaxgrad.spectra._blocks import block_jacobians as block_jacobians
from jaxgrad.spectra._chains import ScaledJacobian as ScaledJacobian
from jaxgrad.spectra._chains import prefix_jacobians as prefix_jacobians
from jaxgrad.spectra._chains import suffix_jacobians as suffix_jacobians
from jaxgrad.spectra._dense import layer_jacobian as layer_jacobian
from jaxgrad.spectra._density import SpectralDensity as SpectralDensity
from jaxgrad.spectra._density import smoothed_density as smoothed_density
from jaxgrad.spectra._density import spectral_density as spectral_density
from jaxgrad.spectra._estimates import NormEstimate as NormEstimate
from jaxgrad.spectra._estimates import effective_rank_estimate as effective_rank_estimate
from jaxgrad.spectra._estimates import frobenius_norm_estimate as frobenius_norm_estimate
from jaxgrad.spectra._estimates import stable_rank_estimate as stable_rank_estimate
from jaxgrad.spectra._lyapunov import LyapunovExponents as LyapunovExponents
from jaxgrad.spectra._lyapunov import lyapunov_exponents as lyapunov_exponents
from jaxgrad.spectra._norms import condition_number as condition_number
from jaxgrad.spectra._norms import effective_rank as effective_rank
from jaxgrad.spectra._norms import frobenius_norm as frobenius_norm
from jaxgrad.spectra._norms import spectral_norm as spectral_norm
from jaxgrad.spectra._norms import stable_rank as stable_rank
from jaxgrad.spectra._operators import JacobianOperator as JacobianOperator
from jaxgrad.spectra._operators import jacobian_operator as jacobian_operator
from jaxgrad.spectra._products import product_spectrum as product_spectrum
from jaxgrad.spectra._regularizers import dynamical_isometry_penalty as dynamical_isometry_penalty
from jaxgrad.spectra._regularizers import gradient_flossing as gradient_flossing
from jaxgrad.spectra._regularizers import isometry_penalty as isometry_penalty
from jaxgrad.spectra._regularizers import jacobian_norm_penalty as jacobian_norm_penalty
from jaxgrad.spectra._regularizers import vanishing_gradient_penalty as vanishing_gradient_penalty
from jaxgrad.spectra._singular_values import SingularValues as SingularValues
from jaxgrad.spectra._singular_values import singular_values as singular_values

__all__ = [
    "BlockSpectra",
    "JacobianOperator",
    "LyapunovExponents",
    "NormEstimate",
    "ScaledJacobian",
    "SingularValues",
    "SpectralDensity",
    "block_jacobians",
    "block_spectra",
    "condition_number",
    "dynamical_isometry_penalty",
    "effective_rank",
    "effective_rank_estimate",
    "frobenius_norm",
    "frobenius_norm_estimate",
    "gradient_flossing",
    "isometry_penalty",
    "jacobian_norm_penalty",
    "jacobian_operator",
    "layer_jacobian",
    "lyapunov_exponents",
    "prefix_jacobians",
    "product_spectrum",
    "singular_values",
    "smoothed_density",
    "spectral_density",
    "spectral_norm",
    "stable_rank",
    "stable_rank_estimate",
    "suffix_jacobians",
    "vanishing_gradient_penalty",
]
