"""The demos tell the truth: healthy learns, a faulty one learns worse than its repair, and `explain` knows which."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxgrad
from jaxgrad.data import _demos

pytestmark = [pytest.mark.heavy, pytest.mark.usefixtures("third_party_model")]

OPTIMIZERS = {"sgd": optax.sgd(0.01), "adam": optax.adam(1e-3)}


def train(case, optimizer, num_steps: int = 300, batch_size: int = 128) -> float:
    """Train on random batches of all digits and return the loss on all of them."""
    loss_fn, params, *_ = case
    x, labels = _demos.standardized_digits()

    def step(carry, key):
        params, state = carry
        batch = jax.random.choice(key, len(labels), (batch_size,), replace=False)
        updates, state = optimizer.update(jax.grad(loss_fn)(params, x[batch], labels[batch]), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = (params, optimizer.init(params))
    (params, _), _ = jax.jit(lambda: jax.lax.scan(step, start, jax.random.split(jax.random.key(0), num_steps)))()
    loss = float(loss_fn(params, x, labels))
    return loss if math.isfinite(loss) else math.inf


@pytest.mark.parametrize(
    ("name", "verdict", "cause"),
    [
        ("deep-sigmoid", "vanishing", "saturating-activation"),
        ("exploding-residual", "exploding", "residual-scale"),
        ("rnn", "vanishing", "recurrence"),
    ],
)
def test_explain_finds_the_fault_and_a_repair(name, verdict, cause):
    report = jaxgrad.explain(*_demos.DEMOS[name](), verbose=False)
    assert (report.verdict, report.findings[0].cause) == (verdict, cause)
    assert report.remedies[0].verified


@pytest.mark.parametrize(
    "case",
    [
        _demos.healthy,
        lambda: _demos.deep_sigmoid(activation=jax.nn.relu, weight_variance=2.0),
        lambda: _demos.exploding_residual(branch_scale=1 / math.sqrt(32)),
        lambda: _demos.rnn(orthogonal=True),
    ],
    ids=_demos.DEMOS,
)
def test_explain_finds_nothing_once_repaired(case):
    report = jaxgrad.explain(*case(), verbose=False)
    assert (report.verdict, report.findings) == ("healthy", ())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_healthy_learns(optimizer):
    assert train(_demos.healthy(), OPTIMIZERS[optimizer]) < 0.4


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_deep_sigmoid_learns_nothing_until_repaired(optimizer):
    faulty = train(_demos.deep_sigmoid(), OPTIMIZERS[optimizer])
    repaired = train(_demos.deep_sigmoid(activation=jax.nn.relu, weight_variance=2.0), OPTIMIZERS[optimizer])
    assert faulty > 0.98 * math.log(_demos.NUM_CLASSES)
    assert repaired < 0.5


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_exploding_residual_learns_worse_than_scaled_branches(optimizer):
    faulty = train(_demos.exploding_residual(), OPTIMIZERS[optimizer])
    repaired = train(_demos.exploding_residual(branch_scale=1 / math.sqrt(32)), OPTIMIZERS[optimizer])
    assert repaired < 0.3
    assert faulty > 5 * repaired


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rnn_learns_worse_than_an_orthogonal_recurrence(optimizer):
    faulty = train(_demos.rnn(), OPTIMIZERS[optimizer])
    repaired = train(_demos.rnn(orthogonal=True), OPTIMIZERS[optimizer])
    assert faulty - repaired > 0.3
    assert jnp.isfinite(repaired)
