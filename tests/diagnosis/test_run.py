from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import clipping
from jaxgrad.diagnosis import diagnose_run
from jaxgrad.monitoring import monitor, read

LAYERS = [f"layers/{i}/w" for i in range(6)]
PARAMS = {"layers": [{"w": jnp.ones(1, jnp.float32)} for _ in LAYERS]}


def as_updates(norms):
    return {"layers": [{"w": norms[i : i + 1]} for i in range(len(LAYERS))]}


@functools.cache
def scanner(**options):
    """Compile a run of a monitor, with a history, on 6 layers of one number."""
    link = monitor(history=32, **options)

    def step(state, now):
        norms, loss = now
        return link.update(as_updates(norms), state, PARAMS, value=loss)[1], None

    return jax.jit(lambda norms, losses: jax.lax.scan(step, link.init(PARAMS), (norms, losses))[0])


def trace(seed=0, num_steps=256, deviation=0.5):
    """Draw log-normal norms, (steps, layers), and losses that come down."""
    generator = np.random.default_rng(seed)
    norms = np.exp(generator.normal(0.0, deviation, (num_steps, len(LAYERS))))
    losses = 0.1 + 2 * np.exp(-np.arange(num_steps) / 40) + generator.normal(0.0, 0.01, num_steps)
    return norms, losses


def diagnose(norms, losses=None, unit=1.0, **options):
    losses = np.full(len(norms), np.inf) if losses is None else losses
    state = scanner(**options)(jnp.asarray(unit * norms, jnp.float32), jnp.asarray(losses, jnp.float32))
    if not np.isfinite(losses).any():
        # The compiled run wants a loss: one that was never given leaves these empty.
        empty = jnp.zeros_like(state.history.num_nonfinite_losses)
        state = state._replace(history=state.history._replace(num_nonfinite_losses=empty))
    return diagnose_run(state)


def kinds(diagnosis, layer=None):
    return [(change.kind, change.step) for change in diagnosis.changes if layer in (None, change.layer)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("factor", "kind"), [(30.0, "jump"), (1 / 30, "collapse")])
@pytest.mark.parametrize("step", [104, 200])
def test_a_change_is_dated_and_placed(seed, factor, kind, step):
    norms, losses = trace(seed)
    norms[step:, 2] *= factor
    diagnosis = diagnose(norms, losses)
    assert kinds(diagnosis) == [(kind, step)]
    (change,) = diagnosis.changes
    assert change.layer == "layers/2/w"
    assert change.after / change.before == pytest.approx(factor, rel=0.6)
    # The loss went on falling.
    assert diagnosis.verdict == "healthy"


@pytest.mark.parametrize("unit", [1e-12, 1e12])
def test_no_verdict_depends_on_the_unit_of_the_loss(unit):
    norms, losses = trace(1)
    norms[160:] *= 50
    losses[160:] += 3.0
    one, other = diagnose(norms, losses), diagnose(norms, unit * losses, unit=unit)
    assert one.verdict == other.verdict == "exploding"
    assert kinds(one) == kinds(other)
    assert len(kinds(one)) == len(LAYERS) + 1
    for first, second in zip(one.changes, other.changes, strict=True):
        assert second.before / first.before == pytest.approx(unit, rel=1e-3)
    assert [finding.cause for finding in one.findings] == [finding.cause for finding in other.findings]


def test_stationary_noise_is_reported_in_few_of_200_runs():
    runs = [diagnose(trace(seed)[0]) for seed in range(200)]
    assert np.mean([bool(run.changes or run.findings) for run in runs]) < 0.05


def test_losing_the_gain_is_exploding_and_names_the_layer_that_rose():
    norms, losses = trace(2)
    norms[160:, 4] *= 100
    losses[160:] = 40.0
    diagnosis = diagnose(norms, losses)
    assert diagnosis.verdict == "exploding"
    assert (diagnosis.findings[0].layer, diagnosis.findings[0].cause) == ("layers/4/w", "instability")
    assert ("loss-divergence", 160) in kinds(diagnosis)


def test_a_collapse_while_the_loss_stands_still_is_vanishing():
    norms, losses = trace(3)
    norms[100:] /= 300
    losses[:] = 2.3
    assert diagnose(norms, losses).verdict == "vanishing"
    assert diagnose(norms, trace(3)[1]).verdict == "healthy"


@pytest.mark.parametrize("level", [0.0, 1e-7])
def test_a_layer_that_stops_while_others_go_on_is_dead(level):
    norms, losses = trace(4)
    norms[128:, 3] *= level
    diagnosis = diagnose(norms, losses)
    assert (diagnosis.verdict, diagnosis.findings[0].layer) == ("dead", "layers/3/w")
    assert kinds(diagnosis) == [("stopped", 128)]


def test_a_layer_without_a_gradient_from_the_start_is_named_and_no_verdict():
    norms, losses = trace(5)
    norms[:, 0] = 0.0
    diagnosis = diagnose(norms, losses)
    assert diagnosis.verdict == "healthy"
    assert [(finding.cause, finding.layer) for finding in diagnosis.findings] == [("no-gradient", "layers/0/w")]
    assert diagnose(np.zeros_like(norms), losses).verdict == "dead"


@pytest.mark.parametrize(("before", "cause"), [(1.0, "nonfinite-op"), (1e5, "instability")])
def test_the_first_nan_is_dated_to_the_step(before, cause):
    norms, losses = trace(6)
    norms[200:203, 1] *= before
    norms[203:, 1] = np.nan
    diagnosis = diagnose(norms, losses)
    assert diagnosis.verdict == "nonfinite"
    assert ("nonfinite", 203) in kinds(diagnosis, "layers/1/w")
    assert (diagnosis.findings[0].layer, diagnosis.findings[0].cause) == ("layers/1/w", cause)


def test_a_single_nan_long_ago_moves_no_verdict():
    norms, losses = trace(7)
    norms[50, 1] = np.inf
    diagnosis = diagnose(norms, losses)
    assert diagnosis.verdict == "healthy"
    assert kinds(diagnosis) == [("nonfinite", 50)]


@pytest.mark.parametrize(("factor", "verdict"), [(0.1, "exploding"), (10.0, "vanishing"), (1.5, "healthy")])
def test_a_norm_that_changes_evenly_through_a_stack_of_layers(factor, verdict):
    norms, losses = trace(8)
    diagnosis = diagnose(norms * factor ** np.arange(len(LAYERS)), losses)
    assert diagnosis.verdict == verdict
    assert [finding.layer for finding in diagnosis.findings] == ["layers/0/w"] * (verdict != "healthy")


def test_updates_that_are_too_large_blame_the_learning_rate():
    norms, losses = trace(9)
    norms *= 1e-3
    norms[160:] *= 1e3
    losses[160:] += 5.0
    diagnosis = diagnose(norms, losses, update_ratio=True)
    assert diagnosis.findings[0].cause == "learning-rate"
    assert {kind for kind, _ in kinds(diagnosis)} == {"jump", "updates-jump", "large-updates", "loss-divergence"}
    small, losses = trace(9)
    small[160:, 2] *= 1e-8
    assert "small-updates" in {kind for kind, _ in kinds(diagnose(small, losses, update_ratio=True))}


def test_a_loss_that_never_fell_is_a_plateau():
    norms, losses = trace(10)
    losses[:] = 2.3 + np.random.default_rng(0).normal(0.0, 0.1, len(losses))
    diagnosis = diagnose(norms, losses)
    assert kinds(diagnosis) == [("loss-plateau", 0)]
    losses[100:] = np.nan
    assert ("loss-divergence", 96) in kinds(diagnose(norms, losses))


CLIPPERS = {
    "state": lambda threshold: (monitor(history=32), clipping.clip_by_global_norm(threshold)),
    "monitors": lambda threshold: (
        monitor(history=32, name="before"),
        optax.clip_by_global_norm(threshold),
        monitor(history=32, name="after"),
    ),
}


@pytest.mark.parametrize("links", CLIPPERS.values(), ids=CLIPPERS)
def test_the_role_of_a_clipper(links):
    norms, _ = trace(11, deviation=0.1)
    norms[40::64] *= 100
    masked = norms.copy()
    masked[128:] *= 40
    traces = jnp.asarray(np.stack([norms, norms, norms, masked]), jnp.float32)

    def run(threshold, norms):
        optimizer = optax.chain(*links(threshold), optax.sgd(0.1))
        first = optimizer.init(PARAMS)
        return jax.lax.scan(lambda state, now: (optimizer.update(as_updates(now), state)[1], None), first, norms)[0]

    states = jax.jit(jax.vmap(run))(jnp.array([1e4, 10.0, 0.05, 10.0], jnp.float32), traces)
    diagnoses = [diagnose_run(jax.tree.map(lambda leaf, i=i: leaf[i], states)) for i in range(4)]
    clips = [diagnosis.clipping[0] for diagnosis in diagnoses]
    assert [clip.role for clip in clips] == ["inactive", "fixing-spikes", "masking", "masking"]
    np.testing.assert_allclose([clip.active_fraction for clip in clips], [0, 4 / 256, 1, 130 / 256], atol=0.08)
    np.testing.assert_allclose([clip.factor for clip in clips[2:]], [math.sqrt(6) / 0.05, math.sqrt(6) * 4], rtol=0.1)
    assert [diagnosis.verdict for diagnosis in diagnoses] == ["healthy", "healthy", "healthy", "exploding"]
    assert clips[3].growth == pytest.approx(40, rel=0.1)
    assert "masked-by-clipping" in str(diagnoses[3])


def test_a_chain_between_two_monitors_is_no_clipper():
    optimizer = optax.chain(monitor(history=8), optax.sgd(0.1), monitor(history=8))
    state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
    for size in (1.0, 2.0, 3.0):
        state = update(as_updates(jnp.full(6, size)), state)[1]
    assert diagnose_run(state).clipping == ()


def test_a_young_run_says_that_it_is_young():
    diagnosis = diagnose_run(monitor(history=32).init(PARAMS))
    assert (diagnosis.verdict, diagnosis.num_steps, diagnosis.changes) == ("healthy", 0, ())
    assert "too few" in str(diagnosis)


def test_the_text_has_a_line_for_what_changed_together():
    norms, losses = trace(1)
    norms[160:] *= 50
    lines = str(diagnose(norms, losses)).splitlines()
    assert lines[0].startswith("healthy after 256 steps")
    assert lines[1].startswith("  step 160: jump in layers/0/w and 5 more. Norm")


def test_diagnose_run_refuses(unchecked):
    state = (monitor(history=4, name="x").init(PARAMS), monitor(name="y").init(PARAMS))
    assert diagnose_run(state, name="x").verdict == "healthy"
    for name in ("y", "z"):
        with pytest.raises(
            ValueError, match=rf"diagnose_run: expected a monitor with a history; got name='{name}'.*'x'"
        ):
            diagnose_run(state, name=name)
    with pytest.raises(ValueError, match=r"none.\n.*monitor\(history=64\)"):
        diagnose_run(state[1])
    with pytest.raises(TypeError, match="a concrete state"):
        jax.jit(lambda state: diagnose_run(state).num_steps)(state)
    assert read(state, "x").history.starts == []
