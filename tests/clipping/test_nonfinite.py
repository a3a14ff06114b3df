"""Steps with inf or NaN in them: what passes, what is counted, and what stays as it was."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import clipping

GOOD = {"w": jnp.array([3.0, -4.0]), "b": jnp.array([12.0])}
CLIPPERS = {
    "clip": lambda **options: clipping.clip(1.0, **options),
    "clip_by_norm": lambda **options: clipping.clip_by_norm(1.0, **options),
    "clip_by_global_norm": lambda **options: clipping.clip_by_global_norm(1.0, **options),
    "smooth_clip": lambda **options: clipping.smooth_clip(1.0, **options),
    "clip_by_quantile": lambda **options: clipping.clip_by_quantile(max_norm=1.0, **options),
    "clip_by_zscore": lambda **options: clipping.clip_by_zscore(max_norm=1.0, **options),
    "adaptive_clip_by_history": lambda **options: clipping.adaptive_clip_by_history(max_norm=1.0, **options),
    "adaptive_clip": lambda **options: clipping.adaptive_clip(0.1, **options),
}


def spoiled(bad):
    return {**GOOD, "w": GOOD["w"].at[0].set(bad)}


def once(clipper, gradients):
    with jax.disable_jit():  # its branches would be compiled anew in every test
        return clipper.update(gradients, clipper.init(gradients), GOOD)


def assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("name", CLIPPERS)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_policies(name, bad):
    """A plain norm would turn the other entries to 0, or everything to NaN."""
    make = CLIPPERS[name]
    updates, state = once(make(), spoiled(bad))
    assert_equal(updates, jax.tree.map(jnp.zeros_like, GOOD))
    assert (int(state.num_nonfinite), bool(state.clipped), float(state.scale), int(state.count)) == (1, False, 0, 1)
    assert not np.isfinite(state.norm)

    updates, state = once(make(on_nonfinite="zero"), spoiled(bad))
    want, other = once(make(), spoiled(0.0))
    assert_equal(updates, want)
    assert (int(state.num_nonfinite), bool(state.clipped)) == (1, True)
    np.testing.assert_allclose([state.norm, state.scale], [other.norm, other.scale], rtol=1e-6)

    updates, state = once(make(on_nonfinite="propagate"), spoiled(bad))
    assert_equal(updates, spoiled(bad))
    assert (int(state.num_nonfinite), bool(state.clipped), float(state.scale)) == (1, False, 1)


@pytest.mark.parametrize("name", CLIPPERS)
def test_a_finite_step_counts_nothing(name):
    _, state = once(CLIPPERS[name](), GOOD)
    assert (int(state.num_nonfinite), bool(state.clipped), int(state.count)) == (0, True, 1)
    np.testing.assert_allclose(state.norm, 13, rtol=1e-6)
    np.testing.assert_allclose(state.leaf_norms, [12, 5], rtol=1e-6)


def test_an_optimizer_is_skipped_whole():
    inner = optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(optax.linear_schedule(1.0, 0.0, 10)))
    optimizer = clipping.skip_nonfinite(inner)
    step = jax.jit(optimizer.update)
    state = optimizer.init(GOOD)
    _, state = step(GOOD, state)
    before = state
    for number, bad in enumerate((jnp.nan, jnp.inf, jnp.nan), 1):
        updates, state = step(spoiled(bad), state)
        assert_equal(updates, jax.tree.map(jnp.zeros_like, GOOD))
        assert_equal(state.inner_state, before.inner_state)
        assert (int(state.num_consecutive), int(state.num_nonfinite), bool(state.skipped)) == (number, number, True)
    updates, state = step(GOOD, state)
    want, inner_state = inner.update(GOOD, before.inner_state)
    assert_equal(updates, want)
    assert_equal(state.inner_state, inner_state)
    assert (int(state.num_consecutive), int(state.num_nonfinite), int(state.count)) == (0, 3, 5)


def test_it_skips_for_as_long_as_it_takes():
    """``optax.apply_if_finite`` gives up, and writes the NaN into the parameters."""
    theirs = optax.apply_if_finite(optax.sgd(1.0), max_consecutive_errors=3)
    ours = clipping.skip_nonfinite(optax.sgd(1.0))
    for optimizer, survives in ((theirs, False), (ours, True)):
        params, state = GOOD, optimizer.init(GOOD)
        step = jax.jit(optimizer.update)
        for _ in range(6):
            updates, state = step(spoiled(jnp.nan), state, params)
            params = optax.apply_updates(params, updates)
        assert bool(jnp.isfinite(params["w"]).all()) == survives


def test_large_finite_gradients_are_not_skipped():
    optimizer = clipping.skip_nonfinite(optax.scale(1e-30))
    updates, state = optimizer.update({"w": jnp.full(100, 3e38)}, optimizer.init({"w": jnp.zeros(100)}))
    assert not state.skipped
    np.testing.assert_allclose(updates["w"], 3e8, rtol=1e-6)


def test_extra_arguments_reach_the_inner_optimizer(third_party_model):
    optimizer = clipping.skip_nonfinite(optax.lbfgs())
    f = lambda x: jnp.sum((x - 1) ** 2)  # noqa: E731
    x = jnp.zeros(2)
    updates, _ = optimizer.update(jax.grad(f)(x), optimizer.init(x), x, value=f(x), grad=jax.grad(f)(x), value_fn=f)
    assert f(x + updates) < f(x)


def test_a_sharded_gradient_has_the_norm_and_the_update_of_the_whole():
    """Leaves split over devices and leaves that each device holds: neither is counted twice."""
    code = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxgrad import clipping
mesh = Mesh(np.array(jax.devices()), "d")
g = {"split": jnp.arange(16.0).reshape(8, 2), "whole": jnp.arange(3.0)}
put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
sharded = {"split": put(g["split"], P("d")), "whole": put(g["whole"], P())}
for clipper in (clipping.clip_by_global_norm(1.0), clipping.clip_by_norm(1.0), clipping.adaptive_clip(0.1)):
    step = jax.jit(lambda g: clipper.update(g, clipper.init(g), g))
    (one, state), (eight, state8) = step(g), step(sharded)
    assert len(eight["split"].sharding.device_set) == 8
    np.testing.assert_allclose(state8.norm, np.sqrt(1245.0), rtol=1e-6)
    np.testing.assert_allclose(state8.leaf_norms, state.leaf_norms, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, eight)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bad_input(unchecked):
    with pytest.raises(TypeError, match="an optax transformation"):
        clipping.skip_nonfinite(optax.adam)
    for make in CLIPPERS.values():
        with pytest.raises(ValueError, match="on_nonfinite 'skip', 'zero' or 'propagate'"):
            make(on_nonfinite="drop")
        clipper = make()
        with pytest.raises(ValueError, match=r"gradients like the parameters given to init.*\['c'\]"):
            clipper.update({**GOOD, "c": GOOD["b"]}, clipper.init(GOOD), GOOD)
