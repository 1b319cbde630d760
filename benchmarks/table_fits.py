"""Scaling laws of finished runs: published numbers again, outliers, parabolas and their bias, coverage of the intervals.

    python -m benchmarks.table_fits FOLDER [--tables 400] [--only published,outliers,bias,coverage,alarms]

FOLDER holds chinchilla_points.csv (params, train_flop, loss) and isoflop_llama3.csv (loss_kind, params, tokens, budget_flop, loss).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from odescale import fit_table, read_table
from odescale.analysis.tables import audit
from odescale.analysis.tables.named import form_named
from odescale.analysis.tables.robust import minimise, problem_of
from odescale.laws import ScalingTable, approach2_bias, compare_approaches, optimum, scaling_table

LAW = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
PUBLISHED = {  # Besiroglu et al. 2024, arXiv 2404.10102: value, standard error (their notebook)
    "E": (1.81686, 0.02566), "A": (482.00572, 124.52232), "B": (2085.43420, 1293.28410), "alpha": (0.34781, 0.01540),
    "beta": (0.36585, 0.02060),
}  # fmt: skip
SURFACES = {  # Czech et al. 2026, arXiv 2603.22339, cost estimates: law, N* true and by parabolas (1e9), compute wasted (%)
    "Llama 3": ((0.6047, 59.1, 155.1, 0.3100, 0.3136), (621.6, 584.5, 0.1)),
    "Chinchilla": ((1.69, 406.4, 410.7, 0.34, 0.28), (213.5, 189.3, 0.4)),
    "audio": ((3.169, 215886.0, 4750.0, 0.684, 0.439), (220.2, 150.5, 8.0)),
    "multimodal": ((2.158, 381773.0, 4659.0, 0.71, 0.372), (35.9, 23.3, 10.1)),
}
FRONTIER = 3.8e25
GRIDS = {  # budgets, sizes at each, factor to either side, scatter of log L; the first two served to choose the intervals' form
    "set on": (7, 9, 4.0, 0.003),
    "small": (5, 8, 4.0, 0.002),
    "as Llama 3": (10, 13, 5.0, 0.0035),
}
SHARED = {"same sizes": (6, 20, 7.0, 0.0025), "same sizes, wide": (9, 30, 6.0, 0.004)}
"""Budgets, sizes shared by all, how far from the optimum they are run, scatter: nothing was chosen on them."""


def isoflop_grid(
    law: dict[str, float], budgets: np.ndarray, sizes: int, width: float, drift: float = 1.0
) -> ScalingTable:
    """A table without noise around the optimum, its centre drifting to 1/`drift` of it at the largest budget."""
    centre = optimum(law, budgets).params.value
    centre = centre * drift ** -(np.log(budgets / budgets[0]) / np.log(budgets[-1] / budgets[0]))
    N, C = (centre[:, None] * np.geomspace(1 / width, width, sizes)).ravel(), np.repeat(budgets, sizes)
    loss = law["E"] + law["A"] * N ** -law["alpha"] + law["B"] * (C / (6 * N)) ** -law["beta"]
    return scaling_table(params=N, flop=C, loss=loss)


def shared_sizes(law: dict[str, float], budgets: np.ndarray, sizes: int, width: float) -> ScalingTable:
    """A table without noise of the same `sizes` at every budget, as far as they lie within the factor `width` of its optimum."""
    centre = optimum(law, budgets).params.value
    N, C = np.meshgrid(np.geomspace(centre[0] / 4, centre[-1] * 4, sizes), budgets)
    near = np.abs(np.log(N / centre[:, None])) < np.log(width)
    N, C = N[near], C[near]
    loss = law["E"] + law["A"] * N ** -law["alpha"] + law["B"] * (C / (6 * N)) ** -law["beta"]
    return scaling_table(params=N, flop=C, loss=loss)


def published(folder: Path, tables: int) -> None:
    """The published fit and its standard errors, and what 4000 draws cost."""
    table = read_table(folder / "chinchilla_points.csv")
    lowest = np.argsort(table.column("tokens") / table.column("params"))[:5]
    clock, cpu = time.perf_counter(), time.process_time()
    fit = fit_table(table, leave_out=lowest, bootstrap=4000)
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    print("| | fit | published | standard error | published | ratio |\n|---|---|---|---|---|---|")
    for name, (value, error) in PUBLISHED.items():
        own = fit.stderr[name]
        print(f"| {name} | {fit.values[name]:.5g} | {value:.5g} | {own:.4g} | {error:.4g} | {own / error:.2f} |")
    print(f"\n4000 draws: {clock:.1f} s, {cpu:.1f} s of CPU, {fit.failed:.2%} not converged, cost {fit.cost:.7g}")
    condition = fit.least_squares
    print(f"condition number {condition.conditioning:.2g}, {condition.reduced:.2g} with the amplitudes projected out")


def outliers(folder: Path, tables: int) -> None:
    """All rows: which are named, and by how much the answer moves."""
    fit = fit_table(read_table(folder / "chinchilla_points.csv"), bootstrap=1000)
    print(f"{len(fit.outliers)} of {len(fit.table)} rows: {[o.row for o in fit.outliers]}; stable: {fit.stable}")
    print("\n".join([*fit.unstable, *map(str, fit.outliers)]))
    for kind in ("exp_loss", "raw_loss"):
        other = fit_table(read_table(folder / "isoflop_llama3.csv", where={"loss_kind": kind}), bootstrap=1000)
        print(f"Llama 3, {kind}: {len(other.outliers)} of {len(other.table)} rows; {other.unstable or 'stable'}")


def bias(folder: Path, tables: int) -> None:
    """Three approaches on the Llama 3 rows, the published waste, and parabolas on surfaces without noise."""
    for kind in ("raw_loss", "exp_loss"):
        table = read_table(folder / "isoflop_llama3.csv", where={"loss_kind": kind})
        for name, delta in (("Huber", 1e-3), ("least squares", np.inf)):
            fit = fit_table(table, robust=delta, bootstrap=1000)
            print(f"\n{kind}, {name}, at {FRONTIER:.3g} FLOP (published: 6.5 % for raw_loss, least squares)\n")
            print(compare_approaches(table, fit=fit, at=FRONTIER))
    print(
        "\n| surface | N* (1e9) | published | by parabolas | published | wasted (%) | published |\n|---|---|---|---|---|---|---|"
    )
    for name, (numbers, (true, inferred, wasted)) in SURFACES.items():
        law = dict(zip(LAW, numbers, strict=True))
        grid = isoflop_grid(law, 10.0 ** np.arange(18, 23), 15, 2.0, drift=3.0)
        found = approach2_bias(law, grid, at=FRONTIER, inside=False)
        sizes = f"{found.true_params / 1e9:.1f} | {true} | {found.params / 1e9:.1f} | {inferred}"
        print(f"| {name} | {sizes} | {100 * found.wasted:.2f} | {wasted} |")


def coverage(folder: Path, tables: int) -> None:
    """Share of 95 % intervals that hold the truth, over synthetic tables of five grids."""
    true = LAW["beta"] / (LAW["alpha"] + LAW["beta"])
    names = ("grid", "runs", "scatter", "noise", "best runs", "parabolas", "law", "alpha", "beta", "E")
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")
    for name, (budgets, sizes, width, scatter) in (GRIDS | SHARED).items():
        build = isoflop_grid if name in GRIDS else shared_sizes
        grid = build(LAW, np.geomspace(1e18, 1e21, budgets), sizes, width)
        for noise in ("normal", "t5"):
            rng = np.random.default_rng(11)
            hits = []
            for k in range(tables):
                error = rng.normal(size=len(grid)) if noise == "normal" else rng.standard_t(5, size=len(grid))
                loss = grid.loss * np.exp(scatter * error)
                table = scaling_table(params=grid.params, flop=grid.flop, loss=loss)  # pyright: ignore[reportArgumentType]
                fit = fit_table(table, bootstrap=400, level=0.95, seed=k, starts=6)
                found = compare_approaches(table, fit=fit, bootstrap=400, seed=k)
                own = [a.interval for a in (found.envelope, found.parabola, found.law)]
                own += [fit.interval(n) for n in ("alpha", "beta", "E")]
                truths = [true] * 3 + [LAW[n] for n in ("alpha", "beta", "E")]
                hits.append([low <= t <= high for (low, high), t in zip(own, truths, strict=True)])
            shares = " | ".join(f"{share:.1%}" for share in np.mean(hits, axis=0))
            print(f"| {name} | {len(grid)} | {scatter:.2%} | {noise} | {shares} |", flush=True)


def alarms(folder: Path, tables: int) -> None:
    """Rows called outliers in tables that have none, by the cutoff in normal deviations."""
    form, start = form_named("chinchilla"), np.array([list(LAW.values())])
    print(
        "| noise | runs | " + " | ".join(f"{c} deviations" for c in range(4, 9)) + " |\n|---|---|---|---|---|---|---|"
    )
    for noise in ("normal", "t5", "t3"):
        for runs in (250, 40):
            counts = np.zeros((tables, 5))
            for k in range(tables):
                rng = np.random.default_rng(k)
                N, C = 10 ** rng.uniform(7.5, 10, runs), 10 ** rng.uniform(18, 21.5, runs)
                D = np.maximum(C / (6 * N), 3e8)
                error = rng.normal(size=runs) if noise == "normal" else rng.standard_t(int(noise[1:]), size=runs)
                loss = (LAW["E"] + LAW["A"] * N ** -LAW["alpha"] + LAW["B"] * D ** -LAW["beta"]) * np.exp(0.005 * error)
                problem, weights = problem_of(form, {"params": N, "tokens": D}, loss), np.ones(runs)
                theta = minimise(problem, problem.theta(start), weights[None], 1e-3).theta
                for i, cut in enumerate(range(4, 9)):
                    counts[k, i] = audit.find_outliers(problem, theta, weights, 1e-3, float(cut))[0].sum()
            print(f"| {noise} | {runs} | " + " | ".join(f"{c:.2f}" for c in counts.mean(axis=0)) + " |", flush=True)


PARTS = {"published": published, "outliers": outliers, "bias": bias, "coverage": coverage, "alarms": alarms}


def main(arguments: list[str] | None = None) -> int:
    """Prints the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tables", type=int, default=400)
    parser.add_argument("--only", default=",".join(PARTS))
    options = parser.parse_args(arguments)
    for name in options.only.split(","):
        print(f"\n## {name}\n")
        PARTS[name](options.folder, options.tables)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
