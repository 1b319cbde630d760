"""What the commands print: words for people, or one JSON object with the same keys for every command; and their pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from odescale.errors import InputError
from odescale.plain_text import printable

KEYS = ("system", "parameters", "time_unit", "t", "loss", "exponent", "observables", "error", "code")
PICTURES = (".png", ".pdf", ".svg")


def emit(record: dict[str, Any], text: str, as_json: bool) -> None:
    """Prints `text`, or the record with every one of `KEYS` (null where it does not apply) and nothing else on stdout.

    Without what a terminal would obey: names of runs and columns come from files.
    """
    if as_json:
        from odescale.files import plain

        text = json.dumps(plain(dict.fromkeys(KEYS) | {"code": 0} | record), allow_nan=False)
    sys.stdout.write(f"{printable(text)}\n")
    sys.stdout.flush()


def table(heads: Iterable[str], rows: Iterable[Iterable[Any]], width: int = 12) -> list[str]:
    """A head and its rows, right-aligned columns of at least `width`; numbers in six digits, None as a dash."""
    heads = list(heads)
    widths = [max(width, len(head)) for head in heads]
    cells = [heads, *([_cell(value) for value in row] for row in rows)]
    return ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in cells]


def aligned(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of words under their heads, each column as wide as it needs."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([str(row.get(name, "-")) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return (
        ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells]
        if rows
        else []
    )


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else "-" if value is None else f"{value:.6g}"


def require_picture(path: str | None) -> None:
    """Refuses a --plot target that is no picture, before anything is computed; None passes."""
    if path and Path(path).suffix.lower() not in PICTURES:
        raise InputError(
            "--plot", expected=f"a file ending in {', '.join(PICTURES)}", got=path, remedy="e.g. --plot loss.png"
        )


def draw(result: Any, path: str | None, **options: Any) -> None:
    """The picture of a result as a file, where one was asked for."""
    if path:
        from odescale.plot.draw import plot

        save_axes(plot(result, **options), path)


def save_axes(axes: Any, path: str) -> None:
    """The figure that the axes, or a dict of them, stand on."""
    first = next(iter(axes.values())) if isinstance(axes, dict) else axes
    first.figure.savefig(path, dpi=150)
