"""Numeric checks of exponents under Muon, of the race with label noise, and of what Adam's second moment remembers."""

from __future__ import annotations

import numpy as np
import sympy
from scipy.special import gamma

from derivations.optimizers.exponents import FLOOR, LABELS, PLAIN, SQUARES, Memory, MuonLaws, NoisyRace
from derivations.optimizers.moments import Course, MemoryOfV, muon_course, muon_moments, noisy_courses
from derivations.optimizers.notation import ALPHA, AMPLITUDE, KURTOSIS, RATE, ROOT
from odescale.symbolic.record import CheckResult
from odescale.symbolic.sgd import batch, lam, trace

CAPACITY, SOURCE, MU = 1.5, 1.6, 0.95
"""b and c: alpha = .4."""


def late(course: Course, x: np.ndarray) -> float:
    """-dlog L/dlog x over the last tenth of the points."""
    tail = slice(-len(x) // 10, None)
    return -float(np.polyfit(np.log(x[tail]), np.log(course.loss[tail]), 1)[0])


def muon_power_law(found: MuonLaws) -> CheckResult:
    """Exponents of the flow while noise, and while the mean, rules; the crossing of both; the floor of iterated moments."""
    squares, alpha = (1 - MU) / (1 + MU), (SOURCE - 1) / CAPACITY
    noisy = muon_course(CAPACITY, SOURCE, 4.0, squares, 1e-9, 1e12)
    smooth = muon_course(CAPACITY, SOURCE, 1e9, squares, 1e-4, 1e6)
    off = [late(noisy, noisy.s) - alpha, late(smooth, smooth.s) - alpha]
    off += [late(noisy, noisy.steps) - float(found.of_noise.subs(ALPHA, alpha))]
    off += [late(smooth, smooth.steps) - float(found.of_mean.subs(ALPHA, alpha))]
    # a^2/A^2 = K, twice its noise at the crossing; N of log bins is that of the ranks.
    N = float(np.sum(np.arange(1.0, 2e6) ** -CAPACITY)) + 2 * 2e6**-0.5
    excess = (noisy.rate**-2 * 1e-18) / (squares * N * noisy.loss / 4)
    at = float(np.interp(-2.0, -excess[5:], noisy.s[5:]))
    crossing = float(found.crossing.subs({ALPHA: alpha, batch: 4, SQUARES: squares, trace: 1})) / N
    off.append((at / crossing - 1) / 10)
    levels = np.linspace(0.5, 1.5, 20)
    end = muon_moments(levels, 1e-4 * np.ones(20) / 2000, 100.0, 4.0, MU, 2e-3, (20_000,))
    numbers = {RATE: 2e-3 * 2000**0.5, batch: 4, SQUARES: squares}
    off.append(float(end.loss[-1]) / float(found.floor.subs(numbers)) - 1)
    return CheckResult(float(np.max(np.abs(off))), 2.5e-2, "Muon on a power-law spectrum: exponents and floor, error")


def noisy_race(found: NoisyRace) -> CheckResult:
    """The crossing of the biases summed over 1e8 modes, and the bias there, at two spectra."""
    off = []
    for b, c, size, noise, floor in ((1.5, 2.0, 4.0, 0.25, 1e-4), (2.5, 2.5, 1.0, 1.0, 1e-4)):
        seen = noisy_courses(b, c, size, noise, floor)
        alpha = (c - 1) / b
        numbers = {
            ALPHA: alpha, batch: size, LABELS: noise**0.5, FLOOR: floor, ROOT: seen.roots / seen.trace,
            PLAIN: gamma(alpha) / (b * 2**alpha), AMPLITUDE: 2 * gamma(2 * alpha) / (b * 4**alpha),
        }  # fmt: skip
        off.append(seen.crossing / (seen.trace * float(found.crossing.subs(numbers))) - 1)
        off.append(seen.loss / float(found.level.subs(numbers)) - 1)
    return CheckResult(float(np.max(np.abs(off))), 2e-2, "crossing of SGD and Adam with label noise, relative error")


def memory_by_quadrature(found: Memory) -> float:
    """Relative error of what a gradient adds to Cov(v, phi^2), by exact Gaussian averages over feature and residual at B = 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    A, value, P = 0.03, 0.7, 1e4
    phi = 1.3  # of the coefficient; e = lam phi^2 enters as lam e -> lam phi^2 in units of the coefficient
    x, z = np.meshgrid(np.sqrt(value) * nodes, np.sqrt(P) * nodes, indexing="ij")
    both = np.outer(weights, weights)
    g = x * (phi * x + z)
    s = float(np.sum(both * g**2))
    got = float(np.sum(both * (g**2 - s) * (-2 * A * phi * g + A**2 * g**2)))
    # Where noise alone moves the weights, and where the mean alone does.
    e, a, S = sympy.symbols("e A s", positive=True)
    numbers = {KURTOSIS: 9, lam: value, a: A, e: phi**2, S: s}
    return got / float(found.own.subs(numbers)) - 1


def memory_of_v(found: Memory, seeds: int = 512, keep: bool = True) -> CheckResult:
    """Runs of Adam while the loss falls three times within v's memory and a half: closed moments with all effects, or without."""
    if abs(memory_by_quadrature(found)) > 2e-3:
        return CheckResult(np.inf, 3.0, "covariance of v and phi^2 after one step")
    rate, beta2, times = 0.05, 0.99, (300, 500, 700)
    spectrum = np.arange(1.0, 401.0) ** -0.5
    rng = np.random.default_rng(3)
    D, v = np.ones((seeds, 400), np.float32), np.zeros((seeds, 400), np.float32)
    root, losses = np.sqrt(spectrum).astype(np.float32), []
    for n in range(1, max(times) + 1):
        x = rng.standard_normal(D.shape, dtype=np.float32) * root
        g = np.einsum("sk,sk->s", x, D)[:, None] * x
        v = beta2 * v + (1 - beta2) * g * g
        D = D - np.float32(rate) * g / np.sqrt(v / (1 - beta2**n))
        if n in times:
            losses.append(D.astype(float) ** 2 @ spectrum)
    runs = np.array(losses)
    effects = MemoryOfV.STAGES["+ variance of phi^2 between runs"] if keep else ("steady",)
    theory = MemoryOfV(spectrum, rate, beta2, 1.0, effects).losses(spectrum, times)
    error = runs.std(axis=1, ddof=1) / seeds**0.5
    # Second orders in (1 - beta_2)(k_4 - 1), .08 here, are left out: a half per cent.
    z = np.abs(runs.mean(axis=1) - theory) / np.hypot(error, 0.003 * theory)
    return CheckResult(float(np.max(z)), 3.0, "runs of Adam against moments with the memory of v, standard errors")
