"""When to stop a run, and how several runs share a budget: every one at the same marginal value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.interpolate import PchipInterpolator
from scipy.optimize import minimize

from odescale.errors import InputError, require_number

Curve = Callable[[np.ndarray], np.ndarray] | tuple[ArrayLike, ArrayLike]
"""L(c): a function of arrays, or (c, L) with c increasing, a monotone cubic between (Fritsch & Carlson 1980)."""
PARTS = 400
"""Parts into which the budget is cut for the global search."""


class Stop(eqx.Module):
    """`at`: where to stop, `loss` there; `first`: where -dL/dc first falls under the multiplier; `convex`: they are one question.

    `at` is the minimum of L + nu c, so a plateau before a later fall is crossed if the fall pays for it; `first` is what a rule
    that looks at the present slope does. `running`: the slope is above nu to the end of the curve, which is then `at`.
    """

    at: float
    loss: float
    first: float
    convex: bool
    running: bool

    def __str__(self) -> str:
        note = "" if self.convex else f"; the slope first falls under it at {self.first:.4g}"
        end = ", the end of the curve" if self.running else ""
        return f"stop at {self.at:.4g}{end}: loss {self.loss:.4g}{note}"


class Sharing(eqx.Module):
    """`spent` (n,) on each run, `losses` (n,), `total` sum w L, `multiplier` nu = -d total/dC, `values` (n,) w_i (-dL_i/dc_i).

    `bound`: no split can be below it (convex hulls of the curves); `gap` = `total` - `bound`, 0 for convex curves. `residual`:
    largest relative difference of `values` from nu over the runs that get something, and how far an idle one is above it.
    """

    spent: Float[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]
    total: float
    multiplier: float
    values: Float[np.ndarray, " n"]
    bound: float
    residual: float

    @property
    def gap(self) -> float:
        """How far the split may be from the best one at most."""
        return self.total - self.bound

    def __str__(self) -> str:
        parts = ", ".join(f"{c:.4g}" for c in self.spent)
        return f"spend {parts}: total {self.total:.5g}, nu {self.multiplier:.4g}, gap at most {self.gap:.2g}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        told = {n: np.asarray(getattr(self, n)).tolist() for n in self.__dataclass_fields__}
        return told | {"gap": self.gap}


def stop_time(
    curve: Curve, multiplier: float, *, end: float | None = None, start: float = 0.0, points: int = 4001
) -> Stop:
    """argmin_c L(c) + nu c: stop when -dL/dc falls under nu, the marginal value of the resource elsewhere.

    **Arguments**: `curve`: (c, L), c in the resource (GPU-hours, FLOP, time), or a function of c with `end`, the last c, and
    `start`. `multiplier` nu > 0: loss per unit of c, e.g. `Worth.per_unit` of a plan or `Sharing.multiplier`. `points` of the
    scan of a function.
    **Returns** `Stop`. **Raises** `InputError`. **Failure regime**: a noisy curve has slopes of noise: fit or smooth it first.
    **Source**: Schmidt et al., arXiv 2606.10706 (stopping as a marginal decision); the minimum is the first-order condition.
    """
    nu = require_number("multiplier", multiplier, open_=True)
    if callable(curve):
        if end is None:
            raise InputError("end", expected="the last c of a function", got=None, remedy="pass end=...")
        low, last = require_number("start", start), require_number("end", end, open_=True)
        if not low < last:
            raise InputError("end", expected="more than start", got=end, remedy="pass a later one")
        c = np.linspace(low, last, points)
    else:
        c = np.asarray(curve[0], float)
        if c.size > 1:
            c = np.union1d(c, np.linspace(c[0], c[-1], points))
    loss = function_of_curve("curve", curve)
    tilted = loss(c) + nu * c
    if not np.isfinite(tilted).all():
        raise InputError("curve", expected="finite losses", got=tilted, remedy="cut the curve where it breaks")
    place = int(np.argmin(tilted))
    at = _turn(loss, nu, c, place)
    slope = -np.gradient(loss(c), c)
    under = np.flatnonzero(slope < nu)
    if under.size == 0:
        first = float(c[-1])
    else:
        k = int(under[0])
        first = float(c[0]) if k == 0 else float(np.interp(-nu, -slope[[k - 1, k]], c[[k - 1, k]]))
    near = 2.5 * float(np.diff(c).max())
    return Stop(at, float(loss(np.array(at))), first, bool(abs(first - at) <= near), bool(place == c.size - 1))


def _turn(loss: Callable[[np.ndarray], np.ndarray], nu: float, c: np.ndarray, place: int) -> float:
    """The minimum of L + nu c between the neighbours of a scan's best point, by ever finer scans."""
    low, high = float(c[max(place - 1, 0)]), float(c[min(place + 1, c.size - 1)])
    for _ in range(8):
        fine = np.linspace(low, high, 41)
        k = int(np.argmin(loss(fine) + nu * fine))
        low, high = float(fine[max(k - 1, 0)]), float(fine[min(k + 1, 40)])
    return 0.5 * (low + high)


def reallocate(
    curves: Sequence[Curve], budget: float, *, weights: ArrayLike | None = None, least: ArrayLike | None = None
) -> Sharing:
    r"""min sum_i w_i L_i(c_i) at sum_i c_i = C:  w_i (-dL_i/dc_i) = nu for every run that gets something, nu = -d(total)/dC.

    Global over splits in 1/400 of the budget (min-plus convolution), so curves need not be convex: several stationary points are
    told apart there; then the first-order conditions by sequential quadratic programming. The bound from convex hulls says how far
    a better split could be.

    **Arguments**: `curves` (n): each L_i(c), a function of arrays on [least, C], or (c, L), flat beyond its last point.
    `budget` C > 0. `weights` w (n,) > 0, default 1. `least` (n,): smallest c of each, > 0 where the curve diverges at 0;
    default 0, or a table's first.
    **Returns** `Sharing`. **Raises** `InputError`: least shares that exceed C, with what they need.
    **Source**: Lagrange; Everett 1963 (Operations Research 11:399) for the hull bound.

    ```python
    from odescale.resources import reallocate
    print(reallocate([lambda c: 3 * (c + 1) ** -0.5, lambda c: 5 * (c + 1) ** -0.3], 100.0))
    ```
    """
    total = require_number("budget", budget, open_=True)
    n = len(curves)
    if n == 0:
        raise InputError("curves", expected="at least one", got=n, remedy="pass some")
    w = np.ones(n) if weights is None else np.asarray(weights, float)
    if w.shape != (n,) or not (np.isfinite(w) & (w > 0)).all():
        raise InputError("weights", expected=f"{n} numbers > 0", got=weights, remedy="one per curve")
    starts = [0.0 if callable(c) else float(np.asarray(c[0], float).ravel()[0]) for c in curves]
    floor = np.array(starts) if least is None else np.asarray(least, float)
    if floor.shape != (n,) or not (np.isfinite(floor) & (floor >= 0)).all():
        raise InputError("least", expected=f"{n} numbers >= 0", got=least, remedy="one per curve")
    room = total - floor.sum()
    if room <= 0:
        raise InputError("budget", expected=f"more than the least shares, {floor.sum():.6g}", got=budget,
                         remedy=f"raise it to more than {floor.sum():.6g}")  # fmt: skip
    losses = [function_of_curve(f"curves[{i}]", c) for i, c in enumerate(curves)]
    shares = np.linspace(0.0, room, PARTS + 1)
    rows = np.stack([wi * f(a + shares) for wi, f, a in zip(w, losses, floor, strict=True)])
    if not np.isfinite(rows).all():
        bad = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise InputError("least", expected="finite losses from the least share on", got=f"curve {bad}",
                         remedy="raise its least share above 0")  # fmt: skip
    split = _polished(losses, w, floor, room, shares[_best_split(rows)])
    spent = floor + split
    values = np.array([-wi * _slope(f, c, a, room) for wi, f, c, a in zip(w, losses, spent, floor, strict=True)])
    fed = split > 1e-9 * room
    nu = float(np.average(values[fed], weights=split[fed]))
    off = np.where(fed, np.abs(values - nu), np.maximum(values - nu, 0)) / max(abs(nu), 1e-300)
    reached = np.array([float(f(np.array(c))) for f, c in zip(losses, spent, strict=True)])
    bound = min(_hull_bound(losses, w, floor, room, nu), float(w @ reached))
    return Sharing(spent, reached, float(w @ reached), nu, values, bound, float(off.max()))


def _best_split(rows: Float[np.ndarray, "n parts"]) -> np.ndarray:
    """Places (n,) of the best split of the last place, by min-plus convolution one curve after the other."""
    size = rows.shape[1]
    back = np.arange(size)[:, None] - np.arange(size)[None, :]
    best, chosen = rows[0], []
    for row in rows[1:]:
        table = np.where(back >= 0, best[np.maximum(back, 0)] + row[None, :], np.inf)
        chosen.append(table.argmin(axis=1))
        best = table.min(axis=1)
    left, places = size - 1, []
    for choice in reversed(chosen):
        places.append(int(choice[left]))
        left -= places[-1]
    return np.array([left, *reversed(places)])


def _polished(
    losses: list[Callable[[np.ndarray], np.ndarray]], w: np.ndarray, floor: np.ndarray, room: float, split: np.ndarray
) -> np.ndarray:
    """The first-order conditions from a split of the grid, kept if it is no worse."""

    def total(x: np.ndarray) -> float:
        return float(sum(wi * f(np.array(a + room * s)) for wi, f, a, s in zip(w, losses, floor, x, strict=True)))

    def pull(x: np.ndarray) -> np.ndarray:
        terms = zip(w, losses, floor, x, strict=True)
        return np.array([room * wi * _slope(f, a + room * s, a, room) for wi, f, a, s in terms])

    best = np.asarray(split, float) / room
    scale = max(float(np.abs(pull(best)).max()), 1e-300)
    for start in (best, 0.9 * best + 0.1 / best.size):
        done = minimize(
            lambda x: total(x) / scale, start, jac=lambda x: pull(x) / scale, method="SLSQP", bounds=[(0, 1)] * best.size,
            constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like},
            options={"maxiter": 500, "ftol": 1e-15},
        )  # fmt: skip
        x = np.clip(done.x, 0, 1)
        x = x / x.sum()
        if total(x) <= total(best):
            best = x
    return room * best


def _slope(f: Callable[[np.ndarray], np.ndarray], c: float, least: float, room: float) -> float:
    """dL/dc by central differences of fourth order, one-sided at the least share."""
    # Curves are steep near their least share: the step shrinks with the distance from it.
    step = max(1e-3 * (c - least), 1e-7 * room)
    if c - 2 * step < least:
        at = f(c + step * np.arange(5.0))
        return float((-25 * at[0] + 48 * at[1] - 36 * at[2] + 16 * at[3] - 3 * at[4]) / (12 * step))
    at = f(c + step * np.array([-2.0, -1.0, 1.0, 2.0]))
    return float((at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * step))


def _hull_bound(
    losses: list[Callable[[np.ndarray], np.ndarray]], w: np.ndarray, floor: np.ndarray, room: float, nu: float
) -> float:
    """max over nu of sum_i min_c (w_i L_i + nu c) - nu C, from the slope at hand and around it: no split is below it."""
    c = np.union1d(np.linspace(0, 1, 4001), np.geomspace(1e-9, 1, 4001)) * room
    rows = [wi * f(a + c) for wi, f, a in zip(w, losses, floor, strict=True)]
    tried = max(nu, 0.0) * np.concatenate([[1.0], np.linspace(0.5, 2.0, 61)])
    return float(max(sum(float((row + v * c).min()) for row in rows) - v * room for v in tried))


def function_of_curve(name: str, curve: Curve) -> Callable[[np.ndarray], np.ndarray]:
    """L(c) of a function or a table, flat beyond the table. **Errors**: `InputError` for a table that is none."""
    if callable(curve):
        return lambda c: np.asarray(curve(np.asarray(c, float)), float)
    if len(curve) != 2:
        raise InputError(name, expected="(c, L) or a function", got=curve, remedy="two arrays of equal length")
    c, loss = np.asarray(curve[0], float), np.asarray(curve[1], float)
    if (
        c.ndim != 1
        or c.size < 3
        or loss.shape != c.shape
        or not np.isfinite([*c, *loss]).all()
        or not (np.diff(c) > 0).all()
    ):
        raise InputError(
            name, expected="(c, L): at least 3 finite points, c increasing", got=(c, loss), remedy="mend it"
        )
    spline = PchipInterpolator(c, loss)
    return lambda x: spline(np.clip(x, c[0], c[-1]))
