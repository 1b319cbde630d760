"""What each theory knows about being compared: its rule sheet, found by the name of the theory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from odescale.compare.verdict import Status
from odescale.errors import InputError
from odescale.run import Run
from odescale.solve.integrate import integrate
from odescale.solve.trajectory import Trajectory
from odescale.systems.base import AbstractSystem
from odescale.systems.register import HOOKS

RULES = {
    name: f"odescale.compare.rules.{name}:RULES"
    for name in (
        "attention",
        "mean_field",
        "peaked",
        "spectral",
        "spectral_optimized",
        "kernel",
        "pruning",
        "rollout",
        "derived",
    )
} | {"drafter": "odescale.compare.rules.rollout:DRAFTER"}
"""`system.name` -> where the theory's sheet is; `odescale.register(..., rules=...)` adds those of other theories."""

SMOOTH = 40
"""Times that a line needs to look like one."""
Errors = dict[str, Float[np.ndarray, " n"]]


def integrated(system: AbstractSystem, t: Float[np.ndarray, " n"]) -> Trajectory:
    """The system's own prediction at the record times t of a run, and at others between few of them, for a smooth line."""
    first = t[t > 0][0]
    line = np.geomspace(first, t[-1], SMOOTH) if t.size < SMOOTH else t
    apart = np.abs(line[:, None] / np.maximum(t, 1e-300) - 1).min(axis=1) > 0.01
    return integrate(system, ts=np.unique(np.concatenate([[0.0], t, line[apart]])), on_failure="mask")


def shared_settings(system: AbstractSystem) -> dict[str, Any]:
    """Learning rate, batch and weight decay, as far as the system has them."""
    names = ("learning_rate", "batch", "weight_decay")
    return {name: float(getattr(system, name)) for name in names if hasattr(system, name)}


def relative_of_order(size: float, steepness: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """(1 + |p|) size: an error of that relative size in a rate moves the loss |p| = |dlog L/dlog t| times as much."""
    return size * (1 + np.abs(steepness))


class Rules(eqx.Module):
    """How runs of one theory are judged. Everything has a default that fits a theory of one loss.

    - `tolerance`: quantity -> relative deviation that counts as agreement, None for one that is shown but not judged. Quantities
      are records of the run that the trajectory has as loss or observable, and names of `distances`.
    - `leading`: what a single number as tolerance is meant for.
    - `same(system)`: settings, by their names in `run.config`, that make a run the same experiment.
    - `predict(system, t)`: the trajectory at the run's times.
    - `neglected(system, run, p)`: source -> size (n,), relative, of what the theory leaves out; p = dlog X/dlog t of the quantity.
    - `errors(system, run, theory, at, name)`: source -> relative standard error (n,) beside the scatter of the seeds, in the
      place of the defaults "nodes" (`NAME_common_stderr` of the run) and "numerical" (of the trajectory).
    - `distances(system, run, theory, at)`: name -> relative distance (n,) of what is no single number.
    - `outside(system, run, theory)`: why the theory does not apply. `remarks(system, run, status, options)`: further sentences.
    - `half`: whether a run at half the dimension measures the error "finite_size".
    - `transitions`: whether they are looked for unless asked. `deterministic`: a run has no scatter, one seed is enough.
    - `beyond`: what a significant deviation means. `options`: names of further arguments of `compare`.
    - `words`: source of error -> what it is, for the report.
    """

    tolerance: Mapping[str, float | None] = eqx.field(static=True)
    leading: tuple[str, ...] = eqx.field(static=True, default=("loss",))
    same: Callable[[Any], dict[str, Any]] = eqx.field(static=True, default=shared_settings)
    predict: Callable[[Any, Float[np.ndarray, " n"]], Trajectory] = eqx.field(static=True, default=integrated)
    neglected: Callable[[Any, Run, Float[np.ndarray, " n"]], Errors] = eqx.field(static=True, default=lambda *_: {})
    errors: Callable[[Any, Run, Trajectory, np.ndarray, str], Errors] | None = eqx.field(static=True, default=None)
    distances: Callable[[Any, Run, Trajectory, np.ndarray], Errors] = eqx.field(static=True, default=lambda *_: {})
    outside: Callable[[Any, Run, Trajectory], tuple[str, ...]] = eqx.field(static=True, default=lambda *_: ())
    remarks: Callable[[Any, Run, Status, dict[str, Any]], tuple[str, ...]] = eqx.field(
        static=True, default=lambda *_: ()
    )
    half: bool = eqx.field(static=True, default=False)
    transitions: bool = eqx.field(static=True, default=False)
    deterministic: bool = eqx.field(static=True, default=False)
    beyond: Status = eqx.field(static=True, default="differs")
    options: tuple[str, ...] = eqx.field(static=True, default=())
    words: Mapping[str, str] = eqx.field(static=True, default_factory=dict)


WORDS = {
    "seeds": "scatter of the seeds (standard error of the mean)",
    "monte_carlo": "Monte Carlo test loss of each seed (contained in the scatter)",
    "nodes": "nodes that all seeds were measured with",
    "numerical": "integration of the theory",
}
"""Sources of error that every theory may have."""


def rules_of(system: Any) -> Rules:
    """The sheet of a system's theory. **Raises** `InputError` for what has none."""
    name = getattr(system, "name", None)
    found = HOOKS.get(str(name), {}).get("rules") or RULES.get(str(name))
    if found is None:
        raise InputError(
            "system", expected=f"a system of a theory with a rule sheet: {', '.join(sorted({*RULES, *HOOKS}))}",
            got=type(system).__name__ if name is None else f"one of the theory {name!r}",
            remedy="give odescale.register(..., rules=Rules(tolerance={'loss': 0.05})), see odescale.compare.sheets",
        )  # fmt: skip
    if isinstance(found, str):
        module, _, attribute = found.partition(":")
        found = getattr(import_module(module), attribute)
    return found
