"""The numbers that mean-field theory and random matrices fix: from jaxgrad, from the literature, and sampled.

A line holds what ``jaxgrad.meanfield`` gives (theory), the number of the literature, the absolute difference and the
largest allowed; then what finite random networks drawn here do (measured), how far that is from the literature,
relative to it (absolute where that is 0), and the range allowed. The exit code is 1 if any line fails.

Run: python benchmarks/theory.py [ROW ...]
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sampling import conv_values, dense, end_to_end, gradient_squares, sample_scales, walk

from jaxgrad import initializers, spectra
from jaxgrad.clipping import clip_by_global_norm
from jaxgrad.meanfield import (
    Activation,
    BatchNorm,
    Dense,
    LayerNorm,
    Residual,
    chi,
    correlation_map,
    critical_point,
    depth_scales,
    finite_width_band,
    fixed_point,
    predict_spectrum,
    propagate,
    recurrent_signal,
    variance_map,
)

SEED = 0


class Line(NamedTuple):
    """One number, as theory gives it and as networks do.

    Attributes:
      what: The quantity.
      source: Where the reference is from.
      reference: The number in the literature.
      theory: What the package gives; ``None``: it has no function of it.
      tol: Largest absolute difference of theory and reference.
      measured: What was sampled; ``None``: nothing.
      band: Lowest and highest relative difference of the sample and the reference; one number: either way.
    """

    what: str
    source: str
    reference: float
    theory: float | None = None
    tol: float = 1e-6
    measured: float | None = None
    band: tuple[float, float] | float = 0.02

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest relative difference."""
        return self.band if isinstance(self.band, tuple) else (-self.band, self.band)

    @property
    def error(self) -> float:
        """Absolute difference of theory and reference."""
        return 0.0 if self.theory is None else abs(self.theory - self.reference)

    @property
    def deviation(self) -> float:
        """Relative difference of the sample and the reference."""
        if self.measured is None:
            return 0.0
        return (self.measured - self.reference) / (abs(self.reference) or 1.0)

    @property
    def holds(self) -> bool:
        """Whether both are within what is allowed."""
        low, high = self.limits
        return self.error <= self.tol and (self.measured is None or low <= self.deviation <= high)


def critical_line() -> Iterator[Line]:
    """Row 1: tanh at the edge of chaos."""
    source = "Schoenholz 2017"
    for bias_variance, factor, q in ((0.01, 1.42421, 0.27330), (0.05, 1.76095, 0.57005), (0.1, 1.98607, 0.80580)):
        point = critical_point("tanh", bias_variance=bias_variance)
        setting = {"weight_variance": point.weight_variance, "bias_variance": bias_variance}
        sample = walk(jax.random.key(SEED), jnp.tanh, networks=4, width=1000, depth=10, q=point.q, **setting)
        name = f"tanh, σ_b² = {bias_variance}"
        yield Line(f"{name}: critical σ_w²", source, factor, point.weight_variance, 1e-4)
        yield Line(f"{name}: q*", source, q, fixed_point("tanh", **setting), 1e-4, float(np.mean(sample.q)))
        yield Line(f"{name}: χ₁", source, 1.0, chi("tanh", **setting), 1e-4, sample.growth)


def scales_of_depth() -> Iterator[Line]:
    """Row 2: how far angles and gradients reach in a tanh network."""
    source = "Schoenholz 2017"
    references = {
        1.3: {"chi": 0.88016, "xi_c": 7.834, "xi_q": 1.785},
        2.5: {"chi": 1.13352, "c": 0.44680, "xi_c": 11.796, "xi_gradient": 7.979},
    }
    for factor, numbers in references.items():
        setting = {"weight_variance": factor, "bias_variance": 0.05}
        scales = depth_scales("tanh", **setting)
        measured = sample_scales(jax.random.key(SEED), networks=400, width=200, depth=12, **setting)
        for name, reference in numbers.items():
            theory = getattr(scales, name)
            band = 0.02 if name == "chi" else 0.05
            yield Line(f"tanh, σ_w² = {factor}: {name}", source, reference, theory, 1e-3, measured.get(name), band)


def relu_without_bias() -> Iterator[Line]:
    """Row 3: ReLU with the default initialization of flax."""
    depth, width = 50, 500

    def layer(key: jax.Array, h: jax.Array) -> jax.Array:
        return jax.nn.relu(h @ initializers.lecun_normal()(key, (width, width), h.dtype))

    runs = [gradient_squares(jax.random.key(seed), layer, depth=depth, shape=(8, width))[1] for seed in range(8)]
    # Of the logarithms' slope: the fall over all the layers is a power of it.
    slope = float(np.polyfit(np.arange(depth), np.mean(np.log(np.array(runs)), 0) / 2, 1)[0])
    factor = math.sqrt(chi("relu", weight_variance=1.0, bias_variance=0.0))
    yield Line("ReLU: χ₁ / σ_w²", "He 2015", 0.5, chi("relu", weight_variance=3.0, bias_variance=0.0) / 3)
    yield Line("ReLU, lecun_normal: ln norm a layer", "He 2015", -0.3465736, math.log(factor), 1e-6, -slope)
    yield Line("ReLU, lecun_normal: norm, 50 layers", "He 2015", 2.98023e-8, factor**50, 1e-12)


def self_normalizing() -> Iterator[Line]:
    """Row 4: SELU with LeCun's weights."""
    setting = {"weight_variance": 1.0, "bias_variance": 0.0, "q": 1.0}
    yield Line("SELU: E φ", "Klambauer 2017", 0.0, float(propagate((Activation("selu"),)).mean[-1]))
    yield Line("SELU: E φ²", "Klambauer 2017", 1.0, variance_map("selu", **setting))
    yield Line("SELU: χ₁", "Klambauer 2017", 1.0715750, chi("selu", **setting))


def saturating() -> Iterator[Line]:
    """Row 5: the sigmoid."""
    setting = {"weight_variance": 1.0, "bias_variance": 0.0}
    q, factor = fixed_point("sigmoid", **setting), chi("sigmoid", **setting)
    sample = walk(jax.random.key(SEED), jax.nn.sigmoid, networks=4, width=500, depth=10, c=0.0, q=q, **setting)
    yield Line("sigmoid: q*", "recomputed", 0.264687, q, 1e-5)
    yield Line("sigmoid: χ₁", "recomputed", 0.0557207, factor, 1e-5)
    yield Line("sigmoid: norm a layer", "recomputed", 0.23605, math.sqrt(factor), 1e-5, math.sqrt(sample.growth))


def half_stable() -> Iterator[Line]:
    """Row 6: GELU's critical point."""
    point, source = critical_point("gelu_exact"), "Roberts 2021"
    yield Line("GELU: K* = (3 + √17) / 2", source, 3.561552813, point.q)
    yield Line("GELU: C_b", source, 0.17292239, point.bias_variance)
    yield Line("GELU: C_W", source, 1.98305826, point.weight_variance)


def slow_decay() -> Iterator[Line]:
    """Row 7: tanh where its variance dies as a power of the depth."""
    q = 1.0
    for _ in range(300):
        q = variance_map("tanh", q, weight_variance=1.0, bias_variance=0.0)
    yield Line("tanh at (1, 0): q after 300 layers", "recomputed", 0.0016768, q, 0.02 * 0.0016768)
    yield Line("tanh at (1, 0): 2 ℓ q", "Roberts 2021", 1.0, 2 * 301 * q, 0.02)


def correlations() -> Iterator[Line]:
    """Row 8: what ReLU does to orthogonal inputs."""
    sample = walk(jax.random.key(SEED), jax.nn.relu, networks=1000, width=300, depth=3, weight_variance=2.0)
    c = 0.0
    for layer, reference in enumerate((1 / math.pi, 0.493731, 0.604826), 1):
        c = correlation_map("relu", c, weight_variance=2.0, bias_variance=0.0)
        yield Line(f"ReLU: c_{layer} from c₀ = 0", "Hayou 2019", reference, c, 1e-6, float(sample.c[layer]), 0.01)


def gaussian_products() -> Iterator[Line]:
    """Row 9: products of Gaussian matrices."""
    for depth, edge in ((1, 4.0), (2, 6.75), (5, 14.929920), (10, 28.531167)):
        squares = _sampled_squares(lambda x: x, jax.nn.initializers.normal(_WIDTH**-0.5), depth)
        theory = predict_spectrum("identity", depth, weights="gaussian", weight_variance=1.0)
        yield from _spectrum_lines(f"linear Gaussian, L = {depth}", depth, edge, theory, squares, (-0.2, 0.05))


def orthogonal_relu() -> Iterator[Line]:
    """Row 10: ReLU with orthogonal weights, which no scale makes an isometry."""
    for depth, edge in ((2, 4.0), (5, 12.207031), (10, 25.811748)):
        squares = _sampled_squares(jax.nn.relu, initializers.orthogonal(math.sqrt(2)), depth)
        theory = predict_spectrum("relu", depth, weights="orthogonal", weight_variance=2.0)
        yield from _spectrum_lines(f"ReLU orthogonal, L = {depth}", depth, edge, theory, squares, (-0.15, 0.05))


_WIDTH = 400


def _sampled_squares(function: Callable[..., Any], initializer: Callable[..., Any], depth: int) -> np.ndarray:
    """Return squared singular values, descending, of a few networks."""
    sample = jax.jit(lambda key: end_to_end(key, function, initializer, depth=depth, width=_WIDTH))
    return np.array([sample(jax.random.key(seed)) for seed in range(10)]) ** 2


def _spectrum_lines(
    name: str, depth: int, edge: float, theory: Any, squares: np.ndarray, band: tuple[float, float]
) -> Iterator[Line]:
    source = "Pennington 2017"
    yield Line(f"{name}: mean of λ", source, 1.0, theory.mean, 1e-6, float(squares.mean()), 0.15)
    # Of one network's values, relative to their mean: the mean itself strays from network to network.
    variance = float((squares.var(1) / squares.mean(1) ** 2).mean())
    yield Line(f"{name}: variance of λ", source, depth, theory.variance, 1e-6, variance, 0.1)
    yield Line(f"{name}: λ_max", source, edge, theory.edge, 1e-4, float(squares[:, 0].mean()), band)


def isometries() -> Iterator[Line]:
    """Row 11: orthogonal layers, fully connected and convolutional."""
    conv = jax.jit(lambda key: conv_values(key, initializers.delta_orthogonal(), lambda x: x, depth=8))
    linear = jax.jit(lambda key: end_to_end(key, lambda x: x, initializers.orthogonal(), depth=32, width=100))
    theory = predict_spectrum("identity", 32, weights="orthogonal", weight_variance=1.0)
    for name, source, values in (
        ("orthogonal, 32 layers", "Saxe 2014", linear(jax.random.key(SEED))),
        ("delta-orthogonal, 8 convolutions", "Xiao 2018", conv(jax.random.key(SEED))),
    ):
        yield Line(f"{name}: largest s", source, 1.0, theory.edge**0.5, 1e-5, float(values[0]), 1e-5)
        yield Line(f"{name}: smallest s", source, 1.0, None, 0.0, float(values[-1]), 1e-5)


def finite_width() -> Iterator[Line]:
    """Row 12: how a narrow linear network strays."""
    width, depth, batches, networks = 10, 3, 50, 20_000

    def squares(key: jax.Array) -> jax.Array:
        h = jnp.broadcast_to(jnp.eye(1, width, dtype=jnp.float32), (networks, width))
        for each in jax.random.split(key, depth):
            weights = jax.random.normal(each, (networks, width, width), jnp.float32) / math.sqrt(width)
            h = jnp.einsum("ni,nij->nj", h, weights)
        return jnp.sum(h**2, 1)

    sample = jax.jit(lambda key: jax.lax.map(squares, jax.random.split(key, batches)))(jax.random.key(SEED))
    sample = np.asarray(sample, np.float64).ravel()
    logs = np.log(sample)
    band = finite_width_band("identity", depth, width, weight_variance=1.0)
    name, source = f"linear, width {width}, {depth} layers", "Hanin 2020"
    yield Line(f"{name}: E ln |Jv|²", source, -0.3099607, band.mean, 1e-6, float(logs.mean()), 0.01)
    yield Line(f"{name}: Var ln |Jv|²", source, 0.6639689, band.variance, 1e-6, float(logs.var()), 0.01)
    signal = propagate(depth * (Dense(1.0),))
    yield Line(f"{name}: E |Jv|²", source, 1.0, math.exp(signal.log_growth), 1e-6, float(sample.mean()), 0.01)
    yield Line(f"{name}: E |Jv|⁴ = (1 + 2/n)^L", source, 1.728, None, 0.0, float((sample**2).mean()), 0.01)


def batch_normalized() -> Iterator[Line]:
    """Row 13: BatchNorm makes gradients explode."""
    depth, batch, width = 12, 128, 500

    def layer(key: jax.Array, h: jax.Array) -> jax.Array:
        return jax.nn.relu(jax.nn.standardize(dense(key, h, 2.0), axis=0, epsilon=0.0))

    runs = [gradient_squares(jax.random.key(seed), layer, depth=depth, shape=(batch, width))[1] for seed in range(10)]
    logs = np.mean(np.log(np.array(runs)), 0)[2:-1]  # the first layers have not settled, and the last has another loss
    measured = math.exp((logs[0] - logs[-1]) / (len(logs) - 1))
    for size, reference, tol, sample in ((None, math.pi / (math.pi - 1), 1e-6, None), (batch, 1.4797, 3e-3, measured)):
        gain = propagate(10 * (Dense(2.0), BatchNorm(size), Activation("relu")), c=0.0).gain[-6:-3].prod()
        name = f"batch {size}" if size else "batch → ∞"
        yield Line(f"BatchNorm, ReLU, {name}: gain a layer", "Yang 2019", reference, float(gain), tol, sample)


def layer_normalized() -> Iterator[Line]:
    """Row 14: what a normalization of the example loses."""
    x = 3 * jax.random.normal(jax.random.key(SEED), (64,)) + 1
    mean, square = float(x.mean()), float((x**2).mean())

    def rms_norm(x: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.mean(x**2))

    for name, function, zeros, scale in (
        ("LayerNorm", functools.partial(jax.nn.standardize, epsilon=0.0), 2, float(x.std())),
        ("RMSNorm", rms_norm, 1, math.sqrt(square)),
    ):
        values = np.asarray(spectra.singular_values(function, x, method="svd").values)
        gain = propagate((LayerNorm(centered=zeros == 2),), q=square, mean=mean).gain[0]
        others = values[:-zeros]
        worst = float(others[np.argmax(np.abs(others - 1 / scale))])
        source = "Ba 2016" if zeros == 2 else "Zhang 2019"
        yield Line(f"{name}: singular values 0", source, zeros, None, 0.0, int(np.sum(values < 1e-5)), 0.0)
        what = f"{name}: the others, 1/{'std' if zeros == 2 else 'rms'} (worst)"
        yield Line(what, source, 1 / scale, math.sqrt(gain), 1e-5, worst, 1e-5)


def softmax() -> Iterator[Line]:
    """Row 15: softmax never stretches by more than a half."""
    largest = jax.jit(lambda x: spectra.singular_values(jax.nn.softmax, x).values[0])
    logits = 3 * jax.random.normal(jax.random.key(SEED), (1000, 8))
    bound = float(jnp.max(jax.vmap(largest)(logits)))
    yield Line("softmax: largest s, two equal logits", "recomputed", 0.5, None, 0.0, float(largest(jnp.zeros(2))), 1e-6)
    yield Line("softmax: largest s, 1000 random ones: ≤ ½", "recomputed", 0.5, None, 0.0, bound, (-1.0, 1e-6))


def residual() -> Iterator[Line]:
    """Row 16: branches added to a stream."""
    width = 500

    def grow(depth: int, scale: float) -> tuple[float, float, float]:
        def layer(key: jax.Array, h: jax.Array) -> jax.Array:
            return h + math.sqrt(scale) * dense(key, jax.nn.relu(h), 2.0)

        signal = propagate(depth * (Residual((Activation("relu"), Dense(2.0)), scale=scale),))
        runs = [gradient_squares(jax.random.key(seed), layer, depth=depth, shape=(8, width)) for seed in range(6)]
        squares, gradients = np.mean(np.array(runs), 0)
        return float(signal.q[-1]), float(squares[-1]), float(gradients[0])

    theory, forward, backward = grow(10, 1.0)
    yield Line("residual, He branch: q a block", "De 2020", 2.0, theory**0.1, 1e-6, forward**0.1, 0.05)
    yield Line("residual, He branch: gradient a block", "De 2020", 2.0, None, 0.0, backward**0.1, 0.05)
    theory, forward, backward = grow(50, 1 / 50)
    source, reference = "Zhang 2019", 2.691588
    yield Line("residual, branch / √50: q, 50 blocks", source, reference, theory, 1e-6, forward, 0.05)
    yield Line("residual, branch / √50: gradient", source, reference, None, 0.0, backward, 0.05)
    key = jax.random.key(SEED)
    alpha = initializers.skip_init()(key, (), jnp.float64)
    block = functools.partial(_skip_block, jax.random.normal(key, (64, 64)), alpha)
    error = float(jnp.max(jnp.abs(spectra.layer_jacobian(block, jax.random.normal(key, (64,))) - jnp.eye(64))))
    gain = propagate((Residual((Dense(2.0),), scale=0.0),)).gain[0]
    yield Line("SkipInit: gain", "De 2020", 1.0, float(gain), 0.0)
    yield Line("SkipInit: largest entry of |J - I|", "De 2020", 0.0, None, 0.0, error, 0.0)


def _skip_block(weights: jax.Array, alpha: jax.Array, x: jax.Array) -> jax.Array:
    return x + alpha * jax.nn.relu(x @ weights)


def recurrence() -> Iterator[Line]:
    """Row 17: gradients through time."""
    steps, size = 20, 64
    key = jax.random.key(SEED)
    weights = jax.random.normal(key, (size, size)) / math.sqrt(size)
    inputs = jax.random.normal(key, (steps, size))
    largest = float(spectra.spectral_norm(weights))
    for name, function, gamma in (("tanh", jnp.tanh, 1.0), ("sigmoid", jax.nn.sigmoid, 0.25)):

        def unrolled(h: jax.Array, function: Callable[..., Any] = function) -> jax.Array:
            return jax.lax.scan(lambda h, x: (function(h @ weights + x), None), h, inputs)[0]

        norm = spectra.spectral_norm(spectra.layer_jacobian(unrolled, jnp.zeros(size)))
        bound = steps * math.log10(gamma * largest)
        what = f"{name} RNN, {steps} steps: log10 |J| ≤ log10 bound"
        yield Line(what, "Pascanu 2013", bound, None, 0.0, math.log10(norm), (-math.inf, 0.0))
    for what, source, bias, reference, tol in (
        ("LSTM, forget bias 1: carry, 100 steps", "Pascanu 2013", 1.0, 2.484379e-14, 1e-4 * 2.484379e-14),
        ("LSTM, chrono bias ln 99: carry, 100 steps", "Tallec 2018", math.log(99), 0.366032, 1e-4),
    ):
        carry = recurrent_signal("lstm", weight_variance=0.0, forget_bias=bias).carry_gain ** (100 / 2)
        yield Line(what, source, reference, carry, tol, _carried(bias), 1e-4)


def _carried(bias: float) -> float:
    """Return the derivative of an LSTM's cell state after 100 steps by the first, with the forget gate alone."""
    import flax.linen as nn

    cell = nn.OptimizedLSTMCell(1, param_dtype=jnp.float64)
    carry = (jnp.zeros(1), jnp.zeros(1))
    params = jax.tree.map(jnp.zeros_like, cell.init(jax.random.key(SEED), carry, jnp.zeros(1)))
    params["params"]["hf"]["bias"] += bias

    def step(c: jax.Array, _: None) -> tuple[jax.Array, None]:
        return cell.apply(params, (c, jnp.zeros(1)), jnp.zeros(1))[0][0], None

    return float(spectra.layer_jacobian(lambda c: jax.lax.scan(step, c, None, length=100)[0], jnp.zeros(1))[0, 0])


def smooth() -> Iterator[Line]:
    """Row 18: He's weights are for ReLU."""
    for name in ("gelu", "gelu_exact", "silu"):
        scales = depth_scales(name, weight_variance=2.0, bias_variance=0.0)
        yield Line(f"{name} with He: q*", "recomputed", 0.0, scales.q)
        yield Line(f"{name} with He: χ₁", "recomputed", 0.5, scales.chi)


def clipping() -> Iterator[Line]:
    """Row 19: the example of the flash cards."""
    gradient = jnp.array([0.9, 100.0])
    clipper = clip_by_global_norm(1.0)
    clipped, _ = clipper.update(gradient, clipper.init(gradient))
    for name, value, reference in zip(("first", "second"), clipped, (0.00899964, 0.99995950), strict=True):
        yield Line(f"[0.9, 100] at norm 1: {name}", "recomputed", reference, float(value), 1e-8)


ROWS: Sequence[Callable[[], Iterator[Line]]] = (
    critical_line,
    scales_of_depth,
    relu_without_bias,
    self_normalizing,
    saturating,
    half_stable,
    slow_decay,
    correlations,
    gaussian_products,
    orthogonal_relu,
    isometries,
    finite_width,
    batch_normalized,
    layer_normalized,
    softmax,
    residual,
    recurrence,
    smooth,
    clipping,
)


def allowed(line: Line) -> str:
    """Write the range of relative differences."""
    low, high = (100 * limit for limit in line.limits)
    if low == -high:
        return f"±{high:g} %" if high >= 0.1 or high == 0 else f"±{high / 100:.0e}"
    return f"{low:g}..{high:g} %" if low > -100 else "below"


def render(row: int | str, line: Line) -> str:
    """Write one line of the table."""
    theory = ["", "", ""] if line.theory is None else [f"{line.theory:.9g}", f"{line.error:.1e}", f"{line.tol:.0e}"]
    measured = ["", "", ""]
    if line.measured is not None:
        measured = [f"{line.measured:.6g}", f"{line.deviation:+.1e}", allowed(line)]
    return _columns(
        row,
        line.what,
        *theory[:1],
        f"{line.reference:.9g}",
        *theory[1:],
        *measured,
        line.source,
        "ok" if line.holds else "FAILS",
    )


def _columns(*cells: object) -> str:
    widths = (3, -46, 15, 15, 9, 7, 13, 10, 11)
    padded = [f"{cell!s:{'<' if width < 0 else '>'}{abs(width)}}" for cell, width in zip(cells, widths, strict=False)]
    return " ".join([*padded, f" {cells[-2]!s:15} {cells[-1]}"])


def main() -> int:
    """Print the table and count the lines that fail."""
    jax.config.update("jax_enable_x64", True)
    chosen = {int(argument) for argument in sys.argv[1:]} or set(range(1, len(ROWS) + 1))
    begin, failures, total = time.perf_counter(), 0, 0
    print(f"jax {jax.__version__}, {jax.default_backend()}, {jnp.zeros(()).dtype}; samples from seed {SEED}")
    heads = ("theory", "literature", "off by", "tol", "measured", "off by", "allowed")
    print(_columns("", "", *heads, "source", ""))
    for number, row in enumerate(ROWS, 1):
        for line in row() if number in chosen else ():
            print(render(number, line), flush=True)
            failures, total = failures + (not line.holds), total + 1
    print(f"{total} lines, {failures} fail, {time.perf_counter() - begin:.0f} s")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
