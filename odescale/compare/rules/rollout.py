"""Simulated rollouts against the fluid ODE: off by the last round of a request; and drawn slow maps against the drafter's flow."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import stats

from odescale.compare.sheets import Errors, Rules, relative_of_order
from odescale.run import Run
from odescale.solve.judges.rollout import overshoot_share
from odescale.solve.trajectory import Trajectory
from odescale.systems.rollout.drafter import Drafter
from odescale.systems.rollout.fluid import Rollout


def _same(system: Rollout | Drafter) -> dict[str, Any]:
    return system.summary()


def _at_the_cap(system: Rollout, run: Run, theory: Trajectory, at: np.ndarray, name: str) -> Errors:
    """Those that run into the cap end over as many tokens as drawn acceptances have spread them, the theory's at once.

    After l tokens of the fluid a request has l + sqrt(l Var k/A) z of its own, z Gaussian.
    """
    numerical = {} if theory.error is None else {"numerical": np.nan_to_num(np.asarray(theory.error)[at])}
    if name != "loss":
        return {}
    one = jnp.ones(1)
    (depth, _), own = system.policy.at(one), system.policy.acceptance(one, system.acceptance)
    mean, square = float(own.tokens(depth)[0]), float(own.square(depth)[0])
    cap, mass = float(system.lengths.cap), float(system.lengths.survival(system.lengths.cap))
    width = np.sqrt(np.maximum(run.t, 1) * (square - mean**2) / mean) + mean
    gone = stats.norm.cdf((run.t - cap) / width)
    return numerical | {"cap": gone * mass / np.maximum(np.asarray(system.lengths.survival(run.t)), 1e-300)}


RULES = Rules(
    tolerance={"loss": 0.03, "time": 0.03, "idle_slots": 0.03},
    same=_same,
    neglected=lambda system, run, p: {"rounds": relative_of_order(overshoot_share(system), p)},
    errors=_at_the_cap,
    words={
        "cap": "answers at the cap end one after the other in the run",
        "rounds": "the last round of a request, (1 + |p|) times its surplus tokens over the mean length",
    },
)
DRAFTER = Rules(
    tolerance={"loss": 0.03},
    same=_same,
    neglected=lambda system, run, p: {"drawn_idle": relative_of_order(0.01, p)},
    words={"drawn_idle": "the idle time of drawn rollouts scatters around its mean, taken as 1 %"},
)
