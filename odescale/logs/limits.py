"""What a log may hold at most: beyond these numbers a file is refused in one line instead of filling memory or hours."""

from __future__ import annotations

from odescale.errors import whole
from odescale.logs.table import refuse

MOST_BYTES = 128 << 20
"""Bytes of one file, unpacked: some two million rows. `max_bytes` of `read_logs` takes another number."""
MOST_COLUMNS = 2048
"""A chart has three columns a run: six hundred runs."""
MOST_CELL = 131_072
"""Characters of one cell."""
MOST_DEPTH = 32
"""JSON objects within one another."""
MOST_FILES = 10_000
"""Files looked at in a folder."""
MOST_RUNS = 1000
"""Runs told apart in one file."""
MOST_RESTARTS = 1000
"""Times that the steps of one run may jump back: more often, the rows are out of order."""
EMPTY_SHARE, SPARE_CELLS = 10, 10_000_000
"""Of lines that each name their numbers: cells of the whole table for one that is filled, and cells that are always free."""


def check_bytes(max_bytes: object) -> int:
    """The limit of `max_bytes` as a whole number of bytes; None for `MOST_BYTES`."""
    return (
        MOST_BYTES
        if max_bytes is None
        else whole("max_bytes", max_bytes, 1, 1 << 40, remedy=f"the default is {MOST_BYTES}")
    )


def refuse_bytes(file: str, limit: int, *, packed: bool) -> Exception:
    """The error of a file that is longer than the limit."""
    got = f"{file}, which {'unpacks to more' if packed else 'is longer'}"
    return refuse(
        f"at most {limit} bytes{' unpacked' if packed else ''}", got, "thin it out, or raise max_bytes (--max-bytes)"
    )


def check_columns(count: int, file: str) -> None:
    """Refuses more columns than `MOST_COLUMNS`."""
    if count > MOST_COLUMNS:
        raise refuse(f"at most {MOST_COLUMNS} columns", f"{file} with {count}", "export step, loss and rate alone")


def check_sparse(rows: int, columns: int, filled: int, file: str) -> None:
    """Refuses what would be a table of almost nothing but empty cells, as large as the square of the file."""
    check_columns(columns, file)
    if rows * columns > EMPTY_SHARE * filled + SPARE_CELLS:
        got = f"{file}: {rows} by {columns}, {filled} filled"
        raise refuse("a table with one filled cell in ten", got, "export step, loss and rate alone")


def check_runs(count: int, file: str) -> None:
    """Refuses more runs than `MOST_RUNS`."""
    if count > MOST_RUNS:
        raise refuse(f"at most {MOST_RUNS} runs in a file", f"{file} with {count}", "split it, or name the loss of one")
