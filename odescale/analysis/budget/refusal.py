"""Budgets that nothing fits: which one, and the smallest change of each alone that would do."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from odescale.analysis.budget.assumptions import Setup
from odescale.analysis.budget.problem import LIMITS, Problem
from odescale.analysis.budget.solver import Point, least
from odescale.errors import OutsideTheoryError

GIB = 2.0**30
MOST_DEVICES = 2**20


def refuse(problems: list[Problem], points: list[Point]) -> NoReturn:
    """Raises `OutsideTheoryError`: the budgets that the smallest run breaks, and for each the least that would fit alone."""
    needs: dict[str, tuple[float, Setup]] = {}
    for problem in problems:
        for index, name in enumerate(problem.constraints):
            if name not in LIMITS:
                continue
            found = least(problem.both, index, *problem.bounds)
            if found is None or found <= 0:
                continue
            budget = LIMITS[name] if name != "epochs" else "unique_tokens"
            amount = float(np.exp(found)) * max(float(getattr(problem.budgets, budget)), 1e-300)
            if budget not in needs or amount < needs[budget][0] * (1 - 1e-9):
                needs[budget] = amount, problem.setup
    best = min(range(len(points)), key=lambda i: points[i].worst)
    low = dict(zip(problems[best].names, np.exp(problems[best].bounds[0]), strict=True))
    smallest = ", ".join(f"{name} {value:.3g}" for name, value in low.items())
    ways = [f"{_amount(name, amount)} with {setup}" for name, (amount, setup) in needs.items()]
    if "memory" in needs and (devices := _devices(problems[best])) is not None:
        ways.append(f"{devices} devices with ZeRO-3 and full checkpointing at the memory there is")
    given = ", ".join(f"{name} {value:.4g}" for name, value in problems[best].budgets.given.items())
    remedy = "the smallest change that fits: " + (", or ".join(ways) if ways else _together(problems[best]))
    raise OutsideTheoryError(
        "budgets", expected=f"room for the smallest run that is allowed ({smallest})", got=given, remedy=remedy
    )


def _together(problem: Problem) -> str:
    """What the smallest run uses of every budget that it breaks: one alone is not enough."""
    slack = problem.both(problem.bounds[0])[1:]
    parts = []
    for name, over in zip(problem.constraints, slack, strict=True):
        if name in LIMITS and over > 0:
            budget = LIMITS[name] if name != "epochs" else "unique_tokens"
            parts.append(_amount(budget, float(np.exp(over)) * max(float(getattr(problem.budgets, budget)), 1e-300)))
    return " and ".join(parts) + f" together, with {problem.setup}"


def _amount(name: str, amount: float) -> str:
    # Rounded up in the last place shown: what is printed must fit.
    exact = amount / GIB if name == "memory" else amount
    power = 10.0 ** (np.floor(np.log10(exact)) - 3)
    shown = np.ceil(exact / power * (1 - 1e-9)) * power
    unit = " GiB per device" if name == "memory" else ""
    return f"at least {shown:.4g}{unit}" if name == "memory" else f"{name} at least {shown:.4g}"


def _devices(problem: Problem) -> int | None:
    """The fewest devices on which ZeRO-3 with full checkpointing holds the smallest model; None if none do."""
    setup = Setup(problem.setup.optimizer, "full", 3, problem.setup.adapter)
    z = problem.bounds[0]
    size = np.asarray(problem.used(z)["params"])
    limit = float(problem.budgets.memory or 0.0)
    if (
        problem.budgets.max_batch is not None
        or problem.assumptions.memory(size, np.asarray(float(MOST_DEVICES)), setup) > limit
    ):
        return None
    few, many = 0, MOST_DEVICES
    while many - few > 1:
        middle = (few + many) // 2
        fits = problem.assumptions.memory(size, np.asarray(float(middle)), setup) <= limit
        few, many = (few, middle) if fits else (middle, many)
    return many
