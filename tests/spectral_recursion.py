"""One-pass SGD of a linear student on any spectrum, exactly: the recursion of its excess modes at any dimension."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def excess_risk(
    lam: Float[np.ndarray, " d"],
    rho: Float[np.ndarray, " d"],
    *,
    eta: float,
    batch: int,
    steps: Float[np.ndarray, " n"],
    noise: float = 0.0,
) -> Float[np.ndarray, " n"]:
    """sum lam_k rho_k after each of `steps` steps:

    rho_k <- [1 - 2 eta lam_k + eta^2 (1 + 1/B) lam_k^2] rho_k + (eta^2/B) lam_k (s^2 + sum lam rho).

    Features N(0, diag lam), rho_k = E(theta_k - theta*_k)^2, fresh batches of B.
    """
    rho = np.array(rho, dtype=float)
    growth = 1 - 2 * eta * lam + eta**2 * (1 + 1 / batch) * lam**2
    wanted, out = {int(step) for step in steps}, {}
    for step in range(int(max(steps)) + 1):
        risk = lam @ rho
        if step in wanted:
            out[step] = risk
        rho = growth * rho + eta**2 / batch * lam * (noise + risk)
    return np.array([out[int(step)] for step in steps])
