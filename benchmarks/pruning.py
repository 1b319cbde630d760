"""Which examples to keep: flips, students of largest margin in simulation, one pass of SGD, the picture.

python -m benchmarks.pruning [flips|simulation|onepass|turns|picture] [--seeds 40]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np
from scipy.optimize import nnls

from odescale import integrate, train
from odescale.plot.style import COLOURS, new_figure, plain_decades, plain_values, shared_style
from odescale.resources import max_margin, pruning, pruning_flips

jax.config.update("jax_enable_x64", True)

ROOT = Path(__file__).resolve().parents[1]
RULES = ("easy", "hard", "random")


def hard_margin(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The vector of least norm with y x.w >= 1, by non-negative least squares (Lawson and Hanson 1974, chapter 23)."""
    A = y[:, None] * x
    system, target = np.concatenate([A.T, np.ones((1, len(A)))]), np.append(np.zeros(A.shape[1]), 1.0)
    u, _ = nnls(system, target, maxiter=20 * len(A))
    rest = system @ u - target
    return -rest[:-1] / rest[-1]


def students(pool: float, keep: float, rule: str, d: int, seeds: int) -> np.ndarray:
    """Errors (seeds,) of students of largest margin on pools of their own."""
    errors = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((round(pool * d), d))
        t = x[:, 0]
        order, n = np.argsort(-np.abs(t)), round(keep * len(t))
        rows = {"easy": order[:n], "hard": order[-n:], "random": rng.permutation(len(t))[:n]}[rule]
        w = hard_margin(x[rows], np.sign(t[rows]))
        errors.append(np.arctan2(np.linalg.norm(w[1:]), w[0]) / np.pi)
    return np.array(errors)


def flips(seeds: int) -> None:
    """Pools at which keep-hard overtakes keep-easy."""
    print("| keep | flip, examples per dimension | error there |\n|---|---|---|")
    for keep in (0.9, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05):
        found = pruning_flips(keep)
        print(
            f"| {keep} | {', '.join(f'{one:.4g}' for one in found)} | {max_margin(found[0], keep, 'hard').error[0]:.4g} |"
        )


def simulation(seeds: int) -> None:
    """Theory beside students at two dimensions, on both sides of the flip."""
    print(
        "| pool, keep | rule | theory | "
        + " | ".join(f"d = {d}" for d in (50, 100))
        + " | easy - hard at d = 100 |\n|---|---|---|---|---|---|"
    )
    for pool, keep in ((4.0, 0.4), (6.0, 0.4), (16.0, 0.4), (3.0, 0.7), (12.0, 0.7)):
        runs = {(rule, d): students(pool, keep, rule, d, seeds) for rule in ("easy", "hard") for d in (50, 100)}
        easy, hard = runs["easy", 100], runs["hard", 100]
        z = (easy.mean() - hard.mean()) / np.hypot(easy.std(ddof=1), hard.std(ddof=1)) * np.sqrt(seeds)
        for rule in ("easy", "hard"):
            told = " | ".join(
                f"{r.mean():.4f} +- {r.std(ddof=1) / np.sqrt(seeds):.4f}" for r in (runs[rule, 50], runs[rule, 100])
            )
            gap = f"{z:+.1f} standard errors" if rule == "easy" else ""
            print(
                f"| {pool:g}, {keep} | {rule} | {max_margin(pool, keep, rule).error[0]:.4f} | {told} | {gap} |",
                flush=True,
            )


def onepass(seeds: int) -> None:
    """One pass of SGD: the flow and real perceptrons, under a constant rate and a falling one."""
    times = [2.0, 10.0, 40.0]
    print("| schedule | rule | " + " | ".join(f"flow, runs at t = {t:g}" for t in times) + " |\n|---|---|---|---|---|")
    for schedule in ("constant", "power:0.5"):
        for rule in ("easy", "hard"):
            system = pruning(rule=rule, dimension=200, schedule=schedule)
            flow = integrate(system, ts=np.array([0.0, *times])).loss[1:]
            run = train(system, times[-1], seeds=min(seeds, 16), record_times=times, progress=False)
            mean, error = run.mean("loss")[-3:], run.stderr("loss")[-3:]
            told = " | ".join(f"{a:.4f}, {b:.4f} +- {c:.4f}" for a, b, c in zip(flow, mean, error, strict=True))
            print(f"| {schedule} | {rule} | {told} |", flush=True)


def turns(seeds: int) -> None:
    """Where one pass goes over to hard examples after all: the flow, and real perceptrons on both sides of two of the crossings."""
    print("| rate, keep | kept per dimension | easy: flow, runs | hard: flow, runs |\n|---|---|---|---|")
    for words, keep, times, d in (
        ({"schedule": "power:1", "learning_rate": 5.0}, 0.4, (8.0, 120.0), 200),
        ({"schedule": "power:0.5"}, 0.4, (40.0, 200.0), 200),
        ({}, 0.05, (400.0, 1000.0), 100),
        ({}, 0.2, (400.0, 3000.0), None),
    ):
        flows, runs = {}, {}
        for rule in ("easy", "hard"):
            system = pruning(rule=rule, keep=keep, dimension=d or 200, **words)
            flows[rule] = integrate(system, ts=np.array([0.0, *times])).loss[1:]
            if d is not None:
                run = train(system, times[-1], seeds=min(seeds, 16), record_times=times, progress=False)
                runs[rule] = list(zip(run.mean("loss")[-2:], run.stderr("loss")[-2:], strict=True))
        for i, t in enumerate(times):
            told = [
                f"{flows[rule][i]:.4f}" + (f", {runs[rule][i][0]:.4f} +- {runs[rule][i][1]:.4f}" if runs else "")
                for rule in ("easy", "hard")
            ]
            print(f"| {words or 'constant 1'}, {keep} | {t:g} | {told[0]} | {told[1]} |", flush=True)


def picture(seeds: int) -> None:
    """Errors against the pool, with students on top, and the flip against the share that is kept."""
    with shared_style():
        figure = new_figure(11, 4.4)
        left, right = figure.subplots(1, 2)
        pools = np.geomspace(1.5, 40, 50)
        for rule, colour, mark in (("easy", "theory", "o"), ("hard", "run", "s"), ("random", "grey", "^")):
            left.plot(pools, max_margin(pools, 0.4, rule).error, color=COLOURS[colour], label=f"keep {rule}")
            at = np.array([2.0, 4.0, 8.0, 16.0])
            runs = [students(pool, 0.4, rule, 100, max(seeds // 4, 5)) for pool in at]
            bars = [2 * r.std(ddof=1) / np.sqrt(r.size) for r in runs]
            left.errorbar(
                at, [r.mean() for r in runs], yerr=bars, fmt=mark, color=COLOURS[colour], markersize=5, capsize=2
            )
        flip = pruning_flips(0.4)[0]
        left.axvline(flip, color=COLOURS["formula"], linestyle=":", label=f"flip, {flip:.3g}")
        left.set(xscale="log", yscale="log", xlabel="pool  (examples per dimension)", ylabel="error on unpruned inputs",
                 title="keep 40 %; points: students at d = 100")  # fmt: skip
        left.legend()
        keeps = np.array(
            [0.05, 0.07, 0.1, 0.14, 0.2, 0.27, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9]
        )
        places = np.array([pruning_flips(keep)[0] for keep in keeps])
        right.plot(keeps, places, color=COLOURS["formula"])
        right.fill_between(keeps, places, 80, color=COLOURS["run"], alpha=0.15, linewidth=0)
        right.fill_between(keeps, 1, places, color=COLOURS["theory"], alpha=0.15, linewidth=0)
        right.text(0.45, 25, "keep hard", color=COLOURS["run"])
        right.text(0.35, 2, "keep easy", color=COLOURS["theory"])
        right.set(yscale="log", ylim=(1.5, 60), xlim=(keeps[0], keeps[-1]), xlabel="share kept",
                  ylabel="pool  (examples per dimension)",
                  title="which rule has the smaller error")  # fmt: skip
        plain_decades(left)
        for panel in (left, right):
            plain_values(panel)
        figure.savefig(ROOT / "docs" / "figures" / "pruning.png", dpi=130)


PARTS = {"flips": flips, "simulation": simulation, "onepass": onepass, "turns": turns, "picture": picture}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all unless named")
    parser.add_argument("--seeds", type=int, default=40)
    asked = parser.parse_args()
    for name in asked.parts or PARTS:
        print(f"\n## {name}\n")
        PARTS[name](asked.seeds)


if __name__ == "__main__":
    main()
