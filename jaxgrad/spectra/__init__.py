"""Jacobians, their singular values, and the spectra of long products of them."""

from jaxgrad.spectra._blocks import block_jacobians as block_jacobians

__all__ = ["block_jacobians"]
