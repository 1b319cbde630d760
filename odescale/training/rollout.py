r"""Rollouts round by round: requests with drawn lengths, drawn acceptances, workers that wait for each other.

A round with n live requests takes tau(n); a request gets k <= d + 1 tokens, P(k > j) = a_1 ... a_j, and leaves at its length.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odescale.cache.aside import Aside
from odescale.clock import Clock
from odescale.generated import rollout as formulas
from odescale.systems.rollout.drafter import Drafter
from odescale.systems.rollout.fluid import Rollout
from odescale.systems.rollout.makespan import draw_chances, tokens_by_live, worker_times
from odescale.systems.rollout.strategies import token_times
from odescale.training.experiment import AbstractExperiment


class RolloutState(NamedTuple):
    """Of every worker: `length` and `place` (w, n) of its requests in tokens; `front` (w,), mean tokens of its rounds so far;
    `time` and `idle` (w,), with the `last` (w, 4) round's tokens, time, idle time and requests that were live in it."""

    length: Float[Array, "w n"]
    place: Float[Array, "w n"]
    front: Float[Array, " w"]
    time: Float[Array, " w"]
    idle: Float[Array, " w"]
    last: Float[Array, "w 4"]


class RolloutExperiment(AbstractExperiment):
    """One step is one token of the fluid: a worker that is behind has its next round, with drawn acceptances.

    Records, with t in tokens: `loss`, the share of requests still live; `time` and `idle_slots`, means over workers when their
    rounds have brought t tokens on average; `makespan`, the slowest worker's; `idle`, what the others wait for it.
    """

    system: Aside[Rollout]
    times: Float[Array, " m"]
    brought: Float[Array, " m"]
    kept: Float[Array, "m D"]
    held: tuple[int, ...] = eqx.field(static=True)

    subject: ClassVar[str] = "rollout"
    together: ClassVar[int] = 16

    @property
    def clock(self) -> Clock:
        return Clock(1.0, tokens=0.0, step=self.system.value.clock.step)

    def config(self, t1: float) -> dict[str, Any]:
        return self.system.value.summary() | {"label": self.system.value.label}

    def start(self, seed: int) -> RolloutState:
        system = self.system.value
        u = draw_chances(self.held, 1, seed)[0]
        # Whole tokens: the l-th one is written by those whose length is nearest to l or more.
        drawn = np.maximum(np.round(np.asarray(system.lengths.quantile(np.where(u > 0, u, 0.5)))), 1.0)
        workers = len(self.held)
        zero = np.zeros(workers)
        arrays: tuple[Any, ...] = (
            np.where(u > 0, drawn, 0.0),
            np.zeros_like(drawn),
            zero,
            zero,
            zero,
            np.zeros((workers, 4)),
        )
        return RolloutState(*(jnp.asarray(x) for x in arrays))

    def step(self, state: RolloutState, key: Array, n: Int[Array, ""]) -> tuple[RolloutState, Float[Array, ""]]:
        dtype = state.time.dtype
        live = state.place < state.length
        count = jnp.sum(live, axis=1)
        behind = state.front < (n + 1).astype(dtype)
        u = jax.random.uniform(key, state.place.shape, dtype)
        tokens = 1 + jnp.sum(u[:, :, None] < self.kept[count][:, None, :], axis=2)
        going = (live & behind[:, None]).astype(dtype)
        took = self.times[count]
        free = 1 - count / jnp.asarray(self.held, dtype)
        last = jnp.stack([self.brought[count], took, took * free, count.astype(dtype)], axis=1)
        last = jnp.where(behind[:, None], last, state.last)
        move = behind.astype(dtype)[:, None] * last
        after = RolloutState(
            state.length, state.place + going * tokens.astype(dtype), state.front + move[:, 0], state.time + move[:, 1],
            state.idle + move[:, 2], last,
        )  # fmt: skip
        return after, jnp.mean(count) / jnp.mean(jnp.asarray(self.held, dtype))

    def measure(self, states: list[RolloutState], seeds: list[int], step: int) -> dict[str, np.ndarray]:
        rows = []
        for state in states:
            length, place, front, time, idle, last = (np.asarray(x, float) for x in state)
            # The last round of a worker may have gone beyond t: that share of it is given back.
            beyond = np.maximum(front - step, 0) / np.maximum(last[:, 0], 1.0)
            time, idle = time - beyond * last[:, 1], idle - beyond * last[:, 2]
            now = (place < length).sum(axis=1)
            live = now + beyond * np.maximum(last[:, 3] - now, 0)
            rows.append((live.sum() / sum(self.held), time.mean(), idle.mean(), time.max(), time.max() - time.mean()))
        return dict(zip(("loss", "time", "idle_slots", "makespan", "idle"), np.array(rows).T, strict=True))

    def model(self, states: list[RolloutState]) -> dict[str, np.ndarray]:
        return {name: np.stack([np.asarray(getattr(s, name)) for s in states]) for name in ("length", "place", "time")}


def experiment(system: Rollout) -> RolloutExperiment:
    """The simulation behind a rollout."""
    most = max(system.requests)
    _, times, brought = token_times(system.costs, system.acceptance, system.policy, most)
    depth, _ = system.policy.at(jnp.arange(most + 1.0))
    deepest = max(1, int(np.ceil(float(depth.max()))))
    kept = system.policy.acceptance(jnp.arange(most + 1.0), system.acceptance).kept()[:, :deepest]
    place = jnp.arange(1, deepest + 1)
    return RolloutExperiment(
        system=Aside(system), times=times, brought=brought, kept=jnp.where(place <= depth[:, None], kept, 0.0),
        held=system.requests,
    )  # fmt: skip


class DrafterState(NamedTuple):
    """Misalignment right after the last update, and the idle time and makespan of the last rollout."""

    kappa: Float[Array, ""]
    idle: Float[Array, ""]
    makespan: Float[Array, ""]


class DrafterExperiment(AbstractExperiment):
    """The slow map, one drawn rollout a step: kappa relaxes in its idle time and drifts by the update that follows.

    Records `loss` (kappa - kappa_inf), `kappa`, `idle` and `makespan` of the last rollout.
    """

    system: Aside[Drafter]
    numbers: Drafter

    subject: ClassVar[str] = "drafter"

    @property
    def clock(self) -> Clock:
        return Clock(1.0, tokens=0.0, step=self.system.value.clock.step)

    def config(self, t1: float) -> dict[str, Any]:
        return self.system.value.summary() | {"label": self.system.value.label}

    def start(self, seed: int) -> DrafterState:
        return DrafterState(np.asarray(float(self.system.value.kappa)), np.zeros(()), np.zeros(()))  # type: ignore[arg-type]

    def step(self, state: DrafterState, key: Array, n: Int[Array, ""]) -> tuple[DrafterState, Float[Array, ""]]:
        own, dtype = self.numbers, state.kappa.dtype
        shape = (1, len(own.requests), max(own.requests))
        held = jnp.arange(shape[2]) < jnp.asarray(own.requests)[:, None]
        u = jnp.where(held, jax.random.uniform(key, shape, dtype, 1e-7, 1.0), 0.0)
        stretches = tokens_by_live(own.lengths, -jnp.sort(-u, axis=2), own.requests)
        times = worker_times(stretches, own.token_time(state.kappa))[0].astype(dtype)
        idle = times.max() - times.mean()
        kappa = formulas.after_idle(state.kappa, own.floor, own.rate, idle) + own.drift
        return DrafterState(kappa.astype(dtype), idle, times.max()), state.kappa - own.floor.astype(dtype)

    def measure(self, states: list[DrafterState], seeds: list[int], step: int) -> dict[str, np.ndarray]:
        kappa, idle, makespan = (np.array([float(x) for x in column]) for column in zip(*states, strict=True))
        return {"loss": kappa - float(self.system.value.floor), "kappa": kappa, "idle": idle, "makespan": makespan}

    def model(self, states: list[DrafterState]) -> dict[str, np.ndarray]:
        return {"kappa": np.array([float(s.kappa) for s in states])}


def drafter_experiment(system: Drafter) -> DrafterExperiment:
    """The slow map behind a drafter, with rollouts that are drawn anew in every step."""
    return DrafterExperiment(system=Aside(system), numbers=system)
