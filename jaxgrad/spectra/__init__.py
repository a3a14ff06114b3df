"""Jacobians, their singular values, and the spectra of long products of them."""

from jaxgrad.spectra._blocks import block_jacobians as block_jacobians
from jaxgrad.spectra._dense import layer_jacobian as layer_jacobian
from jaxgrad.spectra._operators import JacobianOperator as JacobianOperator
from jaxgrad.spectra._operators import jacobian_operator as jacobian_operator
from jaxgrad.spectra._products import product_spectrum as product_spectrum
from jaxgrad.spectra._summaries import NormEstimate as NormEstimate
from jaxgrad.spectra._summaries import SingularValues as SingularValues
from jaxgrad.spectra._summaries import condition_number as condition_number
from jaxgrad.spectra._summaries import frobenius_norm as frobenius_norm
from jaxgrad.spectra._summaries import frobenius_norm_estimate as frobenius_norm_estimate
from jaxgrad.spectra._summaries import singular_values as singular_values
from jaxgrad.spectra._summaries import spectral_norm as spectral_norm
from jaxgrad.spectra._summaries import stable_rank as stable_rank

__all__ = [
    "JacobianOperator",
    "NormEstimate",
    "SingularValues",
    "block_jacobians",
    "condition_number",
    "frobenius_norm",
    "frobenius_norm_estimate",
    "jacobian_operator",
    "layer_jacobian",
    "product_spectrum",
    "singular_values",
    "spectral_norm",
    "stable_rank",
]
