"""A comparison as a folder: `report.md` to read, `comparison.png` to see, `comparison.json` to compute with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odescale.analysis.budget.plan import Plan
from odescale.compare.comparison import Comparison, Quantity
from odescale.compare.log_pages import write_log_report
from odescale.compare.log_report import LogReport
from odescale.compare.plan_pages import write_plan
from odescale.compare.sheets import WORDS, rules_of
from odescale.compare.table_pages import write_table_report
from odescale.compare.table_report import TableReport
from odescale.errors import InputError
from odescale.files import plain
from odescale.plain_text import in_markdown
from odescale.plot.draw import plot

PAGES: dict[type, Callable[..., Path]] = {
    LogReport: write_log_report,
    TableReport: write_table_report,
    Plan: write_plan,
}
"""Reports that are pages of their own: report.html, report.md with its pictures, report.json."""


def write_report(
    result: Comparison | LogReport | TableReport | Plan,
    folder: str | os.PathLike,
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
    extra: dict[str, Any] | None = None,
    formula: tuple[Any, Any] | None = None,
) -> Path:
    """Writes report.md, comparison.png, comparison.json, theory.npz and run.npz into `folder`; returns the report's path.

    Of a `LogReport`, a `TableReport` or a `Plan`: report.html, report.md with its pictures, report.json.

    **Arguments**: `title` of page and picture; of a comparison also `notes`: further lines of the report, each one bullet;
    `extra`: further JSON-ready entries of comparison.json; `formula` = (t, loss) of a closed form to draw. **Raises** `InputError`.
    """
    page_of = PAGES.get(type(result))
    if page_of is not None:
        for name, value in (("notes", notes), ("extra", extra), ("formula", formula)):
            if value:
                raise InputError(
                    name, expected="a comparison to add it to", got="a report on logs or tables", remedy="drop it"
                )
        return page_of(result, folder, **({} if title is None else {"title": title}))
    if not isinstance(result, Comparison):
        raise InputError(
            "result",
            expected="a Comparison, a LogReport, a TableReport or a Plan",
            got=type(result).__name__,
            remedy="compare(system, run)",
        )
    count = len(result.run.seeds)
    title = title or f"{_label(result)}: theory against {count} run{'' if count == 1 else 's'}"
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    axes = plot(result, title=title, formula=formula)
    axes["loss"].figure.savefig(place / "comparison.png", dpi=150)
    record = json.dumps(plain(to_json(result) | (extra or {})), indent=1, allow_nan=False)
    (place / "comparison.json").write_text(record + "\n", encoding="utf-8")
    result.theory.save(place / "theory.npz")
    result.run.save(place / "run.npz")
    page = place / "report.md"
    page.write_text(to_markdown(result, title=title, notes=notes), encoding="utf-8")
    return page


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Everything a script needs, null where a number is not known; the same keys for every theory."""
    run, theory, kept = comparison.run, comparison.theory, comparison.kept
    transition = {name: found.to_dict() for name, found in comparison.transitions.items()}
    several = len(run.seeds) > 1 and kept.sum() > 2
    own, theirs = comparison.tail() if several else (None, None)
    record = {
        "system": _label(comparison),
        "parameters": theory.meta.get("parameters", {}),
        "time_unit": theory.meta.get("time_unit", _unit(comparison)),
        "clock": run.clock.describe(),
        "seeds": run.seeds,
        "dimension": run.config.get("dimension"),
        "verdict": comparison.verdict.to_dict(),
        "t": run.t,
        "steps": run.step,
        "tau": run.clock.tau(run.t),
        "tokens": run.clock.tokens_seen(run.t),
        "kept": kept,
        "fall": comparison.fall,
        "coverage": comparison.coverage.to_dict(),
        "exponent": np.asarray(theory.exponent)[comparison.at],
        "loss_exponent": None if own is None or theirs is None
        else {"run": own.exponent, "stderr": own.stderr, "theory": theirs.exponent},
        "quantities": {name: one.to_dict() for name, one in comparison.quantities.items()},
        "transition": transition | {"agrees": comparison.transition_agrees} if transition else None,
        "context": None if comparison.context is None
        else {"loss": comparison.context_loss, "ratio": comparison.context_ratio},
        "seed_losses": run["loss"],
        "versions": theory.meta.get("versions", {}),
        "solver": theory.meta.get("ladder", []),
    }  # fmt: skip
    expected = {name: x.verdict.to_dict() for name, x in comparison.options.items() if hasattr(x, "verdict")}
    return plain(record | expected)


def to_markdown(comparison: Comparison, *, title: str, notes: Sequence[str] = ()) -> str:
    """The report as a page: verdict, quantities, transition, clocks, sources of error, points."""
    run, theory = comparison.run, comparison.theory
    reasons = in_markdown(". ".join(reason[:1].upper() + reason[1:] for reason in comparison.verdict.reasons))
    lines = [
        f"# {in_markdown(title)}",
        "",
        f"**Verdict: {comparison.verdict.status}.** {reasons}.",
        "",
        f"Before the run: {in_markdown(str(comparison.coverage))}.",
        "",
        "![theory and run](comparison.png)",
        "",
        "| quantity | verdict | largest deviation | tolerance | z, mean square | z, largest |",
        "|---|---|---|---|---|---|",
        *(_row(name, one) for name, one in comparison.quantities.items()),
        "",
        *_transitions(comparison),
        "## Clocks",
        "",
        f"- {run.clock.describe()}",
        f"- The run has {int(run.step[-1])} steps = {run.t[-1]:.6g} units of t = {float(run.clock.tau(run.t[-1])):.6g} of "
        f"intrinsic time{_tokens(comparison)}, seeds {', '.join(map(str, run.seeds))}; the theory's loss falls "
        f"{comparison.fall:.3g} times.",
        *_exponents(comparison),
        "",
        "## Errors of the loss (relative, largest over the points)",
        "",
        "| source | size |",
        "|---|---|",
        *_sources(comparison),
        "",
        *([f"- {note}" for note in notes] + [""] if notes else []),
        "## Points",
        "",
        "+- and the first z count scatter of the seeds, nodes and numerics; the second z counts the size of what the theory",
        "neglects as an error too.",
        "",
        *_points(comparison),
    ]
    solvers = ", ".join(f"{entry['solver']} ({entry['accepted']} steps)" for entry in theory.meta.get("ladder", []))
    versions = ", ".join(f"{name} {number}" for name, number in theory.meta.get("versions", {}).items())
    made = f"Theory by {solvers} on {theory.meta['device']}; {versions}." if solvers else ""
    return "\n".join([*lines, "", made, ""])


def _label(comparison: Comparison) -> str:
    return comparison.theory.meta.get("system", comparison.system.name)


def _unit(comparison: Comparison) -> str:
    return f"one unit of t = {comparison.run.clock.unit}"


def _row(name: str, one: Quantity) -> str:
    status, limit = ("not judged", "") if one.verdict is None else (one.verdict.status, f"{one.tolerance:g}")
    scores = f"{one.rms_z:.2f} | {one.max_z:.1f}" if one.has_errors else " | "
    return f"| {in_markdown(name)} | {status} | {one.max_deviation:.2g} | {limit} | {scores} |"


def _transitions(comparison: Comparison) -> list[str]:
    found = comparison.transitions
    if not found:
        return []
    relation = {None: "cannot be compared", True: "agree", False: "differ"}[comparison.transition_agrees]
    return [
        "## Transition",
        "",
        *([f"- Theory, {found['exact']}"] if "exact" in found else []),
        f"- Theory, sampled as the run: {found['theory']}",
        f"- Run: {found['run']}",
        f"- The last two use one model on the same points; they {relation} (5 %, or inside the run's 95 % interval).",
        "",
    ]


def _tokens(comparison: Comparison) -> str:
    seen = float(comparison.run.clock.tokens_seen(comparison.run.t[-1]))
    return f" = {seen:.4g} tokens" if np.isfinite(seen) else ""


def _exponents(comparison: Comparison) -> list[str]:
    if len(comparison.run.seeds) < 2 or comparison.kept.sum() < 3:
        return []
    own, theirs = comparison.tail()
    return [
        f"- Loss exponent over t = {own.window[0]:.4g} to {own.window[1]:.4g}, one fit for both: run {own.exponent:.4f} +- "
        f"{own.stderr:.4f}, theory {theirs.exponent:.4f}.",
    ]


def _sources(comparison: Comparison) -> list[str]:
    words, loss = {**WORDS, **rules_of(comparison.system).words}, comparison.loss
    rows = {**loss.errors, **loss.neglected}
    lines = [f"| {in_markdown(words.get(name, name))} | {np.max(size[loss.kept]):.2g} |" for name, size in rows.items()]
    if loss.extrapolated is not None:
        off = np.abs(loss.extrapolated[loss.kept] - 1).max()
        lines.append(f"| deviation extrapolated to infinite dimension from d/2 and d | {off:.2g} |")
    return lines


def _points(comparison: Comparison) -> list[str]:
    run, loss, own = comparison.run, comparison.loss, comparison.context_ratio
    others = {name: one for name, one in comparison.quantities.items() if name != "loss" and np.any(one.predicted != 0)}
    heads = ["step", "t", "theory", "run", "run/theory", "+-", "z", "z with neglected"]
    heads += [] if own is None else [f"run/theory at T = {float(run.config.get('tokens', np.nan)):g}"]
    heads += [f"{name}: {what}" for name in others for what in ("run", "theory", "z")]
    lines = ["| " + " | ".join(map(in_markdown, heads)) + " |", "|" + "---|" * len(heads)]
    for i in np.flatnonzero(comparison.kept):
        cells = [
            f"{int(run.step[i])}", f"{run.t[i]:.4g}", f"{loss.predicted[i]:.5g}", f"{loss.measured[i]:.5g}",
            f"{loss.ratio[i]:.4f}", f"{loss.stderr[i]:.4f}", f"{loss.z_of_data[i]:+.1f}", f"{loss.z[i]:+.1f}",
        ]  # fmt: skip
        cells += [] if own is None else [f"{own[i]:.4f}"]
        for one in others.values():
            cells += [f"{one.measured[i]:.5g}", f"{one.predicted[i]:.5g}", f"{one.z[i]:+.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
