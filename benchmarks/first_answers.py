"""First answers of the command line: `python -m benchmarks.first_answers [--repeats 3] [COMMAND ...]`, a table on stdout.

Every command runs in a process of its own: with an empty cache (cold), again with what that left (second), and with --no-cache. CPU
seconds of the whole process, children included, imports and all; the median, the fastest and the slowest of the repeats.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

COMMANDS = (
    "systems", "solve peaked", "solve spectral", "solve attention", "solve transformer", "transition quickstart",
)  # fmt: skip


def cpu_seconds(words: list[str], cache: str) -> float:
    """User and system time of one command in an environment whose cache is the folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "odescale.cli.main", *words], check=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env=os.environ | {"XDG_CACHE_HOME": cache},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(command: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat: `cold`, `second`, `no cache`."""
    words, found = command.split(), {"cold": [], "second": [], "no cache": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            found["cold"].append(cpu_seconds(words, cache))
            found["second"].append(cpu_seconds(words, cache))
        if words[0] != "systems":
            found["no cache"].append(cpu_seconds([*words, "--no-cache"], os.devnull))
    return found


def main() -> int:
    """Prints one row for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"default: {', '.join(COMMANDS)}")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("| command | cold | second | `--no-cache` |\n|---|---|---|---|")
    for command in options.commands or COMMANDS:
        cells = [
            f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else "-"
            for values in measure(command, options.repeats).values()
        ]
        print(f"| `{command}` | {' | '.join(cells)} |", flush=True)
    print(
        f"\n{Path(sys.executable).name} {sys.version.split()[0]}, {os.cpu_count()} cores, CPU seconds of whole processes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
