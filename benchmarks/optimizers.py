"""Real networks under every optimiser against their ODE, and learning rates carried over from narrow networks to wide ones.

    python -m benchmarks.optimizers [validity] [transfer] [picture] [third] [--seeds 16]

`validity` prints a row for each optimiser: how far the loss falls, how far the mean of the runs is off the ODE at the most, z in
the mean square. `transfer`: the rate at which a committee has the least loss after t units of training, by width; the optimum of 64
to 256 is extrapolated in 1/d to 512 and 1024 and held against what training finds there. `third`: the one-third law by optimiser
(`benchmarks.third`). docs/optimisers.md has all tables.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np  # noqa: E402

import odescale  # noqa: E402
from benchmarks.third import third  # noqa: E402
from odescale.optimizers import SGD, Adam, Lion, Muon, Sign  # noqa: E402
from odescale.schedules import CosineSchedule, WarmedSchedule  # noqa: E402
from odescale.spectra import listed  # noqa: E402
from odescale.systems.transformer import committee, transformer  # noqa: E402

SOFTMAX: dict[str, Any] = {
    "depth": 2, "tokens": 3, "loss": "cross_entropy", "outputs": 2, "batch": 8.0, "dimension": 500, "nodes": 2048,
}  # fmt: skip
POWERS = np.arange(1.0, 1201.0) ** -0.8
CASES: dict[str, tuple[Any, dict[str, Any], float]] = {
    "SGD": (committee, {"learning_rate": 0.3, "dimension": 600, "batch": 4.0}, 8.0),
    "Adam": (committee, {"optimizer": Adam(rate=0.1), "dimension": 1600, "batch": 4.0}, 4.0),
    "AdamW, warm-up and cosine": (
        committee,
        {
            "optimizer": Adam(rate=0.2, decay=0.1),
            "dimension": 600,
            "batch": 4.0,
            "schedule": WarmedSchedule(CosineSchedule(6.0, 0.1), 0.3),
        },
        6.0,
    ),
    # At the nodes that are chosen for it B = 1 is 2 % off by its own nodes.
    "sign, B = 1": (
        committee,
        {"optimizer": Sign(rate=0.2), "dimension": 1200, "batch": 1.0, "nodes": 16384, "budget": 16384},
        7.0,
    ),
    "sign, B = 2": (committee, {"optimizer": Sign(rate=0.2), "dimension": 1200, "batch": 2.0}, 6.0),
    "sign, B = 8": (committee, {"optimizer": Sign(rate=0.2), "dimension": 1200, "batch": 8.0}, 6.0),
    "Lion": (committee, {"optimizer": Lion(rate=0.05), "dimension": 2400, "batch": 1.0}, 5.0),
    "Lion, outside": (committee, {"optimizer": Lion(rate=0.05), "dimension": 600, "batch": 2.0}, 5.0),
    "Muon": (committee, {"optimizer": Muon(rate=0.05), "dimension": 600, "batch": 4.0, "nodes": 4096}, 6.0),
    "Muon, the mean of K alone": (
        committee,
        {"optimizer": Muon(rate=0.05), "dimension": 600, "batch": 4.0, "closure": "closed"},
        6.0,
    ),
    "SGD, clipped": (committee, {"optimizer": SGD(rate=0.5), "clip": 0.3, "dimension": 600, "batch": 2.0}, 6.0),
    "Adam, clipped": (committee, {"optimizer": Adam(rate=0.1), "clip": 0.3, "dimension": 600, "batch": 2.0}, 5.0),
    "Adam, lam ~ k^-.8": (
        committee,
        {
            "optimizer": Adam(rate=0.1),
            "spectrum": listed(POWERS * 1200 / POWERS.sum()),
            "dimension": 1200,
            "batch": 4.0,
        },
        8.0,
    ),
    "two softmax layers, Adam": (transformer, {"optimizer": Adam(rate=0.1), **SOFTMAX}, 8.0),
    "two softmax layers, Muon": (transformer, {"optimizer": Muon(rate=0.03), **SOFTMAX}, 3.0),
}
"""Name -> builder, parameters (alignment .3), end time. One unit of t is d steps."""

TICKS = (0.2, 0.5, 1, 2, 5)
WIDTHS = (64, 128, 256, 512, 1024)
FITTED = 3
"""Widths, the smallest ones, from which the optimum of the others is extrapolated."""


def validity(names: Sequence[str], seeds: int) -> str:
    """The table."""
    lines = ["| optimiser | d | loss falls | largest deviation | rms z | verdict |", "|---|---|---|---|---|---|"]
    for name in names:
        build, given, t1 = CASES[name]
        system = build(alignment=0.3, **given)
        run = odescale.train(system, t1, seeds=seeds, records=8, progress=False)
        found = odescale.compare(system, run)
        ratio, scatter = np.asarray(found.loss.ratio), np.asarray(run.scatter("loss")) / np.asarray(run.mean("loss"))
        off = np.abs(ratio - 1)
        worst = int(np.argmax(off))
        lines.append(
            f"| {name} | {given['dimension']} | {found.fall:.1f} times | {off[worst]:.1%} +- {scatter[worst]:.1%} "
            f"| {found.loss.rms_z:.2f} | {found.verdict.status} |"
        )
        print(lines[-1], flush=True)
        fall = float(found.theory.loss[0]) / np.asarray(found.theory.loss)[found.at]
        print(
            "  fall:",
            np.round(fall, 1),
            " run/theory:",
            np.round(ratio, 4),
            " scatter:",
            np.round(scatter, 4),
            flush=True,
        )
    return "\n".join(lines)


def best_rate(rates: np.ndarray, losses: np.ndarray) -> float:
    """The minimum of the parabola through the least loss and its neighbours, in the logarithms of both."""
    k = int(np.clip(np.argmin(losses), 1, len(rates) - 2))
    x, y = np.log(rates[k - 1 : k + 2]), np.log(losses[k - 1 : k + 2])
    a, b, _ = np.polyfit(x, y, 2)
    return float(np.exp(-b / (2 * a)))


def optima(kind: Any, rates: np.ndarray, t1: float, width: int, seeds: int) -> tuple[float, float, float]:
    """(the best rate of training, its scatter by halves of the seeds, the best rate of the ODE) at one width."""
    means, halves, theory = [], [], []
    for rate in rates:
        system = committee(optimizer=kind(rate, width), alignment=0.3, dimension=width, batch=4.0, closure="closed")
        loss = np.asarray(odescale.train(system, t1, seeds=seeds, record_times=[t1], progress=False)["loss"])[:, -1]
        means.append(loss.mean())
        halves.append((loss[::2].mean(), loss[1::2].mean()))
        theory.append(float(odescale.integrate(system, ts=[0.0, t1], exponents=False).loss[-1]))
    parts = [best_rate(rates, np.asarray(half)) for half in zip(*halves, strict=True)]
    return (
        best_rate(rates, np.asarray(means)),
        abs(np.log(parts[0] / parts[1])) / 2,
        best_rate(rates, np.asarray(theory)),
    )


def transfer(seeds: int, t1: float = 4.0) -> str:
    """Best rate a by width under Adam and SGD: trained, extrapolated from the smallest widths, and of the ODE."""
    lines = ["| optimiser | d | best rate, trained | extrapolated | of the ODE |", "|---|---|---|---|---|"]
    for name, kind, rates in (
        ("Adam, beta2 = .999", lambda rate, width: Adam(rate=rate), 0.08 * 1.4 ** np.arange(7)),
        (
            "Adam, 1 - beta2 = .064/d",
            lambda rate, width: Adam(rate=rate, beta2=1 - 0.064 / width),
            0.08 * 1.4 ** np.arange(7),
        ),
        ("SGD", lambda rate, width: SGD(rate=rate), 0.5 * 1.4 ** np.arange(7)),
    ):
        found = [optima(kind, rates, t1, width, seeds) for width in WIDTHS]
        x, y = 1 / np.asarray(WIDTHS, float), np.log([one[0] for one in found])
        slope, level = np.polyfit(x[:FITTED], y[:FITTED], 1)
        for place, (width, (best, scatter, ode)) in enumerate(zip(WIDTHS, found, strict=True)):
            guess = f"{np.exp(level + slope * x[place]):.3f}" if place >= FITTED else "fitted"
            lines.append(f"| {name} | {width} | {best:.3f} +- {scatter:.1%} | {guess} | {ode:.3f} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def picture(seeds: int, file: str, t1: float = 8.0, dimension: int = 600) -> None:
    """One network, five optimisers: ODEs as lines, means of trained networks as marks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rules = {
        "SGD": {"optimizer": SGD(rate=0.5)},
        "SGD, clipped at .2": {"optimizer": SGD(rate=0.5), "clip": 0.2},
        "Adam": {"optimizer": Adam(rate=0.1)},
        "sign": {"optimizer": Sign(rate=0.1)},
        "Muon": {"optimizer": Muon(rate=0.04)},
    }
    figure, axis = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for number, (name, rule) in enumerate(rules.items()):
        system = committee(**rule, alignment=0.3, batch=4.0, dimension=dimension, nodes=2048)
        run = odescale.train(system, t1, seeds=seeds, records=12, progress=False)
        found = odescale.compare(system, run)
        theory = odescale.integrate(system, ts=np.concatenate([[0.0], np.geomspace(0.2, t1, 40)]), exponents=False)
        axis.plot(theory.t[1:], theory.loss[1:], color=f"C{number}", lw=1.5, label=name)
        late = run.t > 0.2
        mean, error = run.mean("loss")[late], 3 * run.scatter("loss")[late]
        axis.errorbar(run.t[late], mean, error, color=f"C{number}", fmt="o", ms=4, lw=1)
        print(name, found.verdict, flush=True)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel=f"t  (one unit = {dimension} steps)",
        ylabel="excess loss L  (half squared error)",
        title=f"Two erf units, d = {dimension}, B = 4: lines ODE, marks trained ({seeds} seeds)",
    )
    axis.set_xticks(TICKS, [f"{x:g}" for x in TICKS])
    axis.minorticks_off()
    axis.legend(frameon=False, loc="lower left")
    figure.savefig(file, dpi=130)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.optimizers", description=__doc__)
    parser.add_argument(
        "what",
        nargs="*",
        default=["validity", "transfer"],
        help="validity, transfer, picture, third, or names of cases",
    )
    parser.add_argument("--output", default="docs/figures/optimisers.png", help="file of the picture")
    parser.add_argument("--seeds", type=int, default=16)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    names = [name for name in options.what if name in CASES] or list(CASES)
    if set(options.what) - {"transfer", "picture", "third"}:
        print(validity(names, options.seeds))
    if "transfer" in options.what:
        print(transfer(options.seeds))
    if "picture" in options.what:
        picture(options.seeds, options.output)
    if "third" in options.what:
        for line in third(options.seeds):
            print(line, flush=True)
    print(f"{time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
