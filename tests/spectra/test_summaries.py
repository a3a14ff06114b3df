"""Norms, ranks and condition numbers against numpy, their gradients where singular values meet, and bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import spectra

KEY = jax.random.key(0)
NORMS = [
    spectra.frobenius_norm,
    spectra.spectral_norm,
    spectra.stable_rank,
    spectra.effective_rank,
    spectra.condition_number,
]


def jacobians(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def numpy_of(function, matrix):
    values = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    shares = values / np.sum(values)
    return {
        "frobenius_norm": np.sqrt(np.sum(values**2)),
        "spectral_norm": values[0],
        "stable_rank": np.sum(values**2) / values[0] ** 2,
        "effective_rank": np.exp(-np.sum(shares * np.log(shares))),
        "condition_number": values[0] / values[-1],
    }[function.__name__]


@pytest.mark.parametrize("function", NORMS)
@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (1, 5), (5, 1), (1, 1)])
def test_equals_numpy(function, shape):
    matrix = jacobians(*shape)
    np.testing.assert_allclose(function(matrix), numpy_of(function, matrix), rtol=1e-4)


@pytest.mark.parametrize("function", NORMS)
def test_batch_axes_equal_a_loop_and_vmap(function):
    batch = jacobians(2, 3, 4, 5)
    got = function(batch)
    assert got.shape == (2, 3)
    np.testing.assert_allclose(got, jax.jit(jax.vmap(jax.vmap(function)))(batch), rtol=1e-5)
    np.testing.assert_allclose(got[1, 2], function(batch[1, 2]), rtol=1e-5)


@pytest.mark.parametrize("function", NORMS)
def test_gradient_equals_finite_differences(function, x64):
    matrix = jacobians(3, 4).astype(jnp.float64)
    gradient = jax.grad(function)(matrix)
    for index in np.ndindex(3, 4):
        step = 1e-6 * np.eye(12)[np.ravel_multi_index(index, (3, 4))].reshape(3, 4)
        want = (function(matrix + step) - function(matrix - step)) / 2e-6
        np.testing.assert_allclose(gradient[index], want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("function", NORMS)
@pytest.mark.parametrize(
    "matrix", [jnp.zeros((3, 3)), jnp.eye(3), jnp.ones((3, 3)), jnp.ones((2, 3)), jnp.diag(jnp.array([2.0, 2.0, 0.0]))]
)
def test_gradients_are_finite_at_zero_and_at_equal_values(function, matrix):
    value, gradient = jax.value_and_grad(function)(matrix)
    assert not np.isnan(value)
    assert np.all(np.isfinite(gradient))


def test_values_at_the_edges():
    zero = jnp.zeros((3, 2))
    assert spectra.frobenius_norm(zero) == 0
    assert spectra.spectral_norm(zero) == 0
    assert spectra.stable_rank(zero) == 0
    assert spectra.effective_rank(zero) == 0
    assert spectra.condition_number(zero) == jnp.inf
    np.testing.assert_array_equal(jax.grad(spectra.frobenius_norm)(zero), zero)
    np.testing.assert_array_equal(jax.grad(spectra.stable_rank)(zero), zero)
    np.testing.assert_array_equal(jax.grad(spectra.effective_rank)(zero), zero)
    assert np.isnan(spectra.effective_rank(jnp.full((2, 2), jnp.nan)))
    for size in (2, 5, 50):
        assert spectra.condition_number(jnp.ones((size, size))) == jnp.inf
        np.testing.assert_allclose(spectra.condition_number(3 * jnp.eye(size)), 1.0, rtol=1e-6)
        for rank in (spectra.stable_rank, spectra.effective_rank):
            np.testing.assert_allclose(rank(jnp.ones((size, size))), 1.0, rtol=1e-5)
            np.testing.assert_allclose(rank(7 * jnp.eye(size)), size, rtol=1e-5)


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_units_far_from_one(unit):
    matrix = jacobians(4, 5)
    for function in (spectra.frobenius_norm, spectra.spectral_norm):
        np.testing.assert_allclose(function(matrix * unit), function(matrix) * unit, rtol=1e-5)
        np.testing.assert_allclose(jax.grad(function)(matrix * unit), jax.grad(function)(matrix), rtol=1e-3, atol=1e-5)
    for function in (spectra.stable_rank, spectra.effective_rank, spectra.condition_number):
        np.testing.assert_allclose(function(matrix * unit), function(matrix), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_low_precision_is_computed_in_float32(dtype):
    matrix = jacobians(4, 4).astype(dtype)
    for function in NORMS:
        assert function(matrix).dtype == jnp.float32
        np.testing.assert_allclose(function(matrix), function(matrix.astype(jnp.float32)))


@pytest.mark.parametrize("function", NORMS)
def test_norms_refuse(function, unchecked):
    name = function.__name__
    with pytest.raises(TypeError, match=f"{name}: expected one dense Jacobian"):
        function(jnp.sin)
    with pytest.raises(TypeError, match="stacked along a leading axis"):
        function([jnp.eye(2), jnp.eye(2)])
    with pytest.raises(TypeError, match="int32"):
        function(jnp.ones((2, 2), jnp.int32))
    for shape in ((3,), (), (0, 3), (2, 3, 0)):
        with pytest.raises(ValueError, match=f"{name}: expected a non-empty Jacobian"):
            function(jnp.ones(shape))


def test_singular_values_of_softmax_and_layer_norm():
    """Theory: softmax stretches by at most 1/2; layer normalisation has two zeros and 1/std otherwise."""
    logits = jnp.array([0.0, 0.0, -40.0])
    np.testing.assert_allclose(spectra.singular_values(jax.nn.softmax, logits).values[0], 0.5, rtol=1e-6)
    x = jacobians(6)
    f = lambda x: (x - jnp.mean(x)) / jnp.std(x)  # noqa: E731
    want = np.array([1 / np.std(x)] * 4 + [0.0] * 2)
    np.testing.assert_allclose(spectra.singular_values(f, x).values, want, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_both_methods_agree(shape):
    matrix = jacobians(*shape)
    f = lambda x: matrix @ x  # noqa: E731
    want = np.linalg.svd(matrix, compute_uv=False)
    x = jnp.zeros(shape[1], jnp.float32)
    np.testing.assert_allclose(spectra.singular_values(f, x).values, want, rtol=1e-4)
    np.testing.assert_allclose(spectra.singular_values(f, x, k=2, method="svd").values, want[:2], rtol=1e-4)
    np.testing.assert_allclose(spectra.singular_values(f, x, chunk_size=2).values, want, rtol=1e-4)
    np.testing.assert_allclose(spectra.singular_values(f, x, method="golub-kahan", key=KEY).values, want, rtol=1e-4)


def test_auto_forms_no_large_matrix():
    text = str(jax.make_jaxpr(lambda x: spectra.singular_values(jnp.sin, x, k=1, key=KEY))(jnp.ones(1000)))
    assert "1000,1000" not in text
    text = str(jax.make_jaxpr(lambda x: spectra.singular_values(jnp.sin, x))(jnp.ones(300)))
    assert "300,300" in text


REPEATED = {
    "zero": np.zeros((8, 8)),
    "identity": np.eye(8),
    "tiny": 1e-30 * np.ones((8, 8)),
    "huge": 1e30 * np.ones((8, 8)),
    "rank one": np.ones((8, 8)),
    "repeated, with zeros": np.diag([2.0, 2, 2, 1, 1, 1, 0, 0]),
    "gaussian": np.random.default_rng(0).standard_normal((8, 8)),
    "wide": np.random.default_rng(1).standard_normal((8, 30)),
    "tall": np.random.default_rng(1).standard_normal((30, 8)),
}


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", REPEATED)
def test_tridiagonal_is_as_good_as_it_says(name, double, x64):
    matrix = jnp.asarray(REPEATED[name], jnp.float64 if double else jnp.float32)
    x = jnp.zeros(matrix.shape[1], matrix.dtype)
    values_of = lambda matrix: spectra.singular_values(lambda x: matrix @ x, x, method="tridiagonal")  # noqa: E731
    got = jax.tree.map(np.asarray, jax.jit(jax.vmap(values_of))(jnp.stack([matrix, 2 * matrix])))
    want = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    assert got.values.dtype == matrix.dtype
    for factor, values, accuracy in zip((1, 2), *got, strict=True):
        assert np.all(np.abs(values - factor * want) <= accuracy * factor * want[0])
        assert np.all(np.diff(values) <= 0)
    # Good at the top, and no better than the root of that at a zero.
    eps = float(jnp.finfo(matrix.dtype).eps)
    assert np.all(got.accuracy <= 4 * eps**0.5)
    if want[0] > 0:
        assert np.all(got.accuracy[:, 0] <= 8 * eps)
    if name == "rank one":
        assert np.all(got.accuracy[:, 1:] >= eps**0.5)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_tridiagonal_has_the_gradient_of_the_svd(shape, x64):
    matrix = jacobians(*shape).astype(jnp.float64)

    def total(matrix, method):
        values = spectra.singular_values(lambda x: matrix @ x, jnp.zeros(shape[1]), k=3, method=method).values
        return jnp.sum(values * jnp.arange(1.0, 4.0))

    np.testing.assert_allclose(
        jax.grad(total)(matrix, "tridiagonal"), jax.grad(total)(matrix, "svd"), rtol=1e-8, atol=1e-10
    )
    for degenerate in (jnp.zeros(shape), jnp.ones(shape), jnp.eye(*shape)):
        assert np.all(np.isfinite(jax.grad(total)(degenerate, "tridiagonal")))


def test_auto_takes_the_tridiagonal_form_where_it_is_good_enough():
    def primitives(size, **settings):
        return str(jax.make_jaxpr(lambda x: spectra.singular_values(jnp.sin, x, **settings))(jnp.ones(size, "float32")))

    assert "tridiagonal" in primitives(300, tol=3e-3)
    for size, tol in ((300, None), (300, 1e-4), (200, 3e-3)):
        assert "tridiagonal" not in primitives(size, tol=tol)
    assert "300,300" not in primitives(300, tol=3e-3, k=1, key=KEY)


def test_gradient_at_repeated_values():
    for scale in (0.0, 2.0):
        total = lambda scale: spectra.singular_values(lambda x: scale * x, jnp.ones(5)).values.sum()  # noqa: E731
        value, gradient = jax.value_and_grad(total)(jnp.array(scale))
        np.testing.assert_allclose(value, 5 * scale, rtol=1e-5)
        assert np.isfinite(gradient)


def test_singular_values_refuse(unchecked):
    x = jnp.ones(4)
    for k in (0, 5, -1):
        with pytest.raises(ValueError, match=f"k from 1 to 4.*got k={k}"):
            spectra.singular_values(jnp.sin, x, k=k)
    with pytest.raises(ValueError, match="method"):
        spectra.singular_values(jnp.sin, x, method="lanczos")
    with pytest.raises(ValueError, match="num_steps"):
        spectra.singular_values(jnp.sin, x, num_steps=0)
    with pytest.raises(ValueError, match="tol"):
        spectra.singular_values(jnp.sin, x, tol=-1.0)
    with pytest.raises(ValueError, match=r"random key .*\n.*jax.random.key"):
        spectra.singular_values(jnp.sin, x, k=1, method="golub-kahan")
    with pytest.raises(ValueError, match="random key"):
        spectra.singular_values(jnp.sin, jnp.ones(1000), k=1)


@pytest.mark.parametrize("shape", [(80, 90), (90, 80)])
def test_frobenius_estimate(shape):
    matrix = jacobians(*shape)
    f = lambda x: matrix @ x  # noqa: E731
    want = np.linalg.norm(matrix)
    scores = []
    for seed in range(20):
        got = spectra.frobenius_norm_estimate(jax.random.key(seed), f, jnp.zeros(shape[1], jnp.float32))
        scores.append(float((got.value - want) / got.standard_error))
    assert np.abs(np.mean(scores)) < 1
    assert 0.5 < np.std(scores) < 1.6
    assert got.standard_error < 0.05 * want


def test_frobenius_estimate_is_exact_where_small():
    for shape in ((3, 90), (90, 3)):
        matrix = jacobians(*shape)
        got = spectra.frobenius_norm_estimate(
            KEY, lambda x, matrix=matrix: matrix @ x, jnp.zeros(shape[1], jnp.float32)
        )
        np.testing.assert_allclose(got.value, np.linalg.norm(matrix), rtol=1e-6)
        assert got.standard_error == 0


def test_frobenius_estimate_edges(unchecked):
    estimate = lambda scale: spectra.frobenius_norm_estimate(KEY, lambda x: scale * x, jnp.ones(100))  # noqa: E731
    assert tuple(estimate(0.0)) == (0, 0)
    assert jax.grad(lambda scale: estimate(scale).value)(0.0) == 0
    np.testing.assert_allclose(jax.grad(lambda scale: estimate(scale).value)(2.0), 10.0, rtol=1e-5)
    # Every sign vector gives the same square for a diagonal matrix.
    assert estimate(3.0).standard_error < 1e-4
    with pytest.raises(ValueError, match="num_probes"):
        spectra.frobenius_norm_estimate(KEY, jnp.sin, jnp.ones(3), num_probes=1)
