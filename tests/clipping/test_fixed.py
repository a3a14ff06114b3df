"""Clipping at a given threshold: against peers and closed forms, at the edges, and its gradients."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import clipping

FIXED = [clipping.clip, clipping.clip_by_norm, clipping.clip_by_global_norm, clipping.smooth_clip]


def gradients(seed=0, unit=1.0):
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(unit * rng.standard_normal((3, 4)), jnp.float32),
        "b": jnp.asarray(unit * rng.standard_normal(4), jnp.float32),
    }


def once(clipper, updates, params=None):
    with jax.disable_jit():  # its branches would be compiled anew in every test
        return clipper.update(updates, clipper.init(updates), params)


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("threshold", [0.1, 1.5, 100.0])
@pytest.mark.parametrize(
    ("ours", "theirs"), [(clipping.clip, optax.clip), (clipping.clip_by_global_norm, optax.clip_by_global_norm)]
)
def test_equals_optax(ours, theirs, threshold):
    updates, _ = once(ours(threshold), gradients())
    want, _ = once(theirs(threshold), gradients())
    np.testing.assert_allclose(flat(updates), flat(want), rtol=1e-6)


@pytest.mark.parametrize(
    ("ours", "name"),
    [
        (clipping.clip, "clipvalue"),
        (clipping.clip_by_norm, "clipnorm"),
        (clipping.clip_by_global_norm, "global_clipnorm"),
    ],
)
def test_equals_keras(ours, name, third_party_model):
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    optimizer = keras.optimizers.SGD(1.0, **{name: 1.5})
    leaves = jax.tree.leaves(gradients())
    want = [np.asarray(leaf) for leaf in optimizer._clip_gradients([np.asarray(leaf) for leaf in leaves])]
    updates, _ = once(ours(1.5), leaves)
    np.testing.assert_allclose(flat(updates), flat(want), rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.5, 1.5, 100.0])
def test_equals_torch(threshold):
    torch = pytest.importorskip("torch")
    leaves = [torch.zeros(leaf.shape, requires_grad=True) for leaf in jax.tree.leaves(gradients())]
    for leaf, gradient in zip(leaves, jax.tree.leaves(gradients()), strict=True):
        leaf.grad = torch.tensor(np.asarray(gradient))
    norm = torch.nn.utils.clip_grad_norm_(leaves, threshold)
    updates, state = once(clipping.clip_by_global_norm(threshold), gradients())
    # torch adds 1e-6 to the norm.
    np.testing.assert_allclose(flat(updates), flat([leaf.grad.numpy() for leaf in leaves]), rtol=1e-5)
    np.testing.assert_allclose(state.norm, norm.numpy(), rtol=1e-6)


def test_the_textbook_example():
    updates, state = once(clipping.clip_by_global_norm(1.0), jnp.array([0.9, 100.0]))
    np.testing.assert_allclose(updates, [0.00899964, 0.99995950], atol=1e-7)
    np.testing.assert_allclose(state.scale, 1 / np.hypot(0.9, 100), rtol=1e-6)


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0])
def test_clipping_the_error_is_the_gradient_of_the_huber_loss(delta):
    errors = jnp.linspace(-4, 4, 33)
    updates, _ = once(clipping.clip(delta), jax.grad(lambda e: jnp.sum(0.5 * e**2))(errors))
    want = jax.grad(lambda e: jnp.sum(optax.huber_loss(e, delta=delta)))(errors)
    np.testing.assert_allclose(updates, want, rtol=1e-6)


@pytest.mark.parametrize("delta", [0.5, 2.0])
def test_smooth_clipping_of_the_error_is_the_gradient_of_the_pseudo_huber_loss(delta):
    errors = jnp.linspace(-4, 4, 33)
    updates, _ = jax.vmap(lambda error: once(clipping.smooth_clip(delta), error))(errors)
    want = jax.grad(lambda e: jnp.sum(delta**2 * jnp.sqrt(1 + (e / delta) ** 2)))(errors)
    np.testing.assert_allclose(updates, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 50.0])
@pytest.mark.parametrize("unit", [1e-30, 1e-3, 1.0, 1e3, 3e19])
def test_smooth_clip_is_a_closed_form_below_its_limit(power, unit):
    before = gradients(unit=unit)
    updates, state = once(clipping.smooth_clip(2.0, power=power), before)
    norm = np.linalg.norm(flat(before))
    want = flat(before) * np.exp(-np.logaddexp(0, power * np.log(norm / 2)) / power)
    np.testing.assert_allclose(flat(updates), want, rtol=2e-5)
    assert np.linalg.norm(flat(updates)) <= 2 * (1 + 1e-6)
    assert state.angle == 0


def test_smooth_clip_tends_to_the_hard_one():
    for unit in (0.1, 10.0):
        smooth, _ = once(clipping.smooth_clip(2.0, power=1e3), gradients(unit=unit))
        hard, _ = once(clipping.clip_by_global_norm(2.0), gradients(unit=unit))
        np.testing.assert_allclose(flat(smooth), flat(hard), rtol=1e-3)


@pytest.mark.parametrize("clipper", FIXED)
def test_clipping_twice_is_clipping_once(clipper):
    if clipper is clipping.smooth_clip:
        pytest.skip("shrinks at every pass")
    updates, _ = once(clipper(0.7), gradients())
    again, state = once(clipper(0.7), updates)
    np.testing.assert_allclose(flat(again), flat(updates), rtol=1e-6)
    np.testing.assert_allclose(state.scale, 1, rtol=1e-6)


@pytest.mark.parametrize("clipper", FIXED)
def test_zero_gives_zeros_and_infinity_the_gradient_bit_for_bit(clipper):
    before = {**gradients(), "tiny": jnp.array([1e-40, -0.0, 3e38]), "half": jnp.array([1e-7, 1.0], jnp.float16)}
    for updates, _ in (once(clipper(0.0), before), once(clipper(0), before)):
        np.testing.assert_array_equal(flat(updates), 0)
    for threshold in (jnp.inf, float("inf"), jnp.array(jnp.inf)):
        updates, state = jax.jit(lambda g, t=threshold: once(clipper(t), g))(before)
        for leaf, want in zip(jax.tree.leaves(updates), jax.tree.leaves(before), strict=True):
            assert np.asarray(leaf).tobytes() == np.asarray(want).tobytes()
        assert (state.scale, state.angle, bool(state.clipped)) == (1, 0, False)


@pytest.mark.parametrize("clipper", FIXED)
@pytest.mark.parametrize("unit", [1e-30, 3e19, 1e37])
def test_right_over_the_range_of_float32(clipper, unit):
    """The plain formula makes an update of 3e19 zero, and one of 1e-30 NaN or unclipped."""
    limit = 0.1 * unit
    updates, state = once(clipper(limit), gradients(unit=unit))
    small, _ = once(clipper(0.1), gradients())
    np.testing.assert_allclose(flat(updates) / unit, flat(small), rtol=1e-4)
    np.testing.assert_allclose(state.norm / unit, np.linalg.norm(flat(gradients())), rtol=1e-5)
    naive, _ = once(optax.clip_by_global_norm(1.0), gradients(unit=3e19))
    assert np.linalg.norm(flat(naive)) == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("clipper", FIXED)
def test_low_precision_keeps_its_dtype_and_a_small_factor(clipper, dtype):
    before = {"low": jnp.full(10**4, 3e4, dtype), "high": jnp.ones(2, jnp.float32)}
    updates, state = once(clipper(1.0), before)
    assert jax.tree.map(lambda leaf: leaf.dtype, updates) == {"low": dtype, "high": jnp.float32}
    np.testing.assert_allclose(state.leaf_norms[1], 3e6, rtol=0.01)
    want = 1.0 if clipper is clipping.clip else 0.01
    np.testing.assert_allclose(updates["low"][0].astype(jnp.float32), want, rtol=0.01)


@pytest.mark.parametrize("clipper", FIXED)
def test_what_is_not_floating_passes(clipper):
    before = {"w": jnp.array([3.0, 4.0]), "steps": jnp.arange(3), "none": None, "masked": optax.MaskedNode()}
    before["float0"] = np.zeros(2, jax.dtypes.float0)
    updates, state = once(clipper(1.0), before)
    assert jax.tree.structure(updates) == jax.tree.structure(before)
    np.testing.assert_array_equal(updates["steps"], before["steps"])
    assert updates["float0"].dtype == jax.dtypes.float0
    assert [*map(list, state.leaf_names)] == [["float0"], ["steps"], ["w"]]
    np.testing.assert_allclose(state.leaf_norms, [0, 0, 5], rtol=1e-6)


@pytest.mark.parametrize("clipper", FIXED)
def test_an_empty_tree_is_clipped(clipper):
    updates, state = once(clipper(1.0), {"nothing": None})
    assert updates == {"nothing": None}
    assert (state.norm, state.scale, int(state.count)) == (0, 1, 1)


def test_complex_leaves_are_scaled():
    before = jnp.array([3 + 4j, 0], jnp.complex64)
    updates, _ = once(clipping.clip_by_global_norm(1.0), before)
    np.testing.assert_allclose(updates, [0.6 + 0.8j, 0], rtol=1e-6)
    with pytest.raises(TypeError, match=r"clip: expected real gradients; got a leaf of dtype complex64"):
        once(clipping.clip(1.0), before)


@pytest.mark.parametrize("clipper", [clipping.clip, clipping.clip_by_norm])
@pytest.mark.parametrize("threshold", [0.0, 1e-4, 0.3, 1.0, 3.0])
def test_scale_and_angle_are_those_of_the_vectors(clipper, threshold):
    before = gradients()
    updates, state = once(clipper(threshold), before)
    old, new = flat(before), flat(updates)
    np.testing.assert_allclose(state.scale, np.linalg.norm(new) / np.linalg.norm(old), rtol=1e-5)
    cosine = old @ new / np.linalg.norm(old) / np.linalg.norm(new) if new.any() else 1.0
    np.testing.assert_allclose(state.angle, np.arccos(min(cosine, 1.0)), atol=1e-5)


def test_small_angles_are_resolved():
    before = jnp.array([1.0, 1e-4])
    for clipper in (clipping.clip(0.99), clipping.clip_by_norm(0.99)):
        _, state = once(clipper, {"a": before[:1], "b": before[1:]})
        want = np.arctan2(1e-4, 0.99) - np.arctan2(1e-4, 1.0)
        np.testing.assert_allclose(state.angle, want, rtol=2e-2)


@pytest.mark.parametrize("clipper", FIXED)
def test_gradient_through_a_clip_is_finite_at_zero(clipper):
    cotangent = gradients(seed=1)

    def through(clipper, x):
        updates, _ = once(clipper, x)
        return sum(jnp.sum(u * c) for u, c in zip(jax.tree.leaves(updates), jax.tree.leaves(cotangent), strict=True))

    zeros = jax.tree.map(jnp.zeros_like, cotangent)
    got = jax.grad(lambda x: through(clipper(1.0), x))(zeros)
    np.testing.assert_allclose(flat(got), flat(cotangent), rtol=1e-6)
    got = jax.grad(lambda x: through(clipper(0.0), x))(zeros)
    assert np.all(np.isfinite(flat(got)))


def test_the_plain_formula_has_no_gradient_at_zero():
    naive = lambda x: jnp.sum(x * jnp.minimum(1.0, 1 / jnp.sqrt(jnp.sum(x**2))))  # noqa: E731
    assert np.isnan(jax.grad(naive)(jnp.zeros(3))).all()


@pytest.mark.parametrize("clipper", FIXED)
def test_gradient_through_a_clip_equals_finite_differences(clipper, x64):
    as64 = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)  # noqa: E731
    point, direction, cotangent = as64(gradients()), as64(gradients(1)), flat(gradients(2))

    def along(t):
        updates, _ = once(clipper(0.7), jax.tree.map(lambda x, d: x + t * d, point, direction))
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(updates)]) @ cotangent

    want = (along(1e-6) - along(-1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(along)(0.0), want, rtol=1e-6)


@pytest.mark.parametrize("clipper", FIXED)
def test_thresholds_are_refused(clipper, unchecked):
    name = clipper.__name__
    for bad in (-1.0, float("nan"), -float("inf"), np.float32(-1)):
        with pytest.raises(ValueError, match=f"{name}: expected max_.* of at least 0; got"):
            clipper(bad)
    for bad in ("1", None, True, jnp.ones(2)):
        with pytest.raises(TypeError, match=f"{name}: expected max_.* as a number"):
            clipper(bad)
    with pytest.raises(ValueError, match=f"{name}: expected on_nonfinite 'skip', 'zero' or 'propagate'; got 'ignore'"):
        clipper(1.0, on_nonfinite="ignore")
    with pytest.raises(ValueError, match=f"{name}: expected gradients like the parameters"):
        clipper(1.0).update({"other": jnp.ones(2)}, clipper(1.0).init({"w": jnp.ones(2)}))


def test_smooth_clip_refuses_a_power(unchecked):
    for power in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="smooth_clip: expected a power above 0"):
            clipping.smooth_clip(1.0, power=power)
