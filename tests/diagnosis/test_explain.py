"""What explain says of networks whose fault is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxgrad
from jaxgrad.data._demos import DEMOS
from tests import models

# The models here are written as users write them, with biases that broadcast.
pytestmark = pytest.mark.usefixtures("third_party_model")

KEYS = jax.random.split(jax.random.key(0), 64)


def stack(depth: int, width: int = 24, *, variance: float = 1.0) -> list[jax.Array]:
    return [jax.random.normal(key, (width, width)) * (variance / width) ** 0.5 for key in KEYS[:depth]]


def loss_with(activation, scale: float = 1.0):
    def loss_fn(params, x, y):
        for weight in params[:-1]:
            x = activation(x @ weight)
        return scale * jnp.mean(jnp.square(x @ params[-1] - y))

    return loss_fn


@pytest.fixture(scope="module")
def batch() -> tuple[jax.Array, jax.Array]:
    return jax.random.normal(KEYS[-1], (16, 24)), jax.random.normal(KEYS[-2], (16, 24))


def quick(loss_fn, params, *args, **options):
    return jaxgrad.explain(loss_fn, params, *args, **{"level": "quick", "verbose": False, **options})


def causes(report) -> list[str]:
    return [finding.cause for finding in report.findings]


@pytest.mark.parametrize(
    ("name", "verdict", "cause"),
    [
        ("healthy", "healthy", None),
        ("deep-sigmoid", "vanishing", "saturating-activation"),
        pytest.param("exploding-residual", "exploding", "residual-scale", marks=pytest.mark.heavy),
        ("rnn", "vanishing", "recurrence"),
    ],
)
def test_demo_is_what_it_is_called(name, verdict, cause):
    report = quick(*DEMOS[name]())
    assert report.verdict == verdict
    assert causes(report)[:1] == ([] if cause is None else [cause])


def test_relu_with_lecun_weights_shrinks_by_the_root_of_two_a_layer(batch):
    report = quick(loss_with(jax.nn.relu), stack(40, 96), jnp.ones((8, 96)), jnp.ones((8, 96)))
    inner = np.mean([block.log10_gain for block in report.blocks[1:-1]])
    assert inner == pytest.approx(np.log10(0.5**0.5), rel=0.1)
    assert (report.verdict, causes(report)[0]) == ("vanishing", "initialization")


def test_sigmoid_shrinks_as_mean_field_theory_says():
    report = quick(loss_with(jax.nn.sigmoid), stack(12, 256), jnp.ones((8, 256)), jnp.ones((8, 256)))
    inner = np.mean([block.log10_gain for block in report.blocks[2:-1]])
    assert 10**inner == pytest.approx(0.23605, rel=0.03)


LONG = {"exploding-residual": pytest.mark.heavy}


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("name", [pytest.param(name, marks=LONG.get(name, ())) for name in DEMOS])
def test_unit_of_the_loss_changes_nothing(name, scale):
    loss_fn, params, *args = DEMOS[name]()
    before = quick(loss_fn, params, *args)
    after = quick(lambda params, *args: scale * loss_fn(params, *args), params, *args)
    assert after.verdict == before.verdict
    assert [f[:3] for f in after.findings] == [f[:3] for f in before.findings]
    for one, other in zip(before.blocks, after.blocks, strict=True):
        assert other.log10_gain == pytest.approx(one.log10_gain, abs=1e-4)


@pytest.mark.heavy
def test_signal_below_the_range_of_float32_is_followed(batch):
    report = quick(loss_with(jax.nn.sigmoid), stack(60), *batch)
    assert report.verdict == "vanishing"
    assert -42 < report.log10_total_gain < -32
    gains = [block.log10_gain for block in report.blocks]
    assert np.all(np.isfinite(gains))
    assert sum(gains) == pytest.approx(report.log10_total_gain, rel=0.02)
    assert any("log space" in note for note in report.notes)


def test_signal_above_the_range_of_float32_is_followed(batch):
    # The activations saturate, so the loss is finite, and its gradient is not.
    report = quick(loss_with(lambda x: x / (1 + jnp.abs(x)) * 30), stack(40, variance=40.0), *batch)
    assert report.verdict in {"exploding", "nonfinite"}


def test_converged_network_is_no_fault(batch):
    x, _ = batch
    params = stack(4)
    target = x
    for weight in params[:-1]:
        target = jnp.tanh(target @ weight)
    report = quick(loss_with(jnp.tanh), params, x, target @ params[-1])
    assert report.verdict == "healthy"
    assert report.findings == ()


def test_biases_without_gradient_are_no_fault(batch):
    x, y = batch

    def loss_fn(params, x, y):  # a bias before a batch mean, and a key bias under softmax, have no gradient
        h = x @ params["w"] + params["useless"]
        h = jnp.tanh((h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5))
        scores = (h @ params["q"]) @ (h @ params["k"] + params["key_bias"]).T
        return jnp.mean(jnp.square(jax.nn.softmax(scores) @ h @ params["v"] - y))

    square = stack(4)
    params = dict(zip("wqkv", square, strict=True)) | {"useless": jnp.ones(24), "key_bias": jnp.ones(24)}
    report = quick(loss_fn, params, x, y)
    assert report.verdict == "healthy"
    assert report.mixes_examples


def test_dead_units_are_found(batch):
    x, y = batch

    def loss_fn(params, x, y):
        h = jax.nn.relu(x @ params["first"] + params["bias"])
        return jnp.mean(jnp.square(jax.nn.relu(h @ params["second"]) @ params["third"] - y))

    first, second, third = stack(3)
    params = {"first": first, "second": second, "third": third, "bias": jnp.full(24, -50.0)}
    report = quick(loss_fn, params, x, y)
    assert report.verdict == "dead"
    assert report.findings[0].layer == "first"
    assert report.layers[0].dead_fraction == 1.0


def test_dead_units_are_counted_whichever_axis_they_lie_along():
    x = jnp.abs(jax.random.normal(KEYS[0], (16, 8)))
    first = jnp.abs(jax.random.normal(KEYS[1], (6, 8))) * jnp.array([-1, -1, 1, 1, 1, 1])[:, None]

    def mapped(params, x):
        return jnp.mean(jnp.square(jax.vmap(lambda row: params[1] @ jax.nn.relu(params[0] @ row))(x)))

    def transposed(params, x):
        return jnp.mean(jnp.square(params[1] @ jax.nn.relu(params[0] @ x.T)))

    for loss_fn in (mapped, transposed):
        report = quick(loss_fn, [first, jnp.ones((2, 6))], x)
        np.testing.assert_allclose(report.layers[0].dead_fraction, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("level", ["quick", "standard"])
def test_first_forward_nan_is_located(batch, level):
    x, y = batch

    def loss_fn(params, x, y):
        h = jnp.tanh(x @ params[0])
        h = jnp.log(h)  # the culprit
        return jnp.mean(jnp.square(h @ params[1] - y))

    report = quick(loss_fn, stack(2), x, y, level=level)
    assert report.verdict == "nonfinite"
    assert (report.nonfinite.phase, report.nonfinite.operation, report.nonfinite.layer) == ("forward", "log", "0")
    line = loss_fn.__code__.co_firstlineno + 2
    assert f"test_explain.py:{line}" in report.nonfinite.source


def test_nan_made_by_a_derivative_is_located(batch):
    x, y = batch

    def loss_fn(params, x, y):
        h = x @ params[0]
        h = jnp.sqrt(jnp.square(h) * 0.0)  # the culprit: the slope of the root is infinite at 0
        return jnp.mean(jnp.square(h @ params[1] - y))

    report = quick(loss_fn, stack(2), x, y)
    assert report.verdict == "nonfinite"
    assert (report.nonfinite.phase, report.nonfinite.operation) == ("backward", "sqrt")
    assert f"test_explain.py:{loss_fn.__code__.co_firstlineno + 2}" in report.nonfinite.source


def test_nan_inside_a_loop_is_located_with_its_step():
    def loss_fn(params, xs):
        def step(h, x):
            h = h @ params["w"] + x
            return h / (jnp.sum(x) - 3.0), None

        return jnp.mean(jax.lax.scan(step, jnp.zeros(24), xs)[0])

    xs = jnp.zeros((6, 24)).at[:, 0].set(jnp.arange(6.0)).at[0, 0].set(9.0)
    report = quick(loss_fn, {"w": stack(1)[0]}, xs)
    assert (report.nonfinite.operation, report.nonfinite.step) == ("div", 3)


def test_parameter_that_is_nan_is_named(batch):
    params = stack(3)
    params[1] = params[1].at[0, 0].set(jnp.nan)
    report = quick(loss_with(jnp.tanh), params, *batch)
    assert report.verdict == "nonfinite"
    assert "1" in report.nonfinite.source


def test_target_scale_is_a_cause(batch):
    x, y = batch
    report = quick(loss_with(jnp.tanh), stack(3), x, 1e4 * y)
    assert causes(report) == ["target-scale"]


def test_feature_scale_is_a_cause(batch):
    x, y = batch
    report = quick(loss_with(jax.nn.relu), stack(3, variance=2.0), x.at[:, 0].multiply(1e5), y)
    assert (report.verdict, causes(report)) == ("ill-conditioned", ["input-scale"])


def test_update_ratio_is_that_of_the_optimizer(batch):
    params = stack(3)
    optimizer = optax.sgd(0.1)
    report = quick(loss_with(jnp.tanh), params, *batch, optimizer=optimizer)
    gradients = jax.grad(loss_with(jnp.tanh))(params, *batch)
    for layer, gradient, weight in zip(report.layers, gradients, params, strict=True):
        expected = 0.1 * jnp.linalg.norm(gradient) / jnp.linalg.norm(weight)
        assert layer.update_ratio == pytest.approx(float(expected), rel=1e-4)
        assert layer.gradient_norm == pytest.approx(float(jnp.linalg.norm(gradient)), rel=1e-4)


def test_learning_rate_is_found(batch):
    report = quick(loss_with(jnp.tanh), stack(3), *batch, optimizer=optax.adam(2.0))
    assert "learning-rate" in causes(report)


def test_remedies_are_measured_again(batch):
    report = quick(loss_with(jax.nn.sigmoid), stack(12), *batch, level="standard", confirm_steps=20)
    best = report.remedies[0]
    assert best.verified
    assert best.confirmed in (True, False)
    assert best.before == report.log10_total_gain
    assert abs(best.after) < 3 < abs(best.before)
    assert any(not remedy.verified for remedy in report.remedies) or len(report.remedies) > 1


def test_singular_values_are_those_of_the_jacobian(batch):
    params = stack(3)
    report = quick(loss_with(jnp.tanh), params, *batch, level="standard")
    x = batch[0][:4]
    jacobian = jax.vmap(jax.jacrev(lambda x: jnp.tanh(x @ params[0])))(x)
    expected = np.linalg.svd(np.asarray(jacobian), compute_uv=False)
    spectrum = report.blocks[0].spectrum
    assert (spectrum.num_examples, spectrum.method) == (4, "dense")
    np.testing.assert_allclose(spectrum.values, np.sort(expected, axis=None)[::-1], rtol=1e-4, atol=1e-6)
    assert spectrum.sigma_max == pytest.approx(expected[:, 0].mean(), rel=1e-4)


@pytest.mark.heavy
def test_large_blocks_are_measured_without_forming_the_jacobian():
    kernel = 0.2 * jax.random.normal(KEYS[0], (3, 3, 4, 4))

    def loss_fn(params, x):
        for kernel in params:
            dims = ("NHWC", "HWIO", "NHWC")
            x = jnp.tanh(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims))
        return jnp.mean(jnp.square(x))

    x = jax.random.normal(KEYS[1], (2, 18, 18, 4))
    report = quick(loss_fn, [kernel, kernel], x, level="standard")
    spectrum = report.blocks[0].spectrum

    def first(row):
        dims = ("NHWC", "HWIO", "NHWC")
        image = row.reshape(1, 18, 18, 4)
        out = jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=dims)
        return jnp.tanh(out).ravel()

    exact = [np.linalg.svd(jax.jacfwd(first)(row.ravel()), compute_uv=False) for row in x]
    assert spectrum.method == "matrix-free"
    assert spectrum.sigma_max == pytest.approx(np.mean([values[0] for values in exact]), rel=1e-2)
    assert spectrum.mean_square == pytest.approx(np.mean([np.mean(values**2) for values in exact]), rel=0.1)


def test_a_second_look_compiles_nothing(batch, caplog):
    loss_fn, params = loss_with(jnp.tanh), stack(3)
    quick(loss_fn, params, *batch)
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        quick(loss_fn, params, *batch)
    assert not [record for record in caplog.records if "Compiling measure" in record.getMessage()]


def test_what_is_closed_over_is_read_anew(batch):
    x, y = batch
    held = {"x": x}

    def loss_fn(params):
        return loss_with(jnp.tanh)(params, held["x"], y)

    params = stack(3)
    before = quick(loss_fn, params)
    held["x"] = 3 * x
    after = quick(loss_fn, params)
    assert after.loss == pytest.approx(float(loss_fn(params)), rel=1e-5)
    assert after.loss != before.loss


@pytest.mark.heavy
def test_one_network_written_in_six_ways_has_one_diagnosis():
    reports = []
    for name in models.SAME:
        model = models.MODELS[name]()
        reports.append(quick(model.loss_fn, model.params, *model.args))
    first = reports[0]
    for report in reports[1:]:
        assert (report.verdict, len(report.blocks)) == (first.verdict, len(first.blocks))
        assert [layer.activation for layer in report.layers] == [layer.activation for layer in first.layers]
        for one, other in zip(first.blocks, report.blocks, strict=True):
            assert other.log10_gain == pytest.approx(one.log10_gain, abs=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "linen_resnet_train",
        *(
            pytest.param(name, marks=pytest.mark.heavy)
            for name in ("linen_transformer_pre", "linen_lstm", "linen_u_net")
        ),
    ],
)
def test_common_architectures_at_their_own_initialization_are_healthy(name):
    model = models.MODELS[name]()
    report = quick(model.loss_fn, model.params, *model.args, has_aux=model.has_aux, level="standard")
    assert (report.verdict, report.findings) == ("healthy", ())
    assert report.mixes_examples == model.mixes


def test_aux_may_hold_anything(batch):
    def loss_fn(params, x, y):
        return loss_with(jnp.tanh)(params, x, y), {"note": "text", "mean": x.mean()}

    assert quick(loss_fn, stack(3), *batch, has_aux=True).verdict == "healthy"
