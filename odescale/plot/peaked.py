"""Pictures of the one-third law: loss and local exponent against its asymptote, and the map over time and temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from numpy.typing import ArrayLike

from odescale.errors import InputError
from odescale.plot.style import COLOURS, CYCLE, TIME_LABEL, new_figure, own_axes, shared_style

LEVELS = (0.2, 1 / 3, 0.5, 1.0, 2.0, 5.0)
"""Local exponents that the colour bar names; its ends are the first and the last, beyond them the colour stays."""


def plot_one_third(
    trajectories: Mapping[str, Any],
    *,
    asymptotes: Mapping[str, Float[ArrayLike, " n"]] | None = None,
    exponents: tuple[float, float] = (0.2, 0.6),
    time_label: str = TIME_LABEL,
    title: str = "",
    figure: Figure | None = None,
) -> dict[str, Axes]:
    """L(t) and p(t) = -dlog L/dlog t of several runs, with their power laws; returns the axes "loss" and "exponent".

    **Arguments**: `trajectories`: label -> `Trajectory` (`t`, `loss`, `exponent`, and where known `valid`, all (n,)), at most
    8; `asymptotes`: label -> (n,) losses at the same times, e.g. c^(2/3) ((K-1)/(3 eta t))^(1/3), drawn dashed in the colour
    of their run; `exponents`: range of the p-axis, on which 1/3 is marked. Times in units of t.

    **Raises** `InputError` when lengths or labels do not match.
    """
    asymptotes = asymptotes or {}
    if not 1 <= len(trajectories) <= len(CYCLE):
        raise InputError("trajectories", expected=f"1 to {len(CYCLE)} runs", got=len(trajectories), remedy="draw fewer")
    for label in asymptotes:
        if label not in trajectories:
            raise InputError("asymptotes", expected=f"labels among {tuple(trajectories)}", got=label, remedy="drop it")
    with shared_style():
        figure = new_figure(11.6, 4.6) if figure is None else figure
        loss, exponent = figure.subplots(1, 2)
        for (label, run), colour in zip(trajectories.items(), CYCLE, strict=False):
            t, values = np.asarray(run.t, float), np.asarray(run.loss, float)
            if values.shape != t.shape or values.ndim != 1:
                raise InputError(f"trajectories[{label!r}]", expected=f"one curve of shape {t.shape}", got=values.shape,
                                 remedy="pick one member of the batch")  # fmt: skip
            shown = (t > 0) & np.isfinite(values) & (values > 0) & np.asarray(getattr(run, "valid", True))
            loss.plot(t[shown], values[shown], color=colour, label=label)
            exponent.plot(t[shown], np.asarray(run.exponent, float)[shown], color=colour, label=label)
            if label in asymptotes:
                line = np.asarray(asymptotes[label], float)
                if line.shape != t.shape:
                    raise InputError(f"asymptotes[{label!r}]", expected=f"shape {t.shape}", got=line.shape,
                                     remedy="evaluate it at the times of its trajectory")  # fmt: skip
                # Early on the power law is above any loss: it would only stretch the axis.
                late = shown & (line < np.nanmax(values))
                loss.plot(t[late], line[late], "--", color=colour, linewidth=1.1)
        if asymptotes:
            loss.plot([], [], "--", color=COLOURS["grey"], linewidth=1.1, label="power law, no fit")
        loss.set(xscale="log", yscale="log", xlabel=time_label, ylabel="excess cross-entropy L")
        exponent.set(xscale="log", xlabel=time_label, ylim=exponents)
        exponent.set_ylabel(r"local exponent  $p = -\,d\,\log L\,/\,d\,\log t$")
        exponent.axhline(1 / 3, color=COLOURS["grey"], linewidth=1.0, linestyle=":")
        exponent.text(1.01, 1 / 3, "1/3", transform=exponent.get_yaxis_transform(), va="center", fontsize=9.5,
                      color=COLOURS["grey"])  # fmt: skip
        loss.legend(loc="lower left")
        if title:
            figure.suptitle(title, fontsize=12.5)
    return {"loss": loss, "exponent": exponent}


def plot_phase_diagram(
    trajectory: Any,
    *,
    hand_over: Float[ArrayLike, " m"] | None = None,
    cutoff: Sequence[float | None] | Float[np.ndarray, " m"] | None = None,
    peaked_from: float | None = None,
    floor: float = 1e-11,
    axes: Axes | None = None,
    time_label: str = TIME_LABEL,
    title: str = "",
) -> Axes:
    """The local exponent p of a sweep over teacher temperature, as colour over time t and inverse temperature b*.

    **Arguments**

    - `trajectory`: of `odescale.sweep("peaked", ..., {"inverse_temperature": ...})`: `exponent`, `loss` (m, n), `t` (n,).
    - `hand_over` (m,): alpha_c = (K-1) b*^3/(3 eta c) per member, drawn as a line; `cutoff` (m,): where the transition finder
      puts the end of the power law (nan or None where it finds none), drawn as points. Both in units of t.
    - `peaked_from`: the b* below which the decay is exponential from the start, about sqrt(2 ln K); a line.
    - `floor`: excess losses below it are left grey: they are rounding.

    Labels the three regimes where their boundaries are known. **Raises** `InputError` for anything but a one-parameter sweep.
    """
    members = getattr(trajectory, "meta", {}).get("members", {})
    if set(members) != {"inverse_temperature"}:
        raise InputError("trajectory", expected="a sweep over inverse_temperature alone", got=sorted(members),
                         remedy='odescale.sweep("peaked", t1, {"inverse_temperature": ...})')  # fmt: skip
    b = np.asarray(members["inverse_temperature"], float)
    t = np.asarray(trajectory.t, float)
    kept = t > 0
    p, loss = (np.asarray(getattr(trajectory, name), float)[:, kept] for name in ("exponent", "loss"))
    t = t[kept]
    marks = {}
    for name, values in (("hand_over", hand_over), ("cutoff", cutoff)):
        if values is not None:
            marks[name] = np.array(
                [np.nan if value is None else value for value in np.atleast_1d(np.asarray(values, object))], float
            )
            if marks[name].shape != b.shape:
                raise InputError(name, expected=f"one time per member, {b.shape}", got=marks[name].shape,
                                 remedy="in the order of the sweep")  # fmt: skip
    order = np.argsort(b)
    shown = np.ma.masked_invalid(np.where(loss > floor, p, np.nan))[order]
    with shared_style():
        axes = own_axes(axes, 9.4, 5.8)
        axes.set(xscale="log", yscale="log", xlabel=time_label, ylabel=r"inverse temperature of the teacher  $b_*$")
        axes.set_facecolor("#C9C9C9")
        image = axes.pcolormesh(t, b[order], shown, norm=LogNorm(LEVELS[0], LEVELS[-1]), cmap="cividis",
                                shading="nearest", rasterized=True)  # fmt: skip
        bar = axes.figure.colorbar(image, ax=axes, extend="both", pad=0.02)
        bar.set_label(r"local exponent  $p = -\,d\,\log L\,/\,d\,\log t$")
        bar.ax.yaxis.set_major_locator(FixedLocator(LEVELS))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: "1/3" if abs(x - 1 / 3) < 1e-9 else f"{x:g}"))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(False)
        for name, style, label in (("hand_over", "--", r"$\alpha_c = (K-1)\,b_*^3/(3\eta c)$"),
                                   ("cutoff", "o", "end of the power law, transition finder")):  # fmt: skip
            if name in marks:
                # Next to flat targets there is no power law that could end.
                here = np.where(b[order] < (peaked_from or 0), np.nan, marks[name][order])
                axes.plot(here, b[order], style, color="white" if style == "--" else COLOURS["run"],
                          linewidth=1.8, markersize=3.6, label=label)  # fmt: skip
        if peaked_from is not None:
            axes.axhline(peaked_from, color="white", linestyle=":", linewidth=1.6, label=r"$b_* = \sqrt{2\,\ln K}$")
        axes.set(xlim=(t[0], t[-1]), ylim=(b.min(), b.max()))
        _name_regimes(axes, t, b[order], marks, peaked_from, order)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="lower right", facecolor="#5A5A5A", labelcolor="white")
        if title:
            axes.set_title(title)
    return axes


def _name_regimes(
    axes: Axes,
    t: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " m"],
    marks: dict[str, np.ndarray],
    peaked_from: float | None,
    order: np.ndarray,
) -> None:
    """Words in the middle of what the lines bound."""
    words: dict[str, Any] = {"fontsize": 10.5, "ha": "center", "va": "center", "fontweight": "bold"}
    if peaked_from is not None and b[0] < peaked_from:
        middle = np.sqrt(b[0] * min(peaked_from, b[-1]))
        axes.text(t[0] * 1.5, middle, "exponential\nfrom the start", color="white", **{**words, "ha": "left"})
    if "hand_over" in marks:
        line = marks["hand_over"][order]
        high = np.exp(np.interp(0.72, [0, 1], np.log([b[0], b[-1]])))
        edge = np.exp(np.interp(np.log(high), np.log(b), np.log(line)))
        axes.text(np.sqrt(t[0] * 30 * min(edge, t[-1])), high, "power law 1/3", color="white", **words)
        low = np.exp(np.interp(0.47, [0, 1], np.log([b[0], b[-1]])))
        edge = np.exp(np.interp(np.log(low), np.log(b), np.log(line)))
        if edge * 30 < t[-1]:
            axes.text(edge * 40, low, r"exponential beyond $\alpha_c$", color="#303030", **{**words, "ha": "left"})
