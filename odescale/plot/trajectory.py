"""Pictures of one integration: its loss, its overlaps, its local exponents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from odescale.errors import InputError
from odescale.plot.style import (
    COLOURS,
    CYCLE,
    TIME_LABEL,
    mark_transition,
    name_index_levels,
    own_axes,
    plain_decades,
    shared_style,
    steps_axis,
    unreadable_index,
)


def plot_trajectory(
    trajectory: Any,
    *,
    transition: Any = None,
    axes: Axes | None = None,
    label: str = "theory (ODE)",
    time_label: str | None = None,
    colour: str = COLOURS["theory"],
) -> Axes:
    """The excess loss L(t) of a `Trajectory` on logarithmic axes, with its error band and its transition.

    `trajectory` has `t` (n,), `loss` (n,) and, where known, `valid` (n,), `error` (n,) relative error of the loss, and
    `clock.steps_per_unit`, from which the upper axis in SGD steps and the label of t are made. Returns the axes.
    """
    with shared_style():
        axes = own_axes(axes)
        t, loss = np.asarray(trajectory.t, float), np.asarray(trajectory.loss, float)
        _one_curve("trajectory.loss", loss, t)
        shown = (t > 0) & np.isfinite(loss) & (loss > 0) & np.asarray(getattr(trajectory, "valid", True))
        axes.set(xscale="log", yscale="log", ylabel="excess loss L  (half squared error)")
        axes.plot(t[shown], loss[shown], color=colour, label=label)
        error = getattr(trajectory, "error", None)
        if error is not None:
            wide = np.minimum(np.asarray(error, float)[shown], 0.999)
            axes.fill_between(t[shown], loss[shown] * (1 - wide), loss[shown] * (1 + wide), color=colour, alpha=0.25,
                              linewidth=0)  # fmt: skip
        if transition is not None and transition.found:
            words = f"exponential to power law at {transition.t_x:.4g} ({transition.depth:.1f} e-folds)"
            mark_transition(axes, transition, COLOURS["grey"], linestyle="--", label=words)
        axes.legend(loc="lower left")
        _clock(axes, trajectory, time_label)
    return axes


def plot_exponent(
    source: Any,
    *,
    quantity: str = "exponent",
    transition: Any = None,
    axes: Axes | None = None,
    label: str = "theory",
    time_label: str | None = None,
    colour: str = COLOURS["theory"],
) -> Axes:
    """The local exponent p(t) (`quantity="exponent"`) or the index q(t) ("index"), with error band where known.

    `source` has `t`, `exponent`, `index` (n,), and where known `exponent_stderr`, `index_stderr`, `valid`: a
    `LocalExponent` or a `Trajectory`. q = 1 is exponential, q = 0 a power law. Returns the axes.
    """
    if quantity not in ("exponent", "index"):
        raise InputError("quantity", expected='"exponent" or "index"', got=quantity, remedy="pass one of the two")
    with shared_style():
        axes = own_axes(axes)
        t, values = np.asarray(source.t, float), np.array(getattr(source, quantity), float)
        _one_curve(quantity, values, t)
        error = getattr(source, f"{quantity}_stderr", None)
        if error is not None and quantity == "index":
            values[unreadable_index(source)] = np.nan
            label += " (where the error of q is below 1)"
        shown = (t > 0) & np.asarray(getattr(source, "valid", True))
        axes.set_xscale("log")
        axes.plot(t[shown], values[shown], color=colour, label=label)
        if error is not None:
            wide = np.asarray(error, float)[shown]
            axes.fill_between(
                t[shown], values[shown] - wide, values[shown] + wide, color=colour, alpha=0.2, linewidth=0
            )
        mark_transition(axes, transition, COLOURS["grey"], linestyle="--", label="transition")
        if quantity == "index":
            axes.set_ylabel(r"index  $q = d\,\log p\,/\,d\,\log t$")
            axes.set_ylim(-3.2, 2.2)
            name_index_levels(axes)
        else:
            axes.set_ylabel(r"local exponent  $p = -\,d\,\log L\,/\,d\,\log t$")
        axes.legend(loc="best")
        _clock(axes, source, time_label)
    return axes


def plot_overlaps(
    t: Float[ArrayLike, " n"],
    overlaps: Float[ArrayLike, "n P P"],
    names: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    *,
    run_t: Float[ArrayLike, " m"] | None = None,
    run_overlaps: Float[ArrayLike, "s m P P"] | None = None,
    steps_per_unit: float | None = None,
    time_label: str = TIME_LABEL,
    axes: Axes | None = None,
) -> Axes:
    """Overlaps C_ij(t) of chosen pairs of rows: lines for the theory, points for the mean of runs with their scatter.

    `overlaps` (n, P, P) on `t` (n,); `names` (P,) of the rows; `pairs` of names to draw, at most 8 (more cannot be told
    apart); `run_overlaps` (seeds, m, P, P) on `run_t` (m,): mean and standard deviation over seeds as bars. The numbers
    are dimensionless (rows scaled so that an overlap is of order one). Returns the axes.
    """
    t, overlaps = np.asarray(t, float), np.asarray(overlaps, float)
    if overlaps.ndim != 3 or overlaps.shape != (t.size, len(names), len(names)):
        raise InputError("overlaps", expected=f"({t.size}, {len(names)}, {len(names)})", got=f"{overlaps.shape}",
                         remedy="sum over the modes of the spectrum first")  # fmt: skip
    if not 1 <= len(pairs) <= len(CYCLE):
        raise InputError("pairs", expected=f"1 to {len(CYCLE)} pairs", got=len(pairs), remedy="draw several pictures")
    for name in {name for pair in pairs for name in pair} - set(names):
        raise InputError("pairs", expected=f"names among {tuple(names)}", got=name, remedy="use the rows' names")
    order = {name: i for i, name in enumerate(names)}
    with shared_style():
        axes = own_axes(axes, 8.4, 4.6)
        axes.set(xscale="log", ylabel=r"overlap  $C_{ij}$  (dimensionless)")
        shown = t > 0
        for (left, right), colour in zip(pairs, CYCLE, strict=False):
            i, j = order[left], order[right]
            axes.plot(t[shown], overlaps[shown, i, j], color=colour, label=f"{left} · {right}")
            if run_overlaps is not None and run_t is not None:
                runs, times = np.asarray(run_overlaps, float)[:, :, i, j], np.asarray(run_t, float)
                axes.errorbar(times, runs.mean(axis=0), yerr=runs.std(axis=0), fmt="o", markersize=3.4, color=colour,
                              capsize=1.5, linewidth=0.9)  # fmt: skip
        if run_overlaps is not None:
            axes.plot([], [], "-", color=COLOURS["grey"], label="theory")
            axes.plot([], [], "o", color=COLOURS["grey"], markersize=3.4, label="runs, ± 1 s.d.")
        # Beside the axes: overlaps go everywhere, there is no empty corner to rely on.
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        axes.set_xlabel(time_label)
        plain_decades(axes)
        if steps_per_unit is not None:
            steps_axis(axes, steps_per_unit)
    return axes


def _one_curve(name: str, values: np.ndarray, t: np.ndarray) -> None:
    if values.shape != t.shape or values.ndim != 1:
        raise InputError(name, expected=f"one curve of shape {t.shape}", got=f"{values.shape}",
                         remedy="pick one member of the batch")  # fmt: skip


def _clock(axes: Axes, source: Any, time_label: str | None) -> None:
    clock = getattr(source, "clock", None)
    steps = None if clock is None else float(clock.steps_per_unit)
    axes.set_xlabel(time_label or (TIME_LABEL if steps is None else f"t  (one unit = {steps:g} SGD steps)"))
    plain_decades(axes)
    # With a label of the caller's own the axis may be in another unit than the clock's t.
    if steps is not None and time_label is None and steps != 1.0:
        steps_axis(axes, steps)
