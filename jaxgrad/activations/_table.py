"""The activations by name, with what mean-field theory needs of each, and the gain of any function."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxgrad._checks import message
from jaxgrad.activations._functions import rrelu, scaled_tanh
from jaxgrad.activations._quadrature import expectation, values


class Activation(NamedTuple):
    r"""An activation and its constants under a standard normal input z.

    Attributes:
      name: Its name in the table.
      function: The elementwise function, of one array.
      saturating: Whether the slope vanishes far out on both sides, so that large inputs pass no gradient.
      mean: :math:`\operatorname{E}[\phi(z)]`.
      second_moment: :math:`\operatorname{E}[\phi(z)^2]`.
      squared_slope: :math:`\operatorname{E}[\phi'(z)^2]`, the factor of the gradient's mean square at variance 1.
      critical: Its critical point without a prescribed bias: weight variance times fan-in, bias variance and variance
        of the preactivations, as ``jaxgrad.meanfield.critical_point`` has them; ``None`` where there is none.
    """

    name: str
    function: Callable[..., Array]
    saturating: bool
    mean: float
    second_moment: float
    squared_slope: float
    critical: tuple[float, float, float] | None

    @property
    def gain(self) -> float:
        """The factor that gives outputs of mean square 1, as from :func:`jaxgrad.activations.gain`."""
        return self.second_moment**-0.5

    def __call__(self, x: Array) -> Array:
        """Apply the function."""
        return self.function(x)


_gelu_exact = functools.partial(jax.nn.gelu, approximate=False)
_mean_rrelu = functools.partial(rrelu, None)

# E[φ], E[φ²] and E[φ'²] for z ~ N(0, 1), and critical points: numbers, so that looking one up costs nothing. The tests
# compute them again.
_MOMENTS: dict[str, tuple[Callable[..., Array], bool, float, float, float]] = {
    "celu": (jax.nn.celu, False, 0.1605205722666, 0.6449454174929, 0.6681020012232),
    "elu": (jax.nn.elu, False, 0.1605205722666, 0.6449454174929, 0.6681020012232),
    "gelu": (jax.nn.gelu, False, 0.2820385880788, 0.4251937110331, 0.455817845963),
    "gelu_exact": (_gelu_exact, False, 0.2820947917739, 0.4252214825703, 0.4558508656493),
    "hard_sigmoid": (jax.nn.hard_sigmoid, True, 0.5, 0.2776390910565, 0.02770278344269),
    "hard_silu": (jax.nn.hard_silu, False, 0.1662167006561, 0.3315673751379, 0.3585315171786),
    "hard_tanh": (jax.nn.hard_tanh, True, 0.0, 0.5160585509617, 0.6826894921371),
    "identity": (jax.nn.identity, False, 0.0, 1.0, 1.0),
    "leaky_relu": (jax.nn.leaky_relu, False, 0.3949528575974, 0.50005, 0.50005),
    "log_sigmoid": (jax.nn.log_sigmoid, False, -0.8060591833474, 0.9212459088593, 0.2933790358581),
    "mish": (jax.nn.mish, False, 0.2404038883748, 0.4523421923759, 0.479083758374),
    "relu": (jax.nn.relu, False, 0.3989422804014, 0.5, 0.5),
    "relu6": (jax.nn.relu6, True, 0.3989422802451, 0.4999999980753, 0.4999999990134),
    "rrelu": (_mean_rrelu, False, 0.3075180078094, 0.5262586805556, 0.5262586805556),
    "scaled_tanh": (scaled_tanh, True, 0.0, 0.7504302763051, 0.8039891133203),
    "selu": (jax.nn.selu, False, 0.0, 1.0, 1.071574992456),
    "sigmoid": (jax.nn.sigmoid, True, 0.5, 0.2933790358581, 0.04483624135019),
    "silu": (jax.nn.silu, False, 0.2066209641419, 0.3557755198174, 0.3794823516328),
    "soft_sign": (jax.nn.soft_sign, True, 0.0, 0.1830140212665, 0.2276713404222),
    "softplus": (jax.nn.softplus, False, 0.8060591833474, 0.9212459088593, 0.2933790358581),
    "sparse_plus": (jax.nn.sparse_plus, False, 0.4623301083281, 0.5248435053874, 0.3790146377404),
    "sparse_sigmoid": (jax.nn.sparse_sigmoid, True, 0.5, 0.3790146377404, 0.1706723730343),
    "squareplus": (jax.nn.squareplus, False, 1.10930551379, 1.5, 0.289315385356),
    "tanh": (jnp.tanh, True, 0.0, 0.3942944903978, 0.4644029024483),
}
_CRITICAL: dict[str, tuple[float, float, float]] = {
    # Scale-invariant: every variance is kept.
    "identity": (1.0, 0.0, 1.0),
    "leaky_relu": (1.99980002, 0.0, 1.0),
    "relu": (2.0, 0.0, 1.0),
    "relu6": (2.0, 0.0, 1.0),
    "rrelu": (1.900206186, 0.0, 1.0),
    # The variance tends to zero.
    "celu": (1.0, 0.0, 0.0),
    "elu": (1.0, 0.0, 0.0),
    "hard_tanh": (1.0, 0.0, 0.0),
    "scaled_tanh": (0.7641851071, 0.0, 0.0),
    "selu": (0.4767710179, 0.0, 0.0),
    "soft_sign": (1.0, 0.0, 0.0),
    "tanh": (1.0, 0.0, 0.0),
    # Half-stable: the variance settles where a gap in the map closes.
    "gelu": (1.98288824, 0.1728951983, 3.556772845),
    "gelu_exact": (1.983058257, 0.1729223908, 3.561552813),
    "hard_silu": (1.973289584, 0.5071458488, 4.803855949),
    "mish": (2.01352407, 0.09452178737, 1.670169132),
    "silu": (1.988004678, 0.5551431707, 14.32017362),
}
_ALIASES = {"hard_swish": "hard_silu", "swish": "silu"}

_ENTRIES = {name: Activation(name, *row, _CRITICAL.get(name)) for name, row in _MOMENTS.items()}

#: Every elementwise activation of ``jax.nn``, ``rrelu`` as in evaluation, and ``scaled_tanh``, by name. ``"gelu"`` is
#: JAX's default, the tanh approximation; ``"gelu_exact"`` has the error function.
TABLE: Mapping[str, Activation] = MappingProxyType(
    _ENTRIES | {alias: _ENTRIES[name] for alias, name in _ALIASES.items()}
)
"""The activations by name."""


def get(activation: str | Callable[..., Any]) -> Activation:
    """Look up an activation of the table.

    Args:
      activation: A name, or the function itself, such as :func:`jax.nn.relu`.

    Returns:
      The table's ``Activation``. ``"swish"`` and ``"hard_swish"`` give ``silu`` and ``hard_silu``.

    Raises:
      TypeError: ``activation`` is neither a string nor callable.
      ValueError: It is not in the table.

    Example:
      >>> import jax
      >>> get("sigmoid").saturating, get(jax.nn.relu).name
      (True, 'relu')

    References:
      :cite:p:`nair2010rectified` for the ReLU, :cite:p:`klambauer2017self`, equation 2, for the SELU, and
      :cite:p:`howard2019searching` for ``"hard_swish"``.

    See also:
      ``jaxgrad.activations.TABLE``, the mapping; ``keras.activations.get``, which returns the function alone.
    """
    function = resolve("get", activation)
    for entry in TABLE.values():
        if entry.function is function:
            return entry
    raise ValueError(
        message(
            "get",
            "a name or a function of the table",
            f"the function {getattr(function, '__name__', function)!r}",
            "take the table's function; gain and jaxgrad.meanfield accept any elementwise function as it is",
        )
    )


def gain(activation: str | Callable[..., Any]) -> float:
    r"""Compute the gain of an activation: the factor after which unit variance in gives unit mean square out.

    .. math::
      \operatorname{gain}(\phi) = \operatorname{E}\left[ \phi(z)^2 \right]^{-1/2}, \qquad z \sim N(0, 1).

    Kernels of standard deviation ``gain / sqrt(fan_in)`` keep preactivations of variance 1 at variance 1, whatever
    the depth. It multiplies a standard deviation: its square is the ``scale`` of
    :func:`jaxgrad.initializers.variance_scaling`.

    Args:
      activation: A name of the table, or any elementwise function of one real array, in JAX or NumPy. Static: it may
        not depend on values that are being traced.

    Returns:
      The gain, a Python float, also while an outer function is being traced. Names and functions of the table are
      looked up; others are integrated on the host in float64.

    Raises:
      TypeError: ``activation`` is no function of one array to a real array of the same shape, or depends on traced
        values.
      ValueError: The name is unknown, or the function is not elementwise, zero under the normal, NaN somewhere within
        38 standard deviations, or grows so fast that its mean square diverges.

    Numerics:
      Relative error below 1e-8, also with kinks and jumps anywhere; 1e-7 for a function that computes in float32.
      What is narrower than some 0.02 away from zero can be missed.

    Example:
      >>> import jax.numpy as jnp
      >>> round(gain("relu") ** 2, 6), round(gain(lambda x: jnp.maximum(x, 0) - 0.5), 4)
      (2.0, 1.6878)

    References:
      :cite:p:`he2015delving`, section 2.2, for ReLUs. For any function the square is the weight variance that makes 1 a
      fixed point of :cite:p:`poole2016exponential`, equation 3.

    See also:
      ``torch.nn.init.calculate_gain``, whose constants agree for relu, leaky_relu and linear only: it has 5/3 for tanh
      (here 1.5925), 1 for sigmoid (here 1.8463) and 3/4 for selu (here 1). A unit gain does not make a network
      critical, see :func:`jaxgrad.initializers.critical`.
    """
    function = resolve("gain", activation)
    for entry in TABLE.values():
        if entry.function is function:
            return entry.gain
    evaluate = values("gain", function)
    with np.errstate(over="ignore"):
        mean_square = float(expectation("gain", lambda z: evaluate(z) ** 2)[0])
    if mean_square == 0:
        raise ValueError(
            message("gain", "an activation that is not zero under a standard normal", "zero", "give another function")
        )
    return mean_square**-0.5


def resolve(caller: str, activation: str | Callable[..., Any]) -> Callable[..., Any]:
    """Return the function of a name of the table, and a function as it is."""
    if isinstance(activation, Activation):
        return activation.function
    if isinstance(activation, str):
        if activation in TABLE:
            return TABLE[activation].function
        close = difflib.get_close_matches(activation, TABLE, n=1)
        raise ValueError(
            message(
                caller,
                "a name in jaxgrad.activations.TABLE",
                repr(activation),
                f"take {close[0]!r}" if close else f"take one of {', '.join(TABLE)}, or pass the function",
            )
        )
    if callable(activation):
        return activation
    raise TypeError(
        message(
            caller, "the name of an activation, or a function", type(activation).__name__, "pass 'relu', or jax.nn.relu"
        )
    )
