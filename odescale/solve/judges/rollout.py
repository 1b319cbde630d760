"""Sizes of what the theories of rollouts neglect.

rollout  rounds   surplus tokens of a request's last round over the mean length
drafter  idle     change of the idle time from one update to the next, at the start
"""

from __future__ import annotations

import jax.numpy as jnp

from odescale.generated import rollout as formulas
from odescale.systems.rollout.drafter import Drafter
from odescale.systems.rollout.fluid import Rollout


def overshoot_share(system: Rollout) -> float:
    """Tokens of the last round beyond a request's length, at the strategy where they are most, over the mean length."""
    live = jnp.arange(max(system.requests) + 1.0)
    depth, _ = system.policy.at(live)
    own = system.policy.acceptance(live, system.acceptance)
    surplus = formulas.overshoot(own.tokens(depth), own.square(depth))
    return float(surplus.max() / system.lengths.mean())


def of_rollout(system: Rollout, t1: float | None) -> dict[str, float]:
    """The fluid has no other small number: lengths and policy are as they are."""
    return {"rounds": overshoot_share(system)}


def of_drafter(system: Drafter, t1: float | None) -> dict[str, float]:
    """The flow passes through the map's points where the idle time stays; the start is where it moves most."""
    now = system.idle(system.kappa)
    after = formulas.after_idle(system.kappa, system.floor, system.rate, now) + system.drift
    return {"idle": float(jnp.abs(system.idle(after) / jnp.maximum(now, 1e-300) - 1))}
