"""A run that is still going: a look at its log gives a forecast of the final loss, its spikes, and whether an earlier one holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np

from odescale.analysis.forecast.loss_curve import LossCurve, planned_curve
from odescale.analysis.forecast.predict import RunForecast, forecast
from odescale.analysis.forecast.spikes import LEAST_ROWS, Spikes, find_spikes
from odescale.clock import ConstantSchedule, parse_schedule
from odescale.compare.log_report import first_step, thinned
from odescale.errors import InputError, OdescaleError
from odescale.logs.read import TrainingLog

POINTS = 100


class Look(eqx.Module):
    """One refresh. `final`: (step, loss, low, high) of the forecast or None, then `reason` says why; `rate`: what was
    assumed of it.

    `not_finite`: the step from which on the loss is NaN or infinite to the end, or None.
    `spikes`: or None while there are too few rows. `left`: step from which on the logged loss left the 90 % interval of the
    earlier forecast `held`, or None.
    """

    log: TrainingLog
    final: tuple[float, float, float, float] | None
    reason: str = eqx.field(static=True)
    rate: str = eqx.field(static=True)
    spikes: Spikes | None
    forecast: RunForecast | None
    left: float | None
    not_finite: float | None = None

    @property
    def diverged_at(self) -> float | None:
        """The step from which on the loss is no number, or else grows to the end beyond what its noise explains; or None."""
        if self.not_finite is not None:
            return self.not_finite
        return None if self.spikes is None else self.spikes.diverged_at

    @property
    def diverged(self) -> bool:
        """Whether the loss grows to the end beyond what its noise explains, or is no number."""
        return self.diverged_at is not None

    def line(self) -> str:
        """The refresh in one line of a terminal."""
        words = [f"step {self.log.step[-1]:g}", f"loss {self.log.loss[-1]:.4g}"]
        if self.final is None:
            words.append(f"no forecast: {self.reason}")
        else:
            step, loss, low, high = self.final
            words.append(f"at step {step:g} {loss:.4g} ({low:.4g} to {high:.4g})")
        if self.spikes is not None and self.spikes.spikes:
            words.append(f"{len(self.spikes.spikes)} spikes, the last at step {self.spikes.spikes[-1].first_step:g}")
        if self.diverged_at is not None:
            words.append(f"DIVERGED from step {self.diverged_at:g} on")
        if self.left is not None:
            words.append(f"left the earlier forecast at step {self.left:g}")
        return "; ".join(words)

    def record(self) -> dict[str, Any]:
        """Plain numbers, for JSON and for the next look."""
        spikes = [] if self.spikes is None else self.spikes.spikes
        return {
            "step": float(self.log.step[-1]), "loss": float(self.log.loss[-1]), "rows": int(self.log.step.size),
            "final": None if self.final is None else dict(zip(("step", "loss", "low", "high"), self.final, strict=True)),
            "reason": self.reason, "rate": self.rate, "diverged_at": self.diverged_at,
            "left": self.left,
            "spikes": [{k: getattr(s, k) for k in ("first_step", "last_step", "height", "cost", "returned")} for s in spikes],
        }  # fmt: skip


def look(
    log: TrainingLog,
    final_step: float,
    *,
    finished: Sequence[TrainingLog] = (),
    schedule: str | None = None,
    law: str | None = None,
    held: Sequence[tuple[float, float, float]] = (),
    not_finite: float | None = None,
) -> Look:
    """L(final_step) of a run that is at `log.step[-1]`, from a law fitted to its rows so far and to `finished` runs.

    **Arguments**: `final_step` in SGD steps. `schedule`: the whole run's learning rate as a text of `odescale.schedules`, in
    units of the
    peak that was logged; None holds the last logged rate to the end, which is said. `finished`: runs fitted together with this
    one. `held`: (step, low, high) of an earlier forecast, held against the rows since.
    `not_finite`: the step from which on the logged loss is no number; a `TrainingLog` holds finite rows only.

    **Returns** `Look`; without a rate, with too few rows, or where no law is identified, `final` is None and `reason` says why.
    One unit of tau is 1/eta SGD steps. **Errors**: `InputError` for a final step that is no number beyond the first row.
    """
    if not np.isfinite(final_step) or final_step <= log.step[0]:
        raise InputError(
            "final_step",
            expected=f"a step beyond {log.step[0]:g}",
            got=final_step,
            remedy="the last SGD step of the run",
        )
    spikes = None
    if log.step.size >= LEAST_ROWS:
        spikes = find_spikes(log.step, log.loss, tau=None if log.learning_rate is None else log.tau(), name=log.name)
    rate = "as scheduled" if schedule else "held at its last value to the end"
    found, reason = None, ""
    try:
        if log.learning_rate is None:
            raise InputError(
                "learning_rate", expected="a learning rate in the log", got=None, remedy="name its column or value"
            )
        curves = [thinned(one).curve() for one in (log, *finished)]
        start = first_step(curves)
        fitted = tuple(curve.between(start, np.inf) for curve in curves)
        found = forecast(
            fitted, _rest(curves[0], max(start, float(curves[0].step[0])), final_step, schedule), law=law
        ).runs[0]
    except OdescaleError as error:
        reason = str(error)
    final = None
    if found is not None:
        final = (float(found.step[-1]), float(found.loss[-1]), float(found.low[-1]), float(found.high[-1]))
    return Look(log, final, reason, rate, spikes, found, _left(log, held), not_finite)


def band(found: RunForecast | None) -> list[tuple[float, float, float]]:
    """(step, low, high) of a forecast, to be held against the rows that come."""
    return [] if found is None else list(zip(found.step.tolist(), found.low.tolist(), found.high.tolist(), strict=True))


def _left(log: TrainingLog, held: Sequence[tuple[float, float, float]]) -> float | None:
    """The first step from which on three rows in a row, and the last, are outside the earlier interval."""
    if not held:
        return None
    step, low, high = np.array(held).T
    inside = (log.step >= step[0]) & (log.step <= step[-1])
    if inside.sum() < 3:
        return None
    at, loss = log.step[inside], log.loss[inside]
    out = (loss < np.interp(at, step, low)) | (loss > np.interp(at, step, high))
    if not out[-3:].all():
        return None
    last_in = np.flatnonzero(~out)
    return float(at[last_in[-1] + 1 if last_in.size else 0])


def _rest(curve: LossCurve, start: float, final: float, schedule: str | None) -> LossCurve:
    """The run to its end: logged rates, then the schedule's or the last one; forecast at points from `start` on."""
    steps, rates, _ = curve.grid
    steps, rates = np.asarray(steps, dtype=float), np.asarray(rates, dtype=float)
    keep = (steps > 0) & (steps <= final)
    steps, rates = steps[keep], rates[keep]
    if steps[-1] < final:
        more = np.linspace(steps[-1], final, POINTS + 1)[1:]
        middle = 0.5 * (more + np.concatenate([[steps[-1]], more[:-1]]))
        if schedule is None:
            later = np.full(more.size, rates[-1])
        else:
            form = ConstantSchedule() if schedule == "constant" else parse_schedule(schedule)
            later = rates.max() * np.array([float(form(m)) for m in middle])
        steps, rates = np.concatenate([steps, more]), np.concatenate([rates, later])
    at = steps[steps >= start]
    at = np.unique(np.concatenate([at[:: max(1, at.size // POINTS)], at[-1:]]))
    return planned_curve(curve.name, steps, rates, at)
