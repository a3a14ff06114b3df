from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import monitoring


def two_layers(scale=1.0):
    return {
        "params": {
            "Dense_0": {"kernel": scale * jnp.array([[2.0, 3.0]]), "bias": scale * jnp.array([6.0])},
            "Dense_1": {"kernel": scale * jnp.array([[3.0], [4.0]]), "bias": jnp.zeros(1)},
        }
    }


def watch(*updates, params=None, **options):
    """Pass updates through one monitor and return its last state."""
    link = monitoring.monitor(**options)
    update = jax.jit(link.update)
    state = link.init(updates[0] if params is None else params)
    for grads in updates:
        state = update(grads, state, params)[1]
    return state


def norms(tree, **options):
    return monitoring.read(watch(tree, **options)).norms


LEAVES = {
    "params/Dense_0/kernel": math.sqrt(13),
    "params/Dense_0/bias": 6.0,
    "params/Dense_1/kernel": 5.0,
    "params/Dense_1/bias": 0.0,
}


@pytest.mark.parametrize(
    ("depth", "want"),
    [
        (None, LEAVES),
        (3, LEAVES),
        (9, LEAVES),
        (2, {"params/Dense_0": 7.0, "params/Dense_1": 5.0}),
        (1, {"params": math.sqrt(74)}),
    ],
)
def test_layers_are_named_by_the_first_components_of_their_paths(depth, want):
    reading = monitoring.read(watch(two_layers(), depth=depth))
    assert reading.norms == pytest.approx(want)
    assert reading.global_norm == pytest.approx(math.sqrt(74))


def test_a_component_may_hold_a_slash():
    tree = {"mlp/~/linear_0": {"w": jnp.array([3.0]), "b": jnp.array([4.0])}}
    assert norms(tree, depth=1) == {"mlp/~/linear_0": 5.0}


def test_updates_pass_bit_for_bit():
    tree = {"w": jnp.array([jnp.nan, -0.0, 1e-42, jnp.inf]), "i": jnp.arange(3), "none": None, "c": jnp.array([1 + 2j])}
    options = {"param_norms": True, "update_ratio": True, "noise_scale": True, "batch_size": 1, "quantiles": (0.5,)}
    link = monitoring.monitor(**options)
    state = link.init(tree)
    for update in (link.update, jax.jit(link.update)):
        out, _ = update(tree, state, tree)
        assert jax.tree.structure(out) == jax.tree.structure(tree)
        for got, want in zip(jax.tree.leaves(out), jax.tree.leaves(tree), strict=True):
            assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


@pytest.mark.parametrize("unit", [1e-30, 1e-15, 1.0, 1e15, 3e37])
def test_norms_are_right_over_the_whole_float_range(unit):
    """The plain sum of squares is 0 or inf at the ends."""
    tree = {"small": unit * jnp.array([3.0, 4.0]), "one": jnp.array([3.0, 4.0]), "mixed": jnp.array([unit, 1.0])}
    got = norms(tree)
    assert got == pytest.approx({"small": 5 * unit, "one": 5.0, "mixed": math.hypot(unit, 1.0)}, rel=1e-6)
    assert norms({"z": tree}, depth=1) == pytest.approx({"z": math.hypot(*got.values())}, rel=1e-6)
    assert monitoring.read(watch(tree)).num_nonfinite == 0


def test_large_finite_entries_are_not_taken_for_infinities():
    """Finite, and with a norm beyond float32, which is given as the largest number."""
    reading = monitoring.read(watch({"w": jnp.full(100, 3e38, jnp.float32)}))
    assert reading.norms == {"w": float(jnp.finfo(jnp.float32).max)}
    assert reading.num_nonfinite == 0
    assert reading.first_nonfinite is None


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_summed_in_float32(dtype):
    """1000 leaves of 1000 ones: summed in bfloat16 the norm is 512."""
    tree = {"layer": [jnp.ones(1000, dtype)] * 100}
    assert norms(tree, depth=1) == pytest.approx({"layer": math.sqrt(1e5)}, rel=1e-6)
    assert norms({"w": jnp.full(4, 6e4, dtype)}) == pytest.approx({"w": 2 * float(dtype(6e4))}, rel=1e-6)


def test_double_precision_stays_double(x64):
    tree = {"w": jnp.array([3e200, 4e200]), "s": jnp.array([3e-200, 4e-200]), "f": jnp.array([1.0], jnp.float32)}
    state = watch(tree)
    assert state.norms.dtype == jnp.float64
    assert monitoring.read(state).norms == pytest.approx({"w": 5e200, "s": 5e-200, "f": 1.0}, rel=1e-14, abs=0.0)
    assert watch({"f": tree["f"]}).norms.dtype == jnp.float32


class Pair(NamedTuple):
    weight: object
    state: object


def test_leaves_that_are_not_measured():
    tree = Pair(
        weight={"c": jnp.array([3 + 4j]), "masked": optax.MaskedNode(), "none": None, "empty": jnp.zeros((0, 3))},
        state={"count": jnp.arange(3), "flag": jnp.array(True), "key": jax.random.key(0)},
    )
    assert norms(tree) == {"weight/c": 5.0, "weight/empty": 0.0}
    assert norms({"count": jnp.arange(3), "masked": optax.MaskedNode()}) == {}
    float0 = jax.grad(lambda p: jnp.sum(p["w"]), allow_int=True)({"w": jnp.ones(4), "n": jnp.arange(2)})
    assert norms(float0, params={"w": jnp.ones(4), "n": jnp.arange(2)}) == {"w": 2.0}


def test_a_layer_without_an_update_has_norm_zero():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    assert norms({"a": jnp.array([3.0, 4.0]), "b": None}, params=params) == {"a": 5.0, "b": 0.0}


def test_parameter_norms_and_update_ratios():
    params = {"a": jnp.array([30.0, 40.0]), "b": jnp.zeros(2), "c": jnp.zeros(2)}
    updates = {"a": jnp.array([0.3, 0.4]), "b": jnp.ones(2), "c": jnp.zeros(2)}
    reading = monitoring.read(watch(updates, params=params, update_ratio=True))
    assert reading.param_norms == pytest.approx({"a": 50.0, "b": 0.0, "c": 0.0})
    assert reading.update_ratios == pytest.approx({"a": 0.01, "b": 0.0, "c": 0.0})
    reading = monitoring.read(watch(updates, params=params, param_norms=True))
    assert reading.param_norms == pytest.approx({"a": 50.0, "b": 0.0, "c": 0.0})
    assert reading.update_ratios == {}


def test_the_first_layer_that_is_not_finite_and_its_step():
    tree = {"layers": [jnp.ones(2) for _ in range(11)]}

    def broken(*numbers, value=jnp.nan):
        return {"layers": [jnp.array([1.0, value]) if i in numbers else jnp.ones(2) for i in range(11)]}

    state = watch(tree, tree, broken(2, 10), tree, broken(0, value=jnp.inf))
    reading = monitoring.read(state)
    # By name, layers/10 comes before layers/2; in the tree it comes after.
    assert reading.first_nonfinite == "layers/2"
    assert reading.first_nonfinite_step == 2
    assert reading.num_nonfinite == 2
    assert reading.step == 5
    assert reading.norms["layers/0"] == math.inf
    assert reading.norms["layers/10"] == pytest.approx(math.sqrt(2))
    assert monitoring.read(watch(tree)).first_nonfinite_step is None
    assert monitoring.read(watch(broken(10))).first_nonfinite == "layers/10"


@pytest.mark.parametrize("window", [3, 4, 7, 50])
def test_quantiles_are_those_of_the_window(window):
    values = np.array([5.0, 1.0, 9.0, np.nan, 2.0, 7.0, np.inf, 3.0])
    updates = [{"a": jnp.array([value], jnp.float32), "b": jnp.ones(1)} for value in values]
    reading = monitoring.read(watch(*updates, quantiles=(0.5, 0.9), window=window))
    last = values[-window:]
    last = last[np.isfinite(last)]
    want = {"a": {q: float(np.quantile(last, q)) for q in (0.5, 0.9)}, "b": {0.5: 1.0, 0.9: 1.0}}
    assert {layer: pytest.approx(quantiles) for layer, quantiles in want.items()} == reading.quantiles


def noise_readings(gradients, batch_size, decay):
    link = monitoring.monitor(noise_scale=True, batch_size=batch_size, decay=decay)
    example = jax.tree.map(lambda leaf: leaf[0], gradients)
    state, _ = jax.lax.scan(lambda state, grads: (link.update(grads, state)[1], None), link.init(example), gradients)
    return state, monitoring.read(state)


def test_noise_scale_of_gaussian_gradients():
    """Gradients of 8 examples with mean (3, 4) over 50 entries of variance 4: tr Σ = 200, |G|² = 25, B = 8."""
    mean = jnp.zeros(50).at[:2].set(jnp.array([3.0, 4.0]))
    noise = jax.random.normal(jax.random.key(0), (4000, 50)) * math.sqrt(4 / 8)
    gradients = {"a": (mean[None] + noise)[:, :20], "b": (mean[None] + noise)[:, 20:]}
    _, reading = noise_readings(gradients, 8, 0.999)
    assert reading.noise_scale == pytest.approx(8.0, rel=0.1)


def test_noise_scale_is_the_estimate_from_two_batch_sizes():
    """The equations of the paper's appendix, for one batch and one of twice the size made of two steps."""
    gradients = np.random.default_rng(0).normal(1.0, 0.3, (2, 5)).astype(np.float32)
    small, large, batch = np.mean(np.sum(gradients**2, 1)), np.sum(gradients.mean(0) ** 2), 4.0
    square = (2 * batch * large - batch * small) / (2 * batch - batch)
    trace = (small - large) / (1 / batch - 1 / (2 * batch))
    _, reading = noise_readings({"w": jnp.asarray(gradients)}, batch, 0.5)
    assert reading.noise_scale == pytest.approx(trace / square, rel=1e-5)


def test_noise_scale_at_the_edges():
    still = {"w": jnp.ones((4, 3), jnp.float32)}
    assert noise_readings(still, 2, 0.9)[1].noise_scale == 0.0
    assert noise_readings({"w": still["w"][:1]}, 2, 0.9)[1].noise_scale is None
    turning = {"w": still["w"] * jnp.array([[1.0], [-1.0], [1.0], [-1.0]], jnp.float32)}
    assert noise_readings(turning, 2, 0.9)[1].noise_scale == math.inf
    broken = {"w": still["w"].at[1, 0].set(jnp.nan)}
    state, reading = noise_readings(broken, 2, 0.9)
    assert reading.noise_scale == 0.0
    assert state.noise.num_steps == 3
    np.testing.assert_array_equal(state.noise.previous["w"], np.ones(3))
    assert noise_readings({"w": 1e30 * still["w"]}, 2, 0.9)[1].noise_scale == math.inf


EVERYTHING = {
    "update_ratio": True,
    "noise_scale": True,
    "batch_size": 2,
    "quantiles": (0.5,),
    "window": 3,
    "name": "all",
}


@pytest.mark.parametrize("options", [{}, {"depth": 2}, EVERYTHING])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_state_never_changes_structure_shape_or_dtype(options, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), two_layers())
    link = monitoring.monitor(**options)
    state = link.init(params)
    abstract = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), jax.eval_shape(lambda: state))
    new = jax.eval_shape(lambda: link.update(params, state, params)[1])
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), new) == abstract


def test_no_two_fields_share_a_buffer():
    """Else donation of the state fails."""
    state = monitoring.monitor(**EVERYTHING).init(two_layers())
    leaves = jax.tree.leaves(state)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_nothing_recorded_has_a_derivative():
    """Through the root at a zero gradient it would be NaN, and reach the parameters with a cotangent of zero."""
    optimizer = optax.chain(monitoring.monitor(), optax.sgd(0.1))

    def last_loss(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update({"w": 2 * params["w"]}, state)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=2)
        return jnp.sum(params["w"]) + jnp.sum(state[0].norms)

    gradient = jax.grad(last_loss)({"w": jnp.array([0.0, 0.0])})
    np.testing.assert_allclose(gradient["w"], 0.8**2, rtol=1e-6)


def test_a_batch_of_states_equals_its_members():
    link = monitoring.monitor(quantiles=(0.5,), window=2)
    grads = {"w": jnp.array([[3.0, 4.0], [3e-30, 4e-30], [3e30, jnp.nan]])}
    states = jax.vmap(link.init)(grads)
    states = jax.vmap(lambda grads, state: link.update(grads, state)[1])(grads, states)
    for i in range(3):
        member = jax.tree.map(lambda leaf, i=i: leaf[i], states)
        alone = watch({"w": grads["w"][i]}, quantiles=(0.5,), window=2)
        for got, want in zip(jax.tree.leaves(member), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6)


SHARDED = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxgrad.monitoring import monitor, read
mesh = jax.make_mesh((8,), ("i",))
put = lambda x, *spec: jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
tree = {"split": put(jnp.arange(16.0), "i"), "whole": put(jnp.arange(16.0)), "huge": put(jnp.full(16, 1e30), "i")}
link = monitor(noise_scale=True, batch_size=1)
state = jax.jit(link.update)(tree, link.init(tree))[1]
print(len(jax.devices()), *(read(state).norms[name] for name in ("split", "whole", "huge")))
"""


def test_norms_are_the_same_on_eight_devices():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED], check=True, capture_output=True, text=True, env=environment)
    devices, *got = map(float, done.stdout.split())
    assert devices == 8
    np.testing.assert_allclose(got, [math.sqrt(1240), math.sqrt(1240), 4e30], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"depth": 0}, ValueError, "depth of at least 1"),
        ({"depth": 1.0}, TypeError, "depth as an integer"),
        ({"depth": True}, TypeError, "depth as an integer"),
        ({"window": 0}, ValueError, "window of at least 1"),
        ({"quantiles": (0.5, 1.5)}, ValueError, "probabilities in"),
        ({"quantiles": 0.5}, ValueError, "probabilities in"),
        ({"noise_scale": True}, ValueError, "batch_size with noise_scale"),
        ({"noise_scale": True, "batch_size": 0}, ValueError, "positive batch_size"),
        ({"batch_size": 32}, ValueError, "pass noise_scale=True"),
        ({"decay": 1.0}, ValueError, "decay in"),
    ],
)
def test_monitor_refuses_options(options, error, words, unchecked):
    with pytest.raises(error, match=f"monitor: expected .*{words}|{words}"):
        monitoring.monitor(**options)


def test_update_refuses(unchecked):
    tree = two_layers()
    for option in ("update_ratio", "param_norms"):
        link = monitoring.monitor(**{option: True})
        with pytest.raises(ValueError, match=f"params in update, for {option}=True"):
            link.update(tree, link.init(tree))
    link = monitoring.monitor()
    with pytest.raises(ValueError, match=r"layers init has seen; got also 'other'"):
        link.update({"other": jnp.ones(1)}, link.init(tree))
    link = monitoring.monitor(noise_scale=True, batch_size=1)
    with pytest.raises(ValueError, match="noise_scale=True; got another tree"):
        link.update({"params": {"Dense_0": tree["params"]["Dense_0"]}}, link.init(tree))
