"""`train`: a finite-size SGD run of the real transformer, measured in the theory's order parameters."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from odescale.errors import InputError
from odescale.expectations.finite_context import finite_context_loss
from odescale.networks.architecture import Architecture
from odescale.networks.infinite import infinite_loss
from odescale.precision import resolve_dtype
from odescale.training.initial import measure_overlaps, rows_from_overlaps
from odescale.training.loop import check_seeds, choose_record_steps, require_positive, run_loop, session
from odescale.training.run import TrainingRun, clock_of
from odescale.training.sgd import SeedsInParallel, TransformerObjective, cores, loss_key
from odescale.training.task import TeacherTask

MEASURED = ("overlaps", "row_overlaps", "loss", "loss_stderr", "loss_infinite")


def train(
    architecture: Architecture,
    initial_overlaps: Float[np.ndarray, "*bins P P"],
    *,
    tokens: int,
    batch: int,
    learning_rate: float,
    dimension: int | None = None,
    eigenvalues: Float[np.ndarray, " d"] | None = None,
    bins: Int[np.ndarray, " d"] | None = None,
    schedule: Callable | None = None,
    weight_decay: float = 0.0,
    steps: int | None = None,
    t1: float | None = None,
    record_times: Sequence[float] | Float[np.ndarray, " n"] | None = None,
    seeds: Sequence[int] = (0, 1),
    precision: str = "float32",
    test_sequences: int = 4096,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = True,
    progress: bool = True,
    callback: Callable[[int, Float[np.ndarray, "s P d"]], None] | None = None,
) -> TrainingRun:
    r"""W <- W - eta s(t) grad_W [mean over B of 1/2 sum_i (f_i - f*_i)^2] - (w/N) W, fresh Gaussian tokens every step.

    f is a `Transformer` on d-dimensional tokens, f* its teacher. One unit of t is N = tr Sigma SGD steps: d steps for
    isotropic tokens, one step when `eigenvalues` sum to 1.

    **Arguments**

    - `architecture`: student, teacher and which rows move. `initial_overlaps`: `(P, P)` or `(bins, P, P)`, met exactly
      at every d >= rank by `rows_from_overlaps` (also for `eigenvalues`, `bins`); each seed rotates them differently.
    - `tokens`: T context tokens of the query. `batch`: B sequences per step. `dimension`: d.
    - `learning_rate`: plain eta on the mean sample loss. `schedule`: JAX-traceable s(t), None for constant.
      `weight_decay`: w, pulls a row to zero at rate w per unit of t.
    - `steps` or `t1`: length of the run in SGD steps or in units of t. `record_times`: in units of t, rounded to whole
      steps; default 31 points from t1/120 to t1, log-spaced. Without `steps` and `t1` the last record ends the run.
    - `seeds`: integers >= 0, trained side by side; a seed's numbers do not depend on the others.
    - `precision`: of tokens and weights; overlaps are always measured in float64.
    - `test_sequences`: sequences of `finite_context_loss` at each record.
    - `checkpoint`: path of an npz, written atomically at every record and every `checkpoint_seconds`; with `resume` a
      run found there goes on, to the same numbers bit for bit on the same machine.
    - `progress`: a bar with steps/s and sample loss on stderr, only when that is a terminal.
    - `callback(step, rows)`: called after each record with the `(s, P, d)` rows.

    **Returns** a `TrainingRun`.

    **Errors**: `InputError` for a bad argument before anything is compiled; `CheckpointError` for a checkpoint that is
    cut short or belongs to another configuration; `SolveError` when a seed diverges (seed, step and remedy).

    **Good values**: d = 200, T = 64, B = 4, eta = .2, 6000 steps of the quickstart network: seconds per seed. **Failure
    regime**: finite d and T shift the run from the theory by O(1/d) in the mean and O(1/T).
    """
    task = TeacherTask(architecture.teacher, tokens=tokens, batch=batch, dimension=dimension, eigenvalues=eigenvalues)
    dtype = resolve_dtype(precision, "train")
    require_positive("learning_rate", learning_rate)
    if not (np.isfinite(weight_decay) and weight_decay >= 0):
        raise InputError("weight_decay", expected="a number >= 0", got=weight_decay, remedy="0 switches it off")
    if isinstance(test_sequences, bool) or int(test_sequences) != test_sequences or test_sequences < 2:
        raise InputError(
            "test_sequences", expected="an integer >= 2", got=test_sequences, remedy="4096 is a good value"
        )
    seed_list = check_seeds(seeds)
    record_steps = choose_record_steps(steps, t1, record_times, task.scale)
    config = _configuration(
        architecture, initial_overlaps, task, bins, schedule, record_steps,
        learning_rate=float(learning_rate), weight_decay=float(weight_decay), seeds=seed_list, precision=precision,
        test_sequences=int(test_sequences),
    )  # fmt: skip
    spectrum = None if eigenvalues is None else task.eigenvalues
    # Always made, also when a checkpoint replaces them: bad overlaps are refused in either case.
    start = [
        rows_from_overlaps(initial_overlaps, dimension=task.dimension, eigenvalues=spectrum, bins=bins, seed=seed)
        for seed in seed_list
    ]
    if start[0].shape[0] != architecture.size:
        raise InputError(
            "initial_overlaps", expected=f"P = {architecture.size} rows", got=start[0].shape[0], remedy="match the rows"
        )
    advance = SeedsInParallel(
        TransformerObjective(architecture, task),
        seeds=seed_list,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        schedule=schedule,
        dtype=dtype,
    )
    done = run_loop(
        advance,
        lambda rows, step: _measure(architecture, rows, spectrum, task.tokens, seed_list, step, test_sequences),
        np.stack(start).astype(dtype),
        moved=len(np.flatnonzero(architecture.trained_mask)),
        names=MEASURED,
        seeds=seed_list,
        record_steps=record_steps,
        scale=task.scale,
        config=config,
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        resume=resume,
        progress=progress,
        callback=callback,
    )
    return TrainingRun(
        step=record_steps,
        t=record_steps / task.scale,
        seeds=np.asarray(seed_list),
        **done.records,
        rows=done.rows,
        clock=clock_of(config, schedule),
        config=config,
        meta=session(done),
    )


def _measure(
    architecture: Architecture,
    rows: Float[np.ndarray, "s P d"],
    eigenvalues: Float[np.ndarray, " d"] | None,
    tokens: int,
    seeds: list[int],
    step: int,
    sequences: int,
) -> dict[str, np.ndarray]:
    """Overlaps, test loss and infinite-context loss of every seed, `(s, ...)` each."""
    C, R = measure_overlaps(rows, eigenvalues)

    def test_loss(i: int) -> tuple[float, float]:
        key = loss_key(seeds[i], step)
        return finite_context_loss(architecture, C[i], R[i], tokens, key, sequences, precision="float32")

    losses = [test_loss(0)]  # alone first: it compiles
    with ThreadPoolExecutor(cores()) as pool:
        losses += list(pool.map(test_loss, range(1, len(seeds))))
    infinite = [float(infinite_loss(C[i], R[i], architecture)) for i in range(len(seeds))]  # type: ignore[arg-type]
    return {
        "overlaps": C,
        "row_overlaps": R,
        "loss": np.array([mean for mean, _ in losses]),
        "loss_stderr": np.array([error for _, error in losses]),
        "loss_infinite": np.array(infinite),
    }


def _configuration(
    architecture: Architecture,
    initial_overlaps: np.ndarray,
    task: TeacherTask,
    bins: np.ndarray | None,
    schedule: Callable | None,
    record_steps: Int[np.ndarray, " n"],
    **settings: Any,
) -> dict[str, Any]:
    """Everything that decides the numbers, as plain JSON types."""
    samples = None
    if schedule is not None:
        times = np.linspace(0.0, record_steps[-1] / task.scale, 513)
        values = np.asarray(jax.vmap(schedule)(jnp.asarray(times)), dtype=float)
        if not np.isfinite(values).all():
            raise InputError(
                "schedule", expected="finite s(t) on the run", got="NaN or infinity", remedy="check its domain"
            )
        samples = {"t": times.tolist(), "s": values.tolist()}

    def heads(network: Any) -> list:
        return [[[h.query, h.key, h.value, h.output] for h in layer] for layer in network.layers]

    return {
        "rows": list(architecture.rows),
        "trained": list(architecture.trained),
        "student": {"layers": heads(architecture.student), "readouts": list(architecture.student.readouts)},
        "teacher": {"layers": heads(architecture.teacher), "readouts": list(architecture.teacher.readouts)},
        "initial_overlaps": np.asarray(initial_overlaps, dtype=float).tolist(),
        "dimension": task.dimension,
        "scale": task.scale,
        "tokens": task.tokens,
        "batch": task.batch,
        "eigenvalues": None if task.deviations is None else task.eigenvalues.tolist(),
        "bins": None if bins is None else np.asarray(bins).tolist(),
        "schedule": samples,
        "record_steps": record_steps.tolist(),
        **settings,
    }
