"""A line search for the directions of this family, with the interface of optax's.

optax's zoom search always starts at 1 or at the last step, and interpolates with values alone. This one uses the
slope of every probe, which is there anyway, and the decrease of the last step; ``benchmarks/optimizers.py``
compares the two.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxgrad._checks import message
from jaxgrad.optimizers import _vectors as vectors

_EXTRAPOLATION = 10


class WolfeLinesearchInfo(NamedTuple):
    """How the last search went, in the names of optax's searches.

    Attributes:
      num_linesearch_steps: Probes, each one value and one gradient of the function.
      decrease_error: 0 where a step with sufficient decrease was found; inf where none was, and the step is 0.
      curvature_error: By how much the slope at the step exceeds what the curvature condition allows; 0 where it
        holds.
    """

    num_linesearch_steps: Int[Array, ""]
    decrease_error: Float[Array, ""]
    curvature_error: Float[Array, ""]


class WolfeLinesearchState(NamedTuple):
    """State of :func:`scale_by_wolfe_linesearch`.

    Attributes:
      learning_rate: The step found.
      value: Value of the function after the step; inf before the first.
      grad: Gradient of the function after the step.
      decrease: By how much the step lowered the value; 0 before the first.
      info: How the search went.
    """

    learning_rate: Float[Array, ""]
    value: Float[Array, ""]
    grad: Any
    decrease: Float[Array, ""]
    info: WolfeLinesearchInfo


class _Probe(NamedTuple):
    step: Float[Array, ""]
    value: Float[Array, ""]
    slope: Float[Array, ""]


class _Search(NamedTuple):
    trial: Float[Array, ""]
    low: _Probe
    high: _Probe
    grad: Any  # at low
    bracketed: Bool[Array, ""]
    widths: Float[Array, " 2"]
    count: Int[Array, ""]
    done: Bool[Array, ""]


def scale_by_wolfe_linesearch(
    max_linesearch_steps: int = 30,
    *,
    decrease: float = 1e-4,
    curvature: float = 0.9,
    strong: bool = False,
    initial_guess: Literal["one", "decrease"] = "one",
) -> optax.GradientTransformationExtraArgs:
    r"""Scale a descent direction by a step that satisfies Wolfe's conditions.

    .. math::
        f(x + \alpha d) \le f(x) + c_1 \alpha\, g^\top d, \qquad
        g(x + \alpha d)^\top d \ge c_2\, g^\top d

    with :math:`c_1` = ``decrease`` and :math:`c_2` = ``curvature``. With ``strong`` the second condition bounds
    the size of the slope. Close to a minimum, where differences of values are rounding, the first gives way to
    Hager and Zhang's :math:`g(x + \alpha d)^\top d \le (2 c_1 - 1)\, g^\top d`.

    Each probe is one value and one gradient; those of the last probe stay in the state, where
    ``optax.value_and_grad_from_state`` finds them.

    Args:
      max_linesearch_steps: Most probes of one search. Static.
      decrease: :math:`c_1`, between 0 and ``curvature``. Static.
      curvature: :math:`c_2`, below 1: 0.9 for Newton-like directions, 0.1 for conjugate gradients. Static.
      strong: Whether a slope that is too steep upwards is refused too. Static.
      initial_guess: The first probe. ``"one"`` suits Newton-like directions; ``"decrease"`` takes the step at which a
        parabola would decrease as much as the function did in the last step. Static.

    Returns:
      A link for the end of a chain. Its ``update(updates, state, params, *, value, grad, value_fn, **extra_args)``
      takes a descent direction as ``updates``; ``value_fn`` gets those extra arguments that it has parameters for.

    Raises:
      ValueError: A setting is out of range, or one of ``params``, ``value``, ``grad``, ``value_fn`` is missing.

    Numerics:
      A probe with a value or slope that is not finite is refused. Where no probe decreases enough, or the
      direction does not descend, the step is 0 and ``info.decrease_error`` inf. Values within ``eps ** (2/3)`` of
      each other, relative to the value, are compared by slopes. Scalars are kept in float32, or in float64 where a
      parameter is.

    Example:
      >>> import jax.numpy as jnp
      >>> link, x = scale_by_wolfe_linesearch(), jnp.array([3.0])
      >>> f = lambda x: jnp.sum(x**2)
      >>> step, state = link.update(-x, link.init(x), x, value=f(x), grad=2 * x, value_fn=f)
      >>> step, state.info.num_linesearch_steps
      (Array([-3.], dtype=float32), Array(1, dtype=int32))

    References:
      :cite:p:`nocedal2006numerical`, algorithms 3.5 and 3.6, and equation 3.60 for ``"decrease"``. The next probe
      is chosen as in section 4 of :cite:p:`more1994line`. The approximate condition is (T2) of
      :cite:p:`hager2005new`; its bound on the value is ours.

    See also:
      ``optax.scale_by_zoom_linesearch``, which takes this link's place in any chain, and asks for the strong
      condition.
    """
    for name, value in (("decrease", decrease), ("curvature", curvature)):
        if not 0 < value < 1:
            raise ValueError(
                message("scale_by_wolfe_linesearch", f"{name} between 0 and 1", f"{name}={value}", "leave it out")
            )
    if not decrease < curvature:
        raise ValueError(
            message(
                "scale_by_wolfe_linesearch",
                "decrease below curvature",
                f"decrease={decrease}, curvature={curvature}",
                "raise curvature: otherwise no step may satisfy both conditions",
            )
        )
    if max_linesearch_steps < 1:
        raise ValueError(
            message(
                "scale_by_wolfe_linesearch",
                "max_linesearch_steps of at least 1",
                str(max_linesearch_steps),
                "leave it out",
            )
        )
    if initial_guess not in ("one", "decrease"):
        raise ValueError(
            message(
                "scale_by_wolfe_linesearch",
                "initial_guess 'one' or 'decrease'",
                repr(initial_guess),
                "'one' for Newton-like directions, 'decrease' for conjugate gradients",
            )
        )

    def init(params: Any) -> WolfeLinesearchState:
        dtype = vectors.dtype_of(params)
        infinite = jnp.asarray(jnp.inf, dtype)
        info = WolfeLinesearchInfo(jnp.asarray(0, jnp.int32), infinite, infinite)
        grad = jax.tree.map(jnp.zeros_like, params)
        return WolfeLinesearchState(jnp.ones((), dtype), infinite, grad, jnp.zeros((), dtype), info)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        value: Any = None,
        grad: Any = None,
        value_fn: Callable[..., Any] | None = None,
        **extra_args: Any,
    ) -> tuple[Any, WolfeLinesearchState]:
        if params is None or value is None or grad is None or value_fn is None:
            raise ValueError(
                message(
                    "scale_by_wolfe_linesearch",
                    "update(grad, state, params, value=, grad=, value_fn=)",
                    "one of them missing",
                    "pass them all, as to optax.lbfgs",
                )
            )
        dtype = state.learning_rate.dtype
        value_and_grad = jax.value_and_grad(with_known_arguments(value_fn, extra_args))
        slope = vectors.dot(updates, grad).astype(dtype)
        value = jnp.asarray(value, dtype)
        start = _Probe(jnp.zeros((), dtype), value, slope)
        noise = _noise(dtype) * jnp.abs(value)
        is_descent = (slope < 0) & jnp.isfinite(value) & jnp.isfinite(slope)
        rules = _Rules(start, noise, decrease, curvature, strong)

        def body(search: _Search) -> _Search:
            x = vectors.add_scaled(params, search.trial, updates)
            new_value, new_grad = value_and_grad(x)
            probe = _Probe(search.trial, new_value.astype(dtype), vectors.dot(new_grad, updates).astype(dtype))
            return _advance(search, probe, new_grad, rules)

        search = jax.lax.while_loop(
            lambda search: ~search.done & (search.count < max_linesearch_steps),
            body,
            _Search(
                trial=_first_trial(initial_guess, state, slope, updates),
                low=start,
                high=start,
                grad=grad,
                bracketed=jnp.asarray(False),
                widths=jnp.full(2, jnp.inf, dtype),
                count=jnp.asarray(0, jnp.int32),
                done=~is_descent,
            ),
        )
        # A step that is no lower counts only where the slope says that it is good.
        found = (search.low.step > 0) & ((search.low.value < value) | rules.accept(search.low))
        low, low_grad = vectors.where(found, (search.low, search.grad), (start, grad))
        info = WolfeLinesearchInfo(
            num_linesearch_steps=search.count,
            decrease_error=jnp.where(found, 0, jnp.inf).astype(dtype),
            curvature_error=jnp.where(
                found, jnp.maximum((jnp.abs(low.slope) if strong else -low.slope) + curvature * slope, 0), jnp.inf
            ),
        )
        new_state = WolfeLinesearchState(low.step, low.value, low_grad, value - low.value, info)
        return vectors.scaled(low.step, updates), new_state

    return optax.GradientTransformationExtraArgs(init, update)


class _Rules(NamedTuple):
    start: _Probe
    noise: Float[Array, ""]
    decrease: float
    curvature: float
    strong: bool

    def accept(self, probe: _Probe) -> Bool[Array, ""]:
        """Wolfe's conditions, or Hager and Zhang's where values are within rounding."""
        start = self.start
        decreases = probe.value <= start.value + self.decrease * probe.step * start.slope
        flat = probe.slope >= self.curvature * start.slope
        if self.strong:
            flat &= probe.slope <= -self.curvature * start.slope
        approximately = (probe.value <= start.value + self.noise) & (
            probe.slope <= (2 * self.decrease - 1) * start.slope
        )
        return flat & (decreases | approximately) & jnp.isfinite(probe.value)


def _noise(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps) ** (2 / 3)


def with_known_arguments(value_fn: Callable[..., Any], extra_args: dict[str, Any]) -> Callable[[Any], Any]:
    """Bind what ``value_fn`` has a parameter for: the rest is meant for other links of the chain."""
    parameters = inspect.signature(value_fn).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    known = {name: value for name, value in extra_args.items() if takes_all or name in parameters}
    return lambda x: value_fn(x, **known)


def _first_trial(strategy: str, state: WolfeLinesearchState, slope: Float[Array, ""], updates: Any) -> Float[Array, ""]:
    if strategy == "one":
        return jnp.ones_like(slope)
    length = jnp.sqrt(vectors.dot(updates, updates)).astype(slope.dtype)
    unit = 1 / jnp.maximum(length, 1)
    # A little more than the parabola says, so that a step of 1 is tried where Newton's step is.
    parabola = 1.01 * 2 * state.decrease / -jnp.where(slope == 0, -1, slope)
    return jnp.where((parabola > 0) & jnp.isfinite(parabola), parabola, unit)


def _advance(search: _Search, probe: _Probe, grad: Any, rules: _Rules) -> _Search:
    """Shrink or extend the bracket by one probe, and choose the next (Nocedal and Wright 2006, algorithms 3.5, 3.6)."""
    low, high = search.low, search.high
    start = rules.start
    finite = jnp.isfinite(probe.value) & jnp.isfinite(probe.slope)
    accepted = rules.accept(probe) & finite
    allowed = jnp.minimum(start.value + rules.decrease * probe.step * start.slope, low.value) + rules.noise
    too_high = ~finite | (probe.value > allowed)
    ahead = jnp.where(search.bracketed, jnp.sign(high.step - low.step), 1).astype(probe.step.dtype)
    passed = ~too_high & (probe.slope * ahead >= 0)
    bracketed = search.bracketed | too_high | passed
    new_high = vectors.where(too_high, probe, vectors.where(passed, low, high))
    new_low = vectors.where(accepted | ~too_high, probe, low)
    trial = _next_trial(low, high, probe, search.bracketed, too_high)
    # A bracket that two probes have not shrunk by a third is halved.
    width = jnp.abs(new_high.step - new_low.step)
    stuck = bracketed & (width > 0.66 * search.widths[0])
    outside = ~((trial - new_low.step) * (trial - new_high.step) < 0)
    trial = jnp.where(stuck | (bracketed & outside), (new_low.step + new_high.step) / 2, trial)
    trial = jnp.where(finite, trial, low.step + (probe.step - low.step) / 5)
    exhausted = bracketed & (width <= 4 * float(jnp.finfo(width.dtype).eps) * jnp.maximum(new_low.step, new_high.step))
    widths = jnp.where(bracketed, jnp.stack([search.widths[1], width]), search.widths)
    return _Search(
        trial=trial,
        low=new_low,
        high=new_high,
        grad=vectors.where(accepted | ~too_high, grad, search.grad),
        bracketed=bracketed,
        widths=widths,
        count=search.count + 1,
        done=accepted | exhausted,
    )


def _next_trial(
    low: _Probe, high: _Probe, probe: _Probe, bracketed: Bool[Array, ""], too_high: Bool[Array, ""]
) -> Float[Array, ""]:
    """Interpolate, in the four cases of Moré and Thuente (1994, section 4)."""
    gap = probe.step - low.step
    cubic = _cubic_minimizer(low, probe)
    secant = probe.step - vectors.quotient(probe.slope * gap, probe.slope - low.slope)
    parabola = low.step + vectors.quotient(-low.slope * gap**2 / 2, probe.value - low.value - low.slope * gap)
    near_low = jnp.abs(cubic - low.step) < jnp.abs(parabola - low.step)
    case_high = jnp.where(near_low, cubic, (cubic + parabola) / 2)
    case_opposite = jnp.where(jnp.abs(cubic - probe.step) > jnp.abs(secant - probe.step), cubic, secant)
    # Slopes of one sign: the minimizer lies beyond the probe.
    farthest = jnp.where(bracketed, probe.step + 0.66 * (high.step - probe.step), probe.step + _EXTRAPOLATION * gap)
    beyond = (cubic - probe.step) * gap > 0
    cubic_ahead = jnp.where(beyond, cubic, farthest)
    nearer = jnp.abs(cubic_ahead - probe.step) < jnp.abs(secant - probe.step)
    chosen = jnp.where(nearer == bracketed, cubic_ahead, secant)
    case_flatter = jnp.where(jnp.abs(chosen - probe.step) < jnp.abs(farthest - probe.step), chosen, farthest)
    case_steeper = jnp.where(bracketed, _cubic_minimizer(high, probe), farthest)
    flatter = jnp.abs(probe.slope) < jnp.abs(low.slope)
    trial = jnp.where(
        too_high,
        case_high,
        jnp.where(probe.slope * low.slope < 0, case_opposite, jnp.where(flatter, case_flatter, case_steeper)),
    )
    extended = jnp.clip(trial, probe.step + 1.1 * gap, probe.step + _EXTRAPOLATION * gap)
    opened = bracketed | too_high | (probe.slope * low.slope < 0)
    return jnp.where(opened, trial, extended)


def _cubic_minimizer(a: _Probe, b: _Probe) -> Float[Array, ""]:
    """Minimize the cubic through two values and slopes (Nocedal and Wright 2006, equation 3.59)."""
    gap = b.step - a.step
    first = a.slope + b.slope - 3 * vectors.quotient(b.value - a.value, gap)
    scale = jnp.maximum(jnp.abs(first), jnp.maximum(jnp.abs(a.slope), jnp.abs(b.slope)))
    inside = vectors.quotient(first, scale) ** 2 - vectors.quotient(a.slope, scale) * vectors.quotient(b.slope, scale)
    second = jnp.sign(gap) * scale * jnp.sqrt(jnp.maximum(inside, 0))
    return b.step - gap * vectors.quotient(b.slope + second - first, b.slope - a.slope + 2 * second)
