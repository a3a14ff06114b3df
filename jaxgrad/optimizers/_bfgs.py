"""BFGS with the inverse Hessian as a dense matrix."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxgrad._checks import message
from jaxgrad.optimizers import _vectors as vectors
from jaxgrad.optimizers._linesearch import scale_by_wolfe_linesearch


class BFGSState(NamedTuple):
    """State of :func:`scale_by_bfgs`, everything flattened to vectors of n entries.

    Attributes:
      count: Updates of the matrix since the last start from the identity.
      inverse_hessian: The matrix H, of shape (n, n).
      params: Parameters of the last call.
      grad: Gradient of the last call.
      updates: What came into the last call.
      direction: What went out of the last call, H times the updates.
    """

    count: Int[Array, ""]
    inverse_hessian: Float[Array, "n n"]
    params: Float[Array, " n"]
    grad: Float[Array, " n"]
    updates: Float[Array, " n"]
    direction: Float[Array, " n"]


def scale_by_bfgs(
    update: Literal["cautious", "damped"] = "cautious", *, scale_initial: bool = True, self_scaling: bool = True
) -> optax.GradientTransformationExtraArgs:
    r"""Precondition the gradient by BFGS's approximation of the inverse Hessian, a dense matrix.

    .. math::
        H_{k+1} = (I - \rho s y^\top) H_k (I - \rho y s^\top) + \rho s s^\top, \qquad \rho = 1 / y^\top s

    with :math:`s` the last step and :math:`y` the change of the gradient over it, so that :math:`H_{k+1} y = s`.
    What goes out is :math:`H g`: like ``optax.scale_by_lbfgs`` this points uphill, and the sign comes with the
    next link. A pytree is flattened to one vector of n entries; memory and time of a call are :math:`O(n^2)`.

    Args:
      update: What keeps H positive definite where the function is not convex. ``"cautious"`` skips an update unless
        :math:`y^\top s > 10^{-6} \|g\|^a \|s\|^2`, a = 0.01 where :math:`\|g\| \ge 1` and 3 below. ``"damped"``
        mixes y with :math:`H^{-1} s` so that :math:`y^\top s` is at least a fifth of :math:`s^\top H^{-1} s`; it
        takes the links that follow to do no more than scale the direction. Static.
      scale_initial: Start from a step of length at most 1, and scale H by :math:`y^\top s / y^\top y` before its
        first update; otherwise H starts as the identity. Static.
      self_scaling: Scale H by :math:`\max(1, y^\top s / y^\top H y)` before each update. That saves evaluations where
        the first scale was too small for some directions; without it, H becomes the inverse Hessian of a quadratic
        after n exact steps. Static.

    Returns:
      A link with ``update(updates, state, params, *, grad=None)``. Given ``grad``, that is what y is the change
      of, so that ``updates`` may have been clipped before. The state is a ``BFGSState``.

    Raises:
      TypeError: A parameter is not a real floating array.
      ValueError: ``update`` is unknown, or ``params`` is missing.

    Numerics:
      H starts anew from the identity after a step of 0 (a line search that failed), and where H g does not point
      uphill or is not finite. A y that is not finite is not learned from. H is kept in float32, or in float64
      where a parameter is.

    Example:
      >>> import jax.numpy as jnp
      >>> link, x = scale_by_bfgs(), jnp.array([3.0, 4.0])
      >>> link.update(2 * x, link.init(x), x)[0]  # the first step has length 1
      Array([0.6, 0.8], dtype=float32)

    References:
      :cite:p:`nocedal2006numerical`, equations 6.17 and 6.20. :cite:p:`broyden1970convergence`,
      :cite:p:`fletcher1970new`, :cite:p:`goldfarb1970family`, :cite:p:`shanno1970conditioning`. The cautious rule is
      that of :cite:p:`li2001global`; damping is from :cite:p:`powell1978algorithms`. Scaling before each update,
      upwards only, follows :cite:p:`oren1974self` and :cite:p:`albaali1998numerical`.

    See also:
      ``optax.scale_by_lbfgs``, which keeps the last pairs instead of a matrix; ``torch.optim.LBFGS``.
    """
    if update not in ("cautious", "damped"):
        raise ValueError(
            message("scale_by_bfgs", "update 'cautious' or 'damped'", repr(update), "leave it out for 'cautious'")
        )

    def init(params: Any) -> BFGSState:
        vectors.check_real("scale_by_bfgs", "params", params)
        flat, _ = vectors.flatten(params)
        zero = jnp.zeros_like(flat)
        return BFGSState(jnp.asarray(0, jnp.int32), jnp.eye(flat.size, dtype=flat.dtype), flat, zero, zero, zero)

    def transform(
        updates: Any, state: Any, params: Any = None, *, grad: Any = None, **extra_args: Any
    ) -> tuple[Any, BFGSState]:
        del extra_args
        if params is None:
            raise ValueError(
                message("scale_by_bfgs", "the parameters", "params=None", "call update(updates, state, params)")
            )
        u, unflatten = vectors.flatten(updates)
        g = u if grad is None else vectors.flatten(grad)[0]
        x, _ = vectors.flatten(params)
        inverse, count = _learn(state, x - state.params, g - state.grad, g, update, scale_initial, self_scaling)
        direction = jnp.matmul(inverse, u, precision="highest")
        # Rounding may have spoiled the matrix.
        usable = (jnp.sum(direction * g) > 0) & jnp.all(jnp.isfinite(direction))
        fresh = ~usable | (count == 0)
        norm = jnp.sqrt(jnp.sum(u * u))
        unit = 1 / jnp.maximum(norm, 1) if scale_initial else jnp.ones((), u.dtype)
        inverse = jnp.where(fresh, unit * jnp.eye(u.size, dtype=u.dtype), inverse)
        direction = jnp.where(fresh, unit * u, direction)
        count = jnp.where(fresh, 0, count).astype(jnp.int32)
        return unflatten(direction), BFGSState(count + 1, inverse, x, g, u, direction)

    return optax.GradientTransformationExtraArgs(init, transform)


def bfgs(
    learning_rate: optax.ScalarOrSchedule | None = None,
    update: Literal["cautious", "damped"] = "cautious",
    *,
    scale_initial: bool = True,
    self_scaling: bool = True,
    linesearch: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Minimize by BFGS with a line search.

    .. math::
        x_{k+1} = x_k - \alpha_k H_k g_k

    Args:
      learning_rate: Multiplies the direction before the line search; None: 1.
      update: As in ``scale_by_bfgs``. Static.
      scale_initial: As in ``scale_by_bfgs``. Static.
      self_scaling: As in ``scale_by_bfgs``. Static.
      linesearch: The last link, such as ``optax.scale_by_zoom_linesearch(20)``; ``optax.identity()`` for none;
        None: a search for Wolfe's conditions that probes 1 first.

    Returns:
      An optax optimizer whose ``update`` takes ``value=``, ``grad=`` and ``value_fn=``, as ``optax.lbfgs``'s does.

    Raises:
      ValueError: ``update`` is unknown.

    Numerics:
      As ``scale_by_bfgs``. A matrix of n² entries: for large n take ``optax.lbfgs``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.optimizers import minimize
      >>> result = minimize(lambda x: jnp.sum(jnp.array([1.0, 50.0]) * (x - 1) ** 2), jnp.zeros(2), bfgs())
      >>> [round(entry, 2) for entry in result.x.tolist()]
      [1.0, 1.0]

    References:
      :cite:p:`nocedal2006numerical`, algorithm 6.1. :cite:p:`broyden1970convergence`, :cite:p:`fletcher1970new`,
      :cite:p:`goldfarb1970family`, :cite:p:`shanno1970conditioning`. As in ``scale_by_bfgs``, updates are skipped as in
      :cite:p:`li2001global` or damped as in :cite:p:`powell1978algorithms`, and scaled as in :cite:p:`oren1974self` and
      :cite:p:`albaali1998numerical`.

    See also:
      ``scipy.optimize.minimize(method="BFGS")``; ``optax.lbfgs``.
    """
    if linesearch is None:
        linesearch = scale_by_wolfe_linesearch(strong=False)
    step = optax.scale(-1.0) if learning_rate is None else optax.scale_by_learning_rate(learning_rate)
    return optax.chain(scale_by_bfgs(update, scale_initial=scale_initial, self_scaling=self_scaling), step, linesearch)


def _learn(
    state: BFGSState,
    s: Float[Array, " n"],
    y: Float[Array, " n"],
    g: Float[Array, " n"],
    update: str,
    scale_initial: bool,
    self_scaling: bool,
) -> tuple[Float[Array, "n n"], Int[Array, ""]]:
    """Update the matrix by the last step s and the change y of the gradient."""
    inverse = state.inverse_hessian
    moved = (state.count > 0) & jnp.any(s != 0) & jnp.all(jnp.isfinite(y))
    s_y, y_y = jnp.sum(s * y), jnp.sum(y * y)
    if scale_initial:
        gamma = jnp.where((state.count == 1) & (s_y > 0), s_y / jnp.where(y_y == 0, 1, y_y), 0)
        inverse = jnp.where(gamma > 0, gamma * jnp.eye(s.size, dtype=s.dtype), inverse)
    if update == "damped":
        y = _damp(s, y, state)
        s_y = jnp.sum(s * y)
        enough = s_y > 0
    else:
        norm = jnp.sqrt(jnp.sum(g * g))
        enough = s_y > 1e-6 * jnp.where(norm >= 1, norm**0.01, norm**3) * jnp.sum(s * s)
    before = inverse
    if self_scaling:
        y_h_y = jnp.sum(y * jnp.matmul(inverse, y, precision="highest"))
        before = jnp.maximum(1, s_y / jnp.where(y_h_y == 0, 1, y_h_y)) * inverse
    learned = bfgs_update(before, s, y)
    accept = moved & enough & jnp.all(jnp.isfinite(learned))
    # A step of length 0 says that the line search could do nothing with the last direction.
    failed = (state.count > 0) & ~moved
    count = jnp.where(failed, 0, state.count)
    return jnp.where(accept, learned, inverse), count


def bfgs_update(inverse: Float[Array, "n n"], s: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, "n n"]:
    """Return the inverse Hessian after a step s that changed the gradient by y (Nocedal and Wright, equation 6.17)."""
    s_y = jnp.sum(s * y)
    rho = 1 / jnp.where(s_y == 0, 1, s_y)
    h_y = jnp.matmul(inverse, y, precision="highest")
    cross = jnp.outer(h_y, s)
    return inverse - rho * (cross + cross.T) + (rho + rho**2 * jnp.sum(y * h_y)) * jnp.outer(s, s)


def _damp(s: Float[Array, " n"], y: Float[Array, " n"], state: BFGSState) -> Float[Array, " n"]:
    """Mix y with B s so that s^T y is at least a fifth of s^T B s (Nocedal and Wright 2006, procedure 18.2)."""
    p = state.direction
    p_p = jnp.sum(p * p)
    # s is a multiple of H u: B s is that multiple of u, and no system has to be solved.
    b_s = jnp.sum(s * p) / jnp.where(p_p == 0, 1, p_p) * state.updates
    s_b_s, s_y = jnp.sum(s * b_s), jnp.sum(s * y)
    gap = s_b_s - s_y
    theta = jnp.where(s_y >= 0.2 * s_b_s, 1, 0.8 * s_b_s / jnp.where(gap == 0, 1, gap))
    return theta * y + (1 - theta) * b_s
