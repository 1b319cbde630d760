"""Runs of the rows behind a user's own derivation, against the overlap ODE that it gave."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from odescale.compare.sheets import Rules, relative_of_order, shared_settings
from odescale.systems.derived import Derived


def _same(system: Derived) -> dict[str, Any]:
    """The derivation itself by the hash of its text, its constants, its start."""
    return shared_settings(system) | {
        "theory": hashlib.sha256(system.source.encode()).hexdigest(),
        "constants": {name: float(value) for name, value in system.constants.items()},
        "students": system.students,
        "floor": float(system.floor),
        "eigenvalues": np.asarray(system.eigenvalues),
        "initial_overlaps": np.asarray(system.initial_overlaps),
    }


RULES = Rules(
    tolerance={"loss": 0.05},
    same=_same,
    neglected=lambda system, run, p: {"finite_size": relative_of_order(1 / run.config["dimension"], p)},
    half=True,
    words={"finite_size": "finite dimension, (1 + |p|)/d unless measured at half of it"},
)
