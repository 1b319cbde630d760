"""Whether the answer holds when rows leave: outliers, one stretch of compute after the other, the largest runs."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from odescale.analysis.tables.projection import grid_starts
from odescale.analysis.tables.result import HeldOut
from odescale.analysis.tables.robust import Problem, minimise

MOVED = 1.0
"""Standard errors by which the rows called outliers may move an exponent before the answer with them is unstable."""
SCALES = 5
"""Stretches of compute, equal in rows, that are left out one by one."""
PAIRS = 120
"""Resampled tables that are refitted without each stretch; with fewer than half of them drawn, nothing is said."""
DISAGREE = 4.5
"""Deviations by which an exponent may move without one stretch (of the move in resampled tables of the same law)."""
LEAST_HELD_OUT = 3
"""Rows of the largest compute that are left out and predicted at least."""


def full_fit(
    problem: Problem, held: Float[np.ndarray, " n"], delta: float, starts: int
) -> tuple[Float[np.ndarray, "1 p"], float, float, bool]:
    """(theta of the best minimum over all starts, its cost, share of the starts that reach it, whether it is a minimum)."""
    theta = grid_starts(problem, held, starts)
    found = minimise(problem, theta, np.repeat(held[None], theta.shape[0], axis=0), delta)
    same = found.cost <= found.cost.min() * (1 + 1e-4) + 1e-18
    place = int(np.argmin(np.where(same & found.converged, found.cost, found.cost + found.cost.max())))
    place = place if same[place] else int(np.argmin(found.cost))
    return found.theta[place][None], float(found.cost[place]), float(same.mean()), bool(found.converged[place])


def unstable_with(
    problem: Problem, out: Bool[np.ndarray, " n"], held: Float[np.ndarray, " n"], best: Float[np.ndarray, "1 p"],
    without: Float[np.ndarray, "1 p"], delta: float, seed: int,
) -> list[str]:  # fmt: skip
    """Exponents that the outliers move by more than `MOVED` standard errors of the fit without them."""
    if not out.any():
        return []
    reasons = []
    rows = np.flatnonzero((held > 0) & ~out)
    rng = np.random.default_rng(seed)
    counts = np.zeros((200, held.size))
    counts[:, rows] = rng.multinomial(rows.size, np.full(rows.size, 1 / rows.size), size=200) * held[rows]
    found = minimise(problem, np.repeat(without, 200, axis=0), counts, delta, path=(3.0, 1.0))
    error = problem.values(found.theta).std(axis=0, ddof=1)
    with_them, alone = problem.values(best)[0], problem.values(without)[0]
    for k, exponent in enumerate(problem.form.exponents, len(problem.form.amplitudes)):
        if abs(with_them[k] - alone[k]) > MOVED * error[k]:
            reasons.append(
                f"{exponent.name} is {with_them[k]:.4g} with the {int(out.sum())} outliers and {alone[k]:.4g} +- "
                f'{error[k]:.2g} without them: leave_out="outliers", or mend the rows'
            )
    return reasons


def scales_disagree(
    problem: Problem, size: Float[np.ndarray, " n"], held: Float[np.ndarray, " n"], best: Float[np.ndarray, "1 p"],
    counts: Float[np.ndarray, "d n"], drawn: Float[np.ndarray, "d p"], delta: float,
) -> list[str]:  # fmt: skip
    """Exponents that move when one stretch of compute is left out, by more than they do in tables resampled from the same rows.

    The move d = phi(without) - phi is compared with the scatter of the same difference over pairs of fits to resampled tables: a
    test of the form (Hausman, Econometrica 46 (1978) 1251), because under the right law every stretch says the same.
    """
    rows = np.flatnonzero(held > 0)
    p, m = drawn.shape[1], len(problem.form.amplitudes)
    reasons: list[str] = []
    if drawn.shape[0] < PAIRS / 2:
        return reasons
    for stretch in np.array_split(rows[np.argsort(size[rows], kind="stable")], SCALES):
        kept = held > 0
        kept[stretch] = False
        if int(kept.sum()) < 2 * p:
            return []
        theta = np.concatenate([best, drawn[:PAIRS]])
        weights = np.concatenate([held[None], counts[:PAIRS]]) * kept
        found = minimise(problem, theta, weights, delta, path=(3.0, 1.0))
        moved = (problem.values(found.theta) - problem.values(theta))[:, m:]
        low, high = np.quantile(moved[1:], [0.16, 0.84], axis=0)
        scatter = np.maximum(0.5 * (high - low), 1e-6 * problem.values(best)[0, m:])
        for k, exponent in enumerate(problem.form.exponents):
            if abs(moved[0, k]) > DISAGREE * scatter[k]:
                value = problem.values(best)[0, m + k]
                reasons.append(
                    f"{exponent.name} moves from {value:.4g} to {value + moved[0, k]:.4g} without the {stretch.size} runs from "
                    f"{size[stretch].min():.3g} to {size[stretch].max():.3g} FLOP, {abs(moved[0, k]) / scatter[k]:.0f} deviations: "
                    "the form does not hold over the whole table"
                )
    return reasons


def hold_out(
    problem: Problem, size: Float[np.ndarray, " n"], held: Float[np.ndarray, " n"], delta: float, starts: int
) -> HeldOut | None:
    """The rows within a factor 2 of the largest compute, three at least, predicted by a fit to the others."""
    used = held > 0
    third = np.sort(size[used])[-min(LEAST_HELD_OUT, int(used.sum()))]
    largest = used & (size >= min(size[used].max() / 2, third))
    left = used & ~largest
    if int(left.sum()) < len(problem.form.names) + 2:
        return None
    theta = full_fit(problem, held * left, delta, starts)[0]
    rows = np.flatnonzero(largest)
    values = dict(zip(problem.form.names, map(float, problem.values(theta)[0]), strict=True))
    return HeldOut(rows, -problem.residual(theta)[0][0][rows], values)
