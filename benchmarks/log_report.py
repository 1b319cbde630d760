"""Time and memory of `odescale report` on a log of a million rows.

    python -m benchmarks.log_report [--rows 1000000]

The command runs as its own process, imports included, on a synthetic run: power law in intrinsic time, a decay over the last third,
noise of 2 % per row, columns "iter,LR,training loss".
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np


def million(path: Path, rows: int) -> None:
    """A run of `rows` steps."""
    step = np.arange(rows)
    rate = 3e-4 * np.clip((rows - step) / (0.3 * rows), 0.0, 1.0)
    tau = np.cumsum(rate) + 0.3
    loss = (2 + 3 * tau**-0.3 + 300 * rate) * (1 + 0.02 * np.random.default_rng(0).standard_normal(rows))
    table = np.column_stack([step, rate, loss])
    np.savetxt(path, table, delimiter=",", header="iter,LR,training loss", comments="", fmt=["%d", "%.6g", "%.6g"])


def measure(rows: int) -> tuple[float, float]:
    """(seconds, peak MiB) of the whole command."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.csv"
        million(path, rows)
        began = time.perf_counter()
        command = [sys.executable, "-m", "odescale.cli.main", "report", str(path), "--out", f"{folder}/page"]
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - began
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    seconds, peak = measure(options.rows)
    print(f"{options.rows} rows: {seconds:.1f} s, {peak:.0f} MiB at its peak")


if __name__ == "__main__":
    main()
