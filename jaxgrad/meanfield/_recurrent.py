"""What a recurrent cell at initialization does to a gradient, a step back in time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax.nn import sigmoid

from jaxgrad._checks import message
from jaxgrad.meanfield._fixed_points import settle
from jaxgrad.meanfield._kernels import Kernel, finite, number

_MAX_STEPS = 10_000
_TOL = 1e-12

Cell = Literal["rnn", "lstm", "gru"]


class RecurrentSignal(NamedTuple):
    """What one step of a recurrent cell does, once its state has settled.

    Attributes:
      gain: Factor by which a step multiplies the mean square of the gradient of the whole state.
      carry_gain: The same along the path that only the forget gate acts on: the cell of an LSTM, the kept part of a
        GRU's state. 0 for a plain cell, which has none.
      forget: Mean of that gate.
      q: Mean square of a unit of the hidden state.
    """

    gain: float
    carry_gain: float
    forget: float
    q: float


def recurrent_signal(
    cell: Cell,
    *,
    weight_variance: float,
    bias_variance: float = 0.0,
    input_variance: float = 0.0,
    forget_bias: float = 0.0,
    activation: str = "tanh",
) -> RecurrentSignal:
    r"""Compute the growth of gradients a step back in time through a recurrent cell with random weights.

    With preactivations of variance :math:`v = \sigma_w^2 \operatorname{E}[h^2] + \sigma_b^2 + \sigma_x^2` and gates
    :math:`\sigma(\cdot)`, primes for derivatives:

    - ``"rnn"``, :math:`h' = \phi(W h + x)`: the gain is :math:`\sigma_w^2 \operatorname{E}[\phi'^2]`;
    - ``"lstm"``, :math:`c' = f c + i g,\ h' = o \tanh c'`: the largest eigenvalue of the mean squares of the four
      derivatives of :math:`(c', h')` by :math:`(c, h)`;
    - ``"gru"``, :math:`h' = (1 - z)\, n + z h,\ n = \tanh(r\, W h + x)`:
      :math:`\operatorname{E} z^2 + \sigma_w^2 \left( \operatorname{E} z'^2 \operatorname{E}[n^2 + h^2] +
      \operatorname{E}(1 - z)^2 \operatorname{E} n'^2\, \operatorname{E}[r^2 + \sigma_w^2 h^2 r'^2] \right)`.

    Args:
      cell: ``"rnn"``, ``"lstm"`` or ``"gru"``.
      weight_variance: :math:`\sigma_w^2` of the recurrent weights: variance times the size of the state, at least 0.
      bias_variance: Variance of the biases, at least 0.
      input_variance: Variance :math:`\sigma_x^2` of what the input adds to a preactivation, at least 0.
      forget_bias: Mean of the bias of an LSTM's forget gate f, or of a GRU's update gate z, which keeps the state.
      activation: The nonlinearity of ``"rnn"``; the gated cells have tanh.

    Returns:
      ``RecurrentSignal(gain, carry_gain, forget, q)``, of Python floats.

    Raises:
      TypeError: A number is traced.
      ValueError: ``cell`` is unknown, a number is out of range, or the state grows without bound.

    Numerics:
      The cell's value is taken as normal and the weights as drawn anew at each step, the usual approximation: a few
      percent for gated cells of width 500 after many steps. The product of forget gates over T steps is
      ``carry_gain**(T / 2)`` in root mean square.

    Example:
      >>> signal = recurrent_signal("lstm", weight_variance=0.0, forget_bias=1.0)
      >>> f"{signal.carry_gain ** 50:.2e}"
      '2.48e-14'

    References:
      :cite:p:`chen2018dynamical`, for gating; :cite:p:`gilboa2019dynamical`, for LSTM and GRU;
      :cite:p:`hochreiter1997long`, whose LSTM has no forget gate yet; :cite:p:`pascanu2013difficulty`;
      :cite:p:`tallec2018can`, for the forget bias.

    See also:
      :func:`jaxgrad.spectra.lyapunov_exponents`, which measures it; ``jaxgrad.meanfield.propagate``.
    """
    weight_variance = finite("recurrent_signal", "weight_variance", weight_variance)
    extra = finite("recurrent_signal", "bias_variance", bias_variance)
    extra += finite("recurrent_signal", "input_variance", input_variance)
    forget_bias = number("recurrent_signal", "forget_bias", forget_bias, -math.inf, math.inf)
    if cell == "rnn":
        return _plain(Kernel("recurrent_signal", activation), weight_variance, extra)
    if cell == "lstm":
        return _lstm(weight_variance, extra, forget_bias)
    if cell == "gru":
        return _gru(weight_variance, extra, forget_bias)
    raise ValueError(message("recurrent_signal", "cell 'rnn', 'lstm' or 'gru'", repr(cell), "take one of the three"))


def _plain(kernel: Kernel, weight_variance: float, extra: float) -> RecurrentSignal:
    q = settle(kernel, weight_variance, extra)
    if q == math.inf:
        raise _growing()
    return RecurrentSignal(weight_variance * kernel.squared_slope(q), 0.0, 0.0, kernel.variance(q)[0])


def _lstm(weight_variance: float, extra: float, forget_bias: float) -> RecurrentSignal:
    gate, forget, tanh = _gate(0.0), _gate(forget_bias), _tanh()

    def cell_square(square: float) -> float:
        v = weight_variance * square + extra
        return gate.moments(v).square * tanh.moments(v).square / (1 - forget.moments(v).square)

    def step(square: float) -> float:
        v = weight_variance * square + extra
        return gate.moments(v).square * tanh.moments(cell_square(square)).square

    square = _settle(step)
    cell = cell_square(square)
    v = weight_variance * square + extra
    i, f, g, out = gate.moments(v), forget.moments(v), tanh.moments(v), tanh.moments(cell)
    keep = f.square
    enter = weight_variance * (f.slope_square * cell + i.slope_square * g.square + i.square * g.slope_square)
    leave = i.square * out.slope_square
    within = leave * enter + weight_variance * i.slope_square * out.square
    trace, determinant = keep + within, keep * within - enter * leave * keep
    gain = trace / 2 + math.sqrt(max(trace**2 / 4 - determinant, 0.0))
    return RecurrentSignal(gain, keep, f.mean, square)


def _gru(weight_variance: float, extra: float, forget_bias: float) -> RecurrentSignal:
    reset, update, leave, tanh = _gate(0.0), _gate(forget_bias), _gate(-forget_bias), _tanh()

    def candidate(square: float) -> float:
        return weight_variance * square * reset.moments(weight_variance * square + extra).square + extra

    def step(square: float) -> float:
        v = weight_variance * square + extra
        # 1 - σ(x) = σ(-x): the gate that lets in has the negative bias.
        new = leave.moments(v).square * tanh.moments(candidate(square)).square
        # Where what enters balances what is lost: one step at a time, a gate that keeps long would take long.
        return new / (1 - update.moments(v).square)

    square = _settle(step)
    v = weight_variance * square + extra
    r, z, n = reset.moments(v), update.moments(v), tanh.moments(candidate(square))
    through = r.square + weight_variance * square * r.slope_square
    mixing = z.slope_square * (n.square + square) + leave.moments(v).square * n.slope_square * through
    return RecurrentSignal(z.square + weight_variance * mixing, z.square, z.mean, square)


def _settle(step: Callable[[float], float]) -> float:
    """Return where the mean square of the state settles, from 1."""
    square = 1.0
    for _ in range(_MAX_STEPS):
        after = step(square)
        if not after < 1e12:
            raise _growing()
        if abs(after - square) <= _TOL * max(after, 1e-300) or after < 1e-30:
            return after
        square = after
    return square


def _growing() -> ValueError:
    remedy = "lower weight_variance, or take an activation that saturates"
    return ValueError(message("recurrent_signal", "a state that settles", "one that grows without bound", remedy))


@functools.lru_cache(maxsize=64)
def _gate(bias: float) -> Kernel:
    return Kernel("recurrent_signal", lambda x: sigmoid(x + bias))


@functools.cache
def _tanh() -> Kernel:
    return Kernel("recurrent_signal", jnp.tanh)
