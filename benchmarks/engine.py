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
import numpy as np  # noqa: E402

import odescale  # noqa: E402
import odescale.kernels  # noqa: E402
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


def attention_sweep(members: int = 512) -> None:
    """Many members of the two-layer transformer to t = 40, 200 output times, with p and q and without, beside single solves."""
    random = np.random.default_rng(0)
    values = {"learning_rate": random.uniform(0.05, 0.3, members), "strength": random.uniform(0.3, 0.7, members)}
    few = {name: column[:8] for name, column in values.items()}

    def one_by_one() -> list[Any]:
        pairs = zip(*few.values(), strict=True)
        return [odescale.integrate(odescale.attention(learning_rate=a, strength=b), 40.0).loss for a, b in pairs]

    found = interleaved(
        5,
        full=lambda: odescale.sweep("attention", 40.0, values).loss,
        loss=lambda: odescale.sweep("attention", 40.0, values, exponents=False).loss,
        points=lambda: odescale.sweep("attention", 40.0, values, exponents=False, points=50).loss,
        alone=one_by_one,
    )
    sweep, alone = odescale.sweep("attention", 40.0, few).loss[:, 100], [loss[100] for loss in one_by_one()]
    off = np.max(np.abs(sweep / np.asarray(alone) - 1))
    rows = [(what, f"{1e3 * found[name] / count:.2f}") for what, name, count in (
        ("`sweep`, exact p and q", "full", members), ("`sweep`, `exponents=False`", "loss", members),
        ("`sweep`, `exponents=False`, 50 times", "points", members), ("build and `integrate` one by one", "alone", 8),
    )]  # fmt: skip
    table(f"`attention`, {members} members (sweep and single solves differ by {off:.0e})", ("run", "ms a member"), rows)


def committee_sweep(members: int = 64) -> None:
    """K = M = 4 of the catalogue from Saad & Solla's start, learning rates from .05 to 2, to t = 500 at rtol 1e-6."""
    from benchmarks.saad_solla import saad_solla

    start = saad_solla().initial_overlaps[None]
    built = SYSTEMS["committee"].build(units=4, teacher_units=4, batch=1.0, closure="closed", dimension=1000)
    system = eqx.tree_at(lambda one: one.initial_overlaps, built, start)
    rates = {"learning_rate": np.linspace(0.05, 2.0, members)}

    def run(rtol: float, lanes: int) -> Any:
        return odescale.sweep(system, 500.0, rates, points=2, rtol=rtol, lanes=lanes).observables["overlaps"][:, -1]

    exact = run(1e-11, 64)
    found = interleaved(5, all=lambda: run(1e-6, 64), some=lambda: run(1e-6, 32), few=lambda: run(1e-6, 16))
    rows = [(f"`sweep`, {lanes} lanes", f"{found[name]:.3f}", f"{np.max(np.abs(run(1e-6, lanes) - exact)):.1e}",
             f"{np.median(np.max(np.abs(run(1e-6, lanes) - exact), axis=(1, 2))):.1e}")
            for name, lanes in (("all", 64), ("some", 32), ("few", 16))]  # fmt: skip
    table(f"Committee, {members} rates", ("run", "CPU s", "largest error of an overlap", "median"), rows)


def kernel(samples: int = 640) -> None:
    """Tangent kernel of 67 329 parameters in double precision against `vmap(grad)` and one product, at several limits."""
    import jax.numpy as jnp

    network = eqx.nn.MLP(4, 1, 256, 2, activation=jnp.tanh, key=jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(samples, 4)))
    moved, rest = eqx.partition(network, eqx.is_inexact_array)

    @jax.jit
    def plain(moved: Any, x: Any) -> Any:
        slopes = jax.vmap(jax.grad(lambda m, s: eqx.combine(m, rest)(s)[0]), in_axes=(None, 0))(moved, x)
        J = jnp.concatenate([leaf.reshape(samples, -1) for leaf in jax.tree.leaves(slopes)], axis=1)
        return jnp.matmul(J, J.T, precision="highest")

    limits = (1e9, 4e8, 2e8, 1e8)
    runs: dict[str, Callable[[], Any]] = {"plain": lambda: np.asarray(plain(moved, x))}
    runs |= {
        f"at{limit:.0e}": lambda m=limit: odescale.kernels.tangent_kernel(network, x, memory_limit=m)
        for limit in limits
    }
    found = interleaved(5, **runs)
    reference = runs["plain"]()
    off = [np.max(np.abs(run() - reference)) / np.max(np.abs(reference)) for run in runs.values()]
    taken = plain.lower(moved, x).compile().memory_analysis()
    names = [
        f"`vmap(grad)`, takes {taken.temp_size_in_bytes / 1e6:.0f} MB",
        *(f"`tangent_kernel`, limit {m / 1e6:.0f} MB" for m in limits),
    ]
    rows = [(what, f"{found[name]:.2f}", f"{error:.0e}") for what, name, error in zip(names, runs, off, strict=True)]
    table(f"Tangent kernel, {samples} samples", ("run", "CPU s", "relative difference"), rows)


CASES: dict[str, Callable[[], None]] = {
    "warm": warm, "attention": attention_sweep, "committee": committee_sweep, "kernel": kernel,
}  # fmt: skip


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
