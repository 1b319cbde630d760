"""Resampling of loss curves: over seeds, or over blocks along a run. Never over single points.

Points of one run are autocorrelated: a fluctuation of the weights stays for many output times. Drawing points
independently would call that noise independent evidence and make every interval too narrow.
"""

from __future__ import annotations

import numpy as np
import scipy
from jaxtyping import Float
from scipy import special

from odescale.errors import InputError


def student_factor(seeds: int) -> float:
    """t_{0.975, seeds - 1}/z_{0.975}: by how much a 95 % interval from few seeds must be wider than a Gaussian one.

    2 seeds: 6.5, 3: 2.2, 4: 1.62, 8: 1.21.
    """
    return float(special.stdtrit(seeds - 1, 0.975) / special.ndtri(0.975))


def autocorrelation(residual: Float[np.ndarray, " n"]) -> float:
    """rho = sum r_i r_(i+1)/sum r_i^2 of neighbouring residuals; 0 if they all vanish."""
    total = float(residual @ residual)
    return float(residual[1:] @ residual[:-1]) / total if total > 0 else 0.0


def block_length(n: int) -> int:
    """ceil(n^(1/3)) + 1, at least 3: the usual rate for a variance, one more because runs are strongly correlated."""
    return min(max(int(np.ceil(n ** (1 / 3))) + 1, 3), n)


def seed_bootstrap(
    losses: Float[np.ndarray, "s n"], draws: int, rng: np.random.Generator
) -> Float[np.ndarray, "draws n"]:
    """Deviations log(mean of seeds drawn with replacement) - log(mean of all), enlarged by sqrt(s/(s-1)).

    `losses (s, n)` positive in the mean, s >= 3. Drawing from s seeds underestimates the variance of their mean by
    (s-1)/s, hence the factor. Whole runs are drawn, so all correlation along a run is kept.
    """
    seeds = losses.shape[0]
    if seeds < 3:
        raise InputError("losses", expected="3 seeds or more", got=seeds, remedy="use block_bootstrap")
    counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)
    mean = losses.mean(axis=0)
    # Noise around a small excess loss can push a drawn mean to zero or below, where there is no logarithm.
    drawn = np.maximum(counts @ losses / seeds, 1e-3 * mean)
    return np.sqrt(seeds / (seeds - 1)) * np.log(drawn / mean)


def block_bootstrap(
    residual: Float[np.ndarray, " n"], draws: int, rng: np.random.Generator, block: int | None = None
) -> Float[np.ndarray, "draws n"]:
    """Series of the length of `residual (n,)` put together from its blocks, each with a random sign.

    Moving blocks of `block` neighbours (default `block_length(n)`) begin anywhere; the residuals are divided by their
    local size first and multiplied by that of the place where they land, because the noise of a loss curve changes
    along it by factors. Source: H. R. Kuensch, Ann. Statist. 17 (1989) 1217.
    """
    n = residual.size
    length = block_length(n) if block is None else int(block)
    if not 1 <= length <= n:
        raise InputError("block", expected=f"1 to n = {n}", got=block, remedy="leave it out for a good value")
    width = max(length, n // 6)
    local = np.convolve(residual**2, np.ones(2 * width + 1), mode="full")[width : width + n]
    size = np.sqrt(local / np.convolve(np.ones(n), np.ones(2 * width + 1), mode="full")[width : width + n])
    if not size.max() > 0:
        return np.zeros((draws, n))
    size = np.maximum(size, 1e-12 * size.max())
    unit = residual / size
    blocks = -(-n // length) + 1
    starts = rng.integers(0, n - length + 1, size=(draws, blocks))
    signs = rng.choice([-1.0, 1.0], size=(draws, blocks))
    drawn = (unit[starts[..., None] + np.arange(length)] * signs[..., None]).reshape(draws, -1)
    # The joints must not sit at the same places in every draw.
    offset = rng.integers(0, length, size=draws)
    return drawn[np.arange(draws)[:, None], offset[:, None] + np.arange(n)] * size


def residual_memory(
    residual: Float[np.ndarray, " n"], projection: Float[np.ndarray, "n n"], *, slack: float = 1.0
) -> float:
    """rho in [0, 0.995] of AR(1) noise u whose residuals M u have the autocorrelation of `residual` (n,).

    A fit or a spline follows slow noise, so the autocorrelation of what it leaves, M u with M = `projection` (n, n), is far
    below that of the noise. E sum (Mu)_i (Mu)_(i+1)/E sum (Mu)_i^2 is computed for every rho and solved for it. Along an
    exponential phase log L of one SGD run is a random walk (rho = 1): its drift goes into the fitted rate, out of sight.
    `slack`: standard errors 1/sqrt(n) that are added to what is seen.
    """
    n = residual.size
    lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    # One standard error more than seen: a memory missed makes the interval far too narrow, one too long a little too wide.
    seen = autocorrelation(residual) + slack * n**-0.5

    def left(rho: float) -> float:
        covariance = projection @ (rho**lag) @ projection.T
        return float(np.trace(covariance, 1) / np.trace(covariance)) - seen

    if left(0.0) >= 0:
        return 0.0
    return 0.995 if left(0.995) <= 0 else float(scipy.optimize.brentq(left, 0.0, 0.995, xtol=1e-4))
