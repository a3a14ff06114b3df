"""Minimize a function with any optax optimizer, in one compiled loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxgrad._checks import message
from jaxgrad.optimizers import _vectors as vectors
from jaxgrad.optimizers._bfgs import bfgs

CONVERGED, MAX_STEPS, LINESEARCH_FAILED, NONFINITE = range(4)
_MESSAGES = (
    "converged: the largest entry of the gradient is at most tol",
    "stopped at max_steps before the gradient was small enough",
    "the line search found no lower point along two directions in a row: the function is as low as its rounding "
    "lets it be, or its gradient is wrong",
    "the function or its gradient is not finite: at the start, or where the last step led",
)


class MinimizeResult(NamedTuple):
    """Where a minimization ended, and why.

    Attributes:
      x: The last point with a finite value and gradient, like ``x0``.
      value: Value of the function there.
      grad: Gradient there, like ``x0``.
      grad_norm: Its largest absolute entry.
      num_steps: Steps of the optimizer.
      num_evaluations: Evaluations of the function, the first one and those of the line search included.
      num_gradients: Evaluations of its gradient.
      num_hessian_products: Products of its Hessian with a vector.
      status: 0 converged, 1 stopped at ``max_steps``, 2 the line search failed, 3 not finite.
      aux: What the function returned beside its value at ``x``; None without ``has_aux``.
      state: The optimizer's last state.
    """

    x: Any
    value: Float[Array, ""]
    grad: Any
    grad_norm: Float[Array, ""]
    num_steps: Int[Array, ""]
    num_evaluations: Int[Array, ""]
    num_gradients: Int[Array, ""]
    num_hessian_products: Int[Array, ""]
    status: Int[Array, ""]
    aux: Any
    state: Any

    @property
    def converged(self) -> Bool[Array, "*batch"]:
        """Whether the gradient became as small as ``tol``."""
        return self.status == CONVERGED

    @property
    def message(self) -> str:
        """The status in words, one line for each minimization of a batch; not under ``jit``, where it is unknown."""
        if isinstance(self.status, Tracer):
            raise TypeError(
                message("MinimizeResult.message", "a result outside jit", "a traced one", "return the result, then ask")
            )
        return "\n".join(_MESSAGES[int(status)] for status in jnp.ravel(self.status))


class _Loop(NamedTuple):
    x: Any
    value: Float[Array, ""]
    grad: Any
    state: Any
    num_steps: Int[Array, ""]
    num_evaluations: Int[Array, ""]
    num_gradients: Int[Array, ""]
    num_hessian_products: Int[Array, ""]
    failures: Int[Array, ""]
    status: Int[Array, ""]


def minimize(
    fun: Callable[[Any], Any],
    x0: Any,
    optimizer: optax.GradientTransformation | None = None,
    *,
    max_steps: int = 1000,
    tol: float | None = None,
    has_aux: bool = False,
) -> MinimizeResult:
    r"""Minimize a function of a pytree with any optax optimizer, in one compiled loop.

    .. math::
        x_{k+1} = x_k + u_k(x_k, f(x_k), \nabla f(x_k)) \quad \text{until} \quad \|\nabla f(x_k)\|_\infty \le
        \text{tol}

    with :math:`u_k` what ``optimizer.update`` returns. The whole loop is one ``lax.while_loop``: ``jit`` it,
    ``vmap`` it over starts, call it inside ``scan``. Value and gradient are not computed again where the optimizer
    ends with a line search that has them.

    Args:
      fun: Function of one pytree like ``x0`` to a real scalar, or to ``(scalar, aux)`` with ``has_aux``. Static.
      x0: Where to start: a pytree of real floating arrays.
      optimizer: Any optax optimizer; ``value``, ``grad`` and ``value_fn`` are passed to those that take them.
        None: ``bfgs``. Static.
      max_steps: Most steps of the optimizer. Static.
      tol: Largest absolute entry of the gradient that counts as converged, in the unit of the gradient; None:
        the dtype's epsilon to the power 1/3 (6e-6 in float64, 5e-3 in float32).
      has_aux: Whether ``fun`` returns something beside its value; it costs one more evaluation at the end. Static.

    Returns:
      ``MinimizeResult(x, value, grad, grad_norm, num_steps, num_evaluations, num_gradients, num_hessian_products,
      status, aux, state)``, with ``converged`` and ``message`` as properties.

    Raises:
      TypeError: ``x0`` has integer, boolean or complex leaves, or ``fun`` does not return one real floating scalar.
      ValueError: ``x0`` is empty, ``fun`` returns an array, or ``max_steps`` is negative.

    Numerics:
      A step to where the value or the gradient is not finite is not taken, and ends the minimization with status
      3. A line search that finds nothing lower ends it with status 2, after a second one along another direction;
      so it often does where ``tol`` is below the rounding of the gradient. Not differentiable in reverse mode.

      Evaluations are counted from the states of the line searches, optax's and ours. Under ``vmap`` they are
      counted for each lane, though all lanes run as long as the slowest.

    Example:
      >>> import jax.numpy as jnp
      >>> result = minimize(lambda x: jnp.sum((x - jnp.array([1.0, 2.0])) ** 2), jnp.zeros(2))
      >>> [round(entry, 3) for entry in result.x.tolist()], int(result.num_evaluations), result.message[:9]
      ([1.0, 2.0], 3, 'converged')

    References:
      :cite:p:`nocedal2006numerical`, chapter 3.

    See also:
      ``scipy.optimize.minimize``, whose ``gtol`` is the ``tol`` here; ``jax.scipy.optimize.minimize``, which has
      BFGS on one flat array; ``optimistix.minimise``, which stops by the change of ``x`` and of the value.
    """
    x0 = jax.tree.map(jnp.asarray, x0)
    vectors.check_real("minimize", "x0", x0)
    if max_steps < 0:
        raise ValueError(message("minimize", "max_steps of at least 0", str(max_steps), "leave it out for 1000"))
    dtype = vectors.dtype_of(x0)
    small = float(jnp.finfo(dtype).eps) ** (1 / 3) if tol is None else tol
    optimizer = optax.with_extra_args_support(bfgs() if optimizer is None else optimizer)
    _check_value(fun, x0, has_aux)

    def value_fn(x: Any) -> Any:
        return (fun(x)[0] if has_aux else fun(x)).astype(dtype)

    value_and_grad = jax.value_and_grad(value_fn)

    def judge(value: Any, grad: Any, num_steps: Any, failures: Any) -> Int[Array, ""]:
        finite = jnp.isfinite(value) & vectors.all_finite(grad)
        status = jnp.where(num_steps >= max_steps, MAX_STEPS, -1)
        status = jnp.where(failures >= 2, LINESEARCH_FAILED, status)
        status = jnp.where(vectors.max_norm(grad) <= small, CONVERGED, status)
        return jnp.where(finite, status, NONFINITE).astype(jnp.int32)

    def body(loop: _Loop) -> _Loop:
        updates, state = optimizer.update(
            loop.grad, loop.state, loop.x, value=loop.value, grad=loop.grad, value_fn=value_fn
        )
        x = vectors.add_scaled(loop.x, jnp.ones((), dtype), updates)
        cost = _cost(state)
        known = _value_and_grad_after(state)
        if known is None:
            known = value_and_grad(x)
            cost = cost._replace(num_evaluations=cost.num_evaluations + 1, num_gradients=cost.num_gradients + 1)
        value, grad = known[0].astype(dtype), known[1]
        num_steps = loop.num_steps + 1
        failures = jnp.where(cost.failed, loop.failures + 1, 0)
        finite = jnp.isfinite(value) & vectors.all_finite(grad)
        x, value_kept, grad_kept = vectors.where(finite, (x, value, grad), (loop.x, loop.value, loop.grad))
        return _Loop(
            x=x,
            value=value_kept,
            grad=grad_kept,
            state=state,
            num_steps=num_steps,
            num_evaluations=loop.num_evaluations + cost.num_evaluations,
            num_gradients=loop.num_gradients + cost.num_gradients,
            num_hessian_products=loop.num_hessian_products + cost.num_hessian_products,
            failures=failures,
            status=judge(value, grad, num_steps, failures),
        )

    value, grad = value_and_grad(x0)
    zero, one = jnp.asarray(0, jnp.int32), jnp.asarray(1, jnp.int32)
    first = _Loop(x0, value, grad, optimizer.init(x0), zero, one, one, zero, zero, judge(value, grad, zero, zero))
    last = jax.lax.while_loop(lambda loop: loop.status < 0, body, first)
    return MinimizeResult(
        x=last.x,
        value=last.value,
        grad=last.grad,
        grad_norm=vectors.max_norm(last.grad),
        num_steps=last.num_steps,
        num_evaluations=last.num_evaluations + (1 if has_aux else 0),
        num_gradients=last.num_gradients,
        num_hessian_products=last.num_hessian_products,
        status=last.status,
        aux=fun(last.x)[1] if has_aux else None,
        state=last.state,
    )


class _Cost(NamedTuple):
    num_evaluations: Int[Array, ""]
    num_gradients: Int[Array, ""]
    num_hessian_products: Int[Array, ""]
    failed: Bool[Array, ""]


def _cost(state: Any) -> _Cost:
    """Read from the optimizer's state what the last update cost, and whether its line search failed."""
    zero = jnp.asarray(0, jnp.int32)
    cost = _Cost(zero, zero, zero, jnp.asarray(False))
    for node in _nodes(state):
        search = getattr(node, "info", None)
        probes = jnp.asarray(getattr(search, "num_linesearch_steps", zero), jnp.int32)
        gradients = probes
        if isinstance(node, optax.ScaleByBacktrackingLinesearchState):
            # It looks at values alone, and takes one gradient at the end where it stores that.
            gradients = zero if node.grad is None else zero + 1
        cost = _Cost(
            cost.num_evaluations + probes,
            cost.num_gradients + gradients,
            cost.num_hessian_products + jnp.asarray(getattr(node, "num_hessian_products", zero), jnp.int32),
            cost.failed | jnp.asarray(getattr(search, "decrease_error", zero) > 0),
        )
    return cost


def _nodes(state: Any) -> Iterator[Any]:
    """Walk through the containers of a state."""
    if isinstance(state, dict):
        children = list(state.values())
    elif isinstance(state, (tuple, list)):
        children = list(state)
    else:
        return
    yield state
    for child in children:
        yield from _nodes(child)


def _value_and_grad_after(state: Any) -> tuple[Any, Any] | None:
    """Return value and gradient after the step, where the chain ends with a line search that has them."""
    while type(state) is tuple and state:
        state = state[-1]
    value, grad = getattr(state, "value", None), getattr(state, "grad", None)
    return None if value is None or grad is None else (value, grad)


def _check_value(fun: Callable[[Any], Any], x0: Any, has_aux: bool) -> None:
    out = jax.eval_shape(fun, x0)
    if has_aux:
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(
                message("minimize", "fun to return (value, aux) with has_aux=True", type(out).__name__, "drop has_aux")
            )
        out = out[0]
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise TypeError(
            message(
                "minimize",
                "fun to return one scalar",
                type(out).__name__,
                "pass has_aux=True if it returns (value, aux)",
            )
        )
    if out.shape != ():
        raise ValueError(
            message("minimize", "fun to return a scalar", f"shape {out.shape}", "reduce it, for example by jnp.sum")
        )
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            message("minimize", "fun to return a real floating value", f"dtype {out.dtype}", "return its real part")
        )
