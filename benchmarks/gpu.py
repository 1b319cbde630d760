"""Everything that needs a GPU, in one go: `make gpu` or `python -m benchmarks.gpu [--seconds 460]`; writes results/gpu.md.

First the `gpu` tests, then the table of `python -m benchmarks --device gpu`, case by case as long as the time lasts. A case that is
stopped by the clock, or fails, is a row that says so. Without a GPU: one line, status 2.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.__main__ import ROOT, environment, missing, run_case, table

ORDER = (
    "members",
    "routes",
    "mean_field",
    "modes",
    "training",
    "sweep",
    "quickstart",
    "single",
    "spectrum",
    "transition",
)
"""What a GPU is for comes first."""

LEAST = 20.0
"""Seconds below which no further case is begun."""


def tests_within(seconds: float) -> str:
    """The last line of the `gpu` tests."""
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    try:
        ran = subprocess.run(words, cwd=ROOT, env=environment("gpu"), capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped by the clock after {seconds:.0f} s"
    return (ran.stdout.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]


def main(arguments: list[str] | None = None) -> int:
    """0; 1 when a test or a case failed; 2 without the device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=460.0, help="for all of it (default: under eight minutes)")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="cpu: a dry run without the tests")
    parser.add_argument("--size", choices=("full", "small"), default="full", help="small: does it run at all?")
    parser.add_argument("--folder", type=Path, default=ROOT / "results", help="where the page is written")
    chosen = parser.parse_args(arguments)
    why = missing(chosen.device)
    if why is not None:
        print(f"error: {why}", file=sys.stderr)
        return 2
    began = time.monotonic()

    def left() -> float:
        return chosen.seconds - (time.monotonic() - began)

    said = tests_within(left() / 3) if chosen.device == "gpu" else "not run: no GPU"
    results: dict[str, dict[str, Any]] = {}
    chosen.folder.mkdir(parents=True, exist_ok=True)
    path = chosen.folder / "gpu.md"
    for name in ORDER:
        if left() < LEAST:
            results[name] = {"failed": "no time left"}
        else:
            print(f"{name} ...", file=sys.stderr, flush=True)
            results[name] = run_case(name, chosen.device, chosen.size, left())
        # After each: a machine that is taken away leaves what was measured.
        path.write_text(f"Tests that need a GPU: {said}\n\n{table(results, chosen.device)}", encoding="utf-8")
    print(path.read_text(encoding="utf-8"))
    return int("failed" in said or any("failed" in found for found in results.values()))


if __name__ == "__main__":
    sys.exit(main())
