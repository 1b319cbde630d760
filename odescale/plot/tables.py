"""Pictures of laws fitted to tables of finished runs: loss against size at fixed compute, residuals of every run."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.ticker import FuncFormatter

from odescale.errors import InputError
from odescale.plot.style import COLOURS, own_axes, panels, plain_values, shared_style

MOST_BUDGETS = 10
SAME_BUDGET = 0.1
"""Relative gap below which two computes are one budget."""
BUDGET_MAP = "viridis"


def budgets_of(flop: Float[np.ndarray, " n"], most: int = MOST_BUDGETS) -> Int[np.ndarray, " n"]:
    """A number for every run: its budget, where the computes stand in groups, else one of `most` equal slices of log C."""
    order = np.argsort(flop)
    steps = np.diff(np.log(flop[order])) > SAME_BUDGET
    groups = np.empty(flop.size, int)
    groups[order] = np.concatenate([[0], np.cumsum(steps)])
    if groups.max() < most:
        return groups
    edges = np.linspace(np.log(flop.min()), np.log(flop.max()), most + 1)[1:-1]
    return np.searchsorted(edges, np.log(flop), side="right")


def plot_isoflop(fit: Any, axes: Axes | None = None, *, minima: Any = None, title: str = "") -> Axes:
    """Loss against parameters N, runs of one compute in one colour, the fitted law along C = 6 N D as lines, its minima as stars.

    **Arguments**: `fit`: a `TableFit` that reads params and tokens. `minima`: (N, loss), each (k,), of Approach 2, drawn as open
    diamonds. **Raises** `InputError` for a law of other columns.
    """
    if set(fit.form.columns) != {"params", "tokens"} or fit.table.flop is None:
        raise InputError("fit", expected="a law of params and tokens", got=fit.form.equation, remedy="draw residuals")
    table, used = fit.table, np.isfinite(fit.residual)
    groups = budgets_of(table.flop)
    with shared_style():
        axes = own_axes(axes, 8.0, 5.2)
        colours, norm = colormaps[BUDGET_MAP], LogNorm(table.flop.min() / 1.2, table.flop.max() * 2.0)
        for group in np.unique(groups):
            rows = groups == group
            budget = float(np.exp(np.log(table.flop[rows]).mean()))
            colour = colours(norm(budget))
            axes.plot(table.params[rows & used], table.loss[rows & used], "o", color=colour, markersize=4.5)
            axes.plot(table.params[rows & ~used], table.loss[rows & ~used], "x", color=colour, markersize=5)
            span = np.geomspace(table.params[rows].min() / 1.6, table.params[rows].max() * 1.6, 200)
            law = fit.predict(params=span, tokens=budget / (6 * span)).loss
            axes.plot(span, law, color=colour, linewidth=1.2)
            low = int(np.argmin(law))
            if 0 < low < span.size - 1:
                axes.plot(span[low], law[low], "*", color=colour, markeredgecolor="black", markersize=11, zorder=4)
        axes.plot([], [], "o", color=COLOURS["grey"], label="runs")
        if not used.all():
            axes.plot([], [], "x", color=COLOURS["grey"], label="runs left out")
        axes.plot([], [], color=COLOURS["grey"], label=f"law {fit.form.name} at that compute")
        axes.plot([], [], "*", color=COLOURS["grey"], markeredgecolor="black", markersize=11, label="its minimum")
        if minima is not None:
            axes.plot(
                *minima, "D", markerfacecolor="none", color=COLOURS["run"], label="minimum of a parabola (Approach 2)"
            )
        axes.set(xscale="log", xlabel="parameters N", ylabel="loss L  (unit of the table)", title=title)
        axes.set_ylim(*_inner(table.loss[used]))
        figure: Any = axes.figure
        scale = ScalarMappable(norm, colours)
        figure.colorbar(scale, ax=axes, label="compute C  (FLOP)")
        axes.legend()
    return axes


def plot_table_residuals(fit: Any, axes: Any = None, *, title: str = "") -> dict[str, Axes]:
    """log(measured/fitted loss) of every run against each column that the law reads; runs left out as crosses, outliers ringed."""
    used, rows = np.isfinite(fit.residual), [o.row for o in fit.outliers]
    names = list(fit.form.columns)
    residual = np.log(fit.table.loss) - np.log(fit.predict(**{n: fit.table.column(n) for n in names}).loss)
    with shared_style():
        drawn = panels(axes, names, 4.6 * len(names), 4.2, sharey=True)
        for name, panel in drawn.items():
            x = fit.table.column(name)
            panel.axhline(0, color=COLOURS["formula"], linewidth=1)
            panel.axhspan(-100 * fit.scale, 100 * fit.scale, color=COLOURS["grey"], alpha=0.15, linewidth=0,
                          label="scatter of the runs")  # fmt: skip
            panel.plot(x[used], 100 * residual[used], "o", color=COLOURS["theory"], markersize=4, label="runs")
            if not used.all():
                panel.plot(x[~used], 100 * residual[~used], "x", color=COLOURS["grey"], label="left out")
            if rows:
                panel.plot(x[rows], 100 * residual[rows], "o", markerfacecolor="none", color=COLOURS["run"], markersize=10,
                           label="outliers")  # fmt: skip
            panel.set(xscale="log", xlabel=_AXIS.get(name, name))
        first = drawn[names[0]]
        first.set_ylabel("measured over fitted loss - 1  (%)")
        far = 100 * np.abs(residual).max()
        if far > 20 * 100 * fit.scale:
            first.set_yscale("symlog", linthresh=300 * fit.scale)
            first.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        first.legend()
        first.figure.suptitle(title) if title else None
    return drawn


def plot_best_sizes(report: Any, axes: Any = None, *, title: str = "") -> dict[str, Axes]:
    """Best size and loss against compute with their intervals; best runs and parabolas' minima as points; grey beyond the table.

    `report`: a `TableReport` with a frontier. Axes "params", "loss". **Raises** `InputError` without one.
    """
    found = report.frontier
    if found is None:
        raise InputError("report", expected="a report with best sizes", got=report.open, remedy="draw residuals")
    largest = float(report.table.flop.max())
    with shared_style():
        drawn = panels(axes, ("params", "loss"), 10.5, 4.4)
        for name, panel in drawn.items():
            held = getattr(found, name)
            panel.plot(found.flop, held.value, color=COLOURS["theory"], label="law (Approach 3)")
            panel.fill_between(found.flop, held.low, held.high, color=COLOURS["theory"], alpha=0.2, linewidth=0,
                               label=f"{found.level:.0%} of its draws")  # fmt: skip
            if found.flop[-1] > largest:
                panel.axvspan(
                    largest, found.flop[-1], color=COLOURS["grey"], alpha=0.12, linewidth=0, label="beyond the table"
                )
            panel.set(xscale="log", yscale="log", xlabel="compute C  (FLOP)", xlim=(found.flop[0], found.flop[-1]))
        if report.approaches is not None and "params" in drawn:
            for way, mark, colour in (
                (report.approaches.envelope, "s", "grey"),
                (report.approaches.parabola, "D", "run"),
            ):
                if way.points.size:
                    drawn["params"].plot(
                        *way.points.T, mark, color=COLOURS[colour], markerfacecolor="none", label=f"Approach {way.name}"
                    )
        first = next(iter(drawn.values()))
        first.set_ylabel("best number of parameters N*")
        if "loss" in drawn:
            drawn["loss"].plot(
                report.table.flop, report.table.loss, ".", color=COLOURS["grey"], markersize=4, label="runs"
            )
            drawn["loss"].set_ylabel("loss L  (unit of the table)")
            plain_values(drawn["loss"])
        for panel in drawn.values():
            panel.legend()
        first.figure.suptitle(title) if title else None
    return drawn


_AXIS = {
    "params": "parameters N", "tokens": "tokens D", "batch": "batch  (tokens per step)", "steps": "SGD steps",
    "unique_tokens": "unique tokens U", "width": "width", "depth": "depth  (layers)",
}  # fmt: skip


def _inner(loss: np.ndarray) -> tuple[float, float]:
    """The range of the losses, one run that went wrong left out of account."""
    low, high = float(loss.min()), float(np.quantile(loss, 0.98))
    room = 0.06 * (high - low)
    return low - room, high + 2 * room
