"""Principal components of activations: against NumPy, and for networks whose dimensions are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad
from jaxgrad.diagnosis import activation_pca, plot_activations

KEYS = jax.random.split(jax.random.key(0), 4)
X = jax.random.normal(KEYS[0], (48, 6))
PARAMS = {
    "first": {"kernel": jax.random.normal(KEYS[1], (6, 6)), "bias": jnp.full(6, 0.3)},
    "second": {"kernel": jax.random.normal(KEYS[2], (6, 4))},
}


def forward(params, x):
    x = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    return x @ params["second"]["kernel"]


def loss_fn(params, x):
    out = forward(params, x)
    return jnp.mean(jnp.square(out)), out


def dimensions(results) -> list[float]:
    return [float(result.effective_dimension) for result in results]


def participation(rows: np.ndarray) -> float:
    variances = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    return variances.sum() ** 2 / np.sum(variances**2)


def test_components_are_those_of_numpy_svd():
    hidden = np.tanh(np.asarray(X, float) @ np.asarray(PARAMS["first"]["kernel"], float) + 0.3)
    values = [hidden, hidden @ np.asarray(PARAMS["second"]["kernel"], float)]
    results = activation_pca(loss_fn, PARAMS, X, has_aux=True, num_components=3)
    assert [(r.name, r.activation) for r in results] == [("first/kernel", "tanh"), ("second/kernel", None)]
    for result, value in zip(results, values, strict=True):
        centred = value - value.mean(axis=0)
        _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
        np.testing.assert_allclose(np.abs(result.coordinates), np.abs(centred @ vectors[:3].T), atol=1e-4)
        np.testing.assert_allclose(result.explained_variance_ratio, (singular**2 / sum(singular**2))[:3], rtol=1e-4)
        assert float(result.effective_dimension) == pytest.approx(participation(value), rel=1e-4)
        assert (result.num_rows, result.num_units) == value.shape


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_effective_dimension_is_the_rank_of_equal_variances(rank):
    """Orthogonal rows through a projection keep ``rank`` equal variances, and all scales and offsets are the same."""
    rows = jnp.concatenate([jnp.eye(6), -jnp.eye(6)]) * 1e-25
    kernel = jnp.diag((jnp.arange(6) < rank).astype(rows.dtype))
    (result,) = activation_pca(lambda w, x: x @ w, kernel, rows)
    assert float(result.effective_dimension) == pytest.approx(rank, rel=1e-4)


def test_deep_relu_networks_collapse_and_constant_layers_have_no_dimension():
    keys = jax.random.split(KEYS[3], 12)
    params = [jax.random.normal(key, (16, 16)) * (2 / 16) ** 0.5 for key in keys]

    def deep(params, x):
        for kernel in params:
            x = jnp.maximum(x @ kernel, 0.0)
        return x

    found = dimensions(activation_pca(deep, params, jax.random.normal(KEYS[0], (64, 16))))
    assert found[-1] < 0.5 * found[0]
    (constant,) = activation_pca(lambda w, x: jnp.tanh(x @ w), jnp.zeros((6, 3)), X)
    assert dimensions([constant]) == [0.0]
    assert bool(jnp.all(constant.coordinates == 0))


def test_positions_of_an_image_are_rows_or_columns():
    params = {"kernel": jax.random.normal(KEYS[1], (3, 3, 1, 5))}

    def convolve(params, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "VALID", dimension_numbers=numbers)
        return jnp.maximum(out, 0.0)

    images = jax.random.normal(KEYS[2], (7, 6, 5, 1))
    value = np.asarray(convolve(params, images), float)
    (rows,) = activation_pca(convolve, params, images)
    assert rows.coordinates.shape == (7, 4, 3, 2)
    assert float(rows.effective_dimension) == pytest.approx(participation(value.reshape(-1, 5)), rel=1e-3)
    (columns,) = activation_pca(convolve, params, images, positions="columns")
    assert columns.coordinates.shape == (7, 2)
    assert float(columns.effective_dimension) == pytest.approx(participation(value.reshape(7, -1)), rel=1e-3)


def test_units_are_found_where_vmap_puts_them_first():
    kernel = jnp.ones((6, 3))
    (result,) = activation_pca(lambda w, x: jax.vmap(lambda row: jnp.tanh(w @ row))(x), kernel, X[:, :3])
    assert result.coordinates.shape == (48, 2)
    assert result.num_units == 6
    assert dimensions([result]) == pytest.approx([1.0], rel=1e-4)


def test_steps_of_a_loop_are_rows():
    def recur(params, x):
        step = lambda h, now: (jnp.tanh(h @ params["w"] + now), None)  # noqa: E731
        return jax.lax.scan(step, jnp.zeros((8, 4)), x)[0]

    (result,) = activation_pca(recur, {"w": jnp.eye(4)}, jax.random.normal(KEYS[0], (5, 8, 4)))
    assert result.coordinates.shape == (5, 8, 2)


def test_a_network_layers_by_pattern_and_jit_give_the_same():
    network = jaxgrad.trace(forward, PARAMS, X)
    whole = activation_pca(forward, PARAMS, X)
    (second,) = activation_pca(network, PARAMS, X, layers="second")
    assert second.name == "second/kernel"
    np.testing.assert_array_equal(second.coordinates, whole[1].coordinates)
    traced = jax.jit(lambda params, x: activation_pca(network, params, x)[0].coordinates)(PARAMS, X)
    np.testing.assert_allclose(traced, whole[0].coordinates, atol=1e-4)


def test_figure_has_a_panel_a_layer_and_a_colour_a_class():
    pytest.importorskip("matplotlib")
    results = activation_pca(forward, PARAMS, X)
    figure = plot_activations(results, jnp.arange(48) % 3)
    figure.draw_without_rendering()
    assert [len(axes.lines) for axes in figure.axes] == [3, 3]
    assert "of 6 dimensions" in figure.axes[0].get_title()
    (line,) = activation_pca(lambda w, x: x @ w, jnp.ones((6, 1)), X)
    plot_activations([line]).draw_without_rendering()


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("error", "words", "options"),
        [
            (TypeError, "a function of", {"fn": 3}),
            (ValueError, "matches none of the 2", {"layers": "third"}),
            (ValueError, "at least one regular expression", {"layers": []}),
            (TypeError, "an integer num_components", {"num_components": 0.5}),
            (ValueError, "num_components of at least 1", {"num_components": 0}),
            (ValueError, "'rows' or 'columns'", {"positions": "cells"}),
            (ValueError, "NaN or an infinity in the activations of 'first/kernel'", {"x": X.at[0, 0].set(jnp.nan)}),
            (ValueError, "at least two rows", {"x": X[:1]}),
        ],
    )
    def test_activations_say_what_is_wrong(self, error, words, options):
        fn, x = options.pop("fn", forward), options.pop("x", X)
        with pytest.raises(error, match=words):
            activation_pca(fn, PARAMS, x, **options)

    def test_figure_says_what_is_wrong(self):
        with pytest.raises(ValueError, match="results of at least one layer"):
            plot_activations([])
        with pytest.raises(ValueError, match="one label an example"):
            plot_activations(activation_pca(forward, PARAMS, X), jnp.arange(3))
