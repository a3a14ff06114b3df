"""Nonlinear conjugate gradients: the five classical formulas for beta, with restarts."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxgrad._checks import message
from jaxgrad.optimizers import _vectors as vectors
from jaxgrad.optimizers._linesearch import scale_by_wolfe_linesearch

Method = Literal["polak-ribiere+", "fletcher-reeves", "hestenes-stiefel", "dai-yuan", "hager-zhang"]
_METHODS = ("polak-ribiere+", "fletcher-reeves", "hestenes-stiefel", "dai-yuan", "hager-zhang")


class NonlinearCGState(NamedTuple):
    """State of :func:`scale_by_nonlinear_cg`.

    Attributes:
      count: Calls since the last restart.
      beta: Weight of the last direction in the newest; 0 after a restart.
      updates: What came into the last call, the gradient.
      direction: What went out of the last call, an ascent direction like the gradient.
    """

    count: Int[Array, ""]
    beta: Float[Array, ""]
    updates: Any
    direction: Any


def scale_by_nonlinear_cg(
    method: Method = "hestenes-stiefel",
    *,
    restart_every: int | None = None,
    restart_threshold: float | None = 0.5,
) -> optax.GradientTransformationExtraArgs:
    r"""Combine the gradient with the last direction, by one of the five classical formulas.

    .. math::
        d_k = -g_k + \beta_k d_{k-1}

    With :math:`y = g_k - g_{k-1}` and :math:`d = d_{k-1}`, :math:`\beta_k` is

    - ``"hestenes-stiefel"``: :math:`g_k^\top y / d^\top y`;
    - ``"polak-ribiere+"``: :math:`\max(0, g_k^\top y / \|g_{k-1}\|^2)`;
    - ``"fletcher-reeves"``: :math:`\|g_k\|^2 / \|g_{k-1}\|^2`;
    - ``"dai-yuan"``: :math:`\|g_k\|^2 / d^\top y`;
    - ``"hager-zhang"``: :math:`(y - 2 d \|y\|^2 / d^\top y)^\top g_k / d^\top y`, and at least
      :math:`-1 / (\|d\| \min(0.01, \|g_{k-1}\|))`.

    They are the same on a quadratic with exact steps. What goes out is :math:`-d_k`: like every optax link this
    points uphill, and the sign comes with the next link.

    Args:
      method: The formula. Static.
      restart_every: Go back to the gradient after so many directions; None: not for that reason. Static.
      restart_threshold: Go back to the gradient where :math:`|g_k^\top g_{k-1}|` is at least so much of
        :math:`\|g_k\|^2`: two gradients in a row should be orthogonal, and are on a quadratic; None: not for that
        reason. Static.

    Returns:
      A link with ``update(updates, state, params=None)``. The state is a ``NonlinearCGState``. The line search
      after it should be a close one, with a ``curvature`` of 0.1 to 0.4.

    Raises:
      TypeError: A parameter is not a real floating array.
      ValueError: A setting is out of range.

    Numerics:
      Where the direction would not descend or is not finite, or the gradient has not changed at all, the gradient is
      taken. A formula whose denominator is 0 gives 0. Products are summed in float32, or in float64 where a
      parameter is.

    Example:
      >>> import jax.numpy as jnp
      >>> link = scale_by_nonlinear_cg("fletcher-reeves")
      >>> first, state = link.update(jnp.array([2.0, 0.0]), link.init(jnp.zeros(2)))
      >>> link.update(jnp.array([0.0, 1.0]), state)[0]  # beta is 1/4
      Array([0.5, 1. ], dtype=float32)

    References:
      :cite:p:`nocedal2006numerical`, section 5.2; its equation 5.52 for ``restart_threshold``.
      :cite:p:`hestenes1952methods`, :cite:p:`fletcher1964function`, :cite:p:`polak1969note`,
      :cite:p:`dai1999nonlinear`, :cite:p:`hager2005new`, equations 1.3 to 1.6.

    See also:
      ``optimistix.NonlinearCG``; ``jax.scipy.sparse.linalg.cg`` for linear systems.
    """
    if method not in _METHODS:
        raise ValueError(
            message(
                "scale_by_nonlinear_cg",
                "a method of " + ", ".join(map(repr, _METHODS)),
                repr(method),
                "leave it out",
            )
        )
    if restart_every is not None and restart_every < 1:
        raise ValueError(
            message("scale_by_nonlinear_cg", "restart_every of at least 1", str(restart_every), "leave it out")
        )
    if restart_threshold is not None and not restart_threshold > 0:
        raise ValueError(
            message("scale_by_nonlinear_cg", "a positive restart_threshold", str(restart_threshold), "leave it out")
        )

    def init(params: Any) -> NonlinearCGState:
        vectors.check_real("scale_by_nonlinear_cg", "params", params)
        zero = jax.tree.map(jnp.zeros_like, params)
        return NonlinearCGState(jnp.asarray(0, jnp.int32), jnp.zeros((), vectors.dtype_of(params)), zero, zero)

    def transform(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, NonlinearCGState]:
        del params, extra_args
        squared = vectors.dot(updates, updates)
        beta = conjugacy(method, updates, state.updates, state.direction)
        direction = vectors.add_scaled(updates, beta, state.direction)
        descent = vectors.dot(updates, direction)
        stuck = vectors.max_norm(vectors.difference(updates, state.updates)) == 0
        restart = stuck | (state.count == 0) | ~((descent > 0) & jnp.isfinite(descent))
        if restart_every is not None:
            restart |= state.count >= restart_every
        if restart_threshold is not None:
            restart |= jnp.abs(vectors.dot(updates, state.updates)) >= restart_threshold * squared
        beta = jnp.where(restart, 0, beta)
        direction = vectors.where(restart, updates, direction)
        count = jnp.where(restart, 1, state.count + 1).astype(jnp.int32)
        return direction, NonlinearCGState(count, beta, updates, direction)

    return optax.GradientTransformationExtraArgs(init, transform)


def nonlinear_cg(
    learning_rate: optax.ScalarOrSchedule | None = None,
    method: Method = "hestenes-stiefel",
    *,
    restart_every: int | None = None,
    restart_threshold: float | None = 0.5,
    linesearch: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Minimize by nonlinear conjugate gradients.

    .. math::
        x_{k+1} = x_k + \alpha_k d_k, \qquad d_k = -g_k + \beta_k d_{k-1}

    Args:
      learning_rate: Multiplies the direction before the line search; None: 1.
      method: As in ``scale_by_nonlinear_cg``. Static.
      restart_every: As in ``scale_by_nonlinear_cg``. Static.
      restart_threshold: As in ``scale_by_nonlinear_cg``. Static.
      linesearch: The last link; None: a search for the strong Wolfe conditions with ``curvature`` 0.1.

    Returns:
      An optax optimizer whose ``update`` takes ``value=``, ``grad=`` and ``value_fn=``, as ``optax.lbfgs``'s does. It
      keeps two vectors beside the line search's one.

    Raises:
      ValueError: A setting is out of range.

    Numerics:
      As ``scale_by_nonlinear_cg``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.optimizers import minimize
      >>> scales = jnp.array([1.0, 3.0, 9.0])
      >>> minimize(lambda x: jnp.sum(scales * (x - 1) ** 2), jnp.zeros(3), nonlinear_cg()).x.round(2)
      Array([1., 1., 1.], dtype=float32)

    References:
      :cite:p:`nocedal2006numerical`, algorithm 5.4. The formulas are those of :cite:p:`hestenes1952methods`,
      :cite:p:`fletcher1964function`, :cite:p:`polak1969note`, :cite:p:`dai1999nonlinear` and :cite:p:`hager2005new`.

    See also:
      ``scipy.optimize.minimize(method="CG")``; ``optimistix.NonlinearCG``.
    """
    if linesearch is None:
        linesearch = scale_by_wolfe_linesearch(curvature=0.1, strong=True, initial_guess="decrease")
    step = optax.scale(-1.0) if learning_rate is None else optax.scale_by_learning_rate(learning_rate)
    scale = scale_by_nonlinear_cg(method, restart_every=restart_every, restart_threshold=restart_threshold)
    return optax.chain(scale, step, linesearch)


def conjugacy(method: str, grad: Any, previous: Any, direction: Any) -> Float[Array, ""]:
    """Return beta. The previous ``direction`` points uphill, so the formulas' d is its negative."""
    change = vectors.difference(grad, previous)
    previous_squared = vectors.dot(previous, previous)
    # d^T y, y the change of the gradient.
    d_y = -vectors.dot(direction, change)
    if method == "fletcher-reeves":
        return vectors.quotient(vectors.dot(grad, grad), previous_squared)
    if method == "polak-ribiere+":
        return jnp.maximum(vectors.quotient(vectors.dot(grad, change), previous_squared), 0)
    if method == "hestenes-stiefel":
        return vectors.quotient(vectors.dot(grad, change), d_y)
    if method == "dai-yuan":
        return vectors.quotient(vectors.dot(grad, grad), d_y)
    ratio = vectors.quotient(vectors.dot(change, change), d_y)
    beta = vectors.quotient(vectors.dot(grad, change) + 2 * ratio * vectors.dot(direction, grad), d_y)
    size = jnp.sqrt(vectors.dot(direction, direction))
    floor = -vectors.quotient(jnp.ones_like(size), size * jnp.minimum(0.01, jnp.sqrt(previous_squared)))
    return jnp.maximum(beta, floor)
