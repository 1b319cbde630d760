"""Runs of linear SGD against the log-rate ODE of their mean risk, whose distance to the exact recursion is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from odescale.compare.sheets import Errors, Rules, shared_settings
from odescale.compare.verdict import Status
from odescale.run import Run
from odescale.solve.spectral.exact import ode_distance
from odescale.solve.spectral.step_error import step_error
from odescale.systems.spectral import Spectral


def _same(system: Spectral) -> dict[str, Any]:
    modes = {"eigenvalues": np.asarray(system.eigenvalues), "excess": np.asarray(system.start)}
    return shared_settings(system) | modes | {"noise": float(system.residual_noise), "momentum": 0.0}


def _neglected(system: Spectral, run: Run, steepness: Float[np.ndarray, " n"]) -> Errors:
    started, off = run.step > 0, np.zeros(run.t.size)
    off[started] = np.abs(ode_distance(system, run.step[started].astype(float)))
    return {"time_step": off}


def _remarks(system: Spectral, run: Run, status: Status, options: dict[str, Any]) -> tuple[str, ...]:
    judged = step_error(system, float(run.step[-1]))
    return () if judged is None else tuple(judged.remarks())


RULES = Rules(
    tolerance={"loss": 0.05},
    same=_same,
    neglected=_neglected,
    remarks=_remarks,
    words={"time_step": "change of the risk within one step: ODE against the exact recursion"},
)
