"""Mini-batches and passes against k-means of all data at once, and what they say of batches they cannot use."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.cluster import MiniBatchKMeans

from jaxgrad.clustering import k_means
from jaxgrad.clustering._batches import totals
from jaxgrad.clustering._passes import k_means_stream
from jaxgrad.clustering._source import Source
from jaxgrad.clustering._streaming import k_means_init, k_means_update
from jaxgrad.data import digits

METRICS = ["euclidean", "manhattan", "cosine", "mahalanobis"]
SUMMED = ["euclidean", "cosine", "mahalanobis"]
UNEVEN = [300, 337, 900, 1350]


@pytest.fixture(scope="module")
def images():
    return np.asarray(digits()[0], np.float32).reshape(-1, 64)[:, 20:44] / 16


@pytest.fixture(scope="module")
def blobs():
    random = np.random.default_rng(3)
    centres = 4 * random.standard_normal((8, 6))
    return (centres[random.integers(8, size=2048)] + random.standard_normal((2048, 6))).astype(np.float32)


def first_rows(x, k=10):
    return x[np.random.default_rng(1).choice(len(x), k, replace=False)]


def of_batches(state, x, size, weights=None):
    """Update with one batch after another."""
    for at in range(0, len(x), size):
        state = k_means_update(state, x[at : at + size], weights=None if weights is None else weights[at : at + size])
    return state


@jax.jit
def scan(state, batches):
    return jax.lax.scan(lambda state, batch: ((after := k_means_update(state, batch)), after.cost), state, batches)


def inertia(x, centroids, metric="euclidean"):
    name = {"euclidean": "sqeuclidean", "manhattan": "cityblock", "cosine": "cosine"}[metric]
    return cdist(np.asarray(x, np.float64), np.asarray(centroids, np.float64), name).min(axis=1).sum()


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def close(left, right, rtol=1e-4):
    for a, b in zip(leaves(left), leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)


# Passes


# At an offset all rows would point the same way.
@pytest.mark.parametrize(
    ("metric", "offset"),
    [*(pytest.param(metric, 0, marks=pytest.mark.heavy) for metric in SUMMED), ("euclidean", 1000)],
)
def test_passes_over_uneven_batches_give_the_fit_of_all_rows(images, metric, offset):
    x, start = images + np.float32(offset), first_rows(images) + np.float32(offset)
    covariance = np.cov(images.T).astype(np.float32) + 0.01 * np.eye(24, dtype=np.float32)
    options = {"metric": metric, "init": start} | ({"covariance": covariance} if metric == "mahalanobis" else {})
    want = k_means(None, x, 10, **options)
    got = k_means_stream(None, np.split(x, UNEVEN), 10, **options)
    np.testing.assert_allclose(got.centroids, want.centroids, atol=2e-4 if offset else 1e-5)
    np.testing.assert_allclose(got.inertia, want.inertia, rtol=2e-5)
    np.testing.assert_array_equal(got.counts, np.bincount(want.labels, minlength=10))
    assert (int(got.num_steps), bool(got.converged)) == (int(want.num_steps), True)
    assert (got.num_rows, int(got.num_distinct)) == (len(x), 10)


@pytest.mark.heavy
def test_covariance_of_passes_is_that_of_all_rows(blobs):
    x = blobs * np.array([1, 3, 0.3, 2, 1, 0.2], np.float32) + 50
    got = k_means_stream(None, np.split(x, [100, 900]), 8, metric="mahalanobis", init=x[:8])
    np.testing.assert_allclose(got.covariance, np.cov(x.T.astype(np.float64), bias=True), rtol=1e-4, atol=1e-7)
    want = k_means(None, x, 8, metric="mahalanobis", init=x[:8])
    np.testing.assert_allclose(got.inertia, want.inertia, rtol=1e-4)


@pytest.mark.heavy
def test_passes_over_a_memmap_and_a_generator_function_agree(blobs, tmp_path):
    np.save(tmp_path / "rows.npy", blobs)
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    buffer = np.empty((512, 6), np.float32)

    def read_into_one_buffer():
        for at in range(0, 2048, 512):
            buffer[:] = blobs[at : at + 512]
            yield buffer

    of_file = k_means_stream(jax.random.key(2), rows, 8, batch_size=512, sample_size=400)
    of_function = k_means_stream(jax.random.key(2), read_into_one_buffer, 8, sample_size=400)
    close(of_file, of_function)
    # The sample does not depend on how the rows are cut either.
    other = k_means_stream(jax.random.key(2), rows, 8, batch_size=700, sample_size=400)
    np.testing.assert_allclose(other.inertia, of_file.inertia, rtol=1e-5)
    np.testing.assert_allclose(inertia(blobs, of_file.centroids), of_file.inertia, rtol=1e-5)


def test_a_batch_is_read_before_its_buffer_may_be_used_again():
    whole = np.zeros(1 << 16, np.float32)
    begin = -whole.ctypes.data % 64 // 4  # where XLA could take the memory for its own
    rows, weights = whole[begin : begin + 6000].reshape(1000, 6), whole[begin + 6000 : begin + 7000]
    for x, mass, _ in Source("k_means_stream", [(rows, weights)], None):
        assert not np.shares_memory(np.asarray(x), whole)
        assert not np.shares_memory(np.asarray(mass), whole)


@pytest.mark.heavy
def test_weights_of_passes_are_repeated_rows(blobs):
    x, repeats = blobs[:512], np.random.default_rng(0).integers(0, 4, 512)
    batches = [(x[:200], repeats[:200]), (x[200:], repeats[200:])]
    got = k_means_stream(None, batches, 8, init=x[:8], tol=0)
    want = k_means_stream(None, [np.repeat(x, repeats, axis=0)], 8, init=x[:8], tol=0)
    np.testing.assert_allclose(got.centroids, want.centroids, atol=1e-5)
    np.testing.assert_allclose(got.inertia, want.inertia, rtol=1e-5)
    assert got.num_rows == np.sum(repeats > 0)


@pytest.mark.heavy
@pytest.mark.parametrize("metric", SUMMED)
def test_a_centroid_without_rows_moves_to_the_row_that_pays_most(blobs, metric):
    x = blobs[:400]
    start = np.concatenate([x[:5], np.full((3, 6), 1e3, np.float32) * [[1], [2], [3]]]).astype(np.float32)
    if metric == "cosine":
        start[5:] = -x[:1]
        start[6:] += [[1e-3], [2e-3]]
    want = k_means(None, x, 8, metric=metric, init=start)
    got = k_means_stream(None, np.split(x, [150]), 8, metric=metric, init=start)
    np.testing.assert_allclose(got.inertia, want.inertia, rtol=1e-4)
    assert int(got.num_distinct) == 8


def test_progress_counts_rows_and_adds_up_inertia(blobs):
    reports = []
    result = k_means_stream(
        None, blobs[:1000], 4, init=blobs[:4], batch_size=400, max_steps=2, tol=0, progress=reports.append
    )
    assert [report.num_steps for report in reports] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert [report.num_rows for report in reports] == [400, 800, 1000] * 4
    assert {report.total_rows for report in reports} == {1000}
    assert reports[0].inertia is None
    paid = [report.inertia for report in reports[-3:]]
    assert paid == sorted(paid)
    np.testing.assert_allclose(paid[-1], result.inertia, rtol=1e-6)
    assert (int(result.num_steps), bool(result.converged)) == (2, False)


def test_short_batches_compile_nothing_new(blobs):
    k_means_stream(None, [blobs[:256]], 4, init=blobs[:4], max_steps=1)
    before = totals._cache_size()
    k_means_stream(None, [blobs[:256], blobs[256:300], blobs[300:307]], 4, init=blobs[:4], max_steps=1)
    assert totals._cache_size() == before


# Mini-batches


def test_one_cluster_is_the_mean_of_all_rows_far_from_zero():
    x = (np.random.default_rng(0).standard_normal((5000, 3)) + 1e4).astype(np.float32)
    state = of_batches(k_means_init(jax.random.key(0), x[:100], 1), x, 50)
    np.testing.assert_allclose(state.centroids[0], x.mean(axis=0, dtype=np.float64), rtol=1.2e-7)
    assert (float(state.counts[0]), float(state.num_rows), int(state.num_steps)) == (5000, 5000, 100)


@pytest.mark.parametrize("metric", METRICS)
def test_scan_gives_what_a_loop_gives(blobs, metric):
    state = k_means_init(None, blobs[:256], 8, metric=metric, init=blobs[:8] + 0.01)
    scanned, costs = scan(state, blobs.reshape(8, 256, 6))
    close(scanned, of_batches(state, blobs, 256))
    assert jax.tree.structure(scanned) == jax.tree.structure(state)
    assert scanned.settings.metric == metric
    assert np.isinf(state.cost)
    assert np.isfinite(costs).all()


def test_states_can_be_mapped_over(blobs):
    starts = np.stack([blobs[:8], blobs[8:16], blobs[16:24]])
    begin = jax.vmap(lambda start: k_means_init(None, jnp.asarray(blobs[:256]), 8, init=start))
    states = jax.vmap(k_means_update, in_axes=(0, None))(begin(starts), jnp.asarray(blobs[:256]))
    alone = k_means_update(k_means_init(None, blobs[:256], 8, init=starts[1]), blobs[:256])
    close(jax.tree.map(lambda leaf: leaf[1], states), alone)


@pytest.mark.heavy
@pytest.mark.parametrize("data", ["images", "blobs"])
def test_inertia_is_within_five_percent_of_scikit_learns(data, request):
    x = request.getfixturevalue(data)
    ours, theirs = [], []
    for i in range(7):
        rows = np.concatenate([np.random.default_rng((i, turn)).permutation(x) for turn in range(4)])
        rows = rows[: len(rows) // 256 * 256].reshape(-1, 256, x.shape[1])
        ours.append(inertia(x, scan(k_means_init(jax.random.key(i), rows[0], 10), rows)[0].centroids))
        model = MiniBatchKMeans(10, batch_size=256, n_init=1, random_state=i)
        for batch in rows:
            model.partial_fit(batch)
        theirs.append(inertia(x, model.cluster_centers_))
    assert np.median(ours) < 1.05 * np.median(theirs)


@pytest.mark.heavy
@pytest.mark.parametrize("metric", ["manhattan", "cosine"])
def test_inertia_is_near_that_of_a_fit_of_all_rows_from_the_same_start(blobs, metric):
    state = k_means_init(jax.random.key(1), blobs[:256], 8, metric=metric)
    want = k_means(None, blobs, 8, metric=metric, init=state.centroids)
    got, _ = scan(state, np.tile(blobs, (3, 1)).reshape(-1, 256, 6))
    assert inertia(blobs, got.centroids, metric) < 1.02 * float(want.inertia)
    np.testing.assert_allclose(got.cost * len(blobs), want.inertia, rtol=0.05)


@pytest.mark.parametrize("draw", ["normal", "laplace", "exponential", "uniform"])
def test_manhattan_centroid_approaches_the_median(draw):
    x = getattr(np.random.default_rng(7), draw)(size=(40_000, 2)).astype(np.float32)
    density = {"normal": 1 / np.sqrt(2 * np.pi), "laplace": 0.5, "exponential": 0.5, "uniform": 1}[draw]
    median = {"exponential": np.log(2), "uniform": 0.5}.get(draw, 0)
    state = k_means_init(None, x[:100], 1, metric="manhattan", init=x[:1] + 1)
    scanned, _ = scan(state, x.reshape(200, 200, 2))
    error = 0.5 / density / np.sqrt(len(x))
    np.testing.assert_allclose(scanned.centroids[0], median, atol=5 * error)


@pytest.mark.parametrize("metric", METRICS)
def test_weights_are_repeated_rows(blobs, metric):
    x, repeats = blobs[:128], np.random.default_rng(0).integers(0, 3, 128)
    x, repeats = np.concatenate([x, x]), np.concatenate([repeats, 2 - repeats])  # 256 again: nothing new to compile
    state = k_means_init(None, blobs[:256], 8, metric=metric, init=blobs[:8] + 0.01)
    got, want = k_means_update(state, x, weights=repeats), k_means_update(state, np.repeat(x, repeats, axis=0))
    np.testing.assert_allclose(got.centroids, want.centroids, atol=1e-5)
    np.testing.assert_array_equal(got.counts, want.counts)
    np.testing.assert_allclose(got.cost, want.cost, rtol=1e-5)


def test_counts_stay_exact_where_one_float_would_not():
    x = np.array([[0.0], [10.0], [10.5]], np.float32)
    state = k_means_init(None, x, 2, init=np.array([[0.0], [10.0]], np.float32))
    state = state._replace(counts=jnp.full((2,), 2.0**26, jnp.float32), num_rows=jnp.asarray(2.0**27, jnp.float32))
    state, _ = scan(state, np.tile(x, (1001, 1, 1)))
    total = np.asarray(state.counts, np.float64) + np.asarray(state.memory.counts_left, np.float64)
    np.testing.assert_array_equal(total, [2.0**26 + 1001, 2.0**26 + 2002])
    assert float(state.num_rows) + float(state.memory.rows_left) == 2.0**27 + 3003


def test_a_stream_may_drift_and_keep_its_digits():
    random = np.random.default_rng(0)
    batches = random.standard_normal((400, 64, 2)).astype(np.float32) + np.arange(400, dtype=np.float32)[:, None, None]
    state = k_means_init(None, batches[0], 1, init=batches[0, :1])
    state, _ = scan(state, batches)
    np.testing.assert_allclose(state.centroids[0], batches.mean(axis=(0, 1), dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_an_idle_centroid_gets_a_new_place_without_a_key(blobs, metric):
    start = np.concatenate([blobs[:7], np.full((1, 6), 1e4, np.float32)])
    if metric == "cosine":
        # Opposite to the mean of far blobs no row is nearest to it.
        blobs = blobs + np.float32(20)
        start = np.concatenate([blobs[:7], -np.ones((1, 6), np.float32)])
    state = k_means_init(None, blobs[:256], 8, metric=metric, init=start)
    batches = np.tile(blobs, (8, 1)).reshape(-1, 256, 6)
    moved, costs = scan(state, batches)
    assert float(moved.counts[7]) > 0
    assert float(moved.cost) < costs[9]
    assert np.max(np.abs(moved.centroids)) < 50


def test_an_idle_centroid_stays_where_the_ratio_is_zero(blobs):
    start = np.concatenate([blobs[:7], np.full((1, 6), 1e4, np.float32)])
    state = k_means_init(None, blobs[:256], 8, init=start, reassignment_ratio=0)
    after, _ = scan(state, np.tile(blobs, (8, 1)).reshape(-1, 256, 6))
    assert float(after.counts[7]) == 0
    np.testing.assert_allclose(after.centroids[7], state.centroids[7], rtol=1e-6)


def test_all_rows_the_same_neither_fail_nor_move():
    x = np.full((256, 6), 3.0, np.float32)
    state = of_batches(k_means_init(jax.random.key(0), x, 8), np.tile(x, (60, 1)), 256)
    np.testing.assert_array_equal(state.centroids, np.full((8, 6), 3.0))
    assert float(state.cost) == 0


def test_traced_rows_that_are_not_finite_take_no_part(blobs):
    state = k_means_init(None, blobs[:256], 8, init=blobs[:8])
    bad = blobs[:256].copy()
    bad[3, 1], bad[7, 0] = np.nan, np.inf
    weights = np.isfinite(bad).all(axis=1).astype(np.float32)
    update = jax.jit(k_means_update)
    got = update(state, bad)
    close(got, k_means_update(state, blobs[:256], weights=weights))
    close(got, k_means_update(state, bad, weights=weights))
    close(update(state, np.full_like(bad, np.nan)), state, rtol=0)
    with pytest.raises(ValueError, match="2 of 256 with a NaN"):
        k_means_update(state, bad)


def test_passes_refuse_rows_that_are_not_finite_unless_they_weigh_nothing(blobs):
    bad = blobs[:256].copy()
    bad[3, 1], bad[7, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 with a NaN or an infinity in batch 1"):
        k_means_stream(None, [blobs[:256], bad], 8, init=blobs[:8])
    weights = np.isfinite(bad).all(axis=1).astype(np.float32)
    assert k_means_stream(None, [(bad, weights)], 8, init=blobs[:8]).num_rows == 254


@pytest.mark.parametrize("dtype", [np.int8, jnp.bfloat16])
def test_narrow_batches_are_computed_in_float(dtype):
    x = np.arange(16).reshape(8, 2).astype(dtype)
    wide = x.astype(np.float32)
    state = k_means_update(k_means_init(None, x, 2, init=wide[[0, 7]]), x)
    want = k_means_update(k_means_init(None, wide, 2, init=wide[[0, 7]]), wide)
    np.testing.assert_allclose(state.centroids, want.centroids)
    got = k_means_stream(None, [x[:5], x[5:]], 2, init=wide[[0, 7]])
    np.testing.assert_allclose(got.centroids, want.centroids, rtol=1e-6)


# Bad input

ROWS = np.arange(12.0, dtype=np.float32).reshape(6, 2)


@pytest.mark.parametrize(
    ("batches", "options", "error", "match"),
    [
        ((ROWS for _ in range(2)), {}, TypeError, "a generator, which ends after one pass"),
        ([], {}, ValueError, "at least one batch"),
        (lambda: iter([]), {}, ValueError, "at least one batch"),
        (3, {}, TypeError, "expected batches; got a int"),
        ([ROWS, ROWS[:, :1]], {}, ValueError, r"of batch 1: expected 2 features"),
        ([ROWS[:0]], {}, ValueError, "at least one row"),
        ([ROWS[0]], {}, ValueError, r"shape \(num_rows, num_features\)"),
        (ROWS[0], {}, ValueError, r"shape \(num_rows, num_features\)"),
        ([ROWS + 1j], {}, TypeError, "real numbers"),
        ([ROWS[:1]], {}, ValueError, "at least num_clusters=2 rows; got 1"),
        ([(ROWS, np.zeros(6))], {}, ValueError, "rows of positive weight"),
        ([(ROWS, -np.ones(6))], {}, ValueError, "finite weights of at least 0"),
        ([(ROWS, np.ones(5))], {}, ValueError, r"weights of shape \(6,\)"),
        ([ROWS], {"metric": "manhattan"}, ValueError, "use k_means_update"),
        ([ROWS], {"metric": "hamming"}, ValueError, "metric in"),
        ([ROWS], {"batch_size": 2}, ValueError, "batch_size only for an array"),
        (ROWS, {"batch_size": 0}, ValueError, "batch_size to be an integer of at least 1"),
        ([ROWS], {"init": ROWS[:3]}, ValueError, r"init of shape \(2, 2\)"),
        ([ROWS], {"init": "k-means++"}, TypeError, "one random key"),
        ([ROWS], {"covariance": np.eye(2)}, ValueError, "no covariance"),
        ([ROWS], {"tol": -1}, ValueError, "tol in"),
    ],
)
def test_passes_refuse_what_they_cannot_use(unchecked, batches, options, error, match):
    with pytest.raises(error, match=match):
        k_means_stream(None, batches, 2, **({"init": ROWS[:2]} | options))


def test_passes_refuse_other_rows_in_a_later_pass(unchecked):
    once = iter([ROWS])
    with pytest.raises(ValueError, match="0 rows, after a pass of 6"):
        k_means_stream(None, lambda: once, 2, init=ROWS[:2])


@pytest.mark.parametrize(
    ("batch", "options", "error", "match"),
    [
        (ROWS[:1], {}, ValueError, "num_clusters to be an integer of at least 1 and at most 1"),
        (ROWS, {"metric": "hamming"}, ValueError, "metric in"),
        (ROWS, {"init": "best"}, ValueError, "init in"),
        (ROWS, {"init": ROWS[:3]}, ValueError, r"init of shape \(2, 2\)"),
        (ROWS, {"reassignment_ratio": 2}, ValueError, "reassignment_ratio in"),
        (ROWS * np.nan, {}, ValueError, "finite rows"),
        (ROWS, {"metric": "mahalanobis", "covariance": np.ones((2, 2))}, ValueError, "positive definite"),
    ],
)
def test_init_refuses_what_it_cannot_use(unchecked, batch, options, error, match):
    with pytest.raises(error, match=match):
        k_means_init(jax.random.key(0), batch, 2, **options)


@pytest.mark.parametrize(
    ("batch", "weights", "match"),
    [
        (ROWS[:, :1], None, "expected 2 features"),
        (ROWS[:0], None, "at least one row"),
        (ROWS[0], None, r"shape \(num_rows, 2\)"),
        (ROWS, np.ones(5), r"weights of shape \(6,\)"),
        (ROWS, -np.ones(6), "finite weights of at least 0"),
    ],
)
def test_updates_refuse_what_they_cannot_use(unchecked, batch, weights, match):
    state = k_means_init(jax.random.key(0), ROWS, 2)
    with pytest.raises(ValueError, match=match):
        k_means_update(state, batch, weights=weights)
    close(k_means_update(state, ROWS[:1]).num_rows, 1.0)  # fewer rows than clusters are fine here


SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxgrad.clustering._passes import k_means_stream
from jaxgrad.clustering._streaming import k_means_init, k_means_update

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
assert len(jax.devices()) == 8
centres = 4 * np.random.default_rng(3).standard_normal((6, 3))
random = np.random.default_rng(0)
x = (centres[random.integers(6, size=1024)] + random.standard_normal((1024, 3))).astype(np.float32)
spread = lambda rows: jax.device_put(rows, sharding)
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
both = np.asarray, spread
start = np.concatenate([x[:5] + 0.01, -100 * np.ones((1, 3), np.float32)])
for metric in ("euclidean", "manhattan", "mahalanobis"):
    states = [k_means_init(None, put(x[:128]), 6, metric=metric, init=start) for put in both]
    for at in [*range(0, 1024, 128)] * (9 if metric == "euclidean" else 1):
        batch, weights = x[at : at + 128], random.integers(1, 3, 128).astype(np.float32)
        states = [k_means_update(state, put(batch), weights=put(weights)) for state, put in zip(states, both)]
    jax.tree.map(close, *states)
    if metric == "euclidean":
        assert states[0].counts[5] > 0
    if metric == "mahalanobis":
        options = {"metric": metric, "init": start}
        fits = [k_means_stream(None, [put(x[:512]), put(x[512:])], 6, **options) for put in both]
        jax.tree.map(close, *fits)
fits = [k_means_stream(jax.random.key(0), [put(x[:512]), put(x[512:])], 6, sample_size=300) for put in both]
jax.tree.map(close, *fits)
"""


@pytest.mark.heavy
def test_sharded_batches_give_what_one_device_gives():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
