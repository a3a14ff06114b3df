"""Activations by name, with their constants under a standard normal, and the gain of any function."""

from jaxgrad.activations._functions import rrelu as rrelu
from jaxgrad.activations._functions import scaled_tanh as scaled_tanh
from jaxgrad.activations._table import TABLE as TABLE
from jaxgrad.activations._table import Activation as Activation
from jaxgrad.activations._table import gain as gain
from jaxgrad.activations._table import get as get

__all__ = ["TABLE", "Activation", "gain", "get", "rrelu", "scaled_tanh"]
