"""Newton's method without and with the Hessian as a matrix, on functions that need not be convex."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxgrad._checks import message
from jaxgrad.optimizers import _vectors as vectors
from jaxgrad.optimizers._linesearch import scale_by_wolfe_linesearch, with_known_arguments


class NewtonCGState(NamedTuple):
    """State of :func:`scale_by_newton_cg`.

    Attributes:
      num_hessian_products: Products of the Hessian with a vector in the last call.
      residual: Norm of ``H p - updates`` for the direction p of the last call, over the norm of the updates.
      negative_curvature: Whether the last call met a direction along which the function curves down.
    """

    num_hessian_products: Int[Array, ""]
    residual: Float[Array, ""]
    negative_curvature: Bool[Array, ""]


class _Solve(NamedTuple):
    solution: Any
    residual: Any
    direction: Any
    squared: Float[Array, ""]
    count: Int[Array, ""]
    negative: Bool[Array, ""]
    done: Bool[Array, ""]


def scale_by_newton_cg(
    solver: Literal["cg", "cholesky", "eigh"] = "cg",
    *,
    max_products: int | None = None,
    forcing: float = 0.1,
    eps: float | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Precondition the gradient by the inverse Hessian, made safe where the Hessian is not positive definite.

    .. math::
        \|\nabla^2 f(x)\, p - g\| \le \min(\eta, \sqrt{\|g\|})\, \|g\|

    is what ``"cg"`` solves for p, with :math:`\eta` = ``forcing``, from products of the Hessian with vectors:
    forward-mode derivatives of the reverse-mode gradient, linearized once a call. It stops at a direction along
    which the function curves down, with what it has; where that is the gradient itself, with the step the same
    curvature upwards would ask for. The other two form the Hessian. ``"cholesky"`` factorizes it as :math:`L D L^\top`
    and raises each entry of D that is negative or too small for a bounded L, which leaves a positive definite Hessian
    as it is. ``"eigh"`` replaces its eigenvalues by :math:`\max(|\lambda_i|, \epsilon \max_j |\lambda_j|)`, so a saddle
    repels. In each p points uphill; the sign comes with the next link.

    Args:
      solver: ``"cg"``, or ``"cholesky"`` or ``"eigh"`` for up to a few hundred parameters. Static.
      max_products: Most products a call of ``"cg"``, so a direction may be inexact; None: twice the number of
        parameters. Static.
      forcing: :math:`\eta`, between 0 and 1. Small values take more products and fewer steps. Static.
      eps: Smallest eigenvalue of ``"eigh"``, or entry of D of ``"cholesky"``, over the largest of the Hessian; None:
        the square root of the dtype's epsilon for the one, and that epsilon for the other. Static.

    Returns:
      A link with ``update(updates, state, params, *, value_fn, **extra_args)``; ``value_fn`` gets those extra
      arguments that it has parameters for. The state is a ``NewtonCGState``.

    Raises:
      TypeError: A parameter is not a real floating array.
      ValueError: A setting is out of range, or ``params`` or ``value_fn`` is missing.

    Numerics:
      Exactly at a saddle the gradient is 0, and so is p. A zero Hessian gives a very long step with ``"cg"``, which a
      line search shortens, and the gradient with the others, as a Hessian does that is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> link, x = scale_by_newton_cg(forcing=0.01), jnp.array([3.0, 4.0])
      >>> f = lambda x: x[0] ** 2 + 5 * x[1] ** 2
      >>> direction, _ = link.update(jnp.array([6.0, 40.0]), link.init(x), x, value_fn=f)
      >>> [round(entry, 3) for entry in direction.tolist()]
      [3.0, 4.0]

    References:
      :cite:p:`nocedal2006numerical`, algorithm 7.1, where the length along the gradient is ours; section 3.4 for the
      dense ones, of which :cite:p:`gill1974newton` is the factorization, here without a permutation.
      :cite:p:`dembo1983truncated` for truncation, :cite:p:`pearlmutter1994fast` for the products.

    See also:
      ``scipy.optimize.minimize(method="Newton-CG")``.
    """
    if solver not in ("cg", "cholesky", "eigh"):
        expected = "solver 'cg', 'cholesky' or 'eigh'"
        raise ValueError(message("scale_by_newton_cg", expected, repr(solver), "leave it out for 'cg'"))
    if max_products is not None and max_products < 1:
        raise ValueError(message("scale_by_newton_cg", "max_products of at least 1", str(max_products), "leave it out"))
    if not 0 < forcing < 1:
        raise ValueError(message("scale_by_newton_cg", "forcing between 0 and 1", str(forcing), "leave it out"))

    def init(params: Any) -> NewtonCGState:
        vectors.check_real("scale_by_newton_cg", "params", params)
        dtype = vectors.dtype_of(params)
        return NewtonCGState(jnp.asarray(0, jnp.int32), jnp.zeros((), dtype), jnp.asarray(False))

    def transform(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        value_fn: Callable[..., Any] | None = None,
        **extra_args: Any,
    ) -> tuple[Any, NewtonCGState]:
        del state
        if params is None or value_fn is None:
            raise ValueError(
                message(
                    "scale_by_newton_cg",
                    "update(updates, state, params, value_fn=)",
                    "one of them missing",
                    "pass the function whose Hessian is meant as value_fn",
                )
            )
        _, product = jax.linearize(jax.grad(with_known_arguments(value_fn, extra_args)), params)
        if solver != "cg":
            return _solve_dense(product, updates, params, solver, eps)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        limit = 2 * size if max_products is None else max_products
        return _solve_truncated(product, updates, limit, forcing)

    return optax.GradientTransformationExtraArgs(init, transform)


def newton(
    learning_rate: optax.ScalarOrSchedule | None = None,
    solver: Literal["cg", "cholesky", "eigh"] = "cg",
    *,
    max_products: int | None = None,
    forcing: float = 0.1,
    eps: float | None = None,
    linesearch: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Minimize by Newton's method with a line search.

    .. math::
        x_{k+1} = x_k - \alpha_k p_k, \qquad \nabla^2 f(x_k)\, p_k \approx g_k

    Args:
      learning_rate: Multiplies the direction before the line search; None: 1.
      solver: As in ``scale_by_newton_cg``. Static.
      max_products: As in ``scale_by_newton_cg``. Static.
      forcing: As in ``scale_by_newton_cg``. Static.
      eps: As in ``scale_by_newton_cg``. Static.
      linesearch: The last link; None: a search for Wolfe's conditions that probes 1 first.

    Returns:
      An optax optimizer whose ``update`` takes ``value=``, ``grad=`` and ``value_fn=``, as ``optax.lbfgs``'s does.

    Raises:
      ValueError: A setting is out of range.

    Numerics:
      As ``scale_by_newton_cg``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.optimizers import minimize
      >>> result = minimize(lambda x: jnp.sum(jnp.cosh(x - 1)), jnp.zeros(2), newton(), tol=1e-4)
      >>> [round(entry, 3) for entry in result.x.tolist()], int(result.num_steps)
      ([1.0, 1.0], 3)

    References:
      :cite:p:`nocedal2006numerical`, algorithm 7.1. :cite:p:`dembo1983truncated` for truncation,
      :cite:p:`pearlmutter1994fast` for products with the Hessian, :cite:p:`gill1974newton` for ``"cholesky"``.

    See also:
      ``scipy.optimize.minimize(method="Newton-CG")``.
    """
    if linesearch is None:
        linesearch = scale_by_wolfe_linesearch(strong=True)
    step = optax.scale(-1.0) if learning_rate is None else optax.scale_by_learning_rate(learning_rate)
    return optax.chain(
        scale_by_newton_cg(solver, max_products=max_products, forcing=forcing, eps=eps), step, linesearch
    )


def _solve_truncated(
    product: Callable[[Any], Any], updates: Any, limit: int, forcing: float
) -> tuple[Any, NewtonCGState]:
    """Run conjugate gradients on ``H p = updates`` until the residual is small or the curvature is not positive."""
    squared = vectors.dot(updates, updates)
    norm = jnp.sqrt(squared)
    target = jnp.minimum(forcing, jnp.sqrt(norm)) * norm
    zero = jax.tree.map(jnp.zeros_like, updates)

    def body(solve: _Solve) -> _Solve:
        image = product(solve.direction)
        curvature = vectors.dot(solve.direction, image)
        length = vectors.dot(solve.direction, solve.direction)
        negative = ~(curvature > float(jnp.finfo(curvature.dtype).eps) * length)
        size = jnp.maximum(jnp.abs(curvature), float(jnp.finfo(curvature.dtype).tiny))
        # Where the function curves down, the first direction is as long as the same curvature upwards would make it.
        take = ~negative | (solve.count == 0)
        alpha = jnp.where(take, solve.squared / size, 0)
        solution = vectors.add_scaled(solve.solution, alpha, solve.direction)
        residual = vectors.add_scaled(solve.residual, -alpha, image)
        new_squared = vectors.dot(residual, residual)
        beta = new_squared / jnp.where(solve.squared == 0, 1, solve.squared)
        return _Solve(
            solution=solution,
            residual=residual,
            direction=vectors.add_scaled(residual, beta, solve.direction),
            squared=new_squared,
            count=solve.count + 1,
            negative=negative,
            done=negative | ~(jnp.sqrt(new_squared) > target),
        )

    solve = jax.lax.while_loop(
        lambda solve: ~solve.done & (solve.count < limit),
        body,
        _Solve(zero, updates, updates, squared, jnp.asarray(0, jnp.int32), jnp.asarray(False), norm == 0),
    )
    residual = jnp.sqrt(solve.squared) / jnp.where(norm == 0, 1, norm)
    return solve.solution, NewtonCGState(solve.count, residual, solve.negative)


def _solve_dense(
    product: Callable[[Any], Any], updates: Any, params: Any, solver: str, eps: float | None
) -> tuple[Any, NewtonCGState]:
    """Form the Hessian and solve with it, made positive definite."""
    u, unflatten = vectors.flatten(updates)
    _, as_params = vectors.flatten(params)
    identity = jnp.eye(u.size, dtype=u.dtype)
    columns = jax.vmap(lambda row: vectors.flatten(product(as_params(row)))[0])(identity)
    usable = jnp.all(jnp.isfinite(columns)) & jnp.any(columns != 0)
    hessian = jnp.where(usable, (columns + columns.T) / 2, identity)
    direction, negative = (_solve_eigh if solver == "eigh" else _solve_cholesky)(hessian, u, eps)
    residual = jnp.matmul(hessian, direction, precision="highest") - u
    norm = jnp.sqrt(jnp.sum(u * u))
    relative = jnp.sqrt(jnp.sum(residual**2)) / jnp.where(norm == 0, 1, norm)
    return unflatten(direction), NewtonCGState(jnp.asarray(u.size, jnp.int32), relative, negative)


def _solve_eigh(
    hessian: Float[Array, "n n"], u: Float[Array, " n"], eps: float | None
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """Solve with the eigenvalues replaced by their sizes, kept away from zero."""
    values, basis = jnp.linalg.eigh(hessian)
    floor = float(jnp.finfo(u.dtype).eps) ** 0.5 if eps is None else eps
    sizes = jnp.maximum(jnp.abs(values), floor * jnp.max(jnp.abs(values)))
    coordinates = jnp.matmul(basis.T, u, precision="highest") / sizes
    return jnp.matmul(basis, coordinates, precision="highest"), values[0] < 0


def _solve_cholesky(
    hessian: Float[Array, "n n"], u: Float[Array, " n"], eps: float | None
) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
    """Solve with a modified factorization L D L^T (Nocedal and Wright 2006, section 3.4, after Gill and Murray)."""
    size = u.size
    diagonal = jnp.abs(jnp.diag(hessian))
    outside = jnp.abs(hessian - jnp.diag(jnp.diag(hessian)))
    floor = float(jnp.finfo(u.dtype).eps) if eps is None else eps
    smallest = floor * jnp.maximum(jnp.max(diagonal), jnp.max(outside))
    # Bounds the entries of L D^(1/2), and so what may be added to the Hessian.
    bound = jnp.maximum(jnp.max(diagonal), jnp.max(outside) / max(size**2 - 1, 1) ** 0.5)
    bound = jnp.sqrt(jnp.maximum(bound, smallest))

    def factorize(j, factors):
        lower, pivots, negative = factors
        column = hessian[:, j] - jnp.matmul(lower, pivots * lower[j], precision="highest")
        below = jnp.where(jnp.arange(size) > j, column, 0)
        pivot = jnp.maximum(jnp.abs(column[j]), jnp.square(jnp.max(jnp.abs(below)) / bound))
        pivot = jnp.maximum(pivot, smallest)
        lower = lower.at[:, j].set(jnp.where(jnp.arange(size) == j, 1, below / pivot))
        return lower, pivots.at[j].set(pivot), negative | (column[j] < 0)

    start = jnp.zeros_like(hessian), jnp.zeros_like(u), jnp.asarray(False)
    lower, pivots, negative = jax.lax.fori_loop(0, size, factorize, start)
    solve = jax.scipy.linalg.solve_triangular
    halfway = solve(lower, u, lower=True, unit_diagonal=True) / pivots
    return solve(lower, halfway, trans="T", lower=True, unit_diagonal=True), negative
