"""What is known of the phases of one curve, and of the hand-over from an exponential to a power law: one record for all.

For an excess loss L(t) with p = -dlog L/dlog t and q = dlog p/dlog t (q = 1: exponential, q = 0: power law)

    t_x = the down-crossing of q = 1/2 between an exponential phase and the power law that follows it

and there is no t_x without both phases (`stretches`).
"""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import numpy as np
from numpy.typing import ArrayLike

from odescale.analysis.phases.stretches import CONSTANT, Phase, Phases, Stretch, Thresholds, find_phases
from odescale.errors import InputError

Interval = tuple[float, float]


class Transition(eqx.Module):
    """The phases of a curve in order, its name, and t_x where an exponential phase hands over to a power law.

    Times are in `time_unit` (what one unit is in SGD steps belongs in that text). What is not known is None, never NaN.

    - `found`: there is a t_x. `name`: of the whole, e.g. "exponential, then power law", "two exponentials", "stretched
      exponential", "cannot be told apart"; then `contenders` has the names in question and `deciding` says what would tell.
    - `phases`: ordered; `.list` has `Phase`s with kind, ends, e-folds, exponent, rate. None where points cannot tell.
      `established`: both phases of the hand-over are long enough to be relied on, not only to be named.
    - `t_x`, `exponential_rate` (-dlog L/dt, per unit of t), `tail_exponent` with `interval`, `rate_interval`, `exponent_interval`:
      95 %, None for a curve without noise. `stderr`: of t_x. `conditioning`: dq/dt at t_x; t_x moves by the error of q over it.
    - `depth`: log L(0)/L(t_x) in e-folds; `fall`: e-folds that the loss falls in the window.
    - `t_eq`: where the two terms of the fitted model are equal. `finite_size_cutoff`: where a power law turns exponential for good
      (finite size, finite temperature of the labels); known also where no t_x precedes it.
    - `thresholds`: from what length on a phase counts. `estimator`, `grid`, `window`: how and where p and q were obtained.
    - `weights`: Akaike weights by name, `aic_gap`: lead of the best model over the best of another name, for estimates from data;
      `model`: that model, to be passed to the same estimate on another curve. `reason`: one sentence. `caveat`: what else to know.
    """

    found: bool
    name: str
    phases: Phases | None
    reason: str
    thresholds: Thresholds
    estimator: str
    grid: str
    time_unit: str
    t_x: float | None = None
    interval: Interval | None = None
    depth: float | None = None
    fall: float | None = None
    exponential_rate: float | None = None
    rate_interval: Interval | None = None
    tail_exponent: float | None = None
    exponent_interval: Interval | None = None
    t_eq: float | None = None
    finite_size_cutoff: float | None = None
    conditioning: float | None = None
    window: Interval | None = None
    contenders: tuple[str, ...] = ()
    weights: dict[str, float] = eqx.field(default_factory=dict)
    aic_gap: float | None = None
    deciding: str = ""
    model: str = ""
    stderr: float | None = None
    caveat: str = ""

    def __check_init__(self) -> None:
        if self.found and (self.t_x is None or self.phases is None):
            raise InputError("Transition", expected="t_x and phases when found", got=self.t_x, remedy="set both")
        if not self.found and (self.t_x is not None or not self.reason):
            raise InputError(
                "Transition", expected="t_x None and a reason when not found", got=self.t_x, remedy="give the reason"
            )
        if self.interval is not None and self.t_x is not None and not self.interval[0] <= self.t_x <= self.interval[1]:
            raise InputError(
                "interval", expected=f"one that holds t_x = {self.t_x:g}", got=self.interval, remedy="mend it"
            )

    @property
    def established(self) -> bool:
        return self.found and self.phases is not None and self.phases.established

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-ready values: null for what is not known, never NaN."""
        out = {
            name: _plain(getattr(self, name))
            for name in self.__dataclass_fields__
            if name not in ("phases", "thresholds")
        }
        out["phases"] = [] if self.phases is None else [_plain(phase.to_dict()) for phase in self.phases.list]
        out["thresholds"] = {name: getattr(self.thresholds, name) for name in self.thresholds.__dataclass_fields__}
        return out | {"established": self.established}

    def changed(self, **changes: Any) -> Transition:
        """The same record with some fields replaced."""
        return Transition(**{name: getattr(self, name) for name in self.__dataclass_fields__} | changes)

    def without_intervals(self) -> Transition:
        """The same record of a curve that has no noise: what its fit leaves over is its form's, not chance."""
        gone = ("interval", "stderr", "rate_interval", "exponent_interval")
        return self.changed(caveat="", **dict.fromkeys(gone))

    def __str__(self) -> str:
        how = f"estimator: {self.estimator}; grid: {self.grid}; time unit: {self.time_unit}; {self.thresholds}"
        if not self.found:
            fall = "" if self.fall is None else f" (the loss falls {self.fall:.3f} e-folds in the window)"
            return f"{self.reason}{fall}; {how}"
        parts = [f"{self.name}: t_x = {self.t_x:.7g}"]
        if self.interval is not None:
            parts.append(f"95 % interval {self.interval[0]:.6g} to {self.interval[1]:.6g}")
        if self.depth is not None:
            parts.append(f"{self.depth:.3f} e-folds down")
        for words, value, interval in (
            ("exponential rate", self.exponential_rate, self.rate_interval),
            ("tail exponent", self.tail_exponent, self.exponent_interval),
        ):
            if value is not None:
                between = "" if interval is None else f" ({interval[0]:.4g} to {interval[1]:.4g})"
                parts.append(f"{words} {value:.4g}{between}")
        if self.finite_size_cutoff is not None:
            parts.append(f"finite-size cut-off at {self.finite_size_cutoff:.6g}")
        parts.append("established" if self.phases is None or self.established else self.phases.shortcoming())
        return ", ".join(parts) + f"; {how}" + (f"; note: {self.caveat}" if self.caveat else "")


def select_transition(
    t: ArrayLike,
    exponent: ArrayLike,
    index: ArrayLike,
    log_loss: ArrayLike,
    *,
    log_loss_start: float | None = None,
    thresholds: Thresholds | None = None,
    estimator: str,
    grid: str,
    time_unit: str,
) -> Transition:
    """The phases of a curve with exact p and q on a grid, and t_x by linear interpolation of q in log t where both phases are
    there.

    **Arguments**: `t (n,)` > 0 increasing, dense (20 points or more to a phase), n >= 5; `exponent`, `index`, `log_loss` (n,)
    on it,
    from whatever `estimator` says; `log_loss_start` = log L(0) when the grid begins later; `time_unit` says what one unit of t is
    in SGD steps. **Returns** a `Transition`. **Raises** `InputError` on NaN, unequal lengths, times that do not increase.
    """
    t, p, q, log_loss = _checked(t, exponent, index, log_loss)
    start = float(log_loss[0]) if log_loss_start is None else float(log_loss_start)
    phases = find_phases(t, p, q, log_loss, log_loss_start=start, thresholds=thresholds)
    common: dict[str, Any] = {
        "phases": phases, "thresholds": phases.thresholds, "estimator": estimator, "grid": grid, "time_unit": time_unit,
        "name": phases.name, "window": (float(t[0]), float(t[-1])), "fall": start - float(log_loss[-1]),
        "finite_size_cutoff": cutoff(t, q, phases),
    }  # fmt: skip
    both = phases.handover
    if both is None:
        return Transition(found=False, reason=refusal(phases, common["finite_size_cutoff"]), **common)
    t_x = crossing(t, q, both)
    depth = start - float(np.interp(np.log(t_x), np.log(t), log_loss))
    place = int(np.clip(np.searchsorted(t, t_x) - 1, 0, t.size - 2))
    return Transition(
        found=True, t_x=t_x, depth=depth, reason=acceptance(both, t_x), exponential_rate=both[0].rate,
        tail_exponent=both[1].exponent, conditioning=float((q[place + 1] - q[place]) / (t[place + 1] - t[place])), **common,
    )  # fmt: skip


def refusal(phases: Phases, end_of_power_law: float | None = None) -> str:
    """Why there is no t_x, in one sentence."""
    head = "no exponential-to-power transition"
    if phases.name == CONSTANT:
        return f"{head}: the loss is constant in the window"
    if not phases.counted("exponential"):
        head = "no exponential phase"
    more = "" if end_of_power_law is None else f"; a power law ends at its cut-off at t = {end_of_power_law:.6g}"
    return f"{head}: {phases.name}; {phases.why_not()}{more}"


def acceptance(both: tuple[Phase, Phase], t_x: float) -> str:
    """The two phases and t_x, in one sentence."""
    first, second = both
    return (
        f"exponential over {first.efolds:.3f} e-folds to t = {first.end:.6g}, q falls through 1/2 at t = {t_x:.7g}, "
        f"power law from {second.start:.6g} to {second.end:.6g} over {second.efolds:.3f} e-folds"
    )


def crossing(t: np.ndarray, q: np.ndarray, both: tuple[Phase, Phase] | tuple[Stretch, Stretch]) -> float:
    """The first down-crossing of q = 1/2 after the exponential phase has ended, linear in log t."""
    down = np.flatnonzero(
        (q[:-1] >= 0.5) & (q[1:] < 0.5) & (t[1:] >= both[0].end * (1 - 1e-12)) & (t[:-1] <= both[1].start)
    )
    if down.size == 0:  # q leaves the exponential upwards only between two grid points: the edge is the best there is
        return both[0].end
    i = int(down[0])
    share = (0.5 - q[i]) / (q[i + 1] - q[i])
    return float(t[i] * (t[i + 1] / t[i]) ** share)


def cutoff(t: np.ndarray, q: np.ndarray, phases: Phases) -> float | None:
    """Where q passes 1/2 upwards for good after a power law that counts, linear in log t."""
    laws = phases.counted("power law")
    if not laws or q[-1] <= 0.5:
        return None
    up = np.flatnonzero((q[:-1] < 0.5) & (q[1:] >= 0.5))
    i = int(up[-1]) if up.size else -1
    if i < 0 or t[i + 1] < laws[-1].end:
        return None
    share = (0.5 - q[i]) / (q[i + 1] - q[i])
    return float(t[i] * (t[i + 1] / t[i]) ** share)


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
    if not (np.diff(out["t"]) > 0).all() or out["t"][0] <= 0:
        raise InputError("t", expected="increasing times > 0", got="others", remedy="sort, drop duplicates and 0")
    return out["t"], out["exponent"], out["index"], out["log_loss"]


def _plain(value: Any) -> Any:
    """JSON-ready: numpy and JAX scalars to Python, what is not finite to None."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    number = float(value)
    return number if math.isfinite(number) else None
