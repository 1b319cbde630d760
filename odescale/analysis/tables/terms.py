"""The terms of a fitted form one by one: powers of one column, exponentials of one column, and the critical compute of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np

from odescale.analysis.frontier.compute import critical_compute
from odescale.analysis.frontier.risk_law import risk_law
from odescale.analysis.tables.forms import Form
from odescale.analysis.tables.result import TableFit, quantiles
from odescale.errors import InputError, whole
from odescale.precision import require_x64

FRESH = 1e40
"""Unique tokens for which no data are repeated."""
COSTS: dict[str, float] = {"params": 1.0, "tokens": 1.0, "steps": 1.0, "width": 2.0, "depth": 1.0}
"""C ~ prod column^cost at a fixed batch."""
_SAME = 1e-6


class Powers(NamedTuple):
    """Exponents of the columns alone: {column: (value, draws (d,), names of the form's exponents that it is made of)}."""

    fit: TableFit
    found: Mapping[str, tuple[float, np.ndarray, tuple[str, ...]]]

    def has(self, column: str) -> bool:
        return column in self.found

    def exponent(self, column: str) -> tuple[float, np.ndarray]:
        value, draws, _ = self.found[column]
        return value, draws

    def text(self, column: str) -> str:
        return " ".join(self.found[column][2]) or f"exponent of {column}"

    def why_open(self, column: str) -> str:
        """Why the rows leave the exponent of `column` open, or nothing."""
        names = self.found[column][2]
        return next((f"{n}: {self.fit.unidentified[n]}" for n in names if n in self.fit.unidentified), "")

    def why_none(self, column: str) -> str:
        if column in self.fit.form.columns:
            return f"no term of {self.fit.form.equation} is a plain power of {column} alone"
        return f"{self.fit.form.equation} has no {column}"


def powers_of(fit: TableFit) -> Powers:
    """The exponent -dlog L_x/dlog x of every column that is a plain power in one term, without repeats, the others at infinity."""
    form = fit.form
    k = len(form.amplitudes)
    best = np.array([[fit.values[e.name] for e in form.exponents]])
    found = {}
    for column in form.columns:
        place = _term_of(form, best, column, fit)
        if place is None:
            continue
        value, draws = (_slope(form, e, column, place, fit) for e in (best, fit.draws[:, k:]))
        made = []
        for i, exponent in enumerate(form.exponents):
            moved = best.copy()
            moved[0, i] *= 1.001
            if abs(_slope(form, moved, column, place, fit)[0] - value[0]) > 1e-9:
                made.append(exponent.name)
        found[column] = (float(value[0]), draws, tuple(made))
    return Powers(fit, found)


def _places(form: Form, column: str, fit: TableFit) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Four places over the column's range in the table, log-spaced, the others at their medians, no data repeated."""
    values = fit.table.column(column)
    x = np.geomspace(values.min(), max(values.max(), 2 * values.min()), 4)
    columns = {c: np.full(4, np.median(fit.table.column(c))) for c in form.columns}
    columns |= {"unique_tokens": np.full(4, FRESH)} if "unique_tokens" in columns else {}
    return x, columns | {column: x}


def _term_of(form: Form, exponents: np.ndarray, column: str, fit: TableFit) -> int | None:
    """The only term that depends on `column`, if it is a power of it; None otherwise."""
    x, columns = _places(form, column, fit)
    slopes = np.diff(form.log_terms(exponents, columns)[0], axis=0) / np.diff(np.log(x))[:, None]
    moving = np.flatnonzero(np.abs(slopes).max(axis=0) > _SAME)
    if moving.size != 1:
        return None
    own = slopes[:, moving[0]]
    return int(moving[0]) if np.ptp(own) <= _SAME * np.abs(own).max() and own[0] < 0 else None


def _slope(form: Form, exponents: np.ndarray, column: str, term: int, fit: TableFit) -> np.ndarray:
    """(d,) exponents > 0 of the column alone, the power of the whole form included."""
    x, columns = _places(form, column, fit)
    logs = form.log_terms(exponents, columns)[..., term]
    slope = (logs[:, 0] - logs[:, -1]) / np.log(x[-1] / x[0])
    return slope if form.power is None else slope * np.asarray(form.power(exponents))


class TableCritical(eqx.Module):
    """C* of a fitted law, or the reason why there is none.

    `compute` C* (unit of C), `time` t* (unit of the exponential's column), both None without an exponential phase; `interval` of C*
    over the draws that have one; `share` of the draws that have; `reason`.
    """

    compute: float | None
    time: float | None
    interval: tuple[float, float] | None
    share: float
    reason: str = eqx.field(static=True)

    def __str__(self) -> str:
        if self.compute is None or self.interval is None:
            return self.reason
        low, high = self.interval
        return f"C* = {self.compute:.4g} ({low:.3g} to {high:.3g}) at t* = {self.time:.4g}; {self.reason}"


def critical_compute_of(
    fit: TableFit,
    *,
    costs: Mapping[str, float] | None = None,
    floors: Mapping[str, float] | None = None,
    unit: float = 6.0,
    draws: int = 50,
) -> TableCritical:
    r"""C* of L - E = sum_x A_x x^-alpha_x + D exp(-lam t): where the exponential phase of the frontier ends (`critical_compute`).

    Only t grows up to C* = c prod x_0^q t*^q_t, at the smallest sizes x_0; a law without exponential, as most forms of tables,
    has none, and this says so.

    **Arguments**: `fit`, identified. `costs` q by column (default: 1; width 2), `unit` c: C = c prod x^q, 6 for params tokens.
    `floors` x_0 by column (default: the smallest in the table). `draws` behind the interval.
    **Returns** `TableCritical`. **Raises** `InputError`; `PrecisionError`. **Source**: Yang 2025, arXiv 2512.22088; derivation
    `frontier`.
    """
    require_x64("critical_compute_of")
    draws = whole("draws", draws, 2)
    form = fit.form

    def none(reason: str) -> TableCritical:
        return TableCritical(None, None, None, 0.0, reason)

    if fit.unidentified:
        return none("cannot tell: " + "; ".join(f"{n}: {why}" for n, why in fit.unidentified.items()))
    if not fit.stable:
        return none(f"cannot tell: the fit is unstable: {fit.unstable[0]}")
    k = len(form.amplitudes)
    best = fit.vector
    kinds = [_kind(form, best[None, k:], j, fit) for j in range(k)]
    timed = [(j, kind[1]) for j, kind in enumerate(kinds) if kind[0] == "exponential"]
    if not timed or form.power is not None:
        return none(f"no exponential phase: {form.equation} has no exponential")
    odd = [form.amplitudes[j] for j, kind in enumerate(kinds) if kind[0] == "other"]
    if len(timed) > 1 or odd:
        return none(
            f"no exponential phase known: the term of {', '.join(odd) or 'a second exponential'} is not of the law"
        )
    term, clock = timed[0]
    sizes = [(j, kind[1]) for j, kind in enumerate(kinds) if kind[0] == "power"]
    names = [name for _, name in sizes]
    if len(set(names)) < len(names) or clock in names:
        return none("no exponential phase known: a column is in two terms")
    q = COSTS | dict(costs or {})
    least = {name: float(fit.table.column(name).min()) for name in names} | dict(floors or {})
    missing = [name for name in (*names, clock) if name not in q]
    if missing:
        raise InputError(
            "costs", expected=f"the cost of {missing[0]}", got=costs, remedy=f"pass costs={{{missing[0]!r}: 1}}"
        )

    def solve(vector: np.ndarray) -> Any:
        exponents = vector[None, k:]
        alpha = [float(_slope(form, exponents, name, j, fit)[0]) for j, name in sizes]
        amplitudes = [float(vector[j] * _level(form, exponents, j, name, a, fit)) for (j, name), a in
                      zip(sizes, alpha, strict=True)]  # fmt: skip
        rate, log_level = _rate(form, exponents, term, clock, fit)
        if not names:
            raise InputError("fit", expected="a power of some size", got=form.equation, remedy="take another form")
        law = risk_law(
            amplitudes, alpha, [q[n] for n in names], names=names, floors=[least[n] for n in names],
            decay=float(vector[term] * np.exp(log_level)), rate=rate, time_cost=q[clock], unit=unit,
        )  # fmt: skip
        return critical_compute(law)

    found = solve(best)
    if not found.found:
        return none(found.reason)
    rows = fit.draws[np.linspace(0, len(fit.draws) - 1, min(draws, len(fit.draws))).astype(int)]
    usable = [solve(v) for v in rows if (v > 0).all()]
    drawn = np.array([c.compute for c in usable if c.found])
    share = drawn.size / len(rows)
    low, high = (float(v) for v in quantiles(drawn, fit.level)) if drawn.size else (np.nan, np.nan)
    if share < fit.level:
        return TableCritical(
            None, None, None, share, f"cannot tell: {share:.0%} of the draws have an exponential phase"
        )
    return TableCritical(found.compute, found.time, (low, high), share, found.reason)


def _kind(form: Form, exponents: np.ndarray, term: int, fit: TableFit) -> tuple[str, str]:
    """("constant" | "power" | "exponential" | "other", the column) of one term."""
    kinds = []
    for column in form.columns:
        x, columns = _places(form, column, fit)
        logs = form.log_terms(exponents, columns)[0, :, term]
        if np.ptp(logs) <= _SAME:
            continue
        by_log, by_x = np.diff(logs) / np.diff(np.log(x)), np.diff(logs) / np.diff(x)
        power = np.ptp(by_log) <= _SAME * np.abs(by_log).max() and by_log[0] < 0
        fall = np.ptp(by_x) <= _SAME * np.abs(by_x).max() and by_x[0] < 0
        kinds.append(("power" if power else "exponential" if fall else "other", column))
    if not kinds:
        return "constant", ""
    return kinds[0] if len(kinds) == 1 else ("other", "")


def _level(form: Form, exponents: np.ndarray, term: int, column: str, alpha: float, fit: TableFit) -> float:
    """t_j x^alpha."""
    x, columns = _places(form, column, fit)
    return float(np.exp(form.log_terms(exponents, columns)[0, 0, term] + alpha * np.log(x[0])))


def _rate(form: Form, exponents: np.ndarray, term: int, column: str, fit: TableFit) -> tuple[float, float]:
    """(lam, log of t_j at x = 0) of an exponential term."""
    x, columns = _places(form, column, fit)
    logs = form.log_terms(exponents, columns)[0, :, term]
    rate = float((logs[0] - logs[-1]) / (x[-1] - x[0]))
    return rate, float(logs[0] + rate * x[0])
