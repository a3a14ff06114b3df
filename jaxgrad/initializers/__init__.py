"""Initializers: how to draw parameters so that signals and gradients keep their size."""

from jaxgrad.initializers._critical import CriticalInitializer as CriticalInitializer
from jaxgrad.initializers._critical import critical as critical
from jaxgrad.initializers._data_dependent import lsuv as lsuv
from jaxgrad.initializers._fans import Fans as Fans
from jaxgrad.initializers._fans import fans as fans
from jaxgrad.initializers._named import glorot_normal as glorot_normal
from jaxgrad.initializers._named import glorot_uniform as glorot_uniform
from jaxgrad.initializers._named import he_normal as he_normal
from jaxgrad.initializers._named import he_uniform as he_uniform
from jaxgrad.initializers._named import lecun_normal as lecun_normal
from jaxgrad.initializers._named import lecun_uniform as lecun_uniform
from jaxgrad.initializers._orthogonal import delta_orthogonal as delta_orthogonal
from jaxgrad.initializers._orthogonal import identity as identity
from jaxgrad.initializers._orthogonal import orthogonal as orthogonal
from jaxgrad.initializers._reinitialize import reinitialize as reinitialize
from jaxgrad.initializers._residual import FixupInitializers as FixupInitializers
from jaxgrad.initializers._residual import depth_scaled as depth_scaled
from jaxgrad.initializers._residual import fixup as fixup
from jaxgrad.initializers._residual import skip_init as skip_init
from jaxgrad.initializers._sparse import sparse as sparse
from jaxgrad.initializers._variance_scaling import Initializer as Initializer
from jaxgrad.initializers._variance_scaling import truncated_normal as truncated_normal
from jaxgrad.initializers._variance_scaling import variance_scaling as variance_scaling

__all__ = [
    "CriticalInitializer",
    "Fans",
    "FixupInitializers",
    "Initializer",
    "critical",
    "delta_orthogonal",
    "depth_scaled",
    "fans",
    "fixup",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "identity",
    "lecun_normal",
    "lecun_uniform",
    "lsuv",
    "orthogonal",
    "reinitialize",
    "skip_init",
    "sparse",
    "truncated_normal",
    "variance_scaling",
]
