"""Activations that ``jax.nn`` does not have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad._checks import message

# Chosen so that scaled_tanh(1) = 1 to four digits, with the largest second derivative there.
_HEIGHT = 1.7159
_RATE = 2 / 3


def rrelu(
    key: PRNGKeyArray | None, x: Float[Array, "*shape"], *, lower: float = 1 / 8, upper: float = 1 / 3
) -> Float[Array, "*shape"]:
    r"""Apply the randomized leaky ReLU: a slope drawn anew for each negative value in training, its mean otherwise.

    .. math::
      \operatorname{rrelu}(x) = \begin{cases} x & x \ge 0 \\ a x & x < 0 \end{cases}, \qquad
      a \sim U[\text{lower}, \text{upper}] \text{ in training, }
      a = \tfrac{1}{2} (\text{lower} + \text{upper}) \text{ in evaluation.}

    Args:
      key: Random key of the slopes in training; ``None`` in evaluation. It has no default, so that no one trains
        without the noise by mistake.
      x: Inputs of any shape, real floating.
      lower: Smallest slope, at most ``upper``. Static.
      upper: Largest slope. Static.

    Returns:
      Outputs of the shape and dtype of ``x``.

    Raises:
      TypeError: ``x`` is not a real floating array.
      ValueError: ``lower`` exceeds ``upper``.

    Numerics:
      0 at 0, with gradient 1 as :func:`jax.nn.leaky_relu` has it. The gradient at a negative value is the slope drawn
      for it. Slopes are drawn in float32 at least.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> rrelu(None, jnp.array([-48.0, 2.0])).tolist()
      [-11.0, 2.0]
      >>> y = rrelu(jax.random.key(0), -jnp.ones(1000))
      >>> round(float(y.min()), 1), round(float(y.max()), 1)
      (-0.3, -0.1)

    References:
      :cite:p:`xu2015empirical`, section 2.4, which divides by a number drawn from U(3, 8) and by 5.5 in evaluation;
      this draws the slope, so its mean is 0.229 where theirs is 1/5.5.

    See also:
      ``torch.nn.functional.rrelu(x, lower, upper, training)``, with the same slopes.
    """
    x = _check_floating("rrelu", x)
    if not lower <= upper:
        raise ValueError(message("rrelu", "lower <= upper", f"lower={lower}, upper={upper}", "swap them"))
    if key is None:
        return jnp.where(x >= 0, x, x * ((lower + upper) / 2))
    wide = x.dtype if x.dtype.itemsize >= 4 else jnp.float32
    slopes = jax.random.uniform(key, x.shape, wide, lower, upper)
    return jnp.where(x >= 0, x, x * slopes.astype(x.dtype))


def scaled_tanh(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""Apply LeCun's scaled hyperbolic tangent, which maps ±1 to ±1.

    .. math::
      \operatorname{scaled\_tanh}(x) = 1.7159 \tanh\left( \tfrac{2}{3} x \right)

    Args:
      x: Inputs of any shape, real floating.

    Returns:
      Outputs of the shape and dtype of ``x``, between -1.7159 and 1.7159.

    Raises:
      TypeError: ``x`` is not a real floating array.

    Numerics:
      ±1.7159 with gradient 0 at ±inf. Gradient 1.1439 at 0.

    Example:
      >>> import jax.numpy as jnp
      >>> scaled_tanh(jnp.array([-1.0, 0.0, 1.0])).round(3).tolist()
      [-1.0, 0.0, 1.0]

    References:
      :cite:p:`lecun1998efficient`, section 4.4.

    See also:
      ``jnp.tanh``. With standard normal inputs its mean square is 0.750, so the gain is 1.154 where tanh has 1.593.
    """
    x = _check_floating("scaled_tanh", x)
    return _HEIGHT * jnp.tanh(_RATE * x)


def _check_floating(function: str, x: Array) -> Array:
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            message(function, "a real floating array", str(dtype or type(x).__name__), "pass jnp.asarray(x, float)")
        )
    return x
