"""Cells of text as numbers: locale commas, thousands, percent, printed tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

MISSING = frozenset(
    ("", "-", "--", ".", "?", "na", "n/a", "#n/a", "nan", "-nan", "null", "none", "nil", "undefined", "<na>")
)
_COMMA = re.compile(r"[+-]?\d[\d.']*,\d+(e[+-]?\d+)?%?|[+-]?\d{1,3}(,\d{3})+(\.\d+)?%?", re.I)
_COMMA_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?%?")
_DOT_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d+)?%?")
_DOT = re.compile(r"[+-]?\d*\.\d+(e[+-]?\d+)?%?", re.I)
_SPACED = re.compile(r"(?<=\d)[\u00a0\u202f '_](?=\d{3}(?!\d))")
_TENSOR = re.compile(
    r"(?:tensor|array|np\.float\d++)\(\s*+([^\s,()]++).*\)", re.S
)  # possessive: no place is tried twice


def decimal_mark(cells: Iterable[str]) -> str:
    """"," where numbers of a file that is not separated by commas carry one as the decimal mark, else ".".

    "4,123" alone could be thousands: it is a decimal comma unless another cell has a decimal point.
    """  # fmt: skip
    commas = points = surely = False
    for cell in cells:
        text = cell.strip()
        if _COMMA.fullmatch(text):
            commas = True
            surely |= not _COMMA_GROUPS.fullmatch(text)
        elif _DOT.fullmatch(text):
            points |= not _DOT_GROUPS.fullmatch(text)
    return "," if surely or (commas and not points) else "."


def parse_column(cells: np.ndarray, decimal: str = ".") -> tuple[Float[np.ndarray, " n"], dict[int, str], set[str]]:
    """(numbers, {position: text of cells that are none}, what was done to read the others)."""
    values = np.full(cells.size, np.nan)
    broken: dict[int, str] = {}
    done: set[str] = set()
    known: dict[str, float | None] = {}
    dotted = decimal == "," and _all_grouped(cells)
    for position, cell in enumerate(cells):
        if cell is None or isinstance(cell, float) and cell != cell:
            continue
        if isinstance(cell, bool | np.bool_):
            broken[position] = str(cell)
            continue
        text = str(cell).strip().strip('"').strip()
        if text not in known:
            known[text] = _number_or_none(text, decimal, dotted, done)
        if (number := known[text]) is None:
            broken[position] = text
        else:
            values[position] = number
    return values, broken, done


def _number_or_none(text: str, decimal: str, dotted: bool, done: set[str]) -> float | None:
    """The number of a cell, NaN for what stands for a missing one, None for other text."""
    if text.lower() in MISSING:
        return float("nan")
    try:
        return _number(text, decimal, dotted, done)
    except ValueError:
        return None


def is_numbers(values: Float[np.ndarray, " n"], broken: dict[int, str]) -> bool:
    """Whether a column counts as numbers: at least as many numbers as other text, and not empty."""
    found = int(np.sum(~np.isnan(values)))
    return found > 0 and found >= len(broken)


def plain_number(text: str) -> bool:
    """Whether a cell of a first line is a number or empty, so that the line is no header."""
    try:
        _number(text.strip().strip('"'), ".", False, set())
    except ValueError:
        return text.strip().lower() in MISSING
    return True


def _all_grouped(cells: np.ndarray) -> bool:
    dots = [text for cell in cells if isinstance(cell, str) and "." in (text := cell.strip()) and "," not in text]
    return bool(dots) and all(_DOT_GROUPS.fullmatch(text) for text in dots)


def _number(text: str, decimal: str, dotted: bool, done: set[str]) -> float:
    if printed := _TENSOR.fullmatch(text):
        text = printed[1]
        done.add("printed tensors read as their number")
    factor = 1.0
    if text.endswith("%"):
        text, factor = text[:-1].strip(), 0.01
        done.add("percent signs read as hundredths")
    if _SPACED.search(text):
        text = _SPACED.sub("", text)
        done.add("thousands separators removed")
    if decimal == ",":
        if "," in text:
            text = text.replace(".", "").replace(",", ".")
            done.add("decimal commas read")
        elif dotted and _DOT_GROUPS.fullmatch(text):
            text = text.replace(".", "")
            done.add("thousands separators removed")
    elif "," in text and _COMMA_GROUPS.fullmatch(text):
        text = text.replace(",", "")
        done.add("thousands separators removed")
    if "_" in text:
        raise ValueError(text)
    return float(text) * factor if factor != 1.0 else float(text)
