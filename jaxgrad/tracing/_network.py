"""``trace``: a network as layers, cuts and blocks, read from the function that computes its loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgrad._checks import message
from jaxgrad.tracing import _cuts, _flatten, _interpret, _layers, _substitute
from jaxgrad.tracing._cuts import Cut, Span
from jaxgrad.tracing._interpret import Kind, Owner, Program, Site
from jaxgrad.tracing._layers import Activation, Layer, LayerSite
from jaxgrad.tracing._signature import Signature, Traced, first_argument, is_none, merge, same, trace_for


class Block(NamedTuple):
    """A stretch of the network between neighbouring cuts.

    By the chain rule the Jacobian of a chain of blocks is the product of the blocks' Jacobians.

    Attributes:
      index: Position in ``Network.blocks``.
      name: The layers inside, in short; with the step for a step of a loop.
      kind: ``"depth"``, or ``"time"`` for a step of a loop over time.
      chain: Blocks of one chain follow on one another: the state one ends with is the state the next begins with.
      layers: The layers inside.
      input_shapes: Shapes of the state at the beginning: one activation, or the leaves of a loop's carry.
      output_shapes: Shapes of the state at the end.
    """

    index: int
    name: str
    kind: str
    chain: int
    layers: tuple[Layer, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    output_shapes: tuple[tuple[int, ...], ...]


class Captured(NamedTuple):
    """What one evaluation of a network returns.

    Attributes:
      outputs: What the traced function returns.
      layer_inputs: The activation that enters each layer, in the order of ``Network.layers``; stacked over the steps
        inside a loop.
      cuts: The state at each cut, in the order of ``Network.cuts``; each a tuple of arrays.
    """

    outputs: Any
    layer_inputs: tuple[jax.Array, ...]
    cuts: tuple[tuple[jax.Array, ...], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network, read from the function that computes its loss. Made by :func:`jaxgrad.trace`.

    Calling it evaluates the traced function, operation by operation as it was traced. It is a pure function: ``jit``,
    ``vmap``, ``grad``, ``jacfwd`` and sharded arrays pass through it.

    Attributes:
      layers: The equations that multiply an activation by a parameter, in order of evaluation.
      blocks: What lies between neighbouring cuts, chain after chain.
      cuts: The states between the blocks.
      program: The flat list of equations.
      spans: Where each block lies in the program.
      sites: Where each layer stands in the program.
      activations: The nonlinearities on the path to the loss.
      notes: What was kept whole, in words.
      parameters: The parameter leaves, by position among the arrays.
      num_parameters: How many of the arrays stand in ``params``.
      path: The activations whose derivative reaches the loss.
      signature: What the network was traced with.
      constants: The values the function closes over.
      out_tree: The tree of what the function returns, and which of its leaves are arrays.
    """

    layers: tuple[Layer, ...]
    blocks: tuple[Block, ...]
    cuts: tuple[Cut, ...]
    program: Program
    spans: tuple[Span, ...]
    sites: tuple[LayerSite, ...]
    activations: tuple[Activation, ...]
    notes: tuple[str, ...]
    parameters: tuple[Owner, ...] = dataclasses.field(repr=False)
    num_parameters: int = dataclasses.field(repr=False)
    path: frozenset[Site] = dataclasses.field(repr=False)
    signature: Signature = dataclasses.field(repr=False)
    constants: tuple[Any, ...] = dataclasses.field(repr=False)
    out_tree: Signature = dataclasses.field(repr=False)

    def __call__(self, params: Any, *args: Any) -> Any:
        """Evaluate the traced function.

        Args:
          params: Parameters of the shapes traced.
          *args: Other arguments of the shapes traced.

        Returns:
          What the traced function returns, bit for bit.

        Raises:
          ValueError: If structure, shapes or types differ from those traced.
        """
        outputs, _ = _interpret.evaluate(self.program, self.inputs(params, args))
        return merge(self.out_tree, outputs)

    def capture(self, params: Any, *args: Any, taps: Sequence[Sequence[Any]] | None = None) -> Captured:
        """Evaluate the traced function once and return what happens inside.

        The gradient of the loss with respect to ``taps`` is the backward signal at every cut:
        ``jax.grad(lambda taps: network.capture(params, *args, taps=taps).outputs)(network.taps())``.

        Args:
          params: Parameters of the shapes traced.
          *args: Other arguments of the shapes traced.
          taps: What to add to the state at each cut, of the structure of :meth:`taps`.

        Returns:
          Outputs, layer inputs and states at the cuts.

        Raises:
          ValueError: If structure, shapes or types differ from those traced.
        """
        layers = [(*site.loops, site.data) for site in self.sites]
        wanted = {site for cut in self.cuts for site in cut.sites} | set(layers)
        added = {} if taps is None else self.stack_taps(taps)
        outputs, kept = _interpret.evaluate(self.program, self.inputs(params, args), taps=added, captures=wanted)
        cuts = tuple(
            tuple(kept[site] if cut.step is None else kept[site][cut.step] for site in cut.sites) for cut in self.cuts
        )
        return Captured(
            outputs=merge(self.out_tree, outputs),
            layer_inputs=tuple(kept[site] for site in layers),
            cuts=cuts,
        )

    def substitute(
        self,
        *,
        activation: Callable[[Any], Any] | None = None,
        names: Iterable[str] | None = None,
        branch_scale: float | None = None,
        skip: bool = False,
    ) -> Network:
        """Return a counterfactual: the same network with something changed, ready to be measured.

        Args:
          activation: An elementwise function to put in the place of the nonlinearities.
          names: Which nonlinearities to replace, by name; all by default.
          branch_scale: What to multiply each residual branch by before it is added to the stream.
          skip: Whether to add each block's input to its output where the shapes allow it and no skip is there.

        Returns:
          A network with the same layers, blocks and parameters.
        """
        network = self
        if activation is not None:
            chosen = None if names is None else frozenset(names)
            network = _substitute.swap_activations(network, activation, chosen)
        if branch_scale is not None:
            network = _substitute.scale_branches(network, branch_scale)
        return _substitute.add_skips(network) if skip else network

    def taps(self) -> tuple[tuple[jax.Array, ...], ...]:
        """Return zeros to add to the states at the cuts, in the order of ``cuts``."""
        return tuple(
            tuple(jnp.zeros(aval.shape, aval.dtype) for aval in map(self.aval, cut.sites)) for cut in self.cuts
        )

    def stack_taps(self, taps: Sequence[Sequence[Any]]) -> dict[Site, Any]:
        """Return taps given for each cut as the interpreter takes them, one for each site."""
        if len(taps) != len(self.cuts):
            raise ValueError(
                message(
                    "Network.capture", f"taps for {len(self.cuts)} cuts", f"{len(taps)}", "start from network.taps()"
                )
            )
        added: dict[Site, Any] = {}
        for cut, values in zip(self.cuts, taps, strict=True):
            for site, value in zip(cut.sites, values, strict=True):
                if cut.step is None:
                    added[site] = added[site] + value if site in added else value
                else:
                    added.setdefault(site, {})[cut.step] = value
        return {
            site: jnp.stack([value[step] for step in sorted(value)]) if isinstance(value, dict) else value
            for site, value in added.items()
        }

    def aval(self, site: Site) -> Any:
        """Return shape and type of the value at a site, for one step inside loops."""
        return self.holder(site).avals[site[-1]]

    def stacked_shape(self, site: Site) -> tuple[int, ...]:
        """Return the shape of a site's values over all steps of the loops it stands in."""
        lengths, program = [], self.program
        for number in site[:-1]:
            (loop,) = [e.loop for e in program.equations if e.outputs and e.outputs[0] == number and e.loop is not None]
            lengths.append(loop.length)
            program = loop.body
        return (*lengths, *program.avals[site[-1]].shape)

    def holder(self, site: Site) -> Program:
        """Return the program that holds a site: the network's, or a loop's body."""
        program = self.program
        for number in site[:-1]:
            (loop,) = [e.loop for e in program.equations if e.outputs and e.outputs[0] == number and e.loop is not None]
            program = loop.body
        return program

    def inputs(self, params: Any, args: tuple[Any, ...]) -> list[Any]:
        """Return the program's inputs: the arrays among the arguments, checked, and what the function closes over."""
        leaves, treedef = jax.tree_util.tree_flatten((params, tuple(args)), is_leaf=is_none)
        signature = self.signature
        if treedef != signature.treedef:
            raise ValueError(
                message(
                    "Network",
                    f"arguments of the structure traced, {signature.treedef}",
                    f"{treedef}",
                    "call it with the same tree of parameters and arguments, or trace again",
                )
            )
        static = dict(signature.static)
        for position, value in static.items():
            if not same(leaves[position], value):
                raise ValueError(
                    message(
                        "Network",
                        f"the value traced for the argument that is no array, {value!r}",
                        f"{leaves[position]!r}",
                        "trace again with the new value",
                    )
                )
        arrays = [jnp.asarray(leaf) for position, leaf in enumerate(leaves) if position not in static]
        for array, aval in zip(arrays, signature.avals, strict=True):
            if array.shape != aval.shape or array.dtype != aval.dtype:
                raise ValueError(
                    message(
                        "Network",
                        f"an array of shape {aval.shape} and type {aval.dtype}, as traced",
                        f"shape {array.shape} and type {array.dtype}",
                        "call it with arrays of the shapes traced, or trace again",
                    )
                )
        return [*arrays, *self.constants]


def trace(fn: Callable[..., Any], params: Any, *args: Any, has_aux: bool = False) -> Network:
    """Read the network that a function computes from its jaxpr.

    Args:
      fn: A pure function ``fn(params, *args)``: the loss a user differentiates, or a forward pass.
      params: Parameters: any pytree. Leaves that are no arrays (functions, strings, ``None``) are constants.
      *args: Its other arguments: any pytrees. Leaves that are no arrays are constants.
      has_aux: Whether ``fn`` returns a pair of which only the first is differentiated, as in ``jax.grad``.

    Returns:
      The network: layers named by parameter path, and blocks between cuts.

    Raises:
      TypeError: If ``fn`` is not callable, a parameter is an integer array, or ``has_aux`` does not fit the result.
      ValueError: If there is no parameter, no parameter reaches a layer, or an array is empty.

    Example:
      >>> import jax, jax.numpy as jnp, jaxgrad
      >>> params = {"first": jnp.eye(3), "second": jnp.eye(3)}
      >>> def loss_fn(params, x):
      ...     return jnp.sum(jnp.tanh(x @ params["first"]) @ params["second"])
      >>> network = jaxgrad.trace(loss_fn, params, jnp.ones((2, 3)))
      >>> [layer.name for layer in network.layers]
      ['first', 'second']
    """
    return read("trace", trace_for("trace", fn, params, args, has_aux=has_aux))


def read(function: str, traced: Traced) -> Network:
    """Find layers, cuts and blocks in a jaxpr."""
    closed, signature, owners, out_tree, differentiated = traced
    kinds = [
        Kind(owners=(owners[position],)) if position in owners else Kind(data=position >= first_argument(signature))
        for position in range(len(signature.avals))
    ]
    for constant_kind in (Kind(), Kind(data=True)):
        # Where no argument reaches a layer, the data are what the function closes over.
        program = _flatten.flatten(closed, kinds, constant_kind)
        path = _cuts.gradient_path(program, program.outputs[:differentiated])
        sites = tuple(_layers.layer_sites(program, path))
        if sites:
            break
    else:
        raise ValueError(
            message(
                function,
                "a loss in which parameters multiply activations (a product, a convolution or an embedding)",
                f"parameters {', '.join(owner.name for owner in list(owners.values())[:6])} that reach no layer",
                "pass the parameters that the loss uses, and the data as arguments after them",
            )
        )
    spans = tuple(_cuts.spans(program, path, by_reach=constant_kind.data))
    sizes = {owner.leaf: math.prod(signature.avals[owner.leaf].shape) for owner in owners.values()}
    cuts = tuple(dict.fromkeys(cut for span in spans for cut in (span.start, span.end)))
    layers = _describe(program, sites, spans, sizes)
    return Network(
        layers=layers,
        blocks=_blocks(program, layers, sites, spans),
        cuts=cuts,
        program=program,
        spans=spans,
        sites=sites,
        activations=tuple(_layers.activations(program, path)),
        notes=_notes(program, layers),
        parameters=tuple(owners.values()),
        num_parameters=first_argument(signature),
        path=path,
        signature=signature,
        constants=(*closed.consts, *program.hoisted),
        out_tree=out_tree,
    )


def _describe(
    program: Program, sites: Sequence[LayerSite], spans: Sequence[Span], sizes: Mapping[int, int]
) -> tuple[Layer, ...]:
    """Return what the user sees of the layers."""
    homes: dict[int, int] = {}
    for index, span in enumerate(spans):
        for position in span.equations:
            homes.setdefault(position, index)
    positions = {
        equation.outputs[0]: position for position, equation in enumerate(program.equations) if equation.outputs
    }
    lengths: dict[Site, int] = {
        (*loops, equation.outputs[0]): equation.loop.length
        for loops, holder in _programs(program)
        for equation in holder.equations
        if equation.loop is not None
    }
    uses: dict[str, int] = {}
    layers = []
    for site in sites:
        main = max(site.owners, key=lambda owner: sizes.get(owner.leaf, 0))
        outer = site.loops[0] if site.loops else site.equation.outputs[0]
        repeats = math.prod(lengths[site.loops[: depth + 1]] for depth in range(len(site.loops)))
        use = uses.get(main.name, 0)
        uses[main.name] = use + 1
        layers.append(_layers.describe(site, main, repeats, use, homes.get(positions[outer])))
    return tuple(layers)


def _programs(program: Program, loops: Site = ()) -> Iterable[tuple[Site, Program]]:
    """Yield the program and the bodies of its loops."""
    yield loops, program
    for equation in program.equations:
        if equation.loop is not None:
            yield from _programs(equation.loop.body, (*loops, equation.outputs[0]))


def _blocks(
    program: Program, layers: Sequence[Layer], sites: Sequence[LayerSite], spans: Sequence[Span]
) -> tuple[Block, ...]:
    """Return what the user sees of the spans."""
    blocks = []
    for index, span in enumerate(spans):
        made = {output for position in span.equations for output in program.equations[position].outputs}
        inside = tuple(
            layer
            for layer, site in zip(layers, sites, strict=True)
            if (site.loops[0] if site.loops else site.equation.outputs[0]) in made
        )
        name = join_names([layer.name for layer in inside])
        if span.kind == "time":
            name = f"{name} step {span.start.step}"
        blocks.append(
            Block(index, name, span.kind, span.chain, inside, _shapes(program, span.start), _shapes(program, span.end))
        )
    return tuple(blocks)


def _shapes(program: Program, cut: Cut) -> tuple[tuple[int, ...], ...]:
    bodies = dict(_programs(program))
    return tuple(tuple(bodies[site[:-1]].avals[site[-1]].shape) for site in cut.sites)


def join_names(names: Sequence[str]) -> str:
    """Return several paths as one: ``block/{query,key}/kernel``."""
    names = tuple(dict.fromkeys(names))
    if len(names) < 2:
        return names[0] if names else ""
    paths = [name.split("/") for name in names]
    shortest = min(map(len, paths))
    start = next((i for i in range(shortest) if len({path[i] for path in paths}) > 1), shortest)
    rest = shortest - start
    end = next((i for i in range(rest) if len({path[-1 - i] for path in paths}) > 1), rest)
    middles = ["/".join(path[start : len(path) - end]) for path in paths]
    shown = [*middles[:3], "…", middles[-1]] if len(middles) > 5 else middles
    return "/".join([*paths[0][:start], "{" + ",".join(shown) + "}", *(paths[0][len(paths[0]) - end :] if end else [])])


def _notes(program: Program, layers: Sequence[Layer]) -> tuple[str, ...]:
    """Say which parts were kept whole."""
    notes = [
        f"{layer.name}: the {layer.operation} at {layer.source} is kept whole; what happens inside is not told apart."
        for layer in layers
        if layer.opaque
    ]
    return tuple(notes)
