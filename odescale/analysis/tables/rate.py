"""The best learning rate of each group of runs that differ in nothing else: where the loss turns, and how surely."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float
from scipy import optimize, special

SPAN = 10.0
"""Rates up to this factor from the best one of the grid count."""
RISE = 0.25
"""Runs whose log loss is higher than the best by more have left the basin: they say nothing about its bottom."""
LEAST_POINTS = 4
SHAPES = np.geomspace(0.1, 3.0, 8)
"""Starts of the two powers p and q."""
RANGE = (0.02, 4.0)
SPARE = 5
"""Degrees of freedom that are left for the noise: with fewer the powers do not drift, then the basin is a parabola. A test of
whether the table needs them would keep the simple form where the noise hides the difference, and its bias with it."""
PLACES = 121
DRIFT = 1.5
"""Largest change of log p and log q from the middle of the groups to their end."""


class RateOptimum(eqx.Module):
    """Best rate of one group (N, D): `rate` with `interval` at the level asked for, None with a `reason` if it is not to be seen.

    `loss`: of the fitted curve at its bottom. `points` in the window. `grid`: smallest and largest rate tried.
    """

    params: float
    tokens: float
    rate: float | None
    interval: tuple[float, float] | None
    loss: float | None
    points: int
    grid: tuple[float, float]
    reason: str

    def __str__(self) -> str:
        where = f"N = {self.params:.3g}, D = {self.tokens:.3g}"
        if self.rate is None or self.interval is None:
            return f"{where}: no best rate ({self.reason})"
        return f"{where}: best rate {self.rate:.3g} ({self.interval[0]:.3g} to {self.interval[1]:.3g})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Group(eqx.Module):
    """Runs of one N and D: log rates and log losses, and the log rates of the runs that diverged."""

    params: float
    tokens: float
    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    lost: Float[np.ndarray, " m"]


class Optima(eqx.Module):
    """All groups' best rates; of those that show one, the covariance of log rate* and the degrees of freedom of the noise.

    `shape`: (p, q) of the basins, None where a parabola in log rate fits as well.
    """

    groups: list[RateOptimum]
    covariance: Float[np.ndarray, "g g"]
    freedom: int
    shape: tuple[float, float] | None


def find_optima(groups: list[Group], level: float) -> Optima:
    """L_g = m_g + c_g f(log(rate/rate*_g)), f(z) = (e^(-pz) - 1)/p + (e^(qz) - 1)/q or f = z^2.

    Least squares of the relative residual. The two powers are those of theory: a bias that falls with the rate, a noise that
    grows with it. They drift with log(N D) where the table has runs enough to tell. The noise is one number for all groups: its
    estimate has n - 3 g degrees of freedom, where a group alone would have one or two.
    """
    windows = [_window(group) for group in groups]
    doubts = [_early_doubt(group, window) for group, window in zip(groups, windows, strict=True)]
    usable = [i for i, doubt in enumerate(doubts) if not doubt]
    left = sum(int(windows[i].sum()) for i in usable) - 3 * len(usable)
    if usable and left < 2:
        few = f"the runs of {len(usable)} groups leave {left} degrees of freedom for the noise, 2 are needed"
        doubts, usable = [doubt or few for doubt in doubts], []
    optima = [_refused(g, int(w.sum()), d) for g, w, d in zip(groups, windows, doubts, strict=True)]
    if not usable:
        return Optima(optima, np.zeros((0, 0)), 0, None)
    scale = np.log([groups[i].params * groups[i].tokens for i in usable])
    scale -= scale.mean()
    scale /= max(float(np.abs(scale).max()), 1e-9)
    parts = [(groups[i].x[windows[i]], np.exp(groups[i].y[windows[i]])) for i in usable]
    basin = _fit([_Part(x, loss, float(u)) for (x, loss), u in zip(parts, scale, strict=True)])
    wide = float(special.stdtrit(basin.freedom, 0.5 + level / 2)) * np.sqrt(np.diag(basin.covariance))
    kept = []
    for j, i in enumerate(usable):
        centre, count = float(basin.centres[j]), int(windows[i].sum())
        low, high = centre - float(wide[j]), centre + float(wide[j])
        doubt = _late_doubt(groups[i], float(basin.rises[j]), centre, low, high, level)
        optima[i] = _refused(groups[i], count, doubt)
        if not doubt:
            interval = (float(np.exp(low)), float(np.exp(high)))
            group, grid = groups[i], optima[i].grid
            optima[i] = RateOptimum(
                group.params, group.tokens, float(np.exp(centre)), interval, float(basin.bottoms[j]), count, grid, ""
            )
            kept.append(j)
    return Optima(optima, basin.covariance[np.ix_(kept, kept)], basin.freedom, basin.shape)


class _Basin(eqx.Module):
    centres: np.ndarray
    bottoms: np.ndarray
    rises: np.ndarray
    covariance: np.ndarray
    freedom: int
    shape: tuple[float, float] | None


def _window(group: Group) -> np.ndarray:
    if not group.x.size:
        return np.zeros(0, bool)
    best = int(np.argmin(group.y))
    near = np.abs(group.x - group.x[best]) <= np.log(SPAN) * (1 + 1e-9)
    return near & (group.y <= group.y[best] + RISE)


def _early_doubt(group: Group, window: np.ndarray) -> str:
    different = np.unique(group.x[window]).size
    best = group.x[np.argmin(group.y)]
    if best == group.x.min():
        return f"the best rate, {np.exp(best):.3g}, is the smallest tried: add smaller ones"
    if best == group.x.max():
        if group.lost.size and group.lost.min() > best:
            return f"the best rate, {np.exp(best):.3g}, is the last before the runs diverge: an edge of stability, not a turn"
        return f"the best rate, {np.exp(best):.3g}, is the largest tried: add larger ones"
    if different < LEAST_POINTS:
        return f"{different} rates within a factor {SPAN:g} and {RISE:.0%} of the best loss, {LEAST_POINTS} are needed"
    return ""


def _late_doubt(group: Group, rise: float, best: float, low: float, high: float, level: float) -> str:
    if not rise > 0:
        return "the curve through its losses has no minimum"
    if low < group.x.min() or high > group.x.max():
        shown = f"{np.exp(max(low, -700)):.3g} to {np.exp(min(high, 700)):.3g}"
        return f"the {level:.0%} interval {shown} leaves the rates tried: the grid ends too near, or the noise hides the turn"
    return ""


def _refused(group: Group, points: int, reason: str) -> RateOptimum:
    rates = np.concatenate([group.x, group.lost])
    grid = (float(np.exp(rates.min())), float(np.exp(rates.max())))
    return RateOptimum(group.params, group.tokens, None, None, None, points, grid, reason)


class _Part(eqx.Module):
    """Window of one group: log rates, losses, and u: log(N D) about its mean over the groups, in units of its largest size."""

    x: np.ndarray
    loss: np.ndarray
    u: float


def _fit(parts: list[_Part]) -> _Basin:
    """Two powers that drift with log(N D), two common powers, or a parabola: the first that leaves `SPARE` degrees of freedom."""
    count, total = len(parts), sum(part.x.size for part in parts)
    places = [np.linspace(part.x.min(), part.x.max(), PLACES) for part in parts]
    first = np.array([_best_place(part, z, None)[1] for part, z in zip(parts, places, strict=True)])
    chosen, freedom = _refine(parts, first, np.zeros(0)), total - 3 * count
    if freedom - 2 >= SPARE:
        shape, centres = _best_shape(parts, places)
        chosen, freedom = _refine(parts, centres, shape), freedom - 2
        if freedom - 2 >= SPARE and np.ptp([part.u for part in parts]) > 0:
            shape, centres = np.append(chosen.x[count:], [0.0, 0.0]), chosen.x[:count]
            chosen, freedom = _refine(parts, centres, shape), freedom - 2
    shape = chosen.x[count:]
    solved = [_solve(part, place, shape) for part, place in zip(parts, chosen.x[:count], strict=True)]
    noise = max(2 * chosen.cost / freedom, 1e-24)
    return _Basin(
        chosen.x[:count], np.array([a[0] for _, a in solved]), np.array([a[1] for _, a in solved]),
        noise * np.linalg.pinv(chosen.jac.T @ chosen.jac)[:count, :count], freedom,
        (float(shape[0]), float(shape[1])) if shape.size else None,
    )  # fmt: skip


def _best_shape(parts: list[_Part], places: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The best (p, q) of a grid, and the bottoms that go with it."""
    starts = []
    for p in SHAPES:
        for q in SHAPES:
            found = [_best_place(part, z, (p, q)) for part, z in zip(parts, places, strict=True)]
            starts.append((sum(cost for cost, _ in found), (p, q), [place for _, place in found]))
    _, shape, centres = min(starts, key=lambda one: one[0])
    return np.array(shape), np.array(centres)


def _powers(shape: np.ndarray, u: float) -> tuple[float, float] | None:
    if not shape.size:
        return None
    if shape.size == 2:
        return float(shape[0]), float(shape[1])
    return float(shape[0] * np.exp(shape[2] * u)), float(shape[1] * np.exp(shape[3] * u))


def _curve(z: np.ndarray, powers: tuple[float, float] | None) -> np.ndarray:
    if powers is None:
        return z**2
    p, q = powers
    return np.expm1(-p * z) / p + np.expm1(q * z) / q


def _solve(part: _Part, place: float, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Relative residual at the best m and c, and these."""
    one, f = 1 / part.loss, _curve(part.x - place, _powers(shape, part.u)) / part.loss
    aa, ab, bb, a1, b1 = one @ one, one @ f, f @ f, one.sum(), f.sum()
    determinant = aa * bb - ab**2
    c = (aa * b1 - ab * a1) / determinant if determinant > 1e-14 * aa * bb else 0.0
    m = (a1 - ab * c) / aa
    return 1 - m * one - c * f, np.array([m, c])


def _best_place(part: _Part, places: np.ndarray, powers: tuple[float, float] | None) -> tuple[float, float]:
    """The smallest sum of squares with c > 0 over `places`, and where it is."""
    f = _curve(part.x - places[:, None], powers) / part.loss
    one = np.broadcast_to(1 / part.loss, f.shape)
    aa, ab, bb = (one**2).sum(1), (one * f).sum(1), (f**2).sum(1)
    a1, b1 = one.sum(1), f.sum(1)
    determinant = aa * bb - ab**2
    c = (aa * b1 - ab * a1) / np.where(determinant > 0, determinant, np.inf)
    m = (a1 - ab * c) / aa
    cost = np.where(c > 0, part.x.size - m * a1 - c * b1, np.inf)
    i = int(np.argmin(cost))
    return float(cost[i]), float(places[i])


def _refine(parts: list[_Part], centres: np.ndarray, shape: np.ndarray) -> Any:
    """Least squares over all bottoms and what `shape` has of the powers; m and c are solved for inside."""
    count = centres.size

    def residual(v: np.ndarray) -> np.ndarray:
        return np.concatenate([_solve(part, place, v[count:])[0] for part, place in zip(parts, v[:count], strict=True)])

    ends = (RANGE[0], RANGE[0], -DRIFT, -DRIFT), (RANGE[1], RANGE[1], DRIFT, DRIFT)
    low = np.append([part.x.min() - 1 for part in parts], ends[0][: shape.size])
    high = np.append([part.x.max() + 1 for part in parts], ends[1][: shape.size])
    start = np.clip(np.append(centres, shape), low + 1e-6, high - 1e-6)
    return optimize.least_squares(residual, start, bounds=(low, high), x_scale="jac", max_nfev=80)
