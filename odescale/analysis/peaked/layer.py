r"""The boundary layer's own numbers: Delta_inf, the best constant rate, and the powers of t that the balances give.

2 Delta = (eta/B) S(Delta), S = 2 E softplus(sqrt(2 Delta) xi) - 1, for every number of classes; exponents as functions of the
schedules' powers, the same as those that `derivations/peaked/escapes.py` finds with conditions on the powers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq, minimize_scalar

from odescale.errors import InputError
from odescale.generated import peaked as formulas


class Exponents(NamedTuple):
    """Powers of t: loss and error fall, beta D and beta^2 Delta grow with these."""

    loss: float
    error: float
    overlap: float
    spread: float


class BestRate(NamedTuple):
    """eta/B that minimises the late loss of SGD on hard labels, its Delta_inf, and kappa^2 B/(eta m^2) there."""

    ratio: float
    spread: float
    constant: float


def softplus_mean(spread: float) -> float:
    """E log(1 + exp(sqrt(2 Delta) xi)), xi standard normal, for Delta >= 0, to 1e-13: the trapezium rule is exponentially exact."""
    a = np.sqrt(2 * spread)
    # softplus(y) has its poles at +- i pi: the step resolves them, the positive part is integrated by hand.
    half = np.sqrt(2 * np.pi)
    if a > 30:
        y, w = np.polynomial.legendre.leggauss(80)
        y, w = 22.5 * (y + 1), 22.5 * w
        return float(a / half + 2 / (a * half) * w @ (np.exp(-0.5 * (y / a) ** 2) * np.log1p(np.exp(-y))))
    step = min(0.1, 0.6 / max(a, 1e-3))
    xi = np.arange(-9.0, 9.0 + step, step)
    return float(step / half * np.exp(-0.5 * xi**2) @ np.logaddexp(0.0, a * xi))


@lru_cache(maxsize=1)
def softplus_table() -> Callable[[np.ndarray], np.ndarray]:
    """`softplus_mean` of many spreads at once, to 1e-9: a cubic spline of its logarithm in log(1e-6 + Delta)."""
    knots = np.linspace(np.log(1e-6), np.log(1e13), 2000)
    values = np.log([softplus_mean(max(x, 0.0)) for x in np.exp(knots) - 1e-6])
    spline = CubicSpline(knots, values)
    return lambda spread: np.exp(spline(np.log(1e-6 + np.asarray(spread))))


def stationary_spread(ratio: float) -> float:
    r"""Delta_inf: 2 Delta = (eta/B)(2 E softplus(sqrt(2 Delta) xi) - 1), `ratio` = eta/B >= 0, hard labels, any K >= 2.

    Units: of the squared logits. At small eta/B it is (eta/B)(ln 4 - 1)/2, at large (eta/B)^2/pi. Raises `InputError`.
    """
    if not (np.isfinite(ratio) and ratio >= 0):
        raise InputError("ratio", expected="eta/B, a finite number >= 0", got=ratio, remedy="pass eta and batch > 0")
    if ratio == 0:
        return 0.0

    def residual(log_spread: float) -> float:
        x = np.exp(log_spread)
        return float(formulas.stationary_spread_residual(x, ratio, 1.0, softplus_mean(x))) / x  # type: ignore[arg-type]

    upper = np.log(10 * (ratio + ratio**2))
    return float(np.exp(brentq(residual, np.log(1e-3 * ratio), upper, xtol=1e-13)))


def best_learning_rate() -> BestRate:
    r"""The constant eta/B with the least late loss: min over r of kappa(Delta_inf(r))^2/r, since L^3 alpha ~ kappa^2/eta.

    One number for every K, batch and start. At a batch B, eta = ratio B; per sample the smallest batch is the best.
    """

    def cost(log_ratio: float) -> float:
        ratio = float(np.exp(log_ratio))
        kappa = float(formulas.layer_drift(1.0, stationary_spread(ratio)))  # type: ignore[arg-type]
        return kappa**2 / ratio

    done = minimize_scalar(cost, bounds=(-3.0, 5.0), method="bounded", options={"xatol": 1e-8})
    ratio = float(np.exp(done.x))
    return BestRate(ratio, stationary_spread(ratio), float(done.fun))


def sgd_exponents(decay: float = 0.0, heating: float = 0.0, *, noise: bool = True) -> Exponents:
    r"""SGD on hard labels with eta ~ t^-g (`decay` g < 1, negative: growing) and beta ~ t^h (`heating` 0 <= h < 1).

    eta_e = beta^2 eta ~ t^e, e = 2 h - g. Delta_e follows it, as eta_e (e <= 0) or as eta_e^2 (e > 0, then kappa ~ Delta_e/2);
    D^3 ~ int eta kappa/beta, or D at rest where that integral converges; L ~ kappa/D_e, error ~ sqrt(Delta_e)/D_e.
    """
    e = 2 * heating - decay
    spread = (e if e <= 0 else 2 * e) if noise else 0.0
    kappa = max(spread, 0.0)
    overlap = heating + max(0.0, (1 - decay - heating + kappa) / 3)
    return Exponents(overlap - kappa, overlap - spread / 2 if noise else np.nan, overlap, spread)


def adam_exponents(decay: float = 0.0, *, late: bool = True) -> Exponents:
    r"""Adam, and normalised steps with noise, at a rate ~ t^-g: v = G/(K B) ~ 1/D while the spread is small (`late` False).

    Small spread: D^(5/2) ~ int rate, Delta ~ rate sqrt(D). Late and g < 1/6 the spread grows, S ~ sqrt(Delta), kappa ~ Delta/2:
    Delta ~ rate^(4/3) D^(2/3) and D^2 ~ int rate^2. For g > 1/6 the small spread stays.
    """
    if late and decay < 1 / 6:
        overlap = (1 - 2 * decay) / 2
        spread = -4 * decay / 3 + 2 * overlap / 3
        return Exponents(overlap - spread, overlap - spread / 2, overlap, spread)
    overlap = 2 * (1 - decay) / 5
    spread = -decay + overlap / 2
    return Exponents(overlap, overlap - spread / 2, overlap, spread)


def decay_exponent(power: float = 1.0) -> float:
    r"""1/3 + 2p/(3(p + 1)): exponent in T of loss and error at the end of runs with eta = eta_0 (1 - t/T)^p, eta_0 the best for T.

    Before the decay D ~ eta_0 T^(1/3), Delta ~ eta_0^2. With u = T - t left Delta follows while u eta m/D >> 1, down to
    (u/T)^(p+1) ~ T^(-2/3), whatever eta_0. It should be of order one there: eta_0 ~ T^(2p/(3(p+1))). `power` p > 0; 2/3 for a
    linear decay. A constant eta_0 leaves 1/3.
    """
    return 1 / 3 + 2 * power / (3 * (power + 1))
