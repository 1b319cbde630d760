"""What the commands say and do in addition when a system comes from the mean-field engine."""

from __future__ import annotations

import argparse
from typing import Any

from odescale.cli.output import trained
from odescale.compare.mean_field import compare_mean_field
from odescale.compare.mean_field_report import write_mean_field_report
from odescale.errors import InputError
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


def compare_run(system: MeanField, t1: float, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Trains, compares, writes the report; (JSON-ready record, text)."""
    if not 0 < options.tolerance < 1:  # before the training, not after it
        raise InputError(
            "--tolerance", expected="a number between 0 and 1", got=options.tolerance, remedy="0.05 is good"
        )
    run = trained(system, t1, options)
    comparison = compare_mean_field(system, run, tolerance=options.tolerance)
    page = write_mean_field_report(
        comparison, options.out, title=f"{system.label}: theory against {len(run.seeds)} runs"
    )
    theory, at = comparison.theory, comparison.at
    record, lines = remarks(system)
    record |= comparison.to_dict() | {
        "system": system.label,
        "parameters": system.summary(),
        "time_unit": theory.meta["time_unit"],
        "t": run.t,
        "loss": comparison.theory_loss,
        "exponent": theory.exponent[at],
        "error": None if theory.error is None else theory.error[at],
        "path": str(page),
    }
    text = [
        *lines,
        str(comparison.verdict),
        f"run/theory {comparison.ratio[comparison.kept].min():.3f} to {comparison.ratio[comparison.kept].max():.3f} while the "
        f"loss falls {comparison.fall:.3g} times; z {comparison.rms_z:.2f} in the mean square",
        f"report: {page}  (picture: {page.parent / 'comparison.png'})",
    ]
    return record, "\n".join(text)
