"""Formula mutations: each wrong formula of benchmarks/mutants.toml must make the test fail that is named beside it.

`python -m benchmarks.mutants [--only NAME_OR_ROOM ...] [--jobs N] [--list]`, or `make mutants`. All killers run once on the library
as it is; then each mutation is put into a copy of the checkout and its killers run there. Printed per mutation:

- killed: a killer failed by an assertion (or by an exception that it waited for and did not get).
- survived: the killers passed with the formula wrong; an assertion is missing.
- stale: the text `before` does not stand exactly once in the file; mend the list.
- broken: a killer fails without the mutation, or with it by anything but an assertion (a name error, an import, the time limit).

Exit status 0 when all were killed. A mutation takes a few seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "benchmarks" / "mutants.toml"
COPIED = ("odescale", "tests", "benchmarks", "derivations", "pyproject.toml")
LIMIT = 300.0
"""Seconds for the killers of one mutation."""

# A pytest plugin of the copy: node -> the kind of its worst outcome.
PLUGIN = """
import json, os, pytest

found = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    kind = "passed" if report.passed else "skipped" if report.skipped else "error"
    if report.failed and call.when == "call":
        asserted = call.excinfo.errisinstance((AssertionError, pytest.fail.Exception))
        kind = "asserted" if asserted else f"error: {call.excinfo.typename}: {str(call.excinfo.value)[:200]}"
    if found.get(item.nodeid, "passed") == "passed":
        found[item.nodeid] = kind


def pytest_sessionfinish(session, exitstatus):
    with open(os.environ["MUTANTS_REPORT"], "w") as file:
        json.dump(found, file)
"""


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One wrong formula: in `file` of `room`, `before` becomes `after`; one test of `killer` must fail by it."""

    name: str
    room: str
    file: str
    before: str
    after: str
    killer: tuple[str, ...]

    def applied(self, text: str) -> str:
        """`text` of the file with the mutation. **Raises** `ValueError` where `before` does not stand there exactly once."""
        count = text.count(self.before)
        if count != 1:
            raise ValueError(f"`before` stands {count} times in {self.file}")
        return text.replace(self.before, self.after)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a mutation: "killed", "survived", "stale" or "broken", with a word why."""

    mutant: Mutant
    status: str
    reason: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.status:8s} {self.mutant.name} ({self.mutant.room}) {self.seconds:.1f} s {self.reason}".rstrip()


def read_list(path: Path = LIST) -> list[Mutant]:
    """The mutations of a list, in its order."""
    entries = tomllib.loads(path.read_text())["mutant"]
    return [Mutant(**(entry | {"killer": tuple(entry["killer"])})) for entry in entries]


def chosen(mutants: Iterable[Mutant], only: Sequence[str]) -> list[Mutant]:
    """Those whose name, room or file is among `only`; all without any."""
    return [m for m in mutants if not only or {m.name, m.room, m.file} & set(only)]


class Checkout:
    """A copy of the checkout in `folder`, in which mutations are tried one after the other."""

    def __init__(self, folder: Path, root: Path = ROOT, copied: Sequence[str] = COPIED) -> None:
        self.folder = folder
        for name in copied:
            source = root / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, folder / name)
        (folder / "mutants_plugin.py").write_text(PLUGIN)

    def run(self, nodes: Sequence[str], *, stop: bool) -> tuple[int, dict[str, str], str]:
        """(exit status of pytest, kind of outcome per test, what it printed); status -1 past the time limit."""
        report = self.folder / "report.json"
        report.unlink(missing_ok=True)
        environment = os.environ | {"PYTHONPATH": str(self.folder), "MUTANTS_REPORT": str(report)}
        environment["ODESCALE_PROGRAMS"] = "off"  # no other run has this source text
        words = ["-q", "-p", "mutants_plugin", "-p", "no:cacheprovider", "--tb=line", *(["-x"] if stop else [])]
        limit = LIMIT if stop else None
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *words, *nodes], cwd=self.folder, env=environment, timeout=limit,
                text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return -1, {}, f"longer than {LIMIT:g} s"
        found = json.loads(report.read_text()) if report.exists() else {}
        return done.returncode, found, done.stdout

    def write(self, path: Path, text: str) -> None:
        """Replaces a file and drops its compiled form, which would pass for that of a text of equal length in the same second."""
        path.write_text(text)
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()

    def attempt(self, mutant: Mutant) -> Outcome:
        """Puts the mutation in, runs its killers, and takes it out again."""
        path, began = self.folder / mutant.file, time.monotonic()
        text = path.read_text() if path.exists() else ""
        try:
            mutated = mutant.applied(text)
            compile(mutated, mutant.file, "exec")
        except ValueError as error:
            return Outcome(mutant, "stale", str(error))
        except SyntaxError as error:
            return Outcome(mutant, "broken", f"the mutation is no Python: {error}")
        try:
            self.write(path, mutated)
            status, found, said = self.run(mutant.killer, stop=True)
        finally:
            self.write(path, text)
        return Outcome(mutant, *judge(status, found, said), time.monotonic() - began)


def judge(status: int, found: dict[str, str], said: str) -> tuple[str, str]:
    """(status of the mutation, reason) from one run of its killers."""
    if "asserted" in found.values():
        return "killed", ""
    bad = [kind for kind in found.values() if kind.startswith("error")]
    if bad or status not in (0, 5):
        return "broken", bad[0] if bad else (said.strip().splitlines() or [f"pytest ended with {status}"])[-1]
    if "passed" not in found.values():
        return "broken", "its killers are skipped here"
    return "survived", ""


def healthy_killers(checkout: Checkout, mutants: Sequence[Mutant]) -> dict[str, str]:
    """Killer -> "" where all its tests pass without a mutation, else what is wrong with it."""
    nodes = sorted({node for m in mutants for node in m.killer})
    status, found, said = checkout.run(nodes, stop=False)
    if status == pytest.ExitCode.USAGE_ERROR and len(nodes) > 1:  # one unknown test, and pytest runs none
        one = mutants[0]
        return {node: healthy_killers(checkout, [dataclasses.replace(one, killer=(node,))])[node] for node in nodes}
    wrong = {}
    for node in nodes:
        own = {name: kind for name, kind in found.items() if name == node or name.startswith((node + "[", node + "::"))}
        bad = [f"{name} {kind}" for name, kind in own.items() if kind not in ("passed", "skipped")]
        last = (said.strip().splitlines() or [""])[-1]
        wrong[node] = bad[0] if bad else "" if own else f"{node} did not run: {last}"
    return wrong


def run(
    mutants: Sequence[Mutant], jobs: int = 1, *, root: Path = ROOT, copied: Sequence[str] = COPIED
) -> list[Outcome]:
    """Tries all mutations, `jobs` at a time, and prints each; in the order of the list."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: queue.SimpleQueue[Checkout] = queue.SimpleQueue()
        first = Checkout(Path(folder) / "0", root, copied) if mutants else None
        wrong = healthy_killers(first, mutants) if first is not None else {}
        for job in range(jobs):
            copies.put(first if job == 0 and first else Checkout(Path(folder) / str(job), root, copied))

        def attempt(mutant: Mutant) -> Outcome:
            ill = next((wrong[node] for node in mutant.killer if wrong[node]), "")
            if ill:
                outcome = Outcome(mutant, "broken", f"without the mutation: {ill}")
            else:
                copy = copies.get()
                try:
                    outcome = copy.attempt(mutant)
                finally:
                    copies.put(copy)
            print(outcome, flush=True)
            return outcome

        with ThreadPoolExecutor(max_workers=jobs) as pool:
            return list(pool.map(attempt, mutants))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: exit status 0 when every mutation was killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="names, rooms or files")
    parser.add_argument("--jobs", type=int, default=1, help="mutations at a time (default 1)")
    parser.add_argument("--list", action="store_true", help="print the list and try nothing")
    options = parser.parse_args(arguments)
    mutants = chosen(read_list(), options.only)
    if not mutants:
        parser.error(f"no mutation is called {' or '.join(options.only)}")
    if options.list:
        for m in mutants:
            print(
                f"{m.name} ({m.room}) {m.file}\n  - {m.before.strip()}\n  + {m.after.strip()}\n  {' '.join(m.killer)}"
            )
        return 0
    began = time.monotonic()
    outcomes = run(mutants, max(options.jobs, 1))
    counts = Counter(outcome.status for outcome in outcomes)
    for outcome in outcomes:
        if outcome.status != "killed":
            print(outcome)
    words = ", ".join(f"{counts[status]} {status}" for status in ("killed", "survived", "stale", "broken"))
    print(f"{len(outcomes)} mutations in {time.monotonic() - began:.0f} s: {words}")
    return 0 if counts["killed"] == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
