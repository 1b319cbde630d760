"""Phases of a training log, in intrinsic time and away from warm-up and from changes of the learning rate.

    tau = sum of learning rates up to a step

A power law in steps is none in tau once the learning rate decays, and the other way round: what q does there is the schedule's.
So only the stretch after warm-up on which the learning rate stays within 20 % of its peak is looked at; and of that only what
comes before the loss begins to rise for good, for every phase is one of a falling loss.
"""

from __future__ import annotations

import re
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
RISE_IN_NOISE = 5.0
"""A rise counts from this multiple of the scatter of neighbouring points on, and from `Thresholds.flat` e-folds on."""


def in_steps(value: float) -> str:
    """A step as the report prints it everywhere: whole numbers in full, others in six digits or to the step."""
    return f"{value:.0f}" if float(value).is_integer() or abs(value) >= 1e5 else f"{value:.6g}"


class LogPhases(eqx.Module):
    """The phases of one log. `transition`: in `clock` ("tau" or "steps"), over `window` (steps); None with the `reason`.

    `rows`: the stretches of the whole log in order, as dictionaries (phase, from step, to step, e-folds, exponent), with "warm-up"
    and "schedule" where nothing is claimed, and "rising" from `rises_from` on, where the loss rises to the end of the window.
    """

    transition: Transition | None
    clock: str
    window: tuple[float, float]
    t_x_step: float | None
    t_x_interval: tuple[float, float] | None
    rows: tuple[dict[str, Any], ...]
    reason: str
    rises_from: float | None = None

    def sentence(self) -> str:
        """The phases in words, with the steps between which they were looked for."""
        where = f"steps {in_steps(self.window[0])} to {in_steps(self.window[1])}"
        found = self.transition
        if found is None:
            return f"phases not looked for: {self.reason}"
        rising = "" if self.rises_from is None else f"; the loss rises from step {in_steps(self.rises_from)} on"
        if found.t_x is None or self.t_x_step is None:
            words = self.own_clock(found.reason) if found.phases is None else found.name
            return f"{words} ({where}){rising}"
        between = ""
        if self.t_x_interval is not None:
            between = f" (95 %: {' to '.join(map(in_steps, self.t_x_interval))})"
        kept = "" if found.established or found.phases is None else f"; {found.phases.shortcoming()}"
        return f"{found.name}, handing over at step {in_steps(self.t_x_step)}{between}{kept} ({where}){rising}"

    def own_clock(self, words: str) -> str:
        """Sentences of `find_transition_curve`, which calls every time t, with the name of the clock that it was given."""
        return words if self.clock == "steps" else re.sub(r"\bt(_x)? = ", r"tau\1 = ", words)


def phases_of_log(log: TrainingLog, *, thresholds: Thresholds | None = None, irreducible: float = 0.0) -> LogPhases:
    """The phases of one run, by `find_transition_curve` in intrinsic time where the learning rate is known, in steps elsewhere."""
    kept = log.step > 0
    step, loss = log.step[kept], log.loss[kept]
    first, last, clock, t = 0, step.size, "steps", step
    if log.learning_rate is not None:
        rate = log.learning_rate[kept]
        # A single spike of the logged rate is no peak.
        peak = float(np.quantile(rate, 0.99))
        if peak > 0:
            first = int(np.argmax(rate >= (1 - MOST_CHANGE) * peak))
            left = np.flatnonzero(rate[first:] < (1 - MOST_CHANGE) * peak)
            last = first + (int(left[0]) if left.size else step.size - first)
            clock, t = "tau", log.tau()[kept]
    # A warm-up that was told and reaches into the log.
    if log.warmup_steps is not None and log.warmup_steps < step[-1]:
        first = max(first, int(np.searchsorted(step, log.warmup_steps)))
        last = max(last, first)
    end, rises_from = last, None
    if last - first >= LEAST_POINTS:
        lowest = _rises(np.log(loss[first:last] - irreducible), (thresholds or Thresholds()).flat)
        if lowest is not None:
            last = first + lowest + 1
            rises_from = float(step[last - 1])
    unit = "SGD steps of the log" if clock == "steps" else "intrinsic time tau = sum of learning rates"
    window = (float(step[first]), float(step[max(last - 1, first)]))
    around = _around(step, first, end, last, loss - irreducible)
    inside = slice(first, last)
    positive = t[inside] > 0
    if int(positive.sum()) < LEAST_POINTS:
        until = f"before the learning rate leaves its peak by {MOST_CHANGE:.0%}" if clock == "tau" else ""
        if rises_from is not None:
            until = f"before the loss rises, from step {in_steps(rises_from)} on"
        reason = " ".join(filter(None, (f"{int(positive.sum())} points after warm-up", until)))
        return LogPhases(None, clock, window, None, None, around, f"{reason}, {LEAST_POINTS} are needed", rises_from)
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
    after = [row for row in around if row["phase"] != "warm-up"]
    interval = None if found.interval is None else (to_step(found.interval[0]), to_step(found.interval[1]))
    at = None if found.t_x is None else to_step(found.t_x)
    return LogPhases(found, clock, window, at, interval, (*before, *rows, *after), "", rises_from)


def _rises(log_loss: np.ndarray, least: float) -> int | None:
    """Where log L is lowest, in the mean over some neighbours, if it rises from there to the end by more than noise; else None."""
    width = 2 * (log_loss.size // 100) + 5
    middle = np.median(np.lib.stride_tricks.sliding_window_view(log_loss, width), axis=1)
    scatter = float(np.median(np.abs(np.diff(log_loss)))) / (0.6745 * np.sqrt(2))
    lowest = int(np.argmin(middle))
    rise = float(middle[-1] - middle[lowest])
    return None if rise < max(least, RISE_IN_NOISE * scatter) else lowest + width // 2


def _around(step: np.ndarray, first: int, end: int, last: int, loss: np.ndarray) -> tuple[dict[str, Any], ...]:
    """The stretches before and after the one that is looked at, [first, last), which ends before `end` where the loss rises."""
    rows = []
    if first > 0:
        rows.append({"phase": "warm-up", "from step": float(step[0]), "to step": float(step[first]), "e-folds": None})
    if last < end:
        fall = float(np.log(loss[last - 1] / loss[end - 1]))
        rows.append(
            {"phase": "rising", "from step": float(step[last - 1]), "to step": float(step[end - 1]), "e-folds": fall}
        )
    if end < step.size:
        begin = float(step[max(end - 1, first)])
        if begin < step[-1]:
            rows.append({"phase": "schedule", "from step": begin, "to step": float(step[-1]), "e-folds": None})
    return tuple(row | {"exponent p": None} for row in rows)
