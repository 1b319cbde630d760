"""The validity table: each case of the theory against simulation, row by row, resumable.

`python -m benchmarks.validity [--only ROW] [--again]` runs the rows that have no result yet in results/validity/, then
writes docs/validity.md from all of them. A row whose result is not there keeps the line that the page has, so that no
partial run ever loses one. One row takes up to five minutes on two cores.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import validity_mean_field as mean_field

RESULTS = Path("results/validity")
PAGE = Path("docs/validity.md")


def relative_error_of_mean(loss: np.ndarray) -> np.ndarray:
    """Standard error of the mean over seeds, relative to it."""
    return loss.std(axis=0, ddof=1) / np.sqrt(loss.shape[0]) / loss.mean(axis=0)


def closer_by(run: np.ndarray, corrected: np.ndarray, plain: np.ndarray) -> float:
    """z-score over seeds of mean_t log(run/plain)^2 - log(run/corrected)^2: positive when the corrected ODE is closer."""
    gain = (np.log(run / plain) ** 2 - np.log(run / corrected) ** 2).mean(axis=1)
    return float(gain.mean() / (gain.std(ddof=1) / np.sqrt(gain.size)))


def finite_context(
    tokens: int, depth: int = 1, seeds: int = 8, dimension: int = 300, t1: float = 4.0, batch: int = 16
) -> dict[str, Any]:
    """Trajectories at finite context against the infinite-context ODE and, for one layer, the ODE with its 1/T terms."""
    from odescale import attention, integrate, train

    settings: dict[str, Any] = {
        "depth": depth,
        "tokens": tokens,
        "dimension": dimension,
        "batch": batch,
        "learning_rate": 0.5,
        "alignment": 0.5,
        "strength": 0.35,
    }
    system = attention(**settings)
    run = train(
        system, t1, seeds=seeds, record_times=np.geomspace(t1 / 20, t1, 12), progress=False, test_sequences=2048
    )
    times = np.concatenate([[0.0], run.t])
    plain = integrate(system, ts=times).loss[1:]
    ratio = run.mean() / plain
    result: dict[str, Any] = {
        "parameters": settings,
        "seeds": seeds,
        "t1": t1,
        "fall": float(plain[0] / plain[-1]),
        "uncorrected": [float(ratio.min()), float(ratio.max())],
        "stderr": float(relative_error_of_mean(run["loss"]).max()),
    }
    # One layer has its O(1/T) terms in closed form; for more layers the closure at T is sampled, to all orders.
    context = "finite" if depth == 1 else "sampled"
    corrected = integrate(attention(**settings, context=context), ts=times).loss[1:]
    ratio = run.mean() / corrected
    return result | {
        "corrected": [float(ratio.min()), float(ratio.max())],
        "z_closer": closer_by(run["loss"], corrected, plain),
    }


def value_rows(depth: int = 1, tokens: int = 512, seeds: int = 4, t1: float = 3.5) -> dict[str, Any]:
    """Value and output rows: the ODE against simulation, by test loss and by the loss at the run's overlaps."""
    from odescale import attention, integrate, train

    settings: dict[str, Any] = {
        "depth": depth,
        "value": "rows",
        "tokens": tokens,
        "dimension": 200,
        "batch": 4,
        "learning_rate": 0.4,
        "alignment": 0.5,
        "strength": 0.7 if depth == 1 else 0.5,
    }
    system = attention(**settings)
    run = train(system, t1, seeds=seeds, record_times=np.geomspace(t1 / 20, t1, 12), progress=False, test_sequences=512)
    theory = integrate(system, ts=np.concatenate([[0.0], run.t])).loss[1:]
    ratio = run.mean() / theory
    own = run.mean("loss_infinite") / theory
    return {
        "parameters": settings,
        "seeds": seeds,
        "t1": t1,
        "fall": float(theory[0] / theory[-1]),
        "ratio": [float(ratio.min()), float(ratio.max())],
        "ratio_at_overlaps": [float(own.min()), float(own.max())],
        "stderr": float(relative_error_of_mean(run["loss"]).max()),
    }


def spectrum(noise: float) -> dict[str, Any]:
    """lam ~ k^-1.5 with trace 1, source 0.5, two layers, all rows trained, to 1e6 steps with the implicit solver."""
    from odescale import attention, integrate

    system = attention(capacity=1.5, source=0.5, noise=noise, learning_rate=0.1)
    times = np.concatenate([[0.0], np.geomspace(1.0, 1e6, 361)])
    trajectory = integrate(system, ts=times)
    tail = trajectory.t >= 1e4
    slope = np.polyfit(np.log(trajectory.t[tail]), np.log(trajectory.loss[tail]), 1)[0]
    theta = clock_integral(trajectory.t, trajectory.observables["learning_speed"])
    formula = clock_formula(system, trajectory, theta)
    entry = trajectory.meta["ladder"][-1]
    return {
        "parameters": {"capacity": 1.5, "source": 0.5, "noise": noise, "learning_rate": 0.1, "modes": 1e8},
        "accepted": entry["accepted"],
        "rejected": entry["rejected"],
        "seconds_of_solve": entry["seconds"],
        "lowest_eigenvalue": entry["min_eigenvalue"],
        "exponent_last_two_decades": float(-slope),
        "local_exponent": [float(trajectory.exponent[tail].min()), float(trajectory.exponent[tail].max())],
        "loss_over_clock_formula_last_two_decades": [
            float((trajectory.loss / formula)[tail].min()),
            float((trajectory.loss / formula)[tail].max()),
        ],
        "loss": [float(trajectory.loss[0]), float(trajectory.loss[-1])],
        "effective_dimension": effective_dimension(1.5),
    }


def clock_integral(t: np.ndarray, speed: np.ndarray) -> np.ndarray:
    """theta(t) = int_0^t c dt' by the trapezoid rule on the output times."""
    return np.concatenate([[0.0], np.cumsum(0.5 * (speed[1:] + speed[:-1]) * np.diff(t))])


def clock_formula(system: Any, trajectory: Any, theta: np.ndarray) -> np.ndarray:
    """1/2 sum_k w_k lam_k (b_t^T q_k(0) b_t) exp(-2 eta lam_k theta), with the current error functional b_t."""
    from odescale.generated.attention import functionals

    start = np.asarray(system.initial_overlaps)
    lam, weights = np.asarray(system.eigenvalues), np.asarray(system.weights)
    eta = float(system.learning_rate)
    out = []
    for C, clock in zip(trajectory.overlaps, theta, strict=True):
        b = functionals(C, C, system.architecture.student) - functionals(C, C, system.architecture.teacher)
        risk = np.einsum("ip,kpq,iq->k", np.asarray(b), start, np.asarray(b))
        out.append(0.5 * np.sum(weights * lam * risk * np.exp(-2 * eta * lam * clock)))
    return np.asarray(out)


def effective_dimension(capacity: float) -> float:
    """(tr Sigma)^2/tr Sigma^2 of the spectrum of the row."""
    from odescale.spectra import power_law

    return power_law(capacity, 1e8).effective_dimension


ROWS: dict[str, Callable[[], dict[str, Any]]] = {
    "context_16": lambda: finite_context(16),
    "context_32": lambda: finite_context(32),
    "context_64": lambda: finite_context(64),
    "context_128": lambda: finite_context(128, seeds=6),
    "context_256": lambda: finite_context(256, seeds=4),
    "two_layers_64": lambda: finite_context(64, depth=2, seeds=4, dimension=200, batch=4),
    "two_layers_128": lambda: finite_context(128, depth=2, seeds=4, dimension=200, batch=4),
    "two_layers_256": lambda: finite_context(256, depth=2, seeds=4, dimension=200, batch=4),
    "value_rows_1": value_rows,
    "value_rows_2": lambda: value_rows(depth=2, tokens=256, seeds=2, t1=2.0),
    "spectrum_no_noise": lambda: spectrum(0.0),
    "spectrum_noise": lambda: spectrum(1.0),
} | {name: functools.partial(mean_field.run_case, case) for name, case in mean_field.CASES.items()}


def run_row(name: str, again: bool = False) -> dict[str, Any]:
    """The result of one row, from its file or computed and saved."""
    path = RESULTS / f"{name}.json"
    if path.exists() and not again:
        return json.loads(path.read_text(encoding="utf-8"))
    began = time.perf_counter()
    result = ROWS[name]()
    result["seconds"] = round(time.perf_counter() - began, 1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return result


def span(pair: list[float]) -> str:
    """Two numbers as a range."""
    return f"{pair[0]:.3f} to {pair[1]:.3f}"


def page(results: dict[str, dict[str, Any]], before: str = "") -> str:
    """docs/validity.md from the results; rows without one keep their line of the page `before`."""
    kept = {line.split("`")[1]: line for line in before.splitlines() if line.startswith("| `")}

    def table(prefixes: tuple[str, ...], line: Callable[[dict[str, Any]], str]) -> list[str]:
        lines = []
        for name in ROWS:
            if not name.startswith(prefixes) or name in mean_field.CASES:
                continue
            if name in results:
                lines.append(f"| `{name}` | {line(results[name])} |")
            elif name in kept:
                lines.append(kept[name])
        return lines

    return "\n".join(
        [
            "# Validity: what has been tested against what",
            "",
            "Written by `python -m benchmarks.validity`, which runs every row that has no result yet (`--again`: all of them",
            "from nothing); do not edit. The quickstart's own comparison is `results/quickstart/report.md`, made by",
            "`odescale quickstart --seeds 4`. Exact identities (generated right-hand side against automatic differentiation,",
            "closed form against the ODE, order-1/T loss against Monte Carlo at fixed overlaps) are tests:",
            "`tests/test_generated*.py`, `tests/test_derivations*.py`. Peaked distributions: the table of `docs/one_third_law.md`.",
            "",
            *mean_field.section(results, kept),
            "## Infinite context: finite T",
            "",
            "Real networks trained at T context tokens (all rows trained, isotropic tokens, mean test loss over the seeds)",
            "against the infinite-context ODE and against the corrected one: for one layer with its O(1/T) terms in closed",
            "form (`context=finite`), for two layers, where there is no closed form, with the closure at T sampled over fixed",
            "Gaussian nodes (`context=sampled`). `z` is the significance over seeds of the corrected ODE being closer.",
            "",
            "| row | layers | T | d | seeds | loss falls | run / infinite-context ODE | run / corrected ODE | largest "
            "standard error | z |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *table(("context", "two_layers"), _context_line),
            "",
            "## Infinite context: value and output rows",
            "",
            "| row | layers | T | d | seeds | loss falls | run / ODE | run / ODE, loss at the run's overlaps | largest stderr |",
            "|---|---|---|---|---|---|---|---|---|",
            *table(("value_rows",), _value_line),
            "",
            "## Infinite context: power-law spectrum",
            "",
            "Two layers, one head, all rows trained, lam ~ k^-1.5 with trace 1 (t counts steps), 1e8 modes in log bins, source",
            "exponent 0.5, learning rate 0.1, to 1e6 steps. Initial overlaps: `q_k(0) = g_k C0` with `w_k lam_k g_k ~",
            "k^(-1.75)` summed to 1 over the modes, C0 = `teacher_student_overlaps(strength=0.5, alignment=0.3, scale=1)`: teacher",
            "readout of unit length, keys with cosine 0.8 to it, queries orthogonal, every student row at cosine 0.3 with its",
            "teacher row. Exponent: least squares over the last two decades. Clock formula: `1/2 sum_k w_k lam_k (b_t^T",
            "q_k(0) b_t) exp(-2 eta lam_k theta)`, `theta = int |S a|^2 dt`.",
            "",
            "| row | SGD noise | steps | rejected | exponent | local exponent | loss / clock formula | lowest eigenvalue | "
            "seconds |",
            "|---|---|---|---|---|---|---|---|---|",
            *table(("spectrum",), _spectrum_line),
            "",
        ]
    )


def _context_line(result: dict[str, Any]) -> str:
    p = result["parameters"]
    return (
        f"{p['depth']} | {p['tokens']} | {p['dimension']} | {result['seeds']} | {result['fall']:.1f} x | "
        f"{span(result['uncorrected'])} | {span(result['corrected'])} | {result['stderr']:.3f} | {result['z_closer']:.1f}"
    )


def _value_line(result: dict[str, Any]) -> str:
    p = result["parameters"]
    return (
        f"{p['depth']} | {p['tokens']} | {p['dimension']} | {result['seeds']} | {result['fall']:.1f} x | "
        f"{span(result['ratio'])} | {span(result['ratio_at_overlaps'])} | {result['stderr']:.3f}"
    )


def _spectrum_line(result: dict[str, Any]) -> str:
    return (
        f"{'on' if result['parameters']['noise'] else 'off'} | {result['accepted']} | {result['rejected']} | "
        f"{result['exponent_last_two_decades']:.4f} | {span(result['local_exponent'])} | "
        f"{span(result['loss_over_clock_formula_last_two_decades'])} | {result['lowest_eigenvalue']:.1e} | "
        f"{result['seconds_of_solve']:.0f}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs rows and writes the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.validity", description=__doc__)
    parser.add_argument("--only", choices=sorted(ROWS), metavar="ROW", help=f"one row: {', '.join(ROWS)}")
    parser.add_argument(
        "--page", action="store_true", help="write the page from the results that are there, run nothing"
    )
    parser.add_argument("--again", action="store_true", help="run rows that have a result, too")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    for name in [] if options.page else [options.only] if options.only else ROWS:
        result = run_row(name, options.again)
        print(f"{name}: {json.dumps(result)}", flush=True)
    known = {name: run_row(name) for name in ROWS if (RESULTS / f"{name}.json").exists()}
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    PAGE.write_text(page(known, before), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
