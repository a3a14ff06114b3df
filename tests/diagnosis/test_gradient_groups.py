"""Signatures of gradients, and the groups they form, for networks whose faults are built in."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import monitoring
from jaxgrad.diagnosis import Signatures, group_by_gradient, layer_signatures, plot_groups, unit_signatures

KEYS = jax.random.split(jax.random.key(0), 8)
DEAD, SATURATED = range(6), range(5)


@pytest.fixture(scope="module")
def faulty() -> tuple:
    """A loss whose first layer has 6 of 24 units dead, and whose second has 5 of 20 saturated."""
    params = {
        "relu": {"kernel": jax.random.normal(KEYS[0], (10, 24)) / 3, "bias": jnp.zeros(24).at[:6].set(-50.0)},
        "tanh": {"kernel": jax.random.normal(KEYS[1], (24, 20)) / 4, "bias": jnp.zeros(20).at[:5].set(5.0)},
        "head": jax.random.normal(KEYS[2], (20, 3)),
    }

    def loss_fn(params, x, y):
        x = jnp.maximum(x @ params["relu"]["kernel"] + params["relu"]["bias"][None], 0.0)
        x = jnp.tanh(x @ params["tanh"]["kernel"] + params["tanh"]["bias"][None])
        return jnp.mean(jnp.square(x @ params["head"] - y))

    return loss_fn, params, jax.random.normal(KEYS[3], (64, 10)), jax.random.normal(KEYS[4], (64, 3))


@pytest.fixture(scope="module")
def signatures(faulty) -> Signatures:
    return unit_signatures(*faulty)


def column(signatures: Signatures, feature: str) -> np.ndarray:
    return np.asarray(signatures.values[:, signatures.features.index(feature)])


def test_unit_signatures_are_those_of_the_gradients_themselves(faulty, signatures):
    _, params, x, y = faulty

    def loss_with(shift, after):
        z = x @ params["relu"]["kernel"] + params["relu"]["bias"][None] + shift
        hidden = jnp.tanh((jnp.maximum(z, 0.0) + after) @ params["tanh"]["kernel"] + params["tanh"]["bias"][None])
        return jnp.mean(jnp.square(hidden @ params["head"] - y))

    before, after = jax.grad(loss_with, (0, 1))(jnp.zeros((64, 24)), jnp.zeros((64, 24)))
    rms = np.sqrt(np.mean(np.square(before), axis=0))
    passed = rms / np.sqrt(np.mean(np.square(after), axis=0))
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(
            column(signatures, "log10_size")[:24], np.maximum(np.log10(rms / np.sqrt(np.mean(rms**2))), -6), atol=1e-3
        )
        np.testing.assert_allclose(
            column(signatures, "log10_transmission")[:24], np.maximum(np.log10(passed), -6), atol=1e-3
        )
    np.testing.assert_allclose(column(signatures, "zero_share")[:24], np.mean(np.asarray(before) == 0, axis=0))
    assert signatures.names[:2] == ("relu/kernel[0]", "relu/kernel[1]")
    assert signatures.names[-1] == "tanh/kernel[19]"


@pytest.mark.parametrize("factor", [1e-30, 1e20])
def test_unit_signatures_do_not_depend_on_the_unit_of_the_loss(faulty, signatures, factor):
    loss_fn, *args = faulty
    scaled = unit_signatures(lambda *args: factor * loss_fn(*args), *args)
    np.testing.assert_allclose(scaled.values, signatures.values, atol=1e-3)


@pytest.mark.heavy
def test_dead_saturated_and_healthy_units_are_told_apart(signatures):
    groups = group_by_gradient(jax.random.key(1), signatures, max_groups=4)
    dead = tuple(f"relu/kernel[{unit}]" for unit in DEAD)
    saturated = tuple(f"tanh/kernel[{unit}]" for unit in SATURATED)
    assert groups.members[:2] == (dead, saturated)
    assert float(jnp.min(groups.silhouettes)) > 0.3
    centroids = [column(signatures._replace(values=groups.centroids), feature) for feature in signatures.features]
    size, transmission, zero_share = centroids
    assert size[0] == -6
    assert zero_share[0] == 1
    assert transmission[0] == -6 < transmission[1] < -1
    assert np.all(transmission[2:] > -0.5)
    assert sum(map(len, groups.members)) == 44
    assert max(groups.scores, key=groups.scores.get) == len(groups.members)


def test_a_unit_that_no_signal_reaches_is_not_called_dead():
    params = {"w": jnp.eye(3), "v": jnp.array([[1.0], [1.0], [0.0]])}
    x = jnp.array([[1.0, 2.0, 3.0], [2.0, -1.0, 1.0]])
    found = unit_signatures(lambda p, x: jnp.sum(jnp.maximum(x @ p["w"], 0.0) @ p["v"]), params, x)
    np.testing.assert_allclose(column(found, "log10_transmission"), [0, np.log10(0.5**0.5), 0], atol=1e-5)
    np.testing.assert_allclose(column(found, "zero_share"), [0, 0.5, 1])


def test_layers_without_a_nonlinearity_come_where_they_are_named(faulty):
    assert unit_signatures(*faulty, layers="head").names == ("head[0]", "head[1]", "head[2]")


def gradients(step: int) -> dict[str, jax.Array]:
    return {
        "steady": jnp.full(4, 0.5),
        "fading": jnp.full(4, 10.0 ** -(step / 10)),
        "dead": jnp.zeros(4),
        "noisy": jnp.full(4, 10.0 ** (-1) ** step),
    }


@pytest.mark.heavy
def test_layer_signatures_say_size_trend_noise_and_zeros():
    found = layer_signatures([gradients(step) for step in range(30)], params=gradients(0) | {"dead": jnp.ones(4)})
    assert found.names == ("dead", "fading", "noisy", "steady")
    np.testing.assert_allclose(column(found, "log10_norm")[1:], [np.log10(2) - 1.45, np.log10(2), 0], atol=1e-5)
    np.testing.assert_allclose(column(found, "log10_ratio")[1:], [-1.45, -1, 0], atol=1e-5)
    np.testing.assert_allclose(column(found, "trend"), [0, -2, 0, 0], atol=1e-5)
    np.testing.assert_allclose(column(found, "noise"), [0, 0.1, 2, 0], atol=1e-5)
    np.testing.assert_allclose(column(found, "zero_share"), [1, 0, 0, 0])
    assert column(found, "log10_norm")[0] == pytest.approx(column(found, "log10_norm").min())


@pytest.mark.heavy
def test_readings_give_the_signatures_of_the_gradients():
    monitor = monitoring.monitor(param_norms=True)
    params = jax.tree.map(jnp.ones_like, gradients(0))
    state = monitor.init(params)
    history = []
    for step in range(5):
        _, state = monitor.update(gradients(step), state, params)
        history.append(monitoring.read(state))
    expected = layer_signatures([gradients(step) for step in range(5)], params)
    found = layer_signatures(history)
    assert (found.names, found.features) == (expected.names, expected.features)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)


@pytest.mark.heavy
def test_layers_are_grouped_by_how_their_gradients_differ():
    tree = {f"{kind}{copy}": leaf for kind, leaf in gradients(0).items() for copy in range(2)}
    history = [{name: gradients(step)[name[:-1]] for name in tree} for step in range(12)]
    groups = group_by_gradient(jax.random.key(0), layer_signatures(history, depth=1), 4)
    assert sorted(groups.members) == [(f"{kind}0", f"{kind}1") for kind in ("dead", "fading", "noisy", "steady")]


def made(values: list[list[float]], resolution: float = 0.1) -> Signatures:
    rows = jnp.asarray(values)
    features = tuple(f"f{i}" for i in range(rows.shape[1]))
    return Signatures(tuple(map(str, range(len(values)))), features, rows, jnp.full(len(features), resolution))


def test_nothing_to_tell_apart_is_one_group():
    for signatures in (made([[1.0]] * 5), made([[2.0]]), made([[1.0, 0.0], [2.0, 5.0]])):
        groups = group_by_gradient(jax.random.key(0), signatures)
        assert len(groups.members) == 1
        assert groups.silhouettes.tolist() == [0.0]
    assert len(group_by_gradient(jax.random.key(0), made([[1.0]] * 3 + [[5.0]] * 2), 4).members) == 2
    assert len(group_by_gradient(jax.random.key(0), made([[1.0], [5.0]]), 1).members) == 1


def test_groups_keep_the_unit_of_the_signatures_and_their_order():
    groups = group_by_gradient(jax.random.key(0), made([[5.0, 0.0], [-3.0, 1e-4], [-3.0, 3e-4]]), 2)
    np.testing.assert_allclose(groups.centroids, [[-3.0, 2e-4], [5.0, 0.0]], atol=1e-7)
    assert groups.labels.tolist() == [1, 0, 0]
    assert groups.members == (("1", "2"), ("0",))
    assert float(groups.silhouettes[1]) == 0


def test_figure_counts_the_groups():
    pytest.importorskip("matplotlib")
    groups = group_by_gradient(jax.random.key(0), made([[5.0, 0.0], [-3.0, 1e-4], [-3.0, 3e-4]]), 2)
    figure = plot_groups(groups, x="f1")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("f1", "f0")
    assert [line.get_label() for line in axes.lines[::2]] == [
        "group 0: 2 alike, silhouette 1.00",
        "group 1: 0, silhouette 0.00",
    ]


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("error", "words", "history", "params"),
        [
            (TypeError, "a sequence", {"w": jnp.ones(2)}, None),
            (ValueError, "at least one step", [], None),
            (ValueError, "the layers a; got b at step 1", [{"a": jnp.ones(2)}, {"b": jnp.ones(2)}], None),
            (ValueError, "got none", [{"a": jnp.arange(2)}], None),
            (ValueError, "got b at step 1", [{"a": jnp.ones(2)}], {"b": jnp.ones(2)}),
        ],
    )
    def test_layer_signatures_say_what_is_wrong(self, error, words, history, params):
        with pytest.raises(error, match=words):
            layer_signatures(history, params)

    def test_readings_and_trees_do_not_mix(self):
        state = monitoring.monitor().init({"w": jnp.ones(2)})
        with pytest.raises(TypeError, match="got both"):
            layer_signatures([monitoring.read(state), {"w": jnp.ones(2)}])
        with pytest.raises(TypeError, match="traced"):
            jax.jit(lambda g: layer_signatures([g]).values)({"w": jnp.ones(2)})

    def test_unit_signatures_say_what_is_wrong(self, faulty):
        loss_fn, params, x, y = faulty
        with pytest.raises(ValueError, match="finite gradients; got a NaN or an infinity at 'relu/kernel'"):
            unit_signatures(loss_fn, params, x * jnp.nan, y)
        with pytest.raises(ValueError, match="a layer that runs into a nonlinearity"):
            unit_signatures(lambda p, x: jnp.sum(x @ p), jnp.ones((10, 2)), x)
        with pytest.raises(ValueError, match="scalar"):
            unit_signatures(lambda p, x: x @ p, jnp.ones((10, 2)), x)

    @pytest.mark.parametrize(
        ("error", "words", "options"),
        [
            (TypeError, "signatures; got", {"signatures": jnp.ones((3, 2))}),
            (ValueError, "1 of 2 with a NaN", {"signatures": made([[1.0], [jnp.nan]])}),
            (ValueError, "num_groups from 1 to 3", {"num_groups": 4}),
            (TypeError, "an integer num_groups", {"num_groups": 2.0}),
            (ValueError, "max_groups from 1", {"max_groups": 0}),
            (ValueError, "min_silhouette in", {"min_silhouette": 2.0}),
            (TypeError, "key", {"key": None}),
        ],
    )
    def test_groups_say_what_is_wrong(self, error, words, options):
        key = options.pop("key", jax.random.key(0))
        with pytest.raises(error, match=words):
            group_by_gradient(key, **({"signatures": made([[1.0], [2.0], [9.0]])} | options))

    def test_figure_says_what_is_wrong(self):
        with pytest.raises(ValueError, match="a feature, one of f0"):
            plot_groups(group_by_gradient(jax.random.key(0), made([[1.0]])), x="size")


def test_signatures_come_from_optax_updates_too():
    optimizer = optax.sgd(0.1)
    updates, _ = optimizer.update(gradients(0), optimizer.init(gradients(0)))
    np.testing.assert_allclose(column(layer_signatures([updates]), "log10_norm")[1:], [-0.699, 0.301, -1], atol=1e-3)
