"""The door of the library: public names that load on first use, each written once, in the stub beside the module.

A stub (`__init__.pyi`, `spectra.pyi`) is what type checkers read; the same lines tell at run time where a name lives.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


def open_door(module: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """(`__getattr__`, `__dir__`, `__all__`) of `module` from the `from ... import name as name` lines of its stub.

    A name that is also a room (`compare`, `plot`) stays that package, which can be called: see `callable_room`. **Errors**:
    `AttributeError` with the names that are close, for one that the stub does not have.
    """
    stub = Path(file).with_suffix(".pyi")
    homes: dict[str, tuple[str, str]] = {}
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            homes |= {alias.asname or alias.name: (str(node.module), alias.name) for alias in node.names}
    names = sorted(homes)

    def load(name: str) -> Any:
        if name not in homes:
            close = get_close_matches(name, names, n=3) or names
            raise AttributeError(f"module {module!r} has no attribute {name!r}; public names: {', '.join(close)}")
        place, inside = homes[name]
        room = f"{module}.{name}"
        is_module = place == module or place.startswith(f"{room}.")
        value = import_module(room) if is_module else getattr(import_module(place), inside)
        setattr(sys.modules[module], name, value)
        return value

    def names_of() -> list[str]:
        return sorted({*vars(sys.modules[module]), *names})

    return load, names_of, names


def callable_room(package: str, verb: str) -> None:
    """Makes a room callable as the verb of its name: `odescale.compare(...)` beside `odescale.compare.report`.

    **Arguments**: `package`: its `__name__`; `verb`: "module:function", imported at the first call.
    """
    place, _, name = verb.partition(":")

    class Room(ModuleType):
        def __call__(self, *arguments: Any, **options: Any) -> Any:
            return self.__wrapped__(*arguments, **options)

        @property
        def __wrapped__(self) -> Callable[..., Any]:
            """The verb, imported now; `inspect.signature` and `help` follow it."""
            return getattr(import_module(place), name)

    sys.modules[package].__class__ = Room
