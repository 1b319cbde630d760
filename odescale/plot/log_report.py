"""Pictures of a user's own curves: loss over its learning rate, local exponents, residuals, a forecast against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from odescale.analysis.forecast.fit import LawFit
from odescale.analysis.forecast.loss_curve import LossCurve
from odescale.analysis.forecast.predict import RunForecast
from odescale.analysis.phases.exponents import LocalExponent
from odescale.analysis.phases.regimes import Transition
from odescale.plot.style import (
    COLOURS,
    CYCLE,
    mark_transition,
    name_index_levels,
    new_figure,
    plain_decades,
    shared_style,
)

MOST_LINES = 8
READABLE_FALL = 1.0
"""e-folds that a loss must fall for a second derivative of it to be worth a line."""


def plot_curves(curves: Sequence[LossCurve], transition: Transition | None = None) -> Figure:
    """Loss against SGD steps, both logarithmic, over a strip of the learning rate where it was logged."""
    with shared_style():
        figure = new_figure(7.2, 4.8)
        rated = [curve for curve in curves if curve.learning_rate is not None]
        if rated:
            top, strip = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        else:
            top = strip = figure.subplots()
        for number, curve in enumerate(curves[:MOST_LINES]):
            kept = curve.step > 0
            style = {"color": CYCLE[number % len(CYCLE)], "linewidth": 1.4}
            top.plot(curve.step[kept], curve.loss[kept], label=curve.name, **style)
            if curve.learning_rate is not None:
                strip.plot(curve.step[kept], curve.learning_rate[kept], **style)
        if transition is not None:
            mark_transition(top, transition, COLOURS["grey"], linestyle="--", label=r"transition $t_x$, 95 % shaded")
        # A curve of negative losses (log-likelihood densities) has no logarithm.
        top.set(xscale="log", ylabel="loss  (unit of the log)")
        if min(float(curve.loss[curve.step > 0].min()) for curve in curves) > 0:
            top.set_yscale("log")
            _plain_losses(top)
        if len(curves) > 1 or (transition is not None and transition.found):
            top.legend(title=None if len(curves) <= MOST_LINES else f"first {MOST_LINES} of {len(curves)} runs")
        if rated:
            _rate_strip(strip)
        strip.set_xlabel("SGD steps")
        plain_decades(strip)
    return figure


def plot_indices(found: LocalExponent, transition: Transition) -> Figure:
    """p(t) = -dlog L/dlog t over q(t) = dlog p/dlog t, whose last fall through 1/2 before the maximum of p is the transition."""
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
        for axes in (upper, lower):
            mark_transition(axes, transition, COLOURS["grey"], linestyle="--")
        what = f"$t_x$ = {transition.t_x:.4g} steps" if transition.found else transition.reason.split(":")[0]
        upper.set_title(what, loc="left")
        plain_decades(lower)
    return figure


def plot_residuals(fit: LawFit, curves: Sequence[LossCurve]) -> Figure:
    """(L - law)/L of the fitted points against intrinsic time: what is left should have no shape."""
    with shared_style():
        figure = new_figure(7.2, 3.4)
        axes = figure.subplots()
        ends = np.cumsum([curve.step.size for curve in curves])[:-1]
        for number, (curve, part) in enumerate(zip(curves, np.split(fit.residual, ends), strict=True)):
            axes.plot(
                curve.tau, 100 * part, ".-", markersize=3, linewidth=0.8, color=CYCLE[number % 8], label=curve.name
            )
        axes.axhline(0, color=COLOURS["formula"], linewidth=1)
        axes.set(xscale="log", xlabel=r"intrinsic time  $\tau = \int\eta\,dt$  (learning rate $\times$ SGD steps)",
                 ylabel="(loss - law)/loss  [%]")  # fmt: skip
        axes.set_title(f"residuals of the law '{fit.law}'", loc="left")
        plain_decades(axes)
        if len(curves) > 1:
            axes.legend()
    return figure


def plot_forecast(run: RunForecast, rate: Float[np.ndarray, " n"]) -> Figure:
    """A forecast with its 90 % interval over truth and learning rate; steps linear. Grey: schedule already seen in the fit."""
    with shared_style():
        figure = new_figure(7.2, 4.8)
        top, strip = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
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
            for axes in (top, strip):
                axes.axvspan(float(run.step[0]), first, color=COLOURS["grey"], alpha=0.08, linewidth=0)
        top.set_title(f"{run.name}: forecast", loc="left")
        top.legend()
        strip.plot(run.step, rate, color=COLOURS["formula"], linewidth=1.4)
        strip.set_xlabel("SGD steps")
        _rate_strip(strip)
    return figure


def _rate_strip(axes: Any) -> None:
    axes.set_ylim(0, None)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.set_ylabel("rate")


def _plain_losses(axes: Any) -> None:
    """Losses within a decade or two as 2, 3, 5 rather than powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    if high / low < 100:
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
