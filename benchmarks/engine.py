"""Warm speed of the engine: `python -m benchmarks.engine [--only NAME ...]`, one process, one thread, tables on stdout.

Both sides of a ratio run in turns, and what is shown is the median of each in CPU seconds, with the errors of both beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

for threads in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")

import jax  # noqa: E402

jax.config.update("jax_enable_x64", True)

import equinox as eqx  # noqa: E402

import odescale  # noqa: E402
from odescale.systems.register import SYSTEMS  # noqa: E402

REPEATS = 7


def one_thread() -> None:
    """Keeps the process on one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def interleaved(repeats: int = REPEATS, **runs: Callable[[], Any]) -> dict[str, float]:
    """Median CPU seconds of every run, taken in turns after one call of each that is not counted."""
    for run in runs.values():
        jax.block_until_ready(run())
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.process_time()
            jax.block_until_ready(run())
            taken[name].append(time.process_time() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects one entry for every program that JAX lowers within."""
    found: list[str] = []

    def heard(event: str, seconds: float, **more: Any) -> None:
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


def table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Prints a table in Markdown."""
    print(f"\n## {title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |", flush=True)


def warm() -> None:
    """The second and later `integrate` of every system of the catalogue, other numbers each time, against its own solve."""
    rows = []
    for name, entry in SYSTEMS.items():
        system = entry.build()
        odescale.integrate(system, entry.t1, points=entry.points)
        whole, solves = [], []
        with compilations() as compiled:
            for turn in range(REPEATS):
                factor = 1 - 0.01 * turn
                other = eqx.tree_at(lambda one: one.learning_rate, system, replace_fn=lambda rate, f=factor: f * rate)
                began = time.perf_counter()
                found = odescale.integrate(other, entry.t1 * factor, points=entry.points)
                whole.append(time.perf_counter() - began)
                solves.append(sum(rung["seconds"] for rung in found.meta["ladder"]))
        rest = statistics.median(a - b for a, b in zip(whole, solves, strict=True))
        rows.append((f"`{name}`", *(f"{1e3 * statistics.median(x):.1f}" for x in (whole, solves)), f"{1e3 * rest:.1f}",
                     len(compiled)))  # fmt: skip
    table("Warm `integrate`", ("system", "ms", "of it the solve", "the rest", "compilations"), rows)


CASES: dict[str, Callable[[], None]] = {"warm": warm}


def main(arguments: list[str] | None = None) -> int:
    """Runs the cases one after the other in this process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description="Warm speed of the engine.")
    parser.add_argument("--only", nargs="+", choices=CASES, default=tuple(CASES), metavar="NAME", help=", ".join(CASES))
    chosen = parser.parse_args(arguments)
    one_thread()
    for name in chosen.only:
        CASES[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
