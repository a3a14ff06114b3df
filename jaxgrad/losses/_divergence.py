"""Losses between distributions given as probabilities, between rates and counts, and between directions."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

from jaxgrad._norms import units_of_sums
from jaxgrad.losses._inputs import check_positive, elementwise, rowwise, times


def kl_divergence(
    log_predictions: Float[ArrayLike, "*shape"],
    targets: Shaped[ArrayLike, "*shape"],
    *,
    axis: int = -1,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the Kullback-Leibler divergence of predicted distributions from target distributions.

    .. math:: \sum_j targets_j \, (\log targets_j - log\_predictions_j)

    Natural logarithm, so nats; a sum over ``axis``, no mean.

    Args:
      log_predictions: Logarithms of probabilities, of shape (..., n): the first argument is a log. From logits,
        ``jax.nn.log_softmax``.
      targets: Probabilities, not logarithms, of the same shape; nothing is normalised.
      axis: The axis of the distribution. Static.
      where: True for the rows that count, of shape (...), or for the entries that do, of the rank of ``targets``;
        axes of length 1 stand for all. ``None``: all.
      dtype: Floating dtype of the result. ``None``: that of ``log_predictions``. Static.

    Returns:
      Divergences of shape (...), one a row. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``log_predictions`` or ``dtype`` is not floating, ``where`` not boolean, or ``axis`` not an integer.
      ValueError: The shapes differ, that of ``where`` does not fit, or the axis is missing or empty.

    Numerics:
      A target of 0 takes no part: value and both gradients 0, also beside a log of -inf. A log of -inf under a positive
      target gives inf. The gradient for ``log_predictions`` is ``-targets``, of norm at most 1, finite everywhere. Each
      masked entry has value and gradients 0. A negative target is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> round(kl_divergence(jnp.log(jnp.array([0.5, 0.5])), jnp.array([1.0, 0.0])).item(), 4)
      0.6931

    References:
      :cite:p:`kullback1951information`, the mean information for discrimination.

    See also:
      ``optax.kl_divergence``, whose gradient for a target of 0 is NaN, and its value beside a log of -inf. Keras
      ``kl_divergence`` takes targets first, probabilities on both sides, and clips them to 1e-7; PyTorch ``kl_div``
      takes a log first as here, and means over every entry by default. ``scipy.special.rel_entr``.
    """

    def formula(log_q: Array, t: Array) -> Array:
        return jnp.sum(_relative_entropy(log_q, t), axis=-1)

    return rowwise("kl_divergence", formula, log_predictions, targets, where, dtype, axis)


def categorical_cross_entropy(
    predictions: Float[ArrayLike, "*shape"],
    targets: Shaped[ArrayLike, "*shape"],
    *,
    axis: int = -1,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the cross-entropy of target distributions with predicted probabilities.

    .. math:: - \sum_j targets_j \, \log predictions_j

    Natural logarithm, so nats; a sum over the classes, no mean.

    Args:
      predictions: Probabilities of shape (..., classes), floating; not normalised here. From logits, use
        :func:`jaxgrad.losses.softmax_cross_entropy`, which keeps more digits.
      targets: Probabilities of the same shape, such as one-hot rows.
      axis: The axis of the classes. Static.
      where: True for the rows that count, of shape (...), or for the classes that do, of the rank of ``predictions``;
        axes of length 1 stand for all. ``None``: all.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), one a row. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, ``where`` not boolean, or ``axis`` not an integer.
      ValueError: The shapes differ, that of ``where`` does not fit, or the axis is missing or empty.

    Numerics:
      A probability of 0 costs nothing under a target of 0, with gradients 0, and inf under another, with gradient -inf.
      The gradient for ``predictions`` is ``-targets / predictions``: finite where the value is, without a bound. A
      negative probability is NaN. Masked: value and gradients 0.

    Example:
      >>> import jax.numpy as jnp
      >>> round(categorical_cross_entropy(jnp.array([0.25, 0.75, 0.0]), jnp.array([1.0, 0.0, 0.0])).item(), 4)
      1.3863

    See also:
      Keras ``categorical_crossentropy``, targets first: it divides the probabilities by their sum and clips them to
      1e-7, so its largest value is 16.1. PyTorch ``nll_loss`` takes logarithms; optax has none from probabilities.
    """

    def formula(p: Array, t: Array) -> Array:
        return 0 - jnp.sum(t * jnp.log(jnp.where((t == 0) & (p == 0), 1, p)), axis=-1)

    return rowwise("categorical_cross_entropy", formula, predictions, targets, where, dtype, axis)


def binary_cross_entropy(
    predictions: Float[ArrayLike, "*#shape"],
    targets: Shaped[ArrayLike, "*#shape"],
    *,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the cross-entropy of each binary target with a predicted probability.

    .. math:: - targets \, \log predictions - (1 - targets) \, \log(1 - predictions)

    Natural logarithm, so nats.

    Args:
      predictions: Probabilities, 0 to 1, floating, of any shape, or a Python number. From logits, use
        :func:`jaxgrad.losses.sigmoid_binary_cross_entropy`, which keeps more digits.
      targets: Probabilities, 0 to 1, or booleans, of the same shape, or a scalar on either side.
      where: True for the entries that count; as in :func:`poisson_loss`.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), unreduced. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, or ``where`` not boolean.
      ValueError: The shapes differ, or that of ``where`` does not fit.

    Numerics:
      A probability of 0 or 1 gives 0 where it is right and inf where it is wrong. The gradient for ``predictions`` is
      ``(1 - targets) / (1 - predictions) - targets / predictions``: finite where the value is, ±inf where the value is
      inf, without a bound. Outside 0 to 1 the value is NaN. Masked: value and gradients 0.

    Example:
      >>> import jax.numpy as jnp
      >>> [round(v, 4) for v in binary_cross_entropy(jnp.array([0.5, 1.0, 0.0]), jnp.array([1, 1, 1])).tolist()]
      [0.6931, 0.0, inf]

    See also:
      Keras ``binary_crossentropy``, targets first, the mean of the last axis: it clips probabilities to 1e-7, so its
      largest value is 16.1. PyTorch ``binary_cross_entropy`` clips the logarithms at -100. optax has none from
      probabilities.
    """

    def formula(p: Array, t: Array) -> Array:
        yes = jnp.log(jnp.where((t == 0) & (p == 0), 1, p))
        no = jnp.log1p(-jnp.where((t == 1) & (p == 1), 0, p))
        return 0 - (t * yes + (1 - t) * no)

    return elementwise("binary_cross_entropy", formula, predictions, targets, where, dtype)


def poisson_loss(
    predictions: Float[ArrayLike, "*#shape"],
    targets: Shaped[ArrayLike, "*#shape"],
    *,
    log_input: bool = True,
    eps: float = 1e-7,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the negative log-likelihood of counts under Poisson rates, without the term of the targets alone.

    .. math:: \exp(predictions) - targets \cdot predictions

    With ``log_input=False``, ``predictions - targets * log(predictions)``. Natural logarithm, so nats.

    Args:
      predictions: Logarithms of the rates, floating, of any shape, or a Python number; the rates themselves with
        ``log_input=False``.
      targets: Counts, 0 or more, of the same shape, or a scalar on either side.
      log_input: Whether ``predictions`` are logarithms: every number is then a valid prediction. Static.
      eps: With ``log_input=False``, floor of the rate inside the logarithm, positive. Static.
      where: True for the entries that count; a scalar, or of the same rank with each axis of the same length or 1.
        ``None``: all.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), unreduced. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, or ``where`` not boolean.
      ValueError: The shapes differ, that of ``where`` does not fit, or ``eps`` is not positive and finite.

    Numerics:
      The gradient for ``predictions`` is ``exp(predictions) - targets``: it grows without bound, and from 89 on value
      and gradient are inf. At -inf the value is 0 beside a count of 0, otherwise inf. With ``log_input=False``, a
      rate of 0 or less has the value ``-targets * log(eps)`` and gradient 0 (½ at exactly 0): it does not learn,
      which is why logs are the default. Masked: value and gradients 0.

    Example:
      >>> import jax.numpy as jnp
      >>> [round(v, 4) for v in poisson_loss(jnp.log(jnp.array([1.0, 2.0])), jnp.array([0.0, 2.0])).tolist()]
      [1.0, 0.6137]

    See also:
      PyTorch ``poisson_nll_loss``, with the same default and a mean; its ``eps`` is added to the rate, and
      ``full=True`` adds Stirling's term. Keras ``poisson`` takes targets first, rates rather than logs, and the mean of
      the last axis. optax has none.
    """
    eps = check_positive("poisson_loss", "eps", eps)

    def of_log(p: Array, t: Array) -> Array:
        # The exponential wins over the line.
        return jnp.exp(p) - times(t, jnp.where(p == jnp.inf, 0, p))

    def of_rate(p: Array, t: Array) -> Array:
        return jnp.maximum(p, 0) - t * jnp.log(jnp.clip(p, eps, float(jnp.finfo(p.dtype).max)))

    return elementwise("poisson_loss", of_log if log_input else of_rate, predictions, targets, where, dtype)


def cosine_proximity(
    predictions: Float[ArrayLike, "*shape"],
    targets: Shaped[ArrayLike, "*shape"],
    *,
    axis: int = -1,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the negative cosine of the angle between predicted and target vectors.

    .. math:: - \frac{\sum_j predictions_j \, targets_j}{|predictions|_2 \, |targets|_2}

    A loss: -1 for the same direction, 0 for a right angle, 1 for opposite directions.

    Args:
      predictions: Vectors of shape (..., n), floating.
      targets: Vectors of the same shape.
      axis: The axis of the vectors. Static.
      where: True for the rows that count, of shape (...), or for the entries that do, of the rank of ``targets``;
        axes of length 1 stand for all. ``None``: all.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), one a row, within [-1, 1]. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, ``where`` not boolean, or ``axis`` not an integer.
      ValueError: The shapes differ, that of ``where`` does not fit, or the axis is missing or empty.

    Numerics:
      A zero vector on either side gives 0, with gradient 0 for both. Rows whose squares leave the
      dtype are scaled and read again, so nothing overflows or underflows; infinite entries outweigh all finite ones,
      with gradient 0. The gradient for ``predictions`` has norm ``|sin(angle)| / |predictions|``: at most ``1 /
      |predictions|``, so small vectors have large gradients. Each masked entry has value and gradients 0.

    Example:
      >>> import jax.numpy as jnp
      >>> cosine_proximity(jnp.array([[3.0, 0.0], [0.0, 0.0]]), jnp.array([[2.0, 0.0], [1.0, 0.0]])).tolist()
      [-1.0, 0.0]

    See also:
      Keras 2 ``cosine_proximity``, Keras 3 ``cosine_similarity`` with the same sign, targets first.
      ``optax.cosine_distance`` is 1 plus this, and NaN at a zero vector (with ``epsilon``, its gradient there is huge).
      PyTorch ``cosine_similarity`` has the opposite sign, and ``cosine_embedding_loss`` is 1 plus this.
    """

    def formula(p: Array, t: Array) -> Array:
        return 0 - _cosine(p, t)

    return rowwise("cosine_proximity", formula, predictions, targets, where, dtype, axis)


@jax.custom_jvp
def _relative_entropy(log_q: Array, t: Array) -> Array:
    return jnp.where(t == 0, 0, t * (jnp.log(t) - log_q))


def _relative_entropy_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Any]:
    log_q, t = primals
    by_log, by_target = (None if isinstance(tangent, SymbolicZero) else tangent for tangent in tangents)
    tangent = jnp.zeros_like(t) if by_log is None else -t * by_log
    if by_target is not None:
        present = t != 0
        slope = jnp.log(jnp.where(present, t, 1)) + 1 - log_q
        tangent = tangent + by_target * jnp.where(present, slope, 0)
    return _relative_entropy(log_q, t), tangent


_relative_entropy.defjvp(_relative_entropy_jvp, symbolic_zeros=True)


class _Angles(NamedTuple):
    cosine: Array
    finite: Array
    units: tuple[Array, Array]
    inverse_norms: tuple[Array, Array]


@jax.custom_jvp
def _cosine(p: Array, t: Array) -> Array:
    return _angles(p, t).cosine


def _angles(p: Array, t: Array) -> _Angles:
    """Measure the angle of each row from one read; if squares leave the dtype, rows are scaled and read again."""

    def sums(p: Array, t: Array) -> tuple[Array, Array, Array]:
        return jnp.sum(p * p, axis=-1), jnp.sum(t * t, axis=-1), jnp.sum(p * t, axis=-1)

    def again(p: Array, t: Array) -> tuple[tuple[Array, Array, Array], Array]:
        finite = jnp.all(jnp.isfinite(p) & jnp.isfinite(t), axis=-1)
        return sums(_scaled(p, units[0]), _scaled(t, units[1])), finite

    plain = sums(p, t)
    units = units_of_sums(plain[0], p.shape[-1]), units_of_sums(plain[1], p.shape[-1])
    safe = (units[0] == 1) & (units[1] == 1)
    (p_p, t_t, p_t), finite = jax.lax.cond(jnp.all(safe), lambda *_: (plain, safe), again, p, t)
    inverses = _inverse_root(p_p), _inverse_root(t_t)
    # Rounding may pass 1.
    return _Angles(jnp.clip(p_t * inverses[0] * inverses[1], -1, 1), finite, units, inverses)


def _cosine_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Any]:
    cosine, finite, units, inverses = _angles(*primals)
    unit_vectors = [
        jnp.where(finite[..., None], vectors * unit[..., None] * inverse[..., None], 0)
        for vectors, unit, inverse in zip(primals, units, inverses, strict=True)
    ]
    change = jnp.zeros_like(cosine)
    for own, other, unit, inverse, tangent in zip(
        unit_vectors, unit_vectors[::-1], units, inverses, tangents, strict=True
    ):
        if not isinstance(tangent, SymbolicZero):
            # Below the smallest normal number the inverse overflows: such a vector does not learn.
            slope = jnp.where(finite & (unit * inverse < jnp.inf), unit * inverse, 0)
            change += jnp.sum((other - cosine[..., None] * own) * slope[..., None] * tangent, axis=-1)
    return cosine, change


_cosine.defjvp(_cosine_jvp, symbolic_zeros=True)


def _scaled(vectors: Array, units: Array) -> Array:
    """Multiply rows by their units, which the cosine does not notice; infinite entries become ±1 beside zeros."""
    infinite = jnp.isinf(vectors)
    beside = jnp.any(infinite, axis=-1, keepdims=True)
    return jnp.where(beside, jnp.where(infinite, jnp.sign(vectors), 0), vectors * units[..., None])


def _inverse_root(squares: Array) -> Array:
    return jnp.where(squares == 0, 0, jax.lax.rsqrt(jnp.where(squares == 0, 1, squares)))
