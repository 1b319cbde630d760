"""What the commands say and do in addition for the system of peaked distributions."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from odescale.analysis.peaked.one_third import predict_law
from odescale.compare.peaked import compare_peaked, write_peaked_report
from odescale.systems.peaked import Peaked
from odescale.training.softmax_layer import PeakedRun, train_peaked

T1_OF_A_RUN = 20.0
"""End of a training run unless asked otherwise, in units of t: a solve goes much further than a run can."""


def law_remark(system: Peaked, t1: float) -> tuple[dict[str, Any], list[str]]:
    """(JSON-ready record, lines): the asymptotic law at the end of the solve, and whether the system is inside it."""
    law = predict_law(system, t1)
    fields = {name: getattr(law, name) for name in law.__dataclass_fields__}
    return {"law": fields}, [f"law at t = {t1:.4g}: {law}"]


def run_of_options(system: Peaked, t1: float, options: argparse.Namespace) -> PeakedRun:
    """The finite-size run of the command's options."""
    return train_peaked(
        system, t1, seeds=options.seeds, records=options.records, checkpoint=options.checkpoint,
        progress=not options.json,
    )  # fmt: skip


def train_record(system: Peaked, t1: float, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Trains and saves; (JSON-ready record, text)."""
    run = run_of_options(system, t1, options)
    path = run.save(Path(options.out) / "run.npz")
    names = ("loss", "error", "overlap", "spread")
    means = {name: run.mean(name) for name in names}
    head = "  ".join(f"{name:>12}" for name in ("step", "t", *names))
    rows = [
        "  ".join(f"{x:12.6g}" for x in (step, t, *(means[name][i] for name in names)))
        for i, (step, t) in enumerate(zip(run.step, run.t, strict=True))
    ]
    record = {
        "system": system.label,
        "parameters": system.summary(),
        "time_unit": f"one unit of t = {system.clock.steps_per_unit:g} SGD steps",
        "t": run.t,
        "loss": means.pop("loss"),
        "error": run.stderr("loss") if len(run.seeds) > 1 else None,
        "observables": means,
        "steps": run.step,
        "path": str(path),
    }
    return record, "\n".join([head, *rows, f"saved to {path}"])


def compare_record(system: Peaked, t1: float, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Trains, compares, writes the report; (JSON-ready record, text)."""
    run = run_of_options(system, t1, options)
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
