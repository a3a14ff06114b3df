"""Initialization from data: each layer scaled until its output, on a batch, has variance one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad._checks import message
from jaxgrad.initializers._orthogonal import orthogonal
from jaxgrad.initializers._reinitialize import fold_name, module_as_tree
from jaxgrad.initializers._variance_scaling import check_positive
from jaxgrad.tracing import Network, trace
from jaxgrad.tracing._interpret import Owner, Site, read, run_loop
from jaxgrad.tracing._layers import LayerSite
from jaxgrad.tracing._signature import is_none

_KERNELS = frozenset({"dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general"})


def lsuv(
    loss_fn: Callable[..., Any],
    params: Any,
    *args: Any,
    key: PRNGKeyArray | None = None,
    tol: float = 0.01,
    max_steps: int = 10,
    has_aux: bool = False,
) -> Any:
    r"""Scale the kernel of each layer so that the layer's output has variance one on a batch.

    .. math::
      W_\ell \leftarrow \frac{W_\ell}{\sqrt{\operatorname{Var}[W_\ell h_{\ell - 1}]}}, \qquad \ell = 1, 2, \dots, L,

    in order of evaluation, each layer after those before it are scaled; the variance is over the examples and the
    units. The layers are read from ``loss_fn`` as :func:`jaxgrad.trace` reads them, so nothing in the model changes.

    Args:
      loss_fn: The loss ``loss_fn(params, *args)``, or a forward pass.
      params: Its parameters: any pytree, or a module of ``flax.nnx`` or equinox.
      *args: Its other arguments: one batch, some hundred examples at best.
      key: Random key. With it every kernel is drawn orthogonal before it is scaled, as in the paper; without, what is
        in ``params`` is scaled.
      tol: How far from one a variance may be. A layer that reads its weight as it is gets there in one pass.
      max_steps: Most passes over the network; each costs one evaluation. Layers in a loop need a few.
      has_aux: Whether ``loss_fn`` returns a pair, as in ``jax.grad``.

    Returns:
      The parameters in the same structure, shapes and types. Biases, scales and embedding tables are the same objects.

    Raises:
      TypeError: Called on arrays that are being traced.
      ValueError: No parameter reaches a product, ``tol`` is not positive or ``max_steps`` is under 1.

    Warns:
      UserWarning: After ``max_steps`` a layer's variance is further from one than ``tol``. Where it is zero or not
        finite its kernel is left as it was; where a weight is normalized in the model, its size has no effect.

    Numerics:
      Variances are taken in float32 or wider. One layer of a stack (``layers[3]/kernel``) is scaled as one slice of its
      leaf. A leaf that several layers read, such as a kernel tied to another layer, is scaled for the first of them;
      looking up rows of an embedding table does not count, so a table that is the head's kernel too is scaled for the
      head. A layer in a loop over time is measured over all steps. A call that is kept whole (``cond``, ``while``)
      and an embedding are left alone.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jax.random.normal(jax.random.key(0), (64, 8))
      >>> forward = lambda w, x: x @ w
      >>> new = lsuv(forward, jnp.full((8, 4), 3.0), x, key=jax.random.key(1))
      >>> round(float(jnp.var(forward(new, x))), 2)
      1.0

    References:
      :cite:p:`mishkin2016all`, algorithm 1, which tolerates 0.1 and evaluates the network anew for each layer.

    See also:
      :func:`jaxgrad.initializers.he_normal` and :func:`jaxgrad.initializers.orthogonal`, which need no data.
    """
    check_positive("lsuv", "tol", tol)
    if max_steps < 1:
        raise ValueError(message("lsuv", "max_steps of at least 1", f"{max_steps}", "leave it out for 10"))
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((params, args))):
        raise TypeError(
            message("lsuv", "concrete arrays", "arrays that are being traced", "call it outside of jit, vmap and grad")
        )
    tree, rebuild = module_as_tree(params)
    network = trace(lambda tree, *args: loss_fn(rebuild(tree), *args), tree, *args, has_aux=has_aux)
    kernels = _kernels(network)
    arrays, missed = scale_layers(network, network.inputs(tree, args), key, tol=tol, max_steps=max_steps)
    if missed:
        shown = ", ".join(f"{name} ({variance:.3g})" for name, variance in missed[:6])
        warnings.warn(
            message(
                "lsuv",
                "layers whose output variance becomes one",
                f"{len(missed)} whose variance does not, in max_steps={max_steps} passes: {shown}",
                "pass a key to draw kernels that are zero anew; leave out what the model normalizes itself",
            ),
            stacklevel=2,
        )
    return rebuild(_replaced(network, kernels, tree, arrays))


def scale_layers(
    network: Network, arrays: Sequence[Any], key: PRNGKeyArray | None, *, tol: float = 0.01, max_steps: int = 10
) -> tuple[list[Any], list[tuple[str, float]]]:
    """Do what :func:`lsuv` does to a traced network's flat inputs.

    Returns:
      The inputs with the kernels scaled, and name and variance of the layers that are still further from one.
    """
    kernels = _kernels(network)
    arrays = list(arrays) if key is None else _orthogonalize(kernels, arrays, key)
    compiled = network.program._compiled
    if "lsuv" not in compiled:
        compiled["lsuv"] = jax.jit(lambda arrays: _measure(network, kernels, arrays))
    for _ in range(max_steps):
        variances, factors = compiled["lsuv"](arrays)
        if not _missed(kernels, variances, tol):
            return arrays, []
        arrays = _scale(kernels, arrays, factors)
    variances, _ = compiled["lsuv"](arrays)
    return arrays, _missed(kernels, variances, tol)


class _Kernel(NamedTuple):
    """One kernel: the layer that sets its scale, and where that layer's output is."""

    site: LayerSite
    output: Site


def _kernels(network: Network) -> dict[Owner, _Kernel]:
    """Return the kernels in order of evaluation, each with the first layer that multiplies by it."""
    sizes = {owner.leaf: math.prod(network.signature.avals[owner.leaf].shape) for owner in network.parameters}
    found: dict[Owner, _Kernel] = {}
    for site in network.sites:
        if site.equation.operation in _KERNELS:
            owner = max(site.owners, key=lambda owner: sizes[owner.leaf])
            found.setdefault(owner, _Kernel(site, (*site.loops, site.equation.outputs[0])))
    if not found:
        raise ValueError(
            message(
                "lsuv",
                "a loss in which parameters multiply activations",
                "embeddings or calls kept whole alone",
                "initialize these with an initializer of their own",
            )
        )
    return found


def _measure(
    network: Network, kernels: Mapping[Owner, _Kernel], arrays: Sequence[Any]
) -> tuple[list[Array], list[Array]]:
    """Return the variance of each kernel's layer, with those before it scaled, and what to multiply the kernel by."""
    program = network.program
    values: dict[int, Any] = dict(zip(program.inputs, arrays, strict=True))
    at = {kernel.output: owner for owner, kernel in kernels.items()}
    variances: dict[Owner, Array] = {}
    factors: dict[Owner, Array] = {}
    for equation in program.equations:
        operands = [read(atom, values) for atom in equation.inputs]
        number = equation.outputs[0] if equation.outputs else -1
        inside = [output[1:] for output in at if len(output) > 1 and output[0] == number]
        if equation.loop is not None and inside:
            results, kept = run_loop(equation.loop, operands, {}, inside)
            measured = {at[(number, *output)]: value for output, value in kept.items()}
        else:
            results = list(equation.apply(*operands))
            measured = {at[(number,)]: results[0]} if (number,) in at else {}
        for owner, output in measured.items():
            variances[owner] = _variance(output)
            usable = jnp.isfinite(variances[owner]) & (variances[owner] > 0)
            factors[owner] = jnp.where(usable, jax.lax.rsqrt(jnp.where(usable, variances[owner], 1)), 1)
            if equation.loop is None:
                # A product is linear in its kernel: what follows sees it scaled in the same pass.
                results = [_times(output, factors[owner])]
        values.update(zip(equation.outputs, results, strict=True))
    return [variances[owner] for owner in kernels], [factors[owner] for owner in kernels]


def _missed(kernels: Iterable[Owner], variances: Sequence[Any], tol: float) -> list[tuple[str, float]]:
    """Return the layers whose variance is further from one than the tolerance, NaN included."""
    pairs = zip(kernels, variances, strict=True)
    return [(owner.name, float(variance)) for owner, variance in pairs if not abs(float(variance) - 1) <= tol]


def _variance(output: Array) -> Float[Array, ""]:
    wide = output.real.dtype if output.dtype.itemsize >= 4 else jnp.float32
    return jnp.var(output if output.dtype.itemsize >= 4 else output.astype(wide)).astype(wide)


def _times(array: Array, factor: Any) -> Array:
    """Multiply before rounding to the array's own type."""
    wide = jnp.float32 if array.dtype.itemsize < 4 else array.dtype
    return (array.astype(wide) * jnp.asarray(factor).astype(wide)).astype(array.dtype)


def _scale(kernels: Iterable[Owner], arrays: Sequence[Any], factors: Sequence[Any]) -> list[Any]:
    scaled = list(arrays)
    for owner, factor in zip(kernels, factors, strict=True):
        leaf = scaled[owner.leaf]
        scaled[owner.leaf] = leaf.at[owner.index].set(_times(leaf[owner.index], factor))
    return scaled


def _orthogonalize(kernels: Mapping[Owner, _Kernel], arrays: Sequence[Any], key: PRNGKeyArray) -> list[Any]:
    """Return the arrays with every kernel drawn orthogonal, with the inputs and outputs its layer gives it."""
    drawn = list(arrays)
    for owner, (site, _) in kernels.items():
        leaf = drawn[owner.leaf]
        own = leaf[owner.index]
        weight = site.program.avals[site.weight].shape
        if own.ndim < 2:
            continue
        axes = _weight_axes(site) if weight == own.shape else {}
        new = orthogonal(**axes)(fold_name(key, owner.name), own.shape, own.dtype)
        drawn[owner.leaf] = leaf.at[owner.index].set(new)
    return drawn


def _weight_axes(site: LayerSite) -> dict[str, Any]:
    """Return which axes of the weight are summed over, as the equation says."""
    params, position = site.equation.params, site.equation.inputs.index(site.weight)
    if site.equation.operation == "dot_general":
        contracting, batch = (pair[position] for pair in params["dimension_numbers"])
        ndim = len(site.program.avals[site.weight].shape)
        outputs = tuple(axis for axis in range(ndim) if axis not in (*contracting, *batch))
        return {"in_axis": tuple(contracting), "out_axis": outputs, "batch_axis": tuple(batch)}
    if site.equation.operation == "conv_general_dilated" and position == 1:
        out_axis, in_axis, *_ = params["dimension_numbers"].rhs_spec
        groups = params["feature_group_count"]
        return {"in_axis": in_axis, "out_axis": out_axis, "feature_group_count": groups}
    return {"batch_axis": 0} if len(site.program.avals[site.weight].shape) == 3 else {}


def _replaced(network: Network, kernels: Mapping[Owner, _Kernel], tree: Any, arrays: Sequence[Any]) -> Any:
    """Return the tree of parameters with the new kernels in it."""
    leaves, treedef = jax.tree_util.tree_flatten(tree, is_leaf=is_none)
    static = dict(network.signature.static)
    positions = [position for position in range(len(leaves)) if position not in static]
    for owner in kernels:
        leaves[positions[owner.leaf]] = arrays[owner.leaf]
    return jax.tree_util.tree_unflatten(treedef, leaves)
