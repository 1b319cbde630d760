"""The plan of least loss under budgets: every discrete choice solved exactly, multipliers, intervals, sensitivities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from odescale.analysis.budget.adapters import law_of
from odescale.analysis.budget.assumptions import Assumptions, Setup, setups
from odescale.analysis.budget.plan import Choice, Plan, Sensitivity, Worth
from odescale.analysis.budget.problem import LIMITS, UNITS, Budgets, Problem, check_law
from odescale.analysis.budget.refusal import refuse
from odescale.analysis.budget.solver import Point, kkt_matrix, slopes, solve
from odescale.errors import InputError, require_number

SHIFT = 1e-5
"""Step in the log of a budget or an assumption, for derivatives of the Lagrangian."""
TIED = 1e-9
"""Two choices whose losses differ by less, relatively, are at a switch."""
ANEW = 6
"""Choices solved again at a moved budget: the best ones, and those that did not fit."""
EDGE = 1e-6
NOTHING = 1e-9
"""A worth below this share of the loss is rounding."""
FEWER = (
    "fewer devices would do better: all of them are used, one micro-batch each, and the batch is larger than is good"
)
ENTERS = ("unique_tokens", "devices", "max_batch")


def plan(
    law: Any,
    budgets: Budgets | Mapping[str, float],
    *,
    choices: Mapping[str, Any] | None = None,
    assumptions: Assumptions | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    draws: int = 100,
    level: float = 0.9,
) -> Plan:
    r"""min L(N, D, ...) subject to every budget: what to train, what binds, what one more unit of each resource buys.

        grad L + sum_j lam_j grad log(usage_j) = 0,   -dL*/dlog X = -d(Lagrangian)/dlog X   (envelope theorem)

    Solved in the logs of the variables for every discrete choice (optimiser, checkpointing, ZeRO stage, adapter) and compared.
    For a Chinchilla law without repetition this is a geometric program: the KKT point is the global minimum.

    **Arguments**

    - `law`: a `ChinchillaLaw` or its numbers {"E": ...}, a `TableFit`, a `RiskLaw`, or a `BudgetLaw` from `plain_law`, `table_law`,
      `schedule_law`, `system_law` (all in `odescale.resources`).
    - `budgets`: `Budgets`, or its fields by name: flop, memory (bytes per device), hours, devices, unique_tokens, max_epochs,
      served_tokens, serve_flop, max_batch.
    - `choices`: {"optimizer": ("adam", "adam-8bit"), "checkpointing": ..., "zero": ..., "adapter": ...}; default: adam, no
      checkpointing; with a memory budget none, selective and full, and with several devices every ZeRO stage.
    - `assumptions`: `Assumptions`. **A choice has no effect on the loss and a ZeRO stage none on the speed unless you say so
      there.**
    - `ranges`: of the variables, name -> (low, high). `draws`: of the law's fit, solved again with the chosen setup; `level`.

    **Returns** `Plan`: print it. **Raises** `InputError`: budgets that nothing fits, with the smallest change that would; a budget
    that the law knows no use of.
    **Failure regime**: far outside the fit's table the law is an extrapolation, which the notes repeat; sizes are continuous.
    **Source**: Hoffmann et al. 2022 (arXiv 2203.15556); for the costs see `Assumptions`.

    ```python
    import odescale
    law = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
    print(odescale.plan(law, {"flop": 1e21, "memory": 80e9, "devices": 8, "hours": 240}))
    ```
    """
    held = _budgets(budgets)
    told = Assumptions() if assumptions is None else assumptions
    if not isinstance(told, Assumptions):
        raise InputError("assumptions", expected="Assumptions(...)", got=told, remedy="odescale.resources.Assumptions")
    require_number("level", level, 0.0, 1.0, open_=True)
    require_number("draws", draws)
    known = law_of(law, ranges)
    check_law(known, held)
    problems = [Problem(known, held, told, s) for s in _choices(choices, held)]
    points = _solve_all(problems)
    fitting = sorted((p.value, i) for i, p in enumerate(points) if p.worst == 0 and np.isfinite(p.value))
    if not fitting:
        refuse(problems, points)
    # Equal losses: the first listed, which is the simplest.
    first = min(i for value, i in fitting if value <= fitting[0][0] * (1 + TIED))
    order = [first, *(i for _, i in fitting if i != first)]
    best, point = problems[first], points[first]
    used = {name: float(value) for name, value in best.used(point.z).items()}
    tied = [i for _, i in fitting if points[i].value <= point.value * (1 + TIED)]
    anew = order[:ANEW] + [i for i in range(len(problems)) if points[i].worst > 0][:ANEW]
    worth = tuple(_worth(name, problems, points, tied, anew, first) for name in held.given)
    binding = _binding(best, point)
    # What enters the cost or the data themselves has no constraint of its own: it binds where more of it is worth something.
    binding |= {w.name: w.right for w in worth if w.name in ENTERS and w.right > 0 and w.name not in binding}
    return Plan(
        law=known.name, setup=best.setup, budgets=held, assumptions=told, loss=point.value, used=used,
        free=best.names, binding=binding, worth=worth, residual=point.residual,
        intervals=_intervals(best, point, int(draws), level), level=float(level),
        sensitivity=_sensitivity(best, point), others=tuple(_choice(problems[i], points[i]) for i in order[1:]),
        refused=tuple(str(p.setup) for p, q in zip(problems, points, strict=True) if q.worst > 0),
        notes=(*_notes(best, point, used), *(FEWER for w in worth if w.name == "devices" and w.right < 0)),
    )  # fmt: skip


def _budgets(budgets: Budgets | Mapping[str, float]) -> Budgets:
    if isinstance(budgets, Budgets):
        held = budgets
    else:
        if not isinstance(budgets, Mapping) or set(budgets) - set(UNITS):
            got = sorted(set(budgets) - set(UNITS)) if isinstance(budgets, Mapping) else type(budgets).__name__
            raise InputError("budgets", expected=f"some of {', '.join(UNITS)}", got=got, remedy="mend the name")
        held = Budgets(**{name: None if v is None else require_number(name, v) for name, v in budgets.items()})
    if not held.given:
        raise InputError("budgets", expected="at least one", got="none", remedy='e.g. {"flop": 1e21}')
    return held


def _choices(choices: Mapping[str, Any] | None, budgets: Budgets) -> tuple[Setup, ...]:
    memory, several = budgets.memory is not None, (budgets.devices or 1) > 1
    asked = {
        "optimizer": "adam", "adapter": "none", "checkpointing": ("none", "selective", "full") if memory else "none",
        "zero": (0, 1, 2, 3) if memory and several else 0, **(choices or {}),
    }  # fmt: skip
    return setups(**asked)


def _solve_all(problems: list[Problem]) -> list[Point]:
    """One solution of each; choices with the same costs in all that is budgeted share it."""
    done: dict[tuple, Point] = {}
    points = []
    for problem in problems:
        low, high = problem.bounds
        key = tuple(
            np.round(problem.both(np.stack([low, 0.5 * (low + high), high, 0.3 * low + 0.7 * high])).ravel(), 12)
        )
        if key not in done:
            done[key] = solve(problem.both, low, high)
        points.append(done[key])
    return points


def _lagrangian(problem: Problem, point: Point) -> float:
    found = problem.both(point.z)
    return float(found[0] + point.multipliers @ found[1:])


def _slopes_along(problem: Problem, point: Point, name: str) -> tuple[float, float]:
    """(left, right) derivative of the Lagrangian in the log of a budget or assumption; equal where it is smooth."""
    at = [_lagrangian(problem.moved(name, k * SHIFT) if k else problem, point) for k in (-2, -1, 0, 1, 2)]
    left = (3 * at[2] - 4 * at[1] + at[0]) / (2 * SHIFT)
    right = (-3 * at[2] + 4 * at[3] - at[4]) / (2 * SHIFT)
    if abs(left - right) <= 1e-3 * max(abs(left), abs(right)) + 1e-9 * abs(at[2]):
        left = right = (-at[4] + 8 * at[3] - 8 * at[1] + at[0]) / (12 * SHIFT)
    return left, right


def _worth(
    name: str, problems: list[Problem], points: list[Point], tied: list[int], anew: list[int], first: int
) -> Worth:
    """-dL*/dlog X from both sides, over the choices tied for the best, and what 1 % more really buys."""
    pairs = [_slopes_along(problems[i], points[i], name) for i in tied]
    left, right = max(p[0] for p in pairs), min(p[1] for p in pairs)
    amount = float(getattr(problems[first].budgets, name))
    left, right = (0.0 if abs(side) < NOTHING * abs(points[first].value) else side for side in (left, right))
    losses = []
    for i in anew:
        moved = problems[i].moved(name, np.log(1.01))
        start = points[i].z if points[i].worst == 0 else None
        found = solve(moved.both, *moved.bounds, start)
        losses.append(found.value if found.worst == 0 else np.inf)
    best = anew[int(np.argmin(losses))]
    switch = "" if min(losses) >= losses[anew.index(first)] * (1 - TIED) else str(problems[best].setup)
    gain = points[first].value - min(losses)
    return Worth(
        name, UNITS[name], amount, -left + 0.0, -right + 0.0, -right / amount if amount > 0 else np.inf, gain, switch
    )


def _binding(problem: Problem, point: Point) -> dict[str, float]:
    """Constraint -> multiplier (loss per e-fold of the limit), those that hold the plan back."""
    top = max(float(point.multipliers.max(initial=0.0)), 1e-300)
    return {
        LIMITS.get(name, name): float(m)
        for name, m in zip(problem.constraints, point.multipliers, strict=True)
        if m > 1e-7 * top and m > 1e-12 * abs(point.value)
    }


def _intervals(problem: Problem, point: Point, draws: int, level: float) -> dict[str, tuple[float, float]]:
    """Of every number of the plan, over draws of the law, the setup kept."""
    there = len(problem.law.drawn)
    if not there or not draws:
        return {}
    rows: list[dict[str, float]] = []
    for k in np.unique(np.linspace(0, there - 1, min(draws, there)).astype(int)):
        drawn = problem._replace(draw=int(k))
        found = solve(drawn.both, *drawn.bounds, point.z)
        if found.worst == 0 and np.isfinite(found.value):
            worth = {f"worth {n}": -_slopes_along(drawn, found, n)[1] for n in problem.budgets.given}
            rows.append({"loss": found.value, **{n: float(v) for n, v in drawn.used(found.z).items()}, **worth})
    if not rows:
        return {}
    tails = [(1 - level) / 2, (1 + level) / 2]
    told = {name: np.quantile([row[name] for row in rows], tails) for name in rows[0]}
    return {name: (float(low), float(high)) for name, (low, high) in told.items()}


def _sensitivity(problem: Problem, point: Point) -> tuple[Sensitivity, ...]:
    """dL*/dlog a and dlog z*/dlog a of every assumption a, by the KKT system: [[H, G^T], [G, 0]] d(z, lam) = -d(grad, g)."""
    factors = [f"{k} {part}" for k in ("token_factor", "speed_factor") for part in dict.fromkeys(problem.setup.parts)]
    names = [n for n in problem.assumptions.numbers if getattr(problem.assumptions, n) > 0] + factors
    active = np.flatnonzero(point.multipliers > 1e-9 * max(float(point.multipliers.max(initial=0.0)), 1e-300))
    matrix, _ = kkt_matrix(problem.both, point, active)
    weights = np.concatenate([[1.0], point.multipliers])
    found = []
    for name in names:
        ends = [slopes(problem.moved(name, s).both, point.z) for s in (-1e-4, 1e-4)]
        value, pull = (ends[1][0] - ends[0][0]) / 2e-4, weights @ (ends[1][1] - ends[0][1]) / 2e-4
        right = -np.concatenate([pull, value[1 + active]])
        moved = np.linalg.lstsq(matrix, right, rcond=1e-12)[0][: point.z.size]
        low, high = problem.moved(name, -1e-4), problem.moved(name, 1e-4)
        if np.abs(value).max() > 1e-12:
            # What follows from z and the assumption: sizes that the law makes of its variables move with both.
            a, b = low.used(point.z - 1e-4 * moved), high.used(point.z + 1e-4 * moved)
            change = {n: float(np.log(b[n] / a[n]) / 2e-4) for n in ("params", "tokens") if n in a}
            change |= {n: float(m) for n, m in zip(problem.names, moved, strict=True)}
            found.append(Sensitivity(name, float(weights @ value), change))
    return tuple(sorted(found, key=lambda s: -abs(s.loss)))


def _choice(problem: Problem, point: Point) -> Choice:
    used = {name: float(value) for name, value in problem.used(point.z).items()}
    return Choice(problem.setup, point.value, used, tuple(_binding(problem, point)))


def _notes(problem: Problem, point: Point, used: Mapping[str, float]) -> tuple[str, ...]:
    law, notes = problem.law, list(problem.law.notes)
    told = problem.assumptions
    if not told.token_factor:
        notes.append(
            "the choice of optimiser, precision and adapter is assumed to have NO effect on the loss: give token_factor"
        )
    if problem.budgets.hours is not None and not told.speed_factor:
        notes.append("ZeRO stages are assumed to cost NO time: give speed_factor")
    if problem.setup.adapter != "none":
        notes.append("a law of training from scratch says nothing of adapters on a pretrained model")
    for name, (low, high) in law.seen.items():
        if name in used and not low * 0.999 <= used[name] <= high * 1.001:
            far = used[name] / high if used[name] > high else low / used[name]
            notes.append(f"{name} is {far:.3g} times outside the runs of the table: an extrapolation")
    for name in _binding(problem, point):
        if name.endswith(("at most", "at least")):
            notes.append(f"{name.split()[0]} is at the end of its range: the answer is about the range")
    if problem.devices < (problem.budgets.devices or 1.0) * (1 - EDGE):
        notes.append(
            f"{problem.devices:.6g} devices at work: max_batch holds no more micro-batches of {problem.per_device:g} tokens"
        )
    if used.get("steps", 1.0) < 1:
        notes.append("less than one step: the batch is larger than the tokens")
    return tuple(notes)
