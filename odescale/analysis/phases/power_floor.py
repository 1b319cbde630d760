"""The fit L = c/t^a + L0 of a loss curve whose irreducible part is unknown, and whether the curve can tell the three apart."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from odescale.analysis.phases.bootstrap import autocorrelation, block_bootstrap
from odescale.analysis.phases.exponents import bin_curve, check_curve, check_window
from odescale.errors import MOST_DRAWS, InputError, whole

EXPONENTS = (0.01, 4.0)
"""The range in which a is sought; an answer at its end is none."""
POINTS = 60
GOLDEN = (5**0.5 - 1) / 2
MISFIT = 0.9
MISFIT_SIZE = 0.01
"""Correlation of neighbouring residuals, and their size as a share of the fall of log L, from which they are those of a curve of
another form. Slow noise has the correlation, rounding and bins leave residuals that are smaller."""


class PowerFloor(eqx.Module):
    """L = c/t^a + L0 over `window`: `exponent` a, `amplitude` c, `floor` L0 with 95 % intervals, and whether they mean anything.

    `identified` is False, with `reason`, where the interval of a is wider than a itself or reaches the end of the range, where
    halving the window moves a by more than the interval, or where the residuals are those of a curve of another form: then a is a
    number about the window and not about the curve. The intervals hold a and L0 by construction.
    `rms`: relative residual. `late_exponent`: the same fit on the later half (in log t).
    """

    exponent: float
    interval: tuple[float, float]
    amplitude: float
    floor: float
    floor_interval: tuple[float, float]
    rms: float
    late_exponent: float
    window: tuple[float, float]
    points: int
    identified: bool
    reason: str
    time_unit: str

    def __str__(self) -> str:
        where = (
            f"{self.points} bins in [{self.window[0]:.4g}, {self.window[1]:.4g}] {self.time_unit}, rms {self.rms:.2%}"
        )
        if not self.identified:
            return f"L = c/t^a + L0: unidentified ({self.reason}); {where}"
        low, high = self.interval
        head = f"L = c/t^a + L0: a = {self.exponent:.3f} ({low:.3f} to {high:.3f}), L0 = {self.floor:.4g}"
        head += (
            f" ({self.floor_interval[0]:.4g} to {self.floor_interval[1]:.4g}), later half a = {self.late_exponent:.3f}"
        )
        return f"{head}; {where}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def fit_power_floor(
    t: ArrayLike,
    loss: ArrayLike,
    *,
    window: tuple[float, float] | None = None,
    draws: int = 200,
    seed: int = 0,
    time_unit: str = "steps",
) -> PowerFloor:
    """L(t) = c/t^a + L0, c > 0, L0 >= 0, by variable projection: c and L0 are linear, a is searched.

    **Arguments**: `t (n,)` increasing (steps, tokens or intrinsic time: an exponent is one of its clock, so say which in
    `time_unit`), `loss (n,)` or `(seeds, n)`, the whole loss; `window` = (first, last), default all t > 0; `draws`: resampled
    curves behind the intervals (blocks of residuals; see `block_bootstrap`).

    The curve is averaged in at most 60 bins of equal width in log t and residuals count relative to the loss, so that every
    decade has the same say. **Returns** `PowerFloor`. **Errors**: `InputError` for a bad curve or fewer than 8 bins.
    **Failure regime**: over less than two decades a and L0 trade against each other; a changing learning rate bends the curve
    (use intrinsic time, and a window without the decay).
    """
    times, rows = check_curve(t, loss)
    draws = whole("draws", draws, 2, MOST_DRAWS, remedy="200 is good")
    seed = whole("seed", seed, 0)
    first, last = check_window(window, times)
    inside = (times >= first) & (times <= last) & (times > 0)
    if int(inside.sum()) < 8:
        raise InputError("window", expected="at least 8 points inside", got=int(inside.sum()), remedy="widen it")
    x, binned = bin_curve(times[inside], rows[:, inside].mean(axis=0)[None], POINTS)
    # In units of its first value: numbers of any size can be squared and inverted then.
    unit = binned[0, 0]
    y = binned[0] / unit
    if x.size < 8:
        raise InputError("t", expected="points in at least 8 bins of log t", got=x.size, remedy="widen the window")
    exponent, amplitude, floor = map(float, _fit(x, y[None])[0])
    model = amplitude * x**-exponent + floor
    residual = np.log(y / model)
    late = x >= np.sqrt(x[0] * x[-1])
    late_exponent = float(_fit(x[late], y[None, late])[0, 0])
    drawn = block_bootstrap(residual, draws, np.random.default_rng(seed))
    fits = _fit(x, model * np.exp(drawn))
    (low, floor_low), (high, floor_high) = np.percentile(fits[:, [0, 2]], [2.5, 97.5], axis=0)
    rms = float(np.sqrt(np.mean(residual**2)))
    reason = _doubt(exponent, (float(low), float(high)), late_exponent, x)
    if not reason and rms > MISFIT_SIZE * abs(float(np.log(model[0] / model[-1]))):
        kept = autocorrelation(residual)
        if kept > MISFIT:
            reason = f"neighbouring residuals are correlated by {kept:.2f}: no single power law plus constant"
    interval = (float(min(low, exponent)), float(max(high, exponent)))
    floors = (float(min(floor_low, floor) * unit), float(max(floor_high, floor) * unit))
    return PowerFloor(
        exponent, interval, float(amplitude * unit), float(floor * unit), floors,
        rms, late_exponent, (float(x[0]), float(x[-1])), int(x.size), not reason, reason,
        time_unit,
    )  # fmt: skip


def _fit(x: Float[np.ndarray, " n"], rows: Float[np.ndarray, "draws n"]) -> Float[np.ndarray, "draws 3"]:
    """(a, c, L0) of least squares of the relative residual for every row, L0 >= 0: c and L0 from a in closed form, a searched in a
    grid and by golden sections around its best place."""
    grid = np.geomspace(*EXPONENTS, 60)
    errors = np.stack([_amplitudes(x, rows, np.full(len(rows), a))[0] for a in grid])
    best = np.argmin(errors, axis=0)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, grid.size - 1)]
    inner, outer = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    first, second = _amplitudes(x, rows, inner)[0], _amplitudes(x, rows, outer)[0]
    while (high - low).max() > 1e-7:
        left = first < second
        low, high = np.where(left, low, inner), np.where(left, outer, high)
        kept, value = np.where(left, inner, outer), np.where(left, first, second)
        new = np.where(left, high - GOLDEN * (high - low), low + GOLDEN * (high - low))
        error = _amplitudes(x, rows, new)[0]
        inner, outer = np.where(left, new, kept), np.where(left, kept, new)
        first, second = np.where(left, error, value), np.where(left, value, error)
    exponent = 0.5 * (low + high)
    _, c, floor = _amplitudes(x, rows, exponent)
    return np.stack([exponent, c * float(x[0]) ** exponent, floor], axis=1)


def _amplitudes(
    x: Float[np.ndarray, " n"], rows: Float[np.ndarray, "draws n"], exponent: Float[np.ndarray, " draws"]
) -> tuple[Float[np.ndarray, " draws"], Float[np.ndarray, " draws"], Float[np.ndarray, " draws"]]:
    """(error, c, L0) of the best c (x/x_0)^-a + L0, L0 >= 0, for every row at its own a: sum of squares relative to the row."""
    power = np.exp(-exponent[:, None] * np.log(x / x[0]))
    weight = rows**-2.0
    total = weight.sum(axis=1)
    mean, middle = (weight * power).sum(axis=1) / total, (weight * rows).sum(axis=1) / total
    apart = power - mean[:, None]
    c = (weight * apart * rows).sum(axis=1) / (weight * apart**2).sum(axis=1)
    floor = middle - c * mean
    alone = (weight * power * rows).sum(axis=1) / (weight * power**2).sum(axis=1)
    c, floor = np.where(floor < 0, alone, c), np.maximum(floor, 0.0)
    error = ((c[:, None] * power + floor[:, None]) / rows - 1) ** 2
    return error.sum(axis=1), c, floor


def _doubt(exponent: float, interval: tuple[float, float], late: float, x: np.ndarray) -> str:
    low, high = interval
    if low < EXPONENTS[0] * 1.05 or high > EXPONENTS[1] * 0.95:
        return "the interval of a reaches the end of its range"
    if high - low > exponent:
        return "the interval of a is wider than a"
    if x[-1] / x[0] < 10:
        return "less than one decade: a and L0 trade against each other"
    if abs(late - exponent) > max(high - low, 0.5 * exponent):
        return f"the later half gives a = {late:.3f}: no single power law plus constant"
    if not low <= exponent <= high:
        return (
            f"resampled curves give a = {low:.3f} to {high:.3f}, the curve another: no single power law plus constant"
        )
    return ""
