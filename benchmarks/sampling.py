"""Random networks to hold theory against: dense and convolutional ones, sampled layer by layer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import spectra
from jaxgrad.meanfield import depth_scales


class Walk(NamedTuple):
    """What fully connected random networks do to a few inputs, layer by layer, the input first.

    Attributes:
      overlaps: Mean products of the inputs' preactivations, of shape (networks, depth + 1, inputs, inputs).
      squares: Squared norms of a tangent of each input, of shape (networks, depth + 1, inputs).
    """

    overlaps: jax.Array
    squares: jax.Array

    @property
    def q(self) -> np.ndarray:
        """Mean square of a preactivation, of shape (depth + 1,)."""
        return np.asarray(jnp.einsum("nlii->nli", self.overlaps).mean((0, 2)))

    @property
    def c(self) -> np.ndarray:
        """Mean correlation of two inputs, of shape (depth + 1,)."""
        norms = jnp.sqrt(jnp.einsum("nlii->nli", self.overlaps))
        cosines = self.overlaps / (norms[..., :, None] * norms[..., None, :])
        count = cosines.shape[-1]
        return np.asarray((cosines.sum((2, 3)) - count).mean(0) / (count * (count - 1)))

    @property
    def growth(self) -> float:
        """Mean factor by which a layer multiplies the squared norm of a tangent."""
        return float(jnp.mean(self.squares[:, 1:] / self.squares[:, :-1]))


@functools.partial(jax.jit, static_argnames=("function", "networks", "width", "depth", "inputs"))
def walk(
    key: jax.Array,
    function: Callable[[jax.Array], jax.Array],
    *,
    networks: int,
    width: int,
    depth: int,
    inputs: int = 8,
    q: float = 1.0,
    c: float = 0.0,
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
) -> Walk:
    """Send inputs, whose preactivations have exactly these moments, through random networks."""
    normal = functools.partial(jax.random.normal, dtype=jnp.float32)
    moments = jnp.float32(q) * (jnp.float32(c) + jnp.float32(1 - c) * jnp.eye(inputs, dtype=jnp.float32))
    weight_scale, bias_scale = jnp.sqrt(jnp.float32(weight_variance) / width), jnp.sqrt(jnp.float32(bias_variance))

    def layer(state: tuple[jax.Array, jax.Array], key: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
        h, tangents = jax.jvp(function, *((each,) for each in state))
        weight_key, bias_key = jax.random.split(key)
        weights = weight_scale * normal(weight_key, (width, width))
        state = h @ weights + bias_scale * normal(bias_key, (width,)), tangents @ weights
        return state, summary(state)

    def summary(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        h, tangents = state
        return h @ h.T / width, jnp.sum(tangents**2, 1)

    def network(key: jax.Array) -> Walk:
        input_key, tangent_key, *keys = jax.random.split(key, depth + 2)
        basis = jnp.linalg.qr(normal(input_key, (width, inputs)))[0].T * math.sqrt(width)
        tangents = normal(tangent_key, (inputs, width))
        state = jnp.linalg.cholesky(moments) @ basis, tangents / jnp.linalg.norm(tangents, axis=1, keepdims=True)
        _, later = jax.lax.scan(layer, state, jnp.stack(keys))
        return Walk(*(jnp.concatenate([now[None], then]) for now, then in zip(summary(state), later, strict=True)))

    return jax.lax.map(network, jax.random.split(key, networks))


@functools.partial(jax.jit, static_argnames=("layer", "depth", "shape"))
def gradient_squares(
    key: jax.Array, layer: Callable[[jax.Array, jax.Array], jax.Array], *, depth: int, shape: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Return the mean squares of the signal after each layer, and of the gradient before each."""
    input_key, output_key, *keys = jax.random.split(key, depth + 2)
    x, cotangent = (jax.random.normal(each, shape, jnp.float32) for each in (input_key, output_key))

    def loss(kicks: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(h: jax.Array, scanned: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            key, kick = scanned
            h = layer(key, h + kick)
            return h, jnp.mean(h**2)

        h, squares = jax.lax.scan(step, x, (jnp.stack(keys), kicks))
        return jnp.sum(h * cotangent), squares

    gradient, squares = jax.grad(loss, has_aux=True)(jnp.zeros((depth, *shape), jnp.float32))
    return squares, jnp.mean(gradient**2, (1, 2))


def dense(key: jax.Array, h: jax.Array, weight_variance: float) -> jax.Array:
    """Multiply by fresh Gaussian weights."""
    width = h.shape[-1]
    return h @ (jax.random.normal(key, (width, width), h.dtype) * math.sqrt(weight_variance / width))


def end_to_end(
    key: jax.Array,
    function: Callable[[jax.Array], jax.Array],
    initializer: Callable[..., jax.Array],
    *,
    depth: int,
    width: int,
    q: float = 1.0,
    bias_variance: float = 0.0,
    dtype: Any = jnp.float64,
    tol: float | None = None,
) -> jax.Array:
    """Return the singular values of ``D W ... D W`` of one random network whose preactivations start at variance q."""
    input_key, key = jax.random.split(key)
    keys = jax.random.split(key, depth)
    x = jax.random.normal(input_key, (width,), dtype)
    first = initializer(jax.random.split(keys[0])[0], (width, width), dtype)
    x = x * math.sqrt(q) / jnp.sqrt(jnp.mean((x @ first) ** 2))

    def layer(h: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        weight_key, bias_key = jax.random.split(key)
        bias = math.sqrt(bias_variance) * jax.random.normal(bias_key, (width,), dtype)
        return function(h @ initializer(weight_key, (width, width), dtype) + bias), None

    return spectra.singular_values(lambda x: jax.lax.scan(layer, x, keys)[0], x, tol=tol).values


def decay_length(distances: np.ndarray, first: int, last: int) -> float:
    """Return over how many layers distances from a fixed point fall by a factor e, of a line through logarithms."""
    return abs(1 / float(np.polyfit(np.arange(first, last), np.log(np.abs(distances[first:last])), 1)[0]))


def sample_scales(
    key: jax.Array, *, networks: int, width: int, depth: int, weight_variance: float, bias_variance: float
) -> dict[str, float]:
    """Return the growth of gradients and the depth scales that tanh networks show."""
    setting = {"weight_variance": weight_variance, "bias_variance": bias_variance}
    scales = depth_scales("tanh", **setting)
    # Near where correlations settle, for the scale is that of small distances; from both sides of it where there are
    # two, through the same weights, which cancels most of what strays.
    step = 0.1 * (1 - scales.c)
    starts = (scales.c + step, scales.c - step) if step else (0.99,)
    sizes = {"networks": networks, "width": width, "depth": depth, "q": scales.q, **setting}
    samples = [walk(key, jnp.tanh, c=c, **sizes) for c in starts]
    distances = samples[0].c - (samples[1].c if len(samples) == 2 else 1)
    growth = float(np.mean([sample.growth for sample in samples]))
    reach = decay_length(distances, 0, depth)
    return {"chi": growth, "xi_c": reach, "xi_gradient": 1 / abs(math.log(growth))}


def conv_values(
    key: jax.Array,
    initializer: Callable[..., jax.Array],
    function: Callable[[jax.Array], jax.Array],
    *,
    depth: int,
    size: int = 6,
    channels: int = 8,
    q: float = 1.0,
    bias_variance: float = 0.0,
) -> jax.Array:
    """Return the singular values of ``D W ... D W`` of 3 x 3 convolutions with circular padding."""
    input_key, key = jax.random.split(key)
    keys = jax.random.split(key, depth)
    x = math.sqrt(q) * jax.random.normal(input_key, (size, size, channels))

    def layer(h: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        weight_key, bias_key = jax.random.split(key)
        kernel = initializer(weight_key, (3, 3, channels, channels), h.dtype)
        bias = math.sqrt(bias_variance) * jax.random.normal(bias_key, (channels,), h.dtype)
        return function(circular_conv(h, kernel) + bias), None

    return spectra.singular_values(lambda x: jax.lax.scan(layer, x, keys)[0], x, method="svd").values


def circular_conv(image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve one image (height, width, channels) with a 3 x 3 kernel, on a torus."""
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="wrap")[None]
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(padded, kernel, (1, 1), "VALID", dimension_numbers=numbers)[0]
