"""Budgets as constraints in the logs of the variables, for one discrete choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import numpy as np
from jaxtyping import Float

from odescale.analysis.budget.assumptions import Assumptions, Setup
from odescale.analysis.budget.law import RANGES, BudgetLaw
from odescale.errors import InputError, require_number

SMALLEST = 1e-300
UNITS = {
    "flop": "FLOP", "memory": "bytes per device", "unique_tokens": "tokens", "hours": "h", "devices": "devices",
    "served_tokens": "tokens", "serve_flop": "FLOP", "max_batch": "tokens per step", "max_epochs": "epochs",
}  # fmt: skip
LIMITS = {"flop": "flop", "memory": "memory", "hours": "hours", "serve_flop": "serve_flop", "epochs": "max_epochs"}
"""Constraint -> the budget that it holds to."""


class Budgets(eqx.Module):
    """What there is; None: no limit. Every number in the unit of its line.

    - `flop`: of the training run, recomputation counted, and of inference too (2 N S) unless `serve_flop` is given.
    - `memory`: bytes on **each device**. `hours`: wall-clock. `devices`: data-parallel, all at work; default 1.
    - `unique_tokens`: different tokens that exist; `max_epochs`: times that each may be seen, default 1 for a law that knows no
      repetition, else no limit.
    - `served_tokens` S: tokens of inference over the model's life (a demand, not a limit); `serve_flop`: a budget of its own
      for 2 N S.
    - `max_batch`: tokens per step; devices beyond one micro-batch each stay idle.
    """

    flop: float | None = None
    memory: float | None = None
    unique_tokens: float | None = None
    hours: float | None = None
    devices: float | None = None
    served_tokens: float | None = None
    serve_flop: float | None = None
    max_batch: float | None = None
    max_epochs: float | None = None

    def __check_init__(self) -> None:
        for name, value in self.given.items():
            require_number(name, value)
        for name, least in (("devices", 1.0), ("max_epochs", 1.0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(name, expected=f"at least {least:g}", got=value, remedy=f"at least {least:g}")
        if self.serve_flop is not None and self.served_tokens is None:
            raise InputError(
                "serve_flop", expected="served_tokens beside it", got=None, remedy="say how many tokens are served"
            )
        if self.max_epochs is not None and self.unique_tokens is None:
            raise InputError(
                "max_epochs", expected="unique_tokens beside it", got=None, remedy="say how many there are"
            )

    @property
    def given(self) -> dict[str, float]:
        """The budgets that are not None."""
        return {name: value for name in UNITS if (value := getattr(self, name)) is not None}


class Problem(NamedTuple):
    """One law, one discrete choice, budgets and assumptions: objective and constraints as functions of z = log variables."""

    law: BudgetLaw
    budgets: Budgets
    assumptions: Assumptions
    setup: Setup
    draw: int = -1

    @property
    def names(self) -> tuple[str, ...]:
        """The variables in the order of z; the batch is one only where it matters."""
        latency = self.assumptions.step_seconds > 0 and self.budgets.hours is not None
        more = ("batch",) if latency and "batch" not in self.law.free and self.law.progress == "tokens" else ()
        return (*self.law.free, *more)

    @property
    def constraints(self) -> tuple[str, ...]:
        """Names of g, in order: budgets, then upper and lower bounds of the variables."""
        given, found = self.budgets, []
        if given.flop is not None:
            found.append("flop")
        if given.memory is not None:
            found.append("memory")
        if given.hours is not None:
            found.append("hours")
        if given.serve_flop is not None:
            found.append("serve_flop")
        if given.unique_tokens is not None and self.most_epochs is not None:
            found.append("epochs")
        return (*found, *(f"{n} at most" for n in self.names), *(f"{n} at least" for n in self.names))

    @property
    def most_epochs(self) -> float | None:
        """The limit on epochs: the user's, or 1 where the law takes repeated tokens for fresh ones."""
        if self.budgets.max_epochs is not None:
            return self.budgets.max_epochs
        return None if "unique_tokens" in self.law.variables else 1.0

    @property
    def devices(self) -> float:
        """Devices at work: those there are, at most one per micro-batch of the largest batch."""
        there = self.budgets.devices or 1.0
        if self.budgets.max_batch is None:
            return there
        return max(1.0, min(there, self.budgets.max_batch / self.per_device))

    @property
    def per_device(self) -> float:
        """Tokens of one micro-batch."""
        return self.assumptions.sequence * self.assumptions.micro_batch

    @property
    def bounds(self) -> tuple[Float[np.ndarray, " v"], Float[np.ndarray, " v"]]:
        """(low, high) of z."""
        low, high = [], []
        for name in self.names:
            a, b = self.law.ranges.get(name, RANGES.get(name, (np.nan, np.nan)))
            if name == "batch":
                a, b = max(a, self.devices * self.per_device), min(b, self.budgets.max_batch or b)
                b = max(a, b)
            low.append(np.log(a))
            high.append(np.log(b))
        return np.array(low), np.array(high)

    def used(self, z: Float[np.ndarray, "... v"]) -> dict[str, np.ndarray]:
        """Everything that a plan reports, at z: variables, params, tokens, batch, steps, epochs, FLOP, bytes, hours."""
        found: dict[str, np.ndarray] = {name: np.exp(z[..., i]) for i, name in enumerate(self.names)}
        law, told, budgets = self.law, self.assumptions, self.budgets
        size, tokens = law.size_of(found), law.tokens_of(found)
        if law.flop is not None:
            train = law.flop(found)
        elif size is not None and tokens is not None:
            train = told.train_cost * size * tokens
        else:
            train = None
        if size is not None:
            found["params"] = size
            found["memory"] = told.memory(size, np.asarray(self.devices), self.setup)
        if tokens is not None:
            found["tokens"] = tokens
            if "steps" in found and "batch" not in found:
                found["batch"] = tokens / found["steps"]
            batch = found.get("batch", np.full(np.shape(tokens), min(told.batch, budgets.max_batch or np.inf)))
            found["batch"], found["steps"] = batch, found.get("steps", tokens / batch)
            unique = budgets.unique_tokens
            found["unique_tokens"] = tokens if unique is None else np.minimum(tokens, max(unique, SMALLEST))
            found["epochs"] = tokens / found["unique_tokens"]
        if train is not None:
            train = train * told.flop_factor(self.setup)
            speed = self.devices * told.peak_flops * told.utilisation * told.factor("speed_factor", self.setup)
            seconds = train / speed + told.step_seconds * found.get("steps", 0.0)
            found["train_flop"], found["hours"] = train, seconds / 3600
            found["serve_flop"] = np.zeros(np.shape(train))
            if budgets.served_tokens is not None and size is not None:
                found["serve_flop"] = told.serve_cost * size * budgets.served_tokens
            found["flop"] = train + (found["serve_flop"] if budgets.serve_flop is None else 0.0)
        return found

    def both(self, z: Float[np.ndarray, "... v"]) -> Float[np.ndarray, "... k"]:
        """(loss, g) at z, stacked on the last axis."""
        with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
            found = self.used(z)
            values: dict[str, Any] = {name: found[name] for name in self.law.variables}
            factor = self.assumptions.factor("token_factor", self.setup)
            if factor != 1 and self.law.progress is not None:
                values[self.law.progress] = values[self.law.progress] * factor
                if "unique_tokens" in values:
                    values["unique_tokens"] = values["unique_tokens"] * factor
            function = self.law.function if self.draw < 0 else self.law.drawn[self.draw]
            loss = np.asarray(function(values), float)
            limits = []
            for name in self.constraints[: -2 * len(self.names)]:
                if name == "epochs":
                    limit = float(self.most_epochs or 1.0) * float(self.budgets.unique_tokens or 0.0)
                    usage = found["tokens"]
                else:
                    limit, usage = float(getattr(self.budgets, LIMITS[name])), found[name]
                limits.append(np.log(usage) - np.log(max(limit, SMALLEST)))
            low, high = self.bounds
            columns = [z[..., i] - high[i] for i in range(z.shape[-1])] + [
                low[i] - z[..., i] for i in range(z.shape[-1])
            ]
            return np.stack(np.broadcast_arrays(loss, *limits, *columns), axis=-1)

    def moved(self, name: str, shift: float) -> Problem:
        """The same problem with one budget, assumption or factor ("token_factor adam") times e^shift."""
        scale = float(np.exp(shift))
        if name in UNITS:
            held = {n: getattr(self.budgets, n) for n in UNITS} | {name: getattr(self.budgets, name) * scale}
            budgets = object.__new__(Budgets)  # devices just under one, in a difference, are no user's
            for field, value in held.items():
                object.__setattr__(budgets, field, value)
            return self._replace(budgets=budgets)
        fields: dict[str, Any] = {n: getattr(self.assumptions, n) for n in Assumptions.__dataclass_fields__}
        kind, _, key = name.partition(" ")
        if key:
            fields[kind] = {**fields[kind], key: fields[kind].get(key, 1.0) * scale}
        else:
            fields[name] = fields[name] * scale
        assumptions = object.__new__(Assumptions)
        for field, value in fields.items():
            object.__setattr__(assumptions, field, value)
        return self._replace(assumptions=assumptions)


def check_law(law: BudgetLaw, budgets: Budgets) -> None:
    """Refuses budgets that the law cannot be held to. **Errors**: `InputError` with what is missing."""
    at = {name: np.array(law.ranges[name][0]) for name in law.free}
    size, tokens = law.size_of(at), law.tokens_of(at)
    cost = law.flop is not None or (size is not None and tokens is not None)
    needs: Mapping[str, tuple[bool, str]] = {
        "flop": (cost, "flop="), "hours": (cost, "flop="), "memory": (size is not None, "params="),
        "served_tokens": (size is not None and cost, "params="), "serve_flop": (size is not None and cost, "params="),
        "unique_tokens": (tokens is not None, "tokens="), "max_epochs": (tokens is not None, "tokens="),
    }  # fmt: skip
    for name in budgets.given:
        known, missing = needs.get(name, (True, ""))
        if not known:
            raise InputError(
                name, expected=f"a law of {', '.join(law.variables)} that says what it uses of this",
                got="none", remedy=f"give the law {missing}function of its variables (plain_law)",
            )  # fmt: skip
