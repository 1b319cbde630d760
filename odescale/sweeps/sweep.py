"""`sweep`: one system at many values of its parameters, in memory or into a store, here or on many machines."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from odescale.errors import CheckpointError, InputError, whole
from odescale.solve.members import Columns, columns_of
from odescale.solve.sweep import LANES, Problem, problem_of, sweep_in_memory
from odescale.solve.trajectory import Trajectory
from odescale.sweeps.chunk import Array, require_outputs, unrepeated
from odescale.sweeps.engine import run_tasks
from odescale.sweeps.plan import (
    Plan,
    Subject,
    fingerprint,
    installed_versions,
    plain_arguments,
    require_same,
    subject_of,
)
from odescale.sweeps.store import Store, create_store, require_zarr
from odescale.sweeps.task import compute_chunks
from odescale.systems.base import AbstractSystem

if TYPE_CHECKING:
    import xarray

System = AbstractSystem | str | Callable[..., AbstractSystem]
SMALLEST_CHUNK, LARGEST_CHUNK, CHUNK_BYTES, CHUNKS = 1024, 4096, 2**25, 32


@overload
def sweep(
    system: System,
    t1: float,
    values: Mapping[str, Any],
    *,
    store: None = None,
    exponents: bool = True,
    lanes: int | None = None,
    **settings: Any,
) -> Trajectory: ...
@overload
def sweep(
    system: System,
    t1: float,
    values: Mapping[str, Any],
    *,
    store: str | os.PathLike,
    keep: Sequence[str] = ("loss", "transition"),
    chunk: int | None = None,
    resume: bool = True,
    executor: Any = None,
    jobs: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
    **settings: Any,
) -> xarray.Dataset: ...
def sweep(
    system: System,
    t1: float,
    values: Mapping[str, Any],
    *,
    points: int = 200,
    rtol: float | None = None,
    atol: float | None = None,
    solver: str = "auto",
    max_steps: int | None = None,
    exponents: bool = True,
    lanes: int | None = None,
    store: str | os.PathLike | None = None,
    keep: Sequence[str] = ("loss", "transition"),
    chunk: int | None = None,
    resume: bool = True,
    executor: Any = None,
    jobs: int | None = None,
    progress: bool | Callable[[int, int], None] = False,
    **fixed: Any,
) -> Trajectory | xarray.Dataset:
    """y(t; theta_m) for m = 1..members: the same integration as `integrate`, vmapped over parameter values.

    One unit of t is tr Sigma SGD steps. Compiles once per shape and process, whatever the values; uses all local devices.

    **Arguments**

    - `system`: the name of a system or its builder, with `fixed` parameters common to all members; or a system as it stands, whose
      own numbers are then varied (`learning_rate`, `batch`, ...: every field that is one number).
    - `values`: name -> (members,) arrays of equal length, varied together (use `numpy.meshgrid(...)` raveled for a grid).
    - `solver`: "auto" is the first of the system's ladder; a failed member is not solved again by the next.
    - `max_steps`: lower it where some members may diverge: a batch takes the steps of its slowest member.
    - `exponents`: False leaves out the exact p and q, most of the time of a small system; they are then slopes of the loss on the
      output times, as in `integrate`. With a store `keep` says what is computed.
    - `lanes`: members solved side by side on each device, the rest in turn. Default: 64 on a CPU, where 32 to 128 is faster than
      all at once, since a vmapped solve waits for its slowest member; all on an accelerator. Members of like stiffness go together.

    With a `store`, for sweeps that fit no memory, take hours or want many machines (docs/sweeps.md):

    - `store`: a folder that becomes a zarr store, for `xarray.open_zarr(store, consolidated=False)`; needs the extra `cluster`. One
      that the same sweep has begun is gone on with: only chunks that are missing are computed. `resume=False` refuses one.
    - `keep`: outputs that are kept. Curves over t: "loss", "exponent", "index", observables by name. Numbers: "transition" (t_x,
      its depth in e-folds and a `TransitionCode`), "end" (p and q at the last time reached). Always: code, solver_steps, t_end,
      loss_end. `()` is a summary alone. What is left out is not computed.
    - `chunk`: members that are computed and written at once. Default: 1024 to 4096, at most 32 MB. Ask
      for fewer where a member takes a second: a killed worker loses its chunk.
    - `executor`: an engine with `submit`, as in `concurrent.futures`: Dask's `Client(...).get_executor()`, submitit's
      `AutoExecutor`, a process pool started by "spawn". Workers must see the store and find the builder. `jobs`: how many tasks are
      made of the chunks; default one for each. `progress`: True for a bar, or a function of (members done, members).

    **Returns** a `Trajectory` whose arrays have a leading axis of members; `code` tells which members failed and
    `valid` masks what they did not reach. With a store an `xarray.Dataset` over `member` and `t` that reads from it when asked;
    the numbers of each member also stand in a CSV beside the store. **Raises** `InputError` for a parameter that changes shapes
    (depth, heads, dimension: loop over those), `CheckpointError` for a store of another sweep, one that is full or read-only,
    `SolveError` when tasks of the engine were lost: the same call goes on.
    """
    settings = {"points": points, "rtol": rtol, "atol": atol, "solver": solver, "max_steps": max_steps}
    if store is None:
        _require_no_store(chunk, executor, jobs)
        return sweep_in_memory(system, t1, values, fixed, lanes=lanes, exponents=exponents, **settings)
    if not exponents:
        raise InputError("exponents", expected="True with a store", got=exponents, remedy="leave them out of keep")
    require_zarr()
    columns = columns_of(values)
    for name, value in (("chunk", chunk), ("lanes", lanes), ("jobs", jobs)):
        if value is not None:
            whole(name, value, 1, 10_000_000, remedy="leave it out for the default")
    subject, plain = subject_of(system), plain_arguments(fixed)
    problem = problem_of(system, t1, columns, fixed, **settings)
    path, size = Path(store), next(iter(columns.values())).size
    begun = Store(path, write=True) if path.exists() else None
    if begun is None:
        kept, arrays = require_outputs(keep, problem, columns)
        chunk = _chunk(chunk, size, arrays)
    else:
        if not resume:
            raise CheckpointError(
                "store", expected="nothing there yet", got=path, remedy="choose another, or resume=True"
            )
        kept, arrays = unrepeated(keep), {}
        chunk = begun.plan.chunk if chunk is None else chunk
    plan = Plan(
        system=subject.text, digest=subject.digest, fixed=plain, t1=float(t1), points=int(points), solver=problem.solver,
        rtol=float(problem.rtol), atol=float(problem.atol), max_steps=problem.max_steps, keep=list(kept),
        chunk=min(int(chunk), size), lanes=None if lanes is None else int(lanes), members=size, versions=installed_versions(),
    )  # fmt: skip
    if begun is None:
        _create(path, plan, columns, problem, arrays)
    opened = begun or Store(path, write=True)
    require_same(opened.record, opened.columns(), plan, columns, path)
    # A finished store may lie where nobody writes any more.
    if (missing := opened.missing()) or not opened.summary.exists():
        _compute(opened, missing, problem, subject, executor, jobs, progress)
        opened.tidy()
        opened.write_summary()
    return open_sweep(path)


def open_sweep(store: str | os.PathLike) -> xarray.Dataset:
    """What a sweep has written: outputs over `member` and `t`, read when asked; `seconds` is NaN for chunks still missing."""
    import xarray

    require_zarr()
    return xarray.open_zarr(str(store), consolidated=False, chunks=None)


def _require_no_store(chunk: Any, executor: Any, jobs: Any) -> None:
    for name, value in (("chunk", chunk), ("executor", executor), ("jobs", jobs)):
        if value is not None:
            raise InputError(
                name,
                expected="a store to go with it",
                got="none",
                remedy='pass store="sweep.zarr"; in memory use lanes',
            )


def _chunk(chunk: int | None, members: int, arrays: Mapping[str, Array]) -> int:
    """Members of a chunk: some thirty chunks for an engine to balance, files neither tiny nor huge."""
    if chunk is not None:
        return int(chunk)
    each = sum(int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize for array in arrays.values())
    wanted = min(max(members // CHUNKS, SMALLEST_CHUNK), LARGEST_CHUNK, max(CHUNK_BYTES // each, 1))
    return min(max(wanted // LANES, 1) * LANES, members)


def _create(path: Path, plan: Plan, columns: Columns, problem: Problem, arrays: Mapping[str, Array]) -> None:
    sample, clock = problem.sample, problem.sample.clock
    described = {
        "system": sample.label, "loss": getattr(sample, "loss_label", "excess loss L"),
        "time_unit": f"one unit of t = {clock.unit}",
        "parameters": {name: value for name, value in sample.summary().items() if name not in columns},
    }  # fmt: skip
    steps = np.asarray(clock.steps(problem.times), dtype=float)
    create_store(path, plan, fingerprint(plan, columns), columns, problem.times, steps, arrays, described)


def _compute(
    store: Store, missing: list[int], problem: Problem, subject: Subject, executor: Any, jobs: int | None, progress: Any
) -> None:
    plan = store.plan
    done = plan.members - sum(_size(plan, number) for number in missing)
    report, close = _reporter(progress, done, plan.members)

    def finished(number: int) -> None:
        nonlocal done
        done += _size(plan, number)
        report(done, plan.members)

    try:
        if executor is None:
            compute_chunks(store, problem, missing, finished)
        elif missing:
            run_tasks(store, missing, executor, subject.built, jobs, finished)
    finally:
        close()


def _size(plan: Plan, number: int) -> int:
    members = plan.members_of(number)
    return members.stop - members.start


def _reporter(progress: Any, done: int, total: int) -> tuple[Callable[[int, int], Any], Callable[[], None]]:
    """(function of members done and all, what ends it)."""
    if callable(progress):
        return progress, lambda: None
    if not progress:
        return lambda done, total: None, lambda: None
    from tqdm import tqdm

    bar = tqdm(total=total, initial=done, unit=" members", smoothing=0.05)

    def report(now: int, total: int) -> None:
        bar.update(now - bar.n)

    return report, bar.close
