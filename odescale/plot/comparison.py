"""The picture of the report: theory and runs on one clock, their ratio, the local exponents, the transition."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from odescale.errors import InputError
from odescale.plot.style import (
    COLOURS,
    TIME_LABEL,
    mark_transition,
    name_index_levels,
    new_figure,
    plain_decades,
    shared_style,
    steps_axis,
    transition_in_words,
    unreadable_index,
)


def plot_comparison(
    theory_t: Float[ArrayLike, " m"],
    theory_loss: Float[ArrayLike, " m"],
    run_t: Float[ArrayLike, " n"],
    run_loss: Float[ArrayLike, " n"],
    *,
    run_stderr: Float[ArrayLike, " n"] | None = None,
    seed_losses: Float[ArrayLike, "s n"] | None = None,
    theory_error: Float[ArrayLike, " m"] | None = None,
    theory_at_run: Float[ArrayLike, " n"] | None = None,
    context_at_run: Float[ArrayLike, " n"] | None = None,
    formula: tuple[ArrayLike, ArrayLike] | None = None,
    theory_exponent: Any = None,
    run_exponent: Any = None,
    theory_transition: Any = None,
    run_transition: Any = None,
    ratio_band: tuple[float, float] | None = (0.9, 1.1),
    steps_per_unit: float | None = None,
    time_label: str = TIME_LABEL,
    theory_label: str = "theory (ODE)",
    run_label: str = "run, mean over seeds",
    formula_label: str = "closed form, no SGD noise",
    context_label: str = "ODE at the run's own context length",
    title: str = "",
    figure: Figure | None = None,
) -> dict[str, Axes]:
    """L(t) of theory and runs, run/theory, p(t) and q(t); returns the axes "loss", "ratio", "exponent", "index".

    **Arguments**: `theory_t`, `theory_loss` (m,) a dense line, `theory_error` (m,) its absolute error, drawn as a band;
    `run_t`, `run_loss` (n,) the mean of the runs, `run_stderr` (n,) its standard error (bars), `seed_losses` (s, n) the
    single runs (faint); `theory_at_run` (n,) the theory at the run's times: with it the ratio is drawn, and
    `context_at_run` (n,), a second theory at those times, over the first. `formula` = (t, loss) of a closed form.
    `theory_exponent`, `run_exponent`: objects with `t`, `exponent`, `index` and, where known, `exponent_stderr`,
    `index_stderr` (a `LocalExponent`, a `Trajectory`). `theory_transition`, `run_transition`: `Transition` records;
    line at t_x, shaded 95 % interval. `ratio_band`: what counts as agreement, shaded. `steps_per_unit`: SGD steps in
    one unit of the x-axis, for the upper axis; `time_label` must name that unit.

    Points without a finite positive loss are left out. **Raises** `InputError` when lengths do not match.
    """
    theory_t, theory_loss = np.asarray(theory_t, float), np.asarray(theory_loss, float)
    run_t, run_loss = np.asarray(run_t, float), np.asarray(run_loss, float)
    _same("theory_loss", theory_loss, theory_t)
    _same("run_loss", run_loss, run_t)
    with shared_style():
        figure = new_figure(12.0, 7.4) if figure is None else figure
        axes = _layout(figure, run_exponent is not None or theory_exponent is not None, theory_at_run is not None)
        loss = axes["loss"]
        _draw_losses(loss, theory_t, theory_loss, theory_error, run_t, run_loss, run_stderr, seed_losses, formula,
                     (theory_label, run_label, formula_label))  # fmt: skip
        _frame_loss(loss, run_t, [theory_loss[_inside(theory_t, run_t)], run_loss])
        _name_transition(loss, theory_transition, run_transition)
        if theory_at_run is not None:
            _draw_ratio(axes["ratio"], run_t, run_loss, run_stderr, seed_losses, theory_at_run, ratio_band)
            if context_at_run is not None:
                share = np.asarray(context_at_run, float) / np.asarray(theory_at_run, float)
                axes["ratio"].plot(run_t, share, "--", color=COLOURS["theory"], linewidth=1.6, label=context_label)
                axes["ratio"].legend(loc="lower left", fontsize=8.5)
        if "exponent" in axes:
            _draw_exponents(axes, theory_exponent, run_exponent, run_t)
        for axis in axes.values():
            mark_transition(axis, theory_transition, COLOURS["theory"], linestyle="--")
            mark_transition(axis, run_transition, COLOURS["run"])
            axis.set_xlim(run_t[run_t > 0].min() * 0.93, run_t.max() * 1.07)
            plain_decades(axis)
        axes["ratio" if "ratio" in axes else "loss"].set_xlabel(time_label)
        if "index" in axes:
            axes["index"].set_xlabel(time_label)
        if steps_per_unit is not None:
            steps_axis(loss, steps_per_unit)
            if "exponent" in axes:
                steps_axis(axes["exponent"], steps_per_unit)
        if title:
            figure.suptitle(title, fontsize=13)
    return axes


def _same(name: str, values: np.ndarray, times: np.ndarray) -> None:
    if values.shape != times.shape or values.ndim != 1:
        raise InputError(name, expected=f"shape {times.shape}", got=f"{values.shape}", remedy="one value per time")


def _inside(t: np.ndarray, run_t: np.ndarray) -> np.ndarray:
    return (t >= run_t.min()) & (t <= run_t.max())


def _layout(figure: Figure, exponents: bool, ratio: bool) -> dict[str, Axes]:
    left = [["loss"], ["loss"], ["ratio"]] if ratio else [["loss"]] * 3
    right = [["exponent"], ["exponent"], ["index"]] if exponents else [[], [], []]
    rows: Any = [a + b for a, b in zip(left, right, strict=True)]
    widths = [1.25, 1.0] if exponents else None
    axes = figure.subplot_mosaic(rows, sharex=True, height_ratios=[1, 1, 1.1], width_ratios=widths)
    return {name: axes[name] for name in ("loss", "ratio", "exponent", "index") if name in axes}


def _draw_losses(loss, theory_t, theory_loss, theory_error, run_t, run_loss, run_stderr, seed_losses, formula, labels):
    loss.set(xscale="log", yscale="log", ylabel="excess test loss L  (half squared error)")
    if seed_losses is not None:
        for i, row in enumerate(np.asarray(seed_losses)):
            # A single seed can fall below zero by the noise of its measurement: no place on a logarithmic axis.
            loss.plot(run_t, np.where(row > 0, row, np.nan), color=COLOURS["run"], alpha=0.3, linewidth=0.9, zorder=1.5,
                      label="single seeds" if i == 0 else None)  # fmt: skip
    if formula is not None:
        loss.plot(*formula, color=COLOURS["formula"], linestyle=":", linewidth=1.6, label=labels[2])
    line = loss.plot(theory_t, theory_loss, color=COLOURS["theory"], label=labels[0])[0]
    if theory_error is not None:
        error = np.asarray(theory_error)
        low = np.maximum(theory_loss - error, 1e-3 * theory_loss)
        loss.fill_between(theory_t, low, theory_loss + error, color=line.get_color(), alpha=0.25, linewidth=0)
    bars = None if run_stderr is None else np.minimum(np.asarray(run_stderr), 0.99 * run_loss)
    loss.errorbar(run_t, run_loss, yerr=bars, fmt="o", markersize=4.2, color=COLOURS["run"], capsize=2, linewidth=1.2,
                  markeredgecolor="white", markeredgewidth=0.5, zorder=3, label=labels[1])  # fmt: skip
    loss.legend(loc="lower left")


def _frame_loss(loss: Axes, run_t: np.ndarray, curves: list[np.ndarray]) -> None:
    values = np.concatenate([curve[np.isfinite(curve) & (curve > 0)] for curve in curves])
    # Room above the curve for the words about the transition.
    loss.set_ylim(values.min() * 0.45, values.max() * 3.2)
    loss.set_xlim(run_t[run_t > 0].min(), run_t.max())


def _name_transition(loss: Axes, theory: Any, run: Any) -> None:
    words = [*transition_in_words(run, "run", "solid"), *transition_in_words(theory, "theory", "dashed")]
    if not words:
        return
    shown = run if run is not None and run.found else theory
    if shown is None or not shown.found:
        loss.text(0.98, 0.97, "\n".join(words), transform=loss.transAxes, ha="right", va="top", fontsize=9.5)
        return
    text = "\n".join([r"exponential $\rightarrow$ power law", *words])
    loss.annotate(
        text, xy=(shown.t_x, 0.90), xycoords=loss.get_xaxis_transform(), xytext=(0.985, 0.97),
        textcoords="axes fraction", ha="right", va="top", fontsize=9.5,
        bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#D9D9D9"},
        arrowprops={"arrowstyle": "->", "color": COLOURS["grey"]},
    )  # fmt: skip


def _draw_ratio(ratio, run_t, run_loss, run_stderr, seed_losses, theory_at_run, band) -> None:
    theory = np.asarray(theory_at_run, float)
    _same("theory_at_run", theory, run_t)
    ratio.set(xscale="log", ylabel="run / theory")
    if band is not None:
        ratio.axhspan(*band, color=COLOURS["third"], alpha=0.12, linewidth=0)
        ratio.text(0.01, band[1], f" agreement: {band[0]:g} to {band[1]:g}", transform=ratio.get_yaxis_transform(),
                   va="bottom", fontsize=8.5, color=COLOURS["third"])  # fmt: skip
    if seed_losses is not None:
        for row in np.asarray(seed_losses):
            ratio.plot(run_t, row / theory, color=COLOURS["run"], alpha=0.3, linewidth=0.9)
    ratio.axhline(1.0, color=COLOURS["theory"], linewidth=1.4)
    error = None if run_stderr is None else np.asarray(run_stderr) / theory
    ratio.errorbar(run_t, run_loss / theory, yerr=error, fmt="o", markersize=4.2, capsize=2, color=COLOURS["run"],
                   linewidth=1.2, markeredgecolor="white", markeredgewidth=0.5, zorder=3)  # fmt: skip
    middle = run_loss / theory
    bars = np.zeros_like(middle) if error is None else error
    # The frame belongs to the mean and its bars; a wild single seed may leave it.
    low = min(float(np.nanmin(middle - bars)), band[0] if band else 1.0)
    high = max(float(np.nanmax(middle + bars)), band[1] if band else 1.0)
    ratio.set_ylim(low - 0.25 * (high - low), high + 0.35 * (high - low))


def _draw_exponents(axes: dict[str, Axes], theory: Any, run: Any, run_t: np.ndarray) -> None:
    p_axes, q_axes = axes["exponent"], axes["index"]
    p_axes.set(xscale="log", ylabel=r"local exponent  $p = -\,d\,\log L\,/\,d\,\log t$")
    q_axes.set(xscale="log", ylabel=r"index  $q = d\,\log p\,/\,d\,\log t$", ylim=(-3.2, 2.2))
    hidden = False
    for source, who, colour in ((theory, "theory", "theory"), (run, "run", "run")):
        if source is None:
            continue
        t = np.asarray(source.t, float)
        shown = _inside(t, run_t) & (t > 0)
        for axis, name in ((p_axes, "exponent"), (q_axes, "index")):
            values = np.array(getattr(source, name), float)
            error = getattr(source, f"{name}_stderr", None)
            if error is not None and name == "index":
                # q = p'/p is noise where p is about zero: a line there would only hide the rest.
                values[unreadable_index(source)] = np.nan
                hidden = bool(np.isnan(values[shown]).any())
            axis.plot(t[shown], values[shown], color=COLOURS[colour], label=who)
            if error is not None:
                axis.fill_between(t[shown], (values - error)[shown], (values + error)[shown], color=COLOURS[colour],
                                  alpha=0.2, linewidth=0)  # fmt: skip
    p_axes.legend(loc="upper left")
    p_axes.set_ylim(bottom=min(0.0, p_axes.get_ylim()[0]))
    name_index_levels(q_axes)
    if hidden:
        q_axes.set_title("run: drawn where the standard error of q is below 1", fontsize=8.5, loc="left", pad=3)
