"""`odescale sweep`: one system at many values of a parameter, compiled once; or a plan, into a store."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from odescale.cli.output import table
from odescale.cli.verbs import Answer, Asked, verb
from odescale.errors import InputError
from odescale.solve.codes import explain
from odescale.solve.integrate import FINISHED
from odescale.sweeps.sweep import sweep


def sweep_command(options: argparse.Namespace) -> int:
    """A system with its --vary, or a plan."""
    if options.system.endswith(".toml"):
        from odescale.cli.plan import sweep_plan

        return sweep_plan(options)
    for name in ("executor", "address"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name}", expected="a plan for it", got=options.system, remedy="see docs/sweeps.md")
    if not options.vary:
        raise InputError(
            "--vary",
            expected="a range of values",
            got="none",
            remedy="e.g. --vary learning_rate=0.05:0.5:8, or a PLAN.toml",
        )
    return sweep_values(options)


@verb
def sweep_values(asked: Asked) -> Answer:
    """The loss at the end and its exponents, one row for each member; a member that did not finish makes the status 1."""
    options, values = asked.options, asked.values
    given: dict[str, Any] = {
        "points": options.points or asked.entry.points, "rtol": options.rtol, "solver": options.solver,
        "max_steps": options.max_steps or asked.system.integration.most_steps,
    }  # fmt: skip
    if asked.entry.fields is None:
        found = sweep(asked.entry.build, asked.t1, values, **given, **asked.settings)
    else:  # built once, its own numbers varied: the first member's over what was asked for it is the unit of the field
        unit = {name: float(getattr(asked.system, name)) / column[0] for name, column in values.items()}
        found = sweep(asked.system, asked.t1, {name: unit[name] * column for name, column in values.items()}, **given)
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
