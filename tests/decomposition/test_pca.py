"""Principal components against scikit-learn's exact ones in double precision, and what must hold of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets
from sklearn.decomposition import PCA

from jaxgrad._moments import CentredRows
from jaxgrad.decomposition import (
    PCAResult,
    pca,
    pca_from_state,
    pca_init,
    pca_inverse_transform,
    pca_transform,
    pca_update,
)
from jaxgrad.decomposition import _pca as implementation
from jaxgrad.decomposition._randomized import block_krylov

SOLVERS = ("covariance", "gram", "svd", "krylov")


def _wide() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 150)) * np.arange(1, 151) ** -0.7


def _duplicates() -> np.ndarray:
    return np.repeat(np.random.default_rng(1).normal(size=(4, 6)) * np.arange(1, 7), 5, axis=0)


DATA = {
    "digits": lambda: datasets.load_digits().data[::4],
    "iris": lambda: datasets.load_iris().data,
    "wine": lambda: datasets.load_wine().data,
    "breast cancer": lambda: datasets.load_breast_cancer().data,
    "blobs": lambda: datasets.make_blobs(200, 8, centers=3, random_state=0)[0],
    "wide": _wide,
    "duplicates": _duplicates,
    "offset": lambda: 1e6 + datasets.load_iris().data,
}


def _sizes(x: np.ndarray) -> int:
    return min(3, x.shape[1])


def _assert_like_sklearn(result: PCAResult, peer: PCA, rtol: float) -> None:
    top = peer.explained_variance_[0]
    np.testing.assert_allclose(result.mean, peer.mean_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(result.components, peer.components_, atol=30 * rtol)
    np.testing.assert_allclose(result.explained_variance, peer.explained_variance_, atol=rtol * top)
    np.testing.assert_allclose(result.explained_variance_ratio, peer.explained_variance_ratio_, atol=rtol)
    np.testing.assert_allclose(result.singular_values, peer.singular_values_, atol=rtol * peer.singular_values_[0])
    np.testing.assert_allclose(result.noise_variance, peer.noise_variance_, atol=rtol * top)


@pytest.mark.parametrize(
    ("name", "solver"),
    [(name, "auto") for name in DATA]
    + [(name, solver) for name in ("wide", "duplicates", "offset") for solver in SOLVERS],
)
def test_every_solver_agrees_with_sklearn_in_double_precision(name: str, solver: str, x64: None) -> None:
    x = DATA[name]()
    peer = PCA(_sizes(x), svd_solver="full").fit(x)
    result = pca(jnp.asarray(x), _sizes(x), solver=solver, tol=1e-12)
    _assert_like_sklearn(result, peer, 1e-9 if name == "offset" else 1e-12)
    np.testing.assert_allclose(
        pca_transform(result, x), peer.transform(x), atol=1e-6 * np.sqrt(peer.explained_variance_[0])
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_single_precision_keeps_the_digits_of_data_far_from_zero(solver: str) -> None:
    rng = np.random.default_rng(2)
    x = (1e6 + rng.normal(size=(300, 12)) * np.arange(12, 0, -1)).astype(np.float32)
    peer = PCA(3, svd_solver="full").fit(x.astype(np.float64))
    result = pca(x, 3, solver=solver, tol=1e-5)
    assert result.components.dtype == jnp.float32
    _assert_like_sklearn(result, peer, 3e-6)
    np.testing.assert_allclose(pca_transform(result, x), peer.transform(x.astype(np.float64)), atol=2e-3)


def test_auto_reaches_the_error_it_is_asked_for_and_says_so() -> None:
    x = (np.random.default_rng(3).normal(size=(60, 30)) * np.arange(1, 31) ** -2.0).astype(np.float32)
    exact = PCA(20, svd_solver="full").fit(np.asarray(x, np.float64))
    close, rough = pca(x, 20, tol=1e-6), pca(x, 20)
    # Under the rounding unit times sixteen only the singular values themselves will do.
    np.testing.assert_allclose(close.explained_variance, exact.explained_variance_, rtol=2e-4)
    np.testing.assert_array_equal(close.components, pca(x, 20, solver="svd").components)
    np.testing.assert_array_equal(rough.components, pca(x, 20, solver="covariance").components)
    assert float(rough.error) < 1e-4


def test_krylov_iterates_until_its_error_is_that_asked_for() -> None:
    x = np.random.default_rng(4).normal(size=(100, 80)).astype(np.float32)  # no gaps: slow
    exact = PCA(2, svd_solver="full").fit(x.astype(np.float64))
    for tol in (1e-2, 1e-4):
        result = pca(x, 2, solver="krylov", tol=tol)
        assert float(result.error) <= tol
        np.testing.assert_allclose(result.explained_variance, exact.explained_variance_, rtol=tol)


@pytest.mark.parametrize("shape", [(300, 210), (210, 300)])
def test_krylov_runs_on_either_side_with_many_components(shape: tuple[int, int]) -> None:
    scales = np.arange(1, shape[1] + 1) ** -0.7
    x = (5 + np.random.default_rng(9).normal(size=shape) * scales).astype(np.float32)
    weights = np.random.default_rng(10).integers(0, 4, shape[0]).astype(np.float32)
    exact = PCA(40, svd_solver="full").fit(np.repeat(x.astype(np.float64), weights.astype(int), axis=0))
    result = pca(x, 40, solver="krylov", tol=1e-5, weights=weights)
    assert float(result.error) <= 1e-5
    np.testing.assert_allclose(result.explained_variance, exact.explained_variance_, rtol=2e-5)
    np.testing.assert_allclose(result.noise_variance, exact.noise_variance_, rtol=2e-5)
    components = np.asarray(result.components)
    np.testing.assert_allclose(components @ components.T, np.eye(40), atol=2e-6)
    np.testing.assert_allclose(np.abs(np.sum(components * exact.components_, axis=1)), 1, atol=1e-3)


@pytest.mark.heavy
def test_auto_gives_krylov_up_where_another_solver_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(11).normal(size=(1100, 1024)).astype(np.float32)  # no gaps
    nothing = jnp.zeros_like(x[0])
    rows = CentredRows(jnp.asarray(x), None, nothing, nothing, jnp.ones_like(x[0, 0]))
    soon, never = (block_krylov(rows, 4, jnp.uint32(0), 1e-4, budget=budget) for budget in (12, None))
    assert float(soon.error) > 1e-2
    assert float(never.error) <= 1e-4
    exact = pca(x, 4, solver="covariance")
    assert bool(jnp.any(pca(x, 4).components != exact.components))  # within its budget it converges
    monkeypatch.setattr(implementation, "passes_worth", lambda *sizes: 12)
    np.testing.assert_array_equal(pca(x, 4).components, exact.components)


def test_a_key_gives_krylov_another_start_and_the_same_components() -> None:
    x = jnp.asarray(_wide(), jnp.float32).T
    a, b, c = (pca(x, 2, solver="krylov", tol=1e-5, key=key) for key in (None, None, jax.random.key(1)))
    np.testing.assert_array_equal(a.components, b.components)
    assert bool(jnp.any(a.components != c.components))
    np.testing.assert_allclose(a.components, c.components, atol=2e-3)
    np.testing.assert_allclose(a.explained_variance, c.explained_variance, rtol=1e-5)


@pytest.mark.parametrize("name", ["digits", "iris", "wine", "breast cancer", "blobs"])
@pytest.mark.parametrize("wanted", [0.5, 0.9, 0.999, "mle"])
def test_the_number_of_components_is_sklearns(name: str, wanted: float | str, x64: None) -> None:
    x = DATA[name]()
    if name == "digits":
        x = x[:, x.std(axis=0) > 0.5]
    peer = PCA(wanted, svd_solver="full").fit(x)
    result = pca(jnp.asarray(x), wanted)
    assert result.components.shape == peer.components_.shape
    np.testing.assert_allclose(result.noise_variance, peer.noise_variance_, rtol=1e-6, atol=1e-9)


def test_the_same_number_of_components_comes_from_a_stream(x64: None) -> None:
    x = DATA["wine"]()
    state = pca_update(pca_init(x.shape[1]), x)
    for wanted in (0.999, "mle", None):
        assert pca_from_state(state, wanted).components.shape == pca(x, wanted).components.shape


@pytest.mark.parametrize("solver", SOLVERS)
def test_whitened_coordinates_have_variance_one_or_none(solver: str) -> None:
    x = jnp.asarray(_duplicates(), jnp.float32)  # of rank 3
    result = pca(x, 6, solver=solver, whiten=True)
    z = pca_transform(result, x)
    np.testing.assert_allclose(jnp.var(z, axis=0, ddof=1), [1, 1, 1, 0, 0, 0], atol=1e-5)
    np.testing.assert_array_equal(z[:, 3:], 0)
    np.testing.assert_allclose(pca_inverse_transform(result, z), x, atol=1e-4)
    np.testing.assert_allclose(result.components @ result.components.T, np.eye(6), atol=1e-5)


def test_eps_says_what_is_too_small_to_whiten() -> None:
    x = jnp.diag(jnp.array([100.0, 1.0, 0.01])) @ jnp.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    x = jnp.concatenate([x, -x])
    assert jnp.sum(pca(x, 3, whiten=True, eps=0.0).scale > 0) == 3
    assert jnp.sum(pca(x, 3, whiten=True, eps=1e-3).scale > 0) == 1


def test_whitening_matches_sklearn(x64: None) -> None:
    x = DATA["wine"]()
    peer = PCA(5, whiten=True, svd_solver="full").fit(x)
    result = pca(x, 5, whiten=True)
    np.testing.assert_allclose(pca_transform(result, x), peer.transform(x), atol=1e-6)
    np.testing.assert_allclose(
        pca_inverse_transform(result, pca_transform(result, x)), peer.inverse_transform(peer.transform(x))
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_weights_count_rows(solver: str) -> None:
    rng = np.random.default_rng(5)
    x = (3 + rng.normal(size=(30, 8)) * np.arange(1, 9)).astype(np.float32)
    counts = rng.integers(0, 4, 30)
    x[counts == 0] = np.nan  # a row that takes no part may hold anything
    weighted = pca(x, 2, solver=solver, weights=counts, tol=1e-5)
    repeated = pca(np.repeat(x, counts, axis=0), 2, solver=solver, tol=1e-5)
    assert float(weighted.num_samples) == counts.sum()
    for mine, other in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_signs_come_from_the_components_alone(solver: str) -> None:
    x = jnp.asarray(DATA["wine"](), jnp.float32)
    components = pca(x, 3, solver=solver).components
    flipped = pca(-x[::-1], 3, solver=solver).components
    np.testing.assert_allclose(components, flipped, atol=1e-2)
    assert bool(jnp.all(jnp.take_along_axis(components, jnp.argmax(jnp.abs(components), 1)[:, None], 1) > 0))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("value", [0.0, 7.3, 1e-30, 1e25])
def test_constant_data_have_no_variance_and_orthonormal_components(solver: str, value: float) -> None:
    x = jnp.full((10, 4), value)
    result = pca(x, 2, solver=solver, whiten=True)
    for field in (result.explained_variance, result.explained_variance_ratio, result.singular_values):
        np.testing.assert_array_equal(field, 0)
    assert float(result.noise_variance) == 0
    np.testing.assert_allclose(result.components @ result.components.T, np.eye(2), atol=1e-6)
    np.testing.assert_array_equal(pca_transform(result, x), 0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_identity_and_rank_one_are_right(solver: str) -> None:
    corners = jnp.concatenate([jnp.eye(8), -jnp.eye(8)])  # covariance 2 / 15 in every direction
    result = pca(corners, 3, solver=solver)
    np.testing.assert_allclose(result.explained_variance, 2 / 15, rtol=1e-5)
    np.testing.assert_allclose(result.noise_variance, 2 / 15, rtol=1e-5)
    line = jnp.outer(jnp.arange(10.0), jnp.array([3.0, 4.0, 0.0, 0.0, 0, 0, 0, 0]))
    result = pca(line, 2, solver=solver)
    np.testing.assert_allclose(result.components[0], [0.6, 0.8, 0, 0, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(result.explained_variance_ratio, [1, 0], atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_the_unit_of_the_data_changes_no_direction(solver: str, scale: float) -> None:
    x = np.random.default_rng(6).normal(size=(50, 5)).astype(np.float32) * np.arange(1, 6, dtype=np.float32)
    plain, scaled = (pca(jnp.asarray(data), 2, solver=solver, whiten=True) for data in (x, x * np.float32(scale)))
    np.testing.assert_allclose(scaled.components, plain.components, atol=1e-5)
    np.testing.assert_allclose(scaled.explained_variance_ratio, plain.explained_variance_ratio, rtol=1e-5)
    np.testing.assert_allclose(scaled.singular_values / scale, plain.singular_values, rtol=1e-5)
    np.testing.assert_allclose(pca_transform(scaled, x * np.float32(scale)), pca_transform(plain, x), atol=1e-4)


@pytest.mark.parametrize("solver", ["covariance", "gram", "krylov"])
def test_jit_and_vmap_change_nothing(solver: str) -> None:
    batch = jax.random.normal(jax.random.key(0), (3, 20, 6)) * jnp.arange(1.0, 7)[None, None] + 5
    weights = jnp.ones((3, 20)).at[:, 3].set(2)
    fit = lambda x, w: pca(x, 2, solver=solver, weights=w, whiten=True, tol=1e-5)  # noqa: E731
    mapped = jax.jit(jax.vmap(fit))(batch, weights)
    for i, x in enumerate(batch):
        for mine, other in zip(mapped, fit(x, weights[i]), strict=True):
            np.testing.assert_allclose(mine[i], other, rtol=1e-4, atol=1e-4)
    transformed = jax.vmap(pca_transform)(mapped, batch)
    np.testing.assert_allclose(jnp.var(transformed - transformed.mean(1, keepdims=True), 1), 1, atol=0.2)


def test_a_traced_row_that_is_not_finite_takes_no_part() -> None:
    x = jnp.asarray(DATA["iris"]()[:30], jnp.float32)
    clean = pca(x, 2)
    bad = jnp.concatenate([x, jnp.full((1, 4), jnp.nan), jnp.full((1, 4), jnp.inf)])
    for mine, other in zip(jax.jit(lambda x: pca(x, 2))(bad), clean, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
    weights = jnp.concatenate([jnp.ones(30), jnp.array([jnp.nan, -1.0])])
    both = jnp.concatenate([x, x[:2]])
    for mine, other in zip(jax.jit(lambda x, w: pca(x, 2, weights=w))(both, weights), clean, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5)
    nothing = jax.jit(lambda x: pca(x, 2, whiten=True))(jnp.full((5, 4), jnp.nan))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in nothing)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32, jnp.bool_])
def test_other_types_are_computed_in_the_default_float(dtype: jnp.dtype) -> None:
    x = (jax.random.normal(jax.random.key(1), (20, 4)) * 3).astype(dtype)
    result = pca(x, 2)
    wide = jnp.result_type(float) if dtype in (jnp.int32, jnp.bool_) else jnp.float32
    assert result.components.dtype == wide
    np.testing.assert_array_equal(result.components, pca(x.astype(wide), 2).components)


def _every_field(x: jax.Array, w: jax.Array, solver: str) -> jax.Array:
    result = pca(x, 2, solver=solver, weights=w, tol=1e-12)
    fields = (*result[:6], result.num_samples)
    return sum(jnp.sum(jnp.sin(field) * (1.0 + field.size)) for field in fields)


@pytest.mark.heavy
@pytest.mark.parametrize(("shape", "solver"), [((8, 5), "covariance"), ((5, 8), "krylov")])
def test_derivatives_are_those_of_finite_differences(shape: tuple[int, int], solver: str, x64: None) -> None:
    rng = np.random.default_rng(7)
    x, dx = (jnp.asarray(rng.normal(size=shape) * np.arange(1, shape[1] + 1)) for _ in range(2))
    w, dw = (jnp.asarray(rng.uniform(0.5, 2, shape[0])) for _ in range(2))
    value, slopes = (
        jax.jit(lambda x, w: _every_field(x, w, solver)),
        jax.jit(jax.grad(_every_field, (0, 1)), static_argnums=2),
    )
    step = 1e-5
    difference = (value(x + step * dx, w + step * dw) - value(x - step * dx, w - step * dw)) / (2 * step)
    by_x, by_w = slopes(x, w, solver)
    np.testing.assert_allclose(jnp.sum(by_x * dx) + jnp.sum(by_w * dw), difference, rtol=1e-5)


@pytest.mark.parametrize("solver", ["covariance", "svd", "krylov"])
def test_derivatives_are_finite_where_variances_are_equal(solver: str) -> None:
    slope = jax.jit(jax.grad(lambda x: sum(jnp.sum(leaf) for leaf in pca(x, 2, solver=solver, whiten=True))))
    zero, identity, line = np.zeros((8, 4)), np.concatenate([np.eye(4), -np.eye(4)]), np.outer(np.arange(8), np.ones(4))
    for x in (zero, identity, line):
        assert bool(jnp.all(jnp.isfinite(slope(jnp.asarray(x, jnp.float32)))))


@pytest.mark.heavy
def test_the_derivative_of_a_variance_is_twice_the_coordinates_along_it() -> None:
    x = jax.random.normal(jax.random.key(2), (10, 4)) * jnp.arange(1.0, 5)[None]
    result = pca(x, 1)
    gradient = jax.grad(lambda x: pca(x, 1).explained_variance[0])(x)
    np.testing.assert_allclose(gradient, 2 / 9 * pca_transform(result, x) * result.components, atol=1e-4)


def test_all_components_and_back_is_the_identity() -> None:
    x = jnp.asarray(DATA["wine"](), jnp.float32)
    for whiten in (False, True):
        result = pca(x, solver="svd", whiten=whiten, eps=0.0)
        assert result.components.shape == (13, 13)
        np.testing.assert_allclose(pca_inverse_transform(result, pca_transform(result, x)), x, rtol=1e-4, atol=2e-3)
        assert float(result.noise_variance) == 0


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("x", "options", "error", "text"),
    [
        (np.ones((0, 3)), {}, ValueError, "at least one row"),
        (np.ones((3, 0)), {}, ValueError, "at least one row"),
        (np.ones((1, 3)), {}, ValueError, "at least two rows"),
        (np.ones(3), {}, ValueError, r"shape \(num_rows, num_features\)"),
        (np.ones((2, 3, 4)), {}, ValueError, "a row an example"),
        (np.ones((4, 3), np.complex64), {}, TypeError, "real"),
        (np.ones((4, 3)), {"num_components": 0}, ValueError, "1 to 3"),
        (np.ones((4, 3)), {"num_components": 4}, ValueError, "1 to 3"),
        (np.ones((3, 4)), {"num_components": 4}, ValueError, "1 to 3"),
        (np.ones((4, 3)), {"num_components": -1}, ValueError, "1 to 3"),
        (np.ones((4, 3)), {"num_components": True}, TypeError, "bool"),
        (np.ones((4, 3)), {"num_components": 1.0}, ValueError, "share"),
        (np.ones((4, 3)), {"num_components": 2.5}, ValueError, "share"),
        (np.ones((4, 3)), {"num_components": float("nan")}, ValueError, "share"),
        (np.ones((4, 3)), {"num_components": "all"}, ValueError, "'mle'"),
        (np.ones((4, 3)), {"num_components": [2]}, TypeError, "list"),
        (np.ones((4, 3)), {"solver": "qr"}, ValueError, "'auto', 'covariance'"),
        (np.ones((4, 3)), {"num_components": 0.5, "solver": "krylov"}, ValueError, "int num_components"),
        (np.ones((3, 4)), {"num_components": "mle"}, ValueError, "num_components|as many rows"),
        (np.ones((4, 3)), {"weights": np.ones(3)}, ValueError, r"weights of shape \(4,\)"),
        (np.ones((4, 3)), {"weights": np.ones((4, 1))}, ValueError, r"weights of shape \(4,\)"),
        (np.ones((4, 3)), {"weights": np.ones(4, np.complex64)}, TypeError, "real weights"),
        (np.ones((4, 3)), {"tol": 0.0}, ValueError, "tol"),
        (np.ones((4, 3)), {"tol": "small"}, TypeError, "tol"),
        (np.ones((4, 3)), {"eps": -1.0}, ValueError, "eps"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    unchecked: None, x: np.ndarray, options: dict, error: type[Exception], text: str, compiled: bool
) -> None:
    fit = lambda x: pca(x, **{"num_components": 1, **options})  # noqa: E731
    with pytest.raises(error, match=text) as caught:
        jax.jit(fit)(x) if compiled else fit(x)
    assert str(caught.value).startswith("pca: expected")


@pytest.mark.parametrize(
    ("x", "weights", "text"),
    [
        (np.array([[0.0, 1], [np.nan, 2], [np.inf, 1]]), None, "2 of 3 with a NaN"),
        (np.eye(3), np.zeros(3), "weights that sum to more than 1"),
        (np.eye(3), np.full(3, 1 / 3), "weights that sum to more than 1"),
        (np.eye(3), np.array([1.0, -1, 2]), "1 of 3"),
        (np.eye(3), np.array([1.0, np.nan, 2]), "1 of 3"),
        (np.array([[3e38, 1], [3e38, 2], [-3e38, 1]]), None, "deviations"),
    ],
)
def test_bad_values_are_refused_where_they_can_be_seen(
    unchecked: None, x: np.ndarray, weights: np.ndarray | None, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        pca(jnp.asarray(x, jnp.float32), 1, weights=weights)


@pytest.mark.parametrize("wanted", [0.9, "mle"])
def test_a_number_to_be_found_is_refused_of_traced_data(unchecked: None, wanted: float | str) -> None:
    with pytest.raises(ValueError, match="call pca outside of jit"):
        jax.jit(lambda x: pca(x, wanted))(jnp.ones((5, 3)))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("function", [pca_transform, pca_inverse_transform])
def test_transforms_refuse_other_features(unchecked: None, function, compiled: bool) -> None:
    result = pca(jnp.asarray(DATA["iris"](), jnp.float32), 2)
    apply = jax.jit(function) if compiled else function
    for bad, error in ((np.ones((2, 3)), ValueError), (np.ones(4), ValueError), (np.ones((2, 4), complex), TypeError)):
        with pytest.raises(error, match=function.__name__):
            apply(result, bad)
