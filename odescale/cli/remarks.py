"""What a theory has to say beside the answer of any verb: one table by the name of the theory, imported when it speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Remarks = tuple[dict[str, Any], list[str]]
"""Entries of the JSON record, and lines."""


def remarks_of(system: Any, t1: float) -> Remarks:
    """The remarks of the system's theory at the end time t1; empty where it has nothing to add."""
    return REMARKS[system.name](system, t1) if system.name in REMARKS else ({}, [])


def _nodes_and_coverage(system: Any, t1: float) -> Remarks:
    """How the expectations of a mean-field system are taken, and whether the theory covers it."""
    from odescale.expectations.automatic import node_dimension
    from odescale.expectations.closure import Quadrature
    from odescale.systems.coverage import coverage

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


def _asymptotic_law(system: Any, t1: float) -> Remarks:
    """The law of a peaked system at the end, and whether the system is inside it."""
    from odescale.analysis.peaked.one_third import predict_law

    law = predict_law(system, t1)
    return {"law": {name: getattr(law, name) for name in law.__dataclass_fields__}}, [f"law at t = {t1:.4g}: {law}"]


def _step_error(system: Any, t1: float) -> Remarks:
    """How far a spectrum's ODE is from exact SGD; a line where that is something to speak of."""
    from odescale.solve.remarks import remarks_of_solve

    return remarks_of_solve(system, (0.0, t1))


def _coverage(system: Any, t1: float) -> Remarks:
    """Whether the theory covers the system at its own number of tokens and learning rate."""
    from odescale.systems.coverage import coverage

    judged = coverage(system)
    return {"coverage": judged.to_dict()}, [str(judged)]


REMARKS: dict[str, Callable[[Any, float], Remarks]] = {
    "attention": _coverage, "mean_field": _nodes_and_coverage, "peaked": _asymptotic_law, "spectral": _step_error,
}  # fmt: skip
"""By `system.name`."""
