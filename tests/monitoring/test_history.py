from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import monitoring
from jaxgrad.monitoring._shifts import level_shifts

PARAMS = {"a": jnp.full(2, 2.0, jnp.float32), "b": jnp.full(4, 0.5, jnp.float32)}
LINK = monitoring.monitor(history=8, update_ratio=True)


@jax.jit
def one_step(state, norms, loss):
    updates = {"a": norms[:1] * jnp.array([1.0, 0.0], norms.dtype), "b": norms[1:] * jnp.full(4, 0.5, norms.dtype)}
    return LINK.update(updates, state, PARAMS, value=loss)[1]


def run(norms, losses):
    """Pass one update a step whose two leaves have these norms."""
    state = LINK.init(PARAMS)
    for each, loss in zip(norms, losses, strict=True):
        state = one_step(state, each, loss)
    return state


def test_a_scan_records_what_a_loop_does():
    norms, losses = random_run(37)
    scanned, _ = jax.lax.scan(lambda state, now: (one_step(state, *now), None), LINK.init(PARAMS), (norms, losses))
    for got, want in zip(jax.tree.leaves(scanned), jax.tree.leaves(run(norms, losses)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def random_run(num_steps, unit=1.0):
    generator = np.random.default_rng(num_steps)
    norms = (unit * generator.lognormal(0.0, 1.0, (num_steps, 2))).astype(np.float32)
    losses = generator.normal(0.0, 1.0, num_steps).astype(np.float32)
    return norms, losses


def blocks(values, span):
    return [values[begin : begin + span] for begin in range(0, len(values), span)]


@pytest.mark.parametrize(("num_steps", "span"), [(5, 1), (8, 1), (9, 2), (37, 8), (64, 8)])
def test_records_are_those_of_the_whole_run_however_often_they_merged(num_steps, span):
    norms, losses = random_run(num_steps)
    history = monitoring.read(run(norms, losses)).history
    assert history.starts == list(range(0, num_steps, span))
    assert history.num_steps == [len(block) for block in blocks(losses, span)]
    for number, layer in enumerate("ab"):
        want = [np.exp(np.log(block).mean()) for block in blocks(norms[:, number], span)]
        np.testing.assert_allclose(history.norms[layer], want, rtol=1e-5)
        np.testing.assert_allclose(history.max_norms[layer], [block.max() for block in blocks(norms[:, number], span)])
        size = {"a": 2 * math.sqrt(2), "b": 1.0}[layer]
        np.testing.assert_allclose(history.update_ratios[layer], np.array(want) / size, rtol=1e-5)
        assert set(history.num_zero[layer]) == set(history.num_nonfinite[layer]) == {0}
    of_both = blocks(np.hypot(*norms.T), span)
    np.testing.assert_allclose(history.global_norms, [np.exp(np.log(block).mean()) for block in of_both], rtol=1e-5)
    np.testing.assert_allclose(history.max_global_norms, [block.max() for block in of_both], rtol=1e-6)
    np.testing.assert_allclose(history.losses, [block.mean() for block in blocks(losses, span)], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("unit", [2.0**-80, 2.0**80])
def test_the_unit_of_the_gradient_is_a_factor(unit):
    """Norms whose squares leave the range of float32."""
    norms, losses = random_run(37)
    one, other = (monitoring.read(run(np.float32(scale) * norms, losses)).history for scale in (1.0, unit))
    np.testing.assert_allclose(np.array(other.global_norms) / unit, one.global_norms, rtol=2e-5)
    np.testing.assert_allclose(other.max_norms["a"], unit * np.array(one.max_norms["a"]), rtol=1e-6)


def test_zero_and_nonfinite_steps_are_counted_apart():
    norms, losses = np.ones((9, 2), np.float32), np.ones(9, np.float32)
    norms[1, 0], norms[2, 0], norms[3, 0], norms[4:6, 0] = 3.0, 0.0, np.nan, 0.0
    norms[6:8, 0], losses[2], losses[4:6] = np.inf, np.inf, np.nan
    history = monitoring.read(run(norms, losses)).history
    assert history.num_zero["a"] == [0, 1, 2, 0, 0]
    assert history.num_nonfinite["a"] == [0, 1, 0, 2, 0]
    np.testing.assert_allclose(history.norms["a"], [math.sqrt(3), 0.0, 0.0, math.nan, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(history.max_norms["a"], [3.0, 0.0, 0.0, 0.0, 1.0])
    np.testing.assert_allclose(history.norms["b"], 1.0)
    np.testing.assert_array_equal(history.losses, [1.0, 1.0, math.nan, 1.0, 1.0])
    assert history.num_nonfinite_losses == [0, 1, 2, 0, 0]


def test_without_a_loss_there_is_none():
    link = monitoring.monitor(history=4)
    state = jax.jit(link.update)(PARAMS, link.init(PARAMS))[1]
    history = monitoring.read(state).history
    assert np.isnan(history.losses).tolist() == [True]
    assert history.update_ratios == {}
    assert monitoring.read(monitoring.monitor().init(PARAMS)).history is None
    assert monitoring.read(link.init(PARAMS)).history.starts == []


def test_the_loss_reaches_a_monitor_in_a_chain():
    optimizer = optax.chain(optax.sgd(0.1), monitoring.monitor(history=4))
    state = jax.jit(optimizer.update)(PARAMS, optimizer.init(PARAMS), value=jnp.float16(3.0))[1]
    assert monitoring.read(state).history.losses == [3.0]


def test_the_state_with_a_history_can_be_donated_and_never_changes_shape():
    state = LINK.init(PARAMS)
    leaves = jax.tree.leaves(state)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    donating = jax.jit(lambda state: LINK.update(PARAMS, state, PARAMS, value=1.0)[1], donate_argnums=0)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), state)
    for _ in range(9):
        state = donating(state)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), state) == shapes
    assert monitoring.read(state).history.num_steps == [2, 2, 2, 2, 1]


def test_a_run_of_any_length_fits():
    """The last step that an int32 counts to falls into the last record, and merges nothing."""
    state = LINK.init(PARAMS)
    span = jnp.int32(2**28)
    late = state._replace(step=jnp.int32(2**31 - 1), history=state.history._replace(span=span))
    after = one_step(late, jnp.ones(2, jnp.float32), jnp.float32(1.0)).history
    assert after.span == span
    np.testing.assert_array_equal(after.log_norms.count[:, 0], [0] * 7 + [1])


@pytest.mark.parametrize(
    ("history", "error", "words"),
    [(2, ValueError, "history of at least 4"), (7, ValueError, "even"), (8.0, TypeError, "history as an integer")],
)
def test_monitor_refuses_a_history(history, error, words, unchecked):
    with pytest.raises(error, match=words):
        monitoring.monitor(history=history)


def test_a_loss_is_a_scalar(unchecked):
    with pytest.raises(ValueError, match=r"value as a real scalar; got shape \(3,\)"):
        jax.eval_shape(lambda state: LINK.update(PARAMS, state, PARAMS, value=jnp.ones(3)), LINK.init(PARAMS))


def noise(seed, deviation, correlation=0.0, length=64):
    steps = np.random.default_rng(seed).normal(0.0, deviation, length)
    values = [steps[0] / math.sqrt(1 - correlation**2)]
    for step in steps[1:]:
        values.append(correlation * values[-1] + step)
    return np.array(values)


@pytest.mark.parametrize(("place", "size"), [(20, 3.0), (32, -3.0), (61, 4.0)])
@pytest.mark.parametrize("seed", range(5))
def test_a_shift_is_found_where_it_is(place, size, seed):
    series = noise(seed, 0.3)
    series[place:] += size
    (shift,) = level_shifts(series)
    assert shift.place == place
    assert shift.after - shift.before == pytest.approx(size, abs=0.8)
    (scaled,) = level_shifts(series + 50.0)
    assert scaled.place == place
    assert scaled.score == pytest.approx(shift.score)


def test_two_shifts_and_a_gap_are_told_apart():
    series = noise(0, 0.1)
    series[15:40] += 2.0
    series[50] = math.nan
    series[5] += 6.0
    assert [shift.place for shift in level_shifts(series)] == [15, 40]


@pytest.mark.parametrize("correlation", [0.0, 0.5])
@pytest.mark.parametrize("length", [20, 64])
def test_stationary_noise_shifts_in_few_of_200_runs(correlation, length):
    alarms = [bool(level_shifts(noise(seed, 0.7, correlation, length))) for seed in range(200)]
    assert np.mean(alarms) < 0.03


@pytest.mark.parametrize("drift", [0.15 * np.arange(64.0), 3 * np.exp(-np.arange(64) / 8), -np.log(1 + np.arange(64))])
def test_a_drift_is_no_shift(drift):
    alarms = [bool(level_shifts(drift + noise(seed, 0.1))) for seed in range(40)]
    assert np.mean(alarms) < 0.05


def test_a_short_series_has_no_shift():
    assert level_shifts(np.arange(10.0) * 5) == []
    assert level_shifts(np.full(64, np.nan)) == []
