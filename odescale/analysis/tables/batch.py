"""Critical batch size: steps against examples at a target loss, S = S_min (1 + B_crit/B), and how B_crit moves with the loss."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import optimize, special

from odescale.errors import InputError, require_number

REACH = 12.0
"""How far outside the batches, in units of log B, B_crit is sought: e^12 is far enough to look like infinity."""
GRID = 400


class CriticalBatch(eqx.Module):
    """(S/S_min - 1)(E/E_min - 1) = 1 at one target: S steps, E = B S examples, in the units of B.

    `critical_batch` B_crit = E_min/S_min with its `interval`; None with a `reason` where the batches do not tell, the interval
    then being one-sided (0 or inf at its open end). `least_steps` S_min and `least_examples` E_min with intervals. `power`: g of
    S = S_min (1 + (B_crit/B)^g) fitted freely, with interval: 1 where the hyperbola holds (None under 5 different batches).
    `rms`: of log S. `batches`: the smallest and the largest. `level`: of all the intervals.
    """

    critical_batch: float | None
    interval: tuple[float, float]
    least_steps: float
    least_steps_interval: tuple[float, float]
    least_examples: float
    least_examples_interval: tuple[float, float]
    power: float | None
    power_interval: tuple[float, float] | None
    rms: float
    batches: tuple[float, float]
    points: int
    level: float
    identified: bool
    reason: str

    def steps(self, batch: ArrayLike) -> Float[np.ndarray, "..."]:
        """S(B) = S_min + E_min/B."""
        return self.least_steps + self.least_examples / np.asarray(batch, float)

    def __str__(self) -> str:
        low, high = self.interval
        where = f"{self.points} runs, batches {self.batches[0]:.4g} to {self.batches[1]:.4g}, rms {self.rms:.2%}"
        if self.critical_batch is None:
            return f"critical batch: unidentified ({self.reason}); {self.level:.0%}: {low:.4g} to {high:.4g}; {where}"
        head = f"critical batch {self.critical_batch:.4g} ({low:.4g} to {high:.4g})"
        return f"{head}, S_min {self.least_steps:.4g}, E_min {self.least_examples:.4g}; {where}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def fit_critical_batch(batch: ArrayLike, steps: ArrayLike, *, level: float = 0.95) -> CriticalBatch:
    """S = S_min (1 + B_crit/B), E = E_min (1 + B/B_crit): least squares of log S, intervals from the profile of its sum of squares.

    **Arguments**: `batch (n,)` > 0, in any unit (sequences, tokens); `steps (n,)` > 0 that a run with this batch needed to reach
    one loss, every run with the rate that is best for its batch; inf for a run that never reached it (left out). `level`: of
    intervals.

    **Returns** `CriticalBatch`. At B_crit a run takes twice the fewest steps and twice the fewest examples. It is refused where a
    constant S or S proportional to 1/B fits as well (F test at `level`), and where the best B_crit lies outside the batches.
    **Errors**: `InputError` under 4 runs or 3 different batches. **Good values**: 6 batches, a factor 4 apart, half of them on
    each side. **Failure regime**: one rate for all batches: the steps then measure the rate. On one-pass SGD of a power-law
    spectrum the law holds to 0.2 to 2.3 % with the best constant rate for each batch (`benchmarks/table_relatives.py`). Source:
    McCandlish et al. 2018, arXiv:1812.06162, eq. 2.11.

    ```python
    import numpy as np
    from odescale.laws import fit_critical_batch
    batch = np.array([16, 64, 256, 1024, 4096])
    print(fit_critical_batch(batch, 1000 * (1 + 300 / batch)).critical_batch)
    ```
    """
    level = require_number("level", level, 0.5, 1.0)
    x, y = _logs(batch, steps)
    count = x.size
    centre, misfit = _profile(x, y, np.linspace(x.min() - REACH, x.max() + REACH, GRID))
    best = _refine(x, y, centre, misfit)
    shift, least = _sum(x, y, best)
    # An F test of one parameter; rounding of the logs bounds the noise from below.
    noise = max(least / (count - 2), 1e-24 * float(np.mean(y**2) + 1))
    threshold = least + noise * float(special.fdtri(1, count - 2, level))
    low, high = _edges(x, y, best, threshold)
    reason = _doubt(x, best, low, high, level)
    steps_low, steps_high = _of(x, y, best, noise, count, level, 0)
    all_low, all_high = _of(x, y, best, noise, count, level, 1)
    power, powers = _power(x, y, shift, best, level)
    found = float(np.exp(best))
    return CriticalBatch(
        None if reason else found, (float(np.exp(low)), float(np.exp(high))), float(np.exp(shift)),
        (steps_low, steps_high), float(np.exp(shift + best)), (all_low, all_high), power, powers,
        float(np.sqrt(least / count)), (float(np.exp(x.min())), float(np.exp(x.max()))), int(count), float(level),
        not reason, reason,
    )  # fmt: skip


def _logs(batch: ArrayLike, steps: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    size, count = np.atleast_1d(np.asarray(batch, float)), np.atleast_1d(np.asarray(steps, float))
    if size.ndim != 1 or size.shape != count.shape or np.isnan(size).any() or (size <= 0).any() or np.isinf(size).any():
        raise InputError(
            "batch",
            expected=f"positive numbers, shape {count.shape}",
            got=size,
            remedy="one batch a run, as many as steps",
        )
    if np.isnan(count).any() or (count <= 0).any():
        raise InputError("steps", expected="positive numbers (inf: not reached)", got=count, remedy="mend them")
    kept = np.isfinite(count)
    different = np.unique(size[kept]).size
    if kept.sum() < 4 or different < 3:
        raise InputError(
            "batch", expected="4 runs or more that reach the target, with 3 different batches or more",
            got=f"{int(kept.sum())} runs with {different} different batches", remedy="train at more batches",
        )  # fmt: skip
    return np.log(size[kept]), np.log(count[kept])


def _sum(x: np.ndarray, y: np.ndarray, centre: float) -> tuple[float, float]:
    """log S_min and the sum of squares at log B_crit = `centre`."""
    rest = y - np.logaddexp(0.0, centre - x)
    shift = float(rest.mean())
    return shift, float(np.sum((rest - shift) ** 2))


def _profile(x: np.ndarray, y: np.ndarray, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rest = y - np.logaddexp(0.0, grid[:, None] - x)
    return grid, np.sum((rest - rest.mean(axis=1, keepdims=True)) ** 2, axis=1)


def _refine(x: np.ndarray, y: np.ndarray, grid: np.ndarray, misfit: np.ndarray) -> float:
    i = int(np.argmin(misfit))
    bounds = grid[max(i - 1, 0)], grid[min(i + 1, grid.size - 1)]
    found = optimize.minimize_scalar(
        lambda c: _sum(x, y, c)[1], bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    return float(found.x)


def _edges(x: np.ndarray, y: np.ndarray, best: float, threshold: float) -> tuple[float, float]:
    """Where the profile crosses the threshold; -inf and inf where it never does."""
    ends = []
    for end in (x.min() - REACH, x.max() + REACH):
        if _sum(x, y, end)[1] <= threshold:
            ends.append(-np.inf if end < x.min() else np.inf)
        else:
            ends.append(
                optimize.brentq(lambda c: _sum(x, y, c)[1] - threshold, best, end, xtol=1e-9) if end != best else end
            )
    return float(ends[0]), float(ends[1])


def _doubt(x: np.ndarray, best: float, low: float, high: float, level: float) -> str:
    first, last = np.exp(x.min()), np.exp(x.max())
    if np.isinf(low) and np.isinf(high):
        return "the steps are too noisy to tell any dependence on the batch from any other"
    if np.isinf(low):
        return (
            f"steps that do not depend on the batch fit at {level:.0%}: all batches may be above it, add smaller ones"
        )
    if np.isinf(high):
        return f"steps proportional to 1/batch fit at {level:.0%}: all batches may be below it, add larger ones"
    if not x.min() < best < x.max():
        side = "smaller" if best <= x.min() else "larger"
        return f"the best value, {np.exp(best):.4g}, is outside the batches {first:.4g} to {last:.4g}: add {side} ones"
    return ""


def _of(
    x: np.ndarray, y: np.ndarray, best: float, noise: float, count: int, level: float, which: int
) -> tuple[float, float]:
    """Interval of S_min (0) or E_min (1) by their covariance in logs."""
    share = special.expit(best - x)  # what E_min/B is of S
    design = np.stack([1 - share, share], axis=1)
    variance = noise * np.linalg.pinv(design.T @ design)[which, which]
    value = _sum(x, y, best)[0] + best * which
    wide = float(special.stdtrit(count - 2, 0.5 + level / 2) * np.sqrt(variance))
    return _exp(value - wide), _exp(value + wide)


def _exp(value: float) -> float:
    """exp without a warning where an interval is as wide as the numbers go."""
    return float(np.exp(np.clip(value, -700.0, 700.0)))


def _power(
    x: np.ndarray, y: np.ndarray, shift: float, best: float, level: float
) -> tuple[float | None, tuple[float, float] | None]:
    """g of S = S_min (1 + (B_crit/B)^g) and its interval."""
    if np.unique(x).size < 5 or not x.min() < best < x.max():
        return None, None

    def residual(v: np.ndarray) -> np.ndarray:
        return y - v[0] - np.logaddexp(0.0, np.exp(v[2]) * (v[1] - x))

    found = optimize.least_squares(residual, [shift, best, 0.0], x_scale="jac")
    noise = max(2 * found.cost / (y.size - 3), 1e-24)
    spread = np.sqrt(noise * np.linalg.pinv(found.jac.T @ found.jac)[2, 2])
    wide = float(special.stdtrit(y.size - 3, 0.5 + level / 2) * spread)
    return float(np.exp(found.x[2])), (_exp(found.x[2] - wide), _exp(found.x[2] + wide))
