"""Training logs of a user's own: read, put in order, and every guess and repair said. See docs/logs.md."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from odescale.analysis.forecast.loss_curve import LossCurve, curve_from_rates
from odescale.errors import InputError, require_number
from odescale.logs.clocks import check_clocks, counted_in_steps, remedies
from odescale.logs.columns import choose_columns, flop_unit, is_held_out
from odescale.logs.files import FORMATS, open_tables
from odescale.logs.limits import check_bytes
from odescale.logs.run_columns import looks_like_runs
from odescale.logs.runs import join_charts, reshape, split_runs
from odescale.logs.steps import Piece, order_steps
from odescale.logs.table import Table, ranges, refuse

BEYOND = 1e100
SERIES = ("learning_rate", "tokens", "flops", "logit_scale", "gradient_norm")

Rate = str | float | Callable[[np.ndarray], np.ndarray]


class TrainingLog(eqx.Module):
    """One run as its logger wrote it: `step` (n,) in SGD steps, increasing, and `loss` (n,) in the logger's units (nats as a rule).

    `learning_rate`, `tokens`, `flops` (seen and spent up to that step), `logit_scale`, `gradient_norm`: (n,) or None, not logged.
    `columns`: (role, column it came from) pairs. `notes`: what was guessed, repaired or left out, in words. `source`: the
    file. `sha256`: of the numbers, so that a forecast names its data. `warmup_steps`: linear warm-up before the first row, or None.
    """

    name: str = eqx.field(static=True)
    step: Float[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]
    learning_rate: Float[np.ndarray, " n"] | None = None
    tokens: Float[np.ndarray, " n"] | None = None
    flops: Float[np.ndarray, " n"] | None = None
    logit_scale: Float[np.ndarray, " n"] | None = None
    gradient_norm: Float[np.ndarray, " n"] | None = None
    columns: tuple[tuple[str, str], ...] = eqx.field(static=True, default=())
    notes: tuple[str, ...] = eqx.field(static=True, default=())
    source: str = eqx.field(static=True, default="")
    sha256: str = eqx.field(static=True, default="")
    warmup_steps: float | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        for name in ("step", "loss", *SERIES):
            values = getattr(self, name)
            if values is not None and (values.shape != self.step.shape or not np.isfinite(values).all()):
                got = f"{self.name}: shape {values.shape}"
                raise refuse(f"finite {name} of shape {self.step.shape}", got, "give one number per step")
        if self.step.ndim != 1 or self.step.size < 2 or self.step[0] < 0 or (np.diff(self.step) <= 0).any():
            raise refuse(
                "two or more increasing steps from 0", f"{self.name} with {self.step.size}", "read it with read_log"
            )

    def __str__(self) -> str:
        picked = ", ".join(f"{role} = {column}" for role, column in self.columns)
        head = f"{self.name}: {self.step.size} points, steps {self.step[0]:g} to {self.step[-1]:g}; {picked}"
        return "\n".join([head, *(f"    {note}" for note in self.notes)])

    def tau(self, warmup_steps: float | None = None) -> Float[np.ndarray, " n"]:
        """tau = int_0^step eta: intrinsic time at every row, warm-up included; one unit is 1/eta SGD steps.

        Between rows the rate is the mean of both ends, or that of the later row where it jumps. Before the first row: linear
        warm-up from zero over `warmup_steps`, then the first logged rate. Default: the log's own `warmup_steps`; else, in a
        log that starts later than one interval, warm-up all the way to the first row (said in `notes`). **Errors**: `InputError`
        without a learning rate.
        """
        if self.learning_rate is None:
            raise InputError(
                "learning_rate", expected=f"a learning rate in {self.source or self.name}", got=None,
                remedy='name its column, a number or a function of the step: read_log(path, learning_rate="lr")',
            )  # fmt: skip
        return self.curve(warmup_steps).tau

    def curve(self, warmup_steps: float | None = None) -> LossCurve:
        """The `LossCurve` that fits and forecasts take; `warmup_steps` as in `tau`."""
        if self.learning_rate is None:
            return LossCurve(self.name, self.step, self.loss, None, 0.0, self.tokens)
        warmup = self.warmup_steps if warmup_steps is None else warmup_steps
        if warmup is None:
            warmup = float(self.step[0]) if _starts_late(self.step) or _rises(self.learning_rate) else 0.0
        warmup = require_number("warmup_steps", warmup)
        return curve_from_rates(self.name, self.step, self.loss, self.learning_rate, warmup=warmup, tokens=self.tokens)

    def smoothed(self, window: int) -> TrainingLog:
        """Running mean of the loss over `window` rows (odd), narrower and still centred at the ends; said in `notes`.

        Neighbouring errors are then correlated over `window` rows: error bars from residuals no longer hold as they stand.
        """
        if not isinstance(window, int | np.integer) or window < 1 or window % 2 == 0:
            raise InputError("window", expected="an odd number of rows >= 1", got=window, remedy="e.g. 5")
        places = np.arange(self.step.size)
        half = np.minimum(np.minimum(places, places[::-1]), window // 2)
        total = np.concatenate([[0.0], np.cumsum(self.loss)])
        loss = (total[places + half + 1] - total[places - half]) / (2 * half + 1)
        note = f"loss: running mean over {window} rows"
        fields: dict[str, Any] = {name: getattr(self, name) for name in ("step", *SERIES)} | {"loss": loss}
        return replace(self, loss=loss, notes=(*self.notes, note), sha256=digest(fields))


def read_logs(
    path: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    step: str | None = None,
    loss: str | None = None,
    learning_rate: Rate | None = None,
    tokens: str | None = None,
    flops: str | None = None,
    logit_scale: str | None = None,
    gradient_norm: str | None = None,
    run: str | None = None,
    format: str | None = None,
    warmup_steps: float | None = None,
    batch_tokens: float | None = None,
    batch_samples: float | None = None,
    steps_per_epoch: float | None = None,
    steps_per_row: float | None = None,
    step_flops: float | None = None,
    max_bytes: int | None = None,
) -> tuple[TrainingLog, ...]:
    """Every run in a file, a folder or several files, in order of appearance.

    **Formats** (told by all lines of the content): runs of Weights & Biases and
    MLflow on disk; CSV with , ; tab | or spaces; JSON lines; Weights & Biases chart export; MLflow metric
    table; Hugging Face trainer_state.json; TensorBoard events; printed lines ("iter 100: loss 4.1"); any of them gzipped.

    **Arguments**: `step`, `loss`, `tokens`, `flops`, `logit_scale`, `gradient_norm`: column names, guessed where None;
    `learning_rate`: a column, a number that held throughout, or a function of the steps. `run`: a run's name, a pattern
    (`"25M/*"`) or a part of names. `format`, where the guess is wrong: csv, tsv, wandb, mlflow, jsonl, json, trainer_state,
    tensorboard, printed. `warmup_steps`: linear warm-up from zero before the first row, for `TrainingLog.tau`. `batch_tokens` per
    SGD step: gives tokens where they were not logged, and steps where only tokens were. `step="row"` counts rows from 1.
    Other clocks, converted into SGD steps and said: `batch_samples` (samples per step), `steps_per_epoch`,
    `steps_per_row` (a row every so many steps), `step_flops` (FLOP per step), each of the column of that name, or of
    the one that `step` names.
    `max_bytes`: a longer file, or one that unpacks to more, is refused (default `odescale.logs.limits.MOST_BYTES`, 128 MiB).

    **Returns** `TrainingLog`s; read `notes`: every guess and repair stands there. **Errors**: `InputError` naming file and row.
    """
    given: dict[str, Any] = {
        "step": step, "loss": loss, "learning_rate": learning_rate, "tokens": tokens, "flops": flops,
        "logit_scale": logit_scale, "gradient_norm": gradient_norm,
    }  # fmt: skip
    if format is not None and format not in FORMATS:
        raise InputError("format", expected=f"one of {', '.join(FORMATS)}", got=format, remedy="leave it out")
    clocks = {
        "batch_tokens": batch_tokens, "batch_samples": batch_samples, "steps_per_epoch": steps_per_epoch,
        "steps_per_row": steps_per_row, "step_flops": step_flops,
    }  # fmt: skip
    check_clocks(clocks)
    if warmup_steps is not None:
        require_number("warmup_steps", warmup_steps)
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    if not paths:
        raise refuse("a log file or folder", "an empty list", "pass a path")
    most = check_bytes(max_bytes)
    tables = [table for entry in paths for table in open_tables(Path(entry), FORMATS.get(format or ""), most)]
    tables = join_charts([part for table in tables for part in reshape(table)])
    logs = [log for table in tables for log in _runs(table, given, warmup_steps, clocks)]
    logs = _distinct(logs)
    if run is None:
        return tuple(logs)
    chosen = named_logs(logs, run)
    if not chosen:
        raise InputError("run", expected=f"one of {log_names(logs)}", got=run, remedy="name one, or a part of several")
    return tuple(chosen)


def named_logs(logs: Sequence[TrainingLog], word: str) -> list[TrainingLog]:
    """Logs of that exact name, else that the pattern ("25M/*") fits, else whose name has it as a part; none if nothing does."""
    exact = [log for log in logs if log.name == word]
    return exact or [log for log in logs if fnmatchcase(log.name, word)] or [log for log in logs if word in log.name]


def read_log(path: str | os.PathLike | Sequence[str | os.PathLike], **options: Any) -> TrainingLog:
    """The one run in a file; arguments as in `read_logs`. Several runs are refused with their names."""
    logs = read_logs(path, **options)
    if len(logs) != 1:
        raise refuse("one run", f"{len(logs)} runs: {log_names(logs)}", 'name one with run="..." or use read_logs')
    return logs[0]


def _runs(
    table: Table, given: dict[str, Any], warmup: float | None, clocks: dict[str, float | None]
) -> list[TrainingLog]:
    """The runs of one table, columns chosen once for all of them."""
    table = replace(table, columns={key: _bounded(values) for key, values in table.columns.items()})
    if "row" not in table.columns and (given["step"] == "row" or clocks["steps_per_row"] is not None):
        table = replace(table, columns=table.columns | {"row": np.arange(1.0, table.rows.size + 1)})
    # Who names the step, or says what a step is in another unit, means a curve.
    told = given["step"] is not None or any(value is not None for value in clocks.values())
    if not told and (roles := looks_like_runs(table)) is not None:
        raise refuse(
            "a log with a row a step", f"{table.file}, a table of finished runs ({', '.join(roles.values())})",
            "read it with read_table, or name the step column",
        )  # fmt: skip
    # Rows that a reader counted, for want of anything else, are the last choice.
    counted = table.columns.pop("row", None) if given["step"] is None and clocks["steps_per_row"] is None else None
    chosen, notes = choose_columns(table, given)
    if counted is not None:
        table = replace(table, columns=table.columns | {"row": counted})
        chosen = {"step": "row"} | chosen
    table, step, said = counted_in_steps(table, given, clocks, chosen.get("step"))
    notes = [*notes, *said]
    if step is not None:
        chosen["step"] = step
    for role in ("step", "loss"):
        if role in chosen:
            continue
        remedy = remedies(table) if role == "step" else f'name it: read_log(path, {role}="...") or --{role} COLUMN'
        columns = ", ".join(list(table.columns)[:8])
        raise refuse(f"a {role} column", f"{table.file} with columns {columns or 'none'}", remedy)
    for role, column in chosen.items():
        values = table.columns[column]
        if values.dtype.kind == "O":
            filled = next((i for i, cell in enumerate(values) if cell), 0)
            raise refuse(
                f"numbers in column {column!r}", f"{table.at(filled)}: {values[filled]!r}", "mend it, or name another"
            )
        if table.broken.get(column):
            row, text = min(table.broken[column].items())
            raise refuse(f"numbers in column {column!r}", f"{table.unit} {row} of {table.file}: {text!r}", "mend it")
        if role in ("step", "learning_rate") and (values < 0).any():
            place = int(np.argmax(values < 0))
            raise refuse(
                f"{role} >= 0", f"{table.at(place)}: {values[place]:g}", "count steps from the start of training"
            )
    runs = split_runs(table, chosen["step"])
    logs: list[TrainingLog] = []
    first: InputError | None = None
    for part in runs:
        try:
            logs += _pieces(part, chosen, given, (*part.notes, *notes), warmup, clocks["batch_tokens"])
        except InputError as error:
            if len(runs) == 1 or "at least two rows" not in error.expected:
                raise
            first = first or error
            notes = [*notes, f"run {part.name} left out: fewer than two rows with a loss"]
    if not logs and first is not None:
        raise first
    return logs


def _pieces(
    table: Table, chosen: dict[str, str], given: dict[str, Any], notes: tuple[str, ...], warmup: float | None,
    batch_tokens: float | None,
) -> list[TrainingLog]:  # fmt: skip
    step, loss = table.columns[chosen["step"]], table.columns[chosen["loss"]]
    kept = np.isfinite(loss) & np.isfinite(step)
    said = list(notes)
    lost = np.isfinite(loss) & ~np.isfinite(step)
    other = ~np.isfinite(loss) & _held_out_rows(table, chosen["loss"])
    if other.any():
        said.append(
            f"{int(other.sum())} rows of evaluation left out of the training curve ({ranges(table.rows[other], table.unit)})"
        )
    bare = ~np.isfinite(loss) & ~other
    for gone, why in ((bare, "without a finite loss"), (lost, "with a loss but no step")):
        if gone.any():
            count = int(gone.sum())
            said.append(f"{count} row{'s' if count > 1 else ''} {why} dropped ({ranges(table.rows[gone], table.unit)})")
    if kept.sum() < 2:
        got = f"{table.file}, run {table.name}, with {int(kept.sum())} in column {chosen['loss']!r}"
        raise refuse("at least two rows with a loss", got, "log more often, or name another column")
    if (loss[kept] <= 0).any():
        said.append(
            f"loss <= 0 at {ranges(table.rows[kept][loss[kept] <= 0], table.unit)}: kept, no logarithm of it exists"
        )
    places = np.flatnonzero(kept)
    series = {role: _series(table, chosen[role], step, places, said) for role in SERIES if role in chosen}
    if "flops" in series and (unit := flop_unit(chosen["flops"])) != 1.0:
        series["flops"] = series["flops"] * unit
        said.append(f"column {chosen['flops']!r} times {unit:g}: FLOP")
    pieces = order_steps(step[places], loss[places], table.rows[places], table.unit)
    short = [piece for piece in pieces if piece.index.size < 2]
    pieces = [piece for piece in pieces if piece.index.size > 1]
    if not pieces:
        raise refuse(
            "at least two rows with a loss", f"{table.file}, run {table.name}, with one step", "log more often"
        )
    said += [f"single row at step {piece.step[0]:g} left out: {'; '.join(piece.notes)}" for piece in short]
    result = []
    for number, piece in enumerate(pieces, 1):
        name = table.name if len(pieces) == 1 else f"{table.name}#{number}"
        own = {role: values[piece.index] for role, values in series.items()}
        result.append(_log(name, table, piece, loss[places], own, chosen, given, said, warmup, batch_tokens))
    return result


def _log(
    name: str, table: Table, piece: Piece, loss: np.ndarray, series: dict[str, np.ndarray], chosen: dict[str, str],
    given: dict[str, Any], notes: list[str], warmup: float | None, batch_tokens: float | None,
) -> TrainingLog:  # fmt: skip
    said = [*notes, *piece.notes]
    rate = given["learning_rate"]
    columns = [(role, column) for role, column in chosen.items() if role in ("step", "loss") or role in series]
    if rate is not None and not isinstance(rate, str):
        values = np.broadcast_to(
            np.asarray(rate(piece.step) if callable(rate) else rate, dtype=float), piece.step.shape
        )
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise InputError("learning_rate", expected="finite rates >= 0", got=values, remedy="one per step")
        series = series | {"learning_rate": np.array(values)}
        columns = [*(c for c in columns if c[0] != "learning_rate"), ("learning_rate", "given")]
    if "tokens" not in series and batch_tokens is not None:
        series = series | {"tokens": piece.step * batch_tokens}
        columns.append(("tokens", "step * batch_tokens"))
    if "learning_rate" in series and warmup is None and _starts_late(piece.step):
        said.append(f"log starts at step {piece.step[0]:g}: linear warm-up from zero up to there assumed for tau")
    fields: dict[str, Any] = {"step": piece.step, "loss": loss[piece.index]} | series
    return TrainingLog(
        name=name, **fields, columns=tuple(columns), notes=tuple(dict.fromkeys(said)), source=table.file, sha256=digest(fields),
        warmup_steps=None if warmup is None else float(warmup),
    )  # fmt: skip


def _series(table: Table, column: str, step: np.ndarray, places: np.ndarray, notes: list[str]) -> np.ndarray:
    """The column at the rows `places`; where it is empty there, from the rows around (same step, else linear in the step)."""
    values = table.columns[column]
    here, known = values[places], np.flatnonzero(np.isfinite(values) & np.isfinite(step))
    empty = ~np.isfinite(here)
    if not empty.any():
        return here
    if known.size == 0:
        raise refuse(
            f"numbers in column {column!r}", f"{table.file}, run {table.name}, without any", "name another column"
        )
    # The way travelled along the file grows through resumed and restarted steps too.
    counted = np.flatnonzero(np.isfinite(step))
    travelled = np.zeros(step.size)
    travelled[counted[1:]] = np.cumsum(np.abs(np.diff(step[counted])))
    filled = np.interp(travelled[places], travelled[known], values[known])
    exact = np.isin(travelled[places][empty], travelled[known])
    if not exact.all():
        notes.append(
            f"column {column!r} empty at {int(np.sum(~exact))} rows with a loss: interpolated linearly, ends held"
        )
    return np.where(empty, filled, here)


def _held_out_rows(table: Table, loss: str) -> np.ndarray:
    """Rows that hold something of validation or evaluation: no training loss is missing there."""
    found = np.zeros(table.rows.size, bool)
    for name in table.numeric():
        if name != loss and is_held_out(name):
            found |= np.isfinite(table.columns[name])
    return found


def _bounded(values: np.ndarray) -> np.ndarray:
    """Numbers beyond any loss, step or count stand for "not finite": sums of them overflow."""
    huge = np.abs(values) > BEYOND if values.dtype.kind == "f" else np.zeros(0, bool)
    return np.where(huge, np.inf, values) if huge.any() else values


def _starts_late(step: np.ndarray) -> bool:
    """Whether the log begins later than twice its first interval: rows before it are missing."""
    return bool(step[0] > 2 * (step[1] - step[0]))


def _rises(rate: np.ndarray) -> bool:
    return bool(rate[1] > rate[0])


def _distinct(logs: list[TrainingLog]) -> list[TrainingLog]:
    """Equal names from several files get the file's folder or number in front."""
    seen: dict[str, int] = {}
    result = []
    counts = Counter(log.name for log in logs)
    twice = {name for name, count in counts.items() if count > 1}
    for log in logs:
        if log.name in twice:
            stem = f"{Path(log.source).stem}/{log.name}" if Path(log.source).stem != log.name else log.name
            seen[stem] = seen.get(stem, 0) + 1
            name = stem if seen[stem] == 1 else f"{stem} ({seen[stem]})"
            log = replace(log, name=name)
        result.append(log)
    return result


def log_names(logs: Sequence[TrainingLog], most: int = 8) -> str:
    """Their names for a message, the first `most`."""
    names = [log.name for log in logs]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def digest(fields: dict[str, Any]) -> str:
    """SHA-256 of the numbers of a log, in the order of its fields."""
    digest = hashlib.sha256()
    for name in ("step", "loss", *SERIES):
        values = fields.get(name)
        if values is not None:
            digest.update(name.encode() + np.ascontiguousarray(values, dtype="<f8").tobytes())
    return digest.hexdigest()
