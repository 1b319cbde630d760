"""Scalars of TensorBoard event files, read without TensorBoard.

A file is a row of records: uint64 length, masked CRC-32C of it, the bytes, masked CRC-32C of them (TFRecord). The bytes are a
protobuf `Event`: 2 = step (varint), 5 = summary, whose values (1) have a tag (1) and either simple_value (2, float32) or
a tensor (8) with dtype (1), tensor_content (4), float_val (5) or double_val (6). Source: tensorflow/core/util/event.proto
and tensorflow/core/framework/{summary,tensor}.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from odescale.logs.limits import check_sparse
from odescale.logs.table import Table, refuse

_FLOAT, _DOUBLE = 1, 2  # DataType of a TensorProto
CHECKED = 1 << 16
"""Bytes of a record up to which its checksum is taken, byte by byte: a longer one holds a picture, no scalar."""


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE = _crc_table()


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated right by 15 bits plus 0xa282ead8, as TFRecord stores it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def looks_like_events(data: bytes) -> bool:
    """Whether the file begins with a TFRecord header whose checksum holds."""
    return len(data) >= 12 and masked_crc(data[:8]) == int.from_bytes(data[8:12], "little")


def read_events(files: list[tuple[str, bytes]], name: str) -> Table:
    """The event files of one run, in order of writing, as one table: a row per record that holds scalars."""
    steps: list[float] = []
    rows: list[int] = []
    values: dict[str, dict[int, float]] = {}
    notes: list[str] = []
    shown = files[0][0] if len(files) == 1 else f"{files[0][0]} and {len(files) - 1} more"
    for file, data in files:
        for number, record in _records(data, file, notes):
            try:
                step, scalars = _event(record)
            except (ValueError, TypeError, AttributeError, struct.error, IndexError) as error:
                raise refuse("a TensorBoard event", f"record {number} of {file}", "copy the file again") from error
            for tag, value in scalars:
                # Writers give every scalar its own event: those of one step, in a row, are one row here.
                if not steps or steps[-1] != step or len(steps) - 1 in values.setdefault(tag, {}):
                    steps.append(float(step))
                    rows.append(number)
                values.setdefault(tag, {})[len(steps) - 1] = value
    if not steps:
        raise refuse("scalars in the event file", f"{shown} with none", "log the loss with add_scalar")
    check_sparse(len(steps), len(values), sum(map(len, values.values())), shown)
    columns = {"step": np.array(steps)}
    for tag, found in values.items():
        column = np.full(len(steps), np.nan)
        column[list(found)] = list(found.values())
        columns[tag if tag != "step" else "step (tag)"] = column
    return Table(shown, name, columns, np.array(rows), "record", notes=tuple(["TensorBoard events", *notes]))


def _records(data: bytes, file: str, notes: list[str]) -> Iterator[tuple[int, bytes]]:
    place, number = 0, 0
    while place < len(data):
        number += 1
        head = data[place : place + 12]
        length = int.from_bytes(head[:8], "little")
        # A run that was killed leaves half a record, or a tail of zeros.
        if len(head) < 12 or (not any(head) and not data[place:].strip(b"\0")):
            notes.append(f"cut-off last record {number} dropped")
            return
        if masked_crc(head[:8]) != int.from_bytes(head[8:], "little"):
            raise refuse("an intact event file", f"record {number} of {file}: wrong checksum", "copy the file again")
        if place + 16 + length > len(data):
            notes.append(f"cut-off last record {number} dropped")
            return
        record = data[place + 12 : place + 12 + length]
        tail = data[place + 12 + length : place + 16 + length]
        if length <= CHECKED and masked_crc(record) != int.from_bytes(tail, "little"):
            raise refuse("an intact event file", f"record {number} of {file}: wrong checksum", "copy the file again")
        yield number, record
        place += 16 + length


def _event(data: bytes) -> tuple[int, list[tuple[str, float]]]:
    step, scalars = 0, []
    for field, value in fields(data):
        if field == 2:
            step = value - (1 << 64) if value >= 1 << 63 else value
        elif field == 5:
            scalars += [scalar for key, entry in fields(value) if key == 1 for scalar in _scalar(entry)]
    return step, scalars


def _scalar(data: bytes) -> Iterator[tuple[str, float]]:
    tag, number = "", None
    for field, value in fields(data):
        if field == 1:
            tag = value.decode()
        elif field == 2:
            number = struct.unpack("<f", value)[0]
        elif field == 8:
            number = _tensor(value)
    if number is not None:
        yield tag, _shortest(number)


def _tensor(data: bytes) -> float | None:
    """The one number of a scalar tensor; None for any other tensor (text, histograms, images)."""
    kind, content = 0, b""
    for field, value in fields(data):
        if field == 1:
            kind = value
        elif field in (4, 5, 6):
            content = value
    form = {_FLOAT: "<f", _DOUBLE: "<d"}.get(kind)
    return struct.unpack(form, content)[0] if form and len(content) == struct.calcsize(form) else None


def _shortest(number: float) -> float:
    """The shortest decimal of a float32: 4.1, not 4.099999904632568."""
    with np.errstate(over="ignore"):
        single = np.float32(number)
    return float(str(single)) if float(single) == number else number


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: an int for varints, bytes for the other wire types."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        wire = key & 7
        if wire == 0:
            value, place = _varint(data, place)
        else:
            if wire == 2:
                length, place = _varint(data, place)
            elif wire in (1, 5):
                length = 8 if wire == 1 else 4
            else:
                raise ValueError(f"wire type {wire}")
            value = data[place : place + length]
            if len(value) != length:
                raise ValueError("a field beyond its message")
            place += length
        yield key >> 3, value


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
