"""Numeric checks of SGD on a spectrum: each against something that does not use the formula."""

from __future__ import annotations

import numpy as np
import sympy

from derivations.compare import Call, same_numbers
from derivations.spectral.notation import (
    AVERAGE,
    CROSS,
    DELTA,
    EXCESS,
    MODE,
    MOMENTUM,
    NOISE,
    RISK,
    SHRINK,
    SPEED,
    SPREAD,
    SQUARE,
)
from odescale.symbolic.record import CheckResult
from odescale.symbolic.sgd import batch, eta, lam

SPECTRUM = np.array([1.7, 0.9, 0.4, 0.1])
START = np.array([0.8, -1.1, 1.9, -2.5])
RATE, SIZE_OF_BATCH, LABEL_NOISE, HEAVY = 0.35, 3, 0.6, 0.7


def numbers(k: int) -> dict[sympy.Basic, float]:
    """Values of the symbols for mode k of the setting of these checks."""
    excess = float(SPECTRUM @ START**2)
    return {
        lam: SPECTRUM[k], DELTA: START[k], EXCESS: excess, NOISE: LABEL_NOISE, RISK: excess + LABEL_NOISE,
        eta: RATE, batch: SIZE_OF_BATCH, MODE: START[k] ** 2, MOMENTUM: HEAVY,
    }  # fmt: skip


def _gradients(samples: int, size: int, seed: int) -> np.ndarray:
    """(samples, modes): batch means of x (x.delta - xi) at the weights `START`."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, size, SPECTRUM.size)) * SPECTRUM**0.5
    residual = x @ START - LABEL_NOISE**0.5 * rng.standard_normal((samples, size))
    return np.einsum("nbk,nb->nk", x, residual) / size


def _worst_z(samples: np.ndarray, expected: np.ndarray) -> float:
    error = samples.std(axis=0, ddof=1) / len(samples) ** 0.5
    return float(np.max(np.abs(samples.mean(axis=0) - expected) / error))


def _values(expression: sympy.Expr) -> np.ndarray:
    return np.array([float(expression.subs(numbers(k))) for k in range(SPECTRUM.size)])


def sample(mean: sympy.Expr, square: sympy.Expr) -> CheckResult:
    """Both moments against samples, in four modes."""
    drawn = _gradients(400_000, 1, seed=1)
    z = max(_worst_z(drawn, _values(mean)), _worst_z(drawn**2, _values(square)))
    return CheckResult(z, 4.0, "moments of one sample in four modes, z-score")


def one_step(growth: sympy.Expr, force: sympy.Expr) -> CheckResult:
    """rho after one SGD step with batches of three against simulation."""
    after = (START - RATE * _gradients(400_000, SIZE_OF_BATCH, seed=4)) ** 2
    return CheckResult(
        _worst_z(after, _values(growth * MODE + force * RISK)), 4.0, "one SGD step in four modes, z-score"
    )


def _rates(rate: sympy.Expr, drive: sympy.Expr, growth: sympy.Expr) -> tuple[np.ndarray, np.ndarray]:
    shrink = 1 - growth
    return _values(rate.subs(SHRINK, shrink)), _values(drive.subs(SHRINK, shrink))


def log_rate(growth: sympy.Expr, force: sympy.Expr, rate: sympy.Expr, drive: sympy.Expr) -> CheckResult:
    """The ODE integrated over one step at constant P against G rho + c P."""
    from scipy.integrate import solve_ivp

    a, b = _rates(rate, drive, growth)
    risk = numbers(0)[RISK]
    course = solve_ivp(lambda t, y: -a * y + b * risk, (0, 1), START**2, rtol=1e-12, atol=1e-14, method="DOP853")
    expected = _values(growth * MODE + force * RISK)
    error = np.max(np.abs(course.y[:, -1] / expected - 1))
    return CheckResult(float(error), 1e-9, "one step of the ODE against the recursion, relative error")


def volterra(
    growth: sympy.Expr, force: sympy.Expr, rate: sympy.Expr, drive: sympy.Expr, mass: sympy.Expr
) -> CheckResult:
    """P from the Volterra equation by the trapezoidal rule, extrapolated, against the ODE; kappa against P_inf of the recursion."""
    from scipy.integrate import solve_ivp

    a, b = _rates(rate, drive, growth)
    end = 6.0

    def quadrature(count: int) -> float:
        times = np.linspace(0, end, count + 1)
        h = end / count
        free = LABEL_NOISE + np.exp(-np.outer(times, a)) @ (SPECTRUM * START**2)
        kernel = np.exp(-np.outer(times, a)) @ (SPECTRUM * b)
        risk = np.empty(count + 1)
        risk[0] = free[0]
        for n in range(1, count + 1):
            past = kernel[n] * risk[0] / 2 + kernel[n - 1 : 0 : -1] @ risk[1:n]
            risk[n] = (free[n] + h * past) / (1 - h * kernel[0] / 2)
        return risk[-1]

    coarse, fine = quadrature(400), quadrature(800)
    course = solve_ivp(
        lambda t, y: -a * y + b * (LABEL_NOISE + SPECTRUM @ y),
        (0, end),
        START**2,
        rtol=1e-11,
        atol=1e-13,
        method="DOP853",
    )
    expected = LABEL_NOISE + SPECTRUM @ course.y[:, -1]
    error = abs((4 * fine - coarse) / 3 / expected - 1)
    growths, forces, rho = _values(growth), _values(force), START**2
    for _ in range(3000):
        rho = growths * rho + forces * (LABEL_NOISE + SPECTRUM @ rho)
    floor = LABEL_NOISE / (1 - np.sum(_values(mass)))
    return CheckResult(
        float(max(error, abs((LABEL_NOISE + SPECTRUM @ rho) / floor - 1))),
        1e-6,
        "Volterra form against the ODE and s^2/(1 - kappa) against the recursion, relative error",
    )


def small_rate(rate: sympy.Expr, drive: sympy.Expr, growth: sympy.Expr, small: sympy.Expr) -> CheckResult:
    """The kernel at eta = 1e-6 against its leading order, which must differ by a share of order eta."""
    time, tiny = 0.8, 1e-6
    values = [{**numbers(k), eta: tiny, sympy.Symbol("t", positive=True): time} for k in range(SPECTRUM.size)]
    shrink = 1 - growth
    exact = [
        float((lam * drive / eta * sympy.exp(-rate * time / eta)).subs(SHRINK, shrink).evalf(30, subs=v))
        for v in values
    ]
    limit = [float(small.evalf(30, subs=v)) for v in values]
    return CheckResult(float(np.max(np.abs(np.array(exact) / limit - 1))), 1e-5, "kernel at eta = 1e-6, relative error")


def momentum(
    mode: sympy.Expr,
    cross: sympy.Expr,
    speed: sympy.Expr,
    mass: sympy.Expr,
    growth: sympy.Expr,
    force: sympy.Expr,
    plain_mass: sympy.Expr,
) -> CheckResult:
    """One heavy-ball step from given weights and velocities against simulation; beta = 0 against plain SGD."""
    plain = [mode.subs(MOMENTUM, 0) - growth * MODE - force * RISK, mass.subs(MOMENTUM, 0) - plain_mass]
    if any(sympy.simplify(e.subs({CROSS: 0, SPEED: 0})) != 0 for e in plain):
        return CheckResult(np.inf, 4.0, "momentum beta = 0 is not plain SGD")
    velocity = np.array([0.5, -0.3, 0.2, 0.9])
    after = HEAVY * velocity - RATE * _gradients(400_000, SIZE_OF_BATCH, seed=3)
    weight = START + after
    z = 0.0
    for expression, drawn in ((mode, weight**2), (cross, weight * after), (speed, after**2)):
        expected = [
            float(expression.subs({**numbers(k), CROSS: START[k] * velocity[k], SPEED: velocity[k] ** 2}))
            for k in range(4)
        ]
        z = max(z, _worst_z(drawn, np.array(expected)))
    return CheckResult(z, 4.0, "one heavy-ball step in four modes, z-score")


def stored(mean: sympy.Expr, variance: sympy.Expr, growth: sympy.Expr, force: sympy.Expr) -> CheckResult:
    """Three samples, one weight: every draw of two steps of batches of two; Gaussian Q against the recursion."""
    z, target, rate = np.array([1.0, -0.5, 2.0]), np.array([0.3, 0.4, -0.2]), 0.1
    sigma = float(np.mean(z**2))
    best = float(np.mean(z * target)) / sigma
    weights, m, D = np.zeros(1), -best, 0.0
    values = {lam: sigma, eta: rate, batch: 2}
    for _ in range(2):
        residual = (m * z - (target - best * z)) ** 2 + z**2 * D
        values |= {AVERAGE: m, SPREAD: D, SQUARE: float(np.mean(z**2 * residual))}
        m, D = float(mean.subs(values)), float(variance.subs(values))
        steps = z * (z * weights[:, None] - target)
        weights = (weights[:, None, None] - rate / 2 * (steps[:, :, None] + steps[:, None, :])).ravel()
    error = max(abs(weights.mean() - best - m), abs(weights.var() - D))
    gaussian = (variance + mean**2).subs(SQUARE, lam * RISK + 2 * lam**2 * (AVERAGE**2 + SPREAD))
    left = sympy.expand(gaussian - growth * (AVERAGE**2 + SPREAD) - force * RISK)
    return CheckResult(
        error if left == 0 else np.inf, 1e-14, "mean and variance over every draw of two steps, absolute error"
    )


def compare_modules(on_disk: str, derived: str) -> str:
    """Empty when the two module texts give the same numbers, else one line that names the function."""
    return same_numbers(on_disk, derived, _calls)


def _calls() -> list[Call]:
    calls: dict[str, tuple] = {
        "shrinkage": (0.7, 0.3, 2.0), "force": (0.49, 0.3, 2.0), "log_rate": (0.3,), "kernel_mass": (0.7, 0.49, 0.3, 2.0),
        "momentum_step": (0.5, 0.1, 0.2, 1.5, 0.7, 0.3, 2.0, 0.8), "momentum_mass": (0.7, 0.3, 2.0, 0.8),
        "stored_step": (0.5, 0.1, 0.3, 0.7, 0.3, 2.0),
    }  # fmt: skip
    return [*calls.items()]
