"""A loss curve of the user's own from a CSV file with a header: one column of steps, one of losses."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import equinox as eqx
import numpy as np
from jaxtyping import Float

from odescale.errors import InputError

STEP_NAMES = ("step", "steps", "iteration", "iter", "global_step", "t")
LOSS_NAMES = ("loss", "train_loss", "val_loss", "test_loss", "training_loss", "c4_loss")


class Log(eqx.Module):
    """`step` (n,) and `loss` (n,) of one run, and the column that the loss came from."""

    step: Float[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]
    loss_column: str = eqx.field(static=True)


def read_log(path: str | os.PathLike) -> Log:
    """Reads one run; a broken file is refused with its row. Rows without a loss are skipped, several runs in one file refused."""
    target = Path(path)
    if not target.is_file():
        raise InputError("LOG", expected="a CSV file", got=str(target), remedy="check the path")
    try:
        with target.open(encoding="utf-8", newline="") as stream:
            table = list(csv.reader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            "LOG", expected="a CSV text file", got=f"{target} ({error})", remedy="export it as CSV"
        ) from error
    header = [name.strip().lower() for name in table[0]] if table else []
    columns = {}
    for kind, names in (("step", STEP_NAMES), ("loss", LOSS_NAMES)):
        found = [name for name in names if name in header]
        if not found:
            raise InputError(
                "LOG", expected=f"a {kind} column ({', '.join(names)})", got=f"{target} with {', '.join(header) or 'nothing'}",
                remedy="name the column in the header",
            )  # fmt: skip
        columns[kind] = found[0]
    places = {kind: header.index(name) for kind, name in columns.items()}
    rows: list[tuple[float, float]] = []
    for number, row in enumerate(table[1:], start=2):
        # Loggers leave the cell empty at steps where they did not evaluate; a short row is broken instead.
        if not row or (len(row) > max(places.values()) and not row[places["loss"]].strip()):
            continue
        try:
            rows.append((float(row[places["step"]]), float(row[places["loss"]])))
        except (ValueError, IndexError):
            rows.append((np.nan, np.nan))
        if not np.all(np.isfinite(rows[-1])):
            raise InputError(
                "LOG", expected="finite numbers", got=f"{target} row {number}: {','.join(row)}", remedy="mend it"
            )
    if len(rows) < 2:
        raise InputError(
            "LOG", expected="at least two rows with a loss", got=f"{target} with {len(rows)}", remedy="log more often"
        )
    steps, losses = np.asarray(rows, dtype=float).reshape(-1, 2).T
    if not np.all(np.diff(steps) > 0):
        place = int(np.argmax(np.diff(steps) <= 0)) + 3
        raise InputError(
            "LOG",
            expected="increasing steps of one run",
            got=f"{target} near row {place}",
            remedy="keep one run per file",
        )
    return Log(steps, losses, columns["loss"])
