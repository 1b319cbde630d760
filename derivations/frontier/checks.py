"""Numeric checks of the frontier: brute force on R and C alone, by zooming grids or mpmath, never through a multiplier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import sympy
from scipy.optimize import brentq, minimize_scalar

from derivations.compare import Call, same_numbers
from derivations.frontier.laws import Powers, Size
from derivations.frontier.notation import (
    ALPHA,
    BUDGET,
    CAPACITY,
    COST,
    DECAY,
    LOG_SCALE,
    MU,
    RAPIDITY,
    RATE,
    SOURCE,
    TIME,
    TIME_COST,
    A,
    S,
)
from derivations.frontier.phases import Phase
from odescale.symbolic.record import CheckResult

AMPLITUDES, EXPONENTS, COSTS = np.array([1.3, 0.7]), np.array([0.45, 0.6]), np.array([2.0, 1.0])
D0, RATE0, TIME_COST0 = 50.0, 0.8, 1.0
EXAMPLE = np.array([1.0, 1.0]), np.array([0.5, 0.5]), np.array([100.0, 1000.0])
"""A, alpha and floors of the worked example; costs, D, lam and q_t are those above."""
EXAMPLE_TIME, EXAMPLE_COMPUTE = 12.36587, 1.23659e8


def zoom(
    function: Callable[[np.ndarray], np.ndarray], lower: Any, upper: Any, rounds: int = 90
) -> tuple[np.ndarray, float]:
    """Argument and value of the least value in a box: grids of 15 points per axis, each 0.7 times as wide, around the best."""
    lower, upper = np.asarray(lower, float), np.asarray(upper, float)
    centre, half = (lower + upper) / 2, (upper - lower) / 2
    points = 81
    for _ in range(rounds):
        axes = [np.clip(np.linspace(c - h, c + h, points), low, high)
                for c, h, low, high in zip(centre, half, lower, upper, strict=True)]  # fmt: skip
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, lower.size)
        values = function(grid)
        best = int(np.argmin(values))
        centre, points, half = grid[best], 15, half * (0.7 if points == 15 else 0.1)
    return centre, float(values[best])


def minimum(log_budget: float, amplitudes: np.ndarray, exponents: np.ndarray, floors: Any = None) -> tuple[Any, ...]:
    """(X, u, R) least at b = log C/c over the log sizes; the time takes what is left. D, lam, q, q_t are those above."""

    def risk(X: np.ndarray) -> np.ndarray:
        u = (log_budget - X @ COSTS) / TIME_COST0
        return (amplitudes * np.exp(-exponents * X)).sum(axis=-1) + D0 * np.exp(-RATE0 * np.exp(u))

    lower = np.zeros(2) if floors is None else np.log(floors)
    # lam t > 1: the minimum that training reaches, apart from not to train at all.
    upper = np.maximum((log_budget + np.log(RATE0) - lower[::-1] * COSTS[::-1]) / COSTS, lower + 1e-9)

    def trained(X: np.ndarray) -> np.ndarray:
        return np.where((log_budget - X @ COSTS) / TIME_COST0 > -np.log(RATE0), risk(X), np.inf)

    X, value = zoom(trained, lower, upper)
    return X, (log_budget - X @ COSTS) / TIME_COST0, value


def _numbers(amplitude: float, exponent: float, cost: float) -> dict:
    return {A: amplitude, ALPHA: exponent, COST: cost}


def lagrange(size: Size) -> CheckResult:
    """x, its share and what it spends against the least A e^(-alpha X) + mu q X in 30 digits."""
    off = 0.0
    with mpmath.workdps(30):
        for given in ((1.3, 0.45, 2.0, 1e-3), (0.2, 1.7, 0.5, 1e-6)):
            a, alpha, q, mu = map(mpmath.mpf, given)
            start = minimize_scalar(lambda X, g=given: g[0] * np.exp(-g[1] * X) + g[3] * g[2] * X, bracket=(0, 1)).x
            X = mpmath.findroot(
                lambda x, v=(a, alpha, q, mu): mpmath.diff(lambda z: v[0] * mpmath.exp(-v[1] * z) + v[3] * v[2] * z, x), start
            )  # fmt: skip
            values = {**_numbers(*given[:3]), MU: given[3]}
            pairs = (
                (size.value, mpmath.exp(X)),
                (size.share, a * mpmath.exp(-alpha * X)),
                (size.log_scale - size.slope * sympy.log(MU), q * X),
            )
            off = max(off, *(abs(float(form.subs(values)) / float(true) - 1) for form, true in pairs))
    return CheckResult(off, 1e-12, "size, share and log-cost against a minimisation in 30 digits, relative error")


def envelope() -> CheckResult:
    """-dR*/dlog C of the brute-force frontier against the marginal value alpha A x^-alpha/q of either size."""
    h, off = 1e-3, 0.0
    for b in (25.0, 40.0):
        R = [minimum(b + k * h, AMPLITUDES, EXPONENTS)[2] for k in (-2, -1, 1, 2)]
        slope = (R[0] - 8 * R[1] + 8 * R[2] - R[3]) / (12 * h)
        X = minimum(b, AMPLITUDES, EXPONENTS)[0]
        marginal = EXPONENTS * AMPLITUDES * np.exp(-EXPONENTS * X) / COSTS
        off = max(off, *abs(-slope / marginal - 1))
    return CheckResult(float(off), 1e-6, "slope of the brute-force frontier against marginal values, relative error")


def powers(law: Powers, size: Size) -> CheckResult:
    """R* at three budgets against the least risk on zooming grids: 1e-10 relative, in units of that."""
    scale = sum(float(size.log_scale.subs(_numbers(*v))) for v in zip(AMPLITUDES, EXPONENTS, COSTS, strict=True))
    total, off = float((COSTS / EXPONENTS).sum()), 0.0
    for b in (10.0, 25.0, 60.0):

        def risk(X: np.ndarray, b: float = b) -> np.ndarray:
            second = (b - COSTS[0] * X[:, 0]) / COSTS[1]
            return AMPLITUDES[0] * np.exp(-EXPONENTS[0] * X[:, 0]) + AMPLITUDES[1] * np.exp(-EXPONENTS[1] * second)

        _, least = zoom(risk, [0.0], [b / COSTS[0]])
        values = {S: total, LOG_SCALE: scale, BUDGET: b}
        off = max(off, abs(float(law.risk.subs(values)) / least - 1))
    return CheckResult(off, 1e-10, "R* against brute force, relative error")


def lambert(mu: sympy.Expr, exponent: sympy.Expr) -> CheckResult:
    """1/(S + q_t/(lam t)) against the slope of the brute-force frontier: 1e-5, the time and the sizes in one multiplier."""
    total, h, off = float((COSTS / EXPONENTS).sum()), 2e-2, 0.0
    for b in (22.0, 30.0, 45.0):
        X, u, R = minimum(b, AMPLITUDES, EXPONENTS)
        logs = [np.log(minimum(b + k * h, AMPLITUDES, EXPONENTS)[2]) for k in (-2, -1, 1, 2)]
        slope = -(logs[0] - 8 * logs[1] + 8 * logs[2] - logs[3]) / (12 * h)
        values = {S: total, TIME: np.exp(u), RATE: RATE0, DECAY: D0, TIME_COST: TIME_COST0}
        off = max(off, abs(slope / float(exponent.subs(values)) - 1))
        off = max(off, abs(float(mu.subs(values)) / R / slope - 1))
    return CheckResult(off, 1e-5, "local exponent against the brute-force frontier, relative error")


def time(balance: tuple[sympy.Expr, ...], mu: sympy.Expr, least: sympy.Expr) -> CheckResult:
    """t of C against brute force (unit 1e-7); the least lam t against the sign of the constrained second derivative."""
    total = float((COSTS / EXPONENTS).sum())
    scale = float((COSTS / EXPONENTS * np.log(AMPLITUDES * EXPONENTS / COSTS)).sum())
    constants = {S: total, LOG_SCALE: scale, RATE: RATE0, DECAY: D0, TIME_COST: TIME_COST0}
    linear, logarithm, right = (e.subs(constants) for e in balance)
    off = 0.0
    for b in (22.0, 30.0, 45.0):
        k = float(right.subs(BUDGET, b))
        t = brentq(lambda t, k=k: float(linear) * t + float(logarithm) * np.log(t) - k, 1 / RATE0, 1e4, xtol=1e-14)
        off = max(off, abs(t / np.exp(minimum(b, AMPLITUDES, EXPONENTS)[1]) - 1) / 1e-7)
    edge = float(least.subs(constants))
    for lam_t, sign in ((edge - 1e-3, -1), (edge + 1e-3, 1)):
        t = lam_t / RATE0
        m = float(mu.subs({**constants, TIME: t}))
        X = np.log(EXPONENTS * AMPLITUDES / (COSTS * m)) / EXPONENTS
        b = float(X @ COSTS + np.log(t))
        curvature = _least_curvature(X, b)
        if np.sign(curvature) != sign:
            off = max(off, 2.0)
    return CheckResult(
        float(off), 1.0, "time of the brute-force optimum (unit 1e-7); where the minimum ends, by curvature"
    )


def _least_curvature(X: np.ndarray, b: float) -> float:
    """Smallest eigenvalue of the Hessian of R in the log sizes, the time taking what is left; 40 digits."""

    def risk(x: Any, y: Any) -> Any:
        u = b - COSTS[0] * x - COSTS[1] * y
        terms = [a * mpmath.exp(-e * z) for a, e, z in zip(AMPLITUDES, EXPONENTS, (x, y), strict=True)]
        return mpmath.fsum(terms) + D0 * mpmath.exp(-RATE0 * mpmath.exp(u))

    with mpmath.workdps(40):
        h = [[float(mpmath.diff(risk, tuple(X), n)) for n in row] for row in (((2, 0), (1, 1)), ((1, 1), (0, 2)))]
    return float(np.linalg.eigvalsh(np.array(h))[0])


def _example(b: float) -> tuple[Any, ...]:
    amplitudes, exponents, least = EXAMPLE
    return minimum(b, amplitudes, exponents, least)


def floors() -> CheckResult:
    """Worked example: the published t* and C*, and a width that brute force releases between C*(1 -+ 2e-4)."""
    b = float(COSTS @ np.log(EXAMPLE[2]))
    g = float(np.max(EXAMPLE[1] * EXAMPLE[0] * EXAMPLE[2] ** -EXAMPLE[1] / COSTS))
    t = float(-mpmath.lambertw(-TIME_COST0 * g / D0, -1).real) / RATE0
    critical = b + TIME_COST0 * np.log(t)
    off = max(abs(t / EXAMPLE_TIME - 1), abs(np.exp(critical) / EXAMPLE_COMPUTE - 1)) / 1e-5
    below, above = (_example(critical + d)[0] - np.log(EXAMPLE[2]) for d in (-2e-4, 2e-4))
    if below.max() > 1e-9 or above[0] < 1e-6 or above[1] > 1e-9:
        off = max(off, 2.0)
    return CheckResult(float(off), 1.0, "t* and C* of the example (unit 1e-5); sizes held below and released above C*")


def _multiplier_share(b: float) -> float:
    """mu/R at the brute-force optimum, mu from the time's marginal value."""
    _, u, R = _example(b)
    y = RATE0 * np.exp(u)
    return float(y * D0 * np.exp(-y) / TIME_COST0 / R)


def jump(form: sympy.Expr) -> CheckResult:
    """dlog p/dlog C on both sides of C* by one-sided differences of the brute-force optimum: 1e-3."""
    critical = np.log(EXAMPLE_COMPUTE)
    b0 = float(COSTS @ np.log(EXAMPLE[2]))
    g = float(np.max(EXAMPLE[1] * EXAMPLE[0] * EXAMPLE[2] ** -EXAMPLE[1] / COSTS))
    y = float(-mpmath.lambertw(-TIME_COST0 * g / D0, -1).real)
    critical = b0 + TIME_COST0 * np.log(y / RATE0)
    slopes = []
    for sign in (-1, 1):
        h = sign * 2e-3
        f = [np.log(_multiplier_share(critical + k * h)) for k in range(4)]
        slopes.append((-11 * f[0] + 18 * f[1] - 9 * f[2] + 2 * f[3]) / (6 * h))
    value = float(form.subs({S: COSTS[0] / EXAMPLE[1][0], RAPIDITY: y, TIME_COST: TIME_COST0}))
    return CheckResult(abs((slopes[1] - slopes[0]) / value - 1), 1e-3, "jump of dlog p/dlog C at C*, relative error")


def tied() -> CheckResult:
    """R = z^-0.5 + z^-0.8 + t^-1 at C = z^3 t, two sizes on one z: the slope at C = e^400 is 1/(3/0.5 + 1) to 1e-6."""

    def least(b: float) -> float:
        def risk(X: np.ndarray) -> np.ndarray:
            return np.exp(-0.5 * X[:, 0]) + np.exp(-0.8 * X[:, 0]) + np.exp(-(b - 3 * X[:, 0]))

        return zoom(risk, [0.0], [b / 3])[1]

    slope = -(np.log(least(401.0)) - np.log(least(399.0))) / 2
    return CheckResult(abs(slope * 7 - 1), 1e-6, "slope of a tied law at large C against 1/S, relative error")


def phases(found: tuple[Phase, ...]) -> CheckResult:
    """min over t of the sum of all terms at C = e^4000 and e^4040: its slope against the phase's exponent to 1e-9."""
    off = 0.0
    cases = {"Ia": ((1.6, 1.3), (2.0, 1.5)), "II": ((2.9, 1.7), (3.3, 2.0)), "III": ((3.0, 1.2), (4.0, 1.5))}
    for phase in found:
        for a, b in cases[phase.name]:
            terms = [(0, (a - 1) / b), (0, 2 - 1 / b), (min(a - 1, b), 0)] + ([(1, 1 - 1 / b)] if a > b + 1 else [])

            def least(log_c: float, terms: list = terms) -> float:
                def loss(xi: np.ndarray) -> np.ndarray:
                    parts = [-log_c * (w * (1 - xi[:, 0]) + s * xi[:, 0]) for w, s in terms]
                    return np.logaddexp.reduce(np.array(parts), axis=0)

                return zoom(loss, [0.0], [1.0])[1]

            slope = -(least(4040.0) - least(4000.0)) / 40
            off = max(off, abs(slope - float(phase.exponent.subs({SOURCE: a, CAPACITY: b}))))
    return CheckResult(float(off), 1e-9, "exponent of the optimised sum of terms against the phase, absolute error")


def compare_modules(on_disk: str, derived: str) -> str:
    """Empty when the two module texts give the same numbers, else one line that names the function."""
    return same_numbers(on_disk, derived, _calls)


def _calls() -> list[Call]:
    calls: dict[str, tuple] = {
        "size_of_multiplier": (1e-3, 1.3, 0.45, 2.0), "release_multiplier": (100.0, 1.3, 0.45, 2.0),
        "log_scale": (1.3, 0.45, 2.0), "power_multiplier": (30.0, 6.0, 1.5), "time_multiplier": (3.0, 50.0, 0.8, 1.0),
        "time_balance": (30.0, 6.0, 1.5, 50.0, 0.8, 1.0), "least_rapidity": (6.0, 1.0), "rapidity_constant": (1e-2, 50.0, 1.0),
        "local_exponent": (6.0, 9.0, 1.0), "held_exponent": (1e-2, 0.1, 6.0, 9.0, 1.0),
        "exponent_log_slope": (0.1, 6.0, 9.0, 1.0), "exponent_jump": (4.0, 9.0, 1.0),
        "phase_ia": (1.6, 1.3), "phase_ii": (2.9, 1.7), "phase_iii": (3.0, 1.2),
    }  # fmt: skip
    return [*calls.items()]
