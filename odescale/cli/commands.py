"""The commands, one function each: options in, exit status out."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from odescale.analysis.phases.transition import find_transition
from odescale.cli.arguments import require_picture, settings
from odescale.cli.derivation import derive_again, shipped_text
from odescale.cli.frontier import frontier_command
from odescale.cli.logs import forecast_command, report_command, schedule_command
from odescale.cli.mean_field import MOST_STEPS, POINTS, remarks
from odescale.cli.output import emit, trained, trajectory_record, trajectory_text
from odescale.cli.peaked import law_remark
from odescale.cli.quickstart import run_quickstart
from odescale.compare.comparison import check_options, compare
from odescale.compare.report import to_json, write_report
from odescale.errors import InputError
from odescale.plot.draw import plot
from odescale.solve.integrate import integrate
from odescale.systems.mean_field import MeanField
from odescale.systems.peaked import Peaked
from odescale.systems.register import SYSTEMS, find_system


def systems_command(options: argparse.Namespace) -> int:
    """Lists systems, parameters, defaults, domains, units."""
    lines: list[str] = []
    catalogue: dict[str, Any] = {}
    for name, entry in SYSTEMS.items():
        lines.append(f"{name}: {entry.description} (t1 = {entry.t1:g} by default)")
        for p in entry.parameters:
            lines.append(f"    {p.name:<15} {str(p.default):<10} {p.meaning} [{p.unit}]; {p.domain}")
        keys = ("name", "default", "domain", "unit", "meaning")
        catalogue[name] = {
            "description": entry.description,
            "t1": entry.t1,
            "parameters": [{key: getattr(p, key) for key in keys} for p in entry.parameters],
        }
    emit({"systems": catalogue}, "\n".join(lines), options.json)
    return 0


def derive_command(options: argparse.Namespace) -> int:
    """Prints the shipped derivation, or derives it again."""
    shipped = shipped_text(options.name)
    if not options.rerun:
        emit({"system": options.name, "derivation": shipped}, shipped, options.json)
        return 0
    text = derive_again(options.name)
    emit({"system": options.name, "derivation": text, "matches_shipped": text == shipped}, text, options.json)
    return 0


def solve_command(options: argparse.Namespace) -> int:
    """Integrates and prints a trajectory."""
    system, t1 = _system(options)
    require_picture(options.plot)
    engine = isinstance(system, MeanField)
    points = options.points or (POINTS if engine else 200)
    trajectory = integrate(
        system, t1, points=points, rtol=options.rtol, solver=options.solver, accuracy=options.accuracy,
        precision=options.precision, progress=False, max_steps=MOST_STEPS if engine else None,
    )  # fmt: skip
    if options.save:
        trajectory.save(options.save)
    if options.plot:
        plot(trajectory)["loss"].figure.savefig(options.plot, dpi=150)
    record, lines = remarks(system) if isinstance(system, MeanField) else ({}, [])
    if isinstance(system, Peaked):
        record, lines = law_remark(system, t1)
    text = trajectory_text(trajectory, options.clock, remarks=lines)
    emit(trajectory_record(trajectory, options.clock) | record, text, options.json)
    return 0


def transition_command(options: argparse.Namespace) -> int:
    """Finds the transition of a system; "no exponential phase" is an answer, exit status 0."""
    system, t1 = _system(options)
    # A loss that is an average over nodes costs as much as a step: a spline needs no more points than these.
    points = 2 * POINTS if isinstance(system, MeanField) else 400
    found = find_transition(system, t1, min_depth=options.min_depth, precision=options.precision, points=points)
    record: dict[str, Any] = {
        "system": system.label,
        "parameters": system.summary(),
        "time_unit": found.time_unit,
        "transition": found.to_dict(),
    }
    if found.t_x is not None:
        record["transition"] |= {name: float(system.clock.from_t(found.t_x, name)) for name in ("steps", "tau")}
        where = (
            f"\n= {record['transition']['steps']:.6g} SGD steps = {record['transition']['tau']:.6g} of intrinsic time"
        )
    else:
        where = ""
    notes: list[str] = []
    if isinstance(system, MeanField):
        extra, notes = remarks(system)
        record |= extra
    emit(record, "\n".join([f"{found}{where}", *notes]), options.json)
    return 0


def train_command(options: argparse.Namespace) -> int:
    """Trains the finite-size run of a system and saves it."""
    system, t1 = _system(options, of_a_run=True)
    run = trained(system, t1, options)
    path = run.save(Path(options.out) / "run.npz")
    several = len(run.seeds) > 1
    error = run.stderr() if several else run.mean("loss_stderr") if "loss_stderr" in run.records else None
    means = {name: run.mean(name) for name in run.records if name != "loss" and not name.endswith("_stderr")}
    shown = [name for name, values in means.items() if values.ndim == 1]
    head = [f"{name[:12]:>12}" for name in ("step", "t", "loss", "+-", *shown)]
    rows = [
        [f"{x:12.6g}" for x in (run.step[i], run.t[i], loss, np.nan if error is None else error[i])]
        + [f"{means[name][i]:12.6g}" for name in shown]
        for i, loss in enumerate(run.mean())
    ]
    text = "\n".join([*("  ".join(row) for row in (head, *rows)), f"saved to {path}"])
    record = {
        "system": system.label,
        "parameters": system.summary(),
        "time_unit": f"one unit of t = {system.clock.steps_per_unit:g} SGD steps",
        "t": run.t,
        "loss": run.mean(),
        "error": error,
        "observables": means,
        "steps": run.step,
        "path": str(path),
    }
    emit(record, text, options.json)
    return 0


def compare_command(options: argparse.Namespace) -> int:
    """Trains, compares with the theory, writes the report."""
    system, t1 = _system(options, of_a_run=True)
    asked = {"tolerance": options.tolerance, "min_depth": options.min_depth}
    check_options(system, **asked)  # before the training, not after it
    run = trained(system, t1, options)
    comparison = compare(system, run, **asked)
    page = write_report(comparison, options.out)
    record, lines = remarks(system) if isinstance(system, MeanField) else ({}, [])
    record |= to_json(comparison) | {
        "loss": comparison.loss.predicted,
        "error": comparison.loss.stderr,
        "path": str(page),
    }
    found = [f"{name}: {transition}" for name, transition in comparison.transitions.items()]
    picture = page.parent / "comparison.png"
    emit(record, "\n".join([*lines, str(comparison), *found, f"report: {page}  (picture: {picture})"]), options.json)
    return 0


def quickstart_command(options: argparse.Namespace) -> int:
    """The whole line on the quickstart system."""
    record, text = run_quickstart(options.seeds, Path(options.out), quiet=options.json)
    emit(record, text, options.json)
    return 0


def _system(options: argparse.Namespace, *, of_a_run: bool = False) -> tuple[Any, float]:
    """The system and its end time, that of a training run where it is to be trained."""
    entry = find_system(options.system)
    system = entry.build(**settings(options.set, entry.parameters, options.system))
    if options.clock not in ("t", "steps", "tau"):
        raise InputError("--clock", expected="t, steps or tau", got=options.clock, remedy="t is the default")
    if options.t1 is None:
        return system, entry.run_t1 if of_a_run and entry.run_t1 is not None else entry.t1
    if not (np.isfinite(options.t1) and options.t1 > 0):
        raise InputError("t1", expected="a positive finite time", got=options.t1, remedy="e.g. --t1 30")
    return system, float(np.asarray(system.clock.to_t(options.t1, options.clock)))


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "systems": systems_command,
    "derive": derive_command,
    "solve": solve_command,
    "transition": transition_command,
    "train": train_command,
    "compare": compare_command,
    "report": report_command,
    "forecast": forecast_command,
    "schedule": schedule_command,
    "frontier": frontier_command,
    "quickstart": quickstart_command,
}
