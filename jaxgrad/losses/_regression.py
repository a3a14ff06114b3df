"""Losses for real targets, one value an entry; :func:`jaxgrad.losses.reduce` takes their mean."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

from jaxgrad.losses._inputs import check_positive, concrete, elementwise


def squared_error(
    predictions: Float[ArrayLike, "*#shape"],
    targets: Shaped[ArrayLike, "*#shape"],
    *,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the squared error of each entry.

    .. math:: (predictions - targets)^2

    No ½, and no mean.

    Args:
      predictions: Floating, of any shape, or a Python number.
      targets: Real, of the same shape. A scalar on either side stands for every entry; nothing else is broadcast.
      where: True for the entries that count; a scalar, or of the same rank with each axis of the same length or 1.
        ``None``: all.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), unreduced. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, or ``where`` not boolean.
      ValueError: The shapes differ, or that of ``where`` does not fit.

    Numerics:
      The gradient for ``predictions`` is twice the error: unbounded, so one outlier can make it explode. Where
      ``where`` is false, the value is 0 and both gradients are 0, whatever stands there. An overflow is inf; an
      infinite prediction of the same infinite target is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> squared_error(jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])).tolist()
      [1.0, 4.0]

    See also:
      ``optax.squared_error``, which this calls; ``optax.l2_loss`` has a ½. Keras ``mean_squared_error`` takes targets
      first and the mean of the last axis; PyTorch ``mse_loss`` the mean of all, and both broadcast (n,) with (n, 1).
    """
    return elementwise("squared_error", optax.squared_error, predictions, targets, where, dtype)


def absolute_error(
    predictions: Float[ArrayLike, "*#shape"],
    targets: Shaped[ArrayLike, "*#shape"],
    *,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the absolute error of each entry.

    .. math:: |predictions - targets|

    Args:
      predictions: Floating, of any shape, or a Python number.
      targets: Real, of the same shape, or a scalar on either side.
      where: True for the entries that count; as in :func:`squared_error`.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), unreduced. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, or ``where`` not boolean.
      ValueError: The shapes differ, or that of ``where`` does not fit.

    Numerics:
      The gradient for ``predictions`` is the sign of the error, bounded by 1 and 0 at a tie. Masked: value and
      gradients 0. An infinite prediction of the same infinite target is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> absolute_error(jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])).tolist()
      [1.0, 2.0]

    See also:
      Keras ``mean_absolute_error`` takes targets first and the mean of the last axis; PyTorch ``l1_loss`` the mean of
      all. optax has none.
    """
    return elementwise("absolute_error", lambda p, t: _absolute(p - t), predictions, targets, where, dtype)


def absolute_percentage_error(
    predictions: Float[ArrayLike, "*#shape"],
    targets: Shaped[ArrayLike, "*#shape"],
    *,
    eps: float = 1e-7,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the absolute error of each entry in percent of its target.

    .. math:: 100 \, \frac{|predictions - targets|}{\max(|targets|, eps)}

    Args:
      predictions: Floating, of any shape, or a Python number.
      targets: Real, of the same shape, or a scalar on either side.
      eps: Floor of the denominator, positive, in the units of ``targets``; 1e-7 as in Keras. Raise it to the size below
        which a target means nothing. Static.
      where: True for the entries that count; as in :func:`squared_error`.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), in percent, unreduced. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, or ``where`` not boolean.
      ValueError: The shapes differ, that of ``where`` does not fit, or ``eps`` is not positive and finite.

    Numerics:
      At a zero target the value is ``100 |predictions| / eps``, and 0 with gradient 0 for a prediction of 0. The
      gradient for ``predictions`` is bounded by ``100 / |targets|``, at most ``100 / eps``: a single zero target
      takes over a mean. Masked: value and gradients 0. An infinite target is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> absolute_percentage_error(jnp.array([1.5, 2.0]), jnp.array([1.0, 4.0])).tolist()
      [50.0, 50.0]

    See also:
      Keras ``mean_absolute_percentage_error``, the mean of the last axis, targets first.
      ``sklearn.metrics.mean_absolute_percentage_error`` is a fraction, with a floor of 2e-16. optax and PyTorch have
      none.
    """
    eps = check_positive("absolute_percentage_error", "eps", eps)

    def formula(p: Array, t: Array) -> Array:
        return 100 * (_absolute(p - t) / jnp.maximum(jnp.abs(t), eps))

    return elementwise("absolute_percentage_error", formula, predictions, targets, where, dtype)


def squared_log_error(
    predictions: Float[ArrayLike, "*#shape"],
    targets: Shaped[ArrayLike, "*#shape"],
    *,
    eps: float = 1e-7,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the squared error of the logarithm of one plus each entry.

    .. math:: (\log(1 + predictions) - \log(1 + targets))^2

    Natural logarithm. Each ``1 + x`` is at least ``eps``.

    Args:
      predictions: Floating, of any shape, or a Python number; above -1.
      targets: Real, of the same shape, or a scalar on either side; above -1.
      eps: Floor of ``1 + x``, positive and below 1. Static.
      where: True for the entries that count; as in :func:`squared_error`.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), unreduced. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, or ``where`` not boolean.
      ValueError: The shapes differ, that of ``where`` does not fit, or ``eps`` is not between 0 and 1.

    Numerics:
      A value of -1 or less counts as ``eps - 1``, with gradient 0: such a prediction does not learn. The gradient for
      ``predictions`` is at most ``2 |log difference| / (1 + predictions)``: small for large predictions, and up to
      ``2 |log difference| / eps`` near -1. Small values keep their digits. Masked: value and gradients 0.

    Example:
      >>> import jax.numpy as jnp
      >>> [round(v, 4) for v in squared_log_error(jnp.array([1.0, -5.0]), jnp.array([3.0, -5.0])).tolist()]
      [0.4805, 0.0]

    See also:
      Keras ``mean_squared_logarithmic_error``, the mean of the last axis, targets first: it takes every value below
      1e-7 for 1e-7, so that all negative ones are alike. scikit-learn refuses values of -1 and less. optax and
      PyTorch have none.
    """
    eps = check_positive("squared_log_error", "eps", eps, below=1.0)

    def formula(p: Array, t: Array) -> Array:
        p, t = jnp.maximum(p, eps - 1), jnp.maximum(t, eps - 1)
        # The logarithm of the ratio keeps the digits that a difference of logarithms of close values loses.
        above = p >= t
        ratio = jnp.where(above, p - t, t - p) / jnp.maximum(1 + jnp.where(above, t, p), eps)
        return jnp.square(jnp.log1p(ratio))

    return elementwise("squared_log_error", formula, predictions, targets, where, dtype)


def huber_loss(
    predictions: Float[ArrayLike, "*#shape"],
    targets: Shaped[ArrayLike, "*#shape"],
    *,
    delta: Float[ArrayLike, ""] = 1.0,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the Huber loss of each entry: quadratic near zero, linear far from it.

    .. math:: \begin{cases} \frac{1}{2} e^2 & |e| \le delta \\ delta \, |e| - \frac{1}{2} delta^2 & |e| > delta
       \end{cases} \qquad e = predictions - targets

    Args:
      predictions: Floating, of any shape, or a Python number.
      targets: Real, of the same shape, or a scalar on either side.
      delta: Where the quadratic ends, positive and finite, in the units of ``targets``.
      where: True for the entries that count; as in :func:`squared_error`.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), unreduced. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, or ``where`` not boolean.
      ValueError: The shapes differ, that of ``where`` does not fit, or ``delta`` is not positive and finite (unless
        traced, where it cannot be seen).

    Numerics:
      The gradient for ``predictions`` is the error clipped to ±\ ``delta``, also at an infinite error, whose value is
      inf. Masked: value and gradients 0.

    Example:
      >>> import jax.numpy as jnp
      >>> huber_loss(jnp.array([0.5, 3.0]), jnp.array([0.0, 0.0])).tolist()
      [0.125, 2.5]

    References:
      :cite:p:`huber1964robust`, where it is the log-likelihood of the least favourable contaminated normal.
      :cite:p:`girshick2015fast`, equation 3, names it smooth L1, with ``delta=1``; :cite:p:`mnih2015human` clips errors
      to ±1 in the gradient, which is that too.

    See also:
      ``optax.huber_loss``, which this calls, and which takes a ``delta`` of 0 or less. Keras ``huber`` takes targets
      first and the mean of the last axis. PyTorch ``huber_loss`` is the same with a mean; its ``smooth_l1_loss`` is
      this divided by ``beta = delta``, so its gradient is bounded by 1.
    """
    known = concrete(delta)
    if known is not None:
        check_positive("huber_loss", "delta", known)

    def formula(p: Array, t: Array) -> Array:
        return optax.huber_loss(p, t, delta=jnp.asarray(delta).astype(p.dtype))

    return elementwise("huber_loss", formula, predictions, targets, where, dtype)


def log_cosh(
    predictions: Float[ArrayLike, "*#shape"],
    targets: Shaped[ArrayLike, "*#shape"],
    *,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the logarithm of the hyperbolic cosine of each error.

    .. math:: \log \cosh(predictions - targets)

    Natural logarithm. About ½ e² for a small error e and ``|e| - log 2`` for a large one.

    Args:
      predictions: Floating, of any shape, or a Python number.
      targets: Real, of the same shape, or a scalar on either side.
      where: True for the entries that count; as in :func:`squared_error`.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), unreduced. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, or ``where`` not boolean.
      ValueError: The shapes differ, or that of ``where`` does not fit.

    Numerics:
      Within a few roundings at every size of the error; below 1e-19 its square leaves float32, and the value is 0.
      The gradient for ``predictions`` is ``tanh`` of the error, bounded by 1, also at an infinite error, whose value
      is inf. Masked: value and gradients 0.

    Example:
      >>> import jax.numpy as jnp
      >>> [f"{v:.3e}" for v in log_cosh(jnp.array([1e-4, 1.0, 1e30]), 0.0).tolist()]
      ['5.000e-09', '4.338e-01', '1.000e+30']

    See also:
      ``optax.log_cosh`` loses the digits of small errors: 0 at 1e-4. Keras ``log_cosh`` does too; it takes targets
      first and the mean of the last axis. PyTorch has none.
    """
    return elementwise("log_cosh", lambda p, t: _log_cosh(p - t), predictions, targets, where, dtype)


def _absolute(error: Array) -> Array:
    # By its sign: the derivative of jnp.abs at 0 depends on the version of JAX.
    return error * jnp.sign(error)


@jax.custom_jvp
def _log_cosh(error: Array) -> Array:
    size = jnp.abs(error)
    small = size < 1
    # log(1 + x), with cosh(size) - 1 as x where the error is small, and exp(-2 size) beside size - log 2 elsewhere.
    rest = jnp.where(small, _cosh_minus_one(jnp.minimum(size, 1)), jnp.exp(-2 * size))
    return jnp.log1p(rest) + jnp.where(small, 0, size - math.log(2))


@_log_cosh.defjvp
def _log_cosh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _log_cosh(*primals), jnp.tanh(primals[0]) * tangents[0]


def _cosh_minus_one(x: Array) -> Array:
    """The Taylor series, to float64's precision up to 1; a difference of exponentials would lose digits near 0."""
    square = x * x
    total = jnp.ones_like(x)
    for power in range(18, 2, -2):
        total = 1 + square / (power * (power - 1)) * total
    return square / 2 * total
