"""Chunks to processes: one after the other here, or as tasks of an engine with the interface of `concurrent.futures`."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from typing import Any

from odescale.errors import InputError, OdescaleError, SolveError, whole
from odescale.sweeps.store import Store
from odescale.sweeps.task import Task
from odescale.systems.base import AbstractSystem

WAIT = (0.01, 1.0)
"""Seconds between two looks at the futures, the shortest and the longest."""


def run_tasks(
    store: Store,
    missing: list[int],
    executor: Any,
    built: AbstractSystem | None,
    jobs: int | None,
    done: Callable[[int], None],
) -> None:
    """Submits the missing chunks and waits; the engine schedules and retries, the store says what is done.

    **Raises** the first `OdescaleError` of a task (a disk that is full, other versions), after cancelling the rest; `SolveError`
    with the number of chunks that are missing when tasks ended otherwise: killed workers, a time limit.
    """
    if not callable(getattr(executor, "submit", None)):
        raise InputError(
            "executor", expected="something with submit(function) -> future, as in concurrent.futures", got=executor,
            remedy="e.g. Client(address).get_executor() of Dask, or submitit.AutoExecutor(folder)",
        )  # fmt: skip
    attempt = uuid.uuid4().hex
    tasks = [
        Task(str(store.path.resolve()), chunks, store.fingerprint, attempt, built) for chunks in _parts(missing, jobs)
    ]
    # submitit makes one array of the jobs that are submitted in its batch.
    with executor.batch() if hasattr(executor, "batch") else contextlib.nullcontext():
        waiting = [(executor.submit(task), task) for task in tasks]
    failures: list[BaseException] = []
    pause = WAIT[0]
    try:
        while waiting:
            ready = [pair for pair in waiting if pair[0].done()]
            waiting = [pair for pair in waiting if pair not in ready]
            for future, task in ready:
                error = _error_of(future)
                if isinstance(error, OdescaleError):
                    raise error
                if error is not None:
                    failures.append(error)
                for number in task.chunks if error is None else ():
                    done(number)
            pause = WAIT[0] if ready else min(1.5 * pause, WAIT[1])
            if waiting:
                time.sleep(pause)
    finally:
        for future, _ in waiting:
            with contextlib.suppress(Exception):
                future.cancel()
    if failures and (left := store.missing()):
        words = f"{type(failures[0]).__name__}: {failures[0]}".strip().splitlines()[0]
        raise SolveError(
            f"{len(left)} of {store.plan.chunks} chunks were not computed ({len(failures)} tasks ended early, the first with "
            f"{words[:200]}): the same call computes these alone"
        )


def _error_of(future: Any) -> BaseException | None:
    try:
        return future.exception()
    except Exception as error:  # cancelled from outside, or nothing left of the job to ask
        return error


def _parts(missing: list[int], jobs: int | None) -> list[tuple[int, ...]]:
    """The chunks of each task: one, or equally many of each to as many tasks as jobs are wanted."""
    if jobs is None:
        return [(number,) for number in missing]
    jobs = min(whole("jobs", jobs), len(missing))
    return [tuple(missing[start::jobs]) for start in range(jobs)]
