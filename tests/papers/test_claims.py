"""Numbers of the papers on signals and gradients in random networks, computed by the library."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from jaxgrad import activations, initializers, meanfield, normalization, spectra
from jaxgrad.meanfield import Activation, BatchNorm, Dense, Residual
from tests.papers.claims import check

KEY = jax.random.key(0)


def largest(f, x):
    """The largest singular value of the Jacobian."""
    return float(spectra.singular_values(f, x, method="svd").values[0])


def test_critical_weights_of_tanh():
    check(
        "poole2016exponential",
        "σ_w² of tanh at the transition, σ_b² = 0",
        meanfield.critical_point("tanh").weight_variance,
    )
    for bias_variance in (0.01, 0.05, 0.1):
        point = meanfield.critical_point("tanh", bias_variance=bias_variance)
        check("schoenholz2017deep", f"critical σ_w² of tanh, σ_b² = {bias_variance}", point.weight_variance)


def test_depth_scales_of_tanh():
    ordered, chaotic = (
        meanfield.depth_scales("tanh", weight_variance=weight_variance, bias_variance=0.05)
        for weight_variance in (1.3, 2.5)
    )
    for quantity, computed in {
        "χ₁ of tanh at (1.3, 0.05)": ordered.chi,
        "ξ_q of tanh at (1.3, 0.05)": ordered.xi_q,
        "ξ_c of tanh at (1.3, 0.05)": ordered.xi_c,
        "χ₁ of tanh at (2.5, 0.05)": chaotic.chi,
        "c* of tanh at (2.5, 0.05)": chaotic.c,
        "ξ_c of tanh at (2.5, 0.05)": chaotic.xi_c,
        "ξ_∇ of tanh at (2.5, 0.05)": chaotic.xi_gradient,
    }.items():
        check("schoenholz2017deep", quantity, computed)


def test_weights_for_relu():
    check("he2015delving", "n Var[w] for ReLU", meanfield.critical_point("relu").weight_variance)


def test_weights_for_prelu():
    point = meanfield.critical_point(lambda x: jnp.where(x > 0, x, 0.25 * x))
    check("he2015delving", "n Var[w] for PReLU, a = 0.25", point.weight_variance)


def test_standard_deviations_of_vgg():
    for channels in (64, 128, 256, 512):
        kernel = initializers.he_normal()(KEY, (3, 3, channels, 64))
        check("he2015delving", f"standard deviation of 3 × 3 kernels, {channels} filters", jnp.std(kernel), 0.01)


def test_gradient_of_vgg_with_small_weights():
    """Down the layers of a network of ten convolutions, from the last to the second."""
    fans = [
        initializers.fans((3, 3, d, d)).fan_in
        for d, times in ((64, 1), (128, 2), (256, 2), (512, 4))
        for _ in range(times)
    ]
    gains = [meanfield.chi("relu", weight_variance=0.01**2 * fan, bias_variance=0.0) for fan in fans]
    check("he2015delving", "shrinkage of gradients with weights of 0.01, 10 convolutions", np.prod(gains) ** -0.5)


def selu_moments(variance):
    """Mean and variance of SELU's output, for inputs of mean 0."""
    signal = meanfield.propagate((Activation("selu"),), q=variance)
    return np.array([signal.mean[-1], signal.q[-1] - signal.mean[-1] ** 2])


def test_selu_constants():
    selu = activations.get("selu").function
    check("klambauer2017self", "λ", selu(1.0))
    check("klambauer2017self", "α", -selu(-50.0) / selu(1.0))


def test_selu_fixed_point():
    mean, variance = selu_moments(1.0)
    check("klambauer2017self", "mean at the fixed point", mean)
    check("klambauer2017self", "variance at the fixed point", variance)


def test_selu_is_attracted_to_its_fixed_point():
    slopes = (selu_moments(1.0001) - selu_moments(0.9999)) / 0.0002
    check("klambauer2017self", "∂ mean / ∂ variance at the fixed point", slopes[0])
    check("klambauer2017self", "∂ variance / ∂ variance at the fixed point", slopes[1])
    jacobian = jnp.array([[0.0, slopes[0]], [0.0, slopes[1]]])
    norm = largest(lambda moments: jacobian @ moments, jnp.zeros(2))
    check("klambauer2017self", "spectral norm of the Jacobian at the fixed point", norm)


def test_scaled_tanh():
    check("lecun1998efficient", "f(1), f(x) = 1.7159 tanh(2x/3)", activations.scaled_tanh(jnp.array(1.0)))
    bend = jax.jit(jax.grad(jax.grad(jax.grad(activations.scaled_tanh))))
    steepest = optimize.brentq(lambda x: float(bend(jnp.asarray(x, jnp.float32))), 0.5, 1.5)
    check("lecun1998efficient", "where |f''| is largest", steepest, 1e-4)


def test_lecun_weights():
    kernel = initializers.lecun_normal()(KEY, (400, 500))
    check("lecun1998efficient", "√m σ_w", jnp.std(kernel) * 20, 0.01)


def test_glorot_bound():
    kernel = initializers.glorot_uniform()(KEY, (300, 700))
    bound = jnp.max(jnp.abs(kernel)) * math.sqrt(1000)
    check("glorot2010understanding", "bound of the normalized initialization × √(n_j + n_{j+1})", bound, 1e-4)


def test_correlation_of_relu():
    first, second = (
        meanfield.correlation_map("relu", c, weight_variance=2.0, bias_variance=0.0) for c in (0.0, 1 / math.pi)
    )
    check("hayou2019impact", "f(0) of ReLU", first)
    check("hayou2019impact", "f(f(0)) of ReLU", second)


def test_correlation_of_relu_close_to_one():
    c = 1 - 1e-6
    excess = meanfield.correlation_map("relu", c, weight_variance=2.0, bias_variance=0.0) - c
    check("hayou2019impact", "coefficient of (1 - c)^(3/2) in f(c) - c, ReLU", excess / (1 - c) ** 1.5, 1e-4)


def test_spectrum_of_gaussian_products():
    spectrum = meanfield.predict_spectrum("identity", 10, weights="gaussian", weight_variance=1.0)
    check("pennington2017resurrecting", "variance of λ, linear Gaussian, L = 10", spectrum.variance)
    check("pennington2017resurrecting", "λ_max, linear Gaussian, L = 10", spectrum.edge)


def test_spectrum_of_orthogonal_relu():
    spectrum = meanfield.predict_spectrum("relu", 10, weights="orthogonal", weight_variance=2.0)
    check("pennington2017resurrecting", "variance of λ, orthogonal ReLU, L = 10", spectrum.variance)
    check("pennington2017resurrecting", "λ_max, orthogonal ReLU, L = 10", spectrum.edge)


def test_spectrum_of_orthogonal_hard_tanh():
    setting = {"weights": "orthogonal", "weight_variance": 1.0, "bias_variance": 0.0, "q": 1.0}
    spectrum = meanfield.predict_spectrum("hard_tanh", 10, **setting)
    relative = spectrum.variance / spectrum.mean**2
    check("pennington2018emergence", "variance of λ / its mean², orthogonal hard tanh, q = 1, L = 10", relative)


def test_orthogonal_products():
    layers = initializers.orthogonal(batch_axis=0)(KEY, (100, 16, 16))
    values = spectra.product_spectrum(layers)
    check("saxe2014exact", "largest singular value of 100 orthogonal layers", 10 ** values[0], 1e-5)
    check("saxe2014exact", "smallest singular value of 100 orthogonal layers", 10 ** values[-1], 1e-5)


def test_delta_orthogonal_convolution():
    kernel = initializers.delta_orthogonal()(KEY, (3, 3, 4, 4))

    def convolve(x):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    values = spectra.singular_values(convolve, jnp.zeros((1, 6, 6, 4)), method="svd").values
    check("xiao2018dynamical", "largest singular value of a delta-orthogonal convolution", values[0], 1e-5)
    check("xiao2018dynamical", "smallest singular value of a delta-orthogonal convolution", values[-1], 1e-5)


def test_gradients_of_narrow_relu_networks():
    band = meanfield.finite_width_band("relu", 100, 1000, weight_variance=2.0)
    check("hanin2020products", "Var ln |Jv|², ReLU, 100 layers of 1000", band.variance)
    check("hanin2020products", "E ln |Jv|², ReLU, 100 layers of 1000", band.mean)


def test_gradients_through_batch_normalization():
    gain = meanfield.propagate(6 * (Dense(2.0), BatchNorm(), Activation("relu")), c=0.0).gain[-3:].prod()
    check("yang2019mean", "growth of squared gradients a layer, ReLU", gain)
    check("yang2019mean", "growth of gradients a layer, ReLU", math.sqrt(gain))


def test_residual_variances():
    branch = (Activation("relu"), Dense(2.0))
    check("de2020batch", "variance after 10 unnormalized blocks", meanfield.propagate(10 * (Residual(branch),)).q[-1])
    normalized = meanfield.propagate(10 * (Residual((BatchNorm(), *branch)),), c=0.0)
    check("de2020batch", "variance after 10 normalized blocks", normalized.q[-1])
    scale = float(initializers.skip_init(50)(KEY, ())) ** 2
    check(
        "de2020batch",
        "variance after 50 blocks with α = 1/√50",
        meanfield.propagate(50 * (Residual(branch, scale),)).q[-1],
    )


def test_fixup_scales():
    base = initializers.he_normal()(KEY, (64, 64))
    for layers in (2, 3):
        inner = initializers.fixup(16, layers_per_branch=layers).inner(KEY, (64, 64))
        check("zhang2019fixup", f"scale of weights, 16 branches of {layers} layers", jnp.std(inner) / jnp.std(base))


def test_gpt_residual_layers():
    base, scaled = (draw(KEY, (64, 64)) for draw in (initializers.he_normal(), initializers.depth_scaled(48)))
    check("radford2019language", "scale of residual layers, N = 48", jnp.std(scaled) / jnp.std(base))


def test_rezero_is_the_identity():
    alpha, weights = initializers.skip_init()(KEY, ()), initializers.he_normal()(KEY, (16, 16))
    values = spectra.singular_values(lambda x: x + alpha * jax.nn.relu(x @ weights), jnp.ones(16), method="svd").values
    check("bachlechner2021rezero", "largest singular value of a block at the start", values[0])
    check("bachlechner2021rezero", "smallest singular value of a block at the start", values[-1])


def test_chrono_initialization():
    signal = meanfield.recurrent_signal("lstm", weight_variance=0.0, forget_bias=math.log(99))
    check("tallec2018can", "steps an LSTM remembers with bias ln(T - 1), T = 100", 1 / (1 - signal.forget))
    check("tallec2018can", "what is left of the memory after T = 100 steps", signal.carry_gain ** (100 / 2))


def largest_slope(name):
    return largest(activations.get(name).function, jnp.linspace(-6.0, 6.0, 13))


def test_bound_of_recurrent_gradients():
    weights = initializers.orthogonal(3.0)(KEY, (8, 8))
    for name in ("tanh", "sigmoid"):
        gamma, function = largest_slope(name), activations.get(name).function
        check("pascanu2013difficulty", f"γ of {name}", gamma)
        assert largest(lambda h, f=function: f(f(h @ weights) @ weights), jnp.zeros(8)) <= (3 * gamma) ** 2 * 1.00001


def test_largest_weight_that_cannot_explode():
    check("hochreiter1997long", "|w| below which the error flow of a sigmoid vanishes", 1 / largest_slope("sigmoid"))


def test_identity_keeps_the_gradient_of_a_relu_network():
    weights = initializers.identity()(KEY, (8, 8))

    def remember(h):
        return jax.lax.scan(lambda h, _: (jax.nn.relu(h @ weights), None), h, None, length=100)[0]

    norm = largest(remember, jnp.linspace(0.1, 1.0, 8))
    check("le2015simple", "norm of the Jacobian after 100 steps", norm)


def test_sparse_initialization():
    kernel = initializers.sparse()(KEY, (200, 10))
    check("martens2010deep", "connections into a unit", jnp.max(jnp.sum(kernel != 0, axis=0)))


def test_half_stable_critical_points():
    gelu, silu = (meanfield.critical_point(name) for name in ("gelu_exact", "silu"))
    check("roberts2022principles", "C_W of GELU", gelu.weight_variance)
    check("roberts2022principles", "C_b of GELU", gelu.bias_variance)
    check("roberts2022principles", "C_W of SWISH", silu.weight_variance)
    check("roberts2022principles", "C_b of SWISH", silu.bias_variance)


def test_variance_of_tanh_decays_as_a_power():
    q = 1.0
    for _ in range(300):
        q = meanfield.variance_map("tanh", q, weight_variance=1.0, bias_variance=0.0)
    check("roberts2022principles", "2 ℓ K of tanh at (1, 0), ℓ = 301", 2 * 301 * q)


def test_gradients_shatter():
    """The slope of ReLU is a step, and the correlation of gradients is that of its values."""
    half = meanfield.correlation_map(lambda x: (x > 0) * 1.0, 0.0, weight_variance=1.0, bias_variance=0.0)
    check("balduzzi2017shattered", "correlation of gradients that a ReLU layer leaves", half)


def test_variance_within_a_batch():
    x = jax.random.normal(KEY, (8, 1))
    stats = jax.jit(normalization.standardize_fit)(x)
    normalized = jax.jit(normalization.standardize)(stats, x)
    check("ioffe2015batch", "mean square of the normalized values of a batch", jnp.mean(normalized**2))
    unbiased = np.var(np.asarray(x), ddof=1)
    check("ioffe2015batch", "population variance / batch variance, m = 8", unbiased / float(stats.variance[0]))
