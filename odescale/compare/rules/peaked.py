"""Runs of a real softmax layer against the closed ODE of overlap and spread: off by K/d, outside where the spread lags behind."""

from __future__ import annotations

from typing import Any

from odescale.compare.sheets import Rules, relative_of_order, shared_settings
from odescale.run import Run
from odescale.solve.coverage import EXPLAIN, LIMITS
from odescale.solve.trajectory import Trajectory
from odescale.systems.peaked import Peaked, falling_rate, samples_share


def _same(system: Peaked) -> dict[str, Any]:
    words = {name: getattr(system, name) for name in ("labels", "loss", "optimizer", "logit_schedule")}
    numbers = ("classes", "dimension", "overlap", "spread", "smoothing", "focusing", "inverse_temperature")
    memory = {"memory": float(system.memory)} if system.optimizer == "adam" else {}
    muon = {} if system.unit is None else system.unit.settings
    return words | memory | muon | {name: float(getattr(system, name)) for name in numbers} | shared_settings(system)


def outside(system: Peaked, run: Run, theory: Trajectory) -> tuple[str, ...]:
    """Why the law of the boundary layer does not describe a run (d SGD steps per unit of t); empty if it may."""
    return lagging_spread(system, float(run.t[-1])) + single_samples(system, theory)


def single_samples(system: Peaked, theory: Trajectory) -> tuple[str, ...]:
    """The reason why a step that is divided by the mean square of its samples is not, at the end; empty where it is."""
    share, limit = samples_share(system, float(theory.observables["overlap"][-1])), LIMITS["samples"]
    return (EXPLAIN["samples"].format(value=share, limit=limit),) if share > limit else ()


def lagging_spread(system: Peaked, t1: float) -> tuple[str, ...]:
    """The reason why the spread lags behind its stationary value up to time t1; empty where it follows.

    With eta ~ t^-g the spread relaxes at a rate that falls as t^-(1 + 2 g)/3 while eta itself changes at the rate g/t: at
    g >= 0.7 it does not reach, within a practical time, the stationary value from which the exponents follow.
    """
    power = falling_rate(system, t1)
    if power is not None and power >= LIMITS["lag"]:
        return (EXPLAIN["lag"].format(value=power, limit=LIMITS["lag"]),)
    return ()


RULES = Rules(
    # At d = 1000 and K = 3; K/d = 0.1 moves D by several per cent.
    tolerance={"loss": 0.01, "overlap": 0.015, "spread": 0.04, "error": 0.02},
    same=_same,
    # Each of the K - 1 centred rows takes one direction out of d.
    neglected=lambda system, run, p: {
        "finite_size": relative_of_order((run.config["classes"] - 1) / run.config["dimension"], p)
    },
    outside=outside,
    half=True,
    words={"finite_size": "finite dimension, (1 + |p|)(K - 1)/d unless measured at half of it"},
)
