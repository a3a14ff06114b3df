"""The activations of each layer along the directions in which they vary most, and how many directions they fill."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float

from jaxgrad._checks import message
from jaxgrad._norms import accumulator
from jaxgrad._paths import Pattern, match_rules
from jaxgrad.decomposition import PCAResult, pca, pca_transform
from jaxgrad.diagnosis._measure import activation_after, unit_axes
from jaxgrad.tracing import Network
from jaxgrad.tracing._interpret import Site, evaluate
from jaxgrad.tracing._layers import Activation, LayerSite
from jaxgrad.tracing._network import read
from jaxgrad.tracing._signature import trace_for

Positions = Literal["rows", "columns"]


class ActivationPCA(NamedTuple):
    r"""The activations of one layer over a batch, along their principal components.

    Attributes:
      name: Path of the layer's parameter.
      activation: Name of the nonlinearity they come out of; ``None`` for the output of a layer that runs into none.
      coordinates: Shape (\*rows, k): (examples, k) for a dense layer, (examples, height, width, k) for a convolution,
        with the steps in front inside a loop; (examples, k) for ``positions="columns"``.
      explained_variance_ratio: Shape (k,); share of the variance along each component.
      effective_dimension: Shape (); the participation ratio of all variances, from 1 to ``num_units``; 0 where all
        rows are the same.
      num_units: How many units, or columns, there are.
      num_rows: How many rows.
      pca: The fit, with directions and mean.
    """

    name: str
    activation: str | None
    coordinates: Float[Array, "*rows k"]
    explained_variance_ratio: Float[Array, " k"]
    effective_dimension: Float[Array, ""]
    num_units: int
    num_rows: int
    pca: PCAResult


class Place(NamedTuple):
    """Where a layer's activations lie.

    Attributes:
      site: The value.
      activation: The nonlinearity it comes out of, or ``None``.
      units: The axes that count units, steps of loops included in the numbering.
      examples: The axis of the examples.
    """

    site: Site
    activation: Activation | None
    units: tuple[int, ...]
    examples: int


def activation_pca(
    fn: Callable[..., Any] | Network,
    params: Any,
    *args: Any,
    layers: Pattern | Sequence[Pattern] | None = None,
    num_components: int = 2,
    positions: Positions = "rows",
    has_aux: bool = False,
) -> tuple[ActivationPCA, ...]:
    r"""Compute the principal components of every layer's activations over a batch, and how many dimensions they fill.

    .. math::
      D = \frac{\bigl(\sum_c \lambda_c\bigr)^2}{\sum_c \lambda_c^2}

    is the effective dimension, the participation ratio of the variances λ along all components: n where n of them are
    equal and the others 0. A representation that collapses with depth, because examples become alike or units copies
    of one another, shows as a D that falls towards 1, whatever the width and the scale.

    The activation of a layer is what comes out of the nonlinearity that its output runs into, or its output where
    there is none. Units are columns: channels for a convolution, the last axis otherwise.

    Args:
      fn: A function of ``(params, *args)``, a loss or a forward pass; or the :class:`jaxgrad.tracing.Network` of one.
      params: Its parameters.
      *args: Its other arguments, such as a batch.
      layers: Which layers: regular expressions that ``re.search`` looks for in their paths; ``None``: all.
      num_components: k; fewer for a layer with fewer rows or columns. Static.
      positions: What the positions of an image or a sequence and the steps of a loop are: ``"rows"``, as if each were
        an example, so that the columns are units; or ``"columns"``, so that each example is one row. Static.
      has_aux: Whether ``fn`` returns a pair of which only the first is differentiated; not asked for a network. Static.

    Returns:
      One result a layer, in the order of evaluation. A layer that is used twice is there twice.

    Raises:
      TypeError: ``fn`` is neither callable nor a network, or ``num_components`` is no integer.
      ValueError: No parameter reaches a layer; a pattern matches no layer; an option is out of range; there is one row
        only; or, for concrete arrays, activations are not finite.

    Numerics:
      Deviations from the mean are squared in units of the largest. D of n rows is at most n - 1, and about
      nd / (n + d) for d equal variances: take several times as many examples as units before comparing it with
      the width. A unit that is far larger than the others counts for more: nothing is standardized. Under ``jit`` rows
      that are not finite take no part.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxgrad.diagnosis import activation_pca
      >>> params = {"wide": jnp.eye(4), "narrow": jnp.ones((4, 4))}
      >>> forward = lambda params, x: jnp.tanh(x @ params["wide"]) @ params["narrow"]
      >>> results = activation_pca(forward, params, jax.random.normal(jax.random.key(0), (64, 4)))
      >>> [(result.name, round(float(result.effective_dimension), 1)) for result in results]
      [('wide', 3.9), ('narrow', 1.0)]

    References:
      :cite:p:`recanatesi2019dimensionality` for the participation ratio of representations against depth.

    See also:
      :func:`jaxgrad.diagnosis.plot_activations`; :func:`jaxgrad.decomposition.pca`;
      :func:`jaxgrad.spectra.stable_rank`, which divides by the largest variance in place of the typical one.
    """
    name = "activation_pca"
    if isinstance(num_components, bool) or not isinstance(num_components, int):
        raise TypeError(message(name, "an integer num_components", repr(num_components), "pass an int"))
    if num_components < 1:
        raise ValueError(message(name, "num_components of at least 1", repr(num_components), "pass more"))
    if positions not in get_args(Positions):
        raise ValueError(message(name, "positions 'rows' or 'columns'", repr(positions), "pass one of these"))
    network = network_of(name, fn, params, args, has_aux)
    chosen = choose_layers(name, network, layers)
    places = [place_of(network, network.sites[index]) for index in chosen]
    wanted = tuple(place.site for place in places)
    compiled = network.program._compiled.setdefault(("values", wanted), jax.jit(_values_at(network, wanted)))
    values = compiled(network.inputs(params, args))
    return tuple(
        _describe(name, network.layers[index].name, place, value, num_components, positions)
        for index, place, value in zip(chosen, places, values, strict=True)
    )


def network_of(function: str, fn: Any, params: Any, args: tuple[Any, ...], has_aux: bool, **options: Any) -> Network:
    """Return a network as it is, and that of a function."""
    return (
        fn
        if isinstance(fn, Network)
        else read(function, trace_for(function, fn, params, args, has_aux=has_aux, **options))
    )


def choose_layers(function: str, network: Network, patterns: Pattern | Sequence[Pattern] | None) -> list[int]:
    """Return which layers match."""
    if patterns is None:
        return list(range(len(network.layers)))
    given = list(patterns) if isinstance(patterns, Sequence) and not isinstance(patterns, str) else [patterns]
    names = [layer.name for layer in network.layers]
    matches = match_rules(function, [(pattern, True) for pattern in given], names, False)
    if not any(matches):
        remedy = f"pass one for paths such as {', '.join(names[:5])}, or None for all"
        raise ValueError(message(function, "layers: at least one regular expression", "none", remedy))
    return [index for index, match in enumerate(matches) if match]


def place_of(network: Network, site: LayerSite) -> Place:
    """Find where a layer's activations lie, and which of their axes are what."""
    activation = activation_after(network, site)
    out = site.equation.outputs[0]
    value = (*site.loops, out if activation is None else activation.end)
    shape = network.aval(value).shape
    units = unit_axes(site, shape)
    examples = next((axis for axis in range(len(shape)) if axis not in units), 0)
    depth = len(site.loops)
    return Place(value, activation, tuple(axis + depth for axis in units), examples + depth)


def as_rows(value: Array, place: Place) -> Array:
    """Return activations with one axis of units, the last."""
    rows = [axis for axis in range(value.ndim) if axis not in place.units]
    moved = jnp.transpose(value, (*rows, *place.units))
    return moved.reshape(*moved.shape[: len(rows)], math.prod(moved.shape[len(rows) :]))


def _values_at(network: Network, sites: Sequence[Site]) -> Callable[[list[Any]], list[Array]]:
    def values(inputs: list[Any]) -> list[Array]:
        _, kept = evaluate(network.program, inputs, captures=sites)
        return [kept[site] for site in sites]

    return values


def _describe(
    function: str, name: str, place: Place, value: Array, num_components: int, positions: str
) -> ActivationPCA:
    if positions == "columns":
        value = jnp.moveaxis(value, place.examples, 0)
        value = value.reshape(value.shape[0], math.prod(value.shape[1:]))
    else:
        value = as_rows(value, place)
    value = lax.stop_gradient(value).astype(accumulator(value))
    rows = value.reshape(-1, value.shape[-1])
    if rows.shape[0] < 2:
        raise ValueError(message(function, "at least two rows", f"one at {name!r}", "pass a batch of several examples"))
    if not isinstance(rows, Tracer) and not bool(jnp.all(jnp.isfinite(rows))):
        got = f"a NaN or an infinity in the activations of {name!r}"
        remedy = "ask jaxgrad.explain where it comes from, or choose other layers with layers="
        raise ValueError(message(function, "finite activations", got, remedy))
    fit = pca(rows, min(num_components, *rows.shape))
    return ActivationPCA(
        name=name,
        activation=None if place.activation is None else place.activation.name,
        coordinates=pca_transform(fit, rows).reshape(*value.shape[:-1], -1),
        explained_variance_ratio=fit.explained_variance_ratio,
        effective_dimension=_participation_ratio(rows),
        num_units=rows.shape[1],
        num_rows=rows.shape[0],
        pca=fit,
    )


@jax.jit
def _participation_ratio(x: Array) -> Array:
    """Compute the squared sum of the variances over the sum of their squares."""
    finite = jnp.all(jnp.isfinite(x), axis=1, keepdims=True)
    x = jnp.where(finite, x, 0)
    count = jnp.maximum(jnp.sum(finite), 1).astype(x.dtype)
    away = jnp.where(finite, x - jnp.sum(x / count, axis=0, keepdims=True), 0)
    peak = jnp.max(jnp.abs(away))
    away = away / jnp.where(peak > 0, peak, 1)
    small = away if away.shape[0] < away.shape[1] else away.T
    products = jnp.matmul(small, small.T, precision=lax.Precision.HIGHEST)
    squares = jnp.sum(products**2)
    return jnp.where(squares > 0, jnp.trace(products) ** 2 / jnp.where(squares > 0, squares, 1), 0)
