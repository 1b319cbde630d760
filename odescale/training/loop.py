"""The loop around a training run: records, checkpoints, progress, divergence, whatever is trained and measured."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from odescale.errors import CheckpointError, InputError, SolveError
from odescale.training.checkpoint import fingerprint, read_arrays, write_arrays

SECONDS_PER_CALL = 1.0  # of one compiled loop: how often the bar moves and a divergence is seen


class Finished(NamedTuple):
    """Final rows (s, P, d), what was measured at the record times (s, n, ...), seconds and steps of this session."""

    rows: np.ndarray
    records: dict[str, np.ndarray]
    seconds: float
    steps: int


def session(done: Finished) -> dict[str, Any]:
    """Seconds, steps, device and versions of a session: what is noted of a run and never part of its identity."""
    return {
        "seconds": done.seconds,
        "steps_this_session": done.steps,
        "device": str(jax.devices()[0]),
        "jax": jax.__version__,
        "numpy": np.__version__,
    }


def run_loop(
    advance: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
    measure: Callable[[Float[np.ndarray, "s P d"], int], Mapping[str, np.ndarray]],
    rows: Float[np.ndarray, "s P d"],
    *,
    moved: int,
    names: Sequence[str],
    seeds: list[int],
    record_steps: Int[np.ndarray, " n"],
    scale: float,
    config: dict[str, Any],
    checkpoint: str | os.PathLike | None,
    checkpoint_seconds: float,
    resume: bool,
    progress: bool,
    callback: Callable[[int, np.ndarray], None] | None,
) -> Finished:
    """Advances all seeds from record to record, measuring `names` there; resumes from `checkpoint` bit for bit.

    `advance(rows, velocity, step, count)` takes `count` steps: rows, velocity, mean sample loss (s,), first diverged step (s,).

    **Errors**: `CheckpointError` for a checkpoint of another configuration; `SolveError` when a seed diverges.
    """
    velocity = np.zeros((rows.shape[0], moved, rows.shape[2]), rows.dtype)
    step, records = 0, {name: [] for name in names}
    if checkpoint is not None and resume and Path(checkpoint).exists():
        rows, velocity, step, records = _resume(checkpoint, config, names)
    began, first_step, saved = time.monotonic(), step, time.monotonic()
    bar = tqdm(
        total=int(record_steps[-1]), initial=step, unit="step", desc=f"train {len(seeds)} seeds", file=sys.stderr,
        disable=not (progress and sys.stderr.isatty()),
    )  # fmt: skip
    per_second = 8.0
    with bar:
        while len(records[names[0]]) < len(record_steps):
            target = int(record_steps[len(records[names[0]])])
            while step < target:
                count = min(target - step, max(1, int(per_second * SECONDS_PER_CALL)))
                call = time.monotonic()
                rows, velocity, sample_loss, diverged_at = advance(rows, velocity, step, count)
                _stop_if_diverged(seeds, diverged_at, sample_loss, rows, step + count, scale)
                # The first call compiles: let the length of a call grow at most fourfold, never trust one timing.
                per_second = min(count / max(time.monotonic() - call, 1e-6), 4 * max(per_second, count))
                step += count
                bar.update(count)
                bar.set_postfix(loss=f"{sample_loss.mean():.3g}", refresh=False)
                if checkpoint is not None and time.monotonic() - saved > checkpoint_seconds:
                    _save(checkpoint, config, rows, velocity, step, records)
                    saved = time.monotonic()
            for name, values in measure(rows, step).items():
                records[name].append(values)
            if checkpoint is not None:
                _save(checkpoint, config, rows, velocity, step, records)
                saved = time.monotonic()
            if callback is not None:
                callback(step, rows.copy())
    stacked = {name: np.stack(records[name], axis=1) for name in names}
    return Finished(rows, stacked, time.monotonic() - began, step - first_step)


def _stop_if_diverged(
    seeds: list[int],
    diverged_at: Int[np.ndarray, " s"],
    loss: Float[np.ndarray, " s"],
    rows: Float[np.ndarray, "s P d"],
    step: int,
    scale: float,
) -> None:
    for i, seed in enumerate(seeds):
        if diverged_at[i] >= 0 or not np.isfinite(rows[i]).all():
            at = int(diverged_at[i]) if diverged_at[i] >= 0 else step
            raise SolveError(
                f"training diverged: seed {seed} at step {at} (t = {at / scale:.4g}), mean sample loss {loss[i]:.3g}; "
                "likely cause: learning_rate above the stability limit at this batch; halve it or raise batch"
            )


def _save(
    path: str | os.PathLike, config: dict, rows: np.ndarray, velocity: np.ndarray, step: int, records: dict[str, list]
) -> None:
    arrays = {name: np.stack(values, axis=1) for name, values in records.items() if values}
    header = {"config_hash": fingerprint(config), "config": config, "step": step}
    write_arrays(path, "training checkpoint", {"rows": rows, "velocity": velocity, **arrays}, header)


def _resume(
    path: str | os.PathLike, config: dict, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, int, dict[str, list]]:
    remedy = "give another path, or resume=False to overwrite it"
    arrays, header = read_arrays(path, "training checkpoint", "checkpoint", remedy)
    if header["config_hash"] != fingerprint(config):
        other = header["config"]
        changed = sorted(name for name in config if config[name] != other.get(name)) or ["fields of another version"]
        raise CheckpointError(
            "checkpoint",
            expected=f"a checkpoint of this configuration at {path}",
            got=f"another {', '.join(changed)}",
            remedy=remedy,
        )
    records = {name: list(np.moveaxis(arrays[name], 1, 0)) if name in arrays else [] for name in names}
    return arrays["rows"], arrays["velocity"], int(header["step"]), records


def choose_record_steps(steps: int | None, t1: float | None, record_times: Any, scale: float) -> Int[np.ndarray, " n"]:
    """Whole steps at which a run is measured, from its length in steps or in t and the times asked for (t = step/scale)."""
    if steps is not None and t1 is not None:
        raise InputError("t1", expected="either steps or t1", got=f"steps={steps}, t1={t1}", remedy="leave one out")
    if steps is None and t1 is None and record_times is None:
        raise InputError("t1", expected="the length of the run", got=None, remedy="pass t1, steps or record_times")
    if steps is not None:
        if isinstance(steps, bool) or int(steps) != steps or steps < 1:
            raise InputError("steps", expected="an integer >= 1", got=steps, remedy="pass 1 or more")
        last = int(steps)
    elif t1 is not None:
        require_positive("t1", t1)
        last = max(1, round(t1 * scale))
    else:
        last = None
    if record_times is None:
        assert last is not None
        times = np.geomspace(last / 120, last, 31) / scale
    else:
        times = np.asarray(record_times, dtype=float)
        if times.ndim != 1 or times.size == 0 or not (np.isfinite(times).all() and (times >= 0).all()):
            raise InputError("record_times", expected="a list of times >= 0", got=record_times, remedy="in units of t")
    recorded = np.rint(times * scale).astype(np.int64)
    if last is not None:
        if recorded.max() > last:
            raise InputError(
                "record_times",
                expected=f"times up to {last / scale:g}",
                got=times.max(),
                remedy="run longer, or drop it",
            )
        recorded = np.append(recorded, last)
    return np.unique(recorded)


def require_positive(name: str, value: float) -> None:
    """Refuses what is not a positive finite number, by its name."""
    if isinstance(value, bool) or not (np.isfinite(value) and value > 0):
        raise InputError(name, expected="a positive finite number", got=value, remedy=f"pass {name} > 0")


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds as distinct integers >= 0, or an `InputError`."""
    values = [int(seed) for seed in seeds]
    if not values or len(set(values)) != len(values) or min(values) < 0 or max(values) >= 2**31:
        raise InputError("seeds", expected="distinct integers >= 0", got=seeds, remedy="e.g. (0, 1)")
    return values
