"""A table of measured speeds: one batch and strategy a row, from a CSV file, a mapping of columns, or rows."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from odescale.errors import InputError
from odescale.systems.rollout.cost import MOST_DEPTH

COLUMNS: dict[str, tuple[str, ...]] = {
    "batch": ("batch", "batchsize", "bs", "concurrency", "running", "requests", "numseqs", "maxnumseqs", "maxconcurrency"),
    "depth": ("depth", "draftdepth", "steps", "numsteps", "speculativenumsteps", "k", "numspeculativetokens", "numspectokens"),
    "verified": ("verified", "verify", "v", "tokenstoverify", "verifytokens", "numdrafttokens", "speculativenumdrafttokens"),
    "tokens_per_second": (
        "tokenspersecond", "toks", "toksec", "tokenss", "tps", "throughput", "outputthroughput", "outputtokenthroughput",
    ),
    "speedup": ("speedup", "gain", "speedupratio"),
    "accepted_length": ("acceptedlength", "acceptlength", "acceptancelength", "meanacceptancelength", "meanacceptedlength", "al"),
}  # fmt: skip
"""Names by which a column is known, letters and digits only."""
MOST = 1e6
"""Requests at once, or tokens verified of one: more is a slip of the pen."""
FALLS = 0.9
"""Speed of plain decoding at the largest batch over that at the smallest below which it is taken to be of one request."""
NEEDED = ("batch", "depth")
MEASURES = ("tokens_per_second", "speedup")


class CostTable(eqx.Module):
    """Rows (n,): `batch` b, `depth` d (0: plain), `verified` V, `speed`, `accepted` tokens of a round (NaN: not measured).

    `measure`: what `speed` is: "tokens_per_second" of all requests together, or "speedup" over plain decoding at the same batch.
    `notes`: what was filled in or left out, in words. `source`: the file.
    """

    batch: Float[np.ndarray, " n"]
    depth: Float[np.ndarray, " n"]
    verified: Float[np.ndarray, " n"]
    speed: Float[np.ndarray, " n"]
    accepted: Float[np.ndarray, " n"]
    measure: str = eqx.field(static=True)
    notes: tuple[str, ...] = eqx.field(static=True, default=())
    source: str = eqx.field(static=True, default="table")

    def __len__(self) -> int:
        return self.batch.size

    def take(self, rows: np.ndarray) -> CostTable:
        """The rows of a mask or of positions."""
        parts = (getattr(self, name)[rows] for name in ("batch", "depth", "verified", "speed", "accepted"))
        return CostTable(*parts, measure=self.measure, notes=self.notes, source=self.source)

    def __str__(self) -> str:
        strategies = {(d, v) for d, v in zip(self.depth.tolist(), self.verified.tolist(), strict=True) if d > 0}
        head = (
            f"{self.source}: {len(self)} rows of {self.measure.replace('_', ' ')}, {int((self.depth == 0).sum())} plain, "
            f"{len(strategies)} strategies, batches {self.batch.min():g} to {self.batch.max():g}"
        )
        return "\n".join([head, *(f"    {note}" for note in self.notes)])


def cost_table(
    table: CostTable | Mapping[str, Any] | str | os.PathLike,
    *,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, float] | None = None,
) -> CostTable:
    """The table behind a CSV file (path), a mapping {column: numbers}, or a table.

    **Arguments**: columns `batch`, `depth` (0 or empty: plain decoding), `verified` (default d + 1, a chain), one of
    `tokens_per_second` (of all requests together) and `speedup` (over plain decoding at that batch), optional `accepted_length`
    (tokens of a round, the target's own included; empty where not measured). Usual other names are known (`COLUMNS`); `columns`
    says which column is which, {"batch": "my batch"}; `constants` fills a column that the table lacks, {"depth": 8}.
    **Raises** `InputError`, one line that names the column and the row.
    """
    if isinstance(table, CostTable):
        return table
    named = {"columns": columns or {}, "constants": constants or {}}
    for argument, given in named.items():
        wrong = [name for name in given if name not in COLUMNS]
        if wrong:
            raise InputError(argument, expected=f"names of {', '.join(COLUMNS)}", got=wrong[0], remedy="mend the name")
    found, source = (table, "table") if isinstance(table, Mapping) else _read(table)
    picked = _pick(found, dict(columns or {}), source)
    return _checked(picked, dict(constants or {}), source)


def _read(path: str | os.PathLike) -> tuple[dict[str, list[str]], str]:
    try:
        file = Path(path)
        text = file.read_text(encoding="utf-8-sig", errors="replace") if file.is_file() else None
    except (TypeError, OSError, ValueError):
        text = None
    if text is None:
        raise InputError("table", expected="a CSV file or columns of numbers", got=path, remedy="check the path")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if len(lines) < 2:
        raise InputError(
            "table", expected="a line of names and rows", got=f"{len(lines)} lines in {file.name}", remedy="add rows"
        )
    mark = max(",;\t", key=lines[0].count)
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=mark)]
    for number, row in enumerate(rows[1:], 1):
        if len(row) != len(rows[0]):
            raise InputError(
                "table", expected=f"{len(rows[0])} cells in every row of {file.name}", got=f"{len(row)} in row {number}",
                remedy="mend that row",
            )  # fmt: skip
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}, file.name


def _pick(found: Mapping[str, Any], chosen: dict[str, str], source: str) -> dict[str, Any]:
    """{known name: cells}, each column of the table used once."""
    for name, column in chosen.items():
        if column not in found:
            raise InputError(
                "columns", expected=f"for {name} one of {', '.join(map(str, found))}", got=column, remedy="mend it"
            )
    picked = {name: found[column] for name, column in chosen.items()}
    for name, known in COLUMNS.items():
        fitting = [c for c in found if _plain(c) in known and c not in chosen.values()]
        if name in picked or not fitting:
            continue
        if len(fitting) > 1:
            raise InputError(
                "columns", expected=f"one column for {name} in {source}", got=" and ".join(map(str, fitting)),
                remedy=f'choose, columns={{"{name}": "{fitting[0]}"}}',
            )  # fmt: skip
        picked[name] = found[fitting[0]]
    return picked


def _plain(name: object) -> str:
    # "Output throughput (tok/s)": the unit in brackets is no part of the name.
    return re.sub(r"[^a-z0-9]", "", re.sub(r"\(.*?\)|\[.*?\]", "", str(name).lower()))


def _checked(picked: dict[str, Any], constants: dict[str, float], source: str) -> CostTable:
    notes = [f"{name} = {value:g} in every row, as declared" for name, value in constants.items() if name not in picked]
    twice = [name for name in constants if name in picked]
    if twice:
        raise InputError("constants", expected=f"columns that {source} lacks", got=twice[0], remedy="leave it out")
    size = max((len(_cells(cells)) for cells in picked.values()), default=0)
    held = ", ".join(picked) or "none that is known"
    measures = [name for name in MEASURES if name in picked]
    for name in NEEDED:
        if name not in picked and name not in constants:
            remedy = f'say which, columns={{"{name}": ...}}, or constants={{"{name}": ...}} for all rows'
            raise InputError("table", expected=f"a column {name} in {source}", got=held, remedy=remedy)
    if len(measures) != 1:
        remedy = "say which, columns={...}" if not measures else "keep one: the other follows from it"
        raise InputError("table", expected=f"one of tokens_per_second and speedup in {source}", got=held, remedy=remedy)
    rows = {name: _numbers(name, cells, size, source) for name, cells in picked.items()}
    rows |= {name: np.full(size, float(value)) for name, value in constants.items()}
    depth = np.nan_to_num(rows["depth"], nan=0.0)
    chain = depth + 1
    verified = np.where(np.isnan(rows["verified"]), chain, rows["verified"]) if "verified" in rows else chain
    if "verified" not in rows:
        notes.append("verified = depth + 1: chains")
    verified, accepted = np.where(depth > 0, verified, 1.0), rows.get("accepted_length", np.full(size, np.nan))
    accepted = np.where(depth > 0, accepted, 1.0)
    speed, batch = rows[measures[0]], rows["batch"]
    whole = (depth >= 0) & (depth <= MOST_DEPTH) & (depth == np.round(depth))
    known = ~np.isnan(accepted)
    for name, values, bad, expected in (
        ("batch", batch, ~((batch >= 1) & (batch <= MOST)), f"a number from 1 to {MOST:g} in every row"),
        (measures[0], speed, ~(np.isfinite(speed) & (speed > 0)), "a number > 0 in every row"),
        ("depth", depth, ~whole, f"a whole number from 0 to {MOST_DEPTH}"),
        ("verified", verified, ~((verified >= depth) & (verified <= MOST)), f"a number from depth to {MOST:g}"),
        ("accepted_length", accepted, known & ~((accepted >= 1) & (accepted <= depth + 1)), "1 to depth + 1 tokens, or nothing"),
    ):  # fmt: skip
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            got = "nothing" if np.isnan(values[row]) else f"{values[row]:g}"
            remedy = "measure or drop that row" if got == "nothing" else "mend that row"
            raise InputError(name, expected=f"{expected} of {source}", got=f"{got} in row {row + 1}", remedy=remedy)
    if measures[0] == "speedup" and (depth == 0).any():
        off = (depth == 0) & (np.abs(speed - 1) > 0.02)
        if off.any():
            row = int(np.flatnonzero(off)[0])
            raise InputError(
                "speedup", expected="1 in a plain row", got=f"{speed[row]:g} in row {row + 1}", remedy="mend it"
            )
        notes.append(f"{int((depth == 0).sum())} plain rows of speed-up 1 say nothing and are left out")
    plain = np.flatnonzero(depth == 0)
    if measures[0] == "tokens_per_second" and plain.size:
        first, last = plain[np.argmin(batch[plain])], plain[np.argmax(batch[plain])]
        # b/tau(b) rises with b whatever the costs are, as long as a request more costs less than a round.
        if speed[last] < FALLS * speed[first]:
            raise InputError(
                "tokens_per_second", expected=f"tokens of all requests together in {source}",
                got=f"{speed[first]:g} of plain decoding at batch {batch[first]:g} and {speed[last]:g} at batch {batch[last]:g}",
                remedy="if they are of one request, multiply by the batch",
            )  # fmt: skip
    kept = depth > 0 if measures[0] == "speedup" else np.ones(size, bool)
    parts = (x[kept] for x in (rows["batch"], depth, verified, speed, accepted))
    return CostTable(*parts, measure=measures[0], notes=tuple(notes), source=source)


def _cells(cells: Any) -> list[Any]:
    """A column as a list, whatever stands in it."""
    if isinstance(cells, str) or not isinstance(cells, Iterable):
        return [cells]
    return np.ravel(np.asarray(cells)).tolist() if hasattr(cells, "dtype") else list(cells)


def _numbers(name: str, cells: Any, size: int, source: str) -> Float[np.ndarray, " n"]:
    """Floats of the cells, NaN for empty ones; words are refused."""
    values = np.full(size, np.nan)
    flat = _cells(cells)
    if len(flat) != size:
        raise InputError(
            name, expected=f"{size} numbers, one a row of {source}", got=f"{len(flat)}", remedy="match the rows"
        )
    for row, cell in enumerate(flat):
        if cell is None or (isinstance(cell, str) and cell.lower() in ("", "-", "na", "nan", "none", "plain")):
            continue
        try:
            values[row] = float(str(cell).rstrip("x×"))
        except ValueError:
            raise InputError(
                name, expected=f"numbers in {source}", got=f"{cell} in row {row + 1}", remedy="mend that cell"
            ) from None
    return values
