"""Exponents of systems with known ones, of networks against float64, of maps that lose directions, and bad input."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxgrad import spectra


def henon(state, _):
    x, y = state
    return jnp.stack([1 - 1.4 * x**2 + y, 0.3 * x])


def lorenz(state, _, dt=0.01):
    """One Runge-Kutta step; with the y that a scan wants."""

    def velocity(state):
        x, y, z = state
        return jnp.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z])

    first = velocity(state)
    second = velocity(state + dt / 2 * first)
    third = velocity(state + dt / 2 * second)
    fourth = velocity(state + dt * third)
    after = state + dt / 6 * (first + 2 * second + 2 * third + fourth)
    return after, after[0]


def multiply(carry, factor):
    return factor @ carry


@functools.partial(jax.jit, static_argnames=("steps_per_qr", "num_exponents", "num_warmup"))
def of_products(factors, **options):
    return spectra.lyapunov_exponents(multiply, jnp.zeros(factors.shape[-1], factors.dtype), factors, **options)


def of_powers(matrix, **options):
    """The exponents of a linear map, 50 of whose 150 steps do not count."""
    return of_products(jnp.tile(jnp.asarray(matrix, jnp.float32), (150, 1, 1)), num_warmup=50, **options)


def gaussian(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def numpy_exponents(jacobians, num_warmup):
    """Benettin's method in double precision from a frame of its own."""
    size = jacobians.shape[1]
    frame, _ = np.linalg.qr(np.random.default_rng(7).standard_normal((size, size)))
    growth = []
    for jacobian in jacobians:
        frame, r = np.linalg.qr(jacobian @ frame)
        growth.append(np.log(np.abs(np.diag(r))))
    return np.sort(np.mean(growth[num_warmup:], axis=0))[::-1]


def dense_jacobians(step, carry, xs):
    """The Jacobian of each step of a trajectory, of the carry flattened."""
    flat, restore = ravel_pytree(carry)

    @jax.jit
    def advance(flat, x):
        return ravel_pytree(step(restore(flat), x)[0])[0]

    derivative, jacobians = jax.jit(jax.jacfwd(advance)), []
    for x in xs:
        jacobians.append(np.asarray(derivative(flat, x), np.float64))
        flat = advance(flat, x)
    return np.stack(jacobians)


def test_henon():
    run = jax.jit(lambda carry: spectra.lyapunov_exponents(henon, carry, num_steps=20_200, num_warmup=200))
    result = run(jnp.array([0.1, 0.1]))
    want = np.array([0.41922, -1.62319])
    error = np.abs(result.exponents - want)
    assert np.all(error < 2 * result.standard_error)
    assert np.all(error < 5e-3)
    assert np.all(np.abs(result.drift) < 3 * result.standard_error)
    np.testing.assert_allclose(result.exponents.sum(), np.log(0.3), atol=1e-5)


def test_lorenz():
    run = jax.jit(
        lambda carry: spectra.lyapunov_exponents(lorenz, carry, num_steps=42_000, num_warmup=2_000, steps_per_qr=4)
    )
    result = run(jnp.ones(3))
    exponents, standard_error = np.asarray(result.exponents) / 0.01, np.asarray(result.standard_error) / 0.01
    np.testing.assert_allclose(exponents, [0.9056, 0, -14.5723], atol=0.04)
    assert np.all(np.abs(exponents - [0.9056, 0, -14.5723]) < 3 * standard_error)
    np.testing.assert_allclose(exponents.sum(), -(10 + 1 + 8 / 3), rtol=1e-4)


ROTATION, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))
MATRICES = {
    "diagonal, out of order": (np.diag([0.5, 2.0, 1.0]), [2.0, 1.0, 0.5]),
    "triangular": (np.array([[0.5, 1.0, 2.0], [0.0, 2.0, 1.0], [0.0, 0.0, 1.2]]), [2.0, 1.2, 0.5]),
    "block triangular": (np.array([[0.5, 0.0, 0.0], [1.0, 2.0, 1.0], [3.0, 0.0, 1.2]]), [2.0, 1.2, 0.5]),
    "rotation": (
        1.1 * np.array([[np.cos(1), -np.sin(1), 0], [np.sin(1), np.cos(1), 0], [0, 0, 0.5]]),
        [1.1, 1.1, 0.55],
    ),
    "contraction": (1e-6 * np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.5]]), [2e-6, 1e-6, 5e-7]),
    "normal": (ROTATION @ np.diag([0.5, 2.0, -1.0]) @ ROTATION.T, [2.0, 1.0, 0.5]),
}


@pytest.mark.parametrize(("matrix", "moduli"), MATRICES.values(), ids=MATRICES)
def test_a_linear_map_has_the_moduli_of_its_eigenvalues(matrix, moduli):
    for result in (of_powers(matrix), of_powers(matrix, steps_per_qr=4)):
        np.testing.assert_allclose(result.exponents, np.log(moduli), atol=1e-5)
        np.testing.assert_allclose(result.standard_error, 0, atol=1e-5)
        np.testing.assert_allclose(result.drift, 0, atol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("steps_per_qr", [1, 3])
def test_random_products_equal_product_spectrum(steps_per_qr):
    factors = gaussian(1000, 3, 3).astype(jnp.float32)
    result = of_products(factors, steps_per_qr=steps_per_qr)
    want = np.asarray(spectra.product_spectrum(factors), np.float64) * np.log(10) / 1000
    np.testing.assert_allclose(result.exponents, want, atol=4e-3)  # the frame turns: order 1 / T
    np.testing.assert_allclose(result.exponents.sum(), want.sum(), atol=1e-5)
    assert np.all(np.diff(result.exponents) < 0)


def test_the_standard_error_is_that_of_many_trajectories():
    """200 products of independent factors, whose growth is a random walk."""
    factors = gaussian(200, 400, 2, 2).astype(jnp.float32)
    result = jax.vmap(of_products)(factors)
    np.testing.assert_allclose(result.standard_error.mean(axis=0), np.std(result.exponents, axis=0), rtol=0.2)


def test_tanh_network_equals_dense_jacobians(x64):
    weight, xs, start = gaussian(6, 6) * 0.6, gaussian(400, 6, seed=1), gaussian(6, seed=2)

    def step(carry, x):
        after = jnp.tanh(weight @ carry + x)
        return after, after

    want = numpy_exponents(dense_jacobians(step, start, xs), num_warmup=200)
    got = jax.jit(lambda xs: spectra.lyapunov_exponents(step, start, xs, num_warmup=200))(xs)
    np.testing.assert_allclose(got.exponents, want, atol=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_flax_cells_equal_dense_jacobians(name, third_party_model):
    linen = pytest.importorskip("flax.linen")
    cell = getattr(linen, name)(4)
    xs = gaussian(240, 3, seed=1).astype(jnp.float32)
    carry = cell.initialize_carry(jax.random.key(0), (3,))
    params = cell.init(jax.random.key(1), carry, xs[0])
    step = lambda carry, x: cell.apply(params, carry, x)  # noqa: E731
    got = jax.jit(lambda xs: spectra.lyapunov_exponents(step, carry, xs, num_warmup=120))(xs)
    want = numpy_exponents(dense_jacobians(step, carry, xs), num_warmup=120)
    assert got.exponents.shape == ({"LSTMCell": 8, "GRUCell": 4}[name],)
    # A frame that is still turning when the warm-up ends, where exponents lie close, costs a little.
    np.testing.assert_allclose(got.exponents, want, atol=5e-3)
    np.testing.assert_allclose(got.exponents.sum(), want.sum(), atol=1e-3)


def test_a_strongly_contracting_network():
    """The derivative of a sigmoid is at most a quarter: growth over 2000 steps leaves floating point at once."""
    weight = gaussian(8, 8).astype(jnp.float32) / 8**0.5
    step = lambda carry, _: jax.nn.sigmoid(weight @ carry)  # noqa: E731
    result = spectra.lyapunov_exponents(step, jnp.zeros(8, jnp.float32), num_steps=2000, num_warmup=500)
    exact, fixed = np.float64(weight), np.zeros(8)
    for _ in range(100):
        fixed = 1 / (1 + np.exp(-exact @ fixed))
    jacobian = (fixed * (1 - fixed))[:, None] * exact
    want = np.sort(np.log(np.abs(np.linalg.eigvals(jacobian))))[::-1]
    np.testing.assert_allclose(result.exponents, want, atol=2e-3)
    assert result.exponents[0] < -1


def test_fewer_exponents_are_the_leading_ones():
    factors = gaussian(150, 3, 3).astype(jnp.float32)
    every = of_products(factors, num_warmup=50)
    leading = of_products(factors, num_warmup=50, num_exponents=2)
    np.testing.assert_allclose(leading.exponents, every.exponents[:2], atol=1e-4)
    np.testing.assert_allclose(leading.standard_error, every.standard_error[:2], atol=1e-4)


KILLED = {
    "an axis": (np.diag([0.5, 0.0, 2.0]), [2.0, 0.5]),
    "every axis": (np.zeros((3, 3)), []),
    "a direction of none": (np.array([[1.0, 0, 1], [0, 1, 1], [1, 0, 1]]), [2.0, 1.0]),
    "one after another": (np.array([[0.0, 1, 0], [0, 0, 1], [0, 0, 0]]), []),
    "columns alike": (np.ones((3, 3)), [3.0]),
}


@pytest.mark.parametrize(("matrix", "moduli"), KILLED.values(), ids=KILLED)
def test_a_direction_mapped_to_zero_has_minus_infinity(matrix, moduli):
    result = of_powers(matrix)
    want = np.full(3, -np.inf)
    want[: len(moduli)] = np.log(moduli)
    np.testing.assert_allclose(result.exponents, want, atol=1e-5)
    np.testing.assert_allclose(result.standard_error, 0, atol=1e-5)
    np.testing.assert_allclose(result.drift, 0, atol=1e-5)


def test_a_direction_that_dies_late_takes_no_other_with_it():
    """The frame has turned to the axes, exactly, when the second goes, and the third takes its place."""
    factors = np.tile(np.diag([4.0, 1.0, 1 / 4]), (150, 1, 1))
    factors[120] = [[4, 0, 0], [0, 0, 1 / 4], [0, 0, 0]]
    result = of_products(jnp.asarray(factors, jnp.float32), num_warmup=50)
    np.testing.assert_allclose(result.exponents, [np.log(4), -0.71 * np.log(4), -np.inf], atol=1e-4)


def test_a_direction_that_dies_in_the_warmup_is_replaced():
    factors = np.tile(np.diag([2.0, 1.0, 0.5]), (150, 1, 1))
    factors[3] = np.diag([1.0, 0.0, 0.0])
    result = of_products(jnp.asarray(factors, jnp.float32), num_warmup=50)
    np.testing.assert_allclose(result.exponents, np.log([2, 1, 0.5]), atol=1e-5)


def test_a_trajectory_that_is_not_finite_has_none():
    logistic = lambda x, _: 4.5 * x * (1 - x)  # noqa: E731
    assert np.all(np.isnan(spectra.lyapunov_exponents(logistic, jnp.array([0.3]), num_steps=200).exponents))
    factors = gaussian(150, 3, 3).astype(jnp.float32)
    for bad in (jnp.nan, jnp.inf):
        assert np.all(np.isnan(of_products(factors.at[60, 0, 1].set(bad), num_warmup=50).exponents))
    # The Jacobian does not notice.
    assert np.all(np.isnan(spectra.lyapunov_exponents(lambda x, _: 2 * x, jnp.array([jnp.nan]), num_steps=9).exponents))


def test_few_steps():
    for num_steps in (1, 2, 3):
        result = spectra.lyapunov_exponents(lambda x, _: 2 * x, jnp.ones(2), num_steps=num_steps, steps_per_qr=2)
        np.testing.assert_allclose(result.exponents, np.log([2, 2]), atol=1e-6)
        assert np.all(result.standard_error == np.inf)
        np.testing.assert_allclose(result.drift, 0, atol=1e-6)


def test_trees_of_carries_and_inputs_and_low_precision():
    def step(carry, x):
        return {"a": 2 * carry["a"] + x["u"][0], "b": (carry["b"] / 2).astype(jnp.bfloat16)}, None

    carry = {"a": jnp.zeros((2, 1), jnp.float32), "b": jnp.zeros((), jnp.bfloat16)}
    xs = {"u": jnp.zeros((90, 1, 2, 1), jnp.float32), "unused": jnp.arange(90)}
    result = spectra.lyapunov_exponents(step, carry, xs, num_warmup=40)
    assert result.exponents.dtype == jnp.float32
    np.testing.assert_allclose(result.exponents, np.log([2, 2, 0.5]), atol=2e-3)


def test_a_custom_vjp_step():
    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, cotangent: (2 * cotangent,))
    result = jax.jit(lambda x: spectra.lyapunov_exponents(lambda x, _: double(x), x, num_steps=8))(jnp.zeros(2))
    np.testing.assert_allclose(result.exponents, np.log([2, 2]), atol=1e-6)


def test_vmap_equals_a_loop():
    factors = gaussian(3, 40, 3, 3).astype(jnp.float32)
    factors = factors.at[1, :, 0].set(0)  # one trajectory loses a direction
    run = functools.partial(of_products, steps_per_qr=2)
    together = jax.vmap(run)(factors)
    for index in range(3):
        for got, want in zip(together, run(factors[index]), strict=True):
            np.testing.assert_allclose(got[index], want, atol=1e-5)


def small_network(weight, num_exponents=3, steps_per_qr=1, **options):
    start, xs = gaussian(3, seed=2), gaussian(12, 3, seed=3)
    step = lambda carry, x: jnp.tanh(weight @ carry + x)  # noqa: E731
    return spectra.lyapunov_exponents(
        step, start, xs, num_exponents=num_exponents, steps_per_qr=steps_per_qr, **options
    ).exponents


@pytest.mark.heavy
@pytest.mark.parametrize("options", [{}, {"num_exponents": 2, "steps_per_qr": 2, "num_warmup": 3}], ids=str)
def test_gradient_equals_finite_differences(options, x64):
    weight, coefficients = gaussian(3, 3), jnp.arange(1.0, 1 + options.get("num_exponents", 3))
    both = jax.jit(jax.value_and_grad(lambda weight: small_network(weight, **options) @ coefficients))
    _, gradient = both(weight)
    for index in np.ndindex(3, 3):
        step = np.zeros((3, 3))
        step[index] = 1e-6
        want = (both(weight + step)[0] - both(weight - step)[0]) / 2e-6
        np.testing.assert_allclose(gradient[index], want, rtol=1e-5, atol=1e-7)


@jax.jit
@jax.grad
def gradient_of_powers(matrix):
    exponents = of_products(jnp.broadcast_to(matrix, (4, 3, 3))).exponents
    return jnp.sum(jnp.where(jnp.isfinite(exponents), exponents, 0))


@pytest.mark.parametrize("matrix", [*(m for m, _ in KILLED.values()), np.eye(3), np.diag([2.0, 1.0, 1.0])])
def test_gradients_are_finite_where_directions_die_or_exponents_meet(matrix):
    assert np.all(np.isfinite(gradient_of_powers(jnp.asarray(matrix, jnp.float32))))


BAD = [
    ((henon, jnp.zeros(2)), {}, ValueError, "inputs xs, or num_steps without them"),
    ((multiply, jnp.zeros(2), jnp.zeros((5, 2, 2))), {"num_steps": 4}, ValueError, "got 4 and 5"),
    ((henon, jnp.zeros(2), (jnp.zeros(4), jnp.zeros(5))), {}, ValueError, "one common length"),
    ((henon, jnp.zeros(2), jnp.zeros(())), {}, ValueError, "one common length"),
    ((henon, jnp.zeros(2), jnp.zeros((0, 3))), {}, ValueError, "one common length"),
    (
        (henon, jnp.zeros(2, jnp.int32)),
        {"num_steps": 4},
        TypeError,
        "real floating leaves in carry; got carry of int32",
    ),
    ((henon, {"h": jnp.zeros(2, complex)}), {"num_steps": 4}, TypeError, r"carry\['h'\] of complex"),
    ((henon, ()), {"num_steps": 4}, ValueError, "a carry with numbers in it"),
    ((jnp.zeros(2), henon), {"num_steps": 4}, TypeError, "step, a function of"),
    ((henon, jnp.zeros(2)), {"num_steps": 0}, ValueError, "num_steps of at least 1"),
    ((henon, jnp.zeros(2)), {"num_steps": 4.0}, TypeError, "an integer num_steps"),
    ((henon, jnp.zeros(2)), {"num_steps": 4, "num_warmup": 4}, ValueError, "num_warmup from 0 to 3"),
    ((henon, jnp.zeros(2)), {"num_steps": 4, "num_warmup": -1}, ValueError, "num_warmup from 0 to 3"),
    ((henon, jnp.zeros(2)), {"num_steps": 4, "num_exponents": 3}, ValueError, "num_exponents from 1 to 2"),
    ((henon, jnp.zeros(2)), {"num_steps": 4, "num_exponents": 0}, ValueError, "num_exponents from 1 to 2"),
    ((henon, jnp.zeros(2)), {"num_steps": 4, "steps_per_qr": 0}, ValueError, "steps_per_qr of at least 1"),
    ((lambda c, x: c[:1], jnp.zeros(2)), {"num_steps": 4}, TypeError, r"alone, float[0-9]+\[2\]; got float[0-9]+\[1\]"),
    ((lambda c, x: (c[:1], c), jnp.zeros(2)), {"num_steps": 4}, ValueError, r"got float[0-9]+\[1\] as the carry"),
    ((lambda c, x: c.astype(jnp.float16), jnp.zeros(2)), {"num_steps": 4}, TypeError, "dtype of the carry"),
]


@pytest.mark.parametrize(("arguments", "options", "error", "match"), BAD, ids=lambda value: None)
def test_refuses(arguments, options, error, match, unchecked):
    with pytest.raises(error, match=match):
        spectra.lyapunov_exponents(*arguments, **options)
