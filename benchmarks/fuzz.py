"""Generated damage against the readers of logs and the command line: what was answered, what was refused, what broke.

    python -m benchmarks.fuzz [--count 10000] [--seed 0] [--reports 0]

Half of the inputs are files for `read_logs`, half are command lines for `odescale`, in this process. A reader may return logs or
raise `InputError`, within a second; a command may end with status 0, on --json with one valid JSON object, or with status 2 and
one line. Anything else is a fault: it is printed with its number, and the exit status is 1. `--only NUMBER` repeats one. With
`--reports N` the first N files that could be read are reported on too, by the whole command (seconds each).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.fuzz_inputs import command_line, data_folder, log_file, prepare, reader_options, real_shapes
from odescale.cli.main import main as odescale
from odescale.errors import InputError
from odescale.logs.read import read_logs

LIMIT = 1.0
"""Seconds that a reader may take."""


class Outcome(NamedTuple):
    """What was tried, how it ended ("answered", "refused" or a fault in words), how long it took, what was said."""

    what: str
    ended: str
    seconds: float
    said: str = ""

    @property
    def fault(self) -> bool:
        return self.ended not in ("answered", "refused")


def try_reader(rng: random.Random, folder: Path, real: tuple[bytes, ...] = ()) -> Outcome:
    """One damaged file through `read_logs`."""
    name, data = log_file(rng, real)
    path, options = folder / name, reader_options(rng)
    path.write_bytes(data)
    what = f"read {name} ({len(data)} bytes) {options}"
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read_logs(path, **options)
        ended, said = "answered", ""
    except InputError as error:
        said = str(error)
        ended = "refused" if "\n" not in said else "an error of several lines"
    except Exception:
        ended, said = "a traceback", traceback.format_exc()
    seconds = time.perf_counter() - began
    path.unlink()
    return Outcome(what, "too slow" if seconds > LIMIT and ended in ("answered", "refused") else ended, seconds, said)


def try_command(line: list[str]) -> Outcome:
    """One command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    began = time.perf_counter()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = odescale(line)
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        return Outcome(repr(line), "a traceback", time.perf_counter() - began, traceback.format_exc())
    seconds = time.perf_counter() - began
    return Outcome(repr(line), _ended(line, status, out.getvalue(), err.getvalue()), seconds, err.getvalue())


def _ended(line: list[str], status: object, out: str, err: str) -> str:
    if "\x1b" in out + err:
        return "an escape code for the terminal"
    if status == 0:
        if "--json" not in line:
            return "answered"
        try:
            json.loads(out, parse_constant=_no_constant)
        except ValueError:
            return "no valid JSON"
        return "answered"
    if status != 2:
        return f"status {status}"
    if not (err.startswith("odescale: ") and err.count("\n") == 1 and err.endswith("\n")):
        return "not one line"
    return "refused" if not out else "refused with output"


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def try_report(seed: int, number: int, folder: Path, real: tuple[bytes, ...]) -> Outcome | None:
    """The report on a damaged file; None for one that cannot be read."""
    name, data = log_file(random.Random(f"{seed} {number}"), real)
    path = folder / name
    path.write_bytes(data)
    try:
        read_logs(path)
    except InputError:
        return None
    return try_command(["report", "--json", str(path), "--out", str(folder / "page")])


def outcome(seed: int, number: int, folder: Path, real: tuple[bytes, ...]) -> Outcome:
    """Input `number` of a seed: files have even numbers, command lines odd ones."""
    rng = random.Random(f"{seed} {number}")
    return try_command(command_line(rng, folder)) if number % 2 else try_reader(rng, folder, real)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reports", type=int, default=0, help="files that were read to report on")
    parser.add_argument("--only", type=int, help="the input of this number alone")
    options = parser.parse_args(arguments)
    real = real_shapes(data_folder())
    numbers = range(options.count) if options.only is None else [options.only]
    counts: Counter[str] = Counter()
    faults, slowest = 0, {"read": (0.0, ""), "command": (0.0, "")}
    began = time.perf_counter()
    with TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        prepare(folder)
        for number in numbers:
            found = outcome(options.seed, number, folder, real)
            kind = "command" if number % 2 else "read"
            counts[f"{kind}: {found.ended}"] += 1
            slowest[kind] = max(slowest[kind], (found.seconds, f"{number}: {found.what[:160]}"))
            if found.fault or options.only is not None:
                faults += found.fault
                print(
                    f"{number} {found.ended} ({found.seconds:.2f} s): {found.what[:300]}\n{found.said[-1200:]}",
                    flush=True,
                )
        for number in numbers if options.reports else ():
            found = None if number % 2 else try_report(options.seed, number, folder, real)
            if found is None:
                continue
            counts[f"report: {found.ended}"] += 1
            slowest["report"] = max(slowest.get("report", (0.0, "")), (found.seconds, f"{number}: {found.what[:160]}"))
            if found.fault:
                faults += 1
                print(
                    f"{number} {found.ended} ({found.seconds:.2f} s): {found.what[:300]}\n{found.said[-1200:]}",
                    flush=True,
                )
            if sum(count for words, count in counts.items() if words.startswith("report")) >= options.reports:
                break
    print(f"{len(numbers)} inputs, seed {options.seed}, {time.perf_counter() - began:.0f} s")
    for words, count in sorted(counts.items()):
        print(f"{count:7d}  {words}")
    for kind, (seconds, what) in slowest.items():
        print(f"slowest {kind}: {seconds:.2f} s, {what!a}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
