"""Checkpoints of a language-model training: to go on from, and to branch off with another schedule."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from odescale.errors import CheckpointError, InputError
from odescale.networks.language_model import LanguageModel
from odescale.training.checkpoint import fingerprint, read_arrays, write_arrays

KIND = "language checkpoint"


class Resumable(Protocol):
    """A loop whose whole state goes to arrays and back."""

    def leaves(self) -> dict[str, np.ndarray]: ...

    def restore(self, arrays: dict[str, np.ndarray]) -> None: ...


def save(path: str | os.PathLike, loop: Resumable, config: dict, step: int, records: dict[str, list]) -> None:
    """Writes the state of the loop after `step` steps and the records up to there."""
    arrays = {f"record_{name}": np.stack(values, axis=1) for name, values in records.items() if values}
    header = {"config_hash": fingerprint(config), "config": config, "step": step}
    write_arrays(path, KIND, {**loop.leaves(), **arrays}, header)


def kept_checkpoint(checkpoint: str | os.PathLike, step: int) -> Path:
    """Where `train_language` keeps its state at `step`: "run.npz" becomes "run.STEP.npz"."""
    path = Path(checkpoint)
    return path.with_name(f"{path.stem}.{step}{path.suffix or '.npz'}")


def resume_run(
    path: str | os.PathLike, loop: Resumable, config: dict, names: tuple[str, ...]
) -> tuple[int, dict[str, list]]:
    """Step and records at which the same run stopped; the loop takes its state. `CheckpointError` for another run."""
    remedy = "give another path, or resume=False to overwrite it"
    arrays, header = read_arrays(path, KIND, "checkpoint", remedy)
    if header["config_hash"] != fingerprint(config):
        other = header["config"]
        changed = sorted(name for name in config if config[name] != other.get(name)) or ["fields of another version"]
        raise CheckpointError("checkpoint", expected=f"a checkpoint of this configuration at {path}",
                              got=f"another {', '.join(changed)}", remedy=remedy)  # fmt: skip
    loop.restore(arrays)
    return int(header["step"]), _stored_records(arrays, names)


def branch_run(
    path: str | os.PathLike,
    loop: Resumable,
    config: dict,
    record_steps: Int[np.ndarray, " n"],
    schedule: Callable | None,
    names: tuple[str, ...],
) -> tuple[int, dict[str, list]]:
    """Step and records of another run that up to there was this one. `CheckpointError` where it was not."""
    arrays, header = read_arrays(path, KIND, "branch", "give a file that keep_at wrote")
    other, step = header["config"], int(header["step"])
    changed = sorted(
        name for name in config if name not in ("steps", "record_steps", "schedule") and config[name] != other.get(name)
    )
    if not _agree(schedule, other["schedule"], step):
        changed.append(f"schedule before step {step}")
    at, taken = ([int(s) for s in steps if s <= step] for steps in (record_steps, other["record_steps"]))
    if at != taken:
        changed.append(f"record_steps up to step {step}: {taken}")
    if changed:
        raise CheckpointError("branch", expected=f"a run that is this one up to step {step}, at {path}",
                              got=f"another {', '.join(changed)}", remedy="change steps and what comes later only")  # fmt: skip
    loop.restore(arrays)
    return step, _stored_records(arrays, names)


def schedule_samples(schedule: Callable | None, steps: int) -> dict[str, list[float]] | None:
    """s at some 500 steps, as plain JSON types: what a checkpoint knows of a schedule."""
    if schedule is None:
        return None
    at = np.unique(np.linspace(0, steps, 513).astype(int))
    values = np.asarray(jax.vmap(schedule)(jnp.asarray(at)), dtype=float)
    if not np.isfinite(values).all():
        raise InputError(
            "schedule", expected="finite s(step) on the run", got="NaN or infinity", remedy="check its domain"
        )
    return {"step": at.tolist(), "s": values.tolist()}


def identity(models: list[LanguageModel]) -> str:
    """A hash of every initial weight and of what the modules say beside them."""
    digest = hashlib.sha256()
    for model in models:
        leaves, structure = jax.tree.flatten(model)
        digest.update(str(structure).encode())
        for leaf in leaves:
            array = np.asarray(leaf)
            digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _agree(schedule: Callable | None, theirs: dict[str, Any] | None, step: int) -> bool:
    """Whether this schedule has the values that a run noted before `step`."""
    noted = {"step": np.arange(step), "s": np.ones(step)} if theirs is None else theirs
    before = np.asarray(noted["step"]) < step
    at, values = np.asarray(noted["step"])[before], np.asarray(noted["s"])[before]
    ours = np.ones(at.size) if schedule is None else np.asarray(jax.vmap(schedule)(jnp.asarray(at)), dtype=float)
    return bool(np.allclose(ours, values, rtol=1e-6, atol=1e-9))


def _stored_records(arrays: dict[str, np.ndarray], names: tuple[str, ...]) -> dict[str, list]:
    return {
        name: list(np.moveaxis(arrays[f"record_{name}"], 1, 0)) if f"record_{name}" in arrays else [] for name in names
    }
