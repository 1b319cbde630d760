"""Calibration of forecast intervals: what laws miss on families of runs, a rule for it, and its coverage on a family left out.

    ODESCALE_DATA=folder python -m benchmarks.forecast_calibration [--processes 2] [--language results/language_runs/adamw_32]

Families: MultiPowerLaw's runs (25M, 100M), the OLMo ladder (C4 loss; 190M, 370M, 1B), Gemstones (20 networks: the run at
constant rate and its cooled ends), and one-pass SGD on power-law spectra under nine schedules with logging noise
(`simulated_family`). From each group of runs every single one and some pairs are fitted, the others forecast at 1/4, 1/2, 3/4 and
all of their unseen parts. The lengths of `discrepancy` are the pair of a grid with the least interval score (width + 2/.1 times the
miss, over the median error of a family), its size is what holds nine of ten, each family counted once; then lengths and size are
set without one family and tried on it. Prints the tables of docs/forecasting.md.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.stats import norm

from benchmarks.language_forecast import curves_of
from odescale import OdescaleError, fit_law
from odescale.analysis.forecast.discrepancy import LENGTHS, SIZE
from odescale.analysis.forecast.fit import evaluate
from odescale.analysis.forecast.law_mean import law_mean
from odescale.analysis.forecast.laws import course_of, law_named
from odescale.analysis.forecast.predict import HORIZONS, unseen_part
from odescale.laws import LossCurve, curve_from_rates, planned_curve
from tests.real_curves import folder, multi_power_curves, olmo_curves, pythia_curve

jax.config.update("jax_enable_x64", True)

MOST = 150
"""Points of a run."""
PAIRS = {"multi-power": 12, "olmo": 10, "olmo, Pile": 10, "simulated": 4}
CALIBRATED = ("multi-power", "olmo", "gemstones", "simulated")
"""Families left out one after the other."""
SETTING = (*CALIBRATED, "olmo, Pile")
"""Families that set the size in the library."""
PROBLEMS = 8
"""Simulated groups."""
GRID = tuple(itertools.product((0.7, 1.0, 1.5, 2.0, 3.0), (0.2, 0.35, 0.5, 0.7, 1.0)))
"""Lengths in log tau and in the noise over its peak."""


class Case(NamedTuple):
    """One point of one held-out run: relative error, what its interval is made of, errors of single laws by name."""

    family: str
    group: str
    fitted: tuple[str, ...]
    run: str
    error: float
    fit: float
    noise: float
    reach: tuple[float, ...]
    """For every pair of lengths in `GRID`."""
    laws: dict[str, float]


def thin(curve: LossCurve, most: int = MOST) -> LossCurve:
    """The run at `most` of its points at the most; its schedule stays."""
    keep = np.unique(np.linspace(0, curve.step.size - 1, most).round().astype(int))
    grid, rates, _ = curve.grid
    return LossCurve(
        curve.name,
        curve.step[keep],
        curve.loss[keep],
        curve.rate[keep],
        float(curve.tau[keep][0]),
        None,
        None,
        grid,
        rates,
    )


def gemstones() -> dict[str, dict[str, LossCurve]]:
    """Every network's run at constant rate and its cooled ends: linear to 0 over the last eleventh of their steps.

    Rates in units of the peak; a cooled run is known by its last loss only.
    """
    rows: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    with (folder() / "gemstones_train_loss.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            rows[row["run"]][row["split"]].append((float(row["step"]), float(row["loss"])))
    groups = {}
    for network, parts in rows.items():
        if len(parts["hot"]) < 40 or len(parts["cool_end"]) < 8:
            continue
        step, loss = np.array(sorted(set(parts["hot"]))).T
        curves = {"constant": curve_from_rates("constant", step, loss, np.ones(step.size), warmup=19.0)}
        for end, value in sorted(parts["cool_end"]):
            start, share = end * 10 / 11, np.arange(1, 41) / 40
            edges = np.concatenate([[19.0, start], start + (end - start) * share])
            rates = np.concatenate([[0.5, 1.0], 1 - share + 0.5 / 40])
            plan = planned_curve(f"cooled at {end:.0f}", edges, rates, np.array([end]))
            curves[plan.name] = replace(plan, loss=np.array([value]))
        groups[network] = curves
    return groups


def simulated_family(seed: int) -> dict[str, LossCurve]:
    """Mean risk of one-pass SGD on lam_k = k^-a with risk coordinates ~ k^-(1 + a b), under nine schedules, logged with noise.

    m_k' = m_k (1 - 2 h lam_k + (1 + 1/B) h^2 lam_k^2) + h^2 lam_k (r + s^2)/B, r = sum_k lam_k m_k: the exact recursion of
    the second moments for Gaussian rows. Exponents, batch, label noise, rate, length, floor and logging noise are drawn.
    """
    rng = np.random.default_rng(seed)
    decay, source = rng.uniform(1.2, 2.0), rng.uniform(0.2, 0.6)
    modes = np.arange(1, 601.0)
    lam, risk = modes**-decay, modes ** -(1 + decay * source)
    batch, label = rng.choice([1.0, 2.0, 4.0, 8.0]), rng.uniform(0.05, 0.5) * risk.sum() * 0.3
    top = min(rng.uniform(0.1, 0.5) * batch / lam.sum(), 0.6)
    ratio, steps, scatter = (
        rng.uniform(1, 4),
        int(rng.choice([4000, 8000, 12000])),
        rng.choice([5e-4, 1e-3, 3e-3, 6e-3]),
    )
    warm, floor, curves = 0.05 * steps, 0.0, {}
    for name, (length, rate) in _schedules(steps, warm).items():
        count = np.arange(1, length + 1.0)
        rates = top * np.minimum(count / warm, 1.0) * rate(count)
        kept = np.unique(np.linspace(warm, length, MOST).astype(int))
        moments, losses = risk / lam, np.zeros(length + 1)
        for i, h in enumerate(rates, start=1):
            total = float(lam @ moments)
            moments = moments * (1 - 2 * h * lam + (h * lam) ** 2 * (1 + 1 / batch)) + h * h / batch * lam * (
                total + label
            )
            losses[i] = 0.5 * float(lam @ moments)
        loss = losses[kept]
        floor = floor or ratio * float(loss[0])
        loss = (loss + floor) * (1 + scatter * rng.standard_normal(loss.size))
        curve = curve_from_rates(name, kept.astype(float), loss, rates[kept - 1], warmup=warm)
        curves[name] = curve.between(0.06 * steps, length)
    return curves


def _schedules(steps: int, warm: float) -> dict[str, tuple[int, Any]]:
    def cosine(length: int) -> Any:
        return lambda k: 0.1 + 0.45 * (1 + np.cos(np.pi * np.clip((k - warm) / (length - warm), 0, 1)))

    def fall(length: int, floor: float, power: bool = False) -> Any:
        def rate(k: np.ndarray) -> np.ndarray:
            share = np.clip((k - 0.8 * length) / (0.2 * length), 0, 1)
            return floor**share if power else 1 - (1 - floor) * share

        return rate

    def drop(to: float) -> Any:
        return lambda k: np.where(k < 0.6 * steps, 1.0, to)

    return {
        "constant": (steps, np.ones_like), "constant, 3x": (3 * steps, np.ones_like), "cosine": (steps, cosine(steps)),
        "cosine, 3x": (3 * steps, cosine(3 * steps)), "wsd": (steps, fall(steps, 0.05)),
        "wsd, power": (steps, fall(steps, 0.1, power=True)), "down to .3": (steps, drop(0.3)), "down to .1": (steps, drop(0.1)),
        "wsd, 3x": (3 * steps, fall(3 * steps, 0.05)),
    }  # fmt: skip


def tasks() -> Iterator[tuple[str, str, list[LossCurve], list[LossCurve]]]:
    """(family, group, runs to fit, runs to forecast)."""
    rng = np.random.default_rng(1)
    families: dict[str, dict[str, dict[str, LossCurve]]] = {
        "multi-power": {size: multi_power_curves(size) for size in ("25M", "100M")},
        "olmo": {size: olmo_curves(size, "c4_loss") for size in ("190M", "370M", "1B")},
        "olmo, Pile": {size: olmo_curves(size, "pile_loss") for size in ("190M", "370M", "1B")},
        "simulated": {f"problem {seed}": simulated_family(seed) for seed in range(PROBLEMS)},
    }
    for family, groups in families.items():
        for group, given in groups.items():
            curves = {name: thin(curve) for name, curve in given.items()}
            pairs = list(itertools.combinations(curves, 2))
            rng.shuffle(pairs)
            for names in [*((name,) for name in curves), *map(tuple, pairs[: PAIRS[family]])]:
                yield family, group, [curves[n] for n in names], [curves[n] for n in curves if n not in names]
    for group, curves in gemstones().items():
        constant, *cooled = curves.values()
        for count in (4, 5, 6):
            end = float(cooled[count - 1].step[0])
            yield (
                "gemstones",
                group,
                [constant.between(1400, end), *cooled[:count]],
                [constant.between(end, np.inf), *cooled[count:]],
            )
    for size in ("14m", "70m"):
        curve = thin(pythia_curve(size).between(3000, np.inf))
        for share in (0.4, 0.5, 0.6, 0.7, 0.8):
            end = share * float(curve.step[-1])
            yield "pythia", size, [curve.between(3000, end)], [curve.between(end, np.inf)]


def language_tasks(place: Path) -> Iterator[tuple[str, str, list[LossCurve], list[LossCurve]]]:
    """The schedules of `benchmarks.language_runs` in a folder, every seed a group, one and two of them fitted."""
    parts = {name: curves_of(place, name)[0] for name in ("constant", "step_down", "decay", "cosine")}
    for seed in range(len(parts["constant"])):
        curves = {name: replace(singles[seed], name=name) for name, singles in parts.items()}
        for names in (*itertools.combinations(curves, 1), *itertools.combinations(curves, 2)):
            yield "language", f"seed {seed}", [curves[n] for n in names], [curves[n] for n in curves if n not in names]


def cases_of(task: tuple[str, str, list[LossCurve], list[LossCurve]]) -> list[Case]:
    """The cases of one fit; none where no law is identified."""
    family, group, runs, others = task
    try:
        mean = law_mean(runs, draws=24)
    except OdescaleError:
        return []
    laws = mean.fits | {name: fit_law(runs, law=name, draws=0) for name in ("multi_power", "power_tau")}
    misses, cases = mean.discrepancy(), []
    for curve in others:
        unseen = np.flatnonzero(unseen_part(runs, curve))
        if not unseen.size:
            continue
        course, parts = course_of(curve), mean.parts(curve)
        reach = np.stack([misses.reach(course, lengths) for lengths in GRID])
        single = {
            n: curve.loss / evaluate(law_named(n), course, f.vector) - 1 for n, f in laws.items() if np.isfinite(f.rms)
        }
        for i in sorted({int(unseen[round(share * (unseen.size - 1))]) for share in HORIZONS}):
            error = float(curve.loss[i] / parts.loss[i] - 1)
            of_laws = {name: abs(float(miss[i])) for name, miss in single.items()}
            cases.append(
                Case(
                    family, group, tuple(run.name for run in runs), curve.name, error, float(parts.fit[i]), parts.noise,
                    tuple(reach[:, i].tolist()), of_laws,
                )
            )  # fmt: skip
    return cases


class Set(NamedTuple):
    """Cases as arrays: |error|, z^2 (s_fit^2 + s_noise^2), squares of the reach (cases, lengths), family."""

    error: np.ndarray
    own: np.ndarray
    square: np.ndarray
    family: np.ndarray

    def half(self, place: int, size: float) -> np.ndarray:
        """Half widths at the lengths GRID[place]."""
        return np.sqrt(self.own + size**2 * self.square[:, place])

    @property
    def weight(self) -> np.ndarray:
        """Every family counted once."""
        names, place, counts = np.unique(self.family, return_inverse=True, return_counts=True)
        return 1 / (counts[place] * names.size)

    def size(self, place: int) -> float:
        """The least size that holds nine of ten."""
        needed = np.sqrt(np.maximum(self.error**2 - self.own, 0) / np.maximum(self.square[:, place], 1e-30))
        order = np.argsort(needed)
        return float(needed[order][np.searchsorted(np.cumsum(self.weight[order]), 0.9)])

    def score(self, place: int) -> float:
        """Mean interval score at `size(place)`, over the median error of its family."""
        half = self.half(place, self.size(place))
        points = 2 * half + 2 / 0.1 * np.maximum(self.error - half, 0)
        names = np.unique(self.family)
        return float(
            np.mean([points[self.family == n].mean() / np.median(self.error[self.family == n]) for n in names])
        )


def set_of(cases: Sequence[Case]) -> Set:
    """Their arrays."""
    own = norm.ppf(0.95) ** 2 * np.array([case.fit**2 + case.noise**2 for case in cases])
    error, square = np.abs([case.error for case in cases]), np.array([case.reach for case in cases]) ** 2
    return Set(error, own, square, np.array([case.family for case in cases]))


def quality(cases: Sequence[Case], place: int, size: float) -> str:
    """Cases, share inside, median width over median error, median error."""
    some = set_of(cases)
    half = some.half(place, size)
    inside, middle = np.mean(some.error <= half), np.median(some.error)
    width = 2 * np.median(half) / middle
    return f"{len(cases):5d} cases, {inside:6.1%} inside, width {width:4.2f} errors, median error {middle:.4f}"


def table_of_laws(cases: Sequence[Case]) -> None:
    """Mean absolute relative errors by family and number of runs: the mean of the laws kept beside single laws."""
    names = ("instant", "relaxing", "spectral", "multi_power", "power_tau")
    print(f"{'family, runs fitted':24s} {'mean of kept':>12s} " + " ".join(f"{name:>12s}" for name in names))
    groups = defaultdict(list)
    for case in cases:
        groups[case.family, "one" if len(case.fitted) == 1 else "more"].append(case)
    for (family, count), own in sorted(groups.items()):
        errors = [np.mean(np.abs([case.error for case in own]))]
        errors += [np.mean([case.laws[n] for case in own if n in case.laws]) for n in names]
        print(f"{family + ', ' + count:24s} " + " ".join(f"{e:12.4f}" for e in errors))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--language", type=Path, help="folder of `benchmarks.language_runs`: one more family, quoted only"
    )
    options, start = parser.parse_args(), time.time()
    work = itertools.chain(tasks(), language_tasks(options.language) if options.language else ())
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        cases = list(itertools.chain.from_iterable(pool.map(cases_of, work)))
    table_of_laws(cases)
    setting, fixed = [case for case in cases if case.family in CALIBRATED], GRID.index(LENGTHS)
    for title, places in (("lengths and size", range(len(GRID))), (f"size, lengths {LENGTHS}", (fixed,))):
        print(f"left out, its intervals by {title} set on the others:")
        for family in CALIBRATED:
            others = set_of([case for case in setting if case.family != family])
            place = min(places, key=others.score)
            own = [case for case in setting if case.family == family]
            size = others.size(place)
            print(f"  {family:12s} {quality(own, place, size)}; lengths {GRID[place]}, size {size:.5f}")
            for count in ("one run", "more"):
                kept = [case for case in own if (len(case.fitted) == 1) == (count == "one run")]
                if kept and len(kept) < len(own):
                    print(f"     {count:9s} {quality(kept, place, size)}")
    size = set_of([case for case in cases if case.family in SETTING]).size(fixed)
    print(f"{', '.join(SETTING)}: size {size:.5f} (in the library {SIZE}); with the library's:")
    for family in sorted({case.family for case in cases}):
        print(f"  {family:12s} {quality([case for case in cases if case.family == family], fixed, SIZE)}")
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
