"""Local exponent p and exponentiality index q of sampled curves, and the exponent of a tail.

Derivatives of points are estimates: they depend on the spline and on the grid. Both are returned with the numbers, and
an estimate is compared with the same estimate on the theory, never with an exact derivative.
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import numpy as np
import scipy
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import linalg

from odescale.analysis.phases.bootstrap import autocorrelation, student_factor
from odescale.errors import InputError, require_number

MAX_POINTS = 400
DENSE_POINTS = 2000
INDEX_LIMIT = 1e3


class SmoothingSpline(eqx.Module):
    """The natural cubic spline f that minimises sum_i w_i (y_i - f(x_i))^2 + smoothing * integral f''(x)^2 dx.

    For a loss curve x = log t and y = log L. `smoothing` = 0 interpolates; `choose` finds it by cross-validation.
    Built once for a grid and applied to many curves at a time. Arguments: `x (n,)` increasing, 8 <= n <= 400,
    `weights (n,)` positive (default 1). Source: C. H. Reinsch, Numer. Math. 10 (1967) 177; P. Craven and G. Wahba,
    Numer. Math. 31 (1979) 377.
    """

    x: np.ndarray
    weights: np.ndarray
    roots: np.ndarray
    vectors: np.ndarray

    def __init__(self, x: ArrayLike, weights: ArrayLike | None = None) -> None:
        self.x = np.asarray(x, dtype=float)
        n, h = self.x.size, np.diff(self.x)
        w = np.ones(n) if weights is None else np.asarray(weights, dtype=float)
        self.weights = w / w.mean()
        # Reinsch: penalty = y^T Q R^-1 Q^T y for the values y of a natural cubic spline at its knots.
        second = np.zeros((n, n - 2))
        gram = np.zeros((n - 2, n - 2))
        for j in range(n - 2):
            second[j : j + 3, j] = 1 / h[j], -1 / h[j] - 1 / h[j + 1], 1 / h[j + 1]
            gram[j, j] = (h[j] + h[j + 1]) / 3
            if j:
                gram[j, j - 1] = gram[j - 1, j] = h[j] / 6
        penalty = second @ linalg.solve(gram, second.T, assume_a="pos")
        root = np.sqrt(self.weights)
        roots, self.vectors = linalg.eigh(0.5 * (penalty + penalty.T) / np.outer(root, root))
        # Straight lines cost nothing: the two smallest eigenvalues are zero up to rounding.
        self.roots = np.where(np.arange(n) < 2, 0.0, np.maximum(roots, 0.0))

    def degrees(self, smoothing: float) -> float:
        """tr = sum_k 1/(1 + smoothing * root_k): n when it interpolates, 2 for a straight line."""
        return float((1.0 / (1.0 + smoothing * self.roots)).sum())

    def smooth(self, y: Float[np.ndarray, "... n"], smoothing: float) -> Float[np.ndarray, "... n"]:
        """The values f(x_i) for each curve `y (..., n)`."""
        root = np.sqrt(self.weights)
        modes = (y * root) @ self.vectors / (1.0 + smoothing * self.roots)
        return modes @ self.vectors.T / root

    def choose(self, losses: Float[np.ndarray, "s n"]) -> float:
        """The smoothing that cross-validation likes best for the logarithm of the mean of `losses (seeds, n)`, all > 0.

        With 2 seeds or more: each seed is predicted by the smoothed mean of the others, which also counts noise that
        is correlated along a run. A single curve: generalised cross-validation, n RSS/(n - tr)^2, which takes
        correlated noise for signal and then smooths too little.
        """
        grid = np.geomspace(1e-3 / self.roots[-1], 1e3 / self.roots[2], 200)
        keep = 1.0 / (1.0 + grid[:, None] * self.roots)
        to_modes = self.vectors * np.sqrt(self.weights)[:, None]
        if losses.shape[0] > 1 and (losses > 0).all():
            others = (losses.sum(axis=0) - losses) / (losses.shape[0] - 1)
            target, given = np.log(losses) @ to_modes, np.log(others) @ to_modes
            score = ((target - keep[:, None, :] * given) ** 2).sum(axis=(1, 2))
        else:
            modes = np.log(losses.mean(axis=0)) @ to_modes
            score = (((1 - keep) * modes) ** 2).sum(axis=1) / (1 - keep).sum(axis=1) ** 2
        return float(grid[np.argmin(score)])

    def with_degrees(self, degrees: float) -> float:
        """The smoothing that uses `degrees` degrees of freedom (bisection in its logarithm)."""
        low, high = np.log(1e-6 / self.roots[-1]), np.log(1e6 / self.roots[2])
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.degrees(float(np.exp(middle))) > degrees else (low, middle)
        return float(np.exp(0.5 * (low + high)))

    def exponent_and_index(self, values: Float[np.ndarray, "... n"], at: Float[np.ndarray, " m"]) -> tuple[Any, ...]:
        """log L, p = -df/dx and q = dlog p/dx at `at (m,)` for smoothed `values (..., n)`; three arrays (..., m)."""
        spline = scipy.interpolate.CubicSpline(self.x, values, axis=-1, bc_type="natural")
        p, slope = -spline(at, 1), -spline(at, 2)
        # Where the loss does not fall log p does not exist; 0 counts as "not exponential", so that p leaving zero
        # upwards is an up-crossing, as it is for p -> 0+.
        q = np.divide(slope, p, out=np.zeros_like(p), where=p > 0)
        return spline(at), p, np.clip(q, -INDEX_LIMIT, INDEX_LIMIT)


BEYOND = 100.0
"""Factor by which times asked for may lie outside the curve: the spline goes on there, and says less and less."""


class LocalExponent(eqx.Module):
    """p = -dlog L/dlog t and q = dlog p/dlog t of a sampled curve on a dense grid, with standard errors.

    `t`, `log_loss`, `exponent`, `index` (m,); `exponent_stderr`, `index_stderr` (m,) from the scatter of the seeds, or
    None for a single curve. `smoothing`, `degrees`: the spline's; `estimator`, `grid`: the same in words.
    """

    t: np.ndarray
    log_loss: np.ndarray
    exponent: np.ndarray
    index: np.ndarray
    exponent_stderr: np.ndarray | None
    index_stderr: np.ndarray | None
    smoothing: float
    degrees: float
    estimator: str
    grid: str


class TailExponent(eqx.Module):
    """beta in L ~ (t + shift)^-beta over `window`: `exponent`, its standard error `stderr`, and how it was obtained."""

    exponent: float
    stderr: float
    shift: float
    window: tuple[float, float]
    points: int
    method: str

    def __str__(self) -> str:
        shift = f"t + {self.shift:.4g}" if self.shift else "t"
        return (
            f"tail exponent {self.exponent:.4f} +- {self.stderr:.4f} against {shift}, {self.points} points in "
            f"[{self.window[0]:.4g}, {self.window[1]:.4g}] ({self.method})"
        )


def check_curve(
    t: ArrayLike, loss: ArrayLike, *, irreducible: float = 0.0, least: int = 8
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "s n"]]:
    """The curve as (t (n,), excess loss (seeds, n)), or `InputError`: NaN, not positive, unsorted, too few points."""
    times, values = np.asarray(t, dtype=float), np.atleast_2d(np.asarray(loss, dtype=float))
    if times.ndim != 1 or values.ndim != 2 or values.shape[1] != times.size:
        raise InputError("loss", expected=f"shape (n,) or (seeds, n) with n = {times.size}", got=f"{values.shape}",
                         remedy="put time last")  # fmt: skip
    if not np.isfinite(times).all() or times.size and times[0] < 0:
        raise InputError("t", expected="finite times from 0 or later", got="NaN, inf or negative", remedy="remove them")
    if not (np.diff(times) > 0).all():
        raise InputError("t", expected="strictly increasing times", got="unsorted or repeated times",
                         remedy="sort, and average the losses of repeated times")  # fmt: skip
    if int((times > 0).sum()) < least:
        raise InputError("t", expected=f"at least {least} points with t > 0", got=int((times > 0).sum()),
                         remedy="measure at more times")  # fmt: skip
    if not np.isfinite(values).all():
        row, place = np.argwhere(~np.isfinite(values))[0]
        raise InputError("loss", expected="finite numbers", got=f"{values[row, place]} in row {row} at t = "
                         f"{times[place]:.6g}", remedy="cut the run where it diverged")  # fmt: skip
    irreducible = require_number("irreducible", irreducible, -math.inf)
    values = values - irreducible
    # Single seeds may dip below the irreducible loss by noise, their mean may not: only the mean's logarithm is taken.
    mean = values.mean(axis=0)
    if not (mean > 0).all():
        place = int(np.argmin(mean))
        raise InputError("loss", expected="a positive excess loss (mean over seeds)", got=f"{mean[place]:.4g}"
                         f" at t = {times[place]:.6g}", remedy="lower irreducible or cut the tail")  # fmt: skip
    return times, values


def check_window(window: Any, times: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """(first, last) of a window, the whole curve for None, or `InputError`: two numbers, 0 <= first < last, no NaN."""
    if window is None:
        return float(times[times > 0][0]), float(times[-1])
    ends = np.asarray(window, dtype=float)
    if ends.shape != (2,) or not 0 <= ends[0] < ends[1]:
        raise InputError("window", expected="0 <= first < last", got=window, remedy="two times in the curve's own unit")
    return float(ends[0]), float(ends[1])


def bin_curve(
    t: Float[np.ndarray, " n"], loss: Float[np.ndarray, "s n"], points: int = MAX_POINTS
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "s m"]]:
    """At most `points` averages over bins of equal width in log t (t > 0); a short curve is returned as it is."""
    if t.size <= points:
        return t, loss
    edges = np.geomspace(t[0], t[-1], points + 1)
    place = np.clip(np.searchsorted(edges, t, side="right") - 1, 0, points - 1)
    count = np.bincount(place, minlength=points)
    keep = count > 0
    log_t = np.bincount(place, np.log(t), points)[keep] / count[keep]
    rows = np.stack([np.bincount(place, row, points)[keep] / count[keep] for row in loss])
    return np.exp(log_t), rows


def grid_in_words(t: np.ndarray, seeds: int, raw: int) -> str:
    """How the curve was sampled, for records: points, range, spacing, seeds, binning."""
    steps = np.diff(np.log(t))
    spacing = "log-spaced" if np.ptp(steps) < 1e-3 * steps.mean() else "unevenly spaced"
    if np.ptp(np.diff(t)) < 1e-3 * np.diff(t).mean():
        spacing = "evenly spaced"
    binned = f", binned from {raw}" if raw != t.size else ""
    rows = f", mean of {seeds} seeds" if seeds > 1 else ""
    return f"{t.size} points in [{t[0]:.4g}, {t[-1]:.4g}], {spacing}{binned}{rows}"


def spline_in_words(smoothing: float, degrees: float) -> str:
    """The name of the estimator, for records."""
    kind = "natural cubic smoothing spline of log L in log t"
    return f"{kind}, smoothing {smoothing:.3g} ({degrees:.1f} degrees of freedom)"


def local_exponent(
    t: ArrayLike,
    loss: ArrayLike,
    *,
    irreducible: float = 0.0,
    smoothing: float | None = None,
    at: ArrayLike | None = None,
) -> LocalExponent:
    """p = -dlog L/dlog t and q = dlog p/dlog t by a smoothing spline of log L in log t.

    **Arguments**: `t (n,)` increasing (a first point at 0 is left out), `loss (n,)` or `(seeds, n)` (the logarithm of
    the mean is smoothed), `irreducible` subtracted, `smoothing` (None: cross-validation; pass the number
    of another estimate to compare like with like), `at (m,)` times of the answer (default: 2000 log-spaced).

    **Returns** `LocalExponent`; with seeds the standard errors are jackknife errors over seeds at fixed smoothing.
    **Failure**: second derivatives of points with 1 % noise at spacing h in log t scatter by about .025/h^2; the spline
    trades that for bias near sharp features. The ends of the range are the worst. **Raises** `InputError`.
    """
    times, rows = check_curve(t, loss, irreducible=irreducible)
    if smoothing is not None:
        require_number("smoothing", smoothing, below=1e100)
    if at is not None:
        asked, first, last = np.asarray(at, dtype=float), times[times > 0][0] / BEYOND, times[-1] * BEYOND
        if asked.ndim != 1 or not ((asked >= first) & (asked <= last)).all():
            raise InputError("at", expected=f"times from {first:.6g} to {last:.6g}, shape (m,)", got=at,
                             remedy=f"leave out t = 0 and what lies beyond {BEYOND:g} times the curve")  # fmt: skip
    raw = int((times > 0).sum())
    times, rows = bin_curve(times[times > 0], rows[:, times > 0])
    spline = SmoothingSpline(np.log(times))
    mean = np.log(rows.mean(axis=0))
    chosen = spline.choose(rows) if smoothing is None else float(smoothing)
    where = np.geomspace(times[0], times[-1], DENSE_POINTS) if at is None else np.asarray(at, dtype=float)
    log_loss, p, q = spline.exponent_and_index(spline.smooth(mean, chosen), np.log(where))
    p_error = q_error = None
    seeds = rows.shape[0]
    if seeds > 1:
        left_out = (rows.sum(axis=0) - rows) / (seeds - 1)
        # A single pair can leave a non-positive mean behind; the floor keeps its logarithm finite and its error large.
        curves = np.log(np.maximum(left_out, 1e-3 * rows.mean(axis=0)))
        _, p_left, q_left = spline.exponent_and_index(spline.smooth(curves, chosen), np.log(where))
        p_error, q_error = (np.sqrt((seeds - 1) * v.var(axis=0)) for v in (p_left, q_left))
    degrees = spline.degrees(chosen)
    return LocalExponent(
        where, log_loss, p, q, p_error, q_error, chosen, degrees,
        spline_in_words(chosen, degrees), grid_in_words(times, seeds, raw),
    )  # fmt: skip


def tail_exponent(
    t: ArrayLike,
    loss: ArrayLike,
    *,
    shift: float = 0.0,
    window: tuple[float, float] | None = None,
    irreducible: float = 0.0,
) -> TailExponent:
    """beta = -slope of log L against log(t + shift) by least squares in `window`.

    A tail 1/(1 + 2 y1 S)^2 is a straight line against S + 1/(2 y1) only: pass that as `shift` (units of t); against t
    itself its local exponent is 2 only at t much larger than the shift.

    **Arguments**: `t (n,)`, `loss (n,)` or `(seeds, n)`, `window` = (from, to) in t (default: all), at least 4 points.
    **Standard error**: with 3 or more seeds from the scatter of their slopes; with fewer from the residuals, with the
    variance enlarged by (1 + rho)/(1 - rho) for their correlation rho between neighbours (points along a run are not
    independent); with 2 seeds the larger of that and the scatter of the two with Student's factor for one degree.
    """
    times, rows = check_curve(t, loss, irreducible=irreducible, least=4)
    shift = require_number("shift", shift, -math.inf)
    low, high = check_window(window, times)
    inside = (times >= low) & (times <= high) & (times + shift > 0)
    if int(inside.sum()) < 4:
        raise InputError("window", expected="at least 4 points inside", got=int(inside.sum()), remedy="widen it")
    x = np.log(times[inside] + shift)
    x = x - x.mean()
    if not x @ x > 0:
        raise InputError("shift", expected="a shift that leaves log(t + shift) a variable", got=shift,
                         remedy="take one of the size of t")  # fmt: skip
    mean = np.log(rows[:, inside].mean(axis=0))
    slope = float(x @ mean / (x @ x))
    seeds = rows.shape[0]
    residual = mean - mean.mean() - slope * x
    rho = min(max(autocorrelation(residual), 0.0), 0.95)
    along = float(np.sqrt(residual @ residual / (x.size - 2) / (x @ x) * (1 + rho) / (1 - rho)))
    method, stderr = "residuals with their autocorrelation", along
    if seeds > 1 and (rows[:, inside] > 0).all():
        slopes = np.log(rows[:, inside]) @ x / (x @ x)
        scatter = float(slopes.std(ddof=1) / np.sqrt(seeds))
        if seeds > 2:
            method, stderr = f"scatter of {seeds} seeds", scatter
        else:
            method, stderr = "residuals and scatter of 2 seeds", max(along, scatter * student_factor(2))
    return TailExponent(-slope, stderr, float(shift), (low, high), int(inside.sum()), method)
