"""Closed moments of the linear model mode by mode, step by step, in numpy: Muon, Adam's memory, and SGD beside Adam with noise.

e_k = lam_k <D_k^2> per coordinate, mean square error P = s^2 + sum_k e_k; one unit of t is one step (N = 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from scipy.optimize import brentq
from scipy.special import gamma


@dataclass(frozen=True)
class Course:
    """Losses after `steps`, intrinsic time s = sum of the steps' rate, and the rate."""

    steps: np.ndarray
    loss: np.ndarray
    s: np.ndarray
    rate: np.ndarray


def power_levels(b: float, c: float, modes: float, per_decade: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(k^-b, k^-c, number) of log bins of the ranks 1..modes, sums over ranks as integrals where bins are long."""
    edges = [1.0]
    while edges[-1] < modes + 1:
        edges.append(min(max(edges[-1] + 1, round(edges[-1] * 10 ** (1 / per_decade))), modes + 1))
    low, high = np.array(edges[:-1]), np.array(edges[1:])

    def mean(power: float) -> np.ndarray:
        found = []
        for first, past in zip(low, high, strict=True):
            if past - first < 2000:
                found.append(np.mean(np.arange(first, past) ** -power))
            else:
                x, y = first - 0.5, past - 0.5
                found.append(np.log(y / x) if power == 1 else (y ** (1 - power) - x ** (1 - power)) / (1 - power))
                found[-1] /= past - first
        return np.array(found)

    return mean(b), mean(c), high - low


def muon_moments(
    lam: np.ndarray, start: np.ndarray, number: float, batch: float, mu: float, a: float, times: Sequence[int]
) -> Course:
    """Muon with momentum on one of several rows of independent targets: K is diagonal, and every row has its own.

    phi' = phi - A lam f',  f' = mu f + (1 - mu) (phi + noise),  A = a/sqrt(sum lam <f'^2>); `number` coordinates per level.
    """
    pp, ff, pf = start.astype(float), np.zeros(len(lam)), np.zeros(len(lam))
    s, last, found, wanted = 0.0, int(max(times)), [], {int(n) for n in times}
    for n in range(1, last + 1):
        risk = number * pp.sum()
        ff = mu**2 * ff + 2 * mu * (1 - mu) * pf + (1 - mu) ** 2 * (pp * (1 + 1 / batch) + risk / batch)
        cross = mu * pf + (1 - mu) * pp
        A = a / np.sqrt(number * np.sum(lam * ff))
        move = A * lam
        pp, pf = pp - 2 * move * cross + move**2 * ff, cross - move * ff
        s += A
        if n in wanted:
            found.append((n, number * pp.sum(), s, A))
    return Course(*np.array(found).T)


def muon_course(
    b: float, c: float, batch: float, squares: float, a: float, end: float, modes: float = 1e9, growth: float = 0.02
) -> Course:
    """de_k/ds = -2 lam_k e_k + A lam_k P/B, A = ds/dt = a/sqrt(nu N P/B + sum lam_k e_k), in steps of log s to t = `end`."""
    lam, e, number = power_levels(b, c, modes)
    N, t, s, found = float(np.sum(number * lam)), 0.0, 0.0, []
    while t < end:
        risk = float(np.sum(number * e))
        A = a / np.sqrt(squares * N * risk / batch + float(np.sum(number * lam * e)))
        h = growth * max(s, 0.05)
        left = np.exp(-2 * lam * h)
        e = e * left + A * risk / (2 * batch) * (1 - left)
        s, t = s + h, t + h / A
        found.append((t, float(np.sum(number * e)), s, A))
    return Course(*np.array(found).T)


@dataclass
class MemoryOfV:
    """Adam without beta1 on a linear model in the eigenbasis; `effects` of a fluctuating v that are kept, see `derivations`.

    `steady`: v's fluctuation and what it holds as they are in a steady state (the library's ODE); `weights`: its weights follow
    the squares that it remembers; `moved`: its covariance with phi^2; `shared`: the part that all modes share and the risk;
    `spread`: the variance of phi^2 between runs.
    """

    lam: np.ndarray
    rate: float
    beta2: float
    batch: float
    effects: tuple[str, ...] = ("weights", "moved", "shared", "spread")
    noise: float = 0.0
    STAGES: ClassVar[dict[str, tuple[str, ...]]] = {
        "v at its mean": (),
        "+ weights of what it remembers": ("weights",),
        "+ covariance with phi^2": ("weights", "moved"),
        "+ with the risk, shared": ("weights", "moved", "shared"),
        "+ variance of phi^2 between runs": ("weights", "moved", "shared", "spread"),
    }
    excess: float = field(init=False)

    def __post_init__(self) -> None:
        self.excess = 2 + 6 / self.batch

    def losses(self, start: np.ndarray, times: Sequence[int]) -> np.ndarray:
        """sum e_k after so many steps from e = `start`, all of it mean."""
        lam, B, beta2, k4 = self.lam, self.batch, self.beta2, self.excess
        e, mean = start.astype(float), start.astype(float)
        v, squares, C, R, shared = np.zeros_like(e), np.zeros_like(e), np.zeros_like(e), np.zeros_like(e), 0.0
        on, found, last = set(self.effects), [], int(max(times))
        for n in range(1, last + 1):
            P, bias = self.noise + float(e.sum()), 1 - beta2**n
            square = P / B + (1 + 1 / B) * e
            v = beta2 * v + (1 - beta2) * square
            squares = beta2**2 * squares + (1 - beta2) ** 2 * square**2
            shared = beta2 * shared + (1 - beta2) * P / B
            move = self.rate * lam / np.sqrt(lam * v / bias)
            w, S = (1 - beta2) * square / v, squares / v**2
            drift, noise = np.ones_like(e), np.ones_like(e)
            if "steady" in on:
                w, S = (1 - beta2) / bias, (1 - beta2) / (1 + beta2) * (1 + beta2**n) / bias
                once, twice = ((1 - beta2) / (1 - beta2 + m * move) for m in (1, 2))
                drift = 1 + k4 * (w / 2 - 3 * S / 8 - move * once)
                noise = 1 + k4 * (w - S - move * twice)
            elif "weights" in on:
                drift, noise = 1 + k4 * (w / 2 - 3 * S / 8), 1 + k4 * (w - S)
                if "moved" in on:
                    drift = drift + beta2 * C / (2 * v * e)
                if "shared" in on:
                    noise = noise + beta2 * float(R.sum()) / (shared * P)
            heat = move**2 * square / noise
            gained, kept = heat - 2 * move * e, np.maximum(1 - 2 * move, 0)
            held = S * (move * e - heat)
            own, common = k4 * square * gained, 2 * P / B**2 * gained
            if "spread" in on:
                spread = 2 * np.maximum(e**2 - mean**2, 0)
                own, common = own + (1 + 2 / B) * spread, common + spread / B
            C = beta2 * (C * kept + k4 * held * v) + (1 - beta2) * own
            R = beta2 * (R * kept + 2 / B * held * shared) + (1 - beta2) * common
            mean = mean * np.maximum(1 - move / drift, 0) ** 2
            e = e - 2 * move / drift * e + heat
            if n in times:
                found.append(e.sum())
        return np.array(found)


def sgd_losses(
    lam: np.ndarray, start: np.ndarray, eta: float, batch: float, noise: float, times: Sequence[int]
) -> np.ndarray:
    """sum e_k of SGD, exactly: e' = (1 - 2 r + (1 + 1/B) r^2) e + r^2 P/B, r = eta lam."""
    e, move, found = start.astype(float), eta * lam, []
    for n in range(1, int(max(times)) + 1):
        e = (1 - 2 * move + (1 + 1 / batch) * move**2) * e + move**2 * (noise + e.sum()) / batch
        if n in times:
            found.append(e.sum())
    return np.array(found)


@dataclass(frozen=True)
class Crossing:
    """Step from which Adam is below SGD and the loss there, by the formula and by the moments; tr Sigma, sum of sqrt(lam)."""

    predicted: float
    crossing: float
    level: float
    loss: float
    trace: float
    roots: float


def noisy_courses(b: float, c: float, batch: float, noise: float, floor: float, modes: float = 1e8) -> Crossing:
    """SGD and Adam at rates whose floors are `floor`, small beside the label noise: e_k(t) in closed form."""
    lam, e, number = power_levels(b, c, modes)
    trace, roots = float(np.sum(number * lam)), float(np.sum(number * np.sqrt(lam)))
    eta = 2 * batch * floor / (noise * trace)
    a = 2 * np.sqrt(batch) * floor / (np.sqrt(noise) * roots)
    fast = a * np.sqrt(batch / noise)

    def bias(t: float, rates: np.ndarray) -> float:
        return float(np.sum(number * e * np.exp(-2 * rates * t)))

    def ahead(x: float) -> float:
        t = np.exp(x)
        return np.log(bias(t, fast * np.sqrt(lam)) / bias(t, eta * lam))

    alpha = (c - 1) / b
    A1, A = gamma(alpha) / (b * 2**alpha), 2 * gamma(2 * alpha) / (b * 4**alpha)
    predicted = (A / A1) ** (1 / alpha) * roots**2 * noise / (2 * batch * floor * trace)
    grid = np.log(predicted) + np.linspace(-6, 6, 121)
    sign = np.array([ahead(x) for x in grid])
    places = np.flatnonzero((sign[:-1] > 0) & (sign[1:] <= 0))
    crossing = float(np.exp(brentq(ahead, grid[places[-1]], grid[places[-1] + 1]))) if places.size else np.nan
    level = A1**2 / A * (roots / trace) ** (-2 * alpha)
    return Crossing(predicted, crossing, level, bias(crossing, eta * lam), trace, roots)
