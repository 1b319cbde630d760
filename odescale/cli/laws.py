"""`odescale laws TABLE...`: scaling laws of a table of finished runs, best sizes for a budget, as a page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odescale.analysis.tables.table import SIZES, ScalingTable, scaling_table
from odescale.cli.output import aligned, draw, emit, require_picture
from odescale.compare.report import write_report
from odescale.compare.table_pages import best_rows, law_rows_of
from odescale.compare.table_report import TableReport, report_table
from odescale.errors import InputError
from odescale.logs.run_table import read_table


def report_on_tables(options: argparse.Namespace) -> int:
    """Laws, best sizes, theories beside them, as a page; the short version on stdout."""
    require_picture(options.plot)
    table = tables_of(options)
    return show_report(options, table)


def show_report(options: argparse.Namespace, table: ScalingTable) -> int:
    """The page of a table, and what the terminal shows of it."""
    given: dict[str, Any] = {
        name: getattr(options, name) for name in ("bootstrap", "level") if getattr(options, name, None)
    }
    report = report_table(
        table, forms=getattr(options, "form", None), leave_out=rows_of(getattr(options, "leave_out", None)),
        compute=_numbers(getattr(options, "compute", None)), served=getattr(options, "served", None) or 0.0, **given,
    )  # fmt: skip
    title = options.title or f"Scaling laws of {', '.join(options.logs)[:80]}"
    page = write_report(report, options.out, title=title)
    draw(report, getattr(options, "plot", None))
    record = {"system": "laws", "loss": table.loss, "path": str(page)}
    emit(record | report.to_dict(), in_words(report, page), options.json)
    return 0


def tables_of(options: argparse.Namespace) -> ScalingTable:
    """The tables of the command line as one; rows keep the name of their file where there are several."""
    named = {name: getattr(options, name) for name in (*SIZES, "loss", "run")}
    columns = pairs_by_name(options.column, "--column", "NAME=COLUMN, e.g. batch=tokens_per_step")
    where: dict[str, Any] = {}
    for name, label in pairs_of(options.where, "--where", "COLUMN=LABEL, e.g. loss_kind=raw_loss"):
        where.setdefault(name, []).append(label)
    labels = {name: found[0] if found == ["*"] else found for name, found in where.items()}
    found = [
        read_table(path, where=labels or None, max_bytes=options.max_bytes, **named, **columns) for path in options.logs
    ]
    return found[0] if len(found) == 1 else joined(found)


def joined(tables: Sequence[ScalingTable]) -> ScalingTable:
    """Several tables as one: the columns that all have, `dataset` naming the file of a row."""
    shared = [name for name in tables[0].columns if all(name in table.columns for table in tables)]
    sizes = {
        name: np.concatenate([getattr(table, name) for table in tables])
        for name in SIZES
        if all(getattr(table, name) is not None for table in tables)
    }
    notes = [f"{table.source}: {note}" for table in tables for note in table.notes]
    runs = None
    if any(table.runs is not None for table in tables):
        runs = [
            f"{table.source}:{label}"
            for table in tables
            for label in (range(len(table)) if table.runs is None else table.runs)
        ]
    marked = [np.zeros(len(table), bool) if table.marked is None else table.marked for table in tables]
    return scaling_table(
        loss=np.concatenate([table.loss for table in tables]), **sizes, notes=notes, runs=runs,
        dataset=[table.source for table in tables for _ in range(len(table))], marked=np.concatenate(marked),
        source=", ".join(table.source for table in tables),
        **{name: np.concatenate([table.columns[name] for table in tables]) for name in shared},
    )  # fmt: skip


def in_words(report: TableReport, page: Path) -> str:
    """What the terminal shows: the table as read, laws, approaches, best sizes, answers, theories that can tell, the page."""
    lines = [str(report.table)]
    for row in law_rows_of(report):
        numbers = next(value for key, value in row.items() if key.startswith("numbers"))
        lines.append(
            f"{row['form']}, {row['equation']}: {numbers}; scatter {row['scatter']}, {row['outliers']} outliers"
        )
    lines += [f"{name}: not fitted, {why}" for name, why in report.refused.items()]
    lines += [] if report.approaches is None else str(report.approaches).splitlines()
    lines += aligned(best_rows(report))
    lines += list(report.answers)
    told = [one for one in report.verdicts if one.answer != "cannot tell"]
    lines += (
        [f"theory: {one}" for one in told] or ["theory: no interval is narrow enough to tell"]
        if report.verdicts
        else []
    )
    return "\n".join([*lines, f"report: {page}"])


def _numbers(texts: Sequence[str] | None) -> np.ndarray | None:
    """FLOP, one by one or separated by commas."""
    if not texts:
        return None
    try:
        return np.array([float(part) for text in texts for part in text.split(",") if part])
    except ValueError:
        raise InputError("--compute", expected="FLOP, by commas", got=texts, remedy="--compute 1e21,1e23") from None


def rows_of(text: str | None) -> Any:
    """What --leave-out means: a word that `fit_table` knows, row numbers, or None."""
    if text is None or text in ("outliers", "marked"):
        return text
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise InputError(
            "--leave-out", expected="outliers, marked, or rows by commas", got=text, remedy="rows from 0"
        ) from None


def pairs_of(texts: Sequence[str], flag: str, form: str) -> list[tuple[str, str]]:
    """NAME=VALUE texts as pairs, in their order; others are refused with the `form` that `flag` takes."""
    found = []
    for text in texts:
        name, sign, value = text.partition("=")
        if not (name and sign and value):
            raise InputError(flag, expected=form, got=text, remedy="repeat the option for more")
        found.append((name, value))
    return found


def pairs_by_name(texts: Sequence[str], flag: str, form: str) -> dict[str, str]:
    """The same by name, the last one of a name being kept."""
    return dict(pairs_of(texts, flag, form))
