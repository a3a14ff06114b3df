"""Clipping of every example by itself, and its noise."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import clipping

BATCH = 6
KEY = jax.random.key(3)


def stacks(unit=1.0, seed=0):
    rng = np.random.default_rng(seed)
    sizes = unit * np.logspace(-2, 1, BATCH)
    return {
        "w": jnp.asarray(sizes[:, None, None] * rng.standard_normal((BATCH, 3, 2)), jnp.float32),
        "b": jnp.asarray(sizes[:, None] * rng.standard_normal((BATCH, 2)), jnp.float32),
    }


PARAMS = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:]), stacks())


def clip(gradients, *args, **options):
    clipper = clipping.per_example_clip(*args, **options)
    with jax.disable_jit():  # its branches would be compiled anew in every test
        return clipper.update(gradients, clipper.init(PARAMS), PARAMS)


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in jax.tree.leaves(tree)], 1)


@pytest.mark.parametrize("max_norm", [0.0, 0.3, 1e3, np.inf])
@pytest.mark.parametrize("unit", [1e-25, 1.0, 1e25])
def test_equals_a_loop_over_examples(max_norm, unit):
    rows = flat(stacks(unit))
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    clipped = rows * np.minimum(1, max_norm * unit / norms)
    want = np.mean(clipped, axis=0)
    updates, state = clip(stacks(unit), max_norm * unit)
    got = np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(updates)])
    np.testing.assert_allclose(got / unit, want / unit, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.example_fraction, np.mean(norms > max_norm * unit), rtol=1e-6)
    np.testing.assert_allclose(state.norm / unit, np.linalg.norm(np.mean(rows, axis=0)) / unit, rtol=1e-5)
    mean = np.mean(rows, axis=0)
    np.testing.assert_allclose(state.scale, np.linalg.norm(want) / np.linalg.norm(mean), rtol=1e-5, atol=1e-7)
    if max_norm:
        angle = np.arccos(np.clip(want @ mean / np.linalg.norm(want) / np.linalg.norm(mean), -1, 1))
        np.testing.assert_allclose(state.angle, angle, atol=1e-3)


def test_equals_optax_without_noise():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        sums, _ = optax.per_example_global_norm_clip(jax.tree.leaves(stacks()), 0.3)
    updates, _ = clip(stacks(), 0.3)
    for got, want in zip(jax.tree.leaves(updates), sums, strict=True):
        np.testing.assert_allclose(got, want / BATCH, rtol=1e-5)


def test_a_batch_of_one_is_clipping_by_the_global_norm():
    one = jax.tree.map(lambda leaf: leaf[-1:], stacks())
    updates, state = clip(one, 0.5)
    clipper = clipping.clip_by_global_norm(0.5)
    want, other = clipper.update(jax.tree.map(lambda leaf: leaf[0], one), clipper.init(PARAMS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, want)
    np.testing.assert_allclose([state.norm, state.scale], [other.norm, other.scale], rtol=1e-5)


def test_the_noise_has_its_deviation_and_changes_every_step():
    clipper = clipping.per_example_clip(2.0, noise_multiplier=1.5, key=KEY)
    zeros = {"w": jnp.zeros((BATCH, 200, 100)), "b": jnp.zeros((BATCH, 300))}
    params = jax.tree.map(lambda leaf: leaf[0], zeros)
    update = jax.jit(clipper.update)
    first, state = update(zeros, clipper.init(params), params)
    second, _ = update(zeros, state, params)
    assert not np.array_equal(first["w"], second["w"])
    assert abs(np.corrcoef(np.ravel(first["w"]), np.ravel(second["w"]))[0, 1]) < 0.02
    for updates in (first, second):
        np.testing.assert_allclose(np.std(updates["w"]), 1.5 * 2.0 / BATCH, rtol=0.02)
        np.testing.assert_allclose(np.std(updates["b"]), 1.5 * 2.0 / BATCH, rtol=0.15)
    again, _ = update(zeros, clipper.init(params), params)
    np.testing.assert_array_equal(first["w"], again["w"])
    assert state.norm == 0, "the record is that of the gradients"


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_an_example_that_is_not_finite(bad):
    broken = stacks()
    broken["w"] = broken["w"].at[2, 0, 0].set(bad)
    updates, state = clip(broken, 0.3)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))
    assert (int(state.num_nonfinite), bool(state.clipped)) == (1, False)
    updates, state = clip(broken, 0.3, on_nonfinite="zero")
    mended = {**broken, "w": broken["w"].at[2, 0, 0].set(0)}
    want, _ = clip(mended, 0.3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, want)
    assert state.num_nonfinite == 1
    updates, _ = clip(broken, 0.3, on_nonfinite="propagate")
    assert not np.isfinite(updates["w"]).all()
    noisy, _ = clip(broken, 0.3, noise_multiplier=1.0, key=KEY)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(noisy))


def test_low_precision_and_other_leaves():
    gradients = {"half": jnp.full((4, 3), 300.0, jnp.float16), "steps": jnp.arange(4)}
    clipper = clipping.per_example_clip(1.0)
    updates, _ = clipper.update(gradients, clipper.init({"half": jnp.zeros(3, jnp.float16), "steps": jnp.zeros(())}))
    assert updates["half"].dtype == jnp.float16
    np.testing.assert_allclose(updates["half"].astype(jnp.float32), 1 / np.sqrt(3), rtol=1e-3)


def test_gradient_at_examples_of_zeros_is_finite():
    zeros = jax.tree.map(jnp.zeros_like, stacks())
    through = lambda g: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(clip(g, 0.5)[0]))  # noqa: E731
    for leaf in jax.tree.leaves(jax.grad(through)(zeros)):
        np.testing.assert_allclose(leaf, 1 / BATCH, rtol=1e-6)


def test_bad_input(unchecked):
    for args, options, match in [
        ((-1.0,), {}, "max_norm of at least 0"),
        ((1.0,), {"noise_multiplier": -1.0}, "noise_multiplier of at least 0"),
        ((1.0,), {"noise_multiplier": 1.0}, "a key for the noise"),
        ((1.0,), {"on_nonfinite": "drop"}, "on_nonfinite"),
    ]:
        with pytest.raises(ValueError, match=match):
            clipping.per_example_clip(*args, **options)
    for gradients in (
        PARAMS,
        {**stacks(), "b": stacks()["b"][:3]},
        jax.tree.map(lambda leaf: leaf[:0], stacks()),
        {"w": stacks()["w"][0], "b": stacks()["b"][:3]},
    ):
        with pytest.raises(ValueError, match="a leading axis of examples"):
            clip(gradients, 1.0)
