"""A stream of batches, or several of them, against all rows at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.decomposition import PCAState, pca, pca_from_state, pca_init, pca_merge, pca_update

ROWS = (np.random.default_rng(0).normal(size=(60, 5)) * np.arange(1, 6)).astype(np.float32)


def _stream(x: np.ndarray, size: int, dtype: jnp.dtype | None = None) -> PCAState:
    state = pca_init(x.shape[1], dtype)
    for start in range(0, len(x), size):
        state = pca_update(state, x[start : start + size])
    return state


def _assert_same(a: PCAState, b: PCAState, rtol: float = 1e-5) -> None:
    for mine, other in zip(a[:3], b[:3], strict=True):
        np.testing.assert_allclose(mine, other, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(other))))


@pytest.mark.parametrize("size", [1, 7, 60])
@pytest.mark.parametrize("offset", [0, 1000])
def test_batches_give_what_all_rows_give(size: int, offset: float) -> None:
    x = ROWS + np.float32(offset)
    streamed, whole = pca_from_state(_stream(x, size), 3, whiten=True), pca(x, 3, whiten=True)
    for name in whole._fields:
        mine, other = getattr(streamed, name), getattr(whole, name)
        if name != "mean_remainder":
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_hundred_thousand_batches_far_from_zero_wear_nothing_down() -> None:
    rng = np.random.default_rng(1)
    batches = (1e6 + rng.normal(size=(100_000, 2, 3)) * np.array([1, 2, 4])).astype(np.float32)
    rows = batches.reshape(-1, 3).astype(np.float64)
    update = lambda state, batch: (pca_update(state, batch), None)  # noqa: E731
    state, _ = jax.jit(lambda batches: jax.lax.scan(update, pca_init(3, jnp.float32), batches))(batches)
    assert float(state.count) == 200_000
    exact = rows.mean(axis=0)
    mean = np.asarray(state.mean, np.float64) + np.asarray(state.remainders.mean, np.float64)
    np.testing.assert_allclose(mean - exact, 0, atol=1e-5)
    scatter = (rows - exact).T @ (rows - exact)
    np.testing.assert_allclose(state.scatter, scatter, atol=1e-6 * scatter.max())


def test_counts_do_not_stop_where_single_precision_does() -> None:
    state = pca_init(1, jnp.float32)
    many = state._replace(count=jnp.float32(2**24))
    for _ in range(4):
        many = pca_update(many, jnp.zeros((1, 1), jnp.float32))
    assert float(many.count) + float(many.remainders.count) == 2**24 + 4


def test_merging_is_commutative_and_associative_and_nothing_adds_nothing() -> None:
    a, b, c = (_stream(part, 10, jnp.float32) for part in np.split(ROWS + np.float32(100), 3))
    empty = pca_init(5, jnp.float32)
    _assert_same(pca_merge(a, b), pca_merge(b, a))
    _assert_same(pca_merge(pca_merge(a, b), c), pca_merge(a, pca_merge(b, c)))
    for both in (pca_merge(a, empty), pca_merge(empty, a)):
        for mine, other in zip(jax.tree.leaves(both), jax.tree.leaves(a), strict=True):
            np.testing.assert_array_equal(mine, other)


def test_weights_count_rows() -> None:
    counts = np.random.default_rng(2).integers(0, 3, 60)
    holes = np.where(counts[:, None] == 0, np.nan, ROWS).astype(np.float32)
    weighted = pca_update(pca_init(5, jnp.float32), holes, counts)
    _assert_same(weighted, pca_update(pca_init(5, jnp.float32), np.repeat(ROWS, counts, axis=0)))
    _assert_same(pca_update(weighted, ROWS, np.zeros(60)), weighted)


def test_a_traced_row_that_is_not_finite_takes_no_part() -> None:
    bad = np.concatenate([ROWS, np.full((3, 5), np.nan, np.float32)])
    state = jax.jit(lambda x: pca_update(pca_init(5, jnp.float32), x))(bad)
    _assert_same(state, _stream(ROWS, 60, jnp.float32))


@pytest.mark.heavy
def test_states_vmap() -> None:
    groups = jnp.asarray(ROWS).reshape(3, 20, 5)
    fit = lambda x: pca_from_state(pca_update(pca_init(5, jnp.float32), x), 2)  # noqa: E731
    mapped = jax.vmap(fit)(groups)
    for i, group in enumerate(groups):
        np.testing.assert_allclose(mapped.components[i], fit(group).components, atol=1e-5)


@pytest.mark.heavy
def test_derivatives_pass_through_a_stream(x64: None) -> None:
    x, change = jnp.asarray(ROWS[:12], jnp.float64), jnp.asarray(ROWS[12:24], jnp.float64)

    def total(x: jax.Array) -> jax.Array:
        result = pca_from_state(pca_update(pca_update(pca_init(5), x[:6]), x[6:]), 2)
        return sum(jnp.sum(jnp.sin(field)) for field in result[:6])

    value, slope = jax.jit(total), jax.jit(jax.grad(total))
    difference = (value(x + 1e-6 * change) - value(x - 1e-6 * change)) / 2e-6
    np.testing.assert_allclose(jnp.sum(slope(x) * change), difference, rtol=1e-6)
    assert bool(jnp.all(jnp.isfinite(slope(jnp.zeros_like(x)))))


def test_the_type_of_the_state_is_kept(x64: None) -> None:
    assert pca_init(2).mean.dtype == jnp.float64
    for dtype in (jnp.float32, jnp.float64):
        state = pca_update(pca_init(2, dtype), jnp.ones((3, 2), jnp.bfloat16))
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("batch", "weights", "error", "text"),
    [
        (np.ones((4, 3)), None, ValueError, "5 features"),
        (np.ones(5), None, ValueError, r"\(num_rows, 5\)"),
        (np.ones((0, 5)), None, ValueError, "at least one row"),
        (np.ones((4, 5), np.complex64), None, TypeError, "real"),
        (np.ones((4, 5)), np.ones(3), ValueError, "weights of shape"),
    ],
)
def test_bad_batches_are_refused(
    unchecked: None, batch: np.ndarray, weights: np.ndarray | None, error: type[Exception], text: str, compiled: bool
) -> None:
    update = jax.jit(pca_update) if compiled else pca_update
    with pytest.raises(error, match=text) as caught:
        update(pca_init(5), batch, weights)
    assert str(caught.value).startswith("pca_update: expected")


def test_bad_values_and_states_are_refused(unchecked: None) -> None:
    state = pca_init(2)
    with pytest.raises(ValueError, match="1 of 2 with a NaN"):
        pca_update(state, np.array([[0, np.nan], [1, 1]]))
    with pytest.raises(ValueError, match="1 of 2 that are not"):
        pca_update(state, np.eye(2), np.array([1, -1]))
    with pytest.raises(ValueError, match="more than one row"):
        pca_from_state(pca_update(state, np.ones((1, 2))), 1)
    with pytest.raises(ValueError, match="num_components in 1 to 2"):
        pca_from_state(pca_update(state, np.eye(2)), 3)
    with pytest.raises(ValueError, match="traced state"):
        jax.jit(lambda state: pca_from_state(state, 0.5))(state)
    with pytest.raises(ValueError, match="states of 2 features"):
        pca_merge(state, pca_init(3))
    with pytest.raises(ValueError, match="at least 1"):
        pca_init(0)
    with pytest.raises(TypeError, match="an int num_features"):
        pca_init(2.0)
    with pytest.raises(TypeError, match="float32 or float64"):
        pca_init(2, jnp.bfloat16)
