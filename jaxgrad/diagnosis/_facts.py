"""What the rules decide by: plain numbers about layers, blocks, data, loss and optimizer."""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxgrad.diagnosis._report import BlockStatistics, LayerStatistics, NonFinite, Source


class LayerFacts(NamedTuple):
    """What the rules know of a layer beyond its statistics.

    Attributes:
      name: The layer's name.
      weight_variance: Fan-in times the mean squared weight; ``nan`` where the layer does not sum.
      slope: Root mean square of the slope of the nonlinearity behind it; ``nan`` where there is none.
      saturates: Whether that nonlinearity is flat on both sides.
      activation: Name of that nonlinearity.
      fan_in: How many inputs a unit sums over.
      alike: Whether all its units have the same weights, other than zero.
    """

    name: str
    weight_variance: float
    slope: float
    saturates: bool
    activation: str | None
    fan_in: int
    alike: bool


class BlockFacts(NamedTuple):
    """What the rules know of a block beyond its statistics.

    Attributes:
      statistics: What was measured.
      layers: The layers inside.
      skip: Whether an activation can pass around the layers.
      normalization: Whether it divides by a root of what passes through.
      error: Standard deviation of log10 of the gain among random blocks of this width; ``nan`` where no layer sums.
      sources: log10 of what each source multiplies the signal by; empty where not measured.
    """

    statistics: BlockStatistics
    layers: tuple[LayerFacts, ...]
    skip: bool
    normalization: bool
    error: float
    sources: dict[Source, float]


class EntryFacts(NamedTuple):
    """What enters the network, before any layer.

    Attributes:
      layer: The first layer it comes to.
      log10_scale: log10 of its root mean square.
      log10_spread: log10 of the largest over the median root mean square of a feature.
      log10_offset: log10 of the root mean square of the features' means over that of their standard deviations.
    """

    layer: str
    log10_scale: float
    log10_spread: float
    log10_offset: float


class LossFacts(NamedTuple):
    """How the loss answers to the network's output.

    Attributes:
      confident: Norm of the gradient at confidently wrong outputs over that at undecided ones; ``nan``, like the next
        two, where labels are no classes.
      here: The same at the outputs the network gives.
      relative: The loss there over that at undecided outputs.
      mixing: Norm of the change that one example's output makes in the gradients of the others, over that at undecided
        outputs.
      flat: Where the loss has no gradient at all: ``"none"``, ``"here"`` (at the outputs it has), ``"everywhere"``, or
        ``"normalization"`` where a normalization after the last layer takes it.
      swapped: Relative change of the loss where every example gets its neighbour's target; ``nan`` where the outputs
        do not differ.
      out_of_reach: Share of the targets that no output of the network comes near, whatever its last layer gives; 0
        where labels are classes.
      reach: The lowest and the highest output there is.
      bottomless: Whether the loss computes with labels that are whole numbers, and falls without bound as outputs grow.
    """

    confident: float
    here: float
    relative: float
    mixing: float
    flat: str = "none"
    swapped: float = math.nan
    out_of_reach: float = 0.0
    reach: tuple[float, float] = (-math.inf, math.inf)
    bottomless: bool = False


class CarriedFacts(NamedTuple):
    """What a loop without layers does to the state that it carries.

    Attributes:
      source: Where it stands in the user's code.
      num_steps: How many steps it takes.
      log10_gain: log10 of what a small random change of the state before is multiplied by.
    """

    source: str
    num_steps: int
    log10_gain: float


class Facts(NamedTuple):
    """All that the rules decide by.

    Attributes:
      chains: The blocks, chain by chain.
      layers: Statistics of all layers.
      mixes_examples: Whether examples depend on one another.
      has_signal: Whether the loss has a gradient at the network's output.
      entries: What enters the network.
      log10_targets: log10 of the targets' root mean square; ``nan`` without float targets.
      log10_target_scale: log10 of the targets' over the outputs' root mean square; ``nan`` without float targets.
      log10_spread: log10 of the largest singular value over the upper quartile of the most spread chain; ``nan`` if
        unknown.
      loss: How the loss answers to the output; ``None`` where labels are no classes.
      clip: By how much the optimizer cuts the gradient down at the first step; 1 where it does not.
      nonfinite: Where the first value that is not finite is made.
      carried: What loops without layers do to their states.
    """

    chains: tuple[tuple[BlockFacts, ...], ...]
    layers: tuple[LayerStatistics, ...]
    mixes_examples: bool
    has_signal: bool
    entries: tuple[EntryFacts, ...]
    log10_targets: float
    log10_target_scale: float
    log10_spread: float
    loss: LossFacts | None
    clip: float
    nonfinite: NonFinite | None
    carried: tuple[CarriedFacts, ...] = ()
