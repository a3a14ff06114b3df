"""Penalties to add to a loss that keep its gradients from vanishing or exploding.

All are scalars, differentiable in whatever the functions they take close over. For a batch, ``vmap`` them over the
examples and take the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad._checks import check_number, message
from jaxgrad.spectra._lyapunov import check_recurrence, exponents_of
from jaxgrad.spectra._norms import check_jacobian, frobenius_norm
from jaxgrad.spectra._operators import check_function, flatten, jacobian_operator, tree_size, unflatten


def vanishing_gradient_penalty(
    step: Callable[[Any, Any], Any],
    carry: Any,
    xs: Any,
    loss_fn: Callable[[Any], Float[Array, ""]],
    *,
    num_steps: int | None = None,
) -> Float[Array, ""]:
    r"""Penalize a recurrence whose steps change the norm of the gradient that passes back through them.

    .. math:: \Omega = \sum_{k=0}^{T-1} \left( \frac{\| g_{k+1}^\top \, \partial x_{k+1} / \partial x_k \|}
              {\| g_{k+1} \|} - 1 \right)^2, \qquad g_{k+1} = \frac{d E}{d x_{k+1}}

    with :math:`x_k` the carry after k steps and E the loss. A sum over the steps, not a mean. It asks for isometry only
    along the gradient that the task sends back.

    Args:
      step: The body of a ``jax.lax.scan``, ``step(carry, x) -> (carry, y)``, or a function that returns the carry
        alone. The penalty's gradient is with respect to what it closes over. Static under ``jit``.
      carry: Where the recurrence starts: array or pytree of real floating arrays, of one example.
      xs: Inputs stacked along time, array or pytree of arrays of shape (steps, ...); ``None`` without inputs.
      loss_fn: Maps the carries after each step, stacked along time, to the loss of the example, a scalar. Include the
        targets by closing over them: ``lambda carries: cross_entropy(carries[-1] @ params["out"], label)``. Static
        under ``jit``.
      num_steps: How many steps. Needed without ``xs``. Static.

    Returns:
      The penalty, a scalar, at least float32.

    Raises:
      TypeError: A leaf of ``carry`` is not real floating, or ``step`` does not return a carry.
      ValueError: ``step`` changes a shape, ``xs`` has no common length or ``num_steps`` is missing, or ``loss_fn`` does
        not return a real scalar.

    Numerics:
      As in the paper, its gradient is the immediate one: the carries and the ``g`` count as constants, so it costs one
      backward pass over the recurrence more, not a second derivative of it. A step that ``g`` does not reach adds 0,
      and one that maps ``g`` to zero adds 1 with gradient 0; a ``g`` of 1e-30 is worth as much as one of 1. Finite
      unless a carry or a ``g`` is not.

    Example:
      >>> import jax.numpy as jnp
      >>> step = lambda h, x: 0.5 * h + x
      >>> vanishing_gradient_penalty(step, jnp.zeros(3), jnp.ones((8, 3)), lambda carries: carries[-1].sum()).item()
      2.0

    References:
      :cite:p:`pascanu2013difficulty`, equation 9, and equation 10 for the gradient.

    See also:
      ``gradient_flossing``, which asks for it along every direction, and over the whole trajectory, not step by step.
    """
    function = "vanishing_gradient_penalty"
    advance, carry, xs, length = check_recurrence(function, step, carry, xs, num_steps)
    dtype = _dtype(carry)

    def trajectory(pushes: Any) -> tuple[Any, Any]:
        def body(carry: Any, inputs: tuple) -> tuple[Any, Any]:
            x, push = inputs
            following = jax.tree.map(jnp.add, advance(carry, x), push)
            return following, (carry, following)

        return lax.scan(body, carry, (xs, pushes), length=length)[1]

    def loss(pushes: Any) -> tuple[Array, Any]:
        before, after = trajectory(pushes)
        return loss_fn(after), before

    pushes = jax.tree.map(lambda leaf: jnp.zeros((length, *leaf.shape), leaf.dtype), carry)
    returned = jax.eval_shape(lambda pushes: loss(pushes)[0], pushes)
    if getattr(returned, "shape", None) != () or not jnp.issubdtype(returned.dtype, jnp.floating):
        raise ValueError(
            message(
                function,
                "loss_fn to map the stacked carries to a real scalar",
                str(jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", returned)),
                "sum or average it over the steps; for a batch, vmap the penalty",
            )
        )
    # The carries and cotangents are constants: nothing behind them is differentiated again.
    converted, constants = jax.closure_convert(loss, pushes)
    constants = lax.stop_gradient(constants)
    cotangents, carries = jax.grad(lambda pushes: converted(pushes, *constants), has_aux=True)(pushes)

    def term(carry: Any, x: Any, cotangent: Any) -> Array:
        _, pull = jax.vjp(lambda carry: advance(carry, x), carry)
        vector = flatten(cotangent, dtype)
        norm = _norm(vector)
        direction = jnp.where(norm > 0, vector / jnp.where(norm > 0, norm, 1), 0)
        stretch = _norm(flatten(pull(unflatten(direction, carry))[0], dtype))
        return jnp.where(norm > 0, jnp.square(stretch - 1), 0)

    return jnp.sum(jax.vmap(term)(carries, xs, cotangents))


def jacobian_norm_penalty(
    key: PRNGKeyArray, f: Callable[[Any], Any], x: Any, *, num_probes: int = 1
) -> Float[Array, ""]:
    r"""Penalize the squared Frobenius norm of the Jacobian of ``f`` at ``x``, by random projections.

    .. math:: \| J \|_F^2 \approx \frac{m}{p} \sum_{i=1}^{p} \| v_i^\top J \|^2

    with ``m`` the size of ``f(x)``, p ``num_probes``, and :math:`v_i` uniform on the unit sphere. Unbiased. No ½.

    Args:
      key: Random key of the projections. Use a new one each training step.
      f: Function of one array or pytree of real floating arrays, to the same: the logits of one example, say. Static
        under ``jit``.
      x: Where to differentiate. For a batch, ``vmap`` over it and the keys: a batch given as one ``x`` counts the
        derivative of each example's output with respect to the others.
      num_probes: How many projections, at least 1; each costs a backward pass. From ``m`` on, the axes of the output
        are taken instead and the value is exact. One does well in training, as the noise averages out over the batch.
        Static.

    Returns:
      The penalty, a scalar, float32 (float64 for float64 inputs).

    Raises:
      TypeError: A leaf of ``x`` or of ``f(x)`` is integer, boolean or complex.
      ValueError: ``num_probes`` is below 1.

    Numerics:
      0 with gradient 0 for a zero Jacobian and for an empty ``x`` or ``f(x)``. The relative variance of one projection
      is below 2, its value for a Jacobian of rank one and a large ``m``, and 0 where all ``m`` rows of the Jacobian are
      orthogonal and of one length. Squares overflow for entries of 1e19 in float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> round(float(jacobian_norm_penalty(jax.random.key(0), lambda x: 2.0 * x, jnp.ones(10))), 3)
      40.0

    References:
      :cite:p:`hoffman2019robust`, Algorithm 1; their loss has ``lambda / 2`` in front of it.

    See also:
      ``frobenius_norm_estimate``, the root of it with a standard error, to measure rather than to train.
    """
    function = "jacobian_norm_penalty"
    _check_probes(function, num_probes)
    x, out = check_function(function, f, x)
    size, dtype = tree_size(out), _dtype((x, out))
    if size == 0:
        return jnp.zeros((), dtype)
    _, pull = jax.vjp(f, x)
    if num_probes >= size:
        probes, weight = jnp.eye(size, dtype=dtype), 1.0
    else:
        gaussian = jax.random.normal(key, (num_probes, size), dtype)
        probes, weight = gaussian / jnp.linalg.norm(gaussian, axis=1, keepdims=True), size / num_probes
    rows = jax.vmap(lambda probe: flatten(pull(unflatten(probe, out))[0], dtype))(probes)
    return weight * jnp.sum(jnp.square(rows))


def isometry_penalty(jacobian: Float[Array, "*batch out in"], *, gain: float = 1.0) -> Float[Array, "*batch"]:
    r"""Penalize the distance of matrices from a multiple of an isometry.

    .. math:: \| W^\top W - g^2 I \|_F^2 = \sum_i (s_i^2 - g^2)^2

    with g the ``gain`` and :math:`s_i` the singular values; with :math:`W W^\top` where W has more columns than rows,
    so that it is 0 exactly where all ``min(out, in)`` singular values are g. A sum over them, no mean and no ½.

    Args:
      jacobian: Weights or dense Jacobians of shape (..., out, in), real floating. The transpose has the same penalty,
        so kernels of shape (in, out) will do; reshape the kernel of a convolution to (-1, out).
      gain: The singular value to aim at: above 1 where an activation shrinks the signal, ``sqrt(2)`` before a ReLU.

    Returns:
      Penalties of shape (...,), in the dtype of ``jacobian``, at least float32.

    Raises:
      TypeError: ``jacobian`` is not a real floating array, or ``gain`` no number.
      ValueError: It has fewer than two axes, or an empty matrix; or ``gain`` is negative.

    Numerics:
      Gradient ``4 W (W^T W - g² I)``: 0 at an isometry and at a zero matrix, which is a saddle. Overflows for singular
      values of 1e9 in float32.

    Example:
      >>> import jax.numpy as jnp
      >>> isometry_penalty(jnp.diag(jnp.array([1.0, 2.0]))).item()
      9.0

    References:
      :cite:p:`bansal2018can`, section 3.1 (soft orthogonality), with the smaller side where the paper takes
      :math:`W^\top W` throughout; :cite:p:`xie2017all`, for deep plain networks.

    See also:
      ``dynamical_isometry_penalty``, the same number for the Jacobian of a function, without forming it;
      ``jax.nn.initializers.orthogonal``, which starts where this is 0.
    """
    jacobian = check_jacobian("isometry_penalty", jacobian)
    check_number("isometry_penalty", "gain", gain, low=0)
    if jacobian.shape[-2] < jacobian.shape[-1]:
        jacobian = jnp.swapaxes(jacobian, -1, -2)
    gram = jnp.matmul(jnp.swapaxes(jacobian, -1, -2), jacobian, precision=lax.Precision.HIGHEST)
    target = jnp.square(jnp.asarray(gain, gram.dtype)) * jnp.eye(gram.shape[-1], dtype=gram.dtype)
    target = jnp.broadcast_to(target, gram.shape)
    return jnp.sum(jnp.square(gram - target), axis=(-2, -1))


def dynamical_isometry_penalty(
    key: PRNGKeyArray, f: Callable[[Any], Any], x: Any, *, num_probes: int = 1, gain: float = 1.0
) -> Float[Array, ""]:
    r"""Penalize the distance of the Jacobian of ``f`` at ``x`` from a multiple of an isometry, without forming it.

    .. math:: \frac{1}{p} \sum_{i=1}^{p} \| J^\top J v_i - g^2 v_i \|^2 \approx \| J^\top J - g^2 I \|_F^2

    with p ``num_probes``, g the ``gain``, and :math:`v_i` random signs; with :math:`J J^\top` where J has more columns
    than rows. Unbiased: its mean is ``isometry_penalty(layer_jacobian(f, x), gain=gain)``.

    Args:
      key: Random key of the probes. Use a new one each training step.
      f: Function of one array or pytree of real floating arrays, to the same; a residual block, or the step of a
        recurrence with its input closed over. Static under ``jit``.
      x: Where to differentiate. For a batch, ``vmap`` over it and the keys.
      num_probes: How many probes, at least 1; each costs a product with J and one with its transpose. From the smaller
        side of J on, the axes are taken instead and the value is exact. Static.
      gain: The singular value to aim at.

    Returns:
      The penalty, a scalar, float32 (float64 for float64 inputs).

    Raises:
      TypeError: A leaf of ``x`` or of ``f(x)`` is integer, boolean or complex, or ``gain`` no number.
      ValueError: ``num_probes`` is below 1, or ``gain`` negative.

    Numerics:
      0 with gradient 0 at an isometry, whatever the probes, and for an empty ``x`` or ``f(x)``. Gradient 0 at a zero
      Jacobian, a saddle. Overflows for singular values of 1e9 in float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> round(float(dynamical_isometry_penalty(jax.random.key(0), lambda x: 2.0 * x, jnp.ones(10))), 3)
      90.0

    References:
      :cite:p:`saxe2014exact`, section 3, for dynamical isometry; Hutchinson, A stochastic estimator of the trace of the
      influence matrix for Laplacian smoothing splines, 1989, for the probes.

    See also:
      ``isometry_penalty``, of a matrix you hold.
    """
    function = "dynamical_isometry_penalty"
    _check_probes(function, num_probes)
    check_number(function, "gain", gain, low=0)
    x, _ = check_function(function, f, x)
    operator = jacobian_operator(f, x)
    swap = operator.out_size < operator.in_size
    there, back = (operator.rmatvec, operator.matvec) if swap else (operator.matvec, operator.rmatvec)
    size = min(operator.in_size, operator.out_size)
    if size == 0:
        return jnp.zeros((), operator.dtype)
    if num_probes >= size:
        probes, weight = jnp.eye(size, dtype=operator.dtype), 1.0
    else:
        probes, weight = jax.random.rademacher(key, (num_probes, size), operator.dtype), 1 / num_probes
    images = jax.vmap(lambda probe: back(there(probe)))(probes)
    residuals = images - jnp.square(jnp.asarray(gain, operator.dtype)) * probes
    return weight * jnp.sum(jnp.square(residuals))


def gradient_flossing(
    step: Callable[[Any, Any], Any],
    carry: Any,
    xs: Any = None,
    *,
    num_exponents: int | None = None,
    target: float = 0.0,
    num_steps: int | None = None,
    num_warmup: int = 0,
    steps_per_qr: int = 1,
) -> Float[Array, ""]:
    r"""Penalize the leading Lyapunov exponents of a recurrence for being far from zero.

    .. math:: \frac{1}{k} \sum_{i=1}^{k} (\lambda_i - \lambda^*)^2

    with k ``num_exponents``, :math:`\lambda_i` from :func:`lyapunov_exponents` in nats per step, and :math:`\lambda^*`
    the ``target``. At 0, a gradient along the leading k directions neither vanishes nor explodes over the trajectory.

    Args:
      step: The body of a ``jax.lax.scan``, ``step(carry, x) -> (carry, y)``, or a function that returns the carry
        alone. Static under ``jit``.
      carry: Where the trajectory starts: array or pytree of real floating arrays, of one example.
      xs: Inputs stacked along time, array or pytree of arrays of shape (steps, ...); ``None`` without inputs.
      num_exponents: How many of the leading exponents, k; ``None``: all. About as many as the task has things to
        remember. Static.
      target: The exponent to aim at.
      num_steps: How many steps, ``num_warmup`` included. Needed without ``xs``. Static.
      num_warmup: How many steps at the beginning do not count. Static.
      steps_per_qr: How many steps lie between two QR decompositions. Static.

    Returns:
      The penalty, a scalar, float32 (float64 if a leaf of ``carry`` is).

    Raises:
      TypeError: A leaf of ``carry`` is not real floating, ``step`` does not return a carry, or ``target`` is no number.
      ValueError: What :func:`lyapunov_exponents` refuses.

    Numerics:
      An exponent of -inf, of a direction that a step maps to zero, adds 0 with gradient 0: no small change revives it.
      Where exponents are equal the gradient is one of several. NaN if the trajectory is. It is the gradient through the
      whole trajectory, and in a chaotic one as untrustworthy as that of any loss: keep it to some hundred steps.

    Example:
      >>> import jax.numpy as jnp
      >>> round(float(gradient_flossing(lambda x, _: jnp.exp(-0.5) * x, jnp.zeros(3), num_steps=20)), 4)
      0.25

    References:
      :cite:p:`engelken2023gradient`, for ``target=0``. There it is minimised before training and now and then during
      it, not added to the loss of every step.

    See also:
      ``vanishing_gradient_penalty``, along the gradient of a loss; ``lyapunov_exponents``.
    """
    function = "gradient_flossing"
    check_number(function, "target", target)
    result = exponents_of(function, step, carry, xs, num_exponents, num_steps, num_warmup, steps_per_qr)
    exponents = result.exponents
    dead = exponents == -jnp.inf
    distance = jnp.where(dead, 0, exponents) - jnp.asarray(target, exponents.dtype)
    return jnp.mean(jnp.where(dead, 0, jnp.square(distance)))


def _check_probes(function: str, num_probes: int) -> None:
    if num_probes < 1:
        raise ValueError(message(function, "num_probes of at least 1", repr(num_probes), "leave it out for 1"))


def _dtype(tree: Any) -> Any:
    return jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(tree)) else jnp.float32


def _norm(vector: Array) -> Array:
    """The norm of a vector, with gradient 0 at zero and no underflow."""
    return frobenius_norm(vector[None, :])
