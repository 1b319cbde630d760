"""Errors that say which argument is wrong, what was expected, what came and what to do.

Everything that a caller can get wrong raises one of these before anything is compiled. The command line turns
`InputError` into exit status 2 and one line on stderr.
"""

from __future__ import annotations


class OdescaleError(Exception):
    """Root of the errors that odescale raises on purpose."""


class InputError(OdescaleError, ValueError):
    """A bad argument: names it, what was expected, what came and the remedy, on one line."""

    def __init__(self, argument: str, *, expected: str, got: object, remedy: str) -> None:
        self.argument, self.expected, self.got, self.remedy = argument, expected, got, remedy
        super().__init__(f"{argument}: expected {expected}, got {_one_line(got)}; {remedy}")


class PrecisionError(InputError):
    """The number format cannot carry what was asked: float64 is off, or a tolerance is below the rounding error."""


class CheckpointError(InputError):
    """A checkpoint or saved result is missing, truncated, or belongs to another configuration."""


class OutsideTheoryError(InputError):
    """The arguments are valid numbers, but the theory does not hold there."""


class SolveError(OdescaleError, RuntimeError):
    """An integration did not finish: the text gives the time reached, the steps taken, the likely cause, the remedy."""


def _one_line(value: object, limit: int = 120) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
