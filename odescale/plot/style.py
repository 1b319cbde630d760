"""Colours, sizes and small parts that all pictures share."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

# Okabe and Ito's palette: told apart with any colour vision, and lines differ in dash as well.
COLOURS: Final = {
    "theory": "#0072B2",
    "run": "#D55E00",
    "formula": "#000000",
    "third": "#009E73",
    "grey": "#6E6E6E",
}
CYCLE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#6E6E6E")
PHASE_COLOURS: Final = {
    "exponential": COLOURS["run"], "power law": COLOURS["theory"], "stretched exponential": COLOURS["third"],
}  # fmt: skip
LOSS_LABEL: Final = "excess loss L"

RC: Final[Any] = {
    "font.size": 10.5, "axes.titlesize": 11.5, "axes.labelsize": 10.5, "legend.fontsize": 9.5,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#D9D9D9", "grid.linewidth": 0.6,
    "axes.axisbelow": True, "lines.linewidth": 1.8, "legend.framealpha": 0.9, "legend.edgecolor": "#D9D9D9",
    "figure.dpi": 110, "savefig.dpi": 160, "figure.facecolor": "white",
}  # fmt: skip


def shared_style() -> Any:
    """The shared matplotlib settings as a context manager; a user's own settings come back afterwards."""
    return rc_context(RC)


def new_figure(width: float, height: float) -> Figure:
    """A figure of `width` x `height` inches with constrained layout and the Agg canvas: no screen, no pyplot."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def own_axes(axes: Axes | None, width: float = 7.0, height: float = 4.6) -> Axes:
    """`axes`, or the only axes of a new figure."""
    return new_figure(width, height).add_subplot() if axes is None else axes


def panels(axes: Any, names: Sequence[str], width: float, height: float, **how: Any) -> dict[str, Axes]:
    """Axes by name in a row: of a new figure, of a `Figure` that was handed in, or the first name alone on one `Axes`."""
    if axes is not None and not isinstance(axes, Figure):
        return {names[0]: axes}
    figure = new_figure(width, height) if axes is None else axes
    row = figure.subplots(1, len(names), squeeze=False, **how)[0]
    return dict(zip(names, row, strict=True))


def time_label(clock: Any) -> str:
    """What one unit of t is, from a clock; a bare t without one."""
    if clock is None:
        return "t"
    return f"t  (one unit = {clock.unit})"


def time_axis(axes: Axes, clock: Any) -> None:
    """The lower axis in units of t, the upper one in SGD steps where these differ."""
    axes.set_xlabel(time_label(clock))
    if axes.get_xscale() == "log":
        plain_decades(axes)
    if clock is not None and float(clock.steps_per_unit) != 1:
        steps_axis(axes, float(clock.steps_per_unit))


def fraction(value: float) -> str:
    """1/3 for .3333..., else three digits."""
    near = Fraction(value).limit_denominator(12)
    return str(near) if abs(float(near) - value) < 1e-6 else f"{value:.3g}"


def draw_runs(axes: Axes, t: Any, mean: Any, bars: Any, seeds: Any, label: str | None) -> None:
    """The mean of runs as points with error bars (None: without), in front of its single `seeds` (s, n), faint."""
    for number, row in enumerate(seeds if len(seeds) > 1 else ()):
        # A single seed can fall below zero by the noise of its measurement: no place on a logarithmic axis.
        row = np.where(row > 0, row, np.nan) if axes.get_yscale() == "log" else row
        axes.plot(t, row, color=COLOURS["run"], alpha=0.3, linewidth=0.9, zorder=1.5,
                  label="single seeds" if number == 0 and label else None)  # fmt: skip
    bars = None if bars is None or not np.any(bars) else np.minimum(bars, 0.99 * np.abs(mean))
    axes.errorbar(t, mean, yerr=bars, fmt="o", markersize=4.2, capsize=2, linewidth=1.2, zorder=3, color=COLOURS["run"],
                  markeredgecolor="white", markeredgewidth=0.5, label=label)  # fmt: skip


def slope_guide(axes: Axes, t: np.ndarray, loss: np.ndarray, exponent: float, *, lift: float = 1.6) -> None:
    """A dotted line of slope -exponent beside the last factor of 5 of a curve, above it: on it, it would be covered."""
    late = t >= t[-1] / 5
    line = lift * loss[-1] * (t[late] / t[-1]) ** -exponent
    axes.plot(t[late], line, ":", color=COLOURS["formula"], linewidth=1.6, label=f"slope -{fraction(exponent)}")


def steps_axis(axes: Axes, steps_per_unit: float, label: str = "SGD steps") -> Any:
    """A second x-axis on top in SGD steps = `steps_per_unit` * x."""

    def to_steps(x: ArrayLike) -> np.ndarray:
        return np.asarray(x) * steps_per_unit

    def from_steps(x: ArrayLike) -> np.ndarray:
        return np.asarray(x) / steps_per_unit

    second = axes.secondary_xaxis("top", functions=(to_steps, from_steps))
    second.set_xlabel(label)
    low, high = axes.get_xlim()
    if axes.get_xscale() == "log":
        _plain_ticks(second.xaxis, low * steps_per_unit, high * steps_per_unit)
    elif high * steps_per_unit < 1e7:
        second.xaxis.set_major_locator(MaxNLocator(5))
        second.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if abs(x) >= 1000 else f"{x:g}"))
    return second


def plain_decades(axes: Axes) -> None:
    """Times on a logarithmic x-axis as 0.2, 1, 10 rather than powers of ten, when the range is short enough."""
    _plain_ticks(axes.xaxis, *axes.get_xlim())


def _plain_ticks(axis: Any, low: float, high: float) -> None:
    if not (1e-3 < low < high < 2e5 and high / low < 1e5):
        return
    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if high / low < 300 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 1000 else f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def plain_values(axes: Axes) -> None:
    """Values within a decade or two on a logarithmic y-axis as 2, 3, 5 rather than powers of ten."""
    low, high = axes.get_ylim()
    if high / low < 100:
        narrow = high / low < 3
        axes.yaxis.set_major_locator(
            MaxNLocator(7) if narrow else LogLocator(base=10, subs=(1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0))
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def name_index_levels(axes: Axes) -> None:
    """The levels of q: 1 exponential, 1/2 the threshold, 0 power law; named in the right margin, clear of the data."""
    for level, name in ((1.0, "exponential"), (0.5, "threshold"), (0.0, "power law")):
        axes.axhline(level, color=COLOURS["grey"], linewidth=1.0, linestyle="-" if level == 0.5 else ":")
        axes.text(1.01, level, name, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5,
                  color=COLOURS["grey"])  # fmt: skip


def unreadable_index(source: Any) -> np.ndarray:
    """Where a measured q is not drawn: standard error above 1, or p within two standard errors of zero (q = p'/p)."""
    bad = np.asarray(source.index_stderr, float) > 1.0
    if getattr(source, "exponent_stderr", None) is not None:
        bad |= np.asarray(source.exponent, float) < 2 * np.asarray(source.exponent_stderr, float)
    return bad


def mark_transition(
    axes: Axes, transition: Any, colour: str, *, linestyle: str = "-", label: str | None = None
) -> bool:
    """A vertical line at t_x and a band over its 95 % interval; draws nothing when there is no transition."""
    if transition is None or not transition.found:
        return False
    if transition.interval is not None:
        axes.axvspan(*transition.interval, color=colour, alpha=0.13, linewidth=0)
    axes.axvline(transition.t_x, color=colour, linestyle=linestyle, linewidth=1.3, label=label)
    return True


def transition_in_words(transition: Any, who: str, line: str, how: str = "") -> list[str]:
    """Lines for a picture: t_x and `how` it was found, how it is drawn (`line`, "" for not at all), its interval; or the name."""
    if transition is None:
        return []
    if not transition.found:
        return [f"{who}: {transition.name}, no $t_x$", *(f"    {name}?" for name in transition.contenders[:3])]
    if not how:
        exact = transition.estimator.startswith("exact")
        how = "by fit" if transition.model else "exact" if exact else "by differences"
    # What is exact has as many digits here as everywhere else; an estimate has those that its interval leaves.
    digits = f"{transition.t_x:.7g}" if how == "exact" else f"{transition.t_x:.4g}"
    words = [f"{who}, {how}: {digits}" + (f" ({line})" if line else "")]
    if transition.interval is not None and line:
        words.append(f"95 %: {transition.interval[0]:.3g} to {transition.interval[1]:.3g} (shaded)")
    return words
