"""Pictures of integrations and of runs: loss, local exponents, overlaps; one curve, the members of a sweep, or several by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from numpy.typing import ArrayLike

from odescale.errors import InputError
from odescale.plot.style import (
    COLOURS,
    CYCLE,
    LOSS_LABEL,
    PHASE_COLOURS,
    draw_runs,
    fraction,
    mark_transition,
    name_index_levels,
    own_axes,
    panels,
    plain_decades,
    shared_style,
    slope_guide,
    time_axis,
    time_label,
    unreadable_index,
)

EXPONENT_LABEL = r"local exponent  $p = -\,d\,\log L\,/\,d\,\log t$"
INDEX_LABEL = r"index  $q = d\,\log p\,/\,d\,\log t$"
MOST_NAMES = len(CYCLE)
"""Lines that colours and a legend can tell apart; more members of a sweep get a colour scale."""


class _Line(NamedTuple):
    """One curve: values on t (n,), errors relative (loss) or absolute, None where not known."""

    label: str
    colour: Any
    t: np.ndarray
    loss: np.ndarray
    exponent: np.ndarray | None
    index: np.ndarray | None
    shown: np.ndarray
    error: np.ndarray | None
    source: Any


class _Family(NamedTuple):
    """The curves of a picture, what they share, and a colour scale (name, mappable) in the place of a legend."""

    lines: list[_Line]
    clock: Any
    loss_label: str
    scale: tuple[str, Any] | None


def plot_loss(
    result: Any,
    axes: Any = None,
    *,
    transition: Any = None,
    slope: float | None = None,
    label: str | None = None,
    title: str = "",
) -> Any:
    """L(t), log-log and semi-logarithmic side by side: a power law is straight in the first, an exponential in the second.

    **Arguments**: `result`: a trajectory (a sweep: all members), or label -> trajectory or run; `transition`: marked, and the
    second panel ends at three times it; `slope`: exponent of a predicted power law, a guide of that slope beside the last
    curve's end; `label` of a single curve. Bands: error of the theory, standard error of runs. **Returns** the axes "loss",
    "semilog"; the axes handed in, with the first panel alone.
    """
    family = _family(result, label)
    with shared_style():
        drawn = panels(axes, ("loss", "semilog"), 11.6, 4.8)
        for name, panel in drawn.items():
            _draw_losses(panel, family, name == "loss")
            if transition is not None and transition.found:
                words = f"{transition.name}: t_x = {transition.t_x:.4g}"
                mark_transition(panel, transition, COLOURS["grey"], linestyle="--", label=words)
        if slope is not None:
            last = family.lines[-1]
            slope_guide(drawn["loss"], last.t[last.shown], last.loss[last.shown], slope)
        _finish(drawn, family, title)
        if "semilog" in drawn and transition is not None and transition.found:
            _cut(drawn["semilog"], family.lines, 3 * transition.t_x)
    return drawn if len(drawn) > 1 else drawn["loss"]


def plot_exponent(result: Any, axes: Axes | None = None, *, transition: Any = None, label: str | None = None) -> Axes:
    """The local exponent p(t) with its error band where known: of trajectories, sweeps, a `LocalExponent`, or several by label."""
    return _plot_derivative(result, axes, "exponent", transition, label)


def plot_index(result: Any, axes: Axes | None = None, *, transition: Any = None, label: str | None = None) -> Axes:
    """The index q(t), 1 where the decay is exponential and 0 where it is a power law, with its error band where known."""
    return _plot_derivative(result, axes, "index", transition, label)


def plot_law(
    result: Any,
    axes: Any = None,
    *,
    asymptotes: Mapping[str, Float[ArrayLike, " n"]] | Float[ArrayLike, " n"] | None = None,
    exponent: float | None = None,
    exponents: tuple[float, float] | None = None,
    label: str | None = None,
    title: str = "",
) -> Any:
    """L(t) beside p(t), with the power laws that a theory gives for them; returns the axes "loss" and "exponent".

    **Arguments**: `result`: a trajectory, or label -> trajectory, at most 8; `asymptotes`: label -> (n,) losses at the same times,
    e.g. c^(2/3) ((K-1)/(3 eta t))^(1/3), drawn dashed in the colour of their curve; `exponent`: a predicted one, marked on the
    p-axis; `exponents`: range of that axis. **Raises** `InputError` when lengths or labels do not match.
    """
    family = _family(result, label)
    laws = asymptotes if isinstance(asymptotes, Mapping) else {family.lines[0].label: asymptotes}
    laws = {name: np.asarray(law, float) for name, law in laws.items() if law is not None}
    by_name = {line.label: line for line in family.lines}
    for name, law in laws.items():
        if name not in by_name:
            raise InputError("asymptotes", expected=f"labels among {tuple(by_name)}", got=name, remedy="drop it")
        if law.shape != by_name[name].t.shape:
            raise InputError(f"asymptotes[{name!r}]", expected=f"shape {by_name[name].t.shape}", got=law.shape,
                             remedy="evaluate it at the times of its trajectory")  # fmt: skip
    with shared_style():
        drawn = panels(axes, ("loss", "exponent"), 11.6, 4.6)
        _draw_losses(drawn["loss"], family, True, laws)
        if "exponent" in drawn:
            _draw_derivatives(drawn["exponent"], family, "exponent")
            if exponents is not None:
                drawn["exponent"].set_ylim(*exponents)
            if exponent is not None:
                _mark_exponent(drawn["exponent"], exponent)
        _finish(drawn, family, title)
    return drawn if len(drawn) > 1 else drawn["loss"]


def plot_run(run: Any, axes: Any = None, *, record: str = "loss", slope: float | None = None, title: str = "") -> Any:
    """One record of a run, mean and standard error over the seeds in front of the single seeds; log-log and semi-logarithmic.

    **Arguments**: `record` of one number per time; `slope`: a predicted exponent, drawn as a guide. **Returns** "loss", "semilog".
    """
    values = np.asarray(run[record], float)
    if values.ndim != 2:
        numbers = [name for name in run.records if np.ndim(run.records[name]) == 2]
        raise InputError("record", expected=f"one of {', '.join(numbers)}", got=record, remedy="one number per time")
    several, t, mean = len(run.seeds) > 1, np.asarray(run.t, float), values.mean(axis=0)
    positive = bool((mean[t > 0] > 0).all())
    with shared_style():
        drawn = panels(axes, ("loss", "semilog"), 11.6, 4.8)
        for name, panel in drawn.items():
            kept = t > 0 if name == "loss" else t >= 0
            panel.set(xscale="log" if name == "loss" else "linear", yscale="log" if positive else "linear")
            panel.set_ylabel(_loss_label(run) if record == "loss" else record)
            words = f"mean of {len(run.seeds)} seeds" if several else f"seed {run.seeds[0]}"
            draw_runs(panel, t[kept], mean[kept], run.stderr(record)[kept] if several else None, values[:, kept], words)
            if slope is not None and name == "loss":
                slope_guide(panel, t[kept], mean[kept], slope)
            time_axis(panel, run.clock)
        drawn["loss"].legend(loc="best")
        _title(drawn, title)
    return drawn if len(drawn) > 1 else drawn["loss"]


def plot_overlaps(
    trajectory: Any,
    axes: Axes | None = None,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    names: Sequence[str] | None = None,
    run: Any = None,
) -> Axes:
    """Overlaps C_ij(t) of chosen pairs of rows: lines for the theory, points for the mean of runs with their scatter.

    **Arguments**: `pairs` of names to draw, at most 8 (more cannot be told apart), by default the rows that move with themselves;
    `names` (P,) of the rows, by default those of the trajectory; `run`: a run of the same system, mean and standard deviation
    over seeds as bars. The numbers are dimensionless (rows scaled so that an overlap is of order one). Returns the axes.
    """
    t, overlaps = np.asarray(trajectory.t, float), np.asarray(trajectory.observables.get("overlaps"), float)
    rows = trajectory.meta.get("parameters", {}).get("rows") if names is None else names
    if overlaps.ndim != 3:
        raise InputError("trajectory", expected="overlaps (n, P, P) of one member", got=f"{overlaps.shape}",
                         remedy="plot one that has them")  # fmt: skip
    rows = list(rows) if isinstance(rows, Sequence) else [str(i) for i in range(overlaps.shape[-1])]
    if overlaps.shape[-1] < len(rows) or (names is not None and overlaps.shape[-1] != len(rows)):
        raise InputError("names", expected=f"{overlaps.shape[-1]} names", got=len(rows), remedy="one for each row")
    if pairs is None:  # what moves: rows that stand still would only cover each other
        lengths = np.diagonal(overlaps, axis1=1, axis2=2)[:, : len(rows)]
        moved = np.flatnonzero(np.ptp(lengths, axis=0) > 1e-3 * np.abs(lengths).max())
        pairs = [(rows[i], rows[i]) for i in (moved if moved.size else np.arange(len(rows)))[: len(CYCLE)]]
    if not 1 <= len(pairs) <= len(CYCLE):
        raise InputError("pairs", expected=f"1 to {len(CYCLE)} pairs", got=len(pairs), remedy="draw several pictures")
    for name in {name for pair in pairs for name in pair} - set(rows):
        raise InputError("pairs", expected=f"names among {tuple(rows)}", got=name, remedy="use the rows' names")
    order = {name: i for i, name in enumerate(rows)}
    with shared_style():
        axes = own_axes(axes, 8.4, 4.6)
        axes.set(xscale="log", ylabel=r"overlap  $C_{ij}$  (dimensionless)")
        shown = t > 0
        for (left, right), colour in zip(pairs, CYCLE, strict=False):
            i, j = order[left], order[right]
            axes.plot(t[shown], overlaps[shown, i, j], color=colour, label=f"{left} · {right}")
            if run is not None:
                of_run = np.asarray(run["overlaps"], float)[:, run.t > 0, i, j]
                axes.errorbar(run.t[run.t > 0], of_run.mean(axis=0), yerr=of_run.std(axis=0), fmt="o", markersize=3.4,
                              color=colour, capsize=1.5, linewidth=0.9)  # fmt: skip
        if run is not None:
            axes.plot([], [], "-", color=COLOURS["grey"], label="theory")
            axes.plot([], [], "o", color=COLOURS["grey"], markersize=3.4, label="runs, ± 1 s.d.")
        # Beside the axes: overlaps go everywhere, there is no empty corner to rely on.
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        time_axis(axes, trajectory.clock)
    return axes


def plot_transition(transition: Any, axes: Axes | None = None) -> Axes:
    """The phases of a `Transition` in order: median local exponent of each that counts, t_x with its 95 % interval, the cut-off."""
    with shared_style():
        axes = own_axes(axes)
        axes.set(xscale="log", ylabel=EXPONENT_LABEL + ", median", xlabel=transition.time_unit)
        named: set[str] = set()
        phases = () if transition.phases is None else transition.phases.list
        for phase in phases:
            kind = phase.kind if phase.counts else "between"
            label = None if kind in named else kind
            axes.plot([phase.start, phase.end], [phase.exponent] * 2, color=PHASE_COLOURS.get(kind, COLOURS["grey"]),
                      linewidth=4 if phase.counts else 1.5, label=label, solid_capstyle="butt")  # fmt: skip
            named.add(kind)
        mark_transition(
            axes, transition, COLOURS["formula"], linestyle="--", label="$t_x$" if transition.found else None
        )
        if transition.finite_size_cutoff is not None:
            axes.axvline(
                transition.finite_size_cutoff, color=COLOURS["grey"], linestyle=":", label="finite-size cut-off"
            )
        axes.set_title(
            f"{transition.name}: $t_x$ = {transition.t_x:.4g}" if transition.found else transition.name, loc="left"
        )
        plain_decades(axes)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="best")
    return axes


def _draw_losses(panel: Axes, family: _Family, logarithmic: bool, laws: Mapping[str, Any] | None = None) -> None:
    """Every curve with its band, and the law of its name dashed."""
    panel.set(xscale="log" if logarithmic else "linear", yscale="log", ylabel=family.loss_label)
    for line in family.lines:
        shown = line.shown & (line.t > 0) if logarithmic else line.shown
        t, loss = line.t[shown], line.loss[shown]
        panel.plot(t, loss, color=line.colour, label=line.label)
        if line.error is not None:
            wide = loss * np.minimum(np.nan_to_num(line.error[shown]), 0.999)
            panel.fill_between(t, loss - wide, loss + wide, color=line.colour, alpha=0.25, linewidth=0)
        if laws and line.label in laws:
            # Early on the power law is above any loss: it would only stretch the axis.
            late = shown & (laws[line.label] < np.nanmax(line.loss))
            panel.plot(line.t[late], laws[line.label][late], "--", color=line.colour, linewidth=1.1)
    if laws:
        panel.plot([], [], "--", color=COLOURS["grey"], linewidth=1.1, label="power law, no fit")


def _plot_derivative(result: Any, axes: Axes | None, quantity: str, transition: Any, label: str | None) -> Axes:
    family = _family(result, label)
    with shared_style():
        axes = own_axes(axes)
        _draw_derivatives(axes, family, quantity)
        mark_transition(axes, transition, COLOURS["grey"], linestyle="--", label="transition")
        _finish({quantity: axes}, family, "")
    return axes


def _draw_derivatives(axes: Axes, family: _Family, quantity: str) -> None:
    axes.set(xscale="log", ylabel=EXPONENT_LABEL if quantity == "exponent" else INDEX_LABEL)
    for line in family.lines:
        values = getattr(line, quantity)
        if values is None:
            raise InputError("kind", expected="a record with local exponents", got=line.label, remedy="draw its loss")
        label, error = line.label, getattr(line.source, f"{quantity}_stderr", None)
        if error is not None and quantity == "index":
            values = np.where(unreadable_index(line.source), np.nan, values)
            label += " (where the error of q is below 1)"
        shown = line.shown & (line.t > 0)
        axes.plot(line.t[shown], values[shown], color=line.colour, label=label)
        if error is not None:
            wide = np.asarray(error, float)[shown]
            low, high = values[shown] - wide, values[shown] + wide
            axes.fill_between(line.t[shown], low, high, color=line.colour, alpha=0.2, linewidth=0)
    if quantity == "index":
        axes.set_ylim(-3.2, 2.2)
        name_index_levels(axes)


def _mark_exponent(axes: Axes, exponent: float) -> None:
    axes.axhline(exponent, color=COLOURS["grey"], linewidth=1.0, linestyle=":")
    axes.text(1.01, exponent, fraction(exponent), transform=axes.get_yaxis_transform(), va="center", fontsize=9.5,
              color=COLOURS["grey"])  # fmt: skip


def _finish(drawn: dict[str, Axes], family: _Family, title: str) -> None:
    """Time axes, a legend or the colour scale, a title."""
    for panel in drawn.values():
        time_axis(panel, family.clock)
    # Once is enough: the other panels have the same lines. Members on a colour scale need no names.
    main = next(iter(drawn.values()))
    named = {line.label for line in family.lines} if family.scale is not None else set()
    shown = [pair for pair in zip(*main.get_legend_handles_labels(), strict=True) if pair[1] not in named]
    if shown:
        main.legend(*zip(*shown, strict=True), loc="best")
    if family.scale is not None:
        name, mappable = family.scale
        last = list(drawn.values())[-1]
        last.figure.colorbar(mappable, ax=list(drawn.values()), pad=0.015).set_label(name)
    _title(drawn, title)


def _title(drawn: dict[str, Axes], title: str) -> None:
    if title and len(drawn) > 1:
        next(iter(drawn.values())).figure.suptitle(title, fontsize=12.5)
    elif title:
        next(iter(drawn.values())).set_title(title)


def _cut(axes: Axes, lines: list[_Line], end: float) -> None:
    """The panel up to `end`, with the losses that it then holds."""
    seen = np.concatenate([line.loss[line.shown & (line.t <= end)] for line in lines])
    if seen.size and end < max(line.t[-1] for line in lines):
        axes.set_xlim(0, end)
        axes.set_ylim(seen.min() / 1.5, seen.max() * 1.5)


def _family(result: Any, label: str | None) -> _Family:
    scale = None
    if isinstance(result, Mapping):
        if not 1 <= len(result) <= MOST_NAMES:
            raise InputError("result", expected=f"1 to {MOST_NAMES} curves", got=len(result), remedy="draw fewer")
        if label is not None:
            raise InputError("label", expected="None beside a dict of labels", got=label, remedy="use its keys")
        lines = [_line(one, str(name), colour) for (name, one), colour in zip(result.items(), CYCLE, strict=False)]
        sources = list(result.values())
    elif np.ndim(getattr(result, "loss", 0.0)) > 1:
        lines, scale = _members(result)
        sources = [result]
    else:
        lines, sources = [_line(result, label or "theory", COLOURS["theory"])], [result]
    clocks = [getattr(one, "clock", None) for one in sources]
    words = {time_label(clock) for clock in clocks}
    names = list(dict.fromkeys(_loss_label(one) for one in sources))
    told = [name for name in names if name != LOSS_LABEL] or names
    return _Family(lines, clocks[0] if len(words) == 1 else None, " / ".join(told), scale)


def _loss_label(source: Any) -> str:
    told = getattr(source, "meta", None) or {}
    return told.get("loss") or (getattr(source, "config", None) or {}).get("loss_label") or LOSS_LABEL


def _line(source: Any, label: str, colour: Any, member: int | None = None) -> _Line:
    t = np.asarray(source.t, float)
    if hasattr(source, "records"):
        several = len(source.seeds) > 1
        loss = source.mean("loss")
        error = source.stderr("loss") / loss if several else None
        return _Line(label, colour, t, loss, None, None, loss > 0, error, source)

    def of(name: str) -> np.ndarray | None:
        values = getattr(source, name, None)
        return None if values is None else np.asarray(values if member is None else values[member])

    loss = np.exp(np.asarray(source.log_loss)) if hasattr(source, "log_loss") else of("loss")
    if loss is None or loss.shape != t.shape:
        raise InputError(
            label, expected=f"one curve of shape {t.shape}", got=getattr(loss, "shape", None), remedy="pick one member"
        )
    valid = of("valid")
    with np.errstate(invalid="ignore"):
        shown = np.isfinite(loss) & (loss > 0) & (True if valid is None else valid)
    return _Line(label, colour, t, loss, of("exponent"), of("index"), shown, of("error"), source)


def _members(sweep: Any) -> tuple[list[_Line], tuple[str, Any] | None]:
    """The members of a sweep: by label while these can be told apart, else on a colour scale of the parameter."""
    columns = {name: np.asarray(values) for name, values in sweep.meta.get("members", {}).items()}
    count = np.shape(sweep.loss)[0]
    varied = {name: values for name, values in columns.items() if len(set(values.tolist())) > 1} or columns
    labels = [", ".join(f"{n} = {_told(v[i])}" for n, v in varied.items()) or f"member {i}" for i in range(count)]
    colours, scale = list(CYCLE), None
    numbers = next((values for values in varied.values() if values.dtype.kind in "if"), None)
    if count > MOST_NAMES and numbers is not None:
        name = next(name for name, values in varied.items() if values is numbers)
        finite = numbers[np.isfinite(numbers)]
        wide = finite.size and finite.min() > 0 and finite.max() > 20 * finite.min()
        norm = (LogNorm if wide else Normalize)(finite.min(), finite.max())
        scale = (name, ScalarMappable(norm, colormaps["viridis"]))
        colours = [scale[1].to_rgba(value) for value in numbers]
    elif count > MOST_NAMES:
        raise InputError(
            "result", expected=f"at most {MOST_NAMES} members told apart by words", got=count, remedy="draw fewer"
        )
    return [_line(sweep, labels[i], colours[i], i) for i in range(count)], scale


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)
