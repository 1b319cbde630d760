"""Real updates of the weights in numpy, and the ODE beside them: what the numeric checks compare.

`Linear`: p rows of differences D = W - W* on Gaussian tokens, e = D x/sqrt(N), loss |e|^2/2: G = 1, H = 0, V = C exactly.
`Example`: two trained rows and a frozen one on two correlated tokens with slopes of degree two and write-back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Rule = Callable[[np.ndarray, int], np.ndarray]
"""(mean gradients (seeds, p, d) of a batch, number of the step from 1) -> what is taken off the rows."""


@dataclass(frozen=True)
class Linear:
    """`levels`: eigenvalues, each on as many of the d = `dimension` coordinates; mean 1, so that N = d. `start` (p, p): q(0)."""

    batch: int
    start: np.ndarray
    dimension: int = 300
    levels: tuple[float, ...] = (1.0,)

    def spectrum(self) -> np.ndarray:
        """Eigenvalue of every coordinate."""
        return np.repeat(self.levels, self.dimension // len(self.levels))

    def rows(self, seeds: int, rng: np.random.Generator) -> np.ndarray:
        """(seeds, p, d) rows whose overlaps are `start` in every mode, exactly."""
        p = len(self.start)
        parts = []
        for _ in self.levels:
            raw = rng.standard_normal((seeds, p, self.dimension // len(self.levels)))
            gram = raw @ raw.swapaxes(1, 2) / raw.shape[2]
            parts.append(np.linalg.cholesky(self.start) @ np.linalg.solve(np.linalg.cholesky(gram), raw))
        return np.concatenate(parts, axis=2)

    def losses(self, rule: Rule, steps: tuple[int, ...], seeds: int, seed: int = 0) -> np.ndarray:
        """(seeds, len(steps)) half the mean square errors after so many steps."""
        rng = np.random.default_rng(seed)
        spectrum, N = self.spectrum(), self.dimension
        rows, found = self.rows(seeds, rng), []
        for n in range(1, max(steps) + 1):
            x = rng.standard_normal((seeds, self.batch, N)) * np.sqrt(spectrum)
            errors = rows @ x.swapaxes(1, 2) / N**0.5
            rows = rows - rule(errors @ x / (self.batch * N**0.5), n)
            if n in steps:
                found.append(0.5 * np.mean(spectrum * rows**2, axis=2).sum(axis=1))
        return np.stack(found, axis=1)


@dataclass
class Memory:
    """m <- beta m + (1 - beta) g^, from zero."""

    beta: float
    value: Any = field(default=0.0)

    def add(self, gradient: np.ndarray) -> np.ndarray:
        """m with this gradient."""
        self.value = self.beta * self.value + (1 - self.beta) * gradient
        return self.value


def adam(rate: float, N: int, beta1: float, beta2: float) -> Rule:
    """The update as published, eps = 0, learning rate a/sqrt(N)."""
    first, second = Memory(beta1), Memory(beta2)

    def rule(g: np.ndarray, n: int) -> np.ndarray:
        m, v = first.add(g) / (1 - beta1**n), second.add(g**2) / (1 - beta2**n)
        return rate / N**0.5 * m / np.sqrt(v)

    return rule


def muon(rate: float, mu: float, nesterov: bool) -> Rule:
    """The momentum's orthogonal factor, by the eigenvectors of its Gram matrix."""
    memory = Memory(mu)

    def rule(g: np.ndarray, n: int) -> np.ndarray:
        m = memory.add(g)
        if nesterov:
            m = mu * m + (1 - mu) * g
        values, vectors = np.linalg.eigh(m @ m.swapaxes(1, 2))
        return rate * (vectors / np.sqrt(values)[:, None, :]) @ vectors.swapaxes(1, 2) @ m

    return rule


def lion(rate: float, N: int, beta1: float, beta2: float) -> Rule:
    """The update as published; beta1 = 0 is the sign of the gradient."""
    memory = Memory(beta2)

    def rule(g: np.ndarray, n: int) -> np.ndarray:
        c = beta1 * memory.value + (1 - beta1) * g
        memory.add(g)
        return rate / N**0.5 * np.sign(c)

    return rule


Preconditioner = Callable[[float, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(t, q (modes, 2p, 2p) of rows and velocities, v (modes, p), V (p, p)) -> P (modes, p, p)."""


def course(
    model: Linear,
    preconditioner: Preconditioner,
    times: tuple[float, ...],
    *,
    share: float,
    damping: float,
    forgetting: float = 0.0,
    steps: int = 400,
    noise: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    heating: Preconditioner | None = None,
) -> np.ndarray:
    """Losses of the ODE of the linear model at `times`, by the midpoint rule.

    `noise`: in place of lam P V P^T/B on the rows, from (P, V), to see what that does. `heating`: P of the noise, where it is
    not that of the drift.
    """
    p, lam = len(model.start), np.asarray(model.levels)
    q = np.zeros((len(lam), 2 * p, 2 * p))
    q[:, :p, :p] = model.start
    v = np.zeros((len(lam), p))
    one, here, there = np.eye(p), slice(0, p), slice(p, 2 * p)

    def slope(t: float, q: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        V = np.mean(lam[:, None, None] * q[:, here, here], axis=0)
        P = preconditioner(t, q, v, V)
        U = np.broadcast_to(damping * one, P.shape)
        load = np.concatenate([-share * P, U], axis=1)
        M = np.zeros(q.shape)
        M[:, :, here] = lam[:, None, None] * load
        M[:, here, there] -= (1 - share) * P
        M[:, there, there] -= damping * one
        half = M @ q
        if heating is not None:
            load = np.concatenate([-share * heating(t, q, v, V), U], axis=1)
        kick = lam[:, None, None] * load @ V @ load.swapaxes(1, 2) / model.batch
        if noise is not None:
            kick[:, here, here] = noise(P, V)
        own = np.einsum("kii->ki", q[:, here, here]) * lam[:, None] ** 2 / model.dimension
        target = lam[:, None] * np.diag(V) / model.batch + own
        return half + half.swapaxes(1, 2) + kick, forgetting * (target - v)

    found, t, h = [], 0.0, max(times) / steps
    for n in range(1, steps + 1):
        dq, dv = slope(t, q, v)
        dq, dv = slope(t + h / 2, q + h / 2 * dq, v + h / 2 * dv)
        q, v, t = q + h * dq, v + h * dv, n * h
        if any(abs(t - at) < h / 2 for at in times):
            found.append(0.5 * np.trace(np.mean(lam[:, None, None] * q[:, here, here], axis=0)))
    return np.asarray(found)


@dataclass(frozen=True)
class Averages:
    """E over fields of what a batch's slopes make: G and H (2, 3), V/B (2, 2) where weights are put on batches."""

    G: np.ndarray
    H: np.ndarray
    V: np.ndarray


class Example:
    """Rows 0 and 1 move, row 2 is frozen; two tokens with correlation .4 at eigenvalues .4 and 1.6, d = N = 300.

    `slopes` are of degree two in the fields: G, H, V are exact by Gauss and Hermite with four nodes in each dimension.
    """

    levels = (0.4, 1.6)
    dimension = 300

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.spectrum = np.repeat(self.levels, self.dimension // 2)
        self.rows = rng.standard_normal((3, self.dimension)) * np.array([1.0, 0.8, 0.9])[:, None]
        self.rows[1] += 0.4 * self.rows[2] + 0.3 * self.rows[0]
        self.C = self.rows * self.spectrum @ self.rows.T / self.dimension
        self.rho = np.array([[1.0, 0.4], [0.4, 1.0]])
        self.root = np.linalg.cholesky(self.rho)

    def slopes(self, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(g (..., 2, 2), Lambda + Lambda^T's rows that move (..., 2, 3)) at fields phi (..., 2, 3): token, row."""
        other = phi[..., ::-1, :]
        g = np.stack(
            [
                phi[..., 0] - 0.6 * phi[..., 2] + 0.5 * other[..., 1] * phi[..., 2],
                0.7 * phi[..., 1] + 0.4 * other[..., 0] - 0.3 * phi[..., 0] * phi[..., 2],
            ],
            axis=-1,
        )
        on_R = np.zeros((*phi.shape[:-2], 2, 3))
        on_R[..., 1, 2] = 0.5 + 0.3 * phi[..., 0, 0] * phi[..., 1, 2]
        on_R[..., 1, 0] = 0.4 * phi[..., 0, 1] * phi[..., 0, 2]
        return g, on_R

    def fields(self, normal: np.ndarray) -> np.ndarray:
        """Standard normal (..., 2, 3) to fields."""
        return self.root @ normal @ np.linalg.cholesky(self.C).T

    def averages(self) -> Averages:
        """Of single sequences, exact."""
        x, w = np.polynomial.hermite_e.hermegauss(4)
        normal = np.stack(np.meshgrid(*[x] * 6, indexing="ij"), -1).reshape(-1, 2, 3)
        weights = np.ones(1)
        for _ in range(6):
            weights = np.multiply.outer(weights, w / w.sum()).ravel()
        phi = self.fields(normal)
        g, on_R = self.slopes(phi)
        D = np.einsum("n,nti,ntj->ij", weights, g, phi)
        V = np.einsum("n,nti,ts,nsj->ij", weights, g, self.rho, g)
        return Averages(np.linalg.solve(self.C, D.T).T, np.tensordot(weights, on_R, axes=1), V)

    def batches(self, count: int, batch: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By sampled fields: (sum_t g phi^T/B, sum of H/B, g_ij), (count, 2, 3) twice and (count, 2, 2), of whole batches."""
        phi = self.fields(np.random.default_rng(seed).standard_normal((count, batch, 2, 3)))
        g, on_R = self.slopes(phi)
        along = np.swapaxes(g, -1, -2)
        square = (along @ self.rho @ g).sum(axis=1) / batch**2
        return (along @ phi).mean(axis=1), on_R.mean(axis=1), square

    def weighted(self, parts: tuple[np.ndarray, np.ndarray, np.ndarray], weight: np.ndarray) -> Averages:
        """Averages under `weight` (count, 2) of a batch in each row's drift, once; `V` is left as E[g_ij weight_i]."""
        D, H, square = (np.mean(weight[:, :, None] * part, axis=0) for part in parts)
        return Averages(np.linalg.solve(self.C, D.T).T, H, square)

    def gradients(self, count: int, batch: int, seed: int) -> np.ndarray:
        """(count, 2, d) mean gradients of batches of real sequences."""
        rng = np.random.default_rng(seed)
        x = self.root @ rng.standard_normal((count * batch, 2, self.dimension)) * np.sqrt(self.spectrum)
        g, on_R = self.slopes(x @ self.rows.T / self.dimension**0.5)
        single = np.swapaxes(g, -1, -2) @ x / self.dimension**0.5 + on_R @ self.rows / self.dimension
        return single.reshape(count, batch, 2, self.dimension).mean(axis=1)

    def changes(self, moved: np.ndarray, level: float) -> np.ndarray:
        """N Delta q (count, 3, 3) on the entries of `level` for steps `moved` (count, 2, d) of the first two rows."""
        place = self.spectrum == level
        before = self.rows[:, place]
        step = np.concatenate([moved[:, :, place], np.zeros((len(moved), 1, place.sum()))], axis=1)
        mixed = step @ before.T
        return (mixed + mixed.swapaxes(1, 2) + step @ step.swapaxes(1, 2)) * self.dimension / place.sum()

    def overlaps(self, level: float) -> np.ndarray:
        """q of the mode."""
        part = self.rows[:, self.spectrum == level]
        return part @ part.T / part.shape[1]


def z_score(found: np.ndarray, expected: np.ndarray, bias: float | np.ndarray = 0.0, ratio: float = np.inf) -> float:
    """Largest z of the mean of `found` (n, ...); `expected` sampled itself with `ratio` times as many; `bias` next order in 1/N."""
    error = found.std(axis=0, ddof=1) / len(found) ** 0.5 * np.sqrt(1 + 1 / ratio) + bias
    moves = found.std(axis=0) > 1e-12
    assert np.all(np.abs(np.broadcast_to(expected, moves.shape)[~moves]) < 1e-12)
    return float(np.max((np.abs(found.mean(axis=0) - expected)[moves]) / error[moves]))
