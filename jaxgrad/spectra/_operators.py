"""The Jacobian of a function as a linear operator: two products, no matrix.

Inputs and outputs may be pytrees; the operator acts on flat vectors, leaves in the order of ``jax.tree.leaves``, each
leaf in row-major order. That order is also the order of the rows and columns of
:func:`jaxgrad.spectra.layer_jacobian`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad._checks import message
from jaxgrad.tracing._flatten import bodies


class JacobianOperator(NamedTuple):
    """A Jacobian ``J`` of shape (out_size, in_size), by its products.

    Attributes:
      matvec: Maps a tangent of shape (in_size,) to ``J @ tangent``, of shape (out_size,).
      rmatvec: Maps a cotangent of shape (out_size,) to ``J.T @ cotangent``, of shape (in_size,).
      in_size: How many numbers the input has.
      out_size: How many numbers the output has.
      dtype: dtype of the vectors on both sides: float64 if any leaf is, else float32.
      eps: Machine epsilon of the coarsest dtype in the input and output: the products are no more exact than this.
    """

    matvec: Callable[[Float[Array, " in"]], Float[Array, " out"]]
    rmatvec: Callable[[Float[Array, " out"]], Float[Array, " in"]]
    in_size: int
    out_size: int
    dtype: jnp.dtype
    eps: float


def jacobian_operator(f: Callable[[Any], Any], x: Any) -> JacobianOperator:
    """Build the products of the Jacobian of ``f`` at ``x`` with a vector, from either side.

    ``matvec(v) = d/dt f(x + t v) at t = 0`` and ``<u, matvec(v)> = <rmatvec(u), v>``. ``f`` is linearised once, so
    each product costs about one evaluation of ``f`` without its nonlinear parts.

    Args:
      f: Function of one array or pytree of real floating arrays, to the same.
      x: Where to linearise; any shapes.

    Returns:
      The operator. Its functions close over the linearisation, so build and use it inside one ``jit``.

    Raises:
      TypeError: A leaf of ``x`` or of ``f(x)`` is not real floating.

    Numerics:
      float16 and bfloat16 leaves keep their precision inside ``f``; the flat vectors are float32. A function with a
      ``custom_vjp`` has no forward derivative: its ``matvec`` is then the transpose of its ``rmatvec``.

    Example:
      >>> import jax.numpy as jnp
      >>> operator = jacobian_operator(lambda x: x**2, jnp.array([1.0, 2.0]))
      >>> operator.matvec(jnp.array([1.0, 1.0])).tolist()
      [2.0, 4.0]

    See also:
      ``jax.linearize`` and ``jax.vjp``, which keep the tree structure; ``scipy.sparse.linalg.LinearOperator``.
    """
    x, out = check_function("jacobian_operator", f, x)
    leaves = [*jax.tree.leaves(x), *jax.tree.leaves(out)]
    dtype = jnp.dtype(jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in leaves) else jnp.float32)
    eps = max([float(jnp.finfo(leaf.dtype).eps) for leaf in leaves], default=float(jnp.finfo(dtype).eps))
    push, pull = linear_maps(f, x, out)
    return JacobianOperator(
        matvec=lambda tangent: flatten(push(unflatten(tangent, x)), dtype),
        rmatvec=lambda cotangent: flatten(pull(unflatten(cotangent, out)), dtype),
        in_size=tree_size(x),
        out_size=tree_size(out),
        dtype=dtype,
        eps=eps,
    )


def linear_maps(f: Callable, x: Any, out: Any) -> tuple[Callable, Callable]:
    """The Jacobian's push-forward and pull-back between trees, from one linearisation."""
    push: Callable | None = None
    try:
        _, push = jax.linearize(f, x)
        if "custom_lin" in _primitives(jax.make_jaxpr(push)(x)):
            push = None  # under jit, a custom_vjp is refused only when compiled
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
    if push is None:
        _, vjp = jax.vjp(f, x)
        pull = lambda cotangent: vjp(cotangent)[0]  # noqa: E731
        transpose = jax.linear_transpose(pull, out)
        return lambda tangent: transpose(tangent)[0], pull
    transpose = jax.linear_transpose(push, x)
    return push, lambda cotangent: transpose(cotangent)[0]


def _primitives(closed: Any) -> set[str]:
    """The names of the primitives in a jaxpr, inner ones included."""
    names = {eqn.primitive.name for eqn in closed.jaxpr.eqns}
    return names.union(*(_primitives(body) for eqn in closed.jaxpr.eqns for body in bodies(eqn.params)))


def push_forward(f: Callable, x: Any) -> Callable:
    """The Jacobian's push-forward; a ``TypeError`` that names ``custom_vjp`` where ``f`` has one inside."""
    _, push = jax.linearize(f, x)
    # jax itself refuses only when the map is run, under jit not before it is compiled.
    if "custom_lin" in _primitives(jax.make_jaxpr(push)(x)):
        raise TypeError("can't push a tangent through a custom_vjp function")
    return push


def check_function(function: str, f: Callable, x: Any) -> tuple[Any, Any]:
    """Refuse inputs and outputs that have no real derivative; return ``x`` as arrays and the shapes of ``f(x)``."""
    if not callable(f):
        raise TypeError(
            message(
                function,
                "a function f and the point x to differentiate it at",
                f"f of type {type(f).__name__}",
                "pass the function first; the norms of a Jacobian you already hold take the array alone",
            )
        )
    x = jax.tree.map(jnp.asarray, x)
    _check_floating(function, "x", x, "close over integer inputs: f = lambda x: model(x, labels)")
    out = jax.eval_shape(f, x)
    _check_floating(function, "f(x)", out, "return the value before it is rounded or compared; cast with astype(float)")
    return x, out


def _check_floating(function: str, name: str, tree: Any, remedy: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            where = f"{name}{jax.tree_util.keystr(path)}"
            if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
                remedy = "split it into its real and imaginary part"
            raise TypeError(message(function, f"real floating leaves in {name}", f"{where} of {leaf.dtype}", remedy))


def tree_size(tree: Any) -> int:
    """How many numbers a tree holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def flatten(tree: Any, dtype: Any) -> Array:
    """All leaves in one vector."""
    parts = [leaf.reshape(-1).astype(dtype) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(parts) if parts else jnp.zeros((0,), dtype)


def unflatten(vector: Array, like: Any) -> Any:
    """One vector in the shapes and dtypes of ``like``."""
    leaves, structure = jax.tree.flatten(like)
    parts, start = [], 0
    for leaf in leaves:
        parts.append(vector[start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    return jax.tree.unflatten(structure, parts)
