"""A comparison as a folder: `report.md` to read, `comparison.png` to see, `comparison.json` to compute with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from odescale.analysis.phases.exponents import local_exponent
from odescale.analysis.phases.regimes import Transition
from odescale.compare.comparison import Comparison
from odescale.plot.comparison import plot_comparison


def write_report(
    comparison: Comparison,
    folder: str | os.PathLike,
    *,
    title: str,
    formula: tuple[Any, Any] | None = None,
    notes: tuple[str, ...] = (),
    extra: dict[str, Any] | None = None,
) -> Path:
    """Writes report.md, comparison.png, comparison.json, theory.npz and run.npz into `folder`; returns the report's path.

    **Arguments**: `title` of page and picture; `formula` = (t, loss) of a closed form to draw; `notes`: further lines of
    the report, each one bullet; `extra`: further JSON-ready entries of comparison.json.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    draw(comparison, title=title, formula=formula).savefig(place / "comparison.png", dpi=150)
    (place / "comparison.json").write_text(
        json.dumps(to_json(comparison) | (extra or {}), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )
    comparison.theory.save(place / "theory.npz")
    comparison.run.save(place / "run.npz")
    page = place / "report.md"
    page.write_text(to_markdown(comparison, title=title, notes=notes), encoding="utf-8")
    return page


def draw(comparison: Comparison, *, title: str, formula: tuple[Any, Any] | None = None) -> Any:
    """The picture of the report, as a matplotlib figure."""
    run, theory, kept = comparison.run, comparison.theory, comparison.kept
    unit = f"t  (one unit = {theory.clock.steps_per_unit:g} SGD steps)"
    axes = plot_comparison(
        theory.t[1:],
        theory.loss[1:],
        run.t[kept],
        run.mean()[kept],
        run_stderr=(comparison.sources["statistical"] * run.mean())[kept],
        seed_losses=run["loss"][:, kept] if len(run.seeds) > 1 else None,
        theory_error=None if theory.error is None else (theory.error * theory.loss)[1:],
        theory_at_run=comparison.theory_loss[kept],
        context_at_run=None if comparison.context_loss is None else comparison.context_loss[kept],
        context_label=f"ODE at the run's own context, T = {float(run.config['tokens']):g}",
        formula=formula,
        theory_exponent=theory,
        run_exponent=local_exponent(run.t[kept], run["loss"][:, kept], smoothing=comparison.run_transition.smoothing),
        theory_transition=comparison.theory_transition,
        run_transition=comparison.run_transition,
        ratio_band=(1 - comparison.tolerance, 1 + comparison.tolerance),
        steps_per_unit=theory.clock.steps_per_unit,
        time_label=unit,
        title=title,
    )
    return axes["loss"].figure


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Everything a script needs, null where a number is not known."""
    run, theory = comparison.run, comparison.theory
    arrays = {
        "t": run.t,
        "steps": run.step,
        "tau": np.asarray(run.clock.tau(run.t)),
        "tokens": np.asarray(run.clock.tokens_seen(run.t)),
        "theory_loss": comparison.theory_loss,
        "run_loss": run.mean(),
        "ratio": comparison.ratio,
        "ratio_stderr": comparison.stderr,
        "z": comparison.z,
        "z_total": comparison.z_total,
        "allowance": comparison.allowance,
        "overlap_deviation": comparison.overlap_deviation,
        "context_loss": comparison.context_loss,
        "context_ratio": comparison.context_ratio,
        "theory_error": None if theory.error is None else theory.error[comparison.at],
    }
    return {
        "system": theory.meta["system"],
        "parameters": plain(theory.meta["parameters"]),
        "time_unit": theory.meta["time_unit"],
        "clock": run.clock.describe(),
        "seeds": plain(run.seeds),
        "verdict": comparison.verdict.to_dict(),
        "tolerance": comparison.tolerance,
        "transition": {
            "exact": _record(comparison.exact),
            "theory_same_points": _record(comparison.theory_transition),
            "run": _record(comparison.run_transition),
            "agrees": comparison.transition_agrees,
        },
        "points": {name: plain(values) for name, values in arrays.items()},
        "seed_losses": plain(run["loss"]),
        "versions": theory.meta["versions"],
        "solver": plain(theory.meta["ladder"]),
    }


def to_markdown(comparison: Comparison, *, title: str, notes: tuple[str, ...] = ()) -> str:
    """The report as a page: verdict, transition, clocks, error sources, table."""
    run, theory = comparison.run, comparison.theory
    relation = {None: "cannot be compared", True: "agree", False: "differ"}[comparison.transition_agrees]
    own = comparison.context_ratio
    extra_head, extra_rule = (
        ("", "") if own is None else (f" run/theory at T = {float(run.config['tokens']):g} |", "---|")
    )
    depth_line = [f"- Theory, {comparison.exact}"] if comparison.exact is not None else []
    lines = [
        f"# {title}",
        "",
        f"**Verdict: {comparison.verdict.status}.** "
        + ". ".join(_sentence(r) for r in comparison.verdict.reasons)
        + ".",
        "",
        "![theory and run](comparison.png)",
        "",
        "## Transition",
        "",
        *depth_line,
        f"- Theory, sampled as the run: {comparison.theory_transition}",
        f"- Run: {comparison.run_transition}",
        f"- The last two use one estimator on the same points; they {relation} (5 %, or inside the run's 95 % interval).",
        "",
        "## Clocks",
        "",
        f"- {run.clock.describe()}",
        f"- The run has {int(run.step[-1])} steps = {run.t[-1]:.6g} units of t = {float(run.clock.tau(run.t[-1])):.6g} of "
        f"intrinsic time = {float(run.clock.tokens_seen(run.t[-1])):.4g} tokens, seeds {', '.join(map(str, run.seeds))}.",
        "",
        "## Errors (relative, largest over the points)",
        "",
        "| source | size |",
        "|---|---|",
        *_error_rows(comparison),
        "",
        *([f"- {note}" for note in notes] + [""] if notes else []),
        "## Points",
        "",
        "z counts the scatter of the seeds and the numerical error of the theory; z with finite size counts the size of",
        "the theory's first neglected terms, (1/T + 1/d)(1 + |p|), as an error too.",
        "",
        "| step | t | theory | run | run/theory | +- | z | z with finite size |" + extra_head,
        "|---|---|---|---|---|---|---|---|" + extra_rule,
    ]
    for i in np.flatnonzero(comparison.kept):
        lines.append(
            f"| {int(run.step[i])} | {run.t[i]:.4g} | {comparison.theory_loss[i]:.5g} | {run.mean()[i]:.5g} | "
            f"{comparison.ratio[i]:.4f} | {comparison.stderr[i]:.4f} | {comparison.z[i]:+.1f} | {comparison.z_total[i]:+.1f} |"
            + ("" if own is None else f" {own[i]:.4f} |")
        )
    versions = ", ".join(f"{name} {number}" for name, number in theory.meta["versions"].items())
    solvers = ", ".join(f"{entry['solver']} ({entry['accepted']} steps)" for entry in theory.meta["ladder"])
    lines += ["", f"Theory by {solvers} on {theory.meta['device']}; {versions}.", ""]
    return "\n".join(lines)


def _error_rows(comparison: Comparison) -> list[str]:
    sources, kept = comparison.sources, comparison.kept
    names = {
        "seeds": "scatter of the seeds (standard error of the mean)",
        "monte_carlo": "Monte Carlo test loss (contained in the scatter)",
        "numerical": "integration of the theory",
    }
    rows = [
        f"| {text} | {np.max(sources[name][kept]):.2g} |" for name, text in names.items() if sources[name] is not None
    ]
    rows.append(f"| size of the neglected terms of order 1/T and 1/d | {np.max(comparison.allowance[kept]):.2g} |")
    rows.append(f"| largest deviation of an overlap | {np.max(comparison.overlap_deviation[kept]):.2g} |")
    return rows


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _record(transition: Transition | None) -> dict[str, Any] | None:
    return None if transition is None else transition.to_dict()


def plain(value: Any) -> Any:
    """JSON-ready: arrays to lists, NaN and infinities to null."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist") and not isinstance(value, float):
        return plain(np.asarray(value).tolist())
    return value if isinstance(value, float) and np.isfinite(value) else None
