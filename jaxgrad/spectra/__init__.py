"""Jacobians, their singular values, and the spectra of long products of them."""
