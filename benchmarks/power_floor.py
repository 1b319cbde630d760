"""L = c/t^a + L0 on the training losses of public models, in steps and in intrinsic time, over several windows.

    python -m benchmarks.power_floor FILE.csv      columns model, step, loss; warm-up to step 1430, cosine to 10 %

An exponent of a training curve is one of its clock and of its window; the table shows by how much.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from odescale.laws import fit_power_floor

WARMUP, TOTAL = 1430.0, 143_000.0
WINDOWS = ((100, TOTAL), (1000, TOTAL), (3000, TOTAL), (1000, 20_000))


def intrinsic_time(step: np.ndarray) -> np.ndarray:
    """int eta/eta_peak dstep of linear warm-up and cosine decay to a tenth, in steps at the peak rate."""
    grid = np.arange(TOTAL + 1)
    phase = np.clip((grid - WARMUP) / (TOTAL - WARMUP), 0, 1)
    rate = np.where(grid < WARMUP, grid / WARMUP, 0.1 + 0.45 * (1 + np.cos(np.pi * phase)))
    return np.interp(step, grid, np.concatenate([[0], np.cumsum(0.5 * (rate[1:] + rate[:-1]))]))


def main(arguments: list[str] | None = None) -> int:
    """Prints one line per model, clock and window."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    with options.file.open() as stream:
        rows = list(csv.DictReader(stream))
    print("| model | clock | window (steps) | a | 95 % interval | later half | L0 | identified |")
    print("|---|---|---|---|---|---|---|---|")
    for model in sorted({row["model"] for row in rows}):
        pairs = sorted({float(row["step"]): float(row["loss"]) for row in rows if row["model"] == model}.items())
        step, loss = np.array(pairs).T
        for first, last in WINDOWS:
            inside = (step >= first) & (step <= last)
            for clock, t in (("steps", step), ("intrinsic time", intrinsic_time(step))):
                fit = fit_power_floor(t[inside], loss[inside], time_unit=clock)
                found = f"{fit.exponent:.3f} | {fit.interval[0]:.3f} to {fit.interval[1]:.3f} | {fit.late_exponent:.3f}"
                said = "yes" if fit.identified else fit.reason
                print(f"| {model} | {clock} | {first:g} to {last:g} | {found} | {fit.floor:.3f} | {said} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
