"""Errors of log10 singular values of long products, against the plain product and against a reference.

    python benchmarks/product_spectrum.py            # two minutes
    python benchmarks/product_spectrum.py --full     # width 256 at depth 10,000 too: 12 GB, half an hour

Factors are float32. *Known* ones have singular values from 1 down to 1/10 and share their singular vectors with their
neighbours, so the values of the product are powers of them; *Gaussian* ones have entries of variance 1/width, and the
reference is the product in float64. That reference is itself held against mpmath, with as many digits as it takes.
"""

from __future__ import annotations

import argparse
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import spectra

WIDTHS = (8, 64, 256)
DEPTHS = (16, 64, 1000, 10_000)
MOST_ENTRIES = 7e7  # of all factors together, without --full


def known(depth: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors, and log10 of the singular values of their product."""
    rng = np.random.default_rng(depth + width)
    logs = np.linspace(0, -1, width)
    before, _ = np.linalg.qr(rng.standard_normal((width, width)))
    factors = np.empty((depth, width, width), np.float32)
    for layer in range(depth):
        after, _ = np.linalg.qr(rng.standard_normal((width, width)))
        factors[layer] = (after * 10**logs) @ before.T
        before = after
    return factors, depth * logs


def gaussian(depth: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors, and log10 of the singular values of their product, in float64."""
    rng = np.random.default_rng(depth + width)
    factors = rng.standard_normal((depth, width, width), np.float32) / np.float32(math.sqrt(width))
    with jax.enable_x64(True):
        return factors, np.asarray(spectra.product_spectrum(jnp.asarray(factors, jnp.float64)))


def plain(factors: np.ndarray) -> np.ndarray:
    """What one gets by multiplying in float32."""
    product = np.eye(factors.shape[1], dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for factor in factors:
            product = factor @ product
    if not np.isfinite(product).all():
        return np.full(len(product), np.nan)
    with np.errstate(divide="ignore"):
        return np.log10(np.linalg.svd(product, compute_uv=False))


def largest_error(values: np.ndarray, reference: np.ndarray) -> float:
    """inf where one of the two is zero or not finite and the other is not."""
    with np.errstate(invalid="ignore"):
        errors = np.abs(np.asarray(values, np.float64) - reference)
    return float(np.max(np.where(np.isnan(errors), np.inf, errors)))


def against_mpmath(depth: int, width: int) -> float:
    """The largest error of the float64 reference."""
    import mpmath

    factors, reference = gaussian(depth, width)
    with mpmath.workdps(int(2 * abs(reference).max()) + 60):
        product = mpmath.eye(width)
        for factor in factors:
            product = mpmath.matrix(factor.astype(float).tolist()) * product
        values = mpmath.svd_r(product, compute_uv=False)
        exact = np.array([float(mpmath.log10(value)) for value in values])
    return largest_error(np.sort(exact)[::-1], reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="every width at every depth")
    full = parser.parse_args().full
    print(f"float64 reference against mpmath, width 8, depth 300: {against_mpmath(300, 8):.1e}\n")
    print("largest error in log10 of a singular value")
    heads = "".join(f"{head:>10}" for head in ("smallest", "arrays", "in jit", "plain"))
    print(f"{'factors':9}{'width':>6}{'depth':>7}{heads}{'seconds':>9}")
    for make in (known, gaussian):
        for width in WIDTHS:
            for depth in DEPTHS:
                if depth * width**2 > MOST_ENTRIES and not full:
                    continue
                factors, reference = make(depth, width)
                start = time.perf_counter()
                got = np.asarray(spectra.product_spectrum(jnp.asarray(factors)))
                seconds = time.perf_counter() - start
                traced = np.asarray(jax.jit(spectra.product_spectrum)(factors))
                errors = [largest_error(values, reference) for values in (got, traced, plain(factors))]
                row = "".join(f"{error:10.1e}" for error in errors)
                print(f"{make.__name__:9}{width:6}{depth:7}{reference.min():10.1f}{row}{seconds:9.1f}", flush=True)


if __name__ == "__main__":
    main()
