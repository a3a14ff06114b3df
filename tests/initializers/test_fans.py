"""Fans counted from the Jacobian of the layer itself, and what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxgrad.initializers import fans


def counted(layer, x_shape, kernel_shape):
    """The definition: how many inputs an output reads, and how many outputs an input reaches, away from the border."""
    kernel = jnp.ones(kernel_shape)
    jacobian = jax.jacobian(lambda x: layer(x, kernel))(jnp.ones(x_shape))
    out_ndim = jacobian.ndim - len(x_shape)
    matrix = np.asarray(jacobian).reshape(int(np.prod(jacobian.shape[:out_ndim])), -1)
    return int(matrix.sum(axis=1).max()), int(matrix.sum(axis=0).max())


@pytest.mark.parametrize(
    ("equation", "x_shape", "shape"),
    [
        ("bi,io->bo", (1, 5), (5, 7)),
        ("de,ehk->dhk", (1, 12), (12, 2, 3)),
        ("bshk,hke->bse", (1, 1, 2, 3), (2, 3, 12)),
        ("...e,ehk->...hk", (1, 1, 12), (12, 2, 3)),
        ("nbi,nio->nbo", (4, 1, 5), (4, 5, 7)),
        ("b d, d k o -> b o", (1, 3), (3, 2, 5)),
    ],
)
def test_einsum_counts_the_products_of_the_layer(equation, x_shape, shape):
    want = counted(lambda x, w: jnp.einsum(equation, x, w), x_shape, shape)
    assert fans(shape, einsum=equation) == want


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution_counts_the_products_of_the_layer(groups):
    numbers = ("NHWC", "HWIO", "NHWC")

    def layer(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)

    shape = (3, 2, 4 // groups, 8)
    assert fans(shape, feature_group_count=groups) == counted(layer, (1, 7, 6, 4), shape)


def test_transposed_convolution_counts_the_products_of_the_layer():
    def layer(x, w):
        return lax.conv_transpose(x, w, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"), transpose_kernel=True)

    shape = (3, 4, 2)  # window, out, in
    assert fans(shape, in_axis=-1, out_axis=-2) == counted(layer, (1, 9, 2), shape)


def test_a_stride_divides_the_fan_in_of_a_transposed_convolution_as_documented():
    def layer(x, w):
        return lax.conv_transpose(x, w, (2,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))

    jacobian = jax.jacobian(lambda x: layer(x, jnp.ones((4, 2, 3))))(jnp.ones((1, 20, 2)))
    inner = np.asarray(jacobian).reshape(40, 3, 40).sum(axis=-1)[8:-8]
    np.testing.assert_array_equal(inner, fans((4, 2, 3)).fan_in / 2)


@pytest.mark.parametrize(
    ("shape", "options", "want"),
    [
        ((512, 8, 64), {"einsum": "de,ehk->dhk"}, (512, 512)),
        ((512, 8, 64), {"out_axis": (-2, -1), "in_axis": 0}, (512, 512)),
        ((8, 64, 512), {"in_axis": (0, 1)}, (512, 512)),
        ((8, 64, 512), {"einsum": "shk,hkd->sd"}, (512, 512)),
        ((12, 256, 128), {"batch_axis": 0}, (256, 128)),
        ((32, 16, 3, 3), {"in_axis": 1, "out_axis": 0}, (144, 288)),
        ((1000, 64), {"in_axis": (), "batch_axis": 0}, (1, 64)),
        ((64,), {"in_axis": (), "out_axis": 0}, (1, 64)),
    ],
)
def test_shapes_that_defaults_get_wrong(shape, options, want):
    assert fans(shape, **options) == want
    assert len(shape) == 1 or fans(shape) != want


def test_fans_of_a_layer_list_equal_those_of_pytorch():
    torch = pytest.importorskip("torch")
    for shape in ((5, 7), (5, 7, 3), (5, 7, 3, 2)):
        want = torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(shape))
        assert fans(shape, in_axis=1, out_axis=0) == want


@pytest.mark.parametrize(
    ("shape", "options", "match"),
    [
        ((64,), {}, "fans: expected an in_axis within a kernel of at least 2 axes"),
        ((), {}, "a bias or a scale has no fan"),
        ((0, 3), {}, r"sizes of at least 1; got \(0, 3\)"),
        ((3, 0), {"einsum": "bi,io->bo"}, "sizes of at least 1"),
        ((3, 4), {"in_axis": 2}, "in_axis=2 for shape"),
        ((3, 4), {"in_axis": 1}, "every axis in one place"),
        ((3, 4), {"in_axis": 0, "einsum": "bi,io->bo"}, "either axes or einsum"),
        ((3, 4), {"einsum": "bi,io"}, "the kernel second"),
        ((3, 4), {"einsum": "io->o"}, "the kernel second"),
        ((3, 3), {"einsum": "bi,ii->b"}, "different letters in the kernel"),
        ((3, 4), {"einsum": "be,ehk->bhk"}, "3 axes of 'ehk'"),
        ((3, 4), {"einsum": "bi,io->bz"}, "z comes from nowhere"),
        ((3, 3, 4, 6), {"feature_group_count": 4}, "groups that divide the 6 outputs"),
    ],
)
def test_fans_refuses(shape, options, match, unchecked):
    with pytest.raises(ValueError, match=match):
        fans(shape, **options)


@pytest.mark.parametrize("shape", [3, (3, 4.0), "ab"])
def test_fans_refuses_what_is_no_shape(shape, unchecked):
    with pytest.raises(TypeError, match="a sequence of integers"):
        fans(shape)
