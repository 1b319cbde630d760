"""False alarms and power of `find_spikes`: the table of docs/logs.md. The rule was set on eight noises, two are quoted.

python -m benchmarks.spikes [--logs 100]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from odescale.laws import find_spikes

STEP = np.arange(10.0, 20010.0, 10.0)
LAW = 2.5 + 8 * STEP**-0.3
NOISE = 0.02
SPIKES = (8, 16, 32, 64, 128)
"""Heights of the spikes of four rows, in units of `NOISE`."""


def correlated(rng: np.random.Generator, share: float) -> np.ndarray:
    """AR(1) of unit variance."""
    values = rng.normal(size=STEP.size)
    for place in range(1, values.size):
        values[place] = share * values[place - 1] + np.sqrt(1 - share**2) * values[place]
    return values


NOISES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "Gaussian": lambda rng: NOISE * rng.normal(size=STEP.size),
    "correlated, .5": lambda rng: NOISE * correlated(rng, 0.5),
    "correlated, .9": lambda rng: NOISE * correlated(rng, 0.9),
    "t, 5 degrees of freedom": lambda rng: NOISE * rng.standard_t(5, size=STEP.size),
    "t, 3 degrees of freedom": lambda rng: NOISE * rng.standard_t(3, size=STEP.size),
    "falls with the loss": lambda rng: 1.5 * NOISE * (LAW - 2.4) * rng.normal(size=STEP.size),
    "Laplace": lambda rng: NOISE * rng.laplace(size=STEP.size),
    "skewed (gamma)": lambda rng: NOISE * (rng.gamma(4, size=STEP.size) - 4) / 2,
    "uniform": lambda rng: NOISE * np.sqrt(12) * (rng.random(STEP.size) - 0.5),
    "log-normal, .5": lambda rng: NOISE * (rng.lognormal(0, 0.5, STEP.size) - 1),
}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logs", type=int, default=100)
    logs = parser.parse_args().logs
    print(
        "| noise | logs with a false spike | threshold | " + " | ".join(f"found at {h} noises" for h in SPIKES) + " |"
    )
    print("|---|---|---|" + "---|" * len(SPIKES))
    for name, noise in NOISES.items():
        rng = np.random.default_rng(1)
        quiet = [find_spikes(STEP, LAW + noise(rng)) for _ in range(logs)]
        false = np.mean([bool(found.spikes) for found in quiet])
        cells = []
        for height in SPIKES:
            hits = 0
            for _ in range(logs // 4):
                loss = LAW + noise(rng)
                loss[1000:1004] += height * NOISE
                hits += any(
                    spike.first_step <= 10040 and spike.last_step >= 10010 for spike in find_spikes(STEP, loss).spikes
                )
            cells.append(f"{hits / (logs // 4):.0%}")
        print(f"| {name} | {false:.0%} | {np.mean([found.threshold for found in quiet]):.1f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
