"""JSON logs as a `Table`: one object per line, a list of objects, a dict of lists, Hugging Face's trainer_state.json."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from odescale.logs.numbers import is_numbers, parse_column
from odescale.logs.table import Table, refuse

# The mean over the whole run that Hugging Face's trainer appends as its last entry.
_SUMMARY = "train_runtime"


def looks_like_json(data: bytes) -> bool:
    """Whether the text begins as JSON does."""
    return data.lstrip()[:1] in (b"{", b"[")


def read_json(data: bytes, file: str, name: str, notes: list[str], *, lines: bool | None = None) -> Table:
    """A document when the text is one, else one object per line; `lines` decides where the caller knows."""
    if lines is None:
        first = data.lstrip().split(b"\n", 1)
        try:
            lines = isinstance(json.loads(first[0]), dict) and len(first) > 1 and bool(first[1].strip())
        except ValueError:
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
            entry = json.loads(line)
        except ValueError as error:
            if number == last and number > 1:
                notes.append(f"cut-off last line {number} dropped")
                continue
            raise refuse(
                "one JSON object per line", f"line {number} of {file}: {line[:40].decode(errors='replace')}", "mend it"
            ) from error
        if not isinstance(entry, dict):
            got = f"line {number} of {file}: {line[:40].decode(errors='replace')}"
            raise refuse("one JSON object per line", got, 'write {"step": ..., "loss": ...}')
        entries.append(_flat(entry))
        rows.append(number)
    return _table(entries, rows, file, name, "line", notes)


def _document(data: bytes, file: str, name: str, notes: list[str]) -> Table:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
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
        series = {key: value for key, value in _flat(content).items() if isinstance(value, list)}
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
    entries = [_flat(entry) for entry in content]
    rows = list(range(1, len(entries) + 1))
    if state:
        kept = [(e, r) for e, r in zip(entries, rows, strict=True) if _SUMMARY not in e]
        entries, rows = [e for e, _ in kept], [r for _, r in kept]
    return _table(entries, rows, file, name, "entry", notes)


def _flat(entry: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _table(entries: list[dict[str, Any]], rows: list[int], file: str, name: str, unit: str, notes: list[str]) -> Table:
    if not entries:
        raise refuse("log entries", f"{file} without any", "check that the run wrote it")
    columns: dict[str, np.ndarray] = {}
    broken: dict[str, dict[int, str]] = {}
    notes = list(notes)
    for key in dict.fromkeys(key for entry in entries for key in entry):
        cells = [entry.get(key) for entry in entries]
        if any(isinstance(cell, list) for cell in cells):
            continue
        if all(type(cell) is float or (type(cell) is int and abs(cell) < 1 << 63) for cell in cells):
            columns[key] = np.array(cells, dtype=float)
            continue
        numbers, bad, done = parse_column(np.array(cells, dtype=object))
        if is_numbers(numbers, bad) or (not bad and np.isnan(numbers).all()):
            columns[key] = numbers
            broken[key] = {rows[i]: text for i, text in bad.items()}
            notes += [f"{text} in column {key}" for text in sorted(done)]
        else:
            columns[key] = np.array(["" if cell is None else str(cell) for cell in cells], dtype=object)
    return Table(file, name, columns, np.array(rows), unit, broken, tuple(notes))
