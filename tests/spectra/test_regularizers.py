"""Penalties against their definitions written with dense Jacobians, their gradients, edges, and what they do."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import spectra

KEY = jax.random.key(0)


def gaussian(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def orthogonal(size, seed=0):
    return jnp.asarray(np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0])


def finite_differences(function, x, step=1e-6):
    gradient = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        shift = np.zeros(x.shape)
        shift[index] = step
        gradient[index] = (function(x + shift) - function(x - shift)) / (2 * step)
    return gradient


def assert_gradient(function, x):
    """The gradient is that of finite differences; returns the value."""
    both = jax.jit(jax.value_and_grad(function))
    value, gradient = both(x)
    np.testing.assert_allclose(gradient, finite_differences(lambda x: both(x)[0], x), rtol=1e-5, atol=1e-7)
    return value


def descend(penalty, params, rate, num_steps):
    """Plain gradient descent; the penalty before and after."""
    both = jax.jit(jax.value_and_grad(penalty))
    values = []
    for _ in range(num_steps):
        value, gradient = both(params)
        params = params - rate * gradient
        values.append(value)
    return values[0], values[-1]


# A recurrence of four steps, its loss, and the penalty as the paper has it.


def network(weight):
    return lambda carry, x: jnp.tanh(weight @ carry + x)


def loss_of(carries):
    return jnp.sum(jnp.sin(carries[-1])) + jnp.sum(jnp.square(carries[1]))


def vanishing(weight, start, xs, loss_fn=loss_of):
    return spectra.vanishing_gradient_penalty(network(weight), start, xs, loss_fn)


jitted_vanishing = jax.jit(vanishing, static_argnames="loss_fn")


def states_and_cotangents(weight, start, xs, loss_fn=loss_of):
    """The carries before each step, and the derivative of the loss with respect to each after it, one at a time."""
    step, carries = network(weight), [start]
    for x in xs:
        carries.append(step(carries[-1], x))

    def loss_from(index, carry):
        later = [*carries[1:index], carry]
        for x in xs[index:]:
            later.append(step(later[-1], x))
        return loss_fn(jnp.stack(later))

    cotangents = [jax.grad(functools.partial(loss_from, index))(carries[index]) for index in range(1, len(carries))]
    return carries[:-1], cotangents


def omega(weight, xs, carries, cotangents):
    """Equation 9, with the states and the derivatives of the loss given."""
    total = 0.0
    for carry, x, cotangent in zip(carries, xs, cotangents, strict=True):
        jacobian = jax.jacfwd(network(weight))(carry, x)
        total += (jnp.linalg.norm(cotangent @ jacobian) / jnp.linalg.norm(cotangent) - 1) ** 2
    return total


def test_vanishing_gradient_penalty_equals_its_definition(x64):
    weight, start, xs = gaussian(3, 3), gaussian(3, seed=1), gaussian(4, 3, seed=2)
    given = states_and_cotangents(weight, start, xs)
    value, gradient = jax.jit(jax.value_and_grad(vanishing))(weight, start, xs)
    np.testing.assert_allclose(value, omega(weight, xs, *given), rtol=1e-10)
    # The immediate derivative, equation 10: states and cotangents stay where they are.
    held = jax.jit(lambda weight: omega(weight, xs, *given))
    np.testing.assert_allclose(gradient, finite_differences(held, weight), rtol=1e-6, atol=1e-8)


def test_vanishing_gradient_penalty_of_a_tree_of_carries_and_a_scan_body():
    weight, start, xs = (value.astype(jnp.float32) for value in (gaussian(3, 3), gaussian(3), gaussian(4, 3)))

    def step(carry, x):
        after = network(weight)(jnp.concatenate([carry["a"], carry["b"][None]]), x)
        return {"a": after[:2], "b": after[2]}, after

    def loss_fn(carries):
        return loss_of(jnp.concatenate([carries["a"], carries["b"][:, None]], axis=1))

    carry = {"a": start[:2], "b": start[2]}
    got = jax.jit(lambda xs: spectra.vanishing_gradient_penalty(step, carry, xs, loss_fn))(xs)
    np.testing.assert_allclose(got, jitted_vanishing(weight, start, xs), rtol=1e-5)


@jax.jit
@jax.value_and_grad
def of_a_linear_recurrence(matrix, unit):
    return spectra.vanishing_gradient_penalty(
        lambda carry, _: matrix @ carry,
        jnp.ones(3, matrix.dtype),
        None,
        lambda carries: unit * carries[-1].sum(),
        num_steps=8,
    )


@pytest.mark.parametrize(("scale", "want"), [(1.0, 0.0), (0.5, 2.0), (2.0, 8.0), (0.0, 1.0)])
def test_vanishing_gradient_penalty_of_a_scaled_rotation(scale, want):
    """Each of 8 steps adds (scale - 1)², whatever the size of the loss; at 0 the gradient reaches the last one only."""
    matrix = scale * orthogonal(3).astype(jnp.float32)
    for unit in (1.0, 1e-30, 1e30):
        value, gradient = of_a_linear_recurrence(matrix, jnp.float32(unit))
        np.testing.assert_allclose(value, want, atol=1e-5)
        assert np.all(np.isfinite(gradient))


def test_a_loss_of_nothing_has_no_penalty():
    weight, start, xs = (value.astype(jnp.float32) for value in (gaussian(3, 3), gaussian(3), gaussian(4, 3)))
    for loss_fn in (lambda carries: jnp.zeros(()), lambda carries: 0 * carries.sum()):
        value, gradient = jax.value_and_grad(jitted_vanishing)(weight, start, xs, loss_fn)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


def test_parameters_of_the_loss_have_no_gradient():
    weight, start, xs = (value.astype(jnp.float32) for value in (gaussian(3, 3), gaussian(3), gaussian(4, 3)))
    penalty = lambda out: vanishing(weight, start, xs, lambda carries: carries[-1] @ out)  # noqa: E731
    np.testing.assert_array_equal(jax.jit(jax.grad(penalty))(jnp.arange(3, dtype=jnp.float32)), 0)


def test_vanishing_gradient_penalty_over_a_batch():
    weight, starts, xs = (value.astype(jnp.float32) for value in (gaussian(3, 3), gaussian(2, 3), gaussian(2, 4, 3)))
    got = jax.jit(jax.vmap(vanishing, in_axes=(None, 0, 0)))(weight, starts, xs)
    np.testing.assert_allclose(got[1], jitted_vanishing(weight, starts[1], xs[1]), rtol=1e-5)


@pytest.mark.heavy
def test_vanishing_gradient_penalty_of_a_flax_cell(third_party_model):
    linen = pytest.importorskip("flax.linen")
    cell, xs, carry = linen.LSTMCell(3), jnp.ones((5, 2)), (jnp.zeros(3), jnp.zeros(3))
    params = cell.init(KEY, carry, xs[0])

    @jax.jit
    @jax.value_and_grad
    def penalty(params):
        step = functools.partial(cell.apply, params)
        return spectra.vanishing_gradient_penalty(step, carry, xs, lambda carries: carries[1][-1].sum())

    value, gradient = penalty(params)
    assert value > 0
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
    assert any(np.any(leaf != 0) for leaf in leaves)


# Penalties of the Jacobian of a function.


def layer(weight):
    return lambda x: jnp.tanh(weight @ x)


@jax.jit
def exact_penalties(weight, x):
    jacobian = jax.jacfwd(layer(weight))(x)
    return (
        jacobian,
        spectra.jacobian_norm_penalty(KEY, layer(weight), x, num_probes=8),
        spectra.isometry_penalty(jacobian, gain=1.5),
        spectra.dynamical_isometry_penalty(KEY, layer(weight), x, num_probes=8, gain=1.5),
    )


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (1, 3), (3, 1)])
def test_exact_penalties_equal_their_definitions(shape, x64):
    jacobian, norm, dense, matrix_free = exact_penalties(gaussian(*shape), gaussian(shape[1], seed=1))
    values = np.linalg.svd(jacobian, compute_uv=False)
    np.testing.assert_allclose(norm, np.sum(values**2), rtol=1e-10)
    want = np.sum((values**2 - 1.5**2) ** 2)
    np.testing.assert_allclose([dense, matrix_free], [want, want], rtol=1e-10)


PROBED = [spectra.jacobian_norm_penalty, functools.partial(spectra.dynamical_isometry_penalty, gain=0.5)]


@pytest.mark.parametrize("penalty", PROBED, ids=["norm", "isometry"])
@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_probes_are_unbiased(penalty, shape):
    weight, x = gaussian(*shape).astype(jnp.float32), gaussian(shape[1], seed=1).astype(jnp.float32) / 4
    keys = jax.random.split(KEY, 4000)
    estimates = jax.jit(jax.vmap(lambda key: penalty(key, layer(weight), x, num_probes=2)))(keys)
    exact = penalty(KEY, layer(weight), x, num_probes=6)
    standard_error = np.std(estimates) / len(keys) ** 0.5
    assert abs(np.mean(estimates) - exact) < 4 * standard_error
    assert standard_error < 0.03 * exact


@pytest.mark.parametrize("penalty", PROBED, ids=["norm", "isometry"])
@pytest.mark.parametrize("num_probes", [1, 3])
def test_gradients_of_probed_penalties_equal_finite_differences(penalty, num_probes, x64):
    weight, x = gaussian(3, 4), gaussian(4, seed=1) / 4
    assert_gradient(lambda weight: penalty(KEY, layer(weight), x, num_probes=num_probes), weight)


def test_gradient_of_the_isometry_penalty(x64):
    weight = gaussian(2, 3)
    total = functools.partial(spectra.isometry_penalty, gain=0.7)
    assert_gradient(total, weight)
    want = 4 * (weight @ weight.T - 0.49 * np.eye(2)) @ weight
    np.testing.assert_allclose(jax.grad(total)(weight), want, rtol=1e-10)


def test_isometries_have_no_penalty():
    rotation = orthogonal(6).astype(jnp.float32)

    @jax.jit
    @jax.grad
    def gradient(matrix):
        free = spectra.dynamical_isometry_penalty(KEY, lambda x: matrix @ x, jnp.ones_like(matrix[0]))
        return spectra.isometry_penalty(matrix) + free

    for matrix in (rotation, rotation[:4], rotation[:, :4]):
        np.testing.assert_allclose(spectra.isometry_penalty(3 * matrix, gain=3.0), 0, atol=1e-8)
        np.testing.assert_allclose(gradient(matrix), 0, atol=1e-5)
    # All probes see the same where J J^T is a multiple of the identity.
    got = jax.jit(lambda x: spectra.jacobian_norm_penalty(KEY, lambda x: 2 * rotation[:4] @ x, x))(rotation[0])
    np.testing.assert_allclose(got, 16, rtol=1e-5)


def test_zero_jacobians():
    zeros = jnp.zeros((3, 2))
    assert spectra.isometry_penalty(zeros, gain=2.0) == 32
    np.testing.assert_array_equal(jax.grad(spectra.isometry_penalty)(zeros), 0)
    for penalty, want in zip(PROBED, (0, 2 * 0.5**4), strict=True):
        of_a_matrix = lambda weight, penalty=penalty: penalty(KEY, lambda x: weight @ x, jnp.ones(2))  # noqa: E731
        value, gradient = jax.jit(jax.value_and_grad(of_a_matrix))(zeros)
        np.testing.assert_allclose(value, want)
        np.testing.assert_array_equal(gradient, 0)
        assert penalty(KEY, lambda x: x[:0], jnp.ones(2)) == 0
        assert penalty(KEY, lambda x: jnp.zeros(3), jnp.ones(0)) == 0


def test_isometry_penalty_of_batches_and_low_precision():
    batch = gaussian(2, 3, 4, 5).astype(jnp.bfloat16)
    got = spectra.isometry_penalty(batch)
    assert got.shape == (2, 3)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, jax.vmap(jax.vmap(spectra.isometry_penalty))(batch), rtol=1e-5)
    np.testing.assert_allclose(got[1, 2], spectra.isometry_penalty(batch[1, 2].T), rtol=1e-5)


@pytest.mark.heavy
def test_trees_and_a_batch():
    def f(x):
        return {"u": x["a"] @ x["b"], "v": jnp.tanh(x["b"])}

    @jax.jit
    def penalties(x):
        jacobian = spectra.layer_jacobian(f, x)
        got = [penalty(KEY, f, x, num_probes=5) for penalty in PROBED]
        return got, [jnp.sum(jnp.square(jacobian)), spectra.isometry_penalty(jacobian, gain=0.5)]

    x = {"a": gaussian(2, 3).astype(jnp.float32), "b": gaussian(3).astype(jnp.float32)}
    np.testing.assert_allclose(*penalties(x), rtol=1e-5)
    keys, xs = jax.random.split(KEY, 2), jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), x)
    for penalty in PROBED:
        single = jax.jit(lambda key, x, penalty=penalty: penalty(key, f, x))
        together = jax.vmap(single)(keys, xs)
        np.testing.assert_allclose(together[1], single(keys[1], x), rtol=1e-5)
        assert together[0] != together[1]


# Flossing.


def flossing(weight, **options):
    start, xs = gaussian(3, seed=2).astype(weight.dtype), gaussian(12, 3, seed=3).astype(weight.dtype)
    return spectra.gradient_flossing(network(weight), start, xs, **options)


@pytest.mark.heavy
def test_gradient_flossing_equals_its_definition_and_finite_differences(x64):
    weight = gaussian(3, 3)
    options = {"num_exponents": 2, "num_warmup": 2, "target": -0.1}
    value = assert_gradient(functools.partial(flossing, **options), weight)
    start, xs = gaussian(3, seed=2), gaussian(12, 3, seed=3)
    result = spectra.lyapunov_exponents(network(weight), start, xs, num_exponents=2, num_warmup=2)
    np.testing.assert_allclose(value, np.mean((np.asarray(result.exponents) + 0.1) ** 2), rtol=1e-10)


def test_a_dead_direction_adds_nothing_to_flossing():
    matrix = jnp.diag(jnp.array([2.0, 0.5, 0.0]))

    @jax.jit
    @jax.value_and_grad
    def penalty(matrix):
        step = lambda carry, _: matrix @ carry  # noqa: E731
        return spectra.gradient_flossing(step, jnp.zeros(3), target=0.5, num_steps=60, num_warmup=30)

    value, gradient = penalty(matrix)
    distances = np.log([2, 0.5]) - 0.5
    np.testing.assert_allclose(value, np.sum(distances**2) / 3, rtol=1e-5)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(np.diag(gradient)[:2], 2 / 3 * distances / [2, 0.5], rtol=1e-4)


# What they are for.


def test_descent_on_flossing_pulls_the_exponents_to_zero():
    weight = 0.3 * gaussian(3, 3).astype(jnp.float32)
    before, after = descend(flossing, weight, rate=0.03, num_steps=40)
    assert after < before / 4


def test_descent_on_the_vanishing_gradient_penalty_keeps_the_gradient_alive():
    weight, start, xs = (value.astype(jnp.float32) for value in (gaussian(3, 3), gaussian(3), gaussian(12, 3)))
    last = lambda carries: carries[-1].sum()  # noqa: E731
    before, after = descend(lambda weight: vanishing(weight, start, xs / 4, last), 0.3 * weight, 0.05, 40)
    assert after < before / 4


@pytest.mark.parametrize("penalty", PROBED, ids=["norm", "isometry"])
def test_descent_on_one_probe_a_step_lowers_the_exact_penalty(penalty):
    x = gaussian(4, seed=1).astype(jnp.float32) / 4

    def probed(weight, key):
        return penalty(key, layer(weight), x)

    weight = gaussian(4, 4).astype(jnp.float32) / 2
    exact = jax.jit(lambda weight: penalty(KEY, layer(weight), x, num_probes=4))
    update = jax.jit(lambda weight, key: weight - 0.02 * jax.grad(probed)(weight, key))
    after = weight
    for key in jax.random.split(KEY, 100):
        after = update(after, key)
    assert exact(after) < exact(weight) / 4


def test_descent_on_the_isometry_penalty_makes_a_matrix_orthogonal():
    weight = gaussian(4, 6).astype(jnp.float32) / 2
    _, after = descend(spectra.isometry_penalty, weight, rate=0.02, num_steps=100)
    assert after < 1e-4


STEP, START, LAST = network(jnp.eye(2)), jnp.zeros(2), lambda carries: carries[-1].sum()
BAD = [
    (lambda: spectra.vanishing_gradient_penalty(STEP, START, None, LAST), ValueError, "vanishing_.*num_steps"),
    (
        lambda: spectra.vanishing_gradient_penalty(STEP, START, jnp.zeros((4, 2)), lambda carries: carries[-1]),
        ValueError,
        r"to a real scalar; got float[0-9]+\[2\]",
    ),
    (
        lambda: spectra.vanishing_gradient_penalty(STEP, jnp.zeros(2, jnp.int32), jnp.zeros((4, 2)), LAST),
        TypeError,
        "vanishing_gradient_penalty: expected real floating leaves in carry",
    ),
    (lambda: spectra.jacobian_norm_penalty(KEY, jnp.tanh, START, num_probes=0), ValueError, "num_probes of at least 1"),
    (lambda: spectra.jacobian_norm_penalty(KEY, jnp.argmax, START), TypeError, "jacobian_norm_penalty.*real floating"),
    (lambda: spectra.dynamical_isometry_penalty(KEY, jnp.tanh, START, num_probes=0), ValueError, "num_probes"),
    (lambda: spectra.dynamical_isometry_penalty(KEY, jnp.tanh, START, gain=-1.0), ValueError, "gain in"),
    (lambda: spectra.isometry_penalty(START), ValueError, "isometry_penalty: .*shape"),
    (lambda: spectra.isometry_penalty(jnp.eye(2, dtype=jnp.int32)), TypeError, "isometry_penalty: .*floating"),
    (lambda: spectra.isometry_penalty(jnp.eye(2), gain=-1.0), ValueError, "gain in"),
    (lambda: spectra.gradient_flossing(STEP, START), ValueError, "gradient_flossing: .*num_steps"),
    (lambda: spectra.gradient_flossing(STEP, START, jnp.zeros((4, 2)), num_exponents=3), ValueError, "from 1 to 2"),
    (lambda: spectra.gradient_flossing(STEP, START, jnp.zeros((4, 2)), target="zero"), TypeError, "target in"),
]


@pytest.mark.parametrize(("call", "error", "match"), BAD, ids=lambda value: None)
def test_refuse(call, error, match, unchecked):
    with pytest.raises(error, match=match):
        call()
