"""Simulated rollouts against the fluid ODE: off by the last round of a request; and drawn slow maps against the drafter's flow."""

from __future__ import annotations

from typing import Any

from odescale.compare.sheets import Rules, relative_of_order
from odescale.solve.judges.rollout import overshoot_share
from odescale.systems.rollout.drafter import Drafter
from odescale.systems.rollout.fluid import Rollout


def _same(system: Rollout | Drafter) -> dict[str, Any]:
    return system.summary()


RULES = Rules(
    tolerance={"loss": 0.03, "time": 0.03, "idle_slots": 0.03},
    same=_same,
    neglected=lambda system, run, p: {"rounds": relative_of_order(overshoot_share(system), p)},
    words={
        "rounds": "the last round of a request, (1 + |p|) times its surplus tokens over the mean length",
    },
)
DRAFTER = Rules(
    tolerance={"loss": 0.03},
    same=_same,
    neglected=lambda system, run, p: {"drawn_idle": relative_of_order(0.01, p)},
    words={"drawn_idle": "the idle time of drawn rollouts scatters around its mean, taken as 1 %"},
)
