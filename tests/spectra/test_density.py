"""The quadrature of the spectrum against closed forms and the dense one, and what is estimated from it."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import spectra

KEY = jax.random.key(5)
ESTIMATES = [spectra.effective_rank_estimate, spectra.stable_rank_estimate]


def gaussian(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape) / shape[1] ** 0.5, jnp.float32)


@cache
def compiled(function, **settings):
    run = lambda key, matrix, x: function(key, lambda x: matrix @ x, x, **settings)  # noqa: E731
    return jax.jit(run)


def of_matrix(function, matrix, key=KEY, **settings):
    """Run a function of ``f`` and ``x`` on a matrix."""
    return jax.tree.map(
        np.asarray, compiled(function, **settings)(key, matrix, jnp.zeros(matrix.shape[1], matrix.dtype))
    )


def moments(density, power):
    """The moment of the singular values as each probe has it."""
    return np.sum(density.weights * density.nodes**power, axis=1)


def standard_error(samples):
    return np.std(samples, ddof=1) / len(samples) ** 0.5


def network(width=60, depth=3):
    """A tanh network and a point, whose spectrum is neither flat nor short."""
    keys = jax.random.split(jax.random.key(7), depth + 1)
    weights = [1.3 * jax.random.normal(key, (width, width)) / width**0.5 for key in keys[1:]]

    def f(x):
        for weight in weights:
            x = jnp.tanh(weight @ x)
        return x

    return f, jax.random.normal(keys[0], (width,))


@pytest.mark.parametrize("shape", [(300, 150), (150, 300)])
def test_moments_of_a_gaussian_matrix_are_marchenko_and_pastur(shape):
    """Squared singular values over the smaller side: mean 1/c, with c the larger side over it, and so on."""
    matrix = gaussian(*shape) * (shape[1] / max(shape)) ** 0.5
    density = of_matrix(spectra.spectral_density, matrix, num_probes=12, num_steps=8)
    ratio = min(shape) / max(shape)
    want = {2: 1, 4: 1 + ratio, 6: 1 + 3 * ratio + ratio**2}
    for power, moment in want.items():
        samples = moments(density, power)
        # The matrix itself is random: its moments differ from the limit by about 1 / size.
        assert abs(np.mean(samples) - moment) < 3 * standard_error(samples) + 4 * moment / min(shape)
    assert np.max(density.nodes) < 1.05 * (1 + ratio**0.5)


SPECTRA = {
    "zero": np.zeros(60),
    "identity": np.ones(60),
    "tiny identity": np.full(60, 1e-20),
    "rank one": np.eye(60)[0] * 3.0,
    "two distinct": np.repeat([2.0, 1.0], 30),
    "repeated, with zeros": np.repeat([3.0, 1.0, 0.0], 20),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_spectra_that_end_the_krylov_space(name):
    """Rotated, so that probes differ; every probe sees the few distinct values and nothing else."""
    values = SPECTRA[name]
    rotation, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((60, 60)))
    matrix = jnp.asarray(rotation * values @ rotation.T, jnp.float32)
    density = of_matrix(spectra.spectral_density, matrix, num_probes=3, num_steps=10)
    unit = max(values[0], 1e-30)
    np.testing.assert_allclose(np.sum(density.weights, axis=1), 1, rtol=1e-5)
    distance = np.min(np.abs(density.nodes[..., None] - values), axis=-1) / unit
    assert np.all(np.where(density.weights > 1e-5, distance, 0) < 1e-4)
    if len(set(values)) == 1:
        np.testing.assert_allclose(density.nodes / unit, np.full_like(density.nodes, values[0] / unit), rtol=1e-4)


def test_diagonal_operator_is_exact_in_every_probe():
    """Sign vectors have the same weight in every coordinate, so a diagonal matrix leaves no variance."""
    values = np.linspace(0.5, 2.0, 100)
    matrix = jnp.asarray(np.diag(values), jnp.float32)
    density = of_matrix(spectra.spectral_density, matrix, num_probes=2, num_steps=12)
    for power in (2, 4, 10):
        np.testing.assert_allclose(moments(density, power), np.mean(values**power), rtol=1e-4)
    # No even polynomial: the quadrature converges.
    np.testing.assert_allclose(moments(density, 1), np.mean(values), rtol=1e-4)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (1, 4)])
def test_small_sides_are_exact(shape):
    matrix = gaussian(*shape)
    density = of_matrix(spectra.spectral_density, matrix, num_probes=2)
    want = np.linalg.svd(matrix, compute_uv=False)
    assert density.nodes.shape == (2, min(shape))
    np.testing.assert_allclose(density.nodes, np.stack([want, want]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(density.weights, 1 / min(shape))
    for name in ("effective_rank", "stable_rank"):
        got = of_matrix(getattr(spectra, f"{name}_estimate"), matrix)
        np.testing.assert_allclose(got.value, getattr(spectra, name)(matrix), rtol=1e-4)
        assert got.standard_error == 0


@pytest.mark.heavy
def test_moments_and_ranks_of_a_network_are_unbiased_with_right_standard_errors():
    f, x = network()
    jacobian = spectra.layer_jacobian(f, x)
    values = np.linalg.svd(np.asarray(jacobian, np.float64), compute_uv=False)

    @jax.jit
    def estimate(key):
        return (
            spectra.spectral_density(key, f, x, num_probes=8, num_steps=24),
            spectra.effective_rank_estimate(key, f, x, num_probes=8, num_steps=24),
            spectra.stable_rank_estimate(key, f, x, num_probes=8, num_steps=12),
        )

    scores = []
    for seed in range(30):
        density, effective, stable = jax.tree.map(np.asarray, estimate(jax.random.key(seed)))
        row = []
        for power in (1, 2, 4):
            samples = moments(density, power)
            row.append((np.mean(samples) - np.mean(values**power)) / standard_error(samples))
        row.append((effective.value - spectra.effective_rank(jacobian)) / effective.standard_error)
        row.append((stable.value - spectra.stable_rank(jacobian)) / stable.standard_error)
        scores.append(row)
    # Student's t with 7 degrees of freedom has a standard deviation of 1.18.
    assert np.all(np.abs(np.mean(scores, axis=0)) < 0.8)
    assert np.all((np.std(scores, axis=0) > 0.6) & (np.std(scores, axis=0) < 2.2))


@pytest.mark.parametrize("function", ESTIMATES)
def test_ranks_of_zero_identity_and_rank_one(function):
    for matrix, want in ((np.zeros((70, 70)), 0), (2 * np.eye(70), 70), (1e-20 * np.eye(70), 70)):
        got = of_matrix(function, jnp.asarray(matrix, jnp.float32))
        np.testing.assert_allclose(got.value, want, rtol=1e-3)
        assert got.standard_error <= 1e-3 * want
    vector = np.random.default_rng(2).standard_normal(70)
    got = of_matrix(function, jnp.asarray(np.outer(vector, vector), jnp.float32))
    assert abs(got.value - 1) < 4 * got.standard_error + 0.05


@pytest.mark.heavy
def test_pytrees_and_vmap_equal_one_array():
    first, second = gaussian(40, 20), gaussian(40, 30, seed=1)
    f = lambda tree: {"out": jnp.tanh(first @ tree["a"] + second @ tree["b"].reshape(-1))}  # noqa: E731
    flat = lambda x: jnp.tanh(first @ x[:20] + second @ x[20:])  # noqa: E731
    points = jnp.asarray(np.random.default_rng(3).standard_normal((2, 50)), jnp.float32)
    tree = {"a": points[0, :20], "b": points[0, 20:].reshape(5, 6)}
    settings = {"num_probes": 2, "num_steps": 6}
    got = spectra.spectral_density(KEY, f, tree, **settings)
    one = spectra.spectral_density(KEY, flat, points[0], **settings)
    many = jax.vmap(lambda x: spectra.spectral_density(KEY, flat, x, **settings))(points)
    for mine, other, batch in zip(got, one, many, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(batch[0], other, rtol=1e-3, atol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_gradients(scale):
    def rank(scale, function):
        diagonal = jnp.arange(1.0, 61.0)
        return function(KEY, lambda x: scale * diagonal * x, jnp.ones(60), num_steps=4).value

    # No rank depends on the unit; at zero it jumps, and the gradient says nothing of that.
    for function in ESTIMATES:
        assert abs(jax.grad(rank)(jnp.array(scale), function)) < 1e-3


@pytest.mark.heavy
def test_gradient_of_the_stable_rank_estimate(x64):
    matrix = jnp.asarray(np.diag(np.linspace(0.1, 1, 40)) + np.random.default_rng(0).standard_normal((40, 40)) / 20)

    def estimate(matrix):
        # Every direction is pushed, so the estimate is the stable rank itself.
        return spectra.stable_rank_estimate(KEY, lambda x: matrix @ x, jnp.zeros(40), num_probes=40, num_steps=40).value

    np.testing.assert_allclose(jax.grad(estimate)(matrix), jax.grad(spectra.stable_rank)(matrix), rtol=1e-7, atol=1e-9)


def test_smoothed_density_integrates_to_one():
    density = spectra.SpectralDensity(jnp.array([[2.0, 1.0], [3.0, 1.0]]), jnp.array([[0.25, 0.75], [0.5, 0.5]]))
    grid = jnp.linspace(-1.0, 5.0, 601)
    curve = spectra.smoothed_density(density, grid, 0.2)
    np.testing.assert_allclose(np.trapezoid(curve, grid), 1, rtol=1e-4)
    np.testing.assert_allclose(np.trapezoid(curve * grid, grid), np.mean([1.25, 2.0]), rtol=1e-4)
    peak = 0.125 / (2 * np.pi) ** 0.5 / 0.2
    np.testing.assert_allclose(spectra.smoothed_density(density, jnp.array([2.0]), 0.2)[0], peak, rtol=1e-3)


def test_nan_stays_nan():
    density = of_matrix(spectra.spectral_density, jnp.full((40, 40), jnp.nan), num_probes=1, num_steps=3)
    assert np.all(np.isnan(density.nodes))


def test_refuse(unchecked):
    x = jnp.ones(4)
    with pytest.raises(ValueError, match=r"spectral_density.*num_probes"):
        spectra.spectral_density(KEY, jnp.sin, x, num_probes=0)
    with pytest.raises(ValueError, match=r"spectral_density.*num_steps"):
        spectra.spectral_density(KEY, jnp.sin, x, num_steps=0)
    with pytest.raises(TypeError, match="int32"):
        spectra.spectral_density(KEY, lambda x: x, jnp.ones(4, jnp.int32))
    for function in ESTIMATES:
        with pytest.raises(ValueError, match=rf"{function.__name__}.*num_probes"):
            function(KEY, jnp.sin, x, num_probes=1)
        with pytest.raises(ValueError, match=rf"{function.__name__}.*num_steps"):
            function(KEY, jnp.sin, x, num_steps=0)
