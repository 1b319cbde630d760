"""Forecast of a small language model's decay and cosine runs from its constant and step-down runs, and the best schedule, trained.

    python -m benchmarks.language_forecast [--runs results/language_runs/adamw_64] [--no-training]

Needs the runs of `benchmarks.language_runs`. Prints, for every seed and for their mean: error on the decay branch (after the
branching point) and on the cosine run, those of the power law in tau, and which 90 % intervals hold. Then the schedule of least
final loss under the fitted law at the same budget and peak is trained from the start and set beside constant, cosine and
warm-up-stable-decay.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.language_runs import DECAY, LENGTH, RATES, WARMUP, train_case, write_runs
from odescale import OdescaleError, best_schedule, forecast, read_logs
from odescale.analysis.forecast.predict import Forecast
from odescale.language import source_text
from odescale.laws import LossCurve
from odescale.systems.spectral_schedules import LoggedSchedule

FIT_FROM = 0.1
"""Share of the run from which laws are fitted: past warm-up and the first fall."""


def curves_of(folder: Path, name: str) -> tuple[list[LossCurve], LossCurve]:
    """One curve a seed, and their mean, from `FIT_FROM` on."""
    logs = read_logs(folder / f"{name}.csv", loss="loss")
    warmup = WARMUP * float(logs[0].step[-1])
    singles = [log.curve(warmup) for log in logs]
    mean = replace(singles[0], name=f"{name}, mean of {len(logs)}", loss=np.mean([log.loss for log in logs], axis=0))
    first = FIT_FROM * float(mean.step[-1])
    return [curve.between(first, np.inf) for curve in singles], mean.between(first, np.inf)


def branch_errors(found: Forecast, name: str, first: float) -> dict[str, float]:
    """Mean absolute errors after step `first`, of the forecast and of the power law in tau."""
    run = next(run for run in found.runs if name in run.name)
    late = run.step > first
    assert run.truth is not None
    miss = {"law": run.loss, "tau": run.baselines["power_tau"]}
    errors = {key: float(np.abs(run.truth - loss)[late].mean()) for key, loss in miss.items()}
    held = (run.low <= run.truth) & (run.truth <= run.high)
    return errors | {"covered": float(held[late].mean()), "end": float(run.loss[-1] - run.truth[-1])}


def forecasts(folder: Path) -> Forecast | None:
    """Prints the table; the forecast of the mean curves."""
    parts = {name: curves_of(folder, name) for name in ("constant", "step_down", "decay", "cosine")}
    seeds = len(parts["constant"][0])
    print(f"{'':10s} law        decay: error  tau law  ratio  covered   cosine: error  tau law  covered  end")
    found = None
    for place in (*range(seeds), -1):
        picked = {name: mean if place < 0 else singles[place] for name, (singles, mean) in parts.items()}
        label = "mean" if place < 0 else f"seed {place}"
        plans = [replace(picked[name], name=name) for name in ("decay", "cosine")]
        try:
            found = forecast((picked["constant"], picked["step_down"]), plans)
        except OdescaleError as error:
            print(f"{label:10s} {error}")
            found = None
            continue
        decay = branch_errors(found, "decay", DECAY * float(plans[0].step[-1]))
        cosine = branch_errors(found, "cosine", 0.0)
        print(
            f"{label:10s} {found.fit.law:10s} {decay['law']:10.4f} {decay['tau']:10.4f} {decay['law'] / decay['tau']:6.2f} "
            f"{decay['covered']:8.0%} {cosine['law']:12.4f} {cosine['tau']:10.4f} {cosine['covered']:7.0%} {cosine['end']:+.4f}"
        )
    if found is not None:
        print(found.fit)
    return found


def train_best(folder: Path, found: Forecast, optimizer: str, width: int) -> None:
    """The best schedule under the fitted law, trained on the same seeds."""
    ends = {name: curves_of(folder, name)[0] for name in ("constant", "decay", "cosine")}
    steps = int(ends["constant"][0].step[-1])
    best = best_schedule(found.mean, steps=steps, peak=RATES[optimizer], warmup=WARMUP * steps)
    print(best)
    middle = np.arange(steps) + 0.5
    schedule = LoggedSchedule(
        best.rate[np.searchsorted(best.step, middle).clip(max=best.rate.size - 1)] / RATES[optimizer]
    )
    seeds = list(range(len(ends["constant"])))
    run = train_case(
        source_text(length=LENGTH), lambda step: schedule(jnp.asarray(step, float)), width=width, optimizer=optimizer, steps=steps,
        seeds=seeds, checkpoint=folder / "checkpoints" / "best.npz",
    )  # fmt: skip
    write_runs(folder / "best.csv", run, schedule, RATES[optimizer])
    trained = run.records["loss"][:, -1]
    print(f"trained: best {trained.mean():.4f} {np.round(trained, 4)}, predicted {best.loss:.4f} "
          f"({best.interval[0]:.4f} to {best.interval[1]:.4f})")  # fmt: skip
    for name, curves in ends.items():
        last = np.array([curve.loss[-1] for curve in curves])
        gap = last - trained
        error = gap.std(ddof=1) / np.sqrt(gap.size) if gap.size > 1 else float("nan")
        print(f"    {name:10s} {last.mean():.4f}: {gap.mean():+.4f} +- {error:.4f} above the best")


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="results/language_runs/adamw_64")
    parser.add_argument("--no-training", action="store_true")
    options = parser.parse_args()
    folder = Path(options.runs)
    optimizer, width = folder.name.split("_")
    found = forecasts(folder)
    if found is not None and not options.no_training:
        train_best(folder, found, optimizer, int(width))


if __name__ == "__main__":
    main()
