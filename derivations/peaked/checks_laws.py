"""Numeric checks of the laws of peaked distributions: ODEs integrated by scipy, averages of K = 2 by quadrature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import sympy
from scipy.integrate import solve_ivp
from scipy.optimize import brentq, minimize_scalar

from derivations.peaked.adam import DRIFT, NORM, Normalised
from derivations.peaked.checks_integrals import TwoClassAverages, softplus_mean
from derivations.peaked.escapes import HEAT, AdamLaws, Heated
from derivations.peaked.laws import POWER, FiniteTemperature, OneThird, Scheduled
from derivations.peaked.layers import Layer
from derivations.peaked.notation import (
    BETA,
    CURVATURE,
    DELTA,
    DIMENSION,
    DRIFT_CONSTANT,
    EXCESS,
    GAP,
    OTHERS,
    PER_BATCH,
    RATE,
    SECOND_MOMENT,
    SMOOTHING,
    SOFTPLUS_MEAN,
    TEACHER_BETA,
    TIME,
    D,
    K,
)
from odescale.symbolic.record import CheckResult
from odescale.symbolic.sgd import decay, eta

EXACT = TwoClassAverages()
PAIR_CONSTANT = np.pi**1.5 / 12


def log_time(flow: Callable[..., Any], start: Any, times: Any, tolerance: float = 1e-10) -> np.ndarray:
    """Solution (state, times) of dy/dt = flow(t, y) from times[0], with log t as the variable."""
    logs = np.log(times)
    done = solve_ivp(
        lambda u, y: np.exp(u) * np.asarray(flow(np.exp(u), y)), (logs[0], logs[-1]), start, method="LSODA",
        t_eval=logs, rtol=tolerance, atol=1e-30,
    )  # fmt: skip
    assert done.success, done.message
    return done.y


def around(time: float, begin: float = 1e-2) -> np.ndarray:
    """Times whose last three are a tenth of an e-fold apart, centred on `time`."""
    return np.array([begin, time * np.exp(-0.1), time, time * np.exp(0.1)])


def slope(values: np.ndarray) -> float:
    """-dlog/dlog t of the last three of `around`."""
    return float(-(np.log(values[-1]) - np.log(values[-3])) / 0.2)


def one_third(law: OneThird) -> CheckResult:
    """Exact K = 2 flow: loss at 1e7 with its correction to 1e-5; the exponent's excess at 1e8 is the correction's to 3 %."""
    numbers = {eta: 1, OTHERS: 1, DRIFT_CONSTANT: PAIR_CONSTANT}
    a, gamma = (float(x.subs(numbers)) for x in law.correction)

    def flow(t: float, y: np.ndarray) -> list[float]:
        return [EXACT.aligned(y[0])[1]]

    found = log_time(flow, [1.0], around(1e7), 1e-12)
    predicted = float(law.loss.subs({**numbers, TIME: 1e7})) * (1 + a * 1e7**-gamma)
    off = abs(EXACT.aligned(found[0, -2])[0] / predicted - 1) / 1e-5
    found = log_time(flow, [1.0], around(1e8), 1e-13)
    losses = np.array([EXACT.aligned(D)[0] for D in found[0]])
    excess = slope(losses) - 1 / 3
    off = max(off, abs(excess / (gamma * a * 1e8**-gamma) - 1) / 0.03)
    return CheckResult(
        float(off), 1.0, "exact K = 2 flow: loss at 1e7 (unit 1e-5), exponent's excess at 1e8 (unit 3 %)"
    )


def stationary_spread(form: Layer, ratio: float) -> float:
    """Delta_inf at eta/B = `ratio`."""
    noise = sympy.lambdify(SOFTPLUS_MEAN, form.noise)
    return float(brentq(lambda x: 2 * x - ratio * noise(softplus_mean(x)), 1e-12, 1e4, xtol=1e-14))


def with_noise(form: Layer) -> CheckResult:
    """Exact K = 2 flow at eta = B = 1 to alpha = 1e6: Delta_inf and L D/kappa to 1e-3, both exponents to 1e-3 of 1/3."""
    spread = stationary_spread(form, 1.0)
    kappa = float(form.kappa.subs(DELTA, spread)) * EXACT.m
    D, Delta = log_time(lambda t, y: EXACT.flow(y[0], y[1], 1.0, 1.0), [1.0, 0.1], around(1e6))
    losses = np.array([EXACT.loss(y[0], y[1]) for y in zip(D, Delta, strict=True)])
    misses = np.array([EXACT.noise(y[0], y[1])[1] for y in zip(D, Delta, strict=True)])
    off = [Delta[-2] / spread - 1, losses[-2] * D[-2] / kappa - 1, slope(losses) - 1 / 3, slope(misses) - 1 / 3]
    return CheckResult(
        float(np.max(np.abs(off))), 1e-3, "exact K = 2 flow at 1e6: spread, L D/kappa, exponents; largest miss"
    )


def schedule(law: Scheduled) -> CheckResult:
    """Exact K = 2 flow with eta = min(1, alpha^-g), g = 0.3, 0.5, at alpha = 1e9: exponents of loss and error."""
    off = []
    for g in (0.3, 0.5):
        D, Delta = log_time(lambda t, y, g=g: EXACT.flow(y[0], y[1], min(1.0, t**-g), 1.0), [1.0, 0.1], around(1e9))
        losses = np.array([EXACT.loss(y[0], y[1]) for y in zip(D, Delta, strict=True)])
        misses = np.array([EXACT.noise(y[0], y[1])[1] for y in zip(D, Delta, strict=True)])
        off += [slope(losses) - float(law.loss.subs(POWER, g)), slope(misses) - float(law.error.subs(POWER, g))]
    return CheckResult(
        float(np.max(np.abs(off))), 4e-3, "exact K = 2 flow under schedules at 1e9: exponents, largest miss"
    )


def weight_decay(overlap: sympy.Expr) -> CheckResult:
    """The root of exact drift = w D, K = 2, w = 1e-9; the next order is 1/D^2 = 2e-6."""
    values = {eta: 1, OTHERS: 1, DRIFT_CONSTANT: PAIR_CONSTANT, decay: 1e-9}
    predicted = float(overlap.subs(values))
    exact = brentq(lambda s: EXACT.aligned(s)[1] - 1e-9 * s, 10.0, 1e5, xtol=1e-9)
    return CheckResult(abs(exact / predicted - 1), 1e-5, "fixed point under weight decay, K = 2, relative error")


def finite_temperature(form: FiniteTemperature) -> CheckResult:
    """Exact K = 2 flow at b_* = 1000 (noiseless, aligned): local exponent for alpha/alpha_c in [1e-3, 3] and the cut-off."""
    b = 1000.0
    values = {eta: 1, OTHERS: 1, DRIFT_CONSTANT: PAIR_CONSTANT, TEACHER_BETA: b}
    scale, x = float(form.scale.subs(values)), sympy.Symbol("x", positive=True)
    at_rest = EXACT.aligned(b)

    def flow(t: float, y: np.ndarray) -> list[float]:
        return [EXACT.aligned(y[0])[1] - at_rest[1]]

    times = np.concatenate([[1e-2], scale * np.geomspace(1e-3, 3.0, 400)])
    D = log_time(flow, [1.0], times, 1e-11)[0, 1:]
    gaps = np.array([EXACT.aligned(s) for s in D])
    KL = gaps[:, 0] - at_rest[0] + (D - b) * at_rest[1]
    logs = np.log(times[1:])
    local = -np.gradient(np.log(KL), logs, edge_order=2)
    clock, exponent = sympy.lambdify(x, form.clock, "numpy"), sympy.lambdify(x, form.exponent, "numpy")
    grid = np.linspace(1e-3, 0.9999, 20_000)
    predicted = np.interp(times[1:], 3 * scale * clock(grid), exponent(grid))
    off = float(np.max(np.abs(local / predicted - 1)[2:-2])) / 2e-3
    bend = np.gradient(np.log(local), logs)[5:-5]
    place = int(np.argmax(bend > 0.5))
    w = (0.5 - bend[place - 1]) / (bend[place] - bend[place - 1])
    cut = np.exp(logs[5:-5][place - 1] + w * (logs[1] - logs[0])) / scale
    off = max(off, abs(cut / float(form.cutoff) - 1) / 5e-3)
    return CheckResult(float(off), 1.0, "exact K = 2 flow at b_* = 1000: exponent (unit 0.2 %), cut-off (unit 0.5 %)")


# ---------------------------------------------------------------------------------------------------------------------
# Escapes
# ---------------------------------------------------------------------------------------------------------------------


def _adam(forms: Normalised, rate: Callable[[float], float], inputs: float, size: float) -> Callable[..., Any]:
    """Adam's flow of K = 2 with exact averages, from the generated formulas' symbols."""
    fixed = {BETA: 1, SMOOTHING: 0, OTHERS: 1, K: 2, decay: 0, PER_BATCH: 1 / size, DIMENSION: inputs}
    state = (D, DELTA, GAP, EXCESS, CURVATURE, SECOND_MOMENT, RATE)
    drift = sympy.lambdify(state, forms.drift.subs(fixed))
    second = sympy.lambdify((*state, DRIFT), forms.second.subs(fixed))
    flows = [sympy.lambdify((*state, DRIFT, NORM), f.subs(fixed)) for f in forms.adam]

    def flow(t: float, y: np.ndarray) -> list[float]:
        overlap, spread = y[0], max(y[1], 0.0)
        s = np.hypot(overlap, np.sqrt(spread))
        gap = EXACT.aligned(s)[1]
        values = (overlap, spread, gap, spread / (s + overlap), (EXACT.m - gap) / s, EXACT.noise(overlap, spread)[0])
        values = (*values, rate(t))
        A = drift(*values)
        v = second(*values, A)
        return [f(*values, A, v) for f in flows]

    return flow


def adam_laws(forms: Normalised, form: Layer, laws: AdamLaws) -> CheckResult:
    """Exact K = 2 averages, B = 1, 100 inputs: 2/5 at a tiny rate, 1/6 late, a falling rate; largest miss over 0.01."""
    off = []
    cases = (
        (lambda t: 1e-10, around(1e17, 1e9), "small", None),
        (lambda t: 0.3, around(1e14), "late", "late error"),
        (lambda t: 0.01 * min(1.0, (t / 1e2) ** -0.5), around(1e16), "scheduled", "scheduled error"),
    )
    for rate, times, loss, error in cases:
        D, Delta = log_time(_adam(forms, rate, 100.0, 1.0), [1.0, 1e-9], times, 1e-8)
        losses = np.array([EXACT.loss(y[0], y[1]) for y in zip(D, Delta, strict=True)])
        expected = laws.exponents[loss].subs(POWER, 0.5)
        off.append(slope(losses) - float(expected))
        if error is not None:
            misses = np.sqrt(Delta) / D
            off.append(slope(misses) - float(laws.exponents[error].subs(POWER, 0.5)))
    return CheckResult(float(np.max(np.abs(off))), 0.01, "Adam with exact K = 2 averages: exponents, largest miss")


def saturating_losses(smoothed: sympy.Expr, squared: sympy.Expr) -> CheckResult:
    """Square loss and label smoothing (eps = 0.1, exact averages), K = 2, eta = min(1, alpha^-g)/2."""
    m, off = EXACT.m, []

    def square(t: float, y: np.ndarray, g: float) -> list[float]:
        rate = 0.5 * min(1.0, t**-g)
        # g = P (lam - y): |P lam|^2 = D^2 + Delta, lam.y = D m, |P y|^2 = 1 - 1/K.
        noise = y[0] ** 2 + y[1] - 2 * y[0] * m + 0.5
        return [rate * (m - y[0]), -2 * rate * y[1] + rate**2 * noise]

    def smooth(t: float, y: np.ndarray, g: float, eps: float = 0.1) -> list[float]:
        rate, s = 0.5 * min(1.0, t**-g), np.hypot(y[0], np.sqrt(y[1]))
        H = (m - EXACT.aligned(s)[1]) / s
        # |p|^2 - 2 p.y_eps + |y_eps|^2, y_eps = (1 - eps/2, eps/2).
        right = EXACT.agreement(y[0], y[1])
        noise = 1 - H - 2 * ((1 - eps) * right + eps / 2) + (1 - eps / 2) ** 2 + (eps / 2) ** 2
        return [rate * ((1 - eps) * m - y[0] * H), -2 * rate * y[1] * H + rate**2 * noise]

    for flow, error, g in ((square, squared, 0.7), (smooth, smoothed, 0.5)):
        D, Delta = log_time(lambda t, y, flow=flow, g=g: flow(t, y, g), [0.5, 0.1], around(1e10), 1e-7)
        off.append(slope(np.arctan2(np.sqrt(Delta), D)) - float(error.subs(POWER, g)))
    return CheckResult(
        float(np.max(np.abs(off))),
        2e-3,
        "square loss and smoothing under schedules: exponent of the error, largest miss",
    )


def temperature(form: Layer, law: Heated) -> CheckResult:
    """Exact K = 2 averages of the physical weights under beta(t), eta(t): exponents of loss and error, largest miss."""
    off = []
    cases = (
        (0.6, 1.2, 1e9, "balanced", "balanced error"),
        (0.5, 1.3, 1e13, "driven", "driven error"),
        (0.8, 1.25, 1e9, "wide", "wide error"),
    )
    for h, g, end, loss, error in cases:

        def flow(t: float, y: np.ndarray, h: float = h, g: float = g) -> list[float]:
            beta, rate = (1 + t) ** h, (1 + t) ** -g
            # The closure in the effective variables; back to W by dividing beta out.
            dD, dDelta = EXACT.flow(beta * y[0], beta**2 * max(y[1], 0.0), beta**2 * rate, 1.0)
            return [dD / beta, dDelta / beta**2]

        D, Delta = log_time(flow, [1.0, 0.1], around(end), 1e-6)
        beta = (1 + around(end)) ** h
        losses = np.array([EXACT.loss(b * x, b * b * y) for b, x, y in zip(beta, D, Delta, strict=True)])
        misses = np.sqrt(Delta) / D
        values = {HEAT: h, POWER: g}
        off.append(slope(losses) - float(law.exponents[loss].subs(values)))
        off.append(slope(misses) - float(law.exponents[error].subs(values)))
    h = 0.4
    (D,) = log_time(lambda t, y: [EXACT.aligned((1 + t) ** h * y[0])[1] * (1 + t) ** h], [1.0], around(1e12))
    losses = np.array([EXACT.aligned(x)[0] for x in D * (1 + around(1e12)) ** h])
    off.append(slope(losses) - float(law.exponents["noiseless"].subs(HEAT, h)))
    return CheckResult(
        float(np.max(np.abs(off))), 0.01, "temperature schedules, exact K = 2 averages: exponents, largest miss"
    )


def best_rate(form: Layer) -> tuple[float, float, float]:
    """(eta/B, Delta_inf, kappa^2 B/eta per m^2) that minimises kappa(Delta_inf)^2/(eta/B): universal."""
    kappa = sympy.lambdify(DELTA, form.kappa)

    def cost(log_ratio: float) -> float:
        ratio = np.exp(log_ratio)
        return kappa(stationary_spread(form, ratio)) ** 2 / ratio

    done = minimize_scalar(cost, bounds=(-4.0, 5.0), method="bounded", options={"xatol": 1e-10})
    return float(np.exp(done.x)), stationary_spread(form, float(np.exp(done.x))), float(done.fun)


def best_learning_rate(form: Layer) -> CheckResult:
    """The exact K = 2 flow to alpha = 1e7 at the best eta/B loses no more than at 0.8 and 1.25 of it; L as predicted."""
    ratio, spread, figure = best_rate(form)

    def loss(rate: float) -> float:
        D, Delta = log_time(lambda t, y: EXACT.flow(y[0], y[1], rate, 1.0), [1.0, 0.1], np.array([1e-2, 1e7]), 1e-9)[
            :, -1
        ]
        return EXACT.loss(D, Delta)

    at, near = loss(ratio), [loss(ratio * x) for x in (0.8, 1.25)]
    predicted = (EXACT.m**2 * figure / 3e7) ** (1 / 3)
    off = max(abs(at / predicted - 1) / 1e-3, 2.0 if at >= min(near) else 0.0)
    return CheckResult(
        off,
        1.0,
        f"best eta/B = {ratio:.4f} (Delta_inf {spread:.4f}): exact K = 2 loss at 1e7, unit 1e-3, and a minimum",
    )
