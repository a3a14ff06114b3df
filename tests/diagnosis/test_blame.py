"""The backward signal's gain taken apart: parts that add up, each where it belongs."""

from __future__ import annotations

import math
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad

KEYS = jax.random.split(jax.random.key(7), 16)
BATCH, WIDTH = 8, 16


def weight(number: int, *shape: int, variance: float = 1.0) -> jax.Array:
    shape = shape or (WIDTH, WIDTH)
    return jax.random.normal(KEYS[number], shape) * (variance / shape[0]) ** 0.5


def sources(report) -> list[dict[str, float]]:
    parts: list[dict[str, float]] = [defaultdict(float) for _ in report.blocks]
    for part in report.blame:
        parts[part.block][part.source] += part.log10_gain
    return parts


def explained(loss_fn, params, *args, **options):
    return jaxgrad.explain(loss_fn, params, *args, **{"verbose": False, **options})


def assert_adds_up(report) -> None:
    assert report.blame
    for block, parts in zip(report.blocks, sources(report), strict=True):
        assert sum(parts.values()) == pytest.approx(block.log10_gain, abs=1e-5), block.name


@pytest.fixture(scope="module")
def batch() -> tuple[jax.Array, jax.Array]:
    return jax.random.normal(KEYS[-1], (BATCH, WIDTH)), jax.random.normal(KEYS[-2], (BATCH, WIDTH))


def test_weights_and_slopes_are_those_of_the_actual_vector(batch):
    x, y = batch
    params = [weight(0), weight(1), weight(2)]

    def loss_fn(params, x, y):
        h = jnp.tanh(x @ params[0])
        h = jnp.tanh(h @ params[1])
        return jnp.mean(jnp.square(h @ params[2] - y))

    report = explained(loss_fn, params, x, y)
    assert_adds_up(report)
    # By hand, in float64: the second block is a product with params[1] and a tanh.
    first, second, third = (np.asarray(w, np.float64) for w in params)
    h1 = np.tanh(np.asarray(x, np.float64) @ first)
    h2 = np.tanh(h1 @ second)
    at_output = (h2 @ third - np.asarray(y, np.float64)) @ third.T
    behind_slope = at_output * (1 - h2**2)
    behind_weights = behind_slope @ second.T
    norms = [np.linalg.norm(v) for v in (at_output, behind_slope, behind_weights)]
    parts = sources(report)[1]
    assert parts["activation"] == pytest.approx(math.log10(norms[1] / norms[0]), abs=1e-5)
    assert parts["weights"] == pytest.approx(math.log10(norms[2] / norms[1]), abs=1e-5)
    assert set(parts) == {"activation", "weights"}


def test_residual_branch_counts_as_what_it_adds_to_the_stream(batch):
    x, y = batch
    params = {"stem": weight(0), "branch": weight(1, variance=4.0), "head": weight(2)}

    def loss_fn(params, x, y):
        h = x @ params["stem"]
        h = h + jax.nn.relu(h @ params["branch"])
        return jnp.mean(jnp.square(h @ params["head"] - y))

    report = explained(loss_fn, params, x, y)
    assert_adds_up(report)
    block = next(i for i, b in enumerate(report.blocks) if b.layers == ("branch",))
    assert sources(report)[block] == {"residual": pytest.approx(report.blocks[block].log10_gain, abs=1e-5)}


def test_zero_branch_changes_nothing(batch):
    x, y = batch
    params = {"stem": weight(0), "up": weight(1), "down": jnp.zeros((WIDTH, WIDTH)), "head": weight(2)}

    def loss_fn(params, x, y):
        h = x @ params["stem"]
        h = h + jax.nn.relu(h @ params["up"]) @ params["down"]
        return jnp.mean(jnp.square(h @ params["head"] - y))

    report = explained(loss_fn, params, x, y)
    block = next(i for i, b in enumerate(report.blocks) if "up" in b.layers)
    assert all(part == pytest.approx(0, abs=1e-6) for part in sources(report)[block].values())
    assert report.verdict == "healthy"


def normalize(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-6)


def test_normalization_is_told_from_the_layer_before_it(batch):
    x, y = batch
    params = [weight(0), weight(1, variance=25.0), weight(2)]

    def loss_fn(params, x, y):
        h = x @ params[0]
        h = normalize(h @ params[1])
        return jnp.mean(jnp.square(h @ params[2] - y))

    report = explained(loss_fn, params, x, y)
    assert_adds_up(report)
    parts = sources(report)[1]
    assert parts["weights"] == pytest.approx(math.log10(5), abs=0.15)
    assert parts["normalization"] == pytest.approx(-math.log10(5), abs=0.15)
    assert set(parts) <= {"weights", "normalization"}


def test_attention_without_a_path_around_it_is_its_own_source():
    x = jax.random.normal(KEYS[3], (4, 6, WIDTH))
    params = {name: weight(i) for i, name in enumerate(("stem", "q", "k", "v", "out"))}

    def loss_fn(params, x):
        h = x @ params["stem"]
        scores = jnp.einsum("bqd,bkd->bqk", h @ params["q"], h @ params["k"]) / WIDTH**0.5
        h = jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores), h @ params["v"])
        return jnp.mean(jnp.square(h @ params["out"] - 1))

    report = explained(loss_fn, params, x)
    assert_adds_up(report)
    assert "attention" in {part.source for part in report.blame}


def test_steps_of_a_recurrence_add_up_where_each_step_has_a_loss_of_its_own():
    x = jax.random.normal(KEYS[4], (12, BATCH, 3))
    params = {"input": weight(0, 3, WIDTH), "recurrent": weight(1), "head": weight(2, WIDTH, 2)}

    def loss_fn(params, x):
        def step(h, now):
            h = jnp.tanh(now @ params["input"] + h @ params["recurrent"])
            return h, jnp.mean(jnp.square(h @ params["head"] - 1))

        return jnp.mean(jax.lax.scan(step, jnp.zeros((BATCH, WIDTH)), x)[1])

    report = explained(loss_fn, params, x)
    assert_adds_up(report)
    steps = [i for i, block in enumerate(report.blocks) if block.kind == "time"]
    assert any(sources(report)[i]["other"] > 0.05 for i in steps)


@pytest.mark.heavy
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_unit_of_the_loss_moves_no_part(batch, scale):
    x, y = batch
    params = [weight(0), weight(1), weight(2)]

    def loss_fn(params, x, y, unit):
        h = jax.nn.relu(jax.nn.relu(x @ params[0]) @ params[1])
        return unit * jnp.mean(jnp.square(h @ params[2] - y))

    one, other = (explained(loss_fn, params, x, y, jnp.float32(unit)) for unit in (1.0, scale))
    for before, after in zip(one.blame, other.blame, strict=True):
        assert after[:2] == before[:2]
        assert after.log10_gain == pytest.approx(before.log10_gain, abs=1e-4)


@pytest.mark.heavy
def test_signal_below_the_range_of_float32_is_taken_apart(batch):
    params = [weight(i % 12) for i in range(70)]

    def loss_fn(params, x, y):
        for w in params[:-1]:
            x = jax.nn.sigmoid(x @ w)
        return jnp.mean(jnp.square(x @ params[-1] - y))

    report = explained(loss_fn, params, *batch)
    assert report.log10_total_gain < -38
    total = sum(part.log10_gain for part in report.blame)
    assert total == pytest.approx(report.log10_total_gain, rel=1e-3)
    assert sum(part.log10_gain for part in report.blame if part.source == "activation") < -38


def test_dead_end_is_marked_where_the_signal_ends(batch):
    x, y = batch
    params = [weight(0), weight(1), jnp.zeros((WIDTH, WIDTH)), jnp.zeros((WIDTH, WIDTH))]

    def loss_fn(params, x, y):
        h = jnp.tanh(jnp.tanh(x @ params[0]) @ params[1])
        return jnp.mean(jnp.square((h @ params[2]) @ params[3] - y))

    report = explained(loss_fn, params, x, y)
    parts = sources(report)
    assert parts[-1]["weights"] == -math.inf
    assert all(math.isfinite(value) for value in parts[0].values())


def test_report_without_blame_at_level_quick(batch):
    x, y = batch
    report = explained(lambda w, x, y: jnp.mean(jnp.square(x @ w - y)), weight(0), x, y, level="quick")
    assert report.blame == ()


def test_what_enters_inside_a_block_is_booked_too():
    keys = jax.random.split(jax.random.key(5), 3)
    params = [0.5 * jax.random.normal(key, (8, 8)) for key in keys]

    def loss_fn(params, x):
        code = jnp.tanh(x @ params[0]) @ params[1]
        inside = jnp.exp(0.3 * code)  # read by the loss past the block's end
        return jnp.mean(jnp.square(jnp.sin(inside) @ params[2] - x)) + 0.5 * jnp.mean(jnp.square(inside))

    report = jaxgrad.explain(loss_fn, params, jax.random.normal(keys[0], (16, 8)), verbose=False)
    for block in report.blocks:
        parts = sum(part.log10_gain for part in report.blame if part.block == block.index)
        assert parts == pytest.approx(block.log10_gain, abs=1e-5)
