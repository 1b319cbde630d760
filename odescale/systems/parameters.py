"""Parameters of a system: names, domains, units, defaults, and the check that runs before anything is compiled."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf, isfinite, isnan
from typing import Any, TypeVar

from odescale.errors import InputError

Build = TypeVar("Build", bound=Callable)


@dataclass(frozen=True)
class Parameter:
    """A named number (or word) of a system.

    `domain` is the sentence that an error quotes, `accepts` the test behind it, `kind` in {float, int, bool, str}.
    """

    name: str
    default: Any
    domain: str
    accepts: Callable[[Any], bool]
    unit: str
    meaning: str
    kind: type = float

    def check(self, value: Any) -> Any:
        """The value in its kind, or an `InputError` that quotes the domain. Traced values pass unchecked."""
        if is_traced(value):
            return value
        if self.kind in (float, int):
            return self._check_number(value)
        if self.kind is bool and (isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")):
            return bool(value)
        if self.kind is str and isinstance(value, str) and self.accepts(value):
            return value
        raise self._error(value)

    def _check_number(self, value: Any) -> Any:
        if isinstance(value, (bool, str)) or value is None:
            raise self._error(value)
        import numpy as np

        array = np.asarray(value)
        if array.ndim != 0 or array.dtype.kind not in "iuf":
            raise self._error(value)
        number = float(array)
        if isnan(number) or not self.accepts(number):
            raise self._error(value)
        if self.kind is int and not (isfinite(number) and number == int(number)):
            raise self._error(value)
        return int(number) if self.kind is int else value

    def parse(self, text: str) -> Any:
        """The value behind the text of `--set name=value`."""
        text = text.strip()
        if self.kind is str:
            return self.check(text)
        if self.kind is bool:
            words = {"true": True, "false": False, "on": True, "off": False, "1": True, "0": False}
            if text.lower() not in words:
                raise self._error(text)
            return words[text.lower()]
        try:
            number = float(text)
        except ValueError:
            raise self._error(text) from None
        return self.check(number)

    def _error(self, value: Any) -> InputError:
        return InputError(self.name, expected=self.domain, got=value, remedy=f"the default is {self.default}")


def is_traced(value: Any) -> bool:
    """True for a value that is only known inside a JAX transformation (so it cannot be checked)."""
    # Nothing is traced where JAX has not been imported, and a table of parameters is read without it.
    core = sys.modules.get("jax.core")
    return core is not None and isinstance(value, core.Tracer)


def complete(parameters: tuple[Parameter, ...], given: Mapping[str, Any], system: str) -> dict[str, Any]:
    """All parameters of a system, checked: the given ones over the defaults; an unknown name is refused with a hint."""
    known = {parameter.name: parameter for parameter in parameters}
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise InputError(name, expected=f"a parameter of system {system}", got=name, remedy=hint)
    return {name: parameter.check(given.get(name, parameter.default)) for name, parameter in known.items()}


def shown(parameters: Sequence[Parameter]) -> Callable[[Build], Build]:
    """Decorator of a builder that takes its parameters as `**given`: its signature shows them with their defaults."""

    def with_signature(build: Build) -> Build:
        own = inspect.signature(build)
        named = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        taken = {p.name for p in named}
        from_table = [
            inspect.Parameter(p.name, inspect.Parameter.KEYWORD_ONLY, default=p.default, annotation=p.kind.__name__)
            for p in parameters
            if p.name not in taken
        ]
        build.__signature__ = own.replace(parameters=[*named, *from_table])  # type: ignore[attr-defined]
        return build

    return with_signature


def parameters_of(build: Callable) -> tuple[Parameter, ...]:
    """The table of a builder that was written without one: its keyword arguments that have a number, word or flag as default.

    Their domains are then the builder's own business, and the table says so.
    """
    found = []
    for p in inspect.signature(build).parameters.values():
        if isinstance(p.default, bool | int | float | str) and p.kind is not inspect.Parameter.VAR_KEYWORD:
            kind = type(p.default)
            words = {bool: "true or false", str: "a word", int: "an integer", float: "a number"}
            found.append(Parameter(p.name, p.default, words[kind], lambda x: True, "1", f"of {build.__name__}", kind))
        elif p.default is inspect.Parameter.empty and p.kind not in (
            inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL,
        ):  # fmt: skip
            raise InputError(
                p.name, expected=f"a default for every argument of the builder {build.__name__}", got="none",
                remedy="a system must solve with its defaults alone",
            )  # fmt: skip
    return tuple(found)


def schedule_texts(**schedules: Any) -> dict[str, str]:
    """The schedules that were given as text, by name; what is neither text nor a callable s(t) nor None is refused."""
    for name, value in schedules.items():
        if not (value is None or isinstance(value, str) or callable(value)):
            raise InputError(
                name, expected="a callable s(t) or its text", got=value, remedy=f"e.g. {name}='cosine:30:0.1'"
            )
    return {name: value for name, value in schedules.items() if isinstance(value, str)}


def positive(number: float) -> bool:
    """0 < x < inf."""
    return 0 < number < inf


def non_negative(number: float) -> bool:
    """0 <= x < inf."""
    return 0 <= number < inf


def at_least_one(number: float) -> bool:
    """1 <= x < inf."""
    return 1 <= number < inf
