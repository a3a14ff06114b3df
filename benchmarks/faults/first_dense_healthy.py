"""Dense networks that train well, though some look odd."""

from __future__ import annotations

from functools import partial

import jax
import optax
from dense import ADAM, clipped, dense, dropout, momentum, scanned
from jax.nn import initializers
from networks import GLOROT, LECUN
from programs import healthy, trained
from tasks import binary_cross_entropy, scaled_cross_entropy, squared_error, summed_cross_entropy

PROGRAMS = (
    healthy("relu-he-eight", dense, reach=0.3, framework="jax", data="digits", hidden=(64,) * 8, optimizer=ADAM),
    healthy(
        "zero-head",
        dense,
        reach=0.3,
        framework="linen",
        data="digits",
        head=initializers.zeros,
        optimizer=ADAM,
    ),
    healthy(
        "small-head-bf16",
        dense,
        reach=0.3,
        framework="nnx",
        data="digits",
        dtype="bfloat16",
        head=initializers.normal(1e-3),
        optimizer=optax.adamw(1e-3),
    ),
    healthy(
        "selu-lecun",
        dense,
        reach=0.4,
        framework="equinox",
        data="blobs",
        hidden=(48,) * 8,
        activation=jax.nn.selu,
        kernel=LECUN,
        optimizer=momentum(0.02),
    ),
    healthy(
        "orthogonal-tanh-twenty",
        scanned,
        reach=0.3,
        framework="jax",
        data="digits",
        depth=20,
        kernel=initializers.orthogonal(),
        optimizer=ADAM,
    ),
    healthy("dropout-smoothing", dropout, reach=0.6, framework="linen", data="digits", optimizer=ADAM),
    healthy(
        "summed-loss",
        dense,
        reach=0.3,
        framework="nnx",
        data="digits",
        loss=summed_cross_entropy,
        optimizer=momentum(0.02 / 64),
    ),
    healthy(
        "loss-weighed-down",
        dense,
        reach=0.3,
        framework="equinox",
        data="wine",
        loss=scaled_cross_entropy,
        optimizer=ADAM,
    ),
    healthy(
        "imbalanced",
        dense,
        reach=0.4,
        framework="jax",
        data="rare",
        loss=binary_cross_entropy,
        batch=128,
        optimizer=ADAM,
    ),
    healthy(
        "trained-before",
        partial(trained, build=dense, training_steps=100),
        reach=0.6,
        framework="nnx",
        data="digits",
        optimizer=ADAM,
    ),
    healthy(
        "rarely-clipped-bf16",
        dense,
        reach=0.4,
        framework="equinox",
        data="digits",
        dtype="bfloat16",
        optimizer=clipped(5.0, optax.adamw(2e-3)),
    ),
    healthy(
        "regression-standardized",
        dense,
        reach=0.5,
        framework="equinox",
        data="diabetes",
        loss=squared_error,
        hidden=(64, 64),
        head=initializers.normal(0.01),
        optimizer=ADAM,
    ),
    healthy(
        "sigmoid-shallow",
        dense,
        reach=0.4,
        framework="linen",
        data="breast_cancer",
        loss=binary_cross_entropy,
        hidden=(32,),
        activation=jax.nn.sigmoid,
        kernel=GLOROT,
        optimizer=optax.adam(5e-3),
    ),
)
