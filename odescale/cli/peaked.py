"""What the commands say and do in addition for the system of peaked distributions."""

from __future__ import annotations

from typing import Any

from odescale.analysis.peaked.one_third import predict_law
from odescale.systems.peaked import Peaked


def law_remark(system: Peaked, t1: float) -> tuple[dict[str, Any], list[str]]:
    """(JSON-ready record, lines): the asymptotic law at the end of the solve, and whether the system is inside it."""
    law = predict_law(system, t1)
    fields = {name: getattr(law, name) for name in law.__dataclass_fields__}
    return {"law": fields}, [f"law at t = {t1:.4g}: {law}"]
