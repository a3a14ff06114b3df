"""Statistics against float64 NumPy and scikit-learn: offsets, streams, shards, masks, constants, and bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.normalization import (
    standardize,
    standardize_fit,
    standardize_init,
    standardize_merge,
    standardize_pmerge,
    standardize_update,
    unstandardize,
)

# Compiled: dozens of small operations would each be compiled on their own otherwise.
fit = jax.jit(standardize_fit, static_argnames=("axis", "on_nonfinite"))
update = jax.jit(standardize_update, static_argnames=("axis", "on_nonfinite"))
apply = jax.jit(standardize, static_argnames=("axis", "eps"))
invert = jax.jit(unstandardize, static_argnames=("axis", "eps"))
merge = jax.jit(standardize_merge)


def data(*shape, offset=0.0, scale=1.0, seed=0, dtype=np.float32):
    return (np.random.default_rng(seed).standard_normal(shape) * scale + offset).astype(dtype)


def exact(value, remainder):
    """A statistic with what rounding left out of it."""
    return np.float64(value) + np.float64(remainder)


def mean_of(stats):
    return exact(stats.mean, stats.remainders.mean)


def assert_close(stats, x, *, weights=None, rtol=2e-6):
    """Statistics against NumPy in float64, in units of the standard deviation."""
    x = np.asarray(x, np.float64)
    weights = np.ones_like(x) if weights is None else np.broadcast_to(weights, x.shape)
    mean = np.average(x, axis=0, weights=weights)
    variance = np.average((x - mean) ** 2, axis=0, weights=weights)
    np.testing.assert_allclose(exact(stats.count, stats.remainders.count), weights.sum(0), rtol=1e-6)
    np.testing.assert_allclose((mean_of(stats) - mean) / np.sqrt(variance), 0, atol=2e-7)
    np.testing.assert_allclose(exact(stats.variance, stats.remainders.variance), variance, rtol=rtol)


def scanned(batches, stats=None, **options):
    """Statistics of a stream, as the carry of a scan."""
    start = standardize_init(batches.shape[2:], jnp.float32) if stats is None else stats
    step = lambda stats, batch: (standardize_update(stats, batch, **options), None)  # noqa: E731
    return jax.jit(lambda start, batches: jax.lax.scan(step, start, batches)[0])(start, jnp.asarray(batches))


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6, 1e8])
def test_data_far_from_zero_equal_float64(offset):
    x = data(1000, 2, offset=offset, scale=max(1.0, abs(offset) * 1e-6))
    stats = fit(x)
    assert_close(stats, x)
    want = (x.astype(np.float64) - x.mean(0, np.float64)) / x.std(0, dtype=np.float64)
    np.testing.assert_allclose(apply(stats, x), want, atol=1e-6)
    np.testing.assert_allclose(invert(stats, apply(stats, x)), x, rtol=3e-7, atol=1e-6)
    assert_close(scanned(x.reshape(200, 5, 2)), x)


def test_the_naive_formulas_fail_at_an_offset():
    x = jnp.asarray(data(1000, 1, offset=1e4))
    naive = jnp.mean(jnp.square(x)) - jnp.square(jnp.mean(x))
    assert abs(float(naive) - float(np.var(np.asarray(x, np.float64)))) > 0.1


def test_scikit_learn_on_one_array_and_on_a_stream():
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x = data(300, 3, offset=50.0, scale=4.0)
    scaler, stats = preprocessing.StandardScaler(), standardize_init((3,), jnp.float32)
    for batch in np.split(x, 3):
        scaler.partial_fit(batch)
        stats = update(stats, batch)
    np.testing.assert_allclose(stats.mean, scaler.mean_, rtol=1e-6)
    np.testing.assert_allclose(stats.variance, scaler.var_, rtol=1e-5)
    np.testing.assert_allclose(apply(stats, x), scaler.transform(x), atol=1e-5)
    np.testing.assert_allclose(invert(stats, x), scaler.inverse_transform(x), rtol=1e-5)
    np.testing.assert_allclose(fit(x).variance, preprocessing.StandardScaler().fit(x).var_, rtol=1e-5)


def test_a_million_batches_of_one_lose_nothing():
    x = data(1000, 1, offset=1e4)
    once = lambda stats: jax.lax.scan(lambda s, b: (standardize_update(s, b), None), stats, x[:, None])[0]  # noqa: E731
    stats = jax.jit(lambda s: jax.lax.fori_loop(0, 1000, lambda _, s: once(s), s))(standardize_init((1,), jnp.float32))
    assert exact(stats.count, stats.remainders.count) == 1e6
    np.testing.assert_allclose((mean_of(stats) - x.mean(dtype=np.float64)) / x.std(dtype=np.float64), 0, atol=3e-7)
    np.testing.assert_allclose(stats.variance, x.var(dtype=np.float64), rtol=1e-6)


def test_counts_go_on_where_float32_stops():
    """Beyond 2**24 a float32 is no longer changed by adding one."""
    x = jnp.asarray(data(8, 1))
    many = fit(x)._replace(count=jnp.full((1,), 2.0**24, jnp.float32))
    stats = scanned(np.tile(x[:1, None], (10, 1, 1)), many)
    assert exact(stats.count, stats.remainders.count) == 2**24 + 10
    assert np.float32(2**24) + np.float32(1) == np.float32(2**24)


@pytest.mark.parametrize("size", [0, 1, 400])
def test_merging_equals_fitting_all(size):
    x = data(1000, 2, offset=1e6, scale=3.0)
    one, other = standardize_fit(x[:size]), standardize_fit(x[size:])
    assert_close(merge(one, other), x)
    assert_close(merge(other, one), x)


def test_merging_with_nothing_is_exact():
    stats = fit(data(50, 2, offset=1e8, scale=100.0))
    empty = standardize_init((2,), jnp.float32)
    for merged in (merge(stats, empty), merge(empty, stats)):
        jax.tree.map(np.testing.assert_array_equal, merged, stats)


def test_shards_merge_into_the_whole():
    x = data(60, 2, offset=1e6, scale=2.0)
    shards = jnp.asarray(x.reshape(4, 15, 2))
    both = lambda shard: standardize_pmerge(standardize_fit(shard), "d")  # noqa: E731
    stats = jax.jit(jax.vmap(both, axis_name="d"))(shards)
    for shard in range(4):
        assert_close(jax.tree.map(lambda leaf, shard=shard: leaf[shard], stats), x)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "d")
    spec = jax.sharding.PartitionSpec
    shard_map = getattr(jax, "shard_map", None)
    if shard_map is None:  # before jax 0.7
        from jax.experimental.shard_map import shard_map
    mapped = shard_map(both, mesh=mesh, in_specs=spec("d"), out_specs=spec())
    assert_close(jax.jit(mapped)(x), x)
    # An empty shard, and a constant feature of a value that has no exact third.
    where = jnp.arange(3)[:, None] > 0
    constant = lambda x, where: standardize_pmerge(standardize_fit(x, where=where), "d")  # noqa: E731
    stats = jax.jit(jax.vmap(constant, axis_name="d"))(jnp.full((3, 4, 1), 0.1, jnp.float32), jnp.tile(where, (1, 4)))
    np.testing.assert_array_equal(stats.variance, 0)
    np.testing.assert_array_equal(stats.mean, np.float32(0.1))
    np.testing.assert_array_equal(stats.count, 8)


@pytest.mark.parametrize("num", [1, 1000])
def test_constants_become_zero_and_come_back_exactly(num):
    x = jnp.tile(jnp.array([[0.1, 1e8 / 3, -3.3e-20, 0.0]], jnp.float32), (num, 1))
    for stats in (fit(x), scanned(x[:, None]), merge(fit(x), fit(x))):
        np.testing.assert_array_equal(stats.variance, 0)
        np.testing.assert_array_equal(apply(stats, x), 0)
        np.testing.assert_array_equal(invert(stats, apply(stats, x)), x)
    gradient = jax.jit(jax.grad(lambda x: standardize(standardize_fit(x), x).sum()))(x)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_eps_is_the_standard_deviation_that_counts_as_constant():
    x = jnp.array([[1.0, 1.0], [1.002, 3.0]], jnp.float32)
    stats = fit(x)
    z = apply(stats, x, eps=0.01)
    np.testing.assert_allclose(z, [[-0.001, -1], [0.001, 1]], rtol=1e-3)
    np.testing.assert_allclose(invert(stats, z, eps=0.01), x, rtol=1e-6)
    np.testing.assert_allclose(jnp.abs(apply(stats, x)), 1, rtol=1e-3)


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 3)])
def test_a_mask_equals_slicing_and_hides_what_is_behind_it(shape):
    x = data(40, 3)
    where = np.broadcast_to((np.arange(40) % 3 > 0).reshape(40, *(1,) * (len(shape) - 1)), shape)
    dirty = np.where(np.arange(40)[:, None] % 3 > 0, x, np.nan)
    stats = fit(dirty, where=where)
    assert_close(stats, x[np.arange(40) % 3 > 0])
    gradient = jax.jit(jax.grad(lambda x: standardize_fit(x, where=where).variance.sum()))(dirty)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[::3], 0)


def test_values_can_be_masked_feature_by_feature():
    x = data(40, 2)
    where = np.stack([np.arange(40) < 10, np.arange(40) < 30], axis=1)
    stats = fit(x, where=where)
    np.testing.assert_array_equal(stats.count, [10, 30])
    for feature, num in enumerate((10, 30)):
        np.testing.assert_allclose(stats.variance[feature], x[:num, feature].var(dtype=np.float64), rtol=1e-5)
    nothing = fit(x, where=np.zeros(40, bool))
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), nothing)
    np.testing.assert_array_equal(apply(nothing, x), x)


def test_weights_equal_repetition_and_their_scale_is_the_count():
    x = data(20, 2, offset=1e4)
    weights = np.arange(20) % 4
    assert_close(fit(x, weights=weights), np.repeat(x, weights, axis=0))
    assert_close(fit(x, weights=weights / 8), x, weights=weights[:, None] / 8)
    dirty = np.where(weights[:, None] > 0, x, np.inf)
    np.testing.assert_allclose(fit(dirty, weights=weights).variance, fit(x, weights=weights).variance)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_policies_for_what_is_not_finite(bad):
    x = data(20, 2)
    x[3, 0] = bad
    propagated = fit(x)
    assert not np.isfinite(propagated.variance[0])
    np.testing.assert_allclose(propagated.variance[1], x[:, 1].var(), rtol=1e-5)
    stats = fit(x, on_nonfinite="omit")
    np.testing.assert_array_equal(stats.count, [19, 20])
    np.testing.assert_allclose(stats.mean[0], np.delete(x[:, 0], 3).mean(), rtol=1e-4, atol=1e-6)
    streamed = scanned(x.reshape(10, 2, 2), on_nonfinite="omit")
    np.testing.assert_allclose(streamed.variance, stats.variance, rtol=1e-5)
    with pytest.raises(ValueError, match="standardize_fit: expected finite values; got 1 of 40"):
        standardize_fit(jnp.asarray(x), on_nonfinite="raise")
    # Traced values cannot be looked at.
    assert not np.isfinite(fit(x, on_nonfinite="raise").variance[0])
    clean = jnp.arange(20) != 3
    standardize_fit(jnp.asarray(x), where=clean, on_nonfinite="raise")


@pytest.mark.parametrize("axis", [1, (0, -1), None])
def test_axes_equal_numpy(axis):
    x = data(4, 5, 6, offset=10.0)
    stats = fit(x, axis=axis)
    np.testing.assert_allclose(stats.mean, x.mean(axis, np.float64), rtol=1e-6)
    np.testing.assert_allclose(stats.variance, x.var(axis, dtype=np.float64), rtol=1e-5)
    axes = tuple(range(3)) if axis is None else axis
    z = apply(stats, x, axis=axes)
    np.testing.assert_allclose(z, (x - x.mean(axis, keepdims=True)) / x.std(axis, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(invert(stats, z, axis=axes), x, rtol=1e-5)
    twice = update(stats, x, axis=axes)
    np.testing.assert_allclose(twice.variance, stats.variance, rtol=1e-5)


def test_leading_axes_are_found_from_the_features():
    stats = fit(data(30, 3))
    x = jnp.asarray(data(2, 4, 3))
    z = apply(stats, x)
    np.testing.assert_array_equal(z[1, 2], apply(stats, x[1, 2]))
    assert update(stats, x).count[0] == 38
    assert update(stats, x[1, 2]).count[0] == 31


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.bool_])
def test_integers_are_converted(dtype):
    x = np.random.default_rng(0).integers(0, 2 if dtype == np.bool_ else 256, (50, 4, 3)).astype(dtype)
    stats = fit(x, axis=(0, 1))
    np.testing.assert_allclose(stats.mean, x.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(stats.variance, x.var((0, 1)), rtol=1e-5)
    z = apply(stats, jnp.asarray(x))
    assert z.dtype == stats.mean.dtype == jnp.float32
    np.testing.assert_allclose(z.var((0, 1)), 1, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_computed_in_float32(dtype):
    x = jnp.asarray(data(2000, 1, offset=8.0)).astype(dtype)
    stats = fit(x)
    assert stats.mean.dtype == jnp.float32
    assert_close(stats, x.astype(jnp.float32))
    z = apply(stats, x)
    assert z.dtype == dtype
    assert invert(stats, z).dtype == dtype


def test_double_precision_stays_and_single_is_not_widened(x64):
    x = jnp.asarray(data(50, 2, offset=1e8, dtype=np.float64))
    stats = fit(x)
    assert stats.mean.dtype == jnp.float64
    np.testing.assert_allclose(stats.variance, np.var(x, axis=0), rtol=1e-12)
    single = fit(x.astype(jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(single)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(update(single, x))} == {jnp.dtype(jnp.float32)}
    assert apply(stats, x.astype(jnp.float32)).dtype == jnp.float32
    assert standardize_init((2,)).mean.dtype == jnp.float64


def test_gradients_equal_finite_differences(x64):
    x = jnp.asarray(data(5, 2, offset=3.0, dtype=np.float64))
    weights = jnp.arange(1.0, 6.0)

    def loss(x):
        stats = standardize_update(standardize_fit(x[:2]), x[2:], weights=weights[2:])
        return jnp.sum(jnp.sin(standardize(stats, x)) * weights[:, None]) + jnp.sum(stats.variance**2 + stats.mean)

    loss = jax.jit(loss)
    gradient = jax.grad(loss)(x)
    for index in np.ndindex(5, 2):
        step = jnp.zeros((5, 2)).at[index].set(1e-6)
        np.testing.assert_allclose(gradient[index], (loss(x + step) - loss(x - step)) / 2e-6, rtol=1e-6, atol=1e-7)


def test_vmap_equals_a_loop():
    x = jnp.asarray(data(3, 20, 2))
    stats = jax.jit(jax.vmap(standardize_fit))(x)
    want = [fit(part) for part in x]
    jax.tree.map(lambda got, *each: np.testing.assert_allclose(got, np.stack(each), atol=1e-6), stats, *want)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x, s: standardize_fit(x, axis=2), "different axes of data with 2 axes; got axis=2"),
        (lambda x, s: standardize_fit(x, axis=(0, -2)), "different axes"),
        (lambda x, s: standardize_fit(jnp.ones(())), "a single example has none"),
        (
            lambda x, s: standardize_fit(x, where=jnp.ones(2, bool)),
            r"where over the first axes.*\(4, 2\); got shape \(2,\)",
        ),
        (lambda x, s: standardize_fit(x, weights=jnp.ones((4, 2, 1))), "weights over the first axes"),
        (lambda x, s: standardize_fit(x, weights=-jnp.ones(4)), "weights of at least 0; got -1.0"),
        (lambda x, s: standardize_fit(x, on_nonfinite="skip"), "on_nonfinite 'propagate', 'omit' or 'raise'"),
        (
            lambda x, s: standardize_update(s, jnp.ones((4, 3))),
            r"standardize_update: expected data with features of shape",
        ),
        (lambda x, s: standardize(s, jnp.ones((2, 4))), "put the features last"),
        (lambda x, s: standardize(s, jnp.ones(())), "put the features last"),
        (lambda x, s: standardize(s, x, eps=-1.0), "eps of at least 0"),
        (lambda x, s: unstandardize(s, x.T), "unstandardize: expected data with features"),
        (lambda x, s: standardize_merge(s, standardize_init((3,))), "statistics of the same features"),
    ],
)
def test_bad_values_are_refused(call, match, unchecked):
    x = jnp.asarray(data(4, 2))
    with pytest.raises(ValueError, match=match):
        call(x, standardize_fit(x))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: standardize_fit(jnp.ones(3, jnp.complex64)), "real data; got complex64"),
        (lambda: standardize_fit(jnp.ones(3), where=jnp.ones(3)), "a boolean where"),
        (lambda: standardize_init((3,), jnp.bfloat16), "float32 or float64; got bfloat16"),
    ],
)
def test_bad_types_are_refused(call, match, unchecked):
    with pytest.raises(TypeError, match=match):
        call()
