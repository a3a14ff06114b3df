"""Optimizers as optax chains: the first-order methods by name, and the second-order ones optax lacks."""

from jaxgrad.optimizers._first_order import adadelta as adadelta
from jaxgrad.optimizers._first_order import adagrad as adagrad
from jaxgrad.optimizers._first_order import adam as adam
from jaxgrad.optimizers._first_order import momentum as momentum
from jaxgrad.optimizers._first_order import nesterov as nesterov
from jaxgrad.optimizers._first_order import rmsprop as rmsprop
from jaxgrad.optimizers._first_order import sgd as sgd

__all__ = [
    "adadelta",
    "adagrad",
    "adam",
    "momentum",
    "nesterov",
    "rmsprop",
    "sgd",
]
