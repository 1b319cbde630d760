"""`odescale sweep PLAN.toml`: a sweep into a store, by this process or by an engine."""

from __future__ import annotations

import argparse
import contextlib
import csv
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from odescale.analysis.phases.numbers import MEANINGS, TransitionCode
from odescale.cli.output import emit
from odescale.cli.verbs import parameter_of, range_of
from odescale.errors import InputError, require_number
from odescale.plain_text import one_line
from odescale.solve.codes import explain
from odescale.solve.integrate import FINISHED
from odescale.sweeps.store import INSTALL
from odescale.sweeps.sweep import sweep
from odescale.systems.register import Entry, find_system

SETTINGS = ("points", "rtol", "atol", "solver", "max_steps", "chunk", "lanes", "keep", "jobs")
"""Keys of a plan that are arguments of `odescale.sweep`."""
OWN = ("system", "t1", "store", "set", "vary", "grid", "table", "dask", "submitit")
MOST = 10_000_000
"""Members of a plan."""


def sweep_plan(options: argparse.Namespace) -> int:
    """Runs the plan, or goes on with it; status 1 where members did not finish."""
    _refuse_options(options)
    path = Path(options.system)
    plan = read_plan(path)
    system = str(plan["system"])
    if ".py:" in system and not Path(system).is_absolute():
        system = str(path.parent / system)
    entry = find_system(system)
    settings = _settings(plan.get("set", {}), entry)
    values = values_of_plan(plan, path, entry)
    t1 = entry.t1 if "t1" not in plan else require_number("t1", plan["t1"], open_=True)
    store = path.parent / plan.get("store", f"{path.stem}.zarr")
    given = {name: plan[name] for name in SETTINGS if name in plan}
    bar = sys.stderr.isatty() and not options.json
    with engine_of(options, plan, store) as executor:
        found = sweep(system, t1, values, store=store, executor=executor, progress=bar, **given, **settings)
    described = found.attrs["described"]
    record, lines = summary_of(found)
    summary = store.with_suffix(".csv")
    head = f"{described['system']}: {found.sizes['member']} members in {store}, a row of each in {summary}"
    record = {**record, "store": str(store), "summary": str(summary), "solver": found.attrs["odescale"]["solver"]}
    common = {name: described[name] for name in ("system", "parameters", "time_unit")}
    emit(common | record, "\n".join([head, *lines]), options.json)
    if record["failed"]:
        words = f"{record['failed']} of {found.sizes['member']} members did not finish: see their codes"
        print(f"odescale: {one_line(words)}", file=sys.stderr)
    return int(bool(record["failed"]))


def read_plan(path: Path) -> dict[str, Any]:
    """The keys of a plan; what is no TOML, or has an unknown key, is refused."""
    try:
        plan = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("plan", expected="TOML", got=f"{path}: {error}", remedy="see docs/sweeps.md") from error
    for name in plan:
        if name not in (*OWN, *SETTINGS):
            raise InputError("plan", expected=f"some of {', '.join((*OWN, *SETTINGS))}", got=name, remedy="drop it")
    if not isinstance(plan.get("system"), str):
        raise InputError(
            "plan", expected="a system", got=plan.get("system", "none"), remedy='e.g. system = "committee"'
        )
    for name in ("set", "vary", "grid", "dask", "submitit"):
        if not isinstance(plan.get(name, {}), dict):
            raise InputError(name, expected=f"a table [{name}]", got=plan[name], remedy="see docs/sweeps.md")
    for name in ("store", "table"):
        if not isinstance(plan.get(name, ""), str):
            raise InputError(name, expected="a path", got=plan[name], remedy="in quotes, beside the plan")
    return plan


def values_of_plan(plan: Mapping[str, Any], path: Path, entry: Entry) -> dict[str, np.ndarray]:
    """name -> (members,): of [vary], varied together; of [grid], every combination, the last name fastest; or of a CSV `table`."""
    sources = [name for name in ("vary", "grid", "table") if name in plan]
    if len(sources) != 1:
        raise InputError("plan", expected="one of [vary], [grid], table", got=sources or "none", remedy="keep one")
    if "table" in plan:
        columns = _columns_of(path.parent / plan["table"])
    else:
        columns = {name: _values(name, spec) for name, spec in plan[sources[0]].items()}
    for name in columns:
        parameter_of(name, entry.parameters, entry.name)
    members = np.prod([float(column.size) for column in columns.values()]) if "grid" in plan else 0
    if members > MOST:
        raise InputError("grid", expected=f"at most {MOST} members", got=f"{members:g}", remedy="take fewer values")
    if "grid" in plan:
        axes = np.meshgrid(*columns.values(), indexing="ij")
        columns = {name: axis.ravel() for name, axis in zip(columns, axes, strict=True)}
    return columns


def summary_of(found: Any) -> tuple[dict[str, Any], list[str]]:
    """How many members ended with which code, and how many have a transition."""
    codes, counts = np.unique(found["code"].values, return_counts=True)
    by_code = dict(zip(codes.tolist(), counts.tolist(), strict=True))
    failed = sum(count for code, count in by_code.items() if code not in FINISHED)
    lines = [f"{count} members with code {code}: {explain(code)}" for code, count in by_code.items() if code]
    record: dict[str, Any] = {
        "members": found.sizes["member"],
        "failed": failed,
        "codes": by_code,
        "code": max(by_code),
    }
    record |= {"t": found["t"].values, "transitions": None}
    if "transition" in found:
        kinds, counts = np.unique(found["transition"].values, return_counts=True)
        words = {
            TransitionCode(kind).name.lower(): count
            for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True)
        }
        record["transitions"] = words
        lines += [f"{count} members: {MEANINGS[TransitionCode[name.upper()]]}" for name, count in words.items()]
    return record, lines


@contextlib.contextmanager
def engine_of(options: argparse.Namespace, plan: Mapping[str, Any], store: Path) -> Iterator[Any]:
    """The engine of --executor, closed afterwards; None for this process."""
    name = options.executor
    if name is None:
        yield None
    elif name == "dask":
        distributed = _package("distributed", name)
        with contextlib.ExitStack() as stack:
            address = options.address
            if address is None:
                # New processes, not forks, one thread each: a JAX program takes its cores itself.
                table = {"threads_per_worker": 1, "processes": True, "dashboard_address": None} | plan.get("dask", {})
                address = stack.enter_context(distributed.LocalCluster(**table))
            client = stack.enter_context(distributed.Client(address))
            yield client.get_executor()
    else:
        submitit = _package("submitit", name)
        table = dict(plan.get("submitit", {}))
        folder, cluster = table.pop("folder", f"{store}.jobs"), table.pop("cluster", None)
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**table)
        yield executor


def _package(name: str, engine: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            "--executor", expected=f"the package {name}", got=f"{engine}: {error}", remedy=INSTALL
        ) from error


def _refuse_options(options: argparse.Namespace) -> None:
    """A plan says everything itself but who computes."""
    defaults: dict[str, Any] = {"clock": "t", "solver": "auto", "set": [], "vary": []}
    for name in ("set", "vary", "t1", "clock", "plot", "points", "rtol", "solver", "max_steps", "save"):
        if getattr(options, name) != defaults.get(name):
            option = f"--{name.replace('_', '-')}"
            raise InputError(option, expected="it in the plan", got=getattr(options, name), remedy="write it there")
    if options.executor not in (None, "dask", "submitit"):
        raise InputError(
            "--executor", expected="dask or submitit", got=options.executor, remedy="leave it out for none"
        )
    if options.address is not None and options.executor != "dask":
        raise InputError("--address", expected="--executor dask", got=options.executor, remedy="it is of a scheduler")


def _settings(given: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
    return {name: parameter_of(name, entry.parameters, entry.name).check(value) for name, value in given.items()}


def _values(name: str, spec: Any) -> np.ndarray:
    try:
        return range_of(spec, MOST) if isinstance(spec, str) else np.atleast_1d(np.asarray(spec, dtype=float))
    except (KeyError, ValueError, TypeError):
        raise InputError(
            name, expected='numbers, "LO:HI:N" or "LO:HI:N:log"', got=spec, remedy='e.g. "0.05:0.5:100:log"'
        ) from None


def _columns_of(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV with a head of names."""
    with path.open(newline="", encoding="utf-8") as stream:
        head, *rows = [row for row in csv.reader(stream) if row] or [[]]
    try:
        table = np.array(rows, dtype=float).reshape(len(rows), len(head))
    except ValueError as error:
        raise InputError(
            "table", expected="a CSV of names, then numbers", got=f"{path}: {error}", remedy="mend it"
        ) from None
    return dict(zip(head, table.T, strict=True))
