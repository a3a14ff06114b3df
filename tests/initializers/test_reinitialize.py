"""Reinitializing finished models by path, in every framework, and rules that do not fit."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgrad import initializers
from jaxgrad.initializers import reinitialize

KEY = jax.random.key(0)
ONES = jax.nn.initializers.ones
HE = initializers.he_normal()


def model(*names):
    layer = lambda: {"kernel": jnp.zeros((30, 20), jnp.float32), "bias": jnp.zeros(20, jnp.float32)}  # noqa: E731
    return {"params": {name: layer() for name in names}}


def test_first_match_wins_and_the_rest_is_untouched():
    params = model("in", "mid", "out")
    new = reinitialize(params, {"out/kernel": ONES, "kernel": HE}, KEY)
    np.testing.assert_array_equal(new["params"]["out"]["kernel"], 1)
    for name in ("in", "mid"):
        np.testing.assert_allclose(new["params"][name]["kernel"].var(), 2 / 30, rtol=0.2)
        assert new["params"][name]["bias"] is params["params"][name]["bias"]
    swapped = reinitialize(params, [("kernel", HE), ("out/kernel", ONES)], KEY)
    assert swapped["params"]["out"]["kernel"].var() > 0
    kept = reinitialize(params, [("out/", None), ("kernel", ONES)], KEY)
    assert kept["params"]["out"]["kernel"] is params["params"]["out"]["kernel"]


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("kernel", {"params/in/kernel", "params/out/kernel"}),
        ("in/", {"params/in/kernel", "params/in/bias"}),
        ("params/in/kernel", {"params/in/kernel"}),
        ("k.*l", {"params/in/kernel", "params/out/kernel"}),
        ("(in|out)/bias", {"params/in/bias", "params/out/bias"}),
        (re.compile(r"out/\w+$"), {"params/out/kernel", "params/out/bias"}),
        (re.compile(r"^params/in/kernel$"), {"params/in/kernel"}),
    ],
)
def test_patterns(pattern, matched):
    params = model("in", "out")
    new = reinitialize(params, {pattern: ONES}, KEY)
    flat = jax.tree_util.tree_leaves_with_path(new)
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in flat if leaf.all()}
    assert names == matched


def test_another_layer_changes_no_other_draw_and_no_two_draws_are_alike():
    small, large = (reinitialize(model(*names), {"kernel": HE}, KEY)["params"] for names in (["b"], ["a", "b", "c"]))
    np.testing.assert_array_equal(small["b"]["kernel"], large["b"]["kernel"])
    assert not np.array_equal(large["a"]["kernel"], large["b"]["kernel"])
    other = reinitialize(model("b"), {"kernel": HE}, jax.random.key(1))["params"]
    assert not np.array_equal(small["b"]["kernel"], other["b"]["kernel"])


def test_linen(third_party_model):
    nn = pytest.importorskip("flax.linen")
    module = nn.Sequential([nn.Dense(300), nn.relu, nn.Dense(4)])
    params = module.init(KEY, jnp.ones((1, 200)))
    new = reinitialize(params, {"kernel": HE}, KEY)
    np.testing.assert_allclose(new["params"]["layers_0"]["kernel"].var() * 200, 2, rtol=0.05)
    assert new["params"]["layers_0"]["bias"] is params["params"]["layers_0"]["bias"]
    assert jax.tree.structure(new) == jax.tree.structure(params)


def test_nnx_module_and_state(third_party_model):
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(200, 300, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.second = nnx.Linear(300, 200, rngs=rngs)
            self.second.kernel = nnx.Param(self.second.kernel[...])
            self.tied = self.first.kernel

    net = Net(nnx.Rngs(0))
    before = net.first.kernel[...]
    new = reinitialize(net, {"kernel": HE, "": None}, KEY)
    assert isinstance(new, Net)
    assert new is not net
    assert net.first.kernel[...] is before
    np.testing.assert_allclose(new.first.kernel[...].var() * 200, 2, rtol=0.05)
    assert new.tied is new.first.kernel
    assert new.drop.rate == 0.5
    state = nnx.state(net)
    again = reinitialize(state, {"first/kernel": HE}, KEY)
    assert type(again) is type(state)
    first, second = (jax.tree.leaves(again[layer]["kernel"])[0] for layer in ("first", "second"))
    np.testing.assert_array_equal(first, new.first.kernel[...])
    np.testing.assert_array_equal(second, net.second.kernel[...])


def test_equinox(third_party_model):
    eqx = pytest.importorskip("equinox")
    net = eqx.nn.MLP(200, 4, 300, 1, key=KEY)
    new = reinitialize(net, {"weight": initializers.he_normal(in_axis=1, out_axis=0)}, KEY)
    assert isinstance(new, eqx.nn.MLP)
    assert new.activation is net.activation
    np.testing.assert_allclose(new.layers[0].weight.var() * 200, 2, rtol=0.05)
    np.testing.assert_allclose(new.layers[1].weight.var() * 300, 2, rtol=0.15)
    assert new.layers[0].bias is net.layers[0].bias


def test_types_shapes_shardings_and_other_leaves_stay():
    sharding = NamedSharding(Mesh(np.array(jax.devices()), "d"), PartitionSpec("d"))
    params = {
        "w": jax.device_put(jnp.zeros((len(jax.devices()) * 2, 4), jnp.bfloat16), sharding),
        "n": np.zeros((3, 4), np.float32),
        "abstract": jax.ShapeDtypeStruct((2, 2), jnp.float32),
        "steps": jnp.arange(3),
        "key": jax.random.key(0),
        "name": "net",
        "none": None,
    }
    new = reinitialize(params, {"": HE}, KEY)
    assert new["w"].dtype == jnp.bfloat16
    assert new["w"].sharding == sharding
    assert new["n"].shape == (3, 4)
    assert new["abstract"].shape == (2, 2)
    for name in ("steps", "key", "name"):
        assert new[name] is params[name]


def test_works_under_jit_and_vmap():
    params = model("in")
    draw = lambda key: reinitialize(params, {"kernel": HE}, key)["params"]["in"]["kernel"]  # noqa: E731
    stacked = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 2))
    np.testing.assert_allclose(stacked[1], draw(jax.random.split(KEY, 2)[1]), rtol=1e-6)


def test_reinitialize_refuses(unchecked):
    params = model("Dense_0", "Dense_1")
    with pytest.raises(ValueError, match=r"'Dense_2/kernel', which matches none of the 4\.\n.*params/Dense_0/kernel"):
        reinitialize(params, {"Dense_2/kernel": HE}, KEY)
    with pytest.raises(ValueError, match="matches none"):
        reinitialize(params, {"kernel": HE, re.compile("embed"): HE}, KEY)
    with pytest.raises(ValueError, match="'steps', which matches none"):
        reinitialize({"steps": jnp.arange(3), **params}, {"steps": HE}, KEY)
    with pytest.raises(ValueError, match="a bias or a scale has no fan") as error:
        reinitialize(params, {"": HE}, KEY)
    assert "at params/Dense_0/bias, of shape (20,)" in error.value.__notes__[0]
    with pytest.raises(ValueError, match=r"returns the shape \(30, 20\) of params/Dense_0/kernel"):
        reinitialize(params, {"kernel": lambda key, shape, dtype: jnp.zeros(3)}, KEY)
    with pytest.raises(ValueError, match=r"regular expressions for paths; got '\*': nothing to repeat"):
        reinitialize(params, {"*": HE}, KEY)
    with pytest.raises(TypeError, match="rules with initializers, or None; got 'he'"):
        reinitialize(params, {"kernel": "he"}, KEY)
    for rules in ("kernel", [("kernel",)], {3: HE}, 7):
        with pytest.raises(TypeError, match="a mapping, or pairs"):
            reinitialize(params, rules, KEY)
