"""Worked plans, each held back by something else, sharing and stopping: what the planner says.

    python -m benchmarks.planner [--only flop,memory,...] [--all]

`--all` prints the sensitivities and the assumptions as well. The law is Chinchilla's by Besiroglu et al. 2024 (arXiv 2404.10102),
repetition by Muennighoff et al. 2023 (arXiv 2305.16264). tests/test_planner.py holds every case to differences and scans.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import numpy as np

from odescale import OutsideTheoryError, plan
from odescale.resources import Assumptions, Plan, reallocate

LAW = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
REPEATED = LAW | {"repetition": 15.39}


class Case(NamedTuple):
    """A question, and what must hold its answer back."""

    law: dict[str, float]
    budgets: dict[str, float]
    binding: set[str]
    assumptions: Assumptions | None = None

    def plan(self, **changes: Any) -> Plan:
        """The answer, at other budgets where `changes` names some."""
        return plan(self.law, self.budgets | changes, assumptions=self.assumptions)


CASES = {
    "flop": Case(LAW, {"flop": 1e21}, {"flop"}),
    "memory": Case(LAW, {"flop": 1e24, "memory": 40e9, "devices": 8}, {"flop", "memory", "devices"}),
    "unique tokens": Case(REPEATED, {"flop": 1e22, "unique_tokens": 2e10}, {"flop", "unique_tokens"}),
    "epochs": Case(
        REPEATED, {"flop": 1e23, "unique_tokens": 1e10, "max_epochs": 4}, {"flop", "max_epochs", "unique_tokens"}
    ),
    "wall-clock": Case(LAW, {"flop": 1e25, "hours": 100, "devices": 256}, {"hours", "devices"}),
    "served tokens": Case(LAW, {"flop": 1e24, "served_tokens": 1e13, "serve_flop": 1e24}, {"flop", "serve_flop"}),
    "batch": Case(LAW, {"hours": 100, "devices": 1024, "max_batch": 1e6}, {"hours", "max_batch"}),
    "critical batch": Case(
        LAW | {"critical_batch": 2e6}, {"hours": 100, "devices": 64, "flop": 1e23}, {"hours", "devices"},
        Assumptions(step_seconds=0.5),
    ),
}  # fmt: skip
REFUSED = ({"flop": 1e21, "memory": 1e6, "devices": 4}, {"hours": 0.0}, {"flop": 1e21, "unique_tokens": 10.0})
TASKS = ((2.0, 0.5, 1.0), (5.0, 0.3, 2.0), (1.0, 0.8, 0.5), (8.0, 0.6, 4.0))
"""(a, p, c0) of the curves a (1 + c/c0)^-p that share a budget."""
WEIGHTS = (1.0, 0.5, 2.0, 0.7)


def sharing() -> None:
    """Four runs that share 100 units, beside 2e5 random splits."""
    curves = [lambda c, a=a, p=p, s=s: a * (1 + c / s) ** -p for a, p, s in TASKS]
    found = reallocate(curves, 100.0, weights=WEIGHTS)
    splits = 100 * np.random.default_rng(0).dirichlet(np.ones(4), 200_000)
    totals = np.sum([w * f(splits[:, i]) for i, (w, f) in enumerate(zip(WEIGHTS, curves, strict=True))], axis=0)
    ends = [reallocate(curves, 100.0 + s, weights=WEIGHTS).total for s in (-0.1, 0.1)]
    print(f"## sharing\n{found}\nbest of 200000 random splits: {totals.min():.6g} against {found.total:.6g};", end=" ")
    print(f"nu against the difference: {found.multiplier * 0.2 / (ends[0] - ends[1]) - 1:+.1e}\n")


def main(given: list[str] | None = None) -> None:
    """Prints the cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of cases, comma-separated")
    parser.add_argument("--all", action="store_true", help="sensitivities and assumptions too")
    asked = parser.parse_args(given)
    names = [n.strip() for n in asked.only.split(",") if n.strip()] or list(CASES)
    for name in names:
        case, clock = CASES[name], time.perf_counter()
        found = case.plan()
        seconds = time.perf_counter() - clock
        errors = []
        for worth in found.worth:
            ends = [case.plan(**{worth.name: worth.amount * np.exp(s)}).loss for s in (-1e-3, 1e-3)]
            errors.append(f"{worth.name} {worth.right:.5g} / {(ends[0] - ends[1]) / 2e-3:.5g}")
        print(f"## {name}: {case.budgets}\n" + ("\n".join(found.lines()) if asked.all else str(found)))
        print(f"  multiplier / difference of plans: {', '.join(errors)}; {seconds:.2f} s\n")
    if not asked.only:
        for budgets in REFUSED:
            try:
                plan(LAW, budgets)
            except OutsideTheoryError as refusal:
                print(f"refused: {refusal}")
        print()
        sharing()


if __name__ == "__main__":
    main()
