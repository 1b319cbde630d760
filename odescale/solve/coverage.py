r"""Is a system one that its theory covers? A judgement before any run, from the sizes of what the theory neglects.

Each theory has a judge, which measures those sizes (`odescale.solve.judges`); here they meet their limits and are put into words.
The limits are those of the tables in docs/coverage.md, where each judgement is held against direct simulation.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import equinox as eqx
import jax

from odescale.errors import InputError, require_number
from odescale.systems.base import AbstractSystem
from odescale.systems.parameters import is_traced
from odescale.systems.register import HOOKS

JUDGES = {
    "mean_field": "odescale.solve.judges.mean_field:sizes",
    "attention": "odescale.solve.judges.attention:sizes",
    "peaked": "odescale.solve.judges.simple:of_peaked",
    "spectral": "odescale.solve.judges.simple:of_spectral",
    "spectral_optimized": "odescale.solve.judges.simple:of_spectral_optimized",
    "kernel": "odescale.solve.judges.simple:of_kernel",
    "pruning": "odescale.solve.judges.simple:of_pruning",
    "rollout": "odescale.solve.judges.rollout:of_rollout",
    "drafter": "odescale.solve.judges.rollout:of_drafter",
    "derived": "odescale.solve.judges.simple:of_derived",
}
"""`system.name` -> where its judge is, a function of (system, t1) to sizes by name. `odescale.register(..., judge=...)` adds those
of other theories, whose sizes are admissible below 1 unless they have a name of `LIMITS`."""

TIMELESS = ("mean_field", "attention", "kernel", "derived", "spectral_optimized", "rollout", "drafter")
"""Theories whose judges do not ask for the end time."""

LIMITS = {
    "context": 0.1,
    "softmax": 1.0,
    "rows": 0.1,
    "step": 0.2,
    "noise": 1.0,
    "jumps": 0.02,
    "spectrum": 1 / 8,
    "momentum": 1 / 20,
    "norms": 1 / 100,
    "classes": 0.1,
    "lag": 0.68,
    "ode": 0.05,
    "flow": 1.0,
    "mean": 0.5,
    "memory": 0.05,
    "saturation": 0.05,
    "window": 0.02,
    "samples": 0.25,
    "rounds": 0.01,
    "idle": 0.1,
}
"""Largest admissible values; `norms` is 1/d_eff for networks that normalise tokens; at the `samples` the drift is off by 5 %."""
LARGE = 0.3
"""Share of a limit above which a warning says that corrections may be visible."""

EXPLAIN = {
    "context": "at its own number of tokens the loss at t = 0 is off by {value:.1%} (limit {limit:.0%}): set context=sampled or "
    "raise tokens",
    "softmax": "2 C_kk C_qq = {value:.3g} (limit {limit:g}) at the start: a few tokens carry the softmax average; weaken the rows",
    "rows": "{value:.3g} rows per dimension (limit {limit:g}): the theory has a fixed number of rows as d grows; raise d",
    "step": "one step moves the fastest mode by {value:.3g} (limit {limit:g}): lower learning_rate or raise d",
    "noise": "learning_rate is {value:.3g} of the stable one, 2 B/c: lower it or raise batch",
    "jumps": "{value:.2g} steps per unit of t throw a row off its path (limit {limit:g}), single runs may diverge: lower "
    "learning_rate or raise batch",
    "spectrum": "1/d_eff = {value:.3g} (limit {limit:.3g}): too few directions carry the tokens; flatten the spectrum",
    "momentum": "velocities relax in 1/{inverse:.3g} units of t (limit {limit:g}): use friction = (1 - momentum) N instead",
    "norms": "token norms fluctuate by 1/d_eff = {value:.3g} (limit {limit:g}), the theory takes them as fixed: raise d",
    "classes": "(K - 1)/d = {value:.3g} (limit {limit:g}): the centred rows take that share of all directions; raise dimension",
    "lag": "the effective learning rate falls as t^-{value:.2f} over the last decade; from t^-{limit:g} on the spread lags behind "
    "its stationary value",
    "samples": "at the end D is {value:.2g} of m B/nu, the samples that Muon's step divides by (limit {limit:g}): single ones "
    "outweigh the rest; raise batch or momentum",
    "ode": "the ODE's risk is {value:.1%} (limit {limit:.0%}) off exact SGD, whose steps are not small: lower learning_rate, or "
    "use odescale.linear.exact_recursion",
    "flow": "a step of descent moves the fastest mode by {value:.3g} of its distance (limit {limit:g}): the flow is not the "
    "descent; `compare` takes whole steps, or lower learning_rate",
    "mean": "what divides a step holds the mean gradient too, {value:.3g} of its noise (limit {limit:g}): raise d or lower batch",
    "saturation": "the squared mean of a sign is {value:.3g} (limit {limit:g}): signs saturate; raise d or lower batch",
    "memory": "second moments forget in {inverse:.3g} steps (limit {limit:g} of a moment a step): raise beta2",
    "rounds": "the last round of a request brings {value:.1%} of its mean length too much (limit {limit:.0%}): draft less far, or "
    "take longer answers",
    "idle": "the idle time changes by {value:.0%} from one update to the next (limit {limit:.0%}): the flow lags behind the slow "
    "map; iterate the map (odescale.train) instead",
    "window": "what makes Muon's step orthogonal fluctuates by {value:.3g} (limit {limit:g}): leave closure at auto, or raise "
    "momentum or batch",
}

UNJUDGED = {
    "kernel": ("whether the network keeps its tangent kernel: odescale.kernel_regime says so without training",),
    "derived": ("gradient noise and its tails: compare with a run",),
    "drafter": (
        "relaxation at one rate and drift that adds up: odescale.rollouts.fit_drafter on measured misalignment",
    ),
}
"""By `system.name`: what decides as well, and is not known before a run."""


class Coverage(eqx.Module):
    """The verdict before a run.

    - `inside`: False with `reasons` why not; None where nothing that the theory neglects is known.
    - `warnings`: where corrections may be visible. `unjudged`: what is not judged here, and by what it is.
    - `numbers`: the sizes behind it.
    """

    inside: bool | None = eqx.field(static=True)
    reasons: tuple[str, ...] = eqx.field(static=True)
    warnings: tuple[str, ...] = eqx.field(static=True)
    numbers: dict[str, float] = eqx.field(static=True)
    unjudged: tuple[str, ...] = eqx.field(static=True, default=())

    def __str__(self) -> str:
        if self.inside is None:
            return "coverage undecided: " + "; ".join(self.unjudged)
        if not self.inside:
            return "outside the theory: " + "; ".join(self.reasons)
        further = [*self.warnings, *(f"not judged: {what}" for what in self.unjudged)]
        return "; ".join(["inside the theory", *further])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        lists = {name: list(getattr(self, name)) for name in ("reasons", "warnings", "unjudged")}
        return {"inside": self.inside} | lists | {"numbers": dict(self.numbers)}


def coverage(system: AbstractSystem, t1: float | None = None) -> Coverage:
    """Whether real runs of this system should follow its ODE to some per cent, from sizes at the start and near the teacher.

    Takes one to five seconds the first time; the comparison with a run (`compare`) has the last word. One unit of t is
    `system.clock.steps_per_unit` SGD steps.

    **Arguments**: `system` of any theory; `t1`: end time, which only `peaked` and `spectral` ask for (10000 units, 1000 steps).

    **Returns** a `Coverage`; a theory without a judge is undecided. **Raises** `InputError` for what is no system, or is traced.
    **Failure regime**: a run that leaves the neighbourhood of the way from start to teacher.
    """
    if not isinstance(system, AbstractSystem):
        raise InputError("system", expected="a system", got=type(system).__name__, remedy="e.g. odescale.attention()")
    if any(is_traced(leaf) for leaf in jax.tree_util.tree_leaves(system)):
        raise InputError(
            "system", expected="numbers", got="a traced system", remedy="judge it outside of jit, grad and vmap"
        )
    t1 = None if t1 is None or system.name in TIMELESS else require_number("t1", t1, 0.0, 1e250)
    known = _known.get(id(system))
    if known is None or known[0]() is not system:
        known = (weakref.ref(system), {})
        _known[id(system)] = known
        weakref.finalize(system, _known.pop, id(system), None)
    if t1 not in known[1]:
        known[1][t1] = _coverage(system, t1)
    return known[1][t1]


_known: dict[int, tuple[weakref.ref, dict[float | None, Coverage]]] = {}
"""Verdicts on systems that are alive: `solve`, `compare` and the command line ask for the same one."""


def _coverage(system: AbstractSystem, t1: float | None) -> Coverage:
    judge = judge_of(system.name)
    if judge is None:
        why = f"no judge of the theory {system.name!r} (register(..., judge=...)); compare it with a run"
        return Coverage(None, (), (), {}, (why,))
    return judged(judge(system, t1), UNJUDGED.get(system.name, ()))


def judge_of(name: str) -> Callable[[Any, float | None], Mapping[str, float]] | None:
    """The judge of a theory by its name; None where there is none."""
    found = HOOKS.get(name, {}).get("judge") or JUDGES.get(name)
    if isinstance(found, str):
        module, _, function = found.partition(":")
        found = getattr(import_module(module), function)
    return found


def judged(numbers: Mapping[str, float], unjudged: tuple[str, ...] = ()) -> Coverage:
    """The verdict on sizes by name, against `LIMITS`."""
    reasons, warnings = [], []
    for name, value in numbers.items():
        limit = LIMITS.get(name, 1.0)
        words = EXPLAIN.get(name, f"{name} = {{value:.3g}} (limit {{limit:g}})")
        text = words.format(value=value, limit=limit, inverse=1 / max(value, 1e-300))
        if not value < limit:
            reasons.append(text)
        elif value > LARGE * limit:
            warnings.append(text)
    return Coverage(
        not reasons, tuple(reasons), tuple(warnings), {name: float(x) for name, x in numbers.items()}, unjudged
    )
