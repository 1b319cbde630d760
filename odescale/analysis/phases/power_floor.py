"""The fit L = c/t^a + L0 of a loss curve whose irreducible part is unknown, and whether the curve can tell the three apart."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from odescale.analysis.phases.bootstrap import block_bootstrap
from odescale.analysis.phases.exponents import bin_curve, check_curve, check_window
from odescale.errors import MOST_DRAWS, InputError, whole

EXPONENTS = (0.01, 4.0)
"""The range in which a is sought; an answer at its end is none."""
POINTS = 60


class PowerFloor(eqx.Module):
    """L = c/t^a + L0 over `window`: `exponent` a, `amplitude` c, `floor` L0 with 95 % intervals, and whether they mean anything.

    `identified` is False, with `reason`, where the interval of a is wider than a itself or reaches the end of the range, or where
    halving the window moves a by more than the interval: then a is a number about the window and not about the curve.
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
        low, high = self.interval
        head = f"L = c/t^a + L0: a = {self.exponent:.3f} ({low:.3f} to {high:.3f}), L0 = {self.floor:.4g}"
        head += (
            f" ({self.floor_interval[0]:.4g} to {self.floor_interval[1]:.4g}), later half a = {self.late_exponent:.3f}"
        )
        where = (
            f"{self.points} bins in [{self.window[0]:.4g}, {self.window[1]:.4g}] {self.time_unit}, rms {self.rms:.2%}"
        )
        return f"{head}; {where}" + ("" if self.identified else f"; unidentified: {self.reason}")

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
    exponent, amplitude, floor = _fit(x, y)
    model = amplitude * x**-exponent + floor
    residual = np.log(y / model)
    late = x >= np.sqrt(x[0] * x[-1])
    late_exponent = _fit(x[late], y[late])[0]
    drawn = block_bootstrap(residual, draws, np.random.default_rng(seed))
    fits = np.array([_fit(x, model * np.exp(noise)) for noise in drawn])
    (low, floor_low), (high, floor_high) = np.percentile(fits[:, [0, 2]], [2.5, 97.5], axis=0)
    interval, floors = (float(low), float(high)), (float(floor_low), float(floor_high))
    reason = _doubt(exponent, interval, late_exponent, x)
    bounds = (floors[0] * unit, floors[1] * unit)
    return PowerFloor(
        exponent, interval, float(amplitude * unit), float(floor * unit), (float(bounds[0]), float(bounds[1])),
        float(np.sqrt(np.mean(residual**2))), late_exponent, (float(x[0]), float(x[-1])), int(x.size), not reason, reason,
        time_unit,
    )  # fmt: skip


def _fit(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[float, float, float]:
    def solve(exponent: float) -> tuple[float, float, float]:
        power = (x / x[0]) ** -exponent / y
        design = np.stack([power, 1 / y], axis=1)
        c, floor = np.linalg.lstsq(design, np.ones_like(y), rcond=None)[0]
        if floor < 0:
            c, floor = float(power.sum() / (power @ power)), 0.0
        error = float(np.sum((design @ np.array([c, floor]) - 1) ** 2))
        return error, float(c), float(floor)

    grid = np.geomspace(*EXPONENTS, 60)
    errors = [solve(a)[0] for a in grid]
    best = int(np.argmin(errors))
    bracket = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
    found = float(minimize_scalar(lambda a: solve(a)[0], bounds=bracket, method="bounded", options={"xatol": 1e-7}).x)
    _, c, floor = solve(found)
    return found, c * float(x[0]) ** found, floor


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
    return ""
