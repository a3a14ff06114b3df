"""Variances and bounds against theory and PyTorch, draws against JAX, and signals through deep networks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxgrad import initializers

KEY = jax.random.key(0)
SHAPE = (600, 400)
NAMED = {
    "glorot_normal": 2 / 1000,
    "glorot_uniform": 2 / 1000,
    "he_normal": 2 / 600,
    "he_uniform": 2 / 600,
    "lecun_normal": 1 / 600,
    "lecun_uniform": 1 / 600,
}


@pytest.mark.parametrize("name", NAMED)
def test_named_initializers_have_the_variance_and_the_distribution_of_theory(name):
    values = np.asarray(getattr(initializers, name)()(KEY, SHAPE, jnp.float32), np.float64).ravel()
    stddev = np.sqrt(NAMED[name])
    assert isinstance(getattr(initializers, name)(), initializers.Initializer)
    np.testing.assert_allclose(values.var(), NAMED[name], rtol=0.015)
    cut = 0.8796256610342398
    law = (
        scipy.stats.uniform(-np.sqrt(3) * stddev, 2 * np.sqrt(3) * stddev)
        if name.endswith("uniform")
        else scipy.stats.truncnorm(-2, 2, scale=stddev / cut)
    )
    assert scipy.stats.kstest(values[::10], law.cdf).pvalue > 1e-3
    assert np.abs(values).max() <= law.support()[1] * (1 + 1e-6)


@pytest.mark.parametrize("name", [name for name in NAMED if name.endswith("normal")])
def test_an_untruncated_normal_has_tails(name):
    values = getattr(initializers, name)(truncated=False)(KEY, SHAPE, jnp.float32)
    np.testing.assert_allclose(values.var(), NAMED[name], rtol=0.015)
    assert jnp.abs(values).max() > 3.5 * NAMED[name] ** 0.5


@pytest.mark.parametrize("distribution", ["truncated_normal", "normal", "uniform"])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg", "fan_geo_avg"])
def test_draws_are_those_of_jax(mode, distribution):
    ours = initializers.variance_scaling(2.0, mode, distribution)(KEY, (3, 4, 8), jnp.float32)
    theirs = jax.nn.initializers.variance_scaling(2.0, mode, distribution)(KEY, (3, 4, 8), jnp.float32)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "options", "fan_in"),
    [
        ((512, 8, 64), {"einsum": "de,ehk->dhk"}, 512),
        ((12, 256, 256), {"batch_axis": 0}, 256),
        ((3, 3, 1, 4096), {"feature_group_count": 4096}, 9),
        ((400, 600), {"in_axis": (), "batch_axis": 0}, 1),
    ],
)
def test_the_variance_of_kernels_with_more_axes_is_over_their_own_fan(shape, options, fan_in):
    values = initializers.he_normal(**options)(KEY, shape, jnp.float32)
    np.testing.assert_allclose(values.var() * fan_in, 2, rtol=0.03)


def test_attention_projection_keeps_the_variance_where_default_axes_do_not():
    x = jax.random.normal(KEY, (256, 512), jnp.float32)
    project = lambda init: jnp.einsum("de,ehk->dhk", x, init(KEY, (512, 8, 16), jnp.float32)).var()  # noqa: E731
    np.testing.assert_allclose(project(initializers.lecun_normal(einsum="de,ehk->dhk")), 1, rtol=0.05)
    assert project(initializers.lecun_normal()) < 0.2


def test_equals_the_variances_of_pytorch():
    torch = pytest.importorskip("torch")
    tensor = torch.empty(400, 600)  # (out, in)
    ours = {
        "xavier_normal_": initializers.glorot_normal,
        "xavier_uniform_": initializers.glorot_uniform,
        "kaiming_normal_": initializers.he_normal,
        "kaiming_uniform_": initializers.he_uniform,
    }
    for name, build in ours.items():
        leaky = {"a": 0.3} if name.startswith("kaiming") else {}
        options = {"negative_slope": 0.3} if leaky else {}
        theirs = getattr(torch.nn.init, name)(tensor, **leaky).var().item()
        np.testing.assert_allclose(build(**options)(KEY, SHAPE, jnp.float32).var(), theirs, rtol=0.02)


@pytest.mark.parametrize(
    ("activation", "build", "options"),
    [
        (jax.nn.relu, initializers.he_normal, {}),
        (jax.nn.relu, initializers.he_uniform, {}),
        (lambda x: jax.nn.leaky_relu(x, 0.2), initializers.he_normal, {"negative_slope": 0.2}),
        (lambda x: x, initializers.glorot_uniform, {}),
        (jax.nn.selu, initializers.lecun_normal, {}),
    ],
)
def test_signals_keep_their_size_through_fifty_layers(activation, build, options):
    keys = jax.random.split(jax.random.key(3), 50)
    kernels = jax.vmap(lambda key: build(**options)(key, (256, 256), jnp.float32))(keys)
    x = jax.random.normal(KEY, (64, 256), jnp.float32)

    def layer(h, kernel):
        h = h @ kernel
        return activation(h), jnp.mean(jnp.square(h))

    # One draw of a network of width n and depth L varies by a factor of about exp(sqrt(5 L / n)).
    sizes = jax.lax.scan(layer, x, kernels)[1]
    assert 0.2 < float(sizes[-1] / sizes[0]) < 5
    halved = jax.lax.scan(layer, x, kernels * 0.5**0.5)[1]
    assert float(halved[-1] / halved[0]) < 0.1 or activation is jax.nn.selu


@pytest.mark.parametrize("bound", [0.5, 2.0, 5.0])
def test_truncated_normal_has_the_standard_deviation_asked_for(bound):
    values = initializers.truncated_normal(0.02, bound=bound)(KEY, SHAPE, jnp.float32)
    np.testing.assert_allclose(values.std(), 0.02, rtol=0.01)
    edge = 0.02 * bound / float(scipy.stats.truncnorm(-bound, bound).std())
    assert jnp.abs(values).max() <= edge * (1 + 1e-6)
    if bound == 2.0:
        naive = jax.nn.initializers.truncated_normal(0.02)(KEY, SHAPE, jnp.float32)
        np.testing.assert_allclose(naive.std(), 0.02 * 0.8796, rtol=0.01)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("build", [initializers.he_normal, initializers.truncated_normal])
def test_low_precision_is_the_float32_draw_rounded(build, dtype):
    values = build()(KEY, (64, 32), dtype)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, build()(KEY, (64, 32), jnp.float32).astype(dtype))


def test_types_and_transformations():
    init = initializers.he_normal(dtype=jnp.bfloat16)
    assert init(KEY, (4, 4)).dtype == jnp.bfloat16
    assert init(KEY, (4, 4), jnp.float32).dtype == jnp.float32
    assert initializers.he_normal()(KEY, (4, 4)).dtype == jnp.result_type(float)
    assert initializers.he_normal()(KEY, (4, 4), jnp.complex64).dtype == jnp.complex64
    keys = jax.random.split(KEY, 3)
    init = initializers.lecun_normal()
    stacked = jax.jit(jax.vmap(lambda key: init(key, (4, 4), jnp.float32)))(keys)
    np.testing.assert_allclose(stacked[1], init(keys[1], (4, 4), jnp.float32), rtol=1e-6)


def test_the_scale_can_be_learned():
    draw = lambda scale: initializers.variance_scaling(scale, "fan_in", "normal")(KEY, (8, 8), jnp.float32).std()  # noqa: E731
    scale = jnp.float32(2.0)
    np.testing.assert_allclose(jax.grad(draw)(scale), draw(scale) / (2 * scale), rtol=1e-4)


def test_variance_scaling_refuses(unchecked):
    with pytest.raises(ValueError, match="variance_scaling: expected mode"):
        initializers.variance_scaling(1.0, "fan", "normal")
    with pytest.raises(ValueError, match="variance_scaling: expected distribution"):
        initializers.variance_scaling(1.0, "fan_in", "gaussian")
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive, finite scale"):
            initializers.variance_scaling(scale, "fan_in", "normal")
    with pytest.raises(ValueError, match="positive, finite stddev"):
        initializers.truncated_normal(0.0)
    with pytest.raises(ValueError, match="positive, finite bound"):
        initializers.truncated_normal(1.0, bound=-2.0)
    with pytest.raises(TypeError, match="int32"):
        initializers.he_normal()(KEY, (3, 3), jnp.int32)
    with pytest.raises(TypeError, match="real floating"):
        initializers.truncated_normal()(KEY, (3,), jnp.complex64)
    with pytest.raises(ValueError, match="a bias or a scale has no fan"):
        initializers.he_normal()(KEY, (64,))
    with pytest.raises(ValueError, match="sizes of at least 1"):
        initializers.lecun_uniform()(KEY, (0, 4))
