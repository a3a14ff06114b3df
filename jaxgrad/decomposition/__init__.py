"""Principal components: of arrays, of streams, and of rows over many devices."""

from jaxgrad.decomposition._likelihood import log_likelihood as log_likelihood
from jaxgrad.decomposition._likelihood import pca_covariance as pca_covariance
from jaxgrad.decomposition._likelihood import pca_precision as pca_precision
from jaxgrad.decomposition._pca import pca as pca
from jaxgrad.decomposition._result import PCAResult as PCAResult
from jaxgrad.decomposition._streaming import PCARemainders as PCARemainders
from jaxgrad.decomposition._streaming import PCAState as PCAState
from jaxgrad.decomposition._streaming import pca_from_state as pca_from_state
from jaxgrad.decomposition._streaming import pca_init as pca_init
from jaxgrad.decomposition._streaming import pca_merge as pca_merge
from jaxgrad.decomposition._streaming import pca_update as pca_update
from jaxgrad.decomposition._transform import pca_inverse_transform as pca_inverse_transform
from jaxgrad.decomposition._transform import pca_transform as pca_transform

__all__ = [
    "PCARemainders",
    "PCAResult",
    "PCAState",
    "log_likelihood",
    "pca",
    "pca_covariance",
    "pca_from_state",
    "pca_init",
    "pca_inverse_transform",
    "pca_merge",
    "pca_precision",
    "pca_transform",
    "pca_update",
]
