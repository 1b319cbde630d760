"""A piece of a sweep that any process can do: it finds plan and values in the store, computes chunks, writes them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from odescale.errors import CheckpointError
from odescale.solve.sweep import Problem, problem_of
from odescale.sweeps.chunk import solve_chunk
from odescale.sweeps.plan import Plan
from odescale.sweeps.store import Store
from odescale.systems.base import AbstractSystem


@dataclass(frozen=True)
class Task:
    """Some chunks of the store at a path. Called, it computes those that have no marker and gives the numbers of these.

    Can be pickled, needs nothing but the store (a folder that all machines see) and the builder, and may be run any number of
    times: a chunk that is done is left alone, and one that is computed again has the same numbers.

    `fingerprint`: of the sweep that the store must hold. `built`: the system, where it was given as one. `attempt`: of the call
    that made it, so that an engine which keeps results by their arguments does not take an old one.
    """

    store: str
    chunks: tuple[int, ...]
    fingerprint: str
    attempt: str = ""
    built: AbstractSystem | None = None

    def __call__(self) -> list[int]:
        # The switch is per process, and a worker's process is the sweep's.
        if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
            jax.config.update("jax_enable_x64", True)
        store = open_store(self.store, self.fingerprint)
        if all(store.is_done(number) for number in self.chunks):
            return []
        store.plan.require_versions()
        return compute_chunks(store, problem_of_store(store, self.built), list(self.chunks))

    def checkpoint(self) -> Any:
        """What submitit puts into its queue again when a job's time is up or it is preempted: the same, markers tell the rest."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def open_store(path: str, fingerprint: str) -> Store:
    """The store to write to; refused where another sweep lies there."""
    store = Store(Path(path), write=True)
    if store.fingerprint != fingerprint:
        raise CheckpointError(
            "store", expected="the sweep that this task is part of", got=f"another one at {path}",
            remedy="start the sweep again",
        )  # fmt: skip
    return store


def problem_of_store(store: Store, built: AbstractSystem | None) -> Problem:
    """The problem as the plan has it."""
    plan = store.plan
    return problem_of_plan(plan, plan.system if built is None else built, store.columns(slice(0, 1)))


def problem_of_plan(plan: Plan, system: Any, first: dict[str, Any]) -> Problem:
    """The problem of a system, with the settings of a plan and the values of the first member."""
    return problem_of(
        system, plan.t1, first, plan.arguments(), points=plan.points, rtol=plan.rtol, atol=plan.atol, solver=plan.solver,
        max_steps=plan.max_steps,
    )  # fmt: skip


def compute_chunks(
    store: Store, problem: Problem, numbers: list[int], done: Callable[[int], None] = lambda number: None
) -> list[int]:
    """Solves and writes the chunks that have no marker yet, one after the other, `done` called with each; gives their numbers."""
    plan, computed = store.plan, []
    for number in numbers:
        if store.is_done(number):  # by somebody else meanwhile: jobs outlive the driver that started them
            continue
        began = time.perf_counter()
        arrays = solve_chunk(problem, store.columns(plan.members_of(number)), tuple(plan.keep), plan.lanes, plan.chunk)
        store.write(number, arrays, time.perf_counter() - began)
        computed.append(number)
        done(number)
    return computed
