"""Which reader takes a text, told by all of it: every shape is scored over lines from the whole file, in bounded time."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from odescale.logs.columns import NAMES, plain
from odescale.logs.console import gather
from odescale.logs.lines import is_loss, member_of, pairs
from odescale.logs.numbers import plain_number

MOST_LINES = 6000
"""Lines that are scored; of a longer file, blocks of whole lines from all of it."""
BLOCK = 200
LONGEST = 2000
"""Characters of a line that are scored."""
_DELIMITERS = (",", ";", "\t", "|")


def shape_of(data: bytes) -> str | None:
    """ "printed", "json" or None for delimited text: the shape with most lines of the file that are records of it."""
    lines = sampled(data)
    head = data.lstrip()[:1]
    objects = sum(line.lstrip().startswith('{"') and line.rstrip().endswith("}") for line in lines)
    filled = sum(1 for line in lines if line.strip())
    if head == b"{" and (objects >= filled / 2 or not _dicts(lines)):
        return "json"
    printed = _printed(lines)
    if printed >= 2 and printed >= table_in(lines)[1]:
        return "printed"
    return "json" if head in (b"{", b"[") and not printed else None


def sampled(data: bytes) -> list[str]:
    """At most `MOST_LINES` lines: all, or blocks at equal distances, the first and the last among them."""
    size = data.count(b"\n") + 1
    if size <= MOST_LINES:
        return [line[:LONGEST] for line in data.decode(errors="replace").split("\n")]
    pieces: list[str] = []
    width = max(1, len(data) // size) * BLOCK
    for start in np.linspace(0, max(0, len(data) - width), MOST_LINES // BLOCK).astype(int):
        block = data[start : start + min(width, 1 << 20)].decode(errors="replace").split("\n")
        pieces += [line[:LONGEST] for line in block[(1 if start else 0) : -1 if start + width < len(data) else None]]
    return pieces


def without_noise(data: bytes) -> tuple[bytes, int]:
    """A table's text with lines of other text blanked (their numbers in the file stay), and how many there were.

    Lines before the header, and lines between rows of another number of cells in which no cell is a number. What has numbers is
    a row, damaged or not, and left to the reader.
    """
    sample = sampled(data)
    counts = Counter(_shape(line) for line in sample if line.strip())
    shape, _ = table_in(sample)
    if shape is None:
        return data, 0
    mark, width = shape
    first = next((line for line in sample if line.strip()), "")
    if _cell_count(first, mark) == width and len(counts) <= 2:
        return data, 0
    lines = data.decode(errors="replace").split("\n")
    begin = next(i for i, line in enumerate(lines) if _shape(line) == (mark, width))
    above = [i for i in range(begin) if lines[i].strip()]
    # The header names a step or a loss; one of unknown names is the last line above the rows that has as many cells.
    fits = [i for i in above if _cell_count(lines[i], mark) == width]
    header = next((i for i in reversed(fits) if _is_header(lines[i], mark, width)), fits[-1] if fits else None)
    if header is None and above and _names_a_column(lines[above[-1]]):
        return data, 0  # A header with another delimiter than the rows: an error to show.
    gone = 0
    for place, line in enumerate(lines):
        if not line.strip() or place == header or line.lstrip().startswith("#"):
            continue
        cells = _cells_of(line, mark)
        above_rows = place < begin and header is not None
        other = len(cells) != width and not any(plain_number(cell.strip()) for cell in cells)
        if above_rows or other:
            lines[place] = ""
            gone += 1
    return ("\n".join(lines).encode(), gone) if gone else (data, 0)


def _dicts(lines: list[str]) -> int:
    return sum(line.lstrip().startswith("{'") for line in lines)


def _printed(lines: list[str]) -> int:
    records, _, _ = gather(lines)
    return sum(any(is_loss(key) for key in record) for record in records)


def table_in(lines: list[str]) -> tuple[tuple[str, int] | None, int]:
    """(delimiter and number of cells, rows) of the table among the lines: one whose header names a step or a loss, else one that
    most lines belong to; (None, 0) where there is none."""
    found = [(line, _shape(line)) for line in lines if line.strip()]
    counts = Counter(shape for line, shape in found if shape is not None and not pairs(line) and not member_of(line))
    headed = {shape for line, own in found if own is None for shape in counts if _is_header(line, *shape)}
    for shape, count in counts.most_common():
        if shape in headed or (count > 1 and 2 * count >= len(found)):
            return shape, count
    return None, 0


def _is_header(line: str, mark: str, width: int) -> bool:
    cells = [cell.strip().strip('"') for cell in _cells_of(line, mark)]
    return len(cells) == width and any(plain(cell) in NAMES[role] for role in ("step", "loss") for cell in cells)


def _shape(line: str) -> tuple[str, int] | None:
    """(delimiter, cells) of a row of which half is numbers; None for other text. Blanks are no delimiter here."""
    for mark in _DELIMITERS:
        if mark in line:
            cells = _cells_of(line, mark)
            numbers = sum(plain_number(cell.strip()) for cell in cells)
            if 2 * numbers >= len(cells) and numbers:
                return mark, len(cells)
    return None


def _names_a_column(line: str) -> bool:
    return any(plain(cell) in NAMES[role] for role in ("step", "loss") for cell in re.split(r"[,;\t|\s]+", line))


def _cells_of(line: str, mark: str) -> list[str]:
    return line.rstrip("\r\n").split(mark)


def _cell_count(line: str, mark: str) -> int:
    return len(_cells_of(line, mark))
