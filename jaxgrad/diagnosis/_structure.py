"""What can be read off a block without evaluating it: skips, normalization, and the fan-in of its layers."""

from __future__ import annotations

import math
from typing import Any

from jaxgrad.tracing import Network
from jaxgrad.tracing._cuts import Span
from jaxgrad.tracing._layers import LayerSite


def has_skip(network: Network, span: Span) -> bool:
    """Return whether an activation gets from one cut to the next without passing a layer."""
    program, layers = network.program, set(network.program.layers)
    reached = {site[0] for site in span.start.sites}
    for position in span.equations:
        equation = program.equations[position]
        if position not in layers and not reached.isdisjoint(equation.operands):
            reached.update(output for output in equation.outputs if (output,) in network.path)
    return span.kind == "depth" and any(site[0] in reached for site in span.end.sites)


def has_normalization(network: Network, span: Span) -> bool:
    """Return whether a block divides by a root of what passes through it."""
    operations = {"rsqrt", "sqrt", "pow"}
    return any(
        equation.operation in operations and any((output,) in network.path for output in equation.outputs)
        for equation in (network.program.equations[position] for position in span.equations)
    )


def fan_in(site: LayerSite) -> int:
    """Return how many inputs each unit of a layer sums over; 1 for an embedding."""
    equation, weight = site.equation, site.weight
    shape = site.program.avals[weight].shape
    params: Any = equation.params
    if equation.operation == "dot_general":
        contracting, _ = params["dimension_numbers"]
        side = 0 if equation.inputs[0] == weight else 1
        return math.prod(shape[axis] for axis in contracting[side])
    if equation.operation == "conv_general_dilated":
        return math.prod(shape) // shape[params["dimension_numbers"].rhs_spec[0]]
    return 1


def is_product(site: LayerSite) -> bool:
    """Return whether a layer sums over its inputs, so that its weights have a variance to speak of."""
    return site.equation.operation in {"dot_general", "conv_general_dilated"}
