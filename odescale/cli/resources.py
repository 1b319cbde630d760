"""`odescale plan`: what to train under budgets, by the law of a table or by given numbers, as a page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from odescale.analysis.budget.assumptions import Assumptions
from odescale.analysis.budget.planner import plan
from odescale.analysis.tables.fit import fit_table
from odescale.cli.laws import pairs_of, rows_of, tables_of
from odescale.cli.output import draw, emit, require_picture
from odescale.compare.report import write_report
from odescale.errors import InputError

FORM = "chinchilla"
EXAMPLE = "E=1.82,A=482,B=2085,alpha=.348,beta=.366"
FACTORS = ("token_factor", "speed_factor")


def plan_run(options: argparse.Namespace) -> int:
    """The plan, its binding budgets and what more of each is worth; the page beside."""
    require_picture(options.plot)
    budgets = numbers_of(options.budget, "--budget", "NAME=VALUE, e.g. flop=1e21")
    choices: dict[str, Any] = {
        name: tuple(int(part) if part.isdigit() else part for part in text.split(","))
        for name, text in pairs_of(options.choice, "--choice", "NAME=VALUE[,VALUE], e.g. optimizer=adam,adam-8bit")
    }
    assumptions = assumptions_of(options.assume)
    ranges = dict(
        _range(name, text) for name, text in pairs_of(options.range, "--range", "NAME=LO:HI, e.g. params=1e8:1e10")
    )
    given = {name: getattr(options, name) for name in ("draws", "level") if getattr(options, name) is not None}
    found = plan(
        law_of_options(options),
        budgets,
        choices=choices or None,
        assumptions=assumptions,
        ranges=ranges or None,
        **given,
    )
    page = write_report(found, options.out, **({} if options.title is None else {"title": options.title}))
    draw(found, options.plot)
    record = {"system": "plan", "loss": found.loss, "path": str(page)}
    emit(record | found.to_dict(), "\n".join([*found.lines(), f"report: {page}"]), options.json)
    return 0


def law_of_options(options: argparse.Namespace) -> Any:
    """A fit to the tables, or the numbers of --law."""
    if bool(options.logs) == bool(options.law):
        raise InputError("plan", expected="a TABLE, or --law NAME=VALUE,... with the numbers of a law",
                         got="both" if options.law else "neither", remedy=f"e.g. --law {EXAMPLE}")  # fmt: skip
    if options.law:
        return numbers_of(options.law.split(","), "--law", f"NAME=VALUE,..., e.g. {EXAMPLE}")
    return fit_table(
        tables_of(options),
        options.form or FORM,
        leave_out=rows_of(options.leave_out),
        bootstrap=options.bootstrap or 1000,
    )


def numbers_of(texts: Sequence[str], flag: str, form: str) -> dict[str, float]:
    """NAME=VALUE pairs with numbers."""
    found = {}
    for name, text in pairs_of(texts, flag, form):
        try:
            found[name] = float(text)
        except ValueError:
            raise InputError(flag, expected=form, got=f"{name}={text}", remedy="a number, e.g. 1e21") from None
    return found


def assumptions_of(texts: Sequence[str]) -> Assumptions:
    """NAME=VALUE, or token_factor.CHOICE=VALUE and speed_factor.CHOICE=VALUE."""
    plain: dict[str, Any] = {}
    for name, value in numbers_of(texts, "--assume", "NAME=VALUE, e.g. utilisation=.35").items():
        kind, dot, choice = name.partition(".")
        if dot and kind in FACTORS:
            plain.setdefault(kind, {})[choice] = value
        elif name in Assumptions().numbers:
            plain[name] = value
        else:
            known = ", ".join((*Assumptions().numbers, *(f"{one}.CHOICE" for one in FACTORS)))
            raise InputError("--assume", expected=f"one of {known}", got=name, remedy="mend the name")
    return Assumptions(**plain)


def _range(name: str, text: str) -> tuple[str, tuple[float, float]]:
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        raise InputError(
            "--range", expected="NAME=LO:HI", got=f"{name}={text}", remedy="e.g. params=1e8:1e10"
        ) from None
    return name, (low, high)
