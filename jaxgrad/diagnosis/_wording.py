"""How to write a change in the framework a model is of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

Framework = Literal["linen", "nnx", "equinox", "jax"]


def framework_of(params: Any, names: Sequence[str]) -> Framework:
    """Return which framework parameters come from, by their types and names."""
    kinds = {type(params), *(type(node) for node in _containers(params))}
    modules = {base.__module__ for kind in kinds for base in kind.__mro__}
    if any(module.startswith("flax.nnx") for module in modules):
        return "nnx"
    if any(module.startswith("equinox") for module in modules):
        return "equinox"
    if isinstance(params, dict) and any(name.rsplit("/", 1)[-1] == "kernel" and "_" in name for name in names):
        return "linen"
    return "jax"


def _containers(params: Any) -> list[Any]:
    """Return what the tree holds one level down, and the items of lists there."""
    values = (
        list(params.values()) if isinstance(params, dict) else list(params) if isinstance(params, list | tuple) else []
    )
    return [*values, *(item for value in values if isinstance(value, list | tuple) for item in value)]


def draw_line(framework: Framework, variance: float) -> str:
    """Return the line that draws weights of a variance over the fan-in."""
    scale = f"{variance:.3g}"
    if framework == "linen":
        return f'nn.Dense(..., kernel_init=nn.initializers.variance_scaling({scale}, "fan_in", "truncated_normal"))'
    if framework == "nnx":
        return (
            f'nnx.Linear(..., kernel_init=nnx.initializers.variance_scaling({scale}, "fan_in", "truncated_normal"), '
            f"rngs=rngs)"
        )
    if framework == "equinox":
        rule = f'jaxgrad.initializers.variance_scaling({scale}, "fan_in", "truncated_normal", in_axis=1, out_axis=0)'
        return f'model = jaxgrad.initializers.reinitialize(model, {{"weight$": {rule}}}, key)'
    return f"w = jnp.sqrt({scale} / fan_in) * jax.random.normal(key, (fan_in, fan_out))"


def orthogonal_line(framework: Framework, gain: float, *, recurrent: bool = False) -> str:
    """Return the line that draws orthogonal weights."""
    scale = f"{gain:.3g}"
    if framework == "linen":
        return f"{'recurrent_kernel_init' if recurrent else 'kernel_init'}=nn.initializers.orthogonal({scale})"
    if framework == "nnx":
        return f"{'recurrent_kernel_init' if recurrent else 'kernel_init'}=nnx.initializers.orthogonal({scale})"
    if framework == "equinox":
        rule = "weight_hh" if recurrent else "weight$"
        rules = f'{{"{rule}": jaxgrad.initializers.orthogonal({scale})}}'
        return f"model = jaxgrad.initializers.reinitialize(model, {rules}, key)"
    return f"w = jaxgrad.initializers.orthogonal({scale})(key, (fan_in, fan_out))"


def lsuv_line(framework: Framework) -> str:
    """Return the line that scales layers to a batch."""
    name = {"nnx": "model", "equinox": "model"}.get(framework, "params")
    return f"{name} = jaxgrad.initializers.lsuv(loss_fn, {name}, *batch, key=jax.random.key(0))"


def activation_line(framework: Framework, function: str) -> str:
    """Return the line that applies another nonlinearity."""
    module = {"linen": "nn", "nnx": "nnx"}.get(framework, "jax.nn")
    return f"x = {module}.{function}(x)"


def normalization_line(framework: Framework) -> str:
    """Return the line that normalizes before each layer."""
    if framework == "linen":
        return "x = nn.LayerNorm()(x)"
    if framework == "nnx":
        return "self.norm = nnx.LayerNorm(width, rngs=rngs)"
    if framework == "equinox":
        return "self.norm = eqx.nn.LayerNorm(width)"
    return "x = jax.nn.standardize(x)"


def gate_line(framework: Framework, bias: float) -> str:
    """Return the line that sets the bias of a forget gate."""
    value = f"{bias:.3g}"
    if framework == "linen":
        return f'params["hf"]["bias"] = jnp.full(width, {value})'
    if framework == "nnx":
        return f"cell.hf.bias[...] = jnp.full(width, {value})"
    if framework == "equinox":
        return f"cell = eqx.tree_at(lambda c: c.bias, cell, cell.bias.at[width : 2 * width].set({value}))"
    return f"forget_bias = jnp.full(width, {value})"


def listed(names: Collection[Any]) -> str:
    """Return names as words: ``relu and tanh``."""
    return " and ".join(sorted(str(name) for name in names))
