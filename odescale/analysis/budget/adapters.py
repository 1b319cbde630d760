"""Laws of the library as losses of a plan: fits of tables, risk laws, fitted schedule laws, systems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float
from scipy.interpolate import CubicSpline, RectBivariateSpline

from odescale.analysis.budget.law import RANGES, BudgetLaw, ChinchillaLaw, Quantity, Values, function_of
from odescale.analysis.forecast.fit import LawFit, evaluate
from odescale.analysis.forecast.laws import course_of, law_named
from odescale.analysis.forecast.loss_curve import LossCurve
from odescale.analysis.frontier.risk_law import TIME, RiskLaw
from odescale.analysis.tables.forms import Form
from odescale.analysis.tables.result import TableFit
from odescale.errors import InputError, require_number, whole
from odescale.solve.integrate import integrate
from odescale.systems.base import AbstractSystem

DRAWS = 100
"""Draws of a fit that a plan takes, spread over those there are."""


def law_of(law: Any, ranges: Mapping[str, tuple[float, float]] | None = None) -> BudgetLaw:
    """`law` as a `BudgetLaw`: one already, a `ChinchillaLaw` or its numbers by name, a `TableFit`, or a `RiskLaw`.

    A `RiskLaw` brings its own compute (its `unit` in FLOP, then), its floors and no parameters: memory cannot be budgeted unless
    one of its sizes is called "params". `ranges`: of the variables where others are wanted.
    **Raises** `InputError`: anything else (`plain_law`, `schedule_law`, `system_law` make laws of it), a fit that its table
    leaves open.
    """
    if isinstance(law, Mapping):
        missing = [name for name in ("E", "A", "B", "alpha", "beta") if name not in law]
        fields = set(ChinchillaLaw.__dataclass_fields__)
        if missing or set(law) - fields:
            got = sorted(set(law) - fields) or missing
            raise InputError("law", expected="E, A, B, alpha, beta by name, and fields of ChinchillaLaw", got=got,
                             remedy="mend the names")  # fmt: skip
        law = ChinchillaLaw(**law)
    if isinstance(law, BudgetLaw):
        found = law
    elif isinstance(law, ChinchillaLaw):
        notes = (
            () if law.repetition is not None else ("repeated tokens count as fresh ones: the law knows no repetition",)
        )
        found = BudgetLaw("Chinchilla", law.variables, function_of(law), {n: RANGES[n] for n in law.variables if n in RANGES},
                          notes=notes)  # fmt: skip
    elif isinstance(law, TableFit):
        found = _of_table(law)
    elif isinstance(law, RiskLaw):
        found = _of_risk(law)
    else:
        raise InputError(
            "law", expected="a ChinchillaLaw, its numbers by name, a TableFit, a RiskLaw or a BudgetLaw", got=type(law).__name__,
            remedy="make one with plain_law, schedule_law or system_law of odescale.resources",
        )  # fmt: skip
    if ranges:
        unknown = sorted(set(ranges) - set(found.free))
        if unknown:
            raise InputError(
                "ranges", expected=f"variables {', '.join(found.free)}", got=unknown, remedy="mend the name"
            )
        held = {**found.ranges, **ranges}
        found = BudgetLaw(found.name, found.variables, found.function, held, found.params, found.tokens, found.flop,
                          found.drawn, found.seen, found.notes)  # fmt: skip
    return found


def _of_table(fit: TableFit) -> BudgetLaw:
    fit.require_identified("a plan")
    unknown = [c for c in fit.form.columns if c not in (*RANGES, "unique_tokens", "epochs")]
    if unknown:
        raise InputError("law", expected="a form of params, tokens, unique_tokens, epochs, batch or steps", got=unknown,
                         remedy="plain_law(lambda **v: fit.predict(**v).loss, ranges, params=..., tokens=...)")  # fmt: skip
    good = fit.draws[np.isfinite(fit.draws).all(axis=1)]
    chosen = good[np.linspace(0, len(good) - 1, min(DRAWS, len(good))).astype(int)] if len(good) else good
    variables = tuple(dict.fromkeys("unique_tokens" if c == "epochs" else c for c in fit.form.columns))
    seen = {}
    for name in variables:
        if name in RANGES:
            column = fit.table.column(name)[np.isfinite(fit.residual)]
            seen[name] = float(column.min()), float(column.max())
    notes = [f"the fit is unstable: {reason}" for reason in fit.unstable]
    if "unique_tokens" not in variables:
        notes.append("repeated tokens count as fresh ones: the law knows no repetition")
    tokens = None
    if "tokens" not in variables and {"steps", "batch"} <= set(variables):
        tokens = _steps_times_batch
    return BudgetLaw(
        f"fit of {fit.form.name}", variables, _form_function(fit.form, fit.vector),
        {n: RANGES[n] for n in variables if n in RANGES}, tokens=tokens,
        drawn=tuple(_form_function(fit.form, row) for row in chosen), seen=seen, notes=tuple(notes),
    )  # fmt: skip


def _form_function(form: Form, vector: Float[np.ndarray, " p"]) -> Quantity:
    def function(values: Values) -> np.ndarray:
        columns = dict(values)
        if "epochs" in form.columns:
            columns["epochs"] = columns["tokens"] / columns["unique_tokens"]
        shape = np.broadcast_shapes(*(np.shape(v) for v in columns.values()))
        rows = {n: np.broadcast_to(v, shape).reshape(-1) for n, v in columns.items() if n in form.columns}
        return np.exp(form.log_loss(vector, rows)).reshape(shape)

    return function


def _steps_times_batch(values: Values) -> np.ndarray:
    return values["steps"] * values["batch"]


def _of_risk(law: RiskLaw) -> BudgetLaw:
    timed = law.time_kind != "none"
    variables = (*law.names, TIME) if timed else law.names
    read = {name: np.asarray(getattr(law, name), float) for name in ("amplitudes", "exponents", "costs", "floors")}
    decay, rate, unit = float(law.decay), float(law.rate), float(law.unit)
    time_cost, time_floor = float(law.time_cost), float(law.time_floor)

    def risk(values: Values) -> np.ndarray:
        columns = [np.asarray(values[name], float) for name in variables]
        powers = zip(read["amplitudes"], read["exponents"], law.variable, strict=True)
        total = sum((a * columns[place] ** -e for a, e, place in powers), start=np.zeros(()))
        return total + decay * np.exp(-rate * columns[-1]) if law.exponential else total

    def flop(values: Values) -> np.ndarray:
        powers = [np.asarray(values[n], float) ** q for n, q in zip(law.names, read["costs"], strict=True)]
        return unit * np.prod(np.broadcast_arrays(*powers), axis=0) * (values[TIME] ** time_cost if timed else 1.0)

    ranges = {n: (max(float(x), 1.0), 1e30) for n, x in zip(law.names, read["floors"], strict=True)}
    if timed:
        ranges[TIME] = (
            max(time_floor, 1e-3 / rate if law.exponential else 1e-3),
            600 / rate if law.exponential else 1e30,
        )
    note = "the loss is the excess risk: what no size removes is not in it"
    return BudgetLaw("risk law", variables, risk, ranges, flop=flop, notes=(note,))


def schedule_law(
    fit: LawFit,
    schedule: Callable[[float], LossCurve],
    steps: tuple[float, float],
    *,
    params: float,
    batch: float,
    points: int = 33,
) -> BudgetLaw:
    """L(T): the last loss of a run of T steps under `schedule(T)`, by a fitted schedule law; the model and the batch are fixed.

    **Arguments**: `fit`: identified. `schedule`: total steps -> a planned curve whose last point is the end (`planned_curve`).
    `steps` (low, high). `params` N; `batch`: tokens per step. `points`: horizons that are evaluated, a spline in logs between.
    **Returns** `BudgetLaw` of the variable "steps". **Raises** `InputError`, `OutsideTheoryError`: a fit that is not identified.
    **Failure regime**: beyond the intrinsic time of the fitted curves the law extrapolates; the plan repeats it.
    """
    fit.require()
    low, high = (require_number("steps", s, open_=True) for s in steps)
    if not low < high:
        raise InputError("steps", expected="(low, high)", got=steps, remedy="low < high")
    size, width = require_number("params", params, open_=True), require_number("batch", batch, open_=True)
    whole("points", points, 8)
    horizons = np.geomspace(low, high, points)
    law = law_named(fit.law)
    courses = [course_of(schedule(float(T)), fit.law) for T in horizons]
    chosen = (
        fit.draws[np.linspace(0, len(fit.draws) - 1, min(DRAWS, len(fit.draws))).astype(int)] if len(fit.draws) else []
    )

    def function(vector: np.ndarray) -> Quantity:
        ends = np.array([evaluate(law, course, vector)[-1] for course in courses])
        spline = CubicSpline(np.log(horizons), np.log(ends))
        return lambda values: np.exp(spline(np.log(values["steps"])))

    return BudgetLaw(
        f"schedule law {fit.law}", ("steps",), function(fit.vector), {"steps": (low, high)},
        params=lambda v: np.full(np.shape(v["steps"]), size), tokens=lambda v: v["steps"] * width,
        drawn=tuple(function(row) for row in chosen),
        notes=(f"beyond the fitted intrinsic time, {fit.end_tau:.3g}, the schedule law extrapolates",),
    )  # fmt: skip


def table_law(
    values: Mapping[str, ArrayLike],
    loss: Float[ArrayLike, "n m"],
    *,
    params: Quantity | None = None,
    tokens: Quantity | None = None,
    flop: Quantity | None = None,
    name: str = "table",
) -> BudgetLaw:
    """log L as a bicubic spline in the logs of two variables: a surface computed or measured on a grid as the loss of a plan.

    **Arguments**: `values`: two names with their increasing values, (n,) and (m,), at least 4 each; `loss` (n, m) > 0. The others
    as in `BudgetLaw`. **Returns** `BudgetLaw`, its ranges those of the grid. **Raises** `InputError`.
    """
    if len(values) != 2:
        raise InputError("values", expected="two variables", got=tuple(values), remedy="a grid of two")
    names = tuple(values)
    axes = [np.asarray(values[n], float) for n in names]
    surface = np.asarray(loss, float)
    for label, axis in zip(names, axes, strict=True):
        if axis.ndim != 1 or axis.size < 4 or not ((axis > 0).all() and (np.diff(axis) > 0).all()):
            raise InputError(label, expected="at least 4 increasing values > 0", got=axis, remedy="mend the grid")
    if surface.shape != (axes[0].size, axes[1].size) or not (np.isfinite(surface) & (surface > 0)).all():
        raise InputError("loss", expected=f"finite numbers > 0, shape {(axes[0].size, axes[1].size)}", got=surface,
                         remedy="one value per point of the grid")  # fmt: skip
    spline = RectBivariateSpline(np.log(axes[0]), np.log(axes[1]), np.log(surface))

    def function(at: Values) -> np.ndarray:
        return np.exp(spline.ev(np.log(at[names[0]]), np.log(at[names[1]])))

    ranges = {n: (float(a[0]), float(a[-1])) for n, a in zip(names, axes, strict=True)}
    return BudgetLaw(name, names, function, ranges, params, tokens, flop)


def system_law(
    build: Callable[[float], AbstractSystem],
    size: str,
    sizes: Sequence[float] | Float[np.ndarray, " n"],
    times: Float[ArrayLike, " m"],
    *,
    params: Quantity | None = None,
    tokens: Quantity | None = None,
    flop: Quantity | None = None,
    floor: Callable[[float], float] | None = None,
) -> BudgetLaw:
    """L(size, time) of an odescale system, integrated at every size and interpolated in logs (`table_law`).

    **Arguments**: `build`: size -> system; `size`: its name, `sizes` (n,) at least 4. `times` (m,) > 0: in the system's own time.
    `params`, `tokens`, `flop`: of {size, "time"}, see `BudgetLaw`; without `flop` and without both others there is no cost.
    `floor`: size -> what no time removes there, added to the trajectory's loss; `spectral(floor=...)` and label noise are
    not in that loss. **Returns** `BudgetLaw` of (`size`, "time"). **Raises** `InputError`; what `integrate` raises.
    **Failure regime**: kinks of the curve in time (a peaked one) need more `times`.
    """
    at = np.asarray(times, float)
    if at.ndim != 1 or at.size < 4 or not (at > 0).all():
        raise InputError("times", expected="at least 4 increasing times > 0", got=times, remedy="mend them")
    rows = []
    for value in sizes:
        loss = np.asarray(integrate(build(float(value)), ts=at).loss, float)[1:]
        rows.append(loss + (floor(float(value)) if floor is not None else 0.0))
    return table_law({size: np.asarray(sizes, float), TIME: at}, np.stack(rows), params=params, tokens=tokens, flop=flop,
                     name="system")  # fmt: skip
