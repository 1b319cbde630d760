"""Numeric checks of the best schedule: against direct minimisation over staircases, quadrature, and slopes at large horizons."""

from __future__ import annotations

import numpy as np
import sympy

from derivations.schedule.notation import ALPHA, HORIZON, LAG, LAST, LEFT, LEVEL, MEMORY, SHAPE, SPEED
from odescale.symbolic.record import CheckResult

A, B, C = 1.0, 2.0, 5.0


def _noise(rate: np.ndarray, width: np.ndarray, memory: float) -> tuple[float, float]:
    """(n, T) of a staircase, its last stair last: B sum eta ((1 + C s_end)^-m - (1 + C s_begin)^-m), exact."""
    lag = np.concatenate([np.cumsum((rate * width)[::-1])[::-1], [0.0]])
    answer = (1 + C * lag) ** -memory
    return float(B * np.sum(rate * np.diff(answer))), float(lag[0])


def _direct(alpha: float, memory: float, steps: float, top: float) -> float:
    """Least A T^-alpha + n over staircases below `top`, by L-BFGS from three starts; no multiplier, no intrinsic time."""
    from scipy.optimize import minimize

    left = np.concatenate([np.geomspace(steps, steps * 1e-4, 100), [0.0]])
    width = -np.diff(left)

    def loss(log_rate: np.ndarray) -> tuple[float, np.ndarray]:
        rate = np.exp(log_rate)
        tau = rate * width
        lag = np.concatenate([np.cumsum(tau[::-1])[::-1], [0.0]])
        answer, slope = (1 + C * lag) ** -memory, -C * memory * (1 + C * lag) ** (-memory - 1)
        value = A * lag[0] ** -alpha + B * np.sum(rate * np.diff(answer))
        # A stair moves every lag that begins at it or before.
        pull = B * (np.concatenate([[0.0], rate[:-1]]) - rate) * slope[:-1]
        moved = np.cumsum(pull) - A * alpha * lag[0] ** (-alpha - 1)
        return value, rate * (B * np.diff(answer) + width * moved)

    best = np.inf
    for power in (0.3, 1.0, 2.0):
        start = np.log(top * np.maximum((left[:-1] / steps) ** power, 1e-6))
        found = minimize(loss, start, jac=True, bounds=[(np.log(top) - 30, np.log(top))] * width.size, method="L-BFGS-B",
                         options={"maxiter": 3000, "ftol": 1e-14, "gtol": 1e-12, "maxfun": 6000})  # fmt: skip
        best = min(best, float(found.fun))
    return best


def closed(
    best: sympy.Expr, count: sympy.Expr, alpha: float, memory: float, steps: float, top: float
) -> tuple[float, float, float]:
    """(loss, peak, share of the decay) of the family in its one number c, on a grid of log c refined three times."""
    numbers = {SPEED: C, MEMORY: memory}
    rate = sympy.lambdify((LAG, LAST), best.subs(numbers), "numpy")
    taken = sympy.lambdify((LAG, LAST), count.subs(numbers), "numpy")
    low, high = np.log(top) - 60, np.log(top)
    for _ in range(4):
        c = np.exp(np.linspace(low, high, 2001))
        # The bound is met at u, or the steps end before.
        bound = ((top / c) ** (2 / (memory + 1)) - 1) / C
        free = taken(bound, c) > steps
        reached = np.expm1(2 / (1 - memory) * np.log1p(c * C * (1 - memory) * steps / 2)) / C
        lag = np.where(free, reached, bound)
        used = np.where(free, steps, taken(bound, c))
        end = np.where(free, lag, bound + top * (steps - used))
        flat = np.where(free, 0.0, B * top * ((1 + C * lag) ** -memory - (1 + C * end) ** -memory))
        loss = A * end**-alpha + B * C * memory * c**2 * used + flat
        i = int(np.argmin(loss))
        step = (high - low) / 2000
        low, high = np.log(c[i]) - 2 * step, min(np.log(c[i]) + 2 * step, np.log(top))
    return float(loss[i]), float(np.minimum(rate(lag[i], c[i]), top)), float(used[i] / steps)


def best_rate(best: sympy.Expr, count: sympy.Expr) -> CheckResult:
    """The best of the family against free staircases, in both phases and at their border; loss."""
    errors = []
    for alpha, memory, steps in ((1.0, 1 / 3, 3e3), (0.3, 0.6, 1e3), (0.5, 0.5, 1e3)):
        own = closed(best, count, alpha, memory, steps, 0.2)[0]
        errors.append(_direct(alpha, memory, steps, 0.2) / own - 1)
    return CheckResult(float(np.max(np.abs(errors))), 2e-3, "loss of the best staircase against the closed form")


def power_decay(rate: sympy.Expr) -> CheckResult:
    """eta with r steps left against ds/dr = c (1 + C s)^((m + 1)/2) by Runge-Kutta."""
    from scipy.integrate import solve_ivp

    c, memory = 1e-3, 0.4
    course = solve_ivp(
        lambda r, s: c * (1 + C * s) ** ((memory + 1) / 2), (0, 5e3), [0.0], rtol=1e-11, atol=1e-13, method="DOP853"
    )
    found = c * (1 + C * course.y[0, -1]) ** ((memory + 1) / 2)
    expected = float(rate.subs({LAST: c, SPEED: C, MEMORY: memory, LEFT: 5e3}))
    return CheckResult(abs(found / expected - 1), 1e-8, "rate with 5000 steps left, relative error")


def decay_noise(noise: sympy.Expr, rate: sympy.Expr) -> CheckResult:
    """The noise of a fine staircase along the decay against mu r."""
    c, memory, steps = 1e-3, 0.4, 5e3
    left = np.concatenate([np.geomspace(steps, 1e-3 * steps, 20_000), [0.0]])
    numbers = {LAST: c, SPEED: C, MEMORY: memory}
    rates = sympy.lambdify(LEFT, rate.subs(numbers), "numpy")(0.5 * (left[1:] + left[:-1]))
    found = _noise(rates, -np.diff(left), memory)[0]
    expected = float(noise.subs({**numbers, LEVEL: B, LEFT: steps}))
    return CheckResult(abs(found / expected - 1), 1e-4, "noise of a decay of 5000 steps, relative error")


def _slopes(best: sympy.Expr, count: sympy.Expr, alpha: float, memory: float) -> tuple[float, float, float]:
    """Local exponents in N of (loss, peak, share) of the exact family between N = 1e16 and 1e17."""
    low, high = 1e16, 1e17
    ends = [np.log(closed(best, count, alpha, memory, n, 0.2)) for n in (low, high)]
    first, second, third = (ends[1] - ends[0]) / np.log(high / low)
    return float(first), float(second), float(third)


def easy(best: sympy.Expr, count: sympy.Expr, loss: sympy.Expr, peak: sympy.Expr) -> CheckResult:
    """Slopes of the exact family between N = 1e16 and 1e17 at alpha = 1, beta = 1/3."""
    numbers = {ALPHA: 1.0, MEMORY: 1 / 3}
    found = _slopes(best, count, 1.0, 1 / 3)
    errors = (found[0] + float(loss.subs(numbers)), found[1] - float(peak.subs(numbers)))
    return CheckResult(float(np.max(np.abs(errors))), 2e-3, "exponents of loss and peak without a bound")


def hard(best: sympy.Expr, count: sympy.Expr, share: sympy.Expr) -> CheckResult:
    """Slopes between N = 1e16 and 1e17 at alpha = .2, beta = .6: loss N^-alpha, the share of the decay."""
    found = _slopes(best, count, 0.2, 0.6)
    errors = (found[0] + 0.2, found[2] - float(share.subs({ALPHA: 0.2, MEMORY: 0.6})))
    return CheckResult(float(np.max(np.abs(errors))), 4e-3, "exponents of loss and share under a bound")


def fixed_shapes(tuned: sympy.Expr, kept: sympy.Symbol) -> CheckResult:
    """Slopes in N, peaks tuned on a grid, of constant, linear, cubic and cosine decays at alpha = 1, beta = .6 and .3."""
    worst = 0.0
    lag = np.concatenate([[0.0], np.geomspace(1e-30, 1.0, 4001)])
    for memory, gamma in ((0.6, 0.0), (0.6, 1.0), (0.6, 3.0), (0.3, 1.0)):
        g = gamma / (gamma + 1)
        ends = []
        for steps in (1e17, 1e18):
            # eta = h (s/T)^g on stairs in s: T = h N/(gamma + 1).
            end = np.geomspace(steps**0.3, steps, 1500)[:, None]
            middle = 0.5 * (lag[1:] + lag[:-1])
            noise = np.sum(middle**g * -np.diff((1 + C * lag * end) ** -memory, axis=1), axis=1)
            loss = A * end[:, 0] ** -1.0 + B * (gamma + 1) * end[:, 0] / steps * noise
            ends.append(np.log(loss.min()))
        expected = float(tuned.subs({ALPHA: 1.0, kept: min(memory, g)}).subs({HORIZON: 1, SHAPE: gamma}))
        worst = max(worst, abs((ends[0] - ends[1]) / np.log(10) - expected))
    return CheckResult(worst, 5e-3, "exponents of tuned constant, linear and cubic decays")
