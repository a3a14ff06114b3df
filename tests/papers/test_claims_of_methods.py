"""Numbers of the papers on optimizers, clipping, losses, clustering and PCA, computed by the library."""

from __future__ import annotations

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import optimize, stats

from jaxgrad import clipping, clustering, decomposition, losses, optimizers, spectra
from jaxgrad.data import digits
from tests.papers.claims import check

KEY = jax.random.key(0)
DIGITS = jnp.asarray(digits().images.reshape(1797, 64), jnp.float32)


def default(function, argument):
    return inspect.signature(function).parameters[argument].default


def steps_of(optimizer, gradients):
    """How far each step goes, one parameter."""
    start = jnp.zeros(())

    def run(gradients):
        return jax.lax.scan(lambda state, g: optimizer.update(g, state, start)[::-1], optimizer.init(start), gradients)

    return -jax.jit(run)(gradients)[1]


def rate(optimizer, *curvatures):
    """By how much a step shrinks the distance to the minimum of a quadratic, in the end."""
    curvatures = jnp.array(curvatures)
    flat, unravel = ravel_pytree((jnp.zeros(curvatures.shape), optimizer.init(jnp.zeros(curvatures.shape))))

    def step(flat):
        x, state = unravel(flat)
        updates, state = optimizer.update(curvatures * x, state, x)
        return ravel_pytree((x + updates, state))[0]

    return np.abs(np.linalg.eigvals(spectra.layer_jacobian(step, flat))).max()


# optax's Adam raises a Python float to an integer array.
@pytest.mark.usefixtures("third_party_model")
def test_adam_steps():
    for size in (1e-3, 1e3):
        step = steps_of(optimizers.adam(0.01), jnp.array([size]))[0]
        check("kingma2015adam", "first step / α", step / 0.01, 2e-5)
    gradients = jnp.zeros(20_000).at[-1].set(1.0)
    check(
        "kingma2015adam", "largest step / α, after zero gradients", steps_of(optimizers.adam(1.0), gradients)[-1], 1e-4
    )


def test_adam_defaults():
    for argument in ("b1", "b2", "eps"):
        check("kingma2015adam", f"default {argument}", default(optimizers.adam, argument), 0)


@pytest.mark.usefixtures("third_party_model")
def test_adam_where_it_does_not_converge():
    """The gradient is 3 in every third step and -1 in the others: -1 is best, and Adam goes to 1."""
    optimizer = optimizers.adam(lambda count: 0.5 / jnp.sqrt(count + 1.0), b1=0.0, b2=1 / 10)

    def step(carry, gradient):
        x, state = carry
        updates, state = optimizer.update(gradient, state, x)
        return (jnp.clip(x + updates, -1.0, 1.0), state), None

    start = (jnp.array(0.0), optimizer.init(jnp.array(0.0)))
    (x, _), _ = jax.lax.scan(step, start, jnp.tile(jnp.array([3.0, -1.0, -1.0]), 500))
    check("reddi2018convergence", "where Adam ends for C = 3", x)


def test_adagrad_steps():
    step = steps_of(optimizers.adagrad(1.0, 0.0, 1e-12, eps_in_sqrt=False), jnp.full(100, 7.0))[-1]
    check("duchi2011adaptive", "100th step / η, gradients alike", step)


def test_adadelta_step():
    step = steps_of(optimizers.adadelta(rho=0.95), jnp.array([1.0]))[0]
    check("zeiler2012adadelta", "first step, ρ = 0.95, ε = 1e-6, gradient 1", step)


def test_rmsprop_step():
    check("tieleman2012rmsprop", "first step / learning rate", steps_of(optimizers.rmsprop(1.0), jnp.array([5.0]))[0])


def test_centered_rmsprop_step():
    step = steps_of(optimizers.rmsprop(1e-4, 0.95, 1e-4, centered=True, momentum=0.9), jnp.array([1.0]))[0]
    check("graves2013generating", "first step, gradient 1", step)


def test_terminal_velocity():
    steps = steps_of(optimizers.momentum(1.0, 0.9, scaled_velocity=True), jnp.ones(400))
    check("sutskever2013importance", "velocity in the end / (ε × gradient), μ = 0.9", steps[-1])


def test_heavy_ball_on_a_quadratic(x64):
    """Curvatures from 1 to 100; the best steps and momentum are the paper's."""
    best = optimizers.momentum(4 / (10 + 1) ** 2, ((10 - 1) / (10 + 1)) ** 2)
    check("polyak1964some", "best rate with momentum, κ = 100", rate(best, 1.0, 30.0, 100.0))
    check("polyak1964some", "best rate without momentum, κ = 100", rate(optimizers.sgd(2 / 101), 1.0, 30.0, 100.0))


def test_momentum_on_one_curvature(x64):
    step = optimize.brentq(lambda step: rate(optimizers.momentum(step, 0.9), 1.0) - 1, 1.0, 5.0, xtol=1e-6)
    check("goh2017why", "largest step times curvature that converges, decay 0.9", step)
    decays = np.arange(0.8, 0.82, 0.001)
    best = decays[np.argmin([rate(optimizers.momentum(0.01, decay), 1.0) for decay in decays])]
    check("goh2017why", "best decay at step times curvature 0.01", best)


def test_largest_stable_curvature():
    for name, optimizer in {
        "gradient descent": optimizers.sgd(1.0),
        "momentum 0.9": optimizers.momentum(1.0, 0.9),
        "Nesterov's momentum 0.9": optimizers.nesterov(1.0, 0.9),
    }.items():
        sharpness = optimize.brentq(lambda s, o=optimizer: rate(o, s) - 1, 1.0, 5.0, xtol=1e-5)
        check("cohen2021gradient", f"η × largest stable sharpness, {name}", sharpness, 1e-4)


def test_wolfe_constants():
    for argument in ("decrease", "curvature"):
        value = default(optimizers.scale_by_wolfe_linesearch, argument)
        check("nocedal2006numerical", f"usual constant of the {argument} condition", value, 0)


def quadratic(x):
    return 0.5 * jnp.sum(jnp.arange(1.0, 6.0) * (x - 1) ** 2)


def test_conjugate_gradients_on_a_quadratic(x64):
    """Solved exactly, its equation makes one Newton step enough."""
    result = optimizers.minimize(quadratic, jnp.zeros(5), optimizers.newton(forcing=1e-12))
    check("hestenes1952methods", "products with the matrix, 5 unknowns", result.num_hessian_products)
    check("nocedal2006numerical", "Newton steps for a quadratic", result.num_steps)


def test_norm_clipping():
    gradient = jnp.array([0.9, 100.0])
    clipper = clipping.clip_by_global_norm(1.0)
    clipped = jax.jit(lambda gradient: clipper.update(gradient, clipper.init(gradient))[0])(gradient)
    for index, name in enumerate(("first", "second")):
        check("pascanu2013difficulty", f"(0.9, 100) at threshold 1, {name} entry", clipped[index])


def test_smooth_and_hard_clipping():
    gradient = jnp.array([3.0, 4.0])
    hard, soft = (
        jax.jit(lambda gradient, c=clipper: c.update(gradient, c.init(gradient))[0])(gradient)
        for clipper in (clipping.clip_by_global_norm(5.0), clipping.smooth_clip(5.0, power=1.0))
    )
    check("zhang2020why", "clipped step / normalized step at the threshold", jnp.max(hard / soft))


def test_defaults_of_clippers():
    check("brock2021high", "ε below the norm of a unit's weights", default(clipping.adaptive_clip, "floor"), 0)
    check("seetharaman2020autoclip", "quantile of the norms", default(clipping.clip_by_quantile, "quantile"), 0)
    check("kumar2025zclip", "z-score from which is clipped", default(clipping.clip_by_zscore, "z_threshold"), 0)
    check("kumar2025zclip", "α of the moving averages", default(clipping.clip_by_zscore, "decay"), 0)
    check("huang2025spam", "θ", default(clipping.spike_aware_clip, "threshold"), 0)
    check("huang2025spam", "steps between resets", default(clipping.spike_aware_clip, "reset_every"), 0)
    check("huang2025spam", "steps of warm-up after a reset", default(clipping.spike_aware_clip, "warmup_steps"), 0)


def test_huber_loss():
    loss = losses.huber_loss(jnp.array([-10.0]), jnp.array([0.0]), delta=2.0)
    check("huber1964robust", "ρ(-10) for k = 2", loss[0])
    slope = jax.jit(jax.grad(lambda x: losses.huber_loss(x, 0.0, delta=2.0)))(1e3)
    check("huber1964robust", "largest slope for k = 2", slope)


def test_two_quanta_of_a_normal():
    x = jnp.asarray(stats.norm.ppf((np.arange(4000) + 0.5) / 4000)[:, None], jnp.float32)
    result = clustering.k_means(None, x, 2, init=jnp.array([[-0.1], [2.0]]), tol=0.0)
    check("lloyd1982least", "larger quantum of a standard normal, 2 quanta", jnp.max(result.centroids), 1e-4)
    check("lloyd1982least", "noise of a standard normal, 2 quanta", result.inertia / 4000, 1e-4)


@pytest.fixture(scope="module")
def inertias():
    """Inertia after each of 8 steps of Lloyd's iteration on the digits."""
    centroids, found = DIGITS[:10], []
    for _ in range(8):
        result = clustering.k_means(None, DIGITS, 10, init=centroids, max_steps=1)
        centroids = result.centroids
        found.append(float(result.inertia))
    return np.array(found)


def test_lloyd_steps(inertias):
    check("lloyd1982least", "steps of 8 that raise the inertia (digits)", np.sum(np.diff(inertias) > 0))
    assert inertias[0] > inertias[-1] > 0


def test_k_means_and_the_spectrum(inertias):
    """Inertia lies between the variance that 9 components leave and the whole."""
    variances = 1796 * np.asarray(decomposition.pca(DIGITS).explained_variance, np.float64)
    excess = max(variances[9:].sum() - inertias[-1], 0) + max(inertias[-1] - variances.sum(), 0)
    check("ding2004kmeans", "violation of the bounds on J_K (digits, K = 10)", excess)


def test_one_uniform_center():
    """Of the rows of one digit each in turn is the only centre."""
    x = DIGITS[digits().labels == 0]
    labels = jnp.zeros(len(x), jnp.int32)
    costs = jax.vmap(lambda center: clustering.cluster_inertia(x, center[None], labels)[0])(x)
    best = clustering.cluster_inertia(x, jnp.mean(x, axis=0, keepdims=True), labels)[0]
    check("arthur2007kmeans", "E φ / φ_OPT of one uniform center", jnp.mean(costs) / best, 1e-5)


def test_seeding_bound():
    """Ten groups far apart: rows drawn alike miss some, and pay a thousand times what the bound allows."""
    labels = jnp.arange(200) % 10
    x = 1e3 * jnp.eye(10)[labels] + jax.random.normal(KEY, (200, 10))
    best = clustering.cluster_inertia(x, 1e3 * jnp.eye(10), labels).sum()

    def ratio(draw):
        costs = []
        for key in jax.random.split(KEY, 5):
            centroids = draw(key)
            costs.append(clustering.cluster_inertia(x, centroids, clustering.assign(centroids, x)).sum())
        return float(np.mean(costs) / best)

    bound = 8 * (math.log(10) + 2)
    found = ratio(lambda key: clustering.k_means_init(key, x, 10, init="k-means++").centroids)
    check("arthur2007kmeans", "excess of E φ / φ_OPT over 8 (ln k + 2), k = 10", max(found - bound, 0))
    assert ratio(lambda key: jax.random.choice(key, x, (10,), replace=False)) > bound


def test_silhouettes():
    values = clustering.silhouette(jnp.array([[0.0], [1.0], [10.0]]), jnp.array([0, 0, 1]), 2)
    check("rousseeuw1987silhouettes", "s of 0 among {0, 1} and {10}", values[0])
    check("rousseeuw1987silhouettes", "s of a cluster of one", values[2])


def test_effective_rank():
    flat, peaked = spectra.effective_rank(jnp.stack([jnp.eye(3), jnp.diag(jnp.array([2.0, 1.0, 1.0]))]))
    check("roy2007effective", "effective rank of singular values 1, 1, 1", flat, 1e-5)
    check("roy2007effective", "effective rank of singular values 2, 1, 1", peaked, 1e-5)


def low_rank_error(solver):
    """Squared error of five components, over the least there is."""
    result = decomposition.pca(DIGITS, 5, solver=solver)
    left = DIGITS - decomposition.pca_inverse_transform(result, decomposition.pca_transform(result, DIGITS))
    x = np.asarray(DIGITS, np.float64)
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    return float(jnp.sum(left**2)) / np.sum(values[5:] ** 2)


def test_best_low_rank_error():
    check("eckart1936approximation", "squared error of rank 5 / Σ s_i², i > 5 (digits)", low_rank_error("svd"), 1e-4)


def test_block_krylov_error():
    ratio = math.sqrt(low_rank_error("krylov"))
    check("musco2015randomized", "error of rank 5 / the least (digits)", ratio, 1e-4)


def test_line_of_closest_fit():
    """Pearson's own ten points."""
    x = [0.0, 0.9, 1.8, 2.6, 3.3, 4.4, 5.2, 6.1, 6.5, 7.4]
    y = [5.9, 5.4, 4.4, 4.6, 3.5, 3.7, 2.8, 2.8, 2.4, 1.5]
    result = decomposition.pca(jnp.stack([jnp.array(x), jnp.array(y)], axis=1), 1, solver="svd")
    slope = result.components[0, 1] / result.components[0, 0]
    check("pearson1901lines", "mean of x", result.mean[0])
    check("pearson1901lines", "mean of y", result.mean[1])
    check("pearson1901lines", "slope of the line of closest fit", slope, 1e-5)
    check("pearson1901lines", "intercept of the line of closest fit", result.mean[1] - slope * result.mean[0], 1e-5)


def test_noise_variance():
    """Variances 9, 4, 3, 2, 1 of 4000 rows."""
    rows = jnp.tile(jnp.diag(jnp.sqrt(5 * jnp.array([9.0, 4.0, 3.0, 2.0, 1.0]))), (400, 1))
    result = decomposition.pca(jnp.concatenate([rows, -rows]), 2)
    check("tipping1999probabilistic", "σ²_ML for variances 9, 4, 3, 2, 1 and q = 2", result.noise_variance, 1e-4)


def test_most_probable_number_of_components():
    deviations = np.sqrt([10.0, 8.0, 6.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    x = np.random.default_rng(0).standard_normal((2000, 10)) * deviations
    found = decomposition.pca(jnp.asarray(x, jnp.float32), "mle").components.shape[0]
    check("minka2000automatic", "components found, of variances 10, 8, 6, 4, 2 and noise 1", found)
