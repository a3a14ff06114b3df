"""Losses for classes, from scores: margins, and the cross-entropies of logits."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Integer, Real, Shaped

from jaxgrad._checks import message
from jaxgrad.losses._inputs import (
    check_axis,
    check_dtype,
    check_row_mask,
    computing_dtype,
    concrete,
    elementwise,
    floating,
    integers,
    rowwise,
    times,
)


def hinge_loss(
    predictions: Float[ArrayLike, "*#shape"],
    targets: Real[ArrayLike, "*#shape"],
    *,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the hinge loss of each score against its sign.

    .. math:: \max(0, \; 1 - predictions \cdot targets)

    Args:
      predictions: Scores, floating, of any shape, or a Python number.
      targets: -1 or 1, of the same shape, or a scalar on either side. Labels 0 and 1 become ``2 * targets - 1``.
      where: True for the entries that count; a scalar, or of the same rank with each axis of the same length or 1.
        ``None``: all.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), unreduced. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, ``targets`` are booleans, or ``where`` is not boolean.
      ValueError: The shapes differ, or that of ``where`` does not fit.

    Numerics:
      The gradient for ``predictions`` is ``-targets`` inside the margin, 0 outside and half of it on the edge:
      bounded by 1. Infinite scores give 0 or inf. Masked: value and gradients 0.

    Example:
      >>> import jax.numpy as jnp
      >>> hinge_loss(jnp.array([2.0, 0.5, -1.0]), jnp.array([1, 1, 1])).tolist()
      [0.0, 0.5, 2.0]

    References:
      :cite:p:`cortes1995support`, whose soft margin it is.

    See also:
      ``optax.hinge_loss``, which this calls. Keras ``hinge`` takes targets first, the mean of the last axis, and turns
      labels 0 and 1 into -1 and 1 by itself. PyTorch ``hinge_embedding_loss`` is another loss.
    """
    _refuse_boolean("hinge_loss", targets)
    return elementwise("hinge_loss", optax.hinge_loss, predictions, targets, where, dtype)


def squared_hinge_loss(
    predictions: Float[ArrayLike, "*#shape"],
    targets: Real[ArrayLike, "*#shape"],
    *,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the squared hinge loss of each score against its sign.

    .. math:: \max(0, \; 1 - predictions \cdot targets)^2

    No ½.

    Args:
      predictions: Scores, floating, of any shape, or a Python number.
      targets: -1 or 1, of the same shape, or a scalar on either side.
      where: True for the entries that count; as in :func:`hinge_loss`.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), unreduced. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, ``targets`` are booleans, or ``where`` is not boolean.
      ValueError: The shapes differ, or that of ``where`` does not fit.

    Numerics:
      The gradient for ``predictions`` is ``-2 targets`` times the hinge: continuous, and unbounded for scores on the
      wrong side. Masked: value and gradients 0.

    Example:
      >>> import jax.numpy as jnp
      >>> squared_hinge_loss(jnp.array([2.0, 0.5, -1.0]), jnp.array([1, 1, 1])).tolist()
      [0.0, 0.25, 4.0]

    See also:
      Keras ``squared_hinge``, with the differences of :func:`hinge_loss`. optax and PyTorch have none.
    """
    _refuse_boolean("squared_hinge_loss", targets)

    def formula(p: Array, t: Array) -> Array:
        return jnp.square(jnp.maximum(0, 1 - p * t))

    return elementwise("squared_hinge_loss", formula, predictions, targets, where, dtype)


def categorical_hinge_loss(
    predictions: Float[ArrayLike, "*shape"],
    targets: Shaped[ArrayLike, "*shape"],
    *,
    form: Literal["keras", "crammer-singer"] = "keras",
    axis: int = -1,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the multiclass hinge loss of each row of scores.

    .. math:: \max\left(0, \; 1 + \max_j (1 - targets_j) \, predictions_j - \sum_j targets_j \, predictions_j\right)

    This is Keras' form: the class itself takes part in the inner maximum with a 0. ``form="crammer-singer"`` leaves
    it out: ``max_j (predictions_j + 1 - targets_j) - sum_j targets_j predictions_j``. The two differ where every
    other score is negative.

    Args:
      predictions: Scores of shape (..., classes), floating.
      targets: One-hot rows of the same shape.
      form: ``"keras"`` or ``"crammer-singer"``. Static.
      axis: The axis of the classes. Static.
      where: True for the rows that count, of shape (...), or for the classes that do, of the rank of ``predictions``;
        axes of length 1 stand for all. ``None``: all.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), one a row. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, ``where`` not boolean, or ``axis`` not an integer.
      ValueError: ``form`` is unknown, the shapes differ, that of ``where`` does not fit, or the axis is missing or
        empty.

    Numerics:
      The gradient for ``predictions`` is -1 at the class and 1 at the best other one, of norm at most √2; scores that
      tie share it. Scores of -inf at other classes count as absent. Masked: value and gradients 0.

    Example:
      >>> import jax.numpy as jnp
      >>> scores, target = jnp.array([0.5, -1.0]), jnp.array([1, 0])
      >>> [categorical_hinge_loss(scores, target, form=form).item() for form in ("keras", "crammer-singer")]
      [0.5, 0.0]

    References:
      :cite:p:`crammer2001algorithmic`, the second form.

    See also:
      Keras ``categorical_hinge``, the first form, targets first. ``optax.losses.multiclass_hinge_loss`` and PyTorch
      ``multi_margin_loss`` take integer labels: the first is the second form, the other sums over the classes and
      divides by their number.
    """
    if form not in ("keras", "crammer-singer"):
        raise ValueError(
            message("categorical_hinge_loss", "form 'keras' or 'crammer-singer'", repr(form), "leave form out")
        )

    def formula(p: Array, t: Array) -> Array:
        own = jnp.sum(times(t, p), axis=-1)
        if form == "keras":
            return jnp.maximum(0, 1 + jnp.max(times(1 - t, p), axis=-1) - own)
        return jnp.max(p + (1 - t), axis=-1) - own

    return rowwise("categorical_hinge_loss", formula, predictions, targets, where, dtype, axis, left_out=-jnp.inf)


def softmax_cross_entropy(
    predictions: Float[ArrayLike, "*shape"],
    targets: Shaped[ArrayLike, "*shape"],
    *,
    axis: int = -1,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the cross-entropy of target distributions with the softmax of logits.

    .. math:: - \sum_j targets_j \, \log \frac{\exp(predictions_j)}{\sum_k \exp(predictions_k)}

    Natural logarithm, so nats; a sum over the classes, no mean.

    Args:
      predictions: Logits of shape (..., classes), floating.
      targets: Probabilities of the same shape, such as one-hot rows; used as they are, summing to 1 or not.
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
      The gradient for ``predictions`` is ``sum(targets) * softmax - targets``, of norm at most √2 for distributions,
      and finite at every logit. A logit of -inf costs nothing under a target of 0, and inf under another; a logit of
      inf is certain, and equal logits share, infinite ones too. The gradient for ``targets`` is minus the
      log-probability, and finite where a target of 0 meets a probability of 0. Masked classes are left out of the
      softmax: value and gradients 0.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.array([[0.0, 0.0], [5.0, -jnp.inf]])
      >>> [round(v, 4) for v in softmax_cross_entropy(logits, jnp.array([[1.0, 0.0], [1.0, 0.0]])).tolist()]
      [0.6931, 0.0]

    See also:
      ``optax.softmax_cross_entropy``, NaN at infinite logits; ``optax.safe_softmax_cross_entropy`` takes -inf, not
      inf. Keras ``categorical_crossentropy(from_logits=True)``, targets first. PyTorch ``cross_entropy`` takes the
      classes on axis 1 and a mean.
    """

    def formula(p: Array, t: Array) -> Array:
        shifted = _shifted(p, _largest(p))
        # Two sums of one sign: nothing cancels.
        log_total = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
        return log_total * jnp.sum(t, axis=-1) - jnp.sum(times(t, shifted), axis=-1)

    return rowwise("softmax_cross_entropy", formula, predictions, targets, where, dtype, axis, left_out=-jnp.inf)


def softmax_cross_entropy_with_integer_labels(
    predictions: Float[ArrayLike, "*shape"],
    labels: Integer[ArrayLike, "*rows"],
    *,
    ignore_index: int | None = None,
    axis: int = -1,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the cross-entropy of class labels with the softmax of logits.

    .. math:: - \log \frac{\exp(predictions_{labels})}{\sum_k \exp(predictions_k)}

    Natural logarithm, so nats.

    Args:
      predictions: Logits of shape (..., classes), floating.
      labels: Classes of shape (...), integers from 0 to ``classes - 1``.
      ignore_index: A label, often -1 or -100, of rows that do not count; for the mean over the others, pass
        ``where=labels != ignore_index`` to :func:`jaxgrad.losses.reduce`. ``None``: every label is a class. Static.
      axis: The axis of the classes in ``predictions``. Static.
      where: True for the rows that count, of shape (...), or for the classes that do, of the rank of ``predictions``;
        axes of length 1 stand for all. ``None``: all.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), one a row. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, ``labels`` are not integers, ``where`` is not boolean, or
        ``axis`` is not an integer.
      ValueError: The shapes do not fit, the axis is missing or empty, or the label of a row that counts is no class
        (unless traced, where it cannot be seen).

    Numerics:
      The gradient for ``predictions`` is the softmax minus the one-hot label, of norm at most √2, and finite at every
      logit. Infinite logits are as in :func:`softmax_cross_entropy`. A traced label outside the classes makes value and
      gradient of its row NaN, negative ones included: it never counts from the end. Ignored and masked rows have value
      and gradient 0; a label that is a masked class, in a row that counts, gives inf.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.array([[0.0, 0.0], [9.0, 1.0]])
      >>> losses = softmax_cross_entropy_with_integer_labels(logits, jnp.array([1, -1]), ignore_index=-1)
      >>> [round(v, 4) for v in losses.tolist()]
      [0.6931, 0.0]

    See also:
      ``optax.softmax_cross_entropy_with_integer_labels`` takes -1 for the last class. Keras
      ``sparse_categorical_crossentropy(from_logits=True, ignore_class=…)``, targets first. PyTorch ``cross_entropy``
      ignores -100 by default, takes the classes on axis 1 and a mean.
    """
    function = "softmax_cross_entropy_with_integer_labels"
    given, labels = labels, integers(function, "labels", labels)
    logits = floating(function, "predictions", predictions)
    axis = check_axis(function, logits, axis)
    rows = logits.shape[:axis] + logits.shape[axis + 1 :]
    if labels.shape != rows:
        raise ValueError(
            message(
                function,
                f"labels of shape {rows}, one a row of predictions of shape {logits.shape}",
                f"shape {labels.shape}",
                "drop an axis of length 1 with labels[..., 0]; one-hot targets go to softmax_cross_entropy",
            )
        )
    entries = None if where is None else check_row_mask(function, where, logits.shape, axis)
    _check_labels(function, given, where, ignore_index, logits.shape[axis], axis)
    if ignore_index is not None:
        counted = jnp.expand_dims(labels != ignore_index, axis)
        entries = counted if entries is None else entries & counted
    result = logits.dtype if dtype is None else check_dtype(function, dtype)
    logits = jnp.moveaxis(logits, axis, -1).astype(computing_dtype(logits.dtype, result))
    if entries is None:
        return _label_cross_entropy(logits, labels).astype(result)
    entries = jnp.moveaxis(entries, axis, -1)
    rows = jnp.any(entries, axis=-1)
    losses = _label_cross_entropy(jnp.where(entries, logits, -jnp.inf), jnp.where(rows, labels, 0))
    return jnp.where(rows, losses, 0).astype(result)


def sigmoid_binary_cross_entropy(
    predictions: Float[ArrayLike, "*#shape"],
    targets: Shaped[ArrayLike, "*#shape"],
    *,
    where: Bool[ArrayLike, "*mask"] | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "*losses"]:
    r"""Compute the cross-entropy of each binary target with the sigmoid of its logit.

    .. math:: - targets \, \log \sigma(predictions) - (1 - targets) \, \log \sigma(-predictions)

    Natural logarithm, so nats.

    Args:
      predictions: Logits, floating, of any shape, or a Python number.
      targets: Probabilities, 0 to 1, or booleans, of the same shape, or a scalar on either side.
      where: True for the entries that count; as in :func:`hinge_loss`.
      dtype: Floating dtype of the result. ``None``: that of ``predictions``. Static.

    Returns:
      Losses of shape (...), unreduced. Computed in float32 for bfloat16 and float16.

    Raises:
      TypeError: ``predictions`` or ``dtype`` is not floating, or ``where`` not boolean.
      ValueError: The shapes differ, or that of ``where`` does not fit.

    Numerics:
      The gradient for ``predictions`` is ``sigmoid(predictions) - targets``, bounded by 1 and finite at every logit. An
      infinite logit gives 0 where it is right and inf where it is wrong, with gradient 0 and ±1. The gradient for
      ``targets`` is ``-predictions``, and 0 at a right infinite logit. Masked: value and gradients 0.

    Example:
      >>> import jax.numpy as jnp
      >>> [round(v, 4) for v in sigmoid_binary_cross_entropy(jnp.array([0.0, jnp.inf]), jnp.array([1, 1])).tolist()]
      [0.6931, 0.0]

    See also:
      ``optax.sigmoid_binary_cross_entropy``, NaN at infinite logits. Keras ``binary_crossentropy(from_logits=True)``,
      targets first, the mean of the last axis; PyTorch ``binary_cross_entropy_with_logits``, the mean of all.
    """

    def formula(p: Array, t: Array) -> Array:
        # Without a difference of large numbers: the slope of the line is 0 or tiny where the logit is right.
        negative = p < 0
        line = times(jnp.where(negative, -t, 1 - t), p)
        return line + jnp.log1p(jnp.exp(jnp.where(negative, p, -p)))

    return elementwise("sigmoid_binary_cross_entropy", formula, predictions, targets, where, dtype)


def _largest(logits: Array) -> Array:
    return jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))


@jax.custom_jvp
def _shifted(logits: Array, largest: Array) -> Array:
    """Subtract the largest logit, which the softmax does not notice; equal logits stay equal, even infinite ones."""
    return jnp.where(logits == largest, 0, logits - largest)


@_shifted.defjvp
def _shifted_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return _shifted(*primals), tangents[0]


def _label_cross_entropy(logits: Array, labels: Array) -> Array:
    largest = _largest(logits)
    own = _shifted(_at_label(logits, labels), largest[..., 0])
    losses = jnp.log(jnp.sum(jnp.exp(_shifted(logits, largest)), axis=-1)) - own
    # A factor, so that the gradient is NaN with the value.
    return losses * jnp.where((labels >= 0) & (labels < logits.shape[-1]), 1, jnp.nan).astype(losses.dtype)


@jax.custom_jvp
def _at_label(logits: Array, labels: Array) -> Array:
    return jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="clip")[..., 0]


# The transpose of a gather is a scatter, which is slow where that of a sum is not.
@_at_label.defjvp
def _at_label_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    return _at_label(*primals), jnp.sum(jnp.where(_is_label(*primals), tangents[0], 0), axis=-1)


def _is_label(logits: Array, labels: Array) -> Array:
    return jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]


def _refuse_boolean(function: str, targets: ArrayLike) -> None:
    if isinstance(targets, bool) or getattr(targets, "dtype", None) == jnp.bool_:
        raise TypeError(message(function, "targets -1 and 1", "booleans", "pass jnp.where(targets, 1, -1)"))


def _check_labels(
    function: str, labels: Any, where: Any, ignore_index: int | None, num_classes: int, axis: int
) -> None:
    """Refuse labels that are no class, where they and the rows that count are known."""
    known, mask = concrete(labels), concrete(True if where is None else where)
    if known is None or mask is None:
        return
    rows = mask.any(axis=axis) if mask.ndim > known.ndim else mask
    bad = np.unique(known[((known < 0) | (known >= num_classes)) & (known != ignore_index) & rows])
    if bad.size:
        raise ValueError(
            message(
                function,
                f"labels from 0 to {num_classes - 1}",
                f"{bad[:5].tolist()}",
                f"pass ignore_index={bad[0]} for rows without a class, or check the number of classes",
            )
        )
