"""Isolated laws from runs of many sizes: L = L0 + sum_i A_i x_i^-alpha_i (width, depth, data), or why the runs cannot tell."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares, nnls

from odescale.errors import MOST_DRAWS, InputError, whole

EXPONENTS = (0.05, 4.0)
RANGE = 2.0
"""Largest over smallest value that a size needs."""


class SizeLaw(eqx.Module):
    """One size's term A x^-alpha: `exponent`, `amplitude`, 90 % `interval` of the exponent; all None with a `reason` if
    unidentified."""

    size: str = eqx.field(static=True)
    exponent: float | None
    interval: tuple[float, float] | None
    amplitude: float | None
    identified: bool
    reason: str

    def agrees(self, exponent: float) -> bool | None:
        """Whether the 90 % interval holds the exponent of a theory; None if unidentified."""
        return None if self.interval is None else self.interval[0] <= exponent <= self.interval[1]

    def __str__(self) -> str:
        if self.exponent is None or self.interval is None:
            return f"{self.size}: unidentified ({self.reason})"
        return f"{self.size}: exponent {self.exponent:.3f} ({self.interval[0]:.3f} to {self.interval[1]:.3f})"


class IsolatedFit(eqx.Module):
    """`laws` by size; `floor` L0; `rms` relative residual; `points`; the largest correlation between the logs of two sizes."""

    laws: dict[str, SizeLaw]
    floor: float
    rms: float
    points: int
    correlation: float
    draws: Float[np.ndarray, "draws sizes"]

    def __getitem__(self, size: str) -> SizeLaw:
        return self.laws[size]

    def __str__(self) -> str:
        return "; ".join(map(str, self.laws.values())) + f"; rms {self.rms:.2%} of {self.points} points"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        laws = {n: {k: getattr(w, k) for k in w.__dataclass_fields__} for n, w in self.laws.items()}
        return {
            "laws": laws,
            "floor": self.floor,
            "rms": self.rms,
            "points": self.points,
            "correlation": self.correlation,
        }


def fit_isolated(
    sizes: Mapping[str, Float[np.ndarray, " n"]],
    loss: Float[np.ndarray, " n"],
    *,
    runs: Float[np.ndarray, " n"] | None = None,
    draws: int = 100,
    seed: int = 0,
) -> IsolatedFit:
    """min sum_i (1 - L(x_i)/L_i)^2 of L = L0 + sum_s A_s x_s^-alpha_s, L0, A >= 0, by variable projection.

    **Arguments**

    - `sizes`: by name, each (n,) > 0: width, depth, tokens. `loss` (n,). `runs` (n,): labels; points of one run are drawn together
      in the bootstrap of whole runs (n, all different, by default).

    **Returns** `IsolatedFit`. A size is unidentified if it spans less than a factor 2, has fewer than four values, its exponent
    ends at the range .05 to 4, its amplitude vanishes in more than 5 % of the draws, or the 90 % interval is wider than twice the
    exponent. The runs drawn know nothing of the law's own bias. **Failure regime**: sizes that were varied together (see
    `correlation`); runs that differ in learning rate or batch as well.
    """
    draws = whole("draws", draws, 2, MOST_DRAWS, remedy="100 is good")
    seed = whole("seed", seed, 0)
    names = tuple(sizes)
    values = np.array([np.asarray(sizes[n], float) for n in names])
    y = np.asarray(loss, float)
    if not names or values.shape != (len(names), y.size) or not np.isfinite(values).all() or (values <= 0).any():
        raise InputError(
            "sizes", expected=f"positive numbers, shape ({y.size},) each", got=values.shape, remedy="match them"
        )
    if y.size < 2 * len(names) + 3 or not np.isfinite(y).all() or (y <= 0).any():
        raise InputError("loss", expected=f"at least {2 * len(names) + 3} losses > 0", got=y, remedy="add runs")
    label = np.arange(y.size) if runs is None else np.unique(np.asarray(runs), return_inverse=True)[1]
    x = values / np.exp(np.log(values).mean(axis=1, keepdims=True))
    best = _solve(x, y, _grid(len(names)))
    residual = best.residual
    rng = np.random.default_rng(seed)
    count = int(label.max()) + 1
    drawn, kept = [], []
    for _ in range(draws):
        picked = np.concatenate([np.flatnonzero(label == g) for g in rng.integers(0, count, count)])
        again = _solve(x[:, picked], y[picked], [np.log(best.exponents)])
        drawn.append(again.exponents)
        kept.append(again.amplitudes[1:] > 0)
    table, alive = np.array(drawn).reshape(-1, len(names)), np.array(kept).reshape(-1, len(names))
    logs = np.log(x)
    pairs = [abs(float(np.corrcoef(logs[i], logs[j])[0, 1])) for i in range(len(names)) for j in range(i)]
    scale = np.exp(np.log(values).mean(axis=1))
    laws = {}
    for i, name in enumerate(names):
        a = float(best.exponents[i])
        low, high = (float(b) for b in np.percentile(table[:, i], [5, 95])) if draws else (np.nan, np.nan)
        reason = _doubt(values[i], a, (low, high), float(best.amplitudes[i + 1]), alive[:, i])
        laws[name] = SizeLaw(
            name, None if reason else a, None if reason else (low, high),
            None if reason else float(best.amplitudes[i + 1] * scale[i] ** a), not reason, reason,
        )  # fmt: skip
    return IsolatedFit(
        laws,
        float(best.amplitudes[0]),
        float(np.sqrt(np.mean(residual**2))),
        int(y.size),
        max(pairs, default=0.0),
        table,
    )


class _Solution(eqx.Module):
    exponents: np.ndarray
    amplitudes: np.ndarray
    residual: np.ndarray


def _project(logs: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    design = np.concatenate([np.ones((1, y.size)), x ** -np.exp(logs)[:, None]]).T / y[:, None]
    amplitudes = nnls(design, np.ones(y.size))[0]
    return amplitudes, 1 - design @ amplitudes


def _grid(count: int) -> list[np.ndarray]:
    return [np.log(np.array(point)) for point in product((0.2, 0.5, 1.0, 2.0), repeat=count)]


def _solve(x: np.ndarray, y: np.ndarray, starts: list[np.ndarray]) -> _Solution:
    costs = [float(np.sum(_project(s, x, y)[1] ** 2)) for s in starts]
    bounds = np.log(EXPONENTS)
    best = None
    for i in np.argsort(costs)[:3]:
        found = least_squares(
            lambda v: _project(v, x, y)[1], starts[int(i)], bounds=tuple(bounds), xtol=1e-9, max_nfev=100
        )
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    amplitudes, residual = _project(best.x, x, y)
    return _Solution(np.exp(best.x), amplitudes, residual)


def _doubt(
    values: np.ndarray, exponent: float, interval: tuple[float, float], amplitude: float, alive: np.ndarray
) -> str:
    low, high = interval
    if values.max() / values.min() < RANGE:
        return f"it spans a factor {values.max() / values.min():.2f} only, {RANGE:g} are needed"
    if np.unique(values).size < 4:
        return f"{np.unique(values).size} different values, 4 are needed"
    if amplitude <= 0 or (alive.size and alive.mean() < 0.95):
        return f"its term vanishes in {1 - alive.mean() if alive.size else 1:.0%} of the resampled sets of runs"
    if exponent > 0.98 * EXPONENTS[1] or exponent < 1.02 * EXPONENTS[0]:
        return f"the best exponent is the end of its range, {EXPONENTS[0]:g} to {EXPONENTS[1]:g}"
    if low < 1.02 * EXPONENTS[0] or high > 0.98 * EXPONENTS[1] or high - low > 2 * exponent:
        return f"90 % interval {low:.2f} to {high:.2f}, wider than twice the exponent or at the end of the range"
    return ""
