r"""Real SGD of a linear model: fresh Gaussian data, random features of them, stored samples; what a `Spectral` system describes.

    v <- beta v - (eta(r)/B) sum_b z_b (z_b.theta - y_b),     theta <- theta + v

The risk at the record steps is the population's (or, for stored data, the data set's), without sampling error.
"""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odescale.cache.aside import Aside
from odescale.cache.programs import program
from odescale.clock import Clock, Schedule
from odescale.errors import InputError, require_number, whole
from odescale.precision import require_x64
from odescale.systems.spectral import Spectral
from odescale.training.experiment import AbstractExperiment, as_schedule, rate_at

LARGEST = 4096
"""Modes of a system whose linear model is trained: a step draws batch times as many numbers."""


class GaussianTask(eqx.Module):
    """x ~ N(0, diag lam), z = W x (or x), y = theta*.x + s xi; risk E(z.theta - theta*.x)^2 + s^2.

    - `eigenvalues`, `target` (d,); `noise`: s^2; `projection` (N, d) or None.
    """

    eigenvalues: Float[Array, " d"]
    target: Float[Array, " d"]
    noise: Float[Array, ""] = eqx.field(converter=lambda x: jnp.asarray(x, float), default=0.0)  # type: ignore[assignment]
    projection: Float[Array, "N d"] | None = None

    @property
    def size(self) -> int:
        """Trained weights."""
        return self.target.shape[0] if self.projection is None else self.projection.shape[0]

    def draw(self, key: Array, batch: int) -> tuple[Float[Array, "B N"], Float[Array, " B"]]:
        """(z, y) of `batch` fresh samples."""
        of_x, of_noise = jax.random.split(key)
        # Single-precision normals: their moments are right to 1e-7, at half the cost.
        x = jax.random.normal(of_x, (batch, self.target.shape[0]), jnp.float32) * jnp.sqrt(self.eigenvalues)
        y = x @ self.target + jnp.sqrt(self.noise) * jax.random.normal(of_noise, (batch,), self.target.dtype)
        return (x if self.projection is None else x @ self.projection.T), y

    def risk(self, theta: Float[Array, "seeds N"]) -> Float[Array, " seeds"]:
        """E(z.theta - y)^2 of every seed."""
        back = theta if self.projection is None else theta @ self.projection
        return jnp.sum(self.eigenvalues * (back - self.target) ** 2, axis=1) + self.noise

    def irreducible(self) -> float:
        """Least risk that any weights have: s^2, and what of the target lies outside the projection."""
        if self.projection is None:
            return float(self.noise)
        root = np.sqrt(np.asarray(self.eigenvalues))
        design, wanted = root[:, None] * np.asarray(self.projection).T, root * np.asarray(self.target)
        return float(self.noise) + _least_squares(design, wanted)


class StoredTask(eqx.Module):
    """Samples drawn with replacement from (features, targets); risk over the data, or on fresh data of a diagonal covariance.

    - `features` (n, d), `targets` (n,). `population`: a `GaussianTask` whose risk is reported instead of the data's, or None.
    """

    features: Float[Array, "n d"]
    targets: Float[Array, " n"]
    population: GaussianTask | None = None

    @property
    def size(self) -> int:
        """Trained weights."""
        return self.features.shape[1]

    def draw(self, key: Array, batch: int) -> tuple[Float[Array, "B d"], Float[Array, " B"]]:
        """(z, y) of `batch` samples, drawn with replacement."""
        place = jax.random.randint(key, (batch,), 0, self.targets.shape[0])
        return self.features[place], self.targets[place]

    def risk(self, theta: Float[Array, "seeds d"]) -> Float[Array, " seeds"]:
        """Mean square residual of every seed."""
        if self.population is not None:
            return self.population.risk(theta)
        return jnp.mean((theta @ self.features.T - self.targets) ** 2, axis=1)

    def irreducible(self) -> float:
        """Least risk that any weights have, over the data or the population."""
        if self.population is not None:
            return self.population.irreducible()
        return _least_squares(np.asarray(self.features), np.asarray(self.targets)) / self.targets.shape[0]


class LinearState(NamedTuple):
    """Weights and their last move."""

    theta: Float[Array, " N"]
    move: Float[Array, " N"]


class LinearExperiment(AbstractExperiment):
    """SGD of theta.z against y, see the module; one unit of t is one SGD step, step r uses eta s(r).

    Records: `loss`, the mean square error above the least that any weights have; `risk`, all of it, noise included.
    """

    task: GaussianTask | StoredTask
    learning_rate: Float[Array, ""]
    momentum: Float[Array, ""]
    schedule: Schedule
    measured: Aside[tuple[GaussianTask | StoredTask, np.ndarray, float]]
    identity: Aside[dict[str, Any]]
    batch: int = eqx.field(static=True)

    subject: ClassVar[str] = "spectral"
    together: ClassVar[int] = 32

    @property
    def clock(self) -> Clock:
        return Clock(1.0, self.learning_rate, self.schedule, float(self.batch), 0.0)

    def config(self, t1: float) -> dict[str, Any]:
        return {"tokens": 0, "momentum": float(self.momentum), **self.identity.value}

    def start(self, seed: int) -> LinearState:
        begin = self.measured.value[1]
        return LinearState(begin, np.zeros_like(begin))  # type: ignore[arg-type]

    def step(self, state: LinearState, key: Array, n: Int[Array, ""]) -> tuple[LinearState, Float[Array, ""]]:
        z, y = self.task.draw(key, self.batch)
        residual = z @ state.theta - y
        eta = self.learning_rate * rate_at(self.clock, n, state.theta.dtype)
        move = self.momentum * state.move - eta * (residual @ z) / self.batch
        return LinearState(state.theta + move, move), jnp.mean(residual**2)

    def measure(self, states: list[LinearState], seeds: list[int], step: int) -> dict[str, np.ndarray]:
        task, _, least = self.measured.value
        risk = np.asarray(risk_of(task, jnp.stack([state.theta for state in states]).astype(float)))
        return {"loss": risk - least, "risk": risk}

    def model(self, states: list[LinearState]) -> dict[str, Any]:
        """`theta` (s, N)."""
        return {"theta": np.stack([np.asarray(state.theta) for state in states])}


@program
def risk_of(task: GaussianTask | StoredTask, theta: Float[Array, "s N"]) -> Float[Array, " s"]:
    """The mean square error of every seed's weights on fresh data."""
    return task.risk(theta)


def linear_sgd(
    task: GaussianTask | StoredTask,
    *,
    learning_rate: float,
    batch: int = 1,
    momentum: float = 0.0,
    schedule: Schedule | str | None = None,
    start: Float[np.ndarray, " N"] | None = None,
    label: str = "linear model",
) -> LinearExperiment:
    """v <- beta v - (eta s(r)/B) sum_b z_b (z_b.theta - y_b), theta <- theta + v: an experiment for `train`; t counts steps.

    **Arguments**: `task`; `learning_rate` > 0, `batch` >= 1, `momentum` in [0, 1), `schedule` in SGD steps; `start` theta(0), zeros
    by default. batch x d normals per step and seed. **Good values**: 256 seeds. **Errors**: `InputError` naming the argument.
    """
    require_x64("linear_sgd")
    begin = np.zeros(task.size) if start is None else np.asarray(start, dtype=float)
    if begin.shape != (task.size,):
        raise InputError("start", expected=f"shape ({task.size},)", got=begin.shape, remedy="one number per weight")
    digest = hashlib.sha256()
    for leaf in [*jax.tree.leaves(task), begin]:
        digest.update(np.ascontiguousarray(np.asarray(leaf)).tobytes())
    return LinearExperiment(
        task=task,
        learning_rate=jnp.asarray(require_number("learning_rate", learning_rate, open_=True)),
        momentum=jnp.asarray(require_number("momentum", momentum, 0.0, 1.0)),
        schedule=as_schedule(schedule),
        measured=Aside((task, begin, task.irreducible())),
        identity=Aside({"label": label, "dimension": task.size, "task": digest.hexdigest()}),
        batch=whole("batch", batch),
    )


def experiment(system: Spectral, *, momentum: float = 0.0) -> LinearExperiment:
    """The linear model of a system's modes: theta(0) = 0, theta*_k = sqrt(e_k(0)/lam_k), noise s^2 + F_0, each mode by itself."""
    lam, excess = np.asarray(system.eigenvalues), np.asarray(system.start)
    if not np.allclose(np.asarray(system.squares), lam**2, rtol=1e-9):
        raise InputError(
            "per_decade",
            expected="0: every mode by itself in a real run",
            got="a binned spectrum",
            remedy="leave it out",
        )
    if lam.size > LARGEST:
        raise InputError(
            "modes", expected=f"at most {LARGEST} in a real run", got=lam.size, remedy="use fewer, or exact_recursion"
        )
    task = GaussianTask(jnp.asarray(lam), jnp.asarray(np.sqrt(excess / lam)), system.residual_noise)
    built = linear_sgd(
        task, learning_rate=float(system.learning_rate), batch=whole("batch", system.batch, remedy="batch=1"),
        momentum=momentum, schedule=system.schedule, label=system.label,
    )  # fmt: skip
    known = {"noise": float(system.residual_noise), "eigenvalues": lam.tolist(), "excess": excess.tolist()}
    return eqx.tree_at(lambda e: e.identity, built, Aside(built.identity.value | known))


def _least_squares(design: np.ndarray, wanted: np.ndarray) -> float:
    """min over w of |design w - wanted|^2."""
    weights = np.linalg.lstsq(design, wanted, rcond=None)[0]
    return float(np.sum((design @ weights - wanted) ** 2))
