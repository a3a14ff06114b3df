"""Isometries: singular values of one, the Haar measure, convolutions that keep the norm, and identities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxgrad import initializers

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("shape", "options", "matrix_shape"),
    [
        ((16, 16), {}, (1, 16, 16)),
        ((16, 6), {}, (1, 16, 6)),
        ((6, 16), {}, (1, 6, 16)),
        ((3, 2, 4, 8), {}, (1, 24, 8)),
        ((5, 8, 6), {"batch_axis": 0}, (5, 8, 6)),
        ((12, 2, 6), {"einsum": "de,ehk->dhk"}, (1, 12, 12)),
    ],
)
def test_singular_values_are_the_scale(shape, options, matrix_shape):
    kernel = initializers.orthogonal(2.0, **options)(KEY, shape, jnp.float32)
    assert kernel.shape == shape
    values = np.linalg.svd(np.asarray(kernel, np.float64).reshape(matrix_shape), compute_uv=False)
    np.testing.assert_allclose(values, 2.0, atol=1e-5)


def test_other_layouts_and_groups_are_orthogonal_too():
    kernel = initializers.orthogonal(in_axis=1, out_axis=0)(KEY, (5, 9, 2), jnp.float32)  # out, in, window
    matrix = np.asarray(kernel).reshape(5, 18)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(5), atol=1e-5)
    kernel = initializers.orthogonal(feature_group_count=2)(KEY, (3, 2, 8), jnp.float32)
    for group in (kernel[..., :4], kernel[..., 4:]):
        matrix = np.asarray(group).reshape(6, 4)
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(4), atol=1e-5)


def traces(sample):
    """E[tr Q] = 0 and E[(tr Q)^2] = 1 under the Haar measure (Diaconis and Shahshahani)."""
    trace = jnp.trace(sample, axis1=-2, axis2=-1)
    return float(trace.mean()), float(jnp.square(trace).mean())


def test_orthogonal_is_haar_and_naive_qr_is_not():
    num = 2000
    sample = initializers.orthogonal(batch_axis=0)(KEY, (num, 4, 4), jnp.float32)
    first, second = traces(sample)
    assert abs(first) < 4 / num**0.5
    assert abs(second - 1) < 4 * (2 / num) ** 0.5
    naive = traces(jnp.linalg.qr(jax.random.normal(KEY, (num, 4, 4), jnp.float32))[0])
    assert abs(naive[0]) > 20 / num**0.5
    # Every entry is alike: one corner as often positive as negative.
    assert abs(float((sample[:, 0, 0] > 0).mean()) - 0.5) < 2 / num**0.5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_decomposed_in_float32(dtype):
    kernel = initializers.orthogonal()(KEY, (16, 8), dtype)
    assert kernel.dtype == dtype
    gram = np.asarray(kernel, np.float32).T @ np.asarray(kernel, np.float32)
    np.testing.assert_allclose(gram, np.eye(8), atol=1e-2)


def test_orthogonal_equals_jax_for_a_square_and_works_for_complex():
    np.testing.assert_allclose(
        initializers.orthogonal(1.5)(KEY, (6, 6), jnp.float32),
        jax.nn.initializers.orthogonal(1.5)(KEY, (6, 6), jnp.float32),
        atol=1e-6,
    )
    unitary = initializers.orthogonal()(KEY, (5, 5), jnp.complex64)
    np.testing.assert_allclose(unitary.conj().T @ unitary, np.eye(5), atol=1e-5)


def circular(x, kernel, groups=1):
    """A convolution with circular padding; channels last."""
    window = kernel.shape[:-2]
    pad = [(0, 0), *(((k - 1) // 2, k // 2) for k in window), (0, 0)]
    letters = "DHW"[-len(window) :]
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    return lax.conv_general_dilated(
        jnp.pad(x, pad, mode="wrap"),
        kernel,
        (1,) * len(window),
        "VALID",
        dimension_numbers=numbers,
        feature_group_count=groups,
    )


@pytest.mark.parametrize("window", [(3,), (4,), (3, 2), (3, 3, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_delta_orthogonal_convolution_keeps_the_norm(window, groups):
    x = jax.random.normal(KEY, (1, *(5,) * len(window), 4), jnp.float32)
    init = initializers.delta_orthogonal(feature_group_count=groups)
    y = circular(x, init(KEY, (*window, 4 // groups, 6), jnp.float32), groups)
    np.testing.assert_allclose(jnp.linalg.norm(y), jnp.linalg.norm(x), rtol=1e-5)


def test_an_orthogonal_kernel_is_no_isometry_as_a_convolution():
    x = jax.random.normal(KEY, (1, 8, 8, 4), jnp.float32)
    y = circular(x, initializers.orthogonal()(KEY, (3, 3, 4, 8), jnp.float32))
    assert abs(float(jnp.linalg.norm(y) / jnp.linalg.norm(x)) - 1) > 0.01


def test_delta_orthogonal_jacobian_is_an_isometry_and_the_layouts_agree():
    kernel = initializers.delta_orthogonal()(KEY, (3, 3, 2, 3), jnp.float32)
    jacobian = jax.jacobian(lambda x: circular(x, kernel))(jnp.zeros((1, 4, 4, 2), jnp.float32))
    values = np.linalg.svd(np.asarray(jacobian, np.float64).reshape(48, 32), compute_uv=False)
    np.testing.assert_allclose(values, 1, atol=1e-5)
    other = initializers.delta_orthogonal(in_axis=1, out_axis=0)(KEY, (3, 2, 3, 3), jnp.float32)
    np.testing.assert_allclose(jnp.moveaxis(other, (0, 1), (-1, -2)), kernel, atol=1e-6)
    np.testing.assert_allclose(
        kernel, jax.nn.initializers.delta_orthogonal()(KEY, (3, 3, 2, 3), jnp.float32), atol=1e-6
    )


@pytest.mark.parametrize("window", [(3,), (4,), (3, 2)])
def test_identity_convolution_hands_its_input_on(window):
    x = jax.random.normal(KEY, (1, *(5,) * len(window), 4), jnp.float32)
    y = circular(x, initializers.identity(2.0)(KEY, (*window, 4, 6), jnp.float32))
    np.testing.assert_allclose(y[..., :4], 2 * x, rtol=1e-6)
    np.testing.assert_array_equal(y[..., 4:], 0)
    narrow = circular(x, initializers.identity()(KEY, (*window, 4, 3), jnp.float32))
    np.testing.assert_allclose(narrow, x[..., :3], rtol=1e-6)


def test_identity_of_heads_stacks_and_groups():
    init = initializers.identity(einsum="de,ehk->dhk")
    x = jnp.arange(6.0)[None]
    heads = jnp.einsum("de,ehk->dhk", x, init(KEY, (6, 2, 3), x.dtype))
    np.testing.assert_array_equal(heads.reshape(1, 6), x)
    stack = initializers.identity(batch_axis=0)(KEY, (3, 2, 2), jnp.bfloat16)
    np.testing.assert_array_equal(stack.astype(jnp.float32), np.broadcast_to(np.eye(2), (3, 2, 2)))


def test_identity_equals_the_dirac_kernel_of_pytorch():
    torch = pytest.importorskip("torch")
    for shape, groups in (((6, 4, 3, 3), 1), ((4, 6, 3), 1), ((6, 2, 3), 2)):
        ours = initializers.identity(in_axis=1, out_axis=0, feature_group_count=groups)(KEY, shape, jnp.float32)
        np.testing.assert_array_equal(ours, torch.nn.init.dirac_(torch.empty(shape), groups).numpy())


def test_sparse_gives_every_unit_its_connections():
    kernel = initializers.sparse(15, stddev=0.5)(KEY, (100, 80), jnp.float32)
    np.testing.assert_array_equal((kernel != 0).sum(axis=0), 15)
    np.testing.assert_allclose(kernel[kernel != 0].std(), 0.5, rtol=0.1)
    # Inputs are chosen anew for each output: an input is read by 12, with the variance of a binomial.
    used = np.asarray((kernel != 0).sum(axis=1))
    np.testing.assert_allclose(used.var(), 80 * 0.15 * 0.85, rtol=0.5)
    few = initializers.sparse(15)(KEY, (4, 7), jnp.float32)
    assert bool((few != 0).all())
    heads = initializers.sparse(3, einsum="de,ehk->dhk")(KEY, (20, 2, 5), jnp.bfloat16)
    np.testing.assert_array_equal((heads != 0).sum(axis=0), 3)
    stacked = initializers.sparse(3, batch_axis=0)(KEY, (4, 3, 3, 2, 5), jnp.float32)
    np.testing.assert_array_equal((stacked != 0).sum(axis=(1, 2, 3)), 3)


def test_sparse_keeps_the_variance_as_documented():
    x = jax.random.normal(KEY, (400, 100), jnp.float32)
    kernel = initializers.sparse(10, stddev=10**-0.5)(KEY, (100, 80), jnp.float32)
    np.testing.assert_allclose((x @ kernel).var(), 1, rtol=0.1)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: initializers.orthogonal(0.0), "positive, finite scale"),
        (lambda: initializers.orthogonal()(KEY, (4,)), "a bias or a scale has no fan"),
        (lambda: initializers.orthogonal()(KEY, (4, 0)), "sizes of at least 1"),
        (lambda: initializers.orthogonal(feature_group_count=3)(KEY, (3, 2, 8)), "orthogonal: expected groups"),
        (lambda: initializers.delta_orthogonal()(KEY, (4, 4)), "a window of one to three axes"),
        (lambda: initializers.delta_orthogonal()(KEY, (3, 3, 3, 3, 4, 4)), "a window of one to three axes"),
        (
            lambda: initializers.delta_orthogonal()(KEY, (3, 3, 8, 4)),
            "as many output as input channels; got 8 in and 4",
        ),
        (lambda: initializers.delta_orthogonal(feature_group_count=4)(KEY, (3, 3, 4, 8)), "4 in and 2 out"),
        (lambda: initializers.identity(-1.0), "positive, finite scale"),
        (lambda: initializers.identity()(KEY, (4,)), "a bias or a scale has no fan"),
        (lambda: initializers.sparse(0), "num_connections of at least 1"),
        (lambda: initializers.sparse(3, stddev=0.0), "positive, finite stddev"),
    ],
)
def test_kernels_refuse(call, match, unchecked):
    with pytest.raises(ValueError, match=match):
        call()
