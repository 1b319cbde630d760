"""Real training curves as `LossCurve`s, read from the folder named by ODESCALE_DATA (default ../shared/data); nothing is copied."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from pathlib import Path

import numpy as np

from odescale.laws import LossCurve, curve_from_rates

ROOT = Path(__file__).resolve().parents[1]


def folder() -> Path:
    """Where the curves lie."""
    return Path(os.environ.get("ODESCALE_DATA", ROOT.parent / "shared" / "data"))


def _table(name: str, keys: tuple[str, ...]) -> dict[tuple[str, ...], list[dict[str, str]]]:
    rows: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    with (folder() / name).open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            rows[tuple(row[key] for key in keys)].append(row)
    return rows


def _column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def multi_power_curves(model: str) -> dict[str, LossCurve]:
    """The nine schedules of one size, by name; linear warm-up over 2160 steps."""
    return {
        schedule: curve_from_rates(schedule, *(_column(rows, c) for c in ("step", "loss", "lr")), warmup=2160)
        for (size, schedule), rows in _table("multipowerlaw_curves.csv", ("model", "schedule")).items()
        if size == model
    }


def olmo_curves(model: str, column: str = "c4_loss", first: float = 1000) -> dict[str, LossCurve]:
    """The runs of one size by schedule and length, such as `cosine 5xC`, at steps > first; warm-up read off the first
    rate of 0.5xC."""
    tables = _table("olmo_ladder_val_loss.csv", ("model", "schedule", "chinchilla_mult"))
    start = tables[model, "cosine", "0.5xC"][0]
    warmup = float(start["step"]) * float(start["lr_peak"]) / float(start["lr"])
    return {
        f"{schedule} {length}": curve_from_rates(
            f"{schedule} {length}", *(_column(rows, c) for c in ("step", column, "lr")), warmup=warmup,
            tokens=_column(rows, "tokens"),
        ).between(first + 1, np.inf)
        for (size, schedule, length), rows in tables.items()
        if size == model
    }  # fmt: skip


def pythia_curve(model: str) -> LossCurve:
    """Local means of the training loss; peak rate at step 1430, cosine to a tenth at step 143000, rate in units of its peak."""
    rows = _table("pythia_train_loss.csv", ("model", "seed"))[model, "1"]
    step, loss = _column(rows, "step"), _column(rows, "loss_mean")
    share = np.clip((step - 1430) / (143000 - 1430), 0, 1)
    rate = np.where(step < 1430, step / 1430, 0.1 + 0.9 * (1 + np.cos(np.pi * share)) / 2)
    return curve_from_rates(model, step[1:], loss[1:], rate[1:], warmup=1430)


def gemstones_end(split: str, share: float = 1.0) -> dict[str, np.ndarray]:
    """width, depth, params, loss of every run at `share` of the tokens that all runs saw; loss a mean over three logged points."""
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    for row in _table("gemstones_train_loss.csv", ("split",))[(split,)]:
        runs[row["run"]].append({n: float(row[n]) for n in ("width", "depth", "params", "tokens", "loss")})
    tokens = share * min(max(r["tokens"] for r in rows) for rows in runs.values())
    ends = []
    for rows in runs.values():
        rows.sort(key=lambda r: r["tokens"])
        i = int(np.argmin([abs(r["tokens"] - tokens) for r in rows]))
        ends.append(rows[i] | {"loss": float(np.mean([r["loss"] for r in rows[max(i - 1, 0) : i + 2]]))})
    return {n: np.array([e[n] for e in ends]) for n in ("width", "depth", "params", "loss")}
