"""Healthy programs that look odd: no body, tiny kernels, sparse inputs, large losses, gates, pairs and noise."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import optax
from assorted import bags, encoder, error_of_mean, gaussian, residual_images, siamese, sum_of_squares, vae
from dense import clipped
from feedforward import feedforward
from jax.nn import initializers
from networks import GLOROT, LECUN, ZEROS
from programs import healthy, trained
from sequence import recurrent
from stacks import per_layer, stack

TINY = initializers.normal(0.02)

PROGRAMS = (
    healthy(
        "softmax-regression-from-zero",
        feedforward,
        reach=0.2,
        framework="jax",
        data="wine",
        hidden=(),
        head=ZEROS,
        optimizer=optax.sgd(0.3),
    ),
    healthy(
        "four-units-for-iris",
        feedforward,
        reach=0.3,
        framework="nnx",
        data="iris",
        hidden=(4,),
        activation=jnp.tanh,
        kernel=GLOROT,
        optimizer=optax.sgd(0.2, momentum=0.9),
    ),
    healthy(
        "leaky-relu-twelve-bf16",
        feedforward,
        reach=0.3,
        framework="linen",
        dtype="bfloat16",
        data="digits",
        hidden=(48,) * 12,
        activation=jax.nn.leaky_relu,
        optimizer=clipped(1.0, optax.adamw(1e-3)),
    ),
    healthy(
        "bags-of-words",
        bags,
        reach=0.3,
        framework="equinox",
        data="synthetic/documents",
        problem={"vocabulary": 320},
        optimizer=optax.adam(5e-3),
    ),
    healthy(
        "sum-of-squares-of-three-targets",
        feedforward,
        reach=0.4,
        framework="linen",
        data="linnerud",
        hidden=(32,),
        batch=20,
        loss=sum_of_squares,
        steps=300,
        optimizer=optax.adam(5e-3),
    ),
    healthy(
        "likelihood-with-deviation",
        feedforward,
        reach=0.7,
        framework="jax",
        data="friedman",
        outputs=2,
        loss=gaussian(lambda raw: 0.05 + jax.nn.softplus(raw)),
        score=error_of_mean,
        optimizer=optax.adam(3e-3),
    ),
    healthy(
        "variational-autoencoder",
        vae,
        reach=0.7,
        framework="linen",
        data="digits",
        optimizer=optax.adam(3e-3),
    ),
    healthy("pairs-with-themselves", siamese, reach=0.5, framework="jax", data="digits", optimizer=optax.adam(2e-3)),
    healthy(
        "tiny-kernels-before-norms-bf16",
        stack,
        reach=0.3,
        architecture="residual",
        framework="equinox",
        dtype="bfloat16",
        data="digits",
        depth=8,
        kernel=TINY,
        norm="layer",
        optimizer=optax.adamw(2e-3),
    ),
    healthy(
        "gated-branches-scaled-down",
        stack,
        reach=0.3,
        architecture="residual",
        framework="jax",
        data="breast_cancer",
        depth=12,
        block="gated",
        activation=jax.nn.sigmoid,
        kernel=per_layer(LECUN),
        scale=0.2,
        outputs=2,
        optimizer=optax.adam(1e-3),
    ),
    healthy(
        "residual-images-trained-before",
        partial(trained, build=residual_images, training_steps=120),
        reach=0.8,
        architecture="conv",
        framework="equinox",
        data="digits",
        blocks=3,
        steps=120,
        optimizer=optax.adam(2e-3),
    ),
    healthy(
        "post-norm-warmed-up",
        encoder,
        reach=0.5,
        architecture="transformer",
        framework="nnx",
        data="synthetic/documents",
        problem={},
        optimizer=optax.adam(optax.linear_schedule(0.0, 3e-3, 60)),
    ),
    healthy(
        "four-steps-of-lstm",
        recurrent,
        reach=0.4,
        architecture="lstm",
        framework="equinox",
        data="synthetic/waves",
        task={"steps": 4},
        cell="lstm",
        forget_bias=0.0,
        width=24,
        optimizer=optax.adam(1e-2),
    ),
    healthy(
        "glorot-tanh-rows-bf16",
        recurrent,
        reach=0.5,
        architecture="rnn",
        framework="linen",
        dtype="bfloat16",
        data="digits",
        task={},
        kernel=GLOROT,
        optimizer=optax.adam(3e-3),
    ),
)
