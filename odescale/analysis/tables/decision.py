"""From a fitted law to decisions: how large a model, how many tokens, what it costs to be off, with the intervals of the fit.

    min A N^-alpha + B D^-beta at 6 N D = C:   N* = G (C/6)^a,  D* = (C/6)/N*,  a = beta/(alpha + beta),
    G = (alpha A/(beta B))^(1/(alpha + beta)),  L*(C) - E = K C^-(alpha beta/(alpha + beta))

Source: Hoffmann et al. 2022, arXiv 2203.15556, equation 4; with inference Sardana et al. 2024, arXiv 2401.00448.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from odescale.analysis.tables.result import TableFit, quantiles
from odescale.analysis.tables.table import FLOP_PER_PARAMETER_TOKEN, Numbers
from odescale.errors import InputError, require_number

NAMES = ("E", "A", "B", "alpha", "beta")
Law = TableFit | Mapping[str, float]


class Interval(eqx.Module):
    """`value` (n,) by the fit itself, `low` and `high` (n,) over its draws (equal to the value for a law without draws)."""

    value: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]


class Optimum(eqx.Module):
    """The best use of `flop` (n,): `params`, `tokens`, `tokens_per_param`, `loss`, `multiplier`, each an `Interval` over (n,).

    - `multiplier`: -dL*/dlog C, the loss that an e-fold of compute takes off. `exponent`: a in N* ~ C^a; None with served tokens,
      where there is no power law. `served`: tokens of inference that the budget pays for as well. `level` of the intervals.
    """

    flop: Float[np.ndarray, " n"]
    params: Interval
    tokens: Interval
    tokens_per_param: Interval
    loss: Interval
    multiplier: Interval
    exponent: Interval | None
    served: float = eqx.field(static=True)
    level: float = eqx.field(static=True)

    def __str__(self) -> str:
        lines = []
        for i, budget in enumerate(self.flop):
            parts = [
                f"{name} {v.value[i]:.4g} ({v.low[i]:.3g} to {v.high[i]:.3g})"
                for name, v in (("params", self.params), ("tokens", self.tokens), ("tokens/param", self.tokens_per_param),
                                ("loss", self.loss))
            ]  # fmt: skip
            lines.append(f"{budget:.3g} FLOP: " + ", ".join(parts))
        return "\n".join(lines)


class Detour(eqx.Module):
    """What a model of `factor` times the best size costs at equal compute: `loss` above the optimum, and `wasted`, the share of
    the compute that an optimal run of the same loss would save (Czech et al. 2026, arXiv 2603.22339), each an `Interval`."""

    factor: Float[np.ndarray, " n"]
    loss: Interval
    wasted: Interval
    level: float = eqx.field(static=True)


def optimum(law: Law, flop: Numbers, *, served: float = 0.0, level: float | None = None) -> Optimum:
    """min L(N, D) subject to 6 N D + 2 N S = C: the size and the tokens of a training budget, with the intervals of the fit.

    **Arguments**: `law`: a `TableFit` of the Chinchilla form, or its numbers {"E": ..., "A": ..., "B": ..., "alpha": ...,
    "beta": ...} (no intervals then). `flop` C: a number or (n,). `served` S: tokens of inference over the model's life, 2 N FLOP
    each, out of the same budget; 0: training alone, in closed form. `level`: of the intervals, default the fit's.
    **Returns** `Optimum`. **Raises** `InputError`: a law that its table leaves open, or of another form.
    **Failure regime**: far beyond the table's compute the interval knows of the scatter of the runs, not of the form's error.

    ```python
    from odescale.laws import optimum
    law = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
    print(optimum(law, [1e21, 5.76e23]))
    ```
    """
    values, draws, level = chinchilla_numbers(law, level)
    budgets = np.atleast_1d(np.asarray(flop, float))
    if budgets.ndim != 1 or not (np.isfinite(budgets) & (budgets > 0)).all():
        raise InputError("flop", expected="FLOP > 0, a number or (n,)", got=flop, remedy="e.g. 1e21")
    served = require_number("served", served)
    both = np.concatenate([values[None], draws])
    params, tokens = best_sizes(both, budgets, served)
    e, a, b, alpha, beta = (both[:, i, None] for i in range(5))
    above = a * params**-alpha + b * tokens**-beta
    spent = FLOP_PER_PARAMETER_TOKEN * params * tokens + 2.0 * params * served
    # dL*/dC = dL/dD / (dC/dD) at fixed N: the envelope theorem.
    multiplier = beta * b * tokens**-beta * spent / (FLOP_PER_PARAMETER_TOKEN * params * tokens)
    found = {
        "params": params,
        "tokens": tokens,
        "tokens_per_param": tokens / params,
        "loss": e + above,
        "multiplier": multiplier,
    }
    power = both[:, 4:5] / (both[:, 3:4] + both[:, 4:5])
    return Optimum(
        budgets, **{name: spread(v, level) for name, v in found.items()},
        exponent=spread(power, level) if served == 0 else None, served=served, level=level,
    )  # fmt: skip


def cost_of_size(law: Law, flop: Numbers, factor: Numbers, *, level: float | None = None) -> Detour:
    """L(f N*, D*/f) - L* and the share of C that is wasted: the price of a model f times as large as the best at equal compute.

    **Arguments**: `law` as in `optimum`; `flop` C and `factor` f, numbers or (n,), broadcast. **Returns** `Detour`.
    **Raises** `InputError`.
    """
    values, draws, level = chinchilla_numbers(law, level)
    pair = np.broadcast_arrays(np.atleast_1d(np.asarray(flop, float)), np.atleast_1d(np.asarray(factor, float)))
    budgets, off = (np.array(v) for v in pair)
    if budgets.ndim != 1 or not (np.isfinite(budgets) & (budgets > 0)).all():
        raise InputError("flop", expected="FLOP > 0, a number or (n,)", got=flop, remedy="e.g. 1e21")
    if not (np.isfinite(off) & (off > 0)).all():
        raise InputError("factor", expected="factors > 0", got=factor, remedy="2 is twice the best size")
    both = np.concatenate([values[None], draws])
    size = best_sizes(both[:1], budgets)[0] * off
    extra, wasted = detour(both, budgets, size)
    return Detour(off, spread(extra, level), spread(wasted, level), level)


def detour(
    both: Float[np.ndarray, "d 5"], budgets: Float[np.ndarray, " n"], size: Float[np.ndarray, "#d n"]
) -> tuple[Float[np.ndarray, "d n"], Float[np.ndarray, "d n"]]:
    """(loss above the optimum, share of the compute wasted) of models of `size` at the budgets, by every draw's own law.

    L* - E falls as C^-p, p = alpha beta/(alpha + beta), so a loss l above E needs C (l/(L* - E))^(-1/p) at the optimum.
    """
    a, b, alpha, beta = (both[:, i, None] for i in range(1, 5))
    params, tokens = best_sizes(both, budgets)
    best = a * params**-alpha + b * tokens**-beta
    got = a * size**-alpha + b * (budgets / (FLOP_PER_PARAMETER_TOKEN * size)) ** -beta
    power = alpha * beta / (alpha + beta)
    return got - best, 1 - (got / best) ** (-1 / power)


def best_sizes(
    both: Float[np.ndarray, "d 5"], budgets: Float[np.ndarray, " n"], served: float = 0.0
) -> tuple[Float[np.ndarray, "d n"], Float[np.ndarray, "d n"]]:
    """(N*, D*) of every law (E, A, B, alpha, beta) at every budget.

    With S served tokens D = C/(6N) - S/3, and the condition alpha A N^-alpha = beta B D^(-beta-1) C/(6N) has one root in
    0 < N < C/(2S), both sides being monotone in log N: bisection.
    """
    a, b, alpha, beta = (both[:, i, None] for i in range(1, 5))
    k = FLOP_PER_PARAMETER_TOKEN
    log_g = np.log(alpha * a / (beta * b)) / (alpha + beta)
    log_n = log_g + beta / (alpha + beta) * np.log(budgets / k)
    if served > 0:
        high = np.broadcast_to(np.minimum(log_n, np.log(budgets / (2 * served))), log_n.shape).copy()
        low = high - 60.0
        for _ in range(100):
            middle = 0.5 * (low + high)
            rest = budgets / (k * np.exp(middle)) - served / 3
            with np.errstate(divide="ignore", invalid="ignore"):
                more = np.log(alpha * a) - alpha * middle - np.log(beta * b) + (beta + 1) * np.log(rest)
                more = more - (np.log(budgets / k) - middle)
            up = (rest > 0) & (more > 0)
            low, high = np.where(up, middle, low), np.where(up, high, middle)
        log_n = low
    size = np.exp(log_n)
    return size, budgets / (k * size) - served / 3


def chinchilla_numbers(law: Law, level: float | None) -> tuple[np.ndarray, np.ndarray, float]:
    """(values (5,), draws (d, 5), level) of a fit or of plain numbers. **Errors**: `InputError` by name."""
    if isinstance(law, TableFit):
        if law.form.name != "chinchilla":
            raise InputError(
                "law",
                expected="a fit of the form chinchilla",
                got=law.form.name,
                remedy='fit_table(table, "chinchilla")',
            )
        law.require_identified("a decision")
        draws, held = law.draws[(law.draws > 0).all(axis=1)], law.level
        values = law.vector
    else:
        missing = [name for name in NAMES if name not in law]
        if missing:
            raise InputError("law", expected=f"numbers {', '.join(NAMES)}", got=dict(law), remedy=f"add {missing[0]}")
        values, draws, held = np.array([float(law[name]) for name in NAMES]), np.empty((0, 5)), 0.9
    if not (np.isfinite(values) & (values >= 0)).all() or (values[1:] <= 0).any():
        raise InputError("law", expected="A, B, alpha, beta > 0 and E >= 0", got=values, remedy="pass a fitted law")
    level = held if level is None else require_number("level", level, 0.0, 1.0, open_=True)
    return values, draws, level


def spread(both: Float[np.ndarray, "d n"], level: float) -> Interval:
    """The first row as the value, the others as its draws."""
    if both.shape[0] == 1:
        return Interval(both[0], both[0], both[0])
    low, high = quantiles(both[1:], level)
    return Interval(both[0], low, high)


def as_record(optimum: Optimum) -> dict[str, Any]:
    """JSON-ready: every number with its interval."""
    names = ("params", "tokens", "tokens_per_param", "loss", "multiplier")
    record: dict[str, Any] = {"flop": optimum.flop.tolist(), "level": optimum.level, "served": optimum.served}
    for name in names:
        held = getattr(optimum, name)
        record[name] = {"value": held.value.tolist(), "low": held.low.tolist(), "high": held.high.tolist()}
    return record
