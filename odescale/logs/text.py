"""Delimited text (CSV and its relatives) as a `Table`: decoding, delimiter, header, ragged and cut-off rows."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int

from odescale.errors import InputError
from odescale.logs.limits import MOST_CELL, check_columns
from odescale.logs.numbers import decimal_mark, is_numbers, parse_column, plain_number
from odescale.logs.table import Table, ranges, refuse

DELIMITERS = ("\t", ";", ",", "|")
SPACES = "whitespace"
SAMPLE = 200
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*+[ -/]*+[@-~]|\][^\x07\x1b]*+(?:\x07|\x1b\\\\)|[@-Z\\\\^_])")
_NAMES = {"\t": "tab", " ": "space", SPACES: "white space"}


def decode(data: bytes, file: str) -> tuple[bytes, list[str]]:
    """Clean UTF-8 with "\\n" line ends, and what was done; a binary file is refused."""
    notes = []
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            try:
                data = data.decode(encoding).encode()
            except UnicodeDecodeError as error:
                raise refuse("a text file", f"{file}: damaged {encoding}", "export it again as UTF-8 CSV") from error
            notes.append("byte-order mark removed" if encoding == "utf-8-sig" else "UTF-16 read")
            break
    if data[1:2] == b"\0" and data[3:4] == b"\0" and data[:1] != b"\0":  # UTF-16 without a mark
        data = data.decode("utf-16-le", errors="replace").encode()
        notes.append("UTF-16 read")
    if b"\x1b" in data:
        data = _ESCAPES.sub(b"", data)
        notes.append("colours and cursor codes of a terminal removed")
    if b"\x08" in data:
        data = data.replace(b"\x08", b"")
    head = data[:65536]
    control = sum(head.count(bytes([code])) for code in (*range(9), *range(14, 32)))
    if b"\0" in head or control > 0.01 * len(head):
        raise refuse("a text log", f"binary file {file}", "export it as CSV, JSONL or TensorBoard events")
    try:
        data.decode()
    except UnicodeDecodeError:
        data = data.decode("latin-1").encode()
        notes.append("not UTF-8: read as Latin-1")
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return data, notes


def read_delimited(data: bytes, file: str, name: str, notes: list[str]) -> Table:
    """One table; the file's row numbers count from 1, header and comments included."""
    notes = list(notes)
    whole = data.endswith(b"\n")
    header, body, rows, delimiter = _lines(data, file, notes)
    if rows.size == 0:
        raise refuse("at least two rows with a loss", f"{file} with a header and no rows", "log more often")
    header, body, rows = _check_fields(header, body, rows, delimiter, file, whole, notes)
    import pandas as pd

    # Before 3.1 the last digit could be off unless asked for; since then asking is a warning.
    old = tuple(int(part) for part in pd.__version__.split(".")[:2]) < (3, 1)
    exact: dict[str, Any] = {"float_precision": "round_trip"} if old else {}

    def read(**options: Any) -> dict[str, np.ndarray]:
        separator = r"\s+" if delimiter == SPACES else delimiter
        try:
            frame = pd.read_csv(
                io.BytesIO(body), sep=separator, header=None, names=list(range(len(header))), index_col=False,
                skipinitialspace=True, skip_blank_lines=False, low_memory=False, **exact, **options,
            )  # fmt: skip
        except (ValueError, OverflowError) as error:
            text = " ".join(str(error).split())
            raise refuse("a table", f"{file}: {text}", "mend that row, or its quotes") from error
        if len(frame) != rows.size:
            raise refuse("one row per line", f"{file}: a quoted cell holds a line end", "remove line ends from cells")
        return {key: frame[i].to_numpy() for i, key in enumerate(header)}

    raw = read()
    texts = {key: values for key, values in raw.items() if values.dtype.kind not in "fiu"}
    mark = "."
    if texts and delimiter != ",":
        mark = decimal_mark(str(cell) for values in texts.values() for cell in values if isinstance(cell, str))
        if mark == ",":  # then "1.000" is a thousand in the other columns too
            raw = read(dtype=str)
    columns: dict[str, np.ndarray] = {}
    broken: dict[str, dict[int, str]] = {}
    for key, values in raw.items():
        if values.dtype.kind in "fiu":
            columns[key] = values.astype(float)
            continue
        cells = values.astype(object)
        numbers, bad, done = parse_column(cells, mark)
        empty = not bad and np.isnan(numbers).all()
        if empty or is_numbers(numbers, bad):
            columns[key] = numbers
            broken[key] = {int(rows[i]): text for i, text in bad.items()}
            notes += [f"{text} in column {key}" for text in sorted(done)]
        else:
            columns[key] = np.array(
                ["" if cell is None or cell != cell else str(cell).strip() for cell in cells], object
            )
    table = Table(file, name, columns, rows, "row", broken, tuple(notes))
    return table if whole else _cut_off(table)


def _lines(data: bytes, file: str, notes: list[str]) -> tuple[list[str], bytes, Int[np.ndarray, " n"], str]:
    """(header names, the rows' bytes, their row numbers, delimiter); comments, blank lines and repeated headers leave."""
    if not data.strip():
        raise refuse("a log with a header", f"empty file {file}", "check that the run wrote it")
    stripped = data if data.endswith(b"\n") else data + b"\n"
    plain = not (stripped.startswith((b"#", b"\n", b" ", b"\t")) or re.search(rb"\n[ \t]*[#\n]", stripped))
    if plain:
        end = stripped.index(b"\n") + 1
        first, body = stripped[:end].decode(), stripped[end:]
        rows = np.arange(2, 2 + body.count(b"\n"))
        comment = ""
    else:
        lines = stripped.split(b"\n")[:-1]
        kept = [(i, line) for i, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith(b"#")]
        comments = [line for line in lines if line.lstrip().startswith(b"#")]
        if comments:
            notes.append(f"{len(comments)} comment line{'s' if len(comments) > 1 else ''} skipped")
        if not kept:
            raise refuse("a log with a header", f"{file} with comments only", "check that the run wrote it")
        above = [line for line in lines[: kept[0][0] - 1] if line.strip()]
        comment = above[-1].decode().lstrip("# \t") if above else ""
        first = kept[0][1].decode() + "\n"
        body = b"\n".join(line for _, line in kept[1:]) + (b"\n" if kept[1:] else b"")
        rows = np.array([i for i, _ in kept[1:]], dtype=int)
        number = kept[0][0]
    number = 1 if plain else kept[0][0]
    sample = [first.strip("\n")] + [line.decode() for line in body.split(b"\n", SAMPLE)[:SAMPLE] if line]
    try:
        delimiter = _delimiter(sample)
        names = _split(sample[0], delimiter)
    except csv.Error as error:
        raise _long_cell(file) from error
    check_columns(len(names), file)
    if all(plain_number(cell) for cell in names):
        above_names = _split(comment, delimiter) if comment else []
        body, rows = first.encode() + body, np.concatenate([[number], rows])
        if len(above_names) == len(names) and not all(plain_number(cell) for cell in above_names):
            names = above_names
            notes.append("header taken from the comment above the numbers")
        else:
            names = [f"column {i}" for i in range(1, len(names) + 1)]
            notes.append("no header: columns counted from 1")
    elif body and (repeated := body.count(first.encode())):
        lines = body.split(b"\n")[:-1]
        same = np.array([line + b"\n" == first.encode() for line in lines])
        if same.any():
            notes.append(f"header repeated at {ranges(rows[same])}: dropped")
            body, rows = b"\n".join(line for line, s in zip(lines, same, strict=True) if not s) + b"\n", rows[~same]
            body = body if rows.size else b""
        del repeated
    return _unique([cell.strip().strip('"') for cell in names], notes), body, rows, delimiter


def _long_cell(file: str) -> InputError:
    got = f"{file} with a longer one, or a quote that does not close"
    return refuse(f"cells of at most {MOST_CELL} characters", got, "shorten it, or mend the quotes")


def _delimiter(sample: list[str]) -> str:
    """The delimiter that gives header and rows the same number of fields, two or more; else the header's own."""
    best, score = None, 0.0
    for delimiter in (*DELIMITERS, SPACES):
        counts = [len(_split(line, delimiter)) for line in sample]
        share = float(np.mean([abs(c - counts[0]) <= (delimiter == SPACES) for c in counts])) if counts[0] > 1 else 0.0
        if share > score + 1e-9:
            best, score = delimiter, share
    return best or ","


def _split(line: str, delimiter: str) -> list[str]:
    if delimiter == SPACES:
        return next(csv.reader([re.sub(r"\s+", " ", line.strip())], delimiter=" "), [])
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])


def _unique(names: list[str], notes: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for place, name in enumerate(names, 1):
        name = name or f"unnamed {place}"
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    twice = [name for name, count in seen.items() if count > 1]
    if twice:
        notes.append(f"column {', '.join(twice)} stands in the header more than once: the first is {twice[0]}, the next "
                     f"{twice[0]} (2)")  # fmt: skip
    return result


def _check_fields(
    header: list[str], body: bytes, rows: np.ndarray, delimiter: str, file: str, whole: bool, notes: list[str]
) -> tuple[list[str], bytes, np.ndarray]:
    """Every row has as many fields as the header; a short last line without its end is dropped as cut off."""
    try:
        counts = _count_fields(body, rows.size, delimiter)
    except csv.Error as error:
        raise _long_cell(file) from error
    if counts.size != rows.size:
        raise refuse("one row per line", f"{file}: a quote that does not close", "mend the quotes")
    size = len(header)
    if rows.size > 1 and counts[-1] < size and (not whole or (counts[:-1] == size).all()):
        notes.append(f"cut-off last row {rows[-1]} dropped")
        body = body[: body.rindex(b"\n", 0, -1) + 1]
        rows, counts = rows[:-1], counts[:-1]
    if (counts == size).all():
        return header, body, rows
    if (counts == size + 1).all():
        if all(
            line.rstrip().endswith(delimiter.encode()) for line in body.split(b"\n", SAMPLE)[: min(SAMPLE, rows.size)]
        ):
            notes.append("rows end on a delimiter: ignored")
            return [*header, "unnamed last"], body, rows
        if delimiter == SPACES:
            notes.append("first column has no header: taken as row names")
            return ["unnamed row", *header], body, rows
    place = int(np.argmax(counts != size))
    line = body.split(b"\n", place + 1)[place].decode(errors="replace")
    remedy = f"mend it; the delimiter was taken to be {_NAMES.get(delimiter, repr(delimiter))}"
    if delimiter == "," and counts[place] == 2 * size - 1 or (delimiter == "," and (counts > size).all()):
        remedy = "decimal commas in a file separated by commas cannot be told apart: export it with ; or with points"
    raise refuse(
        f"{size} fields as in the header", f"row {rows[place]} of {file} with {counts[place]}: {line[:40]}", remedy
    )


def _count_fields(body: bytes, size: int, delimiter: str) -> np.ndarray:
    if b'"' in body:
        # strict=False never raises but for a field beyond the reader's limit, which an unclosed quote makes too.
        text = io.StringIO(body.decode(), newline="")
        if delimiter == SPACES:
            return np.array([len(_split(line, SPACES)) for line in text])
        return np.fromiter((len(row) for row in csv.reader(text, delimiter=delimiter, skipinitialspace=True)), int)
    if delimiter == SPACES:
        return np.fromiter((len(line.split()) for line in body.split(b"\n")[:-1]), int, count=size)
    codes = np.frombuffer(body, np.uint8)
    ends = np.flatnonzero(codes == 10)
    marks = np.flatnonzero(codes == ord(delimiter))
    return np.diff(np.searchsorted(marks, ends), prepend=0) + 1


def _cut_off(table: Table) -> Table:
    """Without a line end at the end of the file, broken cells of the last row are a cut-off number, not a damaged one."""
    last = int(table.rows[-1])
    if table.rows.size > 1 and any(last in cells for cells in table.broken.values()):
        broken = {key: {row: text for row, text in cells.items() if row != last} for key, cells in table.broken.items()}
        whole = table.take(np.arange(table.rows.size - 1), notes=(f"cut-off last row {last} dropped",))
        return replace(whole, broken=broken)
    return table
