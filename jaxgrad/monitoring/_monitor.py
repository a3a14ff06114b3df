"""A link of an optax chain that records what passes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxgrad._checks import message
from jaxgrad._norms import is_inexact, real_parts, widest
from jaxgrad._paths import Labels, as_labels, label_names
from jaxgrad.monitoring._history import HistoryState, init_history, record_step
from jaxgrad.monitoring._norms import Group, group_leaves, group_norms


class NoiseState(NamedTuple):
    """What the gradient-noise scale is estimated from.

    Attributes:
      previous: The gradients of the last finite step; ``None`` in place of leaves that are not measured.
      num_steps: Number of finite steps seen.
      trace: Moving average of the estimates of tr(Σ).
      square: Moving average of the estimates of the squared norm of the gradient without noise.
    """

    previous: Any
    num_steps: Int[Array, ""]
    trace: Float[Array, ""]
    square: Float[Array, ""]


class MonitorState(NamedTuple):
    """What :func:`jaxgrad.monitoring.monitor` has recorded; :func:`jaxgrad.monitoring.read` makes plain numbers of it.

    Structure, shapes and dtypes are those of ``init`` ever after, so it goes through ``lax.scan``, donation and
    checkpoints. A record that was not asked for is ``None``.

    Attributes:
      label: The monitor's name as the only key, or empty.
      step: Number of updates seen.
      layers: Name of each layer, the only key of a mapping each, so that it is part of the structure.
      norms: Norm of the last update by layer, of shape (layers,).
      param_norms: Norm of the parameters by layer, of shape (layers,), or ``None``.
      update_ratios: Ratio of the two by layer, of shape (layers,), or ``None``.
      noise: State of the gradient-noise scale, or ``None``.
      probabilities: The quantiles asked for, as keys.
      window: The last norms of each layer, of shape (window, layers), or ``None``; NaN where there was no step yet.
      first_nonfinite: Number of the first layer that was not finite; -1: none.
      first_nonfinite_step: The update at which it was not, counted from 0; -1: none.
      num_nonfinite: Number of updates with a NaN or an infinity.
      history: Records of the whole run, or ``None``.
    """

    label: dict[str, None]
    step: Int[Array, ""]
    layers: Labels
    norms: Float[Array, " layers"]
    param_norms: Float[Array, " layers"] | None
    update_ratios: Float[Array, " layers"] | None
    noise: NoiseState | None
    probabilities: dict[str, None]
    window: Float[Array, "window layers"] | None
    first_nonfinite: Int[Array, ""]
    first_nonfinite_step: Int[Array, ""]
    num_nonfinite: Int[Array, ""]
    history: HistoryState | None = None


def monitor(
    depth: int | None = None,
    *,
    param_norms: bool = False,
    update_ratio: bool = False,
    noise_scale: bool = False,
    batch_size: float | None = None,
    decay: float = 0.99,
    quantiles: Sequence[float] = (),
    window: int = 100,
    history: int | None = None,
    name: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Record the norm of every layer's update, and the first one that is not finite, in an optax chain.

    What passes is returned untouched. It records, for the leaves :math:`u_i` of layer :math:`\ell`,

    .. math:: \|u\|_\ell = \Bigl(\sum_{i \in \ell} \sum_j |u_{ij}|^2\Bigr)^{1/2}

    without a mean over the entries: gradients where it stands first in the chain, updates where it stands last.

    Args:
      depth: How many components of a leaf's path name its layer, at least 1: with 2, ``params/Dense_0/kernel`` and
        ``params/Dense_0/bias`` are layer ``params/Dense_0``. ``None``: every leaf is a layer. Leaves of equal name are
        one layer.
      param_norms: Record the norms of the parameters too; reads them once more, and needs ``params`` in ``update``.
      update_ratio: Record :math:`\|u\|_\ell / \|p\|_\ell`, the relative change of the layer in one step. Place the
        monitor last in the chain, after the learning rate. Costs what ``param_norms`` costs.
      noise_scale: Estimate the gradient-noise scale, see below. Place the monitor first in the chain. Keeps a copy of
        the gradients: the memory of the parameters, one more read and one write a step.
      batch_size: Number of examples whose mean gradient passes, for ``noise_scale``.
      decay: Weight of the past in the moving averages of ``noise_scale``, in [0, 1): averages over about
        ``1 / (1 - decay)`` steps.
      quantiles: Probabilities in [0, 1] whose quantiles of each layer's norm :func:`jaxgrad.monitoring.read` shall
        give. They are exact over the last ``window`` updates, which a ring buffer keeps.
      window: Length of that buffer, at least 1.
      history: Number of records, even and at least 4, that hold the whole run, 64 for example: the geometric mean and
        the largest of each layer's norm over the steps of a record, its update ratio where that is recorded, and the
        loss where ``update`` is given ``value=loss``. When all are full, neighbours merge and each covers twice as
        many steps, so the memory is that of ``history`` times the layers for a run of any length. ``None``: no history.
      name: What :func:`jaxgrad.monitoring.read` calls this monitor; needed where a chain has several.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with state :class:`jaxgrad.monitoring.MonitorState`.

    Raises:
      TypeError: ``depth`` or ``window`` is not an integer.
      ValueError: An option is out of range, ``noise_scale`` comes without ``batch_size`` or the reverse. At ``update``:
        ``params`` is missing where it is needed, or a layer comes that ``init`` has not seen.

    Numerics:
      Computed in float32, in float64 where ``init`` sees double precision; 1000 bfloat16 leaves of 1000 ones have
      norm 1000. Right over the whole float range (entries below the smallest normal number may count as 0): where a
      sum of squares overflows or underflows, the norms are taken again, scaled. That second read also happens while a
      layer is zero throughout, and always under ``vmap``. A norm is NaN or inf where an entry is. An update ratio is 0
      where the parameters are all zero. Nothing recorded has a derivative. Integer, boolean and ``None`` leaves and
      ``optax.MaskedNode`` pass and are not recorded; a complex number counts with its modulus. Sharded arrays have
      their global norm under ``jit``; inside ``shard_map``, average the gradients first.

      The noise scale is the "simple" :math:`B = \operatorname{tr}\Sigma / |G|^2` with :math:`\Sigma` the covariance of
      one example's gradient. A link sees one gradient :math:`g_t` of ``batch_size`` examples a step, so two steps in
      a row stand for one batch and one of twice the size:
      :math:`\operatorname{tr}\Sigma \approx` ``batch_size`` :math:`|g_t - g_{t-1}|^2 / 2` and
      :math:`|G|^2 \approx \langle g_t, g_{t-1} \rangle`, each averaged over steps before the division. Both are
      unbiased for independent batches at the same parameters. The parameters move in between: that adds
      ``batch_size`` :math:`|\Delta G|^2 / 2` to the first and makes :math:`B` too large where the gradient turns
      quickly (a high learning rate, an oscillation), with either sign in the second. The ratio of averages has a bias
      of its own, which falls with ``1 / (1 - decay)``. Steps that are not finite, or whose products are not, are left
      out.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxgrad.monitoring import monitor, read
      >>> optimizer = optax.chain(monitor(depth=1), optax.adam(1e-3))
      >>> grads = {"dense": {"kernel": jnp.array([2.0, 3.0]), "bias": jnp.array([6.0])}}
      >>> _, state = optimizer.update(grads, optimizer.init(grads))
      >>> read(state).norms
      {'dense': 7.0}

    References:
      :cite:p:`mccandlish2018empirical`, equation 2.9 for the simple noise scale and appendix A.1 for the estimate from
      two batch sizes; there the two batches are of one step.

    See also:
      ``optax.monitor`` and ``optax.snapshot``, which record what a function of yours returns; ``wandb.watch`` for
      PyTorch. Around a clipper, place one before and one after it.
    """
    _check_options(depth, noise_scale, batch_size, decay, quantiles, window, history)
    needs_params = param_norms or update_ratio

    def init(params) -> Any:
        groups = group_leaves(params, depth)
        layers = [group.name for group in groups]
        dtype = widest([leaf for group in groups for leaf in group.leaves])

        def zeros() -> Float[Array, " layers"]:
            return jnp.zeros(len(layers), dtype)

        def integer(value: int) -> Array:
            return jnp.full((), value, jnp.int32)

        noise = None
        if noise_scale:
            previous = jax.tree.map(lambda leaf: jnp.zeros_like(leaf) if is_inexact(leaf) else None, params)
            noise = NoiseState(previous, integer(0), jnp.zeros((), dtype), jnp.zeros((), dtype))
        return MonitorState(
            label={} if name is None else {name: None},
            step=integer(0),
            layers=as_labels(layers),
            norms=zeros(),
            param_norms=zeros() if needs_params else None,
            update_ratios=zeros() if update_ratio else None,
            noise=noise,
            probabilities={repr(float(quantile)): None for quantile in quantiles},
            window=jnp.full((window, len(layers)), jnp.nan, dtype) if quantiles else None,
            first_nonfinite=integer(-1),
            first_nonfinite_step=integer(-1),
            num_nonfinite=integer(0),
            history=None if history is None else init_history(history, len(layers), update_ratio, dtype),
        )

    def update(updates, state, params=None, *, value=None, **extra_args):
        del extra_args
        if needs_params and params is None:
            option = "update_ratio" if update_ratio else "param_norms"
            raise ValueError(
                message("monitor", f"params in update, for {option}=True", "None", "call update(grads, state, params)")
            )
        groups = _known(group_leaves(updates, depth), state)
        step = jnp.asarray(optax.safe_increment(state.step))
        if not groups:
            norms = jnp.zeros_like(state.norms)
            return updates, state._replace(step=step, history=_record(state, norms, norms, value))
        param_groups = _known(group_leaves(params, depth), state) if needs_params else []
        values, finite = group_norms([*groups, *param_groups])
        values, finite = values.astype(state.norms.dtype), finite[: len(groups)]
        places = _places(groups, state)
        # A layer without an update has norm 0.
        norms = jnp.zeros_like(state.norms).at[places].set(values[: len(groups)])
        sizes = None
        if needs_params:
            sizes = jnp.zeros_like(norms).at[_places(param_groups, state)].set(values[len(groups) :])
        bad = ~jnp.all(finite)
        first = bad & (state.first_nonfinite < 0)
        ratios = _ratio(norms, sizes) if update_ratio and sizes is not None else None
        return updates, state._replace(
            step=step,
            norms=norms,
            param_norms=sizes,
            update_ratios=ratios,
            noise=_update_noise(state.noise, updates, bad, batch_size, decay),
            window=_write(state.window, state.step, norms),
            first_nonfinite=jnp.where(first, places[jnp.argmin(finite)], state.first_nonfinite),
            first_nonfinite_step=jnp.where(first, state.step, state.first_nonfinite_step),
            num_nonfinite=jnp.where(bad, optax.safe_increment(state.num_nonfinite), state.num_nonfinite),
            history=_record(state, norms, ratios, value),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _check_options(
    depth: Any, noise_scale: bool, batch_size: Any, decay: Any, quantiles: Any, window: Any, history: Any
) -> None:
    for option, value, least in (("depth", depth, 1), ("window", window, 1), ("history", history, 4)):
        if option != "window" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(message("monitor", f"{option} as an integer", repr(value), f"leave {option} out"))
        if value < least:
            raise ValueError(message("monitor", f"{option} of at least {least}", repr(value), f"leave {option} out"))
    if history is not None and history % 2:
        raise ValueError(message("monitor", "history as an even number", repr(history), f"pass {history + 1}"))
    if noise_scale and batch_size is None:
        raise ValueError(
            message(
                "monitor",
                "batch_size with noise_scale=True",
                "batch_size=None",
                "pass the number of examples whose mean gradient passes",
            )
        )
    if batch_size is not None and not (noise_scale and batch_size > 0):
        raise ValueError(
            message(
                "monitor",
                "a positive batch_size, with noise_scale=True",
                f"batch_size={batch_size}, noise_scale={noise_scale}",
                "pass noise_scale=True, or leave batch_size out",
            )
        )
    if not 0 <= decay < 1:
        raise ValueError(message("monitor", "decay in [0, 1)", repr(decay), "leave decay out for 0.99"))
    if isinstance(quantiles, (str, float, int)) or not all(0 <= quantile <= 1 for quantile in quantiles):
        raise ValueError(
            message("monitor", "quantiles as probabilities in [0, 1]", repr(quantiles), "pass for example (0.5, 0.9)")
        )


def _known(groups: list[Group], state: MonitorState) -> list[Group]:
    known = set(label_names(state.layers))
    unknown = [group.name for group in groups if group.name not in known]
    if unknown:
        raise ValueError(
            message(
                "monitor",
                "the layers init has seen",
                f"also {', '.join(map(repr, unknown[:3]))}",
                "call init with parameters of the same tree as the updates",
            )
        )
    return groups


def _places(groups: list[Group], state: MonitorState) -> Int[Array, " groups"]:
    numbers = {layer: number for number, layer in enumerate(label_names(state.layers))}
    return jnp.asarray([numbers[group.name] for group in groups], jnp.int32)


def _ratio(norm: Float[Array, " layers"], param_norm: Float[Array, " layers"]) -> Float[Array, " layers"]:
    safe = jnp.where(param_norm > 0, param_norm, 1)
    return jnp.where(param_norm > 0, norm / safe, 0)


def _record(
    state: MonitorState, norms: Float[Array, " layers"], ratios: Float[Array, " layers"] | None, loss: Any
) -> HistoryState | None:
    return None if state.history is None else record_step(state.history, state.step, norms, ratios, loss)


def _write(
    window: Float[Array, "window layers"] | None, step: Int[Array, ""], norms: Float[Array, " layers"]
) -> Float[Array, "window layers"] | None:
    if window is None:
        return None
    return window.at[step % window.shape[0]].set(norms)


def _update_noise(
    noise: NoiseState | None, updates: Any, bad: Array, batch_size: float | None, decay: float
) -> NoiseState | None:
    if noise is None or batch_size is None:
        return None
    current = jax.tree.map(lambda leaf: jnp.asarray(leaf) if is_inexact(leaf) else None, updates)
    leaves, structure = jax.tree.flatten(current)
    previous, treedef = jax.tree.flatten(noise.previous)
    if structure != treedef:
        raise ValueError(
            message(
                "monitor",
                "updates of the tree that init has seen, for noise_scale=True",
                "another tree",
                "call init with parameters of the same tree as the updates",
            )
        )
    dtype = noise.trace.dtype
    trace = square = jnp.zeros((), dtype)
    for leaf, old in zip(jax.lax.stop_gradient(leaves), jax.lax.stop_gradient(previous), strict=True):
        for new, before in zip(real_parts(leaf), real_parts(old), strict=True):
            trace += jnp.sum(jnp.square(new - before)).astype(dtype) * (batch_size / 2)
            square += jnp.sum(new * before).astype(dtype)
    counts = ~bad & (noise.num_steps > 0) & jnp.isfinite(trace) & jnp.isfinite(square)

    def average(old: Array, new: Array) -> Array:
        return jnp.where(counts, decay * old + (1 - decay) * new, old)

    kept = [jnp.where(bad, old, leaf.astype(old.dtype)) for leaf, old in zip(leaves, previous, strict=True)]
    return NoiseState(
        previous=jax.tree.unflatten(treedef, kept),
        num_steps=jnp.where(bad, noise.num_steps, optax.safe_increment(noise.num_steps)),
        trace=average(noise.trace, trace),
        square=average(noise.square, square),
    )
