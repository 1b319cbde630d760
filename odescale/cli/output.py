"""What the commands print: words for people, or one JSON object with the same keys for every command."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from odescale.files import plain
from odescale.run import Run
from odescale.solve.trajectory import Trajectory
from odescale.training.train import train

KEYS = ("system", "parameters", "time_unit", "t", "loss", "exponent", "observables", "error", "code")


def emit(record: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints `text`, or the record with every one of `KEYS` (null where it does not apply) and nothing else on stdout."""
    if as_json:
        complete = {name: None for name in KEYS} | {"code": 0} | record
        json.dump(plain(complete), sys.stdout, allow_nan=False)
        sys.stdout.write("\n")
    else:
        print(text)


def trained(system: Any, t1: float, options: argparse.Namespace) -> Run:
    """The real run of the command's options."""
    return train(
        system,
        t1,
        seeds=options.seeds,
        records=options.records,
        checkpoint=options.checkpoint,
        progress=not options.json,
    )


def trajectory_record(trajectory: Trajectory, clock: str = "t") -> dict[str, Any]:
    """The common keys from a trajectory; `t` on the clock that was asked for, said in `time_unit`."""
    values = np.asarray(trajectory.clock.from_t(trajectory.t, clock))
    units = {
        "t": trajectory.meta["time_unit"],
        "steps": "SGD steps",
        "tau": "intrinsic time int eta dt",
        "tokens": "tokens",
    }
    return {
        "system": trajectory.meta["system"],
        "parameters": trajectory.meta["parameters"],
        "time_unit": units[clock],
        "t": values,
        "loss": trajectory.loss,
        "exponent": trajectory.exponent,
        "index": trajectory.index,
        "observables": trajectory.observables,
        "error": trajectory.error,
        "code": int(trajectory.code),
        "valid": trajectory.valid,
        "solver": trajectory.meta["ladder"],
    }


def trajectory_text(trajectory: Trajectory, clock: str, rows: int = 16, remarks: Sequence[str] = ()) -> str:
    """A table of some rows of a trajectory, with what one unit of its clock is, and `remarks` above it, one per line."""
    record = trajectory_record(trajectory, clock)
    valid = np.flatnonzero(np.asarray(trajectory.valid))
    picks = valid[np.unique(np.linspace(0, valid.size - 1, rows).round().astype(int))]
    ladder = " then ".join(f"{entry['solver']} ({entry['accepted']} steps)" for entry in trajectory.meta["ladder"])
    lines = [
        f"{record['system']}: {trajectory.clock.describe()}",
        f"solved by {ladder}",
        *remarks,
        f"{clock:>12}  {'loss':>12}  {'p':>8}  {'q':>8}" + ("" if trajectory.error is None else f"  {'error':>8}"),
    ]
    for i in picks:
        line = f"{record['t'][i]:12.6g}  {trajectory.loss[i]:12.6g}  {trajectory.exponent[i]:8.4f}  {trajectory.index[i]:8.4f}"
        lines.append(line + ("" if trajectory.error is None else f"  {trajectory.error[i]:8.1e}"))
    if int(trajectory.code) != 0:
        lines.append(f"code {int(trajectory.code)}: {trajectory.meta['ladder'][-1]['meaning']}")
    return "\n".join(lines)
