"""What is timed. One case runs in one fresh process: `python -m benchmarks.cases NAME`, rows as JSON on the last line.

A row is what is solved, its cold time (compilation and the first run in this process) by the clock on the wall and in CPU
seconds of all threads, its warm time (median of the runs after it, same shapes, on the wall) and remarks.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

Row = dict[str, Any]
STARTED = "ODESCALE_BENCHMARK_STARTED"
"""Environment variable with the moment (`time.time()`) at which the process was asked for."""


class Seconds(NamedTuple):
    """Of one call: on the wall, and of the CPU, which a busy machine stretches less."""

    wall: float
    cpu: float


def clocked(run: Callable[[], Any]) -> tuple[Any, Seconds]:
    """(result, seconds) of one call; asynchronous results are waited for."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(run())
    return result, Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def cold_and_warm(run: Callable[[], Any], repeats: int = 7, budget: float = 10.0) -> tuple[Any, Seconds, float]:
    """(last result, seconds of the first call, median seconds of the later calls); stops early beyond `budget` seconds."""
    result, cold = clocked(run)
    later: list[float] = []
    while len(later) < repeats and (not later or sum(later) < budget):
        result, seconds = clocked(run)
        later.append(seconds.wall)
    return result, cold, statistics.median(later)


def row(what: str, cold: Seconds, warm: float | None, remarks: str) -> Row:
    """One line of the table."""
    return {"what": what, "cold": cold.wall, "cpu": cold.cpu, "warm": warm, "remarks": remarks}


def single(small: bool) -> list[Row]:
    """The two-layer transformer with its defaults, once: what a user waits for."""
    import odescale

    system = odescale.attention(depth=2)
    points = 20 if small else 200
    first, cold = clocked(lambda: odescale.integrate(system, 40.0, points=points))
    rows = []
    if STARTED in os.environ:
        total = Seconds(time.time() - float(os.environ[STARTED]), time.process_time())
        rows.append(
            row("the same, from the start of Python", total, None, "interpreter, imports, building, first solve")
        )
    rates = iter(np.linspace(0.1, 0.3, 100))

    def again():
        other = odescale.attention(depth=2, learning_rate=next(rates))
        return clocked(lambda: odescale.integrate(other, 40.0, points=points))[1].wall

    again()  # the learning rate enters the checks, which compile one small program more
    warm = statistics.median(again() for _ in range(3 if small else 20))
    accepted = first.meta["ladder"][-1]["accepted"]
    name = f"`attention`, 2 layers: `integrate` to t = 40, {points} times"
    return [row(name, cold, warm, f"{accepted} steps of {first.meta['solver']}; warm: other learning rates"), *rows]


def quickstart(small: bool) -> list[Row]:
    """The quickstart ODE without noise against its closed form, and scipy on the same right-hand side."""
    from scipy.integrate import solve_ivp

    import odescale
    from odescale.systems.attention_build import quickstart_loss

    system = odescale.quickstart(noise=0.0)
    speed = float(system.learning_rate)  # u = learning_rate t
    t1 = (2.0 if small else 34.0) / speed

    def error(t: np.ndarray, loss: np.ndarray) -> str:
        exact = np.asarray(quickstart_loss(jnp.asarray(t * speed), 14.0, 0.3, 4.0))
        return f"largest relative error of the loss {np.max(np.abs(loss / exact - 1)):.1e}"

    rows = []
    for solver, rtol in (("tsit5", 1e-8), ("dopri8", 1e-10)):
        found, cold, warm = cold_and_warm(lambda s=solver, r=rtol: odescale.integrate(system, t1, solver=s, rtol=r))
        taken = found.meta["ladder"][-1]
        remarks = f"rtol {rtol:g}, {taken['accepted']} steps, with p, q and observables; {error(found.t, found.loss)}"
        rows.append(row(f"`quickstart` to u = {t1 * speed:g}, 200 times, `{solver}`", cold, warm, remarks))

    start = np.asarray(system.initial_state())
    times = found.t
    slope = jax.jit(lambda y: system.vector_field(jnp.zeros(()), y))
    losses = jax.jit(jax.vmap(lambda y: system.excess_loss(jnp.zeros(()), y)))
    for method in ("LSODA", "DOP853"):
        jax.clear_caches()

        def solve(method=method):
            solution = solve_ivp(
                lambda t, y: np.asarray(slope(y.reshape(start.shape))).ravel(),
                (0.0, t1), start.ravel(), method=method, t_eval=times, rtol=1e-8, atol=1e-12,
            )  # fmt: skip
            return solution, np.asarray(losses(solution.y.T.reshape(-1, *start.shape)))

        (solution, loss), cold, warm = cold_and_warm(solve)
        remarks = f"rtol 1e-08, {solution.nfev} evaluations of the same compiled right-hand side, loss only; {error(times, loss)}"
        rows.append(row(f"the same by scipy {method}, one thread", cold, warm, remarks))
    return rows


def sweep(small: bool) -> list[Row]:
    """Many parameter sets, one compilation."""
    import odescale
    from odescale.cache.programs import made

    members = 8 if small else 1000
    random = np.random.default_rng(0)

    def run():
        values = {"learning_rate": random.uniform(0.05, 0.3, members), "strength": random.uniform(0.3, 0.7, members)}
        return odescale.sweep("attention", 40.0, values, points=20 if small else 200)

    found, cold, warm = cold_and_warm(run, repeats=1 if small else 3, budget=30.0)
    remarks = (
        f"traced {made['odescale.solve.sweep:_solve_group']} time(s); {found.meta['failed']} failed; warm: other values"
    )
    return [row(f"`sweep` of {members} parameter sets, 2 layers to t = 40", cold, warm, remarks)]


def spectrum(small: bool) -> list[Row]:
    """A power-law spectrum over many decades of time, by the structure-preserving solver."""
    import odescale

    t1, modes = (1e2, 1000) if small else (1e6, 10**8)
    rows = []
    for noise in (0.0, 1.0):
        system = odescale.attention(depth=2, capacity=1.5, source=0.5, modes=modes, tokens=np.inf, noise=noise)
        found, cold, warm = cold_and_warm(lambda s=system: odescale.integrate(s, t1), repeats=3)
        taken = found.meta["ladder"][-1]
        remarks = f"{taken['accepted']} accepted and {taken['rejected']} rejected steps; p = {found.exponent[-1]:.3f} at the end"
        bins = system.eigenvalues.shape[0]
        name = f"spectrum k^-1.5, {modes:.0e} modes in {bins} bins, to {t1:.0e} SGD steps, noise {noise:g}"
        rows.append(row(name, cold, warm, remarks))
    return rows


def transition(small: bool) -> list[Row]:
    """The transition of the quickstart ODE, and its derivative in every parameter and initial overlap."""
    import odescale

    system = odescale.quickstart()
    points = 100 if small else 400
    found, cold, warm = cold_and_warm(lambda: odescale.find_transition(system, 85.0, points=points))
    rows = [row("`find_transition`, quickstart to t = 85", cold, warm, f"t_x = {found.t_x:.6f} (exact)")]
    gradient, cold, warm = cold_and_warm(lambda: odescale.transition_gradient(system, found))
    remarks = f"dt_x/d learning_rate = {float(gradient.learning_rate):.4f}"
    return [*rows, row("`transition_gradient`, all parameters and overlaps", cold, warm, remarks)]


def mean_field(small: bool) -> list[Row]:
    """The engine: one evaluation of drift and noise per node, and a whole trajectory with its error bar."""
    import equinox as eqx

    import odescale
    from odescale.networks import transformer_network

    rows = []
    for tokens, count in ((3, 2**10 if small else 2**14), (16, 2**8 if small else 2**12)):
        problem = odescale.teacher_student(transformer_network(depth=2), tokens=tokens)
        start = odescale.aligned_overlaps(problem, alignment=0.5, common=0.3)
        system = odescale.mean_field(problem, initial_overlaps=start, nodes=count, learning_rate=0.05)
        flow = eqx.filter_jit(lambda system, y: system.vector_field(jnp.zeros(()), y))
        y = system.initial_state()
        _, cold, warm = cold_and_warm(lambda f=flow, s=system, y=y: f(s, y))
        each = 1e6 * warm / (count * system.closure.replicates)
        name = f"engine, 2 softmax layers, T = {tokens}: right-hand side at {system.closure.replicates} x {count} nodes"
        rows.append(row(name, cold, warm, f"{each:.2f} us a node"))
        found, cold, warm = cold_and_warm(
            lambda s=system: odescale.integrate(s, 10.0, points=40), repeats=2, budget=20.0
        )
        remarks = (
            f"{found.meta['ladder'][-1]['accepted']} steps, largest relative 95 % half width {np.max(found.error):.1e}"
        )
        rows.append(row(f"engine, T = {tokens}: `integrate` to t = 10, 40 times", cold, warm, remarks))
    return rows


MEMBERS_SECONDS = 40.0
"""A size that would take longer than this, by the last one, is left out."""


def members(small: bool) -> list[Row]:
    """Sweeps of the cheapest system, from a thousand members to a million: the loss at 50 times."""
    import odescale

    rows: list[Row] = []
    each = 0.0
    for count in (100, 1000) if small else (10**3, 10**4, 10**5, 10**6):
        if each * count > MEMBERS_SECONDS:
            break
        rates = np.random.default_rng(count).uniform(0.05, 0.5, count)
        found, cold, warm = cold_and_warm(
            lambda rates=rates: odescale.sweep("committee", 40.0, {"learning_rate": rates}, points=50, exponents=False),
            repeats=3, budget=15.0,
        )  # fmt: skip
        remarks = f"{count / warm:.3g} members a second; {found.meta['failed']} failed"
        rows.append(row(f"`sweep` of {count} committees, K = M = 2, loss at 50 times", cold, warm, remarks))
        each = warm / count
    return rows


def routes(small: bool) -> list[Row]:
    """The same sweep by the loop of XLA operations and, where a GPU offers it, by one kernel that holds the whole loop."""
    import odescale
    from odescale.solve.fused import route_of, routed
    from odescale.systems.register import SYSTEMS

    numbers = SYSTEMS["committee"].build().initial_state().size
    rows: list[Row] = []
    for count in (100,) if small else (10**3, 10**5):
        rates = np.random.default_rng(count).uniform(0.05, 0.5, count)

        def run(rates=rates):
            return odescale.sweep("committee", 40.0, {"learning_rate": rates}, points=50, exponents=False)

        with routed("fused"):
            offered = route_of(jax.default_backend(), numbers) == "fused"
        found, cold, plain = cold_and_warm(run, repeats=5)
        what = f"{count} committees, K = M = 2, loss at 50 times"
        rows.append(row(f"{what}: `lockstep`", cold, plain, f"{count / plain:.3g} members a second"))
        if not offered:
            continue
        with routed("fused"):
            kernel, cold, warm = cold_and_warm(run, repeats=5)
        off = np.nanmax(np.abs(kernel.state - found.state))
        won = f"fused wins {plain / warm:.2f} times" if warm < plain else f"lockstep wins {warm / plain:.2f} times"
        remarks = (
            f"{won}; largest difference of an overlap {off:.0e}, {int(np.sum(kernel.code != found.code))} codes differ"
        )
        rows.append(row(f"{what}: `fused`", cold, warm, remarks))
    return rows


def modes(small: bool) -> list[Row]:
    """Exact modes of SGD on a power-law spectrum, a million of them."""
    import odescale

    rows = []
    for count in (1000, 10_000) if small else (10_000, 1_000_000):
        system = odescale.spectral(modes=count)
        found, cold, warm = cold_and_warm(lambda s=system: odescale.integrate(s, 1e4, points=50), repeats=3)
        rows.append(
            row(f"spectral, {count} modes to t = 1e4", cold, warm, f"{found.meta['solver']}, code {found.code}")
        )
    return rows


def training(small: bool) -> list[Row]:
    """The real network beside the quickstart ODE: SGD steps a second."""
    import odescale

    end = 0.5 if small else 20.0
    run, cold, warm = cold_and_warm(
        lambda: odescale.train("quickstart", end, seeds=4, progress=False), repeats=2, budget=30.0
    )
    steps = float(run.step[-1]) * len(run.seeds)
    return [
        row(
            f"`train` quickstart, 4 seeds to t = {end:g}",
            cold,
            warm,
            f"{steps / warm:.3g} SGD steps a second, records and their test losses included",
        )
    ]


CASES = {
    case.__name__: case
    for case in (single, quickstart, sweep, spectrum, transition, mean_field, members, routes, modes, training)
}


def main(arguments: list[str]) -> None:
    """Runs one case and prints {"device", "rows"} as JSON on the last line of stdout."""
    name, device, size = arguments
    device_found = jax.devices(device)[0]
    rows = CASES[name](size == "small")
    print(json.dumps({"device": device_found.device_kind, "platform": device_found.platform, "rows": rows}))


if __name__ == "__main__":
    main(sys.argv[1:])
