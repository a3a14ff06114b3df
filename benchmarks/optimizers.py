"""How many evaluations the second-order optimizers need on the problems of Moré, Garbow and Hillstrom.

Each method starts from the standard start in double precision, and stops where the largest entry of the gradient is at
most 1e-6 (scipy's and ours; optimistix has another test, set to 1e-8). A problem counts as solved where the value is
within 1e-7 of a known minimum, relative to it where that is above 1. An evaluation is one value with its gradient; of
Hessian products there is a second count. The medians are over the problems both solve.

Run: python benchmarks/optimizers.py [PROBLEM ...]
"""

from __future__ import annotations

import sys
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import scipy.optimize
from mgh import PROBLEMS, Problem

from jaxgrad import optimizers

TOL, MAX_STEPS = 1e-6, 2000
OURS = {
    "bfgs": optimizers.bfgs(),
    "nonlinear_cg": optimizers.nonlinear_cg(),
    "newton": optimizers.newton(),
    "newton, cholesky": optimizers.newton(solver="cholesky"),
    "bfgs, optax's search": optimizers.bfgs(linesearch=optax.scale_by_zoom_linesearch(30)),
}
PEERS = {
    "bfgs": ("scipy BFGS", "optimistix BFGS"),
    "nonlinear_cg": ("scipy CG", "optimistix NonlinearCG"),
    "newton": ("scipy Newton-CG",),
    "newton, cholesky": ("scipy Newton-CG",),
    "bfgs, optax's search": ("bfgs",),
}


class Outcome(NamedTuple):
    """What one method did on one problem."""

    solved: bool
    num_evaluations: int
    num_products: int


def is_solved(problem: Problem, value: float) -> bool:
    """Return whether the value is that of a known minimum."""
    return min(abs(value - minimum) / max(1, abs(minimum)) for minimum in problem.minima) <= 1e-7


def run_ours(problem: Problem, optimizer) -> Outcome:
    """Minimize with one of our optimizers."""
    run = jax.jit(lambda x: optimizers.minimize(problem.fun, x, optimizer, tol=TOL, max_steps=MAX_STEPS))
    result = run(jnp.asarray(problem.x0))
    return Outcome(
        is_solved(problem, result.value.item()), int(result.num_evaluations), int(result.num_hessian_products)
    )


def run_scipy(problem: Problem, method: str) -> Outcome:
    """Minimize with scipy, counting every call."""
    value_and_grad = jax.jit(jax.value_and_grad(problem.fun))
    hessian_product = jax.jit(lambda x, v: jax.jvp(jax.grad(problem.fun), (x,), (v,))[1])
    counts = {"values": 0, "products": 0}

    def small(x) -> bool:
        return np.max(np.abs(value_and_grad(x)[1])) <= TOL

    def fun(x):
        counts["values"] += 1
        return float(value_and_grad(x)[0])

    def product(x, v):
        counts["products"] += 1
        return np.asarray(hessian_product(x, v))

    def stop(intermediate_result):
        # Newton-CG stops by the length of the step, which is another question.
        if method == "Newton-CG" and small(intermediate_result.x):
            raise StopIteration

    options = {"xtol": 1e-14} if method == "Newton-CG" else {"gtol": TOL}
    result = scipy.optimize.minimize(
        fun,
        problem.x0,
        jac=lambda x: np.asarray(value_and_grad(x)[1]),
        hessp=product if method == "Newton-CG" else None,
        method=method,
        callback=stop,
        options={"maxiter": MAX_STEPS, **options},
    )
    return Outcome(is_solved(problem, float(result.fun)), counts["values"], counts["products"])


def run_optimistix(problem: Problem, method: str) -> Outcome:
    """Minimize with optimistix, where a step is one evaluation."""
    solver = getattr(optimistix, method)(rtol=1e-8, atol=1e-8)
    try:
        solution = optimistix.minimise(
            lambda x, _: problem.fun(x), solver, jnp.asarray(problem.x0), max_steps=10 * MAX_STEPS, throw=False
        )
    except Exception as error:
        print(f"{problem.name}: optimistix {method}: {type(error).__name__}", file=sys.stderr)
        return Outcome(False, 0, 0)
    return Outcome(is_solved(problem, float(problem.fun(solution.value))), int(solution.stats["num_steps"]), 0)


def run_peer(problem: Problem, peer: str) -> Outcome:
    """Run a method by its name in the table."""
    package, method = peer.split()
    return (run_scipy if package == "scipy" else run_optimistix)(problem, method)


def main() -> None:
    """Measure and print."""
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore", RuntimeWarning)
    names = sys.argv[1:]
    problems = [problem for problem in PROBLEMS if not names or problem.name in names]
    peers = list(dict.fromkeys(peer for each in PEERS.values() for peer in each if peer not in OURS))
    methods = [*OURS, *peers]
    outcomes: dict[str, dict[str, Outcome]] = {method: {} for method in methods}
    print(f"jax {jax.__version__}, scipy {scipy.__version__}, optimistix {optimistix.__version__}")
    print("evaluations (and Hessian products); * not solved")
    print(f"{'':24}" + "".join(f"{method:>24}" for method in methods))
    for problem in problems:
        line = f"{problem.name:24}"
        for method in methods:
            outcome = run_ours(problem, OURS[method]) if method in OURS else run_peer(problem, method)
            outcomes[method][problem.name] = outcome
            products = f" ({outcome.num_products})" if outcome.num_products else ""
            line += f"{outcome.num_evaluations}{products}{'' if outcome.solved else '*'}".rjust(24)
        print(line, flush=True)
    print()
    for method, rivals in PEERS.items():
        for rival in rivals:
            ours, theirs = outcomes[method], outcomes[rival]
            both = [name for name in ours if ours[name].solved and theirs[name].solved]
            print(
                f"{method}: {sum(o.solved for o in ours.values())} solved, "
                f"median {np.median([ours[name].num_evaluations for name in both]):g} evaluations, "
                f"{np.median([ours[name].num_products for name in both]):g} products; "
                f"{rival}: {sum(o.solved for o in theirs.values())} solved, "
                f"median {np.median([theirs[name].num_evaluations for name in both]):g}, "
                f"{np.median([theirs[name].num_products for name in both]):g}"
            )


if __name__ == "__main__":
    main()
