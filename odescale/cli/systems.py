"""`odescale systems`: the register, and one system of it with its parameters. Read without JAX."""

from __future__ import annotations

import argparse
from textwrap import wrap
from typing import Any

from odescale.cli.output import emit
from odescale.plain_text import one_line
from odescale.systems.register import SYSTEMS, Entry, failed_entry_points, find_system, systems

KEYS = ("name", "default", "domain", "unit", "meaning")


def list_systems(options: argparse.Namespace) -> int:
    """All systems with the names of their parameters; of one, defaults, domains, units, meanings."""
    entries = [SYSTEMS[name] for name in systems()] if options.system is None else [find_system(options.system)]
    lines: list[str] = []
    for entry in entries:
        end = f"t1 = {entry.t1:g}" + ("" if entry.run_t1 is None else f", {entry.run_t1:g} of a training")
        lines.append(f"{entry.name}: {entry.description} ({end})")
        if options.system is None:
            names = ", ".join(p.name for p in entry.parameters)
            lines += wrap(names, 100, initial_indent="    ", subsequent_indent="    ")
        if options.system is not None:
            lines.append(f"    one unit of t = {_unit(entry)}")
        for p in entry.parameters if options.system else ():
            lines.append(f"    {p.name:<15} {p.default!s:<10} {p.meaning} [{p.unit}]; {p.domain}")
    failed = failed_entry_points() if options.system is None else {}
    lines += [f"{name}: left out, its package does not import: {one_line(why)}" for name, why in failed.items()]
    if options.system is None:
        lines.append(
            "`odescale systems NAME`: defaults, domains and units. Your own: FILE.py:BUILDER in the place of a name."
        )
    record: dict[str, Any] = {"systems": {entry.name: _record(entry) for entry in entries}}
    if options.system is None:
        record["failed"] = failed
    if options.system is not None:
        unit = f"one unit of t = {_unit(entries[0])}"
        record |= {
            "system": entries[0].name,
            "parameters": {p.name: p.default for p in entries[0].parameters},
            "time_unit": unit,
        }
    emit(record, "\n".join(lines), options.json)
    return 0


def _record(entry: Entry) -> dict[str, Any]:
    table = [{key: getattr(p, key) for key in KEYS} for p in entry.parameters]
    return {"description": entry.description, "t1": entry.t1, "run_t1": entry.run_t1, "parameters": table}


def _unit(entry: Entry) -> str:
    if entry.unit:
        return entry.unit
    try:  # A system from outside says it with its clock alone, and its builder may fail.
        return entry.build().clock.unit
    except Exception as error:
        return f"unknown, its builder fails ({type(error).__name__}: {one_line(str(error))})"
