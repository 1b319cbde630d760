"""The ODE of a two-layer softmax network against its own SGD at equal standard error: `python -m benchmarks.softmax_depth`.

    ratio = (CPU seconds of SGD until the standard error of its mean loss is the ODE's) / (CPU seconds of the ODE)

T = 3, the row `softmax_two_layers` of docs/validity.md. One process on one core, both sides in turns, each once before it counts;
CPU seconds are medians. Errors are relative standard errors of the loss, root mean square over ten times log-spaced from t = 1
to 20: of the ODE from the scatter of its node sets, of SGD from that of its seeds, both over all repeats. SGD needs (its error
with one seed / the ODE's)^2 seeds. Node sets and seeds are others in every repeat. Beside it, what all node sets of one size are
off in the mean from those of 2^16 nodes: the error bar does not see it.

At d = 5000 a run to the end takes minutes a seed: its steps are timed over a short stretch, and its error is that at d = 500 over
sqrt(10), which a table of short runs at both dimensions checks.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.engine import one_thread, table

import numpy as np  # isort: skip

import odescale
from benchmarks.validity_mean_field import CASES, build, record_times

CASE = CASES["softmax_two_layers"]
REPEATS = 5
SEEDS = 8


def system(nodes: int, seed: int = 0, dimension: int = 500) -> odescale.MeanField:
    """The row's system with its own node sets."""
    case = dataclasses.replace(CASE, nodes=nodes)
    return build(case, dimension=dimension, seed=seed)


def scatter(losses: Any) -> np.ndarray:
    """Relative variance over the first axis, (n,)."""
    losses = np.asarray(losses)
    return losses.var(axis=0, ddof=1) / losses.mean(axis=0) ** 2


def rms(variances: list[np.ndarray]) -> float:
    """Root mean square over repeats and times."""
    return float(np.sqrt(np.mean(variances)))


def seconds(run: Callable[[], Any]) -> tuple[Any, float]:
    """(what it returns, CPU seconds)."""
    began = time.process_time()
    result = run()
    return result, time.process_time() - began


def _solve(one: odescale.MeanField, times: np.ndarray | None) -> Any:
    """At the ten times, or at the 200 of `integrate` itself."""
    return odescale.integrate(one, CASE.t1) if times is None else odescale.integrate(one, ts=times)


def train(dimension: int, t1: float, times: Any, seeds: range) -> np.ndarray:
    """(seeds, times) losses of SGD; few nodes, since they only measure."""
    run = odescale.train(system(1024, dimension=dimension), t1, seeds=list(seeds), record_times=times, progress=False)
    return np.asarray(run["loss"])


def measure(counts: tuple[int, ...]) -> None:
    """Both sides in turns, to t = 20 at d = 500."""
    at = record_times(CASE)
    times = np.concatenate([[0.0], at])
    spent: dict[Any, list[float]] = {}
    spread: dict[Any, list[np.ndarray]] = {}
    means: dict[Any, list[np.ndarray]] = {}

    def note(name: Any, taken: float, losses: np.ndarray) -> None:
        spent.setdefault(name, []).append(taken)
        spread.setdefault(name, []).append(scatter(losses))

    for turn in range(REPEATS + 1):
        losses, taken = seconds(lambda n=turn: train(500, CASE.t1, at, range(SEEDS * n, SEEDS * (n + 1))))
        if turn:
            note("sgd", taken / SEEDS, losses)
        for count in counts:
            one = system(count, seed=turn)
            for name, points in (("10", times), ("200", None)):
                run, taken = seconds(lambda s=one, p=points: _solve(s, p))
                kept = [int(np.argmin(np.abs(run.t - t))) for t in at]
                replicates = np.asarray(run.observables["replicate_loss"])[kept].T
                if turn:
                    note((count, name), taken, replicates)
                    means.setdefault((count, name), []).append(replicates.mean(axis=0))

    fine = np.asarray(_solve(system(2**16, seed=100), times).loss)[1:]
    each, one_seed = statistics.median(spent["sgd"]), rms(spread["sgd"])
    step, taken = _step_at_5000()
    rows = []
    for count in counts:
        error = rms(spread[count, "10"]) / 2  # of four sets
        away = rms([(np.mean(means[count, "10"], axis=0) / fine - 1) ** 2])
        seeds = (one_seed / error) ** 2
        for name in ("10", "200"):
            ode = statistics.median(spent[count, name])
            large = (seeds / 10) * step * CASE.t1 * 5000 / ode
            rows.append((f"4 x {count}, {name} times", f"{ode:.2f}", f"{100 * error:.2f} %", f"{100 * away:.2f} %", f"{seeds:.0f}",
                         f"{seeds * each:.1f}", f"{seeds * each / ode:.0f}", f"{large:.0f}"))  # fmt: skip
    table(
        f"SGD, d = 500: {each:.2f} s and {100 * one_seed:.1f} % a seed; d = 5000: {1e3 * step:.3f} ms a step",
        ("ODE", "CPU s", "standard error", "mean off by", "seeds of SGD for it", "their CPU s", "ratio", "ratio, d = 5000"), rows,
    )  # fmt: skip
    print(f"\n({taken:.0f} s for the steps at d = 5000.)")


def _step_at_5000(steps: int = 1000) -> tuple[float, float]:
    """(CPU seconds of an SGD step at d = 5000, seconds that measuring it took)."""
    began = time.perf_counter()
    ends = (steps / 5000, 3 * steps / 5000)
    runs = [lambda t=t: train(5000, t, [t], range(2)) for t in ends]
    for run in runs:
        run()
    # The difference of a long and a short run: what building and measuring take drops out.
    taken = [statistics.median(seconds(run)[1] for _ in range(REPEATS)) for run in runs]
    return (taken[1] - taken[0]) / (2 * steps) / 2, time.perf_counter() - began


def dimensions(t1: float = 0.5, seeds: int = 24) -> None:
    """The relative scatter of the loss over seeds at both dimensions, up to a time that both reach soon."""
    at = np.array([0.25, 0.5, 1.0]) * t1
    small, large = (np.sqrt(scatter(train(d, t1, at, range(seeds)))) for d in (500, 5000))
    rows = [
        (f"{t:g}", f"{100 * a:.2f} %", f"{100 * b:.2f} %", f"{a / b:.2f}")
        for t, a, b in zip(at, small, large, strict=True)
    ]
    table(f"Scatter of {seeds} seeds; sqrt(10) = 3.16", ("t", "d = 500", "d = 5000", "ratio"), rows)


CHOICES: dict[str, Callable[[], None]] = {
    "ratio": lambda: measure((1024, 4096, 8192)), "dimensions": dimensions,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Runs the chosen tables in this process."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.softmax_depth", description="The engine against its own SGD."
    )
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=tuple(CHOICES), metavar="NAME")
    chosen = parser.parse_args(arguments)
    one_thread()
    for name in chosen.only:
        CHOICES[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
