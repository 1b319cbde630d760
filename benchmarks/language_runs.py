"""Small language models on the source of Python's standard library: one trunk per seed, branches with other schedules.

    python -m benchmarks.language_runs [--width 64] [--optimizer adamw] [--steps 4000] [--seeds 0,1,2] [--out results/language_runs]

A pre-norm transformer of two layers reads 64 characters. From the checkpoint of the constant run branch off: a step-down to 0.1
at 60 %, and a linear decay over the last quarter (warm-up, stable, decay). A cosine run has its own start. One CSV per schedule,
with the columns seed, step, learning_rate, loss (held out, nats per character), train_loss, logit_scale,
gradient_norm, noise_share, kernel_drift. Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from odescale import Run, train
from odescale.language import LanguageModel, SourceText, language, source_text
from odescale.schedules import (
    ConstantSchedule,
    CosineSchedule,
    StepDownSchedule,
    WarmedSchedule,
    WarmupStableDecaySchedule,
)
from odescale.training.checkpoint import kept_checkpoint

LENGTH, BATCH, DEPTH, HEADS = 64, 16, 2, 4
RATES = {"adamw": 3e-3, "sgd": 0.5}
COLUMNS = ("loss", "train_loss", "logit_scale", "gradient_norm", "noise_share", "kernel_drift")
WARMUP = 0.05
DOWN, DECAY = 0.6, 0.75
"""Shares of the run at which the step-down and the decay begin."""


def schedules(steps: int) -> dict[str, Callable]:
    """The four schedules of a run of `steps`, warm-up included: multiples of the base rate."""
    warmup = WARMUP * steps
    return {
        "constant": WarmedSchedule(ConstantSchedule(), warmup),
        "step_down": WarmedSchedule(StepDownSchedule(DOWN * steps, 0.1), warmup),
        "decay": WarmupStableDecaySchedule(warmup, DECAY * steps, steps, 0.02),
        "cosine": WarmedSchedule(CosineSchedule(steps, 0.1), warmup),
    }


def record_steps(steps: int) -> np.ndarray:
    """Eighty records at equal distances: branches share those of their trunk."""
    return np.unique(np.linspace(0, steps, 81).astype(int)[1:])


def train_case(
    text: SourceText, schedule: Callable, *, width: int, optimizer: str, steps: int, seeds: list[int], checkpoint: Path,
    keep_at: tuple[int, ...] = (), branch: Path | None = None,
) -> Run:  # fmt: skip
    """One schedule on every seed."""
    model = language(
        lambda key: LanguageModel(text.vocabulary, width, DEPTH, HEADS, LENGTH, positions="rotary", key=key),
        text, batch=BATCH, learning_rate=RATES[optimizer], optimizer=optimizer,
        momentum=0.0 if optimizer == "adamw" else 0.9, schedule=schedule,
    )  # fmt: skip
    return train(
        model,
        steps,
        record_times=record_steps(steps),
        seeds=seeds,
        checkpoint=checkpoint,
        keep_at=keep_at,
        branch=branch,
    )


def write_runs(path: Path, run: Run, schedule: Callable, rate: float) -> None:
    """The records of every seed, one row per seed and step; the rate is that of the last step before the record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rates = rate * np.asarray(jax.vmap(schedule)(run.step - 1))
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["seed", "step", "learning_rate", *COLUMNS])
        for s, seed in enumerate(run.seeds):
            for i, step in enumerate(run.step):
                values = [f"{run.records[name][s, i]:.8g}" for name in COLUMNS]
                writer.writerow([int(seed), int(step), f"{rates[i]:.8g}", *values])


def train_all(folder: Path, *, width: int, optimizer: str, steps: int, seeds: list[int]) -> None:
    """Trunk, branches, cosine; skips what is written."""
    text = source_text(length=LENGTH)
    plans = schedules(steps)
    at = {"step_down": int(DOWN * steps), "decay": int(DECAY * steps)}
    trunk = folder / "checkpoints" / "constant.npz"
    trunk.parent.mkdir(parents=True, exist_ok=True)
    for name, schedule in plans.items():
        target = folder / f"{name}.csv"
        if target.exists():
            continue
        began = time.monotonic()
        run = train_case(
            text, schedule, width=width, optimizer=optimizer, steps=steps, seeds=seeds,
            checkpoint=trunk.with_name(f"{name}.npz"), keep_at=tuple(at.values()) if name == "constant" else (),
            branch=kept_checkpoint(trunk, at[name]) if name in at else None,
        )  # fmt: skip
        write_runs(target, run, schedule, RATES[optimizer])
        loss = run.records["loss"][:, -1]
        print(
            f"{target}: loss {loss.mean():.4f} (seeds {np.round(loss, 4)}), {time.monotonic() - began:.0f} s",
            flush=True,
        )


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--optimizer", choices=tuple(RATES), default="adamw")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", default="results/language_runs")
    options = parser.parse_args()
    folder = Path(options.out) / f"{options.optimizer}_{options.width}"
    seeds = [int(seed) for seed in options.seeds.split(",")]
    train_all(folder, width=options.width, optimizer=options.optimizer, steps=options.steps, seeds=seeds)


if __name__ == "__main__":
    main()
