"""JSON logs as a `Table`: one object per line, a list of objects, a dict of lists, Hugging Face's trainer_state.json."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from odescale.errors import InputError
from odescale.logs.limits import MOST_DEPTH, check_sparse
from odescale.logs.numbers import is_numbers, parse_column
from odescale.logs.table import Table, refuse, whole_text

# The mean over the whole run that Hugging Face's trainer appends as its last entry.
_SUMMARY = "train_runtime"


def read_json(data: bytes, file: str, name: str, notes: list[str], *, lines: bool | None = None) -> Table:
    """A document when the text is one, else one object per line; `lines` decides where the caller knows."""
    if lines is None:
        first = data.lstrip().split(b"\n", 1)
        try:
            lines = isinstance(_parsed(first[0], file), dict) and len(first) > 1 and bool(first[1].strip())
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            # A broken first line of many is a JSONL file; "{" alone begins a document.
            lines = len(first) > 1 and first[1].lstrip()[:1] == b"{" and first[0].lstrip()[:1] == b"{"
    return _lines(data, file, name, notes) if lines else _document(data, file, name, notes)


def _lines(data: bytes, file: str, name: str, notes: list[str]) -> Table:
    entries, rows, notes = [], [], list(notes)
    lines = data.split(b"\n")
    last = max((i for i, line in enumerate(lines, 1) if line.strip()), default=0)
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith(b"#"):
            continue
        try:
            entry = _parsed(line, file)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            if number == last and number > 1:
                notes.append(f"cut-off last line {number} dropped")
                continue
            raise refuse(
                "one JSON object per line", f"line {number} of {file}: {line[:40].decode(errors='replace')}", "mend it"
            ) from error
        if not isinstance(entry, dict):
            got = f"line {number} of {file}: {line[:40].decode(errors='replace')}"
            raise refuse("one JSON object per line", got, 'write {"step": ..., "loss": ...}')
        entries.append(_flat(entry, file))
        rows.append(number)
    return _table(entries, rows, file, name, "line", notes)


def _document(data: bytes, file: str, name: str, notes: list[str]) -> Table:
    try:
        content = _parsed(data, file)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        place = f"row {error.lineno} of {file}: {error.msg}" if isinstance(error, json.JSONDecodeError) else file
        raise refuse("a JSON document", place, "mend it, or write one object per line") from error
    if isinstance(content, dict) and "log_history" in content:
        content, notes, state = content["log_history"], [*notes, "Hugging Face trainer state"], True
    else:
        state = False
        if isinstance(content, dict) and {"global_step", "best_metric"} <= content.keys():
            raise refuse(
                "log_history in a trainer state", f"{file} without it", "take trainer_state.json of a checkpoint"
            )
    if isinstance(content, dict):
        series = {key: value for key, value in _flat(content, file).items() if isinstance(value, list)}
        sizes = {len(value) for value in series.values()}
        if not series or len(sizes) > 1 or sizes == {0}:
            got = f"{file} with {', '.join(map(str, list(content)[:6])) or 'nothing'}"
            raise refuse("a list of objects, or lists of one length", got, "write one object per line")
        content = [dict(zip(series, row, strict=True)) for row in zip(*series.values(), strict=True)]
    if not isinstance(content, list) or not content:
        raise refuse("a list of log entries", f"{file} with {type(content).__name__} or none", "log more often")
    for number, entry in enumerate(content, 1):
        if not isinstance(entry, dict):
            got = f"entry {number} of {file}: {str(entry)[:40]}"
            raise refuse("objects as log entries", got, 'write {"step": ..., "loss": ...}')
    entries = [_flat(entry, file) for entry in content]
    rows = list(range(1, len(entries) + 1))
    if state:
        kept = [(e, r) for e, r in zip(entries, rows, strict=True) if _SUMMARY not in e]
        entries, rows = [e for e, _ in kept], [r for _, r in kept]
    return _table(entries, rows, file, name, "entry", notes)


def _parsed(data: bytes, file: str) -> Any:
    """The JSON value; `ValueError` where it is none."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise _too_deep(file) from error


def _too_deep(file: str) -> InputError:
    return refuse(f"JSON nested at most {MOST_DEPTH} deep", file, "write one flat object per line")


def _flat(entry: dict[str, Any], file: str, prefix: str = "", depth: int = 1) -> dict[str, Any]:
    """The object with names like "train/loss" for what lies within other objects; text without halves of characters."""
    if depth > MOST_DEPTH:
        raise _too_deep(file)
    flat: dict[str, Any] = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            flat |= _flat(value, file, f"{prefix}{key}/", depth + 1)
        else:
            flat[whole_text(f"{prefix}{key}")] = whole_text(value) if isinstance(value, str) else value
    return flat


def _table(entries: list[dict[str, Any]], rows: list[int], file: str, name: str, unit: str, notes: list[str]) -> Table:
    if not entries:
        raise refuse("log entries", f"{file} without any", "check that the run wrote it")
    columns: dict[str, np.ndarray] = {}
    broken: dict[str, dict[int, str]] = {}
    notes = list(notes)
    size = len(entries)
    filled: dict[str, tuple[list[int], list[Any]]] = {}
    for place, entry in enumerate(entries):
        for key, cell in entry.items():
            places, cells = filled.setdefault(key, ([], []))
            places.append(place)
            cells.append(cell)
    check_sparse(size, len(filled), sum(map(len, entries)), file)
    for key, (places, cells) in filled.items():
        if any(isinstance(cell, list) for cell in cells):
            continue
        if all(type(cell) is float or (type(cell) is int and abs(cell) < 1 << 63) for cell in cells):
            columns[key] = _spread(np.array(cells, dtype=float), places, np.full(size, np.nan))
            continue
        held = np.empty(len(cells), dtype=object)
        held[:] = cells
        numbers, bad, done = parse_column(held)
        if is_numbers(numbers, bad) or (not bad and np.isnan(numbers).all()):
            columns[key] = _spread(numbers, places, np.full(size, np.nan))
            broken[key] = {rows[places[i]]: text for i, text in bad.items()}
            notes += [f"{text} in column {key}" for text in sorted(done)]
        else:
            words = np.array(["" if cell is None else str(cell) for cell in cells], dtype=object)
            columns[key] = _spread(words, places, np.full(size, "", dtype=object))
    return Table(file, name, columns, np.array(rows), unit, broken, tuple(notes))


def _spread(values: np.ndarray, places: list[int], column: np.ndarray) -> np.ndarray:
    """`column` with `values` at `places`."""
    column[places] = values
    return column
