"""The log-rate ODE of SGD on a spectrum: `solve_spectral` beside scipy's LSODA, in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.spectral

Golden problem: d = 1024, lam_j = j^-1.5, rho_j(0) = j^-0.5, B = 1, eta = 0.5/sum lam, 400 log-spaced outputs up to 1e6 steps.
LSODA: rtol 1e-6, atol 1e-12, its right-hand side in numpy with the rates computed once where they are constant. Seconds of
`solve_spectral`: the best of seven warm calls; of the first call, tracing and compilation included. Errors against the
eigendecomposition (constant) or LSODA at rtol 1e-9, atol 1e-20 (schedules). Which cores a process may use is the caller's affair.
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

SCHEDULES = ("constant", "cosine:1e6:0.1", "wsd:1e4:8e5:1e6")


def by_lsoda(system: Any, times: np.ndarray, rtol: float, atol: float) -> np.ndarray:
    """E at `times` (n,) by scipy, from kink to kink."""
    from scipy.integrate import solve_ivp

    lam, w, B = (np.asarray(x) for x in (system.eigenvalues, system.squares, system.batch))
    eta, schedule = float(system.learning_rate), scaled(system)

    def coefficients(rate: float) -> tuple[np.ndarray, np.ndarray]:
        lost = 2 * rate * lam - rate**2 * (1 + 1 / B) * lam**2
        decay = -np.log1p(-lost)
        # decay/lost is 1 where the rate is nil.
        return decay, np.where(lost > 1e-300, decay / np.maximum(lost, 1e-300), 1.0) * rate**2 / B * w

    fixed = coefficients(eta)

    def flow(t: float, e: np.ndarray) -> np.ndarray:
        decay, force = fixed if schedule is None else coefficients(eta * schedule(t))
        return -decay * e + force * e.sum()

    stops = [0.0, *(float(k) for k in np.ravel(np.asarray(system.kinks)) if 0 < k < times[-1]), float(times[-1])]
    state, out = np.asarray(system.start), []
    for low, high in zip(stops[:-1], stops[1:], strict=True):
        inside = times[(times > low) & (times <= high)]
        at = np.unique(np.append(inside, high))
        found = solve_ivp(flow, (low, high), state, method="LSODA", t_eval=at, rtol=rtol, atol=atol)
        if not found.success:
            raise RuntimeError(found.message)
        state = found.y[:, -1]
        out.append(found.y.sum(axis=0)[np.isin(at, inside)])
    return np.concatenate(out)


def scaled(system: Any) -> Any:
    """s(t - 1/2) in numpy, None if constant."""
    from odescale.schedules import ConstantSchedule

    if isinstance(system.schedule, ConstantSchedule):
        return None
    grid = np.unique(np.concatenate([np.linspace(0, 1.001e6, 200_001), np.ravel(np.asarray(system.kinks, float))]))
    import jax

    values = np.asarray(jax.vmap(system.rate)(grid)) / float(system.learning_rate)
    return lambda t: float(np.interp(t, grid, values))


def main() -> int:
    """Prints the table."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from odescale import spectral
    from odescale.linear import constant_rate, solve_spectral

    eta = 0.5 / float(np.sum(np.arange(1, 1025) ** -1.5))
    times = np.geomspace(1, 1e6, 400)
    print(
        f"jax {jax.__version__}, {jax.default_backend()}, OMP_NUM_THREADS = {os.environ.get('OMP_NUM_THREADS', 'unset')}"
    )
    print("| schedule | LSODA s | first call s | warm ms | ratio | error | error of LSODA | accepted steps |")
    print("|---|---|---|---|---|---|---|---|")
    for schedule in SCHEDULES:
        system = spectral(learning_rate=eta, schedule=schedule)
        began = time.perf_counter()
        loose = by_lsoda(system, times, 1e-6, 1e-12)
        slow = time.perf_counter() - began
        exact = (
            constant_rate(system, discrete=False)(times)
            if schedule == "constant"
            else by_lsoda(system, times, 1e-9, 1e-20)
        )
        calls = [solve_spectral(system, times) for _ in range(8)]
        warm = min(call.seconds for call in calls[1:])
        error, theirs = (np.max(np.abs(x / exact - 1)) for x in (calls[0].loss, loose))
        print(
            f"| {schedule} | {slow:.2f} | {calls[0].seconds:.2f} | {1e3 * warm:.2f} | {slow / warm:.0f} | {error:.1e} | "
            f"{theirs:.1e} | {calls[0].accepted} |"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
