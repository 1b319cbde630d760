"""`python -m benchmarks --peers [--only CASE ...] [--output FILE]`: odescale beside other programs on the same problems.

Each case runs in a process of its own on one core: all sides in turns, at least five times, in CPU seconds. Cold is the first call
of a side in that process, compilation included. Accuracy is matched: odescale runs at the tolerance of the case, every peer at the
loosest of `LADDER` whose largest error is at most twice that of odescale (steps of 3: level on average). The errors of all are
against a tight solution by another program or method. A peer that does not import is left out, with one line that says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CASES = ("committee", "attention", "peaked", "spectral", "kernel")
LADDER = tuple(float(f"{m}e-{e}") for e in range(3, 12) for m in (1, 0.3))
"""Tolerances that are tried for a peer, loosest first."""
LEAST_REPEATS = 5


class Side(NamedTuple):
    """One program on the problem of a case.

    `call`: rtol -> what is compared. `share`: members that it solves, of those of the case. `clock`: its CPU seconds so far.
    `level`: what of its errors is to be level with odescale's; None: no tolerance is looked for, that of the case holds.
    """

    name: str
    call: Callable[[float], np.ndarray]
    share: int | None = None
    clock: Callable[[], float] = time.process_time
    level: Callable[[np.ndarray], Any] | None = np.max


class Case(NamedTuple):
    """A problem, its sides (odescale first), the errors of a result, one for each member (or time), and what is left out."""

    title: str
    rtol: float
    members: int
    errors: Callable[[np.ndarray], np.ndarray]
    what: str
    sides: list[Side]
    missing: list[str]


def timed(side: Side, rtol: float) -> tuple[np.ndarray, float]:
    """(result, CPU seconds) of one call."""
    began = side.clock()
    found = side.call(rtol)
    return found, side.clock() - began


def matched(side: Side, case: Case, own: np.ndarray) -> float:
    """The loosest tolerance at which the error is at most twice odescale's `own`; the tightest if none is."""
    if side.level is None:
        return case.rtol
    for rtol in LADDER:
        if side.level(case.errors(side.call(rtol))) <= 2 * side.level(own):
            return rtol
    return LADDER[-1]


def measure(case: Case, repeats: int = LEAST_REPEATS) -> dict[str, Any]:
    """Rows of the case, the first side as the one that the others are compared with."""
    sides, cold, missing = [], [], list(case.missing)
    for side in case.sides:
        try:
            cold.append(timed(side, case.rtol))
            sides.append(side)
        except Exception as error:
            if not sides:  # without odescale there is nothing to compare with
                raise
            missing.append(f"{side.name} failed ({type(error).__name__}: {error})".replace("\n", " "))
    first = case.errors(cold[0][0])
    rtols = [case.rtol, *(matched(side, case, first) for side in sides[1:])]
    found = [side.call(rtol) for side, rtol in zip(sides, rtols, strict=True)]
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for one, side, rtol in zip(taken, sides, rtols, strict=True):
            one.append(timed(side, rtol)[1] / (side.share or case.members))
    own = statistics.median(taken[0])
    rows = []
    for side, rtol, result, (_, start), one in zip(sides, rtols, found, cold, taken, strict=True):
        errors = case.errors(result)
        rows.append(
            {
                "side": side.name, "rtol": rtol or None, "cold": start, "warm": statistics.median(one),
                "least": min(one), "most": max(one), "ratio": statistics.median(one) / own,
                "error": float(np.max(errors)), "middle": float(np.median(errors)),
            }
        )  # fmt: skip
    return {
        "title": case.title, "what": case.what, "members": case.members, "rows": rows, "missing": missing,
        "repeats": repeats,
    }  # fmt: skip


def table(results: dict[str, dict[str, Any]]) -> str:
    """The page."""
    load = os.getloadavg()[1] if hasattr(os, "getloadavg") else float("nan")
    packages = ", ".join(
        f"{name} {_version(name)}" for name in ("jax", "diffrax", "scipy", "heyoka", "neural-tangents")
    )
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores, load {load:.1f}; {packages}. "
        "CPU seconds on one core, all sides of a case in turns in one process; warm: median (fastest to slowest).",
        "",
        "| case | run | rtol | cold | warm | times odescale's | largest error | median error |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    said: list[str] = []
    for name, found in results.items():
        for i, row in enumerate(found.get("rows", ())):
            rtol = "-" if row["rtol"] is None else f"{row['rtol']:.0e}"
            warm = f"{_short(row['warm'])} ({_short(row['least'])} to {_short(row['most'])})"
            cold = f"{row['cold']:.2f} s"
            numbers = f"{row['ratio']:.3g} | {row['error']:.1e} | {row['middle']:.1e}"
            lines.append(f"| {name if i == 0 else ''} | {row['side']} | {rtol} | {cold} | {warm} | {numbers} |")
        if "failed" in found:
            lines.append(f"| {name} | failed: {found['failed'].replace('|', '/')} | - | - | - | - | - | - |")
            continue
        each = "a member" if found["members"] > 1 else "a call"
        said.append(f"- `{name}`: {found['title']}; warm {each}, {found['repeats']} turns. Error: {found['what']}.")
        said += [f"- `{name}`: {line}" for line in found["missing"]]
    return "\n".join([*lines, "", *said]) + "\n"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _short(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def main(arguments: list[str] | None = None) -> int:
    """Runs the cases, each in its own process; 0, or 1 when one failed."""
    from benchmarks.__main__ import run_case

    parser = argparse.ArgumentParser(prog="python -m benchmarks --peers", description="odescale beside other programs.")
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--output", type=Path, help="also write the table there")
    parser.add_argument("--size", choices=("full", "small"), default="full", help="small: does it run at all?")
    parser.add_argument("--repeats", type=int, default=LEAST_REPEATS, help=f"turns, at least {LEAST_REPEATS} count")
    parser.add_argument(
        "--tangents-python", default=sys.executable, metavar="PYTHON",
        help="interpreter in which neural-tangents imports (it needs an older JAX than odescale)",
    )  # fmt: skip
    parser.add_argument(
        "--without", nargs="*", default=[], metavar="PEER", help="peers to leave out: heyoka, diffrax, ..."
    )
    chosen = parser.parse_args(arguments)
    results = {}
    for name in chosen.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        more = [str(chosen.repeats), chosen.tangents_python, *chosen.without]
        results[name] = run_case(name, "cpu", chosen.size, module="benchmarks.peers", more=more)
    page = table(results)
    print(page, end="")
    if chosen.output is not None:
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
        chosen.output.write_text(page, encoding="utf-8")
    return int(any("failed" in found for found in results.values()))


def here(arguments: list[str]) -> None:
    """Measures one case in this process, on one core, and prints it as JSON on the last line."""
    # Of all that use XLA: on one core, handing parts of an operation to threads costs a third more.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    from benchmarks.__main__ import ROOT
    from benchmarks.engine import one_thread

    # Not as `tests.scipy_committee`: some peers bring a package `tests` of their own.
    sys.path.insert(0, str(ROOT / "tests"))
    from benchmarks import peer_cases

    name, _, size, repeats, python, *without = arguments
    one_thread()
    case = getattr(peer_cases, name)(size == "small", peer_cases.Asked(python, tuple(without)))
    print(json.dumps(measure(case, int(repeats))))


if __name__ == "__main__":
    here(sys.argv[1:])
