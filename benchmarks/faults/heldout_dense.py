"""Dense networks and small convolutions: faults of initialization, activation, depth and loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from assorted import (
    counts,
    inverse_fan,
    logistic_of_signs,
    negative_probability,
    residual_images,
    without_window,
)
from conv import conv
from feedforward import feedforward
from jax.nn import initializers
from networks import HE, LECUN
from programs import faulty, trained
from samples import logistic, mean_squared
from stacks import stack
from tasks import cross_entropy, error_rate


def steep_sigmoid(x: jax.Array) -> jax.Array:
    """Sharpen the sigmoid towards a step."""
    return jax.nn.sigmoid(25 * x)


PROGRAMS = (
    faulty(
        "inverse-fan-in-bf16",
        "weights of standard deviation 1/fan-in, the root being forgotten, in six layers",
        {"initialization"},
        feedforward,
        {"kernel": HE},
        framework="jax",
        dtype="bfloat16",
        data="digits",
        hidden=(56,) * 6,
        activation=jax.nn.relu,
        kernel=inverse_fan,
        optimizer=optax.sgd(0.05, momentum=0.9),
    ),
    faulty(
        "fan-in-without-the-window",
        "the fan-in of convolutions leaves out their window of nine pixels, so that weights are three times too large",
        {"initialization"},
        conv,
        {"kernel": HE},
        architecture="conv",
        framework="nnx",
        data="digits",
        depth=7,
        kernel=without_window,
        steps=150,
        optimizer=optax.sgd(0.02, momentum=0.9),
    ),
    faulty(
        "steep-sigmoids",
        "sigmoids of 25 times their input, meant to come close to a step",
        {"saturating-activation"},
        feedforward,
        {"activation": jax.nn.relu},
        framework="nnx",
        data="digits",
        hidden=(40,) * 4,
        activation=steep_sigmoid,
        optimizer=optax.adam(1e-3),
    ),
    faulty(
        "softplus-thirty-layers",
        "thirty layers of softplus without a skip",
        {"depth", "missing-residual"},
        stack,
        {"skip": True, "scale": 0.1},
        framework="linen",
        data="wine",
        depth=30,
        width=32,
        block="layer",
        activation=jax.nn.softplus,
        kernel=LECUN,
        skip=False,
        optimizer=optax.adam(1e-3),
    ),
    faulty(
        "narrow-tower",
        "twenty-four layers of six ReLUs, in which the signal dies",
        {"depth", "dead-relu", "missing-residual"},
        feedforward,
        {"hidden": (24, 24)},
        framework="jax",
        data="digits",
        hidden=(6,) * 24,
        activation=jax.nn.relu,
        optimizer=optax.adam(2e-3),
    ),
    faulty(
        "conv-dead-before-restart",
        "sixty steps with a learning rate of 0.3 left the ReLUs off, before training went on at a lower rate",
        {"dead-relu"},
        trained,
        {"training_optimizer": optax.adam(3e-3)},
        architecture="conv",
        framework="equinox",
        data="digits",
        build=conv,
        training_steps=60,
        training_optimizer=optax.adam(0.3),
        depth=4,
        steps=100,
        optimizer=optax.adam(3e-3),
    ),
    faulty(
        "log-rate-behind-relu",
        "the output's bias is a log-rate, of -4, and a ReLU stands where the exponential was meant",
        {"dead-relu"},
        feedforward,
        {"last": jnp.exp},
        framework="linen",
        data="friedman",
        hidden=(40, 40),
        activation=jax.nn.gelu,
        targets=counts,
        head=initializers.variance_scaling(0.1, "fan_in", "normal"),
        head_bias=initializers.constant(-4.0),
        last=jax.nn.relu,
        loss=mean_squared,
        steps=300,
        optimizer=optax.adam(3e-3),
    ),
    faulty(
        "likelihood-of-probabilities",
        "a loss that takes logarithms of probabilities is given probabilities",
        {"loss"},
        residual_images,
        {"loss": cross_entropy},
        architecture="conv",
        framework="equinox",
        dtype="bfloat16",
        data="digits",
        blocks=2,
        loss=negative_probability,
        steps=120,
        optimizer=optax.sgd(0.02, momentum=0.9),
    ),
    faulty(
        "ten-classes-in-one-sigmoid",
        "the binary cross entropy of one output takes labels from 0 to 9",
        {"loss"},
        feedforward,
        {"loss": cross_entropy, "outputs": 10},
        framework="nnx",
        data="digits",
        hidden=(64,),
        activation=jax.nn.relu,
        outputs=1,
        loss=logistic,
        score=error_rate,
        optimizer=optax.adam(2e-3),
    ),
    faulty(
        "labels-of-minus-one",
        "the binary cross entropy is given labels of -1 and 1",
        {"loss"},
        feedforward,
        {"loss": logistic},
        framework="equinox",
        data="breast_cancer",
        hidden=(32, 32),
        activation=jax.nn.elu,
        loss=logistic_of_signs,
        score=logistic,
        optimizer=optax.adam(3e-3),
    ),
)
