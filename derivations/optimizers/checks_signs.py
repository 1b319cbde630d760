"""Numeric checks of sign, Lion and clipping: single steps of the example at N = 300, and the lags of Lion's average."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.signal import lfilter

from derivations.optimizers.checks import example, gradients, numpy_functions
from derivations.optimizers.notation import BETA1, BETA2
from derivations.optimizers.signs import LAG, Lion
from derivations.optimizers.simulate import z_score
from odescale.symbolic.record import CheckResult

BATCHES = 100_000
STEPS = 4000


@cache
def batches(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Averages over the fields of whole batches, for all checks."""
    return example().batches(BATCHES, size, 21)


def _flow(G: np.ndarray, H: np.ndarray, noise: np.ndarray, q: np.ndarray) -> np.ndarray:
    """-(G + H) q and its transpose plus noise, rows that move among three."""
    M = -np.pad(G + H, ((0, 1), (0, 0)))
    return M @ q + q @ M.T + np.pad(noise, ((0, 1), (0, 1)))


def sign_step(
    sources: Sequence[str], beta1: float = 0.0, beta2: float = 0.99, large_batch: bool = False
) -> CheckResult:
    """N Delta(q_k) of sgn(beta1 m + (1 - beta1) g^) at B = 2 with a given past, against the closure over whole batches.

    `large_batch`: with |g|_i^2 = V_ii/B in every batch, as at large B, to see the check fail.
    """
    scope, model, size, rate = numpy_functions(sources), example(), 2, 0.6
    parts = batches(size)
    V = parts[2].mean(axis=0) * size
    square = scope["lion_square"](parts[2], V, size, beta1, beta2)
    if large_batch:
        square = np.broadcast_to(square.mean(axis=0), square.shape)
    own = np.einsum("nii->ni", square)
    weight = scope["sign_weight"](own)
    at = model.weighted(parts, (1 - beta1) * weight)
    cosine = square / np.sqrt(own[:, :, None] * own[:, None, :])
    noise = rate**2 * np.mean(scope["sign_noise"](np.clip(cosine, -1, 1)), axis=0)
    past = np.random.default_rng(22)
    U = 0.05 * model.rows[:2] + 0.04 * past.standard_normal((2, model.dimension))
    noise_of_m = np.linalg.cholesky((1 - beta2) / (1 + beta2) * V / size / model.dimension)
    m = noise_of_m @ past.standard_normal((STEPS, 2, model.dimension)) * np.sqrt(model.spectrum) + U / model.dimension
    moved = -rate / model.dimension**0.5 * np.sign(beta1 * m + (1 - beta1) * gradients(STEPS, size))
    z = []
    for level in model.levels:
        place = model.spectrum == level
        G, H = rate * level**0.5 * at.G, rate / level**0.5 * at.H
        expected = _flow(G, H, noise, model.overlaps(level))
        drag = (
            -rate
            * beta1
            / level**0.5
            * weight.mean(axis=0)[:, None]
            * (U[:, place] @ model.rows[:, place].T)
            / place.sum()
        )
        drag = np.pad(drag, ((0, 1), (0, 0)))
        z.append(z_score(model.changes(moved, level), expected + drag + drag.T, 4e-3, BATCHES / STEPS))
    return CheckResult(max(z), 4.0, "one step of the sign of the gradient at N = 300, B = 2, z-score")


def lion_lags(lion: Lion, sources: Sequence[str]) -> CheckResult:
    """One step with a past; E[sgn sgn] of c along 600 chains at three lags; the sum over lags against its first two orders."""
    step = sign_step(sources, 0.9)
    beta1, beta2, length = 0.9, 0.99, 1500
    g = np.random.default_rng(23).standard_normal((600, length))
    m = lfilter([1 - beta2], [1, -beta2], g, axis=1)
    c = (beta1 * m[:, :-1] + (1 - beta1) * g[:, 1:])[:, 500:]
    z = [step.value]

    def correlation(lag: int) -> float:
        return float(lion.correlation.subs({BETA1: beta1, BETA2: beta2, LAG: lag}))

    for lag in (1, 20, 100):
        found = np.mean(np.sign(c[:, :-lag]) * np.sign(c[:, lag:]), axis=1)
        z.append(z_score(found, 2 / np.pi * np.arcsin(correlation(lag))))
    exact = 2 * sum(np.arcsin(correlation(1) * beta2**n) for n in range(3000))
    first = numpy_functions(sources)["lion_lags"](beta1, beta2)
    (symbol,) = (s for s in lion.third.free_symbols if s.name == "r_1")
    third = float(lion.third.subs({symbol: correlation(1), BETA2: beta2}))
    # The order after that is r_1^4 3/200 of the sum: 2e-4.
    z.append(abs(exact / (first * (1 + third)) - 1) / 1e-4)
    return CheckResult(max(z), 4.0, "Lion: one step, three lags, and the sum over lags (error over 1e-4), z-score")


def clip_step(sources: Sequence[str], once: bool = False) -> CheckResult:
    """N Delta(q_k) of SGD clipped at a norm that binds in about half of the batches of 2; `once`: the weight once in the noise."""
    scope, model, size, rate, bound = numpy_functions(sources), example(), 2, 0.7, 1.3
    parts = batches(size)
    weight = scope["clip_weight"](np.einsum("nii->n", parts[2]), bound)
    binds = float(np.mean(weight < 1))
    at = model.weighted(parts, np.stack([weight, weight], axis=1))
    noise = at.V if once else np.mean(weight[:, None, None] ** 2 * parts[2], axis=0)
    g = gradients(STEPS, size)
    norms = np.sqrt(np.sum(g**2, axis=(1, 2), keepdims=True))
    moved, z = -rate * g * np.minimum(1, bound / norms), []
    assert 0.3 < binds < 0.7
    for level in model.levels:
        expected = _flow(rate * level * at.G, rate * at.H, rate**2 * level * noise, model.overlaps(level))
        z.append(z_score(model.changes(moved, level), expected, 4e-3, BATCHES / STEPS))
    return CheckResult(max(z), 4.0, "one clipped step at N = 300, B = 2, z-score")
