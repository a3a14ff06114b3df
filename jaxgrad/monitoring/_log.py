"""A reading, sent to TensorBoard or Weights & Biases without a dependency on either."""

from __future__ import annotations

import inspect
from typing import Any

from jaxgrad._checks import message
from jaxgrad.monitoring._read import Reading, readings_by_name


def log(opt_state: Any, writer: Any, step: int | None = None, *, prefix: str = "monitor") -> None:
    """Log what the monitors and clippers in an optimizer's state have recorded.

    Tags are ``prefix/norm/LAYER``, ``prefix/global_norm``, ``prefix/param_norm/LAYER``, ``prefix/update_ratio/LAYER``,
    ``prefix/noise_scale``, ``prefix/quantile/PROBABILITY/LAYER``, ``prefix/num_nonfinite``,
    ``prefix/first_nonfinite_step`` and ``prefix/clip/PLACE/FIELD``; what was not recorded is left out.

    Args:
      opt_state: As in :func:`jaxgrad.monitoring.read`, or a :class:`jaxgrad.monitoring.Reading`. Of several monitors
        all are logged, each under ``prefix/NAME``.
      writer: Known by its methods. TensorBoard: ``add_scalar(tag, value, step)`` (PyTorch, tensorboardX),
        ``scalar(tag, value, step)`` (flax, the module ``tf.summary``) or ``write_scalars(step, scalars)`` (clu).
        Weights & Biases: ``log(scalars, step=step)``, of the module or a run.
      step: Step to log at; ``None``: the number of updates the monitor has seen.
      prefix: What every tag begins with; may be empty.

    Raises:
      TypeError: ``writer`` is none of these.
      ValueError: As in :func:`jaxgrad.monitoring.read`; or ``step`` is missing and the state holds no monitor to tell
        it.

    Example:
      >>> import jax.numpy as jnp, types
      >>> from jaxgrad.monitoring import log, monitor
      >>> run = types.SimpleNamespace(log=lambda scalars, step: print(step, scalars["monitor/norm/w"]))
      >>> _, state = monitor().update({"w": jnp.array([3.0, 4.0])}, monitor().init({"w": jnp.zeros(2)}))
      >>> log(state, run)
      1 5.0
    """
    readings = {"": opt_state} if isinstance(opt_state, Reading) else readings_by_name(opt_state)
    several = len(readings) > 1
    scalars: dict[str, float] = {}
    for name, reading in readings.items():
        scalars |= _scalars(reading, [part for part in (prefix, name if several else "") if part])
    if step is None:
        step = next(iter(readings.values())).step
    if step is None:
        raise ValueError(message("log", "step where there is no monitor", "step=None", "pass step="))
    _write(writer, scalars, step)


def _scalars(reading: Reading, prefix: list[str]) -> dict[str, float]:
    """Name every number of a reading."""
    tree = {
        "norm": reading.norms,
        "global_norm": reading.global_norm,
        "param_norm": reading.param_norms,
        "update_ratio": reading.update_ratios,
        "noise_scale": reading.noise_scale,
        "quantile": {
            f"{probability:g}/{layer}": value
            for layer, values in reading.quantiles.items()
            for probability, value in values.items()
        },
        "first_nonfinite_step": reading.first_nonfinite_step,
        "num_nonfinite": None if reading.step is None else reading.num_nonfinite,
        "clip": {place: clip._asdict() for place, clip in reading.clips.items()},
    }
    scalars: dict[str, float] = {}

    def walk(path: list[str], value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk([*path, key] if key else path, inner)
        elif value is not None:
            scalars["/".join(path)] = int(value) if isinstance(value, bool) else value

    walk(prefix, tree)
    return scalars


def _write(writer: Any, scalars: dict[str, float], step: int) -> None:
    """Hand the scalars to a writer, known by its methods."""
    one = getattr(writer, "add_scalar", None) or getattr(writer, "scalar", None)
    if callable(getattr(writer, "write_scalars", None)):
        writer.write_scalars(step, scalars)
    elif callable(one):
        for tag, value in scalars.items():
            one(tag, value, step)
    elif _takes_step(getattr(writer, "log", None)):
        writer.log(scalars, step=step)
    else:
        raise TypeError(
            message(
                "log",
                "a TensorBoard writer (add_scalar, scalar or write_scalars) or Weights & Biases (log(dict, step=))",
                type(writer).__name__,
                "pass a SummaryWriter or wandb, or write the numbers of jaxgrad.monitoring.read(opt_state) yourself",
            )
        )


def _takes_step(function: Any) -> bool:
    """Tell Weights & Biases from the other things with a ``log``: the standard loggers and ``math``."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    names = [parameter.name for parameter in parameters]
    return names[:1] != ["level"] and (
        "step" in names or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    )
