"""Silhouettes against scikit-learn's, the inertia of clusters against their definition, and elbows of known place."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import silhouette_samples

from jaxgrad import clustering

METRICS = ["euclidean", "manhattan", "cosine", "mahalanobis"]


def clustered(num_rows=151, dim=4, k=5, seed=0):
    """Rows, centroids, and the nearest one of each row."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((num_rows, dim)).astype(np.float32)
    x += 2 * random.standard_normal((k, dim)).astype(np.float32)[random.integers(k, size=num_rows)]
    labels = np.argmin(np.sum((x[:, None] - x[:k]) ** 2, axis=-1), axis=1).astype(np.int32)
    return jnp.asarray(x), jnp.asarray(x[:k] + np.float32(0.1)), jnp.asarray(labels)


def options(metric, x):
    return {"metric": metric} | ({"covariance": jnp.cov(x.T)} if metric == "mahalanobis" else {})


def distances(a, b, metric, covariance=None):
    """All distances in double precision."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if metric == "cosine":
        norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
        return 1 - a @ b.T / norms
    if metric == "manhattan":
        return np.sum(np.abs(a[:, None] - b), axis=-1)
    inverse = np.eye(a.shape[1]) if covariance is None else np.linalg.inv(np.asarray(covariance, np.float64))
    away = a[:, None] - b
    return np.sqrt(np.einsum("nki,ij,nkj->nk", away, inverse, away))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("chunk_size", [None, 7, 500])
def test_silhouette_equals_scikit_learn(metric, chunk_size):
    x, _, labels = clustered()
    extra = options(metric, x)
    inverse = {"VI": np.linalg.inv(extra["covariance"])} if metric == "mahalanobis" else {}
    want = silhouette_samples(np.asarray(x, np.float64), labels, metric=metric, **inverse)
    got = clustering.silhouette(x, labels, 5, chunk_size=chunk_size, **extra)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_clusters_near_each_other_and_far_from_a_third_keep_their_digits():
    random = np.random.default_rng(0)
    middles = np.repeat([[0, 0, 0], [1, 0, 0], [1e4, 0, 0]], [60, 60, 20], axis=0)
    x = (middles + 0.1 * random.standard_normal(middles.shape)).astype(np.float32)
    order = random.permutation(140)
    x, labels = x[order], np.repeat([0, 1, 2], [60, 60, 20])[order]
    got = clustering.silhouette(jnp.asarray(x), jnp.asarray(labels), 3)
    np.testing.assert_allclose(got, silhouette_samples(x.astype(np.float64), labels), atol=1e-4)


def test_silhouette_of_a_row_alone_of_equal_rows_and_of_one_cluster_is_zero():
    x = jnp.array([[0.0], [1.0], [5.0]])
    assert clustering.silhouette(x, jnp.array([0, 0, 1]), 2)[2] == 0
    np.testing.assert_array_equal(clustering.silhouette(jnp.ones((4, 2)), jnp.array([0, 0, 1, 1]), 2), np.zeros(4))
    np.testing.assert_array_equal(clustering.silhouette(x, jnp.zeros(3, int), 3), np.zeros(3))


def test_rows_with_no_label_take_no_part():
    x, _, labels = clustered()
    out = jnp.arange(151) % 5 == 0
    got = clustering.silhouette(x, jnp.where(out, -1, labels), 5)
    np.testing.assert_array_equal(got[out], 0)
    np.testing.assert_allclose(got[~out], clustering.silhouette(x[~out], labels[~out], 5), atol=1e-5)


def test_under_jit_rows_that_are_not_finite_take_no_part():
    x, centroids, labels = clustered()
    out = jnp.arange(151) % 5 == 0
    holed = jnp.where(out[:, None], jnp.nan, x)
    got = jax.jit(clustering.silhouette, static_argnums=2)(holed, labels, 5)
    np.testing.assert_allclose(got, clustering.silhouette(x, jnp.where(out, -1, labels), 5), atol=1e-5)
    got = jax.jit(clustering.cluster_inertia)(holed, centroids, labels)
    want = clustering.cluster_inertia(x, centroids, labels, weights=1 - out.astype(jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    got = jax.jit(clustering.simplified_silhouette)(holed, centroids, labels)
    np.testing.assert_array_equal(got[out], 0)


def test_a_row_of_zeros_has_cosine_distance_one():
    x, _, labels = clustered(40)
    x = x.at[jnp.array([3, 17])].set(0)
    want = silhouette_samples(np.asarray(x, np.float64), labels, metric="cosine")
    np.testing.assert_allclose(clustering.silhouette(x, labels, 5, metric="cosine"), want, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_simplified_silhouette_equals_its_definition(metric):
    x, centroids, labels = clustered()
    extra = options(metric, x)
    apart = distances(x, centroids, **extra)
    own = np.arange(5) == np.asarray(labels)[:, None]
    inside, outside = apart[own], np.min(np.where(own, np.inf, apart), axis=1)
    want = (outside - inside) / np.maximum(inside, outside)
    for chunk_size in (17, 4096):
        got = clustering.simplified_silhouette(x, centroids, labels, chunk_size=chunk_size, **extra)
        np.testing.assert_allclose(got, want, atol=2e-5)


def test_simplified_silhouette_is_one_on_a_centroid_and_zero_where_two_meet():
    x = jnp.array([[0.0], [4.0]])
    centroids = jnp.array([[0.0], [4.0], [4.0]])
    np.testing.assert_array_equal(clustering.simplified_silhouette(x, centroids, jnp.array([0, 1])), [1, 0])


@pytest.mark.parametrize("metric", METRICS)
def test_cluster_inertia_equals_its_definition(metric):
    x, centroids, labels = clustered()
    weights = np.random.default_rng(1).uniform(size=151).astype(np.float32)
    extra = options(metric, x)
    power = 2 if metric in ("euclidean", "mahalanobis") else 1
    paid = (
        weights
        * np.take_along_axis(distances(x, centroids, **extra), np.asarray(labels)[:, None], axis=1)[:, 0] ** power
    )
    got = clustering.cluster_inertia(x, centroids, labels, weights=jnp.asarray(weights), chunk_size=64, **extra)
    np.testing.assert_allclose(got, np.bincount(labels, paid, minlength=5), rtol=1e-4)


def test_cluster_inertia_keeps_its_digits_far_from_zero():
    x, centroids, labels = clustered()
    x, centroids = (jnp.round(each * 4) / 4 for each in (x, centroids))
    far = clustering.cluster_inertia(x + 1e5, centroids + 1e5, labels)
    np.testing.assert_array_equal(far, clustering.cluster_inertia(x, centroids, labels))


def test_clusters_without_rows_have_no_inertia():
    x, centroids, labels = clustered()
    np.testing.assert_array_equal(clustering.cluster_inertia(x, centroids, jnp.full_like(labels, 9)), np.zeros(5))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["silhouette", "simplified", "inertia"])
def test_gradient_equals_finite_differences(x64, kind):
    x, centroids, labels = (each[:20] for each in clustered())
    x, centroids = x.astype(jnp.float64), centroids.astype(jnp.float64)
    f = {
        "silhouette": lambda x: jnp.sum(clustering.silhouette(x, labels, 5)),
        "simplified": lambda x: jnp.sum(clustering.simplified_silhouette(x, centroids, labels)),
        "inertia": lambda x: jnp.sum(clustering.cluster_inertia(x, centroids, labels) ** 2),
    }[kind]
    gradient = jax.jit(jax.grad(f))(x)
    direction = jnp.asarray(np.random.default_rng(0).standard_normal(x.shape))
    want = (f(x + 1e-6 * direction) - f(x - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(jnp.sum(gradient * direction), want, rtol=1e-5)


@pytest.mark.heavy
def test_gradient_is_finite_where_rows_are_equal():
    labels = jnp.array([0, 0, 1, 1])
    for x in (jnp.ones((4, 2)), jnp.zeros((4, 2))):
        for metric in METRICS[:3]:
            score = lambda x, metric=metric: jnp.sum(clustering.silhouette(x, labels, 2, metric=metric))  # noqa: E731
            assert np.all(np.isfinite(jax.grad(score)(x)))


@pytest.mark.heavy
def test_vmap_equals_a_loop():
    x, centroids, labels = (jnp.stack(each) for each in zip(*(clustered(40, seed=i) for i in range(3)), strict=True))
    got = jax.vmap(lambda x, labels: clustering.silhouette(x, labels, 5))(x, labels)
    np.testing.assert_allclose(got[1], clustering.silhouette(x[1], labels[1], 5), atol=1e-5)
    got = jax.vmap(clustering.cluster_inertia)(x, centroids, labels)
    np.testing.assert_allclose(got[1], clustering.cluster_inertia(x[1], centroids[1], labels[1]), rtol=1e-6)
    inertias = jnp.array([[9.0, 2.0, 1.5, 1.0], [9.0, 8.0, 2.0, 1.0]])
    np.testing.assert_array_equal(jax.vmap(clustering.elbow)(inertias).num_clusters, [2, 3])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bfloat16, jnp.float16])
def test_low_precision_and_integers_are_computed_in_float(dtype):
    x = jnp.round(clustered(40)[0] * 4).astype(dtype)
    labels = clustered(40)[2]
    want = clustering.silhouette(x.astype(jnp.float32), labels, 5)
    got = clustering.silhouette(x, labels, 5)
    assert got.dtype == (jnp.asarray(0.0).dtype if dtype == jnp.int32 else jnp.float32)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_elbow_of_two_straight_lines_is_where_they_meet():
    inertias = jnp.concatenate([jnp.linspace(100.0, 20.0, 5), jnp.linspace(19.0, 10.0, 10)])
    found = clustering.elbow(inertias)
    assert found.num_clusters == 5
    np.testing.assert_allclose(found.depth, 1 - 4 / 14 - 10 / 90, rtol=1e-6)
    assert clustering.elbow(inertias * 1e-6, jnp.arange(2, 32, 2)).num_clusters == 10


def test_elbow_is_where_the_blobs_are_as_many_as_clusters():
    # The best inertia of four equal blobs in the plane, 10 apart with variance 1 each, is near these.
    assert clustering.elbow(jnp.array([10400.0, 5400.0, 2900.0, 400.0, 370.0, 340.0, 310.0, 290.0])).num_clusters == 4


@pytest.mark.parametrize(
    "inertias",
    [[3.0, 3.0, 3.0], [1.0, 2.0, 3.0], [9.0, 8.0, 3.0], [3.0, 2.0, 1.0], [np.nan, np.nan, np.nan], [0.0] * 3],
)
def test_a_curve_without_elbow_has_depth_zero(inertias):
    found = clustering.elbow(jnp.array(inertias))
    assert found.num_clusters == 1
    np.testing.assert_allclose(found.depth, 0, atol=1e-6)


def test_elbow_leaves_out_what_is_not_finite_and_levels_what_rises():
    want = clustering.elbow(jnp.array([100.0, 20.0, 20.0, 10.0]))
    assert clustering.elbow(jnp.array([100.0, 20.0, 35.0, 10.0])) == want
    assert clustering.elbow(jnp.array([100.0, 20.0, np.nan, 10.0])) == want


X, CENTROIDS, LABELS = jnp.ones((4, 2)), jnp.ones((2, 2)), jnp.zeros(4, int)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (partial(clustering.silhouette, X[0], LABELS, 2), ValueError, "data of shape"),
        (partial(clustering.silhouette, X, LABELS[:3], 2), ValueError, r"labels of shape \(4,\)"),
        (partial(clustering.silhouette, X, LABELS.astype(jnp.float32), 2), TypeError, "integer labels"),
        (partial(clustering.silhouette, X, LABELS, 1), ValueError, "num_clusters to be"),
        (
            partial(clustering.silhouette, X, LABELS, 2, chunk_size=0),
            ValueError,
            "chunk_size to be",
        ),
        (partial(clustering.silhouette, X, LABELS, 2, metric="l2"), ValueError, "metric in"),
        (partial(clustering.silhouette, X, LABELS, 2, metric="mahalanobis"), ValueError, "jnp.cov"),
        (partial(clustering.silhouette, X, LABELS, 2, covariance=jnp.eye(2)), ValueError, "no covariance"),
        (
            partial(clustering.silhouette, X, LABELS, 2, metric="mahalanobis", covariance=jnp.eye(3)),
            ValueError,
            r"covariance of shape \(2, 2\)",
        ),
        (
            partial(clustering.silhouette, X, LABELS, 2, metric="mahalanobis", covariance=-jnp.eye(2)),
            ValueError,
            "positive definite",
        ),
        (
            partial(clustering.silhouette, X.at[1, 0].set(jnp.nan), LABELS, 2),
            ValueError,
            "1 of 4 with a NaN",
        ),
        (
            partial(clustering.simplified_silhouette, X, CENTROIDS[:1], LABELS),
            ValueError,
            "number of centroids",
        ),
        (partial(clustering.cluster_inertia, X, CENTROIDS[:, :1], LABELS), ValueError, "2 features"),
        (
            partial(clustering.cluster_inertia, X, CENTROIDS, LABELS, weights=jnp.ones(3)),
            ValueError,
            "weights of shape",
        ),
        (partial(clustering.cluster_inertia, X, CENTROIDS, LABELS, weights=-jnp.ones(4)), ValueError, "at least 0"),
        (partial(clustering.elbow, jnp.ones(2)), ValueError, "at least 3 inertias"),
        (partial(clustering.elbow, jnp.ones(3), jnp.arange(4)), ValueError, r"num_clusters of shape \(3,\)"),
        (partial(clustering.elbow, jnp.ones(3), jnp.array([3, 2, 1])), ValueError, "that rise"),
    ],
)
def test_bad_input(unchecked, call, error, words):
    with pytest.raises(error, match=words):
        call()
