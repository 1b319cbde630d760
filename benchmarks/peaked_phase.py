"""The phase diagram of peaked targets: `python -m benchmarks.peaked_phase` sweeps the teacher's temperature and draws docs/figures.

One compiled sweep over b* gives the local exponent over time and temperature; the end of the power law, where the
transition finder sees one, is held against alpha_c and against the crossing that the derivation predicts.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FIGURE = ROOT / "docs" / "figures" / "peaked_phase.png"
LAW = ROOT / "docs" / "figures" / "one_third_law.png"
CLASSES, LAST = 10, 1e10


class Phase(NamedTuple):
    """The sweep, b* and per member alpha_c, the predicted crossing of q = 1/2, the one found (nan: none)."""

    trajectory: Any
    inverse_temperature: np.ndarray
    hand_over: np.ndarray
    predicted: np.ndarray
    found: np.ndarray


def phase(members: int = 80, points: int = 400, classes: int = CLASSES, last: float = LAST) -> Phase:
    """One sweep from b* = 0.3 to 1e4, soft labels, no noise, eta = 1."""
    import odescale
    from odescale.analysis.phases.transition import transition_of_trajectory
    from odescale.expectations.softmax_race import softmax_race
    from odescale.generated.peaked import cutoff_time, hand_over_time

    b = np.geomspace(0.3, 1e4, members)
    found = odescale.sweep(
        "peaked", last, {"inverse_temperature": b}, classes=classes, labels="soft", noise=0.0, points=points
    )
    c = float(softmax_race(classes).c)
    each = [transition_of_trajectory(found.member(i)).finite_size_cutoff for i in range(members)]
    return Phase(
        found, b, *(np.asarray(law(1.0, c, classes, b)) for law in (hand_over_time, cutoff_time)),
        np.array([np.nan if value is None else value for value in each]),
    )  # fmt: skip


def rows(result: Phase) -> None:
    """A row per sixth member: the phases that count, end of the power law against the two formulas."""
    from odescale.analysis.phases.transition import transition_of_trajectory

    print("b*          phases (kind, e-folds)                                    end / alpha_c   end / predicted")
    for i in range(0, len(result.inverse_temperature), 6):
        each = transition_of_trajectory(result.trajectory.member(i))
        counted = () if each.phases is None else each.phases.counted()
        kinds = ", ".join(f"{phase.kind} {phase.efolds:.1f}" for phase in counted)
        end = result.found[i]
        print(
            f"{result.inverse_temperature[i]:<11.4g} {kinds:<60} {end / result.hand_over[i]:<15.4f} {end / result.predicted[i]:.4f}"
        )


def hand_over(inverse_temperature: float, classes: int = CLASSES) -> None:
    """Prints how far the local exponent is from the artanh law at the same t, for t/alpha_c in [0.01, 4]."""
    from scipy.optimize import brentq

    import odescale
    from odescale.expectations.softmax_race import softmax_race
    from odescale.generated.peaked import finite_temperature_exponent, finite_temperature_time, hand_over_time

    law = (1.0, float(softmax_race(classes).c), classes, inverse_temperature)
    t = np.geomspace(1e-2, 4, 40) * float(hand_over_time(*law))
    x = np.array([brentq(lambda x, t=t: float(finite_temperature_time(x, *law)) - t, 1e-6, 1 - 1e-12) for t in t])
    system = odescale.peaked(classes=classes, labels="soft", inverse_temperature=inverse_temperature, noise=0.0)
    run = odescale.integrate(system, ts=np.concatenate([[0.0], t]))
    off = np.max(np.abs(run.exponent[1:] / np.asarray(finite_temperature_exponent(x)) - 1))
    print(f"K = {classes}, b* = {inverse_temperature:g}: local exponent within {100 * off:.2f} % of the artanh law")


def figures(result: Phase) -> None:
    """Writes docs/figures/peaked_phase.png and docs/figures/one_third_law.png."""
    import odescale
    from odescale.expectations.softmax_race import softmax_race
    from odescale.generated.peaked import power_law_loss
    from odescale.plot import plot

    axes = plot(
        result.trajectory, kind="phases", hand_over=result.hand_over, cutoff=result.found,
        peaked_from=float(np.sqrt(2 * np.log(CLASSES))), title=f"{CLASSES} classes, soft labels, gradient flow",
    )  # fmt: skip
    axes.figure.savefig(FIGURE)
    runs, laws = {}, {}
    for classes in (2, 3, 10, 128):
        run = odescale.integrate(odescale.peaked(classes=classes, noise=0.0), 1e8)
        label = f"K = {classes}"
        runs[label] = run
        with np.errstate(divide="ignore"):
            laws[label] = np.asarray(power_law_loss(run.t, 1.0, float(softmax_race(classes).c), classes))
        print(f"{label}: p = {run.exponent[-1]:.6f} at 1e8, loss/law = {run.loss[-1] / laws[label][-1]:.6f}")
    axes = plot(
        runs,
        kind="law",
        asymptotes=laws,
        exponent=1 / 3,
        exponents=(0.2, 0.6),
        title=r"Hard labels, gradient flow, $\eta$ = 1",
    )
    axes["loss"].figure.savefig(LAW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-figure", action="store_true", help="leave docs/figures as they are")
    arguments = parser.parse_args()
    import jax

    jax.config.update("jax_enable_x64", True)
    print(f"jax {jax.__version__}, {jax.default_backend()}, {os.cpu_count()} cores")
    start = time.perf_counter()
    result = phase()
    print(
        f"sweep of {len(result.inverse_temperature)} temperatures to t = {LAST:g}: {time.perf_counter() - start:.1f} s"
    )
    rows(result)
    for b in (200.0, 1000.0):
        hand_over(b)
    if not arguments.no_figure:
        figures(result)


if __name__ == "__main__":
    main()
