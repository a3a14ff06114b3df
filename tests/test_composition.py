"""Clippers and monitors as links of optax chains: what runs one way gives the same bits run another."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import clipping, monitoring

NUM_STEPS = 4
PARAMS = {
    "Dense_0": {"kernel": jnp.array([[0.5, -0.3], [0.2, 0.8]]), "bias": jnp.array([0.1, -0.1])},
    "Dense_1": {"kernel": jnp.array([[1.0], [-2.0]]), "bias": jnp.array([0.0])},
}
BATCHES = jax.random.normal(jax.random.key(1), (NUM_STEPS, 3, 2), jnp.float32)
ADAM = functools.partial(optax.adam, 1e-2)
EVERYTHING = {"update_ratio": True, "noise_scale": True, "batch_size": 3, "quantiles": (0.5,), "window": 3}

CHAINS = {
    "clip": lambda: [clipping.clip(0.1), ADAM()],
    "clip_by_norm": lambda: [clipping.clip_by_norm(0.1), ADAM()],
    "clip_by_global_norm": lambda: [clipping.clip_by_global_norm(0.1), ADAM()],
    "smooth_clip": lambda: [clipping.smooth_clip(0.1), ADAM()],
    "clip_by_quantile": lambda: [clipping.clip_by_quantile(0.5, window=3), ADAM()],
    "clip_by_zscore": lambda: [clipping.clip_by_zscore(0.5, warmup_steps=2), ADAM()],
    "adaptive_clip": lambda: [clipping.adaptive_clip(0.1), ADAM()],
    "adaptive_clip_by_history": lambda: [clipping.adaptive_clip_by_history(1.0, warmup_steps=2), ADAM()],
    "spike_aware_clip": lambda: [
        clipping.spike_aware_clip(ADAM(), threshold=0.5, min_history=1, reset_every=3, warmup_steps=2)
    ],
    "skip_nonfinite": lambda: [clipping.skip_nonfinite(ADAM())],
    "monitor": lambda: [monitoring.monitor(2, **EVERYTHING), ADAM()],
}
ALL = pytest.mark.parametrize("name", CHAINS)
pytestmark = pytest.mark.usefixtures("third_party_model")


def chain(name):
    """A monitor before the link of this name, and Adam."""
    return optax.chain(monitoring.monitor(name="grads"), *CHAINS[name]())


def loss(params, x):
    x = jnp.tanh(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    return jnp.sum(jnp.square(x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"] - 1.0))


def train_step(optimizer, carry, batch):
    params, state = carry
    updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
    return optax.apply_updates(params, updates), state


def start(optimizer):
    # A copy, which may be donated.
    params = jax.tree.map(jnp.copy, PARAMS)
    return params, optimizer.init(params)


def loop(optimizer, carry, batches=BATCHES, **options):
    step = jax.jit(functools.partial(train_step, optimizer), **options)
    for batch in batches:
        carry = step(carry, batch)
    return carry


def assert_same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path), strict=True)


def assert_same(name, got, want):
    """The same bits, but for the noise of a monitor: a sum that XLA may add up in another order in another program."""
    if name == "monitor":
        assert jax.tree.structure(got) == jax.tree.structure(want)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), got, want)
    else:
        assert_same_bits(got, want)


@functools.cache
def looped(name):
    """The run that others are compared with, with every buffer donated."""
    optimizer = chain(name)
    carry = start(optimizer)
    last = loop(optimizer, carry, donate_argnums=0)
    # What a step only writes, such as the last norms, is not read and so not donated.
    params, _ = carry
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    return last


@ALL
def test_a_scan_equals_a_loop_of_donated_steps(name):
    optimizer = chain(name)
    run = jax.jit(lambda carry: jax.lax.scan(lambda c, x: (train_step(optimizer, c, x), None), carry, BATCHES)[0])
    assert_same(name, run(start(optimizer)), looped(name))


@ALL
def test_the_state_keeps_structure_shapes_and_dtypes(name):
    def types(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)

    _, state = start(chain(name))
    _, last = looped(name)
    assert jax.tree.structure(last) == jax.tree.structure(state)
    assert types(last) == types(state)


def test_the_chains_clip_and_the_monitors_see_it():
    for name in CHAINS:
        _, state = looped(name)
        reading = monitoring.read(state, "grads")
        assert reading.step == NUM_STEPS
        assert reading.num_nonfinite == 0
        for clip in reading.clips.values():
            assert clip.count == NUM_STEPS
            assert clip.clip_fraction > 0, name
            assert clip.norm == pytest.approx(reading.global_norm, rel=1e-5)
        assert len(reading.clips) == (name not in ("skip_nonfinite", "monitor"))


def test_per_example_clip_in_a_scan_equals_a_loop():
    links = clipping.per_example_clip(0.1, noise_multiplier=0.5, key=jax.random.key(3)), monitoring.monitor(), ADAM()
    optimizer = optax.chain(*links)

    def step(carry, batch):
        params, state = carry
        grads = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def plain(carry):
        params, (clip, *rest) = carry
        return params, (clip._replace(key=jax.random.key_data(clip.key)), *rest)

    want = start(optimizer)
    compiled = jax.jit(step)
    for batch in BATCHES:
        want = compiled(want, batch)
    got = jax.jit(lambda carry: jax.lax.scan(lambda c, x: (step(c, x), None), carry, BATCHES)[0])(start(optimizer))
    assert_same_bits(plain(got), plain(want))
    assert monitoring.read(got[1]).clips["0"].count == NUM_STEPS


ACCUMULATED = ["clip_by_global_norm", "clip_by_quantile", "spike_aware_clip", "monitor"]


@pytest.mark.parametrize("name", ACCUMULATED)
def test_multi_steps_of_the_mean_gradient(name):
    """Clipping inside of MultiSteps acts on the mean, as in one step of the whole batch."""
    whole = chain(name)
    parts = optax.MultiSteps(chain(name), 2)
    batches = jnp.repeat(BATCHES, 2, axis=0)
    params, state = loop(parts, start(parts), batches)
    want_params, want_state = loop(whole, start(whole))
    assert_close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6)
    jax.tree.map(assert_close, params, want_params)
    jax.tree.map(assert_close, state.inner_opt_state, want_state)
    assert monitoring.read(state, "grads").step == NUM_STEPS


partition = getattr(optax, "partition", None) or optax.multi_transform


def test_groups_of_parameters_are_clipped_on_their_own():
    def group():
        return optax.chain(monitoring.monitor(), clipping.clip_by_global_norm(0.1), ADAM())

    optimizer = partition({0: group(), 1: group()}, {"Dense_0": 0, "Dense_1": 1})
    params, state = loop(optimizer, start(optimizer))
    layers = []
    for label, layer in enumerate(PARAMS):
        place = f"inner_states/{label}/inner_state"
        reading = monitoring.read(state, f"{place}/0")
        assert set(reading.norms) == {f"{layer}/kernel", f"{layer}/bias"}
        assert reading.clips[f"{place}/1"].norm == pytest.approx(reading.global_norm, rel=1e-5)
        masked = optax.masked(group(), {other: other == layer for other in PARAMS})
        frozen = optax.masked(optax.set_to_zero(), {other: other != layer for other in PARAMS})
        grads = jax.grad(loss)(PARAMS, BATCHES[0])
        with jax.disable_jit():
            alone = optax.chain(masked, frozen)
            layers.append(alone.update(grads, alone.init(PARAMS))[0][layer])
    with jax.disable_jit():
        first, _ = optimizer.update(jax.grad(loss)(PARAMS, BATCHES[0]), optimizer.init(PARAMS))
    assert_same_bits([first[layer] for layer in PARAMS], layers)
    assert not np.array_equal(params["Dense_0"]["kernel"], PARAMS["Dense_0"]["kernel"])


def test_a_threshold_in_the_state_changes_without_a_new_compilation():
    def make(max_norm):
        return optax.chain(clipping.clip_by_global_norm(max_norm), monitoring.monitor(), optax.sgd(1.0))

    optimizer = optax.inject_hyperparams(make)(max_norm=0.1)
    traced = []

    @jax.jit
    def step(carry, batch):
        traced.append(batch)
        return train_step(optimizer, carry, batch)

    carry = step(start(optimizer), BATCHES[0])
    assert monitoring.read(carry[1]).global_norm == pytest.approx(0.1)
    carry[1].hyperparams["max_norm"] = jnp.asarray(0.05, carry[1].hyperparams["max_norm"].dtype)
    carry = step(carry, BATCHES[1])
    assert monitoring.read(carry[1]).global_norm == pytest.approx(0.05)
    assert len(traced) == 1


@pytest.mark.parametrize("name", ["clip_by_quantile", "adaptive_clip_by_history", "spike_aware_clip", "monitor"])
def test_a_run_restored_from_a_checkpoint_goes_on_bit_for_bit(name, tmp_path):
    with warnings.catch_warnings():
        # Importing it and its asynchronous threads warn of what is none of ours.
        warnings.simplefilter("ignore")
        ocp = pytest.importorskip("orbax.checkpoint")
        optimizer = chain(name)
        carry = loop(optimizer, start(optimizer), BATCHES[:2])
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "run", carry)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(tmp_path / "run", start(optimizer))
    assert_same_bits(restored, carry)
    assert_same_bits(loop(optimizer, restored, BATCHES[2:]), looped(name))


@pytest.mark.parametrize("name", ["clip_by_zscore", "spike_aware_clip", "monitor"])
def test_an_update_in_a_branch(name):
    optimizer = chain(name)

    def step(carry, batch):
        return jax.lax.cond(batch[0, 0] < 1e9, functools.partial(train_step, optimizer), lambda c, _: c, carry, batch)

    carry = start(optimizer)
    compiled = jax.jit(step)
    for batch in BATCHES:
        carry = compiled(carry, batch)
    assert_same_bits(compiled(carry, jnp.full_like(BATCHES[0], 1e10)), carry)
    assert_same(name, carry, looped(name))


@ALL
def test_a_state_comes_back_from_flax(name):
    serialization = pytest.importorskip("flax.serialization")
    _, state = looped(name)
    assert_same_bits(serialization.from_bytes(start(chain(name))[1], serialization.to_bytes(state)), state)


@pytest.mark.parametrize("name", ["clip_by_global_norm", "adaptive_clip", "spike_aware_clip", "monitor"])
def test_a_batch_of_runs_equals_single_runs(name):
    optimizer = chain(name)
    scales = jnp.array([1.0, 0.3])
    starts = jax.vmap(lambda scale: jax.tree.map(lambda leaf: scale * leaf, PARAMS))(scales)
    runs = jax.jit(jax.vmap(lambda params: loop(optimizer, (params, optimizer.init(params)))))(starts)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(lambda got, want: close(got[0], want), runs, looped(name))
    with pytest.raises(ValueError, match="a batch of shape"):
        monitoring.read(runs[1], "grads")


@pytest.mark.parametrize("name", ["clip_by_global_norm", "spike_aware_clip", "skip_nonfinite"])
def test_a_nonfinite_step_is_named_and_goes_no_further(name):
    optimizer = optax.chain(chain(name), monitoring.monitor(1, name="updates"))
    batches = BATCHES.at[1].set(jnp.nan)
    params, state = loop(optimizer, start(optimizer), batches)
    assert monitoring.first_nonfinite(params) is None
    before, after = monitoring.read(state, "grads"), monitoring.read(state, "updates")
    assert before.first_nonfinite == "Dense_0/bias"
    assert before.first_nonfinite_step == before.num_nonfinite == 1
    assert after.num_nonfinite == 0
    assert all(clip.num_nonfinite == 1 for clip in before.clips.values())
