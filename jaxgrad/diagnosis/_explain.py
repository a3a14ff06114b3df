"""``explain``: measure a network, decide, and try the fixes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

import jaxgrad
from jaxgrad._checks import message
from jaxgrad.diagnosis import _findings, _nonfinite, _spectra
from jaxgrad.diagnosis._empty import with_empty_example
from jaxgrad.diagnosis._facts import Facts
from jaxgrad.diagnosis._findings import Decision
from jaxgrad.diagnosis._measure import Measurement
from jaxgrad.diagnosis._probe import NUM_FADING, NUM_STEPS, Probe, probe
from jaxgrad.diagnosis._remedies import Case, try_remedies
from jaxgrad.diagnosis._report import (
    Contribution,
    LayerStatistics,
    Level,
    NonFinite,
    Remedy,
    Report,
    Source,
    Spectrum,
)
from jaxgrad.diagnosis._statistics import closed_layers, facts_of, layer_statistics, leaves_range, open_layers
from jaxgrad.diagnosis._study import Study, study_of
from jaxgrad.diagnosis._wording import framework_of
from jaxgrad.meanfield import BlockPrediction, predict
from jaxgrad.spectra._examples import Layout
from jaxgrad.tracing import Network
from jaxgrad.tracing._interpret import Site
from jaxgrad.tracing._layers import user_source
from jaxgrad.tracing._signature import trace_for

_FAR = 28.0  # log10 beyond which float32 does not hold a signal to full precision


def explain(
    loss_fn: Callable[..., Any],
    params: Any,
    *args: Any,
    optimizer: Any = None,
    has_aux: bool = False,
    level: Level = "standard",
    confirm_steps: int = 0,
    key: jax.Array | None = None,
    verbose: bool = True,
) -> Report:
    r"""Explain why the gradients of a network vanish or explode, which layer is to blame, and which fix works.

    It has the shape of ``jax.grad``: where a training step calls ``jax.grad(loss_fn)(params, x, y)``, call
    ``jaxgrad.explain(loss_fn, params, x, y)``. Nothing in the model changes. The verdict rests on ratios

    .. math:: g_b = \lVert \partial L / \partial h_b \rVert / \lVert \partial L / \partial h_{b+1} \rVert

    of the backward signal at neighbouring cuts, so it does not depend on the unit of the loss. What is said of an
    optimizer's learning rate does, where the optimizer's own steps do (SGD, clipping).

    Args:
      loss_fn: A pure function of ``(params, *args)`` that returns a scalar loss.
      params: Parameters: any pytree, or a model that is one (``flax.nnx``, ``equinox``). Leaves that are no arrays
        are constants.
      *args: Its other arguments, such as a batch of inputs and labels.
      optimizer: An optax transformation. With it, the first update is set against the parameters; above level
        ``"quick"`` it also takes 16 steps on the batch given, to judge the learning rate.
      has_aux: Whether ``loss_fn`` returns ``(loss, aux)``.
      level: ``"quick"``: signal and statistics, for the price of a few training steps. ``"standard"``: also the
        singular values of each block on up to four examples, what theory predicts for it, and remedies. ``"full"``: on
        up to sixteen examples, and 64 steps of a loop rather than 8.
      confirm_steps: How many training steps to confirm the best remedy with, on the batch given; 0 for none.
      key: For random directions and fresh weights; a fixed key by default, so that the report is the same each time.
      verbose: Whether to show progress on a terminal's standard error.

    Returns:
      The report.

    Raises:
      TypeError: If ``loss_fn`` is not callable, its loss is no real scalar type, a parameter is an integer array,
        ``optimizer`` is no transformation, or ``key`` is no key.
      ValueError: If the loss is not scalar, no parameter reaches a layer, a batch is empty, or an option is unknown.

    Numerics:
      Values that are not finite give the verdict ``"nonfinite"`` with the operation that makes the first one. Signals
      that leave the range of the type are followed in log space.

    Example:
      >>> import jax, jax.numpy as jnp, jaxgrad
      >>> keys = jax.random.split(jax.random.key(0), 20)
      >>> params = [jax.random.normal(key, (32, 32)) / 32**0.5 for key in keys]
      >>> def loss_fn(params, x):
      ...     for weight in params:
      ...         x = jax.nn.sigmoid(x @ weight)
      ...     return jnp.mean((x - 1.0) ** 2)
      >>> report = jaxgrad.explain(loss_fn, params, jnp.ones((16, 32)), level="quick", verbose=False)
      >>> report.verdict, report.findings[0].cause
      ('vanishing', 'saturating-activation')
    """
    _check_options(level, optimizer, confirm_steps, key)
    key = jax.random.key(0) if key is None else key
    with _progress(verbose) as tell:
        tell("tracing")
        traced = trace_for("explain", loss_fn, params, args, has_aux=has_aux, scalar=True)
        study = study_of(loss_fn, traced)
        network = study.network
        inputs = network.inputs(params, args)
        tell(f"measuring {len(network.layers)} layers")
        measured, scale, seed = study.measure(inputs, optimizer)
        layers = layer_statistics(network, measured)
        loss = float(measured.loss)
        closed = closed_layers(network, measured)
        if closed:
            inputs = open_layers(network, inputs, closed, key)
            measured, scale, seed = study.measure(inputs, optimizer)
        layout = study.layout(params, args)
        nonfinite, singular = _locate(network, inputs, measured)
        whole = level != "quick" and nonfinite is None
        sources = study.blame(inputs, seed, key) if whole or leaves_range(network, measured, scale) else None
        spectra: Sequence[Spectrum | None] = [None] * len(network.blocks)
        spread, notes = math.nan, ()
        predictions: Sequence[BlockPrediction] = ()
        if whole:
            tell(f"singular values of {len(network.blocks)} blocks")
            spectra, spread, notes = _spectra.measure_spectra(study, loss_fn, params, args, has_aux, level, key)
            tell("what theory predicts")
            predictions = predict(network, params, *args, num_samples=0)
        facts = facts_of(
            network,
            layout,
            measured,
            scale,
            inputs,
            layers,
            sources=sources,
            nonfinite=nonfinite,
            spectra=spectra,
            spread=spread,
            predictions=predictions,
            loss=study.loss_facts(inputs) if nonfinite is None else None,
            clip=study.clipping(inputs, optimizer) if whole and optimizer is not None else 1.0,
            carried=study.carried(inputs) if nonfinite is None else (),
        )
        probed = None
        if nonfinite is None and optimizer is not None:
            tell("a few steps of training")
            probed = _probe_rate(study, inputs, layers, optimizer, level)
        decision = _findings.decide(facts, None if probed is None else probed.ruling)
        if whole and decision.verdict == "healthy":
            tell("an example of zeros")
            emptied = _try_empty(study, inputs, optimizer, facts)
            if emptied is not None:
                inputs, nonfinite, singular, decision = emptied
                facts = facts._replace(nonfinite=nonfinite)
        remedies: tuple[Remedy, ...] = ()
        if level != "quick" and decision.verdict != "healthy":
            tell("trying remedies")
            framework = framework_of(params, [owner.name for owner in network.parameters])
            case = Case(study, inputs, facts, decision, probed, optimizer, framework, singular, key)
            remedies = try_remedies(case, confirm_steps)
    return Report(
        verdict=decision.verdict,
        summary=decision.summary,
        findings=decision.findings,
        remedies=remedies,
        layers=layers,
        blocks=tuple(block.statistics for chain in facts.chains for block in chain),
        loss=loss,
        log10_total_gain=decision.log10_total_gain,
        nonfinite=nonfinite,
        level=level,
        num_parameters=sum(math.prod(network.signature.avals[owner.leaf].shape) for owner in network.parameters),
        num_examples=layout.num_examples,
        mixes_examples=layout.mixes,
        notes=(*_notes(network, layout, facts, sources is not None, closed), *notes),
        versions=(
            ("jaxgrad", jaxgrad.__version__),
            ("jax", jax.__version__),
            ("platform", jax.default_backend()),
        ),
        blame=_contributions(sources) if whole and sources is not None else (),
    )


def _try_empty(
    study: Study, inputs: list[Any], optimizer: Any, facts: Facts
) -> tuple[list[Any], NonFinite, Site, Decision] | None:
    """Look for a NaN that an example of zeros would bring; return the inputs that hold one, and what it comes to."""
    emptied = with_empty_example(study.network, inputs)
    if emptied is None:
        return None
    measured, _, _ = study.measure(emptied, optimizer)
    nonfinite, singular = _locate(study.network, emptied, measured)
    if nonfinite is None or singular is None:
        return None
    decision = _findings.decide(facts._replace(nonfinite=nonfinite))
    when = "On this batch every value is finite. With its first example set to zeros, as an empty one would be:"
    findings = tuple(
        finding._replace(evidence=f"{when} {finding.evidence}", confidence=0.7) for finding in decision.findings
    )
    summary = f"Finite on this batch, but not with an empty example in it. {decision.summary}"
    return emptied, nonfinite, singular, decision._replace(findings=findings, summary=summary)


def _contributions(sources: Sequence[Mapping[Source, float]]) -> tuple[Contribution, ...]:
    """Return the parts of each block's gain, those that do nothing left out."""
    return tuple(
        Contribution(block, source, parts[source])
        for block, parts in enumerate(sources)
        for source in get_args(Source)
        if source in parts and (parts[source] != 0 or len(parts) == 1)
    )


def _probe_rate(
    study: Study, inputs: list[Any], layers: Sequence[LayerStatistics], optimizer: Any, level: Level
) -> Probe | None:
    """Look for a learning rate that is too high or too low; at level "quick" by the first update alone."""
    if level == "quick":
        large = _findings.large_update(layers)
        return None if large is None else Probe(True, large)
    leaves = {owner.leaf for site in study.network.sites for owner in site.owners}
    rounding = max((float(jnp.finfo(inputs[leaf].dtype).eps) for leaf in leaves), default=0.0)
    return probe(
        lambda rate: study.train(inputs, optimizer, NUM_STEPS, rate),
        layers,
        rounding,
        lambda: study.fading(inputs, optimizer, NUM_FADING),
    )


def _check_options(level: Any, optimizer: Any, confirm_steps: Any, key: Any) -> None:
    if level not in get_args(Level):
        expected = "level to be one of " + ", ".join(map(repr, get_args(Level)))
        raise ValueError(message("explain", expected, repr(level), "choose one of them"))
    if optimizer is not None and not (
        callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))
    ):
        remedy = "pass one, such as optax.adam(1e-3); the loss's other arguments go before it, by position"
        raise TypeError(message("explain", "an optax transformation as optimizer", type(optimizer).__name__, remedy))
    if isinstance(confirm_steps, bool) or not hasattr(confirm_steps, "__index__"):
        raise TypeError(
            message("explain", "confirm_steps to be an integer", repr(confirm_steps), "pass 0, or some 100")
        )
    if confirm_steps < 0:
        raise ValueError(message("explain", "confirm_steps of at least 0", repr(confirm_steps), "pass 0, or some 100"))
    if key is not None:
        try:
            jax.random.split(key)
        except Exception as error:
            got = f"{type(key).__name__} {key!r}"[:80]
            raise TypeError(message("explain", "a JAX random key", got, "pass jax.random.key(0)")) from error


@contextmanager
def _progress(verbose: bool) -> Iterator[Callable[[str], None]]:
    """Yield what shows a line of progress on a terminal's standard error, and clears it in the end."""
    if not verbose or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("jaxgrad") as status:
        yield lambda text: status.update(f"jaxgrad: {text}")


def _locate(network: Network, inputs: list[Any], measured: Measurement) -> tuple[NonFinite, Site] | tuple[None, None]:
    """Find where values stop being finite, if they do, and the site of the first that is not."""
    numbers = [measured.loss, *measured.gradient_norms, *measured.rms.values(), *measured.signal.values()]
    if all(np.all(np.isfinite(number)) for number in numbers):
        return None, None
    origin = _nonfinite.find_nonfinite(network, inputs)
    if origin is None:
        return None, None
    if origin.phase == "input":
        names = {owner.leaf: owner.name for owner in network.parameters}
        (position,) = origin.site
        where = f"parameter {names[position]}" if position in names else f"argument {position - network.num_parameters}"
        return NonFinite("input", "input", where, names.get(position), None), origin.site
    layer, source = _layer_before(network, origin.site), user_source(origin.source)
    return NonFinite(origin.phase, origin.operation, source, layer, origin.step), origin.site


def _layer_before(network: Network, site: Site) -> str | None:
    """Return the last layer computed at or before a value."""
    outermost, innermost = site[0], site[-1]
    order = {output: i for i, equation in enumerate(network.program.equations) for output in equation.outputs}
    inner: dict[int, int] = {}
    if len(site) > 1:
        body = network.holder(site)
        inner = {output: i for i, equation in enumerate(body.equations) for output in equation.outputs}
    best = None
    for layer, place in zip(network.layers, network.sites, strict=True):
        outer = place.loops[0] if place.loops else place.equation.outputs[0]
        before = order[outer] < order[outermost] or (outer == outermost and not place.loops)
        if place.loops and outer == outermost:
            before = inner.get(place.equation.outputs[0], 0) <= inner.get(innermost, -1)
        if before:
            best = layer.name
    return best


def _notes(network: Network, layout: Layout, facts: Facts, followed: bool, closed: Sequence[int]) -> tuple[str, ...]:
    notes = list(network.notes)
    if closed:
        names = ", ".join(network.layers[index].name for index in closed)
        notes.append(f"{names}: zero, and open after one step; measured with weights drawn in their place.")
    if layout.mixes:
        notes.append(
            "Examples depend on one another (as with BatchNorm in training), so the whole batch is one state and there "
            "is one Jacobian a block, not one an example."
        )
    logs = [abs(block.statistics.log10_input_signal) for chain in facts.chains for block in chain]
    if followed and facts.has_signal and facts.nonfinite is None and max(logs, default=0.0) > _FAR:
        notes.append("Signals that left the range of the floating-point type were followed in log space.")
    if not facts.has_signal and facts.nonfinite is None:
        notes.append("The loss's gradient is zero at the network's output; a random direction was followed instead.")
    if not network.blocks:
        notes.append("No activation is passed by every path, so there are no blocks to compare.")
    return tuple(notes)
