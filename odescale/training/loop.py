"""The loop around a training: records, checkpoints, branches, progress, divergence, whatever is trained and measured."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from odescale.errors import InputError, SolveError
from odescale.training.checkpoint import Records, branch, kept_checkpoint, resume, save
from odescale.training.runner import Seeds

SECONDS_PER_CALL = 1.0  # of one compiled loop: how often the bar moves and a divergence is seen


class Files(NamedTuple):
    """Where a run is kept: `checkpoint` and how often, whether one found there goes on, `keep_at` steps, `branch` to begin from."""

    checkpoint: str | os.PathLike | None
    seconds: float
    resume: bool
    keep_at: list[int]
    branch: str | os.PathLike | None


class Finished(NamedTuple):
    """What was measured, (seeds, records, ...) each, and what is noted of the session but never part of a run's identity."""

    records: dict[str, np.ndarray]
    meta: dict[str, Any]


def run_loop(
    seeds: Seeds,
    record_steps: Int[np.ndarray, " n"],
    configure: Callable[[Int[np.ndarray, " n"]], dict[str, Any]],
    files: Files,
    *,
    progress: bool,
    callback: Callable[[int, Any], None] | None,
) -> Finished:
    """Advances all seeds from record to record and measures them there; goes on from `files` bit for bit.

    **Errors**: `CheckpointError` for a file of another configuration; `SolveError` when a seed diverges.
    """
    experiment, config, path = seeds.experiment, configure(record_steps), files.checkpoint
    step, records = 0, {}
    if path is not None and files.resume and Path(path).exists():
        step, records = resume(path, seeds, config)
    elif files.branch is not None:
        step, records = branch(files.branch, seeds, configure, record_steps)
    stops = [kept for kept in files.keep_at if kept > step]
    began, first_step, saved, per_second = time.monotonic(), step, time.monotonic(), 8.0
    bar = tqdm(
        total=int(record_steps[-1]), initial=step, unit="step", desc=f"train {len(seeds.seeds)} seeds", file=sys.stderr,
        disable=not (progress and sys.stderr.isatty()),
    )  # fmt: skip
    with bar:
        for number in range(_taken(records), len(record_steps)):
            before, target = int(record_steps[number - 1]) if number else 0, int(record_steps[number])
            while step < target:
                until = min([target, *stops[:1]])
                count = min(until - step, max(1, int(per_second * SECONDS_PER_CALL)))
                call = time.monotonic()
                seeds.advance(step, count)
                # The first call compiles: let the length of a call grow at most fourfold, never trust one timing.
                per_second = min(count / max(time.monotonic() - call, 1e-6), 4 * max(per_second, count))
                step += count
                means = seeds.loss_sums / (step - before)
                _stop_if_diverged(seeds, means)
                bar.update(count)
                bar.set_postfix(loss=f"{means.mean():.3g}", refresh=False)
                if path is not None and stops[:1] == [step]:
                    save(kept_checkpoint(path, stops.pop(0)), seeds, config, step, records)
                elif path is not None and time.monotonic() - saved > files.seconds:
                    save(path, seeds, config, step, records)
                    saved = time.monotonic()
            states = seeds.states
            found = {"train_loss": seeds.take_losses(target - before)} | experiment.measure(states, seeds.seeds, step)
            for name, values in found.items():
                records.setdefault(name, []).append(np.asarray(values))
            if path is not None:
                save(path, seeds, config, step, records)
                saved = time.monotonic()
            if callback is not None:
                callback(step, experiment.model(states))
    meta = {
        "seconds": time.monotonic() - began,
        "steps_this_session": step - first_step,
        "device": str(jax.devices()[0]),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }
    return Finished({name: np.stack(values, axis=1) for name, values in records.items()}, meta)


def _taken(records: Records) -> int:
    return len(next(iter(records.values()))) if records else 0


def _stop_if_diverged(seeds: Seeds, means: np.ndarray) -> None:
    for seed, at, loss in zip(seeds.seeds, seeds.diverged_at, means, strict=True):
        if at >= 0:
            raise SolveError(
                f"training diverged: seed {seed} at step {at} (t = {at / seeds.experiment.clock.steps_per_unit:.4g}), mean "
                f"sample loss {loss:.3g}; likely cause: learning_rate above the stability limit at this batch; halve it, raise "
                "batch or warm up"
            )


MOST_SEEDS, MOST_RECORDS = 100_000, 1_000_000
"""Runs side by side, and times at which they are measured: more than fill memory."""


def choose_record_steps(t1: float, record_times: Any, records: int, scale: float) -> Int[np.ndarray, " n"]:
    """Whole steps at which a run is measured: `record_times`, or `records` log-spaced ones from t1/60; the last is always one."""
    if isinstance(t1, bool) or not 1e-250 < float(t1) < np.inf:
        raise InputError("t1", expected="a positive finite time", got=t1, remedy=f"one unit is {scale:g} SGD steps")
    t1 = float(t1)
    last = max(1, round(t1 * scale))
    if last >= 2**31:
        raise InputError("t1", expected=f"at most {2**31 / scale:.4g}, 2^31 steps", got=t1, remedy="train for less")
    times = np.geomspace(t1 / 60, t1, records) if record_times is None else np.asarray(record_times, dtype=float)
    if times.ndim != 1 or times.size == 0 or not (np.isfinite(times).all() and (times >= 0).all()):
        raise InputError("record_times", expected="a list of times >= 0", got=record_times, remedy="in units of t")
    recorded = np.rint(times * scale).astype(np.int64)
    if recorded.max() > last:
        raise InputError("record_times", expected=f"times up to t1 = {t1:g}", got=times.max(), remedy="raise t1")
    return np.unique(np.append(recorded, last))


def kept_steps(keep_at: Sequence[float], t1: float, scale: float, checkpoint: Any) -> list[int]:
    """The whole steps behind `keep_at`, times in units of t from one step to t1."""
    if len(keep_at) and checkpoint is None:
        raise InputError("checkpoint", expected="a path beside keep_at", got=None, remedy="name the file to copy")
    steps = [int(np.rint(t * scale)) if np.isfinite(t) else 0 for t in keep_at]
    if any(not 0 < step <= max(1, round(t1 * scale)) for step in steps):
        raise InputError("keep_at", expected=f"times from one step to t1 = {t1:g}", got=list(keep_at), remedy="drop it")
    return sorted(set(steps))


def check_seeds(seeds: int | Sequence[int] | None, random: bool) -> list[int]:
    """The seeds as distinct integers >= 0, or an `InputError`; how many may be said instead of which."""
    if seeds is None:
        seeds = 4 if random else 1
    if isinstance(seeds, int | np.integer) and not isinstance(seeds, bool):
        if not 1 <= seeds <= MOST_SEEDS:
            raise InputError("seeds", expected=f"an integer from 1 to {MOST_SEEDS}, or which", got=seeds,
                             remedy="two show the scatter")  # fmt: skip
        seeds = range(int(seeds))
    try:
        values = [int(seed) for seed in seeds]  # pyright: ignore[reportGeneralTypeIssues]
    except (TypeError, ValueError):
        values = []
    if not values or len(set(values)) != len(values) or min(values) < 0 or max(values) >= 2**31:
        raise InputError("seeds", expected="how many, or distinct integers >= 0", got=seeds, remedy="e.g. (0, 1)")
    if len(values) > 1 and not random:
        raise InputError("seeds", expected="one: nothing is drawn at random here", got=seeds, remedy="leave it out")
    return values
