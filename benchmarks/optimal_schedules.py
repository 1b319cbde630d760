"""The closed-form schedule against the gradient search, exact SGD and a small language model, and its picture.

    python -m benchmarks.optimal_schedules closed | sgd | picture | language [--steps 2000] [--seeds 4] [--out results/optimal]

`closed`: loss of the closed form and of `best_schedule` under one law, on both sides of the transition. `sgd`: the exact
recursion of one-pass SGD on 2000 power-law modes, to which nothing was fitted: the schedule of the law's own constants, beside
constant, cosine and WSD, each at the bound and at its own best peak. `language`: a law fitted to a constant and a step-down run
of a small language model, then the schedule of that law trained beside cosine and WSD at equal steps and peak, seeds paired.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from odescale.analysis.forecast.optimal_schedule import OptimalSchedule, optimal_schedule, optimal_schedule_of
from odescale.schedules import (
    ConstantSchedule,
    CosineSchedule,
    StepDownSchedule,
    WarmedSchedule,
    WarmupStableDecaySchedule,
)

TASKS = {"easy": (1.0, 1.5), "hard": (0.3, 3.0)}
"""(source, capacity)."""
MAX_RATE = 0.1
ROOT = Path(__file__).resolve().parents[1]
LENGTH, BATCH, WIDTH, DEPTH, HEADS, RATE, WARMUP = 32, 16, 32, 2, 2, 5e-3, 0.05
"""The language model, its peak rate (AdamW), and the share of the run in which it warms up."""


def shapes(horizon: float) -> dict[str, Callable]:
    """The references, peak 1."""
    return {
        "constant": ConstantSchedule(),
        "cosine": CosineSchedule(horizon, 0.1),
        "cosine to zero": CosineSchedule(horizon, 0.0),
        "wsd": WarmupStableDecaySchedule(0.0, 0.8 * horizon, horizon, 0.1),
        "wsd to zero": WarmupStableDecaySchedule(0.0, 0.8 * horizon, horizon, 0.0),
    }


def exact_excess(rates: np.ndarray, source: float, capacity: float, modes: int = 2000) -> np.ndarray:
    """P - s^2 at the end of SGD at `rates` (schedules, steps): rho_k(r + 1) exact, one sample per step, label noise 1.

    lam_k = k^-b, e_k(0) = k^-(s b + 1) on `modes` modes.
    """
    k = np.arange(1.0, modes + 1)
    lam = k**-capacity
    e = np.tile(k ** -(source * capacity + 1), (rates.shape[0], 1))
    for h in rates.T[:, :, None]:
        push = (h * lam) ** 2
        e += (2 * push - 2 * h * lam) * e + push * (1 + e.sum(axis=1, keepdims=True))
    return e.sum(axis=1)


def rates_of(schedule: Callable, steps: int) -> np.ndarray:
    """s in the middle of every step."""
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps) + 0.5))


def sgd_case(task: str, steps: int, modes: int = 2000, peaks: int = 9) -> dict[str, Any]:
    """Excess losses of exact SGD: the schedule as predicted; the references at the bound, and at the best of `peaks` peaks."""
    source, capacity = TASKS[task]
    found = optimal_schedule(source, capacity, steps, max_rate=MAX_RATE)
    predicted = found.references()
    rows = [float(found.peak) * rates_of(found, steps)]
    grids = {}
    for name, shape in shapes(steps).items():
        # Around what the law thinks best, up to the bound; the last is the bound itself.
        middle = predicted[name][2]
        grid = np.append(np.minimum(middle * 1.4 ** np.arange(-(peaks // 2), peaks // 2 + 1), MAX_RATE), MAX_RATE)
        grids[name] = grid
        rows += list(grid[:, None] * rates_of(shape, steps))
    # The same shape at other peaks: whether the predicted one is right.
    own = np.array([0.5, 0.7, 1.4, 2.0])
    rows += list(np.minimum(own[:, None] * rows[0], MAX_RATE))
    excess = exact_excess(np.array(rows), source, capacity, modes)
    out: dict[str, Any] = {
        "predicted": float(found.loss),
        "exact": float(excess[0]),
        "schedule": found,
        "references": {},
    }
    at = 1
    for name, grid in grids.items():
        part = excess[at : at + grid.size]
        best = int(np.argmin(part))
        out["references"][name] = (float(part[-1]), float(part[best]), float(grid[best]))
        at += grid.size
    out["own"] = dict(zip(own.tolist(), excess[at:].tolist(), strict=True))
    return out


def print_sgd(horizons: tuple[int, ...]) -> None:
    """A table: excess loss over that of the closed form, for every reference at the bound and at its best peak."""
    for task in TASKS:
        for steps in horizons:
            case = sgd_case(task, steps)
            print(f"{task}, N = {steps}: {case['schedule']}")
            print(f"    exact {case['exact']:.5g}, predicted {case['predicted']:.5g}; other peaks of the same shape over it: "
                  + ", ".join(f"{m:g}: {v / case['exact']:.3f}" for m, v in case["own"].items()))  # fmt: skip
            for name, (bound, best, peak) in case["references"].items():
                over, least = bound / case["exact"], best / case["exact"]
                print(f"    {name:15s} at the bound {over:7.3f}, at its best peak {peak:.4g} {least:.3f}", flush=True)


def law_fit(found: OptimalSchedule) -> Any:
    """The law of a schedule as the `LawFit` that `best_schedule` takes; the floor 1 as label noise."""
    from odescale.laws import LawFit

    names = ("L0", "A", "B", "alpha", "C", "beta")
    values = [
        1.0 + float(found.floor),
        *(float(getattr(found, n)) for n in ("signal", "level", "source", "speed", "memory")),
    ]
    return LawFit(
        "spectral", dict(zip(names, values, strict=True)), dict.fromkeys(names), True, "", 0.0, 0.0, 100, 1.0, 3.0, 10.0,
        float(found.tau), ("theory",), np.array(values), np.zeros(100), np.zeros((0, 6)),
    )  # fmt: skip


def print_closed(horizons: tuple[float, ...]) -> None:
    """Loss above the label noise of the closed form and of `best_schedule`, which searches 200 stairs by Adam."""
    from odescale import best_schedule

    for task, (source, capacity) in TASKS.items():
        for steps in horizons:
            found = optimal_schedule(source, capacity, steps, max_rate=MAX_RATE)
            searched = best_schedule(law_fit(found), steps=steps, peak=MAX_RATE)
            own, other = float(found.loss), searched.loss - 1
            over = other / own - 1
            print(f"{task}, N = {steps:g}: closed {own:.6g}, search {other:.6g}, {over:+.3%} of the excess", flush=True)


def language_case(folder: Path, steps: int, seeds: list[int]) -> None:
    """Trains, fits, trains; prints losses, and differences of paired seeds with their standard error."""
    from odescale import fit_law
    from odescale.language import source_text

    text = source_text(length=LENGTH)
    warmup = WARMUP * steps
    plans: dict[str, Callable] = {
        "constant": WarmedSchedule(ConstantSchedule(), warmup),
        "step_down": WarmedSchedule(StepDownSchedule(0.6 * steps, 0.1), warmup),
    }
    fitted = {name: _trained(text, plan, steps, seeds, folder / f"{name}.npz", 50) for name, plan in plans.items()}
    curves = [_curve(name, run, plans[name], warmup, steps) for name, run in fitted.items()]
    for law in ("spectral", "relaxing"):
        fit = fit_law(curves, law=law)
        print(fit, flush=True)
        if fit.identified:
            break
    found = optimal_schedule_of(fit, steps, max_rate=RATE)
    print(found, f"; L = {float(found.loss):.4f}", flush=True)
    print("predicted: " + ", ".join(f"{n} {v[0]:.4f}" for n, v in found.references().items()), flush=True)
    finals = {"constant": fitted["constant"].records["loss"][:, -1]}
    for name, shape in {"optimal": found, **shapes(steps)}.items():
        if name not in finals:
            plan = WarmedSchedule(shape, warmup)
            run = _trained(text, plan, steps, seeds, folder / f"{name.replace(' ', '_')}.npz", 2)
            finals[name] = run.records["loss"][:, -1]
    for name, final in finals.items():
        gap = final - finals["optimal"]
        spread = gap.std(ddof=1) / np.sqrt(gap.size)
        print(f"{name:15s} {final.mean():.4f}, above the optimal one by {gap.mean():+.4f} +- {spread:.4f}", flush=True)


def _trained(text: Any, schedule: Callable, steps: int, seeds: list[int], checkpoint: Path, records: int) -> Any:
    from odescale import train
    from odescale.language import LanguageModel, language

    began = time.monotonic()
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    model = language(
        lambda key: LanguageModel(text.vocabulary, WIDTH, DEPTH, HEADS, LENGTH, positions="rotary", key=key),
        text, batch=BATCH, learning_rate=RATE, optimizer="adamw", schedule=schedule, held_out=1024,
    )  # fmt: skip
    times = np.unique(np.linspace(0, steps, records + 1).astype(int)[1:])
    run = train(model, steps, seeds=seeds, record_times=times, checkpoint=checkpoint)
    print(f"    {checkpoint.stem}: {time.monotonic() - began:.0f} s", flush=True)
    return run


def _curve(name: str, run: Any, schedule: Callable, warmup: float, steps: int) -> Any:
    """The mean over the seeds from a tenth of the run on; rates are those of the step before a record."""
    from odescale.laws import curve_from_rates

    rates = RATE * np.asarray(jax.vmap(schedule)(jnp.asarray(run.step - 1.0)))
    curve = curve_from_rates(name, np.asarray(run.step, float), run.records["loss"].mean(axis=0), rates, warmup=warmup)
    return curve.between(0.1 * steps, np.inf)


def picture(target: Path) -> None:
    """Schedules over the share of the run, and losses against the horizon: one row per phase, lines without words inside."""
    from matplotlib.ticker import NullFormatter

    from odescale.plot.style import CYCLE, new_figure, shared_style

    horizons = np.geomspace(1e2, 1e7, 26)
    shown = (1e3, 1e5, 1e7)
    with shared_style():
        figure = new_figure(12.0, 8.2)
        for row, (task, (source, capacity)) in enumerate(TASKS.items()):
            left, middle, right = (figure.add_subplot(2, 3, 3 * row + i) for i in (1, 2, 3))
            share = 1 - np.concatenate([np.geomspace(1, 1e-4, 400), [0.0]])
            for color, horizon in zip(CYCLE, shown, strict=False):
                found = optimal_schedule(source, capacity, horizon, max_rate=MAX_RATE)
                rates = float(found.peak) * np.asarray(found(share * horizon))
                left.plot(share, rates, color=color, label=f"N = 1e{np.log10(horizon):.0f}")
            left.set(xlabel="share of the steps", ylabel="best learning rate", yscale="log", ylim=(1e-6, 2 * MAX_RATE))
            left.legend(loc="lower left")
            left.set_title(f"{task}: source {source:g}, capacity {capacity:g}")
            runs = [optimal_schedule(source, capacity, n, max_rate=MAX_RATE) for n in horizons]
            tables = [found.references() for found in runs]
            best = np.array([float(found.loss) for found in runs])
            dashes = ("-", "--", "-.", ":", (0, (1, 3)))
            for axes, place, title in (
                (middle, 0, "references at the bound"),
                (right, 1, "references at their best peaks"),
            ):
                for i, name in enumerate(tables[0]):
                    values = np.array([table[name][place] for table in tables])
                    axes.plot(horizons, values / best, linestyle=dashes[i], color=CYCLE[i + 1], label=name)
                axes.axhline(1.0, color=CYCLE[0], label="closed form")
                axes.set(
                    xscale="log", yscale="log", xlabel="horizon N, SGD steps", ylabel="excess loss over the best one's"
                )
                axes.set_title(title)
            for steps in (1000, 10_000):
                case = sgd_case(task, steps)
                for i, (bound, tuned, _) in enumerate(case["references"].values()):
                    for axes, value in ((middle, bound), (right, tuned)):
                        axes.plot(
                            steps, value / case["exact"], "o", color=CYCLE[i + 1], markersize=6, mec="black", mew=0.6
                        )
            middle.plot([], [], "o", color="white", mec="black", label="dots: exact SGD")
            middle.legend(loc="upper left")
            for axes in (middle, right):
                axes.yaxis.set_major_formatter("{x:g}")
                axes.yaxis.set_minor_formatter(NullFormatter() if axes.get_ylim()[1] > 10 else "{x:.2g}")
        figure.savefig(target)
        print(f"written to {target}")


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("closed", "sgd", "picture", "language"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", default="results/optimal_schedules")
    options = parser.parse_args()
    if options.what == "closed":
        print_closed((300.0, 1e4, 1e6))
    elif options.what == "sgd":
        print_sgd((1000, 10_000, 50_000))
    elif options.what == "language":
        language_case(Path(options.out), options.steps, list(range(options.seeds)))
    else:
        picture(ROOT / "docs/figures/optimal_schedules.png")


if __name__ == "__main__":
    main()
