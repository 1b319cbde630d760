"""The best learning rate of each group of runs that differ in nothing else: where the loss turns, and how surely."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float
from scipy import optimize, special

SPAN = 10.0
"""Rates up to this factor from the best one of the grid count."""
RISES = (0.25, 0.1, 0.05, 0.02)
"""Runs whose log loss is higher than the best by more have left the basin: they say nothing about its bottom. How deep the basin is
taken is decided by the table: a deep one has more runs in it, a shallow one less of a shape that changes from group to group."""
GAIN = 0.5
"""A shallower basin is taken only where it lowers the mean variance of the bottoms to this part: the smallest of several noisy
estimates is too small by chance."""
LEAST_POINTS = 4
SHAPES = np.geomspace(0.1, 3.0, 8)
"""Starts of the two powers p and q."""
RANGE = (0.02, 4.0)
SIGNIFICANCE = 0.05
"""From which the two powers replace the parabola."""
PLACES = 121


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
    """L_g = m_g + c_g f(log(rate/rate*_g)), f(z) = (e^(-pz) - 1)/p + (e^(qz) - 1)/q with p and q common to all groups, or z^2.

    Least squares of the relative residual. The two powers are those of theory: a bias that falls with the rate, a noise that grows
    with it. They are kept where an F test prefers them to the parabola. The noise is one number for all groups: its estimate has
    n - 3 g degrees of freedom, where a group alone would have one or two.
    """
    tries = [_try(groups, rise) for rise in RISES]
    kept_try = tries[0]
    for one in tries[1:]:
        if one.variance < GAIN * kept_try.variance and len(one.usable) >= len(kept_try.usable):
            kept_try = one
    optima, windows, usable, basin = list(kept_try.refused), kept_try.windows, kept_try.usable, kept_try.basin
    if basin is None:
        return Optima(optima, np.zeros((0, 0)), 0, None)
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


class _Try(eqx.Module):
    """The joint fit at one depth of the basins."""

    windows: list[np.ndarray]
    usable: list[int]
    refused: list[RateOptimum]
    basin: _Basin | None
    variance: float


def _try(groups: list[Group], rise: float) -> _Try:
    windows = [_window(group, rise) for group in groups]
    doubts = [_early_doubt(group, window, rise) for group, window in zip(groups, windows, strict=True)]
    usable = [i for i, doubt in enumerate(doubts) if not doubt]
    left = sum(int(windows[i].sum()) for i in usable) - 3 * len(usable)
    if usable and left < 2:
        few = f"the runs of {len(usable)} groups leave {left} degrees of freedom for the noise, 2 are needed"
        doubts, usable = [doubt or few for doubt in doubts], []
    refused = [_refused(g, int(w.sum()), d) for g, w, d in zip(groups, windows, doubts, strict=True)]
    if not usable:
        return _Try(windows, usable, refused, None, np.inf)
    basin = _fit([(groups[i].x[windows[i]], np.exp(groups[i].y[windows[i]])) for i in usable])
    return _Try(windows, usable, refused, basin, float(np.mean(np.diag(basin.covariance))))


def _window(group: Group, rise: float) -> np.ndarray:
    if not group.x.size:
        return np.zeros(0, bool)
    best = int(np.argmin(group.y))
    near = np.abs(group.x - group.x[best]) <= np.log(SPAN) * (1 + 1e-9)
    return near & (group.y <= group.y[best] + rise)


def _early_doubt(group: Group, window: np.ndarray, rise: float) -> str:
    different = np.unique(group.x[window]).size
    best = group.x[np.argmin(group.y)]
    if best == group.x.min():
        return f"the best rate, {np.exp(best):.3g}, is the smallest tried: add smaller ones"
    if best == group.x.max():
        if group.lost.size and group.lost.min() > best:
            return f"the best rate, {np.exp(best):.3g}, is the last before the runs diverge: an edge of stability, not a turn"
        return f"the best rate, {np.exp(best):.3g}, is the largest tried: add larger ones"
    if different < LEAST_POINTS:
        return f"{different} rates within a factor {SPAN:g} and {rise:.0%} of the best loss, {LEAST_POINTS} are needed"
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


def _fit(parts: list[tuple[np.ndarray, np.ndarray]]) -> _Basin:
    count, total = len(parts), sum(x.size for x, _ in parts)
    places = [np.linspace(x.min(), x.max(), PLACES) for x, _ in parts]
    flat = _refine(
        parts, np.array([_best_place(*part, z, None)[1] for part, z in zip(parts, places, strict=True)]), None
    )
    chosen, freedom = flat, total - 3 * count
    if freedom > 4:
        starts = []
        for p in SHAPES:
            for q in SHAPES:
                found = [_best_place(*part, z, (p, q)) for part, z in zip(parts, places, strict=True)]
                starts.append((sum(cost for cost, _ in found), (p, q), np.array([place for _, place in found])))
        _, shape, centres = min(starts, key=lambda one: one[0])
        bent = _refine(parts, centres, shape)
        left = freedom - 2
        if (
            bent.cost < flat.cost
            and special.fdtrc(2, left, (flat.cost - bent.cost) / bent.cost * left / 2) < SIGNIFICANCE
        ):
            chosen, freedom = bent, left
    bent = chosen.x.size > count
    shape = (float(chosen.x[-2]), float(chosen.x[-1])) if bent else None
    solved = [_solve(*part, place, shape) for part, place in zip(parts, chosen.x[:count], strict=True)]
    noise = max(2 * chosen.cost / freedom, 1e-24)
    return _Basin(
        chosen.x[:count], np.array([a[0] for _, a in solved]), np.array([a[1] for _, a in solved]),
        noise * np.linalg.pinv(chosen.jac.T @ chosen.jac)[:count, :count], freedom, shape,
    )  # fmt: skip


def _shape(z: np.ndarray, shape: tuple[float, float] | None) -> np.ndarray:
    if shape is None:
        return z**2
    p, q = shape
    return np.expm1(-p * z) / p + np.expm1(q * z) / q


def _solve(
    x: np.ndarray, loss: np.ndarray, place: float, shape: tuple[float, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Relative residual at the best m and c, and these."""
    one, f = 1 / loss, _shape(x - place, shape) / loss
    aa, ab, bb, a1, b1 = one @ one, one @ f, f @ f, one.sum(), f.sum()
    determinant = aa * bb - ab**2
    c = (aa * b1 - ab * a1) / determinant if determinant > 1e-14 * aa * bb else 0.0
    m = (a1 - ab * c) / aa
    return 1 - m * one - c * f, np.array([m, c])


def _best_place(
    x: np.ndarray, loss: np.ndarray, places: np.ndarray, shape: tuple[float, float] | None
) -> tuple[float, float]:
    """The smallest sum of squares with c > 0 over `places`, and where it is."""
    f = _shape(x - places[:, None], shape) / loss
    one = np.broadcast_to(1 / loss, f.shape)
    aa, ab, bb = (one**2).sum(1), (one * f).sum(1), (f**2).sum(1)
    a1, b1 = one.sum(1), f.sum(1)
    determinant = aa * bb - ab**2
    c = (aa * b1 - ab * a1) / np.where(determinant > 0, determinant, np.inf)
    m = (a1 - ab * c) / aa
    cost = np.where(c > 0, x.size - m * a1 - c * b1, np.inf)
    i = int(np.argmin(cost))
    return float(cost[i]), float(places[i])


def _refine(parts: list[tuple[np.ndarray, np.ndarray]], centres: np.ndarray, shape: tuple[float, float] | None) -> Any:
    """Least squares over all bottoms, and over the two powers where there are any; m and c are solved for inside."""
    count = centres.size

    def residual(v: np.ndarray) -> np.ndarray:
        now = None if shape is None else (v[-2], v[-1])
        return np.concatenate(
            [_solve(x, loss, place, now)[0] for (x, loss), place in zip(parts, v[:count], strict=True)]
        )

    low, high = np.array([x.min() for x, _ in parts]) - 1, np.array([x.max() for x, _ in parts]) + 1
    start = centres if shape is None else np.append(centres, shape)
    if shape is not None:
        low, high = np.append(low, [RANGE[0]] * 2), np.append(high, [RANGE[1]] * 2)
    return optimize.least_squares(residual, np.clip(start, low, high), bounds=(low, high), x_scale="jac", max_nfev=60)
