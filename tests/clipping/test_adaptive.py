"""Thresholds from the history of the norms, against straightforward loops in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import clipping

NORMS = np.random.default_rng(0).lognormal(0.0, 0.7, 60)


def run(clipper, norms, size=1):
    """Feed gradients of these norms; return the norms after clipping and the last state."""
    direction = jnp.ones(size, jnp.float32) / np.sqrt(size).astype(np.float32)

    @jax.jit
    def scan(norms):
        step = lambda state, norm: clipper.update(norm * direction, state)[::-1]  # noqa: E731
        return jax.lax.scan(step, clipper.init(direction), norms)

    state, updates = scan(jnp.asarray(norms, jnp.float32))
    return np.linalg.norm(np.asarray(updates, np.float64), axis=1), state


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("window", [1, 7, 100])
def test_quantile_equals_numpy(quantile, window):
    got, state = run(clipping.clip_by_quantile(quantile, window=window), NORMS)
    history = [NORMS[max(0, t + 1 - window) : t + 1] for t in range(len(NORMS))]
    want = [min(norm, np.quantile(past, quantile)) for norm, past in zip(NORMS, history, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(state.clip_fraction, np.mean(np.array(want) < NORMS * (1 - 1e-6)), atol=1e-6)
    assert state.history.shape == (window,)


def zclip(norms, z_threshold, decay, warmup_steps):
    mean, variance, out = np.mean(norms[:warmup_steps]), np.var(norms[:warmup_steps]), list(norms[:warmup_steps])
    for norm in norms[warmup_steps:]:
        z = (norm - mean) / np.sqrt(variance)
        if z > z_threshold:
            norm = mean + z_threshold**2 / z * np.sqrt(variance)
        out.append(norm)
        mean = decay * mean + (1 - decay) * norm
        variance = decay * variance + (1 - decay) * (norm - mean) ** 2
    return out, mean, np.sqrt(variance)


@pytest.mark.parametrize("unit", [1e-25, 1.0, 1e25])
def test_zscore_equals_a_loop(unit):
    norms = np.where(np.arange(60) % 20 == 19, 30, NORMS) * unit
    got, state = run(clipping.clip_by_zscore(2.0, decay=0.9, warmup_steps=10), norms)
    want, mean, deviation = zclip(norms / unit, 2.0, 0.9, 10)
    np.testing.assert_allclose(got / unit, want, rtol=1e-4)
    np.testing.assert_allclose([state.mean / unit, state.deviation / unit], [mean, deviation], rtol=1e-4)


def test_zscore_leaves_rounding_alone():
    _, state = run(clipping.clip_by_zscore(warmup_steps=5), 3.0 + 1e-6 * np.sin(np.arange(30)))
    assert state.clip_fraction == 0
    _, state = run(clipping.clip_by_zscore(warmup_steps=5, eps=0.0), np.full(30, 3.0))
    assert state.clip_fraction == 0


def test_a_larger_outlier_is_clipped_closer_to_the_mean():
    ends = [run(clipping.clip_by_zscore(warmup_steps=40), [*NORMS[:40], spike])[0][-1] for spike in (10, 100, 1e30)]
    assert ends[0] > ends[1] > ends[2] * (1 - 1e-6)
    np.testing.assert_allclose(ends[2], NORMS[:40].mean(), rtol=1e-5)


def test_max_norm_holds_during_the_warm_up():
    for clipper in (clipping.clip_by_zscore(max_norm=0.5), clipping.clip_by_quantile(1.0, max_norm=0.5)):
        got, _ = run(clipper, NORMS[:20])
        np.testing.assert_allclose(got, np.minimum(NORMS[:20], 0.5), rtol=1e-5)


def adagc(gradients, relative, decay, warmup_steps, max_norm):
    averages, out = np.full(gradients.shape[1], np.inf), []
    for step, norms in enumerate(gradients):
        if step < warmup_steps:
            norms = norms * min(1, max_norm / np.linalg.norm(norms))
            averages = np.minimum(averages, norms)
        else:
            norms = np.minimum(norms, relative * averages)
            averages = decay * averages + (1 - decay) * norms
        out.append(norms)
    return np.array(out), averages


def test_history_of_each_leaf_equals_a_loop():
    norms = np.random.default_rng(1).lognormal(0, 1, (40, 2)).astype(np.float32)
    clipper = clipping.adaptive_clip_by_history(1.1, decay=0.8, warmup_steps=10, max_norm=2.0)

    def step(state, norms):
        updates, state = clipper.update({"a": norms[:1], "b": norms[1:]}, state)
        return state, jnp.concatenate([updates["a"], updates["b"]])

    state, got = jax.lax.scan(step, clipper.init({"a": jnp.zeros(1), "b": jnp.zeros(1)}), jnp.asarray(norms))
    want, averages = adagc(norms, 1.1, 0.8, 10, 2.0)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(state.leaf_averages, averages, rtol=1e-5)


@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_a_leaf_that_starts_without_a_gradient_is_not_frozen(warmup_steps):
    """The smallest norm of a layer behind one that starts at zero is zero, and zero times anything stays zero."""
    norms = [0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5]
    got, state = run(clipping.adaptive_clip_by_history(warmup_steps=warmup_steps), norms)
    np.testing.assert_allclose(got, norms, rtol=1e-6)
    np.testing.assert_allclose(state.leaf_averages, 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    "clipper",
    [
        clipping.clip_by_quantile(0.5, window=4),
        clipping.clip_by_zscore(warmup_steps=3),
        clipping.adaptive_clip_by_history(warmup_steps=3),
    ],
)
def test_a_step_that_is_skipped_leaves_the_history(clipper):
    clean, before = run(clipper, NORMS[:8])
    dirty, after = run(clipper, np.insert(NORMS[:8], [2, 5, 8], [np.nan, np.inf, np.nan]))
    np.testing.assert_allclose(np.delete(dirty, [2, 6, 10]), clean, rtol=1e-6)
    np.testing.assert_array_equal(dirty[[2, 6, 10]], 0)
    assert int(after.num_nonfinite) == 3
    for name in ("history", "mean", "deviation", "leaf_averages", "num_recorded"):
        if hasattr(before, name):
            np.testing.assert_allclose(getattr(after, name), getattr(before, name), rtol=1e-6)


def test_no_gradient_flows_through_the_history():
    clipper = clipping.clip_by_quantile(0.5)
    _, state = clipper.update(jnp.ones(1), clipper.init(jnp.ones(1)))
    # The threshold counts as a constant here, 2, so the update is 2 whatever the gradient is.
    gradient = jax.grad(lambda x: jnp.sum(clipper.update(x, state)[0]))(jnp.array([3.0]))
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_bad_input(unchecked):
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="clip_by_quantile: expected quantile of at least 0 and at most 1"):
            clipping.clip_by_quantile(bad)
        for clipper in (clipping.clip_by_zscore, clipping.adaptive_clip_by_history):
            with pytest.raises(ValueError, match="decay of at least 0 and at most 1"):
                clipper(decay=bad)
    with pytest.raises(ValueError, match="window of at least 1"):
        clipping.clip_by_quantile(window=0)
    for bad in (2.5, jnp.array(3)):
        with pytest.raises(TypeError, match=r"an integer window.*\n.*static_args"):
            clipping.clip_by_quantile(window=bad)
    with pytest.raises(ValueError, match="warmup_steps of at least 1"):
        clipping.clip_by_zscore(warmup_steps=0)
    with pytest.raises(ValueError, match="z_threshold of at least 0"):
        clipping.clip_by_zscore(-1.0)
    with pytest.raises(ValueError, match="relative_norm of at least 0"):
        clipping.adaptive_clip_by_history(-1.0)
