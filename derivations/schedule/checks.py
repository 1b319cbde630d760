"""Numeric checks of the laws of loss under a schedule, against the exact recursion of SGD."""

from __future__ import annotations

import numpy as np
import sympy

from derivations.compare import Call, same_numbers
from derivations.schedule.notation import CAPACITY, LAG, LEVEL, MEMORY, NOISE, RISK, SOURCE, SPEED, START, TAU
from odescale.symbolic.record import CheckResult
from odescale.symbolic.sgd import batch, eta, lam

A_TRUE, B_TRUE = 2.0, 1.5


def _recursion(
    rates: np.ndarray, modes: int, samples: float, noise: float, start: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(P after every step, lam) of the exact recursion on lam_k = k^-b; e_k(0) = k^-a or 0."""
    k = np.arange(1, modes + 1.0)
    values = k**-B_TRUE
    e = k**-A_TRUE if start else np.zeros(modes)
    out = np.empty(rates.size + 1)
    out[0] = noise + e.sum()
    for r, h in enumerate(rates):
        e = (1 - 2 * h * values + h**2 * (1 + 1 / samples) * values**2) * e + h**2 / samples * values**2 * out[r]
        out[r + 1] = noise + e.sum()
    return out, values


def slow(decay: sympy.Expr, drive: sympy.Expr) -> CheckResult:
    """One mode over 2000 steps of the recursion at eta = 1e-4 against the equation in tau."""
    rate, value, size, noise, steps = 1e-4, 0.7, 3.0, 1.0, 2000
    e = 0.4
    for _ in range(steps):
        e = (1 - 2 * rate * value + rate**2 * (1 + 1 / size) * value**2) * e + rate**2 / size * value**2 * noise
    numbers = {lam: value, eta: rate, batch: size, RISK: noise}
    a, b = float(decay.subs(numbers)), float(drive.subs(numbers))
    tau = rate * steps
    expected = 0.4 * np.exp(-a * tau) + b / a * -np.expm1(-a * tau)
    return CheckResult(abs(expected / e - 1), 1e-4, "one mode of SGD at eta = 1e-4, relative error")


def volterra(kernel: sympy.Expr) -> CheckResult:
    """P of SGD with label noise through a cosine and a step-down against the equation by the trapezoidal rule."""
    steps, size, noise = 1500, 4.0, 1.0
    rates = 2e-2 * np.where(np.arange(steps) < 1000, 0.6 + 0.4 * np.cos(np.arange(steps) / 300), 0.25)
    risk, values = _recursion(rates, 200, size, noise, start=True)
    tau = np.concatenate([[0.0], np.cumsum(rates)])
    shape = sympy.lambdify((TAU, lam, batch), kernel, "numpy")
    free = noise + np.exp(-2 * np.outer(tau, values)) @ np.arange(1, 201.0) ** -A_TRUE
    own = np.empty(steps + 1)
    own[0] = free[0]
    for r in range(1, steps + 1):
        # Weights eta dtau: exact for a rate constant during the step, P at its beginning.
        lag = tau[r] - 0.5 * (tau[:r] + tau[1 : r + 1])
        own[r] = free[r] + np.sum(rates[:r] ** 2 * own[:r] * np.sum(shape(lag[:, None], values, size), axis=1))
    return CheckResult(float(np.max(np.abs(own / risk - 1))), 5e-3, "P of SGD through a changing rate, relative error")


def bias(exponent: sympy.Expr, amplitude: sympy.Expr) -> CheckResult:
    """sum_k k^-a exp(-2 tau k^-b) over 2e6 modes at tau = 1e3 against A tau^-alpha, and the same from SGD at eta = .02."""
    k = np.arange(1, 2_000_001.0)
    numbers = {SOURCE: A_TRUE, CAPACITY: B_TRUE}
    alpha, top = float(exponent.subs(numbers)), float(amplitude.subs(numbers))
    direct = float(np.sum(k**-A_TRUE * np.exp(-2e3 * k**-B_TRUE)))
    error = abs(top * 1e3**-alpha / direct - 1)
    return CheckResult(error, 1e-2, "sum over a power-law spectrum at tau = 1e3, relative error")


def memory(exponent: sympy.Expr) -> CheckResult:
    """Local exponent of sum_k lam_k exp(-2 lam_k tau) over 2e6 modes at tau = 1e3 against beta."""
    values = np.arange(1, 2_000_001.0) ** -B_TRUE
    beta = float(exponent.subs(CAPACITY, B_TRUE))
    ends = [float(np.sum(values * np.exp(-2 * t * values))) for t in (900.0, 1100.0)]
    found = -np.log(ends[1] / ends[0]) / np.log(1100 / 900)
    return CheckResult(abs(found - beta), 1e-2, "exponent of the noise kernel's tail")


def step_down(response: sympy.Expr) -> CheckResult:
    """The noise of SGD on a power-law spectrum from rest through a step-down against B int (1 - response) d eta; nothing is fitted.

    Level sum lam P/(2 batch); C such that the tail is that of the spectrum, Gamma(beta) (2 tau)^-beta/b.
    """
    from scipy.special import gamma

    size, noise, first, low = 2.0, 1.0, 1500, 0.3
    rates = 2e-2 * np.where(np.arange(2 * first) < first, 1.0, low)
    risk, values = _recursion(rates, 30_000, size, noise, start=False)
    tau = np.concatenate([[0.0], np.cumsum(rates)])
    beta = 1 - 1 / B_TRUE
    speed = 2 * (B_TRUE * np.sum(values) / gamma(beta)) ** (1 / beta)
    answer = sympy.lambdify((LAG, SPEED, MEMORY), 1 - response, "numpy")
    level = np.sum(values) / (2 * size) * noise
    since = np.maximum(tau - tau[first], 0.0)
    expected = level * 2e-2 * (answer(tau, speed, beta) - (1 - low) * answer(since, speed, beta))
    left = risk - noise
    error = float(np.max(np.abs(left - expected)[10:]) / left.max())
    return CheckResult(error, 0.1, "noise of SGD through a step-down, error over its largest value")


def one_mode(exact: sympy.Expr, slope: sympy.Expr) -> CheckResult:
    """The exact step against the ODE integrated numerically."""
    from scipy.integrate import solve_ivp

    numbers = {SPEED: 30.0, LEVEL: 400.0, eta: 3e-4, START: 0.2}
    right = sympy.lambdify(NOISE, slope.subs(numbers), "numpy")
    course = solve_ivp(lambda t, n: right(n), (0, 0.07), [0.2], rtol=1e-12, atol=1e-14, method="DOP853")
    expected = float(exact.subs({**numbers, LAG: 0.07}))
    return CheckResult(
        abs(float(course.y[0, -1]) / expected - 1), 1e-9, "one relaxing mode at a constant rate, relative error"
    )


def compare_modules(on_disk: str, derived: str) -> str:
    """Empty when the two module texts give the same numbers, else one line that names the function."""
    return same_numbers(on_disk, derived, _calls)


def _calls() -> list[Call]:
    calls: dict[str, tuple] = {
        "bias_power": (2.0, 0.4), "noise_decay": (0.1, 30.0), "noise_memory": (0.3, 30.0, 0.7),
        "noise_slope": (0.1, 3e-4, 30.0, 400.0),
        "bias_exponent": (2.0, 1.5), "memory_exponent": (1.5,),
        "best_rate_at_lag": (0.3, 1e-3, 30.0, 0.7), "best_rate_left": (400.0, 1e-3, 30.0, 0.7),
        "step_price": (1e-3, 30.0, 0.7, 400.0), "easy_exponent": (0.9, 0.7), "peak_exponent": (0.9, 0.7),
        "share_exponent": (0.3, 0.7),
    }  # fmt: skip
    return [*calls.items()]
