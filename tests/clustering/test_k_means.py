"""k-means against scikit-learn from the same start, against the definition, and at the edges."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from scipy.spatial.distance import cdist
from sklearn import cluster, datasets

from jaxgrad.clustering import KMeansResult, assign, k_means
from jaxgrad.clustering import _k_means as implementation


def blobs(offset: float = 0.0) -> np.ndarray:
    return datasets.make_blobs(1200, 8, centers=7, random_state=1)[0] + offset


def stretched() -> np.ndarray:
    return datasets.make_blobs(1200, 2, centers=4, random_state=170)[0] @ np.array([[0.6, -0.6], [-0.4, 0.8]])


DATASETS: dict[str, Callable[[], np.ndarray]] = {
    "digits": lambda: datasets.load_digits().data,
    "iris": lambda: datasets.load_iris().data,
    "wine": lambda: datasets.load_wine().data,
    "breast cancer": lambda: datasets.load_breast_cancer().data,
    "diabetes": lambda: datasets.load_diabetes().data,
    "blobs": blobs,
    "moons": lambda: datasets.make_moons(1000, noise=0.1, random_state=1)[0],
    "stretched": stretched,
    "uniform": lambda: np.random.default_rng(0).random((1500, 5)),
    "high-dimensional": lambda: np.random.default_rng(0).standard_normal((200, 1000)),
    "duplicated": lambda: np.repeat(np.random.default_rng(0).standard_normal((11, 3)), 40, axis=0),
    "offset": lambda: blobs(1e6),
}


def some_by_default(*values: str, default: tuple[str, ...]) -> list:
    """Leave most of many like tests to the heavy ones: each compiles a program."""
    return [value if value in default else pytest.param(value, marks=pytest.mark.heavy) for value in values]


METRICS = some_by_default("euclidean", "manhattan", "cosine", "mahalanobis", default=("euclidean", "manhattan"))


def rows_of(name: str, dtype: type = np.float32) -> np.ndarray:
    return DATASETS[name]().astype(dtype)


def some_rows(x: np.ndarray, k: int, seed: int = 3) -> np.ndarray:
    return x[np.random.default_rng(seed).choice(len(x), k, replace=False)]


@pytest.fixture(params=["every row", pytest.param("bounds", marks=pytest.mark.heavy)])
def body(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to label rows, whatever the size of the data."""
    monkeypatch.setattr(implementation, "_SMALL", 1 << 62 if request.param == "every row" else 0)
    return request.param


@pytest.mark.parametrize(
    "name", some_by_default(*DATASETS, default=("digits", "wine", "moons", "duplicated", "offset"))
)
def test_follows_scikit_learn_from_the_same_start(name: str) -> None:
    follows_scikit_learn(rows_of(name))


@pytest.mark.parametrize("name", some_by_default(*DATASETS, default=("digits", "duplicated")))
def test_follows_scikit_learn_with_bounds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(implementation, "_SMALL", 0)
    follows_scikit_learn(rows_of(name))


def follows_scikit_learn(x: np.ndarray) -> None:
    start = some_rows(x, 8)
    want = cluster.KMeans(8, init=start, n_init=1).fit(x)
    got = k_means(None, x, 8, init=start)
    np.testing.assert_array_equal(got.labels, want.labels_)
    np.testing.assert_allclose(got.inertia, want.inertia_, rtol=2e-6)
    np.testing.assert_allclose(got.centroids, want.cluster_centers_, rtol=2e-5, atol=2e-5 * np.abs(x).max())
    assert got.num_steps == want.n_iter_


@pytest.mark.usefixtures("body", "x64")
@pytest.mark.parametrize("name", ["digits", "offset"])
def test_follows_scikit_learn_in_double_precision(name: str) -> None:
    x = rows_of(name, np.float64)
    start = some_rows(x, 8)
    want = cluster.KMeans(8, init=start, n_init=1, tol=0).fit(x)
    got = k_means(None, x, 8, init=start, tol=0)
    np.testing.assert_array_equal(got.labels, want.labels_)
    np.testing.assert_allclose(got.inertia, want.inertia_, rtol=1e-12)


@pytest.mark.heavy
@pytest.mark.parametrize("name", DATASETS)
def test_the_default_fit_is_no_worse_than_scikit_learns(name: str) -> None:
    x = rows_of(name)
    ours = [float(k_means(jax.random.key(seed), x, 8).inertia) for seed in range(20)]
    theirs = [cluster.KMeans(8, random_state=seed).fit(x).inertia_ for seed in range(20)]
    # Of twenty seeds the median itself varies: by the spread of the fits over the root of their number.
    slack = 1.25 * (np.std(ours) + np.std(theirs)) / np.sqrt(20)
    assert np.median(ours) <= np.median(theirs) * (1 + 1e-6) + slack


@pytest.mark.parametrize("metric", some_by_default("euclidean", "cosine", "mahalanobis", default=("euclidean",)))
def test_bounds_give_the_labels_of_a_search_of_every_row(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(5).standard_normal((3000, 6)).astype(np.float32)
    results = []
    for small in (1 << 62, 0):
        monkeypatch.setattr(implementation, "_SMALL", small)
        results.append(k_means(None, x, 20, metric=metric, init=some_rows(x, 20), max_steps=12, tol=0))
    plain, bounded = results
    assert np.mean(plain.labels != bounded.labels) < 2e-3
    np.testing.assert_allclose(bounded.inertia, plain.inertia, rtol=1e-5)
    assert plain.num_steps == bounded.num_steps


@pytest.mark.heavy
def test_bounds_that_fail_and_are_tried_again_change_no_label(x64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(6).random((4000, 5))
    results = []
    for small in (1 << 62, 0):
        monkeypatch.setattr(implementation, "_SMALL", small)
        results.append(k_means(None, x, 24, init=some_rows(x, 24), max_steps=60, tol=0))
    plain, bounded = results
    np.testing.assert_array_equal(plain.labels, bounded.labels)
    np.testing.assert_allclose(bounded.centroids, plain.centroids, rtol=1e-12)
    assert plain.num_steps == bounded.num_steps


def definition(x: np.ndarray, centroids: np.ndarray, metric: str, covariance: np.ndarray | None) -> np.ndarray:
    names = {"euclidean": "sqeuclidean", "manhattan": "cityblock"}
    if metric == "mahalanobis":
        return cdist(x, centroids, "mahalanobis", VI=np.linalg.inv(covariance)) ** 2
    return cdist(x, centroids, names.get(metric, metric))


def centre(x: np.ndarray, metric: str) -> np.ndarray:
    if metric == "manhattan":
        return np.median(x, axis=0)
    if metric == "cosine":
        total = (x / np.linalg.norm(x, axis=1, keepdims=True)).sum(axis=0)
        return total / np.linalg.norm(total)
    return x.mean(axis=0)


@pytest.mark.usefixtures("body")
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("given", [False, True])
def test_is_a_fixed_point_of_the_definition(metric: str, given: bool) -> None:
    x = rows_of("wine")
    if given and metric != "mahalanobis":
        pytest.skip("only Mahalanobis distances have a covariance")
    covariance = np.cov(x.T, bias=True).astype(np.float32) if metric == "mahalanobis" else None
    got = k_means(
        jax.random.key(1), x, 4, metric=metric, covariance=covariance if given else None, tol=0, init="k-means++"
    )
    assert got.converged
    paid = definition(x.astype(np.float64), np.asarray(got.centroids, np.float64), metric, covariance)
    near = paid.min(axis=1)
    np.testing.assert_allclose(paid[np.arange(len(x)), got.labels], near, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(got.inertia, near.sum(), rtol=1e-4)
    for j in range(4):
        mine = centre(x[np.asarray(got.labels) == j], metric)
        np.testing.assert_allclose(got.centroids[j], mine, rtol=1e-4, atol=1e-5 * np.abs(mine).max())
    np.testing.assert_array_equal(assign(got, x, metric=metric, covariance=covariance), got.labels)


@pytest.mark.usefixtures("body")
@pytest.mark.parametrize("metric", METRICS)
def test_a_weight_is_a_number_of_copies(metric: str) -> None:
    x = rows_of("iris")
    copies = np.random.default_rng(0).integers(0, 4, len(x))
    start = some_rows(x[copies > 0], 5)
    weighted = k_means(None, x, 5, metric=metric, init=start, weights=copies.astype(np.float32), tol=0)
    repeated = k_means(None, np.repeat(x, copies, axis=0), 5, metric=metric, init=start, tol=0)
    np.testing.assert_array_equal(np.repeat(weighted.labels, copies), repeated.labels)
    np.testing.assert_allclose(weighted.inertia, repeated.inertia, rtol=1e-5)
    np.testing.assert_allclose(weighted.centroids, repeated.centroids, rtol=1e-5, atol=1e-5)


def test_manhattan_centroids_are_medians_and_not_means() -> None:
    x = np.array([[0.0], [1.0], [2.0], [50.0], [1000.0], [1001.0]], np.float32)
    got = k_means(None, x, 2, metric="manhattan", init=np.array([[0.0], [1000.0]], np.float32))
    np.testing.assert_allclose(got.centroids, [[1.5], [1000.5]])
    np.testing.assert_allclose(got.inertia, 51 + 1)


def test_restarts_keep_the_best_and_the_first_of_equals() -> None:
    x = rows_of("digits")
    starts = np.stack([some_rows(x, 10, seed) for seed in range(23)])
    singles = [k_means(None, x, 10, init=start) for start in starts]
    inertias = np.array([single.inertia for single in singles])
    together = k_means(None, x, 10, init=starts, num_restarts=23)
    np.testing.assert_allclose(together.inertia, inertias.min(), rtol=1e-6)
    # Two starts may end in one fit, whose inertias differ by rounding, and whose steps may be more or fewer.
    equals = [single for single in singles if single.inertia <= inertias.min() * (1 + 2e-6)]
    assert any(
        np.array_equal(together.labels, single.labels) and abs(together.num_steps - single.num_steps) <= 1
        for single in equals
    )

    again = np.stack([starts[0], starts[0][::-1]])  # one fit, its clusters named the other way round
    np.testing.assert_array_equal(k_means(None, x, 10, init=again, num_restarts=2).labels, singles[0].labels)


@pytest.mark.heavy
@pytest.mark.usefixtures("body")
def test_restarts_agree_whether_they_go_in_lanes_or_in_turn() -> None:
    x = rows_of("wine")
    got = k_means(jax.random.key(0), x, 6, num_restarts=12)
    singles = [k_means(jax.random.fold_in(jax.random.key(0), i), x, 6).inertia for i in range(12)]
    np.testing.assert_allclose(got.inertia, min(singles), rtol=1e-5)


@pytest.mark.usefixtures("body")
def test_a_centroid_without_rows_moves_to_the_row_that_pays_most() -> None:
    x = np.concatenate([np.zeros((5, 2)), np.ones((5, 2)), [[10.0, 0.0]]]).astype(np.float32)
    start = np.array([[0.0, 0.0], [-500.0, 0.0], [-600.0, 0.0]], np.float32)
    got = k_means(None, x, 3, init=start)
    assert got.converged
    assert got.num_distinct == 3
    np.testing.assert_allclose(got.inertia, 0, atol=1e-10)


@pytest.mark.usefixtures("body")
@pytest.mark.parametrize("metric", METRICS[:3])
@pytest.mark.parametrize(
    "init", some_by_default("random", "k-means++", "greedy-k-means++", "k-means||", default=("greedy-k-means++",))
)
def test_fewer_distinct_rows_than_clusters_end_at_once(metric: str, init: str) -> None:
    x = np.repeat(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], np.float32) + 1e3 * (metric != "cosine"), 20, axis=0)
    got = k_means(jax.random.key(0), x, 7, metric=metric, init=init)
    assert got.converged
    assert got.num_steps < 10
    assert got.num_distinct <= 3
    if init != "random":
        assert got.num_distinct == 3
        np.testing.assert_allclose(got.inertia, 0, atol=1e-5)
    assert np.isfinite(got.centroids).all()


@pytest.mark.heavy
@pytest.mark.usefixtures("body")
@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e15, 1e18])
def test_the_unit_of_the_data_does_not_matter(factor: float) -> None:
    x = rows_of("blobs")
    start = some_rows(x, 7)
    want, got = (
        k_means(None, x, 7, init=start),
        k_means(None, x * np.float32(factor), 7, init=start * np.float32(factor)),
    )
    np.testing.assert_array_equal(got.labels, want.labels)
    np.testing.assert_allclose(got.centroids, want.centroids * np.float32(factor), rtol=1e-4)


@pytest.mark.usefixtures("body")
def test_an_offset_costs_no_digits() -> None:
    x = np.round(rows_of("blobs") * 64) / 64  # so that the sum with the offset is exact
    start = some_rows(x, 7)
    want, got = k_means(None, x, 7, init=start), k_means(None, x + 1e4, 7, init=start + 1e4)
    np.testing.assert_array_equal(got.labels, want.labels)
    np.testing.assert_allclose(got.inertia, want.inertia, rtol=1e-4)


@pytest.mark.usefixtures("body")
@pytest.mark.parametrize("chunk_size", [7, pytest.param(1, marks=pytest.mark.heavy), 5000])
def test_the_size_of_a_block_does_not_matter(chunk_size: int) -> None:
    x = rows_of("wine")
    start = some_rows(x, 4)
    want, got = k_means(None, x, 4, init=start), k_means(None, x, 4, init=start, chunk_size=chunk_size)
    np.testing.assert_array_equal(got.labels, want.labels)
    np.testing.assert_array_equal(assign(want, x, chunk_size=chunk_size), want.labels)


@pytest.mark.heavy
@pytest.mark.usefixtures("body")
def test_stops_where_it_is_told_to() -> None:
    x = rows_of("breast cancer")
    start = some_rows(x, 10)
    for max_steps in (1, 3):
        want = cluster.KMeans(10, init=start, n_init=1, max_iter=max_steps).fit(x)
        got = k_means(None, x, 10, init=start, max_steps=max_steps)
        assert not got.converged
        assert got.num_steps == max_steps
        np.testing.assert_array_equal(got.labels, want.labels_)
        np.testing.assert_array_equal(got.labels, assign(got, x))
    loose = k_means(None, x, 10, init=start, tol=1e-1)
    assert loose.converged
    assert loose.num_steps == cluster.KMeans(10, init=start, n_init=1, tol=1e-1).fit(x).n_iter_


def test_one_cluster_is_the_mean() -> None:
    x = rows_of("iris")
    got = k_means(jax.random.key(0), x, 1)
    np.testing.assert_allclose(got.centroids[0], x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(got.inertia, ((x - x.mean(axis=0)) ** 2).sum(), rtol=1e-5)


@pytest.mark.heavy
def test_as_many_clusters_as_rows_pay_nothing() -> None:
    x = rows_of("iris")[::10]
    x = x[np.unique(x, axis=0, return_index=True)[1]]
    got = k_means(jax.random.key(0), x, len(x))
    assert got.num_distinct == len(x)
    np.testing.assert_allclose(got.inertia, 0, atol=1e-9)


@pytest.mark.heavy
def test_maps_over_datasets_and_keys() -> None:
    x = np.random.default_rng(2).standard_normal((3, 80, 2)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 3)
    mapped = jax.vmap(partial(k_means, num_clusters=4))(keys, jnp.asarray(x))
    for i in range(3):
        alone = k_means(keys[i], x[i], 4)
        np.testing.assert_array_equal(mapped.labels[i], alone.labels)
        np.testing.assert_allclose(mapped.inertia[i], alone.inertia, rtol=1e-5)


@pytest.mark.parametrize(
    "name", some_by_default("bfloat16", "float16", "int32", "uint8", "bool", default=("bfloat16",))
)
def test_takes_any_real_dtype(name: str) -> None:
    dtype = jnp.dtype(name)
    x = jnp.asarray(rows_of("digits")[:200]).astype(dtype)
    got, want = k_means(jax.random.key(0), x, 5), k_means(jax.random.key(0), x.astype(jnp.float32), 5)
    np.testing.assert_array_equal(got.labels, want.labels)
    assert jnp.issubdtype(got.centroids.dtype, jnp.floating)


def test_a_row_without_direction_pays_one_under_cosine() -> None:
    x = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 0.0]], np.float32)
    got = k_means(None, x, 2, metric="cosine", init=x[[0, 2]])
    np.testing.assert_allclose(got.inertia, 1.0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(got.centroids, axis=1), 1, rtol=1e-6)


def test_directions_close_to_one_another_keep_their_digits() -> None:
    x = rows_of("digits")[:400] + np.float32(1e4)
    got = k_means(jax.random.key(0), x, 5, metric="cosine")
    assert got.converged
    directions = x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    mine = [centre(directions[np.asarray(got.labels) == j], "cosine") for j in range(5)]
    paid = 1 - np.sum(directions * np.stack(mine)[np.asarray(got.labels)], axis=1)
    np.testing.assert_allclose(got.inertia, paid.sum(), rtol=1e-3)


@pytest.mark.heavy
def test_constant_features_do_not_hurt_an_estimated_covariance() -> None:
    x = rows_of("iris")
    constant = np.concatenate([x, np.full((len(x), 1), 7.0, np.float32)], axis=1)
    want, got = (k_means(jax.random.key(0), data, 3, metric="mahalanobis") for data in (x, constant))
    np.testing.assert_allclose(got.inertia, want.inertia, rtol=1e-4)
    np.testing.assert_allclose(got.centroids[:, 4], 7.0, rtol=1e-6)


@pytest.mark.usefixtures("body")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_take_no_part_under_jit(bad: float) -> None:
    x = rows_of("iris")
    broken = x.copy()
    broken[[3, 50, 149], 2] = bad
    keep = np.ones(len(x), bool)
    keep[[3, 50, 149]] = False
    want = k_means(None, x[keep], 3, init=x[[0, 60, 120]])
    got = jax.jit(lambda data: k_means(None, data, 3, init=x[[0, 60, 120]]))(broken)
    np.testing.assert_array_equal(np.asarray(got.labels)[~keep], -1)
    np.testing.assert_array_equal(np.asarray(got.labels)[keep], want.labels)
    np.testing.assert_allclose(got.inertia, want.inertia, rtol=1e-5)
    labels = jax.jit(lambda data: assign(want, data))(broken)
    np.testing.assert_array_equal(labels, got.labels)


@pytest.mark.parametrize("weights", [np.zeros(150), np.full(150, np.nan), np.full(150, -1.0)])
def test_no_row_at_all_under_jit_gives_no_nan(weights: np.ndarray) -> None:
    x = rows_of("iris")
    fit = jax.jit(lambda data, weights: k_means(jax.random.key(0), data, 3, weights=weights))
    got = fit(x, weights.astype(np.float32))
    assert all(np.isfinite(np.asarray(field)).all() for field in got)
    assert got.num_distinct == 0
    assert got.inertia == 0


X = np.arange(20.0, dtype=np.float32).reshape(10, 2)
KEY = jax.random.key(0)
NAN = np.where(np.arange(20).reshape(10, 2) == 3, np.nan, X).astype(np.float32)
SHAPES_AND_OPTIONS: list[tuple[Callable[..., object], type[Exception], str]] = [
    (lambda x: k_means(KEY, x[:0], 1), ValueError, "at least one row"),
    (lambda x: k_means(KEY, x[:, :0], 1), ValueError, "at least one row"),
    (lambda x: k_means(KEY, x[0], 1), ValueError, "shape"),
    (lambda x: k_means(KEY, x[None], 1), ValueError, "shape"),
    (lambda x: k_means(KEY, x, 11), ValueError, "at most 10"),
    (lambda x: k_means(KEY, x, 0), ValueError, "at least 1"),
    (lambda x: k_means(KEY, x, -2), ValueError, "at least 1"),
    (lambda x: k_means(KEY, x, 2.0), TypeError, "integer"),
    (lambda x: k_means(KEY, x, True), TypeError, "integer"),
    (lambda x: k_means(KEY, x[:1], 2), ValueError, "at most 1"),
    (lambda x: k_means(KEY, x, 2, metric="chebyshev"), ValueError, "metric in"),
    (lambda x: k_means(KEY, x, 2, init="forgy"), ValueError, "init in"),
    (lambda x: k_means(KEY, x, 2, init=x[:3]), ValueError, "init of shape"),
    (lambda x: k_means(KEY, x, 2, init=x[:2, :1]), ValueError, "init of shape"),
    (lambda x: k_means(KEY, x, 2, init=x[:2], num_restarts=3), ValueError, "init of shape"),
    (lambda x: k_means(KEY, x, 2, num_restarts=0), ValueError, "num_restarts"),
    (lambda x: k_means(KEY, x, 2, max_steps=0), ValueError, "max_steps"),
    (lambda x: k_means(KEY, x, 2, max_steps=1.5), TypeError, "max_steps"),
    (lambda x: k_means(KEY, x, 2, tol=-1e-4), ValueError, "tol in"),
    (lambda x: k_means(KEY, x, 2, tol=float("nan")), ValueError, "tol in"),
    (lambda x: k_means(KEY, x, 2, tol="loose"), TypeError, "tol in"),
    (lambda x: k_means(KEY, x, 2, chunk_size=0), ValueError, "chunk_size"),
    (lambda x: k_means(KEY, x, 2, weights=np.ones(9)), ValueError, "weights of shape"),
    (lambda x: k_means(KEY, x, 2, weights=np.ones((10, 1))), ValueError, "weights of shape"),
    (lambda x: k_means(KEY, x, 2, weights=np.ones(10, complex)), TypeError, "real weights"),
    (lambda x: k_means(KEY, x, 2, covariance=np.eye(2)), ValueError, "no covariance"),
    (lambda x: k_means(KEY, x, 2, metric="mahalanobis", covariance=np.eye(3)), ValueError, "covariance of shape"),
    (lambda x: k_means(KEY, x, 2, metric="mahalanobis", covariance=-np.eye(2)), ValueError, "positive definite"),
    (lambda x: k_means(KEY, x, 2, metric="mahalanobis", covariance=np.array([[1, 5], [0, 1.0]])), ValueError, "symm"),
    (lambda x: k_means(None, x, 2), TypeError, "random key"),
    (lambda x: k_means(0, x, 2), TypeError, "random key"),
    (lambda x: k_means(jax.random.split(KEY, 3), x, 2), TypeError, "random key"),
    (lambda x: k_means(KEY, jax.lax.complex(x, x), 2), TypeError, "real"),
    (lambda x: assign(np.zeros((2, 3), np.float32), x), ValueError, "features"),
    (lambda x: assign(np.zeros(2, np.float32), x), ValueError, "shape"),
    (lambda x: assign(np.zeros((2, 2), np.float32), x, metric="mahalanobis"), ValueError, "a covariance"),
    (lambda x: assign(np.zeros((2, 2), np.float32), x, metric="nearest"), ValueError, "metric in"),
]
DATA: list[tuple[Callable[[], object], str]] = [
    (lambda: k_means(KEY, NAN, 2), "1 of 10 with a NaN"),
    (lambda: k_means(KEY, np.full((10, 2), np.inf, np.float32), 2), "with a NaN or an infinity"),
    (lambda: k_means(KEY, X, 2, init=NAN[:2]), "init"),
    (lambda: k_means(KEY, X, 2, weights=np.zeros(10)), "positive"),
    (lambda: k_means(KEY, X, 2, weights=-np.ones(10)), "at least 0"),
    (lambda: k_means(KEY, X, 2, weights=np.full(10, np.nan)), "finite"),
    (lambda: k_means(KEY, X, 2, weights=np.full(10, np.inf)), "finite"),
    (lambda: assign(X[:2], NAN), "with a NaN"),
    (lambda: assign(NAN[:2], X), "of the centroids"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("case", range(len(SHAPES_AND_OPTIONS)))
def test_bad_shapes_and_options_are_refused_when_traced(case: int, compiled: bool) -> None:
    call, error, words = SHAPES_AND_OPTIONS[case]
    with pytest.raises(error, match=words):
        (jax.jit(call) if compiled else call)(X)


@pytest.mark.parametrize("case", range(len(DATA)))
def test_bad_data_are_refused_where_they_can_be_seen(case: int) -> None:
    call, words = DATA[case]
    with pytest.raises(ValueError, match=words):
        call()


def test_annotations_are_checked() -> None:
    with pytest.raises(TypeCheckError):
        k_means(KEY, X, "two")  # type: ignore[arg-type]


def test_a_row_of_weight_zero_may_hold_anything() -> None:
    weights = np.ones(10, np.float32)
    weights[1] = 0
    got = k_means(KEY, NAN, 2, weights=weights)
    assert isinstance(got, KMeansResult)
    assert np.isfinite(got.inertia)
