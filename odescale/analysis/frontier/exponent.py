"""Exponents of frontiers with their uncertainty, and the frontier of measured runs as the envelope of their curves."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int, Real

from odescale.analysis.phases.bootstrap import block_bootstrap, seed_bootstrap, student_factor
from odescale.errors import MOST_DRAWS, InputError, whole

_LEAST_POINTS = 5


class FrontierExponent(eqx.Module):
    """p in R ~ C^-p over `window`: `exponent`, `interval` (95 %), and what the interval is made of.

    - `statistical`: standard error from the bootstrap (seeds where there are any, blocks of residuals otherwise). `drift`: local
      exponent at the end of the window minus that at its start, by the quadratic in log C. `stderr`: both together, the drift
      as a uniform distribution, |drift|/sqrt(12).
    - `local` (k,): -dlog R/dlog C between neighbours at `at` (k,). `limit`: the exponent at the end of the window.
    - `power_law`: the drift is less than a tenth of p; else p is a number about the window.
    - `points`, `method`.
    """

    exponent: float
    interval: tuple[float, float]
    stderr: float
    statistical: float
    drift: float
    limit: float
    local: Float[np.ndarray, " k"]
    at: Float[np.ndarray, " k"]
    window: tuple[float, float]
    points: int
    power_law: bool
    method: str

    def __str__(self) -> str:
        law = "" if self.power_law else f"; no single power law: the local exponent drifts by {self.drift:+.3g}"
        return (
            f"R ~ C^-{self.exponent:.5f} +- {self.stderr:.2g} ({self.points} points in [{self.window[0]:.3g}, "
            f"{self.window[1]:.3g}], {self.method}){law}"
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in plain.items()}


def frontier_exponent(
    compute: Real[ArrayLike, " m"],
    risk: Real[ArrayLike, "..."],
    *,
    window: tuple[float, float] | None = None,
    draws: int = 400,
    seed: int = 0,
) -> FrontierExponent:
    """-dlog R/dlog C by least squares in logarithms over `window`, with an interval that knows of curvature and of noise.

    **Arguments**: `compute (m,)` increasing; `risk (m,)` or `(seeds, m)`, the excess risk on the frontier, > 0 (NaN points are
    left out); `window` = (first, last) compute, default all; `draws` of the bootstrap, `seed` of its generator.
    **Returns** `FrontierExponent`: never a bare number. **Raises** `InputError`, among others for fewer than 5 points.
    **Failure regime**: a risk that is not the excess over its irreducible part bends the curve; so does an exponential phase.
    """
    C, rows = np.asarray(compute, float), np.atleast_2d(np.asarray(risk, float))
    if C.ndim != 1 or rows.ndim != 2 or rows.shape[1] != C.size:
        raise InputError("risk", expected=f"shape ({C.size},) or (seeds, {C.size})", got=rows.shape, remedy="one per C")
    if not (np.diff(C) > 0).all() or not (C > 0).all():
        raise InputError("compute", expected="positive increasing values", got=C, remedy="sort them")
    draws = whole("draws", draws, 2, MOST_DRAWS, remedy="400 is good")
    seed = whole("seed", seed, 0)
    ends = np.asarray((C[0], C[-1]) if window is None else window, float)
    if ends.shape != (2,) or not ends[0] < ends[1]:
        raise InputError("window", expected="(first, last) compute", got=window, remedy="leave it out for all")
    first, last = ends
    kept = (C >= first * (1 - 1e-12)) & (C <= last * (1 + 1e-12)) & np.isfinite(rows).all(axis=0)
    if int(kept.sum()) < _LEAST_POINTS:
        raise InputError("window", expected=f"at least {_LEAST_POINTS} finite points inside", got=int(kept.sum()),
                         remedy="widen it, or compute more of the frontier")  # fmt: skip
    C, rows = C[kept], rows[:, kept]
    mean = rows.mean(axis=0)
    if not (mean > 0).all():
        raise InputError("risk", expected="positive numbers", got=float(mean.min()), remedy="subtract less")
    x, y = np.log(C), np.log(mean)
    line = np.polyfit(x, y, 1)
    exponent = -float(line[0])
    quadratic = np.polyfit(x - x.mean(), y, 2)
    drift = -2 * float(quadratic[0]) * float(x[-1] - x[0])
    limit = -float(quadratic[1] + 2 * quadratic[0] * (x[-1] - x.mean()))
    rng = np.random.default_rng(seed)
    if rows.shape[0] >= 3:
        noise, method = seed_bootstrap(rows, draws, rng), f"bootstrap over {rows.shape[0]} seeds"
        widen = student_factor(rows.shape[0])
    else:
        noise, method = block_bootstrap(y - np.polyval(quadratic, x - x.mean()), draws, rng), "bootstrap over blocks"
        widen = 1.0
    slopes = np.polyfit(x, (y + noise).T, 1)[0]
    statistical = float(slopes.std(ddof=1)) * widen
    stderr = float(np.hypot(statistical, abs(drift) / np.sqrt(12)))
    return FrontierExponent(
        exponent, (exponent - 1.96 * stderr, exponent + 1.96 * stderr), stderr, statistical, drift, limit,
        -np.diff(y) / np.diff(x), np.sqrt(C[1:] * C[:-1]), (float(C[0]), float(C[-1])), C.size,
        bool(abs(drift) < 0.1 * abs(exponent)), method,
    )  # fmt: skip


class CurveEnvelope(eqx.Module):
    """The least loss of a family of runs at every compute: the frontier of what was trained.

    `compute` (m,), `loss` (m,), `best` (m,): index of the run; `interior` (m,): neither the smallest nor the largest size wins
    there, so that the envelope is the family's optimum and not the edge of what was tried.
    """

    compute: Float[np.ndarray, " m"]
    loss: Float[np.ndarray, " m"]
    best: Int[np.ndarray, " m"]
    interior: Bool[np.ndarray, " m"]


def envelope_of_curves(
    compute: Real[ArrayLike, "runs n"], loss: Real[ArrayLike, "runs n"], *, points: int = 60
) -> CurveEnvelope:
    """min over runs of their loss at equal compute, each run interpolated in log-log; runs in the order of their size.

    **Arguments**: `compute (runs, n)` increasing along each run, `loss (runs, n)` > 0: training curves of models of several
    sizes (of a system: one member of a `sweep` each, compute = cost per unit of t times t). `points` of the grid in log C.
    **Returns** `CurveEnvelope` over all computes that at least two runs reach. **Raises** `InputError`.
    **Failure regime**: with few sizes the envelope is a chain of arcs above the frontier: with an exponential time 15 sizes per
    decade leave it 3 % too high between two runs, 75 sizes 0.1 %. Its exponent needs several arcs in the window.
    """
    points = whole("points", points, 2, 1_000_000, remedy="60 is good")
    C, L = np.asarray(compute, float), np.asarray(loss, float)
    if C.ndim != 2 or C.shape != L.shape or C.shape[0] < 2:
        raise InputError("loss", expected="2 or more runs, compute and loss of one shape", got=(C.shape, L.shape),
                         remedy="one row per run")  # fmt: skip
    if not ((np.diff(C, axis=1) > 0).all() and (C > 0).all() and (L > 0).all()):
        raise InputError("compute", expected="positive, increasing along each run, with losses > 0", got="others",
                         remedy="drop t = 0 and subtract no more than the irreducible loss")  # fmt: skip
    ends = np.sort(C[:, -1])[-2]
    starts = np.sort(C[:, 0])[1]
    if not starts < ends:
        raise InputError("compute", expected="runs that overlap", got=(starts, ends), remedy="train longer")
    grid = np.geomspace(starts, ends, points)
    logs = np.array([np.interp(np.log(grid), np.log(c), np.log(row), left=np.inf, right=np.inf)
                     for c, row in zip(C, L, strict=True)])  # fmt: skip
    best = np.argmin(logs, axis=0)
    interior = (best > 0) & (best < C.shape[0] - 1)
    return CurveEnvelope(grid, np.exp(logs.min(axis=0)), best, interior)
