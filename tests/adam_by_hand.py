"""Adam on an erf committee, written out in NumPy mode by mode from Saad and Solla's averages; terms can be left out."""

from __future__ import annotations

import numpy as np
from scipy.integrate import solve_ivp


def averages(C: np.ndarray, K: int) -> tuple[float, np.ndarray, np.ndarray]:
    """(L, D = E[g phi^T] (K, P), V = E[g g^T] (K, K)) of f = sum erf(phi/sqrt 2), students minus teachers, Saad & Solla 1995."""
    P = len(C)
    sign = np.where(np.arange(P) < K, 1.0, -1.0)

    def asin(i: int, j: int) -> float:
        return 2 / np.pi * np.arcsin(C[i, j] / np.sqrt((1 + C[i, i]) * (1 + C[j, j])))

    loss = 0.5 * sum(sign[i] * sign[j] * asin(i, j) for i in range(P) for j in range(P))
    D, V = np.zeros((K, P)), np.zeros((K, K))
    for i in range(K):
        for j in range(P):
            for k in range(P):  # E[act'(i) phi_j act(k)]
                a, c = C[i, i], C[k, k]
                lam = (1 + a) * (1 + c) - C[i, k] ** 2
                value = (C[j, k] * (1 + a) - C[i, j] * C[i, k]) / ((1 + a) * np.sqrt(lam)) * 2 / np.pi
                D[i, j] += sign[k] * value
    for i in range(K):
        for j in range(K):
            for m in range(P):
                for n in range(P):
                    V[i, j] += sign[m] * sign[n] * _four(C[np.ix_([i, j, m, n], [i, j, m, n])])
    return loss, D, V


def _four(c: np.ndarray) -> float:
    """E[act'(1) act'(2) act(3) act(4)] of erf units."""
    l4 = (1 + c[0, 0]) * (1 + c[1, 1]) - c[0, 1] ** 2
    l0 = (
        l4 * c[2, 3]
        - c[1, 2] * c[1, 3] * (1 + c[0, 0])
        - c[0, 2] * c[0, 3] * (1 + c[1, 1])
        + c[0, 1] * (c[0, 2] * c[1, 3] + c[0, 3] * c[1, 2])
    )

    def l12(k: int) -> float:
        return (
            l4 * (1 + c[k, k])
            - c[1, k] ** 2 * (1 + c[0, 0])
            - c[0, k] ** 2 * (1 + c[1, 1])
            + 2 * c[0, 1] * c[0, k] * c[1, k]
        )

    return 4 / np.pi**2 / np.sqrt(l4) * np.arcsin(l0 / np.sqrt(l12(2) * l12(3)))


def adam(
    start: np.ndarray,
    K: int,
    times: list[float],
    *,
    rate: float,
    batch: float,
    forgetting: float | None,
    eigenvalues: np.ndarray,
    weights: np.ndarray,
    drop: str = "",
) -> np.ndarray:
    """L at `times` for q_k(0) = start (modes, P, P). `forgetting` g_2, None: v = V at once.

    `drop`: "lam", v is the same in every mode; "noise", the noise is not preconditioned (rate^2 lam_k V/B).
    """
    lam, w = np.asarray(eigenvalues), np.asarray(weights)
    S, P = start.shape[:2]

    def split(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return y[: S * P * P].reshape(S, P, P), y[S * P * P :]

    def rhs(t: float, y: np.ndarray) -> np.ndarray:
        q, v = split(y)
        C = np.tensordot(w * lam, q, 1)
        _, D, V = averages(C, K)
        G = D @ np.linalg.inv(C)
        now = np.diag(V) if forgetting is None or t == 0 else v / -np.expm1(-forgetting * t)
        dq = np.zeros_like(q)
        for k in range(S):
            pre = rate / np.sqrt((1.0 if drop == "lam" else lam[k]) * now / batch)
            half = np.zeros((P, P))
            half[:K] = -(pre[:, None] * lam[k] * G) @ q[k]
            dq[k] = half + half.T
            noise = np.full(K, rate) if drop == "noise" else pre
            dq[k, :K, :K] += lam[k] * noise[:, None] * V / batch * noise
        dv = np.zeros(K) if forgetting is None else forgetting * (np.diag(V) - v)
        return np.concatenate([dq.ravel(), dv])

    y0 = np.concatenate([start.ravel(), np.zeros(K)])
    found = solve_ivp(rhs, (0, max(times)), y0, t_eval=times, rtol=1e-7, atol=1e-10)
    return np.array([averages(np.tensordot(w * lam, split(y)[0], 1), K)[0] for y in found.y.T])
