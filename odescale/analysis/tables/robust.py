"""Huber fits of one form to many weighted copies of a table at once: damped Gauss-Newton steps, each copy with its own damping.

    min_theta sum_i w_i rho_delta(log L(x_i; theta) - log L_i),  rho_delta(r) = r^2/2 up to delta, delta (|r| - delta/2) beyond

theta: logarithms of the amplitudes, each relative to the mean of its term's logarithm over the rows, and of the exponents.
"""

from __future__ import annotations

from collections.abc import Mapping

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float

from odescale.analysis.tables.forms import Form

VANISHED = 1e-9
"""Least share of the loss that an amplitude is followed to: there it counts as zero."""
TOLERANCE = 1e-4
"""Largest component of the gradient at a minimum, in units of that component's own sampling error over the rows."""
ROUNDING = 1e-8
"""Scatter of log L that a table is never believed to fall short of, so that rows on the law itself have a minimum too."""
PATH = (30.0, 10.0, 3.0, 1.0)
"""Multiples of delta on the way: the minimum at a larger one is the start of the next."""
BLOCK = 250
"""Copies that are moved at once: their arrays stay in the cache."""


class Problem(eqx.Module):
    """A form on the rows of a table: `columns` of the form, `log_loss` (n,), bounds of theta `low`, `high` (p,)."""

    form: Form = eqx.field(static=True)
    columns: Mapping[str, np.ndarray]
    log_loss: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " p"]
    high: Float[np.ndarray, " p"]

    @property
    def terms(self) -> int:
        """m, the number of amplitudes."""
        return len(self.form.amplitudes)

    def residual(self, theta: Float[np.ndarray, "d p"]) -> tuple[Float[np.ndarray, "d n"], Float[np.ndarray, "d n p"]]:
        """r = log L(theta) - log L (d, n) and dr/dtheta (d, n, p)."""
        m, form = self.terms, self.form
        exponents = np.exp(theta[:, m:])
        logs = form.log_terms(exponents, self.columns)
        z = theta[:, None, :m] + (logs - logs.mean(axis=-2, keepdims=True))
        top = z.max(axis=-1, keepdims=True)
        share = np.exp(z - top)
        total = share.sum(axis=-1, keepdims=True)
        share /= total
        log_sum = (top + np.log(total))[..., 0]
        slopes = form.log_slopes(exponents, self.columns)
        slopes = slopes - slopes.mean(axis=-3, keepdims=True)
        jacobian = np.empty((*log_sum.shape, theta.shape[1]))
        jacobian[..., :m] = share
        for k in range(exponents.shape[-1]):
            jacobian[..., m + k] = np.sum(share * slopes[..., k], axis=-1) * exponents[:, None, k]
        if form.power is None:
            return log_sum - self.log_loss, jacobian
        power = np.asarray(form.power(exponents))[:, None]
        jacobian *= power[..., None]
        # The amplitudes' scale moves with the exponents here: no centred derivative, log_sum itself is what p multiplies.
        for k in range(exponents.shape[-1]):
            moved = [exponents.copy() for _ in range(2)]
            for sign, values in zip((1, -1), moved, strict=True):
                values[:, k] *= 1 + sign * 1e-5
            slope = (np.asarray(form.power(moved[0])) - np.asarray(form.power(moved[1]))) / 2e-5
            jacobian[..., m + k] += slope[:, None] * log_sum
        return power * log_sum - self.log_loss, jacobian

    def values(self, theta: Float[np.ndarray, "d p"]) -> Float[np.ndarray, "d p"]:
        """Amplitudes and exponents in the form's own units; an amplitude at its lower bound is 0."""
        m = self.terms
        exponents = np.exp(theta[:, m:])
        centre = self.form.log_terms(exponents, self.columns).mean(axis=-2)
        gone = theta[:, :m] <= self.low[:m] + 1e-12
        return np.concatenate([np.where(gone, 0.0, np.exp(theta[:, :m] - centre)), exponents], axis=1)

    def theta(self, values: Float[np.ndarray, "d p"]) -> Float[np.ndarray, "d p"]:
        """The inverse of `values`, within the bounds."""
        m = self.terms
        values = np.asarray(values, float)
        centre = self.form.log_terms(values[:, m:], self.columns).mean(axis=-2)
        with np.errstate(divide="ignore"):
            theta = np.concatenate([np.log(values[:, :m]) + centre, np.log(values[:, m:])], axis=1)
        return np.clip(theta, self.low, self.high)


def problem_of(form: Form, columns: Mapping[str, np.ndarray], loss: Float[np.ndarray, " n"]) -> Problem:
    """The problem of a form on the rows of `columns` and `loss`."""
    log_loss = np.log(loss)
    # A term's amplitude is its geometric mean over the rows; with p it is that of L^(1/p), which no fixed bound fits.
    wide = 60.0 if form.power else -np.log(VANISHED)
    low = np.concatenate(
        [np.full(len(form.amplitudes), log_loss.mean() - wide), [np.log(e.low) for e in form.exponents]]
    )
    high = np.concatenate(
        [
            np.full(len(form.amplitudes), log_loss.max() + (wide if form.power else 1.0)),
            [np.log(e.high) for e in form.exponents],
        ]
    )
    return Problem(form, columns, log_loss, low, high)


class Minima(eqx.Module):
    """`theta` (d, p), `cost` (d,): the sum of rho; `gradient` (d,): its largest component in sampling errors; `converged` (d,)."""

    theta: Float[np.ndarray, "d p"]
    cost: Float[np.ndarray, " d"]
    gradient: Float[np.ndarray, " d"]
    converged: Bool[np.ndarray, " d"]


def minimise(
    problem: Problem,
    start: Float[np.ndarray, "d p"],
    weights: Float[np.ndarray, "d n"],
    delta: float,
    *,
    path: tuple[float, ...] = PATH,
    steps: int = 200,
) -> Minima:
    """The Huber fit of every copy: `start` (d, p), `weights` (d, n) >= 0; `delta` inf for least squares of log L."""
    parts = []
    for first in range(0, start.shape[0], BLOCK):
        rows = slice(first, first + BLOCK)
        theta, held = np.clip(start[rows], problem.low, problem.high), weights[rows]
        if np.isinf(delta):
            found = _descend(problem, theta, held, delta, TOLERANCE, steps)
        else:
            for factor in path[:-1]:
                theta = _descend(problem, theta, held, factor * delta, 0.1, 15).theta
            found = _descend(problem, theta, held, path[-1] * delta, TOLERANCE, steps)
        parts.append(found)
    return Minima(*(np.concatenate([getattr(p, name) for p in parts]) for name in Minima.__dataclass_fields__))


def _descend(
    problem: Problem, theta: np.ndarray, weights: np.ndarray, delta: float, tolerance: float, steps: int
) -> Minima:
    """Steps of (H + lam diag) s = -g per copy; a copy that has converged is left alone."""
    count, p = theta.shape
    theta = theta.copy()
    cost, gradient, curvature, scale, score = _model(problem, theta, weights, delta)
    damping = np.full(count, 1e-3)
    left = np.flatnonzero(score > tolerance)
    eye = np.eye(p, dtype=bool)
    for _ in range(steps):
        if not left.size:
            break
        t, g = theta[left], gradient[left]
        held = ((t <= problem.low) & (g > 0)) | ((t >= problem.high) & (g < 0))
        matrix = curvature[left] + damping[left, None, None] * (eye * scale[left, None, :])
        matrix[held[:, :, None] | held[:, None, :]] = 0.0
        matrix[:, eye] = np.where(held, 1.0, matrix[:, eye])
        move = -np.linalg.solve(matrix, np.where(held, 0.0, g)[..., None])[..., 0]
        trial = np.clip(t + np.clip(move, -2.0, 2.0), problem.low, problem.high)
        new = _model(problem, trial, weights[left], delta)
        better = new[0] < cost[left]
        damping[left] = np.clip(np.where(better, damping[left] * 0.2, damping[left] * 5.0), 1e-12, 1e12)
        taken = left[better]
        theta[taken] = trial[better]
        for store, fresh in zip((cost, gradient, curvature, scale, score), new, strict=True):
            store[taken] = fresh[better]
        # No step, however short, lowers the cost: rounding decides, and the score says how good the place is.
        stuck = damping[left] >= 1e9
        left = left[(score[left] > tolerance) & ~stuck]
    return Minima(theta, cost, score, score <= tolerance)


def _model(problem: Problem, theta: np.ndarray, weights: np.ndarray, delta: float) -> tuple[np.ndarray, ...]:
    """(cost (d,), gradient (d, p), curvature (d, p, p), scale of every direction (d, p), score (d,))."""
    r, jacobian = problem.residual(theta)
    size = np.abs(r)
    inside = size <= delta
    pull = np.clip(r, -delta, delta)
    cost = np.sum(
        weights * np.where(inside, 0.5 * r * r, delta * (size - 0.5 * delta) if np.isfinite(delta) else 0.0), axis=1
    )
    gradient = np.matmul((weights * pull)[:, None, :], jacobian)[:, 0]
    # The curvature of the Huber loss; a little of that of its quadratic majorant where too few rows lie within delta.
    slack = weights * (pull / np.where(size > 0, r, 1.0) if np.isfinite(delta) else 1.0)
    slack = np.where(size > 0, slack, weights)
    curvature = np.matmul(np.swapaxes(jacobian, 1, 2), (weights * inside)[..., None] * jacobian)
    squares = jacobian**2
    scale = np.matmul(slack[:, None, :], squares)[:, 0] + 1e-300
    noise = np.sqrt(np.matmul((weights * pull**2)[:, None, :], squares)[:, 0])
    floor = ROUNDING * np.sqrt(np.matmul(weights[:, None, :], squares)[:, 0])
    blocked = ((theta <= problem.low) & (gradient > 0)) | ((theta >= problem.high) & (gradient < 0))
    score = np.max(np.where(blocked, 0.0, np.abs(gradient) / (noise + floor + 1e-300)), axis=1)
    return cost, gradient, curvature, scale, score
