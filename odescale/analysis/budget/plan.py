"""The answer of the planner: what to train, what holds it back, what more of anything is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import numpy as np

from odescale.analysis.budget.assumptions import Assumptions, Setup
from odescale.analysis.budget.problem import Budgets

SHOWN = {
    "loss": "", "params": "", "tokens": "", "tokens_per_param": "", "epochs": "", "batch": "tokens", "steps": "",
    "train_flop": "FLOP", "serve_flop": "FLOP", "hours": "h", "memory": "GiB per device",
}  # fmt: skip
GIB = 2.0**30


class Worth(eqx.Module):
    """What resource `name` is worth at `amount` (`unit`): `left`, `right` = -dL*/dlog X from below and above (equal but at a
    switch of choice), `per_unit` = `right`/X, `one_percent`: the loss that 1 % more takes off, solved anew; `switch`: the
    choice then, if another. Negative for a demand such as served tokens."""

    name: str = eqx.field(static=True)
    unit: str = eqx.field(static=True)
    amount: float
    left: float
    right: float
    per_unit: float
    one_percent: float
    switch: str = eqx.field(static=True, default="")

    def __str__(self) -> str:
        sides = f"{self.right:.4g}" if self.left == self.right else f"{self.left:.4g} left, {self.right:.4g} right"
        more = f", then with {self.switch}" if self.switch else ""
        return f"{self.name} ({self.amount:.4g} {self.unit}): {sides}; 1 % more takes off {self.one_percent:.3g}{more}"


class Sensitivity(eqx.Module):
    """`loss` dL*/dlog a and `change` dlog z*/dlog a of every planned number z, for the assumption `name`."""

    name: str = eqx.field(static=True)
    loss: float
    change: dict[str, float]

    def __str__(self) -> str:
        moved = ", ".join(f"dlog {k} {v:+.3g}" for k, v in self.change.items())
        return f"{self.name}: dL*/dlog {self.loss:+.4g}; {moved}"


class Choice(eqx.Module):
    """Another discrete choice at its own best: `loss`, what it uses, what binds."""

    setup: Setup
    loss: float
    used: dict[str, float]
    binding: tuple[str, ...] = eqx.field(static=True)


class Plan(eqx.Module):
    """What to train: print it.

    - `setup`: the discrete choice; `loss`: predicted, in the law's unit; `used`: params, tokens, batch (tokens per step),
      steps, epochs, train_flop, serve_flop, hours, memory (bytes per device) and the law's own variables.
    - `binding`: budget -> multiplier (loss per e-fold). `worth`: the value of each budget. `residual`: of the KKT conditions,
      relative.
    - `intervals`: by name of `used`, "loss" and "worth NAME", at `level`, empty for a law without draws; the setup is kept.
    - `sensitivity`: to every assumption that matters, largest first. `others`: runners-up in order. `refused`: choices that do
      not fit.
    - `notes`: what is assumed, extrapolated, at the end of a range.
    """

    law: str = eqx.field(static=True)
    setup: Setup
    budgets: Budgets
    assumptions: Assumptions
    loss: float
    used: dict[str, float]
    free: tuple[str, ...] = eqx.field(static=True)
    binding: dict[str, float]
    worth: tuple[Worth, ...]
    residual: float
    intervals: dict[str, tuple[float, float]]
    level: float
    sensitivity: tuple[Sensitivity, ...]
    others: tuple[Choice, ...]
    refused: tuple[str, ...] = eqx.field(static=True)
    notes: tuple[str, ...] = eqx.field(static=True)

    def __getitem__(self, name: str) -> float:
        """A number of the plan by name, `plan["params"]`; "loss" and "tokens_per_param" too."""
        return self.numbers[name]

    @property
    def numbers(self) -> dict[str, float]:
        """`used`, with loss and tokens per parameter."""
        more = {"loss": self.loss}
        if {"params", "tokens"} <= set(self.used):
            more["tokens_per_param"] = self.used["tokens"] / self.used["params"]
        return {**more, **self.used}

    def value_of(self, name: str) -> Worth:
        """The worth of one budget; `KeyError` for one that was not given."""
        return {w.name: w for w in self.worth}[name]

    def table(self) -> list[tuple[str, str, str]]:
        """(what, value with unit, interval or nothing), the plan as rows."""
        rows, numbers = [], self.numbers
        for name in dict.fromkeys([*SHOWN, *self.free]):
            if name not in numbers or (name == "serve_flop" and numbers[name] == 0):
                continue
            scale = GIB if name == "memory" else 1.0
            unit = SHOWN.get(name, "")
            pair = self.intervals.get(name)
            fixed = pair is None or pair[1] - pair[0] <= 1e-9 * abs(pair[1])
            spread = "" if pair is None or fixed else f"{pair[0] / scale:.4g} to {pair[1] / scale:.4g}"
            rows.append((name, f"{numbers[name] / scale:.5g} {unit}".strip(), spread))
        return rows

    def lines(self) -> list[str]:
        """Everything, the assumptions too, line by line."""
        shown = [*str(self).split("\n"), "sensitivity to the assumptions:", *(f"  {s}" for s in self.sensitivity)]
        return [*shown, "assumptions:", *(f"  {line}" for line in self.assumptions.lines())]

    def __str__(self) -> str:
        width = max(len(row[0]) for row in self.table())
        lines = [f"plan by {self.law}: {self.setup}"]
        for name, value, spread in self.table():
            lines.append(f"  {name:<{width}}  {value}" + (f"  ({self.level:.0%}: {spread})" if spread else ""))
        held = ", ".join(f"{name} ({value:.4g})" for name, value in self.binding.items()) or "nothing"
        lines.append(f"  binding (loss per e-fold): {held}; KKT residual {self.residual:.1e}")
        lines += [f"  worth of {w}" for w in self.worth]
        if self.others:
            told = "; ".join(f"{o.setup}: +{o.loss - self.loss:.3g}" for o in self.others[:3])
            lines.append(f"  runners-up: {told}")
        if self.refused:
            lines.append(f"  does not fit: {len(self.refused)} other choices, {self.refused[0]} among them")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "law": self.law, "setup": _setup(self.setup), "budgets": self.budgets.given, "numbers": _finite(self.numbers),
            "binding": self.binding, "kkt_residual": self.residual, "level": self.level,
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
            "worth": [_finite({f: getattr(w, f) for f in Worth.__dataclass_fields__}) for w in self.worth],
            "sensitivity": [{"name": s.name, "loss": s.loss, "change": s.change} for s in self.sensitivity],
            "others": [{"setup": _setup(o.setup), "loss": o.loss, "binding": list(o.binding), "used": _finite(o.used)}
                       for o in self.others],
            "refused": list(self.refused), "assumptions": self.assumptions.to_dict(), "notes": list(self.notes),
        }  # fmt: skip


def _setup(setup: Setup) -> dict[str, Any]:
    return {name: getattr(setup, name) for name in Setup.__dataclass_fields__}


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Infinite numbers as None: JSON has none."""
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in values.items()}
