"""The table against NumPy's definitions and a quadrature of its own, and gains against closed forms."""

from __future__ import annotations

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxgrad.activations import TABLE, Activation, gain, get

NAMES = sorted({entry.name for entry in TABLE.values()})
NOT_ELEMENTWISE = {"dot_product_attention", "glu", "log_softmax", "logmeanexp", "logsumexp", "one_hot", "softmax"}
NOT_ELEMENTWISE |= {"scaled_dot_general", "get_scaled_dot_general_config", "scaled_matmul", "standardize"}
# The logarithm of a difference of exponentials is a number for positive inputs only.
NOT_ACTIVATIONS = {"initializers", "log1mexp"}

ALPHA, SCALE = 1.6732632423543772, 1.0507009873554805


def softplus(x):
    return np.logaddexp(x, 0)


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


DEFINITIONS = {
    "celu": elu,
    "elu": elu,
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: x * scipy.special.ndtr(x),
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "hard_silu": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "identity": lambda x: x,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "log_sigmoid": lambda x: -softplus(-x),
    "mish": lambda x: x * np.tanh(softplus(x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "rrelu": lambda x: np.where(x > 0, x, (1 / 8 + 1 / 3) / 2 * x),
    "scaled_tanh": lambda x: 1.7159 * np.tanh(2 / 3 * x),
    "selu": lambda x: SCALE * np.where(x > 0, x, ALPHA * np.expm1(np.minimum(x, 0))),
    "sigmoid": scipy.special.expit,
    "silu": lambda x: x * scipy.special.expit(x),
    "soft_sign": lambda x: x / (1 + np.abs(x)),
    "softplus": softplus,
    "sparse_plus": lambda x: np.where(x > 1, x, np.where(x < -1, 0, (x + 1) ** 2 / 4)),
    "sparse_sigmoid": lambda x: np.clip(x / 2 + 0.5, 0, 1),
    "squareplus": lambda x: (x + np.sqrt(x**2 + 4)) / 2,
    "tanh": np.tanh,
}


def gaussian_rule():
    """Points and weights of an expectation, exact for what is smooth between the kinks of the table."""
    kinks = [-13, -6, -3, -1, 0, 1, 3, 6, 13]
    nodes, weights = np.polynomial.legendre.leggauss(80)
    half = np.diff(kinks)[:, None] / 2
    x = np.add(kinks[:-1], half[:, 0])[:, None] + half * nodes
    return x.ravel(), (half * weights * scipy.stats.norm.pdf(x)).ravel()


X, WEIGHTS = gaussian_rule()


@pytest.mark.parametrize("name", NAMES)
def test_functions_and_constants_equal_their_definitions(name, x64):
    entry = TABLE[name]
    points = np.append(X, [-1e3, 1e3])
    values, slopes = map(np.asarray, jax.jvp(entry, (jnp.asarray(points),), (jnp.ones(points.size),)))
    step = 1e-6
    differences = (DEFINITIONS[name](points + step) - DEFINITIONS[name](points - step)) / (2 * step)
    np.testing.assert_allclose(values, DEFINITIONS[name](points), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(slopes, differences, atol=1e-6)
    np.testing.assert_allclose(entry.mean, WEIGHTS @ values[:-2], atol=1e-11)
    np.testing.assert_allclose(entry.second_moment, WEIGHTS @ values[:-2] ** 2, rtol=1e-11)
    np.testing.assert_allclose(entry.squared_slope, WEIGHTS @ slopes[:-2] ** 2, rtol=1e-11)
    assert entry.saturating == np.all(np.abs(slopes[-2:]) < 1e-4)
    np.testing.assert_allclose(gain(lambda x: 1.0 * entry(x)), entry.gain, rtol=1e-10)


def test_every_elementwise_function_of_jax_is_in_the_table():
    public = {name for name in dir(jax.nn) if not name.startswith("_")} - NOT_ELEMENTWISE - NOT_ACTIVATIONS
    assert public == TABLE.keys() - {"gelu_exact", "rrelu", "scaled_tanh"}
    for name in public:
        assert get(getattr(jax.nn, name)) is TABLE[name]


def test_the_table_cannot_be_changed():
    assert TABLE["swish"] is TABLE["silu"]
    assert TABLE["hard_swish"] is TABLE["hard_silu"]
    with pytest.raises(TypeError):
        TABLE["relu"] = TABLE["tanh"]
    with pytest.raises(AttributeError):
        TABLE["relu"].mean = 0.0


def test_get_takes_names_functions_and_entries():
    for activation in ("tanh", jnp.tanh, jax.nn.tanh, TABLE["tanh"]):
        assert get(activation) is TABLE["tanh"]
    assert isinstance(get("relu"), Activation)


NORMAL = scipy.stats.norm


@pytest.mark.parametrize(
    ("function", "second_moment"),
    [
        ("relu", 0.5),
        ("selu", 1.0),
        ("leaky_relu", (1 + 1e-4) / 2),
        ("gelu_exact", 1 / 3 + 1 / (2 * np.pi * np.sqrt(3))),
        (jax.scipy.special.erf, 2 / np.pi * np.arcsin(2 / 3)),
        (lambda x: jax.nn.relu(x - 0.3), (1 + 0.3**2) * NORMAL.sf(0.3) - 0.3 * NORMAL.pdf(0.3)),
        (lambda x: jnp.abs(x - np.e), 1 + np.e**2),
        (lambda x: jnp.where(x > 0.3, 1.0, 0.0), NORMAL.sf(0.3)),
        (lambda x: jnp.where(x > np.pi / 3, 1.0, -2.0), NORMAL.sf(np.pi / 3) + 4 * NORMAL.cdf(np.pi / 3)),
        (jnp.sign, 1.0),
        (jnp.floor, None),
        (jnp.exp, np.exp(2)),
        (lambda x: jnp.exp(4 * x), np.exp(32)),
        (lambda x: jnp.exp(x**2 / 5), 5**0.5),
        (lambda x: jnp.sin(20 * x), (1 - np.exp(-800)) / 2),
        (lambda x: jnp.abs(x) ** -0.25, 2**-0.25 * scipy.special.gamma(0.25) / np.sqrt(np.pi)),
        (lambda x: 1e-100 * x, 1e-200),
        (np.tanh, 0.3942944903978),
    ],
)
def test_gain_equals_closed_forms(function, second_moment):
    if second_moment is None:  # floor: a sum over its steps
        steps = np.arange(-40, 40)
        second_moment = np.sum(steps**2 * (NORMAL.cdf(steps + 1) - NORMAL.cdf(steps)))
    np.testing.assert_allclose(gain(function), second_moment**-0.5, rtol=1e-8)


@pytest.mark.parametrize("kink", [-2.2, -0.123456789, 1e-4, 0.5, 3.0])
def test_kinks_and_jumps_may_lie_anywhere(kink):
    np.testing.assert_allclose(
        gain(lambda x: jax.nn.relu(x - kink)) ** -2,
        (1 + kink**2) * NORMAL.sf(kink) - kink * NORMAL.pdf(kink),
        rtol=1e-8,
    )
    np.testing.assert_allclose(gain(lambda x: jnp.where(x > kink, 1.0, 0.0)) ** -2, NORMAL.sf(kink), rtol=1e-8)


def test_gain_scales_inversely():
    np.testing.assert_allclose(gain(lambda x: 3 * jnp.cos(x)), gain(jnp.cos) / 3, rtol=1e-12)


def test_gain_is_a_number_inside_every_transformation():
    function = lambda x: 1.5 * jax.nn.relu(x)  # noqa: E731
    want = 2**0.5 / 1.5

    def scaled(x):
        value = gain(function)
        assert isinstance(value, float)
        return x * jnp.float32(value)

    x = jnp.float32(1)
    np.testing.assert_allclose(jax.jit(scaled)(x), want, rtol=1e-6)
    assert jax.jit(scaled)(x).dtype == jnp.float32
    np.testing.assert_allclose(jax.grad(scaled)(x), want, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(scaled)(jnp.ones(2, jnp.float32)), [want, want], rtol=1e-6)
    np.testing.assert_allclose(jax.lax.map(jax.checkpoint(scaled), jnp.ones(2, jnp.float32)), [want, want], rtol=1e-6)


def test_gain_takes_functions_written_for_float32():
    constant = jnp.float32(2)
    assert gain(lambda x: constant * x) == pytest.approx(0.5, rel=1e-12)
    assert gain(lambda x: jnp.tanh(x.astype(jnp.float32))) == pytest.approx(gain("tanh"), rel=1e-6)


def test_gain_takes_functions_that_cannot_be_hashed():
    class Scale(dict):
        def __call__(self, x):
            return self["factor"] * x

    assert gain(Scale(factor=4.0)) == pytest.approx(0.25, rel=1e-12)


def test_unit_gain_keeps_the_variance_of_a_wide_layer():
    x = jax.random.normal(jax.random.key(0), (1000,))
    for name in ("tanh", "gelu", "sigmoid", "relu"):
        weights = gain(name) / 1000**0.5 * jax.random.normal(jax.random.key(1), (1000, 1000))
        np.testing.assert_allclose(jnp.mean((weights @ get(name)(x)) ** 2), 1.0, atol=0.15)


@pytest.mark.parametrize(
    ("function", "error", "text"),
    [
        (lambda x: jnp.exp(x**2 / 4), ValueError, "finite"),
        (lambda x: 1 / x, ValueError, "no pole"),
        (lambda x: 0 * x, ValueError, "not zero"),
        (jnp.sqrt, ValueError, r"NaN near z = -13"),
        (lambda x: jnp.where(x > 2, jnp.inf, x), ValueError, "inf"),
        (jax.nn.softmax, ValueError, "elementwise"),
        (jax.nn.standardize, ValueError, "elementwise"),
        (jax.nn.glu, TypeError, r"shape \(2048,\)"),
        (lambda x: 3.0, TypeError, "dtype None"),
        (lambda x: x.astype(jnp.int32), TypeError, "int32"),
        (lambda x: x + 1j, TypeError, "complex128"),
        ("rellu", ValueError, "take 'relu'"),
        ("unheard-of", ValueError, "celu, elu"),
        (3.0, TypeError, "float"),
    ],
)
def test_gain_refuses(function, error, text, unchecked):
    with pytest.raises(error, match=r"(?s)^gain: expected.*" + text):
        gain(function)


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, lambda f: lambda a: jax.vmap(f)(a[None])])
def test_a_function_of_traced_values_is_refused(transform):
    with pytest.raises(TypeError, match="closes over a traced value"):
        transform(lambda a: gain(lambda x: jnp.tanh(a * x)) * a)(jnp.float32(1))


def test_get_refuses_what_is_not_in_the_table(unchecked):
    with pytest.raises(ValueError, match="get: expected a name or a function of the table"):
        get(functools.partial(jax.nn.gelu, approximate=False))
    with pytest.raises(ValueError, match="take 'relu6'"):
        get("relu66")
    with pytest.raises(TypeError, match="get: expected the name of an activation"):
        get(None)


def test_importing_integrates_nothing():
    code = "import jaxgrad.activations as a, jaxgrad.activations._quadrature as q, sys; " + (
        "a.gain('tanh'); assert q._rule.cache_info().currsize == 0; assert 'scipy.optimize' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
