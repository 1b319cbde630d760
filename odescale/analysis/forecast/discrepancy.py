"""What a fitted law misses of other runs: a Gaussian process of its discrepancy, seen through the fit.

    log L = log L_law(theta) + delta(x) + noise,     x = (log tau/ell_tau, n/(n_peak ell_n))
    E delta(x) delta(x') = c^2 exp(-|x - x'|^2/2),   c ~ S^(1/2),  S = (max L_law - min L_law)/min L_law at the fitted points
    E (delta(x) - w . delta)^2 = c^2 (1 - 2 w . k + w . K w),     w = J(x) (J^T J)^-1 J^T

No law is exact: the loss leaves it by a smooth, unknown delta of relative size c. The fit follows a part of that, w . delta, with J
the derivatives of log L by the law's parameters at the fitted points; what it does not follow at x is the error of a forecast. It
grows with the distance from the fitted points in intrinsic time and in the noise term n (that of the relaxing law, over its value
at the peak rate), and with the leverage of the few points that a parameter hangs on.

Kennedy and O'Hagan, J. R. Stat. Soc. B 63, 425 (2001), with the law as regression part (universal kriging). Neither c nor the
lengths can be read off the fitted runs: `SIZE` and `LENGTHS` are from other people's (docs/forecasting.md). Whether c follows the
loss or its fall S L, these leave open; the square root scores best.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from odescale.analysis.forecast.fit import evaluate
from odescale.analysis.forecast.laws import Course, Law, law_named

SIZE = 0.0198
"""Times the square roots above, half the width that holds nine cases of ten on five families: c and the quantile in one."""
LENGTHS = (1.5, 0.5)
"""ell_tau in e-folds of tau, ell_n in units of the noise at the peak rate: least interval score on the same families."""
MOST_POINTS = 120
"""Fitted points that stand for all of them."""
LEAST_VALUE = 1e-4
"""Singular values of J, columns of length 1, below this share of the largest say nothing."""


class Discrepancy(NamedTuple):
    """`response` (parameters, n): (J^T J)^-1 J^T at the fitted points; `place` (n, 2): log tau and n/n_peak there.

    `free`: which parameters of the law may move (an amplitude at 0 may not). `speed`, `peak`: of the noise coordinate; `fall`: S.
    """

    law: Law
    vector: Float[np.ndarray, " parameters"]
    free: np.ndarray
    response: Float[np.ndarray, "free n"]
    place: Float[np.ndarray, "n 2"]
    speed: float
    peak: float
    fall: float

    def reach(self, course: Course, lengths: Sequence[float] = LENGTHS) -> Float[np.ndarray, " m"]:
        """(S (1 - 2 w . k + w . K w))^(1/2) at the points of a course."""
        scale = np.asarray(lengths)
        weights = log_slopes(self.law, course, self.vector)[:, self.free] @ self.response
        here, known = coordinates(course, self.speed, self.peak) / scale, self.place / scale
        near = np.exp(-0.5 * ((here[:, None] - known) ** 2).sum(axis=2))
        among = np.exp(-0.5 * ((known[:, None] - known) ** 2).sum(axis=2))
        square = 1 - 2 * (weights * near).sum(axis=1) + ((weights @ among) * weights).sum(axis=1)
        return np.sqrt(self.fall * np.maximum(square, 0.0))


def discrepancy_of(
    law: Law, vector: Float[np.ndarray, " parameters"], courses: Sequence[Course], speed: float
) -> Discrepancy:
    """The fit's response to a discrepancy at the points of the fitted `courses`; `speed`: C of the relaxing law, inf for none."""
    peak = max(float(course.grid_rate.max()) for course in courses)
    slopes = np.concatenate([log_slopes(law, course, vector) for course in courses])
    place = np.concatenate([coordinates(course, speed, peak) for course in courses])
    free = np.array([i >= len(law.linear) or value > 0 for i, value in enumerate(vector)])
    kept = np.unique(np.linspace(0, len(place) - 1, MOST_POINTS).round().astype(int))
    loss = np.concatenate([evaluate(law, course, vector) for course in courses])
    fall = float((loss.max() - loss.min()) / loss.min())
    return Discrepancy(law, vector, free, _pseudo_inverse(slopes[kept][:, free]), place[kept], speed, peak, fall)


def coordinates(course: Course, speed: float, peak: float) -> Float[np.ndarray, "n 2"]:
    """log tau and n/n_peak at the points: n of the relaxing law of that speed with B = 1, the rate itself for an infinite one."""
    noise = course.rate
    if np.isfinite(speed):
        noise = evaluate(law_named("relaxing"), course, np.array([0.0, 0.0, 1.0, 1.0, speed]))
    return np.stack([np.log(course.tau), noise / peak], axis=1)


def log_slopes(
    law: Law, course: Course, vector: Float[np.ndarray, " parameters"], step: float = 1e-3
) -> Float[np.ndarray, "n parameters"]:
    """d log L/d theta: by the amplitudes, and by the searched parameters or their logarithms."""
    loss, count, columns = evaluate(law, course, vector), len(law.linear), []
    for i in range(vector.size):
        up, down = vector.copy(), vector.copy()
        if i < count:
            up[:count], down[:count] = np.eye(count)[i], 0.0
            columns.append(evaluate(law, course, up) / loss)
            continue
        search = law.searched[i - count]
        inward = search.inward(float(vector[i]))
        up[i], down[i] = search.outward(inward + step), search.outward(inward - step)
        columns.append((evaluate(law, course, up) - evaluate(law, course, down)) / (2 * step * loss))
    return np.stack(columns, axis=1)


def _pseudo_inverse(slopes: Float[np.ndarray, "n free"]) -> Float[np.ndarray, "free n"]:
    length = np.linalg.norm(slopes, axis=0)
    length = np.where(length > 0, length, 1.0)
    return np.linalg.pinv(slopes / length, rcond=LEAST_VALUE) / length[:, None]
