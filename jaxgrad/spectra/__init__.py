"""Jacobians and their singular values."""

from jaxgrad.spectra._blocks import block_jacobians as block_jacobians

__all__ = ["block_jacobians"]
