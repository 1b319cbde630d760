"""The phases of a sampled curve: a training run, several seeds, or a theory sampled where the run was."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from odescale.analysis.phases.contest import AIC_GAP, UNDECIDED, Contest, hold_contest
from odescale.analysis.phases.exponents import bin_curve, check_curve, grid_in_words
from odescale.analysis.phases.intervals import (
    equal_terms,
    handover_interval,
    handover_time,
    term_interval,
    term_value,
)
from odescale.analysis.phases.record import Transition, acceptance, cutoff, refusal
from odescale.analysis.phases.shapes import MODELS
from odescale.analysis.phases.stretches import CONSTANT, Thresholds
from odescale.errors import InputError, require_number

# A curve that falls by less than this many e-folds is called constant: its p and q are rounding or noise.
LEAST_FALL = 1e-3


def find_transition_curve(
    t: ArrayLike,
    loss: ArrayLike,
    *,
    stderr: ArrayLike | None = None,
    thresholds: Thresholds | None = None,
    irreducible: float = 0.0,
    window: tuple[float, float] | None = None,
    loss_start: float | None = None,
    aic_gap: float = AIC_GAP,
    model: str | None = None,
    seed: int = 0,
    time_unit: str = "t",
) -> Transition:
    """The phases of a curve known at points, by a contest of models, and t_x where an exponential hands over to a power law.

    Eighteen sums of exponentials, power laws (with their start times), cut-off and stretched exponentials, escapes from a
    saddle and a
    floor are fitted to log L on equal terms, with noise that has a memory (`contest`). The answer is the name of the best one's
    phases, if no model of another name comes within `aic_gap` in AIC and the name survives the errors of the fit; else "cannot be
    told apart" with the names in question. t_x is where q = dlog p/dlog t of that model falls through 1/2; its parameters are
    `exponential_rate` and `tail_exponent`.

    **Arguments**: `t (n,)` increasing, in any unit, said in `time_unit` (with what one unit is in SGD steps); `loss (n,)` or
    `(seeds, n)`, whose mean over seeds is analysed and whose scatter tells the noise; more than 400 points are averaged in bins of
    log t. `stderr (n,)`: relative weights of the points. `thresholds`: from what length on a phase counts, see `Thresholds`.
    `irreducible` is subtracted: wrong by 4 % of L(t_x) it moves t_x by 5 to 10 %. `window` = (from, to) in t. `loss_start`: L(0),
    `irreducible` included, for the depth. `model`: fit this one alone, e.g. the `model` of a run's answer on the theory at the same
    points, so that the two differ by more than the estimator. `seed`: of the draws over the errors of the fit.

    **Intervals**: 95 %, from noise with the memory of the residuals (of the seeds, if there are several) and from the spread
    over the
    models that share the name; they hold the estimate by construction. They know nothing of a curve that is none of the models:
    `rms` against the noise is the test of that, and `caveat` says when it fails.

    **Returns** `Transition`; `found` False with the reason when there is none. **Raises** `InputError` on NaN, losses
    not above `irreducible`, unsorted or repeated times, fewer than 8 points.
    """
    limits = Thresholds() if thresholds is None else thresholds
    if model is not None and model not in MODELS:
        raise InputError("model", expected=f"one of {', '.join(MODELS)}", got=model, remedy="leave it out")
    require_number("aic_gap", aic_gap)
    curve = _prepare(t, loss, stderr, irreducible, window)
    start = _log_start(loss_start, irreducible, curve)
    common: dict[str, Any] = {
        "thresholds": limits, "grid": curve.grid, "time_unit": time_unit, "window": (float(curve.t[0]), float(curve.t[-1])),
        "fall": start - float(curve.log_mean[-1]),
    }  # fmt: skip
    if np.ptp(curve.log_mean) < LEAST_FALL:
        reason = "no exponential-to-power transition: the loss is constant in the window"
        return Transition(
            found=False, name=CONSTANT, phases=None, reason=reason, estimator="contest of models", **common
        )
    several = len(curve.rows) > 1 and bool((curve.rows > 0).all())
    contest = hold_contest(
        curve.t, curve.log_mean, deviations=np.log(curve.rows) - curve.log_mean if several else None,
        scale=None if curve.stderr is None else np.maximum(curve.stderr / np.exp(curve.log_mean), 1e-12),
        log_loss_start=None if loss_start is None else start, thresholds=limits, gap=aic_gap, seed=seed, only=model,
    )  # fmt: skip
    return _answer(contest, curve, start, common, several, alone=model is not None)


def _answer(
    contest: Contest, curve: _Curve, start: float, common: dict[str, Any], several: bool, alone: bool
) -> Transition:
    best = contest.best
    dense = np.geomspace(curve.t[0], curve.t[-1], 600)
    log_loss, _, q = best.exponent_and_index(dense)
    common |= {
        "estimator": f"fit of the model '{best.model}' to log L, memory {best.memory:.2f}, rms {best.rms:.2g}",
        "model": best.model, "weights": {k: round(w, 6) for k, w in contest.weights.items() if w >= 1e-6},
        "aic_gap": None if alone or not np.isfinite(contest.gap) else contest.gap,
        "contenders": contest.contenders, "deciding": contest.deciding,
    }  # fmt: skip
    if not alone and not contest.decided:
        names = " and ".join(f"'{name}'" for name in contest.contenders[:3])
        reason = f"no exponential-to-power transition can be claimed: {names} {UNDECIDED}; {contest.deciding}"
        return Transition(found=False, name=UNDECIDED, phases=None, reason=reason, **common)
    phases = best.phases
    common |= {"phases": phases, "name": phases.name, "finite_size_cutoff": cutoff(dense, q, phases), "contenders": ()}
    t_x = handover_time(best)
    both = phases.handover
    if both is None or t_x is None:
        return Transition(found=False, reason=refusal(phases, common["finite_size_cutoff"]), **common)
    interval = handover_interval(contest)
    if interval is not None:
        common["interval"] = (min(interval[0], t_x), max(interval[1], t_x))
        quantile = float(special.stdtrit(contest.degrees, 0.975))
        common["stderr"] = t_x * (np.log(interval[1]) - np.log(interval[0])) / (2 * quantile)
    first, second = best.terms[0], best.terms[1] if len(best.terms) > 1 else ""
    rate, beta = term_value(best, first, "k"), term_value(best, second, "beta")
    place = int(np.clip(np.searchsorted(dense, t_x) - 1, 0, dense.size - 2))
    noise = (
        "scatter of the seeds" if several else "residuals of one curve, which know nothing of the scatter between seeds"
    )
    return Transition(
        found=True, t_x=t_x, reason=acceptance(both, t_x), depth=start - float(np.interp(np.log(t_x), np.log(dense), log_loss)),
        exponential_rate=both[0].rate if rate is None else rate, rate_interval=term_interval(contest, first, "k"),
        tail_exponent=both[1].exponent if beta is None else beta, exponent_interval=term_interval(contest, second, "beta"),
        t_eq=equal_terms(best), conditioning=float((q[place + 1] - q[place]) / (dense[place + 1] - dense[place])),
        caveat=f"intervals from the {noise}" + _misfit(contest, curve, several), **common,
    )  # fmt: skip


def _misfit(contest: Contest, curve: _Curve, several: bool) -> str:
    """Words where the residuals are larger, or more alike among neighbours, than noise alone would leave them."""
    best = contest.best
    if several:
        noise = np.sqrt(np.mean((np.log(curve.rows) - curve.log_mean) ** 2) / (len(curve.rows) - 1))
        if best.rms > 2 * noise > 0:
            return f"; the model misses the curve by {best.rms:.2g} in log L, {best.rms / noise:.1f} times the error of the mean"
    elif best.memory > 0.9:
        return f"; neighbouring residuals are correlated by {best.memory:.2f}: slow noise, or a curve of another form"
    return ""


class _Curve(eqx.Module):
    """A checked curve: excess losses on t > 0 inside the window, binned if long."""

    t: np.ndarray
    rows: np.ndarray
    log_mean: np.ndarray
    stderr: np.ndarray | None
    grid: str


def _prepare(t, loss, stderr, irreducible: float, window: tuple[float, float] | None) -> _Curve:
    times, rows = check_curve(t, loss, irreducible=irreducible)
    inside = times > 0
    if window is not None:
        inside &= (times >= window[0]) & (times <= window[1])
    if int(inside.sum()) < 8:
        raise InputError("window", expected="at least 8 points inside", got=int(inside.sum()), remedy="widen it")
    raw, error = int(inside.sum()), None
    if stderr is not None:
        error = np.asarray(stderr, dtype=float)
        if error.shape != times.shape or not np.isfinite(error).all() or (error < 0).any() or not error.max() > 0:
            raise InputError("stderr", expected=f"{times.size} finite errors >= 0, not all 0",
                             got=f"shape {error.shape}", remedy="leave it out")  # fmt: skip
        error = error[inside]
    short, binned = bin_curve(times[inside], rows[:, inside])
    if error is not None and short.size < raw:
        # Neighbouring errors of one run are correlated: averaging them in a bin makes them no smaller.
        error = bin_curve(times[inside], error[None])[1][0]
    seeds = rows.shape[0]
    return _Curve(short, binned, np.log(binned.mean(axis=0)), error, grid_in_words(short, seeds, raw))


def _log_start(loss_start: float | None, irreducible: float, curve: _Curve) -> float:
    if loss_start is None:
        return float(curve.log_mean[0])
    if not (np.isfinite(loss_start) and loss_start > irreducible):
        raise InputError("loss_start", expected="finite, above irreducible", got=loss_start, remedy="pass L(0)")
    return float(np.log(loss_start - irreducible))
