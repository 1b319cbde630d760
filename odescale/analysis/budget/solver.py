"""min f(z) at g(z) <= 0 in a few variables: grid, sequential quadratic programming, Newton on the KKT system.

    grad f + sum_j lam_j grad g_j = 0,  lam_j >= 0,  g_j <= 0,  lam_j g_j = 0

z are logarithms. Where f - E and all exp(g) are sums of powers (every Chinchilla-like law without repetition) f and g are convex in
z, a geometric program, and a KKT point is the global minimum (Boyd & Vandenberghe 2004, section 4.5); else the grid comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize, nnls

Both = Callable[[np.ndarray], np.ndarray]
"""z (..., v) -> (..., 1 + k): the objective, then the constraints, bounds among them."""
STEP = 1e-4
CURVE = 1e-3
TOUCH = 1e-6
"""A constraint this near to zero may bind (in logs)."""


class Point(NamedTuple):
    """A KKT point: z (v,), f, g (k,), multipliers (k,) >= 0, and the relative KKT residual; `worst` > 0: nothing feasible."""

    z: np.ndarray
    value: float
    slack: np.ndarray
    multipliers: np.ndarray
    residual: float
    worst: float


def slopes(both: Both, z: np.ndarray, step: float = STEP) -> tuple[np.ndarray, np.ndarray]:
    """(values (..., 1 + k), Jacobian (..., 1 + k, v)) by central differences of fourth order, all points in one call."""
    v = z.shape[-1]
    eye = step * np.eye(v)
    moves = np.stack([np.zeros((v, v)), 2 * eye, eye, -eye, -2 * eye])
    found = both(z[..., None, None, :] + moves)
    up2, up, down, down2 = (found[..., i, :, :] for i in (1, 2, 3, 4))
    jacobian = (-up2 + 8 * up - 8 * down + down2) / (12 * step)
    return found[..., 0, 0, :], np.swapaxes(jacobian, -1, -2)


def solve(both: Both, low: np.ndarray, high: np.ndarray, start: np.ndarray | None = None) -> Point:
    """The minimum in the box [low, high], the box being among the constraints of `both`; from a grid if there is no start."""
    if start is not None:
        near = newton(both, start)
        if near.residual < 1e-7:
            return near
    z, worst = _from_grid(both, low, high)
    if worst > 0:
        z = _most_feasible(both, z, low, high)
        worst = float(both(z)[1:].max())
        if worst > 1e-7:
            found = both(z)
            return Point(z, float(found[0]), found[1:], np.zeros(found.size - 1), np.inf, worst)
    z = _programme(both, z, low, high)
    return newton(both, z)


def newton(both: Both, z: np.ndarray, rounds: int = 12) -> Point:
    """Newton on the KKT system of the constraints that bind at z; multipliers by non-negative least squares."""
    best = _judged(both, z)
    for _ in range(rounds):
        if best.residual < 1e-12:
            break
        active = np.flatnonzero((best.multipliers > 1e-9 * max(best.multipliers.max(), 1e-300)) | (best.slack > 1e-12))
        step = kkt_step(both, best, active)
        for share in (1.0, 0.5, 0.1):
            tried = _judged(both, best.z + share * np.clip(step, -1, 1))
            if tried.residual < best.residual:
                break
        else:
            break
        best = tried
    return best


def kkt_matrix(both: Both, point: Point, active: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([[H, G^T], [G, 0]], gradient of the Lagrangian), H its Hessian by differences of gradients."""
    v, a = point.z.size, active.size
    weights = np.concatenate([[1.0], point.multipliers])
    eye = CURVE * np.eye(v)
    _, ahead = slopes(both, np.concatenate([point.z + eye, point.z - eye]))
    pull = np.einsum("k,pkv->pv", weights, ahead)
    hessian = (pull[:v] - pull[v:]) / (2 * CURVE)
    _, jacobian = slopes(both, point.z)
    matrix = np.zeros((v + a, v + a))
    matrix[:v, :v] = 0.5 * (hessian + hessian.T)
    matrix[:v, v:], matrix[v:, :v] = jacobian[1 + active].T, jacobian[1 + active]
    return matrix, weights @ jacobian


def kkt_step(both: Both, point: Point, active: np.ndarray) -> np.ndarray:
    """The Newton step of z."""
    matrix, pull = kkt_matrix(both, point, active)
    right = -np.concatenate([pull, point.slack[active]])
    return np.linalg.lstsq(matrix, right, rcond=1e-12)[0][: point.z.size]


def _judged(both: Both, z: np.ndarray) -> Point:
    found, jacobian = slopes(both, z)
    slack, gradient = found[1:], jacobian[0]
    if not np.isfinite(found).all() or not np.isfinite(jacobian).all():
        return Point(z, np.inf, slack, np.zeros(slack.size), np.inf, np.inf)
    near = np.flatnonzero(slack > -TOUCH)
    multipliers = np.zeros(slack.size)
    if near.size:
        multipliers[near] = nnls(jacobian[1 + near].T, -gradient)[0]
    scale = max(float(np.abs(gradient).max()), 1e-12 * abs(found[0]), 1e-300)
    pull = float(np.abs(gradient + multipliers @ jacobian[1:]).max()) / scale
    beyond = float(np.maximum(slack, 0).max(initial=0.0))
    idle = float(np.abs(multipliers * slack).max(initial=0.0)) / scale
    return Point(z, float(found[0]), slack, multipliers, max(pull, beyond, idle), beyond if beyond > 1e-7 else 0.0)


def _from_grid(both: Both, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, float]:
    """(best feasible point of a grid, 0), or (the least infeasible one, by how much)."""
    count = {1: 401, 2: 61, 3: 21, 4: 11}.get(low.size, 6)
    axes = [np.linspace(a, b, count) for a, b in zip(low, high, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, low.size)
    found = both(grid)
    worst = np.where(np.isfinite(found).all(axis=1), found[:, 1:].max(axis=1), np.inf)
    fits = np.flatnonzero(worst <= 0)
    if fits.size:
        return grid[fits[np.argmin(found[fits, 0])]], 0.0
    return grid[np.argmin(worst)], float(worst.min())


def _programme(both: Both, z: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    scale = max(float(np.abs(slopes(both, z)[1][0]).max()), 1e-300)
    seen: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def at(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key = x.tobytes()
        if key not in seen:
            seen.clear()
            seen[key] = slopes(both, x)
        return seen[key]

    done = minimize(
        lambda x: at(x)[0][0] / scale, z, jac=lambda x: at(x)[1][0] / scale, method="SLSQP",
        bounds=list(zip(low, high, strict=True)),
        constraints={"type": "ineq", "fun": lambda x: -at(x)[0][1:], "jac": lambda x: -at(x)[1][1:]},
        options={"maxiter": 200, "ftol": 1e-13},
    )  # fmt: skip
    return np.asarray(done.x) if np.isfinite(done.x).all() and both(done.x)[1:].max() < 1e-5 else z


def _most_feasible(both: Both, z: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """min over z of the largest constraint, by the slack form min t at g_j <= t."""
    start = np.append(z, both(z)[1:].max())
    v = z.size
    done = minimize(
        lambda x: x[-1], start, jac=lambda x: np.append(np.zeros(v), 1.0), method="SLSQP",
        bounds=[*zip(low, high, strict=True), (None, None)],
        constraints={
            "type": "ineq", "fun": lambda x: x[-1] - both(x[:-1])[1:],
            "jac": lambda x: np.column_stack([-slopes(both, x[:-1])[1][1:], np.ones(both(x[:-1]).size - 1)]),
        },
        options={"maxiter": 200, "ftol": 1e-12},
    )  # fmt: skip
    return np.clip(done.x[:-1], low, high) if np.isfinite(done.x).all() else z


def least(both: Both, index: int, low: np.ndarray, high: np.ndarray) -> float | None:
    """The smallest value of constraint `index` where all others hold; None if they cannot."""

    def other(z: np.ndarray) -> np.ndarray:
        found = both(z)
        others = np.delete(found[..., 1:], index, axis=-1)
        return np.concatenate([found[..., 1 + index : 2 + index], others], axis=-1)

    point = solve(other, low, high)
    return None if point.worst > 1e-7 else point.value
