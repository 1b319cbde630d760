"""The commands on training logs of a user's own: report, forecast, schedule."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odescale.analysis.forecast.choice import choose_law
from odescale.analysis.forecast.law_mean import law_mean
from odescale.analysis.forecast.laws import law_named
from odescale.analysis.forecast.loss_curve import LossCurve, planned_curve
from odescale.analysis.forecast.predict import forecast
from odescale.cli.arguments import READ_CLOCKS, READ_COLUMNS
from odescale.cli.output import aligned, draw, emit, require_picture, table
from odescale.cli.thresholds import thresholds
from odescale.clock import ConstantSchedule, WarmedSchedule, parse_schedule
from odescale.compare.log_pages import forecast_rows, law_rows, report_record
from odescale.compare.log_report import LogReport, first_step, pick_logs, report_logs, thinned
from odescale.compare.report import write_report
from odescale.errors import InputError, require_number
from odescale.logs.read import TrainingLog, log_names, read_logs
from odescale.logs.run_table import is_table, read_table

PLAN_POINTS = 200


def report_on_logs(options: argparse.Namespace) -> int:
    """Regimes, laws, forecast and verdict of logs, as a page; the short version on stdout."""
    _check_numbers(options)
    if (
        len(options.logs) == 1
        and Path(options.logs[0]).is_file()
        and is_table(options.logs[0], max_bytes=options.max_bytes)
    ):
        return _report_on_table(options)
    logs = _read(options)
    report = report_logs(
        logs, fit_on=_names(options.fit_on), predict=_names(options.predict), law=options.law, after=options.after,
        thresholds=thresholds(options.threshold), irreducible=options.irreducible,
    )  # fmt: skip
    page = write_report(report, options.out, title=options.title or f"Theory beside {', '.join(options.logs)[:80]}")
    first = report.runs[0].log
    whole = report_record(report)
    entries = {
        name: entry | {"column": entry["columns"]["loss"], "steps": run.log.step, "loss": run.log.loss}
        for (name, entry), run in zip(whole["runs"].items(), report.runs, strict=True)
    }
    record = {"t": first.step, "loss": first.loss, "logs": entries, "path": str(page)}
    emit(whole | record, report_in_words(report, page), options.json)
    return 0


def _report_on_table(options: argparse.Namespace) -> int:
    """A table of finished runs has no curve: its page is that of `odescale laws`."""
    from odescale.cli.laws import show_report

    own = ("step", "learning_rate", "warmup_steps", "format", "fit_on", "predict", "law", "after")
    for name in (*own, *READ_COLUMNS, *READ_CLOCKS):
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')}", expected="to be left out with a table of finished runs",
                             got=getattr(options, name), remedy="odescale laws has the options of tables")  # fmt: skip
    return show_report(options, read_table(options.logs[0], loss=options.loss, max_bytes=options.max_bytes))


def forecast_runs(options: argparse.Namespace) -> int:
    """The loss of other runs, or of a planned one, from a law fitted to some."""
    _check_numbers(options)
    require_picture(options.plot)
    logs = _read(options)
    if not options.fit_on:
        raise InputError("--fit-on", expected="names of runs", got=None, remedy=f"runs are {log_names(logs)}")
    if bool(options.predict) == bool(options.schedule):
        raise InputError("--predict", expected="runs to predict, or --schedule for a planned one", got=options.predict,
                         remedy="give one of the two")  # fmt: skip
    for name in ("steps", "peak", "warmup"):
        if options.predict and getattr(options, name) is not None:
            raise InputError(f"--{name}", expected="to be left out with --predict", got=getattr(options, name),
                             remedy="runs of the log have their own")  # fmt: skip
    chosen = pick_logs(logs, _names(options.fit_on) or (), "--fit-on")
    curves, start = _fitted(chosen, options.after)
    if options.predict:
        others = pick_logs(logs, _names(options.predict) or (), "--predict")
        planned: Sequence[LossCurve] = [thinned(log).curve().between(start, np.inf) for log in others]
    else:
        planned = [_planned(options, curves, start)]
    found = forecast(curves, planned, law=options.law)
    draw(found, options.plot)
    rows = found.at_horizons()
    record: dict[str, Any] = {
        "system": "forecast", "time_unit": "SGD steps of the log", "t": found.runs[0].step, "loss": found.runs[0].loss,
        "law": found.fit.to_dict(), "weights": found.mean.weights, "horizons": rows,
        "error": found.errors() if options.predict else None,
        "runs": {run.name: {name: getattr(run, name) for name in ("step", "loss", "low", "high")} for run in found.runs},
    }  # fmt: skip
    heads, keys = ("run", "step", "loss", "90 % from", "to", "truth"), ("run", "step", "loss", "low", "high", "truth")
    lines = [str(found), *table(heads, ([row.get(key) for key in keys] for row in rows))]
    emit(record, "\n".join(lines), options.json)
    return 0


def plan_schedule(options: argparse.Namespace) -> int:
    """The learning-rate schedule of least final loss for a budget, under the law that the logs identify."""
    from odescale.analysis.forecast.best_schedule import best_schedule  # and with it the solvers, a second of imports

    _check_numbers(options)
    require_picture(options.plot)
    logs = _read(options)
    chosen = pick_logs(logs, _names(options.fit_on) or tuple(log.name for log in logs), "--fit-on")
    curves, _ = _fitted(chosen, options.after)
    choice = choose_law(curves, laws=("relaxing", "spectral")) if options.law is None else None
    mean = law_mean(curves, law=options.law, choice=choice)
    top = max(float(np.max(np.asarray(curve.learning_rate))) for curve in curves)
    peak = top if options.peak is None else options.peak
    if options.steps is None:
        raise InputError("--steps", expected="the budget in SGD steps", got=None, remedy="e.g. --steps 20000")
    best = best_schedule(mean, steps=options.steps, peak=peak, warmup=options.warmup or 0.0)
    fit = mean.fits[mean.law]
    draw(best, options.plot)
    if options.save:
        with Path(options.save).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["step", "learning_rate"])
            writer.writerows(zip(best.step.tolist(), best.rate.tolist(), strict=True))
    record = {
        "system": "schedule", "time_unit": "SGD steps", "t": best.step, "rate": best.rate, "loss": best.loss,
        "interval": best.interval, "references": best.references, "gain": best.gain, "law": fit.to_dict(),
    }  # fmt: skip
    shown = np.unique(np.linspace(0, best.step.size - 1, 13).astype(int))
    lines = [str(fit), str(best), *table(("up to step", "rate"), ((best.step[i], best.rate[i]) for i in shown))]
    if options.save:
        lines.append(f"saved to {options.save}: each rate holds up to its step")
    emit(record, "\n".join(lines), options.json)
    return 0


def _check_numbers(options: argparse.Namespace) -> None:
    """Refuses numbers that no log could make good, and laws that are none, before a log is read."""
    for name, open_ in (("steps", True), ("peak", True), ("warmup", False), ("after", False)):
        value = getattr(options, name, None)
        if value is not None:
            require_number(f"--{name.replace('_', '-')}", value, open_=open_)
    if not np.isfinite(getattr(options, "irreducible", 0.0)):
        raise InputError("--irreducible", expected="a finite loss", got=options.irreducible, remedy="0 is the default")
    if options.law is not None:
        law_named(options.law)


def _read(options: argparse.Namespace) -> tuple[TrainingLog, ...]:
    return read_logs(options.logs, **read_options(options))


def read_options(options: argparse.Namespace) -> dict[str, Any]:
    """What `read_logs` takes, from the command line."""
    rate: Any = options.learning_rate
    if rate is not None:
        try:
            rate = float(rate)
        except ValueError:
            pass
    same = ("step", "loss", "run", "format", "warmup_steps", "max_bytes", *READ_COLUMNS, *READ_CLOCKS)
    return {name: getattr(options, name) for name in same} | {"learning_rate": rate}


def _names(words: list[str] | None) -> tuple[str, ...] | None:
    """Names given one by one or separated by commas."""
    return tuple(part for word in words for part in word.split(",") if part) if words else None


def _fitted(chosen: Sequence[TrainingLog], after: float | None) -> tuple[tuple[LossCurve, ...], float]:
    unrated = [log.name for log in chosen if log.learning_rate is None]
    if unrated:
        raise InputError("--learning-rate", expected="a learning rate in the fitted logs", got=f"none in {', '.join(unrated)}",
                         remedy="name its column, or give the number that held throughout")  # fmt: skip
    curves = [thinned(log).curve() for log in chosen]
    start = first_step(curves) if after is None else after
    return tuple(curve.between(start, np.inf) for curve in curves), start


def _planned(options: argparse.Namespace, curves: Sequence[LossCurve], start: float) -> LossCurve:
    """A run that does not exist yet: its schedule in SGD steps, its losses unknown."""
    for name in ("steps", "peak"):
        if getattr(options, name) is None:
            raise InputError(
                f"--{name}", expected="a number with --schedule", got=None, remedy="times are in SGD steps"
            )
    schedule = ConstantSchedule() if options.schedule == "constant" else parse_schedule(options.schedule)
    if options.warmup:
        schedule = WarmedSchedule(schedule, options.warmup)
    if not options.steps > start:
        raise InputError("--steps", expected=f"more than {start:g}, where the fit begins", got=options.steps,
                         remedy="plan a longer run")  # fmt: skip
    edges = np.unique(np.concatenate([np.linspace(0, options.steps, 2001), np.geomspace(1, options.steps, 200)]))
    middle = 0.5 * (edges[1:] + edges[:-1])
    rate = options.peak * np.asarray(jax.vmap(schedule)(jnp.asarray(middle)))
    place = np.unique(
        np.searchsorted(edges[1:], np.linspace(start, options.steps, PLAN_POINTS)).clip(max=middle.size - 1)
    )
    return planned_curve(f"{options.schedule}, peak {options.peak:g}", edges[1:], rate, edges[1:][place])


def report_in_words(report: LogReport, page: Path) -> str:
    """What the terminal shows of a report: every run as it was read, laws, forecasts, the verdict with its reasons, the page."""
    lines = []
    for run in report.runs:
        column = dict(run.log.columns).get("loss", "loss")
        lines.append(f"{run.log.name}: {run.log.step.size} points, column {column} of {run.log.source}")
        lines += [f"    {note}" for note in run.log.notes]
        lines += [] if run.floor is None else [f"    over the whole run: {run.floor}"]
    left = len(report.names) - len(report.runs)
    lines += [f"and {left} more runs, not described one by one"] if left else []
    lines += aligned(law_rows(report)) if report.table is not None else [f"laws: {report.table_reason}"]
    lines += aligned(forecast_rows(report))
    lines += [
        f"verdict: {report.verdict.status}",
        *(f"    {reason}" for reason in report.verdict.reasons),
        f"report: {page}",
    ]
    return "\n".join(lines)
