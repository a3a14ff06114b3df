"""What theory predicts of twelve networks on real digits, beside what is measured in them.

For each network: the backward signal's gain over all blocks as measured by ``explain`` and as predicted from the
parameters' sizes, both as slopes in log10 a block; how many blocks theory reads, the others being sampled; and the
blocks whose measured gain is further from the predicted one than the band of 95 %.

Run: python benchmarks/predictions.py   (needs flax; two minutes)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxgrad
from jaxgrad.data import digits
from jaxgrad.meanfield import predict

BATCH = 64
BAND = 1.96


class MLP(nn.Module):
    """Dense layers; with ``norm``, LayerNorm before each activation."""

    activation: Callable[[Any], Any]
    depth: int = 16
    width: int = 256
    norm: bool = False
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        for _ in range(self.depth):
            x = nn.Dense(self.width, kernel_init=self.kernel_init, bias_init=self.bias_init)(x)
            x = nn.LayerNorm()(x) if self.norm else x
            x = self.activation(x)
        return nn.Dense(10)(x)


class CNN(nn.Module):
    """Convolutions with zero padding, one of them with a stride."""

    depth: int = 8
    channels: int = 64

    @nn.compact
    def __call__(self, x):
        for layer in range(self.depth):
            init = nn.initializers.he_normal()
            x = nn.relu(nn.Conv(self.channels, (3, 3), strides=1 + (layer == 3), kernel_init=init)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


class ResNet(nn.Module):
    """Pre-activation residual blocks; BatchNorm in training, or GroupNorm."""

    batch_norm: bool
    blocks: int = 6
    channels: int = 32

    @nn.compact
    def __call__(self, x):
        norm = (lambda: nn.BatchNorm(use_running_average=False)) if self.batch_norm else (lambda: nn.GroupNorm(8))
        x = nn.Conv(self.channels, (3, 3))(x)
        for _ in range(self.blocks):
            branch = nn.Conv(self.channels, (3, 3))(nn.relu(norm()(x)))
            x = x + nn.Conv(self.channels, (3, 3))(nn.relu(norm()(branch)))
        return nn.Dense(10)(nn.relu(norm()(x)).mean((1, 2)))


class Transformer(nn.Module):
    """Rows of an image as tokens; LayerNorm before each branch, or after each sum."""

    pre_norm: bool
    blocks: int = 4
    width: int = 128

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width)(x[..., 0])
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:])[None]
        for _ in range(self.blocks):
            layers = nn.Sequential([nn.Dense(4 * self.width), nn.gelu, nn.Dense(self.width)])
            for branch in (nn.SelfAttention(4), layers):
                x = x + branch(nn.LayerNorm()(x)) if self.pre_norm else nn.LayerNorm()(x + branch(x))
        return nn.Dense(10)(x.mean(1))


class Recurrent(nn.Module):
    """Pixels of an image as a sequence of pairs."""

    cell: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.RNN(self.cell)(x.reshape(len(x), 32, 2))[:, -1])


NETWORKS = {
    "MLP, ReLU, LeCun": MLP(nn.relu),
    "MLP, ReLU, He": MLP(nn.relu, kernel_init=nn.initializers.he_normal()),
    "MLP, GELU, LeCun, biases": MLP(nn.gelu, bias_init=nn.initializers.normal(0.3)),
    "MLP, tanh, LayerNorm": MLP(nn.tanh, norm=True),
    "CNN, ReLU, zero padding": CNN(),
    "ResNet, BatchNorm": ResNet(batch_norm=True),
    "ResNet, GroupNorm": ResNet(batch_norm=False),
    "transformer, pre-LN": Transformer(pre_norm=True),
    "transformer, post-LN": Transformer(pre_norm=False),
    "RNN, tanh": Recurrent(nn.SimpleCell(128)),
    "LSTM": Recurrent(nn.LSTMCell(128)),
    "GRU": Recurrent(nn.GRUCell(128)),
}


def make(module: nn.Module) -> tuple[Callable[..., Any], Any, Any, Any]:
    """A loss, its parameters and a batch."""
    images, labels = digits()
    x = jnp.asarray(images[:BATCH], jnp.float32).reshape(BATCH, 8, 8, 1)
    x = (x - x.mean()) / x.std()
    params = module.init(jax.random.key(0), x)

    def loss_fn(params, x, labels):
        logits, _ = module.apply(params, x, mutable=["batch_stats"])
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))

    return loss_fn, params, x, jnp.asarray(labels[:BATCH], jnp.int32)


def main() -> None:
    print(f"{'network':26}{'blocks':>7}{'by theory':>10}{'measured':>10}{'predicted':>10}{'outside':>8}{'seconds':>9}")
    for name, module in NETWORKS.items():
        loss_fn, params, *args = make(module)
        report = jaxgrad.explain(loss_fn, params, *args, level="quick", verbose=False)
        start = time.perf_counter()
        predicted = predict(jaxgrad.trace(loss_fn, params, *args), params, *args)
        seconds = time.perf_counter() - start
        gains = np.array([block.log10_gain for block in report.blocks])
        theory = np.array([block.log10_gain for block in predicted])
        outside = np.abs(gains - theory) > BAND * np.array([block.error for block in predicted])
        read = sum(block.method == "theory" for block in predicted)
        row = f"{len(gains):7}{read:10}{gains.mean():10.4f}{theory.mean():10.4f}{outside.sum():8}{seconds:9.1f}"
        print(f"{name:26}{row}", flush=True)
        for block, gain, far in zip(predicted, gains, outside, strict=True):
            if far:
                expected = f"{block.log10_gain:+.3f} ± {block.error:.3f} ({block.method})"
                print(f"    {block.name[:44]:46}{gain:+.3f}, not {expected}")


if __name__ == "__main__":
    main()
