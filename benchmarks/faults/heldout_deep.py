"""Skips, branches and recurrent states."""

from __future__ import annotations

import jax
import optax
from assorted import encoder, leaky, residual_images
from networks import LECUN
from programs import faulty
from sequence import recurrent
from stacks import per_layer, stack

PROGRAMS = (
    faulty(
        "post-norm-without-skips",
        "normalization behind attention and dense layers whose skips were forgotten, in six layers",
        {"missing-residual"},
        encoder,
        {"skip": True},
        architecture="transformer",
        framework="nnx",
        data="synthetic/documents",
        problem={"steps": 16},
        layers=6,
        width=24,
        skip=False,
        steps=150,
        optimizer=optax.adam(1e-3),
    ),
    faulty(
        "residual-net-that-is-plain",
        "ten pairs of convolutions whose skips got lost in refactoring",
        {"missing-residual", "depth"},
        residual_images,
        {"join": "once"},
        architecture="conv",
        framework="equinox",
        data="digits",
        blocks=10,
        width=12,
        scale=0.7,
        norm=False,
        join="never",
        steps=150,
        optimizer=optax.sgd(0.02, momentum=0.9),
    ),
    faulty(
        "branches-times-root-of-depth-bf16",
        "branches are multiplied by the root of their number, by which they should be divided",
        {"residual-scale"},
        stack,
        {"scale": 20**-0.5},
        architecture="residual",
        framework="jax",
        dtype="bfloat16",
        data="digits",
        depth=20,
        block="layer",
        activation=jax.nn.silu,
        kernel=per_layer(LECUN),
        scale=20**0.5,
        optimizer=optax.adamw(1e-3),
    ),
    faulty(
        "leaky-states-forget",
        "states of which half is kept at each step, for an input that stands fifty steps back",
        {"recurrence"},
        leaky,
        {"keep": 0.97},
        architecture="rnn",
        framework="equinox",
        data="synthetic/recall",
        task={"steps": 50},
        keep=0.5,
        optimizer=optax.adam(3e-3),
    ),
    faulty(
        "padding-behind-the-sequence",
        "fifty steps of padding stand between a digit's rows and the state that is read",
        {"recurrence"},
        recurrent,
        {"task": {"padding": (50, 0)}},
        architecture="lstm",
        framework="linen",
        data="digits",
        task={"padding": (0, 50)},
        cell="lstm",
        optimizer=optax.adam(3e-3),
    ),
)
