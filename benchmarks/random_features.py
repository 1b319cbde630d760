"""Compute-optimal exponents of one-pass SGD on random features at finite size, beside their limit.

    OMP_NUM_THREADS=1 python -m benchmarks.random_features [--largest 1000] [--seeds 4]

z = W x with lam_j = j^-b, target power lam_j theta_j^2 = j^-a, j <= D = 5 N, W Gaussian (N, D), batch 1, no label noise,
eta = 0.5 over the trace. Each (N, W) is one `random_features` system, solved by `solve_spectral`: the mean over SGD's
samples, exact but for the change of the risk within a step. Its risk over time, floor included, is a row of a table in log N
and log t; least risk at C = N t is read off splines through it, where the best width is inside the table. Bias: measured
minus limit. Minutes.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from jaxtyping import Float

PAIRS = ((1.8, 1.5), (2.8, 1.5), (3.4, 1.5))
"""(a, b) in the phases Ia, II, III."""
RATIO = 5
MARGIN = 1.15
"""The best width must be inside the table by this factor."""


def risk_table(
    a: float, b: float, widths: Float[np.ndarray, " w"], times: Float[np.ndarray, " n"], seed: int
) -> Float[np.ndarray, "w n"]:
    """Risk (floor included) at `times` (SGD steps) of the first N rows of one projection for every width N: they share its luck."""
    from odescale.linear import gaussian_projection, random_features, solve_spectral

    rows = []
    largest = int(widths[-1])
    whole = gaussian_projection(largest, RATIO * largest, seed)
    for N in widths.astype(int):
        j = np.arange(1.0, RATIO * N + 1)
        lam, target = j**-b, j ** ((b - a) / 2)
        W = whole[:N, : j.size] * (largest / N) ** 0.5
        system = random_features(lam, target, W, learning_rate=0.5 / lam.sum())
        rows.append(solve_spectral(system, times).loss_total)
    return np.array(rows)


def table_frontier(
    widths: Float[np.ndarray, " w"],
    times: Float[np.ndarray, " n"],
    risk: Float[np.ndarray, "w n"],
    C: Float[np.ndarray, " m"],
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """(least risk, best width) at N t = C by cubic splines of log risk; NaN where the best width is at the end of the table."""
    from scipy.interpolate import RectBivariateSpline

    spline = RectBivariateSpline(np.log(widths), np.log(times), np.log(risk), kx=3, ky=3)
    x = np.linspace(np.log(widths[0]), np.log(widths[-1]), 2001)
    least, best = np.full(C.size, np.nan), np.full(C.size, np.nan)
    for i, compute in enumerate(C):
        u = np.log(compute) - x
        inside = (u >= np.log(times[0])) & (u <= np.log(times[-1]))
        values = np.where(inside, spline.ev(x, u), np.inf)
        k = int(np.argmin(values))
        if x[0] + np.log(MARGIN) < x[k] < x[-1] - np.log(MARGIN) and inside[k - 1] and inside[k + 1]:
            least[i], best[i] = np.exp(values[k]), np.exp(x[k])
    return least, best


def measure(
    a: float, b: float, *, smallest: int = 40, largest: int = 1000, sizes: int = 8, seeds: int = 4, groups: int = 4
) -> dict[str, Any]:
    """Exponent of the frontier (`FrontierExponent`), range of best widths, growth of the best width, limit and bias.

    One frontier per group of projections, of their mean risk; the uncertainty is that between groups (and the drift).
    """
    from odescale.frontier import compute_optimal, frontier_exponent

    widths = np.unique(np.round(np.geomspace(smallest, largest, sizes)))
    times = np.geomspace(1.0, 30.0 * largest**b, 240)
    C = np.geomspace(widths[0] * 4.0, widths[-1] * times[-1], 160)
    tables = [risk_table(a, b, widths, times, seed) for seed in range(seeds)]
    means = [np.mean(tables[group::groups], axis=0) for group in range(groups)]
    found = [table_frontier(widths, times, mean, C) for mean in means]
    least, best = (np.array([pair[i] for pair in found]) for i in (0, 1))
    kept = np.isfinite(least).all(axis=0)
    law = compute_optimal(a, b)
    measured = frontier_exponent(C[kept], least[:, kept])
    growth = float(np.polyfit(np.log(C[kept]), np.log(best[:, kept]).mean(axis=0), 1)[0])
    return {
        "a": a, "b": b, "phase": law.phase, "limit": law.exponent, "measured": measured, "bias": measured.exponent - law.exponent,
        "widths": (float(best[:, kept].min()), float(best[:, kept].max())), "growth": growth, "growth_limit": law.width,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_features", description=__doc__)
    parser.add_argument("--largest", type=int, default=1000, help="largest width (default 1000)")
    parser.add_argument("--sizes", type=int, default=8, help="widths from 40 on (default 8)")
    parser.add_argument("--seeds", type=int, default=4, help="projections per width (default 4)")
    options = parser.parse_args(arguments)
    import jax

    jax.config.update("jax_enable_x64", True)
    print("| phase | a | b | best widths | measured exponent | at the largest C | limit | bias | d*: measured, limit |")
    print("|---|---|---|---|---|---|---|---|---|")
    for a, b in PAIRS:
        row = measure(a, b, largest=options.largest, sizes=options.sizes, seeds=options.seeds)
        p = row["measured"]
        widths = f"{row['widths'][0]:.0f} to {row['widths'][1]:.0f}"
        print(
            f"| {row['phase']} | {a} | {b} | {widths} | {p.exponent:.3f} +- {p.stderr:.3f} | "
            f"{p.limit:.3f} | {row['limit']:.3f} | {row['bias']:+.3f} | {row['growth']:.2f}, {row['growth_limit']:.2f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
