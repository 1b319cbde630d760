"""What a fitted table cannot tell: rows that do not belong to the law, exponents that the rows leave open, and why."""

from __future__ import annotations

from collections.abc import Mapping

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float
from scipy import special

from odescale.analysis.tables.forms import Form
from odescale.analysis.tables.robust import Problem, minimise

CUTOFF = 6.0
"""Normal deviations at which a row is no part of the law. Set on synthetic tables of 250 rows: the smallest whole number that
names less than half a row a table when the noise is Student's with 5 degrees of freedom (benchmarks/table_fits.py)."""
SPAN = 2.0
"""Largest over smallest value that a column needs for an exponent of its own."""
DISTINCT = 3
"""Values that a power law with a constant needs at least; values within 2 % count as one."""
ON_A_RAY = 1.5
"""N and D count as tied where exp of two standard deviations of log D off its line in log N is below this factor."""
EDGE = 0.05
"""Share of the rows that counts as the edge of a table, in tokens per parameter."""


class Outlier(eqx.Module):
    """`row` (from 0), `deviation`: log(loss/law) over its expected error, by the law of the other rows; `reason` in words."""

    row: int
    deviation: float
    reason: str = eqx.field(static=True)

    def __str__(self) -> str:
        return f"row {self.row}: {self.reason}"


def robust_scale(residual: Float[np.ndarray, " n"], parameters: int) -> float:
    """1.4826 median |r| without the `parameters` smallest: a fit of p numbers can pass through p rows."""
    size = np.sort(np.abs(residual))
    left = size[min(parameters, size.size - 1) :]
    return float(1.4826 * np.median(left))


def cutoff(rows: int, parameters: int, normal: float = CUTOFF) -> float:
    """Student's quantile with n - p degrees of freedom at the probability of `normal` deviations; inf without any."""
    free = rows - parameters
    return float(-special.stdtrit(free, special.ndtr(-normal))) if free > 0 else float("inf")


def find_outliers(
    problem: Problem,
    theta: Float[np.ndarray, "1 p"],
    weights: Float[np.ndarray, " n"],
    delta: float,
    normal: float = CUTOFF,
) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"], Float[np.ndarray, "1 p"]]:
    """(rows beyond the cutoff, deviation of every row, theta without them), repeated until the rows stay the same.

    Each deviation is over the robust scale of the rows that are kept, with the error of the law at that row: sqrt(1 - h) for rows
    that took part, sqrt(1 + h) for those left out, h = j (J^T J)^-1 j.
    """
    n, p = problem.log_loss.size, theta.shape[1]
    used = weights > 0
    out = np.zeros(n, bool)
    seen: list[bytes] = []
    deviation = np.zeros(n)
    while True:
        kept = used & ~out
        residual, jacobian = problem.residual(theta)
        r, j = -residual[0], jacobian[0]
        scale = robust_scale(r[kept], p)
        inverse = np.linalg.pinv((j[kept] * weights[kept, None]).T @ j[kept])
        leverage = np.einsum("ij,jk,ik->i", j, inverse, j)
        error = np.sqrt(np.where(kept, np.maximum(1 - weights * leverage, 0.05), 1 + leverage))
        # Losses are written with some digits: a perfect table has no outliers for rounding.
        deviation = r / (max(scale, 1e-9) * error)
        new = used & (np.abs(deviation) > cutoff(int(kept.sum()), p, normal))
        if new.tobytes() in seen or (new == out).all() or (used & ~new).sum() <= p + 2:
            return out, deviation, theta
        seen.append(new.tobytes())
        out = new
        theta = minimise(problem, theta, (weights * ~out)[None], delta).theta


def outlier_reasons(
    out: Bool[np.ndarray, " n"],
    deviation: Float[np.ndarray, " n"],
    residual: Float[np.ndarray, " n"],
    columns: Mapping[str, np.ndarray],
) -> tuple[Outlier, ...]:
    """The rows that are out, farthest first, each with its distance and whether it lies at the table's edge."""
    ratio = columns["tokens"] / columns["params"] if {"tokens", "params"} <= set(columns) else None
    rank = None if ratio is None else ratio.argsort().argsort() / max(ratio.size - 1, 1)
    found = []
    for row in np.flatnonzero(out)[np.argsort(-np.abs(deviation[out]))]:
        away = f"loss {np.expm1(residual[row]):+.2%} off the law of the others, {abs(deviation[row]):.0f} deviations"
        if ratio is not None and rank is not None and min(rank[row], 1 - rank[row]) <= EDGE:
            end = "lowest" if rank[row] < 0.5 else "highest"
            place = int(rank[row] * (ratio.size - 1)) if rank[row] < 0.5 else int((1 - rank[row]) * (ratio.size - 1))
            away += f"; {ratio[row]:.3g} tokens per parameter, number {place + 1} of the {end}"
        found.append(Outlier(int(row), float(deviation[row]), away))
    return tuple(found)


def why_tied(columns: Mapping[str, np.ndarray]) -> str:
    """Why N and D cannot be told apart, or nothing.

    On D = g N^c, c > 0, the law is E + A N^-alpha + B' N^-(c beta): a sum of two powers of one variable. Exchanging alpha with
    c beta changes nothing that was measured, and where they are close only their mean is seen (beta = 2 alpha for c = 1/2 is
    this artefact). For c < 0 (one compute budget) one power falls and one rises, and both are seen.
    """
    if not {"params", "tokens"} <= set(columns):
        return ""
    x, y = np.log(columns["params"]), np.log(columns["tokens"])
    if np.ptp(x) < np.log(SPAN) or np.ptp(y) < np.log(SPAN):
        return ""
    c = float(np.cov(x, y)[0, 1] / np.var(x, ddof=1))
    off = float(np.std(y - y.mean() - c * (x - x.mean())))
    if c > 0 and np.exp(2 * off) < ON_A_RAY:
        return f"params and tokens are tied, D ~ N^{c:.2f}: only the powers of one variable are seen; vary them apart"
    return ""


def why_open(
    form: Form,
    columns: Mapping[str, np.ndarray],
    values: Mapping[str, float],
    draws: Float[np.ndarray, "d p"],
    intervals: Mapping[str, tuple[float, float]],
) -> dict[str, str]:
    """Name -> why the rows do not determine it, for exponents and the amplitudes of their terms; what is determined is not in it.

    Where the rows cannot see an exponent at all, its amplitudes and the constant are open with it; where it is only wide, those
    of them are whose own interval is wider than twice the value.
    """
    reasons: dict[str, str] = {}
    slopes = form.log_slopes(np.array([[values[e.name] for e in form.exponents]]), columns)
    moves = np.abs(slopes).max(axis=tuple(range(slopes.ndim - 2))) > 0
    tied = why_tied(columns) if len(form.exponents) > 1 else ""
    doubts = {} if form.doubts is None else form.doubts(columns)
    for k, exponent in enumerate(form.exponents):
        name = exponent.name
        own = [j for j in range(len(form.amplitudes)) if moves[j, k]]
        low, high = intervals[name]
        reason = doubts.get(name, "") or _why_flat(form, columns, name)
        if not reason and tied:
            reason = tied
        dead = [form.amplitudes[j] for j in own if values[form.amplitudes[j]] <= 0]
        if not reason and dead:
            reason = f"the term of {dead[0]} vanishes in the best fit"
        share = max((float(np.mean(draws[:, j] <= 0)) for j in own), default=0.0)
        if not reason and share > 0.05:
            reason = f"its term vanishes in {share:.0%} of the resampled tables"
        unseen = bool(reason)
        if not reason and not 1.02 * exponent.low < values[name] < 0.98 * exponent.high:
            reason = f"the best value is the end of its range, {exponent.low:g} to {exponent.high:g}"
        if not reason and (low < 1.02 * exponent.low or high > 0.98 * exponent.high):
            reason = f"the interval {low:.3g} to {high:.3g} reaches the end of the range"
        if not reason and high - low > 2 * values[name]:
            reason = f"the interval {low:.3g} to {high:.3g} is wider than twice the value"
        if reason:
            reasons[name] = reason
            constant = [form.constant] if form.constant else []
            for other in [*(form.amplitudes[j] for j in own), *constant]:
                wide = intervals[other][1] - intervals[other][0] > 2 * values[other]
                if unseen or wide:
                    reasons.setdefault(other, f"with {name}")
    return reasons


def _why_flat(form: Form, columns: Mapping[str, np.ndarray], name: str) -> str:
    """Why the column that an exponent alone belongs to has no span; chosen by the form's slopes, so for plain powers only."""
    k = [e.name for e in form.exponents].index(name)
    ones = {key: np.array([1.0, 1.0]) for key in columns}
    moved = []
    for key in columns:
        probe = form.log_slopes(np.ones((1, len(form.exponents))), ones | {key: np.array([1.0, 2.0])})
        if np.abs(np.diff(probe.reshape(2, len(form.amplitudes), -1)[..., k], axis=0)).max() > 0:
            moved.append(key)
    if len(moved) != 1:
        return ""
    values = np.sort(columns[moved[0]])
    distinct = 1 + int(np.sum(np.diff(np.log(values)) > 0.02))
    if distinct == 1:
        return f"{moved[0]} has one value only, {values[0]:.3g}"
    if distinct < DISTINCT:
        return f"{moved[0]} has {distinct} different values, {DISTINCT} are needed"
    if values[-1] / values[0] < SPAN:
        return f"{moved[0]} spans a factor {values[-1] / values[0]:.2f} only, {SPAN:g} are needed"
    return ""
