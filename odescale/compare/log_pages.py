"""A `LogReport` as one self-contained HTML page, as Markdown with pictures beside it, and as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from odescale.analysis.forecast.law_mean import COVERED
from odescale.compare.log_phases import in_steps
from odescale.compare.log_report import LogReport, RunReport, block_rows, covered, end_of, thinned
from odescale.compare.pages import Part, png, stem_of, write_page
from odescale.files import plain
from odescale.plot.logs import plot_curves, plot_forecast, plot_indices, plot_residuals

_CLOCK = {"steps": "SGD steps", "tau": "intrinsic time tau, the sum of learning rates"}
PICTURES = 3
"""Runs and forecasts that are drawn; the tables name all."""


def write_log_report(
    report: LogReport, folder: str | os.PathLike, *, title: str = "Training curves and theory"
) -> Path:
    """Writes report.html (self-contained), report.md with its pictures, and report.json into `folder`; returns the page's path."""
    return write_page(_parts(report), report_record(report), folder, title=title)


def report_record(report: LogReport) -> dict[str, Any]:
    """The report as JSON-ready values; null for what is not known."""
    runs = {}
    for run in report.runs:
        runs[run.log.name] = {
            "source": run.log.source, "sha256": run.log.sha256, "points": int(run.log.step.size), "columns": dict(run.log.columns),
            "notes": list(run.log.notes), "clocks": list(run.clocks), "reason": run.reason,
            "phases": None if run.phases is None else list(run.phases.rows),
            "transition": None if run.phases is None or run.phases.transition is None else run.phases.transition.to_dict(),
            "t_x_step": None if run.phases is None else run.phases.t_x_step,
            "t_x_interval_step": None if run.phases is None else run.phases.t_x_interval,
            "phases_window": None if run.phases is None else run.phases.window,
            "rises_from": None if run.phases is None else run.phases.rises_from,
            "power_floor": None if run.floor is None else run.floor.to_dict(),
        }  # fmt: skip
    forecasts = None
    if report.forecast is not None:
        forecasts = {
            "law": report.forecast.fit.law, "weights": report.forecast.mean.weights, "covered": COVERED,
            "horizons": report.forecast.at_horizons(),
            "runs": {
                run.name: {name: getattr(run, name) for name in ("step", "loss", "low", "high")} for run in report.forecast.runs
            },
            "errors": {run.name: run.errors() for run in report.forecast.runs if run.truth is not None},
            "inside": {
                run.name: dict(zip(("points", "inside"), covered(run), strict=True)) for run in report.forecast.runs
            },
        }  # fmt: skip
    record = {
        "time_unit": "SGD steps of the log", "names": list(report.names), "runs": runs, "fit_window": report.window,
        "fitted": [curve.name for curve in report.fitted],
        "laws": None if report.table is None else {name: fit.to_dict() for name, fit in report.table.fits.items()},
        "law_table": None if report.table is None else report.table.rows(), "laws_reason": report.table_reason,
        "forecast": forecasts, "forecast_reason": report.forecast_reason, "asked": list(report.asked),
        "kernel": None if report.kernel is None else report.kernel.verdict.to_dict(),
        "verdict": report.verdict.to_dict(), "versions": report.versions, "seconds": report.seconds,
    }  # fmt: skip
    return plain(record)


def _parts(report: LogReport) -> list[Part]:
    """First the answer, then phases, then laws, then the details behind them."""
    asked = report.forecast is not None
    parts = [_answer(report)]
    parts += [_forecasts(report)] if asked else []
    parts += [_phases(report), _laws(report)]
    parts += [] if report.kernel is None else [_kernel(report)]
    parts.append(_data(report))
    parts += [_details(run) for run in report.runs[:PICTURES]]
    words = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    hashes = [f"{run.log.name}: sha256 {run.log.sha256[:16]}" for run in report.runs]
    parts.append(Part("How this was made", (f"{words}; {report.seconds:.1f} s.",), tuple(hashes)))
    return parts


def _answer(report: LogReport) -> Part:
    """What can and what cannot be said, in a few lines, over one picture of all runs with their rates."""
    drawn = plot_curves([thinned(run.log) for run in report.runs])
    picture = ("runs", "loss and learning rate of all runs", png(drawn))
    held_out = "the run" if len(report.asked) == 1 else "the runs"
    words = {
        "agrees": f"**The forecast agrees with {held_out} held out.**",
        "differs": f"**The forecast differs from {held_out} held out.**",
        "undecided": "**Nothing was held out, so nothing here is a test of a forecast.**",
    }.get(report.verdict.status, f"**{report.verdict.status}**")
    if report.forecast is None and (report.asked or report.table is None):
        words = f"**No forecast can be made{' of ' + held_out + ' held out' if report.asked else ' from these logs'}.**"
    return Part("Answer", (words,), report.verdict.reasons, (), (picture,))


def _data(report: LogReport) -> Part:
    rows = [
        {
            "run": run.log.name, "points": run.log.step.size,
            "steps": f"{in_steps(run.log.step[0])} to {in_steps(run.log.step[-1])}",
            "loss": f"{run.log.loss[0]:.4g} to {run.log.loss[-1]:.4g}",
            "read as": ", ".join(f"{role} = {column}" for role, column in run.log.columns),
        }
        for run in report.runs
    ]  # fmt: skip
    clocks = [
        {"run": run.log.name} | {k: row.get(k) for k in ("moment", "steps", "tau", "tokens", "flops") if k in row}
        for run in report.runs
        for row in run.clocks
    ]
    notes = [f"{run.log.name}: {note}" for run in report.runs for note in run.log.notes]
    left = len(report.names) - len(report.runs)
    said = ("Every guess and repair of the reader:",) if notes else ()
    more = (f"{left} more runs were read and are not described one by one.",) if left else ()
    clock_words = (
        "tau = intrinsic time, the sum of learning rates, warm-up included"
        if any("tau" in row for row in clocks)
        else ""
    )
    texts = (*more, *((clock_words + ".",) if clock_words else ()), *said)
    return Part("Data and clocks", texts, tuple(dict.fromkeys(notes)), (rows, clocks))


def _phases(report: LogReport) -> Part:
    rows = []
    for run in report.runs:
        if run.phases is None:
            rows.append({"run": run.log.name, "phase": run.reason})
        else:
            rows += [{"run": run.log.name} | row for row in run.phases.rows]
    limits = next(
        (run.phases.transition.thresholds for run in report.runs if run.phases and run.phases.transition is not None),
        None,
    )
    words = [
        "Phases are looked for after warm-up, as long as the learning rate stays within 20 % of its peak, in intrinsic time"
        " where the rate is known; elsewhere what the curve does is the schedule's doing. 'between' belongs to no phase.",
    ]
    words += [] if limits is None else [f"From what length on a phase counts: {limits}."]
    return Part("Phases", tuple(words), (), (rows,))


def _details(run: RunReport) -> Part:
    title = f"Details of {run.log.name}"
    if run.phases is None or run.exponents is None:
        return Part(title, (run.reason,))
    found = run.phases.transition
    words = [f"Phases: {run.phases.sentence()}."]
    words += [] if found is None else [f"In {_CLOCK[run.phases.clock]}: {run.phases.own_clock(str(found))}."]
    if run.floor is not None:
        words.append(f"Fitted as a power law with a floor over the whole run, whatever its phases: {run.floor}.")
    if found is None:
        return Part(title, tuple(words))
    stem = stem_of(run.log.name)
    figure = png(plot_indices(run.exponents, found, run.phases.t_x_step))
    return Part(title, tuple(words), (), (), ((f"exponents_{stem}", "local exponent p and exponentiality q", figure),))


def _laws(report: LogReport) -> Part:
    title = "Laws and baselines"
    if report.table is None:
        return Part(title, (f"None was fitted: {report.table_reason}.",))
    first, last = report.window or (0.0, 0.0)
    words = (
        f"Fitted to {', '.join(curve.name for curve in report.fitted)}, steps {in_steps(first)} to {in_steps(last)}"
        f"{_blocks(report, [curve.name for curve in report.fitted])}. Errors are relative to the loss.",
        "instant: L = L0 + A tau^-alpha + B eta. relaxing: the noise B eta is reached at speed C in tau. spectral: a power law "
        "of such speeds. two_phase: an exponential and a power law. power_tau: no noise. one_third: exponent 1/3. multi_power: "
        "the published form of MultiPowerLaw.",
        "Parameter intervals are those of noise along the curve: they do not count the misfit of the law, and a true L0 "
        "may lie outside.",
    )
    known = [name for name, fit in report.table.fits.items() if fit.identified]
    pictures = ()
    if known:
        best = min(known, key=lambda name: report.table.aic[name])  # type: ignore[union-attr]
        if report.forecast is not None:
            best = report.forecast.fit.law
        fit = report.table.fits.get(best, report.table.fits[known[0]])
        pictures = (("residuals", "residuals in intrinsic time", png(plot_residuals(fit, curves=report.fitted))),)
    return Part(title, words, (), (law_rows(report),), pictures)


def law_rows(report: LogReport) -> list[dict[str, Any]]:
    """The laws side by side, as the page and the terminal print them."""
    if report.table is None:
        return []
    least = min((a for a in report.table.aic.values() if np.isfinite(a)), default=0.0)
    rows = []
    for row in report.table.rows():
        fit = report.table.fits[row["law"]]
        held = row["cross_validated"]
        rows.append({
            "law": row["law"], "parameters": row["parameters"], "rms": f"{fit.rms:.3%}" if np.isfinite(fit.rms) else "-",
            "AIC - least": f"{row['aic'] - least:.1f}" if np.isfinite(row["aic"]) else "-",
            "cross-validated error": "-" if held is None or not np.isfinite(held) else f"{held:.3%}",
            "parameters, 90 % interval": fit.numbers(),
        })  # fmt: skip
    return rows


def _blocks(report: LogReport, names: Sequence[str]) -> str:
    """What `thinned` did to these runs, in a clause; nothing if it left them as they are."""
    rows = [
        f"{run.log.name}: {block_rows(run.log)}"
        for run in report.runs
        if run.log.name in names and block_rows(run.log) > 1
    ]
    return f", means over blocks of rows ({', '.join(rows)})" if rows else ""


def _forecasts(report: LogReport) -> Part:
    title = "Forecast"
    if report.forecast is None:
        return Part(title, (f"None: {report.forecast_reason}.",))
    words = (
        f"By {report.forecast.mean.name}; {COVERED}. Grey in "
        "the pictures: there the learning-rate history is one of the fitted runs'. Baselines: their mean absolute errors.",
    )
    blocks = _blocks(report, report.asked)
    words += (f"The truth is that of the fit{blocks}.",) if blocks else ()
    pictures = tuple(
        (f"forecast_{stem_of(run.name)}", f"forecast of {run.name}", png(plot_forecast(run, rate=curve.rate)))
        for run, curve in list(zip(report.forecast.runs, report.predicted, strict=True))[:PICTURES]
    )
    return Part(title, words, (), (forecast_rows(report),), pictures)


def forecast_rows(report: LogReport) -> list[dict[str, Any]]:
    """The forecast of every run asked for, as the page and the terminal print it."""
    rows = []
    for run in () if report.forecast is None else report.forecast.runs:
        row: dict[str, Any] = {"run": run.name, "loss at the end": end_of(run)}
        if run.truth is not None:
            errors, (held, inside) = run.errors(), covered(run)
            row |= {"truth": f"{run.truth[-1]:.5g}", "inside": f"{inside} of {held}"}
            row |= {"mean abs. error": f"{errors['mean_absolute']:.3g}"}
            row |= {"unseen part": f"{errors['unseen']:.3g}" if np.isfinite(errors["unseen"]) else "-"}
            row |= {"R2": f"{errors['r2']:.4f}" if np.isfinite(errors["r2"]) else "-"}
            row |= {name: f"{run.errors(name)['mean_absolute']:.3g}" for name in run.baselines}
        rows.append(row)
    return rows


def _kernel(report: LogReport) -> Part:
    if report.kernel is None:
        return Part(
            "Kernel regime",
            (
                "Not measured: a log does not hold the network. In Python, pass kernel=odescale.kernels.kernel_regime(...).",
            ),
        )
    return Part("Kernel regime", (f"**{report.kernel.verdict.status}**",), report.kernel.verdict.reasons)
