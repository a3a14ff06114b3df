from __future__ import annotations

import inspect
import logging
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import monitoring

PARAMS = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([5.0, 12.0])}
NORMS = {"a": 5.0, "b": 13.0}


class ClipState(NamedTuple):
    """The state of some clipper; monitoring knows it by its fields."""

    count: Any
    norm: Any
    scale: Any
    clipped: Any
    clip_fraction: Any
    angle: Any
    num_nonfinite: Any
    leaf_norms: Any
    inner: Any = ()


def clip_state(inner=(), norm=None):
    return ClipState(
        count=jnp.int32(4),
        norm=jnp.float32(2.5) if norm is None else norm,
        scale=jnp.float32(0.5),
        clipped=jnp.array(True),
        clip_fraction=jnp.float32(0.25),
        angle=None,
        num_nonfinite=jnp.int32(1),
        leaf_norms={"w": jnp.float32(2.5)},
        inner=inner,
    )


CLIP = {
    "count": 4,
    "norm": 2.5,
    "scale": 0.5,
    "clipped": True,
    "clip_fraction": 0.25,
    "angle": None,
    "num_nonfinite": 1,
    "leaf_norms": {"w": 2.5},
}


def wrapped(state):
    """A link that has this state and does nothing."""
    return optax.GradientTransformation(lambda params: state, lambda updates, state, params=None: (updates, state))


partition = getattr(optax, "partition", None) or optax.multi_transform
ONLY_A = {"a": True, "b": False}
WRAPPERS = {
    "chain": lambda link: optax.chain(optax.identity(), optax.chain(link, optax.adam(0.1))),
    "named_chain": lambda link: optax.named_chain(("monitor", link), ("sgd", optax.sgd(0.1))),
    "MultiSteps": lambda link: optax.MultiSteps(optax.chain(link, optax.sgd(0.1)), 1),
    "inject_hyperparams": lambda link: optax.inject_hyperparams(
        lambda learning_rate: optax.chain(link, optax.sgd(learning_rate))
    )(learning_rate=0.1),
    "apply_if_finite": lambda link: optax.apply_if_finite(link, 3),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_monitor_is_found_inside(wrap, third_party_model):
    optimizer = wrap(monitoring.monitor())
    _, state = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    reading = monitoring.read(state)
    assert reading.norms == pytest.approx(NORMS)
    assert reading.step == 1
    assert monitoring.read({"step": 3, "params": PARAMS, "opt_state": state}) == reading


def test_a_monitor_sees_the_part_it_is_given():
    masked = optax.chain(optax.masked(monitoring.monitor(), ONLY_A), optax.sgd(0.1))
    state = masked.update(PARAMS, masked.init(PARAMS))[1]
    assert monitoring.read(state).norms == {"a": 5.0}
    parts = partition({"x": monitoring.monitor(name="x"), "y": monitoring.monitor()}, {"a": "x", "b": "y"})
    state = parts.update(PARAMS, parts.init(PARAMS))[1]
    assert monitoring.read(state, "x").norms == {"a": 5.0}
    assert monitoring.read(state, "inner_states/y/inner_state").norms == {"b": 13.0}


def test_several_monitors_are_told_apart_by_name():
    links = monitoring.monitor(name="before"), optax.scale(2.0), monitoring.monitor()
    optimizer = optax.chain(*links)
    state = optimizer.update(PARAMS, optimizer.init(PARAMS))[1]
    assert monitoring.read(state, "before").norms["a"] == pytest.approx(5.0)
    assert monitoring.read(state, "2").norms["a"] == pytest.approx(10.0)
    with pytest.raises(ValueError, match=r"read: expected one monitor; got 2: 'before', '2'.\n.*name="):
        monitoring.read(state)
    with pytest.raises(ValueError, match=r"name of a monitor; got 'after'.\n.*'before', '2'"):
        monitoring.read(state, "after")
    twice = optax.chain(monitoring.monitor(name="x"), monitoring.monitor(name="x"))
    with pytest.raises(ValueError, match="two named 'x'"):
        monitoring.read(twice.init(PARAMS))


def test_a_reading_is_made_of_plain_numbers():
    link = monitoring.monitor(update_ratio=True, noise_scale=True, batch_size=2, quantiles=(0.5,))
    state = link.init(PARAMS)
    for _ in range(2):
        state = link.update(PARAMS, state, PARAMS)[1]
    reading = monitoring.read((state, clip_state()))
    leaves = jax.tree.leaves(reading._replace(first_nonfinite=None))
    assert {type(leaf) for leaf in leaves} == {int, float, bool}
    assert reading.quantiles == {"a": {0.5: 5.0}, "b": {0.5: 13.0}}
    assert reading.global_norm == pytest.approx(math.sqrt(194))
    assert reading.noise_scale == 0.0


def test_clippers_are_found_by_their_fields():
    state = (clip_state(), {"x": clip_state(inner=(monitoring.monitor().init(PARAMS), clip_state()))}, {"count": 3})
    reading = monitoring.read(state)
    assert {place: clip._asdict() for place, clip in reading.clips.items()} == dict.fromkeys(
        ("0", "1/x", "1/x/inner/1"), CLIP
    )
    assert reading.step == 0
    alone = monitoring.read(optax.chain(wrapped(clip_state())).init(PARAMS))
    assert alone.step is None
    assert alone.global_norm is None
    assert alone.norms == {}
    assert alone.clips["0"]._asdict() == CLIP
    by_leaf = monitoring.read(clip_state(norm={"w": jnp.float32(1.0), "b": optax.MaskedNode()})).clips[""]
    assert by_leaf.norm == {"w": 1.0}
    assert by_leaf.scale == 0.5


def test_read_refuses(unchecked):
    with pytest.raises(ValueError, match=r"monitor or a clipper; got tuple without one.\n.*monitoring.monitor\(\)"):
        monitoring.read(optax.adam(0.1).init(PARAMS))
    link = monitoring.monitor()
    states = jax.vmap(link.init)(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), PARAMS))
    with pytest.raises(ValueError, match=r"a batch of shape \(2,\).\n.*leaf\[i\]"):
        monitoring.read(states)
    assert monitoring.read(jax.tree.map(lambda leaf: leaf[1], states)).step == 0
    with pytest.raises(TypeError, match="a concrete state; got a traced one"):
        jax.jit(lambda state: monitoring.read(state).step)(link.init(PARAMS))


def test_the_state_of_an_nnx_optimizer(third_party_model):
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.chain(monitoring.monitor(), optax.sgd(0.1)), wrt=nnx.Param)
    grads = nnx.grad(lambda model: jnp.sum(model(jnp.ones((1, 2)))))(model)
    # Before flax 0.11 the optimizer held the model.
    optimizer.update(*((model, grads) if "model" in inspect.signature(optimizer.update).parameters else (grads,)))
    reading = monitoring.read(optimizer.opt_state)
    assert reading.step == 1
    assert reading.norms == pytest.approx({"bias": math.sqrt(3), "kernel": math.sqrt(6)})


class Scalars:
    def __init__(self):
        self.seen = {}

    def add_scalar(self, tag, scalar_value, global_step=None):
        self.seen[tag] = (scalar_value, global_step)


class FlaxWriter:
    def __init__(self):
        self.seen = {}

    def scalar(self, tag, value, step):
        self.seen[tag] = (value, step)


class CluWriter:
    def __init__(self):
        self.seen = {}

    def write_scalars(self, step, scalars):
        self.seen |= {tag: (value, step) for tag, value in scalars.items()}


class Run:
    def __init__(self):
        self.seen = {}

    def log(self, data, step=None, commit=None):
        self.seen |= {tag: (value, step) for tag, value in data.items()}


@pytest.mark.parametrize("writer", [Scalars, FlaxWriter, CluWriter, Run])
def test_one_call_logs_everything(writer):
    link = monitoring.monitor(update_ratio=True, quantiles=(0.5,))
    grads = {"a": jnp.array([3.0, jnp.nan]), "b": PARAMS["b"]}
    state = (link.update(grads, link.init(PARAMS), PARAMS)[1], clip_state())
    run = writer()
    monitoring.log(state, run)
    assert all(step == 1 for _, step in run.seen.values())
    seen = {tag: value for tag, (value, _) in run.seen.items()}
    assert {type(value) for value in seen.values()} == {int, float}
    assert math.isnan(seen.pop("monitor/norm/a"))
    assert math.isnan(seen.pop("monitor/global_norm"))
    assert math.isnan(seen.pop("monitor/update_ratio/a"))
    assert math.isnan(seen.pop("monitor/quantile/0.5/a"))
    assert seen == {
        "monitor/norm/b": 13.0,
        "monitor/param_norm/a": 5.0,
        "monitor/param_norm/b": 13.0,
        "monitor/update_ratio/b": 1.0,
        "monitor/quantile/0.5/b": 13.0,
        "monitor/num_nonfinite": 1,
        "monitor/first_nonfinite_step": 0,
        **{f"monitor/clip/1/{field}": CLIP[field] for field in ("count", "norm", "scale", "clipped", "clip_fraction")},
        "monitor/clip/1/num_nonfinite": 1,
        "monitor/clip/1/leaf_norms/w": 2.5,
    }


def test_log_takes_step_prefix_and_a_reading():
    link = monitoring.monitor(name="late")
    reading = monitoring.read(link.init(PARAMS))
    run = Run()
    monitoring.log(reading, run, 7, prefix="")
    assert run.seen["norm/a"] == (0.0, 7)
    both = optax.chain(monitoring.monitor(), link).init(PARAMS)
    monitoring.log(both, run, step=8, prefix="train")
    assert run.seen["train/0/norm/a"] == run.seen["train/late/norm/a"] == (0.0, 8)


@pytest.mark.parametrize("writer", [None, {}, print, math, logging, logging.getLogger("x"), np.array(1.0)])
def test_log_refuses_what_is_no_writer(writer, unchecked):
    with pytest.raises(TypeError, match=r"log: expected a TensorBoard writer .* or Weights & Biases"):
        monitoring.log(monitoring.monitor().init(PARAMS), writer)


def test_log_needs_a_step_where_no_monitor_tells_it(unchecked):
    with pytest.raises(ValueError, match="step where there is no monitor"):
        monitoring.log(clip_state(), Run())


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_first_nonfinite_names_the_first_leaf_of_the_tree(value):
    tree = {"layers": [{"w": jnp.ones((2, 2)), "n": jnp.arange(2)} for _ in range(11)], "none": None}
    assert monitoring.first_nonfinite(tree) is None
    for number in (10, 2):
        tree["layers"][number]["w"] = jnp.ones((2, 2)).at[1, 1].set(value)
        assert monitoring.first_nonfinite(tree) == f"layers/{number}/w"


def test_first_nonfinite_sums_nothing():
    assert monitoring.first_nonfinite({"w": jnp.full(100, 3e38), "z": np.array([1e300])}) is None
    assert monitoring.first_nonfinite({"w": jnp.full(3, 6e4, jnp.float16), "b": jnp.ones(2, jnp.bfloat16)}) is None


def test_first_nonfinite_of_other_leaves():
    assert monitoring.first_nonfinite(jnp.array(jnp.nan)) == ""
    assert monitoring.first_nonfinite([1, 2.0, True, math.inf]) == "3"
    assert monitoring.first_nonfinite({"c": jnp.array([complex(0, math.inf)]), "d": np.array([math.nan])}) == "c"
    assert monitoring.first_nonfinite({"m": optax.MaskedNode(), "d": np.array([math.nan])}) == "d"
    assert monitoring.first_nonfinite({}) is None


def test_first_nonfinite_refuses_traced_values(unchecked):
    with pytest.raises(TypeError, match=r"concrete arrays; got a traced value at 'w'.\n.*outside jit"):
        jax.jit(lambda w: monitoring.first_nonfinite({"w": w}))(jnp.ones(2))
