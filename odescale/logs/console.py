"""Printed training output ("iter 100: loss 4.125, lr 3e-4") as a `Table`: names and numbers picked out of every line."""

from __future__ import annotations

import re

import numpy as np

from odescale.logs.columns import NAMES, plain
from odescale.logs.limits import check_sparse
from odescale.logs.table import Table

# A number that is not part of a word, behind a letter and : or = or a space; "100/ 50000" counts as 100. Possessive, and begun
# behind a letter only, so that a line of any length is read once: no place of it is tried twice.
_VALUE = re.compile(
    r"(?<=[A-Za-z_])(?:\s*+[:=]\s*+|(?=[^\S ]* )\s++)"
    r"(?P<value>[+-]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:e[+-]?\d++)?+|nan|inf)(?![\w.]*[A-Za-z])", re.I,
)  # fmt: skip
_KEY = re.compile(r"[A-Za-z_/.\- ]*+")
_LEVEL = re.compile(r"^(INFO|DEBUG|WARNING|ERROR|NOTICE)[ :.-]+")
SAMPLE = 200
LONGEST = 400
"""Characters of a name that are read."""


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
    filled = sum(map(len, records))
    check_sparse(len(records), len({key for record in records for key in record}), filled, file)
    columns: dict[str, np.ndarray] = {}
    for place, record in enumerate(records):
        for key, value in record.items():
            columns.setdefault(key, np.full(len(records), np.nan))[place] = float(value)
    said = f"printed output: {len(rows)} lines with a step and a loss read, the others left out"
    return Table(file, name, columns, np.array(rows), "line", notes=(*notes, said), source="printed")


def _pairs(line: str) -> dict[str, str]:
    """Name and number of every pair: the number first, then the letters, blanks and / . - _ that stand before it."""
    pairs: dict[str, str] = {}
    begin = place = 0
    while match := _VALUE.search(line, place):
        before = line[max(begin, match.start() - LONGEST) : match.start()]
        key = before[len(before) - _KEY.match(before[::-1]).end() :].lstrip("_/.- ")  # type: ignore[union-attr]
        if key:
            pairs.setdefault(_LEVEL.sub("", key), match["value"])
            begin = place = match.end()
        else:
            place = match.start() + 1
    return pairs


def _is_record(pairs: dict[str, str]) -> bool:
    return any(plain(key) in NAMES["step"] for key in pairs) and any("loss" in plain(key) for key in pairs)
