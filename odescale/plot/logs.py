"""Pictures of a user's own curves: loss over its learning rate, local exponents, residuals, a forecast against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from odescale.analysis.forecast.fit import LawFit
from odescale.analysis.forecast.loss_curve import LossCurve
from odescale.analysis.forecast.predict import RunForecast
from odescale.analysis.phases.exponents import LocalExponent
from odescale.analysis.phases.record import Transition
from odescale.errors import InputError
from odescale.plain_text import in_picture
from odescale.plot.style import (
    COLOURS,
    CYCLE,
    mark_transition,
    name_index_levels,
    new_figure,
    own_axes,
    panels,
    plain_decades,
    plain_values,
    shared_style,
)

MOST_LINES = 8
READABLE_FALL = 1.0
"""e-folds that a loss must fall for a second derivative of it to be worth a line."""


def plot_curves(result: Any, axes: Any = None, *, transition: Transition | None = None) -> dict[str, Axes]:
    """Loss against SGD steps, both logarithmic, over a strip "rate" of the learning rate where it was logged.

    `result`: a log, a `LossCurve`, or a sequence of them, of which the first 8 are drawn; `transition`: marked.
    """
    given = list(result) if isinstance(result, Sequence) else [result]
    curves: list[LossCurve] = [one.curve() if hasattr(one, "curve") else one for one in given]
    if not curves or not all(hasattr(one, "step") and hasattr(one, "learning_rate") for one in curves):
        raise InputError("result", expected="logs or loss curves", got=[type(one).__name__ for one in given],
                         remedy="read_logs gives them")  # fmt: skip
    with shared_style():
        rated = [curve for curve in curves if curve.learning_rate is not None]
        drawn = _over_strip(axes, "loss", strip=bool(rated))
        top, strip = drawn["loss"], drawn.get("rate", drawn["loss"])
        for number, curve in enumerate(curves[:MOST_LINES]):
            kept = curve.step > 0
            style = {"color": CYCLE[number % len(CYCLE)], "linewidth": 1.4}
            top.plot(curve.step[kept], curve.loss[kept], label=in_picture(curve.name), **style)
            if curve.learning_rate is not None and "rate" in drawn:
                strip.plot(curve.step[kept], curve.learning_rate[kept], **style)
        if transition is not None:
            mark_transition(top, transition, COLOURS["grey"], linestyle="--", label=r"transition $t_x$, 95 % shaded")
        # A curve of negative losses (log-likelihood densities) has no logarithm.
        top.set(xscale="log", ylabel="loss  (unit of the log)")
        if min(float(curve.loss[curve.step > 0].min()) for curve in curves) > 0:
            top.set_yscale("log")
            plain_values(top)
        if len(curves) > 1 or (transition is not None and transition.found):
            top.legend(title=None if len(curves) <= MOST_LINES else f"first {MOST_LINES} of {len(curves)} runs")
        if "rate" in drawn:
            _rate_strip(strip)
        strip.set_xlabel("SGD steps")
        plain_decades(strip)
    return drawn


def plot_report(report: Any, axes: Any = None) -> dict[str, Axes]:
    """The runs of a `LogReport` with their learning rates."""
    return plot_curves([run.log for run in report.runs], axes)


def plot_indices(found: LocalExponent, transition: Transition, t_x_step: float | None = None) -> dict[str, Axes]:
    """p(t) = -dlog L/dlog t over q(t) = dlog p/dlog t, near 1 along an exponential and near 0 along a power law."""
    with shared_style():
        figure = new_figure(7.2, 4.8)
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.plot(found.t, found.exponent, color=COLOURS["run"])
        upper.set(xscale="log", ylabel="local exponent  p")
        if transition.found or (transition.fall or 0.0) >= READABLE_FALL:
            # q = p'/p means nothing where p passes through zero.
            clear = found.exponent > 0.02 * np.nanmax(np.abs(found.exponent))
            lower.plot(found.t, np.where(clear, found.index, np.nan), color=COLOURS["run"])
        else:
            words = f"not drawn: the loss falls by {transition.fall or 0.0:.2f} e-folds only,\nand q = dlog p/dlog t is noise then"
            lower.text(0.5, 0.75, words, transform=lower.transAxes, ha="center", va="center", color=COLOURS["grey"])
        lower.set(ylabel="exponentiality  q", xlabel="SGD steps", ylim=(-2, 2))
        name_index_levels(lower)
        for axes in (upper, lower) if t_x_step is not None else ():
            axes.axvline(t_x_step, color=COLOURS["grey"], linestyle="--", linewidth=1.3)
        what = transition.name if t_x_step is None else f"{transition.name}: $t_x$ = {t_x_step:.4g} steps"
        upper.set_title(what, loc="left")
        plain_decades(lower)
    return {"exponent": upper, "index": lower}


def plot_residuals(fit: LawFit, axes: Axes | None = None, *, curves: Sequence[LossCurve] | LossCurve) -> Axes:
    """(L - law)/L of the fitted `curves` against intrinsic time: what is left should have no shape."""
    curves = [curves] if isinstance(curves, LossCurve) else list(curves)
    if sum(curve.step.size for curve in curves) != fit.residual.size:
        raise InputError("curves", expected=f"the fitted ones, {fit.residual.size} points", got=[c.name for c in curves],
                         remedy="pass what fit_law was given")  # fmt: skip
    with shared_style():
        axes = own_axes(axes, 7.2, 3.4)
        ends = np.cumsum([curve.step.size for curve in curves])[:-1]
        for number, (curve, part) in enumerate(zip(curves, np.split(fit.residual, ends), strict=True)):
            axes.plot(
                curve.tau,
                100 * part,
                ".-",
                markersize=3,
                linewidth=0.8,
                color=CYCLE[number % 8],
                label=in_picture(curve.name),
            )
        axes.axhline(0, color=COLOURS["formula"], linewidth=1)
        axes.set(xscale="log", xlabel=r"intrinsic time  $\tau = \int\eta\,dt$  (learning rate $\times$ SGD steps)",
                 ylabel="(loss - law)/loss  [%]")  # fmt: skip
        axes.set_title(f"residuals of the law '{fit.law}'", loc="left")
        plain_decades(axes)
        if len(curves) > 1:
            axes.legend()
    return axes


def plot_forecasts(forecast: Any, axes: Any = None) -> Any:
    """Every run of a `Forecast` in a panel of its own, at most 6, by name; of one run its picture."""
    if len(forecast.runs) == 1 or (axes is not None and not isinstance(axes, Figure)):
        return plot_forecast(forecast.runs[0], axes)
    shown = forecast.runs[:6]
    with shared_style():
        drawn = panels(axes, [run.name for run in shown], 4.6 * len(shown), 4.2)
        for run in shown:
            plot_forecast(run, drawn[run.name])
    return drawn


def plot_forecast(
    run: RunForecast, axes: Any = None, *, rate: Float[np.ndarray, " n"] | None = None
) -> dict[str, Axes]:
    """A forecast with its 90 % interval over truth and learning rate; steps linear. Grey: schedule already seen in the fit.

    `rate` (n,): the learning rate at the forecast's steps, for the strip below.
    """
    with shared_style():
        drawn = _over_strip(axes, "loss", strip=rate is not None)
        top, strip = drawn["loss"], drawn.get("rate", drawn["loss"])
        top.fill_between(
            run.step, run.low, run.high, color=COLOURS["theory"], alpha=0.18, linewidth=0, label="90 % interval"
        )
        top.plot(run.step, run.loss, color=COLOURS["theory"], label="forecast")
        for (name, loss), dash in zip(run.baselines.items(), ("--", ":", "-.", (0, (1, 2))), strict=False):
            top.plot(run.step, loss, color=COLOURS["grey"], linestyle=dash, linewidth=1.2, label=name)
        if run.truth is not None:
            top.plot(run.step, run.truth, ".", color=COLOURS["run"], markersize=3.5, label="run")
        shown = run.loss if run.truth is None else np.concatenate([run.loss, run.truth])
        # The first fall would press the rest flat: show from a tenth of the run on.
        late = np.tile(run.step >= 0.1 * run.step[-1], shown.size // run.step.size)
        low, high = float(np.min(shown[late])), float(np.max(shown[late]))
        top.set(ylabel="loss  (unit of the log)", ylim=(low - 0.15 * (high - low), high + 0.15 * (high - low)))
        if run.unseen.any() and not run.unseen.all():
            first = float(run.step[np.argmax(run.unseen)])
            for panel in drawn.values():
                panel.axvspan(float(run.step[0]), first, color=COLOURS["grey"], alpha=0.08, linewidth=0)
        top.set_title(f"{in_picture(run.name)}: forecast", loc="left")
        top.legend()
        if "rate" in drawn and rate is not None:
            strip.plot(run.step, rate, color=COLOURS["formula"], linewidth=1.4)
            _rate_strip(strip)
        strip.set_xlabel("SGD steps")
    return drawn


def plot_schedule(best: Any, axes: Axes | None = None) -> Axes:
    """The learning rate of a `BestSchedule` over SGD steps, with its predicted final loss and those of the references."""
    with shared_style():
        axes = own_axes(axes)
        step, rate = np.asarray(best.step, float), np.asarray(best.rate, float)
        axes.step(np.append(0.0, step), np.append(rate[:1], rate), where="pre", color=COLOURS["theory"])
        axes.set_xlabel("SGD steps")
        _rate_strip(axes)
        axes.set_ylabel("learning rate")
        rows = [f"final loss {best.loss:.4f} ({best.interval[0]:.4f} to {best.interval[1]:.4f})"]
        rows += [f"{name}: {loss:.4f}" for name, loss in best.references.items()]
        axes.text(0.03, 0.05, "\n".join(rows), transform=axes.transAxes, va="bottom", fontsize=9.5)
    return axes


def _over_strip(axes: Any, name: str, strip: bool) -> dict[str, Axes]:
    """A main panel, over a strip "rate" where the figure is ours to divide."""
    if not strip or (axes is not None and not isinstance(axes, Figure)):
        return panels(axes, (name,), 7.2, 4.8)
    figure = new_figure(7.2, 4.8) if axes is None else axes
    top, low = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    return {name: top, "rate": low}


def _rate_strip(axes: Any) -> None:
    axes.set_ylim(0, None)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.set_ylabel("rate")
