"""Names of the shipped theories and the functions that derive them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from odescale.errors import InputError
from odescale.symbolic.record import Derivation

_FIRST = ("attention", "mean_field", "peaked", "frontier", "kernel", "spectral", "schedule")
_FOUND = sorted(script.parent.name for script in Path(__file__).parent.glob("*/script.py"))
NAMES = (*_FIRST, *(name for name in _FOUND if name not in _FIRST))
"""Every folder with a script, in the order in which they were written."""


def derive_function(name: str) -> Callable[[], Derivation]:
    """The function that derives the theory `name` from its first line; `InputError` for an unknown name."""
    if name not in NAMES:
        raise InputError("name", expected=f"one of {', '.join(NAMES)}", got=name, remedy="pick a listed derivation")
    return import_module(f"derivations.{name}.script").derive
