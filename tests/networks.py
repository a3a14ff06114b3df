"""Random networks drawn from a grammar, each with the oracle of its trunk written in plain JAX.

`from_seed(seed)` draws with numpy; `cases()` is the same grammar as a hypothesis strategy, which shrinks. A part is a
function of parameters and activation; a network is a run of parts between an entry and a loss. Every part begins with
a layer (or keeps its input alive beside it), so the trunk begins at the entry's output without doubt.
"""

from __future__ import annotations

import collections
import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Trunk(NamedTuple):
    """The way from one network input to the output: `readout(params, run(params, start(params, *args), *args), *args)`.

    `run` is what a chain of blocks must multiply up to. A second input's ends where it joins the first one's.
    `readout` leads on to the loss; it is None in a recurrence, whose trunk is its carry.
    """

    kind: str
    start: Callable[..., Any]
    run: Callable[..., Any]
    readout: Callable[..., Any] | None = None


class Case(NamedTuple):
    """One network.

    Attributes:
        words: What was drawn.
        trunks: One a network input, or one a recurrence: then `num_steps` blocks make it.
        layers: The names its layers must have; in a stack with the index last, `stack/kernel[3]`.
        mixes: An example's output depends on other examples.
    """

    words: str
    loss_fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    trunks: tuple[Trunk, ...]
    layers: frozenset[str]
    has_aux: bool = False
    mixes: bool = False
    num_steps: int | None = None

    @property
    def trunk(self) -> Callable[..., Any]:
        return self.trunks[0].run

    @property
    def trunk_input(self) -> Callable[..., Any]:
        return self.trunks[0].start


class Part(NamedTuple):
    """A piece of network. `clean`: it ends in a layer, an elementwise function or a sum, never in a norm or a pool."""

    words: str
    params: Any
    weights: tuple[str, ...]
    apply: Callable[[Any, Any, list[Any]], Any]
    shape: tuple[int, ...]
    mixes: bool = False
    clean: bool = True


class Draw:
    """What the grammar draws with: `pick` one option; `array` fills with normal numbers."""

    def __init__(self, pick: Callable[[Sequence[Any]], Any]):
        self.pick = pick
        self.rng = np.random.default_rng(pick(range(2**16)))

    def maybe(self, one_in: int = 2) -> bool:
        return self.pick(range(one_in)) == one_in - 1

    def array(self, *shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(self.rng.normal(size=shape) * scale, dtype=jnp.result_type(float))

    def weight(self, *shape: int, fan_in: int | None = None) -> jax.Array:
        return self.array(*shape, scale=1.2 / np.sqrt(fan_in or np.prod(shape[:-1])))


class Packed(NamedTuple):
    """A container of parameters: what it is, how to open it, and the path of each entry."""

    params: Any
    open: Callable[[Any], tuple[Any, ...]]
    paths: dict[str, str]


def pack(draw: Draw, **values: Any) -> Packed:
    """Put values in a dict, a list, a tuple or a NamedTuple."""
    names, kind = list(values), draw.pick(("dict", "list", "tuple", "namedtuple"))
    if kind == "dict":
        return Packed(dict(values), lambda p: tuple(p[name] for name in names), {name: name for name in names})
    if kind == "namedtuple":
        Record = collections.namedtuple("Record", names)
        return Packed(Record(**values), tuple, {name: name for name in names})
    container = list(values.values())
    return Packed(container if kind == "list" else tuple(container), tuple, {n: str(i) for i, n in enumerate(names)})


# Elementwise functions -----------------------------------------------------------------------------------------------


@jax.custom_jvp
def _jvp_softsign(x: jax.Array) -> jax.Array:
    return x / (1 + jnp.abs(x))


@_jvp_softsign.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return _jvp_softsign(primals[0]), tangents[0] / (1 + jnp.abs(primals[0])) ** 2


@jax.custom_vjp
def _straight_through(x: jax.Array) -> jax.Array:
    """Rounds to eighths; its gradient is half the identity's, which no rule but its own gives."""
    return jnp.round(8 * x) / 8


_straight_through.defvjp(lambda x: (_straight_through(x), None), lambda _, g: (g / 2,))

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "custom_jvp": _jvp_softsign,
    "custom_vjp": _straight_through,
    "jit": jax.jit(lambda x: jnp.sin(x) + x),
    "where": lambda x: jnp.where(x > 0.05, x, 0.3 * x),
    "linear": lambda x: x,
}


# Parts for activations whose last axis holds the features ------------------------------------------------------------


def dense(draw: Draw, shape: tuple[int, ...], width: int) -> Part:
    values = {"kernel": draw.weight(shape[-1], width)}
    if draw.maybe():
        values["bias"] = draw.array(width, scale=0.3)
    packed = pack(draw, **values)

    def apply(params: Any, h: jax.Array, notes: list[Any]) -> jax.Array:
        kernel, *bias = packed.open(params)
        return h @ kernel + bias[0] if bias else h @ kernel

    return Part(f"dense{width}", packed.params, (packed.paths["kernel"],), apply, (*shape[:-1], width))


def norm(draw: Draw, shape: tuple[int, ...], kind: str) -> Part:
    """Normalise; the first entry of a part never."""
    packed = pack(draw, scale=1 + draw.array(shape[-1], scale=0.1), offset=draw.array(shape[-1], scale=0.1))
    mean, variance = draw.array(shape[-1], scale=0.2), 1 + draw.array(shape[-1], scale=0.1) ** 2

    def apply(params: Any, h: jax.Array, notes: list[Any]) -> jax.Array:
        scale, offset = packed.open(params)
        if kind == "rmsnorm":
            return h * lax.rsqrt(jnp.mean(h**2, axis=-1, keepdims=True) + 0.01) * scale
        if kind == "batchnorm_eval":
            return (h - mean) * lax.rsqrt(variance) * scale + offset
        axes = -1 if kind == "layernorm" else tuple(range(h.ndim - 1))
        centred = h - h.mean(axis=axes, keepdims=True)
        return centred * lax.rsqrt(jnp.mean(centred**2, axis=axes, keepdims=True) + 0.01) * scale + offset

    return Part(kind, packed.params, (), apply, shape, mixes=kind == "batchnorm", clean=False)


def elementwise(draw: Draw, shape: tuple[int, ...]) -> Part:
    name = draw.pick(tuple(ACTIVATIONS))
    constant = draw.array(*shape[-1:]) if draw.maybe(4) else None

    def apply(params: Any, h: jax.Array, notes: list[Any]) -> jax.Array:
        out = ACTIVATIONS[name](h)
        return out if constant is None else out * constant

    return Part(name if constant is None else f"{name}*constant", (), (), apply, shape, clean=constant is None)


def sequence_of(draw: Draw, parts: Sequence[Part], shape: tuple[int, ...], keep: bool = False) -> Part:
    """One part after the other. `keep`: at the top of a network, where words are spread with a space."""
    packed = pack(draw, **{f"part{i}": part.params for i, part in enumerate(parts)})

    def apply(params: Any, h: jax.Array, notes: list[Any]) -> jax.Array:
        for part, own in zip(parts, packed.open(params), strict=True):
            h = part.apply(own, h, notes)
        return h

    weights = tuple(f"{packed.paths[f'part{i}']}/{w}" for i, part in enumerate(parts) for w in part.weights)
    words = (" ; " if keep else ",").join(part.words for part in parts)
    elementwise = [part.words.split("*")[0] in ACTIVATIONS for part in parts]
    last = max((i for i, on in enumerate(elementwise) if not on), default=0)
    clean = all(part.clean for part in parts[last:])
    return Part(words, packed.params, weights, apply, shape, any(p.mixes for p in parts), clean)


def layer(draw: Draw, shape: tuple[int, ...], width: int | None = None) -> Part:
    """dense, perhaps a norm, perhaps an elementwise function."""
    first = dense(draw, shape, width or draw.pick((3, 4, 5)))
    parts = [first]
    if draw.maybe(3):
        parts.append(norm(draw, first.shape, draw.pick(("layernorm", "rmsnorm", "batchnorm_eval", "batchnorm"))))
    parts.append(elementwise(draw, first.shape))
    return sequence_of(draw, parts, first.shape)


def combine(draw: Draw, words: str, how: Callable[..., Any], shape: tuple[int, ...], *branches: Part) -> Part:
    """`how(h, *outputs of the branches)`; the branches all read h."""
    packed = pack(draw, **{f"branch{i}": branch.params for i, branch in enumerate(branches)})

    def apply(params: Any, h: jax.Array, notes: list[Any]) -> jax.Array:
        owned = zip(branches, packed.open(params), strict=True)
        return how(h, *[branch.apply(own, h, notes) for branch, own in owned])

    weights = tuple(f"{packed.paths[f'branch{i}']}/{w}" for i, b in enumerate(branches) for w in b.weights)
    words = f"{words}({' | '.join(branch.words for branch in branches)})"
    return Part(words, packed.params, weights, apply, shape, any(b.mixes for b in branches))


def residual(draw: Draw, shape: tuple[int, ...]) -> Part:
    style = draw.pick(("pre", "post", "project"))
    inner = layer(draw, shape)
    if style == "project":
        short = dense(draw, shape, 3)
        branch = sequence_of(draw, [inner, dense(draw, inner.shape, 3)], short.shape)
        return combine(draw, "project", lambda h, a, b: a + b, short.shape, short, branch)
    parts = [inner, dense(draw, inner.shape, shape[-1])]
    if style == "pre" and draw.maybe():
        parts.insert(0, norm(draw, shape, draw.pick(("layernorm", "rmsnorm"))))
    after = ACTIVATIONS[draw.pick(("tanh", "relu", "gelu"))] if style == "post" else ACTIVATIONS["linear"]
    return combine(draw, style, lambda h, a: after(h + a), shape, sequence_of(draw, parts, shape))


def concat(draw: Draw, shape: tuple[int, ...]) -> Part:
    """A skip that is concatenated: short, as in DenseNet, or over several parts, as in U-Net."""
    parts, size = [], shape
    for _ in range(draw.pick((1, 1, 2, 3))):
        parts.append(layer(draw, size))
        size = parts[-1].shape
    inner = sequence_of(draw, parts, size)
    out = (*shape[:-1], shape[-1] + size[-1])
    joined = combine(draw, "concat", lambda h, a: jnp.concatenate([h, a], axis=-1), out, inner)
    return sequence_of(draw, [joined, layer(draw, out, 3)], (*shape[:-1], 3))


def gated(draw: Draw, shape: tuple[int, ...]) -> Part:
    a, b = dense(draw, shape, 3), dense(draw, shape, 3)
    product = combine(draw, "gated", lambda h, a, b: a * jax.nn.sigmoid(b), a.shape, a, b)
    return product._replace(clean=False)  # the trunk of a network that ends in a product ends at its factors


def shared(draw: Draw, shape: tuple[int, ...]) -> Part:
    """The same dense layer twice."""
    one = dense(draw, shape, shape[-1])
    act = ACTIVATIONS[draw.pick(("tanh", "gelu"))]

    def apply(params: Any, h: jax.Array, notes: list[Any]) -> jax.Array:
        return act(one.apply(params, act(one.apply(params, h, notes)), notes))

    return one._replace(words=f"shared({one.words})", apply=apply)


def dead(draw: Draw, shape: tuple[int, ...]) -> Part:
    """A layer beside a second one that nothing but the notes (the auxiliary output) reads."""
    live, unread = layer(draw, shape), layer(draw, shape)
    packed = pack(draw, live=live.params, unread=unread.params)

    def apply(params: Any, h: jax.Array, notes: list[Any]) -> jax.Array:
        own, other = packed.open(params)
        notes.append(unread.apply(other, h, []))
        return live.apply(own, h, notes)

    weights = tuple(f"{packed.paths['live']}/{w}" for w in live.weights)
    return live._replace(words=f"dead({live.words})", params=packed.params, weights=weights, apply=apply)


def constant(draw: Draw, shape: tuple[int, ...]) -> Part:
    """A layer, then a product with a closed-over matrix, which is no layer."""
    one, matrix = layer(draw, shape, 4), draw.weight(4, 3)

    def apply(params: Any, h: jax.Array, notes: list[Any]) -> jax.Array:
        return one.apply(params, h, notes) @ matrix

    return one._replace(words=f"constant({one.words})", apply=apply, shape=(*shape[:-1], 3), clean=False)


def stack(draw: Draw, shape: tuple[int, ...]) -> Part:
    """`lax.scan` over stacked layers."""
    width, depth = shape[-1], draw.pick((1, 2, 3, 4))
    style, reverse, unroll = draw.pick(("plain", "residual", "checkpoint")), draw.maybe(4), draw.pick((1, 1, 2))
    packed = pack(draw, kernel=draw.weight(depth, width, width, fan_in=width), bias=draw.array(depth, width, scale=0.2))
    act = ACTIVATIONS[draw.pick(("tanh", "gelu", "relu"))]

    def step(h: jax.Array, own: Any) -> tuple[jax.Array, Any]:
        kernel, bias = packed.open(own)
        out = act(h @ kernel + bias)
        return (h + out if style == "residual" else out), out.sum()

    body = jax.checkpoint(step) if style == "checkpoint" else step

    def apply(params: Any, h: jax.Array, notes: list[Any]) -> jax.Array:
        h, sums = lax.scan(body, h, params, reverse=reverse, unroll=min(unroll, depth))
        notes.append(sums)
        return h

    weights = tuple(f"{packed.paths['kernel']}[{i}]" for i in range(depth))
    return Part(f"stack-{style}{depth}{'r' * reverse}", packed.params, weights, apply, shape)


def wrapped(draw: Draw, part: Part) -> Part:
    """The part inside jit, checkpoint, custom_jvp or custom_vjp, with its own true derivative."""
    kind = draw.pick(("jit", "checkpoint", "custom_jvp", "custom_vjp", "jit-checkpoint"))
    if kind == "custom_jvp" and "custom_vjp" in part.words:
        kind = "jit"  # JAX has no forward mode through custom_vjp

    def plain(params: Any, h: jax.Array) -> jax.Array:
        return part.apply(params, h, [])

    if kind == "custom_jvp":
        function = jax.custom_jvp(plain)
        function.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    elif kind == "custom_vjp":
        function = jax.custom_vjp(plain)
        function.defvjp(lambda params, h: jax.vjp(plain, params, h), lambda back, g: back(g))
    else:
        function = jax.checkpoint(plain) if "checkpoint" in kind else plain
        function = jax.jit(function) if "jit" in kind else function
    return part._replace(words=f"{kind}[{part.words}]", apply=lambda params, h, notes: function(params, h))


# Parts for sequences (time, features) and images (height, width, channels) -------------------------------------------


def attention(draw: Draw, shape: tuple[int, ...]) -> Part:
    """Multi-head softmax attention, with its residual before or after a norm, or bare."""
    style, heads, size, width = draw.pick(("pre", "post", "bare")), draw.pick((1, 2)), 2, shape[-1]
    causal = draw.maybe()
    before = norm(draw, shape, "layernorm")
    values = {name: draw.weight(width, heads, size, fan_in=width) for name in ("query", "key", "value")}
    packed = pack(draw, **values, out=draw.weight(heads, size, width, fan_in=heads * size), norm=before.params)

    def apply(params: Any, x: jax.Array, notes: list[Any]) -> jax.Array:
        *kernels, out, own = packed.open(params)
        h = before.apply(own, x, notes) if style == "pre" else x
        q, k, v = (jnp.einsum("btd,dhk->bthk", h, kernel) for kernel in kernels)
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / np.sqrt(size)
        if causal:
            scores = jnp.where(np.tril(np.ones((x.shape[1],) * 2, bool)), scores, -1e9)
        h = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v)
        h = jnp.einsum("bthk,hkd->btd", h, out)
        return {"pre": x + h, "bare": h, "post": before.apply(own, x + h, notes)}[style]

    weights = tuple(packed.paths[name] for name in ("query", "key", "value", "out"))
    words = f"attention-{style}{heads}{'c' * causal}"
    return Part(words, packed.params, weights, apply, shape, clean=style != "post")


def mix_tokens(draw: Draw, shape: tuple[int, ...]) -> Part:
    length = draw.pick((2, 3, 4))
    packed = pack(draw, mixer=draw.weight(shape[0], length, fan_in=shape[0]))

    def apply(params: Any, h: jax.Array, notes: list[Any]) -> jax.Array:
        return jnp.tanh(jnp.einsum("btd,ts->bsd", h, packed.open(params)[0]))

    return Part("mix_tokens", packed.params, (packed.paths["mixer"],), apply, (length, shape[1]))


def conv(draw: Draw, shape: tuple[int, ...], channels: int | None = None, same: bool = False) -> Part:
    """A convolution, perhaps a norm, an elementwise function, perhaps a pool."""
    side, inputs = shape[0], shape[-1]
    channels = channels or draw.pick((2, 3, 4))
    options = [(1, 1, "SAME"), (3, 1, "SAME"), (2, 1, "SAME")]
    if not same and side >= 3:
        options += [(3, 1, "VALID"), (3, 2, "SAME"), (2, 2, "VALID"), (2, 1, ((1, 0), (0, 1)))]
    size, stride, padding = draw.pick(options)
    groups = inputs if channels % inputs == 0 and draw.maybe(3) else 1
    kernel = draw.weight(size, size, inputs // groups, channels)
    packed = pack(draw, kernel=kernel, bias=draw.array(channels, scale=0.2))

    def apply(params: Any, h: jax.Array, notes: list[Any]) -> jax.Array:
        kernel, bias = packed.open(params)
        numbers = ("NHWC", "HWIO", "NHWC")
        return bias + lax.conv_general_dilated(
            h, kernel, (stride,) * 2, padding, dimension_numbers=numbers, feature_group_count=groups
        )

    out = jax.eval_shape(apply, packed.params, jax.ShapeDtypeStruct((1, *shape), kernel.dtype), []).shape[1:]
    words = f"conv{size}s{stride}{padding if isinstance(padding, str) else 'pad'}g{groups}"
    parts = [Part(words, packed.params, (packed.paths["kernel"],), apply, out)]
    if draw.maybe(3):
        parts.append(norm(draw, out, draw.pick(("layernorm", "batchnorm_eval", "batchnorm"))))
    parts.append(elementwise(draw, out))
    if not same and out[0] >= 2 and draw.maybe(3):
        parts.append(pool(draw, out))
        out = parts[-1].shape
    return sequence_of(draw, parts, out)


def pool(draw: Draw, shape: tuple[int, ...]) -> Part:
    kind = draw.pick(("max", "average"))

    def apply(params: Any, h: jax.Array, notes: list[Any]) -> jax.Array:
        initial, reducer = (-np.inf, lax.max) if kind == "max" else (0.0, lax.add)
        out = lax.reduce_window(h, np.asarray(initial, h.dtype), reducer, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return out if kind == "max" else out / 4

    return Part(f"{kind}_pool", (), (), apply, (shape[0] // 2, shape[1] // 2, shape[2]), clean=False)


def residual_conv(draw: Draw, shape: tuple[int, ...]) -> Part:
    inner = conv(draw, shape, same=True)
    branch = sequence_of(draw, [inner, conv(draw, inner.shape, shape[-1], same=True)], shape)
    act = ACTIVATIONS[draw.pick(("relu", "linear"))]
    return combine(draw, "residual_conv", lambda h, a: act(h + a), shape, branch)


def u_net(draw: Draw, shape: tuple[int, ...]) -> Part:
    """Down by a stride, up by repetition, and the skip concatenated."""
    if shape[0] % 2:
        return residual_conv(draw, shape)
    packed = pack(draw, down=draw.weight(2, 2, shape[-1], 3), middle=draw.weight(3, 3, 3, 2))
    numbers = ("NHWC", "HWIO", "NHWC")

    def branch(params: Any, h: jax.Array, notes: list[Any]) -> jax.Array:
        down, middle = packed.open(params)
        h = jnp.tanh(lax.conv_general_dilated(h, down, (2, 2), "VALID", dimension_numbers=numbers))
        h = jax.nn.silu(lax.conv_general_dilated(h, middle, (1, 1), "SAME", dimension_numbers=numbers))
        return jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)

    weights = (packed.paths["down"], packed.paths["middle"])
    inner = Part("down-up", packed.params, weights, branch, (*shape[:2], 2))
    out = (*shape[:2], shape[-1] + 2)
    joined = combine(draw, "u_net", lambda h, a: jnp.concatenate([h, a], axis=-1), out, inner)
    last = conv(draw, out, 2, same=True)
    return sequence_of(draw, [joined, last], last.shape)


FEATURES = (layer, layer, residual, concat, gated, shared, dead, constant, stack)
PARTS = {1: FEATURES, 2: (*FEATURES, attention, attention, mix_tokens), 3: (conv, conv, residual_conv, u_net)}


# Whole networks ------------------------------------------------------------------------------------------------------


def draw_case(pick: Callable[[Sequence[Any]], Any]) -> Case:
    """Draw a network; `pick(options)` chooses."""
    draw = Draw(pick)
    return recurrent(draw) if draw.maybe(8) else feedforward(draw)


def from_seed(seed: int) -> Case:
    """The network of a seed."""
    rng = np.random.default_rng(seed)
    return draw_case(lambda options: options[int(rng.integers(len(options)))])


def cases() -> Any:
    """The grammar as a hypothesis strategy."""
    from hypothesis import strategies

    return strategies.composite(lambda draw: draw_case(lambda options: draw(strategies.sampled_from(options))))()


def feedforward(draw: Draw) -> Case:
    batch, entry = draw.pick((2, 3)), draw.pick(("vector", "sequence", "image", "tokens"))
    shape = {"vector": (3,), "sequence": (3, 4), "image": (4, 4, 2), "tokens": (3, 4)}[entry]
    if entry == "vector":
        shape = (draw.pick((2, 3, 4, 5, 6)),)
    values: dict[str, Any] = {}
    preparation = "raw"
    if entry == "tokens":
        x = jnp.asarray(draw.rng.integers(0, 5, (batch, *shape[:1])))
        values["table"] = draw.array(5, shape[-1])
    elif entry == "image" and draw.maybe():
        preparation, x = "uint8", jnp.asarray(draw.rng.integers(0, 256, (batch, *shape)), jnp.uint8)
    else:
        preparation, x = draw.pick(("raw", "raw", "standardized")), draw.array(batch, *shape)
    position = draw.array(*shape) if entry == "tokens" and draw.maybe() else None

    parts: list[Part] = []
    sides: list[Part] = []
    for _ in range(draw.pick((1, 2, 2, 3, 3, 4, 5, 6))):
        part = draw.pick(PARTS[len(shape)])(draw, shape)
        parts.append(wrapped(draw, part) if draw.maybe(4) else part)
        shape = part.shape
        if len(shape) > 1 and draw.maybe(3):
            kind = draw.pick(("mean", "flatten", "first") if len(shape) == 2 else ("mean", "flatten"))
            shape = (int(np.prod(shape)),) if kind == "flatten" else shape[-1:]
            parts.append(Part(kind, (), (), REDUCTIONS[kind], shape, clean=False))
        if entry == "vector" and not sides and draw.maybe(10):
            name = draw.pick(tuple(JOINS))
            sides.append(dense(draw, (3,), shape[-1]))
            parts.append(Part(name, (), (), JOINS[name], shape))

    loss_kind = draw.pick(("squared", "squared", "cross_entropy"))
    if loss_kind == "cross_entropy" or not parts[-1].clean or draw.maybe():
        if len(shape) > 1 and loss_kind == "cross_entropy":
            shape = (int(np.prod(shape)),)
            parts.append(Part("flatten", (), (), REDUCTIONS["flatten"], shape))
        parts.append(dense(draw, shape, draw.pick((2, 3))))
        shape = parts[-1].shape
        if loss_kind == "squared" and draw.maybe(3):
            name = draw.pick(("tanh", "sigmoid", "softplus"))
            parts.append(Part(f"output:{name}", (), (), lambda p, h, _, f=ACTIVATIONS[name]: f(h), shape))

    body = sequence_of(draw, parts, shape, keep=True)
    values["body"] = body.params
    if sides:
        values["side"] = sides[0].params
    packed = pack(draw, **values)
    order = list(values)
    batch_values = {"x": x}
    if sides:
        batch_values["z"] = draw.array(batch, 3)
    if loss_kind == "squared":
        batch_values["y"] = draw.array(batch, *shape)
    else:
        batch_values["y"] = jnp.asarray(draw.rng.integers(0, shape[-1], (batch,)))
    if draw.maybe(4):
        batch_values["w"] = jnp.abs(draw.array(batch)) + 0.5
    packaging = draw.pick(("positional", "positional", "positional", "dict", "closed over"))
    has_aux, decay, jitted = draw.maybe(4), draw.maybe(4), draw.maybe(4)

    def open_args(args: tuple[Any, ...]) -> dict[str, Any]:
        if packaging == "dict":
            return args[0]
        return batch_values if packaging == "closed over" else dict(zip(batch_values, args, strict=True))

    def own(params: Any, name: str) -> Any:
        return packed.open(params)[order.index(name)]

    def start(params: Any, *args: Any) -> jax.Array:
        x = open_args(args)["x"]
        if entry == "tokens":
            return own(params, "table")[x]
        if preparation == "uint8":
            return x.astype(jnp.result_type(float)) / 255 - 0.5
        return (x - 0.1) / 1.3 if preparation == "standardized" else x

    def forward(params: Any, state: jax.Array, side: Any, notes: list[Any]) -> jax.Array:
        if position is not None:
            state = state + position
        own_parts = body_open(own(params, "body"))
        for part, values in zip(parts, own_parts, strict=True):
            state = part.apply(side if part.words in JOINS else values, state, notes)
        return state

    def side_of(params: Any, z: jax.Array) -> jax.Array:
        return sides[0].apply(own(params, "side"), z, [])

    def side_in(params: Any, args: tuple[Any, ...]) -> Any:
        return side_of(params, open_args(args)["z"]) if sides else None

    body_open = _opener(body.params)

    def readout(params: Any, out: jax.Array, *args: Any) -> jax.Array:
        values = open_args(args)
        if loss_kind == "squared":
            losses = ((out - values["y"]) ** 2).reshape(batch, -1).mean(axis=-1)
        else:
            losses = -jnp.take_along_axis(jax.nn.log_softmax(out), values["y"][:, None], axis=-1)[:, 0]
        loss = jnp.mean(losses * values["w"]) if "w" in values else jnp.mean(losses)
        if decay:
            loss = loss + 1e-3 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return loss

    def loss_fn(params: Any, *args: Any) -> Any:
        notes: list[Any] = []
        out = forward(params, start(params, *args), side_in(params, args), notes)
        loss = readout(params, out, *args)
        return (loss, {"notes": notes, "output": out}) if has_aux else loss

    def run(params: Any, state: jax.Array, *args: Any) -> jax.Array:
        return forward(params, state, side_in(params, args), [])

    def join(params: Any, side: jax.Array, *args: Any) -> jax.Array:
        return readout(params, forward(params, start(params, *args), side, []), *args)

    trunks = [Trunk("depth", start, run, readout)]
    if sides:
        trunks.append(Trunk("depth", lambda p, *args: open_args(args)["z"], lambda p, z, *args: side_of(p, z), join))
    names = [f"{packed.paths['body']}/{weight}" for weight in body.weights]
    names += [packed.paths["table"]] if entry == "tokens" else []
    names += [f"{packed.paths['side']}/{w}" for w in sides[0].weights] if sides else []
    args = {"positional": tuple(batch_values.values()), "dict": (batch_values,), "closed over": ()}[packaging]
    flags = f"{' aux' * has_aux}{' decay' * decay}{' jit' * jitted}{' position' * (position is not None)}"
    words = f"{entry}/{preparation}/{packaging} {batch}x: {body.words} -> {loss_kind}{flags}"
    loss = jax.jit(loss_fn) if jitted else loss_fn
    return Case(words, loss, packed.params, args, tuple(trunks), frozenset(names), has_aux, body.mixes)


def _opener(example: Any) -> Callable[[Any], tuple[Any, ...]]:
    """Entries in the order they were packed: a dict that passed through a transformation comes back sorted."""
    if isinstance(example, dict):
        names = list(example)
        return lambda params: tuple(params[name] for name in names)
    return tuple


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "mean": lambda p, h, _: h.mean(axis=tuple(range(1, h.ndim - 1))),
    "flatten": lambda p, h, _: h.reshape(h.shape[0], -1),
    "first": lambda p, h, _: h[:, 0],
}
JOINS: dict[str, Callable[..., Any]] = {"add": lambda side, h, _: h + side, "film": lambda side, h, _: h * (1 + side)}


def recurrent(draw: Draw) -> Case:
    """`lax.scan` over time, one or two on top of each other, read at the last step or at every one."""
    batch, time, inputs = draw.pick((2, 3)), draw.pick((2, 3, 4, 5)), 3
    kinds = [draw.pick(("simple", "gru", "lstm")) for _ in range(draw.pick((1, 1, 2)))]
    width, learned, every, reverse = draw.pick((2, 3)), draw.maybe(3), draw.maybe(), draw.maybe(4)
    wrap = draw.pick((lambda f: f, lambda f: f, jax.checkpoint, jax.jit))
    encoder = layer(draw, (time, inputs), 3) if draw.maybe() else None
    if encoder is not None and encoder.mixes:
        encoder = None
    head = dense(draw, (width,), 2)
    values: dict[str, Any] = {"head": head.params}
    if encoder is not None:
        values["encoder"] = encoder.params
    cells: list[Packed] = []
    for index, kind in enumerate(kinds):
        gates = {"simple": 1, "gru": 3, "lstm": 4}[kind]
        size = 3 if index == 0 else width
        cells.append(
            pack(
                draw,
                input=draw.weight(size, gates * width),
                recurrent=draw.weight(width, gates * width),
                bias=draw.array(gates * width, scale=0.2),
                **({"initial": draw.array(width)} if learned else {}),
            )
        )
        values[f"cell{index}"] = cells[-1].params
    packed = pack(draw, **values)
    order = list(values)
    x, y = draw.array(batch, time, inputs), draw.array(*((batch, time, 2) if every else (batch, 2)))

    def step_of(index: int) -> Callable[..., Any]:
        kind, cell = kinds[index], cells[index]

        def step(params: Any, carry: Any, x: jax.Array) -> Any:
            kernel, recurrent, bias, *_ = cell.open(params)
            h = carry[1] if kind == "lstm" else carry
            a, b = x @ kernel + bias, h @ recurrent
            if kind == "simple":
                return jnp.tanh(a + b)
            if kind == "gru":
                (ra, za, na), (rb, zb, nb) = jnp.split(a, 3, axis=-1), jnp.split(b, 3, axis=-1)
                r, z = jax.nn.sigmoid(ra + rb), jax.nn.sigmoid(za + zb)
                return (1 - z) * jnp.tanh(na + r * nb) + z * h
            i, f, g, o = jnp.split(a + b, 4, axis=-1)
            c = jax.nn.sigmoid(f + 1) * carry[0] + jax.nn.sigmoid(i) * jnp.tanh(g)
            return c, jax.nn.sigmoid(o) * jnp.tanh(c)

        return wrap(step)

    steps = [step_of(index) for index in range(len(kinds))]

    def own(params: Any, name: str) -> Any:
        return packed.open(params)[order.index(name)]

    def start(params: Any, index: int) -> Any:
        zeros = jnp.zeros((batch, width))
        h = zeros + cells[index].open(own(params, f"cell{index}"))[3] if learned else zeros
        return (zeros, h) if kinds[index] == "lstm" else h

    def run(params: Any, index: int, carry: Any, xs: jax.Array) -> tuple[Any, jax.Array]:
        parameters = own(params, f"cell{index}")

        def body(carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
            carry = steps[index](parameters, carry, x)
            return carry, carry[1] if kinds[index] == "lstm" else carry

        return lax.scan(body, carry, xs, reverse=reverse)

    def inputs_of(params: Any, index: int, x: jax.Array) -> jax.Array:
        h = x if encoder is None else encoder.apply(own(params, "encoder"), x, [])
        h = jnp.swapaxes(h, 0, 1)
        for below in range(index):
            h = run(params, below, start(params, below), h)[1]
        return h

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        last = len(kinds) - 1
        carry, hs = run(params, last, start(params, last), inputs_of(params, last, x))
        h = carry[1] if kinds[last] == "lstm" else carry
        out = head.apply(own(params, "head"), jnp.swapaxes(hs, 0, 1) if every else h, [])
        return jnp.mean((out - y) ** 2)

    def trunk_of(index: int) -> Trunk:
        return Trunk(
            "time",
            lambda params, x, y: start(params, index),
            lambda params, carry, x, y: run(params, index, carry, inputs_of(params, index, x))[0],
        )

    names = [f"{packed.paths['head']}/{weight}" for weight in head.weights]
    names += [f"{packed.paths['encoder']}/{w}" for w in encoder.weights] if encoder is not None else []
    for index, cell in enumerate(cells):
        prefix = packed.paths[f"cell{index}"]
        names += [f"{prefix}/{cell.paths['input']}", f"{prefix}/{cell.paths['recurrent']}"]
    flags = f"{'every' if every else 'last'} {'learned ' * learned}{'reverse' * reverse}"
    words = f"recurrent {batch}x{time}: {encoder.words if encoder else ''} ; {' ; '.join(kinds)} {flags}"
    trunks = tuple(trunk_of(index) for index in range(len(kinds)))
    return Case(words, loss_fn, packed.params, (x, y), trunks, frozenset(names), num_steps=time)


# The oracle ----------------------------------------------------------------------------------------------------------


# For what is compared within a tolerance: compiling is what these tests wait for.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def reference_jacobian(trunk: Trunk, params: Any, args: tuple[Any, ...], mixes: bool) -> np.ndarray:
    """The Jacobian of the trunk by `jax.jacrev`, (num_examples, out_size, in_size); one example where they mix."""
    state = trunk.start(params, *args)

    def split(tree: Any) -> jax.Array:
        leaves = jax.tree.leaves(tree)
        if mixes:
            return jnp.concatenate([leaf.reshape(1, -1) for leaf in leaves], axis=1)
        return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in leaves], axis=1)

    def unsplit(flat: jax.Array) -> Any:
        leaves, structure = jax.tree.flatten(state)
        ends = list(itertools.accumulate(leaf.size // flat.shape[0] for leaf in leaves))
        pieces = jnp.split(flat, ends[:-1], axis=1)
        return jax.tree.unflatten(structure, [p.reshape(leaf.shape) for p, leaf in zip(pieces, leaves, strict=True)])

    function = quick_jit(jax.jacrev(lambda flat: split(trunk.run(params, unsplit(flat), *args))))
    full = np.asarray(function(split(state)))
    examples = full.shape[0]
    for one, other in itertools.permutations(range(examples), 2):
        assert not full[one, :, other].any(), "examples mix in a network that says they do not"
    return np.stack([full[i, :, i] for i in range(examples)])


def canonical(name: str) -> str:
    """The index of a stacked layer moved to the end, whichever part of the path carries it."""
    indices = re.findall(r"\[\d+\]", name)
    return re.sub(r"\[\d+\]", "", name) + "".join(indices)


def check_names(network: Any, expected: frozenset[str]) -> None:
    """Every layer by its name; those inside a call that is kept whole (custom_jvp, custom_vjp) by its parameters."""
    plain = {canonical(layer.name) for layer in network.layers if not layer.opaque}
    kept = {canonical(path) for layer in network.layers if layer.opaque for path in layer.parameters}
    assert plain <= expected
    missing = {name for name in expected - plain if name not in kept and re.sub(r"\[\d+\]", "", name) not in kept}
    assert not missing


def chain_products(blocks: Sequence[Any], jacobians: Sequence[Any]) -> list[tuple[str, int, np.ndarray]]:
    """Kind, number of blocks and product of the Jacobians: of each chain, and of the steps in time of each chain."""
    products = []
    for _, group in itertools.groupby(zip(blocks, jacobians, strict=True), key=lambda pair: pair[0].chain):
        pairs = list(group)
        for kind in ("depth", "time"):
            chosen = [jacobian for block, jacobian in pairs if kind in ("depth", block.kind)]
            if chosen:
                matrices = [np.asarray(jacobian, np.float64) for jacobian in chosen]
                products.append((kind, len(chosen), functools.reduce(lambda later, after: after @ later, matrices)))
    return products


def error_of(product: np.ndarray, expected: np.ndarray) -> float:
    """Largest deviation, relative to the scale of what was expected; infinite where the shapes differ."""
    if not expected.any() and not product.any():
        return 0.0  # dead units hide whether examples mix, and so the shape
    if product.shape != expected.shape:
        return np.inf
    return float(np.abs(product - expected).max() / max(np.abs(expected).max(), 1e-30))


def check_chains(network: Any, jacobians: Sequence[Any], case: Any, tolerance: float = 1e-10) -> None:
    """Every trunk must be the product of one chain; chains of a recurrence have one block a step."""
    found = chain_products(network.blocks, jacobians)
    for index, trunk in enumerate(case.trunks):
        expected = reference_jacobian(trunk, case.params, case.args, case.mixes)
        chains = [chain for chain in found if chain[0] == trunk.kind]
        errors = [error_of(product, expected) for _, _, product in chains]
        shapes = [(kind, count, product.shape) for kind, count, product in found]
        assert min(errors, default=np.inf) <= tolerance, (
            f"no chain multiplies up to {trunk.kind} trunk {index} of shape {expected.shape}: errors {errors}, "
            f"chains {shapes}, blocks {[(b.chain, b.name) for b in network.blocks]}"
        )
        if trunk.kind == "time":
            assert chains[int(np.argmin(errors))][1] == case.num_steps
