"""Spectra of products against float64 and exact integer arithmetic, factors of every rank, and depth 10,000."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import spectra

spectrum = jax.jit(spectra.product_spectrum)


def gaussian(depth, size, seed=0):
    return np.random.default_rng(seed).standard_normal((depth, size, size)) / np.sqrt(size)


def rotated(depth, values, seed=0):
    """Factors with given singular values, whose product has their powers."""
    rng = np.random.default_rng(seed)
    before, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    factors = []
    for _ in range(depth):
        after, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
        factors.append((after * values) @ before.T)
        before = after
    return np.stack(factors)


def separated(depth, size, lowest):
    """Factors with values from 1 down to a power of ten, and log10 of those of the product."""
    logs = np.linspace(0, lowest, size)
    return rotated(depth, 10**logs), depth * logs


def numpy_spectrum(factors):
    product = np.eye(factors[0].shape[1])
    for factor in factors:
        product = np.asarray(factor, np.float64) @ product
    with np.errstate(divide="ignore"):
        return np.log10(np.linalg.svd(product, compute_uv=False))


def exact_extremes(factors):
    """log10 of the largest singular value and of |det|, by integer arithmetic of any size."""
    scale = 2**30
    product = np.array([[int(i == j) for j in range(factors.shape[1])] for i in range(factors.shape[1])], object)
    for factor in factors:
        integers = [[round(float(entry) * scale) for entry in row] for row in factor]
        product = np.array(integers, object) @ product
    largest = max(abs(entry) for row in product for entry in row)
    shift = max(largest.bit_length() - 900, 0)
    mantissas = np.array([[float(entry >> shift) for entry in row] for row in product])
    unit = mantissas.max()
    largest_value = np.log10(np.linalg.norm(mantissas / unit, 2)) + np.log10(unit) + shift * np.log10(2)
    determinants = sum(np.linalg.slogdet(np.round(factor * scale) / scale)[1] for factor in np.float64(factors))
    return largest_value - len(factors) * np.log10(scale), determinants / np.log(10)


@pytest.mark.parametrize(("depth", "size"), [(1, 1), (1, 6), (3, 6)])
def test_shallow_products_equal_numpy(depth, size):
    factors = gaussian(depth, size)
    got = spectrum(jnp.asarray(factors, jnp.float32))
    np.testing.assert_allclose(got, numpy_spectrum(factors), atol=1e-3)


def test_double_precision_equals_numpy_to_1e_9(x64):
    for seed in range(5):
        factors = gaussian(3, 6, seed)
        np.testing.assert_allclose(spectrum(jnp.asarray(factors)), numpy_spectrum(factors), atol=1e-9)


@pytest.mark.heavy
def test_deep_products_equal_exact_arithmetic():
    factors = np.float32(gaussian(1000, 8, seed=2))
    got = np.asarray(spectrum(jnp.asarray(factors)), np.float64)
    largest, determinant = exact_extremes(factors)
    assert abs(got[0] - largest) < 1e-3
    assert abs(got.sum() - determinant) < 5e-3


@pytest.mark.heavy
@pytest.mark.parametrize(("size", "depth"), [(8, 1000), (8, 10_000)])
def test_known_spectra_at_depth(size, depth):
    factors, want = separated(depth, size, -1)
    got = spectrum(jnp.asarray(factors, jnp.float32))
    # Half an ulp of a float32 near 10,000 is 4.9e-4.
    np.testing.assert_allclose(got, want, atol=1e-3)
    assert np.all(np.diff(got) <= 0)


@pytest.mark.heavy
@pytest.mark.parametrize(("size", "depth"), [(64, 1000), (64, 10_000), (256, 1000)])
def test_known_spectra_at_depth_and_width(size, depth):
    factors, want = separated(depth, size, -1)
    np.testing.assert_allclose(spectrum(jnp.asarray(factors, jnp.float32)), want, atol=1e-3)


def test_isometries_keep_every_value():
    factors, want = separated(1000, 8, 0)
    np.testing.assert_allclose(spectrum(jnp.asarray(factors, jnp.float32)), want, atol=5e-5)


@pytest.mark.parametrize("smallest", [0.5, 1e-3])
def test_repeated_and_close_values(smallest):
    """Where QR sweeps over the factors need thousands; LAPACK resolves the first, the second takes Jacobi."""
    values = np.array([1.0, 1.0, 0.9999, 0.9998, 0.7, 0.5, 0.5, smallest])
    factors = np.tile(np.eye(8), (1000, 1, 1))
    factors[500:504] = rotated(4, values)
    np.testing.assert_allclose(spectrum(jnp.asarray(factors, jnp.float32)), 4 * np.log10(values), atol=1e-4)


SHAPES = [
    [(5, 5), (5, 5), (3, 5), (3, 3), (3, 3), (6, 3)],
    [(3, 6), (6, 3), (5, 6)],
]


@pytest.mark.heavy
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_rectangular_factors(shapes):
    rng = np.random.default_rng(0)
    factors = [rng.standard_normal(shape) for shape in shapes]
    got = jax.jit(spectra.product_spectrum)([jnp.asarray(factor, jnp.float32) for factor in factors])
    rank = min(min(shape) for shape in shapes)
    want = numpy_spectrum(factors)
    assert got.shape == want.shape
    np.testing.assert_allclose(got[:rank], want[:rank], atol=1e-3)
    assert np.all(got[rank:] == -np.inf)


def test_a_list_equals_its_stack_and_the_transposed_product():
    factors = [jnp.asarray(factor, jnp.float32) for factor in gaussian(3, 6)]
    want = spectrum(jnp.stack(factors))
    np.testing.assert_allclose(spectrum(factors), want, atol=1e-6)
    np.testing.assert_allclose(spectrum([f.T for f in factors[::-1]]), want, atol=1e-4)


def rank_deficient():
    rng = np.random.default_rng(4)
    size, depth = 16, 20
    weights = rng.standard_normal((depth, size, size)) / 4
    masks = rng.random((depth, size)) > 0.3
    centre = np.eye(size) - 1 / size
    shift = np.concatenate([np.tile(np.eye(size, k=1), (5, 1, 1)), np.tile(np.eye(size), (depth - 5, 1, 1))])
    pooling = np.kron(np.eye(size // 2), np.ones((2, 2)))[rng.permutation(size)]
    pooled = np.tile(pooling, (20, 1, 1))
    low = np.einsum("lij,ljk->lik", weights[:, :, :9], weights[:, :9])
    return {
        "zero": (np.zeros((depth, size, size)), 0),
        "one zero factor": (weights * (np.arange(depth) != 7)[:, None, None], 0),
        "rows off, as after a ReLU": (masks[:, :, None] * weights, masks.sum(1).min()),
        "columns off": (masks[:, None, :] * weights, masks.sum(1).min()),
        "centring": (centre @ weights, size - 1),
        "centring on both sides": (centre @ weights @ centre, size - 1),
        "low rank": (low, 9),
        "rank one": (weights[:, :, :1] * weights[:, :1], 1),
        "ones": (np.ones((depth, size, size)), 1),
        "shift": (shift, size - 5),
        "nilpotent": (np.tile(np.eye(size, k=1), (depth, 1, 1)), 0),
        "pooling": (pooled, np.linalg.matrix_rank(np.linalg.matrix_power(pooling, 20))),
    }


@pytest.mark.parametrize("name", rank_deficient())
def test_exact_zeros_are_minus_infinity(name, x64):
    factors, rank = rank_deficient()[name]
    factors = np.float32(factors)
    got = np.asarray(spectrum(jnp.asarray(factors)))
    assert not np.any(np.isnan(got))
    assert np.isfinite(got).sum() == rank
    want = np.asarray(spectrum(jnp.asarray(factors, jnp.float64)))
    np.testing.assert_allclose(got[:rank], want[:rank], atol=2e-3)


def test_graded_factors_lose_nothing():
    """Rows or columns over ten orders of magnitude, as behind saturated units."""
    rng = np.random.default_rng(0)
    weights, sizes = gaussian(1000, 8), 10 ** rng.uniform(-10, 0, (1000, 8))
    rows = jnp.asarray(sizes[:, :, None] * weights, jnp.float32)
    columns = jnp.asarray(weights * sizes[:, None, :], jnp.float32)
    for factors in (rows, columns):
        got = spectrum(factors)
        determinant = np.sum(np.linalg.slogdet(np.asarray(factors, np.float64))[1]) / np.log(10)
        np.testing.assert_allclose(np.sum(np.asarray(got, np.float64)), determinant, rtol=1e-6)
    sizes = jnp.arange(0.0, -24.0, -3.0)
    diagonal = jnp.tile(jnp.diag(10.0**sizes), (1000, 1, 1))
    np.testing.assert_allclose(spectrum(diagonal), 1000 * sizes, atol=2e-3)


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_units_leave_float32(unit):
    factors = gaussian(1000, 8)
    got = spectrum(jnp.asarray(factors * unit, jnp.float32))
    want = spectrum(jnp.asarray(factors, jnp.float32)) + 1000 * np.float32(np.log10(unit))
    np.testing.assert_allclose(got, want, atol=1e-2)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_nonfinite_factors_give_nan(bad):
    factors = jnp.asarray(gaussian(3, 6), jnp.float32).at[2, 1, 1].set(bad)
    assert np.all(np.isnan(spectrum(factors)))


def naive(factors):
    product = jnp.eye(factors[0].shape[1], dtype=factors[0].dtype)
    for factor in factors:
        product = factor @ product
    return jnp.log10(jnp.linalg.svd(product, compute_uv=False))


@pytest.mark.heavy
@pytest.mark.parametrize("shapes", [[(6, 6)] * 3, [(3, 5), (5, 3), (4, 5)]], ids=str)
def test_gradients_equal_those_of_the_dense_svd(shapes, x64):
    rng = np.random.default_rng(1)
    factors = [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]
    rank = min(min(shape) for shape in shapes)
    weights = jnp.asarray(rng.standard_normal(rank))
    total = lambda function: lambda factors: jnp.sum(function(factors)[:rank] * weights)  # noqa: E731
    got, want = jax.jit(jax.grad(total(spectra.product_spectrum)))(factors), jax.grad(total(naive))(factors)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.heavy
def test_forward_derivative_equals_that_of_the_dense_svd(x64):
    factors, tangents = jnp.asarray(gaussian(3, 6)), (jnp.asarray(gaussian(3, 6, seed=1)),)
    got = jax.jit(lambda factors, tangents: jax.jvp(spectra.product_spectrum, (factors,), tangents)[1])(
        factors, tangents
    )
    np.testing.assert_allclose(got, jax.jvp(naive, (factors,), tangents)[1], rtol=1e-8)


@jax.jit
def finite_total_gradient(factors):
    def total(factors):
        values = spectra.product_spectrum(factors)
        return jnp.sum(jnp.where(jnp.isfinite(values), values, 0))

    return jax.grad(total)(factors)


@pytest.mark.heavy
def test_gradient_of_a_deep_product():
    """The sum of all log10 values is the log-determinant, whose gradient is the inverse transpose of each factor."""
    factors = jnp.asarray(separated(200, 4, -0.5)[0], jnp.float32)
    got = finite_total_gradient(factors)
    want = np.linalg.inv(np.asarray(factors, np.float64)).transpose(0, 2, 1) / np.log(10)
    np.testing.assert_allclose(got, want, atol=1e-3)


@pytest.mark.parametrize(
    "factor",
    [np.zeros((4, 4)), np.eye(4), np.ones((4, 4)), np.eye(4, k=1), np.diag([1, 1, 0, 0]), np.full((4, 4), np.nan)],
)
def test_gradients_are_finite_at_zeros_and_ties(factor):
    factors = jnp.tile(jnp.asarray(factor, jnp.float32), (200, 1, 1)).at[2:].set(jnp.eye(4, dtype=jnp.float32))
    assert np.all(np.isfinite(finite_total_gradient(factors)))


@pytest.mark.heavy
def test_vmap_equals_a_loop():
    batch = jnp.asarray(np.stack([gaussian(3, 6, seed) for seed in range(3)]), jnp.float32)
    batch = batch.at[1, 1].set(1.0)
    got = jax.jit(jax.vmap(spectra.product_spectrum))(batch)
    for factors, values in zip(batch, got, strict=True):
        np.testing.assert_allclose(values, spectrum(factors), atol=1e-4)


def test_low_precision_goes_through_float32():
    factors = jnp.asarray(gaussian(3, 6), jnp.bfloat16)
    got = spectrum(factors)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, spectrum(factors.astype(jnp.float32)))


def test_bad_input(unchecked):
    square, name = jnp.eye(3), "product_spectrum: expected"
    with pytest.raises(ValueError, match=f"{name} at least one factor"):
        spectra.product_spectrum([])
    with pytest.raises(ValueError, match=f"{name} a stacked array"):
        spectra.product_spectrum(square)
    with pytest.raises(ValueError, match="square matrices in a stacked array"):
        spectra.product_spectrum(jnp.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="factor 1 with 2 columns"):
        spectra.product_spectrum([jnp.ones((2, 3)), jnp.ones((3, 3))])
    with pytest.raises(ValueError, match="factor 1 of shape"):
        spectra.product_spectrum([square, jnp.ones((2, 3, 3))])
    with pytest.raises(TypeError, match="factor 1 of int32"):
        spectra.product_spectrum([square, jnp.ones((3, 3), jnp.int32)])
    with pytest.raises(ValueError, match="none of them empty"):
        spectra.product_spectrum([square, jnp.ones((0, 3))])


@pytest.mark.heavy
@pytest.mark.parametrize(("depth", "size"), [(1000, 8), (100, 32)])
def test_gaussian_products_of_arrays_are_right_to_their_rounding(depth, size):
    """A few of the factors are all but singular, which float32 arithmetic cannot carry through."""
    factors = np.float32(gaussian(depth, size, seed=3))
    got = np.asarray(spectra.product_spectrum(jnp.asarray(factors)), np.float64)
    largest, determinant = exact_extremes(factors)
    assert abs(got[0] - largest) < 1e-4
    assert abs(got.sum() - determinant) < 1e-3


@pytest.mark.parametrize("rank", [1, 8, 15])
def test_rank_of_factors_made_in_float32(rank):
    rng = np.random.default_rng(rank)
    tall, wide = np.float32(rng.standard_normal((16, rank))), np.float32(rng.standard_normal((rank, 16)))
    before, after = np.float32(gaussian(2, 16, seed=1))
    factors = [jnp.asarray(factor) for factor in (before, tall @ wide, after)]
    values = np.asarray(spectra.product_spectrum(factors))
    assert np.sum(np.isfinite(values)) == rank
    assert np.all(values[rank:] == -np.inf)


@pytest.mark.heavy
def test_normalization_loses_one_direction():
    def center(x):
        return x - jnp.mean(x)

    jacobian = jax.jacobian(center)(jnp.arange(12.0))
    values = np.asarray(spectra.product_spectrum([jacobian, jacobian, jacobian]))
    np.testing.assert_allclose(values[:-1], 0, atol=1e-5)
    assert values[-1] == -np.inf
