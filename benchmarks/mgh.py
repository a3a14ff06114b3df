"""The 35 unconstrained problems of Moré, Garbow and Hillstrom (1981), as sums of squares in JAX.

Each has its standard start and the values of its known minima, the lowest first; a value at infinity is not among them.
Sizes are those for which the paper prints a minimum. Needs float64 for the minima to be reached to many digits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


class Problem(NamedTuple):
    """A test problem: ``fun(x) = sum(residuals(x) ** 2)``."""

    name: str
    residuals: Callable[[Array], Array]
    x0: np.ndarray
    minima: tuple[float, ...]

    def fun(self, x: Array) -> Array:
        return jnp.sum(self.residuals(x) ** 2)


def numbers(text: str) -> np.ndarray:
    return np.array(text.split(), float)


def rosenbrock(x):
    return jnp.concatenate([10 * (x[1::2] - x[::2] ** 2), 1 - x[::2]])


def freudenstein_roth(x):
    a, b = x
    return jnp.stack([-13 + a + ((5 - b) * b - 2) * b, -29 + a + ((b + 1) * b - 14) * b])


def powell_badly_scaled(x):
    a, b = x
    return jnp.stack([1e4 * a * b - 1, jnp.exp(-a) + jnp.exp(-b) - 1.0001])


def brown_badly_scaled(x):
    a, b = x
    return jnp.stack([a - 1e6, b - 2e-6, a * b - 2])


def beale(x):
    a, b = x
    return np.array([1.5, 2.25, 2.625]) - a * (1 - b ** np.arange(1, 4))


def jennrich_sampson(x):
    i = np.arange(1, 11.0)
    return 2 + 2 * i - (jnp.exp(i * x[0]) + jnp.exp(i * x[1]))


def helical_valley(x):
    a, b, c = x
    theta = jnp.arctan(b / a) / (2 * jnp.pi) + jnp.where(a < 0, 0.5, 0.0)
    return jnp.stack([10 * (c - 10 * theta), 10 * (jnp.sqrt(a**2 + b**2) - 1), c])


BARD = numbers(".14 .18 .22 .25 .29 .32 .35 .39 .37 .58 .73 .96 1.34 2.10 4.39")


def bard(x):
    u = np.arange(1, 16.0)
    v = 16 - u
    return BARD - (x[0] + u / (v * x[1] + np.minimum(u, v) * x[2]))


GAUSSIAN = numbers(".0009 .0044 .0175 .0540 .1295 .2420 .3521 .3989 .3521 .2420 .1295 .0540 .0175 .0044 .0009")


def gaussian(x):
    t = (8 - np.arange(1, 16.0)) / 2
    return x[0] * jnp.exp(-x[1] * (t - x[2]) ** 2 / 2) - GAUSSIAN


MEYER = numbers("34780 28610 23650 19630 16370 13720 11540 9744 8261 7030 6005 5147 4427 3820 3307 2872")


def meyer(x):
    t = 45 + 5 * np.arange(1, 17.0)
    return x[0] * jnp.exp(x[1] / (t + x[2])) - MEYER


def gulf(x):
    t = np.arange(1, 100.0) / 100
    y = 25 + (-50 * np.log(t)) ** (2 / 3)
    return jnp.exp(-(jnp.abs(y - x[1]) ** x[2]) / x[0]) - t


def box(x):
    t = 0.1 * np.arange(1, 11.0)
    return jnp.exp(-t * x[0]) - jnp.exp(-t * x[1]) - x[2] * (np.exp(-t) - np.exp(-10 * t))


def powell_singular(x):
    a, b, c, d = x.reshape(-1, 4).T
    return jnp.concatenate([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2])


def wood(x):
    a, b, c, d = x
    return jnp.stack(
        [
            10 * (b - a**2),
            1 - a,
            90**0.5 * (d - c**2),
            1 - c,
            10**0.5 * (b + d - 2),
            (b - d) / 10**0.5,
        ]
    )


KOWALIK_Y = numbers(".1957 .1947 .1735 .1600 .0844 .0627 .0456 .0342 .0323 .0235 .0246")
KOWALIK_U = numbers("4 2 1 .5 .25 .167 .125 .1 .0833 .0714 .0625")


def kowalik_osborne(x):
    u = KOWALIK_U
    return KOWALIK_Y - x[0] * (u**2 + u * x[1]) / (u**2 + u * x[2] + x[3])


def brown_dennis(x):
    t = np.arange(1, 21.0) / 5
    return (x[0] + t * x[1] - np.exp(t)) ** 2 + (x[2] + x[3] * np.sin(t) - np.cos(t)) ** 2


OSBORNE_1 = numbers(
    ".844 .908 .932 .936 .925 .908 .881 .850 .818 .784 .751 .718 .685 .658 .628 .603 .580 .558 .538 .522 .506 .490 "
    ".478 .467 .457 .448 .438 .431 .424 .420 .414 .411 .406"
)


def osborne_1(x):
    t = 10 * np.arange(33.0)
    return OSBORNE_1 - (x[0] + x[1] * jnp.exp(-t * x[3]) + x[2] * jnp.exp(-t * x[4]))


def biggs(x):
    t = 0.1 * np.arange(1, 14.0)
    y = np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t)
    return x[2] * jnp.exp(-t * x[0]) - x[3] * jnp.exp(-t * x[1]) + x[5] * jnp.exp(-t * x[4]) - y


OSBORNE_2 = numbers(
    "1.366 1.191 1.112 1.013 .991 .885 .831 .847 .786 .725 .746 .679 .608 .655 .616 .606 .602 .626 .651 .724 .649 .649 "
    ".694 .644 .624 .661 .612 .558 .533 .495 .500 .423 .395 .375 .372 .391 .396 .405 .428 .429 .523 .562 .607 .653 "
    ".672 .708 .633 .668 .645 .632 .591 .559 .597 .625 .739 .710 .729 .720 .636 .581 .428 .292 .162 .098 .054"
)


def osborne_2(x):
    t = np.arange(65.0) / 10
    peaks = [x[i] * jnp.exp(-((t - x[i + 7]) ** 2) * x[i + 4]) for i in (1, 2, 3)]
    return OSBORNE_2 - (x[0] * jnp.exp(-t * x[4]) + sum(peaks))


def watson(x):
    t = np.arange(1, 30.0)[:, None] / 29
    j = np.arange(x.size)
    slope = np.where(j > 0, j * t ** np.maximum(j - 1, 0), 0.0)
    rest = jnp.sum(slope * x, axis=1) - jnp.sum(t**j * x, axis=1) ** 2 - 1
    return jnp.concatenate([rest, jnp.stack([x[0], x[1] - x[0] ** 2 - 1])])


def penalty_1(x):
    return jnp.append(1e-5**0.5 * (x - 1), jnp.sum(x**2) - 0.25)


def penalty_2(x):
    n, a = x.size, 1e-5**0.5
    i = np.arange(2, n + 1)
    y = np.exp(i / 10) + np.exp((i - 1) / 10)
    middle = a * (jnp.exp(x[1:] / 10) + jnp.exp(x[:-1] / 10) - y)
    after = a * (jnp.exp(x[1:] / 10) - np.exp(-1 / 10))
    last = jnp.sum(np.arange(n, 0, -1.0) * x**2) - 1
    return jnp.concatenate([x[:1] - 0.2, middle, after, last[None]])


def variably_dimensioned(x):
    total = jnp.sum(np.arange(1.0, x.size + 1) * (x - 1))
    return jnp.concatenate([x - 1, jnp.stack([total, total**2])])


def trigonometric(x):
    i = np.arange(1.0, x.size + 1)
    return x.size - jnp.sum(jnp.cos(x)) + i * (1 - jnp.cos(x)) - jnp.sin(x)


def brown_almost_linear(x):
    return jnp.append(x[:-1] + jnp.sum(x) - (x.size + 1), jnp.prod(x) - 1)


def discrete_boundary_value(x):
    h = 1 / (x.size + 1)
    t = h * np.arange(1, x.size + 1)
    around = jnp.pad(x, 1)
    return 2 * x - around[:-2] - around[2:] + h**2 * (x + t + 1) ** 3 / 2


def discrete_integral_equation(x):
    h = 1 / (x.size + 1)
    t = h * np.arange(1, x.size + 1)
    kernel = np.where(t[None, :] <= t[:, None], (1 - t[:, None]) * t[None, :], t[:, None] * (1 - t[None, :]))
    return x + h / 2 * jnp.sum(kernel * (x + t + 1) ** 3, axis=1)


def broyden_tridiagonal(x):
    around = jnp.pad(x, 1)
    return (3 - 2 * x) * x - around[:-2] - 2 * around[2:] + 1


def broyden_banded(x):
    i = np.arange(x.size)
    gap = i[:, None] - i[None, :]
    band = ((gap <= 5) & (gap >= -1) & (gap != 0)).astype(float)
    return x * (2 + 5 * x**2) + 1 - jnp.sum(band * (x * (1 + x)), axis=1)


def linear_full_rank(x, m=20):
    return jnp.append(x, jnp.zeros(m - x.size)) - 2 / m * jnp.sum(x) - 1


def linear_rank_1(x, m=20):
    return np.arange(1.0, m + 1) * jnp.sum(np.arange(1.0, x.size + 1) * x) - 1


def linear_rank_1_with_zeros(x, m=20):
    inner = jnp.sum(np.arange(2.0, x.size) * x[1:-1])
    return jnp.concatenate([-jnp.ones(1), np.arange(1.0, m - 1) * inner - 1, -jnp.ones(1)])


def chebyquad(x):
    z = 2 * x - 1
    before, now = jnp.ones_like(z), z
    means = []
    for i in range(1, x.size + 1):
        means.append(jnp.mean(now) - (-1 / (i**2 - 1) if i % 2 == 0 else 0.0))
        before, now = now, 2 * z * now - before
    return jnp.stack(means)


def _tenths(n):
    t = np.arange(1, n + 1) / (n + 1)
    return t * (t - 1)


M = 20
PROBLEMS = [
    Problem("Rosenbrock", rosenbrock, np.array([-1.2, 1.0]), (0,)),
    Problem("Freudenstein-Roth", freudenstein_roth, np.array([0.5, -2.0]), (0, 48.98425367924)),
    Problem("Powell badly scaled", powell_badly_scaled, np.array([0.0, 1.0]), (0,)),
    Problem("Brown badly scaled", brown_badly_scaled, np.array([1.0, 1.0]), (0,)),
    Problem("Beale", beale, np.array([1.0, 1.0]), (0,)),
    Problem("Jennrich-Sampson", jennrich_sampson, np.array([0.3, 0.4]), (124.36218235561,)),
    Problem("Helical valley", helical_valley, np.array([-1.0, 0.0, 0.0]), (0,)),
    Problem("Bard", bard, np.ones(3), (8.21487730657e-3,)),
    Problem("Gaussian", gaussian, np.array([0.4, 1.0, 0.0]), (1.12793276961e-8,)),
    Problem("Meyer", meyer, np.array([0.02, 4000.0, 250.0]), (87.9458551708,)),
    Problem("Gulf", gulf, np.array([5.0, 2.5, 0.15]), (0,)),
    Problem("Box", box, np.array([0.0, 10.0, 20.0]), (0,)),
    Problem("Powell singular", powell_singular, np.array([3.0, -1.0, 0.0, 1.0]), (0,)),
    Problem("Wood", wood, np.array([-3.0, -1.0, -3.0, -1.0]), (0,)),
    Problem("Kowalik-Osborne", kowalik_osborne, np.array([0.25, 0.39, 0.415, 0.39]), (3.07505603849e-4,)),
    Problem("Brown-Dennis", brown_dennis, np.array([25.0, 5.0, -5.0, -1.0]), (85822.2016263563,)),
    Problem("Osborne 1", osborne_1, np.array([0.5, 1.5, -1.0, 0.01, 0.02]), (5.46489469748e-5,)),
    Problem("Biggs EXP6", biggs, np.array([1.0, 2.0, 1.0, 1.0, 1.0, 1.0]), (0, 5.65564992150e-3)),
    Problem(
        "Osborne 2",
        osborne_2,
        np.array([1.3, 0.65, 0.65, 0.7, 0.6, 3.0, 5.0, 7.0, 2.0, 4.5, 5.5]),
        (4.01377362935e-2,),
    ),
    Problem("Watson", watson, np.zeros(6), (2.28767005355e-3,)),
    Problem("Extended Rosenbrock", rosenbrock, np.tile([-1.2, 1.0], 10), (0,)),
    Problem("Extended Powell singular", powell_singular, np.tile([3.0, -1.0, 0.0, 1.0], 5), (0,)),
    Problem("Penalty I", penalty_1, np.arange(1, 11.0), (7.08765146709e-5,)),
    Problem("Penalty II", penalty_2, np.full(10, 0.5), (2.93660537458e-4,)),
    Problem("Variably dimensioned", variably_dimensioned, 1 - np.arange(1, 11) / 10, (0,)),
    Problem("Trigonometric", trigonometric, np.full(10, 0.1), (0, 2.79506122629e-5)),
    Problem("Brown almost linear", brown_almost_linear, np.full(10, 0.5), (0, 1)),
    Problem("Discrete boundary value", discrete_boundary_value, _tenths(10), (0,)),
    Problem("Discrete integral", discrete_integral_equation, _tenths(10), (0,)),
    Problem("Broyden tridiagonal", broyden_tridiagonal, np.full(10, -1.0), (0,)),
    Problem("Broyden banded", broyden_banded, np.full(10, -1.0), (0,)),
    Problem("Linear full rank", linear_full_rank, np.ones(10), (M - 10,)),
    Problem("Linear rank 1", linear_rank_1, np.ones(10), (M * (M - 1) / (2 * (2 * M + 1)),)),
    Problem("Linear rank 1, zeros", linear_rank_1_with_zeros, np.ones(10), ((M**2 + 3 * M - 6) / (2 * (2 * M - 3)),)),
    Problem("Chebyquad", chebyquad, np.arange(1, 9) / 9, (3.51687372568e-3,)),
]
