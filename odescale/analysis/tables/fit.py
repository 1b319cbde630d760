"""Scaling laws fitted to tables of finished runs: Huber loss of log L, many starts, rows resampled, and a check of the answer."""

from __future__ import annotations

import numpy as np

from odescale.analysis.tables.audit import SPAN, find_outliers, outlier_reasons, robust_scale, why_open
from odescale.analysis.tables.forms import Form
from odescale.analysis.tables.named import form_named
from odescale.analysis.tables.projection import project
from odescale.analysis.tables.result import TableFit, quantiles
from odescale.analysis.tables.robust import minimise, problem_of
from odescale.analysis.tables.stability import full_fit, hold_out, scales_disagree, unstable_with
from odescale.analysis.tables.table import Numbers, ScalingTable
from odescale.errors import MOST_DRAWS, InputError, require_number, whole


def fit_table(
    table: ScalingTable,
    form: str | Form = "chinchilla",
    *,
    robust: float = 1e-3,
    leave_out: Numbers | str | None = None,
    weights: Numbers | None = None,
    starts: int = 24,
    bootstrap: int = 4000,
    level: float = 0.9,
    seed: int = 0,
) -> TableFit:
    """min sum_i w_i rho_delta(log L(x_i) - log L_i), rho Huber's loss: L = E + A/N^alpha + B/D^beta and its relatives.

    **Arguments**

    - `table`: of `read_table` or `scaling_table`. `form`: a name (`odescale.laws.FORMS`) or a `Form`.
    - `robust`: delta, in log L. 1e-3, far below the scatter of most tables, makes it nearly the least absolute deviation; inf is
      least squares of log L.
    - `leave_out`: rows not to fit: positions, a mask (n,), "marked" (those that the file calls outliers) or "outliers" (those that
      the first fit finds). `weights` (n,) >= 0.
    - `starts`: best points of a grid over the exponents, amplitudes by non-negative least squares, each followed to its minimum.
    - `bootstrap`: resampled tables, each fitted to its own minimum from the full fit: weights of rows are drawn, and of whole runs
      where `table.runs` names rows of one run, because such rows are not independent. `level` of the intervals. `seed`.

    **Returns** `TableFit`. Read `outliers`, `unidentified` and `unstable` before the numbers.
    **Raises** `InputError`: fewer rows than numbers, a column that the form needs and the table lacks.
    **Failure regime**: the bootstrap knows the scatter of the runs, not the error of the form: see `held_out`. A free constant is
    optimistic when extrapolated. Source: Besiroglu et al. 2024, arXiv 2404.10102; Hoffmann et al. 2022, arXiv 2203.15556.

    ```python
    import numpy as np
    from odescale.laws import fit_table, scaling_table
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(7.5, 9.5, 60), 10 ** rng.uniform(9, 11, 60)
    L = (1.8 + 480 / N**0.35 + 2100 / D**0.37) * np.exp(0.003 * rng.normal(size=60))
    print(fit_table(scaling_table(params=N, tokens=D, loss=L), bootstrap=400))
    ```
    """
    shape = form_named(form)
    delta = float("inf") if np.isposinf(robust) else require_number("robust", robust, open_=True)
    starts = whole("starts", starts, 1, 1000, remedy="24 is good")
    draws = whole("bootstrap", bootstrap, 2, MOST_DRAWS, remedy="4000 is good")
    seed = whole("seed", seed, 0)
    level = require_number("level", level, 0.0, 1.0, open_=True)
    columns = shape.read({name: table.column(name) for name in shape.columns})
    problem = problem_of(shape, columns, table.loss)
    held = _weights(table, leave_out, weights)
    p = len(shape.names)
    if int((held > 0).sum()) < p + 1:
        raise InputError("table", expected=f"more runs than the {p} numbers of {shape.equation}",
                         got=f"{int((held > 0).sum())} runs", remedy="add runs, or take a form with fewer numbers")  # fmt: skip
    best, cost, agreement, certain = full_fit(problem, held, delta, starts)
    left: list[str] = []
    out, deviation, theta_without = find_outliers(problem, best, held, delta)
    if isinstance(leave_out, str) and leave_out == "outliers" and out.any():
        held = held * ~out
        left.append(f"left out as outliers: rows {', '.join(map(str, np.flatnonzero(out)))}")
        best, cost, agreement, certain = full_fit(problem, held, delta, starts)
        out, theta_without = np.zeros_like(out), best
    rng = np.random.default_rng(seed)
    counts, drawn_as = resample(table, held, draws, rng)
    found = minimise(problem, np.repeat(best, draws, axis=0), counts, delta, path=(3.0, 1.0))
    values = problem.values(best)[0]
    residual = np.where(held > 0, -problem.residual(best)[0][0], np.nan)
    sample = widened(problem.values(found.theta), values, residual[held > 0], delta, p)
    named = dict(zip(shape.names, map(float, values), strict=True))
    errors = dict(zip(shape.names, map(float, sample.std(axis=0, ddof=1)), strict=True))
    without = dict(zip(shape.names, map(float, problem.values(theta_without)[0]), strict=True))
    intervals = {
        name: (float(low), float(high)) for name, low, high in zip(shape.names, *quantiles(sample, level), strict=True)
    }
    opened = why_open(shape, {n: v[held > 0] for n, v in columns.items()}, named, sample, intervals)
    far = -problem.residual(theta_without)[0][0]
    failed = float(1 - found.converged.mean())
    size = table.flop if table.flop is not None else np.prod([columns[name] for name in shape.columns], axis=0)
    unstable = [] if certain else ["no start reaches a minimum: the values are where the search stopped"]
    unstable += [f"{failed:.0%} of the resampled tables have no minimum that was found"] if failed > 0.05 else []
    unstable += unstable_with(problem, out, held, best, theta_without, delta, seed)
    if not out.any() and not opened:
        unstable += scales_disagree(problem, size, held, best, counts, found.theta, delta)
    notes = [*left, *drawn_as]
    if failed > 0:
        notes.append(f"{failed:.1%} of the draws did not converge: their last values are kept")
    if table.flop is not None and np.ptp(np.log(table.flop[held > 0])) < np.log(SPAN):
        notes.append("all runs are within a factor 2 of compute: what the law says elsewhere rests on its form alone")
    if agreement < 0.5:
        notes.append(f"{agreement:.0%} of the starts end at the best minimum: the surface has several")
    return TableFit(
        shape, table, named, errors, sample, level, residual, robust_scale(residual[held > 0], p), cost,
        project(problem, values[len(shape.amplitudes) :], held), outlier_reasons(out, deviation, far, columns), without,
        opened, tuple(unstable), hold_out(problem, size, held, delta, starts), agreement, failed, tuple(notes),
    )  # fmt: skip


def _weights(table: ScalingTable, leave_out: Numbers | str | None, weights: Numbers | None) -> np.ndarray:
    """(n,) weights of the rows, 0 for those left out."""
    n = len(table)
    held = np.ones(n) if weights is None else np.asarray(weights, float)
    if held.shape != (n,) or not (np.isfinite(held) & (held >= 0)).all():
        raise InputError("weights", expected=f"{n} numbers >= 0", got=held.shape, remedy="one per row")
    held = held / held.mean() if held.any() else held
    if leave_out is None or (isinstance(leave_out, str) and leave_out == "outliers"):
        return held
    if isinstance(leave_out, str):
        if leave_out != "marked" or table.marked is None:
            raise InputError("leave_out", expected='positions, a mask, "outliers", or "marked" in a table that marks rows',
                             got=leave_out, remedy="pass positions")  # fmt: skip
        return np.where(table.marked, 0.0, held)
    rows = np.asarray(leave_out)
    mask = np.zeros(n, bool)
    try:
        mask[rows.astype(int) if rows.size == 0 else rows] = True
    except IndexError as error:
        raise InputError("leave_out", expected=f"positions below {n}, or a mask of {n} rows", got=leave_out,
                         remedy="count rows from 0") from error  # fmt: skip
    return np.where(mask, 0.0, held)


def resample(
    table: ScalingTable, held: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[str]]:
    """((draws, n) weights of the rows, times their own; what was drawn, in words).

    Exponential weights of the runs, divided by their mean (Rubin, Ann. Statist. 9, 130 (1981)), not how often each is drawn: the
    two agree for many runs, but of few runs at fixed budgets a drawn table may lack the ends of one. Its refits scatter too
    widely then (40 runs: by a tenth; benchmarks/table_fits.py).
    """
    rows = np.flatnonzero(held > 0)
    label = np.arange(rows.size) if table.runs is None else np.unique(table.runs[rows], return_inverse=True)[1]
    groups = int(label.max()) + 1
    weight = rng.exponential(size=(draws, groups))
    weight /= weight.mean(axis=1, keepdims=True)
    weights = np.zeros((draws, held.size))
    weights[:, rows] = weight[:, label] * held[rows]
    if groups == rows.size:
        return weights, [f"bootstrap: {draws} draws of weights of {groups} rows, taken as independent runs"]
    return weights, [
        f"bootstrap: {draws} draws of weights of {groups} whole runs ({rows.size} rows): rows of one run are not independent"
    ]


def widened(draws: np.ndarray, values: np.ndarray, residual: np.ndarray, delta: float, parameters: int) -> np.ndarray:
    """Draws farther from the estimate by sqrt(n/(n - p m)), m the share of the rows within delta of the fit.

    Least squares (m = 1) leave residuals that are too small by sqrt((n - p)/n), and so is the scatter of refits to rows drawn from
    them. Least absolute deviations (m near 0) pass through p rows instead: there the plain draws cover as they say, and any factor
    is too much (measured: benchmarks/table_fits.py).
    """
    n = residual.size
    factor = np.sqrt(n / max(n - parameters * float(np.mean(np.abs(residual) <= delta)), 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        wide = values * (draws / values) ** factor
    return np.where((draws > 0) & (values > 0), wide, draws)
