"""What the integration of a theory's ODE has to say of its own error: one table by the name of the theory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from odescale.solve.spectral.step_error import step_error

Remarks = tuple[dict[str, Any], list[str]]
"""Entries of a record, and lines."""


def remarks_of_solve(system: Any, times: Any, start: Any = None) -> Remarks:
    """The remarks of the system's theory on a solve along `times` from `start`; empty where it has none."""
    return REMARKS[system.name](system, times, start) if getattr(system, "name", None) in REMARKS else ({}, [])


def _of_spectrum(system: Any, times: Any, start: Any) -> Remarks:
    """How far it is from exact SGD because a step is not small; a line where that is something to speak of."""
    judged = step_error(system, float(times[-1]), start=start) if times[0] == 0 else None
    return ({"step_error": None}, []) if judged is None else ({"step_error": judged.to_dict()}, judged.remarks())


REMARKS: dict[str, Callable[[Any, Any, Any], Remarks]] = {"spectral": _of_spectrum}
"""By `system.name`."""
