"""First-order methods as named chains: what each link does, and which form of the method it is.

A chain's state is a dict with one entry a link, by the link's name, so that a link can be found, logged or replaced.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.tree_utils import tree_full_like

from jaxgrad._checks import check_number, message

LearningRate = float | jax.Array | optax.Schedule


def sgd(learning_rate: LearningRate) -> optax.GradientTransformationExtraArgs:
    r"""Descend the gradient.

    .. math:: \theta_t = \theta_{t-1} - \eta_t\, g_t

    Args:
      learning_rate: :math:`\eta \ge 0`, or a schedule of the step count.

    Returns:
      An optax chain with the link ``learning_rate``.

    Raises:
      ValueError: ``learning_rate`` is negative or not a number.

    Example:
      >>> import jax.numpy as jnp, jaxgrad
      >>> optimizer = jaxgrad.optimizers.sgd(0.5)
      >>> optimizer.update(jnp.array([2.0]), optimizer.init(jnp.zeros(1)))[0].tolist()
      [-1.0]

    References:
      :cite:p:`robbins1951stochastic`.

    See also:
      ``optax.sgd``, ``keras.optimizers.SGD``, ``torch.optim.SGD``: the same numbers.
    """
    return optax.named_chain(_learning_rate("sgd", learning_rate))


def momentum(
    learning_rate: LearningRate,
    decay: float | jax.Array = 0.9,
    *,
    averaged: bool = False,
    scaled_velocity: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Descend along a running sum of gradients: the heavy ball.

    .. math:: v_t = \mu v_{t-1} + g_t, \qquad \theta_t = \theta_{t-1} - \eta_t v_t

    Args:
      learning_rate: :math:`\eta \ge 0`, or a schedule of the step count.
      decay: :math:`\mu`, in [0, 1).
      averaged: Weight the gradient by :math:`1-\mu`: the velocity is then a mean, and the step :math:`1-\mu` times as
        long. Static.
      scaled_velocity: Keep :math:`v_t = \mu v_{t-1} + \eta_t g_t` and step by :math:`v_t`, the papers' form. The same
        while the learning rate is constant; when it falls, steps already in the velocity keep the length they had.
        Static.

    Returns:
      An optax chain with the links ``momentum`` and ``learning_rate``.

    Raises:
      ValueError: ``learning_rate`` is negative, or ``decay`` outside [0, 1).

    Example:
      >>> import jax.numpy as jnp, jaxgrad
      >>> optimizer = jaxgrad.optimizers.momentum(1.0, 0.5)
      >>> state = optimizer.init(jnp.zeros(()))
      >>> _, state = optimizer.update(jnp.ones(()), state)
      >>> optimizer.update(jnp.ones(()), state)[0].item()
      -1.5

    References:
      :cite:p:`polyak1964some`, with the last step in place of a velocity, and :cite:p:`rumelhart1986learning`,
      equation 9, for networks; :cite:p:`sutskever2013importance`, eqs. 1 and 2, with ``scaled_velocity=True``.

    See also:
      ``optax.sgd(learning_rate, decay)`` and ``torch.optim.SGD(momentum=decay)`` are the default;
      ``torch.optim.SGD(dampening=decay)`` is ``averaged=True``, but for its first step, which torch takes whole;
      ``keras.optimizers.SGD(momentum=decay)`` is ``scaled_velocity=True``.
    """
    return _with_velocity("momentum", learning_rate, decay, False, averaged, scaled_velocity)


def nesterov(
    learning_rate: LearningRate, decay: float | jax.Array = 0.9, *, scaled_velocity: bool = False
) -> optax.GradientTransformationExtraArgs:
    r"""Descend along a running sum of gradients, taken one step ahead.

    .. math:: v_t = \mu v_{t-1} + g_t, \qquad \theta_t = \theta_{t-1} - \eta_t\,(g_t + \mu v_t)

    Args:
      learning_rate: :math:`\eta \ge 0`, or a schedule of the step count.
      decay: :math:`\mu`, in [0, 1).
      scaled_velocity: Keep the learning rate inside the velocity, as in :func:`momentum`. Static.

    Returns:
      An optax chain with the links ``momentum`` and ``learning_rate``.

    Raises:
      ValueError: ``learning_rate`` is negative, or ``decay`` outside [0, 1).

    Example:
      >>> import jax.numpy as jnp, jaxgrad
      >>> optimizer = jaxgrad.optimizers.nesterov(1.0, 0.5)
      >>> optimizer.update(jnp.ones(()), optimizer.init(jnp.zeros(())))[0].item()
      -1.5

    References:
      :cite:p:`nesterov1983method`; :cite:p:`sutskever2013importance`, eqs. 3 and 4, evaluates the gradient ahead, at
      :math:`\theta + \mu v`. In the variable that holds that point, this is the same method.

    See also:
      ``optax.sgd(nesterov=True)`` and ``torch.optim.SGD(nesterov=True)`` are the default;
      ``keras.optimizers.SGD(nesterov=True)`` is ``scaled_velocity=True``.
    """
    return _with_velocity("nesterov", learning_rate, decay, True, False, scaled_velocity)


def adagrad(
    learning_rate: LearningRate,
    initial_accumulator_value: float | jax.Array = 0.1,
    eps: float | jax.Array = 1e-7,
    *,
    eps_in_sqrt: bool = True,
) -> optax.GradientTransformationExtraArgs:
    r"""Divide each entry of the gradient by the root of all its squares so far.

    .. math:: s_t = s_{t-1} + g_t^2, \qquad \theta_t = \theta_{t-1} - \eta_t \frac{g_t}{\sqrt{s_t + \epsilon}}

    Args:
      learning_rate: :math:`\eta \ge 0`, or a schedule of the step count.
      initial_accumulator_value: :math:`s_0 \ge 0`, per entry.
      eps: :math:`\epsilon \ge 0`.
      eps_in_sqrt: False: divide by :math:`\sqrt{s_t} + \epsilon`, the paper's form. Static.

    Returns:
      An optax chain with the links ``root_sum_of_squares`` and ``learning_rate``.

    Raises:
      ValueError: ``learning_rate``, ``initial_accumulator_value`` or ``eps`` is negative.

    Numerics:
      An entry whose gradient has always been 0 does not move, whatever ``eps`` is.

    Example:
      >>> import jax.numpy as jnp, jaxgrad
      >>> optimizer = jaxgrad.optimizers.adagrad(1.0, 0.0, 0.0)
      >>> optimizer.update(jnp.array([2.0, 0.0]), optimizer.init(jnp.zeros(2)))[0].tolist()
      [-1.0, -0.0]

    References:
      :cite:p:`duchi2011adaptive`, figure 1 (diagonal), with ``initial_accumulator_value=0, eps_in_sqrt=False``.

    See also:
      ``optax.adagrad`` and ``keras.optimizers.Adagrad`` are the default; ``torch.optim.Adagrad`` is the paper's form
      with ``eps=1e-10``.
    """
    check_number("adagrad", "initial_accumulator_value", initial_accumulator_value, low=0.0)
    check_number("adagrad", "eps", eps, low=0.0)
    if eps_in_sqrt:
        scale = optax.scale_by_rss(initial_accumulator_value, eps)
    else:
        scale = _scale_by_rss_plus_eps(initial_accumulator_value, eps)
    return optax.named_chain(("root_sum_of_squares", scale), _learning_rate("adagrad", learning_rate))


def adadelta(
    learning_rate: LearningRate = 1.0, rho: float | jax.Array = 0.9, eps: float | jax.Array = 1e-6
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each entry of the gradient by the ratio of the running sizes of its updates and of its gradients.

    .. math::

       s_t &= \rho s_{t-1} + (1-\rho) g_t^2, &
       u_t &= \sqrt{\frac{d_{t-1} + \epsilon}{s_t + \epsilon}}\, g_t, \\
       d_t &= \rho d_{t-1} + (1-\rho) u_t^2, &
       \theta_t &= \theta_{t-1} - \eta_t u_t

    Args:
      learning_rate: :math:`\eta \ge 0`, or a schedule of the step count; the paper has none, so 1.
      rho: Decay of both means, in [0, 1).
      eps: :math:`\epsilon > 0`. It starts the method: the first step is about :math:`\sqrt{\epsilon/(1-\rho)}` long.

    Returns:
      An optax chain with the links ``adadelta`` and ``learning_rate``.

    Raises:
      ValueError: ``learning_rate`` is negative, ``rho`` outside [0, 1), or ``eps`` not positive.

    Example:
      >>> import jax.numpy as jnp, jaxgrad
      >>> optimizer = jaxgrad.optimizers.adadelta()
      >>> round(optimizer.update(jnp.ones(()), optimizer.init(jnp.zeros(())))[0].item(), 5)
      -0.00316

    References:
      :cite:p:`zeiler2012adadelta`, algorithm 1, which uses :math:`\rho = 0.95`.

    See also:
      ``optax.adadelta`` and ``torch.optim.Adadelta``: the same form and defaults (optax has no default learning rate).
      ``keras.optimizers.Adadelta``: the same form with ``learning_rate=0.001, rho=0.95, eps=1e-7``.
    """
    check_number("adadelta", "rho", rho, low=0.0, high=1.0, open_high=True)
    check_number("adadelta", "eps", eps, low=0.0, open_low=True)
    return optax.named_chain(("adadelta", optax.scale_by_adadelta(rho, eps)), _learning_rate("adadelta", learning_rate))


def rmsprop(
    learning_rate: LearningRate,
    decay: float | jax.Array = 0.9,
    eps: float | jax.Array = 1e-8,
    *,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: float | jax.Array | None = None,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Divide each entry of the gradient by its running root mean square.

    .. math::

       s_t = \rho s_{t-1} + (1-\rho) g_t^2, \qquad
       \theta_t = \theta_{t-1} - \eta_t \frac{g_t}{\sqrt{s_t + \epsilon}}

    Args:
      learning_rate: :math:`\eta \ge 0`, or a schedule of the step count.
      decay: :math:`\rho`, in [0, 1).
      eps: :math:`\epsilon > 0`.
      eps_in_sqrt: False: divide by :math:`\sqrt{s_t} + \epsilon`. Static.
      centered: Divide by the running standard deviation, :math:`\sqrt{s_t - m_t^2 + \epsilon}` with :math:`m_t` the
        running mean. Static.
      momentum: Decay of a velocity of the scaled steps, in [0, 1); the learning rate is inside it. None: no velocity.
      nesterov: Take that velocity one step ahead. Static.

    Returns:
      An optax chain with the links ``root_mean_square``, ``learning_rate`` and, with a momentum, ``momentum``.

    Raises:
      ValueError: ``learning_rate`` is negative, ``decay`` or ``momentum`` outside [0, 1), ``eps`` not positive, or
        ``nesterov`` asked for without ``momentum``.

    Numerics:
      The mean starts at 0 and is not corrected, so the first steps are :math:`1/\sqrt{1-\rho}` times too long.

    Example:
      >>> import jax.numpy as jnp, jaxgrad
      >>> optimizer = jaxgrad.optimizers.rmsprop(1.0, 0.75)
      >>> round(optimizer.update(jnp.ones(()), optimizer.init(jnp.zeros(())))[0].item(), 3)
      -2.0

    References:
      :cite:p:`tieleman2012rmsprop`, slide 29; :cite:p:`graves2013generating`, eqs. 38 to 41, for ``centered``.

    See also:
      ``optax.rmsprop`` is the default. ``keras.optimizers.RMSprop``: the same form, with ``eps=1e-7``.
      ``torch.optim.RMSprop`` is ``eps_in_sqrt=False`` with ``decay=0.99``, and leaves the learning rate out of the
      velocity.
    """
    check_number("rmsprop", "decay", decay, low=0.0, high=1.0, open_high=True)
    check_number("rmsprop", "eps", eps, low=0.0, open_low=True)
    if nesterov and momentum is None:
        raise ValueError(
            message("rmsprop", "a momentum with nesterov=True", "momentum=None", "pass momentum=0.9, or leave both out")
        )
    scale = optax.scale_by_stddev if centered else optax.scale_by_rms
    links = [
        ("root_mean_square", scale(decay, eps, eps_in_sqrt=eps_in_sqrt)),
        _learning_rate("rmsprop", learning_rate),
    ]
    if momentum is not None:
        check_number("rmsprop", "momentum", momentum, low=0.0, high=1.0, open_high=True)
        links.append(("momentum", optax.trace(momentum, nesterov)))
    return optax.named_chain(*links)


def adam(
    learning_rate: LearningRate,
    b1: float | jax.Array = 0.9,
    b2: float | jax.Array = 0.999,
    eps: float | jax.Array = 1e-8,
    *,
    nesterov: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Divide a running mean of the gradient by its running root mean square, both corrected for their start at 0.

    .. math::

       m_t &= \beta_1 m_{t-1} + (1-\beta_1) g_t, \qquad
       v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2, \\
       \theta_t &= \theta_{t-1} - \eta_t \frac{m_t/(1-\beta_1^t)}{\sqrt{v_t/(1-\beta_2^t)} + \epsilon}

    Args:
      learning_rate: :math:`\eta \ge 0`, or a schedule of the step count.
      b1: :math:`\beta_1`, in [0, 1).
      b2: :math:`\beta_2`, in [0, 1).
      eps: :math:`\epsilon > 0`, added after the correction.
      nesterov: Take the mean one step ahead (NAdam, without its momentum schedule). Static.

    Returns:
      An optax chain with the links ``adam`` and ``learning_rate``.

    Raises:
      ValueError: ``learning_rate`` is negative, ``b1`` or ``b2`` outside [0, 1), or ``eps`` not positive.

    Numerics:
      An entry whose gradient has always been 0 does not move. The first step is :math:`\eta` long in every entry whose
      gradient is far above ``eps``.

    Example:
      >>> import jax.numpy as jnp, jaxgrad
      >>> optimizer = jaxgrad.optimizers.adam(0.5)
      >>> optimizer.update(jnp.array([100.0, 0.0]), optimizer.init(jnp.zeros(2)))[0].round(3).tolist()
      [-0.5, -0.0]

    References:
      :cite:p:`kingma2015adam`, algorithm 1; :cite:p:`dozat2016incorporating` for ``nesterov``.

    See also:
      ``optax.adam`` and ``torch.optim.Adam``: the same. ``keras.optimizers.Adam`` follows the variant at the end of
      the paper's section 2, with ``eps`` added before the correction: its ``eps`` acts as
      :math:`\epsilon/\sqrt{1-\beta_2^t}` here, 32 times as much at the first step.
    """
    check_number("adam", "b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("adam", "b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("adam", "eps", eps, low=0.0, open_low=True)
    scale = optax.scale_by_adam(b1, b2, eps, nesterov=nesterov)
    return optax.named_chain(("adam", scale), _learning_rate("adam", learning_rate))


class _RootSumOfSquaresState(NamedTuple):
    sum_of_squares: Any


def _scale_by_rss_plus_eps(initial_accumulator_value: Any, eps: Any) -> optax.GradientTransformation:
    """The paper's Adagrad; ``optax.scale_by_rss`` adds ``eps`` inside the root only."""

    def init(params: optax.Params) -> _RootSumOfSquaresState:
        return _RootSumOfSquaresState(tree_full_like(params, initial_accumulator_value))

    def scaled(gradient: jax.Array, total: jax.Array) -> jax.Array:
        denominator = jnp.sqrt(total) + eps
        return jnp.where(total > 0, gradient / jnp.where(total > 0, denominator, 1), 0)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        squares = jax.tree.map(lambda g, s: s + jnp.real(g * jnp.conj(g)), updates, state.sum_of_squares)
        return jax.tree.map(scaled, updates, squares), _RootSumOfSquaresState(squares)

    return optax.GradientTransformation(init, update)


def _with_velocity(
    function: str, learning_rate: LearningRate, decay: Any, ahead: bool, averaged: bool, scaled_velocity: bool
) -> optax.GradientTransformationExtraArgs:
    check_number(function, "decay", decay, low=0.0, high=1.0, open_high=True)
    velocity = optax.trace(decay, ahead)
    if averaged:
        velocity = optax.chain(optax.scale(1 - decay), velocity)
    links = [("momentum", velocity), _learning_rate(function, learning_rate)]
    return optax.named_chain(*(reversed(links) if scaled_velocity else links))


def _learning_rate(function: str, learning_rate: LearningRate) -> tuple[str, optax.GradientTransformation]:
    check_number(function, "learning_rate", learning_rate, low=0.0, or_schedule=True)
    return "learning_rate", optax.scale_by_learning_rate(learning_rate)
