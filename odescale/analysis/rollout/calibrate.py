r"""Costs of rounds from a table of measured speeds, with intervals, and a refusal where the rows cannot tell them.

    log speed = log A(s) + log b - log tau(b; s) + log u          tokens per second, u plain rounds per second at batch 1
    log gain  = log A(s) + log tau(b) - log tau(b; s)             speed-ups

Least squares of the logarithms; log u and the log A of strategies without a measured accepted length enter linearly and are taken
out exactly.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special

from odescale.analysis.rollout.design import Rows, bounds, held_rows, problem, with_accepted
from odescale.analysis.rollout.fitted import CostFit, Strategies
from odescale.analysis.rollout.rounds import NAMES, as_values, costs_of, least_squares
from odescale.analysis.rollout.table import CostTable, cost_table
from odescale.errors import MOST_DRAWS, InputError, require_number, whole
from odescale.precision import require_x64
from odescale.systems.rollout.cost import Acceptance

ROUNDING = 1e-5
"""Scatter of log speed that a table is never believed to fall short of: speeds are written with some digits."""
FREED = 0.99
"""Level at which a held crowding c_2 = 0 is said to miss something."""
NEVER = 1e15
"""m_0 that stands for no saturation."""
SURE = 0.99
"""Level of the F tests for k_v = 0 and m_0 = infinity: at 0.9 a fifth of hopeless tables passes by chance, and is then wrong."""
WIDE = 10.0
"""Upper over lower end from which an interval of m_0, with one of k_v as wide, says that they trade: tables of two V are at 1.3."""


def fit_costs(
    table: CostTable | Mapping[str, Any] | str | os.PathLike,
    *,
    columns: Mapping[str, str] | None = None,
    constants: Mapping[str, float] | None = None,
    accepted: Acceptance | Mapping[tuple[float, float], float] | None = None,
    known: Mapping[str, float] | None = None,
    crowding: bool = False,
    hold_out: Mapping[str, float] | None = None,
    level: float = 0.9,
    draws: int = 200,
    seed: int = 0,
) -> CostFit:
    r"""tau(b; d, V) = T(b V) + k_v (b-1) + c_0 + c_1 d (1 + c_2 b), T(m) = (1 + (m/m_0)^q)^(1/q), fitted to measured speeds.

    **Arguments**: `table`, `columns`, `constants`: see `cost_table`. `accepted`: tokens of a round where the table has none, a law
    of the depth or {(depth, verified): A}; strategies without one get an A of their own. `known`: costs that are not fitted, by
    the names of `Costs`, e.g. {"context": 0.01}. `crowding`: also fit c_2 (else 0). `hold_out`: rows that are forecast and not
    fitted, {"batch": 8}. `level` of the intervals; `draws` of the table from the fitted law with normal errors of log speed.
    **Returns** `CostFit`: costs, intervals, A of every strategy, errors on held-out rows, notes.
    **Raises** `InputError`: holes, no plain rows beside tokens per second, one batch; no accepted length at all (A and the fixed
    cost c_0 + c_1 d then trade: twice both is the same speed); saturation and key/value cost that cannot be told apart: neither
    k_v = 0 nor m_0 = infinity fits significantly worse (F tests at 0.99).
    **Good values**: plain rows from batch 1 to the largest in use, two strategies of different V up to b V of some m_0, 12 rows or
    more, accepted lengths of every strategy. **Failure regime**: c_0 and c_1 need two depths (else c_0 = 0, and the fit holds for
    that depth only); a context that grows with the batch looks like k_v; errors that are alike within a batch make intervals
    narrow. Source of the form: Hu et al. 2025, arXiv 2511.16665; `docs/rollout.md`.

    ```python
    import jax
    import numpy as np
    jax.config.update("jax_enable_x64", True)
    from odescale.rollouts import Costs, fit_costs, round_time
    batch, depth = (x.ravel().astype(float) for x in np.meshgrid([1, 4, 16, 64, 256], [0, 4, 8]))
    A = np.where(depth > 0, 1 + depth / 2, 1.0)
    speed = 40 * batch * A / np.asarray(round_time(Costs(), batch, depth, depth + 1))
    speed *= np.exp(0.01 * np.random.default_rng(0).standard_normal(speed.size))
    print(fit_costs({"batch": batch, "depth": depth, "tokens_per_second": speed, "accepted_length": A}))
    ```
    """
    require_x64("fit_costs")
    level = require_number("level", level, 0.5, 1.0)
    count = whole("draws", draws, 0, MOST_DRAWS, remedy="200, or 0 for none")
    read = with_accepted(cost_table(table, columns=columns, constants=constants), accepted)
    out = held_rows(read, hold_out)
    rows = problem(read.take(~out))
    low, high, start, notes = bounds(rows, dict(known or {}), crowding)
    theta, total = _best(rows, low, high, start)
    free = low < high
    dof = rows.y.size - int(free.sum()) - np.linalg.matrix_rank(rows.linear)
    noise = max(total / dof, ROUNDING**2)
    _refuse(rows, low, high, theta, total, noise, dof)
    notes += _remarks(rows, low, high, theta, total, noise, dof, crowding or "crowding" in (known or {}))
    f, _ = rows.model(theta[None])
    linear = rows.inverse @ (rows.y - f[0])
    residual = rows.project @ (rows.y - f[0])
    drawn, drawn_linear = _draws(rows, low, high, theta, f[0] + rows.linear @ linear, total, dof, count, seed)
    spread = as_values(drawn)
    ends = np.full((2, 6), np.nan)
    if count:
        ends = np.quantile(spread, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    far = np.exp(high[0]) * 0.99
    interval = {
        name: (float(ends[0, k]), float("inf") if k == 0 and ends[1, k] > far else float(ends[1, k]))
        for k, name in enumerate(NAMES)
        if free[k]
    }
    if count and {"saturation", "context"} <= set(interval):
        (a, b), (c, d) = interval["saturation"], interval["context"]
        if b > WIDE * a and d > WIDE * max(c, 1e-12):
            raise _cannot_tell(
                rows.table, f"m_0 from {a:.3g} to {b:.3g} with k_v from {c:.2g} to {d:.2g}, one for the other"
            )
    unit = float(np.exp(linear[0])) if rows.has_unit else None
    strategies = _strategies(read, rows, linear, drawn_linear)
    fit = CostFit(
        costs=costs_of(as_values(theta)), interval=interval, draws=spread, strategies=strategies, unit=unit,
        rms=float(np.sqrt(np.mean(residual**2))), residual=residual, rows=rows.y.size, free=int(rows.y.size - dof),
        held_out=np.zeros(0), batches=(float(read.batch.min()), float(read.batch.max())), level=level,
        notes=(*read.notes, *notes), source=read.source, measure=read.measure,
    )  # fmt: skip
    return fit.with_held_out(read.take(out)) if out.any() else fit


def _best(rows: Rows, low: np.ndarray, high: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
    found, totals = least_squares(rows.model, np.tile(rows.y, (len(start), 1)), start, low, high, rows.project)
    return found[np.argmin(totals)], float(totals.min())


def _restricted(rows: Rows, low: np.ndarray, high: np.ndarray, theta: np.ndarray, values: dict[int, float]) -> float:
    """Sum of squares with some components held."""
    low, high = low.copy(), high.copy()
    for k, value in values.items():
        low[k] = high[k] = value
    spread = theta + np.array(
        [[0.0] * 6, [1, 0, 0, 0, 0, 0], [-1, 0, 0, 0, 0, 0], [0, 0, 0.05, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    )
    return _best(rows, low, high, np.clip(spread, low, high))[1]


def _worse(more: float, total: float, noise: float, free: int, dof: int) -> float:
    """Probability of the F test that the rows need `free` components more."""
    return float(special.fdtr(free, dof, max(more - total, 0.0) / (free * noise)))


def _refuse(
    rows: Rows,
    low: np.ndarray,
    high: np.ndarray,
    theta: np.ndarray,
    total: float,
    noise: float,
    dof: int,
) -> None:
    free = low < high
    if not (free[0] and free[2]):
        return
    without_kv = _restricted(rows, low, high, theta, {2: 0.0})
    without_T = _restricted(rows, low, high, theta, {0: np.log(NEVER), 1: 0.0})
    sure = _worse(without_kv, total, noise, 1, dof), _worse(without_T, total, noise, int(free[:2].sum()), dof)
    if max(sure) < SURE:
        raise _cannot_tell(
            rows.table, f"growth that either explains alone (F tests: {sure[0]:.0%} and {sure[1]:.0%} sure)"
        )


def _cannot_tell(table: CostTable, got: str) -> InputError:
    most, top = float(table.batch.max()), float((table.batch * np.where(table.depth > 0, table.verified, 1.0)).max())
    return InputError(
        "table", expected="rows that tell saturation m_0 from the key/value cost k_v", got=got,
        remedy=f"measure plain rows up to batch {4 * most:g}, or rows of few and of many verified tokens at batch {most:g} "
        f"and beyond {top:g} tokens a pass, or declare one, known={{'context': ...}}",
    )  # fmt: skip


def _remarks(
    rows: Rows, low: np.ndarray, high: np.ndarray, theta: np.ndarray, total: float, noise: float, dof: int, freed: bool
) -> list[str]:
    notes, free = [], low < high
    if free[1] and theta[1] < 0:
        notes.append(
            f"sharpness {np.exp(theta[1]):.2g} below 1: rounds grow sooner than reading and computing one after the other; "
            "something else grows with b V"
        )
    if not freed and free[4] and np.unique(rows.table.batch).size > 1 and dof > 1:
        high = high.copy()
        high[5] = 100.0
        start = np.clip(
            theta + np.outer([0, 1, 1, 1], np.eye(6)[5]) * np.array([0, 1e-3, 1e-2, 1e-1])[:, None], low, high
        )
        less = _best(rows, low, high, start)[1]
        sure = float(special.fdtr(1, dof - 1, (total - less) / max(less / (dof - 1), ROUNDING**2)))
        if sure > FREED:
            n = rows.y.size
            before, after = (total / n) ** 0.5, (less / n) ** 0.5
            notes.append(
                f"a drafter that slows with the batch fits better, rms {before:.2%} to {after:.2%}: crowding=True"
            )
    return notes


def _draws(
    rows: Rows,
    low: np.ndarray,
    high: np.ndarray,
    theta: np.ndarray,
    fitted: np.ndarray,
    total: float,
    dof: int,
    count: int,
    seed: int,
) -> tuple[Float[np.ndarray, "c 6"], Float[np.ndarray, "c k"]]:
    """Refits to tables drawn from the fitted law; the variance of the errors is drawn too, SS/chi^2 of the degrees left."""
    rng = np.random.default_rng(seed)
    variance = max(total, ROUNDING**2 * dof) / rng.chisquare(dof, count)
    y = fitted + np.sqrt(variance)[:, None] * rng.standard_normal((count, fitted.size))
    found, _ = least_squares(rows.model, y, np.tile(theta, (count, 1)), low, high, rows.project)
    f, _ = rows.model(found) if count else (y, None)
    return found, (y - f) @ rows.inverse.T


def _strategies(read: CostTable, rows: Rows, linear: np.ndarray, drawn: np.ndarray) -> Strategies:
    """A of every strategy: measured (the mean of its rows, without a spread) or fitted."""
    skip = int(rows.has_unit)
    spec = read.depth > 0
    pairs = sorted({(d, v) for d, v in zip(read.depth[spec], read.verified[spec], strict=True)})
    kept, value, fitted, spread = [], [], [], []
    for d, v in pairs:
        here = read.accepted[(read.depth == d) & (read.verified == v)]
        if np.isfinite(here).any():
            value.append(float(np.nanmean(here)))
            spread.append(np.full(len(drawn), value[-1]))
        elif (d, v) in rows.open_:
            k = rows.open_.index((d, v)) + skip
            value.append(float(np.exp(linear[k])))
            spread.append(np.exp(drawn[:, k]))
        else:
            continue
        kept.append((d, v))
        fitted.append(not np.isfinite(here).any())
    pair = np.array(kept, float).reshape(-1, 2)
    return Strategies(
        pair[:, 0],
        pair[:, 1],
        np.array(value),
        np.array(fitted, bool),
        np.array(spread).reshape(len(spread), len(drawn)).T,
    )
