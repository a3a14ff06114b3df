"""Models as users write them, each with what jaxgrad must read from it.

`MODELS` names the builders. flax and equinox are imported inside the builders, so the plain ones work without them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.networks import Trunk


class Model(NamedTuple):
    """A loss, its parameters and arguments, and what must be read from them.

    Attributes:
        layers: The names of its layers; None where the names are free.
        blocks: The layers of each block in order, embeddings left out; None where the cuts are free.
        trunks: The oracle, one a network input or recurrence.
        mixes: Examples see each other, so that the batch is one state.
        num_steps: The length of a recurrence.
        exact: Runs in float64 with its arrays cast, so that the oracle holds to 1e-10.
    """

    loss_fn: Callable[..., Any]
    params: Any
    args: tuple[Any, ...]
    layers: frozenset[str] | None = None
    blocks: tuple[frozenset[str], ...] | None = None
    trunks: tuple[Trunk, ...] = ()
    mixes: bool = False
    has_aux: bool = False
    num_steps: int | None = None
    exact: bool = True


MODELS: dict[str, Callable[[], Model]] = {}


def _model(builder: Callable[[], Model]) -> Callable[[], Model]:
    MODELS[builder.__name__] = builder
    return builder


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.result_type(float))


def integers(seed: int, high: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, high, shape))


def squared(out: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((out - y) ** 2)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1))


def named(*blocks: str | Sequence[str], prefix: str = "", suffix: str = "/kernel") -> dict[str, Any]:
    """`layers=` and `blocks=` from short names, a sequence where several layers share a block."""
    groups = [(block,) if isinstance(block, str) else tuple(block) for block in blocks]
    sets = tuple(frozenset(f"{prefix}{name}{suffix}" for name in group) for group in groups)
    return {"layers": frozenset().union(*sets), "blocks": sets}


def whole(apply: Callable[..., Any], readout: Callable[..., Any] = squared) -> tuple[Trunk]:
    """The trunk of `readout(apply(params, x), y)`."""
    return (
        Trunk(
            "depth",
            lambda params, x, *rest: x,
            lambda params, state, *args: apply(params, state),
            lambda params, out, x, y, *rest: readout(out, y),
        ),
    )


# flax.linen ----------------------------------------------------------------------------------------------------------


def _linen(module: Any, x: jax.Array, y: jax.Array, readout: Callable[..., Any] = squared, **more: Any) -> Model:
    params = module.init(jax.random.key(0), x)
    more.setdefault("trunks", whole(module.apply, readout))
    return Model(lambda params, x, y: readout(module.apply(params, x), y), params, (x, y), **more)


@_model
def linen_mlp() -> Model:
    import flax.linen as nn

    class MLP(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for _ in range(3):
                x = nn.gelu(nn.Dense(5)(x))
            return nn.Dense(2)(x)

    blocks = named("Dense_0", "Dense_1", "Dense_2", "Dense_3", prefix="params/")
    return _linen(MLP(), normal(0, 3, 4), normal(1, 3, 2), **blocks)


@_model
def linen_cnn() -> Model:
    import flax.linen as nn

    class CNN(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.relu(nn.Conv(3, (3, 3))(x))
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
            x = nn.relu(nn.Conv(3, (3, 3), strides=2)(x))
            x = nn.Dense(5)(x.reshape(len(x), -1))
            return nn.Dense(3)(nn.relu(x))

    blocks = named("Conv_0", "Conv_1", "Dense_0", "Dense_1", prefix="params/")
    return _linen(CNN(), normal(0, 2, 6, 6, 1), integers(1, 3, 2), cross_entropy, **blocks)


def _resnet(train: bool) -> Model:
    import flax.linen as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            norm = functools.partial(nn.BatchNorm, use_running_average=not train)
            h = nn.relu(norm()(nn.Conv(3, (3, 3), use_bias=False)(x)))
            return nn.relu(x + norm()(nn.Conv(3, (3, 3), use_bias=False)(h)))

    class ResNet(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            x = nn.Conv(3, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            for _ in range(2):
                x = Block()(x, train)
            return nn.Dense(3)(x.mean(axis=(1, 2)))

    module = ResNet()
    x, y = normal(0, 3, 4, 4, 2), integers(1, 3, 3)
    variables = module.init(jax.random.key(0), x, train=True)

    def apply(params: Any, statistics: Any, x: jax.Array) -> Any:
        both = {"params": params, "batch_stats": statistics}
        if train:
            return module.apply(both, x, train=True, mutable=["batch_stats"])
        return module.apply(both, x, train=False), {}

    def loss_fn(params: Any, statistics: Any, x: jax.Array, y: jax.Array) -> Any:
        logits, updates = apply(params, statistics, x)
        return cross_entropy(logits, y), updates

    trunk = Trunk(
        "depth",
        lambda params, statistics, x, y: x,
        lambda params, state, statistics, x, y: apply(params, statistics, state)[0],
        lambda params, out, statistics, x, y: cross_entropy(out, y),
    )
    blocks = named("Conv_0", ("Block_0/Conv_0", "Block_0/Conv_1"), ("Block_1/Conv_0", "Block_1/Conv_1"), "Dense_0")
    args = (variables["batch_stats"], x, y)
    return Model(loss_fn, variables["params"], args, trunks=(trunk,), mixes=train, has_aux=True, **blocks)


@_model
def linen_resnet_train() -> Model:
    return _resnet(True)


@_model
def linen_resnet_eval() -> Model:
    return _resnet(False)


def _transformer(pre: bool) -> Model:
    import flax.linen as nn

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            attend = nn.MultiHeadDotProductAttention(num_heads=2)
            causal = nn.make_causal_mask(jnp.ones(x.shape[:2]))
            if pre:
                x = x + attend(nn.LayerNorm()(x), mask=causal)
                return x + nn.Dense(4)(nn.gelu(nn.Dense(6)(nn.LayerNorm()(x))))
            x = nn.LayerNorm()(x + attend(x, mask=causal))
            return nn.LayerNorm()(x + nn.Dense(4)(nn.gelu(nn.Dense(6)(x))))

    class Transformer(nn.Module):
        def setup(self) -> None:
            self.token = nn.Embed(7, 4)
            self.position = self.param("position", nn.initializers.normal(0.5), (3, 4))
            self.layers = [Layer() for _ in range(2)]
            self.norm = nn.LayerNorm()
            self.head = nn.Dense(7)

        def embed(self, tokens: jax.Array) -> jax.Array:
            return self.token(tokens)

        def decode(self, x: jax.Array) -> jax.Array:
            x = x + self.position
            for layer in self.layers:
                x = layer(x)
            return self.head(self.norm(x) if pre else x)

        def __call__(self, tokens: jax.Array) -> jax.Array:
            return self.decode(self.embed(tokens))

    module = Transformer()
    trunk = Trunk(
        "depth",
        lambda params, x, y: module.apply(params, x, method="embed"),
        lambda params, state, x, y: module.apply(params, state, method="decode"),
        lambda params, out, x, y: cross_entropy(out, y),
    )
    inner = "query", "key", "value", "out"
    groups: list[Any] = []
    for index in range(2):
        groups.append([f"layers_{index}/MultiHeadDotProductAttention_0/{name}" for name in inner])
        groups.append([f"layers_{index}/Dense_0", f"layers_{index}/Dense_1"])
    blocks = named(*groups, "head", prefix="params/")
    blocks["layers"] |= {"params/token/embedding"}
    return _linen(module, integers(0, 7, 2, 3), integers(1, 7, 2, 3), cross_entropy, trunks=(trunk,), **blocks)


@_model
def linen_transformer_pre() -> Model:
    return _transformer(True)


@_model
def linen_transformer_post() -> Model:
    return _transformer(False)


def _recurrent(cell_name: str) -> Model:
    import flax.linen as nn

    class Recurrent(nn.Module):
        def setup(self) -> None:
            self.rnn = nn.RNN(getattr(nn, cell_name)(3, param_dtype=jnp.result_type(float)))
            self.head = nn.Dense(2)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.head(self.rnn(x)[:, -1])

        def carry(self, x: jax.Array) -> Any:
            return self.rnn.cell.initialize_carry(jax.random.key(0), x[:, 0].shape)

        def last(self, carry: Any, x: jax.Array) -> Any:
            return self.rnn(x, initial_carry=carry, return_carry=True)[0]

    module = Recurrent()
    trunk = Trunk(
        "time",
        lambda params, x, y: module.apply(params, x, method="carry"),
        lambda params, carry, x, y: module.apply(params, carry, x, method="last"),
    )
    return _linen(module, normal(0, 2, 4, 3), normal(1, 2, 2), trunks=(trunk,), num_steps=4)


@_model
def linen_optimized_lstm() -> Model:
    return _recurrent("OptimizedLSTMCell")


@_model
def linen_lstm() -> Model:
    return _recurrent("LSTMCell")


@_model
def linen_gru() -> Model:
    return _recurrent("GRUCell")


@_model
def linen_u_net() -> Model:
    import flax.linen as nn

    class UNet(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.silu(nn.Conv(2, (3, 3))(x))
            h = nn.silu(nn.Conv(3, (2, 2), strides=2)(x))
            h = nn.silu(nn.Conv(3, (3, 3))(h))
            h = nn.ConvTranspose(2, (2, 2), strides=(2, 2))(h)
            x = nn.silu(nn.Conv(2, (3, 3))(jnp.concatenate([x, h], axis=-1)))
            return nn.Conv(1, (1, 1))(x)

    around = ("Conv_1", "Conv_2", "ConvTranspose_0")
    model = _linen(UNet(), normal(0, 2, 4, 4, 1), normal(1, 2, 4, 4, 1))
    return model._replace(**named("Conv_0", around, "Conv_3", "Conv_4", prefix="params/"))


@_model
def linen_scanned() -> Model:
    import flax.linen as nn

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return x + nn.tanh(nn.Dense(4)(x)), None

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.Dense(4)(x)
            layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
            return nn.Dense(2)(layers(name="layers")(x, None)[0])

    model = _linen(Scanned(), normal(0, 2, 3), normal(1, 2, 2))
    stacked = [f"params/layers/Dense_0/kernel[{i}]" for i in range(3)]
    return model._replace(**named("params/Dense_0/kernel", *stacked, "params/Dense_1/kernel", suffix=""))


@_model
def linen_tied_embedding() -> Model:
    import flax.linen as nn

    class Tied(nn.Module):
        def setup(self) -> None:
            self.token = nn.Embed(6, 4)
            self.dense = nn.Dense(4)

        def embed(self, tokens: jax.Array) -> jax.Array:
            return self.token(tokens)

        def decode(self, x: jax.Array) -> jax.Array:
            return self.token.attend(nn.tanh(self.dense(x)))

        def __call__(self, tokens: jax.Array) -> jax.Array:
            return self.decode(self.embed(tokens))

    module = Tied()
    trunk = Trunk(
        "depth",
        lambda params, x, y: module.apply(params, x, method="embed"),
        lambda params, state, x, y: module.apply(params, state, method="decode"),
        lambda params, out, x, y: cross_entropy(out, y),
    )
    layers = frozenset({"params/token/embedding", "params/dense/kernel"})
    x = integers(0, 6, 2, 3)
    return _linen(module, x, integers(1, 6, 2, 3), cross_entropy, trunks=(trunk,), layers=layers)


# The same network, with the same weights, written in six ways --------------------------------------------------------


def same_weights() -> list[tuple[jax.Array, jax.Array]]:
    sizes = (4, 5, 5, 5, 2)
    shapes = itertools.pairwise(sizes)
    return [(normal(i, a, b) / np.sqrt(a), 0.1 * normal(10 + i, b)) for i, (a, b) in enumerate(shapes)]


def _same(apply: Callable[..., Any], params: Any, prefix: str, suffix: str) -> Model:
    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return squared(apply(params, x), y)

    blocks = named("0", "1", "2", "3", prefix=prefix, suffix=suffix)
    return Model(loss_fn, params, (normal(20, 3, 4), normal(21, 3, 2)), trunks=whole(apply), **blocks)


@_model
def same_plain() -> Model:
    def apply(params: Any, x: jax.Array) -> jax.Array:
        *hidden, last = params["layers"]
        for layer in hidden:
            x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
        return x @ last["kernel"] + last["bias"]

    params = {"layers": [{"kernel": kernel, "bias": bias} for kernel, bias in same_weights()]}
    return _same(apply, params, "layers/", "/kernel")


@_model
def same_linen() -> Model:
    import flax.linen as nn

    class MLP(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for _ in range(3):
                x = nn.tanh(nn.Dense(5)(x))
            return nn.Dense(2)(x)

    params = {f"Dense_{i}": {"kernel": kernel, "bias": bias} for i, (kernel, bias) in enumerate(same_weights())}
    return _same(MLP().apply, {"params": params}, "params/Dense_", "/kernel")


def _nnx_module() -> Any:
    from flax import nnx

    class MLP(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            sizes = (4, 5, 5, 5, 2)
            shapes = itertools.pairwise(sizes)
            self.layers = nnx.List([nnx.Linear(a, b, param_dtype=jnp.result_type(float), rngs=rngs) for a, b in shapes])

        def __call__(self, x: jax.Array) -> jax.Array:
            *hidden, last = self.layers
            for layer in hidden:
                x = nnx.tanh(layer(x))
            return last(x)

    module = MLP(nnx.Rngs(0))
    for layer, (kernel, bias) in zip(module.layers, same_weights(), strict=True):
        layer.kernel[...], layer.bias[...] = kernel, bias
    return module


@_model
def same_nnx_module() -> Model:
    return _same(lambda module, x: module(x), _nnx_module(), "layers/", "/kernel")


@_model
def same_nnx_state() -> Model:
    from flax import nnx

    graph, state = nnx.split(_nnx_module())
    return _same(lambda state, x: nnx.merge(graph, state)(x), state, "layers/", "/kernel")


def _equinox_module() -> Any:
    import equinox as eqx

    module = eqx.nn.MLP(4, 2, 5, 3, activation=jnp.tanh, key=jax.random.key(0))
    where = [lambda m, i=i: (m.layers[i].weight, m.layers[i].bias) for i in range(4)]
    for at, (kernel, bias) in zip(where, same_weights(), strict=True):
        module = eqx.tree_at(at, module, (kernel.T, bias))
    return module


@_model
def same_equinox_module() -> Model:
    return _same(lambda module, x: jax.vmap(module)(x), _equinox_module(), "layers/", "/weight")


@_model
def same_equinox_partition() -> Model:
    import equinox as eqx

    params, static = eqx.partition(_equinox_module(), eqx.is_array)
    return _same(lambda params, x: jax.vmap(eqx.combine(params, static))(x), params, "layers/", "/weight")


SAME = tuple(name for name in MODELS if name.startswith("same_"))


@_model
def equinox_transformer() -> Model:
    import equinox as eqx

    class Block(eqx.Module):
        attention: eqx.nn.MultiheadAttention
        norm: eqx.nn.LayerNorm
        mlp: eqx.nn.MLP

        def __init__(self, key: jax.Array):
            one, two = jax.random.split(key)
            self.attention = eqx.nn.MultiheadAttention(2, 4, key=one)
            self.norm = eqx.nn.LayerNorm(4)
            self.mlp = eqx.nn.MLP(4, 4, 6, 1, activation=jax.nn.gelu, key=two)

        def __call__(self, x: jax.Array) -> jax.Array:
            h = jax.vmap(self.norm)(x)
            x = x + self.attention(h, h, h)
            return x + jax.vmap(self.mlp)(x)

    module = [Block(key) for key in jax.random.split(jax.random.key(0), 2)]
    params, static = eqx.partition(module, eqx.is_array)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        for block in eqx.combine(params, static):
            x = jax.vmap(block)(x)
        return x

    groups: list[Any] = []
    for i in range(2):
        groups.append([f"{i}/attention/{name}_proj" for name in ("query", "key", "value", "output")])
        groups.append([f"{i}/mlp/layers/0", f"{i}/mlp/layers/1"])
    args = (normal(0, 2, 3, 4), normal(1, 2, 3, 4))
    loss_fn = lambda params, x, y: squared(apply(params, x), y)  # noqa: E731
    # The second half of a block is x + mlp(x) with no norm, so its cuts are the residual stream too.
    return Model(loss_fn, params, args, trunks=whole(apply), **named(*groups, suffix="/weight"))


# Plain JAX -----------------------------------------------------------------------------------------------------------


def _layers(*sizes: int, seed: int = 0) -> list[dict[str, jax.Array]]:
    shapes = enumerate(itertools.pairwise(sizes))
    return [{"w": normal(seed + i, a, b) / np.sqrt(a), "b": 0.1 * normal(seed + 50 + i, b)} for i, (a, b) in shapes]


def _apply(layers: Any, x: jax.Array) -> jax.Array:
    *hidden, last = layers
    for layer in hidden:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def _mlp(params: Any, x: jax.Array) -> jax.Array:
    return _apply(params["layers"], x)


def _plain_params(*sizes: int) -> Any:
    return {"layers": _layers(*(sizes or (4, 5, 5, 2)))}


_PLAIN = named("0", "1", "2", prefix="layers/", suffix="/w")


@_model
def autoencoder() -> Model:
    """The target is the input, so the input stays alive to the loss."""
    trunk = Trunk("depth", lambda p, x: x, lambda p, state, x: _mlp(p, state), lambda p, out, x: squared(out, x))
    return Model(
        lambda p, x: squared(_mlp(p, x), x), _plain_params(4, 3, 2, 4), (normal(0, 3, 4),), trunks=(trunk,), **_PLAIN
    )


@_model
def tied_autoencoder() -> Model:
    """Decoder weights are the encoder's, transposed."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x @ params["one"])
        h = jnp.tanh(h @ params["two"])
        return jnp.tanh(h @ params["two"].T) @ params["one"].T

    trunk = Trunk("depth", lambda p, x: x, lambda p, state, x: apply(p, state), lambda p, out, x: squared(out, x))
    params = {"one": normal(1, 4, 3) / 2, "two": normal(2, 3, 2) / 2}
    blocks = tuple(frozenset({name}) for name in ("one", "two", "two", "one"))
    layers = frozenset(params)
    return Model(lambda p, x: squared(apply(p, x), x), params, (normal(0, 3, 4),), layers, blocks, (trunk,))


@_model
def auxiliary() -> Model:
    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> Any:
        hidden = jnp.tanh(x @ params["layers"][0]["w"] + params["layers"][0]["b"])
        out = _apply(params["layers"][1:], hidden)
        probe = hidden @ params["probe"]
        return squared(out, y), {"hidden": hidden, "probe": probe, "count": 3}

    params = {**_plain_params(), "probe": normal(9, 5, 2)}
    return Model(loss_fn, params, (normal(0, 3, 4), normal(1, 3, 2)), trunks=whole(_mlp), has_aux=True, **_PLAIN)


@_model
def dict_batch() -> Model:
    def loss_fn(params: Any, batch: Any) -> jax.Array:
        error = (_mlp(params, batch["inputs"]["x"]) - batch["y"]) ** 2
        return jnp.sum(error * batch["mask"][:, None]) / jnp.sum(batch["mask"])

    batch = {"inputs": {"x": normal(0, 3, 4)}, "y": normal(1, 3, 2), "mask": jnp.array([1.0, 0.0, 1.0])}
    trunk = Trunk("depth", lambda p, b: b["inputs"]["x"], lambda p, state, b: _mlp(p, state))
    return Model(loss_fn, _plain_params(), (batch,), trunks=(trunk,), **_PLAIN)


@_model
def closed_over() -> Model:
    """Data in the closure: `lambda params: ...`."""
    x, y = normal(0, 3, 4), normal(1, 3, 2)
    trunk = Trunk("depth", lambda p: x, lambda p, state: _mlp(p, state), lambda p, out: squared(out, y))
    return Model(lambda params: squared(_mlp(params, x), y), _plain_params(), (), trunks=(trunk,), **_PLAIN)


@_model
def language_model() -> Model:
    """The same tokens are inputs and labels."""

    def decode(params: Any, h: jax.Array) -> jax.Array:
        weights = jnp.tril(jnp.ones((3, 3), h.dtype)) / jnp.arange(1, 4)[:, None].astype(h.dtype)
        h = jnp.einsum("ts,bsd->btd", weights, h) * 2.0
        return _apply(params["layers"], h)

    def loss_fn(params: Any, tokens: jax.Array) -> jax.Array:
        return cross_entropy(decode(params, params["table"][tokens[:, :-1]]), tokens[:, 1:])

    trunk = Trunk(
        "depth",
        lambda p, tokens: p["table"][tokens[:, :-1]],
        lambda p, state, tokens: decode(p, state),
        lambda p, out, tokens: cross_entropy(out, tokens[:, 1:]),
    )
    params = {"layers": _layers(4, 5, 6), "table": normal(5, 6, 4)}
    blocks = named("0", "1", prefix="layers/", suffix="/w")
    blocks["layers"] |= {"table"}
    return Model(loss_fn, params, (integers(0, 6, 2, 4),), trunks=(trunk,), **blocks)


@_model
def jit_static_donated() -> Model:
    """The user's loss is jitted, has a static argument and donates the batch, which it gives back."""

    @functools.partial(jax.jit, static_argnums=3, donate_argnums=1)
    def loss(params: Any, x: jax.Array, y: jax.Array, depth: int) -> Any:
        return squared(_apply(params["layers"][:depth], x), y), x + 1

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> Any:
        return loss(params, x, y, 3)

    params = {"layers": [*_layers(4, 5, 5, 2), *_layers(3, 3, seed=7)]}
    return Model(loss_fn, params, (normal(0, 3, 4), normal(1, 3, 2)), trunks=whole(_mlp_of(3)), has_aux=True, **_PLAIN)


def _mlp_of(depth: int) -> Callable[..., Any]:
    return lambda params, x: _apply(params["layers"][:depth], x)


def _of_dtype(dtype: Any) -> Model:
    cast = functools.partial(jax.tree.map, lambda leaf: leaf.astype(dtype))
    args = cast((normal(0, 3, 4), normal(1, 3, 2)))
    loss_fn = lambda params, x, y: squared(_mlp(params, x), y)  # noqa: E731
    return Model(loss_fn, cast(_plain_params()), args, trunks=whole(_mlp), exact=False, **_PLAIN)


@_model
def float16() -> Model:
    return _of_dtype(jnp.float16)


@_model
def bfloat16() -> Model:
    return _of_dtype(jnp.bfloat16)


@_model
def mixed_precision() -> Model:
    """Parameters in float32, products in bfloat16, the loss in float32."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return _mlp(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params), x.astype(jnp.bfloat16))

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return squared(apply(params, x).astype(jnp.float32), y)

    return Model(loss_fn, _plain_params(), (normal(0, 3, 4), normal(1, 3, 2)), exact=False, **_PLAIN)


@_model
def conditional() -> Model:
    """`lax.cond` between two branches, each with a layer, chosen by the data."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        first, second, third, last = params["layers"]
        h = jnp.tanh(x @ first["w"])
        h = lax.cond(x.sum() > 0, lambda h: jnp.tanh(h @ second["w"]), lambda h: h @ third["w"], h)
        return h @ last["w"]

    params = {"layers": [*_layers(4, 5), *_layers(5, 5, 5, 2, seed=5)]}
    loss_fn = lambda params, x, y: squared(apply(params, x), y)  # noqa: E731
    return Model(loss_fn, params, (normal(0, 3, 4), normal(1, 3, 2)), mixes=True)


@_model
def repeated() -> Model:
    """`lax.fori_loop` applies one layer three times."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        first, again, last = params["layers"]
        h = jnp.tanh(x @ first["w"])
        h = lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ again["w"] + again["b"]), h)
        return h @ last["w"]

    layers = frozenset(f"layers/{i}/w" for i in range(3))
    loss_fn = lambda params, x, y: squared(apply(params, x), y)  # noqa: E731
    return Model(loss_fn, _plain_params(4, 5, 5, 2), (normal(0, 3, 4), normal(1, 3, 2)), layers)


@_model
def spectral_normalization() -> Model:
    """A `while_loop` finds the largest singular value of a weight, which is then divided by it."""

    def normalized(w: jax.Array) -> jax.Array:
        def step(state: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
            count, v = state
            v = w.T @ (w @ v)
            return count + 1, v / jnp.linalg.norm(v)

        start = (0, jnp.ones(w.shape[1], w.dtype))
        v = lax.while_loop(lambda state: state[0] < 5, step, lax.stop_gradient(start))[1]
        return w / jnp.linalg.norm(w @ lax.stop_gradient(v))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        layers = [{**layer, "w": w} for layer, w in zip(params["layers"], weights(params), strict=True)]
        return _apply(layers, x)

    def weights(params: Any) -> list[jax.Array]:
        frozen = jax.tree.map(lax.stop_gradient, params)
        scale = [normalized(layer["w"]) / layer["w"] for layer in frozen["layers"]]
        return [layer["w"] * s for layer, s in zip(params["layers"], scale, strict=True)]

    loss_fn = lambda params, x, y: squared(apply(params, x), y)  # noqa: E731
    return Model(loss_fn, _plain_params(), (normal(0, 3, 4), normal(1, 3, 2)), trunks=whole(apply), **_PLAIN)


@_model
def conditioned() -> Model:
    """A diffusion network: the time, embedded by sines and a layer, is added inside each block."""

    def joined(params: Any, angles: jax.Array, *args: Any) -> list[jax.Array]:
        time = jax.nn.silu(angles @ params["time"])
        return [time @ block["time"] for block in params["blocks"]]

    def apply(params: Any, x: jax.Array, angles: jax.Array) -> jax.Array:
        h = x @ params["in"]
        for block, time in zip(params["blocks"], joined(params, angles), strict=True):
            h = h + jnp.tanh(h @ block["w"] + time)
        return h @ params["out"]

    def angles_of(t: jax.Array) -> jax.Array:
        angles = t[:, None] * jnp.array([1.0, 0.3], t.dtype)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def loss_fn(params: Any, x: jax.Array, t: jax.Array, noise: jax.Array) -> jax.Array:
        return squared(apply(params, x, angles_of(t)), noise)

    trunks = (
        Trunk("depth", lambda p, x, t, n: x, lambda p, state, x, t, n: apply(p, state, angles_of(t))),
        Trunk("depth", lambda p, x, t, n: angles_of(t), joined),
    )
    blocks = [{"w": normal(i, 4, 4) / 2, "time": normal(i + 5, 3, 4) / 2} for i in range(2)]
    params = {"in": normal(10, 3, 4), "out": normal(11, 4, 3), "time": normal(12, 4, 3), "blocks": blocks}
    names = {"in", "out", "time", *(f"blocks/{i}/{name}" for i in range(2) for name in ("w", "time"))}
    args = (normal(0, 2, 3), jnp.array([0.3, 0.8]), normal(1, 2, 3))
    return Model(loss_fn, params, args, frozenset(names), trunks=trunks)


@_model
def two_towers() -> Model:
    def apply(params: Any, a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = jnp.tanh(_apply(params["left"], a)), jnp.tanh(_apply(params["right"], b))
        return _apply(params["head"], jnp.concatenate([a, b], axis=-1))

    def loss_fn(params: Any, a: jax.Array, b: jax.Array, y: jax.Array) -> jax.Array:
        return squared(apply(params, a, b), y)

    trunks = (
        Trunk("depth", lambda p, a, b, y: a, lambda p, state, a, b, y: apply(p, state, b)),
        Trunk("depth", lambda p, a, b, y: b, lambda p, state, a, b, y: jnp.tanh(_apply(p["right"], state))),
    )
    sizes = {"left": (3, 4, 2), "right": (4, 5, 3), "head": (5, 4, 2)}
    params = {name: _layers(*size, seed=i) for i, (name, size) in enumerate(sizes.items())}
    names = frozenset(f"{name}/{i}/w" for name in sizes for i in range(2))
    args = (normal(0, 2, 3), normal(1, 2, 4), normal(2, 2, 2))
    return Model(loss_fn, params, args, names, trunks=trunks)


@_model
def dropout() -> Model:
    """A key among the arguments, which reaches no layer."""

    def apply(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        *hidden, last = params["layers"]
        for layer, own in zip(hidden, jax.random.split(key, len(hidden)), strict=True):
            x = jnp.tanh(x @ layer["w"] + layer["b"])
            x = jnp.where(jax.random.bernoulli(own, 0.8, x.shape), x / 0.8, 0.0)
        return x @ last["w"] + last["b"]

    def loss_fn(params: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        return squared(apply(params, x, key), y)

    trunk = Trunk(
        "depth",
        lambda p, x, y, key: x,
        lambda p, state, x, y, key: apply(p, state, key),
        lambda p, out, x, y, key: squared(out, y),
    )
    args = (normal(0, 3, 4), normal(1, 3, 2), jax.random.key(3))
    return Model(loss_fn, _plain_params(), args, trunks=(trunk,), **_PLAIN)


@_model
def one_example() -> Model:
    """No batch axis: the whole state is one example."""
    args = (normal(0, 4), normal(1, 2))
    loss_fn = lambda params, x, y: squared(_mlp(params, x), y)  # noqa: E731
    return Model(loss_fn, _plain_params(), args, trunks=whole(_mlp), mixes=True, **_PLAIN)


@_model
def vmapped() -> Model:
    """The loss of one example, vmapped in the loss."""

    def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.vmap(lambda x, y: squared(_mlp(params, x), y))(x, y).mean()

    return Model(loss_fn, _plain_params(), (normal(0, 3, 4), normal(1, 3, 2)), trunks=whole(_mlp), **_PLAIN)


@_model
def unrolled_recurrence() -> Model:
    """A Python loop over time: weights are shared and later inputs stay alive."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        h = jnp.zeros((len(x), 4), x.dtype)
        for t in range(x.shape[1]):
            h = jnp.tanh(x[:, t] @ params["input"] + h @ params["recurrent"])
        return h @ params["out"]

    params = {"input": normal(2, 3, 4) / 2, "recurrent": normal(3, 4, 4) / 2, "out": normal(4, 4, 2) / 2}
    loss_fn = lambda params, x, y: squared(apply(params, x), y)  # noqa: E731
    args = (normal(0, 2, 3, 3), normal(1, 2, 2))
    return Model(loss_fn, params, args, frozenset(params), trunks=whole(apply))


def in_float64(model: Model) -> Model:
    """Parameters and arguments cast to float64 (under `enable_x64`); integers and keys stay."""

    def cast(leaf: Any) -> Any:
        floating = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(jnp.float64) if floating else leaf

    return model._replace(params=jax.tree.map(cast, model.params), args=jax.tree.map(cast, model.args))
