"""Errors that say which argument is wrong, what was expected, what came and what to do.

Everything that a caller can get wrong raises one of these before anything is compiled. The command line turns
`InputError` into exit status 2 and one line on stderr.
"""

from __future__ import annotations

import math
from typing import Any


class OdescaleError(Exception):
    """Root of the errors that odescale raises on purpose."""


class InputError(OdescaleError, ValueError):
    """A bad argument: names it, what was expected, what came and the remedy, on one line."""

    def __init__(self, argument: str, *, expected: str, got: object, remedy: str) -> None:
        self.argument, self.expected, self.got, self.remedy = argument, expected, got, remedy
        super().__init__(f"{argument}: expected {expected}, got {_one_line(got)}; {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        """By its parts, what came as text: an exception from another process would else be made of its message alone."""
        return _from_parts, (type(self), self.argument, self.expected, _one_line(self.got), self.remedy)


def _from_parts(kind: type[InputError], argument: str, expected: str, got: str, remedy: str) -> InputError:
    return kind(argument, expected=expected, got=got, remedy=remedy)


class PrecisionError(InputError):
    """The number format cannot carry what was asked: float64 is off, or a tolerance is below the rounding error."""


class CheckpointError(InputError):
    """A checkpoint or saved result is missing, truncated, or belongs to another configuration."""


class OutsideTheoryError(InputError):
    """The arguments are valid numbers, but the theory does not hold there."""


class SolveError(OdescaleError, RuntimeError):
    """An integration did not finish: the text gives the time reached, the steps taken, the likely cause, the remedy."""


MOST_DRAWS = 1_000_000
"""Resampled curves of a bootstrap: more would only fill memory."""


def whole(name: str, value: Any, least: int = 1, most: float = math.inf, remedy: str | None = None) -> int:
    """The integer behind `value`, a number or an array of one, from `least` to `most`; else an `InputError` by its name."""
    number = _float(value)
    if not math.isfinite(number) or number != int(number) or not least <= number <= most:
        upper = "" if math.isinf(most) else f", at most {most:g}"
        raise InputError(
            name, expected=f"a whole number >= {least}{upper}", got=value if math.isnan(number) else f"{number:g}",
            remedy=remedy or f"pass {least} or more",
        )  # fmt: skip
    return int(number)


def require_number(name: str, value: Any, least: float = 0.0, below: float = math.inf, *, open_: bool = False) -> float:
    """A finite number in [least, below), or in (least, below) where `open_`; else an `InputError` by its name."""
    number = _float(value)
    if not (math.isfinite(number) and least <= number < below) or (open_ and number == least):
        lower = "" if math.isinf(least) else f" {'>' if open_ else '>='} {least:g}"
        upper = "" if math.isinf(below) else f" and below {below:g}" if lower else f" below {below:g}"
        raise InputError(name, expected=f"a finite number{lower}{upper}", got=value, remedy="mend it")
    return number


def _float(value: Any) -> float:
    """The float of a number, NaN for what is none: words and truth values included."""
    if isinstance(value, bool | str):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _one_line(value: object, limit: int = 120) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
