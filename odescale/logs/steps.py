"""Steps put in order: repeats, resumed and restarted runs, rows out of order. Every repair is said."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from odescale.logs.limits import MOST_RESTARTS
from odescale.logs.table import ranges


class Piece(NamedTuple):
    """One run's rows in order: positions `index` into the given rows, their `step` with restarts counted on, `notes`."""

    index: Int[np.ndarray, " n"]
    step: Float[np.ndarray, " n"]
    notes: tuple[str, ...]


def order_steps(
    step: Float[np.ndarray, " n"], loss: Float[np.ndarray, " n"], rows: Int[np.ndarray, " n"], unit: str
) -> list[Piece]:
    """Increasing steps from rows as they stand in the file; several pieces where the training began anew.

    - equal steps in a row: the last one counts;
    - all steps falling: turned round;
    - steps that jump back into what was logged before and log it again: resumed from a checkpoint, the later rows count, and
      rows of the abandoned branch go;
    - steps that begin again at the start while the loss goes on: the last step is added; if the loss begins anew as well, it is
      another run;
    - anything else out of order: sorted.
    """
    index = np.arange(step.size)
    notes: list[str] = []
    if step.size > 1 and (np.diff(step) <= 0).all() and step[0] > step[-1]:
        index = index[::-1]
        notes.append("steps fall: rows turned round")
    starts = np.flatnonzero(np.diff(step[index]) < 0) + 1
    if starts.size == 0:
        return [_without_repeats(index, step, rows, unit, notes)]
    parts = np.split(index, starts)
    if len(parts) > max(4, min(step.size // 8, MOST_RESTARTS)) or not all(
        _again(step, a, b) for a, b in zip(parts, parts[1:], strict=False)
    ):
        notes.append(f"rows out of order at {ranges(rows[index[starts]], unit)}: sorted by step")
        return [_without_repeats(index[np.argsort(step[index], kind="stable")], step, rows, unit, notes)]
    pieces: list[Piece] = []
    kept, values = parts[0], step[parts[0]]
    for part in parts[1:]:
        where = f"{unit} {rows[part[0]]}"
        fresh = step[part]
        if _from_start(step[parts[0]], fresh):
            if not _continues(loss[kept], loss[part], loss[parts[0]]):
                pieces.append(_without_repeats(kept, values, rows, unit, notes, at=True))
                notes = [f"steps and loss begin anew at {where}: another run"]
                kept, values = part, fresh
                continue
            notes.append(f"steps begin again at {where} while the loss goes on: {values[-1]:g} added")
            fresh = fresh + values[-1]
            keep = values < fresh[0]
        else:
            keep = values < fresh[0]
            gone = rows[kept[~keep]]
            notes.append(f"resumed at step {fresh[0]:g} ({where}): {gone.size} earlier rows of the same steps replaced")
        kept, values = np.concatenate([kept[keep], part]), np.concatenate([values[keep], fresh])
    pieces.append(_without_repeats(kept, values, rows, unit, notes, at=True))
    return pieces


def _without_repeats(
    index: np.ndarray, step: np.ndarray, rows: np.ndarray, unit: str, notes: list[str], *, at: bool = False
) -> Piece:
    """The last of equal steps; `at`: `step` is already that of the rows in `index`."""
    values = step if at else step[index]
    last = np.append(values[1:] > values[:-1], True)
    if not last.all():
        notes = [
            *notes,
            f"{int(np.sum(~last))} repeated steps, the last one kept ({ranges(rows[index[~last]], unit)} dropped)",
        ]
    return Piece(index[last], values[last], tuple(notes))


def _again(step: np.ndarray, before: np.ndarray, after: np.ndarray) -> bool:
    """Whether rows after a jump back log again what was there: not merely rows out of order."""
    overlap = step[before][step[before] >= step[after][0]]
    return bool(np.isin(step[after][:3], overlap).any()) or int(np.sum(step[after] <= overlap[-1])) >= 3


def _from_start(first: np.ndarray, fresh: np.ndarray) -> bool:
    """Whether the steps begin where the log began."""
    return bool(fresh[0] <= max(first[0], 1.0))


def _continues(before: np.ndarray, after: np.ndarray, beginning: np.ndarray) -> bool:
    """Whether the loss after a restart is nearer to where it was left than to where the run began."""
    # One value, not a mean: a fresh run falls at once.
    end = np.median(before[-3:])
    return bool(abs(after[0] - end) < abs(after[0] - beginning[0]))
