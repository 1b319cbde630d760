"""The one checkpoint format of a training: to go on from bit for bit, and to branch off with another schedule or length."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from odescale.errors import CheckpointError
from odescale.files import read_npz, write_npz
from odescale.training.runner import Seeds

FORMAT = "odescale training checkpoint 3"
RECORD = "record:"

Records = dict[str, list[np.ndarray]]
"""Name -> what was measured at every record so far, (seeds, ...) each."""


def fingerprint(config: Mapping[str, Any]) -> str:
    """SHA-256 of a configuration written as JSON with sorted keys: equal exactly when the configurations are."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def kept_checkpoint(checkpoint: str | os.PathLike, step: int) -> Path:
    """Where a run keeps its state at `step`: "run.npz" becomes "run.STEP.npz"."""
    path = Path(checkpoint)
    return path.with_name(f"{path.stem}.{step}{path.suffix or '.npz'}")


def save(path: str | os.PathLike, seeds: Seeds, config: dict[str, Any], step: int, records: Records) -> None:
    """Writes the state of all seeds after `step` steps and the records up to there, atomically."""
    arrays = {RECORD + name: np.stack(values, axis=1) for name, values in records.items() if values}
    header = {"format": FORMAT, "config_hash": fingerprint(config), "config": config, "step": step}
    write_npz(path, seeds.arrays() | arrays, header)


def resume(path: str | os.PathLike, seeds: Seeds, config: dict[str, Any]) -> tuple[int, Records]:
    """Step and records at which the same run stopped; the seeds take its state. `CheckpointError` naming what differs."""
    remedy = "give another path, or resume=False to overwrite it"
    arrays, header = read_npz(path, FORMAT, argument="checkpoint", remedy=remedy)
    if header["config_hash"] != fingerprint(config):
        # Through JSON and back, so that tuples and lists are the same thing.
        ours, other = json.loads(json.dumps(config)), header["config"]
        changed = sorted(name for name in ours if ours[name] != other.get(name)) or ["fields of another version"]
        raise CheckpointError("checkpoint", expected=f"a checkpoint of this configuration at {path}",
                              got=f"another {', '.join(changed)}", remedy=remedy)  # fmt: skip
    seeds.restore(arrays)
    return int(header["step"]), _records(arrays)


def branch(
    path: str | os.PathLike,
    seeds: Seeds,
    configure: Callable[[Int[np.ndarray, " n"]], dict[str, Any]],
    record_steps: Int[np.ndarray, " n"],
) -> tuple[int, Records]:
    """Step and records of another run that up to there was this one. `CheckpointError` where it was not.

    `configure`: this run's configuration for record steps: at those of the other run its schedules have the same samples.
    """
    arrays, header = read_npz(path, FORMAT, argument="branch", remedy="give a file that keep_at wrote")
    other, step = header["config"], int(header["step"])
    ours = json.loads(json.dumps(configure(np.asarray(other["record_steps"]))))
    changed = []
    for name, value in sorted(ours.items()):
        theirs = other.get(name)
        if name == "record_steps" or value == theirs:
            continue
        if not _sampled(value, theirs):
            changed.append(name)
        elif not _agree(value, theirs, step / float(ours["scale"])):
            changed.append(f"{name} before step {step}")
    at, taken = ([int(s) for s in steps if s <= step] for steps in (record_steps, other["record_steps"]))
    if at != taken:
        changed.append(f"record_steps up to step {step}: {taken}")
    if changed:
        raise CheckpointError("branch", expected=f"a run that is this one up to step {step}, at {path}",
                              got=f"another {', '.join(changed)}", remedy="change t1 and what comes later only")  # fmt: skip
    seeds.restore(arrays)
    return step, _records(arrays)


def _sampled(*values: Any) -> bool:
    """Whether these are two schedules as `schedule_samples` writes them, None for a constant one, and not both of them."""
    return all(value is None or (isinstance(value, dict) and set(value) == {"t", "s"}) for value in values)


def _agree(ours: Any, theirs: Any, until: float) -> bool:
    """Whether two sampled schedules are the same before `until`."""
    before = np.asarray((ours or theirs)["t"]) < until
    one, other = (np.ones(before.size) if x is None else np.asarray(x["s"]) for x in (ours, theirs))
    return bool(np.allclose(one[before], other[before], rtol=1e-6, atol=1e-9))


def _records(arrays: Mapping[str, np.ndarray]) -> Records:
    return {
        name.removeprefix(RECORD): list(np.moveaxis(values, 1, 0))
        for name, values in arrays.items()
        if name.startswith(RECORD)
    }
