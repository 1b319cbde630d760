"""Printed training output ("iter 100: loss 4.125, lr 3e-4") as a `Table`: names and numbers picked out of every line."""

from __future__ import annotations

import re

import numpy as np

from odescale.logs.columns import NAMES, plain
from odescale.logs.table import Table

# A name of letters, then : or = or a space, then a number that is not part of a word; "100/ 50000" counts as 100.
_PAIR = re.compile(
    r"(?P<key>[A-Za-z][A-Za-z_/.\- ]*[A-Za-z_]|[A-Za-z])\s*[:= ]\s*(?P<value>[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan|inf)"
    r"(?![\w.]*[A-Za-z])", re.I,
)  # fmt: skip
_LEVEL = re.compile(r"^(INFO|DEBUG|WARNING|ERROR|NOTICE)[ :.-]+")
SAMPLE = 200


def looks_printed(data: bytes) -> bool:
    """Whether lines of the beginning name a step and a loss, each followed by its number, and are no table."""
    lines = [line.decode(errors="replace") for line in data[:65536].split(b"\n")[:SAMPLE] if line.strip()]
    return sum(_is_record(_pairs(line)) for line in lines) >= max(2, len(lines) // 20)


def read_printed(data: bytes, file: str, name: str, notes: list[str]) -> Table:
    """Lines with a step and a loss; the others are text and left out."""
    records, rows = [], []
    for number, line in enumerate(data.decode().split("\n"), 1):
        pairs = _pairs(line)
        if _is_record(pairs):
            records.append(pairs)
            rows.append(number)
    columns = {
        key: np.array([float(record.get(key, "nan")) for record in records])
        for key in dict.fromkeys(key for record in records for key in record)
    }
    said = f"printed output: {len(rows)} lines with a step and a loss read, the others left out"
    return Table(file, name, columns, np.array(rows), "line", notes=(*notes, said), source="printed")


def _pairs(line: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for match in _PAIR.finditer(line):
        pairs.setdefault(_LEVEL.sub("", match["key"].strip()), match["value"])
    return pairs


def _is_record(pairs: dict[str, str]) -> bool:
    return any(plain(key) in NAMES["step"] for key in pairs) and any("loss" in plain(key) for key in pairs)
