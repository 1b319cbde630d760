"""Runs of a linear model under Adam or signs against the ODE of its mean risk, which takes the risk as not fluctuating."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from odescale.compare.sheets import Errors, Rules, relative_of_order, shared_settings
from odescale.run import Run
from odescale.systems.spectral_optimized import SpectralOptimized


def _same(system: SpectralOptimized) -> dict[str, Any]:
    modes = {"eigenvalues": np.asarray(system.eigenvalues), "excess": np.asarray(system.start)}
    rule = {"noise": float(system.residual_noise), "optimizer": system.optimizer.word, "basis": system.basis}
    return shared_settings(system) | modes | rule | system.rule_numbers()


def _neglected(system: SpectralOptimized, run: Run, steepness: Float[np.ndarray, " n"]) -> Errors:
    return {"finite_size": relative_of_order(float(system.concentration()), steepness)}


RULES = Rules(
    tolerance={"loss": 0.05},
    same=_same,
    neglected=_neglected,
    words={"finite_size": "fluctuations of the risk, (1 + |p|)/d_eff"},
)
