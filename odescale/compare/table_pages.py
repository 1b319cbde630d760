"""A `TableReport` as a page: sizes first, then the law, the three approaches, theories, residuals, data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from odescale.analysis.tables.result import TableFit
from odescale.compare.pages import Part, png, write_page
from odescale.compare.table_report import BASE, TableReport
from odescale.plot.tables import plot_best_sizes, plot_isoflop, plot_table_residuals

MOST_OUTLIERS = 12


def write_table_report(
    report: TableReport, folder: str | os.PathLike, *, title: str = "What these runs say of size, data and compute"
) -> Path:
    """Writes report.html (self-contained), report.md with its pictures, and report.json into `folder`; returns the page's path."""
    return write_page(_parts(report), report.to_dict(), folder, title=title)


def _parts(report: TableReport) -> list[Part]:
    law = report.law
    parts = [_answer(report)]
    if law is not None:
        parts += [
            _curves(report, law),
            *([_approaches(report)] if report.approaches is not None else []),
            _theories(report),
        ]
    parts += [_laws(report)]
    parts += [_further(report)] if report.rate is not None or report.batch is not None or report.further else []
    parts += [_rows(report, law if law is not None else next(iter(report.fits.values()))), _data(report)]
    words = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    parts.append(Part("How this was made", (f"{words}; {report.seconds:.1f} s.",)))
    return parts


def _answer(report: TableReport) -> Part:
    head = (
        "**Best sizes, and how far to believe them.**" if report.best is not None else "**No best size can be told.**"
    )
    tables, pictures = (), ()
    if report.best is not None:
        tables = (best_rows(report), detour_rows(report))
        pictures = (("frontier", "best size and loss against compute", png(plot_best_sizes(report))),)
    words: tuple[str, ...] = (head,)
    if report.best is not None and report.best.served:
        words += (f"The budgets pay for {report.best.served:.3g} served tokens as well, 2 N FLOP each.",)
    return Part("Answer", words, report.answers, tables, pictures)


def best_rows(report: TableReport) -> list[dict[str, Any]]:
    """The best size at every compute asked, as page and terminal print it."""
    best = report.best
    if best is None:
        return []
    names = (
        ("params", "parameters N*"),
        ("tokens", "tokens D*"),
        ("tokens_per_param", "tokens per parameter"),
        ("loss", "loss"),
    )
    rows = []
    for i, budget in enumerate(best.flop):
        row: dict[str, Any] = {"compute (FLOP)": f"{budget:.3g}"}
        for name, head in names:
            held = getattr(best, name)
            row[head] = f"{held.value[i]:.4g} ({held.low[i]:.3g} to {held.high[i]:.3g})"
        multiplier = best.multiplier
        row["-dL*/dlog C"] = f"{multiplier.value[i]:.3g} ({multiplier.low[i]:.2g} to {multiplier.high[i]:.2g})"
        rows.append(row)
    return rows


def detour_rows(report: TableReport) -> list[dict[str, Any]]:
    """What another size costs at the largest compute of the table."""
    off = report.detours
    if off is None:
        return []
    return [
        {
            "model, times the best size": f"{factor:g}", "loss above the best": f"{off.loss.value[i]:.3g}",
            "compute wasted": f"{off.wasted.value[i]:.1%} ({off.wasted.low[i]:.1%} to {off.wasted.high[i]:.1%})",
        }
        for i, factor in enumerate(off.factor)
    ]  # fmt: skip


def _curves(report: TableReport, law: TableFit) -> Part:
    if report.table.flop is None or set(law.form.columns) != {"params", "tokens"}:
        return Part("Loss at fixed compute", ("Not drawn: the table has no compute.",))
    way = None if report.approaches is None else report.approaches.parabola
    minima = None
    if way is not None and way.points.size:
        heights = law.predict(params=way.points[:, 1], tokens=way.points[:, 0] / (6 * way.points[:, 1])).loss
        minima = (way.points[:, 1], heights)
    figure = png(plot_isoflop(law, minima=minima))
    words = "Colours are compute. Stars are minima of the law, diamonds the vertices of parabolas, set on the law."
    return Part(
        "Loss at fixed compute", (words,), pictures=(("isoflop", "loss against parameters at fixed compute", figure),)
    )


def _approaches(report: TableReport) -> Part:
    shown = report.approaches
    assert shown is not None
    rows = [
        {
            "approach": way.name,
            "exponent a of N* ~ C^a": way.reason or f"{way.exponent:.4f} ({way.interval[0]:.4f} to {way.interval[1]:.4f})",
            f"N* at {way.flop:.3g} FLOP": "-" if way.reason
            else f"{way.params:.4g} ({way.params_interval[0]:.3g} to {way.params_interval[1]:.3g})",
            "left out": "; ".join(way.notes) or "-",
        }
        for way in (shown.envelope, shown.parabola, shown.law)
    ]  # fmt: skip
    words = [f"Intervals at {shown.level:.0%}. That of the parabolas does not know of their own bias."]
    words += [f"Bias: {shown.bias}."] if shown.bias is not None else []
    return Part("Three approaches side by side", tuple(words), (), (rows,))


def _theories(report: TableReport) -> Part:
    rows = [
        {
            "theory": one.theory, "says": f"{one.quantity}: {one.statement}",
            "fit": "-" if one.interval is None else f"{one.value:.3g} ({one.interval[0]:.3g} to {one.interval[1]:.3g})",
            "interval": one.answer, "because": one.reason or "-", "given": one.assumption or "-", "source": one.source,
        }
        for one in report.verdicts
    ]  # fmt: skip
    implied = [f"{one}" for one in report.implied]
    words = (
        "An interval that excludes an exponent speaks against the theory or against the form of the fit; one that contains it "
        "does not prove it.",
        "What follows from the fitted exponents, if the form is right:",
    )
    return Part("Theory beside the fit", words, tuple(implied), (rows,))


def law_rows_of(report: TableReport) -> list[dict[str, Any]]:
    """Every form with its numbers, or why it has none, as page and terminal print it."""
    rows = []
    shown = [(name, fit) for name, fit in report.fits.items()]
    if report.trimmed is not None:
        shown.insert(1, (f"{BASE}, outliers left out", report.trimmed))
    for name, fit in shown:
        numbers = ", ".join(
            f"{key}: open, {fit.unidentified[key]}" if key in fit.unidentified
            else f"{key} = {fit.values[key]:.4g} ({fit.interval(key)[0]:.4g} to {fit.interval(key)[1]:.4g})"
            for key in fit.form.names
        )  # fmt: skip
        rows.append({
            "form": name, "equation": fit.form.equation, f"numbers, {fit.level:.0%} interval": numbers,
            "scatter": f"{fit.scale:.2%}", "rows": int(np.isfinite(fit.residual).sum()), "outliers": len(fit.outliers),
            "unstable": "; ".join(fit.unstable) or "-",
            "by variable projection": ", ".join(
                f"{key} = {value:.4g}" for key, value in zip(fit.form.names, fit.least_squares.values, strict=True)
            ),
            "condition number, projected": f"{fit.least_squares.conditioning:.2g}, {fit.least_squares.reduced:.2g}",
        })  # fmt: skip
    return rows


def _further(report: TableReport) -> Part:
    told = [str(one) for one in (report.rate, report.batch) if one is not None]
    words = tuple(line for one in told for line in one.splitlines() if line.strip())
    return Part("Learning rate and batch", words, report.further)


def _laws(report: TableReport) -> Part:
    words = (
        "Huber's loss of log L; beside it least squares by variable projection, which knows no outliers. 'Open' numbers are those "
        "that the rows do not determine: no interval of theirs means anything.",
    )
    refused = tuple(f"{name}: not fitted, {why}" for name, why in report.refused.items())
    return Part("Laws", words, refused, (law_rows_of(report),))


def _rows(report: TableReport, law: TableFit) -> Part:
    listed = [str(one) for one in (report.fits.get(BASE, law)).outliers]
    left = len(listed) - MOST_OUTLIERS
    bullets = (*listed[:MOST_OUTLIERS], *((f"and {left} more",) if left > 0 else ()))
    words = (
        ("Outliers, rows counted from 0:",)
        if listed
        else ("No row is beyond what the scatter of the others explains.",)
    )
    return Part(
        "Residuals", words, bullets, (), (("residuals", "measured over fitted loss", png(plot_table_residuals(law))),)
    )


def _data(report: TableReport) -> Part:
    table = report.table
    rows = [
        {"column": name, "from": f"{values.min():.4g}", "to": f"{values.max():.4g}"}
        for name in ("params", "tokens", "flop", "loss", *table.columns)
        if (values := getattr(table, name, None) if name not in table.columns else table.columns[name]) is not None
    ]
    law = report.law
    notes = (*table.notes, *(() if law is None else law.notes))
    return Part("Data", (f"{len(table)} runs of {table.source or 'a table'}.",), notes, (rows,))
