"""A learning-rate schedule read from a log, and how far up any schedule goes."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from odescale.clock import (
    ConstantSchedule,
    CosineSchedule,
    PowerSchedule,
    Schedule,
    WarmupStableDecaySchedule,
    schedule_kinks,
)
from odescale.errors import InputError

KINKS = 64
"""Steps at which a logged schedule is taken to bend; more would only cost steps of the integrator."""


class LoggedSchedule(eqx.Module):
    """s(r) = values[r], r = 0, 1, ... in SGD steps; linear in between, the last value beyond.

    `values` (n,): learning rates over the base learning rate, finite and >= 0, one per SGD step. **Failure regime**: the ODE
    follows the line through the values and steps onto the `KINKS` sharpest bends only; a rate that jumps at every step is for
    the exact recursion.
    """

    values: Float[Array, " n"]
    kinks: Float[Array, " k"]

    def __init__(self, values: Any) -> None:
        numbers = np.asarray(values, dtype=float)
        if numbers.ndim != 1 or numbers.size < 2 or not np.all(np.isfinite(numbers)) or np.any(numbers < 0):
            raise InputError(
                "schedule", expected="two or more finite rates >= 0, one per step", got=values, remedy="mend the log"
            )
        bend = np.abs(np.diff(numbers, 2))
        sharp = np.flatnonzero(bend > 1e-3 * max(numbers.max(), 1e-300))
        sharp = np.sort(sharp[np.argsort(bend[sharp])[::-1][:KINKS]])
        self.values = jnp.asarray(numbers)
        self.kinks = jnp.asarray(sharp + 1.0)

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        place = jnp.clip(jnp.asarray(t), 0.0, self.values.size - 1.0)
        left = jnp.minimum(jnp.floor(place), self.values.size - 2.0).astype(int)
        share = place - left
        return (1 - share) * self.values[left] + share * self.values[left + 1]


def peak_of(schedule: Schedule, end: float = 1e8) -> float:
    """The largest s(r) for 0 <= r <= `end` SGD steps.

    Known for the schedules of `odescale.clock` and for a log; a callable is read at 2000 log-spaced steps and at its kinks.
    """
    if isinstance(schedule, (ConstantSchedule, PowerSchedule, CosineSchedule, WarmupStableDecaySchedule)):
        return 1.0
    if isinstance(schedule, LoggedSchedule):
        return float(jnp.max(schedule.values))
    places = np.concatenate(
        [[0.0], np.geomspace(min(0.1, end), end, 2000), [float(x) for x in schedule_kinks(schedule)]]
    )
    values = np.asarray(jax.vmap(schedule)(jnp.asarray(places[places <= end])))
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise InputError("schedule", expected="s(r) finite and >= 0", got=values.min(), remedy="mend the callable")
    return float(values.max())
