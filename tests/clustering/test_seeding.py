"""Seeding against the theory it is drawn by and scikit-learn's, and where rows repeat, weigh nothing or run out."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.cluster import kmeans_plusplus

from jaxgrad.clustering import _seeding
from jaxgrad.clustering._distances import Rows
from jaxgrad.clustering._seeding import seed

METHODS = ["random", "k-means++", "greedy-k-means++", "k-means||"]
BY_DISTANCE = METHODS[1:]

# One shape for nearly all tests, so that each method is compiled once.
NUM_ROWS, DIM, K = 240, 3, 6
KEYS = jax.random.split(jax.random.key(0), 200)


def rows_of(x, weights=None, scale=0.25):
    """Centre the data as a fit does."""
    x = jnp.asarray(x)
    weights = jnp.ones(x.shape[0], x.dtype) if weights is None else jnp.asarray(weights, x.dtype)
    valid = (weights > 0)[:, None]
    shift = jnp.sum(jnp.where(valid, x, 0), axis=0) / jnp.maximum(jnp.sum(weights > 0), 1).astype(x.dtype)
    return Rows(x, shift, jnp.asarray(scale, x.dtype), weights)


def blobs(num_rows=NUM_ROWS, seed=0):
    random = np.random.default_rng(seed)
    centres = 3 * random.standard_normal((K, DIM))
    return (centres[random.integers(K, size=num_rows)] + random.standard_normal((num_rows, DIM))).astype(np.float32)


def placed(rows):
    """All rows in the coordinates that centroids come back in."""
    return np.asarray(rows.block(0, rows.values.shape[0])[0])


def which(centroids, rows):
    """The row that each centroid is, the first of equals."""
    same = np.all(np.asarray(centroids)[..., None, :] == placed(rows), axis=-1)
    assert same.any(axis=-1).all()
    return np.argmax(same, axis=-1)


def potentials(x, centroids):
    """What the rows pay in total, of each lane."""
    x = np.asarray(x, np.float64)
    return np.array(
        [np.sum(np.min(np.sum((x[:, None] - each) ** 2, axis=-1), axis=1)) for each in np.asarray(centroids)]
    )


@partial(jax.jit, static_argnames=("k", "method", "metric", "block"))
def many(rows, method, keys=KEYS, k=K, metric="euclidean", block=64):
    draw = partial(seed, num_clusters=k, method=method, metric=metric, block=block)
    return jax.vmap(lambda key: draw(key, rows))(keys)


def distinct(centroids):
    """How many different rows each lane has."""
    return {len(np.unique(each, axis=0)) for each in np.asarray(centroids)}


def same_mean(got, want):
    return abs(np.mean(got) - np.mean(want)) < 4 * np.hypot(stats.sem(got), stats.sem(want))


@pytest.mark.parametrize(("method", "trials"), [("k-means++", 1), ("greedy-k-means++", None)])
def test_mean_potential_equals_that_of_scikit_learn(method, trials):
    x = blobs()
    rows = rows_of(x)
    got = potentials(placed(rows), many(rows, method)) / 0.25**2
    want = potentials(x, [kmeans_plusplus(x, K, random_state=i, n_local_trials=trials)[0] for i in range(200)])
    assert same_mean(got, want)
    assert stats.sem(got) < 0.03 * np.mean(want)


@pytest.mark.parametrize(
    ("method", "trials"), [pytest.param("k-means++", 1, marks=pytest.mark.heavy), ("greedy-k-means++", None)]
)
def test_candidates_drawn_ahead_leave_the_same_potential(monkeypatch, method, trials):
    monkeypatch.setattr(_seeding, "_pool_steps", lambda rows, trials: 4)
    x = blobs(num_rows=250)
    rows = rows_of(x)
    draw = jax.jit(
        lambda rows: jax.vmap(lambda key: seed(key, rows, K, method=method, metric="euclidean", block=64))(KEYS)
    )
    centroids = draw(rows)
    assert distinct(centroids) == {K}
    want = potentials(x, [kmeans_plusplus(x, K, random_state=i, n_local_trials=trials)[0] for i in range(200)])
    assert same_mean(potentials(placed(rows), centroids) / 0.25**2, want)
    assert distinct(draw(rows_of(np.repeat(x[:4], [60, 60, 60, 70], axis=0)))) == {4}


@pytest.mark.heavy
def test_greedy_beats_plain_and_both_beat_chance_and_parallel_is_within_a_tenth_of_greedy():
    rows = rows_of(blobs())
    chance, plain, greedy, parallel = (np.mean(potentials(placed(rows), many(rows, each))) for each in METHODS)
    assert greedy < 0.95 * plain
    assert plain < 0.9 * chance
    assert parallel < 1.1 * greedy


@pytest.mark.parametrize("metric", ["euclidean", "manhattan"])
def test_second_centroid_is_drawn_in_proportion_to_what_its_row_pays(metric):
    rows = rows_of(np.random.default_rng(1).standard_normal((12, 2)).astype(np.float32))
    keys = jax.random.split(jax.random.key(1), 20_000)
    index = which(many(rows, "k-means++", keys, k=2, metric=metric), rows)
    points = placed(rows).astype(np.float64)
    mass = np.sum(np.abs(points[:, None] - points) ** (1 if metric == "manhattan" else 2), axis=-1)
    expected = np.mean(mass / mass.sum(axis=1, keepdims=True), axis=0) * len(keys)
    assert stats.chisquare(np.bincount(index[:, 0], minlength=12)).pvalue > 1e-3
    assert stats.chisquare(np.bincount(index[:, 1], minlength=12), expected).pvalue > 1e-3


def test_random_draws_by_weight_without_replacement():
    weights = np.arange(1.0, 9)
    rows = rows_of(np.eye(8, dtype=np.float32), weights)
    index = which(many(rows, "random", jax.random.split(jax.random.key(2), 20_000), k=2), rows)
    assert np.all(index[:, 0] != index[:, 1])
    shares = weights / weights.sum()
    assert stats.chisquare(np.bincount(index[:, 0], minlength=8), 20_000 * shares).pvalue > 1e-3
    second = shares * np.array([sum(shares[j] / (1 - shares[j]) for j in range(8) if j != i) for i in range(8)])
    assert stats.chisquare(np.bincount(index[:, 1], minlength=8), 20_000 * second).pvalue > 1e-3


@pytest.mark.parametrize("method", BY_DISTANCE)
def test_weights_stand_for_repeated_rows(method):
    times = np.random.default_rng(3).multinomial(NUM_ROWS, np.full(80, 1 / 80))
    x = blobs()
    weights = np.concatenate([times, np.zeros(160)])
    repeated = rows_of(np.repeat(x[:80], times, axis=0))
    weighted = rows_of(x, weights)._replace(shift=repeated.shift)
    got, want = (potentials(placed(repeated), many(each, method)) for each in (weighted, repeated))
    assert same_mean(got, want)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("valid", [120, K, 4])
def test_rows_of_weight_zero_are_never_chosen_while_there_is_another(method, valid):
    x = blobs()
    weights = np.arange(NUM_ROWS) % (NUM_ROWS // valid) == 0
    x[~weights] = np.nan
    rows = rows_of(x, weights)
    centroids = many(rows, method)
    assert np.all(weights[which(centroids, rows)])
    assert distinct(centroids) == {min(valid, K)}


@pytest.mark.parametrize("method", METHODS)
def test_with_no_weight_at_all_centroids_are_finite(method):
    assert np.all(np.isfinite(many(rows_of(blobs(), np.zeros(NUM_ROWS)), method)))


@pytest.mark.parametrize("method", BY_DISTANCE)
@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("different", [K, 4, 1])
def test_duplicates_are_never_chosen_while_other_rows_are_left(method, offset, different):
    base = np.random.default_rng(4).standard_normal((different, DIM)).astype(np.float32) + np.float32(offset)
    rows = rows_of(np.repeat(base, NUM_ROWS // different, axis=0))
    assert distinct(many(rows, method)) == {different}


@pytest.mark.parametrize("method", ["k-means++", "greedy-k-means++"])
def test_single_rows_near_many_equal_ones_are_found(method):
    # The squares of the coordinates swallow the distances, and there are a hundred times more of the equal rows.
    far = np.random.default_rng(5).uniform(2000, 4000, DIM).round()
    base = np.stack([far, -far, far + [1, 0, 0], far - [0, 1, 0], [0, 0, 1] - far, [1, 1, 0] - far])
    rows = rows_of(np.repeat(base, [118, 118, 1, 1, 1, 1], axis=0).astype(np.float32), scale=2.0**-12)
    rows = rows._replace(shift=jnp.full(DIM, 0.25, jnp.float32))
    assert distinct(many(rows, method)) == {K}


@pytest.mark.parametrize("method", METHODS)
def test_an_offset_changes_nothing(method):
    x = np.round(blobs() * 4) / 4
    far = rows_of(np.float32(x + 1e6))
    near = rows_of(x)._replace(shift=far.shift - 1e6)
    np.testing.assert_array_equal(many(far, method), many(near, method))


@pytest.mark.parametrize("method", METHODS)
def test_block_size_changes_nothing(method):
    rows = rows_of(blobs())
    np.testing.assert_array_equal(many(rows, method, block=4096), many(rows, method))


@pytest.mark.parametrize("method", ["greedy-k-means++", "k-means||"])
def test_a_single_row(method):
    np.testing.assert_array_equal(
        many(rows_of(np.ones((1, 2), np.float32)), method, KEYS[:2], k=2), np.zeros((2, 2, 2))
    )


def test_double_precision(x64):
    rows = rows_of(blobs().astype(np.float64))
    centroids = seed(jax.random.key(0), rows, K, method="greedy-k-means++", metric="euclidean", block=64)
    assert centroids.dtype == jnp.float64
    assert len(set(which(centroids, rows))) == K


SHARDED = """
import sys
import jax, numpy as np
import jax.numpy as jnp
from functools import partial
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxgrad._rows import over_shards, shards
from jaxgrad.clustering._distances import Rows
from jaxgrad.clustering._seeding import seed

x = np.random.default_rng(0).standard_normal((800, 4)).astype(np.float32)
weights = (np.arange(800) % 3).astype(np.float32)
whole = Rows(jnp.asarray(x), jnp.zeros(4), jnp.asarray(0.5), jnp.asarray(weights))
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
split = NamedSharding(mesh, P(("a", "b")))
rows = whole._replace(values=jax.device_put(x, split), weights=jax.device_put(weights, split))
specs = Rows(P(("a", "b")), P(), P(), P(("a", "b")))
for method in ("random", "greedy-k-means++", "k-means||"):
    options = dict(num_clusters=7, method=method, metric="euclidean", block=64)
    layout = shards(rows.values)
    sharded = over_shards(partial(seed, **options, axes=layout.axes), layout, (P(), specs), P())
    sharded = jax.jit(sharded)
    for key in jax.random.split(jax.random.key(0), 3):
        np.testing.assert_array_equal(sharded(key, rows), seed(key, whole, **options))
print("same", len(jax.devices()))
"""


@pytest.mark.heavy
def test_eight_shards_draw_what_one_device_draws():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0"}
    run = subprocess.run([sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "same 8", run.stderr
