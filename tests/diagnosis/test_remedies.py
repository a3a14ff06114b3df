"""Fixes tried on real networks: what is measured again, what is confirmed, and what is said to write."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgrad
from jaxgrad.diagnosis._changes import Setup, reset_scales
from jaxgrad.diagnosis._loss import labels_of, loss_facts, loss_slopes
from jaxgrad.diagnosis._optimizer import clipping, training
from jaxgrad.diagnosis._remedies import _is_better
from jaxgrad.diagnosis._wording import draw_line, framework_of

pytestmark = pytest.mark.usefixtures("third_party_model")

KEYS = jax.random.split(jax.random.key(11), 32)
BATCH, WIDTH, CLASSES = 16, 12, 4
X = jax.random.normal(KEYS[0], (BATCH, WIDTH))
Y = jnp.sin(X)
LABELS = jnp.arange(BATCH) % CLASSES


def weights(*sizes: int, variance: float = 1.0) -> list[jax.Array]:
    pairs = itertools.pairwise(sizes)
    return [
        jax.random.normal(key, pair) * (variance / pair[0]) ** 0.5 for key, pair in zip(KEYS[1:], pairs, strict=False)
    ]


def regression(params, x, y):
    for weight in params[:-1]:
        x = jax.nn.relu(x @ weight)
    return jnp.mean(jnp.square(x @ params[-1] - y))


def explained(loss_fn, params, *args, **options):
    return jaxgrad.explain(loss_fn, params, *args, **{"verbose": False, **options})


def test_targets_out_of_scale_are_standardized_and_training_confirms_it():
    params = weights(WIDTH, WIDTH, WIDTH, variance=2.0)
    report = explained(regression, params, X, 300.0 + 100.0 * Y, confirm_steps=25)
    best = report.remedies[0]
    assert (report.findings[0].cause, best.kind) == ("target-scale", "standardize-targets")
    assert best.verified
    assert best.confirmed
    assert len(best.losses_before) == len(best.losses_after) == 26
    assert best.losses_after[-1] < best.losses_after[0]


@pytest.mark.parametrize("rate", [50.0, pytest.param(1e-6, marks=pytest.mark.heavy)])
def test_learning_rate_is_changed_until_the_loss_falls(rate):
    params = weights(WIDTH, WIDTH, WIDTH, variance=2.0)
    report = explained(regression, params, X, Y, optimizer=optax.sgd(rate))
    assert [finding.cause for finding in report.findings] == ["learning-rate"]
    assert report.remedies[0].verified
    expected = "lower-learning-rate" if rate > 1 else "raise-learning-rate"
    assert expected in {remedy.kind for remedy in report.remedies if remedy.verified}


def test_squared_error_of_probabilities_is_swapped_for_a_cross_entropy():
    def loss_fn(params, x, labels):
        logits = 20.0 * (jax.nn.relu(x @ params[0]) @ params[1])
        return jnp.mean(jnp.square(jax.nn.softmax(logits) - jax.nn.one_hot(labels, CLASSES)))

    report = explained(loss_fn, weights(WIDTH, WIDTH, CLASSES, variance=2.0), X, LABELS)
    assert report.findings[0].cause == "loss"
    assert (report.remedies[0].kind, report.remedies[0].verified) == ("swap-loss", True)
    assert "softmax_cross_entropy_with_integer_labels" in report.remedies[0].change


def test_bound_on_the_output_is_taken_away_where_targets_lie_beyond():
    def loss_fn(params, x, y):
        return jnp.mean(jnp.square(jax.nn.sigmoid(jnp.tanh(x @ params[0]) @ params[1]) - y))

    report = explained(loss_fn, weights(WIDTH, WIDTH, WIDTH), X, 3.0 + Y, optimizer=optax.adam(0.1), confirm_steps=50)
    assert (report.verdict, report.findings[0].cause) == ("vanishing", "target-scale")
    assert report.remedies[0].kind == "open-output"
    assert report.remedies[0].confirmed
    assert explained(loss_fn, weights(WIDTH, WIDTH, WIDTH), X, (1 + Y) / 2, level="quick").verdict == "healthy"


def test_outputs_compared_with_all_targets_are_paired():
    def loss_fn(params, x, y):
        return jnp.mean(jnp.square((jnp.tanh(x @ params[0]) @ params[1]) - y[None, :]))

    report = explained(loss_fn, weights(WIDTH, WIDTH, 1), X, Y[:, 0], confirm_steps=25)
    assert report.findings[0].cause == "loss"
    assert (report.remedies[0].kind, report.remedies[0].confirmed) == ("swap-loss", True)


@pytest.mark.parametrize(("shift", "verdict"), [pytest.param(1, "exploding", marks=pytest.mark.heavy), (0, "healthy")])
def test_cross_entropy_of_one_output_takes_zeros_and_ones(shift, verdict):
    def loss_fn(params, x, labels):
        logits = jnp.squeeze(jnp.tanh(x @ params[0]) @ params[1], -1)
        targets = ((1 + shift) * labels - shift).astype(logits.dtype)
        return jnp.mean(jax.nn.softplus(logits) - targets * logits)

    labels = jnp.arange(BATCH) % 2
    options = {"optimizer": optax.adam(0.01), "confirm_steps": 50} if shift else {"level": "quick"}
    report = explained(loss_fn, weights(WIDTH, WIDTH, 1), X, labels, **options)
    assert report.verdict == verdict
    if shift:
        assert report.findings[0].cause == "loss"
        assert (report.remedies[0].kind, report.remedies[0].confirmed) == ("swap-loss", True)


def test_policy_gradient_is_no_loss_without_a_minimum():
    def loss_fn(params, x, actions, advantages):
        logits = jnp.squeeze(jnp.tanh(x @ params[0]) @ params[1], -1)
        return jnp.mean(advantages * (jax.nn.softplus(logits) - actions.astype(logits.dtype) * logits))

    report = explained(loss_fn, weights(WIDTH, WIDTH, 1), X, jnp.arange(BATCH) % 2, Y[:, 0], level="quick")
    assert "loss" not in {finding.cause for finding in report.findings}


def test_schedule_of_steps_where_epochs_were_meant_is_lengthened():
    optimizer = optax.sgd(optax.exponential_decay(0.05, 1, 0.7), momentum=0.9)
    report = explained(
        regression, weights(WIDTH, WIDTH, WIDTH, variance=2.0), X, Y, optimizer=optimizer, confirm_steps=60
    )
    assert report.findings[0].cause == "learning-rate"
    assert (report.remedies[0].kind, report.remedies[0].confirmed) == ("lengthen-schedule", True)


def linear_recurrence(params, x, y):
    def step(state, now):
        return jnp.exp(-params["rate"]) * state + now, None

    state, _ = jax.lax.scan(step, jnp.zeros_like(x[0]), x)
    return jnp.mean(jnp.square(jnp.tanh(state @ params["hidden"]) @ params["head"] - y))


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [(0.5, "vanishing"), pytest.param(-0.2, "exploding", marks=pytest.mark.heavy), (0.01, "healthy")],
)
def test_state_of_a_loop_without_layers_is_held(rate, verdict):
    first, second = weights(WIDTH, WIDTH, WIDTH)
    params = {"rate": jnp.full(WIDTH, rate), "hidden": first, "head": second}
    x = 0.1 * jax.random.normal(KEYS[1], (60, BATCH, WIDTH))
    report = explained(linear_recurrence, params, x, Y, level="quick" if verdict == "healthy" else "standard")
    assert report.verdict == verdict
    if verdict != "healthy":
        assert report.findings[0].cause == "recurrence"
        held = next(remedy for remedy in report.remedies if remedy.kind == "hold-state")
        assert f"state = {math.exp(rate):.2f}"[:-1] in held.change


def test_scales_of_normalizations_far_from_one_are_reset():
    def loss_fn(params, x):
        h = (x @ params["weight"]) * params["scale"] * params["gain"] + params["bias"]
        return jnp.mean(jnp.square(h))

    params = {"weight": weights(WIDTH, WIDTH)[0], "scale": jnp.zeros(WIDTH), "gain": jnp.full(WIDTH, 2.0)}
    params["bias"] = jnp.zeros(WIDTH)
    network = jaxgrad.trace(loss_fn, params, X)
    reset = reset_scales(Setup(network, network.inputs(params, (X,))))
    bias, gain, scale, weight = reset.inputs[:4]
    np.testing.assert_array_equal(scale, 1.0)
    np.testing.assert_array_equal(bias, 0.0)  # begins at 0, as it should
    np.testing.assert_array_equal(gain, 2.0)
    np.testing.assert_array_equal(weight, params["weight"])
    assert reset_scales(reset) is None


def attention(params, x, y, lengths):
    scores = (x @ params[0]) @ jnp.swapaxes(x, 1, 2) / WIDTH**0.5
    inside = jnp.arange(x.shape[1])[None, None, :] < lengths[:, None, None]
    mixed = jax.nn.softmax(jnp.where(inside, scores, -jnp.inf), axis=-1) @ x
    return jnp.mean(jnp.square(jnp.mean(mixed, axis=1) @ params[1] - y))


def test_example_of_zeros_shows_a_nan_that_another_batch_would_bring():
    x = jax.random.normal(KEYS[1], (BATCH, 5, WIDTH)) * (jnp.arange(5) < 3)[None, :, None]
    lengths = jnp.full(BATCH, 3, jnp.int32)
    params = weights(WIDTH, WIDTH, WIDTH)
    report = explained(attention, params, x, Y, lengths, confirm_steps=10)
    assert (report.verdict, report.findings[0].cause) == ("nonfinite", "nonfinite-op")
    assert "empty example" in report.summary
    assert math.isfinite(report.loss)
    assert (report.remedies[0].kind, report.remedies[0].confirmed) == ("guard-operation", True)


@pytest.mark.heavy
def test_example_of_zeros_is_nothing_to_a_loss_that_minds_it():
    def guarded(params, x, y, lengths):
        return attention(params, x, y, jnp.maximum(lengths, 1))

    x = jax.random.normal(KEYS[1], (BATCH, 5, WIDTH)) * (jnp.arange(5) < 3)[None, :, None]
    report = explained(guarded, weights(WIDTH, WIDTH, WIDTH), x, Y, jnp.full(BATCH, 3, jnp.int32))
    assert report.verdict == "healthy"


@pytest.mark.heavy
def test_operations_that_fail_one_behind_the_other_are_guarded_together():
    def loss_fn(params, x, labels):
        powers = jnp.exp(100.0 * (jax.nn.relu(x @ params[0]) @ params[1]))
        return -jnp.mean(jnp.log(powers / powers.sum(-1, keepdims=True))[jnp.arange(BATCH), labels])

    report = explained(loss_fn, weights(WIDTH, WIDTH, CLASSES, variance=2.0), X, LABELS)
    assert report.verdict == "nonfinite"
    assert report.remedies[0].kind == "guard-operation"
    assert report.remedies[0].change.count("keep ") == 2


def test_singular_operation_is_guarded():
    def loss_fn(params, x):
        h = jax.nn.relu(x @ params[0])
        return jnp.mean(jnp.log(h) @ params[1])

    report = explained(loss_fn, weights(WIDTH, WIDTH, WIDTH), X)
    assert report.verdict == "nonfinite"
    assert [remedy.kind for remedy in report.remedies] == ["guard-operation"]
    assert report.remedies[0].verified
    assert "jnp.maximum" in report.remedies[0].change


def test_head_that_begins_at_zero_is_healthy():
    params = [*weights(WIDTH, WIDTH, WIDTH, variance=2.0), jnp.zeros((WIDTH, WIDTH))]
    report = explained(regression, params, X, Y, level="quick")
    assert report.verdict == "healthy"
    assert any("zero, and open after one step" in note for note in report.notes)


@pytest.mark.heavy
def test_what_does_not_help_is_listed_too():
    def loss_fn(params, x, y):
        for weight in params[:-1]:
            x = jax.nn.sigmoid(x @ weight)
        return jnp.mean(jnp.square(x @ params[-1] - y))

    report = explained(loss_fn, weights(*[WIDTH] * 10), X, Y)
    verified = [remedy.verified for remedy in report.remedies]
    assert verified == sorted(verified, reverse=True)
    assert not all(verified)
    assert any(verified)
    assert all("`" in remedy.change for remedy in report.remedies)


def softmax_twice(z):
    return optax.softmax_cross_entropy_with_integer_labels(jax.nn.softmax(z), LABELS).mean()


def over_batch(z):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z, axis=0), LABELS[:, None], axis=1))


@pytest.mark.parametrize(
    ("loss", "field", "low", "high"),
    [
        (lambda z: optax.softmax_cross_entropy_with_integer_labels(z, LABELS).mean(), "confident", 0.9, 2.0),
        (lambda z: jnp.mean(jnp.square(jax.nn.softmax(z) - jax.nn.one_hot(LABELS, CLASSES))), "confident", 0.0, 0.02),
        (softmax_twice, "confident", 0.0, 0.02),
        (lambda z: optax.softmax_cross_entropy_with_integer_labels(z, LABELS).mean(), "mixing", 0.0, 1e-6),
        (over_batch, "mixing", 1e-3, 1.0),
    ],
)
def test_loss_is_judged_by_what_a_confident_mistake_sends_back(loss, field, low, high):
    params = weights(WIDTH, CLASSES)[0]

    def loss_fn(params, x, labels):
        return loss(x @ params) + 0 * jnp.sum(labels)

    network = jaxgrad.trace(loss_fn, params, X, LABELS)
    inputs = network.inputs(params, (X, LABELS))
    labels, axis, classes = labels_of(network, inputs)
    assert (axis, classes) == (0, True)
    facts = loss_facts(network, labels, classes, loss_slopes(network, labels, axis), inputs)
    assert low <= getattr(facts, field) <= high


@pytest.mark.parametrize(
    ("optimizer", "factor"),
    [
        (lambda norm: optax.chain(optax.clip_by_global_norm(norm / 50), optax.sgd(0.1)), 50.0),
        (lambda norm: optax.chain(optax.clip_by_global_norm(norm / 50), optax.adam(0.1)), 50.0),
        (lambda norm: optax.chain(optax.clip_by_global_norm(2 * norm), optax.sgd(0.1)), 1.0),
        (lambda norm: optax.adam(0.1), 1.0),
        (lambda norm: optax.sgd(0.1, momentum=0.9), 1.0),
        (lambda norm: optax.sign_sgd(0.1), 1.0),
    ],
    ids=["clipped sgd", "clipped adam", "idle clip", "adam", "momentum", "sign"],
)
def test_clipping_is_seen_in_how_an_optimizer_answers(optimizer, factor):
    params = weights(WIDTH, WIDTH, WIDTH)
    norm = float(optax.tree.norm(jax.grad(regression)(params, X, Y)))
    network = jaxgrad.trace(regression, params, X, Y)
    measured = float(clipping(network, optimizer(norm))(network.inputs(params, (X, Y))))
    assert measured == pytest.approx(factor, rel=1e-3)


def test_training_is_the_users_own_loop():
    params, optimizer = weights(WIDTH, WIDTH, WIDTH), optax.adam(0.01)
    network = jaxgrad.trace(regression, params, X, Y)
    losses = training(network, optimizer, 3)(network.inputs(params, (X, Y)), jnp.float32(1.0))
    state, expected = optimizer.init(params), []
    for _ in range(4):
        loss, gradients = jax.value_and_grad(regression)(params, X, Y)
        expected.append(float(loss))
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    assert [float(loss) for loss in losses] == pytest.approx(expected, rel=1e-5)


def test_training_is_compared_in_the_unit_of_each_loss():
    assert _is_better([100.0, 90.0], [1.0, 0.5], (100.0, 1.0))
    assert not _is_better([100.0, 10.0], [1.0, 0.5], (100.0, 1.0))
    assert _is_better([1.0, math.nan], [1.0, 0.9], (1.0, 1.0))
    assert not _is_better([1.0, 0.5], [1.0, math.nan], (1.0, 1.0))


def test_line_to_write_is_in_the_users_framework():
    linen = {"params": {"Dense_0": {"kernel": jnp.ones((2, 2))}}}
    assert framework_of(linen, ["params/Dense_0/kernel"]) == "linen"
    assert framework_of([{"w": jnp.ones(2)}], ["0/w"]) == "jax"
    equinox = pytest.importorskip("equinox")
    model = equinox.nn.MLP(2, 2, 2, 1, key=jax.random.key(0))
    assert framework_of(model, ["layers/0/weight"]) == "equinox"
    nnx = pytest.importorskip("flax.nnx")
    assert framework_of(nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), ["kernel"]) == "nnx"
    assert "variance_scaling(2" in draw_line("linen", 2.0)
