"""Learning rates, targets and inputs that are out of scale, and the clipping that hides them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from assorted import imagenet_statistics, over_largest, residual_images
from conv import conv
from dense import clipped
from feedforward import feedforward
from jax.nn import initializers
from networks import GLOROT
from pictures import patchwise
from programs import faulty
from readers import reader
from samples import logistic, mean_squared, moved
from sequence import recurrent, transformer
from stacks import stack
from tasks import as_is, rescaled, standardized

SMALL_HE = initializers.variance_scaling(0.2, "fan_in", "normal")


def noam(width: int, warm_up: int) -> optax.Schedule:
    """Warm up and decay with the root of the step, as for the first transformer."""
    return lambda step: width**-0.5 * jnp.minimum((step + 1) ** -0.5, (step + 1) * warm_up**-1.5)


PROGRAMS = (
    faulty(
        "noam-without-width-and-warm-up",
        "the schedule of the first transformer without its factor and its warm-up starts at a learning rate of 1",
        {"learning-rate"},
        patchwise,
        {"optimizer": optax.adam(noam(300, 100))},
        architecture="transformer",
        framework="equinox",
        data="digits",
        layers=1,
        steps=150,
        optimizer=optax.adam(noam(1, 1)),
    ),
    faulty(
        "lstm-rate-too-high-bf16",
        "a learning rate of 0.3 with Adam",
        {"learning-rate"},
        reader,
        {"optimizer": optax.adam(5e-3)},
        architecture="lstm",
        framework="nnx",
        dtype="bfloat16",
        data="digits",
        cell="lstm",
        problem={"steps": 8},
        optimizer=optax.adam(0.3),
    ),
    faulty(
        "decay-at-every-step",
        "the learning rate decays by a fifth at every step, where at every epoch was meant",
        {"learning-rate"},
        feedforward,
        {"optimizer": optax.sgd(optax.exponential_decay(0.05, 28, 0.8), momentum=0.9)},
        framework="linen",
        data="digits",
        hidden=(64, 32),
        activation=jnp.tanh,
        kernel=GLOROT,
        norm="batch",
        optimizer=optax.sgd(optax.exponential_decay(0.05, 1, 0.8), momentum=0.9),
    ),
    faulty(
        "fine-tuning-rate-from-scratch-bf16",
        "a learning rate of 2e-5, as for fine-tuning, for a transformer that is new",
        {"learning-rate"},
        transformer,
        {"optimizer": optax.adamw(3e-3)},
        architecture="transformer",
        framework="nnx",
        dtype="bfloat16",
        data="synthetic/majority",
        task={"batch": 32},
        optimizer=optax.adamw(2e-5),
    ),
    faulty(
        "proline-as-it-comes",
        "targets of mean 747 and standard deviation 314, as they come",
        {"target-scale"},
        feedforward,
        {"targets": standardized},
        framework="jax",
        data="proline",
        hidden=(40, 40),
        activation=jax.nn.silu,
        targets=as_is,
        loss=mean_squared,
        optimizer=optax.adam(2e-3),
    ),
    faulty(
        "concentrations-in-moles",
        "targets of mean 2e-6 and standard deviation 1e-6",
        {"target-scale"},
        stack,
        {"targets": standardized},
        architecture="residual",
        framework="equinox",
        data="friedman",
        depth=4,
        scale=0.5,
        targets=moved(2e-6, 1e-6),
        loss=mean_squared,
        optimizer=optax.adam(1e-3),
    ),
    faulty(
        "imagenet-statistics-of-bytes",
        "pixels from 0 to 255 are standardized by the mean and deviation of pixels from 0 to 1",
        {"input-scale"},
        conv,
        {"inputs": rescaled},
        architecture="conv",
        framework="nnx",
        data="digits",
        depth=3,
        inputs=imagenet_statistics,
        steps=150,
        optimizer=optax.sgd(0.05, momentum=0.9),
    ),
    faulty(
        "divided-by-the-largest-of-all",
        "features of different units are all divided by the largest value in the table, which leaves most near 0",
        {"input-scale"},
        feedforward,
        {"inputs": standardized},
        framework="equinox",
        data="breast_cancer",
        hidden=(32, 32),
        activation=jax.nn.relu,
        inputs=over_largest,
        loss=logistic,
        optimizer=optax.sgd(0.05, momentum=0.9),
    ),
    faulty(
        "sixteen-bit-audio",
        "a wave in integers of sixteen bits saturates the gates",
        {"input-scale", "saturating-activation"},
        recurrent,
        {"task": {"steps": 24}},
        architecture="lstm",
        framework="linen",
        data="synthetic/waves",
        task={"steps": 24, "inputs": 20000.0},
        cell="lstm",
        optimizer=optax.adam(5e-3),
    ),
    faulty(
        "clipping-hides-prices",
        "targets of mean 20000 and standard deviation 3000, and a gradient that is clipped to a norm of 1",
        {"masked-by-clipping", "target-scale"},
        recurrent,
        {"task": {}},
        architecture="rnn",
        framework="nnx",
        data="synthetic/waves",
        task={"scale": 3e3, "offset": 2e4},
        cell="gru",
        optimizer=clipped(1.0, optax.sgd(0.1, momentum=0.9)),
    ),
    faulty(
        "clipping-hides-skips-added-twice",
        "the skip is added within each of ten branches and behind it, and the gradient is clipped to a norm of 0.01",
        {"masked-by-clipping", "residual-scale"},
        residual_images,
        {"join": "once", "optimizer": clipped(1.0, optax.sgd(0.05, momentum=0.9))},
        architecture="residual",
        framework="equinox",
        data="digits",
        blocks=10,
        kernel=SMALL_HE,
        norm=False,
        join="twice",
        steps=150,
        optimizer=clipped(0.01, optax.sgd(0.05, momentum=0.9)),
    ),
)
