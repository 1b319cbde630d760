"""`odescale sweep`: one system at many values of a parameter, compiled once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from odescale.cli.output import table
from odescale.cli.verbs import Answer, Asked, end_time, named_value, parameter_of, verb
from odescale.errors import InputError
from odescale.solve.codes import explain
from odescale.solve.integrate import FINISHED
from odescale.solve.sweep import sweep
from odescale.systems.register import as_system

FORM = "NAME=LO:HI:N or NAME=LO:HI:N:log"


@verb
def sweep_values(asked: Asked) -> Answer:
    """The loss at the end and its exponents, one row for each member; a member that did not finish makes the status 1."""
    options = asked.options
    values = varied(options.vary)
    for name in values:
        parameter_of(name, asked.entry.parameters, asked.entry.name)
        if name in asked.settings:
            raise InputError(name, expected="--set or --vary", got="both", remedy="drop one")
    _one_clock(asked, values)
    found = sweep(
        asked.entry.build, asked.t1, values, points=options.points or asked.entry.points, rtol=options.rtol,
        solver=options.solver, **asked.settings,
    )  # fmt: skip
    if options.save:
        found.save(options.save)
    last = [int(np.flatnonzero(valid)[-1]) if valid.any() else 0 for valid in found.valid]
    t, codes = asked.on_clock(found.t), found.code.tolist()
    columns = {**values, options.clock: t[last]}
    for name, array in (("loss", found.loss), ("p", found.exponent), ("q", found.index), ("error", found.error)):
        if array is not None:
            columns[name] = array[np.arange(len(last)), last]
    bad = [number for number, code in enumerate(codes) if code not in FINISHED]
    lines = [
        f"{len(codes)} members by {found.meta['solver']}, each at the last time it reached",
        *table(
            (*columns, "code"), ([*(column[i] for column in columns.values()), codes[i]] for i in range(len(codes)))
        ),
        *(f"code {code}: {explain(code)}" for code in sorted({*codes} - {0})),
    ]
    record = {name: getattr(found, name) for name in ("loss", "exponent", "index", "observables", "error", "valid")}
    record |= {"t": t, "code": max(codes), "codes": codes, "members": values, "solver": found.meta["solver"]}
    failure = f"{len(bad)} of {len(codes)} members did not finish: see their codes" if bad else ""
    return Answer(record | {"parameters": found.meta["parameters"]}, lines, found, failure)


def varied(texts: Sequence[str]) -> dict[str, Float[np.ndarray, " members"]]:
    """Name -> (members,) of all `--vary NAME=LO:HI:N[:log]`. **Raises** `InputError`."""
    found: dict[str, Any] = {}
    for text in texts:
        name, rest = named_value("--vary", text, FORM, "learning_rate=0.05:0.5:8")
        low, high, number, *spacing = [*rest.split(":"), "", "", ""][: max(3, rest.count(":") + 1)]
        try:
            space = {(): np.linspace, ("log",): np.geomspace}[tuple(spacing)]
            ends, count = (float(low), float(high)), int(number)
            if not (np.isfinite(ends).all() and 1 <= count <= 100_000 and (space is np.linspace or min(ends) > 0)):
                raise ValueError
        except (KeyError, ValueError):
            raise InputError(
                "--vary", expected=f"{FORM}, finite, above 0 with log", got=text, remedy="e.g. learning_rate=0.05:0.5:8"
            ) from None
        if name in found:
            raise InputError(name, expected="one range", got="two --vary of it", remedy="keep one")
        found[name] = space(*ends, count)
    sizes = {name: column.size for name, column in found.items()}
    if len(set(sizes.values())) > 1:
        raise InputError("--vary", expected="equally many values of each", got=sizes, remedy="they are varied together")
    return found


def _one_clock(asked: Asked, values: dict[str, Float[np.ndarray, " members"]]) -> None:
    """Refuses a --clock on which the members do not share their times."""
    if asked.options.clock == "t":
        return
    for name, column in values.items():
        for value in (column.min(), column.max()):
            clock = as_system(asked.entry.build, **asked.settings | {name: value}).clock
            if not np.isclose(end_time(asked.options, asked.entry, clock), asked.t1, rtol=1e-12) or not np.isclose(
                float(clock.from_t(asked.t1, asked.options.clock)), float(asked.on_clock(asked.t1)), rtol=1e-12
            ):
                raise InputError("--clock", expected=f"t, since {name} changes the others", got=asked.options.clock,
                                 remedy="leave it out")  # fmt: skip
