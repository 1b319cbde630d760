"""Pictures of the compute-optimal frontier: loss against compute with C*, isolated laws, phases over (a, b)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from jaxtyping import Float, Real
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from odescale.errors import InputError
from odescale.plot.style import COLOURS, CYCLE, new_figure, own_axes, panels, plain_decades, shared_style

PHASE_COLOURS = ("#56B4E9", "#E69F00", "#009E73")
PHASE_NAMES = ("Ia", "II", "III")
LABEL = 8.0
"""Size in points of what is written at a grey curve."""


def plot_frontier(
    frontier: Any,
    axes: Figure | None = None,
    *,
    critical: Any = None,
    numeric: Any = None,
    curves: Mapping[str, tuple[Real[ArrayLike, " n"], Real[ArrayLike, " n"]]] | None = None,
    asymptote: float | None = None,
    compute_unit: str = "FLOP",
    title: str = "",
) -> dict[str, Axes]:
    """R*(C) with C* and the releases of sizes, and the local exponent -dlog R*/dlog C; axes "loss" and "exponent".

    **Arguments**: `frontier`: a `Frontier`; `critical`: a `CriticalCompute`, marked when found, else its reason is written;
    `numeric`: a second `Frontier`, drawn as points; `curves`: label -> (compute (n,), risk (n,)) of fixed models, grey, at
    most 8, the label above those that have become flat; `asymptote`: the exponent 1/S, marked on the right axes. `compute_unit`:
    what C counts.
    **Raises** `InputError` when nothing can be drawn.
    """
    curves = curves or {}
    if len(curves) > len(CYCLE):
        raise InputError("curves", expected=f"at most {len(CYCLE)} curves", got=len(curves), remedy="draw fewer")
    shown = np.asarray(frontier.valid, bool)
    if shown.sum() < 2:
        raise InputError("frontier", expected="at least two valid points", got=int(shown.sum()), remedy="raise C")
    C, R, p = (np.asarray(getattr(frontier, name), float)[shown] for name in ("compute", "risk", "exponent"))
    label = f"compute C  ({compute_unit})" if compute_unit else "compute C  (unit c = 1)"
    with shared_style():
        loss, exponent = _both(axes)
        figure = loss.figure
        loss.plot(C, R, color=COLOURS["theory"], label=f"frontier, {frontier.method}")
        exponent.plot(C, p, color=COLOURS["theory"], label=frontier.method)
        if numeric is not None:
            kept = np.asarray(numeric.valid, bool)
            points = {"color": COLOURS["run"], "markersize": 4.2, "label": f"frontier, {numeric.method}"}
            loss.plot(np.asarray(numeric.compute)[kept], np.asarray(numeric.risk)[kept], "o", **points)
            points["label"] = numeric.method
            exponent.plot(np.asarray(numeric.compute)[kept], np.asarray(numeric.exponent)[kept], "o", **points)
        if asymptote is not None:
            exponent.axhline(asymptote, color=COLOURS["formula"], linewidth=1.1, linestyle="--",
                             label=f"1/S = {asymptote:.4g}")  # fmt: skip
        if critical is not None:
            _mark_releases(loss, exponent, critical, C)
        for panel in (loss, exponent):
            panel.set(xscale="log", xlabel=label, xlim=(C[0], C[-1]))
        loss.set(yscale="log", ylabel="excess risk R")
        low, high = R.min(), R.max()
        loss.set_ylim(low / 1.6, high * 2.5)
        _fixed_models(loss, curves, C)
        exponent.set_ylabel(r"local exponent  $-\,d\,\log R^*\,/\,d\,\log C$")
        exponent.set_ylim(0, 1.08 * float(np.max(p)))
        # An exponential phase may reach ten: then only a logarithmic axis shows 1/S too.
        if np.max(p) > 8 * np.min(p):
            exponent.set(yscale="log", ylim=(0.7 * float(np.min(p)), 1.5 * float(np.max(p))))
            exponent.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
            exponent.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            exponent.yaxis.set_minor_formatter(NullFormatter())
        for panel in (loss, exponent):  # above the axes: curves may pass anywhere inside
            panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
        if title:
            figure.suptitle(title, fontsize=12.5)
    return {"loss": loss, "exponent": exponent}


def _both(axes: Any) -> tuple[Axes, Axes]:
    """Two panels, of a new figure or of one that was handed in."""
    if axes is not None and not isinstance(axes, Figure):
        raise InputError(
            "axes", expected="None or a Figure: two panels", got=type(axes).__name__, remedy="pass a Figure"
        )
    loss, exponent = (new_figure(11.6, 4.8) if axes is None else axes).subplots(1, 2)
    return loss, exponent


def plot_both_frontiers(comparison: Any, axes: Figure | None = None, *, critical: Any = None, compute_unit: str = "FLOP",
                        title: str = "") -> dict[str, Axes]:  # fmt: skip
    """A `FrontierComparison`: the frontier of the formulas as a line, the numeric one as points; see `plot_frontier`."""
    return plot_frontier(comparison.analytic, axes, numeric=comparison.numeric, critical=critical,
                         compute_unit=compute_unit, title=title)  # fmt: skip


def _fixed_models(axes: Axes, curves: Mapping[str, tuple[Any, Any]], C: Float[np.ndarray, " m"]) -> None:
    """Grey curves within C; one that falls by less than 1 % over the last half decade has its label
    above its end, unless it would touch the label before."""
    first, last = True, np.inf
    for label, (compute, risk) in curves.items():
        x, y = np.asarray(compute, float), np.asarray(risk, float)
        kept = (x >= C[0]) & (x <= C[-1]) & (y > 0)
        x, y = x[kept], y[kept]
        if x.size == 0:
            continue
        axes.plot(x, y, color="#A8A8A8", linewidth=1.0, zorder=1.5, label="fixed sizes" if first else None)
        first = False
        late = x >= x[-1] / 10**0.5
        height = float(axes.transData.transform((x[-1], y[-1]))[1])
        if late.sum() > 1 and y[late][0] < 1.01 * y[-1] and abs(height - last) > 1.2 * LABEL * axes.figure.dpi / 72:
            last = height
            axes.annotate(label, (x[-1], y[-1]), xytext=(-3, 2), textcoords="offset points", ha="right", va="bottom",
                          fontsize=LABEL, color=COLOURS["grey"])  # fmt: skip


def _mark_releases(loss: Axes, exponent: Axes, critical: Any, C: Float[np.ndarray, " m"]) -> None:
    """C* as a line with its value, later releases dotted; or the reason why there is none."""
    if not critical.found:
        words = critical.reason.split(":")[0]
        loss.text(0.02, 0.03, words, transform=loss.transAxes, color=COLOURS["grey"], fontsize=9.5)
        return
    for axes in (loss, exponent):
        for i, (name, compute, _) in enumerate(critical.releases):
            if not C[0] < compute < C[-1]:
                continue
            text = f"C* = {compute:.4g}: {name} released" if i == 0 else f"{name} released, C = {compute:.3g}"
            axes.axvline(compute, color=COLOURS["third"], linestyle="-" if i == 0 else ":", linewidth=1.5, label=text)
        if critical.compute > C[0]:
            axes.axvspan(C[0], min(critical.compute, C[-1]), color=COLOURS["third"], alpha=0.12, linewidth=0,
                         label="exponential: only the time grows")  # fmt: skip


def plot_isolated_law(law: Any, axes: Any = None, *, values: Float[ArrayLike, " n"], unit: str = "") -> Axes:
    """One isolated law of a `RiskLaw` over `values` (n,) of its variable, whose `unit` goes behind its name."""
    if not hasattr(law, "amplitudes"):
        raise InputError(
            "result", expected="an isolated law of a risk law", got=str(law), remedy="isolated_law(law, name)"
        )
    found = plot_isolated_laws([(law, values)], units={law.name: unit} if unit else None, axes=axes)
    return found[law.name]


def plot_isolated_laws(
    laws: Sequence[tuple[Any, Real[ArrayLike, " n"]]],
    *,
    units: Mapping[str, str] | None = None,
    title: str = "",
    axes: Figure | Axes | None = None,
) -> dict[str, Axes]:
    """Each isolated law over its own variable, the others at infinity; returns the axes by the name of the variable.

    **Arguments**: `laws`: pairs (`IsolatedLaw`, values (n,) > 0), at most 4; `units`: name -> text after the axis label, e.g.
    {"time": "SGD steps"}. A power law has its exponent in the legend, an exponential its rate. **Raises** `InputError`.
    """
    if not 1 <= len(laws) <= 4:
        raise InputError("laws", expected="1 to 4 laws", got=len(laws), remedy="draw fewer")
    with shared_style():
        drawn = panels(axes, [law.name for law, _ in laws], 3.9 * len(laws) + 0.6, 3.9, sharey=True)
        grid = list(drawn.values())
        found = {}
        lowest = np.inf
        for panel, (law, given), colour in zip(grid, laws, CYCLE, strict=False):
            values = np.asarray(given, float)
            if values.ndim != 1 or not (values > 0).all():
                raise InputError(f"values of {law.name}", expected="a row of positive numbers", got=values.shape,
                                 remedy="np.geomspace")  # fmt: skip
            risk = np.asarray(law(values))
            parts = [rf"{_factor(float(a))}{law.name}$^{{-{float(e):.3g}}}$"
                     for a, e in zip(law.amplitudes, law.exponents, strict=True)]  # fmt: skip
            if float(law.decay) > 0:
                parts.append(rf"{_factor(float(law.decay))}exp(-{float(law.rate):.3g} t)")
            panel.plot(values, risk, color=colour, label=" + ".join(parts))
            unit = (units or {}).get(law.name, "")
            panel.set(xscale="log", yscale="log", xlabel=f"{law.name}" + (f"  ({unit})" if unit else ""))
            plain_decades(panel)
            panel.set_title(f"{law.name} alone")
            panel.legend(loc="lower left")
            found[law.name] = panel
            if not float(law.decay) > 0:
                lowest = min(lowest, risk.min())
        grid[0].set_ylabel("excess risk R, others at infinity")
        if np.isfinite(lowest):  # an exponential goes far below what the sizes leave
            grid[0].set_ylim(bottom=lowest / 30)
        if title:
            grid[0].figure.suptitle(title, fontsize=12.5)
    return found


def _factor(value: float) -> str:
    return "" if value == 1 else rf"{value:.3g} $\cdot$ "


def plot_compute_phases(
    a: Real[ArrayLike, " m"],
    b: Real[ArrayLike, " n"],
    exponent: Real[ArrayLike, "n m"],
    phase: Real[ArrayLike, "n m"],
    *,
    marks: Mapping[str, tuple[float, float]] | None = None,
    levels: int = 14,
    axes: Axes | None = None,
    title: str = "",
) -> Axes:
    """Phases Ia, II, III over (a, b) as colours with lines of equal compute-optimal exponent; boundaries a = b + 1 and a = 2b.

    **Arguments**: `a` (m,), `b` (n,), `exponent` and `phase` (n, m) of `phase_map`; `marks`: label -> (a, b) points;
    `levels`: number of exponent lines. **Raises** `InputError` for shapes that do not match.
    """
    x, y = np.asarray(a, float), np.asarray(b, float)
    p, which = np.asarray(exponent, float), np.asarray(phase, float)
    for name, values in (("exponent", p), ("phase", which)):
        if values.shape != (y.size, x.size):
            raise InputError(name, expected=f"shape {(y.size, x.size)}", got=values.shape, remedy="use phase_map")
    with shared_style():
        axes = own_axes(axes, 7.4, 5.4)
        axes.grid(False)
        axes.pcolormesh(x, y, np.ma.masked_invalid(which), cmap=ListedColormap(PHASE_COLOURS), vmin=-0.5, vmax=2.5,
                        alpha=0.45, shading="nearest", rasterized=True, linewidth=0)  # fmt: skip
        lines = axes.contour(x, y, p, levels=MaxNLocator(levels).tick_values(np.nanmin(p), np.nanmax(p)),
                             colors="#202020", linewidths=0.9)  # fmt: skip
        edge = np.linspace(max(1.0, y[0]), y[-1], 100)
        for value, name in ((edge + 1, r"$a = b + 1$"), (2 * edge, r"$a = 2b$")):
            axes.plot(value, edge, color="black", linewidth=2.0)
            inside = np.flatnonzero(value <= x[-1])
            if inside.size:
                at = inside[int(0.8 * (inside.size - 1))]
                axes.annotate(name, (value[at], edge[at]), xytext=(5, -13), textcoords="offset points", fontsize=9.5)
        for i, name in enumerate(PHASE_NAMES):
            rows, columns = np.nonzero(which == i)
            if rows.size:
                # The point of the phase next to its median, so that the name is inside.
                place = np.argmin(np.hypot(x[columns] - np.median(x[columns]), y[rows] - np.median(y[rows])))
                axes.text(float(x[columns[place]]), float(y[rows[place]]), name, fontsize=17, fontweight="bold", ha="center",
                          va="center", bbox={"facecolor": "white", "alpha": 0.65, "edgecolor": "none", "pad": 2})  # fmt: skip
        for (name, (u, v)), sign in zip((marks or {}).items(), cycle("osD^v"), strict=False):
            axes.plot(
                [u], [v], sign, color=COLOURS["run"], markeredgecolor="white", markersize=8, linestyle="", label=name
            )
        axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        _label_exponents(axes, lines, x, y, which, list((marks or {}).values()))
        axes.set_xlabel(r"target power  $a$   ($\lambda_j\theta_j^2 = j^{-a}$)")
        axes.set_ylabel(r"eigenvalue power  $b$   ($\lambda_j = j^{-b}$)")
        if marks:  # below the axes, clear of the lines
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)
        axes.set_title(title or r"compute-optimal exponent  $-\,d\,\log L\,/\,d\,\log C$,  C = width $\times$ steps")
    return axes


def _label_exponents(axes: Axes, lines: Any, x: np.ndarray, y: np.ndarray, which: np.ndarray, marks: list) -> None:
    """One number on each line of equal exponent in each phase, clear of the edges, of the names and of each other."""
    corner, size = np.array([x[0], y[0]]), np.array([x[-1] - x[0], y[-1] - y[0]])
    taken = [(np.asarray(text.get_position()) - corner) / size for text in axes.texts if text.get_text() in PHASE_NAMES]
    taken += [(np.asarray(note.xy) - corner) / size + (0.06, -0.03) for note in axes.texts if hasattr(note, "xy")]  # type: ignore[attr-defined]
    taken += [(np.asarray(mark) - corner) / size for mark in marks]
    chosen = []
    for path in lines.get_paths():
        points = path.vertices
        if len(points) < 2:
            continue
        rows = np.searchsorted((y[1:] + y[:-1]) / 2, points[:, 1])
        columns = np.searchsorted((x[1:] + x[:-1]) / 2, points[:, 0])
        for i in range(len(PHASE_NAMES)):
            mine = points[which[rows, columns] == i]
            places = (mine - corner) / size
            # A line along a boundary belongs to neither side.
            if len(mine) < 2 or np.ptp(places, axis=0).max() < 0.08:
                continue
            for share in (0.3, 0.42, 0.54, 0.66, 0.18, 0.8):
                at = places[int(share * (len(mine) - 1))]
                inside = 0.03 < at.min() and at.max() < 0.95
                if inside and all(np.hypot(*(at - other)) > 0.07 for other in taken):
                    taken.append(at)
                    chosen.append(tuple(at * size + corner))
                    break
    axes.clabel(lines, fmt="%.2g", fontsize=8.5, manual=chosen)
