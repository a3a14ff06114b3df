"""Losses as pure functions: predictions first, unreduced, right at the edges; one function takes the mean."""

from jaxgrad.losses._classification import categorical_hinge_loss as categorical_hinge_loss
from jaxgrad.losses._classification import hinge_loss as hinge_loss
from jaxgrad.losses._classification import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from jaxgrad.losses._classification import softmax_cross_entropy as softmax_cross_entropy
from jaxgrad.losses._classification import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from jaxgrad.losses._classification import squared_hinge_loss as squared_hinge_loss
from jaxgrad.losses._divergence import binary_cross_entropy as binary_cross_entropy
from jaxgrad.losses._divergence import categorical_cross_entropy as categorical_cross_entropy
from jaxgrad.losses._divergence import cosine_proximity as cosine_proximity
from jaxgrad.losses._divergence import kl_divergence as kl_divergence
from jaxgrad.losses._divergence import poisson_loss as poisson_loss
from jaxgrad.losses._reduction import reduce as reduce
from jaxgrad.losses._regression import absolute_error as absolute_error
from jaxgrad.losses._regression import absolute_percentage_error as absolute_percentage_error
from jaxgrad.losses._regression import huber_loss as huber_loss
from jaxgrad.losses._regression import log_cosh as log_cosh
from jaxgrad.losses._regression import squared_error as squared_error
from jaxgrad.losses._regression import squared_log_error as squared_log_error

__all__ = [
    "absolute_error",
    "absolute_percentage_error",
    "binary_cross_entropy",
    "categorical_cross_entropy",
    "categorical_hinge_loss",
    "cosine_proximity",
    "hinge_loss",
    "huber_loss",
    "kl_divergence",
    "log_cosh",
    "poisson_loss",
    "reduce",
    "sigmoid_binary_cross_entropy",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "squared_error",
    "squared_hinge_loss",
    "squared_log_error",
]
