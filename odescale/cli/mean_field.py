"""What the commands say and do in addition when a system comes from the mean-field engine."""

from __future__ import annotations

from typing import Any

from odescale.expectations.automatic import node_dimension
from odescale.expectations.closure import Quadrature
from odescale.systems.coverage import coverage
from odescale.systems.mean_field import MeanField

MOST_STEPS = 5_000
"""Steps after which a solve of the command line gives up: an ensemble takes about 50, and thousands where it diverges."""

POINTS = 60
"""Output times of a solve unless asked otherwise: every one is an average over all nodes."""


def remarks(system: MeanField) -> tuple[dict[str, Any], list[str]]:
    """(JSON-ready record, lines): how the expectations are taken, and what `coverage` says."""
    judged = coverage(system)
    nodes: dict[str, Any] = {"kind": "closed form", "replicates": 1, "nodes": 0, "dimensions": 0}
    text = "expectations in closed form"
    if isinstance(system.closure, Quadrature):
        used, dimensions = system.closure.nodes, node_dimension(system.problem)
        nodes = {"kind": used.kind, "replicates": used.replicates, "nodes": used.count, "dimensions": dimensions}
        if used.kind == "sobol":
            how = f"{used.replicates} x {used.count} scrambled Sobol points"
            error = f"95 % interval over the {used.replicates} node sets"
        else:
            how, error = f"two Gauss-Hermite grids of up to {used.count} points", "the difference of the two"
        text = f"expectations by {how} in {dimensions} dimensions; error: {error}, relative"
        if ";" in system.expectations:  # nodes that were chosen and are too few for the accuracy asked for
            text += "; drift:" + system.expectations.partition(";")[2]
    return {"nodes": nodes, "coverage": judged.to_dict()}, [text, str(judged)]
