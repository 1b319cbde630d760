"""Forecast of loss curves by run, schedule and horizon from a law fitted to other runs, with intervals and baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm

from odescale.analysis.forecast.choice import Choice, choose_law, model_bias
from odescale.analysis.forecast.fit import LawFit, evaluate, fit_law
from odescale.analysis.forecast.laws import course_of, law_named
from odescale.analysis.forecast.loss_curve import LossCurve
from odescale.errors import InputError

BASELINES = ("power_tau", "one_third")
HORIZONS = (0.25, 0.5, 0.75, 1.0)
SAME_RATE = 0.02


class RunForecast(eqx.Module):
    """The forecast of one run.

    - `step`, `tau`, `loss`, `low`, `high` (n,): the law's loss with its 90 % interval for a logged loss.
    - `unseen` (n,): True where the learning-rate history differs from that of every fitted run. Elsewhere a forecast repeats a fit.
    - `baselines`: other laws' losses (n,), fitted to the same runs. `truth` (n,), or None for a planned run.
    """

    name: str = eqx.field(static=True)
    step: Float[np.ndarray, " n"]
    tau: Float[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]
    unseen: Bool[np.ndarray, " n"]
    baselines: dict[str, Float[np.ndarray, " n"]]
    truth: Float[np.ndarray, " n"] | None

    def errors(self, law: str | None = None) -> dict[str, float]:
        """`mean_absolute`, `r2`, and `unseen`, the mean absolute error on unseen segments (NaN without); `law`: a baseline."""
        if self.truth is None:
            raise InputError(
                "truth", expected="a run with losses", got=f"{self.name!r}, planned", remedy="compare a run that exists"
            )
        miss = self.truth - (self.loss if law is None else self.baselines[law])
        spread = float(np.sum((self.truth - self.truth.mean()) ** 2))
        unseen = float(np.abs(miss[self.unseen]).mean()) if self.unseen.any() else float("nan")
        return {
            "mean_absolute": float(np.abs(miss).mean()),
            "r2": 1 - float(miss @ miss) / spread if spread > 0 else float("nan"),
            "unseen": unseen,
        }  # fmt: skip

    def at_horizons(self, horizons: Sequence[float] = HORIZONS) -> list[dict[str, Any]]:
        """The logged points at these shares of the unseen part (of the run, if all is seen): forecast, interval, truth, covered."""
        rows, places = [], np.flatnonzero(self.unseen) if self.unseen.any() else np.arange(self.step.size)
        for share in horizons:
            i = int(places[round(share * (places.size - 1))])
            row: dict[str, Any] = {
                "run": self.name, "horizon": share, "step": float(self.step[i]), "loss": float(self.loss[i]),
                "low": float(self.low[i]), "high": float(self.high[i]), "unseen": bool(self.unseen[i]),
            }  # fmt: skip
            if self.truth is not None:
                row |= {
                    "truth": float(self.truth[i]), "error": float(abs(self.truth[i] - self.loss[i])),
                    "covered": bool(self.low[i] <= self.truth[i] <= self.high[i]),
                }  # fmt: skip
            rows.append(row)
        return rows


class Forecast(eqx.Module):
    """Forecasts of several runs from one fit: `runs`, the `fit`, its relative model `bias`, and `choice` (None where the caller
    named the law)."""

    fit: LawFit
    bias: float
    runs: tuple[RunForecast, ...]
    choice: Choice | None

    def __getitem__(self, name: str) -> RunForecast:
        for run in self.runs:
            if run.name == name:
                return run
        raise InputError("name", expected=f"one of {', '.join(r.name for r in self.runs)}", got=name, remedy="pick one")

    def errors(self, law: str | None = None) -> dict[str, float]:
        """Means over the runs with losses of `RunForecast.errors`."""
        rows = [run.errors(law) for run in self.runs if run.truth is not None]
        return {key: float(np.nanmean([r[key] for r in rows])) for key in ("mean_absolute", "r2", "unseen")}

    def at_horizons(self, horizons: Sequence[float] = HORIZONS) -> list[dict[str, Any]]:
        """All runs' rows."""
        return [row for run in self.runs for row in run.at_horizons(horizons)]

    def __str__(self) -> str:
        lines = [
            str(self.fit),
            "run                    mean |error|     R2     unseen   " + "  ".join(self.runs[0].baselines),
        ]
        for run in self.runs:
            if run.truth is None:
                lines.append(
                    f"{run.name:22s} planned: {run.loss[-1]:.4f} ({run.low[-1]:.4f} to {run.high[-1]:.4f}) at the end"
                )
                continue
            e = run.errors()
            rest = "  ".join(f"{run.errors(law)['mean_absolute']:.4f}" for law in run.baselines)
            lines.append(f"{run.name:22s} {e['mean_absolute']:10.4f} {e['r2']:10.4f} {e['unseen']:8.4f}   {rest}")
        return "\n".join(lines)


def forecast(
    fit_on: LossCurve | Sequence[LossCurve],
    predict: LossCurve | Sequence[LossCurve],
    *,
    law: str | None = None,
    choice: Choice | None = None,
    baselines: Sequence[str] = BASELINES,
    draws: int = 60,
    seed: int = 0,
) -> Forecast:
    """L(t) of other runs of the same network and batch, from the law fitted to `fit_on`.

    **Arguments**: `fit_on`, `predict`: `LossCurve`s; a planned run has losses NaN and its schedule. `law`: None lets
    `choose_law` pick one of the theory's; it never sees `predict`. `choice`: made already, of the same runs. `baselines`: laws
    fitted to the same runs, for comparison, identified or not.

    **The 90 % interval** is +- 1.645 s around the forecast,

        s^2 = s_fit^2 + max(s_noise^2, [unseen] bias^2 (1 + h)),

    s_fit the block bootstrap of the fit, s_noise the residual of the fit, bias the geometric mean of the candidates' errors in
    cross-validation (whole runs and last segments left out inside `fit_on`), h = log(tau/last fitted tau) >= 0: the variance of the
    bias doubles with an e-fold of tau. The bias acts only where the learning-rate history is unseen.

    **Raises** `OutsideTheoryError`, "unidentified", as `choose_law`. **Failure regime**: a schedule unlike all fitted ones
    (constant from cosines alone: too high by .02 to .05), tau more than ten times beyond the fit.
    """
    runs = (fit_on,) if isinstance(fit_on, LossCurve) else tuple(fit_on)
    others = (predict,) if isinstance(predict, LossCurve) else tuple(predict)
    if not others:
        raise InputError("predict", expected="at least one LossCurve", got=others, remedy="pass the run to forecast")
    if law is None:
        choice = choose_law(runs, draws=draws, seed=seed) if choice is None else choice
        fit, bias = choice.fit, choice.bias
    else:
        choice = None
        fit = fit_law(runs, law=law, draws=draws, seed=seed)
        fit.require()
        bias = model_bias(runs, law)
    rivals = {name: fit_law(runs, law=name, draws=0) for name in baselines}
    made = tuple(_one(fit, bias, rivals, runs, curve) for curve in others)
    return Forecast(fit, bias, made, choice)


def interval(
    fit: LawFit, curve: LossCurve, bias: float, unseen: Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """(forecast, low, high), 90 %: see `forecast`."""
    law, course = law_named(fit.law), course_of(curve, fit.law)
    middle = evaluate(law, course, fit.vector)
    spread = np.std([evaluate(law, course, v) for v in fit.draws], axis=0) if fit.draws.size else np.zeros(middle.size)
    ahead = np.maximum(np.log(course.tau / fit.end_tau), 0.0)
    grown = bias * np.sqrt(1 + ahead)
    own = np.maximum(fit.rms, np.where(unseen, grown, 0.0)) * middle
    half = float(norm.ppf(0.95)) * np.sqrt(spread**2 + own**2)
    return middle, middle - half, middle + half


def _one(
    fit: LawFit, bias: float, rivals: dict[str, LawFit], runs: Sequence[LossCurve], curve: LossCurve
) -> RunForecast:
    unseen = unseen_part(runs, curve)
    if not np.isfinite(bias):
        raise InputError(
            "fit_on", expected="runs of which a part can be left out", got="none: no cross-validated bias",
            remedy="pass two runs with different schedules, or a longer one",
        )  # fmt: skip
    middle, low, high = interval(fit, curve, bias, unseen)
    beside = {n: evaluate(law_named(n), course_of(curve, n), f.vector) for n, f in rivals.items()}
    truth = None if curve.planned else curve.loss
    return RunForecast(curve.name, curve.step, curve.tau, middle, low, high, unseen, beside, truth)


def unseen_part(runs: Sequence[LossCurve], curve: LossCurve) -> Bool[np.ndarray, " n"]:
    """True from the first step on at which the rate differs by 2 % of the peak from that of every run, or no run goes on."""
    shared = 0.0
    for run in runs:
        (own_step, own, _), (step, rate, _) = run.grid, curve.grid
        start, last = max(own_step[0], step[0], min(run.step[0], curve.step[0])), min(own_step[-1], step[-1])
        both = np.union1d(own_step, step)
        both = both[(both > start) & (both <= last)]
        first = own[np.searchsorted(own_step, both)]
        second = rate[np.searchsorted(step, both)]
        differs = np.abs(first - second) > SAME_RATE * max(own.max(), rate.max())
        shared = max(shared, float(both[differs][0]) if differs.any() else float(np.nextafter(last, np.inf)))
    return curve.step >= shared
