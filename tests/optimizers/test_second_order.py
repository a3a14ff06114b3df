"""BFGS, nonlinear conjugate gradients and Newton: their formulas against numpy, and what they keep of a quadratic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import clipping, optimizers
from jaxgrad.optimizers._bfgs import bfgs_update

METHODS = ["polak-ribiere+", "fletcher-reeves", "hestenes-stiefel", "dai-yuan", "hager-zhang"]
SIZE = 4


def matrix(*eigenvalues, seed=0):
    basis, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(eigenvalues),) * 2))
    return basis @ np.diag(eigenvalues) @ basis.T


def vectors(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, SIZE))


def exact_run(link, hessian, num_steps):
    """Minimize a quadratic with exact steps along what a link returns, and keep the directions."""
    x, state, directions = jnp.ones(SIZE), link.init(jnp.ones(SIZE)), []
    for _ in range(num_steps):
        grad = hessian @ x
        direction, state = link.update(grad, state, x)
        step = jnp.sum(grad * direction) / jnp.sum(direction * (hessian @ direction))
        x, directions = x - step * direction, [*directions, direction]
    return x, state, np.stack(directions)


def test_bfgs_update_is_the_formula_and_satisfies_the_secant_equation(x64):
    s, y, _ = vectors(3)
    y = y if s @ y > 0 else -y
    inverse, rho = matrix(1.0, 2.0, 3.0, 4.0), 1 / (s @ y)
    left = np.eye(SIZE) - rho * np.outer(s, y)
    want = left @ inverse @ left.T + rho * np.outer(s, s)
    got = bfgs_update(jnp.asarray(inverse), jnp.asarray(s), jnp.asarray(y))
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_allclose(got @ y, s, rtol=1e-12)
    assert np.linalg.eigvalsh(got)[0] > 0


def test_bfgs_knows_a_quadratic_after_as_many_exact_steps_as_dimensions(x64):
    hessian = jnp.asarray(matrix(1.0, 2.0, 5.0, 20.0))
    link = optimizers.scale_by_bfgs(self_scaling=False)
    x, state, _ = exact_run(link, hessian, SIZE)
    np.testing.assert_allclose(x, 0, atol=1e-9)
    _, state = link.update(hessian @ x, state, x)
    np.testing.assert_allclose(state.inverse_hessian, np.linalg.inv(hessian), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("update", ["cautious", "damped"])
def test_bfgs_stays_positive_definite_where_the_function_curves_down(update, x64):
    link = optimizers.scale_by_bfgs(update)
    f = lambda x: jnp.sum(jnp.cos(x) + 0.1 * x**2)  # noqa: E731
    x = jnp.array([0.1, -0.2, 2.0, 0.0])
    state = link.init(x)
    for _ in range(8):
        grad = jax.grad(f)(x)
        direction, state = link.update(grad, state, x)
        assert np.linalg.eigvalsh(state.inverse_hessian)[0] > 0
        assert direction @ grad > 0
        x = x - 0.3 * direction


def test_bfgs_starts_anew_after_a_failed_line_search_and_learns_nothing_of_nan():
    link, x = optimizers.scale_by_bfgs(), jnp.array([1.0, 2.0])
    _, state = link.update(2 * x, link.init(x), x)
    _, learned = link.update(x, state, x / 2)
    assert learned.count == 2
    direction, again = link.update(x, learned, x / 2)
    assert again.count == 1
    np.testing.assert_allclose(direction, x / np.sqrt(5), rtol=1e-6)
    direction, state = link.update(jnp.array([jnp.nan, 1.0]), learned, x)
    _, state = link.update(x, state, x / 3)
    assert np.isfinite(state.inverse_hessian).all()


def test_bfgs_learns_from_the_gradient_before_clipping(x64):
    hessian = jnp.asarray(matrix(1.0, 3.0, 5.0, 7.0))
    x, y = (jnp.asarray(each) for each in vectors(2))
    link = optimizers.scale_by_bfgs()
    _, plain = link.update(hessian @ x, link.init(x), x)
    _, plain = link.update(hessian @ y, plain, y)
    _, clipped = link.update(0.1 * hessian @ x, link.init(x), x, grad=hessian @ x)
    _, clipped = link.update(0.1 * hessian @ y, clipped, y, grad=hessian @ y)
    np.testing.assert_allclose(clipped.inverse_hessian, plain.inverse_hessian, rtol=1e-12)


def numpy_beta(method, g, previous, d):
    y = g - previous
    hager_zhang = (y - 2 * d * (y @ y) / (d @ y)) @ g / (d @ y)
    return {
        "polak-ribiere+": max(0, g @ y / (previous @ previous)),
        "fletcher-reeves": g @ g / (previous @ previous),
        "hestenes-stiefel": g @ y / (d @ y),
        "dai-yuan": g @ g / (d @ y),
        "hager-zhang": max(hager_zhang, -1 / (np.linalg.norm(d) * min(0.01, np.linalg.norm(previous)))),
    }[method]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("method", METHODS)
def test_conjugate_directions_are_the_formulas(method, seed, x64):
    link = optimizers.scale_by_nonlinear_cg(method, restart_threshold=None)
    gradients = vectors(3, seed)
    state, d, previous = link.init(jnp.zeros(SIZE)), None, None
    for g in gradients:
        beta = 0.0 if d is None else numpy_beta(method, g, previous, d)
        d = -g if d is None else -g + beta * d
        if g @ d >= 0:  # no descent
            beta, d = 0.0, -g
        direction, state = link.update(jnp.asarray(g), state)
        np.testing.assert_allclose(direction, -d, rtol=1e-10)
        np.testing.assert_allclose(state.beta, beta, rtol=1e-10)
        previous = g


@pytest.mark.parametrize("method", METHODS)
def test_every_formula_is_linear_conjugate_gradients_on_a_quadratic(method, x64):
    hessian = jnp.asarray(matrix(1.0, 2.0, 5.0, 20.0))
    x, _, directions = exact_run(optimizers.scale_by_nonlinear_cg(method), hessian, SIZE)
    np.testing.assert_allclose(x, 0, atol=1e-9)
    products = directions @ np.asarray(hessian) @ directions.T
    np.testing.assert_allclose(products - np.diag(np.diag(products)), 0, atol=1e-8)
    _, _, want = exact_run(optimizers.scale_by_nonlinear_cg("fletcher-reeves"), hessian, SIZE)
    np.testing.assert_allclose(directions, want, rtol=1e-6, atol=1e-9)


def test_conjugate_gradients_restart():
    gradients = jnp.asarray(vectors(6), jnp.float32)

    def betas(**options):
        link = optimizers.scale_by_nonlinear_cg("fletcher-reeves", **options)
        return jax.lax.scan(lambda s, g: (link.update(g, s)[1],) * 2, link.init(gradients[0]), gradients)[1].beta != 0

    assert not betas(restart_every=1).any()
    np.testing.assert_array_equal(betas(restart_every=2, restart_threshold=None)[::2], False)
    assert betas(restart_threshold=None).sum() > betas(restart_threshold=0.1).sum()


def product_link(hessian, updates, **options):
    link, x = optimizers.scale_by_newton_cg(**options), jnp.zeros_like(updates)
    f = lambda x: x @ hessian @ x / 2  # noqa: E731
    return link.update(updates, link.init(x), x, value_fn=f)


@pytest.mark.parametrize("options", [{"forcing": 1e-10}, {"solver": "cholesky"}, {"solver": "eigh"}])
def test_newton_solves_with_a_positive_definite_hessian(options, x64):
    hessian, g = matrix(1e-3, 1.0, 10.0, 100.0), vectors(1)[0]
    direction, state = product_link(jnp.asarray(hessian), jnp.asarray(g), **options)
    np.testing.assert_allclose(direction, np.linalg.solve(hessian, g), rtol=1e-6)
    assert state.residual < 1e-8
    assert not state.negative_curvature
    assert state.num_hessian_products >= SIZE


@pytest.mark.parametrize("forcing", [0.5, 1e-2])
def test_newton_is_only_as_exact_as_the_forcing_asks(forcing, x64):
    g = jnp.asarray(vectors(1)[0])
    _, state = product_link(jnp.asarray(matrix(1.0, 10.0, 100.0, 1000.0)), g, forcing=forcing)
    assert state.residual <= forcing
    assert state.num_hessian_products <= SIZE
    _, state = product_link(jnp.asarray(matrix(1.0, 10.0, 100.0, 1000.0)), g, forcing=1e-9, max_products=2)
    assert state.num_hessian_products == 2


@pytest.mark.parametrize("solver", ["cg", "cholesky", "eigh"])
@pytest.mark.parametrize("seed", range(5))
def test_newton_descends_where_the_function_curves_down(solver, seed, x64):
    hessian, g = matrix(-3.0, -0.1, 1.0, 10.0, seed=seed), vectors(1, seed)[0]
    direction, state = product_link(jnp.asarray(hessian), jnp.asarray(g), solver=solver)
    assert direction @ g > 0
    assert state.negative_curvature or solver == "cg"


def test_eigh_turns_the_sign_of_negative_curvature(x64):
    values = np.array([-3.0, -0.1, 1.0, 10.0])
    hessian, g = matrix(*values), vectors(1)[0]
    direction, _ = product_link(jnp.asarray(hessian), jnp.asarray(g), solver="eigh")
    np.testing.assert_allclose(direction, np.linalg.solve(matrix(*np.abs(values)), g), rtol=1e-9)


def numpy_modified_cholesky(hessian):
    """Column by column, as it is written in books."""
    n, eps = len(hessian), np.finfo(float).eps
    gamma, xi = np.abs(np.diag(hessian)).max(), np.abs(hessian - np.diag(np.diag(hessian))).max()
    beta = np.sqrt(max(gamma, xi / np.sqrt(n**2 - 1)))
    lower, pivots = np.eye(n), np.zeros(n)
    for j in range(n):
        c = [hessian[i, j] - sum(pivots[s] * lower[i, s] * lower[j, s] for s in range(j)) for i in range(j, n)]
        theta = max(map(abs, c[1:]), default=0.0)
        pivots[j] = max(abs(c[0]), (theta / beta) ** 2, eps * max(gamma, xi))
        lower[j + 1 :, j] = np.array(c[1:]) / pivots[j]
    return lower @ np.diag(pivots) @ lower.T


INDEFINITE = {
    "saddle": matrix(-3.0, -0.1, 1.0, 10.0),
    "small": matrix(-0.01, 0.1, 0.5, 1.0),
    "negative": matrix(-1.0, -1.0, -2.0, -5.0),
    "zero diagonal": 1 - np.eye(SIZE),  # where the size of L, not that of the pivot, decides
}


@pytest.mark.parametrize("name", INDEFINITE)
def test_cholesky_solves_with_the_modified_matrix(name, x64):
    hessian, g = INDEFINITE[name], vectors(1)[0]
    direction, _ = product_link(jnp.asarray(hessian), jnp.asarray(g), solver="cholesky")
    np.testing.assert_allclose(direction, np.linalg.solve(numpy_modified_cholesky(hessian), g), rtol=1e-6)


@pytest.mark.parametrize("solver", ["cholesky", "eigh"])
def test_a_hessian_that_says_nothing_gives_the_gradient(solver):
    g = jnp.array([1.0, -2.0])
    for hessian in (jnp.zeros((2, 2)), jnp.full((2, 2), jnp.nan)):
        np.testing.assert_array_equal(product_link(hessian, g, solver=solver)[0], g)


def test_newton_of_a_zero_gradient_is_zero():
    for solver in ("cg", "cholesky", "eigh"):
        direction, _ = product_link(jnp.eye(3), jnp.zeros(3), solver=solver)
        np.testing.assert_array_equal(direction, 0)


TREE = {"w": jnp.array([[1.5, -0.5], [0.3, 2.0]]), "b": (jnp.array(0.7), None)}


def bowl(tree):
    x, b = tree["w"], tree["b"][0]
    return jnp.sum(jnp.cosh(x)) + 3 * (b - x[0, 0]) ** 2


CHAINS = {
    "bfgs": optimizers.bfgs,
    "damped bfgs": lambda: optimizers.bfgs(update="damped"),
    "bfgs, zoom": lambda: optimizers.bfgs(linesearch=optax.scale_by_zoom_linesearch(20)),
    "nonlinear_cg": optimizers.nonlinear_cg,
    "nonlinear_cg, zoom": lambda: optimizers.nonlinear_cg(linesearch=optax.scale_by_zoom_linesearch(20)),
    "newton": optimizers.newton,
    "newton, cholesky": lambda: optimizers.newton(solver="cholesky"),
    "newton, eigh, backtracking": lambda: optimizers.newton(
        solver="eigh", linesearch=optax.scale_by_backtracking_linesearch(20, store_grad=True)
    ),
    "clipped bfgs": lambda: optax.chain(
        clipping.clip_by_global_norm(1.0),
        optimizers.scale_by_bfgs(),
        optax.scale(-1.0),
        optimizers.scale_by_wolfe_linesearch(),
    ),
    "clipped newton": lambda: optax.chain(clipping.clip_by_global_norm(0.5), optimizers.newton()),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_run_in_a_scan_on_any_tree(name, third_party_model):
    optimizer = CHAINS[name]()

    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(bowl)(params)
        updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=bowl)
        return (optax.apply_updates(params, updates), state), value

    run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=30))
    (params, state), values = run(TREE)
    assert np.all(np.diff(values) <= 1e-6)
    np.testing.assert_allclose(bowl(params), 4, atol=1e-3)
    assert jax.tree.structure(state) == jax.tree.structure(optimizer.init(TREE))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["bfgs", "nonlinear_cg", "newton"])
def test_low_precision_keeps_its_dtype(name, dtype):
    optimizer, x = CHAINS[name](), jnp.full(3, 2.0, dtype)
    f = lambda x: jnp.sum(jnp.square(x.astype(jnp.float32) - 1))  # noqa: E731
    updates, state = optimizer.update(jax.grad(f)(x), optimizer.init(x), x, value=f(x), grad=jax.grad(f)(x), value_fn=f)
    assert updates.dtype == dtype
    assert state[-1].learning_rate.dtype == jnp.float32
    assert f(x + updates) < f(x)


def test_value_functions_get_the_arguments_they_know():
    """Others in the chain may take more: a function of x and data is not given what is meant for them."""
    f = lambda x, scale: jnp.sum(scale * x**2)  # noqa: E731
    x, scale = jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])
    for optimizer in (optimizers.bfgs(), optimizers.newton()):
        grad = jax.grad(f)(x, scale)
        updates, _ = optimizer.update(
            grad, optimizer.init(x), x, value=f(x, scale), grad=grad, value_fn=f, scale=scale, other=3
        )
        assert f(x + updates, scale) < f(x, scale)


def test_settings_are_refused(unchecked):
    for build, match in [
        (lambda: optimizers.scale_by_bfgs("brave"), "update 'cautious' or 'damped'"),
        (lambda: optimizers.scale_by_nonlinear_cg("polak-ribiere"), r"a method of 'polak-ribiere\+'"),
        (lambda: optimizers.scale_by_nonlinear_cg(restart_every=0), "restart_every of at least 1"),
        (lambda: optimizers.scale_by_nonlinear_cg(restart_threshold=0.0), "positive restart_threshold"),
        (lambda: optimizers.scale_by_newton_cg("lu"), "solver 'cg', 'cholesky' or 'eigh'"),
        (lambda: optimizers.scale_by_newton_cg(forcing=1.0), "forcing between 0 and 1"),
        (lambda: optimizers.scale_by_newton_cg(max_products=0), "max_products of at least 1"),
    ]:
        with pytest.raises(ValueError, match=match):
            build()
    x = jnp.ones(2)
    with pytest.raises(ValueError, match="scale_by_bfgs: expected the parameters"):
        optimizers.scale_by_bfgs().update(x, optimizers.scale_by_bfgs().init(x))
    with pytest.raises(ValueError, match="value_fn="):
        optimizers.scale_by_newton_cg().update(x, None, x)
    for link in (optimizers.scale_by_bfgs(), optimizers.scale_by_nonlinear_cg(), optimizers.scale_by_newton_cg()):
        with pytest.raises(TypeError, match="real floating arrays"):
            link.init(jnp.ones(2, jnp.complex64))
        with pytest.raises(TypeError, match="cast it to float"):
            link.init({"steps": jnp.arange(3)})
