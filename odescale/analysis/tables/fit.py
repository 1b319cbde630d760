"""Scaling laws fitted to tables of finished runs: Huber loss of log L, many starts, rows resampled, and a check of the answer."""

from __future__ import annotations

import numpy as np
from jax.typing import ArrayLike

from odescale.analysis.tables.audit import find_outliers, outlier_reasons, robust_scale, why_open
from odescale.analysis.tables.forms import Form
from odescale.analysis.tables.named import form_named
from odescale.analysis.tables.projection import grid_starts, project
from odescale.analysis.tables.result import HeldOut, TableFit, quantiles
from odescale.analysis.tables.robust import Problem, minimise, problem_of
from odescale.analysis.tables.table import ScalingTable
from odescale.errors import MOST_DRAWS, InputError, require_number, whole

LEAST_HELD_OUT = 3
"""Rows of the largest compute that are left out and predicted at least."""
MOVED = 1.0
"""Standard errors by which the rows called outliers may move an exponent before the answer with them is unstable."""


def fit_table(
    table: ScalingTable,
    form: str | Form = "chinchilla",
    *,
    robust: float = 1e-3,
    leave_out: ArrayLike | str | None = None,
    weights: ArrayLike | None = None,
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
    - `bootstrap`: resampled tables, each fitted to its own minimum from the full fit; rows are drawn, and whole runs where
      `table.runs` names rows of one run, because such rows are not independent. `level` of the intervals. `seed`.

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
    best, cost, agreement = _full(problem, held, delta, starts)
    out, deviation, theta_without = find_outliers(problem, best, held, delta)
    if isinstance(leave_out, str) and leave_out == "outliers" and out.any():
        held = held * ~out
        best, cost, agreement = _full(problem, held, delta, starts)
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
    notes = [*drawn_as]
    if failed > 0:
        notes.append(f"{failed:.1%} of the draws did not converge: their last values are kept")
    if agreement < 0.5:
        notes.append(f"{agreement:.0%} of the starts end at the best minimum: the surface has several")
    return TableFit(
        shape, table, named, errors, sample, level, residual, robust_scale(residual[held > 0], p), cost,
        project(problem, values[len(shape.amplitudes) :], held), outlier_reasons(out, deviation, far, columns), without,
        opened,
        _why_unstable(problem, out, held, best, theta_without, delta, failed, seed),
        _hold_out(problem, table, held, delta, starts), agreement, failed, tuple(notes),
    )  # fmt: skip


def _weights(table: ScalingTable, leave_out: ArrayLike | str | None, weights: ArrayLike | None) -> np.ndarray:
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


def _full(problem: Problem, held: np.ndarray, delta: float, starts: int) -> tuple[np.ndarray, float, float]:
    """(theta (1, p) of the best minimum over all starts, its cost, share of the starts that reach it)."""
    theta = grid_starts(problem, held, starts)
    found = minimise(problem, theta, np.repeat(held[None], theta.shape[0], axis=0), delta)
    place = int(np.argmin(np.where(found.converged, found.cost, np.inf) if found.converged.any() else found.cost))
    cost = float(found.cost[place])
    same = found.cost <= cost * (1 + 1e-4) + 1e-18
    return found.theta[place][None], cost, float(same.mean())


def resample(
    table: ScalingTable, held: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[str]]:
    """((draws, n) weights: how often each row was drawn, times its own weight; what was drawn, in words)."""
    rows = np.flatnonzero(held > 0)
    label = np.arange(rows.size) if table.runs is None else np.unique(table.runs[rows], return_inverse=True)[1]
    groups = int(label.max()) + 1
    times = rng.multinomial(groups, np.full(groups, 1 / groups), size=draws)
    counts = np.zeros((draws, held.size))
    counts[:, rows] = times[:, label] * held[rows]
    if groups == rows.size:
        return counts, [f"bootstrap: {draws} draws of {groups} rows, taken as independent runs"]
    return counts, [
        f"bootstrap: {draws} draws of {groups} whole runs ({rows.size} rows): rows of one run are not independent"
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


def _why_unstable(
    problem: Problem, out: np.ndarray, held: np.ndarray, best: np.ndarray, without: np.ndarray, delta: float,
    failed: float, seed: int,
) -> tuple[str, ...]:  # fmt: skip
    """Exponents that the outliers move by more than `MOVED` standard errors of the fit without them; draws that fail."""
    reasons = [f"{failed:.0%} of the resampled tables have no minimum that was found"] if failed > 0.05 else []
    if out.any():
        rows = np.flatnonzero((held > 0) & ~out)
        rng = np.random.default_rng(seed)
        counts = np.zeros((200, held.size))
        counts[:, rows] = rng.multinomial(rows.size, np.full(rows.size, 1 / rows.size), size=200) * held[rows]
        sample = problem.values(
            minimise(problem, np.repeat(without, 200, axis=0), counts, delta, path=(3.0, 1.0)).theta
        )
        error = sample.std(axis=0, ddof=1)
        with_them, alone = problem.values(best)[0], problem.values(without)[0]
        for k, exponent in enumerate(problem.form.exponents, len(problem.form.amplitudes)):
            if abs(with_them[k] - alone[k]) > MOVED * error[k]:
                reasons.append(
                    f"{exponent.name} is {with_them[k]:.4g} with the {int(out.sum())} outliers and {alone[k]:.4g} +- "
                    f'{error[k]:.2g} without them: leave_out="outliers", or mend the rows'
                )
    return tuple(reasons)


def _hold_out(problem: Problem, table: ScalingTable, held: np.ndarray, delta: float, starts: int) -> HeldOut | None:
    """The rows within a factor 2 of the largest compute, three at least, predicted by a fit to the others."""
    size = table.flop if table.flop is not None else np.prod([np.asarray(v) for v in problem.columns.values()], axis=0)
    used = held > 0
    third = np.sort(size[used])[-min(LEAST_HELD_OUT, int(used.sum()))]
    largest = used & (size >= min(size[used].max() / 2, third))
    left = used & ~largest
    if int(left.sum()) < len(problem.form.names) + 2:
        return None
    theta = _full(problem, held * left, delta, starts)[0]
    rows = np.flatnonzero(largest)
    values = dict(zip(problem.form.names, map(float, problem.values(theta)[0]), strict=True))
    return HeldOut(rows, -problem.residual(theta)[0][0][rows], values)
