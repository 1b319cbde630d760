"""The frontier of a law with several terms in one variable (tied sizes): one monotone equation per variable, no closed form."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Real
from scipy.optimize import brentq
from scipy.special import logsumexp

from odescale.analysis.frontier.compute import Frontier, check_compute
from odescale.analysis.frontier.risk_law import RiskLaw
from odescale.errors import InputError
from odescale.precision import require_x64

_SAMPLES = 6000
_LAST = 650.0
"""lam t beyond which exp(-lam t) leaves the range of float64."""
_POWER_RANGE = 120.0
"""e-folds of t beyond that."""


def tied_frontier(law: RiskLaw, compute: Real[ArrayLike, " m"] | Sequence[float]) -> Frontier:
    r"""Sizes and time that minimise R at C = `compute` when a variable carries several terms, such as data = batch * time.

        sum_{k in z} alpha_k A_k z^-alpha_k (+ lam t D exp(-lam t) for the time) = mu q_z,   z >= z_0,   p = mu/R

    The power terms of each size give z(mu) by Newton's method in log z. With exponential time the whole solution is a function
    of t, whose crossings of C with growing C are the local minima; the lowest is returned. Otherwise it is one of mu, and unique.
    **Arguments**: any `law`, `compute` (m,) > 0. **Returns** `Frontier` (numpy: not differentiable), NaN where `valid` is False:
    C below the floors, no minimum with training, R above D without other terms in t.
    **Raises** `InputError`.
    """
    require_x64("tied_frontier")
    C = np.asarray(check_compute(compute))
    targets = np.log(C / float(law.unit))
    if law.exponential:
        # Power terms in t go on when the exponential is over.
        beyond = _POWER_RANGE if law.time_kind == "both" else 0.0
        grid = np.linspace(np.log(1e-8 / float(law.rate)), np.log(_LAST / float(law.rate)) + beyond, _SAMPLES)
        places = [_best(law, grid, target) for target in targets]
        rows = [_state(law, time=np.array([v])) if v is not None else None for v in places]
    else:
        rows = [_state(law, multiplier=np.array([v])) if v is not None else None
                for v in (_multiplier(law, target) for target in targets)]  # fmt: skip
    n, m = len(law.names), C.size
    x, held = np.full((m, n + 1), np.nan), np.zeros((m, n + 1), bool)
    risk, mu = np.full(m, np.nan), np.full(m, np.nan)
    lone = law.time_kind == "exponential"
    for i, row in enumerate(rows):
        if row is None:
            continue
        logs, log_mu, fixed = row
        value = float(law.risk(np.exp(logs[0, :n]), np.exp(logs[0, n])))
        if lone and value > float(law.decay):
            continue
        x[i], held[i], risk[i], mu[i] = np.exp(logs[0]), fixed[0], value, np.exp(log_mu[0])
    if law.time_kind == "none":
        x[:, n] = np.nan
    valid = np.isfinite(risk)
    c, sizes, time, R, p, m_, h, v = (jnp.asarray(w) for w in (C, x[:, :n], x[:, n], risk, mu / risk, mu, held, valid))
    return Frontier(law.names, c, sizes, time, R, p, m_, h, v, "one equation per variable")


def _terms(law: RiskLaw, place: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """log(alpha A), alpha, cost and log floor of one variable."""
    k = [i for i, v in enumerate(law.variable) if v == place]
    alpha, A = np.asarray(law.exponents)[k], np.asarray(law.amplitudes)[k]
    timed = place == len(law.names)
    cost = float(law.time_cost if timed else law.costs[place])
    floor = float(law.time_floor if timed else law.floors[place])
    return np.log(alpha * A), alpha, cost, float(np.log(floor)) if floor > 0 else -np.inf


def _grown(logs: np.ndarray, alpha: np.ndarray, target: np.ndarray) -> np.ndarray:
    """X with logsumexp(logs - alpha X) = target: convex and decreasing, Newton from the left."""
    X = np.max((logs - target[:, None]) / alpha, axis=-1)
    for _ in range(40):
        parts = logs - alpha * X[:, None]
        total = logsumexp(parts, axis=-1)
        slope = -np.sum(alpha * np.exp(parts - total[:, None]), axis=-1)
        X = X - (total - target) / slope
    return X


def _state(
    law: RiskLaw, *, time: np.ndarray | None = None, multiplier: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log of sizes and time (m, n + 1), log mu (m,), at the floor (m, n + 1)) along log t or along log mu."""
    n = len(law.names)
    if time is not None:
        logs, alpha, cost, _ = _terms(law, n)
        y = float(law.rate) * np.exp(time)
        parts = [np.log(y) + np.log(float(law.decay)) - y, *(logs[:, None] - alpha[:, None] * time)]
        log_mu = logsumexp(np.array(parts), axis=0) - np.log(cost)
        last, stuck = time, np.zeros(time.shape, bool)
    elif multiplier is not None:
        log_mu = multiplier
        logs, alpha, cost, floor = _terms(law, n)
        last = np.zeros(log_mu.shape)
        if logs.size:
            last = np.maximum(_grown(logs, alpha, log_mu + np.log(cost)), floor)
        stuck = last == floor
    else:
        raise InputError("time", expected="times or multipliers", got=None, remedy="give one")
    columns, fixed = [], []
    for place in range(n):
        logs, alpha, cost, floor = _terms(law, place)
        X = np.maximum(_grown(logs, alpha, log_mu + np.log(cost)), floor)
        columns.append(X)
        fixed.append(X == floor)
    return np.stack([*columns, last], axis=-1), log_mu, np.stack([*fixed, stuck], axis=-1)


def _budget(law: RiskLaw, logs: np.ndarray) -> np.ndarray:
    return logs @ np.append(np.asarray(law.costs), float(law.time_cost))


def _best(law: RiskLaw, grid: np.ndarray, target: float) -> float | None:
    """log t of the lowest local minimum at log C/c = `target`."""
    budgets = _budget(law, _state(law, time=grid)[0]) - target
    found = []
    for i in np.flatnonzero((budgets[:-1] < 0) & (budgets[1:] >= 0)):

        def gap(u: float) -> float:
            return float(_budget(law, _state(law, time=np.array([u]))[0])[0]) - target

        u = float(brentq(gap, grid[i], grid[i + 1], xtol=1e-15, rtol=1e-15))
        logs, _, _ = _state(law, time=np.array([u]))
        found.append((float(law.risk(np.exp(logs[0, :-1]), np.exp(logs[0, -1]))), u))
    return min(found)[1] if found else None


def _multiplier(law: RiskLaw, target: float) -> float | None:
    def gap(log_mu: float) -> float:
        return float(_budget(law, _state(law, multiplier=np.array([log_mu]))[0])[0]) - target

    high = 600.0
    if gap(high) > 0:
        return None
    # Where every size is held C does not depend on mu: the root is the largest mu that spends the budget.
    return float(brentq(gap, -600.0, high, xtol=1e-14, rtol=1e-15))
