"""What the commands say and do in addition for the system of peaked distributions."""

from __future__ import annotations

import argparse
from typing import Any

from odescale.analysis.peaked.one_third import predict_law
from odescale.cli.output import trained
from odescale.compare.peaked import compare_peaked, write_peaked_report
from odescale.systems.peaked import Peaked


def law_remark(system: Peaked, t1: float) -> tuple[dict[str, Any], list[str]]:
    """(JSON-ready record, lines): the asymptotic law at the end of the solve, and whether the system is inside it."""
    law = predict_law(system, t1)
    fields = {name: getattr(law, name) for name in law.__dataclass_fields__}
    return {"law": fields}, [f"law at t = {t1:.4g}: {law}"]


def compare_record(system: Peaked, t1: float, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Trains, compares, writes the report; (JSON-ready record, text)."""
    run = trained(system, t1, options)
    comparison = compare_peaked(system, run)
    page = write_peaked_report(comparison, options.out, title=f"{system.label}: theory against {len(run.seeds)} runs")
    lines = [f"{name}: {verdict}" for name, verdict in comparison.verdicts.items()]
    record = comparison.to_dict() | {
        "system": system.label,
        "parameters": system.summary(),
        "time_unit": comparison.theory.meta["time_unit"],
        "t": run.t,
        "loss": comparison.theory.loss[comparison.at],
        "exponent": comparison.theory.exponent[comparison.at],
        "error": None,
        "path": str(page),
    }
    return record, "\n".join([str(comparison.verdict), *lines, f"report: {page}"])
