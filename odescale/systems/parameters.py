"""Parameters of a system: names, domains, units, defaults, and the check that runs before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import equinox as eqx
import numpy as np
from jax.core import Tracer

from odescale.errors import InputError


class Parameter(eqx.Module):
    """A named number (or word) of a system.

    `domain` is the sentence that an error quotes, `accepts` the test behind it, `kind` in {float, int, bool, str}.
    """

    name: str = eqx.field(static=True)
    default: Any = eqx.field(static=True)
    domain: str = eqx.field(static=True)
    accepts: Callable[[Any], bool] = eqx.field(static=True)
    unit: str = eqx.field(static=True)
    meaning: str = eqx.field(static=True)
    kind: type = eqx.field(static=True, default=float)

    def check(self, value: Any) -> Any:
        """The value in its kind, or an `InputError` that quotes the domain. Traced values pass unchecked."""
        if is_traced(value):
            return value
        if self.kind in (float, int):
            return self._check_number(value)
        if self.kind is bool and isinstance(value, (bool, np.bool_)):
            return bool(value)
        if self.kind is str and isinstance(value, str) and self.accepts(value):
            return value
        raise self._error(value)

    def _check_number(self, value: Any) -> Any:
        if isinstance(value, (bool, str)) or value is None:
            raise self._error(value)
        array = np.asarray(value)
        if array.ndim != 0 or array.dtype.kind not in "iuf":
            raise self._error(value)
        number = float(array)
        if np.isnan(number) or not self.accepts(number):
            raise self._error(value)
        if self.kind is int and not (np.isfinite(number) and number == int(number)):
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
    return isinstance(value, Tracer)


def complete(parameters: tuple[Parameter, ...], given: Mapping[str, Any], system: str) -> dict[str, Any]:
    """All parameters of a system, checked: the given ones over the defaults; an unknown name is refused with a hint."""
    known = {parameter.name: parameter for parameter in parameters}
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise InputError(name, expected=f"a parameter of system {system}", got=name, remedy=hint)
    return {name: parameter.check(given.get(name, parameter.default)) for name, parameter in known.items()}


def positive(number: float) -> bool:
    """0 < x < inf."""
    return 0 < number < np.inf


def non_negative(number: float) -> bool:
    """0 <= x < inf."""
    return 0 <= number < np.inf


def at_least_one(number: float) -> bool:
    """1 <= x < inf."""
    return 1 <= number < np.inf
