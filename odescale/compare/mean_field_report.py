"""A mean-field comparison as a folder: `report.md` to read, `comparison.png` to see, `comparison.json` to compute with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from odescale.analysis.phases.regimes import Transition
from odescale.compare.mean_field import MeanFieldComparison
from odescale.compare.report import plain
from odescale.plot.comparison import plot_comparison
from odescale.solve.trajectory import Trajectory

LOSS_LABEL = "excess loss L"


def draw_mean_field(
    comparison: MeanFieldComparison,
    *,
    title: str,
    dense: Trajectory | None = None,
    transition: Transition | None = None,
) -> Any:
    """L(t) of theory and runs, their ratio and the theory's exponents, as a matplotlib figure.

    The band of the theory is the standard error of its closure, the bars those of the seeds' mean; the shaded ratios are within
    the tolerance. **Arguments**: `title`; `dense`: the theory at more times than the run's; `transition` of the theory, marked.
    One unit of t is tr Sigma SGD steps, on the upper axis.
    """
    run, theory, kept = comparison.run, dense or comparison.theory, comparison.kept
    shown = (theory.t > 0) & np.asarray(theory.valid)
    steps = theory.clock.steps_per_unit
    # The half width of a 95 % interval over few node sets is drawn as it stands: it is the theory's own error bar.
    error = None if theory.error is None else np.nan_to_num(np.asarray(theory.error) * theory.loss)[shown]
    axes = plot_comparison(
        theory.t[shown],
        theory.loss[shown],
        run.t[kept],
        run.mean()[kept],
        run_stderr=run.scatter()[kept] if len(run.seeds) > 1 else None,
        seed_losses=run["loss"][:, kept] if len(run.seeds) > 1 else None,
        theory_error=error,
        theory_at_run=comparison.theory_loss[kept],
        theory_exponent=theory,
        theory_transition=transition,
        ratio_band=(1 - comparison.tolerance, 1 + comparison.tolerance),
        steps_per_unit=steps if steps != 1 else None,
        theory_label="theory (ODE), band: 95 % interval of its closure",
        time_label=f"t  (one unit = {steps:g} SGD step{'' if steps == 1 else 's'})",
        title=title,
    )
    axes["loss"].set_ylabel(LOSS_LABEL)
    return axes["loss"].figure


def write_mean_field_report(comparison: MeanFieldComparison, folder: str | os.PathLike, *, title: str) -> Path:
    """Writes report.md, comparison.png, comparison.json, theory.npz and run.npz into `folder`; returns the report's path."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    draw_mean_field(comparison, title=title).savefig(place / "comparison.png", dpi=150)
    record = plain(comparison.to_dict() | {"parameters": comparison.theory.meta["parameters"]})
    (place / "comparison.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    comparison.theory.save(place / "theory.npz")
    comparison.run.save(place / "run.npz")
    page = place / "report.md"
    page.write_text(mean_field_markdown(comparison, title=title), encoding="utf-8")
    return page


def mean_field_markdown(comparison: MeanFieldComparison, *, title: str) -> str:
    """The report as a page: verdict, clocks, error sources, table."""
    run, theory, kept = comparison.run, comparison.theory, comparison.kept
    words = {
        "seeds": "scatter of the seeds (standard error of the mean)",
        "quadrature": "closure of the theory (scatter of its node sets)",
        "finite_size": "finite dimension, "
        + ("measured at half the dimension" if comparison.measured_finite_size else "estimated: (1 + |p|)/d_eff"),
    }
    lines = [
        f"# {title}",
        "",
        f"**Verdict: {comparison.verdict.status}.** {'. '.join(comparison.verdict.reasons)}.",
        "",
        "![theory and run](comparison.png)",
        "",
        f"- {run.clock.describe()}",
        f"- {len(run.seeds)} seeds, {int(run.step[-1])} SGD steps; the theory's loss falls {comparison.fall:.3g} times.",
        f"- Largest deviation {comparison.max_deviation:.2g}; z: {comparison.rms_z:.2f} in the mean square, "
        f"{comparison.max_z:.2f} at most.",
        "",
        "| source of error | largest, relative |",
        "|---|---|",
        *(f"| {words[name]} | {np.max(error[kept]):.2g} |" for name, error in comparison.errors.items()),
        "",
        "| step | t | theory | run | run/theory | +- | z |",
        "|---|---|---|---|---|---|---|",
    ]
    for i in np.flatnonzero(kept):
        lines.append(
            f"| {int(run.step[i])} | {run.t[i]:.4g} | {comparison.theory_loss[i]:.5g} | {run.mean()[i]:.5g} | "
            f"{comparison.ratio[i]:.4f} | {comparison.stderr[i]:.4f} | {comparison.z[i]:+.1f} |"
        )
    solvers = ", ".join(f"{entry['solver']} ({entry['accepted']} steps)" for entry in theory.meta["ladder"])
    versions = ", ".join(f"{name} {number}" for name, number in theory.meta["versions"].items())
    return "\n".join([*lines, "", f"Theory by {solvers} on {theory.meta['device']}; {versions}.", ""])
