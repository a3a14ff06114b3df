"""The line search: what it promises of a step, and what it does where there is none."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import optimizers

FUNCTIONS = {
    "quadratic": lambda x: 3 * (x - 2.0) ** 2,
    "quartic": lambda x: (x - 1.0) ** 4 + 0.1 * x,
    "far": lambda x: jnp.sqrt(1 + (x / 50 - 3) ** 2),
    "near": lambda x: jnp.cosh(30 * (x - 0.1)),
    "wavy": lambda x: -x / (1 + 0.01 * x**2) + 0.3 * jnp.sin(5 * x),
    "logarithm": lambda x: -x - 0.5 * jnp.log(4 - x),
}


def search(f, x, direction, **options):
    link = optimizers.scale_by_wolfe_linesearch(**options)
    value, grad = jax.value_and_grad(f)(x)
    return jax.jit(lambda d, x: link.update(d, link.init(x), x, value=value, grad=grad, value_fn=f))(direction, x)


@pytest.mark.parametrize(("curvature", "strong"), [(0.1, True), (0.9, False)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_step_satisfies_the_conditions_of_wolfe(name, curvature, strong, x64):
    f, x = FUNCTIONS[name], jnp.asarray(0.0, jnp.float64)
    slope = jax.grad(f)(x)
    step, state = search(f, x, -jnp.sign(slope), curvature=curvature, strong=strong)
    along = jnp.sign(-slope) * slope
    assert state.learning_rate > 0
    assert f(x + step) <= f(x) + 1e-4 * state.learning_rate * along
    new_slope = jnp.sign(-slope) * jax.grad(f)(x + step)
    assert new_slope >= curvature * along
    if strong:
        assert new_slope <= -curvature * along
    np.testing.assert_allclose([state.value, state.grad], [f(x + step), jax.grad(f)(x + step)], rtol=1e-12)
    assert (state.info.decrease_error, state.info.curvature_error) == (0, 0)


def test_values_that_differ_by_rounding_are_compared_by_their_slopes():
    """Where the value at the minimum comes out higher by chance, the plain condition holds nowhere."""
    f = jax.custom_jvp(lambda x: 1.00001e4 + 0 * x)
    f.defjvp(lambda primals, tangents: (f(*primals), 2 * primals[0] * tangents[0]))
    link, x = optimizers.scale_by_wolfe_linesearch(), jnp.asarray(1e-3, jnp.float32)
    _, state = link.update(-x, link.init(x), x, value=jnp.asarray(1e4, jnp.float32), grad=2 * x, value_fn=f)
    assert state.value > 1e4
    assert (state.info.decrease_error, state.learning_rate, state.grad) == (0, 1, 0)


def test_a_higher_value_is_no_step_where_the_slope_is_not_better():
    f = jax.custom_jvp(lambda x: 1 + 1e-7 * x)
    f.defjvp(lambda primals, tangents: (f(*primals), -1e-3 * tangents[0]))
    step, state = search(f, jnp.asarray(1.0), jnp.asarray(1.0))
    assert (step, state.info.decrease_error) == (0, jnp.inf)
    assert state.value == f(jnp.asarray(1.0))


@pytest.mark.parametrize("edge", [jnp.nan, jnp.inf])
def test_a_probe_that_is_not_finite_is_refused(edge):
    f = lambda x: jnp.where(x < 0.02, (x - 0.01) ** 2, edge)  # noqa: E731
    step, state = search(f, jnp.asarray(0.0), jnp.asarray(1.0))
    assert 0 < step < 0.02
    assert jnp.isfinite(state.value)


@pytest.mark.parametrize(
    ("f", "direction"),
    [(lambda x: x**2, 1.0), (lambda x: x**2, 0.0), (lambda x: jnp.sqrt(x - 1), -1.0), (lambda x: jnp.nan * x, -1.0)],
)
def test_without_descent_the_step_is_zero(f, direction):
    step, state = search(f, jnp.asarray(1.0), jnp.asarray(direction))
    assert (step, state.learning_rate, state.info.decrease_error) == (0, 0, jnp.inf)


def test_a_function_without_a_minimum_takes_the_probes_it_may():
    _, state = search(lambda x: -x, jnp.asarray(0.0), jnp.asarray(1.0), max_linesearch_steps=7)
    assert state.info.num_linesearch_steps == 7
    assert state.learning_rate > 1


def test_the_first_probe_is_that_of_a_parabola_with_the_last_decrease():
    link = optimizers.scale_by_wolfe_linesearch(1, initial_guess="decrease")
    f, x = lambda x: -3 * x, jnp.asarray(0.0)
    state = link.init(x)._replace(decrease=jnp.asarray(6.0))
    step, state = link.update(jnp.asarray(1.0), state, x, value=f(x), grad=jnp.asarray(-3.0), value_fn=f)
    np.testing.assert_allclose(step, 1.01 * 2 * 6 / 3, rtol=1e-6)
    assert state.info.num_linesearch_steps == 1


def test_searches_of_a_batch_equal_single_ones():
    f = FUNCTIONS["wavy"]
    link = optimizers.scale_by_wolfe_linesearch()

    def one(x):
        value, grad = jax.value_and_grad(f)(x)
        return link.update(-grad, link.init(x), x, value=value, grad=grad, value_fn=f)[1]

    starts = jnp.linspace(-3, 3, 7)
    batch = jax.jit(jax.vmap(one))(starts)
    single = [jax.jit(one)(x) for x in starts]
    np.testing.assert_allclose(batch.learning_rate, [state.learning_rate for state in single], rtol=1e-5)
    np.testing.assert_array_equal(
        batch.info.num_linesearch_steps, [state.info.num_linesearch_steps for state in single]
    )


def test_a_search_is_found_by_optax():
    link = optimizers.scale_by_wolfe_linesearch()
    optimizer = optax.chain(optax.scale(-1.0), link)
    f, x = lambda x: jnp.sum((x - 3) ** 2), jnp.zeros(2)
    state = optimizer.init(x)
    value_and_grad = optax.value_and_grad_from_state(f)
    for _ in range(3):
        value, grad = value_and_grad(x, state=state)
        updates, state = optimizer.update(grad, state, x, value=value, grad=grad, value_fn=f)
        x = optax.apply_updates(x, updates)
    np.testing.assert_allclose(x, 3, rtol=1e-5)


def test_settings_are_refused(unchecked):
    for options, match in [
        ({"decrease": 0.0}, "decrease between 0 and 1"),
        ({"curvature": 1.0}, "curvature between 0 and 1"),
        ({"decrease": 0.5, "curvature": 0.4}, "decrease below curvature"),
        ({"max_linesearch_steps": 0}, "at least 1"),
        ({"initial_guess": "two"}, "initial_guess 'one' or 'decrease'"),
    ]:
        with pytest.raises(ValueError, match=match):
            optimizers.scale_by_wolfe_linesearch(**options)
    link = optimizers.scale_by_wolfe_linesearch()
    with pytest.raises(ValueError, match="value_fn="):
        link.update(jnp.ones(2), link.init(jnp.ones(2)), jnp.ones(2))
