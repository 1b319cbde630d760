"""Steps of a log that counts something else: rows, epochs, samples, tokens or FLOP, with the conversion said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from odescale.errors import InputError, require_number
from odescale.logs.columns import NAMES, find_column, flop_unit, plain, tail
from odescale.logs.table import Table, refuse

# option -> (names of the column that it is a unit of, what one of its units is called, its flag)
CLOCKS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "steps_per_row": (("row",), "row", "--steps-per-row"),
    "steps_per_epoch": (
        ("epoch", "epochs", "epochnum", "nepoch", "nepochs", "trainepoch", "currentepoch"), "epoch", "--steps-per-epoch",
    ),
    "batch_samples": (
        ("samples", "consumedsamples", "consumedtrainsamples", "samplesseen", "seensamples", "numsamples", "nsamples",
         "trainsamples", "examples", "examplesseen", "numexamples", "sequences"),
        "sample", "--batch-samples",
    ),
    "batch_tokens": (NAMES["tokens"], "token", "--batch-tokens"),
    "step_flops": (NAMES["flops"], "FLOP", "--step-flops"),
}  # fmt: skip
PER_UNIT = ("steps_per_row", "steps_per_epoch")
"""Options in steps per unit of the column; the others are units per step."""


def check_clocks(clocks: dict[str, float | None]) -> None:
    """Refuses what is no positive number, and two clocks at once."""
    for name, value in clocks.items():
        if value is not None:
            require_number(name, value, open_=True)
    given = [name for name, value in clocks.items() if value is not None]
    if len([name for name in given if name != "batch_tokens"]) > 1:
        raise InputError(
            given[0],
            expected="one clock of the log",
            got=", ".join(given),
            remedy="keep the one whose column counts steps",
        )


def counted_in_steps(
    table: Table, given: dict[str, Any], clocks: dict[str, float | None], found: str | None
) -> tuple[Table, str | None, list[str]]:
    """(table, its column of SGD steps or None, what is said). `found`: the column that has a step's name, or None.

    A clock that the caller names (`step="tokens"`) or gives a unit of (`batch_tokens=524288`) is converted: steps = column /
    unit, or column times steps per unit. Tokens, samples and FLOP are never taken for steps as they stand.
    """
    named = given.get("step")
    option = next((name for name, value in clocks.items() if value is not None and name != "batch_tokens"), None)
    if isinstance(named, str):
        column = find_column(table, "step", named)
        kind = clock_of(column)
        if option not in (None, kind):
            raise InputError(
                option or "", expected=f"to be left out with step={column!r}", got=clocks[option or ""],
                remedy=f"it converts a column of {CLOCKS[option or ''][1]}s",
            )  # fmt: skip
    else:
        if option is None and clocks.get("batch_tokens") is not None and found is None:
            kind, column = "batch_tokens", _column_of(table, "batch_tokens")
        else:
            kind, column = option, None if option is None else _column_of(table, option)
        if option is not None and column is None:
            raise InputError(
                option, expected=f"a column of {CLOCKS[option][1]}s in {table.file}", got=", ".join(list(table.columns)[:8]),
                remedy='leave it out, or name the column: step="..."',
            )  # fmt: skip
        if option is not None and found not in (None, "row"):
            raise InputError(
                option, expected=f"to be left out: {table.file} counts steps in {found!r}", got=clocks[option],
                remedy=f"leave it out, or say step={column!r}",
            )  # fmt: skip
        if column is None:
            return table, found, []
    if kind is None or table.columns[column].dtype.kind == "O":
        return table, column, []
    unit = clocks.get(kind)
    what, flag = CLOCKS[kind][1:]
    values = table.columns[column]
    if unit is None:
        if kind in PER_UNIT:
            said = (
                []
                if kind == "steps_per_row"
                else [f"one unit of the step is an epoch, not an SGD step: {flag} K converts it"]
            )
            return table, column, said
        raise refuse(
            "a column of SGD steps", f"{table.file}, step={column!r} in {what}s",
            f"say how many {what}s a step is: {kind}=... ({flag} N)",
        )  # fmt: skip
    scale = float(unit) if kind in PER_UNIT else (flop_unit(column) if kind == "step_flops" else 1.0) / float(unit)
    shift, why = 0.0, ""
    if kind == "steps_per_epoch" and _ends_of_epochs(values):
        shift, why = 1.0, "; epochs count from 0 and a row stands at the end of its epoch"
    word = f"{column} * {kind}" if kind in PER_UNIT else f"{column} / {kind}"
    steps = (values + shift) * scale
    said = [f"steps = {word}, {kind} = {float(unit):g}{why}"]
    return replace(table, columns=table.columns | {word: steps}), word, said


def clock_of(column: str) -> str | None:
    """The option that converts a column of this name into steps; None for steps themselves and for what counts nothing."""
    names = (plain(column), tail(column))
    return next((option for option, (known, _, _) in CLOCKS.items() if any(name in known for name in names)), None)


def _column_of(table: Table, option: str) -> str | None:
    return next(
        (name for name in table.columns if clock_of(name) == option and table.columns[name].dtype.kind == "f"), None
    )


def _ends_of_epochs(values: np.ndarray) -> bool:
    """Whole numbers from 0, one row each: what Keras writes at the end of its epochs."""
    finite = values[np.isfinite(values)]
    whole = bool((finite == np.round(finite)).all())
    return whole and finite.size > 1 and finite[0] == 0 and np.unique(finite).size == finite.size


def remedies(table: Table) -> str:
    """What to say in a log without steps: every clock that it has, with the option that converts it."""
    found = {clock_of(name): name for name in reversed(list(table.columns)) if table.columns[name].dtype.kind == "f"}
    said = []
    if "steps_per_epoch" in found:
        column = found["steps_per_epoch"]
        said.append(f"steps_per_epoch=K (--steps-per-epoch K) for {column!r}")
    for kind in ("batch_tokens", "batch_samples", "step_flops"):
        if kind in found:
            said.append(f"{kind}=N ({CLOCKS[kind][2]} N) for {found[kind]!r}")
    said.append('step="row" to count rows (--step row), with steps_per_row=K where a row is logged every K steps')
    return ", or ".join(said)
