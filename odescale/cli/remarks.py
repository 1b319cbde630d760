"""What a theory has to say beside the answer of any verb: one table by the name of the theory, imported when it speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from odescale.solve.coverage import coverage

Remarks = tuple[dict[str, Any], list[str]]
"""Entries of the JSON record, and lines."""


def remarks_of(system: Any, t1: float) -> Remarks:
    """Whether the theory covers the system up to the end time t1, and what else its theory has to say."""
    judged = coverage(system, t1)
    further, lines = REMARKS[system.name](system, t1) if system.name in REMARKS else ({}, [])
    return {"coverage": judged.to_dict()} | further, [*lines, str(judged)]


def _nodes(system: Any, t1: float) -> Remarks:
    """How the expectations of a mean-field system are taken."""
    from odescale.expectations.automatic import node_dimension
    from odescale.expectations.closure import Quadrature

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
    return {"nodes": nodes}, [text]


def _asymptotic_law(system: Any, t1: float) -> Remarks:
    """The law of a peaked system at the end, and whether the system is inside it."""
    from odescale.analysis.peaked.one_third import predict_law

    law = predict_law(system, t1)
    return {"law": {name: getattr(law, name) for name in law.__dataclass_fields__}}, [f"law at t = {t1:.4g}: {law}"]


def _step_error(system: Any, t1: float) -> Remarks:
    """How far a spectrum's ODE is from exact SGD; a line where that is something to speak of."""
    from odescale.solve.remarks import remarks_of_solve

    return remarks_of_solve(system, (0.0, t1))


REMARKS: dict[str, Callable[[Any, float], Remarks]] = {
    "mean_field": _nodes, "peaked": _asymptotic_law, "spectral": _step_error,
}  # fmt: skip
"""By `system.name`: beside the coverage, which every theory has."""
