"""Residual branches that start small, so that a deep network without normalization starts near the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
from jaxtyping import Array, DTypeLike, PRNGKeyArray

from jaxgrad._checks import message
from jaxgrad.initializers._named import he_normal
from jaxgrad.initializers._variance_scaling import Initializer, draw_dtypes


class FixupInitializers(NamedTuple):
    """The initializers of the parts of a residual branch.

    Attributes:
      inner: Of the kernels of the branch, but the last.
      last: Of the last kernel of the branch, and of the layer that classifies: zeros.
      multiplier: Of the scalar that multiplies the branch: one.
      bias: Of the scalar bias before each kernel and each activation: zero.
      scale: What ``inner`` multiplies the usual kernels by.
    """

    inner: Initializer
    last: Initializer
    multiplier: Initializer
    bias: Initializer
    scale: float


def fixup(num_branches: int, *, layers_per_branch: int = 2, base: Initializer | None = None) -> FixupInitializers:
    r"""Build the initializers of residual branches whose update is of one size at every depth.

    .. math::
      W = L^{-\frac{1}{2m - 2}}\, W_\text{base}, \qquad W_\text{last} = 0,

    with :math:`L` branches of :math:`m` layers each. At the start every branch adds zero, so the network's Jacobian is
    that of its skip connections, and a step of gradient descent changes the output by an amount independent of
    :math:`L`.

    Args:
      num_branches: How many residual branches the network has in all, at least 1.
      layers_per_branch: How many kernels a branch has, at least 2.
      base: What draws the kernels before they are scaled; ``None`` for :func:`jaxgrad.initializers.he_normal`.

    Returns:
      ``FixupInitializers(inner, last, multiplier, bias, scale)``.

    Raises:
      ValueError: There is no branch, or a branch has fewer than two layers: its only one is the last, and starts at
        zero, as :func:`jaxgrad.initializers.skip_init` has it.

    Numerics:
      The gradient of ``inner`` is exactly zero in the first step, since what follows is zero; only ``last`` moves.

    Example:
      >>> parts = fixup(16, layers_per_branch=3)
      >>> parts.scale
      0.5

    References:
      :cite:p:`zhang2019fixup`, the three rules of section 3.

    See also:
      :func:`jaxgrad.initializers.skip_init`, :func:`jaxgrad.initializers.depth_scaled`.
    """
    _check_branches("fixup", num_branches)
    if layers_per_branch < 2:
        raise ValueError(
            message("fixup", "at least two layers per branch", f"{layers_per_branch}", "take skip_init() for one layer")
        )
    scale = float(num_branches ** (-1 / (2 * layers_per_branch - 2)))
    inner = _times("fixup", he_normal() if base is None else base, scale)
    return FixupInitializers(inner, _constant(0.0), _constant(1.0), _constant(0.0), scale)


def skip_init(num_branches: int | None = None) -> Initializer:
    r"""Build an initializer of the scalar that multiplies a residual branch.

    .. math::
      x_{\ell + 1} = x_\ell + \alpha\, f_\ell(x_\ell), \qquad \alpha = 0 \text{ or } \frac{1}{\sqrt{L}}.

    With 0 the Jacobian of every block is the identity at the start; with :math:`1/\sqrt{L}` the variance grows by
    :math:`(1 + 1/L)^L \le e` over branches that keep it. Learn the scalar.

    Args:
      num_branches: How many residual branches the network has in all, at least 1, for :math:`1/\sqrt{L}`; ``None``
        for 0.

    Returns:
      An initializer ``init(key, shape, dtype)``, which makes no use of its key; shape ``()`` for one scalar a branch.

    Raises:
      ValueError: ``num_branches`` is under 1.

    Numerics:
      With 0 the gradient of the branch's own parameters is zero in the first step; only the scalar moves.

    Example:
      >>> import jax
      >>> float(skip_init()(jax.random.key(0), ())), float(skip_init(16)(jax.random.key(0), ()))
      (0.0, 0.25)

    References:
      :cite:p:`de2020batch`; :cite:p:`bachlechner2021rezero`, for 0 and no normalization.

    See also:
      ``flax.linen.initializers.zeros`` for the last kernel of the branch, which does the same to its output.
    """
    if num_branches is not None:
        _check_branches("skip_init", num_branches)
    return _constant(0.0 if num_branches is None else num_branches**-0.5)


def depth_scaled(num_branches: int, *, base: Initializer | None = None) -> Initializer:
    r"""Build an initializer for the last kernel of a residual branch that shrinks with the network's depth.

    .. math::
      W = \frac{1}{\sqrt{L}}\, W_\text{base},

    which scales the branch's output as ``skip_init(num_branches)`` does, with no parameter of its own.

    Args:
      num_branches: How many residual branches the network has in all, at least 1: two for each block of a transformer.
      base: What draws the kernel before it is scaled; ``None`` for :func:`jaxgrad.initializers.he_normal`.

    Returns:
      An initializer ``init(key, shape, dtype)``.

    Raises:
      ValueError: ``num_branches`` is under 1.

    Example:
      >>> import jax
      >>> w = depth_scaled(100)(jax.random.key(0), (200, 300))
      >>> round(float(w.std() * 100**0.5), 2)  # the square root of 2 / 200
      0.1

    References:
      :cite:p:`de2020batch`; :cite:p:`radford2019language`, section 2.3, has it in a transformer.

    See also:
      :func:`jaxgrad.initializers.skip_init`, whose scale is learned.
    """
    _check_branches("depth_scaled", num_branches)
    return _times("depth_scaled", he_normal() if base is None else base, num_branches**-0.5)


def _check_branches(function: str, num_branches: int) -> None:
    if num_branches < 1:
        raise ValueError(
            message(function, "num_branches of at least 1", f"{num_branches}", "count the residual branches")
        )


def _times(function: str, base: Initializer, factor: float) -> Initializer:
    """Return an initializer that multiplies another's draw, before it is rounded."""

    def init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike | None = None) -> Array:
        kernel_dtype, wide = draw_dtypes(function, dtype)
        return (base(key, tuple(shape), wide) * factor).astype(kernel_dtype)

    return init


def _constant(value: float) -> Initializer:
    def init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike | None = None) -> Array:
        return jax.nn.initializers.constant(value)(key, tuple(shape), draw_dtypes("initializer", dtype)[0])

    return init
