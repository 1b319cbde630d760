"""Variable projection: at given exponents the amplitudes are a linear least-squares problem, so only the exponents are searched.

    min over a >= 0 of sum_i w_i (1 - sum_j a_j t_ij / L_i^(1/p))^2

Sources: G. H. Golub & V. Pereyra, SIAM J. Numer. Anal. 10 (1973) 413; for scaling laws Czech et al. 2026, arXiv 2603.22339.
"""

from __future__ import annotations

from itertools import combinations

import equinox as eqx
import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares, nnls

from odescale.analysis.tables.robust import Problem

GRID = 3000
"""Points of the grid over all exponents together."""


class Projection(eqx.Module):
    """`values` (p,) of the least-squares fit, its relative `rms` residual, and condition numbers of the two problems.

    `conditioning`: of J^T J over amplitudes and exponents in their own units; `reduced`: over the exponents alone, the amplitudes
    projected out.
    """

    values: Float[np.ndarray, " p"]
    rms: float
    conditioning: float
    reduced: float


def grid_starts(problem: Problem, weights: Float[np.ndarray, " n"], count: int) -> Float[np.ndarray, "s p"]:
    """theta of the `count` best points of a grid over the exponents (log-spaced), local minima of the grid first."""
    form = problem.form
    k, m = len(form.exponents), len(form.amplitudes)
    per = int(np.clip(round(GRID ** (1 / k)), 4, 40))
    axes = [np.geomspace(e.low, e.high, per + 2)[1:-1] for e in form.exponents]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, k)
    cost, amplitudes = np.empty(grid.shape[0]), np.empty((grid.shape[0], m))
    block = max(1, 400_000 // (problem.log_loss.size * m))
    for first in range(0, grid.shape[0], block):
        rows = slice(first, first + block)
        cost[rows], amplitudes[rows] = _project_all(problem, grid[rows], weights)
    table = cost.reshape((per,) * k)
    least = np.ones(table.shape, bool)
    for axis in range(k):
        padded = np.pad(table, [(1, 1) if a == axis else (0, 0) for a in range(k)], constant_values=np.inf)
        for shift in (0, 2):
            window = [slice(shift, shift + per) if a == axis else slice(None) for a in range(k)]
            least &= table <= padded[tuple(window)]
    order = np.lexsort((cost, ~least.reshape(-1)))[:count]
    return problem.theta(np.concatenate([np.maximum(amplitudes[order], 1e-300), grid[order]], axis=1))


def _project_all(
    problem: Problem, exponents: Float[np.ndarray, "g k"], weights: Float[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " g"], Float[np.ndarray, "g m"]]:
    """(cost, amplitudes) by the normal equations of every subset of terms: the best one that is not negative."""
    design, scale = _design(problem, exponents)
    count, _, m = design.shape
    held = design * weights[:, None]
    gram, right = np.matmul(np.swapaxes(design, 1, 2), held), held.sum(axis=1)
    best, amplitudes = np.full(count, np.inf), np.zeros((count, m))
    for size in range(1, m + 1):
        for subset in combinations(range(m), size):
            s = np.array(subset)
            block = gram[:, s[:, None], s] + 1e-14 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(size)
            found = np.linalg.solve(block, right[:, s, None])[..., 0]
            cost = weights.sum() - 2 * np.sum(right[:, s] * found, axis=1)
            cost = cost + np.einsum("gi,gij,gj->g", found, gram[:, s[:, None], s], found)
            better = (found >= 0).all(axis=1) & (cost < best)
            best[better] = cost[better]
            amplitudes[better] = 0.0
            amplitudes[np.ix_(better, s)] = found[better]
    return best, amplitudes / scale


def _design(problem: Problem, exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(t_ij/(g_j L_i^(1/p)) (g, n, m), g (g, m)): g_j the geometric mean of the term."""
    form = problem.form
    logs = form.log_terms(exponents, problem.columns)
    centre = logs.mean(axis=-2, keepdims=True)
    power = np.ones(exponents.shape[0]) if form.power is None else np.asarray(form.power(exponents))
    target = problem.log_loss / power[:, None]
    return np.exp(logs - centre - target[..., None]), np.exp(centre[:, 0])


def project(problem: Problem, start: Float[np.ndarray, " k"], weights: Float[np.ndarray, " n"]) -> Projection:
    """The least-squares fit from the exponents `start`, and how well conditioned it is with and without its amplitudes."""
    k, m = len(problem.form.exponents), len(problem.form.amplitudes)
    root = np.sqrt(weights)

    def solved(log_exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        design, scale = _design(problem, np.exp(log_exponents)[None])
        amplitudes = nnls(design[0] * root[:, None], root)[0]
        return amplitudes / scale[0], root * (1 - design[0] @ amplitudes)

    bounds = (problem.low[m:], problem.high[m:])
    inside = np.clip(np.log(start), bounds[0] + 1e-6, bounds[1] - 1e-6)
    found = least_squares(lambda v: solved(v)[1], inside, bounds=bounds, xtol=1e-12, ftol=1e-12, gtol=1e-12)
    amplitudes, residual = solved(found.x)
    values = np.concatenate([amplitudes, np.exp(found.x)])
    _, jacobian = problem.residual(problem.theta(values[None]))
    alive = np.concatenate([amplitudes > 0, np.ones(k, bool)])
    own = jacobian[0] * root[:, None] / np.where(alive, values, 1.0)
    # dr/d(amplitude, exponent) at fixed others: theta's amplitudes are relative to their terms' means, which move with exponents.
    centre_slope = problem.form.log_slopes(values[None, m:], problem.columns).mean(axis=-3).reshape(m, k)
    for j in range(m):
        own[:, m:] += jacobian[0][:, j, None] * root[:, None] * centre_slope[j]
    own = own[:, alive]
    linear = own[:, : int(alive[:m].sum())]
    basis = np.linalg.qr(linear)[0]
    projected = own[:, linear.shape[1] :]
    projected = projected - basis @ (basis.T @ projected)
    rms = float(np.sqrt(np.sum(residual**2) / weights.sum()))
    return Projection(values, rms, _condition(own), _condition(projected))


def _condition(matrix: np.ndarray) -> float:
    singular = np.linalg.svd(matrix, compute_uv=False)
    return float((singular[0] / singular[-1]) ** 2) if singular[-1] > 0 else float("inf")
