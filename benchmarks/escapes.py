"""Escapes from the one-third law: `python -m benchmarks.escapes` writes docs/escapes.md and docs/figures/escapes.png.

Every number of the page comes from this run: exponents from the closed forms of `odescale.analysis.peaked.one_third`, the rest
from the order-parameter flow. `--small` runs a few rows to a short horizon and prints the page only.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "escapes.md"
FIGURE = ROOT / "docs" / "figures" / "escapes.png"
HORIZON, SMALL_HORIZON = 1e6, 1e4
TARGETS = (0.02, 0.005)
SMALL = ("constant", "power, g = 0.5", "hot start", "temperature, h = 0.6")
DRAWN = (
    "constant", "power, g = 0.5", "warm-up-stable-decay", "hot start", "temperature, h = 0.6", "temperature, best h",
    "label smoothing, g = 0.5", "normalised, no noise", "adam", "batch 16, eta times 16", "normalised, B = 1e6",
)  # fmt: skip
TEACHER = 30.0
KL_TARGETS = (0.02, 0.01, 0.005, 0.001)


TEXT = """# Escapes from the one-third law

<!-- written by `python -m benchmarks.escapes`; do not edit -->

What would beat L ~ t^(-1/3)? The order-parameter flow of [peaked distributions](derivations/peaked.md), hard labels, K = 3, batch 1
unless said otherwise, d = {d}, from D = Delta = 0 to the horizon t = {T} ({steps} SGD steps; one unit of t is d steps). Rows
with K = 2 are to be compared with that of cross-entropy at K = 2. `python -m benchmarks.escapes` makes the page and the picture.

![Loss and error against SGD steps](figures/escapes.png)

## What the theory supports

- **Constant learning rate.** A third, whatever batch and rate. The best rate is eta/B = {ratio}, where Delta_inf = {spread} and
  kappa^2 B/(eta m^2) = {constant}, for every K.
- **Growing inverse temperature**, p = softmax(beta lam), beta ~ t^h, eta ~ t^(-2h). Loss and error both fall as t^(-h) for
  1/3 < h < 1, at every t, without a horizon. At h = 0.6 the flow has {heat.measured[0]:.4f} and {heat.measured[1]:.4f}. This is
  the escape that the theory supports. Its cost: two coupled schedules; hard labels; the closer h is to 1, the later the spread
  follows.
- **Hot start**, eta = r ((1 + T)/(1 + t))^g. The same exponent g with the learning rate alone, but at t = T only: until shortly
  before, the run is worse than one at a constant rate, and its start grows as T^g. The flow has {hot.measured[0]:.4f} and
  {hot.measured[1]:.4f} at g = {hot.predicted[0]:g}. Measured in units of eta a hot student has a hard maximum for a softmax;
  cooling eta is heating beta.
- **Warm-up-stable-decay.** From a fixed start a factor, once. From a start that grows as T^(1/3) the end of a linear decay has
  exponent {decayed}: Delta follows eta until (1 - t/T)^2 ~ T^(-2/3), whatever the start, and should be of order one there. A
  decay (1 - t/T)^p has 1/3 + 2p/(3(p + 1)).
- **A power schedule whose start does not depend on the horizon** slows the loss down, (1 - g)/3, and speeds the error up,
  1/3 + g/6: the direction improves, the scale does not grow. At the best temperature (calibrated L) the loss has the exponent
  of the error.
- **Label smoothing, square loss:** cross-entropy has a floor; the error falls as t^(-g/2). **Focal, Brier:** another constant.
- **Normalised gradients** have exponent 1 without noise, and need the whole population for it. With noise they are Adam: 2/5
  while the spread is small, 1/6 late. **Adam** at a constant rate ends slower than SGD; a rate falling as t^-g has at most 1/3.
- **Larger batch:** a factor. At the same eta/B the same samples in B times fewer steps; at the same eta more samples.
- **Growing learning rate** ~ t^q: without noise (1 + q)/3, with noise 1/3 - q.
- **Finite teacher temperature:** beyond alpha_c there is no power law to escape from (see the labels with noise).

Hot start and decay phase are balances of powers of `odescale.analysis`, not steps of the derivation; the flow below checks them.

## Table

Exponents: derived, as t -> infinity, against the flow's mean over the last decade of t. For schedules that depend on the
horizon (the best powers, decay phase, hot start) they compare the ends of the runs to T/10 and to T, and times are the shortest
horizons that end at the target; the best powers keep the schedule found for T. `floor`: the quantity stops. A dash: not reached, or
no power law. Calibrated L: cross-entropy at the best temperature. Searches for the best eta end at {edge}.

{table}

## A linear decay

Best start of runs that decay over their last 99 %.

{decay}

## Labels with noise

Labels drawn from softmax(b* lam*). The logits' scale has a target, b*: heating beyond it is a growing error of scale, and as the
curvature there is only 2 c/b*^3 a wrong scale is not corrected before alpha_c. Heating until beta D reaches b* is a head start,
no more; later the loss is a parabola around the teacher and KL falls as eta does, t^(-g).

{noise}

## What is not covered

The limit d -> infinity at fixed K, fresh Gaussian inputs, one layer. A hot start has large rates (up to {start} here), and with
them larger corrections O(K/d). Nothing here says that a deep network on text has the same constants.
"""


def number(x: float) -> str:
    """Three digits; a dash for NaN and inf."""
    return f"{x:.3g}" if np.isfinite(x) else "-"


def exponent(x: float) -> str:
    """Four decimals; `floor` for a predicted zero, a dash for none."""
    if not np.isfinite(x):
        return "-"
    return "floor" if abs(x) < 5e-5 else f"{x:.4f}"


def rows_of(table: Any) -> list[str]:
    """The page's table."""
    heads = [f"steps to L = {x:g}" for x in table.targets] + [f"samples to L = {table.targets[0]:g}"]
    lines = [
        "| escape | settings | loss: derived | loss: flow | error: derived | error: flow | L at the end | error | calibrated L | "
        + " | ".join(heads) + " | cost |",
        "|" + "---|" * (10 + len(heads)),
    ]  # fmt: skip
    for row in table.rows:
        curve = row.curve
        cells = [
            row.name, row.settings, exponent(row.predicted[0]), exponent(row.measured[0]), exponent(row.predicted[1]),
            exponent(row.measured[1]), number(curve.loss[-1]), number(curve.error[-1]),
            number(curve.calibrated_loss[-1] if curve.error[-1] > 0 else np.nan),
            *(number(reach.steps) for reach in row.reaches), number(row.reaches[0].samples), row.cost,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def label_noise() -> list[str]:
    """Labels sampled at a finite temperature: what is left of the temperature schedule."""
    from odescale.analysis.peaked.escapes import follow
    from odescale.analysis.peaked.schedules import heated, heated_until, sgd
    from odescale.one_third import predict_law
    from odescale.schedules import PowerSchedule

    labels: dict[str, Any] = {"labels": "sampled", "inverse_temperature": TEACHER}
    cases = {
        "constant, eta = 0.5": sgd(3, 0.5, **labels),
        "constant, eta = 2": sgd(3, 2.0, **labels),
        "power, g = 0.9, onset 1e4, eta = 1": sgd(3, 1.0, power=PowerSchedule(0.9, 1e4), **labels),
        "power, g = 0.9, onset 1e3, eta = 4": sgd(3, 4.0, power=PowerSchedule(0.9, 1e3), **labels),
        "temperature, h = 0.6, without end": heated(3, 2.0, 0.6, 1.0, **labels),
        "temperature, h = 0.6 to t = 100, then g = 0.9": heated_until(3, 2.0, 0.6, 100.0, 0.9, **labels),
        "temperature, h = 0.8 to t = 100, then g = 0.9": heated_until(3, 2.0, 0.8, 100.0, 0.9, **labels),
    }
    hand_over = predict_law(cases["constant, eta = 2"], 1.0).hand_over
    lines = [
        f"K = 3, b* = {TEACHER:g}, B = 1, alpha_c = {hand_over:.3g} at eta = 2 ({2 * hand_over:.3g}/eta).",
        "",
        "| schedule | "
        + " | ".join(f"t to KL = {x:g}" for x in KL_TARGETS)
        + " | KL at t = 1e6 | its exponent over the last decade | error |",
        "|" + "---|" * (4 + len(KL_TARGETS)),
    ]
    for name, system in cases.items():
        curve = follow(system, 1e6)
        reaches = " | ".join(number(curve.reach(x).t) for x in KL_TARGETS)
        lines.append(f"| {name} | {reaches} | {curve.loss[-1]:.3g} | {curve.exponent():.3f} | {curve.error[-1]:.3g} |")
    return lines


def decay_phase() -> list[str]:
    """The end of runs with a linear decay: best start for each horizon, and its exponent."""
    from odescale.analysis.peaked.escapes import best_settings
    from odescale.analysis.peaked.schedules import decayed

    lines = ["| horizon T | best eta_0 | eta_0/T^(1/3) | loss at T | exponent |", "|---|---|---|---|---|"]
    before = np.nan
    for T in (1e3, 1e4, 1e5, 1e6):
        (rate,), curve = best_settings(
            lambda x, T=T: decayed(3, float(np.exp(x)), T, 0.99), (float(np.log(2 * T ** (1 / 3))),), ((0.0, 6.5),), T
        )
        slope = np.log10(before / curve.loss[-1])
        lines.append(
            f"| {T:.0e} | {np.exp(rate):.4g} | {np.exp(rate) / T ** (1 / 3):.3f} | {curve.loss[-1]:.4g} | {exponent(slope)} |"
        )
        before = curve.loss[-1]
    return lines


def page(table: Any, noise: list[str], decay: list[str]) -> str:
    """The whole page."""
    from odescale.analysis.peaked.escapes import LOG_RATES
    from odescale.analysis.peaked.layer import best_learning_rate, decay_exponent

    best = best_learning_rate()
    by_name = {row.name: row for row in table.rows}
    heat, hot = (by_name[x] for x in ("temperature, h = 0.6", "hot start"))
    return TEXT.format(
        d=f"{hot.curve.system.dimension:g}", T=f"{table.horizon:.0e}", steps=f"{table.horizon * hot.curve.system.dimension:.0e}",
        ratio=f"{best.ratio:.4f}", spread=f"{best.spread:.4f}", constant=f"{best.constant:.4f}", heat=heat, hot=hot,
        decayed=f"{decay_exponent():.4f}", edge=f"{np.exp(LOG_RATES[1]):.0f}", start=f"{float(hot.curve.system.learning_rate):.0f}",
        table="\n".join(rows_of(table)), decay="\n".join(decay), noise="\n".join(noise),
    )  # fmt: skip


def figure(table: Any) -> None:
    """Writes docs/figures/escapes.png: loss and error against SGD steps."""
    from odescale.plot import plot
    from odescale.plot.style import new_figure, shared_style

    with shared_style():
        sheet = new_figure(12.4, 5.6)
        axes = sheet.subplots(1, 2)
        plot(table, axes[0], names=DRAWN)
        plot(table, axes[1], observable="error", names=DRAWN)
        axes[0].get_legend().remove()
        axes[0].set(ylim=(5e-7, 30), xlim=(1e2, None))
        axes[1].set(ylim=(3e-7, 1), xlim=(1e2, None), ylabel="error against the teacher's class")
        sheet.suptitle("Peaked targets, K = 3: what beats t^(-1/3)")
        sheet.savefig(FIGURE)


def main(argv: list[str] | None = None) -> int:
    """Runs the escapes; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="four rows to t = 1e4, printed, nothing written")
    arguments = parser.parse_args(argv)
    import jax

    jax.config.update("jax_enable_x64", True)
    from odescale.one_third import compare_escapes

    start = time.perf_counter()
    if arguments.small:
        table = compare_escapes(TARGETS, horizon=SMALL_HORIZON, names=SMALL)
        print("\n".join(rows_of(table)))
        return 0
    table = compare_escapes(TARGETS, horizon=HORIZON)
    PAGE.write_text(page(table, label_noise(), decay_phase()))
    figure(table)
    print(f"{PAGE.relative_to(ROOT)}, {FIGURE.relative_to(ROOT)}: {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
