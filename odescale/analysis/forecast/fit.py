"""Fits of the laws of `schedule_laws` to logged curves by variable projection, and whether the curves identify them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares, nnls

from odescale.analysis.forecast.laws import Course, Law, course_of, law_named, scaled
from odescale.analysis.forecast.loss_curve import LossCurve
from odescale.analysis.phases.bootstrap import autocorrelation, block_bootstrap
from odescale.errors import MOST_DRAWS, InputError, OutsideTheoryError, whole
from odescale.precision import require_x64

RATE_SPAN = 1.5
"""Largest over smallest learning rate after the peak that B needs: below it B eta and L0 are the same column."""
TAU_SPAN = 3.0
"""Last over first tau that alpha and L0 need."""
LEAST_POINTS = 20
VANISHED = 1e-150
"""Norm of a law's term over the loss, at amplitude 1, below which it is zero: its square is no longer a number."""
STARTS = 3


class LawFit(eqx.Module):
    """A law fitted to curves: what it says, how sure, and what the curves cannot tell.

    - `law`. `parameters`: by name; None for every one that the curves do not identify. `interval`: 90 %, by name.
    - `identified`; `reason`: why not, one clause per parameter; empty otherwise. **A fit that is not identified predicts nothing.**
    - `rms`: root mean square of (L - model)/L. `memory`: lag-1 autocorrelation of it, the mean over the curves.
      `points`; `condition`: of the Jacobian with columns of length 1. AIC needs one memory for all laws: see `compare_laws`.
    - `rate_span`, `tau_span`: see `RATE_SPAN`, `TAU_SPAN`. `end_tau`: largest tau fitted. `runs`: names of the curves.
    - `vector` (parameters,), `draws` (draws, parameters): best values and the bootstrap behind the intervals, amplitudes first;
      `residual` (n,): relative.
    """

    law: str = eqx.field(static=True)
    parameters: dict[str, float | None]
    interval: dict[str, tuple[float, float] | None]
    identified: bool
    reason: str
    rms: float
    memory: float
    points: int
    condition: float
    rate_span: float
    tau_span: float
    end_tau: float
    runs: tuple[str, ...]
    vector: Float[np.ndarray, " parameters"]
    residual: Float[np.ndarray, " n"]
    draws: Float[np.ndarray, "draws parameters"]

    def loss(self, curve: LossCurve) -> Float[np.ndarray, " n"]:
        """L at the points of `curve` along its schedule; `OutsideTheoryError` for a fit that is not identified."""
        self.require()
        return evaluate(law_named(self.law), course_of(curve, self.law), self.vector)

    def require(self) -> None:
        """Refuses to go on with a law that its curves do not identify."""
        if not self.identified:
            raise OutsideTheoryError(
                "fit", expected=f"curves that identify the law {self.law!r}", got=f"unidentified: {self.reason}",
                remedy="add a run with another schedule, a longer window, or take a law with fewer parameters",
            )  # fmt: skip

    def __str__(self) -> str:
        if not self.identified:
            return f"{self.law}: unidentified ({self.reason})"
        return f"{self.law}: {self.numbers()}; rms {self.rms:.2%} of {self.points} points of {', '.join(self.runs)}"

    def numbers(self) -> str:
        """Every parameter with its 90 % interval, or why there are none."""
        if not self.identified:
            return f"unidentified: {self.reason}"
        parts = []
        for name, value in self.parameters.items():
            bounds = self.interval[name]
            parts.append(f"{name} = {value:.4g}" + (f" ({bounds[0]:.4g} to {bounds[1]:.4g})" if bounds else ""))
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the draws."""
        return {k: getattr(self, k) for k in self.__dataclass_fields__ if k not in ("vector", "draws", "residual")}


def evaluate(law: Law, course: Course, vector: Float[np.ndarray, " parameters"]) -> Float[np.ndarray, " n"]:
    """L at the points of a course; `vector`: amplitudes, then the searched parameters."""
    count = len(law.linear)
    return law.columns(course, tuple(float(v) for v in vector[count:])) @ vector[:count]


class Problem(NamedTuple):
    """min over amplitudes >= 0 and searched parameters of sum_i ((L_i - model_i)/L_i)^2 over all points of all curves."""

    law: Law
    courses: tuple[Course, ...]
    loss: Float[np.ndarray, " n"]

    def design(self, inward: np.ndarray, weight: np.ndarray) -> np.ndarray:
        values = self.outward(inward)
        with np.errstate(over="ignore"):
            design = np.concatenate([self.law.columns(c, values) for c in self.courses]) * weight[:, None]
        # tau^-alpha near tau = 0 can be infinite: no amplitude but zero goes with that.
        return np.where(np.isfinite(design).all(axis=0), design, 0.0)

    def outward(self, inward: np.ndarray) -> tuple[float, ...]:
        return tuple(s.outward(float(v)) for s, v in zip(self.law.searched, inward, strict=True))

    def project(self, inward: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(amplitudes, relative residuals) at given searched parameters."""
        weight = 1 / loss
        design = self.design(inward, weight)
        size = np.linalg.norm(design, axis=0)
        # A term that vanishes at every point, as exp(-k tau) does under a large k, says nothing of its amplitude: zero.
        carried = size > VANISHED
        design = np.where(carried, design, 0.0)
        size = np.where(carried, size, 1.0)
        # The least-squares problem through its triangle: a handful of rows for the non-negative solver.
        triangle = np.asarray(np.linalg.qr(np.column_stack([design / size, np.ones(loss.size)]), mode="r"))
        amplitudes = nnls(triangle[:, :-1], triangle[:, -1])[0] / size
        return amplitudes, 1 - design @ amplitudes

    def solve(self, loss: np.ndarray, starts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(searched parameters, amplitudes, residuals) of the best polish from `starts`."""
        best: tuple[float, np.ndarray] | None = None
        if not self.law.searched:
            return np.zeros(0), *self.project(np.zeros(0), loss)
        low, high = self.bounds
        for start in starts:
            found = least_squares(
                lambda v: self.project(v, loss)[1], np.clip(start, low + 1e-9, high - 1e-9), bounds=(low, high),
                x_scale=np.where(high - low > 3, 1.0, 0.3), xtol=1e-9, ftol=1e-10, gtol=1e-12, max_nfev=60,
            )  # fmt: skip
            if best is None or found.cost < best[0]:
                best = float(found.cost), np.asarray(found.x)
        assert best is not None
        return best[1], *self.project(best[1], loss)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        searched = self.law.searched
        return np.array([s.inward(s.low) for s in searched]), np.array([s.inward(s.high) for s in searched])

    def starts(self) -> list[np.ndarray]:
        """The best places of the grid, no two of them neighbours."""
        grids = [[s.inward(g) for g in s.grid] for s in self.law.searched]
        if not grids:
            return [np.zeros(0)]
        places = np.stack([m.ravel() for m in np.meshgrid(*map(np.arange, map(len, grids)), indexing="ij")], axis=1)
        points = np.array([[g[i] for g, i in zip(grids, place, strict=True)] for place in places])
        costs = np.array([np.sum(self.project(p, self.loss)[1] ** 2) for p in points])
        kept: list[int] = []
        for i in np.argsort(costs):
            if all(np.abs(places[i] - places[j]).max() > 1 for j in kept):
                kept.append(int(i))
            if len(kept) == STARTS:
                break
        return [points[i] for i in kept]

    def jacobian(self, vector: np.ndarray, model: np.ndarray) -> np.ndarray:
        """Relative derivatives of the model (n, parameters); logarithmic ones in the searched parameters."""
        count = len(self.law.linear)
        inward = np.array([s.inward(v) for s, v in zip(self.law.searched, vector[count:], strict=True)])
        parts = [self.design(inward, 1 / self.loss)]
        for i in range(inward.size):
            step = np.zeros(inward.size)
            step[i] = 1e-4
            up, down = (self.design(inward + s, 1 / self.loss) @ vector[:count] for s in (step, -step))
            parts.append(((up - down) / 2e-4)[:, None])
        return np.concatenate(parts, axis=1)


def fit_law(
    curves: LossCurve | Sequence[LossCurve],
    *,
    law: str = "relaxing",
    draws: int = 60,
    seed: int = 0,
) -> LawFit:
    """min sum_i ((L_i - L(t_i))/L_i)^2 over all points of all curves, amplitudes >= 0: variable projection from a grid, polished.

    **Arguments**

    - `curves`: one or more runs of one network and batch size; cut away warm-up and the first fall (`curve.between`): the laws
      are those of the slow part. `law`: see `schedule_laws`; `chinchilla` takes runs of several sizes.
    - `draws`: resampled curves behind the intervals: blocks of residuals, see `block_bootstrap`. They know
      nothing of the law's own bias: `forecast` adds it. Residuals lack the slow noise that the fit has followed, so that the
      intervals are too narrow: of one run of 48 points they cover 80 % with independent noise, 70 % with a memory of .5.

    The residual is relative, near that of log L, so that the amplitudes stay linear; this rule was fixed before any forecast.

    **Returns** `LawFit`; look at `identified`. A parameter is not identified, and the answer then has no numbers, if: the window
    has fewer than 20 points or less than a factor 3 in tau; the rate changes by less than a factor 1.5 after the peak (B); its
    value ends on its bound; its 90 % interval is wider than twice its value (L0: than 2 (L_min - L0), how far it is extrapolated).

    **Good values**: two runs, one of them with a step-down. **Failure regime**: the law's own bias; a window that holds the
    first, exponential fall.
    """
    require_x64("fit_law")
    draws = whole("draws", draws, 0, MOST_DRAWS, remedy="60 is good, 0 for none")
    seed = whole("seed", seed, 0)
    runs = (curves,) if isinstance(curves, LossCurve) else tuple(curves)
    if not runs:
        raise InputError("curves", expected="at least one LossCurve", got=runs, remedy="pass a curve")
    courses = tuple(course_of(curve, law) for curve in runs)
    loss = np.concatenate([c.loss for c in runs])
    if not (loss > 0).all():
        raise InputError(
            "curves", expected="losses > 0", got=float(loss.min()), remedy="pass the whole loss, not the excess"
        )
    bare = law_named(law)
    tau = np.concatenate([c.tau for c in courses])
    end, top = float(tau.max()), max(float(c.grid_rate.max()) for c in courses)
    rates = np.concatenate([c.rate[c.place >= c.peak] if (c.place >= c.peak).any() else c.rate[-1:] for c in courses])
    rate_span = float(rates.max() / max(rates.min(), 1e-300))
    spans = {"rate_span": rate_span, "tau_span": float(end / tau.min())}
    problem = Problem(scaled(bare, end, top), courses, loss)
    early = _window(bare, problem, spans)
    names = bare.names
    if early:
        empty = np.zeros((0, len(names)))
        return LawFit(
            law, dict.fromkeys(names), dict.fromkeys(names), False, early, float("nan"), float("nan"), loss.size,
            float("inf"), rate_span, spans["tau_span"], end, tuple(c.name for c in runs), np.full(len(names), np.nan),
            np.full(loss.size, np.nan), empty,
        )  # fmt: skip
    inward, amplitudes, residual = problem.solve(loss, problem.starts())
    vector = np.concatenate([amplitudes, problem.outward(inward)])
    model = loss * (1 - residual)
    jacobian = problem.jacobian(vector, model)
    length = np.linalg.norm(jacobian, axis=0)
    condition = (
        float(np.linalg.cond(jacobian / np.where(length > 0, length, 1.0))) if (length > 0).all() else float("inf")
    )
    drawn = _bootstrap(problem, model, residual, inward, draws, seed)
    doubts = _doubts(problem, vector, drawn, loss)
    numbers = {n: None if doubts else float(v) for n, v in zip(names, vector, strict=True)}
    bounds = {
        n: None if doubts or not draws else (float(a), float(b))
        for n, a, b in zip(names, *_percentiles(drawn), strict=True)
    }
    return LawFit(
        law, numbers, bounds, not doubts, "; ".join(doubts), float(np.sqrt(np.mean(residual**2))),
        _memory(courses, residual), loss.size,
        condition, rate_span, spans["tau_span"], end, tuple(c.name for c in runs), vector, residual, drawn,
    )  # fmt: skip


def _percentiles(drawn: np.ndarray) -> np.ndarray:
    return np.percentile(drawn, [5, 95], axis=0) if drawn.size else np.full((2, drawn.shape[1]), np.nan)


def _window(law: Law, problem: Problem, spans: dict[str, float]) -> str:
    """Why the window cannot carry the law at all; empty if it can."""
    found = []
    least = max(LEAST_POINTS, 3 * len(law.names)) if law.name != "chinchilla" else 2 * len(law.names)
    if problem.loss.size < least:
        found.append(f"{problem.loss.size} points, fewer than {least}")
    if law.name == "chinchilla":
        if len({c.parameters for c in problem.courses}) < 3:
            found.append("fewer than three sizes")
        return "; ".join(found)
    if spans["tau_span"] < TAU_SPAN:
        found.append(f"alpha, L0: tau changes by a factor {spans['tau_span']:.2f} only, {TAU_SPAN:g} are needed")
    if law.noisy and spans["rate_span"] < RATE_SPAN:
        found.append(
            f"B: the learning rate changes by a factor {spans['rate_span']:.2f} only after its peak, {RATE_SPAN:g} are needed"
        )
    return "; ".join(found)


def _blocks(courses: Sequence[Course]) -> list[slice]:
    ends = np.cumsum([c.tau.size for c in courses])
    return [slice(int(b - c.tau.size), int(b)) for c, b in zip(courses, ends, strict=True)]


def _memory(courses: Sequence[Course], residual: np.ndarray) -> float:
    """Lag-1 autocorrelation of the residuals, the mean over the curves."""
    parts = [residual[b] for b in _blocks(courses)]
    rho = np.array([autocorrelation(part) if part.size > 2 else 0.0 for part in parts])
    return float(np.clip(np.average(rho, weights=[part.size for part in parts]), 0.0, 0.95))


def _bootstrap(
    problem: Problem, model: np.ndarray, residual: np.ndarray, inward: np.ndarray, draws: int, seed: int
) -> np.ndarray:
    """Refits of model * (1 + blocks of residuals), run by run; (draws, parameters)."""
    if not draws:
        return np.zeros((0, len(problem.law.names)))
    rng = np.random.default_rng(seed)
    # What the fit took out of the residuals, in the mean.
    freedom = residual.size / max(residual.size - len(problem.law.names), 1)
    noise = np.concatenate([block_bootstrap(residual[b], draws, rng) for b in _blocks(problem.courses)], axis=1)
    out = np.empty((draws, len(problem.law.names)))
    for row, deviation in zip(out, noise, strict=True):
        found, amplitudes, _ = problem.solve(model * (1 + np.sqrt(freedom) * deviation), [inward])
        row[:] = [*amplitudes, *problem.outward(found)]
    return out


def _doubts(problem: Problem, vector: np.ndarray, drawn: np.ndarray, loss: np.ndarray) -> list[str]:
    """One clause for every parameter that the curves do not identify."""
    out, law = [], problem.law
    low, high = _percentiles(drawn)
    floor = vector[0]
    ranges = {s.name: (s.low, s.high) for s in law.searched}
    for name, value, a, b in zip(law.names, vector, low, high, strict=True):
        least, most = ranges.get(name, (0.0, np.inf))
        free = name == "gamma"
        if not free and (value <= least * 1.02 + 1e-12 or value >= most * 0.98):
            out.append(f"{name}: the best value is the end of its range, {least:.3g} to {most:.3g}")
        elif np.isfinite(a) and not free:
            scale = float(loss.min() - floor) if name in ("L0", "E") else float(value)
            if b - a > 2 * scale or b >= most * 0.98:
                what = "twice its distance to the loss" if name in ("L0", "E") else "twice its value"
                out.append(f"{name}: 90 % interval {a:.3g} to {b:.3g}, wider than {what}")
    return out
