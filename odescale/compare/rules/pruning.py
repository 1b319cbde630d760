"""Runs of a real perceptron on a pruned stream against the ODE of R and Q: off by 1/d."""

from __future__ import annotations

from typing import Any

from odescale.compare.sheets import Rules, relative_of_order, shared_settings
from odescale.systems.pruning import Pruning


def _same(system: Pruning) -> dict[str, Any]:
    return shared_settings(system) | {
        "keep": system.keep, "rule": system.rule, "overlap": float(system.overlap), "norm": float(system.norm),
        "dimension": system.dimension,
    }  # fmt: skip


RULES = Rules(
    tolerance={"loss": 0.02, "alignment": 0.02, "norm": 0.03},
    same=_same,
    neglected=lambda system, run, p: {"finite_size": relative_of_order(1 / run.config["dimension"], p)},
    half=True,
    words={"finite_size": "finite dimension, (1 + |p|)/d unless measured at half of it"},
)
