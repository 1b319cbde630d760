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
from odescale.generated.attention import quickstart_loss
from odescale.plain_text import printable
from odescale.solve.integrate import integrate
from odescale.systems.attention import Attention
from odescale.systems.attention_build import quickstart
from odescale.training.train import train

MIN_DEPTH = 2.0  # the system's exponential phase is 2.7 to 2.8 e-folds deep
LAST = 12.0  # end of the run, in S
WINDOW = (0.2, LAST)
TAIL = (6.0, LAST)
PARAMETERS = {"strength": 1.0, "aligned": 0.05, "surplus": 0.3, "readout_scale": 4.0, "dimension": 200, "tokens": 64}


def quickstart_line(options: argparse.Namespace) -> int:
    """The whole line on the quickstart system."""
    emit(*run_quickstart(options.seeds, Path(options.out), quiet=options.json), options.json)
    return 0


def run_quickstart(seeds: int, folder: Path, quiet: bool = False) -> tuple[dict[str, Any], str]:
    """The whole line on the quickstart system; returns (JSON-ready record, text), and leaves the report in `folder`.

    Times are in S = learning_rate sqrt(readout_scale) t, one unit of t being 200 SGD steps.
    """

    def say(text: str) -> None:
        if not quiet:
            print(printable(text), file=sys.stderr, flush=True)

    began = time.perf_counter()
    say("1/5 derivation: " + shipped_in_sync("attention"))
    system = quickstart(**PARAMETERS)
    speed = float(system.learning_rate) * np.sqrt(PARAMETERS["readout_scale"])
    silent = quickstart(**PARAMETERS, noise=0.0)
    flow = integrate(silent, LAST / speed, points=400, rtol=1e-11)  # as many as `find_transition`: one compilation
    gap = float(np.max(np.abs(flow.loss / _closed_form(flow.t * speed) - 1)))
    say(f"2/5 integration: ODE without noise against the closed form, largest relative difference {gap:.1e}")
    formula = find_transition(lambda S: _closed_form(S), LAST, min_depth=MIN_DEPTH, time_unit="S")
    noisy = find_transition(system, LAST / speed, min_depth=MIN_DEPTH)
    assert noisy.t_x is not None and formula.t_x is not None
    say(
        f"3/5 transition: t_x in S = {formula.t_x:.6f} (closed form, depth {formula.depth:.3f} e-folds), "
        f"{noisy.t_x * speed:.6f} (ODE with SGD noise, depth {noisy.depth:.3f} e-folds)"
    )
    say(f"4/5 training {seeds} seeds of the real transformer, {round(LAST / speed * system.trace)} SGD steps each ...")
    folder.mkdir(parents=True, exist_ok=True)
    run = train(
        system,
        LAST / speed,
        seeds=seeds,
        record_times=np.geomspace(WINDOW[0], WINDOW[1], 31) / speed,
        checkpoint=folder / "checkpoint.npz",
    )
    own = integrate(quickstart(**PARAMETERS, context="sampled"), ts=np.concatenate([[0.0], run.t]))
    comparison = compare(system, run, min_depth=MIN_DEPTH, context=own)
    figures = _figures(comparison, system, speed)
    dense = np.geomspace(WINDOW[0], WINDOW[1], 200) / speed
    notes = (
        f"In S = learning_rate sqrt(readout_scale) t: t_x = {formula.t_x:.6f} from the closed form without noise, "
        f"{noisy.t_x * speed:.6f} from the ODE with SGD noise.",
        f"ODE without noise against the closed form: {gap:.1e} relative.",
        f"Tail in S from {TAIL[0]:g} to {TAIL[1]:g}, against S + 1/(2 y1) (y1 = 0.3 at the start): "
        f"exponent {figures['tail']['exponent']:.3f} +- {figures['tail']['stderr']:.3f} (closed form: 2).",
    )
    extra = {
        "quickstart": {
            "S_per_t": speed,
            "t_x_formula_S": formula.t_x,
            "t_x_ode_S": noisy.t_x * speed,
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


def _closed_form(S: Any) -> Any:
    beta, y0, y1 = (PARAMETERS[name] for name in ("strength", "aligned", "surplus"))
    values = quickstart_loss(jnp.asarray(S), beta, y0, y1)
    return np.asarray(values) if isinstance(S, np.ndarray) else values


def _figures(comparison: Comparison, system: Attention, speed: float) -> dict[str, Any]:
    """The numbers that the picture should be judged by."""
    run, kept, loss = comparison.run, comparison.kept, comparison.loss
    S = run.t * speed
    tail = S > TAIL[0]
    ratio = loss.ratio[kept]
    fitted: TailExponent = tail_exponent(S, run["loss"], shift=1 / (2 * PARAMETERS["surplus"]), window=TAIL)
    own = comparison.context_ratio
    theory, measured = comparison.transitions["theory"], comparison.transitions["run"]
    return {
        "ratio": [float(ratio.min()), float(ratio.max())],
        "ratio_in_tail": [float(loss.ratio[tail].min()), float(loss.ratio[tail].max())],
        "ratio_at_own_context": None if own is None else [float(own[kept].min()), float(own[kept].max())],
        "tail": {"exponent": fitted.exponent, "stderr": fitted.stderr},
        "t_x_theory_same_points_S": None if theory.t_x is None else theory.t_x * speed,
        "t_x_run_S": None if measured.t_x is None else measured.t_x * speed,
        "t_x_run_interval_S": None if measured.interval is None else [x * speed for x in measured.interval],
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
    interval = figures["t_x_run_interval_S"]
    own_low, own_high = figures["ratio_at_own_context"]
    between = "" if interval is None else f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f})"
    exact = comparison.transitions["exact"]
    run_t = "none" if figures["t_x_run_S"] is None else f"{figures['t_x_run_S']:.3f}"
    theory_t = "none" if figures["t_x_theory_same_points_S"] is None else f"{figures['t_x_theory_same_points_S']:.3f}"
    return "\n".join(
        [
            f"{comparison.verdict}",
            f"run/theory {low:.3f} to {high:.3f} while the loss falls {figures['fall']:.0f} times; tail {tail_low:.3f} to "
            f"{tail_high:.3f}, exponent {figures['tail']['exponent']:.3f} +- {figures['tail']['stderr']:.3f}",
            f"against the ODE at the run's own context of {PARAMETERS['tokens']} tokens: {own_low:.3f} to {own_high:.3f}",
            f"t_x in S, one spline on the run's points: run {run_t}{between}, theory {theory_t}; exact, by the event: "
            f"{figures['t_x_ode_S']:.6f} at a depth of {exact.depth:.3f} e-folds"
            if exact.depth is not None
            else "no exact transition",
            f"report: {page}  (picture: {page.parent / 'comparison.png'}), {figures['seconds']:.0f} s",
        ]
    )
