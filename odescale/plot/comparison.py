"""The picture of a comparison: theory and runs on one clock, their ratio, other quantities, local exponents, the transition."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from odescale.plot.style import (
    COLOURS,
    CYCLE,
    LOSS_LABEL,
    draw_runs,
    mark_transition,
    name_index_levels,
    new_figure,
    own_axes,
    plain_decades,
    shared_style,
    slope_guide,
    steps_axis,
    time_label,
    transition_in_words,
    unreadable_index,
)
from odescale.plot.trajectory import EXPONENT_LABEL, INDEX_LABEL, plot_overlaps


def plot_comparison(
    comparison: Any,
    axes: Any = None,
    *,
    formula: tuple[ArrayLike, ArrayLike] | None = None,
    formula_label: str = "closed form, no SGD noise",
    slope: float | None = None,
    title: str = "",
) -> Any:
    """L(t) of theory and runs, log-log and semi-logarithmic, run/theory, p(t) and q(t).

    Axes "loss", "semilog", "ratio", "exponent", "index", and "quantities" where the comparison judges more than the loss:
    run/theory of the others, or relative distances (a kernel's function errors). One `Axes` that is handed in gets "loss" alone.

    **Arguments**: `comparison`: a `Comparison`; `formula` = (t, loss) of a closed form, drawn as a dotted line; `slope`: exponent
    of a predicted power law, drawn as a guide. Band of the theory: its error; bars: standard error of the runs' mean; faint:
    single seeds; shaded ratios: the tolerance. Transitions: a line at t_x, its 95 % interval shaded. Points without a finite
    positive loss are left out.
    """
    run, kept, theory = comparison.run, np.asarray(comparison.kept), comparison.theory
    loss, t = comparison.quantities["loss"], np.asarray(run.t, float)[np.asarray(comparison.kept)]
    others = {n: q for n, q in comparison.quantities.items() if n != "loss" and q.verdict is not None}
    exponents = {"theory": theory} | dict(getattr(comparison, "exponents", {}))
    found = comparison.transitions
    with shared_style():
        drawn = _layout(axes, bool(others))
        _draw_losses(drawn, comparison, t, formula, formula_label)
        if slope is not None:
            slope_guide(drawn["loss"], t, loss.measured[kept], slope)
        drawn["loss"].legend(loc="lower left")
        _frame_loss(drawn, t, [loss.predicted[kept], loss.measured[kept]])
        _name_transition(drawn["loss"], found)
        if "ratio" in drawn:
            _draw_ratio(drawn["ratio"], comparison, t)
        if "quantities" in drawn:
            _draw_others(drawn["quantities"], others, t, kept)
        if "exponent" in drawn:
            _draw_exponents(drawn, exponents, t)
        clock, steps = theory.clock, float(theory.clock.steps_per_unit)
        for name, panel in drawn.items():
            mark_transition(panel, found.get("theory"), COLOURS["theory"], linestyle="--")
            mark_transition(panel, found.get("run"), COLOURS["run"])
            if name != "semilog":
                panel.set_xlim(t.min() * 0.93, t.max() * 1.07)
                plain_decades(panel)
            if name not in ("loss", "exponent") or len(drawn) == 1:
                panel.set_xlabel(time_label(clock))
            if steps != 1 and name in ("loss", "semilog", "exponent"):
                steps_axis(panel, steps)
        if title and len(drawn) > 1:
            drawn["loss"].figure.suptitle(title, fontsize=13)
        elif title:
            drawn["loss"].set_title(title)
    return drawn if len(drawn) > 1 else drawn["loss"]


def plot_compared_overlaps(comparison: Any, axes: Axes | None = None, **options: Any) -> Axes:
    """Overlaps of theory and run, see `odescale.plot.trajectory.plot_overlaps`."""
    return plot_overlaps(comparison.theory, axes, run=comparison.run, **options)


def plot_regime(regime: Any, axes: Axes | None = None) -> Axes:
    """A `KernelRegime`: expected function error and drift of the kernel against steps, with the tolerance."""
    with shared_style():
        axes = own_axes(axes)
        steps = np.asarray(regime.steps, float)
        for values, colour, label in ((regime.error, "theory", "expected function error"),
                                      (regime.drift, "run", "drift in the direction of the slopes")):  # fmt: skip
            axes.plot(steps[1:], np.asarray(values)[1:], "o-", markersize=4, color=COLOURS[colour], label=label)
        axes.axhline(regime.tolerance, color=COLOURS["third"], linestyle="--", label=f"tolerance {regime.tolerance:g}")
        axes.set(xscale="log", yscale="log", xlabel="steps of gradient descent", ylabel="relative size")
        axes.set_title(regime.verdict.reasons[0], loc="left")
        plain_decades(axes)
        axes.legend(loc="best")
    return axes


def _layout(axes: Any, others: bool) -> dict[str, Axes]:
    if axes is not None and not isinstance(axes, Figure):
        return {"loss": axes}
    figure = new_figure(16.5, 7.6) if axes is None else axes
    rows: Any = [["loss", "semilog", "exponent"]] * 2 + [["ratio", "quantities" if others else "semilog", "index"]]
    found = figure.subplot_mosaic(rows, height_ratios=[1, 1, 1.1], width_ratios=[1.25, 1.0, 1.0])
    for name in ("ratio", "exponent", "index", *(("quantities",) if others else ())):
        found[name].sharex(found["loss"])
    for name in ("loss", "exponent"):
        found[name].tick_params(labelbottom=False)
    names = ("loss", "semilog", "ratio", "quantities", "exponent", "index")
    return {name: found[name] for name in names if name in found}


def _draw_losses(drawn: dict[str, Axes], comparison: Any, t: np.ndarray, formula: Any, formula_label: str) -> None:
    theory, run, kept, loss = comparison.theory, comparison.run, comparison.kept, comparison.quantities["loss"]
    times, values = np.asarray(theory.t, float), np.asarray(theory.loss, float)
    error = None if theory.error is None else np.nan_to_num(np.asarray(theory.error) * values)
    band = "" if theory.error is None or np.nanmax(theory.error) < 1e-3 else ", band: its error"
    words = f"run, mean of {len(run.seeds)} seeds" if len(run.seeds) > 1 else "run, one seed"
    for name in ("loss", "semilog"):
        if name not in drawn:
            continue
        panel = drawn[name]
        shown = np.asarray(theory.valid) & (times >= (t.min() if name == "loss" else 0)) & (times <= t.max())
        panel.set(xscale="log" if name == "loss" else "linear", yscale="log")
        panel.set_ylabel(theory.meta.get("loss") or LOSS_LABEL)
        if formula is not None:
            panel.plot(*formula, color=COLOURS["formula"], linestyle=":", linewidth=1.6, label=formula_label)
        panel.plot(times[shown], values[shown], color=COLOURS["theory"], label=f"theory{band}")
        if error is not None:
            low, high = np.maximum(values - error, 1e-3 * values), values + error
            panel.fill_between(times[shown], low[shown], high[shown], color=COLOURS["theory"], alpha=0.25, linewidth=0)
        bars = (loss.statistical * np.abs(loss.predicted))[kept]
        draw_runs(panel, t, loss.measured[kept], bars, run["loss"][:, kept], words)


def _frame_loss(drawn: dict[str, Axes], t: np.ndarray, curves: list[np.ndarray]) -> None:
    values = np.concatenate([curve[np.isfinite(curve) & (curve > 0)] for curve in curves])
    # Room above the curve for the words about the transition.
    drawn["loss"].set_ylim(values.min() * 0.45, values.max() * 8)
    if "semilog" in drawn:
        drawn["semilog"].set(xlim=(0, t.max() * 1.02), ylim=(values.min() * 0.6, values.max() * 2))


def _name_transition(loss: Axes, found: dict[str, Any]) -> None:
    """The name of the curves' phases, and t_x of each estimator by its own line."""
    run, theory = found.get("run"), found.get("theory")
    words = [
        *transition_in_words(run, "run", "solid"),
        *transition_in_words(theory, "theory", "dashed", "same fit and points"),
        *transition_in_words(found.get("exact"), "theory", ""),
    ]
    if not words:
        return
    shown = run if run is not None and run.found else theory
    if shown is None or not shown.found:
        loss.text(0.98, 0.97, "\n".join(words), transform=loss.transAxes, ha="right", va="top", fontsize=9.5)
        return
    text = "\n".join([f"{shown.name}, $t_x$:", *words])
    loss.annotate(
        text, xy=(shown.t_x, 0.90), xycoords=loss.get_xaxis_transform(), xytext=(0.985, 0.97),
        textcoords="axes fraction", ha="right", va="top", fontsize=9.5,
        bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#D9D9D9"},
        arrowprops={"arrowstyle": "->", "color": COLOURS["grey"]},
    )  # fmt: skip


def _draw_ratio(ratio: Axes, comparison: Any, t: np.ndarray) -> None:
    run, kept, loss = comparison.run, comparison.kept, comparison.quantities["loss"]
    predicted, middle, error = loss.predicted[kept], loss.ratio[kept], loss.statistical[kept]
    ratio.set(xscale="log", ylabel="run / theory, loss")
    low, high = [float(np.nanmin(middle - error)), 1.0], [float(np.nanmax(middle + error)), 1.0]
    if loss.tolerance is not None:
        band = (1 - loss.tolerance, 1 + loss.tolerance)
        ratio.axhspan(*band, color=COLOURS["third"], alpha=0.12, linewidth=0)
        ratio.text(0.01, band[1], f" tolerance: {band[0]:g} to {band[1]:g}", transform=ratio.get_yaxis_transform(),
                   va="bottom", fontsize=8.5, color=COLOURS["third"])  # fmt: skip
        low.append(band[0])
        high.append(band[1])
    ratio.axhline(1.0, color=COLOURS["theory"], linewidth=1.4)
    draw_runs(ratio, t, middle, error, run["loss"][:, kept] / predicted, None)
    if comparison.context_loss is not None:
        label = f"second theory (context of T = {float(run.config.get('tokens', np.nan)):g})"
        ratio.plot(
            t, comparison.context_loss[kept] / predicted, "--", color=COLOURS["theory"], linewidth=1.6, label=label
        )
        ratio.legend(loc="lower left", fontsize=8.5)
    # The frame belongs to the mean and its bars; a wild single seed may leave it.
    span = max(high) - min(low)
    ratio.set_ylim(min(low) - 0.25 * span, max(high) + 0.35 * span)


def _draw_others(panel: Axes, others: dict[str, Any], t: np.ndarray, kept: np.ndarray) -> None:
    """run/theory of quantities with a theory's value, or relative distances where there are any, with their tolerances."""
    distances = {name: one for name, one in others.items() if not np.any(one.predicted)}
    panel.set(xscale="log", ylabel="relative distance" if distances else "run / theory, others")
    if not distances:
        panel.axhline(1.0, color=COLOURS["grey"], linewidth=1.0)
    for (name, one), colour in zip((distances or others).items(), CYCLE[2:], strict=False):
        label = f"{name.replace('_', ' ')}, tolerance {one.tolerance:g}"
        if distances:
            positive = one.measured[kept] > 0
            panel.plot(
                t[positive], one.measured[kept][positive], "o-", markersize=4, linewidth=1.2, color=colour, label=label
            )
            panel.axhline(one.tolerance, color=COLOURS["third"], linestyle="--", linewidth=1.1)
            continue
        panel.axhspan(1 - one.tolerance, 1 + one.tolerance, color=colour, alpha=0.08, linewidth=0)
        error = one.statistical[kept]
        panel.errorbar(t, one.ratio[kept], yerr=error if error.any() else None, fmt="o-", markersize=4, linewidth=1.0,
                       capsize=2, color=colour, label=label)  # fmt: skip
    if distances:
        panel.set_yscale("log")
    panel.legend(loc="best", fontsize=8.5)


def _draw_exponents(drawn: dict[str, Axes], sources: dict[str, Any], run_t: np.ndarray) -> None:
    p_axes, q_axes = drawn["exponent"], drawn["index"]
    p_axes.set(xscale="log", ylabel=EXPONENT_LABEL)
    q_axes.set(xscale="log", ylabel=INDEX_LABEL, ylim=(-3.2, 2.2))
    hidden = False
    for who, source in sources.items():
        t = np.asarray(source.t, float)
        shown = (t >= run_t.min()) & (t <= run_t.max()) & (t > 0) & np.asarray(getattr(source, "valid", True))
        for axis, name in ((p_axes, "exponent"), (q_axes, "index")):
            values = np.array(getattr(source, name), float)
            error = getattr(source, f"{name}_stderr", None)
            if error is not None and name == "index":
                # q = p'/p is noise where p is about zero: a line there would only hide the rest.
                values[unreadable_index(source)] = np.nan
                hidden = bool(np.isnan(values[shown]).any())
            axis.plot(t[shown], values[shown], color=COLOURS[who], label=who)
            if error is not None:
                axis.fill_between(t[shown], (values - error)[shown], (values + error)[shown], color=COLOURS[who],
                                  alpha=0.2, linewidth=0)  # fmt: skip
    p_axes.legend(loc="upper left")
    p_axes.set_ylim(bottom=min(0.0, p_axes.get_ylim()[0]))
    name_index_levels(q_axes)
    if hidden:
        q_axes.set_title("run: drawn where the standard error of q is below 1", fontsize=8.5, loc="left", pad=3)
