"""Convolutions on a circle, whose spectrum the Fourier transform knows, and blocks far too large for a matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import spectra

KEY = jax.random.key(2)


def kernel_of(channels, size=3, seed=0):
    """A kernel of shape (height, width, in, out)."""
    return np.random.default_rng(seed).standard_normal((size, size, *channels)) / (size * channels[0] ** 0.5)


def circular(kernel):
    """Convolve an image of shape (height, width, channels) with circular padding."""
    kernel = jnp.asarray(kernel, jnp.float32)
    half = kernel.shape[0] // 2

    def f(x):
        x = jnp.pad(x, ((half, half), (half, half), (0, 0)), mode="wrap")[None]
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]

    return f


def exact_values(kernel, side):
    """Each frequency is a block of its own: the kernel's transfer matrix there."""
    transfer = np.fft.fft2(kernel, (side, side), axes=(0, 1))
    return np.sort(np.linalg.svd(transfer, compute_uv=False).reshape(-1))[::-1]


@pytest.mark.parametrize("method", ["svd", "tridiagonal", "golub-kahan"])
@pytest.mark.parametrize("channels", [(2, 3), (3, 2)])
def test_dense_spectrum(channels, method):
    kernel = kernel_of(channels)
    x = jnp.zeros((6, 6, channels[0]), jnp.float32)
    got = spectra.singular_values(circular(kernel), x, method=method, key=KEY, num_steps=8)
    want = exact_values(kernel, 6)
    assert got.values.shape == want.shape
    assert np.all(np.abs(got.values - want) <= got.accuracy * want[0])
    np.testing.assert_allclose(got.values[0], want[0], rtol=1e-5)


def test_largest_value_without_the_matrix():
    kernel, side = kernel_of((8, 8)), 24
    run = jax.jit(lambda x: spectra.singular_values(circular(kernel), x, k=2, num_steps=64, key=KEY))
    got = run(jnp.zeros((side, side, 8), jnp.float32))
    # All values come in pairs of opposite frequencies; the block of two vectors meets both.
    want = exact_values(kernel, side)[:2]
    np.testing.assert_allclose(got.values[0], want[0], rtol=1e-5)
    assert np.all(np.abs(got.values - want) <= 3 * got.accuracy * want[0])


@pytest.mark.heavy
def test_norm_and_density_without_the_matrix():
    kernel, side = kernel_of((4, 6)), 12
    f, x = circular(kernel), jnp.zeros((side, side, 4), jnp.float32)
    values = exact_values(kernel, side)
    norm = spectra.frobenius_norm_estimate(KEY, f, x, num_probes=24)
    np.testing.assert_allclose(norm.value, side * np.linalg.norm(kernel), atol=4 * norm.standard_error)
    nodes, weights = jax.jit(lambda x: spectra.spectral_density(KEY, f, x, num_probes=8, num_steps=16))(x)
    for power in (1, 2, 4):
        samples = np.sum(weights * nodes**power, axis=1)
        error = np.std(samples, ddof=1) / len(samples) ** 0.5
        np.testing.assert_allclose(np.mean(samples), np.mean(values**power), atol=4 * error)
    assert nodes[0, 0] <= values[0] * (1 + 1e-5)


@pytest.mark.heavy
def test_delta_orthogonal_kernel_is_an_isometry():
    """An orthogonal matrix in the middle of the kernel and zeros around it: every singular value is 1."""
    kernel = np.zeros((3, 3, 4, 4))
    kernel[1, 1] = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    f, x = circular(kernel), jnp.zeros((16, 16, 4), jnp.float32)
    got = spectra.singular_values(f, x, k=3, num_steps=4, key=KEY)
    np.testing.assert_allclose(got.values, 1, rtol=1e-5)
    rank = spectra.effective_rank_estimate(KEY, f, x, num_probes=2, num_steps=2)
    np.testing.assert_allclose(rank.value, 1024, rtol=1e-4)


def temporaries(function, *args):
    """Bytes that a compiled function needs besides its arguments and results."""
    return jax.jit(function).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.heavy
def test_convolutional_block_of_dimension_131072():
    """Two steps; six vectors of each side would do, and the matrix would take 69 GB."""
    kernel = kernel_of((32, 32))
    f, x = circular(kernel), jnp.zeros((64, 64, 32), jnp.float32)
    block = lambda x: x + jnp.tanh(f(x))  # noqa: E731
    run = lambda x: spectra.singular_values(block, x, k=1, num_steps=2, key=KEY)  # noqa: E731
    assert temporaries(run, x) < 40 * x.nbytes
    # At zero the block is the identity plus the convolution.
    identity = np.zeros_like(kernel)
    identity[1, 1] = np.eye(32)
    want = exact_values(kernel + identity, 64)[0]
    got = jax.jit(run)(x)
    assert 0.7 * want < got.values[0] <= want * (1 + 1e-5)


@pytest.mark.heavy
def test_attention_block_of_dimension_131072():
    tokens, width = 512, 256
    query, key, value = (jax.random.normal(k, (width, width)) / width**0.5 for k in jax.random.split(KEY, 3))

    def block(x):
        logits = (x @ query) @ (x @ key).T / width**0.5
        return x + jax.nn.softmax(logits, axis=1) @ (x @ value)

    # Equal tokens attend evenly: the identity, plus the value matrix on the mean of the tokens.
    x = jnp.zeros((tokens, width), jnp.float32)
    run = lambda x: spectra.singular_values(block, x, k=1, num_steps=12, key=KEY)  # noqa: E731
    # Each of the 12 steps keeps a vector of either side; the map of the attention, linearised, has 2 more activations.
    assert temporaries(run, x) < 70 * x.nbytes
    want = np.linalg.norm(np.eye(width) + np.asarray(value, np.float64), 2)
    got = jax.jit(run)(x)
    assert 0.9 * want < got.values[0] <= want * (1 + 1e-5)
