"""What all verbs on systems have in common: the system of the options, its clock, the answer as words, JSON and a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from odescale.cli.output import draw, emit, require_picture
from odescale.cli.remarks import remarks_of
from odescale.clock import Clock
from odescale.errors import InputError
from odescale.systems.base import AbstractSystem
from odescale.systems.parameters import Parameter, complete
from odescale.systems.register import Entry, as_system, find_system

UNITS = {"steps": "SGD steps", "tau": "intrinsic time int eta dt"}


class Asked(NamedTuple):
    """What a verb works on.

    The entry of the register, the `settings` of --set, the `values` of --vary by name (members,), the system (of the first member),
    the end time in units of t, and the options.
    """

    entry: Entry
    settings: dict[str, Any]
    values: dict[str, Float[np.ndarray, " members"]]
    system: AbstractSystem
    t1: float
    options: argparse.Namespace

    def on_clock(self, t: Any) -> Any:
        """Times on --clock."""
        return np.asarray(self.system.clock.from_t(t, self.options.clock))


class Answer(NamedTuple):
    """What a verb found: entries of the JSON record, lines for people, what --plot draws, why it is no success."""

    record: dict[str, Any]
    lines: Sequence[str]
    picture: Any
    failure: str = ""


def verb(answer: Callable[[Asked], Answer]) -> Callable[[argparse.Namespace], int]:
    """Makes a command of a function: options to system, record and lines to output, exit status 1 with a `failure`."""

    @wraps(answer)
    def command(options: argparse.Namespace) -> int:
        require_picture(options.plot)
        if options.clock not in ("t", *UNITS):
            raise InputError("--clock", expected="t, steps or tau", got=options.clock, remedy="t is the default")
        entry = find_system(options.system)
        settings = settings_of(options.set, entry.parameters, entry.name)
        values = values_of(options.vary, entry.parameters, entry.name, settings) if "vary" in options else {}
        ends = [{name: float(column[i]) for name, column in values.items()} for i in ((0, -1) if values else (0,))]
        systems = [as_system(entry.build, **settings | member) for member in ends]
        system, t1 = systems[0], end_time(options, entry, systems[0].clock)
        if not np.allclose(
            [one.clock.from_t(t1, options.clock) for one in systems], system.clock.from_t(t1, options.clock)
        ):
            raise InputError(
                "--clock", expected="t, since the members differ on others", got=options.clock, remedy="leave it out"
            )
        found = answer(Asked(entry, settings, values, system, t1, options))
        draw(found.picture, options.plot)
        unit = UNITS.get(options.clock, f"one unit of t = {system.clock.steps_per_unit:g} SGD steps")
        common = {"system": system.label, "parameters": system.summary(), "time_unit": unit}
        (further, remarks), *last = [remarks_of(one, t1) for one in systems]
        if last:  # what holds at both ends of a range
            further = {"remarks": {"first": further, "last": last[0][0]}}
            remarks = [
                f"{end} member: {line}" for end, part in (("first", remarks), ("last", last[0][1])) for line in part
            ]
        lines = [f"{system.label}: {system.clock.describe()}", *remarks, *found.lines]
        emit(common | found.record | further, "\n".join(lines), options.json)
        if found.failure:
            print(f"odescale: {found.failure}", file=sys.stderr)
        return int(bool(found.failure))

    return command


def end_time(options: argparse.Namespace, entry: Entry, clock: Clock) -> float:
    """--t1 in units of t, or the end time of the register: that of a run where the verb trains."""
    if options.t1 is None:
        return entry.run_t1 if "seeds" in options and entry.run_t1 is not None else entry.t1
    if not (np.isfinite(options.t1) and options.t1 > 0):
        raise InputError("t1", expected="a positive finite time", got=options.t1, remedy="e.g. --t1 30")
    return float(np.asarray(clock.to_t(options.t1, options.clock)))


def settings_of(pairs: Sequence[str], parameters: Sequence[Parameter], system: str) -> dict[str, Any]:
    """`--set name=value` pairs as checked parameters; unknown names and bad values are refused in one line."""
    given: dict[str, Any] = {}
    for pair in pairs:
        name, text = named_value("--set", pair, "NAME=VALUE", "learning_rate=0.1")
        if name in given:
            raise InputError(name, expected="one value", got="two --set of it", remedy="keep one")
        given[name] = parameter_of(name, parameters, system).parse(text)
    return given


def parameter_of(name: str, parameters: Sequence[Parameter], system: str) -> Parameter:
    """The parameter of that name; others are refused with a hint."""
    for parameter in parameters:
        if parameter.name == name:
            return parameter
    complete(tuple(parameters), {name: None}, system)
    raise AssertionError(name)


def values_of(
    texts: Sequence[str], parameters: Sequence[Parameter], system: str, settings: dict[str, Any]
) -> dict[str, Float[np.ndarray, " members"]]:
    """Name -> (members,) of `--vary NAME=LO:HI:N[:log]`, checked against names, `settings` and each other."""
    form, found = "NAME=LO:HI:N or NAME=LO:HI:N:log", {}
    for text in texts:
        name, rest = named_value("--vary", text, form, "learning_rate=0.05:0.5:8")
        parameter_of(name, parameters, system)
        for other, where in ((settings, "--set"), (found, "--vary")):
            if name in other:
                raise InputError(name, expected="one --vary of it alone", got=f"a {where} too", remedy="drop one")
        try:
            low, high, number, *spacing = rest.split(":")
            space = {(): np.linspace, ("log",): np.geomspace}[tuple(spacing)]
            ends, count = (float(low), float(high)), int(number)
            if not (np.isfinite(ends).all() and 1 <= count <= 100_000 and (space is np.linspace or min(ends) > 0)):
                raise ValueError
        except (KeyError, ValueError):
            raise InputError(
                "--vary", expected=f"{form}, finite, above 0 with log", got=text, remedy="e.g. learning_rate=0.05:0.5:8"
            ) from None
        found[name] = space(*ends, count)
    sizes = {name: column.size for name, column in found.items()}
    if len(set(sizes.values())) > 1:
        raise InputError("--vary", expected="equally many values of each", got=sizes, remedy="they are varied together")
    return found


def named_value(option: str, text: str, form: str, example: str) -> tuple[str, str]:
    """(name, value) of NAME=VALUE; `InputError` for anything else."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip():
        raise InputError(option, expected=form, got=text, remedy=f"e.g. {option} {example}")
    return name.strip(), value
