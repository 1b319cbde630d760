"""Numeric checks of the rollout's derivation: each compares a formula with a simulation or quadrature that does not use it."""

from __future__ import annotations

import numpy as np
import sympy
from scipy import stats
from scipy.integrate import quad

from derivations.numeric import worst
from odescale.symbolic.record import CheckResult


def _at(expression: sympy.Expr, **values: float) -> float:
    return float(expression.subs({s: values[s.name] for s in expression.free_symbols}))


def _rate(n: np.ndarray) -> np.ndarray:
    """A g(n) with a jump, as a policy with a threshold has."""
    return np.where(n == 0, 0.0, np.where(n <= 3, 0.4, 1.0) * np.sqrt(1 + (n / 4.0) ** 2))


REQUESTS, SCALE = 12, 50.0
"""Exponential lengths: S(l) = e^(-l/50)."""


def _times(seeds: int) -> np.ndarray:
    """T of drawn lengths by the times between ends: T = sum_k g(N - k + 1) (L_(k) - L_(k-1))."""
    lengths = np.sort(np.random.default_rng(4).exponential(SCALE, (seeds, REQUESTS)), axis=1)
    between = np.diff(lengths, axis=1, prepend=0.0)
    return between @ _rate(REQUESTS - np.arange(REQUESTS))


def _binomial(S: float) -> np.ndarray:
    return stats.binom.pmf(np.arange(REQUESTS + 1), REQUESTS, S)


def order_statistics() -> CheckResult:
    """The integral of E g(n(l)) against the mean of T over drawn lengths, in standard errors; n = N S must fail by far."""
    g = _rate(np.arange(REQUESTS + 1))
    mean = quad(lambda x: float(_binomial(np.exp(-x / SCALE)) @ g), 0, 40 * SCALE, limit=400)[0]
    naive = quad(lambda x: float(_rate(np.array(REQUESTS * np.exp(-x / SCALE)))), 0, 40 * SCALE, limit=400)[0]
    T = _times(200_000)
    error = T.std() / np.sqrt(T.size)
    if abs(naive / T.mean() - 1) < 0.05:
        return CheckResult(np.inf, 4.0, "n = N S was to fail")
    return CheckResult(float(abs(mean - T.mean()) / error), 4.0, "mean time of drawn lengths, standard errors")


def variance() -> CheckResult:
    """The double integral of the covariance against the variance of T over drawn lengths, in standard errors."""
    x, w = np.polynomial.legendre.leggauss(160)
    # length = -50 log u takes (0, 1) to all lengths and S to u.
    u, w = (x + 1) / 2, w / 2
    length, S = -SCALE * np.log(u), u
    weight = w * SCALE / u
    order = np.argsort(length)
    S, weight = S[order], weight[order]
    n = np.arange(REQUESTS + 1)
    g = _rate(n)
    P = stats.binom.pmf(n, REQUESTS, S[:, None])
    mean = P @ g
    total = 0.0
    for i in range(S.size):
        later = np.arange(i, S.size)
        ratio = S[later] / S[i]
        given = stats.binom.pmf(n[None, :, None], n[None, None, :], ratio[:, None, None])
        onward = np.einsum("k,jkm->jm", g, given)
        covariance = onward @ (P[i] * g) - mean[i] * mean[later]
        # Half of the diagonal: it is met once where the double sum over x < y would meet it twice.
        share = np.where(later == i, 0.5, 1.0)
        total += 2 * weight[i] * np.sum(share * weight[later] * covariance)
    T = _times(200_000)
    error = T.var() * np.sqrt((stats.kurtosis(T) + 2) / T.size)
    return CheckResult(float(abs(total - T.var()) / error), 4.0, "variance of drawn times, standard errors")


def roofline(roof: sympy.Expr) -> CheckResult:
    """Between the larger of its two sides and their sum, nearer the larger one the sharper."""
    pairs = []
    for m in (1.0, 60.0, 400.0):
        sharp = _at(roof, m=m, m_0=100.0, q=60.0)
        pairs.append((np.array(sharp), np.array(max(1.0, m / 100.0))))
        pairs.append((np.array(_at(roof, m=m, m_0=100.0, q=1.0)), np.array(1 + m / 100.0)))
    return worst(pairs, 0.02, "roofline against its sides at q = 60, their sum at q = 1, relative error")


def one_token() -> CheckResult:
    """Drawn, accepted or drawn again: the share accepted against 1 - TV, what is emitted against p, in standard errors."""
    rng = np.random.default_rng(5)
    p, q = rng.dirichlet(np.ones(6), 2)
    trials = 400_000
    x = rng.choice(6, trials, p=q)
    accept = rng.random(trials) < np.minimum(1, p[x] / q[x])
    rest = np.maximum(p - q, 0)
    again = rng.choice(6, trials, p=rest / rest.sum())
    counts = np.bincount(np.where(accept, x, again), minlength=6)
    a = 1 - np.abs(p - q).sum() / 2
    z = [(accept.mean() - a) / np.sqrt(a * (1 - a) / trials), *((counts / trials - p) / np.sqrt(p * (1 - p) / trials))]
    return CheckResult(float(np.max(np.abs(z))), 4.0, "accepted share and emitted tokens, standard errors")


def rounds(kept: sympy.Expr, constant: sympy.Expr) -> CheckResult:
    """Tokens of drawn rounds, place after place, against the sum of products; h = 0 against the geometric sum."""
    rng, depth, first, hazard = np.random.default_rng(6), 7, 0.85, 0.06
    a = first * np.exp(-hazard * np.arange(depth))
    tokens = 1 + np.cumprod(rng.random((300_000, depth)) < a, axis=1).sum(axis=1)
    j = next(s for s in kept.free_symbols if s.name == "j")
    by_formula = 1 + sum(float(kept.subs({j: k}).subs({s: {"a_1": first, "h": hazard}[s.name] for s in kept.free_symbols - {j}}))
                         for k in range(1, depth + 1))  # fmt: skip
    geometric = 1 + sum(0.8**k for k in range(1, 6))
    if abs(float(constant.subs({s: {"a_1": 0.8, "d": 5}[s.name] for s in constant.free_symbols})) - geometric) > 1e-12:
        return CheckResult(np.inf, 4.0, "geometric sum")
    z = (tokens.mean() - by_formula) / (tokens.std() / np.sqrt(tokens.size))
    return CheckResult(float(abs(z)), 4.0, "tokens of drawn rounds, standard errors")


def renewal(extra: sympy.Expr) -> CheckResult:
    """Rounds until L tokens are there, drawn, times A, minus L, against the formula."""
    rng, depth, L = np.random.default_rng(7), 5, 300
    a = np.full(depth, 0.8)
    tokens = 1 + np.cumprod(rng.random((4_000_000, depth)) < a, axis=1).sum(axis=1)
    A, square = tokens.mean(), (tokens**2.0).mean()
    total = tokens.reshape(20_000, 200).cumsum(axis=1)
    count = (total < L).sum(axis=1) + 1.0
    error = A * count.std() / np.sqrt(count.size)
    z = (A * count.mean() - L - _at(extra, A=A, A_2=square)) / error
    return CheckResult(float(abs(z)), 4.0, "rounds until 300 tokens are there, standard errors")


def places(per_token: sympy.Expr) -> CheckResult:
    """Variance of the sum of 200 drawn rounds against its mean times the formula, in standard errors."""
    rng, depth, runs = np.random.default_rng(9), 6, 20_000
    a = 0.85 * np.exp(-0.05 * np.arange(depth))
    tokens = 1 + np.cumprod(rng.random((runs * 200, depth)) < a, axis=1).sum(axis=1)
    sums = tokens.reshape(runs, 200).sum(axis=1)
    theory = sums.mean() * _at(per_token, A=tokens.mean(), A_2=(tokens**2.0).mean())
    return CheckResult(
        float(abs(sums.var() / theory - 1) * np.sqrt(runs / 2)), 4.0, "variance of places, standard errors"
    )


def slow_map(seen: sympy.Expr, star: sympy.Expr) -> CheckResult:
    """The relaxation by Euler steps and the drift, repeated: where it ends against the fixed point."""
    numbers = {"kappa_inf": 0.1, "delta": 0.03, "r": 0.7, "tau": 0.5}
    kappa, steps = 0.6, 4000
    first = None
    for _ in range(80):
        for _ in range(steps):
            kappa -= numbers["r"] * (kappa - numbers["kappa_inf"]) * numbers["tau"] / steps
        kappa += numbers["delta"]
        first = kappa if first is None else first
    pairs = [
        (np.array(_at(seen, kappa=0.6, **numbers)), np.array(first)),
        (np.array(_at(star, **numbers)), np.array(kappa)),
    ]
    return worst(pairs, 2e-4, "one step and the end of the slow map by Euler steps, relative error")


def total_variation(gaussian: sympy.Expr) -> CheckResult:
    """TV and KL of a long vector of probabilities with small Gaussian differences."""
    rng = np.random.default_rng(8)
    p = rng.dirichlet(np.ones(400_000))
    q = p * np.exp(0.05 * rng.standard_normal(p.size))
    q /= q.sum()
    kappa, variation = np.sum(p * np.log(p / q)), np.abs(p - q).sum() / 2
    return worst(
        [(np.array(_at(gaussian, kappa=kappa)), np.array(variation))], 0.01, "TV against sqrt(KL/pi), relative error"
    )


def amdahl(whole: sympy.Expr) -> CheckResult:
    """A step of 100 s of which 85 are rollout, made twice as fast: 100/57.5."""
    return worst(
        [(np.array(_at(whole, f=0.85, G=2.0)), np.array(100 / (15 + 85 / 2)))], 1e-12, "end-to-end gain, relative error"
    )
