"""Images of digits: depthwise convolutions, mixers, patches and autoencoders."""

from __future__ import annotations

import optax
from dense import momentum
from jax.nn import initializers
from pictures import autoencoder, contrast, contrast_with_eps, depthwise, patchwise, sigmoid_error
from programs import faulty, healthy
from samples import divided_twice, unit_interval
from tasks import rescaled

FAULTY = (
    faulty(
        "sigmoid-output-for-raw-pixels",
        "an autoencoder ends in a sigmoid, and the pixels it should put out go up to 16",
        {"target-scale", "saturating-activation"},
        autoencoder,
        {"targets": unit_interval},
        framework="jax",
        data="digits",
        inputs=unit_interval,
        loss=sigmoid_error,
        optimizer=optax.adam(3e-3),
    ),
    faulty(
        "autoencoder-weights-too-small",
        "an autoencoder whose weights have a standard deviation of 0.001",
        {"initialization"},
        autoencoder,
        {"kernel": initializers.glorot_uniform()},
        framework="jax",
        data="digits",
        inputs=unit_interval,
        targets=unit_interval,
        kernel=initializers.normal(1e-3),
        loss=sigmoid_error,
        optimizer=momentum(0.5),
    ),
    faulty(
        "depthwise-rate-too-low-bf16",
        "a learning rate of 1e-6 with AdamW",
        {"learning-rate"},
        depthwise,
        {"optimizer": optax.adamw(3e-3)},
        architecture="conv",
        framework="linen",
        dtype="bfloat16",
        data="digits",
        steps=150,
        optimizer=optax.adamw(1e-6),
    ),
    faulty(
        "depthwise-pixels-divided-twice",
        "pixels are divided by 255 twice",
        {"input-scale"},
        depthwise,
        {"inputs": rescaled},
        architecture="conv",
        framework="linen",
        data="digits",
        groups=None,
        inputs=divided_twice,
        steps=150,
        optimizer=optax.sgd(0.05, momentum=0.9),
    ),
    faulty(
        "mixer-without-skips-or-norms",
        "six blocks of a mixer without normalization whose skips were forgotten",
        {"missing-residual", "depth"},
        patchwise,
        {"skip": True},
        architecture="conv",
        framework="nnx",
        data="digits",
        layers=6,
        norm=False,
        skip=False,
        steps=150,
        optimizer=optax.adam(2e-3),
    ),
    faulty(
        "patches-over-deviation-zero",
        "patches are divided by their standard deviation, which is 0 in empty corners",
        {"nonfinite-op", "normalization"},
        patchwise,
        {"prepare": contrast_with_eps},
        architecture="transformer",
        framework="equinox",
        data="digits",
        prepare=contrast,
        layers=1,
        steps=120,
        optimizer=optax.adam(3e-3),
    ),
)

HEALTHY = (
    healthy(
        "autoencoder-of-sigmoids",
        autoencoder,
        reach=0.6,
        framework="jax",
        data="digits",
        inputs=unit_interval,
        targets=unit_interval,
        optimizer=optax.adam(5e-3),
    ),
    healthy(
        "depthwise-group-norm",
        depthwise,
        reach=0.4,
        architecture="conv",
        framework="linen",
        data="digits",
        optimizer=optax.adamw(5e-3),
    ),
    healthy(
        "mixer",
        patchwise,
        reach=0.4,
        architecture="residual",
        framework="nnx",
        data="digits",
        optimizer=optax.adam(3e-3),
    ),
    healthy(
        "patches-layer-scale",
        patchwise,
        reach=0.6,
        architecture="transformer",
        framework="equinox",
        data="digits",
        layer_scale=1e-4,
        steps=150,
        optimizer=optax.adam(5e-3),
    ),
)

PROGRAMS = (*FAULTY, *HEALTHY)
