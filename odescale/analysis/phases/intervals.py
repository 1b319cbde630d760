"""Numbers of a contest's best model with their intervals: rate, exponent, and the time of the hand-over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from scipy import special

from odescale.analysis.phases.contest import Contest, CurveFit, stem
from odescale.analysis.phases.shapes import TERMS, derivatives, evaluate


def term_value(fit: CurveFit, term: str, name: str) -> float | None:
    """A parameter (`k`, `beta`, `g`) of the first term of this kind of a fitted model; None without one."""
    place = _place(fit.terms, term, name)
    return None if place is None else float(np.exp(fit.vector[place]))


def _place(terms: Sequence[str], term: str, name: str) -> int | None:
    place = 0
    for one in terms:
        if one == term and f"log_{name}" in TERMS[one]:
            return place + TERMS[one].index(f"log_{name}")
        place += len(TERMS[one])
    return None


def term_interval(contest: Contest, term: str, name: str, level: float = 0.95) -> tuple[float, float] | None:
    """Interval of a positive parameter of the best model: log x +- Student quantile times its standard error,
    between models included.
    """
    found = _place(contest.best.terms, term, name)
    if found is None:
        return None
    values = [term_value(fit, term, name) for fit in _allies(contest)]
    return _interval(contest, contest.best.vector[found], contest.covariance[found, found], values, level)


def handover_interval(contest: Contest, level: float = 0.95) -> tuple[float, float] | None:
    """Interval of t_x: log t_x +- Student quantile times sqrt(g^T covariance g), g = dlog t_x/d(parameters), between
    models included.
    """
    fit = contest.best
    centre = handover_time(fit)
    if centre is None:
        return None
    scales = np.sqrt(np.maximum(np.diag(contest.covariance), 0.0))
    gradient = np.zeros(fit.vector.size)
    for i, scale in enumerate(scales):
        h = max(1e-4 * scale, 1e-7)
        moved = [handover_time(fit, fit.vector + sign * h * np.eye(scales.size)[i]) for sign in (1, -1)]
        if moved[0] is None or moved[1] is None:
            return None
        gradient[i] = (np.log(moved[0]) - np.log(moved[1])) / (2 * h)
    variance = float(gradient @ contest.covariance @ gradient)
    return _interval(contest, np.log(centre), variance, [handover_time(ally) for ally in _allies(contest)], level)


def _allies(contest: Contest) -> list[CurveFit]:
    """The models of the best one's name."""
    return [fit for fit in contest.fits if stem(fit.phases.name) == stem(contest.best.phases.name)]


def _interval(contest: Contest, centre: float, variance: float, values: list[float | None], level: float):
    """Centre +- quantile sqrt(variance + sum_m w_m (log x_m - centre)^2), w the Akaike weights of the models of one name.

    Source: S. T. Buckland, K. P. Burnham and N. H. Augustin, Biometrics 53 (1997) 603.
    """
    known = [(fit.aic, np.log(x)) for fit, x in zip(_allies(contest), values, strict=True) if x is not None and x > 0]
    if known:
        aic, logs = np.array(known).T
        weights = np.exp(-0.5 * np.minimum(aic - aic.min(), 1400.0))
        variance += float(weights @ (logs - centre) ** 2 / weights.sum())
    half = float(special.stdtrit(contest.degrees, 0.5 + level / 2)) * np.sqrt(max(variance, 0.0))
    return float(np.exp(centre - half)), float(np.exp(centre + half))


def handover_time(fit: CurveFit, vector: np.ndarray | None = None) -> float | None:
    """t_x of a fitted curve: the first down-crossing of q = 1/2 after the exponential has ended."""
    both = fit.phases.handover
    if both is None:
        return None
    v = fit.vector if vector is None else vector

    def above(x: np.ndarray) -> np.ndarray:
        return derivatives(fit.terms, v, np.exp(x))[2] - 0.5

    # A little before the end of the exponential: another vector may end it earlier.
    x = np.linspace(np.log(both[0].end) - 0.3, np.log(both[1].start) + 0.1, 200)
    gap = above(x)
    down = np.flatnonzero((gap[:-1] >= 0) & (gap[1:] < 0))
    if down.size == 0:
        return None
    return float(np.exp(scipy.optimize.brentq(lambda at: float(above(np.array([at]))[0]), x[down[0]], x[down[0] + 1])))


def equal_terms(fit: CurveFit) -> float | None:
    """t_eq where the first term and the power law are equal: the last time at which the first is the larger; None without both."""
    if len(fit.terms) < 2 or fit.terms[0] not in ("exponential", "escape") or fit.terms[1] not in ("power", "cutoff"):
        return None
    width = len(TERMS[fit.terms[0]])

    def gap(x: float) -> float:
        t = np.array([np.exp(x)])
        first = evaluate(fit.terms[:1], fit.vector[:width], t)[0]
        second = evaluate(fit.terms[1:2], fit.vector[width : width + len(TERMS[fit.terms[1]])], t)[0]
        return float(first[0] - second[0])

    both = fit.phases.handover
    if both is None:
        return None
    x = np.linspace(np.log(both[0].end) - 1.0, np.log(both[1].end), 200)
    values = np.array([gap(one) for one in x])
    down = np.flatnonzero((values[:-1] > 0) & (values[1:] <= 0))
    return float(np.exp(scipy.optimize.brentq(gap, x[down[-1]], x[down[-1] + 1]))) if down.size else None
