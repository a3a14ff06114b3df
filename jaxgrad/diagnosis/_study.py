"""A network with the functions compiled for it, kept from one diagnosis to the next."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxgrad.diagnosis import _blame, _carried, _loss, _measure, _optimizer
from jaxgrad.diagnosis._facts import CarriedFacts, LossFacts
from jaxgrad.diagnosis._measure import Measurement
from jaxgrad.diagnosis._report import Source
from jaxgrad.diagnosis._statistics import TINY, output_signal
from jaxgrad.spectra._examples import Layout, example_layout
from jaxgrad.tracing import Network
from jaxgrad.tracing._flatten import bodies
from jaxgrad.tracing._network import read
from jaxgrad.tracing._signature import Traced


class Study:
    """A network and the functions compiled for it.

    Attributes:
      network: The network.
    """

    def __init__(self, network: Network) -> None:
        """Keep a network; nothing is compiled before it is asked for."""
        self.network = network
        self.compiled: dict[Any, Any] = {}

    def once(self, name: Any, make: Callable[[], Any]) -> Any:
        """Return what ``make`` returned the first time it was asked for under this name."""
        if name not in self.compiled:
            self.compiled[name] = make()
        return self.compiled[name]

    def measure(
        self, inputs: list[Any], optimizer: Any = None, *, light: bool = False
    ) -> tuple[Measurement, float, float]:
        """Measure, with a seed that keeps the signal in range; a light measurement has what verdicts rest on.

        Returns:
          What was measured, what the signals are to be divided by, and the seed.
        """
        seed = 1.0
        updates = None if optimizer is None else partial(_first_updates, self.network, optimizer)
        name = ("measure", optimizer, light)
        run = self.once(name, lambda: _measure.measurement(self.network, updates, light=light))
        measured = jax.device_get(run(inputs, np.float32(1.0)))
        scale = output_signal(self.network, measured)
        weak = [float(np.min(value)) for value in measured.signal.values()]
        if math.isfinite(scale) and scale > 0 and (scale < 1e-6 or scale > 1e6 or min(weak, default=1.0) < TINY):
            fitting = min(max(1 / scale, 1e-37), 1e37)
            again = jax.device_get(run(inputs, np.float32(fitting)))
            if math.isfinite(output_signal(self.network, again)):
                factor, seed = output_signal(self.network, again), fitting
                gradients = [norm * (scale / factor) for norm in again.gradient_norms]
                measured = again._replace(gradient_norms=gradients, update_norms=measured.update_norms)
                scale = factor
        return measured, scale, seed

    def clipping(self, inputs: list[Any], optimizer: Any) -> float:
        """Return by how much the optimizer cuts the first gradient down."""
        run = self.once(("clipping", optimizer), lambda: _optimizer.clipping(self.network, optimizer))
        return float(run(inputs))

    def fading(self, inputs: list[Any], optimizer: Any, num_steps: int) -> list[float]:
        """Return the sizes of updates for the same gradient over some steps, as shares of the largest."""
        run = self.once(("fading", optimizer, num_steps), lambda: _optimizer.fading(self.network, optimizer, num_steps))
        return [float(size) for size in run(inputs)]

    def train(
        self, inputs: list[Any], optimizer: Any, num_steps: int, rate: Any = 1.0, clip: float | None = None
    ) -> list[float]:
        """Return the losses of a few steps of training on the batch given."""
        name = ("train", optimizer, num_steps, clip)
        run = self.once(name, lambda: _optimizer.training(self.network, optimizer, num_steps, clip))
        return [float(loss) for loss in run(inputs, rate)]

    def loss_facts(self, inputs: list[Any]) -> LossFacts | None:
        """Return how the loss answers to the output; ``None`` where no labels are found."""
        found = _loss.labels_of(self.network, inputs)
        if found is None:
            return None
        labels, axis, classes = found
        run = self.once(("loss", labels, axis), lambda: _loss.loss_slopes(self.network, labels, axis))
        return _loss.loss_facts(self.network, labels, classes, run, inputs)

    def carried(self, inputs: list[Any]) -> tuple[CarriedFacts, ...]:
        """Return what loops without layers do to the states they carry."""
        if not _carried.carrying_loops(self.network):
            return ()
        run = self.once("carried", lambda: _carried.carried_gains(self.network))
        return _carried.carried_facts(self.network, run, inputs)

    def layout(self, params: Any, args: tuple[Any, ...]) -> Layout:
        """Return where the examples lie."""
        return self.once("layout", lambda: example_layout(self.network, params, *args))

    def blame(self, inputs: list[Any], seed: float, key: jax.Array) -> list[dict[Source, float]]:
        """Return log10 of what each source multiplies the signal by, block by block."""
        run = self.once("blame", lambda: _blame.blame(self.network))
        return run(inputs, np.float32(seed), key)


def _first_updates(network: Network, optimizer: Any, inputs: Any, gradients: Any) -> dict[int, Any]:
    return _optimizer.first_updates(network, inputs, gradients, optimizer)


_STUDIES: weakref.WeakKeyDictionary[Any, dict[Any, Study]] = weakref.WeakKeyDictionary()
_KEPT = 4  # studies of one function


def study_of(fn: Any, traced: Traced) -> Study:
    """Return the study of a function for this jaxpr: what was compiled for the same before serves again."""
    try:
        studies = _STUDIES.setdefault(fn, {})
        held = tuple(id(value) for value in _held(traced.closed.jaxpr))
        signature = traced.signature
        name = (str(traced.closed.jaxpr), held, signature.treedef, signature.avals, repr(signature.static))
    except TypeError:  # a callable that cannot be referred to weakly
        return Study(read("explain", traced))
    if name not in studies:
        while len(studies) >= _KEPT:
            del studies[next(iter(studies))]
        studies[name] = Study(read("explain", traced))
    study = studies[name]
    if traced.closed.consts:
        held = study.network.constants[len(traced.closed.consts) :]
        study.network = dataclasses.replace(study.network, constants=(*traced.closed.consts, *held))
    return study


def _held(jaxpr: Any) -> Iterator[Any]:
    """Yield what compiled functions inside a jaxpr close over."""
    for eqn in jaxpr.eqns:
        for body in bodies(eqn.params):
            yield from body.consts
            yield from _held(body.jaxpr)
