"""The matrix-free singular values against numpy: easy and hard spectra, the operators that break Krylov methods."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import spectra

KEY = jax.random.key(3)


def with_values(values, out_size, in_size, seed=0):
    """A matrix with given singular values."""
    rng = np.random.default_rng(seed)
    rank = len(values)
    u, _ = np.linalg.qr(rng.standard_normal((out_size, rank)))
    v, _ = np.linalg.qr(rng.standard_normal((in_size, rank)))
    return (u * np.asarray(values)) @ v.T


def golub_kahan(matrix, k, num_steps=12, key=KEY):
    matrix = jnp.asarray(matrix, jnp.float32)
    f = lambda x: matrix @ x  # noqa: E731
    run = jax.jit(lambda key, x: spectra.singular_values(f, x, k=k, method="golub-kahan", num_steps=num_steps, key=key))
    return jax.tree.map(np.asarray, run(key, jnp.zeros(matrix.shape[1], jnp.float32)))


@pytest.mark.parametrize("shape", [(40, 40), (30, 60), (60, 30), (1, 9), (9, 1), (1, 1)])
def test_equals_numpy(shape):
    matrix = with_values(0.5 ** np.arange(min(shape)), *shape)
    k = min(3, *shape)
    got = golub_kahan(matrix, k, 8)
    want = np.linalg.svd(matrix, compute_uv=False)[:k]
    np.testing.assert_allclose(got.values, want, rtol=1e-4)
    assert np.all(np.abs(got.values - want) <= got.accuracy * want[0])


ENDING = {
    "zero": np.zeros((50, 50)),
    "identity": np.eye(50),
    "scaled identity": 1e-20 * np.eye(50),
    "orthogonal": with_values(np.full(50, 3.0), 50, 50),
    "rank one": with_values([2.0], 50, 40),
    "rank two": with_values([2.0, 1e-3], 40, 50),
    "three at the top": with_values([2.0, 2.0, 2.0, *np.linspace(1, 0.1, 40)], 50, 50),
    "two distinct": with_values([2.0] * 25 + [1.0] * 25, 50, 50),
    "one nonzero entry": np.eye(50)[:, :1] * np.eye(50)[:1],
    "projection": np.diag([1.0] * 10 + [0.0] * 40),
}


@pytest.mark.parametrize("name", ENDING)
@pytest.mark.parametrize("num_steps", [pytest.param(1, marks=pytest.mark.heavy), 5])
def test_exhausted_krylov_spaces(name, num_steps):
    matrix = ENDING[name]
    want = np.linalg.svd(matrix, compute_uv=False)[:4]
    got = golub_kahan(matrix, 4, num_steps)
    assert np.all(np.isfinite(got.values))
    assert np.all(np.isfinite(got.accuracy))
    assert np.all(np.diff(got.values) <= 1e-6 * want[0])
    if num_steps > 1:
        # The block of four has met the top three by then, and only nearly what lies dense below.
        np.testing.assert_allclose(got.values[:3], want[:3], rtol=1e-5, atol=2e-6 * want[0])
        np.testing.assert_allclose(
            got.values, want, rtol=0.05 if name.startswith("three") else 1e-5, atol=2e-6 * want[0]
        )


def test_more_steps_than_dimensions():
    matrix = with_values([3.0, 2.0, 1.0], 3, 8)
    np.testing.assert_allclose(golub_kahan(matrix, 3, 100).values, [3.0, 2.0, 1.0], rtol=1e-5)


@pytest.mark.heavy
def test_never_above_the_true_value():
    matrix = np.random.default_rng(5).standard_normal((100, 100))
    want = np.linalg.svd(matrix, compute_uv=False)[0]
    errors = [1 - float(golub_kahan(matrix, 1, steps).values[0]) / want for steps in (2, 5, 20)]
    assert min(errors) > -1e-6
    assert errors == sorted(errors, reverse=True)


@pytest.mark.heavy
def test_accuracy_is_attained():
    matrix = with_values(1 / np.arange(1.0, 201), 200, 200)
    want = 1 / np.arange(1.0, 6)
    for steps in (2, 8):
        got = golub_kahan(matrix, 5, steps)
        assert np.all(np.abs(got.values - want) <= 2 * got.accuracy)
    assert np.all(got.accuracy < 1e-5)
    assert golub_kahan(matrix, 1, 2).accuracy[0] > 1e-3


def test_same_key_same_values():
    matrix = np.random.default_rng(5).standard_normal((100, 100))
    first, second = golub_kahan(matrix, 1, 3), golub_kahan(matrix, 1, 3)
    assert first.values[0] == second.values[0]
    assert first.values[0] != golub_kahan(matrix, 1, 3, jax.random.key(8)).values[0]


LAYOUTS = {
    "channels last": (("NHWC", "HWIO", "NHWC"), (1, 8, 9, 4), (3, 3, 4, 6), 1),
    "channels first": (("NCHW", "OIHW", "NCHW"), (1, 4, 8, 9), (6, 4, 3, 3), 1),
    "mixed": (("NHWC", "OIHW", "NCHW"), (1, 8, 9, 4), (6, 4, 3, 3), 1),
    "grouped, one axis": (("NWC", "WIO", "NWC"), (1, 40, 4), (3, 2, 6), 2),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", LAYOUTS)
def test_convolutions_in_any_layout(name):
    """The loop brings them into one layout; nothing else about them may change."""
    numbers, shape, kernel_shape, groups = LAYOUTS[name]
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.standard_normal(each), jnp.float32) for each in (shape, kernel_shape))

    @jax.jit
    def f(x):
        y = jax.lax.conv_general_dilated(
            x, kernel, (2,) * (x.ndim - 2), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )
        return jnp.tanh(y)

    got = spectra.singular_values(f, x, k=2, method="golub-kahan", num_steps=20, key=KEY)
    want = spectra.singular_values(f, x, k=2, method="svd")
    np.testing.assert_allclose(got.values[0], want.values[0], rtol=1e-4)
    assert np.all(got.values <= want.values * (1 + 1e-5))


def deep_network(width, depth):
    keys = jax.random.split(jax.random.key(11), depth)
    weights = [jax.random.normal(key, (width, width)) * (1.5 / width) ** 0.5 for key in keys]

    def network(x):
        for weight in weights:
            x = jnp.tanh(weight @ x)
        return x

    return network, jax.random.normal(jax.random.key(12), (width,))


@pytest.mark.heavy
def test_deep_network_to_1e_5():
    network, x = deep_network(300, 4)
    got = spectra.singular_values(network, x, k=1, key=KEY)
    want = np.linalg.norm(np.asarray(jax.jacfwd(network)(x), np.float64), 2)
    np.testing.assert_allclose(got.values[0], want, rtol=1e-5)
    assert got.accuracy[0] < 1e-5


@pytest.mark.heavy
def test_width_2304_to_1e_5_within_60_evaluations():
    """49 products with one vector each, and a linearisation or two at the price of two evaluations each."""
    network, x = deep_network(2304, 5)
    jacobian = np.asarray(jax.jit(jax.jacfwd(network))(x), np.float64)
    want = np.sqrt(np.linalg.eigvalsh(jacobian @ jacobian.T)[-1])
    for seed in range(3):
        got = spectra.singular_values(network, x, k=1, key=jax.random.key(seed))
        np.testing.assert_allclose(got.values[0], want, rtol=1e-5)


@pytest.mark.heavy
def test_gradient_with_respect_to_x_and_to_what_f_closes_over(x64):
    weights = jax.random.normal(KEY, (30, 20), jnp.float64)
    x = jax.random.normal(jax.random.key(4), (20,), jnp.float64)

    def total(weights, x, method):
        f = lambda x: jnp.tanh(weights @ x)  # noqa: E731
        values = spectra.singular_values(f, x, k=2, method=method, num_steps=8, key=KEY).values
        return jnp.sum(values * jnp.array([1.0, -0.3]))

    for argument in (0, 1):
        got = jax.jit(jax.grad(total, argument), static_argnums=2)(weights, x, "golub-kahan")
        want = jax.grad(total, argument)(weights, x, "svd")
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_gradient_at_zero_and_repeated_values(scale):
    def total(scale):
        f = lambda x: scale * x  # noqa: E731
        return spectra.singular_values(f, jnp.ones(30), k=3, method="golub-kahan", num_steps=4, key=KEY).values.sum()

    value, gradient = jax.value_and_grad(total)(jnp.array(scale))
    np.testing.assert_allclose(value, 3 * scale, rtol=1e-5)
    assert np.isfinite(gradient)
    if scale:
        np.testing.assert_allclose(gradient, 3.0, rtol=1e-5)


@pytest.mark.heavy
def test_vmap_over_points_and_keys():
    x = jax.random.normal(KEY, (3, 20))
    f = lambda x: 0.5 ** jnp.arange(20).astype(x.dtype) * jnp.tanh(jnp.flip(x) + jnp.sum(x))  # noqa: E731
    got = jax.vmap(lambda key, x: spectra.singular_values(f, x, k=2, method="golub-kahan", num_steps=8, key=key))(
        jax.random.split(KEY, 3), x
    )
    want = np.linalg.svd(np.asarray(jax.vmap(jax.jacfwd(f))(x)), compute_uv=False)[:, :2]
    np.testing.assert_allclose(got.values, want, rtol=1e-4)


def test_low_precision_says_so():
    f = lambda x: (2.0 * x.astype(jnp.bfloat16)).astype(jnp.float32)  # noqa: E731
    got = spectra.singular_values(f, jnp.ones(20, jnp.bfloat16), k=1, method="golub-kahan", num_steps=5, key=KEY)
    np.testing.assert_allclose(got.values, 2.0, rtol=1e-2)
    assert got.accuracy[0] > 1e-3
