"""`odescale solve`: the trajectory of a system as a table, a file, a picture."""

from __future__ import annotations

import numpy as np

from odescale.cli.output import table
from odescale.cli.verbs import Answer, Asked, effort, verb
from odescale.solve.integrate import integrate

ROWS = 16


@verb
def solve(asked: Asked) -> Answer:
    """L, p and q at the output times, and what the theory says of their error."""
    options = asked.options
    with effort(asked.system):
        found = integrate(
            asked.system, asked.t1, points=options.points or asked.entry.points, rtol=options.rtol,
            solver=options.solver, accuracy=options.accuracy, precision=options.precision, max_steps=options.max_steps,
        )  # fmt: skip
    if options.save:
        found.save(options.save)
    t, valid = asked.on_clock(found.t), np.flatnonzero(found.valid)
    columns = {options.clock: t, "loss": found.loss, "p": found.exponent, "q": found.index}
    if found.error is not None:
        columns["error"] = found.error
    picks = valid[np.unique(np.linspace(0, valid.size - 1, ROWS).round().astype(int))]
    ladder = found.meta["ladder"]
    lines = [
        "solved by " + " then ".join(f"{rung['solver']} ({rung['accepted']} steps)" for rung in ladder),
        *table(columns, ([column[i] for column in columns.values()] for i in picks)),
    ]
    if int(found.code) != 0:
        lines.append(f"code {int(found.code)}: {ladder[-1]['meaning']}")
    record = {name: getattr(found, name) for name in ("loss", "exponent", "index", "observables", "error", "valid")}
    return Answer(record | {"t": t, "code": int(found.code), "solver": ladder}, lines, found)
