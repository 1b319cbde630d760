"""One-pass SGD of a linear student at a constant rate in closed form, and the fewest steps to a target over all rates."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


class ConstantRate:
    """sum lam_k rho_k after r steps of rho <- M rho + c, M = diag(g) + (eta^2/B) lam lam^T symmetric: one eigendecomposition.

    The recursion of `spectral_recursion`. `stable`: all eigenvalues below 1; `floor`: the excess that is left.
    """

    def __init__(
        self, lam: Float[np.ndarray, " d"], rho: Float[np.ndarray, " d"], eta: float, batch: float, noise: float
    ) -> None:
        growth = 1 - 2 * eta * lam + eta**2 * (1 + 1 / batch) * lam**2
        matrix = np.diag(growth) + eta**2 / batch * np.outer(lam, lam)
        values, vectors = np.linalg.eigh(matrix)
        self.stable = bool(values.max() < 1)
        fixed = np.linalg.solve(np.eye(lam.size) - matrix, eta**2 / batch * noise * lam) if self.stable else rho
        self.floor = float(lam @ fixed)
        self._logs = np.log(np.maximum(np.abs(values), 1e-300))
        self._weights = (lam @ vectors) * (vectors.T @ (rho - fixed))

    def excess(self, steps: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Excess risk after `steps`, whole numbers or between."""
        return self.floor + np.exp(np.multiply.outer(np.asarray(steps, float), self._logs)) @ self._weights


def steps_to(run: ConstantRate, target: float, most: float = 1e7) -> float:
    """The first step, not whole, at which the excess is `target`; inf if it is not reached."""
    if not run.stable or run.floor >= target:
        return np.inf
    steps = np.geomspace(1, most, 300)
    below = np.flatnonzero(run.excess(steps) <= target)
    if not below.size:
        return np.inf
    if below[0] == 0:
        return 1.0
    low, high = steps[below[0] - 1], steps[below[0]]
    for _ in range(30):
        middle = np.sqrt(low * high)
        low, high = (low, middle) if run.excess(np.array([middle]))[0] <= target else (middle, high)
    return float(high)
