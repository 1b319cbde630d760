"""Compute-optimal exponents by three ways: best runs, parabolas at fixed compute, the fitted law; and the bias of the second.

N*(C) = N0 (C/C0)^a. Approach 1: the run of least loss at every compute. Approach 2: the vertex of a parabola of the loss in log N
at every compute. Approach 3: a = beta/(alpha + beta) of the fitted law. Source: Hoffmann et al. 2022, arXiv 2203.15556.
"""

from __future__ import annotations

import equinox as eqx
import numpy as np
from jaxtyping import Float
from scipy import special

from odescale.analysis.tables.decision import Interval, Law, best_sizes, chinchilla_numbers, detour, spread
from odescale.analysis.tables.fit import fit_table
from odescale.analysis.tables.result import TableFit, quantiles
from odescale.analysis.tables.table import ScalingTable
from odescale.errors import InputError, require_number, whole

SAME_BUDGET = 1.1
"""Runs whose compute differs by less, one from the next, are at one budget."""
ONE_BUDGET = 1.2
"""Largest over smallest compute of what may count as one budget."""
LEAST_ROWS = 4
"""Runs that a parabola with an error needs."""


class Approach(eqx.Module):
    """One way's answer: N* = `params` (C/`flop`)^`exponent`, with `interval` of the exponent and `params_interval` at `flop`.

    `points` (k, 2): the (C, N*) that the line goes through, empty for the law. `reason`: why there is no answer (the numbers are
    NaN then), else empty. `notes`: what was left out.
    """

    name: str = eqx.field(static=True)
    exponent: float
    interval: tuple[float, float]
    flop: float
    params: float
    params_interval: tuple[float, float]
    points: Float[np.ndarray, "k 2"]
    reason: str = eqx.field(static=True, default="")
    notes: tuple[str, ...] = eqx.field(static=True, default=())

    def __str__(self) -> str:
        if self.reason:
            return f"{self.name}: no answer, {self.reason}"
        return (
            f"{self.name}: N* ~ C^{self.exponent:.4f} ({self.interval[0]:.4f} to {self.interval[1]:.4f}), "
            f"N* = {self.params:.4g} ({self.params_interval[0]:.3g} to {self.params_interval[1]:.3g}) at {self.flop:.3g} FLOP"
        )


class Approaches(eqx.Module):
    """The three answers side by side: `envelope` (1), `parabola` (2), `law` (3), and what (2) costs if (3) is right.

    - `bias`: of (2) on this table's own grid, by the law of (3) without noise. `wasted`: the share of the compute that the answer
      of (2) to the table's own losses wastes at the named compute, by the law of (3) and its draws. None without an answer of both.
    - `fit` of (3); `level` of the intervals.
    """

    envelope: Approach
    parabola: Approach
    law: Approach
    bias: ParabolaBias | None
    wasted: Interval | None
    fit: TableFit
    level: float = eqx.field(static=True)

    def __str__(self) -> str:
        lines = [str(self.envelope), str(self.parabola), str(self.law)]
        if self.wasted is not None:
            low, high = float(self.wasted.low[0]), float(self.wasted.high[0])
            share = f"{float(self.wasted.value[0]):.1%} ({low:.1%} to {high:.1%}) of {self.law.flop:.3g} FLOP"
            lines.append(f"if the fitted law holds, the size by parabolas wastes {share}")
        return "\n".join([*lines, *([str(self.bias)] if self.bias else [])])


class ParabolaBias(eqx.Module):
    """What parabolas make of a law without any noise, on a given grid: `exponent` against the `true_exponent`, and at `flop` the
    size `params` against `true_params`; `error`: their ratio - 1; `wasted`: share of the compute that an optimal run of the same
    loss would save."""

    exponent: float
    true_exponent: float
    flop: float
    params: float
    true_params: float
    wasted: float

    @property
    def error(self) -> float:
        """N* of the parabolas over the true one, minus 1."""
        return self.params / self.true_params - 1

    def __str__(self) -> str:
        return (
            f"parabolas on this grid, by the law without noise: exponent {self.exponent:.4f} instead of {self.true_exponent:.4f}, "
            f"N* {self.error:+.1%} at {self.flop:.3g} FLOP, {self.wasted:.2%} of the compute wasted"
        )


def budgets_of(flop: Float[np.ndarray, " n"]) -> tuple[list[np.ndarray], str]:
    """(positions of the runs at each budget, why the runs are at no fixed budgets, else empty)."""
    order = np.argsort(flop)
    cuts = np.flatnonzero(np.diff(np.log(flop[order])) > np.log(SAME_BUDGET)) + 1
    groups = np.split(order, cuts)
    held = [g for g in groups if g.size >= LEAST_ROWS and flop[g].max() / flop[g].min() <= ONE_BUDGET]
    shared = sum(g.size for g in held)
    if 2 * shared < flop.size:
        return (
            groups,
            f"the runs are at no fixed budgets: {shared} of {flop.size} share theirs with {LEAST_ROWS - 1} others",
        )
    return held, ""


def compare_approaches(
    table: ScalingTable,
    *,
    at: float | None = None,
    fit: TableFit | None = None,
    level: float = 0.95,
    bootstrap: int = 2000,
    seed: int = 0,
) -> Approaches:
    """N*(C) ~ C^a by the best runs, by parabolas at fixed compute and by the fitted law, with intervals and the parabolas' bias.

    **Arguments**: `table`: with params, tokens and FLOP; leave marked rows out with `table.take`. `at`: compute of the named
    optimum, default the largest of the table. `fit`: of `fit_table` with the Chinchilla form; made here if None. `level`,
    `bootstrap`, `seed`.
    **Returns** `Approaches`. An approach that the table cannot serve says why. **Raises** `InputError`.

    Intervals: (1) and (2) draw the relative residuals of all parabolas, corrected for leverage, anew for every run, and widen by
    Student's factor: (2) refits the parabolas, (1) takes the best runs again and asks how far their line is from that of the
    vertices, which knows that sizes between those trained were not tried. Without parabolas (1) has Student's interval of its
    line. (3) is of the fit's draws.
    **Failure regime**: no interval of (1) or (2) knows of the parabolas' own bias; it is printed beside.
    """
    level = require_number("level", level, 0.0, 1.0, open_=True)
    bootstrap = whole("bootstrap", bootstrap, 2, 1_000_000, remedy="2000 is good")
    flop, params, loss = (table.column(name) for name in ("flop", "params", "loss"))
    place = float(flop.max()) if at is None else require_number("at", at, open_=True)
    found = fit_table(table, bootstrap=bootstrap, seed=seed) if fit is None else fit
    groups, scattered = budgets_of(flop)
    parabola = _parabola(flop, params, loss, groups, scattered, place, level, bootstrap, seed)
    law = _by_law(found, place, level)
    bias = wasted = None
    if not parabola.reason and not law.reason:
        bias = approach2_bias(found, table, at=place)
        values, draws, _ = chinchilla_numbers(found, None)
        both = np.concatenate([values[None], draws])
        wasted = spread(detour(both, np.array([place]), np.array([[parabola.params]]))[1], level)
    envelope = _envelope(flop, params, loss, groups, scattered, place, level, bootstrap, seed)
    return Approaches(envelope, parabola, law, bias, wasted, found, level)


def approach2_bias(law: Law, grid: ScalingTable, *, at: float | None = None, inside: bool = True) -> ParabolaBias:
    """What Approach 2 answers for a known law without noise, on the sizes and budgets of `grid`, against the law's own optimum.

    **Arguments**: `law`: a fit, or the numbers of a Chinchilla law (see `optimum`). `grid`: a table whose params and FLOP are used,
    its losses are not. `at`: the compute where the sizes are compared. `inside`: leave out budgets whose vertex lies outside the
    sizes tried, as `compare_approaches` does. **Returns** `ParabolaBias`. **Raises** `InputError`.
    Source of the question: Czech et al. 2026, arXiv 2603.22339.
    """
    values, _, _ = chinchilla_numbers(law, None)
    flop, params = grid.column("flop"), grid.column("params")
    place = float(flop.max()) if at is None else require_number("at", at, open_=True)
    e, a, b, alpha, beta = values
    loss = e + a * params**-alpha + b * (flop / (6 * params)) ** -beta
    groups, scattered = budgets_of(flop)
    if scattered:
        raise InputError(
            "grid", expected="runs at fixed budgets", got=scattered, remedy="pass a table of isoFLOP curves"
        )
    centres, vertices, _, _ = _vertices(flop, params, loss, groups, inside)
    if centres.size < 2:
        raise InputError("grid", expected="two budgets with a minimum inside", got=centres.size, remedy="add runs")
    slope, height = _line(np.log(centres), np.log(vertices)[None], np.log(place))
    size = float(np.exp(height[0]))
    true, _ = best_sizes(values[None], np.array([place]))
    wasted = detour(values[None], np.array([place]), np.array([[size]]))[1]
    return ParabolaBias(
        float(slope[0]), float(beta / (alpha + beta)), place, size, float(true[0, 0]), float(wasted[0, 0])
    )


def _by_law(fit: TableFit, at: float, level: float) -> Approach:
    name, empty = "3, fitted law", np.empty((0, 2))
    if fit.unidentified or fit.form.name != "chinchilla":
        reasons = [f"{key}: {reason}" for key, reason in fit.unidentified.items()] or ["the form has no closed optimum"]
        return _none(name, at, "; ".join(reasons))
    values, draws, _ = chinchilla_numbers(fit, None)
    both = np.concatenate([values[None], draws])
    powers = both[:, 4] / (both[:, 3] + both[:, 4])
    sizes = best_sizes(both, np.array([at]))[0][:, 0]
    return Approach(
        name, float(powers[0]), _pair(*quantiles(powers[1:], level)), at, float(sizes[0]), _pair(*quantiles(sizes[1:], level)),
        empty, notes=tuple(f"unstable: {reason}" for reason in fit.unstable),
    )  # fmt: skip


class _Curves(eqx.Module):
    """Parabolas of the loss in log N at every budget, and what a run differs from its own.

    `rows` of each budget with its `designs`, `middles` of log N and `fitted` losses; `pool` of the relative residuals of all,
    corrected for leverage; `widen`: Student's factor over the normal one for the residuals' degrees of freedom.
    """

    rows: list[np.ndarray]
    designs: list[np.ndarray]
    middles: list[float]
    fitted: list[np.ndarray]
    pool: np.ndarray
    widen: float

    def draw(self, i: int, draws: int, rng: np.random.Generator) -> np.ndarray:
        """(draws, runs of budget i): losses around the parabola."""
        return self.fitted[i] * (1 + rng.choice(self.pool, size=(draws, self.fitted[i].size)))

    def vertex(self, i: int, losses: np.ndarray) -> np.ndarray:
        """log N at the minimum of the parabola through each row of losses (draws, runs); NaN where it has none."""
        c = losses @ np.linalg.pinv(self.designs[i]).T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(c[:, 2] > 0, self.middles[i] - c[:, 1] / (2 * c[:, 2]), np.nan)


def _curves(params: np.ndarray, loss: np.ndarray, kept: list[np.ndarray], level: float) -> _Curves:
    designs, middles, fits, own = [], [], [], []
    for rows in kept:
        design, middle = _design(params[rows])
        inverse = np.linalg.pinv(design)
        fitted = design @ (inverse @ loss[rows])
        leverage = np.sum(design * inverse.T, axis=1)
        designs.append(design)
        middles.append(middle)
        fits.append(fitted)
        own.append((loss[rows] / fitted - 1) / np.sqrt(np.maximum(1 - leverage, 0.05)))
    pool = np.concatenate(own)
    free = pool.size - 3 * len(kept)
    widen = float(special.stdtrit(free, (1 + level) / 2) / special.ndtri((1 + level) / 2))
    return _Curves(kept, designs, middles, fits, pool - pool.mean(), widen)


def _envelope(
    flop: np.ndarray, params: np.ndarray, loss: np.ndarray, groups: list[np.ndarray], scattered: str, at: float, level: float,
    draws: int, seed: int,
) -> Approach:  # fmt: skip
    """Best run of every budget; without budgets, every run that no cheaper run beats."""
    name = "1, best runs"
    notes = []
    if scattered:
        order = np.argsort(flop)
        best = order[loss[order] <= np.minimum.accumulate(loss[order])]
        notes.append(f"lower envelope of all runs: {best.size} of {loss.size} beat every cheaper one")
    else:
        groups = [g for g in groups if np.unique(params[g]).size >= 3]
        best = np.array([g[np.argmin(loss[g])] for g in groups], dtype=int)
        edge = sum(params[i] in (params[g].min(), params[g].max()) for i, g in zip(best, groups, strict=True))
        if edge:
            notes.append(f"at {edge} of {best.size} budgets the best run has the smallest or the largest size tried")
    if best.size < 3 or np.unique(flop[best]).size < 3:
        return _none(name, at, f"{best.size} budgets with three sizes or more, three are needed")
    x, y = np.log(flop[best]), np.log(params[best])
    slope, height = _line(x, y[None], np.log(at))
    centre = np.array([float(slope[0]), float(height[0])])
    kept = [] if scattered else _vertices(flop, params, loss, groups)[3]
    if kept and len(kept) == len(groups):
        off = _off_vertices(_curves(params, loss, kept, level), x, np.log(params), float(np.log(at)), draws, seed)
        # What best runs exceed the truth by is taken off, not added: the interval turns over.
        high, low = (centre - end for end in quantiles(off, level))
    else:
        notes.append(
            "the interval is that of a line with Gaussian errors: not every budget has a parabola with its minimum inside"
        )
        spread = x - x.mean()
        rest = y - y.mean() - slope[0] * spread
        scatter = float(np.sqrt(rest @ rest / (x.size - 2)))
        at_place = np.sqrt(1 / x.size + (np.log(at) - x.mean()) ** 2 / (spread @ spread))
        error = float(special.stdtrit(x.size - 2, (1 + level) / 2)) * scatter
        half = error * np.array([1 / np.sqrt(spread @ spread), at_place])
        low, high = centre - half, centre + half
    points = np.stack([flop[best], params[best]], axis=1)
    return Approach(
        name, float(slope[0]), _pair(low[0], high[0]), at, float(np.exp(height[0])), _pair(np.exp(low[1]), np.exp(high[1])), points,
        notes=tuple(notes),
    )  # fmt: skip


def _off_vertices(
    curves: _Curves, x: np.ndarray, sizes: np.ndarray, at: float, draws: int, seed: int
) -> Float[np.ndarray, "d 2"]:
    """(slope, height at `at`) of the line through best runs of drawn losses, minus those of the line through the vertices."""
    rng = np.random.default_rng(seed)
    drawn = [sizes[rows][curves.draw(i, draws, rng).argmin(axis=1)] for i, rows in enumerate(curves.rows)]
    truth = np.array([curves.vertex(i, fitted[None])[0] for i, fitted in enumerate(curves.fitted)])
    off = np.stack(_line(x, np.stack(drawn, axis=1), at), axis=1) - np.stack(_line(x, truth[None], at), axis=1)
    return curves.widen * off


def _parabola(
    flop: np.ndarray, params: np.ndarray, loss: np.ndarray, groups: list[np.ndarray], scattered: str, at: float, level: float,
    draws: int, seed: int,
) -> Approach:  # fmt: skip
    name = "2, parabolas"
    if scattered:
        return _none(name, at, scattered)
    centres, vertices, notes, kept = _vertices(flop, params, loss, groups)
    if centres.size < 3:
        return _none(name, at, f"{centres.size} budgets with a minimum inside the sizes tried, three are needed")
    rng, curves = np.random.default_rng(seed), _curves(params, loss, kept, level)
    moved = np.stack([curves.vertex(i, curves.draw(i, draws, rng)) for i in range(centres.size)], axis=1)
    gone = ~np.isfinite(moved)
    if gone.mean() > 0.05:
        return _none(name, at, f"{gone.mean():.0%} of the resampled parabolas have no minimum")
    if gone.any():
        notes.append(f"{gone.mean():.1%} of the resampled parabolas have no minimum: left out of their draw's line")
    x = np.log(centres)
    slope, height = _line(x, np.log(vertices)[None], np.log(at))
    slopes, heights = _line(x, moved[(~gone).sum(axis=1) > 2], np.log(at))
    exponents = slope[0] + curves.widen * (slopes - slope[0])
    sizes = np.exp(height[0] + curves.widen * (heights - height[0]))
    return Approach(
        name, float(slope[0]), _pair(*quantiles(exponents, level)), at, float(np.exp(height[0])), _pair(*quantiles(sizes, level)),
        np.stack([centres, vertices], axis=1), notes=tuple(notes),
    )  # fmt: skip


def _vertices(
    flop: np.ndarray, params: np.ndarray, loss: np.ndarray, groups: list[np.ndarray], inside: bool = True
) -> tuple[np.ndarray, np.ndarray, list[str], list[np.ndarray]]:
    """(compute, N of the vertex, what was left out, rows) of every budget whose parabola has its minimum inside the sizes tried."""
    centres, vertices, notes, kept = [], [], [], []
    for rows in groups:
        budget = float(np.exp(np.log(flop[rows]).mean()))
        if rows.size < LEAST_ROWS or np.unique(params[rows]).size < 3:
            notes.append(f"budget {budget:.3g} left out: {rows.size} runs")
            continue
        design, middle = _design(params[rows])
        c = np.linalg.lstsq(design, loss[rows], rcond=None)[0]
        vertex = np.exp(middle - c[1] / (2 * c[2])) if c[2] > 0 else np.nan
        if not (params[rows].min() <= vertex <= params[rows].max() if inside else np.isfinite(vertex)):
            notes.append(f"budget {budget:.3g} left out: no minimum inside the sizes tried")
            continue
        centres.append(budget)
        vertices.append(float(vertex))
        kept.append(rows)
    return np.array(centres), np.array(vertices), notes, kept


def _design(params: np.ndarray) -> tuple[np.ndarray, float]:
    x = np.log(params)
    middle = float(x.mean())
    return np.stack([np.ones_like(x), x - middle, (x - middle) ** 2], axis=1), middle


def _line(x: np.ndarray, y: Float[np.ndarray, "d k"], at: float) -> tuple[np.ndarray, np.ndarray]:
    """(slope, height at `at`) of the least-squares line through every row of y, without its NaN."""
    held = np.isfinite(y)
    count = held.sum(axis=1)
    y = np.where(held, y, 0.0)
    middle = (held @ x) / count
    spread = held * (x - middle[:, None])
    slope = np.sum(spread * y, axis=1) / np.sum(spread**2, axis=1)
    return slope, y.sum(axis=1) / count + slope * (at - middle)


def _pair(low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    return float(low), float(high)


def _none(name: str, at: float, reason: str) -> Approach:
    nan = float("nan")
    return Approach(name, nan, (nan, nan), at, nan, (nan, nan), np.empty((0, 2)), reason)
