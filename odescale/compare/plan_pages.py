"""A `Plan` as a page: the plan as a table, what binds, what more of each resource is worth, runners-up, assumptions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from odescale.analysis.budget.plan import Plan
from odescale.compare.pages import Part, png, write_page
from odescale.files import plain
from odescale.plot.plans import plot_plan

MOST_OTHERS = 12


def write_plan(found: Plan, folder: str | os.PathLike, *, title: str = "What to train under these budgets") -> Path:
    """Writes report.html (self-contained), report.md with its picture, and report.json into `folder`; returns the page's path."""
    parts = [_answer(found), _worth(found), _others(found), _sensitivity(found)]
    parts.append(Part("Assumptions", ("Change any of them and plan again.",), tuple(found.assumptions.lines())))
    return write_page(parts, plain(found.to_dict()), folder, title=title)


def _answer(found: Plan) -> Part:
    rows = [
        {"planned": name, "value": value, f"{found.level:.0%} interval of the law": spread or "-"}
        for name, value, spread in found.table()
    ]
    held = ", ".join(f"{name} ({value:.4g} per e-fold)" for name, value in found.binding.items()) or "nothing"
    words = (
        f"**{found.setup}, by {found.law}.**",
        f"Binding: {held}. KKT residual {found.residual:.1e}.",
        "Intervals are those of the law's fit with this setup kept; they know nothing of the assumptions.",
    )
    return Part("Plan", words, found.notes, (rows,), (("plan", "what each resource is worth", png(plot_plan(found))),))


def _worth(found: Plan) -> Part:
    rows: list[dict[str, Any]] = [
        {
            "resource": one.name, "there is": f"{one.amount:.4g} {one.unit}",
            "-dL*/dlog X": f"{one.right:.4g}" if one.left == one.right
            else f"{one.left:.4g} from below, {one.right:.4g} from above",
            "per unit": f"{one.per_unit:.3g}", "1 % more takes off": f"{one.one_percent:.3g}", "then with": one.switch or "-",
        }
        for one in found.worth
    ]  # fmt: skip
    words = (
        "The loss that an e-fold more of a resource takes off; two numbers where a choice switches. 0: it does not bind.",
    )
    return Part("What more is worth", words, (), (rows,))


def _others(found: Plan) -> Part:
    rows = [
        {
            "choice": str(one.setup), "loss above the best": f"{one.loss - found.loss:.3g}",
            "params": f"{one.used.get('params', 0):.4g}",
            "tokens": f"{one.used.get('tokens', 0):.4g}", "binding": ", ".join(one.binding) or "-",
        }
        for one in found.others[:MOST_OTHERS]
    ]  # fmt: skip
    left = len(found.others) - MOST_OTHERS
    bullets = tuple(f"does not fit: {one}" for one in found.refused[:MOST_OTHERS])
    words = (f"and {left} more fit",) if left > 0 else ()
    return Part("Other choices", words or (() if rows else ("None was allowed.",)), bullets, (rows,) if rows else ())


def _sensitivity(found: Plan) -> Part:
    names = list(dict.fromkeys(name for one in found.sensitivity for name in one.change))
    rows = [
        {"assumption": one.name, "dL*/dlog": f"{one.loss:+.3g}"}
        | {f"dlog {name}": f"{one.change[name]:+.3g}" for name in names if name in one.change}
        for one in found.sensitivity
    ]
    return Part(
        "Sensitivity to the assumptions", ("Change of the plan when an assumption grows by an e-fold.",), (), (rows,)
    )
