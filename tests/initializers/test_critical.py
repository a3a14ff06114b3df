"""Critical initializers: the variances they draw, what deep networks make of them, and bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.activations import get
from jaxgrad.initializers._critical import critical
from jaxgrad.meanfield import chi, critical_point, variance_map

KEY = jax.random.key(0)
WIDTH, DEPTH, BATCH = 400, 50, 4


@pytest.mark.parametrize(
    ("distribution", "shape", "axes", "fan_in"),
    [
        ("truncated_normal", (400, 100), {}, 400),
        ("normal", (400, 100), {}, 400),
        ("uniform", (400, 100), {}, 400),
        ("orthogonal", (400, 100), {}, 400),
        ("orthogonal", (100, 400), {}, 100),
        ("orthogonal", (3, 3, 16, 200), {}, 144),
        ("truncated_normal", (3, 3, 16, 200), {}, 144),
        ("orthogonal", (4, 100, 100), {"batch_axis": 0}, 100),
        ("truncated_normal", (100, 400), {"in_axis": 1, "out_axis": 0}, 400),
        ("truncated_normal", (64, 8, 64), {"einsum": "de,ehk->dhk"}, 64),
        ("orthogonal", (3, 3, 4, 400), {"feature_group_count": 4}, 36),
    ],
)
def test_variances_are_those_of_the_critical_point(distribution, shape, axes, fan_in):
    init = critical("gelu", distribution=distribution, **axes)
    kernel = init(KEY, shape)
    np.testing.assert_array_equal(kernel, init.weights(KEY, shape))
    np.testing.assert_allclose(fan_in * jnp.mean(kernel**2), init.point.weight_variance, rtol=0.04)
    np.testing.assert_allclose(jnp.mean(init.biases(KEY, (20000,)) ** 2), init.point.bias_variance, rtol=0.04)


def test_orthogonal_kernels_have_equal_singular_values():
    init = critical("relu", distribution="orthogonal")
    for shape, value in (((30, 30), 2.0), ((60, 30), 2.0), ((30, 60), 4.0)):
        np.testing.assert_allclose(jnp.linalg.svd(init(KEY, shape), compute_uv=False) ** 2, value, rtol=1e-4)


def test_relu_gets_he_and_tanh_no_bias():
    he = jax.nn.initializers.he_normal()
    np.testing.assert_allclose(critical("relu")(KEY, (30, 40)), he(KEY, (30, 40)), rtol=1e-5)
    init = critical("tanh")
    np.testing.assert_array_equal(init.biases(KEY, (5,)), jnp.zeros(5))
    assert init.point == critical_point("tanh")
    assert critical(jnp.tanh, bias_variance=0.05).point == critical_point("tanh", bias_variance=0.05)


@pytest.mark.parametrize("distribution", ["truncated_normal", "orthogonal"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtypes(distribution, dtype):
    default = critical("gelu", distribution=distribution)
    assert default(KEY, (4, 8)).dtype == default.biases(KEY, (8,)).dtype == jnp.zeros(()).dtype
    for init, arguments in ((default, (dtype,)), (critical("gelu", distribution=distribution, dtype=dtype), ())):
        assert init(KEY, (4, 8), *arguments).dtype == dtype
        assert init.biases(KEY, (8,), *arguments).dtype == dtype


def test_it_draws_under_jit_and_is_built_there():
    eager = critical("gelu")(KEY, (8, 8))
    np.testing.assert_allclose(jax.jit(lambda key: critical("gelu")(key, (8, 8)))(KEY), eager, rtol=1e-5)


def measure(activation, init, q):
    """Return, for each layer of a deep network, the mean square of its preactivations and of a tangent's."""
    function = get(activation).function

    def layer(carry, key):
        keys = jax.random.split(key)
        kernel = init(keys[0], (WIDTH, WIDTH), jnp.float32)
        bias = init.biases(keys[1], (WIDTH,), jnp.float32)
        push = lambda x: function(x) @ kernel + bias[None]  # noqa: E731
        x, tangent = jax.jvp(push, *((value,) for value in carry))
        return (x, tangent), (jnp.mean(x**2), jnp.mean(tangent**2))

    @jax.jit
    def network(key):
        start = (
            jax.random.normal(key, (2, BATCH, WIDTH), jnp.float32)
            * jnp.array([q**0.5, 1.0], jnp.float32)[:, None, None]
        )
        return jax.lax.scan(layer, tuple(start), jax.random.split(key, DEPTH))[1]

    return (np.asarray(squares, np.float64) for squares in network(KEY))


@pytest.mark.parametrize(
    ("activation", "bias_variance"),
    [
        ("relu", None),
        ("selu", None),
        ("tanh", None),
        ("tanh", 0.05),
        ("elu", 0.05),
        ("gelu", None),
        ("silu", None),
        ("mish", None),
        ("sigmoid", 0.0),
    ],
)
def test_deep_networks_follow_theory(activation, bias_variance):
    init = critical(activation, bias_variance=bias_variance)
    variances = {"weight_variance": init.point.weight_variance, "bias_variance": init.point.bias_variance}
    path = [init.point.q or 1.0]
    for _ in range(DEPTH):
        path.append(variance_map(activation, path[-1], **variances))
    growth = np.array([chi(activation, **variances, q=q) for q in path[:-1]])
    squares, tangents = measure(activation, init, path[0])
    # Both perform random walks about the theory, of steps near (5 / width)^½: the mean step is known to 0.015.
    np.testing.assert_allclose(np.log(squares[-1] / squares[0]) / 49, np.log(path[-1] / path[1]) / 49, atol=0.045)
    np.testing.assert_allclose(np.log(tangents[-1] / tangents[0]) / 49, np.mean(np.log(growth[1:])), atol=0.045)
    if init.point.q > 0:
        np.testing.assert_allclose(growth, 1.0, rtol=1e-6)
    else:
        # As the variance tends to zero, gradients lose a power of the depth, not a constant factor a layer.
        np.testing.assert_allclose((1 - growth[-1]) * DEPTH, {"tanh": 1, "selu": 2}[activation], rtol=0.15)


def test_he_lets_a_gelu_network_die():
    """Theory: q → 0 and gradients halve in each layer."""
    init = critical("relu")
    squares, tangents = measure("gelu", init, 1.0)
    assert squares[-1] < 1e-9
    np.testing.assert_allclose((tangents[-1] / tangents[-11]) ** 0.1, 0.5, rtol=0.05)


def test_bad_input_is_refused(unchecked):
    with pytest.raises(ValueError, match=r"critical: expected distribution .* got 'glorot'"):
        critical("relu", distribution="glorot")
    with pytest.raises(ValueError, match=r"critical_point: .* got 'softplus', which has none"):
        critical("softplus")
    with pytest.raises(TypeError, match="critical: expected a real floating dtype; got int32"):
        critical("relu").biases(KEY, (3,), jnp.int32)
