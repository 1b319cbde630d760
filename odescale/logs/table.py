"""Columns of one log file as they were read, with the place of every row in the file, so that an error can name it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import equinox as eqx
import numpy as np
from jaxtyping import Int

from odescale.errors import InputError


class Table(eqx.Module):
    """`columns`: name -> (n,) float64, or object where the column is text; `rows` (n,): row numbers of the file, from 1.

    `broken`: column -> {row: text} for the cells of a number column that are no number (they stand as NaN). `file` is the path as
    messages show it, `name` what the run is called when the file says nothing, `unit` what one row is there (row, line, entry).
    """

    file: str = eqx.field(static=True)
    name: str = eqx.field(static=True)
    columns: dict[str, np.ndarray]
    rows: Int[np.ndarray, " n"]
    unit: str = eqx.field(static=True, default="row")
    broken: dict[str, dict[int, str]] = eqx.field(static=True, default_factory=dict)
    notes: tuple[str, ...] = eqx.field(static=True, default=())
    source: str = eqx.field(static=True, default="table")

    def take(self, index: np.ndarray, name: str | None = None, notes: tuple[str, ...] = ()) -> Table:
        """The rows `index` (a mask or positions), under another name."""
        columns = {key: values[index] for key, values in self.columns.items()}
        return Table(
            self.file, name or self.name, columns, self.rows[index], self.unit, self.broken, self.notes + notes,
            self.source,
        )  # fmt: skip

    def numeric(self) -> list[str]:
        """Names of the columns of numbers that hold at least one."""
        return [key for key, v in self.columns.items() if v.dtype.kind == "f" and np.isfinite(v).any()]

    def text(self) -> list[str]:
        """Names of the columns of text."""
        return [key for key, v in self.columns.items() if v.dtype.kind == "O"]

    def at(self, position: int) -> str:
        """Where a row stands: "row 7 of runs/a.csv"."""
        return f"{self.unit} {self.rows[position]} of {self.file}"


def short_path(path: Path, most: int = 60) -> str:
    """The path as given, or its end: an error shows one line."""
    text = str(path)
    return text if len(text) <= most else "..." + text[-(most - 3) :]


def whole_text(text: str) -> str:
    """The text without lone surrogates, halves of a character that JSON can name and nothing can print."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def refuse(expected: str, got: str, remedy: str) -> InputError:
    """The one error of a log that cannot be read."""
    return InputError("LOG", expected=expected, got=got, remedy=remedy)


def ranges(rows: Iterable[int], unit: str = "row", most: int = 4) -> str:
    """Row numbers in words: "rows 3 to 7, 12 and 4 more"."""
    numbers = np.unique(np.fromiter(rows, dtype=int))
    ends = np.flatnonzero(np.diff(numbers) > 1)
    starts = np.concatenate([[0], ends + 1])
    stops = np.concatenate([ends, [numbers.size - 1]])
    parts = [
        str(numbers[a]) if a == b else f"{numbers[a]} to {numbers[b]}"
        for a, b in zip(starts[:most], stops[:most], strict=True)
    ]
    rest = int(numbers.size - 1 - stops[:most][-1])
    plural = unit if numbers.size == 1 else {"entry": "entries"}.get(unit, f"{unit}s")
    return f"{plural} {', '.join(parts)}" + (f" and {rest} more" if rest else "")
