"""Forecast of loss curves by run, schedule and horizon from a law fitted to other runs, with intervals and baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float

from odescale.analysis.forecast.choice import Choice
from odescale.analysis.forecast.fit import LawFit, evaluate, fit_law
from odescale.analysis.forecast.law_mean import COVERED, SAME_RATE, LawMean, law_mean
from odescale.analysis.forecast.laws import course_of, law_named
from odescale.analysis.forecast.loss_curve import LossCurve
from odescale.errors import InputError

BASELINES = ("power_tau", "one_third")
HORIZONS = (0.25, 0.5, 0.75, 1.0)


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
    """Forecasts of several `runs` by one `mean` of laws; `fit`, the heaviest of them."""

    mean: LawMean
    runs: tuple[RunForecast, ...]

    @property
    def fit(self) -> LawFit:
        return self.mean.fits[self.mean.law]

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
            *(str(self.mean.fits[name]) for name in self.mean.weights),
            f"forecast by {self.mean.name}; {COVERED}",
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

    **The 90 % interval** adds three parts in quadrature (`law_mean` has the formula): the block bootstrap of the fit, its
    residual, and, where the learning-rate history is unseen, what laws miss. That last part is calibrated on other people's
    runs, not on these: `COVERED` says what such intervals held on families that had no part in it.

    One run is enough where it identifies a law: a decay, a step-down, a cosine. One unit of tau is 1/eta SGD steps.

    **Raises** `OutsideTheoryError`, "unidentified", as `choose_law`; and for a law without a noise term whose runs cannot carry
    one, asked for another rate. **Failure regime**: a schedule unlike all fitted ones (constant from cosines alone: too high by
    .02 to .05), tau more than ten times beyond the fit.
    """
    runs = (fit_on,) if isinstance(fit_on, LossCurve) else tuple(fit_on)
    others = (predict,) if isinstance(predict, LossCurve) else tuple(predict)
    if not others:
        raise InputError("predict", expected="at least one LossCurve", got=others, remedy="pass the run to forecast")
    mean = law_mean(runs, law=law, choice=choice, draws=draws, seed=seed)
    rivals = {name: mean.fits.get(name) or fit_law(runs, law=name, draws=0) for name in baselines}
    return Forecast(mean, tuple(_one(mean, rivals, runs, curve) for curve in others))


def _one(mean: LawMean, rivals: dict[str, LawFit], runs: Sequence[LossCurve], curve: LossCurve) -> RunForecast:
    unseen = unseen_part(runs, curve)
    parts = mean.parts(curve)
    half = parts.half(unseen) * parts.loss
    beside = {n: evaluate(law_named(n), course_of(curve, n), f.vector) for n, f in rivals.items()}
    truth = None if curve.planned else curve.loss
    return RunForecast(
        curve.name, curve.step, curve.tau, parts.loss, parts.loss - half, parts.loss + half, unseen, beside, truth
    )


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
