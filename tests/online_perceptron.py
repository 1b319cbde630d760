"""The online logistic perceptron: order parameters by quadrature, and the network itself, drawn example by example."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, ndtr

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def averages(overlap: float, norm: float) -> np.ndarray:
    """E[sigma y b], E[sigma y h], E[sigma^2] with sigma = 1/(1 + e^(y h)), y = sign(b), at R = E[h b] and Q = E[h^2]."""
    root = np.sqrt(norm)
    cosine = overlap / root
    rest = np.sqrt(1 - cosine**2)
    h, mean = root * NODES, cosine * NODES
    positive = ndtr(mean / rest)
    upper = mean * positive + rest * np.exp(-0.5 * (mean / rest) ** 2) / np.sqrt(2 * np.pi)
    right, wrong = expit(-h), expit(h)
    teacher = right * upper + wrong * (upper - mean)
    own = h * (right * positive - wrong * (1 - positive))
    return np.array([WEIGHTS @ teacher, WEIGHTS @ own, WEIGHTS @ (right**2 * positive + wrong**2 * (1 - positive))])


def theory(rate: float, norm: float, end: float, every: float, dt: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """(t, error acos(R/sqrt Q)/pi) with t = examples per dimension.

    dR/dt = eta E[sigma y b],  dQ/dt = 2 eta E[sigma y h] + eta^2 E[sigma^2]
    """

    def drift(y: np.ndarray) -> np.ndarray:
        teacher, own, square = averages(*y)
        return np.array([rate * teacher, 2 * rate * own + rate**2 * square])

    y, stride = np.array([0.0, norm]), round(every / dt)
    errors = []
    for step in range(round(end / dt) + 1):
        if step % stride == 0:
            errors.append(np.arccos(y[0] / np.sqrt(y[1])) / np.pi)
        a = drift(y)
        b = drift(y + 0.5 * dt * a)
        c = drift(y + 0.5 * dt * b)
        y = y + dt / 6 * (a + 2 * b + 2 * c + drift(y + dt * c))
    return every * np.arange(len(errors)), np.array(errors)


def simulation(
    rate: float, norm: float, end: float, every: float, dimension: int, runs: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(t, mean error over runs) of w += (rate/sqrt d) sigma y x, h = w.x/sqrt d, one fresh example a step."""
    teacher = np.zeros(dimension)
    teacher[0] = np.sqrt(dimension)
    w = np.sqrt(norm) * rng.standard_normal((runs, dimension))
    w[:, 0] = 0.0
    stride, errors = round(every * dimension), []
    for step in range(round(end * dimension) + 1):
        if step % stride == 0:
            errors.append(float(np.mean(np.arccos(w[:, 0] / np.linalg.norm(w, axis=1)) / np.pi)))
        x = rng.standard_normal((runs, dimension))
        y = np.sign(x[:, 0])
        h = np.einsum("rd,rd->r", w, x) / np.sqrt(dimension)
        w += (rate / np.sqrt(dimension)) * (y * expit(-y * h))[:, None] * x
    return every * np.arange(len(errors)), np.array(errors)
