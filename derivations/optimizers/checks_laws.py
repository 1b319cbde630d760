"""Numeric checks of exponents, floors and the race: the closed moments iterated mode by mode."""

from __future__ import annotations

import numpy as np
import sympy
from scipy.special import gamma

from derivations.optimizers.laws import FRACTION, Exponents, Floors, Race
from derivations.optimizers.notation import ALPHA, AMPLITUDE, CAPACITY, LOSS, RATE, ROOT, SOURCE, TIME, VARIANCE
from odescale.symbolic.record import CheckResult
from odescale.symbolic.sgd import batch, eta

POWER, TARGET = 1.5, 1.9
"""b and c: alpha = (c - 1)/b = .6."""


def exponents(found: Exponents) -> CheckResult:
    """2L(s) summed over 3e6 modes, t(s) by quadrature of ds/dt, their local exponents, and dL/dt against the formula."""
    k = np.arange(1, 3_000_001.0)
    roots, sizes = k ** (-POWER / 2), k**-TARGET
    numbers = {SOURCE: TARGET, CAPACITY: POWER}
    power, amplitude = float(found.power.subs(numbers)), float(found.amplitude.subs(numbers))
    rate, size = 0.1, 4.0
    s = np.geomspace(50.0, 200.0, 9)
    V = np.array([np.sum(sizes * np.exp(-2 * x * roots)) for x in s])
    errors = [V[4] / (amplitude * s[4] ** -power) - 1]
    local = np.gradient(np.log(V), np.log(s))[4]
    errors.append(-local / power - 1)
    # dV/dt = dV/ds a sqrt(B/V), half of it the loss.
    slope = 0.5 * V[4] / s[4] * local * rate * np.sqrt(size / V[4])
    values = {LOSS: V[4] / 2, RATE: rate, batch: size, AMPLITUDE: amplitude, ALPHA: power / 2}
    errors.append(slope / float(found.slope.subs(values)) - 1)
    # t = int ds sqrt(V/B)/a on the law from s = 1e-3 on: its exponent at late times.
    course = np.geomspace(1e-3, 1e5, 4001)
    loss = amplitude * course**-power
    t = np.concatenate([[0.0], np.cumsum(np.diff(course) * np.sqrt((loss[1:] * loss[:-1]) ** 0.5 / size) / rate)])
    in_time = -np.log(loss[-1] / loss[-400]) / np.log(t[-1] / t[-400])
    errors.append(in_time / float(found.in_time.subs(ALPHA, power / 2)) - 1)
    return CheckResult(
        float(np.max(np.abs(errors))), 2e-2, "exponents under Adam on a power-law spectrum, relative error"
    )


def rest(decay: np.ndarray, heat: np.ndarray, levels: np.ndarray) -> float:
    """L where q_k <- q_k - h (decay q_k/sqrt V - heat) stays, from q = 1; decay and heat of the modes at V = 1."""
    q, h = np.ones(len(levels)), 0.02 / decay.max()
    for _ in range(6000):
        V = np.mean(levels * q)
        q = q + h * min(np.sqrt(V), 1.0) * (heat - decay * q / np.sqrt(V))
    return 0.5 * float(np.mean(levels * q))


def floors(found: Floors) -> CheckResult:
    """Closed moments of Adam, rotated Adam and the sign at B = 3 iterated to rest on a spectrum of 8 levels; chi by samples."""
    levels = np.geomspace(0.2, 3.0, 8)
    levels /= levels.mean()
    rate, size = 0.3, 3
    root = float(np.mean(np.sqrt(levels)))
    numbers = {RATE: rate, batch: size, ROOT: root, sympy.Symbol("lambda_c", positive=True): 1.0}
    errors = np.random.default_rng(5).standard_normal((400_000, size))
    # E[sum_b e_b^2/(B |g|)] sqrt(2/pi), |g| = sqrt(sum e^2)/B: the closure of the sign itself.
    gain = float(np.sqrt(2 / np.pi) * np.mean(np.sqrt(np.sum(errors**2, axis=1))))
    same = np.full(8, rate**2)
    pairs = [
        (rest(2 * rate * np.sqrt(levels * size), same, levels), found.adam),
        (rest(2 * rate * levels * size**0.5, rate**2 * levels, levels), found.rotated),
        (rest(2 * rate * gain * np.sqrt(levels), same, levels), found.sign),
    ]
    off = [got / float(law.subs(numbers)) - 1 for got, law in pairs]
    off.append(gain / float(found.sign_gain.subs(batch, size)) - 1)
    off.append(float(found.sign.subs(numbers | {batch: 4000}) / found.sign_large.subs(numbers | {batch: 4000})) - 1)
    return CheckResult(float(np.max(np.abs(off))), 5e-3, "floors against iterated moments, relative error")


def decayed_course(b: float, c: float, share: float, found: Race) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(t, L, law of L) of the closed moments under a = theta 2 sqrt(B V)/Lambda; q_k(0) lam_k = k^-c/N, so that A is the law's."""
    k = np.arange(1, 12_001.0)
    levels, size, alpha = k**-b, 8.0, (c - 1) / b
    N = levels.sum()
    root = float(np.sqrt(levels).sum() / N)
    amplitude = 2 * gamma(2 * alpha) / (2 ** (2 * alpha) * b) / N
    numbers = {ROOT: root, batch: size, AMPLITUDE: amplitude, ALPHA: alpha, FRACTION: share}
    rate = sympy.lambdify(VARIANCE, found.rate.subs(numbers), "numpy")
    law = sympy.lambdify(TIME, found.loss.subs(numbers) / 2, "numpy")
    t = np.concatenate([[0.0], np.geomspace(1e-3, 200.0, 700)])
    q, losses = k**-c / levels, []
    for start, end in zip(t[:-1], t[1:], strict=True):
        V = np.sum(levels * q) / N
        a = rate(V)
        fall = 2 * a * np.sqrt(levels * size / V)
        q = q * np.exp(-fall * (end - start)) + a**2 / fall * -np.expm1(-fall * (end - start))
        losses.append(0.5 * np.sum(levels * q) / N)
    return t[1:], np.asarray(losses), law(t[1:])


def race(found: Race) -> CheckResult:
    """Loss and exponent under the decay for c < b, the exponent of the memory for c > b; SGD's law at the crossing."""
    off = []
    for b, c in ((3.0, 1.9), (3.0, 4.5)):
        t, loss, law = decayed_course(b, c, 0.4, found)
        late = t > 20
        slope = -np.polyfit(np.log(t[late]), np.log(loss[late]), 1)[0]
        if c < b:
            off += [abs(loss[-1] / law[-1] - 1), abs(slope - 2 * (c - 1) / b)]
        else:
            off.append(abs(slope - float(found.memory.subs(CAPACITY, b))))
    numbers = {RATE: 0.05, ROOT: 1.3, batch: 8.0, ALPHA: 0.6, eta: 0.2}
    (plain,) = (s for s in found.crossing.free_symbols if s.name == "A_1")
    moment = float(found.crossing.subs(numbers | {plain: 0.7}))
    off.append(abs(0.7 * (0.2 * moment) ** -0.6 / 2 / (0.05**2 * 1.3**2 / 64) - 1))
    return CheckResult(float(max(off)), 0.05, "decayed Adam on power-law spectra: loss and exponents, error")
