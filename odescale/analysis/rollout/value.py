"""What a better drafter, a longer context, a faster device or one more worker is worth in a rollout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from odescale.analysis.rollout.rounds import NAMES
from odescale.errors import require_number, whole
from odescale.precision import require_x64
from odescale.systems.rollout.cost import Acceptance, Costs


class Sensitivity(eqx.Module):
    """`time` T and what moves it: `slope` dT/dx and `elasticity` d log T/d log x for the costs, `first` a_1 and `hazard` h."""

    time: float
    slope: dict[str, float]
    elasticity: dict[str, float]

    def __str__(self) -> str:
        lines = [f"time {self.time:.5g}; by            slope  elasticity"]
        order = sorted(self.slope, key=lambda name: -abs(self.elasticity[name]))
        lines += [f"    {name:<15}{self.slope[name]:14.4g}{self.elasticity[name]:12.4f}" for name in order]
        lines.append(f"    0.01 more of a_1 saves {-0.01 * self.slope['first'] / self.time:.2%} of the time")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"time": self.time, "slope": self.slope, "elasticity": self.elasticity}


def sensitivity(
    makespan: Callable[[Costs, Acceptance], Float[Array, ""]], costs: Costs, acceptance: Acceptance
) -> Sensitivity:
    """dT/dx and d log T/d log x of a makespan by the costs, a_1 and h, by automatic differentiation.

    **Arguments**: `makespan(costs, acceptance)`: time of a rollout, lengths, requests and policy inside; `costs`, `acceptance`:
    where. **Returns** `Sensitivity`: dT/d first is the value of a better drafter, dT/d context that of a longer context, in plain
    rounds at batch 1. With the policy inside that is best at every batch these are the slopes of the best makespan too (envelope
    theorem), except where two strategies are equally good. **Raises** `InputError` where T is not a positive number.
    """
    require_x64("sensitivity")
    at = {name: jnp.asarray(getattr(costs, name)) for name in NAMES} | {
        "first": acceptance.first,
        "hazard": acceptance.hazard,
    }

    def time(x: dict[str, Array]) -> Float[Array, ""]:
        return jnp.asarray(makespan(Costs(**{name: x[name] for name in NAMES}), Acceptance(x["first"], x["hazard"])))

    value, slopes = jax.value_and_grad(time)(at)
    T = require_number("makespan", float(value), open_=True)
    slope = {name: float(s) for name, s in slopes.items()}
    return Sensitivity(T, slope, {name: s * float(at[name]) / T for name, s in slope.items()})


def value_of_worker(makespan: Callable[[int], float], workers: int) -> tuple[float, float]:
    """(T(w) - T(w+1), the same over T(w)): what one more worker saves. `makespan(workers)`: time with so many."""
    count = whole("workers", workers, 1, remedy="one worker or more")
    now, then = (require_number("makespan", float(makespan(w)), open_=True) for w in (count, count + 1))
    return now - then, (now - then) / now
