"""The dense Jacobian against jax.jacfwd, jax.jacrev and finite differences; the operator against the matrix."""

from __future__ import annotations

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxgrad import spectra

KEY = jax.random.key(0)


def network(x):
    weights = jnp.cos(jnp.arange(5.0 * x.size)).reshape(5, x.size).astype(x.dtype)
    return jnp.tanh(weights @ x.reshape(-1)).reshape(5, 1)


def flat_jacobian(f, x):
    out = jax.eval_shape(f, x)
    return np.asarray(jax.jacrev(f)(x)).reshape(out.size, x.size)


@pytest.mark.parametrize("shape", [(), (3,), (2, 1, 4)])
@pytest.mark.parametrize("mode", [None, "forward", "reverse"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_equals_jax(shape, mode, chunk_size):
    x = jax.random.normal(KEY, shape)
    got = spectra.layer_jacobian(network, x, mode=mode, chunk_size=chunk_size)
    np.testing.assert_allclose(got, flat_jacobian(network, x), rtol=1e-5, atol=1e-6)


@hypothesis.given(size=st.integers(0, 6), out=st.integers(0, 6), chunk_size=st.integers(1, 7))
@hypothesis.settings(max_examples=8)
def test_chunks_change_nothing(size, out, chunk_size):
    weights = jnp.arange(float(out * size)).reshape(out, size)
    for mode in ("forward", "reverse"):
        got = spectra.layer_jacobian(lambda x: weights @ x, jnp.ones(size), mode=mode, chunk_size=chunk_size)
        np.testing.assert_array_equal(got, weights)


def test_equals_finite_differences(x64):
    x = jax.random.normal(KEY, (4,), jnp.float64)
    steps = 1e-6 * np.eye(4)
    columns = [(network(x + step) - network(x - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(spectra.layer_jacobian(network, x), np.stack(columns, 1)[..., 0], atol=1e-8)


def test_trees_are_flattened_leaf_by_leaf():
    def f(x):
        return {"second": x["b"] * 3.0, "first": jnp.sum(x["a"]).reshape(1, 1)}

    x = {"b": jnp.ones(()), "a": jnp.ones((2,))}
    want = [[1.0, 1.0, 0.0], [0.0, 0.0, 3.0]]
    for mode in ("forward", "reverse"):
        np.testing.assert_array_equal(spectra.layer_jacobian(f, x, mode=mode), want)


def test_default_takes_the_cheaper_side():
    @jax.custom_jvp
    def forward_only(x):
        return x

    forward_only.defjvp(lambda primals, tangents: (primals[0], 2.0 * tangents[0]))
    # jaxprs show how many tangents go through the function.
    tall = jax.make_jaxpr(lambda x: spectra.layer_jacobian(lambda y: jnp.tile(jnp.sin(y), 50), x))(jnp.ones(2))
    wide = jax.make_jaxpr(lambda x: spectra.layer_jacobian(lambda y: jnp.sin(y)[:2], x))(jnp.ones(100))
    assert "100,100" not in str(tall)
    assert "100,100" not in str(wide)
    np.testing.assert_array_equal(spectra.layer_jacobian(forward_only, jnp.ones(2)), 2 * np.eye(2))


def test_functions_with_one_side_only_use_it():
    @jax.custom_vjp
    def reverse_only(x):
        return 2.0 * x

    reverse_only.defvjp(lambda x: (2.0 * x, None), lambda _, cotangent: (2.0 * cotangent,))

    def forward_only(x):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * 2.0), (0, x))[1][:1]

    for f in (
        reverse_only,
        jax.jit(reverse_only),
        lambda x: jax.lax.scan(lambda c, _: (reverse_only(c), None), x / 2, length=2)[0],
    ):
        np.testing.assert_array_equal(spectra.layer_jacobian(f, jnp.ones(2)), 2 * np.eye(2))
        np.testing.assert_array_equal(jax.jit(lambda x, f=f: spectra.layer_jacobian(f, x))(jnp.ones(2)), 2 * np.eye(2))
        np.testing.assert_allclose(spectra.singular_values(f, jnp.ones(2)).values, [2.0, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(spectra.layer_jacobian(forward_only, jnp.ones(2)), [[8.0, 0.0]])
    with pytest.raises(TypeError, match="custom_vjp"):
        spectra.layer_jacobian(reverse_only, jnp.ones(2), mode="forward")
    operator = spectra.jacobian_operator(reverse_only, jnp.ones(2))
    np.testing.assert_array_equal(operator.matvec(jnp.array([1.0, 3.0])), [2.0, 6.0])


def test_jit_vmap_and_grad():
    x = jax.random.normal(KEY, (3, 4))
    batched = jax.jit(jax.vmap(lambda x: spectra.layer_jacobian(network, x, chunk_size=2)))(x)
    for row, got in zip(x, batched, strict=True):
        np.testing.assert_allclose(got, flat_jacobian(network, row), rtol=1e-5, atol=1e-6)
    for mode in ("forward", "reverse"):
        got = jax.grad(lambda x, mode=mode: jnp.sum(spectra.layer_jacobian(network, x, mode=mode) ** 2))(x[0])
        want = jax.grad(lambda x: jnp.sum(jax.jacfwd(network)(x) ** 2))(x[0])
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_low_precision_stays_low(dtype):
    x = jax.random.normal(KEY, (4,)).astype(dtype)
    for mode in ("forward", "reverse"):
        got = spectra.layer_jacobian(lambda x: jnp.sin(x)[:3], x, mode=mode)
        assert got.dtype == dtype
        want = np.eye(4)[:3] * np.cos(np.asarray(x, np.float32))
        np.testing.assert_allclose(got.astype(jnp.float32), want, atol=4 * float(jnp.finfo(dtype).eps))
    assert spectra.layer_jacobian(lambda x: x.astype(jnp.float32), x).dtype == jnp.float32
    assert spectra.jacobian_operator(jnp.sin, x).matvec(jnp.ones(4)).dtype == jnp.float32


def test_operator_is_the_matrix_and_its_transpose():
    x = jax.random.normal(KEY, (2, 3))
    operator = spectra.jacobian_operator(network, x)
    assert (operator.in_size, operator.out_size) == (6, 5)
    matrix = flat_jacobian(network, x)
    np.testing.assert_allclose(jax.vmap(operator.matvec)(jnp.eye(6)).T, matrix, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(operator.rmatvec)(jnp.eye(5)), matrix, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [spectra.layer_jacobian, spectra.jacobian_operator, spectra.singular_values])
def test_bad_input(function, unchecked):
    name = function.__name__
    name = "jacobian_operator" if name == "singular_values" else name
    with pytest.raises(
        TypeError, match=rf"{name}: expected real floating leaves in x; got x of int(32|64).\nTo fix it"
    ):
        function(lambda x: x, jnp.arange(3))
    with pytest.raises(TypeError, match=r"got x\['b'\] of bool"):
        function(lambda x: x["a"], {"a": jnp.ones(2), "b": jnp.array(True)})
    with pytest.raises(TypeError, match=r"f\(x\) of int(32|64)"):
        function(lambda x: jnp.argmax(x), jnp.ones(3))
    with pytest.raises(TypeError, match="imaginary"):
        function(lambda x: jax.lax.complex(x, x), jnp.ones(3))
    with pytest.raises(TypeError, match="pass the function first"):
        function(jnp.ones(3), jnp.ones(3))


def test_bad_options(unchecked):
    with pytest.raises(ValueError, match="layer_jacobian: expected mode"):
        spectra.layer_jacobian(jnp.sin, jnp.ones(2), mode="backward")
    with pytest.raises(ValueError, match="positive chunk_size"):
        spectra.layer_jacobian(jnp.sin, jnp.ones(2), chunk_size=0)
