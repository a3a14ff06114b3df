"""Spike-aware clipping around an optimizer, with its momentum reset."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import clipping

STEPS, SIZE = 12, 5
GRADIENTS = np.random.default_rng(0).standard_normal((STEPS, SIZE)).astype(np.float32)
GRADIENTS[6, 2] = 1e3
RATE = 0.1

pytestmark = pytest.mark.usefixtures("third_party_model")


def spam(gradients, threshold, reset_every, warmup_steps, min_history, rate=RATE, b1=0.9, b2=0.999, eps=1e-8):
    """Algorithm of the paper in float64, with a bias correction that starts again with the moments."""
    m, v, since, resets, out = np.zeros(SIZE), np.zeros(SIZE), 0, 0, []
    for g in gradients.astype(np.float64):
        if reset_every and since >= reset_every:
            m, v, since, resets = np.zeros(SIZE), np.zeros(SIZE), 0, resets + 1
        if since >= min_history:
            spike = (v > 0) & (g**2 > threshold * v)
            g = np.where(spike, np.sign(g) * np.sqrt(threshold * v), g)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        update = -rate * (m / (1 - b1 ** (since + 1))) / (np.sqrt(v / (1 - b2 ** (since + 1))) + eps)
        if resets and since < warmup_steps:
            update *= 1 - 0.99 * (1 + np.cos(np.pi * since / warmup_steps)) / 2
        out.append(update)
        since += 1
    return np.stack(out), resets


def run(optimizer, gradients=GRADIENTS):
    state, out = optimizer.init(jnp.zeros(SIZE)), []
    step = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = step(jnp.asarray(gradient), state)
        out.append(updates)
    return np.stack(out), state


@pytest.mark.parametrize(
    ("threshold", "reset_every", "warmup_steps", "min_history"), [(50.0, 0, 0, 1), (50.0, 5, 3, 1), (2000.0, 4, 2, 2)]
)
def test_equals_the_algorithm_in_numpy(threshold, reset_every, warmup_steps, min_history):
    settings = {"threshold": threshold, "reset_every": reset_every, "warmup_steps": warmup_steps}
    settings["min_history"] = min_history
    got, state = run(clipping.spike_aware_clip(optax.adam(RATE), **settings))
    want, resets = spam(GRADIENTS, **settings)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    assert state.num_resets == resets


def test_only_the_spike_is_clipped():
    clipper = clipping.spike_aware_clip(optax.adam(RATE), threshold=1e5, reset_every=0, min_history=1)
    fractions, norms = [], []
    state, update = clipper.init(jnp.zeros(SIZE)), jax.jit(clipper.update)
    for gradient in GRADIENTS:
        _, state = update(jnp.asarray(gradient), state)
        fractions.append(state.spike_fraction.item())
        norms.append(state.norm.item())
    np.testing.assert_allclose(np.flatnonzero(fractions), [6])
    np.testing.assert_allclose(fractions[6], 1 / SIZE)
    np.testing.assert_allclose(state.clip_fraction, 1 / STEPS)
    np.testing.assert_allclose(norms, np.linalg.norm(GRADIENTS.astype(np.float64), axis=1), rtol=1e-5)


def test_without_spikes_and_resets_it_is_the_optimizer_alone():
    got, _ = run(clipping.spike_aware_clip(optax.adam(RATE), threshold=jnp.inf, reset_every=0))
    want, _ = run(optax.adam(RATE))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_reset_leaves_the_schedule_of_the_learning_rate():
    schedule = optax.linear_schedule(1.0, 0.0, STEPS)
    optimizer = clipping.spike_aware_clip(
        optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(schedule)), reset_every=5, warmup_steps=0
    )
    _, state = run(optimizer)
    adam, rate = state.inner_state
    assert (int(state.num_resets), int(adam.count), int(rate.count)) == (2, 2, STEPS)


def test_a_skipped_step_leaves_everything():
    optimizer = clipping.spike_aware_clip(optax.adam(RATE), reset_every=3)
    _, state = run(optimizer, GRADIENTS[:5])
    updates, after = optimizer.update(jnp.asarray(GRADIENTS[5]).at[0].set(jnp.nan), state)
    np.testing.assert_array_equal(updates, 0)
    assert after.num_nonfinite == 1
    for field in ("since_reset", "num_resets", "inner_state", "spike_fraction"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, field), getattr(state, field))


def test_bad_input(unchecked):
    for options, error, match in [
        ({"threshold": -1.0}, ValueError, "threshold of at least 0"),
        ({"reset_every": -1}, ValueError, "reset_every of at least 0"),
        ({"warmup_steps": 2.5}, TypeError, "an integer warmup_steps"),
        ({"min_history": 0}, ValueError, "min_history of at least 1"),
        ({"on_nonfinite": "ignore"}, ValueError, "on_nonfinite 'skip', 'zero' or 'propagate'"),
    ]:
        with pytest.raises(error, match=match):
            clipping.spike_aware_clip(optax.adam(RATE), **options)
    with pytest.raises(TypeError, match="an optax transformation"):
        clipping.spike_aware_clip(0.1)
    with pytest.raises(ValueError, match="one second moment, nu"):
        clipping.spike_aware_clip(optax.sgd(RATE)).init(jnp.zeros(2))
    optimizer, z = clipping.spike_aware_clip(optax.adam(RATE)), jnp.ones(2, jnp.complex64)
    with pytest.raises(TypeError, match="real gradients"):
        optimizer.update(z, optimizer.init(z))
