"""Numeric checks of signs and Muon on peaked classes: one step at finite d, the hardest of a batch, the laws of late times."""

from __future__ import annotations

import numpy as np
import sympy
from scipy.special import ndtr, softmax

from derivations.peaked.adam import DRIFT
from derivations.peaked.checks_laws import EXACT, around, log_time, slope
from derivations.peaked.laws import POWER
from derivations.peaked.notation import (
    BETA,
    CURVATURE,
    DELTA,
    DIMENSION,
    MEAN_TOP,
    OTHERS,
    PER_BATCH,
    RATE,
    SECOND_MOMENT,
    D,
    K,
)
from derivations.peaked.unit import (
    BEND,
    FLAT,
    GAIN,
    HOLD,
    LENGTH,
    RHO,
    SIGMA,
    STRENGTH,
    TIES,
    Hardest,
    Unit,
    UnitLaws,
    Whitened,
)
from odescale.symbolic.record import CheckResult
from odescale.symbolic.sgd import batch, decay

OVERLAP, SPREAD, STEP, INPUTS = 1.3, 0.6, 0.02, 200


def _slopes(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """p - y of hard labels; exact while no probability rounds to one."""
    return softmax(student, axis=-1) - np.eye(teacher.shape[-1])[np.argmax(teacher, axis=-1)]


def batch_fields(classes: int, size: int, count: int, overlap: float, spread: float, seed: int) -> tuple:
    """(g, lam*, lam_perp) of `count` batches, each (count, size, classes)."""
    rng = np.random.default_rng(seed)
    teacher, other = rng.standard_normal((2, count, size, classes))
    other = spread**0.5 * (other - other.mean(axis=-1, keepdims=True))
    return _slopes(teacher, overlap * teacher + other), teacher, other


def sampled(classes: int, size: int, count: int = 200_000) -> dict[sympy.Symbol, float]:
    """sigma, h and rho by their definition: averages of sum_b g_b X_b/|g|, and of the arcsine, over whole batches."""
    g, teacher, other = batch_fields(classes, size, count, OVERLAP, SPREAD, 21)
    w = g / np.sqrt(np.sum(g * g, axis=1, keepdims=True))
    cosine = np.einsum("nbi,nbj->nij", w, w)[:, ~np.eye(classes, dtype=bool)]
    return {
        SIGMA: float(-np.mean(np.sum(w * teacher, axis=(1, 2))) / (classes - 1)),
        HOLD: float(np.mean(np.sum(w * other, axis=(1, 2))) / (classes - 1) / SPREAD),
        RHO: float(np.mean(2 / np.pi * np.arcsin(np.clip(cosine, -1, 1)))),
    }


def moved(classes: int, size: int, steps: int, seed: int, direction) -> np.ndarray:
    """(2, steps): change of D and of Delta in one step W <- W - l direction(ghat) at d = 200, logits W x."""
    rng, found, d = np.random.default_rng(seed), [], INPUTS
    basis = np.linalg.qr(rng.standard_normal((d, 2 * classes)))[0].T
    teacher, other = basis[:classes], basis[classes:]
    W = OVERLAP * teacher + SPREAD**0.5 * (other - other.mean(axis=0))
    for _ in range(steps // 200):
        x = rng.standard_normal((200, size, d))
        gradient = np.swapaxes(_slopes(x @ teacher.T, x @ W.T), 1, 2) @ x
        new = W - STEP * direction(gradient)
        new = new - new.mean(axis=1, keepdims=True)
        overlap = np.sum(new * teacher, axis=(1, 2)) / (classes - 1)
        change = overlap - OVERLAP
        square = np.sum(new**2, axis=(1, 2)) / (classes - 1) - OVERLAP**2 - SPREAD
        found.append([change, square - 2 * OVERLAP * change])
    return np.concatenate(found, axis=1)


def _off(found: np.ndarray, derived: tuple, values: dict) -> float:
    """Relative error plus four standard errors, the larger of the two; dDelta in units of its noise."""
    expected = [float(e.subs(values)) for e in derived]
    error = 4 * found.std(axis=1, ddof=1) / found.shape[1] ** 0.5
    return float(np.max((np.abs(found.mean(axis=1) - expected) + error) / np.abs(expected)))


def signs(unit: Unit) -> CheckResult:
    """Signs of batches of 1 and of 3 samples at K = 4, one step at d = 200."""
    off = []
    for size, steps in ((1, 30_000), (3, 30_000)):
        values = {**sampled(4, size), D: OVERLAP, DELTA: SPREAD, RATE: STEP, DIMENSION: INPUTS, BETA: 1, decay: 0}
        off.append(_off(moved(4, size, steps, 22, np.sign), unit.flow, values))
    return CheckResult(max(off), 0.06, "signs at d = 200, K = 4, B = 1 and 3: relative error plus four standard errors")


def many(drift: sympy.Expr, noise: sympy.Expr) -> CheckResult:
    """sigma and rho of batches of 512 samples by their definition against Adam's form, K = 4."""
    found = sampled(4, 512, 1500)
    g, teacher, _ = batch_fields(4, 1, 400_000, OVERLAP, SPREAD, 23)
    A, G = -np.mean(np.sum(g * teacher, axis=(1, 2))) / 3, np.mean(np.sum(g * g, axis=(1, 2)))
    values = {DRIFT: A, SECOND_MOMENT: G, batch: 512, K: 4, BETA: 1, RATE: 1}
    gain = float(np.sqrt(2 / np.pi))
    off = [gain * found[SIGMA] / float(drift.subs(values)) - 1, (1 - found[RHO]) / float(noise.subs(K, 4)) - 1]
    return CheckResult(float(np.max(np.abs(off))), 0.02, "signs of 512 samples: sigma and 1 - rho, relative error")


def gap(r: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(density, P(> r)) of r = |lam_i - max of the others|: the trapezium rule in lam_i is exponentially exact."""
    z, others = np.arange(-9, 9.01, 0.05), classes - 1
    weights = 0.05 * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    density = np.zeros_like(r)
    for x in (z - r[:, None], z + r[:, None]):
        density += (others * np.exp(-0.5 * x * x) / np.sqrt(2 * np.pi) * ndtr(x) ** (others - 1)) @ weights
    return density, (1 - ndtr(z + r[:, None]) ** others + ndtr(z - r[:, None]) ** others) @ weights


def two_hardest(classes: int, size: int) -> float:
    """J by Gauss and Legendre's rule on panels in r."""
    edges = np.concatenate([[0.0], np.geomspace(0.02 / size, 14.0, 60)])
    nodes, weights = np.polynomial.legendre.leggauss(8)
    half = np.diff(edges) / 2
    r, w = (edges[:-1, None] + half[:, None] * (nodes + 1)).ravel(), (half[:, None] * weights).ravel()
    f, survival = gap(r, classes)
    return float(size * (size - 1) * w @ (f * f * np.clip(survival, 0, 1) ** (size - 2)))


def hardest(found: Hardest) -> CheckResult:
    """sigma of the hardest of 4 samples by sampling, and sigma at B = 1000 by quadrature, K = 3 and 10."""
    rng, off = np.random.default_rng(24), []
    for classes in (3, 10):
        fields = rng.standard_normal((200_000, 4, classes))
        top = np.sort(fields, axis=-1)[..., -2:]
        delta = np.where(fields == top[..., 1:], fields - top[..., :1], fields - top[..., 1:])
        chosen = np.argmin(np.abs(delta), axis=1)[:, None]
        picked, signed = (np.take_along_axis(x, chosen, axis=1)[:, 0] for x in (fields, np.sign(delta)))
        rows = np.sum(picked * signed, axis=1) / (classes - 1)
        m = np.mean(top[..., 1])
        expected = float(found.drift.subs({K: classes, batch: 4, MEAN_TOP: m, TIES: two_hardest(classes, 4)}))
        off.append(abs(rows.mean() - expected) / (4 * rows.std() / rows.size**0.5 + 2e-3))
        flat, near = gap(np.array([0.0, 0.02]), classes)[0]
        exact = classes * (1000 * flat - two_hardest(classes, 1000))  # f_0 = 2 m/K
        large = float(found.large.subs({K: classes, batch: 1000, FLAT: flat, BEND: 2 * (near - flat) / 0.02**2}))
        off.append(abs(exact / large - 1) / 0.05)
    return CheckResult(float(np.max(off)), 1.0, "hardest of 4: sigma in units of its error; of 1000: bend, unit 5 %")


def laws(law: UnitLaws) -> CheckResult:
    """K = 2, B = 1, 100 inputs (sigma = 2 m, h = 0, 1 - rho = 2) with the exact loss: both exponents at g = 1/4 and 3/4, floor."""
    off = []
    gain = np.sqrt(2 / np.pi) * 2 * EXACT.m
    for g, rate, loss in ((0.25, 1e-2, "growing"), (0.75, 1e-2, "vanishing")):

        def flow(t: float, y: np.ndarray, g: float = g, rate: float = rate) -> list[float]:
            speed = rate * (1 + t) ** -g
            return [gain * speed, 2 * 100 * speed**2]

        times = around(1e9 if g < 0.5 else 1e15)
        overlap, spread = log_time(flow, [1e-3, 1e-9], times, 1e-9)
        losses = np.array([EXACT.loss(x, y) for x, y in zip(overlap, spread, strict=True)])
        off.append(slope(losses) - float(law.exponents[loss].subs(POWER, g)))
        if g < 0.5:
            off.append(slope(np.sqrt(spread) / overlap) - float(law.exponents["growing error"]))
    steps = 1e6
    found = EXACT.loss(gain * 1e-2 * steps, 200 * 1e-4 * steps)
    off.append(found / float(law.floor.subs({K: 2, DIMENSION: 100, RATE: 1e-2})) - 1)
    return CheckResult(float(np.max(np.abs(off))), 0.01, "exact K = 2 flow of signs at B = 1: exponents and floor")


def _polar(gradient: np.ndarray) -> np.ndarray:
    u, size, v = np.linalg.svd(gradient, full_matrices=False)
    return (u * (size > 1e-8 * size[:, :1])[:, None]) @ v


def muon(unit: Unit, whitened: Whitened) -> CheckResult:
    """Orthogonal factor of the gradient of 256 samples, K = 4, and of 3 samples, K = 2: one step at d = 200."""
    g, teacher, other = batch_fields(4, 1, 400_000, OVERLAP, SPREAD, 25)
    A, G = -np.mean(np.sum(g * teacher, axis=(1, 2))) / 3, np.mean(np.sum(g * g, axis=(1, 2)))
    H = np.mean(np.sum(g * other, axis=(1, 2))) / SPREAD  # tr P H/(K - 1) times Delta
    common = {
        D: OVERLAP,
        DELTA: SPREAD,
        RATE: STEP,
        GAIN: 1,
        LENGTH: 1,
        DIMENSION: INPUTS,
        BETA: 1,
        decay: 0,
        OTHERS: 3,
    }
    values = {**common, DRIFT: A, SECOND_MOMENT: G, CURVATURE: H, PER_BATCH: 1 / 256, STRENGTH: 1}
    v = float(whitened.second.subs(values))
    flow = tuple(e.subs(sympy.Symbol("v", positive=True), v) for e in whitened.flow)
    off = _off(moved(4, 256, 1200, 26, _polar), flow, values)
    pair = _off(moved(2, 3, 60_000, 27, _polar), whitened.pair, {**common, **sampled(2, 3)})
    return CheckResult(max(off, pair), 0.08, "Muon at d = 200, K = 4, B = 256, and K = 2, B = 3: error plus four s.e.")
