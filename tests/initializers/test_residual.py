"""Residual networks at their start: the Jacobian, the growth of the variance, and the size of the first step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import initializers

KEY = jax.random.key(0)
WIDTH = 64


def kernels(init, num, key=KEY):
    return jnp.stack([init(own, (WIDTH, WIDTH), jnp.float32) for own in jax.random.split(key, num)])


def network(params, x):
    """Branches of two layers, each added to the stream; every leaf of the parameters is stacked over the branches."""

    def branch(h, own):
        inner = jax.nn.relu(h @ own["first"]) @ own["second"]
        return h + own["multiplier"] * inner, None

    return jax.lax.scan(branch, x, params)[0]


def parameters(num, first, second, multiplier):
    scalars = jnp.broadcast_to(multiplier(KEY, (), jnp.float32), (num,))
    return {
        "first": kernels(first, num),
        "second": kernels(second, num, jax.random.key(1)),
        "multiplier": scalars,
    }


def starting_points(num):
    he, parts = initializers.he_normal(), initializers.fixup(num)
    return {
        "fixup": parameters(num, parts.inner, parts.last, parts.multiplier),
        "skip_init": parameters(num, he, he, initializers.skip_init()),
    }


@pytest.mark.parametrize("name", ["fixup", "skip_init"])
@pytest.mark.parametrize("num", [4, 36])
def test_the_jacobian_is_the_identity_exactly(name, num):
    params = starting_points(num)[name]
    x = jax.random.normal(KEY, (WIDTH,), jnp.float32)
    np.testing.assert_array_equal(network(params, x), x)
    np.testing.assert_array_equal(jax.jacobian(network, argnums=1)(params, x), np.eye(WIDTH))


@pytest.mark.parametrize("build", ["depth_scaled", "skip_init"])
@pytest.mark.parametrize("num", [10, 40])
def test_branches_over_the_root_of_the_depth_grow_to_e_and_unscaled_ones_double(build, num):
    he, one = initializers.he_normal(), jax.nn.initializers.ones
    # After the ReLU of the first layer the mean square is that of its input; the second layer is linear.
    second = initializers.lecun_normal()
    if build == "depth_scaled":
        params = parameters(num, he, initializers.depth_scaled(num, base=second), one)
    else:
        params = parameters(num, he, second, initializers.skip_init(num))
    x = jax.random.normal(KEY, (128, WIDTH), jnp.float32)
    grown = float(jnp.square(network(params, x)).mean() / jnp.square(x).mean())
    np.testing.assert_allclose(grown, (1 + 1 / num) ** num, rtol=0.25)
    unscaled = parameters(10, he, second, one)
    np.testing.assert_allclose(jnp.square(network(unscaled, x)).mean() / jnp.square(x).mean(), 2**10, rtol=0.6)


def test_a_first_step_with_fixup_changes_the_output_by_the_same_at_every_depth():
    x = jax.random.normal(KEY, (32, WIDTH), jnp.float32)
    y = jax.random.normal(jax.random.key(2), (32, WIDTH), jnp.float32)
    loss = lambda params: 0.5 * jnp.mean(jnp.sum(jnp.square(network(params, x) - y), axis=-1))  # noqa: E731

    def step(params):
        moved = jax.tree.map(lambda p, g: p - 1e-3 * g, params, jax.grad(loss)(params))
        return jnp.linalg.norm(network(moved, x) - network(params, x))

    def change(num, inner):
        parts = initializers.fixup(num)
        params = parameters(num, inner(parts), parts.last, parts.multiplier)
        return float(jax.jit(step)(params))

    scaled = [change(num, lambda parts: parts.inner) for num in (4, 36)]
    np.testing.assert_allclose(scaled[1], scaled[0], rtol=0.15)
    unscaled = [change(num, lambda parts: initializers.he_normal()) for num in (4, 36)]
    assert unscaled[1] > 6 * unscaled[0]


@pytest.mark.parametrize(("num", "layers", "want"), [(16, 2, 0.25), (16, 3, 0.5), (1, 2, 1.0), (64, 4, 0.5)])
def test_fixup_scale_is_the_power_of_the_paper(num, layers, want):
    parts = initializers.fixup(num, layers_per_branch=layers)
    np.testing.assert_allclose(parts.scale, want, rtol=1e-6)
    base = initializers.he_normal()(KEY, (8, 8), jnp.float32)
    np.testing.assert_allclose(parts.inner(KEY, (8, 8), jnp.float32), want * base, rtol=1e-6)
    assert parts.multiplier(KEY, ()) == 1
    assert parts.bias(KEY, ()) == 0


def test_types_and_bases():
    parts = initializers.fixup(9, base=initializers.orthogonal())
    kernel = parts.inner(KEY, (6, 6), jnp.bfloat16)
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_array_equal(kernel, parts.inner(KEY, (6, 6), jnp.float32).astype(jnp.bfloat16))
    assert initializers.skip_init()(KEY, (), jnp.bfloat16).dtype == jnp.bfloat16
    scaled = initializers.depth_scaled(4, base=initializers.orthogonal())(KEY, (6, 6), jnp.float32)
    np.testing.assert_allclose(scaled.T @ scaled, np.eye(6) / 4, atol=1e-5)


def test_residual_scales_refuse(unchecked):
    for build in (initializers.fixup, initializers.skip_init, initializers.depth_scaled):
        with pytest.raises(ValueError, match=f"{build.__name__}: expected num_branches of at least 1; got 0"):
            build(0)
    with pytest.raises(ValueError, match="at least two layers per branch"):
        initializers.fixup(4, layers_per_branch=1)
