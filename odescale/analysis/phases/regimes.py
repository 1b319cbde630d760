"""The transition from exponential decay to a power law: one definition for every system and every curve.

For an excess loss L(t) with p = -dlog L/dlog t and q = dlog p/dlog t (q = 1: exponential, q = 0: power law)

    t_x = the down-crossing of q = 1/2 nearest before the global maximum of p within the window.

Everything that finds a transition, on a system, on a formula or on noisy points, ends in `select_transition`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import equinox as eqx
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from odescale.errors import InputError

Direction = Literal["down", "up"]
RegimeKind = Literal["exponential", "power law", "plateau"]

MIN_DEPTH = 2.5
PLATEAU_EXPONENT = 0.1


class Regime(eqx.Module):
    """One stretch of a curve between two crossings of q = 1/2.

    `kind` is "exponential" (q > 1/2), "power law" (q < 1/2) or "plateau" (q < 1/2 and the loss stops falling).
    `start`, `end` are times in the curve's unit, `exponent` the median local exponent p on the grid in it, `rate` the
    median of -dlog L/dt = p/t (per unit of t), `efolds` = log L(start)/L(end). A start-up transient appears here as a
    short regime with a small number of e-folds.
    """

    kind: RegimeKind
    start: float
    end: float
    exponent: float
    rate: float
    efolds: float

    def __check_init__(self) -> None:
        if not self.start < self.end:
            raise InputError("Regime", expected="start < end", got=(self.start, self.end), remedy="sort the times")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready numbers and strings (null for what is not finite)."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}


class Transition(eqx.Module):
    """t_x = the down-crossing of q = 1/2 nearest before the global maximum of p, or the reason why there is none.

    `found` says which. Times are in `time_unit` (what one unit is in SGD steps belongs in that text). What is not
    known is None, never NaN.

    - `t_x`: the transition; None when not found. `interval`: its 95 % interval (None for a curve without noise).
    - `depth`: log(L(0)/L(t_x)) in e-folds; for a refused candidate the depth of that candidate; None without one.
      `fall`: e-folds that the loss fell over the whole window. `min_depth`: what was asked.
    - `reason`: one sentence; begins with "no exponential phase" or "no exponential-to-power transition" when not found.
    - `crossings`: every crossing of q = 1/2 in the window as (time, "down" or "up"), start-up transients included.
    - `max_exponent`: the largest p in the window; `exponential_rate`: the largest -dlog L/dt in the exponential regime
      that ends at t_x (a fit: its k); `tail_exponent`: the median p over the later half, in log t, of the power-law
      regime (a fit: its asymptotic beta; a power law in t + t0 has a smaller local p, see `tail_exponent`).
    - `t_eq`: where the two terms are equal, if the model splits. `finite_size_cutoff`: where a power law turns exponential for
      good (finite size, finite temperature of the labels); known also where no t_x precedes it.
    - `regimes`: every regime in order. `estimator`, `grid`, `window`: how and where p and q were obtained.
    - `conditioning`: dq/dt at t_x (negative); t_x moves by the error of q over it. `aic_gap`: how much better the
      two-term model is than the best of its rivals, for estimates from data. `stderr`: standard error of t_x from the
      bootstrap. `smoothing`: the spline's, to be passed to the same estimate on another curve. `caveat`: what else the
      reader must know.
    """

    found: bool
    t_x: float | None
    depth: float | None
    reason: str
    min_depth: float
    estimator: str
    grid: str
    time_unit: str
    crossings: tuple[tuple[float, Direction], ...] = ()
    interval: tuple[float, float] | None = None
    max_exponent: float | None = None
    exponential_rate: float | None = None
    tail_exponent: float | None = None
    t_eq: float | None = None
    finite_size_cutoff: float | None = None
    regimes: tuple[Regime, ...] = ()
    conditioning: float | None = None
    window: tuple[float, float] | None = None
    fall: float | None = None
    aic_gap: float | None = None
    stderr: float | None = None
    smoothing: float | None = None
    caveat: str = ""

    def __check_init__(self) -> None:
        if self.found and (self.t_x is None or self.depth is None):
            raise InputError("Transition", expected="t_x and depth when found", got=self.t_x, remedy="set both")
        if not self.found and (self.t_x is not None or not self.reason):
            raise InputError(
                "Transition", expected="t_x None and a reason when not found", got=self.t_x, remedy="give the reason"
            )

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready values: null for what is not known, never NaN."""
        return {name: _plain(getattr(self, name)) for name in self.__dataclass_fields__}

    def __str__(self) -> str:
        how = f"estimator: {self.estimator}; grid: {self.grid}; time unit: {self.time_unit}"
        if not self.found:
            depth = "no candidate" if self.depth is None else f"candidate depth {self.depth:.3f} e-folds"
            fall = "" if self.fall is None else f", the loss falls {self.fall:.3f} e-folds in the window"
            return f"{self.reason} ({depth}, min_depth {self.min_depth:g}{fall}); {how}"
        parts = [f"exponential to power law at t_x = {self.t_x:.6g}"]
        if self.interval is not None:
            parts.append(f"95 % interval {self.interval[0]:.6g} to {self.interval[1]:.6g}")
        parts.append(f"depth {self.depth:.3f} e-folds (min_depth {self.min_depth:g})")
        if self.exponential_rate is not None:
            parts.append(f"exponential rate {self.exponential_rate:.4g} per unit of t")
        if self.tail_exponent is not None:
            parts.append(f"tail exponent {self.tail_exponent:.4g}")
        if self.finite_size_cutoff is not None:
            parts.append(f"finite-size cut-off at {self.finite_size_cutoff:.6g}")
        if self.aic_gap is not None:
            parts.append(f"AIC gap {self.aic_gap:.1f}")
        return ", ".join(parts) + f"; {how}" + (f"; note: {self.caveat}" if self.caveat else "")


def index_crossings(t: Float[np.ndarray, " n"], index: Float[np.ndarray, " n"]) -> tuple[tuple[float, Direction], ...]:
    """All t with q(t) = 1/2, each with the direction in which q passes, in order of time.

    `t (n,)` increasing times, `index (n,)` q on them. Located by linear interpolation of q in log t (in t on an
    interval that begins at 0); the error is of second order in the spacing. q equal to 1/2 counts as above.
    """
    above = index >= 0.5
    found: list[tuple[float, Direction]] = []
    for i in np.flatnonzero(above[1:] != above[:-1]):
        share = (0.5 - index[i]) / (index[i + 1] - index[i])
        time = t[i] + share * (t[i + 1] - t[i]) if t[i] <= 0 else t[i] * (t[i + 1] / t[i]) ** share
        found.append((float(time), "down" if above[i] else "up"))
    return tuple(found)


def require_depth(min_depth: float) -> None:
    """Refuses a `min_depth` that is no positive number, before anything is integrated for it."""
    if not (np.isfinite(min_depth) and min_depth > 0):
        raise InputError(
            "min_depth", expected="a positive number of e-folds", got=min_depth, remedy="2.5 is the default"
        )


def select_transition(
    t: ArrayLike,
    exponent: ArrayLike,
    index: ArrayLike,
    log_loss: ArrayLike,
    *,
    log_loss_start: float | None = None,
    min_depth: float = MIN_DEPTH,
    estimator: str,
    grid: str,
    time_unit: str,
) -> Transition:
    """t_x = the down-crossing of q = 1/2 nearest before argmax p, accepted if deep enough and exponential enough.

    Accepted if depth = log L(0)/L(t_x) >= `min_depth` and max p >= 1 over t <= t_x. Reading of the second condition:
    "before it" is before t_x, not before the maximum of p: p still rises at t_x (q = 1/2 > 0 there), so a curve that
    reaches p >= 1 only later, in its power law, has no exponential phase. A pure power law (1 + t/tau)^-beta has
    q = 1/2 at t = tau with p = beta/2 and depth beta log 2 there; both conditions refuse it for beta < 2, the depth
    for beta < 3.6. A curve that goes from the exponential into a constant is refused too, and says so: that is a loss
    whose irreducible part was not subtracted, or a noise floor. It is recognised by p ending below 0.1 with q never
    returning above -1/2 (after exponential + constant q runs to -k t; after power + constant it stays near -beta).

    **Arguments**: `t (n,)` increasing, dense (at least some 20 points around the transition), n >= 5; `exponent`,
    `index`, `log_loss` (n,) on it, from whatever `estimator` says; `log_loss_start` = log L(0) when the grid begins
    later (default: the first value); `min_depth` in e-folds (default 2.5: the exponential covers a factor 12; the
    quickstart system needs 2). `time_unit` says what one unit of t is in SGD steps.

    **Returns** a `Transition`. The finite-size cut-off is the last up-crossing after t_x if q stays above 1/2 from
    there to the end of the window; other later crossings are listed only. **Raises** `InputError` on NaN, on unequal
    lengths, on times that do not increase.
    """
    t, p, q, log_loss = _checked(t, exponent, index, log_loss)
    require_depth(min_depth)
    start = float(log_loss[0]) if log_loss_start is None else float(log_loss_start)
    crossings = index_crossings(t, q)
    regimes = _regimes(t, p, q, log_loss, crossings)
    peak = int(np.argmax(p))
    candidates = [time for time, direction in crossings if direction == "down" and time <= t[peak]]
    common: dict[str, Any] = {
        "min_depth": float(min_depth), "estimator": estimator, "grid": grid, "time_unit": time_unit,
        "crossings": crossings, "max_exponent": float(p[peak]), "regimes": regimes,
        "window": (float(t[0]), float(t[-1])), "fall": start - float(log_loss[-1]),
    }  # fmt: skip

    cutoff = _cutoff(regimes)

    def none(reason: str, depth: float | None = None) -> Transition:
        if cutoff is not None:
            reason += f"; a power law comes first and decays exponentially beyond its cut-off at t = {cutoff:.6g}"
        return Transition(
            found=False, t_x=None, depth=depth, reason=reason, finite_size_cutoff=cutoff,
            tail_exponent=None if cutoff is None else _later_half(t, p, regimes[-2]), **common,
        )  # fmt: skip

    if not candidates:
        return none(_why_no_candidate(q, peak))
    t_x = candidates[-1]
    depth = start - _interpolate(t_x, t, log_loss)
    before = max(float(p[t <= t_x].max()), _interpolate(t_x, t, p))
    where = f"q falls through 1/2 at t = {t_x:.6g}"
    if depth < min_depth:
        return none(f"no exponential phase: {where}, only {depth:.3f} e-folds down (min_depth {min_depth:g})", depth)
    if before < 1.0:
        return none(f"no exponential phase: {where}, but p never reaches 1 before it (max p = {before:.3f})", depth)
    after = next(r for r in regimes if r.start == t_x)
    if after.kind == "plateau":
        return none(
            f"no exponential-to-power transition: {where}, after which the loss goes to a constant (p = {p[-1]:.3g} "
            "at the end); subtract the irreducible loss, or lower the noise",
            depth,
        )
    inside = (t >= _start_of_phase(t_x, crossings, t)) & (t <= t_x) & (t > 0)
    last = crossings[-1]
    return Transition(
        found=True,
        t_x=t_x,
        depth=depth,
        reason=f"{where}, {depth:.3f} e-folds down, before the maximum of p = {p[peak]:.3f} at t = {t[peak]:.6g}",
        exponential_rate=float((p[inside] / t[inside]).max()) if inside.any() else None,
        tail_exponent=_later_half(t, p, after),
        finite_size_cutoff=last[0] if last[1] == "up" and last[0] > t_x else None,
        conditioning=_slope(t_x, t, q),
        **common,
    )


def _cutoff(regimes: tuple[Regime, ...]) -> float | None:
    """Where the last power law turns exponential for good: it must have lasted an e-fold, or it is a start-up transient."""
    if len(regimes) < 2 or regimes[-1].kind != "exponential" or regimes[-2].kind != "power law":
        return None
    return regimes[-1].start if regimes[-2].efolds >= 1 else None


def _why_no_candidate(q: np.ndarray, peak: int) -> str:
    head = "no exponential phase: " if not (q[: peak + 1] >= 0.5).any() else "no exponential-to-power transition: "
    if (q >= 0.5).all():
        return head + "q stays above 1/2, the decay is exponential to the end of the window; lengthen the window"
    if not (q >= 0.5).any():
        return head + "q stays below 1/2 throughout the window; a window that begins earlier may show one"
    return head + "q never falls through 1/2 before the maximum of p"


def _start_of_phase(t_x: float, crossings: tuple[tuple[float, Direction], ...], t: np.ndarray) -> float:
    return max([time for time, direction in crossings if direction == "up" and time < t_x], default=float(t[0]))


def _regimes(t, p, q, log_loss, crossings) -> tuple[Regime, ...]:
    edges = [float(t[0]), *[time for time, _ in crossings], float(t[-1])]
    out = []
    for i, (start, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        if not start < end:
            continue
        inside = (t >= start) & (t <= end) & (t > 0)
        # A regime between two neighbouring grid points has no point of its own: take its middle.
        middle = np.array([0.5 * (start + end)])
        times = t[inside] if inside.any() else middle
        here = p[inside] if inside.any() else np.interp(middle, t, p)
        exponential = crossings[i][1] == "down" if i < len(crossings) else bool(q[-1] >= 0.5)
        kind: RegimeKind = "exponential" if exponential else "power law"
        if not exponential and _is_plateau(here, q[inside] if inside.any() else np.interp(middle, t, q)):
            kind = "plateau"
        efolds = _interpolate(start, t, log_loss) - _interpolate(end, t, log_loss)
        out.append(Regime(kind, start, end, float(np.median(here)), float(np.median(here / times)), efolds))
    return tuple(out)


def _is_plateau(p: np.ndarray, q: np.ndarray) -> bool:
    if p[-1] >= PLATEAU_EXPONENT:
        return False
    steep = np.flatnonzero(q < -0.5)
    # p below 0.1 from the start of the regime is a plateau without a drop (a start-up, or a frozen loss).
    return bool(p.max() < PLATEAU_EXPONENT) or (steep.size > 0 and not (q[steep[0] :] > -0.5).any())


def _later_half(t: np.ndarray, p: np.ndarray, regime: Regime) -> float | None:
    inside = (t >= math.sqrt(regime.start * regime.end)) & (t <= regime.end)
    return float(np.median(p[inside])) if inside.any() else None


def _interpolate(at: float, t: np.ndarray, values: np.ndarray) -> float:
    return float(np.interp(at, t, values))


def _slope(at: float, t: np.ndarray, values: np.ndarray) -> float:
    i = int(np.clip(np.searchsorted(t, at) - 1, 0, t.size - 2))
    return float((values[i + 1] - values[i]) / (t[i + 1] - t[i]))


def _checked(t, p, q, log_loss) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    arrays = {"t": t, "exponent": p, "index": q, "log_loss": log_loss}
    out = {name: np.asarray(value, dtype=float) for name, value in arrays.items()}
    n = out["t"].size
    for name, value in out.items():
        if value.ndim != 1 or value.size != n or n < 5:
            raise InputError(name, expected="1-d, n >= 5, as long as t", got=f"shape {value.shape}", remedy="check it")
        if not np.isfinite(value).all():
            bad = int(np.flatnonzero(~np.isfinite(value))[0])
            raise InputError(name, expected="finite numbers", got=f"{value[bad]} at place {bad}", remedy="cut it off")
    if not (np.diff(out["t"]) > 0).all() or out["t"][0] < 0:
        raise InputError("t", expected="increasing times from 0 or later", got="others", remedy="sort, drop duplicates")
    return out["t"], out["exponent"], out["index"], out["log_loss"]


def _plain(value: Any) -> Any:
    """JSON-ready: numpy and JAX scalars to Python, records to dictionaries, what is not finite to None."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Regime):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    number = float(value)
    return number if math.isfinite(number) else None
