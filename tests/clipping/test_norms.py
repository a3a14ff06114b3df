"""Norms against numpy in double precision, over the whole range of float32, and their gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import clipping


def tree(seed=0, unit=1.0):
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(unit * rng.standard_normal((3, 4)), jnp.float32),
        "b": jnp.asarray(unit * rng.standard_normal(4), jnp.float32),
    }


def numpy_norm(tree):
    return np.sqrt(sum(np.sum(np.abs(np.asarray(leaf, np.complex128)) ** 2) for leaf in jax.tree.leaves(tree)))


@pytest.mark.parametrize("unit", [1e-36, 1e-30, 1e-19, 1e-12, 1.0, 1e12, 1e18, 3e19, 1e37])
def test_global_norm_equals_numpy_at_every_scale(unit):
    gradients = tree(unit=unit)
    np.testing.assert_allclose(jax.jit(clipping.global_norm)(gradients), numpy_norm(gradients), rtol=1e-5)


def test_the_plain_formula_fails_outside_of_its_range():
    plain = lambda tree: jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))  # noqa: E731
    assert plain(tree(unit=3e19)) == np.inf
    assert plain(tree(unit=1e-30)) == 0


def test_small_leaves_beside_large_ones_keep_their_norm():
    gradients = {"large": jnp.ones(3), "small": jnp.full(4, 1e-30), "zero": jnp.zeros(5)}
    state = clipping.clip_by_global_norm(1.0).init(gradients)
    _, state = clipping.clip_by_global_norm(1.0).update(gradients, state)
    large, small, zero = state.leaf_norms
    np.testing.assert_allclose([large, small], [np.sqrt(3), 2e-30], rtol=1e-5)
    assert zero == 0


def test_a_thousand_leaves_of_bfloat16_ones():
    leaves = [jnp.ones(1000, jnp.bfloat16)] * 1000
    with jax.disable_jit():  # a thousand sums take long to compile
        np.testing.assert_allclose(clipping.global_norm(leaves), 1000, rtol=1e-5)
    total = sum(jnp.sum(jnp.square(leaf)) for leaf in leaves)
    assert jnp.sqrt(total) < 600, "summed in bfloat16"


def test_a_norm_beyond_the_largest_number_saturates():
    assert clipping.global_norm(jnp.full(100, 3e38, jnp.float32)) == jnp.finfo(jnp.float32).max
    assert clipping.global_norm([jnp.full(4, 1e38, jnp.float32)] * 4) == jnp.finfo(jnp.float32).max


@pytest.mark.parametrize("bad", [jnp.inf, -jnp.inf, jnp.nan])
def test_nonfinite_entries_make_the_norm_nonfinite(bad):
    norm = clipping.global_norm({"w": jnp.array([1.0, bad]), "b": jnp.array(1e30)})
    assert jnp.isnan(norm) if jnp.isnan(bad) else norm == jnp.inf


def test_what_is_not_floating_does_not_count():
    gradients = {
        "w": jnp.array([3.0, 4.0]),
        "steps": jnp.arange(5),
        "none": None,
        "masked": optax.MaskedNode(),
        "float0": np.zeros(3, jax.dtypes.float0),
    }
    assert clipping.global_norm(gradients) == 5
    assert clipping.global_norm({}) == 0
    assert clipping.global_norm(jnp.zeros((0, 3))) == 0


def test_complex_entries_count_with_their_modulus():
    z = jnp.array([3 + 4j, 1j], jnp.complex64)
    np.testing.assert_allclose(clipping.global_norm(z), np.sqrt(26), rtol=1e-6)
    np.testing.assert_allclose(clipping.global_norm(z * 1e25), np.sqrt(26) * 1e25, rtol=1e-6)
    gradient = jax.grad(lambda x: clipping.global_norm(jax.lax.complex(x, 2 * x)))(jnp.array([1.0, -2.0]))
    np.testing.assert_allclose(gradient, np.array([1, -2]), rtol=1e-6)


def test_double_precision_is_summed_in_double_precision(x64):
    gradients = {"w": jnp.full(3, 1e200), "b": jnp.ones(2, jnp.float32)}
    norm = clipping.global_norm(gradients)
    assert norm.dtype == jnp.float64
    np.testing.assert_allclose(norm, np.sqrt(3) * 1e200, rtol=1e-14)
    clipper = clipping.clip_by_global_norm(1.0)
    updates, state = clipper.update(gradients, clipper.init(gradients))
    np.testing.assert_allclose(updates["w"], 1 / np.sqrt(3), rtol=1e-14)
    assert (updates["b"].dtype, state.norm.dtype) == (jnp.float32, jnp.float32)
    assert state.norm == jnp.finfo(jnp.float32).max


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e30])
def test_gradient_is_the_direction(unit):
    gradients = tree(unit=unit)
    got = jax.grad(clipping.global_norm)(gradients)
    for leaf, want in zip(jax.tree.leaves(got), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(leaf, np.asarray(want, np.float64) / numpy_norm(gradients), rtol=1e-5)


def test_gradient_equals_finite_differences(x64):
    gradients = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree())
    direction = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree(seed=1))
    along = lambda t: clipping.global_norm(jax.tree.map(lambda x, d: x + t * d, gradients, direction))  # noqa: E731
    want = (along(1e-6) - along(-1e-6)) / 2e-6
    np.testing.assert_allclose(jax.jvp(along, (0.0,), (1.0,))[1], want, rtol=1e-8)
    second = (along(1e-4) - 2 * along(0.0) + along(-1e-4)) / 1e-8
    np.testing.assert_allclose(jax.grad(jax.grad(along))(0.0), second, rtol=1e-5)


def test_gradient_at_zero_is_zero():
    zeros = jax.tree.map(jnp.zeros_like, tree())
    for leaf in jax.tree.leaves(jax.grad(clipping.global_norm)(zeros)):
        np.testing.assert_array_equal(leaf, 0)
    assert np.isnan(jax.grad(lambda x: jnp.sqrt(jnp.sum(x**2)))(jnp.zeros(3))).all()


def test_norms_under_vmap():
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), tree(0), tree(1, 3e19), tree(2, 1e-30))
    got = jax.vmap(clipping.global_norm)(stacked)
    np.testing.assert_allclose(got, [numpy_norm(tree(0)), numpy_norm(tree(1, 3e19)), numpy_norm(tree(2, 1e-30))], 1e-5)


@pytest.mark.parametrize("axes", [0, 1, (0, 2), (), (-1,), (0, 1, 2)])
@pytest.mark.parametrize("unit", [1e-30, 1.0, 3e19])
def test_unitwise_norm_equals_numpy(axes, unit):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)) * unit, jnp.float32)
    want = np.sqrt(np.sum(np.asarray(x, np.float64) ** 2, axis=axes, keepdims=True))
    np.testing.assert_allclose(clipping.unitwise_norm(x, axes), want, rtol=1e-5)


def test_unitwise_norm_of_zeros_beside_others():
    x = jnp.array([[0.0, 3.0, 1e30], [0.0, 4.0, 0.0]])
    np.testing.assert_allclose(clipping.unitwise_norm(x, 0), [[0, 5, 1e30]], rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(clipping.unitwise_norm(x, 0)))(x)
    np.testing.assert_allclose(gradient, [[0, 0.6, 1], [0, 0.8, 0]], rtol=1e-6)


def test_unitwise_norm_follows_rules():
    params = {"Dense_0": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "steps": jnp.arange(2)}
    norms = clipping.unitwise_norm(params, {"bias": None})
    assert jax.tree.map(jnp.shape, norms) == {"Dense_0": {"kernel": (1, 3), "bias": ()}, "steps": (2,)}
    with pytest.raises(ValueError, match=r"unitwise_norm: expected axes within the 1 of leaf 'Dense_0/bias'"):
        clipping.unitwise_norm(params, 1)
    with pytest.raises(ValueError, match="matches none of"):
        clipping.unitwise_norm(params, {"head": None})
