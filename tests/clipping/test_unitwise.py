"""Clipping relative to the parameters: the equation, and which axes make a unit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import clipping


def normal(*shape, seed=0, unit=1.0):
    return jnp.asarray(unit * np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def clip(gradients, params, *args, **options):
    clipper = clipping.adaptive_clip(*args, **options)
    with jax.disable_jit():  # its branches would be compiled anew in every test
        return clipper.update(gradients, clipper.init(params), params)


def equation_3(gradient, weight, axes, max_ratio, floor=1e-3):
    g, w = (np.asarray(each, np.float64) for each in (gradient, weight))
    norm = lambda x: np.sqrt(np.sum(x**2, axis=axes, keepdims=True))  # noqa: E731
    return g * np.minimum(1, max_ratio * np.maximum(norm(w), floor) / norm(g))


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e25])
@pytest.mark.parametrize("max_ratio", [0.01, 0.3, 10.0])
def test_equals_equation_3_in_numpy(max_ratio, unit):
    params, gradients = {"kernel": normal(5, 3)}, {"kernel": normal(5, 3, seed=1, unit=unit)}
    updates, _ = clip(gradients, params, max_ratio)
    want = equation_3(gradients["kernel"], params["kernel"], 0, max_ratio)
    np.testing.assert_allclose(updates["kernel"], want, rtol=2e-5)


def test_equals_optax_where_its_axes_are_right():
    params = {"kernel": normal(5, 3), "conv": normal(3, 3, 2, 4), "bias": normal(3)}
    gradients = {"kernel": normal(5, 3, seed=1), "conv": normal(3, 3, 2, 4, seed=1), "bias": normal(3, seed=1)}
    updates, _ = clip(gradients, params, 0.1)
    theirs = optax.adaptive_grad_clip(0.1)
    want, _ = theirs.update(gradients, theirs.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), updates, want)


@pytest.mark.parametrize(
    ("path", "shape", "axes"),
    [
        (("Dense_0", "kernel"), (5, 3), (0,)),
        (("Conv_0", "kernel"), (3, 3, 2, 4), (0, 1, 2)),
        (("layers", "weight"), (5, 3), (1,)),
        (("layers", "conv", "weight"), (4, 2, 3, 3), (1, 2, 3)),
        (("Embed_0", "embedding"), (7, 3), (1,)),
        (("attention", "query", "kernel"), (6, 2, 3), (0,)),
        (("attention", "query", "bias"), (2, 3), (0, 1)),
        (("attention", "out", "kernel"), (2, 3, 6), (0, 1)),
        (("scale",), (4,), (0,)),
        (("temperature",), (), ()),
    ],
)
def test_the_path_says_what_a_unit_is(path, shape, axes):
    def nest(leaf):
        for name in reversed(path):
            leaf = {name: leaf}
        return leaf

    updates, _ = clip(nest(normal(*shape, seed=1)), nest(normal(*shape)), 0.1)
    want = equation_3(normal(*shape, seed=1), normal(*shape), axes, 0.1)
    np.testing.assert_allclose(jax.tree.leaves(updates)[0], want, rtol=2e-5)


def test_rules_come_first_and_may_leave_a_leaf_alone():
    params = {"body": {"kernel": normal(5, 3)}, "head": {"kernel": normal(3, 2)}}
    gradients = jax.tree.map(lambda p: 10 * p, params)
    updates, state = clip(gradients, params, 0.1, axes=[("head", None), ("kernel", ())])
    assert updates["head"]["kernel"] is gradients["head"]["kernel"] or np.array_equal(
        updates["head"]["kernel"], gradients["head"]["kernel"]
    )
    want = equation_3(gradients["body"]["kernel"], params["body"]["kernel"], (), 0.1)
    np.testing.assert_allclose(updates["body"]["kernel"], want, rtol=2e-5)
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (gradients, updates)]
    np.testing.assert_allclose(state.scale, np.linalg.norm(flat[1]) / np.linalg.norm(flat[0]), rtol=1e-5)
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    np.testing.assert_allclose(np.cos(state.angle), cosine, rtol=1e-5)
    assert state.clipped


def test_a_bias_that_starts_at_zero_grows():
    """Relative to its norm nothing may pass; the floor lets ``max_ratio * floor`` through, and then it is its own."""
    optimizer = optax.chain(clipping.adaptive_clip(0.5, floor=1e-2), optax.sgd(1.0))
    params = {"bias": jnp.zeros(4)}
    state, norms, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for _ in range(12):
        updates, state = update({"bias": -jnp.ones(4)}, state, params)
        params = optax.apply_updates(params, updates)
        norms.append(jnp.linalg.norm(params["bias"]))
    np.testing.assert_allclose(norms[:2], [0.005, 0.01], rtol=1e-5)
    np.testing.assert_allclose(np.diff(norms)[3:] / np.array(norms[3:-1]), 0.5, rtol=1e-5)


def test_gradient_through_a_clip_is_finite_at_zeros():
    params = {"kernel": jnp.zeros((3, 2))}
    through = lambda g: jnp.sum(clip({"kernel": g}, params, 0.1)[0]["kernel"] ** 2 + g)  # noqa: E731
    assert np.isfinite(jax.grad(through)(jnp.zeros((3, 2)))).all()


def test_bad_input(unchecked):
    params = {"kernel": jnp.ones((3, 2))}
    for options, error, match in [
        ({"max_ratio": -0.1}, ValueError, "max_ratio of at least 0"),
        ({"floor": float("nan")}, ValueError, "floor of at least 0"),
        ({"axes": {"head": 0}}, ValueError, "'head', which matches none of the 1"),
        ({"axes": {"(": 0}}, ValueError, "regular expressions"),
        ({"axes": {"kernel": 2}}, ValueError, "axes within the 2 of leaf 'kernel'"),
        ({"axes": 0}, TypeError, "a mapping, or pairs"),
    ]:
        with pytest.raises(error, match=match):
            clipping.adaptive_clip(**options).init(params)
    clipper = clipping.adaptive_clip()
    with pytest.raises(ValueError, match="params=None"):
        clipper.update(params, clipper.init(params))
