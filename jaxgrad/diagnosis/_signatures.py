"""What the gradients of a layer or of a unit look like, as a few numbers each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxgrad._checks import message
from jaxgrad._norms import accumulator
from jaxgrad._paths import Pattern
from jaxgrad.diagnosis._activations import Place, as_rows, choose_layers, network_of, place_of
from jaxgrad.monitoring import Reading
from jaxgrad.monitoring._norms import group_leaves, group_norms
from jaxgrad.tracing import Network
from jaxgrad.tracing._interpret import Site, evaluate

_DECADES = 6.0  # what is smaller by more than this counts as smaller by this
_SEED = 2.0**80
_LAYER_FEATURES = {"log10_norm": 0.1, "log10_ratio": 0.1, "trend": 0.1, "noise": 0.05, "zero_share": 0.05}
_UNIT_FEATURES = {"log10_size": 0.1, "log10_transmission": 0.1, "zero_share": 0.05}


class Signatures(NamedTuple):
    """A few numbers for each of n layers or units.

    Attributes:
      names: Paths of the layers, with the number of the unit in brackets for units.
      features: What the columns are.
      values: Shape (n, features).
      resolution: Shape (features,); a difference smaller than this means nothing, and does not make a group.
    """

    names: tuple[str, ...]
    features: tuple[str, ...]
    values: Float[Array, "n features"]
    resolution: Float[Array, " features"]


def layer_signatures(history: Sequence[Any], params: Any = None, *, depth: int | None = None) -> Signatures:
    r"""Summarize the gradients that each layer got over the steps of a run.

    With the norms :math:`g_s`, one a step, the columns are

    - ``log10_norm``: the median of :math:`\log_{10} g_s`;
    - ``log10_ratio``: the same of :math:`g_s / \lVert\theta\rVert`, free of the layer's unit; left out where no norm of
      the parameters is known;
    - ``trend``: the median of the last third of :math:`\log_{10} g_s` less that of the first, in decades;
    - ``noise``: the median of :math:`\lvert \log_{10} g_{s+1} - \log_{10} g_s \rvert`, which a trend leaves alone;
    - ``zero_share``: the share of steps at which the gradient was 0.

    Args:
      history: One entry a step, in order: trees of gradients or updates, or what :func:`jaxgrad.monitoring.read` gave.
      params: Parameters like the gradients, for ``log10_ratio``. Readings have their own, with
        ``monitor(param_norms=True)``.
      depth: How many components of a path name a layer, as for :func:`jaxgrad.monitoring.monitor`; ``None``: each leaf
        is one.

    Returns:
      One row a layer.

    Raises:
      TypeError: ``history`` is no sequence, mixes readings with trees, or is traced.
      ValueError: It is empty, or its entries do not have the same layers.

    Numerics:
      Steps without a gradient count in ``zero_share`` alone, and steps with one that is not finite nowhere. A layer
      that never has one gets a norm and ratio one decade under the smallest of the others, and no trend or noise.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.diagnosis import layer_signatures
      >>> signatures = layer_signatures([{"a": jnp.ones(4), "b": 10.0**-step * jnp.ones(4)} for step in range(3)])
      >>> signatures.features, signatures.values[1].round().tolist()
      (('log10_norm', 'trend', 'noise', 'zero_share'), [-1.0, -2.0, 1.0, 0.0])

    See also:
      :func:`jaxgrad.diagnosis.group_by_gradient`; :func:`jaxgrad.diagnosis.unit_signatures` for the units of a layer.
    """
    name = "layer_signatures"
    if not isinstance(history, Sequence) or isinstance(history, str) or hasattr(history, "_fields"):
        remedy = "pass a list with one tree of gradients, or one reading, a step"
        raise TypeError(message(name, "a sequence, one entry a step", type(history).__name__, remedy))
    if not history:
        raise ValueError(message(name, "at least one step", "none", "collect gradients while training"))
    kinds = {isinstance(entry, Reading) for entry in history}
    if len(kinds) > 1:
        raise TypeError(message(name, "readings, or trees of gradients", "both", "pass one kind"))
    names, norms, sizes = _read_norms(history) if kinds == {True} else _tree_norms(history, params, depth)
    logs = np.log10(np.where((norms > 0) & np.isfinite(norms), norms, np.nan))
    with np.errstate(invalid="ignore"):
        columns = {
            "log10_norm": _filled(_median(logs)),
            "log10_ratio": None
            if sizes is None
            else _filled(_median(logs - np.log10(np.where(sizes > 0, sizes, np.nan)))),
            "trend": _trend(logs),
            "noise": np.nan_to_num(_median(np.abs(np.diff(logs, axis=0)))),
            "zero_share": np.mean(norms == 0, axis=0),
        }
    return _signatures(names, columns, _LAYER_FEATURES)


def unit_signatures(
    loss_fn: Callable[..., Any] | Network,
    params: Any,
    *args: Any,
    layers: Pattern | Sequence[Pattern] | None = None,
    has_aux: bool = False,
) -> Signatures:
    r"""Summarize the gradients that each unit gets over a batch, from one backward pass.

    With :math:`\delta_i = \partial L / \partial z_i` for the input :math:`z_i` of the unit's nonlinearity, and
    :math:`\epsilon_i = \partial L / \partial \phi(z_i)` for its output, the columns are

    - ``log10_size``: :math:`\log_{10}` of the root mean square of δ over that of the whole layer;
    - ``log10_transmission``: :math:`\log_{10} \lVert\delta\rVert / \lVert\epsilon\rVert`, the slope that the signal
      meets: 0 passes everything; a saturated unit has less than -1; a dead one nothing at all;
    - ``zero_share``: the share of examples with δ exactly 0: all, for a dead unit; half, for a ReLU in good health.

    Args:
      loss_fn: A function of ``(params, *args)`` that returns a scalar loss; or the :class:`jaxgrad.tracing.Network` of
        one.
      params: Its parameters.
      *args: Its other arguments, such as a batch.
      layers: Which layers' units: regular expressions that ``re.search`` looks for in their paths. ``None``: all layers
        that run into a nonlinearity.
      has_aux: Whether ``loss_fn`` returns ``(loss, aux)``. Static.

    Returns:
      One row a unit, those of a layer after one another, named ``path[unit]``. The positions of an image or a sequence
      and the steps of a loop count as examples; units of a convolution are its channels.

    Raises:
      TypeError: ``loss_fn`` is neither callable nor a network, or its result no real scalar.
      ValueError: No parameter reaches a layer; no layer matches, or none runs into a nonlinearity; or gradients are not
        finite.

    Numerics:
      Sizes and transmissions under 1e-6 count as 1e-6. A unit that no signal reaches, for want of outgoing weights,
      transmits 1: its nonlinearity holds nothing back. A signal that the type cannot hold is looked for once more with
      the loss multiplied by 2^80, so that a faint gradient does not pass for none.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxgrad.diagnosis import unit_signatures
      >>> params = {"w": jnp.eye(2), "b": jnp.array([0.0, -9.0]), "v": jnp.ones((2, 1))}
      >>> loss_fn = lambda p, x: jnp.sum(jnp.maximum(x @ p["w"] + p["b"], 0.0) @ p["v"])
      >>> signatures = unit_signatures(loss_fn, params, jnp.array([[1.0, 1.0], [2.0, -1.0]]))
      >>> signatures.names, signatures.values[:, 2].tolist()
      (('w[0]', 'w[1]'), [0.0, 1.0])

    See also:
      :func:`jaxgrad.diagnosis.group_by_gradient`; :func:`jaxgrad.explain` for the share of dead and of saturated units
      in each layer.
    """
    name = "unit_signatures"
    network = network_of(name, loss_fn, params, args, has_aux, scalar=True)
    places = [(index, place_of(network, network.sites[index])) for index in choose_layers(name, network, layers)]
    if layers is None:
        places = [(index, place) for index, place in places if place.activation is not None]
    if not places:
        remedy = "name layers with layers=, to look at their outputs"
        raise ValueError(message(name, "a layer that runs into a nonlinearity", "none", remedy))
    measure = _measured(network, tuple(place for _, place in places))
    inputs = network.inputs(params, args)
    faint, strong = (measure(inputs, seed) for seed in (1.0, _SEED))
    names, rows = [], []
    for (index, place), plain, scaled in zip(places, faint, strong, strict=True):
        layer = network.layers[index].name
        statistics = np.asarray(scaled if bool(jnp.all(jnp.isfinite(scaled))) else plain)
        if not np.all(np.isfinite(statistics)):
            got = f"a NaN or an infinity at {layer!r}"
            remedy = "ask jaxgrad.explain where it comes from"
            raise ValueError(message(name, "finite gradients", got, remedy))
        shape = [network.aval(place.site).shape[axis - len(place.site) + 1] for axis in place.units]
        names += [f"{layer}[{','.join(map(str, unit))}]" for unit in np.ndindex(*shape)]
        rows.append(statistics)
    columns = dict(zip(_UNIT_FEATURES, np.concatenate(rows).T, strict=True))
    return _signatures(names, columns, _UNIT_FEATURES)


def _measured(network: Network, places: tuple[Place, ...]) -> Callable[[list[Any], float], list[Array]]:
    """Return the compiled function that gives the statistics of each layer's units, the loss multiplied by a seed."""
    before = [
        place.site if place.activation is None else (*place.activation.loops, place.activation.start)
        for place in places
    ]
    sites = dict.fromkeys([*before, *(place.site for place in places)])

    def measure(inputs: list[Any], seed: Array | float) -> list[Array]:
        taps = {site: jnp.zeros(network.stacked_shape(site), network.aval(site).dtype) for site in sites}

        def loss(taps: Mapping[Site, Any]) -> Array:
            outputs, _ = evaluate(network.program, inputs, taps=taps)
            return outputs[0]

        value, pull = jax.vjp(loss, taps)
        (signals,) = pull(jnp.asarray(seed, value.dtype))
        return [
            _statistics(_rows(signals[start], place), _rows(signals[place.site], place))
            for start, place in zip(before, places, strict=True)
        ]

    key = ("units", tuple(sites))
    return network.program._compiled.setdefault(key, jax.jit(measure))


def _rows(signal: Array, place: Place) -> Array:
    signal = as_rows(signal, place)
    return signal.reshape(-1, signal.shape[-1]).astype(accumulator(signal))


def _statistics(arriving: Array, leaving: Array) -> Array:
    """Compute the columns for the units of a layer from the signals at its nonlinearity's input and output."""
    tiny = 10.0**-_DECADES
    peaks = [jnp.max(jnp.abs(signal)) for signal in (arriving, leaving)]
    arriving, leaving = (
        signal / jnp.where(peak > 0, peak, 1) for signal, peak in zip((arriving, leaving), peaks, strict=True)
    )
    # The peaks are divided first: each may be near an end of the range, their ratio is a slope.
    slope = jnp.where(peaks[1] > 0, peaks[0] / jnp.where(peaks[1] > 0, peaks[1], 1), 1)
    sizes, outer = (jnp.sqrt(jnp.mean(signal**2, axis=0)) for signal in (arriving, leaving))
    whole = jnp.sqrt(jnp.mean(sizes**2))
    passed = jnp.where(outer > 0, slope * sizes / jnp.where(outer > 0, outer, 1), 1)
    return jnp.stack(
        [
            jnp.log10(jnp.maximum(sizes / jnp.where(whole > 0, whole, 1), tiny)),
            jnp.log10(jnp.maximum(passed, tiny)),
            jnp.mean((arriving == 0).astype(arriving.dtype), axis=0),
        ],
        axis=1,
    )


def _read_norms(history: Sequence[Reading]) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    """Return layers, norms and, where they are known, norms of the parameters, of shape (steps, layers)."""
    names = list(history[0].norms)
    for number, reading in enumerate(history):
        _check_names(names, list(reading.norms), number)
    norms = np.array([[reading.norms[name] for name in names] for reading in history], float)
    if not all(reading.param_norms for reading in history):
        return names, norms, None
    return names, norms, np.array([[reading.param_norms[name] for name in names] for reading in history], float)


def _tree_norms(
    history: Sequence[Any], params: Any, depth: int | None
) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    trees = [*history, *([] if params is None else [params])]
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees)):
        remedy = "call it outside of jit, or record norms with jaxgrad.monitor"
        raise TypeError(message("layer_signatures", "concrete gradients", "traced ones", remedy))
    names: list[str] = []
    rows = []
    for number, tree in enumerate(trees):
        groups = group_leaves(tree, depth)
        found = [group.name for group in groups]
        names = names or found
        _check_names(names, found, number)
        rows.append(np.asarray(group_norms(groups)[0], float))
    norms = np.stack(rows)
    return names, norms[: len(history)], None if params is None else norms[len(history) :]


def _check_names(names: list[str], found: list[str], number: int) -> None:
    if found != names or not names:
        got = f"{', '.join(found[:4]) or 'none'} at step {number}"
        remedy = "pass gradients, or readings, and parameters of one model"
        raise ValueError(message("layer_signatures", f"the layers {', '.join(names[:4]) or 'of a model'}", got, remedy))


def _median(values: np.ndarray) -> np.ndarray:
    """Return the median of each column's numbers; NaN where there are none."""
    columns = [column[np.isfinite(column)] for column in values.T]
    return np.array([np.median(column) if column.size else np.nan for column in columns])


def _trend(logs: np.ndarray) -> np.ndarray:
    third = -(-len(logs) // 3)
    return np.nan_to_num(_median(logs[-third:]) - _median(logs[:third]))


def _filled(values: np.ndarray) -> np.ndarray:
    """Put what has no number one decade under the smallest that has."""
    finite = values[np.isfinite(values)]
    return np.where(np.isfinite(values), values, finite.min() - 1 if finite.size else 0.0)


def _signatures(names: Sequence[str], columns: Mapping[str, Any], resolution: Mapping[str, float]) -> Signatures:
    known = {feature: column for feature, column in columns.items() if column is not None}
    dtype = jnp.result_type(float)
    return Signatures(
        names=tuple(names),
        features=tuple(known),
        values=jnp.asarray(np.stack(list(known.values()), axis=1), dtype),
        resolution=jnp.asarray([resolution[feature] for feature in known], dtype),
    )
