"""`train`: the real network behind any theory, from the same start and on the same clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Real

from odescale.clock import schedule_samples
from odescale.errors import require_number, whole
from odescale.precision import require_x64, resolve_dtype
from odescale.run import Run
from odescale.training.experiment import AbstractTraining, experiment_of
from odescale.training.loop import MOST_RECORDS, Files, check_seeds, choose_record_steps, kept_steps, run_loop
from odescale.training.runner import Seeds


def train(
    subject: Any,
    t1: float,
    *,
    seeds: int | Sequence[int] | None = None,
    record_times: Sequence[float] | Real[np.ndarray, " n"] | None = None,
    records: int = 31,
    precision: str = "float32",
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = True,
    keep_at: Sequence[float] = (),
    branch: str | os.PathLike | None = None,
    progress: bool = True,
    callback: Callable[[int, Any], None] | None = None,
    **settings: Any,
) -> Run:
    r"""W(n + 1) = step(W(n); data of step n), n = 0 ... N t1 - 1, for every seed: the finite network that a theory predicts.

    One unit of t is N = `clock.steps_per_unit` SGD steps of the subject: tr Sigma (the dimension d) for attention and mean-field
    systems, d for peaked ones (Adam: one), one step for spectral and kernel systems and language models.

    **Arguments**

    - `subject`: a system (attention, quickstart, transformer, committee, any `mean_field`, peaked, spectral, kernel, derived),
      the name of one in the catalogue, or an experiment (`language(...)`, `toy_layer(...)`, an `AbstractExperiment` of yours).
      Its learning rate, batch, schedule, optimiser and start are the run's; flags such as `noise` are the theory's alone.
    - `t1` > 0. `record_times` in [0, t1], rounded to whole steps; default `records` times log-spaced from t1/60. t1 is always one.
    - `seeds`: how many (0, 1, ...), or which; default 4, or one where nothing is random (kernel). Each has its own start, data
      and labels; step n draws from `fold_in(seed's key, n)`. A seed's numbers do not depend on the others.
    - `precision`: of weights and data, "float32" or "float64"; what is measured is float64.
    - `checkpoint`: path of an npz, written atomically at every record and every `checkpoint_seconds`; with `resume` a run found
      there goes on, to the same numbers bit for bit on the same machine.
    - `keep_at`: times (units of t) at which a copy of the checkpoint stays, with ".STEP" before its suffix. `branch`: such a copy
      to begin from instead of step 0; what that run recorded up to there comes with it. Everything but t1, later record times and
      the later part of schedules must be that run's.
    - `progress`: a bar on stderr when that is a terminal. `callback(step, model)`: after each record.
    - `settings` of the theory's experiment: `test_sequences` (attention), `nodes` (peaked), `momentum` (spectral), `drift`
      (kernel); any other name is refused.

    **Returns** a `Run` with records "loss" (excess loss of the theory; held-out loss for text), "train_loss" (mean sample loss
    since the last record), and the theory's order parameters. **Errors**: `InputError` for a bad argument or a system without a
    real network, before anything is compiled; `CheckpointError` for a file that is cut short or of another configuration, naming
    what differs; `SolveError` when a seed diverges (seed, step and remedy).

    **Good values**: d = 200, T = 64, B = 4, 6000 steps of the quickstart network: seconds per seed. **Failure regime**: finite d
    and T shift a run from its theory by O(1/d) in the mean and O(1/T).
    """
    require_x64("train")
    experiment = experiment_of(subject, **settings)
    dtype = resolve_dtype(precision, "train")
    require_number("checkpoint_seconds", checkpoint_seconds)
    seed_list = check_seeds(seeds, experiment.random)
    clock = experiment.clock
    scale = float(clock.steps_per_unit)
    steps = choose_record_steps(t1, record_times, whole("records", records, 2, MOST_RECORDS), scale)
    kept = kept_steps(keep_at, t1, scale, checkpoint)
    files = Files(checkpoint, float(checkpoint_seconds), resume, kept, branch)

    def configure(record_steps: Int[np.ndarray, " n"]) -> dict[str, Any]:
        return _configuration(experiment, record_steps, seed_list, precision)

    configure(steps)  # a schedule that is not finite is refused before the starts are made
    runners = Seeds(experiment, seed_list, dtype)
    done = run_loop(runners, steps, configure, files, progress=progress, callback=callback)
    return Run(
        step=steps, t=steps / scale, seeds=np.asarray(seed_list), records=done.records,
        model=experiment.model(runners.states), clock=clock, config=configure(steps), meta=done.meta,
    )  # fmt: skip


def _configuration(
    experiment: AbstractTraining, record_steps: Int[np.ndarray, " n"], seeds: list[int], precision: str
) -> dict[str, Any]:
    """Everything that decides the numbers, as plain JSON types; the schedule by its samples."""
    clock = experiment.clock
    t1 = float(record_steps[-1]) / clock.steps_per_unit
    return {
        "subject": experiment.subject,
        "scale": float(clock.steps_per_unit),
        "learning_rate": float(clock.learning_rate),
        "batch": float(clock.batch),
        **experiment.config(t1),
        "schedule": schedule_samples(clock.schedule, t1),
        "record_steps": [int(step) for step in record_steps],
        "seeds": seeds,
        "precision": precision,
    }
