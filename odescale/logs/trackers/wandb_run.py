"""Runs of Weights & Biases on disk (`run-ID.wandb`), offline or synchronised, read without wandb.

A file is ":W&B", a magic number and a version (7 bytes), then the log format of LevelDB: blocks of 32 KiB with records of checksum
(4 bytes), length (2), kind (1: whole, 2: first, 3: middle, 4: last part) and data. The data are protobuf `Record`s: 2 = history
with items (1) of key (1) or nested keys (2) and a JSON value (16), and a step (2); 17 = run with id (1), configuration (4) and
display
name (8). Source: wandb/proto/wandb_internal.proto, which wandb ships; its own reader is no part of the Python package any more.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from odescale.logs.events import fields
from odescale.logs.limits import check_sparse
from odescale.logs.table import Table, refuse

HEAD = b":W&B"
BLOCK = 32768
_HISTORY, _RUN = 2, 17
_LEFT_OUT = ("_timestamp", "_runtime")


def wandb_files(folder: Path) -> list[Path]:
    """The run files of a run's folder, of a folder `wandb` of runs, or of the folder that holds it; none where there is none."""
    for pattern in ("run-*.wandb", "*run-*/run-*.wandb", "wandb/*run-*/run-*.wandb"):
        # "latest-run" is a link to one of the others.
        found = sorted(path for path in folder.glob(pattern) if not path.parent.is_symlink() or path.parent == folder)
        if found:
            return found
    return []


def read_wandb(data: bytes, file: str, name: str) -> Table:
    """The history of one run: a row per step, a column per logged number, named by the run's display name."""
    entries: list[dict[str, float]] = []
    rows: list[int] = []
    notes = ["Weights & Biases run on disk"]
    rate: dict[str, Any] = {}
    for number, record in enumerate(_records(data, file, notes), 1):
        try:
            for field, value in fields(record):
                if field == _HISTORY:
                    entry = _history(value)
                    if entry:
                        entries.append(entry)
                        rows.append(number)
                elif field == _RUN:
                    name, config = _run(value, name)
                    rate |= config
        except (ValueError, TypeError, AttributeError, struct.error, IndexError) as error:
            raise refuse("a record of Weights & Biases", f"record {number} of {file}", "copy the file again") from error
    if not entries:
        raise refuse("history in the run's file", f"{file} without any", "check that the run logged its loss")
    check_sparse(len(entries), len({key for entry in entries for key in entry}), sum(map(len, entries)), file)
    columns: dict[str, np.ndarray] = {}
    for place, entry in enumerate(entries):
        for key, value in entry.items():
            if (column := columns.get(key)) is None:
                column = columns[key] = np.full(len(entries), np.nan)
            column[place] = value
    said = ", ".join(
        f"{key} = {value}" for key, value in rate.items() if key in ("lr", "learning_rate", "batch_size", "batch")
    )
    notes += [f"configuration: {said}"] if said else []
    return Table(file, name, columns, np.array(rows), "record", notes=tuple(notes))


def _records(data: bytes, file: str, notes: list[str]) -> Iterator[bytes]:
    """The records, put together from their parts; what a killed run left half is dropped and said."""
    place, parts = 7, []
    while place < len(data):
        left = BLOCK - place % BLOCK
        if left < 7:  # too short for a head: zeros up to the next block
            place += left
            continue
        head = data[place : place + 7]
        if len(head) < 7 or (not any(head) and not data[place:].strip(b"\0")):
            break
        check, length, kind = struct.unpack("<IHB", head)
        body = data[place + 7 : place + 7 + length]
        if len(body) < length:
            break
        if kind not in (1, 2, 3, 4) or zlib.crc32(body, zlib.crc32(head[6:])) != check:
            raise refuse("an intact run file", f"{file}, byte {place}: wrong checksum", "copy the file again")
        place += 7 + length
        parts = [body] if kind in (1, 2) else [*parts, body]
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []
    if place < len(data) or parts:
        notes.append("the file ends within a record: read up to there")


def _history(data: bytes) -> dict[str, float]:
    entry: dict[str, float] = {}
    for field, value in fields(data):
        if field == 1:
            key, number = _item(value)
            if number is not None and key not in _LEFT_OUT:
                entry |= _flat(key, number)
        elif field == 2:
            step = next((number for inner, number in fields(value) if inner == 1), 0)
            entry.setdefault("_step", float(step))
    return entry


def _item(data: bytes) -> tuple[str, Any]:
    key, nested, value = "", [], None
    for field, content in fields(data):
        if field == 1:
            key = content.decode()
        elif field == 2:
            nested.append(content.decode())
        elif field == 5:
            value = content
        elif field == 6:
            value = struct.unpack("<d", content)[0]
        elif field == 16:
            value = _json(content)
    return key or "/".join(nested), value


def _json(text: bytes) -> Any:
    """The value; NaN and Infinity are written as they are or in quotes."""
    value = json.loads(text)
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def _flat(key: str, value: Any) -> dict[str, float]:
    """Numbers of an item; objects within objects as "train/loss", everything else is no number and left out."""
    if isinstance(value, dict):
        return {k: v for inner, held in value.items() for k, v in _flat(f"{key}/{inner}", held).items()}
    if isinstance(value, bool) or not isinstance(value, int | float):
        return {}
    return {key: float(value)}


def _run(data: bytes, name: str) -> tuple[str, dict[str, Any]]:
    identity, config = "", {}
    for field, value in fields(data):
        if field == 1:
            identity = value.decode()
        elif field == 8 and value:
            name = value.decode()
        elif field == 4:
            for inner, item in fields(value):
                if inner == 1:
                    key, held = _item(item)
                    config[key] = held
    return name or identity, config
