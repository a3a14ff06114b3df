"""The digits are the published ones, and each demo is what `explain` takes."""

from __future__ import annotations

import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.data import Digits, digits
from jaxgrad.data._demos import DEMOS, standardized_digits


def test_shapes_and_dtypes():
    images, labels = digits()
    assert images.shape == (1797, 8, 8)
    assert labels.shape == (1797,)
    assert images.dtype == labels.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 16)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_same_as_scikit_learn():
    theirs = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = digits()
    np.testing.assert_array_equal(images, theirs.images)
    np.testing.assert_array_equal(labels, theirs.target)


def test_fields_by_name():
    assert isinstance(digits(), Digits)
    assert Digits._fields == ("images", "labels")


def test_shared_arrays_are_read_only():
    assert digits() is digits()
    with pytest.raises(ValueError, match="read-only"):
        digits().images[0] = 0


def test_licence_ships_beside_the_file():
    text = importlib.resources.files("jaxgrad.data").joinpath("digits.LICENSE.md").read_text(encoding="utf-8")
    for words in ("CC BY 4.0", "Alpaydin", "Kaynak", "1998", "10.24432/C50P49"):
        assert words in text


def test_standardized():
    x, labels = standardized_digits()
    assert x.shape == (1797, 64)
    assert x.dtype == jnp.float32
    assert labels.dtype == jnp.int32
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-5)


def test_names_of_the_demos():
    assert list(DEMOS) == ["healthy", "deep-sigmoid", "exploding-residual", "rnn"]


@pytest.mark.usefixtures("third_party_model")
@pytest.mark.parametrize("name", DEMOS)
class TestDemo:
    def test_is_a_case(self, name):
        loss_fn, params, x, labels = DEMOS[name]()
        loss, gradients = jax.value_and_grad(loss_fn)(params, x, labels)
        assert loss.shape == ()
        assert loss.dtype == jnp.float32
        assert jax.tree.structure(gradients) == jax.tree.structure(params)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((loss, gradients)))

    def test_batch(self, name):
        _, _, x, labels = DEMOS[name]()
        assert 64 <= len(x) == len(labels) <= 128
        assert x.dtype == jnp.float32

    def test_same_every_time(self, name):
        _, first, *_ = DEMOS[name]()
        _, second, *_ = DEMOS[name]()
        assert all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))


@pytest.mark.usefixtures("third_party_model")
class TestFault:
    """The fault each demo is named after is there, measured without jaxgrad."""

    @staticmethod
    def weight_gradients(name):
        loss_fn, params, *args = DEMOS[name]()
        return jax.grad(loss_fn)(params, *args)

    def test_healthy_keeps_the_gradient(self):
        layers = self.weight_gradients("healthy")["layers"]
        norms = [float(jnp.linalg.norm(layer["weight"])) for layer in layers]
        assert max(norms) / min(norms) < 10

    def test_deep_sigmoid_loses_it(self):
        layers = self.weight_gradients("deep-sigmoid")["layers"]
        first, last = (float(jnp.linalg.norm(layers[i]["weight"])) for i in (0, -1))
        assert 0 < first < 1e-9 * last

    def test_exploding_residual_blows_it_up(self):
        blocks = self.weight_gradients("exploding-residual")["blocks"]
        first, last = (float(jnp.linalg.norm(blocks[i]["down"]["bias"])) for i in (0, -1))
        assert first > 1e3 * last

    def test_rnn_forgets_the_first_pixels(self):
        loss_fn, params, pixels, labels = DEMOS["rnn"]()
        sizes = jnp.abs(jax.grad(loss_fn, argnums=1)(params, pixels, labels)).max(axis=0)
        assert float(sizes[0]) < 1e-9 * float(sizes[-1])
