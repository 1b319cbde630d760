"""The phases of a sweep over teacher temperature: local exponent as colour over time and temperature, regimes by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from numpy.typing import ArrayLike

from odescale.errors import InputError
from odescale.plot.style import COLOURS, own_axes, shared_style, time_label

LEVELS = (0.2, 1 / 3, 0.5, 1.0, 2.0, 5.0)
"""Local exponents that the colour bar names; its ends are the first and the last, beyond them the colour stays."""


def plot_phase_diagram(
    trajectory: Any,
    axes: Axes | None = None,
    *,
    hand_over: Float[ArrayLike, " m"] | None = None,
    cutoff: Sequence[float | None] | Float[np.ndarray, " m"] | None = None,
    peaked_from: float | None = None,
    floor: float = 1e-11,
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
        axes.set(
            xscale="log",
            yscale="log",
            xlabel=time_label(trajectory.clock),
            ylabel=r"inverse temperature of the teacher  $b_*$",
        )
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
