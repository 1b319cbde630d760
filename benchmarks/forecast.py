"""Forecasts of real loss curves: what the laws reach on the MultiPowerLaw runs and the OLMo ladder, and what they refuse.

`ODESCALE_DATA=folder python -m benchmarks.forecast [mpl|olmo|intervals|refusals|gemstones|one|best]`; about six
minutes on one core.
"""

from __future__ import annotations

import sys
import time

import jax
import numpy as np

from odescale import OdescaleError, best_schedule, fit_law, forecast
from odescale.analysis.forecast.fit import evaluate
from odescale.analysis.forecast.laws import course_of, law_named
from odescale.analysis.forecast.predict import Forecast, unseen_part
from odescale.laws import compare_laws, fit_isolated
from tests.real_curves import gemstones_end, multi_power_curves, olmo_curves, pythia_curve

jax.config.update("jax_enable_x64", True)

SIZES, LADDER = ("25M", "100M"), ("190M", "370M", "1B")
FIT = ("constant_24000", "wsdcon_9")
PUBLISHED_RUNS = ("constant_24000", "cosine_24000", "wsdcon_9")
PUBLISHED = {
    "25M": (3.040, 0.525, 363.788, 0.508, 2.066, 0.583, 0.641),
    "100M": (2.651, 0.601, 437.946, 0.453, 2.132, 0.598, 0.655),
}
"""L0, A, B, alpha, C, beta, gamma as the authors print them (github.com/thu-yao-01-luo/MultiPowerLaw, README)."""


def multi_power_split(size: str, law: str | None = None) -> Forecast:
    """Seven curves from two."""
    curves = multi_power_curves(size)
    rest = [c for name, c in curves.items() if name not in FIT]
    return forecast([curves[name] for name in FIT], rest, law=law)


def published_law(size: str, *, refit: bool) -> dict[str, float]:
    """The multi-power law on the same seven curves: with the authors' numbers, or fitted here to their three runs."""
    curves = multi_power_curves(size)
    law = law_named("multi_power")
    if refit:
        vector = fit_law([curves[name] for name in PUBLISHED_RUNS], law="multi_power", draws=0).vector
    else:
        vector = np.array(PUBLISHED[size])
    fitted = [curves[name] for name in FIT]
    rows = []
    for name, curve in curves.items():
        if name in FIT:
            continue
        miss = curve.loss - evaluate(law, course_of(curve), vector)
        spread = np.sum((curve.loss - curve.loss.mean()) ** 2)
        rows.append((np.abs(miss).mean(), 1 - miss @ miss / spread, np.abs(miss[unseen_part(fitted, curve)]).mean()))
    return dict(zip(("mean_absolute", "r2", "unseen"), map(float, np.mean(rows, axis=0)), strict=True))


def olmo_split(size: str, law: str | None = None, column: str = "c4_loss") -> Forecast:
    """All other runs of the ladder from cosine 1xC and 2xC."""
    curves = olmo_curves(size, column)
    fitted = ("cosine 1xC", "cosine 2xC")
    return forecast([curves[n] for n in fitted], [c for n, c in curves.items() if n not in fitted], law=law)


def interval_quality(forecasts: list[Forecast]) -> dict[str, float]:
    """Coverage and median width over median error of the 90 % intervals over all (curve, horizon)."""
    rows = [row for f in forecasts for row in f.at_horizons()]
    width = np.median([r["high"] - r["low"] for r in rows])
    error = np.median([r["error"] for r in rows])
    return {
        "cases": len(rows),
        "coverage": float(np.mean([r["covered"] for r in rows])),
        "width/error": float(width / error),
    }


def coverage_without_misfit() -> float:
    """Coverage at the same cases by bootstrap and residual alone."""
    hits = []
    splits = [(multi_power_curves(s), multi_power_split(s)) for s in SIZES]
    for curves, made in splits + [(olmo_curves(s), olmo_split(s)) for s in LADDER]:
        for run in made.runs:
            parts = made.mean.parts(curves[run.name])
            half = parts.half(run.unseen, size=0.0) * parts.loss
            places = np.searchsorted(run.step, [row["step"] for row in run.at_horizons()])
            hits += [bool(abs(curves[run.name].loss[i] - parts.loss[i]) <= half[i]) for i in places]
    return float(np.mean(hits))


def _show(title: str, errors: dict[str, float]) -> None:
    print(f"  {title:44s} |error| {errors['mean_absolute']:.4f}  R2 {errors['r2']:.4f}  unseen {errors['unseen']:.4f}")


def report_multi_power() -> list[Forecast]:
    """Two runs to seven, every law."""
    out = []
    for size in SIZES:
        print(f"MultiPowerLaw {size}, fitted on {' + '.join(FIT)}, seven other curves")
        made = multi_power_split(size)
        out.append(made)
        _show(f"chosen: {made.mean.name}", made.errors())
        for name in ("power_tau", "one_third"):
            _show(name, made.errors(name))
        for law in ("instant", "relaxing", "spectral"):
            try:
                _show(law, multi_power_split(size, law).errors())
            except OdescaleError as error:
                print(f"  {law}: {error}")
        _show("multi-power law, three runs, refitted", published_law(size, refit=True))
        _show("multi-power law, three runs, published", published_law(size, refit=False))
        curves = multi_power_curves(size)
        print(compare_laws([curves[name] for name in FIT]))
    return out


def report_olmo() -> list[Forecast]:
    """1xC and 2xC to the rest of the ladder."""
    out = [olmo_split(size) for size in LADDER]
    for size, made in zip(LADDER, out, strict=True):
        print(f"OLMo {size}\n{made}")
    for run in ("cosine 5xC", "cosine 10xC", "const 10xC", "cosine 0.5xC"):
        means = [
            np.mean([f[run].errors(law)["mean_absolute"] for f in out]) for law in (None, "power_tau", "one_third")
        ]
        print(f"  {run}: mean |error| {means[0]:.4f}, power law in tau {means[1]:.4f}, one third {means[2]:.4f}")
    return out


def report_refusals() -> None:
    """What must come out unidentified."""
    curves = multi_power_curves("25M")
    pythia = pythia_curve("70m")
    constant = curves["constant_24000"]
    cases = {
        "Pythia 70m, first tenth": pythia.between(1430, 14300),
        "one constant rate": constant,
        "ten points": constant.between(2000, 3400),
    }
    for name, curve in cases.items():
        for law in ("instant", "relaxing", "spectral"):
            print(f"  {name}, {fit_law(curve, law=law)}")


def report_gemstones() -> None:
    """Isolated laws of width and depth at equal tokens; Yang's isolated laws have the exponent 1/2."""
    for split in ("hot", "cool_end"):
        for share in (0.25, 0.5, 1.0):
            end = gemstones_end(split, share)
            fit = fit_isolated({n: end[n] for n in ("width", "depth")}, end["loss"])
            print(f"  {split}, {share:.0%} of the tokens: {fit}; width holds 1/2: {fit['width'].agrees(0.5)}")
    end = gemstones_end("hot")
    print(f"  width alone: {fit_isolated({'width': end['width']}, end['loss'])}")


def report_one_run() -> None:
    """One run to another length, or to another schedule: which of four places of the unseen part the interval holds."""
    lengths = ("cosine_24000", "cosine_72000"), ("cosine_72000", "cosine_24000"), ("wsd_20000_24000", "constant_72000")
    cases = [
        (multi_power_curves(s), pair, s) for s in SIZES for pair in (*lengths, ("wsd_20000_24000", "cosine_24000"))
    ]
    steps = [("cosine 1xC", "cosine 2xC"), ("cosine 2xC", "cosine 5xC"), ("cosine 5xC", "cosine 10xC")]
    cases += [(olmo_curves(s), pair, s) for s in LADDER for pair in steps]
    for curves, (known, asked), size in cases:
        rows = forecast(curves[known], curves[asked], draws=30).at_horizons()
        held = ", ".join(
            f"{row['error']:.4f} of +-{(row['high'] - row['low']) / 2:.4f}{'' if row['covered'] else ' (missed)'}"
            for row in rows
        )
        print(f"  {size}, {known} -> {asked}: {held}")


def report_best() -> None:
    """The schedule of least loss under the fitted law."""
    for size in SIZES:
        made = multi_power_split(size)
        best = best_schedule(made.mean, steps=24000, peak=3e-4, warmup=2160)
        print(f"  {size}, {made.fit.law}: {best}")


def main() -> None:
    """Prints what was asked for, or everything."""
    start = time.time()
    asked = sys.argv[1:] or ["intervals", "refusals", "gemstones", "one", "best"]
    made: list[Forecast] = []
    if "mpl" in asked or "intervals" in asked:
        made += report_multi_power()
    if "olmo" in asked or "intervals" in asked:
        made += report_olmo()
    if "intervals" in asked:
        print("90 % intervals", interval_quality(made))
        print(f"   without what laws miss: coverage {coverage_without_misfit():.3f}")
        print(
            "   unused before: OLMo, Pile loss", interval_quality([olmo_split(s, column="pile_loss") for s in LADDER])
        )
    if "refusals" in asked:
        report_refusals()
    if "gemstones" in asked:
        report_gemstones()
    if "one" in asked:
        report_one_run()
    if "best" in asked:
        report_best()
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
