"""A mean of laws fitted to the same runs, and how far a run that they were not fitted to will be from it.

    L = sum_l w_l L_l                                                    the forecast; w_l from `choose_law`
    half^2 = L^2 (z^2 (s_fit^2 + s_noise^2) + [unseen] (m^2 + away^2))     half the width of the 90 % interval, z = 1.645

s_fit: the block bootstrap of the fits. s_noise: their residual. m: what a law misses, `discrepancy`, in the heaviest law's eyes,
with constants that come from other people's runs: back-tests inside the fitted runs hardly tell the error elsewhere. away: for a
law without a noise term, its distance from the relaxing law, else 0.
One unit of tau is 1/eta SGD steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtri

from odescale.analysis.forecast.choice import Choice, choose_law
from odescale.analysis.forecast.discrepancy import SIZE, Discrepancy, discrepancy_of
from odescale.analysis.forecast.fit import LawFit, evaluate, fit_law
from odescale.analysis.forecast.laws import Course, course_of, law_named
from odescale.analysis.forecast.loss_curve import LossCurve
from odescale.errors import OutsideTheoryError

COVERED = "90 % intervals; on families of runs that had no part in setting them such intervals held 69 to 96 %"
"""Four families left out in turn: 93, 85, 96 and 86 %; a fifth: 69 % (docs/forecasting.md)."""
SAME_RATE = 0.02
"""Share of the peak by which two rates must differ to be two."""


class Parts(NamedTuple):
    """The forecast `loss` (n,) and what its interval is made of, relative to it: see the module. `reach`: m at `SIZE` = 1."""

    loss: Float[np.ndarray, " n"]
    fit: Float[np.ndarray, " n"]
    noise: float
    reach: Float[np.ndarray, " n"]
    away: Float[np.ndarray, " n"]

    def half(self, unseen: Bool[np.ndarray, " n"], size: float = SIZE) -> Float[np.ndarray, " n"]:
        """Half the width of the 90 % interval, relative to the forecast."""
        own = float(ndtri(0.95)) ** 2 * (self.fit**2 + self.noise**2)
        return np.sqrt(own + np.where(unseen, (size * self.reach) ** 2 + self.away**2, 0.0))


class LawMean(eqx.Module):
    """Laws fitted to the same runs: `weights` of those that forecast, by name; `fits` of these and of those that stand beside them.

    `fitted`: the runs. **Invariant**: weights are positive, sum to 1, and belong to fits with numbers.
    """

    fits: dict[str, LawFit]
    weights: dict[str, float]
    fitted: tuple[LossCurve, ...]

    def __check_init__(self) -> None:
        known = all(name in self.fits and np.isfinite(self.fits[name].rms) for name in self.weights)
        assert known and abs(sum(self.weights.values()) - 1) < 1e-9 and min(self.weights.values()) > 0

    @property
    def law(self) -> str:
        """The heaviest law."""
        return max(self.weights, key=self.weights.__getitem__)

    @property
    def name(self) -> str:
        """`relaxing`, or `relaxing (76 %), instant (24 %)`."""
        if len(self.weights) == 1:
            return self.law
        ordered = sorted(self.weights.items(), key=lambda pair: -pair[1])
        return ", ".join(f"{name} ({weight:.0%})" for name, weight in ordered)

    def alone(self, law: str) -> LawMean:
        """The same with one law that forecasts."""
        return LawMean(self.fits, {law: 1.0}, self.fitted)

    def discrepancy(self) -> Discrepancy:
        """What the heaviest law misses."""
        relaxing = self.fits.get("relaxing")
        speed = float("inf") if relaxing is None else float(relaxing.vector[-1])
        courses = [course_of(run, self.law) for run in self.fitted]
        return discrepancy_of(law_named(self.law), self.fits[self.law].vector, courses, speed)

    def parts(self, curve: LossCurve) -> Parts:
        """The forecast at the points of `curve` and what its interval is made of."""
        course = course_of(curve, self.law)
        loss, variance = np.zeros(course.tau.size), np.zeros(course.tau.size)
        for name, weight in self.weights.items():
            law, fit = law_named(name), self.fits[name]
            loss += weight * evaluate(law, course, fit.vector)
            if fit.draws.size:
                variance += weight * np.var([evaluate(law, course, v) for v in fit.draws], axis=0)
        noise = np.sqrt(sum(weight * self.fits[name].rms ** 2 for name, weight in self.weights.items()))
        if self.law == "chinchilla":  # a law of sizes: no schedule, no calibration, the interval is that of the fit
            return Parts(loss, np.sqrt(variance) / loss, float(noise), np.zeros(loss.size), np.zeros(loss.size))
        reach = self.discrepancy().reach(course)
        return Parts(loss, np.sqrt(variance) / loss, float(noise), reach, self._away(curve, course, loss))

    def _away(self, curve: LossCurve, course: Course, loss: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Relative distance of a law without a noise term from the relaxing law; refused where there is none and the rate moves."""
        if law_named(self.law).noisy:
            return np.zeros(loss.size)
        if "relaxing" in self.fits:
            return evaluate(law_named("relaxing"), course, self.fits["relaxing"].vector) / loss - 1
        known = np.concatenate([run.rate for run in self.fitted])
        top = max(float(known.max()), float(curve.rate.max()))
        moved = np.abs(curve.rate[:, None] - known).min(axis=1) > SAME_RATE * top
        if moved.any():
            raise OutsideTheoryError(
                "predict", expected=f"the fitted rates ({known.min():.3g} to {known.max():.3g})",
                got=f"{curve.name!r} at {curve.rate[moved][0]:.3g}, and fitted runs that identify no noise term",
                remedy="fit a run whose learning rate falls",
            )  # fmt: skip
        return np.zeros(loss.size)


def law_mean(
    runs: Sequence[LossCurve], *, law: str | None = None, choice: Choice | None = None, draws: int = 60, seed: int = 0
) -> LawMean:
    """The mean of the laws that `choose_law` keeps, or one `law` by name. The relaxing law stands beside, for the noise term.

    **Raises** `OutsideTheoryError`, "unidentified", where no law is left or the named one is not identified.
    """
    fits: dict[str, LawFit] = {}
    if law is None:
        choice = choose_law(runs, draws=draws, seed=seed) if choice is None else choice
        weights, fits = choice.weights, dict(choice.table.fits)
    else:
        weights, fits[law] = {law: 1.0}, fit_law(runs, law=law, draws=draws, seed=seed)
        fits[law].require()
    if "relaxing" not in fits and law != "chinchilla":
        fits["relaxing"] = fit_law(runs, law="relaxing", draws=0)
    return LawMean({name: fit for name, fit in fits.items() if np.isfinite(fit.rms)}, weights, tuple(runs))
