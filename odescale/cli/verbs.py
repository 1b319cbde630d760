"""What all verbs on systems have in common: the system of the options, its clock, the answer as words, JSON and a picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from odescale.cache.programs import lightly
from odescale.cli.named_values import named_value
from odescale.cli.output import draw, emit, require_picture
from odescale.cli.remarks import remarks_of
from odescale.cli.thresholds import thresholds
from odescale.clock import Clock
from odescale.errors import InputError, SolveError, require_number
from odescale.plain_text import one_line
from odescale.precision import check_tolerance, resolve_dtype
from odescale.solve.integrate import require_choice
from odescale.solve.solvers import require_solver
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
        _check_options(options)
        entry = find_system(options.system)
        settings = settings_of(options.set, entry.parameters, entry.name)
        values = values_of(options.vary, entry.parameters, entry.name, settings) if "vary" in options else {}
        _require_sweepable(entry, values)
        ends = [{name: float(column[i]) for name, column in values.items()} for i in ((0, -1) if values else (0,))]
        systems = [as_system(entry.build, **settings | member) for member in ends]
        system, t1 = systems[0], end_time(options, entry, systems[0].clock)
        if not np.allclose(
            [one.clock.from_t(t1, options.clock) for one in systems], system.clock.from_t(t1, options.clock)
        ):
            raise InputError(
                "--clock", expected="t, since the members differ on others", got=options.clock, remedy="leave it out"
            )
        # Asked first: an integration that fails is then told apart from one that could not succeed.
        (further, remarks), *last = [remarks_of(one, t1) for one in systems]
        try:
            found = answer(Asked(entry, settings, values, system, t1, options))
        except SolveError as error:
            reasons = further["coverage"]["reasons"]
            raise SolveError(f"{error}; before the run: {'; '.join(reasons)}" if reasons else str(error)) from error
        draw(found.picture, options.plot)
        unit = UNITS.get(options.clock, f"one unit of t = {system.clock.unit}")
        common = {"system": system.label, "parameters": system.summary(), "time_unit": unit}
        if last:  # what holds at both ends of a range
            further = {"remarks": {"first": further, "last": last[0][0]}}
            remarks = [
                f"{end} member: {line}" for end, part in (("first", remarks), ("last", last[0][1])) for line in part
            ]
        lines = [f"{system.label}: {system.clock.describe()}", *remarks, *found.lines]
        emit(common | found.record | further, "\n".join(lines), options.json)
        if found.failure:
            print(f"odescale: {one_line(found.failure)}", file=sys.stderr)
        return int(bool(found.failure))

    return command


FEW_NUMBERS = 200
"""Of a state whose solve takes milliseconds, however it is compiled."""


def effort(system: AbstractSystem) -> AbstractContextManager[None]:
    """The least of the compiler's for one solve of few numbers, all of it otherwise."""
    small = sum(np.size(leaf) for leaf in jax.tree_util.tree_leaves(system.initial_state())) <= FEW_NUMBERS
    return lightly() if small and not system.integration.over_nodes else nullcontext()


def _check_options(options: argparse.Namespace) -> None:
    """Refuses what no system could honour, before one is built: that may take as long as an answer."""
    require_picture(options.plot)
    if options.clock not in ("t", *UNITS):
        raise InputError("--clock", expected="t, steps or tau", got=options.clock, remedy="t is the default")
    if options.t1 is not None and not (np.isfinite(options.t1) and options.t1 > 0):
        raise InputError("t1", expected="a positive finite time", got=options.t1, remedy="e.g. --t1 30")
    if "solver" in options:
        require_solver(options.solver)
    dtype = resolve_dtype(options.precision, "the command") if "precision" in options else np.dtype("float64")
    if "accuracy" in options:
        require_choice("accuracy", options.accuracy, ("fast", "check"))
    if "rtol" in options and options.rtol is not None:
        check_tolerance(options.rtol, dtype)
    if "threshold" in options:
        thresholds(options.threshold)
    if options.__dict__.get("points") == 1:
        raise InputError("points", expected="a whole number >= 2", got=1, remedy="200 is a good value")
    tolerances(options.__dict__.get("tolerance") or [])


def _require_sweepable(entry: Entry, values: dict[str, Any]) -> None:
    """Refuses a sweep over what only a builder can change, before the system is built."""
    kinds = {parameter.name: parameter.kind for parameter in entry.parameters}
    for name, column in values.items():
        if kinds[name] is not float or (entry.fields is not None and name not in entry.fields):
            known = entry.fields or tuple(name for name, kind in kinds.items() if kind is float)
            raise InputError("--vary", expected=f"a number that {entry.name} keeps its shapes and tables under: "
                             f"{', '.join(known)}", got=name, remedy="solve once for each value")  # fmt: skip
        if entry.fields is not None and not min(column) > 0:
            raise InputError("--vary", expected=f"values of {name} above 0", got=float(min(column)),
                             remedy="0 stands for the default, which is no value to begin from")  # fmt: skip


def end_time(options: argparse.Namespace, entry: Entry, clock: Clock) -> float:
    """--t1 in units of t, or the end time of the register: that of a run where the verb trains."""
    if options.t1 is None:
        return entry.run_t1 if "seeds" in options and entry.run_t1 is not None else entry.t1
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
            found[name] = range_of(rest, 100_000)
        except (KeyError, ValueError):
            raise InputError(
                "--vary", expected=f"{form}, finite, above 0 with log", got=text, remedy="e.g. learning_rate=0.05:0.5:8"
            ) from None
    sizes = {name: column.size for name, column in found.items()}
    if len(set(sizes.values())) > 1:
        raise InputError("--vary", expected="equally many values of each", got=sizes, remedy="they are varied together")
    return found


def range_of(text: str, most: int) -> Float[np.ndarray, " n"]:
    """The values of LO:HI:N or LO:HI:N:log, at most so many; `KeyError` or `ValueError` for anything else."""
    low, high, number, *spacing = text.split(":")
    space = {(): np.linspace, ("log",): np.geomspace}[tuple(spacing)]
    ends, count = (float(low), float(high)), int(number)
    if not (np.isfinite(ends).all() and 1 <= count <= most and (space is np.linspace or min(ends) > 0)):
        raise ValueError
    return space(*ends, count)


def tolerances(texts: list[str]) -> float | dict[str, float] | None:
    """One number for the loss, or name -> number of --tolerance NAME=VALUE; None for the theory's own."""
    found: dict[str, float] = {}
    for text in texts:
        name, value = named_value("--tolerance", text, "NAME=VALUE", "overlap=0.05") if "=" in text else ("", text)
        try:
            found[name] = float(value)
        except ValueError:
            raise InputError("--tolerance", expected="a number", got=text, remedy="0.05 is good") from None
        require_number("--tolerance", found[name], below=1.0, open_=True)
    if "" in found and len(found) > 1 or len(found) < len(texts):
        raise InputError("--tolerance", expected="one number, or one for each quantity", got=texts, remedy="drop one")
    return found.get("", found or None)
