r"""Logistic SGD of a real perceptron on a stream that is pruned by the teacher's margin, each kept example seen once.

J <- J + (eta s(t)/sqrt d) y x/(1 + exp(y J.x/sqrt d)),   y = sign(B.x/sqrt d),   x ~ N(0, I_d) among those that the rule keeps
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int

from odescale.cache.aside import Aside
from odescale.clock import Clock, Schedule
from odescale.errors import whole
from odescale.systems.pruning import Pruning
from odescale.training.experiment import AbstractExperiment, rate_at

LEAST = 2.0**-25
"""Least chance of a margin to be exceeded: 5.5 standard deviations, below the grain of a uniform number in float32."""


class PruningState(NamedTuple):
    """Student J and teacher B, (d,) each."""

    student: Float[Array, " d"]
    teacher: Float[Array, " d"]


class PruningExperiment(AbstractExperiment):
    """One kept example a step; records `loss` (the error on unpruned inputs), `alignment`, `overlap` R and `norm` Q, in float64.

    An example of a kept margin is drawn as it is: the margin from the half normal between the rule's ends, the rest of x at right
    angles to the teacher. One unit of t is d steps.
    """

    system: Aside[Pruning]
    learning_rate: Float[Array, ""]
    schedule: Schedule
    share: tuple[float, float]
    dimension: int

    subject: ClassVar[str] = "pruning"

    @property
    def clock(self) -> Clock:
        # Of its own fields: what stands aside is no part of the key of a compiled step.
        return Clock(float(self.dimension), self.learning_rate, self.schedule, 1.0, 0.0)

    def config(self, t1: float) -> dict[str, Any]:
        return self.system.value.summary() | {"label": self.system.value.label, "tokens": 0}

    def start(self, seed: int) -> PruningState:
        system, rng = self.system.value, np.random.default_rng(seed)
        first, second = np.linalg.qr(rng.standard_normal((self.dimension, 2)))[0].T * np.sqrt(self.dimension)
        cosine, norm = float(system.overlap), float(np.sqrt(float(system.norm)))
        student = norm * (cosine * first + np.sqrt(1 - cosine**2) * second)
        return PruningState(student, first)  # type: ignore[arg-type]

    def step(self, state: PruningState, key: Array, n: Int[Array, ""]) -> tuple[PruningState, Float[Array, ""]]:
        d, dtype = self.dimension, state.student.dtype
        one, two = jax.random.split(key)
        x = jax.random.normal(one, (d,), dtype)
        low, high = self.share
        # By its chance to be exceeded: large margins keep their digits in float32, and none is infinite.
        margin = -ndtri(0.5 * jax.random.uniform(two, (), dtype, max(low, LEAST), high))
        root = d**0.5
        x = x + (margin - state.teacher @ x / root) * state.teacher / root
        lam = state.student @ x / root
        rate = jnp.asarray(self.learning_rate, dtype) * rate_at(self.clock, n, dtype)
        student = state.student + rate / root * jax.nn.sigmoid(-lam) * x
        return PruningState(student, state.teacher), jax.nn.softplus(-lam)

    def measure(self, states: list[PruningState], seeds: list[int], step: int) -> dict[str, np.ndarray]:
        rows = []
        for state in states:
            student, teacher = np.asarray(state.student, float), np.asarray(state.teacher, float)
            R, Q = student @ teacher / student.size, student @ student / student.size
            rows.append((np.arctan2(np.sqrt(max(Q - R**2, 0)), R) / np.pi, R / np.sqrt(Q), R, Q))
        names = ("loss", "alignment", "overlap", "norm")
        return dict(zip(names, np.array(rows).T, strict=True))

    def model(self, states: list[PruningState]) -> dict[str, np.ndarray]:
        return {name: np.stack([np.asarray(getattr(s, name)) for s in states]) for name in PruningState._fields}


def experiment(system: Pruning) -> PruningExperiment:
    """The experiment behind a pruned stream, in `dimension` dimensions."""
    # Chances of |N(0, 1)| to be exceeded, of the margins that stay.
    share = {"easy": (0.0, system.keep), "hard": (1 - system.keep, 1.0), "random": (0.0, 1.0)}[system.rule]
    return PruningExperiment(
        system=Aside(system), learning_rate=system.learning_rate, schedule=system.schedule, share=share,
        dimension=whole("dimension", int(system.dimension)),
    )  # fmt: skip
