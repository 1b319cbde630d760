"""Phases of a training log, in intrinsic time and away from warm-up and from changes of the learning rate.

    tau = sum of learning rates up to a step

A power law in steps is none in tau once the learning rate decays, and the other way round: what q does there is the schedule's.
So only the stretch after warm-up on which the learning rate stays within 20 % of its peak is looked at.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np

from odescale.analysis.phases.curves import find_transition_curve
from odescale.analysis.phases.record import Transition
from odescale.analysis.phases.stretches import Thresholds
from odescale.logs.read import TrainingLog

MOST_CHANGE = 0.2
"""Relative change of the learning rate that makes a stretch one of the schedule."""
LEAST_POINTS = 8


class LogPhases(eqx.Module):
    """The phases of one log. `transition`: in `clock` ("tau" or "steps"), over `window` (steps); None with the `reason`.

    `rows`: the stretches of the whole log in order, as dictionaries (phase, from step, to step, e-folds, exponent, counts), with
    "warm-up" and "schedule" where nothing is claimed.
    """

    transition: Transition | None
    clock: str
    window: tuple[float, float]
    t_x_step: float | None
    t_x_interval: tuple[float, float] | None
    rows: tuple[dict[str, Any], ...]
    reason: str

    def sentence(self) -> str:
        """The phases in words, with the steps between which they were looked for."""
        where = f"steps {self.window[0]:.6g} to {self.window[1]:.6g}"
        if self.transition is None:
            return f"phases not looked for: {self.reason}"
        found = self.transition
        if found.t_x is None:
            if found.phases is None:
                return f"{found.reason} ({where})"
            return f"{found.name} ({where})"
        between = (
            "" if self.t_x_interval is None else f" (95 %: {self.t_x_interval[0]:.4g} to {self.t_x_interval[1]:.4g})"
        )
        kept = "" if found.established or found.phases is None else f"; {found.phases.shortcoming()}"
        return f"{found.name}, handing over at step {self.t_x_step:.4g}{between}{kept} ({where})"


def phases_of_log(log: TrainingLog, *, thresholds: Thresholds | None = None, irreducible: float = 0.0) -> LogPhases:
    """The phases of one run, by `find_transition_curve` in intrinsic time where the learning rate is known, in steps elsewhere."""
    kept = log.step > 0
    step, loss = log.step[kept], log.loss[kept]
    first, last, clock, t = 0, step.size, "steps", step
    warmed = float(step[0])
    if log.learning_rate is not None:
        rate = log.learning_rate[kept]
        # A single spike of the logged rate is no peak.
        peak = float(np.quantile(rate, 0.99))
        if peak > 0:
            first = int(np.argmax(rate >= (1 - MOST_CHANGE) * peak))
            left = np.flatnonzero(rate[first:] < (1 - MOST_CHANGE) * peak)
            last = first + (int(left[0]) if left.size else step.size - first)
            clock, t = "tau", log.tau()[kept]
            warmed = float(step[first])
    unit = "SGD steps of the log" if clock == "steps" else "intrinsic time tau = sum of learning rates"
    window = (warmed, float(step[last - 1]))
    around = _around(step, first, last)
    inside = slice(first, last)
    positive = t[inside] > 0
    if int(positive.sum()) < LEAST_POINTS:
        before = f"after warm-up before the learning rate leaves its peak by {MOST_CHANGE:.0%}"
        reason = f"{int(positive.sum())} points {before}, {LEAST_POINTS} are needed"
        return LogPhases(None, clock, window, None, None, around, reason)
    found = find_transition_curve(
        t[inside][positive], loss[inside][positive], thresholds=thresholds, irreducible=irreducible, time_unit=unit
    )

    def to_step(value: float) -> float:
        return float(np.interp(value, t, step))

    phases = [] if found.phases is None else found.phases.list
    rows = [
        {
            "phase": phase.kind if phase.counts else "between", "from step": to_step(phase.start), "to step": to_step(phase.end),
            "e-folds": phase.efolds, "exponent p": phase.exponent if phase.kind == "power law" and phase.counts else None,
        }
        for phase in phases
    ]  # fmt: skip
    if not rows:
        rows = [
            {
                "phase": found.name,
                "from step": window[0],
                "to step": window[1],
                "e-folds": found.fall,
                "exponent p": None,
            }
        ]
    before = [row for row in around if row["phase"] == "warm-up"]
    after = [row for row in around if row["phase"] == "schedule"]
    interval = None if found.interval is None else (to_step(found.interval[0]), to_step(found.interval[1]))
    at = None if found.t_x is None else to_step(found.t_x)
    return LogPhases(found, clock, window, at, interval, (*before, *rows, *after), "")


def _around(step: np.ndarray, first: int, last: int) -> tuple[dict[str, Any], ...]:
    """The stretches before and after the one that is looked at."""
    rows = []
    if first > 0:
        rows.append({"phase": "warm-up", "from step": float(step[0]), "to step": float(step[first])})
    if last < step.size:
        rows.append({"phase": "schedule", "from step": float(step[last - 1]), "to step": float(step[-1])})
    return tuple(row | {"e-folds": None, "exponent p": None} for row in rows)
