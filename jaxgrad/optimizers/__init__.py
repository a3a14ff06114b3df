"""Optimizers as optax chains: the first-order methods by name, and the second-order ones optax lacks."""

from jaxgrad.optimizers._bfgs import BFGSState as BFGSState
from jaxgrad.optimizers._bfgs import bfgs as bfgs
from jaxgrad.optimizers._bfgs import scale_by_bfgs as scale_by_bfgs
from jaxgrad.optimizers._first_order import adadelta as adadelta
from jaxgrad.optimizers._first_order import adagrad as adagrad
from jaxgrad.optimizers._first_order import adam as adam
from jaxgrad.optimizers._first_order import momentum as momentum
from jaxgrad.optimizers._first_order import nesterov as nesterov
from jaxgrad.optimizers._first_order import rmsprop as rmsprop
from jaxgrad.optimizers._first_order import sgd as sgd
from jaxgrad.optimizers._linesearch import WolfeLinesearchInfo as WolfeLinesearchInfo
from jaxgrad.optimizers._linesearch import WolfeLinesearchState as WolfeLinesearchState
from jaxgrad.optimizers._linesearch import scale_by_wolfe_linesearch as scale_by_wolfe_linesearch
from jaxgrad.optimizers._minimize import MinimizeResult as MinimizeResult
from jaxgrad.optimizers._minimize import minimize as minimize
from jaxgrad.optimizers._newton import NewtonCGState as NewtonCGState
from jaxgrad.optimizers._newton import newton as newton
from jaxgrad.optimizers._newton import scale_by_newton_cg as scale_by_newton_cg
from jaxgrad.optimizers._nonlinear_cg import NonlinearCGState as NonlinearCGState
from jaxgrad.optimizers._nonlinear_cg import nonlinear_cg as nonlinear_cg
from jaxgrad.optimizers._nonlinear_cg import scale_by_nonlinear_cg as scale_by_nonlinear_cg

__all__ = [
    "BFGSState",
    "MinimizeResult",
    "NewtonCGState",
    "NonlinearCGState",
    "WolfeLinesearchInfo",
    "WolfeLinesearchState",
    "adadelta",
    "adagrad",
    "adam",
    "bfgs",
    "minimize",
    "momentum",
    "nesterov",
    "newton",
    "nonlinear_cg",
    "rmsprop",
    "scale_by_bfgs",
    "scale_by_newton_cg",
    "scale_by_nonlinear_cg",
    "scale_by_wolfe_linesearch",
    "sgd",
]
