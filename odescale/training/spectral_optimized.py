r"""Real training of a linear model by Adam or signs, by optax, in the basis of a `SpectralOptimized` system.

    theta <- theta - a s(r) direction - s(r) w theta,     direction of (1/B) sum_b z_b (z_b.theta - y_b)

In the rotated basis z = R x with R orthogonal and (R Lambda R^T)_ii = tr Lambda/d for every coordinate i.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odescale.cache.aside import Aside
from odescale.clock import Clock, Schedule
from odescale.errors import InputError, whole
from odescale.systems.spectral_optimized import SpectralOptimized
from odescale.training.experiment import AbstractExperiment, rate_at
from odescale.training.spectral import LARGEST, GaussianTask, risk_of

LARGEST_ROTATED = 2048
"""Modes of a rotated model: a step multiplies by a matrix of that size."""


class OptimizedState(NamedTuple):
    """Weights, and what the update remembers."""

    theta: Float[Array, " d"]
    memory: Any


class OptimizedLinear(AbstractExperiment):
    """See the module; one unit of t is one step. Records `loss`, the mean square error above the least, and `risk`, all of it."""

    task: GaussianTask
    learning_rate: Float[Array, ""]
    decay: Float[Array, ""]
    schedule: Schedule
    measured: Aside[tuple[GaussianTask, float]]
    identity: Aside[dict[str, Any]]
    batch: int = eqx.field(static=True)
    kind: type = eqx.field(static=True)
    numbers: tuple[tuple[str, Any], ...] = eqx.field(static=True)

    subject: ClassVar[str] = "spectral_optimized"
    together: ClassVar[int] = 32

    @property
    def clock(self) -> Clock:
        return Clock(1.0, self.learning_rate, self.schedule, float(self.batch), 0.0)

    @property
    def update(self) -> Any:
        """The optax transformation."""
        return self.kind.transformation(dict(self.numbers))

    def config(self, t1: float) -> dict[str, Any]:
        return {"tokens": 0, **self.identity.value}

    def start(self, seed: int) -> OptimizedState:
        theta = jnp.zeros(self.task.size)
        return OptimizedState(theta, self.update.init(theta))

    def step(self, state: OptimizedState, key: Array, n: Int[Array, ""]) -> tuple[OptimizedState, Float[Array, ""]]:
        z, y = self.task.draw(key, self.batch)
        residual = z @ state.theta - y
        direction, memory = self.update.update((residual @ z) / self.batch, state.memory, state.theta)
        rate = rate_at(self.clock, n, state.theta.dtype)
        theta = state.theta - rate * (self.learning_rate * direction + self.decay * state.theta)
        return OptimizedState(theta, memory), jnp.mean(residual**2)

    def measure(self, states: list[OptimizedState], seeds: list[int], step: int) -> dict[str, np.ndarray]:
        task, least = self.measured.value
        risk = np.asarray(risk_of(task, jnp.stack([state.theta for state in states]).astype(float)))
        return {"loss": risk - least, "risk": risk}

    def model(self, states: list[OptimizedState]) -> dict[str, Any]:
        """`theta` (s, d), in the optimiser's coordinates."""
        return {"theta": np.stack([np.asarray(state.theta) for state in states])}


def experiment(system: SpectralOptimized) -> OptimizedLinear:
    """The linear model of a system's modes: theta(0) = 0, theta*_k = sqrt(e_k(0)/lam_k), noise s^2 + F_0; one rotation for all."""
    lam, excess = np.asarray(system.eigenvalues), np.asarray(system.start)
    rotated = system.basis == "rotated"
    largest = LARGEST_ROTATED if rotated else LARGEST
    if lam.size > largest:
        raise InputError("modes", expected=f"at most {largest} in a real run", got=lam.size, remedy="use fewer")
    rotation = jnp.asarray(even_rotation(lam)) if rotated else None
    task = GaussianTask(jnp.asarray(lam), jnp.asarray(np.sqrt(excess / lam)), system.residual_noise, rotation)
    rule = system.optimizer
    numbers = {name: value for name, value in system.rule_numbers().items() if name != "decay"}
    identity = {
        "label": system.label, "dimension": lam.size, "noise": float(system.residual_noise), "eigenvalues": lam.tolist(),
        "excess": excess.tolist(), "optimizer": rule.word, "basis": system.basis, "decay": float(rule.decay), **numbers,
    }  # fmt: skip
    return OptimizedLinear(
        task=task,
        learning_rate=system.learning_rate * rule.step(1.0),
        decay=rule.decay,
        schedule=system.schedule,
        measured=Aside((task, float(system.residual_noise))),
        identity=Aside(identity),
        batch=whole("batch", system.batch, remedy="batch=1"),
        kind=type(rule),
        numbers=tuple(numbers.items()),
    )


def even_rotation(eigenvalues: Float[np.ndarray, " d"], seed: int = 0) -> Float[np.ndarray, "d d"]:
    """R orthogonal, random, with (R Lambda R^T)_ii = tr Lambda/d for all i: one plane rotation after another (Schur, Horn)."""
    lam = np.asarray(eigenvalues, dtype=float)
    d, goal = lam.size, lam.mean()
    gaussian = np.random.default_rng(seed).standard_normal((d, d))
    R, triangle = np.linalg.qr(gaussian)
    R = R * np.sign(np.diag(triangle))
    diagonal = (R**2) @ lam
    for _ in range(d - 1):
        i, j = int(np.argmin(diagonal)), int(np.argmax(diagonal))
        p, q, cross = diagonal[i], diagonal[j], (R[i] * R[j]) @ lam
        if q - p <= 1e-14 * goal:
            break
        # p + 2 x cross + x^2 q = (1 + x^2) goal for the row (R_i + x R_j)/sqrt(1 + x^2)
        x = (-cross + np.sqrt(cross**2 + (q - goal) * (goal - p))) / (q - goal)
        size = np.sqrt(1 + x**2)
        R[i], R[j] = (R[i] + x * R[j]) / size, (R[j] - x * R[i]) / size
        diagonal[i], diagonal[j] = goal, (R[j] ** 2) @ lam
    return R
