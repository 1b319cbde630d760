"""Printed training output ("iter 100: loss 4.125, lr 3e-4") as a `Table`: records told from text, joined where they span lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from math import isfinite

import numpy as np

from odescale.logs.columns import NAMES, is_held_out, looks_like_rate, plain, tail
from odescale.logs.limits import check_sparse
from odescale.logs.lines import Record, is_known, is_loss, is_step, member_of, record_of
from odescale.logs.table import Table

ROW = "row"
STEP = "\0"
"""The counter of a record while its printed names are not yet one; no name is that character."""
SUMMARY = "train_runtime"
"""The mean over the whole run that Hugging Face's trainer prints last."""


def read_printed(data: bytes, file: str, name: str, notes: list[str]) -> Table:
    """Records with a step and a loss (or rate, tokens, norm beside one); the others are text and left out."""
    records, rows, preamble = gather(data.decode().split("\n"))
    stepped = [record for record in records if STEP in record]
    said: list[str] = []
    if not stepped and records:
        records, rows, said = _counted(records, rows)
    else:
        rows = [row for record, row in zip(records, rows, strict=True) if STEP in record]
        records = stepped
    records, rows = _joined(records, rows)
    names = Counter(key for record in records for key in record if is_step(key))
    filled = sum(map(len, records))
    check_sparse(len(records), len({key for record in records for key in record}), filled, file)
    counter = names.most_common(1)[0][0] if names else ROW
    columns: dict[str, np.ndarray] = {}
    for place, record in enumerate(records):
        for key, value in record.items():
            key = counter if key == STEP else key
            if (column := columns.get(key)) is None:
                column = columns[key] = np.full(len(records), np.nan)
            column[place] = value
    if counter != ROW:
        # nanoGPT prints "step 2000: val loss" between "iter 2000: loss": one counter under two names.
        columns = {key: values for key, values in columns.items() if key == counter or key not in names}
    losses = sum(any(is_loss(key) for key in record) for record in records)
    said.insert(
        0,
        f"printed output: {losses} lines with a {'loss' if counter == ROW else 'step and a loss'} read, the others left out",
    )
    if preamble > 1:
        said.append(f"first record on line {preamble}: the lines before it are no records")
    return Table(file, name, columns, np.array(rows, dtype=int), "line", notes=(*notes, *said), source="printed")


def gather(lines: Iterable[str]) -> tuple[list[Record], list[int], int]:
    """(records, their line numbers, line of the first): what has a loss, rate, tokens or norm; indented lines go to theirs."""
    records: list[Record] = []
    rows: list[int] = []
    opened: Record | None = None
    for number, line in enumerate(lines, 1):
        if opened is not None and line[:1] in (" ", "\t") and (member := member_of(line)):
            opened.update({key: value for key, value in member.items() if key not in opened})
            continue
        record = record_of(line) if line else {}
        if not record or SUMMARY in record:
            continue
        if (step := step_of(record)) is not None:
            record[STEP] = step
            opened = record
        elif not any(is_loss(key) for key in record) or not line.lstrip().startswith("{"):
            continue
        records.append(record)
        rows.append(number)
    kept = [place for place, record in enumerate(records) if any(is_known(key) for key in record if key != STEP)]
    return [records[i] for i in kept], [rows[i] for i in kept], rows[kept[0]] if kept else 0


def step_of(record: Record) -> float | None:
    """The counter of a record: the best name, whole numbers before fractions (an `update` of .096 is an epoch's share)."""
    found = [
        (value != int(value), _rank(key), value) for key, value in record.items() if is_step(key) and isfinite(value)
    ]
    if not found:
        return None
    fraction, _, value = min(found)
    return None if fraction or value < 0 else value


@lru_cache(1 << 12)
def _rank(key: str) -> int:
    names = NAMES["step"]
    return names.index(plain(key)) if plain(key) in names else len(names) + names.index(tail(key))


def _counted(records: list[Record], rows: list[int]) -> tuple[list[Record], list[int], list[str]]:
    """Records without any step: training rows counted from 1; what is logged between them stands at the row before."""
    count = 0.0
    for record in records:
        count += any(is_loss(key) and not is_held_out(key) for key in record)
        record[STEP] = count
    epochs = any("epoch" in record for record in records)
    other = ", or --step epoch with --steps-per-epoch" if epochs else ""
    return (
        records,
        rows,
        [f"no step logged: rows counted from 1; say --steps-per-row K where a row is logged every K steps{other}"],
    )


def _joined(records: list[Record], rows: list[int]) -> tuple[list[Record], list[int]]:
    """Neighbours of one step that name different things are one record: the rate on one line, the loss on the next."""
    result: list[Record] = []
    places: list[int] = []
    for record, row in zip(records, rows, strict=True):
        if result and result[-1][STEP] == record[STEP]:
            shared = {key for key in record.keys() & result[-1].keys() if not is_step(key) and key != STEP}
            if not any(is_loss(key) or looks_like_rate(key) for key in shared):
                result[-1] |= {key: value for key, value in record.items() if key not in result[-1]}
                continue
        result.append(record)
        places.append(row)
    return result, places
