"""`python -m benchmarks.committee`: 64 learning rates of a Saad-Solla committee against a loop of scipy, one thread, one process.

K = M = 4, erf units, eta from 0.05 to 2, to alpha = 500 at rtol 1e-6. JAX: `SaadSolla` under diffrax's Tsit5 with a PI
controller in `lax.map` (each member takes its own steps; `vmap` would wait for the slowest), compiled once. scipy: RK45 over
Saad & Solla's integrals in numpy, the symmetries used there as well. Both against Dopri8 at rtol 1e-12, itself compared with
scipy's DOP853.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
END, RTOL, MEMBERS = 500.0, 1e-6, 64


class Times:
    """Wall-clock and processor seconds of this process, one entry for every `with`; the latter bear a busy machine."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __enter__(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall.append(time.perf_counter() - self.began[0])
        self.cpu.append(time.process_time() - self.began[1])


def measure(members: int = MEMBERS, end: float = END) -> dict[str, float]:
    """Seconds and errors; run it in a process whose threads are pinned (`main` does)."""
    import diffrax
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np

    from benchmarks.saad_solla import saad_solla
    from tests.scipy_committee import Oracle, saad_solla_start

    jax.config.update("jax_enable_x64", True)
    system = saad_solla()

    def final(rate, rtol, solver):
        member = eqx.tree_at(lambda s: s.learning_rate, system, rate)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: args.vector_field(t, y)), solver, 0.0, end, None,
            member.initial_state(), args=member, saveat=diffrax.SaveAt(t1=True), max_steps=100_000, throw=False,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol / 1e3, pcoeff=0.3, icoeff=0.4),
        )  # fmt: skip
        assert solution.ys is not None
        loss = member.excess_loss(jnp.asarray(end), solution.ys[0])
        return loss, solution.ys[0], solution.stats["num_steps"]

    def sweep(solver):
        return jax.jit(lambda rates, rtol: jax.lax.map(lambda rate: final(rate, rtol, solver), rates))

    rates = jnp.linspace(0.05, 2.0, members)
    fast = sweep(diffrax.Tsit5())
    began = time.perf_counter()
    compiled = fast.lower(rates, jnp.asarray(RTOL)).compile()
    compile_time = time.perf_counter() - began
    jax.block_until_ready(compiled(rates, jnp.asarray(RTOL)))
    warm, states, steps = Times(), None, 0
    for _ in range(3):
        with warm:
            _, states, steps = jax.block_until_ready(compiled(rates, jnp.asarray(RTOL)))
    exact_losses, exact, _ = (np.asarray(x) for x in sweep(diffrax.Dopri8())(rates, jnp.asarray(1e-12)))

    oracle, start, times = Oracle(4, np.eye(4)), saad_solla_start(), np.array([end])
    slow = Times()
    with slow:
        loop = np.stack([oracle.solve(start, float(rate), times, RTOL)[-1] for rate in rates])
    middle = members // 2
    tight = oracle.solve(start, float(rates[middle]), times, 1e-12, "DOP853")[-1]

    def errors(found: np.ndarray) -> np.ndarray:
        return np.abs(np.asarray(found).reshape(members, -1) - exact.reshape(members, -1)).max(axis=1)

    ours, theirs = errors(np.asarray(states)), errors(loop)
    return {
        "compile": compile_time, "warm": min(warm.wall), "scipy": min(slow.wall), "warm_cpu": min(warm.cpu),
        "scipy_cpu": min(slow.cpu), "steps": float(np.sum(steps)), "error": ours.max(), "median_error": float(np.median(ours)),
        "scipy_error": theirs.max(), "scipy_median_error": float(np.median(theirs)),
        "reference": float(np.abs(tight - exact[middle].ravel()).max()),
        "largest_loss": float(exact_losses.max()), "smallest_loss": float(exact_losses.min()),
    }  # fmt: skip


def page(r: dict[str, float], members: int = MEMBERS, end: float = END) -> str:
    """The result in words."""
    gain, gain_cpu = r["scipy"] / r["warm"], r["scipy_cpu"] / r["warm_cpu"]
    return (
        f"Committee K = M = 4, {members} learning rates to alpha = {end:g}, rtol {RTOL:g}, one thread\n"
        f"  odescale (lax.map, Tsit5)  {r['warm']:.3f} s warm ({r['warm_cpu']:.3f} s of processor), {r['compile']:.1f} s to "
        f"compile, {r['steps']:.0f} steps;\n"
        f"                             error of the overlaps {r['error']:.1e} at most, {r['median_error']:.1e} median\n"
        f"  scipy RK45, numpy, a loop  {r['scipy']:.2f} s ({r['scipy_cpu']:.2f} s of processor);\n"
        f"                             error {r['scipy_error']:.1e} at most, {r['scipy_median_error']:.1e} median\n"
        f"  {gain:.1f} times faster ({gain_cpu:.1f} in processor time)\n"
        f"  reference Dopri8 at 1e-12, which differs from scipy's DOP853 by {r['reference']:.1e}\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs `measure` in a process of its own with one thread; returns its exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if given == ["--here"]:
        print(page(measure()), end="")
        return 0
    if given:
        print("usage: python -m benchmarks.committee", file=sys.stderr)
        return 2
    from benchmarks.__main__ import environment

    pinned = environment("cpu") | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
    command = [sys.executable, "-m", "benchmarks.committee", "--here"]
    return subprocess.run(command, cwd=ROOT, env=pinned).returncode


if __name__ == "__main__":
    sys.exit(main())
