"""What theory says of a user's own training logs: a forecast, phases, laws beside baselines, and how far each can be believed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import equinox as eqx
import numpy as np

from odescale.analysis.forecast.choice import THEORY, LawTable, choose_from, compare_laws
from odescale.analysis.forecast.loss_curve import LossCurve
from odescale.analysis.forecast.predict import Forecast, RunForecast, forecast
from odescale.analysis.phases.exponents import LocalExponent, local_exponent
from odescale.analysis.phases.power_floor import PowerFloor, fit_power_floor
from odescale.analysis.phases.stretches import Thresholds
from odescale.compare.comparison import Comparison
from odescale.compare.kernel import KernelRegime
from odescale.compare.log_phases import LogPhases, in_steps, phases_of_log
from odescale.compare.verdict import Status, Verdict
from odescale.errors import InputError, OdescaleError
from odescale.logs.read import TrainingLog, log_names, named_logs

MOST_RUNS = 8
"""Runs whose regimes are described one by one."""
MOST_POINTS = 250
"""Points of a run that laws are fitted to: more are averaged in blocks of neighbours."""
FIRST_SHARE = 0.05
"""Laws are fitted from this share of the run on, and never within warm-up or the exponential phase."""
COVERED = 0.8
BASELINES = ("two_phase", "power_tau", "one_third", "multi_power")
VERSIONS = ("odescale", "jax", "numpy", "scipy", "diffrax", "equinox")


class RunReport(eqx.Module):
    """One log: its phases, local exponents, power law with a floor, clocks. None with too few points.

    `clocks`: rows of one moment each: `moment` (first, or first after step 0; t_x; last), `steps`, and `tau`, `tokens`, `flops`
    where logged.
    """

    log: TrainingLog
    phases: LogPhases | None
    exponents: LocalExponent | None
    floor: PowerFloor | None
    clocks: tuple[dict[str, Any], ...]
    reason: str


class LogReport(eqx.Module):
    """The whole report; `write_log_report` makes a page of it.

    - `runs`: one entry a run, the first `MOST_RUNS`; `names`: of all runs. `fitted`: the curves that laws were fitted to, as they
      were fitted. `window`: (first, last) step of that fit. `table`: laws and baselines, `forecast`: of the runs `asked` for; None
      with the reason in `table_reason`, `forecast_reason`. `kernel`: a verdict on the network's kernel, if one was given.
    - `verdict`: what follows. `versions`, `seconds`.
    """

    runs: tuple[RunReport, ...]
    names: tuple[str, ...]
    fitted: tuple[LossCurve, ...]
    window: tuple[float, float] | None
    table: LawTable | None
    table_reason: str
    forecast: Forecast | None
    forecast_reason: str
    predicted: tuple[LossCurve, ...]
    kernel: KernelRegime | Comparison | None
    verdict: Verdict
    versions: dict[str, str]
    seconds: float
    asked: tuple[str, ...] = ()


def report_logs(
    logs: TrainingLog | Sequence[TrainingLog],
    *,
    fit_on: str | Sequence[str] | None = None,
    predict: str | Sequence[str] | None = None,
    law: str | None = None,
    after: float | None = None,
    thresholds: Thresholds | None = None,
    irreducible: float = 0.0,
    kernel: KernelRegime | Comparison | None = None,
    draws: int = 40,
) -> LogReport:
    """Which regime a run is in, where that changes, which law holds, what another schedule would give, and whether to believe it.

    **Arguments**

    - `logs`: from `read_logs`. `fit_on`, `predict`: names of runs of one network and batch size, or patterns such as "25M/*".
      Without `fit_on` the first run is fitted alone; with it and without `predict`, nothing is held out.
    - `law`: None lets `choose_law` pick by cross-validation inside `fit_on`, and forecasts by the mean of what it keeps; or a name
      of `schedule_laws`.
    - `after`: first step that laws are fitted to; default the latest of `FIRST_SHARE` of the run, the end of the warm-up, and the
      transition. `thresholds`, `irreducible`: of the phases, see `find_transition_curve`.
    - `kernel`: `kernel_regime`, or `compare` of the kernel system and its run. `draws`: bootstrap draws of the fits.

    Steps are SGD steps of the log. **Returns** `LogReport`. **Raises** `InputError` for names that match nothing.
    """
    began = time.perf_counter()
    given = (logs,) if isinstance(logs, TrainingLog) else tuple(logs)
    if not given:
        raise InputError("logs", expected="at least one TrainingLog", got=given, remedy="use odescale.read_logs")
    chosen = pick_logs(given, fit_on, "fit_on") if fit_on is not None else given[:1]
    others = pick_logs(given, predict, "predict") if predict is not None else ()
    both = [log.name for log in others if any(log is one for one in chosen)]
    if both:
        raise InputError("predict", expected="runs that fit_on does not hold", got=both, remedy="name other runs")
    shown = dict.fromkeys((*(log.name for log in (*chosen, *others)), *(log.name for log in given)))
    by_name = {log.name: log for log in given}
    runs = tuple(_describe(by_name[name], thresholds, irreducible) for name in list(shown)[:MOST_RUNS])
    first = next((run.phases.t_x_step for run in runs if run.log is chosen[0] and run.phases is not None), None)
    fitted, window, table, table_reason = _laws(chosen, first, law, after, draws)
    held: tuple[LossCurve, ...] = ()
    found, forecast_reason = None, "no run to predict was named (predict)"
    if others and table is None:
        forecast_reason = table_reason
    elif others and table is not None and window is not None:
        try:
            held = tuple(thinned(log).curve().between(window[0], np.inf) for log in others)
            choice = None if law else choose_from(table.of(THEORY))
            found, forecast_reason = forecast(fitted, held, law=law, choice=choice, draws=draws), ""
        except OdescaleError as error:
            forecast_reason = str(error)
    verdict = _verdict(runs, table, table_reason, law, found, forecast_reason, kernel)
    return LogReport(
        runs, tuple(log.name for log in given), fitted, window, table, table_reason, found, forecast_reason, held, kernel, verdict,
        {name: version(name) for name in VERSIONS}, time.perf_counter() - began, tuple(log.name for log in others),
    )  # fmt: skip


def thinned(log: TrainingLog, most: int = MOST_POINTS) -> TrainingLog:
    """Means over blocks of neighbouring rows, `most` blocks at the most; a shorter log as it is."""
    size = log.step.size
    if size <= most:
        return log
    width = block_rows(log, most)
    edges = np.arange(0, size, width)
    counts = np.diff(np.append(edges, size))

    def mean(values: Any) -> Any:
        return None if values is None else np.add.reduceat(values, edges) / counts

    note = f"laws are fitted to means over {width} rows"
    return TrainingLog(
        log.name, mean(log.step), mean(log.loss), mean(log.learning_rate), mean(log.tokens), mean(log.flops),
        columns=log.columns, notes=(*log.notes, note), source=log.source, sha256=log.sha256, warmup_steps=log.warmup_steps,
    )  # fmt: skip


def block_rows(log: TrainingLog, most: int = MOST_POINTS) -> int:
    """Rows of a block of `thinned`; 1: as it is."""
    return -(-log.step.size // most)


def pick_logs(logs: Sequence[TrainingLog], words: str | Sequence[str], argument: str) -> tuple[TrainingLog, ...]:
    """Logs by exact name, then by pattern, then by a part of the name."""
    found: dict[str, TrainingLog] = {}
    for word in [words] if isinstance(words, str) else words:
        matched = named_logs(logs, word)
        if not matched:
            raise InputError(
                argument, expected=f"a run among {log_names(logs)}", got=word, remedy="name one, or a pattern"
            )
        found |= {log.name: log for log in matched}
    return tuple(found.values())


def _describe(log: TrainingLog, thresholds: Thresholds | None, irreducible: float) -> RunReport:
    kept = log.step > 0
    step, loss = log.step[kept], log.loss[kept]
    if step.size < 8 or not (loss > irreducible).all():
        reason = (
            f"{step.size} points after step 0, 8 are needed" if step.size < 8 else f"losses at or below {irreducible:g}"
        )
        return RunReport(log, None, None, None, _clocks(log, None), reason)
    phases = phases_of_log(log, thresholds=thresholds, irreducible=irreducible)
    exponents = local_exponent(step, loss, irreducible=irreducible)
    try:
        floor = fit_power_floor(step, loss, time_unit="SGD steps")
    except InputError:  # points in a few bins of log t only
        floor = None
    return RunReport(log, phases, exponents, floor, _clocks(log, phases.t_x_step), "")


def _clocks(log: TrainingLog, t_x: float | None) -> tuple[dict[str, Any], ...]:
    kept = log.step > 0
    step = log.step[kept]
    begin = "first" if kept.all() else "first after step 0"
    moments = [(begin, float(step[0])), ("last", float(step[-1]))]
    if t_x is not None:
        moments.insert(1, ("t_x", t_x))
    series: dict[str, Any] = {"tau": log.tau()[kept] if log.learning_rate is not None else None}
    series |= {name: None if getattr(log, name) is None else getattr(log, name)[kept] for name in ("tokens", "flops")}
    return tuple(
        {"moment": moment, "steps": at}
        | {name: float(np.interp(at, step, values)) for name, values in series.items() if values is not None}
        for moment, at in moments
    )


def _laws(
    chosen: Sequence[TrainingLog], t_x: float | None, law: str | None, after: float | None, draws: int
) -> tuple[tuple[LossCurve, ...], tuple[float, float] | None, LawTable | None, str]:
    unrated = [log.name for log in chosen if log.learning_rate is None]
    if unrated:
        return (), None, None, f"no learning rate in {', '.join(unrated)}: laws in intrinsic time need it"
    curves = [thinned(log).curve() for log in chosen]
    last = max(float(curve.step[-1]) for curve in curves)
    first = after
    if first is None:
        first = first_step(curves)
        if t_x is not None and t_x < 0.5 * last:
            first = max(first, t_x)
    try:
        cut = tuple(curve.between(first, np.inf) for curve in curves)
        table = compare_laws(cut, laws=(law,) if law else THEORY, draws=draws)
        # Baselines stand beside for their residuals: no bootstrap, no cross-validation.
        rivals = [name for name in BASELINES if name != law]
        return (
            cut,
            (first, last),
            table.beside(compare_laws(cut, laws=rivals, draws=0, validate=False, memory=table.memory)),
            "",
        )
    except OdescaleError as error:
        return (), (first, last), None, str(error)


def first_step(curves: Sequence[LossCurve]) -> float:
    """Where fits of laws begin by default: after `FIRST_SHARE` of the longest run, and with every rate within 1 % of its peak."""
    rates = [np.asarray(curve.learning_rate) for curve in curves]
    warm = [float(c.step[np.argmax(rate >= 0.99 * rate.max())]) for c, rate in zip(curves, rates, strict=True)]
    return max(FIRST_SHARE * max(float(curve.step[-1]) for curve in curves), *warm)


def _verdict(
    runs: Sequence[RunReport],
    table: LawTable | None,
    table_reason: str,
    law: str | None,
    found: Forecast | None,
    forecast_reason: str,
    kernel: KernelRegime | Comparison | None,
) -> Verdict:
    """Agrees or differs only where something was held out; the first reason answers what was asked."""
    reasons: list[str] = []
    status: Status = "undecided"
    known = (
        [] if table is None else [name for name, fit in table.fits.items() if fit.identified and name in (*THEORY, law)]
    )
    if found is None:
        reasons.append(f"no forecast: {forecast_reason}")
    else:
        held, inside = _covered(found)
        if held:
            share = inside / held
            status = "agrees" if share >= COVERED else "differs"
            error, rival = found.errors(), found.errors("power_tau")
            count = sum(run.truth is not None for run in found.runs)
            held_out, curves = ("1 run", "1 curve") if count == 1 else (f"{count} runs", f"{count} curves")
            left = ""
            if np.isfinite(error["unseen"]):
                left = f"{error['unseen']:.3g} where the learning rate has left that of the fitted runs; "
            reasons.append(
                f"forecast by {found.mean.name} against {held_out} held out: mean absolute error {error['mean_absolute']:.3g} "
                f"({left}power law in tau {rival['mean_absolute']:.3g}); nominal 90 % intervals hold {inside} of {held} points, "
                f"which are neighbours along {curves} and not as many independent cases"
            )
        else:
            reasons.append(f"forecast by {found.mean.name}, nothing held out to judge it by")
        for run in found.runs[:MOST_RUNS]:
            reasons.append(f"{run.name}: loss {end_of(run)} forecast at step {in_steps(run.step[-1])}")
    if table is None:
        reasons.append(f"no law: {table_reason}")
    elif not known:
        whys = dict.fromkeys(fit.reason for name, fit in table.fits.items() if name in (*THEORY, law))
        reasons.append(f"the fitted runs identify no law of the theory ({'; '.join(whys)}); no forecast can be trusted")
    else:
        reasons.append(f"the fitted runs identify the laws of the theory {', '.join(known)}")
    for run in runs:
        reasons.append(f"{run.log.name}: {run.reason if run.phases is None else run.phases.sentence()}")
    if kernel is not None:
        reasons.append(f"kernel: {kernel.verdict}")
        if kernel.verdict.status == "outside the theory":
            reasons.append("a linear (kernel) theory describes this network no further than its first steps")
    return Verdict(status, tuple(reasons))


def end_of(run: RunForecast) -> str:
    """The forecast at the last point of a run with its interval."""
    return f"{run.loss[-1]:.5g} (90 %: {run.low[-1]:.5g} to {run.high[-1]:.5g})"


def _covered(found: Forecast) -> tuple[int, int]:
    """(points held out, of these inside the interval) over all runs with a truth."""
    counts = [covered(run) for run in found.runs]
    return sum(held for held, _ in counts), sum(inside for _, inside in counts)


def covered(run: RunForecast) -> tuple[int, int]:
    """(points held out, of these inside the interval) of one run; (0, 0) without a truth."""
    if run.truth is None:
        return 0, 0
    return run.truth.size, int(((run.truth >= run.low) & (run.truth <= run.high)).sum())
