"""Escapes from the one-third law: curves against time, one line per escape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from odescale.errors import InputError
from odescale.plot.style import CYCLE, own_axes, shared_style

NAMES = {"loss": "excess loss  L", "error": "share of inputs with another largest logit than the teacher's"}
DASHES = ("-", "--", "-.")
LIFT = 1.6
"""How far above the first curve its slope is drawn: on the curve it would be covered."""


def plot_escapes(
    table: Any, axes: Axes | None = None, *, observable: str = "loss", names: Sequence[str] | None = None
) -> Axes:
    """`observable` ("loss" or "error") of the rows of an `EscapeTable` against SGD steps, both axes logarithmic.

    `names` of the rows to draw (default all), in the order of colours and dashes. A dotted line of slope -1/3 runs
    beside the end of the first curve. Steps are t times `clock.steps_per_unit`. Returns the axes. Raises `InputError`.
    """
    if observable not in NAMES:
        raise InputError("observable", expected='"loss" or "error"', got=observable, remedy="pass one of the two")
    by_name = {row.name: row for row in table.rows}
    rows = [by_name[name] for name in (by_name if names is None else names) if name in by_name]
    if not rows:
        raise InputError("names", expected="rows of the table", got=names, remedy="use the names of its rows")
    with shared_style():
        axes = own_axes(axes, 8.4, 5.2)
        axes.set(xscale="log", yscale="log", ylabel=NAMES[observable])
        for place, row in enumerate(rows):
            steps, values = np.asarray(row.curve.system.clock.steps(row.curve.t)), row.curve.values(observable)
            shown = (values > 0) & (steps >= 1)
            axes.plot(steps[shown], values[shown], DASHES[place // len(CYCLE) % len(DASHES)],
                      color=CYCLE[place % len(CYCLE)], label=row.name)  # fmt: skip
        first = rows[0].curve
        steps, end = np.asarray(first.system.clock.steps(first.t)), float(first.values(observable)[-1])
        reference = steps[steps > 1e-4 * steps[-1]]
        axes.plot(reference, LIFT * end * (reference / steps[-1]) ** (-1 / 3), ":", color="#000000", label="slope -1/3")
        axes.set_xlabel("SGD steps")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return axes
