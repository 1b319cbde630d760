"""Saad & Solla's equations in numpy, from the integrals as they print them (I2, I3, I4): an oracle without JAX or odescale.

    I2 = (2/pi) asin(C12/sqrt((1+C11)(1+C22)))
    I3 = (2/pi) (C23 (1+C11) - C12 C13) / ((1+C11) sqrt(L3)),     L3 = (1+C11)(1+C33) - C13^2
    I4 = (4/pi^2) asin(L0/sqrt(L1 L2)) / sqrt(L4),                L4 = (1+C11)(1+C22) - C12^2

Source: Saad & Solla, Phys. Rev. E 52, 4225 (1995), appendix.
"""

from __future__ import annotations

import numpy as np
from scipy.integrate import solve_ivp


class Oracle:
    """K student and M teacher units with erf(x/sqrt 2), output weights one; the state is [Q | R], flattened."""

    def __init__(self, K: int, T: np.ndarray) -> None:
        self.K, self.P = K, K + len(T)
        self.T = T
        self.sign = np.array([1.0] * K + [-1.0] * len(T))
        self.i, self.j = np.triu_indices(K)
        self.a, self.b = np.triu_indices(self.P)
        self.share = np.where(self.a == self.b, 1.0, 2.0) * self.sign[self.a] * self.sign[self.b]

    def overlaps(self, y: np.ndarray) -> np.ndarray:
        """C = [[Q, R], [R^T, T]]."""
        K = self.K
        y = y.reshape(K, self.P)
        C = np.empty((self.P, self.P))
        C[:K], C[K:, :K], C[K:, K:] = y, y[:, K:].T, self.T
        return C

    def loss(self, y: np.ndarray) -> float:
        """1/2 sum_ab s_a s_b I2(a, b)."""
        C = self.overlaps(y)
        v = np.sqrt(1 + np.diag(C))
        return float(self.sign @ np.arcsin(C / np.outer(v, v)) @ self.sign / np.pi)

    def third(self, C: np.ndarray) -> np.ndarray:
        """D_ij = sum_a s_a I3(i, j, a)."""
        K, v = self.K, 1 + np.diag(C)
        C1 = C[:K]
        L3 = v[:K, None] * v - C1**2
        above = C[None] * v[:K, None, None] - C1[:, :, None] * C1[:, None, :]  # (i, j, a)
        return 2 / np.pi * np.einsum("ija,ia->ij", above, self.sign / np.sqrt(L3)) / v[:K, None]

    def fourth(self, C: np.ndarray) -> np.ndarray:
        """V_ij = sum_ab s_a s_b I4(i, j, a, b), upper triangles only."""
        i, j, a, b = self.i, self.j, self.a, self.b
        v = 1 + np.diag(C)
        v1, v2, C12 = v[i][:, None], v[j][:, None], C[i, j][:, None]
        L4 = v1 * v2 - C12**2
        X, Y = C[i], C[j]
        C13, C14, C23, C24 = X[:, a], X[:, b], Y[:, a], Y[:, b]
        L0 = L4 * C[a, b] - C23 * C24 * v1 - C13 * C14 * v2 + C12 * (C13 * C24 + C14 * C23)
        L1 = L4 * v - Y**2 * v1 - X**2 * v2 + 2 * C12 * X * Y
        root = np.sqrt(L1)
        values = 4 / np.pi**2 * (np.arcsin(L0 / (root[:, a] * root[:, b])) @ self.share) / np.sqrt(L4[:, 0])
        V = np.empty((self.K, self.K))
        V[i, j] = V[j, i] = values
        return V

    def slope(self, t: float, y: np.ndarray, eta: float) -> np.ndarray:
        """d[Q | R]/dalpha."""
        C, K = self.overlaps(y), self.K
        D = self.third(C)
        flow = -eta * D
        flow[:, :K] += -eta * D[:, :K].T + eta**2 * self.fourth(C)
        return flow.ravel()

    def solve(self, y: np.ndarray, eta: float, times: np.ndarray, rtol: float, method: str = "RK45") -> np.ndarray:
        """States (n, K P) at the times, by scipy."""
        found = solve_ivp(
            self.slope, (0, times[-1]), y.ravel(), method=method, t_eval=times, rtol=rtol, atol=rtol / 1e3, args=(eta,)
        )
        if not found.success:
            raise RuntimeError(found.message)
        return found.y.T


def saad_solla_start(K: int = 4, M: int = 4) -> np.ndarray:
    """[Q | R] with Q = diag(.3, .4, ...) and R_in = 1e-3 sin(1 + 3 i + 5 n)."""
    i, n = np.arange(K)[:, None], np.arange(M)[None, :]
    return np.concatenate([np.diag(0.3 + 0.1 * np.arange(K)), 1e-3 * np.sin(1 + 3 * i + 5 * n)], axis=1)
