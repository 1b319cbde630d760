"""Numeric checks of the closure of peaked distributions: each compares a derived formula with something that does not use it."""

from __future__ import annotations

from functools import lru_cache

import mpmath
import numpy as np
import sympy
from scipy.special import softmax

from derivations.compare import Call, same_numbers
from derivations.numeric import complex_step, worst
from derivations.peaked.adam import DRIFT, NORM, Normalised
from derivations.peaked.closure import Closure
from derivations.peaked.notation import (
    BETA,
    CURVATURE,
    DELTA,
    DIMENSION,
    EXCESS,
    GAP,
    MEAN_TOP,
    OTHERS,
    PER_BATCH,
    SECOND_MOMENT,
    SMOOTHING,
    D,
    K,
)
from odescale.symbolic.record import CheckResult
from odescale.symbolic.sgd import batch, decay, eta


def slopes() -> CheckResult:
    """beta (p - (1 - eps) y - eps/K) against complex steps of the loss at K = 5."""
    rng = np.random.default_rng(1)
    logits, label, beta, smoothing = rng.standard_normal(5), np.eye(5)[2], 1.7, 0.2
    smooth = (1 - smoothing) * label + smoothing / 5

    def loss(x: np.ndarray) -> complex:
        return np.log(np.sum(np.exp(beta * x))) - beta * np.sum(smooth * x)

    got = beta * (softmax(beta * logits) - smooth)
    return worst([(got, complex_step(loss, logits))], 1e-12, "slopes of the loss against complex steps, relative error")


# ---------------------------------------------------------------------------------------------------------------------
# One SGD step at finite d: K = 4, hard and soft labels
# ---------------------------------------------------------------------------------------------------------------------

CLASSES, OVERLAP, SPREAD, INVERSE, BATCH = 4, 1.3, 0.6, 1.2, 2
RATE, SHRINK, SMOOTH, SOFT = 0.7, 0.3, 0.15, 2.0


def _label(teacher: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Rows of labels (n, K) of teacher logits (n, K)."""
    if kind == "hard":
        return np.eye(teacher.shape[-1])[np.argmax(teacher, axis=-1)]
    p = softmax(SOFT * teacher, axis=-1)
    if kind == "soft":
        return p
    return np.eye(teacher.shape[-1])[np.argmax(np.log(p) + rng.gumbel(size=teacher.shape), axis=-1)]


# E[|g|^2 (|x|^2 - d)]: |x|^2 differs from d only within the 2 K fields that g depends on.
INSIDE = sympy.Symbol("inside")


@lru_cache(maxsize=8)
def field_moments(kind: str, samples: int = 3_000_000) -> dict[sympy.Symbol, float]:
    """m, H, G and `INSIDE` of the setting above, from samples of the fields alone."""
    rng, totals = np.random.default_rng(2), np.zeros(4)
    block = 100_000
    for _ in range(samples // block):
        teacher, other = rng.standard_normal((2, block, CLASSES))
        inside = np.sum(teacher**2 + other**2, axis=1) - 2 * CLASSES
        other = other - other.mean(axis=1, keepdims=True)
        p = softmax(INVERSE * (OVERLAP * teacher + SPREAD**0.5 * other), axis=1)
        y = _label(teacher, kind, rng)
        g = p - (1 - SMOOTH) * y - SMOOTH / CLASSES
        square = np.sum(g * g, axis=1)
        totals += [np.sum(y * teacher), np.sum(1 - np.sum(p * p, axis=1)), np.sum(square), np.sum(square * inside)]
    m, H, G, inside = totals / samples
    return {MEAN_TOP: m, CURVATURE: H, SECOND_MOMENT: G, INSIDE: inside}


def _rows(d: int) -> tuple[np.ndarray, np.ndarray]:
    """(W, W*) of K rows with W W*^T/d, W W^T/d exactly those of (D, Delta)."""
    basis = np.linalg.qr(np.random.default_rng(3).standard_normal((d, 2 * CLASSES)))[0].T * d**0.5
    teacher, other = basis[:CLASSES], basis[CLASSES:]
    return OVERLAP * teacher + SPREAD**0.5 * (other - other.mean(axis=0)), teacher


def _gradients(kind: str, d: int, steps: int, size: int, seed: int) -> np.ndarray:
    """(steps, K, d): minibatch means of g x^T with logits W x/sqrt d, g = beta (p - y)."""
    rng = np.random.default_rng(seed)
    W, teacher = _rows(d)
    found = np.empty((steps, CLASSES, d))
    for n in range(0, steps, 500):
        some = found[n : n + 500]
        x = rng.standard_normal((len(some), size, d))
        p = softmax(INVERSE * (x @ W.T) / d**0.5, axis=-1)
        y = (1 - SMOOTH) * _label(x @ teacher.T / d**0.5, kind, rng) + SMOOTH / CLASSES
        some[:] = INVERSE * np.swapaxes(p - y, 1, 2) @ x / size
    return found


def numbers(kind: str) -> dict[sympy.Basic, float]:
    """Values of every symbol of the closure in the setting of these checks."""
    return {
        D: OVERLAP, DELTA: SPREAD, K: CLASSES, BETA: INVERSE, SMOOTHING: SMOOTH, eta: RATE, decay: SHRINK,
        batch: BATCH, OTHERS: CLASSES - 1, PER_BATCH: 1 / BATCH, **field_moments(kind),
    }  # fmt: skip


def one_step(closure: Closure, moments: dict[sympy.Symbol, float] | None = None) -> CheckResult:
    """d times the change of (D, Delta) in whole SGD steps at d = 200 against the closure; `moments` spoils it.

    G is that of finite d, E[|g|^2 |x|^2]/d, and the squared mean step of order 1/d is put in: no allowance is needed.
    """
    d, steps, worst_z = 200, 12_000, 0.0
    W, teacher = _rows(d)
    for kind, seed in (("hard", 4), ("sampled", 5)):
        values = {**numbers(kind), **(moments or {})}
        values[SECOND_MOMENT] += values[INSIDE] / d
        moved = W - RATE / d**0.5 * _gradients(kind, d, steps, BATCH, seed) - SHRINK / d * W
        centred = moved - moved.mean(axis=1, keepdims=True)
        overlap = np.sum(centred * teacher, axis=(1, 2)) / (d * (CLASSES - 1))
        square = np.sum(centred**2, axis=(1, 2)) / (d * (CLASSES - 1))
        change = d * (overlap - OVERLAP), d * (square - OVERLAP**2 - SPREAD) - 2 * OVERLAP * d * (overlap - OVERLAP)
        dD, dDelta = (float(e.subs(values)) for e in (closure.dD, closure.dDelta))
        # Order 1/d: the mean step squared, and the part of E|ghat|^2 that is no fluctuation.
        along, across = dD + SHRINK * OVERLAP, RATE * float((BETA * closure.response).subs(K, OTHERS + 1).subs(values))
        mean = dD**2 + (across + SHRINK) ** 2 * SPREAD - (along**2 + across**2 * SPREAD) / BATCH
        for found, expected in zip(change, (dD, dDelta + mean / d), strict=True):
            error = found.std(ddof=1) / steps**0.5 * 1.02  # and that of the sampled moments
            worst_z = max(worst_z, abs(found.mean() - expected) / error)
    return CheckResult(float(worst_z), 4.0, "one SGD step at d = 200, hard and sampled labels, z-score")


def no_cancellation(closure: Closure) -> CheckResult:
    """The split form against the plain one in 50 digits, at D = 10^4, Delta = 1/4."""
    mpmath.mp.dps = 50
    overlap, spread, H = mpmath.mpf(10) ** 4, mpmath.mpf(1) / 4, mpmath.mpf("5.6e-5")
    s = mpmath.sqrt(overlap**2 + spread)
    m = s * H + mpmath.mpf("4.6e-9")
    common = {CURVATURE: H, D: overlap, DELTA: spread, OTHERS: 2, BETA: 1, SMOOTHING: 0, eta: 1, decay: 0, MEAN_TOP: m}
    exact = closure.dD.evalf(40, subs=common)
    split = {**common, GAP: 4.6e-9, EXCESS: 0.25 / float(s + overlap)}
    got = float(closure.cancel_free.subs({k: float(v) for k, v in split.items()}))
    mpmath.mp.dps = 15
    return worst([(np.array(got), np.array(float(exact)))], 1e-12, "split form against 50 digits, relative error")


def minibatch_square(forms: Normalised) -> CheckResult:
    """|ghat|^2 of minibatches of 2 and of 64 at d = 60 (logits W x/sqrt d: the same number), z-score."""
    d, z = 60, 0.0
    for size, steps, seed in ((2, 6000, 6), (64, 1500, 7)):
        found = np.sum(_gradients("hard", d, steps, size, seed) ** 2, axis=(1, 2))
        values = {**numbers("hard"), PER_BATCH: 1 / size, DIMENSION: d}
        values[SECOND_MOMENT] += values[INSIDE] / d
        drift = float(forms.drift.subs({**values, GAP: _gap(values), EXCESS: _excess()}))
        expected = float(forms.square.subs({DRIFT: drift, **values}))
        z = max(z, abs(found.mean() - expected) / (found.std(ddof=1) / steps**0.5 * 1.02))
    return CheckResult(float(z), 4.0, "squared minibatch gradient at d = 60, z-score")


def normalised_step(forms: Normalised) -> CheckResult:
    """d times the change of (D, Delta) of normalised steps at B = 256, d = 200, relative to eta drift/|ghat|."""
    d, size, steps = 200, 256, 1200
    W, teacher = _rows(d)
    gradients = _gradients("hard", d, steps, size, 8)
    norm = np.sqrt(np.sum(gradients**2, axis=(1, 2), keepdims=True))
    moved = W - RATE / d**0.5 * gradients / norm
    centred = moved - moved.mean(axis=1, keepdims=True)
    overlap = np.sum(centred * teacher, axis=(1, 2)) / (d * (CLASSES - 1))
    square = np.sum(centred**2, axis=(1, 2)) / (d * (CLASSES - 1))
    change = d * (overlap - OVERLAP), d * (square - OVERLAP**2 - SPREAD) - 2 * OVERLAP * d * (overlap - OVERLAP)
    values = {**numbers("hard"), PER_BATCH: 1 / size, DIMENSION: d, decay: 0}
    drift = float(forms.drift.subs({**values, GAP: _gap(values), EXCESS: _excess()}))
    v = float(forms.frobenius.subs({DRIFT: drift, **values}))
    off = []
    for found, derived in zip(change, forms.normalised, strict=True):
        expected = float(derived.subs({DRIFT: drift, NORM: v, **values}))
        off.append(abs(found.mean() / expected - 1) + 4 * found.std(ddof=1) / steps**0.5 / abs(expected))
    return CheckResult(
        float(max(off)), 0.04, "normalised step at d = 200, B = 256: relative error plus four standard errors"
    )


def _gap(values: dict[sympy.Basic, float]) -> float:
    return values[MEAN_TOP] - INVERSE * (OVERLAP**2 + SPREAD) ** 0.5 * values[CURVATURE]


def _excess() -> float:
    return (OVERLAP**2 + SPREAD) ** 0.5 - OVERLAP


def compare_modules(on_disk: str, derived: str) -> str:
    """Empty when the two module texts give the same numbers, else one line that names the function."""
    return same_numbers(on_disk, derived, _calls)


def _calls() -> list[Call]:
    state = (1.3, 0.4, 0.8, 0.05, 0.3, 0.7)
    options = (0.2, 0.1, 1.2)
    law, soft = (50.0, 0.5, 0.7, 3.0), (0.5, 0.7, 3.0, 20.0)
    calls: dict[str, tuple] = {
        "overlap_flow": (*state, 0.5, 2.0, 3.0, *options),
        "second_moment": (0.3, 0.6, 1.0, 3.0, 0.1),
        "adam_flow": (*state, 0.01, 2.0, 3.0, 50.0, *options),
        "adam_second_moment": (*state, 2.0, 3.0, 50.0, *options[1:]),
        "normalised_flow": (*state, 0.5, 2.0, 3.0, 50.0, *options),
        "sign_flow": (1.3, 0.4, 0.6, 0.3, 1.2, 0.01, 50.0, 0.2, 1.2),
        "muon_pair_flow": (1.3, 0.4, 0.6, 0.3, 0.01, 0.9, 50.0, 0.2, 1.2),
        "muon_flow": (*state, 0.01, 0.9, 0.8, 0.1, 2.0, 3.0, 50.0, *options),
        "hardest_drift": (0.8, 0.7, 2.0, 3.0), "hardest_contraction": (0.7, 3.0),
        "margin_flow": (1.3, 0.4, 0.2, 0.1, 0.3, 0.5, 2.0, 0.2),
        "focal_slopes": (0.7, 2.5), "brier_slopes": (0.7,), "square_slopes": (0.7,),
        "drift_constant": (0.8,), "layer_drift": (0.8, 0.3), "layer_noise": (0.8, 0.9), "layer_error": (9.0, 0.3, 0.8),
        "stationary_spread_residual": (0.3, 0.5, 2.0, 0.9),
        "power_law_overlap": law, "power_law_loss": law, "weight_decay_overlap": (0.5, 0.7, 3.0, 0.01),
        "artanh_ratio": (0.2,), "finite_temperature_time": (0.4, *soft), "finite_temperature_loss": (0.4, 0.7, 20.0),
        "finite_temperature_exponent": (0.6,), "hand_over_time": soft, "cutoff_time": soft,
    }  # fmt: skip
    return [*calls.items()]
