"""`odescale quickstart`: derive and check, integrate, find the transition, train, compare, report."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from odescale.analysis.phases.exponents import TailExponent, tail_exponent
from odescale.analysis.phases.transition import find_transition
from odescale.cli.derivation import shipped_in_sync
from odescale.cli.output import emit
from odescale.compare.comparison import Comparison, compare
from odescale.compare.report import to_json, write_report
from odescale.plain_text import printable
from odescale.solve.integrate import integrate
from odescale.systems.attention_build import quickstart, quickstart_loss
from odescale.training.train import train

LAST = 34.0  # end of the run, in u
WINDOW = (0.05, LAST)
TAIL = (10.0, LAST)
PARAMETERS: dict[str, Any] = {"readout": 14.0, "surplus": 0.3, "value_scale": 4.0}


def quickstart_line(options: argparse.Namespace) -> int:
    """The whole line on the quickstart system."""
    emit(*run_quickstart(options.seeds, Path(options.out), quiet=options.json), options.json)
    return 0


def run_quickstart(seeds: int, folder: Path, quiet: bool = False) -> tuple[dict[str, Any], str]:
    """The whole line on the quickstart system; returns (JSON-ready record, text), and leaves the report in `folder`.

    Times are in u = learning_rate t, one unit of t being 64 SGD steps.
    """

    def say(text: str) -> None:
        if not quiet:
            print(printable(text), file=sys.stderr, flush=True)

    began = time.perf_counter()
    say("1/5 derivation: " + shipped_in_sync("attention"))
    system = quickstart(**PARAMETERS)
    speed = float(system.learning_rate)
    silent = quickstart(**PARAMETERS, noise=0.0)
    flow = integrate(silent, LAST / speed, points=400, rtol=1e-11)  # as many as `find_transition`: one compilation
    gap = float(np.max(np.abs(flow.loss / _closed_form(flow.t * speed) - 1)))
    say(f"2/5 integration: ODE without noise against the closed form, largest relative difference {gap:.1e}")
    formula = find_transition(lambda u: _closed_form(u), LAST, time_unit="u = learning_rate t")
    noisy = find_transition(system, LAST / speed)
    assert noisy.t_x is not None and formula.t_x is not None
    say(
        f"3/5 phases of the ODE with SGD noise: {noisy.phases}\n"
        f"    t_x = {noisy.t_x:.6f} (u = {noisy.t_x * speed:.6f}; closed form without noise {formula.t_x:.6f}), exact"
    )
    say(f"4/5 training {seeds} seeds of the real transformer, {round(LAST / speed * system.trace)} SGD steps each ...")
    folder.mkdir(parents=True, exist_ok=True)
    run = train(
        system,
        LAST / speed,
        seeds=seeds,
        record_times=np.geomspace(WINDOW[0], WINDOW[1], 33) / speed,
        # Measuring the loss costs more than the steps between two records.
        test_sequences=2048,
        checkpoint=folder / "checkpoint.npz",
    )
    comparison = compare(system, run)
    figures = _figures(comparison, speed)
    dense = np.geomspace(WINDOW[0], WINDOW[1], 200) / speed
    notes = (
        f"In u = learning_rate t: t_x = {formula.t_x:.6f} from the closed form without noise, "
        f"{noisy.t_x * speed:.6f} from the ODE with SGD noise.",
        f"ODE without noise against the closed form: {gap:.1e} relative.",
        f"Tail in u from {TAIL[0]:g} to {TAIL[1]:g}, against u + 1/(2 y sqrt(R)) with y at the start: "
        f"exponent {figures['tail']['exponent']:.3f} +- {figures['tail']['stderr']:.3f} (closed form: 2).",
    )
    extra = {
        "quickstart": {
            "u_per_t": speed,
            "t_x_formula_u": formula.t_x,
            "t_x_ode": noisy.t_x,
            "t_x_ode_u": noisy.t_x * speed,
            "name_ode": noisy.name,
            "ode_against_formula": gap,
            **figures,
            "seconds": round(time.perf_counter() - began, 1),
        }
    }
    page = write_report(
        comparison,
        folder,
        title="Quickstart: a two-layer softmax transformer, exponential decay and then a power law",
        formula=(dense, _closed_form(dense * speed)),
        notes=notes,
        extra=extra,
    )
    (folder / "checkpoint.npz").unlink(missing_ok=True)
    say(f"5/5 report: {page}")
    return _record(comparison, extra, page), _text(comparison, extra["quickstart"], page)


def _closed_form(u: Any) -> Any:
    values = quickstart_loss(jnp.asarray(u), *(PARAMETERS[name] for name in ("readout", "surplus", "value_scale")))
    return np.asarray(values) if isinstance(u, np.ndarray) else values


def _figures(comparison: Comparison, speed: float) -> dict[str, Any]:
    """The numbers that the picture should be judged by."""
    run, kept, loss = comparison.run, comparison.kept, comparison.loss
    u = run.t * speed
    tail = u > TAIL[0]
    ratio = loss.ratio[kept]
    shift = 1 / (2 * PARAMETERS["surplus"] * PARAMETERS["value_scale"] ** 0.5)
    fitted: TailExponent = tail_exponent(u, run["loss"], shift=shift, window=TAIL)
    theory, measured = comparison.transitions["theory"], comparison.transitions["run"]
    return {
        "ratio": [float(ratio.min()), float(ratio.max())],
        "ratio_in_tail": [float(loss.ratio[tail].min()), float(loss.ratio[tail].max())],
        "tail": {"exponent": fitted.exponent, "stderr": fitted.stderr},
        "name_run": measured.name,
        "t_x_theory_same_points": theory.t_x,
        "t_x_run": measured.t_x,
        "t_x_run_interval": measured.interval,
        "fall": comparison.fall,
    }


def _record(comparison: Comparison, extra: dict[str, Any], page: Path) -> dict[str, Any]:
    return (
        to_json(comparison)
        | {
            "loss": comparison.loss.predicted,
            "error": comparison.loss.stderr,
            "path": str(page),
        }
        | extra
    )


def _text(comparison: Comparison, figures: dict[str, Any], page: Path) -> str:
    low, high = figures["ratio"]
    tail_low, tail_high = figures["ratio_in_tail"]
    interval = figures["t_x_run_interval"]
    between = "" if interval is None else f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"
    run_t, theory_t = (
        "none" if figures[name] is None else f"{figures[name]:.3f}" for name in ("t_x_run", "t_x_theory_same_points")
    )
    return "\n".join(
        [
            f"{comparison.verdict}",
            f"run/theory {low:.3f} to {high:.3f} while the loss falls {figures['fall']:.0f} times; tail {tail_low:.3f} to "
            f"{tail_high:.3f}, exponent {figures['tail']['exponent']:.3f} +- {figures['tail']['stderr']:.3f}",
            f"phases of the ODE: {figures['name_ode']}, t_x = {figures['t_x_ode']:.6f} (exact)",
            f"phases of the runs: {figures['name_run']}, t_x = {run_t}{between}; ODE at the same points, "
            f"by the same model: {theory_t}",
            f"report: {page}  (picture: {page.parent / 'comparison.png'}), {figures['seconds']:.0f} s",
        ]
    )
