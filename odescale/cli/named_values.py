"""NAME=VALUE of the command line."""

from __future__ import annotations

from odescale.errors import InputError


def named_value(option: str, text: str, form: str, example: str) -> tuple[str, str]:
    """(name, value) of NAME=VALUE; `InputError` for anything else."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise InputError(option, expected=form, got=text, remedy=f"e.g. {option} {example}")
    return name.strip(), value
