"""The transition of one curve as a few numbers: what a sweep keeps of each of many members, at a sixth of the work of the record.

The answer is that of `select_transition`: the same cut into phases, the same crossing of q = 1/2; without text, medians and rates.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from odescale.analysis.phases.curves import find_transition_curve
from odescale.analysis.phases.record import Transition, crossing
from odescale.analysis.phases.stretches import CONSTANT, Cutter, Thresholds

FEWEST = 8
"""Valid output times t > 0 below which nothing is said."""


class TransitionCode(IntEnum):
    """Whether there is a t_x, and if not, what is missing."""

    ESTABLISHED = 0
    NAMED = 1
    NO_EXPONENTIAL = 2
    NO_POWER_LAW = 3
    NOT_NEXT = 4
    CONSTANT = 5
    TOO_FEW = 6
    UNDECIDED = 7


MEANINGS = {
    TransitionCode.ESTABLISHED: "an exponential phase hands over to a power law, both long enough to be relied on",
    TransitionCode.NAMED: "an exponential phase hands over to a power law, one of them too short to be relied on",
    TransitionCode.NO_EXPONENTIAL: "no exponential phase that counts",
    TransitionCode.NO_POWER_LAW: "an exponential phase, no power law that counts",
    TransitionCode.NOT_NEXT: "no power law follows an exponential phase directly",
    TransitionCode.CONSTANT: "the loss does not fall in the window",
    TransitionCode.TOO_FEW: "fewer than eight valid output times",
    TransitionCode.UNDECIDED: "the points do not tell apart models with and without one",
}


class TransitionNumbers(NamedTuple):
    """`t_x` (units of t), `depth` = log L(0)/L(t_x) in e-folds, both NaN where there is none, and a `TransitionCode`."""

    t_x: float
    depth: float
    code: int


def transition_numbers(
    t: Float[np.ndarray, " n"],
    loss: Float[np.ndarray, " n"],
    exponent: Float[np.ndarray, " n"],
    index: Float[np.ndarray, " n"],
    valid: Bool[np.ndarray, " n"],
    thresholds: Thresholds | None = None,
) -> TransitionNumbers:
    """t_x from p and q at the output times, linear in log t between them: see `select_transition`.

    **Failure regime**: the error of t_x is that of the interpolation, up to a tenth of the distance of two output times where q
    falls steeply; more output times make it small, `find_transition` of one member is exact.
    """
    limits = Thresholds() if thresholds is None else thresholds
    keep = np.asarray(valid) & (t > 0) & (loss > 0) & np.isfinite(exponent) & np.isfinite(index)
    if np.count_nonzero(keep) < FEWEST:
        return _missing(TransitionCode.TOO_FEW)
    times, q, log_loss = t[keep], index[keep], np.log(loss[keep])
    first = float(loss[np.flatnonzero(valid)[0]])
    start = math.log(first) if first > 0 else float(log_loss[0])  # a start may be without risk
    name, stretches = Cutter(times, exponent[keep], q, log_loss, start, limits, None).stretches()
    counted = [stretch for stretch in stretches if stretch.counts]
    for first, second in zip(counted[:-1], counted[1:], strict=True):
        if first.kind == "exponential" and second.kind == "power law":
            t_x = crossing(times, q, (first, second))
            depth = start - float(np.interp(math.log(t_x), np.log(times), log_loss))
            both = first.established and second.established
            return TransitionNumbers(t_x, depth, TransitionCode.ESTABLISHED if both else TransitionCode.NAMED)
    return _missing(_lacking(name, {stretch.kind for stretch in counted}))


def fitted_transition_numbers(
    t: Float[np.ndarray, " n"],
    loss: Float[np.ndarray, " n"],
    valid: Bool[np.ndarray, " n"],
    thresholds: Thresholds | None = None,
) -> TransitionNumbers:
    """The same for a loss that is an average over nodes: of the model that fits the points, as `find_transition` does there."""
    keep = np.asarray(valid) & (t > 0) & (loss > 0)
    if np.count_nonzero(keep) < FEWEST:
        return _missing(TransitionCode.TOO_FEW)
    start = float(loss[np.flatnonzero(valid)[0]])
    return numbers_of(find_transition_curve(t[keep], loss[keep], loss_start=start, thresholds=thresholds))


def numbers_of(transition: Transition) -> TransitionNumbers:
    """The numbers of a record."""
    if transition.found and transition.t_x is not None:
        code = TransitionCode.ESTABLISHED if transition.established else TransitionCode.NAMED
        depth = math.nan if transition.depth is None else transition.depth
        return TransitionNumbers(transition.t_x, depth, code)
    if transition.phases is None:
        return _missing(TransitionCode.UNDECIDED)
    kinds = {phase.kind for phase in transition.phases.counted()}
    return _missing(_lacking(transition.name, kinds))


def _lacking(name: str, kinds: set) -> TransitionCode:
    if name == CONSTANT:
        return TransitionCode.CONSTANT
    if "exponential" not in kinds:
        return TransitionCode.NO_EXPONENTIAL
    return TransitionCode.NOT_NEXT if "power law" in kinds else TransitionCode.NO_POWER_LAW


def _missing(code: TransitionCode) -> TransitionNumbers:
    return TransitionNumbers(math.nan, math.nan, code)
