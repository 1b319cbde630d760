"""Numeric checks of the integrals of peaked distributions: the race, its limit, the K = 2 series, the boundary layer."""

from __future__ import annotations

from functools import lru_cache

import mpmath
import numpy as np
import sympy
from scipy.integrate import quad
from scipy.special import erfc, expit, log_ndtr, ndtr

from derivations.numeric import worst
from derivations.peaked.expansion import TwoClasses
from derivations.peaked.layers import Layer, MarginLoss
from derivations.peaked.notation import DELTA, SOFTPLUS_MEAN
from odescale.symbolic.record import CheckResult

LN_TWO = np.log(2)


# The flows ask for it at every evaluation, and an eigenvalue problem each time was most of what they cost.
_reference_rule = lru_cache(np.polynomial.legendre.leggauss)


def legendre(start: float, end: float, order: int, pieces: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a composite Gauss-Legendre rule."""
    x, w = _reference_rule(order)
    edges = np.linspace(start, end, pieces + 1)
    half = np.diff(edges) / 2
    return ((edges[:-1] + half)[:, None] + half[:, None] * x).ravel(), (half[:, None] * w).ravel()


def density(x: np.ndarray) -> np.ndarray:
    """Standard normal density."""
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def mean_top(classes: int) -> float:
    """E max of K standard normals, int [1 - Phi^K - Phi(-x)^K]: shares nothing with the density of ties."""
    x, w = legendre(0.0, 12.0, 20, 40)
    return float(np.sum(w * (-np.expm1(classes * log_ndtr(x)) - ndtr(-x) ** classes)))


def race_integrals(s: float, classes: int) -> tuple[float, float]:
    """(F - s m, s^2 (m - Phi)) by the race."""
    x, wx = legendre(-9.0, 9.0, 20, 12)
    u, wu = legendre(-34.0, 3.7, 20, 12)  # lambda = e^u
    y, wy = legendre(0.0, 45.0, 20, 8)
    clock = np.exp(u)
    near = density(x[:, None] - y / s)
    falling = np.exp(-y)
    rung = np.exp(-clock[:, None] * falling)
    B = near @ ((1 - rung) * wy / s).T  # (x, lambda)
    steep = near @ (rung * y * falling * wy).T
    cumulative = ndtr(x)[:, None]
    ratio = np.clip(B / np.maximum(cumulative, 1e-300), 0.0, 1.0)
    lost = -(cumulative ** (classes - 1)) * np.expm1((classes - 1) * np.log1p(-np.minimum(ratio, 1 - 1e-16)))
    A = np.maximum(cumulative - B, 0.0) ** (classes - 2)
    weight = (density(x) * wx)[:, None] * (np.exp(-clock) * wu)
    loss = classes * np.sum(weight * lost)
    return loss, classes * (classes - 1) * np.sum(weight * clock * A * steep)


def race() -> CheckResult:
    """K = 2 by one integral; K = 3 and 10 by E max of s z + Gumbel (another identity) and a difference quotient in s."""
    pairs = []
    loss, gap = race_integrals(4.0, 2)
    s, m = 4.0, 1 / np.sqrt(np.pi)
    direct = quad(lambda u: np.exp(-u * u / 4) / np.sqrt(np.pi) * np.log1p(np.exp(-s * u)), 0, 40, epsabs=1e-14)[0]
    slope = quad(lambda u: np.exp(-u * u / 4) / np.sqrt(np.pi) * u * expit(-s * u), 0, 40, epsabs=1e-14)[0]
    pairs += [(loss, direct), (gap, s * s * slope)]
    for classes in (3, 10):
        s, m, h = 3.0, mean_top(classes), 0.05
        loss, gap = race_integrals(s, classes)
        F = {k: gumbel_free_energy(s + k * h, classes) for k in (-2, -1, 0, 1, 2)}
        slope = (8 * (F[1] - F[-1]) - (F[2] - F[-2])) / (12 * h)
        fine = {k: gumbel_free_energy(s + k * h / 2, classes) for k in (-2, -1, 1, 2)}
        finer = (8 * (fine[1] - fine[-1]) - (fine[2] - fine[-2])) / (6 * h)
        pairs += [(loss, F[0] - s * m), (gap, s * s * (m - (16 * finer - slope) / 15))]
    return worst([(np.array(a), np.array(b)) for a, b in pairs], 1e-8, "race against other quadratures, relative error")


def gumbel_free_energy(s: float, classes: int) -> float:
    """F(s) = E max_i (s z_i + gumbel_i) - gamma_E."""
    z, wz = legendre(-9.0, 9.0, 20, 12)
    low = -9 * s - 8.0
    v, wv = legendre(low, 9 * s + 45.0, 20, 24)
    below = np.exp(-np.exp(-np.clip(v[:, None] - s * z, -50, None))) @ (density(z) * wz)
    below = np.clip(below, 0.0, 1.0) ** classes
    return float(low + np.sum(wv * (1 - below)) - np.euler_gamma)


def top_gap() -> CheckResult:
    """K (K-1) int phi^2 Phi^(K-2) against E max, K = 2, 3, 10, 128, 10^5."""
    x, w = legendre(-9.0, 12.0, 20, 60)
    pairs = []
    for classes in (2, 3, 10, 128, 100_000):
        ties = classes * (classes - 1) * np.sum(w * density(x) ** 2 * np.exp((classes - 2) * log_ndtr(x)))
        pairs.append((np.array(ties), np.array(mean_top(classes))))
    return worst(pairs, 1e-9, "density of ties against the mean of the largest field, relative error")


def low_temperature(ratio: sympy.Expr) -> CheckResult:
    """s^2 (m - Phi)/c - 1 at s = 10^4 and 10^6, times s: the limit is reached as 1/s for K = 2, 3, 10, 128."""
    c, found = float(ratio), 0.0
    for classes in (2, 3, 10, 128):
        m = mean_top(classes)
        found = max(found, abs(race_integrals(1e6, classes)[1] / (c * m) - 1) * 1e2)
        found = max(found, abs(race_integrals(1e4, classes)[1] / (c * m) - 1))
        loss, _ = race_integrals(1e6, classes)
        found = max(found, abs(loss * 1e6 / (c * m) - 1) * 1e2)
    return CheckResult(
        found, 2e-3, "s^2 (m - Phi)/c at s = 10^4 (and hundredfold at 10^6) for K = 2, 3, 10, 128, minus one"
    )


def two_classes(form: TwoClasses) -> CheckResult:
    """What the first n terms leave at s = 60 is the next term: 30-digit quadrature, relative difference."""
    mpmath.mp.dps = 30
    s = mpmath.mpf(60)
    half = lambda u: mpmath.exp(-u * u / 4) / mpmath.sqrt(mpmath.pi)  # noqa: E731
    grid = [0, 0.1, 0.5, 1, 2]
    exact = mpmath.quad(lambda u: half(u) * mpmath.log1p(mpmath.exp(-s * u)), grid)
    slope = mpmath.quad(lambda u: half(u) * u / (1 + mpmath.exp(s * u)), grid)
    worst_ratio = mpmath.mpf(0)
    for value, terms, shift in ((exact, form.loss, 1), (slope, form.gap, 2)):
        left = value
        for n, term in enumerate(terms):
            size = mpmath.mpf(sympy.N(term, 30)) / s ** (2 * n + shift)
            worst_ratio = max(worst_ratio, abs(left / size - 1))
            left -= size
    mpmath.mp.dps = 15
    return CheckResult(
        float(worst_ratio), 0.02, "remainder of the K = 2 series at s = 60 over the next term, minus one"
    )


def gauss(order: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the standard normal."""
    x, w = np.polynomial.hermite_e.hermegauss(order)
    return x, w / w.sum()


def softplus_mean(spread: float) -> float:
    """E log(1 + exp(sqrt(2 Delta) xi)) by a trapezoidal sum."""
    x = np.linspace(-9.5, 9.5, 4001)
    return float(np.sum(density(x) * np.logaddexp(0.0, np.sqrt(2 * spread) * x)) * (x[1] - x[0]))


class TwoClassAverages:
    """Exact averages of K = 2 at overlap D and spread Delta: integrals over y = D u and xi."""

    m = 1 / np.sqrt(np.pi)
    # Of the unit interval, and of xi: the flows ask for them at every evaluation.
    unit = legendre(0.0, 1.0, 16, 6)
    xi = np.linspace(-8.0, 8.0, 65)
    xi_weight = density(xi) * (xi[1] - xi[0])

    def _gap_nodes(self, scale: float, reach: float) -> tuple[np.ndarray, np.ndarray]:
        end = min(reach, 13.0 * scale)
        y = end * self.unit[0]
        return y, end * self.unit[1] * np.exp(-((y / scale) ** 2) / 4) / np.sqrt(np.pi)

    def aligned(self, s: float) -> tuple[float, float]:
        """(F - s m, m - Phi)."""
        y, w = self._gap_nodes(s, 48.0)
        return np.sum(w * np.log1p(np.exp(-y))) / s, np.sum(w * y * expit(-y)) / s**2

    def noise(self, overlap: float, spread: float) -> tuple[float, float]:
        """(G, error)."""
        width = np.sqrt(2 * spread)
        y, w = self._gap_nodes(overlap, 40.0 + 9.5 * width)
        G = 2 * w @ expit(-(y[:, None] + width * self.xi)) ** 2 @ self.xi_weight / overlap
        miss = 0.0 if spread == 0 else 2 / np.pi * np.arctan2(width / np.sqrt(2), overlap) / 2
        return G, miss

    def agreement(self, overlap: float, spread: float) -> float:
        """C = E[p.y] = E sigma(z)."""
        width = np.sqrt(2 * spread)
        y, w = self._gap_nodes(overlap, 40.0 + 9.5 * width)
        return 1 - w @ expit(-(y[:, None] + width * self.xi)) @ self.xi_weight / overlap

    def loss(self, overlap: float, spread: float) -> float:
        """F - D m."""
        s = np.hypot(overlap, np.sqrt(spread))
        return self.aligned(s)[0] + spread / (s + overlap) * self.m

    def flow(self, overlap: float, spread: float, rate: float, size: float) -> tuple[float, float]:
        """(dD, dDelta) of SGD, hard labels, from g (lam* gaps) directly: K = 2, K - 1 = 1."""
        s = np.hypot(overlap, np.sqrt(spread))
        gap = self.aligned(s)[1]
        H = (self.m - gap) / s
        G, _ = self.noise(overlap, spread)
        dD = rate * (gap + spread / (s + overlap) * H)
        return dD, -2 * rate * spread * H + rate**2 / size * G


def layer(form: Layer) -> CheckResult:
    """Exact K = 2 averages at D = 1000 (next order 1/D^2) and Delta = 0.3, 0 and 4 against the layer's integrals."""
    pairs, averages, D = [], TwoClassAverages(), 1000.0
    for spread in (0.0, 0.3, 4.0):
        values = {DELTA: spread, SOFTPLUS_MEAN: softplus_mean(spread)}
        kappa, noise, error = (float(x.subs(values)) * averages.m for x in (form.kappa, form.noise, form.error))
        G, miss = averages.noise(D, spread)
        s = np.hypot(D, np.sqrt(spread))
        H = (averages.m - averages.aligned(s)[1]) / s
        drift = averages.aligned(s)[1] + spread / (s + D) * H
        pairs += [(averages.loss(D, spread) * D, kappa), (drift * D * D, kappa), (G * D, noise),
                  (H * D, float(form.curvature) * averages.m)]  # fmt: skip
        if spread:
            pairs += [(miss * D, error), (_missed(D, spread) * D, error)]
    two = max(abs(a / b - 1) for a, b in pairs) / 3e-5
    return CheckResult(
        float(max(two, many_classes(form) / 4)), 1.0,
        "exact K = 2 averages at D = 1000 (unit 3e-5), K = 5 samples extrapolated in 1/D (unit 4 standard errors)",
    )  # fmt: skip


def many_classes(form: Layer, spread: float = 0.3, classes: int = 5) -> float:
    """Largest z-score of D times loss, G and error of K = 5, extrapolated from D = 40 and 80, against the layer."""
    mean, error = _sampled_layer(spread, classes)
    values = {DELTA: spread, SOFTPLUS_MEAN: softplus_mean(spread)}
    expected = mean_top(classes) * np.array([float(x.subs(values)) for x in (form.kappa, form.noise, form.error)])
    return float(np.max(np.abs(mean - expected) / error))


@lru_cache(maxsize=2)
def _sampled_layer(spread: float, classes: int, samples: int = 2_000_000) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard errors of 2 Q(80) - Q(40), Q(D) = D (loss, G, error)."""
    rng, rows = np.random.default_rng(9), []
    for _ in range(samples // 100_000):
        teacher, other = rng.standard_normal((2, 100_000, classes))
        top = np.argmax(teacher, axis=1)[:, None]
        at = {}
        for D in (40.0, 80.0):
            logits = D * teacher + spread**0.5 * other
            margin = logits - np.take_along_axis(logits, top, 1)
            total = np.sum(np.exp(margin), axis=1)
            p = np.exp(margin) / total[:, None]
            right = np.take_along_axis(p, top, 1)[:, 0]
            G = np.sum(p * p, axis=1) - 2 * right + 1
            at[D] = D * np.stack([np.log(total), G, np.max(margin, axis=1) > 0])
        rows.append(2 * at[80.0] - at[40.0])
    found = np.concatenate(rows, axis=1)
    return found.mean(axis=1), found.std(axis=1) / samples**0.5


def _missed(overlap: float, spread: float) -> float:
    """P(margin < 0) by quadrature."""
    y, w = legendre(0.0, 60.0, 20, 10)
    weight = w * np.exp(-((y / overlap) ** 2) / 4) / np.sqrt(np.pi) / overlap
    return float(np.sum(weight * erfc(y / (2 * np.sqrt(spread))) / 2))


def margin_losses(forms: tuple[MarginLoss, ...]) -> CheckResult:
    """int_0^oo y (-dl/dz) dy by quadrature, dl/dz by complex steps."""
    functions = {
        "cross_entropy": lambda z: np.log(1 + np.exp(-z)),
        "focal": lambda z: (1 / (1 + np.exp(z))) ** 2 * np.log(1 + np.exp(-z)),
        "brier": lambda z: (1 / (1 + np.exp(z))) ** 2,
    }
    y, w = legendre(0.0, 45.0, 20, 8)
    pairs = []
    for form in forms:
        slope = np.imag(functions[form.name](y + 1e-30j)) / 1e-30
        pairs.append((np.array(float(form.drift)), np.array(np.sum(w * y * -slope))))
    return worst(pairs, 1e-11, "drift constants of margin losses against quadrature, relative error")
